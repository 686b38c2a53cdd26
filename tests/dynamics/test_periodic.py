"""Periodic states against a closed form, its derivatives, finite differences, and what is conserved."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.periodic import PeriodicOutcome, Search, periodic
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.models import left_heart, linear_health_sde, windkessel_2, windkessel_3_half_sine
from dtwin_jax.models.left_heart import Inputs, Params
from dtwin_jax.models.windkessel import HalfSineParams3, HeartInputs
from dtwin_jax.models.windkessel import Inputs as Inflow
from dtwin_jax.models.windkessel import Params as WindkesselParams

tight = replace(windkessel_3_half_sine, solver=Solver(rtol=1e-11, atol=1e-10))


def start_of_beat(p):
    """Exact pressure of the compliance at the start of ejection: a half sine through R and C."""
    tau, w = p.R * p.C, jnp.pi / p.ejection
    peak = w * p.stroke_volume / 2
    filled = peak / p.C * w * (1 + jnp.exp(-p.ejection / tau)) / (1 / tau**2 + w**2)
    return filled * jnp.exp(-(p.period - p.ejection) / tau) / (1 - jnp.exp(-p.period / tau))


def found(p):
    return periodic(tight, p, HeartInputs(), p.period)


def test_state_and_derivatives_equal_the_closed_form():
    """Forward, reverse, and in a batch of patients."""
    p = HalfSineParams3()
    many = jax.tree.map(lambda leaf: leaf * jnp.asarray([1.0, 1.1, 0.8]), p)

    @jax.jit
    def run(p):
        pressure = lambda p: found(p).state.Pc  # noqa: E731
        return jax.vmap(lambda p: (found(p), jax.jacfwd(pressure)(p), jax.grad(pressure)(p)))(p)

    result, forward, reverse = run(many)
    assert np.all(result.outcome == PeriodicOutcome.FOUND) and np.all(result.iterations < 10)
    np.testing.assert_allclose(result.state.Pc, jax.vmap(start_of_beat)(many), rtol=1e-8)
    wanted = jax.vmap(jax.grad(start_of_beat))(many)
    for name in ("R", "C", "stroke_volume", "ejection", "period"):
        exact = getattr(wanted, name)
        # The flow has a corner where ejection ends, at a time that these move: a step across it knows its
        # derivative no better.
        rtol = 2e-3 if name in ("ejection", "period") else 1e-7
        np.testing.assert_allclose(getattr(forward, name), exact, rtol=rtol, err_msg=name)
        np.testing.assert_allclose(getattr(reverse, name), exact, rtol=rtol, err_msg=name)
    # It does not matter where the body started, nor what is only observed.
    np.testing.assert_allclose(forward.P0, 0.0, atol=1e-12)
    assert np.all(forward.Rc == 0.0)


def test_derivative_along_the_samples_of_an_input():
    """Under a constant flow Q pressure is R Q, so its slopes along the samples of the flow add up to R."""
    p = WindkesselParams(R=1.3)
    model = replace(windkessel_2, solver=tight.solver)

    def pressure(value):
        flow = Inflow(Sampled([0.0, 0.2, 1.0], value))
        return periodic(model, p, flow, 1.0).state.Pc

    value, slopes = jax.jit(jax.value_and_grad(pressure))(jnp.full(3, 90.0))
    np.testing.assert_allclose([value, jnp.sum(slopes)], [1.3 * 90.0, 1.3], rtol=1e-9)
    assert np.all(slopes > 0)


@functools.cache
def heart():
    """(p) -> pulse pressure and the steady state's volume; and their derivatives."""
    model = replace(left_heart, solver=replace(left_heart.solver, rtol=1e-11, atol=1e-9))
    times = jnp.asarray([0.05, 0.27])

    def run(p):
        steady = periodic(model, p, Inputs(), p.period, search=Search(settle=3))
        start = Start(p, steady.state)
        low, high = simulate(started(model.differentiated("forward")), start, Inputs(), times).output.pressure
        return high - low, sum(jax.tree.leaves(steady.state)), steady.outcome

    return jax.jit(run), jax.jit(jax.jacfwd(lambda p: run(p)[:2]))


def test_slopes_of_a_rise_in_pressure_equal_finite_differences():
    """Late in ejection less just after its start, in the steady beat of the left heart."""
    p = Params()
    run, slopes = heart()
    rise, volume = slopes(p)
    for name in ("R_art", "C_art", "Eact_lv", "V_ven_start", "period"):
        value = getattr(p, name)
        step = 1e-4 * float(value)
        up, down = (run(assign(p, {name: value + change})) for change in (step, -step))
        assert up[2] == PeriodicOutcome.FOUND and down[2] == PeriodicOutcome.FOUND
        numeric = (up[0] - down[0]) / (2 * step)
        np.testing.assert_allclose(getattr(rise, name), numeric, rtol=1e-4, atol=1e-7, err_msg=name)
        # What the heart does moves no blood in or out.
        conserved = 1.0 if name == "V_ven_start" else 0.0
        np.testing.assert_allclose(getattr(volume, name), conserved, atol=1e-8, err_msg=name)


def test_volume_of_the_initial_state_is_kept():
    p = Params(V_ven_start=4000.0)
    _, volume, outcome = heart()[0](p)
    assert outcome == PeriodicOutcome.FOUND
    np.testing.assert_allclose(volume, 5200.0 + 219.6, rtol=1e-12)


def test_what_does_not_converge_is_told():
    p = HalfSineParams3()
    stopped = periodic(tight, p, HeartInputs(), p.period, search=Search(settle=0, iterations=1))
    assert stopped.outcome == PeriodicOutcome.NOT_CONVERGED and stopped.residual > 1
    assert (
        periodic(tight, assign(p, {"R": np.nan}), HeartInputs(), p.period).outcome == PeriodicOutcome.FAILED
    )


def test_a_model_with_noise_is_refused():
    with pytest.raises(ValueError, match="linear_health_sde is an SDE"):
        periodic(linear_health_sde, linear_health_sde.params(), linear_health_sde.inputs(), 1.0)
