"""Decline of cognition and of kidney function against closed forms and published figures."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import table

from dtwin_jax.core.signal import Steps
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import adas_cog, egfr
from dtwin_jax.models.adas_cog import Inputs as Symptomatic
from dtwin_jax.models.adas_cog import Outputs as Score
from dtwin_jax.models.adas_cog import Params as AdasParams
from dtwin_jax.models.adas_cog import beta_error
from dtwin_jax.models.egfr import Inputs as Treatment


@pytest.mark.parametrize("subject", ["1", "2", "3"])
def test_adas_cog_equals_closed_form(subject, shared):
    path = shared("reference/models/alzheimer_conrado2014.csv")
    reference = table(path, where=("subject", subject))
    first = {name: float(column[0]) for name, column in reference.items()}
    p = AdasParams(age=first["age"], male=1 - first["female"], apoe4=first["apoe4"])
    found = simulate(adas_cog, p, Symptomatic(symptomatic=first["conmed"]), reference["t_year"])
    # The table has 14 digits after the point.
    np.testing.assert_allclose(found.state.share, reference["adas_norm"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.output.score, reference["adas_cog"], rtol=1e-12)


def test_scores_scatter_as_a_beta_distribution_on_their_scale():
    """Moments by the formula of the beta distribution: mean m, variance m (1 - m) / (tau + 1)."""
    error = beta_error(Score(score=21.0), AdasParams())["score"]
    sample = np.asarray(error.sample(jax.random.key(0), (20_000,)))
    np.testing.assert_allclose(sample.mean(), 21.0, atol=4 * 70 * np.sqrt(0.21 / 88.5 / 20_000))
    np.testing.assert_allclose(sample.std(), 70 * np.sqrt(0.21 / 88.5), rtol=0.03)
    assert np.isfinite(error.log_prob(69.9)) and np.isfinite(error.log_prob(0.1))


def test_kidney_function_has_the_published_drop_and_slopes():
    """CREDENCE, eGFR 30 to 45: 2.03 at once, then 1.72 a year on the drug and 4.33 on placebo."""
    t = jnp.asarray([0.5, 1.5])
    off = simulate(egfr, egfr.params(), Treatment(), t).output.egfr
    on = simulate(egfr, egfr.params(), Treatment(treatment=1.0), t).output.egfr
    np.testing.assert_allclose(off[1] - off[0], -4.33, rtol=1e-12)
    np.testing.assert_allclose(on[1] - on[0], -1.72, rtol=1e-9)
    np.testing.assert_allclose(on - off, -2.03 + 2.61 * np.asarray(t), rtol=1e-8)


def test_the_drop_goes_when_treatment_stops():
    u = Treatment(treatment=Steps([0.0, 1.0], [1.0, 0.0]), acr=Steps([0.0, 2.0], [900.0, 1800.0]))
    t = jnp.asarray([1.0, 1.5, 2.0, 3.0])
    found = simulate(egfr, egfr.params(), u, t).output.egfr
    line = 56.0 - 1.72 - 4.33 * np.array([0.5, 1.0])
    np.testing.assert_allclose(found[1:3], line, rtol=1e-9)
    np.testing.assert_allclose(found[3] - found[2], -4.33 - 0.7, rtol=1e-9)
    solved = simulate(replace(egfr, flow=None, solver=Solver(rtol=1e-10)), egfr.params(), u, t).output.egfr
    np.testing.assert_allclose(found, solved, rtol=1e-8)


@pytest.mark.parametrize(
    ("model", "p", "u"),
    [
        (adas_cog, {"BL": 1e-3, "slope": -0.5}, {"symptomatic": 0.0}),
        (adas_cog, {"BL": 69.9, "slope": 1.0}, {}),
        (egfr, {}, {"acr": 0.0}),
        (egfr, {"slope": 0.0}, {"treatment": 1.0, "acr": 2e4}),
    ],
    ids=["hardly ill", "at the end of the scale", "no albumin", "much albumin"],
)
def test_rare_courses_are_finite(model, p, u):
    def last(p, u):
        return jax.tree.leaves(simulate(model, p, u, jnp.asarray([20.0])).output)[0][0]

    p, u = replace(model.params(), **p), replace(model.inputs(), **u)
    value, gradient = jax.value_and_grad(last, argnums=(0, 1))(p, u)
    assert np.isfinite(value) and all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
