"""Mixtures of subpopulations against sums over classes of integrals written out in NumPy.

Source of truth: the likelihood of a patient with one effect is a sum over many nodes of SciPy's densities, of
each class.
"""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plasma import TIME, log_mean, patients, plasma
from scipy import optimize, special, stats

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.doubts import EstimationWarning
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.mixture import Mixture
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.predictive import constrained, prior_draws
from dtwin_jax.inference.result import _population_as_dict, _population_from_dict
from dtwin_jax.inference.scan import scanned
from dtwin_jax.inference.scatter import EFFECTS, SHARES
from dtwin_jax.inference.start import potential_energy
from dtwin_jax.inference.svi import Svi
from dtwin_jax.twin.diagnose import diagnose
from dtwin_jax.twin.forecast import forecast_new

# Slow and fast metabolisers: the clearance of the fast is exp(1.2) times as large.
CL, V, SD, OMEGA, SHIFT, SHARE = 1.5, 20.0, 0.15, 0.25, 1.2, 0.35
POPULATION = Population(plasma, ("CL",), mixture=Mixture(("CL",)))
KNOWN = {"V": V, "sd": SD}
TRUTH = {"CL_pop": CL, "omega_CL": OMEGA, "shift_CL_2": SHIFT, "share_2": SHARE}


def drawn(count, seed=0, share=SHARE):
    """Concentrations, and whether a patient is fast; effects are even quantiles of a normal distribution."""
    rng = np.random.default_rng(seed)
    fast = np.arange(count) < round(share * count)
    eta = np.empty(count)
    for kind in (fast, ~fast):
        number = np.sum(kind)
        eta[kind] = OMEGA * rng.permutation(stats.norm.ppf((np.arange(number) + 0.5) / number))
    clearance = (CL * np.exp(SHIFT * fast + eta))[:, None]
    return np.exp(log_mean(clearance, V) + SD * rng.normal(size=(count, len(TIME)))), fast


VALUES = drawn(12)[0]
# Between the classes: these patients might be of either.
VALUES[[2, 7]] *= np.exp(np.outer([1.0, 0.6], log_mean(CL * np.exp(0.6), V) - log_mean(CL, V)))
COHORT = patients(VALUES)


def likelihood_at(row, eta, shift, omega=OMEGA):
    """Of a patient's measurements and effects (effect,) in a class, on the logs' scale with its stretch."""
    clearance = CL * np.exp(shift + eta)
    error = stats.norm.logpdf(np.log(row), log_mean(clearance[:, None], V), SD).sum(axis=1)
    return error - np.log(row).sum() + stats.norm.logpdf(eta, 0.0, omega)


CLASSES = ((0.0, 1.0 - SHARE), (SHIFT, SHARE))


def integrals():
    """The likelihood of each patient in each class, times its share: log, (patient, class)."""
    eta = np.linspace(-10 * OMEGA, 10 * OMEGA, 20001)
    return np.array(
        [
            [
                special.logsumexp(likelihood_at(row, eta, s)) + np.log(share * (eta[1] - eta[0]))
                for s, share in CLASSES
            ]
            for row in VALUES
        ]
    )


def laplace(row, shift):
    """Log of a patient's likelihood in a class by FOCEI and by Laplace, and the peak."""

    def slopes(eta):
        clearance = CL * np.exp(shift + eta)
        return np.log(row) - log_mean(clearance, V), -clearance / V * TIME

    def push(eta):
        left, slope = slopes(eta)
        return np.sum(left * slope) / SD**2 - eta / OMEGA**2

    top = optimize.brentq(push, -5.0, 5.0, xtol=1e-13)
    left, slope = slopes(top)
    expected = np.sum(slope**2) / SD**2 + OMEGA**-2
    height = likelihood_at(row, np.array([top]), shift)[0]
    exact = expected - np.sum(left * slope) / SD**2
    return *(height - 0.5 * np.log(bend / (2 * np.pi)) for bend in (expected, exact)), top


def at_truth(by, **how):
    return estimate(POPULATION, COHORT, by=by, priors=KNOWN, start=TRUTH, search=False, **how)


def test_quadrature_is_the_integral():
    each = integrals()
    found = at_truth("quadrature", nodes=40)
    np.testing.assert_allclose(found.individual, -2 * special.logsumexp(each, axis=1), atol=1e-7)
    probability = special.softmax(each, axis=1)
    np.testing.assert_allclose(found.classes.probability, probability, atol=1e-8)
    np.testing.assert_array_equal(found.classes.likeliest, 1 + np.argmax(each, axis=1))
    # The study is one in which there is something to tell.
    assert np.any((probability > 0.05) & (probability < 0.95))


