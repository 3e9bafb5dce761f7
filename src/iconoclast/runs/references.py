"""How users name a trial: RUN:N, a run folder or a journal with a colon and the trial's number. Imports nothing heavy."""

from pathlib import Path


def split_reference(text: str) -> tuple[str, str | None]:
    """Split what a user wrote into a run or model and a trial, None if no trial is named.

    A path that exists is that path, whatever colons its name has: nobody should have to rename a folder.
    """
    if ":" not in text or Path(text).exists():
        return text, None
    source, _, trial = text.rpartition(":")
    return source, trial
