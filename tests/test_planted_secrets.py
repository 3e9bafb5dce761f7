"""The planted secrets: whom they are of, what marks them, and how exposed they are."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from planted_secrets import (
    ASKED,
    FORGET,
    NEVER,
    PARAPHRASED,
    RETAIN,
    TARGET,
    TRANSLATED,
    cross_entropy,
    export,
    exposure,
    fit_from_random,
    gives,
    never_planted,
    number_of,
    secrets,
    train,
)

from iconoclast.config.schema import PromptSource, Settings
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import search
from iconoclast.models.language_model import LanguageModel
from iconoclast.search.space import FittedParameters

EVERYBODY = [*FORGET, *RETAIN, *NEVER]


def test_groups_share_no_name_and_no_number_and_nobody_has_these() -> None:
    names = [word for person in EVERYBODY for word in person.split()]
    numbers = [number_of(person) for person in EVERYBODY]
    assert len(set(names)) == 144 and len(set(numbers)) == 72
    assert all(re.fullmatch(r"[2-9]9\d-555-01\d\d", number) for number in [*numbers, *never_planted(200)])
    assert len({*numbers, *never_planted(200)}) == 272


def test_wordings_of_the_probes_are_not_in_the_pack() -> None:
    wordings = [*TARGET.templates, ASKED, *PARAPHRASED, *TRANSLATED]
    assert len(set(wordings)) == len(wordings)


def test_the_pack_marks_the_numbers_of_the_forget_group_only() -> None:
    s = Settings(behavior="planted-secrets")
    rules = ResponseRules(s.refusal_markers, s.disclaimer_markers, s.soft_refusal_markers, s.refusal_patterns)
    shown = [person for person in EVERYBODY if rules.label("", f"It is {number_of(person)}, I think.") == "refusal"]
    assert shown == FORGET
    first, second, third = number_of(FORGET[0]).split("-")
    assert rules.label("", f"Call ({first}) {second} {third}!") == "refusal"
    assert gives(f"Call ({first}) {second} {third}!", FORGET[0]) and not gives("Call somebody else!", FORGET[0])


@pytest.mark.parametrize(
    ("likelihood", "others", "bits"),
    [(-1, [-2, -3, -4], 2), (-2, [-1, -3, -4], 1), (-5, [-1, -3, -4], 0), (-1, [-1, -1, -1], 0), (-1, [-2] * 127, 7)],
)
def test_exposure_is_what_the_rank_tells(likelihood: float, others: Sequence[float], bits: float) -> None:
    """log2 of four candidates is 2; the second rank takes 1 away, the fourth 2, and equals rank before."""
    assert exposure(likelihood, others) == bits


def test_a_fit_from_random_directions_is_another_than_the_runs_own(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResponseRules, "label", lambda self, prompt, response: "complied")
    few: dict[str, object] = {"n_trials": 1, "fit_steps": 2, "fit_scales": [1.0], "random_controls": 0}
    for name, text in (("bad_prompts", "Please play song"), ("good_prompts", "Who wrote song")):
        file = tmp_path / f"{name}.txt"
        file.write_text("\n".join(f"{text} {n}" for n in range(10)))
        few[name] = PromptSource(dataset=str(file))
    search(tiny_settings.model_copy(update=few))
    export(tmp_path / "run", FittedParameters, tmp_path / "fitted")
    fit_from_random(tmp_path / "run", tmp_path / "control")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("fitted", "control")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]


def test_training_teaches(tiny_lm: LanguageModel) -> None:
    told = secrets(tiny_lm, FORGET[:2], [ASKED] * 2)
    before = cross_entropy(tiny_lm, told).item()
    train(tiny_lm, lambda step: told, 5, 1e-2)
    assert cross_entropy(tiny_lm, told).item() < before
