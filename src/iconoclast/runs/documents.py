"""What runs, exports and comparisons write about themselves, as typed JSON. No torch."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from iconoclast.audit.document import AuditDocument
from iconoclast.documents import UNLESS_NONE, Document, Part, Value
from iconoclast.edits.profile import Profile
from iconoclast.evaluation.intervals import McNemar, PairedDifference
from iconoclast.evaluation.judged import Agreement
from iconoclast.goals import DEFAULT
from iconoclast.layout import AUDIT, BASELINE, COMPARISON, GEOMETRY, MANIFEST, SUMMARY, TOKENS, TRIAL_INFORMATION
from iconoclast.scores import Count, Mean, Scores
from iconoclast.version import __version__
from iconoclast.vocabulary import (
    Criterion,
    DirectionScope,
    ExaminedSplit,
    ExportFormat,
    Label,
    Quantization,
    RowNormalization,
    Verdict,
)

Status = Literal["running", "complete", "interrupted"]
"""How far a run is: `interrupted` by its user; a killed one still says `running`."""
PromptSets = Mapping[str, Mapping[str, Any]]
"""Prompt set → source, n, SHA-256."""
UNLESS_EMPTY: Any = Field(default={}, exclude_if=lambda value: not value)


class Rendering(Part):
    """What a model was really given: the date, if the chat template asks for it, and SHA-256 of template, tokenizer and every
    set's token ids."""

    date: str
    template: str
    tokenizer: str
    tokens: Mapping[str, str]

    def differences(self, now: "Rendering", sets: Collection[str]) -> list[str]:
        """Name the sets of `sets` whose token ids differ, and why, in a line for each; empty if none does."""
        others = [name for name in sets if self.tokens.get(name) != now.tokens.get(name)]
        causes = {
            "the chat template has changed": self.template != now.template,
            "the tokenizer has changed": self.tokenizer != now.tokenizer,
            f"the chat template was told {self.date} then, {now.date} now": self.date != now.date,
        }
        why = (
            ", ".join(cause for cause, holds in causes.items() if holds)
            or "transformers renders the chat template in another way"
        )
        return [f"the token ids of {name}: {why}" for name in others]


class FitDocument(Part):
    """How a trial was fitted by gradient.

    Attributes:
        start: number of the trial that it began with.
        scale: factor of the strengths that the fit came to.
        file: the fitted edit, in the run's folder `fits`.
    """

    start: int
    scale: float
    file: str


@dataclass(frozen=True, kw_only=True)
class TrialDocument(Scores):
    """A trial and its scores on the selection prompts.

    Attributes:
        index: its number in the study.
        direction_method: estimator of its directions.
        direction_scope: one direction for all layers, or each layer's own.
        direction_index: for the global scope, the layer that the direction is taken at.
        direction_blend: for hybrid, the share of the variance-scaled direction.
        parameters: component → strength profile.
        fit: how it was fitted; the direction and the parameters are then those of its start. None if it was searched.
    """

    index: int
    direction_method: str
    direction_scope: DirectionScope
    direction_index: float | None
    direction_blend: float | None
    parameters: Mapping[str, Profile]
    fit: FitDocument | None = None


class Baseline(Document):
    """baseline.json: the base model's scores, and what was found out about the model."""

    what: ClassVar[str] = "baseline"

    dtype: str = ""
    layers: int
    response_prefix: str
    kl_noise_floor: float
    base_metrics: Scores
    rendering: Rendering | None = UNLESS_NONE


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
    """What a judge says of the target responses, and why some verdicts are unknown if something went wrong.

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
    """How far the divergences of a served model are known; see `evaluation.examination.Truncation`."""

    top: int
    outside: float
    first_token_kl_at_most: Mean
    token_kl_at_most: Mean
    unlike_prompts: Count


@dataclass(frozen=True, kw_only=True)
class Thinking(Value):
    """What a model thought before its answers to target prompts.

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
    """Everything that is measured of one model; see `evaluation.examination.Examination`."""

    first_token_kl: Mean
    token_kl: MeanOverTokens
    perplexity: Perplexity | None
    refusals_by_length: list[CountAtLength]
    refusals_settled: bool
    borderline_overrefusals: Count | None = UNLESS_NONE
    judges: Mapping[str, Judged] = UNLESS_EMPTY
    truncation: Truncated | None = UNLESS_NONE
    thoughts: Thinking | None = UNLESS_NONE


