"""What transformers has and does not promise to keep: private names and switches are used here and nowhere else."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

GROUPED_QUERIES = "TRANSFORMERS_SDPA_FORCE_GQA"
"""The switch for attention in which several query heads share keys and values."""


def as_stored(model: PreTrainedModel, parameter: str, tensor: Tensor) -> dict[str, Tensor]:
    """Turn a parameter into the tensors of the checkpoint that it was made of; experts are fused while they are loaded."""
    stored: dict[str, Tensor] = revert_weight_conversion(model, {parameter: tensor})
    return stored


def forget_conversions(model: PreTrainedModel) -> None:
    """Save a dequantised model as it is; or it would be quantised again, and its weights lost (transformers 5.23)."""
    model._weight_conversions = None  # type: ignore[assignment]


def set_name(model: PreTrainedModel, name: str) -> None:
    """Set the name that the library shows for a model."""
    model.config._name_or_path = name


def uses_sdpa(model: PreTrainedModel) -> bool:
    """Check whether attention is PyTorch's scaled dot product, which takes a mask [rows, 1, 1, tokens]."""
    return bool(model.config._attn_implementation == "sdpa")


@contextmanager
def experts_function(config: Any, preferred: tuple[str, ...]) -> Iterator[str]:
    """Call fused experts by the model's own function if it is a preferred one, else by the first of those: its name."""
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

    Where there is a mask, the library copies them for every query head, as CUDA's kernels want it.
    """
    if GROUPED_QUERIES in os.environ:
        yield
        return
    os.environ[GROUPED_QUERIES] = "1"
    try:
        yield
    finally:
        os.environ.pop(GROUPED_QUERIES, None)
