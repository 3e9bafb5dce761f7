"""Scores by name, and what the search minimises of them: how trials are compared, and which is best. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from iconoclast.scores import Bounds, Count, Scores, no_more_than

ALIASES = {"kl": "kl_divergence"}
"""Other names of scores."""

COUNTED = ("failures", "refusals", "soft_refusals", "broken", "complied", "overrefusals", "benign_broken")
"""Scores that are rates, from 0 to 1, of target or benign prompts."""

MEANS: Mapping[str, Callable[[Scores], float]] = {
    "disclaimers": lambda scores: scores.disclaimer_rate,
    "compliance": lambda scores: scores.compliance,
    "kl_divergence": lambda scores: scores.kl_divergence,
}
"""Scores that are means: disclaimers per response, a heuristic from 0 to 1, nats."""

BUILT_IN = (*COUNTED, *MEANS)
"""Scores that every edit has."""

PERPLEXITY = "perplexity:"
"""Before the file of a text: the perplexity of that text."""

TOKEN_KL = "token_kl"
"""KL divergence over the tokens of the base model's own responses to benign prompts."""

JUDGED = "judged_failures"
"""Rate of target prompts whose response is a failure to any judge; one that a judge says nothing of is a failure."""

DEFAULT = ("failures", "kl")
"""The objectives that the seed documents define: penalties and the KL target belong to them."""

NORMAL = 1.96
"""Standard errors in half a 95 % interval, about."""

_BOUNDED = {"failures", "overrefusals", "kl_divergence"}


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % interval, if there is one."""

    value: float
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        return f"{self.value:.3g}" + (" ({:.3g} to {:.3g})".format(*self.interval) if self.interval else "")


def short(name: str) -> str:
    """Name a score as tables and files do: a function without its file, a text or a task's file without its folders."""
    if ".py:" in name:
        return name.rpartition(":")[2]
    return PERPLEXITY * name.startswith(PERPLEXITY) + Path(name.removeprefix(PERPLEXITY)).name


def estimate(name: str, scores: Scores) -> Estimate | None:
    """Return a score by its name; None if it is unknown."""
    name = ALIASES.get(name, name)
    if name in COUNTED:
        count: Count = getattr(scores, name)
        return Estimate(count.rate, count.interval)
    value = MEANS[name](scores) if name in MEANS else scores.own.get(short(name))
    return None if value is None else Estimate(value, scores.intervals.get(short(name)))


def with_estimates(scores: Scores, found: Mapping[str, Estimate | None]) -> Scores:
    """Add estimates by their short names to an edit's own scores."""
    values = {name: None if known is None else known.value for name, known in found.items()}
    intervals = {name: known.interval for name, known in found.items() if known is not None and known.interval}
    return replace(scores, own={**scores.own, **values}, intervals={**scores.intervals, **intervals})


@dataclass(frozen=True)
class Objective:
    """A score that is minimised, or maximised if its text begins with a minus."""

    text: str

    @property
    def name(self) -> str:
        """The score's name."""
        return ALIASES.get(bare := self.text.removeprefix("-"), bare)

    @property
    def sign(self) -> int:
        """1 if it is minimised, else -1."""
        return -1 if self.text.startswith("-") else 1

    def __str__(self) -> str:
        return f"{short(self.name)}{' (maximised)' if self.sign < 0 else ''}"

    def shown(self, scores: Scores) -> str:
        """Return its value with its interval, for people."""
        if self.name in COUNTED:
            return str(getattr(scores, self.name).with_interval)
        return str(estimate(self.name, scores) or "unknown")

    def value(self, scores: Scores) -> float:
        """Return the value to minimise; infinite if the score is unknown."""
        known = estimate(self.name, scores)
        return math.inf if known is None else self.sign * known.value

    def key(self, scores: Scores) -> float:
        """Return the value that trials are compared by: a count, else as `value`."""
        return self.sign * getattr(scores, self.name).count if self.name in COUNTED else self.value(scores)

    def bound(self, bounds: Bounds) -> float:
        """Return the lowest key that a trial with these bounds can have."""
        known = self.sign > 0 and self.name in _BOUNDED
        return float(getattr(bounds, self.name)) if known else -math.inf

    def tolerated(self, scores: Scores) -> float:
        """Return the highest key that is within one standard error of these scores' own."""
        if self.name in COUNTED:
            count: Count = getattr(scores, self.name)
            if self.sign > 0:
                return no_more_than(count)
            return no_more_than(Count(count.n - count.count, count.n)) - count.n
        known = estimate(self.name, scores)
        if known is None or known.interval is None:
            return self.value(scores)
        worse = known.interval[1] - known.value if self.sign > 0 else known.value - known.interval[0]
        return self.sign * known.value + worse / NORMAL


