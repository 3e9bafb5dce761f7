"""Constraints: what they say, what becomes of trials that violate one, and scores of a user's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from iconoclast.config.layers import load_settings
from iconoclast.config.schema import Settings, without_functions
from iconoclast.constraints import Constraint, violated
from iconoclast.directions.estimators import DirectionSpec
from iconoclast.errors import RunFolderError, SettingsError
from iconoclast.evaluation.named import apply_measures
from iconoclast.runs.starting import started_run
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Trial, pareto_front
from iconoclast.search.space import EditParameters, FittedParameters
from tests.support.entry_point import iconoclast

BASE = Scores(Count(18, 20), Count(1, 20), 4, 0.3, 0.0, own={"tone": 0.5})
EDITED = Scores(Count(2, 20), Count(3, 20), 2, 0.6, 0.08, own={"tone": 0.3, "lost": None})


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("refusals <= 0.1", True),
        ("refusals<=0.09", False),
        ("overrefusals <= base", False),
        ("overrefusals <= base + 0.1", True),
        ("compliance >= base + 0.2", True),
        ("disclaimers <= 1e-1", True),
        ("kl_divergence <= 0.05", False),
        ("marks.py:tone >= base - 0.2", True),
        ("marks.py:tone >= base - 0.1", False),
        ("marks.py:tone <= 0.3", True),
        ("lost <= 1", False),  # what is unknown does not hold
        ("lost >= base", False),
    ],
)
def test_what_a_constraint_says(text: str, holds: bool) -> None:
    assert Constraint.parse(text).holds(EDITED, BASE) is holds
    assert (violated([text], EDITED, BASE) == ()) is holds


def test_a_constraint_is_named_without_its_file() -> None:
    assert violated(["/home/me/marks.py:tone>=base-0.1"], EDITED, BASE) == ("tone >= base - 0.1",)
    settings = Settings(constraints=["refusals <= 1", "a.py:f <= 1", "a.py:f >= 0"], objectives=["b.py:g", "kl"])
    assert settings.named_scores == ("b.py:g", "a.py:f")


@pytest.mark.parametrize("text", ["refusals", "refusals < 1", "refusals <=", "refusals <= base 0.1", "<= 1", "a <= b"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"constraints .*Write it like"):
        load_settings({"constraints": [text]})


def test_a_score_that_fails_or_gives_no_number_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "marks.py"
    file.write_text(
        "def words(responses, prompts):\n    return sum(len(r.split()) for r in responses) / len(prompts)\n"
        "def none(responses):\n    return None\ndef odd(responses):\n    return float('nan')\n"
        "def faulty(responses, **others):\n    return 1 / 0\n"
    )
    names = [f"{file}:{name}" for name in ("words", "none", "odd", "faulty")]
    found = apply_measures(names, ["What?", "Why?"], ["one two", "three"])
    assert found["words"] is not None and found["words"].value == 1.5
    assert found["words"].interval in ((1.0, 2.0), None)  # None on a machine so busy that it seemed slow
    assert [found[name] for name in ("none", "odd", "faulty")] == [None, None, None]


def test_trials_that_violate_a_constraint_are_on_the_front_only_if_all_do() -> None:
    def trial(index: int, failures: int, *broken: str) -> Trial:
        scores = Scores(Count(failures, 20), Count(0, 20), 0, 0.5, 0.01 * index, violated=broken)
        return Trial(index, EditParameters(DirectionSpec(), {}), scores)

    trials = [trial(0, 0, "tone >= 1"), trial(1, 5), trial(2, 3), trial(3, 4)]
    assert [t.index for t in pareto_front(trials)] == [2, 1]
    assert [t.index for t in pareto_front([trial(1, 5, "tone >= 1"), trial(2, 3, "tone >= 1")])] == [2, 1]


MARKS = "def letters(responses):\n    return sum(map(len, responses)) / len(responses)\n"


@pytest.fixture
def constrained(tiny_settings: Settings, tmp_path: Path) -> Settings:
    (tmp_path / "marks.py").write_text(MARKS)
    return tiny_settings.model_copy(
        update={"constraints": [f"{tmp_path / 'marks.py'}:letters >= base", "kl_divergence <= 0.005"]}
    )


def run(settings: Settings) -> dict[str, Any]:
    with started_run(settings) as started:
        started.optimize(settings.n_trials)
        started.finish()
        trials = started.trials()
        told = started.study.study.get_trials(deepcopy=False)
    assert settings.study_checkpoint_dir is not None
    summary: dict[str, Any] = json.loads((settings.study_checkpoint_dir / "batch_summary.json").read_text())
    base = summary["base_metrics"]["own"]["letters"]
    for trial in trials:
        letters = trial.scores.own["letters"]
        assert letters is not None
        broken = {"letters >= base": letters < base, "kl_divergence <= 0.005": trial.scores.kl_divergence > 0.005}
        assert trial.scores.violated == tuple(text for text, fails in broken.items() if fails)
        if not isinstance(trial.parameters, FittedParameters):
            number = len(trial.scores.violated)
            assert told[trial.index].constraints == ({"violated": float(number)} if number else {})
    kept = any(not trial.scores.violated for trial in trials)
    assert any(trial.scores.violated for trial in trials)
    assert all(("violated" in trial) is not kept for trial in summary["pareto_trials"])
    return summary


def test_a_run_keeps_to_constraints_and_goes_on_only_with_the_same(constrained: Settings, tmp_path: Path) -> None:
    summary = run(constrained)
    assert "letters" in summary["report"]["metrics"]["own"]
    more = constrained.model_copy(update={"n_trials": constrained.n_trials + 2})
    run(more)
    (tmp_path / "marks.py").write_text(MARKS + "# another\n")
    with pytest.raises(RunFolderError, match="letters"), started_run(more):
        pass


def test_a_stranger_s_functions_are_left_out(constrained: Settings) -> None:
    assert without_functions(constrained).constraints == ["kl_divergence <= 0.005"]


@pytest.mark.parametrize(
    ("text", "message"), [("tone >= 0", 'There is no score "tone"'), ("no.py:f >= 0", "there is no file no.py")]
)
def test_a_score_that_is_not_there_is_an_error_in_a_line(
    tiny_folder: Path, tmp_path: Path, text: str, message: str
) -> None:
    done = iconoclast("run", tiny_folder, "--out", tmp_path / "run", "--constraints", text, "--n-trials", "2")
    assert done.code == 2 and message in " ".join(done.err.split()) and "Traceback" not in done.err
