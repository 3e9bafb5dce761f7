"""The report page of an export."""

from pathlib import Path
from typing import Any

from iconoclast import layout
from iconoclast.documents import Plain
from iconoclast.edits.record import load_edit
from iconoclast.reports.pages import figures
from iconoclast.reports.pages.page import Page, Rows
from iconoclast.reports.pages.parts import prompt_rows, section, setting_rows, shown_name, tiles
from iconoclast.reports.tables import together_table
from iconoclast.runs.documents import TrialInformation
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.papers import MEASURED, NOT_MEASURED, score_rows
from iconoclast.scores import Scores

FORMATS = {"adapter": "an adapter", "merged": "a merged model", "gguf": "a GGUF file"}


def export_page(folder: Path) -> Page:
    """Return the page of an export; raise RunFolderError if its papers are missing or damaged."""
    told = TrialInformation.of(folder)
    edit = load_edit(folder / layout.EDIT_FILE)
    name = shown_name(told.base_model)
    columns = _columns(told)
    after = told.export_metrics or told.live_metrics
    rows = [score_rows(told.base_metrics, scores) for _, scores in columns]
    about = (
        f"{len(edit.sites)} matrices of {name} that write to the residual stream were edited, and the edit was exported "
        f"as {FORMATS[told.format]}. {MEASURED if told.export_metrics else NOT_MEASURED}"
    )
    outcome = (
        f"Of {after.failures.n} target prompts the base model refused {told.base_metrics.refusals.count} and answered "
        f"{told.base_metrics.broken.count} with broken text; here {after.refusals.count} are refused and "
        f"{after.broken.count} broken. The first token's KL divergence is {after.kl_divergence:.4f} nats."
    )
    return Page(
        kind="export",
        title=f"{folder.resolve().name}: an edited {name}",
        about=[about, outcome],
        tiles=tiles(told.base_metrics, after, told.kl_noise_floor),
        measured_on=told.measured_on,
        models=[model for model, _ in columns],
        scores=[(line[0][0], [line[0][1], *(cells[2] for cells in line[1:])]) for line in zip(*rows, strict=True)],
        sections=[] if told.composed is None else [section("Interference", together_table(told.composed))],
        origin={"Prompt sets": prompt_rows(told.prompts), "Made by": _made_by(told)},
        settings=setting_rows(RunFolder(folder).settings()),
        commands=_commands(),
        figures=_figures(told, columns, figures.strengths(edit, 1 + max((s.layer for s in edit.sites), default=0))),
    )


def _columns(told: TrialInformation) -> list[tuple[str, Scores]]:
    columns = [("base model", told.base_metrics), ("edit, live", told.live_metrics)]
    columns += [] if told.export_metrics is None else [(f"{told.format} export", told.export_metrics)]
    return [*columns, *((f"{file}, served", metrics) for file, metrics in told.served.items())]


def _figures(told: TrialInformation, columns: list[tuple[str, Scores]], profile: Any) -> Plain:
    name = f"trial {told.trial.index}"
    layers = max((len(values) for values in profile.values()), default=0)
    return {
        "counts": figures.counts(columns),
        "strengths": {"trials": {name: {"of": profile}}, "fits": {}, "shown": name, "layers": layers},
    }


def _made_by(told: TrialInformation) -> Rows:
    return [
        ("Program", [f"ICONOCLAST {told.iconoclast_version}", "", ""]),
        ("Trial", [str(told.trial.index), f"row normalisation {told.row_normalization}", ""]),
        *((name, [version, "", ""]) for name, version in told.packages.items()),
    ]


def _commands() -> list[tuple[str, str]]:
    return [
        ("whether the files are what they say", "iconoclast verify EXPORT --base BASE_MODEL"),
        ("a run like the one that made it", "iconoclast run --config EXPORT/iconoclast_config.toml --out FOLDER"),
    ]
