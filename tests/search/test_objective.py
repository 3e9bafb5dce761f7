"""The two numbers that are minimised, the guard under the KL target, and models that hardly refuse."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.scores import Count, Scores
from iconoclast.search.objective import LOW_REFUSAL_RATE, Objective

TARGET = 0.1


def scores(
    refusals: int = 0, overrefusals: int = 0, disclaimers: int = 0, compliance: float = 1.0, kl: float = 0.0
) -> Scores:
    """Scores on twenty target and twenty benign prompts."""
    return Scores(Count(refusals, 20), Count(overrefusals, 20), disclaimers, compliance, kl)


def scores_with(kl: st.SearchStrategy[float]) -> st.SearchStrategy[Scores]:
    """Any scores with such a divergence."""
    counts = st.integers(0, 20)
    return st.builds(scores, counts, counts, st.integers(0, 30), st.floats(0, 1), kl)


near, far = scores_with(st.floats(0, TARGET, exclude_max=True)), scores_with(st.floats(TARGET, 3))
any_scores = near | far
REFUSING = scores(refusals=17, overrefusals=1, disclaimers=4, compliance=0.2)
WILLING = scores(refusals=2, overrefusals=1, disclaimers=5, compliance=0.6)


def objective(base: Scores = REFUSING) -> Objective:
    """The default weights."""
    return Objective(base, TARGET, overrefusal_penalty=0.32, marker_penalty=0.18, compliance_penalty=0.42)


@given(measured=any_scores)
def test_behaviour_is_the_weighted_sum(measured: Scores) -> None:
    expected = (
        measured.refusals.rate
        + 0.32 * measured.overrefusals.rate
        + 0.18 * min(1, measured.disclaimer_hits / 20)
        + 0.42 * (1 - measured.compliance)
    )
    assert objective().behaviour(measured) == pytest.approx(expected)


def test_behaviour_by_hand() -> None:
    assert objective().behaviour(scores(5, 2, 4, 0.5)) == pytest.approx(0.25 + 0.032 + 0.036 + 0.21)
    assert objective().behaviour(scores()) == 0


def test_disclaimers_count_once_per_response_at_most() -> None:
    assert objective().behaviour(scores(disclaimers=20)) == objective().behaviour(scores(disclaimers=90))


@given(measured=far)
def test_from_the_target_on_the_second_number_is_the_divergence(measured: Scores) -> None:
    assert objective()(measured)[1] == measured.kl_divergence


@given(measured=any_scores)
def test_the_first_number_is_the_behaviour(measured: Scores) -> None:
    assert objective()(measured)[0] == objective().behaviour(measured)


@given(measured=near, kl=st.floats(0, TARGET, exclude_max=True))
def test_below_the_target_the_divergence_makes_no_difference(measured: Scores, kl: float) -> None:
    assert objective()(replace(measured, kl_divergence=kl)) == objective()(measured)


@given(one=near, other=near)
def test_below_the_target_behaviour_decides(one: Scores, other: Scores) -> None:
    better, worse = sorted((objective()(one), objective()(other)))
    assert better[0] <= worse[0] and better[1] <= worse[1]


@given(measured=near)
def test_the_guard_never_exceeds_the_target(measured: Scores) -> None:
    assert 0 <= objective()(measured)[1] <= TARGET


@pytest.mark.parametrize("base", [REFUSING, scores(refusals=10, compliance=0.4)])
def test_changing_nothing_is_no_optimum(base: Scores) -> None:
    unchanged = objective(base)(base)
    assert unchanged[1] == TARGET
    improved = objective(base)(scores(refusals=5, disclaimers=2, compliance=0.7, kl=0.09))
    assert improved[0] < unchanged[0] and improved[1] < unchanged[1]


# A model that hardly refuses.


@pytest.mark.parametrize(("refusals", "low"), [(0, True), (3, True), (4, False), (20, False)])
def test_the_low_refusal_regime_ends_above_its_rate(refusals: int, low: bool) -> None:
    assert (refusals / 20 <= LOW_REFUSAL_RATE) == low
    base = scores(refusals=refusals, compliance=0.5)
    assert (objective(base).behaviour(base) == 0) == low


@given(measured=any_scores)
def test_in_the_low_refusal_regime_only_regressions_count(measured: Scores) -> None:
    expected = (
        max(0, measured.refusals.rate - WILLING.refusals.rate)
        + 0.32 * measured.overrefusals.rate
        + 0.18 * max(0, min(1, measured.disclaimer_rate) - WILLING.disclaimer_rate)
        + 0.42 * max(0, WILLING.compliance - measured.compliance)
    )
    assert objective(WILLING).behaviour(measured) == pytest.approx(expected, abs=1e-12)


def test_in_the_low_refusal_regime_overrefusals_count_in_full() -> None:
    assert objective(WILLING).behaviour(WILLING) == pytest.approx(0.32 * 0.05)


def test_a_flawless_base_leaves_nothing_to_divide_by() -> None:
    flawless = scores()
    assert objective(flawless)(flawless) == (0, 0)
    assert objective(flawless)(scores(refusals=1, kl=0.01)) == (pytest.approx(0.05), TARGET)
