"""Data of the figures, as page.js draws them: plain lists, numbers rounded to what can be seen."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from iconoclast.directions.estimators import Directions
from iconoclast.directions.geometry import share_within, turn
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.errors import DirectionError
from iconoclast.evaluation.metrics import Metrics
from iconoclast.goals import Objectives, estimate, short
from iconoclast.runs.documents import Geometry, RandomControl, TokenView
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters
from iconoclast.search.study import Pruned

Rates = Sequence[tuple[str, str]]

SHARES: Rates = (
    ("failures", "Failures (refused or broken)"),
    ("refusals", "Refusals"),
    ("soft_refusals", "Soft refusals"),
    ("broken", "Broken responses"),
    ("complied", "Complied"),
    ("overrefusals", "Overrefusals"),
    ("benign_broken", "Broken benign responses"),
)
"""Shares of `Scores` that can be shown: attribute, title."""

SCALES: Rates = (
    *SHARES,
    ("kl_divergence", "First-token KL divergence, nats"),
    ("compliance", "Compliance (heuristic)"),
    ("disclaimers", "Disclaimers per response"),
    ("token_kl", "KL divergence over tokens, nats"),
)
"""What an axis can show: name, title."""

MOST_PLACES = 7_200
"""Places of a projection on a page: of 240 prompts in 30 layers, or fewer prompts in more."""
STEPS = 999
"""Steps from one end of a projection to the other: more than pixels show."""


def drawn(base: Scores, objectives: Objectives | None = None) -> Plain:
    """Return the scales of the front's axes, which are shares, more of which is better, and which are shown first."""
    scales = {name: _title(name, title, base) for name, title in SCALES}
    goals = [] if objectives is None else objectives.all
    best_high = ["complied", "compliance", *(short(goal.name) for goal in goals if goal.sign < 0)]
    first = [short(goal.name) for goal in goals[1::-1]]
    return {
        "scales": scales | {name: name for name in base.own if name not in scales},
        "shares": [name for name, _ in SHARES],
        "maximised": best_high,
        "axes": None if objectives is None or objectives.default else first,
    }


def _title(name: str, title: str, scores: Scores) -> str:
    return f"Failures ({scores.failing})" if name == "failures" else title


def counts(columns: Sequence[tuple[str, Scores]]) -> list[Plain]:
    """Return every share of every model, with its interval; shares that no model has are left out."""
    return [
        {"measure": _title(name, title, scores), "model": model, **share(getattr(scores, name))}
        for name, title in SHARES
        if any(getattr(scores, name).n for _, scores in columns)
        for model, scores in columns
    ]


def share(count: Count) -> Plain:
    """Return a share with its interval."""
    low, high = count.interval
    return {"count": count.count, "n": count.n, "rate": rounded(count.rate), "low": rounded(low), "high": rounded(high)}


def point(name: str, kind: str, scores: Scores, text: str = "", **more: Any) -> Plain:
    """Return a measured edit or model as a point: its value and interval on every scale that it has."""
    values = {
        name: [rounded(each.rate), *map(rounded, each.interval)]
        for name, _ in SHARES
        if (each := getattr(scores, name)).n
    }
    values["kl_divergence"] = [rounded(scores.kl_divergence)]
    values |= {"compliance": [rounded(scores.compliance)], "disclaimers": [rounded(scores.disclaimer_rate)]}
    for own in scores.own:
        if known := estimate(own, scores):
            values[own] = [rounded(known.value), *map(rounded, known.interval or ())]
    if isinstance(scores, Metrics):
        values["kl_divergence"] = [rounded(scores.first_token_kl.value), *map(rounded, scores.first_token_kl.interval)]
        values["token_kl"] = [rounded(scores.token_kl.value), *map(rounded, scores.token_kl.interval)]
    return {"name": name, "kind": kind, "text": text, "values": values, **more}


def trial_point(trial: Trial, kind: str | None = None, **more: Any) -> Plain:
    """Return a completed trial as a point."""
    kind = kind or ("searched" if isinstance(trial.parameters, EditParameters) else "fitted")
    violated = trial.scores.violated
    text = "\n".join([parameters_text(trial.parameters), *(f"violates {constraint}" for constraint in violated)])
    return point(f"trial {trial.index}", kind, trial.scores, text, **({"violates": True} if violated else {}), **more)


def pruned_point(trial: Pruned, target: int, benign: int) -> Plain:
    """Return a pruned trial as a point at what was known of it; both sets have so many prompts."""
    b = trial.bounds
    values = {
        "failures": [rounded(b.failures / target)],
        "overrefusals": [rounded(b.overrefusals / benign if benign else 0)],
        "kl_divergence": [rounded(b.kl_divergence)],
    }
    text = parameters_text(trial.parameters)
    return {"name": f"trial {trial.index}", "kind": "pruned", "text": text, "values": values}


