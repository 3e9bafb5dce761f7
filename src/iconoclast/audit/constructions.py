"""What a change of a matrix is consistent with: the constructions that are known, made again from the weights alone."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import lstsq, qr
from torch.nn.functional import normalize

from iconoclast.audit.document import Normalization
from iconoclast.audit.matrix import Spectrum, blocks, largest
from iconoclast.vocabulary import NORMALIZATIONS

CONSISTENT = 0.05
"""Share of a change that a low-rank update may miss, beyond the rounding of the stored type."""

EXACTLY = 0.02
"""The same of a rank-one edit, whose two unknowns are found more exactly."""

CERTAIN = 0.002
"""The same below which no other side of the matrix is tried."""

PARTLY = 0.5
"""The same of a rank-one edit with other changes on top, such as training."""

ROUNDED = 1.8
"""Norm of a remainder, over that of one random rounding, up to which it is taken as rounding: a sum of models has three."""

DITHERED = 1.25
"""The same where rounding is known from the steps of a quantised type."""

EVENLY = 0.7
"""Norm of errors, over that of ones spread evenly within a step, below which the base's values lie on the levels themselves."""

SWAMPED = 3.0
"""The same of a whole change that says nothing but for a rank-one edit."""

FEW = 8
"""Part of a quantised matrix's smaller side that counts as few singular values: rounding hides the rest of a dense change."""

ALIKE = 0.3
"""Cosine from which a direction that an edit reads is taken to be of the kind of that which it writes."""

CHANCE = 3.0
"""Standard deviations of the cosine of random directions that it must be above at least."""

ROUNDS = 3
"""Times that a fit is weighted anew."""

SWALLOWED = 1.4
"""Half steps up to which an entry's change is taken as swallowed: ∫ (round(r) − r) / r dr from 0.7 steps on is about 0."""

MARGIN = 10.0
"""Standard errors that a bound is wide, as rounding is not quite random."""

FLOOR = 0.01
"""Share of a row's change that no entry is trusted beyond, however fine its type is there."""

SMALLEST_CUT = 3
"""Rank that an update is taken to be cut to where rounding hides all but fewer of its values."""

LARGEST_CUT = 32
"""Ranks that an edit is taken to be cut to, as adapters do."""


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


def rank_one(before: Tensor, after: Tensor, slack: Tensor, found: Spectrum) -> RankOne | None:
    """Return the rank-one edit, with its row normalisation, that makes W' of W, exactly or partly; None if there is none.

    Shapes as in `audit.matrix`. Both sides of the matrix are tried, as some models store it transposed.
    """
    if found.rank == 0:
        return None
    left, right = found.left[:, 0], found.right[:, 0]
    sides: list[_Side] = []
    if _reads(before, left, right):
        sides.append(("rows", (before, after, slack), left, found.right))
    if _reads(before.mT, right, left):
        sides.append(("columns", (before.mT, after.mT, slack.mT), right, found.left))
    chosen = _best(sides, found, None)
    if not _certain(chosen, found) and found.rank <= LARGEST_CUT:
        # An edit that reads another direction is freer, so it is no explanation where one direction will do.
        apart = None if chosen is not None and chosen.exact else _read_apart(before, after, slack, found)
        if not _certain(apart, found):
            cut = _best(sides, found, min(max(found.rank, SMALLEST_CUT), len(found.values)))
            apart = min(filter(None, (apart, cut)), key=lambda e: e.misfit, default=None)
        chosen = min(filter(None, (chosen, apart)), key=lambda e: e.misfit, default=None)
    return None if chosen is None or chosen.error > PARTLY else chosen


def _certain(fit: RankOne | None, found: Spectrum) -> bool:
    """Check that nothing else need be tried."""
    return fit is not None and (fit.exact if found.dithered else fit.error <= CERTAIN)


def _best(sides: list["_Side"], found: Spectrum, cut: int | None) -> RankOne | None:
    best: RankOne | None = None
    # Without restored norms an update has rank one, and nothing is cut.
    forms: tuple[Normalization, ...] = (*NORMALIZATIONS, "restored") if cut is None else ("full", "restored")
    for along, matrices, start, other in sides:
        for form in forms:
            kept = None if cut is None else other[:, :cut]
            fit = Fit.of(*matrices, form, kept, found.dithered).run(start, found)
            if best is None or fit.misfit < best.misfit:
                best = replace(fit, along=along, cut=cut)
        if best is not None and best.misfit < CERTAIN:
            return best  # the other side has no better one
    return best


def _read_apart(before: Tensor, after: Tensor, slack: Tensor, found: Spectrum) -> RankOne | None:
    """Return the edit that writes less of one direction, as much as W has along another, if no rounding tells against it.

    Any change of rank one can be written so where W has full rank: the other direction must be of the first one's kind. What
    rows are divided by makes no difference then; it is written as for `pre`.
    """
    sides: tuple[tuple[_Along, _Matrices, Tensor, Tensor], ...] = (
        ("rows", (before, after, slack), found.left[:, 0], found.right[:, 0]),
        ("columns", (before.mT, after.mT, slack.mT), found.right[:, 0], found.left[:, 0]),
    )
    fits = filter(None, (_apart(*side, found) for side in sides))
    return max(fits, key=lambda fit: fit.cosine, default=None)


