"""What a calibrated twin expects: under a plan, over the observed period, and for patients not yet seen."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.record import Cohort, Record, Series
from dtwin_jax.inference.population import PopulationDensity
from dtwin_jax.inference.predictive import evaluate, new_patients, theta_of
from dtwin_jax.inference.result import ResultError, cohort_of, constant_data, density_from, read_tree


def forecast(f: Any, tree: Any, planned: Record, *, key: Any, samples: int = 1000) -> Any:
    """Predictions for the patients of a calibration under a planned record.

    Args:
        f: the predictor or `Population` of the calibration.
        tree: result of `calibrate`.
        planned: stacked record of the same patients, in the same order: inputs, and times to predict at.
            `scenario(cohort.record, ...)` makes one; for one patient `scenario(record, ...)`.
        key: random key.
        samples: posterior draws used, at most.

    Returns:
        `xarray.DataTree` with group `predictions`: `<channel>` with measurement error and
        `<channel>_expected` without, (sample, patient, <channel>_point); `<channel>_time`; and group
        `constant_data` with what was planned to be given.
    """
    density, base = density_from(f, tree)
    ids, planned = for_patients(tree, planned)
    values, _ = sampled(tree, samples)
    theta = theta_of(density, values, len(ids))
    return _predictions(tree, density, base, ids, planned, theta, key)


def forecast_new(f: Any, tree: Any, planned: Record, *, key: Any, samples: int = 500) -> Any:
    """Predictions for new patients of a calibrated population, with the designs of `planned`.

    Returns as `forecast`; patients of one draw share the population, each with random effects of its own.

    Raises:
        ValueError: `f` is not a population.
    """
    density, base = density_from(f, tree)
    if not isinstance(density, PopulationDensity):
        raise ValueError(f"{f.name} was calibrated patient by patient: new patients need a Population")
    ids, planned = for_patients(tree, planned)
    values, count = sampled(tree, samples)
    own = {*density.individual, *density.probabilities}
    shared = density.hidden({name: jnp.asarray(value) for name, value in values.items() if name not in own})
    key, key_effects = jax.random.split(key)
    keys = jax.random.split(key_effects, count)
    record = jax.tree.map(jnp.asarray, planned)
    drawn = {name: np.asarray(v) for name, v in new_patients(density, base, record, shared, keys).items()}
    return _predictions(tree, density, base, ids, planned, theta_of(density, drawn, len(ids)), key)


def load_forecast(path: Any) -> Any:
    """A forecast that `save` wrote.

    Raises:
        ResultError: not a whole forecast.
    """
    tree = read_tree(path, "a forecast of dtwin forecast")
    if "predictions" not in tree.children or "name" not in tree.attrs:
        raise ResultError(f"{path}: found no predictions, expected a forecast of dtwin forecast")
    return tree


def observed_period(f: Any, tree: Any, *, points: int = 120) -> Record:
    """The record of a calibration at `points` even times up to each patient's last measurement."""
    cohort = cohort_of(f, tree)
    return _at(cohort, Series(even_until_last(cohort.record, points)))


def even_until_last(record: Record, points: int) -> np.ndarray:
    """(patient, points) even times from each patient's start to the last measurement, past ones included."""
    start = np.asarray(record.t0)
    series = [*record.observations.values(), *record.past.values()]
    last = np.max([np.where(s.mask, s.time, start[:, None]).max(axis=1) for s in series], axis=0)
    return np.linspace(start, last, points, axis=-1)


def observed_times(f: Any, tree: Any) -> Record:
    """The record of a calibration, without its measurements: what to predict for a predictive check."""
    return cohort_of(f, tree).record


def _at(cohort: Cohort, series: Series) -> Record:
    record = cohort.record
    planned = dict.fromkeys(record.observations, series)
    return Record(record.inputs, planned, record.known, record.t0, record.observations)


def for_patients(tree: Any, planned: Record) -> tuple[list[str], Record]:
    """The ids of a calibration, and a plan for those patients; a plan for one may lack the patient axis."""
    ids = [str(patient) for patient in tree["observed_data"]["patient"].values]
    if np.ndim(planned.t0) == 0:
        planned = jax.tree.map(lambda leaf: np.asarray(leaf)[None], planned)
    found = len(planned.t0)
    if found != len(ids):
        raise ValueError(
            f"the plan is for {found} patient(s), the calibration had {len(ids)}: "
            "plan with scenario(cohort.record, ...)"
        )
    return ids, planned


def sampled(tree: Any, samples: int) -> tuple[dict[str, np.ndarray], int]:
    """Posterior draws with one leading axis, evenly thinned."""
    flat = {
        str(name): variable.values.reshape(-1, *variable.shape[2:])
        for name, variable in tree["posterior"].data_vars.items()
    }
    total = len(next(iter(flat.values())))
    chosen = np.unique(np.linspace(0, total - 1, min(samples, total)).astype(int))
    return {name: array[chosen] for name, array in flat.items()}, len(chosen)


def _predictions(
    tree: Any, density: Any, base: Any, ids: list[str], planned: Record, theta: np.ndarray, key: Any
) -> Any:
    import xarray as xr

    cohort = Cohort(tuple(ids), planned)
    check_cohort(density.predictor, cohort)
    _, expected, drawn = evaluate(density, base, cohort, theta, key)
    outputs = density.predictor.schema().outputs if hasattr(density.predictor, "schema") else {}
    variables: dict[str, Any] = {}
    for name in expected:
        dims = ("sample", "patient", f"{name}_point")
        note = {"units": outputs[name].unit, "doc": outputs[name].doc} if name in outputs else {}
        variables[name] = (dims, drawn[name], note)
        variables[f"{name}_expected"] = (dims, expected[name], note)
        variables[f"{name}_time"] = (dims[1:], np.asarray(planned.observations[name].time))
    predictions = xr.Dataset(variables, {"patient": ids, "sample": np.arange(theta.shape[0])})
    made = xr.DataTree.from_dict({"predictions": predictions, "constant_data": constant_data(planned, ids)})
    failed = ~np.all([np.all(np.isfinite(value), axis=(0, 2)) for value in expected.values()], axis=0)
    made.attrs = {
        "name": tree.attrs["name"],
        "time_unit": tree.attrs["time_unit"],
        "failed": json.dumps([patient for patient, lost in zip(ids, failed, strict=True) if lost]),
    }
    return made
