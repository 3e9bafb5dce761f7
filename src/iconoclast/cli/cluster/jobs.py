"""Options of commands that make jobs, and the task of a job."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Context, Option

from iconoclast.cli.console import interruptible, quiet_libraries, shown_progress
from iconoclast.cli.flags import CommandWithOptions, given, options_of, setting_options
from iconoclast.errors import SettingsError

if TYPE_CHECKING:
    from iconoclast.cluster.slurm import JobOptions
    from iconoclast.cluster.work import WorkOptions

ConfigOption = Annotated[Path | None, Option("--config", help="Settings file (TOML).")]
ModelArgument = Annotated[str | None, Argument(help="Hub id, model folder or .gguf file; or --model.")]
OutOption = Annotated[Path | None, Option("--out", help="Run folder, on a file system that all nodes see.")]
CACHES = "Hugging Face caches: shared (yours, only read) or job (each job's own, removed with it)."
DEAD_AFTER = "Seconds of silence after which a worker's trials go to others. [180]"


def _job(help: str) -> Any:
    return Option(help=help, show_default=False)


@dataclass(frozen=True)
class JobFlags:
    """Job options as the user writes them, one per field; unset ones are left to the cluster."""

    workers: Annotated[int, _job("Processes that work on a run. [1]")] = 1
    partition: Annotated[str | None, _job("Partition.")] = None
    account: Annotated[str | None, _job("Account.")] = None
    qos: Annotated[str | None, _job("Quality of service.")] = None
    constraint: Annotated[str | None, _job("Features of nodes.")] = None
    mem: Annotated[str | None, _job("Memory of a worker, as in 32G.")] = None
    gpus: Annotated[int, _job("GPUs of a worker. [0]")] = 0
    cpus: Annotated[int | None, _job("Processors of a worker.")] = None
    time: Annotated[str, _job("Time limit: minutes, HH:MM:SS or D-HH:MM. [1-00]")] = "1-00"
    array_limit: Annotated[int | None, _job("Workers at the same time.")] = None
    caches: Annotated[str, _job(CACHES)] = "shared"
    scratch: Annotated[Path | None, _job("Folder for temporary files of jobs.")] = None
    max_disk: Annotated[float, _job("Gigabytes that temporary files of a job may take.")] = 0.0
    sbatch: Annotated[list[str] | None, _job("Any other option of sbatch, as in mail-type=END. Repeat.")] = None
    heartbeat: Annotated[float, Option(hidden=True)] = 0.0
    dead_after: Annotated[float, _job(DEAD_AFTER)] = 0.0


def work_options(max_disk: float, heartbeat: float, dead_after: float) -> "WorkOptions":
    """Make a worker's options; 0 means unset, and gigabytes become bytes."""
    from iconoclast.cluster.work import WorkOptions

    timing = {name: value for name, value in (("heartbeat", heartbeat), ("dead_after", dead_after)) if value}
    return WorkOptions(max_disk=int(max_disk * 1e9), **timing)


@cache
def job_options() -> Sequence[Any]:
    return options_of(JobFlags)


class JobsCommand(CommandWithOptions):
    """A command with a flag for every setting and the options of jobs, which `given_jobs` reads."""

    option_sets = (setting_options, job_options)


def given_jobs(ctx: Context) -> "tuple[JobOptions, WorkOptions]":
    """Read the options of jobs and workers; raise SettingsError if a flag cannot be used."""
    from iconoclast.cluster.slurm import JobOptions, minutes

    flags = JobFlags(**given(ctx, job_options()))
    for name in ("workers", "array_limit", "cpus"):
        if (number := getattr(flags, name)) is not None and number < 1:
            raise SettingsError(f"--{name.replace('_', '-')} must be 1 or more.")
    if flags.caches not in ("shared", "job"):
        raise SettingsError(f'There are no caches "{flags.caches}". Use shared or job.')
    work = work_options(flags.max_disk, flags.heartbeat, flags.dead_after)
    if work.dead_after < 3 * work.heartbeat:
        raise SettingsError(f"--dead-after must be {3 * work.heartbeat:g} or more: three signs of life.")
    asked = {name: value for name, value in vars(flags).items() if name not in ("sbatch", "heartbeat", "dead_after")}
    extra = dict(entry.partition("=")[::2] for entry in flags.sbatch or ())
    return JobOptions(**asked | {"time": minutes(flags.time), "extra": extra}), work


@dataclass(frozen=True)
class Work:
    """The task of a job: picklable, and asked by submitit for its successor when the time is over."""

    run: Path
    options: Any

    def __call__(self) -> str:
        """Take part in the run, and report the outcome."""
        quiet_libraries()
        from iconoclast.cluster.work import TimeUp, work
        from iconoclast.runs.folder import RunFolder

        try:
            with interruptible(), shown_progress() as progress:
                work(RunFolder(self.run), progress, self.options)
        except TimeUp:
            raise
        except KeyboardInterrupt:
            return "interrupted"
        return "done"

    def checkpoint(self) -> Any:
        """Ask for the same task again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
