"""Residuals of many patients of a right and of a wrong model, in plain NumPy: are they standard normal?"""

import numpy as np
import pytest
from scipy import stats

from dtwin_jax.inference.residuals import (
    Moments,
    conditional_residuals,
    individual_residuals,
    prediction_errors,
)

TIME = np.array([0.0, 1.0, 3.0])
X = np.stack([np.ones(3), TIME], axis=1)
BETA, SD = np.array([2.0, 0.5]), 0.4
OMEGA = np.array([[0.5, 0.1], [0.1, 0.2]])
PATIENTS = 3000


def simulated(rng, size, omega=OMEGA, sd=SD):
    effects = rng.multivariate_normal(np.zeros(2), omega, size)
    return (BETA + effects) @ X.T + sd * rng.normal(size=(*size, 3))


@pytest.fixture(scope="module")
def value():
    return simulated(np.random.default_rng(0), (PATIENTS,))


def moments(value, eta, sd=SD):
    slope = np.broadcast_to(X, (PATIENTS, 3, 2))
    return Moments(value, (BETA + eta) @ X.T, np.full(value.shape, sd), slope, np.ones(value.shape, bool))


def at_peak(value, omega=OMEGA):
    v = X @ omega @ X.T + SD**2 * np.eye(3)
    return (value - X @ BETA) @ np.linalg.solve(v, X @ omega)


def test_conditional_residuals_of_a_right_model_are_independent_standard_normal(value):
    z = conditional_residuals(moments(value, at_peak(value)), at_peak(value), OMEGA)
    assert stats.kstest(z.ravel(), "norm").pvalue > 0.01
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=4.0 * np.sqrt(2.0 / PATIENTS))
    # At other effects they are the same, for the model is linear.
    other = np.random.default_rng(1).normal(size=(PATIENTS, 2))
    np.testing.assert_allclose(conditional_residuals(moments(value, other), other, OMEGA), z, atol=1e-9)


def test_a_wrong_spread_between_patients_shows(value):
    z = conditional_residuals(moments(value, at_peak(value, OMEGA / 4)), at_peak(value, OMEGA / 4), OMEGA / 4)
    assert z.var() > 1.3 and stats.kstest(z.ravel(), "norm").pvalue < 1e-6


def test_prediction_errors_of_a_right_model_are_independent_standard_normal(value):
    drawn = simulated(np.random.default_rng(2), (500, PATIENTS))
    npde, npd = prediction_errors(value, drawn, np.ones(value.shape, bool))
    for z in (npde, npd):
        assert stats.kstest(z.ravel(), "norm").pvalue > 0.01
    within = 4.0 * np.sqrt(2.0 / PATIENTS)
    np.testing.assert_allclose(np.cov(npde.T), np.eye(3), atol=within)
    assert np.corrcoef(npd.T)[0, 1] > 0.5  # without decorrelation they hang together


def test_prediction_errors_of_a_wrong_error_show(value):
    drawn = simulated(np.random.default_rng(3), (500, PATIENTS), sd=2.0 * SD)
    npde, _ = prediction_errors(value, drawn, np.ones(value.shape, bool))
    assert npde.var() < 0.7 and stats.kstest(npde.ravel(), "norm").pvalue < 1e-6


def test_individual_residuals_are_narrow_by_what_the_effects_have_taken(value):
    """Of three measurements a normal posterior of two effects takes trace(H) / 3 of the variance."""
    v = X @ OMEGA @ X.T + SD**2 * np.eye(3)
    left = SD**2 * np.linalg.inv(v)  # y - fit = sd^2 V^-1 (y - mean)
    exact = np.trace(left @ v @ left.T) / SD**2 / 3
    z = individual_residuals(moments(value, at_peak(value)))
    assert z.var() == pytest.approx(exact, rel=4.0 * np.sqrt(2.0 / PATIENTS))


def test_rows_not_used_and_patients_undefined_have_no_residual(value):
    whole = moments(value.copy(), at_peak(value))
    used = whole.used.copy()
    used[0, 1] = False
    whole.value[0, 1], whole.value[1, 2] = np.nan, np.nan
    part = Moments(whole.value, whole.mean, whole.sd, whole.slope, used)
    z = conditional_residuals(part, at_peak(value), OMEGA)
    assert np.isnan(z[0]).tolist() == [False, True, False] and np.isnan(z[1]).all()
    x = X[[0, 2]]
    v = x @ OMEGA @ x.T + SD**2 * np.eye(2)
    variance, axis = np.linalg.eigh(v)
    exact = axis @ (axis.T @ (value[0, [0, 2]] - x @ BETA) / np.sqrt(variance))
    np.testing.assert_allclose(z[0, [0, 2]], exact, atol=1e-9)


def test_measurements_without_an_error_of_their_own_have_no_decorrelated_one():
    """Twice the same number cannot be told apart; where they lie among draws can."""
    rng = np.random.default_rng(4)
    once = rng.normal(size=(300, 2, 1))
    npde, npd = prediction_errors(
        np.zeros((2, 2)), np.concatenate([once, once], axis=2), np.ones((2, 2), bool)
    )
    assert np.isnan(npde).all() and np.isfinite(npd).all()
    constant, _ = prediction_errors(np.zeros((2, 2)), np.ones((300, 2, 2)), np.ones((2, 2), bool))
    assert np.isnan(constant).all()
