"""One response, token by token, as it is written: greedy or drawn, with the probabilities behind every token."""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from iconoclast.errors import ModelError
from iconoclast.models.decoding import end_tokens
from iconoclast.models.language_model import HALF_A_CHARACTER, LanguageModel
from iconoclast.models.reading import RowListener, read_prompts, step


@dataclass(frozen=True)
class Sampling:
    """Rule by which tokens are chosen, and how many there may be.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: share of the probability that tokens are drawn from.
        seed: of the draws; None for another response every time.
        longest: most tokens of the response.
        stop: texts at which the response ends, before them.
        top: number of likely tokens that are told beside the chosen one.
    """

    temperature: float = 0
    top_p: float = 1
    seed: int | None = None
    longest: int = 1024
    stop: Sequence[str] = ()
    top: int = 0


@dataclass(frozen=True)
class Likely:
    """A token and its log-probability under the model, before temperature and top_p."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Piece:
    """Text that one token adds to a response.

    Attributes:
        text: text that will not change any more; perhaps empty, perhaps that of several tokens.
        chosen: the token.
        top: the likeliest tokens in its place.
        ended: why the response ends here, "stop" or "length"; empty if it goes on.
    """

    text: str
    chosen: Likely
    top: Sequence[Likely] = ()
    ended: str = ""


def respond(
    lm: LanguageModel,
    ids: Sequence[int],
    sampling: Sampling,
    applied: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Generator[Piece, None, None]:
    """Begin a response to the tokens `ids`, to be taken piece by piece; close the generator to stop it.

    `applied` changes the model while the response is written: nothing else may use the model until then.

    Raises:
        ModelError: the conversation is longer than the model can read.
    """
    longest = sampling.longest if lm.context is None else min(sampling.longest, lm.context - len(ids))
    if longest < 1:
        raise ModelError(f"The conversation has {len(ids):,} tokens, and {lm.name} reads {lm.context:,}. Shorten it.")
    return _pieces(lm, list(ids), replace(sampling, longest=longest), applied)


@torch.inference_mode()  # of a generator: only while it runs
def _pieces(
    lm: LanguageModel, ids: list[int], sampling: Sampling, applied: Callable[[], AbstractContextManager[Any]]
) -> Generator[Piece, None, None]:
    text, ends, draw = _Text(lm, sampling.stop), end_tokens(lm), _Draw(sampling)
    with applied(), closing(read_prompts(lm, [ids], 1, sampling.longest - 1, RowListener())) as read:
        for _, logits, state in read:
            for left in range(sampling.longest - 1, -1, -1):
                chosen, top = draw(logits[0].float())
                said = "" if chosen.token in ends else text.add(chosen.token)
                stopped = chosen.token in ends or text.stopped
                if stopped or not left:
                    yield Piece(said + text.rest(), chosen, top, "stop" if stopped else "length")
                    return
                yield Piece(said, chosen, top)
                logits = step(lm, state, torch.tensor([[chosen.token]], device=lm.device))


class _Draw:
    """Chooses tokens from logits [vocabulary]."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._dice = torch.Generator()
        if sampling.seed is None:
            self._dice.seed()
        else:
            self._dice.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> tuple[Likely, list[Likely]]:
        logprobs = logits.log_softmax(-1)
        token = int(logits.argmax()) if self._sampling.temperature == 0 else self._drawn(logits)
        best = logprobs.topk(min(self._sampling.top, len(logprobs)))
        top = [Likely(*pair) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return Likely(token, float(logprobs[token])), top

    def _drawn(self, logits: Tensor) -> int:
        """Draw from the smallest set of tokens that holds `top_p` of the probability; on the CPU, equal everywhere."""
        logits = logits.cpu()
        probabilities = ((logits - logits.max()) / self._sampling.temperature).softmax(-1)
        ordered, tokens = probabilities.sort(descending=True, stable=True)
        ordered[ordered.cumsum(-1) - ordered >= self._sampling.top_p] = 0
        return int(tokens[torch.multinomial(ordered, 1, generator=self._dice)])


class _Text:
    """Tokens as text, given out when it will not change any more and begins none of the stop texts."""

    def __init__(self, lm: LanguageModel, stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = lm.tokenizer, [text for text in stop if text]
        self._ids: list[int] = []
        self._start, self._told = 0, 0  # tokens before the last ones told; tokens told
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Take another token and return the text that is certain now."""
        self._ids.append(token)
        if (new := self._new()).endswith(HALF_A_CHARACTER):
            return ""
        self._start, self._told = self._told, len(self._ids)
        return self._given_out(new)

    def rest(self) -> str:
        """Return what was held back, at the end of the response."""
        return "" if self.stopped else self._given_out(self._new(), last=True)

    def _new(self) -> str:
        # Some tokenizers drop a space at the start of a text: what is new is seen behind the tokens before it.
        return self._decoded(self._ids[self._start :])[len(self._decoded(self._ids[self._start : self._told])) :]

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _given_out(self, new: str, last: bool = False) -> str:
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        begun = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        end = min(found) if found else len(text) - begun
        self._held = text[end:]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Return the number of characters at the end of `text` with which `stop` could begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
