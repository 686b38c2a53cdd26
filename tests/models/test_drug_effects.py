"""Effects that follow a concentration at a distance: effect compartment, indirect response, transit."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from tabled import case, table

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses, Sampled, Steps
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import (
    effect_compartment,
    indirect_response_1,
    indirect_response_2,
    indirect_response_3,
    indirect_response_4,
    indirect_response_transit,
    two_compartment,
)
from dtwin_jax.models.hill import hill
from dtwin_jax.models.indirect_response import DelayedStimulation, Inputs, delayed, stimulated

RESPONSES = [indirect_response_1, indirect_response_2, indirect_response_3, indirect_response_4]
TIGHT = Solver(rtol=1e-11, atol=1e-12)


def behind_two_compartments(effect):
    drug = replace(two_compartment, flow=None, dosing=None)
    wires = {"effect.concentration": "drug.concentration"}
    return couple(f"two_compartment_{effect.name}", {"drug": drug, "effect": effect}, wires, solver=TIGHT)


def run(model, p, dose, times):
    u = assign(model.inputs(), {"oral": Doses([0.0], [dose])})
    return jax.jit(lambda p, u: simulate(model, p, u, times))(p, u)


def parameters(shared, name):
    (found,) = [
        each for each in case(shared("reference/models/pd_pbpk_params.json")) if each["model"] == name
    ]
    return found["params"]


@pytest.mark.parametrize("effect", RESPONSES, ids=lambda m: m.name)
def test_indirect_responses_agree_with_reference(effect, shared):
    number = effect.name[-1]
    given = parameters(shared, f"irm{number}")
    wanted = table(shared("reference/models/pd_indirect_response.csv"), where=("type", number))
    renamed = {"CL": "drug.CL", "V2": "drug.V1", "Q": "drug.Q", "V3": "drug.V2", "KA": "drug.ka"}
    renamed |= {"KIN": "effect.kin", "KOUT": "effect.kout", "n": "effect.n", "IMAX": "effect.Imax"}
    renamed |= {"IC50": "effect.IC50", "EMAX": "effect.Emax", "EC50": "effect.EC50"}
    model = behind_two_compartments(effect)
    p = assign(model.params(), {renamed[name]: value for name, value in given.items() if name in renamed})
    found = run(model, p, 100.0, wanted["time"])
    np.testing.assert_allclose(found.output.response, wanted["RESP"], rtol=1e-7)
    np.testing.assert_allclose(found.state.drug.central, wanted["CENT"], rtol=1e-7, atol=1e-7)


def test_the_effect_compartment_agrees_with_reference(shared):
    given = parameters(shared, "effect")
    wanted = table(shared("reference/models/pd_effect_compartment.csv"))
    V = given["VC"]
    kinetics = {"CL": given["K10"] * V, "V1": V, "Q": given["K12"] * V, "V2": given["K12"] / given["K21"] * V}
    site = {"ke0": given["KEO"], "E0": given["E0"], "Emax": given["EMAX"], "EC50": given["EC50"]}
    model = behind_two_compartments(effect_compartment)
    numbers = {f"drug.{n}": v for n, v in kinetics.items()} | {f"effect.{n}": v for n, v in site.items()}
    p = assign(model.params(), numbers | {"drug.ka": given["KA"]})
    found = run(model, p, 100.0, wanted["time"])
    np.testing.assert_allclose(found.output.effect, wanted["EFFECT"], rtol=1e-7)
    np.testing.assert_allclose(found.state.effect.Ce, wanted["CE"], rtol=1e-7, atol=1e-8)


LEVELS, EDGES = np.array([0.0, 3.0, 0.7]), np.array([0.0, 2.0, 9.0])
TIMES = np.array([0.0, 1.0, 2.0, 3.0, 6.0, 9.0, 12.0, 40.0])


@pytest.mark.parametrize(
    "model", [indirect_response_transit, delayed(stimulated)], ids=["inhibited", "stimulated"]
)
def test_transit_equals_matrix_exponentials(model):
    """Three stages and a response as a matrix, piece by piece, by SciPy."""
    p = model.params()
    kin, kout, ktr = float(p.kin), float(p.kout), 3 / float(p.MTT)
    rates = np.diag([-ktr, -ktr, -ktr, -kout]) + np.diag([ktr, ktr, ktr], -1)
    x, now, wanted = np.array([kin / ktr] * 3 + [kin / kout]), 0.0, []
    for t in TIMES:
        level = LEVELS[np.searchsorted(EDGES, now, side="right") - 1]
        share = level / (2.0 + level)
        made = kin * (1 + share if isinstance(p, DelayedStimulation) else 1 - share)
        rest = np.linalg.solve(-rates, np.array([made, 0, 0, 0]))
        x, now = rest + expm(rates * (t - now)) @ (x - rest), t
        wanted.append(x[-1])
    u = Inputs(Steps(EDGES, LEVELS))
    np.testing.assert_allclose(simulate(model, p, u, TIMES).output.response, wanted, rtol=1e-10)


def test_quick_transit_is_indirect_response():
    """A mean transit time of a second delays by that much."""
    p = indirect_response_transit.params()
    u = Inputs(Steps(EDGES, LEVELS))
    quick = simulate(indirect_response_transit, assign(p, {"MTT": 1 / 3600}), u, TIMES).output.response
    direct = simulate(indirect_response_1, indirect_response_1.params(), u, TIMES).output.response
    np.testing.assert_allclose(quick, direct, rtol=2e-3)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0, 7.0])
def test_hills_curve_is_its_formula_and_smooth_where_there_is_no_drug(n):
    C = np.array([1e-3, 0.5, 2.0, 30.0])
    np.testing.assert_allclose(hill(jnp.asarray(C), 2.0, n), C**n / (2.0**n + C**n), rtol=1e-13)
    at = jax.jacfwd(lambda a: hill(a[0], a[1], a[2]))
    assert hill(jnp.asarray(0.0), 2.0, n) == 0.0 and hill(jnp.asarray(1e300), 2.0, n) == 1.0
    for concentration in (0.0, 1e-300, 1e300):
        assert np.all(np.isfinite(at(jnp.asarray([concentration, 2.0, n]))))


def test_hills_curve_without_steepness_begins_as_a_line():
    np.testing.assert_allclose(jax.grad(lambda c: hill(c, 2.0, 1.0))(0.0), 0.5, rtol=1e-14)
    np.testing.assert_allclose(jax.grad(lambda c: hill(c, 2.0, 1.0))(1e-12), 0.5, rtol=1e-10)


def test_a_sampled_course_drives_a_response():
    """The same straight lines, cut into many steps of the solver."""
    u = Inputs(Sampled([0.0, 4.0, 8.0], [0.0, 4.0, 0.0]))
    fine = np.linspace(0.0, 8.0, 401)
    held = Inputs(Steps(fine[:-1], np.interp(fine[:-1] + 0.01, [0.0, 4.0, 8.0], [0.0, 4.0, 0.0])))
    p, times = indirect_response_3.params(), np.array([2.0, 5.0, 8.0])
    found = simulate(indirect_response_3, p, u, times).output.response
    np.testing.assert_allclose(
        found, simulate(indirect_response_3, p, held, times).output.response, rtol=1e-4
    )
