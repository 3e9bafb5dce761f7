"""The Pareto front and its order, against the definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.scores import Count, Scores, no_more_than
from iconoclast.search.pareto import Trial, best_trial, pareto_front
from iconoclast.search.space import EditParameters


def trial(index: int, refusals: int, overrefusals: int = 0, kl: float = 0.0) -> Trial:
    """A trial with these results."""
    measured = Scores(Count(refusals, 20), Count(overrefusals, 20), 0, 0.5, kl)
    return Trial(index, EditParameters(DirectionSpec(), {}), measured)


results = st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from([0.0, 0.01, 0.02, 0.05, 0.1, 0.4]))
trial_lists = st.lists(results, max_size=25).map(lambda found: [trial(i, *result) for i, result in enumerate(found)])


def beats(one: Trial, other: Trial) -> bool:
    """Better in something and worse in nothing; among equals the earlier."""
    no_worse = all(a <= b for a, b in zip(one.key, other.key, strict=True))
    return no_worse and (one.key != other.key or one.index < other.index)


@given(trials=trial_lists, order=st.randoms())
def test_the_front_is_what_nothing_beats(trials: list[Trial], order: object) -> None:
    unbeaten = {t.index for t in trials if not any(beats(other, t) for other in trials)}
    order.shuffle(trials)  # type: ignore[attr-defined]
    assert {t.index for t in pareto_front(trials)} == unbeaten


@given(trials=trial_lists)
def test_every_trial_is_on_the_front_or_beaten_by_one_that_is(trials: list[Trial]) -> None:
    front = pareto_front(trials)
    assert all(t in front or any(beats(kept, t) for kept in front) for t in trials)


@given(trials=trial_lists)
def test_the_front_is_ordered_as_scores_are(trials: list[Trial]) -> None:
    keys = [t.key for t in pareto_front(trials)]
    assert keys == sorted(set(keys))


@given(trials=trial_lists)
def test_the_front_of_a_front_is_itself(trials: list[Trial]) -> None:
    front = pareto_front(trials)
    assert pareto_front(front) == front


def test_a_front_by_hand() -> None:
    trials = [
        trial(0, 10, 0, 0.001),
        trial(1, 3, 0, 0.05),
        trial(2, 3, 1, 0.05),  # beaten by 1
        trial(3, 0, 2, 0.3),
        trial(4, 0, 0, 0.4),
        trial(5, 3, 0, 0.05),  # the same as 1
        trial(6, 12, 0, 0.002),  # beaten by 0
    ]
    assert [t.index for t in pareto_front(trials)] == [4, 3, 1, 0]


def test_the_front_of_nothing_is_nothing() -> None:
    assert pareto_front([]) == []
    assert best_trial([], 0.1) is None


@given(trials=trial_lists.filter(bool), kl_target=st.sampled_from([0.005, 0.02, 0.05, 0.3]))
def test_the_best_trial_is_within_a_standard_error(trials: list[Trial], kl_target: float) -> None:
    best = best_trial(pareto_front(trials), kl_target)
    assert best is not None
    within = [t for t in trials if t.scores.kl_divergence <= kl_target] or trials
    fewest, n = min(t.key[0] for t in within), trials[0].scores.failures.n
    as_good = [t for t in within if proportion_confint(fewest, n, 0.3173, "wilson")[1] * n + 0.5 >= t.key[0]]
    assert best.key[1:] == min(t.key[1:] for t in as_good)


@pytest.mark.parametrize(
    ("fewest", "n", "most"), [(0, 20, 1), (0, 2, 1), (1, 20, 2), (2, 20, 4), (3, 20, 5), (10, 100, 13), (20, 20, 20)]
)
def test_a_standard_error_by_hand(fewest: int, n: int, most: int) -> None:
    assert no_more_than(Count(fewest, n)) == most


def test_a_failure_more_is_worth_a_lower_divergence() -> None:
    front = [trial(0, 1, kl=0.04), trial(1, 2, kl=0.02), trial(2, 3, kl=0.01)]
    chosen = best_trial(front, 0.1)
    assert chosen is not None and chosen.index == 1


@pytest.mark.parametrize(("kl_target", "best"), [(0.5, 0), (0.3, 0), (0.29, 1), (0.05, 1), (0.01, 2), (0.001, 0)])
def test_the_best_trial_by_hand(kl_target: float, best: int) -> None:
    front = [trial(0, 0, kl=0.3), trial(1, 3, kl=0.05), trial(2, 8, kl=0.01)]
    chosen = best_trial(front, kl_target)
    assert chosen is not None and chosen.index == best
