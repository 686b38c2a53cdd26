"""Composites against the same equations written in one piece, and against their parts alone."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses, Steps
from dtwin_jax.dynamics.check import check_model
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.baroreflex import baroreflex_chain
from dtwin_jax.models.diabetes_and_weight import diabetes_and_weight
from dtwin_jax.models.four_chambers import four_chambers
from dtwin_jax.models.one_compartment import one_compartment
from dtwin_jax.models.ovarian_cancer import ovarian_cancer
from dtwin_jax.models.pressure_and_kidney import pressure_and_kidney
from dtwin_jax.models.reflex_circulation import reflex_circulation
from dtwin_jax.models.subcutaneous_insulin import subcutaneous_insulin

COMPOSITES = [diabetes_and_weight, ovarian_cancer, pressure_and_kidney, reflex_circulation]


def given(model, **signals):
    return eqx.tree_at(lambda u: [getattr(u, n) for n in signals], model.inputs(), list(signals.values()))


def tight(model):
    atol = model.solver.atol if isinstance(model.solver.atol, tuple) else (model.solver.atol,)
    smaller = tuple(1e-3 * each for each in atol)
    solver = replace(model.solver, rtol=1e-9, atol=smaller if len(smaller) > 1 else smaller[0])
    return replace(model, solver=replace(solver, max_steps=65536))


@pytest.mark.parametrize("model", COMPOSITES, ids=lambda model: model.name)
def test_composites_are_sound(model):
    assert check_model(model) == []


@pytest.fixture(scope="module")
def injected():
    """Two days of 10 units twice a day, in a composite of days."""
    u = given(diabetes_and_weight, insulin=Doses([0.3, 0.8, 1.3], [10e3] * 3))
    times = np.array([0.31, 0.35, 0.5, 1.0, 2.0])
    model = tight(diabetes_and_weight)
    return times, jax.jit(lambda p: simulate(model, p, u, times))(model.params())


def test_insulin_inside_the_composite_equals_insulin_alone(injected):
    """Exact flow of the part, at the body weight that the composite hardly changes in two days."""
    times, found = injected
    u = given(subcutaneous_insulin, insulin=Doses(np.array([0.3, 0.8, 1.3]) * 1440, [10e3] * 3))
    for i, t in enumerate(times):
        # The volume follows the weight: the part alone with the weight of then differs by its drift only.
        p = assign(subcutaneous_insulin.params(), {"BW": float(found.output.weight[i])})
        alone = simulate(subcutaneous_insulin, p, u, np.array([t * 1440])).output.plasma_insulin
        np.testing.assert_allclose(found.output.plasma_insulin[i], alone[0], rtol=2e-4)


def test_glucose_and_weight_equal_their_equations_in_one_piece(injected):
    """SciPy's LSODA on insulin, glucose and weight in minutes, from the parts' own drifts."""
    _, found = injected
    p = diabetes_and_weight.params()
    body = dict(diabetes_and_weight.drift.join.parts)["weight"]
    weight0 = body.init(p.weight)

    @jax.jit
    def rates(t, y):
        S1, S2, insulin, G, X = y[:5]
        i, g, k, state = p.insulin, p.glucose, p.urine, type(weight0)(*y[5:])
        W = body.observe(t, state, body.inputs(), p.weight).weight
        above = k.splay * jnp.logaddexp(0.0, (G - k.threshold) / k.splay)
        energy = -1440 * k.density * k.R * above * k.VG * W
        moved = body.drift(t, state, given(body, energy=energy), p.weight)
        return jnp.stack(
            [
                -S1 / i.tmaxI,
                (S1 - S2) / i.tmaxI,
                S2 / (i.tmaxI * i.VI * W) - i.ke * insulin,
                -(g.SG + X) * G + g.SG * g.Gb,
                -g.p2 * X + g.p2 * g.SI * (i.endogenous + insulin - g.Ib),
                *(rate / 1440 for rate in jax.tree.leaves(moved)),
            ]
        )

    y = np.array([0, 0, 0, float(p.glucose.G0), 0, *map(float, jax.tree.leaves(weight0))])
    for start, stop in ((0.0, 432.0), (432.0, 720.0)):
        y[0] += 10e3 * (start > 0)
        y = solve_ivp(rates, (start, stop), y, "LSODA", rtol=1e-8, atol=1e-9).y[:, -1]
    at = 2  # 0.5 d
    np.testing.assert_allclose(found.output.glucose[at], y[3], rtol=1e-6)
    np.testing.assert_allclose(found.state.weight.lean[at], y[8], rtol=1e-7)


def test_injections_keep_weight_that_urine_would_cost():
    """Over three weeks, at the average infusion of 30 units a day, against none."""
    model, times = diabetes_and_weight, np.array([21.0])
    held = lambda rate: given(model, insulin=Steps([0.0], rate))  # noqa: E731
    run = jax.jit(lambda rate: simulate(model, model.params(), held(rate), times))
    none, treated = run(np.array([0.0])), run(np.array([30e3]))
    assert treated.output.glucose[0] < none.output.glucose[0] - 20.0
    assert treated.output.weight[0] > none.output.weight[0] + 0.1
    assert none.output.energy[0] < -50.0


def test_ovarian_cancer_equals_the_published_equations_by_cycle_averages():
    """SciPy on Zecchin's equations, where the average AUC of a cycle acts; compared at ends of cycles."""
    model = tight(ovarian_cancer)
    p, ends = model.params(), np.array([21.0, 63.0, 84.0, 126.0, 400.0])
    u = given(model, iv=Doses(21.0 * np.arange(6), 625.0, 1 / 24))
    found = jax.jit(lambda p: simulate(model, p, u, ends))(p)
    # To the solver's tolerance, what the exact flow of the drug alone gives.
    alone = simulate(
        one_compartment,
        p.drug,
        given(one_compartment, iv=Doses(504.0 * np.arange(6), 625.0, 1.0)),
        np.array([0.5, 3.0]),
    )
    early = jax.jit(lambda p: simulate(model, p, u, np.array([0.5, 3.0]) / 24))(p)
    np.testing.assert_allclose(early.output.concentration, alone.output.concentration, rtol=1e-8)
    # The last trace of a dose is still to act at the end of its cycle: exp(-0.47 x 504) of it.
    AUC = 625.0 / 7.5 * 60 / 1000
    death = 0.0497e-3 * AUC
    size = 71.3 * np.exp(0.611e-3 * ends - death * np.minimum(ends, 126.0))
    np.testing.assert_allclose(found.output.size, size, rtol=1e-6)
    ratio = 71.3 * np.exp(0.611e-3 * 84 - death * 84) / 71.3 - 1
    np.testing.assert_allclose(found.state.hazard.ratio[2:], ratio, rtol=1e-5)

    def averaged(t, y):
        rate = 0.611e-3 - death * (t < 126)
        hazard = 1.183e-3 * 2.004 * (1.183e-3 * (t + 1e-6)) ** 1.004
        return [rate * (1 + y[0]) * (t <= 84), hazard * np.exp(0.2084 + 0.9036 * y[0])]

    wanted = solve_ivp(averaged, (0, 400), [0.0, 0.0], "RK45", ends, max_step=0.5, rtol=1e-9)
    # Within a cycle the drug acts at its beginning, and the hazard sees the ratio of the moment.
    np.testing.assert_allclose(found.output.survival, np.exp(-wanted.y[1]), rtol=2e-4)


