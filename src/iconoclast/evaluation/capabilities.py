"""What lm-eval has measured of a model beside its base: figures with intervals, differences with paired tests. No torch."""

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from statistics import NormalDist, fmean, stdev
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from iconoclast.documents import Document, Part, Value
from iconoclast.evaluation.intervals import mcnemar, mean_interval, paired_bootstrap
from iconoclast.scores import Count

Results = Mapping[str, Any]
"""Output of lm-eval: results, samples, group_subtasks, higher_is_better."""

NORMAL = NormalDist().inv_cdf(0.975)
"""Standard errors to either side of a 95 % interval where the single items are not known."""


@dataclass(frozen=True)
class Figure(Value):
    """A metric's value and standard error; None where lm-eval has none.

    Attributes:
        interval: 95 %, beside another model: of a share by Wilson, of another mean by the bootstrap, else normal.
    """

    value: float | None
    stderr: float | None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class FigureDifference(Figure):
    """Edited minus base.

    Attributes:
        paired: if the error is of item-by-item differences, not of two independent measurements.
        p_value: two-sided, of no difference: exact McNemar test of items that are right or wrong, bootstrap of other means,
            else normal.
    """

    paired: bool
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured(Value):
    """A metric of n items of a task or group; `base` and `difference` are None if a model was measured alone."""

    n: int
    higher_is_better: bool | None
    base: Figure | None
    edited: Figure
    difference: FigureDifference | None


@dataclass(frozen=True, kw_only=True)
class Row(Measured):
    """The same with the names of the task and the metric."""

    task: str
    metric: str

    def measured(self) -> Measured:
        """Return what was measured alone."""
        return Measured(**{name: getattr(self, name) for name in Measured.__dataclass_fields__})


class Asked(Part):
    """How lm-eval was asked."""

    lm_eval_version: str
    limit: int | None
    num_fewshot: int | None
    batch_size: int
    apply_chat_template: bool


class Capabilities(Asked):
    """Results of lm-eval, and how it was asked."""

    rows: list[Row]


class BenchmarkDocument(Asked, Document):
    """What `benchmark --json` writes.

    Attributes:
        trial: of a run; None if a model was given.
        against: the base model beside another model; None if a run was given, which names its own.
    """

    what: ClassVar[str] = "file of `iconoclast benchmark --json`"
    remedy: ClassVar[str] = "Measure again."

    model: str
    trial: int | None
    against: str | None
    tasks: dict[str, dict[str, Measured]]

    def capabilities(self) -> Capabilities:
        """Return the results, a row for every metric of every task."""
        rows = [
            Row(task=task, metric=metric, **vars(measured))
            for task, metrics in self.tasks.items()
            for metric, measured in metrics.items()
        ]
        return Capabilities(**{name: getattr(self, name) for name in Asked.model_fields}, rows=rows)


def rows(edited: Results, base: Results | None = None) -> list[Row]:
    """Return every metric that lm-eval measured of every task and group, beside the base model's.

    Where a metric is the mean of its items, the difference's error is that of the mean of the items' differences.
    Elsewhere it is √(se² + se²), as if the models had been given different items: too large rather than too small.
    """
    found = []
    for task, measured in edited["results"].items():
        for key in measured:
            name, _, rule = key.partition(",")
            if not rule or name.endswith("_stderr"):
                continue
            metric = name if rule == "none" else key
            after, items = _figure(edited, task, key), _items(edited, task, key)
            before = difference = None
            if base is not None:
                before, base_items = _figure(base, task, key), _items(base, task, key)
                difference = _difference(before, after, base_items, items)
                before, after = _with_interval(before, base_items), _with_interval(after, items)
            better = edited["higher_is_better"].get(task, {}).get(name)
            found.append(
                Row(
                    task=task,
                    metric=metric,
                    n=len(items),
                    higher_is_better=better,
                    base=before,
                    edited=after,
                    difference=difference,
                )
            )
    return found


def _figure(results: Results, task: str, key: str) -> Figure:
    metric, _, rule = key.partition(",")
    measured = results["results"][task]
    return Figure(_number(measured.get(key)), _number(measured.get(f"{metric}_stderr,{rule}")))


def _number(value: Any) -> float | None:
    """Convert a number; lm-eval writes N/A where there is no standard error."""
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _items(results: Results, task: str, key: str) -> dict[tuple[Any, ...], Any]:
    """Return a metric's value for every single item of a task, or of all tasks below a group."""
    metric, _, rule = key.partition(",")
    found: dict[tuple[Any, ...], Any] = {}
    for child in results["group_subtasks"].get(task, ()):
        found |= _items(results, child, key)
    for sample in results["samples"].get(task, ()):
        if sample["filter"] == rule and metric in sample["metrics"]:
            found[task, sample["doc_id"], sample["doc_hash"]] = sample[metric]
    return found


def _with_interval(figure: Figure, items: Mapping[Any, Any]) -> Figure:
    if figure.value is None:
        return figure
    values = _mean_of(figure.value, items)
    if not values:
        interval = _normal(figure.value, figure.stderr)
    elif _shares(values):
        interval = Count(round(sum(values)), len(values)).interval
    else:
        interval = mean_interval(values).interval
    return Figure(figure.value, figure.stderr, interval)


def _difference(
    base: Figure, edited: Figure, base_items: Mapping[Any, Any], edited_items: Mapping[Any, Any]
) -> FigureDifference:
    if base.value is None or edited.value is None:
        return FigureDifference(value=None, stderr=None, paired=False)
    value = edited.value - base.value
    before, after = (
        _mean_of(base.value, base_items),
        _mean_of(edited.value, {k: edited_items.get(k) for k in base_items}),
    )
    if base_items.keys() == edited_items.keys() and len(before) == len(after) > 1:
        moved = [b - a for a, b in zip(before, after, strict=True)]
        test = paired_bootstrap(before, after)
        p = test.p_value
        if _shares(before) and _shares(after):
            p = mcnemar([x == 1 for x in before], [x == 1 for x in after]).p_value
        error = stdev(moved) / math.sqrt(len(moved))
        return FigureDifference(value=value, stderr=error, interval=test.interval, paired=True, p_value=p)
    if base.stderr is None or edited.stderr is None:
        return FigureDifference(value=value, stderr=None, paired=False)
    error = math.hypot(base.stderr, edited.stderr)
    p_value = 2 * NormalDist().cdf(-abs(value) / error) if error else None
    return FigureDifference(value=value, stderr=error, interval=_normal(value, error), paired=False, p_value=p_value)


def _normal(value: float, error: float | None) -> tuple[float, float] | None:
    return None if error is None else (value - NORMAL * error, value + NORMAL * error)


def _mean_of(value: float, items: Mapping[Any, Any]) -> list[float]:
    """Return the items' values if the metric is their mean; nothing otherwise."""
    numbers = [float(item) for item in items.values() if isinstance(item, Real)]
    whole = numbers and len(numbers) == len(items)
    return numbers if whole and math.isclose(fmean(numbers), value, rel_tol=1e-9, abs_tol=1e-12) else []


def _shares(values: Sequence[float]) -> bool:
    """Check that items are right or wrong."""
    return set(values) <= {0.0, 1.0}
