"""Action potential of a human ventricular cell: O'Hara and Rudy's, in the form of CiPA for testing drugs.

Source: O'Hara, Virag, Varro & Rudy 2011, PLoS Comput Biol 7:e1002061, doi 10.1371/journal.pcbi.1002061;
hERG by Li et al. 2017, Circ Arrhythm Electrophysiol 10:e004628, doi 10.1161/CIRCEP.116.004628; conductances
by Dutta et al. 2017, Front Physiol 8:616, doi 10.3389/fphys.2017.00616; equations and values compared with
the CellML in Chaste/cellml (ohara_rudy_cipa_v1_2017.cellml). An endocardial cell.

    V'      = -(i_Na + i_NaL + i_to + i_CaL + i_CaNa + i_CaK + i_Kr + i_Ks + i_K1 + i_NaCa,i + i_NaCa,ss
                + i_NaK + i_Nab + i_Kb + i_pCa + i_Cab + stimulus)
    CaMKt'  = 0.05 bound (bound + CaMKt) - 0.00068 CaMKt
    Na_i'   = -(i_Na + i_NaL + 3 i_NaCa,i + 3 i_NaK + i_Nab) Cm / (F V_myo) + V_ss / V_myo diffNa
    Na_ss'  = -(i_CaNa + 3 i_NaCa,ss) Cm / (F V_ss) - diffNa
    K_i'    = -(i_to + i_Kr + i_Ks + i_K1 + i_Kb + stimulus - 2 i_NaK) Cm / (F V_myo) + V_ss / V_myo diffK
    K_ss'   = -i_CaK Cm / (F V_ss) - diffK
    Ca_i'   = free_i (-(i_pCa + i_Cab - 2 i_NaCa,i) Cm / (2 F V_myo) - V_nsr / V_myo up + V_ss / V_myo diff)
    Ca_ss'  = free_ss (-(i_CaL - 2 i_NaCa,ss) Cm / (2 F V_ss) + V_jsr / V_ss rel - diff)
    Ca_nsr' = up - V_jsr / V_nsr tr
    Ca_jsr' = free_jsr (tr - rel)
    gate'   = (steady - gate) / tau       of 28 gates; nca, the states of hERG and rel by their own rates

Currents are in ohara_rudy_currents, pumps and stores in ohara_rudy_calcium. Formulas take V in mV,
concentrations in mmol/L, and give rates per ms. i_CaL and the backgrounds, 0/0 at 0 mV, are smooth
functions. Stimulus is a current of some duration (a dose given over it), negative depolarises, and brings
potassium. A drug blocks by a smaller conductance, or binds to hERG as Li et al. have it: a concentration
`drug` with Kmax, Ku, hill, EC50 (their halfmax is EC50^hill), Kt and Vhalf; by default nothing binds. One
action potential tells few of the conductances: G_Kr, G_Ks, G_NaL and P_Ca trade off in its length.
"""

from dataclasses import fields

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
from dtwin_jax.models.ohara_rudy_calcium import flows, free, pumps, release
from dtwin_jax.models.ohara_rudy_currents import (
    calcium,
    calmodulin,
    gates,
    herg,
    kinase,
    potassium,
    sodium,
)

_PAPER = "O'Hara et al. 2011"
_SPREAD = _PAPER + "; spread weakly informative, chosen here"
_SCALED = "O'Hara et al. 2011 scaled by Dutta et al. 2017; spread weakly informative, chosen here"
_DRUG = "Li et al. 2017; no drug"