def test_importance_sampling_is_the_integral_within_its_error():
    found = at_truth("importance", draws=512, key=jax.random.key(0))
    away = found.minus_two_log_likelihood + 2 * special.logsumexp(integrals(), axis=1).sum()
    assert abs(away) < 4 * found.monte_carlo_error < 0.1


def test_focei_and_laplace_are_by_hand():
    hand = np.array([[laplace(row, shift) for shift, _ in CLASSES] for row in VALUES])
    shares = np.log([share for _, share in CLASSES])
    for i, by in enumerate(("focei", "laplace")):
        found = at_truth(by)
        each = hand[:, :, i] + shares
        np.testing.assert_allclose(found.individual, -2 * special.logsumexp(each, axis=1), atol=1e-8)
        np.testing.assert_allclose(found.classes.probability, special.softmax(each, axis=1), atol=1e-8)
        np.testing.assert_allclose(found.classes.eta[:, :, 0], hand[:, :, 2].T, atol=1e-6)
        likeliest = np.argmax(each, axis=1)
        np.testing.assert_allclose(found.eta[:, 0], hand[np.arange(12), likeliest, 2], atol=1e-6)
    assert "most probable class" in str(found)


def linearised(row):
    """FO's likelihood: a normal vector about no effects in each class."""
    each = []
    for shift, share in CLASSES:
        mean = log_mean(CL * np.exp(shift), V)
        slope = mean - np.log(100.0 / V)
        covariance = OMEGA**2 * np.outer(slope, slope) + SD**2 * np.eye(len(TIME))
        each.append(np.log(share) + stats.multivariate_normal.logpdf(np.log(row), mean, covariance))
    return special.logsumexp(each) - np.log(row).sum()


def test_fo_is_a_mixture_of_normal_vectors():
    np.testing.assert_allclose(at_truth("fo").individual, [-2 * linearised(row) for row in VALUES], atol=1e-8)


def test_one_class_is_no_mixture():
    start = {"CL_pop": CL, "omega_CL": OMEGA}
    one = replace(POPULATION, mixture=Mixture(("CL",), classes=1))
    none, alone = (
        estimate(each, COHORT, priors=KNOWN, start=start, search=False)
        for each in (replace(POPULATION, mixture=None), one)
    )
    assert alone.names == none.names and alone.classes is None
    assert alone.objective == none.objective
    np.testing.assert_array_equal(alone.eta, none.eta)


def problem_of(by):
    density, base = density_of(POPULATION, KNOWN, ())
    marginal = Marginal(Effects(POPULATION, density.priors), by)
    problem = Objective(marginal, base, jax.tree.map(jnp.asarray, COHORT.record))
    return problem, np.array([np.log(CL), np.log(SHIFT), special.logit(SHARE), np.log(OMEGA)])


def test_slope_is_that_of_finite_differences_and_draws_are_scanned():
    problem, psi = problem_of("focei")
    assert problem.marginal.effects.names == ("CL_pop", "shift_CL_2", "share_2", "omega_CL")
    total, slope = problem.value(psi)
    step = 1e-4
    ups = np.array([[problem.value(psi + sign * row)[0] for sign in (1, -1)] for row in step * np.eye(4)])
    np.testing.assert_allclose(slope, (ups[:, 0] - ups[:, 1]) / (2 * step), rtol=1e-5, atol=1e-5)
    many = scanned(problem, np.stack([psi, psi + step * np.eye(4)[1]]))
    np.testing.assert_allclose(many, [total, ups[1, 0]], atol=1e-6)


def test_some_of_the_patients_are_as_they_are_among_all():
    problem, psi = problem_of("focei")
    each, _ = problem.each(psi)
    rows = np.array([3, 3, 0, 5, 1, 2, 7, 6, 11, 8, 9, 10])
    np.testing.assert_allclose(problem.of(rows).each(psi)[0], each[rows], atol=1e-8)


@pytest.fixture(scope="module")
def study():
    values, fast = drawn(120, seed=1)
    return patients(values), fast


@pytest.fixture(scope="module")
def fitted(study):
    return estimate(POPULATION, study[0], by="focei", priors=KNOWN)


