"""Measuring: what is counted, and that memory, batching and early leaving change nothing."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.errors import MeasurementError
from iconoclast.evaluation import evaluator as module
from iconoclast.evaluation.divergence import LARGEST_KL, Divergences
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions, measure
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models import decoding, reading
from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import Decoding
from iconoclast.progress import Silent
from iconoclast.prompts import PromptSet
from iconoclast.scores import Bounds, Scores, beaten
from iconoclast.search.pareto import Trial, pareto_front
from iconoclast.search.space import EditParameters

TARGET = PromptSet.of([f"Please set my {word}" for word in ("alarm", "table", "taxi", "light")])
BENIGN = PromptSet.of([f"What is a {word}?" for word in ("prime", "sonnet", "river", "verb", "fjord")])


PARAMETERS = EditParameters(DirectionSpec(), {})


@pytest.fixture
def edits(tiny_lm: LanguageModel) -> list[Edit]:
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    profiles = [{"attn.o_proj": Profile.constant(w), "mlp.down_proj": Profile.constant(w)} for w in (0.5, 1.5)]
    spec = DirectionSpec(scope="global", index=1.5)
    return [Edit.nothing(), *(make_edit(tiny_lm, directions, profile, spec) for profile in profiles)]


def evaluator(lm: LanguageModel, markers: list[str], **options: Any) -> Evaluator:
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


def test_the_base_model_does_not_diverge_from_itself(tiny_lm: LanguageModel, edits: list[Edit]) -> None:
    scores = measure(
        tiny_lm, edits, TARGET, BENIGN, options=MeasureOptions(response_length=4, benign_response_length=2)
    )
    assert scores[0].kl_divergence < 1e-5
    assert 1e-4 < scores[1].kl_divergence < scores[2].kl_divergence
    assert len(scores[1].kl_by_prompt) == 5
    assert evaluator(tiny_lm, ["zz"]).noise_floor() < 1e-5


def test_memory_that_does_not_suffice_halves_the_batch(
    tiny_lm: LanguageModel, edits: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluator(tiny_lm, ["ee", "zz"]).measure(edits)
    widths: list[int] = []

    def small(lm: LanguageModel, ids: list[list[int]], length: int, rows: int, *rest: object) -> list[list[int]]:
        widths.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError
        return decode(lm, ids, length, rows, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("iconoclast.evaluation.evaluator.decode", small)
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
    divergences = Divergences(torch.tensor([[0.5, 0.5]]).log(), 2)
    divergences.add([0, 1], torch.tensor([[torch.nan, 0.0], [0.5, 0.5]]).log())
    assert divergences.result().tolist() == [[LARGEST_KL], [0.0]]


# Pruning.


@pytest.fixture
def many(tiny_lm: LanguageModel) -> list[Edit]:
    """Edits from weak to strong."""
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    weights = [0.05, 2.0, 0.3, 1.4, 0.1, 0.7, 1.0, 0.5]
    profiles = [{"attn.o_proj": Profile.constant(w), "mlp.down_proj": Profile.constant(w / 2)} for w in weights]
    return [make_edit(tiny_lm, directions, p, DirectionSpec(scope="global", index=1.5)) for p in profiles]


@pytest.mark.parametrize("broken", [True, False])
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("marker", ["e", "ing", "th", "a marker that never comes"])
def test_the_front_with_pruning_is_the_front_without_it(
    tiny_lm: LanguageModel, many: list[Edit], marker: str, rows: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not broken:  # random models talk nonsense, of which no bound is known before it ends
        monkeypatch.setattr("iconoclast.evaluation.responses.defect", lambda prompt, response: None)
    made = evaluator(tiny_lm, [marker], batch_size=rows)
    whole = [Trial(i, PARAMETERS, scores) for i, scores in enumerate(made.measure(many))]
    trials: list[Trial] = []
    pruned = 0
    for start in range(0, len(many), 2):
        front = [trial.key for trial in pareto_front(trials)]
        outcomes = made.measure_or_prune(many[start : start + 2], lambda b, front=front: beaten(b.key, front))  # type: ignore[misc]
        for index, outcome in enumerate(outcomes, start):
            if isinstance(outcome, Bounds):
                pruned += 1
                assert all(a <= b + 1e-5 for a, b in zip(outcome.key, whole[index].key, strict=True))
                assert beaten(outcome.key, front)
            else:
                trials.append(Trial(index, PARAMETERS, outcome))
    assert [t.index for t in pareto_front(trials)] == [t.index for t in pareto_front(whole)]
    assert broken or pruned >= 2, "the test is about batches in which some are pruned"


def test_an_edit_pruned_for_its_divergence_is_not_decoded(
    tiny_lm: LanguageModel, many: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = evaluator(tiny_lm, ["zz"])
    divergences = [scores.kl_divergence for scores in made.measure(many)]
    limit = sum(sorted(divergences)[3:5]) / 2
    steps: list[int] = []
    step = reading.step

    def counted(lm: LanguageModel, state: Decoding, tokens: torch.Tensor) -> torch.Tensor:
        steps.append(len(tokens))
        return step(lm, state, tokens)

    monkeypatch.setattr(decoding, "step", counted)
    outcomes = made.measure_or_prune(many, lambda bounds: bounds.kl_divergence >= limit)
    assert [isinstance(outcome, Bounds) for outcome in outcomes] == [kl >= limit for kl in divergences]
    assert max(steps) <= 4 * len(BENIGN), "rows of pruned edits have left before the first step"
    steps.clear()
    assert all(isinstance(outcome, Bounds) for outcome in made.measure_or_prune(many, lambda bounds: True))
    assert not steps


def test_benign_prompts_are_answered_last_and_by_what_is_left(
    tiny_lm: LanguageModel, many: list[Edit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iconoclast.evaluation.responses.defect", lambda prompt, response: None)
    texts = [" ".join(answers).lower() for answers in evaluator(tiny_lm, ["-"]).respond(many, TARGET)]
    pieces = [text[i : i + 3] for text in texts for i in range(len(text) - 2)]
    marker = next(piece for piece in pieces if piece.isprintable() and 0 < sum(piece in t for t in texts) < len(many))
    made = evaluator(tiny_lm, [marker])
    responses, asked = made._responses, []

    def recorded(
        edits: Sequence[Edit], encoded: Any, length: int, *more: Any, **options: Any
    ) -> list[list[str | None]]:
        asked.append((len(edits), encoded is made._benign, length))
        return responses(edits, encoded, length, *more, **options)

    monkeypatch.setattr(made, "_responses", recorded)
    outcomes = made.measure_or_prune(many, lambda bounds: bounds.failures > 0)
    left = sum(isinstance(outcome, Scores) for outcome in outcomes)
    assert 0 < left < len(many)
    options = made.options
    assert asked == [
        (len(many), True, 1),
        (len(many), False, options.response_length),
        (left, True, options.benign_response_length),
    ]


def test_progress_reaches_its_end_also_when_edits_are_pruned(tiny_lm: LanguageModel, many: list[Edit]) -> None:
    class Counting(Silent):
        total = done = 0

        def start(self, task: str, total: int) -> None:
            self.total = total

        def advance(self, steps: int = 1) -> None:
            self.done += steps

    for limit in (0.0, 1e-3, 9.0):
        progress = Counting()
        evaluator(tiny_lm, ["e"]).measure_or_prune(many, lambda b, limit=limit: b.kl_divergence >= limit, progress)  # type: ignore[misc]
        assert progress.done == progress.total == len(many) * (len(TARGET) + len(BENIGN))


def test_a_marker_is_found_wherever_the_window_ends(tiny_lm: LanguageModel) -> None:
    """Also across tokens, and far behind the beginning; and what only the window's edge makes a word is none."""
    measured = evaluator(tiny_lm, ["not able to"])
    encode = tiny_lm.tokenizer.encode
    said = "It was a long day, and there is much to say about all of it, but I am not able to go on."
    ids = encode(said)
    seen = [length for length in range(1, len(ids) + 1) if measured._failure(ids[:length])]
    first = next(n for n in range(len(ids)) if "not able to" in tiny_lm.tokenizer.decode(ids[:n]))
    assert seen[:4] == [first, first + 1, first + 2, first + 3]
    for text in ("cannot able to", "abcdefghij" * 4 + "not able to"):
        ids = encode(text)
        assert not any(measured._failure(ids[:length]) for length in range(1, len(ids) + 1))


