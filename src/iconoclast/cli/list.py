"""`list`: all runs in a folder."""

from pathlib import Path
from typing import Annotated

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument

from iconoclast.cli.arguments import AsJsonOption
from iconoclast.cli.console import print_json, print_table, say
from iconoclast.documents import Plain
from iconoclast.errors import RunFolderError


def list_runs(
    folder: Annotated[Path, Argument(help="Folder with run folders.")] = Path("runs"), as_json: AsJsonOption = False
) -> None:
    """List all runs below a folder."""
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.kinds import runs_below
    from iconoclast.runs.status import status_of

    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder. Give the one that holds your runs: iconoclast list FOLDER.")

    table = Table(
        box=SIMPLE_HEAD,
        title=f"Runs in {folder}; best trials on the select prompts that chose them",
        title_justify="left",
    )
    for name in ("run", "model", "state", "trials", "best", "refused", "broken", "KL", "written"):
        table.add_column(name, justify="right" if name in ("trials", "refused", "broken", "KL") else "left")
    damaged: list[str] = []
    documents: list[Plain] = []
    for run in runs_below(folder):
        name = str(run.relative_to(folder)) if run != folder else run.name
        try:
            status = status_of(RunFolder(run))
        except RunFolderError as error:
            table.add_row(name, "", "damaged")
            damaged.append(str(error))
            documents.append({"run": str(run), "state": "damaged", "problem": str(error)})
            continue
        documents.append(status.document())
        figures = ["", "", "", ""]
        if best := status.best:
            figures = [str(best.index), str(best.refusals), str(best.broken), f"{best.kl_divergence:.4f}"]
        trials = f"{status.finished}/{status.n_trials}"
        table.add_row(name, Path(status.model or "").name, status.state, trials, *figures, status.written[:16])
    if not table.rows:
        raise RunFolderError(f"There is no run in {folder}. A run folder has an iconoclast_config.toml and a journal.")
    print_table(table)
    say(*damaged)
    if as_json:
        print_json(documents)
