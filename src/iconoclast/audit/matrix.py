"""One changed matrix: its singular values, and how much of it the rounding of the stored type explains.

W is the base's matrix and W' the edited one, both [d, k] in float32, as is `slack`: how far rounding can have moved W'.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import qr, svd
from torch.nn.functional import normalize

EXACT = 512
"""Smaller side up to which all singular values are computed."""

LARGE = 1 << 20
"""Entries of a matrix up to which all are computed, however narrow it is."""

PROBES = 64
"""Singular values computed of larger matrices (randomised; Halko, Martinsson and Tropp 2011)."""

POWER = 12
"""Iterations for the largest singular value."""

BLOCK = 1 << 17
"""Entries that are worked on at a time."""

ARITHMETIC = 8e-7
"""Relative rounding of an edit that is computed in float32."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of W' − W in falling order, with their directions [d, r] and [k, r].

    Attributes:
        total: ‖W' − W‖.
        edge: largest singular value that rounding alone can have.
        noise: norm of what rounding alone does.
        whole: whether these are all values.
        dithered: whether W lies between the levels to which W' is rounded, so that even small changes move some values.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    total: float
    edge: float
    noise: float
    whole: bool
    dithered: bool = False

    @property
    def rank(self) -> int:
        """Number of values that rounding does not explain."""
        return int((self.values > self.edge).sum())

    @property
    def bounded(self) -> bool:
        """True if there may be more such values than were computed."""
        return not self.whole and self.rank == len(self.values)

    @property
    def tail(self) -> float:
        """Norm of what is left without the values above the edge."""
        kept = float(self.values[: self.rank].double().square().sum())
        return float(max(self.total**2 - kept, 0.0) ** 0.5)

    def energy(self) -> dict[int, float]:
        """Return the share of ‖W' − W‖² in the first 1, 2, 4, … values."""
        shares = (self.values.double().square().cumsum(0) / max(self.total**2, 1e-300)).clamp(max=1)
        return {2**i: float(shares[2**i - 1]) for i in range(len(shares).bit_length()) if 2**i <= len(shares)}


def blocks(matrix: Tensor, columns: int | None = None) -> Sequence[Tensor]:
    """Split [d, k], or [d, 1] of one with so many columns, into few rows at a time, which stay in the processor's cache."""
    return torch.split(matrix, max(1, BLOCK // (columns or matrix.shape[1])))


def slack(before: Tensor, after: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how far the rounding of the stored type, and of the arithmetic, can have moved every entry of W'."""
    result = torch.empty_like(after)
    for w, x, out in zip(*(blocks(each) for each in (before, after, result)), strict=True):
        half = torch.ldexp(torch.full_like(x, torch.finfo(dtype).eps / 4), torch.frexp(x).exponent)
        torch.add(half, torch.maximum(w.abs(), x.abs()), alpha=ARITHMETIC, out=out)
    return result


def spectrum(before: Tensor, after: Tensor, slack: Tensor, dithered: bool = False) -> Spectrum:
    """Return the singular values and directions of W' − W."""
    variance = slack.square().div_(3)
    edge, noise = _edge(variance), float(variance.sum().sqrt())
    delta = torch.sub(after, before, out=variance)
    whole = min(delta.shape) <= EXACT and delta.numel() <= LARGE
    left, values, right = svd(delta, full_matrices=False) if whole else _randomised(delta)
    return Spectrum(values, left, right.mT, float(delta.norm()), edge, noise, whole, dithered)


def edge(slack: Tensor) -> float:
    """Return the largest singular value that rounding alone can have, with a margin."""
    return _edge(slack.square().div_(3))


def _edge(variance: Tensor) -> float:
    return 1.1 * float(variance.sum(0).max().sqrt() + variance.sum(1).max().sqrt())


def largest(matrix: Tensor) -> float:
    """Return about the largest singular value, by power iteration."""
    probe = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(0))
    for _ in range(POWER):
        probe = normalize(matrix.mT @ (matrix @ probe), dim=0)
    return float((matrix @ probe).norm())


def _randomised(delta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.randn(delta.shape[1], PROBES, generator=torch.Generator().manual_seed(0))
    basis = qr(delta @ random).Q
    for _ in range(2):
        basis = qr(delta @ qr(delta.mT @ basis).Q).Q
    right, small = qr(delta.mT @ basis)
    turned, values, left = svd(small, full_matrices=False)
    return basis @ left.mT, values, (right @ turned).mT
