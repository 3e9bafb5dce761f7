"""What stands beside the weights of an export: the edit, settings, trial_information.json, model card, checksums."""

from pathlib import Path

import tomli_w

from iconoclast.config.schema import settings_document
from iconoclast.edits.edit import Edit
from iconoclast.edits.record import save_edit
from iconoclast.evaluation.examination import ExaminedPrompts
from iconoclast.goals import Objectives
from iconoclast.layout import CARD, CHECKSUMS, EDIT_FILE, TRIAL_INFORMATION, config_file
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.models.language_model import LanguageModel
from iconoclast.privacy import portable, public
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.exported import Exported
from iconoclast.runs.manifest import packages, sums
from iconoclast.runs.papers import ModelCard
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.splits import Prompts
from iconoclast.runs.trials import trial_document
from iconoclast.vocabulary import ExportFormat


def prompts_sentence(prompts: Prompts, sample: ExaminedPrompts) -> str:
    """Return the sentence of a card on which prompts were measured, and whether they chose the trial."""
    if sample.target is not prompts.target_report:
        chosen = "the select prompts, which also chose the trial, so the figures flatter"
    elif shared := prompts.overlaps(with_report=True):
        pairs = ", ".join(f"{pair} share {count}" for pair, count in shared.items())
        chosen = f"the report prompts, of which some fitted or chose the trial, so the figures flatter ({pairs})"
    else:
        chosen = "the report prompts, which chose nothing"
    target, benign = sample.target, sample.benign
    sources = public(target.source), public(benign.source)
    return f"Prompts: {len(target)} target ({sources[0]}) and {len(benign)} benign ({sources[1]}): {chosen}."


def write_papers(
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
        finalists=len(saved.finalists.finalists) if saved.judged and saved.finalists else 0,
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
        approximations=list(result.approximations),
        remarks=list(result.remarks),
        quants=result.quants,
        served=result.served.metrics,
        served_by=result.served.by,
        composed=result.composed,
        capabilities=saved.capabilities,
    )