def test_a_study_of_two_classes_tells_them(study, fitted):
    assert fitted.converged and not fitted.warnings
    error = fitted.errors()
    for name, value in TRUTH.items():
        assert abs(fitted.estimate[name] - value) < 1.5 * error[name]
    assert np.mean((fitted.classes.likeliest == 2) == study[1]) > 0.9
    # As sure of shares as of shares that are counted, or less.
    assert error["share_2"] >= np.sqrt(SHARE * (1 - SHARE) / 120)


def test_share_of_classes_that_are_alike_is_told_to_be_unknown():
    alike = replace(POPULATION, mixture=Mixture({"CL": 0.0}))
    with pytest.warns(EstimationWarning, match="the likelihood is flat along share_2"):
        estimate(alike, COHORT, by="focei", priors=KNOWN)


def test_saem_finds_the_same(study, fitted):
    found = estimate(POPULATION, study[0], by="saem", priors=KNOWN, key=jax.random.key(0))
    assert found.converged
    for name, value in fitted.estimate.items():
        assert abs(found.estimate[name] - value) < 0.5 * fitted.errors()[name]
    assert np.mean(found.classes.likeliest == fitted.classes.likeliest) > 0.98


def test_simulated_patients_are_of_both_classes(study, fitted):
    tree = diagnose(POPULATION, study[0], fitted, key=jax.random.key(1), samples=200, priors=KNOWN)
    late = tree["predictions"]["y"].values[:, :, -1].ravel()
    rate = -(np.log(late) - np.log(100.0 / V)) * V / TIME[-1]
    told, rng = fitted.estimate, np.random.default_rng(3)
    fast = rng.random(100_000) < told["share_2"]
    eta = told["omega_CL"] * rng.normal(size=100_000)
    clearance = told["CL_pop"] * np.exp(told["shift_CL_2"] * fast + eta)
    clearance += SD * V / TIME[-1] * rng.normal(size=100_000)
    assert stats.ks_2samp(rate, clearance).pvalue > 1e-3
    # Predictions without effects are those of the patient's own class.
    np.testing.assert_array_equal(tree["effects"]["class"], fitted.classes.likeliest)
    typical = told["CL_pop"] * np.exp(told["shift_CL_2"] * (fitted.classes.likeliest == 2))
    expected = np.exp(log_mean(typical[:, None], V))
    np.testing.assert_allclose(tree["residuals"]["y_population"], expected, rtol=1e-8)
    assert np.nanstd(tree["residuals"]["y_cwres"].values) == pytest.approx(1.0, abs=0.1)


def joint_by_hand(eta, concentration):
    """Log density of (log CL_pop, log omega, log shift, logit share), effects (patient,) about class 1."""
    truth = stats.norm.logpdf(np.log(CL), np.log(3.0), 1.0)
    truth += stats.halfnorm.logpdf(OMEGA, scale=0.5) + np.log(OMEGA)
    truth += stats.norm.logpdf(np.log(SHIFT), 0.0, 1.0)
    truth += stats.beta.logpdf(SHARE, concentration, concentration) + np.log(SHARE * (1 - SHARE))
    for row, one in zip(VALUES, eta, strict=True):
        clearance = CL * np.exp(one)
        truth += stats.norm.logpdf(np.log(row), log_mean(clearance, V), SD).sum() - np.log(row).sum()
        truth += special.logsumexp(
            [np.log(share) + stats.norm.logpdf(one, shift, OMEGA) for shift, share in CLASSES]
        )
    return truth


@pytest.mark.parametrize("centring", [0.0, 0.4])
def test_joint_density_of_the_sampler_is_by_hand_in_every_coordinate(centring):
    population = replace(POPULATION, mixture=Mixture(("CL",), concentration=2.0))
    density, base = density_of(population, KNOWN, ())
    eta = np.linspace(-0.3, 1.6, len(VALUES))
    mean = np.log(CL)
    effects = centring * mean + eta * OMEGA ** (centring - 1)
    z = {"CL_pop": np.log(CL), "omega_CL": np.log(OMEGA), "shift_CL_2": np.log(SHIFT)}
    z |= {SHARES: np.array([-special.logit(SHARE)]), EFFECTS: effects[:, None]}
    record = jax.tree.map(jnp.asarray, COHORT.record)
    at = jax.tree.map(jnp.asarray, z)
    held = jnp.asarray([centring])
    found = -float(standard_promotion(potential_energy)(density, (base, record, held), at))
    jacobian = len(VALUES) * (1 - centring) * np.log(OMEGA)
    assert found - jacobian == pytest.approx(joint_by_hand(eta, 2.0), abs=1e-9)
    one = jax.tree.map(lambda leaf: leaf[None, None], at)
    told = constrained(density, base, record, one, held)
    assert told["share_2"][0, 0] == pytest.approx(SHARE) and SHARES not in told
    weigh = [np.log(share) + stats.norm.logpdf(eta, shift, OMEGA) for shift, share in CLASSES]
    np.testing.assert_allclose(told["probability_2"][0, 0], special.softmax(weigh, axis=0)[1], rtol=1e-9)


