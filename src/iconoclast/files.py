"""Write files whole or not at all, and recognise failures of the disk."""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iconoclast.errors import RunFolderError


def disk_trouble(error: Exception) -> str | None:
    """Name the disk's trouble behind an error: full, over its quota, read-only, broken; None if it is another."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
    if isinstance(error, OSError):
        return error.strerror if error.errno in codes else None
    return next(
        (reason for reason in map(os.strerror, codes) if reason in str(error)), None
    )  # safetensors reports it only in words


def write_json(file: Path, document: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write JSON whole or not at all."""
    write_whole(file, (json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode())


def write_whole(file: Path, content: bytes) -> None:
    """Replace `file` by `content` in one step: a crash leaves the old file or the new one, never a part.

    Raises:
        RunFolderError: it cannot be written; what was there before still is.
    """
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    except OSError as error:
        raise RunFolderError(
            f"{file} cannot be written: {error.strerror}. What was finished is kept. Mend that, then give the same command again."
        ) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
