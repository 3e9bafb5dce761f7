"""Export a trial as an adapter or merged weights, and measure it again from the files that were written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from iconoclast.config.schema import Settings
from iconoclast.edits.approximation import Approximation
from iconoclast.edits.edit import Edit
from iconoclast.edits.lora import remarks_on_serving, save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.layout import GGUF_FILE, quant_file
from iconoclast.models.adapters import put_adapter
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.llama_cpp import LORA_CONVERTER, LlamaCpp
from iconoclast.models.loading import load_model
from iconoclast.models.rest import described as lost_tensors
from iconoclast.models.skeleton import load_skeleton
from iconoclast.privacy import portable
from iconoclast.progress import Progress, Silent
from iconoclast.runs.composition import ComposedEdits, open_together
from iconoclast.runs.documents import Composition
from iconoclast.runs.drift import beyond_noise
from iconoclast.runs.export_papers import prompts_sentence, write_papers
from iconoclast.runs.exported import Exported
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.for_llama_cpp import write_for_llama_cpp
from iconoclast.runs.full_weights import use_full_directions
from iconoclast.runs.measured_capabilities import with_capabilities
from iconoclast.runs.new_folder import appearing, require_free
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.splits import Prompts
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores
from iconoclast.vocabulary import ExportFormat

TEMPLATE = "chat_template.jinja"


def export_run(
    run: Path,
    which: str,
    kind: ExportFormat,
    to: Path,
    progress: Progress | None = None,
    llama: LlamaCpp | None = None,
) -> Exported:
    """Export trial `which` ("best" or a number) of a run folder; see `export_trial`."""
    return export_runs([(run, which)], kind, to, progress, llama)


def export_runs(
    runs: Sequence[tuple[Path, str]],
    kind: ExportFormat,
    to: Path,
    progress: Progress | None = None,
    llama: LlamaCpp | None = None,
    capabilities: Path | None = None,
) -> Exported:
    """Export trials of several runs on one base model together, one edit after the other; see `export_trial`.

    Args:
        capabilities: what `benchmark` has measured of the one trial, for the card.

    Raises:
        ModelError: the runs are of different models.
    """
    saved = with_capabilities(open_together(runs), capabilities)
    require_free(to)
    llama = llama or LlamaCpp()
    if kind == "gguf":
        llama.require()
    elif kind == "adapter" and llama.folder is not None:
        llama.converter(LORA_CONVERTER)
    bench = saved.workbench(None if kind == "adapter" else "none", progress)
    return export_trial(saved, bench, kind, to, progress, llama)


def export_trial(
    saved: SavedRun,
    bench: Workbench,
    kind: ExportFormat,
    to: Path,
    progress: Progress | None = None,
    llama: LlamaCpp | None = None,
) -> Exported:
    """Write a trial's edit into the new folder `to`, load it from there, measure it, and write its model card.

    The scores are of the report prompts if the run has them, else of the select prompts.

    Args:
        bench: the run's base model, not laid out; for anything but an adapter it must not be quantised.
        kind: adapter (PEFT), merged (plain transformers) or gguf (llama.cpp).
        to: a new or empty folder; it appears only when the export is complete.
        llama: where llama.cpp is, and which further GGUF files are wanted; each is measured as well.

    Raises:
        RunFolderError: `to` is in use.
        ModelError: the converter or a quantiser is missing or fails.
    """
    progress, llama = progress or Silent(), llama or LlamaCpp()
    require_free(to)
    directions = use_full_directions(saved, bench, progress)
    composed = ComposedEdits.on([saved, *saved.beside], bench)
    bench, edit, lm = composed.benches[0], composed.edit, composed.benches[0].lm
    reference, together, (base, live) = _measure_live(saved, composed, progress)
    with appearing(to) as folder:
        approximations, remarks = write_edit(edit, lm, kind, folder, bench.settings)
        served = write_for_llama_cpp(folder, kind, llama, bench, progress)
        exported = measure_export(folder, kind, bench, reference, progress)
        others = [name for name in llama.quants if kind == "gguf" and quant_file(name) not in served.metrics]
        result = Exported(
            folder=to,
            prompts=prompts_sentence(bench.prompts, bench.sample),
            base=base,
            live=live,
            exported=exported,
            approximations=approximations,
            remarks=[*remarks, *served.remarks],
            problem=beyond_noise(live, exported, saved.noise_floor, lm.dtype),
            quantization=lm.quantization,
            directions=directions,
            quants={n: measure_export(folder, kind, bench, reference, progress, quant_file(n)) for n in others},
            served=served,
            composed=together,
        )
        write_papers(saved, lm, kind, folder, result, edit)
    return result


def _measure_live(
    saved: SavedRun, composed: ComposedEdits, progress: Progress
) -> tuple[Tensor, Composition | None, Sequence[Scores]]:
    """Return the base model's first-token log-probabilities, how several edits interfere, and scores of base and live edit."""
    bench = composed.benches[0]
    evaluator = bench.evaluator("report")
    with bench.laid_out():
        reference = evaluator.reference  # of the base model: an adapter changes the model itself
        together = composed.measured(progress)
        if together is not None:
            return reference, together, [together.together[row].scores[0] for row in (0, -1)]
        known = _known_scores(saved, bench.prompts) if bench.lm.quantization == saved.settings.quantization else None
        return reference, None, known or evaluator.measure([Edit.nothing(), composed.edit], progress)


