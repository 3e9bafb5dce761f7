"""Weights as the processor's matrix products want them: laid out once instead of in every product.

PyTorch's oneDNN operators lay a bfloat16 weight out anew each time it is used, which takes a good part of a product
with few rows. The operators that take a weight laid out before are those that torch.compile uses; they have no public
name, so everything here is off where they are missing or give something else.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

LARGEST_SHARE = 1 / 4
"""Share of the free memory that the second copy of the weights may take."""


@contextmanager
def packed(model: nn.Module) -> Iterator[bool]:
    """While this lasts, the model's bfloat16 matrices on the CPU multiply from a copy that is laid out for it.

    The weights must not change meanwhile. Yields whether there is such a copy.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Linear) and _suits(module)]
    size = sum(module.weight.nbytes for module in modules)
    possible = bool(modules) and size <= LARGEST_SHARE * psutil.virtual_memory().available and _works()
    changed = modules if possible else []
    try:
        for module in changed:
            module.forward = _Product(module)  # type: ignore[assignment]
        yield possible
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


class _Product:
    """The forward pass of a linear map from a laid-out copy of its weight."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        self._bias = module.bias

    def __call__(self, states: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self._weight, self._bias, "none", [], "")
        return result


def _suits(module: nn.Linear) -> bool:
    """Whether a module is a plain linear map in bfloat16 on the CPU, with no forward pass of its own (offloading)."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


def _works() -> bool:
    """Whether the operators exist, and give what the public one gives."""
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        module = nn.Linear(64, 32, dtype=torch.bfloat16)
        states = torch.ones(3, 64, dtype=torch.bfloat16)
        with torch.inference_mode():
            expected = linear(states, module.weight, module.bias)
            return torch.allclose(_Product(module)(states), expected, rtol=0.02, atol=0.02)
    except (AttributeError, RuntimeError):  # AttributeError: no such operator in this PyTorch
        return False
