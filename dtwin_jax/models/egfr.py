"""Decline of kidney function (estimated glomerular filtration rate, eGFR) over years, with and without
treatment.

Sources: form (an acute, reversible change and a chronic slope) and values of an SGLT2 inhibitor: Jardine et
al. 2020, J Am Soc Nephrol 31:1128, doi 10.1681/ASN.2019111168, CREDENCE participants with eGFR 30 to 45
(acute drop 2.03; then -1.72 a year on canagliflozin, -4.33 on placebo). The effect of albuminuria on the
slope is chosen here, about the trial's entry range of 300 to 5000 mg/g.

    structural' = slope + protection treatment + albuminuria log2(acr / acr_usual)
    acute'      = (treatment - acute) / onset
    egfr        = structural - dip acute

Solved exactly while inputs are constant. A line may cross 0: kidney failure is an event, not this model's.
In practice egfr0 and slope are fitted for every patient, dip and protection where treatment was begun or
stopped in the record; onset is known. The effect of albuminuria shows only across patients, or where the ACR
of one changed much: it is known; give it a prior for such data.
"""

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
from dtwin_jax.dynamics.residual import combined

_CREDENCE = "Jardine 2020, CREDENCE, eGFR 30 to 45; spread chosen here"
_HERE = "weakly informative, chosen here"
_RATE = "mL/min/{1.73_m2}/a"
_EGFR = "mL/min/{1.73_m2}"


class Params(eqx.Module):
    """Parameters of decline and of the effects of treatment."""

    egfr0: Scalar = param(
        56.0,
        _EGFR,
        lognormal(56.0, log_sd=0.5),
        source="mean of all of CREDENCE, recalled, not checked; spread chosen here",
        doc="eGFR at the start",
    )
    slope: Scalar = param(-4.33, _RATE, normal(-4.33, 4.0), source=_CREDENCE, doc="untreated chronic slope")
    protection: Scalar = param(
        2.61, _RATE, normal(2.61, 1.5), source=_CREDENCE, doc="change of the slope by treatment 1"
    )
    dip: Scalar = param(2.03, _EGFR, normal(2.03, 2.0), source=_CREDENCE, doc="acute drop by treatment 1")
    onset: Scalar = param(
        0.02, "a", source="within 3 weeks, the first visit; chosen here", doc="time constant of the drop"
    )
    albuminuria: Scalar = param(
        -0.7, _RATE, source="chosen here", doc="change of the slope by a doubling of ACR"
    )
    acr_usual: Scalar = param(
        900.0,
        "mg/g",
        source="near the median of CREDENCE, recalled, not checked",
        doc="ACR that slope is given for",
    )
    acr_floor: Scalar = param(1.0, "mg/g", source="chosen here", doc="ACR below which nothing differs")
    sd: Scalar = param(1.0, _EGFR, lognormal(1.0, log_sd=0.7), source=_HERE, doc="additive error")
    cv: Scalar = param(0.08, "1", lognormal(0.08, log_sd=0.5), source=_HERE, doc="proportional error")


class Inputs(eqx.Module):
    """Treatment and albuminuria."""

    treatment: Input = var("1", neutral=0.0, doc="0 off, 1 on an SGLT2 inhibitor")
    acr: Input = var("mg/g", neutral=900.0, doc="urinary albumin to creatinine", plausible=(0.0, 5e4))


class State(eqx.Module):
    """Kidney function without the acute effect, and that effect as a share of its full size."""

    structural: Scalar = var(_EGFR)
    acute: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    egfr: Scalar = var(_EGFR, doc="estimated glomerular filtration rate", plausible=(0.0, 250.0))


def init(p: Params) -> State:
    """Untreated at the start."""
    return State(structural=p.egfr0, acute=0.0)


def chronic(u: Inputs, p: Params) -> Scalar:
    """Chronic slope under these inputs."""
    acr = jnp.maximum(u.acr, p.acr_floor)
    return p.slope + p.protection * u.treatment + p.albuminuria * jnp.log2(acr / p.acr_usual)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per year."""
    return State(structural=chronic(u, p), acute=(u.treatment - x.acute) / p.onset)


def flow(dt: Scalar, x: State, u: Inputs, p: Params) -> State:
    """The exact solution after `dt` under constant inputs."""
    rate = 1 / p.onset
    acute = x.acute * jnp.exp(-rate * dt) + u.treatment * rate * filling(rate, dt)
    return State(structural=x.structural + chronic(u, p) * dt, acute=acute)


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Structural function less the acute effect."""
    return Outputs(egfr=x.structural - p.dip * x.acute)


def example() -> Record:
    """Four months of run-in, then an SGLT2 inhibitor; creatinine every four months for four years."""
    times = np.arange(13.0) / 3
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(treatment=Steps([0.0, 1 / 3], [0.0, 1.0])), {"egfr": seen})


egfr = Model(
    name="egfr",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    flow=flow,
    time="a",
    source="Jardine et al. 2020, doi 10.1681/ASN.2019111168",
    valid="Chronic kidney disease of adults with type 2 diabetes and albuminuria, some years, eGFR above 15.",
    stiffness="Solved exactly while inputs are constant.",
    checked="The published drop and slopes; the drift, which the flow solves to 1e-8 at random points.",
    example=example,
)
