"""The point where a model's response proper begins, after a fixed start and a closed thinking block."""

import itertools
import re
from collections.abc import Iterator, Sequence

from iconoclast.models.chat_template import TAG
from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.prompts import Prompt

WRITTEN = re.compile(r"[<\[][^\s<>\[\]|/]+[>\]]")
"""A tag whose partner is written with a slash, whether or not the vocabulary has it."""
OPPOSITES = (("begin", "end"), ("start", "end"), ("prefix", "suffix"), ("open", "close"))

LOOKS = 3
"""Times that responses are looked at: a closed block and a long common start are followed by another look."""


def find_response_prefix(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int = 16) -> str:
    """Return what every response of the model starts with, so that measurements begin where responses differ.

    A block that the template or any response opens there is closed at once, unless it holds the whole response. Give
    `prompts` of different kinds, because a phrase that only similar prompts share is not a prefix, and a model without
    a response prefix; `longest` is in tokens.
    """
    block = open_block(lm)
    prefix, closed = (block[1], True) if block else ("", False)
    for _ in range(LOOKS):
        responses = _responses(lm.with_prefix(prefix), prompts, rows, longest)
        common = _common_start(lm.with_prefix(prefix), prompts[0], responses)
        block = None if closed else _opened(lm, responses, common)
        if block is not None:
            closed, filled = True, prefix + "".join(block)
            if any(_responses(lm.with_prefix(filled), prompts, rows, 1)):  # else it held the response
                prefix = filled
                continue
        prefix += common
        if len(lm.encode_texts([common])[0]) < longest:
            break
    return prefix


def open_block(lm: LanguageModel) -> tuple[str, str] | None:
    """Return the tags of a block in which the template lets every response begin; None if it opens none."""
    turn = lm.chat.turn
    if turn.opened:
        return turn.thinking
    for tag in reversed(TAG.findall(turn.opening)):
        if tag in turn.lead and tag in turn.header:  # the mark of a turn
            continue
        for partner in _partners(lm, tag, tag not in turn.header):
            inside = turn.opening.rpartition(tag)[2]
            if partner not in inside and partner not in turn.after and partner != lm.tokenizer.eos_token:
                return tag, partner
    return None


def _opened(lm: LanguageModel, responses: Sequence[list[int]], common: str) -> tuple[str, str] | None:
    """Return the tags of a block that all responses open, or some of them if the model is known to have its partner."""
    thinking = lm.chat.turn.thinking
    texts = [lm.text(ids, special=True).lstrip() for ids in responses]
    common = common.lstrip()
    for text in dict.fromkeys([common, *texts]):
        if thinking and thinking[0].strip() and text.startswith(thinking[0].strip()):
            return thinking
        tag = TAG.match(text)
        if tag and (partner := next(_partners(lm, tag[0], text == common), None)):
            return tag[0], partner
    return None


def _partners(lm: LanguageModel, tag: str, written: bool) -> Iterator[str]:
    """Yield what can close a tag: the same with a slash, with the opposite word, or mirrored, if the model has it."""
    known = set(lm.tokenizer.get_vocab()) | set(lm.tokenizer.added_tokens_encoder)
    template = str(lm.tokenizer.chat_template)
    at = next(i for i, letter in enumerate(tag) if letter.isalnum() or letter == "_") if re.search(r"\w", tag) else 1
    slashed = [tag[:1] + "/" + tag[1:], tag[:at] + "/" + tag[at:]]
    words = [
        tag.replace(f(one), f(other))
        for one, other in OPPOSITES
        for f in (str.lower, str.upper, str.capitalize)
        if f(one) in tag
    ]
    mirrored = [f"<{tag[2:-1]}|>"] if tag.startswith("<|") and not tag.endswith("|>") else []
    for partner in dict.fromkeys([*slashed, *words, *mirrored]):
        if partner in known or partner in template:
            yield partner
    if written and WRITTEN.fullmatch(tag):
        yield slashed[0]


def _responses(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int) -> list[list[int]]:
    ids = lm.encode(prompts)
    responses = decode(lm, ids, 1, rows)  # most models need one token to show that there is no prefix
    if longest == 1:
        return responses
    tags = any(lm.text(tokens, special=True).lstrip().startswith(tuple("<[◁⟨〈【«")) for tokens in responses)
    return decode(lm, ids, longest, rows) if tags or len(set(map(tuple, responses))) == 1 else responses


def _common_start(lm: LanguageModel, prompt: Prompt, responses: Sequence[list[int]]) -> str:
    columns = zip(*responses, strict=False)
    common = [tokens[0] for tokens in itertools.takewhile(lambda tokens: len(set(tokens)) == 1, columns)]
    before = lm.encode([prompt])[0]  # at the start of a text, some tokenizers drop a space
    texts = [lm.text(ids, special=True) for ids in (before, before + common)]
    return texts[1].removeprefix(texts[0]).rstrip("\ufffd")  # half a character
