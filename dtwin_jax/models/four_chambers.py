"""The whole circulation: four heart chambers with linear elastance, systemic and pulmonary vessels.

Source: Korakianitis & Shi 2006, J Biomech 39:1964, doi 10.1016/j.jbiomech.2005.06.016; values as in
ModularCirc (alan-turing-institute/ModularCirc, commit d13c993, KorakianitisModel_parameters.py).

    phase' = 1 / period                              s = period * (phase mod 1), time since the beat began
    V_lv' = Q_mi - Q_ao     V_rv' = Q_ti - Q_po      chambers: P = (Emin + (Emax - Emin) a(s)) (V - V0)
    V_la' = Q_pvn - Q_mi    V_ra' = Q_svn - Q_ti
    V_sas' = Q_ao - Q_sas   V_pas' = Q_po - Q_pas    sinuses: P = V / C,     L Q' = P - P_next - R Q
    V_sat' = Q_sas - Q_sat  V_pat' = Q_pas - Q_pat   arteries: P = V / C,    L Q' = P - P_next - R Q
    V_svn' = Q_sat - Q_svn + infusion                veins: P = (V - Vu) / C,  Q = (P - P_atrium) / R
    V_pvn' = Q_pat - Q_pvn
    valves: Q = CQ dP / sqrt(dP + eps) for dP > 0, else 0
    ventricles: a = (1 - cos(pi s / tr)) / 2 to tr, (1 + cos(pi (s - tr) / (td - tr))) / 2 to td, then 0
    atria: a = (1 - cos(2 pi s' / tpww)) / 2 for s' < tpww, else 0; s' = s + lead, within the period

The paper's valve, CQ sqrt(dP), has an infinite slope at no pressure difference; eps smooths it at a cost
that `checked` tells. The corners of `a` and of the valves
are kinks of the right-hand side: continuous, so the solver steps over them. The phase is a state so that
the period may change in time (a baroreflex drives it, Emax_lv, Emax_rv, R_sat and Vu_svn); the durations
of contraction do not change with it.
Fitted in practice: R_sat, C_sat, Emax_lv, and the total volume, here by the unstressed volume of the veins,
whose effect is the opposite; the period is measured. C_svn and Vu_svn are not told apart by one state of
filling.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_SET = "Korakianitis & Shi 2006, as in ModularCirc"
_FITTED = _SET + "; prior: weakly informative, chosen here"
_SPLIT = "a physiological split of 941 mL of stressed volume, chosen here"
_ERROR = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of the circulation."""

    period: Scalar = param(1.0, "s", source=_SET, doc="of the heart, measured")
    Emax_lv: Scalar = param(
        2.5, "mm[Hg]/mL", lognormal(2.5, log_sd=0.3), source=_FITTED, doc="greatest elastance, left ventricle"
    )
    Emax_rv: Scalar = param(1.15, "mm[Hg]/mL", source=_SET, doc="greatest elastance, right ventricle")
    R_sat: Scalar = param(
        1.07, "mm[Hg].s/mL", lognormal(1.07, log_sd=0.3), source=_FITTED, doc="systemic resistance"
    )
    C_sat: Scalar = param(
        1.6, "mL/mm[Hg]", lognormal(1.6, log_sd=0.3), source=_FITTED, doc="systemic arteries"
    )
    Vu_svn: Scalar = param(
        0.0,
        "mL",
        normal(0.0, 100.0),
        source=_FITTED,
        doc="unstressed volume of systemic veins, beside the set's",
    )
    Emin_lv: Scalar = param(0.1, "mm[Hg]/mL", source=_SET, doc="least elastance, left ventricle")
    Emin_rv: Scalar = param(0.1, "mm[Hg]/mL", source=_SET, doc="least elastance, right ventricle")
    Emin_la: Scalar = param(0.15, "mm[Hg]/mL", source=_SET, doc="least elastance, left atrium")
    Emax_la: Scalar = param(0.25, "mm[Hg]/mL", source=_SET, doc="greatest elastance, left atrium")
    Emin_ra: Scalar = param(0.15, "mm[Hg]/mL", source=_SET, doc="least elastance, right atrium")
    Emax_ra: Scalar = param(0.25, "mm[Hg]/mL", source=_SET, doc="greatest elastance, right atrium")
    V0_lv: Scalar = param(5.0, "mL", source=_SET, doc="unstressed volume, left ventricle")
    V0_rv: Scalar = param(10.0, "mL", source=_SET, doc="unstressed volume, right ventricle")
    V0_la: Scalar = param(4.0, "mL", source=_SET, doc="unstressed volume, left atrium")
    V0_ra: Scalar = param(4.0, "mL", source=_SET, doc="unstressed volume, right atrium")
    tr: Scalar = param(0.3, "s", source=_SET, doc="end of contraction of the ventricles")
    td: Scalar = param(0.45, "s", source=_SET, doc="end of relaxation of the ventricles")
    tpww: Scalar = param(0.09, "s", source=_SET, doc="duration of contraction of the atria")
    lead: Scalar = param(0.08, "s", source=_SET, doc="the atria start so much before the ventricles")
    CQ_ao: Scalar = param(350.0, "mL/s", source=_SET, doc="aortic valve, at 1 mm[Hg]")
    CQ_mi: Scalar = param(400.0, "mL/s", source=_SET, doc="mitral valve, at 1 mm[Hg]")
    CQ_po: Scalar = param(350.0, "mL/s", source=_SET, doc="pulmonary valve, at 1 mm[Hg]")
    CQ_ti: Scalar = param(400.0, "mL/s", source=_SET, doc="tricuspid valve, at 1 mm[Hg]")
    mmHg: Scalar = param(1.0, "mm[Hg]", doc="unit of the pressure difference in the law of the valves")
    eps: Scalar = param(1e-4, "mm[Hg]", source="chosen here, see checked", doc="smooths the valves, above 0")
    R_sas: Scalar = param(0.003, "mm[Hg].s/mL", source=_SET, doc="aortic sinus")
    C_sas: Scalar = param(0.08, "mL/mm[Hg]", source=_SET, doc="aortic sinus")
    L_sas: Scalar = param(6.2e-5, "mm[Hg].s2/mL", source=_SET, doc="aortic sinus")
    L_sat: Scalar = param(0.0017, "mm[Hg].s2/mL", source=_SET, doc="systemic arteries")
    R_svn: Scalar = param(0.075, "mm[Hg].s/mL", source=_SET, doc="systemic veins")
    C_svn: Scalar = param(20.5, "mL/mm[Hg]", source=_SET, doc="systemic veins")
    R_pas: Scalar = param(0.002, "mm[Hg].s/mL", source=_SET, doc="pulmonary sinus")
    C_pas: Scalar = param(0.18, "mL/mm[Hg]", source=_SET, doc="pulmonary sinus")
    L_pas: Scalar = param(5.2e-5, "mm[Hg].s2/mL", source=_SET, doc="pulmonary sinus")
    R_pat: Scalar = param(0.31, "mm[Hg].s/mL", source=_SET, doc="pulmonary arteries")
    C_pat: Scalar = param(3.8, "mL/mm[Hg]", source=_SET, doc="pulmonary arteries")
    L_pat: Scalar = param(0.0017, "mm[Hg].s2/mL", source=_SET, doc="pulmonary arteries")
    R_pvn: Scalar = param(0.006, "mm[Hg].s/mL", source=_SET, doc="pulmonary veins")
    C_pvn: Scalar = param(20.5, "mL/mm[Hg]", source=_SET, doc="pulmonary veins")
    V_lv_start: Scalar = param(120.0, "mL", source=_SPLIT, doc="left ventricle at the start")
    V_la_start: Scalar = param(60.0, "mL", source=_SPLIT, doc="left atrium at the start")
    V_rv_start: Scalar = param(120.0, "mL", source=_SPLIT, doc="right ventricle at the start")
    V_ra_start: Scalar = param(60.0, "mL", source=_SPLIT, doc="right atrium at the start")
    V_sas_start: Scalar = param(8.0, "mL", source=_SPLIT, doc="aortic sinus at the start")
    V_sat_start: Scalar = param(150.0, "mL", source=_SPLIT, doc="systemic arteries at the start")
    V_svn_start: Scalar = param(200.0, "mL", source=_SPLIT, doc="systemic veins at the start")
    V_pas_start: Scalar = param(3.0, "mL", source=_SPLIT, doc="pulmonary sinus at the start")
    V_pat_start: Scalar = param(60.0, "mL", source=_SPLIT, doc="pulmonary arteries at the start")
    V_pvn_start: Scalar = param(160.0, "mL", source=_SPLIT, doc="pulmonary veins at the start")
    sd_pressure: Scalar = param(
        3.0, "mm[Hg]", lognormal(3.0, log_sd=1.0), source=_ERROR, doc="error of arterial pressure"
    )
    sd_pulmonary_pressure: Scalar = param(
        2.0, "mm[Hg]", lognormal(2.0, log_sd=1.0), source=_ERROR, doc="error of pulmonary pressure"
    )
    sd_venous_pressure: Scalar = param(
        1.0, "mm[Hg]", lognormal(1.0, log_sd=1.0), source=_ERROR, doc="error of venous pressure"
    )
    sd_ventricular_volume: Scalar = param(
        5.0, "mL", lognormal(5.0, log_sd=1.0), source=_ERROR, doc="error of ventricular volume"
    )


