"""Statistics of counts and measurements: bootstrap intervals (fixed seed), paired tests, agreement."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence, Sized
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray
from iconoclast.documents import Value
from iconoclast.scores import Mean

CHANCE = 0.05
"""Probability from which a difference is not told from chance."""
BOOTSTRAP_SAMPLES = 10_000
"""Resamples of a bootstrap: from seed to seed its 95 % bounds then vary by less than a hundredth of the interval."""


@dataclass(frozen=True)
class McNemar(Value):
    """The change in how many of the same items have some property.

    Attributes:
        only_before: items that had it before and not after.
        only_after: items that have it after and had not before.
        p_value: two-sided; the probability of a split at least as uneven if both ways are equally likely.
    """

    only_before: int
    only_after: int
    p_value: float


@dataclass(frozen=True)
class PairedDifference(Value):
    """A mean difference between two measurements of the same items.

    Attributes:
        value: mean of second - first.
        n: number of items.
        interval: 95 % interval of the mean.
        p_value: two-sided, against a mean of 0.
    """

    value: float
    n: int
    interval: tuple[float, float]
    p_value: float


def mean_interval(values: Sequence[float], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0) -> Mean:
    """Return the mean with its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    It needs no normal distribution, but some dozens of values: with a few skewed ones it is too narrow.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    return Mean(fmean(values), len(values), _middle(_resampled_means(values, samples, seed)))


def paired_bootstrap(
    first: Sequence[float], second: Sequence[float], samples: int = BOOTSTRAP_SAMPLES, seed: int = 0
) -> PairedDifference:
    """Return the mean of second - first over the same items, with its 95 % percentile bootstrap interval and p-value.

    The p-value is twice the share of resampled means on the other side of 0, with the observed one included so that it
    is at least 2 / (samples + 1) (Davison & Hinkley 1997, section 4.2).

    Raises:
        ValueError: the sequences are empty or differ in length, or a value is not finite.
    """
    _require_pairs(first, second)
    differences = [b - a for a, b in zip(first, second, strict=True)]
    means = _resampled_means(differences, samples, seed)
    other_side = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (other_side + 1) / (samples + 1))
    return PairedDifference(fmean(differences), len(differences), _middle(means), p_value)


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> McNemar:
    """Run McNemar's exact test, a binomial test of the items that changed (McNemar 1947); without changes p is 1.

    Raises:
        ValueError: the sequences are empty or differ in length.
    """
    _require_pairs(before, after)
    changes = Counter((bool(a), bool(b)) for a, b in zip(before, after, strict=True))
    only_before, only_after = changes[True, False], changes[False, True]
    changed = only_before + only_after
    tail = sum(math.comb(changed, k) for k in range(min(only_before, only_after) + 1))
    return McNemar(only_before, only_after, min(1.0, 2 * tail / 2**changed))


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Return agreement beyond chance, at most 1 (Cohen 1960); None where both raters give only one and the same label.

    Raises:
        ValueError: the sequences are empty or differ in length.
    """
    _require_pairs(first, second)
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True))
    labels = Counter(first), Counter(second)
    by_chance = sum(count * labels[1][label] for label, count in labels[0].items())  # n² times the share
    return None if by_chance == n * n else (n * agreed - by_chance) / (n * n - by_chance)


def _require_pairs(first: Sized, second: Sized) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"Two sequences of the same length are needed, with something in them; these hold {len(first)} and {len(second)}."
        )


def _resampled_means(values: Sequence[float], samples: int, seed: int) -> "NDArray[numpy.float64]":
    """Return `samples` means of as many values drawn with replacement."""
    import numpy

    array = numpy.asarray(values, dtype=numpy.float64)
    if not array.size or not numpy.isfinite(array).all():
        raise ValueError("One value at least is needed, and only finite ones.")
    random = numpy.random.default_rng(seed)
    return numpy.array([array[random.integers(0, array.size, array.size)].mean() for _ in range(samples)])


def _middle(means: "NDArray[numpy.float64]") -> tuple[float, float]:
    import numpy

    low, high = numpy.quantile(means, [0.025, 0.975])
    return float(low), float(high)
