"""How far the edited model's next-token distribution is from the base model's."""

import torch
from torch import Tensor


def kl_divergence(base: Tensor, edited: Tensor) -> Tensor:
    """KL(base ‖ edited) in nats over the full vocabulary.

    Args:
        base: log-probabilities, float32 [..., vocabulary].
        edited: log-probabilities, float32 [..., vocabulary].

    Returns:
        [...]; rounding never makes it negative. Tokens that the base model rules out count nothing.
    """
    terms = base.exp() * (base - edited)
    return torch.where(base == -torch.inf, 0.0, terms).sum(-1).clamp(min=0)
