"""The renin-angiotensin-aldosterone system against libroadrunner running the published SBML file."""

import csv
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Steps
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome
from dtwin_jax.models import raas, raas_full
from dtwin_jax.models.raas import Inputs, Params

# A constant drug of 4e-4 mmol/L. Source: libroadrunner, losartan_raas.xml.
ROW_15_MIN = {"angiotensin_1": 1.75201500127, "angiotensin_2": 1.13112149828, "aldosterone": 0.421192864189}


def tight(model):
    # Closer than this, the iteration inside an implicit step drowns in the rounding of renin's rate.
    return replace(model, solver=replace(model.solver, rtol=3e-10, atol=3e-10))


@pytest.mark.parametrize("model", [raas, raas_full], ids=lambda model: model.name)
def test_hormones_and_pressures_agree_with_reference(shared, model):
    with open(shared("reference/models/raas_bp_losartan.csv")) as file:
        rows = list(csv.DictReader(file))[1:]
    reference = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    run = jax.jit(lambda p, u, t: simulate(tight(model), p, u, t))
    found = run(Params(), Inputs(drug=4e-4), reference["t_min"])
    assert found.outcome == Outcome.SOLVED
    for name, column in (("angiotensin_1", "ang1"), ("angiotensin_2", "ang2"), ("aldosterone", "ald")):
        np.testing.assert_allclose(getattr(found.state, name), reference[f"{column}_ratio"], rtol=1e-7)
        np.testing.assert_allclose(getattr(found.state, name)[0], ROW_15_MIN[name], rtol=1e-7)
    np.testing.assert_allclose(found.output.systolic, reference["SBP"], rtol=1e-7)
    np.testing.assert_allclose(found.output.diastolic, reference["DBP"], rtol=1e-7)
    if model is raas_full:
        np.testing.assert_allclose(found.state.renin, reference["ren_ratio"], rtol=1e-7)


@pytest.mark.parametrize("model", [raas, raas_full], ids=lambda model: model.name)
def test_without_drug_nothing_moves(model):
    p = Params()
    x = model.init(p)
    rate = model.drift(jnp.asarray(0.0), x, Inputs(), p)
    assert all(value == 0.0 for value in values(rate).values())
    assert model.observe(jnp.asarray(0.0), x, Inputs(), p).systolic == p.SBP0


def test_a_flood_of_drug_blocks_everything_with_finite_gradients():
    """Aldosterone decays to nothing; pressure falls by the slope."""

    def late(p):
        flood = Inputs(drug=Steps([0.0, 1.0], [0.0, 1e3]))
        return simulate(raas.differentiated("forward"), p, flood, jnp.asarray([0.5, 2000.0])).output.systolic

    p = Params()
    found, slopes = jax.jit(lambda p: (late(p), jax.jacfwd(late)(p)))(p)
    np.testing.assert_allclose(found, [120.0, 120.0 * (1 - 0.311999262694736)], rtol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
