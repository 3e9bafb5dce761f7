"""The residual stream at the last token of many prompts, and at every token of one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast.errors import ModelError
from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.batching import Sequences
from iconoclast.models.hooks import hooks_act
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import RowListener, continuation_logits, read_prompts


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
    with _caught(lm, layers, -1) as caught:
        for indices, _, _ in read_prompts(lm, sequences, rows, 0, RowListener()):
            result[indices] = torch.stack(caught(), dim=1)
            advance(len(indices))
    return result


def token_residuals(lm: LanguageModel, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return what one prompt makes of the model: the residual stream after every layer at every token, float32 [tokens,
    L, d], and the log-probabilities of the next token [vocabulary], both on the CPU.

    Raises:
        ModelError: a layer returns no hidden states.
    """
    with _caught(lm, decoder_layers(lm.model), slice(None)) as caught:
        logits = continuation_logits(lm, [ids], [[0]])[0]  # one token ahead, whichever it is
        return torch.stack([each[0] for each in caught()], dim=1), logits.float().log_softmax(-1).cpu()


@contextmanager
def _caught(
    lm: LanguageModel, layers: Sequence[nn.Module] | nn.ModuleList, tokens: int | slice
) -> Iterator[Callable[[], list[Tensor]]]:
    """Yield a function that returns what every layer gave last, at the tokens asked for."""
    caught: dict[nn.Module, Tensor] = {}

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        caught[module] = hidden[:, tokens].float().cpu()

    def result() -> list[Tensor]:
        for layer in layers:
            if layer not in caught or caught[layer].shape[-1] != lm.hidden_size:
                raise ModelError(f"{type(layer).__name__} of {lm.name} does not give {lm.hidden_size} hidden states.")
        return [caught[layer] for layer in layers]

    with ExitStack() as stack:
        stack.enter_context(hooks_act())
        for layer in layers:
            stack.enter_context(layer.register_forward_hook(catch))
        yield result
