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
        then: an edit of what this one leaves, as if that were the base model.
    """

    directions: Mapping[Site, Tensor]
    strengths: Mapping[Site, float]
    row_normalization: RowNormalization = "pre"
    readings: Mapping[Site, Tensor] = field(default_factory=dict)
    then: "Edit | None" = None

    def __post_init__(self) -> None:
        require_known(self.row_normalization, NORMALIZATIONS, "row normalisation", EditError)
        if self.directions.keys() != self.strengths.keys():
            raise EditError("every edited site needs one direction and one strength")
        if self.readings.keys() - self.strengths.keys():
            raise EditError("a site that is not edited has a reading")

    def __repr__(self) -> str:
        own = f"Edit({len(self.strengths)} sites, row normalisation {self.row_normalization})"
        return own if self.then is None else f"{own}.followed_by({self.then!r})"

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
        return sorted({site for part in self.parts for site in part.strengths})

    @property
    def parts(self) -> list["Edit"]:
        """This edit alone, and those that follow."""
        return [self] if self.then is None else [replace(self, then=None), *self.then.parts]

    def of(self, site: Site) -> list["Edit"]:
        """Return the parts that edit a site."""
        return [part for part in self.parts if site in part.strengths]

    def followed_by(self, other: "Edit") -> "Edit":
        """Return both, one after the other: the order matters where they edit one matrix.

        >>> both = edit.followed_by(edit.scaled(0.5))
        >>> both.sites == edit.sites, len(both.parts)
        (True, 2)
        """
        return replace(self, then=other if self.then is None else self.then.followed_by(other))

    def scaled(self, factor: float) -> "Edit":
        """Return the edit with all strengths multiplied by `factor`."""
        scaled = {site: factor * s for site, s in self.strengths.items()}
        return replace(self, strengths=scaled, then=self.then and self.then.scaled(factor))

    def reading(self, site: Site) -> Tensor:
        """Return r of a site: [d]."""
        return self.readings.get(site, self.directions[site])

    def applied_to(self, site: Site, weight: Tensor) -> Tensor:
        """Return W' of a site, in the shape and on the device of W, [d, k] or [experts, d, k]."""
        for part in self.of(site):
            direction, reading = part.directions[site].to(weight.device), part.reading(site).to(weight.device)
            weight = edited_weight(weight, direction, part.strengths[site], part.row_normalization, reading)
        return weight

    def factors(self, site: Site, weight: Tensor, rank: int | None) -> "LowRank":
        """Return W' − W of a site as `low_rank_factors`, on the device of W; the rank of several parts adds up."""
        parts = self.of(site)
        if len(parts) > 1 and any(part.row_normalization == "full" for part in parts):
            return truncated(self.applied_to(site, weight) - weight, rank)
        found = []
        for part in parts:
            direction, reading = part.directions[site].to(weight.device), part.reading(site).to(weight.device)
            given = direction, part.strengths[site], part.row_normalization
            found.append(low_rank_factors(weight, *given, rank, reading))
            weight = part.applied_to(site, weight) if len(parts) > 1 else weight
        if len(found) == 1:
            return found[0]
        return LowRank(torch.cat([f.a for f in found], -2), torch.cat([f.b for f in found], -1), 0.0, len(found))

    @property
    def exact(self) -> bool:
        """True if the update of every matrix is of low rank."""
        return all(part.row_normalization != "full" for part in self.parts)

    def _repr_html_(self) -> str:
        """Tabulate the strengths of every component, for notebooks."""
        rows = []
        for part in self.parts:
            for component in dict.fromkeys(site.component for site in part.sites):
                sites = [site for site in part.sites if site.component == component]
                strengths = [part.strengths[site] for site in sites]
                layers = f"{sites[0].layer} to {sites[-1].layer}"
                rows.append((component, layers, f"{min(strengths):.2f} to {max(strengths):.2f}", bars(strengths)))
        title = f"Edit of {len(self.sites)} sites, row normalisation {self.row_normalization}"
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
        """Rank of the product."""
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
    return truncated(edited_weight(weight, direction, strength, "full", reading) - weight, rank)


def truncated(delta: Tensor, rank: int | None) -> LowRank:
    """Return the truncated singular value decomposition of an update, to its sufficient rank if `rank` is None."""
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
