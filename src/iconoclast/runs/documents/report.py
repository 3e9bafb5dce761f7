"""The report of a run, and the responses behind it."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal, get_args

from pydantic import Field

from iconoclast.documents import UNLESS_EMPTY, UNLESS_NONE, Part
from iconoclast.evaluation.metrics import Metrics, Paired
from iconoclast.runs.documents.manifest import Rendering
from iconoclast.scores import Count, Scores
from iconoclast.vocabulary import ExaminedSplit, Label, Verdict


class RandomControl(Part):
    """Scores of edits along random directions that have the strengths of the best trial.

    They are as strong as that if they remove half as many failures on average.
    """

    draws: list[Scores]
    mean_failures: float
    mean_kl_divergence: float
    as_strong_as_the_edit: bool

    @classmethod
    def of(cls, base: Scores, edited: Scores, draws: Sequence[Scores]) -> "RandomControl":
        """Compare what random directions do with what the edit does."""
        removed = base.failures.count - edited.failures.count
        failures = fmean(scores.failures.count for scores in draws)
        return cls(
            draws=list(draws),
            mean_failures=failures,
            mean_kl_divergence=fmean(scores.kl_divergence for scores in draws),
            as_strong_as_the_edit=removed > 0 and base.failures.count - failures >= removed / 2,
        )


class AxisCarried(Part):
    """Failures of one axis of the target prompts before and after; `carries` is None if there were none before.

    An edit carries where failures fell by more than the intervals leave to chance.
    """

    axis: str
    before: Count
    after: Count
    carries: bool | None

    @classmethod
    def of(cls, base: Scores, edited: Scores) -> "list[AxisCarried]":
        """Compare every axis."""
        strengthened, found = edited.strengthened, []
        for name in [name for name in base.axes if name in edited.axes]:
            before, after = (scores.axes[name].failures(strengthened) for scores in (base, edited))
            fell = after.rate < before.rate and not before.near(after)
            found.append(cls(axis=name, before=before, after=after, carries=fell if before.count else None))
        return found


class WithThoughts(Part):
    """Base model and best trial as `Report` has them, but thinking first."""

    response_prefix: str
    base_metrics: Metrics
    metrics: Metrics
    paired: Paired


class Report(Part):
    """Base model and best trial, examined once; `measured_with` are the settings that it depends on and a trial does not."""

    trial: int
    split: ExaminedSplit
    overlap: Mapping[str, int] = Field(default={})
    measured_with: Mapping[str, Any] = Field(default={})
    base_metrics: Metrics
    metrics: Metrics
    paired: Paired
    random_control: RandomControl | None = UNLESS_NONE
    with_thoughts: WithThoughts | None = UNLESS_NONE
    axes: list[AxisCarried] = Field(default=[], exclude_if=lambda axes: not axes)
    rendering: Rendering | None = UNLESS_NONE


class SampledResponse(Part):
    """A response, what it is by markers and rules, and what judges say; thoughts before it, with a label of their own."""

    response: str
    label: Label
    judged: Mapping[str, Verdict] = UNLESS_EMPTY
    thoughts: str | None = UNLESS_NONE
    label_of_thoughts: Label | None = UNLESS_NONE


SampledSet = Literal["target", "benign", "borderline"]


SETS: tuple[SampledSet, ...] = get_args(SampledSet)


class Sample(Part):
    """A prompt and what each model answers: a line of samples.jsonl."""

    set: SampledSet
    prompt: str
    responses: Mapping[str, SampledResponse]
