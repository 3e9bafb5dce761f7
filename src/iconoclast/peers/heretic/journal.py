"""Journals of heretic 1.2 to 1.4 and of its main branch (July 2026), read; their trials made again as Edits.

A journal is Optuna's JSON lines, one study in a file. Facts about heretic: https://github.com/p-e-w/heretic.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

from jinja2 import TemplateError
from optuna.trial import TrialState
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from torch import Tensor

from iconoclast.config.schema import PromptSource
from iconoclast.directions.estimators import estimate_directions, interpolate
from iconoclast.directions.subspace import winsorize
from iconoclast.documents import Plain, first_problem
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import affordable_rows
from iconoclast.models.residuals import last_token_residuals
from iconoclast.prompts import PromptSet
from iconoclast.scores import Count, no_more_than
from iconoclast.search.study import STUDY_NAME
from iconoclast.vocabulary import COMPONENTS, Quantization, RowNormalization

LONGEST_LINE = 2**20
"""Bytes; heretic's longest line, its settings, has a few thousand."""

WANTED = "Give the .jsonl file that heretic has written to its checkpoints folder, or the reproduce.json of its export."


def _prompt_source(document: Any) -> Any:
    # heretic puts a space beside prefix and suffix, and reads every line of a text file, whatever column and split are called.
    if not isinstance(document, dict):
        return document
    keys = ("dataset", "split", "column", "system_prompt")
    source = {key: document[key] for key in keys if document.get(key) is not None}
    if str(source.get("dataset")).endswith(".txt"):
        source.pop("column", None)
        _, bracket, limits = str(source.get("split", "")).partition("[")
        source["split"] = bracket + limits
    affixes = {"prefix": "{} ", "suffix": " {}"}
    return source | {key: affix.format(text) for key, affix in affixes.items() if (text := document.get(key))}


Source = Annotated[PromptSource, BeforeValidator(_prompt_source)]


def _moved(setting: str, plugin: str, key: str) -> Any:
    """Return a setting that heretic's main branch keeps below a scorer."""
    return Field(default=None, validation_alias=AliasChoices(setting, AliasPath("scorer", plugin, key)))


class HereticSettings(BaseModel):
    """The settings of a heretic study that bear on its trials and their measurement.

    A value missing from a journal is heretic's behaviour before it had that setting, or unknown (None). Revisions of
    hub data sets are not kept: prompts are read as they are now.

    Attributes:
        model_commit: the pinned revision of the model.
        response_prefix: start of every response; unknown for heretic 1.2.
        refusal_markers: None where heretic's own were used and the journal does not repeat them.
        full_normalization_lora_rank: rank at which heretic approximated the row normalisation full.
        winsorization_quantile: where the magnitudes of residuals were clipped; at 1, nowhere.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model: str
    model_commit: str | None = None
    quantization: Quantization = "none"
    good_prompts: Source
    bad_prompts: Source
    good_evaluation_prompts: Source | None = _moved("good_evaluation_prompts", "KLDivergence", "prompts")
    bad_evaluation_prompts: Source | None = _moved("bad_evaluation_prompts", "KeywordRate", "prompts")
    system_prompt: str = "You are a helpful assistant."
    response_prefix: str | None = None
    refusal_markers: tuple[str, ...] | None = _moved("refusal_markers", "KeywordRate", "keyword_markers")
    max_response_length: PositiveInt = 100
    row_normalization: RowNormalization = "none"
    full_normalization_lora_rank: PositiveInt = 3
    orthogonalize_direction: bool = False
    winsorization_quantile: float = Field(default=1.0, allow_inf_nan=False)
    seed: int | None = None


class HereticTrial(BaseModel):
    """A completed trial of heretic; 1.2 leaves out the base model's refusals and the number of prompts.

    Attributes:
        number: as heretic shows it, from 1.
        kl_divergence: of the first response token on the benign evaluation prompts, in nats.
        direction_index: layer of the one direction for all layers, or None for each layer's own.
        profiles: component, by its name here → strength profile.
        prompts: number of target evaluation prompts.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    number: PositiveInt = Field(validation_alias="index")
    refusals: NonNegativeInt
    kl_divergence: float
    direction_index: float | None
    profiles: dict[str, Profile] = Field(validation_alias="parameters", min_length=1)
    base_refusals: NonNegativeInt | None = None
    prompts: PositiveInt | None = Field(default=None, validation_alias="n_bad_prompts")

    @model_validator(mode="after")
    def _refusals_are_of_the_prompts(self) -> "HereticTrial":
        if self.prompts is not None and max(self.refusals, self.base_refusals or 0) > self.prompts:
            raise ValueError(f"more refusals than its {self.prompts} prompts")
        return self


