"""The sampler: what it remembers of a long study, and that a study is as repeatable with it as without."""

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from iconoclast import vocabulary
from iconoclast.scores import Count
from iconoclast.search import sampler
from iconoclast.search.sampler import Memory
from iconoclast.search.space import EditParameters
from tests.search.test_study import OBJECTIVE, SPACE, STARTUP, Recorder, evaluate, opened, run, run_until_done


def trial(number: int, values: Sequence[float] | None) -> FrozenTrial:
    """A finished trial, pruned if it has no values."""
    made = create_trial(state=TrialState.COMPLETE if values else TrialState.PRUNED, values=values)
    made.number = number
    return made


def test_few_trials_are_all_remembered() -> None:
    trials = [trial(n, (1.0, 1.0)) for n in range(sampler.REMEMBERED)]
    assert Memory.of(trials).trials == trials


def test_of_many_the_best_and_the_latest_are_remembered() -> None:
    worse = [trial(n, (2.0 + n / 10_000, 2.0)) if n % 3 else trial(n, None) for n in range(3 * sampler.REMEMBERED)]
    best = {5: (0.0, 1.0), 400: (0.5, 0.5), 600: (1.0, 0.0)}
    trials = [trial(n, best[n]) if n in best else each for n, each in enumerate(worse)]
    found = [each.number for each in Memory.of(trials).trials]
    assert len(found) == sampler.REMEMBERED
    assert found == sorted(found)
    assert best.keys() <= set(found)
    assert set(range(len(trials) - sampler.REMEMBERED + sampler.BEST, len(trials))) <= set(found)


def test_trials_are_ranked_front_by_front() -> None:
    draw = random.Random(0)
    points = [(draw.randrange(12), draw.randrange(12)) for _ in range(200)]
    order = sampler._least_beaten(np.array(points, float), len(points))
    left = list(range(len(points)))
    while left:  # every front as it is defined: nothing that is left beats its points or, before them, equals them
        front = {i for i in left if not any(_beats(points[j], points[i]) for j in left)}
        distinct = {points[i] for i in front}
        head, order = order[: len(distinct)], order[len(distinct) :]
        assert {points[i] for i in head} == distinct
        left = [i for i in left if i not in head]


def _beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "REMEMBERED", 6)
    monkeypatch.setattr(sampler, "BEST", 2)


@pytest.mark.usefixtures("forgetful")
def test_a_study_that_forgets_goes_on_after_an_interruption_as_it_would_have(tmp_path: Path) -> None:
    undisturbed = run(opened(tmp_path / "one"), 24)
    assert run_until_done(tmp_path / "two", Recorder(interrupted=[2, 5]), 24) == undisturbed


@pytest.mark.usefixtures("forgetful")
def test_more_random_trials_than_are_remembered_are_learnt_from(tmp_path: Path) -> None:
    def worst(batch: Sequence[EditParameters]) -> list[Any]:
        return [
            replace(scores, refusals=Count(20 - scores.refusals.count, 20), kl_divergence=0.2 - scores.kl_divergence)
            for scores in evaluate(batch)
        ]

    one = run(opened(tmp_path / "one", startup_trials=10), 12)
    other = run(opened(tmp_path / "other", startup_trials=10), 12, worst)
    assert [t.parameters for t in one[:10]] == [t.parameters for t in other[:10]]
    assert all(a.parameters != b.parameters for a, b in zip(one[10:], other[10:], strict=True))


def test_proposals_do_not_wait_for_the_disk_and_what_was_measured_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    def measured(batch: Sequence[EditParameters]) -> list[Any]:
        events.append("measured")
        return evaluate(batch)

    study = opened(tmp_path)
    run(study, STARTUP)
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("waited"))
    study.run(STARTUP + 4, measured, OBJECTIVE)
    assert events.index("measured") == 0
    assert events.count("waited") == 1 + 4  # the batch's outcomes, and every trial's end


def test_what_is_installed_is_not_looked_through_for_every_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: object) -> metadata.EntryPoints:
        raise AssertionError("looked through again")

    SPACE.parameters(_middle())
    monkeypatch.setattr(vocabulary, "entry_points", refuse)
    SPACE.parameters(_middle())


def _middle() -> dict[str, Any]:
    return {
        name: (each.low + each.high) / 2 if isinstance(each, FloatDistribution) else each.choices[0]
        for name, each in SPACE.distributions().items()
    }


def test_trials_are_made_once(tmp_path: Path) -> None:
    study = opened(tmp_path)
    first = run(study)
    assert all(a is b for a, b in zip(first, study.trials(), strict=True))


def test_more_than_two_objectives_are_remembered_by_their_ranks() -> None:
    values = np.random.default_rng(0).random((20, 3))
    values[7] = -1.0  # beaten by none in anything
    assert sampler._least_beaten(values, 5)[0] == 7
    assert len(sampler._least_beaten(values, 5)) == 5
