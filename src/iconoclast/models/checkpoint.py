"""A model's safetensors files on disk: copied whole, and patched one matrix at a time."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from yaml import YAMLError  # type: ignore[import-untyped]

from iconoclast.documents import Plain
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer
from iconoclast.models.transformers_internals import as_stored
from iconoclast.vocabulary import Site

PAPERS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "spiece.model",
    "*processor*.json", "chat_template*", "generation_config.json", "LICEN[SC]E*", "NOTICE*",
)  # fmt: skip
"""Files that belong to a model beside its weights and configuration; any others are the owner's."""
DTYPES = ("BF16", "F16", "F32")
"""Tensor types (safetensors names) that can be edited in place; others are quantised."""
SAMPLED = 16
"""Parameters that are compared with the files after loading, spread over the model."""
COMPARED = 4096
"""Bytes at the start, in the middle and at the end by which two stored tensors are compared."""
MatrixChange = Callable[[Tensor], Tensor]
"""A float32 matrix as stored → its new value."""


@dataclass(frozen=True)
class Place:
    """The location of a tensor: bytes `start` to `end` of a file; the dtype is safetensors' name."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Checkpoint:
    """The safetensors files of a model as transformers reads them; `places` is tensor name → location."""

    folder: Path
    files: Sequence[str]
    places: Mapping[str, Place]
    index: str | None = None

    @classmethod
    def find(cls, path: str) -> "Checkpoint | None":
        """Find the local files of a model folder or hub id; None if it has other ones (GGUF, pickled weights).

        Raises:
            ModelError: the files are damaged, or their index names files that are elsewhere.
        """
        folder = Path(path)
        if not folder.is_dir():
            try:
                folder = Path(snapshot_download(path, local_files_only=True))
            except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError, ValueError):
                return None
        try:
            return cls._of(folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"The safetensors files of {path} are damaged: {error or type(error).__name__}.") from None

    @classmethod
    def _of(cls, folder: Path) -> "Checkpoint | None":
        """Read the files that transformers would load: those that the configuration names, one file, or an index."""
        config = folder / CONFIG_NAME
        named = json.loads(config.read_text(encoding="utf-8")).get("transformers_weights") if config.is_file() else None
        single = folder / (named if isinstance(named, str) and named else SAFE_WEIGHTS_NAME)
        index = folder / SAFE_WEIGHTS_INDEX_NAME
        if not single.is_file():
            return cls._from(folder, index.name) if index.is_file() else None
        chosen = cls._from(folder, single.name)
        if chosen is not None and single.name == SAFE_WEIGHTS_NAME and index.is_file():
            chosen._require_one_reading(cls._from(folder, index.name))
        return chosen

    @classmethod
    def _from(cls, folder: Path, start: str) -> "Checkpoint | None":
        """Read one file or the shards of an index; None if one is missing."""
        files = [start]
        if start.endswith(".json"):
            files = sorted(set(json.loads((folder / start).read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(file).name != file for file in files):
            raise ModelError(f"{folder / start} names a file outside of its folder. The model is not to be trusted.")
        if not all((folder / file).is_file() for file in files):
            return None
        places: dict[str, Place] = {}
        for file in files:
            for name, place in _places(folder / file):
                if name in places and not _same(folder, place, places[name]):
                    raise ModelError(
                        f"{name} is in {places[name].file} and, with other values, in {file} of {folder}. Readers differ in "
                        "which they take: remove one of them."
                    )
                places[name] = place
        return cls(folder, files, places, start if start.endswith(".json") else None)

    def _require_one_reading(self, other: "Checkpoint | None") -> None:
        """Raise ModelError if the index beside a single file leads to other tensors; a copy in shards does not matter."""
        if other is None or other.files == self.files:
            return
        same = self.places.keys() == other.places.keys()
        if same and all(_same(self.folder, self.places[name], place) for name, place in other.places.items()):
            return
        raise ModelError(
            f"{self.folder} holds two models: {self.files[0]}, and other tensors in {other.files[0]} "
            f"({len(other.files)} shards of {other.index}). transformers loads the first, other programs the second. "
            f"Remove {self.files[0]}, or {other.index} and its shards."
        )

    def names(self, model: PreTrainedModel, parameter: str, shape: Sequence[int]) -> dict[str, bool] | None:
        """Return the tensors behind a parameter of the loaded model: name → True if stored transposed.

        Fused experts can be many tensors here. None if one is missing, quantised, or of another shape.
        """
        names = as_stored(model, {parameter: torch.empty(*shape, device="meta")})
        for name, tensor in names.items():
            place = self.places.get(name)
            if place is None or place.dtype not in DTYPES or place.shape != tuple(tensor.shape):
                return None
        return dict.fromkeys(names, _transposed(model, parameter, shape))

    def tensor(self, name: str) -> Tensor:
        """Read a tensor as it is stored."""
        with safe_open(str(self.folder / self.places[name].file), "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def weight(self, model: PreTrainedModel, writer: Writer) -> Tensor | None:
        """Return a writer's weight as float32 [d, k] or [experts, d, k]; None if it is missing or unreadable here."""
        names = self.names(model, writer.parameter, writer.stored.shape)
        if names is None:
            return None
        tensors = [self.tensor(name).float() for name in names]
        weight = tensors[0] if len(tensors) == 1 else torch.stack(tensors)
        return weight.mT if next(iter(names.values())) != writer.transposed else weight

    def sample(self, name: str, row: int) -> Tensor:
        """Return one row of a tensor, or all of a vector."""
        with safe_open(str(self.folder / self.places[name].file), "pt") as opened:
            stored = opened.get_slice(name)
            tensor: Tensor = stored[row] if len(self.places[name].shape) > 1 else stored[:]
            return tensor

    def write(self, to: Path, changes: Mapping[str, MatrixChange]) -> None:
        """Write the files and configuration to the existing folder `to`, with some matrices changed.

        All else stays the same byte by byte. No more than one matrix is in memory.
        """
        for file in self.files:
            shutil.copyfile(self.folder / file, to / file)
            changed = [name for name in changes if self.places[name].file == file]
            with safe_open(str(self.folder / file), "pt") as source, (to / file).open("r+b") as target:
                for name in changed:
                    place, stored = self.places[name], source.get_slice(name)
                    target.seek(place.start)
                    # Of a stack of experts one at a time.
                    for matrix in [stored[:]] if len(place.shape) == 2 else (stored[i] for i in range(place.shape[0])):
                        edited = changes[name](matrix.float()).to(matrix.dtype).contiguous()
                        target.write(edited.view(torch.uint8).numpy().data)
                    if target.tell() != place.end:
                        raise ModelError(f"{name} in {file} has another size after the edit. Nothing was exported.")
        for file in (CONFIG_NAME, *([self.index] if self.index else [])):
            shutil.copyfile(self.folder / file, to / file)
        config = json.loads((to / CONFIG_NAME).read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None) is not None:  # older programs put a folder of their author's there
            (to / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def copy_papers(self, to: Path, code: bool = False) -> None:
        """Copy tokenizer, processor, generation settings and licence; with `code` also Python files."""
        patterns = (*PAPERS, "*.py") if code else PAPERS
        self._copy(to, lambda name: any(fnmatchcase(name, pattern) for pattern in patterns))

    def copy_licence(self, to: Path) -> None:
        """Copy the model's licence and notices, if it has any."""
        self._copy(to, lambda name: name.upper().startswith(("LICENSE", "LICENCE", "NOTICE")))

    def _copy(self, to: Path, wanted: Callable[[str], bool]) -> None:
        for file in self.folder.iterdir():
            if file.is_file() and wanted(file.name):
                shutil.copyfile(file, to / file.name)

    def licence(self) -> str | None:
        """Return the licence that the model card names, in the hub's spelling."""
        card = self.folder / "README.md"
        if not card.is_file():
            return None
        try:
            data = ModelCard(card.read_text(encoding="utf-8", errors="replace")).data
        except (ValueError, TypeError, YAMLError):
            return None
        named = getattr(data, "license", None)
        return named if isinstance(named, str) else None


def matrix_changes(
    checkpoint: Checkpoint, model: PreTrainedModel, writers: Mapping[Site, Writer], edited: Mapping[Site, MatrixChange]
) -> dict[str, MatrixChange] | None:
    """Return the changes of the checkpoint's tensors, by name, that apply `edited` ([d, k] → [d, k]) to the writers.

    The model may be a skeleton on "meta". None if a tensor cannot be edited in place.
    """
    changes: dict[str, MatrixChange] = {}
    for site, change in edited.items():
        writer = writers[site]
        names = checkpoint.names(model, writer.parameter, writer.stored.shape)
        if names is None:
            return None
        for name, transposed in names.items():
            changes[name] = change if transposed == writer.transposed else _turned(change)
    return changes


def _transposed(model: PreTrainedModel, parameter: str, shape: Sequence[int]) -> bool:
    """Check whether transformers transposes the matrices of a parameter while loading them."""
    if len(shape) < 2:
        return False
    # A marker that varies along the last axis but one shows it; of a stack one matrix is enough.
    *_, rows, columns = shape
    marker = torch.arange(rows, dtype=torch.int32)[:, None].expand(rows, columns)
    stored = as_stored(model, {parameter: marker if len(shape) == 2 else marker[None]})
    first = next(iter(stored.values()))
    return rows > 1 and bool((first[..., 0, 0] == first[..., -1, 0]).all())


def _turned(change: MatrixChange) -> MatrixChange:
    return lambda matrix: change(matrix.T).T


def require_loaded(checkpoint: Checkpoint, model: PreTrainedModel) -> None:
    """Raise ModelError unless a sample of the loaded parameters has the values of the files."""
    parameters = [(name, p) for name, p in model.named_parameters() if p.ndim < 3 and p.is_floating_point()]
    for name, parameter in parameters[:: max(1, len(parameters) // SAMPLED)]:
        stored = None if parameter.is_meta else checkpoint.names(model, name, parameter.shape)
        if not stored or len(stored) > 1:
            continue  # elsewhere, quantised, or made of several
        (one, transposed), *_ = stored.items()
        row = parameter.shape[0] // 2
        loaded = parameter if parameter.ndim == 1 else parameter[:, row] if transposed else parameter[row]
        wanted = checkpoint.sample(one, row).to(parameter.dtype)
        if not torch.equal(loaded.detach().cpu().nan_to_num(), wanted.nan_to_num()):
            raise ModelError(
                f"{name} was loaded with other values than {checkpoint.places[one].file} of {checkpoint.folder} has. "
                "The files are read in two ways: leave one set of weights in the folder."
            )


def _same(folder: Path, one: Place, other: Place) -> bool:
    """Check by sample that two stored tensors are the same."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    size = one.end - one.start
    offsets = {0, max(0, (size - COMPARED) // 2), max(0, size - COMPARED)}
    return all(_bytes(folder, one, at) == _bytes(folder, other, at) for at in offsets)


def _bytes(folder: Path, place: Place, offset: int) -> bytes:
    with (folder / place.file).open("rb") as opened:
        opened.seek(place.start + offset)
        return opened.read(min(COMPARED, place.end - place.start - offset))


def _places(file: Path) -> Iterator[tuple[str, Place]]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if not 0 < size <= file.stat().st_size:
            raise ValueError(f"{file.name} is not a safetensors file, or is shorter than its header says")
        header: Plain = json.loads(opened.read(size))
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = (8 + size + offset for offset in entry["data_offsets"])
            yield name, Place(file.name, entry["dtype"], tuple(entry["shape"]), start, end)
