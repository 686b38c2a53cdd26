"""A cohort solved in lanes against `simulate` of its patients one by one."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TIGHT, Inputs, OnlyTime, Params, StartParams, blowing_up, exact, stepped

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Doses, Sampled, Steps
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import minimal_model
from dtwin_jax.models.minimal_model import Inputs as Insulin

COUNT = 11
TIMES = np.array([0.5, 1.0, 2.0, 2.0, 3.7, 6.0, 11.0, 24.0])


def tree(p, count=COUNT, spread=0.15):
    """Parameters of patients who need unlike numbers of steps."""
    return jax.tree.map(lambda leaf: float(leaf) * (1 + spread * jnp.arange(float(count))), p)


def doses():
    """For every patient a bolus, an infusion and a bolus that shares its time with the infusion's end."""
    when = np.array([0.0, 2.0, 3.0]) + np.linspace(0.0, 1.0, COUNT)[:, None]
    return Inputs(
        iv=eqx.filter_vmap(Doses)(when, np.full((COUNT, 3), 10.0), np.tile([0.0, 1.0, 0.0], (COUNT, 1))),
        clearance_ratio=jax.vmap(Steps)(when[:, :2] + 4.0, jnp.tile(jnp.array([1.0, 1.5]), (COUNT, 1))),
    )


def one_by_one(model, p, inputs, times, **kwargs):
    return jax.vmap(lambda p, u: simulate(model, p, u, times, **kwargs))(p, inputs)


@pytest.mark.parametrize("method", [diffrax.Tsit5, diffrax.Dopri5, diffrax.Bosh3])
def test_doses_infusions_and_steps_are_met_exactly(method):
    """Before and after an event, at the very start, before it, and behind the last one."""
    model = replace(stepped, solver=replace(TIGHT, method=method, rtol=1e-9, atol=1e-11))
    p, inputs = tree(Params()), doses()
    times = np.array([-1.0, 0.0, 0.0, 2.0, 2.0, 3.0, 3.0, 5.0, 4.4, 30.0])
    after = np.array([False, False, True, False, True, False, True, True, False, False])
    found = simulate_cohort(model, p, inputs, times, in_axes=(0, 0, None), after=after)
    wanted = one_by_one(exact, p, inputs, times, after=after)
    for part, value in values(wanted.output).items():
        np.testing.assert_allclose(getattr(found.output, part), value, rtol=1e-6, atol=1e-8)
    assert np.all(np.isnan(found.state.central[:, 0])) and np.all(found.outcome == Outcome.SOLVED)
    np.testing.assert_array_equal(found.time, np.tile(times, (COUNT, 1)))


def test_lanes_and_blocks_change_nothing():
    """Two lanes for eleven patients, blocks of four: each waits for its turn, and is solved as if alone."""
    p, inputs = tree(Params()), doses()
    model = replace(stepped, solver=Solver())
    whole = simulate_cohort(model, p, inputs, TIMES, in_axes=(0, 0, None))
    narrow = simulate_cohort(model, p, inputs, TIMES, in_axes=(0, 0, None), lanes=2, block=4)
    np.testing.assert_allclose(narrow.state.central, whole.state.central, rtol=1e-12)
    np.testing.assert_array_equal(narrow.steps, whole.steps)
    assert len(np.unique(whole.steps)) > 1


def test_more_wanted_times_than_a_step_holds():
    """A thousand times in a solve of few steps: steps are repeated until all are told."""
    times = np.linspace(0.0, 2.0, 1000)
    p, inputs = tree(Params(), 5), Inputs(iv=1.0, clearance_ratio=1.0)
    found = simulate_cohort(replace(stepped, solver=TIGHT), p, inputs, times, in_axes=(0, None, None))
    wanted = jax.vmap(lambda p: simulate(exact, p, inputs, times))(p)
    np.testing.assert_allclose(found.state.central, wanted.state.central, rtol=1e-9, atol=1e-12)
    assert np.all(found.steps < 100)


def test_own_times_and_starts():
    p, insulin = tree(minimal_model.params(), spread=0.02), Sampled([0.0, 10.0, 60.0], [4.5, 80.0, 6.0])
    times, t0 = (
        jnp.linspace(1.0, 90.0, 7)[None] + jnp.arange(float(COUNT))[:, None],
        1.5 * jnp.arange(float(COUNT)),
    )
    tight = replace(minimal_model, solver=TIGHT)
    found = simulate_cohort(tight, p, Insulin(insulin=insulin), times, in_axes=(0, None, 0), t0=t0)
    wanted = jax.vmap(lambda p, t, t0: simulate(tight, p, Insulin(insulin=insulin), t, t0=t0))(p, times, t0)
    assert np.all(np.isnan(found.output.glucose) == (times < t0[:, None]))
    np.testing.assert_allclose(found.output.glucose, wanted.output.glucose, rtol=1e-8)


