"""Does the model fit? Residuals of what was measured, from the predictive draws of a calibration."""

from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    BLUE,
    MUTED,
    VERMILLION,
    Figure,
    axes,
    counted,
    escape,
    graph_objects,
    group,
    label,
    line,
    panel,
    panels,
    tint,
    variable,
)


class Observed(NamedTuple):
    """The measurements of one channel of all patients, padding included.

    Attributes:
        time: (patient, point).
        value: (patient, point), NaN for padding; the limit where `censor` is not 0.
        censor: (patient, point), -1 below, 0 seen, +1 above.
        unit: of the value.
    """

    time: np.ndarray
    value: np.ndarray
    censor: np.ndarray
    unit: str


class Residuals(NamedTuple):
    """One element for each measurement that has a residual.

    Attributes:
        time: when it was measured.
        predicted: posterior median of what was expected.
        observed: what was measured.
        z: normal quantile of its place among the predictive draws: standard normal if the model is right.
        patient: whose it is.
        notes: what was left out.
    """

    time: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray
    z: np.ndarray
    patient: list[str]
    notes: list[str]


def observed(result: Any, channel: str) -> Observed:
    """The measurements of `channel`."""
    data = group(result, "observed_data")
    value = variable(data, channel, "observed_data")
    time = np.asarray(variable(data, f"{channel}_time", "observed_data"), float)
    censor = (
        np.asarray(data[f"{channel}_censor"]) if f"{channel}_censor" in data else np.zeros(time.shape, int)
    )
    return Observed(time, np.asarray(value, float), censor, str(value.attrs.get("units", "")))


def quantile_residuals(result: Any, channel: str) -> Residuals:
    """Normal quantiles of the probability integral transform, from the predictive draws.

    The draws know the measurement (it was calibrated to), so they flatter: the spread is a little below 1.
    Limits of quantification and failed solves have no residual; the notes count them.
    """
    from scipy.special import ndtri

    data = observed(result, channel)
    predictive = group(result, "posterior_predictive")
    drawn = _flat(variable(predictive, channel, "posterior_predictive"))
    expected = _flat(predictive.get(f"{channel}_expected", predictive[channel]))
    exists = np.isfinite(data.value)
    failed = ~(np.isfinite(drawn).all(axis=0) & np.isfinite(expected).all(axis=0))
    kept = exists & (data.censor == 0) & ~failed
    drawn, value = drawn[:, kept], data.value[kept]
    rank = (drawn < value).sum(axis=0) + 0.5 * (drawn == value).sum(axis=0)
    place = (rank + 0.5) / (len(drawn) + 1.0)
    ids = patient_ids(group(result, "observed_data"))
    who = [ids[i] for i in np.nonzero(kept)[0]]
    notes = _left_out(int((exists & (data.censor != 0)).sum()), exists & failed, ids)
    return Residuals(data.time[kept], np.median(expected[:, kept], axis=0), value, ndtri(place), who, notes)


def residuals(result: Any, channel: str) -> Figure:
    """Observed against predicted; quantile residuals against time, prediction and a normal's quantiles."""
    from scipy.special import ndtri

    found = quantile_residuals(result, channel)
    unit = observed(result, channel).unit
    names = [
        "observed and predicted",
        "residuals over time",
        "residuals over predictions",
        "residuals and a normal",
    ]
    fig = panels(f"Residuals · {escape(channel)}", names, columns=2, height=220, notes=found.notes)
    order = np.argsort(found.z)
    normal = ndtri((np.arange(len(order)) + 0.5) / max(1, len(order)))
    time = label("time", str(result.attrs.get("time_unit", "")))
    predicted = label("predicted", unit)
    _cloud(fig, 0, found.predicted, found.observed, found.patient, (predicted, label("observed", unit)))
    _cloud(fig, 1, found.time, found.z, found.patient, (time, "residual"))
    _cloud(fig, 2, found.predicted, found.z, found.patient, (predicted, "residual"))
    _cloud(fig, 3, normal, found.z[order], [found.patient[i] for i in order], ("normal quantile", "residual"))
    if len(found.z):
        low = min(found.predicted.min(), found.observed.min())
        high = max(found.predicted.max(), found.observed.max())
        _guide(fig, 0, [low, high], [low, high])
        _guide(fig, 3, [normal.min(), normal.max()], [normal.min(), normal.max()])
        for index in (1, 2):
            _normal_range(fig, index, max(3.0, 1.1 * float(np.abs(found.z).max())))
            _trend(fig, index, (found.time, found.predicted)[index - 1], found.z)
    return fig


def _flat(data: Any) -> np.ndarray:
    values = np.asarray(data.transpose("chain", "draw", ...), float)
    return values.reshape(-1, *values.shape[2:])


def _left_out(censored: int, failed: np.ndarray, ids: list[str]) -> list[str]:
    notes = [f"{counted(censored, 'measurement')} at a limit of quantification left out."] * bool(censored)
    if failed.any():
        who = [ids[i] for i in np.flatnonzero(failed.any(axis=1))]
        listed = ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")
        notes.append(f"{counted(int(failed.sum()), 'measurement')} left out, draws failed: {listed}.")
    return notes


def _cloud(
    fig: Figure, index: int, x: np.ndarray, y: np.ndarray, patient: list[str], titles: tuple[str, str]
) -> None:
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


def _guide(fig: Figure, index: int, x: list[float], y: list[float], colour: str = MUTED) -> None:
    across, up = axes(index)
    style = {"mode": "lines", "line": line(colour, 1.5), "hoverinfo": "skip"}
    fig.add_trace(graph_objects().Scatter(x=x, y=y, xaxis=across, yaxis=up, **style))


def _normal_range(fig: Figure, index: int, reach: float) -> None:
    across, up = axes(index)
    panel(fig, index, y={"range": [-reach, reach]})
    where = {"xref": f"{across} domain", "yref": up, "x0": 0, "x1": 1, "layer": "below"}
    fig.add_shape(type="rect", y0=-1.96, y1=1.96, line={"width": 0}, fillcolor=tint(MUTED, 0.13), **where)
    fig.add_shape(type="line", y0=0, y1=0, line=line(MUTED, 1), **where)


def _trend(fig: Figure, index: int, x: np.ndarray, z: np.ndarray) -> None:
    """Mean residual in up to eight groups of equal size."""
    groups = np.array_split(np.argsort(x, kind="stable"), min(8, max(1, len(x) // 5)))
    _guide(fig, index, [float(x[g].mean()) for g in groups], [float(z[g].mean()) for g in groups], VERMILLION)
