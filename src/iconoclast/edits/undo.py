"""An edit undone from its record alone: W of W', and how far the rounding of W' leaves it open.

Names and shapes as in `edits.edit`. What the edit reads of W' is (1 − λ rᵀv) times what it has read of W, so that W follows
unless the edit removes all of it. Where rows were scaled by their norms, which W' does not tell or has got back, these and
what is read are solved for together (Anderson 1965).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from iconoclast.edits.edit import Edit, EditError, reciprocal
from iconoclast.vocabulary import Site

STEPS = 200
"""Steps of the solution at most."""

KEPT = 12
"""Steps that the next one is made of where there is one solution."""

SETTLED = 1e-8
"""Relative step at which the solution is found."""

LARGEST = 0.99
"""Squared share of a row's norm that the edit has taken, at most."""

CERTAIN = 0.25
"""The same where there can be several solutions: of an edit that reverses its direction, or reads another one."""

MARGIN = 2.0
"""Times that the stated error is what random rounding makes on average."""


@dataclass(frozen=True)
class Undone:
    """W of one matrix [d, k], float32.

    Attributes:
        error: ‖W − the true one‖ (Frobenius), at most, as far as rounding is random.
        lost: share of what the edit took that rounding hides, at most; from 1 on W is no nearer to the true one than W'.
        amplified: times that the edit's inverse makes what it reads of a rounding, 1 / |1 − λ rᵀv|.
    """

    weight: Tensor
    error: float
    lost: float
    amplified: float


def undone(edit: Edit, site: Site, edited: Tensor, half: Tensor) -> Undone:
    """Return the matrix that `edit` has made `edited` [d, k] of.

    Args:
        half: how far rounding can have moved every entry of it, [d, k].

    Raises:
        EditError: the edit is of another size, or has removed all that it reads, or so much that row norms do not follow.
    """
    v, r, strength = edit.directions[site], edit.reading(site), edit.strengths[site]
    if not v.shape == r.shape == edited.shape[:1]:
        raise EditError(f"its direction has {len(v)} entries, and the matrix {len(edited)} rows")
    left = 1 - strength * float(r @ v)
    if abs(left) < 1e-6:
        raise EditError("it has removed all of its direction, and what that was is not in the file")
    if edit.row_normalization == "none":
        norms, outward = torch.ones(len(edited)), strength * v
        weight = edited + torch.outer(outward, r @ edited / left)
    else:
        scales, norms, read = (each.float() for each in _Rows(edit, site, edited).solved())
        outward = strength * norms * v
        weight = scales[:, None] * edited + torch.outer(outward, read)
    variance = half.square() / 3
    along = float(outward.square().sum() * ((reciprocal(norms) * r / left).square() @ variance.sum(1)))
    error = MARGIN * (2 * float(variance.sum()) + along) ** 0.5  # W is rounded as well
    taken = max(float((weight - edited).norm()), torch.finfo(torch.float32).tiny)
    return Undone(weight, error, MARGIN * along**0.5 / taken, 1 / abs(left))


class _Rows:
    """The equations of the row norms n, the scales s [d] and what is read of W, u = rᵀŴ [k]: W = s W' + λ (n⊙v) uᵀ.

    With `pre` s is 1 and ‖W'_i + λ n_i v_i u‖ = n_i; with `full` n is ‖W'_i‖ and ‖s_i W'_i / n_i + λ v_i u‖ = 1. There is one
    solution, unless the edit reverses its direction or reads another one: then only one that plain iteration leads to is taken.
    """

    def __init__(self, edit: Edit, site: Site, edited: Tensor) -> None:
        self.edited = edited.double()
        self.sizes = self.edited.norm(dim=1)
        self.taken = edit.strengths[site] * edit.directions[site].double()
        self.reading = edit.reading(site).double()
        self.left = 1 - float(self.taken @ self.reading)
        self.restored = edit.row_normalization == "full"
        self.kept, self.most = (KEPT, LARGEST) if self.left > 0 and site not in edit.readings else (0, CERTAIN)

    def solved(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return s, n, u; raise EditError if they are not to be found."""
        read = torch.zeros_like(self.edited[0])
        reads: list[Tensor] = []
        steps: list[Tensor] = []
        for _ in range(STEPS):
            scales, norms, inside = self._of_rows(read)
            step = (reciprocal(norms) * scales * self.reading) @ self.edited / self.left - read
            if inside and float(step.norm()) <= SETTLED * float(read.norm()):
                return scales, norms, read
            reads, steps = [*reads, read][-1 - self.kept :], [*steps, step][-1 - self.kept :]
            read = read + step
            if len(steps) > 1:
                moved, changed = (torch.stack(each).diff(dim=0) for each in (reads, steps))
                read = read - torch.linalg.lstsq(changed.mT, step[:, None]).solution[:, 0] @ (moved + changed)
        raise EditError("too little is left of its direction for the row norms to follow from the file")

    def _of_rows(self, read: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Return s and n for what is read, and whether every row keeps enough of itself."""
        size = self.taken.square() * (read @ read)
        inside, size = bool((size < self.most).all()), size.clamp(max=self.most)
        across = self.taken * (self.edited @ read)
        if self.restored:
            half = reciprocal(self.sizes) * across
            return (half.square() + 1 - size).sqrt() - half, self.sizes, inside
        norms = (across + (across.square() + (1 - size) * self.sizes.square()).sqrt()) / (1 - size)
        return torch.ones_like(norms), norms, inside
