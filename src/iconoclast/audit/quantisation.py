"""What the quantisation of a GGUF type does to a matrix of the base, and what is on top of it.

Errors of such a rounding are spread evenly within a step, whatever an edit does, because the base's values lie between the
levels. So an edit much smaller than a step still shows in the sum over many values, up to a limit that can be stated.
"""

import torch
from torch import Tensor

from iconoclast.audit.matrix import Spectrum, spectrum

EXCESS = 1.5
"""Mean square of errors, over that of even ones within a step, that a type explains: scales are chosen, and ends are cut."""


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


def even(before: Tensor, after: Tensor, half: Tensor) -> bool:
    """Check that errors are no larger than the type explains; whether a direction stands out is for the spectrum to say."""
    return bool(torch.isfinite(half).all()) and times(before, after, half) <= EXCESS
