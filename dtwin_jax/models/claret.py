"""Tumour size under treatment to which resistance grows (tumour growth inhibition).

Source: Claret et al. 2009, J Clin Oncol 27:4103, doi 10.1200/JCO.2008.21.0807; values recalled, not
checked (capecitabine in colorectal cancer, by week).

    TS' = KL TS - KD exposure R TS,     TS(0) = TS0
    R'  = -lam R,                       R(0) = 1

R is what is left of the drug's effect; it falls from the start of the record, exposed or not. The exact
solution is used. KL, KD, lam and TS0 are fitted; KD and the unit of exposure are one, and lam is not
identifiable without a size seen to rise again.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined

_CLARET = "Claret 2009, value and between-subject sd of the log recalled, not checked"
_HERE = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of tumour growth inhibition."""

    TS0: Scalar = param(70.0, "mm", lognormal(70.0, log_sd=0.7), source=_HERE, doc="size at the start")
    KL: Scalar = param(0.021, "/wk", lognormal(0.021, log_sd=0.9), source=_CLARET, doc="growth rate")
    KD: Scalar = param(
        0.025, "/wk", lognormal(0.025, log_sd=0.7), source=_CLARET, doc="death rate under exposure 1"
    )
    lam: Scalar = param(
        0.053, "/wk", lognormal(0.053, log_sd=0.9), source=_CLARET, doc="rate at which the effect is lost"
    )
    sd: Scalar = param(3.0, "mm", lognormal(3.0, log_sd=0.7), source=_HERE, doc="additive error")
    cv: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.7), source=_HERE, doc="proportional error")


class Inputs(eqx.Module):
    """The drug."""

    exposure: Input = var("1", neutral=0.0, doc="relative to the dose that KD is given for")


class State(eqx.Module):
    """The tumour, and what is left of the drug's effect on it."""

    size: Scalar = var("mm")
    effect: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    size: Scalar = var("mm", doc="sum of longest diameters", plausible=(0.0, 2000.0))


def init(p: Params) -> State:
    """Size at the start, before any resistance."""
    return State(size=p.TS0, effect=1.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per week."""
    return State(size=(p.KL - p.KD * u.exposure * x.effect) * x.size, effect=-p.lam * x.effect)


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant exposure."""
    killed = p.KD * u.exposure * x.effect * filling(p.lam, dt)
    return State(size=x.size * jnp.exp(p.KL * dt - killed), effect=x.effect * jnp.exp(-p.lam * dt))


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The size itself."""
    return Outputs(size=x.size)


def nadir(exposure: Scalar, p: Params) -> Scalar:
    """Time of the smallest size under constant exposure, weeks; 0 where the tumour never shrinks."""
    shrinking = p.KD * exposure / p.KL
    return jnp.log(jnp.where(shrinking > 1, shrinking, 1.0)) / p.lam


def example() -> Record:
    """A scan every six weeks for a year of treatment, as in a trial of phase III."""
    times = np.arange(0.0, 55.0, 6.0)
    return Record(Inputs(exposure=1.0), {"size": Series(times, np.zeros(len(times)))})


claret = Model(
    name="claret",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    flow=flow,
    time="wk",
    source="Claret et al. 2009, doi 10.1200/JCO.2008.21.0807",
    valid="Solid tumours measured by diameters, in the months after one treatment begins at time 0.",
    stiffness="Solved exactly while exposure is constant.",
    checked="Closed form in 15 digits: 2e-14 relative.",
    example=example,
)
