"""Trials of two runs in one export: what is measured of them, what the papers say, and that the files are as declared."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from iconoclast.config.schema import Settings
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import load_edit
from iconoclast.errors import ModelError
from iconoclast.library import search
from iconoclast.models.language_model import LanguageModel
from iconoclast.reports.pages.of_export import export_page
from iconoclast.runs.documents import Composition, TrialInformation
from iconoclast.runs.export import export_runs
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.verify import verify
from iconoclast.scores import Count, Scores
from tests.edits.test_live import token_ids
from tests.support.entry_point import iconoclast
from tests.support.tiny import save_tiny


@pytest.fixture
def runs(tiny_settings: Settings, tmp_path: Path) -> list[Path]:
    """A run, and another with other markers, prompts the other way round, components and row normalisation."""
    common = {"fit": False, "random_controls": 0, "n_trials": 4, "direction_methods": ["mean"], "prune_trials": False}
    first = tiny_settings.model_copy(update=common)
    swapped: dict[str, Any] = {
        name: getattr(first, name.replace("good", "x").replace("bad", "good").replace("x", "bad"))
        for name in Settings.model_fields
        if name.startswith(("good_", "bad_"))
    }
    other = {
        "components": ["mlp.down_proj"],
        "row_normalization": "full",
        "refusal_markers": ["oo", "nn", "ii"],
        "seed": 3,
    }
    second = first.model_copy(update={**swapped, **other, "study_checkpoint_dir": tmp_path / "other"})
    for settings in (first, second):
        search(settings)
    return [tmp_path / "run", tmp_path / "other"]


def test_two_runs_are_exported_together_and_their_interference_is_measured(
    runs: list[Path], tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    to = tmp_path / "both"
    done = iconoclast("export", f"{runs[0]}:0", "--with", f"{runs[1]}:1", "--format", "merged", "--to", to)
    assert done.code == 0, done.err
    assert "Each edit alone and together" in done.out
    told = TrialInformation.read(to / "trial_information.json")
    composed = told.composed
    assert composed is not None and [each.name for each in composed.trials] == ["run:0", "other:1"]
    assert [row.edits for row in composed.together] == [[], [0], [1], [0, 1]]
    assert composed.together[0].scores[0] == told.base_metrics and composed.together[3].scores[0] == told.live_metrics
    saved = SavedRun.open(RunFolder(runs[1]), "1")
    with saved.opened() as bench:
        alone = bench.evaluator("report").measure([saved.edit(bench.lm)])[0]
    measured = composed.together[2].scores[1]
    assert (measured.failures, measured.overrefusals) == (alone.failures, alone.overrefusals)
    assert measured.kl_divergence == pytest.approx(alone.kl_divergence, rel=1e-3)
    card = (to / "README.md").read_text()
    assert "holds 2 edits, one after the other" in card and "| other:1 | run:0 + other:1 |" in card
    assert 'id="interference"' in export_page(to).html()
    assert (to / "iconoclast_config-2.toml").is_file()
    assert [check.passed for check in verify(to, tiny_lm.path, prompts=RunFolder(runs[0]).settings())] == [True] * 3
    edit, ids = load_edit(to / "edit.safetensors"), token_ids(2)
    assert {site.component for site in edit.parts[1].sites} == {"mlp.down_proj"} and len(edit.parts) == 2
    merged = AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)
    with torch.inference_mode(), LiveEdits(tiny_lm.writers(), [edit]).applied():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, tiny_lm.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4
        )


def test_an_adapter_of_two_runs_is_verified(runs: list[Path], tiny_folder: Path, tmp_path: Path) -> None:
    exported = export_runs([(runs[0], "0"), (runs[1], "0")], "adapter", tmp_path / "adapter")
    assert not exported.problem and exported.approximation_error > 0
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 6  # three for each
    checks = verify(tmp_path / "adapter", str(tiny_folder), prompts=RunFolder(runs[0]).settings())
    assert [check.passed for check in checks] == [True] * 3


def test_runs_of_other_weights_do_not_go_together(
    runs: list[Path], tiny_settings: Settings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = save_tiny(tmp_path_factory.mktemp("another"), seed=1)
    update = {"model": str(other), "study_checkpoint_dir": tmp_path / "third", "n_trials": 2, "fit": False}
    search(tiny_settings.model_copy(update=update))
    with pytest.raises(ModelError, match="their weights differ"):
        export_runs([(runs[0], "0"), (tmp_path / "third", "0")], "adapter", tmp_path / "x")
    done = iconoclast(
        "export", runs[0], "--with", runs[1], "--format", "merged", "--no-measure", "--to", tmp_path / "x"
    )
    assert done.code == 2 and "--no-measure" in done.err


def test_interference_is_said_where_intervals_part() -> None:
    trials = [{"name": n, "trial": TRIAL, "row_normalization": "pre", "prompts": {}, "split": "report"} for n in "ab"]

    def scores(*failures: int) -> list[Scores]:
        return [Scores(Count(n, 40), Count(0, 40), 0, 0.5, 0.1) for n in failures]

    rows = {(): (40, 40), (0,): (2, 40), (1,): (40, 3), (0, 1): (20, 4)}
    together = [{"edits": list(edits), "scores": scores(*counts)} for edits, counts in rows.items()]
    found = Composition.model_validate({"trials": trials, "together": together}).interference
    assert found == ["a: 2/40 (1% to 17%) refused or broken alone, 20/40 (35% to 65%) with b"]


TRIAL = {
    **Scores(Count(1, 2), Count(0, 2), 0, 0.5, 0.1).document(),
    "index": 0,
    "direction_method": "mean",
    "direction_scope": "global",
    "direction_index": 1.0,
    "direction_blend": None,
    "parameters": {},
}
