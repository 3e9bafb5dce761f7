"""Standing of runs from their files alone, without any library that takes seconds to load."""

from datetime import datetime
from typing import Literal

from pydantic import field_serializer

from iconoclast.documents import UNLESS_NONE, Part, Plain
from iconoclast.runs.documents import Report, TrialDocument
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.kinds import require_run


class RunStatus(Part):
    """Progress of a run.

    Attributes:
        best: the best trial so far.
        report: the trial that the report is of, as examined for it.
        written: when its files were last written.
        trial: the trial that was asked for, if one was.
    """

    run: str
    model: str | None
    state: Literal["working", "begun", "complete", "interrupted"]
    n_trials: int
    finished: int = 0
    pruned: int = 0
    fitted: int = 0
    best: TrialDocument | None = None
    report: Report | None = None
    objectives: list[str]
    strengthen: bool
    written: str
    trial: TrialDocument | None = UNLESS_NONE

    @field_serializer("report")
    def _examined(self, report: Report | None) -> Plain | None:
        return None if report is None else {"index": report.trial, **report.metrics.document()}


def status_of(folder: RunFolder, trial: str | None = None) -> RunStatus:
    """Return state, trials and best trial of a run, from its summary.

    Args:
        trial: number of a trial to add; it stays None if the summary does not hold it.

    Raises:
        RunFolderError: there is no run, or its files are damaged.
    """
    settings = folder.settings()
    require_run(folder.path)
    summary = folder.read_summary()
    files = (folder.config, folder.journal, folder.summary)
    newest = max(file.stat().st_mtime for file in files if file.exists())
    status = RunStatus(
        run=str(folder.path),
        model=settings.model,
        state="working" if folder.in_use() else "begun",
        n_trials=settings.n_trials,
        objectives=settings.objectives,
        strengthen=settings.strengthen,
        written=datetime.fromtimestamp(newest).astimezone().isoformat(" ", "seconds"),
    )
    if summary is None:
        return status
    ended = "complete" if summary.status == "complete" else "interrupted"
    told = {
        "state": ended if status.state == "begun" else status.state,
        "finished": summary.finished_trials,
        "pruned": summary.pruned_trials,
        "fitted": summary.fitted_trials,
        "best": summary.best,
        "report": summary.report,
        "trial": next((each for each in summary.pareto_trials if str(each.index) == trial), None),
    }
    return status.model_copy(update=told)


def is_shared(folder: RunFolder) -> bool:
    """Check whether several processes work on a run, or did, on this machine or a cluster."""
    return folder.workers.is_dir() or folder.cluster.is_dir()
