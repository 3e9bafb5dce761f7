"""`upload`: an export sent to the hub."""

from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import AsJsonOption, ExportArgument
from iconoclast.cli.console import print_json, say


def upload(
    export_folder: ExportArgument,
    repo: Annotated[str, Argument(help="Name on the hub, as in you/model.")],
    public: Annotated[bool, Option("--public", help="Everybody can see it. Without, it is private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    as_json: AsJsonOption = False,
) -> None:
    """Send an export to the hub, private unless you say --public. Nothing else ever uploads anything."""
    from iconoclast.runs.upload import plan
    from iconoclast.runs.upload import upload as send

    planned = plan(export_folder, repo, not public)
    say(*planned.lines())
    sent = None if dry_run else send(planned)
    say("Nothing was sent." if sent is None else f"Sent: {sent}")
    if as_json:
        print_json({"repo": planned.repo, "private": planned.private, "files": planned.files, "sent": sent})