class Paired(Part):
    """Tests of whether two models differ on the same prompts."""

    failures: McNemar
    refusals: McNemar
    overrefusals: McNemar
    first_token_kl: PairedDifference
    token_kl: PairedDifference
    borderline_overrefusals: McNemar | None = UNLESS_NONE


class RandomControl(Part):
    """What edits along random directions do that have the strengths of the best trial.

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
    """Base model and best trial as `Report` has them, but let think."""

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


class ShownPrompt(Part):
    """A fit prompt, the end of a long one cut off."""

    set: Literal["target", "benign"]
    text: str


class Geometry(Document):
    """geometry.json: how the residuals of the fit prompts lie, layer by layer; see `directions.geometry`.

    Attributes:
        separation: distance of the two sets along the difference of their means, in standard deviations, cross-fitted.
        benign_variance_kept_out: share of the benign variance that lies in the benign subspace.
        points: of every shown prompt, its place at every layer; the axes are the difference of the means and the most
            variance at right angles to it.
        pca: the same in the plane of the two principal components of all fit prompts.
        pacmap: the same as PaCMAP lays them out, if that was asked for.
        prompts: the shown prompts.
    """

    what: ClassVar[str] = "geometry"
    indent: ClassVar[int | None] = None

    separation: list[float]
    benign_variance_kept_out: list[float]
    points: list[list[list[float]]]
    pca: list[list[list[float]]] | None = UNLESS_NONE
    pacmap: list[list[list[float]]] | None = UNLESS_NONE
    prompts: list[ShownPrompt]


class FirstToken(Part):
    """A token that can begin the response, and its probability before and after the edit."""

    token: str
    base: float
    edited: float


class TokenPrompt(Part):
    """A prompt token by token.

    Attributes:
        tokens: texts of its last tokens, up to where the response begins.
        base: projection of the base model's residuals on the direction, by edited layer and token, in units of their
            median length at that layer: above 0 on the side of the target prompts.
        edited: the same under the edit.
        first: the tokens that are among the likeliest ten to begin the response, before or after.
    """

    set: Literal["target", "benign"]
    text: str
    tokens: list[str]
    base: list[list[float]]
    edited: list[list[float]]
    first: list[FirstToken]


class TokenView(Document):
    """tokens.json: what a trial's edit does at every token of some report prompts; see `runs.tokens`.

    Attributes:
        layers: the edited layers; the residual stream after each is put on the direction that is edited there.
    """

    what: ClassVar[str] = "token view"
    indent: ClassVar[int | None] = None

    trial: int
    layers: list[int]
    prompts: list[TokenPrompt]


class Finalist(Part):
    """A trial that judges chose among: its failures to the markers and to the judges, and by judge how far both agree."""

    trial: int
    failures: Count
    judged_failures: Count
    judges: Mapping[str, Agreement]


class Finalists(Part):
    """Trials of the front, on the selection prompts; `chosen` is None if a judge had no verdict at all on one of them.

    Attributes:
        judged_with: settings of the judges.
    """

    finalists: list[Finalist]
    chosen: int | None
    judged_with: Mapping[str, Any]

    @property
    def rule(self) -> str:
        """How the best trial was chosen, in words."""
        return f"fewest failures to judges of {len(self.finalists)} finalists, give or take a standard error"


class BatchSummary(Document):
    """batch_summary.json: how far a run is, its Pareto front, its report."""

    what: ClassVar[str] = "batch summary"

    iconoclast_version: str = __version__
    status: Status
    model: str | None = None
    seed: int | None = None
    study_checkpoint_dir: str = ""
    completed_trials: int
    pruned_trials: int = 0
    fitted_trials: int = 0
    prompts: PromptSets = Field(default={})
    overlap: Mapping[str, int] = Field(default={})
    objectives: list[str] = Field(default=list(DEFAULT))
    kl_divergence_target: float | None = None
    kl_noise_floor: float = 0.0
    base_metrics: Scores
    best_trial: int | None
    pareto_trials: list[TrialDocument]
    finalists: Finalists | None = UNLESS_NONE
    report: Report | None = None

    @property
    def finished_trials(self) -> int:
        """Trials that were measured to their end or pruned."""
        return self.completed_trials + self.pruned_trials

    @property
    def best(self) -> TrialDocument | None:
        """The best trial so far."""
        return next((trial for trial in self.pareto_trials if trial.index == self.best_trial), None)


class DirectionOrigin(Part):
    """Which directions an export of a quantised run uses: those found in the run, or those of the full weights.

    Attributes:
        found_in: quantisation of the run.
        kept: why the run's directions were used; empty if they were estimated again on the full weights.
        cosines: cosine of the run's and the used direction, by layer; empty if they were not estimated again.
    """

    found_in: Quantization
    kept: str = ""
    cosines: list[float] = Field(default=[])

    def __str__(self) -> str:
        """Say it in a sentence."""
        if self.kept:
            return f"The directions are those found in the run's {self.found_in} weights: {self.kept}."
        seen = [each for each in self.cosines if each]  # zero where a layer does not see the prompts
        span = f"{min(seen, default=0):.2f} to {max(seen, default=0):.2f}"
        return (
            f"The run searched in {self.found_in} weights. The directions used here were estimated again on the full weights; "
            f"by layer, their cosine with the run's is {span}."
        )


class ComposedTrial(Part):
    """One of several edits that were exported together: its run and number, the trial, and the prompts of its behaviour."""

    name: str
    trial: TrialDocument
    row_normalization: RowNormalization
    prompts: PromptSets
    split: ExaminedSplit


class Together(Part):
    """Scores of every behaviour, each on its own prompts, under some of the edits, named by their places."""

    edits: list[int]
    scores: list[Scores]


class Composition(Part):
    """Edits one after the other, and how they interfere: none of them, each alone, each pair, all."""

    trials: list[ComposedTrial]
    together: list[Together]

    def named(self, edits: Sequence[int]) -> str:
        """Name some of the edits, for people."""
        return " + ".join(self.trials[i].name for i in edits) or "base model"

    @property
    def interference(self) -> list[str]:
        """Say, pair by pair, which behaviour's failures lie outside the intervals of what its edit does alone."""
        rows = {tuple(row.edits): row.scores for row in self.together}
        found = []
        for pair in [edits for edits in rows if len(edits) == 2]:
            for i in pair:
                alone, both = rows[(i,)][i].failures, rows[pair][i].failures
                if not (alone.near(both)):
                    other = self.trials[sum(pair) - i].name
                    found.append(
                        f"{self.trials[i].name}: {alone.with_interval} {rows[pair][i].failing} alone, "
                        f"{both.with_interval} with {other}"
                    )
        return found


