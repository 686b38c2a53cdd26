"""The ReplayBG model against an 8th-order solve at 1e-11 of the equation that its package discretises."""

import csv
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.replay_bg import Inputs, Params, State, drift, init, replay_bg, risk

tight = replace(replay_bg, solver=replace(replay_bg.solver, rtol=1e-10, atol=1e-13))
# The package's sample of minute 60 drives its step from 59 to 60 min: 60 g and 6 U within that minute.
CASE = Inputs(meal=Doses([59.0], [60e3], [1.0]), insulin=Doses([59.0], [6e3], [1.0]))
STATES = tuple(quantities(State))


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


# The reference has no delay of meals.
PROMPT = Params(beta=0.0)


@jax.jit
def solved(p, u, times):
    return simulate(tight, p, u, times)


@jax.jit
def usual(p, u, times):
    return simulate(replay_bg, p, u, times)


def test_all_states_agree_with_reference(shared):
    reference = table(shared("reference/models/replaybg_continuous.csv"))
    found = values(solved(PROMPT, CASE, reference["t_min"]).state)
    for name in STATES:
        # An empty stomach and an action of 0 are so to the absolute tolerance of two solvers.
        np.testing.assert_allclose(found[name], reference[name], rtol=1e-7, atol=1e-13, err_msg=name)
    default = usual(PROMPT, CASE, reference["t_min"]).output.cgm
    np.testing.assert_allclose(default, reference["IG"], rtol=1e-5)


def minute(x, u):
    """The package's step: backward Euler of our drift over 1 min, but rho is that of glucose before."""
    old, unravel = ravel_pytree(x)

    def residual(new):
        at = unravel(new)
        rate = drift(jnp.asarray(0.0), at, Inputs(*u), PROMPT)
        held = rate.G + (risk(at.G, PROMPT) - risk(x.G, PROMPT)) * at.X * at.G
        return new - old - ravel_pytree(replace(rate, G=held))[0]

    new = old
    for _ in range(5):  # of Newton: linear but for X G
        new = new - jnp.linalg.solve(jax.jacfwd(residual)(new), residual(new))
    return unravel(new), unravel(new)


def test_all_states_by_the_step_of_the_package_are_those_of_the_package(shared):
    discrete = table(shared("reference/models/replaybg_discrete_pyreplaybg.csv"))
    minutes = np.arange(1, 1 + int(discrete["t_min"][-1]))
    # Its sample of a minute drives the step that ends there; insulin is 8 min late.
    u = (60e3 * (minutes == 60), 6e3 * (minutes == 68), np.ones(len(minutes)))
    start = jax.tree.map(jnp.asarray, init(PROMPT))
    _, path = jax.jit(lambda x, u: jax.lax.scan(minute, x, u))(start, u)
    for name in STATES:
        found = np.append(values(start)[name], values(path)[name])[discrete["t_min"].astype(int)]
        np.testing.assert_allclose(found, discrete[name], rtol=1e-10, atol=1e-16, err_msg=name)


def test_the_package_itself_is_some_milligrams_off_by_its_step_of_a_minute(shared):
    discrete = table(shared("reference/models/replaybg_discrete_pyreplaybg.csv"))
    found = usual(PROMPT, CASE, discrete["t_min"]).output.cgm
    assert 2.0 < np.max(np.abs(found - discrete["IG"])) < 3.5


def test_parameters_are_those_of_the_case(shared):
    case = json.loads(shared("reference/models/replaybg_case.json").read_text())
    p = values(PROMPT)
    for name, value in case["params"].items():
        np.testing.assert_allclose(p[name], value, rtol=1e-15, err_msg=name)
    np.testing.assert_allclose(p["u0"], case["u2ss_mU_kg_min"], rtol=1e-15)
    np.testing.assert_allclose(init(Params()).Ip, case["Ipb"], rtol=1e-15)


def test_nothing_moves_under_basal_insulin():
    p = Params()
    rate = drift(jnp.asarray(0.0), init(p), Inputs(), p)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-14)


def test_insulin_acts_more_strongly_below_basal_down_to_60():
    """rho is 1 above basal, rises as glucose falls, and is held below 60 mg/dL; at 60 by hand."""
    p = Params()
    rho = jax.vmap(lambda G: risk(G, p))(jnp.asarray([300.0, 119.13, 90.0, 60.0, 30.0, -5.0]))
    by_hand = 1 + 10 * 1.4407 * (np.log(119.13) ** 0.8124 - np.log(60.0) ** 0.8124) ** 2
    np.testing.assert_allclose(rho[:2], 1.0, rtol=1e-14)
    assert 1.0 < rho[2] < rho[3]
    np.testing.assert_allclose(rho[3:], by_hand, rtol=1e-12)


def test_no_carbohydrate_is_lost_between_mouth_and_gut():
    """Unlike in the package, also where grinding and emptying differ."""
    p = assign(Params(), {"kgri": 0.3})
    x = replace(init(p), Qsto1=200.0, Qsto2=100.0, Qgut=50.0)
    rate = drift(jnp.asarray(0.0), x, Inputs(meal=7e3), p)
    np.testing.assert_allclose(rate.Qsto1 + rate.Qsto2 + rate.Qgut, 7e3 / 70 - p.kabs * 50, rtol=1e-12)


@jax.jit
def rare(p, u):
    return jax.value_and_grad(lambda p: usual(p, u, jnp.asarray([60.0, 600.0])).output.cgm[1])(p)


@pytest.mark.parametrize(
    "carbohydrate, insulin, basal", [(0.0, 0.0, 0.0), (5e5, 0.0, 1.0), (5e5, 0.0, 0.0), (0.0, 5e4, 1.0)]
)
def test_rare_inputs_give_finite_glucose_and_gradients(carbohydrate, insulin, basal):
    u = Inputs(meal=Doses([10.0], [carbohydrate]), insulin=Doses([10.0], [insulin]), basal=basal)
    found, slope = rare(Params(), u)
    assert np.isfinite(found) and found > 0
    assert all(np.isfinite(each) for each in values(slope).values())
