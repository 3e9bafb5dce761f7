"""`audit`: what somebody's edit changed, from the weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from iconoclast.cli.arguments import FiguresOption, require_writable
from iconoclast.cli.console import STANDARD_OUTPUT, say, shown_progress, write_figures
from iconoclast.errors import UserError

if TYPE_CHECKING:
    from iconoclast.audit.document import AuditDocument, ClaimFinding

DIRECTIONS = ".safetensors"
"""What the file of directions, beside that of --json, ends in."""


def audit(
    edited: Annotated[str, Argument(metavar="EDITED", help="Edited model: folder, hub id or LoRA adapter.")],
    base: Annotated[str, Option(help="Its base model.")],
    config: Annotated[Path | None, Option(help="Settings file (TOML) with prompts and markers.")] = None,
    weights_only: Annotated[bool, Option("--weights-only", help="Leave out what it did to behaviour.")] = False,
    measured: Annotated[
        Path | None, Option(help="Measurements to set its claims beside: the file of iconoclast evaluate --json.")
    ] = None,
    edit: Annotated[
        Path | None, Option(help="File (.safetensors) for a rank-one edit as our own, to be evaluated and compared.")
    ] = None,
    json_file: FiguresOption = None,
) -> None:
    """Say what an edit of a model changed, how, and how strongly, whoever made it; any finding is a success."""
    from safetensors.torch import save

    from iconoclast.audit.audit import audit as audited
    from iconoclast.audit.claims import beside, measured_in
    from iconoclast.files import write_whole
    from iconoclast.models.adapters import other_base

    require_writable(json_file)
    require_writable(edit)
    if json_file is not None and json_file.suffix == DIRECTIONS:
        raise UserError(f"{json_file} would be taken by the directions. Give --json a name that ends in .json.")
    taken = json_file and json_file.with_suffix(DIRECTIONS)
    if edit is not None and (edit.suffix != DIRECTIONS or edit == taken):
        raise UserError(f"--edit {edit}: give a name of its own that ends in {DIRECTIONS}.")
    figures = None if measured is None else measured_in(measured)
    with shown_progress() as progress:
        document, directions = audited(base, edited, progress)
    if json_file not in (None, STANDARD_OUTPUT) and directions:
        file = json_file.with_suffix(DIRECTIONS)
        write_whole(file, save(directions))
        say(f"Wrote {file} (directions)")
        document = document.model_copy(update={"directions": file.name})
    document = document.model_copy(update={"claims": beside(document.claims, figures)})
    if weights_only or json_file != STANDARD_OUTPUT:
        write_figures(json_file, document.document())
    _say_tensors(document)
    if (declared := other_base(edited, base)) is not None:
        say(
            f"WARNING: its adapter_config.json names {declared} as its base model, not {base}: the strengths are those on {base}."
        )
    _say_verdict(document)
    if edit is not None:
        from iconoclast.audit.as_edit import edit_of
        from iconoclast.edits.record import save_edit

        save_edit(edit_of(document, directions), edit)
        say(f"Wrote {edit} (edit)")
    if not weights_only:
        document = _with_behavior(document, edited, base, config)
        write_figures(json_file, document.document())
    say(*map(_claimed, document.claims))


def _say_tensors(document: "AuditDocument") -> None:
    for t in document.tensors:
        if t.status != "unchanged":
            parts = [t.status, t.construction, t.row_normalization, t.strength and f"strength {t.strength:.3f}"]
            parts += [None if t.relative_norm is None else f"relative norm {t.relative_norm:.2g}"]
            say(f"{t.name}: {', '.join(str(each) for each in parts if each)}")


def _say_verdict(document: "AuditDocument") -> None:
    changed = sum(t.status != "unchanged" for t in document.tensors)
    say(f"Verdict: {document.verdict}. {changed} of {len(document.tensors)} tensors are not as in the base.")
    say(*(f"Lost: {name}" for name in document.lost))


def _with_behavior(document: "AuditDocument", edited: str, base: str, config: Path | None) -> "AuditDocument":
    """Measure both models and show it; return the document with it, the claims beside what was measured."""
    from iconoclast.audit.claims import beside
    from iconoclast.cli.comparisons import presented
    from iconoclast.config.layers import load_settings
    from iconoclast.reports.character import character_lines
    from iconoclast.runs.behavior_audit import audit_behavior
    from iconoclast.runs.subjects import find_subject

    settings = load_settings({}, config).settings
    with shown_progress() as progress:
        comparison, character = audit_behavior(find_subject(edited), settings, base, progress)
    figures = presented(comparison).document()
    say(*character_lines(character))
    claims = beside(document.claims, figures)
    return document.model_copy(update={"behavior": figures, "character": character, "claims": claims})


def _claimed(claim: "ClaimFinding") -> str:
    value = str(claim.count) if claim.count else f"{claim.value:g}"
    said = f"{claim.name}{' of the base' if claim.of == 'base' else ''} {value} ({claim.source})"
    if claim.measured is None or claim.interval is None:
        return f"Claimed, not measured: {said}."
    low, high = claim.interval
    differs = ", which differs by more than chance" if claim.differs else ""
    return f"Claimed: {said}. Measured: {claim.measured:.4g} ({low:.4g} to {high:.4g}, {claim.n} prompts){differs}."
