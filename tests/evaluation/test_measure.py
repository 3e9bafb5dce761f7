"""Measuring: what is counted, and that memory, batching and early leaving change nothing."""

import pytest
import torch

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.errors import MeasurementError
from iconoclast.evaluation import measure as module
from iconoclast.evaluation.measure import LARGEST_KL, Evaluator, MeasureOptions, _Divergences, measure
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models.loading import LanguageModel
from iconoclast.prompts import PromptSet

TARGET = PromptSet.of([f"Please set my {word}" for word in ("alarm", "table", "taxi", "light")])
BENIGN = PromptSet.of([f"What is a {word}?" for word in ("prime", "sonnet", "river", "verb", "fjord")])


@pytest.fixture
def edits(tiny_lm: LanguageModel) -> list[Edit]:
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    profiles = [{"attn.o_proj": Profile.constant(w), "mlp.down_proj": Profile.constant(w)} for w in (0.5, 1.5)]
    spec = DirectionSpec(scope="global", index=1.5)
    return [Edit.nothing(), *(make_edit(tiny_lm, directions, profile, spec) for profile in profiles)]


def evaluator(lm: LanguageModel, markers: list[str], **options: int) -> Evaluator:
    settings = MeasureOptions(**{"response_length": 12, "benign_response_length": 6, **options})
    return Evaluator(lm, TARGET, BENIGN, ResponseRules(markers, ["q"]), settings)


def test_counts_are_those_of_the_whole_responses(tiny_lm: LanguageModel, edits: list[Edit]) -> None:
    whole = evaluator(tiny_lm, ["a marker that never comes"])
    responses = whole.respond(edits, TARGET)
    marker = responses[1][0].strip().lower()[1:3]  # something that the first edit's first response holds
    rules = ResponseRules([marker], ["q"])
    for scores, texts in zip(evaluator(tiny_lm, [marker]).measure(edits), responses, strict=True):
        assert scores.refusals.count == sum(map(rules.is_refusal, texts)) and scores.refusals.n == 4
        assert scores.disclaimer_hits == sum(map(rules.disclaimers, texts))
        assert scores.overrefusals.n == 5


def test_the_base_model_diverges_from_itself_by_nothing_and_an_edit_by_something(
    tiny_lm: LanguageModel, edits: list[Edit]
) -> None:
    scores = measure(tiny_lm, edits, TARGET, BENIGN, options=MeasureOptions(4, 2))
    assert scores[0].kl_divergence < 1e-5
    assert 1e-4 < scores[1].kl_divergence < scores[2].kl_divergence
    assert len(scores[1].kl_by_prompt) == 5
    assert evaluator(tiny_lm, ["zz"]).noise_floor(3) < 1e-5


def test_memory_that_does_not_suffice_halves_the_batch_and_loses_nothing(
    tiny_lm: LanguageModel, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluator(tiny_lm, ["ee", "zz"]).measure(edits)
    decode, widths = module.decode, []

    def small(lm: LanguageModel, ids: list[list[int]], length: int, rows: int, *rest: object) -> list[list[int]]:
        widths.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError
        return decode(lm, ids, length, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", small)
    tight = evaluator(tiny_lm, ["ee", "zz"], batch_size=16)
    for a, b in zip(expected, tight.measure(edits), strict=True):
        assert (a.refusals, a.overrefusals, a.disclaimer_hits) == (b.refusals, b.overrefusals, b.disclaimer_hits)
        assert a.kl_divergence == pytest.approx(b.kl_divergence, abs=1e-5)
    assert widths[:4] == [16, 8, 4, 2] and tight.rows == 2


def test_no_memory_at_all_is_a_clear_error(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*arguments: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "decode", none)
    with pytest.raises(MeasurementError, match="Not even one sequence"):
        evaluator(tiny_lm, ["zz"]).measure([Edit.nothing()])


def test_a_model_that_gives_no_numbers_is_as_far_away_as_can_be() -> None:
    divergences = _Divergences(torch.tensor([[0.5, 0.5]]).log(), 2)
    divergences.add([0, 1], torch.tensor([[torch.nan, 0.0], [0.5, 0.5]]).log())
    assert divergences.result().tolist() == [[LARGEST_KL], [0.0]]
