"""The fit: its gradient is that of the loss, on every architecture, and it ends at the same edit however it is broken off."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.errors import MeasurementError
from iconoclast.fitting.examples import Example, Examples
from iconoclast.fitting.fit import EAGER_TOKENS, Fit, FitOptions, attention_for_gradients
from iconoclast.fitting.objective import Kind, Objective
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed, unpacked
from iconoclast.models.reading import continuation_logits, differentiable_logits
from iconoclast.vocabulary import NORMALIZATIONS, RowNormalization
from tests.support.families import FAMILIES
from tests.support.tiny import save_tiny, tiny_config

OBJECTIVE = Objective.standard(opening=0.3, continuation=0.7, opening_length=2, proximity=0.1)


def some_examples(count: int, seed: int) -> list[Example]:
    """Random prompts and responses of unlike length."""
    random = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high, (1,), generator=random))
        return tuple(torch.randint(5, 261, (length,), generator=random).tolist())

    return [Example(tokens(3, 9), tokens(2, 7)) for _ in range(count)]


def some_edit(lm: LanguageModel, normalization: RowNormalization = "none") -> Edit:
    """Another direction at every site."""
    writers = lm.writers()
    random = torch.Generator().manual_seed(0)
    directions = {s: normalize(torch.randn(w.rows[-1], generator=random), dim=0) for s, w in writers.items()}
    return Edit(directions, {site: 0.3 + 0.1 * site.layer for site in writers}, normalization)


def opened(lm: LanguageModel, normalization: RowNormalization = "none", **options: Any) -> Fit:
    kinds: tuple[Kind, Kind] = ("benign", "target")
    examples = {kind: Examples(lm, some_examples(6, seed), 4) for seed, kind in enumerate(kinds)}
    given = {"steps": 6, "benign": 4, "target": 4, "rows": 3} | options
    return Fit(lm, lm.writers(), some_edit(lm, normalization), examples, OBJECTIVE, FitOptions(**given))


def error_of_gradient(fit: Fit) -> float:
    """How far the slope along the gradient is from finite differences, relatively.

    The best of three widths counts: float32 wants a wide one, and experts that are chosen anew want a narrow one.
    """
    fit.gradient(0, 3)
    variables = (fit._strengths, fit._offsets, fit._readings)
    gradients = [variable.grad.clone() for variable in variables if variable.grad is not None]
    slope = sum(float(gradient.square().sum()) for gradient in gradients)

    def loss_at(distance: float) -> float:
        with torch.no_grad():
            before = [variable.clone() for variable in variables]
            for variable, gradient in zip(variables, gradients, strict=True):
                variable += distance * gradient
        loss = fit.gradient(0, 3)["loss"]
        with torch.no_grad():
            for variable, was in zip(variables, before, strict=True):
                variable.copy_(was)
        return loss

    widths = (0.02 / slope**0.5, 0.005 / slope**0.5, 0.001 / slope**0.5)
    return min(abs((loss_at(width) - loss_at(-width)) / (2 * width) / slope - 1) for width in widths)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_gradient_is_the_slope(tiny_lm: LanguageModel, normalization: RowNormalization) -> None:
    assert error_of_gradient(opened(tiny_lm, normalization)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_the_slope_in_every_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = type("Tokenizer", (), {"pad_token_id": 0})()
    model = FAMILIES[name].model().requires_grad_(False)
    fit = opened(LanguageModel(model, tokenizer, name, name, "float32"))
    assert error_of_gradient(fit) < 0.03
    plain = fit.gradient(0, 3)
    monkeypatch.setattr("iconoclast.fitting.fit.EAGER_TOKENS", 0)
    assert fit.gradient(0, 3) == pytest.approx(plain, rel=1e-3, abs=2e-4)


def test_the_gradient_is_the_slope_through_4_bit_weights_that_were_read_before(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, tiny_config(hidden_size=64, intermediate_size=128))
    lm = load_model(str(folder), dtypes=["float32"], quantization="bnb_4bit")
    continuation_logits(lm, [[5, 6, 7]], [[8, 9]])
    assert error_of_gradient(opened(lm)) < 0.01


def test_small_batches_give_the_same_gradient(tiny_lm: LanguageModel) -> None:
    one, other = opened(tiny_lm), opened(tiny_lm)
    assert one.gradient(3, 1) == pytest.approx(other.gradient(3, 8), rel=1e-4)
    torch.testing.assert_close(one._offsets.grad, other._offsets.grad, rtol=1e-3, atol=1e-5)


def test_memory_that_does_not_suffice_halves_the_batch(tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def scarce(lm: LanguageModel, prompts: Any, *rest: Any) -> Tensor:
        asked.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError
        return differentiable_logits(lm, prompts, *rest)

    undisturbed, fit = opened(tiny_lm, rows=2), opened(tiny_lm, rows=4)
    monkeypatch.setattr("iconoclast.fitting.fit.differentiable_logits", scarce)
    assert list(fit.run(2)) == list(undisturbed.run(2))
    assert asked[0] == 4 and max(asked[1:]) == 2


def test_plain_attention_is_for_short_sequences(tiny_lm: LanguageModel) -> None:
    before = tiny_lm.model.config._attn_implementation
    for tokens, used in ((EAGER_TOKENS, "eager"), (EAGER_TOKENS + 1, before)):
        with attention_for_gradients(tiny_lm, tokens):
            assert tiny_lm.model.config._attn_implementation == used
        assert tiny_lm.model.config._attn_implementation == before != "eager"


def test_the_loss_falls(tiny_lm: LanguageModel) -> None:
    fit = opened(tiny_lm, steps=20, rate=0.3, benign=6, target=6)
    losses = [each["loss"] for each in fit.run(100)]
    assert len(losses) == fit.step == 20
    assert losses[-1] < losses[0] - 0.05
    assert all(float(direction.norm()) == pytest.approx(1, abs=1e-5) for direction in fit.edit().directions.values())


def test_a_softer_push_weighs_only_what_moves_the_behaviour(tiny_lm: LanguageModel) -> None:
    softer, lighter = opened(tiny_lm), opened(tiny_lm)
    softer.push = 0.25
    lighter.objective = Objective.standard(0.3 * 0.25, 0.05 * 0.25, 0.7, 2, loops=0.02 * 0.25, proximity=0.1)
    told, other = softer.gradient(0, 3), lighter.gradient(0, 3)
    assert softer._offsets.grad is not None and lighter._offsets.grad is not None
    assert torch.allclose(softer._offsets.grad, lighter._offsets.grad, atol=1e-6)
    assert told["opening likelihood"] == other["opening likelihood"]
    assert told["loss"] == opened(tiny_lm).gradient(0, 3)["loss"] > other["loss"]


def test_a_fit_that_is_broken_off_ends_at_the_same_edit(tiny_lm: LanguageModel) -> None:
    whole, first, second = (opened(tiny_lm) for _ in range(3))
    list(whole.run(6))
    list(first.run(2))
    second.resume(copy.deepcopy(first.state()))
    list(second.run(6))
    assert second.curve == whole.curve
    assert second.edit().strengths == whole.edit().strengths
    assert same(second.edit().directions, whole.edit().directions)
    assert same(second.edit().readings, whole.edit().readings)


def test_readings_move_only_where_they_may(tiny_lm: LanguageModel) -> None:
    free, tied = opened(tiny_lm), opened(tiny_lm, readings=False)
    for fit in (free, tied):
        list(fit.run(3))
    assert not tied.edit().readings
    assert all(not torch.equal(r, free.edit().directions[site]) for site, r in free.edit().readings.items())
    assert free.curve[0] == pytest.approx(tied.curve[0], rel=1e-5)  # they begin as one
    assert tied.edit().strengths != free.edit().strengths


def same(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[site], other[site]) for site in one)


def test_what_is_fitted_is_what_is_measured(tiny_lm: LanguageModel) -> None:
    examples = some_examples(3, 5)
    prompts, responses = [e.prompt for e in examples], [e.response for e in examples]
    with LiveEdits(tiny_lm.writers(), [some_edit(tiny_lm)]).applied():
        measured = continuation_logits(tiny_lm, prompts, responses)
        with torch.enable_grad():
            fitted = differentiable_logits(tiny_lm, prompts, responses)
    torch.testing.assert_close(fitted, measured, rtol=1e-4, atol=1e-5)


def test_a_prefix_that_rows_share_changes_nothing(tiny_lm: LanguageModel) -> None:
    prompts = [[7, 8, 9, 10, 11, *e.prompt] for e in some_examples(3, 5)]
    responses = [e.response for e in some_examples(3, 5)]
    outcomes = []
    for shared in (0, 5):
        strength = torch.tensor(0.4, requires_grad=True)
        strengths: Any = dict.fromkeys(tiny_lm.writers(), strength)
        edit = Edit(some_edit(tiny_lm).directions, strengths, "none")
        with LiveEdits(tiny_lm.writers(), [edit]).applied():
            logits = differentiable_logits(tiny_lm, prompts, responses, shared)
        logits.log_softmax(-1)[:, 3].sum().backward()
        outcomes.append((logits, strength.grad))
    for whole, parts in zip(*outcomes, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "kept"), [("llama", True), ("cohere", False)])
def test_what_the_base_model_says_is_kept_or_asked_again(name: str, kept: bool) -> None:
    tokenizer: Any = type("Tokenizer", (), {"pad_token_id": 0})()
    lm = LanguageModel(FAMILIES[name].model().requires_grad_(False), tokenizer, name, name, "float32")
    examples = Examples(lm, some_examples(5, 1), 2)
    assert (examples._states is not None) == kept
    some = [examples.examples[i] for i in (3, 0)]
    with torch.no_grad():
        logits = [differentiable_logits(lm, [e.prompt], [e.response]) for e in some]
    torch.testing.assert_close(examples.base_logits([3, 0]), torch.cat(logits), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("second", ["none", "pre", "full"])
def test_an_edit_of_several_parts_is_fitted_part_by_part(tiny_lm: LanguageModel, second: RowNormalization) -> None:
    fit = opened(tiny_lm)
    start = fit.start.followed_by(some_edit(tiny_lm, second).scaled(0.3))
    fit = Fit(tiny_lm, fit.writers, start, fit.examples, fit.objective, fit.options)
    assert error_of_gradient(fit) < 0.02
    list(fit.run(2))
    parts = fit.edit().parts
    assert [part.row_normalization for part in parts] == ["none", second]
    for part, before in zip(parts, start.parts, strict=True):
        assert part.sites == before.sites
        assert all(part.strengths[site] != before.strengths[site] for site in part.sites)


def test_numbers_that_are_not_finite_are_an_error(tiny_lm: LanguageModel) -> None:
    fit = opened(tiny_lm)
    with torch.no_grad():
        fit._strengths[0] = float("inf")
    with pytest.raises(MeasurementError, match="Lower fit_rate"):
        list(fit.run(1))


@pytest.mark.model
def test_within_packed_gradients_flow_while_it_is_lifted(demo_lm: LanguageModel) -> None:
    with packed(demo_lm.model) as possible:
        before = {m: m.__dict__.get("forward") for m in demo_lm.model.modules()}
        with unpacked(demo_lm.model):
            assert not any("forward" in module.__dict__ for module in demo_lm.model.modules())
        assert {m: m.__dict__.get("forward") for m in demo_lm.model.modules()} == before
        assert any(before.values()) == possible
