"""Locks of a run folder, which the operating system releases when their holder dies."""

import fcntl
from typing import IO

from iconoclast.errors import RunFolderError

PATIENCE = 0.5
"""Seconds to wait for a lock: whoever only looks whether a run is in use has it for a moment."""


def lock_file(file: IO[str], shared: bool) -> bool:
    """Take the operating system's lock of a file, which lasts until it is closed; False if somebody else has it."""
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunFolderError(
            f"{file.name} cannot be locked: {error.strerror}. Give a folder on a file system that has locks."
        ) from None
    return True
