"""What needs no Slurm: options, scripts, signs of life, several processes of one machine."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from iconoclast.cluster.local import shares
from iconoclast.cluster.slurm import JobOptions, minutes, script
from iconoclast.errors import SettingsError
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.workers import Worker, workers_of
from tests.support.cluster_runs import config, require_whole, said, some_trials, started

__all__ = ["config"]  # the fixture


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("90:00", 90), ("02:00:00", 120), ("0:30:30", 31), ("1-0", 1440), ("1-12:30", 2190), ("0:0:10", 1)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "1h", "-5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no time"):
        minutes(text)


def test_a_script_is_valid_and_quotes_what_it_is_given(tmp_path: Path) -> None:
    run = tmp_path / "my run; rm -rf"
    options = JobOptions(workers=4, partition="a b", gpus=1, array_limit=2, caches="job", extra={"comment": "x y"})
    text = script(run, run / "source", options, ["python", "-m", "x", str(run)], "name")
    file = tmp_path / "work.sbatch"
    file.write_text(text)
    assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0
    assert "#SBATCH --partition='a b'" in text and "#SBATCH --array=0-3%2" in text
    assert f"srun --unbuffered python -m x '{run}'" in text
    assert "export HF_HUB_OFFLINE" not in text and "export HF_HUB_OFFLINE" in script(run, run, JobOptions(), ["x"], "n")


def test_the_temporary_folder_of_a_job_is_removed_however_it_ends(tmp_path: Path) -> None:
    options = JobOptions(scratch=tmp_path / "scratch", caches="job")
    for body, code in (("true", 0), ("false", 1), ("kill -TERM $$; sleep 1", 143), ('touch "$TMPDIR/x"; exit 7', 7)):
        text = "\n".join([*options.setup(tmp_path), 'test -d "$TMPDIR" || exit 99', body])
        done = subprocess.run(
            ["bash", "-c", text], env={**os.environ, "USER": "me", "SLURM_JOB_ID": "5"}, check=False, timeout=20
        )
        assert done.returncode == code
        assert list((tmp_path / "scratch").iterdir()) == []


def test_processors_are_shared_out() -> None:
    assert shares(2, [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    assert shares(3, [0, 1]) == [[0], [1], [0]]
    assert shares(2, [4, 6, 8, 9, 11]) == [[4, 6], [8, 9]]


def test_workers_are_known_by_their_signs_of_life(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    one, two = (Worker(folder, heartbeat=0.05, dead_after=1.0) for _ in range(2))
    with one.alive():
        with two.alive():
            two.says("working", trials=3)
            assert one.size() == 2 and not one.lost([two.name])
            time.sleep(1.2)
            assert not one.lost([two.name])  # its heart goes on beating
        assert one.lost([two.name]) and one.size() == 1
        assert one.lost(["somebody else", one.name]) == {"somebody else"}
        os.utime(two.file, (time.time() - 5,) * 2)
        document = json.loads(two.file.read_text())
        two.file.write_text(json.dumps({**document, "state": "working"}))
        os.utime(two.file, (time.time() - 5,) * 2)
        assert one.lost([two.name])
        assert {w.name: w.state for w in workers_of(folder)} == {one.name: "starting", two.name: "lost"}
    with pytest.raises(ZeroDivisionError), one.alive():
        raise ZeroDivisionError
    assert [w.state for w in workers_of(folder) if w.name == one.name] == ["failed"]


def test_a_worker_that_fills_its_disk_is_stopped(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    worker = Worker(RunFolder(tmp_path), heartbeat=0.05, max_disk=100_000, temporary=temporary)
    reasons: list[str] = []
    with worker.alive(reasons.append):
        (temporary / "small").write_bytes(bytes(1000))
        time.sleep(0.3)
        assert reasons == []
        (temporary / "large").write_bytes(bytes(200_000))
        time.sleep(0.3)
    assert len(reasons) == 1 and "more than --max-disk" in reasons[0]


@pytest.mark.slow
def test_several_processes_of_this_machine_share_a_run(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ("run", "--config", config, "--out", run, "--workers", 2, "--n-trials", 40)
    process = started(*arguments)
    end = time.monotonic() + 120
    while not some_trials(run, 4)():
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


def test_without_slurm_the_commands_say_so(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("PATH", "/nowhere")
    printed = said("cluster", "submit", "--config", config, "--out", run, fails=True)
    assert "There is no sbatch here" in printed
    assert "The queue is not known" not in said("cluster", "status", run)  # nothing was submitted
    printed = said("cluster", "submit", "--config", config, "--time", "soon", "--out", run, fails=True)
    assert 'Error: --time "soon" is no time' in printed
