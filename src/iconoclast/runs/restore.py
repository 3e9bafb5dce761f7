"""An edit undone: the base's matrices are put back where only declared ones differ."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from torch import Tensor

from iconoclast.audit.pairs import Files, open_files, same
from iconoclast.edits.record import load_edit
from iconoclast.errors import ModelError
from iconoclast.layout import EDIT_FILE
from iconoclast.models.adapters import is_adapter
from iconoclast.models.checkpoint import DTYPES, Checkpoint, matrix_changes
from iconoclast.models.names import local_path
from iconoclast.models.skeleton import load_skeleton
from iconoclast.runs.export import appearing


def restore(edited: str, base: str, to: Path, patterns: Sequence[str] = ()) -> list[str]:
    """Write the edited model with the base's matrices to a new folder; return the names of those put back.

    Args:
        patterns: names of tensors (with * and ?) that the edit is declared to have changed; without any, the edit's own
            record (edit.safetensors) declares them.

    Raises:
        ModelError: more differs than is declared, nothing does, or nothing is declared.
        RunFolderError: `to` is in use or cannot be written.
    """
    if is_adapter(local_path(edited)):
        raise ModelError(f"{edited} is an adapter: the base model is as it was. Load it without the adapter.")
    one, other = open_files(base), open_files(edited)
    differing = _differing(one, other)
    if not differing:
        raise ModelError(f"{edited} has the weights of {base}: there is nothing to restore.")
    declared = _declared(other.folder, base, differing, patterns)
    if undeclared := sorted(set(differing) - declared):
        raise ModelError(
            f"{edited} differs from {base} in more than is declared: {_few(undeclared)}. Nothing was written. See what "
            "changed with iconoclast audit; --matrices declares more."
        )
    target = Checkpoint.find(str(other.folder))
    assert target is not None  # `open_files` has found it
    if not (other.folder / "config.json").is_file():
        raise ModelError(f"{other.folder} has no config.json. Get the model again.")
    with appearing(to) as folder:
        # One tensor is in memory: `write` asks for its matrices one after the other.
        matrices = {name: one.matrices(name) for name in differing}
        target.write(folder, {name: partial(_next, matrices[name]) for name in differing})
        target.copy_papers(folder, code=True)
    return differing


def _differing(one: Files, other: Files) -> list[str]:
    """Return the tensors that differ in their values; raise ModelError if they differ in more."""
    if unpaired := sorted(one.places.keys() ^ other.places.keys()):
        raise ModelError(f"Only one of the two models holds {_few(unpaired)}. Nothing was written.")
    pairs = {name: (place, other.places[name]) for name, place in one.places.items()}
    if other_form := sorted(n for n, (a, b) in pairs.items() if (a.dtype, a.shape) != (b.dtype, b.shape)):
        raise ModelError(f"The two models differ in type or shape in {_few(other_form)}. Nothing was written.")
    differing = sorted(name for name in pairs if not same(one, other, name))
    if odd := [n for n in differing if len(pairs[n][0].shape) not in (2, 3) or pairs[n][0].dtype not in DTYPES]:
        raise ModelError(f"More than matrices differ: {_few(odd)}. Nothing was written.")
    return differing


def _declared(folder: Path, base: str, differing: Sequence[str], patterns: Sequence[str]) -> set[str]:
    if patterns:
        return {name for name in differing if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not (folder / EDIT_FILE).is_file():
        raise ModelError(
            f"{folder} has no {EDIT_FILE} that declares what was changed. Declare it: --matrices '*down_proj.weight'."
        )
    edit = load_edit(folder / EDIT_FILE)
    components = sorted({site.component for site in edit.sites})
    skeleton, source = load_skeleton(base, components), Checkpoint.find(local_path(base))
    assert source is not None  # `open_files` has found it
    writers = skeleton.writers(components)
    if missing := [site.module for site in edit.sites if site not in writers]:
        raise ModelError(f"{folder / EDIT_FILE} names modules that {base} does not have: {_few(missing)}.")
    return set(matrix_changes(source, skeleton.model, writers, dict.fromkeys(edit.sites, lambda matrix: matrix)) or ())


def _next(matrices: Iterator[Tensor], edited: Tensor) -> Tensor:
    return next(matrices).float()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
