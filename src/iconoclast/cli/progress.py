"""Progress on the terminal, and in the run's log."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path

from rich.progress import Progress, TaskID, TextColumn, TimeElapsedColumn

from iconoclast.cli.console import err
from iconoclast.privacy import portable
from iconoclast.reports.text import plain, print_lines


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
        """Append every line to this file as well from now on, and those before."""
        self._log = log
        self._append("")

    def start(self, task: str, total: int) -> None:
        """Show that a task begins."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(task, total=total or None)
        if err.is_terminal:
            self._write(f"{task} ...")
        else:
            self.note(f"{task} ...")

    def advance(self, steps: int = 1) -> None:
        """Show that steps are done."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, message: str) -> None:
        """Print a line that stays."""
        print_lines(err, message)
        self._write(message)

    def _write(self, message: str) -> None:
        self._append(f"{datetime.now().astimezone().isoformat(' ', 'seconds')}  {plain(message)}\n")

    def _append(self, line: str) -> None:
        self._unlogged += line
        if self._log is not None:
            lines, self._unlogged = self._unlogged, ""
            with suppress(OSError), self._log.open("a", encoding="utf-8") as log:  # a full disk is told of elsewhere
                log.write(portable(lines))

    def close(self) -> None:
        """Take the bar away: the work is done."""
        self._bars.stop()


@contextmanager
def shown_progress() -> Iterator[RichProgress]:
    """Show progress while the context lasts."""
    progress = RichProgress()
    with progress._bars if err.is_terminal else nullcontext():
        yield progress
