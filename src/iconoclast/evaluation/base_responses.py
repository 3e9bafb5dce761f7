"""The base model's own responses, read again by it and by edited models: how far these are from it, token by token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from iconoclast.evaluation.divergence import bounded, kl_divergence
from iconoclast.evaluation.examination import Variant
from iconoclast.models.batching import batches_by_length
from iconoclast.models.decoding import decode, end_tokens
from iconoclast.models.memory import Rows
from iconoclast.models.reading import continuation_logits
from iconoclast.progress import Progress

ROWS_READ_AT_ONCE = 16
"""Responses whose token probabilities are computed at once: each takes length × vocabulary numbers."""


@dataclass(frozen=True)
class ReadAlong:
    """Divergences and likelihoods of a model on the base model's responses, by prompt.

    Attributes:
        divergences: KL(base ‖ this model) in nats, the mean over the tokens of the response.
        likelihoods: mean log-likelihood in nats, and number, of those tokens.
    """

    divergences: tuple[float, ...]
    likelihoods: tuple[tuple[float, int], ...]


@dataclass
class BaseResponses:
    """Responses of a base model to prompts, as token ids.

    Attributes:
        base: the base model.
        prompts: token ids of the prompts.
        length: tokens of a response, at most.
        rows: sequences per forward pass.
    """

    base: Variant
    prompts: Sequence[list[int]]
    length: int
    rows: Rows

    @cached_property
    def responses(self) -> list[list[int]]:
        """The responses, each with the end-of-text token that ended it, if any."""
        with self.base.applied():
            found = self.rows.adaptively(lambda rows: decode(self.base.lm, self.prompts, self.length, rows))
        return [ids if len(ids) == self.length else ids + self._ends[:1] for ids in found]

    @cached_property
    def _ends(self) -> list[int]:
        return end_tokens(self.base.lm)

    def read(
        self, variants: Sequence[Variant], progress: Progress, among: Sequence[int] | None = None
    ) -> list[ReadAlong]:
        """Let variants read the responses, all or those of some prompts; the base model reads them once for all variants."""
        chosen = range(len(self.prompts)) if among is None else among
        divergences = [[0.0] * len(self.prompts) for _ in variants]
        likelihoods = [[(0.0, 0)] * len(self.prompts) for _ in variants]
        lengths = [len(self.prompts[i]) + len(self.responses[i]) for i in chosen]

        def run(rows: int) -> None:
            for places in batches_by_length(lengths, min(rows, ROWS_READ_AT_ONCE)):
                some = [chosen[place] for place in places]
                with self.base.applied():
                    base = self._logits(self.base, some)
                for variant, kls, likely in zip(variants, divergences, likelihoods, strict=True):
                    with variant.applied():
                        own = self._logits(variant, some)
                    for i, before, after in zip(some, base, own, strict=True):
                        kls[i], likely[i] = self._compared(before, after, self.responses[i])
                    progress.advance(len(some))

        self.rows.adaptively(run)
        return [
            ReadAlong(tuple(kls[i] for i in chosen), tuple(likely[i] for i in chosen))
            for kls, likely in zip(divergences, likelihoods, strict=True)
        ]

    def _logits(self, variant: Variant, some: Sequence[int]) -> Sequence[torch.Tensor]:
        """Return the logits of every response, [tokens, vocabulary]."""
        responses = [self.responses[i] for i in some]
        logits = continuation_logits(variant.lm, [self.prompts[i] for i in some], responses)
        return torch.split(logits, [len(ids) for ids in responses])

    def _compared(self, base: torch.Tensor, own: torch.Tensor, ids: list[int]) -> tuple[float, tuple[float, int]]:
        """Return KL, likelihood and number of the tokens of a response from logits [tokens, vocabulary]."""
        if ids[-1] in self._ends:  # the one that ended it: a model can have several
            ids = [*ids[:-1], self._ends[int(base[-1, self._ends].argmax())]]
        tokens = torch.tensor(ids, device=own.device)
        logprobs = [logits.float().log_softmax(-1) for logits in (base, own)]
        divergence = float(bounded(kl_divergence(logprobs[0], logprobs[1].to(base.device))).mean())
        said = logprobs[1].gather(-1, tokens[:, None]).nan_to_num(-math.inf).clamp(min=-700)
        return divergence, (float(said.mean()), len(tokens))
