"""What may be written down: no home folder, no local path in what is given away, no secret of a command line."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATHS = frozenset(
    [
        "model",
        "dataset",
        "chat_template",
        "study_checkpoint_dir",
        "include_path",
        "source",
        "sources",
        "name",
        "command",
    ]
)
"""Keys whose values can be paths, or begin with one; everything else, prompts among it, is left as it is."""


def portable(value: Any, path: bool = True) -> Any:
    """The same data, the user's home written as ~ where a path can be."""
    if isinstance(value, str):
        home = str(Path.home())
        return re.sub(rf"{re.escape(home)}(?=/|$)", "~", value) if path and len(home) > 1 else value
    if isinstance(value, Mapping):
        return {key: portable(item, key in PATHS) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item, path) for item in value]
    return value


def public(value: Any, path: bool = True) -> Any:
    """The same data for somebody else's eyes: of local paths the last part alone."""
    if isinstance(value, str):
        local = value.startswith(("/", "~/", "./", "../")) or (path and "/" in value and _exists(value))
        return value.rsplit("/", 1)[-1] if path and local else value
    if isinstance(value, Mapping):
        return {key: public(item, key in PATHS) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, path) for item in value]
    return value


def _exists(value: str) -> bool:
    """Whether a name, or what it is before its split, is a file or folder here."""
    return Path(value).exists() or Path(value.split(" ", 1)[0]).exists()


SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)


def command_line(arguments: Sequence[str]) -> list[str]:
    """The command, its program by name alone, what follows a flag for a secret left out."""
    shown = [Path(arguments[0]).name]
    hide = False
    for argument in arguments[1:]:
        flag, equals, _ = argument.partition("=")
        secret = flag.startswith("-") and SECRET.search(flag) is not None
        shown.append("***" if hide else f"{flag}=***" if secret and equals else argument)
        hide = secret and not equals
    return shown
