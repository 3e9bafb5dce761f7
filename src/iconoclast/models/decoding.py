"""Greedy decoding of many rows at once; a row leaves the batch as soon as it is decided."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from iconoclast.models.batching import Sequences
from iconoclast.models.cache import keep_rows
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import Decoding, LowerLayers, RowListener, read_prompts, step

CHECK_EVERY = 4
"""Tokens between two checks for decided rows (each check synchronises with the device)."""
WORTH_LEAVING = 0.1
"""Share of rows that must be done before they are dropped, because dropping them copies the cache."""
Decided = Callable[[int, list[int]], bool]
"""(sequence index, response tokens so far) → True if nothing still to come matters."""
FirstToken = Callable[[list[int], Tensor], None]
"""(sequence indices, logits of the first response token [rows, vocabulary])."""


@dataclass(frozen=True)
class Callbacks:
    """Functions called while sequences are decoded.

    Attributes:
        decided: asked every few tokens; a decided row stops there.
        first: receives the logits of the first token, which are computed anyway.
        advance: receives the number of sequences just finished.
    """

    decided: Decided | None = None
    first: FirstToken = lambda indices, logits: None
    advance: Callable[[int], None] = lambda n: None


@torch.inference_mode()
def decode(
    lm: LanguageModel,
    sequences: Sequences,
    max_new_tokens: int,
    rows: int,
    listener: RowListener | None = None,
    callbacks: Callbacks | None = None,
    lower: LowerLayers | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of every sequence, without the end-of-text token.

    `listener` is applied while decoding and sees sequence i as its row i; `lower` spares the layers below a variant's
    first changed one.
    """
    listener, callbacks = listener or RowListener(), callbacks or Callbacks()
    results: list[list[int]] = [[] for _ in sequences]
    for indices, logits, state in read_prompts(lm, sequences, rows, max_new_tokens - 1, listener, lower):
        callbacks.first(indices, logits)
        _Batch(lm, state, indices, listener, callbacks, results).run(logits, max_new_tokens)
    return results


@dataclass
class _Batch:
    lm: LanguageModel
    state: Decoding
    indices: list[int]
    listener: RowListener
    callbacks: Callbacks
    results: list[list[int]]

    def __post_init__(self) -> None:
        self.open = [True] * len(self.indices)  # rows that are not done
        self.ends = end_tokens(self.lm)

    def run(self, logits: Tensor, max_new_tokens: int) -> None:
        tokens = _greedy(logits)
        for length in range(1, max_new_tokens + 1):
            if length % CHECK_EVERY == 1 or length == max_new_tokens:
                self.callbacks.advance(self._close(tokens, length == max_new_tokens))
                if not any(self.open):
                    return
                tokens = self._leave(tokens)
            if length < max_new_tokens:
                logits = step(self.lm, self.state, tokens[:, -1:])
                tokens = torch.cat([tokens, _greedy(logits)], dim=1)

    def _close(self, tokens: Tensor, last: bool) -> int:
        """Record the results of rows that are done and return how many there were."""
        closed, decided = 0, self.callbacks.decided
        for row, (index, ids) in enumerate(zip(self.indices, tokens.tolist(), strict=True)):
            if not self.open[row]:
                continue
            response = list(itertools.takewhile(lambda token: token not in self.ends, ids))
            if last or len(response) < len(ids) or (decided is not None and decided(index, response)):
                self.results[index] = response
                self.open[row] = False
                closed += 1
        return closed

    def _leave(self, tokens: Tensor) -> Tensor:
        """Drop the rows that are done, if there are enough of them, and return the tokens of the others."""
        if sum(self.open) > (1 - WORTH_LEAVING) * len(self.open):
            return tokens
        kept = torch.tensor([row for row, is_open in enumerate(self.open) if is_open], device=tokens.device)
        self.indices = [self.indices[row] for row in kept.tolist()]
        self.open = [True] * len(kept)
        keep_rows(self.state.cache, kept)
        self.state.mask = self.state.mask[kept]
        self.state.positions = self.state.positions[kept]
        self.listener.keep(kept)
        return tokens[kept]


def _greedy(logits: Tensor) -> Tensor:
    """Return the most likely token of every row [rows, 1], the first among equals.

    PyTorch's argmax takes several times as long as its maximum, so the best of many chunks is found first.
    """
    rows, vocabulary = logits.shape
    size = math.gcd(vocabulary, 256)
    chunks = logits.reshape(rows, -1, size)
    best = chunks.amax(-1).max(-1, keepdim=True).indices
    return best * size + chunks[torch.arange(rows, device=logits.device), best[:, 0]].max(-1, keepdim=True).indices


def turn_end(lm: LanguageModel) -> int:
    """Return the token that ends a turn in the chat template; where none does, the first of `end_tokens`."""
    ends = end_tokens(lm)
    after = lm.tokenizer.encode(lm.chat.turn.after.strip(), add_special_tokens=False)[:1]
    return after[0] if after and after[0] in ends else ends[0]


def end_tokens(lm: LanguageModel) -> list[int]:
    """Return the tokens that end a response: those of generation settings, configuration, tokenizer and chat template."""
    config, generation = lm.model.config.get_text_config(), lm.model.generation_config
    named = [generation.eos_token_id if generation else None, config.eos_token_id, lm.tokenizer.eos_token_id]
    ids = [token for each in named for token in (each if isinstance(each, list | tuple) else [each])]
    turn = lm.chat.turn
    marks = [turn.after, turn.thinking[1] if turn.thinking else ""]  # some models end thoughts as they end answers
    after, closing = (lm.tokenizer.encode(mark.strip(), add_special_tokens=False)[:1] for mark in marks)
    ids += [token for token in after if token in lm.tokenizer.added_tokens_decoder and after != closing]
    return list(dict.fromkeys(int(token) for token in ids if token is not None and token < config.vocab_size))
