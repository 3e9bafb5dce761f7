"""A disk that becomes full, or read-only, in the middle of a run: one clear line, and nothing is lost."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iconoclast.errors import RunFolderError
from iconoclast.files import write_whole
from tests.cli.test_kills import require_equal
from tests.cli.test_run import config, trials_of, wait_for_line
from tests.support.processes import finished, started

pytestmark = pytest.mark.slow

__all__ = ["config"]  # the fixture


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            return


def mend(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw,size=8m", disk], check=True)
    (disk / "filler").unlink(missing_ok=True)


def test_a_run_ends_with_one_line_and_goes_on_when_there_is_room(config: Path, disk: Path, tmp_path: Path) -> None:
    arguments = ("run", "--config", config, "--n-trials", 24, "--trials-per-batch", 2, "--n-startup-trials", 4)
    run = disk / "run"
    process = started(*arguments, "--out", run)
    wait_for_line(process, "Trial 1:")
    process.send_signal(signal.SIGSTOP)
    fill(disk)
    process.send_signal(signal.SIGCONT)
    said = process.stderr.read()
    assert process.wait(60) == 2 and said.count("Error: ") == 1 and "Traceback" not in said, said
    assert "No space left on device" in said and "give the same command again" in said
    mend(disk)
    assert 2 <= trials_of(run) < 24
    assert finished(*arguments, "--out", run).returncode == 0
    assert finished(*arguments, "--out", tmp_path / "undisturbed").returncode == 0
    require_equal(run, tmp_path / "undisturbed")


def test_a_file_system_that_has_become_read_only_is_one_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", b"before")

    def refused(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(RunFolderError, match="cannot be written: Read-only file system"):
        write_whole(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_an_export_to_a_full_disk_is_one_line_and_leaves_nothing(
    kind: str, config: Path, disk: Path, tmp_path: Path
) -> None:
    assert finished("run", "--config", config, "--out", tmp_path / "run", "--n-trials", 3).returncode == 0
    fill(disk)
    done = finished("export", tmp_path / "run", "--format", kind, "--to", disk / "export")
    assert done.returncode == 2, done.stderr
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    assert [entry.name for entry in disk.iterdir()] == ["filler"]
