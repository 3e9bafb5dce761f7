"""The behaviours that come with the program on real models: how often a model shows one before and after edits.

    .venv/bin/python benchmarks/packs.py --out FOLDER --models demo OTHER [--quick] [--packs hedging language]
    .venv/bin/python benchmarks/packs.py --standard 24 --models demo GEMMA=plain

Every pair of model and pack is a run of its own: the standard edits, others that the search adds, a fit from the best, its copies at
several strengths, the choice on the select prompts. The first edit that every search begins with and the chosen one are examined
on the report prompts of the pack: two lines of the table. With --quick the standard edits alone are searched, the fit takes 40 steps
from 64 prompts a side, and 24 prompts of every set select and report. Runs that are in FOLDER are not run again; one that was broken
off goes on. With --standard nothing is chosen or fitted, and there is no folder: the first edit, its direction from the first 24 fit
prompts of each side, on the first 24 report prompts, in one process. MODEL=plain gives a model without a chat template the program's own.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from iconoclast.config.packs import known_packs
from iconoclast.config.schema import PromptSource, Settings
from iconoclast.edits.edit import Edit
from iconoclast.evaluation.intervals import mean_interval
from iconoclast.evaluation.model_scores import ModelScores
from iconoclast.files import write_json
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.trials import search_space
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores
from iconoclast.search.space import FittedParameters

HEADER = (
    "| model | pack | edit | shown by the base | after the edit | broken, before and after | benign, before and after | "
    "first-token KL | KL over tokens |\n|---|---|---|---|---|---|---|---|---|"
)
QUICK = [
    *("--n-trials", "8", "--fit-steps", "40", "--fit-examples", "64", "--random-controls", "0"),
    *(word for scale in ("0.6", "0.8", "1.0", "1.3") for word in ("--fit-scales", scale)),
    *("--target-select-prompts.split", "select[:24]", "--benign-select-prompts.split", "select[:24]"),
    *("--target-report-prompts.split", "report[:24]", "--benign-report-prompts.split", "report[:24]"),
]
"""A run of the standard edits and a short fit, on few prompts."""


def run(model: str, pack: str, folder: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Summary of a run, which is made unless it is there; without a report if the run ended without one."""
    name, _, template = model.partition("=")
    command = [sys.executable, "-m", "iconoclast", "run", "--model", name, "--behavior", pack, "--out", str(folder)]
    command += ["--chat-template", template] if template else []
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        subprocess.run(
            [*command, "--plain", "--exit-after-optimization", *settings],
            stdout=log,
            stderr=log,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    file = folder / "batch_summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def standard(lm: LanguageModel, pack: str, prompts: int) -> dict[str, Any]:
    """The same of the standard edit, measured on so many prompts of every set."""
    sources: dict[str, Any] = {
        f"{role}{kind}_prompts": PromptSource(dataset=f"builtin:{pack}/{side}", split=f"{split}[:{prompts}]")
        for role, side in (("good", "benign"), ("bad", "target"))
        for kind, split in (("", "fit"), ("_evaluation", "select"), ("_report", "report"))
    }
    settings = Settings(behavior=pack, **sources)
    bench = Workbench(settings, lm)
    bench.directions = bench.estimate_directions(*bench.residuals())
    space = search_space(settings, lm.layers)
    return examined(bench, bench.edit(space.parameters(space.standard()[0])))


def examined(bench: Workbench, edit: Edit) -> dict[str, Any]:
    """What the table says of an edit, on the report prompts."""
    base, edited = bench.evaluator("report").measure([Edit.nothing(), edit])
    s, benign = bench.settings, bench.lm.encode(bench.sample.benign.prompts)
    scores = ModelScores(bench.lm, benign, ["token_kl"], s.max_benign_response_length, (0, 128), s.components)
    (along,) = scores.measure([edit])
    divergences = {"first_token_kl": mean_interval(edited.kl_by_prompt).document(), "token_kl": vars(along["token_kl"])}
    return {"report": {"base_metrics": counts(base), "metrics": counts(edited) | divergences}}


def first_of(folder: Path) -> dict[str, Any]:
    """The same of the first edit of a run, which is kept beside the run."""
    file = folder.parent / f"{folder.name}.standard.json"
    if not file.exists():
        saved = SavedRun.open(RunFolder(folder), "0")
        with saved.opened() as bench:
            write_json(file, examined(bench, bench.edit(saved.trial.parameters)))
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def chosen(folder: Path, summary: dict[str, Any]) -> str:
    """Name the edit that a run has chosen."""
    saved = SavedRun.open(RunFolder(folder), str(summary["report"]["trial"]))
    parameters = saved.trial.parameters
    return f"fitted, times {parameters.scale:g}" if isinstance(parameters, FittedParameters) else "searched"


def rows_of_run(model: str, pack: str, folder: Path, settings: Sequence[str]) -> list[str]:
    """The lines of the table about a run: the standard edit and the chosen one."""
    name, summary = Path(model.partition("=")[0]).name, run(model, pack, folder, settings)
    if not summary.get("report"):
        return [row(name, pack, "", {})]
    return [row(name, pack, "standard", first_of(folder)), row(name, pack, chosen(folder, summary), summary)]


def counts(scores: Scores) -> dict[str, Any]:
    return {name: getattr(scores, name).document() for name in ("refusals", "broken", "overrefusals")}


def row(model: str, pack: str, edit: str, summary: dict[str, Any]) -> str:
    """A line of the table."""
    report = summary.get("report")
    if not report:
        return f"| {model} | {pack} | {edit} | no result: see its log | | | | | |"
    before, after = report["base_metrics"], report["metrics"]

    def counted(metrics: dict[str, Any], key: str) -> str:
        low, high = metrics[key]["interval"]
        return f"{metrics[key]['count']}/{metrics[key]['n']} ({low:.0%} to {high:.0%})"

    def both(key: str) -> str:
        return f"{before[key]['count']}, {after[key]['count']} of {after[key]['n']}"

    def mean(key: str) -> str:
        low, high = after[key]["interval"]
        return f"{after[key]['value']:.4f} ({low:.4f} to {high:.4f})"

    shown = [counted(before, "refusals"), counted(after, "refusals"), both("broken"), both("overrefusals")]
    return f"| {' | '.join([model, pack, edit, *shown, mean('first_token_kl'), mean('token_kl')])} |"


def processor_seconds() -> float:
    """Processor time of this process and those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("packs"), help="folder of the runs")
    parser.add_argument("--models", nargs="+", default=["demo"])
    parser.add_argument("--packs", nargs="+", default=known_packs())
    parser.add_argument("--quick", action="store_true", help="few trials, steps and prompts in every run")
    parser.add_argument("--standard", type=int, help="prompts of every set for the standard edit, in place of runs")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[], help="further options of `iconoclast run`")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    pairs = [(model, pack) for pack in arguments.packs for model in arguments.models]
    with ExitStack() as stack:
        models: dict[str, LanguageModel] = {}
        if arguments.standard is None:
            arguments.out.mkdir(parents=True, exist_ok=True)
        else:
            parts = {model: model.partition("=") for model in arguments.models}
            models = {model: load_model(name, chat_template=own or None) for model, (name, _, own) in parts.items()}
            for each in models.values():
                stack.enter_context(packed(each.model))
        for done, (model, pack) in enumerate(pairs, 1):
            name = Path(model.partition("=")[0]).name
            if lm := models.get(model):
                print(row(name, pack, "standard", standard(lm, pack, arguments.standard)), flush=True)
                continue
            settings = [*(QUICK if arguments.quick else []), *arguments.settings]
            print("\n".join(rows_of_run(model, pack, arguments.out / f"{name}-{pack}", settings)), flush=True)
            used = processor_seconds() / 60
            left = f"about {used / done * (len(pairs) - done):.0f} for the {len(pairs) - done} runs that are left"
            print(
                f"{used:.1f} minutes of processor time so far, {left} (less for what is done already)", file=sys.stderr
            )


if __name__ == "__main__":
    main()
