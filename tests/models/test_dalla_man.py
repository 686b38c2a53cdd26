"""The meal model of Dalla Man against another transcription of the paper, and BIOMD0000000379."""

import csv
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import replace_fields, values
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.dalla_man import (
    Basal,
    Inputs,
    Params,
    ParamsT2D,
    State,
    basal_of,
    dalla_man_normal,
    drift,
    init,
    rates,
)

tight = replace(dalla_man_normal, solver=replace(dalla_man_normal.solver, rtol=1e-10, atol=1e-11))
MEAL = Inputs(meal=Doses([0.0], [78e3]))
COLUMNS = "Gp Gt Il Ip Qsto1 Qgut Qsto2 I1 Id X Ipo Y".split()
KINDS = {"normal": Params(), "t2d": ParamsT2D()}
# BIOMD0000000379 holds its basal values as constants that are not its state of rest.
BIOMD = Basal(Gt=135.0, Ip=1.25, Ib=25.0, Sb=1.8, kp1=2.7)


def without_switches(t, x, u, p):
    """Secretion as in BIOMD0000000379, which also lets falling glucose reduce it."""
    rate = rates(x, u, p, BIOMD)
    return replace_fields(
        rate,
        {
            "Ipo": x.Y + BIOMD.Sb + p.K * rate.Gp / p.VG - p.gamma * x.Ipo,
            "Y": p.alpha * (p.beta * (x.Gp / p.VG - p.Gb) - x.Y),
        },
    )


def biomd_start(p):
    return State(0.0, 0.0, 0.0, 0.0, 178.0, 135.0, 4.5, 1.25, 3.6, 0.0, 0.0, 25.0, 25.0)


biomd = replace(tight, drift=without_switches, init=biomd_start)


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@jax.jit
def solved(p, u, times):
    """`p` as Params, so that both kinds share what is compiled."""
    # The reference's row of time 0 is just after the meal.
    return simulate(tight, p, u, times, after=times == 0)


@jax.jit
def usual(p, u, times):
    return simulate(dalla_man_normal, p, u, times, after=times == 0)


def plain(p):
    """The same parameters as the class of the healthy."""
    return Params(**values(p))


@pytest.mark.parametrize("kind", KINDS)
def test_all_states_after_a_meal_agree_with_reference(shared, kind):
    reference = table(shared(f"reference/models/dallaman2007_paper_{kind}.csv"))
    found = solved(plain(KINDS[kind]), MEAL, reference["t_min"])
    for name in COLUMNS:
        np.testing.assert_allclose(values(found.state)[name], reference[name], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.output.glucose, reference["G_mg_dl"], rtol=1e-6)
    np.testing.assert_allclose(found.output.insulin, reference["I_pmol_l"], rtol=1e-6)
    default = usual(plain(KINDS[kind]), MEAL, reference["t_min"]).output
    np.testing.assert_allclose(default.glucose, reference["G_mg_dl"], rtol=1e-4)


def test_all_but_the_switches_agree_with_biomd379(shared):
    """With part 0, libroadrunner (CVODE) and LSODA agree to 2e-10."""
    reference = table(shared("reference/models/dallaman2007_biomd379_part0.csv"))
    p = replace(Params(), Gb=95.0, ke1=0.0)
    found = values(
        jax.jit(lambda p, t: simulate(biomd, p, MEAL, t, after=t == 0).state)(p, reference["t_min"])
    )
    for name in COLUMNS:
        # The reference's last 1e-3 to 5e-6 mg in the stomach are off exp(-kmax t) by up to 5e-11 mg.
        np.testing.assert_allclose(found[name], reference[name], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_rest_are_those_of_the_case(shared, kind):
    case = json.loads(shared(f"reference/models/dallaman2007_paper_{kind}_params.json").read_text())
    p = KINDS[kind]
    named = {
        {"U_ii": "Fcns", "V_mX": "Vmx", "p_2U": "p2u"}.get(name, name).replace("_", ""): value
        for name, value in case.items()
        if name not in ("init", "D", "k_gri", "I_b", "S_b", "k_p1")
    }
    for name, value in named.items():
        assert float(values(p)[name]) == value, name
    at = basal_of(p)
    np.testing.assert_allclose([at.kp1, at.Ib, at.Sb], [case["k_p1"], case["I_b"], case["S_b"]], rtol=1e-12)
    for name, value in values(init(p)).items():
        wanted = 0.0 if name in ("eaten", "Qsto1") else case["init"][name]
        np.testing.assert_allclose(value, wanted, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_moves_before_a_meal(kind):
    p = KINDS[kind]
    rate = drift(jnp.asarray(0.0), init(p), Inputs(), p)
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(rate)), 0.0, atol=1e-12)


def test_the_published_kp1_is_that_of_rest():
    """Table I: 2.70 for the healthy, to its digits; 3.09 in type 2, 1 % off."""
    np.testing.assert_allclose(basal_of(Params()).kp1, 2.70, atol=0.005)
    np.testing.assert_allclose(basal_of(ParamsT2D()).kp1, 3.09, rtol=0.012)


@jax.jit
def rare(p, carbohydrate):
    def after(p, carbohydrate):
        u = Inputs(meal=Doses([5.0], carbohydrate[None]))
        return simulate(dalla_man_normal, p, u, jnp.asarray([60.0, 300.0])).output.glucose[1]

    return jax.value_and_grad(after, argnums=(0, 1))(p, carbohydrate)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carbohydrate", [0.0, 1.0, 5e5])
def test_rare_meals_give_finite_glucose_and_gradients(kind, carbohydrate):
    found, (by_parameter, by_meal) = rare(plain(KINDS[kind]), jnp.asarray(carbohydrate))
    assert np.isfinite(found) and found > 0 and np.isfinite(by_meal)
    assert all(np.isfinite(each) for each in values(by_parameter).values())
