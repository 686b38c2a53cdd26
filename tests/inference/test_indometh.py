"""Indomethacin in six people, two compartments, against nlme's fit of two exponentials.

Source of truth: R nlme 3.1 (ML), SSbiexp with random effects on A1, lrc1 and A2, of datasets::Indometh, the
fit of Pinheiro & Bates 2000, p. 281: A1 2.8276, lrc1 0.7733, A2 0.4610, lrc2 -1.3450, residual sd 0.0815.
"""

import warnings
from importlib import resources

import jax
import numpy as np
import pytest

from dtwin_jax import CalibrationWarning, Nuts, Population, calibrate, lognormal, read_table, stack, summary
from dtwin_jax.models import two_compartment

PRIORS = {
    "CL": lognormal(8.0, log_sd=1.0),
    "V1": lognormal(10.0, log_sd=1.0),
    "Q": lognormal(8.0, log_sd=1.0),
    "V2": lognormal(15.0, log_sd=1.0),
    "ka": None,
    "cv": lognormal(0.1, log_sd=1.0),
    "sd": lognormal(0.05, log_sd=1.0),
}
VARY = ("CL", "V1", "Q", "V2")
DOSE = 25.0  # mg
RESIDUAL_SD = 0.0815  # mg/L, of nlme's additive error


@pytest.fixture(scope="module")
def cohort():
    path = resources.files("dtwin_jax") / "data" / "indometh.csv"
    return stack(read_table(path, two_compartment))


@pytest.fixture(scope="module")
def tree(cohort):
    # So short a run may be told that it is short.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(
            Population(two_compartment, VARY),
            cohort,
            key=jax.random.key(0),
            priors=PRIORS,
            method=Nuts(warmup=500, draws=500, target_accept=0.95),
            progress=False,
        )


def test_chains_agree_and_hardly_diverge(tree):
    assert float(summary(tree)["r_hat"].max()) < 1.05
    assert float(tree["sample_stats"]["diverging"].mean()) < 0.01


def test_predictive_bands_of_the_patients_cover_their_points(tree, cohort):
    series = cohort.record.observations["concentration"]
    drawn = tree["posterior_predictive"]["concentration"].values.reshape(-1, *series.time.shape)
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    inside = (low <= series.value) & (series.value <= high)
    assert np.mean(inside[series.mask]) >= 0.85
    assert np.all(np.mean(inside, axis=1) > 0.6)


def test_predictive_medians_pass_through_the_points(tree, cohort):
    series = cohort.record.observations["concentration"]
    drawn = tree["posterior_predictive"]["concentration_expected"].values.reshape(-1, *series.time.shape)
    median = np.median(drawn, axis=0)
    ratio = np.log(series.value / median)[series.mask]
    assert abs(np.median(ratio)) < 0.05
    assert np.corrcoef(np.log(median[series.mask]), np.log(series.value[series.mask]))[0, 1] > 0.98


def test_typical_curve_agrees_with_nlme_where_its_error_lets_it_see(tree):
    t = np.linspace(0.25, 8.0, 32)
    published = 2.8276 * np.exp(-np.exp(0.7733) * t) + 0.4610 * np.exp(-np.exp(-1.3450) * t)
    typical = two_exponentials(tree, t)
    # nlme's error is additive, so that its tail is settled by noise; ours is mostly proportional.
    clear, visible = published > 4 * RESIDUAL_SD, published > 3 * RESIDUAL_SD
    np.testing.assert_allclose(np.median(typical, axis=-1)[clear], published[clear], rtol=0.1)
    low, high = np.quantile(typical, (0.05, 0.95), axis=-1)
    assert np.all(((low < published) & (published < high))[visible])


def two_exponentials(tree, t):
    """The typical patient's concentration after the bolus, (time, draw), by the textbook formula."""
    clearance, v1, q, v2 = (tree["posterior"][f"{name}_pop"].values.ravel() for name in VARY)
    k10, k12, k21 = clearance / v1, q / v1, q / v2
    total = k10 + k12 + k21
    root = np.sqrt(total**2 - 4 * k10 * k21)
    fast, slow = (total + root) / 2, (total - root) / 2
    a, b = (fast - k21) / (fast - slow), (k21 - slow) / (fast - slow)
    return DOSE / v1 * (a * np.exp(-fast * t[:, None]) + b * np.exp(-slow * t[:, None]))
