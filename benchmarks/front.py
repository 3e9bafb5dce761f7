"""Quality against time: hypervolume of the front on the report prompts, by seconds from the start of the process.

    .venv/bin/python benchmarks/front.py --config RUN.toml --out FOLDER --seconds 650 --seeds 3
    .venv/bin/python benchmarks/front.py --config RUN.toml --out FOLDER --seconds 650 --seeds 3 \\
        --other OLD --heretic HERETIC/heretic-0/checkpoints/JOURNAL.jsonl

Every run is a process of its own that is interrupted when the seconds are over; builds take turns, seed by seed. OLD is
another checkout (`git worktree add OLD COMMIT`) with its own environment in OLD/.venv. RUN.toml is what `iconoclast run
--config` takes and both builds know; without it the demo model and the prompts of the package are taken. Runs of this build
search and fit nothing, unless --fit-steps asks for two standard edits and a fit of so many steps; they begin with an empty cache
unless --warm is given. On a machine that others use, --clock processor counts the
processor's seconds of each run, whose wall-clock says nothing there (give runs one thread: OMP_NUM_THREADS=1). heretic's
journals (of quality.py or peer.py, on the same prompts) count wall-clock from the time at which their settings were written.

The front at a time is that of the trials finished by then, on the select prompts that the run chose on; its points are
then measured on the report prompts, once a trial. What is there already in FOLDER is not done again. FOLDER/front.svg is the
picture, FOLDER/front.json has all points.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import peer
import psutil
import tomli_w
from hypervolume import hypervolume
from quality import AT_A_TIME, REFERENCE

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError
from iconoclast.files import write_json
from iconoclast.peers.heretic.journal import HereticStudy, heretic_directions
from iconoclast.prompts import load_prompts
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.workbench import Workbench
from iconoclast.search.pareto import pareto_front

CLOCKS = {"wall": 1, "processor": 2}
"""Place of a clock's seconds in what is kept of a run: time of day, seconds since its start, of the processor, MiB."""
TICK = 0.2
"""Seconds between two looks at a run."""
COLOURS = ("#1b6ca8", "#d1495b", "#3c8d53", "#8a5a9e")


@dataclass
class Curve:
    """A run's fronts by time.

    Attributes:
        name: of the build or tool.
        fronts: seconds from the start → numbers of the trials of the front from then on.
        edit: makes the edit of a number.
    """

    name: str
    seed: int
    folder: Path
    fronts: list[tuple[float, list[int]]]
    edit: Callable[[int], Edit]


def run_of(command: Sequence[str], folder: Path, seconds: float, clock: str, environment: dict[str, str]) -> None:
    """Run a search and interrupt it when its seconds are over; a file beside it keeps its clock and memory."""
    if clock_file(folder).exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    began, ticks, over = time.time(), [], False
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error), watched.oneshot():  # it may have ended this very moment
            used, now = watched.cpu_times(), time.time()
            ticks.append((now, now - began, used.user + used.system, watched.memory_info().rss / 2**20))
            if not over and ticks[-1][CLOCKS[clock]] > seconds:
                process.send_signal(signal.SIGINT)
                over = True
        time.sleep(TICK)
    if process.returncode not in (0, 130):
        raise SystemExit(f"the run in {folder} failed, see {folder}.log")
    write_json(clock_file(folder), {"ticks": ticks})


def clock_file(folder: Path) -> Path:
    return folder.parent / f"{folder.name}.clock.json"


def seconds_at(folder: Path, clock: str) -> Callable[[datetime], float]:
    """Give the seconds that a run had used at a time of day."""
    ticks = json.loads(clock_file(folder).read_text())["ticks"]
    days, used = [tick[0] for tick in ticks], [tick[CLOCKS[clock]] for tick in ticks]
    return lambda at: float(np.interp(at.timestamp(), days, used))


def fronts_of(
    finished: Sequence[tuple[float, int]], front: Callable[[set[int]], list[int]]
) -> list[tuple[float, list[int]]]:
    """The front after every time at which it changes."""
    found: list[tuple[float, list[int]]] = []
    known: set[int] = set()
    for seconds, number in sorted(finished):
        known.add(number)
        if not found or front(known) != found[-1][1]:
            found.append((seconds, front(known)))
    return found


