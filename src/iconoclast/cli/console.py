"""The terminal: output, progress, interruption, and the silence of other libraries."""

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from iconoclast.files import write_json
from iconoclast.privacy import portable
from iconoclast.reports.text import plain, print_lines

out = Console()
err = Console(stderr=True)

WIDEST = 10_000
"""Columns that a table may take where there is no terminal."""


def say(*lines: str, to: Console = out) -> None:
    """Print plain lines."""
    print_lines(to, *lines)


def program() -> str:
    """Return the program's name as the user can call it, or its path where the name is not found."""
    called = Path(sys.argv[0])
    return "iconoclast" if shutil.which("iconoclast") or called.name != "iconoclast" else os.path.relpath(called)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; elsewhere at full width, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)


def write_figures(file: Path | None, document: Mapping[str, Any]) -> None:
    """Write the JSON file, if the user asked for one, and say so."""
    if file is not None:
        write_json(file, document)
        say(f"Wrote {file}")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and a request to terminate end the work alike, keeping finished trials.

    In the background of a script, too, where the shell has told the process to ignore an interrupt.
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
    """Silence other libraries' warnings, advice and progress bars; call it before they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers goes by it as well
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


class RichProgress:
    """Shows progress on standard error: a bar with an estimate on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        task, bar, share, left = Progress.get_default_columns()
        columns = (task, bar, share, TimeElapsedColumn(), TextColumn("left"), left)
        # Batches end in bursts; a long window keeps the estimate honest.
        self._bars = Progress(*columns, console=err, transient=True, speed_estimate_period=600)
        self._task: TaskID | None = None
        self._log: Path | None = None
        self._unlogged = ""

    def keep(self, log: Path) -> None:
        """Append every line to this file as well, earlier ones included."""
        self._log = log
        self._append("")

    def start(self, task: str, total: int) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(task, total=total or None)
        if err.is_terminal:
            self._write(f"{task} ...")
        else:
            self.note(f"{task} ...")

    def advance(self, steps: int = 1) -> None:
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        say(message, to=err)
        self._write(message)

    def _write(self, message: str) -> None:
        self._append(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {plain(message)}\n")

    def _append(self, line: str) -> None:
        self._unlogged += line
        if self._log is not None:
            lines, self._unlogged = self._unlogged, ""
            with suppress(OSError), self._log.open("a", encoding="utf-8") as log:  # a full disk is reported elsewhere
                log.write(portable(lines))

    def close(self) -> None:
        """Take the bar away: the work is done."""
        self._bars.stop()


@contextmanager
def shown_progress() -> Iterator[RichProgress]:
    progress = RichProgress()
    with progress._bars if err.is_terminal else nullcontext():
        yield progress
