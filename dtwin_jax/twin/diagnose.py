"""How well an estimated population fits: predictions, residuals, random effects, simulated data sets.

Everything is predicted by the model's own `predict`, of all patients and all simulated data sets at once.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import quantities
from dtwin_jax.core.record import SEEN, Cohort, Record, Series
from dtwin_jax.inference.density import Override, standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimated import Estimate
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.posteriors import measured
from dtwin_jax.inference.predictive import evaluate
from dtwin_jax.inference.residuals import (
    Moments,
    conditional_residuals,
    individual_residuals,
    prediction_errors,
)
from dtwin_jax.inference.result import constant_data, observed_data
from dtwin_jax.twin.fitted import Fitted, fit_of
from dtwin_jax.twin.forecast import even_until_last

# Rows of what is predicted before the simulated ones.
_POPULATION, _INDIVIDUAL, _SIMULATED = 0, 1, 2


def diagnose(
    population: Population,
    cohort: Cohort,
    found: Estimate,
    *,
    key: Any,
    samples: int = 1000,
    points: int = 120,
    priors: Mapping[str, Override] | None = None,
) -> Any:
    """What the figures of a fit are drawn from.

    Residuals are of values that were seen. Those beyond a limit have none, though the random effects know
    them; a channel whose errors are not normal (log-normal ones are, on the scale of logarithms) has no IWRES
    and CWRES, one of counts or categories no NPDE. A patient who was not fitted, or whom the model cannot
    predict, is named in the attribute `failed` and has NaN for whatever rests on the random effects; one of
    whom a simulated data set failed is named in `unsimulated`, and has no NPDE.

    In a mixture predictions and residuals are of the most probable class of each patient; the classes of
    simulated patients are drawn.

    Args:
        population: as estimated.
        cohort: the patients it was estimated from.
        found: of `estimate`.
        key: random key. A patient's simulated values depend on the key and the id, not on who else is there.
        samples: simulated data sets, for NPDE and predictive checks.
        points: times of each patient's curves, evenly up to the last measurement.
        priors: as given to `estimate`.

    Returns:
        An `xarray.DataTree` with groups `observed_data` and `constant_data` as of `calibrate`; `residuals`:
        `<channel>_population` and `<channel>_individual`, predictions without and with the patient's random
        effects, `<channel>_iwres` (its attribute `shrinkage` is 1 - sd), `_cwres`, `_npde` and `_npd` (NPDE
        without decorrelation), each (patient, <channel>_point), NaN where nothing was measured; `effects`:
        `eta` (patient, effect) and `shrinkage`, and of a mixture `class` and `probability`; `estimates`;
        `predictions`: simulated measurements of new patients with the same designs, as of `forecast_new`;
        `courses`: the two predictions at even times.

    Raises:
        ValueError: an estimate of another population, other data or other priors; too few samples.

    Source: `inference.residuals`.
    """
    fitted = fit_of(population, cohort, found, priors or {})
    expected, drawn = _predicted(fitted, cohort.record, key, samples)
    moments = _moments(fitted)
    failed = _failed(fitted, moments, expected)
    tree = _tree(fitted, failed)
    tree.attrs["unsimulated"] = _named(fitted, _unsimulated(fitted, drawn))
    tree["predictions"] = _as_tree(_predictions(fitted, drawn))
    tree["residuals"] = _as_tree(_residuals(fitted, moments, expected, drawn, failed))
    tree["courses"] = _as_tree(_courses(fitted, failed, points))
    return tree


def _predicted(fitted: Fitted, record: Record, key: Any, samples: int) -> tuple[dict, dict]:
    """Expectations of the population and the individuals, and draws of new patients.

    Returns:
        channel -> (2, patient, n); channel -> (sample, patient, n).
    """
    key_effects, key_errors = jax.random.split(key)
    own = np.where(fitted.lost[:, None], np.nan, fitted.found.eta)
    known = fitted.theta(record, np.stack([np.zeros_like(own), own]))
    classes = fitted.drawn_classes(jax.random.fold_in(key, 2), samples)
    new = fitted.theta(record, _new_effects(fitted, key_effects, samples), classes)
    planned, theta = Cohort(fitted.cohort.ids, record), np.concatenate([known, new])
    _, expected, drawn = evaluate(fitted.density, fitted.base, planned, theta, key_errors)
    return (
        {name: value[:_SIMULATED] for name, value in expected.items()},
        {name: value[_SIMULATED:] for name, value in drawn.items()},
    )


def _new_effects(fitted: Fitted, key: Any, samples: int) -> np.ndarray:
    """Random effects of new patients (sample, patient, effect)."""
    root, count = fitted.effects.root(fitted.psi), fitted.found.eta.shape[1]
    each = jax.vmap(lambda n: jax.random.normal(jax.random.fold_in(key, n), (samples, count)))
    return np.asarray(jnp.swapaxes(each(fitted.cohort.numbers), 0, 1) @ root.T)


def _moments(fitted: Fitted) -> dict[str, Moments]:
    """Of the channels with normal errors, at the patients' random effects."""
    record = jax.tree.map(jnp.asarray, fitted.of_class(fitted.cohort.record))
    value, slope = _sloped(fitted.effects, fitted.base, record, fitted.psi, jnp.asarray(fitted.found.eta))
    told = {}
    for name, series in fitted.cohort.record.observations.items():
        if "mean" in value[name]:
            found = {part: np.asarray(value[name][part]) for part in ("value", "mean", "log_sd")}
            along = np.moveaxis(np.asarray(slope[name]["mean"]), 0, 2)
            used = _seen(series) & ~fitted.lost[:, None]
            told[name] = Moments(found["value"], found["mean"], np.exp(found["log_sd"]), along, used)
    return told