def of_run(name: str, seed: int, folder: Path, clock: str, bench: Workbench) -> Curve:
    """The curve of a run folder."""
    seconds = seconds_at(folder, clock)
    try:
        saved = SavedRun.open(RunFolder(folder), "best")
    except RunFolderError:  # the time was over before its first trial
        return Curve(name, seed, folder, [], lambda number: Edit.nothing())
    trials = {trial.index: trial for trial in saved.trials}
    ended = {t.number: t.datetime_complete for t in peer.journal_of(folder / "iconoclast_study.jsonl").trials}
    finished = [(seconds(at), number) for number in trials if (at := ended[number])]
    writers = bench.lm.writers(saved.settings.components)
    return Curve(
        name,
        seed,
        folder,
        fronts_of(finished, lambda known: [t.index for t in pareto_front([trials[n] for n in sorted(known)])]),
        lambda number: trials[number].parameters.edit(saved.directions, writers, saved.settings.row_normalization),
    )


def of_heretic(seed: int, journal: Path, bench: Workbench) -> Curve:
    """The curve of a heretic study; the prompts are its own."""
    study = HereticStudy.read(journal)
    began = (journal.parents[1] / "config.toml").stat().st_mtime
    ended = [t.datetime_complete for t in peer.journal_of(journal).trials if t.datetime_complete]
    trials = dict(enumerate(study.trials))
    s = study.settings
    sets = (load_prompts(prompts, s.system_prompt) for prompts in (s.good_prompts, s.bad_prompts))
    directions = heretic_directions(bench.lm, study, *sets)

    def front(known: set[int]) -> list[int]:
        found: list[int] = []
        for number in sorted(known, key=lambda n: (trials[n].refusals, trials[n].kl_divergence)):
            if not found or trials[number].kl_divergence < trials[found[-1]].kl_divergence:
                found.append(number)
        return found

    finished = [(at.timestamp() - began, number) for number, at in zip(trials, sorted(ended), strict=True)]
    edit = lambda number: study.edit(trials[number], bench.lm, directions)  # noqa: E731
    return Curve("heretic", seed, journal.parents[1], fronts_of(finished, front), edit)


def measured(curve: Curve, bench: Workbench, cache: Path) -> list[tuple[float, float]]:
    """Seconds and hypervolume on the report prompts, whenever the front changed."""
    known: dict[str, list[float]] = json.loads(cache.read_text()) if cache.exists() else {}
    wanted = [n for n in dict.fromkeys(n for _, front in curve.fronts for n in front) if str(n) not in known]
    evaluator = bench.evaluator("report")
    for start in range(0, len(wanted), AT_A_TIME):
        some = wanted[start : start + AT_A_TIME]
        scores = evaluator.measure([curve.edit(number) for number in some])
        known |= {str(n): [s.failures.rate, s.kl_divergence] for n, s in zip(some, scores, strict=True)}
        write_json(cache, known)
    points = {int(number): (rate, kl) for number, (rate, kl) in known.items()}
    return [(at, hypervolume([points[n] for n in front], REFERENCE)) for at, front in curve.fronts]


def at(points: Sequence[tuple[float, float]], seconds: float) -> float:
    """The hypervolume at a time; 0 before the first trial."""
    return next((volume for when, volume in reversed(points) if when <= seconds), 0.0)


def print_table(curves: dict[str, list[list[tuple[float, float]]]], times: Sequence[float]) -> None:
    """Medians of the seeds, and every seed, at some times."""
    print(f"| seconds from the start | {' | '.join(curves)} |\n|---{'|---' * len(curves)}|")
    for seconds in times:
        cells = []
        for runs in curves.values():
            each = [at(points, seconds) for points in runs]
            cells.append(f"{statistics.median(each):.3f} ({', '.join(f'{volume:.3f}' for volume in each)})")
        print(f"| {seconds:g} | {' | '.join(cells)} |")


