"""What only a CUDA device can show: where weights lie, what it waits for, what it does without memory."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.merge import save_merged
from iconoclast.edits.profile import Profile
from iconoclast.models import decoding
from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.memory import Rows, affordable_rows
from iconoclast.models.reading import Decoding, read_prompts, step
from iconoclast.prompts import Prompt
from iconoclast.vocabulary import COMPONENTS

pytestmark = pytest.mark.gpu

TEXTS = ["Hi", "Set an alarm for seven", "What is a prime number?", "Book a table", "Why is the sky blue at noon?"]


@pytest.fixture
def lm(tiny_folder: Path) -> LanguageModel:
    """The tiny llama on the device."""
    return load_model(str(tiny_folder), dtypes=["float32"], device_map="cuda")


@pytest.fixture
def ids(lm: LanguageModel) -> list[list[int]]:
    return lm.encode([Prompt(text) for text in TEXTS])


def some_edit(lm: LanguageModel, strength: float = 0.8) -> Edit:
    direction = torch.nn.functional.normalize(torch.arange(1.0, lm.hidden_size + 1), dim=0)
    profiles: dict[str, Profile] = dict.fromkeys(COMPONENTS, Profile.constant(strength))
    return Edit.build(dict.fromkeys(lm.writers(), direction), profiles, "full")


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = model(input_ids=ids).logits
        return result.cpu()


def test_a_model_says_the_same_on_both_devices(lm: LanguageModel, ids: list[list[int]], tiny_folder: Path) -> None:
    assert lm.device.type == "cuda"
    assert {parameter.device.type for parameter in lm.model.parameters()} == {"cuda"}
    here = load_model(str(tiny_folder), dtypes=["float32"], device_map="cpu")
    row = torch.tensor(ids[:1])
    torch.testing.assert_close(logits(lm.model, row.to(lm.device)), logits(here.model, row), atol=1e-3, rtol=1e-3)


def test_rows_are_as_many_as_the_memory_of_the_device_holds(lm: LanguageModel) -> None:
    assert affordable_rows(lm, 64, 7, 128) == 7
    assert affordable_rows(lm, 64, 0, 128) == 128
    assert affordable_rows(lm, 10**12, 0, 128) == 1


def test_the_live_edit_is_the_merged_one(lm: LanguageModel, ids: list[list[int]], tmp_path: Path) -> None:
    edit, row = some_edit(lm), torch.tensor(ids[:1], device=lm.device)
    before = logits(lm.model, row)
    with LiveEdits(lm.writers(), [edit]).applied():
        live = logits(lm.model, row)
    save_merged(edit, lm.writers(), lm.model, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, device_map="cuda")
    assert (live - before).abs().max() > 0.01
    torch.testing.assert_close(logits(merged, row), live, atol=1e-3, rtol=1e-3)
    assert torch.equal(logits(lm.model, row), before)


def waits(lm: LanguageModel, tokens: torch.Tensor, state: Decoding, steps: int) -> int:
    """How often the processor waits for the device while so many tokens are decoded."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            for _ in range(steps):
                tokens = decoding._greedy(step(lm, state, tokens))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def test_no_token_waits_for_the_device(lm: LanguageModel, ids: list[list[int]]) -> None:
    live = LiveEdits(lm.writers(), [some_edit(lm, 0.4), some_edit(lm)], [0] * len(ids) + [1] * len(ids))
    for _, first, state in read_prompts(lm, ids * 2, 64, 24, live):
        tokens = decoding._greedy(first)
        waits(lm, tokens, state, 2)  # what is made once is made here
        assert waits(lm, tokens, state, 16) == 0


def test_a_batch_that_does_not_fit_is_halved_until_it_does(lm: LanguageModel, ids: list[list[int]]) -> None:
    expected, rows, tried = decode(lm, ids, 6, len(ids)), Rows(16), list[int]()

    def run(number: int) -> list[list[int]]:
        tried.append(number)
        if number > 4:  # a petabyte a row, which no device has
            torch.empty(number, 2**50, dtype=torch.uint8, device=lm.device)
        return decode(lm, ids, 6, number)

    assert rows.adaptively(run) == expected
    assert tried == [16, 8, 4] and rows.number == 4
