"""What an edit is fitted on: prompts with responses that are as they should be, and what the base model says of them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iconoclast.models.batching import batches_by_length
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.reading import continuation_logits


@dataclass(frozen=True)
class Example:
    """A prompt and a response to it, as token ids; the response is never empty.

    Attributes:
        prompt: what the model is given.
        response: what it should say.
        behaviour: how a response that shows the behaviour begins; empty if there is none.
        avoided: places of the response whose tokens should not follow.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    behaviour: tuple[int, ...] = ()
    avoided: tuple[int, ...] = ()

    @property
    def rivals(self) -> list[int]:
        """For every token of the response the one that the behaviour has at the first place where they part; else -1."""
        rivals = [-1] * len(self.response)
        for place, (ours, theirs) in enumerate(zip(self.response, self.behaviour, strict=False)):
            if ours != theirs:
                rivals[place] = theirs
                break
        return rivals


def loop_of(tokens: Sequence[int], length: int = 8) -> tuple[int, ...]:
    """Return the places of the first `length` tokens that repeat those before them without a gap; none if there are none."""
    for start in range(1, len(tokens) - length + 1):
        for lag in range(1, start + 1):
            if tokens[start : start + length] == tokens[start - lag : start - lag + length]:
                return tuple(range(start, start + length))
    return ()


class Examples:
    """Examples of one kind, and the base model's next-token distributions along their responses.

    The distributions are kept as the states that the head turns into logits, a few hundred numbers a token in place of
    the vocabulary. Models whose logits are more than the head's output (soft caps, scales) are asked again each time.

    Args:
        lm: the base model, nothing applied to it.
        examples: prompts and responses.
        rows: sequences per forward pass.
        base: whether the base model is asked at all.
    """

    def __init__(self, lm: LanguageModel, examples: Sequence[Example], rows: int, base: bool = True) -> None:
        self.examples = list(examples)
        self._lm = lm
        self._states: list[Tensor] | None = self._collect(rows) if base else None

    def __len__(self) -> int:
        return len(self.examples)

    def draw(self, count: int, seed: str) -> list[int]:
        """Choose examples for a step; the same for the same seed."""
        return random.Random(seed).sample(range(len(self)), min(count, len(self)))

    def batches(self, indices: Sequence[int], rows: int) -> Iterator[list[int]]:
        """Yield those examples in batches of like length."""
        lengths = [len(self.examples[i].prompt) + len(self.examples[i].response) for i in indices]
        for batch in batches_by_length(lengths, rows):
            yield [indices[place] for place in batch]

    @torch.no_grad()
    def base_logits(self, indices: Sequence[int]) -> Tensor:
        """Return the base model's logits of every token of those responses, one after the other: [tokens, vocabulary]."""
        if self._states is None:
            return self._read(indices).clone()
        logits: Tensor = _head(self._lm)(torch.cat([self._states[i] for i in indices]).to(self._lm.device))
        return logits

    def _read(self, indices: Sequence[int]) -> Tensor:
        some = [self.examples[i] for i in indices]
        return continuation_logits(self._lm, [e.prompt for e in some], [e.response for e in some])

    def _collect(self, rows: int) -> list[Tensor] | None:
        head = _head(self._lm)
        caught: list[Tensor] = []
        handle = head.register_forward_hook(lambda module, args, output: caught.append(args[0]))
        states: dict[int, Tensor] = {}
        try:
            for batch in self.batches(range(len(self)), rows):
                caught.clear()
                logits = self._read(batch)
                if not caught or not _alike(head(caught[0][0, :8]), logits[:8]):
                    return None
                of_each = torch.split(caught[0][0], [len(self.examples[i].response) for i in batch])
                states |= {i: found.clone().cpu() for i, found in zip(batch, of_each, strict=True)}
        finally:
            handle.remove()
        return [states[i] for i in range(len(self))]


def _alike(first: Tensor, second: Tensor) -> bool:
    """Check that logits differ by rounding alone."""
    return torch.allclose(first, second, rtol=0.02, atol=0.02 * float(second.abs().max()))


def _head(lm: LanguageModel) -> nn.Module:
    head: nn.Module = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head
