"""Several processes of this machine on one run, each on processors or a GPU of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from iconoclast.errors import MeasurementError
from iconoclast.progress import Progress
from iconoclast.runs.folder import RunFolder


def shares(workers: int, cores: Sequence[int]) -> list[list[int]]:
    """Divide the processors among the workers equally, or let all share them if there are too few."""
    each = max(1, len(cores) // workers)
    return [[cores[(worker * each + i) % len(cores)] for i in range(each)] for worker in range(workers)]


def work_locally(folder: RunFolder, workers: int, progress: Progress, gpus: int = 0) -> None:
    """Let several processes work on a prepared run until it is complete, and wait for them.

    Each gets one of the machine's `gpus`, in turn, or without any, processors of its own.

    Raises:
        MeasurementError: all of them have failed; their logs say why.
        KeyboardInterrupt: on the user's request; the workers have handed back their unfinished trials.
    """
    logs = folder.cluster / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    cores = shares(workers, sorted(os.sched_getaffinity(0)))
    processes: list[subprocess.Popen[bytes]] = []
    progress.note(f"{workers} workers; what each says is in {logs}.")
    try:
        for number in range(workers):
            processes.append(_started(folder, number, cores[number], gpus, logs / f"worker-{number}.log"))
        while any(process.poll() is None for process in processes):
            time.sleep(0.2)
    except KeyboardInterrupt:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    failed = [number for number, process in enumerate(processes) if process.returncode]
    if len(failed) == workers:
        log = logs / f"worker-{failed[0]}.log"
        said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise MeasurementError(f"No worker came to the end. {log} says: {said[-1]}")
    for number in failed:
        progress.note(f"Worker {number} failed, and the others did its work: see {logs / f'worker-{number}.log'}.")


def _started(folder: RunFolder, number: int, cores: Sequence[int], gpus: int, log: Path) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    if gpus:
        ours = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = ours[number % len(ours)] if ours[0] else str(number % gpus)
    else:
        environment["OMP_NUM_THREADS"] = str(len(cores))
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "iconoclast.cli", "cluster", "work", str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process, which tells them
        )
    if not gpus:
        with suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    return process
