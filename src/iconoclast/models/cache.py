"""A key-value cache written in place, and a prefix of it that many rows share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of full attention with memory for `capacity` tokens; transformers' own copies itself at every token."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows, heads, tokens, size] and return all of them so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._buffers is None or end > self.capacity:
            self.capacity = max(self.capacity, 2 * end if self._buffers else end)
            self._buffers = (self._buffer(key_states), self._buffer(value_states))
            if start:
                for buffer, states in zip(self._buffers, self.filled, strict=True):
                    buffer[:, :, :start] = states
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order, with repeats allowed."""
        keys, values = self.filled
        self.is_initialized = False
        self._buffers = None
        self.update(keys[indices.to(keys.device)], values[indices.to(values.device)])

    @property
    def filled(self) -> tuple[Tensor, Tensor]:
        """Keys and values so far, each [rows, heads, tokens, size]."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _buffer(self, like: Tensor) -> Tensor:
        rows, heads, _, size = like.shape
        return torch.empty(rows, heads, self.capacity, size, dtype=like.dtype, device=like.device)


def new_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return an empty cache whose layers of full attention have room for `capacity` tokens."""
    cache = DynamicCache(config=model.config)
    cache.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def keep_rows(cache: DynamicCache, rows: Tensor) -> None:
    """Keep only these rows of a cache, in this order."""
    layers: Any = cache.layers
    for layer in layers:
        if hasattr(layer, "conv_states"):  # recurrent layers know no other way, and hybrid ones would do half of it
            layer.reorder_cache(rows)
        else:
            layer.batch_select_indices(rows)


def shareable(model: PreTrainedModel) -> bool:
    """Check that rows can share a prefix: only full attention ignores padding wherever it stands."""
    layers = new_cache(model, 1).layers
    return bool(layers) and all(isinstance(layer, PreallocatedLayer) for layer in layers)


def expanded(prefix: DynamicCache, rows: Tensor, model: PreTrainedModel, capacity: int) -> DynamicCache:
    """Return a new cache whose row i begins with row `rows[i]` of `prefix`."""
    cache = new_cache(model, capacity)
    for source, layer in zip(prefix.layers, cache.layers, strict=True):
        assert isinstance(source, PreallocatedLayer) and isinstance(layer, PreallocatedLayer)
        layer.update(*(states[rows.to(states.device)] for states in source.filled))
    return cache


def joined(caches: Sequence[DynamicCache], model: PreTrainedModel, shared: int, capacity: int) -> DynamicCache:
    """Return a new cache with the rows of all `caches`, in order; those are emptied on the way, to save memory.

    What follows their `shared` first tokens moves to the right end of the longest, to match left padding.
    """
    cache = new_cache(model, capacity)
    layers: Any = cache.layers
    parts: Any = caches
    for layer in layers:
        both = zip(*(part.layers.pop(0).filled for part in parts), strict=True)
        layer.update(*(_stacked(tensors, shared) for tensors in both))
    return cache


def _stacked(tensors: Sequence[Tensor], shared: int) -> Tensor:
    """Stack [rows, heads, tokens, size] tensors of several batches; the gaps are zero, and masked."""
    rows, width = sum(len(tensor) for tensor in tensors), max(tensor.shape[2] for tensor in tensors)
    result = tensors[0].new_zeros(rows, tensors[0].shape[1], width, tensors[0].shape[3])
    start = 0
    for tensor in tensors:
        end, own = start + len(tensor), tensor.shape[2] - shared
        result[start:end, :, :shared] = tensor[:, :, :shared]
        result[start:end, :, width - own :] = tensor[:, :, shared:]
        start = end
    return result


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return the number of tokens all sequences start with, not counting the last token of the shortest."""
    ordered = sorted(map(list, sequences))
    first, last = ordered[0], ordered[-1]  # whatever these two share, all in between share
    limit = min(map(len, ordered)) - 1
    return next((i for i in range(limit) if first[i] != last[i]), limit)
