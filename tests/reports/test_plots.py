"""Plots: the plane that shows whether two prompt sets part, and pages that need no network."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("plotly")

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.reports.plots import front_figure, residual_figure, separating_plane, write_page
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Trial
from iconoclast.search.space import EditParameters


def test_the_first_axis_parts_what_can_be_parted() -> None:
    torch.manual_seed(0)
    benign, target = torch.randn(40, 16), torch.randn(30, 16) + 4 * torch.eye(16)[3]
    a, b = separating_plane(benign, target)
    assert a.shape == (40, 2) and b.shape == (30, 2)
    assert float(b[:, 0].min()) > float(a[:, 0].mean())
    assert abs(float(a[:, 1].mean() - b[:, 1].mean())) < 1e-4


def test_the_figure_has_every_layer_and_shows_one(tmp_path: Path) -> None:
    benign, target = torch.randn(4, 3, 8), torch.randn(5, 3, 8)
    figure = residual_figure(benign, target, ("calm", "busy"), ("blue", "red"), (["a"] * 4, ["b"] * 5))
    assert len(figure.data) == 6 and sum(bool(trace.visible) for trace in figure.data) == 2
    assert {trace.name for trace in figure.data} == {"calm", "busy"}
    assert {trace.marker.color for trace in figure.data} == {"blue", "red"}
    write_page(figure, tmp_path / "plots" / "residuals.html")
    page = (tmp_path / "plots" / "residuals.html").read_text()
    assert '<script src="http' not in page and "Plotly.newPlot" in page


def test_the_front_is_joined_and_all_trials_shown() -> None:
    def trial(index: int, refusals: int, kl: float) -> Trial:
        scores = Scores(Count(refusals, 10), Count(0, 10), 0, 0.5, kl)
        return Trial(index, EditParameters(DirectionSpec(), {}), scores)

    figure = front_figure([trial(0, 1, 0.2), trial(1, 5, 0.1), trial(2, 6, 0.3)], 0.1, 0.9)
    everything, front = figure.data
    assert len(everything.x) == 3 and list(front.x) == [0.1, 0.2] and list(front.y) == [0.5, 0.1]
