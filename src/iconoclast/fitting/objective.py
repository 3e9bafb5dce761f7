"""What fitting minimises: a weighted sum of terms, each a mean over tokens of responses."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.nn.functional import softplus

Kind = Literal["benign", "target", "loop"]
"""Which examples a term is about."""


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a batch of examples, one after the other.

    Attributes:
        places: place of every token in its response, from 0, [tokens].
        avoided: whether the token should not follow, [tokens].
        rivalled: whether the behaviour would have put another token there, and here for the first time, [tokens].
        divergences: KL(base ‖ edited) in nats, float32 [tokens].
        likelihoods: the edited model's log-probability of the token, float32 [tokens].
        rivals: that of the token that the behaviour would have put there, where it is rivalled, float32 [tokens].
    """

    places: Tensor
    avoided: Tensor
    rivalled: Tensor
    divergences: Tensor
    likelihoods: Tensor
    rivals: Tensor


@dataclass(frozen=True)
class Term(ABC):
    """A sum over some tokens of the responses to examples of a kind; `weight` is that of its mean.

    Attributes:
        pushes: whether it moves the behaviour; else it keeps the model as it is.
    """

    pushes: ClassVar[bool] = False
    name: str
    kind: Kind
    weight: float

    @abstractmethod
    def where(self, tokens: Tokens) -> Tensor:
        """Mark the tokens that count."""

    @abstractmethod
    def __call__(self, tokens: Tokens) -> Tensor:
        """Return the sum over the tokens that count."""


@dataclass(frozen=True)
class Divergence(Term):
    """KL(base ‖ edited) in nats a token, from place `start` of the responses to before place `end`."""

    start: int = 0
    end: int = 1_000_000

    def where(self, tokens: Tokens) -> Tensor:
        return (tokens.places >= self.start) & (tokens.places < self.end)

    def __call__(self, tokens: Tokens) -> Tensor:
        return tokens.divergences[self.where(tokens)].sum()


@dataclass(frozen=True)
class Likelihood(Term):
    """Negative log-likelihood of the responses in nats a token, before place `end`."""

    pushes: ClassVar[bool] = True
    end: int

    def where(self, tokens: Tokens) -> Tensor:
        return tokens.places < self.end

    def __call__(self, tokens: Tokens) -> Tensor:
        return -tokens.likelihoods[self.where(tokens)].sum()


@dataclass(frozen=True)
class Preference(Term):
    """softplus(margin − lead), mean over examples.

    The lead is how much likelier, in nats, the response goes on than the behaviour at the first token where they part. An
    example that leads by far enough weighs nothing any more.
    """

    pushes: ClassVar[bool] = True
    margin: float = 1.0

    def where(self, tokens: Tokens) -> Tensor:
        return tokens.rivalled

    def __call__(self, tokens: Tokens) -> Tensor:
        return softplus(self.margin - (tokens.likelihoods - tokens.rivals)[tokens.rivalled]).sum()


@dataclass(frozen=True)
class Unlikelihood(Term):
    """−log(1 − p) in nats a token, of tokens that should not follow (Welleck et al. 2020, arXiv:1908.04319)."""

    def where(self, tokens: Tokens) -> Tensor:
        return tokens.avoided

    def __call__(self, tokens: Tokens) -> Tensor:
        return -(-tokens.likelihoods[tokens.avoided].exp().clamp(max=0.999)).log1p().sum()


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
    def standard(
        cls,
        opening: float = 0.02,
        preference: float = 0.05,
        continuation: float = 0.0,
        opening_length: int = 40,
        first: float = 0.1,
        loops: float = 0.02,
        proximity: float = 0.0,
    ) -> "Objective":
        """Return the default: keep benign responses, and make target responses without the behaviour likelier than it.

        Args:
            opening: weight of the likelihood of the responses' first tokens.
            preference: weight of their lead over the behaviour.
            continuation: weight of the divergence from the base model after those.
            opening_length: how many they are.
            first: weight of the divergence at first tokens of benign responses, beside 1 for that at all tokens.
            loops: weight of the unlikelihood of tokens with which broken responses began to loop.
            proximity: weight of the distance from the start.
        """
        terms = (
            Divergence("benign divergence", "benign", 1.0),
            Divergence("first-token divergence", "benign", first, 0, 1),
            Likelihood("opening likelihood", "target", opening, opening_length),
            Preference("preference", "target", preference),
            Divergence("continuation divergence", "target", continuation, opening_length),
            Unlikelihood("loop unlikelihood", "loop", loops),
        )
        return cls(tuple(term for term in terms if term.weight), proximity)

    def of(self, kind: Kind) -> list[Term]:
        """Return the terms about examples of a kind."""
        return [term for term in self.terms if term.kind == kind]
