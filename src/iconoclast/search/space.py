"""The parameters that Optuna samples, and the edit that a sample stands for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from iconoclast.directions.estimators import Directions, DirectionSpec
from iconoclast.documents import Plain
from iconoclast.edits.edit import Edit
from iconoclast.edits.profile import Profile
from iconoclast.edits.record import load_edit
from iconoclast.errors import DirectionError
from iconoclast.models.anatomy import Writer, site_directions
from iconoclast.registry import require_known
from iconoclast.vocabulary import (
    KNOWN_COMPONENTS,
    SCOPES,
    Component,
    DirectionMethod,
    DirectionScope,
    RowNormalization,
    Site,
    known_methods,
)

Distribution = CategoricalDistribution | FloatDistribution
"""The range of one parameter."""

EDGE = 0.05
"""Share of a range that counts as its end."""

WEAKENING = 0.5, 2.0
"""Range of peak strengths: 1 removes the direction, 2 reverses it."""

STRENGTHENING = 0.05, 1.0
"""The same, to be taken negative: -1 doubles the direction."""

OTHER_STRENGTHS = 0.7, 0.5, 1.2
"""Factors on the usual strength of the edits that a search begins with, the most useful first."""

FEWEST_AT_AN_EDGE = 3
"""Trials at an end of a range that chance no longer explains."""


@dataclass(frozen=True)
class EditParameters:
    """One point of the search space: a direction, and a strength profile for every component."""

    direction: DirectionSpec
    profiles: Mapping[str, Profile]

    def __str__(self) -> str:
        """Describe its direction in words."""
        direction = self.direction
        return f"{direction.method}, " + (
            f"at layer {direction.index:.1f}" if direction.scope == "global" else "per layer"
        )

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "EditParameters":
        """Read the output of `document`."""
        profiles = {component: Profile(**profile) for component, profile in document["profiles"].items()}
        return cls(DirectionSpec(**document["direction"]), profiles)

    def document(self) -> Plain:
        """Return the same as plain data."""
        return asdict(self)

    def edit(self, directions: Directions, writers: Mapping[Site, Writer], row_normalization: RowNormalization) -> Edit:
        """Return the edit of the model with these writers."""
        resolved = directions.resolve(self.direction)
        return Edit.build(site_directions(writers, resolved), self.profiles, row_normalization)

    def along(
        self, directions: Directions, writers: Mapping[Site, Writer], row_normalization: RowNormalization
    ) -> Edit:
        """Return the edit of the same strengths along other directions (random ones, as a control)."""
        return self.edit(directions, writers, row_normalization)


@dataclass(frozen=True)
class FittedParameters:
    """An edit fitted by gradients.

    Attributes:
        start: parameters that the fit began with.
        trial: number of that trial.
        scale: factor on all strengths of the fit.
        file: the fitted edit.
    """

    start: EditParameters
    trial: int
    scale: float
    file: Path

    def __str__(self) -> str:
        """Describe the origin of its directions and strengths in words."""
        return f"fitted from trial {self.trial}, strengths times {self.scale:g}"

    def edit(self, directions: Directions, writers: Mapping[Site, Writer], row_normalization: RowNormalization) -> Edit:
        """Return the fitted edit, scaled."""
        return load_edit(self.file).scaled(self.scale)

    def along(
        self, directions: Directions, writers: Mapping[Site, Writer], row_normalization: RowNormalization
    ) -> Edit:
        """Return the edit of the same strengths along other directions, each layer's own."""
        fitted = self.edit(directions, writers, row_normalization)
        others = site_directions(writers, directions.resolve(DirectionSpec(self.start.direction.method)))
        return Edit({site: others[site] for site in fitted.strengths}, fitted.strengths, fitted.row_normalization)


AnyParameters = EditParameters | FittedParameters


