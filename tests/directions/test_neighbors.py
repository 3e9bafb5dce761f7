"""PaCMAP: groups stay together, layers are in step, and what cannot be laid out is said."""

from importlib.util import find_spec

import pytest
import torch

from iconoclast.directions.neighbors import neighbor_planes
from iconoclast.errors import DirectionError

needs_pacmap = pytest.mark.skipif(find_spec("pacmap") is None, reason="PaCMAP is not installed")


@needs_pacmap
@pytest.mark.slow
def test_groups_part_in_every_layer_and_the_same_seed_gives_the_same() -> None:
    torch.manual_seed(0)
    states = torch.randn(60, 3, 32)
    states[30:] += 4
    states[:, 2] = 1  # a layer in which all prompts are alike
    points = neighbor_planes(states, seed=1)
    assert points.shape == (60, 3, 2) and not points[:, 2].any()
    for layer in range(2):
        middles = [points[side, layer].mean(0) for side in (slice(30), slice(30, None))]
        away = (points[:30, layer] - middles[0]).norm(dim=-1)
        assert float((middles[0] - middles[1]).norm()) > float(away.median())
    assert torch.equal(points, neighbor_planes(states, seed=1))


@needs_pacmap
def test_a_few_prompts_have_no_neighbours() -> None:
    with pytest.raises(DirectionError, match="needs 10 prompts, and there are 9"):
        neighbor_planes(torch.randn(9, 2, 8), seed=0)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iconoclast.directions.neighbors.find_spec", lambda name: None)
    with pytest.raises(DirectionError, match=r"pip install 'iconoclast-edit\[research\]'"):
        neighbor_planes(torch.randn(20, 2, 8), seed=0)
