"""status, list, replay, verify and RUN:N, as a user types them."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iconoclast.runs.workers import SignOfLife
from tests.support.entry_point import QUICK, iconoclast, write_prompts


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a finished run and its prompts, of which every test has its copy."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prompts(folder)
        assert iconoclast("run", tiny_folder, *QUICK, "--out", "runs/one").code == 0
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("runs/one")


def test_status_and_list_say_how_runs_stand(run: Path) -> None:
    done = iconoclast("status", run)
    assert done.code == 0 and "runs/one: complete, 1 of 1 trials (0 pruned)." in done.out
    assert "Best trial: 0: " in done.out and "Report, trial 0: " in done.out
    status = json.loads(iconoclast("status", run, "--json").out)
    assert (status["state"], status["finished"], status["best"]["index"]) == ("complete", 1, 0)
    summary = json.loads((run / "batch_summary.json").read_text())
    (run / "batch_summary.json").write_text(json.dumps({**summary, "status": "running"}))
    assert "interrupted" in iconoclast("status", run).out and "Continue it: " in iconoclast("status", run).out
    Path("runs/bad").mkdir()
    Path("runs/bad/iconoclast_config.toml").write_text("seed = [")
    listed = iconoclast("list", "runs")
    assert listed.code == 0 and "damaged" in listed.out
    assert "one" in listed.out and "interrupted" in listed.out and "1/1" in listed.out
    assert (
        "There is no run in" in iconoclast("list", ".hidden").complaint
        or "is not a folder. Give the one that holds your runs" in iconoclast("list", ".hidden").complaint
    )
    assert "holds no run" in iconoclast("status", "runs").complaint
    (run / "trial_information.json").write_text("{}")
    assert "is an export" in iconoclast("status", run).complaint


def test_replay_grades_and_names_the_drift(run: Path) -> None:
    done = iconoclast("replay", run, "--json", "replay.json")
    assert done.code == 0 and "trial 0: exact (every score is the same number)" in done.out
    assert "Same versions, machine, weights and prompts" in done.out
    assert json.loads(Path("replay.json").read_text())["grade"] == "exact"
    baseline = json.loads((run / "baseline.json").read_text())
    baseline["base_metrics"]["kl_divergence"] += 1
    (run / "baseline.json").write_text(json.dumps(baseline))
    changed = iconoclast("replay", run)
    assert (
        changed.code == 1
        and "base model: changed" in changed.out
        and "does not measure as it was recorded" in changed.complaint
    )


def test_verify_fails_if_something_is_not_as_declared(run: Path, tiny_folder: Path) -> None:
    assert iconoclast("export", run, "--to", "adapter").code == 0
    arguments = ("verify", "adapter", "--base", tiny_folder, "--config", run / "iconoclast_config.toml")
    good = iconoclast(*arguments, "--json", "verify.json")
    assert good.code == 0 and good.out.count("as declared") == 3
    assert [c["passed"] for c in json.loads(Path("verify.json").read_text())["checks"]] == [True, True, True]
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in Path("adapter").iterdir())
    Path("adapter/README.md").write_text("Nothing to see here.")
    bad = iconoclast(*arguments, "--no-measure")
    assert bad.code == 1 and "files: NOT AS DECLARED. README.md has changed" in bad.out
    assert "adapter is not what its papers say" in bad.complaint


# RUN:N

TAKES_A_TRIAL = [
    ["export", "{run}", "--to", "new"],
    ["chat", "{run}"],
    ["replay", "{run}"],
    ["benchmark", "{run}", "--tasks", "none"],
]


@pytest.mark.parametrize("arguments", TAKES_A_TRIAL, ids=lambda each: each[0])
def test_two_trials_of_one_run_are_one_clear_error(arguments: list[str], run: Path) -> None:
    pytest.importorskip("lm_eval") if arguments[0] == "benchmark" else None
    done = iconoclast(*(text.format(run=f"{run}:0") for text in arguments), "--trial", "1")
    assert done.code == 2 and "names trial 0, and --trial names trial 1" in done.complaint


@pytest.mark.parametrize(
    "arguments", [*TAKES_A_TRIAL, ["plot", "{run}"], ["status", "{run}"]], ids=lambda each: each[0]
)
def test_a_trial_behind_a_colon_must_exist(arguments: list[str], run: Path) -> None:
    pytest.importorskip("lm_eval") if arguments[0] == "benchmark" else None
    done = iconoclast(*(text.format(run=f"{run}:77") for text in arguments))
    assert done.code == 2 and 'no completed trial "77"' in done.complaint


def test_a_colon_means_the_same_as_trial(run: Path) -> None:
    both = (
        iconoclast("export", f"{run}:0", "--trial", "0", "--to", "first"),
        iconoclast("export", run, "--trial", "0", "--to", "other"),
    )
    assert [each.code for each in both] == [0, 0]
    assert both[0].out.replace("first", "other") == both[1].out
    assert iconoclast("replay", f"{run}:0").out == iconoclast("replay", run, "--trial", "0").out
    assert "Trial 0: " in iconoclast("status", f"{run}:0").out
    assert json.loads(iconoclast("status", f"{run}:0", "--json").out)["trial"]["index"] == 0


def test_a_path_that_exists_is_that_path(run: Path) -> None:
    named = run.rename(run.with_name("at 10:30"))
    done = iconoclast("status", named)
    assert done.code == 0 and "at 10:30: complete" in done.out and "Trial 30" not in done.out


# What they load, and how they are called


def test_a_continue_command_can_be_pasted(run: Path) -> None:
    summary = json.loads((run / "batch_summary.json").read_text())
    (run / "batch_summary.json").write_text(json.dumps({**summary, "status": "running"}))
    run = run.rename("my run")
    assert "--config 'my run/iconoclast_config.toml' --out 'my run'" in iconoclast("status", run).out


@pytest.mark.parametrize(
    "arguments", [["status", "runs/one"], ["list"], ["--help"], ["run", "--help"], ["config", "show"]], ids=" ".join
)
def test_what_reads_files_alone_loads_no_torch(arguments: list[str], run: Path) -> None:
    check = (
        "import sys; from iconoclast.cli.app import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(str([name for name in ('torch', 'optuna', 'transformers', 'datasets') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"


def test_cluster_status_shows_the_same_document(run: Path) -> None:
    plain, shared = (json.loads(iconoclast(*c, "status", run, "--json").out) for c in ((), ("cluster",)))
    assert plain.items() <= {**shared, "written": plain["written"]}.items()
    wanted = {"complete", "trials", "trials_per_hour", "jobs", "queue", "submitted", "workers"}
    assert wanted <= shared.keys()
    (run / "workers").mkdir()
    assert iconoclast("status", run).out == iconoclast("cluster", "status", run).out
    sign = SignOfLife(host="here", pid=1, started=time.time(), state="working", trials=3)
    (run / "workers" / "one.json").write_text(sign.model_dump_json())
    said = iconoclast("status", run).out
    assert "runs/one: working, 1 of 1 trials (0 pruned), 0 being measured, 0 handed back; " in said
    assert "Best trial so far: 0: " in said and "Report, trial 0: " in said
    assert "Worker one on here: working, 0 min, 3 trials measured." in said


@pytest.mark.parametrize("module", ["iconoclast", "iconoclast.cli"])
def test_the_package_can_be_run_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("iconoclast ")