def picture(curves: dict[str, list[list[tuple[float, float]]]], seconds: float) -> str:
    """An SVG with a step line for every run."""
    width, height, left, bottom = 640, 360, 50, 40

    def place(when: float, volume: float) -> tuple[float, float]:
        return left + (width - left - 10) * min(when, seconds) / seconds, (height - bottom) * (1 - volume) + 5

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 10}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height + 10}" fill="white"/>',
    ]
    for tick in range(6):
        (x, y), (_, level) = place(seconds * tick / 5, 0), place(0, tick / 5)
        parts.append(f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle">{seconds * tick / 5:.0f}</text>')
        parts.append(f'<text x="{left - 6}" y="{level + 4:.0f}" text-anchor="end">{tick / 5:.1f}</text>')
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{level:.0f}" y2="{level:.0f}" stroke="#ddd"/>')
    parts.append(f'<text x="{width / 2}" y="{height + 4}" text-anchor="middle">seconds from the start</text>')
    parts.append('<text x="14" y="170" transform="rotate(-90 14 170)" text-anchor="middle">hypervolume</text>')
    for number, (name, runs) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<text x="{left + 10}" y="{20 + 16 * number}" fill="{colour}">{name}</text>')
        for points in runs:
            steps = [place(0, 0), *_steps(points, place), place(seconds, at(points, seconds))]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in steps)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _steps(
    points: Sequence[tuple[float, float]], place: Callable[[float, float], tuple[float, float]]
) -> Iterator[tuple[float, float]]:
    before = 0.0
    for when, volume in points:
        yield place(when, before)
        yield place(when, volume)
        before = volume


def runs_of(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Path]]:
    """Run every build with every seed, in turn."""
    given = tomllib.loads(arguments.config.read_text()) if arguments.config else {"model": "demo"}
    builds = {"this build": ([sys.executable, "-m", "iconoclast"], dict(os.environ))}
    if arguments.other:
        program = str(arguments.other / ".venv" / "bin" / "iconoclast")
        builds[arguments.other.name] = [program], {**os.environ, "PYTHONPATH": str(arguments.other / "src")}
    for seed in range(arguments.seeds):
        for name, (program_of, environment) in builds.items():
            folder = arguments.out / f"{name.replace(' ', '-')}-{seed}"
            file = folder.parent / f"{folder.name}.toml"
            file.write_text(tomli_w.dumps({"n_trials": 100_000, **given, "seed": seed}))
            command = [*program_of, "run", "--config", str(file), "--out", str(folder)]
            if name == "this build":
                steps = arguments.fit_steps
                command += ["--no-fit"] if steps is None else ["--n-trials", "2", "--fit-steps", str(steps)]
                command += ["--cache-gib", "0"] * (not arguments.warm)
            environment = {**environment, "HF_HUB_OFFLINE": "1"}
            run_of(command, folder, arguments.seconds, arguments.clock, environment)
            yield name, seed, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="settings of the runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=650.0)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what the seconds are of")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="another checkout with its own environment")
    parser.add_argument("--heretic", type=Path, nargs="*", default=[], help="journals of heretic, one a seed")
    parser.add_argument("--fit-steps", type=int, help="of a fit after two standard edits, in place of a search")
    parser.add_argument("--warm", action="store_true", help="let runs of this build use the cache")
    parser.add_argument("--at", type=float, nargs="+", help="times of the table")
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    runs = list(runs_of(arguments))
    settings = Settings.model_validate(
        tomllib.loads((arguments.out / f"{runs[0][2].name}.toml").read_text()) | {"cache_gib": 0.0}
    )
    curves: dict[str, list[list[tuple[float, float]]]] = {}
    with Workbench.open(settings) as bench:
        bench.find_response_prefix()
        made = [of_run(name, seed, folder, arguments.clock, bench) for name, seed, folder in runs]
        made += [of_heretic(seed, journal, bench) for seed, journal in enumerate(arguments.heretic)]
        for curve in made:
            cache = arguments.out / f"report-{curve.name.replace(' ', '-')}-{curve.seed}.json"
            curves.setdefault(curve.name, []).append(measured(curve, bench, cache))
    write_json(arguments.out / "front.json", curves)
    for name, seed, folder in runs:
        ticks = json.loads(clock_file(folder).read_text())["ticks"]
        print(f"{name}, seed {seed}: at most {max(tick[3] for tick in ticks):.0f} MiB resident")
    print_table(curves, arguments.at or [arguments.seconds * share for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)])
    (arguments.out / "front.svg").write_text(picture(curves, arguments.seconds))


if __name__ == "__main__":
    main()
