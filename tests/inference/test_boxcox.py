"""Skewed random effects against integrals written out in NumPy.

Source of truth: the likelihood of a patient with one effect is a sum over many nodes of SciPy's densities.
"""

import json
import math
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plasma import TIME, log_mean, patients, plasma
from scipy import optimize, stats

from dtwin_jax.core.prior import normal
from dtwin_jax.inference import boxcox
from dtwin_jax.inference.boxcox import transformed
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import constrained
from dtwin_jax.inference.result import _population_as_dict, _population_from_dict
from dtwin_jax.inference.scatter import EFFECTS
from dtwin_jax.inference.start import potential_energy
from dtwin_jax.twin.diagnose import diagnose

CL, V, SD, OMEGA, SHAPE = 3.0, 20.0, 0.15, 0.5, 0.8
POPULATION = Population(plasma, ("CL",), boxcox=("CL",))
KNOWN = {"V": V, "sd": SD}
TRUTH = {"CL_pop": CL, "omega_CL": OMEGA, "shape_CL": SHAPE}


def drawn(count, seed=0):
    """Concentrations of patients whose effects are even quantiles of a normal distribution."""
    rng = np.random.default_rng(seed)
    eta = OMEGA * rng.permutation(stats.norm.ppf((np.arange(count) + 0.5) / count))[:, None]
    clearance = CL * np.exp(np.expm1(SHAPE * eta) / SHAPE)
    return np.exp(log_mean(clearance, V) + SD * rng.normal(size=(count, len(TIME))))


VALUES = drawn(12)
COHORT = patients(VALUES)


def likelihood_at(row, eta, typical=CL, omega=OMEGA, shape=SHAPE):
    """Of a patient's measurements and of effects (effect,), on the logs' scale with the stretch of it."""
    clearance = typical * np.exp(np.expm1(shape * eta) / shape)
    error = stats.norm.logpdf(np.log(row), log_mean(clearance[:, None], V), SD).sum(axis=1)
    return error - np.log(row).sum() + stats.norm.logpdf(eta, 0.0, omega)


def minus_two_log_likelihood(**numbers):
    eta = np.linspace(-8 * OMEGA, 8 * OMEGA, 20001)
    each = [np.exp(likelihood_at(row, eta, **numbers)).sum() * (eta[1] - eta[0]) for row in VALUES]
    return -2.0 * np.sum(np.log(each))


def series(shape, eta, i, j):
    """The derivative, i times by the shape and j times by the effect, of the power series in fractions."""
    total, L, E = Fraction(0), Fraction(shape), Fraction(eta)
    for n in range(max(i, j - 1), 50):
        factor = Fraction(math.perm(n, i) * math.perm(n + 1, j), math.factorial(n + 1))
        total += factor * L ** (n - i) * E ** (n + 1 - j)
    return float(total)


@jax.jit
def derivatives(shape, eta):
    by_shape, by_eta = jax.grad(transformed, 0), jax.grad(transformed, 1)
    bent = jax.grad(jax.grad(by_eta, 1), 0)
    return [one(shape, eta) for one in (transformed, by_shape, by_eta, bent)]


@pytest.mark.parametrize("shape", [0.0, 1e-12, 1e-5, -0.3, 1.2, -2.0])
def test_transform_and_its_derivatives_are_smooth_at_no_shape(shape):
    for eta in (-1.5, 1e-3, 0.8, 3.0):
        truth = [series(shape, eta, *orders) for orders in ((0, 0), (1, 0), (0, 1), (1, 2))]
        np.testing.assert_allclose(derivatives(shape, eta), truth, rtol=1e-12, atol=1e-15)


def test_effects_are_restored_from_their_moves():
    eta = jnp.asarray([[-1.0, 0.3], [0.2, -0.7], [1.3, 0.0]])
    for shape in (0.0, 0.8, -0.6):
        shapes = (("b", shape),)
        moves = boxcox.moved(shapes, ("a", "b"), {}, eta)
        np.testing.assert_array_equal(moves[:, 0], eta[:, 0])
        np.testing.assert_allclose(boxcox.restored(shapes, ("a", "b"), {}, moves), eta, rtol=1e-12)
    # Below what any effect can do there is one that is far down.
    far = boxcox.restored((("b", 0.8),), ("a", "b"), {}, jnp.asarray([[0.0, -2.0]]))
    assert np.isfinite(far[0, 1]) and far[0, 1] < -10.0


