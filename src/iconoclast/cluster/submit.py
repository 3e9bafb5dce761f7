"""From settings to jobs: check, stage into the run folder, submit, record."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError

import iconoclast
from iconoclast.cluster.peer import PeerJob
from iconoclast.cluster.slurm import ClusterError, JobOptions, script
from iconoclast.cluster.work import WorkOptions
from iconoclast.config.schema import Settings, settings_document
from iconoclast.documents import Part, Plain, first_problem
from iconoclast.errors import RunFolderError
from iconoclast.files import write_json, write_whole
from iconoclast.layout import CONFIG
from iconoclast.privacy import portable
from iconoclast.progress import Progress
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.starting import checked
from iconoclast.runs.workers import workers_of

SUBMISSION = "submission.json"

REQUEUES = 1000
"""Times that a job out of time is queued again; a run ends when it has its trials."""


class Submission(Part):
    """A job array of a run.

    Attributes:
        job: its number.
        submitted: seconds since 1970.
        options: as it was asked for.
    """

    job: str
    workers: int
    submitted: float
    options: Plain = Field(default_factory=dict)


def prepared(settings: Settings) -> RunFolder:
    """Check the settings and begin their run folder, so that any process can work on it.

    Raises:
        UserError: a setting, prompt set, judge or folder cannot be used; nothing was written then.
    """
    folder, _, _ = checked(settings)
    with folder.locked(shared=True):
        folder.check(settings)
        folder.claim(folder.dated(settings))
    return RunFolder(folder.path.absolute())


def submit(folder: RunFolder, options: JobOptions, task: Callable[[], Any]) -> str:
    """Submit a job array for a prepared run and return its number.

    Each job runs the task, which is picklable and has a method `checkpoint` if it can be queued again.

    Raises:
        ClusterError: Slurm is missing or refuses the jobs.
    """
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise ClusterError("There is no sbatch here. Use a machine of the cluster where jobs can be submitted.")
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise ClusterError(
            "Submitting needs submitit: pip install 'iconoclast-edit[cluster]'. Or use `cluster script`."
        ) from None
    place = stage(folder)
    executor = SlurmExecutor(place / "jobs", max_num_timeout=REQUEUES)
    executor.update_parameters(
        job_name=f"iconoclast-{folder.path.name}",
        time=options.time,
        array_parallelism=options.array_limit or options.workers,
        signal_delay_s=options.signal_delay,
        stderr_to_stdout=True,
        setup=options.setup(place / "source"),
        srun_args=options.srun(),
        # A flag without a value is True to submitit.
        additional_parameters={"requeue": True} | {k: v or True for k, v in options.parameters().items()},
    )
    try:
        with executor.batch():
            jobs = [executor.submit(task) for _ in range(options.workers)]
    except (FailedJobError, FailedSubmissionError) as error:
        shutil.rmtree(place)
        raise ClusterError(f"Slurm does not take the jobs: {_reason(error)}") from None
    number = str(jobs[0].job_id).partition("_")[0]
    submission = Submission(job=number, workers=options.workers, submitted=time.time(), options=asdict(options))
    write_json(place / SUBMISSION, portable(submission.document()))
    return number


def write_script(folder: RunFolder, options: JobOptions, work_options: WorkOptions) -> Path:
    """Write a batch script for the user to submit."""
    place = stage(folder)
    (folder.cluster / "logs").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "iconoclast.cli", "cluster", "work", str(folder.path)]
    defaults = WorkOptions()
    for name in ("max_disk", "heartbeat", "dead_after"):
        if (value := getattr(work_options, name)) != getattr(defaults, name):
            command += [f"--{name.replace('_', '-')}", f"{value / 1e9 if name == 'max_disk' else value:g}"]
    file = place / "work.sbatch"
    text = script(folder.path, place / "source", options, command, f"iconoclast-{folder.path.name}")
    write_whole(file, text.encode())
    return file


def stage(folder: RunFolder) -> Path:
    """Copy this program's code and the settings into a new folder of the run, safe from later changes."""
    number = 1 + len(list(folder.cluster.glob("submission-*")))
    place = folder.cluster / f"submission-{number}"
    try:
        package = Path(iconoclast.__file__).parent
        shutil.copytree(package, place / "source" / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        settings = portable(settings_document(folder.settings()))
        write_whole(place / CONFIG, tomli_w.dumps(settings).encode())
    except OSError as error:
        raise RunFolderError(f"{place} cannot be written: {error.strerror}.") from None
    return place


def submissions(folder: RunFolder) -> list[Submission]:
    """Return the submissions of a run, oldest first; raise RunFolderError if one is damaged."""
    found = []
    for file in folder.cluster.glob(f"submission-*/{SUBMISSION}"):
        try:
            found.append(Submission.model_validate_json(file.read_bytes()))
        except OSError as error:
            raise RunFolderError(f"{file} cannot be read: {error.strerror}.") from None
        except ValidationError as error:
            raise RunFolderError(f"{file} is damaged: {first_problem(error)}. Delete it.") from None
    return sorted(found, key=lambda submission: submission.submitted)


def jobs_of(folder: RunFolder) -> list[str]:
    """Return a run's job arrays, past ones included: submitted here, or of a script with living workers."""
    known = [submission.job for submission in submissions(folder)]
    alive = [worker.sign.job for worker in workers_of(folder) if not worker.gone]
    return list(dict.fromkeys([*known, *(job.partition("_")[0] for job in alive if "_" in job)]))


def sweep(
    runs: Sequence[tuple[RunFolder, Callable[[], Any]]], options: JobOptions, sequential: bool, progress: Progress
) -> list[str]:
    """Submit many prepared runs with their jobs' tasks, a peer always as one job; return the jobs' numbers.

    With `sequential` each begins when the one before has ended, however it did: one model at a time on the disk.
    """
    jobs: list[str] = []
    for folder, task in runs:
        name, asked = folder.path, options
        if isinstance(task, PeerJob):
            name, asked = task.folder, replace(options, workers=1)
        if sequential and jobs:
            asked = replace(asked, dependency=f"afterany:{jobs[-1]}")
        jobs.append(submit(folder, asked, task))
        progress.note(f"{name}: job {jobs[-1]}" + (f", {asked.dependency}" if asked.dependency else ""))
    return jobs


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in reversed(lines) if "sbatch" in line.lower()), lines[-1])
