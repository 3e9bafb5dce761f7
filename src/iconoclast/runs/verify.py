"""Check an export against its papers: its files, its tensors beside the base model's, its scores."""

from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iconoclast.config.schema import Settings, without_functions
from iconoclast.documents import Value
from iconoclast.edits.edit import Edit
from iconoclast.edits.lora import factor_names
from iconoclast.edits.record import load_edit
from iconoclast.errors import ModelError, UserError, first_line
from iconoclast.layout import CHECKSUMS, EDIT_FILE
from iconoclast.models.adapters import adapter_base, other_base
from iconoclast.models.checkpoint import Checkpoint, MatrixChange, matrix_changes
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
from iconoclast.vocabulary import Site

CLOSE = 1e-2
"""Largest relative error of an update that is still the declared one: the base model's bfloat16 leaves so much open."""
CLOSE_IF_QUANTIZED = 0.3
"""The same of an adapter that was made of quantised weights: NF4 moves a matrix by a tenth of its norm and its update by as
much, or more where the matrix writes little along the direction. Half the strength is an error of 0.5, another direction 1.4.
"""
SHOWN = 8
"""Differences that are named, at most."""
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
    wrong = _unmatched(wanted.keys(), found.keys(), "is not listed")
    wrong += [f"{name} has changed" for name in wanted.keys() & found.keys() if wanted[name] != found[name]]
    detail = f"{len(wanted)} files have the SHA-256 sums of {CHECKSUMS}" if not wrong else "; ".join(sorted(wrong))
    return Check("files", not wrong, detail)


def _unmatched(wanted: Set[str], found: Set[str], extra: str) -> list[str]:
    """Say which names are missing, and of which are too many what `extra` says."""
    return [f"{name} is missing" for name in wanted - found] + [f"{name} {extra}" for name in found - wanted]


def _tensors(folder: Path, base: str, edit: Edit, told: TrialInformation) -> Check:
    """Compare the tensors with those of the base model; raise ModelError if its files do not show them one by one."""
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
        return _stored_otherwise(skeleton, source, copy, told)
    return _merged(source, copy, changes)


def _compared(wrong: list[str], right: str, aside: str | None = None) -> Check:
    """Return what was found of the tensors: what is wrong, or how right they are; `aside` is said in either case."""
    said = sorted(wrong)[: SHOWN - bool(aside)] or [right]
    return Check("tensors", not wrong, "; ".join([*said, *([aside] if aside else [])]))


def _stored_otherwise(
    skeleton: LanguageModel, source: Checkpoint, copy: Checkpoint | None, told: TrialInformation
) -> Check:
    """Check merged weights that cannot be compared one by one: what they lack must be declared."""
    gone = sorted(set(unread(source, skeleton.model)) - (source.places if copy is None else copy.places).keys())
    said = [lost_tensors(gone)] if gone else []
    declared = not gone or said[0] in " ".join(told.remarks)
    form = "The base model is stored in another form than the export."
    return Check("tensors", None if declared else False, " ".join([form, *said]))


def _merged(source: Checkpoint, copy: Checkpoint, changes: Mapping[str, MatrixChange]) -> Check:
    """Check merged weights: what the edit changes is as declared, everything else is the base model's."""
    wrong = _unmatched(source.places.keys(), copy.places.keys(), "is new")
    for name in source.places.keys() & copy.places.keys():
        if (problem := _problem(source.tensor(name), copy.tensor(name), changes.get(name))) is not None:
            wrong.append(f"{name} {problem}")
    right = (
        f"{len(changes)} tensors are what the declared edit makes of the base model's, the other "
        f"{len(source.places) - len(changes)} are equal byte by byte"
    )
    return _compared(wrong, right)


def _problem(before: Tensor, after: Tensor, change: MatrixChange | None) -> str | None:
    """Say what is wrong with a merged tensor, None if nothing is; `change` is what the edit does to it, if it does."""
    wanted = before if change is None else _applied(change, before)
    if after.dtype != wanted.dtype or after.shape != wanted.shape:
        return "has another type or shape"
    if torch.equal(_bytes(after), _bytes(wanted)):
        return None
    if change is None:
        return "is not that of the base"
    error = _relative(after.float() - wanted.float(), wanted.float() - before.float())
    return None if error <= CLOSE else "is not what the edit makes of it"  # not a number is not close


def _relative(error: Tensor, update: Tensor) -> float:
    return float(error.norm() / update.norm().clamp(min=1e-12))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8)


def _applied(change: MatrixChange, tensor: Tensor) -> Tensor:
    if tensor.ndim == 2:
        return change(tensor.float()).to(tensor.dtype).contiguous()
    return torch.stack([_applied(change, matrix) for matrix in tensor])


def _adapter(folder: Path, skeleton: LanguageModel, source: Checkpoint, edit: Edit, told: TrialInformation) -> Check:
    """Check an adapter: it has the declared updates and no others."""
    tensors = load_file(folder / "adapter_model.safetensors")
    close = CLOSE if told.quantization == "none" else CLOSE_IF_QUANTIZED
    writers = skeleton.writers(sorted({site.component for site in edit.sites}))
    wrong = _unmatched({n for site in edit.sites for n in factor_names(site)}, tensors.keys(), "is not declared")
    errors: dict[str, float] = {}
    for site in edit.sites if not wrong else []:
        weight = source.weight(skeleton.model, writers[site])
        if weight is None:
            raise ModelError(f"{site.module} of the base model is stored in a form that cannot be compared.")
        errors[site.module] = _update_error(edit, site, tensors, weight, writers[site].fused)
    wrong += [
        f"the update of {module} is not the declared one (relative error {error:.1%})"
        for module, error in errors.items()
        if not error <= close  # not a number is not close
    ]
    declared = other_base(str(folder), skeleton.name)
    return _compared(
        wrong,
        f"the updates of {len(edit.sites)} matrices are those of the declared edit (largest relative error "
        f"{max(errors.values(), default=0.0):.1e})",
        declared and f"the adapter names {declared} as its base model, not {skeleton.name}",
    )


def _update_error(edit: Edit, site: Site, tensors: Mapping[str, Tensor], weight: Tensor, fused: bool) -> float:
    """Return the relative error of an adapter's update of a matrix, or of the experts that are fused in one."""
    a, b = (tensors[name].float() for name in factor_names(site))
    if fused:
        experts = weight.shape[0]
        a = a.reshape(experts, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, experts).permute(2, 0, 1)
    wanted = edit.factors(site, weight, a.shape[-2])
    update = wanted.b @ wanted.a
    return _relative(b @ a - update, update)


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
