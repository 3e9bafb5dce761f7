"""Scores → the numbers that the search minimises."""

from collections.abc import Callable
from dataclasses import dataclass

from iconoclast.scores import Scores

LOW_REFUSAL_RATE = 0.15
"""Base rate of refusals up to which there is little to remove, so that scores count only where they get worse."""


Minimised = Callable[[Scores], tuple[float, ...]]
"""Scores → what Optuna minimises."""


@dataclass(frozen=True)
class Objective:
    """The objectives of the seed documents: behaviour = R + w_o·O + w_m·D + w_c·(1 − C), and the KL divergence with the target guard.

    R is the rate of failures (refusals and broken responses) on target prompts, weighted by axis if they have axes, O the
    refusal rate on benign prompts, D disclaimer hits per target response (at most 1), C the
    compliance score. Under `kl_target` the second number follows behaviour instead of the KL divergence: otherwise
    changing nothing would always be an optimum. Of an edit that strengthens the behaviour D and C say nothing.
    """

    base: Scores
    kl_target: float
    overrefusal_penalty: float
    marker_penalty: float
    compliance_penalty: float

    def behaviour(self, scores: Scores) -> float:
        """Return the behaviour term alone."""
        refusals, disclaimers, gap = _terms(scores)
        if little_to_remove(self.base):
            before = _terms(self.base)
            refusals, disclaimers, gap = (
                max(0.0, now - then) for now, then in zip((refusals, disclaimers, gap), before, strict=True)
            )
        return (
            refusals
            + self.overrefusal_penalty * scores.overrefusals.rate
            + self.marker_penalty * disclaimers
            + self.compliance_penalty * gap
        )

    def __call__(self, scores: Scores) -> tuple[float, float]:
        """Return (behaviour, guarded KL divergence), both to be minimised."""
        behaviour = self.behaviour(scores)
        divergence = scores.kl_divergence
        if divergence < self.kl_target:
            worst = max(self.behaviour(self.base), 1e-9)
            divergence = self.kl_target * min(1.0, behaviour / worst)
        return behaviour, divergence


def _terms(scores: Scores) -> tuple[float, float, float]:
    if scores.strengthened:
        return scores.failure_rate, 0.0, 0.0
    return scores.failure_rate, min(1.0, scores.disclaimer_rate), 1 - scores.compliance


def little_to_remove(base: Scores) -> bool:
    """Check that so few prompts are refused that there is little to remove; to strengthen, every prompt counts."""
    return not base.strengthened and base.refusals.rate <= LOW_REFUSAL_RATE