class Inputs(eqx.Module):
    """What is given or lost."""

    infusion: Input = var("mL/s", neutral=0.0, doc="fluid into the systemic veins; negative is blood loss")


class State(eqx.Module):
    """Phase of the heart, volumes, and flows that have inertia; also their rates of change."""

    V_lv: Scalar = var("mL")
    V_la: Scalar = var("mL")
    V_rv: Scalar = var("mL")
    V_ra: Scalar = var("mL")
    V_sas: Scalar = var("mL")
    V_sat: Scalar = var("mL")
    V_svn: Scalar = var("mL")
    V_pas: Scalar = var("mL")
    V_pat: Scalar = var("mL")
    V_pvn: Scalar = var("mL")
    Q_sas: Scalar = var("mL/s")
    Q_sat: Scalar = var("mL/s")
    Q_pas: Scalar = var("mL/s")
    Q_pat: Scalar = var("mL/s")
    phase: Scalar = var("1", doc="beats since the start")


class Pressures(eqx.Module):
    """Pressures by compartment."""

    lv: Scalar = var("mm[Hg]")
    la: Scalar = var("mm[Hg]")
    rv: Scalar = var("mm[Hg]")
    ra: Scalar = var("mm[Hg]")
    sas: Scalar = var("mm[Hg]")
    sat: Scalar = var("mm[Hg]")
    svn: Scalar = var("mm[Hg]")
    pas: Scalar = var("mm[Hg]")
    pat: Scalar = var("mm[Hg]")
    pvn: Scalar = var("mm[Hg]")


