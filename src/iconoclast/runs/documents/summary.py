"""How far a run is: its baseline, its Pareto front, its finalists."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from iconoclast.documents import UNLESS_NONE, Document, Part
from iconoclast.evaluation.judged import Agreement
from iconoclast.goals import DEFAULT
from iconoclast.runs.documents.manifest import PromptSets, Rendering
from iconoclast.runs.documents.report import Report
from iconoclast.runs.documents.trials import TrialDocument
from iconoclast.scores import Count, Scores
from iconoclast.version import __version__

Status = Literal["running", "complete", "interrupted"]
"""How far a run is: `interrupted` by its user; a killed one still says `running`."""


class Baseline(Document):
    """baseline.json: the base model's scores, and what was found out about the model."""

    what: ClassVar[str] = "baseline"

    dtype: str = ""
    layers: int
    response_prefix: str
    kl_noise_floor: float
    base_metrics: Scores
    rendering: Rendering | None = UNLESS_NONE


class Finalist(Part):
    """A trial that judges chose among: its failures to the markers and to the judges, and by judge how far both agree."""

    trial: int
    failures: Count
    judged_failures: Count
    judges: Mapping[str, Agreement]


class Finalists(Part):
    """Trials of the front, on the select prompts; `chosen` is None if a judge had no verdict at all on one of them.

    Attributes:
        judged_with: settings of the judges.
    """

    finalists: list[Finalist]
    chosen: int | None
    judged_with: Mapping[str, Any]

    @property
    def rule(self) -> str:
        """Rule by which the best trial was chosen, in words."""
        return f"fewest failures of {len(self.finalists)} finalists by the judges' verdicts, within one standard error"


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
