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
    probability = base.exp()
    return torch.where(probability == 0, 0.0, probability * (base - edited)).sum(-1).clamp(min=0)
