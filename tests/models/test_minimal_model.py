"""The glucose minimal model against an 8th-order solve at 1e-12, a closed form, and central differences."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import minimal_model
from dtwin_jax.models.minimal_model import Inputs, Params

tight = replace(minimal_model, solver=Solver(rtol=1e-11, atol=(1e-9, 1e-15)))

# The reference's parameters: p3 is p2 * SI.
SG, P2, P3, GB, IB, G0 = 0.0265, 0.025, 1.3e-5, 92.0, 7.3, 279.0
p = Params(SG=SG, p2=P2, SI=P3 / P2, Gb=GB, Ib=IB, G0=G0)


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def insulin(shared):
    forcing = table(shared("reference/models/bergman_ivgtt_insulin_input.csv"))
    return Inputs(insulin=Sampled(forcing["t_min"], forcing["I_uU_ml"]))


def action_in_closed_form(signal, times):
    """X on straight pieces of insulin, a piece at a time: X' = -p2 X + p3 (a + b s - Ib)."""
    knots, level = np.asarray(signal.time), np.asarray(signal.value)
    action, now, found = 0.0, knots[0], []
    for target in times:
        while now < target:
            piece = np.searchsorted(knots, now, side="right") - 1
            stop = min(target, knots[piece + 1])
            slope = (level[piece + 1] - level[piece]) / (knots[piece + 1] - knots[piece])
            start = level[piece] + slope * (now - knots[piece]) - IB
            s = stop - now
            decay = np.exp(-P2 * s)
            action = action * decay + P3 * (start * (1 - decay) / P2 + slope * (s / P2 - (1 - decay) / P2**2))
            now = stop
        found.append(action)
    return np.array(found)


def test_ivgtt_agrees_with_reference(shared, insulin):
    reference = table(shared("reference/models/bergman_ivgtt.csv"))
    found = jax.jit(lambda p, u, t: simulate(tight, p, u, t).state)(p, insulin, reference["t_min"])
    np.testing.assert_allclose(found.glucose, reference["G_mg_dl"], rtol=1e-8)
    np.testing.assert_allclose(found.action, reference["X_per_min"], rtol=1e-8, atol=1e-14)
    exact = action_in_closed_form(insulin.insulin, reference["t_min"])
    np.testing.assert_allclose(found.action, exact, rtol=1e-8, atol=1e-14)


def test_corners_of_insulin_cost_neither_steps_nor_digits(shared, insulin):
    """At the default tolerance, 1e-6; steps across the corners took 137 and were 3e-5 off."""
    reference = table(shared("reference/models/bergman_ivgtt.csv"))
    found = jax.jit(lambda p, u, t: simulate(minimal_model, p, u, t))(p, insulin, reference["t_min"])
    assert found.steps < 50
    np.testing.assert_allclose(found.state.glucose, reference["G_mg_dl"], rtol=1e-6)


def test_sensitivities_agree_with_reference(shared, insulin):
    """Reference by 5-point differences at fixed p3 = p2 SI, so that its p2 moves our SI too."""
    with open(shared("reference/models/sensitivities.csv")) as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == "bergman_ivgtt"]
    assert {row["output"] for row in rows} == {"G(60)"} and len(rows) == 6

    def glucose(p, u):
        return simulate(tight, p, u, jnp.asarray([60.0])).output.glucose[0]

    value, gradient = jax.jit(jax.value_and_grad(glucose))(p, insulin)
    found = {name: float(value) for name, value in values(gradient).items()}
    found["p3"] = found["SI"] / P2
    found["p2"] = found["p2"] - found["SI"] * P3 / P2**2
    for row in rows:
        np.testing.assert_allclose(value, float(row["output_value"]), rtol=1e-8)
        np.testing.assert_allclose(
            found[row["parameter"]], float(row["d_out_d_par"]), rtol=1e-5, err_msg=row["parameter"]
        )


def test_basal_insulin_and_glucose_are_a_state_of_rest():
    """Property: at G = Gb and insulin = Ib nothing moves."""
    rest = replace(p, G0=GB, Ib=4.5)
    x = minimal_model.init(rest)
    rate = minimal_model.drift(jnp.asarray(0.0), x, Inputs(), rest)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-15)
