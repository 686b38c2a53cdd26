"""Windkessels of 2, 3 and 4 elements: arterial pressure under a given inflow from the heart.

Source: Westerhof, Lankhaar & Westerhof 2009, Med Biol Eng Comput 47:131, doi 10.1007/s11517-008-0359-2.
The default values are of human order of magnitude, recalled, not checked.

    C Pc' = inflow - Pc / R                  pressure of the compliance, all windkessels
    pressure = Pc                            2 elements
    pressure = Pc + Rc inflow                3 elements
    pressure = Pc + Rc inflow + L inflow'    4 elements, inertance in series
    L QL' = Zc (inflow - QL)                 4 elements, inertance beside the characteristic resistance
    pressure = Pc + Zc (inflow - QL)

The inflow is an input. The inertance in series needs its slope too, a second input, since a measured flow
is differentiable only between its samples: `measured(time, inflow)` makes both from samples. The variant
`windkessel_3_half_sine` has no measured flow: half a sine wave each beat; its corners, at the start and end
of ejection, are kinks of the right-hand side: continuous, so the solver steps over them.
Fitted in practice: R, C, Rc and the pressure at the start. Mean pressure fixes R (R + Rc with 3 elements)
alone. Without a measured flow, stroke volume scales R and C, so it must be known.

Variants:
windkessel_2: Windkessel of 2 elements, resistance and compliance: arterial pressure under a given inflow
windkessel_3: Windkessel of 3 elements, with characteristic resistance: arterial pressure under a given inflow
windkessel_4_series: Windkessel of 4 elements, inertance in series: arterial pressure under a given inflow
windkessel_4_parallel: Windkessel of 4 elements, inertance in parallel: arterial pressure under a given inflow
windkessel_3_half_sine: Windkessel of 3 elements under half a sine wave of inflow each beat: arterial pressure
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Sampled, Steps
from dtwin_jax.core.types import Scalar, Vector
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.solver import Solver

_WEAK = "value: order of magnitude, recalled, not checked; prior: weakly informative, chosen here"
_RIG = "weakly informative, chosen here"


class Params(eqx.Module):
    """Parameters of the 2-element windkessel, which all have."""

    R: Scalar = param(
        1.0, "mm[Hg].s/mL", lognormal(1.0, log_sd=0.7), source=_WEAK, doc="peripheral resistance"
    )
    C: Scalar = param(1.5, "mL/mm[Hg]", lognormal(1.5, log_sd=0.7), source=_WEAK, doc="arterial compliance")
    P0: Scalar = param(
        80.0,
        "mm[Hg]",
        lognormal(80.0, log_sd=0.5),
        source=_RIG,
        doc="of the compliance, at the start",
    )
    sd: Scalar = param(2.0, "mm[Hg]", lognormal(2.0, log_sd=1.0), source=_RIG, doc="additive error")


class Params3(Params):
    """With a characteristic resistance."""

    Rc: Scalar = param(
        0.05, "mm[Hg].s/mL", lognormal(0.05, log_sd=1.0), source=_WEAK, doc="characteristic resistance"
    )


class Params4Series(Params3):
    """With an inertance in series."""

    L: Scalar = param(0.005, "mm[Hg].s2/mL", lognormal(0.005, log_sd=1.0), source=_WEAK, doc="inertance")


class Params4Parallel(Params):
    """With an inertance beside the characteristic resistance."""

    Zc: Scalar = param(
        0.05, "mm[Hg].s/mL", lognormal(0.05, log_sd=1.0), source=_WEAK, doc="characteristic resistance"
    )
    L: Scalar = param(0.005, "mm[Hg].s2/mL", lognormal(0.005, log_sd=1.0), source=_WEAK, doc="inertance")


class Inputs(eqx.Module):
    """What the heart ejects."""

    inflow: Input = var("mL/s", neutral=0.0, doc="into the arteries", plausible=(-500.0, 2000.0))


class SeriesInputs(Inputs):
    """What the heart ejects, and how fast that changes."""

    slope: Input = var("mL/s2", neutral=0.0, doc="derivative of the inflow")


class State(eqx.Module):
    """Pressure of the compliance."""

    Pc: Scalar = var("mm[Hg]")


class ParallelState(State):
    """And the flow through the inertance."""

    QL: Scalar = var("mL/s")


class Outputs(eqx.Module):
    """What is measured."""

    pressure: Scalar = var("mm[Hg]", doc="at the entry of the arteries", plausible=(-50.0, 400.0))


def init(p: Params) -> State:
    """The compliance at its initial pressure."""
    return State(Pc=p.P0)


def init_parallel(p: Params4Parallel) -> ParallelState:
    """No flow through the inertance."""
    return ParallelState(Pc=p.P0, QL=0.0)


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rate of change of the pressure, mm[Hg]/s."""
    return State(Pc=(u.inflow - x.Pc / p.R) / p.C)


