"""Options of commands that make jobs, and the task of a job."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

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
AS_TEXT = {"time": "1-00", "caches": "shared"}
"""Options that users write in another form than `JobOptions` has them, and how they write the default."""


def _flag(help: str, kind: Any) -> Any:
    return Annotated[kind, Option(help=help, show_default=False)]


def work_options(max_disk: float, heartbeat: float, dead_after: float) -> "WorkOptions":
    """Make a worker's options; 0 means unset, and gigabytes become bytes."""
    from iconoclast.cluster.work import WorkOptions

    timing = {name: value for name, value in (("heartbeat", heartbeat), ("dead_after", dead_after)) if value}
    return WorkOptions(max_disk=int(max_disk * 1e9), **timing)


@cache
def job_options() -> Sequence[Any]:
    """Return a flag for every field of `JobOptions` with a help text, and those that only the command line has."""
    from iconoclast.cluster.slurm import JobOptions

    described = [(f.name, *get_args(f.type), f.default) for f in fields(JobOptions) if get_origin(f.type) is Annotated]
    flags = [
        (name, _flag(help, str if name in AS_TEXT else kind), AS_TEXT.get(name, default))
        for name, kind, help, default in described
    ]
    own = [
        ("sbatch", _flag("Any other option of sbatch, as in mail-type=END. Repeat.", list[str] | None), None),
        ("heartbeat", Annotated[float, Option(hidden=True)], 0.0),
        ("dead_after", _flag("Seconds of silence after which a worker's trials go to others. [180]", float), 0.0),
    ]
    return options_of(make_dataclass("JobFlags", [*flags, *own]))


class JobsCommand(CommandWithOptions):
    """A command with a flag for every setting and the options of jobs, which `given_jobs` reads."""

    option_sets = (setting_options, job_options)


def given_jobs(ctx: Context) -> "tuple[JobOptions, WorkOptions]":
    """Read the options of jobs and workers; raise SettingsError if a flag cannot be used."""
    from iconoclast.cluster.slurm import Caches, JobOptions, minutes

    flags = given(ctx, job_options())
    for name in ("workers", "array_limit", "cpus"):
        if (number := flags[name]) is not None and number < 1:
            raise SettingsError(f"--{name.replace('_', '-')} must be 1 or more.")
    if flags["caches"] not in get_args(Caches):
        raise SettingsError(f'There are no caches "{flags["caches"]}". Use shared or job.')
    work = work_options(flags["max_disk"], flags.pop("heartbeat"), flags.pop("dead_after"))
    if work.dead_after < 3 * work.heartbeat:
        raise SettingsError(f"--dead-after must be {3 * work.heartbeat:g} or more: three signs of life.")
    extra = dict(entry.partition("=")[::2] for entry in flags.pop("sbatch") or ())
    return JobOptions(**flags | {"time": minutes(flags["time"]), "extra": extra}), work


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
