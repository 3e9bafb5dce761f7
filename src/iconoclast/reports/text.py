"""Text for the terminal and the documentation; imports nothing heavy."""

from rich.console import Console
from rich.text import Text


def plain(text: str) -> Text:
    """Strip markup and cursor-moving control characters from a model's or user's text."""
    return Text("".join(c if c.isprintable() or c == "\n" else "�" for c in text))


def print_lines(console: Console, *lines: str) -> None:
    """Print plain lines: wrapped between words on a terminal, whole elsewhere, so that scripts can read them."""
    for line in lines:
        console.print(plain(line), soft_wrap=not console.is_terminal, highlight=False)
