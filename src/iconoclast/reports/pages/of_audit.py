"""The report page of an audit."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iconoclast.audit.document import (
    SHARED,
    VERDICTS,
    AuditDocument,
    ClaimFinding,
    KindFinding,
    TensorFinding,
    by_kind,
    shown_kind,
    shown_rows,
    shown_strength,
)
from iconoclast.documents import Plain
from iconoclast.reports.pages import figures
from iconoclast.reports.pages.of_character import capability_section, character_section, moved_most
from iconoclast.reports.pages.page import Page, Section
from iconoclast.reports.pages.parts import prompt_rows, shown_name, test_rows, tiles
from iconoclast.reports.tables import caveats, examination_rows
from iconoclast.runs.documents import ComparisonDocument

LONGEST = 400
"""Rows of a table."""


def audit_page(file: Path) -> Page:
    """Return the page of an audit's JSON file; raise RunFolderError if it is missing, damaged or something else."""
    told = AuditDocument.read(file)
    edited, base = shown_name(told.edited), shown_name(told.base)
    changed = [t for t in told.tensors if t.status != "unchanged"]
    measured = None if told.behavior is None else ComparisonDocument.model_validate(told.behavior)
    character = told.character
    return Page(
        kind="audit",
        title=f"{edited}: what was changed",
        about=_about(told, edited, base, changed),
        sections=list(_sections(told, changed)),
        exchanges=[] if character is None else moved_most(character),
        origin={
            "Made by": [("Program", [f"ICONOCLAST {told.iconoclast_version}"]), ("Base", [base])],
            "Prompt sets": [] if measured is None else prompt_rows(measured.prompts),
        },
        commands=[("the same audit again", "iconoclast audit EDITED --base BASE --json audit.json")],
        **({} if measured is None else _behavior(measured)),
        figures={
            **({} if measured is None else _behavior_figures(measured)),
            "strengths": _strengths(told.kinds or by_kind(changed)),
        },
    )


def _about(told: AuditDocument, edited: str, base: str, changed: Sequence[TensorFinding]) -> list[str]:
    if told.verdict == "unseen":
        return [f"What {edited} answers was measured beside {base}. {VERDICTS[told.verdict]}"]
    kinds = Counter(t.construction or t.status for t in changed)
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in kinds.most_common())
    lines = [
        f"{edited} was compared with {base}, tensor by tensor. {VERDICTS[told.verdict]}",
        f"{len(changed)} of {len(told.tensors)} tensors are not as in the base{f': {counted}' if changed else ''}.",
    ]
    lines += [f"Edited: {shown_kind(kind)}." for kind in told.kinds]
    if told.shared_direction is not None:
        lines.append(f"{SHARED}: {told.shared_direction:.0%}.")
    if hidden := max((t.hidden_norm or 0.0 for t in told.tensors), default=0.0):
        lines.append(f"Quantisation hides a rank-one change of a matrix up to {hidden:.2%} of its norm.")
    return lines


def _sections(told: AuditDocument, changed: Sequence[TensorFinding]) -> Iterator[Section]:
    found = {
        **({"Changed tensors": _changed(changed)} if told.tensors else {}),
        "Claims": _claims(told.claims),
        "Lost": [["file or tensors of the base that are missing"], *([name] for name in told.lost)],
        "Settings that differ": [
            ["setting", "base", "edited"],
            *([s.name, s.base or "", s.edited or ""] for s in told.settings),
        ],
    }
    yield Section("What was found", "", found, leads=True)
    if told.capabilities is not None:
        yield capability_section(told.capabilities)
    if told.character is not None:
        yield character_section(told.character)


def _changed(changed: Sequence[TensorFinding]) -> list[list[str]]:
    head = ["tensor", "status", "construction", "strength", "rows", "read at", "norm", "rank", "missed"]
    rows = [
        [
            t.name,
            t.status,
            (t.construction or "").replace("_", " "),
            shown_strength(t).removeprefix("strength "),
            shown_rows(t, reading=False),
            "" if t.reading_cosine is None else f"{t.reading_cosine:.2f}",
            "" if t.relative_norm is None else f"{t.relative_norm:.2g}",
            "" if t.rank is None else f"{t.rank}{' or more' if t.rank_is_a_lower_bound else ''}",
            "" if t.error is None else f"{t.error:.1%}",
        ]
        for t in changed
    ]
    more = [[f"and {len(rows) - LONGEST} more", *[""] * (len(head) - 1)]] if len(rows) > LONGEST else []
    return [head, *rows[:LONGEST], *more]


def _claims(claims: Iterable[ClaimFinding]) -> list[list[str]]:
    rows = []
    for claim in claims:
        unknown = "not measured" if claim.measured is None else f"other prompts: {claim.measured_on}"
        outcome = unknown if claim.differs is None else "differs" if claim.differs else "agrees"
        low, high = claim.interval or (0.0, 0.0)
        interval = "" if claim.measured is None else f"{claim.measured:.3g} ({low:.3g} to {high:.3g})"
        stated = str(claim.count) if claim.count else f"{claim.value:g}"
        rows.append([claim.name, claim.of, stated, claim.source, claim.definition, interval, outcome])
    return [["claim", "of", "stated", "where", "how", "measured", "outcome"], *rows]


def _strengths(kinds: Sequence[KindFinding]) -> Plain:
    """Strength by layer and kind of matrix; nothing without rank-one edits."""
    if not kinds:
        return {}
    layers = 1 + max(kind.layers[-1] for kind in kinds)
    found = [(kind.kind, dict(zip(kind.layers, kind.strengths, strict=True))) for kind in kinds]
    of = {name: [figures.rounded(at.get(layer, 0.0)) for layer in range(layers)] for name, at in found}
    return {"trials": {"edit": {"of": of}}, "fits": {}, "shown": "edit", "layers": layers}


def _behavior(measured: ComparisonDocument) -> Mapping[str, Any]:
    subject = measured.subjects[0]
    columns = [("base model", measured.base_metrics), (subject.name, subject.metrics)]
    return {
        "tiles": tiles(measured.base_metrics, subject.metrics, measured.kl_noise_floor, subject.against_base),
        "measured_on": f"Measured on the {measured.split} prompts of the settings.",
        "models": [name for name, _ in columns],
        "scores": list(examination_rows([metrics for _, metrics in columns])),
        "tests": {"": test_rows(subject.against_base)},
        "notes": [line for name, metrics in columns for line in caveats(name, metrics)],
    }


def _behavior_figures(measured: ComparisonDocument) -> Mapping[str, Any]:
    columns = [("base model", measured.base_metrics), (measured.subjects[0].name, measured.subjects[0].metrics)]
    return {"counts": figures.counts(columns), "lengths": figures.lengths(columns), "axes": figures.axes(columns)}
