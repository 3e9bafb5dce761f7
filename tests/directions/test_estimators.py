"""Estimators find the direction between two sets of residuals, whatever else is done to the sets."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from iconoclast.directions.estimators import (
    Directions,
    DirectionSpec,
    estimate_directions,
    geometric_median,
    geometric_median_difference,
    interpolate,
    mean_difference,
    median_difference,
    variance_difference,
)
from iconoclast.errors import DirectionError
from iconoclast.vocabulary import METHODS

every_method = pytest.mark.parametrize("method", METHODS)
seeds = st.integers(0, 2**31)


@st.composite
def two_sets(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Benign and target residuals [n, L, d] that differ in their means and in the spread of their coordinates."""
    benign, target = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    layers, d = draw(st.integers(1, 3)), draw(st.integers(2, 10))
    random = torch.Generator().manual_seed(draw(seeds))
    spread = 0.5 + torch.rand(layers, d, generator=random)
    apart = torch.randn(layers, d, generator=random)
    return (
        torch.randn(benign, layers, d, generator=random) * spread,
        torch.randn(target, layers, d, generator=random) * spread + apart,
    )


def unfiltered(benign: Tensor, target: Tensor, method: str, **options: Any) -> Tensor:
    """The method's unit direction per layer, with no filter and no floor to speak of."""
    return estimate_directions(
        benign, target, methods=[method], orthogonalize=False, **{"variance_floor": 1e-12, **options}
    ).per_layer(method)


# What every estimator must pass.


@every_method
@given(sets=two_sets())
def test_every_direction_has_unit_norm(method: str, sets: tuple[Tensor, Tensor]) -> None:
    direction = unfiltered(*sets, method)
    assert direction.shape == sets[0].shape[1:]
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(direction.shape[0]))


