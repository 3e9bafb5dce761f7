"""What two models say of tokens, from logits, with a gradient that passes over the vocabulary once.

Log-probabilities of a vocabulary are large, and most of what plain operations do with them is to wait for memory: here a
part of the tokens goes through all of it while it is in the processor's cache.
"""

from typing import Any

import torch
from torch import Tensor

TOGETHER = 2**22
"""Numbers that are worked on at once, 16 MiB of them."""


class _Compared(torch.autograd.Function):
    """KL(base ‖ edited) of tokens [tokens], and the edited model's log-probabilities of some ids [tokens, k]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, base: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, base, ids)
        divergences = torch.zeros(len(ids), device=ids.device)
        likelihoods = torch.empty(ids.shape, device=ids.device)
        for part in _parts(logits):
            edited = logits[part].float().log_softmax(-1)
            likelihoods[part] = edited.gather(-1, ids[part])
            if base is not None:
                known = base[part].float().log_softmax(-1)
                divergences[part] = edited.sub_(known).mul_(known.exp_()).sum(-1).neg_()
        return divergences, likelihoods

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, base, ids = ctx.saved_tensors
        of_divergences, of_likelihoods = gradients
        whole = of_divergences - of_likelihoods.sum(-1)
        found = torch.empty_like(logits)
        for part in _parts(logits):
            gradient = logits[part].float().softmax(-1).mul_(whole[part, None])
            if base is not None:
                gradient.addcmul_(base[part].float().softmax(-1), of_divergences[part, None], value=-1)
            found[part] = gradient.scatter_add_(-1, ids[part], of_likelihoods[part])
        return found, None, None


def compared(logits: Tensor, base: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return KL(base ‖ edited) in nats, float32 [tokens], and log-probabilities of ids, float32 [tokens, k].

    Gradients flow to the logits alone.

    Args:
        logits: of the edited model [tokens, vocabulary].
        base: of the base model, alike; without it there is no divergence, and it is 0.
        ids: tokens that may follow, [tokens, k].
    """
    divergences, likelihoods = _Compared.apply(logits, base, ids)  # type: ignore[no-untyped-call]
    return divergences, likelihoods


def _parts(logits: Tensor) -> list[slice]:
    rows = max(1, TOGETHER // logits.shape[-1])
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]
