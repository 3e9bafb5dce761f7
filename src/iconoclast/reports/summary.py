"""Batch summaries of many runs. Imports nothing that imports torch: a table of results must not take seconds."""

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from iconoclast.documents import Part, Plain
from iconoclast.errors import RunFolderError
from iconoclast.layout import SUMMARY
from iconoclast.runs.documents import BatchSummary
from iconoclast.runs.kinds import require_run, runs_below
from iconoclast.scores import Compliance, Mean, Scores
from iconoclast.vocabulary import ExaminedSplit

OURS = "iconoclast"
"""The `tool` in our own summaries; all others are peers."""
PROMPT_SETS = {
    "report": ("bad_report_prompts", "good_report_prompts"),
    "selection": ("bad_evaluation_prompts", "good_evaluation_prompts"),
}

SHOWN = ("refusals", "overrefusals", "broken", "kl_divergence", "first_token_kl")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(allow_inf_nan=False))
class Measured(Scores):
    """Scores of a model or a trial, as far as its tool counts them."""

    index: int | None = None
    disclaimer_hits: int = 0
    compliance: Compliance = 0.0
    first_token_kl: Mean | None = Field(default=None, exclude_if=lambda mean: mean is None)

    def document(self) -> Plain:
        """Return the part that the table shows."""
        whole = super().document()
        return {name: whole[name] for name in SHOWN if name in whole and (name != "broken" or self.broken.n)}


class Report(Part):
    """A trial and the base model, measured once when the search was over."""

    trial: int
    split: ExaminedSplit = "report"
    base_metrics: Measured
    metrics: Measured


class Summary(BatchSummary):
    """The batch_summary.json of a run of ours, or of a peer, whose trials have other parameters and fewer scores."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    tool: str = OURS
    base_metrics: Measured
    pareto_trials: list[Measured]  # type: ignore[assignment]
    report: Report | None = None  # type: ignore[assignment]
    folder: str = ""
    """Name of the run's folder, which is not in the file."""

    @property
    def name(self) -> str:
        """A hub id, or the last part of a path, so that the author's folders stay private."""
        if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", self.model):
            return self.model
        last = re.split(r"[/\\]", self.model.rstrip("/\\"))[-1]
        return " ".join(last.split()) or self.model

    @property
    def version(self) -> str | None:
        """Version of the tool."""
        return self.iconoclast_version if self.tool == OURS else (self.model_extra or {}).get(f"{self.tool}_version")

    @property
    def split(self) -> ExaminedSplit:
        """The prompts that the figures are of: the report's, if the report is of the best trial."""
        return self.report.split if self.report and self.report.trial == self.best_trial else "selection"

    def seen(self, split: ExaminedSplit) -> dict[str, int]:
        """Count the prompts of a report split that have fitted or chosen the trial, by pair of prompt sets."""
        if split != "report":
            return {}
        return {pair: n for pair, n in self.overlap.items() if pair.split(" and ")[-1] in PROMPT_SETS["report"]}

    def measured(self, split: ExaminedSplit) -> tuple[Measured, Measured | None]:
        """Return base model and best trial on the prompts of a split; None for the latter if no trial is completed."""
        report = self.report
        if report and report.trial == self.best_trial and report.split == split:
            return report.base_metrics, report.metrics
        return self.base_metrics, next((trial for trial in self.pareto_trials if trial.index == self.best_trial), None)

    @model_validator(mode="after")
    def _has_its_best_trial(self) -> "Summary":
        if self.best_trial not in (None, *(trial.index for trial in self.pareto_trials)):
            raise ValueError(f"the best trial {self.best_trial} is not among the pareto_trials")
        return self

    def fingerprints(self, split: ExaminedSplit) -> list[str | None]:
        """Return the SHA-256 of a split's prompt sets, as far as they are known."""
        return [self.prompts.get(name, {}).get("sha256") for name in PROMPT_SETS[split]]


def find_summaries(path: Path) -> list[Path]:
    """Find a path's batch summaries, itself or all below it outside exports; raise RunFolderError if it has none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise RunFolderError(f"{path} does not exist. Give a {SUMMARY}, a run folder, or a folder of run folders.")
    require_run(path)
    found = [run / SUMMARY for run in runs_below(path, SUMMARY)]
    if not found:
        raise RunFolderError(f"There is no {SUMMARY} in {path} or below. Give a folder that holds runs.")
    return found


def read_summary(file: Path) -> Summary:
    """Read one batch summary; raise RunFolderError if it is unreadable, damaged or from a newer version."""
    return Summary.read(file).model_copy(update={"folder": file.resolve().parent.name})


def read_summaries(paths: Iterable[Path]) -> tuple[list[Summary], list[str]]:
    """Read all summaries below the paths, each once and in table order; return them and the others' errors."""
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
