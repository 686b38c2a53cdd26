"""The UVA/Padova model against simglucose 0.2.11: its right-hand side and meals, integrated at 1e-12."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.uva_padova import (
    Inputs,
    Params,
    basal_of,
    basal_rate,
    dosing,
    drift,
    emptying,
    init,
    uva_padova,
    virtual_patients,
)

tight = replace(uva_padova, solver=replace(uva_padova.solver, rtol=1e-9, atol=1e-10))
PATIENTS = virtual_patients()
FOLLOWS = {"kp1": "kp1", "Vm0": "Vm0", "Gtb": "Gt", "Ilb": "Il", "m30": "m3", "u2ss": "infusion"}
ORDER = "Qsto1 Qsto2 Qgut Gp Gt Ip X I1 Id Il Isc1 Isc2 Gs".split()  # x0_ 1 to x0_13


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def table(path):
    read = rows(path)
    return {name: np.array([float(row[name]) for row in read]) for name in read[0]}


def minutely(meals):
    """Meals (start, grams) eaten at 5 g/min, one dose for each minute, as simglucose does."""
    times = np.concatenate([start + np.arange(grams / 5) for start, grams in meals])
    return Doses(times, np.full(times.shape, 5000.0), 1.0)


@jax.jit
def solved(p, u, times):
    return simulate(tight, p, u, times)


@jax.jit
def usual(p, u, times):
    return simulate(uva_padova, p, u, times)


@pytest.mark.parametrize("name", ["adult#001", "adolescent#003", "child#005"])
def test_a_day_of_three_meals_agrees_with_simglucose(shared, name):
    stem = f"reference/models/uvapadova_{name.replace('#', '')}"
    reference, given = table(shared(f"{stem}_tight.csv")), table(shared(f"{stem}_inputs.csv"))
    meal = given["CHO_announced_g"] > 0
    p = PATIENTS[name]
    basal = given["insulin_U_per_min"][0]
    np.testing.assert_allclose(basal_rate(p), basal, rtol=1e-10)
    u = Inputs(
        meal=minutely(list(zip(given["t_min"][meal], given["CHO_announced_g"][meal], strict=True))),
        insulin=Doses(given["t_min"][meal], given["insulin_U_per_min"][meal] - basal, 1.0),
    )
    found = values(solved(p, u, reference["t_min"]).state)
    for state in ORDER:
        wanted = reference[state]
        np.testing.assert_allclose(found[state], wanted, rtol=0, atol=1e-5 * np.max(np.abs(wanted)))
    default = usual(p, u, reference["t_min"]).output
    np.testing.assert_allclose(default.cgm, reference["Gsub_mg_dl"], rtol=2e-4)
    # The program itself, at the default tolerance of its solver.
    itself = table(shared(f"{stem}_simglucose.csv"))
    for state in ORDER:
        wanted = itself[state]
        np.testing.assert_allclose(
            found[state], wanted, rtol=1e-4, atol=1e-8 * np.max(np.abs(wanted)), err_msg=state
        )


def test_a_cohort_after_60_g_agrees_with_simglucose(shared):
    """15 patients: 60 g from 60 min on and 60/CR units in that minute."""
    reference = rows(shared("reference/models/uvapadova_cohort_60g.csv"))
    p = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(PATIENTS[row["patient"]] for row in reference))
    bolus = jnp.asarray([60.0 / float(row["CR_g_per_U"]) for row in reference])
    times = jnp.arange(60.0, 481.0, 60.0)

    @jax.jit
    @jax.vmap
    def cohort(p, bolus):
        u = Inputs(meal=minutely([(60.0, 60.0)]), insulin=Doses(jnp.asarray([60.0]), bolus[None], 1.0))
        return simulate(tight, p, u, times).output

    found = cohort(p, bolus)
    for prefix, output in (("Gp", found.glucose), ("Gsub", found.cgm)):
        wanted = [[float(row[f"{prefix}_{int(t)}"]) for t in times] for row in reference]
        np.testing.assert_allclose(output, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", PATIENTS)
def test_every_virtual_patient_rests_under_basal_insulin(name):
    p = PATIENTS[name]
    x = init(p)
    size = jnp.stack([jnp.maximum(jnp.abs(leaf), 1.0) for leaf in jax.tree.leaves(x)])
    rate = jnp.stack(jax.tree.leaves(drift(jnp.asarray(0.0), x, Inputs(), p)))
    np.testing.assert_allclose(rate / size, 0.0, atol=1e-14)


def test_what_follows_from_rest_is_what_simglucose_lists(shared):
    """Its kp1, Vm0, basal insulin and initial state of all 30, which are not in our table."""
    reference = rows(shared("data/glucose/uva_padova_vpatients.csv"))
    assert [row["Name"] for row in reference] == list(PATIENTS)
    for row in reference:
        p = PATIENTS[row["Name"]]
        for column, field in FOLLOWS.items():
            np.testing.assert_allclose(getattr(basal_of(p), field), float(row[column]), rtol=1e-9)
        x = values(init(p))
        for i, state in enumerate(ORDER):
            np.testing.assert_allclose(x[state], float(row[f"x0_{i + 1:2d}"]), rtol=1e-9, err_msg=state)


def test_default_parameters_are_the_average_of_the_virtual_adults():
    adults = [values(p) for name, p in PATIENTS.items() if name.startswith("adult")]
    for name, value in values(Params()).items():
        if name not in ("sd", "cv_glucose", "cv_cgm"):
            mean = np.exp(np.mean([np.log(each[name]) for each in adults]))
            np.testing.assert_allclose(value, mean, rtol=1e-5, err_msg=name)


def eaten(meal):
    u = Inputs(meal=meal)
    times = jnp.asarray([5.0, 10.0, 12.0, 59.0, 60.0])
    return simulate(uva_padova, Params(), u, times, after=times == 60.0).state


def test_a_meal_given_as_one_dose_is_accounted_whole_at_its_start():
    """The paper's D. A second meal is added to what is left in the stomach of the first."""
    x = jax.jit(eaten)(Doses([10.0, 60.0], [60e3, 20e3], [12.0, 4.0]))
    np.testing.assert_allclose(x.eaten, [0.0, 0.0, 60e3, 60e3, x.Qsto1[4] + x.Qsto2[4] + 20e3], rtol=1e-12)
    assert 5e3 < x.Qsto1[4] + x.Qsto2[4] < 60e3