def test_quadrature_is_the_integral():
    found = estimate(POPULATION, COHORT, by="quadrature", nodes=40, priors=KNOWN, start=TRUTH, search=False)
    assert found.minus_two_log_likelihood == pytest.approx(minus_two_log_likelihood(), abs=1e-6)


def by_hand(row):
    """-2 log likelihood of a patient by FOCEI and by Laplace, and the peak."""

    def slopes(eta):
        clearance = CL * np.exp(np.expm1(SHAPE * eta) / SHAPE)
        slope = -clearance / V * TIME * np.exp(SHAPE * eta)
        return np.log(row) - log_mean(clearance, V), slope, slope * (np.exp(SHAPE * eta) + SHAPE)

    def push(eta):
        left, slope, _ = slopes(eta)
        return np.sum(left * slope) / SD**2 - eta / OMEGA**2

    top = optimize.brentq(push, -5.0, 5.0, xtol=1e-13)
    left, slope, bend = slopes(top)
    expected = np.sum(slope**2) / SD**2 + OMEGA**-2
    exact = expected - np.sum(left * bend) / SD**2
    height = -2.0 * likelihood_at(row, np.array([top]))[0]
    return *(height + np.log(curvature / (2.0 * np.pi)) for curvature in (expected, exact)), top


def test_focei_and_laplace_are_by_hand():
    *expected, eta = np.transpose([by_hand(row) for row in VALUES])
    for by, each in zip(("focei", "laplace"), expected, strict=True):
        found = estimate(POPULATION, COHORT, by=by, priors=KNOWN, start=TRUTH, search=False)
        np.testing.assert_allclose(found.individual, each, atol=1e-8)
        np.testing.assert_allclose(found.eta[:, 0], eta, atol=1e-6)


@pytest.mark.parametrize("by", ["foce", "laplace"])
def test_no_shape_is_no_transform(by):
    start = {"CL_pop": CL, "omega_CL": OMEGA}
    shaped = Population(plasma, ("CL",), boxcox={"CL": 0.0})
    plain, none = (
        estimate(each, COHORT, by=by, priors=KNOWN, start=start, search=False)
        for each in (replace(shaped, boxcox=()), shaped)
    )
    assert none.objective == pytest.approx(plain.objective, abs=1e-10)
    np.testing.assert_allclose(none.eta, plain.eta, atol=1e-10)
    assert none.names == plain.names


@pytest.mark.parametrize("by", ["focei", "laplace"])
def test_slope_is_that_of_finite_differences(by):
    density, base = density_of(POPULATION, KNOWN, ())
    marginal = Marginal(Effects(POPULATION, density.priors), by)
    problem = Objective(marginal, base, jax.tree.map(jnp.asarray, COHORT.record))
    psi = np.array([np.log(CL), SHAPE, np.log(OMEGA)])
    _, slope = problem.value(psi)
    step = 1e-4
    for i in range(3):
        up, down = (problem.value(psi + sign * step * np.eye(3)[i])[0] for sign in (1.0, -1.0))
        assert slope[i] == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-5)


@pytest.fixture(scope="module")
def study():
    return patients(drawn(150, seed=1))


@pytest.fixture(scope="module")
def fitted(study):
    return estimate(POPULATION, study, by="quadrature", nodes=11, priors=KNOWN)


def test_a_skewed_study_tells_its_shape(fitted):
    assert fitted.converged and not fitted.warnings
    error = fitted.errors()
    for name, value in TRUTH.items():
        assert abs(fitted.estimate[name] - value) < error[name]
    # It is told apart from no shape.
    assert fitted.estimate["shape_CL"] > 2.0 * error["shape_CL"]


