"""Glucose in type 1 diabetes with meals, subcutaneous insulin and a sensor: the model of ReplayBG.

Source: Cappon, Vettoretti, Sparacino, Del Favero & Facchinetti 2023, IEEE Trans Biomed Eng 70:3227, doi
10.1109/TBME.2023.3286856 ("ReplayBG"); constants and priors as in its package, gcappon/py_replay_bg 1.4.0.

    Qsto1' = meal(t - beta) / BW - kgri Qsto1
    Qsto2' = kgri Qsto1 - kempt Qsto2,   Qgut' = kempt Qsto2 - kabs Qgut
    Isc1'  = insulin(t - tau) / BW + basal u0 - kd Isc1,   Isc2' = kd Isc1 - ka2 Isc2
    Ip'    = ka2 Isc2 - ke Ip
    X'     = p2 (SI (Ip - Ipb) / VI - X),   Ipb = u0 / ke
    G'     = -(SG + rho X) G + SG Gb + f kabs Qgut / VG
    IG'    = (G - IG) / alpha
    rho    = 1 + 10 r1 (ln(Gb)^r2 - ln(G)^r2)^2,   G in mg/dL and held within [60, Gb]

rho, the stronger action of insulin in hypoglycaemia, has a kink at 60 mg/dL, where the right-hand side
is continuous, so that the solver steps over it. The delays move the doses themselves, exactly.

This is the differential equation of the package, which steps it with an implicit Euler method of one
minute, and with rho of the step before: at its own example that is 2.5 to 3 mg/dL off. In the package
Qsto1 empties at kgri but Qsto2 fills at kempt, which conserves carbohydrate only where the two are
equal, as when it fits; here what leaves the one enters the other.

A patient rests at `Gb` under the infusion `u0`; the input `basal` is a multiple of it. With a pump's
record give all insulin as doses and `basal` 0.

Fitted in practice: SI, SG, p2, Gb, kd, ka2, kempt (= kgri, known apart here), kabs and beta. The
package's priors are kept where a family allows it: SI of Gamma(3.3, 5e-4) over VG, Gb normal within [70,
180], SG, ka2 and kempt log-normal. Those it cuts by another parameter are not cut here (kd > ka2, kabs <
kempt). For the normal root of p2 stands the log-normal with the same median and spread to first order.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import gamma, lognormal, normal, uniform
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses, Input, delay
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_GLUCOSE = 180.156  # g/mol
_PACKAGE = "py_replay_bg 1.4.0"
_PRIOR = "py_replay_bg 1.4.0, value and prior"
_CHOSEN = "chosen here"


class Params(eqx.Module):
    """Parameters; the defaults are those of the package's average patient."""

    BW: Scalar = param(70.0, "kg", source=_CHOSEN, doc="body weight")
    u0: Scalar = param(
        0.9 * 1000 / 60 / 70,
        "m[IU]/kg/min",
        source="0.9 U/h at 70 kg, chosen here",
        doc="basal insulin, that which holds glucose at Gb",
    )
    Gb: Scalar = param(
        119.13, "mg/dL", normal(119.13, 7.11, low=70.0, high=180.0), source=_PRIOR, doc="basal glucose"
    )
    VG: Scalar = param(1.45, "dL/kg", source=_PACKAGE, doc="volume of glucose")
    SG: Scalar = param(
        0.025, "/min", lognormal(0.022371, log_sd=0.5), source=_PRIOR, doc="glucose effectiveness"
    )
    SI: Scalar = param(
        10.35e-4 / 1.45,
        "mL/u[IU]/min",
        gamma(3.3, 1.45 / 5e-4),
        source=_PRIOR + ", divided by VG 1.45",
        doc="insulin sensitivity",
    )
    p2: Scalar = param(
        0.012,
        "/min",
        lognormal(0.0121, log_sd=0.0727),
        source="py_replay_bg 1.4.0: root of mean 0.11 and sd 0.004",
        doc="decay of insulin action",
    )
    r1: Scalar = param(1.4407, "1", source=_PACKAGE, doc="size of the stronger action in hypoglycaemia")
    r2: Scalar = param(0.8124, "1", source=_PACKAGE, doc="shape of the stronger action in hypoglycaemia")
    G_low: Scalar = param(60.0, "mg/dL", source=_PACKAGE, doc="glucose below which that is no stronger")
    G_unit: Scalar = param(1.0, "mg/dL", doc="unit of glucose in the formula of rho")
    alpha: Scalar = param(7.0, "min", source=_PACKAGE, doc="delay of glucose under the skin")
    VI: Scalar = param(0.135, "L/kg", source=_PACKAGE, doc="volume of insulin")
    ke: Scalar = param(0.127, "/min", source=_PACKAGE, doc="elimination of insulin")
    kd: Scalar = param(
        0.026, "/min", lognormal(0.029927, log_sd=0.6187), source=_PRIOR, doc="dissociation of insulin"
    )
    ka2: Scalar = param(
        0.014, "/min", lognormal(0.013739, log_sd=0.4274), source=_PRIOR, doc="absorption of insulin"
    )
    tau: Scalar = param(8.0, "min", source=_PACKAGE, doc="delay of insulin")
    kgri: Scalar = param(0.18, "/min", source=_PACKAGE, doc="grinding in the stomach")
    kempt: Scalar = param(
        0.18, "/min", lognormal(0.140212, log_sd=0.7069), source=_PRIOR, doc="emptying of the stomach"
    )
    kabs: Scalar = param(
        0.012, "/min", lognormal(0.0042574, log_sd=1.4396), source=_PRIOR, doc="absorption from the gut"
    )
    beta: Scalar = param(
        10.0, "min", uniform(0.0, 60.0), source=_PRIOR + "; value chosen here", doc="delay of meals"
    )
    f: Scalar = param(0.9, "1", source=_PACKAGE, doc="fraction of carbohydrate absorbed")
    sd: Scalar = param(
        5.0,
        "mg/dL",
        lognormal(5.0, log_sd=0.5),
        source="value: py_replay_bg 1.4.0; prior weakly informative, chosen here",
        doc="additive error",
    )


