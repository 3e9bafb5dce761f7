"""The matched comparison with heretic, and ablations: what an edit does on prompts that chose nothing.

    .venv/bin/python benchmarks/quality.py --data DATA --heretic OTHER_VENV/bin/heretic --out FOLDER             # the match
    .venv/bin/python benchmarks/quality.py --data DATA --out FOLDER --ablations                                  # ablations

Both tools get the same model, prompts (fit, select), system prompt, markers, response length and seeds. ICONOCLAST runs
once with a few trials and a fit, which must be done before heretic's wall-clock time is over, set-up included
(--fit-trials, --fit-steps), and once without a fit until that time is over. It has more select prompts, because that is what cheap
trials are good for: on 20 prompts the best of many is luck. --runs picks some of these. The same rule
chooses each tool's trial: fewest failures on the select prompts within a KL of 0.1, give or take one standard error,
then lowest KL (heretic counts refusals, of which empty responses are some, and knows no broken ones). It is then examined
here, once, on the report prompts, heretic's trials made again as Edits. Hypervolumes are of the trials that were the front
on the select prompts, measured on the report prompts: failure rate up to 1 and KL up to 0.2 nats. In bfloat16 a part of every KL is
rounding, which an edit that keeps much of the model has most of: `--dtype float32` examines without it. With --unseen the requests
that are reported on have intents of which nothing fitted or chose an edit.

What is there already in FOLDER is not done again; heretic runs of peer.py can be put there (heretic-0, heretic-1, ...), with
their times. --original adds a third tool, the original release, for as long as heretic ran.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import peer
import tomli_w
from hypervolume import hypervolume

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.edits.edit import Edit
from iconoclast.files import write_json
from iconoclast.library import search
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.names import resolve
from iconoclast.models.packed import packed
from iconoclast.peers.heretic.journal import HereticStudy, heretic_directions
from iconoclast.peers.known import peer_trial
from iconoclast.prompts import load_prompts
from iconoclast.runs.comparison import compare
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.subjects import ModelSubject, PeerSubject, RunSubject
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Count, Scores, no_more_than
from iconoclast.search.pareto import pareto_front

REFERENCE = (1.0, 0.2)
"""Failure rate and KL divergence (nats) from which hypervolumes are measured."""

AT_A_TIME = 8
"""Edits measured together."""

ABLATIONS: dict[str, dict[str, Any]] = {
    "default": {"random_controls": 1},
    "benign subspace of rank 0": {"benign_subspace_rank": 0},
    "benign subspace of rank 4": {"benign_subspace_rank": 4},
    "benign subspace of rank 16": {"benign_subspace_rank": 16},
    "rank 0, benign mean not kept out": {"benign_subspace_rank": 0, "orthogonalize_direction": False},
    "mean direction only": {"direction_methods": ["mean"]},
    "median direction only": {"direction_methods": ["median"]},
    "variance direction only": {"direction_methods": ["variance"]},
    "hybrid direction only": {"direction_methods": ["hybrid"]},
    "row normalisation none": {"row_normalization": "none"},
    "row normalisation full": {"row_normalization": "full"},
}


def of_unseen_intents(data: Path, folder: Path) -> Path:
    """A copy of the data in which the requests that are reported on have other intents than the rest: every second one."""
    folder.mkdir(exist_ok=True)
    shutil.copy(data / "knowledge.jsonl", folder)
    lines = (data / "requests.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    unseen = sorted({row["intent"] for row in rows})[1::2]
    kept = [
        line for line, row in zip(lines, rows, strict=True) if (row["intent"] in unseen) == (row["split"] == "report")
    ]
    (folder / "requests.jsonl").write_text("\n".join(kept) + "\n")
    return folder


def settings_of(model: Path, files: dict[str, Path], arguments: argparse.Namespace, seed: int) -> Settings:
    """What both tools are told."""
    split = "report" if arguments.unseen else f"report[:{arguments.report}]"  # of unseen intents there are fewer
    report: dict[str, Any] = {
        f"{side}_report_prompts": PromptSource(
            dataset=str(arguments.data / f"{name}.jsonl"), split=split, column="text"
        )
        for side, name in (("good", "knowledge"), ("bad", "requests"))
    }
    fitted: dict[str, Any] = {name: PromptSource(dataset=str(file)) for name, file in files.items()}
    return Settings(
        model=str(model),
        system_prompt=peer.SYSTEM,
        response_prefix="",
        max_response_length=arguments.tokens,
        seed=seed,
        exit_after_optimization=True,
        random_controls=0,
        **fitted,
        **report,
    )


def heretic_run(model: Path, files: dict[str, Path], out: Path, arguments: argparse.Namespace, seed: int) -> Path:
    """The journal of a whole heretic run."""
    folder = out / f"heretic-{seed}"
    if not folder.exists():
        folder.mkdir()
        peer.heretic(arguments.heretic, model, files, folder, arguments, seed)
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    return journal


def original_run(
    model: Path, files: dict[str, Path], folder: Path, arguments: argparse.Namespace, seed: int, seconds: float
) -> Path:
    """The adapter that the rule chooses of a run of the original release, broken off when the seconds are over."""
    if not (folder / "checkpoints").exists():
        settings: dict[str, Any] = {"seed": seed, "exit_after_optimization": True, "system_prompt": peer.SYSTEM}
        settings |= {"n_trials": 10_000, "n_startup_trials": arguments.trials // 2, "dtypes": ["float32"]}
        settings |= {"max_response_length": arguments.tokens, "refusal_markers": list(Settings().refusal_markers)}
        for name, file in files.items():  # a text file is a split, named by its name: a folder is needed
            (folder / name).mkdir(parents=True)
            shutil.copy(file, folder / name / "train.txt")
            settings[name] = {"dataset": str(folder / name), "split": "train", "column": "text"}
        (folder / "config.toml").write_text(tomli_w.dumps(settings))
        driver = Path(__file__).with_name("original.py")
        environment = {
            key: value for key, value in os.environ.items() if key != "PYTHONPATH"
        }  # its package is named as ours
        peer.run_for([arguments.original, str(driver), "--model", str(model)], folder, seconds, environment, folder)
    (journal,) = (folder / "checkpoints").glob("*.jsonl")
    trials = [t.user_attrs for t in peer.journal_of(journal).trials if t.values is not None]
    within = [t for t in trials if t["kl_divergence"] <= Settings().kl_divergence_target] or trials
    fewest = Count(min(t["refusals"] for t in within), arguments.requests)
    good = [t for t in within if t["refusals"] <= no_more_than(fewest)]
    chosen = min(good, key=lambda t: t["kl_divergence"])
    return folder / "adapters" / str(chosen["index"])


def seconds_of(journal: Path) -> float:
    """From the start of a heretic run, when its settings were written, to its last trial."""
    started = (journal.parents[1] / "config.toml").stat().st_mtime
    seconds = peer.times(peer.journal_of(journal), started, len(HereticStudy.read(journal).trials))[2]
    if seconds < 0:
        raise SystemExit(f"{journal.parents[1]} is younger than its trials. Copy runs with their times (cp -p).")
    return seconds


def run_of(settings: Settings, folder: Path, seconds: float | None = None) -> Path:
    """A run that ends by itself, or when as many seconds are over from the start of the program.

    done.json keeps the seconds from there to its last trial.
    """
    if (folder / "done.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)  # of a start that was broken off: its time is not known
    file = folder.parent / f"{folder.name}.toml"
    file.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True)))
    program = str(Path(sys.executable).parent / "iconoclast")
    command = [program, "run", "--config", str(file), "--out", str(folder)]
    began = time.time()
    peer.run_for(command, folder, seconds, {**os.environ, "HF_HUB_OFFLINE": "1"})
    trials = peer.journal_of(folder / "iconoclast_study.jsonl").trials
    ended = max(trial.datetime_complete for trial in trials if trial.datetime_complete)
    write_json(folder / "done.json", {"seconds": ended.timestamp() - began})
    return folder


def front_edits(lm: LanguageModel, source: Path) -> list[Edit]:
    """The edits of a run's or a heretic study's front on the select prompts."""
    if source.is_dir():
        saved = SavedRun.open(RunFolder(source), "best")
        writers = lm.writers(saved.settings.components)
        return [
            trial.parameters.edit(saved.directions, writers, saved.settings.row_normalization)
            for trial in pareto_front(saved.trials)
        ]
    study = HereticStudy.read(source)
    sets = (
        load_prompts(s, study.settings.system_prompt) for s in (study.settings.good_prompts, study.settings.bad_prompts)
    )
    directions = heretic_directions(lm, study, *sets)
    front: list[Any] = []
    for trial in sorted(study.trials, key=lambda t: (t.refusals, t.kl_divergence)):
        if not front or trial.kl_divergence < front[-1].kl_divergence:
            front.append(trial)
    return [study.edit(trial, lm, directions) for trial in front]


def on_report(lm: LanguageModel, settings: Settings, edits: Sequence[Edit]) -> Iterator[Scores]:
    """Scores on the report prompts."""
    assert settings.bad_report_prompts and settings.good_report_prompts
    evaluator = Workbench(settings, lm).evaluator("report")
    for start in range(0, len(edits), AT_A_TIME):
        yield from evaluator.measure(edits[start : start + AT_A_TIME])


def front_on_report(lm: LanguageModel, settings: Settings, source: Path, cache: Path) -> dict[str, Any]:
    """Points and hypervolume of a front, measured on the report prompts."""
    if not cache.exists():
        points = [(s.failures.rate, s.kl_divergence) for s in on_report(lm, settings, front_edits(lm, source))]
        write_json(cache, {"points": points, "hypervolume": hypervolume(points, REFERENCE)})
    document: dict[str, Any] = json.loads(cache.read_text())
    return document


def match(lm: LanguageModel, model: Path, files: dict[str, Path], arguments: argparse.Namespace) -> None:
    out, results = arguments.out, []
    (out / "more").mkdir(exist_ok=True)
    more = peer.write_prompts(arguments.data, out / "more", arguments.time_requests, arguments.knowledge)
    for seed in range(arguments.seeds):
        settings = settings_of(model, more, arguments, seed)
        journal = heretic_run(model, files, out, arguments, seed)
        seconds = seconds_of(journal)
        told = {
            "fit": {"n_trials": arguments.fit_trials, "fit_steps": arguments.fit_steps},
            "search": {"n_trials": 10_000, "fit": False},
        }
        runs = [
            run_of(
                settings.model_copy(update=told[name]),
                out / f"iconoclast-{name}-{seed}",
                seconds if name == "search" else None,
            )
            for name in arguments.runs
        ]
        original = out / f"original-{seed}"
        others = [original_run(model, files, original, arguments, seed, seconds)] if arguments.original else []
        settings = settings.model_copy(update={"dtypes": [arguments.dtype]})
        result = out / f"match-{seed}-{arguments.dtype}.json"
        if not result.exists():
            with packed(lm.model):
                subjects = [
                    PeerSubject(peer_trial(journal, "best", settings.kl_divergence_target)),
                    *(RunSubject(run, SavedRun.open(RunFolder(run), "best")) for run in runs),
                    *(ModelSubject(str(adapter)) for adapter in others),
                ]
                comparison = compare(subjects, settings)
                fronts = [
                    front_on_report(lm, settings, source, out / f"front-{seed}-{source.stem}-{arguments.dtype}.json")[
                        "hypervolume"
                    ]
                    for source in (journal, *runs)
                    if not arguments.no_fronts
                ]
            summaries = {
                run.name: {
                    "seconds": json.loads((run / "done.json").read_text())["seconds"],
                    **{
                        key: value
                        for key, value in json.loads((run / "batch_summary.json").read_text()).items()
                        if key in ("completed_trials", "pruned_trials", "fitted_trials")
                    },
                }
                for run in runs
            }
            write_json(
                result,
                {
                    "comparison": comparison.document().document(),
                    "hypervolumes": fronts,
                    "runs": summaries,
                    "heretic_seconds": seconds,
                },
            )
        results.append(json.loads(result.read_text()))
        print_match(seed, results[-1])
    print_medians(results, ["heretic", *arguments.runs, *(["original"] if arguments.original else [])])


def row(name: str, metrics: dict[str, Any], hypervolume_of: float | None) -> str:
    """One line of a table."""

    def counted(key: str) -> str:
        low, high = metrics[key]["interval"]
        return f"{metrics[key]['count']}/{metrics[key]['n']} ({low:.0%}-{high:.0%})"

    def mean(key: str) -> str:
        low, high = metrics[key]["interval"]
        return f"{metrics[key]['value']:.4f} ({low:.4f}-{high:.4f})"

    cells = [name, *map(counted, ("refusals", "broken", "soft_refusals", "overrefusals"))]
    cells += [mean("first_token_kl"), mean("token_kl"), "" if hypervolume_of is None else f"{hypervolume_of:.3f}"]
    return f"| {' | '.join(cells)} |"


HEADER = (
    "| | refusals | broken | soft refusals | overrefusals | first-token KL | KL over 32 tokens | hypervolume |\n"
    "|---|---|---|---|---|---|---|---|"
)


def print_match(seed: int, result: dict[str, Any]) -> None:
    comparison = result["comparison"]
    print(f"\nSeed {seed}: heretic {result['heretic_seconds']:.0f} s; {json.dumps(result['runs'])}")
    print(HEADER)
    print(row("base", comparison["base_metrics"], None))
    for subject, volume in zip_longest(comparison["subjects"], result["hypervolumes"]):
        print(row(subject["name"], subject["metrics"], volume))
    for pair in comparison["pairs"]:
        tests = pair["paired"]
        print(
            f"  {pair['first']} / {pair['second']}: {pair['verdict']}; failures p = {tests['failures']['p_value']:.2g}; "
            f"first-token KL {tests['first_token_kl']['value']:+.4f} {[round(x, 4) for x in tests['first_token_kl']['interval']]}, "
            f"tokens {tests['token_kl']['value']:+.4f} {[round(x, 4) for x in tests['token_kl']['interval']]}",
            flush=True,
        )


def print_medians(results: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
    print(f"\nMedians of {len(results)} seeds")
    for number, name in enumerate(names):
        metrics = [result["comparison"]["subjects"][number]["metrics"] for result in results]
        volumes = [volume for result in results for volume in result["hypervolumes"][number : number + 1]]
        counts = (
            f"{key} {statistics.median(m[key]['count'] for m in metrics):g}"
            for key in ("refusals", "broken", "overrefusals")
        )
        kl = (
            f"{key} {statistics.median(m[key]['value'] for m in metrics):.4f}" for key in ("first_token_kl", "token_kl")
        )
        volume = [f"hypervolume {statistics.median(volumes):.3f}"] if volumes else []
        print(f"  {name:>25}: {', '.join([*counts, *kl, *volume])}")


def ablation_row(name: str, measured: Sequence[dict[str, Any]], volumes: Sequence[float] = ()) -> str:
    """One line of the table, the seeds side by side."""
    failures = (f"{m['refusals']['count'] + m['broken']['count']}/{m['refusals']['n']}" for m in measured)
    over = (f"{m['overrefusals']['count']}/{m['overrefusals']['n']}" for m in measured)
    kl = (f"{m['kl_divergence']:.4f}" for m in measured)
    shown = f"{statistics.median(volumes):.3f} ({', '.join(f'{volume:.3f}' for volume in volumes)})" if volumes else ""
    return f"| {name} | {', '.join(failures)} | {', '.join(over)} | {', '.join(kl)} | {shown} |"


def ablations(lm: LanguageModel, model: Path, files: dict[str, Path], arguments: argparse.Namespace) -> None:
    print("| | failures | overrefusals | first-token KL | hypervolume, median (seeds) |\n|---|---|---|---|---|")
    for name, changes in ABLATIONS.items():
        slug = name.replace(" ", "-").replace(",", "")
        reports, volumes = [], []
        for seed in range(arguments.seeds):
            folder = arguments.out / f"ablation-{slug}-{seed}"
            given = {**changes, "fit": False, "n_trials": arguments.ablation_trials, "study_checkpoint_dir": folder}
            settings = settings_of(model, files, arguments, seed).model_copy(update=given)
            if not (folder / "done.json").exists():
                search(settings)
                write_json(folder / "done.json", {})
            reports.append(json.loads((folder / "batch_summary.json").read_text())["report"])
            with packed(lm.model):
                cache = arguments.out / f"ablation-{slug}-{seed}.json"
                volumes.append(front_on_report(lm, settings, folder, cache)["hypervolume"])
        if name == "default":
            print(ablation_row("base model", [report["base_metrics"] for report in reports]))
            draws = [report["random_control"]["draws"][0] for report in reports]
            print(ablation_row("random direction, default's strengths", draws))
        print(ablation_row(name, [report["metrics"] for report in reports], volumes), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with requests.jsonl and knowledge.jsonl")
    parser.add_argument("--heretic", help="the heretic program, in an environment of its own")
    parser.add_argument("--original", help="Python of an environment that has iconoclast-llm 0.2.1, a third tool")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; what is there is not done again"
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--ablations", action="store_true")
    parser.add_argument(
        "--unseen", action="store_true", help="report on requests of intents that fitted and chose nothing"
    )
    parser.add_argument("--dtype", default="bfloat16", help="the type in which all edits are examined")
    parser.add_argument("--no-fronts", action="store_true", help="compare the chosen edits only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", nargs="+", choices=("fit", "search"), default=["fit", "search"])
    parser.add_argument("--fit-steps", type=int, default=120)
    parser.add_argument("--fit-trials", type=int, default=4, help="trials before the fit, the standard ones first")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--ablation-trials", type=int, default=48)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--knowledge", type=int, default=64)
    parser.add_argument(
        "--time-requests", type=int, default=96, help="select prompts of ICONOCLAST's run of equal time"
    )
    parser.add_argument("--report", type=int, default=256, help="report prompts of each kind")
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    arguments.heretic_trials, arguments.quick = None, False
    arguments.out, arguments.data = arguments.out.resolve(), arguments.data.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.unseen:
        arguments.data = of_unseen_intents(arguments.data, arguments.out / "data")
    files = peer.write_prompts(arguments.data, arguments.out, arguments.requests, arguments.knowledge)
    lm = load_model(arguments.model, dtypes=[arguments.dtype])
    model = Path(resolve(arguments.model))
    (ablations if arguments.ablations else match)(lm, model, files, arguments)


if __name__ == "__main__":
    main()
