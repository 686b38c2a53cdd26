"""The human circadian pacemaker and its response to light.

Source: Forger, Jewett & Kronauer 1999, J Biol Rhythms 14:532, doi 10.1177/074873099129000867; values as in
the package circadian 1.0.3, which it was compared with, to 1e-6 to 1e-11.

    alpha = alpha0 sqrt(light / I0)
    B     = G alpha (1 - n) (1 - 0.4 x) (1 - 0.4 xc)
    x'    = (2 pi / day) (xc + B)
    xc'   = (2 pi / day) (mu (xc - 4 xc^3 / 3) - x ((day / (0.99669 tau))^2 + k B))
    n'    = alpha (1 - n) - beta n

The published alpha, beta and G are per minute and in minutes: 60 of them are in an hour here. At light 0
the square root has an infinite slope; its derivative is taken as 0 there. The minimum of core body
temperature is near the minimum of x; melatonin begins to rise some 7 h before it. tau is what a rhythm in
known light tells, with the phase at the start (x0, xc0, of which the amplitude settles within days);
light's constants are known.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_FORGER = "Forger 1999"
_START = "circadian 1.0.3, at midnight of a regular day; spread chosen here"


class Params(eqx.Module):
    """Parameters of the pacemaker."""

    tau: Scalar = param(
        24.2,
        "h",
        normal(24.2, 0.2),
        source=_FORGER + "; spread recalled, not checked",
        doc="intrinsic period",
    )
    mu: Scalar = param(0.23, "1", source=_FORGER, doc="stiffness of the oscillation")
    k: Scalar = param(0.55, "1", source=_FORGER, doc="effect of light on its speed")
    alpha0: Scalar = param(3.0, "/h", source=_FORGER + ": 0.05 a minute", doc="activation by bright light")
    beta: Scalar = param(0.45, "/h", source=_FORGER + ": 0.0075 a minute", doc="recovery of receptors")
    G: Scalar = param(0.5625, "h", source=_FORGER + ": 33.75 min", doc="gain of light")
    I0: Scalar = param(9500.0, "lx", source=_FORGER, doc="bright light")
    day: Scalar = param(24.0, "h", doc="a day")
    x0: Scalar = param(-0.0843259, "1", normal(-0.08, 1.0), source=_START, doc="x at the start")
    xc0: Scalar = param(-1.09607546, "1", normal(-1.1, 1.0), source=_START, doc="xc at the start")
    n0: Scalar = param(0.45584306, "1", source=_START, doc="n at the start")
    sd: Scalar = param(
        0.1, "1", lognormal(0.1, log_sd=0.7), source="weakly informative, chosen here", doc="additive error"
    )


class Inputs(eqx.Module):
    """Light at the eye."""

    light: Input = var("lx", neutral=0.0, doc="illuminance", plausible=(0.0, 2e5))


class State(eqx.Module):
    """The pacemaker's two variables, and the share of receptors in use."""

    x: Scalar = var("1")
    xc: Scalar = var("1")
    n: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    rhythm: Scalar = var("1", doc="x, as core body temperature less its mean, scaled", plausible=(-3.0, 3.0))


def init(p: Params) -> State:
    """Phase at the start."""
    return State(x=p.x0, xc=p.xc0, n=p.n0)


def activation(light: Scalar, p: Params) -> Scalar:
    """Rate at which light takes receptors into use, with slope 0 in the dark."""
    lit = light > 0
    return jnp.where(lit, p.alpha0 * jnp.sqrt(jnp.where(lit, light, p.I0) / p.I0), 0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per hour."""
    alpha = activation(u.light, p)
    drive = p.G * alpha * (1 - x.n) * (1 - 0.4 * x.x) * (1 - 0.4 * x.xc)
    speed = 2 * jnp.pi / p.day
    pull = (p.day / (0.99669 * p.tau)) ** 2 + p.k * drive
    return State(
        x=speed * (x.xc + drive),
        xc=speed * (p.mu * (x.xc - 4 * x.xc**3 / 3) - x.x * pull),
        n=alpha * (1 - x.n) - p.beta * x.n,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The rhythm."""
    return Outputs(rhythm=x.x)


def example() -> Record:
    """Six days of 16 h of indoor light and 8 h of dark, temperature every two hours."""
    start = 24.0 * np.arange(6.0)
    on = np.stack([start, start + 8.0], axis=1).ravel()
    times = np.arange(2.0, 145.0, 2.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(light=Steps(on, np.tile([0.0, 500.0], 6))), {"rhythm": seen})


circadian = Model(
    name="circadian",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="h",
    solver=Solver(rtol=1e-7, atol=1e-9),
    source="Forger, Jewett & Kronauer 1999, doi 10.1177/074873099129000867",
    valid="Healthy adults, phase and amplitude under light of 0 to some 10,000 lx; no drive of sleep.",
    stiffness="0.3 h (receptors in bright light) to 24 h: explicit, Tsit5; steps of light are events.",
    checked="The package's equations, 240 h of days and nights: 1e-6.",
    example=example,
)
