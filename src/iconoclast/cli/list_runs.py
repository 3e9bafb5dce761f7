"""`list`: all runs below a folder, one line each."""

from pathlib import Path
from typing import Annotated

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
        name = str(run.path.relative_to(folder)) if run.path != folder else run.path.name
        try:
            status = status_of(run)
        except RunFolderError as error:
            table.add_row(name, "", "damaged")
            damaged.append(str(error))
            continue
        figures = ["", "", "", ""]
        if best := status["best"]:
            refused = f"{best['refusals']['count']}/{best['refusals']['n']}"
            figures = [str(best["index"]), refused, str(best["broken"]["count"]), f"{best['kl_divergence']:.4f}"]
        trials = f"{status['finished']}/{status['n_trials']}"
        table.add_row(name, Path(status["model"]).name, status["state"], trials, *figures, status["written"][:16])
    if not table.rows:
        raise RunFolderError(f"There is no run in {folder}. A run folder has an iconoclast_config.toml and a journal.")
    print_table(table)
    print_lines(out, *damaged)
