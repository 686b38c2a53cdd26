"""Saturable elimination against Lambert's W in 40 digits, and linear kinetics where nothing saturates."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tabled import table

from dtwin_jax.core.quantity import assign, quantities
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import one_compartment, parallel_elimination
from dtwin_jax.models.absorption import transit
from dtwin_jax.models.michaelis_menten import michaelis_menten
from dtwin_jax.models.one_compartment import Inputs

tight = replace(parallel_elimination, solver=Solver(rtol=1e-12, atol=1e-13))
TIMES = np.array([0.5, 2.0, 6.0, 12.0, 24.0, 48.0])
U = Inputs(oral=Doses([0.0, 8.0], [100.0, 50.0]), iv=Doses([1.0], [30.0], [2.0]))


@pytest.fixture(scope="module")
def solved():
    return jax.jit(lambda p, u, times: simulate(tight, p, u, times).output.concentration)


def test_a_bolus_equals_lamberts_w(shared, solved):
    wanted = table(shared("reference/models/pk_mm_bolus_lambertw.csv"))
    given = {
        name: float(wanted[column][0])
        for name, column in {"Vmax": "Vmax_mass_per_time", "Km": "Km", "V": "V"}.items()
    }
    p = assign(tight.params(), given | {"CL": 0.0})
    u = Inputs(oral=Doses([0.0], [0.0]), iv=Doses([0.0], [float(wanted["dose_bolus"][0])]))
    found = solved(p, u, np.maximum(wanted["time"], 1e-12))
    np.testing.assert_allclose(found, wanted["conc"], rtol=1e-10)


def test_without_saturation_kinetics_are_linear(solved):
    """The exact one-compartment model; far below Km the two clearances add up."""
    linear = assign(one_compartment.params(), {"CL": 0.8, "ka": 0.9, "lag": 0.3, "F": 0.6})
    wanted = simulate(one_compartment, linear, U, TIMES).output.concentration
    p = assign(tight.params(), {"Vmax": 0.0, "CL": 0.8, "ka": 0.9, "lag": 0.3, "F": 0.6})
    np.testing.assert_allclose(solved(p, U, TIMES), wanted, rtol=1e-9)
    p = assign(p, {"Vmax": 0.3e9, "Km": 1e9, "CL": 0.5})
    np.testing.assert_allclose(solved(p, U, TIMES), wanted, rtol=1e-7)


def test_michaelis_menten_has_no_constant_clearance_to_estimate():
    estimated = {name for name, q in quantities(michaelis_menten.params()).items() if q.prior}
    both = {name for name, q in quantities(parallel_elimination.params()).items() if q.prior}
    assert both - estimated == {"CL"} and float(michaelis_menten.params().CL) == 0.0


def test_saturable_elimination_takes_any_absorption(solved):
    """A short chain of stages is a lag as long as its mean time, to second order."""
    model = replace(transit(tight, stages=2), solver=tight.solver)
    p = assign(model.params(), {"MTT": 0.02, "lag": 0.1})
    found = simulate(model, p, U, TIMES).output.concentration
    lagged = solved(assign(tight.params(), {"lag": 0.12}), U, TIMES)
    np.testing.assert_allclose(found, lagged, rtol=1e-3)
