"""Currents and gates of O'Hara and Rudy's human ventricular cell, CiPA form (see ohara_rudy).

Source: O'Hara, Virag, Varro & Rudy 2011, doi 10.1371/journal.pcbi.1002061; IKr: Li et al. 2017, doi
10.1161/CIRCEP.116.004628; conductances: Dutta et al. 2017, doi 10.3389/fphys.2017.00616. Voltages inside
the formulas are in mV, concentrations in mmol/L, times in ms; currents come out in pA/pF.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import phi1

Turns = dict[str, tuple[Scalar, Scalar]]
Term = tuple[float, float, float]


def sigmoid(shifted: Scalar) -> Scalar:
    """1 / (1 + exp)."""
    return 1 / (1 + jnp.exp(shifted))


def _bell(v: Scalar, first: Term, second: Term) -> Scalar:
    """Time constant: inverse of the sum of two `scale exp((v + shift) / width)`."""
    (a, b, c), (d, e, f) = first, second
    return 1 / (a * jnp.exp((v + b) / c) + d * jnp.exp((v + e) / f))


def kinase(x: Any, p: Any) -> tuple[Scalar, Scalar]:
    """Share of CaMK that is bound, and of each channel that active CaMK has phosphorylated."""
    bound = 0.05 * (1 - x.CaMKt) / (1 + 0.0015 * p.mM / x.Ca_ss)
    active = bound + x.CaMKt
    return bound, active / (active + 0.15)


def sodium_gates(v: Scalar) -> Turns:
    """Of i_Na, activation m, inactivation h fast and slow and recovery j, p phosphorylated; of i_NaL."""
    tau_m = _bell(v, (6.765, 11.64, 34.77), (8.552, 77.42, -5.955))
    tau_hs = _bell(v, (0.009794, 17.95, -28.05), (0.3343, 5.73, 56.66))
    tau_j = 2.038 + _bell(v, (0.02136, 100.6, -8.281), (0.3052, 0.9941, 38.45))
    steady_h = sigmoid((v + 82.9) / 6.086)
    return {
        "m": (sigmoid(-(v + 39.57) / 9.871), tau_m),
        "hf": (steady_h, _bell(v, (1.432e-5, 1.196, -6.285), (6.149, 0.5096, 20.27))),
        "hs": (steady_h, tau_hs),
        "j": (steady_h, tau_j),
        "hsp": (sigmoid((v + 89.1) / 6.086), 3 * tau_hs),
        "jp": (steady_h, 1.46 * tau_j),
        "mL": (sigmoid(-(v + 42.85) / 5.264), tau_m),
        "hL": (sigmoid((v + 87.61) / 7.488), jnp.asarray(200.0)),
        "hLp": (sigmoid((v + 93.81) / 7.488), jnp.asarray(600.0)),
    }


def sodium(x: Any, p: Any, marked: Scalar) -> dict[str, Scalar]:
    """i_Na and i_NaL; `marked` is the share that is phosphorylated."""
    over = x.V - p.RT_F * jnp.log(p.Na_o / x.Na_i)
    h, hp = 0.99 * x.hf + 0.01 * x.hs, 0.99 * x.hf + 0.01 * x.hsp
    opened = x.m**3 * ((1 - marked) * h * x.j + marked * hp * x.jp)
    late = x.mL * ((1 - marked) * x.hL + marked * x.hLp)
    return {"Na": p.G_Na * opened * over, "NaL": p.G_NaL * late * over}


def transient_gates(v: Scalar) -> Turns:
    """Of i_to, activation a and inactivation i fast and slow, p phosphorylated."""
    tau_a = 1.0515 / (sigmoid(-(v - 18.4099) / 29.3814) / 1.2089 + 3.5 * sigmoid((v + 100) / 29.3814))
    steady_i = sigmoid((v + 43.94) / 5.711)
    tau_iF = 4.562 + _bell(v, (0.3933, 100, -100), (0.08004, 50, 16.59))
    tau_iS = 23.62 + _bell(v, (0.001416, 96.52, -59.05), (1.78e-8, 114.1, 8.079))
    # One over a sum of exponentials of which one is beyond a float32, or a float64 below -140 mV.
    develop = 1.354 + 1e-4 * jnp.exp(-jnp.logaddexp((v - 167.4) / 15.89, -(v - 12.23) / 0.2154))
    slower = develop * (1 - 0.5 * sigmoid((v + 70) / 20))
    return {
        "a": (sigmoid(-(v - 14.34) / 14.82), tau_a),
        "iF": (steady_i, tau_iF),
        "iS": (steady_i, tau_iS),
        "ap": (sigmoid(-(v - 24.34) / 14.82), tau_a),
        "iFp": (steady_i, slower * tau_iF),
        "iSp": (steady_i, slower * tau_iS),
    }


def calcium_gates(v: Scalar) -> Turns:
    """Of i_CaL, activation d, inactivation f by voltage and fca by calcium; p phosphorylated."""
    steady = sigmoid((v + 19.58) / 3.696)
    tau_d = 0.6 + 1 / (jnp.exp(-0.05 * (v + 6)) + jnp.exp(0.09 * (v + 14)))
    tau_ff = 7 + _bell(v, (0.0045, 20, -10), (0.0045, 20, 10))
    tau_fcaf = 7 + _bell(v, (0.04, -4, -7), (0.04, -4, 7))
    return {
        "d": (sigmoid(-(v + 3.94) / 4.23), tau_d),
        "ff": (steady, tau_ff),
        "fs": (steady, 1000 + _bell(v, (3.5e-5, 5, -4), (3.5e-5, 5, 6))),
        "fcaf": (steady, tau_fcaf),
        "fcas": (steady, 100 + _bell(v, (1.2e-4, 0, -3), (1.2e-4, 0, 7))),
        "jca": (steady, jnp.asarray(75.0)),
        "ffp": (steady, 2.5 * tau_ff),
        "fcafp": (steady, 2.5 * tau_fcaf),
    }


def calmodulin(x: Any, p: Any) -> Scalar:
    """Rate per ms of n, the share of i_CaL channels that calcium inactivates."""
    forth, back = 1000.0, x.jca
    ratio = back / (forth + back * (1 + 0.002 * p.mM / x.Ca_ss) ** 4)
    return ratio * forth - x.nca * back


def calcium(x: Any, p: Any, marked: Scalar) -> dict[str, Scalar]:
    """i_CaL, and sodium and potassium through it, by Goldman, Hodgkin and Katz, smooth where 0/0 at 0 mV."""
    v, z = x.V / p.mV, x.V / p.RT_F
    fast = 0.3 + 0.6 * sigmoid((v - 10) / 10)

    def opened(ff: Scalar, fcaf: Scalar) -> Scalar:
        f, fca = 0.6 * ff + 0.4 * x.fs, fast * fcaf + (1 - fast) * x.fcas
        return x.d * (f * (1 - x.nca) + x.jca * fca * x.nca)

    share = (1 - marked) * opened(x.ff, x.fcaf) + 1.1 * marked * opened(x.ffp, x.fcafp)
    # The paper's z^2 V F^2 / (R T) / (exp(z V F / (R T)) - 1) is z F / phi1.
    driven = {
        "CaL": 2 * p.F * (x.Ca_ss * jnp.exp(2 * z) - 0.341 * p.Ca_o) / phi1(2 * z),
        "CaNa": 0.00125 * 0.75 * p.F * (x.Na_ss * jnp.exp(z) - p.Na_o) / phi1(z),
        "CaK": 3.574e-4 * 0.75 * p.F * (x.K_ss * jnp.exp(z) - p.K_o) / phi1(z),
    }
    return {name: p.P_Ca * share * value for name, value in driven.items()}


# Rates A exp(B V) q^((37 - 20) / 10) between states of hERG, there and back: A per ms, B per mV.
_HERG = {
    ("C1", "C2"): ((0.0264, 4.631e-5, 4.843), (4.986e-6, -0.004226, 4.23)),
    ("C2", "O"): ((0.005509, 7.771e-9, 4.22), (0.001416, -0.02877, 1.459)),
    ("IC1", "IC2"): ((7.868e-4, 1.535e-8, 4.942), (5.455e-6, -0.1688, 4.156)),
    ("IC2", "IO"): ((0.001214, 0.008516, 4.962), (1.854e-5, -0.04641, 3.769)),
    ("C1", "IC1"): ((0.4492, 0.008595, 5.0), (0.01241, 0.1725, 5.568)),
    ("C2", "IC2"): ((0.3181, 3.613e-8, 4.663), (0.3226, -6.575e-4, 5.0)),
    ("O", "IO"): ((0.149, 0.004668, 2.412), (0.008978, -0.02215, 5.682)),
}
_WARMED = np.array([[a * q**1.7 for a, _, q in pair] for pair in _HERG.values()])
_STEEPNESS = np.array([[b for _, b, _ in pair] for pair in _HERG.values()])


def _occupied(drug: Scalar, p: Any) -> Scalar:
    """Saturation of the drug's binding, of Hill's form; safe where there is no drug."""
    present = drug > 0
    raised = jnp.where(present, jnp.where(present, drug / p.EC50, 1.0) ** p.hill, 0.0)
    return raised / (raised + 1)


def herg(x: Any, u: Any, p: Any) -> dict[str, Scalar]:
    """Rates of change of the states of hERG: closed C, open O, inactivated I, and with drug bound."""
    v = x.V / p.mV
    rates = _WARMED * jnp.exp(_STEEPNESS * v) / p.ms
    there, back = rates[:, 0], rates[:, 1]
    flows = {
        (one, other): there[k] * getattr(x, one) - back[k] * getattr(x, other)
        for k, (one, other) in enumerate(_HERG)
    }
    # Drug binds to the open and the inactivated state, and is trapped where the channel closes on it.
    binding = p.Kmax * p.Ku * _occupied(u.drug, p)
    trapped = p.Kt * sigmoid(-(x.V - p.Vhalf) / p.mV / 6.789)
    flows["O", "Obound"] = binding * x.O - p.Ku * x.Obound
    flows["IO", "IObound"] = binding * x.IO - p.Ku * there[-1] / back[-1] * x.IObound
    flows["Cbound", "Obound"] = trapped * x.Cbound - p.Kt * x.Obound
    flows["Cbound", "IObound"] = trapped * x.Cbound - p.Kt * x.IObound
    states = ("IC1", "IC2", "C1", "C2", "O", "IO", "IObound", "Obound", "Cbound")
    changed: dict[str, Any] = {state: jnp.zeros_like(v) / p.ms for state in states}
    for (one, other), flow in flows.items():
        changed[one] = changed[one] - flow
        changed[other] = changed[other] + flow
    return changed


def potassium_gates(v: Scalar, K_o: Scalar) -> Turns:
    """Activation xs1 and xs2 of i_Ks, inactivation xk1 of i_K1."""
    steady_xs = sigmoid(-(v + 11.6) / 8.932)
    return {
        "xs1": (steady_xs, 817.3 + _bell(v, (2.326e-4, 48.28, 17.8), (0.001292, 210, -230))),
        "xs2": (steady_xs, _bell(v, (0.01, -50, 20), (0.0193, 66.54, -31))),
        "xk1": (
            sigmoid(-(v + 2.5538 * K_o + 144.59) / (1.5692 * K_o + 3.8115)),
            122.2 * _bell(v, (1.0, 127.2, -20.36), (1.0, 236.8, 69.33)),
        ),
    }


def potassium(x: Any, p: Any, marked: Scalar) -> dict[str, Scalar]:
    """i_to, i_Kr, i_Ks, i_K1 and i_Kb."""
    v, K_o = x.V / p.mV, p.K_o / p.mM
    over = x.V - p.RT_F * jnp.log(p.K_o / x.K_i)
    over_Ks = x.V - p.RT_F * jnp.log((p.K_o + p.P_kna * p.Na_o) / (x.K_i + p.P_kna * x.Na_i))
    fast = sigmoid((v - 213.6) / 151.2)
    i, ip = fast * x.iF + (1 - fast) * x.iS, fast * x.iFp + (1 - fast) * x.iSp
    by_calcium = 1 + 0.6 / (1 + (3.8e-5 * p.mM / x.Ca_i) ** 1.4)
    rectified = x.xk1 * sigmoid((v + 105.8 - 2.6 * K_o) / 9.493)
    return {
        "to": p.G_to * ((1 - marked) * x.a * i + marked * x.ap * ip) * over,
        "Kr": p.G_Kr * jnp.sqrt(K_o / 5.4) * x.O * over,
        "Ks": p.G_Ks * by_calcium * x.xs1 * x.xs2 * over_Ks,
        "K1": p.G_K1 * jnp.sqrt(K_o) * rectified * over,
        "Kb": p.G_Kb * sigmoid(-(v - 14.48) / 18.34) * over,
    }


def gates(x: Any, p: Any) -> Turns:
    """Steady value and time constant in ms of every gate."""
    v = x.V / p.mV
    return {
        **sodium_gates(v),
        **transient_gates(v),
        **calcium_gates(v),
        **potassium_gates(v, p.K_o / p.mM),
    }
