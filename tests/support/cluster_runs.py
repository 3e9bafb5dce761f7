"""Runs of many processes in tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import tomli_w

from iconoclast.config.schema import Settings, settings_document
from iconoclast.search.storage import open_storage
from tests.support.entry_point import iconoclast


@pytest.fixture
def config(tiny_settings: Settings, tmp_path: Path) -> Path:
    file = tmp_path / "settings.toml"
    slow = {"max_response_length": 160, "max_benign_response_length": 60}  # a batch takes a third of a second
    document = settings_document(tiny_settings) | slow
    del document["study_checkpoint_dir"]
    file.write_text(tomli_w.dumps(document))
    return file


def said(*arguments: object, fails: bool = False) -> str:
    """What a command prints, called in this process."""
    done = iconoclast(*arguments)
    assert (done.code != 0) == fails, done.err + done.out
    return done.out + done.err


def started(*arguments: object) -> subprocess.Popen[bytes]:
    """A command as a process of its own."""
    command = [sys.executable, "-m", "iconoclast.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def some_trials(run: Path, count: int) -> Callable[[], bool]:
    """Whether there are so many trials: looked up in the summary, which is quick."""

    def there() -> bool:
        file = run / "batch_summary.json"
        if not file.is_file():
            return False
        summary = json.loads(file.read_text())
        return bool(summary["completed_trials"] + summary["pruned_trials"] >= count)

    return there


def require_whole(run: Path, trials: int) -> None:
    """The study has exactly these trials, each measured once, and the run its report."""
    summary = json.loads((run / "batch_summary.json").read_text())
    assert summary["status"] == "complete" and summary["report"] is not None
    assert summary["completed_trials"] + summary["pruned_trials"] == trials
    study = optuna.load_study(study_name="iconoclast", storage=open_storage(run / "iconoclast_study.jsonl"))
    outcomes = [number for t in study.get_trials() for number in t.user_attrs.get("outcomes", {})]
    assert sorted(map(int, outcomes)) == sorted(t.number for t in study.get_trials() if t.state.name != "FAIL")
    assert {t.state.name for t in study.get_trials()} <= {"COMPLETE", "PRUNED", "FAIL"}
