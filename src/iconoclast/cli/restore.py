"""`restore`: an edit undone."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import AsJsonOption, require_no_trial
from iconoclast.cli.console import print_json, say
from iconoclast.errors import SettingsError

if TYPE_CHECKING:
    from iconoclast.runs.restore import Restored


def restore(
    edited: Annotated[str, Argument(metavar="EDITED", help="Edited model: folder or hub id.")],
    to: Annotated[Path, Option("--out", "--to", help="Folder to write, which does not exist yet.")],
    base: Annotated[
        str | None, Option(help="Its base model. Unset: the edit is undone by its edit.safetensors, up to rounding.")
    ] = None,
    matrices: Annotated[
        list[str] | None,
        Option(
            help="Tensors declared as changed, with * and ?; may be repeated. Unset: those of its edit.safetensors."
        ),
    ] = None,
    as_json: AsJsonOption = False,
) -> None:
    """Restore the base's matrices in an edited model, if only the declared ones differ."""
    for model in (edited, base):
        require_no_trial(model or "")
    from iconoclast.runs.restore import restore as restored
    from iconoclast.runs.restore import restore_alone

    if base is None:
        if matrices:
            raise SettingsError("--matrices declares what to take from a base. Give it with --base.")
        found = restore_alone(edited, to)
        say(*_told(found, to))
        if as_json:
            print_json({"folder": str(to), **found.document()})
        return
    names = restored(edited, base, to, matrices or ())
    say(f"Wrote {to}: {len(names)} tensors have the base's values again, and all weights are those of {base}.")
    if as_json:
        print_json({"folder": str(to), "base": base, "restored": names})


def _told(found: "Restored", to: Path) -> Iterator[str]:
    yield (
        f"Wrote {to}: the edit of {len(found.names)} tensors is undone. They differ from the base's by at most "
        f"{found.error:.2g} of their norm: rounding, of which the edited direction has {found.amplified:.1f} times as much, "
        f"and which hides at most {found.lost:.1%} of what the edit took."
    )
    if not found.checked:
        yield "WARNING: no checksums say that the weights are those which the edit's record is of."
    if found.base is not None:
        yield f"Its papers name {found.base} as the base: with --base the weights are those of it, bit by bit."
