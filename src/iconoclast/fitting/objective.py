"""What fitting minimises: a weighted sum of terms, each a mean over tokens of responses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn.functional import softplus

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
        rivals: the token that the behaviour would have put there, at the first place where it differs; else -1, [tokens].
    """

    logprobs: Tensor
    base: Callable[[], Tensor]
    ids: Tensor
    places: Tensor
    rivals: Tensor


@dataclass(frozen=True)
class Divergence:
    """KL(base ‖ edited) in nats a token, from place `start` of the responses to before place `end`."""

    name: str
    kind: Kind
    weight: float
    start: int = 0
    end: int = 1_000_000

    def where(self, tokens: Tokens) -> Tensor:
        """The tokens that count."""
        return (tokens.places >= self.start) & (tokens.places < self.end)

    def __call__(self, tokens: Tokens) -> Tensor:
        """The sum over the tokens that count."""
        counts = self.where(tokens)
        base = tokens.base()[counts]
        return (base.exp() * (base - tokens.logprobs[counts])).sum()


@dataclass(frozen=True)
class Likelihood:
    """Negative log-likelihood of the responses in nats a token, before place `end`."""

    name: str
    kind: Kind
    weight: float
    end: int

    def where(self, tokens: Tokens) -> Tensor:
        """The tokens that count."""
        return tokens.places < self.end

    def __call__(self, tokens: Tokens) -> Tensor:
        """The sum over the tokens that count."""
        counts = self.where(tokens)
        return -tokens.logprobs[counts].gather(-1, tokens.ids[counts, None]).sum()


@dataclass(frozen=True)
class Preference:
    """softplus(margin − lead), mean over examples.

    The lead is how much likelier, in nats, the response goes on than the behaviour at the first token where they part. An
    example that leads by far enough weighs nothing any more.
    """

    name: str
    kind: Kind
    weight: float
    margin: float = 1.0

    def where(self, tokens: Tokens) -> Tensor:
        """The tokens that count."""
        return tokens.rivals >= 0

    def __call__(self, tokens: Tokens) -> Tensor:
        """The sum over the tokens that count."""
        counts = self.where(tokens)
        logprobs = tokens.logprobs[counts]
        ours, theirs = (logprobs.gather(-1, ids[counts, None]) for ids in (tokens.ids, tokens.rivals))
        return softplus(self.margin - (ours - theirs)).sum()


Term = Divergence | Likelihood | Preference


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
