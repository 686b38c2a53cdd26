"""Action potential of a human ventricular cell: ten Tusscher and Panfilov, of the endo- and the epicardium.

Source: ten Tusscher & Panfilov 2006, Am J Physiol Heart Circ Physiol 291:H1088, doi
10.1152/ajpheart.00109.2006; equations and values compared with the CellML in Chaste/cellml
(ten_tusscher_model_2006_endo.cellml, _epi.cellml).

    V'    = -(i_K1 + i_to + i_Kr + i_Ks + i_pK + i_Na + i_bNa + i_NaK + i_CaL + i_NaCa + i_bCa + i_pCa
              + stimulus)
    gate' = (steady - gate) / tau         of m, h, j, Xr1, Xr2, Xs, r, s, d, f, f2 and fCass
    Ca_i' = free_i (V_sr / V_c (leak - up) + transfer - (i_bCa + i_pCa - 2 i_NaCa) Cm / (2 V_c F))
    Ca_SR'= free_SR (up - release - leak)
    Ca_ss'= free_ss (-i_CaL Cm / (2 V_ss F) + V_sr / V_ss release - V_c / V_ss transfer)
    R'    = k4 (1 - R) - k2 Ca_ss R
    Na_i' = -(i_Na + i_bNa + 3 i_NaK + 3 i_NaCa) Cm / (V_c F)
    K_i'  = -(i_K1 + i_to + i_Kr + i_Ks + i_pK - 2 i_NaK + stimulus) Cm / (V_c F)

Currents are in ten_tusscher_currents. Formulas take V in mV, concentrations in mmol/L, and give rates per
ms. The rates of h and j are cut at -40 mV, where the time constants jump by 1 to 2 %: the solver steps over
it. i_CaL, 0/0 at 15 mV, is a smooth function. Stimulus is a current of some duration (a dose given over
it), negative depolarises, and brings potassium. One action potential tells few of the conductances: g_Kr,
g_Ks and g_CaL trade off in its length.

Variants:
ten_tusscher_epi: Action potential of a human ventricular cell of the epicardium: ten Tusscher and Panfilov
ten_tusscher_endo: Action potential of a human ventricular cell of the endocardium: ten Tusscher and Panfilov
"""

from dataclasses import fields, replace

import diffrax
import equinox as eqx
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models.ten_tusscher_currents import calcium, gates, potassium, pumps, sodium

_PAPER = "ten Tusscher & Panfilov 2006"
_SPREAD = _PAPER + "; spread weakly informative, chosen here"


class Params(eqx.Module):
    """Conductances, volumes and what is outside, of an epicardial cell."""

    g_Na: Scalar = param(14.838, "nS/pF", lognormal(14.838, log_sd=0.5), source=_SPREAD, doc="fast sodium")
    g_CaL: Scalar = param(3.98e-5, "mL/uF/s", lognormal(3.98e-5, log_sd=0.5), source=_SPREAD, doc="calcium")
    g_to: Scalar = param(0.294, "nS/pF", lognormal(0.294, log_sd=0.5), source=_SPREAD, doc="transient")
    g_Kr: Scalar = param(0.153, "nS/pF", lognormal(0.153, log_sd=0.5), source=_SPREAD, doc="rapid")
    g_Ks: Scalar = param(0.392, "nS/pF", lognormal(0.392, log_sd=0.5), source=_SPREAD, doc="slow")
    g_K1: Scalar = param(5.405, "nS/pF", lognormal(5.405, log_sd=0.5), source=_SPREAD, doc="inward rectifier")
    g_pK: Scalar = param(0.0146, "nS/pF", source=_PAPER, doc="plateau potassium")
    g_bNa: Scalar = param(2.9e-4, "nS/pF", source=_PAPER, doc="background sodium")
    g_bCa: Scalar = param(5.92e-4, "nS/pF", source=_PAPER, doc="background calcium")
    g_pCa: Scalar = param(0.1238, "pA/pF", source=_PAPER, doc="calcium pump")
    P_NaK: Scalar = param(2.724, "pA/pF", source=_PAPER, doc="sodium-potassium pump")
    K_NaCa: Scalar = param(1000.0, "pA/pF", source=_PAPER, doc="sodium-calcium exchanger")
    P_kna: Scalar = param(0.03, "1", source=_PAPER, doc="permeability of i_Ks to sodium")
    Na_o: Scalar = param(140.0, "mmol/L", source=_PAPER, doc="sodium outside")
    K_o: Scalar = param(5.4, "mmol/L", source=_PAPER, doc="potassium outside")
    Ca_o: Scalar = param(2.0, "mmol/L", source=_PAPER, doc="calcium outside")
    V_c: Scalar = param(16.404, "pL", source=_PAPER + ": 16404 um3", doc="volume of the cytosol")
    V_sr: Scalar = param(1.094, "pL", source=_PAPER, doc="of the sarcoplasmic reticulum")
    V_ss: Scalar = param(0.05468, "pL", source=_PAPER, doc="of the subspace")
    Cm: Scalar = param(185.0, "pF", source=_PAPER, doc="capacitance")
    F: Scalar = param(96485.3415, "C/mol", doc="Faraday constant")
    RT_F: Scalar = param(8314.472 * 310 / 96485.3415, "mV", source=_PAPER + ": 310 K", doc="RT / F")
    mM: Scalar = param(1.0, "mmol/L", doc="unit of the formulas")
    mV: Scalar = param(1.0, "mV", doc="unit of the formulas")
    ms: Scalar = param(1.0, "ms", doc="unit of the formulas")
    epi: Scalar = param(1.0, "1", source=_PAPER, doc="1 epicardial, 0 endocardial inactivation of i_to")
    sd_voltage: Scalar = param(1.0, "mV", lognormal(1.0, log_sd=0.7), source="chosen here", doc="error")
    sd_calcium: Scalar = param(
        1e-5, "mmol/L", lognormal(1e-5, log_sd=0.7), source="chosen here", doc="additive error"
    )


