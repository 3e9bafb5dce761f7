"""Reports that long work goes on: a small protocol, so that only the command line prints."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long work."""

    def start(self, task: str, total: int) -> None:
        """A task begins, of `total` steps. It replaces the task before it."""

    def advance(self, steps: int = 1) -> None:
        """`steps` more steps of the current task are done."""

    def note(self, message: str) -> None:
        """Something that the user should read now."""


class Silent:
    """Reports nothing; the default in the library."""

    def start(self, task: str, total: int) -> None: ...

    def advance(self, steps: int = 1) -> None: ...

    def note(self, message: str) -> None: ...
