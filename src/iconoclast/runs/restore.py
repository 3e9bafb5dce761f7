"""An edit undone: the base's matrices are put back where only declared ones differ, or follow from the edit's record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from iconoclast.audit.matrix import slack
from iconoclast.audit.pairs import Files, open_files, same
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit, EditError
from iconoclast.edits.record import load_edit
from iconoclast.edits.undo import undone
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.layout import CHECKSUMS, EDIT_FILE, GGUF_FILE
from iconoclast.models.adapters import is_adapter
from iconoclast.models.checkpoint import DTYPES, Checkpoint, MatrixChange, matrix_changes
from iconoclast.models.names import local_path
from iconoclast.models.skeleton import load_skeleton
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.manifest import file_hash
from iconoclast.runs.new_folder import appearing
from iconoclast.vocabulary import Site


@dataclass
class Restored:
    """Matrices put back from the edit's record, without its base.

    Attributes:
        error: ‖W − that of the base‖ / ‖W‖, at most, as far as rounding is random; the largest of all matrices.
        lost: share of what the edit took from a matrix that rounding hides, at most.
        amplified: times that the edit's inverse makes what it reads of a rounding, the most of all matrices.
        checked: whether checksums say that the weights are those which the record is of.
        base: the base model that the papers name.
    """

    names: list[str] = field(default_factory=list)
    error: float = 0.0
    lost: float = 0.0
    amplified: float = 0.0
    checked: bool = False
    base: str | None = None

    def document(self) -> Plain:
        """Return what was restored as plain data, for JSON."""
        return asdict(self)

    def undo(self, edit: Edit, site: Site, edited: Tensor) -> Tensor:
        """Return W of W' [d, k]; raise ModelError if that would be no nearer to the base's."""
        stored = next(
            t for t in (torch.bfloat16, torch.float16, torch.float32) if torch.equal(edited.to(t).float(), edited)
        )
        try:
            found = undone(edit, site, edited, slack(edited, edited, stored))
            if not found.lost < 1:  # NaN does not count as restored
                raise EditError(f"rounding, {found.amplified:.0f} times as large, would hide what it put back")
        except EditError as error:
            strength = f"strength {edit.strengths[site]:.3g}"
            raise ModelError(
                f"{site.module} cannot be restored from the edit's record ({strength}): {error}. Give the base with --base."
            ) from None
        self.error = max(self.error, found.error / float(found.weight.norm()))
        self.lost = max(self.lost, found.lost)
        self.amplified = max(self.amplified, found.amplified)
        return found.weight


def restore_alone(edited: str, to: Path) -> Restored:
    """Write the edited model with the matrices that its own record says it was made of; only rounding is left open.

    Raises:
        ModelError: it has no record, or not of these weights, or what the edit has removed is not in the files.
        RunFolderError: `to` is in use or cannot be written, or the record is damaged.
    """
    _require_weights(edited)
    folder = open_files(edited).folder
    if not (folder / EDIT_FILE).is_file():
        raise ModelError(f"{edited} has no {EDIT_FILE}, so nothing says what was changed. Give its base with --base.")
    edit, target = load_edit(folder / EDIT_FILE), Checkpoint.find(str(folder))
    assert target is not None  # `open_files` has found it
    result = Restored(checked=_unaltered(folder, [*target.files, EDIT_FILE]), base=_named_base(folder))
    changes = _changes(edit, edited, target, {site: partial(result.undo, edit, site) for site in edit.sites})
    result.names = sorted(changes)
    with appearing(to) as new:
        target.write(new, changes)
        target.copy_papers(new, code=True)
    return result


def _require_weights(edited: str) -> None:
    path = Path(local_path(edited))
    if is_adapter(str(path)):
        raise ModelError(f"{edited} is an adapter: the base model is as it was. Load it without the adapter.")
    if path.suffix.lower() == ".gguf" or (
        (path / GGUF_FILE).is_file() and not [*path.glob("*.safetensors.index.json")]
    ):
        raise ModelError(f"{edited} is a GGUF file, which is not restored. Restore the weights that it was made of.")


def _unaltered(folder: Path, files: Sequence[str]) -> bool:
    """Check that checksums vouch for the files; False if there are none; raise ModelError if one has changed since."""
    if not (folder / CHECKSUMS).is_file():
        return False
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    known = {line[66:]: line[:64] for line in lines}
    if wrong := [name for name in files if known.get(name) != file_hash(folder / name)]:
        raise ModelError(f"{folder / wrong[0]} is not the file of {CHECKSUMS}: its edit is not known. Give --base.")
    return True


def _named_base(folder: Path) -> str | None:
    try:
        return TrialInformation.of(folder).base_model
    except RunFolderError:
        return None


def _changes(
    edit: Edit, model: str, files: Checkpoint, changes: Mapping[Site, MatrixChange]
) -> dict[str, MatrixChange]:
    """Return the changes by the tensors of a model's files; raise ModelError if it has no such tensors."""
    components = sorted({site.component for site in edit.sites})
    skeleton = load_skeleton(model, components)
    writers = skeleton.writers(components)
    if missing := [site.module for site in edit.sites if site not in writers]:
        raise ModelError(f"{EDIT_FILE} names modules that {model} does not have: {_few(missing)}.")
    found = matrix_changes(files, skeleton.model, writers, changes)
    if found is None:
        raise ModelError(f"The matrices that {EDIT_FILE} names are stored in another form in {model}.")
    return found


def restore(edited: str, base: str, to: Path, patterns: Sequence[str] = ()) -> list[str]:
    """Write the edited model with the base's matrices to a new folder; return the names of those put back.

    Args:
        patterns: names of tensors (with * and ?) that the edit is declared to have changed; without any, the edit's own
            record (edit.safetensors) declares them.

    Raises:
        ModelError: more differs than is declared, nothing does, or nothing is declared.
        RunFolderError: `to` is in use or cannot be written.
    """
    _require_weights(edited)
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
    source = Checkpoint.find(local_path(base))
    assert source is not None  # `open_files` has found it
    edit = load_edit(folder / EDIT_FILE)
    return set(_changes(edit, base, source, dict.fromkeys(edit.sites, lambda matrix: matrix)))


def _next(matrices: Iterator[Tensor], edited: Tensor) -> Tensor:
    return next(matrices).float()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
