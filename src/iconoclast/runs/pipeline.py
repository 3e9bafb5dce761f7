"""The main job in order: prompts, residuals, directions, baseline, search, summary. Resumable at every comma."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import Tensor

from iconoclast.config.schema import Settings, settings_document
from iconoclast.directions.estimators import Directions, estimate_directions
from iconoclast.directions.record import load_directions, save_directions
from iconoclast.directions.subspace import winsorize
from iconoclast.edits.edit import Edit
from iconoclast.errors import PromptsError, RunFolderError, SettingsError
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.files import write_json
from iconoclast.layout import SCHEMA_VERSION
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.memory import affordable_rows
from iconoclast.models.names import resolve
from iconoclast.models.packed import packed
from iconoclast.models.residuals import last_token_residuals
from iconoclast.models.thinking import find_response_prefix
from iconoclast.privacy import portable
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import PromptSet
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.manifest import manifest, this_start
from iconoclast.runs.pinned import pinned_settings
from iconoclast.runs.report import evaluator_of, judges_of, measured_with, report, write_samples
from iconoclast.runs.splits import Prompts
from iconoclast.runs.workers import Worker
from iconoclast.scores import Bounds, Scores, beaten
from iconoclast.search.objective import LOW_REFUSAL_RATE, Objective
from iconoclast.search.pareto import Trial, best_trial, pareto_front
from iconoclast.search.space import EditParameters, SearchSpace
from iconoclast.search.study import Outcome, Study
from iconoclast.version import __version__

LONGEST_TOKEN = 128
"""Bytes in the longest token of any tokenizer, about; a text with more for every token is not even read."""

PREFIX_PROMPTS = 8
"""Prompts of each set that are looked at for a common start of responses."""


@dataclass
class Run:
    """A run that is ready for trials: everything that is computed once."""

    settings: Settings
    folder: RunFolder
    prompts: Prompts
    lm: LanguageModel
    directions: Directions
    evaluator: Evaluator
    base: Scores
    noise_floor: float
    study: Study
    judges: Sequence[Judge] = ()
    report: dict[str, Any] | None = None
    incomplete_report: dict[str, Any] | None = None
    """The report of an earlier start, if a judge failed then: it is measured again, and stands until that is done."""
    worker: Worker | None = None

    @property
    def objective(self) -> Objective:
        """What the search minimises."""
        s = self.settings
        return Objective(
            self.base,
            s.kl_divergence_target,
            s.overrefusal_penalty,
            s.harmful_marker_penalty,
            s.compliance_gap_penalty,
        )

    def edit(self, parameters: EditParameters) -> Edit:
        """The edit of a trial."""
        writers = self.lm.writers(self.settings.components)
        return parameters.edit(self.directions, writers, self.settings.row_normalization)

    def front(self) -> list[Trial]:
        """The Pareto front so far."""
        return pareto_front(self.study.trials())

    def best(self) -> Trial | None:
        """The best trial so far."""
        return best_trial(self.front(), self.settings.kl_divergence_target)

    def trial(self, which: str) -> Trial:
        """The trial of that number, or the best one.

        Raises:
            RunFolderError: there is no such completed trial.
        """
        trials = self.study.trials()
        return choose_trial(trials, which, self.settings.kl_divergence_target, self.folder.path)

    def optimize(self, n_trials: int, progress: Progress | None = None) -> None:
        """Measure trials until there are `n_trials`, writing the summary after every batch."""
        progress = progress or Silent()
        steps = _Remaining(progress, n_trials - self.study.finished)

        def evaluate(batch: Sequence[EditParameters]) -> Sequence[Outcome]:
            front = [trial.key for trial in self.front()] if self.settings.prune_trials else []
            edits = [self.edit(parameters) for parameters in batch]
            return self.evaluator.contest(edits, lambda bounds: beaten(bounds.key, front), steps.of(len(batch)))

        def told(outcomes: Mapping[int, Outcome]) -> None:
            self.write_summary("running")
            if self.worker is not None:
                self.worker.says("working", trials=len(outcomes))
            for number, outcome in outcomes.items():
                progress.note(_trial_line(number, outcome))

        self.study.run(n_trials, evaluate, self.objective, told, self.worker)

    def measure_report(self, progress: Progress | None = None) -> None:
        """Examine the base model and the best trial once, on the report prompts if there are any; keep their responses."""
        best = self.best()
        if best is None:
            return
        if self.report is not None and self.report["trial"] == best.index and self.report != self.incomplete_report:
            return
        self.report, samples = report(
            self.settings, self.lm, self.prompts, self.directions, best, self.judges, progress or Silent()
        )
        write_samples(self.folder.samples, samples)

    def finish(self, progress: Progress | None = None) -> None:
        """Measure the report and write the summary; of several processes that share the run, the first one does."""
        with self.folder.alone() if self.worker else nullcontext():
            self.report = _known_report(self.settings, self.folder, self.prompts)
            self.measure_report(progress)
            self.write_summary("complete")

    def write_summary(self, status: str) -> dict[str, Any]:
        """Write batch_summary.json; `status` is running, complete or interrupted."""
        best = self.best()
        document = {
            "schema_version": SCHEMA_VERSION,
            "iconoclast_version": __version__,
            "status": status,
            "model": self.settings.model,
            "seed": self.settings.seed,
            "study_checkpoint_dir": str(self.folder.path),
            "completed_trials": len(self.study.trials()),
            "pruned_trials": self.study.finished - len(self.study.trials()),
            "prompts": self.prompts.document(),
            "overlap": self.prompts.overlaps(),
            "kl_divergence_target": self.settings.kl_divergence_target,
            "kl_noise_floor": self.noise_floor,
            "base_metrics": self.base.document(),
            "best_trial": None if best is None else best.index,
            "pareto_trials": [trial_document(trial) for trial in self.front()],
            "report": self.report,
        }
        write_json(self.folder.summary, portable(document))
        return document


def run_folder(settings: Settings) -> RunFolder:
    """The run folder that the settings name.

    Raises:
        SettingsError: no model is named.
    """
    if settings.model is None:
        raise SettingsError(
            "No model is named. Use `iconoclast run MODEL`, set model in the settings file, or try `iconoclast demo`."
        )
    slug = "".join(c if c.isalnum() or c in ".-_" else "--" for c in Path(settings.model).name or settings.model)
    return RunFolder(settings.study_checkpoint_dir or Path("runs") / slug)


@contextmanager
def started_run(
    settings: Settings, progress: Progress | None = None, began: float | None = None, worker: Worker | None = None
) -> Iterator[Run]:
    """A run ready for trials, begun or continued in its folder, which it holds while the context lasts.

    Args:
        settings: what to run.
        progress: told what happens.
        began: when the user asked for it, if that was earlier, in seconds since 1970; set-up time counts from there.
        worker: this process among several that work on the run together; the first one prepares it for all.

    Raises:
        UserError: a setting, prompt set, model or folder is not usable; nothing was written then.
    """
    progress = progress or Silent()
    began = time.time() if began is None else began
    folder = run_folder(settings)
    assert settings.model is not None
    resolve(settings.model)
    folder.check(settings)
    prompts = Prompts.load(settings)
    for pair, count in prompts.overlaps().items():
        progress.note(f"Allowed overlap: {pair} share {count} prompt{'s' * (count > 1)}; scores on them flatter.")
    judges = judges_of(settings)  # what is wrong with them must not come out after hours of search
    with folder.locked(shared=worker is not None):
        folder.check(settings)  # again: another process may have begun a run meanwhile
        progress.start(f"Loading {settings.model}", 0)
        lm = load_settings_model(settings, settings.model, note=progress.note)
        lm.writers(settings.components)
        with packed(lm.model):
            with folder.alone() if worker else nullcontext():
                run = _prepared(settings, folder, prompts, lm, judges, progress, began, worker is None)
            run.worker = worker
            yield run


def load_settings_model(
    settings: Settings, model: str, quantization: str | None = None, note: Any = lambda message: None
) -> LanguageModel:
    """Load `model` as the settings say."""
    return load_model(
        model,
        dtypes=settings.dtypes,
        quantization=settings.quantization if quantization is None else quantization,
        device_map=settings.device_map,
        max_memory=settings.memory_limits,
        trust_remote_code=settings.trust_remote_code,
        chat_template=settings.chat_template,
        response_prefix=settings.response_prefix or "",
        note=note,
    )


def search_space(settings: Settings, layers: int) -> SearchSpace:
    """The search space that the settings describe."""
    return SearchSpace(layers, settings.components, settings.direction_methods, settings.direction_scopes)


def choose_trial(trials: Sequence[Trial], which: str, kl_target: float, where: Path) -> Trial:
    """The trial of that number, or with "best" the best one.

    Raises:
        RunFolderError: there is no such completed trial.
    """
    if which == "best":
        best = best_trial(pareto_front(trials), kl_target)
        if best is None:
            raise RunFolderError(f"{where} has no completed trial yet. Continue the run first.")
        return best
    found = next((trial for trial in trials if str(trial.index) == which), None)
    if found is None:
        numbers = ", ".join(str(trial.index) for trial in trials) or "none yet"
        raise RunFolderError(
            f'{where} has no completed trial "{which}" (a pruned one has no scores). Give best or one of these: {numbers}.'
        )
    return found


def trial_document(trial: Trial) -> dict[str, Any]:
    """A trial for JSON."""
    direction = trial.parameters.direction
    return {
        "index": trial.index,
        **trial.scores.document(),
        "direction_method": direction.method,
        "direction_scope": direction.scope,
        "direction_index": direction.index if direction.scope == "global" else None,
        "direction_blend": direction.blend if direction.method == "hybrid" else None,
        "parameters": {
            component: {
                "max_weight": profile.max_weight,
                "max_weight_position": profile.max_weight_position,
                "min_weight": profile.min_weight,
                "min_weight_distance": profile.min_weight_distance,
            }
            for component, profile in trial.parameters.profiles.items()
        },
    }


def _prepared(
    settings: Settings,
    folder: RunFolder,
    prompts: Prompts,
    lm: LanguageModel,
    judges: Sequence[Judge],
    progress: Progress,
    began: float,
    alone: bool,
) -> Run:
    """Everything between a loaded model and the first trial. What an earlier start found is taken from the folder."""
    require_room(settings, prompts, lm)
    known = folder.read_baseline() if folder.baseline.is_file() else None
    lm = lm.with_prefix(known["response_prefix"] if known else response_prefix(settings, prompts, lm, progress))
    fitted = None if known and folder.directions.is_file() else _fit(settings, prompts, lm, progress)
    if alone:  # whoever submitted a worker has claimed the folder, perhaps with more trials than this one knows of
        folder.claim(settings)  # nothing is written before everything that a user can get wrong has been tried
    if fitted is not None:
        save_directions(fitted, folder.directions)
    directions = fitted or load_directions(folder.directions)
    evaluator = evaluator_of(settings, lm, prompts.target_evaluation, prompts.benign_evaluation)
    noise = known["kl_noise_floor"] if known else evaluator.noise_floor()
    progress.start("Looking at what the lower layers give", 0)
    if not evaluator.leave_out_lower_layers():
        progress.note(
            "All layers are computed for every candidate: what the lower ones give cannot be kept, or not used."
        )
    if known is None:
        known = _baseline(evaluator, noise, progress)
        write_json(folder.baseline, known)
    base = Scores.from_document(known["base_metrics"])
    contents = {f"{name} (content)": s.fingerprint for name, s in prompts.named().items() if "report" not in name}
    study = Study.open(
        folder.journal,
        search_space(settings, lm.layers),
        seed=settings.seed,
        startup_trials=settings.n_startup_trials,
        batch=settings.trials_per_batch,
        pinned=pinned_settings(settings) | contents,
        storage=settings.study_storage,
    )
    _write_manifest(settings, folder, prompts, lm)  # by now nothing is refused any more
    done = study.finished
    progress.note(
        f"Ready for trials after {time.time() - began:.0f} s"
        + (f"; {done} trials are there already" if done else "")
        + f". Base model: {base.refusals} refusals, {base.overrefusals} overrefusals; KL noise floor {noise:.2g}."
    )
    if base.refusals.rate <= LOW_REFUSAL_RATE:
        progress.note(
            f"The base model refuses only {base.refusals} target prompts, so there is little to remove. "
            "Are bad_evaluation_prompts and refusal_markers those of the behaviour?"
        )
    report = _known_report(settings, folder, prompts)
    incomplete = report if report is not None and _judge_failed(report) else None
    return Run(settings, folder, prompts, lm, directions, evaluator, base, noise, study, judges, report, incomplete)


def require_room(settings: Settings, prompts: Prompts, lm: LanguageModel) -> None:
    """Raise PromptsError if a prompt and the response to it are longer than what the model can read."""
    if lm.context is None:
        return
    room = lm.context - max(settings.max_response_length, settings.max_benign_response_length)
    for each in prompts.named().values():
        for number, prompt in enumerate(each, 1):
            size = len(prompt.text.encode())
            if size <= room // 2:  # hardly a tokenizer makes more tokens than there are bytes
                continue
            tokens = size // LONGEST_TOKEN if size > LONGEST_TOKEN * room else len(lm.encode([prompt])[0])
            if tokens > room:
                raise PromptsError(
                    f"Prompt {number} of {each.source} has {size:,} bytes, too many tokens for {lm.name}, which reads "
                    f"{lm.context:,} with the response. Shorten it or leave it out."
                )


def _write_manifest(settings: Settings, folder: RunFolder, prompts: Prompts, lm: LanguageModel) -> None:
    """Note what the run is made of, and that it is started or continued here and now."""
    known = folder.read_json(folder.manifest, ("starts",)) if folder.manifest.is_file() else None
    document = known or manifest(lm, settings.seed, prompts.document(), settings_document(settings))
    write_json(folder.manifest, {**document, "starts": [*document["starts"], this_start()]})


def response_prefix(settings: Settings, prompts: Prompts, lm: LanguageModel, progress: Progress) -> str:
    """What responses start with: as the settings say, else as the model shows."""
    if settings.response_prefix is not None:
        return settings.response_prefix
    progress.start("Looking at how responses start", 0)
    sample = _alternating(prompts.benign, prompts.target)[: 2 * PREFIX_PROMPTS]
    prefix = find_response_prefix(lm, sample, len(sample))
    if prefix:
        progress.note(f"Responses start with {prefix!r}; measurements begin after it.")
    return prefix


def _baseline(evaluator: Evaluator, noise: float, progress: Progress) -> dict[str, Any]:
    """What baseline.json says of the base model."""
    base = evaluator.measure([Edit.nothing()], progress)[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "dtype": evaluator.lm.dtype,
        "layers": evaluator.lm.layers,
        "response_prefix": evaluator.lm.response_prefix,
        "kl_noise_floor": noise,
        "base_metrics": base.document(),
    }


def _known_report(settings: Settings, folder: RunFolder, prompts: Prompts) -> dict[str, Any] | None:
    """What an earlier start measured on the same report prompts, with the same judges and controls."""
    if not folder.summary.is_file():
        return None
    summary = folder.read_json(folder.summary, ("prompts", "report"))
    known: dict[str, Any] | None = summary["report"]
    if known is None or known.get("measured_with") != measured_with(settings):
        return None
    return known | {"overlap": prompts.overlaps(with_report=True)} if summary["prompts"] == prompts.document() else None


def _judge_failed(report: Mapping[str, Any]) -> bool:
    metrics = report["base_metrics"], report["metrics"]
    return any("problem" in judged for each in metrics for judged in each.get("judges", {}).values())


def collect_residuals(
    settings: Settings, prompts: Prompts, lm: LanguageModel, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Residuals of the fitting prompts: benign [n, L, d] and target [m, L, d], winsorised as the settings say."""
    ids = lm.encode(prompts.benign.prompts), lm.encode(prompts.target.prompts)
    rows = affordable_rows(lm, max(map(len, ids[0] + ids[1])), settings.batch_size, settings.max_batch_size)
    progress.start("Collecting residuals", len(ids[0]) + len(ids[1]))
    benign, target = (
        winsorize(last_token_residuals(lm, side, rows, progress.advance), settings.winsorization_quantile)
        for side in ids
    )
    return benign, target


def _fit(settings: Settings, prompts: Prompts, lm: LanguageModel, progress: Progress) -> Directions:
    benign, target = collect_residuals(settings, prompts, lm, progress)
    return estimate_directions(
        benign,
        target,
        methods=settings.direction_methods,
        subspace_rank=settings.benign_subspace_rank,
        orthogonalize=settings.orthogonalize_direction,
        variance_floor=settings.direction_variance_floor,
    )


def _alternating(first: PromptSet, second: PromptSet) -> list[Any]:
    return [p for pair in zip_longest(first, second) for p in pair if p is not None]


def _trial_line(number: int, outcome: Outcome) -> str:
    if isinstance(outcome, Bounds):
        return (
            f"Trial {number}: pruned at {outcome.failures} or more refused or broken, "
            f"{outcome.overrefusals} or more overrefusals, KL {outcome.kl_divergence:.4f}"
        )
    return (
        f"Trial {number}: {outcome.refusals} refusals, {outcome.broken.count} broken, {outcome.overrefusals} overrefusals, "
        f"KL {outcome.kl_divergence:.4f}, compliance {outcome.compliance:.2f}"
    )


@dataclass
class _Remaining:
    """Turns the progress of batches into the progress of all trials that are left."""

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
