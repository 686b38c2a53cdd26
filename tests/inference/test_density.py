"""The likelihood of a patient and its gradient against finite differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import cohort, line
from runaway import measured, runaway
from scipy import stats

from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.prior import normal, uniform
from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.inference import density
from dtwin_jax.inference.density import estimated, parameters, patient_log_likelihood, standard_promotion
from dtwin_jax.inference.population import density_of
from dtwin_jax.inference.start import starting_points
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

TIMES = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0])
MEASURED = np.array([2.1, 3.4, 3.9, 3.1, 2.2, 1.3])
ORAL = Record(
    Inputs(oral=Doses([0.0], [100.0])),
    {"concentration": Series(TIMES, MEASURED, censor=[0, 0, 0, 0, 0, -1])},
)
NAMES = ("CL", "V", "ka", "sd", "cv")
THETA = np.array([2.5, 22.0, 1.1, 0.3, 0.12])
# Far below the step of the finite differences.
ADAPTIVE = replace(one_compartment, flow=None, solver=Solver(rtol=1e-11, atol=1e-11))


def value_and_gradient(f, names, theta, record):
    total = lambda theta, record: patient_log_likelihood(f, names, f.params(), theta, record)  # noqa: E731
    return jax.jit(standard_promotion(jax.value_and_grad(total)))(jnp.asarray(theta), record)


def finite_differences(f, names, theta, record):
    """Central differences, with steps of 1e-4 of each parameter."""
    total = jax.jit(
        standard_promotion(
            jax.vmap(lambda theta: patient_log_likelihood(f, names, f.params(), theta, record))
        )
    )
    steps = np.diag(1e-4 * theta)
    moved = np.asarray(total(jnp.asarray(np.concatenate([theta + steps, theta - steps]))))
    return (moved[: len(theta)] - moved[len(theta) :]) / (2e-4 * theta)


@pytest.mark.parametrize("f", [one_compartment, ADAPTIVE], ids=["flow", "solver"])
def test_gradient_equals_finite_differences(f):
    _, gradient = value_and_gradient(f, NAMES, THETA, ORAL)
    np.testing.assert_allclose(gradient, finite_differences(f, NAMES, THETA, ORAL), rtol=1e-5, atol=1e-5)


def test_value_of_the_solver_equals_that_of_the_flow():
    exact, _ = value_and_gradient(one_compartment, NAMES, THETA, ORAL)
    stepped, _ = value_and_gradient(ADAPTIVE, NAMES, THETA, ORAL)
    assert float(stepped) == pytest.approx(float(exact), abs=1e-7)


def test_reverse_mode_of_many_parameters_equals_forward_mode(monkeypatch):
    forward = value_and_gradient(ADAPTIVE, NAMES, THETA, ORAL)
    monkeypatch.setattr(density, "FORWARD_LIMIT", 0)
    reverse = value_and_gradient(ADAPTIVE, NAMES, THETA, ORAL)
    np.testing.assert_allclose(reverse[0], forward[0], rtol=1e-12)
    # The solver steps by value alone, so both differentiate the same steps.
    np.testing.assert_allclose(reverse[1], forward[1], rtol=1e-7)


def test_gradients_of_many_points_and_patients_equal_those_of_each_alone():
    # Chains (3) of patients (2): solved in one loop, where one alone is by Diffrax.
    rng = np.random.default_rng(0)
    thetas = jnp.asarray(THETA * np.exp(0.1 * rng.normal(size=(2, 3, len(NAMES)))))
    later = Record(Inputs(oral=Doses([0.5], [80.0])), ORAL.observations)
    records = jax.tree.map(lambda *leaves: jnp.stack(leaves), ORAL, later)

    def slope(theta, record):
        total = lambda theta: patient_log_likelihood(  # noqa: E731
            ADAPTIVE, NAMES, ADAPTIVE.params(), theta, record
        )
        return jax.value_and_grad(total)(theta)

    together = standard_promotion(jax.vmap(jax.vmap(slope, in_axes=(0, None))))
    value, gradient = jax.jit(together)(thetas, records)
    one_by_one = lambda each: jax.lax.map(lambda theta: slope(theta, each[1]), each[0])  # noqa: E731
    alone = jax.jit(standard_promotion(lambda *both: jax.lax.map(one_by_one, both)))(thetas, records)
    np.testing.assert_allclose(value, alone[0], rtol=1e-7)
    np.testing.assert_allclose(gradient, alone[1], rtol=1e-5, atol=1e-6)


def test_covariance_where_chains_begin_is_that_of_a_normal_posterior():
    # Of a line with normal errors and priors the curvature is the same everywhere.
    record = cohort(np.array([[1.0, 1.6, 2.2, 3.1]])).at(0)
    free = {"level": normal(0.0, 0.5), "slope": normal(0.0, 0.5), "sd": 0.3}
    made, base = density_of(line, free, ())
    started = jax.jit(
        standard_promotion(lambda key: starting_points(made, (base, record, None), key[None], 16, True))
    )
    (z, _, slope), covariance = started(jax.random.key(0))
    design = np.stack([np.ones(4), record.observations["y"].time], axis=1)
    expected = np.linalg.inv(design.T @ design / 0.3**2 + np.eye(2) / 0.5**2)
    np.testing.assert_allclose(covariance[0], expected, rtol=1e-5)
    # A Newton step of it leads to the peak.
    peak = expected @ design.T @ record.observations["y"].value / 0.3**2
    at, push = (np.array([float(tree[name][0]) for name in ("level", "slope")]) for tree in (z, slope))
    np.testing.assert_allclose(at - covariance[0] @ push, peak, rtol=1e-4)


# One patient who can be explained, and one whose level is infinite from time 0.5 on.
PAIR = stack({"well": measured([0.2, 1.0], [0.6, 0.9]), "ending": measured([0.6, 1.0], [1.0, 1.0])})
STARTS = np.array([[0.5, 0.1], [2.0, 0.1]])


def side_by_side(starts, record):
    """Value of each patient, and gradient of the sum over all."""

    def all_of(theta, record):
        one = lambda row, patient: patient_log_likelihood(  # noqa: E731
            runaway, ("start", "sd"), runaway.params(), row, patient
        )
        each = jax.vmap(one)(theta, record)
        return jnp.sum(each), each

    differentiated = jax.jit(standard_promotion(jax.grad(all_of, has_aux=True)))
    gradient, each = differentiated(jnp.asarray(starts), jax.tree.map(jnp.asarray, record))
    return np.asarray(each), np.asarray(gradient)


@pytest.fixture(scope="module")
def pair():
    return side_by_side(STARTS, PAIR.record)


def test_failed_solve_costs_the_penalty_and_has_no_gradient(pair):
    each, gradient = pair
    assert each[1] == 2 * PENALTY
    np.testing.assert_array_equal(gradient[1], 0.0)


def test_failed_solve_of_one_patient_leaves_another_as_if_he_were_well(pair):
    each, gradient = pair
    value, other = side_by_side(STARTS[[0, 0]], PAIR.take([0, 0]).record)
    np.testing.assert_allclose(each[0], value[0], rtol=1e-10)
    np.testing.assert_allclose(gradient[0], other[0], rtol=1e-10)


def test_patients_side_by_side_have_the_values_of_each_alone(pair):
    each, gradient = pair
    value, alone = value_and_gradient(runaway, ("start", "sd"), STARTS[0], PAIR.at(0))
    # Two paths, each within the solver's tolerance.
    np.testing.assert_allclose(each[0], value, rtol=1e-4)
    np.testing.assert_allclose(gradient[0], alone, rtol=1e-4, atol=1e-4)


def test_explained_patient_has_the_closed_form(pair):
    x = 1 / (1 / 0.5 - np.array([0.2, 1.0]))
    assert pair[0][0] == pytest.approx(np.sum(stats.norm.logpdf([0.6, 0.9], x, 0.1)), rel=1e-4)


def test_numbers_and_none_make_a_parameter_known():
    base, free = estimated(line, {"slope": 0.7, "sd": None})
    assert tuple(free) == ("level",)
    assert {name: float(value) for name, value in values(base).items()} == pytest.approx(
        {"level": 1.0, "slope": 0.7, "sd": 0.3}
    )


def test_prior_given_replaces_the_declared_one():
    _, free = estimated(line, {"slope": uniform(0.0, 2.0)})
    assert free["slope"] == uniform(0.0, 2.0)
    assert tuple(free) == ("level", "slope", "sd")


def test_prior_given_to_a_known_parameter_makes_it_estimated():
    _, free = estimated(one_compartment, {"F": uniform(0.1, 1.0)})
    assert free["F"] == uniform(0.1, 1.0)


def test_parameters_known_of_the_patients_are_not_estimated():
    _, free = estimated(line, {}, known=("sd", "weight"))
    assert tuple(free) == ("level", "slope")


def test_what_is_known_of_a_patient_stands_before_the_common_value():
    record = cohort(np.zeros((2, 4)), sd=np.array([0.8, 0.9]), weight=np.array([50.0, 60.0])).at(1)
    p = parameters(("slope",), assign(line.params(), {"level": 3.0}), jnp.asarray([0.2]), record)
    assert (float(p.level), float(p.slope), float(p.sd)) == (3.0, 0.2, 0.9)


def test_unknown_name_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"line has no parameter 'CL'; it has \['level', 'sd', 'slope'\]"):
        estimated(line, {"CL": 1.0})


def test_nothing_to_estimate_is_refused():
    with pytest.raises(ValueError, match="line: no parameter has a prior"):
        estimated(line, {"level": None, "slope": None, "sd": None})
