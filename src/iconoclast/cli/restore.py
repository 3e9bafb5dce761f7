"""`restore`: an edit undone."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import AsJsonOption
from iconoclast.cli.console import print_json, say


def restore(
    edited: Annotated[str, Argument(metavar="EDITED", help="Edited model: folder or hub id.")],
    base: Annotated[str, Option(help="Its base model.")],
    to: Annotated[Path, Option("--out", "--to", help="Folder to write, which does not exist yet.")],
    matrices: Annotated[
        list[str] | None,
        Option(
            help="Tensors declared as changed, with * and ?; may be repeated. Unset: those of its edit.safetensors."
        ),
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Put the base's matrices back into an edited model, if only those differ that it is declared to have changed."""
    from iconoclast.runs.restore import restore as restored

    names = restored(edited, base, to, matrices or ())
    say(f"Wrote {to}: {len(names)} tensors have the base's values again, and all weights are those of {base}.")
    if as_json:
        print_json({"folder": str(to), "base": base, "restored": names})
