"""From channels at their own times to one sequence."""

import numpy as np
from visits import CHANNELS, FACTS, SCALING, Inputs, record

from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.neural.sequence import (
    feature_count,
    features,
    scaling_of,
    sequence_at,
    unit_scaling,
    visit_times,
)

TIMES = np.array([-1.0, 0.4, 1.0, 1.2, 5.0, 5.0])


def test_every_time_has_what_was_last_measured_and_how_long_ago():
    given = Record(Inputs(), {}, record().known, t0=np.asarray(-1.0), past=record().past)
    found = sequence_at(given, TIMES, CHANNELS, FACTS, unit_scaling(2, 1))
    # The measurement at 0.4 was not made; one at the very time is known.
    bilirubin = [(0, 0, 0), (1.0, 1, 0.4), (1.0, 1, 1.0), (2.5, 1, 0.1), (0.7, 1, 2.0), (0.7, 1, 2.0)]
    albumin = [(0, 0, 0), (3.9, 1, 0.9), (3.1, 1, 0.0), (3.1, 1, 0.2), (3.1, 1, 4.0), (3.1, 1, 4.0)]
    expected = np.array([bilirubin, albumin]).transpose(2, 1, 0)
    for name, value in zip(("value", "seen", "since"), expected, strict=True):
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-12, err_msg=name)
    np.testing.assert_allclose(found.time, TIMES + 1.0)
    np.testing.assert_array_equal(found.mask, [True, True, True, True, True, False])
    np.testing.assert_allclose(found.facts, [61.0])
    # Never measured is the middle of what others have, told apart by `seen`.
    scaled = sequence_at(given, TIMES, CHANNELS, FACTS, SCALING)
    np.testing.assert_array_equal(scaled.value[0], [0.0, 0.0])
    np.testing.assert_allclose(scaled.value[1], [(1.0 - 2.0) / 1.5, (3.9 - 3.5) / 0.5], atol=1e-12)


def test_features_are_standardised_and_time_is_on_a_log_scale():
    sequence = sequence_at(record(), np.array([0.0, 1.1]), CHANNELS, FACTS, SCALING)
    seen = [(1.0 - 2.0) / 1.5, (3.9 - 3.5) / 0.5, 1, 1, 0, np.log(1.5), 1.1, 0, 0]
    later = [(2.5 - 2.0) / 1.5, (3.1 - 3.5) / 0.5, 1, 1, 0, np.log(1.1), 1.1, np.log(2.1), np.log(2.1)]
    found = features(sequence)
    np.testing.assert_allclose(found, [seen, later], atol=1e-12)
    assert found.shape[1] == feature_count(2, 1)


def test_scaling_is_of_what_was_measured_in_these_patients():
    other = Record(Inputs(), {}, {"age": np.asarray(41.0)}, past={"albumin": Series([0.0], [2.0])})
    cohort = stack({"a": record(unmeasured=1e9), "b": other}).record
    found = scaling_of(cohort, (*CHANNELS,), FACTS)
    np.testing.assert_allclose(found.centre, [1.4, 3.0])
    np.testing.assert_allclose(found.spread, [np.std([1.0, 2.5, 0.7]), np.std([3.9, 3.1, 2.0])])
    np.testing.assert_allclose((found.fact_centre[0], found.fact_spread[0]), (51.0, 10.0))


def test_what_does_not_vary_keeps_its_scale():
    same = Record(Inputs(), {}, {"age": np.asarray(0.1)}, past={"albumin": Series([0.0, 1.0], [0.3, 0.3])})
    found = scaling_of(stack({name: same for name in "abc"}).record, ("albumin",), ("age",))
    np.testing.assert_array_equal((found.spread[0], found.fact_spread[0]), (1.0, 1.0))


def test_visits_are_the_different_times_of_measurements():
    np.testing.assert_array_equal(visit_times(record().past), [-0.5, 0.0, 1.0, 1.1, 3.0])
    assert visit_times({}).shape == (0,)
