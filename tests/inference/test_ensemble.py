"""Forecasts of an ensemble against the closed form of a mixture of normals."""

import jax
import numpy as np
import optax
import pytest
from lines import TIME, cohort, line
from scipy import stats

from dtwin_jax.core.quantity import assign
from dtwin_jax.inference.ensemble import Bands, ensemble_forecast, train_ensemble

ROWS = np.array([[1.0, 2.0, 2.5, 4.0], [0.0, 1.5, 2.0, 3.0]])
MEMBERS = [assign(line.params(), {"level": level}) for level in (0.0, 1.0)]


def forecast(individual=(), draws=4000):
    return ensemble_forecast(
        line, MEMBERS, cohort(ROWS), key=jax.random.key(0), draws=draws, individual=individual
    )


def test_each_member_expects_its_own_course():
    expected = forecast(draws=2).expected["y"]
    assert expected.shape == (2, 2, 4)
    np.testing.assert_allclose(expected[:, 0], np.array([[0.0], [1.0]]) + 0.5 * TIME)


@pytest.mark.parametrize("spread", [0.0, 0.8])
def test_bands_hold_members_patients_and_the_error(spread):
    found = forecast({"level": spread} if spread else ())
    low, high = found.interval("y", 0.8)
    sd = np.hypot(0.3, spread)
    mixture = lambda x: 0.5 * (stats.norm.cdf(x, 0.0, sd) + stats.norm.cdf(x, 1.0, sd))  # noqa: E731
    np.testing.assert_allclose(mixture(low - 0.5 * TIME), 0.1, atol=0.02)
    np.testing.assert_allclose(mixture(high - 0.5 * TIME), 0.9, atol=0.02)


def test_draws_that_cannot_be_solved_are_told_and_left_out():
    drawn = np.random.default_rng(0).normal(size=(1000, 1, 1))
    torn = drawn.copy()
    torn[:100] = np.nan
    found = Bands({}, {"y": torn})
    assert found.unsolved == pytest.approx(0.1)
    np.testing.assert_array_equal(found.interval("y"), Bands({}, {"y": drawn[100:]}).interval("y"))


def test_members_are_trained_each_from_its_start(tmp_path):
    found = train_ensemble(
        line,
        cohort(ROWS),
        MEMBERS,
        key=jax.random.key(0),
        checkpoint=tmp_path / "kept",
        where=lambda p: p.level,
        optimiser=optax.sgd(0.0),
        steps=1,
    )
    assert [float(each.params.level) for each in found] == [0.0, 1.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.0", "kept.1"]