@dataclass(frozen=True)
class Objectives:
    """All that a search minimises.

    The default ones are those of the seed documents: trials are then compared by failures, overrefusals and KL divergence.
    """

    texts: Sequence[str] = DEFAULT

    @property
    def default(self) -> bool:
        """True if they are the default ones."""
        return tuple(self.texts) == DEFAULT

    @property
    def all(self) -> list[Objective]:
        """The objectives one by one."""
        return [Objective(text) for text in self.texts]

    @property
    def compared(self) -> list[Objective]:
        """Objectives that trials are compared by, first things first."""
        return [Objective(name) for name in ("failures", "overrefusals", "kl")] if self.default else self.all

    def __str__(self) -> str:
        *first, last = (str(each) for each in self.compared)
        return f"{', '.join(first)} and {last}"

    def key(self, scores: Scores) -> tuple[float, ...]:
        """Return the values that a trial competes with."""
        return tuple(each.key(scores) for each in self.compared)

    def bound(self, bounds: Bounds) -> tuple[float, ...]:
        """Return the lowest key that a trial with these bounds can have."""
        return tuple(each.bound(bounds) for each in self.compared)

    def values(self, scores: Scores) -> tuple[float, ...]:
        """Return the values that Optuna minimises, for other objectives than the default ones."""
        return tuple(each.value(scores) for each in self.all)

    @property
    def prunable(self) -> bool:
        """True if bounds of a trial, known on the way, can suffice to stop it."""
        return all(each.bound(Bounds(0, 0, 0.0)) == 0 for each in self.compared)

    def unknown(self, scores: Scores) -> list[str]:
        """Name the objectives that are unknown: a trial that has one does not count as a success."""
        return [str(each) for each in self.compared if math.isinf(each.value(scores))]

    def within(self, scores: Scores, kl_target: float) -> bool:
        """Check that a trial keeps the KL target, which counts only where the KL divergence is an objective."""
        return scores.kl_divergence <= kl_target or all(each.name != "kl_divergence" for each in self.compared)

    def rule(self, kl_target: float, kept: bool = True) -> str:
        """Say how the best trial is chosen: `kept` is whether it keeps the KL target."""
        first, *others = (str(each) for each in self.compared)
        rule = f"best in {', then '.join(others)} of those within a standard error of the best {first}"
        if all(each.name != "kl_divergence" for each in self.compared):
            return rule
        return f"{rule}, {'' if kept else 'no trial is '}within the KL target of {kl_target:g}"

    def shown(self, scores: Scores) -> list[tuple[str, str]]:
        """Return every objective and its value with its interval, for people."""
        return [(str(each), each.shown(scores)) for each in self.all]


def named(objectives: Sequence[str], constraints: Sequence[str]) -> tuple[str, ...]:
    """Name the scores among objectives and constraints (their scores' names) that an edit has only if asked for."""
    names = [*(Objective(text).name for text in objectives), *constraints]
    return tuple(dict.fromkeys(name for name in names if ALIASES.get(name, name) not in BUILT_IN))
