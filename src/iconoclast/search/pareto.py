"""Which trials are worth a look, and in which order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from iconoclast.evaluation.measure import Scores
from iconoclast.search.space import EditParameters

Key = tuple[int, int, float]
"""Failures, overrefusals, KL divergence: what trials are ordered by, and what the front is a front of."""


@dataclass(frozen=True)
class Trial:
    """A measured candidate.

    Attributes:
        index: number of the trial in its study.
        parameters: what was tried.
        scores: what came out, on the selection prompts.
    """

    index: int
    parameters: EditParameters
    scores: Scores

    @property
    def key(self) -> Key:
        """What it competes with."""
        return self.scores.key


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that no other beats or equals in failures, overrefusals and KL divergence at once, in that order."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.key, t.index)):
        if not beaten(trial.key, (kept.key for kept in front)):
            front.append(trial)
    return front


def beaten(key: Key, others: Iterable[Key]) -> bool:
    """Whether one of the others is as good or better in everything."""
    return any(all(a <= b for a, b in zip(other, key, strict=True)) for other in others)


def best_trial(front: Sequence[Trial], kl_target: float) -> Trial | None:
    """The first trial of the front within the KL target; if there is none, the first; None of an empty front."""
    return next((t for t in front if t.scores.kl_divergence <= kl_target), front[0] if front else None)
