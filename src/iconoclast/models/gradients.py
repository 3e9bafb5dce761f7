"""A model as gradients need it: no weights laid out for inference, and the type in which its products are quickest.

On many processors products of bfloat16 matrices take longer than those of float32: those without instructions for
them, and some with AVX-512 alone, whose instructions run at half speed. A fit is nothing but such products.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain

import psutil
import torch
from torch import nn

from iconoclast.models.packed import unpacked

LARGEST_SHARE = 1 / 4
"""Share of the free memory that the float32 copy of the weights may take."""
WORTHWHILE = 1.25
"""How many times as long bfloat16 must take."""


@contextmanager
def ready_for_gradients(model: nn.Module) -> Iterator[None]:
    """Undo `packed`, and compute in float32 where bfloat16 takes longer, while the context lasts."""
    tensors = [tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.dtype == torch.bfloat16]
    kept = {tensor: tensor.data for tensor in tensors} if _gains(model, tensors) else {}
    with unpacked(model):
        try:
            for tensor in kept:
                tensor.data = tensor.data.float()
            yield
        finally:
            for tensor, data in kept.items():
                tensor.data = data


def _gains(model: nn.Module, tensors: list[torch.Tensor]) -> bool:
    """Check that the whole model is in bfloat16 on the CPU, that there is room for it in float32, and that it gains."""
    whole = all(t.device.type == "cpu" and t.is_floating_point() for t in model.parameters())
    size = 2 * sum(tensor.nbytes for tensor in tensors)
    fits = size <= LARGEST_SHARE * psutil.virtual_memory().available
    return bool(tensors) and whole and fits and bfloat16_is_slow()


@cache
def bfloat16_is_slow() -> bool:
    """Measure whether products of bfloat16 matrices take much longer on the CPU than those of float32; once a process."""
    return _seconds(torch.bfloat16) > WORTHWHILE * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The least time of a product like those of a small model, of a few."""
    states, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    with torch.inference_mode():
        for _ in range(8):
            began = time.perf_counter()
            _ = states @ weight.T
            times.append(time.perf_counter() - began)
    return min(times)
