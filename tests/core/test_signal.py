"""Signals against values worked by hand, NumPy's interpolation, and slow loops."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtwin_jax.core.rules import DURATION, MODELLED_DURATION, MODELLED_RATE, RATE, Rules, no_restarts
from dtwin_jax.core.signal import Doses, Sampled, Steps, as_modelled, delay, infuse, scale

sorted_times = st.lists(st.integers(0, 400), min_size=1, max_size=6, unique=True).map(
    lambda quarters: np.sort(np.array(quarters)) / 4.0
)


def evaluate(signal, times):
    return np.asarray(jax.jit(jax.vmap(signal))(jnp.asarray(times)))


@pytest.fixture
def doses():
    """100 over 2 h at 0, a bolus of 50 at 1, 30 over 3 h at 1."""
    return Doses([0.0, 1.0, 1.0], [100.0, 50.0, 30.0], [2.0, 0.0, 3.0])


@pytest.mark.parametrize(
    ("t", "rate"),
    [
        (-0.1, 0.0),
        (0.0, 50.0),
        (0.99, 50.0),
        (1.0, 60.0),
        (1.99, 60.0),
        (2.0, 10.0),
        (3.99, 10.0),
        (4.0, 0.0),
    ],
)
def test_rates_of_infusions_that_run_at_once_add(doses, t, rate):
    assert float(doses(t)) == pytest.approx(rate, rel=1e-15)


def test_doses_without_a_duration_are_boluses_and_have_no_rate():
    boluses = Doses([0.0, 12.0], [100.0, 50.0])
    assert evaluate(boluses, [0.0, 6.0, 12.0]).tolist() == [0.0, 0.0, 0.0]
    times, amounts = boluses.impulses()
    assert np.asarray(times).tolist() == [0.0, 12.0]
    assert np.asarray(amounts).tolist() == [100.0, 50.0]


def test_an_infusion_is_no_impulse(doses):
    assert np.asarray(doses.impulses()[1]).tolist() == [0.0, 50.0, 0.0]


def test_edges_of_doses_are_starts_and_ends(doses):
    assert sorted(np.asarray(doses.edges()).tolist()) == [0.0, 1.0, 1.0, 1.0, 2.0, 4.0]


@given(sorted_times, st.data())
def test_rate_between_edges_integrates_to_the_amount(times, data):
    amounts = np.array(data.draw(st.lists(st.floats(0.5, 100), min_size=len(times), max_size=len(times))))
    durations = np.array(data.draw(st.lists(st.floats(0.25, 50), min_size=len(times), max_size=len(times))))
    signal = Doses(times, amounts, durations)
    edges = np.unique(np.asarray(signal.edges()))
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    assert evaluate(signal, middle) @ width == pytest.approx(amounts.sum(), rel=1e-9)


def test_padding_of_doses_changes_nothing(doses):
    padded = Doses([0.0, 1.0, 1.0, 1.0, 1.0], [100.0, 50.0, 30.0, 0.0, 0.0], [2.0, 0.0, 3.0, 0.0, 0.0])
    times = np.linspace(-1.0, 5.0, 25)
    np.testing.assert_array_equal(evaluate(padded, times), evaluate(doses, times))


def test_the_rate_has_a_finite_gradient_beside_boluses(doses):
    gradient = jax.grad(lambda d: d(1.5))(jax.tree.map(jnp.asarray, doses))
    assert np.asarray(gradient.amount).tolist() == pytest.approx([0.5, 0.0, 1 / 3])
    # d/dT of amount / T.
    assert np.asarray(gradient.duration).tolist() == pytest.approx([-25.0, 0.0, -30.0 / 9.0])


@given(sorted_times, st.data())
def test_steps_hold_the_last_value(times, data):
    values = np.array(data.draw(st.lists(st.floats(-9, 9), min_size=len(times), max_size=len(times))))
    signal = Steps(times, values)
    for t in (-1.0, *times, *(times + 0.1)):
        given_so_far = [value for time, value in zip(times, values, strict=True) if time <= t]
        assert float(signal(t)) == (given_so_far[-1] if given_so_far else values[0])
    np.testing.assert_array_equal(signal.edges(), times)


@given(sorted_times, st.data())
def test_sampled_equals_numpy_interpolation(times, data):
    values = np.array(data.draw(st.lists(st.floats(-9, 9), min_size=len(times), max_size=len(times))))
    at = np.concatenate([[-1.0], times, times[:-1] + np.diff(times) / 3, [times[-1] + 1.0]])
    found = np.array([float(Sampled(times, values)(t)) for t in at])
    np.testing.assert_allclose(found, np.interp(at, times, values), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [Steps, Sampled])
def test_padding_with_the_last_time_and_value_changes_nothing(kind):
    plain = kind([0.0, 2.0, 3.0], [1.0, 5.0, 4.0])
    padded = kind([0.0, 2.0, 3.0, 3.0, 3.0], [1.0, 5.0, 4.0, 4.0, 4.0])
    times = np.linspace(-1.0, 4.0, 21)
    np.testing.assert_array_equal(evaluate(padded, times), evaluate(plain, times))


@pytest.mark.parametrize("t", [-1.0, 0.0, 1.0, 3.0, 4.0])
def test_padded_samples_have_finite_gradients(t):
    padded = Sampled(jnp.array([0.0, 2.0, 3.0, 3.0]), jnp.array([1.0, 5.0, 4.0, 4.0]))
    leaves = jax.tree.leaves(jax.grad(lambda signal: signal(t))(padded))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)


def test_samples_are_continuous_so_they_have_no_edges():
    assert Sampled([0.0, 1.0], [1.0, 2.0]).edges().shape == (0,)


@pytest.mark.parametrize(
    "signal",
    [
        Doses([0.0, 3.0], [10.0, 8.0], [2.0, 1.0]),
        Steps([0.0, 3.0], [1.0, 2.0]),
        Sampled([0.0, 3.0], [1.0, 2.0]),
    ],
    ids=["Doses", "Steps", "Sampled"],
)
def test_a_delayed_and_scaled_signal_is_the_signal_then_and_so_much(signal):
    times = np.linspace(-1.0, 6.0, 29)
    np.testing.assert_allclose(
        evaluate(delay(signal, 0.125), times + 0.125), evaluate(signal, times), rtol=1e-12
    )
    np.testing.assert_allclose(evaluate(scale(signal, 0.7), times), 0.7 * evaluate(signal, times), rtol=1e-14)


def test_a_constant_is_scaled_and_neither_delayed_nor_infused():
    assert float(scale(jnp.array(4.0), 0.5)) == 2.0
    assert float(delay(jnp.array(4.0), 1.0)) == 4.0
    assert float(infuse(jnp.array(4.0), 1.0)) == 4.0


def test_an_infused_bolus_keeps_its_amount():
    infused = infuse(Doses([0.0, 12.0], [100.0, 50.0]), 4.0)
    assert evaluate(infused, [0.0, 3.9, 4.0, 12.0]).tolist() == [25.0, 25.0, 0.0, 12.5]
    assert np.asarray(infused.impulses()[1]).tolist() == [0.0, 0.0]


def test_the_end_of_a_delayed_infusion_moves_one_to_one_with_the_lag():
    edges = jax.jacobian(lambda lag: delay(Doses([1.0], [10.0], [2.0]), lag).edges())(0.5)
    assert np.asarray(edges).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", [Doses, Steps, Sampled])
def test_times_and_values_of_different_length_are_refused(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .* has shape .*, time has"):
        kind([0.0, 1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize("kind", [Steps, Sampled])
def test_a_signal_that_is_held_needs_a_value(kind):
    with pytest.raises(ValueError, match=f"{kind.__name__}: .*not empty"):
        kind([], [])


def test_one_amount_and_duration_serve_all_doses():
    doses = Doses([0.0, 12.0, 24.0], 100.0, 2.0)
    assert doses.amount.tolist() == [100.0, 100.0, 100.0]
    assert doses.duration.tolist() == [2.0, 2.0, 2.0]


def test_all_doses_are_infused_or_only_those_that_a_table_leaves_to_the_model():
    held = np.array([DURATION, RATE, MODELLED_RATE, MODELLED_DURATION])
    rules = Rules(held, np.full(4, np.inf), no_restarts())
    doses = Doses(np.arange(4.0), [6.0] * 4, [0.0, 2.0, np.nan, np.nan], rules=rules)
    np.testing.assert_array_equal(infuse(doses, 5.0).duration, [5.0] * 4)
    stated = as_modelled(doses, duration=5.0, rate=3.0)
    np.testing.assert_array_equal(stated.duration, [0.0, 2.0, 2.0, 5.0])
    # A rate that is stated stays, and with half of the amount the infusion is half as long.
    np.testing.assert_array_equal(scale(stated, 0.5).duration, [0.0, 1.0, 1.0, 5.0])
    np.testing.assert_array_equal(as_modelled(scale(doses, 0.5), rate=3.0).duration[:3], [0.0, 1.0, 1.0])
    plain = Doses([0.0], [6.0])
    assert as_modelled(plain, duration=5.0).duration == [0.0] and as_modelled(4.0, rate=1.0) == 4.0


def test_doses_can_be_replaced_field_by_field():
    late = delay(Doses([0.0, 12.0], [3.0, 4.0], [0.0, 2.0]), 1.5)
    twice = replace(late, amount=2.0 * late.amount)
    assert twice.amount.tolist() == [6.0, 8.0]
    assert twice.time.tolist() == [1.5, 13.5] and twice.given.tolist() == [0.0, 12.0]
