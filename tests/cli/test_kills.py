"""A run that is killed again and again, whatever it is doing, ends where an undisturbed one does."""

import json
import random
import subprocess
import time
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from test_commands import config, finished, started, summary

__all__ = ["config"]  # the fixture

KILLS = 10


def trials_in(folder: Path) -> list[tuple[int, str, dict[str, object], list[float] | None]]:
    storage = JournalStorage(JournalFileBackend(str(folder / "iconoclast_study.jsonl")))
    study = optuna.load_study(study_name="iconoclast", storage=storage)
    return [(t.number, t.state.name, t.params, t.values) for t in study.get_trials(deepcopy=False)]


def whole(file: Path) -> bool:
    """Whether a file can be read, if it is there."""
    if not file.exists():
        return True
    try:
        json.loads(file.read_text())
    except ValueError:
        return False
    return True


def test_ten_kills_at_random_moments_lose_nothing_and_change_nothing(config: Path, tmp_path: Path) -> None:
    arguments = ("run", "--config", config, "--n-trials", 24, "--trials-per-batch", 2, "--n-startup-trials", 4)
    began = time.monotonic()
    assert finished(*arguments, "--out", tmp_path / "undisturbed").returncode == 0
    lasted = time.monotonic() - began
    moments, seen, kills = random.Random(0), [], 0
    folder = tmp_path / "killed"
    while kills < KILLS:
        process = started(*arguments, "--out", folder)
        try:
            process.wait(moments.uniform(0.3, 1.0) * lasted)
            break  # it came to its end before the next kill
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        for name in ("manifest.json", "baseline.json", "batch_summary.json"):
            assert whole(folder / name), name
        done = (
            [t for t in trials_in(folder) if t[1] in ("COMPLETE", "PRUNED")]
            if (folder / "iconoclast_study.jsonl").exists()
            else []
        )
        assert seen == done[: len(seen)]  # what was measured stays as it was
        seen = done
    assert finished(*arguments, "--out", folder).returncode == 0
    assert kills >= 3, "the run ended before it could be killed a few times"
    assert trials_in(folder) == trials_in(tmp_path / "undisturbed")
    assert len(trials_in(folder)) == 24
    for key in ("pareto_trials", "best_trial", "base_metrics", "report", "completed_trials", "pruned_trials"):
        assert summary(folder)[key] == summary(tmp_path / "undisturbed")[key], key
    assert (folder / "samples.jsonl").read_bytes() == (tmp_path / "undisturbed" / "samples.jsonl").read_bytes()
    starts = json.loads((folder / "manifest.json").read_text())["starts"]
    assert len(starts) > 1
