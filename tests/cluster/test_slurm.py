"""Slurm without a Slurm: time limits, and the batch scripts of jobs."""

import os
import subprocess
from pathlib import Path

import pytest

from iconoclast.cluster.slurm import JobOptions, minutes, script
from iconoclast.cluster.submit import SUBMISSION, submissions
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.runs.folder import RunFolder
from tests.support.cluster_runs import config, said

__all__ = ["config"]  # the fixture


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30", 30), ("90:00", 90), ("02:00:00", 120), ("0:30:30", 31), ("1-0", 1440), ("1-12:30", 2190), ("0:0:10", 1)],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "1h", "-5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid time"):
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


def test_the_temporary_folder_goes_however_the_job_ends(tmp_path: Path) -> None:
    options = JobOptions(scratch=tmp_path / "scratch", caches="job")
    for body, code in (("true", 0), ("false", 1), ("kill -TERM $$; sleep 1", 143), ('touch "$TMPDIR/x"; exit 7', 7)):
        text = "\n".join([*options.setup(tmp_path), 'test -d "$TMPDIR" || exit 99', body])
        done = subprocess.run(
            ["bash", "-c", text], env={**os.environ, "USER": "me", "SLURM_JOB_ID": "5"}, check=False, timeout=20
        )
        assert done.returncode == code
        assert list((tmp_path / "scratch").iterdir()) == []


def test_without_slurm_the_commands_say_so(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setenv("PATH", "/nowhere")
    printed = said("cluster", "submit", "--config", config, "--out", run, fails=True)
    assert "There is no sbatch here" in printed
    assert "The queue is not known" not in said("cluster", "status", run)  # nothing was submitted
    printed = said("cluster", "submit", "--config", config, "--time", "soon", "--out", run, fails=True)
    assert 'Error: --time "soon" is not a valid time' in printed


def test_a_damaged_submission_is_named(tmp_path: Path) -> None:
    place = tmp_path / "cluster" / "submission-1"
    place.mkdir(parents=True)
    (place / SUBMISSION).write_text('{"job": "12"}')
    with pytest.raises(RunFolderError, match=r"submission.json is damaged: workers: Field required. Delete it"):
        submissions(RunFolder(tmp_path))
    (place / SUBMISSION).unlink()
    (place / SUBMISSION).mkdir()
    with pytest.raises(RunFolderError, match="cannot be read: Is a directory"):
        submissions(RunFolder(tmp_path))
