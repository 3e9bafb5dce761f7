"""Whether a tensor is its base's value in a coarser form: another type, or a grid of few levels a block."""

from collections.abc import Iterator

import torch
from torch import Tensor

SAMPLED_ROWS = 16
"""Rows that are compared with roundings before all are."""

BLOCKS = (0, 1, 32, 64, 128)
"""Values that share a scale when weights are quantised: 0 for the whole tensor, 1 for a row, else so many of a row."""

GGUF_BLOCK = 32
"""That of the GGUF types which have one scale a block."""

GRIDS = (16, 32, 64, 128)
"""The same where only the grid is looked for, whatever made it."""

ALIKE = 0.93
"""Share of the base's distinct values in a block above which a tensor is on no grid: 64 levels for 16 values leave 0.88."""

FEW_LEVELS = 0.6
"""Distinct values of those in a block, at most, of a matrix that was quantised: 16 levels for 32 values leave 0.5 or less."""

FLIPPED = 0.2
"""Norm of what a rounding made again misses, over that of the change: ties fall either way, and a scale by one more bit."""

NEAREST = 0.95
"""Share of the values that went to the nearest level of their block, about; least squares move some further."""


def requantised(before: Tensor, after: Tensor, dtype: torch.dtype) -> bool:
    """Check that W' is W rounded to a coarser type or grid, and stored as `dtype`; any shape, float32."""
    largest = float(torch.stack(before.aminmax()).abs().max())
    if before.ndim == 2 and len(before) > SAMPLED_ROWS:
        # A rounding touches every row alike: few rows tell most others apart.
        few = torch.linspace(0, len(before) - 1, SAMPLED_ROWS).long()
        if not _rounded(before[few], after[few], dtype, largest) and not _on_grid(before[few], after[few]):
            return False
    return _rounded(before, after, dtype, largest) or _on_grid(before, after)


def _rounded(before: Tensor, after: Tensor, dtype: torch.dtype, largest: float) -> bool:
    total = float((after - before).norm())
    for made in _roundings(before, largest):
        made = made.to(dtype).float()
        if torch.equal(made, after) or float((made - after).norm()) <= FLIPPED * total:
            return True
    return False


def _roundings(values: Tensor, top: float) -> Iterator[Tensor]:
    eights = (torch.float8_e4m3fn, torch.float8_e5m2)
    yield values
    for kind in (torch.bfloat16, torch.float16, *eights):
        yield values.to(kind).float()
    if values.ndim != 2:
        return
    for block in BLOCKS:
        if block > 1 and values.shape[1] % block:
            continue
        grouped = values.reshape(1, -1) if block == 0 else values.reshape(-1, block if block > 1 else values.shape[1])
        largest = torch.tensor([[top]]) if block == 0 else grouped.abs().amax(1, keepdim=True)
        largest = largest.clamp(min=1e-30)
        for kind in eights:
            scale = largest / torch.finfo(kind).max
            yield ((grouped / scale).to(kind).float() * scale).reshape(values.shape)
        for limit in (127, 7):
            scale = largest / limit
            yield ((grouped / scale).round() * scale).reshape(values.shape)
        if block == GGUF_BLOCK:
            yield from (each.reshape(values.shape) for each in _gguf(grouped))


def _gguf(grouped: Tensor) -> Iterator[Tensor]:
    """Yield the values of Q8_0, then those of Q4_0, Q4_1, Q5_0 and Q5_1, rounded as ggml does: ties are many in few values.

    Levels go by the value of largest magnitude, or start at the least one.
    """
    scale = grouped.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale == 0, 0, 1 / scale)
    yield torch.trunc(grouped * inverse + torch.copysign(torch.tensor(0.5), grouped)) * scale.half().float()
    peak = grouped.gather(1, grouped.abs().argmax(1, keepdim=True))
    least, most = grouped.aminmax(dim=1, keepdim=True)
    for bits in (4, 5):
        half = 2 ** (bits - 1)
        for origin, step in ((torch.zeros_like(peak), peak / -half), (least, (most - least) / (2 * half - 1))):
            shift = 0 if origin is least else half
            levels = ((grouped - origin) / torch.where(step == 0, 1, step) + shift + 0.5).floor().clamp(0, 2 * half - 1)
            yield (levels - shift) * step.half().float() + origin.half().float()


def _on_grid(before: Tensor, after: Tensor) -> bool:
    """Check that W' has few levels in every block, and each value of W went to about the nearest."""
    if before.ndim != 2:
        return False
    for block in GRIDS:
        if before.shape[1] % block:
            continue
        w, x = (each.reshape(-1, block) for each in (before, after))
        levels = _distinct(x)
        if levels < ALIKE * _distinct(w) and _went_to_nearest(w, x):
            return True
    return False


def on_levels(values: Tensor) -> bool:
    """Check that a matrix has few distinct values in every block, as one has that was quantised to four bits or so; float32 [d, k]."""
    if values.shape[1] % GGUF_BLOCK:
        return False
    few = values[torch.linspace(0, len(values) - 1, SAMPLED_ROWS).long()].reshape(-1, GGUF_BLOCK)
    return _distinct(few) <= FEW_LEVELS * few.numel()


def _distinct(rows: Tensor) -> int:
    return len(rows) + sum(int((few.sort(1).values.diff(dim=1) != 0).sum()) for few in torch.split(rows, 1 << 12))


def _went_to_nearest(w: Tensor, x: Tensor) -> bool:
    near = 0
    for values, levels in zip(torch.split(w, 1 << 12), torch.split(x, 1 << 12), strict=True):
        # Next level below and above every value.
        ordered = levels.sort(1).values
        above = torch.searchsorted(ordered, values.contiguous()).clamp(max=w.shape[1] - 1)
        nearest = torch.minimum(
            *((values - ordered.gather(1, index.clamp(min=0))).abs() for index in (above, above - 1))
        )
        near += int(((values - levels).abs() <= 1.3 * nearest + 1e-2 * levels.abs()).sum())
    return near >= NEAREST * w.numel()
