"""What benign prompts use: an orthonormal basis per layer that every direction stays out of."""

import torch
from torch import Tensor

from iconoclast.errors import DirectionError


def winsorize(states: Tensor, quantile: float) -> Tensor:
    """Clip the magnitudes of every residual vector at its own `quantile`.

    A few coordinates of a residual stream can be a thousand times larger than the rest and own every statistic.

    Args:
        states: [n, L, d].
        quantile: in (0.5, 1]; 1 changes nothing.
    """
    if quantile >= 1:
        return states
    # One prompt at a time: torch.quantile refuses inputs of more than 16 million elements.
    limit = torch.stack([torch.quantile(state.abs(), quantile, dim=-1, keepdim=True) for state in states])
    return states.clamp(-limit, limit)


def benign_basis(benign: Tensor, rank: int, include_mean: bool) -> Tensor:
    """Orthonormal basis of the benign subspace of every layer: float32 [L, d, c].

    The top `rank` principal directions of the centred benign residuals, and with `include_mean` their mean as well,
    made orthonormal together. (Removing one after the other puts back a part of the first.)

    Args:
        benign: residuals [n, L, d].
        rank: number of principal directions, 0 for none.
        include_mean: whether the mean residual belongs to the subspace.

    Raises:
        DirectionError: n prompts in d dimensions do not have `rank` principal directions to spare.
    """
    n, layers, d = benign.shape
    if rank > min(n - 1, d - 1 - include_mean):
        raise DirectionError(
            f"benign_subspace_rank {rank} is larger than the data allows: {n} benign prompts in {d} dimensions give at "
            f"most {max(0, min(n - 1, d - 1 - include_mean))}. Lower it or give more prompts."
        )
    bases = []
    for layer in range(layers):
        states = benign[:, layer].float()
        mean = states.mean(0)
        columns = [mean[:, None]] if include_mean else []
        if rank:
            principal = torch.linalg.svd(states - mean, full_matrices=False).Vh[:rank]
            columns.insert(0, principal.T)
        stacked = torch.cat(columns, dim=1) if columns else states.new_zeros(d, 0)
        bases.append(torch.linalg.qr(stacked).Q)
    return torch.stack(bases)


def project_out(directions: Tensor, basis: Tensor) -> Tensor:
    """(I − U Uᵀ) v for every layer: directions [L, d], basis U [L, d, c] → [L, d], not normalised."""
    # Twice: one pass in float32 leaves a residue that shows when almost all of the vector is removed.
    for _ in range(2):
        directions = directions - torch.einsum("ldc,lc->ld", basis, torch.einsum("ldc,ld->lc", basis, directions))
    return directions
