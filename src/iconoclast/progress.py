"""Progress of long work: a small protocol, so that only the command line prints."""

from typing import Protocol


class Progress(Protocol):
    """A receiver of the progress of long work."""

    def start(self, task: str, total: int) -> None:
        """Begin a task of `total` steps, in place of the one before it."""

    def advance(self, steps: int = 1) -> None:
        """Count `steps` more steps of the current task as done."""

    def note(self, message: str) -> None:
        """Pass on something that the user should read now."""


class Silent:
    """A receiver that reports nothing; the default in the library."""

    def start(self, task: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def note(self, message: str) -> None: ...
