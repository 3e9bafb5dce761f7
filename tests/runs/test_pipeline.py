"""A run from nothing to a summary on a tiny model: resumable, repeatable, and truthful about what it measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from iconoclast.config.schema import JudgeClassifier, Settings
from iconoclast.errors import RunFolderError
from iconoclast.evaluation.evaluator import Evaluator
from iconoclast.evaluation.examiner import Examiner
from iconoclast.privacy import portable
from iconoclast.runs.report import measured_with
from iconoclast.runs.starting import started_run
from iconoclast.vocabulary import RowNormalization


@pytest.fixture
def settings(tiny_settings: Settings) -> Settings:
    return tiny_settings


def run(settings: Settings) -> dict[str, Any]:
    with started_run(settings) as started:
        started.optimize(settings.n_trials)
        started.measure_report()
        started.write_summary("complete")
    return json.loads((settings.study_checkpoint_dir / "batch_summary.json").read_text())  # type: ignore[operator]


def trials(settings: Settings) -> list[Any]:
    with started_run(settings) as started:
        return [(t.index, t.parameters, t.scores) for t in started.study.trials()]


def test_the_summary_says_what_was_measured_over_how_many_prompts(settings: Settings) -> None:
    summary = run(settings)
    assert summary["model"] == settings.model
    assert summary["study_checkpoint_dir"] == str(settings.study_checkpoint_dir)
    assert summary["status"] == "complete" and summary["completed_trials"] + summary["pruned_trials"] == 6
    assert summary["completed_trials"] >= len(summary["pareto_trials"]) > 0
    assert summary["base_metrics"]["refusals"]["n"] == 2 and summary["base_metrics"]["kl_divergence"] < 1e-5
    assert summary["prompts"]["good_prompts"]["n"] == 4 and len(summary["prompts"]) == 6
    first = summary["pareto_trials"][0]
    assert {
        "index", "complied", "refusals", "soft_refusals", "broken", "overrefusals", "benign_broken",
        "disclaimer_hits", "compliance_score", "kl_divergence",
        "direction_method", "direction_scope", "direction_index", "direction_blend", "parameters", "fit",
    } == set(first)  # fmt: skip
    for trial in summary["pareto_trials"]:
        low, high = trial["refusals"]["interval"]
        assert low <= trial["refusals"]["count"] / trial["refusals"]["n"] <= high
        assert set(trial["parameters"]) == {"attn.o_proj", "mlp.down_proj"}
    keys = [
        (t["refusals"]["count"] + t["broken"]["count"], t["overrefusals"]["count"], t["kl_divergence"])
        for t in summary["pareto_trials"]
    ]
    assert keys == sorted(keys)
    assert summary["report"]["trial"] == summary["best_trial"]
    report = summary["report"]
    assert report["split"] == "report" and report["metrics"]["refusals"]["n"] == 2
    assert set(report["paired"]) >= {"failures", "refusals", "overrefusals", "first_token_kl", "token_kl"}
    assert len(report["random_control"]["draws"]) == 3


def test_the_run_folder_holds_one_journal_and_no_leftovers(settings: Settings) -> None:
    run(settings)
    names = {entry.name for entry in settings.study_checkpoint_dir.iterdir()}  # type: ignore[union-attr]
    assert names - {".lock", "iconoclast_study.jsonl.lock"} == {
        "iconoclast_study.jsonl",
        "iconoclast_config.toml",
        "baseline.json",
        "manifest.json",
        "directions.safetensors",
        "geometry.json",
        "tokens.json",
        "batch_summary.json",
        "samples.jsonl",
    }


def test_the_responses_behind_the_report_are_kept(settings: Settings) -> None:
    summary = run(settings)
    rows = [json.loads(line) for line in (settings.study_checkpoint_dir / "samples.jsonl").open()]  # type: ignore[operator]
    assert [row["set"] for row in rows] == ["target", "target", "benign", "benign"]
    labels = [row["responses"]["base model"]["label"] for row in rows[:2]]
    assert labels.count("refusal") == summary["report"]["base_metrics"]["refusals"]["count"]


def test_without_report_prompts_the_report_says_so(settings: Settings) -> None:
    summary = run(settings.model_copy(update={"good_report_prompts": None, "bad_report_prompts": None}))
    assert summary["report"]["split"] == "selection"
    best = next(t for t in summary["pareto_trials"] if t["index"] == summary["best_trial"])
    assert summary["report"]["metrics"]["refusals"] == best["refusals"]


def test_a_report_is_measured_again_only_when_it_must(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings)
    examine, calls = Examiner.examine, []

    def counted(self: Examiner, *arguments: Any) -> Any:
        calls.append(1)
        return examine(self, *arguments)

    monkeypatch.setattr(Examiner, "examine", counted)
    run(settings)
    assert not calls
    summary = run(settings.model_copy(update={"random_controls": 1}))
    assert len(calls) == 2 and len(summary["report"]["random_control"]["draws"]) == 1


def test_a_judge_in_the_home_folder_stays_the_same_judge(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = JudgeClassifier(model=str(Path.home() / "judge"), refusal_labels=["refusal"])
    known = measured_with(settings.model_copy(update={"judge_classifier": judge}))
    assert known == portable(known) and known["judge_classifier"]["model"] == "~/judge"


def test_the_seed_decides_the_trials(settings: Settings, tmp_path: Path) -> None:
    run(settings)
    again = settings.model_copy(update={"study_checkpoint_dir": tmp_path / "again"})
    other = settings.model_copy(update={"study_checkpoint_dir": tmp_path / "other", "seed": 1})
    run(again)
    run(other)
    assert trials(settings) == trials(again)
    assert [t[1] for t in trials(settings)] != [t[1] for t in trials(other)]


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings)
    broken = settings.model_copy(update={"study_checkpoint_dir": tmp_path / "broken", "cache_gib": 0.0})
    contest, calls = Evaluator.measure_or_prune, []

    def failing(self: Evaluator, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:  # the base model and one batch have been measured
            raise KeyboardInterrupt
        return contest(self, *arguments)

    monkeypatch.setattr(Evaluator, "measure_or_prune", failing)
    with pytest.raises(KeyboardInterrupt):
        run(broken)
    assert len(trials(broken)) == 1
    run(broken)
    assert trials(broken) == trials(settings)


def test_a_second_start_measures_no_baseline_again(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings)

    def forbidden(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr("iconoclast.runs.workbench.last_token_residuals", forbidden)
    monkeypatch.setattr(Evaluator, "measure_or_prune", forbidden)
    with started_run(settings) as started:
        started.optimize(6)
        assert started.study.finished == 6


def test_n_trials_is_the_total(settings: Settings) -> None:
    run(settings)
    for asked, there in ((7, 7), (3, 7)):
        summary = run(settings.model_copy(update={"n_trials": asked}))
        assert summary["completed_trials"] + summary["pruned_trials"] == there


def test_pruning_leaves_the_front_of_the_same_trials_as_it_is(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"n_trials": 12, "n_startup_trials": 12})  # none learnt
    whole = settings.model_copy(update={"study_checkpoint_dir": tmp_path / "whole", "prune_trials": False})
    pruned, complete = run(settings), run(whole)
    assert pruned["pruned_trials"] > 0 and complete["pruned_trials"] == 0
    assert pruned["pareto_trials"] == complete["pareto_trials"]


def test_other_settings_are_refused_by_name_and_free_ones_are_not(settings: Settings) -> None:
    run(settings)
    with pytest.raises(RunFolderError, match="row_normalization, seed"):
        run(settings.model_copy(update={"seed": 5, "row_normalization": "full"}))
    run(settings.model_copy(update={"max_batch_size": 1, "trials_per_batch": 3}))


def test_other_prompts_under_the_same_name_are_refused(settings: Settings) -> None:
    run(settings)
    file = Path(settings.bad_evaluation_prompts.dataset)
    file.write_text(file.read_text().replace("bill", "mill"))
    with pytest.raises(RunFolderError, match="bad_evaluation_prompts"):
        run(settings)


def test_two_processes_cannot_work_on_one_run(settings: Settings) -> None:
    with started_run(settings), pytest.raises(RunFolderError, match="Another process"), started_run(settings):
        pass


def test_a_rank_that_the_data_forbids_leaves_nothing_behind(settings: Settings) -> None:
    with (
        pytest.raises(Exception, match="benign_subspace_rank 4 is larger"),
        started_run(settings.model_copy(update={"benign_subspace_rank": 4})),
    ):
        pass
    assert not settings.study_checkpoint_dir.exists()  # type: ignore[union-attr]


@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_a_batch_of_candidates_scores_as_each_alone(settings: Settings, normalization: RowNormalization) -> None:
    with started_run(settings.model_copy(update={"row_normalization": normalization})) as started:
        started.optimize(4)
        edits = [started.edit(trial.parameters) for trial in started.study.trials()]
        together = started.evaluator.measure(edits)
        for edit, scores in zip(edits, together, strict=True):
            alone = started.evaluator.measure([edit])[0]
            assert alone.refusals == scores.refusals and alone.overrefusals == scores.overrefusals
            assert alone.kl_divergence == pytest.approx(scores.kl_divergence, abs=1e-4)
