"""The most probable parameters of one person on warfarin: kinetics and effect, written as a user would.

Source of truth: the posthoc estimates of subject 1 that posologyr's tests state (levenc/posologyr,
test_multi_outputs.R, computed with nlmixr) for this model, these data and this population.

    depot' = -ktr depot,  gut' = ktr depot - ka gut,  central' = ka gut - (cl / v) central
    pca' = e0 kout (1 - emax cp / (ec50 + cp)) - kout pca,  cp = central / v
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
    Doses,
    Input,
    Model,
    Record,
    Scalar,
    Series,
    Solver,
    fit,
    lognormal,
    normal,
    param,
    var,
)


class Params(eqx.Module):
    ktr: Scalar = param(1.0, "/h")
    ka: Scalar = param(1.0, "/h")
    cl: Scalar = param(0.1, "L/h")
    v: Scalar = param(8.0, "L")
    logit_emax: Scalar = param(3.0, "1")
    ec50: Scalar = param(1.0, "mg/L")
    kout: Scalar = param(0.05, "/h")
    e0: Scalar = param(100.0, "1")
    cp_sd: Scalar = param(0.1, "mg/L")
    cp_cv: Scalar = param(0.1, "1")
    pca_sd: Scalar = param(4.0, "1")


class Inputs(eqx.Module):
    oral: Input = var("mg/h", neutral=0.0)


class State(eqx.Module):
    depot: Scalar = var("mg")
    gut: Scalar = var("mg")
    central: Scalar = var("mg")
    pca: Scalar = var("1")


class Outputs(eqx.Module):
    cp: Scalar = var("mg/L")
    pca: Scalar = var("1")


def drift(t, x, u, p):
    cp = x.central / p.v
    inhibited = jax.nn.sigmoid(p.logit_emax) * cp / (p.ec50 + cp)
    return State(
        depot=u.oral - p.ktr * x.depot,
        gut=p.ktr * x.depot - p.ka * x.gut,
        central=p.ka * x.gut - p.cl * cp,
        pca=p.e0 * p.kout * (1 - inhibited) - p.kout * x.pca,
    )


def noise(y, p):
    return {
        "cp": dist.Normal(y.cp, jnp.sqrt(p.cp_sd**2 + (p.cp_cv * y.cp) ** 2)),
        "pca": dist.Normal(y.pca, p.pca_sd),
    }


warfarin = Model(
    name="warfarin",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(depot=0.0, gut=0.0, central=0.0, pca=p.e0),
    drift=drift,
    observe=lambda t, x, u, p: Outputs(cp=x.central / p.v, pca=x.pca),
    noise=noise,
    solver=Solver(rtol=1e-8, atol=1e-8),
)


@pytest.fixture(scope="module")
def found(shared):
    case = json.loads(shared("reference/models/warfarin_map_subject1_case.json").read_text())
    kind, time, value = (np.asarray(case[name]) for name in ("dvid", "times", "dv"))
    record = Record(
        Inputs(oral=Doses([0.0], [case["dose_mg"]])),
        {name: Series(time[kind == name], value[kind == name]) for name in ("cp", "pca")},
    )
    theta, sd = case["theta"], {name: variance**0.5 for name, variance in case["omega_variance"].items()}
    priors = {
        name: lognormal(float(np.exp(theta[name])), log_sd=sd[name]) for name in ("ktr", "ka", "cl", "ec50")
    }
    priors |= {name: float(np.exp(theta[name])) for name in ("v", "kout", "e0")}
    priors |= {"logit_emax": normal(theta["emax"], sd["emax"])}
    sigma = case["sigma"]
    priors |= {"cp_sd": sigma["cp_add"], "cp_cv": sigma["cp_prop"], "pca_sd": sigma["pca_add"]}
    return fit(warfarin, record, key=jax.random.key(0), priors=priors, starts=4)


@pytest.fixture(scope="module")
def published(shared):
    text = shared("reference/models/warfarin_map_subject1_expected.csv").read_text()
    return {row["param"]: float(row["posologyr_expected"]) for row in csv.DictReader(text.splitlines())}


def test_most_probable_parameters_equal_those_of_posologyr(found, published):
    assert found.failed == ()
    estimate = {name: float(value[0]) for name, value in found.estimate.items()}
    estimate["emax"] = 1 / (1 + np.exp(-estimate.pop("logit_emax")))
    for name in ("cl", "emax", "ec50"):
        assert estimate[name] == pytest.approx(published[name], rel=1e-3), name
    # Two first-order steps in a row: their rates can nearly be exchanged, so the peak is flat along them.
    for name in ("ktr", "ka"):
        assert estimate[name] == pytest.approx(published[name], rel=3e-3), name
