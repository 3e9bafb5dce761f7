"""Direction estimators: residuals of benign and target prompts → one unit direction per layer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.directions.subspace import benign_basis, project_out
from iconoclast.errors import DirectionError
from iconoclast.registry import Registry, require_known
from iconoclast.vocabulary import METHODS, SCOPES, DirectionMethod, DirectionScope, known_methods

SMALLEST_REMAINDER = 1e-4
"""Share of a direction that must survive the filters for it to point anywhere."""
SAME = 1e-3
"""Relative difference below which residuals are the same but for rounding (of bfloat16, say)."""
Estimator = Callable[[Tensor, Tensor], Tensor]
"""Benign residuals [n, L, d], target residuals [m, L, d] → directions [L, d], of any length."""
estimators: Registry[Estimator] = Registry("estimator", "estimators")
"""Estimators by name; other packages add theirs as entry points in the group iconoclast.estimators."""


@estimators.register("mean")
def mean_difference(benign: Tensor, target: Tensor) -> Tensor:
    """Return mean(B) − mean(G), [L, d]. Arditi et al. 2024, arXiv:2406.11717."""
    return target.mean(0) - benign.mean(0)


@estimators.register("median")
def median_difference(benign: Tensor, target: Tensor) -> Tensor:
    """Return coordinate-wise median(B) − median(G), [L, d]; for an even count the mean of the two middle values."""
    return _median(target) - _median(benign)


@estimators.register("geometric_median")
def geometric_median_difference(benign: Tensor, target: Tensor) -> Tensor:
    """Return geometric median(B) − geometric median(G), [L, d]."""
    return geometric_median(target) - geometric_median(benign)


def variance_difference(benign: Tensor, target: Tensor, floor: float = 1e-6) -> Tensor:
    """Return (mean(B) − mean(G)) / sqrt(½(var(G) + var(B)) + floor), [L, d]."""
    pooled = (benign.var(0, unbiased=False) + target.var(0, unbiased=False)) / 2
    return mean_difference(benign, target) / (pooled + floor).sqrt()


def _median(states: Tensor) -> Tensor:
    # torch.quantile refuses inputs of more than 16 million elements, which a few hundred prompts exceed.
    ordered = states.sort(dim=0).values
    return (ordered[(len(states) - 1) // 2] + ordered[len(states) // 2]) / 2


def geometric_median(states: Tensor, iterations: int = 64) -> Tensor:
    """Return the point with the least summed distance to all states [n, L, d] → [L, d], by Weiszfeld's algorithm."""
    mean = states.mean(0)
    states = states - mean  # a mean that happens to be one of the states must not hold the iteration
    point = torch.zeros_like(mean)
    for _ in range(iterations):
        weights = 1 / (states - point).norm(dim=-1, keepdim=True).clamp(min=1e-8)
        point = (weights * states).sum(0) / weights.sum(0)
    return point + mean


@dataclass(frozen=True)
class DirectionSpec:
    """The choice of the direction that an edit uses.

    Attributes:
        method: mean, median, geometric_median, variance, hybrid, or an estimator of an installed package.
        blend: for hybrid, the share t of variance: (1 − t)·mean + t·variance.
        scope: global (one direction for all layers, taken at `index`) or per_layer.
        index: layer of the global direction; interpolated between two layers.
    """

    method: DirectionMethod | str = "mean"
    blend: float = 0.5
    scope: DirectionScope = "per_layer"
    index: float = 0.0

    def __post_init__(self) -> None:
        require_known(self.method, known_methods(), "direction method", DirectionError)
        require_known(self.scope, SCOPES, "direction scope", DirectionError)


