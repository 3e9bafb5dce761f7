"""Tensors of a base model and an edited one, read from file to file, one at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from iconoclast.audit.gguf_file import GgufFile, open_gguf
from iconoclast.documents import Plain
from iconoclast.errors import ModelError
from iconoclast.layout import CONFIG as SETTINGS
from iconoclast.models.adapters import CONFIG, WEIGHTS, is_adapter
from iconoclast.models.checkpoint import Checkpoint, Place
from iconoclast.models.names import local_path
from iconoclast.models.skeleton import architecture
from iconoclast.models.transformers_internals import as_stored

PREFIX = "base_model.model."
MAGNITUDE = ".lora_magnitude_vector"
HEADER = {"tokenizer": "tokenizer.ggml.tokens", "chat template": "tokenizer.chat_template"}
"""What the header of a GGUF file holds of a model's papers, and under which key."""


class Source(Protocol):
    """The tensors of a model: their places, and their matrices."""

    @property
    def folder(self) -> Path: ...

    @property
    def places(self) -> dict[str, Place]: ...

    def matrices(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor, or of a stack of matrices one after the other, in the stored type."""


@dataclass(frozen=True)
class Files:
    """A whole model in safetensors files, whose headers, index and sizes agree."""

    folder: Path
    places: dict[str, Place]

    def matrices(self, name: str) -> Iterator[Tensor]:
        place = self.places[name]
        try:
            with safe_open(str(self.folder / place.file), "pt") as opened:
                if len(place.shape) != 3:
                    yield opened.get_tensor(name)
                    return
                stored = opened.get_slice(name)
                for index in range(place.shape[0]):
                    yield stored[index]
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{name} in {self.folder / place.file} cannot be read: {error}.") from None


def open_files(name: str) -> Files:
    """Open a model folder or hub id that is on this machine; no weight is read.

    Raises:
        ModelError: there are no safetensors files, or they, their headers and their index contradict each other.
    """
    path = local_path(name)
    try:
        checkpoint = Checkpoint.find(path)
    except RecursionError:
        raise ModelError(f"The safetensors files of {name} are damaged: a header is nested too deeply.") from None
    if checkpoint is None:
        raise ModelError(f"{name} {_other_kind(Path(path))}")
    for file in checkpoint.files:
        try:
            with safe_open(str(checkpoint.folder / file), "pt"):
                pass  # the library has compared shapes, types and sizes with one another
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{checkpoint.folder / file} is damaged: {error}.") from None
    _require_true_index(checkpoint)
    return Files(checkpoint.folder, dict(checkpoint.places))


def _other_kind(path: Path) -> str:
    """Say what is at a path that is not a folder of weights."""
    if is_adapter(str(path)):
        return "is a LoRA adapter. Give a whole model."
    if (path / SETTINGS).is_file():
        return "is a run folder, which has no weights. Export its trial with iconoclast export, and give the export."
    return "is not on this machine as a folder of safetensors files. Give a folder, or download it."


def _require_true_index(checkpoint: Checkpoint) -> None:
    index = checkpoint.folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    found = {name: place.file for name, place in checkpoint.places.items()}
    wrong = sorted(name for name in listed.keys() | found.keys() if listed.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{index} does not say what its files hold: {name} is in {found.get(name, 'none of them')}, not in "
            f"{listed.get(name, 'the index')} ({len(wrong)} such tensors). Get the model again."
        )


@dataclass
class Adapted:
    """A base model with a LoRA adapter: W + s B A, in float32, for the matrices that it changes; with DoRA, rows rescaled.

    Attributes:
        factors: name in the base's files → (s B, A), turned as the matrix is stored.
        stacked: name in the base's files → update of the parameter that it is part of when the model is loaded.
        magnitudes: name in the base's files → norms that DoRA gives every output, [d, 1], or [1, d] where turned.
    """

    folder: Path
    base: Files
    factors: dict[str, tuple[Tensor, Tensor]]
    stacked: dict[str, "Stacked"]
    magnitudes: dict[str, Tensor]
    _last: "tuple[Stacked, dict[str, Tensor]] | None" = None

    @property
    def places(self) -> dict[str, Place]:
        return self.base.places

    def changes(self, name: str) -> bool:
        return name in self.factors or name in self.stacked

    def matrices(self, name: str) -> Iterator[Tensor]:
        own = self.base.matrices(name)
        if name in self.factors:
            b, a = self.factors[name]
            yield from (self._rescaled(name, matrix.float() + b @ a) for matrix in own)
        elif name in self.stacked:
            update = self._update(self.stacked[name])[name]
            parts = update if update.ndim == 3 else [update]
            yield from (matrix.float() + part for matrix, part in zip(own, parts, strict=True))
        else:
            yield from own

    def _rescaled(self, name: str, matrix: Tensor) -> Tensor:
        magnitude = self.magnitudes.get(name)
        if magnitude is None:
            return matrix
        norms: Tensor = matrix.norm(dim=magnitude.shape.index(1), keepdim=True)
        return matrix * (magnitude / norms)

    def _update(self, stacked: "Stacked") -> dict[str, Tensor]:
        """Keep the last one, as many tensors of the files can be of one parameter."""
        if self._last is None or self._last[0] is not stacked:
            self._last = stacked, stacked.update()
        return self._last[1]


@dataclass(frozen=True, eq=False)
class Stacked:
    """The update of a parameter [experts, …] or [d, k] of the loaded model, as PEFT stacks it.

    Attributes:
        a: [experts · r, inputs], by expert and then rank.
        b: [outputs, r · experts], by rank and then expert, with the scale.
        turned: whether the parameter is stored as [experts, inputs, outputs].
    """

    model: PreTrainedModel
    parameter: str
    a: Tensor
    b: Tensor
    experts: int
    turned: bool

    def update(self) -> dict[str, Tensor]:
        """Return the update of every tensor in the base's files that the parameter is made of."""
        a = self.a.reshape(self.experts, -1, self.a.shape[-1])
        b = self.b.reshape(self.b.shape[0], -1, self.experts).permute(2, 0, 1)
        whole = b @ a
        whole = whole.mT if self.turned else whole
        shape = self.model.get_parameter(self.parameter).shape
        return as_stored(self.model, {self.parameter: whole.reshape(shape).contiguous()})


def open_pair(base: str, edited: str) -> tuple[Source, Source]:
    """Open a base model and an edited one; of a GGUF file and a folder, the file under the folder's names.

    Raises:
        ModelError: one of them cannot be read, or they are of different models.
    """
    paths = local_path(base), local_path(edited)
    files = [Path(path) if path.lower().endswith(".gguf") else None for path in paths]
    if files[0] is None:
        one = open_files(base)
        return one, open_edited(edited, one) if files[1] is None else open_gguf(files[1], one.folder)
    if files[1] is not None:
        return open_gguf(files[0]), open_gguf(files[1])
    other = open_files(edited)
    return open_gguf(files[0], other.folder), other


def half_steps(source: Source, name: str) -> Iterator[Tensor | None]:
    """Yield, for every matrix of a tensor, how far quantisation can have moved its values; None if it is not quantised."""
    return source.half_steps(name) if isinstance(source, GgufFile) else repeat(None)


def carried(source: Source) -> set[str]:
    """Return which of tokenizer and chat template a source carries, as a file or in its header."""
    if isinstance(source, GgufFile):
        return {paper for paper, key in HEADER.items() if key in source.reader.fields}
    settings = source.folder / "tokenizer_config.json"
    told = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    template = (source.folder / "chat_template.jinja").is_file() or '"chat_template"' in told
    found = {"tokenizer": any(source.folder.glob("tokenizer*")), "chat template": template}
    return {paper for paper, there in found.items() if there}


def open_edited(name: str, base: Files) -> Source:
    """Open an edited model, or an adapter on its base; raise ModelError if it cannot be read or is of another model."""
    path = local_path(name)
    if not is_adapter(path):
        return open_files(name)
    folder = Path(path).expanduser()
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return _adapted(folder, config, load_file(folder / WEIGHTS), base)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"The adapter {name} cannot be read beside this base: {reason.rstrip('.')}.") from None


