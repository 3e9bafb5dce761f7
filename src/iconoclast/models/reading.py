"""Prompts read in batches: next-token log-probabilities, and the state from which decoding goes on."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from iconoclast.models.batching import batches_by_length, left_padded, token_positions
from iconoclast.models.cache import PreallocatedLayer, common_prefix, expanded, joined, shareable
from iconoclast.models.forward import accepted_options, contiguous_head, forward_pass, grouped_queries
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.transformers_internals import uses_sdpa

PART_TOKENS = 2048
"""Tokens that are read at once: enough for matrix products at full speed, few enough to hold sequences of like length."""

SHORTEST_PREFIX = 8
"""A shared prefix of fewer tokens is not worth a pass of its own."""


class RowListener(Protocol):
    """What is applied to a batch (live edits) and must know which of its rows are left in it."""

    def applied(self, rows: Tensor) -> AbstractContextManager[None]:
        """While this lasts, row i of the batch is the listener's row `rows[i]`."""
        ...

    def keep(self, positions: Tensor) -> None:
        """Only these positions of the batch go on, in this order."""
        ...

    def variant(self, row: int) -> int:
        """Which variant of the model a row sees; rows of one variant can share work."""
        ...

    def first_layer(self, row: int) -> int:
        """The first decoder layer of which a row sees another output than the base model gives."""
        ...


class Unedited:
    """The listener that changes nothing."""

    @contextmanager
    def applied(self, rows: Tensor) -> Iterator[None]:
        """Nothing is applied."""
        yield

    def keep(self, positions: Tensor) -> None:
        """Nothing to follow."""

    def variant(self, row: int) -> int:
        """All rows see the same model."""
        return 0

    def first_layer(self, row: int) -> int:
        """Every layer is computed."""
        return 0


class LowerLayers(Protocol):
    """What the base model's lower layers give for sequences, so that variants need not compute them again."""

    def knows(self, sequences: Sequence[Sequence[int]], shared: int) -> bool:
        """Whether these sequences, which have `shared` tokens in common, are those it was made for."""
        ...

    def level(self, first_layer: int) -> int:
        """How many layers from the first one are known, none of them after `first_layer`."""
        ...

    def answering(self, level: int, sequences: Sequence[Sequence[int]], width: int) -> AbstractContextManager[None]:
        """While this lasts, the first `level` layers compute nothing: they give what is known of the last `width` tokens."""
        ...

    def fill(self, cache: DynamicCache, level: int, sequences: Sequence[Sequence[int]], width: int) -> None:
        """Append the keys and values of those layers and tokens to `cache`."""
        ...


@dataclass
class Decoding:
    """A batch whose prompts have been read: what the next step needs.

    Attributes:
        cache: keys and values so far.
        mask: attention mask over everything in the cache, [rows, tokens].
        positions: position of the last token of each row, [rows, 1].
    """

    cache: DynamicCache
    mask: Tensor
    positions: Tensor


