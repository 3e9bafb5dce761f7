"""Intervals for counted things."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any


@dataclass(frozen=True)
class Count:
    """`count` of `n`, with its 95 % interval."""

    count: int
    n: int

    @property
    def rate(self) -> float:
        """count / n; 0 if there is nothing."""
        return self.count / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the rate (Wilson 1927)."""
        return wilson_interval(self.count, self.n)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"count": self.count, "n": self.n, "interval": list(self.interval)}

    def __str__(self) -> str:
        return f"{self.count}/{self.n}"


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of count / n; (0, 1) if there is nothing to go by."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not put it outside.
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)