class Inputs(eqx.Module):
    """What is eaten and injected."""

    meal: Input = var("mg/min", neutral=0.0, doc="carbohydrate")
    insulin: Input = var("m[IU]/min", neutral=0.0, doc="subcutaneous insulin")
    basal: Input = var("1", neutral=1.0, doc="further insulin, as a multiple of u0")


class State(eqx.Module):
    """Glucose, action of insulin, stomach and gut, insulin, and glucose under the skin."""

    G: Scalar = var("mg/dL")
    X: Scalar = var("/min")
    Qsto1: Scalar = var("mg/kg")
    Qsto2: Scalar = var("mg/kg")
    Qgut: Scalar = var("mg/kg")
    Isc1: Scalar = var("m[IU]/kg")
    Isc2: Scalar = var("m[IU]/kg")
    Ip: Scalar = var("m[IU]/kg")
    IG: Scalar = var("mg/dL")


class Outputs(eqx.Module):
    """What is measured."""

    # Wide guards against a wrong unit, not limits of physiology.
    cgm: Scalar = var("mg/dL", doc="glucose sensor", molar_mass=_GLUCOSE, plausible=(5.0, 1500.0))


def risk(G: Scalar, p: Params) -> Scalar:
    """How much stronger insulin acts at a glucose below basal, 1 above it."""

    def bend(glucose: Scalar) -> Scalar:
        return jnp.log(glucose / p.G_unit) ** p.r2

    held = jnp.clip(G, jnp.minimum(p.G_low, p.Gb), p.Gb)
    return 1.0 + 10.0 * p.r1 * (bend(p.Gb) - bend(held)) ** 2


def dosing(u: Inputs, p: Params) -> Inputs:
    """Meals and insulin reach the stomach and the tissue after their delays."""
    return Inputs(meal=delay(u.meal, p.beta), insulin=delay(u.insulin, p.tau), basal=delay(u.basal, p.tau))


def init(p: Params) -> State:
    """At rest under basal insulin, fasting."""
    none = jnp.zeros_like(p.Gb)
    return State(
        G=p.Gb,
        X=none,
        Qsto1=none,
        Qsto2=none,
        Qgut=none,
        Isc1=p.u0 / p.kd,
        Isc2=p.u0 / p.ka2,
        Ip=p.u0 / p.ke,
        IG=p.Gb,
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per minute."""
    return State(
        G=-(p.SG + risk(x.G, p) * x.X) * x.G + p.SG * p.Gb + p.f * p.kabs * x.Qgut / p.VG,
        X=p.p2 * (p.SI * (x.Ip - p.u0 / p.ke) / p.VI - x.X),
        Qsto1=u.meal / p.BW - p.kgri * x.Qsto1,
        Qsto2=p.kgri * x.Qsto1 - p.kempt * x.Qsto2,
        Qgut=p.kempt * x.Qsto2 - p.kabs * x.Qgut,
        Isc1=u.insulin / p.BW + u.basal * p.u0 - p.kd * x.Isc1,
        Isc2=p.kd * x.Isc1 - p.ka2 * x.Isc2,
        Ip=p.ka2 * x.Isc2 - p.ke * x.Ip,
        IG=(x.G - x.IG) / p.alpha,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Glucose under the skin."""
    return Outputs(cgm=x.IG)


def example() -> Record:
    """A sensor every 5 min for 8 h about a meal of 60 g with 5 units of insulin: one interval to replay."""
    times = np.arange(0.0, 481.0, 5.0)
    inputs = Inputs(meal=Doses([60.0], [60e3]), insulin=Doses([60.0], [5e3]))
    return Record(inputs, {"cgm": Series(times, np.zeros(len(times)))})


replay_bg = Model(
    name="replay_bg",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    dosing=dosing,
    time="min",
    solver=Solver(rtol=1e-6, atol=(1e-5, 1e-9, 1e-4, 1e-4, 1e-4, 1e-6, 1e-6, 1e-7, 1e-5)),
    source="Cappon et al. 2023, IEEE Trans Biomed Eng 70:3227, doi 10.1109/TBME.2023.3286856",
    valid="Type 1 diabetes, one meal interval or a day with its records of meals, insulin and sensor, to be"
    " replayed with other meals or insulin: no glucagon, no exercise.",
    stiffness="Time constants of 6 (stomach) to 80 min (gut and action): an explicit solver.",
    checked="All nine states over 8 h with a meal and a bolus agree with an 8th-order solve to 1e-7.",
    example=example,
)
