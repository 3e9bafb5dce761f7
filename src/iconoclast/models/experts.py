"""What each expert writes for each token when a model keeps its experts fused in one tensor.

See post_expert_norm in https://huggingface.co/docs/transformers/experts_interface
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast.errors import ModelError
from iconoclast.models.transformers_internals import applies_gate, experts_function

DOWN = "down_proj"
"""Name of the fused tensor that holds the matrices writing to the residual stream."""
SORTED, IN_ORDER = "grouped_mm", "batched_mm"
"""The experts functions that order (token, expert) pairs by expert and by token."""
OutputChange = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(outputs [pairs, d], token of each pair, expert of each pair, number of tokens) → outputs."""


def fused(module: nn.Module) -> bool:
    """Check whether the module holds the matrices of many experts in one tensor."""
    parameter = getattr(module, DOWN, None)
    return isinstance(parameter, nn.Parameter) and parameter.ndim == 3


def interceptable(module: nn.Module) -> bool:
    """Check that the experts use transformers' interface with no norm of their own, so their outputs can be changed."""
    return applies_gate(module) and getattr(module, "has_post_expert_norm", None) is False


@contextmanager
def expert_outputs(module: Any, change: OutputChange) -> Iterator[None]:
    """Change what `interceptable` experts write before weighting; raise ModelError if a forward pass bypasses this."""
    chosen: list[Tensor] = []  # experts of every token, while a forward pass lasts

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen[:] = [(*args, *kwargs.values())[1]]

    def written(outputs: Tensor) -> Tensor:
        index = chosen.pop()
        experts = index.reshape(-1)
        pairs = torch.arange(len(experts), device=experts.device)
        if implementation == SORTED:
            experts, pairs = torch.sort(experts)  # as the experts function sorts them
        return change(outputs, pairs // index.shape[-1], experts, len(index))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if chosen:
            raise ModelError(f"{type(module).__name__} does not show what its experts write. Update transformers.")

    with ExitStack() as stack:
        implementation = stack.enter_context(experts_function(module.config, (SORTED, IN_ORDER)))
        stack.callback(setattr, module, "has_post_expert_norm", False)
        module.has_post_expert_norm = True
        stack.callback(delattr, module, "post_expert_norm")
        module.post_expert_norm = written
        stack.enter_context(module.register_forward_pre_hook(enter, with_kwargs=True))
        stack.enter_context(module.register_forward_hook(leave))
        yield
