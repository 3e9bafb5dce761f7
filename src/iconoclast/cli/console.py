"""Progress and errors on the terminal."""

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from iconoclast.errors import RunFolderError
from iconoclast.reports.text import plain, print_lines

out = Console()
err = Console(stderr=True)


def program() -> str:
    """How the user can call this program: by its name, or by its path where the name is not found."""
    called = Path(sys.argv[0])
    return "iconoclast" if shutil.which("iconoclast") or called.name != "iconoclast" else os.path.relpath(called)


WIDEST = 10_000
"""Columns that a table can take where there is no terminal."""


def print_table(table: Table) -> None:
    """As wide as the terminal; elsewhere as wide as it is, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)


class RichProgress:
    """Shows progress on standard error: a bar with an estimate on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            # Batches end in bursts; a long window keeps the estimate honest.
            TimeRemainingColumn(),
            console=err,
            transient=True,
            speed_estimate_period=600,
        )
        self._task: TaskID | None = None
        self._log: Path | None = None
        self._unlogged: list[str] = []

    def keep(self, log: Path) -> None:
        """From now on, append every line to this file as well; and those before."""
        self._log = log
        self._append("".join(self._unlogged))

    def start(self, task: str, total: int) -> None:
        """A task begins."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(task, total=total or None)
        if err.is_terminal:
            self._write(f"{task} ...")
        else:
            self.note(f"{task} ...")

    def advance(self, steps: int = 1) -> None:
        """Steps are done."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, message: str) -> None:
        """A line that stays."""
        print_lines(err, message)
        self._write(message)

    def _write(self, message: str) -> None:
        line = f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {plain(message)}\n"
        if self._log is None:
            self._unlogged.append(line)
        else:
            self._append(line)

    def _append(self, lines: str) -> None:
        from iconoclast.privacy import portable  # loads torch, which whoever has a log has loaded

        assert self._log is not None
        with suppress(OSError), self._log.open("a", encoding="utf-8") as log:  # a full disk is told of elsewhere
            log.write(portable(lines))

    def close(self) -> None:
        """The work is done: the bar goes away."""
        self._bars.stop()


@contextmanager
def shown_progress() -> Iterator[RichProgress]:
    """Progress that is visible while the context lasts."""
    progress = RichProgress()
    with progress._bars if err.is_terminal else nullcontext():
        yield progress


@contextmanager
def interruptible() -> Iterator[None]:
    """While this lasts, Ctrl-C and a request to terminate end the work alike: keeping what is done.

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


def require_writable(file: Path | None) -> None:
    """Measuring takes long: better to know before that its result can be written.

    Raises:
        RunFolderError: it cannot.
    """
    if file is None:
        return
    folder = file.absolute().parent
    if file.is_dir() or not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise RunFolderError(f"{file} cannot be written. Give a file in a folder that exists with --json.")


def quiet_imports() -> None:
    """What other libraries say while they are imported stays off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def quiet_libraries() -> None:
    """Other libraries' progress bars, advice and chatter stay off the terminal."""
    import datasets
    import optuna
    from transformers.utils import logging as transformers_logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