class Params(eqx.Module):
    """Conductances, volumes, what is outside, and a drug."""

    G_Na: Scalar = param(75.0, "mS/uF", lognormal(75.0, log_sd=0.5), source=_SPREAD, doc="fast sodium")
    G_NaL: Scalar = param(
        0.0199575, "mS/uF", lognormal(0.0199575, log_sd=0.5), source=_SCALED, doc="late sodium"
    )
    G_to: Scalar = param(0.02, "mS/uF", lognormal(0.02, log_sd=0.5), source=_SPREAD, doc="transient")
    P_Ca: Scalar = param(1.007e-4, "mL/uF/s", lognormal(1.007e-4, log_sd=0.5), source=_SCALED, doc="calcium")
    G_Kr: Scalar = param(
        0.04658545454545456, "mS/uF", lognormal(0.0465854545, log_sd=0.5), source=_SCALED, doc="rapid"
    )
    G_Ks: Scalar = param(0.006358, "mS/uF", lognormal(0.006358, log_sd=0.5), source=_SCALED, doc="slow")
    G_K1: Scalar = param(
        0.3239784, "mS/uF", lognormal(0.3239784, log_sd=0.5), source=_SCALED, doc="inward rectifier"
    )
    G_NaCa: Scalar = param(8e-4, "pA/pF", source=_PAPER, doc="sodium-calcium exchanger")
    P_NaK: Scalar = param(30.0, "pA/pF", source=_PAPER, doc="sodium-potassium pump")
    G_Kb: Scalar = param(0.003, "mS/uF", source=_PAPER, doc="background potassium")
    P_Nab: Scalar = param(3.75e-10, "mL/uF/s", source=_PAPER, doc="background sodium")
    P_Cab: Scalar = param(2.5e-8, "mL/uF/s", source=_PAPER, doc="background calcium")
    G_pCa: Scalar = param(5e-4, "pA/pF", source=_PAPER, doc="calcium pump")
    P_kna: Scalar = param(0.01833, "1", source=_PAPER, doc="permeability of i_Ks to sodium")
    a_rel: Scalar = param(
        2.375, "mmol.pF/L/ms/pA", source=_PAPER + ": 0.5 times 4.75 ms", doc="release by i_CaL"
    )
    Na_o: Scalar = param(140.0, "mmol/L", source=_PAPER, doc="sodium outside")
    K_o: Scalar = param(5.4, "mmol/L", source=_PAPER, doc="potassium outside")
    Ca_o: Scalar = param(1.8, "mmol/L", source=_PAPER, doc="calcium outside")
    V_myo: Scalar = param(0.68 * 37.994, "pL", source=_PAPER, doc="volume of the cytosol")
    V_nsr: Scalar = param(0.0552 * 37.994, "pL", source=_PAPER, doc="of the network store")
    V_jsr: Scalar = param(0.0048 * 37.994, "pL", source=_PAPER, doc="of the junctional store")
    V_ss: Scalar = param(0.02 * 37.994, "pL", source=_PAPER, doc="of the subspace")
    Cm: Scalar = param(153.3576, "pF", source=_PAPER, doc="capacitance")
    F: Scalar = param(96485.0, "C/mol", doc="Faraday constant")
    RT_F: Scalar = param(8314 * 310 / 96485, "mV", source=_PAPER + ": 8314 J/kmol/K, 310 K", doc="RT / F")
    Kmax: Scalar = param(0.0, "1", source=_DRUG, doc="most binding, over unbinding")
    Ku: Scalar = param(0.0, "/ms", source=_DRUG, doc="unbinding")
    hill: Scalar = param(1.0, "1", source=_DRUG, doc="Hill coefficient of binding")
    EC50: Scalar = param(1.0, "nmol/L", source=_DRUG, doc="concentration of half the most binding")
    Kt: Scalar = param(0.0, "/ms", source=_DRUG, doc="closing on a bound drug")
    Vhalf: Scalar = param(1.0, "mV", source=_DRUG, doc="where half as fast the channel opens again")
    mM: Scalar = param(1.0, "mmol/L", doc="unit of the formulas")
    mV: Scalar = param(1.0, "mV", doc="unit of the formulas")
    ms: Scalar = param(1.0, "ms", doc="unit of the formulas")
    sd_voltage: Scalar = param(1.0, "mV", lognormal(1.0, log_sd=0.7), source="chosen here", doc="error")
    sd_calcium: Scalar = param(
        1e-5, "mmol/L", lognormal(1e-5, log_sd=0.7), source="chosen here", doc="additive error"
    )


class Inputs(eqx.Module):
    """Current out of the cell, and a drug around it."""

    stimulus: Input = var("pA/pF", neutral=0.0, doc="negative depolarises")
    drug: Input = var("nmol/L", neutral=0.0, doc="that binds to hERG")


