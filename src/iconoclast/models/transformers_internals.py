"""Private names and switches of transformers, used nowhere else because they may change without notice."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

GROUPED_QUERIES = "TRANSFORMERS_SDPA_FORCE_GQA"


def as_stored(model: PreTrainedModel, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split parameters into the checkpoint tensors they are made of; transformers fuses experts while loading."""
    stored: dict[str, Tensor] = revert_weight_conversion(model, parameters)
    return stored


def forget_conversions(model: PreTrainedModel) -> None:
    """Make a dequantised model save as it is, not quantised again with its weights lost (transformers 5.23)."""
    model._weight_conversions = None  # type: ignore[assignment]


def set_name(model: PreTrainedModel, name: str) -> None:
    model.config._name_or_path = name


def uses_sdpa(model: PreTrainedModel) -> bool:
    """Check whether attention is PyTorch's scaled dot product, which accepts a mask [rows, 1, 1, tokens]."""
    return bool(model.config._attn_implementation == "sdpa")


@contextmanager
def eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let attention be plain products instead of PyTorch's scaled dot product, for what is computed meanwhile."""
    configs = [m.config for m in model.modules() if isinstance(m, PreTrainedModel)]
    changed = {id(config): config for config in configs if config._attn_implementation == "sdpa"}.values()
    for config in changed:
        config._attn_implementation_internal = "eager"
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation_internal = "sdpa"


@contextmanager
def experts_function(config: Any, preferred: tuple[str, ...]) -> Iterator[str]:
    """Make fused experts use the first preferred function, unless theirs is one already, and yield its name."""
    before = config._experts_implementation
    chosen = before if before in preferred else preferred[0]
    config._experts_implementation_internal = chosen
    try:
        yield chosen
    finally:
        config._experts_implementation_internal = before


@contextmanager
def shared_keys() -> Iterator[None]:
    """Let attention read keys and values once for all query heads that share them, unless the user has decided.

    With a mask, transformers copies them for every query head, because CUDA's kernels need that.
    """
    if GROUPED_QUERIES in os.environ:
        yield
        return
    os.environ[GROUPED_QUERIES] = "1"
    try:
        yield
    finally:
        os.environ.pop(GROUPED_QUERIES, None)
