"""Exchanger, pumps, background and stores of O'Hara and Rudy's human ventricular cell (see ohara_rudy).

Source: O'Hara, Virag, Varro & Rudy 2011, doi 10.1371/journal.pcbi.1002061, whose symbols these are. Rates
inside the formulas are per ms, concentrations in mmol/L; currents come out in pA/pF, flows in mmol/L/ms.
"""

from typing import Any

import jax.numpy as jnp

from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import phi1


def _exchanged(Na: Scalar, Ca: Scalar, z: Scalar, p: Any) -> Scalar:
    """Charge per ms that a sodium-calcium exchanger carries beside these concentrations, in mmol/L."""
    Na_o, Ca_o = p.Na_o / p.mM, p.Ca_o / p.mM
    hca, hna = jnp.exp(0.167 * z), jnp.exp(0.5224 * z)
    h1 = 1 + Na / 88.12 * (1 + hna)
    h2, h3 = Na * hna / (88.12 * h1), 1 / h1
    h4 = 1 + Na / 15 * (1 + Na / 5)
    h5, h6 = Na**2 / (h4 * 15 * 5), 1 / h4
    h7 = 1 + Na_o / 88.12 * (1 + 1 / hna)
    h8, h9 = Na_o / (88.12 * hna * h7), 1 / h7
    h10 = 12.5 + 1 + Na_o / 15 * (1 + Na_o / 5)
    h11, h12 = Na_o**2 / (h10 * 15 * 5), 1 / h10
    k1, k2, k5 = h12 * Ca_o * 1.5e6, 5e3, 5e3
    k3pp, k4pp = h8 * 5e3, h2 * 5e3
    k3, k4 = h9 * 6e4 + k3pp, h3 * 6e4 / hca + k4pp
    k6, k7, k8 = h6 * Ca * 1.5e6, h5 * h2 * 6e4, h8 * h11 * 6e4
    x1 = k2 * k4 * (k7 + k6) + k5 * k7 * (k2 + k3)
    x2 = k1 * k7 * (k4 + k5) + k4 * k6 * (k1 + k8)
    x3 = k1 * k3 * (k7 + k6) + k8 * k6 * (k2 + k3)
    x4 = k2 * k8 * (k4 + k5) + k3 * k5 * (k1 + k8)
    sodium = 3 * (x4 * k7 - x1 * k8) + x3 * k4pp - x2 * k3pp
    calcium = x2 * k2 - x1 * k1
    return (sodium + 2 * calcium) / (x1 + x2 + x3 + x4) / (1 + (150e-6 / Ca) ** 2)


def _pumped(Na: Scalar, K: Scalar, z: Scalar, p: Any) -> Scalar:
    """Charge per ms that a sodium-potassium pump carries beside these concentrations, in mmol/L."""
    bound = Na / (9.073 * jnp.exp(-0.155 * z / 3))
    bound_o = p.Na_o / p.mM / (27.78 * jnp.exp(1.155 * z / 3))
    within, K_o = K / 0.5, p.K_o / p.mM / 0.3582
    inside, outside = (1 + bound) ** 3 + (1 + within) ** 2 - 1, (1 + bound_o) ** 3 + (1 + K_o) ** 2 - 1
    P = 4.2 / (1 + 1e-7 / 1.698e-7 + Na / 224 + K / 292)
    # 9.8 mmol/L of ATP beside its constant of 1.698e-7, 0.05 mmol/L of ADP, 1e-7 of protons.
    ATP = 9.8 / 1.698e-7
    a1, b1 = 949.5 * bound**3 / inside, 182.4 * 0.05
    a2, b2 = 687.2, 39.4 * bound_o**3 / outside
    a3, b3 = 1899 * K_o**2 / outside, 79300 * P * 1e-7 / (1 + ATP)
    a4, b4 = 639 * ATP / (1 + ATP), 40 * within**2 / inside
    x1 = a4 * a1 * a2 + b2 * b4 * b3 + a2 * b4 * b3 + b3 * a1 * a2
    x2 = b2 * b1 * b4 + a1 * a2 * a3 + a3 * b1 * b4 + a2 * a3 * b4
    x3 = a2 * a3 * a4 + b3 * b2 * b1 + b2 * b1 * a4 + a3 * a4 * b1
    x4 = b4 * b3 * b2 + a3 * a4 * a1 + b2 * a4 * a1 + b3 * b2 * a1
    sodium, potassium = 3 * (x1 * a3 - x2 * b3), 2 * (x4 * b1 - x3 * a1)
    return (sodium + potassium) / (x1 + x2 + x3 + x4)


