"""Plots, as web pages that need no network. They need the extra `research`."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.errors import UserError
from iconoclast.search.pareto import Trial, pareto_front


def require_plotly() -> None:
    """Raise UserError if plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise UserError("Plots need plotly: pip install 'iconoclast-edit[research]'")


def separating_plane(benign: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Project one layer's residuals [n, d] and [m, d] onto the plane that best shows a separation: [n, 2], [m, 2].

    The first axis is the difference of the means, the second the direction of most variance at right angles to it.
    """
    both = torch.cat([benign, target]).float()
    centred = both - both.mean(0)
    first = normalize(target.float().mean(0) - benign.float().mean(0), dim=0)
    rest = centred - torch.outer(centred @ first, first)
    second = torch.linalg.svd(rest, full_matrices=False).Vh[0]
    points = torch.stack([centred @ first, centred @ second], dim=1)
    return points[: len(benign)], points[len(benign) :]


def residual_figure(
    benign: Tensor, target: Tensor, labels: Sequence[str], colors: Sequence[str], prompts: Sequence[Sequence[str]]
) -> Any:
    """Plot residuals [n, L, d] and [m, L, d] of both prompt sets, a slider choosing the layer.

    Labels, colours (as CSS names them) and texts, which are shown at the pointer, are given for both sets.
    """
    import plotly.graph_objects as go

    layers = benign.shape[1]
    figure = go.Figure()
    for layer in range(layers):
        planes = separating_plane(benign[:, layer], target[:, layer])
        for points, label, color, texts in zip(planes, labels, colors, prompts, strict=True):
            figure.add_scatter(
                x=points[:, 0].tolist(),
                y=points[:, 1].tolist(),
                mode="markers",
                name=label,
                marker={"color": color, "size": 7, "opacity": 0.75},
                text=list(texts),
                hovertemplate="%{text}<extra></extra>",
                visible=layer == layers // 2,
            )
    shown = [[i // 2 == layer for i in range(2 * layers)] for layer in range(layers)]
    steps = [{"method": "update", "label": str(i), "args": [{"visible": only}]} for i, only in enumerate(shown)]
    figure.update_layout(
        title="Last-token residuals",
        template="plotly_white",
        xaxis_title="difference of the means",
        yaxis_title="most variance at right angles to it",
        sliders=[{"active": layers // 2, "currentvalue": {"prefix": "Layer "}, "pad": {"t": 50}, "steps": steps}],
    )
    return figure


def front_figure(trials: Sequence[Trial], kl_target: float, base_refusals: float) -> Any:
    """Plot all trials by refusal rate and KL divergence, the Pareto front joined."""
    import plotly.graph_objects as go

    front = sorted(pareto_front(trials), key=lambda t: t.scores.kl_divergence)
    figure = go.Figure()
    for name, shown, style in (
        ("Trials", trials, {"mode": "markers", "marker": {"color": "lightgray", "size": 8}}),
        ("Pareto front", front, {"mode": "lines+markers", "line": {"shape": "hv"}, "marker": {"size": 10}}),
    ):
        figure.add_scatter(
            x=[t.scores.kl_divergence for t in shown],
            y=[t.scores.refusals.rate for t in shown],
            text=[f"Trial {t.index}: {t.scores.refusals} refusals" for t in shown],
            hovertemplate="%{text}, KL %{x:.4f}<extra></extra>",
            name=name,
            **style,
        )
    figure.add_hline(base_refusals, line_dash="dot", annotation_text="base model")
    figure.add_vline(kl_target, line_dash="dot", annotation_text="KL target")
    figure.update_layout(
        title="Trials on the selection prompts",
        template="plotly_white",
        xaxis_title="first-token KL divergence (nats)",
        yaxis_title="refusal rate",
        yaxis_tickformat=".0%",
    )
    return figure


def write_page(figure: Any, file: Path) -> None:
    """Write a figure as one self-contained HTML file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.write_html(str(file), include_plotlyjs=True, full_html=True)
