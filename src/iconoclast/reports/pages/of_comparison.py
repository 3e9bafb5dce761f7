"""The report page of a comparison."""

from pathlib import Path

from iconoclast.evaluation.intervals import CHANCE
from iconoclast.evaluation.metrics import Metrics
from iconoclast.reports.pages import figures
from iconoclast.reports.pages.page import Page, Rows, Tile
from iconoclast.reports.pages.parts import prompt_rows, shown_name, test_rows
from iconoclast.reports.pages.responses import exchanges
from iconoclast.reports.tables import caveats, examination_rows
from iconoclast.runs.documents import ComparedModel, ComparisonDocument


def comparison_page(file: Path) -> Page:
    """Return the page of a comparison.json; raise RunFolderError if it is missing or damaged."""
    told = ComparisonDocument.read(file)
    columns: list[tuple[str, Metrics]] = [("base model", told.base_metrics)]
    columns += [(subject.name, subject.metrics) for subject in told.subjects]
    said, unsaid = exchanges(told.samples)
    return Page(
        kind="comparison",
        title=f"{len(told.subjects)} edits of {shown_name(told.model)}",
        about=[_about(told), *map(_verdict, _pairs(told))],
        tiles=[Tile(s.name, str(told.base_metrics.failures), str(s.metrics.failures), _tile(s)) for s in told.subjects],
        measured_on=f"Measured on the {told.split} prompts of the settings.",
        models=[name for name, _ in columns],
        scores=list(examination_rows([metrics for _, metrics in columns])),
        tests=_tests(told),
        notes=_notes(told, columns),
        exchanges=said,
        unsaid=unsaid,
        origin={"Prompt sets": prompt_rows(told.prompts), "Models": [_origin(s) for s in told.subjects]},
        commands=[("the same comparison again", "iconoclast compare MODEL MODEL --config SETTINGS --to FOLDER")],
        figures={
            "counts": figures.counts(columns),
            "front": {
                "points": [figures.point(name, "model" if i else "base", scores) for i, (name, scores) in enumerate(columns)],
                **figures.drawn(told.base_metrics),
                "noise": told.kl_noise_floor,
            },
            "lengths": figures.lengths(columns),
            "axes": figures.axes(columns),
        },
    )  # fmt: skip


def _pairs(told: ComparisonDocument) -> list[tuple[str, str, str | None, str | None, float | None]]:
    return [(p.first, p.second, p.verdict.better, p.verdict.decided_by, p.verdict.p_value) for p in told.pairs]


def _about(told: ComparisonDocument) -> str:
    ranking = ", ".join(told.ranking)
    return (
        f"{len(told.subjects)} edited models were measured beside their base, {shown_name(told.model)}, on the same prompts. "
        f"Best first, by failures ({told.base_metrics.failing}), then overrefusals, then first-token KL: {ranking}."
    )


def _verdict(pair: tuple[str, str, str | None, str | None, float | None]) -> str:
    first, second, better, decided_by, p_value = pair
    if better is None or decided_by is None:
        return f"{first} and {second} are equal by these measures."
    by = {"failures": "fewer failures", "overrefusals": "fewer overrefusals"}.get(decided_by, "a lower KL divergence")
    other = second if better == first else first
    if p_value is not None and p_value >= CHANCE:
        return f"{better} ranks before {other} by {by}, but chance alone often does as much (p = {p_value:.2g})."
    return f"{better} is better than {other}, by {by}{'' if p_value is None else f' (p = {p_value:.2g})'}."


def _tile(subject: ComparedModel) -> str:
    return f"refused or broken; KL {subject.metrics.kl_divergence:.4f}"


def _tests(told: ComparisonDocument) -> dict[str, Rows]:
    tests = {f"base model and {s.name}": test_rows(s.against_base, s.metrics.failing) for s in told.subjects}
    return tests | {
        f"{pair.first} and {pair.second}": test_rows(pair.paired, told.base_metrics.failing) for pair in told.pairs
    }


def _notes(told: ComparisonDocument, columns: list[tuple[str, Metrics]]) -> list[str]:
    notes = [line for name, metrics in columns for line in caveats(name, metrics)]
    for s in told.subjects:
        notes += [f"{s.name}: {caveat}." for caveat in s.caveats or []]
        notes += filter(None, [s.seen.said(s.name)])
    if told.kl_noise_floor:
        notes.append(f"KL differences below the noise floor of {told.kl_noise_floor:.2g} mean nothing.")
    return notes


def _origin(subject: ComparedModel) -> tuple[str, list[str]]:
    return subject.name, [subject.tool or "unknown tool", subject.format or "", ""]
