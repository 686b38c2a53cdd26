"""Figures: what they draw is checked against plain NumPy, and what they must not draw."""

import numpy as np
import one_compartment_result as synthetic
import pytest

from dtwin_jax import plot
from dtwin_jax.plot.checks import quantile_residuals
from dtwin_jax.plot.theme import band
from dtwin_jax.plot.vpc import time_bins

CHANNEL = "concentration"


@pytest.fixture(scope="module")
def data():
    return synthetic.build()


def named(fig, start):
    return [trace for trace in fig.data if (trace.name or "").startswith(start)]


def test_band_is_the_central_interval_of_the_draws():
    draws = np.random.default_rng(0).normal(size=(500, 4))
    found = band(draws, 0.9)
    np.testing.assert_allclose(found.lower, np.quantile(draws, 0.05, axis=0))
    np.testing.assert_allclose(found.median, np.median(draws, axis=0))
    np.testing.assert_allclose(found.upper, np.quantile(draws, 0.95, axis=0))


def test_band_is_a_gap_only_where_its_edge_could_be_among_the_failed():
    draws = np.random.default_rng(0).normal(size=(100, 3))
    draws[:5, 1] = np.nan
    draws[:6, 2] = np.inf
    found = band(draws, 0.9)
    assert found.failed.tolist() == [0, 5, 6]
    assert np.isfinite(found.lower).tolist() == [True, True, False]
    np.testing.assert_allclose(found.median[1], np.median(draws[5:, 1]))


def test_patient_fit_draws_measurements_limits_doses_and_forecast(data):
    fig = plot.patient_fit(data.result, data.curves, synthetic.ODD, CHANNEL, data.forecast)
    assert len(named(fig, "measured")[0].x) == 11
    below = named(fig, "below this limit")[0]
    assert below.y[0] == synthetic.LIMIT and below.marker.symbol == "triangle-down-open"
    last = data.result["observed_data"][f"{CHANNEL}_time"].values[0].max()
    assert min(named(fig, "forecast: median")[0].x) >= last
    doses = np.unique(np.concatenate([trace.x for trace in named(fig, "oral")]).astype(float))
    planned = [*synthetic.DOSE_TIMES, *synthetic.PLAN_TIMES]
    np.testing.assert_allclose(doses[np.isfinite(doses)], planned)
    assert fig.layout.xaxis.title.text == "time (h)" and fig.layout.yaxis.title.text == f"{CHANNEL} (mg/L)"
    assert fig.layout.title.text.startswith("&lt;b&gt;Zoë &amp; 患者")


def test_patient_fit_median_is_the_median_of_expected_courses(data):
    fig = plot.patient_fit(data.result, data.curves, "patient 2", CHANNEL)
    expected = data.curves["predictions"][f"{CHANNEL}_expected"].sel(patient="patient 2").values
    np.testing.assert_allclose(named(fig, "fit: median")[0].y, np.median(expected, axis=0))


def test_a_patient_that_failed_has_measurements_a_note_and_no_curve(data):
    fig = plot.patient_fit(data.result, data.curves, synthetic.BROKEN, CHANNEL, data.forecast)
    assert named(fig, "measured")
    assert not named(fig, "fit") and not named(fig, "forecast")
    assert "could not be solved in any of 200 draws" in fig.layout.title.subtitle.text


def test_failed_draws_are_a_stated_gap_and_not_a_line(data):
    fig = plot.patient_fit(data.result, data.curves, synthetic.FRAIL, CHANNEL, data.forecast)
    times = data.forecast["predictions"][f"{CHANNEL}_time"].values[0]
    median = named(fig, "forecast: median")[0]
    lost = np.asarray(median.x) >= times[50]
    assert np.isnan(median.y[lost]).all() and np.isfinite(median.y[~lost]).all() and not median.connectgaps
    for part in (trace for trace in named(fig, "forecast") if trace.fill == "toself"):
        assert np.nanmax(part.x) < times[50]
    assert fig.layout.meta["notes"] == [
        f"Forecast: up to 20 of 200 draws failed at {len(times) - 50} times; all left as a gap."
    ]


def test_a_hole_amid_a_course_parts_the_band(data):
    curves = data.curves.copy(deep=True)
    curves["predictions"][CHANNEL].values[:, 1, 40:50] = np.nan
    fig = plot.patient_fit(data.result, curves, "patient 2", CHANNEL)
    outline = next(trace for trace in named(fig, "fit") if trace.fill == "toself")
    assert np.isnan(outline.x).sum() == 1


def test_unknown_names_are_told_with_those_that_exist(data):
    with pytest.raises(ValueError, match=r"no patient 'x'; there are .*patient 2"):
        plot.patient_fit(data.result, data.curves, "x", CHANNEL)
    with pytest.raises(ValueError, match=r"has no 'Cp'; it has .*concentration"):
        plot.residuals(data.result, "Cp")


def test_summary_agrees_with_numpy(data):
    row = next(row for row in plot.summarise(data.result) if row.name == "CL_pop")
    draws = data.result["posterior"]["CL_pop"].values
    assert row.unit == "L/h" and row.failed == 0
    np.testing.assert_allclose((row.mean, row.sd), (draws.mean(), draws.std()))
    np.testing.assert_allclose((row.lower, row.median, row.upper), np.quantile(draws, (0.05, 0.5, 0.95)))
    assert 0.98 < row.r_hat < 1.05 and 200 < row.ess_bulk < 900


