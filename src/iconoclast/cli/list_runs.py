"""`list`: all runs below a folder, one line each."""

from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument

from iconoclast.cli.console import out, print_table
from iconoclast.errors import RunFolderError
from iconoclast.reports.text import print_lines
from iconoclast.runs.status import runs_below, status_of


def list_runs(folder: Annotated[Path, Argument(help="Folder with run folders.")] = Path("runs")) -> None:
    """List all runs below a folder."""
    table = Table(box=SIMPLE_HEAD, title=f"Runs in {folder}", title_justify="left")
    for name in ("run", "model", "state", "trials", "best", "refused", "broken", "KL", "written"):
        table.add_column(name, justify="right" if name in ("trials", "refused", "broken", "KL") else "left")
    damaged: list[str] = []
    for run in runs_below(folder):
        try:
            status = status_of(run)
        except RunFolderError as error:
            table.add_row(_short(run.path, folder), "", "damaged")
            damaged.append(str(error))
            continue
        best: dict[str, Any] = status["best"] or {}
        table.add_row(
            _short(run.path, folder),
            Path(status["model"]).name,
            status["state"],
            f"{status['finished']}/{status['n_trials']}",
            str(best.get("index", "")),
            f"{best['refusals']['count']}/{best['refusals']['n']}" if best else "",
            str(best["broken"]["count"]) if best else "",
            f"{best['kl_divergence']:.4f}" if best else "",
            status["written"][:16],
        )
    if not table.rows:
        raise RunFolderError(f"There is no run in {folder}. A run folder has an iconoclast_config.toml and a journal.")
    print_table(table)
    print_lines(out, *damaged)


def _short(run: Path, folder: Path) -> str:
    return str(run.relative_to(folder)) if run != folder else run.name
