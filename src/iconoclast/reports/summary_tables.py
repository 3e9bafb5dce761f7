"""Many runs in one table: JSON, Markdown, terminal."""

import re
from collections.abc import Sequence

from rich import box
from rich.table import Table

from iconoclast.documents import Plain
from iconoclast.goals import Objectives
from iconoclast.layout import SCHEMA_VERSION
from iconoclast.reports.match import Tally, tally
from iconoclast.reports.summary import Measured, Summary
from iconoclast.reports.text import plain
from iconoclast.version import __version__
from iconoclast.vocabulary import ExaminedSplit

RUNS_TITLE = "Runs: the base model, and the best trial with 95 % intervals"

Cells = list[dict[str, str]]
"""A table: every row has the same columns."""


def summary_document(summaries: Sequence[Summary]) -> Plain:
    """Return the table and the tally, for JSON; `contest` is None if no model was edited by both tools."""
    result = tally(summaries)
    return {
        "schema_version": SCHEMA_VERSION,
        "iconoclast_version": __version__,
        "runs": [_run_document(summary) for summary in summaries],
        "contest": result.document() if result.peers else None,
    }


def _run_document(summary: Summary) -> Plain:
    base, best = summary.measured(summary.split)
    return {
        "model": summary.name,
        "run": summary.folder,
        **{name: getattr(summary, name) for name in ("tool", "version", "seed", "status")},
        "completed_trials": summary.completed_trials,
        "pruned_trials": summary.pruned_trials,
        "prompts": summary.split,
        "prompts_seen": summary.seen(summary.split),
        "trial": summary.best_trial,
        "objectives": summary.objectives,
        "base": base.document(),
        "best": None if best is None else best.document(),
    }


def run_cells(summaries: Sequence[Summary]) -> Cells:
    """Return a row for every run, without empty columns."""
    return _without_empty([_run_row(summary) for summary in summaries])


def match_cells(result: Tally) -> Cells:
    """Return two rows for every match."""
    rows = [
        {
            "Model": match.ours.name,
            **_tool_cells(run),
            "Prompts": _prompts(match.split, run),
            **_best_cells(match.scores[run.tool]),
            "Wins": "yes" * (match.winner == run.tool),
            "Lower KL": "yes" * (match.lower_kl == run.tool),
        }
        for match in result.matches
        for run in (match.ours, match.peer)
    ]
    return _without_empty(rows)


def _run_row(summary: Summary) -> dict[str, str]:
    base, best = summary.measured(summary.split)
    return {
        "Model": summary.name,
        "Run": summary.folder,
        **_tool_cells(summary),
        "Status": summary.status,
        "Trials": f"{summary.completed_trials} + {summary.pruned_trials} pruned",
        "Prompts": _prompts(summary.split, summary),
        "Base refusals": str(base.refusals) if base.refusals.n else "",
        "Base overrefusals": str(base.overrefusals) if base.overrefusals.n else "",
        **_best_cells(best),
        "Objectives": _objectives(summary, best),
    }


def _objectives(summary: Summary, best: Measured | None) -> str:
    """The objectives with the best trial's values, if they are not the default ones, and whether it strengthens."""
    objectives = Objectives(summary.objectives)
    shown = [] if objectives.default or best is None else list(map(" ".join, objectives.shown(best)))
    return ", ".join([*shown, *(["strengthened"] if summary.base_metrics.strengthened else [])])


def _best_cells(best: Measured | None) -> dict[str, str]:
    if best is None:
        return dict.fromkeys(("Refusals", "Overrefusals", "KL", "Broken"), "")
    interval = "" if best.first_token_kl is None else " ({:.4f} to {:.4f})".format(*best.first_token_kl.interval)
    return {
        "Refusals": best.refusals.with_interval,
        "Overrefusals": best.overrefusals.with_interval if best.overrefusals.n else "",
        "KL": f"{best.kl_divergence:.4f}{interval}",
        "Broken": best.broken.with_interval if best.broken.n else "",
    }


def _tool_cells(summary: Summary) -> dict[str, str]:
    seed = "" if summary.seed is None else str(summary.seed)
    return {"Tool": f"{summary.tool} {summary.version or ''}".strip(), "Seed": seed}


def _prompts(split: ExaminedSplit, summary: Summary) -> str:
    name = "select" if split == "selection" else split
    return f"{name}, some of them seen" if summary.seen(split) else name


def _without_empty(rows: Cells) -> Cells:
    """Drop optional columns that are empty in every run."""
    empty = {name for name in ("Broken", "Seed", "Objectives") if not any(row.get(name) for row in rows)}
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


def _contest_title(result: Tally) -> str:
    return f"ICONOCLAST and {', '.join(result.peers)} on the same models"


def summary_markdown(summaries: Sequence[Summary]) -> str:
    """Return the table and the tally as a Markdown document."""
    result = tally(summaries)
    parts = [f"## {RUNS_TITLE}", _markdown_table(run_cells(summaries))]
    if result.peers:
        parts += [f"## {_contest_title(result)}", _markdown_table(match_cells(result)), *map(_escaped, result.lines())]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_tables(summaries: Sequence[Summary]) -> tuple[list[Table], list[str]]:
    """Return the table and the tally for the terminal, and the lines below them."""
    result = tally(summaries)
    tables = {RUNS_TITLE: run_cells(summaries), _contest_title(result): match_cells(result)}
    return [_terminal_table(title, rows) for title, rows in tables.items() if rows], result.lines()


def _markdown_table(rows: Cells) -> str:
    if not rows:
        return ""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([_escaped(cell) for cell in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _escaped(text: str) -> str:
    """Escape text for one cell and one line of Markdown."""
    visible = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", visible)


def _terminal_table(title: str, rows: Cells) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row.values()))
    return table
