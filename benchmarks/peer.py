"""Whole runs of ICONOCLAST and heretic side by side: same model, prompts, response length and markers, run in turn.

    .venv/bin/python benchmarks/peer.py --data DATA --heretic OTHER_VENV/bin/heretic --out FOLDER --trials 24 --rounds 2

heretic runs with its defaults and its own search for a batch size and a response prefix; only prompts, system prompt,
markers, response length, seed, the number of trials and (half of them) of random ones are given. With --quick it is told
the batch size and that there is no prefix, which saves most of its set-up when only trials are of interest.

Times are those of the two Optuna journals: set-up from the start of the process to the start of the first trial, and from
there to the completion of the last, divided by their number. ICONOCLAST's trials include those that it prunes, as its
users have them (speed.py has the cost of a whole one), and look for overrefusals in one token only, as heretic does not
measure any. In the end heretic's trials are made again as Edits and measured here: the scores must be the same, but for
heretic's approximation of the edit by a low rank.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import tomli_w
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from iconoclast.config.schema import Settings
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.names import resolve
from iconoclast.peers.heretic.journal import HereticStudy, heretic_directions
from iconoclast.prompts import PromptSet

SYSTEM = "You are a helpful assistant."
SETS = {
    "good_prompts": ("knowledge", "fit"),
    "bad_prompts": ("requests", "fit"),
    "good_evaluation_prompts": ("knowledge", "select"),
    "bad_evaluation_prompts": ("requests", "select"),
}


@dataclass(frozen=True)
class Measured:
    """One whole run of one tool, in seconds and MiB."""

    tool: str
    seed: int
    setup: float
    trial: float
    whole: float
    peak_memory: float
    base_refusals: int
    front: list[tuple[int, float]]


def write_prompts(data: Path, folder: Path, requests: int, knowledge: int) -> dict[str, Path]:
    """The prompt sets as text files, one prompt a line, which both tools read."""
    limits = {("requests", "select"): requests, ("knowledge", "select"): knowledge}
    files = {}
    for setting, (name, split) in SETS.items():
        rows = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        texts = [" ".join(row["text"].split()) for row in rows if row["split"] == split][: limits.get((name, split))]
        files[setting] = folder / f"{setting}.txt"
        files[setting].write_text("\n".join(texts) + "\n")
    return files


def run(command: Sequence[str], folder: Path) -> tuple[float, float]:
    """Run a command in `folder`: (time of its start, peak resident memory in MiB)."""
    started = time.time()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        _, _, usage = os.wait4(process.pid, 0)
    return started, usage.ru_maxrss / 1024


def run_for(
    command: Sequence[str], folder: Path, seconds: float | None, environment: dict[str, str], where: Path | None = None
) -> None:
    """Run a search in a folder, its log beside it, and interrupt it when the seconds are over, if they are given."""
    with (folder.parent / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=where
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
    if process.returncode not in (0, 130):
        raise SystemExit(f"the run in {folder} failed, see {folder}.log")


def journal_of(file: Path) -> optuna.Study:
    """The study in a journal."""
    storage = JournalStorage(JournalFileBackend(str(file)))
    return optuna.load_study(study_name=None, storage=storage)


def times(study: optuna.Study, started: float, wanted: int) -> tuple[float, float, float]:
    """Seconds of set-up, of one trial, and of the whole run until its last trial."""
    finished = [t for t in study.trials if t.datetime_complete is not None]
    assert len(finished) == wanted, f"{len(finished)} of {wanted} trials are there"
    first = min(t.datetime_start.timestamp() for t in finished if t.datetime_start)
    last = max(t.datetime_complete.timestamp() for t in finished if t.datetime_complete)
    return first - started, (last - first) / wanted, last - started


def heretic(
    program: str, model: Path, files: dict[str, Path], folder: Path, arguments: argparse.Namespace, seed: int
) -> Measured:
    """A whole run of heretic. When the trials are done it asks what to do, finds no terminal and ends."""
    settings: dict[str, Any] = {name: {"dataset": str(file)} for name, file in files.items()}
    trials = arguments.heretic_trials or arguments.trials
    settings |= {"n_trials": trials, "max_response_length": arguments.tokens, "seed": seed}
    if arguments.quick:
        settings |= {"batch_size": 128, "response_prefix": ""}
    settings |= {"refusal_markers": list(Settings().refusal_markers), "system_prompt": SYSTEM}
    settings["n_startup_trials"] = trials // 2
    (folder / "config.toml").write_text(tomli_w.dumps(settings))
    started, memory = run([program, "--model", str(model)], folder)
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    study = journal_of(journal)
    scores = [(t.user_attrs["refusals"], t.user_attrs["kl_divergence"]) for t in study.trials]
    base = study.trials[0].user_attrs["base_refusals"]
    return Measured("heretic", seed, *times(study, started, trials), memory, base, front_of(scores))


def iconoclast(model: Path, files: dict[str, Path], folder: Path, arguments: argparse.Namespace, seed: int) -> Measured:
    """A whole run of ICONOCLAST."""
    settings: dict[str, Any] = {name: {"dataset": str(file)} for name, file in files.items()}
    settings |= {
        "model": str(model),
        "n_trials": arguments.trials,
        "fit": False,
        "max_response_length": arguments.tokens,
        "seed": seed,
    }
    settings |= {"system_prompt": SYSTEM, "max_benign_response_length": 1, "exit_after_optimization": True}
    settings["trials_per_batch"] = arguments.batch
    (folder / "settings.toml").write_text(tomli_w.dumps(settings))
    program = str(Path(sys.executable).parent / "iconoclast")
    started, memory = run([program, "run", "--config", "settings.toml", "--out", "run"], folder)
    summary = json.loads((folder / "run" / "batch_summary.json").read_text())
    scores = [(t["refusals"]["count"], t["kl_divergence"]) for t in summary["pareto_trials"]]
    taken = times(journal_of(folder / "run" / "iconoclast_study.jsonl"), started, arguments.trials)
    return Measured("iconoclast", seed, *taken, memory, summary["base_metrics"]["refusals"]["count"], front_of(scores))


def front_of(scores: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Refusals and divergences that nothing beats."""
    front: list[tuple[int, float]] = []
    for refusals, divergence in sorted(scores):
        if not front or divergence < front[-1][1]:
            front.append((refusals, round(divergence, 4)))
    return front


