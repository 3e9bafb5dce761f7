"""What `benchmark RUN --json` has measured, for the card of an export of the same trial."""

from dataclasses import replace
from pathlib import Path

from iconoclast.errors import RunFolderError
from iconoclast.evaluation.capabilities import BenchmarkDocument
from iconoclast.privacy import portable
from iconoclast.runs.saved import SavedRun


def with_capabilities(saved: SavedRun, file: Path | None) -> SavedRun:
    """Return the run with what the file of `benchmark RUN --json FILE` says of its trial; as it is without a file.

    Raises:
        RunFolderError: the file is missing, damaged, of another trial or model, or without the base model.
    """
    if file is None:
        return saved
    document = BenchmarkDocument.read(file)
    found, wanted = document.capabilities(), (portable(saved.settings.model), saved.trial.index)
    if (document.model, document.trial) != wanted:
        raise RunFolderError(
            f"{file} is of trial {document.trial} on {document.model}, not of trial {wanted[1]} on {wanted[0]}, which is exported."
        )
    if any(row.base is None for row in found.rows):
        raise RunFolderError(
            f"{file} says nothing of the base model. Measure the run itself: it is put beside its base."
        )
    return replace(saved, capabilities=found)
