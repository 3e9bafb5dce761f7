"""Hypervolume of a front, by which searches are compared."""

import math
from collections.abc import Iterable


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the share of the rectangle from (0, 0) to `reference` that some point matches or beats in both objectives.

    Both are minimised: 1 means a point at (0, 0), 0 no point within the rectangle (Zitzler & Thiele 1998).

    Raises:
        ValueError: the reference is not positive and finite.
    """
    if not all(0 < limit < math.inf for limit in reference):
        raise ValueError(f"The reference must be positive and finite, not {reference}.")
    within = [(x / reference[0], y / reference[1]) for x, y in points if x < reference[0] and y < reference[1]]
    share, height = 0.0, 1.0
    for x, y in sorted((max(x, 0.0), max(y, 0.0)) for x, y in within):
        if y < height:
            share += (1 - x) * (height - y)
            height = y
    return share
