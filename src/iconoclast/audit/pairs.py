"""Tensors of a base model and an edited one, read from file to file, one at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from iconoclast.errors import ModelError
from iconoclast.layout import CONFIG as SETTINGS
from iconoclast.models.adapters import CONFIG, WEIGHTS, is_adapter
from iconoclast.models.checkpoint import Checkpoint, Place
from iconoclast.models.names import local_path

PREFIX = "base_model.model."


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
    if path.lower().endswith(".gguf"):
        raise ModelError(
            f"{name} is a GGUF file, which is not compared tensor by tensor. Measure it: iconoclast evaluate."
        )
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
    """Say what is at a path that is no folder of weights."""
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


@dataclass(frozen=True)
class Adapted:
    """A base model with a LoRA adapter: W + s B A, in float32, for the matrices that it changes."""

    folder: Path
    base: Files
    factors: dict[str, tuple[Tensor, Tensor]]

    @property
    def places(self) -> dict[str, Place]:
        return self.base.places

    def matrices(self, name: str) -> Iterator[Tensor]:
        for matrix in self.base.matrices(name):
            if name not in self.factors:
                yield matrix
            else:
                b, a = self.factors[name]
                yield matrix.float() + b @ a


def open_edited(name: str, base: Files) -> Source:
    """Open an edited model, or an adapter on its base; raise ModelError if it cannot be read or is of another model."""
    path = local_path(name)
    if not is_adapter(path):
        return open_files(name)
    folder = Path(path).expanduser()
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
        return Adapted(folder, base, _factors(config, tensors, base))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"The adapter {name} cannot be read beside this base: {reason}.") from None


def _factors(config: dict[str, Any], tensors: dict[str, Tensor], base: Files) -> dict[str, tuple[Tensor, Tensor]]:
    """Return name of the base's matrix → (s B, A), turned as the matrix is stored."""
    kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
    if kind != "LORA":
        raise ValueError(f"it is of type {kind}, and only LoRA is read. Merge it into a model first")
    factors = {}
    for key in [key for key in tensors if key.endswith(".lora_A.weight")]:
        module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        a, b = tensors[key].float(), tensors[key.replace("lora_A", "lora_B")].float()
        rank = a.shape[0]
        alpha = config.get("alpha_pattern", {}).get(module, config["lora_alpha"])
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        place = base.places.get(f"{module}.weight")
        if place is None:
            raise ValueError(f"it adapts {module}, which the base's files do not hold by this name. Merge it first")
        left, right = (a.T, b.T) if config.get("fan_in_fan_out") else (b, a)
        if (left.shape[0], right.shape[1]) != place.shape:
            raise ValueError(f"its update of {module} is of another shape than the base's matrix")
        factors[f"{module}.weight"] = (scale * left, right)
    if not factors or len(tensors) != 2 * len(factors):
        raise ValueError("it holds other tensors than pairs of LoRA factors. Merge it into a model first")
    return factors


def same(one: Source, other: Source, name: str) -> bool:
    """Check that a tensor is equal bit by bit in both."""
    first, second = one.places[name], other.places[name]
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    if isinstance(other, Adapted):
        return name not in other.factors
    return all(
        torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
        for a, b in zip(one.matrices(name), other.matrices(name), strict=True)
    )
