"""Constraints on scores: text such as "compliance >= base - 0.05", and which of them an edit violates. No torch."""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from iconoclast.scores import Scores

RATES: Mapping[str, Callable[[Scores], float]] = {
    "failures": lambda scores: scores.failures.rate,
    "refusals": lambda scores: scores.refusals.rate,
    "soft_refusals": lambda scores: scores.soft_refusals.rate,
    "broken": lambda scores: scores.broken.rate,
    "overrefusals": lambda scores: scores.overrefusals.rate,
    "benign_broken": lambda scores: scores.benign_broken.rate,
    "disclaimers": lambda scores: scores.disclaimer_rate,
    "compliance": lambda scores: scores.compliance,
    "kl_divergence": lambda scores: scores.kl_divergence,
}
"""Scores that every edit has: rates from 0 to 1, disclaimers per response, nats."""

_TEXT = re.compile(r"(?P<score>\S.*?)\s*(?P<sign><=|>=)\s*(?P<base>base)?\s*(?P<number>[+-]?\s*\d+(\.\d+)?(e-?\d+)?)?")
_COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Constraint:
    """A limit of a score, perhaps from the base model's.

    Attributes:
        score: one of `RATES`, or a score of a user's or an installed package's.
        sign: <= or >=.
        from_base: whether `number` is added to the base model's score.
    """

    score: str
    sign: str
    from_base: bool
    number: float

    @classmethod
    def parse(cls, text: str) -> "Constraint":
        """Read a constraint; raise ValueError if it is none."""
        found = _TEXT.fullmatch(text.strip())
        if found is None or not (found["base"] or found["number"]):
            raise ValueError('Write it like "overrefusals <= 0.1", or "compliance >= base - 0.05"')
        number = (found["number"] or "0").replace(" ", "")
        if found["base"] and found["number"] and number[0] not in "+-":
            raise ValueError('Write it like "compliance >= base - 0.05"')
        return cls(found["score"], found["sign"], found["base"] is not None, float(number))

    @property
    def name(self) -> str:
        """Name of the score in tables and files: that of the function, without its file."""
        return self.score.rpartition(":")[2]

    def __str__(self) -> str:
        distance = f" {'-' if self.number < 0 else '+'} {abs(self.number):g}" if self.number else ""
        return f"{self.name} {self.sign} {f'base{distance}' if self.from_base else f'{self.number:g}'}"

    def holds(self, scores: Scores, base: Scores) -> bool:
        """Check an edit's scores; what is unknown does not hold."""
        value, from_base = self._value(scores), self._value(base) if self.from_base else 0.0
        return value is not None and from_base is not None and _COMPARE[self.sign](value, from_base + self.number)

    def _value(self, scores: Scores) -> float | None:
        return RATES[self.score](scores) if self.score in RATES else scores.own.get(self.name)


def own_scores(constraints: Sequence[str]) -> tuple[str, ...]:
    """Name the scores among the constraints' that are a user's or an installed package's."""
    return tuple(dict.fromkeys(s for text in constraints if (s := Constraint.parse(text).score) not in RATES))


def violated(constraints: Sequence[str], scores: Scores, base: Scores) -> tuple[str, ...]:
    """Return the constraints that do not hold, in short."""
    return tuple(str(c) for c in map(Constraint.parse, constraints) if not c.holds(scores, base))
