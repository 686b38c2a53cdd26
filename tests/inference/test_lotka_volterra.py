"""A model written as a user would write it, against gold-standard draws of posteriordb.

Source of truth: posteriordb, hudson_lynx_hare-lotka_volterra, 10 000 draws by Stan (10 chains, adapt_delta
0.99, rank-normalised R-hat at most 1.0012).
"""

import csv
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from dtwin_jax import (
    Model,
    Nuts,
    Record,
    Scalar,
    Series,
    Solver,
    calibrate,
    lognormal,
    normal,
    param,
    summary,
    var,
)


class Params(eqx.Module):
    a: Scalar = param(1.0, "/a", normal(1.0, 0.5, low=0.0))
    b: Scalar = param(0.05, "/a", normal(0.05, 0.05, low=0.0))
    g: Scalar = param(1.0, "/a", normal(1.0, 0.5, low=0.0))
    d: Scalar = param(0.05, "/a", normal(0.05, 0.05, low=0.0))
    hare0: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.0))
    lynx0: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.0))
    sd_hare: Scalar = param(0.37, "1", lognormal(float(np.exp(-1)), log_sd=1.0))
    sd_lynx: Scalar = param(0.37, "1", lognormal(float(np.exp(-1)), log_sd=1.0))


class Inputs(eqx.Module):
    pass


class State(eqx.Module):
    hare: Scalar = var("1")
    lynx: Scalar = var("1")


def drift(t, x, u, p):
    return State(hare=(p.a - p.b * x.lynx) * x.hare, lynx=(-p.g + p.d * x.hare) * x.lynx)


def noise(y, p):
    positive = lambda value: jnp.log(jnp.where(value > 0, value, jnp.nan))  # noqa: E731
    return {
        "hare": dist.LogNormal(positive(y.hare), p.sd_hare),
        "lynx": dist.LogNormal(positive(y.lynx), p.sd_lynx),
    }


lotka_volterra = Model(
    name="lotka_volterra",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(hare=p.hare0, lynx=p.lynx0),
    drift=drift,
    observe=lambda t, x, u, p: x,
    noise=noise,
    time="a",
    solver=Solver(rtol=1e-5, atol=1e-6, max_steps=500),
)

NAMES = {
    "a": "theta[1]",
    "b": "theta[2]",
    "g": "theta[3]",
    "d": "theta[4]",
    "hare0": "z_init[1]",
    "lynx0": "z_init[2]",
    "sd_hare": "sigma[1]",
    "sd_lynx": "sigma[2]",
}


@pytest.fixture(scope="module")
def reference(shared):
    data = json.loads(shared("data/posteriordb/hudson_lynx_hare.data.json").read_text())
    path = shared("data/posteriordb/hudson_lynx_hare__lotka_volterra_reference.csv")
    rows = {row["parameter"]: row for row in csv.DictReader(path.read_text().splitlines())}
    return data, rows


def test_posterior_of_lynx_and_hare_equals_the_gold_standard(reference):
    data, rows = reference
    time = np.concatenate([[0.0], data["ts"]])
    seen = np.concatenate([[data["y_init"]], data["y"]])
    record = Record(Inputs(), {"hare": Series(time, seen[:, 0]), "lynx": Series(time, seen[:, 1])})
    method = Nuts(chains=4, warmup=400, draws=500, dense=True, block=50, candidates=256)
    tree = calibrate(lotka_volterra, record, key=jax.random.key(3), method=method, progress=False)
    table = summary(tree, individual=True)
    for ours, theirs in NAMES.items():
        row = table.sel(variable=f"{ours}[1]")
        mean, sd = float(rows[theirs]["mean"]), float(rows[theirs]["sd"])
        assert abs(float(row["mean"]) - mean) < 0.1 * sd, ours
        assert abs(float(row["sd"]) / sd - 1) < 0.15, ours
        assert float(row["r_hat"]) < 1.01, ours
    assert not bool(tree["sample_stats"]["diverging"].any())
