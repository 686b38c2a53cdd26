"""Simulation-based calibration through `calibrate`: a correct posterior passes, a wrong one does not."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from lines import Inputs, Line

from dtwin_jax import plot
from dtwin_jax.core.record import Record, Series
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.refit import DRAWS, simulation_based_calibration

DESIGN = Record(Inputs(), {"y": Series(np.linspace(0.0, 4.0, 8))})
METHOD = Laplace(draws=DRAWS, fallback=None)


@dataclass(frozen=True)
class Sometimes(Line):
    """A line whose prediction fails where its slope is steep."""

    name: str = "sometimes"

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        y = p.level + p.slope * record.observations["y"].time
        return {"y": dist.Normal(jnp.where(p.slope > 2.0, jnp.nan, y), p.sd)}


@pytest.fixture(scope="module")
def checked():
    return simulation_based_calibration(
        Line(), DESIGN, key=jax.random.key(2), replicates=256, method=METHOD, priors={"sd": 0.3}
    )


def test_a_posterior_that_is_right_passes(checked):
    """With a known error the posterior of a line is near normal, and weighing corrects the rest."""
    assert checked.attrs["complaints"] == checked.attrs["failed"] == "[]"
    assert checked["quantity"].values.tolist() == ["level", "slope", "log_likelihood"]
    assert checked["rank"].shape == (3, 256) and checked.attrs["draws"] == DRAWS
    assert float(checked["p_value"].min()) > 1e-3
    np.testing.assert_allclose(checked["coverage"].sel(level=0.8), 0.8, atol=0.075)
    # Resampled in random order.
    assert np.all(np.abs(checked["autocorrelation"]) < 0.05)


def test_histograms_count_every_replicate_and_show_what_is_wrong(checked):
    fig = plot.ranks(checked)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    assert [int(np.sum(trace.y)) for trace in bars] == [256] * 3 and fig.layout.meta["notes"] == []
    wrong = checked.copy()
    wrong.attrs = checked.attrs | {"complaints": json.dumps(["level: ranks are not uniform, p = 1e-9"])}
    assert plot.ranks(wrong).layout.meta["notes"] == ["level: ranks are not uniform, p = 1e-9."]


def test_a_replicate_that_cannot_be_simulated_is_left_out_and_told():
    """The prior of the slope exceeds 2 in about 4 % of draws."""
    found = simulation_based_calibration(
        Sometimes(), DESIGN, key=jax.random.key(1), replicates=96, method=METHOD, priors={"sd": 0.3}
    )
    lost = json.loads(found.attrs["failed"])
    assert 0 < len(lost) < 20
    assert np.isnan(found["rank"].values[:, lost]).all()
    assert np.isfinite(np.delete(found["rank"].values, lost, axis=1)).all()
    said = json.loads(found.attrs["complaints"])
    assert said[-1].startswith(f"{len(lost)} of 96 replicates failed and are left out: {lost[0]}")
    assert int(found["counts"][0].sum()) == 96 - len(lost)


def test_what_cannot_be_checked_is_refused():
    how = {"key": jax.random.key(0), "replicates": 4}
    with pytest.raises(ValueError, match="give the population's predictor"):
        simulation_based_calibration(Population(Line(), ("level",)), DESIGN, **how)
    with pytest.raises(ValueError, match="found 4 chains"):
        simulation_based_calibration(Line(), DESIGN, method=Nuts(), **how)
    with pytest.raises(ValueError, match="replicates: found 4, expected 16 or more"):
        simulation_based_calibration(Line(), DESIGN, method=METHOD, **how)
