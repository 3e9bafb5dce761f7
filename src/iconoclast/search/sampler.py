"""The sampler: Optuna's TPE with a memory of bounded size, so that a late trial is proposed as fast as an early one."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.search_space import intersection_search_space
from optuna.trial import FrozenTrial, TrialState

from iconoclast.search.optuna_internals import knowing

REMEMBERED = 400
"""Finished trials that the sampler learns from. As long as there are no more, it learns from all."""

BEST = 80
"""Of these, the best; the rest are the latest. TPE itself weighs trials less the older they are, and takes a tenth as good."""


@dataclass(frozen=True)
class Memory:
    """Trials that the sampler learns from: some finished trials by number, and the ranges that they have in common."""

    trials: Sequence[FrozenTrial] = ()
    space: Mapping[str, BaseDistribution] = field(default_factory=dict)

    @classmethod
    def of(cls, finished: Sequence[FrozenTrial]) -> "Memory":
        """Remember the trials that few others beat, and the latest."""
        trials = list(finished) if len(finished) <= REMEMBERED else _selected(finished)
        return cls(trials, intersection_search_space(trials, include_pruned=True))


def _selected(finished: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    good = [i for i, trial in enumerate(finished) if trial.state == TrialState.COMPLETE and not trial.constraints]
    best = (
        {good[place] for place in _least_beaten(np.array([finished[i].values for i in good]), BEST)} if good else set()
    )
    latest = (i for i in reversed(range(len(finished))) if i not in best)
    return [finished[i] for i in sorted(best | set(islice(latest, REMEMBERED - len(best))))]


def _least_beaten(values: NDArray[np.float64], count: int) -> list[int]:
    """Return up to `count` rows of [n, objectives], front by front: the first are beaten by none, the next only by those.

    With other than two objectives, the rows with the best sum of ranks.
    """
    if values.shape[1] != 2:
        return values.argsort(0).argsort(0).sum(1).argsort(kind="stable")[:count].tolist()  # type: ignore[no-any-return]
    left = np.lexsort((values[:, 1], values[:, 0]))
    found: list[int] = []
    while len(left) and len(found) < count:
        second = values[left, 1]
        before = np.concatenate([[np.inf], np.minimum.accumulate(second)[:-1]])
        found += left[second < before].tolist()
        left = left[second >= before]
    return found[:count]


class Sampler(TPESampler):
    """TPE for one trial, which keeps away from those that are being measured.

    Args:
        memory: what it learns from; None if that is too little yet, so that it proposes at random.
        seed: decides what it proposes.
        given: parameters that are not to be drawn.
    """

    def __init__(self, memory: Memory | None, seed: int, given: Mapping[str, Any] | None = None) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            super().__init__(multivariate=True, constant_liar=True, n_startup_trials=int(memory is None), seed=seed)
        self._memory = memory or Memory()
        self._given = given or {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return what is drawn together: every parameter that has been learnt about."""
        return {name: space for name, space in self._memory.space.items() if not (space.single() or self._given)}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw it."""
        return super().sample_relative(knowing(study, self._memory.trials), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a parameter by itself, unless it is given."""
        if param_name in self._given:
            return self._given[param_name]
        return super().sample_independent(knowing(study, self._memory.trials), trial, param_name, param_distribution)
