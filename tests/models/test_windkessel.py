"""Windkessels against the exact periodic solution and impedance, and against each other."""

import csv
import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.periodic import PeriodicOutcome, periodic
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.models import (
    windkessel_2,
    windkessel_3,
    windkessel_3_half_sine,
    windkessel_4_parallel,
    windkessel_4_series,
)
from dtwin_jax.models.windkessel import (
    HalfSine,
    HalfSineDriven,
    HalfSineParams3,
    HeartInputs,
    Inputs,
    Params,
    Params3,
    Params4Parallel,
    Params4Series,
    half_sine,
    impedance_2,
    impedance_3,
    impedance_4_parallel,
    impedance_4_series,
    measured,
)

R, C, RC, L, SV, TS, T = 1.0, 1.5, 0.05, 0.005, 75.0, 0.3, 0.85


class DrivenParams2(Params, HalfSine):
    """2 elements behind the heart."""


class DrivenParams4Series(Params4Series, HalfSine):
    """4 elements in series behind the heart."""


class DrivenParams4Parallel(Params4Parallel, HalfSine):
    """4 elements, two of them parallel, behind the heart."""


MODELS = {
    "wk2": (windkessel_2, DrivenParams2, impedance_2),
    "wk3": (windkessel_3, HalfSineParams3, impedance_3),
    "wk4_series": (windkessel_4_series, DrivenParams4Series, impedance_4_series),
    "wk4_parallel": (windkessel_4_parallel, DrivenParams4Parallel, impedance_4_parallel),
}
TIGHT = Solver(rtol=1e-11, atol=1e-10)


def driven(name):
    """A windkessel under half sines."""
    model, params, _ = MODELS[name]
    return replace(
        model,
        params=params,
        inputs=HeartInputs,
        drift=HalfSineDriven(model.drift),
        observe=HalfSineDriven(model.observe),
        solver=TIGHT,
    )


@functools.cache
def steady_beat(name):
    """(p, times) -> the periodic state, and pressure at times from it on."""
    model = driven(name)

    def beat(p, times):
        steady = periodic(model, p, HeartInputs(), p.period)
        start = Start(p, steady.state)
        return steady, simulate(started(model), start, HeartInputs(), times).output.pressure

    return jax.jit(beat)


def table(path):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("name", MODELS)
def test_pressure_of_the_steady_beat_agrees_with_reference(shared, name):
    reference = table(shared("reference/models/windkessel_periodic.csv"))
    steady, pressure = steady_beat(name)(driven(name).params(), reference["t_s"])
    assert steady.outcome == PeriodicOutcome.FOUND
    np.testing.assert_allclose(pressure, reference[f"P_{name}"], rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_mean_pressure_is_resistance_times_mean_flow(name):
    """Exactly: charge of the compliance and slope of the flow have no mean."""
    p = driven(name).params()
    node, weight = np.polynomial.legendre.leggauss(43)
    parts = [(0.0, TS), (TS, T)]
    times = np.concatenate([low + (high - low) * (node + 1) / 2 for low, high in parts])
    weights = np.concatenate([weight * (high - low) / 2 for low, high in parts])
    _, pressure = steady_beat(name)(p, times)
    resistance = R + (RC if name in ("wk3", "wk4_series") else 0.0)
    np.testing.assert_allclose(weights @ pressure / T, resistance * SV / T, rtol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_impedance_agrees_with_reference(shared, name):
    reference = table(shared("reference/models/windkessel_impedance.csv"))
    _, params, impedance = MODELS[name]
    found = impedance(params(), reference["omega"])
    np.testing.assert_allclose(found.real, reference[f"{name}_re"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.imag, reference[f"{name}_im"], rtol=1e-12, atol=1e-15)


def test_measured_flow_of_straight_lines_gives_pressure_in_closed_form():
    """C Pc' = a + b t - Pc / R has the solution R (a - b R C) + R b t + constant exp(-t / R C)."""
    corner, peak, rc = 0.2, 400.0, R * C
    flow = measured(np.array([0.0, corner, 2 * corner]), np.array([0.0, peak, 0.0]))
    times = np.array([0.05, 0.15, 0.25, 0.35])
    found = jax.jit(
        lambda p, u, t: simulate(replace(windkessel_4_series, solver=TIGHT), p, u, t).output.pressure
    )(Params4Series(P0=80.0), flow, times)

    def rising(start, a, b, t):
        steady = R * (a - b * rc)
        return steady + R * b * t + (start - steady) * np.exp(-t / rc)

    slope = peak / corner
    top = rising(80.0, 0.0, slope, corner)
    up = rising(80.0, 0.0, slope, times) + RC * slope * times + L * slope
    down = rising(top, peak, -slope, times - corner) + RC * (2 * peak - slope * times) - L * slope
    np.testing.assert_allclose(found, np.where(times < corner, up, down), rtol=1e-9)


def test_without_flow_pressure_falls_to_nothing_and_gradients_stay_finite():
    def late(p):
        flow = Inputs(Sampled([0.0, 100.0], [0.0, 0.0]))
        return simulate(windkessel_3, p, flow, jnp.asarray([0.0, 3.0, 100.0])).output.pressure

    p = Params3()
    found, slopes = jax.jit(lambda p: (late(p), jax.jacrev(late)(p)))(p)
    np.testing.assert_allclose(found, 80.0 * np.exp(-np.array([0.0, 2.0, 100.0 / 1.5])), rtol=1e-5, atol=1e-7)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))


def test_half_sine_ejects_the_stroke_volume():
    """The variant of the catalogue is the driven 3-element windkessel."""
    p = windkessel_3_half_sine.params()
    node, weight = np.polynomial.legendre.leggauss(20)
    flow = [half_sine(jnp.asarray(t), p).inflow for t in 5 * T + TS * (node + 1) / 2]
    np.testing.assert_allclose(weight @ np.array(flow) * TS / 2, SV, rtol=1e-12)
    assert half_sine(jnp.asarray(5 * T + 0.5), p).inflow == 0.0
    x, u = windkessel_3_half_sine.init(p), HeartInputs()
    for t in (0.1, 0.6):
        ours = windkessel_3_half_sine.observe(jnp.asarray(t), x, u, p)
        assert ours.pressure == 80.0 + RC * half_sine(jnp.asarray(t), p).inflow
