"""Faster bfloat16 forward passes on the CPU: weights laid out once, and fewer passes over the states between products.

PyTorch's oneDNN operators lay a weight out at each use, which costs much of a product with few rows. The operators
behind torch.compile take it laid out, but have no public name: this is off where they are missing or disagree.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import linear
from transformers.activations import SiLUActivation

from iconoclast.models.hooks import replaced_forwards

LARGEST_SHARE = 1 / 4
"""Share of the free memory that the second copy of the weights may take."""
Forward = Callable[[Tensor], Tensor]


@contextmanager
def packed(model: nn.Module) -> Iterator[bool]:
    """Speed up the model's bfloat16 products, norms and gated networks on the CPU while the context lasts.

    The weights must not change meanwhile. Yields False where that is impossible and nothing changes.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Linear) and _suits(module)]
    size = sum(module.weight.nbytes for module in modules)
    possible = bool(modules) and size <= LARGEST_SHARE * psutil.virtual_memory().available and _works()
    products: dict[nn.Module, _Product] = {module: _Product(module) for module in modules} if possible else {}
    others = {module: faster for module in model.modules() if possible and (faster := _faster(module, products))}
    with replaced_forwards({**products, **others}):
        yield possible


def unpacked(model: nn.Module) -> AbstractContextManager[None]:
    """Undo `packed` within it while the context lasts, so that gradients flow."""
    kinds = (_Product, _Gated, _RootMeanSquare)
    faster = (module for module in model.modules() if isinstance(module.__dict__.get("forward"), kinds))
    return replaced_forwards(dict.fromkeys(faster))


class _Product:
    """The forward pass of a linear map from a laid-out copy of its weight."""

    def __init__(self, module: nn.Linear) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
        self.bias = module.bias

    def __call__(self, states: Tensor, then: str = "none") -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, then, [], "")
        return result


@dataclass(eq=False)
class _Gated:
    """The forward pass of down(silu(gate(x)) * up(x)), with all but the products done as their results are written."""

    gate: _Product
    up: _Product
    down: nn.Module

    def __call__(self, states: Tensor) -> Tensor:
        multiplied = torch.ops.mkldnn._linear_pointwise.binary
        result: Tensor = self.down(multiplied(states, self.gate(states, "swish"), self.up.weight, self.up.bias, "mul"))
        return result


@dataclass(eq=False)
class _RootMeanSquare:
    """The forward pass of an RMS norm in half as many passes over the states, rounded once at the end."""

    weight: Tensor
    epsilon: float

    def __call__(self, states: Tensor) -> Tensor:
        values = states.float()
        squares = vector_norm(values, dim=-1, keepdim=True).square_().div_(values.shape[-1])
        return values.mul_(squares.add_(self.epsilon).rsqrt_()).mul_(self.weight).to(states.dtype)


def _suits(module: nn.Module) -> bool:
    """Check for a plain bfloat16 linear map on the CPU without a forward pass of its own (offloading)."""
    if type(module) is not nn.Linear or "forward" in module.__dict__:
        return False
    return module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


def _faster(module: nn.Module, products: Mapping[nn.Module, _Product]) -> Forward | None:
    """Return a faster forward pass for a norm or gated network, if it agrees with the module's own on sample states."""
    if "forward" in module.__dict__:
        return None
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    faster: Forward
    if type(module).__name__.endswith("RMSNorm") and isinstance(weight, Tensor) and isinstance(epsilon, float):
        faster, width = _RootMeanSquare(weight.detach().float(), epsilon), len(weight)
    elif isinstance(gate, nn.Linear) and isinstance(up, nn.Linear) and isinstance(down, nn.Module):
        listened_to = any(part._forward_hooks or part._forward_pre_hooks for part in (gate, up))
        silu = type(getattr(module, "act_fn", None)) in (nn.SiLU, SiLUActivation)
        if listened_to or not silu or not {gate, up} <= products.keys():
            return None
        faster, width = _Gated(products[gate], products[up], down), gate.in_features
    else:
        return None
    states = torch.linspace(-2, 2, 3 * width, dtype=torch.bfloat16).view(3, width)
    with torch.inference_mode():
        expected, given = module(states), faster(states)
    nothing = 0.02 * float(expected.abs().max())
    same = given.dtype == expected.dtype and torch.allclose(given, expected, rtol=0.02, atol=nothing)
    return faster if same else None


def _works() -> bool:
    """Check that the private operators exist and agree with the public one."""
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
