"""`status`: how a run stands; of a run that many processes share, the queue and the workers as well."""

import shlex
from pathlib import Path
from typing import Any

from iconoclast.cli.arguments import AsJsonOption, RunArgument, run_and_trial
from iconoclast.cli.console import out, quiet_libraries
from iconoclast.reports.text import print_lines
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.references import split_reference
from iconoclast.runs.status import is_shared, status_of


def status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run stands: trials, best so far, whether a process works on it, and the queue and workers if it has any."""
    _show(run, as_json, is_shared(RunFolder(run_and_trial(run)[0])))


def cluster_status(run: RunArgument, as_json: AsJsonOption = False) -> None:
    """Say how a run on a cluster stands: the queue, the workers, the trials, the best so far."""
    _show(run, as_json, shared=True)


def _show(run: str, as_json: bool, shared: bool) -> None:
    path, trial = Path(split_reference(run)[0]), split_reference(run)[1]
    folder = RunFolder(path)
    document = status_of(folder, trial)
    if shared:
        document |= _standing(path)
    if trial is not None and document["trial"] is None:
        document["trial"] = _trial(folder, trial)
    if as_json:
        out.print_json(data=document)
    else:
        print_lines(out, *(_shared_lines(document) if shared else _lines(document)), *_further_lines(document, path))


def _standing(run: Path) -> dict[str, Any]:
    """Read the study, which knows more of a shared run than its summary does; this loads what reads it."""
    from iconoclast.cluster.standing import standing

    quiet_libraries()
    document = standing(run)
    pruned = document["trials"]["pruned"]
    return {**document, "finished": document["trials"]["complete"] + pruned, "pruned": pruned}


def _trial(folder: RunFolder, trial: str) -> dict[str, Any]:
    """Read a trial that the summary does not hold from the study."""
    from iconoclast.runs.saved import SavedRun
    from iconoclast.runs.trials import trial_document

    quiet_libraries()
    return trial_document(SavedRun.open(folder, trial).trial).document()


def _lines(document: dict[str, Any]) -> list[str]:
    best = document["best"]
    return [
        f"{document['run']}: {document['state']}, {document['finished']} of {document['n_trials']} trials "
        f"({document['pruned']} pruned).",
        f"Model: {document['model']}. Last written: {document['written']}.",
        *([] if best is None else [f"Best trial so far: {_scores(best)}"]),
    ]


def _shared_lines(document: dict[str, Any]) -> list[str]:
    from iconoclast.cluster.standing import standing_lines

    first, *others = standing_lines(document)
    return [first, f"Model: {document['model']}. Last written: {document['written']}.", *others]


def _further_lines(document: dict[str, Any], run: Path) -> list[str]:
    lines = [f"Trial {_scores(document['trial'])}"] if "trial" in document else []
    if document["state"] == "interrupted":
        config, folder = (shlex.quote(str(path)) for path in (RunFolder(run).config, run))
        lines.append(f"Continue it: iconoclast run --config {config} --out {folder}")
    return lines


def _scores(trial: dict[str, Any]) -> str:
    return (
        f"{trial['index']}: {trial['refusals']['count']} of {trial['refusals']['n']} refused, "
        f"{trial['broken']['count']} broken, {trial['overrefusals']['count']} of {trial['overrefusals']['n']} overrefused, "
        f"KL {trial['kl_divergence']:.4f}."
    )
