"""Export a trial as an adapter or merged weights, and measure it again from the files that were written."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError
from torch import Tensor

from iconoclast.config.schema import Settings, settings_document
from iconoclast.edits.edit import Edit
from iconoclast.edits.lora import Approximation, remarks_on_serving, save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.edits.record import save_edit
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.evaluation.examination import ExaminedPrompts
from iconoclast.files import disk_trouble
from iconoclast.goals import Objectives
from iconoclast.layout import (
    CARD,
    CHECKSUMS,
    EDIT_FILE,
    GGUF_ADAPTER,
    GGUF_FILE,
    TRIAL_INFORMATION,
    config_file,
    quant_file,
)
from iconoclast.models.adapters import put_adapter
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.gguf import complete_rope
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.llama_cpp import LORA_CONVERTER, SERVER, LlamaCpp
from iconoclast.models.loading import load_model
from iconoclast.models.rest import described as lost_tensors
from iconoclast.models.skeleton import load_skeleton
from iconoclast.privacy import portable, public
from iconoclast.progress import Progress, Silent
from iconoclast.runs.as_served import AsServed, measure_served
from iconoclast.runs.composition import ComposedEdits, open_together
from iconoclast.runs.documents import Composition, DirectionOrigin, TrialInformation
from iconoclast.runs.drift import beyond_noise
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.full_weights import use_full_directions
from iconoclast.runs.manifest import packages, sums
from iconoclast.runs.papers import ModelCard
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.splits import Prompts
from iconoclast.runs.trials import trial_document
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores
from iconoclast.vocabulary import ExportFormat, Quantization

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Exported:
    """An export and its scores, all on the same prompts.

    Attributes:
        prompts: which prompts the scores are of.
        live: scores of the edit applied live, as in the search.
        exported: scores of the export loaded from its files; None if it was not measured.
        approximations: error of every update where row normalisation full was made low-rank.
        remarks: what the files have otherwise than the base model, beside the edit.
        problem: in what the export measures farther from the live edit than noise allows; empty if in nothing.
        quantization: of the weights that `base` and `live` are of.
        directions: which ones the export of a quantised run uses.
        quants: scores of the further quantised files, by their type, where they were measured dequantised.
        served: what was measured of files as llama.cpp serves them.
        composed: the edits, if they are of several runs, and how they interfere.
    """

    folder: Path
    prompts: str
    base: Scores
    live: Scores
    exported: Scores | None
    approximations: Sequence[Approximation]
    remarks: Sequence[str] = ()
    problem: str = ""
    quantization: Quantization = "none"
    directions: DirectionOrigin | None = None
    quants: Mapping[str, Scores] = field(default_factory=dict)
    served: AsServed = field(default_factory=AsServed)
    composed: Composition | None = None

    @property
    def swallowed(self) -> list[str]:
        """Files in which, by more than chance, less than half of what the edit removes is gone."""
        base, live = self.base.failures, self.live.failures
        return [
            file
            for file, scores in (self.dequantised | dict(self.served.metrics)).items()
            if 2 * (base.count - scores.failures.count) < base.count - live.count and not live.near(scores.failures)
        ]

    @property
    def dequantised(self) -> dict[str, Scores]:
        """Scores of further files that were measured dequantised, by their name."""
        return {quant_file(name): scores for name, scores in self.quants.items()}

    @property
    def approximation_error(self) -> float:
        """Largest relative error of a site's update; 0 where all are exact."""
        return max((each.error for each in self.approximations), default=0.0)

    @property
    def sufficient_rank(self) -> int:
        """Rank at which every update would have an error under 1 %."""
        return max((each.sufficient_rank for each in self.approximations), default=1)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "folder": str(self.folder),
            "prompts": self.prompts,
            "base_metrics": self.base.document(),
            "live_metrics": self.live.document(),
            "export_metrics": None if self.exported is None else self.exported.document(),
            "approximation_error": self.approximation_error,
            "remarks": list(self.remarks),
            "problem": self.problem,
            "quantization": self.quantization,
            "quants": {name: scores.document() for name, scores in self.quants.items()},
            "served": {name: metrics.document() for name, metrics in self.served.metrics.items()},
            "served_by": self.served.by,
            "swallowed": self.swallowed,
            **({} if self.composed is None else {"composed": self.composed.document()}),
        }


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
) -> Exported:
    """Export trials of several runs on one base model together, one edit after the other; see `export_trial`.

    Raises:
        ModelError: the runs are of different models.
    """
    saved = open_together(runs)
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

    The scores are of the report prompts if the run has them, else of the selection prompts.

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
    bench, edit = composed.benches[0], composed.edit
    lm, evaluator = bench.lm, bench.evaluator("report")
    with bench.laid_out():
        reference = evaluator.reference  # of the base model: an adapter changes the model itself
        together = composed.measured(progress)
        known = _known_scores(saved, bench.prompts) if lm.quantization == saved.settings.quantization else None
        if together is not None:
            known = [together.together[row].scores[0] for row in (0, -1)]
        base, live = known or evaluator.measure([Edit.nothing(), edit], progress)
    with appearing(to) as folder:
        approximations, remarks = write_edit(edit, lm, kind, folder, bench.settings)
        served = _for_llama_cpp(folder, kind, llama, bench, progress)
        exported = measure_export(folder, kind, bench, reference, progress)
        further = {
            name: measure_export(folder, kind, bench, reference, progress, quant_file(name))
            for name in llama.quants
            if kind == "gguf" and quant_file(name) not in served.metrics
        }
        problem = beyond_noise(live, exported, saved.noise_floor, lm.dtype)
        scores, origin = (base, live, exported), (lm.quantization, directions)
        told = (
            to,
            _described(bench.prompts, bench.sample),
            *scores,
            approximations,
            [*remarks, *served.remarks],
            problem,
        )
        result = Exported(*told, *origin, further, served, together)
        _write_papers(saved, lm, kind, folder, result, edit)
    return result