def test_pressure_and_kidney_follow_their_slow_closed_form():
    """Hormones settle in hours, so each constant drug gives a linear equation of eGFR in years."""
    model = pressure_and_kidney
    p = assign(model.params(), {"kidney.dip": 0.0})
    times = np.array([0.5, 1.0, 3.0, 10.0])
    u = given(model, drug=Steps([0.0, 1.0], [0.0, 3e-4]))
    found = jax.jit(lambda p: simulate(model, p, u, times))(p)
    blocked = 3e-4 / (3e-4 + 2.91072740111984e-4)
    untreated, treated = 1.0, 1 - 0.311999262694736 * blocked

    def decline(start, years, factor):
        """e' = usual - strain (factor (pressure0 + retention (56 - e)) - target), exactly."""
        a = 0.048 * factor * 0.3
        c = -4.33 - 0.048 * (factor * (150 + 0.3 * 56) - 130)
        return (start + c / a) * np.exp(a * years) - c / a

    at_one = decline(56.0, 1.0, untreated)
    wanted = [decline(56.0, 0.5, untreated), at_one, *(decline(at_one, t - 1, treated) for t in (3.0, 10.0))]
    np.testing.assert_allclose(found.output.egfr, wanted, rtol=1e-5)
    assert found.steps < 2000
    # Diastolic pressure shows the drug alone; eGFR is above 15 for as long as `valid` says.
    np.testing.assert_allclose(found.output.diastolic, 80 * np.array([1, 1, treated, treated]), rtol=1e-4)
    assert decline(56.0, 7.0, untreated) > 15 > decline(56.0, 8.0, untreated) and decline(56.0, 10.0, 1.0) < 0
    np.testing.assert_allclose(150 + 0.3 * (56 - decline(56.0, 30.0, untreated)), 209, atol=1)


