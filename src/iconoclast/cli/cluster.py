"""The commands of `iconoclast cluster`."""

import inspect
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from iconoclast.cli.console import err, interruptible, out, quiet_imports, quiet_libraries, shown_progress
from iconoclast.cli.flags import with_settings
from iconoclast.config.layers import load_settings
from iconoclast.errors import SettingsError
from iconoclast.reports.text import print_lines

cluster_app = typer.Typer(help="One study searched by many machines, on Slurm.", rich_markup_mode=None)

JOBS_PANEL = "What the jobs ask for (unset: what the cluster gives)"

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML).")]
ModelArgument = Annotated[str | None, typer.Argument(help="Hub id, model folder or .gguf file; or --model.")]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder, on a file system that all nodes see.")]


def _job(help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=JOBS_PANEL, show_default=False)


JOB_OPTIONS: dict[str, tuple[Any, Any]] = {
    "workers": (Annotated[int, _job("Processes that work on a run. [1]", "--workers")], 1),
    "partition": (Annotated[str | None, _job("Partition.", "--partition")], None),
    "account": (Annotated[str | None, _job("Account.", "--account")], None),
    "qos": (Annotated[str | None, _job("Quality of service.", "--qos")], None),
    "constraint": (Annotated[str | None, _job("Features of nodes.", "--constraint")], None),
    "mem": (Annotated[str | None, _job("Memory of a worker, as in 32G.", "--mem")], None),
    "gpus": (Annotated[int, _job("GPUs of a worker. [0]", "--gpus")], 0),
    "cpus": (Annotated[int | None, _job("Processors of a worker.", "--cpus")], None),
    "time": (Annotated[str, _job("Time limit: minutes, HH:MM:SS or D-HH:MM. [1-00]", "--time")], "1-00"),
    "array_limit": (Annotated[int | None, _job("Workers at the same time.", "--array-limit")], None),
    "caches": (
        Annotated[
            str,
            _job(
                "Hugging Face caches: shared (yours, only read) or job (each job's own, removed with it).", "--caches"
            ),
        ],
        "shared",
    ),
    "scratch": (Annotated[Path | None, _job("Folder for temporary files of jobs.", "--scratch")], None),
    "max_disk": (Annotated[float, _job("Gigabytes that temporary files of a job may take.", "--max-disk")], 0.0),
    "sbatch": (Annotated[list[str], _job("Any other option of sbatch, as in mail-type=END. Repeat.", "--sbatch")], []),
    "heartbeat": (Annotated[float, typer.Option("--heartbeat", hidden=True)], 0.0),
    "dead_after": (
        Annotated[float, _job("Seconds of silence after which a worker's trials go to others. [180]", "--dead-after")],
        0.0,
    ),
}


def with_job_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the options of jobs; it receives them as `jobs`, (JobOptions, WorkOptions)."""
    own = inspect.signature(command, eval_str=True)

    @wraps(command)
    def wrapper(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in JOB_OPTIONS}
        command(**arguments, jobs=_jobs(**given))

    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in JOB_OPTIONS.items()
    ]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.parameters.values() if p.name != "jobs"]
    wrapper.__signature__ = inspect.Signature([*kept, *options])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*kept, *options]}
    del wrapper.__wrapped__
    return wrapper


def _jobs(
    *, time: str, max_disk: float, sbatch: list[str], heartbeat: float, dead_after: float, **options: Any
) -> tuple[Any, Any]:
    from iconoclast.cluster.slurm import JobOptions, minutes
    from iconoclast.cluster.work import WorkOptions

    for name in ("workers", "array_limit", "cpus"):
        if options[name] is not None and options[name] < 1:
            raise SettingsError(f"--{name.replace('_', '-')} must be 1 or more.")
    if options["caches"] not in ("shared", "job"):
        raise SettingsError(f'There are no caches "{options["caches"]}". Use shared or job.')
    extra = dict(entry.partition("=")[::2] for entry in sbatch)
    timing = {k: v for k, v in {"heartbeat": heartbeat, "dead_after": dead_after}.items() if v}
    work_options = WorkOptions(max_disk=int(max_disk * 1e9), **timing)
    if work_options.dead_after < 3 * work_options.heartbeat:
        raise SettingsError(f"--dead-after must be {3 * work_options.heartbeat:g} or more: three signs of life.")
    return JobOptions(**options, time=minutes(time), max_disk=max_disk, extra=extra), work_options


@dataclass(frozen=True)
class Work:
    """What a job of a submission runs: picklable, and asked by submitit what is to be run when the time is over."""

    run: Path
    options: Any

    def __call__(self) -> str:
        """Take part in the run; what became of it."""
        from iconoclast.cluster.work import TimeUp
        from iconoclast.cluster.work import work as take_part
        from iconoclast.runs.folder import RunFolder

        quiet_imports()
        quiet_libraries()
        try:
            with interruptible(), shown_progress() as progress:
                take_part(RunFolder(self.run), progress, self.options)
        except TimeUp:
            raise
        except KeyboardInterrupt:
            return "interrupted"
        return "done"

    def checkpoint(self) -> Any:
        """The same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@cluster_app.command()
