"""The command line as a process of its own, without the seconds that it takes to import its libraries.

A server that has imported them forks the process, which can be interrupted, stopped and killed like any other.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import IO, Any, TextIO

import pytest

from iconoclast.cli.app import main

IMPORTED = [
    "iconoclast.cli.app",
    "iconoclast.runs.starting",
    "iconoclast.runs.export",
    "iconoclast.reports.tables",
    "iconoclast.cluster.status",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)
LIMIT = 300
"""Seconds after which a command is taken to hang."""


class Stream:
    """A file that the process writes to; there, it is a descriptor."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return taken, (DupFd(self.file.fileno()),)


def taken(duplicate: Any) -> int:
    """The descriptor of a duplicated file."""
    return int(duplicate.detach())


@dataclass
class Running:
    """A command that was started, and what it says on standard error."""

    process: ForkServerProcess
    stderr: TextIO

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Kill it, if it has not just ended."""
        with contextlib.suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = LIMIT) -> int:
        """Its exit code when it has ended, or the negative number of the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("iconoclast", timeout)
        return self.process.exitcode


def started(*arguments: object) -> Running:
    """A command that runs; what it prints on standard output is not kept."""
    reading, writing = os.pipe()
    with Path(os.devnull).open("wb") as out, os.fdopen(writing, "wb") as err:
        process = forked(arguments, {}, out, err)
    return Running(process, os.fdopen(reading, encoding="utf-8"))


def finished(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command that has come to its end, with what it printed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = forked(arguments, variables, out, err)
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired("iconoclast", LIMIT)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(
            list(map(str, arguments)), process.exitcode, out.read().decode(), err.read().decode()
        )


def forked(
    arguments: tuple[object, ...], variables: dict[str, str], out: IO[bytes], err: IO[bytes]
) -> ForkServerProcess:
    """The process, which has no terminal and reads nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # threads do not survive a fork: the server starts none
        environment = {**os.environ, **variables}
        given = (list(map(str, arguments)), environment, str(Path.cwd()), Stream(out), Stream(err))
        process = CONTEXT.Process(target=become, args=given)
        process.start()
    return process


def become(arguments: list[str], environment: dict[str, str], folder: str, out: int, err: int) -> None:
    """Be `iconoclast` with these arguments in this folder."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["iconoclast", *arguments]
    main()