class TrialInformation(Document):
    """trial_information.json of an export: the trial, what was measured of its export, versions.

    Attributes:
        trial: the exported trial.
        base_model: the base model, without the folders of a local path.
        format: adapter, merged or gguf.
        directions: which ones the export of a quantised run uses.
        measured_on: which prompts the scores below are of, in words.
        export_metrics: scores of the export itself; None if it was not measured.
        quantization: of the weights that base and live scores are of.
        approximations: error of every matrix's update, where it is not exact.
        remarks: what the files have otherwise than the base model, beside the edit.
        quants: scores of further quantised GGUF files, by their type, where they were measured dequantised.
        served: what was measured of GGUF files as llama.cpp's llama-server serves them, by their name.
        served_by: the version of llama-server.
        composed: the edits of several runs, if the export holds more than one; `trial` and the scores above are then of
            the first one's run and prompts, the scores with all edits.
    """

    what: ClassVar[str] = "trial_information.json"

    iconoclast_version: str = __version__
    trial: TrialDocument
    base_model: str
    format: ExportFormat
    quantization: Quantization = "none"
    directions: DirectionOrigin | None = UNLESS_NONE
    row_normalization: RowNormalization
    response_prefix: str
    packages: Mapping[str, str] = Field(default={})
    prompts: PromptSets = Field(default={})
    measured_on: str
    kl_noise_floor: float
    base_metrics: Scores
    live_metrics: Scores
    export_metrics: Scores | None
    approximation_error: float = 0.0
    approximations: list[dict[str, Any]] = Field(default=[])
    remarks: list[str] = Field(default=[], exclude_if=lambda value: not value)
    quants: Mapping[str, Scores] = UNLESS_EMPTY
    served: Mapping[str, Metrics] = UNLESS_EMPTY
    served_by: str = Field(default="", exclude_if=lambda value: not value)
    composed: Composition | None = UNLESS_NONE


