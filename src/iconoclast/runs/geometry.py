"""What a run keeps of its residuals: enough to see them, a thousandth of their size."""

from collections.abc import Sequence

from torch import Tensor

from iconoclast.directions.geometry import planes, separation, variance_within
from iconoclast.prompts import Prompt
from iconoclast.runs.documents import Geometry, ShownPrompt
from iconoclast.runs.workbench import Workbench

MOST_POINTS = 120
"""Prompts of each set that are kept as points."""
LONGEST_TEXT = 120
"""Characters of a prompt that are kept with its point."""


def geometry(bench: Workbench, benign: Tensor, target: Tensor) -> Geometry:
    """Describe the fit prompts' residuals, benign [n, L, d] and target [m, L, d], of a workbench that has directions."""
    assert bench.directions is not None
    points = planes(benign, target)
    prompts = bench.prompts
    last = len(benign) + min(len(target), MOST_POINTS)
    shown = [*range(min(len(benign), MOST_POINTS)), *range(len(benign), last)]
    return Geometry(
        separation=_rounded(separation(benign, target)),
        benign_variance_kept_out=_rounded(variance_within(benign, bench.directions.basis)),
        points=[[_rounded(place) for place in points[i]] for i in shown],
        prompts=[*_shown(prompts.benign.prompts, "benign"), *_shown(prompts.target.prompts, "target")],
    )


def _shown(prompts: Sequence[Prompt], kind: str) -> list[ShownPrompt]:
    return [ShownPrompt(set=kind, text=prompt.text[:LONGEST_TEXT]) for prompt in prompts[:MOST_POINTS]]  # type: ignore[arg-type]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
