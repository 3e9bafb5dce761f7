"""A GGUF file as a source of tensors: by the names and in the layout of a checkpoint, dequantised one parameter at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from iconoclast.errors import ModelError, first_line
from iconoclast.models.checkpoint import Place
from iconoclast.models.gguf_tensors import ARCHITECTURE, PLAIN, half_steps, open_reader, values
from iconoclast.models.skeleton import architecture
from iconoclast.models.transformers_internals import as_stored, gguf_layout

DERIVED = ("rope_freqs.", "rope_factors_")
"""Beginnings of tensors that converters make of a model's settings; a checkpoint has none such."""

STORED = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Part:
    """Tensors of the file that make a parameter of the loaded model; without a parameter one tensor as it is."""

    tensors: list[gguf.ReaderTensor]
    parameter: str | None = None


@dataclass
class GgufFile:
    """A GGUF file whose header, sizes and places agree.

    Attributes:
        parts: name in `places` → what it is made of.
        layout: how the file's tensors make those of a checkpoint; None if they keep their own names.
    """

    folder: Path
    reader: gguf.GGUFReader
    places: dict[str, Place] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    layout: "Layout | None" = None
    _last: tuple[Part, dict[str, Tensor]] | None = None

    def matrices(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor, or of a stack of matrices one after the other, in float32 if it is quantised."""
        part = self.parts[name]
        if self._last is None or self._last[0] is not part:  # a part can make many tensors
            self._last = part, self._made(part, name, values)
        tensor = self._last[1][name].to(STORED.get(self.places[name].dtype, torch.float32))
        yield from tensor if tensor.ndim == 3 else [tensor]

    def half_steps(self, name: str) -> Iterator[Tensor | None]:
        """Yield, for every one of `matrices`, how far quantisation can have moved its values; None if it has not."""
        if self.places[name].dtype in PLAIN:
            while True:
                yield None
        tensor = self._made(self.parts[name], name, half_steps)[name]
        yield from tensor if tensor.ndim == 3 else [tensor]

    def _made(self, part: Part, name: str, read: Any) -> dict[str, Tensor]:
        if part.parameter is None or self.layout is None:
            return {name: read(part.tensors[0])}
        return self.layout.stored(part, read)


@dataclass(frozen=True, eq=False)
class Layout:
    """Map of a file's tensors to a model, as transformers reads them: the model on "meta", how tensors are turned, names.

    Attributes:
        names: name of a tensor in the file → parameter of the model.
    """

    model: PreTrainedModel
    processor: Any
    names: dict[str, str]

    @classmethod
    def of(cls, folder: Path, reader: gguf.GGUFReader) -> "Layout":
        """Lay a file's tensors out as those of the model in a folder; raise ModelError if transformers knows no way to."""
        model = architecture(str(folder))
        text = model.config.get_text_config()
        inner: PreTrainedModel = model
        if text is not model.config:  # a file holds the text tower alone
            with torch.device("meta"):
                inner = AutoModelForCausalLM.from_config(text)  # type: ignore[no-untyped-call]
        kind = str(reader.fields[ARCHITECTURE].contents())
        try:
            processor, names = gguf_layout(inner, kind)
        except NotImplementedError as error:
            raise ModelError(
                f"The tensors of a {kind} file have no known names in {folder}: {first_line(error)} Give the base as a GGUF file, "
                "too."
            ) from None
        if inner is not model:
            own = next(path for path, module in model.named_modules() if module is model.get_decoder())  # type: ignore[no-untyped-call]
            names = {
                file: f"{own}.{name.partition('.')[2]}" if name.startswith("model.") else name
                for file, name in names.items()
            }
        return cls(model, processor, names)

    def parameter(self, name: str) -> str | None:
        """Return the model's name of a tensor of the file; None if it has none."""
        return self.names.get(name) or self.names.get(name.removesuffix(".weight"))

    def stored(self, part: Part, read: Any) -> dict[str, Tensor]:
        """Return the checkpoint's tensors of a part, with what `read` makes of every tensor of the file."""
        assert part.parameter is not None
        made: dict[str, Tensor] = {}
        for tensor in part.tensors:
            turned = self.processor.process(
                weights=read(tensor).numpy(),
                name=tensor.name,
                tensor_key_mapping=self.names,
                parsed_parameters={"tensors": made},
            )
            if turned.name is not None:
                made[part.parameter] = torch.from_numpy(numpy.array(turned.weights))
        value = made[part.parameter].reshape(self.model.get_parameter(part.parameter).shape)
        return as_stored(self.model, {part.parameter: value})


def open_gguf(file: Path, beside: Path | None = None) -> GgufFile:
    """Open a GGUF file, under the names of the checkpoint in a folder or, without one, its own; no weight is read.

    Raises:
        ModelError: the file is damaged, or of another model.
    """
    reader = open_reader(file)
    found = GgufFile(file.parent, reader, layout=None if beside is None else Layout.of(beside, reader))
    parts: dict[str, Part] = {}
    for tensor in reader.tensors:
        parameter = None if found.layout is None else found.layout.parameter(tensor.name)
        if parameter is None and (found.layout is None or not tensor.name.startswith(DERIVED)):
            found.parts[tensor.name] = Part([tensor])
            shape = tuple(int(size) for size in reversed(tensor.shape))
            found.places[tensor.name] = Place(file.name, tensor.tensor_type.name, shape, 0, 0)
        elif parameter is not None:
            parts.setdefault(parameter, Part([], parameter)).tensors.append(tensor)
    for part in parts.values():
        _place(found, part, file)
    return found


def _place(found: GgufFile, part: Part, file: Path) -> None:
    """Add the checkpoint's tensors that a part makes; raise ModelError if it is of another size than the model's."""
    assert found.layout is not None and part.parameter is not None
    wanted = found.layout.model.get_parameter(part.parameter)
    size = sum(int(tensor.n_elements) for tensor in part.tensors)
    if size != wanted.numel():
        raise ModelError(
            f"{part.tensors[0].name} of {file} has {size} values, and {part.parameter} of the other model {wanted.numel()}: "
            "it is of another base."
        )
    empty = torch.empty(wanted.shape, device="meta")
    for name, tensor in as_stored(found.layout.model, {part.parameter: empty}).items():
        found.parts[name] = part
        found.places[name] = Place(file.name, part.tensors[0].tensor_type.name, tuple(tensor.shape), 0, 0)
