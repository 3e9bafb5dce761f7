"""The subspace that benign prompts use: an orthonormal basis per layer that every direction stays out of."""

import torch
from torch import Tensor

from iconoclast.errors import DirectionError

NOTHING = 1e-5
"""Relative size below which a component is rounding."""


def winsorize(states: Tensor, quantile: float) -> Tensor:
    """Clip the magnitudes of every residual vector [n, L, d] at its own `quantile`; 1 changes nothing.

    A few coordinates can be a thousand times larger than the rest and dominate every statistic.
    """
    if quantile >= 1:
        return states
    # One prompt at a time: torch.quantile refuses inputs of more than 16 million elements.
    limit = torch.stack([torch.quantile(state.abs(), quantile, dim=-1, keepdim=True) for state in states])
    return states.clamp(-limit, limit)


def benign_basis(benign: Tensor, rank: int, include_mean: bool) -> Tensor:
    """Return an orthonormal basis of the benign subspace of every layer: float32 [L, d, c]; columns may be zero.

    It spans the top `rank` principal directions of the centred benign residuals and, with `include_mean`, their mean:
    removing one after the other would restore part of the first. The first layers of some models see so few tokens that
    benign prompts vary in fewer directions there; then those are all.

    Raises:
        DirectionError: n prompts in d dimensions, or their residuals at every layer, have fewer than `rank` directions.
    """
    n, layers, d = benign.shape
    most = max(0, min(n - 1, d - 1 - include_mean))
    if rank > most:
        raise DirectionError(_too_large(rank, f"{n} benign prompts in {d} dimensions give at most {most}"))
    bases, found = [], []
    for layer in range(layers):
        states = benign[:, layer].float()
        mean = states.mean(0)
        _, spread, principal = torch.linalg.svd(states - mean, full_matrices=False)
        there = spread > NOTHING * spread[0]
        found.append(int(there.sum()))
        basis = torch.where(there[:rank, None], principal[:rank], 0.0).T
        if include_mean:
            # A mean that is nothing, or that the others span, becomes a column of zeros: there is no more to remove.
            left = project_out(mean[None], basis[None])[0]
            exists = left.norm() > NOTHING * states.norm(dim=-1).mean()
            basis = torch.cat([basis, torch.where(exists, left / left.norm(), 0.0)[:, None]], dim=1)
        bases.append(basis)
    if rank > max(found):
        raise DirectionError(_too_large(rank, f"the benign residuals vary in {max(found)} directions"))
    return torch.stack(bases)


def _too_large(rank: int, reason: str) -> str:
    return f"benign_subspace_rank {rank} is larger than the data allows: {reason}. Lower it or give more, different prompts."


def project_out(directions: Tensor, basis: Tensor) -> Tensor:
    """Return (I − U Uᵀ) v for every layer: directions [L, d], basis U [L, d, c] → [L, d], not normalised."""
    # Twice: one pass in float32 leaves a residue that shows when almost all of the vector is removed.
    for _ in range(2):
        directions = directions - torch.einsum("ldc,lc->ld", basis, torch.einsum("ldc,ld->lc", basis, directions))
    return directions
