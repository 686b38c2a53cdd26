"""Random effects, covariates and their priors against densities written out in SciPy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lines import TIME, cohort, line
from scipy import stats

from dtwin_jax.core.prior import halfnormal, normal
from dtwin_jax.inference import nuts
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.covariate import (
    Covariate,
    covariate_from_dict,
    differing,
    linear,
    power,
    proportional,
)
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import constrained, prior_draws
from dtwin_jax.inference.start import potential_energy

VALUES = np.random.default_rng(0).normal(2.0, 1.0, (3, len(TIME)))
COHORT = cohort(VALUES, weight=np.array([50.0, 70.0, 90.0]))
RECORD = jax.tree.map(jnp.asarray, COHORT.record)
OMEGA = {"level": halfnormal(0.7), "slope": halfnormal(0.4)}

# One point of the joint density: population, and individual (level, log slope) of three patients.
LEVEL, SLOPE, SD = 1.3, 0.6, 0.45
SCATTER = np.array([0.8, 0.25])
THETA = np.array([[0.4, -0.9], [1.9, -0.2], [2.2, -0.6]])
CENTRE = np.array([LEVEL, np.log(SLOPE)])


def energy(population, z, centring=None):
    """Minus the log of the joint density at `z`, in the coordinates of the sampler."""
    density, base = density_of(population, {}, ())
    z = {name: jnp.asarray(value) for name, value in z.items()}
    data = (base, RECORD, None if centring is None else jnp.asarray(centring))
    return float(standard_promotion(potential_energy)(density, data, z))


def shared_part():
    """The population's coordinates; positive ones by their log."""
    return {
        "level_pop": LEVEL,
        "slope_pop": np.log(SLOPE),
        "sd": np.log(SD),
        "omega_level": np.log(SCATTER[0]),
        "omega_slope": np.log(SCATTER[1]),
    }


def log_density_by_hand():
    """The joint density in (level, log slope, log sd, log omegas, theta), without the effects' own."""
    prior = (
        stats.norm.logpdf(LEVEL, 1.0, 2.0)
        + stats.norm.logpdf(np.log(SLOPE), np.log(0.5), 0.8)
        + stats.norm.logpdf(np.log(SD), np.log(0.3), 0.5)
        + np.sum(stats.halfnorm.logpdf(SCATTER, scale=[0.7, 0.4]) + np.log(SCATTER))
    )
    expected = THETA[:, :1] + np.exp(THETA[:, 1:]) * TIME
    return prior + np.sum(stats.norm.logpdf(VALUES, expected, SD))


@pytest.mark.parametrize("centring", [(0.0, 0.0), (0.3, 0.3), (1.0, 1.0), (0.2, 0.9)])
def test_joint_density_is_the_same_in_every_partly_centred_coordinate(centring):
    # theta = mu + omega^(1 - c) (z - c mu), whose derivative in z is omega^(1 - c).
    c = np.asarray(centring)
    z = (THETA - CENTRE) / SCATTER ** (1 - c) + c * CENTRE
    log_jacobian = len(THETA) * np.sum((1 - c) * np.log(SCATTER))
    found = -energy(Population(line, OMEGA), shared_part() | {"random effects": z}, c) - log_jacobian
    effects = np.sum(stats.norm.logpdf(THETA, CENTRE, SCATTER))
    assert found == pytest.approx(log_density_by_hand() + effects, abs=1e-10)