def replay(lm: LanguageModel, journal: Path, files: dict[str, Path], arguments: argparse.Namespace) -> None:
    """heretic's trials as Edits, measured here, beside what heretic measured."""
    sets = {name: PromptSet.load(str(file), system_prompt=SYSTEM) for name, file in files.items()}
    study = HereticStudy.read(journal)
    directions = heretic_directions(lm, study, sets["good_prompts"], sets["bad_prompts"])
    settings = Settings()
    evaluator = Evaluator(
        lm.with_prefix(study.settings.response_prefix or ""),
        sets["bad_evaluation_prompts"],
        sets["good_evaluation_prompts"],
        ResponseRules(settings.refusal_markers, settings.disclaimer_markers),
        MeasureOptions(response_length=arguments.tokens, benign_response_length=1),
    )
    print(f"\nheretic's trials made again and measured here (noise floor {evaluator.noise_floor():.4f} nats):")
    ours = evaluator.measure([study.edit(trial, lm, directions) for trial in study.trials])
    pairs = [
        (t.refusals, s.refusals.count, t.kl_divergence, s.kl_divergence)
        for t, s in zip(study.trials, ours, strict=True)
    ]
    for theirs, here, their_kl, kl in pairs:
        print(f"  refusals {theirs:3d} | {here:3d}   KL {their_kl:.4f} | {kl:.4f}")
    print(f"  largest difference of refusals {max(abs(a - b) for a, b, _, _ in pairs)},", end=" ")
    print(f"median difference of KL {statistics.median(abs(a - b) for _, _, a, b in pairs):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with requests.jsonl and knowledge.jsonl")
    parser.add_argument("--heretic", required=True, help="the heretic program, in an environment of its own")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--heretic-trials", type=int, help="another number of trials for heretic")
    parser.add_argument("--quick", action="store_true", help="spare heretic its search for a batch size and a prefix")
    parser.add_argument("--rounds", type=int, default=2, help="each round has a seed of its own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=Settings().trials_per_batch, help="ICONOCLAST's trials_per_batch")
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--knowledge", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()

    out = arguments.out.resolve()
    out.mkdir(parents=True)
    files = write_prompts(arguments.data, out, arguments.requests, arguments.knowledge)
    lm = load_model(arguments.model)  # converts the demo model, if it must be
    model = Path(resolve(arguments.model))
    runs: list[Measured] = []
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.rounds):
        for tool in ("heretic", "iconoclast"):
            folder = out / f"{tool}-{seed}"
            folder.mkdir()
            if tool == "heretic":
                runs.append(heretic(arguments.heretic, model, files, folder, arguments, seed))
            else:
                runs.append(iconoclast(model, files, folder, arguments, seed))
            print(json.dumps(asdict(runs[-1])), flush=True)

    print(
        f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; medians:"
    )
    for name in ("setup", "trial", "whole", "peak_memory"):
        theirs, ours = (
            statistics.median(getattr(r, name) for r in runs if r.tool == tool) for tool in ("heretic", "iconoclast")
        )
        print(f"{name:>12}: heretic {theirs:7.1f}   iconoclast {ours:7.1f}   ratio {theirs / ours:5.1f}")
    (journal,) = (out / f"heretic-{arguments.first_seed}" / "checkpoints").glob("*.jsonl")
    replay(lm, journal, files, arguments)


if __name__ == "__main__":
    main()
