"""`cluster sweep`: one study for every settings file."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Context, Option

from iconoclast.cli.cluster.jobs import Work, given_jobs
from iconoclast.cli.console import out
from iconoclast.cli.flags import given_settings
from iconoclast.cli.progress import shown_progress
from iconoclast.errors import SettingsError
from iconoclast.reports.text import print_lines


def sweep(
    ctx: Context,
    configs: Annotated[list[Path], Argument(help="Settings files, one a model.")],
    out_folder: Annotated[Path, Option("--out", help="Folder for the run folders, named after the files.")],
    sequential: Annotated[
        bool, Option("--sequential", help="One run after the other: one model at a time on the disk.")
    ] = False,
    heretic: Annotated[Path | None, Option(help="The heretic program: also a job with it for every run.")] = None,
) -> None:
    """Submit one study for every settings file. `iconoclast summarize` makes the table of them."""
    from iconoclast.cluster.peer import HereticJob
    from iconoclast.cluster.submit import prepared
    from iconoclast.cluster.submit import sweep as sweep_runs

    options, work_options = given_jobs(ctx)
    if heretic is not None and not os.access(heretic, os.X_OK):
        raise SettingsError(f"{heretic} is not a program. Give the path of heretic in its own environment.")
    runs: list[tuple[Any, Any]] = []
    # All settings are checked before the first run is submitted.
    for folder in [prepared(given_settings(ctx, config, out=out_folder / config.stem)) for config in configs]:
        runs.append((folder, Work(folder.path, work_options)))
        if heretic:
            runs.append((folder, HereticJob(folder.path, heretic.absolute())))
    with shown_progress() as progress:
        sweep_runs(runs, options, sequential, progress)
    print_lines(out, f"When they have ended: iconoclast summarize {shlex.quote(str(out_folder))}")
