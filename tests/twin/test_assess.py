"""Scores of forecasts against closed forms and numbers worked by hand."""

import jax
import numpy as np
import pytest
from handmade import result
from scipy import stats

from dtwin_jax.core.prior import normal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.models import linear_health
from dtwin_jax.models.linear_health import Inputs
from dtwin_jax.twin.assess import crps, leave_last_out, score

NONE = {name: None for name in ("beta_E", "beta_B", "beta_C", "beta_S", "beta_G", "gamma")}


def crps_of_a_normal(y, mean, sd):
    """Gneiting & Raftery 2007, doi 10.1198/016214506000001437, eq. 21, positive."""
    z = (y - mean) / sd
    return sd * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi))


def test_crps_of_normal_draws_equals_the_closed_form():
    y = np.array([-1.0, 0.2, 3.0])
    drawn = np.random.default_rng(0).normal(0.5, 1.5, (40_000, 3))
    assert crps(y, drawn) == pytest.approx(np.mean(crps_of_a_normal(y, 0.5, 1.5)), abs=0.02)


def test_crps_equals_the_sum_over_all_pairs():
    rng = np.random.default_rng(1)
    y, drawn = rng.normal(size=4), rng.normal(size=(7, 4))
    pairs = np.abs(drawn[:, None] - drawn[None]).sum(axis=(0, 1)) / (7 * 6)
    expected = np.mean(np.abs(drawn - y).mean(axis=0) - pairs / 2)
    assert crps(y, drawn) == pytest.approx(expected, rel=1e-12)


def test_crps_of_no_values_is_not_a_number():
    assert np.isnan(crps(np.zeros(0), np.zeros((5, 0))))


def series(values, **given):
    return Series(np.arange(len(values), dtype=float), values, **given)


TWO_CHANNELS = stack(
    {
        "a": Record(Inputs(), {"H": series([1, 2, 3, 4, 5.0]), "G": series([1, 2.0])}),
        "b": Record(Inputs(), {"H": series([6, 7, 8.0], mask=[True, False, True]), "G": series([3, 4, 5.0])}),
    }
)


def test_last_measurements_of_each_channel_and_patient_are_left_out():
    kept, held = leave_last_out(TWO_CHANNELS, 2)
    seen = lambda record, name: [  # noqa: E731
        record.observations[name].value[i][record.observations[name].mask[i]].tolist() for i in range(2)
    ]
    # Patient b has two measurements of H, a has two of G: no more than what is left out, so all stay.
    assert seen(kept.record, "H") == [[1, 2, 3], [6, 8]]
    assert seen(held, "H") == [[4, 5], []]
    assert seen(kept.record, "G") == [[1, 2], [3]]
    assert seen(held, "G") == [[], [4, 5]]
    assert kept.ids == TWO_CHANNELS.ids


def test_split_changes_only_masks():
    kept, held = leave_last_out(TWO_CHANNELS, 1)
    for record in (kept.record, held):
        for name, one in TWO_CHANNELS.record.observations.items():
            for field in ("time", "value", "censor", "after"):
                np.testing.assert_array_equal(getattr(record.observations[name], field), getattr(one, field))
    for name, one in TWO_CHANNELS.record.observations.items():
        both = kept.record.observations[name].mask.astype(int) + held.observations[name].mask
        np.testing.assert_array_equal(both, one.mask)


def test_leaving_nothing_out_is_refused():
    with pytest.raises(ValueError, match="last must be at least 1, found 0"):
        leave_last_out(TWO_CHANNELS, 0)


# H stays at 0 (alpha 0, H0 0) and is measured with sd 1: every prediction is standard normal.
Z = np.array([0.0, 0.5, -1.0, 2.0, 0.0])
CENSOR = np.array([0, 0, 0, 0, -1])


@pytest.fixture(scope="module")
def scores():
    patients = {"a": Record(Inputs(), {"H": series(Z, censor=CENSOR)})}
    cohort = stack(patients)
    priors = NONE | {"H0": normal(0.0, 1.0), "alpha": 0.0, "sd": 1.0}
    tree = result(linear_health, cohort, priors, {"H0": np.zeros((4, 2000, 1))})
    return score(linear_health, tree, cohort.record, key=jax.random.key(0), samples=8000).sel(channel="H")


def test_log_score_is_the_mean_log_density_and_counts_censored_values(scores):
    expected = np.mean([*stats.norm.logpdf(Z[:4]), stats.norm.logcdf(0.0)])
    assert float(scores["log_score"]) == pytest.approx(expected, rel=1e-9)
    assert int(scores["n"]) == 5


def test_coverage_is_the_share_inside_the_central_bands(scores):
    # The central 50 % of a standard normal is within 0.674, the central 90 % within 1.645.
    assert float(scores["coverage_50"]) == 2 / 4
    assert float(scores["coverage_90"]) == 3 / 4


def test_crps_and_absolute_error_are_those_of_a_normal(scores):
    assert float(scores["crps"]) == pytest.approx(np.mean(crps_of_a_normal(Z[:4], 0.0, 1.0)), abs=0.02)
    assert float(scores["mae"]) == pytest.approx(np.mean(np.abs(Z[:4])), abs=0.03)


def test_log_score_averages_densities_not_logs():
    cohort = stack({"a": Record(Inputs(), {"H": series([0.7])})})
    priors = NONE | {"H0": normal(0.0, 1.0), "alpha": 0.0, "sd": 1.0}
    start = np.array([[[-1.0], [0.0], [2.5]]])
    tree = result(linear_health, cohort, priors, {"H0": start})
    found = score(linear_health, tree, cohort.record, key=jax.random.key(0))
    exact = np.log(np.mean(stats.norm.pdf(0.7, start.ravel(), 1.0)))
    assert float(found["log_score"].sel(channel="H")) == pytest.approx(exact, rel=1e-9)


def test_channel_without_held_out_values_has_no_score():
    cohort = stack({"a": Record(Inputs(), {"H": series([0.7], mask=[False])})})
    priors = NONE | {"H0": normal(0.0, 1.0), "alpha": 0.0, "sd": 1.0}
    tree = result(linear_health, cohort, priors, {"H0": np.zeros((1, 3, 1))})
    found = score(linear_health, tree, cohort.record, key=jax.random.key(0)).sel(channel="H")
    assert float(found["n"]) == 0
    assert all(np.isnan(float(found[name])) for name in ("crps", "log_score", "coverage_50", "mae"))
