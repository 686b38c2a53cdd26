"""What the network does and where it was trained, against closed forms of a bolus."""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from saturable import mechanism, patients, saturable, start

from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.region import Region, RegionWarning, ResidualSize, region_of, residual_share
from dtwin_jax.models.one_compartment import Inputs

COHORT = patients([100.0, 400.0])


def constant(share):
    """Parameters with which the network takes so many times the rate constant more, /h."""
    p = start(saturable)
    bias = jnp.asarray([10.0 * share * float(p.CL / p.V)])
    return eqx.tree_at(lambda q: q.net.layers[-1].bias, p, bias)


def bolus(dose, until=24.0):
    return Record(Inputs(iv=Doses([0.0], [dose])), {"concentration": Series([until])})


def test_network_that_says_nothing_has_no_share():
    assert residual_share(saturable, start(saturable), COHORT) == {"central": 0.0}


def test_share_is_that_of_the_squared_rates():
    # The network's rate is everywhere half of the mechanism's.
    assert residual_share(saturable, constant(0.5), COHORT)["central"] == pytest.approx(0.25 / 1.25)


def test_share_takes_what_is_known_and_what_is_individual():
    p = constant(0.5)
    known = replace(
        COHORT, record=eqx.tree_at(lambda r: r.known, COHORT.record, {"CL": np.array([4.0, 4.0])})
    )
    found = residual_share(saturable, p, known)["central"]
    # Twice the clearance: the network's constant is a quarter of the mechanism's.
    assert found == pytest.approx(0.0625 / 1.0625)
    assert residual_share(saturable, p, COHORT, individual={"CL": np.array([4.0, 4.0])})["central"] == found


def test_penalty_is_the_mean_square_of_the_rate():
    p = constant(0.5)
    rate, k = 0.5 * 2.0 / 20.0, 1.5 * 2.0 / 20.0
    t = np.linspace(0.0, 24.0, 20)
    expected = 3.0 * np.mean((rate * 100.0 * np.exp(-k * t) / 7.0) ** 2)
    penalty = ResidualSize(saturable, (("central", 7.0),), weight=3.0)
    assert float(penalty(p, COHORT.at(0))) == pytest.approx(expected, rel=1e-3)
    assert penalty == ResidualSize(saturable, (("central", 7.0),), weight=3.0)


@pytest.fixture(scope="module")
def region():
    return region_of(saturable, start(saturable), COHORT)


def test_region_is_the_range_of_the_courses(region):
    assert region.names == ("central", "depot")
    np.testing.assert_allclose(region.low, [100.0 * np.exp(-0.1 * 24.0), 0.0], rtol=1e-3, atol=1e-9)
    np.testing.assert_allclose(region.high, [400.0, 0.0], rtol=1e-6, atol=1e-9)


def test_patients_trained_on_are_inside(region):
    np.testing.assert_array_equal(region.outside(saturable, start(saturable), COHORT), [0.0, 0.0])


def test_forecast_beyond_the_training_warns_with_its_share(region):
    dose = 800.0
    with pytest.warns(RegionWarning, match="central leaves 9.07 to 400"):
        share = region.outside(saturable, start(saturable), bolus(dose))
    # It is above 400 mg until half is eliminated, at log(2) / 0.1 h, of 24.
    assert share[0] == pytest.approx(np.mean(np.linspace(0, 24, 50) < np.log(2) / 0.1), abs=1e-9)


def test_values_in_range_that_never_came_together_are_outside():
    # Two states on a line: the corners of their ranges are far from it.
    ones = np.ones(2)
    precision = np.linalg.inv(np.array([[1.0, 0.999], [0.999, 1.0]]))
    found = Region(("a", "b"), 0 * ones, ones, 0.5 * ones, 0.3 * ones, precision, 2.0)
    assert found.contains(np.array([0.6, 0.6]))
    assert not found.contains(np.array([0.2, 0.8]))


def test_model_without_a_network_has_no_share():
    with pytest.raises(ValueError, match="is no hybrid"):
        residual_share(mechanism, start(mechanism), COHORT)