def parameters_text(parameters: Any) -> str:
    """Describe a trial's direction and, if it was searched, its strengths."""
    lines = [str(parameters)]
    if isinstance(parameters, EditParameters):
        lines += [
            f"{name}: peak {p.max_weight:.2f} at layer {p.max_weight_position:.1f}, "
            f"{p.min_weight:.2f} at a distance of {p.min_weight_distance:.1f}"
            for name, p in parameters.profiles.items()
        ]
    return "\n".join(lines)


def profiles(parameters: EditParameters, layers: int) -> dict[str, list[float]]:
    """Return the strength of every layer, by component."""
    return {name: [rounded(p.strength(layer)) for layer in range(layers)] for name, p in parameters.profiles.items()}


def strengths(edit: Edit, layers: int) -> dict[str, list[float]]:
    """Return the strength of every layer, by component; 0 where nothing is edited, the mean where a layer has several sites."""
    found: dict[str, list[list[float]]] = {}
    for number, part in enumerate(edit.parts, 1):
        for site, strength in part.strengths.items():
            name = site.component if number == 1 else f"{site.component}, edit {number}"
            found.setdefault(name, [[] for _ in range(layers)])[site.layer].append(strength)
    return {name: [rounded(sum(at) / len(at)) if at else 0.0 for at in by_layer] for name, by_layer in found.items()}


def layers_of(directions: Directions, method: str, blend: float, known: Geometry | None) -> Plain:
    """Return figures of the layers: name → title and values, one a layer."""
    kept_out = "Share of the direction that lies in the benign subspace and is kept out"
    shown: Plain = {}
    if known is not None:
        shown["separation"] = {
            "title": "Separation of the two sets, in standard deviations (cross-fitted)",
            "values": known.separation,
        }
        shown["variance"] = {
            "title": "Share of the benign variance in the benign subspace",
            "values": known.benign_variance_kept_out,
        }
    raw = directions.raw.get(method, directions.raw.get("mean"))
    if raw is not None:
        shown["kept_out"] = {"title": kept_out, "values": _all(share_within(raw, directions.basis))}
    try:
        cosines = _all(turn(directions.per_layer(method, blend)))
    except DirectionError:
        return shown
    return {"turn": {"title": "Cosine with the direction of the layer below", "values": [None, *cosines]}, **shown}


def residuals(known: Geometry, sets: Mapping[str, tuple[str, str]]) -> Plain:
    """Return the points of all layers in every projection; `sets` are label and colour of both sets. Deep models show fewer."""
    views = {"pca": known.pca, "means": known.points, "pacmap": known.pacmap}
    fewer = math.ceil(len(known.prompts) * len(known.separation) / MOST_PLACES) or 1
    prompts = known.prompts[::fewer]
    return {
        "sets": {name: {"label": label, "color": color} for name, (label, color) in sets.items()},
        "kinds": [prompt.set for prompt in prompts],
        "texts": [prompt.text for prompt in prompts],
        "views": {name: _view(points[::fewer]) for name, points in views.items() if points},
    }


def _view(points: Sequence[Sequence[Sequence[float]]]) -> Plain:
    """Places [prompt][layer][x, y] as whole steps, of every layer x and y in turn: a third of their size as numbers."""
    low, *_, high = sorted(x for layers in points for place in layers for x in place)
    step = (high - low) / STEPS or 1.0
    flat = [[round((x - low) / step) for place in layer for x in place] for layer in zip(*points, strict=True)]
    return {"low": low, "step": rounded(step), "layers": flat}


def tokens(view: TokenView, sets: Mapping[str, tuple[str, str]]) -> Plain | None:
    """Return the edit's effect at every token of some prompts; None if it is not known of any."""
    prompts = [{**prompt.document(), "set": sets[prompt.set][0]} for prompt in view.prompts]
    return {"layers": view.layers, "prompts": prompts} if prompts else None


def lengths(columns: Iterable[tuple[str, Metrics]]) -> list[Plain]:
    """Return refusals by length of the response."""
    return [
        {"model": model, "tokens": part.tokens, **share(part)}
        for model, metrics in columns
        for part in metrics.refusals_by_length
    ]


def control(base: Scores, edited: Scores, random: RandomControl) -> list[Plain]:
    """Return failures and KL of base model, edit and random directions of the same strength."""
    draws = [("random directions", scores) for scores in random.draws]
    return [
        {"model": name, "what": base.failing, **share(scores.failures), "kl": rounded(scores.kl_divergence)}
        for name, scores in [("base model", base), ("the edit", edited), *draws]
    ]


def axes(columns: Sequence[tuple[str, Scores]]) -> list[Plain]:
    """Return failures of every axis of the target prompts, by model."""
    return [
        {
            "measure": axis,
            "model": model,
            **share(scores.axes[axis].failures(scores.strengthened)),
        }
        for axis in columns[0][1].axes
        for model, scores in columns
        if axis in scores.axes
    ]


def _all(values: Tensor) -> list[float]:
    return [rounded(value) for value in values.tolist()]


def rounded(value: float) -> float:
    """Round to four significant digits: more than a pixel shows."""
    return float(f"{value:.4g}")
