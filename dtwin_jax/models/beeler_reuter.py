"""Action potential of a mammalian ventricular cell: the eight equations of Beeler and Reuter.

Source: Beeler & Reuter 1977, J Physiol 268:177, doi 10.1113/jphysiol.1977.sp011853; equations and values
compared with the CellML in Chaste/cellml (beeler_reuter_model_1977.cellml).

    C V'  = stimulus - (i_Na + i_s + i_x1 + i_K1)
    i_Na  = (g_Na m^3 h j + g_NaC) (V - E_Na)
    i_s   = g_s d f (V - E_s),        E_s = -82.3 - 13.0287 log([Ca] in mol/L)
    i_x1  = g_x1 x1 (exp(0.04 (V + 77)) - 1) / exp(0.04 (V + 35))
    i_K1  = g_K1 (4 (exp(0.04 (V + 85)) - 1) / (exp(0.08 (V + 53)) + exp(0.04 (V + 53)))
                  + 0.2 (V + 23) / (1 - exp(-0.04 (V + 23))))
    [Ca]' = 0.07 ([Ca]rest - [Ca]) - filling i_s
    gate' = alpha (1 - gate) - beta gate          of m, h, j, d, f and x1

Formulas take V in mV and give rates per ms: `mV` and `ms` are these units. Rates of the form u / (exp(u) -
1) are written by a function that is smooth at u = 0. A stimulus is a current of some duration (a dose given
over it). Voltage clamps or many action potentials identify conductances; one action potential tells few of
them.
"""

import diffrax
import equinox as eqx
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

_PAPER = "Beeler & Reuter 1977"
_SPREAD = _PAPER + "; spread weakly informative, chosen here"


class Params(eqx.Module):
    """Conductances of the membrane."""

    g_Na: Scalar = param(0.04, "mS/mm2", lognormal(0.04, log_sd=0.5), source=_SPREAD, doc="fast sodium")
    g_s: Scalar = param(9e-4, "mS/mm2", lognormal(9e-4, log_sd=0.5), source=_SPREAD, doc="slow inward")
    g_x1: Scalar = param(
        0.008, "uA/mm2", lognormal(0.008, log_sd=0.5), source=_SPREAD, doc="time-dependent outward"
    )
    g_K1: Scalar = param(
        0.0035, "uA/mm2", lognormal(0.0035, log_sd=0.5), source=_SPREAD, doc="time-independent outward"
    )
    g_NaC: Scalar = param(3e-5, "mS/mm2", source=_PAPER, doc="background sodium")
    E_Na: Scalar = param(50.0, "mV", source=_PAPER, doc="reversal of sodium")
    C: Scalar = param(0.01, "uF/mm2", source=_PAPER, doc="capacitance")
    filling: Scalar = param(0.01, "mmol.mm2/L/ms/uA", source=_PAPER, doc="calcium carried by i_s")
    Ca_rest: Scalar = param(1e-4, "mmol/L", source=_PAPER, doc="calcium at rest")
    molar: Scalar = param(1000.0, "mmol/L", doc="unit of the formulas, 1 mol/L")
    mV: Scalar = param(1.0, "mV", doc="unit of the formulas")
    ms: Scalar = param(1.0, "ms", doc="unit of the formulas")
    sd: Scalar = param(1.0, "mV", lognormal(1.0, log_sd=0.7), source="chosen here", doc="additive error")


class Inputs(eqx.Module):
    """Current into the cell."""

    stimulus: Input = var("uA/mm2", neutral=0.0, doc="positive depolarises")


class State(eqx.Module):
    """Voltage, calcium, gates."""

    V: Scalar = var("mV")
    Ca: Scalar = var("mmol/L")
    m: Scalar = var("1")
    h: Scalar = var("1")
    j: Scalar = var("1")
    d: Scalar = var("1")
    f: Scalar = var("1")
    x1: Scalar = var("1")


class Outputs(eqx.Module):
    """What is measured."""

    voltage: Scalar = var("mV", doc="membrane potential", plausible=(-200.0, 200.0))


def init(p: Params) -> State:
    """Near rest, as in the CellML."""
    return State(
        V=-84.624 * p.mV, Ca=1e-4 * p.molar / 1000, m=0.011, h=0.988, j=0.975, d=0.003, f=0.994, x1=1e-4
    )


