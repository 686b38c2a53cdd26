"""How good forecasts are: the last measurements left out, predicted, and scored."""

from dataclasses import replace
from typing import Any

import equinox as eqx
import numpy as np

from dtwin_jax.core.record import SEEN, Cohort, Record
from dtwin_jax.inference.predictive import evaluate, theta_of
from dtwin_jax.inference.result import density_from
from dtwin_jax.twin.forecast import for_patients, sampled


def leave_last_out(cohort: Cohort, last: int) -> tuple[Cohort, Record]:
    """Split a cohort in time.

    Args:
        cohort: the patients.
        last: measurements of each channel and patient to leave out. A patient with no more than that in a
            channel keeps all of them.

    Returns:
        The cohort without the last measurements, and a record that has only those.
    """
    if last < 1:
        raise ValueError(f"leave_last_out: last must be at least 1, found {last}")
    kept, held = {}, {}
    for name, series in cohort.record.observations.items():
        mask = np.asarray(series.mask)
        from_end = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1]
        late = mask & (from_end <= last) & (mask.sum(axis=1, keepdims=True) > last)
        kept[name] = _masked(series, mask & ~late)
        held[name] = _masked(series, late)
    record = cohort.record
    return (
        replace(cohort, record=Record(record.inputs, kept, record.known, record.t0)),
        Record(record.inputs, held, record.known, record.t0, kept),
    )


def _masked(series: Any, mask: np.ndarray) -> Any:
    return eqx.tree_at(lambda one: one.mask, series, mask)


def score(f: Any, tree: Any, held_out: Record, *, key: Any, samples: int = 1000) -> Any:
    """Scores of a calibration's predictions of measurements that it has not seen.

    Args:
        f: the predictor or `Population` of the calibration.
        tree: result of `calibrate`, without those measurements.
        held_out: stacked record of the same patients.
        key: random key.
        samples: posterior draws used, at most.

    Returns:
        `xarray.Dataset` by `channel`: `n`; `crps`, mean continuous ranked probability score in the
        channel's unit, lower is better; `log_score`, mean log predictive density, higher is better;
        `coverage_50` and `coverage_90`, the share inside the central bands; `mae` of the predictive
        median; `failed`, the share of draws whose solve failed, which are left out. Values below or above
        a limit count in `log_score` only.

    Source: Gneiting & Raftery 2007, doi 10.1198/016214506000001437.
    """
    import xarray as xr

    density, base = density_from(f, tree)
    ids, held_out = for_patients(tree, held_out)
    values, _ = sampled(tree, samples)
    theta = theta_of(density, values, len(ids))
    likelihood, _, drawn = evaluate(density, base, Cohort(tuple(ids), held_out), theta, key)
    rows = {}
    for name, series in held_out.observations.items():
        mask = np.asarray(series.mask)
        seen = mask & (np.asarray(series.censor) == SEEN)
        solved = np.all(np.isfinite(drawn[name][:, mask]), axis=1)
        told = _scores(
            np.asarray(series.value)[seen], drawn[name][solved][:, seen], likelihood[name][solved][:, mask]
        )
        rows[name] = [*told, 1.0 - float(np.mean(solved))]
    columns = ("n", "crps", "log_score", "coverage_50", "coverage_90", "mae", "failed")
    table = np.asarray([rows[name] for name in rows])
    return xr.Dataset(
        {column: ("channel", table[:, i]) for i, column in enumerate(columns)}, {"channel": list(rows)}
    )


def _scores(value: np.ndarray, drawn: np.ndarray, likelihood: np.ndarray) -> list[float]:
    if likelihood.size == 0 or len(drawn) < 2:
        return [float(likelihood.shape[1])] + [np.nan] * 5
    peak = likelihood.max(axis=0)
    log_score = np.mean(peak + np.log(np.mean(np.exp(likelihood - peak), axis=0)))
    inside = [
        float(np.mean((low <= value) & (value <= high))) if value.size else np.nan
        for low, high in (
            np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=0) for level in (0.5, 0.9)
        )
    ]
    mae = float(np.mean(np.abs(value - np.median(drawn, axis=0)))) if value.size else np.nan
    return [float(likelihood.shape[1]), crps(value, drawn), float(log_score), *inside, mae]


def crps(value: np.ndarray, drawn: np.ndarray) -> float:
    """Mean continuous ranked probability score of draws (sample, n) against values (n,).

    `E|X - y| - E|X - X'| / 2`, the second term from order statistics, without bias.
    """
    if value.size == 0:
        return np.nan
    ordered = np.sort(drawn, axis=0)
    m = len(ordered)
    weight = (2 * np.arange(1, m + 1) - m - 1)[:, None]
    spread = np.sum(weight * ordered, axis=0) / (m * (m - 1))
    return float(np.mean(np.mean(np.abs(ordered - value), axis=0) - spread))