def next_token_logprobs(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], rows: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Log-probabilities of the token after each sequence, in batches: (indices, float32 [rows, vocabulary]).

    Args:
        lm: the model.
        sequences: token ids.
        rows: sequences per forward pass.
    """
    for indices, logits, _ in read_prompts(lm, sequences, rows, 0, Unedited()):
        yield indices, logits.float().log_softmax(-1)


def continuation_logits(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> Tensor:
    """Logits of every token of given continuations, read at once (teacher forcing).

    Args:
        lm: the model, with whatever is applied to it.
        prompts: token ids.
        continuations: token ids that follow each prompt, at least one.

    Returns:
        [rows, longest continuation, vocabulary]; those of a shorter continuation stand at the end of its row.
    """
    with torch.inference_mode(), grouped_queries(lm):
        return differentiable_logits(lm, prompts, continuations)


def differentiable_logits(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], shared: int = 0
) -> Tensor:
    """The same, through which gradients flow to what is applied to the model.

    Args:
        lm: the model, with whatever is applied to it.
        prompts: token ids.
        continuations: token ids that follow each prompt, at least one.
        shared: tokens that all prompts start with, which are read once for all rows; the model must be `shareable`.
    """
    sequences = [[*prompt, *rest[:-1]] for prompt, rest in zip(prompts, continuations, strict=True)]
    longest = max(map(len, continuations))
    ids, mask = left_padded(lm, [sequence[shared:] for sequence in sequences])
    optional: dict[str, Any] = {"logits_to_keep": longest, "use_cache": shared > 0}
    cache = DynamicCache(config=lm.model.config) if shared else None
    with contiguous_head(lm.model):
        if cache is not None:
            start = torch.tensor([list(sequences[0][:shared])], device=lm.device)
            few = accepted_options(lm.model, {"logits_to_keep": 1, "use_cache": True})
            lm.model(input_ids=start, past_key_values=cache, **few)
            cache.batch_repeat_interleave(len(sequences))
            mask = torch.cat([mask.new_ones(len(mask), shared), mask], dim=1)
            optional["past_key_values"] = cache
        optional["position_ids"] = token_positions(mask)[:, shared:]
        logits: Tensor = lm.model(input_ids=ids, attention_mask=mask, **accepted_options(lm.model, optional)).logits
    return logits[:, -longest:]


def read_prompts(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    rows: int,
    room: int,
    listener: RowListener,
    lower: LowerLayers | None = None,
) -> Iterator[tuple[list[int], Tensor, Decoding]]:
    """Read all sequences, in batches by length: (indices, logits of the next token [rows, vocabulary], state).

    What all sequences start with (system prompt, template) is read once per variant and shared. The listener is
    applied while the caller works on a batch.

    Args:
        lm: the model.
        sequences: token ids; `listener` sees sequence i as its row i.
        rows: sequences per batch.
        room: tokens that the caller will append; with 0 batches are as small as is fast, and only what was computed is
            in the state.
        listener: what is applied.
        lower: layers that need not be computed below a variant's first changed one.
    """
    with torch.inference_mode(), contiguous_head(lm.model), grouped_queries(lm):
        reader = _Reader(lm, sequences, rows, room, listener, lower)
        for parts in reader.batches():
            indices, logits, state = reader.read(parts)
            with listener.applied(torch.tensor(indices, device=lm.device)):
                yield indices, logits, state


class _Reader:
    """Reads prompts in parts of like length and equal lower layers, and puts the parts together to batches."""

    def __init__(
        self,
        lm: LanguageModel,
        sequences: Sequence[Sequence[int]],
        rows: int,
        room: int,
        listener: RowListener,
        lower: LowerLayers | None,
    ) -> None:
        self._lm = lm
        self._sequences = sequences
        self._rows = rows
        self._room = room
        self._listener = listener
        self._joinable = shareable(lm.model)
        shared = common_prefix(sequences) if self._joinable else 0
        self._shared = shared if shared >= SHORTEST_PREFIX else 0
        self._lower = lower if lower is not None and lower.knows(sequences, self._shared) else None
        every = range(len(sequences))
        self._levels = [0 if self._lower is None else self._lower.level(listener.first_layer(row)) for row in every]
        variants = [listener.variant(row) for row in every]
        first_rows = {variant: row for row, variant in reversed(list(enumerate(variants)))}
        places = {variant: place for place, variant in enumerate(first_rows)}
        self._places = [places[variant] for variant in variants]  # of a sequence's variant in the prefix
        self._prefix = self._read_prefix(list(first_rows.values())) if self._shared else None

    def batches(self) -> Iterator[list[list[int]]]:
        """Batches of sequences, in the parts in which they are read; where nothing follows, each part is a batch."""
        size = self._rows if self._room else len(self._sequences)
        for batch in batches_by_length([len(s) for s in self._sequences], size):
            parts = self._parts(batch)
            yield from [parts] if self._room else ([part] for part in parts)

    def read(self, parts: list[list[int]]) -> tuple[list[int], Tensor, Decoding]:
        """Read a batch: (indices of its rows, logits, state)."""
        width = max(self._own(part[0]) for part in parts)
        capacity = self._shared + width + self._room
        read = [self._read_part(part, capacity if len(parts) == 1 else 0) for part in parts]
        caches = [cache for _, cache in read]
        cache = caches[0] if len(parts) == 1 else joined(caches, self._lm.model, self._shared, capacity)
        indices = [i for part in parts for i in part]
        _, mask, positions = self._inputs(indices)
        return indices, torch.cat([logits for logits, _ in read]), Decoding(cache, mask, positions[:, -1:])

    def _parts(self, batch: Sequence[int]) -> list[list[int]]:
        """The batch in parts of about `PART_TOKENS`, the longest sequence of each first."""
        if self._room and not self._joinable:
            return [list(batch)]
        parts: list[list[int]] = []
        for i in sorted(batch, key=lambda i: (self._levels[i], -len(self._sequences[i]))):
            part = parts[-1] if parts else None
            limit = min(self._rows, -(-PART_TOKENS // self._own(part[0]))) if part else 0
            if part and self._levels[i] == self._levels[part[0]] and len(part) < limit:
                part.append(i)
            else:
                parts.append([i])
        return parts

    def _own(self, index: int) -> int:
        """Tokens of a sequence that it does not share with all others."""
        return len(self._sequences[index]) - self._shared

    def _inputs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Own ids [rows, own tokens], attention mask [rows, all tokens] and positions [rows, own tokens]."""
        ids, mask = left_padded(self._lm, [self._sequences[i][self._shared :] for i in indices])
        mask = torch.cat([mask.new_ones(len(indices), self._shared), mask], dim=1)
        return ids, mask, token_positions(mask)[:, self._shared :]

    def _read_prefix(self, variants: list[int]) -> DynamicCache:
        """What all sequences start with, read once for each variant; a variant is given by a row that sees it."""
        lm, caches = self._lm, []
        some = max(1, min(self._rows, PART_TOKENS // self._shared))
        for start in range(0, len(variants), some):
            rows = torch.tensor(variants[start : start + some], device=lm.device)
            ids = torch.tensor([list(self._sequences[0][: self._shared])] * len(rows), device=lm.device)
            mask = torch.ones_like(ids)
            with self._listener.applied(rows):
                caches.append(forward_pass(lm, ids, mask, token_positions(mask), self._shared)[1])
        return caches[0] if len(caches) == 1 else joined(caches, lm.model, self._shared, self._shared)

    def _read_part(self, part: list[int], capacity: int) -> tuple[Tensor, DynamicCache]:
        lm, lower, level = self._lm, self._lower, self._levels[part[0]]
        ids, mask, positions = self._inputs(part)
        capacity = capacity or mask.shape[1]
        cache: DynamicCache | None = None
        if self._prefix is not None:
            cache = expanded(self._prefix, torch.tensor([self._places[i] for i in part]), lm.model, capacity)
        sequences = [self._sequences[i] for i in part]
        with ExitStack() as stack:
            stack.enter_context(self._listener.applied(torch.tensor(part, device=lm.device)))
            if lower is not None and level:
                stack.enter_context(lower.answering(level, sequences, ids.shape[1]))
            logits, cache = forward_pass(lm, ids, mask, positions, capacity, cache)
        if lower is not None and level and self._room:
            lower.fill(cache, level, sequences, ids.shape[1])
        return logits, cache


def step(lm: LanguageModel, state: Decoding, tokens: Tensor) -> Tensor:
    """Append one token [rows, 1] to every row of `state`; the logits of the next, [rows, vocabulary]."""
    state.mask = torch.nn.functional.pad(state.mask, (0, 1), value=1)
    state.positions = state.positions + 1
    mask = state.mask
    full = all(isinstance(layer, PreallocatedLayer) for layer in state.cache.layers)
    if full and uses_sdpa(lm.model):
        # As the attention takes it: making it from [rows, tokens], the library looks at its values and waits for a GPU.
        mask = mask[:, None, None].bool()
    return forward_pass(lm, tokens, mask, state.positions, 0, state.cache)[0]