@pytest.mark.parametrize("centred", [False, True])
def test_correlated_effects_have_classes_as_well(centred):
    """Two effects of which one has classes: the sampler's density is that of normal vectors in a sum."""
    population = Population(
        plasma, ("CL", "V"), correlation=1.0, centred=centred, mixture=Mixture({"CL": SHIFT})
    )
    density, base = density_of(population, {"sd": SD}, ())
    rho, scale = 0.4, np.array([OMEGA, 0.2])
    covariance = np.outer(scale, scale) * np.array([[1, rho], [rho, 1]])
    root = np.linalg.cholesky(covariance)
    rng = np.random.default_rng(5)
    eta = rng.normal(size=(len(VALUES), 2)) * [0.6, 0.2]
    z = {"CL_pop": np.log(CL), "V_pop": np.log(V), "omega_CL": np.log(scale[0]), "omega_V": np.log(scale[1])}
    z |= {SHARES: np.array([-special.logit(SHARE)]), "correlation factor": np.array([np.arctanh(rho)])}
    centre = np.log([CL, V])
    z |= {EFFECTS: centre + eta} if centred else {"standard effects": np.linalg.solve(root, eta.T).T}
    record = jax.tree.map(jnp.asarray, COHORT.record)
    at = jax.tree.map(jnp.asarray, z)
    found = -float(standard_promotion(potential_energy)(density, (base, record, jnp.ones(2)), at))
    truth = stats.norm.logpdf(np.log(CL), np.log(3.0), 1.0) + stats.norm.logpdf(np.log(V), np.log(20.0), 1.0)
    truth += np.sum(stats.halfnorm.logpdf(scale, scale=0.5) + np.log(scale))
    truth += np.log(SHARE * (1 - SHARE)) + np.log(0.5) + np.log(1 - rho**2)
    for row, one in zip(VALUES, eta, strict=True):
        clearance, volume = np.exp(centre + one)
        truth += stats.norm.logpdf(np.log(row), log_mean(clearance, volume), SD).sum() - np.log(row).sum()
        each = [np.log(w) + stats.multivariate_normal.logpdf(one, [s, 0.0], covariance) for s, w in CLASSES]
        truth += special.logsumexp(each)
    jacobian = 0.0 if centred else len(VALUES) * np.log(np.diag(root)).sum()
    assert found - jacobian == pytest.approx(truth, abs=1e-9)


