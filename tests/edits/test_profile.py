"""The strength profile: four parameters, a peak and what is left of it at the edge."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from iconoclast.edits.profile import Profile

weights = st.floats(0.0, 3.0)
positions = st.floats(0.0, 40.0)
distances = st.floats(0.1, 30.0)
layers = st.integers(0, 40)


@given(maximum=weights, minimum=weights, position=positions, distance=distances, layer=layers)
def test_the_profile_is_the_formula(
    maximum: float, minimum: float, position: float, distance: float, layer: int
) -> None:
    away = abs(layer - position)
    expected = 0.0 if away > distance else maximum + away / distance * (minimum - maximum)
    assert Profile(maximum, position, minimum, distance).strength(layer) == pytest.approx(expected)


@given(peak=weights, position=positions, span=distances, layer=layers)
def test_no_weight_at_the_edge_makes_a_triangle(peak: float, position: float, span: float, layer: int) -> None:
    mountain = peak * max(0.0, 1 - abs(layer - position) / span)
    assert Profile.triangle(peak, position, span).strength(layer) == pytest.approx(mountain, abs=1e-9)
    assert Profile(peak, position, 0.0, span).strength(layer) == Profile.triangle(peak, position, span).strength(layer)


@given(maximum=weights, share=st.floats(0, 1), position=positions, distance=distances, layer=layers)
def test_strength_lies_between_edge_and_peak_or_is_nothing(
    maximum: float, share: float, position: float, distance: float, layer: int
) -> None:
    strength = Profile(maximum, position, share * maximum, distance).strength(layer)
    assert strength == 0 or share * maximum - 1e-9 <= strength <= maximum + 1e-9


@given(maximum=weights, share=st.floats(0, 1), position=positions, distance=distances, pair=st.tuples(layers, layers))
def test_strength_falls_with_the_distance_from_the_peak(
    maximum: float, share: float, position: float, distance: float, pair: tuple[int, int]
) -> None:
    near, far = sorted(pair, key=lambda layer: abs(layer - position))
    profile = Profile(maximum, position, share * maximum, distance)
    assert profile.strength(near) >= profile.strength(far) - 1e-9


@given(maximum=weights, minimum=weights, position=st.integers(10, 20), distance=distances, step=st.integers(0, 10))
def test_the_profile_is_symmetric(maximum: float, minimum: float, position: int, distance: float, step: int) -> None:
    profile = Profile(maximum, position, minimum, distance)
    assert profile.strength(position + step) == profile.strength(position - step)


def test_peak_edge_and_outside() -> None:
    profile = Profile(max_weight=1.5, max_weight_position=10, min_weight=0.5, min_weight_distance=4)
    assert [profile.strength(layer) for layer in (5, 6, 8, 10, 12, 14, 15)] == [0, 0.5, 1, 1.5, 1, 0.5, 0]


def test_the_peak_may_lie_between_two_layers() -> None:
    profile = Profile.triangle(peak=1.0, position=2.5, span=2.0)
    assert [profile.strength(layer) for layer in range(6)] == [0, 0.25, 0.75, 0.75, 0.25, 0]


@given(weight=weights, layer=layers)
def test_a_constant_profile_is_the_same_everywhere(weight: float, layer: int) -> None:
    assert Profile.constant(weight).strength(layer) == weight


@given(maximum=weights, minimum=weights, position=positions, layer=layers)
def test_a_distance_of_nothing_edits_the_peak_alone(
    maximum: float, minimum: float, position: float, layer: int
) -> None:
    assume(position != layer)
    assert Profile(maximum, position, minimum, 0.0).strength(layer) == 0
    assert Profile(maximum, layer, minimum, 0.0).strength(layer) == maximum
