"""Weight, HbA1c, insulin and glucose over a trial in type 2 diabetes: the WHIG model, on placebo.

Source: Duong et al. 2017, Br J Clin Pharmacol 83:487, doi:10.1111/bcp.13144, after Choy et al. 2016, CPT
Pharmacometrics Syst Pharmacol 5:11, doi:10.1002/psp4.12058; values as read in nlmixr2lib
(endogenous/Duong_2016_WHIG_T2DM.R).

    weight' = k W0 ((1 - efde diet - efpl placebo) (1 + efloss t diet)) - k weight,   k = ln 2 / thalf
    S       = expit(-s0) (1 + scale (W0 - weight))
    B       = A0 expit(-(b0 + rb t)) (1 + efbt diet)
    insulin = B (glucose - G0),   glucose insulin S = GI       (both at once: the positive root)
    h1'     = ppg (1 + (sppg - 1) diet) + kin glucose - kout h1,   kout = 3 / mtt
    h2'     = kout (h1 - h2),   h3' = kout (h2 - h3),   HbA1c = h1 + h2 + h3

Insulin and glucose are fasting, and in balance at every moment. The inputs are 0 or 1: `diet` is diet,
exercise and the placebo of the run-in, from time 0 on in the trials; `placebo` the further loss of
weight in the phase of treatment, from day 42 on in the first study and absent in the others. Time counts
from the start of the study: the decline of beta cells and the loss of the effect on weight grow with it.
Without `diet` nothing is lost again.

Losing weight raises sensitivity here. The code in nlmixr2lib has the opposite sign, weight - W0, under
which weight loss would worsen glucose, against the aim of the papers and physiology; `scale` -0.0458 is
that code. The sensitivity is kept above 5 % of its start, which no one comes near: a guard.

The defaults are the first study's, obese and newly diagnosed; b0 0.677 is that of advanced disease.
Fitted in practice: W0, the effects on weight, s0, b0, scale and ppg; rb and mtt are known in the source
too, rb from a longer study.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.dynamics.solver import Solver

_DUONG = "Duong 2017, Table 4"
_IIV = _DUONG + ", value and between-subject spread"
_OWN = _DUONG + "; spread chosen here, since the one read, above 20 % of weight, is not plausible"
_ERROR = _DUONG + "; spread chosen here"


class Params(eqx.Module):
    """Parameters; the defaults are the typical patient of the first study."""

    W0: Scalar = param(102.0, "kg", lognormal(102.0, cv=0.161), source=_IIV, doc="weight at the start")
    thalf: Scalar = param(73.9, "d", source=_DUONG, doc="half-life of weight")
    efde: Scalar = param(0.030, "1", normal(0.030, 0.05), source=_OWN, doc="fall of weight by diet")
    efpl: Scalar = param(0.0346, "1", normal(0.0346, 0.05), source=_OWN, doc="further fall by placebo")
    efloss: Scalar = param(
        0.0376 / 365, "/d", source=_DUONG + ", 0.0376 in 365 days", doc="loss of the effects on weight"
    )
    scale: Scalar = param(
        0.0458, "/kg", lognormal(0.0458, cv=0.757), source=_IIV, doc="sensitivity gained by weight lost"
    )
    s0: Scalar = param(0.963, "1", normal(0.963, 0.485), source=_IIV, doc="sensitivity at the start, -logit")
    b0: Scalar = param(-0.298, "1", normal(-0.298, 1.13), source=_IIV, doc="beta-cell function, -logit")
    rb: Scalar = param(0.209 / 365, "/d", source="Choy 2016, 0.209 in 365 days", doc="decline of beta cells")
    efbt: Scalar = param(
        0.0781, "1", normal(0.0781, 0.053), source=_IIV, doc="gain of beta-cell function by diet"
    )
    kin: Scalar = param(0.0152, "%.L/mmol/d", source=_DUONG, doc="HbA1c made by fasting glucose")
    mtt: Scalar = param(38.9, "d", source="Choy 2016", doc="transit time of HbA1c")
    ppg: Scalar = param(
        0.057, "%/d", lognormal(0.057, cv=0.256), source=_IIV, doc="HbA1c made by glucose after meals"
    )
    sppg: Scalar = param(0.967, "1", source=_DUONG, doc="what diet leaves of ppg")
    A0: Scalar = param(
        7.8, "u[IU].L/mL/mmol", source="Choy 2016: 7.8 u[IU]/mL in health", doc="insulin by glucose above G0"
    )
    G0: Scalar = param(3.5, "mmol/L", source="Choy 2016", doc="glucose without secretion")
    GI: Scalar = param(
        35.1, "mmol.u[IU]/L/mL", source="Choy 2016: 4.5 mmol/L times 7.8 u[IU]/mL", doc="balance in health"
    )
    cv_weight: Scalar = param(0.0096, "1", lognormal(0.0096, log_sd=0.5), source=_ERROR, doc="sd of the log")
    cv_insulin: Scalar = param(0.265, "1", lognormal(0.265, log_sd=0.5), source=_ERROR, doc="sd of the log")
    cv_glucose: Scalar = param(0.0841, "1", lognormal(0.0841, log_sd=0.5), source=_ERROR, doc="sd of the log")
    cv_hba1c: Scalar = param(0.0254, "1", lognormal(0.0254, log_sd=0.5), source=_ERROR, doc="sd of the log")


class Inputs(eqx.Module):
    """What the trial does."""

    diet: Input = var("1", neutral=0.0, doc="1 from the start of diet, exercise and placebo on")
    placebo: Input = var("1", neutral=0.0, doc="1 from the start of the phase of treatment on")


class State(eqx.Module):
    """Weight, and haemoglobin by its glycation in transit."""

    weight: Scalar = var("kg")
    h1: Scalar = var("%")
    h2: Scalar = var("%")
    h3: Scalar = var("%")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    weight: Scalar = var("kg", doc="body weight", plausible=(20.0, 500.0))
    insulin: Scalar = var("u[IU]/mL", doc="fasting insulin", plausible=(0.0, 1e4))
    glucose: Scalar = var("mmol/L", doc="fasting glucose", molar_mass=180.156, plausible=(0.5, 80.0))
    hba1c: Scalar = var("%", doc="HbA1c, NGSP", plausible=(2.0, 25.0))


class Fasting(eqx.Module):
    """Insulin and glucose in balance."""

    insulin: Scalar = var("u[IU]/mL")
    glucose: Scalar = var("mmol/L")


def fasting(t: Scalar, weight: Scalar, diet: Scalar, p: Params) -> Fasting:
    """Insulin and glucose at time `t`, in balance with each other."""
    gained = jnp.maximum(1.0 + p.scale * (p.W0 - weight), 0.05)
    S = jax.nn.sigmoid(-p.s0) * gained
    B = p.A0 * jax.nn.sigmoid(-(p.b0 + p.rb * t)) * (1.0 + p.efbt * diet)
    half = p.G0 * B * S / 2.0
    insulin = p.GI * B / (half + jnp.sqrt(half**2 + S * p.GI * B))
    return Fasting(insulin=insulin, glucose=p.G0 + insulin / B)


def init(p: Params) -> State:
    """At rest before the trial."""
    zero = jnp.zeros_like(p.W0)
    h = (p.ppg + p.kin * fasting(zero, p.W0, zero, p).glucose) * p.mtt / 3.0
    return State(weight=p.W0, h1=h, h2=h, h3=h)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per day."""
    k, kout = jnp.log(2.0) / p.thalf, 3.0 / p.mtt
    aim = p.W0 * (1.0 - p.efde * u.diet - p.efpl * u.placebo) * (1.0 + p.efloss * t * u.diet)
    made = p.ppg * (1.0 + (p.sppg - 1.0) * u.diet) + p.kin * fasting(t, x.weight, u.diet, p).glucose
    return State(
        weight=k * (aim - x.weight),
        h1=made - kout * x.h1,
        h2=kout * (x.h1 - x.h2),
        h3=kout * (x.h2 - x.h3),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Weight, fasting insulin and glucose, HbA1c."""
    now = fasting(t, x.weight, u.diet, p)
    return Outputs(weight=x.weight, insulin=now.insulin, glucose=now.glucose, hba1c=x.h1 + x.h2 + x.h3)


def example() -> Record:
    """A trial of 66 weeks: six of run-in, then placebo, with a visit every six weeks."""
    times = 42.0 * np.arange(12.0)
    visits = Series(times, np.zeros(len(times)))
    inputs = Inputs(diet=1.0, placebo=Steps([0.0, 42.0], [0.0, 1.0]))
    return Record(inputs, dict.fromkeys(("weight", "insulin", "glucose", "hba1c"), visits))


whig = Model(
    name="whig",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    time="d",
    solver=Solver(rtol=1e-6, atol=(1e-6, 1e-8, 1e-8, 1e-8)),
    source="Duong et al. 2017, Br J Clin Pharmacol 83:487, doi 10.1111/bcp.13144",
    valid="Type 2 diabetes on diet, exercise and placebo, for the 66 weeks of the longest trial: no drug. The"
    " decline of beta cells goes on in time from the start also without diet.",
    stiffness="Time constants of 13 (HbA1c) to 107 days (weight): an explicit solver.",
    checked="All states and outputs over 66 weeks agree to 1e-7 with another transcription, under its sign of"
    " `scale`.",
    example=example,
)
