"""The oral minimal model against an 8th-order solve at 1e-12 with illustrative parameters."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models.oral_minimal_model import Inputs, Params, appearance, oral_minimal_model

tight = replace(oral_minimal_model, solver=Solver(rtol=1e-11, atol=(1e-9, 1e-15)))


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def reference(shared):
    return table(shared("reference/models/oral_minimal_model.csv"))


def inputs(reference):
    return Inputs(insulin=Sampled(reference["t_min"], reference["I_uU_ml"]))


def parameters(reference):
    """Those of the reference, which gives Ra itself: its shape, and the drink from its area."""
    time, ra = reference["t_min"], reference["Ra_mg_kg_min"]
    area = np.trapezoid(ra, time)
    at = {int(t): value for t, value in zip(time, ra, strict=True)}
    named = {name: float(reference[name][0]) for name in ("SG", "p2", "SI", "Gb", "Ib")}
    shape = {f"ra_{t}": at[t] / at[60] for t in (10, 30, 90, 120, 180, 240)}
    return Params(**named, **shape, V=float(reference["V_dl_kg"][0]), D=area * 75.0 / 0.9)


@jax.jit
def solved(p, u, times):
    return simulate(tight, p, u, times)


@jax.jit
def usual(p, u, times):
    return simulate(oral_minimal_model, p, u, times)


def test_rate_of_appearance_is_that_of_the_reference(reference):
    ra = jax.vmap(appearance(parameters(reference)))(jnp.asarray(reference["t_min"]))
    np.testing.assert_allclose(ra, reference["Ra_mg_kg_min"], rtol=1e-11, atol=1e-12)


def test_glucose_and_action_agree_with_reference(reference):
    p, u = parameters(reference), inputs(reference)
    found = solved(p, u, reference["t_min"]).state
    np.testing.assert_allclose(found.glucose, reference["G_mg_dl"], rtol=1e-8)
    np.testing.assert_allclose(found.action, reference["X_per_min"], rtol=1e-8, atol=1e-13)


def test_default_tolerance_steps_on_corners_and_is_close(reference):
    found = usual(parameters(reference), inputs(reference), reference["t_min"])
    assert found.outcome == Outcome.SOLVED and found.steps < 100
    np.testing.assert_allclose(found.state.glucose, reference["G_mg_dl"], rtol=1e-6)


@pytest.mark.parametrize("changed", [{}, {"ra_30": 3.0, "ra_180": 0.01}, {"ra_240": 1.5, "D": 5e5}])
def test_all_that_is_ever_absorbed_is_the_fraction_of_the_drink(changed):
    """Property: the area under Ra is f D / BW, whatever its shape; before and after it is 0."""
    p = assign(Params(), changed)
    ra = appearance(p)
    np.testing.assert_allclose(np.trapezoid(ra.value, ra.time), p.f * p.D / p.BW, rtol=1e-14)
    assert ra(-5.0) == 0.0 and ra(301.0) == 0.0 and np.all(np.asarray(ra.value) >= 0)


def test_without_a_drink_and_with_basal_insulin_glucose_rests():
    p = Params(D=0.0)
    rate = oral_minimal_model.drift(jnp.asarray(0.0), oral_minimal_model.init(p), Inputs(), p)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-15)


@pytest.mark.parametrize("drink, insulin", [(0.0, 0.0), (5e5, 0.0), (7.5e4, 2000.0), (0.0, 2000.0)])
def test_rare_inputs_give_finite_glucose_and_gradients(drink, insulin):
    u = Inputs(insulin=Sampled([0.0, 60.0, 180.0], [insulin] * 3))
    found, slope = rare(Params(D=drink), u)
    assert np.isfinite(found) and found > 0
    assert all(np.isfinite(each) for each in values(slope).values())


@jax.jit
def rare(p, u):
    return jax.value_and_grad(lambda p: usual(p, u, jnp.asarray([30.0, 180.0])).output.glucose[1])(p)
