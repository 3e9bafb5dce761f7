"""What a change of a matrix is consistent with: the constructions that are known, made again from the weights alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.matrix import ARITHMETIC, Spectrum
from iconoclast.edits.edit import edited_weight
from iconoclast.vocabulary import NORMALIZATIONS, RowNormalization

CONSISTENT = 0.05
"""Share of a change that a construction may miss, beyond the rounding of the stored type."""

ROUNDS = 12
"""Times that a fit moves what it explains into the cells that rounding leaves open."""

GOOD = 0.001
"""Error from which a fit goes on."""

RELAXATION = 1.8
"""Share of the way into the cells that a round goes: more than all of it, which converges sooner."""

BLOCKS = (0, 1, 32, 64, 128)
"""Values that share a scale when weights are quantised: 0 for the whole tensor, 1 for a row, else so many of a row."""


@dataclass(frozen=True)
class RankOne:
    """An edit that makes W' of W up to rounding; the sign of the direction is free.

    Attributes:
        direction: unit, [d] or [k] along columns.
        error: ‖what it misses‖ / ‖W' − W‖, beyond rounding.
    """

    direction: Tensor
    strength: float
    row_normalization: RowNormalization
    along: Literal["rows", "columns"]
    error: float


def rank_one(before: Tensor, after: Tensor, half: Tensor, found: Spectrum) -> RankOne | None:
    """Return the rank-one edit, with its row normalisation, that makes W' of W; None if there is none.

    Shapes as in `audit.matrix`. Both sides of the matrix are tried, as some models store it transposed.
    """
    if found.rank == 0:
        return None
    slack = half + ARITHMETIC * after.abs()
    left, right = found.left[:, 0], found.right[:, 0]
    done: list[RankOne] = []
    if _reads(before, left, right):
        done += _fits(before, after, slack, left)
    if _reads(before.mT, right, left):
        done += [replace(fit, along="columns") for fit in _fits(before.mT, after.mT, slack.mT, right)]
    chosen = min(done, key=lambda each: each.error, default=None)
    return None if chosen is None or chosen.error > CONSISTENT else chosen


def _reads(rows: Tensor, left: Tensor, right: Tensor) -> bool:
    """Check that the first right singular vector of a change is about what W has along the left one, as in all edits."""
    inverse = _inverse(rows.norm(dim=1))
    taken = (left @ rows, (inverse.square() * left) @ rows)
    return any(abs(float(normalize(each, dim=0) @ right)) > 0.5 for each in taken)


def _fits(before: Tensor, after: Tensor, slack: Tensor, start: Tensor) -> list[RankOne]:
    """Fit every normalisation, and follow those that are nearly as good as the best."""
    fits = [_Fit(before, after, slack, normalization) for normalization in NORMALIZATIONS]
    first = [fit.run(start, rounds=2) for fit in fits]
    best = min(each.error for each in first)
    return [
        fit.run(one.direction, ROUNDS) if one.error > GOOD else one
        for fit, one in zip(fits, first, strict=True)
        if best <= 10 * CONSISTENT and one.error <= max(3 * best, GOOD)
    ]


@dataclass(frozen=True)
class _Fit:
    """Find v and λ of one row normalisation, alternating with what rounding leaves open."""

    before: Tensor
    after: Tensor
    slack: Tensor
    normalization: RowNormalization

    def run(self, direction: Tensor, rounds: int) -> RankOne:
        total = float((self.after - self.before).norm())
        scale = None if self.normalization == "none" else _inverse(self.before.norm(dim=1, keepdim=True))
        rows, latent = self.before if scale is None else scale * self.before, self.after
        low, high = self.after - self.slack, self.after + self.slack
        strength, error = 0.0, 1.0
        for _ in range(rounds):
            direction, strength = self._step(rows, latent if scale is None else scale * latent, direction)
            made = edited_weight(self.before, direction, strength, self.normalization)
            missed = made.clamp(low, high).sub_(made)
            error = float(missed.norm()) / total
            if not error > GOOD / 20:
                break
            latent = made.add_(missed, alpha=RELAXATION)
        return RankOne(direction, strength, self.normalization, "rows", error if error == error else 1.0)

    def _step(self, rows: Tensor, target: Tensor, direction: Tensor) -> tuple[Tensor, float]:
        """Solve target_i = α_i rows_i + β_i rowsᵀv for every row; then −λ v = β / α, with α = 1 unless full."""
        taken = direction @ rows
        size = (taken @ taken).clamp(min=1e-30)
        if self.normalization == "full":
            own, mixed = rows.square().sum(1), rows @ taken
            to_own, to_taken = (target * rows).sum(1), target @ taken
            determinant = (own * size - mixed.square()).clamp(min=1e-30)
            alpha = (to_own * size - to_taken * mixed) / determinant
            beta = (own * to_taken - mixed * to_own) / determinant
            # A row that vanishes under the edit has no α; it says nothing.
            removed = torch.where(alpha.abs() > 1e-3, -beta / alpha, 0)
        else:
            removed = (rows - target) @ taken / size
        sign = 1.0 if float(removed @ direction) >= 0 else -1.0
        return sign * normalize(removed, dim=0), sign * float(removed.norm())


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, 1 / norms.clamp(min=1e-30), 0)


def requantised(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Check that W' is W rounded to a coarser type, scaled or not, and stored as `dtype`; any shape, float32."""
    total = float((after - before).norm())
    for made in _roundings(before):
        made = made.to(dtype).float()
        if torch.equal(made, after) or float((made - after).norm()) <= 0.01 * total:
            return True
    return False


def _roundings(values: Tensor) -> Iterator[Tensor]:
    eights = (torch.float8_e4m3fn, torch.float8_e5m2)
    yield values
    for kind in (torch.bfloat16, torch.float16, *eights):
        yield values.to(kind).float()
    if values.ndim != 2:
        return
    for block in BLOCKS:
        if block > 1 and values.shape[1] % block:
            continue
        grouped = values.reshape(1, -1) if block == 0 else values.reshape(-1, block if block > 1 else values.shape[1])
        largest = grouped.abs().amax(1, keepdim=True).clamp(min=1e-30)
        for kind in eights:
            scale = largest / torch.finfo(kind).max
            yield ((grouped / scale).to(kind).float() * scale).reshape(values.shape)
        for limit in (127, 7):
            scale = largest / limit
            yield ((grouped / scale).round() * scale).reshape(values.shape)


def low_rank(found: Spectrum) -> bool:
    """Check that few singular values make the change, up to rounding."""
    few = 0 < found.rank <= min(len(found.left), len(found.right)) // 2 and not found.bounded
    return few and found.tail <= max(1.5 * found.noise, CONSISTENT * found.total)
