"""Every setting: typed, described, strict."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from iconoclast.config.packs import load_pack
from iconoclast.config.values import (
    AxisWeight,
    ConstraintText,
    Marker,
    MemoryLimit,
    Method,
    NonEmpty,
    ObjectiveText,
    Pattern,
    Positive,
    Rank,
    TemplateDate,
    Weight,
)
from iconoclast.constraints import constrained
from iconoclast.documents import Plain
from iconoclast.goals import DEFAULT, JUDGED, PERPLEXITY, Objective, named, short
from iconoclast.vocabulary import (
    SYNONYMS,
    Component,
    DirectionScope,
    Dtype,
    Quantization,
    RowNormalization,
    Thinking,
)

MARKERS: dict[str, list[str]] = tomllib.loads((files("iconoclast.evaluation") / "markers.toml").read_text("utf-8"))
"""Phrases that mark refusals, disclaimers and soft refusals."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class PromptSource(_Section):
    """The place that one prompt set comes from."""

    dataset: NonEmpty
    """Hub id, saved data set, csv, tsv, json, jsonl, parquet or txt file, or a side of a behaviour pack: builtin:NAME/target,
    builtin:NAME/benign, pack:PATH/target, pack:PATH/benign."""
    name: str | None = None
    """Configuration of the hub data set."""
    split: str = "train"
    """Split and slice, as in "train", "train[:240]", "test[10%:20%]". In a file with a split column it selects rows."""
    column: str | None = None
    """Column with the prompts, or a field in it ("prompt.text"); of a conversation, its first user turn. Unset: "text", or the only column of text."""
    axis: str | None = None
    """Column that says to which axis (kind of behaviour) a target prompt belongs; scores are given per axis as well."""
    prefix: str = ""
    """Text put before every prompt."""
    suffix: str = ""
    """Text put after every prompt."""
    system_prompt: str | None = None
    """System prompt for this set. Unset: the general system_prompt."""
    residual_plot_label: str | None = None
    """Name of the set in residual plots."""
    residual_plot_color: str | None = None
    """Colour of the set in residual plots."""


class JudgeClassifier(_Section):
    """A text-classification model that says what a response is."""

    model: NonEmpty
    """Hub id or folder of a text-classification model that judges responses."""
    refusal_labels: list[NonEmpty] = []
    """Its labels that mean a refusal. Unset: those whose name says so."""
    pair: bool = False
    """Give it prompt and response as a pair; most rejection classifiers read the response alone."""


class JudgeChat(_Section):
    """A chat endpoint that says what a response is."""

    url: NonEmpty
    """OpenAI-compatible endpoint that is sent prompts and responses to judge, such as http://localhost:8000/v1."""
    model: NonEmpty
    """Name of the model at that endpoint; one that reasons must be told not to, an answer has 16 tokens."""
    api_key_variable: str | None = None
    """Environment variable that holds the key. The key itself is never written anywhere."""
    concurrency: int = Field(default=8, ge=1)
    """Requests at a time."""
    timeout: Positive = 60.0
    """Seconds to wait for an answer."""


def _builtin(role: str, split: str, label: str, color: str) -> PromptSource:
    return PromptSource(
        dataset=f"builtin:everyday/{role}", split=split, residual_plot_label=label, residual_plot_color=color
    )


FIT_AND_SELECT = ("good_prompts", "bad_prompts", "good_evaluation_prompts", "bad_evaluation_prompts")
"""Settings of the prompt sets that fit and choose an edit."""


def canonical(name: str) -> str:
    """Return a setting's own name for any name that it goes by."""
    return SYNONYMS.get(name, name)


def _by_own_names(given: Plain) -> Plain:
    twice = [name for name in given if name in SYNONYMS and SYNONYMS[name] in given]
    if twice:
        raise ValueError(f"{twice[0]} and {SYNONYMS[twice[0]]} are the same setting; give one of them")
    return {canonical(name): value for name, value in given.items()}


