"""One forward pass, as fast as transformers allows."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from iconoclast.models.cache import new_cache
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.transformers_internals import shared_keys


def contiguous_head(model: nn.Module) -> AbstractContextManager[Any]:
    """Give the language-model head a contiguous input while the context lasts.

    With `logits_to_keep=1` it gets a slice, and without gradients PyTorch then copies the whole vocabulary matrix for
    every row: most of the time of a prefill.
    """
    return head_input(model, Tensor.contiguous)


def head_input(model: nn.Module, change: Callable[[Tensor], Tensor]) -> AbstractContextManager[Any]:
    """Let the language-model head read what `change` makes of its input while the context lasts."""
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    return head.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))


def grouped_queries(lm: LanguageModel) -> AbstractContextManager[None]:
    """Let attention on the CPU read keys and values once for all query heads that share them."""
    return shared_keys() if lm.device.type == "cpu" else nullcontext()


def forward_pass(
    lm: LanguageModel, ids: Tensor, mask: Tensor, positions: Tensor, capacity: int, cache: DynamicCache | None = None
) -> tuple[Tensor, DynamicCache]:
    """Return next-token logits [rows, vocabulary] and the cache, a new one for `capacity` tokens if none is given."""
    cache = new_cache(lm.model, capacity) if cache is None else cache
    options = accepted_options(lm.model, {"position_ids": positions, "logits_to_keep": 1, "use_cache": True})
    logits: Tensor = lm.model(input_ids=ids, attention_mask=mask, past_key_values=cache, **options).logits
    return logits[:, -1], cache


def accepted_options(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that the model's forward pass accepts."""
    named = _parameters(type(model).forward)
    return {name: value for name, value in options.items() if name in named}


@functools.cache
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)