@pytest.mark.parametrize("centred", [False, True])
def test_joint_density_of_correlated_effects_is_the_same_centred_or_not(centred):
    rho, concentration = 0.6, 2.5
    factor = np.array([[1.0, 0.0], [rho, np.sqrt(1 - rho**2)]])
    root = SCATTER[:, None] * factor
    # One number holds a 2 x 2 correlation: its inverse hyperbolic tangent.
    z = shared_part() | {"correlation factor": np.array([np.arctanh(rho)])}
    if centred:
        z |= {"random effects": THETA}
        log_jacobian = 0.0
    else:
        z |= {"standard effects": np.linalg.solve(root, (THETA - CENTRE).T).T}
        log_jacobian = len(THETA) * np.log(np.linalg.det(root))
    population = Population(line, OMEGA, correlation=concentration, centred=centred)
    found = -energy(population, z) - log_jacobian
    effects = np.sum(stats.multivariate_normal.logpdf(THETA, CENTRE, root @ root.T))
    # LKJ over one correlation: (rho + 1) / 2 is Beta(eta, eta); d rho / d arctanh(rho) is 1 - rho^2.
    lkj = stats.beta.logpdf((rho + 1) / 2, concentration, concentration) + np.log((1 - rho**2) / 2)
    assert found == pytest.approx(log_density_by_hand() + effects + lkj, abs=1e-10)


def test_joint_density_where_some_effects_are_correlated_is_that_of_blocks():
    rho, scatter = -0.4, np.array([0.8, 0.25, 0.3])
    theta = np.concatenate([THETA, np.array([[-1.1], [-0.7], [-0.9]])], axis=1)
    centre = np.array([LEVEL, np.log(SLOPE), np.log(SD)])
    covariance = np.diag(scatter**2)
    covariance[0, 2] = covariance[2, 0] = rho * scatter[0] * scatter[2]
    root = np.linalg.cholesky(covariance)
    z = {"level_pop": LEVEL, "slope_pop": np.log(SLOPE), "sd_pop": np.log(SD)}
    z |= {f"omega_{name}": np.log(s) for name, s in zip(("level", "slope", "sd"), scatter, strict=True)}
    z |= {"correlation factor": np.array([np.arctanh(rho)])}
    z |= {"standard effects": np.linalg.solve(root, (theta - centre).T).T}
    population = Population(
        line, OMEGA | {"sd": halfnormal(0.5)}, correlation=2.5, centred=False, blocks=(("level", "sd"),)
    )
    found = -energy(population, z) - len(theta) * np.log(np.linalg.det(root))
    expected = theta[:, :1] + np.exp(theta[:, 1:2]) * TIME
    truth = (
        stats.norm.logpdf(LEVEL, 1.0, 2.0)
        + stats.norm.logpdf(np.log(SLOPE), np.log(0.5), 0.8)
        + stats.norm.logpdf(np.log(SD), np.log(0.3), 0.5)
        + np.sum(stats.halfnorm.logpdf(scatter, scale=[0.7, 0.4, 0.5]) + np.log(scatter))
        + stats.beta.logpdf((rho + 1) / 2, 2.5, 2.5)
        + np.log((1 - rho**2) / 2)
        + np.sum(stats.multivariate_normal.logpdf(theta, centre, covariance))
        + np.sum(stats.norm.logpdf(VALUES, expected, np.exp(theta[:, 2:])))
    )
    assert found == pytest.approx(truth, abs=1e-10)


def test_blocks_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="effects are correlated only with a correlation"):
        Population(line, OMEGA, blocks=(("level", "slope"),))
    with pytest.raises(ValueError, match="'level' is in more than one place"):
        Population(line, OMEGA, correlation=1.0, blocks=(("level", "slope"), ("level",)))
    with pytest.raises(ValueError, match="no parameter 'sd'"):
        Population(line, OMEGA, correlation=1.0, blocks=(("level", "sd"),))


@pytest.fixture(scope="module")
def drawn():
    population = Population(line, OMEGA, correlation=2.5)
    density, base = density_of(population, {}, ())
    keys = jax.random.split(jax.random.key(1), 2000)
    return {name: np.asarray(value) for name, value in prior_draws(density, base, RECORD, keys).items()}


def agrees(sample, distribution):
    return stats.kstest(sample, distribution.cdf).pvalue > 1e-3


