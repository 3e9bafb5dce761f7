"""Edit: which direction each site loses, and how much of it. Pure data and its mathematics; knows no model.

Notation: W is a writer's weight [d, k], v the unit direction [d], λ the strength, n_i = ‖W_i‖ the row norms and
Ŵ = diag(n)⁻¹ W. Everything is float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from iconoclast.edits.profile import Profile
from iconoclast.site import Site

NORMALIZATIONS = ("none", "pre", "full")


@dataclass(frozen=True)
class Edit:
    """One edit of a model: {Site: (direction, strength)} and how rows are normalised.

    Attributes:
        directions: unit direction of each edited site, float32 [d].
        strengths: λ of each edited site, never 0.
        row_normalization:
            none: W' = W − λ v (vᵀ W);
            pre: W' = W − λ (n⊙v)(vᵀ Ŵ);
            full: W' = diag(n) · rownorm(Ŵ − λ v (vᵀ Ŵ)).
    """

    directions: Mapping[Site, Tensor]
    strengths: Mapping[Site, float]
    row_normalization: str = "pre"

    def __post_init__(self) -> None:
        if self.row_normalization not in NORMALIZATIONS:
            raise ValueError(f"row_normalization {self.row_normalization} is none of {', '.join(NORMALIZATIONS)}")
        if self.directions.keys() != self.strengths.keys():
            raise ValueError("every edited site needs one direction and one strength")

    def __repr__(self) -> str:
        return f"Edit({len(self.strengths)} sites, row normalisation {self.row_normalization})"

    @classmethod
    def nothing(cls) -> "Edit":
        """The edit that changes nothing: the base model."""
        return cls({}, {}, "none")

    @classmethod
    def build(
        cls,
        directions: Mapping[Site, Tensor],
        profiles: Mapping[str, Profile],
        row_normalization: str = "pre",
    ) -> "Edit":
        """The edit of all sites whose component has a profile that is not zero at their layer.

        Args:
            directions: unit direction of each site (`anatomy.site_directions` makes them for a model).
            profiles: component → strength profile.
            row_normalization: none, pre or full.
        """
        strengths = {
            site: profiles[site.component].strength(site.layer) for site in directions if site.component in profiles
        }
        strengths = {site: strength for site, strength in strengths.items() if strength != 0}
        return cls({site: directions[site] for site in strengths}, strengths, row_normalization)

    @property
    def sites(self) -> list[Site]:
        """The edited sites, by layer."""
        return sorted(self.strengths)


@dataclass(frozen=True)
class OutputTransform:
    """An edit of one site as a function of the module's output: with z = y − bias, y' = bias + scale ⊙ (z − (z·inward) outward).

    Attributes:
        inward: [d]; what is read off the output.
        outward: [d]; what is subtracted.
        scale: [d]; ones unless row norms are restored.
    """

    inward: Tensor
    outward: Tensor
    scale: Tensor

    def __call__(self, output: Tensor, bias: Tensor | None = None) -> Tensor:
        """The edited output, for outputs [..., d]."""
        z = output if bias is None else output - bias
        z = self.scale * (z - (z @ self.inward)[..., None] * self.outward)
        return z if bias is None else z + bias


def output_transform(
    direction: Tensor,
    strength: float,
    row_normalization: str,
    row_norms: Tensor,
    weight: Tensor | None = None,
) -> OutputTransform:
    """The transform that gives (W' x) from (W x) without touching a weight; exact for all three normalisations.

    Args:
        direction: v, unit [d].
        strength: λ.
        row_normalization: none, pre or full.
        row_norms: n, [d]; not used for none.
        weight: W [d, k]; used for full alone.
    """
    ones = torch.ones_like(direction)
    if row_normalization == "none":
        return OutputTransform(direction, strength * direction, ones)
    inward, outward = _reciprocal(row_norms) * direction, strength * row_norms * direction
    if row_normalization == "pre":
        return OutputTransform(inward, outward, ones)
    assert weight is not None
    u = weight.T @ inward  # Ŵᵀ v
    g = _reciprocal(row_norms) * (weight @ u)  # Ŵ u
    squared_norms = 1 - 2 * strength * direction * g + (strength * direction) ** 2 * (u @ u)
    return OutputTransform(inward, outward, squared_norms.clamp(min=1e-12).rsqrt())


def edited_weight(weight: Tensor, direction: Tensor, strength: float, row_normalization: str) -> Tensor:
    """W', [d, k], straight from the definition."""
    if row_normalization == "none":
        return weight - strength * torch.outer(direction, direction @ weight)
    norms = weight.norm(dim=1, keepdim=True)
    rows = _reciprocal(norms) * weight
    edited = rows - strength * torch.outer(direction, direction @ rows)
    if row_normalization == "full":
        edited = edited * _reciprocal(edited.norm(dim=1, keepdim=True))
    result: Tensor = norms * edited
    return result


def low_rank_factors(
    weight: Tensor, direction: Tensor, strength: float, row_normalization: str, rank: int
) -> tuple[Tensor, Tensor, float]:
    """The edit as LoRA factors (A [r, k], B [d, r], relative error) with W' ≈ W + B A.

    For none and pre r is 1 and the factors are exact: A = vᵀW, B = −λv, or A = vᵀŴ, B = −λ n⊙v. For full r is `rank`,
    from the truncated singular value decomposition of W' − W, and the error is ‖W' − W − BA‖ / ‖W' − W‖ (Frobenius).
    """
    if row_normalization == "none":
        return (direction @ weight)[None], (-strength * direction)[:, None], 0.0
    norms = weight.norm(dim=1)
    if row_normalization == "pre":
        return (_reciprocal(norms) * direction @ weight)[None], (-strength * norms * direction)[:, None], 0.0
    delta = edited_weight(weight, direction, strength, "full") - weight
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()
    error = float(s[rank:].norm() / s.norm()) if float(s.norm()) > 0 else 0.0
    return root[:, None] * vh[:rank], u[:, :rank] * root, error


def _reciprocal(values: Tensor) -> Tensor:
    """1 / values, and 0 where a value is 0: a row of zeros stays one."""
    return torch.where(values > 0, 1 / values.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
