"""A run on the disk and one of its trials, without its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iconoclast.config.schema import Settings
from iconoclast.directions.estimators import Directions
from iconoclast.directions.record import load_directions
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError
from iconoclast.layout import TRIAL_INFORMATION
from iconoclast.models.language_model import LanguageModel
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.pipeline import choose_trial, load_settings_model, search_space
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.study import Study


@dataclass(frozen=True)
class SavedRun:
    """What is needed of a finished or interrupted run to use one of its trials.

    Attributes:
        settings: the run's settings.
        directions: its directions.
        trial: the trial that was asked for.
        trials: all completed trials.
        base: scores of the base model on the evaluation prompts.
        report: what the run measured of the base model and its best trial on the report prompts, if it did.
        response_prefix: what the model's responses start with.
        prompts: what the prompt sets were when the summary was written.
        noise_floor: KL divergence that means nothing, in nats.
    """

    settings: Settings
    directions: Directions
    trial: Trial
    trials: Sequence[Trial]
    base: Scores
    report: Mapping[str, Any] | None
    response_prefix: str
    prompts: Mapping[str, Any]
    noise_floor: float

    @classmethod
    def open(cls, folder: RunFolder, which: str) -> "SavedRun":
        """Read a run without loading its model.

        Raises:
            RunFolderError: there is no run, or no such trial.
        """
        if (folder.path / TRIAL_INFORMATION).is_file():
            raise RunFolderError(f"{folder.path} is an export. Give the run folder that it was made from.")
        settings = folder.settings()
        baseline = folder.read_baseline()
        if settings.study_storage is None and not folder.journal.is_file():
            raise RunFolderError(f"{folder.path} has no trials yet. Continue the run first.")
        study = Study.read(folder.journal, search_space(settings, baseline["layers"]), settings.study_storage)
        trials = study.trials()
        trial = choose_trial(trials, which, settings.kl_divergence_target, folder.path)
        base = Scores.from_document(baseline["base_metrics"])
        summary = folder.read_json(folder.summary) if folder.summary.is_file() else {}
        return cls(
            settings,
            load_directions(folder.directions),
            trial,
            trials,
            base,
            summary.get("report"),
            baseline["response_prefix"],
            summary.get("prompts", {}),
            float(baseline["kl_noise_floor"]),
        )

    def load_model(self, quantization: str | None = None) -> LanguageModel:
        """The base model of the run."""
        assert self.settings.model is not None
        lm = load_settings_model(self.settings, self.settings.model, quantization)
        return lm.with_prefix(self.response_prefix)

    def edit(self, lm: LanguageModel) -> Edit:
        """The trial's edit of `lm`."""
        writers = lm.writers(self.settings.components)
        return self.trial.parameters.edit(self.directions, writers, self.settings.row_normalization)
