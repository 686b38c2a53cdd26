"""Recurrent networks over a sequence of visits: the plain cell, the LSTM and the GRU.

- plain (E8): h_t = f(W_h h_{t-1} + W_x X_t + b), f = tanh
- LSTM (E9): f_t, i_t, o_t = sigmoid(W X_t + U h_{t-1} + b), each with its own weights;
  c_t = f_t c_{t-1} + i_t tanh(W_c X_t + U_c h_{t-1} + b_c); h_t = o_t tanh(c_t).
  `equinox.nn.LSTMCell`, whose rows are in the order i, f, c, o
- GRU: `equinox.nn.GRUCell` (Cho et al. 2014, doi 10.3115/v1/D14-1179; the reset gate is applied after the
  product with h_{t-1})

E8 and E9 are of Vallée 2025, doi 10.2196/72411.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dtwin_jax.core.types import Mask
from dtwin_jax.neural.sequence import Sequence, feature_count, features


class PlainCell(eqx.Module):
    """h_t = tanh(W_h h_{t-1} + W_x X_t + b)."""

    weight_x: Float[Array, "width feature"]
    weight_h: Float[Array, "width width"]
    bias: Float[Array, " width"]

    def __init__(self, features: int, width: int, *, key: Any):
        """Weights uniform within 1 / sqrt(width), as in the cells of Equinox."""
        limit = 1.0 / math.sqrt(width)
        shapes = ((width, features), (width, width), (width,))
        drawn = [
            jax.random.uniform(k, shape, minval=-limit, maxval=limit)
            for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)
        ]
        self.weight_x, self.weight_h, self.bias = drawn

    def __call__(self, x: Float[Array, " feature"], h: Float[Array, " width"]) -> Any:
        """The next hidden state, (width,)."""
        return jnp.tanh(self.weight_h @ h + self.weight_x @ x + self.bias)


class Recurrent(eqx.Module):
    """A cell carried along the visits."""

    cell: PlainCell | eqx.nn.LSTMCell | eqx.nn.GRUCell

    def __call__(self, sequence: Sequence) -> Float[Array, "n width"]:
        """Hidden state after each visit."""
        return hidden_states(self.cell, features(sequence), sequence.mask)


def hidden_states(cell: Any, x: Float[Array, "n feature"], mask: Mask) -> Float[Array, "n width"]:
    """h_t of `cell` after each row of `x`, from rest; rows that `mask` leaves out change nothing."""

    def step(state: Any, row: Any) -> tuple[Any, Any]:
        x_t, there = row
        moved = cell(x_t, state)
        state = jax.tree.map(lambda new, old: jnp.where(there, new, old), moved, state)
        return state, state[0] if isinstance(state, tuple) else state

    return jax.lax.scan(step, _rest(cell, x.dtype), (x, jnp.asarray(mask)))[1]


def plain(channels: int, facts: int, width: int, key: Any) -> Recurrent:
    """A plain recurrent network (E8)."""
    return Recurrent(PlainCell(feature_count(channels, facts), width, key=key))


def lstm(channels: int, facts: int, width: int, key: Any) -> Recurrent:
    """An LSTM (E9)."""
    return Recurrent(eqx.nn.LSTMCell(feature_count(channels, facts), width, key=key))


def gru(channels: int, facts: int, width: int, key: Any) -> Recurrent:
    """A gated recurrent unit."""
    return Recurrent(eqx.nn.GRUCell(feature_count(channels, facts), width, key=key))


def _rest(cell: Any, dtype: Any) -> Any:
    if isinstance(cell, PlainCell):
        return jnp.zeros(len(cell.bias), dtype)
    h = jnp.zeros(cell.hidden_size, dtype)
    return (h, h) if isinstance(cell, eqx.nn.LSTMCell) else h
