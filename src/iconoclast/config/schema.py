"""Every setting: typed, described, strict."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from iconoclast.vocabulary import Component, DirectionScope, Dtype, Quantization, RowNormalization, known_methods

ENVIRONMENT_PREFIX = "ICONOCLAST_"
Marker = Annotated[str, StringConstraints(strip_whitespace=True, min_length=2)]
AxisWeight = Annotated[str, StringConstraints(pattern=r"^[^=]+=\d+(\.\d+)?$")]
MemoryLimit = Annotated[str, StringConstraints(pattern=r"^(\d+|cpu|mps|disk)=\d+(\.\d+)?\s*([KMGT]i?B)$")]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


MARKERS: dict[str, list[str]] = tomllib.loads(
    files("iconoclast.evaluation").joinpath("markers.toml").read_text(encoding="utf-8")
)
"""Phrases that mark refusals, disclaimers and soft refusals."""


def _rank(value: Any) -> Any:
    """One validator, so that a bad value is one problem and not one for every type it could have had."""
    if value == "auto":
        return value
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError('Input should be a number from 1 on, or "auto"')
    return value


def _method(value: Any) -> Any:
    """Like a Literal, but with the estimators of installed packages."""
    names = [f"'{name}'" for name in known_methods()]
    if f"'{value}'" not in names:
        raise ValueError(f"Input should be {', '.join(names[:-1])} or {names[-1]}")
    return value


Method = Annotated[str, PlainValidator(_method)]
Rank = Annotated[int | Literal["auto"], PlainValidator(_rank)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PromptSource(BaseModel):
    """Where one prompt set comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: NonEmpty = Field(
        description="Hub data set id, a data set saved on disk, a csv, json, jsonl, parquet or txt file, or builtin:NAME/target, builtin:NAME/benign."
    )
    name: str | None = Field(default=None, description="Configuration of the hub data set.")
    split: str = Field(
        default="train",
        description='Split and slice, as in "train", "train[:240]" or "test[10%:20%]". In a file with a split column it selects those rows.',
    )
    column: str | None = Field(
        default=None, description='Column with the prompts. Unset: "text", or the only column of text.'
    )
    axis: str | None = Field(
        default=None,
        description="Column that says to which axis (kind of behaviour) a target prompt belongs; scores are then given per axis as well.",
    )
    prefix: str = Field(default="", description="Text put before every prompt.")
    suffix: str = Field(default="", description="Text put after every prompt.")
    system_prompt: str | None = Field(
        default=None, description="System prompt for this set. Unset: the general system_prompt."
    )
    residual_plot_label: str | None = Field(default=None, description="Name of the set in residual plots.")
    residual_plot_color: str | None = Field(default=None, description="Colour of the set in residual plots.")


class JudgeClassifier(BaseModel):
    """A text-classification model that says what a response is."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: NonEmpty = Field(description="Hub id or folder of a text-classification model that judges responses.")
    refusal_labels: list[NonEmpty] = Field(
        default=[], description="Its labels that mean a refusal. Unset: those whose name says so."
    )
    pair: bool = Field(
        default=False,
        description="Give it prompt and response as a pair; most rejection classifiers read the response alone.",
    )


class JudgeChat(BaseModel):
    """A chat endpoint that says what a response is."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    url: NonEmpty = Field(
        description="OpenAI-compatible endpoint that judges responses, such as http://localhost:8000/v1. It is sent prompts and responses."
    )
    model: NonEmpty = Field(
        description="Name of the model at that endpoint; one that reasons must be told not to, an answer has 16 tokens."
    )
    api_key_variable: str | None = Field(
        default=None, description="Environment variable that holds the key. The key itself is never written anywhere."
    )
    concurrency: int = Field(default=8, ge=1, description="Requests at a time.")
    timeout: Positive = Field(default=60.0, description="Seconds to wait for an answer.")


def _builtin(role: str, split: str, label: str, color: str) -> PromptSource:
    return PromptSource(
        dataset=f"builtin:everyday/{role}", split=split, residual_plot_label=label, residual_plot_color=color
    )


FIT_AND_SELECT = ("good_prompts", "bad_prompts", "good_evaluation_prompts", "bad_evaluation_prompts")
"""Settings of the prompt sets that fit and choose an edit."""

SYNONYMS = {
    "benign_prompts": "good_prompts",
    "target_prompts": "bad_prompts",
    "benign_select_prompts": "good_evaluation_prompts",
    "target_select_prompts": "bad_evaluation_prompts",
    "benign_report_prompts": "good_report_prompts",
    "target_report_prompts": "bad_report_prompts",
}
"""The words of the glossary for prompt sets → the settings' own names, which are those of the first release."""


