"""Events against a closed form written here in NumPy: boluses, infusions and steps, where they are."""

import functools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TIGHT, Inputs, Params, exact, late_bolus, late_infusion, stepped

from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.core.signal import Doses, Input, Sampled, Steps, delay
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.dosing import cut
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import one_compartment

K = 0.3
both_paths = pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])


@functools.partial(jax.jit, static_argnums=0)
def amounts(model, p, u, times, after, t0):
    return simulate(model, p, u, times, after=after, t0=t0).state.central


def closed_form(doses, t, after, k=K):
    """Amount at `t`: what each dose left, one after the other."""
    total = 0.0
    for start, amount, duration in doses:
        if duration == 0:
            given = start < t or (after and start == t)
            total += amount * np.exp(-k * (t - start)) if given else 0.0
        elif t > start:
            stop = min(t, start + duration)
            total += amount / duration / k * (np.exp(-k * (t - stop)) - np.exp(-k * (t - start)))
    return total


# Four doses and six times each, so that all share one compilation.
SCENARIOS = {
    "observation at the time of a dose": ([(0, 100, 0), (6, 80, 0), (6.5, 0, 0), (6.5, 0, 0)], 0.0),
    "several doses at one time": ([(2, 50, 0), (2, 30, 0), (2, 40, 1.5), (2, 5, 0)], 0.0),
    "dose at the start": ([(1.5, 100, 0), (1.5, 20, 3), (9, 0, 0), (9, 0, 0)], 1.5),
    "doses after the last observation": ([(0, 100, 0), (50, 100, 0), (50, 100, 3), (60, 1, 0)], 0.0),
    "overlapping infusions and a bolus": ([(0, 100, 4), (2, 50, 4), (3, 20, 0), (3.5, 10, 0.5)], 0.0),
    "an infusion that outlasts the record": ([(0, 100, 40), (0, 0, 0), (0, 0, 0), (0, 0, 0)], 0.0),
}
TIMES = np.array([2.0, 2.0, 4.0, 6.0, 6.0, 10.0])
AFTER = np.array([False, True, False, False, True, True])


