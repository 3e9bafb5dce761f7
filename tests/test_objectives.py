"""Objectives: scores by name, what the search minimises of them, how trials are then compared, and what is said of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from iconoclast.config.layers import load_settings
from iconoclast.config.packs import load_pack
from iconoclast.config.schema import Settings, without_functions
from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.evaluation.model_scores import ModelScores, TaskScore
from iconoclast.goals import Objective, Objectives, estimate, short
from iconoclast.models.language_model import LanguageModel
from iconoclast.privacy import public
from iconoclast.runs import workbench
from iconoclast.runs.pinned import changed_settings, pinned_settings
from iconoclast.runs.replay import replay
from iconoclast.runs.starting import started_run
from iconoclast.scores import Bounds, Count, Scores
from iconoclast.search.pareto import Trial, best_trial, pareto_front
from iconoclast.search.space import EditParameters
from tests.support.entry_point import iconoclast


def trial(index: int, failures: int, kl: float, **own: float | None) -> Trial:
    scores = Scores(Count(failures, 20), Count(0, 20), 0, 0.5, kl, own=own, intervals={"tone": (0.0, 1.0)})
    return Trial(index, EditParameters(DirectionSpec(), {}), scores)


def test_the_default_objectives_compare_failures_overrefusals_and_kl() -> None:
    scores = Scores(Count(3, 20), Count(1, 20), 0, 0.5, 0.02, broken=Count(2, 20))
    assert Objectives().key(scores) == scores.key == (5, 1, 0.02)
    assert Objectives().bound(Bounds(4, 1, 0.01)) == (4, 1, 0.01)
    assert Objectives().prunable and Objectives(["failures", "kl"]).default
    assert pinned_settings(Settings()) == pinned_settings(Settings(objectives=["failures", "kl"]))
    assert "objectives" not in pinned_settings(Settings())
    assert changed_settings(Settings(), Settings(objectives=["failures", "token_kl"])) == ["objectives"]


def test_a_minus_maximises_and_what_is_unknown_is_worst() -> None:
    goals = Objectives(["-compliance", "overrefusals", "x.py:tone"])
    (known, lost) = (trial(0, 3, 0.1, tone=0.25).scores, trial(1, 3, 0.1, tone=None).scores)
    assert goals.values(known) == (-0.5, 0.0, 0.25)
    assert goals.values(lost) == (-0.5, 0.0, math.inf)
    assert goals.unknown(lost) == ["tone"] and not goals.unknown(known)
    assert goals.bound(Bounds(1, 2, 0.3)) == (-math.inf, 2, -math.inf) and not goals.prunable
    assert goals.shown(lost) == [
        ("compliance (maximised)", "0.5"),
        ("overrefusals", "0/20 (0% to 16%)"),
        ("tone", "unknown"),
    ]


def test_names_of_scores_lose_their_folders() -> None:
    names = ["kl", "/a/marks.py:tone", "perplexity:/a/text.txt", "arc_easy:acc[:100]", "/a/task.yaml[:3]"]
    assert list(map(short, names)) == ["kl", "tone", "perplexity:text.txt", "arc_easy:acc[:100]", "task.yaml[:3]"]
    shown = public({"objectives": ["-/a/marks.py:tone", "perplexity:/a/text.txt", "-arc_easy"]})
    assert shown == {"objectives": ["-marks.py:tone", "perplexity:text.txt", "-arc_easy"]}
    assert TaskScore.parse("arc_easy:acc_norm[:100]") == TaskScore("arc_easy", "acc_norm", 100)
    assert TaskScore.parse("arc_easy[:0]") is None


def test_the_front_and_the_best_trial_follow_the_objectives() -> None:
    trials = [
        trial(0, 1, 0.5, tone=0.9),
        trial(1, 9, 0.01, tone=0.1),
        trial(2, 9, 0.4, tone=0.2),
        trial(3, 5, 0.4, tone=0.5),
    ]
    assert [t.index for t in pareto_front(trials)] == [0, 3, 1]
    goals = Objectives(["m.py:tone", "failures"])
    front = pareto_front(trials, goals)
    assert [t.index for t in front] == [1, 3, 0]  # the KL divergence is no objective
    # The standard error of 0.1 with an interval up to 1 is 0.46: 0.5 is as good, and fails less often.
    best = best_trial(front, 0.1, goals)
    assert best is not None and best.index == 3
    assert goals.rule(0.1) == "best in failures of those within a standard error of the best tone"
    assert "within the KL target of 0.1" in Objectives(["m.py:tone", "kl"]).rule(0.1)
    maximised = Objective("-complied")
    assert maximised.tolerated(Scores(Count(0, 20), Count(0, 20), 0, 0.5, 0.0)) == pytest.approx(-19, abs=1)


@pytest.mark.parametrize(
    "texts", [["failures"], ["failures", ""], ["failures", "-"], ["kl", "-kl_divergence"], ["a.py:f", "b.py:f"]]
)
def test_fewer_than_two_scores_or_the_same_twice_are_refused(texts: list[str]) -> None:
    with pytest.raises(SettingsError, match="objectives"):
        load_settings({"objectives": texts})


def test_a_stranger_s_functions_and_files_are_left_out() -> None:
    settings = Settings(objectives=["a.py:f", "-t.yaml:acc", "perplexity:x.txt", "token_kl", "-arc_easy[:9]"])
    assert without_functions(settings).objectives == ["token_kl", "-arc_easy[:9]"]


def test_a_pack_s_files_are_those_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text("")
    (tmp_path / "text.txt").write_text("")
    sides = "\n".join(f'{side} = {{fit = ["a", "b"], select = ["c"]}}' for side in ("target", "benign"))
    objectives = ["-marks.py:tone", "perplexity:text.txt", "kl"]
    (tmp_path / "behavior.toml").write_text(
        f'name = "x"\ndescription = "y"\n{sides}\n[settings]\nobjectives = {json.dumps(objectives)}'
    )
    found = load_pack(str(tmp_path)).as_settings()["objectives"]
    assert found == [f"-{tmp_path}/marks.py:tone", f"perplexity:{tmp_path}/text.txt", "kl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("overrefusal", 'There is no score "overrefusal". Did you mean overrefusals?'),
        ("no.py:f", "there is no file no.py"),
        ("perplexity:no.txt", "perplexity:no.txt: no.txt cannot be read"),
        ("arc_easy[:none]", 'There is no score "arc_easy[:none]"'),
    ],
)
def test_what_is_not_there_is_said_before_the_model_is_loaded(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(workbench, "load_model", load)
    for update in ({"objectives": ["kl", f"-{name}"]}, {"constraints": [f"{name} >= 0"]}):
        settings = tiny_settings.model_copy(update=update)
        with pytest.raises(SettingsError) as raised, started_run(settings):
            pass
        assert message in str(raised.value) and "\n" not in str(raised.value)


MARKS = (
    "def letters(responses):\n    return sum(map(len, responses)) / len(responses)\n"
    "def faulty(responses, **others):\n    return 1 / 0\n"
)


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "marks.py").write_text(MARKS)
    (tmp_path / "text.txt").write_text("the rain in spain stays mainly in the plain " * 15)
    objectives = ["token_kl", f"-{tmp_path}/marks.py:letters", f"perplexity:{tmp_path}/text.txt"]
    return tiny_settings.model_copy(update={"objectives": objectives, "random_controls": 0})


def test_a_run_minimises_what_it_is_told_to(settings: Settings, tmp_path: Path) -> None:
    with started_run(settings) as run:
        run.optimize(settings.n_trials)
        run.finish()
        told = run.study.study.get_trials(deepcopy=False)
        trials, goals, best = run.trials(), run.objectives, run.best()
    for each in trials:
        assert told[each.index].values == list(goals.values(each.scores))
        assert estimate("letters", each.scores) is not None
        for name in ("token_kl", "perplexity:text.txt"):
            known = estimate(name, each.scores)
            assert known is not None and known.interval is not None
            assert known.interval[0] <= known.value <= known.interval[1]
    assert best is not None and best.index in {each.index for each in pareto_front(trials, goals)}
    summary = json.loads((tmp_path / "run" / "batch_summary.json").read_text())
    assert summary["objectives"][0] == "token_kl" and summary["best_trial"] == best.index
    report = summary["report"]["metrics"]
    assert report["own"]["token_kl"] == report["token_kl"]["value"]
    assert report["own"]["perplexity:text.txt"] == best.scores.own["perplexity:text.txt"]
    assert replay(tmp_path / "run", "best").grade == "exact"
    done = iconoclast("status", tmp_path / "run")
    assert "Objectives: token_kl" in done.out and "letters (maximised)" in done.out
    with (
        pytest.raises(RunFolderError, match="objectives"),
        started_run(settings.model_copy(update={"objectives": ["failures", "token_kl"]})),
    ):
        pass


def test_a_score_that_fails_is_unknown_and_never_success(settings: Settings, tmp_path: Path) -> None:
    failing = settings.model_copy(update={"objectives": ["kl", f"{tmp_path}/marks.py:faulty"], "n_trials": 4})
    with started_run(failing) as run:
        run.optimize(4)
        assert [each.scores.violated for each in run.trials()] == [("faulty is known",)] * 4
        told = run.study.study.get_trials(deepcopy=False)
    assert all(each.constraints == {"violated": 1.0} for each in told)  # infeasible to Optuna
    good, lost = trial(0, 9, 0.5, tone=0.5), trial(1, 0, 0.0, tone=None)
    lost = Trial(1, lost.parameters, Scores(**{**vars(lost.scores), "violated": ("tone is known",)}))
    assert [each.index for each in pareto_front([good, lost], Objectives(["kl", "m.py:tone"]))] == [0]


def scores_of(lm: LanguageModel, names: list[str]) -> ModelScores:
    benign = [list(range(5, 12)), list(range(20, 25))]
    return ModelScores(lm, benign, names, 4, (0, 8), ["attn.o_proj"])


def test_perplexity_is_that_of_the_text(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("What is a taxi? A car with a driver.")
    name = f"perplexity:{file}"
    (found,) = scores_of(tiny_lm, [name, "token_kl"]).measure([Edit.nothing()])
    ids = torch.tensor([tiny_lm.tokenizer.encode(file.read_text())])
    with torch.no_grad():
        loss = tiny_lm.model(input_ids=ids, labels=ids).loss
    perplexity, divergence = found["perplexity:text.txt"], found["token_kl"]
    assert perplexity is not None and perplexity.value == pytest.approx(math.exp(float(loss)), rel=1e-4)
    assert divergence is not None and divergence.value == pytest.approx(0, abs=1e-6)


TASK = """
task: things
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.slow
def test_a_task_of_lm_eval_is_a_score(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    items = [{"question": f"What is {i}?", "choices": ["abc", "xyz"], "answer": i % 2} for i in range(12)]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    task = tmp_path / "things.yaml"
    task.write_text(TASK.format(data=tmp_path / "items.jsonl", cache=tmp_path / "cache"))
    (found,) = scores_of(tiny_lm, [f"{task}[:8]"]).measure([Edit.nothing()])
    accuracy = found["things.yaml[:8]"]
    assert accuracy is not None and accuracy.interval is not None and (8 * accuracy.value) % 1 == 0
    with pytest.raises(SettingsError, match='the task has no metric "f1", but acc'):
        scores_of(tiny_lm, [f"{task}:f1"]).measure([Edit.nothing()])
