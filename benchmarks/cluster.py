"""What several workers gain, and how many a study's storage bears.

    .venv/bin/python benchmarks/cluster.py workers      # throughput with 1, 2, 4 ... workers, the work simulated
    .venv/bin/python benchmarks/cluster.py writers      # trials a second that a storage takes from many writers
    .venv/bin/python benchmarks/cluster.py sampler      # what asking for a trial costs when there are many

Simulated work sleeps as long as a batch takes on the machine of the other tables, divided by SPEED: 3.9 s and 1.09 s a
candidate (`speed.py cost`). Everything else is real: the study, its journal, the sampler, one process a worker.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from iconoclast.scores import Count, Scores
from iconoclast.search.objective import Objective
from iconoclast.search.pareto import pareto_front
from iconoclast.search.space import EditParameters, SearchSpace
from iconoclast.search.storage import open_storage
from iconoclast.search.study import OUTCOMES, Outcome, Plan, Study

SPEED = 4.0
BATCH, TRIALS = 16, 512
SPACE = SearchSpace(
    30, ["attn.o_proj", "mlp.down_proj"], ["mean", "median", "variance", "hybrid"], ["global", "per_layer"]
)
OBJECTIVE = Objective(Scores(Count(18, 20), Count(0, 20), 3, 0.2, 0.0), 0.1, 0.32, 0.18, 0.42)
PARAMETERS = 11
"""Parameters of a trial."""

processes = multiprocessing.get_context("fork")


def seconds_of(candidates: int) -> float:
    """What a batch takes on the machine of the other tables."""
    return 3.9 + 1.09 * candidates


@dataclass
class Worker:
    """One of `count` that all stay."""

    name: str
    count: int
    dead_after: float = 600.0

    def size(self) -> int:
        return self.count

    def lost(self, names: Collection[str]) -> set[str]:
        return set()

    def wait(self) -> None:
        time.sleep(0.05)


def simulated(batch: Sequence[EditParameters]) -> list[Scores]:
    """Scores that depend on the parameters, after the time that measuring takes."""
    time.sleep(seconds_of(len(batch)) / SPEED)
    found = []
    for parameters in batch:
        profile = parameters.profiles["attn.o_proj"]
        strength = profile.max_weight * (1 - abs(profile.max_weight_position - 15) / 30)
        refusals = max(0, round(18 - 10 * strength))
        found.append(Scores(Count(refusals, 20), Count(0, 20), 1, 1 - refusals / 20, 0.03 * strength**2))
    return found


def in_processes(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(number)` gives in as many processes, which begin together."""
    results, barrier = processes.Queue(), processes.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        results.put(work(number))

    started = [processes.Process(target=run, args=(number,)) for number in range(count)]
    for process in started:
        process.start()
    found = [results.get() for _ in started]
    for process in started:
        process.join()
    return found


def workers(counts: Sequence[int]) -> None:
    """Throughput of a study that so many workers share."""
    alone = 0.0
    print(f"{TRIALS} trials, batches of up to {BATCH}; time is {SPEED:g} times as fast")
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "study.jsonl"
            Study.open(journal, SPACE, Plan(batch=BATCH))

            def work(number: int, journal: Path = journal, count: int = count) -> int:
                study = Study.open(journal, SPACE, Plan(batch=BATCH))
                measured: list[int] = []
                study.run(TRIALS, simulated, OBJECTIVE, measured.extend, Worker(f"w{number}", count))
                return len(measured)

            start = time.perf_counter()
            measured = in_processes(count, work)
            taken = time.perf_counter() - start
            assert sum(measured) == TRIALS
        rate = TRIALS / taken
        alone = alone or rate
        print(
            f"{count:4d} workers: {taken:6.1f} s, {rate / SPEED:5.2f} trials a real second, {rate / alone:5.2f} times one",
            flush=True,
        )


def written(storage: BaseStorage, study: int, trials: int) -> list[float]:
    """Write trials as a search does, sampling left out; the seconds that each took."""
    taken = []
    for _ in range(trials):
        start = time.perf_counter()
        trial = storage.create_new_trial(study)
        storage.set_trial_user_attr(trial, "worker", "node-1234")
        for name in range(PARAMETERS):
            storage.set_trial_param(trial, f"p{name}", 0.5, FloatDistribution(0, 1))
        storage.set_trial_user_attr(trial, "outcomes", {"0": {"scores": {f"n{i}": i for i in range(40)}}})
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.5, 0.5])
        taken.append(time.perf_counter() - start)
    return taken


