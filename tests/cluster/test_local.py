"""Several processes of one machine on one run."""

import signal
import time
from pathlib import Path

import pytest

from iconoclast.cluster.local import shares
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.workers import workers_of
from tests.support.cluster_runs import config, require_whole, said, some_trials, started

__all__ = ["config"]  # the fixture


def test_processors_are_shared_out() -> None:
    assert shares(2, [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    assert shares(3, [0, 1]) == [[0], [1], [0]]
    assert shares(2, [4, 6, 8, 9, 11]) == [[4, 6], [8, 9]]


@pytest.mark.slow
def test_several_processes_of_this_machine_share_a_run(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("run", "--config", config, "--out", run, "--workers", 2, "--n-trials", 40)
    process = started(*arguments)
    end = time.monotonic() + 120
    while not some_trials(run, 4)() or len(workers_of(RunFolder(run))) < 2:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert {w.state for w in workers_of(RunFolder(run))} == {"interrupted"}
    printed = said(*arguments)
    assert "complete, 40 of 40 trials" in printed
    require_whole(run, 40)
    assert len(workers_of(RunFolder(run))) == 4


@pytest.mark.slow
def test_a_run_whose_workers_all_fail_says_why(config: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("benign_subspace_rank = 1", "benign_subspace_rank = 1\nseed = 3")
    config.write_text(text.replace("seed = 0\n", "", 1))
    run = tmp_path / "run"
    run.mkdir()
    (run / "workers").write_text("a file where a folder must be")
    printed = said("run", "--config", config, "--out", run, "--workers", 2, fails=True)
    assert "No worker came to the end" in printed and "cannot be used" in printed
