"""Prompts inside a cell of a table: its text, the first user turn of a conversation, or a field in a field. No torch."""

import ast
import json
import re
from typing import Any

KEYS = (("role", "content"), ("from", "value"))
"""What a message calls its speaker and its text."""
USERS = ("user", "human")
SYSTEMS = ("system", "developer")
DEPTH = 4
"""Fields in fields that are looked into for text."""
_WRITTEN_OUT = re.compile(r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")


def field(row: dict[str, Any], column: str) -> Any:
    """Return a cell by its column's name or by a path such as `prompt.text` or `turns.0`; raise KeyError."""
    if column in row:
        return row[column]
    found: Any = row
    for step in column.split("."):
        if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, dict):
            found = found[step]
        elif found is not None:
            raise KeyError(column)
    return found


def places(name: str, cell: Any, depth: int = DEPTH) -> list[str]:
    """Return where a cell of the column `name` holds text or a conversation: the column, or paths to fields in it."""
    if isinstance(cell, str) or turns(cell) is not None:
        return [name]
    inside = {0: cell[0]} if isinstance(cell, list) and cell else cell
    if not isinstance(inside, dict) or depth == 0:
        return []
    return [place for key, value in inside.items() for place in places(f"{name}.{key}", value, depth - 1)]


def turns(cell: Any) -> list[tuple[str, str | None]] | None:
    """Return speaker and text of every message of a conversation; None if the cell is not a conversation.

    A conversation is a list of messages, one message, a table of messages by columns, or a list written out as text.
    """
    if isinstance(cell, str):
        if not _WRITTEN_OUT.match(cell):
            return None
        cell = _read_back(cell)
    if isinstance(cell, dict):
        columns = [key for pair in KEYS for key in pair if isinstance(cell.get(key), list)]
        by_row = len(columns) == 2 and zip(*(cell[key] for key in columns), strict=False)
        cell = [dict(zip(columns, row, strict=True)) for row in by_row] if by_row else [cell]
    if not isinstance(cell, list) or not all(isinstance(message, dict) for message in cell):
        return None
    for speaker, text in KEYS:
        if cell and text in cell[0] and all(isinstance(message.get(speaker), str) for message in cell):
            return [(message[speaker].casefold(), _text(message.get(text))) for message in cell]
    return None


def opening(conversation: list[tuple[str, str | None]]) -> tuple[str | None, str | None]:
    """Return the system message, if there is one, and the first user turn; None where it has no text."""
    system = None
    for speaker, text in conversation:
        if speaker in USERS:
            return system, text
        if speaker in SYSTEMS and system is None:
            system = text
    return system, None


def _read_back(text: str) -> Any:
    """Read a conversation written out as JSON or as Python does; nothing but a blank one if that fails."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return {"role": "", "content": None}


def _text(content: Any) -> str | None:
    """Return the text of a message, whose content can be a list of parts; None if a part is not text."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return content if isinstance(content, str) else None
