"""Causal attention over visits at irregular times.

E10 of Vallée 2025 (doi 10.2196/72411): A = softmax(Q K' / sqrt(d_k)) V, y_t = W_y A_t + b_y, one or more
times side by side: `equinox.nn.MultiheadAttention`. A visit attends to itself and to those before it. When it
was is told by sines and cosines of its time, as positions are in Vaswani et al. 2017 (arXiv 1706.03762); the
network is two blocks of that paper's kind, normalised before each part.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dtwin_jax.core.types import Mask, Vector
from dtwin_jax.neural.sequence import Sequence, feature_count, features

HEADS = 2
BLOCKS = 2
# Periods of the time encoding, in the record's unit of time: from a fraction of it to more than a follow-up.
SHORTEST, LONGEST = 0.5, 100.0


class Block(eqx.Module):
    """Attention, then one hidden layer, each added to what came in."""

    attention: eqx.nn.MultiheadAttention
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    norms: tuple[eqx.nn.LayerNorm, eqx.nn.LayerNorm]

    def __init__(self, width: int, *, key: Any):
        first, second, third = jax.random.split(key, 3)
        self.attention = eqx.nn.MultiheadAttention(HEADS, width, use_output_bias=True, key=first)
        self.inner = eqx.nn.Linear(width, 2 * width, key=second)
        self.outer = eqx.nn.Linear(2 * width, width, key=third)
        self.norms = (eqx.nn.LayerNorm(width), eqx.nn.LayerNorm(width))

    def __call__(self, h: Float[Array, "n width"], may_attend: Bool[Array, "n n"]) -> Float[Array, "n width"]:
        """The visits after the block; `may_attend` as of `causal_mask`."""
        normed = jax.vmap(self.norms[0])(h)
        h = h + self.attention(normed, normed, normed, may_attend)
        return h + jax.vmap(lambda row: self.outer(jnp.tanh(self.inner(self.norms[1](row)))))(h)


class Transformer(eqx.Module):
    """Blocks of causal attention over visits."""

    embedding: eqx.nn.Linear
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm

    def __init__(self, features: int, width: int, *, key: Any):
        if width % (2 * HEADS):
            raise ValueError(f"transformer: width must be a multiple of {2 * HEADS}, found {width}")
        first, *rest = jax.random.split(key, 1 + BLOCKS)
        self.embedding = eqx.nn.Linear(features, width, key=first)
        self.blocks = tuple(Block(width, key=k) for k in rest)
        self.norm = eqx.nn.LayerNorm(width)

    def __call__(self, sequence: Sequence) -> Float[Array, "n width"]:
        """State after each visit, from it and those before it."""
        h = jax.vmap(self.embedding)(features(sequence))
        h = h + time_encoding(sequence.time, h.shape[1]).astype(h.dtype)
        may_attend = causal_mask(sequence.mask)
        for block in self.blocks:
            h = block(h, may_attend)
        return jax.vmap(self.norm)(h)


def transformer(channels: int, facts: int, width: int, key: Any) -> Transformer:
    """A transformer with causal attention (E10)."""
    return Transformer(feature_count(channels, facts), width, key=key)


def time_encoding(time: Vector, width: int) -> Float[Array, "n width"]:
    """Sines, then cosines, of `time` over width / 2 periods, spaced evenly in their logarithm."""
    periods = jnp.geomspace(SHORTEST, LONGEST, width // 2, dtype=jnp.result_type(time))
    angle = 2.0 * math.pi * jnp.asarray(time)[:, None] / periods[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def causal_mask(mask: Mask) -> Bool[Array, "n n"]:
    """Whether visit i (row) may look at visit j (column): j is there, and is not after i."""
    n = len(mask)
    return jnp.tril(jnp.ones((n, n), bool)) & jnp.asarray(mask)[None]
