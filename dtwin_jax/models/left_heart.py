"""Left heart in a closed loop: atrium, ventricle, aorta, arteries and veins.

Source: Naghavi et al. 2024, Artif Intell Med 157:102995, doi 10.1016/j.artmed.2024.102995; values as in
ModularCirc 0.3.0 (alan-turing-institute/ModularCirc, commit d13c993, NaghaviModel). That program gives the
ventricle the atrium's times of activation; here the ventricle has the intended ones, 420, 280 and 25 ms.

    V_ao'  = q_av - q_ao                      P = (V - V0) / C in aorta, arteries, veins
    V_art' = q_ao - q_art                     P = a Eact (V - V0) + (1 - a) Epas (exp(k (V - V0)) - 1)
    V_ven' = q_art - q_ven + infusion             in atrium and ventricle
    V_la'  = q_ven - q_mv                     q_av, q_mv = (pressure difference)+ / R: the valves
    V_lv'  = q_mv - q_av                      other q = pressure difference / R
    a = (1 - cos(pi s / tmax)) / 2            for s <= ttr, s since the start of activation,
    a = a(ttr) exp(-(s - ttr) / tau)          later; the atrium is ahead of the ventricle by lead_la

Volumes are conserved but for the infusion. max(0, .) of the valves and the corner of `a` at ttr are kinks of
the right-hand side: continuous, so the solver steps over them. Where the period is so short that relaxation
is incomplete, `a` jumps at its end.
Fitted in practice: R_art, C_art, Eact_lv, and the volume, here that of the veins at the start; the period is
measured. Stroke volume, Eact_lv and V0_lv trade off without volumes.
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
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_SET = "Naghavi 2024, as in ModularCirc 0.3.0"
_FITTED = _SET + "; prior: weakly informative, chosen here"
_UNREACHED = 10.0
_ERROR = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of the loop."""

    R_art: Scalar = param(
        1.125,
        "mm[Hg].s/mL",
        lognormal(1.125, log_sd=0.3),
        source=_FITTED,
        doc="arterioles, arteries to veins",
    )
    C_art: Scalar = param(3.0, "mL/mm[Hg]", lognormal(3.0, log_sd=0.3), source=_FITTED, doc="arteries")
    Eact_lv: Scalar = param(
        3.0, "mm[Hg]/mL", lognormal(3.0, log_sd=0.3), source=_FITTED, doc="active elastance, ventricle"
    )
    V_ven_start: Scalar = param(
        3780.4,
        "mL",
        lognormal(3780.4, log_sd=0.05),
        source=_FITTED,
        doc="in the veins at the start: sets the total volume, 5200 mL",
    )
    period: Scalar = param(1.0, "s", source=_SET, doc="of the heart, measured")
    R_ao: Scalar = param(0.24, "mm[Hg].s/mL", source=_SET, doc="aorta to arteries")
    R_ven: Scalar = param(0.009, "mm[Hg].s/mL", source=_SET, doc="veins to atrium")
    R_av: Scalar = param(0.006, "mm[Hg].s/mL", source=_SET, doc="aortic valve")
    R_mv: Scalar = param(0.0041, "mm[Hg].s/mL", source=_SET, doc="mitral valve")
    C_ao: Scalar = param(0.3, "mL/mm[Hg]", source=_SET, doc="aorta")
    C_ven: Scalar = param(133.3, "mL/mm[Hg]", source=_SET, doc="veins")
    V0_ao: Scalar = param(100.0, "mL", source=_SET, doc="unstressed volume, aorta")
    V0_art: Scalar = param(900.0, "mL", source=_SET, doc="unstressed volume, arteries")
    V0_ven: Scalar = param(2800.0, "mL", source=_SET, doc="unstressed volume, veins")
    Epas_la: Scalar = param(0.44, "mm[Hg]", source=_SET, doc="passive pressure scale, atrium")
    Eact_la: Scalar = param(0.45, "mm[Hg]/mL", source=_SET, doc="active elastance, atrium")
    V0_la: Scalar = param(10.0, "mL", source=_SET, doc="unstressed volume, atrium")
    k_la: Scalar = param(0.05, "/mL", source=_SET, doc="passive stiffening, atrium")
    ttr_la: Scalar = param(0.225, "s", source=_SET, doc="start of relaxation, atrium")
    tmax_la: Scalar = param(0.15, "s", source=_SET, doc="time of greatest activation, atrium")
    tau_la: Scalar = param(0.025, "s", source=_SET, doc="relaxation, atrium")
    lead_la: Scalar = param(0.1, "s", source=_SET, doc="the atrium starts so much before the ventricle")
    Epas_lv: Scalar = param(1.0, "mm[Hg]", source=_SET, doc="passive pressure scale, ventricle")
    V0_lv: Scalar = param(10.0, "mL", source=_SET, doc="unstressed volume, ventricle")
    k_lv: Scalar = param(0.027, "/mL", source=_SET, doc="passive stiffening, ventricle")
    ttr_lv: Scalar = param(0.42, "s", source=_SET, doc="start of relaxation, ventricle")
    tmax_lv: Scalar = param(0.28, "s", source=_SET, doc="time of greatest activation, ventricle")
    tau_lv: Scalar = param(0.025, "s", source=_SET, doc="relaxation, ventricle")
    V_ao_start: Scalar = param(130.0, "mL", source=_SET, doc="aorta at the start")
    V_art_start: Scalar = param(1092.0, "mL", source=_SET, doc="arteries at the start")
    V_la_start: Scalar = param(93.6, "mL", source=_SET, doc="atrium at the start")
    V_lv_start: Scalar = param(104.0, "mL", source=_SET, doc="ventricle at the start")
    sd_pressure: Scalar = param(
        3.0, "mm[Hg]", lognormal(3.0, log_sd=1.0), source=_ERROR, doc="error of aortic pressure"
    )
    sd_ventricular_pressure: Scalar = param(
        3.0, "mm[Hg]", lognormal(3.0, log_sd=1.0), source=_ERROR, doc="error of ventricular pressure"
    )
    sd_ventricular_volume: Scalar = param(
        5.0, "mL", lognormal(5.0, log_sd=1.0), source=_ERROR, doc="error of ventricular volume"
    )


