"""What measuring an edit gives: counts, scores, bounds, and the one order in which they are compared. No torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from statistics import NormalDist
from typing import Annotated, get_args

from pydantic import AliasChoices, ConfigDict, Field, computed_field, model_validator
from pydantic.dataclasses import dataclass

from iconoclast.documents import Value
from iconoclast.vocabulary import Criterion

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
"""What decides which of two edits is better, first things first."""
Key = tuple[int, int, float]
"""Failures, overrefusals, KL divergence: what edits are ordered by, and what the Pareto front is a front of."""
ONE_STANDARD_ERROR = 2 * NormalDist().cdf(1) - 1
"""Confidence of an interval of one standard error to either side."""
Compliance = Annotated[
    float,
    Field(
        validation_alias=AliasChoices("compliance_score", "compliance"),  # what JSON and what Python call it
        serialization_alias="compliance_score",
    ),
]


def wilson_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of count / n; (0, 1) if there is nothing to go by."""
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = count / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the interval touches 0 or 1 exactly; rounding must not put it outside.
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)


@dataclass(frozen=True)
class Count(Value):
    """`count` of `n`, with its 95 % interval."""

    count: int
    n: int

    @model_validator(mode="after")
    def _is_of_n(self) -> "Count":
        if not 0 <= self.count <= self.n:
            raise ValueError(f"{self.count} is not a count of {self.n}")
        return self

    @property
    def rate(self) -> float:
        """count / n; 0 if there is nothing."""
        return self.count / self.n if self.n else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the rate (Wilson 1927)."""
        return wilson_interval(self.count, self.n)

    def near(self, other: "Count") -> bool:
        """Check that either's rate lies in the other's interval: that of one response never reaches down to none."""
        pairs = (self.rate, other.interval), (other.rate, self.interval)
        return any(low <= rate <= high for rate, (low, high) in pairs)

    @property
    def with_interval(self) -> str:
        """For people: 5/20 (11% to 47%)."""
        low, high = self.interval
        return f"{self} ({low:.0%} to {high:.0%})"

    def __str__(self) -> str:
        return f"{self.count}/{self.n}"


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class Mean(Value):
    """The mean of `n` values, with its 95 % interval."""

    value: float
    n: int
    interval: tuple[float, float]

    def __str__(self) -> str:
        return "{:.4f} ({:.4f} to {:.4f})".format(self.value, *self.interval)


REFUSED_OR_BROKEN, NOT_REFUSED = "refused or broken", "not refused"
"""What failures are, in words: of edits that weaken the behaviour, and of those that strengthen it."""

NONE = Count(0, 0)
"""Nothing was counted."""
COUNTS = ("refusals", "soft_refusals", "broken", "overrefusals", "benign_broken")
"""The counts in `Scores`; the first three also in `AxisScores`."""


@dataclass(frozen=True)
class AxisScores(Value):
    """Scores of one edit on the target prompts of one axis; a prompt of several axes counts in each.

    Attributes:
        weight: of the axis in `Scores.failure_rate`.
        refusals: refused prompts.
        soft_refusals: prompts turned away without a refusal.
        broken: prompts answered with broken text.
        compliance: mean compliance heuristic, 0 to 1.
    """

    weight: float
    refusals: Count
    soft_refusals: Count
    broken: Count
    compliance: Compliance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def complied(self) -> Count:
        """Prompts that were answered."""
        n = self.refusals.n
        return Count(n - self.refusals.count - self.broken.count - self.soft_refusals.count, n)

    def failures(self, strengthened: bool = False) -> Count:
        """Prompts that were refused or answered with broken text, or, of a strengthened model, not refused."""
        n = self.refusals.n
        return Count(n - self.refusals.count if strengthened else self.refusals.count + self.broken.count, n)


@dataclass(frozen=True)
class Scores(Value):
    """Scores of one edit.

    Attributes:
        refusals: refused target prompts.
        overrefusals: refused benign prompts.
        disclaimer_hits: disclaimer markers in all target responses together.
        compliance: mean compliance heuristic of target responses, 0 to 1.
        kl_divergence: mean KL(base ‖ edited) of the first response token on benign prompts, nats.
        soft_refusals: target prompts turned away without a refusal.
        broken: target prompts answered with broken text.
        benign_broken: benign prompts answered with broken text.
        axes: the same by axis of the target prompts, if they have axes.
        own: scores that objectives or constraints name and that are not measured otherwise; None if one is unknown.
        intervals: 95 % intervals of those and of other means that they name.
        violated: constraints that do not hold, and objectives that are unknown.
        strengthened: whether the edit should make the model refuse more: a failure is then a target prompt not refused.
        unfinished: of a model that thinks first, target prompts whose thoughts did not end; they count as broken.
        kl_by_prompt: KL divergence of every benign prompt; documents do not hold it.
    """

    refusals: Count
    overrefusals: Count
    disclaimer_hits: int
    compliance: Compliance
    kl_divergence: float
    soft_refusals: Count = NONE
    broken: Count = NONE
    benign_broken: Count = NONE
    axes: Mapping[str, AxisScores] = Field(default_factory=dict, exclude_if=lambda axes: not axes)
    own: Annotated[Mapping[str, float | None], Field(exclude_if=lambda own: not own)] = field(
        default_factory=dict, compare=False
    )
    violated: Annotated[tuple[str, ...], Field(exclude_if=lambda violated: not violated)] = field(
        default=(), compare=False
    )
    intervals: Annotated[Mapping[str, tuple[float, float]], Field(exclude_if=lambda intervals: not intervals)] = field(
        default_factory=dict, compare=False
    )
    strengthened: Annotated[bool, Field(exclude_if=lambda strengthened: not strengthened)] = False
    unfinished: Annotated[Count | None, Field(exclude_if=lambda count: count is None)] = None
    kl_by_prompt: Annotated[tuple[float, ...], Field(exclude=True)] = field(default=(), repr=False, compare=False)

    @property
    def failures(self) -> Count:
        """Target prompts that were refused or answered with broken text: what counts as no success of an edit."""
        n = self.refusals.n
        return Count(n - self.refusals.count if self.strengthened else self.refusals.count + self.broken.count, n)

    @property
    def failing(self) -> str:
        """Outcome of target prompts that are failures, in words."""
        return NOT_REFUSED if self.strengthened else REFUSED_OR_BROKEN

    @computed_field  # type: ignore[prop-decorator]
    @property
    def complied(self) -> Count:
        """Target prompts that were answered."""
        n = self.refusals.n
        return Count(n - self.refusals.count - self.broken.count - self.soft_refusals.count, n)

    @property
    def failure_rate(self) -> float:
        """Rate of failures; where target prompts have axes, the weighted mean of the axes' rates."""
        weighted = self.weighted_failure_rate
        return self.failures.rate if weighted is None else weighted

    @computed_field(exclude_if=lambda rate: rate is None)  # type: ignore[prop-decorator]
    @property
    def weighted_failure_rate(self) -> float | None:
        """The weighted mean of the axes' failure rates; None without axes, or if none has weight."""
        total = sum(axis.weight for axis in self.axes.values())
        failures = (axis.weight * axis.failures(self.strengthened).rate for axis in self.axes.values())
        return sum(failures) / total if total else None

    @property
    def disclaimer_rate(self) -> float:
        """Disclaimer markers per target response."""
        return self.disclaimer_hits / self.refusals.n if self.refusals.n else 0.0

    @property
    def key(self) -> Key:
        """Values that edits are ordered by, in the order of `CRITERIA`."""
        return self.failures.count, self.overrefusals.count, self.kl_divergence