@pytest.fixture(scope="module")
def beating():
    """With and without the reflex: 1.6 s at rest, for SciPy; and 12 s with 20 mL/s lost after the first."""
    loss = Steps([0.0, 1.0, 9.0], [0.0, -20.0, 0.0])
    times = np.concatenate([np.arange(0.0, 1.7, 0.2), np.arange(11.0, 12.0, 0.02)])

    def run(model):
        model = replace(model, solver=replace(model.solver, max_steps=2**19))
        solve = jax.jit(lambda p: simulate(model, p, given(model, infusion=loss), times))
        return solve(model.params())

    return times, run(reflex_circulation), run(four_chambers)


def test_the_reflex_holds_the_pressure_that_a_loss_of_blood_would_cost(beating):
    """160 mL lost in eight seconds: less of a fall, a faster and stronger heart, narrower vessels."""
    times, closed, opened = beating
    late = times >= 11.0
    assert np.all(closed.outcome == 0) and np.all(opened.outcome == 0)
    assert np.mean(closed.output.pressure[late]) > np.mean(opened.output.pressure[late]) + 5.0
    assert closed.output.period[-1] < closed.output.period[0] - 0.05
    assert closed.output.Emax_lv[-1] > closed.output.Emax_lv[0]
    assert closed.output.resistance[-1] > closed.output.resistance[0]
    assert closed.output.unstressed[-1] < closed.output.unstressed[0]


def test_the_closed_loop_equals_its_equations_in_one_piece(beating):
    """SciPy's LSODA on both parts' drifts, joined by hand, over the first two beats."""
    times, closed, _ = beating
    p = reflex_circulation.params()
    heart0, reflex0 = four_chambers.init(p.circulation), baroreflex_chain.init(p.reflex)
    count = len(jax.tree.leaves(heart0))

    @jax.jit
    def rates(t, y):
        heart, reflex = type(heart0)(*y[:count]), type(reflex0)(*y[count:])
        u = given(baroreflex_chain, pressure=heart.V_sas / p.circulation.C_sas)
        told = baroreflex_chain.observe(t, reflex, u, p.reflex)
        driven = {
            "period": told.period,
            "Emax_lv": told.Emax_lv,
            "Emax_rv": told.Emax_rv,
            "R_sat": told.Rsp * told.Rep / (told.Rsp + told.Rep),
            "Vu_svn": told.Vu_sv + told.Vu_ev - p.vessels.Vu_rest,
        }
        bleeding = given(four_chambers, infusion=jnp.where(t >= 1.0, -20.0, 0.0))
        moved = four_chambers.drift(t, heart, bleeding, assign(p.circulation, driven))
        leaves = [*jax.tree.leaves(moved), *jax.tree.leaves(baroreflex_chain.drift(t, reflex, u, p.reflex))]
        return jnp.stack(leaves)

    y = np.array([float(v) for v in (*jax.tree.leaves(heart0), *jax.tree.leaves(reflex0))])
    found = []
    for start, stop in ((0.0, 1.0), (1.0, 1.6)):
        solved = solve_ivp(rates, (start, stop), y, "LSODA", [stop], rtol=1e-9, atol=1e-9, max_step=0.002)
        y = solved.y[:, -1]
        found.append(y[4] / float(p.circulation.C_sas))
    at = [int(np.argmin(np.abs(times - t))) for t in (1.0, 1.6)]
    np.testing.assert_allclose(closed.output.pressure[np.array(at)], found, atol=1e-3)
