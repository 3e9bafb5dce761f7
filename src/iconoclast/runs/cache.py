"""The user's cache: a folder of entries named by the hash of everything that they depend on, bounded in size.

An entry is never out of date, only unused. It is a line of JSON that says what it is, with the SHA-256 of the content that
follows.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from iconoclast.documents import Plain
from iconoclast.files import write_whole

SUFFIX = ".kept"

ABANDONED = 3600.0
"""Seconds after which a file that somebody was writing is taken for left by a process that was killed."""


@dataclass(frozen=True)
class Entry:
    """One thing that is kept; of one that is damaged, kind and model are empty."""

    file: Path
    kind: str
    model: str
    size: int
    used: float


@dataclass(frozen=True)
class Cache:
    """A folder of entries, which several processes may share.

    Attributes:
        limit: bytes that the folder may hold; what was not used longest goes first.
    """

    folder: Path
    limit: int = 0

    def read(self, name: str) -> bytes | None:
        """Return an entry's content and note that it was used; None if there is none. Raise ValueError if it is damaged."""
        file = self.folder / f"{name}{SUFFIX}"
        try:
            first, _, content = file.read_bytes().partition(b"\n")
            if json.loads(first)["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError("the content has changed")
            with suppress(OSError):
                file.touch()
            return content
        except FileNotFoundError:
            return None
        except (OSError, LookupError, TypeError) as error:
            raise ValueError(str(error)) from None

    def write(self, name: str, kind: str, model: str, content: bytes) -> None:
        """Keep an entry, whole or not at all, unless it would take half of the room.

        Raises:
            RunFolderError, OSError: the folder cannot be written.
        """
        about = {"kind": kind, "model": model, "sha256": hashlib.sha256(content).hexdigest()}
        whole = json.dumps(about).encode() + b"\n" + content
        if len(whole) <= self.limit / 2:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / f"{name}{SUFFIX}", whole)
            self._trim()

    def entries(self) -> list[Entry]:
        """Return all entries, the latest used first."""
        found = []
        for file in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process has removed it
                status, about = file.stat(), _about(file)
                kind, model = (str(about.get(key, "")) for key in ("kind", "model"))
                found.append(Entry(file, kind, model, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> None:
        """Remove everything."""
        for file in [*self.folder.glob(f"*{SUFFIX}"), *self._unfinished()]:
            file.unlink(missing_ok=True)

    def _trim(self) -> None:
        """Remove what was not used longest until the rest fits, and what killed processes have left."""
        left = self.limit
        for entry in self.entries():
            left -= entry.size
            if left < 0:
                entry.file.unlink(missing_ok=True)
        for file in self._unfinished():
            with suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > ABANDONED:
                    file.unlink()

    def _unfinished(self) -> list[Path]:
        return list(self.folder.glob(f".*{SUFFIX}-*"))


def cache_folder() -> Path:
    """Return the folder of the user's cache; it need not exist."""
    return platformdirs.user_cache_path("iconoclast") / "kept"


def _about(file: Path) -> Plain:
    with file.open("rb") as opened, suppress(ValueError):
        about = json.loads(opened.readline(10_000))
        return about if isinstance(about, dict) else {}
    return {}
