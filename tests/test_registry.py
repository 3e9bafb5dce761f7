"""Registries: what can be chosen by name, and how a stranger's package adds to it."""

import doctest
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from iconoclast import registry
from iconoclast.config import packs
from iconoclast.config.schema import Settings
from iconoclast.directions.estimators import DirectionSpec, estimate_directions, estimators
from iconoclast.errors import DirectionError, UserError
from iconoclast.evaluation.judges.protocol import JudgeError, judges
from iconoclast.evaluation.named import apply_measures, measures
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.evaluation.rules import rules
from iconoclast.prompts import PromptSet
from iconoclast.registry import Registry
from iconoclast.runs.judging import judges_of
from iconoclast.runs.subjects import ModelSubject, find_subject, subjects

ENTRY_POINTS = """\
[iconoclast.estimators]
reversed = stranger:reversed_mean

[iconoclast.behaviors]
humming = stranger:HUMMING

[iconoclast.judges]
lenient = stranger:Lenient

[iconoclast.rules]
hums = stranger:hums

[iconoclast.scores]
notes = stranger:notes

[iconoclast.subjects]
hummed = stranger:find_hummed
"""

CODE = """\
from pathlib import Path

HUMMING = Path(__file__).with_name("humming.toml")

def reversed_mean(benign, target):
    return benign.mean(0) - target.mean(0)

def hums(response):
    return "hm" in response

def notes(responses, prompts):
    return sum(text.count("hm") for text in responses)

def find_hummed(named):
    from iconoclast.runs.subjects import ModelSubject
    return ModelSubject(named.text.removeprefix("hm:")) if named.text.startswith("hm:") else None

class Lenient:
    name = "lenient, version 1"
    problem = None

    def __init__(self, settings):
        self.words = settings.refusal_markers

    def judge(self, items, advance=lambda n: None):
        advance(len(items))
        return ["complied" if response else "broken" for _, response in items]
"""

HUMMING = """\
name = "humming"
description = "An assistant that hums."
target = { fit = ["hum a tune"], select = ["hum a song"] }
benign = { fit = ["name a tune"], select = ["name a song"] }
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that nobody here knows."""
    information = tmp_path / "stranger-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "stranger.py").write_text(CODE)
    (tmp_path / "humming.toml").write_text(HUMMING)
    monkeypatch.syspath_prepend(tmp_path)
    packs.load_pack.cache_clear()
    yield
    sys.modules.pop("stranger", None)
    packs.load_pack.cache_clear()
    estimators._things.pop("reversed", None)
    packs.behaviors._things.pop("humming", None)
    judges._things.pop("lenient", None)
    rules._things.pop("hums", None)
    measures._things.pop("notes", None)
    subjects._things.pop("hummed", None)


@pytest.mark.usefixtures("stranger")
def test_an_estimator_of_another_package_is_used() -> None:
    benign, target = torch.randn(4, 2, 8), torch.randn(4, 2, 8) + 1
    found = estimate_directions(benign, target, methods=["mean", "reversed"], orthogonalize=False)
    torch.testing.assert_close(found.per_layer("reversed"), -found.per_layer("mean"))
    assert DirectionSpec("reversed").method == "reversed"


def test_without_that_package_its_name_is_refused() -> None:
    with pytest.raises(DirectionError, match='no direction method "reversed"'):
        DirectionSpec("reversed")


@pytest.mark.usefixtures("stranger")
def test_a_behaviour_of_another_package_is_used() -> None:
    assert [prompt.text for prompt in PromptSet.load("builtin:humming/target", split="fit")] == ["hum a tune"]


@pytest.mark.usefixtures("stranger")
def test_a_rule_and_a_score_of_another_package_are_used() -> None:
    assert ResponseRules([], rules=["hums"]).label("Sing.", "hm hm") == "refusal"
    found = apply_measures(["notes"], ["Sing."], ["hm hm"])["notes"]
    assert found is not None and found.value == 2.0


@pytest.mark.usefixtures("stranger")
def test_a_kind_of_subject_of_another_package_is_found() -> None:
    assert find_subject("hm:some/model") == ModelSubject("some/model")


@pytest.mark.usefixtures("stranger")
def test_a_judge_of_another_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iconoclast.runs.judging.user_cache_path", lambda name: tmp_path / name)
    (judge,) = judges_of(Settings(judges=["lenient", "lenient"]))
    assert judge.name == "lenient, version 1"
    assert judge.judge([("Call a taxi.", "It is called."), ("Sing.", "")]) == ["complied", "broken"]


def test_a_judge_that_nobody_has_installed_is_refused() -> None:
    with pytest.raises(UserError, match=r'no judge "lenient"\. Use one of chat, classifier'):
        judges_of(Settings(judges=["lenient"]))


@pytest.mark.parametrize("name", ["classifier", "chat"])
def test_a_judge_without_its_settings_names_them(name: str) -> None:
    with pytest.raises(JudgeError, match=f"needs the settings? judge_{name}"):
        judges_of(Settings(judges=[name]))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    things: Registry[int] = Registry("thing", "things")
    things.register("first")(1)
    assert things.get("first") == 1 and "first" in things and list(things) == ["first"]
    with pytest.raises(UserError, match=r'no thing "frist"\. Did you mean first\?'):
        things.get("frist")


def test_the_example_of_a_registry_runs() -> None:
    assert doctest.testmod(registry).attempted and not doctest.testmod(registry).failed
