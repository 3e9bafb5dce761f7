"""What fitting minimises: a weighted sum of terms, each a mean over tokens of responses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["benign", "target"]
"""Which examples a term is about."""


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a batch of examples, one after the other.

    Attributes:
        logprobs: of the edited model, float32 [tokens, vocabulary].
        base: gives the base model's, float32 [tokens, vocabulary].
        ids: the tokens that follow, [tokens].
        places: place of every token in its response, from 0, [tokens].
    """

    logprobs: Tensor
    base: Callable[[], Tensor]
    ids: Tensor
    places: Tensor


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ edited) in nats a token, from place `start` of the responses on."""

    name: str
    kind: Kind
    weight: float
    start: int = 0

    def where(self, places: Tensor) -> Tensor:
        """The tokens that count."""
        return places >= self.start

    def __call__(self, tokens: Tokens) -> Tensor:
        """The sum over the tokens that count."""
        counts = self.where(tokens.places)
        base = tokens.base()[counts]
        return (base.exp() * (base - tokens.logprobs[counts])).sum()


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of the responses in nats a token, before place `end`."""

    name: str
    kind: Kind
    weight: float
    end: int

    def where(self, places: Tensor) -> Tensor:
        """The tokens that count."""
        return places < self.end

    def __call__(self, tokens: Tokens) -> Tensor:
        """The sum over the tokens that count."""
        counts = self.where(tokens.places)
        return -tokens.logprobs[counts].gather(-1, tokens.ids[counts, None]).sum()


Term = Divergence | Likelihood


@dataclass(frozen=True)
class Objective:
    """The terms, and how far the edit may stray from its start.

    Attributes:
        terms: means over tokens, each times its weight.
        proximity: weight of the squared distance of all λv from the start's.
    """

    terms: tuple[Term, ...]
    proximity: float = 0.0

    @classmethod
    def standard(cls, opening: float, continuation: float, opening_length: int, proximity: float = 0.0) -> "Objective":
        """The default: keep benign responses, make target responses open as they do without the behaviour, and go on as the base model would.

        Args:
            opening: weight of the likelihood of openings.
            continuation: weight of the divergence after them.
            opening_length: tokens of an opening.
            proximity: weight of the distance from the start.
        """
        terms = (
            Divergence("benign divergence", "benign", 1.0),
            Likelihood("opening likelihood", "target", opening, opening_length),
            Divergence("continuation divergence", "target", continuation, opening_length),
        )
        return cls(tuple(term for term in terms if term.weight), proximity)

    def of(self, kind: Kind) -> list[Term]:
        """The terms about examples of a kind."""
        return [term for term in self.terms if term.kind == kind]


def places_of(lengths: list[int]) -> Tensor:
    """Place of every token in its response, one response after the other, [tokens]."""
    return torch.cat([torch.arange(length) for length in lengths])
