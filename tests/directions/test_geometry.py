"""Geometry of residuals: planes that show a separation, and a separation that noise does not have."""

import pytest
import torch

from iconoclast.directions.geometry import (
    in_step,
    planes,
    principal_planes,
    separation,
    share_within,
    turn,
    variance_within,
)


def test_the_first_axis_parts_what_can_be_parted() -> None:
    torch.manual_seed(0)
    benign, target = torch.randn(40, 2, 16), torch.randn(30, 2, 16) + 4 * torch.eye(16)[3]
    points = planes(benign, target)
    assert points.shape == (70, 2, 2)
    assert float(points[40:, 0, 0].min()) > float(points[:40, 0, 0].mean())
    assert torch.allclose(points.std(0), torch.ones(2, 2))
    assert float(points[:, 0, 1] @ points[:, 1, 1]) >= 0


def test_two_halves_of_the_same_noise_are_not_apart() -> None:
    torch.manual_seed(0)
    same = separation(torch.randn(60, 1, 256), torch.randn(60, 1, 256))
    apart = separation(torch.randn(60, 1, 256), torch.randn(60, 1, 256) + 1)
    assert abs(float(same)) < 0.6 and float(apart) > 5
    assert float(separation(torch.ones(2, 1, 4), torch.ones(2, 1, 4))) == 0


def test_shares_are_of_what_lies_in_the_basis() -> None:
    basis = torch.eye(4)[:, :2].expand(3, 4, 2)
    directions = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]), dim=-1)
    assert torch.allclose(share_within(directions, basis), torch.tensor([1.0, 0.5, 0.0]), atol=1e-6)
    assert torch.allclose(turn(directions), torch.tensor([0.5**0.5, 0.0]), atol=1e-6)
    states = torch.zeros(2, 3, 4)
    states[0, :, 0] = 2
    assert torch.allclose(variance_within(states, basis), torch.ones(3))


def test_principal_planes_hold_the_most_variance_in_step() -> None:
    torch.manual_seed(0)
    wide = torch.randn(50, 1, 2) * torch.tensor([5.0, 3.0])
    states = 0.1 * torch.randn(50, 4, 16)
    states[:, :, :2] += wide
    states[:, 1] = -states[:, 1]  # what a projection made by itself would turn round
    points = principal_planes(states)
    assert points.shape == (50, 4, 2)
    assert float(points.square().mean().sqrt()) == pytest.approx(1, abs=1e-4)
    for layer in range(1, 4):
        assert float((points[:, layer] - points[:, layer - 1]).norm() / points[:, layer].norm()) < 0.1
    assert float(points[:, 0].std(0).max() / points[:, 0].std(0).min()) == pytest.approx(5 / 3, rel=0.2)


def test_turned_and_mirrored_layers_are_laid_on_each_other() -> None:
    torch.manual_seed(0)
    first = torch.randn(20, 2)
    turned = torch.tensor([[0.6, 0.8], [0.8, -0.6]])
    points = in_step([first, 7 * first @ turned + 3, torch.zeros(20, 2)])
    assert torch.allclose(points[:, 0], points[:, 1], atol=1e-5)
    assert not points[:, 2].any()
