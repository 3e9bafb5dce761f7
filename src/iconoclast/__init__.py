"""ICONOCLAST: representation editing of open-weight language models.

Prompts become residuals, residuals become directions, a direction and a profile become an Edit, an Edit is measured
live, the best one is exported, and what was exported is measured again.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from iconoclast.version import __version__

if TYPE_CHECKING:
    from iconoclast.config.schema import Settings
    from iconoclast.directions.estimators import Directions, DirectionSpec
    from iconoclast.edits.edit import Edit
    from iconoclast.edits.profile import Profile
    from iconoclast.evaluation.evaluator import measure
    from iconoclast.library import applied, estimate_directions, export, make_edit, open_run, residuals, search
    from iconoclast.models.language_model import LanguageModel
    from iconoclast.models.loading import load_model
    from iconoclast.prompts import PromptSet
    from iconoclast.scores import Scores

__all__ = [
    "DirectionSpec", "Directions", "Edit", "LanguageModel", "Profile", "PromptSet", "Scores", "Settings", "__version__",
    "applied", "estimate_directions", "export", "load_model", "make_edit", "measure", "open_run", "residuals", "search",
]  # fmt: skip

_HOMES = {
    "DirectionSpec": "directions.estimators",
    "Directions": "directions.estimators",
    "Edit": "edits.edit",
    "LanguageModel": "models.language_model",
    "Profile": "edits.profile",
    "PromptSet": "prompts",
    "Scores": "scores",
    "Settings": "config.schema",
    "load_model": "models.loading",
    "measure": "evaluation.evaluator",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command line answers `--help` without loading torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'library')}"), name)


def __dir__() -> list[str]:
    return __all__


class _Face(ModuleType):
    """Keeps `search` the function of the library: importing the package `iconoclast.search` would take its name."""

    search = property(lambda self: __getattr__("search"), lambda self, package: None)


sys.modules[__name__].__class__ = _Face
