"""Strong orders of methods for SDEs on geometric Brownian motion, and the exact bias of Euler's."""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver

RATE, SPREAD, START, PATHS = 0.3, 0.5, 1.5, 4000
KEYS = jax.random.split(jax.random.key(0), PATHS)
STEPS = (16, 64, 256)


class Params(eqx.Module):
    rate: Scalar = param(RATE, "/h")
    spread: Scalar = param(SPREAD, "1")
    sd: Scalar = param(0.1, "1")


class Nothing(eqx.Module):
    pass


class Level(eqx.Module):
    level: Scalar = var("1")


GEOMETRIC = Model(
    name="geometric",
    params=Params,
    inputs=Nothing,
    init=lambda p: Level(level=START),
    drift=lambda t, x, u, p: Level(level=p.rate * x.level),
    observe=lambda t, x, u, p: Level(level=x.level),
    noise=additive,
    diffusion=lambda t, x, u, p: Level(level=p.spread * x.level),
)
# The Brownian motion itself, of the same key.
MOTION = replace(
    GEOMETRIC,
    init=lambda p: Level(level=0.0),
    drift=lambda t, x, u, p: Level(level=0.0 * x.level),
    diffusion=lambda t, x, u, p: Level(level=1.0 + 0.0 * x.level),
)


def at_time(model, time):
    """The level of every path then."""

    def one(key):
        return simulate(model, Params(), Nothing(), np.array([time]), key=key).output.level[0]

    return np.asarray(jax.jit(jax.vmap(one))(KEYS))


def ends(model, method, steps):
    return at_time(replace(model, solver=Solver(method, dt=1.0 / steps)), 1.0)


@pytest.fixture(scope="module")
def motion():
    return ends(MOTION, diffrax.Euler, STEPS[0])


@pytest.mark.parametrize(
    ("method", "order", "margin", "ito"),
    [
        (diffrax.Euler, 0.5, 0.1, True),
        (diffrax.ItoMilstein, 1.0, 0.12, True),
        (diffrax.Heun, 1.0, 0.15, False),
    ],
)
def test_strong_order_is_that_of_the_method(motion, method, order, margin, ito):
    # Of one path whatever the step: the exact solution is a function of where the motion ends.
    drift = RATE - 0.5 * SPREAD**2 if ito else RATE
    exact = START * np.exp(drift + SPREAD * motion)
    errors = [np.mean(np.abs(ends(GEOMETRIC, method, steps) - exact)) for steps in STEPS]
    slope = np.polyfit(np.log2(STEPS), np.log2(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=margin)
    if not ito:
        # Heun's method solves the equation in the sense of Stratonovich, whose mean is another.
        assert np.mean(exact) == pytest.approx(START * np.exp(RATE + 0.5 * SPREAD**2), rel=0.03)


def test_mean_of_euler_is_that_of_the_discretised_equation():
    # E of the discretised equation is START (1 + rate h)^n without error, so this tests it, not its limit.
    for steps in (4, 16):
        found = ends(GEOMETRIC, diffrax.Euler, steps)
        error = 4 * np.std(found) / np.sqrt(PATHS)
        assert np.mean(found) == pytest.approx(START * (1 + RATE / steps) ** steps, abs=error)
        square = ((1 + RATE / steps) ** 2 + SPREAD**2 / steps) ** steps * START**2
        assert np.mean(found**2) == pytest.approx(square, abs=4 * np.std(found**2) / np.sqrt(PATHS))


def test_stationary_variance_of_euler_has_its_exact_bias():
    pull, spread, h = 1.2, 0.6, 0.25
    model = replace(
        GEOMETRIC,
        init=lambda p: Level(level=2.0),
        drift=lambda t, x, u, p: Level(level=pull * (2.0 - x.level)),
        diffusion=lambda t, x, u, p: Level(level=spread + 0.0 * x.level),
        solver=Solver(diffrax.Euler, dt=h),
    )
    found = at_time(model, 6.0)
    exact = spread**2 * h / (1.0 - (1.0 - pull * h) ** 2)
    assert exact > 1.15 * spread**2 / (2 * pull)
    assert np.var(found) == pytest.approx(exact, rel=4 * np.sqrt(2 / PATHS))
    assert np.mean(found) == pytest.approx(2.0, abs=4 * np.sqrt(exact / PATHS))


def test_one_key_is_one_path_at_any_step(motion):
    np.testing.assert_allclose(ends(MOTION, diffrax.Euler, 64), motion, atol=1e-10)
    assert np.mean(motion) == pytest.approx(0.0, abs=4 / np.sqrt(PATHS))
    assert jnp.var(motion) == pytest.approx(1.0, abs=4 * np.sqrt(2 / PATHS))
