"""Processes that work on one run: signs of life, and the disk that they may fill."""

import json
import os
import time
from pathlib import Path

import pytest

from iconoclast.runs.folder import RunFolder
from iconoclast.runs.workers import Worker, workers_of


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


def test_a_sign_that_cannot_be_read_is_one_of_life(tmp_path: Path) -> None:
    worker = Worker(RunFolder(tmp_path))
    with worker.alive():
        worker.file.write_text('{"host": "here", "sta')
        (found,) = workers_of(RunFolder(tmp_path))
        assert (found.name, found.state, found.sign.host, found.sign.pid) == (worker.name, "starting", "?", 0)


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