class Flows(eqx.Module):
    """Flows that have no inertia: through the valves and out of the veins."""

    ao: Scalar = var("mL/s")
    mi: Scalar = var("mL/s")
    po: Scalar = var("mL/s")
    ti: Scalar = var("mL/s")
    svn: Scalar = var("mL/s")
    pvn: Scalar = var("mL/s")


class Outputs(eqx.Module):
    """What is measured."""

    pressure: Scalar = var("mm[Hg]", doc="arterial, in the aortic sinus", plausible=(-20.0, 400.0))
    pulmonary_pressure: Scalar = var("mm[Hg]", doc="in the pulmonary sinus", plausible=(-20.0, 200.0))
    venous_pressure: Scalar = var("mm[Hg]", doc="in the systemic veins", plausible=(-20.0, 100.0))
    ventricular_volume: Scalar = var("mL", doc="of the left ventricle", plausible=(0.0, 1000.0))


def init(p: Params) -> State:
    """The start of contraction of the ventricles, blood at rest."""
    return State(
        V_lv=p.V_lv_start,
        V_la=p.V_la_start,
        V_rv=p.V_rv_start,
        V_ra=p.V_ra_start,
        V_sas=p.V_sas_start,
        V_sat=p.V_sat_start,
        V_svn=p.V_svn_start,
        V_pas=p.V_pas_start,
        V_pat=p.V_pat_start,
        V_pvn=p.V_pvn_start,
        Q_sas=0.0,
        Q_sat=0.0,
        Q_pas=0.0,
        Q_pat=0.0,
        phase=0.0,
    )


def ventricle_activation(phase: Scalar, p: Params) -> Scalar:
    """Share of the greatest elastance of the ventricles: up to tr, down to td."""
    s = p.period * jnp.mod(phase, 1.0)
    rise = jnp.clip(s / p.tr, 0.0, 1.0)
    fall = jnp.clip((s - p.tr) / (p.td - p.tr), 0.0, 1.0)
    return (jnp.cos(jnp.pi * fall) - jnp.cos(jnp.pi * rise)) / 2


def atrium_activation(phase: Scalar, p: Params) -> Scalar:
    """Share of the greatest elastance of the atria."""
    s = p.period * jnp.mod(phase + p.lead / p.period, 1.0)
    return (1 - jnp.cos(2 * jnp.pi * jnp.clip(s / p.tpww, 0.0, 1.0))) / 2


