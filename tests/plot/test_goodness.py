"""Figures of an estimated population: they draw what the tree holds, and nothing that is not a number."""

import fitted_lines as fitted
import numpy as np
import pytest

from dtwin_jax import plot


@pytest.fixture(scope="module")
def tree():
    return fitted.build()


def title(fig, index):
    return fig.layout.annotations[index].text


def numbers(fig):
    """Every number that a trace would draw."""
    return np.concatenate([np.asarray(part, float).ravel() for t in fig.data for part in (t.x, t.y)])


def on(fig, index, mode="markers"):
    axis = "x" if index == 0 else f"x{index + 1}"
    return [trace for trace in fig.data if trace.xaxis == axis and mode in trace.mode]


def test_no_figure_draws_what_is_not_a_number(tree):
    figures = (
        plot.goodness_of_fit(tree, "y"),
        plot.individual_fits(tree, "y"),
        plot.effects(tree),
        plot.effects_by_fact(tree),
    )
    for fig in figures:
        assert np.isfinite(numbers(fig)).all()
        assert fig.layout.meta["notes"][0] == f"Not fitted, and left out: {fitted.LOST}."


def test_points_are_the_measurements_beside_their_predictions(tree):
    fig = plot.goodness_of_fit(tree, "y")
    heads = [title(fig, i) for i in range(10)]
    assert heads[:3] == ["observed and population", "observed and individual", "CWRES over time"]
    z = tree["residuals"]["y_npde"].values
    said = f" · mean {np.nanmean(z):.2f}, variance {np.nanvar(z):.2f}".replace("-", "−")
    assert heads[8].startswith("CWRES and a normal") and heads[9] == f"NPDE and a normal{said}"
    data, residuals = tree["observed_data"], tree["residuals"]
    (points,) = on(fig, 1)
    kept = (data["y_censor"] == 0).values & np.isfinite(data["y"].values)
    kept &= np.isfinite(residuals["y_individual"].values)
    np.testing.assert_array_equal(points.y, data["y"].values[kept])
    np.testing.assert_array_equal(points.x, residuals["y_individual"].values[kept])
    assert len(points.x) == 8 * 4 - 2 - 4 and fitted.LOST not in points.text
    assert "1 measurement at a limit of quantification left out." in fig.layout.meta["notes"]
    # Only what rests on the random effects is unknown of who was not fitted.
    assert fitted.LOST in on(fig, 0)[0].text


def test_who_could_not_be_simulated_is_named(tree):
    lost = tree.copy(deep=True)
    lost.attrs["unsimulated"] = '["patient 5"]'
    notes = plot.goodness_of_fit(lost, "y").layout.meta["notes"]
    assert notes[-1] == "No NPDE, a simulated data set failed: patient 5."


def test_residuals_are_drawn_beside_normal_quantiles(tree):
    (points,) = on(plot.goodness_of_fit(tree, "y"), 8)
    z = tree["residuals"]["y_cwres"].values
    np.testing.assert_array_equal(points.y, np.sort(z[np.isfinite(z)]))
    np.testing.assert_allclose(points.x, -np.asarray(points.x)[::-1], atol=1e-12)


def test_channels_without_normal_errors_have_the_figures_that_are_left(tree):
    less = tree.copy(deep=True)
    less["residuals"] = less["residuals"].dataset.drop_vars(["y_cwres", "y_iwres", "y_npde"])
    fig = plot.goodness_of_fit(less, "y")
    assert [a.text for a in fig.layout.annotations] == ["observed and population", "observed and individual"]


def test_individual_fits_have_both_courses_and_name_who_was_not_fitted(tree):
    fig = plot.individual_fits(tree, "y")
    assert title(fig, 2) == f"{fitted.LOST} · not fitted"
    assert len(on(fig, 2, "lines")) == 0 and len(on(fig, 2)) == 1
    course = {trace.name: trace for trace in on(fig, 0, "lines")}
    np.testing.assert_allclose(course["individual"].y, tree["courses"]["y_individual"][0])
    assert [trace.name for trace in on(fig, 0)] == ["limit", "measured"][::-1]
    few = plot.individual_fits(tree, "y", ["patient 2"])
    assert len(few.layout.annotations) == 1
    with pytest.raises(ValueError, match=r"no patient 'x'; there are patient 1"):
        plot.individual_fits(tree, "y", ["x"])


def test_effects_have_the_estimated_normal_and_their_shrinkage_in_the_title(tree):
    fig = plot.effects(tree)
    shrunk = float(tree["effects"]["shrinkage"][0])
    assert title(fig, 0) == f"level · shrinkage {shrunk:.0%}".replace("-", "−")
    curve = next(trace for trace in fig.data if trace.name == "estimated")
    assert max(curve.y) == pytest.approx(1.0 / (fitted.OMEGA["level"] * np.sqrt(2.0 * np.pi)))
    bars = next(trace for trace in fig.data if trace.type == "bar")
    assert np.sum(np.asarray(bars.y) * bars.width) == pytest.approx(1.0)


def test_effects_are_drawn_over_every_fact_that_differs(tree):
    fig = plot.effects_by_fact(tree)
    assert len(fig.layout.annotations) == 4
    (points,) = on(fig, 3)
    kept = np.isfinite(tree["effects"]["eta"].values[:, 1])
    np.testing.assert_array_equal(points.x, tree["constant_data"]["age"].values[kept])
    np.testing.assert_array_equal(points.y, tree["effects"]["eta"].values[kept, 1])
    alike = tree.copy(deep=True)
    alike["constant_data"] = alike["constant_data"].dataset.assign(
        dose=("patient", np.ones(8)), age=("patient", np.ones(8))
    )
    with pytest.raises(ValueError, match="no fact differs between the patients"):
        plot.effects_by_fact(alike)
