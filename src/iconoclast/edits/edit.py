"""The direction each site loses, and how much of it. Pure data and its mathematics, in float32; knows no model.

W is a writer's weight [d, k], v the unit direction [d], λ the strength, n_i = ‖W_i‖ the row norms, Ŵ = diag(n)⁻¹ W.
r is what is read of the module's output, a unit vector [d]: v itself, unless a fit has moved it. A site of many experts has
W [experts, d, k] and n [experts, d]; each matrix is edited along the same v as if alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from iconoclast.edits.profile import Profile
from iconoclast.errors import UserError
from iconoclast.notebook import bars, table
from iconoclast.registry import require_known
from iconoclast.vocabulary import KNOWN_COMPONENTS, NORMALIZATIONS, RowNormalization, Site


class EditError(UserError, ValueError):
    """An invalid description of an edit."""


@dataclass(frozen=True)
class Edit:
    """One edit of a model: {Site: (direction, strength)} and how rows are normalised.

    Attributes:
        directions: unit direction of each edited site, float32 [d].
        strengths: λ of each edited site, never 0.
        row_normalization:
            none: W' = W − λ v (rᵀ W);
            pre: W' = W − λ (n⊙v)(rᵀ Ŵ);
            full: W' = diag(n) · rownorm(Ŵ − λ v (rᵀ Ŵ)).
        readings: r of the sites where it is not v, float32 [d].
    """

    directions: Mapping[Site, Tensor]
    strengths: Mapping[Site, float]
    row_normalization: RowNormalization = "pre"
    readings: Mapping[Site, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_known(self.row_normalization, NORMALIZATIONS, "row normalisation", EditError)
        if self.directions.keys() != self.strengths.keys():
            raise EditError("every edited site needs one direction and one strength")
        if self.readings.keys() - self.strengths.keys():
            raise EditError("a site that is not edited has a reading")

    def __repr__(self) -> str:
        return f"Edit({len(self.strengths)} sites, row normalisation {self.row_normalization})"

    @classmethod
    def nothing(cls) -> "Edit":
        """Return the edit that changes nothing: the base model."""
        return cls({}, {}, "none")

    @classmethod
    def build(
        cls,
        directions: Mapping[Site, Tensor],
        profiles: Mapping[str, Profile],
        row_normalization: RowNormalization = "pre",
    ) -> "Edit":
        """Return the edit of all sites whose component has a non-zero profile at their layer.

        `directions` are the sites' unit directions, as `anatomy.site_directions` makes them.

        Raises:
            UserError: a component or the row normalisation is unknown.
        """
        for component in profiles:
            require_known(component, KNOWN_COMPONENTS, "component", EditError)
        strengths = {
            site: profiles[site.component].strength(site.layer) for site in directions if site.component in profiles
        }
        # A layer that does not see the prompts has a direction of zeros.
        strengths = {site: strength for site, strength in strengths.items() if strength != 0 and directions[site].any()}
        return cls({site: directions[site] for site in strengths}, strengths, row_normalization)

    @property
    def sites(self) -> list[Site]:
        """The edited sites, by layer."""
        return sorted(self.strengths)

    def scaled(self, factor: float) -> "Edit":
        return replace(self, strengths={site: factor * s for site, s in self.strengths.items()})

    def reading(self, site: Site) -> Tensor:
        """Return r of a site: [d]."""
        return self.readings.get(site, self.directions[site])

    def applied_to(self, site: Site, weight: Tensor) -> Tensor:
        """Return W' of a site, in the shape and on the device of W, [d, k] or [experts, d, k]."""
        direction, reading = self.directions[site].to(weight.device), self.reading(site).to(weight.device)
        return edited_weight(weight, direction, self.strengths[site], self.row_normalization, reading)

    def factors(self, site: Site, weight: Tensor, rank: int | None) -> "LowRank":
        """Return W' − W of a site as `low_rank_factors`, on the device of W."""
        direction, reading = self.directions[site].to(weight.device), self.reading(site).to(weight.device)
        return low_rank_factors(weight, direction, self.strengths[site], self.row_normalization, rank, reading)

    def _repr_html_(self) -> str:
        """Tabulate the strengths of every component, for notebooks."""
        rows = []
        for component in dict.fromkeys(site.component for site in self.sites):
            sites = [site for site in self.sites if site.component == component]
            strengths = [self.strengths[site] for site in sites]
            layers = f"{sites[0].layer} to {sites[-1].layer}"
            rows.append((component, layers, f"{min(strengths):.2f} to {max(strengths):.2f}", bars(strengths)))
        title = f"Edit of {len(self.strengths)} sites, row normalisation {self.row_normalization}"
        return table(title, rows, ("Component", "Layers", "Strengths", "By layer"))


