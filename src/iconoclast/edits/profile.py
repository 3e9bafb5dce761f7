"""Strength profile: how strongly each layer is edited."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """λ(layer) of one component, in four parameters.

    With D = |layer − max_weight_position|: zero where D > min_weight_distance, else linear in D from max_weight at the
    position to min_weight at the distance.

    Attributes:
        max_weight: strength at the peak; 1 removes the direction completely.
        max_weight_position: layer of the peak; may lie between two layers.
        min_weight: strength at the edge of the edited range.
        min_weight_distance: layers from the peak to the edge.
    """

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    @classmethod
    def triangle(cls, peak: float, position: float, span: float) -> "Profile":
        """The mountain peak · (1 − |layer − position| / span), zero outside of it."""
        return cls(peak, position, 0.0, span)

    @classmethod
    def constant(cls, weight: float) -> "Profile":
        """The same strength at every layer."""
        return cls(weight, 0.0, weight, float("inf"))

    def strength(self, layer: int) -> float:
        """λ at `layer`."""
        distance = abs(layer - self.max_weight_position)
        if distance > self.min_weight_distance:
            return 0.0
        if self.min_weight_distance in (0, float("inf")):
            return self.max_weight
        share = distance / self.min_weight_distance
        return self.max_weight + share * (self.min_weight - self.max_weight)
