"""Directions: from residuals of two prompt sets to one unit vector per layer. Pure tensor code."""

from iconoclast.directions.estimators import Directions, DirectionSpec, estimate_directions
from iconoclast.directions.subspace import benign_basis, project_out, winsorize

__all__ = ["DirectionSpec", "Directions", "benign_basis", "estimate_directions", "project_out", "winsorize"]
