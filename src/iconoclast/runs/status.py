"""Status of runs from their files alone, without any library that takes seconds to load."""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from pydantic import Field, field_serializer

from iconoclast.documents import UNLESS_NONE, Part, Plain
from iconoclast.runs.documents import Report, TrialDocument
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.kinds import require_run
from iconoclast.runs.workers import QueuedJob, SignOfLife


class WorkerStatus(SignOfLife):
    """The last sign of life of a worker: its name, its age in seconds, and what the worker does, or that it is lost."""

    name: str
    state: str  # type: ignore[assignment]
    silent_for: float


class SharedStatus(Part):
    """Progress that only a run with many processes has.

    Attributes:
        complete: whether it has all its trials and its report.
        trials: their number by state; see `Study.states`.
        jobs: what the queue shows of the job arrays in `submitted`.
        queue: why the queue is not known, if it is not.
    """

    complete: bool
    trials: Mapping[str, int]
    trials_per_hour: float | None
    jobs: list[QueuedJob]
    queue: str | None
    submitted: list[str]
    workers: list[WorkerStatus]


class RunStatus(Part):
    """Progress of a run.

    Attributes:
        best: the best trial so far.
        report: the trial that the report is of, as examined for it.
        written: when its files were last written.
        trial: the trial that was asked for, if one was.
        shared: queue and workers, if many processes share it; JSON has them beside the rest.
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
    shared: SharedStatus | None = Field(default=None, exclude=True)

    @field_serializer("report")
    def _examined(self, report: Report | None) -> Plain | None:
        return None if report is None else {"index": report.trial, **report.metrics.document()}

    def document(self) -> Plain:
        """Return what JSON says of it."""
        return super().document() | ({} if self.shared is None else self.shared.document())


def status_of(folder: RunFolder, trial: str | None = None) -> RunStatus:
    """Return state, trials and best trial of a run, from its summary.

    Args:
        trial: number of a trial to add; one that the summary does not hold is read from the study, which takes seconds.

    Raises:
        RunFolderError: there is no run or no such trial, or its files are damaged.
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
        return status if trial is None else status.model_copy(update={"trial": _trial(folder, trial)})
    ended = "complete" if summary.status == "complete" else "interrupted"
    told = {
        "state": ended if status.state == "begun" else status.state,
        "finished": summary.finished_trials,
        "pruned": summary.pruned_trials,
        "fitted": summary.fitted_trials,
        "best": summary.best,
        "report": summary.report,
    }
    if trial is not None:
        held = (each for each in summary.pareto_trials if str(each.index) == trial)
        told["trial"] = next(held, None) or _trial(folder, trial)
    return status.model_copy(update=told)


def _trial(folder: RunFolder, trial: str) -> TrialDocument:
    """Read a trial from the study."""
    from iconoclast.runs.saved import SavedRun
    from iconoclast.runs.trials import trial_document

    return trial_document(SavedRun.open(folder, trial).trial)


def is_shared(folder: RunFolder) -> bool:
    """Check whether several processes work on a run, or did, on this machine or a cluster."""
    return folder.workers.is_dir() or folder.cluster.is_dir()