def test_summary_of_draws_that_are_not_finite_is_not_a_number(data):
    result = data.result.copy(deep=True)
    result["posterior"]["cv"].values[0, :3] = np.nan
    row = next(row for row in plot.summarise(result, ["cv"]))
    assert row.failed == 3 and np.isnan(row.mean) and np.isnan(row.r_hat)
    assert "cv: 3 draws" in plot.posterior(result).layout.title.subtitle.text


def test_summary_finds_chains_that_disagree(data):
    result = data.result.copy(deep=True)
    result["posterior"]["cv"].values[1] += 1.0
    rows = {row.name: row for row in plot.summarise(result)}
    assert rows["cv"].r_hat > 1.5 > rows["CL_pop"].r_hat
    assert plot.convergence(result).layout.annotations[0].text.startswith("cv<br>")


def test_posterior_density_integrates_to_one_and_shows_the_prior(data):
    fig = plot.posterior(data.result, ["CL_pop"])
    pooled = named(fig, "all chains")[0]
    np.testing.assert_allclose(np.trapezoid(pooled.y, pooled.x), 1.0, rtol=0.02)
    assert named(fig, "prior") and len(named(fig, "chain ")) == 2


def test_pairs_print_the_correlation_of_logarithms(data):
    fig = plot.pairs(data.result, ["CL_pop", "V_pop"])
    draws = [np.log(data.result["posterior"][name].values.ravel()) for name in ("CL_pop", "V_pop")]
    texts = [note.text for note in fig.layout.annotations]
    assert f"{np.corrcoef(draws)[0, 1]:+.2f}" in texts and "<b>log<br>CL_pop</b>" in texts


def test_pairs_within_patients_know_no_difference_between_patients(data):
    fig = plot.pairs(data.result, ["CL", "V"])
    values = [np.log(data.result["posterior"][name].values) for name in ("CL", "V")]
    centred = [(part - part.mean(axis=(0, 1))).ravel() for part in values]
    expected = f"{np.corrcoef(centred)[0, 1]:+.2f}".replace("-", "−")
    assert expected in [note.text for note in fig.layout.annotations]


def test_variability_leaves_out_who_was_not_solved(data):
    fig = plot.variability(data.result)
    medians = next(trace for trace in fig.data if trace.mode == "markers")
    assert np.isnan(np.asarray(medians.x)).sum() == 1
    assert fig.layout.meta["notes"] == [f"Left out, not solved: {synthetic.BROKEN}."]
    assert "&lt;b&gt;Zoë &amp; 患者" in fig.layout.yaxis.ticktext


def test_quantile_residuals_are_standardised_residuals_when_noise_is_normal(data):
    result = data.result.copy(deep=True)
    rng = np.random.default_rng(1)
    drawn = result["posterior_predictive"][CHANNEL]
    drawn.values[:] = 2.0 + 0.5 * rng.normal(size=drawn.shape)
    result["posterior_predictive"][f"{CHANNEL}_expected"].values[:] = 2.0
    found = quantile_residuals(result, CHANNEL)
    exact = (found.observed - 2.0) / 0.5
    inner = np.abs(exact) < 1.5
    np.testing.assert_allclose(found.z[inner], exact[inner], atol=0.35)
    assert len(found.z) == 6 * 12 - 3 - 1 and found.notes[0].startswith("1 measurement at a limit")


def test_residuals_state_the_patients_whose_draws_failed(data):
    fig = plot.residuals(data.result, CHANNEL)
    assert fig.layout.meta["notes"][1] == f"12 measurements left out, draws failed: {synthetic.BROKEN}."
    assert all(synthetic.BROKEN not in (trace.text or ()) for trace in fig.data)


def test_predictive_check_draws_percentiles_of_what_was_measured(data):
    fig = plot.predictive_check(data.result, data.replicates, CHANNEL)
    observed = data.result["observed_data"]
    value, time = observed[CHANNEL].values, observed[f"{CHANNEL}_time"].values
    first = np.isfinite(value) & (time < time_bins(time[np.isfinite(value)])[1])
    median = named(fig, "measured 50%")[0]
    np.testing.assert_allclose(median.y[0], np.median(value[first]))
    assert fig.layout.meta["notes"] == ["1 of 150 simulated cohorts left out: a patient could not be solved."]


def test_predictive_check_leaves_a_gap_where_a_percentile_is_below_the_limit(data):
    result = data.result.copy(deep=True)
    first = result["observed_data"][f"{CHANNEL}_time"].values < 0.75
    result["observed_data"][f"{CHANNEL}_censor"].values[first] = -1
    fig = plot.predictive_check(result, data.replicates, CHANNEL)
    for share in ("5%", "50%", "95%"):
        assert np.isnan(named(fig, f"measured {share}")[0].y[0])


def test_time_bins_keep_measurements_of_one_planned_time_together():
    rng = np.random.default_rng(0)
    planned = np.array([1.0, 2.0, 4.0, 8.0, 24.0])
    time = (planned + rng.uniform(-0.3, 0.3, (40, 5))).ravel()
    which = np.digitize(time, time_bins(time, 5))
    assert all(len(set(part)) == 1 for part in which.reshape(40, 5).T)