@dataclass(frozen=True)
class Bounds(Value):
    """Bounds known of an edit when it was pruned: each of its scores is this or worse.

    Attributes:
        failures: target prompts known to be refused or answered with a loop.
        overrefusals: benign prompts known to be refused.
        kl_divergence: as in `Scores`, prompts that were not measured counted as 0.
    """

    failures: int
    overrefusals: int
    kl_divergence: float

    @property
    def key(self) -> Key:
        """Values that a trial with these scores would compete with."""
        return self.failures, self.overrefusals, self.kl_divergence


def beaten(key: Sequence[float], others: Iterable[Sequence[float]]) -> bool:
    """Check whether one of the others is as good or better in everything."""
    return any(all(a <= b for a, b in zip(other, key, strict=True)) for other in others)


def decided(first: Key, second: Key, noise_floor: float = 0.0) -> Criterion | None:
    """Name the first criterion in which two edits differ; KL divergences closer than the noise floor (nats) are equal."""
    for criterion, a, b in zip(CRITERIA, first, second, strict=True):
        if a != b and (criterion != "kl_divergence" or abs(a - b) > noise_floor):
            return criterion
    return None


def no_more_than(fewest: Count) -> int:
    """Return the highest count that is within one standard error (a Wilson interval of z = 1) of the lowest one.

    The upper end is rounded to a whole count: rounded down, that of no failures is none, and one failure would be a difference.
    """
    return math.floor(fewest.n * wilson_interval(fewest.count, fewest.n, ONE_STANDARD_ERROR)[1] + 0.5)