class Inputs(eqx.Module):
    """What is given or lost."""

    infusion: Input = var("mL/s", neutral=0.0, doc="fluid into the veins; negative is blood loss")


class State(eqx.Module):
    """Volumes; also their rates of change."""

    V_ao: Scalar = var("mL")
    V_art: Scalar = var("mL")
    V_ven: Scalar = var("mL")
    V_la: Scalar = var("mL")
    V_lv: Scalar = var("mL")


class Pressures(eqx.Module):
    """Pressures of the compartments."""

    ao: Scalar = var("mm[Hg]")
    art: Scalar = var("mm[Hg]")
    ven: Scalar = var("mm[Hg]")
    la: Scalar = var("mm[Hg]")
    lv: Scalar = var("mm[Hg]")


class Flows(eqx.Module):
    """Flows out of the ventricle and on, by what they pass."""

    av: Scalar = var("mL/s", doc="aortic valve")
    ao: Scalar = var("mL/s", doc="aorta to arteries")
    art: Scalar = var("mL/s", doc="arterioles")
    ven: Scalar = var("mL/s", doc="veins to atrium")
    mv: Scalar = var("mL/s", doc="mitral valve")


class Outputs(eqx.Module):
    """What is measured."""

    pressure: Scalar = var("mm[Hg]", doc="in the aorta", plausible=(-20.0, 400.0))
    ventricular_pressure: Scalar = var("mm[Hg]", doc="in the left ventricle", plausible=(-50.0, 400.0))
    ventricular_volume: Scalar = var("mL", doc="of the left ventricle", plausible=(0.0, 1000.0))


