"""The terminal: what is printed there, what interrupts from there, and what other libraries must not say there."""

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from iconoclast.files import write_json
from iconoclast.reports.text import print_lines

out = Console()
err = Console(stderr=True)

WIDEST = 10_000
"""Columns that a table can take where there is no terminal."""


def program() -> str:
    """Return how the user can call this program: by its name, or by its path where the name is not found."""
    called = Path(sys.argv[0])
    return "iconoclast" if shutil.which("iconoclast") or called.name != "iconoclast" else os.path.relpath(called)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; elsewhere as wide as it is, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)


def write_figures(file: Path | None, document: Mapping[str, Any]) -> None:
    """Write the JSON file that the user asked for, if so, and say that it is there."""
    if file is not None:
        write_json(file, document)
        print_lines(out, f"Wrote {file}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and a request to terminate end the work alike while this lasts: keeping what is done.

    Also in the background of a script, where the shell has told the process to ignore an interrupt.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quiet_libraries() -> None:
    """Keep other libraries' warnings, advice and progress bars off the terminal; for before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers goes by it as well
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
