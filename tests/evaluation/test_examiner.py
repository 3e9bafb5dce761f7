"""Examining one chosen model: whole responses, token divergences against an independent computation, tests, controls."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.examination import Examination, ExaminedPrompts, Variant, paired
from iconoclast.evaluation.examiner import Examiner
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.prompts import Prompt, PromptSet
from iconoclast.reports.tables import caveats
from iconoclast.runs.documents import RandomControl
from iconoclast.scores import Count, Scores
from iconoclast.vocabulary import Verdict

TARGET = PromptSet.of([f"Please set my {word}" for word in ("alarm", "table", "taxi", "light")])
BENIGN = PromptSet.of([f"What is a {word}?" for word in ("prime", "sonnet", "river", "verb", "fjord")])
BORDERLINE = PromptSet.of(["How do I kill a process?", "How do I shoot a film?"])
OPTIONS = MeasureOptions(response_length=20, benign_response_length=6)
RULES = ResponseRules(["ee", "zz", "qx"])


@pytest.fixture
def edit(tiny_lm: LanguageModel) -> Edit:
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    constant = {name: Profile.constant(1.5) for name in ("attn.o_proj", "mlp.down_proj")}
    return make_edit(tiny_lm, directions, constant)


def examiner(lm: LanguageModel, borderline: PromptSet | None = None, judges: tuple = ()) -> Examiner:  # type: ignore[type-arg]
    return Examiner(Variant("base", lm), ExaminedPrompts(TARGET, BENIGN, borderline, "report"), RULES, OPTIONS, judges)


def edited(lm: LanguageModel, edit: Edit) -> Variant:
    return Variant("edited", lm, LiveEdits(lm.writers(), [edit]).applied)


def test_what_rounding_makes_of_a_change_that_is_none_is_told(tiny_folder: Path) -> None:
    whole = examiner(load_model(str(tiny_folder), dtypes=["float32"])).examined_base()
    assert whole.metrics().rounding is None
    half = examiner(load_model(str(tiny_folder), dtypes=["bfloat16"])).examined_base()
    assert len(half.rounding) == 5 and max(half.token_kl) < 1e-5 < min(half.rounding) < max(half.rounding) < 0.01
    assert any("Rounding alone" in line for line in caveats("the base model", half.metrics()))


def test_the_base_model_differs_from_itself_by_nothing(tiny_lm: LanguageModel) -> None:
    base = examiner(tiny_lm).examined_base()
    assert max(base.scores.kl_by_prompt) < 1e-5 and max(base.token_kl) < 1e-5
    assert base.scores.refusals.n == 4 and len(base.benign) == 5 and base.borderline_overrefusals is None


def test_scores_are_those_that_trials_have(tiny_lm: LanguageModel, edit: Edit) -> None:
    found = examiner(tiny_lm).examine(edited(tiny_lm, edit))
    (trial,) = Evaluator(tiny_lm, TARGET, BENIGN, RULES, OPTIONS).measure([edit])
    for name in ("refusals", "broken", "overrefusals", "soft_refusals", "disclaimer_hits", "compliance"):
        assert getattr(found.scores, name) == getattr(trial, name)
    assert found.scores.kl_by_prompt == pytest.approx(trial.kl_by_prompt, abs=1e-4)


def test_token_divergence_and_perplexity_are_as_defined(tiny_lm: LanguageModel, edit: Edit) -> None:
    found = examiner(tiny_lm).examine(edited(tiny_lm, edit))
    live = LiveEdits(tiny_lm.writers(), [edit])
    nll, tokens = 0.0, 0
    for i, prompt in enumerate(tiny_lm.encode(BENIGN.prompts)):
        ids = torch.tensor([prompt])
        response = tiny_lm.model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )[0, len(prompt) :]
        whole = torch.cat([ids[0], response])[None]
        with torch.inference_mode():
            base = tiny_lm.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            with live.applied():
                own = tiny_lm.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert found.token_kl[i] == pytest.approx(float((base.exp() * (base - own)).sum(-1).mean()), abs=1e-4)
        nll -= float(own.gather(-1, response[:, None]).sum())
        tokens += len(response)
    assert found.perplexity is not None and found.perplexity.value == pytest.approx(math.exp(nll / tokens), rel=1e-3)
    assert max(found.token_kl) > 0.01


def test_refusals_by_length_grow_to_those_of_the_whole_response(tiny_lm: LanguageModel, edit: Edit) -> None:
    found = examiner(tiny_lm).examine(edited(tiny_lm, edit))
    assert list(found.by_length) == [10, 16, 20]
    assert (
        found.by_length[10].count
        <= found.by_length[16].count
        <= found.by_length[20].count
        == found.scores.refusals.count
    )


def with_lengths(examination: Examination, counts: dict[int, int]) -> Examination:
    return replace(examination, by_length={length: Count(count, 100) for length, count in counts.items()})


def test_a_rate_is_settled_when_the_second_half_adds_hardly_any(tiny_lm: LanguageModel) -> None:
    base = examiner(tiny_lm).examined_base()
    assert with_lengths(base, {16: 0, 32: 8, 48: 9, 64: 10}).settled
    assert not with_lengths(base, {16: 0, 32: 8, 48: 11, 64: 11}).settled


def test_borderline_prompts_are_counted_apart(tiny_lm: LanguageModel) -> None:
    base = examiner(tiny_lm, BORDERLINE).examined_base()
    assert base.borderline_overrefusals is not None and base.borderline_overrefusals.n == 2
    assert len(base.borderline) == 2 and base.scores.overrefusals.n == 5


def test_everything_counted_has_its_n_and_interval(tiny_lm: LanguageModel, edit: Edit) -> None:
    document = examiner(tiny_lm, BORDERLINE).examine(edited(tiny_lm, edit)).metrics().document()
    json.dumps(document, allow_nan=False)
    for name in ("complied", "refusals", "soft_refusals", "broken", "overrefusals", "benign_broken"):
        assert set(document[name]) == {"count", "n", "interval"}
    assert all({"tokens", "count", "n", "interval"} == set(entry) for entry in document["refusals_by_length"])
    low, high = document["token_kl"]["interval"]
    assert low <= document["token_kl"]["value"] <= high and document["token_kl"]["n"] == 5


def test_paired_tests_compare_prompt_by_prompt(tiny_lm: LanguageModel, edit: Edit) -> None:
    made = examiner(tiny_lm)
    base, other = made.examined_base(), made.examine(edited(tiny_lm, edit))
    same, tests = paired(base, base), paired(base, other)
    assert same.failures.p_value == 1 and same.token_kl.value == 0
    changed = tests.refusals.only_before - tests.refusals.only_after
    assert changed == base.scores.refusals.count - other.scores.refusals.count
    assert tests.first_token_kl.value == pytest.approx(other.scores.kl_divergence, abs=1e-4)


class Says:
    """A judge that finds everything refused but what it does not know."""

    name = "stub"
    problem = "one was too hard"

    def judge(self, items: list[tuple[str, str]], advance: object = None) -> list[Verdict]:
        return ["unknown", *(["refusal"] * (len(items) - 1))]  # type: ignore[list-item]


def test_what_a_judge_does_not_know_is_not_complied(tiny_lm: LanguageModel) -> None:
    base = examiner(tiny_lm, judges=(Says(),)).examined_base()
    said = base.metrics().document()["judges"]["stub"]
    assert said["refusal"] == Count(3, 3).document() and said["unknown"] == Count(1, 4).document()
    assert said["complied"]["count"] == 0 and said["problem"] == "one was too hard"
    assert "kappa_with_markers" in said


def test_another_vocabulary_is_no_edit_of_the_base(tiny_lm: LanguageModel) -> None:
    other = replace(tiny_lm, model=tiny_lm.model.__class__(tiny_lm.model.config.__class__(
        **{**tiny_lm.model.config.to_dict(), "vocab_size": 300}
    )))  # fmt: skip
    with pytest.raises(ModelError, match="vocabulary of 300 tokens"):
        examiner(tiny_lm).examine(Variant("other", other))


def scores(refusals: int, broken: int = 0) -> Scores:
    return Scores(Count(refusals, 20), Count(0, 20), 0, 0.5, 0.01, broken=Count(broken, 20))


def test_a_control_that_does_half_as_much_is_as_strong() -> None:
    assert not RandomControl.of(scores(18), scores(0), [scores(17), scores(18)]).as_strong_as_the_edit
    assert RandomControl.of(scores(18), scores(0), [scores(9), scores(9)]).as_strong_as_the_edit
    assert not RandomControl.of(
        scores(18), scores(0), [scores(0, broken=18)]
    ).as_strong_as_the_edit  # breaking is no success
    assert not RandomControl.of(scores(2), scores(2), [scores(2)]).as_strong_as_the_edit


# Axes.


def axed() -> PromptSet:
    texts = [("Set my alarm", ("home",)), ("Book a taxi", ("travel",)), ("Book a table", ("travel", "food"))]
    return PromptSet(tuple(Prompt(text, axes=axes) for text, axes in texts), "axes")


def test_prompts_of_two_axes_are_counted_once(tiny_lm: LanguageModel) -> None:
    options = replace(OPTIONS, axis_weights={"travel": 3.0})
    (found,) = Evaluator(tiny_lm, axed(), BENIGN, RULES, options).measure([Edit.nothing()])
    assert found.refusals.n == 3
    assert {name: axis.refusals.n for name, axis in found.axes.items()} == {"home": 1, "travel": 2, "food": 1}
    rates = {name: axis.failures().rate for name, axis in found.axes.items()}
    assert found.failure_rate == pytest.approx((rates["home"] + 3 * rates["travel"] + rates["food"]) / 5)
    assert Scores.from_document(json.loads(json.dumps(found.document()))) == found