def pumps(x: Any, p: Any) -> dict[str, Scalar]:
    """i_NaCa of the cytosol and the subspace, i_NaK, i_pCa, and the backgrounds i_Nab and i_Cab."""
    z, Ca_i = x.V / p.RT_F, x.Ca_i / p.mM
    return {
        "NaCa_i": 0.8 * p.G_NaCa * _exchanged(x.Na_i / p.mM, Ca_i, z, p),
        "NaCa_ss": 0.2 * p.G_NaCa * _exchanged(x.Na_ss / p.mM, x.Ca_ss / p.mM, z, p),
        "NaK": p.P_NaK * _pumped(x.Na_i / p.mM, x.K_i / p.mM, z, p),
        "pCa": p.G_pCa * Ca_i / (Ca_i + 0.0005),
        "Nab": p.P_Nab * p.F * (x.Na_i * jnp.exp(z) - p.Na_o) / phi1(z),
        "Cab": p.P_Cab * 2 * p.F * (x.Ca_i * jnp.exp(2 * z) - 0.341 * p.Ca_o) / phi1(2 * z),
    }


def release(x: Any, p: Any, i_CaL: Scalar) -> dict[str, Scalar]:
    """Rates of change of the release of the junctional store, plain and by phosphorylated channels."""
    opened = -i_CaL / (1 + (1.5 * p.mM / x.Ca_jsr) ** 8)
    slowed = 1 + 0.0123 * p.mM / x.Ca_jsr
    tau = jnp.maximum(4.75 / slowed, 0.001) * p.ms
    tau_p = jnp.maximum(1.25 * 4.75 / slowed, 0.001) * p.ms
    return {
        "Jrelnp": (p.a_rel * opened - x.Jrelnp) / tau,
        "Jrelp": (1.25 * p.a_rel * opened - x.Jrelp) / tau_p,
    }


def flows(x: Any, p: Any, marked: Scalar) -> dict[str, Scalar]:
    """Flows between the compartments: out of and into the stores, and from the subspace to the cytosol."""
    Ca_i, per = x.Ca_i / p.mM, p.mM / p.ms
    plain = 0.004375 * Ca_i / (Ca_i + 0.00092)
    phosphorylated = 2.75 * 0.004375 * Ca_i / (Ca_i + 0.00092 - 0.00017)
    leak = 0.0039375 * x.Ca_nsr / 15 / p.ms
    return {
        "rel": (1 - marked) * x.Jrelnp + marked * x.Jrelp,
        "up": ((1 - marked) * plain + marked * phosphorylated) * per - leak,
        "tr": (x.Ca_nsr - x.Ca_jsr) / (100 * p.ms),
        "diff": (x.Ca_ss - x.Ca_i) / (0.2 * p.ms),
        "diffNa": (x.Na_ss - x.Na_i) / (2 * p.ms),
        "diffK": (x.K_ss - x.K_i) / (2 * p.ms),
    }


def free(held: Scalar, p: Any, *buffers: tuple[float, float]) -> Scalar:
    """Share of a change of calcium that stays free beside buffers, each (most, half) in mmol/L."""
    level = held / p.mM
    return 1 / (1 + sum(most * half / (half + level) ** 2 for most, half in buffers))
