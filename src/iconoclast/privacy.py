"""Removal of home folders, local paths and secrets from everything that is written down or given away."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PATHS = frozenset(
    [
        "model", "dataset", "chat_template", "study_checkpoint_dir", "include_path", "source", "sources", "refusal_rules",
        "soft_refusal_rules", "constraints", "objectives", "name", "command",
    ]
)  # fmt: skip
"""Keys whose values can be paths or begin with one; everything else, such as prompts, is left alone."""


def portable(value: Any) -> Any:
    """Return the same data with ~ for the user's home where a path can be."""
    home = str(Path.home())
    return _with_paths(value, lambda text: re.sub(rf"{re.escape(home)}(?=/|$)", "~", text) if len(home) > 1 else text)


def public(value: Any) -> Any:
    """Return the same data for strangers: only the last part of local paths."""
    return _with_paths(value, _last_part)


def _with_paths(value: Any, shown: Callable[[str], str], path: bool = True) -> Any:
    """Return the same data with texts as they are shown where a path can be; tuples become lists."""
    if isinstance(value, str):
        return shown(value) if path else value
    if isinstance(value, Mapping):
        return {key: _with_paths(item, shown, key in PATHS) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_paths(item, shown, path) for item in value]
    return value


def _last_part(value: str) -> str:
    """Return a text as it is unless it is, or begins with, a local path."""
    if found := re.match("-?(perplexity:)?(?=[/~.])", value):
        return found[0] + value[found.end() :].rsplit("/", 1)[-1]
    if value.startswith("pack:"):
        return "pack:" + "/".join(value.rsplit("/", 2)[-2:])
    return value.rsplit("/", 1)[-1] if "/" in value and _exists(value) else value


def _exists(value: str) -> bool:
    """Check that a name, or its part before a split, is a file or folder here."""
    return Path(value).exists() or Path(value.split(" ", 1)[0]).exists()


SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def command_line(arguments: Sequence[str]) -> list[str]:
    """Return the command, with its program's bare name and without the values of secret flags."""
    shown = [Path(arguments[0]).name]
    hide = False
    for argument in arguments[1:]:
        flag, equals, _ = argument.partition("=")
        secret = flag.startswith("-") and SECRET.search(flag) is not None
        shown.append("***" if hide else f"{flag}=***" if secret and equals else argument)
        hide = secret and not equals
    return shown
