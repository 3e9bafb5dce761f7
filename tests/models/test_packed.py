"""Packed weights give what plain ones give, and leave nothing behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models import packed as module
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed
from iconoclast.models.reading import next_token_logprobs
from iconoclast.prompts import PromptSet

BENIGN = PromptSet.of(["What is a fjord?", "What is a verb?", "Name a river."])
TARGET = PromptSet.of(["Set my alarm", "Book a table", "Call a taxi"])


@pytest.fixture
def half(tiny_folder: Path) -> LanguageModel:
    return load_model(str(tiny_folder), dtypes=["bfloat16"])


def log_probabilities(lm: LanguageModel) -> torch.Tensor:
    ((indices, logprobs),) = next_token_logprobs(lm, lm.encode(BENIGN.prompts), 8)
    return logprobs[torch.tensor(indices).argsort()]


def test_packed_weights_give_what_plain_ones_give(half: LanguageModel) -> None:
    plain = log_probabilities(half)
    with packed(half.model) as possible:
        if not possible:
            pytest.skip("this processor has no bfloat16 products")
        assert any("forward" in m.__dict__ for m in half.model.modules())
        assert torch.allclose(log_probabilities(half), plain, atol=0.2)
    assert not any("forward" in m.__dict__ for m in half.model.modules())
    assert torch.equal(log_probabilities(half), plain)


def test_norms_and_gated_networks_compute_in_fewer_passes(half: LanguageModel) -> None:
    with packed(half.model) as possible:
        if not possible:
            pytest.skip("this processor has no bfloat16 products")
        forwards = [type(m.__dict__["forward"]) for m in half.model.modules() if "forward" in m.__dict__]
        assert forwards.count(module._Gated) == half.layers
        assert forwards.count(module._RootMeanSquare) == 2 * half.layers + 1


def test_other_norms_and_hooked_networks_stay_as_they_are(half: LanguageModel) -> None:
    from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    other = Gemma2RMSNorm(8)
    vars(other)["variance_epsilon"] = 1e-6
    nn.init.constant_(other.weight, 0.5)  # multiplies by 1.5
    assert module._faster(other.to(torch.bfloat16), {}) is None
    assert module._faster(LlamaRMSNorm(8).to(torch.bfloat16), {}) is not None
    gated: Any = next(m for m in half.model.modules() if hasattr(m, "gate_proj"))
    heard: list[int] = []
    with gated.up_proj.register_forward_hook(lambda *of: heard.append(1)), packed(half.model):
        log_probabilities(half)
        assert not isinstance(gated.__dict__.get("forward"), module._Gated)
    assert heard


def test_live_edits_act_on_packed_weights(half: LanguageModel) -> None:
    constant = {name: Profile.constant(1.5) for name in ("attn.o_proj", "mlp.down_proj")}
    edit = make_edit(half, estimate_directions(half, BENIGN, TARGET), constant)
    plain = log_probabilities(half)
    with LiveEdits(half.writers(), [edit]).applied():
        edited = log_probabilities(half)
    with packed(half.model), LiveEdits(half.writers(), [edit]).applied():
        both = log_probabilities(half)
    assert (edited - plain).abs().max() > 0.5
    assert torch.allclose(both, edited, atol=0.3)


def test_other_precisions_are_left_alone(tiny_lm: LanguageModel) -> None:
    with packed(tiny_lm.model) as possible:
        assert not possible
        assert not any("forward" in m.__dict__ for m in tiny_lm.model.modules())


def test_without_operators_or_memory_it_is_off(half: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST_SHARE", 0.0)
    with packed(half.model) as possible:
        assert not possible
    monkeypatch.undo()

    def missing(*arguments: object) -> None:
        raise AttributeError

    monkeypatch.setattr(module._Product, "__init__", missing)
    with packed(half.model) as possible:
        assert not possible


def test_a_failure_meanwhile_leaves_the_model_as_it_was(half: LanguageModel) -> None:
    with pytest.raises(KeyboardInterrupt), packed(half.model):
        raise KeyboardInterrupt
    assert not any("forward" in m.__dict__ for m in half.model.modules())


def test_modules_with_a_forward_pass_of_their_own_are_left_alone() -> None:
    own = nn.Linear(4, 4, dtype=torch.bfloat16)
    own.forward = lambda states: states  # type: ignore[assignment, method-assign]
    with packed(own) as possible:
        assert not possible
    assert "forward" in own.__dict__
