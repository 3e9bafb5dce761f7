"""Forward passes as the processor wants them: weights laid out once instead of in every product, and fewer passes
over the states between the products.

PyTorch's oneDNN operators lay a bfloat16 weight out anew each time it is used, which takes a good part of a product
with few rows. The operators that take a weight laid out before are those that torch.compile uses; they also do what
follows a product while its result is written. They have no public name, so everything here is off where they are
missing or give something else.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear
from transformers.activations import SiLUActivation

LARGEST_SHARE = 1 / 4
"""Share of the free memory that the second copy of the weights may take."""

Forward = Callable[[Tensor], Tensor]
"""States → states."""


@contextmanager
def packed(model: nn.Module) -> Iterator[bool]:
    """While this lasts, the model's bfloat16 matrices on the CPU multiply from a copy that is laid out for it, and its
    norms and gated feed-forward networks compute in fewer passes.

    The weights must not change meanwhile. Yields whether there is such a copy.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Linear) and _suits(module)]
    size = sum(module.weight.nbytes for module in modules)
    possible = bool(modules) and size <= LARGEST_SHARE * psutil.virtual_memory().available and _works()
    products: dict[nn.Module, _Product] = {module: _Product(module) for module in modules} if possible else {}
    others = {module: faster for module in model.modules() if possible and (faster := _faster(module, products))}
    forwards: dict[nn.Module, Forward] = {**products, **others}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield possible
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


@contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """While this lasts, within `packed`, modules compute as they were written, so that gradients flow through them."""
    kinds = (_Product, _Gated, _RootMeanSquare)
    faster = {
        module: forward for module in model.modules() if isinstance(forward := module.__dict__.get("forward"), kinds)
    }
    for module in faster:
        del module.forward
    try:
        yield
    finally:
        for module, forward in faster.items():
            module.forward = forward


class _Product:
    """The forward pass of a linear map from a laid-out copy of its weight."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        self.bias = module.bias

    def __call__(self, states: Tensor, then: str = "none") -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, then, [], "")
        return result

    def times(self, states: Tensor, factor: Tensor) -> Tensor:
        """The product, times `factor`."""
        binary = torch.ops.mkldnn._linear_pointwise.binary
        result: Tensor = binary(states, factor, self.weight, self.bias, "mul")
        return result


class _Gated:
    """The forward pass of down(silu(gate(x)) * up(x)): what stands between the products is done as they are written."""

    def __init__(self, gate: _Product, up: _Product, down: nn.Module) -> None:
        self._gate, self._up, self._down = gate, up, down

    def __call__(self, states: Tensor) -> Tensor:
        result: Tensor = self._down(self._up.times(states, self._gate(states, "swish")))
        return result


def _suits(module: nn.Linear) -> bool:
    """Whether a module is a plain linear map in bfloat16 on the CPU, with no forward pass of its own (offloading)."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


class _RootMeanSquare:
    """The forward pass of a root-mean-square norm with half of the passes over the states, rounded once at the end."""

    def __init__(self, weight: Tensor, epsilon: float) -> None:
        self._weight, self._epsilon = weight.detach().float(), epsilon

    def __call__(self, states: Tensor) -> Tensor:
        values = states.float()
        squares = vector_norm(values, dim=-1, keepdim=True).square_().div_(values.shape[-1])
        return values.mul_(squares.add_(self._epsilon).rsqrt_()).mul_(self._weight).to(states.dtype)


def _faster(module: nn.Module, products: Mapping[nn.Module, _Product]) -> Forward | None:
    """Another forward pass of a module that is no product, if it gives the same on states that are tried."""
    if "forward" in module.__dict__:
        return None
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    faster: Forward
    if type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(epsilon, float):
        faster, width = _RootMeanSquare(weight, epsilon), len(weight)
    elif isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(down, nn.Module):
        if not {gate, up} <= products.keys() or any(
            part._forward_hooks or part._forward_pre_hooks for part in (gate, up)
        ):
            return None
        if type(getattr(module, "act_fn", None)) not in (nn.SiLU, SiLUActivation):
            return None
        faster, width = _Gated(products[gate], products[up], down), gate.in_features
    else:
        return None
    states = torch.linspace(-2, 2, 3 * width, dtype=torch.bfloat16).view(3, width)
    with torch.inference_mode():
        expected, given = module(states), faster(states)
    close = given.dtype == expected.dtype and torch.allclose(
        given, expected, rtol=0.02, atol=0.02 * float(expected.abs().max())
    )
    return faster if close else None


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
