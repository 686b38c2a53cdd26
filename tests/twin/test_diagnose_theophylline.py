"""Theophylline from its file to pictures; CWRES against a linearisation in plain NumPy.

The estimates are the exact maximum of the likelihood by quadrature, from a separate program.
"""

from importlib import resources

import jax
import numpy as np
import pytest

from dtwin_jax import plot
from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import stack
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.population import Population
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment
from dtwin_jax.twin.diagnose import diagnose

PRIORS = {name: lognormal(1.0, log_sd=1.0) for name in ("ka", "CL", "V", "sd")} | {"cv": 0.0}
POPULATION = Population(one_compartment, ("ka", "CL", "V"))
EXACT = {
    "ka_pop": 1.5829163896002525,
    "CL_pop": 2.7501788089457793,
    "V_pop": 31.621916495289053,
    "sd": 0.6959185320078098,
    "omega_ka": 0.6363485314966357,
    "omega_CL": 0.26517010933328466,
    "omega_V": 0.13595917626935441,
}
CHANNEL = "concentration"


@pytest.fixture(scope="module")
def people():
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    return stack(read_table(path, one_compartment, covariates={"weight": "kg"}))


@pytest.fixture(scope="module")
def tree(people):
    found = estimate(POPULATION, people, priors=PRIORS, start=EXACT, search=False)
    return diagnose(POPULATION, people, found, key=jax.random.key(0), priors=PRIORS)


def concentration(t, dose, logs):
    """Bateman's function of the logarithms of ka, CL and V."""
    ka, clearance, volume = np.exp(logs)
    k = clearance / volume
    return dose * ka / (volume * (ka - k)) * (np.exp(-k * t) - np.exp(-ka * t))


def test_residuals_are_those_of_a_linearisation_in_plain_numpy(people, tree):
    typical = np.log([EXACT[f"{name}_pop"] for name in ("ka", "CL", "V")])
    omega = np.diag([EXACT[f"omega_{name}"] ** 2 for name in ("ka", "CL", "V")])
    for i in range(len(people)):
        series, dose = people.at(i).observations[CHANNEL], float(people.at(i).inputs.oral.amount[0])
        eta = tree["effects"]["eta"].values[i]
        mean = concentration(series.time, dose, typical + eta)
        steps = 1e-5 * np.eye(3)
        slope = np.stack(
            [
                concentration(series.time, dose, typical + eta + h)
                - concentration(series.time, dose, typical + eta - h)
                for h in steps
            ],
            axis=1,
        )
        slope /= 2e-5
        variance, axis = np.linalg.eigh(slope @ omega @ slope.T + EXACT["sd"] ** 2 * np.eye(len(mean)))
        exact = axis @ (axis.T @ (series.value - mean + slope @ eta) / np.sqrt(variance))
        data = tree["residuals"]
        np.testing.assert_allclose(data[f"{CHANNEL}_individual"][i], mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(data[f"{CHANNEL}_cwres"][i], exact, atol=1e-6)
        np.testing.assert_allclose(data[f"{CHANNEL}_iwres"][i], (series.value - mean) / EXACT["sd"])


def test_prediction_errors_are_near_standard_normal(tree):
    """Of 132 values: a mean and a variance within three standard errors of independent ones."""
    z = tree["residuals"][f"{CHANNEL}_npde"].values
    assert z.size == 132 and np.isfinite(z).all()
    assert abs(z.mean()) < 3.0 / np.sqrt(132) and abs(z.var() - 1.0) < 3.0 * np.sqrt(2.0 / 132)


def test_pictures_of_the_fit(tree):
    """Half of the measured percentiles at least lie in their nine-tenths bands; nothing drawn is NaN."""
    from dtwin_jax.plot.vpc import compared, percentiles, time_bins

    found = compared(tree, tree, CHANNEL)
    table = percentiles(found, time_bins(found.time))
    inside = (table["low"] <= table["measured"]) & (table["measured"] <= table["high"])
    assert float(inside.mean()) > 0.5 and int(table["count"].sum()) == 132
    figures = [
        plot.goodness_of_fit(tree, CHANNEL),
        plot.individual_fits(tree, CHANNEL),
        plot.effects(tree),
        plot.effects_by_fact(tree),
        plot.predictive_check(tree, tree, CHANNEL),
    ]
    for fig in figures:
        assert fig.layout.meta["notes"] == []
        assert all(np.isfinite(np.asarray(part, float)).all() for t in fig.data for part in (t.x, t.y))
    shrunk = 1.0 - tree["effects"]["eta"].values[:, 0].std() / EXACT["omega_ka"]
    assert figures[2].layout.annotations[0].text == f"ka · shrinkage {shrunk:.0%}"
    corrected = plot.predictive_check(tree, tree, CHANNEL, corrected=True, by="weight")
    # At time 0 nothing is expected.
    assert corrected.layout.meta["notes"][0].startswith("12 measurements left out")
