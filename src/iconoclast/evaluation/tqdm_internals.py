"""Progress bars that libraries draw unconditionally, intercepted by replacing methods of tqdm's class."""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from iconoclast.progress import Progress


@contextmanager
def heard_bars(progress: Progress, label: str) -> Iterator[None]:
    """Turn progress bars into steps of `progress` and hide all printed output while the context lasts.

    lm-eval makes its bars with disable=False, and some in the middle of other functions.
    """
    make, step = tqdm.__init__, tqdm.update
    shown = ""

    def start(bar: Any, *arguments: Any, **options: Any) -> None:
        nonlocal shown
        make(bar, *arguments, **{**options, "file": io.StringIO()})
        task = "" if bar.disable else bar.desc
        if task and task != shown:  # a rolling likelihood makes a bar for every batch
            shown = task
            progress.start(f"{label}: {task[0].lower()}{task[1:]}", bar.total or 0)

    def update(bar: Any, steps: int = 1) -> Any:
        if not bar.disable:
            progress.advance(steps)
        return step(bar, steps)

    tqdm.__init__, tqdm.update = start, update
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__, tqdm.update = make, step
