"""Statistics against published values, closed forms and other programs, and by what must hold for any numbers."""

import itertools
import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist, fmean, pstdev
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import contingency_tables, inter_rater

from iconoclast.evaluation.intervals import cohen_kappa, mcnemar, mean_interval, paired_bootstrap
from iconoclast.scores import Count, wilson_interval

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
numbers = st.floats(-1e3, 1e3, allow_subnormal=False)
paired_numbers = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=30)
paired_answers = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
paired_labels = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=60)


def columns(pairs: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    return [a for a, _ in pairs], [b for _, b in pairs]


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
def test_the_bounds_lie_z_standard_errors_from_the_rate(counted: tuple[int, int], confidence: float) -> None:
    count, n = counted
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for bound in wilson_interval(count, n, confidence):
        assert abs(count / n - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), abs=1e-9)


@given(counted=counts)
def test_the_interval_holds_the_rate(counted: tuple[int, int]) -> None:
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
    assert count.document() == {"count": 5, "n": 20, "interval": list(wilson_interval(5, 20))}
    assert str(count) == "5/20"
    assert count.with_interval == "5/20 (11% to 47%)"
    assert Count.from_document(count.document()) == count


def answers(both: int, only_before: int, only_after: int, neither: int) -> tuple[list[bool], list[bool]]:
    return columns(
        [(True, True)] * both
        + [(True, False)] * only_before
        + [(False, True)] * only_after
        + [(False, False)] * neither
    )


@given(table=st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_mcnemar_is_that_of_statsmodels_and_scipy(table: tuple[int, int, int, int]) -> None:
    both, only_before, only_after, neither = table
    result = mcnemar(*answers(*table))
    assert (result.only_before, result.only_after) == (only_before, only_after)
    theirs = contingency_tables.mcnemar([[both, only_before], [only_after, neither]], exact=True)
    assert result.p_value == pytest.approx(float(theirs.pvalue), rel=1e-9)
    if changed := only_before + only_after:
        assert result.p_value == pytest.approx(stats.binomtest(only_before, changed).pvalue, rel=1e-9)


@given(changed=st.integers(1, 60))
def test_changes_in_one_direction_have_a_closed_form(changed: int) -> None:
    assert mcnemar(*answers(3, changed, 0, 2)).p_value == pytest.approx(min(1, 2 / 2**changed))


@given(pairs=paired_answers)
def test_before_and_after_exchanged_have_the_same_p_value(pairs: list[tuple[bool, bool]]) -> None:
    before, after = columns(pairs)
    there, back = mcnemar(before, after), mcnemar(after, before)
    assert (there.only_before, there.only_after) == (back.only_after, back.only_before)
    assert there.p_value == back.p_value and 0 < there.p_value <= 1


def test_what_did_not_change_says_nothing() -> None:
    assert mcnemar(*answers(9, 0, 0, 4)).p_value == 1
    assert mcnemar(*answers(0, 7, 1, 0)) == mcnemar(*answers(500, 7, 1, 500))
    assert mcnemar(*answers(1, 2, 0, 1)).document() == {"only_before": 2, "only_after": 0, "p_value": 0.5}


@pytest.mark.parametrize("changed", [5, 6, 20, 101])
def test_without_an_effect_mcnemar_rarely_rejects(changed: int) -> None:
    for level in (0.01, 0.05, 0.2):
        rejected = sum(
            math.comb(changed, k) / 2**changed
            for k in range(changed + 1)
            if mcnemar(*answers(0, k, changed - k, 1)).p_value <= level
        )
        assert rejected <= level


def resampled_means(values: Sequence[float]) -> list[float]:
    """The bootstrap without chance: all n^n resamples."""
    return sorted(fmean(drawn) for drawn in itertools.product(values, repeat=len(values)))


VALUES = (-0.5, 0.25, 1.0, 2.0, 4.0)


def test_the_bootstrap_interval_is_that_of_all_resamples() -> None:
    means = resampled_means(VALUES)
    result = mean_interval(VALUES)
    assert result.value == fmean(VALUES) and result.n == len(VALUES)
    for bound, quantile in zip(result.interval, (0.025, 0.975), strict=True):
        below = sum(mean < bound - 1e-9 for mean in means) / len(means)
        up_to = sum(mean <= bound + 1e-9 for mean in means) / len(means)
        assert below - 0.005 <= quantile <= up_to + 0.005


def test_the_bootstrap_p_value_is_that_of_all_resamples() -> None:
    means = resampled_means(VALUES)
    expected = 2 * sum(mean <= 0 for mean in means) / len(means)
    result = paired_bootstrap([1.0] * len(VALUES), [1 + value for value in VALUES])
    assert 0.03 < expected < 0.3 and result.p_value == pytest.approx(expected, abs=0.01)


def test_the_bootstrap_interval_is_that_of_scipy() -> None:
    drawn = numpy.random.default_rng(1).lognormal(size=80)
    theirs = stats.bootstrap((drawn,), numpy.mean, method="percentile", n_resamples=10_000, rng=2).confidence_interval
    width = theirs.high - theirs.low
    assert mean_interval(drawn.tolist()).interval == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def test_the_bootstrap_of_many_values_is_normal() -> None:
    chance = random.Random(3)
    first = [chance.gauss(0, 1) for _ in range(400)]
    second = [value + chance.gauss(0.12, 1) for value in first]
    differences = [b - a for a, b in zip(first, second, strict=True)]
    error = pstdev(differences) / math.sqrt(400)
    result = paired_bootstrap(first, second)
    centre = fmean(differences)
    assert result.value == pytest.approx(centre) and result.n == 400
    assert result.interval == pytest.approx((centre - 1.96 * error, centre + 1.96 * error), abs=0.1 * error)
    assert result.p_value == pytest.approx(2 * NormalDist().cdf(-abs(centre) / error), abs=0.01)


def test_the_bootstrap_interval_covers_the_truth() -> None:
    chance = numpy.random.default_rng(4)
    intervals = [mean_interval(chance.normal(1, 2, 50).tolist(), 400, seed).interval for seed in range(300)]
    assert 0.90 <= fmean(low <= 1 <= high for low, high in intervals) <= 0.98


@given(pairs=paired_numbers)
def test_first_and_second_exchanged_mirror_the_difference(pairs: list[tuple[float, float]]) -> None:
    first, second = columns(pairs)
    there, back = paired_bootstrap(first, second, 200), paired_bootstrap(second, first, 200)
    assert back.value == -there.value and back.p_value == there.p_value
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=1e-9)


