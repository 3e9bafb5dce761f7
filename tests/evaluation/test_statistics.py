"""Wilson intervals: published values, the equation they solve, and how often they hold the truth."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.evaluation.statistics import Count, wilson_interval

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Its mirror image.
        (20, 20, 0.8389, 1.0),
    ],
)
def test_published_values(count: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(count, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(n=st.integers(1, 1000))
def test_none_of_n_has_a_closed_form(n: int) -> None:
    z2 = NormalDist().inv_cdf(0.975) ** 2
    low, high = wilson_interval(0, n)
    assert low == 0
    assert high == pytest.approx(z2 / (n + z2))


@given(counted=counts, confidence=st.floats(0.5, 0.999))
def test_the_bounds_are_the_rates_that_lie_z_standard_errors_from_what_was_seen(
    counted: tuple[int, int], confidence: float
) -> None:
    count, n = counted
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for bound in wilson_interval(count, n, confidence):
        assert abs(count / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@given(counted=counts)
def test_the_interval_holds_the_rate_and_stays_between_zero_and_one(counted: tuple[int, int]) -> None:
    count, n = counted
    low, high = wilson_interval(count, n)
    assert 0 <= low <= count / n <= high <= 1
    assert low < high


@given(counted=counts)
def test_counting_the_others_mirrors_the_interval(counted: tuple[int, int]) -> None:
    count, n = counted
    low, high = wilson_interval(count, n)
    assert wilson_interval(n - count, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


@given(counted=counts)
def test_more_of_the_same_narrows_the_interval(counted: tuple[int, int]) -> None:
    count, n = counted
    (low, high), (lower, higher) = wilson_interval(4 * count, 4 * n), wilson_interval(count, n)
    assert high - low < higher - lower


@given(counted=counts)
def test_one_more_moves_both_bounds_up(counted: tuple[int, int]) -> None:
    count, n = counted
    if count < n:
        low, high = wilson_interval(count, n)
        next_low, next_high = wilson_interval(count + 1, n)
        assert low < next_low and high < next_high


@given(counted=counts, pair=st.tuples(st.floats(0.5, 0.99), st.floats(0.5, 0.99)))
def test_more_confidence_is_a_wider_interval(counted: tuple[int, int], pair: tuple[float, float]) -> None:
    (low, high), (lower, higher) = (wilson_interval(*counted, confidence) for confidence in sorted(pair))
    assert lower <= low and high <= higher


def test_nothing_counted_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    assert Count(0, 0).rate == 0


@pytest.mark.parametrize("n", [10, 20, 64, 100])
def test_the_interval_holds_the_truth_about_as_often_as_it_says(n: int) -> None:
    """Averaged over rates the Wilson interval covers 95 % (Agresti & Coull 1998), and nowhere less than 83 %."""
    intervals = [wilson_interval(count, n) for count in range(n + 1)]

    def coverage(rate: float) -> float:
        return sum(
            math.comb(n, count) * rate**count * (1 - rate) ** (n - count)
            for count, (low, high) in enumerate(intervals)
            if low <= rate <= high
        )

    covered = [coverage((i + 0.5) / 500) for i in range(500)]
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.012)
    assert min(covered) > 0.83


def test_a_count_knows_its_rate_interval_and_text() -> None:
    count = Count(5, 20)
    assert count.rate == 0.25
    assert count.interval == wilson_interval(5, 20)
    assert count.as_dict() == {"count": 5, "n": 20, "interval": list(wilson_interval(5, 20))}
    assert str(count) == "5/20"