def _adapted(folder: Path, config: Plain, tensors: dict[str, Tensor], base: Files) -> Adapted:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"it is of type {kind}, and only LoRA is read. Merge it into a model first")
    keys = [key for key in tensors if key.endswith(".lora_A.weight")]
    magnitudes = {key.removesuffix(".weight"): t.float() for key, t in tensors.items() if MAGNITUDE in key}
    if not keys or len(tensors) - len(magnitudes) != 2 * len(keys):
        raise ValueError("it holds other tensors than pairs of LoRA factors. Merge it into a model first")
    if len(magnitudes) != (len(keys) if config.get("use_dora") else 0):
        raise ValueError("its matrices are not all of one kind, LoRA or DoRA. Merge it into a model first")
    result = Adapted(folder, base, {}, {}, {})
    loaded: PreTrainedModel | None = None
    for key in keys:
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
        place = base.places.get(f"{module}.weight")
        if place is None and magnitudes:
            raise ValueError(
                f"DoRA of {module}, which the base's files do not hold by this name, is not read. Merge it"
            )
        if place is None:
            loaded = loaded or architecture(str(base.folder))
            for name, stacked in _stacked(config, module, a, b, loaded).items():
                if name not in base.places:
                    raise ValueError(
                        f"it adapts {module}, which the base's files do not hold by this name. Merge it first"
                    )
                result.stacked[name] = stacked
            continue
        left, right = (a.T, b.T) if config.get("fan_in_fan_out") else (b, a)
        if (left.shape[0], right.shape[1]) != place.shape:
            raise ValueError(f"its update of {module} is of another shape than the base's matrix")
        result.factors[f"{module}.weight"] = (_scale(config, module, a.shape[0]) * left, right)
        if magnitudes:
            outputs = magnitudes[f"{PREFIX}{module}{MAGNITUDE}"].reshape(-1)
            result.magnitudes[f"{module}.weight"] = outputs[None] if config.get("fan_in_fan_out") else outputs[:, None]
    return result


