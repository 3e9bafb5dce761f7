"""Residuals laid out by PaCMAP, which keeps neighbours together rather than distances."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from iconoclast.directions.geometry import SMALLEST_SPREAD, in_step
from iconoclast.errors import DirectionError

FEWEST = 10
"""Prompts under which there are no neighbours to speak of."""


def require_pacmap() -> None:
    """Raise DirectionError if PaCMAP is not installed."""
    if find_spec("pacmap") is None:
        raise DirectionError("PaCMAP is not installed: pip install 'iconoclast-edit[research]'")


def neighbor_planes(states: Tensor, seed: int, advance: Callable[[], None] = lambda: None) -> Tensor:
    """Lay residuals [n, L, d] out by PaCMAP (Wang et al., 2021, arXiv:2012.04456), every layer begun as the one below: [n, L, 2].

    Raises:
        DirectionError: PaCMAP is not installed, or there are fewer than 10 residuals.
    """
    require_pacmap()
    if len(states) < FEWEST:
        raise DirectionError(f"PaCMAP needs {FEWEST} prompts, and there are {len(states)}. Leave out --pacmap.")
    from pacmap import PaCMAP

    logging.getLogger("pacmap").setLevel(logging.ERROR)  # it warns of every small set, and of every seed
    shown: list[Tensor] = []
    for layer in range(states.shape[1]):
        points = states[:, layer].float()
        if float(points.std(0).max()) < SMALLEST_SPREAD:
            shown.append(torch.zeros(len(points), 2))  # it divides by the spread
        else:
            start = shown[-1].numpy() if shown and shown[-1].any() else "pca"
            made = PaCMAP(n_components=2, random_state=seed).fit_transform(points.numpy(), init=start)
            shown.append(torch.from_numpy(made).float())
        advance()
    return in_step(shown)
