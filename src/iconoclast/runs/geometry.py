"""What a run keeps of its residuals: enough to see them, a thousandth of their size."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from iconoclast.directions.geometry import planes, principal_planes, separation, variance_within
from iconoclast.directions.neighbors import neighbor_planes, require_pacmap
from iconoclast.progress import Progress, Silent
from iconoclast.prompts import Prompt
from iconoclast.runs.documents import Geometry, ShownPrompt
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.workbench import Workbench

MOST_POINTS = 120
"""Prompts of each set that are kept as points."""
LONGEST_TEXT = 120
"""Characters of a prompt that are kept with its point."""


def geometry(
    bench: Workbench, benign: Tensor, target: Tensor, progress: Progress | None = None, *, pacmap: bool = False
) -> Geometry:
    """Describe the fit prompts' residuals, benign [n, L, d] and target [m, L, d], of a workbench that has directions.

    Raises:
        DirectionError: PaCMAP is asked for and cannot be had.
    """
    assert bench.directions is not None
    prompts, both, neighbors = bench.prompts, torch.cat([benign, target]), None
    if pacmap:
        progress = progress or Silent()
        progress.start("Laying residuals out by PaCMAP", both.shape[1])
        neighbors = neighbor_planes(both, bench.settings.seed, progress.advance)
    last = len(benign) + min(len(target), MOST_POINTS)
    shown = [*range(min(len(benign), MOST_POINTS)), *range(len(benign), last)]
    return Geometry(
        separation=_rounded(separation(benign, target), 4),
        benign_variance_kept_out=_rounded(variance_within(benign, bench.directions.basis), 4),
        points=_rounded(planes(benign, target)[shown], 2),
        pca=_rounded(principal_planes(both)[shown], 2),
        pacmap=None if neighbors is None else _rounded(neighbors[shown], 2),
        prompts=[*_shown(prompts.benign.prompts, "benign"), *_shown(prompts.target.prompts, "target")],
    )


def complete_geometry(folder: RunFolder, saved: SavedRun, progress: Progress, *, pacmap: bool) -> None:
    """Measure a run's residuals again if its folder has not kept all that is to be shown of them.

    Raises:
        DirectionError: PaCMAP is asked for and cannot be had.
    """
    known = Geometry.read(folder.geometry) if folder.geometry.is_file() else None
    if known is not None and known.pca is not None and (known.pacmap is not None or not pacmap):
        return
    if pacmap:
        require_pacmap()
    with saved.opened(progress) as bench:
        geometry(bench, *bench.residuals(progress), progress, pacmap=pacmap).write(folder.geometry)


def _shown(prompts: Sequence[Prompt], kind: str) -> list[ShownPrompt]:
    return [ShownPrompt(set=kind, text=prompt.text[:LONGEST_TEXT]) for prompt in prompts[:MOST_POINTS]]  # type: ignore[arg-type]


def _rounded(values: Tensor, digits: int) -> Any:
    """Return the numbers in lists, as deep as the tensor has dimensions."""
    return values.double().round(decimals=digits).tolist()
