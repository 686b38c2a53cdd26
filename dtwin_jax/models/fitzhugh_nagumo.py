"""The simplest excitable membrane: FitzHugh and Nagumo's two equations.

Source: FitzHugh 1961, Biophys J 1:445, doi 10.1016/S0006-3495(61)86902-6; values of its figure 1 as in
BioModels BIOMD0000000346, where the stimulus z is -0.4 throughout.

    x' = c (x - x^3 / 3 + y + stimulus) / scale
    y' = -(x - a + b y) / (c scale)

x is like minus a membrane potential, y like recovery. It is a caricature: no unit of it is measurable, and
time is in units of `scale`. From x alone a, b and c are identifiable if it fires.
"""

import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive

_FITZHUGH = "FitzHugh 1961, as in BIOMD0000000346; spread chosen here"


class Params(eqx.Module):
    """Constants of the membrane."""

    a: Scalar = param(0.7, "1", normal(0.7, 0.3), source=_FITZHUGH, doc="place of rest")
    b: Scalar = param(0.8, "1", normal(0.8, 0.3), source=_FITZHUGH, doc="recovery by itself")
    c: Scalar = param(3.0, "1", lognormal(3.0, log_sd=0.3), source=_FITZHUGH, doc="separation of the times")
    x0: Scalar = param(-1.0, "1", source="BIOMD0000000346", doc="x at the start")
    y0: Scalar = param(0.5, "1", source="BIOMD0000000346", doc="y at the start")
    scale: Scalar = param(1.0, "ms", source="chosen here", doc="unit of time")
    sd: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source="chosen here", doc="additive error")


class Inputs(eqx.Module):
    """Current."""

    stimulus: Input = var("1", neutral=0.0, doc="z of the paper, negative excites")


class State(eqx.Module):
    """Excitation and recovery."""

    x: Scalar = var("1")
    y: Scalar = var("1")


class Outputs(eqx.Module):
    """What is observed."""

    excitation: Scalar = var("1", plausible=(-10.0, 10.0))


def init(p: Params) -> State:
    """State at the start."""
    return State(x=p.x0, y=p.y0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per ms."""
    return State(
        x=p.c * (x.x - x.x**3 / 3 + x.y + u.stimulus) / p.scale,
        y=-(x.x - p.a + p.b * x.y) / (p.c * p.scale),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Excitation."""
    return Outputs(excitation=x.x)


def example() -> Record:
    """The stimulus of the paper's figure 1, seen over two excitations."""
    times = 0.25 * np.arange(1.0, 81.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(stimulus=-0.4), {"excitation": seen})


fitzhugh_nagumo = Model(
    name="fitzhugh_nagumo",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="ms",
    source="FitzHugh 1961, doi 10.1016/S0006-3495(61)86902-6",
    valid="A caricature of excitability for teaching and for tests of methods.",
    stiffness="0.1 to 3 units of time: explicit, Tsit5.",
    checked="BIOMD0000000346 by two outside solvers, 40 units of time: 1e-6.",
    example=example,
)