class Settings(BaseModel):
    """Everything that a run can be told. Built directly, it takes its arguments and the defaults, nothing else.

    >>> ic.Settings(model="demo").n_trials
    200
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, use_attribute_docstrings=True)

    # Model
    model: NonEmpty | None = None
    """Hub id, model folder, .gguf file, or demo (the model that comes along)."""
    dtypes: list[Dtype] = Field(default=["auto", "bfloat16", "float16", "float32"], min_length=1)
    """Data types to try in this order; the first that loads and whose forward pass has no NaN is used."""
    quantization: Quantization = "none"
    """bnb_4bit and bnb_8bit hold the weights in 4 or 8 bits, for models larger than the memory."""
    device_map: str = "auto"
    """Place of the weights: auto, cpu, cuda, cuda:1, ..."""
    max_memory: list[MemoryLimit] = []
    """The most that goes to each device with device_map auto, as in 0=20GiB or cpu=60GiB; the rest goes to the disk."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository brings. Off for your safety."""
    chat_template: str | None = None
    """For a tokenizer without one: plain (User/Assistant turns), raw (the bare prompt), or a Jinja file."""
    template_date: TemplateDate | None = None
    """Date that a chat template is told, as in 2026-11-28 or 2026-11-28T09:30:00. Unset: that of the run's first start."""
    system_prompt: str | None = None
    """System prompt for every set that has none of its own. Unset: none is added."""
    response_prefix: str | None = None
    """Text every response starts with. Unset: found by looking; a thinking block is closed."""
    thinking: Thinking = "off"
    """Whether the model may think before it answers: off (its thinking block is closed at once), on (answers are read after
    the block), or both (off for the search, while the report measures base model and best trial with thoughts too)."""
    max_thought_length: int = Field(default=512, ge=1)
    """Tokens of thoughts; a response that needs more has no answer, which counts as broken and is reported."""

    # Work
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of the search."""
    batch_size: int = Field(default=0, ge=0)
    """Sequences per forward pass. 0: as many as fit, up to max_batch_size."""
    max_batch_size: int = Field(default=512, ge=1)
    """Upper limit when batch_size is 0."""
    max_response_length: int = Field(default=96, ge=1)
    """Tokens generated per target response. Short ones are cheap, but can hide a refusal that comes late."""
    max_benign_response_length: int = Field(default=32, ge=1)
    """Tokens generated per benign response, only to see whether it is refused, which shows early."""

    cache_gib: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 4.0
    """GiB that the cache of what was computed for a model and prompts may take, which later runs on both start with
    (`iconoclast cache list`). 0: nothing is kept or read."""

    # Prompts
    behavior: NonEmpty | None = Field(default=None, exclude=True)
    """A behaviour pack, by name or path: its prompt sets, markers and settings take the defaults' place. What it stands
    for is written down in the run, not its name (`iconoclast behaviors list`)."""
    good_prompts: PromptSource = _builtin("benign", "fit", "Knowledge prompts", "royalblue")
    """Benign prompts that the directions are fitted on."""
    bad_prompts: PromptSource = _builtin("target", "fit", "Everyday requests", "darkorange")
    """Target prompts, which show the behaviour, that the directions are fitted on."""
    good_evaluation_prompts: PromptSource = _builtin("benign", "select", "Knowledge prompts", "royalblue")
    """Benign prompts that every trial is scored on (overrefusals, KL divergence)."""
    bad_evaluation_prompts: PromptSource = _builtin("target", "select", "Everyday requests", "darkorange")
    """Target prompts that every trial is scored on (refusals)."""
    borderline_report_prompts: PromptSource | None = None
    """Benign prompts that look as if they were not, measured once at the end: a second kind of overrefusal."""
    allow_overlap: list[NonEmpty] = []
    """Pairs of prompt sets that may share prompts, as in "good_prompts and good_evaluation_prompts". Else an error."""
    good_report_prompts: PromptSource | None = None
    """Benign prompts measured once, at the end, for the base model and the best trial. They choose nothing. Unset, a
    run on the package's own prompts takes its report split."""
    bad_report_prompts: PromptSource | None = None
    """Target prompts measured once, at the end, for the base model and the best trial. Unset as good_report_prompts."""

    # Directions
    direction_methods: list[Method] = Field(default=["mean", "median", "variance", "hybrid"], min_length=1)
    """Estimators that the search chooses from."""
    direction_scopes: list[DirectionScope] = Field(default=["global", "per_layer"], min_length=1)
    """One direction for all layers, taken at a searched layer index, or each layer's own."""
    direction_variance_floor: Positive = 1e-6
    """Added to the pooled variance, so that a quiet coordinate cannot take over."""
    orthogonalize_direction: bool = True
    """Remove the benign mean residual from every direction."""
    benign_subspace_rank: int = Field(default=8, ge=0)
    """Principal directions of the benign residuals that are kept out of every direction."""
    winsorization_quantile: float = Field(default=1.0, gt=0.5, le=1)
    """Clip each residual's magnitudes at this quantile. 1: off."""

    # Edit
    components: list[Component] = Field(default=["attn.o_proj", "mlp.down_proj"], min_length=1)
    """Which residual writers are edited. Finer ones, as attn.linear, mlp.experts, mlp.shared and per_layer.proj, get a strength
    of their own; unnamed, they belong to one of these two."""
    row_normalization: RowNormalization = "pre"
    """none: plain projection. pre: the projection acts on normalised rows. full: row norms are kept as well."""
    full_normalization_lora_rank: Rank = 3
    """Rank of an adapter exported for row_normalization full, which is not low-rank. auto: for every matrix the
    smallest with a relative error under 1 %."""

    # Scores
    refusal_markers: list[Marker] = MARKERS["refusal_markers"]
    """A response that holds one of these is a refusal (lower case, apostrophes and spaces unified)."""
    refusal_patterns: list[Pattern] = []
    """A response in which one of these regular expressions is found is a refusal, that is, shows the behaviour."""
    refusal_rules: list[NonEmpty] = []
    """A response to which one of these rules applies is a refusal: lengthy, wordy, wrong_claim, other_language, asked_language, or a
    function of yours as FILE.py:name, which is called as name(response, prompt=...) and returns true or false."""
    disclaimer_markers: list[Marker] = MARKERS["disclaimer_markers"]
    """Phrases counted in target responses that hedge without refusing."""
    soft_refusal_markers: list[Marker] = MARKERS["soft_refusal_markers"]
    """A response that is not a refusal but holds one of these turns the request away: a soft refusal."""
    soft_refusal_rules: list[NonEmpty] = ["explains_request"]
    """A response that is not a refusal but to which one of these rules applies is a soft refusal: explains_request, which finds
    talk about a request's words or things in place of what is asked (in English), or another as in refusal_rules."""
    axis_weights: list[AxisWeight] = []
    """Weights of axes in the refusal rate that the search minimises, as in "privacy=2". Unnamed ones weigh 1."""
    random_controls: int = Field(default=3, ge=0)
    """Edits along random directions, as strong as the best trial, which the report measures. They should do little."""
    judge_classifier: JudgeClassifier | None = None
    """A classification model that judges the report's responses beside the markers."""
    judge_chat: JudgeChat | None = None
    """A chat model that judges the report's responses beside the markers."""
    judges: list[NonEmpty] = []
    """Names of judges that installed packages add (entry points in iconoclast.judges)."""
    judged_finalists: int = Field(default=0, ge=0)
    """Trials of the front, the best ones, among which the judges' labels choose in the end. 0: judges choose nothing."""
    kl_divergence_target: Positive = 0.1
    """KL divergence (nats) that is small enough; below it trials compete on behaviour alone, and the best trial is
    taken from those below it."""
    overrefusal_penalty: Weight = 0.32
    """Weight of the overrefusal rate."""
    harmful_marker_penalty: Weight = 0.18
    """Weight of the disclaimer rate in target responses."""
    compliance_gap_penalty: Weight = 0.42
    """Weight of 1 - compliance score of target responses."""

    # Search
    n_trials: int = Field(default=200, ge=1)
    """Trials in total, those of an earlier start included."""
    n_startup_trials: int = Field(default=16, ge=1)
    """Trials before the sampler learns from them: up to eight standard edits, then random ones."""
    trials_per_batch: int = Field(default=16, ge=1)
    """Trials measured together in one batch; those before the sampler learns in batches a quarter as wide. More is faster, and learns later."""
    objectives: list[ObjectiveText] = Field(default=list(DEFAULT), min_length=2)
    """Scores that the search minimises, the first first; a minus before one maximises it. By default those of the seed
    documents. Others: overrefusals, broken, disclaimers, compliance, judged_failures, token_kl, perplexity:FILE, a task of lm-eval as
    arc_easy[:100], a function of yours as FILE.py:name: see docs/behaviors.md."""
    constraints: list[ConstraintText] = []
    """Limits that the best trial must keep, as "overrefusals <= 0.1" or "FILE.py:name >= base - 0.05" with a function of
    yours, called as name(responses, prompts=...): see docs/behaviors.md. Trials that violate one are not on the front."""
    strengthen: bool = False
    """Make the model refuse, that is show the behaviour, more instead of less: edits then write more of the direction, and
    a failure is a target prompt that is not refused."""
    prune_trials: bool = True
    """Stop measuring a trial as soon as a completed one is certain to beat it. No trial of the Pareto front is lost."""
    fit: bool = True
    """After the search, let every site's direction and strength follow the gradient from the strongest trial, and
    measure the edit that comes out, at several scales, as trials like others."""
    fit_steps: int = Field(default=120, ge=1)
    """Gradient steps of the fit, in three rounds: what pushes the behaviour (preference and opening weight) counts whole in the
    first, 0.7 in the second and half in the third."""
    fit_rate: Positive = 0.03
    """Adam's learning rate of strengths; that of directions and readings is a tenth of it."""
    fit_readings: bool = True
    """Let what a site reads of its own output part from the direction along which it is taken away."""
    fit_examples: int = Field(default=400, ge=2)
    """Fit prompts of each kind that the fit learns from, at most."""
    fit_preference_weight: Weight = 0.05
    """Weight of how far responses without the behaviour lead over the base model's own ones at the token where they
    part; nothing where they lead by far. More changes the behaviour further."""
    fit_opening_weight: Weight = 0.02
    """Weight of how likely responses without the behaviour to target prompts are, beside 1 for the benign divergence."""
    fit_continuation_weight: Weight = 0.0
    """Weight of the divergence from the base model after the first ten tokens of such responses, of which then only those are
    learned. The base model often turns back to the behaviour after them."""
    fit_first_token_weight: Weight = 0.1
    """Weight of the benign divergence at the first token, beside that at all tokens."""
    fit_loop_weight: Weight = 0.02
    """Weight of the unlikelihood of tokens with which broken responses began to loop."""
    fit_proximity_weight: Weight = 0.0
    """Weight of the squared distance of directions times strengths from those of the start."""
    fit_scales: list[Positive] = Field(default=[0.5, 0.6, 0.7, 0.85, 1.0], min_length=1)
    """Factors of the fitted strengths that are measured."""
    study_checkpoint_dir: Path | None = None
    """The run folder. Unset: runs/ and the model's name."""
    study_storage: str | None = None
    """URL of a database or server that keeps the study in the place of the journal in the run folder: postgresql://…,
    redis://…, or grpc://HOST:PORT of an Optuna storage proxy. $NAME stands for an environment variable."""
    exit_after_optimization: bool = False
    """End when the trials are done instead of offering what to do with them."""

    @model_validator(mode="before")
    @classmethod
    def _take_synonyms(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        named = _by_own_names(given)
        pack = named.get("behavior")
        return {**_by_own_names(load_pack(pack).as_settings()), **named} if isinstance(pack, str) and pack else named

    @model_validator(mode="after")
    def _has_marks(self) -> "Settings":
        if not (self.refusal_markers or self.refusal_patterns or self.refusal_rules):
            raise ValueError(
                "refusal_markers, refusal_patterns and refusal_rules are all empty: nothing marks the behaviour"
            )
        return self

    @model_validator(mode="after")
    def _has_different_objectives(self) -> "Settings":
        names = [Objective(text).name for text in self.objectives]
        if len(set(map(short, names))) < len(names):
            raise ValueError(f"objectives {', '.join(self.objectives)} name one score twice")
        return self

    @property
    def named_scores(self) -> tuple[str, ...]:
        """Scores that objectives and constraints name, beside those that every edit has."""
        return named(self.objectives, constrained(self.constraints))

    @property
    def memory_limits(self) -> dict[str, str]:
        """`max_memory` by device."""
        return dict(entry.split("=", 1) for entry in self.max_memory)

    @property
    def weights_of_axes(self) -> dict[str, float]:
        """`axis_weights` by name."""
        return {name: float(weight) for name, _, weight in (entry.rpartition("=") for entry in self.axis_weights)}


def settings_document(settings: Settings) -> Plain:
    """Return the settings as plain data for TOML: unset values are left out, paths are text."""
    return settings.model_dump(mode="json", exclude_none=True)


def without_functions(settings: Settings) -> Settings:
    """Return the settings without what runs code, reads files of the user's or asks judges: for run folders that can be a stranger's."""
    kept = {
        name: [
            text
            for text in getattr(settings, name)
            if not any(mark in text for mark in (".py:", ".yaml", PERPLEXITY, JUDGED))
        ]
        for name in ("refusal_rules", "soft_refusal_rules", "constraints", "objectives")
    }
    return settings.model_copy(update=kept)