@functools.partial(jax.jit, static_argnames=("effects",))
@standard_promotion
def _sloped(effects: Effects, base: Any, record: Record, psi: Any, eta: Any) -> tuple[dict, dict]:
    """What is expected of every measurement, and how it moves with each effect."""

    def rows(eta: Any) -> dict:
        return measured(effects.target, base, record, effects.individual(psi, record, eta))

    along = lambda way: jax.jvp(rows, (eta,), (jnp.broadcast_to(way, eta.shape),))  # noqa: E731
    return jax.vmap(along, out_axes=(None, 0))(jnp.eye(eta.shape[1]))


def _seen(series: Series) -> np.ndarray:
    return np.asarray(series.mask) & (np.asarray(series.censor) == SEEN)


def _failed(fitted: Fitted, moments: dict[str, Moments], expected: dict[str, np.ndarray]) -> np.ndarray:
    """(patient,) who was not fitted, or cannot be predicted where something was measured."""
    lost = fitted.lost
    for name, series in fitted.cohort.record.observations.items():
        whole = np.isfinite(expected[name]).all(axis=0) | ~np.asarray(series.mask)
        lost = lost | ~whole.all(axis=1)
    return functools.reduce(lambda lost, one: lost | ~one.defined, moments.values(), lost)


def _unsimulated(fitted: Fitted, drawn: dict[str, np.ndarray]) -> np.ndarray:
    """(patient,) of whom a simulated measurement is no number."""
    whole = [
        np.isfinite(drawn[name]).all(axis=0) | ~np.asarray(series.mask)
        for name, series in fitted.cohort.record.observations.items()
    ]
    return np.asarray(np.any(~np.concatenate(whole, axis=1), axis=1))


def _named(fitted: Fitted, chosen: np.ndarray) -> str:
    """The ids of some patients, as JSON."""
    return json.dumps([who for who, one in zip(fitted.cohort.ids, chosen, strict=True) if one])


def _residuals(
    fitted: Fitted, moments: dict[str, Moments], expected: dict, drawn: dict, failed: np.ndarray
) -> Any:
    """The dataset of predictions and residuals."""
    found: dict[str, dict[str, np.ndarray]] = {}
    series = fitted.cohort.record.observations
    for name, one in series.items():
        there = np.asarray(one.mask) & ~failed[:, None]
        population = np.where(np.asarray(one.mask), expected[name][_POPULATION], np.nan)
        population = np.where(np.isfinite(population), population, np.nan)
        individual = np.where(there, expected[name][_INDIVIDUAL], np.nan)
        found[name] = {"population": population, "individual": individual}
    kept = {n: replace(m, used=m.used & ~failed[:, None]) for n, m in moments.items()}
    if kept:
        joined = _joined(list(kept.values()))
        conditional = conditional_residuals(joined, fitted.found.eta, fitted.omega)
        parts = np.split(conditional, np.cumsum([m.used.shape[1] for m in kept.values()])[:-1], axis=1)
        for (name, one), part in zip(kept.items(), parts, strict=True):
            found[name] |= {"iwres": individual_residuals(one), "cwres": part}
    # Counts and categories have no place of their own among draws.
    smooth = [name for name in series if np.issubdtype(drawn[name].dtype, np.floating)]
    if smooth:
        value = np.concatenate([np.asarray(series[name].value, float) for name in smooth], axis=1)
        seen = np.concatenate([_seen(series[name]) for name in smooth], axis=1)
        errors = prediction_errors(value, np.concatenate([drawn[name] for name in smooth], axis=2), seen)
        cuts = np.cumsum([series[name].value.shape[1] for name in smooth])[:-1]
        for kind, error in zip(("npde", "npd"), errors, strict=True):
            for name, part in zip(smooth, np.split(error, cuts, axis=1), strict=True):
                found[name][kind] = part
    return _dataset(fitted, found)


