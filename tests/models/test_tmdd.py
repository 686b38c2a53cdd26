"""Target-mediated disposition against mrgsolve's model, its derivatives, and limits of quasi-steady state."""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tabled import case, rows, table

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.linear import LinearFlow
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import tmdd, tmdd_qss
from dtwin_jax.models.tmdd import Inputs, QssState, free

tight = replace(tmdd, solver=Solver(diffrax.Kvaerno5, rtol=1e-9, atol=1e-10, max_steps=16384))
steady = replace(tmdd_qss, solver=Solver(rtol=1e-10, atol=1e-11, max_steps=16384))
U = Inputs(sc=Doses([2.0], [4.0]), iv=Doses([0.0], [10.0]))
TIMES = np.array([1.0, 4.0, 12.0, 40.0])
NAMES = {"KPT": "kpt", "KTP": "ktp", "V2": "V", "KEL": "kel", "R0": "R0", "KDEG": "kdeg", "KINT": "kint"}
NAMES |= {"KON": "kon", "KOFF": "koff", "KA": "ka"}


@pytest.fixture(scope="module")
def given(shared):
    (found,) = [
        each for each in case(shared("reference/models/pd_pbpk_params.json")) if each["model"] == "tmdd"
    ]
    return assign(tmdd.params(), {NAMES[n]: v for n, v in found["params"].items() if n in NAMES})


@pytest.fixture(scope="module")
def solved():
    return jax.jit(lambda p, u, times: simulate(tight, p, u, times))


def test_binding_in_full_agrees_with_reference(shared, given, solved):
    wanted = table(shared("reference/models/pd_tmdd.csv"))
    u = Inputs(sc=Doses([0.0], [0.0]), iv=Doses([0.0], [10.0]))
    found = solved(given, u, np.maximum(wanted["time"], 1e-14))
    states = {"central": "CENT", "tissue": "TISS", "target": "REC", "complex": "RC"}
    for name, column in states.items():
        np.testing.assert_allclose(
            getattr(found.state, name), wanted[column], rtol=1e-6, atol=1e-9, err_msg=name
        )
    np.testing.assert_allclose(found.output.concentration, wanted["CP"], rtol=1e-6)


def test_derivatives_agree_with_reference(shared, given):
    """Of the log of free drug at 10 h, in reverse mode, with central differences of tight solves."""
    wanted = [row for row in rows(shared("reference/models/sensitivities.csv")) if row["model"] == "tmdd"]
    u = Inputs(sc=0.0, iv=Doses([0.0], [10.0]))
    model = tight.differentiated("reverse")
    log = jax.jit(
        jax.value_and_grad(
            lambda p: jnp.log(simulate(model, p, u, jnp.asarray([10.0])).output.concentration[0])
        )
    )
    value, slope = log(given)
    assert len(wanted) == 7
    for row in wanted:
        np.testing.assert_allclose(value, float(row["output_value"]), rtol=1e-8)
        np.testing.assert_allclose(
            getattr(slope, NAMES[row["parameter"]]),
            float(row["d_out_d_par"]),
            rtol=1e-5,
            err_msg=row["parameter"],
        )


@pytest.fixture(scope="module")
def at_steady_state():
    return jax.jit(lambda p, u, times: simulate(steady, p, u, times))


def test_quasi_steady_state_is_the_limit_of_fast_binding(given, solved, at_steady_state):
    """kon and koff a thousand times faster, with the same KSS but for what kint adds to it."""
    fast = assign(given, {"kon": 101.0, "koff": 10.1e3})
    p = assign(tmdd_qss.params(), {"KSS": (10.1e3 + 2.0) / 101.0})
    full, reduced = solved(fast, U, TIMES), at_steady_state(p, U, TIMES)
    np.testing.assert_allclose(reduced.output.concentration, full.output.concentration, rtol=1e-4)
    np.testing.assert_allclose(reduced.output.target, full.output.target, rtol=1e-4)
    # As the rates are, binding is fast enough for some percent.
    slow = solved(given, U, TIMES).output.concentration
    apart = at_steady_state(tmdd_qss.params(), U, TIMES).output.concentration
    np.testing.assert_allclose(apart, slow, rtol=0.05)
    assert np.max(np.abs(apart / slow - 1)) > 1e-4


def test_without_a_target_kinetics_are_linear(at_steady_state):
    """The matrix exponential of the full model's drift, in which nothing binds then."""
    p = assign(tmdd.params(), {"R0": 0.0, "kon": 0.0})
    exact = simulate(replace(tmdd, flow=LinearFlow(tmdd.drift)), p, U, TIMES).output.concentration
    found = at_steady_state(assign(tmdd_qss.params(), {"R0": 0.0}), U, TIMES).output.concentration
    np.testing.assert_allclose(found, exact, rtol=1e-7)


def test_free_drug_keeps_its_digits_where_nearly_all_is_bound():
    """Its own equation: all drug is free drug and complex."""
    p = assign(tmdd_qss.params(), {"KSS": 1e-3, "V": 1.0})
    for total in (1e-9, 1.0, 63.0, 65.0, 1e6):
        x = QssState(depot=0.0, total=total, tissue=0.0, total_target=64.31)
        C = float(free(x, p))
        np.testing.assert_allclose(C + 64.31 * C / (1e-3 + C), total, rtol=1e-12)
