"""A model that ends: x' = x^2 is 1 / (1 / x0 - t), which is no number from t = 1 / x0 on."""

import equinox as eqx

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver


class Params(eqx.Module):
    start: Scalar = param(0.5, "1", lognormal(0.5, 0.1))
    sd: Scalar = param(0.1, "1", lognormal(0.1, 0.5))


class Inputs(eqx.Module):
    pass


class Level(eqx.Module):
    level: Scalar = var("1")


runaway = Model(
    name="runaway",
    params=Params,
    inputs=Inputs,
    init=lambda p: Level(p.start),
    drift=lambda t, x, u, p: Level(x.level**2),
    observe=lambda t, x, u, p: x,
    noise=additive,
    solver=Solver(max_steps=100),
)


def measured(times, values):
    return Record(Inputs(), {"level": Series(times, values)})
