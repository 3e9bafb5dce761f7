"""The terminal: output, progress, interruption, and the silence of other libraries."""

import logging
import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from iconoclast.cli.view import View, memory, span
from iconoclast.documents import Part
from iconoclast.files import write_json
from iconoclast.privacy import portable
from iconoclast.progress import Phase
from iconoclast.reports.text import plain, print_lines
from iconoclast.signals import raised_on

out = Console()
err = Console(stderr=True)

STANDARD_OUTPUT = Path("-")

WIDEST = 10_000
"""Columns that a table may take where there is no terminal."""


def say(*lines: str, to: Console = out) -> None:
    """Print plain lines."""
    print_lines(to, *lines)


@dataclass(frozen=True)
class Manner:
    """Manner in which a command shows its work and its result.

    Attributes:
        plain: lines instead of a live view.
        quiet: results and errors only.
        verbose: also how long each step took, and what other libraries say.
        as_json: standard output is a JSON document and nothing else.
    """

    plain: bool = False
    quiet: bool = False
    verbose: bool = False
    as_json: bool = False


_manner = Manner()


@contextmanager
def in_manner(manner: Manner) -> Iterator[None]:
    """Show everything in this manner as long as the context lasts."""
    global _manner
    before, _manner, out.quiet = _manner, manner, manner.as_json
    if manner.verbose:
        logging.disable(logging.NOTSET)
        warnings.resetwarnings()
    try:
        yield
    finally:
        _manner, out.quiet = before, before.as_json


def program() -> str:
    """Return the program's name as the user can call it, or its path where the name is not found."""
    called = Path(sys.argv[0])
    return "iconoclast" if shutil.which("iconoclast") or called.name != "iconoclast" else os.path.relpath(called)


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; elsewhere at full width, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)


def print_json(document: Any) -> None:
    """Print a JSON document on standard output."""
    out.quiet = False
    out.print_json(data=document)
    out.quiet = _manner.as_json


def write_figures(file: Path | None, found: Part | Mapping[str, Any]) -> None:
    """Write the JSON file, if the user asked for one, and say so; `-` is standard output."""
    document = found.document() if isinstance(found, Part) else found
    if file == STANDARD_OUTPUT:
        print_json(document)
    elif file is not None:
        write_json(file, document)
        say(f"Wrote {file}")


def interruptible() -> AbstractContextManager[None]:
    """Let Ctrl-C and a request to terminate end the work alike, keeping finished trials.

    In the background of a script, too, where the shell has told the process to ignore an interrupt.
    """
    return raised_on((signal.SIGINT, signal.SIGTERM), KeyboardInterrupt)


def quiet_libraries() -> None:
    """Silence other libraries' warnings, advice and progress bars; call it before those that load models are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers goes by it as well
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    if "huggingface_hub" in sys.modules:  # it has read the environment already
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # it is public

        disable_progress_bars()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


class RichProgress:
    """Shows progress on standard error: a live view on a terminal, plain lines elsewhere; every line goes into the log."""

    def __init__(self, view: View | None = None) -> None:
        self._view = view
        self._log: Path | None = None
        self._unlogged = ""
        self._task, self._began = "", 0.0

    def keep(self, log: Path) -> None:
        """Append every line to this file as well, earlier ones included."""
        self._log = log
        self._append("")

    def start(self, task: str, total: int) -> None:
        self._say_how_long()
        self._task, self._began = task, time.monotonic()
        if self._view is None:
            self.note(f"{task} ...")
        else:
            self._view.start(task, total)
            self._write(f"{task} ...")

    def advance(self, steps: int = 1) -> None:
        if self._view is not None:
            self._view.advance(steps)

    def show(self, name: str, value: str) -> None:
        if self._view is not None:
            self._view.show(name, value)

    def expect(self, phases: Sequence[Phase]) -> None:
        if self._view is not None:
            self._view.expect(phases)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        if not _manner.quiet:
            say(message, to=err)
        if self._view is not None:
            self._view.line(message)
        self._write(message)

    def _say_how_long(self) -> None:
        if _manner.verbose and self._task:
            self.note(f"{self._task}: took {span(time.monotonic() - self._began)}; memory {memory()}.")

    def _write(self, message: str) -> None:
        self._append(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {plain(message)}\n")

    def _append(self, line: str) -> None:
        self._unlogged += line
        if self._log is not None:
            lines, self._unlogged = self._unlogged, ""
            with suppress(OSError), self._log.open("a", encoding="utf-8") as log:  # a full disk is reported elsewhere
                log.write(portable(lines))

    def close(self) -> None:
        """Take the live view away: the work is done."""
        self._say_how_long()
        self._task = ""
        if self._view is not None:
            self._view.close()


def busy(task: str) -> AbstractContextManager[object]:
    """Show that something goes on for some seconds, unless the user wants lines only."""
    return nullcontext() if _manner.plain or _manner.quiet else err.status(task)


@contextmanager
def shown_progress() -> Iterator[RichProgress]:
    """Show the progress of what is done as long as the context lasts, in the manner that the user asked for."""
    if not err.is_terminal or err.is_dumb_terminal or _manner.plain or _manner.quiet:
        yield RichProgress()
        return
    with View(err) as view:
        yield RichProgress(view)
