"""An edit undone from its record alone: W of W', and how far the rounding of W' leaves it open.

Names and shapes as in `edits.edit`. What the edit reads of W' is (1 − λ rᵀv) times what it has read of W, so that W follows
unless the edit removes all of it. Row norms that are not known from W' come with W, from a few steps of iteration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from iconoclast.edits.edit import Edit, EditError, reciprocal
from iconoclast.vocabulary import Site

STEPS = 200
"""Steps of the iteration; each leaves a small share of the error."""

SETTLED = 1e-6
"""Relative step of what is read, [k], at which it ends: the rounding of float32."""

MARGIN = 2.0
"""Times that the stated error is what random rounding makes on average."""


@dataclass(frozen=True)
class Undone:
    """W of one matrix [d, k], float32.

    Attributes:
        error: ‖W − the true one‖ (Frobenius), at most, as far as rounding is random.
        change: ‖W' − W‖.
        amplified: times that the edit's inverse makes what it reads of a rounding, 1 / |1 − λ rᵀv|.
    """

    weight: Tensor
    error: float
    change: float
    amplified: float


def undone(edit: Edit, site: Site, edited: Tensor, half: Tensor) -> Undone:
    """Return the matrix that `edit` has made `edited` [d, k] of.

    Args:
        half: how far rounding can have moved every entry of it, [d, k].

    Raises:
        EditError: the edit has removed all that it reads, or so much that row norms do not follow.
    """
    v, r, strength = edit.directions[site], edit.reading(site), edit.strengths[site]
    left = 1 - strength * float(r @ v)
    if abs(left) < SETTLED:
        raise EditError("it has removed all of its direction, and what that was is not in the file")
    if edit.row_normalization == "none":
        norms, outward = torch.ones(len(edited)), strength * v
        weight = edited + torch.outer(outward, r @ edited / left)
    else:
        scales, norms, read = _normalized(edit, site, edited, left)
        outward = strength * norms * v
        weight = scales[:, None] * edited + torch.outer(outward, read)
    variance = half.square() / 3
    along = (reciprocal(norms) * r / left).square() @ variance.sum(1)
    error = MARGIN * float((2 * variance.sum() + outward.square().sum() * along).sqrt())  # W is rounded as well
    return Undone(weight, error, float((weight - edited).norm()), 1 / abs(left))


def _normalized(edit: Edit, site: Site, edited: Tensor, left: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, n [d] and u = rᵀŴ [k] with W = s W' + λ (n⊙v) uᵀ, where rows have been scaled by their norms n."""
    strength, v, r = edit.strengths[site], edit.directions[site], edit.reading(site)
    restored = edit.row_normalization == "full"
    sizes = edited.norm(dim=1)
    norms, scales, read = sizes, torch.ones_like(sizes), torch.zeros_like(edited[0])
    for _ in range(STEPS):
        before, read = read, ((reciprocal(norms) * scales * r) @ edited) / left
        size = (strength * v).square() * (read @ read)
        if not bool((size < 1).all()):
            break
        across = strength * v * (edited @ read)
        if restored:  # ‖s W'_i / n_i + λ v_i u‖ = 1, with n_i = ‖W'_i‖
            half = reciprocal(norms) * across
            scales = (half.square() + 1 - size).sqrt() - half
        else:  # ‖W'_i + λ n_i v_i u‖ = n_i
            norms = (across + (across.square() + (1 - size) * sizes.square()).sqrt()) / (1 - size)
        if float((read - before).norm()) <= SETTLED * float(read.norm()):
            return scales, norms, read
    raise EditError("too little is left of its direction for the row norms to follow from the file")
