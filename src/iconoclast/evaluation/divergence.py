"""How far the edited model's next-token distribution is from the base model's."""

import torch
from torch import Tensor

LARGEST_KL = 100.0
"""Stands for an infinite divergence, in nats: samplers cannot learn from infinity, and JSON cannot write it."""

ROWS_AT_A_TIME = 16
"""Rows of logits whose divergence is computed at once: so few that they stay in the processor's cache."""


def kl_divergence(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base ‖ edited) in nats over the full vocabulary.

    Args:
        base: log-probabilities, float32 [..., vocabulary].
        edited: log-probabilities, float32 [..., vocabulary].

    Returns:
        [...]; rounding never makes it negative. Tokens that the base model rules out count nothing.
    """
    probability = base.exp()
    return torch.where(probability == 0, 0.0, probability * (base - edited)).sum(-1).clamp(min=0)


def bounded(divergences: Tensor) -> Tensor:
    """The divergences, finite: a model broken so far that its logits are not numbers is as far away as can be."""
    return divergences.nan_to_num(nan=LARGEST_KL).clamp(max=LARGEST_KL)


class Divergences:
    """Collects KL(base ‖ edited) of many edits, batch by batch; sequence i is prompt i mod prompts of its edit.

    Args:
        reference: log-probabilities of the base model, float32 [prompts, vocabulary].
        edits: their number.
    """

    def __init__(self, reference: Tensor, edits: int) -> None:
        self._reference = reference
        self._values = reference.new_zeros(edits * len(reference))

    def add(self, indices: list[int], logits: Tensor) -> None:
        """Take in logits [rows, vocabulary] of these sequences."""
        for start in range(0, len(indices), ROWS_AT_A_TIME):
            some = indices[start : start + ROWS_AT_A_TIME]
            base = self._reference[[i % len(self._reference) for i in some]]
            edited = logits[start : start + ROWS_AT_A_TIME].to(base.device).float().log_softmax(-1)
            self._values[some] = kl_divergence(base, edited)

    def result(self) -> Tensor:
        """[edits, prompts], on the CPU."""
        return bounded(self._values).reshape(-1, len(self._reference)).cpu()
