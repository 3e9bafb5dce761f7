"""What a change of a matrix is consistent with: the constructions that are known, made again from the weights alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.matrix import Spectrum, blocks
from iconoclast.vocabulary import NORMALIZATIONS, RowNormalization

CONSISTENT = 0.05
"""Share of a change that a low-rank update may miss, beyond the rounding of the stored type."""

EXACTLY = 0.02
"""The same of a rank-one edit, whose two unknowns are found more exactly."""

ROUNDS = 3
"""Times that a fit is weighted anew."""

SWALLOWED = 1.4
"""Half steps up to which an entry's change is taken as swallowed: ∫ (round(r) − r) / r dr from 0.7 steps on is about 0."""

MARGIN = 10.0
"""Standard errors that a bound is wide, as rounding is not quite random."""

FLOOR = 0.01
"""Share of a row's change that no entry is trusted beyond, however fine its type is there."""

SAMPLED_ROWS = 16
"""Rows that are compared with roundings before all are."""

BLOCKS = (0, 1, 32, 64, 128)
"""Values that share a scale when weights are quantised: 0 for the whole tensor, 1 for a row, else so many of a row."""


@dataclass(frozen=True)
class RankOne:
    """An edit that makes W' of W up to rounding; the sign of the direction is free.

    Attributes:
        direction: unit, [d] or [k] along columns.
        error: ‖what it misses‖ / ‖W' − W‖, beyond rounding.
        strength_error: bound of the strength's relative error that rounding leaves, `MARGIN` standard errors.
        direction_error: the same of 1 − |cosine| between the direction and the true one.
    """

    direction: Tensor
    strength: float
    row_normalization: RowNormalization
    along: Literal["rows", "columns"]
    error: float
    strength_error: float
    direction_error: float


def rank_one(before: Tensor, after: Tensor, slack: Tensor, found: Spectrum) -> RankOne | None:
    """Return the rank-one edit, with its row normalisation, that makes W' of W; None if there is none.

    Shapes as in `audit.matrix`. Both sides of the matrix are tried, as some models store it transposed.
    """
    if found.rank == 0:
        return None
    left, right = found.left[:, 0], found.right[:, 0]
    done: list[RankOne] = []
    if _reads(before, left, right):
        done += _fits(before, after, slack, left)
    if _reads(before.mT, right, left):
        done += [replace(fit, along="columns") for fit in _fits(before.mT, after.mT, slack.mT, right)]
    chosen = min(done, key=lambda each: each.error, default=None)
    return None if chosen is None or chosen.error > EXACTLY else chosen


def _reads(rows: Tensor, left: Tensor, right: Tensor) -> bool:
    """Check that the first right singular vector of a change is about what W has along the left one, as in all edits."""
    inverse = _inverse(rows.norm(dim=1))
    taken = (left @ rows, (inverse.square() * left) @ rows)
    return any(abs(float(normalize(each, dim=0) @ right)) > 0.5 for each in taken)


def _fits(before: Tensor, after: Tensor, slack: Tensor, start: Tensor) -> list[RankOne]:
    return [_Fit.of(before, after, slack, normalization).run(start) for normalization in NORMALIZATIONS]


