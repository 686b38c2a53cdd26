"""Currents and gates of ten Tusscher and Panfilov's human ventricular cell (see ten_tusscher).

Source: ten Tusscher & Panfilov 2006, doi 10.1152/ajpheart.00109.2006. Voltages inside the formulas are in
mV, concentrations in mmol/L, times in ms; currents come out in pA/pF.
"""

from typing import Any

import jax.numpy as jnp

from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import phi1


def _sigmoid(shifted: Scalar) -> Scalar:
    """1 / (1 + exp)."""
    return 1 / (1 + jnp.exp(shifted))


def _inactivation(v: Scalar) -> dict[str, Scalar]:
    """Time constants of h and j, whose rates are cut at -40 mV."""
    exp = jnp.exp
    low, below, above = v < -40, jnp.minimum(v, -40.0), jnp.maximum(v, -40.0)
    falling = -25428 * exp(0.2444 * below) - 6.948e-6 * exp(-0.04391 * below)
    h = jnp.where(
        low,
        0.057 * exp(-(below + 80) / 6.8) + 2.7 * exp(0.079 * below) + 310000 * exp(0.3485 * below),
        0.77 / 0.13 * _sigmoid((above + 10.66) / -11.1),
    )
    j = jnp.where(
        low,
        falling * (below + 37.78) * _sigmoid(0.311 * (below + 79.23))
        + 0.02424 * exp(-0.01052 * below) * _sigmoid(-0.1378 * (below + 40.14)),
        0.6 * exp(0.057 * above) * _sigmoid(-0.1 * (above + 32)),
    )
    return {"h": 1 / h, "j": 1 / j}


def gates(x: Any, p: Any) -> dict[str, tuple[Scalar, Scalar]]:
    """Steady value and time constant in ms of every gate."""
    exp, v = jnp.exp, x.V / p.mV
    tau, steady_h = _inactivation(v), _sigmoid((v + 71.55) / 7.43) ** 2
    tau_m = _sigmoid((-60 - v) / 5) * (0.1 * _sigmoid((v + 35) / 5) + 0.1 * _sigmoid((v - 50) / 200))
    held = 1 / (1 + (x.Ca_ss / p.mM / 0.05) ** 2)
    epi_s = _sigmoid((v + 20) / 5), 85 * exp(-((v + 45) ** 2) / 320) + 5 * _sigmoid((v - 20) / 5) + 3
    endo_s = _sigmoid((v + 28) / 5), 1000 * exp(-((v + 67) ** 2) / 1000) + 8
    return {
        "m": (_sigmoid((-56.86 - v) / 9.03) ** 2, tau_m),
        "h": (steady_h, tau["h"]),
        "j": (steady_h, tau["j"]),
        "Xr1": (_sigmoid((-26 - v) / 7), 450 * _sigmoid((-45 - v) / 10) * 6 * _sigmoid((v + 30) / 11.5)),
        "Xr2": (_sigmoid((v + 88) / 24), 3 * _sigmoid((-60 - v) / 20) * 1.12 * _sigmoid((v - 60) / 20)),
        "Xs": (
            _sigmoid((-5 - v) / 14),
            1400 / jnp.sqrt(1 + exp((5 - v) / 6)) * _sigmoid((v - 35) / 15) + 80,
        ),
        "r": (_sigmoid((20 - v) / 6), 9.5 * exp(-((v + 40) ** 2) / 1800) + 0.8),
        "s": tuple(p.epi * one + (1 - p.epi) * other for one, other in zip(epi_s, endo_s, strict=True)),
        "d": (
            _sigmoid((-8 - v) / 7.5),
            (1.4 * _sigmoid((-35 - v) / 13) + 0.25) * 1.4 * _sigmoid((v + 5) / 5) + _sigmoid((50 - v) / 20),
        ),
        "f": (
            _sigmoid((v + 20) / 7),
            1102.5 * exp(-((v + 27) ** 2) / 225)
            + 200 * _sigmoid((13 - v) / 10)
            + 180 * _sigmoid((v + 30) / 10)
            + 20,
        ),
        "f2": (
            0.67 * _sigmoid((v + 35) / 7) + 0.33,
            562 * exp(-((v + 27) ** 2) / 240) + 31 * _sigmoid((25 - v) / 10) + 80 * _sigmoid((v + 30) / 10),
        ),
        "fCass": (0.6 * held + 0.4, 80 * held + 2),
    }


