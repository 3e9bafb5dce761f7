"""Constraints on scores: text such as "compliance >= base - 0.05", and which of them an edit violates. No torch."""

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

from iconoclast.goals import estimate, short
from iconoclast.scores import Scores

_TEXT = re.compile(r"(?P<score>\S.*?)\s*(?P<sign><=|>=)\s*(?P<base>base)?\s*(?P<number>[+-]?\s*\d+(\.\d+)?(e-?\d+)?)?")
_COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Constraint:
    """A limit of a score, perhaps from the base model's.

    Attributes:
        score: name of a score (`goals`).
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
        """Name of the score in tables and files: that of a function, without its file."""
        return short(self.score)

    def __str__(self) -> str:
        distance = f" {'-' if self.number < 0 else '+'} {abs(self.number):g}" if self.number else ""
        return f"{self.name} {self.sign} {f'base{distance}' if self.from_base else f'{self.number:g}'}"

    def holds(self, scores: Scores, base: Scores) -> bool:
        """Check an edit's scores; what is unknown does not hold."""
        value, start = estimate(self.score, scores), estimate(self.score, base)
        if value is None or (self.from_base and start is None):
            return False
        return bool(_COMPARE[self.sign](value.value, self.number + (start.value if self.from_base and start else 0.0)))


def constrained(constraints: Sequence[str]) -> list[str]:
    """Name the scores that constraints are about."""
    return [Constraint.parse(text).score for text in constraints]


def violated(constraints: Sequence[str], scores: Scores, base: Scores) -> tuple[str, ...]:
    """Return the constraints that do not hold, in short."""
    return tuple(str(c) for c in map(Constraint.parse, constraints) if not c.holds(scores, base))
