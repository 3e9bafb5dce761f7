"""The residual stream at the last token of prompts."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.batching import Sequences
from iconoclast.models.hooks import hooks_act
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import next_token_logprobs


def last_token_residuals(
    lm: LanguageModel,
    sequences: Sequences,
    rows: int,
    advance: Callable[[int], None] = lambda n: None,
    modules: Sequence[nn.Module] | None = None,
) -> Tensor:
    """Return the residual stream after every layer at the last token of each sequence: float32 [n, L, d], on the CPU.

    Hooks on the layers (or on `modules`) read it: transformers applies the final norm to the last hidden state.

    Raises:
        ModelError: a module returns no hidden states.
    """
    layers = modules or decoder_layers(lm.model)
    result = torch.empty(len(sequences), len(layers), lm.hidden_size)
    caught: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        caught[module] = hidden[:, -1].float().cpu()

    with ExitStack() as stack:
        stack.enter_context(hooks_act())
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(catch))
        for indices, _ in next_token_logprobs(lm, sequences, rows):
            for layer in layers:
                if layer not in caught or caught[layer].shape[-1] != lm.hidden_size:
                    raise ModelError(
                        f"{type(layer).__name__} of {lm.name} does not give {lm.hidden_size} hidden states."
                    )
            result[indices] = torch.stack([caught[layer] for layer in layers], dim=1)
            advance(len(indices))
    return result
