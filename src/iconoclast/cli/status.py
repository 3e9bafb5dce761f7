"""`status` and `list`: how a run stands, with queue and workers if many processes share it, and all runs in a folder."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.box import SIMPLE_HEAD
from rich.table import Table
from typer import Argument

from iconoclast.cli.arguments import AsJsonOption, RunArgument
from iconoclast.cli.console import print_json, print_table, say
from iconoclast.documents import Plain
from iconoclast.errors import RunFolderError
from iconoclast.runs.references import split_reference

if TYPE_CHECKING:
    from iconoclast.cluster.standing import Standing
    from iconoclast.runs.documents import TrialDocument
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.status import RunStatus
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
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.kinds import runs_below
    from iconoclast.runs.status import status_of

    if not folder.is_dir():
        raise RunFolderError(f"{folder} is not a folder. Give the one that holds your runs: iconoclast list FOLDER.")

    table = Table(
        box=SIMPLE_HEAD,
        title=f"Runs in {folder}; best trials on the selection prompts that chose them",
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


def _show(run: str, as_json: bool, shared: bool = False) -> None:
    from iconoclast.runs.folder import RunFolder
    from iconoclast.runs.status import is_shared, status_of

    source, trial = split_reference(run)
    folder = RunFolder(Path(source))
    status = status_of(folder, trial)
    standing = _standing(folder.path) if shared or is_shared(folder) else None
    if standing is not None:  # the study knows more of a shared run than its summary
        pruned = standing.trials["pruned"]
        finished = standing.trials["complete"] + pruned
        status = status.model_copy(update={"best": standing.best, "finished": finished, "pruned": pruned})
    if trial is not None and status.trial is None:
        status = status.model_copy(update={"trial": _trial(folder, trial)})
    if as_json:
        print_json(status.document() | ({} if standing is None else standing.document()))
    else:
        say(*_lines(status, folder, standing))


def _standing(run: Path) -> "Standing":
    from iconoclast.cluster.standing import standing  # it is slow to import

    return standing(run)


def _trial(folder: "RunFolder", trial: str) -> "TrialDocument":
    """Read from the study a trial that the summary does not hold."""
    from iconoclast.runs.saved import SavedRun
    from iconoclast.runs.trials import trial_document

    return trial_document(SavedRun.open(folder, trial).trial)


def _lines(status: "RunStatus", folder: "RunFolder", standing: "Standing | None") -> Iterator[str]:
    if standing is not None:
        from iconoclast.cluster.standing import standing_lines

        first, *others = standing_lines(standing)
    else:
        trials = f"{status.finished} of {status.n_trials} trials ({status.pruned} pruned)"
        if status.fitted:
            trials += f", {status.fitted} fitted"
        first, others = f"{status.run}: {status.state}, {trials}.", []
        if status.best is not None:
            so_far = "" if status.state == "complete" else " so far"
            others.append(f"Best trial{so_far}: {_scores(status.best.index, status.best)}")
            others.append("These are the selection prompts, which chose it.")
        if status.report is not None:
            others.append(f"Report, trial {_scores(status.report.trial, status.report.metrics)}")
    yield first
    yield f"Model: {status.model}. Last written: {status.written}."
    yield from others
    yield from _goals(status)
    if status.trial is not None:
        yield f"Trial {_scores(status.trial.index, status.trial)}"
    if status.state == "interrupted":
        config, path = shlex.quote(str(folder.config)), shlex.quote(str(folder.path))
        yield f"Continue it: iconoclast run --config {config} --out {path}"


def _goals(status: "RunStatus") -> Iterator[str]:
    """Say what the run is after, if that is not the default."""
    from iconoclast.goals import Objectives

    objectives = Objectives(status.objectives)
    if not objectives.default:
        best = status.best
        values = [str(each) for each in objectives.all] if best is None else map(" ".join, objectives.shown(best))
        yield f"Objectives: {', '.join(values)}."
    if status.strengthen:
        yield "The run strengthens the behaviour: a failure is a target prompt that is not refused."


def _scores(index: int, scores: "Scores") -> str:
    refused, over = scores.refusals, scores.overrefusals
    counts = (
        f"{refused.count} of {refused.n} refused, {scores.broken.count} broken, {over.count} of {over.n} overrefused"
    )
    return f"{index}: {counts}, KL {scores.kl_divergence:.4f}."
