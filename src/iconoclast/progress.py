"""Progress of long work: a small protocol, so that only the command line prints."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """A receiver of the progress of long work."""

    def start(self, task: str, total: int) -> None:
        """Begin a task of `total` steps, in place of the one before it."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more steps of the current task as done."""

    def note(self, message: str) -> None:
        """Pass on something that the user should read now."""


@dataclass(frozen=True)
class Phase:
    """One of the parts of a long job.

    Attributes:
        name: what is shown of it.
        share: how much of it is done, 0 to 1.
        left: seconds that the rest takes by the rates measured so far; None if there are none.
    """

    name: str
    share: float
    left: float | None


@runtime_checkable
class Board(Progress, Protocol):
    """A receiver that has a place for figures and phases, too."""

    def show(self, name: str, value: str) -> None:
        """Show the latest value of a figure in the place of the one before it."""

    def expect(self, phases: Sequence[Phase]) -> None:
        """Show how all phases of the job stand, in their order."""


def show(progress: Progress, **figures: str) -> None:
    """Show the latest values of figures where there is a place for them; an underscore stands for a space."""
    if isinstance(progress, Board):
        for name, value in figures.items():
            progress.show(name.replace("_", " "), value)


class Silent:
    """A receiver that reports nothing; the default in the library."""

    def start(self, task: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def note(self, message: str) -> None: ...
