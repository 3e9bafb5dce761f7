"""The distance of the edited model's next-token distribution from the base model's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_KL = 100.0
"""A substitute in nats for an infinite divergence, which samplers cannot learn from and JSON cannot write."""
ROUNDING = 5e-4
"""Rounding error of a sum of thousands of probabilities: as much may be left where servers say that nothing is."""
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


@dataclass(frozen=True)
class TruncatedKl:
    """Bounds of KL(base ‖ other), in nats, if only some tokens' probabilities under the other model are known.

    Attributes:
        least: KL of the two distributions with all unlisted tokens taken for one: the true one is never smaller.
        most: KL if every unlisted token were as improbable as the base's most improbable one.
        outside: probability under the base model of the unlisted tokens.
    """

    least: float
    most: float
    outside: float


def truncated_kl(base: Tensor, listed: Mapping[int, float]) -> TruncatedKl:
    """Bound KL(base ‖ other) from the log-probabilities that the other model gives of some tokens.

    The upper bound is as good as its assumption; without one there is none, since an unlisted token may be impossible.

    Args:
        base: all log-probabilities, float32 [vocabulary].
        listed: token → log-probability.
    """
    ids = torch.tensor(list(listed), dtype=torch.long)
    other = torch.tensor(list(listed.values()), dtype=torch.float64)
    p, rest = base.double().cpu(), torch.ones(len(base), dtype=torch.bool)
    rest[ids] = False
    inside, outside = float((p[ids].exp() * (p[ids] - other)).sum()), float(p[rest].exp().sum())
    missing = min(1.0, max(0.0, 1 - float(other.exp().sum())) + ROUNDING)
    least = inside + (outside * math.log(outside / missing) if outside else 0.0)
    most = inside + float((p[rest].exp() * (p[rest] - p.min())).nan_to_num(0.0).sum())
    least = float(bounded(torch.tensor(least)).clamp(min=0))
    return TruncatedKl(least, max(least, float(bounded(torch.tensor(most)))), outside)
