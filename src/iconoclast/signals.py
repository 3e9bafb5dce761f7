"""Signals of the operating system, as exceptions in the work that they interrupt."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raised_on(numbers: tuple[signal.Signals, ...], error: type[BaseException]) -> Iterator[None]:
    """Raise `error` in the work when one of the signals comes; what was done about them before holds again afterwards."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise error

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
