"""Models beside one another: whoever made them, on the same prompts, and a verdict that noise does not decide."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from iconoclast.config import Settings
from iconoclast.errors import ModelError, RunFolderError, SettingsError
from iconoclast.evaluation.examine import Examination
from iconoclast.evaluation.measure import Scores
from iconoclast.evaluation.statistics import Count
from iconoclast.library import search
from iconoclast.runs.comparison import compare, settings_for, verdict
from iconoclast.runs.export import export_run
from iconoclast.runs.subjects import ModelSubject, RunSubject, find_subject


@pytest.fixture
def finished(tiny_settings: Settings) -> Path:
    settings = tiny_settings.model_copy(update={"row_normalization": "none"})
    search(settings)
    assert settings.study_checkpoint_dir is not None
    return settings.study_checkpoint_dir


def test_a_run_its_adapter_and_its_merged_weights_measure_the_same(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    export_run(finished, "best", "merged", tmp_path / "merged")
    subjects = [find_subject(str(path)) for path in (finished, tmp_path / "adapter", tmp_path / "merged")]
    result = compare(subjects, settings_for(subjects))
    assert [e.name for e in result.examinations][1:] == ["adapter", "merged"]
    live = result.examinations[0]
    for other in result.examinations[1:]:
        assert [a.response for a in other.target] == [a.response for a in live.target]
        assert other.token_kl == pytest.approx(live.token_kl, abs=1e-4)
        assert verdict(live, other, 1e-3) == {"better": None, "decided_by": None}
    assert result.sample.split == "report" and max(result.base.token_kl) < 1e-5
    document = result.document()
    json.dumps(document, allow_nan=False)
    assert len(document["pairs"]) == 3 and document["subjects"][0]["trial"]["index"] >= 0
    (first, *_) = result.samples(1)
    assert set(first["responses"]) == {"base model", *(e.name for e in result.examinations)}


def test_subjects_are_found_by_what_is_there(finished: Path, tmp_path: Path, tiny_folder: Path) -> None:
    run = find_subject(str(finished))
    assert isinstance(run, RunSubject)
    again = find_subject(str(finished / "iconoclast_study.jsonl"))
    assert isinstance(again, RunSubject) and again.saved.trial == run.saved.trial
    numbered = find_subject(f"{finished}:{run.saved.trials[0].index}")
    assert isinstance(numbered, RunSubject) and numbered.saved.trial.index == run.saved.trials[0].index
    assert isinstance(find_subject(str(tiny_folder)), ModelSubject)
    with pytest.raises(RunFolderError, match="only runs and heretic journals have trials"):
        find_subject(f"{tiny_folder}:3")
    with pytest.raises(RunFolderError, match='no completed trial "99"'):
        find_subject(f"{finished}:99")


def test_without_a_run_or_settings_the_prompts_are_not_known(tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="--config"):
        settings_for([find_subject(str(tiny_folder))])


def test_an_adapter_of_another_model_is_a_clear_error(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    subjects = [find_subject(str(tmp_path / "adapter"))]
    with pytest.raises(ModelError, match="cannot be put on"):
        compare(subjects, settings_for([find_subject(str(finished))]))


def examination(base: Examination, name: str, refusals: int, overrefusals: int, kl: float) -> Examination:
    return replace(base, name=name, scores=Scores(Count(refusals, 20), Count(overrefusals, 20), 0, 0.5, kl))


@pytest.mark.parametrize(
    ("first", "second", "better", "decided_by"),
    [
        ((0, 5, 0.9), (1, 0, 0.1), "a", "failures"),
        ((1, 1, 0.9), (1, 2, 0.1), "a", "overrefusals"),
        ((1, 1, 0.9), (1, 1, 0.1), "b", "kl_divergence"),
        ((1, 1, 0.1004), (1, 1, 0.1), None, None),  # closer than noise
    ],
)
def test_the_verdict_is_lexicographic(
    first: tuple[int, int, float], second: tuple[int, int, float], better: str | None, decided_by: str
) -> None:
    base = Examination("base", Scores(Count(9, 20), Count(0, 20), 0, 0.5, 0.0), (), (), (), {}, (), 1, ())
    a, b = examination(base, "a", *first), examination(base, "b", *second)
    assert verdict(a, b, 0.001) == {"better": better, "decided_by": decided_by}