def init(p: Params) -> State:
    """The start of activation of the ventricle."""
    return State(
        V_ao=p.V_ao_start, V_art=p.V_art_start, V_ven=p.V_ven_start, V_la=p.V_la_start, V_lv=p.V_lv_start
    )


def activation(s: Scalar, ttr: Scalar, tmax: Scalar, tau: Scalar) -> Scalar:
    """How much of a chamber is active, `s` after its start: a raised cosine, then exponential relaxation."""
    raised = (1 - jnp.cos(jnp.pi * jnp.minimum(s, ttr) / tmax)) / 2
    return raised * jnp.exp(-jnp.maximum(s - ttr, 0.0) / tau)


def stretching(strain: Scalar) -> Scalar:
    """`exp(strain) - 1`, and its tangent beyond a strain of 10, which no living heart reaches.

    A solver that tries too long a step asks for pressures at absurd volumes: were they infinite, it would not
    find back to a shorter one.
    """
    beyond = jnp.maximum(strain - _UNREACHED, 0.0)
    return jnp.expm1(strain - beyond) + jnp.exp(_UNREACHED) * beyond


def pressures(t: Scalar, x: State, p: Params) -> Pressures:
    """Pressures from volumes."""
    a_la = activation(jnp.mod(t + p.lead_la, p.period), p.ttr_la, p.tmax_la, p.tau_la)
    a_lv = activation(jnp.mod(t, p.period), p.ttr_lv, p.tmax_lv, p.tau_lv)
    la, lv = x.V_la - p.V0_la, x.V_lv - p.V0_lv
    return Pressures(
        ao=(x.V_ao - p.V0_ao) / p.C_ao,
        art=(x.V_art - p.V0_art) / p.C_art,
        ven=(x.V_ven - p.V0_ven) / p.C_ven,
        la=a_la * p.Eact_la * la + (1 - a_la) * p.Epas_la * stretching(p.k_la * la),
        lv=a_lv * p.Eact_lv * lv + (1 - a_lv) * p.Epas_lv * stretching(p.k_lv * lv),
    )


def flows(pressure: Pressures, p: Params) -> Flows:
    """Flows from pressures; valves let none back."""
    return Flows(
        av=jnp.maximum(pressure.lv - pressure.ao, 0.0) / p.R_av,
        ao=(pressure.ao - pressure.art) / p.R_ao,
        art=(pressure.art - pressure.ven) / p.R_art,
        ven=(pressure.ven - pressure.la) / p.R_ven,
        mv=jnp.maximum(pressure.la - pressure.lv, 0.0) / p.R_mv,
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, mL/s."""
    q = flows(pressures(t, x, p), p)
    return State(
        V_ao=q.av - q.ao,
        V_art=q.ao - q.art,
        V_ven=q.art - q.ven + u.infusion,
        V_la=q.ven - q.mv,
        V_lv=q.mv - q.av,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Pressure in aorta and ventricle, volume of the ventricle."""
    pressure = pressures(t, x, p)
    return Outputs(pressure=pressure.ao, ventricular_pressure=pressure.lv, ventricular_volume=x.V_lv)


def example() -> Record:
    """Four beats with catheters in the artery and in the ventricle, 50 samples a second."""
    times = np.arange(0.0, 4.01, 0.02)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(), dict.fromkeys(("pressure", "ventricular_pressure", "ventricular_volume"), seen))


left_heart = Model(
    name="left_heart",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="s",
    solver=Solver(rtol=1e-8, atol=1e-6, max_steps=2**15),
    source="Naghavi et al. 2024, Artif Intell Med 157:102995, doi 10.1016/j.artmed.2024.102995",
    valid="An adult at rest with two sound left valves; no right heart, no lungs.",
    stiffness="1 to 5 ms at the open valves, 4 s in the arteries; Tsit5, 10 times as fast as Kvaerno5.",
    checked="At 1e-10, volumes to 1e-4 mL, pressures to 1e-3 mmHg of another solve; by default 3e-4 mL.",
    example=example,
)
