"""Lower layers that are left out: nothing changes, and where something would, they are computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, GPT2Config, GPTNeoXConfig, PreTrainedConfig, Qwen3Config

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.library import estimate_directions, make_edit
from iconoclast.models import base_states as module
from iconoclast.models import reading
from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.base_states import BaseStates, base_states, can_be_left_out
from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.reading import read_prompts, step
from iconoclast.prompts import Prompt, PromptSet
from tests.support.tiny import save_tiny

PROMPTS = [
    Prompt(text, "You are a helpful assistant.")
    for text in ("Hi", "Set an alarm", "What is a prime number?", "Book a table for two at eight, please", "Sing")
]
TARGET = PromptSet.of([f"Please set my {word}" for word in ("alarm", "table", "taxi", "light")])
BENIGN = PromptSet.of([f"What is a {word}?" for word in ("prime", "sonnet", "river", "verb")])


@pytest.fixture
def edits(tiny_lm: LanguageModel) -> list[Edit]:
    """Edits that begin at layers 3, 1, 0, 2 and nowhere."""
    directions = estimate_directions(tiny_lm, BENIGN, TARGET)
    spec = DirectionSpec(scope="global", index=1.5)
    reaching = {
        first: {c: Profile(1.0, 3.0, 0.5, 3.0 - first + 0.1) for c in ("attn.o_proj", "mlp.down_proj")}
        for first in (3, 1, 0, 2)
    }
    made = [make_edit(tiny_lm, directions, profiles, spec) for profiles in reaching.values()]
    assert [min(site.layer for site in edit.sites) for edit in made] == list(reaching)
    return [*made, Edit.nothing()]


def states_of(lm: LanguageModel, ids: Sequence[Sequence[int]]) -> BaseStates:
    states = base_states(lm, ids, 3)
    assert states is not None
    return states


def live(lm: LanguageModel, edits: Sequence[Edit], prompts: int) -> LiveEdits:
    return LiveEdits(lm.writers(), edits, [e for e in range(len(edits)) for _ in range(prompts)])


def logprobs(lm: LanguageModel, edits: Sequence[Edit], rows: int, states: BaseStates | None) -> Tensor:
    ids = lm.encode(PROMPTS) * len(edits)
    result = torch.full((len(ids), 261), torch.nan)
    for indices, logits, _ in read_prompts(lm, ids, rows, 0, live(lm, edits, len(PROMPTS)), states):
        result[indices] = logits.log_softmax(-1)
    return result


@pytest.mark.parametrize("part_tokens", [1, 40, 2048])
@pytest.mark.parametrize("rows", [2, 7, 64])
def test_log_probabilities_stay_what_they_are(
    tiny_lm: LanguageModel, edits: list[Edit], rows: int, part_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logprobs(tiny_lm, edits, 64, None)
    monkeypatch.setattr(reading, "PART_TOKENS", part_tokens)
    states = states_of(tiny_lm, tiny_lm.encode(PROMPTS))
    assert sorted(states.outputs) == [1, 2, 3]
    torch.testing.assert_close(logprobs(tiny_lm, edits, rows, states), expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(logprobs(tiny_lm, edits, rows, None), expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("part_tokens", [1, 40, 2048])
@pytest.mark.parametrize("rows", [3, 64])
def test_responses_stay_what_they_are(
    tiny_lm: LanguageModel, edits: list[Edit], rows: int, part_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_lm.encode(PROMPTS)
    expected = [decode(tiny_lm, ids, 9, 64, live(tiny_lm, [edit], len(ids))) for edit in edits]
    monkeypatch.setattr(reading, "PART_TOKENS", part_tokens)
    states = states_of(tiny_lm, ids)
    together = decode(tiny_lm, ids * len(edits), 9, rows, live(tiny_lm, edits, len(ids)), lower=states)
    assert together == [response for responses in expected for response in responses]


def test_prompts_without_a_common_beginning_work_as_well(tiny_lm: LanguageModel, edits: list[Edit]) -> None:
    ids = [[7, 8, 9, 10, 11], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]
    states = states_of(tiny_lm, ids)
    assert states.shared == 0
    expected = [decode(tiny_lm, ids, 6, 8, live(tiny_lm, [edit], len(ids))) for edit in edits]
    together = decode(tiny_lm, ids * len(edits), 6, 8, live(tiny_lm, edits, len(ids)), lower=states)
    assert together == [response for responses in expected for response in responses]


def test_layers_below_the_first_edited_one_are_not_computed(tiny_lm: LanguageModel, edits: list[Edit]) -> None:
    ids = tiny_lm.encode(PROMPTS)
    states = states_of(tiny_lm, ids)
    computed: list[int] = []
    for index, layer in enumerate(decoder_layers(tiny_lm.model)):
        attention: Any = layer.self_attn
        attention.register_forward_hook(lambda *args, i=index: computed.append(i))
    for edit, lowest in zip(edits, (3, 1, 0, 2, 3), strict=True):
        computed.clear()
        list(read_prompts(tiny_lm, ids, 8, 0, live(tiny_lm, [edit], len(ids)), states))
        prefix = list(range(4))  # what the prompts share is read as a whole
        assert computed == prefix + list(range(lowest, 4))


def test_the_model_is_as_before_also_after_a_failure(tiny_lm: LanguageModel) -> None:
    states = states_of(tiny_lm, tiny_lm.encode(PROMPTS))
    layer = decoder_layers(tiny_lm.model)[0]
    offloaded = layer.forward
    layer.forward = offloaded  # as offloading wraps it: in the instance
    with pytest.raises(KeyboardInterrupt), states.answering(2, tiny_lm.encode(PROMPTS[:1]), 4):
        raise KeyboardInterrupt
    assert layer.__dict__["forward"] is offloaded
    assert "forward" not in decoder_layers(tiny_lm.model)[1].__dict__


def test_other_prompts_are_read_from_the_first_layer_on(tiny_lm: LanguageModel, edits: list[Edit]) -> None:
    ids = tiny_lm.encode(PROMPTS)
    states = states_of(tiny_lm, ids[:4])
    shared = states.shared
    assert states.knows(ids[:4], shared) and not states.knows(ids, shared) and not states.knows(ids[:4], shared - 1)
    expected = logprobs(tiny_lm, edits, 64, None)
    torch.testing.assert_close(logprobs(tiny_lm, edits, 64, states), expected, atol=2e-5, rtol=2e-5)


def test_states_are_kept_after_as_many_layers_as_memory_allows(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tiny_lm.encode(PROMPTS)
    tokens = len(ids) * max(map(len, ids))
    cache, output = 2 * 4 * 2 * 8 * 4 * tokens, 32 * 4 * tokens

    class Memory:
        def __init__(self, outputs: float) -> None:
            self.available = (cache + outputs * output) / module.LARGEST_SHARE

    for outputs, levels in ((3.1, [1, 2, 3]), (2.5, [2]), (1.5, [3]), (0.5, None)):
        monkeypatch.setattr("psutil.virtual_memory", lambda outputs=outputs: Memory(outputs))
        states = base_states(tiny_lm, ids, 8)
        assert (None if states is None else sorted(states.outputs)) == levels


TINY: dict[str, Any] = {"vocab_size": 261, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None}
FULL_ATTENTION: list[PreTrainedConfig] = [
    GPT2Config(n_embd=32, n_layer=4, n_head=4, **TINY),
    GPTNeoXConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, **TINY),
    Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, **TINY,
    ),
]  # fmt: skip


@pytest.mark.parametrize("config", FULL_ATTENTION, ids=lambda config: config.model_type)
def test_models_of_full_attention_can_leave_layers_out(config: PreTrainedConfig, tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "model", config)), dtypes=["float32"])
    ids = lm.encode(PROMPTS)
    assert can_be_left_out(lm, ids)
    states = states_of(lm, ids)

    class From(reading.RowListener):
        def first_layer(self, row: int) -> int:
            return row % 5

    for (indices, logits, state), (others, expected, whole) in zip(
        read_prompts(lm, ids, 8, 2, From(), states), read_prompts(lm, ids, 8, 2, reading.RowListener()), strict=True
    ):
        order, expected_order = torch.tensor(indices).argsort(), torch.tensor(others).argsort()
        torch.testing.assert_close(logits[order], expected[expected_order], atol=2e-4, rtol=2e-4)
        again, expected_again = (step(lm, s, torch.full((len(ids), 1), 70)) for s in (state, whole))
        torch.testing.assert_close(again[order], expected_again[expected_order], atol=2e-4, rtol=2e-4)


def test_a_model_with_a_sliding_window_leaves_none_out(tmp_path: Path) -> None:
    config = Gemma2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, sliding_window=8, **TINY,
    )  # fmt: skip
    lm = load_model(str(save_tiny(tmp_path / "model", config)), dtypes=["float32"])
    assert not can_be_left_out(lm, lm.encode(PROMPTS))


def test_layers_that_talk_past_the_stream_are_noticed(tiny_lm: LanguageModel) -> None:
    layers = decoder_layers(tiny_lm.model)
    assert can_be_left_out(tiny_lm, tiny_lm.encode(PROMPTS))
    said: list[Tensor] = []
    layers[0].register_forward_hook(lambda module, args, output: said.append(output))

    def listen(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output + 0.05 * said[-1]

    layers[3].register_forward_hook(listen)
    assert not can_be_left_out(tiny_lm, tiny_lm.encode(PROMPTS))
