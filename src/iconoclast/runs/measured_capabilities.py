"""What `benchmark RUN --json` has measured, for the card of an export of the same trial."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iconoclast.documents import read_known
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.capabilities import Capabilities
from iconoclast.privacy import portable
from iconoclast.runs.saved import SavedRun


def with_capabilities(saved: SavedRun, file: Path | None) -> SavedRun:
    """Return the run with what the file of `benchmark RUN --json FILE` says of its trial; as it is without a file.

    Raises:
        RunFolderError: the file is missing, damaged, of another trial or model, or without the base model.
    """
    if file is None:
        return saved
    content: Any = read_known(file)
    try:
        rows = [
            {"task": task, "metric": metric, **figures}
            for task, metrics in content["tasks"].items()
            for metric, figures in metrics.items()
        ]
        found = Capabilities.model_validate({**content, "rows": rows})
        of = content["model"], content["trial"]
    except (LookupError, TypeError, AttributeError, ValidationError):
        raise RunFolderError(f"{file} is not a file of `iconoclast benchmark RUN --json FILE`.") from None
    wanted = portable(saved.settings.model), saved.trial.index
    if of != wanted:
        raise RunFolderError(
            f"{file} is of trial {of[1]} on {of[0]}, not of trial {wanted[1]} on {wanted[0]}, which is exported."
        )
    if any(row.base is None for row in found.rows):
        raise RunFolderError(
            f"{file} says nothing of the base model. Measure the run itself: it is put beside its base."
        )
    return replace(saved, capabilities=found)
