"""Processes that work on one run together, and their signs of life."""

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
"""Seconds without a sign of life after which a worker's trials are given to others; network file systems can show a
change a minute late.
"""


@dataclass(frozen=True)
class WorkerState:
    """The last sign of life of a worker.

    Attributes:
        document: its file: host, pid, job, activity, trials that it has measured.
        age: seconds since then.
    """

    name: str
    document: Mapping[str, Any]
    age: float

    @property
    def state(self) -> str:
        """Its own word for what it does; "lost" if it has been silent for too long."""
        said = str(self.document.get("state", "starting"))
        return "lost" if said not in ("ended", "interrupted", "failed") and self.age > self._patience else said

    @property
    def gone(self) -> bool:
        """True if it will not go on."""
        return self.state in ("ended", "interrupted", "failed", "lost")

    @property
    def _patience(self) -> float:
        return float(self.document.get("dead_after", DEAD_AFTER))


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
                found.append(WorkerState(file.stem, folder.read_json(file), age))
            except (OSError, RunFolderError):  # it is just being replaced, as a network file system shows it
                found.append(
                    WorkerState(file.stem, {"host": "?", "job": "", "pid": 0, "trials": 0, "started": now}, age)
                )
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
    _document: dict[str, Any] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def file(self) -> Path:
        """The file that holds its sign of life."""
        return self.folder.workers / f"{self.name}.json"

    def says(self, state: str, trials: int = 0, **more: Any) -> None:
        """Tell the others its state, and how many more trials it has measured."""
        with self._lock:
            self._document |= {"state": state, "trials": self._document.get("trials", 0) + trials, **more}
            write_json(self.file, self._document)

    @contextmanager
    def alive(self, stop: Callable[[str], None] = lambda reason: None) -> Iterator[None]:
        """Send signs of life while the context lasts; call `stop` if the temporary folder grows too large."""
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
    """Return this process's Slurm job, as 12_3 for task 3 of array 12; empty outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _size(folder: Path) -> int:
    total = 0
    for directory, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512  # noqa: PTH118 - many files
    return total
