"""Locks of a run folder, which the operating system releases when their holder dies."""

from typing import IO

import portalocker

from iconoclast.errors import RunFolderError

PATIENCE = 0.5
"""Seconds to wait for a lock: whoever only looks whether a run is in use has it for a moment."""


def lock_file(file: IO[str], shared: bool) -> bool:
    """Lock a file until it is closed, False if it is taken; raise RunFolderError if the file system has no locks."""
    kind = portalocker.LockFlags.SHARED if shared else portalocker.LockFlags.EXCLUSIVE
    try:
        portalocker.lock(file, kind | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return False
    except portalocker.LockException as error:
        reason = getattr(error.__cause__, "strerror", None) or str(error)
        raise RunFolderError(
            f"{file.name} cannot be locked: {reason}. Give a folder on a file system that has locks."
        ) from None
    return True