@dataclass(frozen=True)
class Directions:
    """Unfiltered unit directions of every method, and the basis they are kept out of.

    Attributes:
        raw: method → float32 [L, d], unit norm or, at `blind_layers`, zeros; hybrid is made of mean and variance.
        basis: float32 [L, d, c], orthonormal columns; c may be 0.
    """

    raw: Mapping[str, Tensor]
    basis: Tensor

    def __repr__(self) -> str:
        return f"Directions({', '.join(self.raw)}; {self.layers} layers, {self.basis.shape[-1]} dimensions kept out)"

    @property
    def layers(self) -> int:
        """Number of layers, L."""
        return self.basis.shape[0]

    def per_layer(self, method: str = "mean", blend: float = 0.5) -> Tensor:
        """Return the filtered unit direction of every layer, [L, d]; zeros at a layer that does not see the prompts.

        Raises:
            DirectionError: the method was not among those estimated, or nothing is left of some layer's direction without
                the benign subspace.
        """
        for needed in ("mean", "variance") if method == "hybrid" else (method,):
            require_known(needed, self.raw, "estimated direction", DirectionError)
        if method == "hybrid":
            raw = normalize((1 - blend) * self.raw["mean"] + blend * self.raw["variance"], dim=-1)
        else:
            raw = self.raw[method]
        filtered = project_out(raw, self.basis)
        there = raw.norm(dim=-1)
        nothing = (there != 0) & ~(filtered.norm(dim=-1) > SMALLEST_REMAINDER * there)
        if bool(nothing.any()):
            layer = int(nothing.nonzero()[0])
            raise DirectionError(
                f"Nothing is left of the {method} direction of layer {layer} without the benign subspace: the two prompt "
                "sets differ only in what benign prompts use. Lower benign_subspace_rank or use other prompts."
            )
        return normalize(filtered, dim=-1)

    def randomized(self, seed: int) -> "Directions":
        """Return random directions for every method, kept out of the same benign basis, as a control."""
        generator = torch.Generator().manual_seed(seed)
        shape = next(iter(self.raw.values())).shape
        random = {
            name: normalize(torch.randn(shape, generator=generator), dim=-1) * (raw.norm(dim=-1, keepdim=True) > 0)
            for name, raw in self.raw.items()
        }
        return Directions(random, self.basis)

    def resolve(self, spec: DirectionSpec) -> Tensor:
        """Return the unit direction that `spec` uses at every layer, [L, d].

        Raises:
            DirectionError: as `per_layer` and `interpolate`.
        """
        directions = self.per_layer(spec.method, spec.blend)
        if spec.scope == "per_layer":
            return directions
        return interpolate(directions, spec.index).expand(self.layers, -1)


def interpolate(directions: Tensor, index: float) -> Tensor:
    """Return the unit direction at a fractional layer index, [L, d] → [d]: neighbours interpolated and renormalised.

    Raises:
        DirectionError: the index is outside the layers, or the neighbours are opposite.
    """
    last = directions.shape[0] - 1
    if not 0 <= index <= last:
        raise DirectionError(f"The direction index {index} is outside of the layers 0 to {last}.")
    low = min(int(index), max(last - 1, 0))
    high = min(low + 1, last)
    between = torch.lerp(directions[low], directions[high], index - low)
    if float(between.norm()) < SMALLEST_REMAINDER:
        raise DirectionError(f"Layers {low} and {high} have opposite directions, and there is none between them.")
    return normalize(between, dim=-1)


def estimate_directions(
    benign: Tensor,
    target: Tensor,
    *,
    methods: Sequence[DirectionMethod | str] = METHODS,
    subspace_rank: int = 0,
    orthogonalize: bool = True,
    variance_floor: float = 1e-6,
) -> Directions:
    """Estimate directions from benign to target prompts, kept out of what benign prompts use.

    Args:
        benign, target: residuals G [n, L, d] and B [m, L, d], float32.
        methods: names of estimators.
        subspace_rank: number of principal directions of the benign residuals to avoid.
        orthogonalize: avoid the benign mean residual too.
        variance_floor: added to the pooled variance.

    Raises:
        DirectionError: a method is unknown, a side has fewer than two prompts, or the data do not allow the rank.
    """
    for method in methods:
        require_known(method, known_methods(), "direction method", DirectionError)
    if min(len(benign), len(target)) < 2:
        raise DirectionError(
            f"Directions need at least two prompts on each side; there are {len(benign)} benign and {len(target)} target ones."
        )
    blind = blind_layers(benign, target)
    wanted = set(methods) | ({"mean", "variance"} if "hybrid" in methods else set())
    raw = {name: estimators.get(name)(benign, target) for name in estimators if name in wanted}
    if "variance" in wanted:
        raw["variance"] = variance_difference(benign, target, variance_floor)
    for name, direction in raw.items():
        norms = direction.norm(dim=-1)
        usable = ((norms > 0) & norms.isfinite()) | blind
        if not bool(usable.all()):
            layer = int((~usable).nonzero()[0])
            raise DirectionError(
                f"The two prompt sets have the same {name} residual at layer {layer}, so there is no direction between them."
            )
    return Directions(
        {name: normalize(direction, dim=-1) * ~blind[:, None] for name, direction in raw.items()},
        benign_basis(benign, subspace_rank, orthogonalize),
    )


def blind_layers(benign: Tensor, target: Tensor) -> Tensor:
    """Mark the layers that give the same residual for every prompt: bool [L].

    The first layers of models with short convolutions see only the last few tokens, which belong to the chat template,
    and have no direction. If all layers look like that, none is marked: the prompts are at fault.
    """
    states = torch.cat([benign, target])
    middle = states.mean(0)
    spread = (states - middle).norm(dim=-1).amax(0)
    blind: Tensor = spread <= SAME * middle.norm(dim=-1)
    return blind & ~blind.all()
