"""The network of a residual: zero at the start, and constraints that hold whatever the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtwin_jax.neural.residual import Perceptron, positive, transfer

SIGNED = Perceptron(
    centre=(1.0, 0.0, 2.0), spread=(2.0, 1.0, 3.0), width=4, depth=2, outputs=2, rising=(0,), falling=(1,)
)


def wild(make, seed, size=2.0):
    """The network with any weights at all."""
    net = make()
    leaves, structure = jax.tree.flatten(net)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [jnp.asarray(size * rng.standard_normal(a.shape)) for a in leaves])


def test_network_is_zero_at_the_start_wherever_it_is_asked():
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)))
    np.testing.assert_array_equal(jax.vmap(SIGNED())(*rows.T), np.zeros((20, 2)))


def test_network_is_the_formula_of_a_perceptron():
    net = wild(Perceptron(centre=(1.0, 2.0), spread=(2.0, 4.0), width=3), seed=1)
    x = np.array([0.7, -1.5])
    first, last = net.layers
    hidden = np.tanh(np.asarray(first.weight) @ ((x - [1.0, 2.0]) / [2.0, 4.0]) + first.bias)
    expected = np.asarray(last.weight) @ hidden + last.bias
    np.testing.assert_allclose(net(*x), expected, rtol=1e-12)


@given(seed=st.integers(0, 1000))
def test_signed_features_move_no_output_the_wrong_way(seed):
    slope = jax.jacfwd(lambda x: wild(SIGNED, seed)(*x))(jnp.array([0.4, -0.3, 2.5]))
    assert np.all(slope[:, 0] >= 0) and np.all(slope[:, 1] <= 0)


def test_features_without_a_sign_are_free():
    slopes = [jax.grad(lambda z, s=s: wild(SIGNED, s)(0.4, -0.3, z)[0])(2.5) for s in range(20)]
    assert min(slopes) < 0 < max(slopes)


def test_signed_network_can_leave_zero():
    def gap(net):
        return jnp.sum((net(2.0, 0.0, 0.0) - 1.0) ** 2)

    slope = jax.grad(gap)(SIGNED())
    assert np.all(np.asarray(slope.layers[-1].bias) < 0)
    assert np.any(np.asarray(slope.layers[-1].weight) != 0)


@given(z=st.floats(-20, 20), rate=st.floats(1e-6, 1e6))
def test_positive_rate_stays_positive(z, rate):
    corrected = rate + float(positive(jnp.asarray(rate), jnp.asarray(z)))
    assert corrected >= 0
    assert corrected == pytest.approx(rate * np.exp(z), rel=1e-6, abs=1e-9 * rate)


def test_transfer_keeps_the_mass():
    moved = transfer(jnp.asarray(3.0), "gut", "blood", gain=0.5)
    # 3 of the gut's units leave; the blood counts in units twice as large.
    assert {name: float(value) for name, value in moved.items()} == {"gut": -3.0, "blood": 1.5}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spread": (1.0,)}, "2 centres and 1 spreads"),
        ({"spread": (1.0, 0.0)}, "must be positive"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"rising": (2,)}, "no feature at position 2"),
        ({"rising": (0,), "falling": (0,)}, "cannot be both"),
    ],
)
def test_impossible_networks_are_refused(change, said):
    with pytest.raises(ValueError, match=said):
        Perceptron(**({"centre": (0.0, 0.0), "spread": (1.0, 1.0)} | change))