def _apart(along: "_Along", matrices: "_Matrices", left: Tensor, right: Tensor, found: Spectrum) -> RankOne | None:
    """Find the best v, λ and r along one side, from the first singular directions of the change; None if they do not make it."""
    fit = Fit.of(*matrices, "pre", None, found.dithered)
    turned = Fit.of(fit.before.mT, fit.after.mT, fit.slack.mT, "none", None, found.dithered)
    norms = fit.norms[:, 0]
    removed, taken = -found.values[0] * _inverse(norms) * left, right
    for _ in range(ROUNDS):
        removed, spread = fit.weighted(removed, taken)
        taken, variance = turned.weighted(taken, norms * removed)
    reading, reading_spread = _reading(fit.rows, taken, float(variance.mean()))
    v, r = normalize(removed, dim=0), normalize(reading, dim=0)
    cosine = float(v @ r)
    if abs(cosine) < max(ALIKE, CHANCE / len(v) ** 0.5):
        return None
    error, misfit, exact = fit.judged(removed, reading @ fit.rows, found)
    if not exact:
        return None
    sizes = float(removed.norm()), float(reading.norm())
    known = not found.dithered or misfit * found.total >= EVENLY * found.noise
    return RankOne(
        v,
        (1.0 if cosine > 0 else -1.0) * sizes[0] * sizes[1],
        "pre",
        along,
        error,
        strength_error=MARGIN * reading_spread**0.5 / sizes[1] if known else None,
        direction_error=MARGIN * float(spread.sum()) / sizes[0] ** 2 / 2 if known else None,
        exact=True,
        misfit=misfit,
        reading=r if cosine > 0 else -r,
    )


def _reading(rows: Tensor, taken: Tensor, variance: float) -> tuple[Tensor, float]:
    """Solve rᵀ rows = taken for r [d], of whose entries only the size is known beforehand; return its variance along itself, too."""
    rows, taken = rows.double(), taken.double()
    square, mixed = rows @ rows.mT, rows @ taken
    if not bool(mixed.any()):
        return mixed.float(), 0.0
    size = float(mixed @ mixed / (mixed @ square @ mixed)) * float(mixed.norm())  # of the steepest step
    found, factor = mixed, square
    for _ in range(2):
        ridge = variance * len(rows) / max(size, 1e-30) ** 2 + 1e-9 * float(square.diagonal().mean())
        factor = torch.linalg.cholesky(square + ridge * torch.eye(len(rows), dtype=torch.float64))
        found = torch.cholesky_solve(mixed[:, None], factor)[:, 0]
        size = float(found.norm())
    along = normalize(found, dim=0)
    spread = variance * float(along @ torch.cholesky_solve(along[:, None], factor)[:, 0])
    return found.float(), spread


_Along = Literal["rows", "columns"]
"""Side of a matrix on which a direction lies."""

_Matrices = tuple[Tensor, Tensor, Tensor]
"""(W, W', slack), as `audit.matrix` has them, or turned."""

_Side = tuple[_Along, _Matrices, Tensor, Tensor]
"""(along, (W, W', slack), first singular direction of the change there, those of the other side)."""


def _reads(rows: Tensor, left: Tensor, right: Tensor) -> bool:
    """Check that the first right singular vector of a change is about what W has along the left one, as in all edits."""
    inverse = _inverse(rows.norm(dim=1))
    taken = (left @ rows, (inverse.square() * left) @ rows)
    return any(abs(float(normalize(each, dim=0) @ right)) > 0.5 for each in taken)


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
        norms = before.norm(dim=1, keepdim=True)
        if normalization in ("none", "restored"):
            norms = torch.ones_like(norms)
        rows = before if normalization in ("none", "restored") else _inverse(norms) * before
        return cls(before, after, slack, norms, rows, normalization, kept, dithered)

    @property
    def restores(self) -> bool:
        return self.normalization in ("full", "restored")

    def run(self, direction: Tensor, found: Spectrum) -> RankOne:
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
        inverse = _inverse(self.norms)[:, 0]
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
        inverse = _inverse(edited.norm(dim=1, keepdim=True))
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


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, 1 / norms.clamp(min=1e-30), 0)


def low_rank(found: Spectrum) -> bool:
    """Check that few singular values make the change, up to rounding."""
    most = min(len(found.left), len(found.right)) // (FEW if found.dithered else 2)
    few = 0 < found.rank <= most and not found.bounded
    return few and found.tail <= (DITHERED * found.noise if found.dithered else _tolerated(found))


def several(before: Tensor, after: Tensor, found: Spectrum) -> bool:
    """Check that W' = W − n⊙U M Uᵀn⁻¹W, with n of ones or the row norms: several directions are weakened, as by a merge."""
    if not (low_rank(found) and 1 < found.rank <= LARGEST_CUT):
        return False
    left, right = found.left[:, : found.rank], found.right[:, : found.rank]
    return _of_itself(before, after, left, found) or _of_itself(before.mT, after.mT, right, found)


def _of_itself(before: Tensor, after: Tensor, left: Tensor, found: Spectrum) -> bool:
    """Check that the change writes in the span of few directions what W has along them."""
    change = after - before
    ones = torch.ones(len(before), 1)
    for norms in (ones, before.norm(dim=1, keepdim=True)):
        inverse = _inverse(norms)
        basis = qr(inverse * left).Q
        taken = basis.mT @ (inverse * before)
        made = norms * basis @ (lstsq(taken.mT, (basis.mT @ (inverse * change)).mT).solution.mT @ taken)
        missed = made - change
        if largest(missed) <= found.edge if found.dithered else float(missed.norm()) <= _tolerated(found):
            return True
    return False


def _tolerated(found: Spectrum) -> float:
    return max(ROUNDED * found.noise, CONSISTENT * found.total)