@every_method
@given(sets=two_sets(), seed=seeds)
def test_moving_both_sets_together_changes_nothing(method: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    benign, target = sets
    shift = torch.randn(benign.shape[1:], generator=torch.Generator().manual_seed(seed))
    moved = unfiltered(benign + shift, target + shift, method)
    torch.testing.assert_close(moved, unfiltered(benign, target, method), atol=1e-3, rtol=0)


@every_method
@given(sets=two_sets())
def test_swapping_the_sets_turns_the_direction_round(method: str, sets: tuple[Tensor, Tensor]) -> None:
    benign, target = sets
    torch.testing.assert_close(unfiltered(target, benign, method), -unfiltered(benign, target, method))


@every_method
@given(sets=two_sets(), scale=st.floats(0.1, 50))
def test_scaling_both_sets_leaves_the_direction(method: str, sets: tuple[Tensor, Tensor], scale: float) -> None:
    benign, target = sets
    scaled = unfiltered(scale * benign, scale * target, method)
    torch.testing.assert_close(scaled, unfiltered(benign, target, method), atol=1e-3, rtol=0)


@every_method
@given(sets=two_sets(), seed=seeds)
def test_the_order_of_the_prompts_does_not_matter(method: str, sets: tuple[Tensor, Tensor], seed: int) -> None:
    benign, target = sets
    shuffled = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(
        unfiltered(benign, shuffled, method), unfiltered(benign, target, method), atol=1e-3, rtol=0
    )


@every_method
@given(seed=st.integers(0, 2**31))
def test_a_planted_difference_is_found_among_noise(method: str, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    planted = normalize(torch.randn(2, 24, generator=random), dim=-1)
    benign = torch.randn(200, 2, 24, generator=random)
    target = torch.randn(200, 2, 24, generator=random) + 3 * planted
    assert cosine_similarity(unfiltered(benign, target, method), planted).min() > 0.9
    noise = unfiltered(benign, target - 3 * planted, method)  # without the signal there is nothing to find
    assert cosine_similarity(noise, planted).abs().max() < 0.8


@every_method
def test_layers_do_not_mix(method: str) -> None:
    random = torch.Generator().manual_seed(5)
    benign, target = torch.randn(9, 3, 6, generator=random), torch.randn(8, 3, 6, generator=random)
    together = unfiltered(benign, target, method)
    for layer in range(3):
        alone = unfiltered(benign[:, [layer]], target[:, [layer]], method)
        torch.testing.assert_close(together[layer], alone[0])


# Each estimator against its own definition.


@given(sets=two_sets())
def test_mean_difference_is_the_difference_of_the_means(sets: tuple[Tensor, Tensor]) -> None:
    benign, target = (s.double().numpy() for s in sets)
    np.testing.assert_allclose(mean_difference(*sets), target.mean(0) - benign.mean(0), atol=1e-5)


@given(sets=two_sets())
def test_median_difference_is_numpys(sets: tuple[Tensor, Tensor]) -> None:
    benign, target = (s.numpy() for s in sets)
    np.testing.assert_allclose(median_difference(*sets), np.median(target, 0) - np.median(benign, 0), atol=1e-6)


@pytest.mark.parametrize(("values", "median"), [([5.0, -1.0, 2.0], 2.0), ([5.0, -1.0, 2.0, 100.0], 3.5)])
def test_the_median_of_an_even_count_is_between_the_middle_two(values: list[float], median: float) -> None:
    states = torch.tensor(values).reshape(-1, 1, 1)
    assert median_difference(torch.zeros(2, 1, 1), states).item() == median


@given(sets=two_sets(), floor=st.floats(0, 1))
def test_variance_difference_is_the_mean_by_pooled_spread(sets: tuple[Tensor, Tensor], floor: float) -> None:
    benign, target = (s.double().numpy() for s in sets)
    expected = (target.mean(0) - benign.mean(0)) / np.sqrt((benign.var(0) + target.var(0)) / 2 + floor)
    np.testing.assert_allclose(variance_difference(*sets, floor), expected, rtol=1e-3, atol=1e-4)


def test_the_variance_floor_keeps_constant_coordinates_finite() -> None:
    benign = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0))
    target = benign + 1
    benign[..., 0], target[..., 0] = 0, 2
    difference = variance_difference(benign, target)
    assert difference.isfinite().all()
    assert difference[0, 0].item() == pytest.approx(2 / 1e-3)


def test_variance_prefers_the_coordinate_that_separates_the_sets() -> None:
    random = torch.Generator().manual_seed(1)
    spread = torch.tensor([10.0, 0.1])
    benign = torch.randn(500, 1, 2, generator=random) * spread
    target = torch.randn(500, 1, 2, generator=random) * spread + 1
    mean, variance = (unfiltered(benign, target, method)[0].abs() for method in ("mean", "variance"))
    assert variance[1] > 0.99 > mean[1]


@given(seed=seeds, outlier=st.floats(20, 1000))
def test_the_geometric_median_withstands_outliers(seed: int, outlier: float) -> None:
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(1, 5, generator=random)
    states = centre + torch.randn(41, 1, 5, generator=random) * 0.5
    states[:8] = outlier * normalize(torch.randn(1, 5, generator=random), dim=-1)
    assert (geometric_median(states) - centre).norm() < 1
    assert (states.mean(0) - centre).norm() > 2


@given(seed=seeds, n=st.integers(3, 15), d=st.integers(2, 6))
def test_the_geometric_median_has_the_least_summed_distance(seed: int, n: int, d: int) -> None:
    random = torch.Generator().manual_seed(seed)
    states = torch.randn(n, 1, d, generator=random)

    def summed_distance(point: Tensor) -> Tensor:
        return (states - point).norm(dim=-1).sum(0)

    least = summed_distance(geometric_median(states))
    for step in (1.0, 0.1, 0.01):
        others = geometric_median(states) + step * normalize(torch.randn(20, 1, d, generator=random), dim=-1)
        assert all(summed_distance(other) >= least - 2e-3 for other in others)
    assert least <= summed_distance(states.mean(0)) + 1e-5
    assert least <= min(summed_distance(state) for state in states) + 2e-3