def test_prior_draws_of_a_correlation_follow_lkj(drawn):
    rho = drawn["correlation"][:, 0, 1]
    np.testing.assert_allclose(drawn["correlation"][:, 1, 0], rho, rtol=1e-12)
    np.testing.assert_allclose(np.diagonal(drawn["correlation"], axis1=1, axis2=2), 1.0, rtol=1e-12)
    assert agrees((rho + 1) / 2, stats.beta(2.5, 2.5))


def test_prior_draws_of_scatter_and_typical_values_follow_their_priors(drawn):
    assert agrees(drawn["omega_level"], stats.halfnorm(scale=0.7))
    assert agrees(drawn["omega_slope"], stats.halfnorm(scale=0.4))
    assert agrees(drawn["level_pop"], stats.norm(1.0, 2.0))
    assert agrees(drawn["slope_pop"], stats.lognorm(0.8, scale=0.5))
    assert agrees(drawn["sd"], stats.lognorm(0.5, scale=0.3))


def test_prior_draws_of_patients_scatter_by_omega_with_the_correlation(drawn):
    level = (drawn["level"] - drawn["level_pop"][:, None]) / drawn["omega_level"][:, None]
    ratio = np.log(drawn["slope"] / drawn["slope_pop"][:, None])
    slope = ratio / drawn["omega_slope"][:, None]
    rho = drawn["correlation"][:, 0, 1, None]
    for patient in range(len(COHORT)):
        assert agrees(level[:, patient], stats.norm)
        assert agrees(((slope - rho * level) / np.sqrt(1 - rho**2))[:, patient], stats.norm)


WEIGHT = np.array([50.0, 70.0, 90.0])


def saturating(coefficient, value, reference):
    return coefficient * value / (value + reference)


@pytest.mark.parametrize(
    ("given", "form", "factor"),
    [
        (0.75, power, lambda b: (WEIGHT / 70.0) ** b),
        (normal(0.5, 0.3), power, lambda b: (WEIGHT / 70.0) ** b),
        (0.02, linear, lambda b: np.exp(b * (WEIGHT - 70.0))),
        (normal(0.0, 0.1), linear, lambda b: np.exp(b * (WEIGHT - 70.0))),
        (0.02, proportional, lambda b: 1.0 + b * (WEIGHT - 70.0)),
        (0.5, differing, lambda b: np.array([np.exp(b), 1.0, np.exp(b)])),
        (normal(0.0, 1.0), saturating, lambda b: np.exp(b * WEIGHT / (WEIGHT + 70.0))),
    ],
)
def test_covariate_moves_a_parameter_by_its_formula(given, form, factor):
    covariate = Covariate("slope", "weight", "kg", 70.0, given, form)
    density, base = density_of(Population(line, OMEGA, (covariate,)), {}, ())
    coefficient = given if isinstance(given, float) else 0.31
    z = shared_part() | {"random effects": np.zeros((3, 2))}
    if not isinstance(given, float):
        z["beta_slope_weight"] = coefficient
    z = {name: jnp.asarray(value)[None, None] for name, value in z.items()}
    # Scaled effects that are 0: every patient is the typical one of that weight.
    found = constrained(density, base, RECORD, z, jnp.zeros(2))
    np.testing.assert_allclose(found["slope"][0, 0], SLOPE * factor(coefficient), rtol=1e-12)
    np.testing.assert_allclose(found["level"][0, 0], LEVEL, rtol=1e-12)
    assert ("beta_slope_weight" in found) == (not isinstance(given, float))