def drift_parallel(t: Scalar, x: ParallelState, u: Inputs, p: Params4Parallel) -> ParallelState:
    """Rates of change, per second."""
    return ParallelState(Pc=(u.inflow - x.Pc / p.R) / p.C, QL=p.Zc / p.L * (u.inflow - x.QL))


def observe_2(t: Scalar, x: State, u: Inputs, p: Params) -> Outputs:
    """The compliance itself."""
    return Outputs(pressure=x.Pc)


def observe_3(t: Scalar, x: State, u: Inputs, p: Params3) -> Outputs:
    """The compliance behind the characteristic resistance."""
    return Outputs(pressure=x.Pc + p.Rc * u.inflow)


def observe_4_series(t: Scalar, x: State, u: SeriesInputs, p: Params4Series) -> Outputs:
    """The compliance behind resistance and inertance."""
    return Outputs(pressure=x.Pc + p.Rc * u.inflow + p.L * u.slope)


def observe_4_parallel(t: Scalar, x: ParallelState, u: Inputs, p: Params4Parallel) -> Outputs:
    """The compliance behind resistance and inertance side by side."""
    return Outputs(pressure=x.Pc + p.Zc * (u.inflow - x.QL))


def measured(time: Vector, inflow: Vector) -> SeriesInputs:
    """The inflow through samples by straight lines, and its slope between them.

    Args:
        time: s, sorted.
        inflow: mL/s.
    """
    slope = np.diff(inflow) / np.diff(time)
    return SeriesInputs(inflow=Sampled(time, inflow), slope=Steps(time, np.append(slope, 0.0)))


def impedance_2(p: Params, omega: Any) -> Any:
    """Input impedance of 2 elements, complex, mm[Hg].s/mL.

    Args:
        p: resistance and compliance.
        omega: angular frequency, rad/s.
    """
    turned = omega * p.R * p.C
    return jax.lax.complex(p.R / (1 + turned**2), -p.R * turned / (1 + turned**2))


def impedance_3(p: Params3, omega: Any) -> Any:
    """Input impedance of 3 elements at angular frequency `omega`."""
    flat = impedance_2(p, omega)
    return jax.lax.complex(flat.real + p.Rc, flat.imag)


def impedance_4_series(p: Params4Series, omega: Any) -> Any:
    """Input impedance of 4 elements, inertance in series, at angular frequency `omega`."""
    flat = impedance_3(p, omega)
    return jax.lax.complex(flat.real, flat.imag + omega * p.L)


def impedance_4_parallel(p: Params4Parallel, omega: Any) -> Any:
    """Input impedance of 4 elements, inertance in parallel, at angular frequency `omega`."""
    reactance = omega * p.L
    share = p.Zc * reactance / (reactance**2 + p.Zc**2)
    return impedance_2(p, omega) + jax.lax.complex(share * reactance, share * p.Zc)


class HalfSine(eqx.Module):
    """A heart that ejects half a sine wave each beat."""

    stroke_volume: Scalar = param(
        75.0, "mL", source="order of magnitude, chosen here", doc="ejected each beat, known"
    )
    ejection: Scalar = param(0.3, "s", source="order of magnitude, chosen here", doc="duration of ejection")
    period: Scalar = param(0.85, "s", source="order of magnitude, chosen here", doc="from beat to beat")


