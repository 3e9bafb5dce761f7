"""`cluster cancel`: all workers of a run ended."""

import os
import shlex
import signal
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from typer import Argument

from iconoclast.cli.console import out
from iconoclast.reports.text import print_lines
from iconoclast.runs.folder import RunFolder


def cancel(run_folder: Annotated[Path, Argument(metavar="RUN", help="Run folder.")]) -> None:
    """End all workers of a run. What they have measured stays, and the run can go on later."""
    from iconoclast.cluster import slurm
    from iconoclast.cluster.submit import jobs_of
    from iconoclast.runs.workers import workers_of

    folder = RunFolder(run_folder)
    folder.settings()
    jobs = jobs_of(folder)
    slurm.cancel(jobs)
    found = [worker.document for worker in workers_of(folder) if not worker.gone]
    here = [w for w in found if not w["job"] and w["host"] == socket.gethostname()]
    for worker in here:
        with suppress(ProcessLookupError):
            os.kill(int(worker["pid"]), signal.SIGTERM)
    config, path = shlex.quote(str(folder.config)), shlex.quote(str(run_folder))
    print_lines(out, f"Cancelled: {', '.join(jobs) or 'no jobs'}; {len(here)} workers of this machine.")
    print_lines(out, f"The run can go on: iconoclast cluster submit --config {config} --out {path}")
