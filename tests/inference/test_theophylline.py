"""Theophylline in twelve people against nlmixr2, and against the exact maximum of the likelihood.

Source of truth: nlmixr2 7.0.1, FOCEI, of these data (one compartment, additive error, log-normal scatter of
ka, CL and V): ka 1.591 /h, CL 2.751 L/h, V 31.82 L, residual sd 0.694 mg/L. The bands below are about these.

With priors this weak the posterior has a second mode, some eight nats lower, where absorption and elimination
are exchanged (ka 0.09 /h, V 2 L): a chain that starts there stays there, so none may.

Individual modes are those of the exact maximum likelihood by quadrature, in a separate program.
"""

import json
from importlib import resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax import (
    CalibrationWarning,
    Nuts,
    Population,
    calibrate,
    leave_last_out,
    lognormal,
    read_table,
    score,
    stack,
    summary,
)
from dtwin_jax.inference import nuts
from dtwin_jax.inference.population import density_of
from dtwin_jax.inference.predictive import constrained
from dtwin_jax.inference.start import coordinates
from dtwin_jax.models import one_compartment

PRIORS = {
    "ka": lognormal(1.5, log_sd=1.0),
    "CL": lognormal(3.0, log_sd=1.0),
    "V": lognormal(30.0, log_sd=1.0),
    "sd": lognormal(0.7, log_sd=1.0),
    "cv": 0.0,
}
VARY = ("ka", "CL", "V")
POPULATION = Population(one_compartment, VARY)
BANDS = {"ka_pop": (1.4, 1.8), "CL_pop": (2.6, 2.9), "V_pop": (30.5, 33.0), "sd": (0.65, 0.78)}


@pytest.fixture(scope="module")
def cohort():
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    return stack(read_table(path, one_compartment, covariates={"weight": "kg"}))


@pytest.fixture(scope="module")
def tree(cohort):
    method = Nuts(chains=4, warmup=1000, draws=1000, target_accept=0.9)
    return calibrate(POPULATION, cohort, key=jax.random.key(0), priors=PRIORS, method=method, progress=False)


def test_no_chain_starts_where_absorption_and_elimination_are_exchanged(cohort):
    density, base = density_of(POPULATION, PRIORS, ())
    data = (base, jax.tree.map(jnp.asarray, cohort.record), jnp.full(len(VARY), 0.5))
    keys = jax.random.split(jax.random.key(5), 64)
    state = nuts.start(density, Nuts(chains=64), False, data, keys)
    z = jax.vmap(coordinates(density, data))(state.z)
    values = constrained(density, *data[:2], {name: x[:, None] for name, x in z.items()}, data[2])
    assert np.all(values["ka_pop"] > values["CL_pop"] / values["V_pop"])


def test_chains_converge_without_a_divergence(tree):
    table = summary(tree)
    assert set(table["variable"].values) == {"ka_pop", "CL_pop", "V_pop", "sd", *(f"omega_{n}" for n in VARY)}
    assert float(table["r_hat"].max()) < 1.01
    assert float(table["ess_bulk"].min()) > 400
    assert float(table["ess_tail"].min()) > 400
    assert int(tree["sample_stats"]["diverging"].sum()) == 0
    assert json.loads(tree.attrs["warnings"]) == []


@pytest.mark.parametrize("name", BANDS)
def test_population_medians_lie_about_those_of_nlmixr2(tree, name):
    low, high = BANDS[name]
    assert low < float(summary(tree).sel(variable=name)["median"]) < high


def test_individual_medians_lie_by_the_modes_of_the_exact_likelihood(tree, shared):
    reference = json.loads(shared("reference/cases/4_nlme/exact_ml.json").read_text())["theo_sd"]
    for i, (name, key) in enumerate(zip(VARY, ("ka", "cl", "v"), strict=True)):
        logs = np.log(tree["posterior"][name].values.reshape(-1, 12))
        modes = reference["log_typical"][key] + np.asarray(reference["EBE_eta"])[:, i]
        # Mode and median of a skewed density differ, and weak priors are no flat ones: a little.
        distance = (np.median(logs, axis=0) - modes) / np.std(logs, axis=0)
        assert np.all(np.abs(distance) < 0.3), (name, distance)
        assert abs(np.mean(distance)) < 0.15, name


def test_predictive_bands_cover_the_points(tree, cohort):
    series = cohort.record.observations["concentration"]
    drawn = tree["posterior_predictive"]["concentration"].values.reshape(-1, *series.time.shape)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    inside = (low <= series.value) & (series.value <= high)
    assert 0.85 <= np.mean(inside[series.mask]) <= 0.99


def test_last_samples_left_out_are_predicted(cohort):
    kept, held = leave_last_out(cohort, 2)
    method = Nuts(chains=2, warmup=200, draws=200, target_accept=0.9)
    with pytest.warns(CalibrationWarning):
        short = calibrate(
            POPULATION, kept, key=jax.random.key(0), priors=PRIORS, method=method, progress=False
        )
    found = score(POPULATION, short, held, key=jax.random.key(2)).sel(channel="concentration")
    values = held.observations["concentration"]
    assert int(found["n"]) == 24
    # Better than who knows mean and spread of all that was held out: of that normal forecast the expected
    # absolute error is spread sqrt(2 / pi), the expected CRPS spread / sqrt(pi).
    spread = np.std(values.value[values.mask])
    assert float(found["mae"]) < spread * np.sqrt(2 / np.pi)
    assert float(found["crps"]) < spread / np.sqrt(np.pi)
    assert float(found["coverage_90"]) >= 0.75