def _scale(config: Plain, module: str, rank: int) -> float:
    alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)


def _stacked(config: Plain, module: str, a: Tensor, b: Tensor, loaded: PreTrainedModel) -> dict[str, Stacked]:
    """Find the parameter that a pair of factors is for in the loaded model, and the tensors that it is stored as."""
    path = module.replace(".base_layer", "")  # PEFT nests the parameters of one module
    targets = tuple(config.get("target_parameters") or (".weight",))
    owner, fitting = loaded.get_submodule(path), []
    for name, parameter in owner.named_parameters(path, recurse=False):
        experts = parameter.shape[0] if parameter.ndim == 3 else 1
        turned = parameter.ndim == 3 and bool(getattr(owner, "is_transposed", False))
        sides = tuple(parameter.shape[-2:])
        of_shape = sides == ((a.shape[1], b.shape[0]) if turned else (b.shape[0], a.shape[1]))
        if of_shape and a.shape[0] % experts == 0 and name.endswith(targets):
            scale = _scale(config, path, a.shape[0] // experts)
            fitting.append(Stacked(loaded, name, a, scale * b, experts, turned))
    if len(fitting) != 1:
        raise ValueError(f"its update of {module} fits {len(fitting)} of the base's parameters. Merge it first")
    parameter = loaded.get_parameter(fitting[0].parameter)
    return dict.fromkeys(as_stored(loaded, {fitting[0].parameter: parameter}), fitting[0])


def same(one: Source, other: Source, name: str) -> bool:
    """Check that a tensor is equal bit by bit in both, but for the signs of zeros, which adding nothing can change."""
    first, second = one.places[name], other.places[name]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if isinstance(other, Adapted):
        return not other.changes(name)
    return all(_equal(a, b) for a, b in zip(one.matrices(name), other.matrices(name), strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    bits = (each.contiguous().reshape(-1).view(torch.uint8) for each in (a, b))
    return torch.equal(*bits) or (a.is_floating_point() and torch.equal(a.float(), b.float()))
