"""Simulation-based calibration of any model: truths from the prior, data from them, a posterior of each.

The simulated patients are a cohort of their own, so their posteriors are found side by side, as `calibrate`
finds those of any cohort.

Source: as of `sbc`.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.record import Cohort, Record, Series, stack
from dtwin_jax.inference import sbc
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import Override
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import evaluate, prior_draws, theta_of

DRAWS = 127
LIKELIHOOD = "log_likelihood"


def simulation_based_calibration(
    f: Any,
    record: Record,
    *,
    key: Any,
    replicates: int = 256,
    priors: Mapping[str, Override] | None = None,
    method: Nuts | Laplace = Laplace(draws=DRAWS),  # noqa: B008 (frozen)
    thin: int = 1,
    bins: int = sbc.BINS,
) -> Any:
    """Whether `calibrate` finds the posterior of this model under this design.

    Ranks are looked at of every estimated parameter, and of the log-likelihood of the data, which shows a
    posterior that leaves data out.

    Args:
        f: a predictor.
        record: the design of one patient: inputs, times and facts. Its measurements are not looked at; where
            it has any, only they are simulated.
        key: random key.
        replicates: simulated patients.
        priors: as of `calibrate`.
        method: as of `calibrate`, with one chain, and with `thin * DRAWS` draws or another number of which
            one more is a multiple of `bins`.
        thin: of the draws of a chain each `thin`-th is looked at; more until they are nearly independent.
        bins: of the test that ranks are uniform.

    Returns:
        `xarray.Dataset` by `quantity`: `rank` (quantity, replicate), NaN for one that failed; `p_value`;
        `coverage` (quantity, level), the share of replicates whose central interval holds the truth;
        `counts` (quantity, bin) of the ranks; `autocorrelation` of neighbouring draws. Attributes: `draws`;
        `complaints`, what is wrong in sentences, as JSON: empty if the check is passed; `failed`, replicates
        that could not be simulated, or whose draws cannot be trusted, which are left out, as JSON.

    Raises:
        ValueError: a population, more than one chain, numbers of draws that do not fit, or too few
            replicates that did not fail.
    """
    if isinstance(f, Population):
        raise ValueError(
            "simulation_based_calibration is of one patient's model; give the population's predictor"
        )
    if isinstance(method, Nuts) and method.chains != 1:
        raise ValueError(f"method: found {method.chains} chains, expected one for each replicate")
    if replicates < bins:
        raise ValueError(f"replicates: found {replicates}, expected {bins} or more, as many as bins")
    density, base = density_of(f, priors or {}, tuple(record.known))
    key_truth, key_data, key_draws = jax.random.split(key, 3)
    design = _designs(record, replicates)
    truth, cohort, made = _simulated(density, base, design, key_truth, key_data)
    with warnings.catch_warnings():
        # Convergence is judged over all replicates, not patient by patient.
        warnings.simplefilter("ignore", CalibrationWarning)
        tree = calibrate(f, cohort, key=key_draws, priors=priors, method=method, progress=False)
    drawn = {name: np.asarray(tree["posterior"][name])[0, thin - 1 :: thin] for name in truth}
    likelihood = tree["log_likelihood"].dataset
    every = [np.asarray(value)[0, thin - 1 :: thin].sum(axis=-1) for value in likelihood.data_vars.values()]
    drawn[LIKELIHOOD] = np.sum(every, axis=0)
    theta = theta_of(density, {name: value[None] for name, value in truth.items()}, replicates)
    at_truth, _, _ = evaluate(density, base, cohort, theta, key_data)
    truth[LIKELIHOOD] = np.sum([value[0].sum(axis=-1) for value in at_truth.values()], axis=0)
    good = made & _trusted(tree) & (truth[LIKELIHOOD] > PENALTY)
    good &= np.all([np.isfinite(value).all(axis=0) for value in drawn.values()], axis=0)
    return _told(truth, drawn, good, bins)


def _designs(record: Record, replicates: int) -> Cohort:
    """As many patients of the same design, each with something to measure."""
    series = {}
    for name, one in record.observations.items():
        mask = one.mask if np.any(one.mask) else np.ones(np.shape(one.time), bool)
        series[name] = Series(one.time, np.zeros(np.shape(one.time)), mask=mask, after=one.after)
    return stack({str(i): replace(record, observations=series, past={}) for i in range(replicates)})


def _simulated(
    density: Any, base: Any, design: Cohort, key_truth: Any, key_data: Any
) -> tuple[dict[str, np.ndarray], Cohort, np.ndarray]:
    """True parameters from the prior, what is measured at them, and which replicates could be simulated."""
    keys = jax.random.split(key_truth, len(design))
    drawn = prior_draws(density, base, design.at(0), keys)
    truth = {name: np.asarray(drawn[name]) for name, _ in density.priors}
    theta = theta_of(density, {name: value[None] for name, value in truth.items()}, len(design))
    _, _, measured = evaluate(density, base, design, theta, key_data)
    series, made = {}, np.ones(len(design), bool)
    for name, one in design.record.observations.items():
        value = measured[name][0]
        made &= (np.isfinite(value) | ~one.mask).all(axis=1)
        value = np.where(np.isfinite(value), value, 0.0)
        series[name] = Series(one.time, value, mask=one.mask, after=one.after)
    return truth, Cohort(design.ids, replace(design.record, observations=series)), made


def _trusted(tree: Any) -> np.ndarray:
    """(replicate,) whose draws are from the posterior as far as the method can tell."""
    stats = tree["sample_stats"].dataset
    if "trusted" not in stats:
        return np.ones(tree["posterior"].sizes["patient"], bool)
    return np.asarray(stats["trusted"]) | np.asarray(stats["sampled"])


def _told(truth: dict[str, np.ndarray], drawn: dict[str, np.ndarray], good: np.ndarray, bins: int) -> Any:
    import xarray as xr

    if np.sum(good) < bins:
        raise ValueError(f"{np.sum(good)} of {len(good)} replicates did not fail: too few for {bins} bins")
    names, count = list(truth), len(next(iter(drawn.values())))
    kept = {name: value[:, good] for name, value in drawn.items()}
    checks = sbc.check({name: truth[name][good] for name in names}, kept, bins)
    complaints = sbc.complaints(checks)
    if not good.all():
        lost = np.flatnonzero(~good)
        listed = ", ".join(map(str, lost[:10])) + (" and more" if len(lost) > 10 else "")
        complaints.append(f"{len(lost)} of {len(good)} replicates failed and are left out: {listed}")
    rank = np.full((len(names), len(good)), np.nan)
    rank[:, good] = [checks[name].ranks for name in names]
    by = ("quantity",)
    variables = {
        "rank": ((*by, "replicate"), rank),
        "p_value": (by, [checks[name].p_value for name in names]),
        "coverage": (
            (*by, "level"),
            [[checks[name].coverage[level] for level in sbc.LEVELS] for name in names],
        ),
        "counts": ((*by, "bin"), [sbc.histogram(checks[name].ranks, count, bins) for name in names]),
        "autocorrelation": (by, [sbc.autocorrelation(kept[name]) for name in names]),
    }
    attributes = {
        "draws": count,
        "complaints": json.dumps(complaints),
        "failed": json.dumps(np.flatnonzero(~good).tolist()),
    }
    return xr.Dataset(variables, {"quantity": names, "level": list(sbc.LEVELS)}, attributes)