def test_covariates_of_one_parameter_add_up():
    first = Covariate("slope", "weight", "kg", 70.0, 0.75)
    second = Covariate("slope", "age", "a", 40.0, -0.01, linear)
    density, base = density_of(Population(line, ["slope"], (first, second)), {}, ())
    age = np.array([20.0, 40.0, 65.0])
    record = jax.tree.map(jnp.asarray, cohort(VALUES, weight=WEIGHT, age=age).record)
    z = {"level": LEVEL, "slope_pop": np.log(SLOPE), "sd": 0.0, "omega_slope": 0.0}
    z |= {"random effects": np.zeros((3, 1))}
    z = {name: jnp.asarray(value)[None, None] for name, value in z.items()}
    found = constrained(density, base, record, z, jnp.zeros(1))
    expected = SLOPE * (WEIGHT / 70.0) ** 0.75 * np.exp(-0.01 * (age - 40.0))
    np.testing.assert_allclose(found["slope"][0, 0], expected, rtol=1e-12)


def test_unknown_parameter_that_should_vary_is_named():
    with pytest.raises(ValueError, match=r"line has no parameter 'clearance'; it has \['level'"):
        Population(line, ["clearance"])


def test_vary_as_a_bare_text_is_refused():
    with pytest.raises(ValueError, match="found the text 'slope'"):
        Population(line, "slope")


def test_covariate_of_a_parameter_that_does_not_vary_is_refused():
    covariate = Covariate("level", "weight", "kg", 70.0, 0.75)
    with pytest.raises(ValueError, match="no parameter 'level'"):
        Population(line, ["slope"], (covariate,))


def test_parameter_that_varies_but_is_known_is_refused():
    with pytest.raises(ValueError, match="'slope' varies between patients but is known"):
        density_of(Population(line, ["slope"]), {"slope": 1.0}, ())
    with pytest.raises(ValueError, match="'slope' varies between patients but is known"):
        density_of(Population(line, ["slope"]), {}, ("slope",))


def test_covariate_that_nobody_knows_is_named_with_those_that_are():
    covariate = Covariate("slope", "height", "cm", 170.0, 0.75)
    with pytest.raises(ValueError, match=r"'height' is not known of the patients; known are \['weight'\]"):
        calibrate(Population(line, ["slope"], (covariate,)), COHORT, key=jax.random.key(0))


def test_patient_whose_covariate_is_not_positive_is_named():
    covariate = Covariate("slope", "weight", "kg", 70.0, 0.75)
    wrong = cohort(VALUES, weight=np.array([50.0, 0.0, 90.0]))
    with pytest.raises(ValueError, match="patient 'p1': covariate 'weight' must be positive"):
        calibrate(Population(line, ["slope"], (covariate,)), wrong, key=jax.random.key(0))


@pytest.mark.parametrize("form", [power, saturating])
def test_covariate_is_told_as_plain_data_and_back(form):
    covariate = Covariate("slope", "weight", "kg", 70.0, normal(0.5, 0.3), form)
    assert covariate_from_dict(json.loads(json.dumps(covariate.as_dict()))) == covariate


def test_form_that_no_module_has_is_named_when_it_is_read_back():
    covariate = Covariate("slope", "weight", "kg", 70.0, 0.5, lambda b, x, reference: b * x)
    with pytest.raises(
        ValueError, match=r"covariate .weight.: cannot import its form .test_population:.*lambda"
    ):
        covariate_from_dict(covariate.as_dict())


def test_patient_of_whom_a_known_effect_is_no_number_is_named():
    covariate = Covariate("slope", "weight", "kg", 70.0, -0.05, proportional)
    with pytest.raises(ValueError, match="patient 'p2': the effect of 'weight' is no number"):
        calibrate(Population(line, ["slope"], (covariate,)), COHORT, key=jax.random.key(0))


@pytest.mark.filterwarnings("ignore::dtwin_jax.inference.diagnostics.CalibrationWarning")
def test_all_rounds_of_a_warm_up_share_one_program():
    few = nuts.Nuts(chains=1, warmup=20, draws=20, block=20, candidates=8, max_depth=3)
    before = nuts.run_block._cache_size()
    calibrate(Population(line, ["slope"]), COHORT, key=jax.random.key(0), method=few, progress=False)
    assert nuts.run_block._cache_size() == before + 1
