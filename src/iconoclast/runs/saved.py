"""A run on the disk and one of its trials, without its model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from iconoclast.config.schema import Settings
from iconoclast.directions.estimators import Directions
from iconoclast.directions.record import load_directions
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.capabilities import Capabilities
from iconoclast.models.language_model import LanguageModel
from iconoclast.notebook import table
from iconoclast.progress import Progress
from iconoclast.runs.documents import Finalists, PromptSets, Report
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.kinds import require_run
from iconoclast.runs.splits import Prompts
from iconoclast.runs.trials import choose_trial, chosen_by_judges, search_space
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.study import Pruned, Study


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A finished or interrupted run, as far as it is needed to use one of its trials.

    Attributes:
        trial: the trial that was asked for.
        trials: all completed trials.
        pruned: all trials that were stopped.
        base: scores of the base model on the select prompts.
        report: base model and best trial on the report prompts, if the run measured them.
        response_prefix: start of all the model's responses.
        prompts: the prompt sets when the summary was written.
        noise_floor: KL divergence that means nothing, in nats.
        finalists: the trials that judges chose among, if they did.
        name: the folder's name and the trial's number.
        beside: other runs whose trials follow this one's in an export.
        capabilities: what lm-eval has measured of the trial, if an export is to say it.
    """

    settings: Settings
    directions: Directions
    trial: Trial
    trials: Sequence[Trial]
    pruned: Sequence[Pruned]
    base: Scores
    report: Report | None
    response_prefix: str
    prompts: PromptSets
    noise_floor: float
    finalists: Finalists | None = None
    name: str = ""
    beside: Sequence["SavedRun"] = ()
    capabilities: Capabilities | None = None

    @classmethod
    def open(cls, folder: RunFolder, which: str) -> "SavedRun":
        """Read a run without loading its model; raise RunFolderError if there is no run, or no such trial."""
        require_run(folder.path)
        settings = folder.settings()
        baseline = folder.read_baseline()
        if settings.study_storage is None and not folder.journal.is_file():
            raise RunFolderError(f"{folder.path} has no trials yet. Continue the run first.")
        study = Study.read(folder.journal, search_space(settings, baseline.layers), settings.study_storage)
        trials = study.trials()
        summary = folder.read_summary()
        judged = None if summary is None else summary.finalists
        trial = choose_trial(trials, which, settings, folder.path, judged)
        return cls(
            settings=settings,
            directions=load_directions(folder.directions),
            trial=trial,
            trials=trials,
            pruned=study.pruned(),
            base=baseline.base_metrics,
            report=None if summary is None else summary.report,
            response_prefix=baseline.response_prefix,
            prompts={} if summary is None else summary.prompts,
            noise_floor=baseline.kl_noise_floor,
            finalists=judged,
            name=f"{folder.path.absolute().name}:{trial.index}",
        )

    @property
    def judged(self) -> bool:
        """True if judges have chosen the trial, the best one."""
        chosen = chosen_by_judges(self.trials, self.settings, self.finalists)
        return chosen is not None and chosen.index == self.trial.index

    def _repr_html_(self) -> str:
        """Tabulate the run and its trial, for notebooks."""
        columns = [("Base model", self.base), (f"Trial {self.trial.index}", self.trial.scores)]
        if self.report is not None:
            columns.append((f"Trial {self.report.trial}, report prompts", self.report.metrics))
        rows = [
            (name, s.refusals.with_interval, str(s.broken), s.overrefusals.with_interval, f"{s.kl_divergence:.4f}")
            for name, s in columns
        ]
        title = (
            f"Run of {self.settings.model}: {len(self.trials)} trials and {len(self.pruned)} pruned ones, "
            f"KL noise floor {self.noise_floor:.2g}"
        )
        return table(title, rows, ("", "Refusals", "Broken", "Overrefusals", "KL, nats"))

    @contextmanager
    def opened(self, progress: Progress | None = None, prompts: Prompts | None = None) -> Iterator[Workbench]:
        """Open the run's base model and prompts as the run had them; the prompts are read before the model is loaded."""
        known = prompts or Prompts.load(self.settings)
        with Workbench.open(self.settings, directions=self.directions, progress=progress) as bench:
            bench.use(known, self.response_prefix)
            yield bench

    def workbench(self, quantization: str | None = None, progress: Progress | None = None) -> Workbench:
        """Load the run's base model; its weights are not laid out, so that they may change."""
        bench = Workbench.load(self.settings, None, quantization, self.directions, progress)
        bench.start_responses_with(self.response_prefix)
        return bench

    def load_model(self, quantization: str | None = None) -> LanguageModel:
        """Load the base model of the run."""
        return self.workbench(quantization).lm

    def edit(self, lm: LanguageModel) -> Edit:
        """Make the trial's edit of `lm`."""
        return Workbench(self.settings, lm, self.directions).edit(self.trial.parameters)
