"""Check an export against its papers: its files, its tensors beside the base model's, its scores."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iconoclast.config.schema import Settings, without_functions
from iconoclast.documents import Value
from iconoclast.edits.edit import Edit
from iconoclast.edits.record import load_edit
from iconoclast.errors import ModelError, UserError, first_line
from iconoclast.layout import CHECKSUMS, EDIT_FILE
from iconoclast.models.adapters import adapter_base, other_base
from iconoclast.models.checkpoint import Checkpoint, matrix_changes
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.names import local_path
from iconoclast.models.rest import described as lost_tensors
from iconoclast.models.rest import unread
from iconoclast.models.skeleton import load_skeleton
from iconoclast.progress import Progress, Silent
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.drift import drift
from iconoclast.runs.export import measure_export
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.manifest import sums
from iconoclast.runs.splits import Prompts
from iconoclast.runs.workbench import Workbench

CLOSE = 1e-2
"""Largest relative error of an update that is still the declared one: the base model's bfloat16 leaves so much open."""
DAMAGED = (OSError, RuntimeError, ValueError, LookupError, TypeError, SafetensorError)
"""Exceptions from reading and comparing damaged files, or those of another model."""


@dataclass(frozen=True)
class Check(Value):
    """One comparison of an export with its papers; `passed` is None if it could not be made."""

    name: str
    passed: bool | None
    detail: str


def verify(
    folder: Path,
    base: str | None = None,
    measure: bool = True,
    prompts: Settings | None = None,
    progress: Progress | None = None,
) -> list[Check]:
    """Check an export against its papers.

    Args:
        base: the base model; unset, the one that the export names.
        measure: also load the export and measure it again.
        prompts: settings that name the prompts and say whether a model's code may run (the export has no say in that);
            unset, the prompts are those of the export, which names files without their folders.

    Raises:
        RunFolderError: the folder is not an export.
    """
    progress = progress or Silent()
    told = TrialInformation.of(folder)
    name = base or adapter_base(str(folder)) or told.base_model
    progress.start("Reading the files", 0)
    checks = [_files(folder)]
    try:
        edit = load_edit(folder / EDIT_FILE)
        progress.start("Comparing the tensors with those of the base model", 0)
        checks.append(_tensors(folder, name, edit, told))
    except UserError as error:
        checks.append(Check("tensors", None, str(error)))
    except DAMAGED as error:
        checks.append(
            Check("tensors", False, f"They cannot be compared with those of {name}: {first_line(error)[:200]}")
        )
    if measure:
        try:
            checks.append(_scores(folder, name, told, prompts, progress))
        except UserError as error:
            checks.append(Check("scores", None, str(error)))
        except DAMAGED as error:
            checks.append(Check("scores", False, f"The export cannot be measured: {first_line(error)[:200]}"))
    return checks