@dataclass(frozen=True)
class OutputTransform:
    """An edit of a module's output: with z = y − bias, y' = bias + scale ⊙ (z − (z·inward) outward).

    Each is [d] or [experts, d]; `scale` is ones unless row norms are restored.
    """

    inward: Tensor
    outward: Tensor
    scale: Tensor

    def __call__(self, output: Tensor, bias: Tensor | None = None) -> Tensor:
        z = output if bias is None else output - bias
        z = self.scale * (z - (z @ self.inward)[..., None] * self.outward)
        return z if bias is None else z + bias


def output_transform(
    direction: Tensor,
    strength: float,
    row_normalization: RowNormalization,
    row_norms: Tensor,
    weight: Tensor | None = None,
    reading: Tensor | None = None,
) -> OutputTransform:
    """Return the transform from (W x) to (W' x), exact for all three normalisations without touching a weight.

    Row norms are [d] or [experts, d]; normalisation none uses only their shape, and only full uses the weight.
    """
    reading = (direction if reading is None else reading).expand_as(row_norms)
    direction = direction.expand_as(row_norms)
    ones = torch.ones_like(direction)
    if row_normalization == "none":
        return OutputTransform(reading, strength * direction, ones)
    inward, outward = reciprocal(row_norms) * reading, strength * row_norms * direction
    if row_normalization == "pre":
        return OutputTransform(inward, outward, ones)
    assert weight is not None
    u = weight.mT @ inward[..., None]  # Ŵᵀ r, [..., k, 1]
    g = reciprocal(row_norms) * (weight @ u)[..., 0]  # Ŵ u
    squared_norms = 1 - 2 * strength * direction * g + (strength * direction) ** 2 * (u * u).sum(-2)
    return OutputTransform(inward, outward, squared_norms.clamp(min=1e-12).rsqrt())


def edited_weight(
    weight: Tensor,
    direction: Tensor,
    strength: float,
    row_normalization: RowNormalization,
    reading: Tensor | None = None,
) -> Tensor:
    """Return W', straight from the definition: [d, k] or [experts, d, k], like `weight`."""
    reading = direction if reading is None else reading
    if row_normalization == "none":
        return weight - strength * _outer(direction, reading @ weight)
    norms = weight.norm(dim=-1, keepdim=True)
    rows = reciprocal(norms) * weight
    edited = rows - strength * _outer(direction, reading @ rows)
    if row_normalization == "full":
        edited = edited * reciprocal(edited.norm(dim=-1, keepdim=True))
    result: Tensor = norms * edited
    return result


@dataclass(frozen=True)
class LowRank:
    """An edit of one site as W' ≈ W + B A, with A [..., r, k] and B [..., d, r].

    Attributes:
        error: ‖W' − W − BA‖ / ‖W' − W‖ (Frobenius, the largest of all experts); 0 where exact.
        sufficient_rank: the smallest rank with an error under `NEGLIGIBLE`.
    """

    a: Tensor
    b: Tensor
    error: float
    sufficient_rank: int

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


NEGLIGIBLE = 0.01
"""Relative error of an update small enough for `auto` ranks."""


def low_rank_factors(
    weight: Tensor,
    direction: Tensor,
    strength: float,
    row_normalization: RowNormalization,
    rank: int | None,
    reading: Tensor | None = None,
) -> LowRank:
    """Return the edit of a site as LoRA factors.

    With none and pre, the rank is 1 and the factors exact: A = rᵀW, B = −λv, or A = rᵀŴ, B = −λ n⊙v. With full they are the
    truncated singular value decomposition of W' − W, to the sufficient rank if `rank` is None.
    """
    reading = direction if reading is None else reading
    if row_normalization == "none":
        column = (-strength * direction)[:, None].expand(*weight.shape[:-1], 1)
        return LowRank((reading @ weight)[..., None, :], column, 0.0, 1)
    norms = weight.norm(dim=-1)
    if row_normalization == "pre":
        row = (reciprocal(norms) * reading)[..., None, :] @ weight
        return LowRank(row, (-strength * norms * direction)[..., None], 0.0, 1)
    delta = edited_weight(weight, direction, strength, "full", reading) - weight
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    # Relative error at rank 0, 1, 2, …, the largest of all experts.
    left = s.square().flip(-1).cumsum(-1).flip(-1)
    errors = torch.cat([left, torch.zeros_like(left[..., :1])], -1).sqrt() * reciprocal(s.norm(dim=-1, keepdim=True))
    errors = errors.reshape(-1, errors.shape[-1]).amax(0)
    sufficient = max(1, int((errors >= NEGLIGIBLE).sum()))
    rank = sufficient if rank is None else min(rank, s.shape[-1])
    root = s[..., :rank].sqrt()
    return LowRank(
        root[..., None] * vh[..., :rank, :], u[..., :rank] * root[..., None, :], float(errors[rank]), sufficient
    )


def _outer(column: Tensor, rows: Tensor) -> Tensor:
    return column[:, None] * rows[..., None, :]


def reciprocal(values: Tensor) -> Tensor:
    """Return 1 / values, and 0 where a value is 0, so that a row of zeros stays one."""
    return torch.where(values > 0, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
