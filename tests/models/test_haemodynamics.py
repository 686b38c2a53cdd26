"""Haemodynamics under anaesthetics against an independent transcription, two solvers agreeing to 3e-9."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import values
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import haemodynamics
from dtwin_jax.models.haemodynamics import Inputs, Params, drift


def given(t, x, u, p):
    """The drift under the reference's concentrations."""
    u = Inputs(propofol=3 * (1 - jnp.exp(-0.3 * t)), remifentanil=2 * (1 - jnp.exp(-0.5 * t)))
    return drift(t, x, u, p)


model = replace(haemodynamics, drift=given, solver=Solver(rtol=1e-9, atol=1e-12))


def test_circulation_agrees_with_reference(shared):
    with open(shared("reference/models/haemodynamics_su2023.csv")) as file:
        rows = list(csv.DictReader(file))
    run = jax.jit(lambda p, t: simulate(model, p, Inputs(), t))
    for age in sorted({row["age"] for row in rows}):
        mine = [row for row in rows if row["age"] == age]
        reference = {name: np.array([float(row[name]) for row in mine]) for name in mine[0]}
        found = run(Params(age=float(age)), reference["t_min"])
        np.testing.assert_allclose(found.state.resistance, reference["TPR"], rtol=1e-6)
        np.testing.assert_allclose(found.state.stroke, reference["SV_star"], rtol=1e-6)
        np.testing.assert_allclose(found.state.rate, reference["HR_star"], rtol=1e-6)
        np.testing.assert_allclose(found.output.pressure, reference["MAP"], rtol=1e-6)
        np.testing.assert_allclose(found.output.heart_rate, reference["HR"], rtol=1e-6)
        np.testing.assert_allclose(found.output.stroke_volume, reference["SV"], rtol=1e-6)


def test_without_drugs_nothing_moves_and_slopes_are_finite():
    p = Params()
    x = haemodynamics.init(p)
    rate = drift(jnp.asarray(0.0), x, Inputs(), p)
    np.testing.assert_allclose(jnp.stack(list(values(rate).values())), 0.0, atol=1e-14)
    slopes = jax.jacrev(lambda p: drift(jnp.asarray(0.0), x, Inputs(), p))(p)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(slopes))
