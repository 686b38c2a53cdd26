"""SARS-CoV-2 in the upper respiratory tract, by day since symptoms began.

Source: Kim et al. 2021, PLoS Biol 19:e3001128, doi 10.1371/journal.pbio.3001128 (the reduced model: virus
is cleared so much faster than infected cells are lost that it follows them). Values recalled, not checked.

    log_target' = -beta viral_load
    log_virus'  = (1 - efficacy) gamma target - delta
    viral_load  = V0 exp(log_virus)

`target` is the share of cells not yet infected. gamma is the largest rate of replication (gamma - delta the
first rise, gamma / delta the reproductive number), delta the loss of infected cells, which is the slope of
the fall. Logarithms are solved: loads fall over eight decades, and float32 suffices. All four are
identifiable from loads before and after the peak; from a fall alone only delta and the level are, and gamma
and beta keep their priors. Loads below the limit of detection carry information: have them censored, not
left out.
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
from dtwin_jax.dynamics.residual import log_normal

_KIM = "Kim 2021, SARS-CoV-2, recalled, not checked; spread chosen here"
_HERE = "weakly informative, chosen here"
_LEVEL = _HERE + ": loads at onset and peak differ by decades between patients"


class Params(eqx.Module):
    """Parameters of the reduced model."""

    V0: Scalar = param(
        1e6, "{copies}/mL", lognormal(1e6, log_sd=3.0), source=_LEVEL, doc="viral load at the start"
    )
    gamma: Scalar = param(4.0, "/d", lognormal(4.0, log_sd=0.5), source=_KIM, doc="largest replication")
    beta: Scalar = param(
        5e-8, "mL/{copies}/d", lognormal(5e-8, log_sd=2.5), source=_LEVEL, doc="rate of infection"
    )
    delta: Scalar = param(0.93, "/d", lognormal(0.93, log_sd=0.4), source=_KIM, doc="loss of infected cells")
    cv: Scalar = param(1.5, "1", lognormal(1.5, log_sd=0.5), source=_HERE, doc="sd of the log of a load")


class Inputs(eqx.Module):
    """Treatment."""

    efficacy: Input = var("1", neutral=0.0, doc="share of replication blocked, 0 to 1")


class State(eqx.Module):
    """Target cells as a share of all, and virus relative to the start."""

    log_target: Scalar = var("1")
    log_virus: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: Scalar = var("{copies}/mL", doc="RNA in a swab or sputum", plausible=(0.0, 1e13))


def init(p: Params) -> State:
    """All cells are targets; virus as at the start of the record."""
    return State(log_target=0.0, log_virus=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    return State(
        log_target=-p.beta * p.V0 * jnp.exp(x.log_virus),
        log_virus=(1 - u.efficacy) * p.gamma * jnp.exp(x.log_target) - p.delta,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Virus."""
    return Outputs(viral_load=p.V0 * jnp.exp(x.log_virus))


def reproductive_number(p: Params) -> Scalar:
    """Cells that one infected cell infects while all are targets."""
    return p.gamma / p.delta


def growth(p: Params) -> Scalar:
    """Rate of the first rise of untreated virus, per day."""
    return p.gamma - p.delta


def peak(p: Params) -> Scalar:
    """Largest untreated viral load, copies/mL: V0 where it only falls.

    By the conserved quantity beta V - gamma (1 - target) - delta log(target), at target = delta / gamma.
    """
    ratio = jnp.where(p.gamma > p.delta, p.gamma / p.delta, 1.0)
    return p.V0 + p.delta / p.beta * (ratio - 1 - jnp.log(ratio))


def example() -> Record:
    """A swab every other day for three weeks from the onset of symptoms."""
    times = np.arange(0.0, 22.0, 2.0)
    return Record(Inputs(), {"viral_load": Series(times, np.zeros(len(times)))})


sarscov2 = Model(
    name="sarscov2",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    source="Kim et al. 2021, doi 10.1371/journal.pbio.3001128",
    valid="Untreated acute infection of hosts without immunity, from about symptom onset, for 3 weeks.",
    stiffness="0.1 to 1 d: explicit, Tsit5.",
    checked="Its conserved quantity: 1e-9 of the load; slope of the rise 1e-5, of the fall 1e-6.",
    example=example,
)