def test_a_patient_who_fails_is_told_and_harms_nobody():
    """x' = x^2 runs off at 1 / x(0); those who stay finite are solved beside it."""
    p = jax.tree.map(lambda leaf: jnp.full(4, float(leaf)), StartParams())
    p = replace(p, start=jnp.array([0.1, 1.0, 0.2, 0.3]))
    times = np.array([0.25, 0.75, 1.5])
    found = simulate_cohort(blowing_up, p, OnlyTime(), times, in_axes=(0, None, None))
    np.testing.assert_array_equal(found.outcome == Outcome.SOLVED, [True, False, True, True])
    wanted = 1 / (1 / np.asarray(p.start)[:, None] - times)
    wanted[1, 2] = np.nan
    np.testing.assert_allclose(found.state.level, wanted, rtol=1e-5)


def test_too_many_steps_are_told():
    model = replace(stepped, solver=replace(TIGHT, max_steps=3))
    found = simulate_cohort(model, tree(Params()), doses(), TIMES, in_axes=(0, 0, None))
    assert np.all(found.outcome == Outcome.MAX_STEPS) and np.all(np.isnan(found.state.central[:, -1]))


def test_forward_derivatives_are_those_of_simulate():
    p, inputs = tree(Params()), doses()
    model = replace(stepped, solver=TIGHT)

    def moved(k, run):
        return run(replace(p, k=p.k * k))

    lanes = lambda p: simulate_cohort(model, p, inputs, TIMES, in_axes=(0, 0, None)).output.amount  # noqa: E731
    alone = lambda p: one_by_one(exact, p, inputs, TIMES).output.amount  # noqa: E731
    found, wanted = (jax.jvp(lambda k, run=run: moved(k, run), (1.0,), (1.0,))[1] for run in (lanes, alone))
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)


def test_another_size_of_cohort_compiles_nothing():
    model = replace(stepped, solver=Solver(rtol=1e-5))
    inputs = Inputs(iv=1.0, clearance_ratio=1.0)

    def run(count):
        p = tree(Params(), count, 0.01)
        return simulate_cohort(model, p, inputs, TIMES, in_axes=(0, None, None))

    assert run(40).state.central.shape == (40, len(TIMES))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    )
    p = jax.tree.map(np.asarray, tree(Params(), 38, 0.01))
    jax.block_until_ready(p)
    compiled.clear()
    found = simulate_cohort(model, p, inputs, TIMES, in_axes=(0, None, None))
    assert found.state.central.shape == (38, len(TIMES)) and not compiled
    run(41)
    assert compiled


def test_models_with_a_flow_or_a_diffusion_take_their_own_path():
    p, inputs = tree(Params()), doses()
    found = simulate_cohort(exact, p, inputs, TIMES, in_axes=(0, 0, None))
    np.testing.assert_allclose(
        found.state.central, one_by_one(exact, p, inputs, TIMES).state.central, rtol=1e-13
    )
    assert np.all(found.steps == 0)
    noisy = replace(
        stepped,
        diffusion=lambda t, x, u, p: replace(x, central=jnp.asarray(0.1)),
        solver=Solver(diffrax.Euler, dt=0.1),
    )
    with pytest.raises(ValueError, match="key"):
        simulate_cohort(noisy, p, inputs, TIMES, in_axes=(0, 0, None))
    walk = simulate_cohort(noisy, p, inputs, TIMES, in_axes=(0, 0, None), key=jax.random.key(0))
    assert np.all(np.isfinite(walk.state.central)) and len(np.unique(walk.state.central[:, -1])) == COUNT


def test_axes_that_do_not_fit_are_refused():
    inputs = Inputs(iv=1.0, clearance_ratio=1.0)
    with pytest.raises(ValueError, match=r"sizes \[3, 4\]"):
        simulate_cohort(
            stepped, replace(tree(Params(), 3), k=jnp.ones(4)), inputs, TIMES, in_axes=(0, None, None)
        )
    with pytest.raises(ValueError, match=r"sizes \[\]"):
        simulate_cohort(stepped, Params(), inputs, TIMES, in_axes=(None, None, None))
    # A struct of inputs makes a number of an axis.
    with pytest.raises(ValueError, match=r"sizes \[3, 4\]"):
        simulate_cohort(
            stepped,
            tree(Params(), 3),
            tree(inputs, 4),
            TIMES,
            in_axes=(0, Inputs(iv=0, clearance_ratio=0), None),
        )
    with pytest.raises(ValueError, match="wanted 0"):
        simulate_cohort(stepped, tree(Params(), 3), inputs, TIMES, in_axes=(1, None, None))