@dataclass(frozen=True)
class HereticStudy:
    """A heretic study: its journal, and its completed trials by number, at least one."""

    file: Path
    settings: HereticSettings
    trials: tuple[HereticTrial, ...]

    @classmethod
    def read(cls, file: Path) -> "HereticStudy":
        """Read a journal, without even a lock, or reproduce.json, whose only trial is 1.

        Raises:
            RunFolderError: the file is foreign, damaged or without trials.
        """
        try:
            names, attributes, completed = _reproduced(file) if file.suffix == ".json" else _contents(file)
        except OSError as error:
            raise RunFolderError(f"The journal {file} cannot be read: {error.strerror}. {WANTED}") from None
        if names == [STUDY_NAME]:
            raise RunFolderError(
                f"{file} is the journal of a run of this program, not of heretic. Give its run folder: {file.parent}."
            )
        if names != ["heretic"]:
            found = f"a study {names[0][:60]!r}" if len(names) == 1 else f"{len(names) or 'no'} studies"
            raise RunFolderError(f"{file} is not a journal of heretic: it holds {found}. {WANTED}")
        try:
            settings = HereticSettings.model_validate_json(attributes.get("settings", "{}"))
        except ValidationError as error:
            raise RunFolderError(f"The settings in {file} are not understood: {first_problem(error)}.") from None
        trials = sorted((_trial(file, attributes) for attributes in completed), key=lambda trial: trial.number)
        if not trials:
            raise RunFolderError(f"The heretic study {file} has no completed trial. Let heretic complete one first.")
        return cls(file, settings, tuple(trials))

    @property
    def caveats(self) -> list[str]:
        """List possible differences between a replay and heretic's measurements."""
        s = self.settings
        known = {
            f"heretic used revision {s.model_commit} of the model": s.model_commit is not None,
            "the journal does not say what heretic let responses start with": s.response_prefix is None,
            "heretic quantised the constants of its 4-bit weights as well": s.quantization == "bnb_4bit",
            "heretic gave every prompt an empty system message": not s.system_prompt,
        }
        return [caveat for caveat, applies in known.items() if applies]

    def trial(self, number: int) -> HereticTrial:
        """Return a completed trial by the number that heretic shows; raise RunFolderError if there is no such trial."""
        trials = {trial.number: trial for trial in self.trials}
        if number not in trials:
            numbers = ", ".join(map(str, trials))
            raise RunFolderError(f"{self.file} has no completed trial {number}. Give one of these: {numbers}.")
        return trials[number]

    def best(self, kl_target: float) -> HereticTrial:
        """Return the trial that `pareto.best_trial` would choose; heretic measures no overrefusals."""
        within = [trial for trial in self.trials if trial.kl_divergence <= kl_target] or self.trials
        fewest = min(within, key=lambda trial: trial.refusals)
        # Without the number of prompts (heretic 1.2) the standard error is not known, and taken to be 0.
        most = no_more_than(Count(fewest.refusals, fewest.prompts)) if fewest.prompts else fewest.refusals
        good = [trial for trial in within if trial.refusals <= most]
        return min(good, key=lambda trial: (trial.kl_divergence, trial.number))

    def edit(self, trial: HereticTrial, lm: LanguageModel, directions: Tensor) -> Edit:
        """Return a trial's edit of the study's base model, along the directions of `heretic_directions`, [L, d].

        It is exact. For row normalisation full heretic measures an approximation of low rank, without about a tenth of the
        update on a small model at rank 3; `save_adapter` with the study's full_normalization_lora_rank makes the same.

        Raises:
            ModelError: the trial edits components or layers that this model does not have.
            DirectionError: its direction index is outside of the layers.
        """
        if missing := sorted(trial.profiles.keys() - set(COMPONENTS)):
            raise ModelError(
                f"Trial {trial.number} of {self.file} edits {', '.join(missing)[:200]}, which cannot be edited here; "
                f"{' and '.join(COMPONENTS)} can."
            )
        deepest = max(profile.max_weight_position for profile in trial.profiles.values())
        if deepest > lm.layers - 1:
            raise ModelError(
                f"Trial {trial.number} of {self.file} edits layer {deepest:.1f}, and {lm.name} has {lm.layers} layers. "
                f"Give the model of the study: {self.settings.model[:200]}."
            )
        if trial.direction_index is not None:
            directions = interpolate(directions, trial.direction_index).expand_as(directions)
        writers = lm.writers([component for component in COMPONENTS if component in trial.profiles])
        # heretic edits along the residual stream's direction, whatever norm follows, and leaves shared experts alone.
        sites = {site: directions[site.layer] for site in writers if "shared_expert" not in site.module}
        return Edit.build(sites, trial.profiles, self.settings.row_normalization)


