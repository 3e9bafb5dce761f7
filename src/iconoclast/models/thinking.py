"""The point where a model's response proper begins, after a fixed start and a closed thinking block."""

import itertools
from collections.abc import Sequence

from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.prompts import Prompt

THINKING_BLOCKS = (
    ("<think>", "</think>"),
    ("<thought>", "</thought>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)


def find_response_prefix(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int = 16) -> str:
    """Return what every response of the model starts with, so that measurements begin where responses differ.

    A thinking block that opens there is closed at once. Give `prompts` of different kinds, because a phrase that only
    similar prompts share is not a prefix, and a model without a response prefix; `longest` is in tokens.
    """
    prefix = ""
    for _ in range(2):  # a second look, at what follows a thinking block
        found = _common_start(lm.with_prefix(prefix), prompts, rows, longest)
        block = next((block for block in THINKING_BLOCKS if found.lstrip().startswith(block[0])), None)
        if block is None or prefix:
            return prefix + found
        prefix = block[0] + block[1]
    return prefix


def _common_start(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int) -> str:
    ids = lm.encode(prompts)
    for length in (1, longest):  # most models need one token to show that there is no prefix
        columns = zip(*decode(lm, ids, length, rows), strict=False)
        common = [tokens[0] for tokens in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
        if not common:
            return ""
    return str(lm.tokenizer.decode(common, skip_special_tokens=False))
