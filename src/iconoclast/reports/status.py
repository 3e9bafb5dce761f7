"""How a run stands, in lines of text."""

import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from iconoclast.goals import Objectives
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.status import RunStatus, SharedStatus
from iconoclast.runs.workers import GONE
from iconoclast.scores import Scores


def status_lines(status: RunStatus) -> Iterator[str]:
    """Yield how a run stands: trials, best so far, queue and workers if it has any, aims, how to go on."""
    yield f"{status.run}: {status.state}, {_trials(status)}."
    yield f"Model: {status.model}. Last written: {status.written}."
    if status.best is not None:
        so_far = "" if status.state == "complete" else " so far"
        yield f"Best trial{so_far}: {_scores(status.best.index, status.best)}"
        yield "These are the select prompts, which chose it."
    if status.report is not None:
        yield f"Report, trial {_scores(status.report.trial, status.report.metrics)}"
    if status.shared is not None:
        yield from _shared(status.shared)
    yield from _goals(status)
    if status.trial is not None:
        yield f"Trial {_scores(status.trial.index, status.trial)}"
    if status.state == "interrupted":
        config, path = shlex.quote(str(RunFolder(Path(status.run)).config)), shlex.quote(status.run)
        yield f"Continue it: iconoclast run --config {config} --out {path}"


def _trials(status: RunStatus) -> str:
    said = f"{status.finished} of {status.n_trials} trials ({status.pruned} pruned)"
    if status.fitted:
        said += f", {status.fitted} fitted"
    if (shared := status.shared) is not None:
        said += f", {shared.trials['running']} being measured, {shared.trials['waiting']} handed back"
        said += f"; {shared.trials_per_hour:.0f} an hour" if shared.trials_per_hour else ""
    return said


def _shared(shared: SharedStatus) -> Iterator[str]:
    """Say what is in the queue, and what the workers do."""
    if shared.queue:
        yield f"The queue is not known: {shared.queue}"
    elif shared.submitted:
        jobs = [f"  {job.job}: {job.state.lower()} {job.elapsed} {job.nodes or job.reason}" for job in shared.jobs]
        yield from ["Queue:", *(jobs or ["  none of its jobs is in it any more"])]
    for worker in shared.workers:
        since = "" if worker.state in GONE else f", {(time.time() - worker.started) / 60:.0f} min"
        yield f"Worker {worker.name} on {worker.host}: {worker.state}{since}, {worker.trials} trials measured."


def _goals(status: RunStatus) -> Iterator[str]:
    """Say what the run is after, if that is not the default."""
    objectives = Objectives(status.objectives)
    if not objectives.default:
        best = status.best
        values = [str(each) for each in objectives.all] if best is None else map(" ".join, objectives.shown(best))
        yield f"Objectives: {', '.join(values)}."
    if status.strengthen:
        yield "The run strengthens the behaviour: a failure is a target prompt that is not refused."


def _scores(index: int, scores: Scores) -> str:
    refused, over = scores.refusals, scores.overrefusals
    counts = (
        f"{refused.count} of {refused.n} refused, {scores.broken.count} broken, {over.count} of {over.n} overrefused"
    )
    return f"{index}: {counts}, KL {scores.kl_divergence:.4f}."