def serve(port: int, url: str) -> None:
    """An Optuna storage proxy."""
    from optuna.storages import RDBStorage, run_grpc_proxy_server

    warnings.simplefilter("ignore", ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run_grpc_proxy_server(
        RDBStorage(url) if url.startswith("sqlite") else open_storage(Path(url)), host="localhost", port=port
    )


def writers(counts: Sequence[int], trials: int) -> None:
    """Trials a second that storages take."""
    for kind in ("journal", "proxy before a journal", "proxy before SQLite"):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                journal, url, server = Path(folder) / "study.jsonl", None, None
                if kind != "journal":
                    port = 13000 + os.getpid() % 1000
                    url = f"grpc://localhost:{port}"
                    behind = str(journal) if kind.endswith("journal") else f"sqlite:///{folder}/study.db"
                    server = processes.Process(target=serve, args=(port, behind))
                    server.start()
                each = max(2, trials // count)

                def work(number: int, journal: Path = journal, url: str | None = url, each: int = each) -> list[float]:
                    storage = open_storage(journal, url)
                    return written(storage, storage.get_study_id_from_name("s"), each)

                def begun(number: int, journal: Path = journal, url: str | None = url) -> None:
                    directions = [StudyDirection.MINIMIZE] * 2
                    open_storage(journal, url).create_new_study(directions, "s")

                in_processes(1, begun)
                start = time.perf_counter()
                taken = [seconds for found in in_processes(count, work) for seconds in found]
                whole = time.perf_counter() - start
                size = journal.stat().st_size / len(taken) if journal.is_file() else 0
                if server is not None:
                    server.kill()
                    server.join()
            print(
                f"{kind:>22}, {count:3d} writers: {len(taken) / whole:6.1f} trials a second; one takes "
                f"{statistics.median(taken) * 1e3:6.0f} ms (longest {max(taken) * 1e3:6.0f}){f', {size / 1e3:.1f} kB' if size else ''}",
                flush=True,
            )


def sampler(sizes: Sequence[int]) -> None:
    """Opening a study with so many trials, and what each of 32 more costs beside being measured."""
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "study.jsonl"
            fill(Study.open(journal, SPACE, Plan()), size)
            start = time.perf_counter()
            study = Study.open(journal, SPACE, Plan(batch=BATCH))
            opened = time.perf_counter() - start

            def told(outcomes: Mapping[int, Outcome], study: Study = study) -> None:
                pareto_front(study.trials())  # as a run asks for it after every batch

            study.run(size + BATCH, quick, OBJECTIVE, told)
            start, used = time.perf_counter(), time.process_time()
            study.run(size + 3 * BATCH, quick, OBJECTIVE, told)
            taken, used = time.perf_counter() - start, time.process_time() - used
            print(f"{size:6d} trials: opened in {opened:5.2f} s, one more takes {used / 2 / BATCH * 1e3:6.1f} ms of the processor, "
                  f"{taken / 2 / BATCH * 1e3:6.1f} ms in all, {journal.stat().st_size / 1e6:.1f} MB", flush=True)  # fmt: skip


def fill(study: Study, size: int) -> None:
    """Put random trials into a study that are measured already."""
    ranges, draw = SPACE.distributions(), random.Random(0)
    for number in range(size):
        params = {
            name: draw.uniform(r.low, r.high) if isinstance(r, FloatDistribution) else draw.choice(r.choices)
            for name, r in ranges.items()
        }
        (scores,) = quick([SPACE.parameters(params)])
        entry = {OUTCOMES: {str(number): {"scores": scores.document()}}}
        values = list(OBJECTIVE(scores))
        study.study.add_trial(create_trial(params=params, distributions=dict(ranges), values=values, user_attrs=entry))


def quick(batch: Sequence[EditParameters]) -> list[Scores]:
    """Scores at once."""
    strengths = [(p.profiles["attn.o_proj"].max_weight, p.profiles["mlp.down_proj"].max_weight) for p in batch]
    return [Scores(Count(round(9 * a) % 20, 20), Count(0, 20), 1, 0.5, 0.03 * a * b) for a, b in strengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["workers", "writers", "sampler"])
    parser.add_argument("--counts", type=int, nargs="+", help="workers, writers or trials")
    parser.add_argument("--trials", type=int, default=320, help="of the writers together")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(json.dumps({"cores": os.cpu_count(), "optuna": optuna.__version__}))
    if arguments.table == "workers":
        workers(arguments.counts or (1, 2, 4, 8, 16))
    elif arguments.table == "writers":
        writers(arguments.counts or (1, 4, 16, 64), arguments.trials)
    else:
        sampler(arguments.counts or (100, 1000, 10000))


if __name__ == "__main__":
    main()