def test_saem_finds_the_same(study, fitted):
    found = estimate(POPULATION, study, by="saem", priors=KNOWN, key=jax.random.key(0))
    assert found.converged
    for name, value in fitted.estimate.items():
        assert abs(found.estimate[name] - value) < 0.3 * fitted.errors()[name]


def test_simulated_patients_are_skewed_as_well(study, fitted):
    tree = diagnose(POPULATION, study, fitted, key=jax.random.key(1), samples=200, priors=KNOWN)
    # Of normal effects the logs of clearances would have no skewness.
    late = tree["predictions"]["y"].values[:, :, -1].ravel()
    rate = -(np.log(late) - np.log(100.0 / V)) * V / TIME[-1]
    told = fitted.estimate
    rng = np.random.default_rng(3)
    eta = told["omega_CL"] * rng.normal(size=100_000)
    move = np.expm1(told["shape_CL"] * eta) / told["shape_CL"]
    clearance = told["CL_pop"] * np.exp(move) + SD * V / TIME[-1] * rng.normal(size=100_000)
    assert stats.ks_2samp(rate, clearance).pvalue > 1e-3
    assert stats.ks_2samp(rate, told["CL_pop"] * np.exp(eta)).pvalue < 1e-6
    assert np.nanstd(tree["residuals"]["y_npde"].values) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("centring", [0.0, 1.0])
def test_joint_density_of_the_sampler_is_by_hand(centring):
    population = replace(POPULATION, boxcox={"CL": normal(0.0, 1.0)})
    density, base = density_of(population, KNOWN, ())
    eta = np.linspace(-0.6, 0.9, len(VALUES))
    z = {"CL_pop": np.log(CL), "omega_CL": np.log(OMEGA), "shape_CL": SHAPE, EFFECTS: eta[:, None] / OMEGA}
    record = jax.tree.map(jnp.asarray, COHORT.record)
    data = (base, record, jnp.asarray([centring]))
    found = -float(standard_promotion(potential_energy)(density, data, jax.tree.map(jnp.asarray, z)))
    truth = stats.norm.logpdf(np.log(CL), np.log(3.0), 1.0) + stats.norm.logpdf(SHAPE)
    truth += stats.halfnorm.logpdf(OMEGA, scale=0.5) + np.log(OMEGA)
    each = [likelihood_at(row, eta[i : i + 1])[0] for i, row in enumerate(VALUES)]
    # Effects are scaled, whatever the centring.
    assert found == pytest.approx(truth + np.sum(each) + len(VALUES) * np.log(OMEGA), abs=1e-9)
    one = {name: jnp.asarray(value)[None, None] for name, value in z.items()}
    clearance = constrained(density, base, record, one, jnp.asarray([centring]))["CL"][0, 0]
    np.testing.assert_allclose(clearance, CL * np.exp(np.expm1(SHAPE * eta) / SHAPE), rtol=1e-12)


def test_shapes_are_told_as_plain_data_and_back():
    population = Population(plasma, ("CL", "V"), boxcox={"CL": normal(0.0, 0.5), "V": 0.3})
    told = json.loads(json.dumps(_population_as_dict(population)))
    assert _population_from_dict(plasma, told) == population
    del told["boxcox"]  # as in a file of before
    assert _population_from_dict(plasma, told) == replace(population, boxcox=())


def test_what_has_no_shape_is_refused():
    with pytest.raises(ValueError, match="vary has no parameter 'V'"):
        Population(plasma, ("CL",), boxcox=("V",))
    with pytest.raises(ValueError, match=r"boxcox: .* the text 'CL'"):
        Population(plasma, ("CL",), boxcox="CL")
    with pytest.raises(ValueError, match="boxcox: CL, CL: each may be there once"):
        Population(plasma, ("CL",), boxcox=("CL", "CL"))
    with pytest.raises(ValueError, match="the shape of CL is inf"):
        Population(plasma, ("CL",), boxcox={"CL": float("inf")})
    with pytest.raises(ValueError, match="knows nothing of shape_CL"):
        estimate(POPULATION, COHORT, by="fo", priors=KNOWN)
