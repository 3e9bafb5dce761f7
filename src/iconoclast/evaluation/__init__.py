"""Evaluation: effects of an edit on responses and on the distribution of the next token."""
