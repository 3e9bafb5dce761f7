"""What the quantisation of a GGUF type does to a matrix of the base, and what is on top of it.

Errors of such a rounding are spread evenly within a step, whatever an edit does, because the base's values lie between the
levels. So an edit much smaller than a step still shows in the sum over many values, up to a limit that can be stated.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from iconoclast.audit.matrix import Spectrum, spectrum

EXCESS = 1.5
"""Mean square of errors, over that of even ones within a step, that a type explains: scales are chosen, and ends are cut."""

RUN = 16
"""Values in a row that share a scale in all types with levels."""

FEWEST_TIES, LEAST_TIED = 50, 0.002
"""Pairs of equal values, and their share of a matrix, from which they tell something: bfloat16 has 0.7 % in a random matrix."""

Errors = Literal["same", "even", "parted"]
"""Errors that a type explains by their size: all that are equal in W are equal in W', or too few are, or some are not."""


@dataclass(frozen=True)
class Steps:
    """Steps to which a matrix is quantised.

    Attributes:
        half: half a step of every value.
        alone: whether W is as the quantiser saw it, and each value went to a level by itself.
    """

    half: Tensor
    alone: bool


def errors(before: Tensor, after: Tensor, steps: Steps) -> Errors | None:
    """Say what the errors of a quantised matrix are; None if they are larger than its type explains."""
    if not even(before, after, steps.half):
        return None
    kept = ties_kept(before, after)
    if kept is None or (kept < 1 and not steps.alone):
        return "even"
    return "same" if kept == 1 else "parted"


def times(before: Tensor, after: Tensor, half: Tensor) -> float:
    """Return the mean square of W' − W over that of even errors within a step; `half` is half a step of every value."""
    even = float(half.square().sum()) / 3
    return float((after - before).square().sum()) / max(even, 1e-38)


def noise(before: Tensor, after: Tensor, half: Tensor) -> Tensor:
    """Return `half`, wider where the matrix shows that scales were cut; it stands for `matrix.slack`."""
    wider: float = min(max(times(before, after, half), 1.0), EXCESS) ** 0.5
    return half * wider


def shrunk(before: Tensor, after: Tensor, rounding: Tensor) -> Spectrum:
    """Return the spectrum of what W' has beside a multiple of W.

    A coarse type with good scales takes from every value about as much as its errors' share in the squares: W' ≈ (1 − s) W.
    """
    size = float(before.square().sum())
    most = float(rounding.square().sum()) / 3 / max(size, 1e-38)
    taken = float(((after - before) * before).sum()) / max(size, 1e-38)
    return spectrum((1 + min(max(taken, -most), most)) * before, after, rounding, dithered=True)


def ties_kept(before: Tensor, after: Tensor) -> float | None:
    """Return the share of values that are equal in W, in one run that shares a scale, and equal in W'; None if too few are.

    Rounding to the levels of a scale gives equal values equal levels. An edit moves them by different amounts, and wherever
    a boundary between levels lies in between, they part: no error of rounding hides that.
    """
    if before.shape[1] % RUN:
        return None
    ties = kept = 0
    for w, x in zip(*(torch.split(each.reshape(-1, RUN), 1 << 13) for each in (before, after)), strict=True):
        ordered, places = w.sort(1)
        tied = (ordered.diff(dim=1) == 0) & (ordered[:, 1:] != 0)
        ties += int(tied.sum())
        kept += int((tied & (x.gather(1, places).diff(dim=1) == 0)).sum())
    return kept / ties if ties >= max(FEWEST_TIES, LEAST_TIED * before.numel()) else None


def even(before: Tensor, after: Tensor, half: Tensor) -> bool:
    """Check that errors are no larger than the type explains; whether a direction stands out is for the spectrum to say."""
    return bool(torch.isfinite(half).all()) and times(before, after, half) <= EXCESS
