"""Linear health model of the digital-twin literature, as an ODE and as an Itô SDE.

Source: Vallée 2025, J Med Internet Res 27:e72411, doi 10.2196/72411. The paper gives no values: defaults
and priors here are weakly informative and chosen by us.

    dH = (alpha H + sum_i beta_i X_i - gamma T(t)) dt + sigma dW

The X are the paper's classes of covariates. With `- gamma T` a treatment lowers H, so H behaves as a
burden of disease; for a health status that treatment raises, let gamma be negative.

Variants:
linear_health: Linear health model of the digital-twin literature, as an ODE
linear_health_sde: Linear health model of the digital-twin literature, as an Itô SDE
"""

from dataclasses import replace

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_HERE = "weakly informative, chosen here; the paper gives no value"


class Params(eqx.Module):
    """Coefficients of the linear model."""

    alpha: Scalar = param(-0.1, "/a", normal(0.0, 0.5), source=_HERE, doc="own rate of H")
    beta_E: Scalar = param(0.0, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of environment")
    beta_B: Scalar = param(0.0, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of biomarkers")
    beta_C: Scalar = param(0.0, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of comorbidity")
    beta_S: Scalar = param(0.0, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of sociodemographics")
    beta_G: Scalar = param(0.0, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of genetics")
    gamma: Scalar = param(0.1, "/a", normal(0.0, 0.5), source=_HERE, doc="effect of treatment")
    H0: Scalar = param(0.0, "1", normal(0.0, 1.0), source=_HERE, doc="H at the start")
    # The square of the paper's sigma: no unit of UCUM is a half power.
    sigma2: Scalar = param(0.01, "/a", source=_HERE, doc="variance that noise adds a year, SDE only")
    sd: Scalar = param(0.1, "1", lognormal(0.1, log_sd=1.0), source=_HERE, doc="additive error")


class Inputs(eqx.Module):
    """Covariates and treatment, as functions of time."""

    E: Input = var("1", neutral=0.0, doc="environment")
    B: Input = var("1", neutral=0.0, doc="biomarkers")
    C: Input = var("1", neutral=0.0, doc="comorbidity")
    S: Input = var("1", neutral=0.0, doc="sociodemographics")
    G: Input = var("1", neutral=0.0, doc="genetics")
    T: Input = var("1", neutral=0.0, doc="treatment")


class State(eqx.Module):
    """The burden H."""

    H: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    H: Scalar = var("1")


def init(p: Params) -> State:
    """H at the start."""
    return State(H=p.H0)


def push(u: Inputs, p: Params) -> Scalar:
    """What covariates and treatment add to the rate of H."""
    covariates = p.beta_E * u.E + p.beta_B * u.B + p.beta_C * u.C + p.beta_S * u.S + p.beta_G * u.G
    return covariates - p.gamma * u.T


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rate of change, per year."""
    return State(H=p.alpha * x.H + push(u, p))


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant inputs."""
    return State(H=x.H * jnp.exp(p.alpha * dt) + push(u, p) * filling(-p.alpha, dt))


def diffusion(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Constant diffusion: an Ornstein-Uhlenbeck process."""
    return State(H=jnp.sqrt(p.sigma2))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """H itself."""
    return Outputs(H=x.H)


def example() -> Record:
    """Twice a year for ten years; every covariate changes once, and treatment begins at 6 years."""
    times = np.arange(0.0, 10.1, 0.5)
    changes = {name: Steps([0.0, 1.0 + i], [0.0, 1.0]) for i, name in enumerate("EBCSGT")}
    return Record(Inputs(**changes), {"H": Series(times, np.zeros(len(times)))})


linear_health = Model(
    name="linear_health",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    flow=flow,
    time="a",
    source="Vallée 2025, doi 10.2196/72411",
    valid="A form, not a fitted model: one burden in arbitrary units, without bound where alpha > 0.",
    stiffness="Solved exactly while inputs are constant.",
    checked="Trajectory and derivatives by alpha, gamma and H0: 1e-10 of a closed form in 40 digits.",
    example=example,
)

linear_health_sde = replace(
    linear_health,
    name="linear_health_sde",
    diffusion=diffusion,
    solver=Solver(method=diffrax.ItoMilstein, dt=0.02),
    stiffness="Itô-Milstein at a fixed step of 0.02 years.",
    checked="Moments of an Ornstein-Uhlenbeck process within 4 standard errors of 3000 paths.",
)
