"""Action potential of a guinea pig ventricular cell: the first model of Luo and Rudy.

Source: Luo & Rudy 1991, Circ Res 68:1501, doi 10.1161/01.RES.68.6.1501; equations and values compared with
the CellML in Chaste/cellml (luo_rudy_1991.cellml).

    C V'  = -(stimulus + i_Na + i_si + i_K + i_K1 + i_Kp + i_b)
    i_Na  = g_Na m^3 h j (V - E_Na)
    i_si  = g_si d f (V - E_si),      E_si = 7.7 - 13.0287 log([Ca] in mmol/L)
    i_K   = g_K sqrt(Ko / 5.4) X Xi (V - E_K)
    i_K1  = g_K1 sqrt(Ko / 5.4) K1 (V - E_K1)
    i_Kp  = g_Kp Kp (V - E_K1)
    i_b   = g_b (V - E_b)
    [Ca]' = 0.07 ([Ca]rest - [Ca]) - filling i_si
    gate' = alpha (1 - gate) - beta gate      of m, h, j, d, f and X

E are Nernst potentials. Formulas take V in mV and give rates per ms. The paper cuts the rates of h and j at
-40 mV, where the closing of h jumps by a quarter. A derivative misses what moving such a jump does (up to
19 mV per e-fold of a parameter in the upstroke), so here one formula turns into the other over `switch`,
1 mV; as it narrows the model becomes the paper's. Xi is cut at -100 mV; 0/0 at -47.13 and -77 mV is a smooth
function. Stimulus is a current of some duration (a dose given over it), negative depolarises. One action
potential tells few of the conductances.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.linear import phi1
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_PAPER = "Luo & Rudy 1991"
_SPREAD = _PAPER + "; spread weakly informative, chosen here"


class Params(eqx.Module):
    """Conductances of the membrane, and what is in and outside it."""

    g_Na: Scalar = param(23.0, "mS/cm2", lognormal(23.0, log_sd=0.5), source=_SPREAD, doc="fast sodium")
    g_si: Scalar = param(0.09, "mS/cm2", lognormal(0.09, log_sd=0.5), source=_SPREAD, doc="slow inward")
    g_K: Scalar = param(0.282, "mS/cm2", lognormal(0.282, log_sd=0.5), source=_SPREAD, doc="potassium")
    g_K1: Scalar = param(
        0.6047, "mS/cm2", lognormal(0.6047, log_sd=0.5), source=_SPREAD, doc="time-independent potassium"
    )
    g_Kp: Scalar = param(0.0183, "mS/cm2", source=_PAPER, doc="plateau potassium")
    g_b: Scalar = param(0.03921, "mS/cm2", source=_PAPER, doc="background")
    E_b: Scalar = param(-59.87, "mV", source=_PAPER, doc="reversal of the background")
    C: Scalar = param(1.0, "uF/cm2", source=_PAPER, doc="capacitance")
    Nao: Scalar = param(140.0, "mmol/L", source=_PAPER, doc="sodium outside")
    Nai: Scalar = param(18.0, "mmol/L", source=_PAPER, doc="sodium inside")
    Ko: Scalar = param(5.4, "mmol/L", source=_PAPER, doc="potassium outside")
    Ki: Scalar = param(145.0, "mmol/L", source=_PAPER, doc="potassium inside")
    PR_NaK: Scalar = param(0.01833, "1", source=_PAPER, doc="permeability of i_K to sodium")
    Ko_usual: Scalar = param(5.4, "mmol/L", source=_PAPER, doc="potassium that conductances are given for")
    filling: Scalar = param(1e-4, "mmol.cm2/L/ms/uA", source=_PAPER, doc="calcium carried by i_si")
    Ca_rest: Scalar = param(1e-4, "mmol/L", source=_PAPER, doc="calcium at rest")
    RT_F: Scalar = param(
        8314 * 310 / 96484.6, "mV", source=_PAPER + ": 8314 J/kmol/K, 310 K, 96484.6 C/mol", doc="RT / F"
    )
    switch: Scalar = param(1.0, "mV", source="chosen here", doc="over which h and j turn at -40 mV")
    mM: Scalar = param(1.0, "mmol/L", doc="unit of the formulas")
    mV: Scalar = param(1.0, "mV", doc="unit of the formulas")
    ms: Scalar = param(1.0, "ms", doc="unit of the formulas")
    sd: Scalar = param(1.0, "mV", lognormal(1.0, log_sd=0.7), source="chosen here", doc="additive error")


class Inputs(eqx.Module):
    """Current out of the cell."""

    stimulus: Input = var("uA/cm2", neutral=0.0, doc="negative depolarises")


class State(eqx.Module):
    """Voltage, calcium, gates."""

    V: Scalar = var("mV")
    Ca: Scalar = var("mmol/L")
    m: Scalar = var("1")
    h: Scalar = var("1")
    j: Scalar = var("1")
    d: Scalar = var("1")
    f: Scalar = var("1")
    X: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    voltage: Scalar = var("mV", doc="membrane potential", plausible=(-200.0, 200.0))


def init(p: Params) -> State:
    """Near rest, as in the CellML."""
    return State(
        V=-83.853 * p.mV,
        Ca=2e-4 * p.mM,
        m=0.00187018,
        h=0.9804713,
        j=0.98767124,
        d=0.00316354,
        f=0.99427859,
        X=0.16647703,
    )


def inactivation(v: Scalar, switch: Scalar) -> dict[str, tuple[Scalar, Scalar]]:
    """Rates of h and j: those below -40 mV turn into those above it over `switch` mV."""
    exp = jnp.exp
    above = jax.nn.sigmoid((v + 40) / switch)
    # Far above the switch the formulas for below it overflow.
    low = jnp.minimum(v, -40 + 40 * switch)
    falling = -127140 * exp(0.2444 * low) - 3.474e-5 * exp(-0.04391 * low)
    below = {
        "h": (0.135 * exp((80 + low) / -6.8), 3.56 * exp(0.079 * low) + 310000 * exp(0.35 * low)),
        "j": (
            falling * (low + 37.78) / (1 + exp(0.311 * (low + 79.23))),
            0.1212 * exp(-0.01052 * low) / (1 + exp(-0.1378 * (low + 40.14))),
        ),
    }
    closing = {
        "h": 1 / (0.13 * (1 + exp((v + 10.66) / -11.1))),
        "j": 0.3 * exp(-2.535e-7 * v) / (1 + exp(-0.1 * (v + 32))),
    }
    return {
        gate: ((1 - above) * alpha, (1 - above) * beta + above * closing[gate])
        for gate, (alpha, beta) in below.items()
    }


def gates(v: Scalar, switch: Scalar) -> dict[str, tuple[Scalar, Scalar]]:
    """Opening and closing rates of the gates, per ms, at a voltage in mV."""
    exp = jnp.exp
    return {
        "m": (3.2 / phi1(-0.1 * (v + 47.13)), 0.08 * exp(-v / 11)),
        **inactivation(v, switch),
        "d": (
            0.095 * exp(-0.01 * (v - 5)) / (1 + exp(-0.072 * (v - 5))),
            0.07 * exp(-0.017 * (v + 44)) / (1 + exp(0.05 * (v + 44))),
        ),
        "f": (
            0.012 * exp(-0.008 * (v + 28)) / (1 + exp(0.15 * (v + 28))),
            0.0065 * exp(-0.02 * (v + 30)) / (1 + exp(-0.2 * (v + 30))),
        ),
        "X": (
            0.0005 * exp(0.083 * (v + 50)) / (1 + exp(0.057 * (v + 50))),
            0.0013 * exp(-0.06 * (v + 20)) / (1 + exp(-0.04 * (v + 20))),
        ),
    }


def slow_inward(x: State, p: Params) -> Scalar:
    """Current of calcium, uA/cm2."""
    reversal = (7.7 - 13.0287 * jnp.log(x.Ca / p.mM)) * p.mV
    return p.g_si * x.d * x.f * (x.V - reversal)


def potassium(x: State, p: Params) -> Scalar:
    """Currents of potassium, uA/cm2."""
    exp, v = jnp.exp, x.V / p.mV
    outside = jnp.sqrt(p.Ko / p.Ko_usual)
    E_K = p.RT_F * jnp.log((p.Ko + p.PR_NaK * p.Nao) / (p.Ki + p.PR_NaK * p.Nai))
    E_K1 = p.RT_F * jnp.log(p.Ko / p.Ki)
    above = jnp.maximum(v, -100.0)
    Xi = jnp.where(v > -100, 2.837 * 0.04 * phi1(0.04 * (above + 77)) / exp(0.04 * (above + 35)), 1.0)
    w = v - E_K1 / p.mV
    opened = 1.02 / (1 + exp(0.2385 * (w - 59.215)))
    closed = (0.49124 * exp(0.08032 * (w + 5.476)) + exp(0.06175 * (w - 594.31))) / (
        1 + exp(-0.5143 * (w + 4.753))
    )
    i_K = p.g_K * outside * x.X * Xi * (x.V - E_K)
    i_K1 = p.g_K1 * outside * opened / (opened + closed) * (x.V - E_K1)
    return i_K + i_K1 + p.g_Kp / (1 + exp((7.488 - v) / 5.98)) * (x.V - E_K1)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per ms."""
    E_Na = p.RT_F * jnp.log(p.Nao / p.Nai)
    i_Na = p.g_Na * x.m**3 * x.h * x.j * (x.V - E_Na)
    i_si, i_b = slow_inward(x, p), p.g_b * (x.V - p.E_b)
    turned = {}
    for gate, (alpha, beta) in gates(x.V / p.mV, p.switch / p.mV).items():
        value = getattr(x, gate)
        turned[gate] = (alpha * (1 - value) - beta * value) / p.ms
    return State(
        V=-(u.stimulus + i_Na + i_si + potassium(x, p) + i_b) / p.C,
        Ca=0.07 * (p.Ca_rest - x.Ca) / p.ms - p.filling * i_si,
        **turned,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Membrane potential."""
    return Outputs(voltage=x.V)


def example() -> Record:
    """One action potential, stimulated for 2 ms, seen every 5 ms."""
    times = 5.0 * np.arange(1.0, 91.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(stimulus=Steps([0.0, 10.0, 12.0], [0.0, -25.5, 0.0])), {"voltage": seen})


luo_rudy = Model(
    name="luo_rudy",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="ms",
    solver=Solver(method=diffrax.Kvaerno5, rtol=1e-6, atol=1e-8),
    source="Luo & Rudy 1991, doi 10.1161/01.RES.68.6.1501",
    valid="One guinea pig ventricular cell at 37 degrees; sodium and potassium are fixed.",
    stiffness="0.01 ms (m) to 600 ms (X): implicit, Kvaerno5; stimuli are events.",
    checked="The CellML by CVODES at 1e-11, switch 0.001 mV: 0.01 mV, in the upstroke 0.2 mV; APD90 0.05 ms.",
    example=example,
)
