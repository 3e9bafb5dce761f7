"""The terminal: what is printed there, what interrupts from there, and what other libraries must not say there."""

import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

out = Console()
err = Console(stderr=True)


def program() -> str:
    """Return how the user can call this program: by its name, or by its path where the name is not found."""
    called = Path(sys.argv[0])
    return "iconoclast" if shutil.which("iconoclast") or called.name != "iconoclast" else os.path.relpath(called)


WIDEST = 10_000
"""Columns that a table can take where there is no terminal."""


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; elsewhere as wide as it is, so that scripts find a row in a line."""
    if not out.is_terminal:
        table.width = out.measure(table, options=out.options.update_width(WIDEST)).maximum
    out.print(table, soft_wrap=not out.is_terminal)


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


def quiet_imports() -> None:
    """Keep off the terminal what other libraries say while they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


def quiet_libraries() -> None:
    """Keep other libraries' progress bars, advice and chatter off the terminal."""
    import datasets
    import optuna
    from transformers.utils import logging as transformers_logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
