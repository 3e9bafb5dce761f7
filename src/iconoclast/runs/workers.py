"""Processes that work on one run together: who they are, and whether they are still there."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iconoclast.errors import RunFolderError
from iconoclast.files import write_json
from iconoclast.runs.folder import RunFolder

HEARTBEAT = 10.0
"""Seconds between two signs of life."""

DEAD_AFTER = 180.0
"""Seconds without a sign of life after which a worker's trials are given to others; network file systems show the time
of a change up to a minute late."""


@dataclass(frozen=True)
class WorkerState:
    """What a worker has said of itself.

    Attributes:
        name: of the worker.
        document: its file: host, pid, job, what it does, trials that it has measured.
        age: seconds since its last sign of life.
    """

    name: str
    document: Mapping[str, Any]
    age: float

    @property
    def state(self) -> str:
        """What it does; "lost" if it has been silent for too long."""
        said = str(self.document.get("state", "starting"))
        return "lost" if said not in ("ended", "interrupted", "failed") and self.age > self._patience else said

    @property
    def gone(self) -> bool:
        """Whether it will not go on."""
        return self.state in ("ended", "interrupted", "failed", "lost")

    @property
    def _patience(self) -> float:
        return float(self.document.get("dead_after", DEAD_AFTER))


def workers_of(folder: RunFolder, now: float | None = None) -> list[WorkerState]:
    """All workers that a run has had.

    Args:
        folder: the run.
        now: the time by the clock of the file server, in seconds since 1970; unset, that of this machine.
    """
    now = time.time() if now is None else now
    found = []
    for file in sorted(folder.workers.glob("*.json")):
        with suppress(FileNotFoundError):
            age = now - file.stat().st_mtime
            try:
                found.append(WorkerState(file.stem, folder.read_json(file), age))
            except (OSError, RunFolderError):  # it is just being replaced, as a network file system shows it
                found.append(
                    WorkerState(file.stem, {"host": "?", "job": "", "pid": 0, "trials": 0, "started": now}, age)
                )
    return found


@dataclass
class Worker:
    """One of the processes that work on a run, to the others and to itself (`Crew` of a study).

    Attributes:
        folder: the run.
        name: no other worker has it.
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
    _document: dict[str, Any] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def file(self) -> Path:
        """Where it says that it is alive."""
        return self.folder.workers / f"{self.name}.json"

    def says(self, state: str, trials: int = 0, **more: Any) -> None:
        """Tell the others what it does, and how many trials more it has measured."""
        with self._lock:
            self._document |= {"state": state, "trials": self._document.get("trials", 0) + trials, **more}
            write_json(self.file, self._document)

    @contextmanager
    def alive(self, stop: Callable[[str], None] = lambda reason: None) -> Iterator[None]:
        """While this lasts, the others hear of it; `stop` is called if its temporary folder grows too large."""
        self.folder.workers.mkdir(parents=True, exist_ok=True)
        self._document = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": _job(),
            "dead_after": self.dead_after,
        }
        self.says("starting", started=time.time())
        thread = threading.Thread(target=self._beat, args=(stop,), daemon=True)
        thread.start()
        state = "failed"
        try:
            yield
            state = "ended"
        except (KeyboardInterrupt, SystemExit):
            state = "interrupted"
            raise
        finally:
            self._done.set()
            thread.join()
            self.says(state, ended=time.time())

    def size(self) -> int:
        """How many workers there are now."""
        return max(1, sum(not worker.gone for worker in self._all()))

    def lost(self, names: Collection[str]) -> set[str]:
        """Which of the workers of these names will not go on; one that never gave a sign of life will not."""
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
    """The Slurm job that this process is, as 12_3 for task 3 of array 12; empty if it is none."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _size(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 - many files
    return total
