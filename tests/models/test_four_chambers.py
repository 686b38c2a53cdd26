"""The four-chamber circulation against an independent solve (LSODA, 1e-9) without smoothing."""

import csv
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.dynamics.periodic import PeriodicOutcome, Search, periodic
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome
from dtwin_jax.dynamics.started import Start, started
from dtwin_jax.models import four_chambers
from dtwin_jax.models.four_chambers import Inputs, Params, flows, pressures, valve

SEARCH = Search(settle=2, tolerance=1e3, turns=("phase",))


def table(path, every=1):
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([float(row[name] or "nan") for row in rows[::every]])
        for name in rows[0]
        if name != "case"
    }


@functools.cache
def second_beat():
    """(p, times) -> trajectory from the initial state."""
    return jax.jit(lambda p, infusion, times: simulate(four_chambers, p, Inputs(infusion), times))


@functools.cache
def steady_beat():
    """(p, times) -> steady state, the beat from it, its pressures and flows."""

    def run(p, times):
        steady = periodic(four_chambers, p, Inputs(), p.period, search=SEARCH)
        beat = simulate(started(four_chambers), Start(p, steady.state), Inputs(), times)
        pressure = jax.vmap(lambda x: pressures(x, p))(beat.state)
        return steady, beat, pressure, jax.vmap(lambda each: flows(each, p))(pressure)

    return jax.jit(run)


def names(reference, letter):
    return [name for name in reference if name.startswith(f"{letter}_")]


def test_second_beat_agrees_with_reference(shared):
    reference = table(shared("reference/models/korakianitis_linear_default_cycle2.csv"))
    found = second_beat()(Params(), jnp.asarray(0.0), 1.0 + reference["t_s_in_cycle2"])
    assert found.outcome == Outcome.SOLVED
    for name in names(reference, "V"):
        np.testing.assert_allclose(
            getattr(found.state, name), reference[name], atol=1e-3, rtol=0, err_msg=name
        )
    for name in names(reference, "Q"):
        np.testing.assert_allclose(
            getattr(found.state, name), reference[name], atol=1e-1, rtol=0, err_msg=name
        )
    np.testing.assert_allclose(found.state.phase, 1.0 + reference["t_s_in_cycle2"], rtol=1e-12)


def test_steady_beat_agrees_with_reference(shared):
    reference = table(shared("reference/models/korakianitis_linear_default_lastcycle.csv"))
    # Ten times as often as the reference, for the extremes between its rows.
    fine = np.linspace(0.0, 1.0, 10 * 100 + 1)
    steady, beat, pressure, flow = steady_beat()(Params(), fine)
    np.testing.assert_allclose(fine[::10][: len(reference["t_s"])], reference["t_s"], atol=1e-12)
    rows = slice(0, 10 * len(reference["t_s"]), 10)
    assert steady.outcome == PeriodicOutcome.FOUND
    for name in names(reference, "V"):
        np.testing.assert_allclose(
            getattr(beat.state, name)[rows], reference[name], atol=1e-3, rtol=0, err_msg=name
        )
    for name in names(reference, "P"):
        np.testing.assert_allclose(
            getattr(pressure, name[2:])[rows], reference[name], atol=1e-2, rtol=0, err_msg=name
        )
    for name in ("Q_svn", "Q_pvn"):
        np.testing.assert_allclose(getattr(flow, name[2:])[rows], reference[name], rtol=1e-3, err_msg=name)
    assert np.all(beat.output.pressure == pressure.sas)

    indices = table(shared("reference/models/cv_closedloop_summary.csv"))
    wanted = {name: column[2] for name, column in indices.items()}
    left, right = beat.state.V_lv, beat.state.V_rv
    stroke = jnp.max(left) - jnp.min(left)
    found = {
        "SBP": jnp.max(pressure.sas),
        "DBP": jnp.min(pressure.sas),
        "MAP": jnp.trapezoid(pressure.sas, fine),
        "PAP_sys": jnp.max(pressure.pas),
        "PAP_dia": jnp.min(pressure.pas),
        "CVP": jnp.trapezoid(pressure.svn, fine),
        "LVEDV": jnp.max(left),
        "LVESV": jnp.min(left),
        "RVEDV": jnp.max(right),
        "RVESV": jnp.min(right),
        "SV": stroke,
        "EF": stroke / jnp.max(left),
        "CO_L_min": stroke * 60 / 1000,
        "Vtot": sum(getattr(beat.state, name) for name in names(reference, "V"))[-1],
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-4, err_msg=name)


def test_volume_is_conserved_but_for_the_infusion():
    times = jnp.linspace(1.0, 2.0, 11)
    found = second_beat()(Params(), jnp.asarray(-20.0), times)
    total = sum(value for name, value in vars(found.state).items() if name.startswith("V_"))
    np.testing.assert_allclose(total, 941.0 - 20.0 * times, rtol=1e-12)


def test_valves_have_finite_slopes_where_they_open():
    p = Params()
    slope = jax.grad(lambda dP: valve(dP, p.CQ_ao, p))
    np.testing.assert_allclose(slope(jnp.asarray(1e-12)), 350.0 / np.sqrt(1e-4), rtol=1e-5)
    assert slope(jnp.asarray(-1.0)) == 0.0 and np.isfinite(slope(jnp.asarray(0.0)))
    np.testing.assert_allclose(valve(jnp.asarray(4.0), p.CQ_ao, p), 700.0, rtol=2e-5)
