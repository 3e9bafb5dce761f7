"""A run that is killed again and again, whatever it is doing, ends where an undisturbed one does."""

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.cli.test_run import config, summary
from tests.support.processes import finished, started

pytestmark = pytest.mark.slow

__all__ = ["config"]  # the fixture

KILLS = 10


def trials_in(folder: Path) -> list[tuple[int, str, dict[str, object], list[float] | None]]:
    storage = JournalStorage(JournalFileBackend(str(folder / "iconoclast_study.jsonl")))
    study = optuna.load_study(study_name="iconoclast", storage=storage)
    return [(t.number, t.state.name, t.params, t.values) for t in study.get_trials(deepcopy=False)]


def whole(file: Path) -> bool:
    """Check that a file can be read, if it is there."""
    if not file.exists():
        return True
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def test_ten_kills_lose_nothing_and_change_nothing(config: Path, tmp_path: Path) -> None:
    arguments = ("run", "--config", config, "--n-trials", 24, "--trials-per-batch", 2, "--n-startup-trials", 4)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    began = time.monotonic()
    assert finished(*arguments, "--out", undisturbed).returncode == 0
    lasted = time.monotonic() - began
    moments, kills, resumed = random.Random(0), 0, 0
    seen: list[tuple[int, str, dict[str, object], list[float] | None]] = []
    while kills < KILLS:
        process, began = started(*arguments, "--out", folder), time.monotonic()
        try:
            code = process.wait(moments.uniform(0.3, 1.0) * lasted)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:  # it came to its end before the next kill: the next one begins anew
            assert code == 0
            lasted = min(lasted, time.monotonic() - began)  # the first one waited for the server's imports, too
            require_equal(folder, undisturbed)
            shutil.rmtree(folder)
            seen = []
            continue
        for name in ("manifest.json", "baseline.json", "batch_summary.json"):
            assert whole(folder / name), name
        done = (
            [t for t in trials_in(folder) if t[1] in ("COMPLETE", "PRUNED")]
            if (folder / "iconoclast_study.jsonl").exists()
            else []
        )
        assert seen == done[: len(seen)]  # what was measured stays as it was
        seen = done
        resumed += bool(seen)
    assert finished(*arguments, "--out", folder).returncode == 0
    require_equal(folder, undisturbed)
    assert resumed, "no kill came between the first trial and the last"


def require_equal(folder: Path, undisturbed: Path) -> None:
    """The same trials, the same scores, the same report, the same texts."""
    assert trials_in(folder) == trials_in(undisturbed)
    assert len(trials_in(folder)) == 24
    for key in ("pareto_trials", "best_trial", "base_metrics", "report", "completed_trials", "pruned_trials"):
        assert summary(folder)[key] == summary(undisturbed)[key], key
    assert (folder / "samples.jsonl").read_bytes() == (undisturbed / "samples.jsonl").read_bytes()
