"""How the residuals of two prompt sets lie, layer by layer: how far apart, along what, and planes to see them in."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from iconoclast.directions.estimators import mean_difference
from iconoclast.directions.subspace import project_out

SMALLEST_SPREAD = 1e-6
"""Standard deviation under which points count as one."""


def separation(benign: Tensor, target: Tensor) -> Tensor:
    """Return the distance of the means along their difference, in standard deviations of the sets: [L].

    Residuals are [n, L, d] and [m, L, d]. The difference is taken from one half of the prompts and measured on the other,
    both ways round: in more dimensions than prompts, any two sets part along the direction that they gave themselves.
    """
    halves = [(benign[i::2].float(), target[i::2].float()) for i in range(2)]
    return torch.stack([_distance(mean_difference(*halves[i]), *halves[1 - i]) for i in range(2)]).mean(0)


def _distance(direction: Tensor, benign: Tensor, target: Tensor) -> Tensor:
    along = [(side * normalize(direction, dim=-1)).sum(-1) for side in (benign, target)]
    spread = torch.stack([side.var(0, unbiased=False) for side in along]).mean(0).sqrt()
    apart = (along[1].mean(0) - along[0].mean(0)) / spread.clamp(min=SMALLEST_SPREAD)
    return torch.where(spread > SMALLEST_SPREAD, apart, 0.0)


def variance_within(states: Tensor, basis: Tensor) -> Tensor:
    """Return the share of the variance of residuals [n, L, d] that lies in a basis [L, d, c]: [L], 0 to 1."""
    centred = states.float() - states.float().mean(0)
    total = centred.square().sum((0, 2))
    inside = torch.einsum("nld,ldc->nlc", centred, basis).square().sum((0, 2))
    return torch.where(total > 0, inside / total.clamp(min=SMALLEST_SPREAD), 0.0)


def share_within(directions: Tensor, basis: Tensor) -> Tensor:
    """Return the share of the squared length of unit directions [L, d] that lies in a basis [L, d, c]: [L], 0 to 1."""
    return (directions.square().sum(-1) - project_out(directions, basis).square().sum(-1)).clamp(min=0)


def turn(directions: Tensor) -> Tensor:
    """Return the cosine between the directions [L, d] of a layer and the one below: [L − 1]."""
    return cosine_similarity(directions[1:], directions[:-1], dim=-1)


def planes(benign: Tensor, target: Tensor) -> Tensor:
    """Project residuals [n, L, d] and [m, L, d] onto a plane per layer that shows a separation: [n + m, L, 2].

    The first axis is the difference of the means, the second the direction of most variance at right angles to it, its sign
    that of the layer below as far as that can be told. Both are in standard deviations of all points.
    """
    both = torch.cat([benign, target]).float()
    shown: list[Tensor] = []
    for layer in range(both.shape[1]):
        centred = both[:, layer] - both[:, layer].mean(0)
        first = normalize(mean_difference(benign[:, layer].float(), target[:, layer].float()), dim=0)
        rest = centred - torch.outer(centred @ first, first)
        # By the Gram matrix: there are far fewer prompts than dimensions.
        points = torch.stack([centred @ first, torch.linalg.eigh(rest @ rest.T).eigenvectors[:, -1]], dim=1)
        if shown and float(points[:, 1] @ shown[-1][:, 1]) < 0:
            points[:, 1] *= -1
        shown.append(points / points.std(0).clamp(min=SMALLEST_SPREAD))
    return torch.stack(shown, dim=1)


def principal_planes(states: Tensor) -> Tensor:
    """Project residuals [n, L, d] onto the plane of most variance of every layer, in step: [n, L, 2]."""
    return in_step(_principal(states[:, layer].float()) for layer in range(states.shape[1]))


def _principal(states: Tensor) -> Tensor:
    centred = states - states.mean(0)
    gram: tuple[Tensor, Tensor] = torch.linalg.eigh(centred @ centred.T)  # far fewer prompts than dimensions
    variances, points = gram
    return points[:, -2:] * variances[-2:].clamp(min=0).sqrt()


def in_step(layers: Iterable[Tensor]) -> Tensor:
    """Stack what a projection made of every layer [n, 2] so that nothing turns from one to the next: [n, L, 2].

    Layers are centred, in units of their own spread, and turned or mirrored to lie as near as they can to the one below
    (orthogonal Procrustes: Schoenemann, 1966).
    """
    shown: list[Tensor] = []
    for layer in layers:
        centred = layer - layer.mean(0)
        points = centred / centred.square().mean().sqrt().clamp(min=SMALLEST_SPREAD)
        if shown:
            left, _, right = torch.linalg.svd(points.T @ shown[-1])
            points = points @ (left @ right)
        shown.append(points)
    return torch.stack(shown, dim=1)