def heretic_directions(lm: LanguageModel, study: HereticStudy, benign: PromptSet, target: PromptSet) -> Tensor:
    """Return heretic's unit direction at every layer, float32 [L, d].

    The difference of mean residuals, orthogonal to the benign mean if the study says so. heretic takes the framework's
    hidden states: number 0 is the embeddings, which no trial uses, number i + 1 the residual stream after layer i, and
    the last one has been through the final norm.

    Args:
        lm: the study's base model, unedited.
        benign: the study's good_prompts.
        target: the study's bad_prompts.

    Raises:
        ModelError: the model does not show its states, or its chat template fails.
        DirectionError: the prompt sets have no direction between them.
    """
    states = [_hidden_states(lm, _encoded(lm, study.settings, prompts)) for prompts in (benign, target)]
    quantile = study.settings.winsorization_quantile
    if 0 <= quantile < 1:
        states = [winsorize(residuals, quantile) for residuals in states]
    orthogonalize = study.settings.orthogonalize_direction
    return estimate_directions(*states, methods=["mean"], orthogonalize=orthogonalize).per_layer("mean")


def _encoded(lm: LanguageModel, settings: HereticSettings, prompts: PromptSet) -> list[list[int]]:
    # As heretic does: always a system message, thinking not switched off, special tokens put before the template's own.
    prefix = lm.response_prefix if settings.response_prefix is None else settings.response_prefix
    texts = []
    for prompt in prompts:
        system = settings.system_prompt if prompt.system is None else prompt.system
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt.text}]
        try:
            text = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, TypeError, ArithmeticError) as error:
            raise ModelError(
                f"The chat template of {lm.name} fails on prompts with a system message, which heretic gives: {error}."
            ) from None
        texts.append(f"{text}{prefix}")
    ids: list[list[int]] = lm.tokenizer(texts)["input_ids"]
    return ids


