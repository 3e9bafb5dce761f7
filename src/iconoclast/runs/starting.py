"""The start of a run: checks before the model is loaded, what is computed once, and what an earlier start left."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from iconoclast.config.schema import FIT_AND_SELECT, Settings, settings_document
from iconoclast.directions.record import load_directions, save_directions
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.evaluation.judges.protocol import Judge
from iconoclast.evaluation.model_scores import ModelScores, require_scores
from iconoclast.evaluation.rules import content_of
from iconoclast.goals import JUDGED, Objectives
from iconoclast.models.names import resolve
from iconoclast.progress import Progress, Silent, show
from iconoclast.runs.documents import Baseline, Manifest, Rendering
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.forecast import Forecast, stages_of_run
from iconoclast.runs.geometry import geometry
from iconoclast.runs.judging import cost_of_run, judges_of
from iconoclast.runs.kept import Kept
from iconoclast.runs.manifest import manifest, this_start
from iconoclast.runs.pinned import OF_EDITS, pinned_settings
from iconoclast.runs.pipeline import Run, known_finalists, known_report, with_model_scores
from iconoclast.runs.splits import Prompts
from iconoclast.runs.trials import search_space
from iconoclast.runs.workbench import Workbench, require_functions
from iconoclast.runs.workers import Worker
from iconoclast.search.objective import little_to_remove
from iconoclast.search.study import Plan, Study


def run_folder(settings: Settings) -> RunFolder:
    """Return the run folder that the settings name; raise SettingsError if no model is named."""
    if settings.model is None:
        raise SettingsError(
            "No model is named. Use `iconoclast run MODEL`, set model in the settings file, or try `iconoclast demo`."
        )
    slug = "".join(c if c.isalnum() or c in ".-_" else "--" for c in Path(settings.model).name or settings.model)
    return RunFolder(settings.study_checkpoint_dir or Path("runs") / slug)


def checked(settings: Settings) -> tuple[RunFolder, Prompts, Sequence[Judge]]:
    """Check all that can be wrong before a model is loaded: it must not come out after hours of search.

    Raises:
        UserError: a setting, prompt set, judge or folder is not usable; nothing was written then.
    """
    folder = run_folder(settings)
    assert settings.model is not None
    resolve(settings.model)
    folder.check(settings)
    require_functions(settings)
    require_scores(settings.named_scores)
    return folder, Prompts.load(settings), judges_of(settings)


@contextmanager
def started_run(
    settings: Settings, progress: Progress | None = None, began: float | None = None, worker: Worker | None = None
) -> Iterator[Run]:
    """Begin or continue a run, and yield it ready for trials; it holds its folder while the context lasts.

    Args:
        began: time of the user's request in seconds since 1970; set-up time counts from there. Unset, it is now.
        worker: this process, if several work on the run together; the first prepares it for all.

    Raises:
        UserError: a setting, prompt set, model or folder is not usable; nothing was written then.
    """
    progress = progress or Silent()
    began = time.time() if began is None else began
    folder, prompts, judges = checked(settings)
    for pair, count in prompts.overlaps().items():
        progress.note(f"Allowed overlap: {pair} share {count} prompt{'s' * (count > 1)}; scores on them flatter.")
    for line in cost_of_run(judges, settings, prompts):
        progress.note(line)
    with folder.locked(shared=worker is not None):
        folder.check(settings)  # again: another process may have begun a run meanwhile
        settings = folder.dated(settings)
        bench = Workbench.load(settings, progress=progress)
        bench.use(prompts, judges=judges)
        bench.lm.writers(settings.components)
        with bench.laid_out():
            with folder.alone() if worker else nullcontext():
                run = _prepared(bench, folder, progress, began, claim=worker is None)
            run.worker = worker
            yield run


def _prepared(bench: Workbench, folder: RunFolder, progress: Progress, began: float, claim: bool) -> Run:
    """Do everything between a loaded model and the first trial, reusing what an earlier start left in the folder.

    With workers, the submitter has claimed the folder, perhaps for more trials than this worker knows of.
    """
    settings = bench.settings
    bench.require_room()
    known = folder.read_baseline() if folder.baseline.is_file() else None
    kept = bench.kept(progress)
    if known is None:
        bench.find_response_prefix(progress, kept)
    else:
        bench.start_responses_with(known.response_prefix)
    rendering = bench.rendering()
    progress = Forecast(progress, stages_of_run(settings, bench.lm, bench.prompts, settings.n_trials, settings.fit))
    begun = known is not None and folder.directions.is_file()
    residuals = None if begun else bench.residuals(progress, kept)
    bench.directions = bench.estimate_directions(*residuals) if residuals else load_directions(folder.directions)
    if claim:
        folder.claim(settings)  # nothing is written before everything that a user can get wrong has been tried
    if residuals:
        geometry(bench, *residuals).write(folder.geometry)
        save_directions(bench.directions, folder.directions)
    evaluator = _evaluator(bench, progress)
    model_scores = bench.model_scores()
    if known is None:
        known = _scored_base(bench, kept, evaluator, model_scores, rendering, progress)
        known.write(folder.baseline)
    study = _opened_study(bench, folder)
    _require_same_prompts(folder, known, rendering)
    study.pin("token ids", {name: rendering.tokens[name] for name in FIT_AND_SELECT})
    _write_manifest(bench, folder, rendering)  # by now nothing is refused any more
    _say_ready(progress, study.finished, known, time.time() - began)
    _say_objectives(progress, Objectives(settings.objectives))
    return Run(
        bench=bench,
        folder=folder,
        evaluator=evaluator,
        base=known.base_metrics,
        noise_floor=known.kl_noise_floor,
        study=study,
        finalists=known_finalists(folder),
        report=known_report(bench, folder),
        model_scores=model_scores,
        forecast=progress,
    )


def _evaluator(bench: Workbench, progress: Progress) -> Evaluator:
    """Return the evaluator of trials, which computes only the layers that an edit can change if the model allows it."""
    evaluator = bench.evaluator("select")
    progress.start("Looking at what the lower layers give", 0)
    if not evaluator.leave_out_lower_layers():
        progress.note(
            "All layers are computed for every candidate: the lower ones' outputs cannot be kept, or not used."
        )
    return evaluator


def _require_same_prompts(folder: RunFolder, known: Baseline, rendering: Rendering) -> None:
    """Raise RunFolderError if the model sees other prompts than when the run was begun."""
    if known.rendering and (changed := known.rendering.differences(rendering, FIT_AND_SELECT)):
        raise RunFolderError(
            f"{folder.path} was begun with other prompts in the model's eyes: {changed[0]}. "
            "Restore what has changed to continue it, or give another folder with --out."
        )


def _scored_base(
    bench: Workbench,
    kept: Kept,
    evaluator: Evaluator,
    model_scores: ModelScores | None,
    rendering: Rendering,
    progress: Progress,
) -> Baseline:
    """Return the base model's scores, kept from an earlier run unless they hold scores of the model itself or of judges."""

    def measured() -> Plain:
        return _baseline(evaluator, model_scores, progress).document()

    asked = _asked_of_base(bench, rendering)
    found = (
        measured()
        if model_scores or JUDGED in bench.settings.named_scores
        else kept.document("baseline", asked, measured)
    )
    return Baseline.model_validate(found).model_copy(update={"rendering": rendering})


