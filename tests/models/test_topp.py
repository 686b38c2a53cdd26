"""The Topp model against BIOMD0000000341 in libroadrunner and a Radau solve, which agree to 1e-6."""

import csv
from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models.topp import Inputs, Params, drift, init, topp

tight = replace(topp, solver=Solver(diffrax.Kvaerno5, rtol=1e-10, atol=(1e-9, 1e-9, 1e-9), max_steps=16384))
NAMES = {"si": "SI", "G0": "G0", "I0": "I0", "B0": "B0"} | {
    n: n for n in "R0 Eg0 sigma alpha k d0 r1 r2".split()
}


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@jax.jit
def solved(p, u, times):
    return simulate(tight, p, u, times)


@jax.jit
def usual(p, u, times):
    return simulate(topp, p, u, times)


@pytest.mark.parametrize("case", ["default", "healthy_equil", "insulin_resistant"])
def test_glucose_insulin_and_beta_cells_agree_with_reference(shared, case):
    rows = [row for row in table(shared("reference/models/topp2000.csv")) if row["case"] == case]
    p = assign(Params(), {ours: float(rows[0][theirs]) for theirs, ours in NAMES.items()})
    times = jnp.asarray([float(row["time_d"]) for row in rows])
    found, default = solved(p, Inputs(), times), usual(p, Inputs(), times)
    assert found.outcome == Outcome.SOLVED and default.outcome == Outcome.SOLVED
    columns = {"glucose": "G_mg_dl", "insulin": "I_uU_ml", "beta_cells": "B_mg"}
    for name, column in columns.items():
        wanted = [float(row[column]) for row in rows]
        np.testing.assert_allclose(getattr(found.state, name), wanted, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(getattr(default.state, name), wanted, rtol=5e-5, err_msg=name)


def test_reduced_sensitivity_is_the_case_of_insulin_resistance():
    """B after 100 days by a tight solve outside this package: SI 0.72 at a sensitivity of 0.35 / 0.72."""
    p = assign(Params(), {"G0": 110.0})
    found = solved(p, Inputs(sensitivity=0.35 / 0.72), jnp.asarray([100.0])).state.beta_cells
    np.testing.assert_allclose(found, [515.50109642], rtol=1e-8)


def test_sensitivities_agree_with_reference(shared):
    """d B(100 d) by 5-point differences."""
    rows = [
        row
        for row in table(shared("reference/models/sensitivities.csv"))
        if row["model"] == "topp2000_insulin_resistant"
    ]
    assert len(rows) == 7

    @jax.jit
    @jax.grad
    def slope(p):
        return simulate(tight, p, Inputs(), jnp.asarray([100.0])).state.beta_cells[0]

    found = values(slope(assign(Params(), {"SI": 0.35, "G0": 110.0})))
    for row in rows:
        name = NAMES[row["parameter"]]
        np.testing.assert_allclose(found[name], float(row["d_out_d_par"]), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("glucose", [100.0, 250.0, 600.0])
def test_the_three_fixed_points_are_at_rest(glucose):
    """Health; the saddle; and no beta cells left, at R0 / Eg0."""
    p = Params()
    insulin = (p.R0 / glucose - p.Eg0) / p.SI
    beta_cells = p.k * insulin * (p.alpha + glucose**2) / (p.sigma * glucose**2)
    x = init(assign(p, {"G0": glucose, "I0": insulin, "B0": beta_cells}))
    rate = drift(jnp.asarray(0.0), x, Inputs(), p)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-11)
    if glucose == 100.0:
        np.testing.assert_allclose([insulin, beta_cells], [10.0, 300.0], rtol=1e-12)


@jax.jit
def rare(p, u):
    return jax.value_and_grad(lambda p: usual(p, u, jnp.asarray([400.0])).state.glucose[0])(p)


@pytest.mark.parametrize(
    "changed, sensitivity", [({"B0": 0.0}, 1.0), ({}, 0.0), ({"G0": 900.0}, 0.1), ({}, 20.0)]
)
def test_rare_patients_give_finite_glucose_and_gradients(changed, sensitivity):
    found, slope = rare(assign(Params(), changed), Inputs(sensitivity=sensitivity))
    assert np.isfinite(found) and found > 0
    assert all(np.isfinite(each) for each in values(slope).values())
