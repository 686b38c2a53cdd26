"""Figures of a planned study: what the model says of it, and how well it would tell the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.core.signal import Doses
from dtwin_jax.plot.theme import (
    BLUE,
    INK,
    MUTED,
    VERMILLION,
    Figure,
    axes,
    band,
    graph_objects,
    label,
    line,
    panel,
    panels,
    tint,
)

# A fall of the log-likelihood beyond this is not drawn: it would flatten the part that matters.
_DEEP = 4.0


class Course(NamedTuple):
    """What is expected of one output.

    Attributes:
        name: of the output.
        unit: of its values.
        time: (n,) sorted.
        expected: (n,) without errors of measurement.
        drawn: (draw, n) with them.
        samples: (m,) times at which it is measured.
        at_samples: (m,) expected there.
    """

    name: str
    unit: str
    time: np.ndarray
    expected: np.ndarray
    drawn: np.ndarray
    samples: np.ndarray
    at_samples: np.ndarray


def courses(found: Sequence[Course], given: Mapping[str, tuple[Any, str]], time_unit: str) -> Figure:
    """The outputs of a study over time, each in its panel, and below them what is given.

    Args:
        found: the outputs.
        given: input -> its signal and the unit of its amounts or values; numbers are left out.
        time_unit: of all times.
    """
    signals = {name: pair for name, pair in given.items() if hasattr(pair[0], "time")}
    titles = [label(course.name, course.unit) for course in found]
    titles += [f"{label(name, unit)}, given" for name, (_, unit) in signals.items()]
    fig = panels("", titles, columns=2 if len(titles) > 1 else 1, height=190)
    go = graph_objects()
    for i, course in enumerate(found):
        _add_course(fig, i, course)
    span = [min(float(course.time[0]) for course in found), max(float(course.time[-1]) for course in found)]
    for i, (signal, _) in enumerate(signals.values(), start=len(found)):
        across, up = axes(i)
        x, y = _outline(signal, span)
        fig.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line(VERMILLION, 1.8), xaxis=across, yaxis=up))
    pad = 0.02 * (span[1] - span[0])
    for i in range(len(titles)):
        x = {
            "title": {"text": label("time", time_unit)},
            "range": [span[0] - pad, span[1] + pad],
            "nticks": 6,
        }
        panel(fig, i, x=x, y={"nticks": 5, "rangemode": "tozero" if i >= len(found) else "normal"})
    return fig


def _add_course(fig: Figure, index: int, course: Course) -> None:
    go, (across, up) = graph_objects(), axes(index)
    on = {"xaxis": across, "yaxis": up}
    limits = band(course.drawn, 0.9)
    known = np.isfinite(limits.lower)
    around = np.concatenate([course.time[known], course.time[known][::-1]])
    edge = np.concatenate([limits.lower[known], limits.upper[known][::-1]])
    shade = {"fill": "toself", "fillcolor": tint(BLUE, 0.16), "mode": "none", "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=around, y=edge, **shade, **on))
    fig.add_trace(go.Scatter(x=course.time, y=course.expected, mode="lines", line=line(BLUE, 2), **on))
    # Dense samples are a line of their own; dots would hide the course.
    size = 6 if len(course.samples) <= 60 else 3
    marker = {"size": size, "color": INK}
    dots = {"mode": "markers", "marker": marker, "hovertemplate": "%{y:.4g} at %{x:.4g}<extra></extra>"}
    fig.add_trace(go.Scatter(x=course.samples, y=course.at_samples, **dots, **on))


def _outline(signal: Any, span: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A stem for each dose (a bar for an infusion), or the course of a covariate."""
    time = np.asarray(signal.time, float)
    if isinstance(signal, Doses):
        stop, none = time + np.asarray(signal.duration, float), np.full(len(time), np.nan)
        x = np.column_stack([time, time, stop, stop, none]).ravel()
        amount = np.asarray(signal.amount, float)
        return x, np.column_stack([0 * amount, amount, amount, 0 * amount, none]).ravel()
    edges = np.asarray(signal.edges(), float)
    grid = np.concatenate([np.linspace(span[0], span[1], 200), time, edges, np.nextafter(edges, -np.inf)])
    grid = np.unique(grid[(grid >= span[0]) & (grid <= span[1])])
    return grid, np.asarray([float(signal(t)) for t in grid])


def profile_panels(found: Sequence[Any], units: Mapping[str, str]) -> Figure:
    """Profiles of the likelihood, a panel a parameter, with the limits that they give.

    Args:
        found: of `profile`.
        units: parameter -> its unit.
    """
    fig = panels("", [label(one.name, units.get(one.name)) for one in found], columns=2, height=170)
    go = graph_objects()
    for i, one in enumerate(found):
        across, up = axes(i)
        on = {"xaxis": across, "yaxis": up}
        threshold = _threshold(one.level)
        shown = np.isfinite(one.fall)
        x, y = np.asarray(one.value)[shown], np.minimum(np.asarray(one.fall)[shown], _DEEP)
        fig.add_trace(
            go.Scatter(x=x, y=-y, mode="lines+markers", line=line(BLUE, 2), marker={"size": 4}, **on)
        )
        level = {"mode": "lines", "line": line(MUTED, 1, "dot"), "hoverinfo": "skip"}
        fig.add_trace(go.Scatter(x=[x.min(), x.max()], y=[-threshold] * 2, **level, **on))
        for end in one.interval:
            if np.isfinite(end):
                fig.add_trace(go.Scatter(x=[end] * 2, y=[-_DEEP, -threshold], **level, **on))
        wide = x.min() > 0 and x.max() > 20 * x.min()
        panel(
            fig,
            i,
            x={"type": "log" if wide else "linear", "nticks": 5},
            y={"range": [-_DEEP, 0.15], "nticks": 5, "title": {"text": "log-likelihood"}},
        )
    return fig


def _threshold(level: float) -> float:
    """Half the quantile of chi-squared with one degree of freedom."""
    from statistics import NormalDist

    return 0.5 * NormalDist().inv_cdf(0.5 + level / 2) ** 2