def _hidden_states(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> Tensor:
    """Return residuals [n, L, d] after every layer but the last, then the decoder's output, past the final norm."""
    modules = [*decoder_layers(lm.model)[:-1], lm.model.get_decoder()]  # type: ignore[no-untyped-call]
    rows = affordable_rows(lm, max(map(len, sequences)), 0, 512)
    try:
        return last_token_residuals(lm, sequences, rows, modules=modules)
    except ModelError as error:
        raise ModelError(
            f"{error} heretic takes the states after the final norm for the last layer's residuals, so its studies of this "
            "model cannot be replayed."
        ) from None


class _Operation(IntEnum):
    """Relevant operations in an Optuna journal."""

    CREATE_STUDY = 0
    STUDY_ATTRIBUTE = 2
    TRIAL_STATE = 6
    TRIAL_ATTRIBUTE = 8


class _Entry(BaseModel):
    """One line of an Optuna journal, its relevant part."""

    op_code: int
    study_name: str = ""
    trial_id: int | None = None
    state: int | None = None
    user_attr: Plain = Field(default={})


Contents = tuple[list[str], Plain, list[Plain]]
"""A journal's study names, their attributes, and the attributes of every completed trial."""


def _contents(file: Path) -> Contents:
    names: list[str] = []
    study: Plain = {}
    trials: defaultdict[int | None, Plain] = defaultdict(dict)
    completed: list[int | None] = []
    for entry in _entries(file):
        match entry.op_code:
            case _Operation.CREATE_STUDY:
                names.append(entry.study_name)
            case _Operation.STUDY_ATTRIBUTE:
                study |= entry.user_attr
            case _Operation.TRIAL_ATTRIBUTE:
                trials[entry.trial_id] |= entry.user_attr
            case _Operation.TRIAL_STATE if entry.state == TrialState.COMPLETE:
                completed.append(entry.trial_id)
    return names, study, [trials[trial] for trial in completed]


def _reproduced(file: Path) -> Contents:
    """Read a reproduce.json (format 2) as a journal of one trial."""
    try:
        document = json.loads(file.read_bytes())
        settings, parameters = json.dumps(document["settings"]), document["parameters"]
        edit = {"direction_index": parameters["direction_index"], "parameters": parameters["abliteration_parameters"]}
        return ["heretic"], {"settings": settings}, [{"index": 1, **edit, **document["metrics"]}]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise RunFolderError(f"{file} is not a reproduce.json of heretic. {WANTED}") from None


def _entries(file: Path) -> Iterator[_Entry]:
    """Yield the lines of a journal, without a last line that a crash left unfinished."""
    with file.open("rb") as stream:
        for number in itertools.count(1):
            line = stream.readline(LONGEST_LINE)
            if not line.endswith(b"\n"):
                if len(line) < LONGEST_LINE:
                    return
                raise RunFolderError(
                    f"{file} is not a journal of heretic: line {number} is longer than a mebibyte. {WANTED}"
                )
            try:
                yield _Entry.model_validate_json(line)
            except ValidationError as error:
                raise RunFolderError(
                    f"{file} is not a journal of heretic, or is damaged: line {number}: {first_problem(error)}. {WANTED}"
                ) from None


class _Score(BaseModel):
    """A trial's score, as heretic's main branch keeps it."""

    name: str
    value: float = Field(validation_alias=AliasPath("score", "value"))
    shown: str = Field(validation_alias=AliasPath("score", "md_display"))
    base_shown: str = Field(validation_alias=AliasPath("baseline", "md_display"))


def _trial(file: Path, attributes: Mapping[str, Any]) -> HereticTrial:
    try:
        return HereticTrial.model_validate({**attributes, **_measured(file, attributes)})
    except ValidationError as error:
        number = str(attributes.get("index", "?"))[:20]
        raise RunFolderError(f"Trial {number} in {file} is not understood: {first_problem(error)}.") from None


def _measured(file: Path, attributes: Mapping[str, Any]) -> Plain:
    """Rename the scores that heretic's main branch keeps as a list to their names in heretic 1.4."""
    if "scores" not in attributes:
        return {}
    scores = {s.name: s for s in TypeAdapter(list[_Score]).validate_python(attributes["scores"])}
    if not {"Keywords", "KL divergence"} <= scores.keys():
        raise RunFolderError(
            f"{file} has the scores {', '.join(scores)[:200]}. Read can be studies with the scorers KeywordRate and "
            "KLDivergence, without instance names."
        )
    keywords = scores["Keywords"]
    refusals, _, prompts = keywords.shown.partition("/")  # as in 3/20
    base, _, _ = keywords.base_shown.partition("/")
    divergence = scores["KL divergence"].value
    return {"refusals": refusals, "n_bad_prompts": prompts, "base_refusals": base, "kl_divergence": divergence}
