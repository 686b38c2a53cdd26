"""An epidemic in a closed population: susceptible, exposed, infectious, recovered (SEIR).

Source: Anderson & May 1991, Infectious Diseases of Humans; values are illustrative (reproductive number 3.5,
latent 5.2 d, infectious 7 d).

    S' = -beta contact S I / N,              S(0) = N - E0 - I0
    E' = beta contact S I / N - sigma E,     E(0) = E0
    I' = sigma E - gamma I,                  I(0) = I0
    R' = gamma I,                            R(0) = 0

The share never infected solves log(s / s0) = (beta / gamma) (s - 1), by the Lambert function.
Prevalence determines beta, gamma and I0 + E0; sigma only from the first weeks. N is known.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined
from dtwin_jax.dynamics.solver import Solver

_HERE = "value illustrative, prior weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of the epidemic."""

    N: Scalar = param(1e6, "1", doc="population")
    E0: Scalar = param(20.0, "1", lognormal(20.0, log_sd=1.5), source=_HERE, doc="exposed first")
    I0: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.5), source=_HERE, doc="infectious first")
    beta: Scalar = param(
        0.5, "/d", lognormal(0.5, log_sd=0.7), source=_HERE, doc="persons infected a day by one"
    )
    sigma: Scalar = param(
        1 / 5.2, "/d", lognormal(1 / 5.2, log_sd=0.4), source=_HERE, doc="rate of becoming infectious"
    )
    gamma: Scalar = param(1 / 7, "/d", lognormal(1 / 7, log_sd=0.4), source=_HERE, doc="rate of recovery")
    sd: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.5), source=_HERE, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source=_HERE, doc="proportional error")


class Inputs(eqx.Module):
    """Measures that change who meets whom."""

    contact: Input = var("1", neutral=1.0, doc="contacts relative to usual, and susceptibility with them")


class State(eqx.Module):
    """Persons."""

    S: Scalar = var("1")
    E: Scalar = var("1")
    I: Scalar = var("1")  # noqa: E741 the letter of the field
    R: Scalar = var("1")


class Outputs(eqx.Module):
    """What is counted."""

    infectious: Scalar = var("1", doc="infectious now", plausible=(0.0, 1e10))
    infected: Scalar = var("1", doc="infected so far", plausible=(0.0, 1e10))


def init(p: Params) -> State:
    """Few exposed and infectious, nobody immune."""
    return State(S=p.N - p.E0 - p.I0, E=p.E0, I=p.I0, R=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, persons per day."""
    infected = p.beta * u.contact * x.S * x.I / p.N
    return State(S=-infected, E=infected - p.sigma * x.E, I=p.sigma * x.E - p.gamma * x.I, R=p.gamma * x.I)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Prevalence, and all infected so far."""
    return Outputs(infectious=x.I, infected=p.N - x.S)


def never_infected(p: Params, *, rounds: int = 30) -> Scalar:
    """Share of the population that a whole epidemic leaves out, with usual contacts.

    Newton's method for log(s / s0) = (beta / gamma) (s - 1) from below, where it converges from any start.
    """
    ratio, start = p.beta / p.gamma, (p.N - p.E0 - p.I0) / p.N
    share = start * jnp.exp(-ratio)
    for _ in range(rounds):
        share = share - (jnp.log(share / start) - ratio * (share - 1)) / (1 / share - ratio)
    return share


def example() -> Record:
    """A weekly survey of the infected for half a year."""
    times = np.arange(7.0, 183.0, 7.0)
    return Record(Inputs(), {"infected": Series(times, np.zeros(len(times)))})


seir = Model(
    name="seir",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    time="d",
    solver=Solver(atol=1e-6),
    source="Anderson & May 1991, Infectious Diseases of Humans",
    valid="One well mixed population without births or waning immunity; large numbers, no chance.",
    stiffness="5 to 7 d: explicit, Tsit5. Persons are solved as they are: none infected is a state of rest.",
    checked="Two solvers at 1e-12, 400 d: 1e-8 relative; final size by the Lambert function: 1e-9.",
    example=example,
)
