"""The weighted fit of one rank-one edit to an edited matrix, from the entries that rounding has not swallowed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.document import Normalization
from iconoclast.audit.matrix import Spectrum, blocks, largest
from iconoclast.edits.edit import reciprocal

EXACTLY = 0.02
"""Share of a change that a rank-one edit may miss, beyond the rounding of the stored type."""

PARTLY = 0.5
"""The same of a rank-one edit with other changes on top, such as training."""

ROUNDED = 1.8
"""Norm of a remainder, over that of one random rounding, up to which it is taken as rounding: a sum of models has three."""

DITHERED = 1.25
"""The same where rounding is known from the steps of a quantised type."""

EVENLY = 0.7
"""Norm of errors, over that of ones spread evenly within a step, below which the base's values lie on the levels themselves."""

SWAMPED = 3.0
"""Norm of a change, over that of one random rounding, up to which it says nothing but for a rank-one edit."""

ROUNDS = 3
"""Times that a fit is weighted anew."""

SWALLOWED = 1.4
"""Half steps up to which an entry's change is taken as swallowed: ∫ (round(r) − r) / r dr from 0.7 steps on is about 0."""

MARGIN = 10.0
"""Standard errors that a bound is wide, as rounding is not quite random."""

FLOOR = 0.01
"""Share of a row's change that no entry is trusted beyond, however fine its type is there."""


@dataclass(frozen=True)
class RankOne:
    """An edit that makes W' of W up to rounding; the sign of the direction is free.

    Attributes:
        direction: unit, [d] or [k] along columns.
        cut: rank to which the update is cut, as adapters do where row norms are restored; None if it is whole.
        error: ‖what it misses‖ / ‖W' − W‖, beyond rounding.
        exact: whether what it misses is little, or as random as rounding, so that there is no other change on top.
        misfit: by which edits are compared: `error` or, where rounding hides it, all that is missed over the change.
        reading: unit, [d] or [k], along which it takes what `direction` writes less of; None if they are one.
        strength_error: bound of the strength's relative error that rounding leaves, `MARGIN` standard errors; None if W lies on
            the levels of W', which then have swallowed a part of the edit that nobody knows: it is stronger.
        direction_error: the same of 1 − |cosine| between the direction and the true one.
    """

    direction: Tensor
    strength: float
    row_normalization: Normalization
    along: Literal["rows", "columns"]
    error: float
    strength_error: float | None
    direction_error: float | None
    exact: bool
    misfit: float
    cut: int | None = None
    reading: Tensor | None = None

    @property
    def cosine(self) -> float:
        """Cosine between what it writes and what it reads."""
        return 1.0 if self.reading is None else float(self.direction @ self.reading)