def potassium(x: Any, p: Any) -> Scalar:
    """i_K1 + i_to + i_Kr + i_Ks + i_pK."""
    exp, v = jnp.exp, x.V / p.mV
    E_K = p.RT_F * jnp.log(p.K_o / x.K_i)
    E_Ks = p.RT_F * jnp.log((p.K_o + p.P_kna * p.Na_o) / (x.K_i + p.P_kna * x.Na_i))
    outside, over = jnp.sqrt(p.K_o / p.mM / 5.4), x.V - E_K
    w = over / p.mV
    alpha = 0.1 * _sigmoid(0.06 * (w - 200))
    beta = (3 * exp(0.0002 * (w + 100)) + exp(0.1 * (w - 10))) * _sigmoid(-0.5 * w)
    i_K1 = p.g_K1 * outside * alpha / (alpha + beta) * over
    i_to = p.g_to * x.r * x.s * over
    i_Kr = p.g_Kr * outside * x.Xr1 * x.Xr2 * over
    i_Ks = p.g_Ks * x.Xs**2 * (x.V - E_Ks)
    return i_K1 + i_to + i_Kr + i_Ks + p.g_pK * over * _sigmoid((25 - v) / 5.98)


def sodium(x: Any, p: Any) -> Scalar:
    """i_Na + i_bNa."""
    over = x.V - p.RT_F * jnp.log(p.Na_o / x.Na_i)
    return (p.g_Na * x.m**3 * x.h * x.j + p.g_bNa) * over


def calcium(x: Any, p: Any) -> dict[str, Scalar]:
    """i_CaL by the Goldman-Hodgkin-Katz equation, 0/0 at 15 mV where it is smooth; and i_bCa."""
    z = 2 * (x.V - 15 * p.mV) / p.RT_F
    # The paper's 4 (V - 15) F^2 / (R T) is 2 F z.
    driven = 2 * p.F * (0.25 * x.Ca_ss * jnp.exp(z) - p.Ca_o) / phi1(z)
    E_Ca = 0.5 * p.RT_F * jnp.log(p.Ca_o / x.Ca_i)
    return {
        "L": p.g_CaL * x.d * x.f * x.f2 * x.fCass * driven,
        "b": p.g_bCa * (x.V - E_Ca),
    }


def pumps(x: Any, p: Any) -> dict[str, Scalar]:
    """i_NaK, i_NaCa and i_pCa."""
    exp, z = jnp.exp, x.V / p.RT_F
    Na_i, Na_o, K_o = x.Na_i / p.mM, p.Na_o / p.mM, p.K_o / p.mM
    Ca_i, Ca_o = x.Ca_i / p.mM, p.Ca_o / p.mM
    blocked = 1 + 0.1245 * exp(-0.1 * z) + 0.0353 * exp(-z)
    i_NaK = p.P_NaK * K_o / (K_o + 1) * Na_i / (Na_i + 40) / blocked
    back = exp((0.35 - 1) * z)
    moved = exp(0.35 * z) * Na_i**3 * Ca_o - back * Na_o**3 * Ca_i * 2.5
    i_NaCa = p.K_NaCa * moved / ((87.5**3 + Na_o**3) * (1.38 + Ca_o) * (1 + 0.1 * back))
    return {"NaK": i_NaK, "NaCa": i_NaCa, "pCa": p.g_pCa * Ca_i / (Ca_i + 0.0005)}