def test_doses_that_follow_each_other_are_one_meal():
    x = jax.jit(eaten)(Doses([10.0, 11.0, 12.0, 13.0], [5e3] * 4, 1.0))
    np.testing.assert_allclose(x.eaten, [0.0, 0.0, 10e3, 20e3, 20e3], rtol=1e-12)


def test_a_meal_must_be_doses():
    with pytest.raises(ValueError, match="meal takes doses"):
        dosing(Inputs(meal=Sampled([0.0, 1.0], [1.0, 2.0])), Params())


def test_an_empty_account_empties_at_kmax_with_finite_derivatives():
    p = Params()
    rate, slopes = jax.value_and_grad(emptying, argnums=(0, 1, 2))(jnp.asarray(0.0), jnp.asarray(0.0), p)
    assert rate == p.kmax
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))


def test_no_carbohydrate_is_lost_between_mouth_and_gut():
    p, x = Params(), init(Params())
    x = replace(x, Qsto1=2e4, Qsto2=1e4, Qgut=5e3, eaten=6e4)
    rate = drift(jnp.asarray(0.0), x, Inputs(meal=3e3), p)
    np.testing.assert_allclose(rate.Qsto1 + rate.Qsto2 + rate.Qgut, 3e3 - p.kabs * 5e3, rtol=1e-12)


@jax.jit
def rare(p, carbohydrate, insulin, basal):
    def at_night(p, carbohydrate):
        u = Inputs(meal=Doses([10.0], carbohydrate[None]), insulin=Doses([10.0], insulin[None]), basal=basal)
        return simulate(uva_padova, p, u, jnp.asarray([60.0, 600.0])).output.cgm[1]

    return jax.value_and_grad(at_night, argnums=(0, 1))(p, carbohydrate)


@pytest.mark.parametrize("given", [(0.0, 0.0, 0.0), (5e5, 0.0, 1.0), (5e5, 0.0, 0.0), (0.0, 20.0, 1.0)])
def test_rare_inputs_give_finite_glucose_and_gradients(given):
    found, (by_parameter, by_meal) = rare(Params(), *map(jnp.asarray, given))
    assert np.isfinite(found) and np.isfinite(by_meal)
    assert all(np.isfinite(each) for each in values(by_parameter).values())