class ModelOrigin(Part):
    """The base model, with the SHA-256 of every file of weights."""

    name: str
    revision: str | None
    architecture: str
    dtype: str
    quantization: str
    response_prefix: str
    weights: Mapping[str, str]


class Program(Part):
    """This program; its commit if it runs from a checkout."""

    version: str
    commit: str | None


class Hardware(Part):
    """The machine, in words."""

    system: str
    processor: str
    cores: int | None
    threads: int
    memory_gib: float
    gpus: list[str]


class Start(Part):
    """By what, where and when a run was started or continued."""

    at: str
    command: list[str]
    iconoclast: Program
    packages: Mapping[str, str]
    python: str
    hardware: Hardware


class Manifest(Document):
    """manifest.json: what made a run, so that a stranger can make it again and see what differs."""

    what: ClassVar[str] = "manifest"

    seed: int
    model: ModelOrigin
    prompts: PromptSets
    settings: Mapping[str, Any]
    rendering: Rendering | None = UNLESS_NONE
    starts: list[Start]


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


@dataclass(frozen=True)
class Seen(Value):
    """How many of the prompts that a model is examined on have fitted or chosen it, or why that is not known. They flatter it."""

    target: int = 0
    benign: int = 0
    unknown: str | None = None


class Decision(Part):
    """The better of two models, the criterion in which they differ first, and the p-value of that difference."""

    better: str | None = None
    decided_by: Criterion | None = None
    p_value: float | None = None


class Pair(Part):
    """Two models beside each other."""

    first: str
    second: str
    verdict: Decision
    paired: Paired


class ComparedModel(Part):
    """A model that is compared; other tools say more of theirs (`caveats`, for one)."""

    model_config = ConfigDict(extra="allow")

    name: str
    tool: str | None
    trial: TrialDocument | dict[str, Any] | None = UNLESS_NONE
    format: str | None = UNLESS_NONE
    caveats: list[str] | None = UNLESS_NONE
    seen: Seen
    metrics: Metrics
    against_base: Paired


class ComparisonDocument(Document):
    """comparison.json: models beside their base and beside one another."""

    what: ClassVar[str] = "comparison"

    iconoclast_version: str = __version__
    model: str
    split: ExaminedSplit
    prompts: PromptSets
    kl_noise_floor: float
    base_metrics: Metrics
    subjects: list[ComparedModel]
    ranking: list[str]
    pairs: list[Pair]
    samples: list[Sample] = Field(default=[])


DOCUMENTS: dict[str, type[Document]] = {
    AUDIT: AuditDocument,
    BASELINE: Baseline,
    COMPARISON: ComparisonDocument,
    GEOMETRY: Geometry,
    MANIFEST: Manifest,
    SUMMARY: BatchSummary,
    TOKENS: TokenView,
    TRIAL_INFORMATION: TrialInformation,
}
"""File → what it holds."""


def schemas() -> dict[str, str]:
    """Give the JSON schema of every file, as text: name of the schema's file → content."""
    return {
        f"{Path(name).stem}.schema.json": json.dumps(kind.model_json_schema(mode="serialization"), indent=2) + "\n"
        for name, kind in DOCUMENTS.items()
    }