@dataclass(frozen=True)
class SearchSpace:
    """The ranges of all parameters; each is sampled in every trial.

    Attributes:
        layers: number of transformer layers L; positions are ranges of N = L − 1.
        components: residual writers to edit.
        strengthen: whether strengths are negative, so that more of the direction is written; they are then smaller, as
            strengths beyond break the model.
    """

    layers: int
    components: Sequence[Component]
    methods: Sequence[DirectionMethod | str]
    scopes: Sequence[DirectionScope]
    strengthen: bool = False

    def __post_init__(self) -> None:
        for component in self.components:
            require_known(component, KNOWN_COMPONENTS, "component")
        for method in self.methods:
            require_known(method, known_methods(), "direction method", DirectionError)
        for scope in self.scopes:
            require_known(scope, SCOPES, "direction scope", DirectionError)

    def distributions(self) -> dict[str, Distribution]:
        """Return the range of every parameter, as Optuna takes it."""
        n = max(self.layers - 1, 1)
        space: dict[str, Distribution] = {
            "direction_method": CategoricalDistribution(list(self.methods)),
            "direction_scope": CategoricalDistribution(list(self.scopes)),
            "direction_index": FloatDistribution(0.4 * n, 0.9 * n),
            "direction_blend": FloatDistribution(0.0, 1.0),
        }
        for component in self.components:
            space |= {
                f"{component}.max_weight": FloatDistribution(*(STRENGTHENING if self.strengthen else WEAKENING)),
                f"{component}.max_weight_position": FloatDistribution(0.4 * n, 1.0 * n),
                f"{component}.min_weight_fraction": FloatDistribution(0.0, 1.0),
                f"{component}.min_weight_distance": FloatDistribution(1.0, max(0.6 * n, 1.0)),
            }
        return space

    def standard(self) -> list[dict[str, Any]]:
        """Return the samples that a search begins with, which are a front by themselves: the most useful first.

        They are triangles over the middle layers, which do well on models of many kinds, for every scope in several
        strengths; a fit from one of them ends as low as from the best of many random ones (benchmarks/README.md).
        """
        usual = [self._standard(scope, 1.0) for scope in self.scopes]
        return usual + [self._standard(scope, strength) for scope in self.scopes for strength in OTHER_STRENGTHS]

    def _standard(self, scope: DirectionScope, strength: float) -> dict[str, Any]:
        n = max(self.layers - 1, 1)
        peak = strength * (0.5 if self.strengthen else 1.5 if scope == "global" else 1.2)
        sample: dict[str, Any] = {
            "direction_method": "mean" if "mean" in self.methods else self.methods[0],
            "direction_scope": scope,
            "direction_index": 0.72 * n,
            "direction_blend": 0.5,
        }
        for component in self.components:
            sample |= {
                f"{component}.max_weight": peak,
                f"{component}.max_weight_position": 0.62 * n,
                f"{component}.min_weight_fraction": 0.0,
                f"{component}.min_weight_distance": max(0.48 * n, 1.0),
            }
        return sample

    def edges(self, points: Sequence[EditParameters]) -> list[str]:
        """Name the ranges of strengths at an end of which at least half of the points lie, and three of them or more.

        Better points may then lie outside.
        """
        ranges, found = self.distributions(), []
        for component in self.components:
            strengths = [abs(point.profiles[component].max_weight) for point in points]
            whole = ranges[f"{component}.max_weight"]
            assert isinstance(whole, FloatDistribution)
            margin = EDGE * (whole.high - whole.low)
            for end, near in (
                (whole.low, [s for s in strengths if s < whole.low + margin]),
                (whole.high, [s for s in strengths if s > whole.high - margin]),
            ):
                if len(near) >= max(FEWEST_AT_AN_EDGE, len(points) / 2):
                    found.append(f"{component}: strengths of {len(near)} of {len(points)} trials are about {end:g}")
        return found

    def parameters(self, sample: Mapping[str, Any]) -> EditParameters:
        """Return the edit parameters that a sample of `distributions` stands for."""
        return EditParameters(
            DirectionSpec(
                sample["direction_method"],
                sample["direction_blend"],
                sample["direction_scope"],
                min(sample["direction_index"], self.layers - 1),
            ),
            {component: self._profile(component, sample) for component in self.components},
        )

    def _profile(self, component: Component, sample: Mapping[str, Any]) -> Profile:
        peak = sample[f"{component}.max_weight"] * (-1 if self.strengthen else 1)
        return Profile(
            peak,
            sample[f"{component}.max_weight_position"],
            peak * sample[f"{component}.min_weight_fraction"],
            sample[f"{component}.min_weight_distance"],
        )
