"""What a user is told of a calibration; source of truth: draws made to be good or bad."""

import json

import numpy as np
import pytest
import xarray as xr

from dtwin_jax.inference.diagnostics import complaints, summary


def tree(draws, diverging=None, failed=None):
    chains, count = next(iter(draws.values())).shape[:2]
    dims = {2: ("chain", "draw"), 3: ("chain", "draw", "patient")}
    posterior = {name: (dims[x.ndim], x) for name, x in draws.items()}
    stats = {
        "diverging": (("chain", "draw"), np.zeros((chains, count), bool) if diverging is None else diverging)
    }
    made = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, {"patient": ["a", "b"]}),
            "sample_stats": xr.Dataset(stats),
        }
    )
    made.attrs = {"failed": json.dumps(failed or {})}
    return made


@pytest.fixture
def good():
    return np.random.default_rng(0).normal(size=(4, 1000))


def test_nothing_is_said_of_independent_draws(good):
    assert complaints(tree({"CL_pop": good})) == []


def test_summary_has_the_moments_of_the_draws(good):
    row = summary(tree({"CL_pop": good})).sel(variable="CL_pop")
    assert float(row["mean"]) == pytest.approx(good.mean())
    assert float(row["sd"]) == pytest.approx(good.std(ddof=1))
    assert float(row["q95"]) == pytest.approx(np.quantile(good, 0.95))


def test_chains_apart_are_named(good):
    (said,) = complaints(tree({"CL_pop": good, "V_pop": good + np.arange(4)[:, None]}))
    assert said.startswith("V_pop: R-hat")


def test_few_draws_are_named(good):
    (said,) = complaints(tree({"CL_pop": good[:, :50]}))
    assert said.startswith("CL_pop: effective sample size")


@pytest.mark.parametrize("bad", [np.full((4, 1000), 2.0), np.full((4, 1000), np.nan)])
def test_draws_that_say_nothing_are_named(good, bad):
    (said,) = complaints(tree({"CL_pop": good, "V_pop": bad}))
    assert said.startswith("V_pop: its draws do not move")


def test_a_single_chain_is_told(good):
    assert any("one chain" in said for said in complaints(tree({"CL_pop": good[:1]})))


def test_an_individual_parameter_is_named_with_its_patient(good):
    apart = np.stack([good, good + np.arange(4)[:, None]], axis=-1)
    (said,) = complaints(tree({"CL": apart}))
    assert said.startswith("CL[b]: R-hat")


def test_divergences_and_failing_patients_are_counted(good):
    diverging = np.zeros((4, 1000), bool)
    diverging[0, :3] = True
    said = complaints(tree({"CL_pop": good}, diverging, {"b": 0.25}))
    assert said[0].startswith("3 of 4000 draws diverged")
    assert said[1] == "patient b: the model cannot explain a measurement in 25% of the draws"