def test_the_geometric_median_of_a_square_is_its_centre() -> None:
    corners = torch.tensor([[3.0, 1.0], [3.0, 5.0], [7.0, 1.0], [7.0, 5.0]])[:, None]
    torch.testing.assert_close(geometric_median(corners), torch.tensor([[5.0, 3.0]]))
    torch.testing.assert_close(geometric_median_difference(corners, corners + 2), torch.tensor([[2.0, 2.0]]))


@pytest.mark.parametrize(
    "shift",
    [
        0,
        pytest.param(
            16,
        ),
    ],
)
def test_the_geometric_median_gets_past_a_prompt_on_the_mean(shift: int) -> None:
    states = torch.tensor([-3.0, 0.0, 1.0, 1.0, 1.0]).reshape(-1, 1, 1) + shift
    assert states.mean() == shift
    assert geometric_median(states).item() - shift == pytest.approx(1, abs=1e-2)


@given(sets=two_sets())
def test_hybrid_runs_from_mean_to_variance(sets: tuple[Tensor, Tensor]) -> None:
    directions = estimate_directions(*sets, methods=["hybrid"], orthogonalize=False)
    mean, variance = directions.per_layer("mean"), directions.per_layer("variance")
    torch.testing.assert_close(directions.per_layer("hybrid", 0.0), mean)
    torch.testing.assert_close(directions.per_layer("hybrid", 1.0), variance)
    middle = directions.per_layer("hybrid", 0.5)
    torch.testing.assert_close(middle, normalize(mean + variance, dim=-1))
    torch.testing.assert_close(cosine_similarity(middle, mean), cosine_similarity(middle, variance))


# Errors instead of directions that mean nothing.


@every_method
def test_equal_sets_are_an_error_that_names_the_layer(method: str) -> None:
    benign = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    target = benign.clone()
    target[:, [0, 2]] += 1
    with pytest.raises(DirectionError, match="layer 1"):
        estimate_directions(benign, target, methods=[method])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_residuals_that_are_not_numbers_are_an_error(bad: float) -> None:
    benign, target = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    target[1, 2, 3] = bad
    with pytest.raises(DirectionError, match="layer 2"):
        estimate_directions(benign, target, methods=["mean"])


@pytest.mark.parametrize(("benign", "target"), [(1, 5), (5, 1), (0, 0)])
def test_a_set_of_fewer_than_two_prompts_is_an_error(benign: int, target: int) -> None:
    with pytest.raises(DirectionError, match=f"{benign} benign and {target} target"):
        estimate_directions(torch.randn(benign, 2, 4), torch.randn(target, 2, 4))


# From layers to one direction.


@given(seed=seeds, layers=st.integers(2, 6), share=st.floats(0, 1), data=st.data())
def test_interpolation_runs_from_one_neighbour_to_the_other(
    seed: int, layers: int, share: float, data: st.DataObject
) -> None:
    directions = normalize(torch.randn(layers, 7, generator=torch.Generator().manual_seed(seed)), dim=-1)
    low = data.draw(st.integers(0, layers - 2))
    direction = interpolate(directions, low + share)
    expected = normalize((1 - share) * directions[low] + share * directions[low + 1], dim=0)
    torch.testing.assert_close(direction, expected, atol=1e-4, rtol=0)
    assert direction.norm().item() == pytest.approx(1, abs=1e-5)


def test_interpolation_at_a_layer_is_the_layers_own_direction() -> None:
    directions = torch.eye(4)
    for layer in range(4):
        torch.testing.assert_close(interpolate(directions, layer), directions[layer])
    torch.testing.assert_close(interpolate(directions, 1.5), torch.tensor([0, 1, 1, 0]) / 2**0.5)


