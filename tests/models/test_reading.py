"""Forward passes: true residuals, and log-probabilities that do not depend on how they are batched."""

import importlib
import itertools
import os

import pytest
import torch
from transformers import Gemma2Config
from transformers.integrations.sdpa_attention import repeat_kv

from iconoclast.models.batching import batches_by_length
from iconoclast.models.cache import PreallocatedLayer, common_prefix, new_cache, shareable
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.reading import RowListener, next_token_logprobs, read_prompts, step
from iconoclast.models.residuals import last_token_residuals
from iconoclast.models.transformers_internals import GROUPED_QUERIES
from iconoclast.prompts import Prompt
from tests.support.tiny import save_tiny

PROMPTS = [Prompt(text, "You are a helpful assistant.") for text in ("Hi", "Set an alarm", "What is a prime number?")]


def logprobs(lm: LanguageModel, ids: list[list[int]], rows: int) -> torch.Tensor:
    result = torch.empty(len(ids), 261)
    for indices, values in next_token_logprobs(lm, ids, rows):
        result[indices] = values
    return result


def alone(lm: LanguageModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_batching_and_a_shared_prefix_change_no_log_probability(tiny_lm: LanguageModel, rows: int) -> None:
    ids = tiny_lm.encode(PROMPTS)
    assert common_prefix(ids) > 30 and shareable(tiny_lm.model)
    expected = torch.stack([alone(tiny_lm, sequence) for sequence in ids])
    torch.testing.assert_close(logprobs(tiny_lm, ids, rows), expected, atol=2e-5, rtol=2e-5)


def test_keys_and_values_are_not_copied_for_every_query_head(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_lm.model.config.num_key_value_heads < tiny_lm.model.config.num_attention_heads
    copies = []
    attention = importlib.import_module("transformers.integrations.sdpa_attention")
    monkeypatch.setattr(attention, "repeat_kv", lambda states, n: copies.append(n) or repeat_kv(states, n))
    ids = tiny_lm.encode(PROMPTS)
    expected = alone(tiny_lm, ids[2])
    with torch.no_grad():
        tiny_lm.model(input_ids=torch.tensor(ids[:1]), attention_mask=torch.tensor([[0] + [1] * (len(ids[0]) - 1)]))
    assert copies  # the library by itself
    copies.clear()
    assert torch.allclose(logprobs(tiny_lm, ids, 3)[2], expected, atol=1e-5)
    assert not copies
    assert GROUPED_QUERIES not in os.environ


def test_steps_after_the_prompt_continue_it_exactly(tiny_lm: LanguageModel) -> None:
    ids = tiny_lm.encode(PROMPTS)
    token = 70
    for indices, _, state in read_prompts(tiny_lm, ids, 3, 2, RowListener()):
        for _ in range(3):  # one more than there is room for: the cache grows
            logits = step(tiny_lm, state, torch.full((3, 1), token))
        for row, index in enumerate(indices):
            expected = alone(tiny_lm, ids[index] + [token] * 3)
            torch.testing.assert_close(logits[row].log_softmax(-1), expected, atol=2e-5, rtol=2e-5)


def test_a_model_with_sliding_attention_shares_no_prefix(tmp_path: object) -> None:
    config = Gemma2Config(
        vocab_size=261, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, sliding_window=8, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    lm = load_model(str(save_tiny(tmp_path, config)), dtypes=["float32"])  # type: ignore[arg-type]
    assert not shareable(lm.model)
    ids = lm.encode(PROMPTS)
    expected = torch.stack([alone(lm, sequence) for sequence in ids])
    torch.testing.assert_close(logprobs(lm, ids, 3), expected, atol=1e-4, rtol=1e-4)


def test_residuals_are_the_stream_after_each_layer_also_the_last(tiny_lm: LanguageModel) -> None:
    ids = tiny_lm.encode(PROMPTS)
    residuals = last_token_residuals(tiny_lm, ids, 2)
    assert residuals.shape == (3, 4, 32)
    for row, sequence in enumerate(ids):
        with torch.no_grad():
            hidden = tiny_lm.model(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states
        for layer in range(3):
            torch.testing.assert_close(residuals[row, layer], hidden[layer + 1][0, -1], atol=2e-5, rtol=2e-5)
        normed = tiny_lm.model.model.norm(residuals[row, 3])
        torch.testing.assert_close(normed, hidden[4][0, -1], atol=2e-5, rtol=2e-5)
        assert not torch.allclose(residuals[row, 3], hidden[4][0, -1], atol=1e-2)


def test_batches_hold_like_lengths_and_every_index_once() -> None:
    batches = list(batches_by_length([5, 9, 1, 9, 3], 2))
    assert batches == [[1], [3, 0], [4, 2]]


@pytest.mark.parametrize(("number", "widths"), [(0, []), (4, [4]), (5, [2, 3]), (12, [4, 4, 4]), (13, [3, 3, 3, 4])])
def test_batches_are_about_equally_wide(number: int, widths: list[int]) -> None:
    assert [len(batch) for batch in batches_by_length([7] * number, 4)] == widths


@pytest.mark.parametrize(
    ("sequences", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 4]], 1), ([[1], [1]], 0), ([[3, 1], [4, 1]], 0), ([[1, 2, 3]], 2)],
)
def test_the_common_prefix_leaves_every_sequence_a_token(sequences: list[list[int]], length: int) -> None:
    assert common_prefix(sequences) == length


def test_the_cache_is_written_in_place(tiny_lm: LanguageModel) -> None:
    layer = new_cache(tiny_lm.model, 8).layers[0]
    assert isinstance(layer, PreallocatedLayer)
    states = torch.arange(2 * 2 * 3 * 4.0).reshape(2, 2, 3, 4)
    keys, _ = layer.update(states, -states)
    more, values = layer.update(states, -states)
    assert more.data_ptr() == keys.data_ptr() and more.shape == (2, 2, 6, 4)
    torch.testing.assert_close(values, -torch.cat([states, states], dim=2))
    layer.batch_select_indices(torch.tensor([1, 1, 0]))
    torch.testing.assert_close(layer.filled[0], torch.cat([states, states], dim=2)[[1, 1, 0]])


def test_reading_that_is_not_finished_leaves_no_mode_behind(tiny_lm: LanguageModel) -> None:
    ids = tiny_lm.encode(PROMPTS)
    pairs = zip(*(read_prompts(tiny_lm, ids, 2, 0, RowListener()) for _ in range(2)), strict=True)
    for _ in itertools.islice(pairs, 1):
        assert not torch.is_inference_mode_enabled()
    del pairs
    assert not torch.is_inference_mode_enabled()
