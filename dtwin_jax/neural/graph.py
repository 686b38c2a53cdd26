"""A network over the graph of clinical variables.

E6 of Vallée 2025 (doi 10.2196/72411): H(l+1) = sigma(D^-1 A H(l) W(l)), a row of H a variable, D the degrees
of A, the sums of its rows. The adjacency is given, or learned with the weights.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dtwin_jax.neural.sequence import Sequence

LAYERS = 2
# Value, whether seen, how long ago, and 1.
NODE_FEATURES = 4


class Given(eqx.Module):
    """An adjacency that is no weight, so that no optimiser moves or shrinks it."""

    rows: tuple[tuple[float, ...], ...] = eqx.field(static=True)

    def __call__(self) -> Float[Array, "node node"]:
        """The adjacency."""
        return jnp.asarray(self.rows)


class Learned(eqx.Module):
    """A positive adjacency, the softplus of what is trained."""

    logit: Float[Array, "node node"]

    def __call__(self) -> Float[Array, "node node"]:
        """The adjacency."""
        return jax.nn.softplus(self.logit)


class GraphNetwork(eqx.Module):
    """Layers of E6 over the variables at each visit, and one linear map of all of them to the state.

    It has no memory but what the sequence holds: the last value of each variable, and its age.
    """

    adjacency: Given | Learned
    weights: tuple[Float[Array, "_ _"], ...]
    readout: eqx.nn.Linear

    def __call__(self, sequence: Sequence) -> Float[Array, "n width"]:
        """State after each visit."""
        return jax.vmap(self._visit)(node_features(sequence))

    def _visit(self, h: Float[Array, "node feature"]) -> Float[Array, " width"]:
        adjacency = self.adjacency()
        for weight in self.weights:
            h = graph_layer(adjacency, h, weight)
        return jnp.tanh(self.readout(jnp.ravel(h)))


def graph_layer(
    adjacency: Float[Array, "node node"],
    h: Float[Array, "node in"],
    weight: Float[Array, "in out"],
) -> Float[Array, "node out"]:
    """sigma(D^-1 A H W), sigma the rectifier; a variable without neighbours gets 0."""
    adjacency = adjacency.astype(h.dtype)
    degree = jnp.sum(adjacency, axis=1)
    linked = degree > 0
    inverse = jnp.where(linked, 1.0 / jnp.where(linked, degree, 1.0), 0.0)
    return jax.nn.relu((inverse[:, None] * adjacency) @ h @ weight)


def node_features(sequence: Sequence) -> Float[Array, "n node feature"]:
    """A row a variable: channels, then facts, then time, each with value, whether seen, age, and 1."""
    n, dtype = len(sequence.time), sequence.value.dtype
    facts = jnp.broadcast_to(sequence.facts[None], (n, len(sequence.facts)))
    fixed = jnp.concatenate([facts, jnp.log1p(sequence.time)[:, None]], axis=1)
    one = jnp.ones_like(fixed)
    value = jnp.concatenate([sequence.value, fixed], axis=1)
    seen = jnp.concatenate([sequence.seen.astype(dtype), one], axis=1)
    age = jnp.concatenate([jnp.log1p(sequence.since), jnp.zeros_like(fixed)], axis=1)
    return jnp.stack([value, seen, age, jnp.ones_like(value)], axis=2)


def graph(channels: int, facts: int, width: int, key: Any) -> GraphNetwork:
    """A graph network with a learned adjacency, which starts with each variable mostly its own neighbour."""
    nodes = channels + facts + 1
    return _network(Learned(4.0 * jnp.eye(nodes) - 2.0), nodes, width, key)


def graph_over(adjacency: Any, width: int, key: Any) -> GraphNetwork:
    """A graph network over a given adjacency.

    Args:
        adjacency: (node, node) weights >= 0 in the order of `node_features`; put the diagonal in where a
            variable is to hear itself.
        width: of the state.
        key: random key.

    Raises:
        ValueError: a weight that is negative or no number.
    """
    found = np.asarray(adjacency, float)
    if not np.all(np.isfinite(found) & (found >= 0)):
        raise ValueError("graph_over: adjacency must be finite and not negative")
    rows = tuple(tuple(row) for row in found.tolist())
    return _network(Given(rows), len(rows), width, key)


def _network(adjacency: Given | Learned, nodes: int, width: int, key: Any) -> GraphNetwork:
    *keys, last = jax.random.split(key, LAYERS + 1)
    sizes = [NODE_FEATURES] + [width] * LAYERS
    weights = tuple(
        jax.random.normal(k, (a, b)) * math.sqrt(2.0 / a)
        for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    )
    return GraphNetwork(adjacency, weights, eqx.nn.Linear(nodes * width, width, key=last))
