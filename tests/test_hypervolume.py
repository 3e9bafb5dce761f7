"""The hypervolume of the benchmarks against closed forms, Optuna's and thrown points."""

import math

import numpy
import pytest
from hypervolume import hypervolume
from hypothesis import given
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

objectives = st.tuples(st.floats(0, 3), st.floats(0, 0.7))
fronts = st.lists(objectives, max_size=12)
REFERENCE = (2.0, 0.5)


def test_the_hypervolume_of_known_fronts() -> None:
    assert hypervolume([], REFERENCE) == 0
    assert hypervolume([(0, 0)], REFERENCE) == 1
    assert hypervolume([(0.5, 0.25)], REFERENCE) == pytest.approx(0.75 * 0.5)
    assert hypervolume([(0.5, 0.25), (1.0, 0.0)], REFERENCE) == pytest.approx(0.75 * 0.5 + 0.5 * 0.5)
    assert hypervolume([(-1e-9, 0.0)], REFERENCE) == 1


@given(points=fronts)
def test_the_hypervolume_is_that_of_optuna(points: list[tuple[float, float]]) -> None:
    within = [(x, y) for x, y in points if x <= REFERENCE[0] and y <= REFERENCE[1]]
    expected = compute_hypervolume(numpy.array(within), numpy.array(REFERENCE)) if within else 0.0
    assert hypervolume(points, REFERENCE) == pytest.approx(expected / (REFERENCE[0] * REFERENCE[1]), abs=1e-12)


@given(points=fronts)
def test_the_hypervolume_is_a_share_of_random_points(points: list[tuple[float, float]]) -> None:
    chance = numpy.random.default_rng(6)
    thrown = chance.random((20_000, 2)) * REFERENCE
    beaten = numpy.zeros(len(thrown), dtype=bool)
    for point in points:
        beaten |= (thrown >= point).all(axis=1)
    assert hypervolume(points, REFERENCE) == pytest.approx(beaten.mean(), abs=0.015)  # 4 standard errors


@given(points=fronts, point=objectives, other=objectives)
def test_another_point_never_makes_the_hypervolume_smaller(
    points: list[tuple[float, float]], point: tuple[float, float], other: tuple[float, float]
) -> None:
    before = hypervolume([*points, point], REFERENCE)
    assert 0 <= hypervolume(points, REFERENCE) <= before + 1e-12 and before <= 1 + 1e-12
    worse = (point[0] + other[0], point[1] + other[1])
    assert hypervolume([*points, point, worse], REFERENCE) == pytest.approx(before)
    assert hypervolume([point, *points], REFERENCE) == before


@given(points=fronts, factors=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)))
def test_the_hypervolume_has_no_units(points: list[tuple[float, float]], factors: tuple[float, float]) -> None:
    expected = pytest.approx(hypervolume(points, REFERENCE), abs=1e-9)
    scaled = [(y * factors[1], x * factors[0]) for x, y in points]
    assert hypervolume(scaled, (REFERENCE[1] * factors[1], REFERENCE[0] * factors[0])) == expected


def test_points_at_or_beyond_the_reference_count_nothing() -> None:
    beyond = [(2.0, 0.0), (0.0, 0.5), (2.5, 0.0), (0.0, math.inf), (math.nan, 0.0)]
    assert hypervolume(beyond, REFERENCE) == 0
    assert hypervolume([*beyond, (1.0, 0.25)], REFERENCE) == pytest.approx(0.25)


@pytest.mark.parametrize("reference", [(0.0, 1.0), (1.0, -1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_reference_that_spans_no_rectangle_is_refused(reference: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="reference"):
        hypervolume([(0, 0)], reference)
