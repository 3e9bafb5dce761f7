"""Forward passes over many sequences: last-token residuals and next-token log-probabilities."""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.cache import common_prefix, expanded, joined, new_cache, shareable
from iconoclast.models.loading import LanguageModel

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


def batches_by_length(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of at most `size`, longest first, so that a batch holds sequences of like length."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def affordable_rows(lm: LanguageModel, tokens: int, batch_size: int, max_batch_size: int) -> int:
    """Rows per forward pass: `batch_size` if set, else what a quarter of the free memory holds, up to the limit."""
    if batch_size:
        return batch_size
    config = lm.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = torch.finfo(lm.model.dtype).bits // 8
    cache = 2 * config.num_hidden_layers * heads * head_dim * width * tokens
    activations = 8 * config.hidden_size * width * tokens
    logits = 12 * config.vocab_size
    free = torch.cuda.mem_get_info()[0] if lm.device.type == "cuda" else psutil.virtual_memory().available
    return max(1, min(max_batch_size, int(free / 4 / (cache + activations + logits))))


def last_token_residuals(
    lm: LanguageModel, sequences: Sequence[Sequence[int]], rows: int, advance: Callable[[int], None] = lambda n: None
) -> Tensor:
    """The residual stream after every layer at the last token of each sequence: float32 [n, L, d], on the CPU.

    Taken by hooks on the layers themselves: the framework's own last hidden state has been through the final norm.
    """
    layers = decoder_layers(lm.model)
    result = torch.empty(len(sequences), len(layers), lm.hidden_size)
    caught: dict[int, Tensor] = {}

    def catch(index: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            caught[index] = hidden[:, -1].float().cpu()

        return hook

    handles = [layer.register_forward_hook(catch(i)) for i, layer in enumerate(layers)]
    try:
        for indices, _ in next_token_logprobs(lm, sequences, rows):
            result[indices] = torch.stack([caught[i] for i in range(len(layers))], dim=1)
            advance(len(indices))
    finally:
        for handle in handles:
            handle.remove()
    return result


def next_token_logprobs(
    lm: LanguageModel,
    sequences: Sequence[Sequence[int]],
    rows: int,
    listener: RowListener | None = None,
    lower: LowerLayers | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Log-probabilities of the token after each sequence, in batches: (indices, float32 [rows, vocabulary]).

    Args:
        lm: the model.
        sequences: token ids; `listener` sees sequence i as its row i.
        rows: sequences per forward pass.
        listener: what is applied while the passes run.
        lower: layers that need not be computed below a variant's first changed one.
    """
    for indices, logits, _ in read_prompts(lm, sequences, rows, 0, listener or Unedited(), lower):
        yield indices, logits.float().log_softmax(-1)


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
        room: tokens that the caller will append; with 0 the state is not to be used.
        listener: what is applied.
        lower: layers that need not be computed below a variant's first changed one.
    """
    shared = common_prefix(sequences) if shareable(lm.model) else 0
    shared = shared if shared >= SHORTEST_PREFIX else 0
    variants = [listener.variant(row) for row in range(len(sequences))]
    order = {variant: i for i, variant in enumerate(dict.fromkeys(variants))}
    if lower is not None and not lower.knows(sequences, shared):
        lower = None
    levels = [0 if lower is None else lower.level(listener.first_layer(row)) for row in range(len(sequences))]
    with torch.inference_mode(), contiguous_head(lm.model):
        prefix: DynamicCache | None = None
        if shared:
            first_rows = [variants.index(variant) for variant in order]
            with listener.applied(torch.tensor(first_rows, device=lm.device)):
                ids = torch.tensor([list(sequences[0][:shared])] * len(order), device=lm.device)
                _, prefix = _forward(lm, ids, torch.ones_like(ids), _positions(torch.ones_like(ids)), shared)
        for batch in batches_by_length([len(s) for s in sequences], rows):
            indices = sorted(batch, key=lambda i: levels[i])
            ids, mask = _left_padded(lm, [sequences[i][shared:] for i in indices])
            width = ids.shape[1]
            mask = torch.cat([mask.new_ones(len(indices), shared), mask], dim=1)
            positions = _positions(mask)[:, shared:]
            parts = []
            for level, group in itertools.groupby(range(len(indices)), key=lambda row: levels[indices[row]]):
                part = list(group)
                members = [indices[row] for row in part]
                at = slice(part[0], part[-1] + 1)
                capacity = shared + width + (room if len(part) == len(indices) else 0)
                cache = None
                if prefix is not None:
                    source = torch.tensor([order[variants[i]] for i in members], device=lm.device)
                    cache = expanded(prefix, source, lm.model, capacity)
                with ExitStack() as stack:
                    stack.enter_context(listener.applied(torch.tensor(members, device=lm.device)))
                    if lower is not None and level:
                        stack.enter_context(lower.answering(level, [sequences[i] for i in members], width))
                    logits, cache = _forward(lm, ids[at], mask[at], positions[at], capacity, cache)
                if lower is not None and level and room:
                    lower.fill(cache, level, [sequences[i] for i in members], width)
                parts.append((logits, cache))
            cache = (
                parts[0][1]
                if len(parts) == 1 or not room
                else joined([c for _, c in parts], lm.model, shared + width + room)
            )
            with listener.applied(torch.tensor(indices, device=lm.device)):
                yield indices, torch.cat([logits for logits, _ in parts]), Decoding(cache, mask, positions[:, -1:])


def step(lm: LanguageModel, state: Decoding, tokens: Tensor) -> Tensor:
    """Append one token [rows, 1] to every row of `state`; the logits of the next, [rows, vocabulary]."""
    state.mask = torch.nn.functional.pad(state.mask, (0, 1), value=1)
    state.positions = state.positions + 1
    return _forward(lm, tokens, state.mask, state.positions, 0, state.cache)[0]


@contextmanager
def contiguous_head(model: nn.Module) -> Iterator[None]:
    """While this lasts, the language-model head gets a contiguous input.

    With `logits_to_keep=1` it gets a slice, and PyTorch then copies the whole vocabulary matrix once per row when no
    gradient is needed: most of the time of a prefill.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _forward(
    lm: LanguageModel,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor,
    capacity: int,
    cache: DynamicCache | None = None,
) -> tuple[Tensor, DynamicCache]:
    cache = new_cache(lm.model, capacity) if cache is None else cache
    named = inspect.signature(type(lm.model).forward).parameters
    optional: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1, "use_cache": True}
    logits: Tensor = lm.model(
        input_ids=ids,
        attention_mask=mask,
        past_key_values=cache,
        **{name: value for name, value in optional.items() if name in named},
    ).logits
    return logits[:, -1], cache


def _left_padded(lm: LanguageModel, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, [rows, longest]."""
    pad = lm.tokenizer.pad_token_id
    width = max(len(s) for s in sequences)
    ids = [[pad] * (width - len(s)) + list(s) for s in sequences]
    mask = [[0] * (width - len(s)) + [1] * len(s) for s in sequences]
    return torch.tensor(ids, device=lm.device), torch.tensor(mask, device=lm.device)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)
