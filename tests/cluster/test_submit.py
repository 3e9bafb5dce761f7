"""One study on a real Slurm: to the end, and through everything that goes wrong on a cluster."""

import json
import os
import signal
from pathlib import Path

import pytest

from iconoclast.runs.folder import RunFolder
from iconoclast.runs.workers import workers_of
from tests.support.cluster_runs import config, require_whole, said, some_trials
from tests.support.heretic_journals import SETTINGS, attributes, write_journal
from tests.support.real_slurm import Slurm, slurm

pytestmark = pytest.mark.slow

__all__ = ["config", "slurm"]  # the fixtures

QUICK = ("--heartbeat", 0.5, "--dead-after", 4)
"""Workers that are missed soon."""


def finished(run: Path) -> int:
    """Trials that are done with."""
    trials = json.loads(said("cluster", "status", run, "--json"))["trials"]
    return int(trials["complete"]) + int(trials["pruned"])


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where jobs put their temporary files."""
    return tmp_path / "scratch"


def test_an_array_searches_one_study_to_the_end(slurm: Slurm, config: Path, tmp_path: Path, scratch: Path) -> None:
    run = tmp_path / "run"
    printed = said(
        "cluster", "submit", "--config", config, "--out", run, "--workers", 3, "--n-trials", 40, "--caches", "job",
        "--scratch", scratch, "--max-disk", 1, "--cpus", 1, "--time", "0:30:00", "--array-limit", 3, *QUICK,
    )  # fmt: skip
    assert "Submitted job" in printed
    slurm.wait(lambda: not slurm.jobs())
    require_whole(run, 40)
    workers = workers_of(RunFolder(run))
    assert [w.state for w in workers] == ["ended"] * 3
    assert sum(w.sign.trials for w in workers) == 40
    assert sum(w.sign.trials > 0 for w in workers) > 1
    assert json.loads((run / "manifest.json").read_text())["starts"]
    place = run / "cluster" / "submission-1"
    assert (place / "source" / "iconoclast" / "cli" / "app.py").is_file()
    assert (place / "iconoclast_config.toml").is_file()
    assert list(scratch.iterdir()) == []
    shown = said("cluster", "status", run)
    assert "complete, 40 of 40 trials" in shown and "none of its jobs is in it any more" in shown
    assert "has all its trials" in said("cluster", "submit", "--config", config, "--out", run, fails=True)


def test_what_goes_wrong_on_a_cluster_loses_no_trial(slurm: Slurm, config: Path, tmp_path: Path, scratch: Path) -> None:
    run, trials = tmp_path / "run", 100
    arguments = (
        "cluster",
        "submit",
        "--config",
        config,
        "--out",
        run,
        "--n-trials",
        trials,
        "--scratch",
        scratch,
        *QUICK,
    )
    said(*arguments, "--workers", 4)
    slurm.wait(some_trials(run, 10))
    (run / "iconoclast_study.jsonl.lock").touch()  # a lock file that nobody holds
    with (run / "iconoclast_study.jsonl").open("a") as journal:
        journal.write('{"op_code":4,"worker_')  # as a writer leaves it that dies

    first, second, third, *_ = (w for w in workers_of(RunFolder(run)) if not w.gone)
    os.kill(first.sign.pid, signal.SIGKILL)
    slurm("scontrol", "requeue", second.sign.job)
    slurm("scancel", "--signal=USR2", third.sign.job)  # what Slurm sends before the time is over
    slurm("scontrol", "update", f"NodeName={slurm.node}", "State=DRAIN", "Reason=test")
    said(*arguments, "--workers", 1)  # joins late, and when the node is back
    slurm.wait(some_trials(run, 30))
    slurm("scontrol", "update", f"NodeName={slurm.node}", "State=RESUME")
    slurm.wait(lambda: not slurm.jobs())
    require_whole(run, trials)
    workers = workers_of(RunFolder(run))
    states = [w.state for w in workers]
    assert "lost" in states and "interrupted" in states and states.count("ended") >= 2
    assert len(workers) > 4
    assert list(scratch.iterdir()) == []


def test_a_cancelled_study_goes_on_where_it_was(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said(
        "cluster", "submit", "--config", config, "--out", run, "--workers", 2, "--n-trials", 400, "--array-limit", 1,
        *QUICK,
    )  # fmt: skip
    slurm.wait(some_trials(run, 4))
    assert "working on the run" in said("run", "--config", config, "--out", run, fails=True)
    assert "Cancelled" in said("cluster", "cancel", run)
    slurm.wait(lambda: not slurm.jobs())
    left = finished(run)
    assert 4 <= left < 400
    assert json.loads(said("cluster", "status", run, "--json"))["trials"]["running"] == 0
    said("run", "--config", config, "--out", run, "--n-trials", left + 5)
    require_whole(run, left + 5)


def test_a_script_does_what_a_submission_does(slurm: Slurm, config: Path, tmp_path: Path, scratch: Path) -> None:
    run = tmp_path / "run"
    printed = said(
        "cluster", "script", "--config", config, "--out", run, "--workers", 2, "--n-trials", 40, "--sbatch",
        "comment=hello", "--scratch", scratch, *QUICK,
    )  # fmt: skip
    script = Path(printed.split("sbatch ", 1)[1].split("\n")[0])
    assert "--array=0-1" in script.read_text() and "--comment=hello" in script.read_text()
    assert not slurm.jobs()
    job = slurm("sbatch", "--parsable", script).strip()
    slurm.wait(some_trials(run, 4))
    slurm("scancel", "--signal=USR1", f"{job}_0")  # what Slurm sends before the time is over: queued again
    slurm.wait(lambda: not slurm.jobs())
    require_whole(run, 40)
    assert "interrupted" in {w.state for w in workers_of(RunFolder(run))}
    assert list(scratch.iterdir()) == []


HERETIC = """#!/bin/sh
mkdir -p checkpoints && cp {journal} checkpoints/model.jsonl
"""


def test_a_sweep_is_a_study_a_file_and_the_peer_beside_each(slurm: Slurm, config: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.toml"
    second.write_text(config.read_text().replace("seed = 0", "seed = 1"))
    program = tmp_path / "heretic"
    journal = write_journal(tmp_path / "study.jsonl", [attributes(1, base_refusals=2, n_bad_prompts=2)] * 6, SETTINGS)
    program.write_text(HERETIC.format(journal=journal))
    program.chmod(0o755)
    runs = tmp_path / "runs"
    printed = said(
        "cluster", "sweep", config, second, "--out", runs, "--sequential", "--n-trials", 6, "--heretic", program, *QUICK
    )
    assert printed.count(", afterany:") == 3
    assert len(slurm.jobs()) == 4
    slurm.wait(lambda: not slurm.jobs())
    require_whole(runs / "settings", 6)
    require_whole(runs / "second", 6)
    table = said("summarize", runs)
    assert "heretic" in table
