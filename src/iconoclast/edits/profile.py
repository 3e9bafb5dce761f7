"""Strength profile: how strongly each layer is edited."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """λ(layer) of one component, in four parameters.

    With D = `|layer − max_weight_position|`, λ is linear in D from max_weight at D = 0 (1 removes all of the direction)
    to min_weight at D = min_weight_distance, and zero beyond. The position may lie between two layers.
    """

    max_weight: float
    max_weight_position: float
    min_weight: float
    min_weight_distance: float

    @classmethod
    def triangle(cls, peak: float, position: float, span: float) -> "Profile":
        """Return the peak `· (1 − |layer − position| / span)`, zero outside the span."""
        return cls(peak, position, 0.0, span)

    @classmethod
    def constant(cls, weight: float) -> "Profile":
        """Return the same strength for every layer."""
        return cls(weight, 0.0, weight, float("inf"))

    def strength(self, layer: int) -> float:
        """Return λ of a layer, counted from 0."""
        distance = abs(layer - self.max_weight_position)
        if distance > self.min_weight_distance:
            return 0.0
        if self.min_weight_distance in (0, float("inf")):
            return self.max_weight
        share = distance / self.min_weight_distance
        return self.max_weight + share * (self.min_weight - self.max_weight)
