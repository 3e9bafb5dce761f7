"""A new folder that appears whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from iconoclast.errors import RunFolderError
from iconoclast.files import disk_trouble


def require_free(to: Path) -> None:
    """Raise RunFolderError unless `to` does not exist yet or is an empty folder."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "is there already, and not empty" if to.is_dir() else "is a file"
        raise RunFolderError(f"{to} {what}. Give a folder that does not exist yet.")
    above = next(parent for parent in to.absolute().parents if parent.exists())
    if not above.is_dir():
        raise RunFolderError(f"{to} cannot be a folder: {above} is a file. Give another folder with --to.")


@contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """Yield a folder beside `to` that becomes `to` on success and vanishes otherwise."""
    require_free(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
        unfinished.chmod(0o755)
    except OSError as error:
        raise RunFolderError(f"The export folder {to} cannot be written: {error.strerror}.") from None
    try:
        yield unfinished
        for file in unfinished.iterdir():
            if file.is_file():
                file.chmod(0o644)  # some libraries write files that only their owner can read
        unfinished.replace(to)
    except (OSError, SafetensorError) as error:
        if (reason := disk_trouble(error)) is None:
            raise
        raise RunFolderError(f"The export folder {to} cannot be written: {reason}. Nothing was left there.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