def _joined(parts: list[Moments]) -> Moments:
    """Of several channels, side by side."""
    across = {name: np.concatenate([getattr(m, name) for m in parts], axis=1) for name in vars(parts[0])}
    return Moments(**across)


def _dataset(fitted: Fitted, found: dict[str, dict[str, np.ndarray]]) -> Any:
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, kinds in found.items():
        for kind, array in kinds.items():
            note: dict[str, Any] = {"units": "1"}
            if kind in ("population", "individual"):
                note = _unit(fitted, name)
            if kind == "iwres" and np.isfinite(array).any():
                note["shrinkage"] = 1.0 - float(np.nanstd(array))
            variables[f"{name}_{kind}"] = (("patient", f"{name}_point"), array, note)
    return xr.Dataset(variables, {"patient": list(fitted.cohort.ids)})


def _predictions(fitted: Fitted, drawn: dict[str, np.ndarray]) -> Any:
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, array in drawn.items():
        dims = ("sample", "patient", f"{name}_point")
        variables[name] = (dims, array, _unit(fitted, name))
        time = np.asarray(fitted.cohort.record.observations[name].time)
        variables[f"{name}_time"] = (dims[1:], time)
    count = len(next(iter(drawn.values())))
    return xr.Dataset(variables, {"patient": list(fitted.cohort.ids), "sample": np.arange(count)})


def _courses(fitted: Fitted, failed: np.ndarray, points: int) -> Any:
    """Both predictions at even times, NaN for who failed."""
    import xarray as xr

    record = fitted.cohort.record
    time = even_until_last(record, points)
    planned = replace(record, observations=dict.fromkeys(record.observations, Series(time)))
    expected, _ = _predicted(fitted, planned, jax.random.key(0), 0)
    variables: dict[str, Any] = {}
    for name, array in expected.items():
        dims, unit = ("patient", f"{name}_point"), _unit(fitted, name)
        for kind, row in (("population", _POPULATION), ("individual", _INDIVIDUAL)):
            variables[f"{name}_{kind}"] = (dims, np.where(failed[:, None], np.nan, array[row]), unit)
        variables[f"{name}_time"] = (dims, time)
    return xr.Dataset(variables, {"patient": list(fitted.cohort.ids)})


def _tree(fitted: Fitted, failed: np.ndarray) -> Any:
    """The data, the random effects and the estimates."""
    import xarray as xr

    found, ids = fitted.found, list(fitted.cohort.ids)
    outputs = fitted.predictor.schema().outputs if hasattr(fitted.predictor, "schema") else {}
    eta = np.where(failed[:, None], np.nan, found.eta)
    names = list(found.effects)
    shrinkage = np.asarray([found.shrinkage[name] for name in names])
    effects = xr.Dataset(
        {"eta": (("patient", "effect"), eta, {"units": "1"}), "shrinkage": ("effect", shrinkage)},
        {"patient": ids, "effect": names},
    )
    if found.classes is not None:
        effects["class"] = ("patient", found.classes.likeliest)
        of_each = list(range(1, found.classes.probability.shape[1] + 1))
        effects["probability"] = xr.DataArray(
            found.classes.probability, {"patient": ids, "number": of_each}, ("patient", "number")
        )
    effects["omega"] = (("effect", "effect_bis"), fitted.omega)
    told, errors = list(found.estimate), found.errors()
    declared = quantities(fitted.predictor.params())
    numbers = {
        "value": list(found.estimate.values()),
        "standard_error": [errors[name] for name in told],
        "unit": [getattr(declared.get(name.removesuffix("_pop")), "unit", "1") for name in told],
    }
    estimates = xr.Dataset({name: ("number", each) for name, each in numbers.items()}, {"number": told})
    groups = {
        "observed_data": observed_data(fitted.cohort.record, ids, outputs),
        "constant_data": constant_data(fitted.cohort.record, ids),
        "effects": effects,
        "estimates": estimates,
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {
        "kind": "estimate",
        "name": fitted.predictor.name,
        "time_unit": getattr(fitted.predictor, "time", ""),
        "by": found.by,
        "nodes": found.nodes,
        "draws": found.draws,
        "monte_carlo_error": found.monte_carlo_error,
        "objective": found.objective,
        "minus_two_log_likelihood": found.minus_two_log_likelihood,
        "converged": int(found.converged),
        "message": found.message,
        "warnings": json.dumps(list(found.warnings), ensure_ascii=False),
        "failed": _named(fitted, failed),
    }
    return tree


def _as_tree(data: Any) -> Any:
    import xarray as xr

    return xr.DataTree(data)


def _unit(fitted: Fitted, channel: str) -> dict[str, str]:
    outputs = fitted.predictor.schema().outputs if hasattr(fitted.predictor, "schema") else {}
    return {"units": outputs[channel].unit} if channel in outputs else {}
