"""References to a trial: RUN:N, a run folder or a journal with a colon and a number. Imports nothing heavy."""

from pathlib import Path


def split_reference(text: str) -> tuple[str, str | None]:
    """Split a user's reference into a run or model and a trial, None if no trial is named.

    An existing path is taken as a path, whatever colons are in its name: nobody should have to rename a folder.
    """
    if ":" not in text or Path(text).exists():
        return text, None
    source, _, trial = text.rpartition(":")
    return source, trial
