"""ICONOCLAST: representation editing of open-weight language models.

Prompts become residuals, residuals become directions, a direction and a profile become an Edit, an Edit is measured
live, the best one is exported, and what was exported is measured again.
"""

__version__ = "0.1.0"
