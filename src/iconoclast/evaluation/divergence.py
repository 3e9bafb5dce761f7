"""The distance of the edited model's next-token distribution from the base model's."""

import torch
from torch import Tensor

LARGEST_KL = 100.0
"""A substitute in nats for an infinite divergence, which samplers cannot learn from and JSON cannot write."""
ROWS_AT_A_TIME = 16
"""Rows of logits compared at once: few enough to stay in the processor's cache."""


def kl_divergence(base: Tensor, edited: Tensor) -> Tensor:
    """Return KL(base ‖ edited) in nats, [...], never negative, from log-probabilities, float32 [..., vocabulary]."""
    probability = base.exp()
    return torch.where(probability == 0, 0.0, probability * (base - edited)).sum(-1).clamp(min=0)


def bounded(divergences: Tensor) -> Tensor:
    """Make divergences finite: a model so broken that its logits are not numbers is as far away as can be."""
    return divergences.nan_to_num(nan=LARGEST_KL).clamp(max=LARGEST_KL)


class Divergences:
    """KL(base ‖ edited) of many edits; `reference` is the base model's log-probabilities [prompts, vocabulary]."""

    def __init__(self, reference: Tensor, edits: int) -> None:
        self._reference = reference
        self._values = reference.new_zeros(edits * len(reference))

    def add(self, indices: list[int], logits: Tensor) -> None:
        """Take in logits [rows, vocabulary]; sequence i is prompt i mod prompts of its edit."""
        for start in range(0, len(indices), ROWS_AT_A_TIME):
            some = indices[start : start + ROWS_AT_A_TIME]
            base = self._reference[[i % len(self._reference) for i in some]]
            edited = logits[start : start + ROWS_AT_A_TIME].to(base.device).float().log_softmax(-1)
            self._values[some] = kl_divergence(base, edited)

    def result(self) -> Tensor:
        """Return the divergences, [edits, prompts], on the CPU."""
        return bounded(self._values).reshape(-1, len(self._reference)).cpu()
