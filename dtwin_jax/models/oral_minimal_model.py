"""Glucose minimal model after a drink or meal, with measured insulin and a rate of appearance to be found.

Source: Dalla Man, Caumo & Cobelli 2002, IEEE Trans Biomed Eng 49:419, doi 10.1109/10.995680 ("The oral
glucose minimal model"). Values: Dalla Man, Rizza & Cobelli 2007, IEEE Trans Biomed Eng 54:1740, doi
10.1109/TBME.2007.893506; Cappon et al. 2023, IEEE Trans Biomed Eng 70:3227, doi 10.1109/TBME.2023.3286856,
as in its package ReplayBG (gcappon/py_replay_bg).

    G' = -(SG + X) G + SG Gb + Ra / V,     G(0) = Gb
    X' = -p2 X + p2 SI (insulin - Ib),     X(0) = 0

The rate of appearance `Ra` is straight between 0, 10, 30, 60, 90, 120, 180, 240 and 300 min after the
drink, 0 at both ends. Its values are free in shape, each a multiple of that at 60 min, and fixed in
size: their area is `f D / BW`, all that is ever absorbed, exactly.

Ra turns at its breaks, and so does insulin at its samples: both are sampled inputs, at whose corners the
solver ends a step. The input `ra` is made from the parameters; what a record gives for it is not used.

Fitted in practice: SI, p2 and the shape of Ra. SG and V are known, as in the paper: glucose after one
drink does not tell them from Ra. Nor does it tell the value at 10 min if the first sample is at 30, nor
that at 240 if the last is at 180; both are known by default.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, replace_fields, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import combined

_GLUCOSE = 180.156  # g/mol
_BREAKS = np.array([0.0, 10.0, 30.0, 60.0, 90.0, 120.0, 180.0, 240.0, 300.0])  # in the model's unit of time
_SHAPE = "value and prior: weakly informative, chosen here"
_CHOSEN = "value chosen here: a 75 g drink, an adult of 75 kg"


class Params(eqx.Module):
    """Parameters of the oral minimal model. `SI` is per unit of plasma insulin in u[IU]/mL."""

    SG: Scalar = param(
        0.028, "/min", source="Dalla Man 2002, recalled, not checked", doc="glucose effectiveness"
    )
    p2: Scalar = param(
        0.0121,
        "/min",
        lognormal(0.0121, log_sd=0.2),
        source="square root 0.11, Cappon 2023, as in ReplayBG; spread chosen here, 10 % of the root",
        doc="decay of insulin action",
    )
    SI: Scalar = param(
        8e-4,
        "mL/u[IU]/min",
        lognormal(8e-4, log_sd=0.8),
        source="value and prior: weakly informative, chosen here",
        doc="insulin sensitivity",
    )
    V: Scalar = param(
        1.45, "dL/kg", source="Cappon 2023, as in ReplayBG", doc="volume of glucose distribution"
    )
    Gb: Scalar = param(90.0, "mg/dL", source=_CHOSEN, doc="basal glucose, measured before the drink")
    Ib: Scalar = param(6.0, "u[IU]/mL", source=_CHOSEN, doc="basal insulin, measured before the drink")
    D: Scalar = param(75000.0, "mg", source=_CHOSEN, doc="glucose drunk at time 0")
    BW: Scalar = param(75.0, "kg", source=_CHOSEN, doc="body weight")
    f: Scalar = param(0.9, "1", source="Dalla Man 2007, Table I", doc="fraction absorbed")
    ra_10: Scalar = param(0.5, "1", source=_SHAPE, doc="Ra at 10 min, relative to 60 min")
    ra_30: Scalar = param(
        1.0, "1", lognormal(1.0, log_sd=0.4), source=_SHAPE, doc="Ra at 30 min, relative to 60 min"
    )
    ra_90: Scalar = param(
        0.8, "1", lognormal(0.8, log_sd=0.4), source=_SHAPE, doc="Ra at 90 min, relative to 60 min"
    )
    ra_120: Scalar = param(
        0.6, "1", lognormal(0.6, log_sd=0.4), source=_SHAPE, doc="Ra at 120 min, relative to 60 min"
    )
    ra_180: Scalar = param(
        0.3, "1", lognormal(0.3, log_sd=0.4), source=_SHAPE, doc="Ra at 180 min, relative to 60 min"
    )
    ra_240: Scalar = param(0.1, "1", source=_SHAPE, doc="Ra at 240 min, relative to 60 min")
    sd: Scalar = param(
        2.0, "mg/dL", lognormal(2.0, log_sd=0.7), source="value and prior chosen here", doc="additive error"
    )
    cv: Scalar = param(
        0.03, "1", lognormal(0.03, log_sd=0.7), source="value and prior chosen here", doc="proportional error"
    )


class Inputs(eqx.Module):
    """What drives glucose."""

    insulin: Input = var(
        "u[IU]/mL", neutral=6.0, doc="plasma insulin, linear between samples", plausible=(0.0, 1e4)
    )
    ra: Input = var("mg/kg/min", neutral=0.0, doc="rate of appearance; made from the parameters")


class State(eqx.Module):
    """Glucose and the action of insulin on it."""

    glucose: Scalar = var("mg/dL")
    action: Scalar = var("/min")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    glucose: Scalar = var("mg/dL", doc="plasma glucose", molar_mass=_GLUCOSE, plausible=(10.0, 1500.0))


def appearance(p: Params) -> Sampled:
    """The rate of appearance: straight between its breaks, of area f D / BW."""
    time = jnp.asarray(_BREAKS)
    zero, one = jnp.zeros_like(p.ra_30), jnp.ones_like(p.ra_30)
    shape = jnp.stack([zero, p.ra_10, p.ra_30, one, p.ra_90, p.ra_120, p.ra_180, p.ra_240, zero])
    area = jnp.sum((shape[1:] + shape[:-1]) / 2 * jnp.diff(time))
    return Sampled(time, p.f * p.D / p.BW / area * shape)


def dosing(u: Inputs, p: Params) -> Inputs:
    """The rate of appearance follows from the parameters."""
    return replace_fields(u, {"ra": appearance(p)})


def init(p: Params) -> State:
    """At rest, before the drink."""
    return State(glucose=p.Gb, action=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    return State(
        glucose=-(p.SG + x.action) * x.glucose + p.SG * p.Gb + u.ra / p.V,
        action=-p.p2 * x.action + p.p2 * p.SI * (u.insulin - p.Ib),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Plasma glucose."""
    return Outputs(glucose=x.glucose)


def example() -> Record:
    """75 g of glucose drunk, and glucose and insulin measured at eleven times over five hours.

    Times: Dalla Man et al. 2002; a usual course of insulin, chosen here.
    """
    times = [0.0, 10.0, 20.0, 30.0, 60.0, 90.0, 120.0, 150.0, 180.0, 240.0, 300.0]
    insulin = Sampled(times, [6.0, 18.0, 35.0, 46.0, 58.0, 52.0, 42.0, 30.0, 20.0, 9.0, 6.0])
    return Record(Inputs(insulin=insulin), {"glucose": Series(times, np.zeros(len(times)))})


oral_minimal_model = Model(
    name="oral_minimal_model",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=combined,
    dosing=dosing,
    time="min",
    source="Dalla Man, Caumo & Cobelli 2002, IEEE Trans Biomed Eng 49:419, doi 10.1109/10.995680",
    valid="An oral glucose test or one meal at time 0, in people at rest and fasting before it, with insulin "
    "measured along with glucose.",
    stiffness="Time constants of 15 (SG and action) to 80 min (p2): an explicit solver.",
    checked="Glucose and action over 5 h agree with an 8th-order solve at 1e-12 to 1e-8 (relative).",
    example=example,
)
