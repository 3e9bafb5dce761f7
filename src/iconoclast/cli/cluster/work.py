"""`cluster work`: one of the workers of a run."""

import sys
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.cluster.jobs import work_options
from iconoclast.cli.console import err
from iconoclast.cli.progress import shown_progress
from iconoclast.reports.text import print_lines
from iconoclast.runs.folder import RunFolder


def work(
    run_folder: Annotated[Path, Argument(metavar="RUN", help="Run folder.")],
    max_disk: Annotated[float, Option(help="Gigabytes that temporary files may take.")] = 0.0,
    heartbeat: Annotated[float, Option(hidden=True)] = 0.0,
    dead_after: Annotated[float, Option(hidden=True)] = 0.0,
) -> None:
    """Be one of the workers of a run until it is complete. Batch scripts call this; as many may run as you like."""
    from iconoclast.cluster.slurm import TIME_UP
    from iconoclast.cluster.work import TimeUp, told_of_time
    from iconoclast.cluster.work import work as take_part

    options = work_options(max_disk, heartbeat, dead_after)
    try:
        with told_of_time(), shown_progress() as progress:
            take_part(RunFolder(run_folder.absolute()), progress, options)
    except TimeUp:
        print_lines(err, "Time is nearly over.")
        sys.exit(TIME_UP)
