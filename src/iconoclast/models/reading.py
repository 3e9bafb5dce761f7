"""Prompts read in batches: next-token log-probabilities, and the state from which decoding continues."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from iconoclast.models.batching import Sequences, batches_by_length, left_padded, token_positions
from iconoclast.models.cache import PreallocatedLayer, common_prefix, expanded, joined, shareable
from iconoclast.models.forward import accepted_options, contiguous_head, forward_pass, grouped_queries, head_input
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.transformers_internals import uses_sdpa

PART_TOKENS = 2048
"""Tokens read at once: enough for full-speed matrix products, few enough for sequences of similar length."""
SHORTEST_PREFIX = 8
"""Tokens below which a shared prefix is not worth a pass of its own."""


class RowListener:
    """An observer of which rows are left in a batch (live edits, for instance); the base class does nothing."""

    @contextmanager
    def applied(self, rows: Tensor) -> Iterator[None]:
        """Make row i of the batch the listener's row `rows[i]` while the context lasts."""
        yield

    def keep(self, positions: Tensor) -> None:
        """Keep only these positions of the batch, in this order."""

    def variant(self, row: int) -> int:
        """Return the variant of the model that a row sees; rows of one variant can share work."""
        return 0

    def first_layer(self, row: int) -> int:
        """Return the first decoder layer whose output differs from the base model's for a row."""
        return 0


class LowerLayers(Protocol):
    """Known outputs of the base model's lower layers (`BaseStates`), which variants need not compute again."""

    def knows(self, sequences: Sequences, shared: int) -> bool:
        """Check that these sequences, with `shared` tokens in common, are covered."""

    def level(self, first_layer: int) -> int:
        """Return the number of known layers from the first one, none of them after `first_layer`."""

    def answering(self, level: int, sequences: Sequences, width: int) -> AbstractContextManager[None]:
        """Let the first `level` layers return what is known of the last `width` tokens while the context lasts."""

    def fill(self, cache: DynamicCache, level: int, sequences: Sequences, width: int) -> None:
        """Append the keys and values of those layers and tokens to `cache`."""


@dataclass
class Decoding:
    """A batch of prompts already read: cache, mask [rows, all tokens], position of each row's last token [rows, 1]."""

    cache: DynamicCache
    mask: Tensor
    positions: Tensor


@torch.inference_mode()  # of a generator: only while it runs
def next_token_logprobs(lm: LanguageModel, sequences: Sequences, rows: int) -> Iterator[tuple[list[int], Tensor]]:
    """Yield log-probabilities of the token after each sequence, by batch: (indices, float32 [rows, vocabulary])."""
    for indices, logits, _ in read_prompts(lm, sequences, rows, 0, RowListener()):
        yield indices, logits.float().log_softmax(-1)


def first_token_logprobs(lm: LanguageModel, sequences: Sequences, rows: int) -> Tensor:
    """Return log-probabilities of the token after each sequence, float32 [sequences, vocabulary]."""
    found: dict[int, Tensor] = {}
    for indices, logprobs in next_token_logprobs(lm, sequences, rows):
        found.update(zip(indices, logprobs, strict=True))
    return torch.stack([found[i] for i in range(len(sequences))])


@torch.inference_mode()
def continuation_logits(lm: LanguageModel, prompts: Sequences, continuations: Sequences) -> Tensor:
    """Return the logits of every token of the (non-empty) continuations, read at once (teacher forcing).

    The shape is [tokens, vocabulary], with the tokens of one continuation after those of another.
    """
    with grouped_queries(lm):
        return differentiable_logits(lm, prompts, continuations)


