"""Haemodynamics under propofol and remifentanil: peripheral resistance, stroke volume, heart rate, pressure.

Source: Su, Koomen, Eleveld, Struys & Colin 2023, Br J Anaesth 131:222, doi 10.1016/j.bja.2023.04.043
(mechanism-based interaction model in healthy volunteers). Equations and values were read from a third-party
MATLAB transcription, not in the paper; a second transcription has the same values, and a third, later
python-anesthesia-simulator's, int_HR -0.0119 where both have -0.119.

    resistance' = kout TPR0 R^-FB (1 + on_TPR) - kout resistance (1 - off_TPR)
    stroke'     = kout SV0 R^-FB (1 + on_SV) - kout stroke (1 - off_SV)
    rate'       = kout HR0 R^-FB - kout rate (1 - off_HR)
    HR = rate + LTDE_HR HR0                              R = pressure / (pressure at the start)
    SV = (stroke + LTDE_SV SV0) (1 - HR_SV ln(HR / (HR0 (1 + LTDE_HR))))
    pressure = resistance HR SV
    on_TPR  = (Emax_TPR + int_TPR r / (EC50_TPR_remi + r)) s^g / (EC50_TPR^g + s^g)     s propofol
    off_TPR = Emax_TPR_remi r / (EC50_TPR_remi + r)                                     r remifentanil
    on_SV   = Emax_SV exp(0.0333 (age - 35)) s / (EC50_SV + s)
    off_SV  = (sl_SV + int_SV s / (EC50_SV + s)) r
    off_HR  = (sl_HR + int_HR s / (EC50_HR + s)) r

The first transcription starts the time-dependent parts at 0, where they stay, and adds their sizes LTDE as
constants; they are no states here. The two others have them start at LTDE and decay, by 0.067 a minute, so
that pressure falls by itself in the first hour: this model lacks that fall. Drug effects are cut at -0.999
and 0.999: kinks of the right-hand side: continuous, so the solver steps over them. Fitted in practice: the
three baselines and EC50_TPR; the feedback FB and kout are not identifiable from one patient.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import proportional

_SET = "Su 2023, as in two third-party transcriptions"
_PRIOR = _SET + "; prior: between-subject variance of the log"
_ERROR = "weakly informative, chosen here"
_LIMIT = 0.999


class Params(eqx.Module):
    """Parameters of volunteers."""

    TPR0: Scalar = param(
        0.0163, "mm[Hg].min/mL", lognormal(0.0163, log_sd=0.0528**0.5), source=_PRIOR, doc="resistance"
    )
    SV0: Scalar = param(82.2, "mL", lognormal(82.2, log_sd=0.0328**0.5), source=_PRIOR, doc="stroke volume")
    HR0: Scalar = param(56.1, "/min", lognormal(56.1, log_sd=0.0242**0.5), source=_PRIOR, doc="heart rate")
    EC50_TPR: Scalar = param(
        3.21, "ug/mL", lognormal(3.21, log_sd=0.44**0.5), source=_PRIOR, doc="propofol on resistance"
    )
    Emax_TPR: Scalar = param(-0.778, "1", source=_SET, doc="greatest effect of propofol on resistance")
    gamma: Scalar = param(1.83, "1", source=_SET, doc="steepness of propofol on resistance")
    Emax_SV: Scalar = param(
        -0.154, "1", source=_SET, doc="greatest effect of propofol on stroke volume, at 35"
    )
    EC50_SV: Scalar = param(0.44, "ug/mL", source=_SET, doc="propofol on stroke volume")
    SV_age: Scalar = param(0.0333, "/a", source=_SET, doc="log Emax_SV with age")
    Emax_TPR_remi: Scalar = param(-1.0, "1", source=_SET, doc="greatest effect of remifentanil on resistance")
    EC50_TPR_remi: Scalar = param(4.59, "ng/mL", source=_SET, doc="remifentanil on resistance")
    sl_SV: Scalar = param(0.0581, "mL/ng", source=_SET, doc="slope of remifentanil on stroke volume")
    sl_HR: Scalar = param(0.0327, "mL/ng", source=_SET, doc="slope of remifentanil on heart rate")
    int_TPR: Scalar = param(1.0, "1", source=_SET, doc="interaction on resistance")
    int_SV: Scalar = param(-0.212, "mL/ng", source=_SET, doc="interaction on stroke volume")
    int_HR: Scalar = param(-0.119, "mL/ng", source=_SET, doc="interaction on heart rate")
    EC50_HR: Scalar = param(0.196, "ug/mL", source=_SET, doc="propofol in the interaction on heart rate")
    FB: Scalar = param(0.661, "1", source=_SET, doc="feedback of pressure")
    kout: Scalar = param(0.072, "/min", source=_SET, doc="turnover")
    HR_SV: Scalar = param(0.312, "1", source=_SET, doc="stroke volume falls with heart rate")
    LTDE_HR: Scalar = param(0.121, "1", source=_SET, doc="time-dependent part of heart rate")
    LTDE_SV: Scalar = param(0.0899, "1", source=_SET, doc="time-dependent part of stroke volume")
    age: Scalar = param(35.0, "a", doc="age")
    age_ref: Scalar = param(35.0, "a", source=_SET, doc="age that Emax_SV is of")
    cv_pressure: Scalar = param(0.1, "1", lognormal(0.1, log_sd=0.5), source=_ERROR, doc="error of pressure")
    cv_heart_rate: Scalar = param(
        0.1, "1", lognormal(0.1, log_sd=0.5), source=_ERROR, doc="error of heart rate"
    )
    cv_stroke_volume: Scalar = param(
        0.1, "1", lognormal(0.1, log_sd=0.5), source=_ERROR, doc="error of stroke volume"
    )


class Inputs(eqx.Module):
    """Concentrations of both drugs."""

    propofol: Input = var("ug/mL", neutral=0.0, doc="in plasma", molar_mass=178.27, plausible=(0.0, 200.0))
    remifentanil: Input = var(
        "ng/mL", neutral=0.0, doc="in blood", molar_mass=376.45, plausible=(0.0, 2000.0)
    )


class State(eqx.Module):
    """What turns over."""

    resistance: Scalar = var("mm[Hg].min/mL")
    stroke: Scalar = var("mL")
    rate: Scalar = var("/min")


class Outputs(eqx.Module):
    """What is measured."""

    pressure: Scalar = var("mm[Hg]", doc="mean arterial pressure", plausible=(10.0, 250.0))
    heart_rate: Scalar = var("/min", doc="heart rate", plausible=(10.0, 300.0))
    stroke_volume: Scalar = var("mL", doc="stroke volume", plausible=(5.0, 300.0))


def init(p: Params) -> State:
    """No drug."""
    return State(resistance=p.TPR0, stroke=p.SV0, rate=p.HR0)


def circulate(x: State, p: Params) -> Outputs:
    """Pressure, heart rate and stroke volume from the state."""
    rate = x.rate + p.LTDE_HR * p.HR0
    relative = jnp.log(rate / (p.HR0 * (1 + p.LTDE_HR)))
    stroke = (x.stroke + p.LTDE_SV * p.SV0) * (1 - p.HR_SV * relative)
    return Outputs(pressure=x.resistance * rate * stroke, heart_rate=rate, stroke_volume=stroke)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    s, r = u.propofol, u.remifentanil
    relative = s / p.EC50_TPR
    given = relative > 0
    # relative^gamma has no derivative in gamma at 0.
    power = jnp.where(given, jnp.where(given, relative, 1.0) ** p.gamma, 0.0)
    remifentanil = r / (p.EC50_TPR_remi + r)
    on_TPR = (p.Emax_TPR + p.int_TPR * remifentanil) * power / (1 + power)
    propofol = s / (p.EC50_SV + s)
    on_SV = p.Emax_SV * jnp.exp(p.SV_age * (p.age - p.age_ref)) * propofol
    off_TPR = p.Emax_TPR_remi * remifentanil
    off_SV = (p.sl_SV + p.int_SV * propofol) * r
    off_HR = (p.sl_HR + p.int_HR * s / (p.EC50_HR + s)) * r
    start = p.TPR0 * p.HR0 * (1 + p.LTDE_HR) * p.SV0 * (1 + p.LTDE_SV)
    reflex = (circulate(x, p).pressure / start) ** -p.FB

    def turnover(base, value, on, off):
        on, off = jnp.maximum(on, -_LIMIT), jnp.minimum(off, _LIMIT)
        return p.kout * (base * reflex * (1 + on) - value * (1 - off))

    return State(
        resistance=turnover(p.TPR0, x.resistance, on_TPR, off_TPR),
        stroke=turnover(p.SV0, x.stroke, on_SV, off_SV),
        rate=turnover(p.HR0, x.rate, 0.0, off_HR),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Pressure, heart rate and stroke volume."""
    return circulate(x, p)


def example() -> Record:
    """Targets of both drugs stepped up and back, and the circulation measured every two minutes."""
    times = np.arange(0.0, 91.0, 2.0)
    seen = Series(times, np.zeros(len(times)))
    propofol = Steps([0.0, 10.0, 40.0, 70.0], [0.0, 2.0, 4.0, 0.0])
    remifentanil = Steps([0.0, 25.0, 55.0], [0.0, 2.0, 4.0])
    inputs = Inputs(propofol=propofol, remifentanil=remifentanil)
    return Record(inputs, dict.fromkeys(("pressure", "heart_rate", "stroke_volume"), seen))


haemodynamics = Model(
    name="haemodynamics",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=proportional,
    time="min",
    source="Su et al. 2023, Br J Anaesth 131:222, doi 10.1016/j.bja.2023.04.043",
    valid="Healthy volunteers without surgery, once the rise of heart rate and stroke volume before induction"
    " is over or while it lasts: its decline is not in the model.",
    stiffness="10 to 20 min: not stiff, Tsit5.",
    checked="Resistance, rate, stroke volume and pressure, 1e-6 relative, against another transcription.",
    example=example,
)