def measure_export(
    folder: Path, kind: str, bench: Workbench, reference: Tensor, progress: Progress, file: str = GGUF_FILE
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


def export_unmeasured(run: Path, which: str, to: Path, progress: Progress | None = None) -> Exported:
    """Write merged weights without loading the model, so that memory for a few matrices is enough.

    The model card gets the scores that the run has measured with the edit applied live.

    Raises:
        ModelError: the base model is not stored as safetensors files in a type that can be edited in place.
    """
    progress = progress or Silent()
    saved = SavedRun.open(RunFolder(run), which)
    settings = saved.settings
    require_free(to)
    assert settings.model is not None
    progress.start("Writing the merged weights", 0)
    lm = load_skeleton(settings.model, settings.components, settings.trust_remote_code, settings.chat_template)
    bench = Workbench(settings, lm.with_prefix(saved.response_prefix), saved.directions)
    known = _known_scores(saved, bench.prompts) if bench.sample.split == "report" else None
    base, live = known or (saved.base, saved.trial.scores)
    described = _described(bench.prompts, bench.sample if known else bench.prompts.selected)
    directions = use_full_directions(saved, bench, progress)
    lm, edit = bench.lm, bench.edit(saved.trial.parameters)
    with appearing(to) as folder:
        _, remarks = write_edit(edit, lm, "merged", folder, settings)
        result = Exported(to, described, base, live, None, [], remarks, "", settings.quantization, directions)
        _write_papers(saved, lm, "merged", folder, result, edit)
    return result


def read_export(folder: Path, trial: int) -> Exported | None:
    """Return what was measured of the export in `folder`; None unless it is an export of this trial."""
    try:
        known = TrialInformation.read(folder / TRIAL_INFORMATION)
    except RunFolderError:
        return None
    if known.trial.index != trial or known.export_metrics is None:
        return None
    scores = known.base_metrics, known.live_metrics, known.export_metrics
    problem = beyond_noise(*scores[1:], known.kl_noise_floor, "bfloat16")
    approximations = [Approximation(**each) for each in known.approximations]
    origin, served = (known.quantization, known.directions, known.quants), AsServed(known.served_by, known.served)
    told = known.measured_on, *scores, approximations, known.remarks, problem
    return Exported(folder, *told, *origin, served, known.composed)


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


def require_free(to: Path) -> None:
    """Raise RunFolderError unless `to` does not exist yet or is an empty folder."""
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        what = "is there already, and not empty" if to.is_dir() else "is a file"
        raise RunFolderError(f"{to} {what}. Give a folder that does not exist yet.")
    above = next(parent for parent in to.absolute().parents if parent.exists())
    if not above.is_dir():
        raise RunFolderError(f"{to} cannot be a folder: {above} is a file. Give another folder with --to.")


@contextmanager
def appearing(to: Path) -> Iterator[Path]:
    """Yield a folder beside `to` that becomes `to` on success and vanishes otherwise."""
    require_free(to)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
        unfinished.chmod(0o755)
    except OSError as error:
        raise RunFolderError(f"The export folder {to} cannot be written: {error.strerror}.") from None
    try:
        yield unfinished
        for file in unfinished.iterdir():
            if file.is_file():
                file.chmod(0o644)  # some libraries write files that only their owner can read
        unfinished.replace(to)
    except (OSError, SafetensorError) as error:
        if (reason := disk_trouble(error)) is None:
            raise
        raise RunFolderError(f"The export folder {to} cannot be written: {reason}. Nothing was left there.") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _for_llama_cpp(folder: Path, kind: ExportFormat, llama: LlamaCpp, bench: Workbench, progress: Progress) -> AsServed:
    """Write what is wanted of an export for llama.cpp, and measure it as it is served."""
    if kind == "gguf":
        remarks = _write_gguf(folder, llama, progress)
        files = [folder / GGUF_FILE, *(folder / quant_file(name) for name in llama.quants)]
        served = measure_served(llama, files, bench, progress)
        return replace(served, remarks=[*remarks, *served.remarks])
    if kind == "adapter" and llama.folder is not None:
        return _write_gguf_adapter(folder, llama, bench, progress)
    return AsServed()


def _write_gguf(folder: Path, llama: LlamaCpp, progress: Progress) -> list[str]:
    """Turn the merged weights in a folder into GGUF files, which hold the tokenizer as well; return remarks."""
    progress.start("Converting to GGUF", 0)
    merged, file = folder / "merged", folder / GGUF_FILE
    merged.mkdir()
    for each in list(folder.iterdir()):
        if each.is_file():
            each.rename(merged / each.name)
    llama.convert(merged, file)
    completed = complete_rope(file, json.loads((merged / "config.json").read_text(encoding="utf-8")))
    for licence in sorted(merged.glob("LICENSE*")) + sorted(merged.glob("NOTICE*")):
        licence.rename(folder / licence.name)
    shutil.rmtree(merged)
    for name in llama.quants:
        progress.start(f"Quantising to {name}", 0)
        llama.quantize(file, folder / quant_file(name), name)
    return [completed] if completed else []


def _write_gguf_adapter(folder: Path, llama: LlamaCpp, bench: Workbench, progress: Progress) -> AsServed:
    """Write an adapter as a GGUF file as well, and measure it on the base model, converted for that only."""
    lm, file = bench.lm, folder / GGUF_ADAPTER
    checkpoint = None if lm.path.lower().endswith(".gguf") else Checkpoint.find(lm.path)
    if checkpoint is None or lm.quantization != "none":
        return AsServed(
            remarks=[f"{GGUF_ADAPTER} was not written: it needs a base model in full precision, as safetensors."]
        )
    progress.start("Converting the adapter to GGUF", 0)
    try:
        llama.convert_adapter(folder, checkpoint.folder, file)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            base = Path(place) / GGUF_FILE
            if llama.serve and llama.program(SERVER) is not None:
                progress.start("Converting the base model to GGUF", 0)
                llama.convert(checkpoint.folder, base)
                complete_rope(base, json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8")))
            return measure_served(llama, [file], bench, progress, base)
    except ModelError as error:
        return AsServed(remarks=[f"{GGUF_ADAPTER}: {error}"])


def _loaded(folder: Path, kind: str, bench: Workbench, file: str) -> LanguageModel:
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


def _described(prompts: Prompts, sample: ExaminedPrompts) -> str:
    if sample.target is not prompts.target_report:
        chosen = "the selection prompts, which also chose the trial, so the figures flatter"
    elif shared := prompts.overlaps(with_report=True):
        pairs = ", ".join(f"{pair} share {count}" for pair, count in shared.items())
        chosen = f"the report prompts, of which some fitted or chose the trial, so the figures flatter ({pairs})"
    else:
        chosen = "the report prompts, which chose nothing"
    target, benign = sample.target, sample.benign
    sources = public(target.source), public(benign.source)
    return f"Prompts: {len(target)} target ({sources[0]}) and {len(benign)} benign ({sources[1]}): {chosen}."


def _write_papers(
    saved: SavedRun, lm: LanguageModel, kind: ExportFormat, folder: Path, result: Exported, edit: Edit
) -> None:
    """Write everything but the weights. Local paths lose their folders: an export is made to be given away."""
    assert saved.settings.model is not None
    save_edit(edit, folder / EDIT_FILE)
    checkpoint = None if lm.path.lower().endswith(".gguf") else Checkpoint.find(lm.path)
    if checkpoint is not None:
        checkpoint.copy_licence(folder)
    for number, each in enumerate([saved, *saved.beside], 1):
        settings = public(portable(settings_document(each.settings)))
        (folder / config_file(number)).write_text(tomli_w.dumps(settings), encoding="utf-8")
    told = _information(saved, lm, kind, result)
    told.write(folder / TRIAL_INFORMATION)
    licence = None if checkpoint is None else checkpoint.licence()
    card = ModelCard(
        told=told,
        licence=licence,
        trial=saved.trial,
        sites=len(edit.sites),
        problem=result.problem,
        loaded_in=lm.quantization,
        objectives="" if (objectives := Objectives(saved.settings.objectives)).default else str(objectives),
        judged=saved.finalists.rule if saved.judged and saved.finalists else "",
        swallowed=result.swallowed,
    )
    (folder / CARD).write_text(card.render(), encoding="utf-8")
    (folder / CHECKSUMS).write_text(sums(folder), encoding="utf-8")


def _information(saved: SavedRun, lm: LanguageModel, kind: ExportFormat, result: Exported) -> TrialInformation:
    return TrialInformation(
        trial=trial_document(saved.trial),
        base_model=str(public(saved.settings.model)),
        format=kind,
        quantization=result.quantization,
        directions=result.directions,
        row_normalization=saved.settings.row_normalization,
        response_prefix=lm.response_prefix,
        packages=packages(),
        prompts=public(saved.prompts),
        measured_on=result.prompts,
        kl_noise_floor=saved.noise_floor,
        base_metrics=result.base,
        live_metrics=result.live,
        export_metrics=result.exported,
        approximation_error=result.approximation_error,
        approximations=[asdict(each) for each in result.approximations],
        remarks=list(result.remarks),
        quants=result.quants,
        served=result.served.metrics,
        served_by=result.served.by,
        composed=result.composed,
    )
