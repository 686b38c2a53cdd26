"""What every network over visits must do, whatever is inside."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from visits import CHANNELS, ENCODERS, FACTS, SCALING, VISITS, WIDTH, network, record, states

from dtwin_jax.neural.sequence import sequence_at

every = pytest.mark.parametrize("encoder", ENCODERS, ids=lambda encoder: encoder.__name__)


@every
def test_later_visits_do_not_change_earlier_states(encoder):
    net = network(encoder)
    before, after = states(net, record(), VISITS), states(net, record(later=8.0), VISITS)
    np.testing.assert_array_equal(before[:3], after[:3])
    assert np.max(np.abs(before[3] - after[3])) > 1e-4


@every
def test_padded_visits_add_nothing(encoder):
    net = network(encoder)
    padded = states(net, record(), np.append(VISITS, [3.0, 3.0]))
    np.testing.assert_allclose(padded[:4], states(net, record(), VISITS), rtol=1e-12, atol=1e-14)


@every
@pytest.mark.parametrize("number", [0.0, 1e9, np.nan])
def test_number_that_was_not_measured_does_not_leak(encoder, number):
    net = network(encoder)
    found = states(net, record(unmeasured=number), VISITS)
    np.testing.assert_array_equal(found, states(net, record(), VISITS))
    assert np.all(np.isfinite(found))


@every
def test_channel_that_a_patient_lacks_is_none_measured(encoder):
    net = network(encoder)
    lacking = record(channels=("albumin",))
    masked = eqx.tree_at(lambda r: r.past["bilirubin"].mask, record(), np.zeros(4, bool))
    np.testing.assert_array_equal(states(net, lacking, VISITS), states(net, masked, VISITS))


@every
def test_weights_and_states_may_be_of_single_precision(encoder):
    net = network(encoder)
    sequence = sequence_at(record(), VISITS, CHANNELS, FACTS, SCALING)
    single = jax.tree.map(lambda x: x.astype(jnp.float32) if eqx.is_inexact_array(x) else x, (net, sequence))
    found = single[0](single[1])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, states(net, record(), VISITS), atol=2e-5)


@every
def test_patients_side_by_side_equal_patients_one_by_one(encoder):
    net = network(encoder)
    two = [record(), record(later=4.0)]
    both = jax.tree.map(lambda *leaves: np.stack(leaves), *two)
    found = jax.vmap(lambda r: states(net, r, VISITS))(both)
    assert found.shape == (2, 4, WIDTH)
    for i, one in enumerate(two):
        np.testing.assert_allclose(found[i], states(net, one, VISITS), rtol=1e-12, atol=1e-13)


@every
def test_derivative_by_the_weights_equals_finite_differences(encoder):
    net = network(encoder)
    weights, rest = eqx.partition(net, eqx.is_inexact_array)
    keys = jax.random.split(jax.random.key(5), len(jax.tree.leaves(weights)))
    direction = jax.tree.unflatten(
        jax.tree.structure(weights),
        [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, jax.tree.leaves(weights), strict=True)],
    )

    @eqx.filter_jit
    def total(step):
        moved = jax.tree.map(lambda w, d: w + step * d, weights, direction)
        h = eqx.combine(moved, rest)(sequence_at(record(), VISITS, CHANNELS, FACTS, SCALING))
        return jnp.sum(h * jnp.cos(jnp.arange(h.size)).reshape(h.shape))

    slope = jax.grad(total)(jnp.asarray(0.0))
    numeric = (total(jnp.asarray(1e-6)) - total(jnp.asarray(-1e-6))) / 2e-6
    assert float(slope) == pytest.approx(float(numeric), rel=1e-6, abs=1e-8)
    assert abs(numeric) > 1e-3
