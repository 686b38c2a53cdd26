"""Excitable cells against the CellML of each model by CVODES at 1e-11, and a BioModels file."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import rows, table

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import CATALOGUE, beeler_reuter, fitzhugh_nagumo, luo_rudy

CELLS = {
    "br77": "beeler_reuter",
    "lr91": "luo_rudy",
    "tp06_epi": "ten_tusscher_epi",
    "tp06_endo": "ten_tusscher_endo",
}


RENAMED = {"Ca": "Cai", "R": "R_prime"}


@functools.cache
def beat(name, rtol, atol):
    model = CATALOGUE[name]
    tight = replace(model, solver=replace(model.solver, rtol=rtol, atol=atol, max_steps=65536))
    return jax.jit(lambda p, u, t: simulate(tight, p, u, t))


def summary(shared, cell):
    (row,) = [row for row in rows(shared("reference/models/ep_summary.csv")) if row["model"] == cell]
    return {name: float(value) for name, value in row.items() if name not in ("model", "cellml")}


def paced(name, about):
    """One stimulus, as an infusion of current."""
    length = about["stim_dur_ms"]
    stimulus = Doses([about["stim_start_ms"]], [about["stim_amp"] * length], [length])
    return replace(CATALOGUE[name].inputs(), stimulus=stimulus)


def sharp(name):
    """Parameters with which rates jump where the paper lets them jump."""
    p = CATALOGUE[name].params()
    return replace(p, switch=1e-3) if name == "luo_rudy" else p


@pytest.mark.parametrize("cell", CELLS)
def test_action_potential_agrees_with_cellml(cell, shared):
    about, name = summary(shared, cell), CELLS[cell]
    # A column's name begins with the component that the state belongs to.
    columns = table(shared(f"reference/models/ep_{cell}.csv"))
    reference = {name.rpartition(".")[2]: column for name, column in columns.items()}
    t, v = reference["time"], reference["V"]
    # The reference's ms, half ms about the upstroke, and closer where the potential is 90 % of its way back.
    start, duration = about["stim_start_ms"], about["APD90_ms"]
    fine = start + duration + np.linspace(-1.0, 4.0, 101)
    u, p = paced(name, about), sharp(name)
    upstroke = start + np.arange(0.0, 10.0, 0.5)
    times = np.concatenate([t, upstroke, fine])
    order = np.argsort(times)
    found = beat(name, 1e-7, 1e-9)(p, u, times[order]).state
    found = {part: np.asarray(column)[np.argsort(order)] for part, column in values(found).items()}
    voltage, up, back = np.split(found["V"], [len(t), len(t) + len(upstroke)])
    rising = (t >= start) & (t <= start + 6)
    off = np.abs(voltage - v)
    np.testing.assert_allclose(off[~rising], 0.0, atol=0.01)
    np.testing.assert_allclose(off[rising], 0.0, atol=0.2)
    for part, column in found.items():
        wanted = reference[RENAMED.get(part, part)]
        np.testing.assert_allclose(
            column[: len(t)][~rising], wanted[~rising], rtol=1e-5, atol=1e-5 * np.ptp(wanted), err_msg=part
        )
    level = about["Vmax"] - 0.9 * (about["Vmax"] - about["Vmin"])
    assert back[0] > level > back[-1]
    # The summary counts from the steepest rise among samples of half a ms.
    steepest = upstroke[np.argmax(np.gradient(up, upstroke))]
    np.testing.assert_allclose(np.interp(-level, -back, fine) - steepest, duration, atol=0.05)


def test_what_the_switch_of_luo_and_rudy_costs(shared):
    """Turned over 1 mV, the action potential is within 0.02 mV of the paper's after the upstroke."""
    about, times = summary(shared, "lr91"), np.arange(0.0, 500.0)
    run, u = beat("luo_rudy", 1e-7, 1e-9), paced("luo_rudy", about)
    off = run(luo_rudy.params(), u, times).state.V - run(sharp("luo_rudy"), u, times).state.V
    start = about["stim_start_ms"]
    assert np.max(np.abs(off[(times < start) | (times > start + 6)])) < 0.02


def test_fitzhugh_agrees_with_reference(shared):
    reference = table(shared("reference/models/fitzhugh_nagumo.csv"))
    tight = replace(fitzhugh_nagumo, solver=Solver(rtol=1e-10, atol=1e-12))
    u = replace(tight.inputs(), stimulus=float(reference["z"][0]))
    found = jax.jit(lambda p, u, t: simulate(tight, p, u, t).state)(tight.params(), u, reference["t"])
    np.testing.assert_allclose(found.x, reference["x"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.y, reference["y"], rtol=0, atol=1e-6)


# Where the formulas of the papers are 0/0, or change.
SPECIAL = {
    "beeler_reuter": (-47.0, -23.0),
    "luo_rudy": (-47.13, -77.0, -40.0, -100.0),
    "ten_tusscher_epi": (15.0, -40.0),
}


@functools.cache
def rates(name):
    """Of each state at a voltage, and how they move with it."""
    model = CATALOGUE[name]
    p = model.params()

    def rate(v):
        return model.drift(jnp.asarray(0.0), replace(model.init(p), V=v), model.inputs(), p)

    return jax.jit(lambda v: (rate(v), jax.jacfwd(rate)(v)))


@pytest.mark.parametrize(
    ("name", "voltage"), [(name, voltage) for name, several in SPECIAL.items() for voltage in several]
)
def test_rates_are_smooth_where_the_formulas_are_0_over_0(name, voltage):
    (at, slope), (beside, _) = rates(name)(voltage), rates(name)(voltage + 1e-6)
    for part, value in values(at).items():
        assert np.isfinite(value) and np.isfinite(getattr(slope, part)), part
        if voltage not in (-40.0, -100.0):
            np.testing.assert_allclose(
                getattr(beside, part) - value, 1e-6 * getattr(slope, part), rtol=1e-3, atol=1e-9
            )


@pytest.mark.parametrize("model", [beeler_reuter, luo_rudy], ids=lambda model: model.name)
def test_a_cell_that_is_not_stimulated_rests(model):
    """No beat, and a finite gradient of the voltage with respect to everything."""

    def last(p):
        return simulate(model, p, model.inputs(), jnp.asarray([40.0])).output.voltage[0]

    value, gradient = jax.jit(jax.value_and_grad(last))(model.params())
    assert -90.0 < value < -80.0
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
