"""Packing: a round trip, whatever the shapes, under vmap too."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtwin_jax.core.quantity import var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.vector import packing


class Flat(eqx.Module):
    a: Scalar = var("1")
    b: Scalar = var("1")


class Mixed(eqx.Module):
    chain: jax.Array = var("1")
    a: Scalar = var("1")
    inner: Flat


FLAT = Flat(a=1.0, b=2.0)
MIXED = Mixed(chain=jnp.arange(3.0), a=4.0, inner=Flat(5.0, 6.0))


@pytest.mark.parametrize(
    ("struct", "wanted"), [(FLAT, [1, 2]), (MIXED, [0, 1, 2, 4, 5, 6])], ids=["scalars", "mixed"]
)
def test_round_trip_keeps_every_value_in_the_order_of_the_fields(struct, wanted):
    pack, unpack = packing(jax.eval_shape(lambda: struct))
    vector = pack(struct)
    np.testing.assert_array_equal(vector, wanted)
    assert eqx.tree_equal(unpack(vector), struct)


def test_states_with_vectors_pack_inside_compiled_code():
    moved = jax.jit(lambda struct: packing(struct)[0](struct))(MIXED)
    np.testing.assert_array_equal(moved, [0, 1, 2, 4, 5, 6])


def test_a_batch_of_vectors_unpacks_to_a_struct_of_batches():
    _, unpack = packing(MIXED)
    many = jax.vmap(unpack)(jnp.arange(12.0).reshape(2, 6))
    assert many.chain.shape == (2, 3) and many.a.shape == (2,)
    np.testing.assert_array_equal(many.inner.b, [5.0, 11.0])
