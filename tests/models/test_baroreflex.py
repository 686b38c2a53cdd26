"""The baroreflex, open loop, against an independent solve of the delay equations."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import baroreflex, baroreflex_chain
from dtwin_jax.models.baroreflex import ChainInputs, Inputs, Params

EFFECTORS = ("Emax_lv", "Emax_rv", "Rsp", "Rep", "Vu_sv", "Vu_ev", "Ts", "Tv")


def pressure():
    """92, up to 110, down to 82 mm[Hg], sampled closely where it moves."""
    parts = [[0.0], np.arange(5.0, 12.0, 0.1), np.arange(12.0, 28.0, 0.02), np.arange(28.0, 56.0, 0.2)]
    time = np.concatenate([*parts, np.arange(56.0, 84.0, 0.02), np.arange(84.0, 301.0, 4.0)])
    value = 92 + 9 * (1 + np.tanh((time - 20) / 1.5)) - 14 * (1 + np.tanh((time - 70) / 2))
    return Sampled(time, value)


@pytest.fixture(scope="module")
def reference(shared):
    with open(shared("reference/models/baroreflex_ursino1998_openloop.csv")) as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_effectors_under_a_given_pressure_agree_with_reference(reference):
    model = replace(baroreflex, solver=Solver(rtol=1e-8, atol=1e-9, max_steps=2**18))
    found = jax.jit(lambda p, u, t: simulate(model, p, u, t))(Params(), Inputs(pressure()), reference["t_s"])
    assert found.outcome == Outcome.SOLVED
    for name in EFFECTORS:
        np.testing.assert_allclose(
            getattr(found.state, f"d_{name}"), reference[f"d_{name}"], rtol=1e-5, err_msg=name
        )
    np.testing.assert_allclose(found.output.period, reference["T_s"], rtol=1e-5)
    np.testing.assert_allclose(60 / found.output.period, reference["HR_bpm"], rtol=1e-5)
    np.testing.assert_allclose(found.output.Rsp, 2.49 + reference["d_Rsp"], rtol=1e-5)


def test_stages_in_place_of_delays_stay_close_to_reference(reference):
    model = replace(baroreflex_chain, solver=Solver(rtol=1e-6, atol=1e-8, max_steps=2**15))
    u = ChainInputs(pressure())
    found = jax.jit(lambda p, u, t: simulate(model, p, u, t))(Params(), u, reference["t_s"])
    assert found.outcome == Outcome.SOLVED
    for name in EFFECTORS:
        exact = reference[f"d_{name}"]
        error = np.max(np.abs(getattr(found.state, f"d_{name}") - exact)) / np.ptp(exact)
        assert error < 0.03, name


@pytest.mark.parametrize("model", [baroreflex, baroreflex_chain], ids=lambda model: model.name)
def test_in_balance_nothing_moves_and_slopes_are_finite(model):
    p = Params()
    x = model.init(p)

    def rates(p):
        return model.drift(jnp.asarray(0.0), x, model.inputs(), p)

    for name, rate in values(rates(p)).items():
        np.testing.assert_allclose(rate, 0.0, atol=1e-12, err_msg=name)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(jax.jacrev(rates)(p)))
    np.testing.assert_allclose(
        model.observe(jnp.asarray(0.0), x, model.inputs(), p).period, 60 / 69.290069351
    )


def test_no_pressure_gives_the_greatest_sympathetic_drive():
    """Afferents silent but for 1 in 2500 of their range: the logarithm's argument is known by hand."""
    p = Params(P_start=0.0)
    firing = 2.52 + (47.78 - 2.52) / (1 + np.exp(92 / 11.758))
    drive = np.log(2.1 + 14.01 * np.exp(-0.0675 * firing) - 2.66 + 1)
    np.testing.assert_allclose(baroreflex.init(p).d_Rsp, 0.695 * drive, rtol=1e-12)
