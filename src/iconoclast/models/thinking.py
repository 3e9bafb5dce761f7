"""The point where a model's response proper begins: after a fixed start and a thinking block, closed at once or by the model."""

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from iconoclast.errors import ModelError
from iconoclast.models.chat_template import TAG, USER
from iconoclast.models.decoding import CHECK_EVERY, Decided, decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.prompts import Prompt

WRITTEN = re.compile(r"[<\[][^\s<>\[\]|/]+[>\]]")
"""A tag whose partner is written with a slash, whether or not the vocabulary has it."""
OPPOSITES = (("begin", "end"), ("start", "end"), ("prefix", "suffix"), ("open", "close"))

LOOKS = 3
"""Times that responses are looked at: a closed block and a long common start are followed by another look."""


KNOWN = ("<think>", "</think>")
"""The block of models whose template says nothing of one, if it is in their vocabulary."""


def thinking_block(lm: LanguageModel) -> tuple[str, str]:
    """Return what opens and what closes a model's thoughts; raise ModelError if it is not known to think."""
    block = open_block(lm) or lm.chat.turn.thinking
    if block is None and KNOWN[1] in {*lm.tokenizer.get_vocab(), *lm.tokenizer.added_tokens_encoder}:
        return KNOWN
    if block is None:
        raise ModelError(f"The chat template of {lm.name} knows no thinking block. Set thinking to off.")
    return block[0].strip(), block[1].strip()


@dataclass(frozen=True)
class Thoughts:
    """Tells thoughts from answers in the responses of a model that thinks first.

    Attributes:
        lm: the model, which begins responses with its prefix.
        budget: tokens of thoughts; a response that needs more of them has no answer.
    """

    lm: LanguageModel
    budget: int

    def longest(self, length: int) -> int:
        """Return the tokens of a response with thoughts whose answer has `length` tokens."""
        return self.budget + len(self.lm.tokenizer.encode(self._block[1])) + length + CHECK_EVERY

    def split(self, ids: list[int]) -> tuple[list[int], list[int] | None]:
        """Return the tokens of the thoughts, and those of the answer; None if the thoughts do not end within the budget."""
        opener, closer = self._block
        if not self._begins_inside:
            begun = self.lm.text(ids[: self.budget], special=True).lstrip()
            if self._closed or not (begun.startswith(opener) or opener.startswith(begun)):
                return [], ids
        if closer not in self.lm.text(ids, special=True):
            return ids, None
        end = bisect.bisect_left(range(len(ids)), True, key=lambda i: closer in self.lm.text(ids[:i], special=True))
        return ids[:end], ids[end:] if end <= self.budget else None

    def deciding(self, length: int, decided: Decided | None = None) -> Decided:
        """Return a check for decoding that ends a response when its answer is long enough, or decided, or given up."""

        def ends(index: int, ids: list[int]) -> bool:
            _, answer = self.split(ids)
            given_up = answer is None and len(ids) > self.budget
            long_enough = answer is not None and len(answer) >= length
            return given_up or long_enough or (decided is not None and decided(index, (answer or [])[:length]))

        return ends

    def text(self, ids: list[int]) -> str:
        """Return the text of thoughts, without their marks."""
        opener, closer = self._block
        said = self.lm.text(ids, special=True).strip().removeprefix(opener)
        return said.partition(closer)[0].strip()

    @cached_property
    def _block(self) -> tuple[str, str]:
        return thinking_block(self.lm)

    @cached_property
    def _before(self) -> str:
        """Return the text between the user's and the response."""
        return self.lm.render_messages([{"role": "user", "content": USER}]).rpartition(USER)[2]

    @cached_property
    def _closed(self) -> bool:
        return self._block[1] in self._before and not self._begins_inside

    @cached_property
    def _begins_inside(self) -> bool:
        opener, closer = self._block
        if not opener:
            return closer not in self._before
        return self._before.rfind(opener) > self._before.rfind(closer)


def find_thinking_start(lm: LanguageModel, prompts: Sequence[Prompt], rows: int, longest: int = 16) -> str:
    """Return what all responses of a model that thinks first start with: marks of its thoughts, words without information."""
    return _common_start(lm, prompts[0], _responses(lm, prompts, rows, longest))


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
