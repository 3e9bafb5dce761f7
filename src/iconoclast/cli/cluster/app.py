"""`iconoclast cluster`: one study searched by many machines."""

import os
import shlex
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Context, Option

from iconoclast.cli.arguments import AsJsonOption
from iconoclast.cli.cluster.jobs import ConfigOption, JobsCommand, ModelArgument, OutOption, Work, given_jobs
from iconoclast.cli.cluster.jobs import work_options as worker_options
from iconoclast.cli.console import err, print_json, say, shown_progress
from iconoclast.cli.flags import CommandWithOptions, given_settings
from iconoclast.cli.status import cluster_status
from iconoclast.errors import SettingsError
from iconoclast.peers import PEER

cluster_app = typer.Typer(help="One study searched by many machines, on Slurm.", rich_markup_mode=None)
RunFolderArgument = Annotated[Path, Argument(metavar="RUN", help="Run folder.")]


@cluster_app.command(cls=JobsCommand)
def submit(
    ctx: Context,
    model: ModelArgument = None,
    config: ConfigOption = None,
    out_folder: OutOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Search one study with many workers: a job array that shares the run folder.

    The same command again adds workers to a run that is not complete.
    """
    options, work_options = given_jobs(ctx)
    from iconoclast.cluster import submit
    from iconoclast.cluster.work import is_done

    folder = submit.prepared(given_settings(ctx, config, model=model, out=out_folder))
    if is_done(folder):
        raise SettingsError(f"{folder.path} has all its trials. Ask for more with --n-trials.")
    number = submit.submit(folder, options, Work(folder.path, work_options))
    path = shlex.quote(str(folder.path))
    say(
        f"Submitted job {number}: {options.workers} workers on {folder.path}.",
        f"How it stands: iconoclast cluster status {path}",
        f"End it, to go on later: iconoclast cluster cancel {path}",
    )
    if as_json:
        print_json({"run": str(folder.path), "job": number, "workers": options.workers})


@cluster_app.command(cls=JobsCommand)
def script(
    ctx: Context,
    model: ModelArgument = None,
    config: ConfigOption = None,
    out_folder: OutOption = None,
    as_json: AsJsonOption = False,
) -> None:
    """Write the batch script of `submit`, for clusters that take scripts only. Nothing is submitted."""
    jobs = given_jobs(ctx)
    from iconoclast.cluster.submit import prepared, write_script

    folder = prepared(given_settings(ctx, config, model=model, out=out_folder))
    file = str(write_script(folder, *jobs))
    say(f"Submit it: sbatch {shlex.quote(file)}")
    if as_json:
        print_json({"run": str(folder.path), "script": file})


@cluster_app.command(cls=JobsCommand)
def sweep(
    ctx: Context,
    configs: Annotated[list[Path], Argument(help="Settings files, one a model.")],
    out_folder: Annotated[Path, Option("--out", help="Folder for the run folders, named after the files.")],
    sequential: Annotated[
        bool, Option("--sequential", help="One run after the other: one model at a time on the disk.")
    ] = False,
    peer: Annotated[
        Path | None, Option(f"--{PEER}", help=f"The {PEER} program: also a job with it for every run.")
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Submit one study for every settings file. `iconoclast summarize` makes the table of them."""
    from iconoclast.cluster import submit
    from iconoclast.cluster.peer import PeerJob

    options, work_options = given_jobs(ctx)
    if peer is not None and not os.access(peer, os.X_OK):
        raise SettingsError(f"{peer} is not a program. Give the path of {PEER} in its own environment.")
    runs: list[tuple[Any, Any]] = []
    # All settings are checked before the first run is submitted.
    for folder in [submit.prepared(given_settings(ctx, config, out=out_folder / config.stem)) for config in configs]:
        runs.append((folder, Work(folder.path, work_options)))
        if peer:
            runs.append((folder, PeerJob(folder.path, peer.absolute())))
    with shown_progress() as progress:
        jobs = submit.sweep(runs, options, sequential, progress)
    say(f"When they have ended: iconoclast summarize {shlex.quote(str(out_folder))}")
    if as_json:
        print_json({"jobs": jobs})


@cluster_app.command(cls=CommandWithOptions)
def work(
    run_folder: RunFolderArgument,
    max_disk: Annotated[float, Option(help="Gigabytes that temporary files may take.")] = 0.0,
    heartbeat: Annotated[float, Option(hidden=True)] = 0.0,
    dead_after: Annotated[float, Option(hidden=True)] = 0.0,
) -> None:
    """Be one of the workers of a run until it is complete. Batch scripts call this; as many may run as you like."""
    from iconoclast.cluster.slurm import TIME_UP
    from iconoclast.cluster.work import TimeUp, told_of_time
    from iconoclast.cluster.work import work as take_part
    from iconoclast.runs.folder import RunFolder

    options = worker_options(max_disk, heartbeat, dead_after)
    try:
        with told_of_time(), shown_progress() as progress:
            take_part(RunFolder(run_folder.absolute()), progress, options)
    except TimeUp:
        say("Time is nearly over.", to=err)
        sys.exit(TIME_UP)


cluster_app.command("status", cls=CommandWithOptions)(cluster_status)


@cluster_app.command(cls=CommandWithOptions)
def cancel(run_folder: RunFolderArgument, as_json: AsJsonOption = False) -> None:
    """End all workers of a run. What they have measured stays, and the run can go on later."""
    from iconoclast.cluster import slurm
    from iconoclast.cluster.submit import jobs_of
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.workers import workers_of

    folder = RunFolder(run_folder)
    folder.settings()
    jobs = jobs_of(folder)
    slurm.cancel(jobs)
    found = [worker.sign for worker in workers_of(folder) if not worker.gone]
    here = [sign for sign in found if not sign.job and sign.host == socket.gethostname()]
    for sign in here:
        with suppress(ProcessLookupError):
            os.kill(sign.pid, signal.SIGTERM)
    config, path = shlex.quote(str(folder.config)), shlex.quote(str(run_folder))
    say(f"Cancelled: {', '.join(jobs) or 'no jobs'}; {len(here)} workers of this machine.")
    say(f"The run can go on: iconoclast cluster submit --config {config} --out {path}")
    if as_json:
        print_json({"run": str(run_folder), "cancelled": jobs, "workers_here": len(here)})
