"""Human immunodeficiency virus (HIV) in blood after a protease inhibitor is begun.

Source: Perelson et al. 1996, Science 271:1582, doi 10.1126/science.271.5255.1582. c and delta of the
defaults are the means of its Table 1, recalled, not checked.

    production'    = delta (infectious - production),                  production(0) = 1
    infectious'    = c ((1 - efficacy) production - infectious),       infectious(0) = 1
    noninfectious' = c (efficacy production - noninfectious),          noninfectious(0) = 0
    viral_load     = V0 (infectious + noninfectious)

V0 is the load at the start, c the clearance of virus and delta the loss of infected cells, both per day.
`infectious` and `noninfectious` are the paper's VI and VNI relative to V0; `production` is the virus that
infected cells make (N delta T* of the paper, relative to c V0), while target cells stay as many as at the
untreated steady state (N K0 T0 = c), which the paper assumes and which holds for about a week. Efficacy is
the share of new virus that the drug makes non-infectious. The exact solution is used: with rates
slow <= c <= fast, of which slow and fast are the roots of r^2 - (delta + c) r + delta c efficacy,

    production    = P0 PP + delta I0 E(slow, fast)
    infectious    = c (1 - efficacy) P0 E(slow, fast) + I0 II
    noninfectious = N0 exp(-c t) + c efficacy (P0 E(slow, fast) + delta I0 E(slow, c, fast))

where P0, I0 and N0 are the three states at the start of the interval, t the time since, E is what a unit
dose leaves in the last of a chain of compartments with these rates, and PP and II are
exp(-fast t) + (fast - delta) E(slow, fast) and exp(-fast t) + (fast - c) E(slow, fast).
delta is determined by a week of samples, c only by those of the first day, where it trades off against V0.
"""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import passage
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

_PERELSON = "Perelson 1996 Table 1, mean of 5 patients, recalled, not checked; spread chosen here"
_HERE = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of virus and infected cells."""

    V0: Scalar = param(
        2.16e5, "{copies}/mL", lognormal(2.16e5, log_sd=1.5), source=_HERE, doc="viral load at the start"
    )
    c: Scalar = param(3.07, "/d", lognormal(3.07, log_sd=0.5), source=_PERELSON, doc="clearance of virus")
    delta: Scalar = param(
        0.49, "/d", lognormal(0.49, log_sd=0.4), source=_PERELSON, doc="loss of infected cells"
    )
    cv: Scalar = param(0.3, "1", lognormal(0.3, log_sd=0.7), source=_HERE, doc="sd of the log of a load")


class Inputs(eqx.Module):
    """The drug."""

    efficacy: Input = var("1", neutral=0.0, doc="share of new virus made non-infectious, 0 to 1")


class State(eqx.Module):
    """Production of virus, and virus by whether it infects, relative to the start."""

    production: Scalar = var("1")
    infectious: Scalar = var("1")
    noninfectious: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: Scalar = var("{copies}/mL", doc="RNA in plasma", plausible=(0.0, 1e9))


def init(p: Params) -> State:
    """The untreated steady state."""
    return State(production=1.0, infectious=1.0, noninfectious=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    return State(
        production=p.delta * (x.infectious - x.production),
        infectious=p.c * ((1 - u.efficacy) * x.production - x.infectious),
        noninfectious=p.c * (u.efficacy * x.production - x.noninfectious),
    )


@dataclass(frozen=True)
class Chains:
    """What is left after a time of a unit at its start: E(slow, fast), E(slow, c, fast), PP and II."""

    two: Scalar
    three: Scalar
    PP: Scalar
    II: Scalar


jax.tree_util.register_dataclass(Chains)

# Where the slow and the fast rate differ by less than 1 / dt, the Taylor series about their mean is exact to
# rounding with this many terms, and needs no square root, which has no derivative where the rates are equal.
_TERMS = 15


def _alike(dt: Scalar, mean: Scalar, half: Scalar, square: Scalar) -> Chains:
    """The chains where rates are alike: delta is `mean - half`, the roots `mean` -+ the root of `square`."""
    z, x = square * dt * dt, -half * dt
    even = odd = jnp.zeros_like(z)
    for k in reversed(range(_TERMS // 2 + 1)):
        even, odd = even * z + 1 / math.factorial(2 * k), odd * z + 1 / math.factorial(2 * k + 1)
    # Complete homogeneous polynomials of the three rates' distances from the mean: sqrt(z), -sqrt(z) and x.
    power = complete = jnp.ones_like(z)
    three = complete / 2
    for k in range(1, _TERMS):
        power = power * z if k % 2 == 0 else power
        complete = complete * x + (power if k % 2 == 0 else 0.0)
        three = three + complete / math.factorial(k + 2)
    decay = jnp.exp(-mean * dt)
    return Chains(
        two=dt * decay * odd,
        three=dt**2 * decay * three,
        PP=decay * (even - x * odd),
        II=decay * (even + x * odd),
    )


def _apart(dt: Scalar, e: Scalar, root: Scalar, p: Params) -> Chains:
    """The chains where the roots are `2 root` apart: sums of positive terms."""
    fast = (p.delta + p.c) / 2 + root
    slow = p.delta * p.c * e / fast
    # fast - c and fast - delta, whose product is delta c (1 - efficacy): the smaller from the larger.
    above = root + jnp.where(p.c > p.delta, p.c - p.delta, p.delta - p.c) / 2
    below = p.delta * p.c * (1 - e) / above
    over_c, over_delta = jnp.where(p.c > p.delta, below, above), jnp.where(p.c > p.delta, above, below)
    two, decay = passage(slow, fast, dt), jnp.exp(-fast * dt)
    three = (passage(slow, p.c, dt) - passage(p.c, fast, dt)) / (2 * root)
    return Chains(two=two, three=three, PP=decay + over_delta * two, II=decay + over_c * two)


def chains(dt: Scalar, efficacy: Scalar, p: Params) -> Chains:
    """The chains after `dt`, without loss of digits where rates are equal, in values and derivatives."""
    half = (p.c - p.delta) / 2
    square = half**2 + p.delta * p.c * (1 - efficacy)
    alike = square * dt * dt < 0.25
    near = _alike(dt, (p.c + p.delta) / 2, jnp.where(alike, half, 0.0), jnp.where(alike, square, 0.0))
    far = _apart(dt, efficacy, jnp.sqrt(jnp.where(alike, 1.0, square)), p)
    return jax.tree.map(lambda a, b: jnp.where(alike, a, b), near, far)


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant efficacy."""
    after = chains(dt, u.efficacy, p)
    made = x.production * after.two
    return State(
        production=x.production * after.PP + p.delta * x.infectious * after.two,
        infectious=p.c * (1 - u.efficacy) * made + x.infectious * after.II,
        noninfectious=x.noninfectious * jnp.exp(-p.c * dt)
        + p.c * u.efficacy * (made + p.delta * x.infectious * after.three),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Virus of either kind."""
    return Outputs(viral_load=p.V0 * (x.infectious + x.noninfectious))


def example() -> Record:
    """A week of ritonavir from time 0, sampled as in Perelson et al. 1996: often on the first two days."""
    times = np.array([0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(efficacy=1.0), {"viral_load": seen})


hiv = Model(
    name="hiv",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    flow=flow,
    time="d",
    source="Perelson et al. 1996, doi 10.1126/science.271.5255.1582",
    valid="Chronic HIV infection at a steady state, the first week of a protease inhibitor.",
    stiffness="Solved exactly while efficacy is constant.",
    checked="Closed form of the paper, 7 d: 5e-14 relative.",
    example=example,
)
