"""What is claimed of an edited model beside what was measured with the same definition."""

from collections.abc import Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any

from iconoclast.audit.document import ClaimFinding
from iconoclast.documents import read_known
from iconoclast.errors import RunFolderError
from iconoclast.peers.claims import Claim

PROMPTS = {
    "refusals": ("bad_report_prompts", "bad_evaluation_prompts"),
    "overrefusals": ("good_report_prompts", "good_evaluation_prompts"),
}
"""Metric → prompt sets that it can be of, the first that there is; divergences are of those of overrefusals."""


def measured_in(file: Path) -> Mapping[str, Any]:
    """Read what `evaluate --json`, `compare` or `audit --json` has measured; raise RunFolderError if it is nothing such."""
    content = read_known(file)
    if isinstance(content, dict) and isinstance(content.get("behavior"), dict):
        content = content["behavior"]
    if isinstance(content, dict) and isinstance(content.get("base_metrics"), dict) and _edited(content):
        return content
    raise RunFolderError(
        f"{file} holds no measurement of one edited model. Give the file of iconoclast evaluate --json."
    )


def _edited(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    subjects = measured.get("subjects") or [measured.get("subject")]
    metrics = subjects[0].get("metrics") if len(subjects) == 1 and isinstance(subjects[0], dict) else None
    return metrics if isinstance(metrics, dict) else {}


def beside(claims: Sequence[Claim], measured: Mapping[str, Any] | None) -> list[ClaimFinding]:
    """Set claims beside a measurement, where it has the metric."""
    return [_found(claim, measured or {}) for claim in claims]


def _found(claim: Claim, measured: Mapping[str, Any]) -> ClaimFinding:
    metrics = measured.get("base_metrics", {}) if claim.of == "base" else _edited(measured)
    metric = metrics.get(claim.metric) if claim.metric else None
    stated = {name: getattr(claim, name) for name in Claim.model_fields}
    if not isinstance(metric, dict) or not isinstance(metric.get("interval"), (list, tuple)):
        return ClaimFinding(**stated)
    value = metric["value"] if "value" in metric else metric["count"] / metric["n"] if metric["n"] else 0.0
    low, high = metric["interval"]
    differs: bool | None
    if claim.count is not None:
        differs = not _may_be_equal(claim.count.rate, claim.count.interval, value, (low, high))
    else:
        differs = not low - 1e-9 <= claim.value <= high + 1e-9
    prompts = measured.get("prompts", {})
    names = PROMPTS.get(claim.metric or "", PROMPTS["overrefusals"])
    source = next((prompts[name].get("source") for name in names if prompts.get(name)), None)
    if source and claim.prompts and not _same_prompts(claim.prompts, source):
        differs = None
    return ClaimFinding(
        **stated, measured=value, interval=(low, high), n=metric["n"], measured_on=source, differs=differs
    )


def _same_prompts(claimed: str, measured: str) -> bool:
    """Check whether a claim names the measured data set; how their splits are written may differ."""
    return measured.split()[0] in claimed.split()


def _may_be_equal(p: float, interval: tuple[float, float], q: float, other: tuple[float, float]) -> bool:
    """Check whether the 95 % interval of the difference of two rates holds 0 (Newcombe 1998, method 10)."""
    if p < q:
        return _may_be_equal(q, other, p, interval)
    return p - q <= hypot(p - interval[0], other[1] - q)
