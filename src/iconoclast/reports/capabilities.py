"""What lm-eval has measured, for the terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table

from iconoclast.evaluation.capabilities import Capabilities, Figure, FigureDifference, Row
from iconoclast.reports.text import plain


def capabilities_table(result: Capabilities) -> Table:
    """Tabulate what was measured, beside the base model if it was measured too."""
    compared = _compared(result)
    table = Table(title=f"lm-eval {result.lm_eval_version}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("Task, metric", overflow="fold")
    for name in ("Items", *(("Base", "Edited", "Difference", "p") if compared else ("Value",))):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.rows:
        shown = (row.base, row.edited, row.difference) if compared else (row.edited,)
        arrow = {True: "↑", False: "↓", None: ""}[row.higher_is_better]
        table.add_row(
            plain(f"{row.task} {row.metric}{arrow}"),
            str(row.n),
            *map(_cell, shown),
            *([_p_value(row)] if compared else []),
        )
    return table


def capabilities_lines(result: Capabilities) -> Iterator[str]:
    """Explain the table."""
    yield "± one standard error. ↑ higher is better, ↓ lower is better."
    if _compared(result):
        yield (
            "Errors of differences are of those item by item; with *, of two independent measurements. p: exact McNemar test of "
            "items that are right or wrong, bootstrap of other means; one in twenty is under 0.05 by chance."
        )
    if result.limit is not None:
        yield f"Only the first {result.limit} items of each task: not to be compared with others."


def _compared(result: Capabilities) -> bool:
    return any(row.base is not None for row in result.rows)


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "none"
    error = "" if figure.stderr is None else f" ± {figure.stderr:.3f}"
    if not isinstance(figure, FigureDifference):
        return f"{figure.value:.3f}{error}"
    return f"{figure.value:+.3f}{error}{' *' if error and not figure.paired else ''}"


def _p_value(row: Row) -> str:
    return "" if row.difference is None or row.difference.p_value is None else f"{row.difference.p_value:.2g}"
