"""Standing of a run with many processes, from the queue, their signs of life and the study."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from iconoclast.cluster.slurm import ClusterError, QueuedJob, queue
from iconoclast.cluster.submit import jobs_of
from iconoclast.cluster.work import is_done
from iconoclast.config.schema import Settings
from iconoclast.documents import Part
from iconoclast.errors import UserError
from iconoclast.runs.documents import TrialDocument
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.trials import best_of, search_space, trial_document
from iconoclast.runs.workers import GONE, SignOfLife, workers_of
from iconoclast.search.study import Study


class WorkerStanding(SignOfLife):
    """The last sign of life of a worker: its name, its age in seconds, and what the worker does, or that it is lost."""

    name: str
    state: str  # type: ignore[assignment]
    silent_for: float


class Standing(Part):
    """Progress of a run with many processes.

    Attributes:
        trials: their number by state; see `Study.states`.
        jobs: what the queue shows of the job arrays in `submitted`.
        queue: why the queue is not known, if it is not.
    """

    run: str
    model: str | None
    n_trials: int
    complete: bool
    trials: Mapping[str, int]
    best: TrialDocument | None
    trials_per_hour: float | None
    jobs: list[QueuedJob]
    queue: str | None
    submitted: list[str]
    workers: list[WorkerStanding]


def standing(run: Path) -> Standing:
    """Return state, queue, workers and trials; raise RunFolderError if the run is missing or damaged."""
    folder = RunFolder(run)
    settings = folder.settings()
    summary, study, best = folder.read_summary(), _study(folder, settings), None
    if study is not None:
        best = best_of(study.trials(), settings, None if summary is None else summary.finalists)
    submitted = jobs_of(folder)
    jobs, unknown = _queue(submitted)
    return Standing(
        run=str(run),
        model=settings.model,
        n_trials=settings.n_trials,
        complete=is_done(folder),
        trials=dict.fromkeys(("complete", "pruned", "running", "waiting"), 0) if study is None else study.states(),
        best=None if best is None else trial_document(best),
        trials_per_hour=None if study is None else study.rate(),
        jobs=jobs,
        queue=unknown,
        submitted=submitted,
        workers=[
            WorkerStanding(**{**w.sign.document(), "name": w.name, "state": w.state, "silent_for": round(w.age, 1)})
            for w in workers_of(folder)
        ],
    )


def _queue(jobs: Sequence[str]) -> tuple[list[QueuedJob], str | None]:
    try:
        return queue(jobs), None
    except ClusterError as error:
        return [], str(error)


def _study(folder: RunFolder, settings: Settings) -> Study | None:
    storage = settings.study_storage
    if not folder.baseline.is_file() or (storage is None and not folder.journal.is_file()):
        return None
    try:
        return Study.read(folder.journal, search_space(settings, folder.read_baseline().layers), storage)
    except UserError:
        if storage is None and not folder.journal.stat().st_size:
            return None  # somebody is just beginning it
        raise


def standing_lines(told: Standing) -> list[str]:
    """Describe the same in words."""
    trials, rate = told.trials, told.trials_per_hour
    finished = trials["complete"] + trials["pruned"]
    lines = [
        f"{told.run}: {'complete' if told.complete else 'not complete'}, {finished} of {told.n_trials} "
        f"trials ({trials['pruned']} pruned), {trials['running']} being measured, {trials['waiting']} handed back"
        + (f"; {rate:.0f} an hour." if rate else "."),
    ]
    if best := told.best:
        lines.append(
            f"Best so far: trial {best.index}, {best.refusals.count} of {best.refusals.n} refused, "
            f"{best.broken.count} broken, KL {best.kl_divergence:.4f}."
        )
    if told.queue:
        lines.append(f"The queue is not known: {told.queue}")
    elif told.submitted:
        jobs = [f"  {job.job}: {job.state.lower()} {job.elapsed} {job.nodes or job.reason}" for job in told.jobs]
        lines += ["Queue:", *(jobs or ["  none of its jobs is in it any more"])]
    for worker in told.workers:
        since = "" if worker.state in GONE else f", {(time.time() - worker.started) / 60:.0f} min"
        lines.append(f"Worker {worker.name} on {worker.host}: {worker.state}{since}, {worker.trials} trials measured.")
    return lines
