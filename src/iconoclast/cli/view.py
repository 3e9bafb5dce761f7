"""The live view of long work on a terminal: phases, time left, figures. It is drawn anew at every size of the window."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import psutil
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from iconoclast.progress import Phase

REFRESHED_EVERY = 0.25
"""Seconds between two pictures."""

GIB = 2**30


def span(seconds: float) -> str:
    """Write a duration for people: 0:42, 12:05, 3 h 20 min."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def about(seconds: float) -> str:
    """Write an estimated duration for people, with no more digits than are meant."""
    if seconds < 55:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60:02} min"


def memory() -> str:
    """Return the memory that this process has, in words: on the machine and its GPUs."""
    gib = psutil.Process().memory_info().rss / GIB
    parts = [f"{gib:.1f} of {psutil.virtual_memory().total / GIB:.0f} GiB"]
    torch = sys.modules.get("torch")  # who has not loaded it has nothing on a GPU
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(device)
            parts.append(f"GPU {device}: {(total - free) / GIB:.1f} of {total / GIB:.0f} GiB")
    return ", ".join(parts)


class View:
    """Shows how work stands below the lines that stay. Lines, window and picture are kept right when the window changes.

    Args:
        console: the terminal.
        clock: tells the time in seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._ended = threading.Event()
        self._lines: deque[str] = deque(maxlen=500)
        self._size = console.size
        self._task, self._total, self._done = "", 0, 0
        self._began = self._task_began = self._told = clock()
        self._figures: dict[str, str] = {}
        self._phases: Sequence[Phase] = ()
        self._took: dict[str, float] = {}
        self._live = Live(
            console=console, get_renderable=self._picture, auto_refresh=False, transient=True, vertical_overflow="crop"
        )

    def __enter__(self) -> "View":
        self._live.start(refresh=True)
        threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the picture away; the lines stay."""
        self._ended.set()
        self._live.stop()

    def start(self, task: str, total: int) -> None:
        self._task, self._total, self._done, self._task_began = task, total, 0, self._clock()

    def advance(self, steps: int) -> None:
        self._done += steps

    def show(self, name: str, value: str) -> None:
        self._figures[name] = value

    def expect(self, phases: Sequence[Phase]) -> None:
        now = self._clock()
        for phase in phases:
            if phase.share == 1 and phase.name not in self._took:
                self._took[phase.name] = now - self._began - sum(self._took.values())
        self._phases, self._told = phases, now

    def line(self, text: str) -> None:
        """Remember a line that has been printed, for when the window is drawn anew."""
        self._lines.append(text)

    def _go_on(self) -> None:
        while not self._ended.wait(REFRESHED_EVERY):
            self.refresh()

    def refresh(self) -> None:
        """Draw the picture; after a change of size on an empty window, since the terminal may have moved every line."""
        if self._size != (size := self._console.size):
            self._size = size
            self._console.clear()
            if self._lines:
                self._console.print("\n".join([*self._lines][-size.height :]), markup=False, highlight=False)
        self._live.refresh()

    def _picture(self) -> RenderableType:
        if not self._phases:
            return Group(*self._task_alone())
        rows = Table.grid(padding=(0, 1))
        rows.add_column(no_wrap=True)
        rows.add_column()
        for name, value in self._rows():
            rows.add_row(
                Text(name) if isinstance(name, str) else name, Text(value) if isinstance(value, str) else value
            )
        return rows

    def _rows(self) -> Iterator[tuple[str | Text, RenderableType]]:
        """Name and content of every line, what matters most first: a low window shows no more."""
        now = self._clock()
        passed = now - self._told
        yield "Time", Text(f"{span(now - self._began)}, {self._left(passed)}", "bold")
        current = next((phase for phase in self._phases if phase.share < 1), None)
        for phase in self._phases:
            if phase.share == 1:
                yield Text(phase.name, "green"), f"done in {span(self._took[phase.name])}"
            elif phase is current:
                left = None if phase.left is None else max(0.0, phase.left - passed)
                yield Text(phase.name, "bold"), self._bar(phase.share, left)
            else:
                left_text = "" if phase.left is None else f", {about(phase.left)}"
                yield Text(phase.name, "dim"), Text(f"to come{left_text}", "dim")
        yield "Now", self._task + (f", {self._done} of {self._total}" if self._total else "")
        yield from reversed(self._figures.items())
        yield "Memory", memory()

    def _left(self, passed: float) -> str:
        lefts = [phase.left for phase in self._phases if phase.share < 1]
        known = [left for left in lefts if left is not None]
        if len(known) < len(lefts):
            return "the rest is not measured yet"
        return f"{about(max(0.0, sum(known) - passed))} left"

    def _bar(self, share: float, left: float | None) -> RenderableType:
        row = Table.grid(padding=(0, 1))
        row.add_row(
            ProgressBar(total=1.0, completed=share, width=self._bar_width),
            Text(f"{share:4.0%}" + ("" if left is None else f", {about(left)}")),
        )
        return row

    @property
    def _bar_width(self) -> int:
        return max(5, min(40, self._console.width - 40))

    def _task_alone(self) -> Iterator[RenderableType]:
        """The view of a job without phases."""
        elapsed = self._clock() - self._task_began
        if self._task:
            yield Text.assemble(self._task, "  ", (span(elapsed), "dim"))
        if self._total:
            share = min(1.0, self._done / self._total)
            yield self._bar(share, elapsed * (1 - share) / share if share else None)
        elif self._task:
            yield ProgressBar(total=None, pulse=True, width=self._bar_width)
