"""Batch summaries of many runs, read. Imports neither torch nor anything that does: a table of results must not take seconds."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from iconoclast.errors import RunFolderError
from iconoclast.layout import SCHEMA_VERSION, SUMMARY, TRIAL_INFORMATION
from iconoclast.scores import Count, Mean
from iconoclast.vocabulary import ExaminedSplit

OURS, PEER = "iconoclast", "heretic"

PROMPT_SETS = {
    "report": ("bad_report_prompts", "good_report_prompts"),
    "selection": ("bad_evaluation_prompts", "good_evaluation_prompts"),
}


def _counted(count: Count) -> Count:
    if not 0 <= count.count <= count.n:
        raise ValueError("no count of n")
    return count


Counted = Annotated[Count, AfterValidator(_counted)]


class _Part(BaseModel):
    """A part of a summary; what this table does not show is not looked at."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Measured(_Part):
    """What was measured of a model or an edit: the part of `Scores.document()` that is shown here."""

    refusals: Counted
    overrefusals: Counted
    kl_divergence: float
    first_token_kl: Mean | None = None
    broken: Counted | None = None

    def key(self, broken: bool, over: bool) -> tuple[int, int]:
        """What edits are ordered by before their KL divergence: refused (or broken), then overrefused, if those count."""
        return self.refusals.count + (
            self.broken.count if broken and self.broken else 0
        ), self.overrefusals.count * over

    def document(self) -> dict[str, Any]:
        """For JSON."""
        counts = {"refusals": self.refusals, "overrefusals": self.overrefusals, "broken": self.broken}
        return {
            **{name: count.document() for name, count in counts.items() if count is not None},
            "kl_divergence": self.kl_divergence,
            **({} if self.first_token_kl is None else {"first_token_kl": self.first_token_kl.document()}),
        }


class MeasuredTrial(Measured):
    """A trial of the Pareto front."""

    index: int


class Report(_Part):
    """A trial and the base model, measured once when the search was over."""

    trial: int
    split: ExaminedSplit = "report"
    base_metrics: Measured
    metrics: Measured


class PromptsUsed(_Part):
    """Which prompts a set held."""

    sha256: str | None = None


class _Schema(_Part):
    schema_version: int


class Summary(_Schema):
    """What is read of a batch_summary.json."""

    model: str
    status: str
    completed_trials: int
    base_metrics: Measured
    best_trial: int | None
    pareto_trials: list[MeasuredTrial]
    tool: str = OURS
    iconoclast_version: str | None = None
    heretic_version: str | None = None
    seed: int | None = None
    pruned_trials: int = 0
    kl_noise_floor: float = 0.0
    prompts: Mapping[str, PromptsUsed] = {}
    report: Report | None = None
    overlap: Mapping[str, int] = {}
    folder: str = ""
    """Name of the run's folder, which the file does not say."""

    @property
    def name(self) -> str:
        """A hub id as it is; of a path its last part, so that nothing of the author's folders is told."""
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.model):
            return self.model
        last = re.split(r"[/\\]", self.model.rstrip("/\\"))[-1]
        return " ".join(last.split()) or self.model

    @property
    def version(self) -> str | None:
        """Of the tool."""
        return {OURS: self.iconoclast_version, PEER: self.heretic_version}.get(self.tool)

    @property
    def split(self) -> ExaminedSplit:
        """The prompts that the figures are of: those of the report, if it is of the best trial."""
        return self.report.split if self.report and self.report.trial == self.best_trial else "selection"

    def seen(self, split: ExaminedSplit) -> dict[str, int]:
        """Pairs of prompt sets through which prompts of a report split have fitted or chosen the trial, and how many."""
        if split != "report":
            return {}
        return {pair: n for pair, n in self.overlap.items() if pair.split(" and ")[-1] in PROMPT_SETS["report"]}

    def base(self, split: ExaminedSplit) -> Measured:
        """The base model."""
        report = self._report_on(split)
        return report.base_metrics if report else self.base_metrics

    def best(self, split: ExaminedSplit) -> Measured | None:
        """The best trial; None if no trial is completed."""
        report = self._report_on(split)
        return report.metrics if report else self._trial()

    def _report_on(self, split: ExaminedSplit) -> Report | None:
        report = self.report
        return report if report and report.trial == self.best_trial and report.split == split else None

    def _trial(self) -> MeasuredTrial | None:
        return next((trial for trial in self.pareto_trials if trial.index == self.best_trial), None)

    @model_validator(mode="after")
    def _has_its_best_trial(self) -> "Summary":
        if self.best_trial is not None and self._trial() is None:
            raise ValueError(f"the best trial {self.best_trial} is not among the pareto_trials")
        return self

    def fingerprints(self, split: ExaminedSplit) -> list[str | None]:
        """SHA-256 of the prompt sets of a split, as far as they are known."""
        return [self.prompts.get(name, PromptsUsed()).sha256 for name in PROMPT_SETS[split]]


def find_summaries(path: Path) -> list[Path]:
    """The batch summaries that a path means: the file itself, or all below a folder except in exports.

    Raises:
        RunFolderError: there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunFolderError(f"{path} does not exist. Give a {SUMMARY}, a run folder, or a folder of run folders.")
    if (path / TRIAL_INFORMATION).is_file():
        raise RunFolderError(f"{path} is an export. Give the run folder that it was made from.")
    found = sorted(_below(path))
    if not found:
        raise RunFolderError(f"There is no {SUMMARY} in {path} or below. Give a folder that holds runs.")
    return found


def _below(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and not Path(where, name, TRIAL_INFORMATION).is_file()]
        if SUMMARY in files:
            yield Path(where, SUMMARY)


def read_summary(file: Path) -> Summary:
    """Read one batch summary.

    Raises:
        RunFolderError: it cannot be read, is damaged, is something else, or comes from a newer version.
    """
    try:
        content = file.read_bytes()
        version = _Schema.model_validate_json(content).schema_version
        if version > SCHEMA_VERSION:
            raise RunFolderError(
                f"{file} has schema version {version}; this version of iconoclast reads up to {SCHEMA_VERSION}. Update iconoclast."
            )
        summary = Summary.model_validate_json(content)
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise RunFolderError(
            f"{file} is damaged or no batch summary: {where}{': ' * bool(where)}{problem['msg']}."
        ) from None
    return summary.model_copy(update={"folder": file.resolve().parent.name})


def read_summaries(paths: Iterable[Path]) -> tuple[list[Summary], list[str]]:
    """All summaries that the paths mean, each once and in the order of the table; and what was wrong with the others."""
    files: dict[Path, Path] = {}
    summaries: list[Summary] = []
    problems: list[str] = []
    for path in paths:
        try:
            files |= {file.resolve(): file for file in find_summaries(path)}
        except RunFolderError as error:
            problems.append(str(error))
    for file in files.values():
        try:
            summaries.append(read_summary(file))
        except RunFolderError as error:
            problems.append(str(error))
    return sorted(summaries, key=_place), problems


def _place(summary: Summary) -> tuple[str, str, bool, str, int]:
    seed = -1 if summary.seed is None else summary.seed
    return summary.name.casefold(), summary.name, summary.tool != OURS, summary.tool, seed
