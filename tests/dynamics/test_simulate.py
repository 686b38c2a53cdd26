"""Solvers against closed forms and tight references, and solves that fail."""

import functools
import json
from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import (
    Inputs,
    Level,
    OnlyTime,
    Params,
    StartParams,
    blowing_up,
    exact,
    stepped,
)

from dtwin_jax.core.predictor import PENALTY, log_likelihood
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import one_compartment

EXPLICIT, IMPLICIT = (diffrax.Tsit5, diffrax.Dopri8), (diffrax.Kvaerno5,)
run = functools.partial(jax.jit, static_argnums=0)(simulate)


class RobertsonParams(eqx.Module):
    a: Scalar = param(0.04, "/s")
    b: Scalar = param(1e4, "/s")
    c: Scalar = param(3e7, "/s")
    sd: Scalar = param(0.1, "1")


class Robertson(eqx.Module):
    y1: Scalar = var("1")
    y2: Scalar = var("1")
    y3: Scalar = var("1")


def robertson_start(p):
    return Robertson(y1=1.0, y2=0.0, y3=0.0)


def robertson_drift(t, x, u, p):
    first, second, third = p.a * x.y1, p.b * x.y2 * x.y3, p.c * x.y2**2
    return Robertson(y1=second - first, y2=first - second - third, y3=third)


def see(t, x, u, p):
    return x


robertson = Model(
    "robertson", RobertsonParams, OnlyTime, robertson_start, robertson_drift, see, additive, time="s"
)


@pytest.mark.parametrize("method", EXPLICIT + IMPLICIT)
def test_methods_agree_where_nothing_is_stiff(method):
    """Closed form of one compartment."""
    model = replace(stepped, solver=Solver(method, rtol=1e-9, atol=1e-10))
    times = np.array([1.0, 2.0, 9.0])
    found = run(model, Params(k=0.3), Inputs(iv=Doses([0.0], [100.0])), times)
    np.testing.assert_allclose(found.state.central, 100 * np.exp(-0.3 * times), rtol=1e-6)
    assert found.outcome == Outcome.SOLVED and found.steps > 0


@pytest.mark.parametrize("method", EXPLICIT + IMPLICIT)
def test_methods_agree_on_a_stiff_problem(method, shared):
    """Robertson's reaction against Radau at 1e-12; explicit methods to its first time, implicit to 4000 s."""
    case = json.loads(shared("reference/cases/3_numerics/ivp_reference.json").read_text())["cases"]["rober"]
    count = 1 if method in EXPLICIT else 3
    # One tolerance for each state: the second is some 1e-5.
    model = replace(robertson, solver=Solver(method, rtol=1e-7, atol=(1e-9, 1e-13, 1e-9)))
    found = run(model, RobertsonParams(), OnlyTime(), np.asarray(case["times"][:count], float))
    assert found.outcome == Outcome.SOLVED
    wanted = np.array(case["reference"][:count]).T
    np.testing.assert_allclose(jnp.stack(jax.tree.leaves(found.state)), wanted, rtol=1e-5)


def test_a_caller_can_override_tolerance_solver_and_adjoint():
    """Looser tolerance, fewer steps; forward derivatives through an adjoint chosen by the caller."""
    times, u = np.array([40.0]), Inputs(iv=Doses([0.0], [100.0]))
    loose = replace(stepped, solver=Solver(rtol=1e-3, atol=1e-3))
    assert run(loose, Params(), u, times).steps < run(stepped, Params(), u, times).steps / 3

    forward = replace(stepped, solver=replace(stepped.solver, adjoint=diffrax.ForwardMode()))

    def seen(p):
        return simulate(forward, p, u, times).state.central[0]

    slope = jax.jit(jax.jacfwd(seen))(Params(k=0.3)).k
    np.testing.assert_allclose(slope, -40 * 100 * np.exp(-0.3 * 40), rtol=1e-6)


def test_running_out_of_steps_is_told_and_keeps_what_was_solved():
    """The first piece is easy; the second, with a thousandfold elimination, takes more steps than allowed."""
    from dtwin_jax.core.signal import Steps

    model = replace(stepped, solver=Solver(max_steps=40))
    u = Inputs(iv=Doses([0.0], [100.0]), clearance_ratio=Steps([0.0, 5.0], [1.0, 1e4]))
    times = np.array([1.0, 4.0, 5.0, 30.0, 40.0])
    found = run(model, Params(k=0.3), u, times)
    assert found.outcome == Outcome.MAX_STEPS
    np.testing.assert_allclose(found.state.central[:3], 100 * np.exp(-0.3 * times[:3]), rtol=1e-4)
    assert np.all(np.isnan(found.state.central[3:])) and np.all(np.isnan(found.output.concentration[3:]))


def test_a_blow_up_is_told_and_values_before_it_are_kept():
    """x' = x^2 from 1 is 1 / (1 - t), which ends at 1."""
    times = np.array([0.5, 0.9, 1.1, 2.0])
    found = run(blowing_up, StartParams(start=1.0), OnlyTime(), times)
    assert found.outcome != Outcome.SOLVED
    np.testing.assert_allclose(found.state.level[:2], [2.0, 10.0], rtol=1e-3)
    assert np.all(np.isnan(found.state.level[2:]))


def test_a_blow_up_costs_a_finite_penalty_and_has_a_finite_gradient():
    record = Record(OnlyTime(), {"level": Series([0.5, 2.0], [2.1, 5.0])})

    def total(p):
        return jnp.sum(log_likelihood(blowing_up, p, record)["level"])

    value, gradient = jax.jit(jax.value_and_grad(total))(StartParams(start=1.0, sd=0.1))
    assert np.isfinite(value) and value < PENALTY / 2
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))


def linear(t, x, u, p):
    return Level(level=-x.level)


def test_a_model_with_a_diffusion_says_what_it_needs():
    noisy = replace(
        blowing_up, name="noisy", drift=linear, diffusion=linear, solver=Solver(diffrax.Euler, dt=0.1)
    )
    with pytest.raises(ValueError, match=r"noisy has a diffusion: simulate needs key=jax.random.key"):
        simulate(noisy, StartParams(), OnlyTime(), np.array([1.0]))
    with pytest.raises(ValueError, match="noisy has a diffusion: its Solver needs a fixed step, dt"):
        bare = replace(noisy, solver=Solver(diffrax.Euler))
        simulate(bare, StartParams(), OnlyTime(), np.array([1.0]), key=jax.random.key(0))


@pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])
def test_no_times_give_no_values(model):
    found = run(model, Params(), Inputs(iv=Doses([0.0], [100.0])), np.zeros(0))
    assert found.state.central.shape == (0,) and found.outcome == Outcome.SOLVED


@pytest.mark.parametrize("model", [exact, stepped], ids=["flow", "solver"])
def test_a_patient_without_doses_stays_empty(model):
    found = run(model, Params(), Inputs(iv=Doses([], [])), np.array([0.0, 5.0]))
    assert np.all(np.asarray(found.state.central) == 0.0)


def test_nothing_is_known_before_the_start():
    """The state before `t0` is no part of a record."""
    trajectory = simulate(
        one_compartment, one_compartment.params(), one_compartment.inputs(), np.array([-1.0, 0.0])
    )
    assert np.isnan(trajectory.output.concentration).tolist() == [True, False]
