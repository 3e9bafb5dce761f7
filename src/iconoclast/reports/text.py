"""Text for the terminal and the documentation; imports nothing heavy."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from iconoclast.config.specs import setting_specs


def plain(text: str) -> Text:
    """Text from a model or a user: no markup, and no control characters that could move the cursor."""
    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in text))


def settings_lines(rows: Sequence[tuple[str, Any, str]]) -> list[str]:
    """Settings, a line each: key, value, where it came from."""
    return [f"{key} = {_shown(value)}  # {origin}" for key, value, origin in rows]


def settings_reference() -> str:
    """Every setting with its flag, default and purpose, as a Markdown document."""
    lines = [
        "# Settings",
        "",
        "Made by `iconoclast config reference`. Each setting is a key of the TOML file, a flag of `iconoclast run`, and an",
        "environment variable: `ICONOCLAST_` and the key in capitals, a section and its key joined by two underscores, lists",
        "as JSON. Flags come before the environment, the environment before the file, the file before the defaults.",
        "",
        "| Key | Flag | Default | What it is for |",
        "|---|---|---|---|",
    ]
    for spec in setting_specs():
        default = "" if spec.default is None else f"`{_shown(spec.default)}`"
        if isinstance(spec.default, list) and len(spec.default) > 6:
            default = f"{len(spec.default)} phrases"
        lines.append(f"| `{spec.key}` | `{spec.flag}` | {default} | {spec.description} |")
    return "\n".join(lines) + "\n"


def print_lines(console: Console, *lines: str) -> None:
    """Plain lines: wrapped between words on a terminal, whole elsewhere, so that scripts can read them."""
    for line in lines:
        console.print(plain(line), soft_wrap=not console.is_terminal, highlight=False)


def _shown(value: Any) -> str:
    return "(unset)" if value is None else json.dumps(value, ensure_ascii=False, default=str)
