"""`cluster sweep`: one study for every settings file."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from iconoclast.cli.cluster.jobs import Work, given_jobs
from iconoclast.cli.console import out, quiet_libraries
from iconoclast.cli.flags import given_settings
from iconoclast.cli.progress import shown_progress
from iconoclast.errors import SettingsError
from iconoclast.peers import PEER
from iconoclast.reports.text import print_lines


def sweep(
    ctx: typer.Context,
    configs: Annotated[list[Path], typer.Argument(help="Settings files, one a model.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for the run folders, named after the files.")],
    sequential: Annotated[
        bool, typer.Option("--sequential", help="One run after the other: one model at a time on the disk.")
    ] = False,
    peer: Annotated[
        Path | None, typer.Option(f"--{PEER}", help=f"The {PEER} program: also a job with it for every run.")
    ] = None,
) -> None:
    """Submit one study for every settings file. `iconoclast summarize` makes the table of them."""
    from iconoclast.cluster.peer import PeerJob
    from iconoclast.cluster.submit import prepared
    from iconoclast.cluster.submit import sweep as sweep_runs

    quiet_libraries()
    options, work_options = given_jobs(ctx)
    if peer is not None and not os.access(peer, os.X_OK):
        raise SettingsError(f"{peer} is not a program. Give the path of {PEER} in its own environment.")
    folders = [prepared(given_settings(ctx, config, out=out_folder / config.stem)) for config in configs]
    runs: list[tuple[Any, Any]] = []
    for folder in folders:
        runs.append((folder, Work(folder.path, work_options)))
        runs += [(folder, PeerJob(folder.path, peer.absolute()))] if peer else []
    with shown_progress() as progress:
        sweep_runs(runs, options, sequential, progress)
    print_lines(out, f"When they have ended: iconoclast summarize {shlex.quote(str(out_folder))}")
