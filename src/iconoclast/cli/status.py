"""`status` and `list`: how a run stands, with queue and workers if many processes share it, and all runs in a folder."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument

from iconoclast.cli.arguments import AsJsonOption, RunArgument
from iconoclast.cli.console import print_json, print_table, say
from iconoclast.errors import RunFolderError
from iconoclast.goals import Objectives
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.references import split_reference
from iconoclast.runs.status import is_shared, runs_below, status_of
from iconoclast.scores import Scores


def status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run stands: trials, best so far, whether a process works on it, and the queue and workers if it has any."""
    _show(run, as_json)


def cluster_status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run on a cluster stands: the queue, the workers, the trials, the best so far."""
    _show(run, as_json, shared=True)


def list_runs(
    folder: Annotated[Path, Argument(help="Folder with run folders.")] = Path("runs"), as_json: AsJsonOption = False
) -> None:
    """List all runs below a folder."""
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Runs in {folder}; best trials on the selection prompts that chose them",
        title_justify="left",
    )
    for name in ("run", "model", "state", "trials", "best", "refused", "broken", "KL", "written"):
        table.add_column(name, justify="right" if name in ("trials", "refused", "broken", "KL") else "left")
    damaged: list[str] = []
    documents: list[dict[str, Any]] = []
    for run in runs_below(folder):
        name = str(run.path.relative_to(folder)) if run.path != folder else run.path.name
        try:
            status = status_of(run)
        except RunFolderError as error:
            table.add_row(name, "", "damaged")
            damaged.append(str(error))
            documents.append({"run": str(run.path), "state": "damaged", "problem": str(error)})
            continue
        documents.append(status)
        figures = ["", "", "", ""]
        if best := status["best"]:
            refused = f"{best['refusals']['count']}/{best['refusals']['n']}"
            broken = f"{best['broken']['count']}/{best['broken']['n']}"
            figures = [str(best["index"]), refused, broken, f"{best['kl_divergence']:.4f}"]
        trials = f"{status['finished']}/{status['n_trials']}"
        table.add_row(name, Path(status["model"]).name, status["state"], trials, *figures, status["written"][:16])
    if not table.rows:
        raise RunFolderError(f"There is no run in {folder}. A run folder has an iconoclast_config.toml and a journal.")
    print_table(table)
    say(*damaged)
    if as_json:
        print_json(documents)


def _show(run: str, as_json: bool, shared: bool = False) -> None:
    source, trial = split_reference(run)
    folder = RunFolder(Path(source))
    document = status_of(folder, trial)
    if shared := shared or is_shared(folder):
        document |= _standing(folder.path)
    if trial is not None and document["trial"] is None:
        document["trial"] = _trial(folder, trial)
    if as_json:
        print_json(document)
    else:
        say(*_lines(document, folder, shared))


def _standing(run: Path) -> dict[str, Any]:
    """Read the study, which knows more of a shared run than its summary; it is slow to import."""
    from iconoclast.cluster.standing import standing

    document = standing(run)
    pruned = document["trials"]["pruned"]
    return {**document, "finished": document["trials"]["complete"] + pruned, "pruned": pruned}


def _trial(folder: RunFolder, trial: str) -> dict[str, Any]:
    """Read from the study a trial that the summary does not hold."""
    from iconoclast.runs.saved import SavedRun
    from iconoclast.runs.trials import trial_document

    return trial_document(SavedRun.open(folder, trial).trial).document()


def _lines(document: dict[str, Any], folder: RunFolder, shared: bool) -> Iterator[str]:
    if shared:
        from iconoclast.cluster.standing import standing_lines

        first, *others = standing_lines(document)
    else:
        trials = f"{document['finished']} of {document['n_trials']} trials ({document['pruned']} pruned)"
        if document["fitted"]:
            trials += f", {document['fitted']} fitted"
        first, others = f"{document['run']}: {document['state']}, {trials}.", []
        if document["best"] is not None:
            so_far = "" if document["state"] == "complete" else " so far"
            others.append(f"Best trial{so_far}: {_scores(document['best'])}")
            others.append("These are the selection prompts, which chose it.")
        if document["report"] is not None:
            others.append(f"Report, trial {_scores(document['report'])}")
    yield first
    yield f"Model: {document['model']}. Last written: {document['written']}."
    yield from others
    yield from _goals(document)
    if "trial" in document:
        yield f"Trial {_scores(document['trial'])}"
    if document["state"] == "interrupted":
        config, path = shlex.quote(str(folder.config)), shlex.quote(str(folder.path))
        yield f"Continue it: iconoclast run --config {config} --out {path}"


def _goals(document: dict[str, Any]) -> Iterator[str]:
    """Say what the run is after, if that is not the default."""
    objectives = Objectives(document["objectives"])
    if not objectives.default:
        best = None if document["best"] is None else Scores.from_document(document["best"])
        values = [str(each) for each in objectives.all] if best is None else map(" ".join, objectives.shown(best))
        yield f"Objectives: {', '.join(values)}."
    if document["strengthen"]:
        yield "The run strengthens the behaviour: a failure is a target prompt that is not refused."


def _scores(trial: dict[str, Any]) -> str:
    refused, broken, over = trial["refusals"], trial["broken"]["count"], trial["overrefusals"]
    counts = (
        f"{refused['count']} of {refused['n']} refused, {broken} broken, {over['count']} of {over['n']} overrefused"
    )
    return f"{trial['index']}: {counts}, KL {trial['kl_divergence']:.4f}."
