"""A flow under a schedule in cycles against `simulate` of the patients one by one."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import Inputs, Params, State, exact, late_bolus, late_infusion

from dtwin_jax.core.quantity import replace_fields, var
from dtwin_jax.core.signal import Doses, Steps
from dtwin_jax.dynamics.cycles import cycles_of, schedule_of
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.simulate import Outcome, simulate

COUNT = 5
EVERY, LAST = 12.0, 96.0
DOSES = np.arange(6.0, LAST, EVERY)
TIMES = np.arange(-2.0, LAST + 2.0, 2.0)


def patients(count=COUNT, **fixed):
    """Parameters that all differ, besides those that are `fixed`."""
    p = jax.tree.map(lambda leaf: float(leaf) * (1 + 0.1 * jnp.arange(float(count))), Params())
    return replace(p, **{name: jnp.full(count, value) for name, value in fixed.items()})


def oral(duration=0.0):
    return Inputs(iv=Doses(DOSES, 10.0 + np.arange(len(DOSES)), duration), clearance_ratio=1.0)


def together(model, p, inputs, times, **kwargs):
    return simulate_cohort(model, p, inputs, times, in_axes=(0, None, None), **kwargs)


def one_by_one(model, p, inputs, times, **kwargs):
    return jax.vmap(lambda p: simulate(model, p, inputs, times, **kwargs))(p)


def fits(model, p, inputs, times, after=None):
    """Whether the schedule of every patient is in cycles."""
    cycles = cycles_of(inputs, times, after, 0.0)
    assert cycles is not None
    act = inputs if model.dosing is None else jax.vmap(lambda p: model.dosing(inputs, p))(p)
    axis = None if model.dosing is None else 0
    found = jax.vmap(lambda u, p: schedule_of(cycles, u, jnp.asarray(times), 0.0), in_axes=(axis, 0))(act, p)
    return np.asarray(found.fits)


def assert_same(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


BEFORE = np.zeros(len(TIMES), bool)
JUST_AFTER = np.isin(TIMES, DOSES[::2])
MODELS = {
    "bolus": (exact, oral(), JUST_AFTER),
    "infusions": (exact, oral(2.0), JUST_AFTER),
    "late bolus, some of it lost": (replace(exact, dosing=late_bolus), oral(), BEFORE),
    "clearance falls once": (
        exact,
        replace_fields(oral(), {"clearance_ratio": Steps([0.0, 30.0], [1.0, 0.4])}),
        ~BEFORE,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_cycles_are_what_simulate_finds(name):
    """Wanted before the start, before the first dose, at doses (before or just after them), and behind."""
    model, inputs, after = MODELS[name]
    p = patients()
    assert np.all(fits(model, p, inputs, TIMES, after))
    found = together(model, p, inputs, TIMES, after=after)
    wanted = one_by_one(model, p, inputs, TIMES, after=after)
    assert np.all(np.isnan(found.state.central) == (TIMES < 0)) and np.all(found.outcome == Outcome.SOLVED)
    assert_same((found.time, found.state, found.output), (wanted.time, wanted.state, wanted.output))


def test_doses_at_times_that_float32_rounds_are_given_when_they_are_due():
    """Every 0.7 h, wanted at doses and between them: 0.7 is not the same number in both precisions."""
    doses = 0.7 * np.arange(5)
    times = np.sort(np.concatenate([doses[1:], doses + 0.3]))
    with jax.enable_x64(False):
        p, inputs = patients(), Inputs(iv=Doses(doses, 10.0), clearance_ratio=1.0)
        assert cycles_of(inputs, times, None, 0.0) is not None
        found, wanted = (how(exact, p, inputs, times).output for how in (together, one_by_one))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_times_in_any_order_and_unevenly_apart():
    """Gaps of 1, 5 and 6 h, again and again, told backwards."""
    times = np.sort(np.concatenate([DOSES + 1.0, DOSES + 5.0, DOSES + 6.0]))[::-1]
    p = patients()
    assert np.all(fits(exact, p, oral(), times))
    assert_same(together(exact, p, oral(), times).output, one_by_one(exact, p, oral(), times).output)


def test_patients_whose_lag_crosses_a_wanted_time_are_solved_all_the_same():
    """A lag of 2.5 h, where times are 2 h apart, leaves the doses in other gaps than the schedule says."""
    model = replace(exact, dosing=late_bolus)
    p = replace(patients(), lag=jnp.array([0.0, 0.5, 1.9, 2.0, 2.5]))
    np.testing.assert_array_equal(fits(model, p, oral(), TIMES), [True, True, True, False, False])
    assert_same(together(model, p, oral(), TIMES).output, one_by_one(model, p, oral(), TIMES).output)
    assert not np.any(fits(replace(exact, dosing=late_infusion), patients(), oral(), TIMES))


def test_events_that_dosing_adds_are_not_passed_over():
    """Clearance falls at a time that only `dosing` knows of."""
    falls = Steps([0.0, 31.0], [1.0, 0.4])
    model = replace(exact, dosing=lambda u, p: replace_fields(u, {"clearance_ratio": falls}))
    told = replace_fields(oral(), {"clearance_ratio": falls})
    p = patients()
    assert cycles_of(oral(), TIMES, None, 0.0) is not None
    assert_same(together(model, p, oral(), TIMES).output, one_by_one(exact, p, told, TIMES).output)


def test_a_flow_that_is_not_linear():
    """x' = u - k x^2: the flow x / (1 + k x t) holds where nothing runs in."""
    model = replace(
        exact,
        drift=lambda t, x, u, p: State(central=u.iv - p.k * x.central**2),
        flow=lambda dt, x, u, p: State(central=x.central / (1 + p.k * x.central * dt)),
    )
    p = patients()
    assert np.all(fits(model, p, oral(), TIMES))
    assert_same(together(model, p, oral(), TIMES).output, one_by_one(model, p, oral(), TIMES).output)


