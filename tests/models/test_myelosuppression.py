"""Blood counts under docetaxel and paclitaxel against tight solves, and derivatives at the nadir."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import case, rows, table

from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import docetaxel_neutrophils, paclitaxel_leukocytes
from dtwin_jax.models.myelosuppression import Inputs

CELLS = ("dividing", "stage_1", "stage_2", "stage_3", "circulating")


def tight(model):
    return replace(model, solver=replace(model.solver, rtol=1e-10, atol=1e-11, max_steps=16384))


def test_neutrophils_under_docetaxel_agree_with_reference(shared):
    wanted = table(shared("reference/models/friberg_docetaxel.csv"))
    p, u = docetaxel_neutrophils.params(), Inputs(iv=Doses([0.0], [180.0], [1.5]))
    found = jax.jit(lambda p, u: simulate(tight(docetaxel_neutrophils), p, u, 24.0 * wanted["t_day"]))(p, u)
    for name, column in zip(CELLS, ("Prol", "T1", "T2", "T3", "Circ"), strict=True):
        np.testing.assert_allclose(getattr(found.state, name), wanted[column], rtol=1e-6, err_msg=name)
    for name, column in {"central": "C1", "shallow": "C2", "deep": "C3"}.items():
        np.testing.assert_allclose(
            getattr(found.state, name), wanted[column], rtol=1e-6, atol=1e-8, err_msg=name
        )
    np.testing.assert_allclose(np.min(found.output.count), 0.897, atol=5e-4)
    assert wanted["t_day"][np.argmin(found.output.count)] == 7.5


def test_leukocytes_under_paclitaxel_agree_with_reference(shared):
    wanted = table(shared("reference/models/friberg_paclitaxel_wbc.csv"))
    about = case(shared("reference/models/friberg_paclitaxel_wbc_case.json"))
    p = paclitaxel_leukocytes.params()
    for name, value in {
        "Circ0": "Circ0",
        "MTT": "MTT_h",
        "slope": "slope",
        "gamma": "gamma",
        "CL": "CL",
        "V1": "V1",
        "Q": "Q",
        "V2": "V2",
    }.items():
        assert float(values(p)[name]) == about[value]
    dose = about["dose_umol"] * float(p.molar_mass)
    u = Inputs(iv=Doses([0.0], [dose], [about["infusion_h"]]))
    found = jax.jit(lambda p, u: simulate(tight(paclitaxel_leukocytes), p, u, wanted["t_h"]))(p, u)
    for name, column in zip(CELLS, ("prol", "t1", "t2", "t3", "circ"), strict=True):
        np.testing.assert_allclose(getattr(found.state, name), wanted[column], rtol=1e-6, err_msg=name)
    umol = found.state.central / p.molar_mass
    np.testing.assert_allclose(umol, wanted["central_umol"], rtol=1e-6, atol=1e-7)


def docetaxel(Circ0, ktr, gam, slope, k10, V1):
    """The parameters that the reference moves, its other rate constants held."""
    per_hour = V1 / 24
    return assign(
        docetaxel_neutrophils.params(),
        {
            "Circ0": Circ0,
            "MTT": 96 / ktr,
            "gamma": gam,
            "slope": slope,
            "CL": k10 * per_hour,
            "V1": V1,
            "Q2": 25.44 * per_hour,
            "V2": 25.44 * V1 / 36.24,
            "Q3": 30.24 * per_hour,
            "V3": 30.24 * V1 / 2.016,
        },
    )


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_derivatives_at_the_nadir_agree_with_reference(shared, mode):
    found = [
        r for r in rows(shared("reference/models/sensitivities.csv")) if r["model"] == "friberg_docetaxel"
    ]
    model = tight(docetaxel_neutrophils).differentiated(mode)
    u = Inputs(iv=Doses([0.0], [180.0], [1.5]))

    def count(given):
        return simulate(model, docetaxel(**given), u, jnp.asarray([180.0])).output.count[0]

    given = {row["parameter"]: jnp.asarray(float(row["value_at"])) for row in found}
    assert len(given) == 6
    slope = jax.jit((jax.jacfwd if mode == "forward" else jax.grad)(count))(given)
    for row in found:
        name = row["parameter"]
        np.testing.assert_allclose(slope[name], float(row["d_out_d_par"]), rtol=1e-5, err_msg=name)