def differentiable_logits(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], shared: int = 0
) -> Tensor:
    """Return `continuation_logits` with gradients to whatever is applied to the model.

    The first `shared` tokens of all prompts are read once for all rows; the model must then be `shareable`.
    """
    sequences = [[*prompt, *rest[:-1]] for prompt, rest in zip(prompts, continuations, strict=True)]
    lengths = torch.tensor([len(rest) for rest in continuations], device=lm.device)
    longest = int(lengths.max())
    of_continuations = torch.arange(longest, device=lm.device) >= longest - lengths[:, None]

    def select(states: Tensor) -> Tensor:
        return states[:, -longest:][of_continuations.to(states.device)]

    ids, mask = left_padded(lm, [sequence[shared:] for sequence in sequences])
    optional: dict[str, Any] = {"logits_to_keep": longest, "use_cache": shared > 0}
    cache = DynamicCache(config=lm.model.config) if shared else None
    if cache is not None:
        start = torch.tensor([list(sequences[0][:shared])], device=lm.device)
        few = accepted_options(lm.model, {"logits_to_keep": 1, "use_cache": True})
        with contiguous_head(lm.model):
            lm.model(input_ids=start, past_key_values=cache, **few)
        cache.batch_repeat_interleave(len(sequences))
        mask = torch.cat([mask.new_ones(len(mask), shared), mask], dim=1)
        optional["past_key_values"] = cache
    optional["position_ids"] = token_positions(mask)[:, shared:]
    with head_input(lm.model, lambda states: select(states)[None]):
        logits: Tensor = lm.model(input_ids=ids, attention_mask=mask, **accepted_options(lm.model, optional)).logits
    return select(logits) if len(logits) == len(sequences) else logits[0]


@torch.inference_mode()
def read_prompts(
    lm: LanguageModel,
    sequences: Sequences,
    rows: int,
    room: int,
    listener: RowListener,
    lower: LowerLayers | None = None,
) -> Generator[tuple[list[int], Tensor, Decoding], None, None]:
    """Read all sequences in batches by length: (indices, logits of the next token [rows, vocabulary], state).

    What all sequences start with (system prompt, template) is read once per variant.

    Args:
        room: tokens the caller will append; with 0, batches are small and states hold no more than was read.
        listener: stays applied while the caller works on a batch; sequence i is its row i.
        lower: spares the layers below a variant's first changed one.
    """
    with contiguous_head(lm.model), grouped_queries(lm):
        reader = _Reader(lm, sequences, rows, room, listener, lower)
        for parts in reader.batches():
            indices, logits, state = reader.read(parts)
            with listener.applied(torch.tensor(indices, device=lm.device)):
                yield indices, logits, state


