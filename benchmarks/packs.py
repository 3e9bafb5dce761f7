"""The behaviours that come with the program on real models: how often a model shows one before and after its edit.

    .venv/bin/python benchmarks/packs.py --out FOLDER --models demo OTHER [--packs hedging language]

Every pair of model and pack is a run of its own: the standard edits, a fit from the better one, its copies at several strengths, the
choice on the selection prompts, and the chosen edit examined once on the report prompts of the pack. Runs that are in FOLDER
are not run again; one that was broken off goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from iconoclast.config.packs import known_packs

HEADER = (
    "| model | pack | shown by the base | after the edit | broken, before and after | benign, before and after | "
    "first-token KL | KL over tokens |\n|---|---|---|---|---|---|---|---|"
)


def run(model: str, pack: str, folder: Path, settings: list[str]) -> dict[str, Any]:
    """Summary of a run, which is made unless it is there; without a report if the run ended without one."""
    command = [sys.executable, "-m", "iconoclast", "run", "--model", model, "--behavior", pack, "--out", str(folder)]
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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["demo"])
    parser.add_argument("--packs", nargs="+", default=known_packs())
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[], help="further options of `iconoclast run`")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(HEADER)
    for pack in arguments.packs:
        for model in arguments.models:
            name = Path(model).name
            summary = run(model, pack, arguments.out / f"{name}-{pack}", arguments.settings)
            print(row(name, pack, summary), flush=True)


if __name__ == "__main__":
    main()
