"""Runs and exports that version 0.1.0 has made are read, continued, measured again and exported by this version.

tests/fixtures/version-0.1.0 says how they were made. The commands work on a copy, as a user types them there.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from iconoclast.config.schema import Settings
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.pinned import changed_settings
from tests.support import entry_point

MADE = Path(__file__).parent / "fixtures" / "version-0.1.0"
ROUNDING = 1e-5
"""Nats within which a KL divergence is the same on another processor; other instruction sets move it by some 2e-7."""


@pytest.fixture(autouse=True)
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a copy of what was made."""
    shutil.copytree(MADE, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")


def iconoclast(*arguments: object) -> str:
    """What the command prints, which must end well."""
    done = entry_point.iconoclast(*arguments)
    assert done.code == 0, done.out + done.err
    return done.out


def read(file: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return document


def assert_continued(run: str, before: bytes, finished: int, trials: int) -> None:
    """The journal goes on after what it held, and only new trials were measured."""
    journal = Path(run, "iconoclast_study.jsonl").read_bytes()
    assert journal.startswith(before) and len(journal) > len(before)
    summary = read(f"{run}/batch_summary.json")
    assert summary["status"] == "complete"
    assert summary["completed_trials"] + summary["pruned_trials"] == trials
    log = Path(run, "log.txt").read_text(encoding="utf-8")
    assert f"{finished} trials are there already" in log
    assert [log.count(f"  Trial {number}: ") for number in range(trials)] == [1] * trials


def test_status_says_how_the_runs_stand() -> None:
    assert iconoclast("status", "run").startswith("run: complete, 8 of 8 trials (5 pruned).")
    status = json.loads(iconoclast("status", "run-interrupted", "--json"))
    assert (status["state"], status["finished"], status["n_trials"]) == ("interrupted", 6, 40)
    assert status["model"] == "model" and status["best"]["index"] == 0
    assert status["best"]["refusals"]["n"] == status["best"]["overrefusals"]["n"] == 10


def test_list_and_summarize_show_the_runs_and_no_export() -> None:
    rows = [line.split() for line in iconoclast("list", ".").splitlines()]
    runs = [row[:7] for row in rows if len(row) > 6 and "/" in row[3]]
    assert runs == [
        ["run", "model", "complete", "8/8", "0", "0/10", "0/10"],
        ["run-full", "model", "complete", "6/6", "3", "0/10", "0/10"],
        ["run-interrupted", "model", "interrupted", "6/40", "0", "0/10", "0/10"],
    ]
    iconoclast("summarize", "run", "run-full", "--json", "table.json")
    first, second = read("table.json")["runs"]
    assert (first["run"], first["trial"], second["run"], second["trial"]) == ("run", 0, "run-full", 3)
    assert first["version"] == "0.1.0" and first["prompts"] == "report"
    assert first["base"]["refusals"]["count"] == 8 and first["best"]["refusals"]["count"] == 0
    assert (
        first["best"]["first_token_kl"]["value"] == read("run/batch_summary.json")["report"]["metrics"]["kl_divergence"]
    )


def test_a_complete_run_goes_on_with_more_trials() -> None:
    journal, front = Path("run/iconoclast_study.jsonl").read_bytes(), read("run/batch_summary.json")["pareto_trials"]
    iconoclast("run", "--config", "run/iconoclast_config.toml", "--out", "run", "--n-trials", 10)
    assert_continued("run", journal, finished=8, trials=10)
    kept = [trial for trial in read("run/batch_summary.json")["pareto_trials"] if trial["index"] < 8]
    assert all({k: v for k, v in trial.items() if k != "fit"} in front for trial in kept)
    assert len(read("run/manifest.json")["starts"]) == 3


def test_an_interrupted_run_goes_on_to_its_end() -> None:
    journal = Path("run-interrupted/iconoclast_study.jsonl").read_bytes()
    iconoclast("run", "--config", "run-interrupted/iconoclast_config.toml", "--out", "run-interrupted")
    assert_continued("run-interrupted", journal, finished=6, trials=40)
    assert read("run-interrupted/batch_summary.json")["report"]["base_metrics"]["refusals"]["count"] == 8


@pytest.mark.parametrize(("asked", "trial"), [("run", 0), ("run --trial 5", 5), ("run-full", 3)])
def test_a_replay_measures_what_was_recorded(asked: str, trial: int) -> None:
    shown = iconoclast("replay", *asked.split(), "--json", "replay.json")
    assert "changed" not in shown
    replay = read("replay.json")
    assert replay["trial"] == trial and replay["grade"] in ("exact", "within noise")
    assert not [what for what in replay["changed"] if what.startswith("the ")]  # the weights of the model, the prompts
    for drift in replay["drifts"]:
        assert drift["after"]["refusals"] == drift["before"]["refusals"]
        assert drift["after"]["kl_divergence"] == pytest.approx(drift["before"]["kl_divergence"], abs=ROUNDING)


@pytest.mark.parametrize("export", ["adapter", "adapter-full", "merged"])
def test_an_export_is_what_its_papers_say(export: str) -> None:
    shown = iconoclast("verify", export, "--base", "model", "--config", "settings.toml").splitlines()
    assert [line.partition(".")[0] for line in shown] == [f"{x}: as declared" for x in ("files", "tensors", "scores")]


def test_an_export_made_now_is_the_one_made_then() -> None:
    assert "Difference of the export from the live edit: +0 refusals" in iconoclast("export", "run", "--to", "x")
    assert_close(load_file("x/adapter_model.safetensors"), load_file("adapter/adapter_model.safetensors"))
    now, then = read("x/trial_information.json"), read("adapter/trial_information.json")
    assert now.keys() == then.keys() and now["prompts"] == then["prompts"]


def test_evaluate_measures_what_the_report_says() -> None:
    shown = iconoclast("evaluate", "run:0", "--config", "settings.toml", "--json", "evaluation.json")
    assert "Report prompts: they chose nothing (10 target, 10 benign)" in shown
    evaluation, report = read("evaluation.json"), read("run/batch_summary.json")["report"]
    for now, then in (
        (evaluation["base_metrics"], report["base_metrics"]),
        (evaluation["subject"]["metrics"], report["metrics"]),
    ):
        assert now["refusals"] == then["refusals"] and now["overrefusals"] == then["overrefusals"]
        assert now["kl_divergence"] == pytest.approx(then["kl_divergence"], abs=ROUNDING)


def test_settings_that_a_run_did_not_know_are_what_it_had() -> None:
    assert "soft_refusal_rules" not in Path("run", "iconoclast_config.toml").read_text()
    assert RunFolder(Path("run")).settings().soft_refusal_rules == []
    assert not changed_settings(Settings(), Settings(soft_refusal_rules=[]))
