"""Storage of a study: a journal file, or a database or server that many machines write to."""

import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend, JournalRedisBackend

from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.search.optuna_internals import only_proposes

SECONDS_TO_CONNECT = 30
"""Seconds that a storage server may take for its first answer."""

CLIENTS = {"grpc": "RpcError", "redis": "RedisError", "sqlalchemy.exc": "SQLAlchemyError"}
"""Module → its exception when a storage does not answer."""

DAMAGE = (ValueError, LookupError, TypeError, AttributeError, AssertionError)
"""Exceptions from reading a file that is not a journal."""


class Journal(BaseJournalBackend):
    """Optuna's journal in a file that many processes append to, and that survives torn lines.

    A process killed while it writes, a full disk or a network file system leaves a line without its end. Its operation
    was never acknowledged to anybody. The next writer begins a new line, and all readers leave the torn one out, so all
    of them see the same operations in the same order.

    The operating system releases the lock when its holder dies, so no lock can become stale.

    Attributes:
        torn: lines that were left out.
    """

    def __init__(self, file: Path) -> None:
        self.torn = 0
        self._file = file
        self._lock = FileLock(f"{file}.lock")
        self._read = 0  # operations that have been read,
        self._offset = 0  # and where they end
        with self._lock:
            if not file.exists():  # reading leaves its time as it is: `status` shows when the run was last written
                file.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the operations from that number on; Optuna's interface."""
        if log_number_from != self._read:
            self._read = self._offset = self.torn = 0
        with self._file.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):  # somebody is writing it, or was when it was killed
                    return
                self._offset += len(line)
                operation = _operation(line)
                if operation is None:
                    self.torn += 1
                    continue
                self._read += 1
                if self._read > log_number_from:
                    yield operation

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append operations, all of them or none; Optuna's interface."""
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock, self._file.open("rb+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                content = content if file.read(1) == b"\n" else b"\n" + content
            try:
                while content:
                    content = content[file.write(content) :]
                if not all(map(only_proposes, logs)):  # what is lost of a proposal is proposed again
                    os.fsync(file.fileno())
            except OSError as error:
                file.truncate(end)
                raise RunFolderError(
                    f"The study {self._file} cannot be written: {error.strerror}. Make room, then give the same command again."
                ) from None


BEGINNING = b'{"op_code":'
"""The beginning of every line of the journal."""


def _operation(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it was torn, a ValueError if no journal has such a line."""
    line = line.strip(b"\0\n")  # a file system that lost the content of a line leaves zeros
    begins = line.rfind(BEGINNING)  # behind a torn line, if the next writer did not begin a new one
    try:
        document = json.loads(line[max(begins, 0) :])
    except (ValueError, RecursionError):
        if line[: len(BEGINNING)] != BEGINNING[: len(line)]:
            raise ValueError(f"a line begins with {line[:40]!r}") from None
        return None
    if not isinstance(document, dict) or not {"op_code", "worker_id"} <= document.keys():
        if begins < 0:
            raise ValueError("a line is not an operation of a study")
        return None
    return document


def open_storage(journal: Path, url: str | None = None) -> BaseStorage:
    """Open the storage at `url` if there is one, else the journal file.

    Args:
        url: of a database (as SQLAlchemy has it), redis://host:port, or grpc://host:port of an Optuna storage proxy.
            $NAME stands for an environment variable.

    Raises:
        RunFolderError: the journal is damaged or cannot be used.
        SettingsError: the URL is malformed, its password would be written down, or nothing answers there.
    """
    if url is None:
        return _journal(journal)
    scheme = _scheme(url)
    expanded = os.path.expandvars(url)
    try:
        if scheme == "grpc":
            return _proxy(expanded)
        if scheme in ("redis", "rediss"):
            return _redis(expanded)
        return _database(expanded)
    except ImportError as error:
        raise SettingsError(f"study_storage {url} needs a package that is not installed: {error.name}.") from None
    except OSError as error:
        raise SettingsError(f"Nothing answers at study_storage {url}: {str(error) or type(error).__name__}.") from None


@contextmanager
def answering() -> Iterator[None]:
    """Turn the silence of a database or server into a one-line RunFolderError."""
    try:
        yield
    except _silences() as error:
        details = getattr(error, "details", None)  # gRPC's words; its str has many lines
        reason = str(details() if callable(details) else error.__cause__ or error).strip() or type(error).__name__
        raise RunFolderError(
            f"study_storage does not answer any more: {reason.splitlines()[0]}. The trials that it has are kept: give the "
            "same command again when it answers."
        ) from None


def _silences() -> tuple[type[Exception], ...]:
    """Return the errors of the clients in use, and Optuna's own."""
    used = ((sys.modules[module], name) for module, name in CLIENTS.items() if module in sys.modules)
    return StorageInternalError, *(getattr(module, name) for module, name in used)


def _proxy(url: str) -> BaseStorage:
    import grpc  # noqa: F401 - Optuna's own message about its absence comes much later

    parts = urlsplit(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        proxy = GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
    proxy.wait_server_ready(timeout=SECONDS_TO_CONNECT)
    return proxy


def _redis(url: str) -> BaseStorage:
    import redis

    try:
        return JournalStorage(JournalRedisBackend(url))
    except redis.RedisError as error:
        raise OSError(str(error)) from None


def _database(url: str) -> BaseStorage:
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        return RDBStorage(url)
    except ArgumentError as error:
        raise SettingsError(f"study_storage is not understood: {error}.") from None
    except SQLAlchemyError as error:  # the message may hold the address, not the password
        raise OSError(str(error).splitlines()[0]) from None


def _scheme(url: str) -> str:
    parts = urlsplit(url)
    if not re.fullmatch(r"[a-z][a-z0-9+]*", parts.scheme) or "://" not in url:
        raise SettingsError(
            f'study_storage "{url}" is not a URL. Use grpc://HOST:PORT, redis://HOST:PORT, or a database URL as in '
            "postgresql://USER:$PASSWORD@HOST/NAME."
        )
    if parts.password and not re.fullmatch(r"\$(\w+|\{\w+\})", parts.password):
        raise SettingsError(
            "study_storage holds a password, which would be written into the run folder. Put the password into an "
            "environment variable and name it there, as in postgresql://USER:$PASSWORD@HOST/NAME."
        )
    return parts.scheme


def _journal(file: Path) -> BaseStorage:
    try:
        return JournalStorage(Journal(file))
    except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
        raise RunFolderError(f"The journal {file} cannot be used: {error}.") from None
    except DAMAGE as error:
        raise RunFolderError(
            f"The journal {file} is damaged: {error or type(error).__name__}. Restore it from a copy."
        ) from None
