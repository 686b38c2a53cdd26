"""The WHIG model against another transcription of nlmixr2lib's Duong_2016_WHIG_T2DM, solved twice."""

import csv
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.signal import Steps
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.whig import Inputs, Params, drift, fasting, init, whig

tight = replace(whig, solver=replace(whig.solver, rtol=1e-10, atol=1e-11))
# The sign of the reference: its weight loss lowers sensitivity.
REFERENCE = assign(Params(), {"scale": -0.0458})
TRIAL = Inputs(diet=1.0, placebo=Steps([0.0, 42.0], [0.0, 1.0]))


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@jax.jit
def solved(p, u, times):
    return simulate(tight, p, u, times)


@jax.jit
def usual(p, u, times):
    return simulate(whig, p, u, times)


def test_states_and_outputs_agree_with_reference(shared):
    reference = table(shared("reference/models/whig_t2dm_duong2016.csv"))
    found = solved(REFERENCE, TRIAL, reference["t_day"])
    states = {name: reference[name] for name in ("weight", "h1", "h2", "h3")}
    for name, wanted in states.items():
        np.testing.assert_allclose(getattr(found.state, name), wanted, rtol=1e-7, err_msg=name)
    np.testing.assert_allclose(found.output.hba1c, reference["HbA1c_pct"], rtol=1e-7)
    # Its row of time 0 is the moment before diet begins.
    np.testing.assert_allclose(found.output.insulin[1:], reference["FSI_uU_ml"][1:], rtol=1e-7)
    np.testing.assert_allclose(found.output.glucose[1:], reference["FPG_mmol_l"][1:], rtol=1e-7)
    before = fasting(jnp.asarray(0.0), REFERENCE.W0, jnp.asarray(0.0), REFERENCE)
    np.testing.assert_allclose(before.insulin, reference["FSI_uU_ml"][0], rtol=1e-10)
    np.testing.assert_allclose(before.glucose, reference["FPG_mmol_l"][0], rtol=1e-10)
    default = usual(REFERENCE, TRIAL, reference["t_day"]).output.hba1c
    np.testing.assert_allclose(default, reference["HbA1c_pct"], rtol=1e-5)


def test_parameters_are_those_of_the_case(shared):
    case = json.loads(shared("reference/models/whig_t2dm_case.json").read_text())["params"]
    p = values(Params())
    scaled = {"efde": 100.0, "efpl": 100.0, "efloss": 36500.0, "rb": 365.0}
    renamed = {"scale_efs": "scale", "b0_s1": "b0"}
    for name, value in case.items():
        if name != "b0_s23":
            ours = renamed.get(name, name)
            np.testing.assert_allclose(p[ours] * scaled.get(ours, 1.0), value, rtol=1e-14, err_msg=name)


@pytest.mark.parametrize("b0, s0, diet", [(-0.298, 0.963, 0.0), (4.0, 3.0, 1.0), (-4.0, -3.0, 0.0)])
def test_insulin_and_glucose_satisfy_both_of_their_equations(b0, s0, diet):
    p = assign(Params(), {"b0": b0, "s0": s0, "efbt": 0.2})
    at = fasting(jnp.asarray(0.0), p.W0, jnp.asarray(diet), p)
    sensitivity, function = 1 / (1 + np.exp(s0)), 7.8 / (1 + np.exp(b0)) * (1 + 0.2 * diet)
    np.testing.assert_allclose(at.insulin * at.glucose * sensitivity, 35.1, rtol=1e-12)
    np.testing.assert_allclose(at.insulin, function * (at.glucose - 3.5), rtol=1e-9)


def test_nothing_moves_without_diet_and_without_decline():
    p = assign(Params(), {"rb": 0.0})
    rate = drift(jnp.asarray(0.0), init(p), Inputs(), p)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-14)


def test_weight_lost_lowers_glucose_and_insulin():
    p, zero = Params(), jnp.asarray(0.0)
    heavy, light = fasting(zero, p.W0, zero, p), fasting(zero, p.W0 - 5.0, zero, p)
    assert light.glucose < heavy.glucose and light.insulin < heavy.insulin


@jax.jit
def rare(p, u):
    return jax.value_and_grad(lambda p: usual(p, u, jnp.asarray([400.0])).output.hba1c[0])(p)


@pytest.mark.parametrize("changed", [{"efde": -0.5}, {"efde": 0.9}, {"b0": 8.0}, {"s0": -8.0}, {"s0": 8.0}])
def test_rare_patients_give_finite_hba1c_and_gradients(changed):
    """Also one who gains so much that no sensitivity would be left."""
    found, slope = rare(assign(Params(), changed), TRIAL)
    assert np.isfinite(found) and found > 0
    assert all(np.isfinite(each) for each in values(slope).values())
