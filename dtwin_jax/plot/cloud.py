"""Clouds of points, and the lines that they are judged by."""

import numpy as np

from dtwin_jax.plot.theme import (
    BLUE,
    MUTED,
    VERMILLION,
    Figure,
    axes,
    escape,
    graph_objects,
    line,
    panel,
    tint,
)


def cloud(
    fig: Figure, index: int, x: np.ndarray, y: np.ndarray, patient: list[str], titles: tuple[str, str]
) -> None:
    """One point a measurement, told by the patient's name."""
    across, up = axes(index)
    fig.add_trace(
        graph_objects().Scatter(
            x=x,
            y=y,
            mode="markers",
            marker={"size": 5, "color": BLUE, "opacity": 0.6},
            text=[escape(who) for who in patient],
            hovertemplate="%{text}: %{x:.3g}, %{y:.3g}<extra></extra>",
            xaxis=across,
            yaxis=up,
        )
    )
    panel(
        fig,
        index,
        x={"title": {"text": titles[0]}, "nticks": 6},
        y={"title": {"text": titles[1]}, "nticks": 6},
    )


def agreement(
    fig: Figure, index: int, x: np.ndarray, y: np.ndarray, patient: list[str], titles: tuple[str, str]
) -> None:
    """A cloud about the line on which both are equal."""
    cloud(fig, index, x, y, patient, titles)
    if len(x):
        ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
        guide(fig, index, ends, ends)


def standard(
    fig: Figure, index: int, x: np.ndarray, z: np.ndarray, patient: list[str], titles: tuple[str, str]
) -> None:
    """A cloud of what ought to be standard normal at every `x`, with its trend."""
    cloud(fig, index, x, z, patient, titles)
    if len(z):
        normal_range(fig, index, max(3.0, 1.1 * float(np.abs(z).max())))
        trend(fig, index, x, z)


def against_normal(fig: Figure, index: int, z: np.ndarray, patient: list[str], title: str) -> None:
    """Values beside the quantiles of as many standard normal ones."""
    from scipy.special import ndtri

    order = np.argsort(z)
    normal = ndtri((np.arange(len(order)) + 0.5) / max(1, len(order)))
    cloud(fig, index, normal, z[order], [patient[i] for i in order], ("normal quantile", title))
    if len(z):
        ends = [float(normal.min()), float(normal.max())]
        guide(fig, index, ends, ends)


def guide(fig: Figure, index: int, x: list[float], y: list[float], colour: str = MUTED) -> None:
    """A line through points (x, y)."""
    across, up = axes(index)
    style = {"mode": "lines", "line": line(colour, 1.5), "hoverinfo": "skip"}
    fig.add_trace(graph_objects().Scatter(x=x, y=y, xaxis=across, yaxis=up, **style))


def normal_range(fig: Figure, index: int, reach: float) -> None:
    """Grey where 95 % of standard normal values lie, and the axis out to `reach`."""
    across, up = axes(index)
    panel(fig, index, y={"range": [-reach, reach]})
    where = {"xref": f"{across} domain", "yref": up, "x0": 0, "x1": 1, "layer": "below"}
    fig.add_shape(type="rect", y0=-1.96, y1=1.96, line={"width": 0}, fillcolor=tint(MUTED, 0.13), **where)
    fig.add_shape(type="line", y0=0, y1=0, line=line(MUTED, 1), **where)


def trend(fig: Figure, index: int, x: np.ndarray, z: np.ndarray) -> None:
    """Mean residual in up to eight groups of equal size."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(8, max(1, len(x) // 5)))
    guide(fig, index, [float(x[g].mean()) for g in groups], [float(z[g].mean()) for g in groups], VERMILLION)
