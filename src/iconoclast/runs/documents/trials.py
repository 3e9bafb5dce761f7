"""A trial as documents hold it."""

from collections.abc import Mapping

from pydantic.dataclasses import dataclass

from iconoclast.documents import Part
from iconoclast.edits.profile import Profile
from iconoclast.scores import Scores
from iconoclast.vocabulary import DirectionScope


class FitDocument(Part):
    """Origin of a trial that was fitted by gradient.

    Attributes:
        start: number of the trial that it began with.
        scale: factor of the strengths that the fit came to.
        file: the fitted edit, in the run's folder `fits`.
    """

    start: int
    scale: float
    file: str


@dataclass(frozen=True, kw_only=True)
class TrialDocument(Scores):
    """A trial and its scores on the select prompts.

    Attributes:
        index: its number in the study.
        direction_method: estimator of its directions.
        direction_scope: one direction for all layers, or each layer's own.
        direction_index: for the global scope, the layer that the direction is taken at.
        direction_blend: for hybrid, the share of the variance-scaled direction.
        parameters: component → strength profile.
        fit: how it was fitted; the direction and the parameters are then those of its start. None if it was searched.
    """

    index: int
    direction_method: str
    direction_scope: DirectionScope
    direction_index: float | None
    direction_blend: float | None
    parameters: Mapping[str, Profile]
    fit: FitDocument | None = None