def test_leaving_lower_layers_out_changes_no_score(tiny_lm: LanguageModel, many: list[Edit]) -> None:
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    spec = DirectionSpec(scope="global", index=1.5)
    upper = [{c: Profile(1.0, 3.0, 0.5, span) for c in ("attn.o_proj", "mlp.down_proj")} for span in (0.5, 1.5, 2.5)]
    edits = [*many, Edit.nothing(), *(make_edit(tiny_lm, directions, profile, spec) for profile in upper)]
    measured = evaluator(tiny_lm, ["e"])
    expected = measured.measure(edits)
    assert measured.leave_out_lower_layers()
    for scores, whole in zip(measured.measure(edits), expected, strict=True):
        assert (scores.refusals, scores.overrefusals, scores.disclaimer_hits) == (
            whole.refusals, whole.overrefusals, whole.disclaimer_hits,
        )  # fmt: skip
        assert scores.kl_divergence == pytest.approx(whole.kl_divergence, abs=1e-5)


def test_the_lower_layers_pass_gives_the_log_probabilities_of_the_base_model(tiny_lm: LanguageModel) -> None:
    benign = PromptSet.of([BENIGN.prompts[i].text for i in (3, 0, 3, 1, 4)])  # one of them twice
    alone, kept = (Evaluator(tiny_lm, TARGET, benign, ResponseRules(["e"], ["q"])) for _ in range(2))
    assert kept.leave_out_lower_layers()
    kept.lm = None  # type: ignore[assignment]  # nothing is read again
    torch.testing.assert_close(kept.reference, alone.reference)


def test_another_model_remains_the_base_when_lower_layers_are_left_out(tiny_lm: LanguageModel) -> None:
    other = torch.full((5, tiny_lm.model.config.vocab_size), -5.0)
    measured = Evaluator(tiny_lm, TARGET, BENIGN, ResponseRules(["e"], ["q"]), reference=other)
    assert measured.leave_out_lower_layers() and measured.reference is other
