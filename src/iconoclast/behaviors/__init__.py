"""Behaviours that come along: prompt sets, one TOML file each. All of them harmless."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from iconoclast.errors import PromptsError

PREFIX = "builtin:"


def builtin_prompts(dataset: str) -> dict[str, list[str]]:
    """The prompts of `builtin:NAME/target` or `builtin:NAME/benign`, by split.

    Raises:
        PromptsError: there is no such behaviour or role; the message lists what there is.
    """
    name, _, role = dataset.removeprefix(PREFIX).partition("/")
    document = _documents().get(name)
    if document is None or role not in ("target", "benign"):
        known = ", ".join(f"{PREFIX}{n}/{r}" for n in sorted(_documents()) for r in ("target", "benign"))
        raise PromptsError(f"There is no built-in prompt set {dataset}. There are {known}.")
    splits: dict[str, list[str]] = document[role]
    return splits


@cache
def _documents() -> dict[str, dict[str, Any]]:
    folder = files(__name__)
    return {
        entry.name.removesuffix(".toml"): tomllib.loads(entry.read_text(encoding="utf-8"))
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    }
