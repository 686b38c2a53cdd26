"""How well a calibrated model predicts a measurement that it has not seen: leave one out, without refits.

The posterior without a measurement is that with it, reweighed by one over its likelihood; the weights are
smoothed by a Pareto distribution, whose shape k says how far they can be trusted. In a population each
patient's own parameters are part of the posterior, so what is left out is a measurement of a known patient.

Source: Vehtari, Gelman & Gabry 2017, doi 10.1007/s11222-016-9696-4; the limit of k: Vehtari et al. 2024,
Journal of Machine Learning Research 25(72).
"""

import json
from typing import Any

import numpy as np

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.inference.importance import smoothed

# Fewer draws than this cannot tell k.
FEWEST = 100
# Effective draws without which the rest are as good as none.
_SEVERAL = 3.0


def leave_one_out(tree: Any) -> Any:
    """Expected log predictive densities of the measurements of a calibration, each left out in turn.

    Args:
        tree: of `calibrate`, or anything in ArviZ's schema whose `observed_data` says what was measured.

    Returns:
        `xarray.Dataset`: `<channel>_elpd`, log predictive density; `<channel>_p`, how much of the density
        with it was learnt from it (their sum is the effective number of parameters); `<channel>_pareto_k`,
        infinite where too few draws are left to tell; each (patient, <channel>_point), NaN where nothing was
        measured, or where a draw has no likelihood. Attributes: `elpd`, `se`, `p`, `n`, `k_limit`;
        `unreliable`, how many k are above it; `failed`, the patients with a measurement left out for want of
        a likelihood, as JSON.

    Raises:
        ValueError: too few draws.
    """
    import xarray as xr

    likelihood, observed = tree["log_likelihood"].dataset, tree["observed_data"].dataset
    draws = likelihood.sizes["chain"] * likelihood.sizes["draw"]
    if draws < FEWEST:
        raise ValueError(f"leave_one_out: {draws} draws are too few, expected {FEWEST} or more")
    found, parts, failed = {}, [], np.zeros(observed.sizes["patient"], bool)
    for name in map(str, likelihood.data_vars):
        each = np.asarray(likelihood[name].transpose("patient", ..., "chain", "draw"), float)
        each = each.reshape(*each.shape[:2], draws)
        measured = np.isfinite(np.asarray(observed[name], float))
        known = measured & np.all(np.isfinite(each) & (each > PENALTY), axis=2)
        failed |= (measured & ~known).any(axis=1)
        columns = {kind: np.full(measured.shape, np.nan) for kind in ("elpd", "pareto_k", "p")}
        if known.any():
            for kind, values in zip(columns, _left_out(each[known]), strict=True):
                columns[kind][known] = values
        dims = ("patient", f"{name}_point")
        found |= {f"{name}_{kind}": (dims, values) for kind, values in columns.items()}
        parts.append(np.stack([values[known] for values in columns.values()]))
    elpd, k, p = np.concatenate(parts, axis=1)
    limit = float(min(1.0 - 1.0 / np.log10(draws), 0.7))
    ids = [str(who) for who in observed["patient"].values]
    attributes = {
        "elpd": float(elpd.sum()),
        "se": float(np.sqrt(len(elpd)) * elpd.std()) if len(elpd) else float("nan"),
        "p": float(p.sum()),
        "n": len(elpd),
        "k_limit": limit,
        "unreliable": int(np.sum(~(k <= limit))),
        "failed": json.dumps([who for who, lost in zip(ids, failed, strict=True) if lost]),
    }
    return xr.Dataset(found, {"patient": ids}, attributes)


def _left_out(likelihood: np.ndarray) -> tuple[np.ndarray, ...]:
    """Log predictive density, Pareto k and effective parameters (n,) from log-likelihoods (n, draw)."""
    from scipy.special import logsumexp

    raw = np.exp(likelihood.min(axis=1, keepdims=True) - likelihood)
    weights, k = raw / raw.sum(axis=1, keepdims=True), np.full(len(raw), np.inf)
    # Where a draw or two have all the weight there is no tail to fit.
    several = np.sum(weights**2, axis=1) < 1.0 / _SEVERAL
    if several.any():
        weights[several], k[several] = smoothed(-likelihood[several])
    without = np.asarray(logsumexp(likelihood, axis=1, b=weights))
    with_it = logsumexp(likelihood, axis=1) - np.log(likelihood.shape[1])
    return without, k, with_it - without
