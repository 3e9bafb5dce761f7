"""status, list, replay and verify, as a user types them."""

import json
from pathlib import Path

import pytest

from tests.support.entry_point import QUICK, iconoclast, write_prompts


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    assert iconoclast("run", tiny_folder, *QUICK, "--out", "runs/one").code == 0
    return Path("runs/one")


def test_status_and_list_say_how_runs_stand(run: Path) -> None:
    done = iconoclast("status", run)
    assert done.code == 0 and "runs/one: complete, 1 of 1 trials (0 pruned)." in done.out
    assert "Best trial so far: 0: " in done.out
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
        or "is no folder" in iconoclast("list", ".hidden").complaint
    )
    assert "holds no run" in iconoclast("status", "runs").complaint


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


def test_verify_ends_with_an_error_if_something_is_not_as_declared(run: Path, tiny_folder: Path) -> None:
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