@dataclass(frozen=True)
class _Fit:
    """Find v and λ of one row normalisation, from the entries that rounding has not swallowed.

    Attributes:
        slack: how far rounding can have moved W', [d, k].
        norms: row norms n, [d, 1]; ones without normalisation.
        rows: n⁻¹ W.
    """

    before: Tensor
    after: Tensor
    slack: Tensor
    norms: Tensor
    rows: Tensor
    normalization: RowNormalization

    @classmethod
    def of(cls, before: Tensor, after: Tensor, slack: Tensor, normalization: RowNormalization) -> "_Fit":
        norms = before.norm(dim=1, keepdim=True)
        if normalization == "none":
            norms = torch.ones_like(norms)
        rows = before if normalization == "none" else _inverse(norms) * before
        return cls(before, after, slack, norms, rows, normalization)

    def run(self, direction: Tensor) -> RankOne:
        for _ in range(2):
            direction, strength = _oriented(self._solved(direction), direction)
        variance = torch.zeros_like(direction)
        for _ in range(ROUNDS):
            removed, variance = self._weighted(direction, strength)
            direction, strength = _oriented(removed, direction)
        error, size = self._missed(direction, strength), max(abs(strength), 1e-30)
        return RankOne(
            direction,
            strength,
            self.normalization,
            "rows",
            error if error == error else 1.0,
            strength_error=MARGIN * float((direction.square() @ variance).sqrt()) / size,
            direction_error=MARGIN * float(variance.sum()) / size**2 / 2,
        )

    def _blocks(self, removed: Tensor) -> Iterator[tuple["_Fit", Tensor]]:
        """Yield few rows at a time, and their entries of λv [d, 1]."""
        parts = (self.before, self.after, self.slack, self.norms, self.rows, removed[:, None])
        split = (blocks(each, self.before.shape[1]) for each in parts)
        for before, after, slack, norms, rows, entries in zip(*split, strict=True):
            yield _Fit(before, after, slack, norms, rows, self.normalization), entries

    def _missed(self, direction: Tensor, strength: float) -> float:
        """Return the norm of what W' is beyond its rounding, relative to the change."""
        taken, squares, total = direction @ self.rows, 0.0, 0.0
        for block, removed in self._blocks(strength * direction):
            missed = block._made(removed, taken)[0].sub_(block.after).abs_().sub_(block.slack).clamp_(min=0)
            squares += float(missed.square_().sum())
            total += float((block.after - block.before).square_().sum())
        return float((squares / total) ** 0.5)

    def _solved(self, direction: Tensor) -> Tensor:
        """Solve W'_i = α_i W_i − β_i n_i vᵀn⁻¹W for every row, rounding aside; return β / α, with α = 1 unless full."""
        taken = direction @ self.rows
        size = (taken @ taken).clamp(min=1e-30)
        inverse = _inverse(self.norms)[:, 0]
        to_taken = inverse * (self.after @ taken)
        mixed = self.rows @ taken
        if self.normalization != "full":
            return (mixed - to_taken) / size
        own = self.rows.norm(dim=1).square()
        to_own = inverse * torch.einsum("ij,ij->i", self.after, self.rows)
        determinant = (own * size - mixed.square()).clamp(min=1e-30)
        alpha = (to_own * size - to_taken * mixed) / determinant
        beta = (own * to_taken - mixed * to_own) / determinant
        # A row that vanishes under the edit has no α; it says nothing.
        return torch.where(alpha.abs() > 1e-3, -beta / alpha, 0)

    def _weighted(self, direction: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Return λv after one step of Gauss and Newton, and its variance, [d] each."""
        removed, taken = strength * direction, direction @ self.rows
        steps = [block._stepped(entries, taken) for block, entries in self._blocks(removed)]
        step, variance = (torch.cat(each) for each in zip(*steps, strict=True))
        return removed + step, variance

    def _stepped(self, removed: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Return the step of λv [d, 1], and its variance, [d] each.

        Where the edit is less than half a step of the stored type, an entry says only that it has stayed, or not. Elsewhere
        rounding is as good as random. Every entry counts by how fine the type is there.
        """
        made, slope = self._made(removed, taken)
        change = made - self.before
        floor = (FLOOR**2) * change.square().mean(1, keepdim=True)
        precision = (self.slack.square() / 3).add_(floor).clamp_(min=1e-38).reciprocal_()
        missed = made.neg_().add_(self.after)
        beyond = missed - torch.clamp(missed, -self.slack, self.slack)
        swallowed = change.abs_() < SWALLOWED * self.slack
        missed = torch.where(swallowed, beyond, missed)
        precision.mul_(swallowed.logical_not_().logical_or_(beyond != 0))
        gain = precision * slope
        size = (gain * slope).sum(1)
        step = torch.where(size > 0, (gain * missed).sum(1) / size, 0)
        # Where more is missed than rounding explains, by so much less is known.
        excess = (precision.mul_(missed.square_()).sum(1) / (gain != 0).sum(1).clamp(min=1)).clamp(min=1)
        return step, torch.where(size > 0, excess / size, removed[:, 0].square())

    def _made(self, removed: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Return W' for λv, and its derivative by every row's entry of it, [d, k] or broadcast to it."""
        if self.normalization != "full":
            slope = -self.norms * taken
            return self.before + removed * slope, slope
        edited = self.rows - removed * taken
        inverse = _inverse(edited.norm(dim=1, keepdim=True))
        along = inverse.square() * (edited @ taken)[:, None]
        scale = self.norms * inverse
        return scale * edited, (along * edited).sub_(taken).mul_(scale)


def _oriented(removed: Tensor, direction: Tensor) -> tuple[Tensor, float]:
    """Return v and λ of λv, with v on the side of `direction`."""
    sign = 1.0 if float(removed @ direction) >= 0 else -1.0
    return sign * normalize(removed, dim=0), sign * float(removed.norm())


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, 1 / norms.clamp(min=1e-30), 0)


def requantised(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Check that W' is W rounded to a coarser type, scaled or not, and stored as `dtype`; any shape, float32."""
    largest = float(torch.stack(before.aminmax()).abs().max())
    if before.ndim == 2 and len(before) > SAMPLED_ROWS:
        # A rounding touches every row alike: few rows tell most others apart.
        few = torch.linspace(0, len(before) - 1, SAMPLED_ROWS).long()
        if not _rounded(before[few], after[few], dtype, largest):
            return False
    return _rounded(before, after, dtype, largest)


def _rounded(before: Tensor, after: Tensor, dtype: torch.dtype, largest: float) -> bool:
    total = float((after - before).norm())
    for made in _roundings(before, largest):
        made = made.to(dtype).float()
        if torch.equal(made, after) or float((made - after).norm()) <= 0.01 * total:
            return True
    return False


def _roundings(values: Tensor, top: float) -> Iterator[Tensor]:
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
        largest = torch.tensor([[top]]) if block == 0 else grouped.abs().amax(1, keepdim=True)
        largest = largest.clamp(min=1e-30)
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