class EndoParams(Params):
    """Conductances of an endocardial cell."""

    g_to: Scalar = param(0.073, "nS/pF", lognormal(0.073, log_sd=0.5), source=_SPREAD, doc="transient")
    epi: Scalar = param(0.0, "1", source=_PAPER, doc="1 epicardial, 0 endocardial inactivation of i_to")


class Inputs(eqx.Module):
    """Current out of the cell."""

    stimulus: Input = var("pA/pF", neutral=0.0, doc="negative depolarises")


class State(eqx.Module):
    """Voltage, gates, concentrations."""

    V: Scalar = var("mV")
    Xr1: Scalar = var("1")
    Xr2: Scalar = var("1")
    Xs: Scalar = var("1")
    m: Scalar = var("1")
    h: Scalar = var("1")
    j: Scalar = var("1")
    d: Scalar = var("1")
    f: Scalar = var("1")
    f2: Scalar = var("1")
    fCass: Scalar = var("1")
    s: Scalar = var("1")
    r: Scalar = var("1")
    Ca_i: Scalar = var("mmol/L")
    Ca_SR: Scalar = var("mmol/L")
    Ca_ss: Scalar = var("mmol/L")
    R: Scalar = var("1")
    Na_i: Scalar = var("mmol/L")
    K_i: Scalar = var("mmol/L")


class Outputs(eqx.Module):
    """What is measured."""

    voltage: Scalar = var("mV", doc="membrane potential", plausible=(-200.0, 200.0))
    calcium: Scalar = var("mmol/L", doc="free in the cytosol", plausible=(0.0, 1.0))


# At the start of a beat, as in the CellML: V, gates, Ca_i, Ca_SR, Ca_ss, R, Na_i, K_i in mV and mmol/L.
_EPI = (
    *(-85.23, 0.00621, 0.4712, 0.0095, 0.00172, 0.7444, 0.7045, 3.373e-5, 0.7888, 0.9755, 0.9953, 0.999998),
    *(2.42e-8, 0.000126, 3.64, 0.00036, 0.9073, 8.604, 136.89),
)
_ENDO = (
    *(-86.709, 0.00448, 0.476, 0.0087, 0.00155, 0.7573, 0.7225, 3.164e-5, 0.8009, 0.9778, 0.9953, 0.3212),
    *(2.235e-8, 0.00013, 3.715, 0.00036, 0.9068, 10.355, 138.4),
)


def _start(values: tuple[float, ...], p: Params) -> State:
    names = [field.name for field in fields(State)]
    units = {"V": p.mV, **dict.fromkeys(("Ca_i", "Ca_SR", "Ca_ss", "Na_i", "K_i"), p.mM)}
    found = dict(zip(names, values, strict=True))
    return State(**{name: value * units.get(name, 1.0) for name, value in found.items()})


def init(p: Params) -> State:
    """An epicardial cell before a beat."""
    return _start(_EPI, p)


