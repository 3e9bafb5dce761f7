"""Processes that work on one run together, and their signs of life."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from iconoclast.documents import Part
from iconoclast.files import write_json
from iconoclast.runs.folder import RunFolder

HEARTBEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 180.0
"""Seconds without a sign of life after which a worker's trials are given to others; network file systems can show a
change a minute late.
"""
Activity = Literal["starting", "working", "waiting", "finishing", "ended", "interrupted", "failed"]
"""What a worker says that it does."""
GONE = ("ended", "interrupted", "failed", "lost")
"""States in which a worker will not go on."""


class SignOfLife(Part):
    """A worker's account of itself.

    Attributes:
        job: its Slurm job, as 12_3 for task 3 of array 12; empty outside Slurm.
        dead_after: seconds of silence after which it is lost.
        trials: that it has measured.
        started: seconds since 1970; so is `ended`.
    """

    host: str
    pid: int
    started: float
    job: str = ""
    dead_after: float = DEAD_AFTER
    state: Activity = "starting"
    trials: int = 0
    ended: float | None = None


@dataclass(frozen=True)
class QueuedJob:
    """A job, or the waiting part of an array, as squeue shows it."""

    job: str
    state: str
    elapsed: str
    nodes: str
    reason: str


@dataclass(frozen=True)
class WorkerState:
    """The last sign of life of a worker, and its age in seconds."""

    name: str
    sign: SignOfLife
    age: float

    @property
    def state(self) -> str:
        """Its own word for what it does; "lost" if it has been silent for too long."""
        said = self.sign.state
        return "lost" if said not in GONE and self.age > self.sign.dead_after else said

    @property
    def gone(self) -> bool:
        """True if it will not go on."""
        return self.state in GONE


def workers_of(folder: RunFolder, now: float | None = None) -> list[WorkerState]:
    """Return all workers that a run has had.

    Args:
        now: the file server's time in seconds since 1970; unset, that of this machine.
    """
    now = time.time() if now is None else now
    found = []
    for file in sorted(folder.workers.glob("*.json")):
        with suppress(FileNotFoundError):
            age = now - file.stat().st_mtime
            try:
                sign = SignOfLife.model_validate_json(file.read_bytes())
            except (OSError, ValueError):  # it is just being replaced, as a network file system shows it
                sign = SignOfLife(host="?", pid=0, started=now)
            found.append(WorkerState(file.stem, sign, age))
    return found


@dataclass
class Worker:
    """One of the processes that work on a run, and its view of the others (`Crew` of a study).

    Attributes:
        name: unique among workers, past ones included.
        dead_after: seconds of silence after which the others take this one for lost.
        max_disk: bytes that its temporary folder may take; 0 for no limit.
        temporary: its temporary folder, if it has one of its own.
    """

    folder: RunFolder
    name: str = field(default_factory=lambda: f"{_job() or socket.gethostname()}-{secrets.token_hex(3)}")
    heartbeat: float = HEARTBEAT
    dead_after: float = DEAD_AFTER
    max_disk: int = 0
    temporary: Path | None = None
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._sign = SignOfLife(
            host=socket.gethostname(), pid=os.getpid(), started=time.time(), job=_job(), dead_after=self.dead_after
        )

    @property
    def file(self) -> Path:
        """The file that holds its sign of life."""
        return self.folder.workers / f"{self.name}.json"

    def says(self, state: Activity, trials: int = 0) -> None:
        """Tell the others its state, and how many more trials it has measured."""
        with self._lock:
            ended = time.time() if state in GONE else None
            measured = self._sign.trials + trials
            self._sign = self._sign.model_copy(update={"state": state, "trials": measured, "ended": ended})
            write_json(self.file, self._sign.document())

    @contextmanager
    def alive(self, stop: Callable[[str], None] = lambda reason: None) -> Iterator[None]:
        """Send signs of life while the context lasts; call `stop` if the temporary folder grows too large."""
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        self.says("starting")
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        state: Activity = "failed"
        try:
            yield
            state = "ended"
        except (KeyboardInterrupt, SystemExit):
            state = "interrupted"
            raise
        finally:
            self._done.set()
            thread.join()
            self.says(state)

    def size(self) -> int:
        """Count the workers that there are now."""
        return max(1, sum(not worker.gone for worker in self._all()))

    def lost(self, names: Collection[str]) -> set[str]:
        """Return those of the named workers that will not go on, among them any that never gave a sign of life."""
        others = set(names) - {self.name}
        return others - {worker.name for worker in self._all() if not worker.gone} if others else others

    def wait(self) -> None:
        """Let some time pass."""
        self.says("waiting")
        time.sleep(min(self.heartbeat, 2.0))

    def _all(self) -> list[WorkerState]:
        # Ages by one clock, that of the file server: two machines' clocks may differ by more than a heart's beat.
        self.file.touch()
        return workers_of(self.folder, self.file.stat().st_mtime)

    def _beat(self, stop: Callable[[str], None]) -> None:
        while not self._done.wait(self.heartbeat):
            with suppress(OSError), self._lock:  # a full disk will be noticed by the work itself
                self.file.touch()
            if self.max_disk and self.temporary and (used := _size(self.temporary)) > self.max_disk:
                stop(f"its temporary files take {used / 1e9:.1f} GB, more than --max-disk allows")
                return


def _job() -> str:
    """Return this process's Slurm job; empty outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _size(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 - many files
    return total
