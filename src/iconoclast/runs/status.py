"""Standing of runs from their files alone, without any library that takes seconds to load."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from iconoclast.errors import RunFolderError
from iconoclast.layout import CONFIG, TRIAL_INFORMATION
from iconoclast.runs.folder import RunFolder


def status_of(folder: RunFolder, trial: str | None = None) -> dict[str, Any]:
    """Return state (working, complete, interrupted, begun), trials and best trial of a run, from its summary.

    Args:
        trial: number of a trial to add to the document; None there if the summary does not hold it.

    Raises:
        RunFolderError: there is no run, or its files are damaged.
    """
    settings = folder.settings()
    if (folder.path / TRIAL_INFORMATION).exists():
        raise RunFolderError(f"{folder.path} is an export. Give the run folder that it was made from.")
    summary = folder.read_summary()
    if folder.in_use():
        state = "working"
    elif summary is None:
        state = "begun"
    else:
        state = "complete" if summary.status == "complete" else "interrupted"
    front = {} if summary is None else {trial.index: trial.document() for trial in summary.pareto_trials}
    files = (folder.config, folder.journal, folder.summary)
    newest = max(file.stat().st_mtime for file in files if file.exists())
    report = None if summary is None else summary.report
    document = {
        "run": str(folder.path),
        "model": settings.model,
        "state": state,
        "n_trials": settings.n_trials,
        "finished": 0 if summary is None else summary.finished_trials,
        "pruned": 0 if summary is None else summary.pruned_trials,
        "fitted": 0 if summary is None else summary.fitted_trials,
        "best": None if summary is None or summary.best_trial is None else front.get(summary.best_trial),
        "report": None if report is None else {"index": report.trial, **report.metrics.document()},
        "objectives": settings.objectives,
        "strengthen": settings.strengthen,
        "written": datetime.fromtimestamp(newest).astimezone().isoformat(" ", "seconds"),
    }
    return document if trial is None else {**document, "trial": front.get(int(trial) if trial.isdigit() else -1)}


def is_shared(folder: RunFolder) -> bool:
    """Check whether several processes work on a run, or did, on this machine or a cluster."""
    return folder.workers.is_dir() or folder.cluster.is_dir()


def runs_below(folder: Path) -> Iterator[RunFolder]:
    """Find run folders below a folder, no exports among them; raise RunFolderError if the folder is missing."""
    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder. Give the one that holds your runs: iconoclast list FOLDER.")
    for config in sorted(folder.rglob(CONFIG)):
        if not (config.parent / TRIAL_INFORMATION).exists():
            yield RunFolder(config.parent)