def canonical(name: str) -> str:
    """Return a setting's own name for any name that it goes by."""
    return SYNONYMS.get(name, name)


class Settings(BaseSettings):
    """Everything that a run can be told. Built directly, it takes its arguments and the defaults, nothing else."""

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", validate_default=True
    )

    # Model
    model: NonEmpty | None = Field(
        default=None, description="Hub id, model folder, .gguf file, or demo (the model that comes along)."
    )
    dtypes: list[Dtype] = Field(
        default=["auto", "bfloat16", "float16", "float32"],
        min_length=1,
        description="Data types to try in this order; the first that loads and whose forward pass has no NaN is used.",
    )
    quantization: Quantization = Field(
        default="none",
        description="bnb_4bit and bnb_8bit hold the weights in 4 or 8 bits, for models larger than the memory.",
    )
    device_map: str = Field(default="auto", description="Where the weights go: auto, cpu, cuda, cuda:1, ...")
    max_memory: list[MemoryLimit] = Field(
        default=[],
        description="The most that goes to each device, as in 0=20GiB or cpu=60GiB; the rest goes to the disk. With device_map auto.",
    )
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that the model's repository brings. Off for your safety."
    )
    chat_template: str | None = Field(
        default=None,
        description="For a tokenizer without one: plain (User/Assistant turns), raw (the bare prompt), or a Jinja file.",
    )
    system_prompt: str | None = Field(
        default=None,
        description="System prompt for every set that has none of its own. Unset: none is added.",
    )
    response_prefix: str | None = Field(
        default=None,
        description="Text every response starts with. Unset: found by looking; a thinking block is closed.",
    )

    # Work
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="Seed of the search.")
    batch_size: int = Field(
        default=0, ge=0, description="Sequences per forward pass. 0: as many as fit, up to max_batch_size."
    )
    max_batch_size: int = Field(default=512, ge=1, description="Upper limit when batch_size is 0.")
    max_response_length: int = Field(
        default=96,
        ge=1,
        description="Tokens generated per target response. Short ones are cheap, but can hide a refusal that comes late.",
    )
    max_benign_response_length: int = Field(
        default=32,
        ge=1,
        description="Tokens generated per benign response, only to see whether it is refused, which shows early.",
    )

    # Prompts
    good_prompts: PromptSource = Field(
        default=_builtin("benign", "fit", "Knowledge prompts", "royalblue"),
        description="Benign prompts that the directions are fitted on.",
    )
    bad_prompts: PromptSource = Field(
        default=_builtin("target", "fit", "Everyday requests", "darkorange"),
        description="Target prompts, which show the behaviour, that the directions are fitted on.",
    )
    good_evaluation_prompts: PromptSource = Field(
        default=_builtin("benign", "select", "Knowledge prompts", "royalblue"),
        description="Benign prompts that every trial is scored on (overrefusals, KL divergence).",
    )
    bad_evaluation_prompts: PromptSource = Field(
        default=_builtin("target", "select", "Everyday requests", "darkorange"),
        description="Target prompts that every trial is scored on (refusals).",
    )
    borderline_report_prompts: PromptSource | None = Field(
        default=None,
        description="Benign prompts that look as if they were not, measured once at the end: a second kind of overrefusal.",
    )
    allow_overlap: list[NonEmpty] = Field(
        default=[],
        description='Pairs of prompt sets that may share prompts, as in "good_prompts and good_evaluation_prompts". Otherwise it is an error.',
    )
    good_report_prompts: PromptSource | None = Field(
        default=None,
        description="Benign prompts measured once, at the end, for the base model and the best trial. They choose nothing. Unset, a run on the package's own prompts takes its report split.",
    )
    bad_report_prompts: PromptSource | None = Field(
        default=None,
        description="Target prompts measured once, at the end, for the base model and the best trial. Unset as good_report_prompts.",
    )

    # Directions
    direction_methods: list[Method] = Field(
        default=["mean", "median", "variance", "hybrid"],
        min_length=1,
        description="Estimators that the search chooses from.",
    )
    direction_scopes: list[DirectionScope] = Field(
        default=["global", "per_layer"],
        min_length=1,
        description="One direction for all layers, taken at a searched layer index, or each layer's own.",
    )
    direction_variance_floor: Positive = Field(
        default=1e-6,
        description="Added to the pooled variance, so that a quiet coordinate cannot take over.",
    )
    orthogonalize_direction: bool = Field(
        default=True, description="Remove the benign mean residual from every direction."
    )
    benign_subspace_rank: int = Field(
        default=8,
        ge=0,
        description="Principal directions of the benign residuals that are kept out of every direction.",
    )
    winsorization_quantile: float = Field(
        default=1.0, gt=0.5, le=1, description="Clip each residual's magnitudes at this quantile. 1: off."
    )

    # Edit
    components: list[Component] = Field(
        default=["attn.o_proj", "mlp.down_proj"],
        min_length=1,
        description="Which residual writers are edited.",
    )
    row_normalization: RowNormalization = Field(
        default="pre",
        description="none: plain projection. pre: the projection acts on normalised rows. full: row norms are kept as well.",
    )
    full_normalization_lora_rank: Rank = Field(
        default=3,
        description="Rank of an adapter exported for row_normalization full, which is not low-rank. auto: for every matrix the "
        "smallest with a relative error under 1 %.",
    )

    # Scores
    refusal_markers: list[Marker] = Field(
        default=MARKERS["refusal_markers"],
        min_length=1,
        description="A response that holds one of these is a refusal (lower case, apostrophes and spaces unified).",
    )
    disclaimer_markers: list[Marker] = Field(
        default=MARKERS["disclaimer_markers"],
        description="Phrases counted in target responses that hedge without refusing.",
    )
    soft_refusal_markers: list[Marker] = Field(
        default=MARKERS["soft_refusal_markers"],
        description="A response that is no refusal but holds one of these turns the request away: a soft refusal.",
    )
    axis_weights: list[AxisWeight] = Field(
        default=[],
        description='Weights of axes in the refusal rate that the search minimises, as in "privacy=2". Unnamed ones weigh 1.',
    )
    random_controls: int = Field(
        default=3,
        ge=0,
        description="Edits along random directions of the same strength that the report measures beside the best trial. They should do little.",
    )
    judge_classifier: JudgeClassifier | None = Field(
        default=None, description="A classification model that judges the report's responses beside the markers."
    )
    judge_chat: JudgeChat | None = Field(
        default=None, description="A chat model that judges the report's responses beside the markers."
    )
    judges: list[NonEmpty] = Field(
        default=[], description="Names of judges that installed packages add (entry points in iconoclast.judges)."
    )
    kl_divergence_target: Positive = Field(
        default=0.1,
        description="KL divergence (nats) that is small enough; below it trials compete on behaviour alone, and the best trial is taken from those below it.",
    )
    overrefusal_penalty: Weight = Field(default=0.32, description="Weight of the overrefusal rate.")
    harmful_marker_penalty: Weight = Field(
        default=0.18, description="Weight of the disclaimer rate in target responses."
    )
    compliance_gap_penalty: Weight = Field(
        default=0.42, description="Weight of 1 - compliance score of target responses."
    )

    # Search
    n_trials: int = Field(default=200, ge=1, description="Trials in total, those of an earlier start included.")
    n_startup_trials: int = Field(default=16, ge=1, description="Random trials before the sampler learns from them.")
    trials_per_batch: int = Field(
        default=16,
        ge=1,
        description="Trials measured together in one batch, the random ones apart in batches half as wide. More is faster, and learns later.",
    )
    prune_trials: bool = Field(
        default=True,
        description="Stop measuring a trial as soon as a completed one is certain to beat it. No trial of the Pareto front is lost.",
    )
    study_checkpoint_dir: Path | None = Field(
        default=None, description="The run folder. Unset: runs/ and the model's name."
    )
    study_storage: str | None = Field(
        default=None,
        description="URL of a database or server that keeps the study in the place of the journal in the run folder: postgresql://…, redis://…, or grpc://HOST:PORT of an Optuna storage proxy. $NAME stands for an environment variable.",
    )
    exit_after_optimization: bool = Field(
        default=False, description="End when the trials are done instead of offering what to do with them."
    )

    @model_validator(mode="before")
    @classmethod
    def _take_synonyms(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        twice = [name for name in given if name in SYNONYMS and SYNONYMS[name] in given]
        if twice:
            raise ValueError(f"{twice[0]} and {SYNONYMS[twice[0]]} are the same setting; give one of them")
        return {canonical(name): value for name, value in given.items()}

    @property
    def memory_limits(self) -> dict[str, str]:
        """`max_memory` by device."""
        return dict(entry.split("=", 1) for entry in self.max_memory)

    @property
    def weights_of_axes(self) -> dict[str, float]:
        """`axis_weights` by name."""
        return {name: float(weight) for name, _, weight in (entry.rpartition("=") for entry in self.axis_weights)}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes: `load_settings` does the layering, and remembers where each value came from."""
        return (init_settings,)


def settings_document(settings: Settings) -> dict[str, Any]:
    """The settings as plain data for TOML: unset values are left out, paths are text."""
    return settings.model_dump(mode="json", exclude_none=True)