class Chain(eqx.Module):
    chain: jax.Array = var("mg")


def test_a_vector_among_the_states():
    matrix = jnp.array([[-0.5, 0.0, 0.0], [0.5, -0.3, 0.1], [0.0, 0.2, -0.1]])

    def drift(t, x, u, p):
        return Chain(chain=p.k * (matrix @ x.chain) + u.iv * jnp.array([1.0, 0.0, 0.0]))

    model = replace(
        exact,
        init=lambda p: Chain(chain=jnp.zeros(3)),
        drift=drift,
        flow=LinearFlow(drift),
        observe=lambda t, x, u, p: Chain(chain=x.chain / p.V),
    )
    p = patients(2)
    found, wanted = together(model, p, oral(2.0), TIMES), one_by_one(model, p, oral(2.0), TIMES)
    assert found.state.chain.shape == (2, len(TIMES), 3)
    assert_same((found.state, found.output), (wanted.state, wanted.output))


def test_derivatives_are_those_of_each_dose_and_time():
    """Of lag and bioavailability through the cycles; of doses and times, which are equal and move apart."""
    model, p, inputs = replace(exact, dosing=late_bolus), patients(lag=0.4), oral()
    direction = jax.tree.map(jnp.ones_like, p)

    def moved(run):
        return jax.jvp(lambda p: run(model, p, inputs, TIMES).output.amount, (p,), (direction,))[1]

    found, wanted = moved(together), moved(one_by_one)
    assert np.all(np.isfinite(found[:, TIMES >= 0]))
    assert_same(found, wanted)

    def total(run, p, dose, amount, times):
        u = Inputs(iv=Doses(dose, amount), clearance_ratio=1.0)
        return jnp.sum(run(model, p, u, times).output.amount)

    given = p, jnp.asarray(DOSES), 10.0 + jnp.arange(float(len(DOSES))), jnp.asarray(TIMES[TIMES >= 0])
    found, wanted = (
        jax.grad(lambda *each, run=run: total(run, *each), argnums=(0, 1, 2, 3))(*given)
        for run in (together, one_by_one)
    )
    assert_same(found, wanted)
    by_lag = jax.grad(lambda p: total(together, p, DOSES, 10.0 + np.arange(len(DOSES)), given[3]))(p).lag
    np.testing.assert_allclose(by_lag, wanted[0].lag, rtol=1e-12)


def test_schedules_that_do_not_repeat_or_are_not_known_have_no_cycles():
    u, scattered = oral(), np.sort(np.random.default_rng(0).uniform(0.0, LAST, len(TIMES)))
    assert cycles_of(u, scattered, None, 0.0) is None
    assert cycles_of(u, TIMES[:0], None, 0.0) is None
    assert cycles_of(u, TIMES, None, 20.0) is None
    assert cycles_of(Inputs(iv=1.0, clearance_ratio=1.0), TIMES, None, 0.0) is None
    assert cycles_of(u, np.stack([TIMES, TIMES]), None, 0.0) is None
    assert cycles_of(u, TIMES[TIMES < DOSES[1]], None, 0.0) is None
    jax.make_jaxpr(lambda times: jnp.zeros(0 if cycles_of(u, times, None, 0.0) is None else 1))(TIMES)
    known = jax.eval_shape(lambda k: jnp.zeros(0 if cycles_of(u, TIMES, None, 0.0) is None else 1) * k, 1.0)
    assert known.shape == (1,)
