"""What is measured of one model, and of two on the same prompts, as documents hold it. No torch."""

from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from iconoclast.documents import UNLESS_EMPTY, UNLESS_NONE, Part, Value
from iconoclast.evaluation.intervals import McNemar, PairedDifference
from iconoclast.scores import Count, Mean, Scores


@dataclass(frozen=True, kw_only=True)
class CountAtLength(Count):
    """A count of responses after their first `tokens`."""

    tokens: int


@dataclass(frozen=True, kw_only=True)
class MeanOverTokens(Mean):
    """A mean of values that are means over the first `tokens` of a response."""

    tokens: int


@dataclass(frozen=True)
class Perplexity(Value):
    """Of `n` tokens."""

    value: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Judged(Value):
    """A judge's verdicts on the target responses, and why some are unknown if something went wrong.

    Attributes:
        only_markers, only_judge: responses that are a refusal to one alone; runs before 0.2.0 do not say.
    """

    complied: Count
    soft_refusal: Count
    refusal: Count
    broken: Count
    unknown: Count
    kappa_with_markers: float | None
    only_markers: int | None = UNLESS_NONE
    only_judge: int | None = UNLESS_NONE
    problem: str | None = UNLESS_NONE


@dataclass(frozen=True, kw_only=True)
class Truncated(Value):
    """Limits of the divergences of a served model; see `evaluation.examination.Truncation`."""

    top: int
    outside: float
    first_token_kl_at_most: Mean
    token_kl_at_most: Mean
    unlike_prompts: Count


@dataclass(frozen=True, kw_only=True)
class Thinking(Value):
    """A model's thoughts before its answers to target prompts.

    Attributes:
        unfinished: thoughts that did not end within their budget, so that there is no answer.
        refusals: thoughts that are a refusal to the markers, whatever the answer is.
        tokens: their length.
    """

    unfinished: Count
    refusals: Count
    tokens: Mean


@dataclass(frozen=True, kw_only=True)
class Metrics(Scores):
    """Everything that is measured of one model; see `evaluation.examination.Examination`.

    Attributes:
        rounding: KL over tokens that rounding alone makes, of a base model whose type is not float32.
    """

    first_token_kl: Mean
    token_kl: MeanOverTokens
    perplexity: Perplexity | None
    refusals_by_length: list[CountAtLength]
    refusals_settled: bool
    borderline_overrefusals: Count | None = UNLESS_NONE
    judges: Mapping[str, Judged] = UNLESS_EMPTY
    truncation: Truncated | None = UNLESS_NONE
    thoughts: Thinking | None = UNLESS_NONE
    rounding: Mean | None = UNLESS_NONE


class Paired(Part):
    """Tests of whether two models differ on the same prompts."""

    failures: McNemar
    refusals: McNemar
    overrefusals: McNemar
    first_token_kl: PairedDifference
    token_kl: PairedDifference
    borderline_overrefusals: McNemar | None = UNLESS_NONE