def test_a_model_of_one_layer_has_one_direction_to_take() -> None:
    only = torch.tensor([[0.6, 0.8]])
    torch.testing.assert_close(interpolate(only, 0), only[0])


@pytest.mark.parametrize("index", [-0.001, 3.001, float("nan"), float("inf")])
def test_an_index_outside_of_the_layers_is_an_error(index: float) -> None:
    with pytest.raises(DirectionError, match="0 to 3"):
        interpolate(torch.eye(4), index)


def test_opposite_neighbours_have_no_direction_between_them() -> None:
    direction = torch.tensor([0.6, 0.8])
    with pytest.raises(DirectionError):
        interpolate(torch.stack([direction, -direction]), 0.5)


@every_method
def test_the_global_scope_is_one_direction_at_every_layer(method: str) -> None:
    random = torch.Generator().manual_seed(2)
    directions = estimate_directions(torch.randn(8, 4, 6, generator=random), torch.randn(8, 4, 6, generator=random))
    per_layer = directions.resolve(DirectionSpec(method, 0.3, "per_layer"))
    torch.testing.assert_close(per_layer, directions.per_layer(method, 0.3))
    everywhere = directions.resolve(DirectionSpec(method, 0.3, "global", 1.25))
    assert everywhere.shape == per_layer.shape
    torch.testing.assert_close(everywhere, interpolate(per_layer, 1.25).expand(4, 6))


def test_only_the_methods_asked_for_are_computed() -> None:
    random = torch.Generator().manual_seed(3)
    sets = torch.randn(5, 2, 4, generator=random), torch.randn(5, 2, 4, generator=random)
    assert estimate_directions(*sets, methods=["median"]).raw.keys() == {"median"}
    assert estimate_directions(*sets, methods=["hybrid"]).raw.keys() == {"mean", "variance"}
    directions = estimate_directions(*sets)
    assert isinstance(directions, Directions)
    assert {*directions.raw, "hybrid"} == set(METHODS)
    assert directions.layers == 2


# Layers that do not see the prompts.


def test_a_blind_layer_has_no_direction_and_disturbs_no_other() -> None:
    random = torch.Generator().manual_seed(0)
    benign, target = torch.randn(20, 3, 16, generator=random), 1 + torch.randn(20, 3, 16, generator=random)
    constant = torch.randn(16, generator=random)
    for states in (benign, target):
        states[:, 0] = constant + 1e-5 * torch.randn(20, 16, generator=random)  # but for rounding
    directions = estimate_directions(benign, target, subspace_rank=4)
    others = estimate_directions(benign[:, 1:], target[:, 1:], subspace_rank=4)
    for method in METHODS:
        per_layer = directions.per_layer(method)
        assert not per_layer[0].any()
        torch.testing.assert_close(per_layer[1:], others.per_layer(method))
        control = directions.randomized(1).per_layer(method)
        assert not control[0].any() and control[1:].norm(dim=-1) == pytest.approx([1, 1], abs=1e-5)


def test_prompts_that_are_all_alike_are_at_fault_and_no_layer() -> None:
    same = torch.ones(5, 3, 16)
    with pytest.raises(DirectionError, match="same mean residual at layer 0"):
        estimate_directions(same, same)


def test_a_misspelt_scope_is_refused() -> None:
    with pytest.raises(DirectionError, match=r'"per-layer". Did you mean per_layer\? Use one of global, per_layer\.'):
        DirectionSpec(scope="per-layer")  # type: ignore[arg-type]


def test_a_method_that_nobody_knows_is_refused() -> None:
    known = ", ".join(METHODS)
    with pytest.raises(DirectionError, match=f'no direction method "medium". Did you mean median.*{known}'):
        DirectionSpec("medium")
    with pytest.raises(DirectionError, match=f'no direction method "average".*{known}'):
        estimate_directions(torch.randn(4, 2, 8), torch.randn(4, 2, 8), methods=["average"])
