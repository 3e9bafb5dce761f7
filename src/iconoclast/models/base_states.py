"""States of the base model's layers for a list of prompts: computed once for every edit that begins above them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from iconoclast.models.anatomy import decoder_layers
from iconoclast.models.batching import Sequences
from iconoclast.models.cache import PreallocatedLayer, shareable
from iconoclast.models.hooks import replaced_forwards
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.memory import free_memory, token_bytes
from iconoclast.models.reading import RowListener, read_prompts, step

LARGEST_SHARE = 1 / 16
"""Share of the free memory that the states of one list of prompts may take."""
MOST_LEVELS = 10
"""Layers whose output is kept, at most: an edit that begins between two of them computes a few layers more."""
SAMPLE = 4
"""Prompts on which the shortcut is checked."""
TOLERANCE = 1e-3
"""Largest total variation distance the shortcut may cause; it feeds in the same numbers in the same shapes."""


@dataclass
class BaseStates:
    """Outputs, keys and values of the base model's layers for some prompts; see `reading.LowerLayers` for the methods.

    Tensors are left-padded and begin where the prompts differ.

    Attributes:
        shared: number of tokens that all prompts start with; they are left out.
        outputs: number of layers from the first → output of the last of them, [prompts, tokens, d].
        keys, values: of each layer that can be skipped, [prompts, heads, tokens, size].
        rows: prompt → row of the tensors.
        tuple_length: length of a layer's output tuple, which begins with the states; None if it is a tensor.
    """

    shared: int
    outputs: dict[int, Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    rows: dict[tuple[int, ...], int]
    layers: Sequence[nn.Module] = field(repr=False)
    tuple_length: int | None

    def knows(self, sequences: Sequences, shared: int) -> bool:
        return shared == self.shared and all(tuple(sequence) in self.rows for sequence in sequences)

    def level(self, first_layer: int) -> int:
        return max((level for level in self.outputs if level <= first_layer), default=0)

    def answering(self, level: int, sequences: Sequences, width: int) -> AbstractContextManager[None]:
        known = self.outputs[level]
        output = known[self._places(sequences).to(known.device), -width:]
        answer = output if self.tuple_length is None else (output, *[None] * (self.tuple_length - 1))
        return replaced_forwards(dict.fromkeys(self.layers[:level], lambda *args, **kwargs: answer))

    def fill(self, cache: DynamicCache, level: int, sequences: Sequences, width: int) -> None:
        places = self._places(sequences)
        for layer, keys, values in zip(cache.layers[:level], self.keys, self.values, strict=False):
            assert isinstance(layer, PreallocatedLayer)
            of = places.to(keys.device)
            layer.update(keys[of, :, -width:], values[of, :, -width:])

    def _places(self, sequences: Sequences) -> Tensor:
        return torch.tensor([self.rows[tuple(sequence)] for sequence in sequences])


def can_be_left_out(lm: LanguageModel, sequences: Sequences) -> bool:
    """Check on a few sequences, unedited, that skipping lower layers leaves the next two tokens as likely."""
    distinct = sorted(set(map(tuple, sequences)), key=lambda sequence: (len(sequence), sequence))
    if not shareable(lm.model) or lm.layers < 2:
        return False
    sample = list(dict.fromkeys(distinct[i * (len(distinct) - 1) // (SAMPLE - 1)] for i in range(SAMPLE)))
    levels = sorted({max(1, lm.layers // 2), lm.layers - 1})
    states = _collected(lm, sample, len(sample), levels)

    def two_tokens(layer: int) -> Tensor:
        ((_, first, state),) = read_prompts(lm, sample, len(sample), 1, _From(layer), states)
        second = step(lm, state, first.argmax(-1, keepdim=True))
        return torch.stack([first, second]).float().softmax(-1)

    with torch.inference_mode():
        whole = two_tokens(0)
        return all(float((two_tokens(level) - whole).abs().sum(-1).max()) / 2 <= TOLERANCE for level in levels)


def base_states(
    lm: LanguageModel,
    sequences: Sequences,
    rows: int,
    first: Callable[[list[int], Tensor], None] = lambda rows, of: None,
) -> BaseStates | None:
    """Return the unedited states of `sequences` after as many layers as memory allows; None if it allows none.

    Args:
        first: receives the logits of the token after the sequences, by rows of the states: [rows, vocabulary].
    """
    distinct = list(dict.fromkeys(map(tuple, sequences)))
    levels = _affordable_levels(lm, distinct)
    return _collected(lm, distinct, rows, levels, first) if levels else None


def _affordable_levels(lm: LanguageModel, sequences: Sequences) -> list[int]:
    """Choose the layers whose output is kept: every one, or every second, third, … of many or if memory is short."""
    tokens = len(sequences) * max(map(len, sequences))
    cached, state = token_bytes(lm)
    count = min(lm.layers - 1, MOST_LEVELS, int((free_memory(lm) * LARGEST_SHARE - cached * tokens) / (state * tokens)))
    if count < 1:
        return []
    stride = -(-(lm.layers - 1) // count)
    return list(range(stride, lm.layers, stride))


def _collected(
    lm: LanguageModel,
    sequences: Sequences,
    rows: int,
    levels: Sequence[int],
    first: Callable[[list[int], Tensor], None] = lambda rows, of: None,
) -> BaseStates:
    layers = decoder_layers(lm.model)
    level_of = {layers[level - 1]: level for level in levels}
    caught: dict[int, Tensor] = {}
    tuple_length: int | None = None

    def catch(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal tuple_length
        tuple_length = len(output) if isinstance(output, tuple) else None
        caught[level_of[module]] = output[0] if isinstance(output, tuple) else output

    def empty(like: Tensor) -> Tensor:
        return like.new_zeros(len(sequences), *like.shape[1:])

    states: BaseStates | None = None
    with ExitStack() as stack:
        for layer in level_of:
            stack.enter_context(layer.register_forward_hook(catch))
        for indices, logits, state in read_prompts(lm, sequences, rows, 0, RowListener()):
            first(indices, logits)
            width = next(iter(caught.values())).shape[1]
            shared = state.mask.shape[1] - width
            cached = [
                layer.filled for layer in state.cache.layers[: max(levels)] if isinstance(layer, PreallocatedLayer)
            ]
            keys, values = ([tensor[:, :, shared:] for tensor in tensors] for tensors in zip(*cached, strict=True))
            if states is None:  # the first batch holds the longest prompts
                outputs = {level: empty(tensor) for level, tensor in caught.items()}
                places = {tuple(sequence): i for i, sequence in enumerate(sequences)}
                of_cache = list(map(empty, keys)), list(map(empty, values))
                states = BaseStates(shared, outputs, *of_cache, places, list(layers), tuple_length)
            for level, output in caught.items():
                states.outputs[level][indices, -width:] = output
            for all_prompts, tensor in zip(states.keys + states.values, keys + values, strict=True):
                all_prompts[indices, :, -width:] = tensor
    assert states is not None
    return states


class _From(RowListener):
    def __init__(self, layer: int) -> None:
        self._layer = layer

    def first_layer(self, row: int) -> int:
        return self._layer