class State(eqx.Module):
    """Voltage, CaMK, concentrations, gates, states of hERG, release."""

    V: Scalar = var("mV")
    CaMKt: Scalar = var("1")
    Na_i: Scalar = var("mmol/L")
    Na_ss: Scalar = var("mmol/L")
    K_i: Scalar = var("mmol/L")
    K_ss: Scalar = var("mmol/L")
    Ca_ss: Scalar = var("mmol/L")
    Ca_nsr: Scalar = var("mmol/L")
    Ca_jsr: Scalar = var("mmol/L")
    Ca_i: Scalar = var("mmol/L")
    m: Scalar = var("1")
    hf: Scalar = var("1")
    hs: Scalar = var("1")
    j: Scalar = var("1")
    hsp: Scalar = var("1")
    jp: Scalar = var("1")
    mL: Scalar = var("1")
    hL: Scalar = var("1")
    hLp: Scalar = var("1")
    a: Scalar = var("1")
    iF: Scalar = var("1")
    iS: Scalar = var("1")
    ap: Scalar = var("1")
    iFp: Scalar = var("1")
    iSp: Scalar = var("1")
    d: Scalar = var("1")
    ff: Scalar = var("1")
    fs: Scalar = var("1")
    fcaf: Scalar = var("1")
    fcas: Scalar = var("1")
    jca: Scalar = var("1")
    ffp: Scalar = var("1")
    fcafp: Scalar = var("1")
    nca: Scalar = var("1")
    IC1: Scalar = var("1")
    IC2: Scalar = var("1")
    C1: Scalar = var("1")
    C2: Scalar = var("1")
    O: Scalar = var("1")  # noqa: E741 (the symbol of the paper)
    IO: Scalar = var("1")
    IObound: Scalar = var("1")
    Obound: Scalar = var("1")
    Cbound: Scalar = var("1")
    xs1: Scalar = var("1")
    xs2: Scalar = var("1")
    xk1: Scalar = var("1")
    Jrelnp: Scalar = var("mmol/L/ms")
    Jrelp: Scalar = var("mmol/L/ms")


class Outputs(eqx.Module):
    """What is measured."""

    voltage: Scalar = var("mV", doc="membrane potential", plausible=(-200.0, 200.0))
    calcium: Scalar = var("mmol/L", doc="free in the cytosol", plausible=(0.0, 1.0))


# At the start of a beat, as in the CellML, in the order of State; mV, mmol/L and mmol/L/ms.
_START = (
    *(
        -88.00190465,
        0.0125840447,
        7.268004498,
        7.268089977,
        144.6555918,
        144.6555651,
        8.49e-05,
        1.619574538,
        1.571234014,
        8.6e-05,
    ),
    *(0.007344121102, 0.6981071913, 0.6980895801, 0.6979908432, 0.4549485525, 0.6979245865),
    *(
        0.0001882617273,
        0.5008548855,
        0.2693065357,
        0.001001097687,
        0.9995541745,
        0.5865061736,
        0.0005100862934,
        0.9995541823,
        0.6393399482,
    ),
    *(
        2.34e-09,
        0.9999999909,
        0.9102412777,
        0.9999999909,
        0.9998046777,
        0.9999738312,
        0.9999999909,
        0.9999999909,
        0.002749414044,
    ),
    *(0.999637, 6.83208e-05, 1.80145e-08, 8.26619e-05, 0.00015551, 5.67623e-05, 0.0, 0.0, 0.0),
    *(0.2707758025, 0.0001928503426, 0.9967597594, 2.5e-07, 3.12e-07),
)


def init(p: Params) -> State:
    """Before a beat."""
    names = [field.name for field in fields(State)]
    ions = ("Na_i", "Na_ss", "K_i", "K_ss", "Ca_ss", "Ca_nsr", "Ca_jsr", "Ca_i")
    units = {"V": p.mV, **dict.fromkeys(ions, p.mM), **dict.fromkeys(("Jrelnp", "Jrelp"), p.mM / p.ms)}
    found = dict(zip(names, _START, strict=True))
    return State(**{name: value * units.get(name, 1.0) for name, value in found.items()})