@both_paths
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_events_equal_the_closed_form(model, scenario):
    doses, t0 = SCENARIOS[scenario]
    u = Inputs(iv=Doses(*np.array(doses, float).T))
    found = amounts(model, Params(k=K), u, TIMES, AFTER, np.asarray(t0))
    wanted = [closed_form(doses, t, after) for t, after in zip(TIMES, AFTER, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


@both_paths
def test_constant_inflow_needs_no_event(model):
    """Closed form of a constant inflow."""
    found = amounts(model, Params(k=K), Inputs(iv=7.0), TIMES, AFTER, np.asarray(0.0))
    np.testing.assert_allclose(found, 7.0 / K * (1 - np.exp(-K * TIMES)), rtol=1e-9)


@both_paths
def test_steps_of_a_covariate_split_the_solve(model):
    """Elimination that changes at known times: the exponents add up."""
    starts, levels = np.array([0.0, 4.0, 7.0]), np.array([1.0, 2.5, 0.5])
    u = Inputs(iv=Doses([0.0], [100.0]), clearance_ratio=Steps(starts, levels))
    spent = np.array([np.sum(np.diff(np.clip(np.append(starts, 1e9), 0, t)) * levels) for t in TIMES])
    found = amounts(model, Params(k=K), u, TIMES, AFTER, np.asarray(0.0))
    np.testing.assert_allclose(found, 100 * np.exp(-K * spent), rtol=1e-9)

    def last(when):
        moved = eqx.tree_at(lambda u: u.clearance_ratio.time, u, jnp.stack([starts[0], when, starts[2]]))
        return amounts(model, Params(k=K), moved, TIMES, AFTER, np.asarray(0.0))[-1]

    # Each hour that the faster elimination starts later spares k (2.5 - 1).
    np.testing.assert_allclose(jax.grad(last)(4.0), K * 1.5 * found[-1], rtol=1e-8)


def test_sampled_inputs_are_solved_even_where_there_is_a_flow():
    """Trapezia under a straight line are exact; the flow would have held the value."""
    knots, levels = np.array([0.0, 3.0, 8.0]), np.array([1.0, 2.0, 0.4])
    u = Inputs(iv=Doses([0.0], [100.0]), clearance_ratio=Sampled(knots, levels))
    fine = np.linspace(0, 10, 100_001)
    area = np.concatenate(
        [[0], np.cumsum(np.diff(fine) * np.convolve(np.interp(fine, knots, levels), [0.5, 0.5], "valid"))]
    )
    found = amounts(replace(exact, solver=TIGHT), Params(k=K), u, TIMES, AFTER, np.asarray(0.0))
    np.testing.assert_allclose(found, 100 * np.exp(-K * np.interp(TIMES, fine, area)), rtol=1e-8)


# Gradients: lag, bioavailability and duration against the derivative of the closed form.


def infused(p, t):
    running = p.F * 100.0 / p.duration / p.k * (1 - jnp.exp(-p.k * (t - p.lag)))
    done = p.F * 100.0 / p.duration / p.k * (jnp.exp(p.k * p.duration) - 1) * jnp.exp(-p.k * (t - p.lag))
    return jnp.where(t < p.lag + p.duration, running, done)


def given_at_once(p, t):
    return p.F * 100.0 * jnp.exp(-p.k * (t - p.lag))


@both_paths
@pytest.mark.parametrize(
    ("dosing", "answer"), [(late_infusion, infused), (late_bolus, given_at_once)], ids=["infusion", "bolus"]
)
def test_gradients_of_a_schedule_are_exact(model, dosing, answer):
    model = replace(model, dosing=dosing)
    p, u, times = Params(), Inputs(iv=Doses([0.0], [100.0])), jnp.asarray([1.0, 5.0])

    def seen(model, p):
        return simulate(model, p, u, times).state.central

    found, forward = jax.jit(
        lambda p: (seen(model, p), jax.jacfwd(functools.partial(seen, model.differentiated("forward")))(p))
    )(p)
    reverse = jax.jit(jax.jacrev(functools.partial(seen, model.differentiated("reverse"))))(p)
    np.testing.assert_allclose(found, answer(p, times), rtol=1e-9)
    wanted = jax.jacfwd(lambda p: answer(p, times))(p)
    for name in ("k", "F", "lag", "duration"):
        step, value = 1e-5, getattr(p, name)
        up, down = (answer(assign(p, {name: value + h}), times) for h in (step, -step))
        np.testing.assert_allclose(getattr(wanted, name), (up - down) / (2 * step), rtol=1e-6, atol=1e-7)
        for way in (forward, reverse):
            np.testing.assert_allclose(
                getattr(way, name), getattr(wanted, name), rtol=1e-7, atol=1e-9, err_msg=name
            )


# A bolus reaches every state that its input moves, through whatever stands between.


class SplitParams(eqx.Module):
    share: Scalar = param(0.3, "1")
    fast: Scalar = param(2.0, "/h")
    slow: Scalar = param(0.1, "/h")
    sd: Scalar = param(0.1, "mg")


class SplitInputs(eqx.Module):
    dose: Input = var("mg/h", neutral=0.0)


class Split(eqx.Module):
    fast: Scalar = var("mg")
    slow: Scalar = var("mg")


def split_drift(t, x, u, p):
    at_once, slowly = p.share * u.dose, (1 - p.share) * u.dose
    return Split(fast=at_once - p.fast * x.fast, slow=slowly - p.slow * x.slow)


def empty(p):
    return Split(fast=0.0, slow=0.0)


def see(t, x, u, p):
    return Split(fast=x.fast, slow=x.slow)


split = Model("split", SplitParams, SplitInputs, empty, split_drift, see, additive, solver=TIGHT)


@pytest.mark.parametrize("flow", [None, LinearFlow(split_drift)], ids=["solver", "matrix_exponential"])
def test_a_bolus_moves_every_state_that_its_input_moves(flow):
    """Closed form of two compartments that share the dose."""
    model, times = replace(split, flow=flow), np.array([1.0, 3.0])
    found = jax.jit(lambda p, u: simulate(model, p, u, times).state)(
        SplitParams(), SplitInputs(Doses([1.0], [10.0]))
    )
    np.testing.assert_allclose(found.fast, [0.0, 3.0 * np.exp(-4.0)], rtol=1e-8, atol=1e-14)
    np.testing.assert_allclose(found.slow, [0.0, 7.0 * np.exp(-0.2)], rtol=1e-8, atol=1e-14)


def test_pieces_are_sorted_and_stay_inside_the_solve():
    """Property of the cut: sorted, from start to end, every bolus once."""
    u = Inputs(iv=Doses([-1.0, 2.0, 2.0, 30.0], [1.0, 2.0, 4.0, 8.0], [0.0, 0.0, 3.0, 0.0]))
    pieces = cut(u, jnp.asarray(0.0), jnp.asarray(10.0))
    bounds = np.asarray(pieces.bounds)
    assert bounds[0] == 0 and bounds[-1] == 10 and np.all(np.diff(bounds) >= 0)
    assert np.sum(pieces.amount["iv"]) == 1.0 + 2.0 + 8.0


def test_gradients_by_the_times_of_a_sampled_signal_equal_finite_differences():
    """A sampled rate given later by the lag: forward mode against central differences."""
    u = Inputs(iv=Sampled([0.0, 1.0, 2.0, 5.0], [0.0, 8.0, 1.0, 0.0]))
    late = replace(stepped, name="late", dosing=lambda u, p: Inputs(delay(u.iv, p.lag), u.clearance_ratio))

    @jax.jit
    def amounts(lag):
        p = assign(Params(), {"lag": lag})
        return simulate(late.differentiated("forward"), p, u, np.array([1.5, 3.0, 8.0])).output.amount

    found = jax.jit(jax.jacfwd(amounts))(0.25)
    numeric = (amounts(0.25 + 1e-5) - amounts(0.25 - 1e-5)) / 2e-5
    np.testing.assert_allclose(found, numeric, rtol=1e-6)


@both_paths
def test_an_infusion_that_ends_as_the_next_starts_moves_what_it_should(model):
    """By its duration, and by the start of the next: against central differences across the tie."""
    times = jnp.array([1.0, 3.5, 6.0, 9.0])

    def seen(model, end, start):
        iv = Doses(
            jnp.stack([jnp.zeros(()), start]), jnp.array([10.0, 30.0]), jnp.stack([end, 2.0 + 0 * end])
        )
        return simulate(model, model.params(), Inputs(iv, 1.0), times).output.concentration

    at = jnp.asarray(3.0), jnp.asarray(3.0)
    slopes = jax.jacfwd(functools.partial(seen, model.differentiated("forward")), argnums=(0, 1))(*at)
    for i, slope in enumerate(slopes):
        up, down = (seen(model, *(x + h * (i == j) for j, x in enumerate(at))) for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-7)


def test_a_measurement_at_the_end_of_an_infusion_does_not_move_with_it():
    """Into a depot, where the level moves smoothly with the end: the solver against central differences."""
    steps = replace(one_compartment, flow=None, solver=Solver(rtol=1e-10, atol=1e-12))

    def seen(model, end):
        given = model.inputs(oral=Doses(jnp.zeros(1), jnp.ones(1), jnp.broadcast_to(end, 1)))
        return simulate(model, model.params(), given, jnp.array([3.0])).output.concentration[0]

    slope = jax.jacfwd(functools.partial(seen, steps.differentiated("forward")))(3.0)
    numeric = (seen(one_compartment, 3.0 + 1e-5) - seen(one_compartment, 3.0 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