def valve(dP: Scalar, CQ: Scalar, p: Params) -> Scalar:
    """Flow through a valve: CQ sqrt(dP), smoothed where it opens."""
    open_by = jnp.maximum(dP, 0.0)
    return CQ * open_by / jnp.sqrt((open_by + p.eps) * p.mmHg)


def pressures(x: State, p: Params) -> Pressures:
    """Pressures from volumes."""
    ventricle, atrium = ventricle_activation(x.phase, p), atrium_activation(x.phase, p)
    return Pressures(
        lv=(p.Emin_lv + (p.Emax_lv - p.Emin_lv) * ventricle) * (x.V_lv - p.V0_lv),
        rv=(p.Emin_rv + (p.Emax_rv - p.Emin_rv) * ventricle) * (x.V_rv - p.V0_rv),
        la=(p.Emin_la + (p.Emax_la - p.Emin_la) * atrium) * (x.V_la - p.V0_la),
        ra=(p.Emin_ra + (p.Emax_ra - p.Emin_ra) * atrium) * (x.V_ra - p.V0_ra),
        sas=x.V_sas / p.C_sas,
        sat=x.V_sat / p.C_sat,
        svn=(x.V_svn - p.Vu_svn) / p.C_svn,
        pas=x.V_pas / p.C_pas,
        pat=x.V_pat / p.C_pat,
        pvn=x.V_pvn / p.C_pvn,
    )


def flows(P: Pressures, p: Params) -> Flows:
    """Flows that follow from pressures at once."""
    return Flows(
        ao=valve(P.lv - P.sas, p.CQ_ao, p),
        mi=valve(P.la - P.lv, p.CQ_mi, p),
        po=valve(P.rv - P.pas, p.CQ_po, p),
        ti=valve(P.ra - P.rv, p.CQ_ti, p),
        svn=(P.svn - P.ra) / p.R_svn,
        pvn=(P.pvn - P.la) / p.R_pvn,
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per second."""
    P = pressures(x, p)
    Q = flows(P, p)
    return State(
        V_lv=Q.mi - Q.ao,
        V_la=Q.pvn - Q.mi,
        V_rv=Q.ti - Q.po,
        V_ra=Q.svn - Q.ti,
        V_sas=Q.ao - x.Q_sas,
        V_sat=x.Q_sas - x.Q_sat,
        V_svn=x.Q_sat - Q.svn + u.infusion,
        V_pas=Q.po - x.Q_pas,
        V_pat=x.Q_pas - x.Q_pat,
        V_pvn=x.Q_pat - Q.pvn,
        Q_sas=(P.sas - P.sat - p.R_sas * x.Q_sas) / p.L_sas,
        Q_sat=(P.sat - P.svn - p.R_sat * x.Q_sat) / p.L_sat,
        Q_pas=(P.pas - P.pat - p.R_pas * x.Q_pas) / p.L_pas,
        Q_pat=(P.pat - P.pvn - p.R_pat * x.Q_pat) / p.L_pat,
        phase=1 / p.period,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Pressures at both sinuses and in the veins, volume of the left ventricle."""
    P = pressures(x, p)
    return Outputs(pressure=P.sas, pulmonary_pressure=P.pas, venous_pressure=P.svn, ventricular_volume=x.V_lv)


def example() -> Record:
    """Five beats with catheters in artery, pulmonary artery and vein, and the volume, 50 samples a second."""
    times = np.arange(0.0, 5.01, 0.02)
    seen = Series(times, np.zeros(len(times)))
    channels = ("pressure", "pulmonary_pressure", "venous_pressure", "ventricular_volume")
    return Record(Inputs(), dict.fromkeys(channels, seen))


four_chambers = Model(
    name="four_chambers",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="s",
    solver=Solver(rtol=1e-9, atol=1e-9, max_steps=2**16),
    source="Korakianitis & Shi 2006, J Biomech 39:1964, doi 10.1016/j.jbiomech.2005.06.016",
    valid="An adult at rest with four sound valves; volumes are stressed volumes, 941 mL in all.",
    stiffness="0.1 to 1 ms at the aortic valve with the inertance of the sinus, 3 s in the arteries; Tsit5 "
    "at 1e-9: at 1e-8, or with a smaller eps, its derivatives explode while the state is still right.",
    checked="Volumes within 1e-3 mL, pressures within 1e-2 mmHg of an independent solve with eps 0.",
    example=example,
)
