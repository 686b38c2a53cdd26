"""One-compartment kinetics against sums of exponentials in 40 and 60 digits, and superposition."""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import kinetics
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs, Params

stepped = replace(one_compartment, flow=None, solver=Solver(rtol=1e-11, atol=1e-11))
stiffly = replace(one_compartment, flow=None, solver=Solver(diffrax.Kvaerno5, rtol=1e-10, atol=1e-11))

HOURS = [0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 12.0, 30.0, 72.0]
# Where the textbook's formula loses digits in float64, or its exponentials are far apart.
DELICATE = [
    kinetics.oral_case("flip_flop", 0.05, 0.8, HOURS),
    kinetics.oral_case("nearly_equal", 0.2 * (1 + 1e-6), 0.2, HOURS),
    kinetics.oral_case("equal_but_for_rounding", 0.2 * (1 + 1e-13), 0.2, HOURS),
    kinetics.oral_case("stiff", 400.0, 0.01, HOURS),
]


@pytest.fixture(scope="module")
def tabled(shared):
    from_sums = kinetics.closed_form_cases(shared)
    from_matrices = kinetics.exponential_cases(shared)
    cases = [case for case in from_sums.values() if not case.params["Q2"]]
    for case in cases:
        case.params = {"V": case.params["V1"]} | {
            name: case.params[name] for name in ("CL", "ka", "F", "lag") if name in case.params
        }
    return cases + [case for case in from_matrices.values() if "V" in case.params]


@pytest.mark.parametrize(("model", "rtol", "floor"), [(one_compartment, 1e-10, 0.0), (stepped, 1e-8, 1e-10)])
def test_tabled_cases_agree_before_and_after_events(model, rtol, floor, tabled):
    assert len(tabled) == 7
    after, before = kinetics.run(model, tabled), kinetics.run(model, tabled, after=False)
    for case in tabled:
        kinetics.assert_equal(after, case, rtol, share_of_peak=floor)
        kinetics.assert_equal(before, case, rtol, side="before", share_of_peak=floor)


@pytest.mark.parametrize(("model", "rtol", "floor"), [(one_compartment, 1e-10, 0.0), (stiffly, 1e-7, 1e-9)])
def test_delicate_rates_keep_their_digits(model, rtol, floor):
    # Kvaerno5 reads the times between its steps from cubics, which costs it digits.
    found = kinetics.run(model, DELICATE)
    for case in DELICATE:
        kinetics.assert_equal(found, case, rtol, share_of_peak=floor)


TIMES = jnp.linspace(0.0, 40.0, 9)


@jax.jit
def concentration(p, inputs):
    return simulate(one_compartment, p, inputs, TIMES).output.concentration


_quarters = st.integers(0, 120).map(lambda n: n / 4)
_dose = st.tuples(_quarters, st.floats(1.0, 200.0), st.sampled_from([0.0, 0.5, 6.0]))


@given(doses=st.lists(_dose, min_size=4, max_size=4))
@settings(max_examples=15)
def test_doses_superpose(doses):
    """Property of a linear system: the answer to all doses is the sum of the answers to each."""
    p = Params(lag=0.25, F=0.7)

    def answer(oral, iv):
        return np.asarray(concentration(p, Inputs(Doses(*oral.T), Doses(*iv.T))))

    rows = np.array(sorted(doses))
    nothing = rows * np.array([1.0, 0.0, 1.0])
    together = answer(rows, rows)
    apart = 0.0
    for i in range(4):
        only = nothing.copy()
        only[i] = rows[i]
        apart = apart + answer(only, nothing) + answer(nothing, only)
    np.testing.assert_allclose(together, apart, rtol=1e-11, atol=1e-12)
