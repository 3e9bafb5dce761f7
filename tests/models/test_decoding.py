"""Decoding: the greedy continuation, whoever else is in the batch."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.profile import Profile
from iconoclast.models import decoding, thinking
from iconoclast.models.decoding import Callbacks, decode, end_tokens
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import read_prompts, step
from iconoclast.models.thinking import find_response_prefix
from iconoclast.prompts import Prompt

TEXTS = ["Hi", "Set an alarm for seven", "What is a prime number?", "Book a table", "Why is the sky blue at noon?"]


@pytest.fixture
def ids(tiny_lm: LanguageModel) -> list[list[int]]:
    return tiny_lm.encode([Prompt(text) for text in TEXTS])


def generated(lm: LanguageModel, ids: list[int], length: int) -> list[int]:
    """What transformers' own greedy generation gives."""
    inputs = torch.tensor([ids])
    output = lm.model.generate(  # type: ignore[operator]
        input_ids=inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=length, do_sample=False, pad_token_id=0
    )
    tokens = output[0, len(ids) :].tolist()
    return tokens[: tokens.index(1)] if 1 in tokens else tokens


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_decoding_equals_the_librarys_greedy_generation(
    tiny_lm: LanguageModel, ids: list[list[int]], rows: int
) -> None:
    assert decode(tiny_lm, ids, 21, rows) == [generated(tiny_lm, sequence, 21) for sequence in ids]


def test_responses_end_at_the_end_token(tiny_lm: LanguageModel, ids: list[list[int]]) -> None:
    whole = decode(tiny_lm, ids, 24, 5)
    stop = whole[0][6]
    tiny_lm.model.generation_config.eos_token_id = [1, stop]
    assert end_tokens(tiny_lm) == [1, stop]
    for cut, response in zip(decode(tiny_lm, ids, 24, 5), whole, strict=True):
        assert cut == (response[: response.index(stop)] if stop in response else response)


def test_a_decided_row_leaves_and_the_others_go_on(tiny_lm: LanguageModel, ids: list[list[int]]) -> None:
    whole = decode(tiny_lm, ids, 24, 5)
    asked: list[int] = []

    def decided(index: int, tokens: list[int]) -> bool:
        asked.append(index)
        return index in (0, 3)

    cut = decode(tiny_lm, ids, 24, 5, callbacks=Callbacks(decided))
    assert [cut[i] for i in (1, 2, 4)] == [whole[i] for i in (1, 2, 4)]
    for index in (0, 3):
        assert asked.count(index) == 1
        assert cut[index] == whole[index][:1]


def test_the_first_tokens_logits_come_along(tiny_lm: LanguageModel, ids: list[list[int]]) -> None:
    seen: dict[int, int] = {}

    def first(indices: list[int], logits: torch.Tensor) -> None:
        seen.update(zip(indices, logits.argmax(-1).tolist(), strict=True))

    responses = decode(tiny_lm, ids, 5, 2, callbacks=Callbacks(first=first))
    assert {i: r[0] for i, r in enumerate(responses)} == seen


class Waiting(TorchDispatchMode):
    """Counts the operations for which a processor would have to wait for its accelerator."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        self.count += operation.overloadpacket in (
            aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.nonzero, aten.equal,
        )  # fmt: skip
        return operation(*args, **(kwargs or {}))


def test_no_token_waits_for_the_accelerator(tiny_lm: LanguageModel, ids: list[list[int]]) -> None:
    """Between two looks at the responses nothing is read back: a token's work is queued and nothing more."""
    writers = tiny_lm.writers()
    edits = [
        Edit.build({site: torch.ones(32) / 32**0.5 for site in writers}, {"mlp.down_proj": Profile.constant(w)}, how)  # type: ignore[arg-type]
        for w, how in ((0.5, "pre"), (1.0, "full"))
    ]
    live = LiveEdits(writers, edits, [0] * len(ids) + [1] * len(ids))
    for _, logits, state in read_prompts(tiny_lm, ids * 2, 64, 8, live):
        with Waiting() as seen:
            bool(logits.sum() > 0)
        assert seen.count > 0, "the test would see it"
        with Waiting() as waiting:
            for _ in range(3):
                logits = step(tiny_lm, state, decoding._greedy(logits))
        assert waiting.count == 0


def test_progress_counts_every_sequence_once(tiny_lm: LanguageModel, ids: list[list[int]]) -> None:
    finished: list[int] = []
    decode(tiny_lm, ids, 9, 2, callbacks=Callbacks(advance=finished.append))
    assert sum(finished) == len(ids)


def scripted(monkeypatch: pytest.MonkeyPatch, lm: LanguageModel, answers: dict[str, list[str]]) -> None:
    """Let the model answer from a script: response prefix → responses."""

    def decode_script(model: LanguageModel, ids: list[list[int]], length: int, rows: int) -> list[list[int]]:
        return [model.encode_texts([text])[0][:length] for text in answers[model.response_prefix]]

    monkeypatch.setattr(thinking, "decode", decode_script)


@pytest.mark.parametrize(
    ("answers", "prefix"),
    [
        ({"": ["Sure.", "No."]}, ""),
        ({"": ["Answer: yes", "Answer: no"]}, "Answer: "),
        ({"": ["<think>well", "<think>hm"], "<think></think>": ["Yes", "No"]}, "<think></think>"),
        ({"": ["<think>well", "<think>hm"], "<think></think>": ["\n\nYes", "\n\nNo"]}, "<think></think>\n\n"),
        ({"": ["[THINK]a", "[THINK]b"], "[THINK][/THINK]": ["Yes", "No"]}, "[THINK][/THINK]"),
    ],
)
def test_a_common_start_is_found_and_a_thinking_block_closed(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]], prefix: str
) -> None:
    scripted(monkeypatch, tiny_lm, answers)
    assert find_response_prefix(tiny_lm, [Prompt("a"), Prompt("b")], 2) == prefix


@pytest.mark.parametrize("vocabulary", [256, 261, 768, 1000, 49152])
def test_the_most_likely_token_is_the_first_of_equals(vocabulary: int) -> None:
    logits = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    logits[1] = 0.5  # all equal
    logits[2, [3, vocabulary // 2, vocabulary - 1]] = 9.0
    logits[3, vocabulary - 1] = 9.0
    assert decoding._greedy(logits)[:, 0].tolist() == [int(row.float().numpy().argmax()) for row in logits]