def _say_objectives(progress: Progress, objectives: Objectives) -> None:
    if not objectives.default:
        late = "" if objectives.prunable else " Some are known only at the end, so no trial is pruned."
        progress.note(f"Objectives: {', '.join(map(str, objectives.all))}.{late}")


def _comparable(bench: Workbench) -> Plain:
    """Return everything under which scores can be compared, as plain data."""
    settings = bench.settings
    named = bench.prompts.named().items()
    contents = {f"{name} (content)": each.fingerprint for name, each in named if "report" not in name}
    functions = (*settings.refusal_rules, *settings.soft_refusal_rules, *settings.named_scores)
    contents |= {f"{name} (content)": found for name in functions if (found := content_of(name))}
    if JUDGED in settings.named_scores:
        contents[f"{JUDGED} (judges)"] = " and ".join(judge.name for judge in bench.judges)
    return pinned_settings(settings) | contents


def _asked_of_base(bench: Workbench, rendering: Rendering) -> list[Any]:
    """Return everything that the base model's scores depend on beside the model, as plain data."""
    said = {key: value for key, value in _comparable(bench).items() if key.split(" (")[0] not in OF_EDITS}
    tokens = [rendering.tokens[name] for name in ("good_evaluation_prompts", "bad_evaluation_prompts")]
    return [said, tokens, bench.settings.batch_size, bench.settings.max_batch_size]


def _opened_study(bench: Workbench, folder: RunFolder) -> Study:
    settings = bench.settings
    return Study.open(
        folder.journal,
        search_space(settings, bench.lm.layers),
        Plan(settings.seed, settings.n_startup_trials, settings.trials_per_batch),
        pinned=_comparable(bench),
        storage=settings.study_storage,
        objectives=len(settings.objectives),
    )


def _say_ready(progress: Progress, done: int, known: Baseline, seconds: float) -> None:
    base, noise = known.base_metrics, known.kl_noise_floor
    show(progress, Base_model=f"{base.refusals.with_interval} refused, {base.overrefusals} overrefused")
    show(progress, Noise_floor=f"{noise:.2g} nats: smaller differences of KL mean nothing")
    progress.note(
        f"Ready for trials after {seconds:.0f} s"
        + (f"; {done} trials are there already" if done else "")
        + f". Base model: {base.refusals} refusals, {base.overrefusals} overrefusals; KL noise floor {noise:.2g}."
    )
    if base.strengthened and not base.failures.count:
        progress.note("The base model refuses all target prompts: there is nothing to strengthen.")
    if little_to_remove(base):
        progress.note(
            f"The base model refuses only {base.refusals} target prompts, so there is little to remove. "
            "Are bad_evaluation_prompts and refusal_markers those of the behaviour?"
        )


def _write_manifest(bench: Workbench, folder: RunFolder, rendering: Rendering) -> None:
    """Record the run's origin, and this start or continuation."""
    if folder.manifest.is_file():
        known = Manifest.read(folder.manifest)
    else:
        known = manifest(bench.lm, bench.settings.seed, bench.prompts.document(), settings_document(bench.settings))
        known = known.model_copy(update={"rendering": rendering})
    known.model_copy(update={"starts": [*known.starts, this_start()]}).write(folder.manifest)


def _baseline(evaluator: Evaluator, model_scores: ModelScores | None, progress: Progress) -> Baseline:
    noise, nothing = evaluator.noise_floor(), [Edit.nothing()]
    base = with_model_scores(model_scores, nothing, evaluator.measure(nothing, progress), progress)[0]
    return Baseline(
        dtype=evaluator.lm.dtype,
        layers=evaluator.lm.layers,
        response_prefix=evaluator.lm.response_prefix,
        kl_noise_floor=noise,
        base_metrics=base,
    )
