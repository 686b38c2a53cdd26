"""Does the model fit? Residuals of what was measured, from the predictive draws of a calibration."""

from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.plot.cloud import against_normal, agreement, standard
from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    Figure,
    counted,
    escape,
    group,
    label,
    panels,
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
    notes = left_out(int((exists & (data.censor != 0)).sum()), exists & failed, ids)
    return Residuals(data.time[kept], np.median(expected[:, kept], axis=0), value, ndtri(place), who, notes)


def residuals(result: Any, channel: str) -> Figure:
    """Observed against predicted; quantile residuals against time, prediction and a normal's quantiles."""
    found = quantile_residuals(result, channel)
    unit = observed(result, channel).unit
    names = [
        "observed and predicted",
        "residuals over time",
        "residuals over predictions",
        "residuals and a normal",
    ]
    fig = panels(f"Residuals · {escape(channel)}", names, columns=2, height=220, notes=found.notes)
    time = label("time", str(result.attrs.get("time_unit", "")))
    predicted = label("predicted", unit)
    agreement(fig, 0, found.predicted, found.observed, found.patient, (predicted, label("observed", unit)))
    standard(fig, 1, found.time, found.z, found.patient, (time, "residual"))
    standard(fig, 2, found.predicted, found.z, found.patient, (predicted, "residual"))
    against_normal(fig, 3, found.z, found.patient, "residual")
    return fig


def _flat(data: Any) -> np.ndarray:
    values = np.asarray(data.transpose("chain", "draw", ...), float)
    return values.reshape(-1, *values.shape[2:])


def left_out(censored: int, failed: np.ndarray, ids: list[str]) -> list[str]:
    """What is to be said of so many measurements at a limit, and of those (patient, point) that failed."""
    notes = [f"{counted(censored, 'measurement')} at a limit of quantification left out."] * bool(censored)
    if failed.any():
        who = [ids[i] for i in np.flatnonzero(failed.any(axis=1))]
        listed = ", ".join(who[:5]) + (f" and {len(who) - 5} more" if len(who) > 5 else "")
        notes.append(f"{counted(int(failed.sum()), 'measurement')} left out, draws failed: {listed}.")
    return notes
