"""Status of a run with many processes, from the queue, their signs of life and the study."""

from collections.abc import Sequence

from iconoclast.cluster.slurm import ClusterError, queue
from iconoclast.cluster.submit import jobs_of
from iconoclast.cluster.work import is_done
from iconoclast.config.schema import Settings
from iconoclast.errors import UserError
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.status import RunStatus, SharedStatus, WorkerStatus, status_of
from iconoclast.runs.trials import best_of, search_space, trial_document
from iconoclast.runs.workers import QueuedJob, workers_of
from iconoclast.search.study import Study


def shared_status_of(folder: RunFolder, trial: str | None = None) -> RunStatus:
    """Return the status of a run with many processes, of which the study knows more than its summary.

    Raises:
        RunFolderError: the run or the trial is missing, or files are damaged.
    """
    status, settings, summary = status_of(folder, trial), folder.settings(), folder.read_summary()
    study, best = _study(folder, settings), None
    if study is not None:
        best = best_of(study.trials(), settings, None if summary is None else summary.finalists)
    submitted, workers, done = jobs_of(folder), workers_of(folder), is_done(folder)
    jobs, unknown = _queue(submitted)
    trials = dict.fromkeys(("complete", "pruned", "running", "waiting"), 0) if study is None else study.states()
    ended = "interrupted" if status.state == "complete" and not done else status.state
    told = {
        "state": ended if all(worker.gone for worker in workers) else "working",
        "best": None if best is None else trial_document(best),
        "finished": trials["complete"] + trials["pruned"],
        "pruned": trials["pruned"],
        "shared": SharedStatus(
            complete=done,
            trials=trials,
            trials_per_hour=None if study is None else study.rate(),
            jobs=jobs,
            queue=unknown,
            submitted=submitted,
            workers=[
                WorkerStatus(**{**w.sign.document(), "name": w.name, "state": w.state, "silent_for": round(w.age, 1)})
                for w in workers
            ],
        ),
    }
    return status.model_copy(update=told)


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
