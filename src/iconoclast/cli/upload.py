"""`upload`: an export sent to the hub."""

from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import ExportArgument
from iconoclast.cli.console import say


def upload(
    export_folder: ExportArgument,
    repo: Annotated[str, Argument(help="Name on the hub, as in you/model.")],
    public: Annotated[bool, Option("--public", help="Everybody can see it. Without, it is private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
) -> None:
    """Send an export to the hub, private unless you say --public. Nothing else ever uploads anything."""
    from iconoclast.runs.upload import plan
    from iconoclast.runs.upload import upload as send

    planned = plan(export_folder, repo, not public)
    say(*planned.lines())
    if dry_run:
        say("Nothing was sent.")
        return
    say(f"Sent: {send(planned)}")
