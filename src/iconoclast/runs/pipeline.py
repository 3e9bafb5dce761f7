"""The main job in order: prompts, residuals, directions, baseline, search, summary. It can resume after every step."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from iconoclast.config.schema import Settings
from iconoclast.constraints import violated
from iconoclast.edits.edit import Edit
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.evaluation.judged import verdicts_of
from iconoclast.evaluation.model_scores import ModelScores
from iconoclast.goals import Objectives, with_estimates
from iconoclast.progress import Progress, Silent, show
from iconoclast.runs.documents import BatchSummary, Finalists, Report, Status
from iconoclast.runs.fits import FitStage, start_of_fit
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.forecast import Forecast, stages_of_run
from iconoclast.runs.judging import judge_finalists
from iconoclast.runs.report import measured_with, report, write_samples
from iconoclast.runs.splits import Prompts
from iconoclast.runs.tokens import token_view
from iconoclast.runs.trials import (
    best_of,
    choose_trial,
    chosen_by_judges,
    finalists_of,
    front_of,
    search_space,
    trial_document,
)
from iconoclast.runs.workbench import Workbench
from iconoclast.runs.workers import Worker
from iconoclast.scores import Bounds, Scores, beaten
from iconoclast.search.objective import Minimised, Objective
from iconoclast.search.pareto import Trial
from iconoclast.search.space import AnyParameters, EditParameters, FittedParameters
from iconoclast.search.study import Outcome, Study


@dataclass
class Run:
    """A run that is ready for trials; everything that is computed once is here."""

    bench: Workbench
    folder: RunFolder
    evaluator: Evaluator
    base: Scores
    noise_floor: float
    study: Study
    finalists: Finalists | None = None
    report: Report | None = None
    worker: Worker | None = None
    model_scores: ModelScores | None = None
    forecast: Forecast | None = None
    _trials: tuple[int, list[Trial]] = (-1, [])
    _front: tuple[list[Trial], list[Trial]] = field(default_factory=lambda: ([], []))

    @property
    def settings(self) -> Settings:
        """The settings that the run was begun with."""
        return self.bench.settings

    @property
    def prompts(self) -> Prompts:
        """The run's prompt sets."""
        return self.bench.prompts

    @property
    def objectives(self) -> Objectives:
        """Objectives of the search."""
        return Objectives(self.settings.objectives)

    @property
    def minimised(self) -> Minimised:
        """Values that Optuna minimises."""
        s = self.settings
        if not self.objectives.default:
            return self.objectives.values
        return Objective(
            self.base, s.kl_divergence_target, s.overrefusal_penalty, s.harmful_marker_penalty, s.compliance_gap_penalty
        )

    def edit(self, parameters: AnyParameters) -> Edit:
        """Make the edit of a trial."""
        return self.bench.edit(parameters)

    def trials(self) -> list[Trial]:
        """Return all completed trials, reading the journal again only when more are finished."""
        finished = self.study.finished + self.study.fitted
        if self._trials[0] != finished:
            self._trials = finished, self.study.trials()
        return self._trials[1]

    @property
    def pruned(self) -> int:
        """Number of trials that were stopped because others beat them."""
        return self.study.finished + self.study.fitted - len(self.trials())

    def front(self) -> list[Trial]:
        """Return the Pareto front so far, worked out again only when more trials are finished."""
        trials = self.trials()
        if self._front[0] is not trials:
            self._front = trials, front_of(trials, self.settings)
        return self._front[1]

    def best(self) -> Trial | None:
        """Return the best trial so far."""
        return best_of(self.trials(), self.settings, self.finalists)

    @property
    def judged(self) -> bool:
        """True if judges have chosen the best trial so far."""
        return chosen_by_judges(self.trials(), self.settings, self.finalists) is not None

    def trial(self, which: str) -> Trial:
        """Return the best trial or the one of a number; raise RunFolderError if it is not completed."""
        return choose_trial(self.trials(), which, self.settings, self.folder.path, self.finalists)

    def _complete(self, edits: Sequence[Edit], outcomes: Sequence[Outcome], progress: Progress) -> list[Outcome]:
        """Add the scores of the model itself, and which of the constraints are violated."""
        places = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Scores)]
        measured = with_model_scores(
            self.model_scores, [edits[i] for i in places], [s for s in outcomes if isinstance(s, Scores)], progress
        )
        found = list(outcomes)
        for place, scores in zip(places, measured, strict=True):
            broken = violated(self.settings.constraints, scores, self.base)
            unknown = (f"{name} is known" for name in self.objectives.unknown(scores))
            found[place] = replace(scores, violated=(*broken, *unknown))
        return found

    def optimize(self, n_trials: int, progress: Progress | None = None) -> None:
        """Measure trials until there are `n_trials`, writing the summary after every batch."""
        progress = self._watched(progress, n_trials - self.study.finished)
        steps = _Remaining(progress, n_trials - self.study.finished)

        def evaluate(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
            goal, bars = self.objectives, steps.of(len(batch))
            pruning = self.settings.prune_trials and goal.prunable
            front = [goal.key(trial.scores) for trial in self.front() if pruning and not trial.scores.violated]
            edits = [self.edit(parameters) for parameters in batch]
            measured = self.evaluator.measure_or_prune(edits, lambda bounds: beaten(goal.bound(bounds), front), bars)
            return self._complete(edits, measured, Silent())

        def told(outcomes: Mapping[int, Outcome]) -> None:
            self.write_summary("running")
            self._show(progress, n_trials)
            if self.worker is not None:
                self.worker.says("working", trials=len(outcomes))
            for number, outcome in outcomes.items():
                progress.note(_trial_line(number, outcome, self.base.failing))

        self._show(progress, n_trials)
        self.study.run(n_trials, evaluate, self.minimised, told, self.worker)

    def _watched(self, progress: Progress | None, trials: int = 0) -> Progress:
        """Let the forecast of the rest of the run, with so many trials to come, hear of progress."""
        if self.forecast is None:
            return progress or Silent()
        self.forecast.progress = progress or Silent()
        if trials:
            fits = self.settings.fit and not self.study.fitted
            self.forecast.replan(stages_of_run(self.settings, self.bench.lm, self.prompts, trials, fits)[2:])
        return self.forecast

    def _show(self, progress: Progress, n_trials: int) -> None:
        show(progress, Trials=f"{self.study.finished} of {n_trials}, {self.pruned} of them pruned")
        if (best := self.best()) is not None:
            s = best.scores
            counts = f"{s.refusals.with_interval} refused, {s.broken.count} broken, {s.overrefusals} overrefused"
            show(progress, Best_so_far=f"trial {best.index}: {counts}, KL {s.kl_divergence:.4f}")

    def fit(self, progress: Progress | None = None) -> None:
        """Fit an edit from the strongest trial and measure it at several scales; once for the same fit settings."""
        progress = progress or Silent()
        start = start_of_fit(self.settings, self.trials())
        if not self.settings.fit or start is None:
            return
        if not {"failures", "refusals"} & {each.name for each in self.objectives.all}:
            progress.note(
                "Nothing is fitted: a fit lowers failures, and neither failures nor refusals are an objective."
            )
            return
        done = {(p.file.name, p.scale) for t in self.trials() if isinstance(p := t.parameters, FittedParameters)}
        found = FitStage(self.bench, self.folder.fits, start).run(progress)
        left = [p for p in found if (p.file.name, p.scale) not in done]
        if not left:
            return
        edits = [self.edit(parameters) for parameters in left]
        measured = self._complete(edits, self.evaluator.measure(edits, progress), progress)
        for parameters, scores in zip(left, measured, strict=True):
            assert isinstance(scores, Scores)
            self.study.add_fitted(parameters, scores)
        for trial in self.trials()[-len(left) :]:
            progress.note(_trial_line(trial.index, trial.scores, self.base.failing))
        self.write_summary("running")

    def judge_finalists(self, progress: Progress | None = None) -> None:
        """Let judges choose among the finalists, by their responses to the select prompts."""
        progress = progress or Silent()
        finalists = finalists_of(self.trials(), self.settings)
        if not finalists or self.judged:
            return
        target, rules = self.prompts.target_evaluation, self.evaluator.rules
        prompts = [prompt.text for prompt in target]
        progress.start("Responses of the finalists", 0)
        responses = self.evaluator.respond([self.edit(trial.parameters) for trial in finalists], target)
        found = [
            (trial, list(map(rules.label, prompts, texts)), verdicts_of(self.bench.judges, prompts, texts, progress))
            for trial, texts in zip(finalists, responses, strict=True)
        ]
        self.finalists = judge_finalists(found, self.bench.judges, self.settings)
        if self.finalists.chosen is None:
            progress.note("A judge said nothing of a finalist: judges have chosen nothing. The next start asks again.")

    def measure_report(self, progress: Progress | None = None) -> None:
        """Examine the base model and the best trial once, on the report prompts if there are any; keep their responses."""
        best = self.best()
        if best is None:
            return
        known = self.report  # of an earlier start; if a judge failed then, it stands until it has been asked again
        if known is not None and known.trial == best.index and not _judge_failed(known):
            return
        self.report, samples = report(self.bench, best, progress or Silent(), self.base)
        write_samples(self.folder.samples, samples)
        token_view(self.bench, best, progress).write(self.folder.tokens)

    def finish(self, progress: Progress | None = None) -> None:
        """Fit, measure the report and write the summary; of several processes on the run, only the first does."""
        watched = self._watched(progress)
        with self.folder.alone() if self.worker else nullcontext():
            self.fit(watched)
            self._show(watched, self.study.finished)
            self.report, self.finalists = known_report(self.bench, self.folder), known_finalists(self.folder)
            self.judge_finalists(watched)
            best = self.best()
            if progress and best is not None and best.scores.violated:
                progress.note(f"No trial keeps all constraints. The best violates: {', '.join(best.scores.violated)}.")
            if progress and (edges := self._edges()):
                progress.note(
                    f"The front lies at the end of the search's ranges ({'; '.join(edges)}): better edits may lie beyond."
                )
            self.measure_report(watched)
            self.write_summary("complete")

    def _edges(self) -> list[str]:
        """Say at which ends of their ranges the front's strengths or the best trial's scale lie."""
        searched = [p for trial in self.front() if isinstance(p := trial.parameters, EditParameters)]
        found = search_space(self.settings, self.bench.lm.layers).edges(searched)
        best, scales = self.best(), self.settings.fit_scales
        if best is not None and isinstance(best.parameters, FittedParameters) and len(scales) > 1:
            scale = best.parameters.scale
            found += [f"scale {scale:g} is an end of fit_scales"] * (scale in (min(scales), max(scales)))
        return found

    def write_summary(self, status: Status) -> BatchSummary:
        """Write batch_summary.json as the run stands now, and return it."""
        best = self.best()
        summary = BatchSummary(
            status=status,
            model=self.settings.model,
            seed=self.settings.seed,
            study_checkpoint_dir=str(self.folder.path),
            completed_trials=len(self.trials()) - self.study.fitted,
            pruned_trials=self.pruned,
            fitted_trials=self.study.fitted,
            prompts=self.prompts.document(),
            overlap=self.prompts.overlaps(),
            objectives=list(self.settings.objectives),
            kl_divergence_target=self.settings.kl_divergence_target,
            kl_noise_floor=self.noise_floor,
            base_metrics=self.base,
            best_trial=None if best is None else best.index,
            pareto_trials=[trial_document(trial) for trial in self.front()],
            finalists=self.finalists,
            report=self.report,
        )
        summary.write(self.folder.summary)
        return summary


def with_model_scores(
    model_scores: ModelScores | None, edits: Sequence[Edit], scores: Sequence[Scores], progress: Progress
) -> list[Scores]:
    """Add the scores of the model itself to what was measured of edits."""
    if model_scores is None:
        return list(scores)
    return [
        with_estimates(known, more) for known, more in zip(scores, model_scores.measure(edits, progress), strict=True)
    ]


def known_report(bench: Workbench, folder: RunFolder) -> Report | None:
    """Read an earlier start's report on the same prompts, with the same judges and controls."""
    if not folder.summary.is_file():
        return None
    summary = BatchSummary.read(folder.summary)
    known, prompts = summary.report, bench.prompts
    if known is None or known.measured_with != measured_with(bench.settings) or summary.prompts != prompts.document():
        return None
    if known.rendering and known.rendering.differences(bench.rendering(), known.rendering.tokens):
        return None
    return known.model_copy(update={"overlap": prompts.overlaps(with_report=True)})


def known_finalists(folder: RunFolder) -> Finalists | None:
    """Read what judges chose in an earlier start; `best_of` looks whether it still holds."""
    summary = folder.read_summary()
    return None if summary is None else summary.finalists


def _judge_failed(report: Report) -> bool:
    return any(judged.problem for each in (report.base_metrics, report.metrics) for judged in each.judges.values())


def _trial_line(number: int, outcome: Outcome, failing: str) -> str:
    if isinstance(outcome, Bounds):
        return (
            f"Trial {number}: pruned at {outcome.failures} or more {failing}, "
            f"{outcome.overrefusals} or more overrefusals, KL {outcome.kl_divergence:.4f}"
        )
    return (
        f"Trial {number}: {outcome.refusals} refusals, {outcome.broken.count} broken, {outcome.overrefusals} overrefusals, "
        f"KL {outcome.kl_divergence:.4f}, compliance {outcome.compliance:.2f}"
        + "".join(f", {name} {'unknown' if value is None else f'{value:.3g}'}" for name, value in outcome.own.items())
        + "".join(f"; violates {constraint}" for constraint in outcome.violated)
    )


@dataclass
class _Remaining:
    """Turns the progress of batches into that of all remaining trials."""

    progress: Progress
    trials: int
    _started: bool = False

    def of(self, batch: int) -> "_BatchProgress":
        return _BatchProgress(self, batch)


@dataclass
class _BatchProgress:
    all: _Remaining
    batch: int

    def start(self, task: str, total: int) -> None:
        if not self.all._started:
            self.all._started = True
            self.all.progress.start("Trials", total // self.batch * self.all.trials)

    def advance(self, steps: int = 1) -> None:
        self.all.progress.advance(steps)

    def note(self, message: str) -> None:
        self.all.progress.note(message)
