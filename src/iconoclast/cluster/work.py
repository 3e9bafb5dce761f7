"""The work of one process among many: join a run, measure batches until there are enough trials, finish it."""

import os
import signal
import tempfile
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from iconoclast.cluster.slurm import JOB_FOLDER
from iconoclast.errors import RunFolderError
from iconoclast.progress import Progress
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.starting import started_run
from iconoclast.runs.workers import DEAD_AFTER, HEARTBEAT, Worker
from iconoclast.signals import raised_on


class TimeUp(KeyboardInterrupt):
    """The end of a job's time is near: its unfinished trials are handed back, and the job may be queued again."""


@dataclass(frozen=True)
class WorkOptions:
    """Options of a process that takes part: those of `runs.workers.Worker`."""

    heartbeat: float = HEARTBEAT
    dead_after: float = DEAD_AFTER
    max_disk: int = 0


def is_done(folder: RunFolder) -> bool:
    """Check that a run has all its trials and its report."""
    summary = folder.read_summary()
    if summary is None or summary.status != "complete":
        return False
    return summary.finished_trials >= folder.settings().n_trials


def work(folder: RunFolder, progress: Progress, options: WorkOptions | None = None) -> None:
    """Take part in a run until it is complete; unfinished trials are handed back on TimeUp and KeyboardInterrupt.

    Raises:
        UserError: the run, its model or its prompts cannot be used.
        TimeUp: the job's time is nearly over.
        KeyboardInterrupt: on the user's request.
    """
    options = options or WorkOptions()
    if is_done(folder):
        progress.note(f"{folder.path} has all its trials: there is nothing to do.")
        return
    here = {"study_checkpoint_dir": folder.path, "exit_after_optimization": True}  # wherever the run was begun
    settings = folder.settings().model_copy(update=here)
    own = Path(tempfile.gettempdir()).parent  # the batch script has made it for this job alone
    worker = Worker(folder, **asdict(options), temporary=own if own.name.startswith(JOB_FOLDER) else None)
    reasons: list[str] = []

    def stop(reason: str) -> None:
        reasons.append(reason)
        os.kill(os.getpid(), signal.SIGTERM)

    progress.note(f"Worker {worker.name} joins {folder.path}.")
    try:
        with worker.alive(stop), started_run(settings, progress, worker=worker) as run:
            worker.says("working")
            run.optimize(settings.n_trials, progress)
            worker.says("finishing")
            run.finish(progress)
    except KeyboardInterrupt:
        progress.note("Interrupted: what was being measured is handed back to the others.")
        if reasons:
            raise RunFolderError(f"Worker {worker.name} was stopped: {reasons[0]}.") from None
        raise
    except OSError as error:
        raise RunFolderError(f"The run folder {folder.path} cannot be used: {error}.") from None


def told_of_time() -> AbstractContextManager[None]:
    """Raise TimeUp in the work when a scheduler signals that time is nearly over."""
    return raised_on((signal.SIGUSR1, signal.SIGUSR2), TimeUp)