def currents(x: State, p: Params) -> dict[str, Scalar]:
    """Every current through the membrane, pA/pF."""
    _, marked = kinase(x, p)
    return {**sodium(x, p, marked), **potassium(x, p, marked), **calcium(x, p, marked), **pumps(x, p)}


def concentrations(x: State, i: dict[str, Scalar], stimulus: Scalar, p: Params) -> dict[str, Scalar]:
    """Rates of change of sodium, potassium and calcium under the currents `i`."""
    flow = flows(x, p, kinase(x, p)[1])
    # Of a current, the change of a concentration in the cytosol and in the subspace.
    cytosol, subspace = p.Cm / (p.F * p.V_myo), p.Cm / (p.F * p.V_ss)
    narrow = p.V_ss / p.V_myo
    Na_i = i["Na"] + i["NaL"] + 3 * i["NaCa_i"] + 3 * i["NaK"] + i["Nab"]
    K_i = i["to"] + i["Kr"] + i["Ks"] + i["K1"] + i["Kb"] + stimulus - 2 * i["NaK"]
    Ca_i = (
        -(i["pCa"] + i["Cab"] - 2 * i["NaCa_i"]) * cytosol / 2
        - p.V_nsr / p.V_myo * flow["up"]
        + narrow * flow["diff"]
    )
    Ca_ss = -(i["CaL"] - 2 * i["NaCa_ss"]) * subspace / 2 + p.V_jsr / p.V_ss * flow["rel"] - flow["diff"]
    return {
        "Na_i": -Na_i * cytosol + narrow * flow["diffNa"],
        "Na_ss": -(i["CaNa"] + 3 * i["NaCa_ss"]) * subspace - flow["diffNa"],
        "K_i": -K_i * cytosol + narrow * flow["diffK"],
        "K_ss": -i["CaK"] * subspace - flow["diffK"],
        "Ca_i": free(x.Ca_i, p, (0.05, 0.00238), (0.07, 0.0005)) * Ca_i,
        "Ca_ss": free(x.Ca_ss, p, (0.047, 0.00087), (1.124, 0.0087)) * Ca_ss,
        "Ca_nsr": flow["up"] - p.V_jsr / p.V_nsr * flow["tr"],
        "Ca_jsr": free(x.Ca_jsr, p, (10.0, 0.8)) * (flow["tr"] - flow["rel"]),
    }


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per ms."""
    i, (bound, _) = currents(x, p), kinase(x, p)
    turned = {gate: (steady - getattr(x, gate)) / (tau * p.ms) for gate, (steady, tau) in gates(x, p).items()}
    return State(
        V=-(sum(i.values()) + u.stimulus),
        CaMKt=(0.05 * bound * (bound + x.CaMKt) - 0.00068 * x.CaMKt) / p.ms,
        nca=calmodulin(x, p) / p.ms,
        **concentrations(x, i, u.stimulus, p),
        **turned,
        **herg(x, u, p),
        **release(x, p, i["CaL"]),
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Membrane potential and calcium."""
    return Outputs(voltage=x.V, calcium=x.Ca_i)


def example() -> Record:
    """One action potential, stimulated for 0.5 ms, seen every 5 ms."""
    times = 5.0 * np.arange(1.0, 81.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(
        Inputs(stimulus=Steps([0.0, 10.0, 10.5], [0.0, -80.0, 0.0])), {"voltage": seen, "calcium": seen}
    )


ohara_rudy = Model(
    name="ohara_rudy",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="ms",
    solver=Solver(method=diffrax.Kvaerno3, rtol=1e-5, atol=1e-8),
    source="O'Hara et al. 2011, doi 10.1371/journal.pcbi.1002061; Li et al. 2017; Dutta et al. 2017",
    valid="One human ventricular cell at 37 degrees, paced near 1 Hz; seconds, not hours of drifting ions.",
    stiffness="0.004 ms (hERG) to 2 s (xs1), ions far slower: implicit, Kvaerno3; stimuli are events.",
    checked="The CellML: rates to 1e-8; by CVODES at 1e-11, one beat: 0.01 mV, in the upstroke 0.2 mV; APD90 "
    "0.05 ms; calcium to 1e-4 of it.",
    example=example,
)
