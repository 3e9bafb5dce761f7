"""The behaviours that come with the program on real models: how often a model shows one before and after its edit.

    .venv/bin/python benchmarks/packs.py --out FOLDER --models demo OTHER [--packs hedging language]
    .venv/bin/python benchmarks/packs.py --standard 24 --models demo GEMMA=plain

Every pair of model and pack is a run of its own: the standard edits, a fit from the better one, its copies at several strengths, the
choice on the selection prompts, and the chosen edit examined once on the report prompts of the pack. Runs that are in FOLDER
are not run again; one that was broken off goes on. With --standard nothing is chosen or fitted: the first edit that every search
begins with, its direction from the first 24 fit prompts of each side, on the first 24 report prompts, in one process. MODEL=plain
gives a model without a chat template the program's own.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from iconoclast.config.packs import known_packs
from iconoclast.config.schema import PromptSource, Settings
from iconoclast.edits.edit import Edit
from iconoclast.evaluation.intervals import mean_interval
from iconoclast.evaluation.model_scores import ModelScores
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed
from iconoclast.runs.trials import search_space
from iconoclast.runs.workbench import Workbench
from iconoclast.scores import Scores

HEADER = (
    "| model | pack | shown by the base | after the edit | broken, before and after | benign, before and after | "
    "first-token KL | KL over tokens |\n|---|---|---|---|---|---|---|---|"
)

TOKENS = 32
"""Tokens of the base model's responses along which KL is taken, as in runs."""


def run(model: str, pack: str, folder: Path, settings: list[str]) -> dict[str, Any]:
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
    sources = {
        f"{role}{kind}_prompts": PromptSource(dataset=f"builtin:{pack}/{side}", split=f"{split}[:{prompts}]")
        for role, side in (("good", "benign"), ("bad", "target"))
        for kind, split in (("", "fit"), ("_evaluation", "select"), ("_report", "report"))
    }
    settings = Settings(behavior=pack, **sources)
    bench = Workbench(settings, lm)
    bench.directions = bench.estimate_directions(*bench.residuals())
    space = search_space(settings, lm.layers)
    edit = bench.edit(space.parameters(space.standard()[0]))
    base, edited = bench.evaluator("report").measure([Edit.nothing(), edit])
    benign = lm.encode(bench.sample.benign.prompts)
    (along,) = ModelScores(lm, benign, ["token_kl"], TOKENS, (0, 128), settings.components).measure([edit])
    divergences = {"first_token_kl": mean_interval(edited.kl_by_prompt).document(), "token_kl": vars(along["token_kl"])}
    return {"report": {"base_metrics": counts(base), "metrics": counts(edited) | divergences}}


def counts(scores: Scores) -> dict[str, Any]:
    return {name: getattr(scores, name).document() for name in ("refusals", "broken", "overrefusals")}


def row(model: str, pack: str, summary: dict[str, Any]) -> str:
    """A line of the table."""
    report = summary.get("report")
    if not report:
        return f"| {model} | {pack} | no result: see its log | | | | | |"
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
    return f"| {' | '.join([model, pack, *shown, mean('first_token_kl'), mean('token_kl')])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("packs"), help="folder of the runs")
    parser.add_argument("--models", nargs="+", default=["demo"])
    parser.add_argument("--packs", nargs="+", default=known_packs())
    parser.add_argument("--standard", type=int, help="prompts of every set for the standard edit, in place of runs")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[], help="further options of `iconoclast run`")
    arguments = parser.parse_args()
    print(HEADER, flush=True)
    with ExitStack() as stack:
        models: dict[str, LanguageModel] = {}
        if arguments.standard is None:
            arguments.out.mkdir(parents=True, exist_ok=True)
        else:
            parts = {model: model.partition("=") for model in arguments.models}
            models = {model: load_model(name, chat_template=own or None) for model, (name, _, own) in parts.items()}
            for lm in models.values():
                stack.enter_context(packed(lm.model))
        for pack in arguments.packs:
            for model in arguments.models:
                name = Path(model.partition("=")[0]).name
                if lm := models.get(model):
                    summary = standard(lm, pack, arguments.standard)
                else:
                    summary = run(model, pack, arguments.out / f"{name}-{pack}", arguments.settings)
                print(row(name, pack, summary), flush=True)


if __name__ == "__main__":
    main()
