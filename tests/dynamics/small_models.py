"""Models of one or two states, with known answers, for the tests of this folder."""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.signal import Input, delay, infuse, scale
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

TIGHT = Solver(rtol=1e-11, atol=1e-12)


class Params(eqx.Module):
    k: Scalar = param(0.3, "/h", lognormal(0.3, 0.5))
    V: Scalar = param(5.0, "L")
    F: Scalar = param(0.8, "1")
    lag: Scalar = param(0.25, "h")
    duration: Scalar = param(2.0, "h")
    sd: Scalar = param(0.1, "mg/L")


class Inputs(eqx.Module):
    iv: Input = var("mg/h", neutral=0.0)
    clearance_ratio: Input = var("1", neutral=1.0)


class State(eqx.Module):
    central: Scalar = var("mg")


class Outputs(eqx.Module):
    concentration: Scalar = var("mg/L")
    amount: Scalar = var("mg")


class ConcentrationOnly(eqx.Module):
    concentration: Scalar = var("mg/L")


def init(p):
    return State(central=0.0)


def drift(t, x, u, p):
    return State(central=u.iv - p.k * u.clearance_ratio * x.central)


def flow(dt, x, u, p):
    k = p.k * u.clearance_ratio
    return State(central=x.central * jnp.exp(-k * dt) + u.iv * filling(k, dt))


def observe(t, x, u, p):
    return Outputs(concentration=x.central / p.V, amount=x.central)


def noise(y, p):
    return additive(ConcentrationOnly(y.concentration), p) | {"amount": additive(y, p)["amount"]}


def late_infusion(u, p):
    """Lag, bioavailability and a modelled duration, all at once."""
    return Inputs(iv=infuse(scale(delay(u.iv, p.lag), p.F), p.duration), clearance_ratio=u.clearance_ratio)


def late_bolus(u, p):
    return Inputs(iv=scale(delay(u.iv, p.lag), p.F), clearance_ratio=u.clearance_ratio)


exact = Model("exact", Params, Inputs, init, drift, observe, noise, flow=flow)
stepped = replace(exact, name="stepped", flow=None, solver=TIGHT)


class OnlyTime(eqx.Module):
    """Inputs of a body that takes none: one that does nothing."""

    nothing: Input = var("1", neutral=0.0)


class StartParams(eqx.Module):
    start: Scalar = param(1.0, "1")
    sd: Scalar = param(0.1, "1")


class Level(eqx.Module):
    level: Scalar = var("1")


def start(p):
    return Level(level=p.start)


def square(t, x, u, p):
    return Level(level=x.level**2)


def see_level(t, x, u, p):
    return Level(level=x.level)


# x' = x^2 is 1 / (1 / x0 - t): it ends at t = 1 / x0.
blowing_up = Model("blowing_up", StartParams, OnlyTime, start, square, see_level, additive)