@given(values=st.lists(numbers, min_size=1, max_size=30), factor=st.floats(0.1, 10), shift=numbers)
def test_the_interval_moves_and_stretches_with_the_values(values: list[float], factor: float, shift: float) -> None:
    low, high = mean_interval(values, 200).interval
    moved = mean_interval([factor * value + shift for value in values], 200).interval
    assert moved == pytest.approx((factor * low + shift, factor * high + shift), abs=1e-7)


@given(pairs=paired_numbers)
def test_interval_and_p_value_stay_within_their_bounds(pairs: list[tuple[float, float]]) -> None:
    first, second = columns(pairs)
    result = paired_bootstrap(first, second, 200)
    differences = [b - a for a, b in pairs]
    low, high = result.interval
    assert min(differences) - 1e-9 <= low <= high <= max(differences) + 1e-9
    assert 2 / 201 <= result.p_value <= 1


def test_the_same_difference_everywhere_is_certain() -> None:
    certain = paired_bootstrap([1.0, 2.0, 5.0], [1.5, 2.5, 5.5], samples=999)
    assert certain.document() == {"value": 0.5, "n": 3, "interval": [0.5, 0.5], "p_value": 2 / 1000}
    assert paired_bootstrap([1.0, 2.0], [1.0, 2.0]).p_value == 1
    assert mean_interval([0.25]).document() == {"value": 0.25, "n": 1, "interval": [0.25, 0.25]}


def test_a_seed_fixes_what_is_drawn() -> None:
    assert mean_interval(VALUES, 500, seed=1) == mean_interval(VALUES, 500, seed=1)
    drawn = numpy.random.default_rng(5).normal(size=60).tolist()
    (low, high), (lower, higher) = (mean_interval(drawn, seed=seed).interval for seed in (1, 2))
    assert low != lower and (low, high) == pytest.approx((lower, higher), abs=0.03 * (high - low))


@given(pairs=paired_labels)
def test_kappa_is_that_of_statsmodels(pairs: list[tuple[str, str]]) -> None:
    counted = Counter(pairs)
    table = [[counted[a, b] for b in "abc"] for a in "abc"]
    kappa = cohen_kappa(*columns(pairs))
    if kappa is None:
        assert len({label for pair in pairs for label in pair}) == 1
    else:
        assert kappa == pytest.approx(float(inter_rater.cohens_kappa(table, return_results=False)), abs=1e-12)


def test_kappa_of_a_textbook_table() -> None:
    """Two readers of 50 proposals: 20 yes and yes, 5 yes and no, 10 no and yes, 15 no and no."""
    assert cohen_kappa(*answers(20, 5, 10, 15)) == pytest.approx(0.4)


@given(pairs=paired_labels)
def test_kappa_knows_no_order_of_raters_and_no_names_of_labels(pairs: list[tuple[str, str]]) -> None:
    first, second = columns(pairs)
    kappa = cohen_kappa(first, second)
    assert kappa == cohen_kappa(second, first)
    assert kappa == cohen_kappa([ord(label) for label in first], [ord(label) for label in second])
    assert kappa is None or -1 <= kappa <= 1
    assert (kappa == 1) == (first == second and len(set(first)) > 1)


def test_kappa_at_its_ends() -> None:
    assert cohen_kappa("ab", "ba") == -1
    assert cohen_kappa("aaaa", "abab") == 0
    assert cohen_kappa("aaa", "aaa") is None


@pytest.mark.parametrize("statistic", [mcnemar, paired_bootstrap, cohen_kappa])
@pytest.mark.parametrize("sequences", [([], []), ([True], []), ([True, False], [True])])
def test_sequences_that_are_no_pairs_are_refused(
    statistic: Callable[..., object], sequences: tuple[list[bool], list[bool]]
) -> None:
    with pytest.raises(ValueError, match="same length"):
        statistic(*sequences)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_values_that_have_no_mean_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError):
        mean_interval(values)


def test_the_module_loads_nothing_heavy() -> None:
    check = (
        "import sys, iconoclast.evaluation.intervals; sys.exit(not {'numpy', 'scipy', 'torch'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
