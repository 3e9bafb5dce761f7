"""Sequences of different lengths in one batch: order, padding, positions."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from iconoclast.models.language_model import LanguageModel

Sequences = Sequence[Sequence[int]]
"""Token ids of several texts."""


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield indices in batches of at most `size` and about equal width, for a narrow one takes nearly as long as a wide one.

    The longest come first, so that a batch holds sequences of similar length.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches = -(-len(order) // size)
    for batch in range(batches):
        yield order[batch * len(order) // batches : (batch + 1) * len(order) // batches]


def left_padded(lm: LanguageModel, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, each [rows, longest]."""
    width = max(map(len, sequences))
    ids = [[lm.tokenizer.pad_token_id] * (width - len(s)) + list(s) for s in sequences]
    mask = [[0] * (width - len(s)) + [1] * len(s) for s in sequences]
    return torch.tensor(ids, device=lm.device), torch.tensor(mask, device=lm.device)


def token_positions(mask: Tensor) -> Tensor:
    """Return the position of every token in its sequence, from 0: [rows, tokens], like the mask."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