class HalfSineParams3(Params3, HalfSine):
    """The 3-element windkessel behind that heart."""


class HeartInputs(eqx.Module):
    """What helps the heart."""

    pump: Input = var("mL/s", neutral=0.0, doc="flow of a pump beside it")


def half_sine(t: Scalar, p: HalfSine) -> SeriesInputs:
    """Ejection of the stroke volume as half a sine wave at the start of every period."""
    ejecting = jnp.mod(t, p.period) / p.ejection
    rate = jnp.pi / p.ejection
    peak = rate * p.stroke_volume / 2
    wave = jnp.where(ejecting < 1, jnp.sin(jnp.pi * ejecting), 0.0)
    turn = jnp.where(ejecting < 1, jnp.cos(jnp.pi * ejecting), 0.0)
    return SeriesInputs(inflow=peak * wave, slope=rate * peak * turn)


@dataclass(frozen=True)
class HalfSineDriven:
    """An equation of a windkessel under the half sines of a heart, and a pump beside it."""

    equation: Callable[[Any, Any, Any, Any], Any]

    def __call__(self, t: Scalar, x: Any, u: HeartInputs, p: Any) -> Any:
        """The equation with the inflow of time `t`."""
        heart = half_sine(t, p)
        return self.equation(t, x, SeriesInputs(heart.inflow + u.pump, heart.slope), p)


def _beats() -> tuple[Vector, Vector]:
    """Times and flow of five beats, 40 samples a second: 75 mL in 0.3 s, every 0.85 s."""
    time = np.arange(171.0) / 40.0
    phase = np.mod(time, 0.85) / 0.3
    return time, np.where(phase < 1.0, np.pi * 75.0 / 0.6 * np.sin(np.pi * phase), 0.0)


def _five_beats(inputs: Any) -> Record:
    time, _ = _beats()
    return Record(inputs, {"pressure": Series(time, np.zeros(len(time)))})


def example() -> Record:
    """Five beats of flow and pressure in the aorta, 40 samples a second."""
    return _five_beats(Inputs(inflow=Sampled(*_beats())))


def example_4_series() -> Record:
    """Five beats of flow, its slope and pressure in the aorta, 40 samples a second."""
    return _five_beats(measured(*_beats()))


def example_half_sine() -> Record:
    """Five beats of pressure, 40 samples a second, without a pump."""
    return _five_beats(HeartInputs())


# A measured flow is a corner, so a step, at every sample.
windkessel_2 = Model(
    name="windkessel_2",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe_2,
    noise=additive,
    time="s",
    solver=Solver(max_steps=2**14),
    source="Westerhof, Lankhaar & Westerhof 2009, doi 10.1007/s11517-008-0359-2",
    valid="Arterial pressure as far as few elements make it, the slow part surely; no reflected waves.",
    stiffness="One time constant, R C, 1.5 s at the defaults: not stiff, Tsit5.",
    checked="Exact periodic solution under half-sine inflow, 1e-9 relative; input impedance, 1e-12 relative.",
    example=example,
)
windkessel_3 = replace(windkessel_2, name="windkessel_3", params=Params3, observe=observe_3)
windkessel_4_series = replace(
    windkessel_2,
    name="windkessel_4_series",
    params=Params4Series,
    inputs=SeriesInputs,
    observe=observe_4_series,
    example=example_4_series,
)
windkessel_4_parallel = replace(
    windkessel_2,
    name="windkessel_4_parallel",
    params=Params4Parallel,
    init=init_parallel,
    drift=drift_parallel,
    observe=observe_4_parallel,
    stiffness="R C, 1.5 s, and L / Zc, 0.1 s at the defaults: not stiff, Tsit5.",
)
windkessel_3_half_sine = replace(
    windkessel_3,
    name="windkessel_3_half_sine",
    params=HalfSineParams3,
    inputs=HeartInputs,
    drift=HalfSineDriven(drift),
    observe=HalfSineDriven(observe_3),
    example=example_half_sine,
)
