"""Tables for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from iconoclast.evaluation.measure import Scores
from iconoclast.evaluation.statistics import Count
from iconoclast.reports.text import plain
from iconoclast.runs.card import score_rows
from iconoclast.search.pareto import Trial


def front_table(front: Sequence[Trial], best: Trial | None, base: Scores) -> Table:
    """The Pareto front, best trial marked, the base model in the last line."""
    table = Table(title="Pareto front (selection prompts)", title_justify="left")
    for name in ("Trial", "Refusals", "Overrefusals", "KL", "Compliance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Direction")
    for trial in front:
        direction = trial.parameters.direction
        place = f"at layer {direction.index:.1f}" if direction.scope == "global" else "per layer"
        mark = " *" if best is not None and trial.index == best.index else ""
        s = trial.scores
        table.add_row(
            f"{trial.index}{mark}",
            _with_interval(s.refusals),
            _with_interval(s.overrefusals),
            f"{s.kl_divergence:.4f}",
            f"{s.compliance:.2f}",
            f"{direction.method}, {place}",
            style="bold" if mark else "",
        )
    table.add_section()
    table.add_row(
        "base",
        _with_interval(base.refusals),
        _with_interval(base.overrefusals),
        "0",
        f"{base.compliance:.2f}",
        "",
    )
    return table


def before_after_table(title: str, columns: Sequence[tuple[str, Scores]]) -> Table:
    """Scores side by side; the first column is the base model."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name, _ in columns:
        table.add_column(name, justify="right")
    base = columns[0][1]
    rows = [score_rows(base, scores) for _, scores in columns]
    for line in zip(*rows, strict=True):
        table.add_row(line[0][0], line[0][1], *(cells[2] for cells in line[1:]))
    return table


def samples_table(prompts: Sequence[str], columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Responses side by side."""
    table = Table(title="Responses", title_justify="left", show_lines=True)
    table.add_column("Prompt", ratio=1)
    for name, _ in columns:
        table.add_column(name, ratio=2)
    for i, prompt in enumerate(prompts):
        table.add_row(plain(prompt), *(plain(texts[i].strip()) for _, texts in columns))
    return table


def _with_interval(count: Count) -> str:
    low, high = count.interval
    return f"{count} ({low:.0%}-{high:.0%})"