def gates(v: Scalar) -> dict[str, tuple[Scalar, Scalar]]:
    """Opening and closing rates of the gates, per ms, at a voltage in mV."""
    exp = jnp.exp
    return {
        "m": (10 / phi1(-0.1 * (v + 47)), 40 * exp(-0.056 * (v + 72))),
        "h": (0.126 * exp(-0.25 * (v + 77)), 1.7 / (exp(-0.082 * (v + 22.5)) + 1)),
        "j": (
            0.055 * exp(-0.25 * (v + 78)) / (exp(-0.2 * (v + 78)) + 1),
            0.3 / (exp(-0.1 * (v + 32)) + 1),
        ),
        "d": (
            0.095 * exp(-(v - 5) / 100) / (1 + exp(-(v - 5) / 13.89)),
            0.07 * exp(-(v + 44) / 59) / (1 + exp((v + 44) / 20)),
        ),
        "f": (
            0.012 * exp(-(v + 28) / 125) / (1 + exp((v + 28) / 6.67)),
            0.0065 * exp(-(v + 30) / 50) / (1 + exp(-(v + 30) / 5)),
        ),
        "x1": (
            5e-4 * exp((v + 50) / 12.1) / (1 + exp((v + 50) / 17.5)),
            0.0013 * exp(-(v + 20) / 16.67) / (1 + exp(-(v + 20) / 25)),
        ),
    }


def slow_inward(x: State, p: Params) -> Scalar:
    """Current of calcium (and sodium), uA/mm2."""
    reversal = (-82.3 - 13.0287 * jnp.log(x.Ca / p.molar)) * p.mV
    return p.g_s * x.d * x.f * (x.V - reversal)


def outward(x: State, p: Params) -> Scalar:
    """Currents of potassium, uA/mm2."""
    v = x.V / p.mV
    # 0.2 (v + 23) / (1 - exp(-0.04 (v + 23))) is 5 u / (exp(u) - 1), with u = -0.04 (v + 23).
    rectified = 4 * jnp.expm1(0.04 * (v + 85)) / (jnp.exp(0.08 * (v + 53)) + jnp.exp(0.04 * (v + 53)))
    i_K1 = p.g_K1 * (rectified + 5 / phi1(-0.04 * (v + 23)))
    return i_K1 + p.g_x1 * x.x1 * jnp.expm1(0.04 * (v + 77)) / jnp.exp(0.04 * (v + 35))


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per ms."""
    i_Na = (p.g_Na * x.m**3 * x.h * x.j + p.g_NaC) * (x.V - p.E_Na)
    i_s = slow_inward(x, p)
    turned = {}
    for gate, (alpha, beta) in gates(x.V / p.mV).items():
        value = getattr(x, gate)
        turned[gate] = (alpha * (1 - value) - beta * value) / p.ms
    return State(
        V=(u.stimulus - i_Na - i_s - outward(x, p)) / p.C,
        Ca=0.07 * (p.Ca_rest - x.Ca) / p.ms - p.filling * i_s,
        **turned,
    )


def observe(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """Membrane potential."""
    return Outputs(voltage=x.V)


def example() -> Record:
    """One action potential, stimulated for 1 ms, seen every 5 ms."""
    times = 5.0 * np.arange(1.0, 81.0)
    seen = Series(times, np.zeros(len(times)))
    return Record(Inputs(stimulus=Steps([0.0, 10.0, 11.0], [0.0, 0.5, 0.0])), {"voltage": seen})


beeler_reuter = Model(
    name="beeler_reuter",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=additive,
    time="ms",
    solver=Solver(method=diffrax.Kvaerno5, rtol=1e-6, atol=1e-8),
    source="Beeler & Reuter 1977, doi 10.1113/jphysiol.1977.sp011853",
    valid="One mammalian ventricular cell at 37 degrees, paced at rates near 1 Hz; potassium is fixed.",
    stiffness="0.01 ms (m at rest) to 400 ms (x1): implicit, Kvaerno5; stimuli are events.",
    checked="The CellML by CVODES at 1e-11, one beat: 0.01 mV, in the upstroke 0.2 mV; APD90 0.05 ms.",
    example=example,
)
