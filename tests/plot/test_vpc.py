"""Predictive checks against percentiles in plain NumPy."""

import fitted_lines as fitted
import numpy as np
import pytest

from dtwin_jax import plot
from dtwin_jax.plot.vpc import compared, percentiles, time_bins

CUTS = np.array([-np.inf, 0.75, 1.5, 3.0, np.inf])


@pytest.fixture(scope="module")
def tree():
    return fitted.build()


def test_percentiles_are_those_of_plain_numpy(tree):
    table = percentiles(compared(tree, tree, "y"), CUTS)
    value, drawn = tree["observed_data"]["y"].values[:, 1], tree["predictions"]["y"].values[:, :, 1]
    np.testing.assert_allclose(table["measured"][0, 1], np.quantile(value, (0.05, 0.5, 0.95)))
    each = np.quantile(drawn, (0.05, 0.5, 0.95), axis=1)
    for name, share in (("low", 0.05), ("middle", 0.5), ("high", 0.95)):
        np.testing.assert_allclose(table[name][0, 1], np.quantile(each, share, axis=1))
    assert table["count"].values.tolist() == [[8, 8, 8, 7]]
    assert table["start"].values.tolist()[1:] == [0.75, 1.5, 3.0]


def test_a_percentile_among_values_below_a_limit_is_not_known(tree):
    """Of eight values the least is a limit: the 5 % percentile rests on it, the others do not."""
    measured = percentiles(compared(tree, tree, "y"), CUTS)["measured"].values[0, 0]
    assert np.isnan(measured[0]) and np.isfinite(measured[1:]).all()
    high = tree.copy(deep=True)
    high["observed_data"]["y"].values[0, 0] = 1e3  # a limit above all that was seen: nothing is known
    assert np.isnan(percentiles(compared(high, high, "y"), CUTS)["measured"].values[0, 0]).all()


def test_correction_takes_away_what_the_typical_prediction_knows(tree):
    """Doses differ tenfold and scale everything: corrected, all are as if on the median of both."""
    exact = tree.copy(deep=True)
    typical = exact["residuals"]["y_population"].values
    exact["observed_data"]["y"].values[:] = 1.2 * typical
    exact["observed_data"]["y_censor"].values[:] = 0
    fig = plot.predictive_check(exact, exact, "y", corrected=True, edges=CUTS[1:-1])
    lines = [trace for trace in fig.data if (trace.name or "").startswith("measured 9")]
    np.testing.assert_allclose(lines[0].y, 1.2 * np.median(typical, axis=0))
    bands = {trace.name: trace for trace in fig.data if trace.fill == "toself"}
    dose = np.asarray(tree["constant_data"]["dose"])[:, None]
    alike = tree["predictions"]["y"].values / dose * np.median(dose)
    each = np.quantile(np.quantile(alike[:, :, 2], 0.5, axis=1), (0.05, 0.95))
    median = bands["simulated 50% percentile"]
    np.testing.assert_allclose([median.y[2], median.y[-3]], each)
    assert fig.layout.yaxis.title.text == "y, corrected (mg/L)"


def test_where_the_typical_prediction_is_not_positive_nothing_is_corrected(tree):
    none = tree.copy(deep=True)
    none["residuals"]["y_population"].values[:, 0] = 0.0
    fig = plot.predictive_check(none, none, "y", corrected=True)
    assert fig.layout.meta["notes"] == [
        "8 measurements left out: the typical prediction there is not positive."
    ]


def test_calibrated_populations_are_corrected_by_the_median_of_what_new_patients_are_expected_to_have(tree):
    """As from `forecast_new`, which has `y_expected` and knows no typical patient."""
    result, replicates = tree.copy(deep=True), tree.copy(deep=True)
    del result["residuals"]
    with pytest.raises(ValueError, match="no typical prediction that is positive"):
        plot.predictive_check(result, replicates, "y", corrected=True)
    expected = np.stack([0.9, 1.0, 1.3])[:, None, None] * tree["residuals"]["y_population"].values
    whole = replicates["predictions"].dataset.isel(sample=slice(0, 3))
    replicates["predictions"] = whole.assign(y_expected=(("sample", *fitted.POINTS), expected))
    found = compared(result, replicates, "y")
    kept = np.isfinite(tree["observed_data"]["y"].values)
    np.testing.assert_allclose(found.typical, tree["residuals"]["y_population"].values[kept])


def test_a_check_of_nothing_is_an_empty_figure(tree):
    none = tree.copy(deep=True)
    none["predictions"]["y"].values[:] = np.nan
    fig = plot.predictive_check(none, none, "y")
    assert "cannot be simulated" in fig.layout.meta["notes"][0]
    assert all(len(trace.x) == 0 for trace in fig.data)


def test_strata_are_patients_apart(tree):
    fig = plot.predictive_check(tree, tree, "y", by="dose", edges=CUTS[1:-1])
    assert [a.text for a in fig.layout.annotations] == ["dose 1 (mg)", "dose 10 (mg)"]
    value = tree["observed_data"]["y"].values[1::2, 1]
    second = [t for t in fig.data if t.xaxis == "x2" and (t.name or "").startswith("measured 50")]
    assert second[0].y[1] == pytest.approx(np.median(value))
    many = compared(tree, tree, "y", by="age")
    assert many.strata == ["age up to 33.5", "age above 33.5"] and many.stratum.sum() == 4 * 4 - 1
    with pytest.raises(ValueError, match="has no 'sex'"):
        plot.predictive_check(tree, tree, "y", by="sex")


def test_a_patient_who_can_never_be_simulated_leaves_both_sides_by_name(tree):
    broken = tree.copy(deep=True)
    broken["predictions"]["y"].values[:, 1] = np.nan
    broken["predictions"]["y"].values[7, 0, 0] = np.inf
    found = compared(broken, broken, "y")
    assert len(found.time) == 8 * 4 - 1 - 4 and len(found.drawn) == 199
    assert found.notes == [
        "Left out, cannot be simulated: patient 2.",
        "1 of 200 simulated cohorts left out: a patient could not be solved.",
    ]
    assert np.isfinite(found.drawn).all()


def test_simulations_of_another_design_are_refused(tree):
    other = tree.copy(deep=True)
    other["predictions"] = other["predictions"].dataset.isel(y_point=slice(0, 2))
    with pytest.raises(ValueError, match="simulate with the same designs"):
        plot.predictive_check(tree, other, "y")


def test_stragglers_between_wide_gaps_are_no_bin():
    time = np.sort(np.concatenate([np.repeat([1.0, 2.0, 3.0, 5.0], 10), [3.9]]))
    counts = np.histogram(time, time_bins(time, 4).clip(0.0, 9.0))[0]
    assert counts.min() >= 5 and counts.sum() == 41