def init_endo(p: Params) -> State:
    """An endocardial cell before a beat."""
    return _start(_ENDO, p)


def _free(held: Scalar, buffer: float, half: float, p: Params) -> Scalar:
    """Share of a change of calcium that stays free beside a fast buffer; all in mmol/L."""
    return 1 / (1 + buffer * half / (held / p.mM + half) ** 2)


def exchanges(x: State, p: Params) -> dict[str, Scalar]:
    """Flows of calcium between the compartments, and the rate of R, in mmol/L/ms and per ms."""
    subspace, stored = x.Ca_ss / p.mM, x.Ca_SR / p.mM
    kcasr = 2.5 - 1.5 / (1 + (1.5 / stored) ** 2)
    k1, k2 = 0.15 / kcasr, 0.045 * kcasr
    opened = k1 * subspace**2 * x.R / (0.06 + k1 * subspace**2)
    flow = p.mM / p.ms
    within = x.Ca_i / p.mM
    return {
        "release": 0.102 * opened * (x.Ca_SR - x.Ca_ss) / p.ms,
        "up": 0.006375 * flow * within**2 / (within**2 + 0.00025**2),
        "leak": 0.00036 * (x.Ca_SR - x.Ca_i) / p.ms,
        "transfer": 0.0038 * (x.Ca_ss - x.Ca_i) / p.ms,
        "R": (0.005 * (1 - x.R) - k2 * subspace * x.R) / p.ms,
    }


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per ms."""
    i_K, i_Na, i_Ca, i_pump = potassium(x, p), sodium(x, p), calcium(x, p), pumps(x, p)
    i_NaK, i_NaCa, i_pCa = i_pump["NaK"], i_pump["NaCa"], i_pump["pCa"]
    flow = exchanges(x, p)
    turned = {gate: (steady - getattr(x, gate)) / (tau * p.ms) for gate, (steady, tau) in gates(x, p).items()}
    # Of a current, the change of a concentration in the cytosol and in the subspace.
    cytosol, subspace = p.Cm / (p.V_c * p.F), p.Cm / (p.V_ss * p.F)
    Ca_i = (
        p.V_sr / p.V_c * (flow["leak"] - flow["up"])
        + flow["transfer"]
        - (i_Ca["b"] + i_pCa - 2 * i_NaCa) * cytosol / 2
    )
    Ca_ss = -i_Ca["L"] * subspace / 2 + p.V_sr / p.V_ss * flow["release"] - p.V_c / p.V_ss * flow["transfer"]
    return State(
        V=-(i_K + i_Na + i_Ca["L"] + i_Ca["b"] + i_NaK + i_NaCa + i_pCa + u.stimulus),
        Ca_i=_free(x.Ca_i, 0.2, 0.001, p) * Ca_i,
        Ca_SR=_free(x.Ca_SR, 10.0, 0.3, p) * (flow["up"] - flow["release"] - flow["leak"]),
        Ca_ss=_free(x.Ca_ss, 0.4, 0.00025, p) * Ca_ss,
        R=flow["R"],
        Na_i=-(i_Na + 3 * i_NaK + 3 * i_NaCa) * cytosol,
        K_i=-(i_K - 2 * i_NaK + u.stimulus) * cytosol,
        **turned,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Membrane potential and calcium."""
    return Outputs(voltage=x.V, calcium=x.Ca_i)


def example() -> Record:
    """One action potential, stimulated for 1 ms, seen every 5 ms."""
    times = 5.0 * np.arange(1.0, 81.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(
        Inputs(stimulus=Steps([0.0, 10.0, 11.0], [0.0, -52.0, 0.0])), {"voltage": seen, "calcium": seen}
    )


ten_tusscher_epi = Model(
    name="ten_tusscher_epi",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="ms",
    solver=Solver(method=diffrax.Kvaerno5, rtol=1e-6, atol=1e-9),
    source="ten Tusscher & Panfilov 2006, doi 10.1152/ajpheart.00109.2006",
    valid="One human ventricular cell at 37 degrees, paced near 1 Hz; seconds, not hours of drifting ions.",
    stiffness="0.001 ms (m) to 1 s (Xs), ions far slower: implicit, Kvaerno5; stimuli are events.",
    checked="The CellML by CVODES at 1e-11, one beat: 0.01 mV, in the upstroke 0.2 mV; APD90 0.05 ms.",
    example=example,
)

ten_tusscher_endo = replace(ten_tusscher_epi, name="ten_tusscher_endo", params=EndoParams, init=init_endo)
