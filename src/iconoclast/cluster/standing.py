"""Standing of a run with many processes, from the queue, their signs of life and the study."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iconoclast.cluster.slurm import ClusterError, queue
from iconoclast.cluster.submit import jobs_of
from iconoclast.cluster.work import is_done
from iconoclast.config.schema import Settings
from iconoclast.errors import UserError
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.trials import best_of, search_space, trial_document
from iconoclast.runs.workers import GONE, workers_of
from iconoclast.search.study import Study


def standing(run: Path) -> dict[str, Any]:
    """Return state, queue, workers and trials; raise RunFolderError if the run is missing or damaged."""
    folder = RunFolder(run)
    settings = folder.settings()
    document: dict[str, Any] = {
        "run": str(run),
        "model": settings.model,
        "n_trials": settings.n_trials,
        "complete": is_done(folder),
        "trials": {"complete": 0, "pruned": 0, "running": 0, "waiting": 0},
        "best": None,
        "trials_per_hour": None,
    }
    if study := _study(folder, settings):
        summary = folder.read_summary()
        best = best_of(study.trials(), settings, None if summary is None else summary.finalists)
        document["trials"] = study.states()
        document["best"] = None if best is None else trial_document(best).document()
        document["trials_per_hour"] = study.rate()
    jobs = jobs_of(folder)
    try:
        document["jobs"] = [asdict(job) for job in queue(jobs)]
        document["queue"] = None
    except ClusterError as error:
        document["jobs"], document["queue"] = [], str(error)
    document["submitted"] = jobs
    document["workers"] = [
        {**w.sign.document(), "name": w.name, "state": w.state, "silent_for": round(w.age, 1)}
        for w in workers_of(folder)
    ]
    return document


def _study(folder: RunFolder, settings: Settings) -> Study | None:
    storage = settings.study_storage
    if not folder.baseline.is_file() or (storage is None and not folder.journal.is_file()):
        return None
    try:
        return Study.read(folder.journal, search_space(settings, folder.read_baseline().layers), storage)
    except UserError:
        if storage is None and not folder.journal.stat().st_size:
            return None  # somebody is just beginning it
        raise


def standing_lines(document: dict[str, Any]) -> list[str]:
    """Describe the same in words."""
    trials = document["trials"]
    finished = trials["complete"] + trials["pruned"]
    rate = document["trials_per_hour"]
    lines = [
        f"{document['run']}: {'complete' if document['complete'] else 'not complete'}, {finished} of {document['n_trials']} "
        f"trials ({trials['pruned']} pruned), {trials['running']} being measured, {trials['waiting']} handed back"
        + (f"; {rate:.0f} an hour." if rate else "."),
    ]
    if best := document["best"]:
        lines.append(
            f"Best so far: trial {best['index']}, {best['refusals']['count']} of {best['refusals']['n']} refused, "
            f"{best['broken']['count']} broken, KL {best['kl_divergence']:.4f}."
        )
    if document["queue"]:
        lines.append(f"The queue is not known: {document['queue']}")
    elif document["submitted"]:
        jobs = [
            f"  {job['job']}: {job['state'].lower()} {job['elapsed']} {job['nodes'] or job['reason']}"
            for job in document["jobs"]
        ]
        lines += ["Queue:", *(jobs or ["  none of its jobs is in it any more"])]
    for worker in document["workers"]:
        since = "" if worker["state"] in GONE else f", {(time.time() - worker['started']) / 60:.0f} min"
        lines.append(
            f"Worker {worker['name']} on {worker['host']}: {worker['state']}{since}, {worker['trials']} trials measured."
        )
    return lines