@with_job_options
@with_settings
def submit(
    model: ModelArgument = None,
    config: ConfigOption = None,
    out_folder: OutOption = None,
    *,
    flags: dict[str, Any],
    jobs: Any,
) -> None:
    """Search one study with many workers: a job array that shares the run folder.

    The same command again adds workers to a run that is not complete.
    """
    from iconoclast.cluster.submit import prepared
    from iconoclast.cluster.submit import submit as submit_run
    from iconoclast.cluster.work import is_done

    quiet_libraries()
    options, work_options = jobs
    folder = prepared(_settings(flags, config, model, out_folder))
    if is_done(folder):
        raise SettingsError(f"{folder.path} has all its trials. Ask for more with --n-trials.")
    number = submit_run(folder, options, Work(folder.path, work_options))
    print_lines(
        out,
        f"Submitted job {number}: {options.workers} workers on {folder.path}.",
        f"How it stands: iconoclast cluster status {folder.path}",
        f"End it, to go on later: iconoclast cluster cancel {folder.path}",
    )


@cluster_app.command("script")
@with_job_options
@with_settings
def script_command(
    model: ModelArgument = None,
    config: ConfigOption = None,
    out_folder: OutOption = None,
    *,
    flags: dict[str, Any],
    jobs: Any,
) -> None:
    """Write the batch script of `submit`, for clusters that take scripts only. Nothing is submitted."""
    from iconoclast.cluster.submit import prepared, write_script

    quiet_libraries()
    folder = prepared(_settings(flags, config, model, out_folder))
    print_lines(out, f"Submit it: sbatch {write_script(folder, *jobs)}")


@cluster_app.command()
@with_job_options
@with_settings
def sweep(
    configs: Annotated[list[Path], typer.Argument(help="Settings files, one a model.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the run folders, named after the files.")],
    sequential: Annotated[
        bool, typer.Option("--sequential", help="One run after the other: one model at a time on the disk.")
    ] = False,
    heretic: Annotated[
        Path | None, typer.Option("--heretic", help="The heretic program: also a job with it for every run.")
    ] = None,
    *,
    flags: dict[str, Any],
    jobs: Any,
) -> None:
    """Submit one study for every settings file. `iconoclast summarize` makes the table of them."""
    from iconoclast.cluster.peer import HereticJob
    from iconoclast.cluster.submit import prepared
    from iconoclast.cluster.submit import sweep as sweep_runs

    quiet_libraries()
    options, work_options = jobs
    if heretic is not None and not os.access(heretic, os.X_OK):
        raise SettingsError(f"{heretic} is no program. Give the path of heretic in its own environment.")
    folders = [prepared(_settings(dict(flags), config, None, out_folder / config.stem)) for config in configs]
    runs: list[tuple[Any, Any]] = []
    for folder in folders:
        runs.append((folder, Work(folder.path, work_options)))
        runs += [(folder, HereticJob(folder.path, heretic.absolute()))] if heretic else []
    with shown_progress() as progress:
        sweep_runs(runs, options, sequential, progress)
    print_lines(out, f"When they have ended: iconoclast summarize {out_folder}")


@cluster_app.command()
def work(
    run_folder: RunArgument,
    max_disk: Annotated[float, typer.Option("--max-disk", help="Gigabytes that temporary files may take.")] = 0.0,
    heartbeat: Annotated[float, typer.Option("--heartbeat", hidden=True)] = 0.0,
    dead_after: Annotated[float, typer.Option("--dead-after", hidden=True)] = 0.0,
) -> None:
    """Be one of the workers of a run until it is complete. Batch scripts call this; as many may run as you like."""
    from iconoclast.cluster.slurm import TIME_UP
    from iconoclast.cluster.work import TimeUp, WorkOptions, told_of_time
    from iconoclast.cluster.work import work as take_part
    from iconoclast.runs.folder import RunFolder

    quiet_libraries()
    timing = {k: v for k, v in {"heartbeat": heartbeat, "dead_after": dead_after}.items() if v}
    try:
        with told_of_time(), shown_progress() as progress:
            take_part(RunFolder(run_folder.absolute()), progress, WorkOptions(max_disk=int(max_disk * 1e9), **timing))
    except TimeUp:
        print_lines(err, "Time is nearly over.")
        sys.exit(TIME_UP)


@cluster_app.command()
def status(
    run_folder: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how a run on a cluster stands: the queue, the workers, the trials, the best so far."""
    from iconoclast.cluster.standing import standing, standing_lines

    quiet_libraries()
    document = standing(run_folder)
    if as_json:
        out.print_json(json.dumps(document))
    else:
        print_lines(out, *standing_lines(document))


@cluster_app.command()
def cancel(run_folder: RunArgument) -> None:
    """End all workers of a run. What they have measured stays, and the run can go on later."""
    from iconoclast.cluster import slurm
    from iconoclast.cluster.submit import jobs_of
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.workers import workers_of

    folder = RunFolder(run_folder)
    folder.settings()
    jobs = jobs_of(folder)
    slurm.cancel(jobs)
    here = [
        w
        for w in workers_of(folder)
        if not (w.gone or w.document["job"]) and w.document["host"] == socket.gethostname()
    ]
    for worker in here:
        with suppress(ProcessLookupError):
            os.kill(int(worker.document["pid"]), signal.SIGTERM)
    print_lines(
        out,
        f"Cancelled: {', '.join(jobs) or 'no jobs'}; {len(here)} workers of this machine.",
        f"The run can go on: iconoclast cluster submit --config {folder.config} --out {run_folder}",
    )


def _settings(flags: dict[str, Any], config: Path | None, model: str | None, out_folder: Path | None) -> Any:
    if model is not None:
        flags["model"] = model
    if out_folder is not None:
        flags["study_checkpoint_dir"] = str(out_folder)
    return load_settings(flags, config).settings
