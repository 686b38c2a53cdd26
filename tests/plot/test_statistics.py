"""Posterior predictive statistics against plain NumPy."""

import numpy as np
import one_compartment_result as synthetic
import pytest

from dtwin_jax import plot
from dtwin_jax.plot.statistics import predictive_statistics

CHANNEL = "concentration"


@pytest.fixture(scope="module")
def result():
    return synthetic.build().result


def test_statistics_are_those_of_plain_numpy(result):
    found = predictive_statistics(result, CHANNEL)
    data = result["observed_data"]
    kept = np.isfinite(data[CHANNEL].values) & (data[f"{CHANNEL}_censor"].values == 0)
    kept[5 - 1] = False  # the patient whose draws failed
    value = data[CHANNEL].values[kept]
    drawn = result["posterior_predictive"][CHANNEL].values.reshape(-1, *kept.shape)[:, kept]
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(found["measured"], [value.mean(), value.std(), value.min(), value.max()])
    np.testing.assert_allclose(
        found["p_value"].sel(statistic="mean"), (drawn.mean(axis=1) > value.mean()).mean()
    )
    assert found.attrs["notes"][-1].endswith(f"left out, draws failed: {synthetic.BROKEN}.")


def test_what_a_model_does_not_reproduce_has_an_extreme_p_value(result):
    wide = result.copy(deep=True)
    centre = wide["posterior_predictive"][f"{CHANNEL}_expected"].values
    drawn = wide["posterior_predictive"][CHANNEL].values
    drawn[:] = centre + 5.0 * (drawn - centre)
    found = predictive_statistics(wide, CHANNEL)["p_value"]
    assert float(found.sel(statistic="standard deviation")) > 0.99
    good = predictive_statistics(result, CHANNEL)["p_value"]
    assert np.all((good > 0.02) & (good < 0.98))


def test_figure_has_the_measured_statistic_among_the_drawn(result):
    fig = plot.posterior_check(result, CHANNEL)
    lines = [trace for trace in fig.data if trace.name == "measured"]
    found = predictive_statistics(result, CHANNEL)
    assert [trace.x[0] for trace in lines] == found["measured"].values.tolist()
    assert fig.layout.annotations[0].text == f"mean · p = {float(found['p_value'][0]):.2f}"
    assert all(np.isfinite(np.asarray(trace.y, float)).all() for trace in fig.data)


def test_nothing_left_is_said_and_not_drawn(result):
    none = result.copy(deep=True)
    none["posterior_predictive"][CHANNEL].values[:] = np.nan
    with pytest.raises(ValueError, match="no measurement is left"):
        plot.posterior_check(none, CHANNEL)