@dataclass
class _Reader:
    lm: LanguageModel
    sequences: Sequences
    rows: int
    room: int
    listener: RowListener
    lower: LowerLayers | None

    def __post_init__(self) -> None:
        self.joinable = shareable(self.lm.model)
        shared = common_prefix(self.sequences) if self.joinable else 0
        self.shared = shared if shared >= SHORTEST_PREFIX else 0
        if self.lower is not None and not self.lower.knows(self.sequences, self.shared):
            self.lower = None
        lower, every = self.lower, range(len(self.sequences))
        self.levels = [0 if lower is None else lower.level(self.listener.first_layer(row)) for row in every]
        variants = [self.listener.variant(row) for row in every]
        distinct = list(dict.fromkeys(variants))
        self.places = [distinct.index(variant) for variant in variants]  # of a sequence's variant in the prefix
        self.prefix = self._read_prefix([variants.index(variant) for variant in distinct]) if self.shared else None

    def batches(self) -> Iterator[list[list[int]]]:
        """Yield batches split into the parts to read; with no room to decode, each part is a batch."""
        size = self.rows if self.room else len(self.sequences)
        for batch in batches_by_length([len(s) for s in self.sequences], size):
            parts = self._parts(batch)
            yield from [parts] if self.room else ([part] for part in parts)

    def read(self, parts: list[list[int]]) -> tuple[list[int], Tensor, Decoding]:
        width = max(self._own(part[0]) for part in parts)
        capacity = self.shared + width + self.room
        read = [self._read_part(part, capacity if len(parts) == 1 else 0) for part in parts]
        caches = [cache for _, cache in read]
        cache = caches[0] if len(parts) == 1 else joined(caches, self.lm.model, self.shared, capacity)
        indices = [i for part in parts for i in part]
        _, mask, positions = self._inputs(indices)
        return indices, torch.cat([logits for logits, _ in read]), Decoding(cache, mask, positions[:, -1:])

    def _parts(self, batch: Sequence[int]) -> list[list[int]]:
        """Split a batch into parts of about `PART_TOKENS` with equal lower layers, longest sequences first."""
        if self.room and not self.joinable:
            return [list(batch)]
        parts: list[list[int]] = []
        for i in sorted(batch, key=lambda i: (self.levels[i], -len(self.sequences[i]))):
            part = parts[-1] if parts else None
            limit = min(self.rows, -(-PART_TOKENS // self._own(part[0]))) if part else 0
            if part and self.levels[i] == self.levels[part[0]] and len(part) < limit:
                part.append(i)
            else:
                parts.append([i])
        return parts

    def _own(self, index: int) -> int:
        return len(self.sequences[index]) - self.shared

    def _inputs(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return own ids [rows, own tokens], mask [rows, all tokens] and positions [rows, own tokens]."""
        ids, mask = left_padded(self.lm, [self.sequences[i][self.shared :] for i in indices])
        mask = torch.cat([mask.new_ones(len(indices), self.shared), mask], dim=1)
        return ids, mask, token_positions(mask)[:, self.shared :]

    def _read_prefix(self, variants: list[int]) -> DynamicCache:
        """Read the shared prefix once per variant; a variant is given by a row that sees it."""
        lm, caches = self.lm, []
        some = max(1, min(self.rows, PART_TOKENS // self.shared))
        for start in range(0, len(variants), some):
            rows = torch.tensor(variants[start : start + some], device=lm.device)
            ids = torch.tensor([list(self.sequences[0][: self.shared])] * len(rows), device=lm.device)
            mask = torch.ones_like(ids)
            with self.listener.applied(rows):
                caches.append(forward_pass(lm, ids, mask, token_positions(mask), self.shared)[1])
        return caches[0] if len(caches) == 1 else joined(caches, lm.model, self.shared, self.shared)

    def _read_part(self, part: list[int], capacity: int) -> tuple[Tensor, DynamicCache]:
        lm, lower, level = self.lm, self.lower, self.levels[part[0]]
        ids, mask, positions = self._inputs(part)
        capacity = capacity or mask.shape[1]
        cache: DynamicCache | None = None
        if self.prefix is not None:
            cache = expanded(self.prefix, torch.tensor([self.places[i] for i in part]), lm.model, capacity)
        sequences = [self.sequences[i] for i in part]
        with ExitStack() as stack:
            stack.enter_context(self.listener.applied(torch.tensor(part, device=lm.device)))
            if lower is not None and level:
                stack.enter_context(lower.answering(level, sequences, ids.shape[1]))
            logits, cache = forward_pass(lm, ids, mask, positions, capacity, cache)
        if lower is not None and level and self.room:
            lower.fill(cache, level, sequences, ids.shape[1])
        return logits, cache


@torch.inference_mode()
def step(lm: LanguageModel, state: Decoding, tokens: Tensor) -> Tensor:
    """Append one token [rows, 1] to every row and return the logits of the next, [rows, vocabulary]."""
    state.mask = torch.nn.functional.pad(state.mask, (0, 1), value=1)
    state.positions = state.positions + 1
    mask = state.mask
    if uses_sdpa(lm.model) and all(isinstance(layer, PreallocatedLayer) for layer in state.cache.layers):
        # As the attention takes it: making it from [rows, tokens], the library looks at its values and waits for a GPU.
        mask = mask[:, None, None].bool()
    return forward_pass(lm, tokens, mask, state.positions, 0, state.cache)[0]
