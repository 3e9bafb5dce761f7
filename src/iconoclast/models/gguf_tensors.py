"""The tensors of a GGUF file: a reader that trusts no length, and how finely each type of quantisation holds its values."""

from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch
from torch import Tensor

from iconoclast.errors import ModelError

ARCHITECTURE = "general.architecture"

SIZES = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size", "expert_count",
)  # fmt: skip
"""Settings in a header of which none is larger than the longest side of a tensor or, of layers, than the number of tensors."""

PLAIN = ("F32", "F16", "BF16")
"""Types that hold every value by itself."""

NUMBERS = {
    "Q4_0": (2, 18, 15), "Q4_1": (4, 20, 15), "Q5_0": (2, 22, 31), "Q5_1": (4, 24, 31), "Q8_0": (2, 34, 1),
    "Q2_K": (16, 80, 3), "Q3_K": (0, 96, 7), "Q4_K": (16, 144, 15), "Q5_K": (16, 176, 31), "Q6_K": (0, 192, 63),
}  # fmt: skip
"""Type with even levels → first and last byte of a block that say which level each value is, and the steps that lie between
all their bits cleared and all set."""

CODEBOOKS = ("IQ1", "IQ2", "IQ3")
"""Beginnings of types that round several values together, to an entry of a table; in all others each goes to a level by itself."""

NEIGHBORS = 32
"""Values that share a scale at least, of which neighbouring levels are looked for in the other types."""

SCALE = 2.0**-11
"""Relative rounding of a block's scale, which is float16."""

DAMAGES = (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What reading a file raises that is damaged, or none."""


class Reader(gguf.GGUFReader):
    """A reader for which a file must hold all that it says; without, a lying length runs on for ever."""

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
        if offset + int(count) * numpy.dtype(dtype).itemsize > len(self.data):
            raise ValueError("it is shorter than it says")
        return super()._get(offset, dtype, count, override_order)


def open_reader(file: Path) -> gguf.GGUFReader:
    """Read the metadata of a GGUF file and where its tensors lie; raise ModelError if the file contradicts itself."""
    try:
        reader = Reader(file)
        _require_apart(reader)
        _require_sizes(reader)
    except DAMAGES as error:
        said = str(error.args[0] if error.args else type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelError(f"The GGUF file {file} is damaged, or newer than this reader: {said}.") from None
    return reader


def _require_apart(reader: gguf.GGUFReader) -> None:
    end = reader.data_offset
    for tensor in sorted(reader.tensors, key=lambda each: int(each.data_offset)):
        if tensor.data_offset < end:
            raise ValueError(f"{tensor.name} lies where something else does")
        end = tensor.data_offset + tensor.n_bytes


def _require_sizes(reader: gguf.GGUFReader) -> None:
    """Check what decides how large a model and its tokenizer are made before a tensor is read."""
    kind = _said(reader, ARCHITECTURE)
    if not kind:
        raise ValueError("it does not name its architecture")
    longest = max((int(size) for tensor in reader.tensors for size in tensor.shape), default=0)
    for key in SIZES:
        said = _said(reader, f"{kind}.{key}")
        most = len(reader.tensors) if key == "block_count" else longest
        if said is not None and not 0 < max(said if isinstance(said, list) else [said], default=0) <= most:
            raise ValueError(f"its {kind}.{key} is {said}, which no tensor bears out")
    tokens = {*(_said(reader, "tokenizer.ggml.tokens") or ())}
    if odd := next(
        (each for each in _said(reader, "tokenizer.ggml.merges") or () if each.replace(" ", "", 1) not in tokens), None
    ):
        raise ValueError(f"it merges {odd!r}, which makes no token")


def _said(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents() if key in reader.fields else None


@cache
def readable(kind: str) -> bool:
    """Check that the values of a type are known here."""
    which = gguf.GGMLQuantizationType.__members__.get(kind)
    if which is None:
        return False
    try:
        gguf.dequantize(numpy.zeros((1, gguf.GGML_QUANT_SIZES[which][1]), dtype=numpy.uint8), which)
    except NotImplementedError:
        return False
    return True


def values(tensor: gguf.ReaderTensor) -> Tensor:
    """Return a tensor of a `readable` type in float32."""
    return torch.from_numpy(numpy.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=numpy.float32))


def half_steps(tensor: gguf.ReaderTensor) -> Tensor:
    """Return how far rounding to the levels of a tensor's type can have moved each of its values, float32."""
    kind, own = tensor.tensor_type.name, values(tensor)
    if kind in PLAIN:
        told = torch.finfo({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind])
        size = torch.ldexp(torch.full_like(own, told.eps / 4), torch.frexp(own).exponent)
        return size.clamp_(min=told.smallest_normal * told.eps / 2)
    if kind not in NUMBERS:
        return _gaps(own) / 2
    first, last, steps = NUMBERS[kind]
    extremes = []
    for filled in (0, 255):
        blocks = numpy.array(tensor.data).reshape(-1, gguf.GGML_QUANT_SIZES[tensor.tensor_type][1])
        blocks[:, first:last] = filled
        dequantized = gguf.dequantize(blocks.reshape(tensor.data.shape), tensor.tensor_type)
        extremes.append(torch.from_numpy(dequantized))
    return (extremes[1] - extremes[0]).abs_().div_(2 * steps).add_(own.abs_(), alpha=SCALE)


def _gaps(matrix: Tensor) -> Tensor:
    """Return the distance of every value to the nearest other one beside it."""
    parts = []
    for some in torch.split(matrix.reshape(-1, NEIGHBORS), 1 << 10):
        apart = (some[:, :, None] - some[:, None, :]).abs_()
        nearest = apart.masked_fill_(apart == 0, torch.inf).amin(-1)
        parts.append(torch.where(nearest.isfinite(), nearest, some.abs()))
    return torch.cat(parts).reshape(matrix.shape)
