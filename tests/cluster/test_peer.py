"""A peer's program as a job: what it is given, and what is written of what it has done."""

import json
from pathlib import Path

import pytest

from iconoclast.cluster.peer import PeerJob
from iconoclast.config.schema import Settings
from iconoclast.errors import MeasurementError
from iconoclast.reports.summary import read_summary
from iconoclast.runs.folder import RunFolder
from tests.support.heretic_journals import SETTINGS, attributes, write_journal


@pytest.fixture
def run(tiny_settings: Settings) -> Path:
    assert tiny_settings.study_checkpoint_dir is not None
    folder = RunFolder(tiny_settings.study_checkpoint_dir)
    with folder.locked():
        folder.claim(tiny_settings)
    return folder.path


def job(run: Path, script: str) -> PeerJob:
    program = run.with_name("heretic")
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return PeerJob(run, program)


def test_what_a_peer_has_measured_is_a_summary_beside_the_run(run: Path, tmp_path: Path) -> None:
    measured = [
        attributes(1, 0.1, base_refusals=2, n_bad_prompts=2),
        attributes(0, 0.2, base_refusals=2, n_bad_prompts=2),
    ]
    journal = write_journal(tmp_path / "study.jsonl", [*measured, measured[1]], SETTINGS)
    peer = job(run, f"echo $@; mkdir checkpoints && cp {journal} checkpoints/model.jsonl; exit 1")
    assert peer() == "done" and peer.folder == run.with_name(f"{run.name}-heretic")
    assert (peer.folder / "log.txt").read_text().startswith("--model ")
    settings = (peer.folder / "config.toml").read_text()
    assert "n_startup_trials" in settings and "[bad_evaluation_prompts]" in settings
    summary = read_summary(peer.folder / "batch_summary.json")
    base, best = summary.measured("selection")
    assert (summary.tool, summary.completed_trials, summary.folder) == ("heretic", 3, peer.folder.name)
    assert best is not None and (str(base.refusals), str(best.refusals), best.kl_divergence) == ("2/2", "1/2", 0.1)
    assert [trial.index for trial in summary.pareto_trials] == [2, 1] and summary.overlap == {}
    assert None not in summary.fingerprints("selection")
    written = json.loads((peer.folder / "batch_summary.json").read_text())
    assert written["base_metrics"].keys() == {"refusals", "overrefusals", "kl_divergence"}


def test_a_peer_that_has_measured_nothing_is_told(run: Path) -> None:
    with pytest.raises(MeasurementError, match="measured nothing: see the log"):
        job(run, "true")()
