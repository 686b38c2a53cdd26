"""Four initial value problems that solvers are judged by, as models, with their published ends.

Source: Mazzia & Magherini, Test Set for Initial Value Problem Solvers 2.4 (ROBER, OREGO, VDPOL, PLEI).
"""

from dataclasses import dataclass, replace
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver


class Params(eqx.Module):
    """Nothing is unknown but the error of measurement."""

    sd: Scalar = param(0.1, "1")


class Inputs(eqx.Module):
    """Nothing is given."""


class Three(eqx.Module):
    a: Scalar = var("1")
    b: Scalar = var("1")
    c: Scalar = var("1")


class Two(eqx.Module):
    a: Scalar = var("1")
    b: Scalar = var("1")


class Bodies(eqx.Module):
    """Positions and velocities of seven stars, (7,) each."""

    x: Any = var("1")
    y: Any = var("1")
    vx: Any = var("1")
    vy: Any = var("1")


def rober(t, s, u, p):
    """Robertson's reactions: rates of 0.04, 1e4 and 3e7."""
    slow, fast, fastest = 0.04 * s.a, 1e4 * s.b * s.c, 3e7 * s.b**2
    return Three(a=fast - slow, b=slow - fast - fastest, c=fastest)


def orego(t, s, u, p):
    """The Oregonator."""
    return Three(
        a=77.27 * (s.b + s.a * (1 - 8.375e-6 * s.a - s.b)),
        b=(s.c - (1 + s.a) * s.b) / 77.27,
        c=0.161 * (s.a - s.c),
    )


def vdpol(t, s, u, p):
    """Van der Pol's oscillator."""
    return Two(a=s.b, b=((1 - s.a**2) * s.b - s.a) / 1e-6)


def plei(t, s, u, p):
    """Seven stars in a plane, of masses 1 to 7."""
    mass = jnp.arange(1.0, 8.0)
    dx, dy = s.x[None, :] - s.x[:, None], s.y[None, :] - s.y[:, None]
    square = dx**2 + dy**2
    itself = jnp.eye(7, dtype=bool)
    pull = jnp.where(itself, 0.0, mass[None, :] / jnp.where(itself, 1.0, square) ** 1.5)
    return Bodies(x=s.vx, y=s.vy, vx=jnp.sum(pull * dx, axis=1), vy=jnp.sum(pull * dy, axis=1))


def _model(name, init, drift):
    return Model(
        name, Params, Inputs, init, drift, lambda t, x, u, p: x, additive, time="s", source="IVP Test Set 2.4"
    )


STARS = (
    (3.0, 3.0, -1.0, -3.0, 2.0, -2.0, 2.0),
    (3.0, -3.0, 2.0, 0.0, 0.0, -4.0, 4.0),
    (0.0, 0.0, 0.0, 0.0, 0.0, 1.75, -1.5),
    (0.0, 0.0, 0.0, -1.25, 1.0, 0.0, 0.0),
)


@dataclass(frozen=True)
class Problem:
    """A model, when it ends, what size its components have there, and where they should be."""

    model: Model
    end: float
    scale: tuple[float, ...]
    wanted: tuple[float, ...]

    def solver(self, method: Any = diffrax.Kvaerno3, rtol: float = 1e-9) -> Solver:
        """The documented setting: as close absolutely as relatively, at each component's own size."""
        return Solver(method, rtol, tuple(rtol * size for size in self.scale), max_steps=200_000)

    def with_solver(self, solver: Solver) -> Model:
        return replace(self.model, solver=solver)

    def digits(self, found: Any) -> float:
        """Correct digits of the worst component."""
        wanted = np.asarray(self.wanted)
        error = np.max(np.abs(np.asarray(found)[: len(wanted)] - wanted) / np.abs(wanted))
        return float(-np.log10(error)) if np.isfinite(error) else 0.0


PROBLEMS = {
    "ROBER": Problem(
        _model("rober", lambda p: Three(1.0, 0.0, 0.0), rober),
        1e11,
        (1e-8, 1e-14, 1.0),
        (0.2083340149701255e-07, 0.8333360770334713e-13, 0.9999999791665050),
    ),
    "OREGO": Problem(
        _model("orego", lambda p: Three(1.0, 2.0, 3.0), orego),
        360.0,
        (1.0, 1.0, 1.0),
        (1.000814870318523, 1228.178521549917, 132.0554942846706),
    ),
    "VDPOL": Problem(
        _model("vdpol", lambda p: Two(2.0, 0.0), vdpol),
        2.0,
        (1.0, 1.0),
        (1.706167732170483, -0.8928097010247975),
    ),
    "PLEI": Problem(
        _model("plei", lambda p: Bodies(*(jnp.asarray(row) for row in STARS)), plei),
        3.0,
        (1.0,) * 28,
        (
            0.3706139143970502,
            3.237284092057233,
            -3.222559032418324,
            0.6597091455775310,
            0.3425581707156584,
            1.562172101400631,
            -0.7003092922212495,
            -3.943437585517392,
            -3.271380973972550,
            5.225081843456543,
            -2.590612434977470,
            1.198213693392275,
            -0.2429682344935824,
            1.091449240428980,
        ),
    ),
}