def _files(folder: Path) -> Check:
    try:
        lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return Check("files", None, f"{CHECKSUMS} is missing.")
    wanted = {line[66:]: line[:64] for line in lines if len(line) > 66}
    found = {line[66:]: line[:64] for line in sums(folder).splitlines()}
    wrong = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    wrong += [f"{name} is not listed" for name in found.keys() - wanted.keys()]
    wrong += [f"{name} has changed" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    detail = f"{len(wanted)} files have the SHA-256 sums of {CHECKSUMS}" if not wrong else "; ".join(sorted(wrong))
    return Check("files", not wrong, detail)


def _tensors(folder: Path, base: str, edit: Edit, told: TrialInformation) -> Check:
    if told.format == "gguf":
        return Check("tensors", None, "A GGUF file is not compared tensor by tensor; its scores are.")
    components = sorted({site.component for site in edit.sites})
    skeleton, source = load_skeleton(base, components), Checkpoint.find(local_path(base))
    if source is None:
        raise ModelError(f"{base} is not stored as safetensors files.")
    if told.format == "adapter":
        return _adapter(folder, skeleton, source, edit, told)
    edited = {site: partial(edit.applied_to, site) for site in edit.sites}
    changes = matrix_changes(source, skeleton.model, skeleton.writers(components), edited)
    copy = Checkpoint.find(str(folder))
    if changes is None or copy is None:
        gone = sorted(set(unread(source, skeleton.model)) - (source.places if copy is None else copy.places).keys())
        said = [lost_tensors(gone)] if gone else []
        declared = not gone or said[0] in " ".join(told.remarks)
        form = "The base model is stored in another form than the export."
        return Check("tensors", None if declared else False, " ".join([form, *said]))
    wrong = [f"{name} is missing" for name in source.places.keys() - copy.places.keys()]
    wrong += [f"{name} is new" for name in copy.places.keys() - source.places.keys()]
    for name in source.places.keys() & copy.places.keys():
        before, after = source.tensor(name), copy.tensor(name)
        wanted = _applied(changes[name], before) if name in changes else before
        if after.dtype != wanted.dtype or after.shape != wanted.shape:
            wrong.append(f"{name} has another type or shape")
        elif not torch.equal(_bytes(after), _bytes(wanted)):
            size = (wanted.float() - before.float()).norm().clamp(min=1e-12)
            if name not in changes:
                wrong.append(f"{name} is not that of the base")
            elif not float((after.float() - wanted.float()).norm() / size) <= CLOSE:  # not a number is not close
                wrong.append(f"{name} is not what the edit makes of it")
    detail = (
        f"{len(changes)} tensors are what the declared edit makes of the base model's, the other "
        f"{len(source.places) - len(changes)} are equal byte by byte"
    )
    return Check("tensors", not wrong, detail if not wrong else "; ".join(sorted(wrong)[:8]))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def _applied(change: Any, tensor: Tensor) -> Tensor:
    if tensor.ndim == 2:
        return change(tensor.float()).to(tensor.dtype).contiguous()  # type: ignore[no-any-return]
    return torch.stack([_applied(change, matrix) for matrix in tensor])


def _adapter(folder: Path, skeleton: LanguageModel, source: Checkpoint, edit: Edit, told: TrialInformation) -> Check:
    tensors = load_file(folder / "adapter_model.safetensors")
    writers, wrong, worst = skeleton.writers(sorted({site.component for site in edit.sites})), [], 0.0
    close = CLOSE if told.quantization == "none" else 0.3
    named = {f"base_model.model.{site.module}.lora_{x}.weight" for site in edit.sites for x in "AB"}
    wrong += [f"{name} is not declared" for name in tensors.keys() - named]
    wrong += [f"{name} is missing" for name in named - tensors.keys()]
    for site in edit.sites if not wrong else []:
        a, b = (tensors[f"base_model.model.{site.module}.lora_{x}.weight"].float() for x in "AB")
        weight = source.weight(skeleton.model, writers[site])
        if weight is None:
            raise ModelError(f"{site.module} of the base model is stored in a form that cannot be compared.")
        if writers[site].fused:
            experts = weight.shape[0]
            a = a.reshape(experts, -1, a.shape[-1])
            b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
        wanted = edit.factors(site, weight, a.shape[-2])
        update = wanted.b @ wanted.a
        off = float((b @ a - update).norm() / update.norm().clamp(min=1e-12))
        worst = off if not off <= worst else worst
        if not off <= close:  # not a number is not close
            wrong.append(f"the update of {site.module} is not the declared one (relative error {off:.1%})")
    detail = (
        f"the updates of {len(edit.sites)} matrices are those of the declared edit (largest relative error {worst:.1e})"
    )
    if (declared := other_base(str(folder), skeleton.name)) is not None:
        said = f"the adapter names {declared} as its base model, not {skeleton.name}"
        detail, wrong = f"{detail}; {said}", wrong and [*wrong[:7], said]
    return Check("tensors", not wrong, detail if not wrong else "; ".join(sorted(wrong)[:8]))


def _scores(folder: Path, base: str, told: TrialInformation, given: Settings | None, progress: Progress) -> Check:
    if told.export_metrics is None:
        return Check("scores", None, "The export was not measured when it was made.")
    # The maker of the export does not decide whether its code is run here.
    trusted = given is not None and given.trust_remote_code
    settings: Settings = RunFolder(folder).settings().model_copy(update={"model": base, "trust_remote_code": trusted})
    settings = settings if trusted else without_functions(settings)
    if given is not None:
        sources = [name for name in Settings.model_fields if name.endswith("_prompts")]
        settings = settings.model_copy(update={name: getattr(given, name) for name in [*sources, "chat_template"]})
    prompts = Prompts.load(settings)
    for name, each in prompts.document().items():
        if name in told.prompts and told.prompts[name]["sha256"] != each["sha256"]:
            return Check("scores", None, f"{name} are other prompts than those that the export was measured on.")
    bench = Workbench.load(settings, base, None if told.format == "adapter" else "none", progress=progress)
    bench.use(prompts, told.response_prefix)
    with bench.laid_out():
        reference = bench.evaluator("report").reference
    now = measure_export(folder, told.format, bench, reference, progress)
    found = drift("export", told.export_metrics, now, told.kl_noise_floor)
    detail = f"measured again: {found.grade}"
    if found.differences:
        detail += f" ({'; '.join(found.differences)})"
    return Check("scores", found.grade != "changed", detail)
