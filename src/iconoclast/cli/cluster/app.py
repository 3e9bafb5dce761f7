"""`iconoclast cluster`: its commands put together."""

import typer

from iconoclast.cli.cluster.cancel import cancel
from iconoclast.cli.cluster.jobs import JobsCommand
from iconoclast.cli.cluster.submit import script, submit
from iconoclast.cli.cluster.sweep import sweep
from iconoclast.cli.cluster.work import work
from iconoclast.cli.status import cluster_status

cluster_app = typer.Typer(help="One study searched by many machines, on Slurm.", rich_markup_mode=None)
for command in (submit, script, sweep):
    cluster_app.command(cls=JobsCommand)(command)
cluster_app.command()(work)
cluster_app.command("status")(cluster_status)
cluster_app.command()(cancel)