@dataclass(frozen=True)
class Fit:
    """Find v and λ of one row normalisation, from the entries that rounding has not swallowed.

    Attributes:
        slack: how far rounding can have moved W', [d, k].
        norms: row norms n, [d, 1]; ones without normalisation.
        rows: n⁻¹ W.
        kept: orthonormal [k, r], to whose span the update is cut; None if it is whole.
        dithered: as in `Spectrum`; then no entry's change is swallowed.
    """

    before: Tensor
    after: Tensor
    slack: Tensor
    norms: Tensor
    rows: Tensor
    normalization: Normalization
    kept: Tensor | None
    dithered: bool

    @classmethod
    def of(
        cls,
        before: Tensor,
        after: Tensor,
        slack: Tensor,
        normalization: Normalization,
        kept: Tensor | None,
        dithered: bool,
    ) -> "Fit":
        """Prepare a fit of W' [d, k] to W [d, k] under a row normalisation."""
        norms = before.norm(dim=1, keepdim=True)
        if normalization in ("none", "restored"):
            norms = torch.ones_like(norms)
        rows = before if normalization in ("none", "restored") else reciprocal(norms) * before
        return cls(before, after, slack, norms, rows, normalization, kept, dithered)

    @property
    def restores(self) -> bool:
        """True if rows get their norms back."""
        return self.normalization in ("full", "restored")

    def run(self, direction: Tensor, found: Spectrum) -> RankOne:
        """Return the edit of least squares, from a first guess of its direction [d]."""
        for _ in range(2):
            direction, strength = _oriented(self._solved(direction), direction)
        variance = torch.zeros_like(direction)
        for _ in range(ROUNDS):
            removed, variance = self.weighted(strength * direction, direction @ self.rows)
            direction, strength = _oriented(removed, direction)
        error, misfit, exact = self.judged(strength * direction, direction @ self.rows, found)
        size = max(abs(strength), 1e-30)
        known = not self.dithered or misfit * found.total >= EVENLY * found.noise
        return RankOne(
            direction,
            strength,
            self.normalization,
            "rows",
            error,
            strength_error=MARGIN * float((direction.square() @ variance).sqrt()) / size if known else None,
            direction_error=MARGIN * float(variance.sum()) / size**2 / 2 if known else None,
            exact=exact,
            misfit=misfit,
        )

    def _blocks(self, removed: Tensor) -> Iterator[tuple["Fit", Tensor]]:
        """Yield few rows at a time, and their entries of λv [d, 1]."""
        parts = (self.before, self.after, self.slack, self.norms, self.rows, removed[:, None])
        split = (blocks(each, self.before.shape[1]) for each in parts)
        for before, after, slack, norms, rows, entries in zip(*split, strict=True):
            yield replace(self, before=before, after=after, slack=slack, norms=norms, rows=rows), entries

    def judged(self, removed: Tensor, taken: Tensor, found: Spectrum) -> tuple[float, float, bool]:
        """Return `error`, `misfit` and `exact` of an edit: λv [d], and what it reads of the rows [k]."""
        if not self.dithered:
            error = self._missed(removed, taken)
            error = error if error == error else 1.0
            if error <= EXACTLY or error > PARTLY:
                return error, error, error <= EXACTLY
        missed = self._made(removed[:, None], taken)[0].sub_(self.after)
        if not self.dithered:
            return error, error, _is_rounding(missed, found)
        left, noise, total = float(missed.norm()), found.noise, found.total
        error = (max(left**2 - noise**2, 0.0) / max(total**2 - noise**2, 1e-30)) ** 0.5
        exact = largest(missed) <= found.edge and left <= DITHERED * noise
        return min(error, 1.0), left / total, exact

    def _missed(self, removed: Tensor, taken: Tensor) -> float:
        """Return the norm of what W' is beyond its rounding, relative to the change."""
        squares, total = 0.0, 0.0
        for block, entries in self._blocks(removed):
            missed = block._made(entries, taken)[0].sub_(block.after).abs_().sub_(block.slack).clamp_(min=0)
            squares += float(missed.square_().sum())
            total += float((block.after - block.before).square_().sum())
        return float((squares / total) ** 0.5)

    def _solved(self, direction: Tensor) -> Tensor:
        """Solve W'_i = α_i W_i − β_i n_i vᵀn⁻¹W for every row, rounding aside.

        Return β / α, with α = 1 unless norms are restored.
        """
        rows, after = (each if self.kept is None else each @ self.kept for each in (self.rows, self.after))
        taken = direction @ rows
        size = (taken @ taken).clamp(min=1e-30)
        inverse = reciprocal(self.norms)[:, 0]
        to_taken = inverse * (after @ taken)
        mixed = rows @ taken
        if not self.restores:
            return (mixed - to_taken) / size
        own = rows.norm(dim=1).square()
        to_own = inverse * torch.einsum("ij,ij->i", after, rows)
        determinant = (own * size - mixed.square()).clamp(min=1e-30)
        alpha = (to_own * size - to_taken * mixed) / determinant
        beta = (own * to_taken - mixed * to_own) / determinant
        # A row that vanishes under the edit has no α; it says nothing.
        return torch.where(alpha.abs() > 1e-3, -beta / alpha, 0)

    def weighted(self, removed: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Return λv after one step of Gauss and Newton, and its variance, [d] each."""
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
        if not self.dithered:
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
        if not self.restores:
            slope = -self.norms * taken
            return self.before + removed * slope, slope
        edited = self.rows - removed * taken
        inverse = reciprocal(edited.norm(dim=1, keepdim=True))
        along = inverse.square() * (edited @ taken)[:, None]
        scale = self.before.norm(dim=1, keepdim=True) * inverse
        made, slope = scale * edited, (along * edited).sub_(taken).mul_(scale)
        if self.kept is None:
            return made, slope
        return self.before + self._cut(made - self.before), self._cut(slope)

    def _cut(self, update: Tensor) -> Tensor:
        assert self.kept is not None
        return update @ self.kept @ self.kept.mT


def _is_rounding(missed: Tensor, found: Spectrum) -> bool:
    """Check that what W' has beside an edit is as small as few roundings, and no direction in it stands out."""
    times = float(missed.norm()) / max(found.noise, 1e-30)
    if found.total <= SWAMPED * found.noise or times > ROUNDED:
        return False
    return largest(missed) <= max(times, 1.0) * found.edge


def _oriented(removed: Tensor, direction: Tensor) -> tuple[Tensor, float]:
    """Return v and λ of λv, with v on the side of `direction`."""
    sign = 1.0 if float(removed @ direction) >= 0 else -1.0
    return sign * normalize(removed, dim=0), sign * float(removed.norm())