@pytest.mark.filterwarnings("ignore::dtwin_jax.inference.diagnostics.CalibrationWarning")
def test_nuts_gives_the_probabilities_of_classes_and_skewed_effects_besides():
    """Where all numbers are known but for a hair, a patient's posterior is a sum over a grid."""
    scatter = {"CL": lognormal(OMEGA, log_sd=0.01), "V": lognormal(0.3, log_sd=0.01)}
    mixture = Mixture({"CL": SHIFT}, concentration=1e6)
    population = Population(plasma, scatter, mixture=mixture, boxcox={"V": 1.5})
    priors = {"CL": lognormal(CL, log_sd=0.01), "V": lognormal(V, log_sd=0.01), "sd": 0.4}
    eta, other = np.linspace(-1.5, 2.5, 201)[:, None], np.linspace(-1.5, 1.5, 201)
    move = np.expm1(1.5 * other) / 1.5
    expected = log_mean(*(each[..., None] for each in (CL * np.exp(eta), V * np.exp(move))))
    prior = [
        stats.norm.logpdf(eta, shift, OMEGA) + stats.norm.logpdf(other, 0.0, 0.3) for shift, _ in CLASSES
    ]
    truth = np.empty((len(VALUES), 2))
    for i, row in enumerate(VALUES):
        fit = stats.norm.logpdf(np.log(row), expected, 0.4).sum(axis=-1)
        weight = np.exp(fit + np.array(prior))
        truth[i] = weight[1].sum() / weight.sum(), np.sum(weight * move) / weight.sum()
    few = Nuts(chains=2, warmup=200, draws=400, candidates=8, block=200)
    tree = calibrate(population, COHORT, priors=priors, key=jax.random.key(4), method=few, progress=False)
    draws = tree["posterior"]
    found = draws["probability_2"].values.mean((0, 1)), np.log(draws["V"].values / V).mean((0, 1))
    np.testing.assert_allclose(found[0], truth[:, 0], atol=0.06)
    np.testing.assert_allclose(found[1], truth[:, 1], atol=0.04)
    assert np.any((truth[:, 0] > 0.2) & (truth[:, 0] < 0.8))
    assert draws["share_2"].values.mean() == pytest.approx(0.5, abs=0.01)
    # Effects of V are skewed, and scaled whatever the warm-up finds.
    assert json.loads(tree.attrs["centring"])[1] == 0.0
    new = forecast_new(population, tree, COHORT.record, key=jax.random.key(5), samples=400)
    late = np.log(new["predictions"]["y_expected"].values[:, :, -1]).ravel()
    rng = np.random.default_rng(6)
    own = CL * np.exp(SHIFT * rng.integers(0, 2, 20_000) + OMEGA * rng.normal(size=20_000))
    volume = V * np.exp(np.expm1(0.45 * rng.normal(size=20_000)) / 1.5)
    assert stats.ks_2samp(late, log_mean(own, volume, TIME[-1])).pvalue > 1e-3


def test_prior_draws_of_patients_are_of_every_class():
    mixture = Mixture({"CL": 2.0}, classes=3, concentration=4.0)
    density, base = density_of(replace(POPULATION, mixture=mixture), KNOWN, ())
    record = jax.tree.map(jnp.asarray, COHORT.record)
    found = prior_draws(density, base, record, jax.random.split(jax.random.key(2), 2000))
    found = {name: np.asarray(value) for name, value in found.items()}
    # Of a Dirichlet distribution one share is a beta one.
    assert stats.kstest(found["share_3"], stats.beta(4.0, 8.0).cdf).pvalue > 1e-3
    eta = np.log(found["CL"][:, 0] / found["CL_pop"])
    # On average a third of the patients is of each class, which are 2 apart.
    assert np.mean(eta) == pytest.approx(2.0, abs=0.15)
    assert np.var(eta) == pytest.approx(4.0 * 2 / 3 + 0.25, rel=0.1)


def test_mixtures_are_told_as_plain_data_and_back():
    mixture = Mixture({"CL": lognormal(1.0, 0.5), "V": 0.3}, classes=3, concentration=2.0)
    population = Population(plasma, ("CL", "V"), mixture=mixture)
    told = json.loads(json.dumps(_population_as_dict(population)))
    assert _population_from_dict(plasma, told) == population
    assert [name for name, _ in mixture.shifts] == ["shift_CL_2", "shift_CL_3"]
    assert mixture.shares == ("share_2", "share_3")
    np.testing.assert_allclose(
        mixture.moves(("V", "CL"), {"shift_CL_2": 1.0, "shift_CL_3": 0.5}), [[0, 0], [0.3, 1], [0.6, 1.5]]
    )


def test_mixtures_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="vary has no parameter 'V'"):
        Population(plasma, ("CL",), mixture=Mixture(("V",)))
    with pytest.raises(ValueError, match="'CL' is in the mixture and in boxcox"):
        Population(plasma, ("CL",), mixture=Mixture(("CL",)), boxcox={"CL": normal(0.0, 1.0)})
    with pytest.raises(ValueError, match="the text 'CL'"):
        Mixture("CL")
    with pytest.raises(ValueError, match="no parameter is named"):
        Mixture(())
    with pytest.raises(ValueError, match="found 0 classes, expected 1 or more"):
        Mixture(("CL",), classes=0)
    with pytest.raises(ValueError, match="the shift of CL is nan"):
        Mixture({"CL": float("nan")})
    with pytest.raises(ValueError, match="found a concentration of 0"):
        Mixture(("CL",), concentration=0.0)
    with pytest.raises(ValueError, match="Svi has one peak for each patient"):
        calibrate(POPULATION, COHORT, key=jax.random.key(0), priors=KNOWN, method=Svi())
    with pytest.raises(ValueError, match="leave some to the first class"):
        estimate(POPULATION, COHORT, priors=KNOWN, start={"share_2": 1.2})
