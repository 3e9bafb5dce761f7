"""Scores of responses that objectives and constraints name: functions of a user's, or of installed packages."""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iconoclast.evaluation.rules import FAILURES, called, function_of
from iconoclast.goals import Estimate, short
from iconoclast.registry import Registry

Measure = Callable[..., Any]
"""(responses, prompts=...) → a score of all responses to the target prompts."""

measures: Registry[Measure] = Registry("score", "scores")
"""Scores of responses by name; another package adds one as an entry point in the group iconoclast.scores."""

RESAMPLES = 200
"""Resampled sets of responses that a score is asked of for its interval."""

SLOW = 0.1
"""Seconds for one set of responses from which a score is too slow to have an interval: it may ask a server."""


def of_responses(name: str) -> bool:
    """Check that a score is one of responses: a function of a user's, or an installed package's."""
    return ".py:" in name or name in measures


def measure_of(name: str) -> Measure:
    """Return a score of responses; raise UserError if there is none of that name."""
    return function_of(name) if ".py:" in name else measures.get(name)


def apply_measures(
    names: Sequence[str], prompts: Sequence[str], responses: Sequence[str]
) -> Mapping[str, Estimate | None]:
    """Ask scores of all responses, each by the name of its function; None if one fails or gives no finite number."""
    return {short(name): _estimated(measure_of(name), prompts, responses) for name in names}


def _estimated(measure: Measure, prompts: Sequence[str], responses: Sequence[str]) -> Estimate | None:
    """Ask a score, and for its interval ask it of resampled responses too (percentile bootstrap), if it is quick."""
    began = time.monotonic()
    value = _asked(measure, prompts, responses)
    if value is None or time.monotonic() - began > SLOW:
        return None if value is None else Estimate(value)
    draw, found = random.Random(0), []
    for _ in range(RESAMPLES):
        places = draw.choices(range(len(responses)), k=len(responses))
        again = _asked(measure, [prompts[i] for i in places], [responses[i] for i in places])
        if again is None:
            return Estimate(value)
        found.append(again)
    found.sort()
    return Estimate(value, (found[round(0.025 * RESAMPLES)], found[round(0.975 * RESAMPLES) - 1]))


def _asked(measure: Measure, prompts: Sequence[str], responses: Sequence[str]) -> float | None:
    try:
        value = float(called(measure, list(responses), prompts=list(prompts)))
    except FAILURES:
        return None
    return value if math.isfinite(value) else None
