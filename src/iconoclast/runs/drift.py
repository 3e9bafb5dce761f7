"""Two measurements of what should be the same: exactly equal, within noise, or changed."""

import math
from typing import Literal

import torch
from pydantic.dataclasses import dataclass

from iconoclast.documents import Value
from iconoclast.runs.documents import Start
from iconoclast.scores import COUNTS, Scores

NOISE = 2.0
"""Noise floors by which equal edits can differ: the floor is a mean, with single measurements on both sides of it."""
SMALLEST = 1e-6
"""Nats below which a KL divergence is rounding, even in float32."""
Grade = Literal["exact", "within noise", "changed"]


@dataclass(frozen=True)
class Drift(Value):
    """The difference between two measurements of one edit.

    Attributes:
        what: the measured thing.
        grade: exact: every score is the same number. within noise: KL divergences differ by no more than two noise floors,
            and of every two counts one lies in the 95 % interval of the other. changed: anything else.
        before: the recorded scores.
        after: the scores now.
        differences: one line for every score that differs.
    """

    what: str
    grade: Grade
    before: Scores
    after: Scores
    differences: list[str]


def beyond_noise(live: Scores, exported: Scores, noise_floor: float, dtype: str) -> str:
    """Say in which scores an export lies farther from the live edit than noise allows; empty if in none.

    The square root of a KL divergence adds up as a distance does, so it is what noise and the rounding of the weights'
    dtype are set against.
    """
    rounding = 10 * torch.finfo(getattr(torch, dtype)).eps ** 2
    allowed = math.sqrt(NOISE * max(noise_floor, rounding, SMALLEST))
    found = [
        f"{name.replace('_', ' ')} {one.count} live, {other.count} exported, of {one.n}"
        for name in COUNTS
        if not (one := getattr(live, name)).near(other := getattr(exported, name))
    ]
    roots = (math.sqrt(max(scores.kl_divergence, 0.0)) for scores in (live, exported))
    if not abs(next(roots) - next(roots)) <= allowed:  # not a number is far
        found.append(f"first-token KL {live.kl_divergence:.4f} live, {exported.kl_divergence:.4f} exported")
    return "; ".join(found)


def drift(what: str, before: Scores, after: Scores, noise_floor: float) -> Drift:
    """Grade a repeated measurement; `noise_floor` in nats."""
    differences, outside = [], False
    for name in COUNTS:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            differences.append(f"{name.replace('_', ' ')} {one.count} then, {other.count} now, of {one.n}")
            outside |= one.n != other.n or not one.near(other)
    moved = abs(after.kl_divergence - before.kl_divergence)
    if moved:
        differences.append(f"first-token KL {before.kl_divergence:.4f} then, {after.kl_divergence:.4f} now")
        outside |= moved > NOISE * noise_floor
    for name in ("disclaimer_hits", "compliance"):
        if getattr(before, name) != getattr(after, name):
            differences.append(f"{name.replace('_', ' ')} {getattr(before, name):g} then, {getattr(after, name):g} now")
    grade: Grade = "changed" if outside else "within noise" if differences else "exact"
    return Drift(what, grade, before, after, differences)


def changed_origins(then: Start, now: Start) -> list[str]:
    """List what has changed since a run was last started: versions, commit, machine."""
    machines = then.hardware.document(), now.hardware.document()
    pairs = [
        ("ICONOCLAST", then.iconoclast.version, now.iconoclast.version),
        ("commit", then.iconoclast.commit, now.iconoclast.commit),
        ("Python", then.python, now.python),
        *((name, then.packages.get(name), now.packages.get(name)) for name in {**then.packages, **now.packages}),
        *((name, *(each[name] for each in machines)) for name in ("system", "processor", "threads", "gpus")),
    ]
    return [f"{name}: {one} then, {other} now" for name, one, other in pairs if one != other]
