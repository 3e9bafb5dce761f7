"""What a run writes about itself: baseline.json and batch_summary.json. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from iconoclast.documents import Document, Part
from iconoclast.layout import BASELINE, SUMMARY, TRIAL_INFORMATION
from iconoclast.scores import Scores
from iconoclast.version import __version__
from iconoclast.vocabulary import DirectionScope, ExportFormat, Quantization, RowNormalization

Status = Literal["running", "complete", "interrupted"]
"""How far a run is: `interrupted` by its user; a killed one still says `running`."""


class ProfileDocument(Part):
    """The strength profile of a component; see `edits.profile.Profile`."""

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float


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
    parameters: Mapping[str, ProfileDocument]
    fit: FitDocument | None = None


class Baseline(Document):
    """baseline.json: the base model's scores, and what was found out about the model."""

    what: ClassVar[str] = "baseline"

    dtype: str = ""
    layers: int
    response_prefix: str
    kl_noise_floor: float
    base_metrics: Scores


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
    prompts: Mapping[str, Mapping[str, Any]] = Field(default={})
    overlap: Mapping[str, int] = Field(default={})
    kl_divergence_target: float | None = None
    kl_noise_floor: float = 0.0
    base_metrics: Scores
    best_trial: int | None
    pareto_trials: list[TrialDocument]
    report: dict[str, Any] | None = None

    @property
    def finished_trials(self) -> int:
        """Trials that were measured to their end or pruned."""
        return self.completed_trials + self.pruned_trials

    @property
    def best(self) -> TrialDocument | None:
        """The best trial so far."""
        return next((trial for trial in self.pareto_trials if trial.index == self.best_trial), None)


class TrialInformation(Document):
    """trial_information.json of an export: the trial, what was measured of its export, versions.

    Attributes:
        trial: the exported trial.
        base_model: the base model, without the folders of a local path.
        format: adapter, merged or gguf.
        prompts: prompt set → source, n, SHA-256.
        measured_on: which prompts the scores below are of, in words.
        export_metrics: scores of the export itself; None if it was not measured.
        approximations: error of every matrix's update, where it is not exact.
    """

    what: ClassVar[str] = "trial_information.json"

    iconoclast_version: str = __version__
    trial: TrialDocument
    base_model: str
    format: ExportFormat
    quantization: Quantization = "none"
    row_normalization: RowNormalization
    response_prefix: str
    packages: Mapping[str, str] = Field(default={})
    prompts: Mapping[str, Mapping[str, Any]] = Field(default={})
    measured_on: str
    kl_noise_floor: float
    base_metrics: Scores
    live_metrics: Scores
    export_metrics: Scores | None
    approximation_error: float = 0.0
    approximations: list[dict[str, Any]] = Field(default=[])


DOCUMENTS: dict[str, type[Document]] = {BASELINE: Baseline, SUMMARY: BatchSummary, TRIAL_INFORMATION: TrialInformation}
"""File → what it holds."""


def schemas() -> dict[str, str]:
    """Give the JSON schema of every file, as text: name of the schema's file → content."""
    return {
        f"{Path(name).stem}.schema.json": json.dumps(kind.model_json_schema(mode="serialization"), indent=2) + "\n"
        for name, kind in DOCUMENTS.items()
    }
