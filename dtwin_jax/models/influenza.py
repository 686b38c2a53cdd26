"""Influenza A virus in the airways, limited by target cells, with and without an eclipse phase.

Source: Baccam et al. 2006, J Virol 80:7590, doi 10.1128/JVI.01623-05 (PMC1563736); values are averages over
its six volunteers, recalled, not checked (they give the abstract's R0 of 22, eclipse of 6 h, half-life of
virus of 3 h and life of infected cells of 11 h).

    log_target' = -beta V
    latent'     = R0 c delta target - k latent - latent log_virus'          (with an eclipse phase)
    producing'  = k latent - delta producing - producing log_virus'
    log_virus'  = (1 - efficacy) producing - c
    V           = V0 exp(log_virus)

`target` is the share of cells not infected; `latent` and `producing` are p E / V and p I / V of the paper,
the production of virus by infected cells relative to the virus there is. In these, titres over seven
decades are four numbers near 1, all equations hold from no infected cell on, and float32 suffices. The
numbers of cells and the production by each (T0, p) are in R0 = p beta T0 / (c delta) alone: titres
determine neither. Titres give V0, R0, beta and the slopes of rise and fall; c and delta change places with
little effect, so have one known or tightly distributed. `influenza` has no eclipse phase: infected cells
are producing at once.

Variants:
influenza: Influenza A virus in the airways, limited by target cells, infected cells producing at once
influenza_eclipse: Influenza A virus in the airways, limited by target cells, with an eclipse phase
"""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal

_BACCAM = "Baccam 2006, average patient, recalled, not checked; spread chosen here"
_HERE = "weakly informative, chosen here"


def reproductive_number(p: float, beta: float, T0: float, c: float, delta: float) -> float:
    """R0 from the parameters of the paper: cells that one infected cell infects while all are targets."""
    return p * beta * T0 / (c * delta)


class Params(eqx.Module):
    """Parameters without an eclipse phase."""

    V0: Scalar = param(
        0.093, "{TCID50}/mL", lognormal(0.093, log_sd=2.0), source=_BACCAM, doc="virus at infection"
    )
    R0: Scalar = param(10.8, "1", lognormal(10.8, log_sd=0.7), source=_BACCAM, doc="reproductive number")
    beta: Scalar = param(
        2.7e-5, "mL/{TCID50}/d", lognormal(2.7e-5, log_sd=1.5), source=_BACCAM, doc="rate of infection"
    )
    c: Scalar = param(3.0, "/d", lognormal(3.0, log_sd=0.3), source=_BACCAM, doc="clearance of virus")
    delta: Scalar = param(4.0, "/d", lognormal(4.0, log_sd=0.3), source=_BACCAM, doc="loss of infected cells")
    cv: Scalar = param(1.0, "1", lognormal(1.0, log_sd=0.5), source=_HERE, doc="sd of the log of a titre")


class EclipseParams(eqx.Module):
    """Parameters with an eclipse phase."""

    V0: Scalar = param(
        0.075, "{TCID50}/mL", lognormal(0.075, log_sd=2.0), source=_BACCAM, doc="virus at infection"
    )
    R0: Scalar = param(21.8, "1", lognormal(21.8, log_sd=0.7), source=_BACCAM, doc="reproductive number")
    beta: Scalar = param(
        3.2e-5, "mL/{TCID50}/d", lognormal(3.2e-5, log_sd=1.5), source=_BACCAM, doc="rate of infection"
    )
    c: Scalar = param(5.2, "/d", lognormal(5.2, log_sd=0.3), source=_BACCAM, doc="clearance of virus")
    delta: Scalar = param(
        5.2, "/d", lognormal(5.2, log_sd=0.3), source=_BACCAM, doc="loss of producing cells"
    )
    k: Scalar = param(4.0, "/d", source=_BACCAM, doc="rate from latent to producing")
    cv: Scalar = param(1.0, "1", lognormal(1.0, log_sd=0.5), source=_HERE, doc="sd of the log of a titre")


class Inputs(eqx.Module):
    """Treatment."""

    efficacy: Input = var("1", neutral=0.0, doc="share of virus production blocked, 0 to 1")


class State(eqx.Module):
    """Target cells, cells that produce virus, and virus."""

    log_target: Scalar = var("1")
    producing: Scalar = var("/d")
    log_virus: Scalar = var("1")


class EclipseState(eqx.Module):
    """Target cells, infected cells before and while they produce virus, and virus."""

    log_target: Scalar = var("1")
    latent: Scalar = var("/d")
    producing: Scalar = var("/d")
    log_virus: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: Scalar = var("{TCID50}/mL", doc="titre in nasal wash", plausible=(0.0, 1e10))


def init(p: Params) -> State:
    """Virus, and no infected cell yet."""
    return State(log_target=0.0, producing=0.0, log_virus=0.0)


def init_eclipse(p: EclipseParams) -> EclipseState:
    """Virus, and no infected cell yet."""
    return EclipseState(log_target=0.0, latent=0.0, producing=0.0, log_virus=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    virus = (1 - u.efficacy) * x.producing - p.c
    infected = p.R0 * p.c * p.delta * jnp.exp(x.log_target)
    return State(
        log_target=-p.beta * p.V0 * jnp.exp(x.log_virus),
        producing=infected - (p.delta + virus) * x.producing,
        log_virus=virus,
    )


def drift_eclipse(t: Scalar, x: EclipseState, u: Inputs, p: EclipseParams) -> EclipseState:
    """Rates of change, per day."""
    virus = (1 - u.efficacy) * x.producing - p.c
    infected = p.R0 * p.c * p.delta * jnp.exp(x.log_target)
    return EclipseState(
        log_target=-p.beta * p.V0 * jnp.exp(x.log_virus),
        latent=infected - (p.k + virus) * x.latent,
        producing=p.k * x.latent - (p.delta + virus) * x.producing,
        log_virus=virus,
    )


def observe(t: Scalar, x: State | EclipseState, u: Inputs, p: Params | EclipseParams) -> Outputs:
    """Virus."""
    return Outputs(viral_load=p.V0 * jnp.exp(x.log_virus))


def example() -> Record:
    """A nasal wash every day for eight days after inoculation, as in Baccam et al. 2006."""
    times = np.arange(1.0, 9.0)
    return Record(Inputs(), {"viral_load": Series(times, np.zeros(len(times)))})


influenza = Model(
    name="influenza",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    source="Baccam et al. 2006, doi 10.1128/JVI.01623-05",
    valid="Uncomplicated influenza A of adults without immunity, from infection (time 0) to about day 8.",
    stiffness="0.05 to 0.3 d, little spread: explicit, Tsit5.",
    checked="Two solvers of the paper's form, 8 d: cells and virus to 1e-6 relative.",
    example=example,
)

influenza_eclipse = replace(
    influenza,
    name="influenza_eclipse",
    params=EclipseParams,
    init=init_eclipse,
    drift=drift_eclipse,
    checked="The paper's form solved by SciPy (DOP853, 1e-12) in the test: 1e-6 relative.",
)
