"""What a change of a matrix is consistent with: the constructions that are known, made again from the weights alone."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import lstsq, qr
from torch.nn.functional import normalize

from iconoclast.audit.document import Normalization
from iconoclast.audit.matrix import Spectrum, largest
from iconoclast.audit.rank_one_fit import DITHERED, EVENLY, MARGIN, PARTLY, ROUNDED, ROUNDS, Fit, RankOne
from iconoclast.edits.edit import reciprocal
from iconoclast.vocabulary import NORMALIZATIONS

CONSISTENT = 0.05
"""Share of a change that a low-rank update may miss, beyond the rounding of the stored type."""

CERTAIN = 0.002
"""The same of a rank-one edit, below which no other side of the matrix is tried."""

FEW = 8
"""Part of a quantised matrix's smaller side that counts as few singular values: rounding hides the rest of a dense change."""

ALIKE = 0.3
"""Cosine from which a direction that an edit reads is taken to be of the kind of that which it writes."""

CHANCE = 3.0
"""Standard deviations of the cosine of two random directions that it must exceed."""

SMALLEST_CUT = 3
"""Rank that an update is taken to be cut to where rounding hides all but fewer of its values."""

LARGEST_CUT = 32
"""Highest rank that an update is taken to be cut to, as adapters do."""


def rank_one(before: Tensor, after: Tensor, slack: Tensor, found: Spectrum, alike: float = ALIKE) -> RankOne | None:
    """Return the rank-one edit, with its row normalisation, that makes W' of W, exactly or partly; None if there is none.

    Shapes as in `audit.matrix`. Both sides of the matrix are tried, as some models store it transposed. `alike` is the
    smallest cosine of a direction that is read and the one that is written; what chance would explain never counts.
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
        # An edit that reads another direction is freer, so it does not count as an explanation where one direction will do.
        apart = None if chosen is not None and chosen.exact else _read_apart(before, after, slack, found, alike)
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


def _read_apart(before: Tensor, after: Tensor, slack: Tensor, found: Spectrum, alike: float) -> RankOne | None:
    """Return the edit that writes less of one direction, as much as W has along another, if no rounding tells against it.

    Any change of rank one can be written so where W has full rank: the other direction must be of the first one's kind. What
    rows are divided by makes no difference then; it is written as for `pre`.
    """
    sides: tuple[tuple[_Along, _Matrices, Tensor, Tensor], ...] = (
        ("rows", (before, after, slack), found.left[:, 0], found.right[:, 0]),
        ("columns", (before.mT, after.mT, slack.mT), found.right[:, 0], found.left[:, 0]),
    )
    fits = filter(None, (_apart(*side, found, alike) for side in sides))
    return max(fits, key=lambda fit: fit.cosine, default=None)


def _apart(
    along: "_Along", matrices: "_Matrices", left: Tensor, right: Tensor, found: Spectrum, alike: float
) -> RankOne | None:
    """Find the best v, λ and r along one side, from the first singular directions of the change; None if they do not make it."""
    fit = Fit.of(*matrices, "pre", None, found.dithered)
    turned = Fit.of(fit.before.mT, fit.after.mT, fit.slack.mT, "none", None, found.dithered)
    norms = fit.norms[:, 0]
    removed, taken = -found.values[0] * reciprocal(norms) * left, right
    for _ in range(ROUNDS):
        removed, spread = fit.weighted(removed, taken)
        taken, variance = turned.weighted(taken, norms * removed)
    reading, reading_spread = _reading(fit.rows, taken, float(variance.mean()))
    v, r = normalize(removed, dim=0), normalize(reading, dim=0)
    cosine = float(v @ r)
    if abs(cosine) < max(alike, CHANCE / len(v) ** 0.5):
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
    inverse = reciprocal(rows.norm(dim=1))
    taken = (left @ rows, (inverse.square() * left) @ rows)
    return any(abs(float(normalize(each, dim=0) @ right)) > 0.5 for each in taken)


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
        inverse = reciprocal(norms)
        basis = qr(inverse * left).Q
        taken = basis.mT @ (inverse * before)
        made = norms * basis @ (lstsq(taken.mT, (basis.mT @ (inverse * change)).mT).solution.mT @ taken)
        missed = made - change
        if largest(missed) <= found.edge if found.dithered else float(missed.norm()) <= _tolerated(found):
            return True
    return False


def _tolerated(found: Spectrum) -> float:
    return max(ROUNDED * found.noise, CONSISTENT * found.total)