def measure_export(
    folder: Path, kind: ExportFormat, bench: Workbench, reference: Tensor, progress: Progress, file: str = GGUF_FILE
) -> Scores:
    """Load an export from its files and measure it beside its base model.

    Args:
        file: the one of several GGUF files that is meant.
        bench: the base model, not laid out. An adapter is put on it, after which it serves no other purpose.
        reference: first-token log-probabilities of the base model, [benign, vocabulary].
    """
    progress.start("Loading the export", 0)
    with bench.beside(_loaded(folder, kind, bench, file)) as exported:
        return exported.evaluator("report", reference).measure([Edit.nothing()], progress)[0]


def export_unmeasured(
    run: Path, which: str, to: Path, progress: Progress | None = None, capabilities: Path | None = None
) -> Exported:
    """Write merged weights without loading the model, so that memory for a few matrices is enough.

    The model card gets the scores that the run has measured with the edit applied live.

    Raises:
        ModelError: the base model is not stored as safetensors files in a type that can be edited in place.
    """
    progress = progress or Silent()
    saved = with_capabilities(SavedRun.open(RunFolder(run), which), capabilities)
    settings = saved.settings
    require_free(to)
    assert settings.model is not None
    progress.start("Writing the merged weights", 0)
    lm = load_skeleton(settings.model, settings.components, settings.trust_remote_code, settings.chat_template)
    bench = Workbench(settings, lm.with_prefix(saved.response_prefix), saved.directions)
    known = _known_scores(saved, bench.prompts) if bench.sample.split == "report" else None
    base, live = known or (saved.base, saved.trial.scores)
    about = prompts_sentence(bench.prompts, bench.sample if known else bench.prompts.selected)
    directions = use_full_directions(saved, bench, progress)
    lm, edit = bench.lm, bench.edit(saved.trial.parameters)
    with appearing(to) as folder:
        _, remarks = write_edit(edit, lm, "merged", folder, settings)
        result = Exported(
            folder=to,
            prompts=about,
            base=base,
            live=live,
            exported=None,
            approximations=[],
            remarks=remarks,
            quantization=settings.quantization,
            directions=directions,
        )
        write_papers(saved, lm, "merged", folder, result, edit)
    return result


def _known_scores(saved: SavedRun, prompts: Prompts) -> list[Scores] | None:
    """Return base and live scores, if the run has measured this trial on these prompts."""
    report = saved.report
    if saved.prompts != prompts.document() or report is None or report.trial != saved.trial.index:
        return None
    return [report.base_metrics, report.metrics]


def write_edit(
    edit: Edit, lm: LanguageModel, kind: ExportFormat, folder: Path, settings: Settings
) -> tuple[list[Approximation], list[str]]:
    """Write an edit's weights and the base model's other files into a folder.

    Returns the errors of inexact updates, and remarks on what else is not as in the base model.
    """
    writers, remarks = lm.writers(settings.components), []
    approximations: list[Approximation] = []
    checkpoint = None if lm.path.lower().endswith(".gguf") else Checkpoint.find(lm.path)
    if kind == "adapter":
        rank = settings.full_normalization_lora_rank
        approximations = save_adapter(edit, writers, str(portable(lm.name)), folder, rank)
        remarks = remarks_on_serving(folder)
    else:
        lost = save_merged(edit, writers, lm.model, folder, checkpoint if lm.quantization == "none" else None)
        remarks = [lost_tensors(lost)] if lost else []
    if checkpoint is None:
        lm.tokenizer.save_pretrained(folder)
        return approximations, remarks
    checkpoint.copy_papers(folder, settings.trust_remote_code)
    if not any(folder.glob("tokenizer*")):
        lm.tokenizer.save_pretrained(folder)
    elif settings.chat_template is not None:
        (folder / TEMPLATE).write_text(str(lm.tokenizer.chat_template), encoding="utf-8")
        remarks.append(
            f"{TEMPLATE} is the chat template that the run was given; all else of the tokenizer is the base model's."
        )
    return approximations, remarks


def _loaded(folder: Path, kind: ExportFormat, bench: Workbench, file: str) -> LanguageModel:
    """Load the export as its users will, but with the base model's chat template, so that it gets the same prompts."""
    lm, settings = bench.lm, bench.settings
    if kind == "adapter":
        put_adapter(lm, str(folder))
        return lm
    loaded = load_model(
        str(folder / file if kind == "gguf" else folder),
        dtypes=[lm.dtype],
        device_map=settings.device_map,
        max_memory=settings.memory_limits,
        trust_remote_code=settings.trust_remote_code,
        chat_template="raw",
    )
    loaded.tokenizer.chat_template = lm.tokenizer.chat_template
    return replace(loaded, response_prefix=lm.response_prefix, template_date=lm.template_date, thinking=lm.thinking)
