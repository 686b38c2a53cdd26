"""A small network for the part of a drift that the mechanism lacks, with constraints by construction.

Its last layer starts at zero, so that a hybrid with it starts as the mechanism itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Network(eqx.Module):
    """Layers of tanh between an input that is scaled and a last layer that starts at zero.

    Attributes:
        layers: hidden ones and the last.
        centre: of each feature, in its unit.
        spread: of each feature, in its unit, > 0.
        signs: of each feature 1 where no output may fall as it grows, -1 where none may rise, 0 where free.
    """

    layers: tuple[eqx.nn.Linear, ...]
    centre: tuple[float, ...] = eqx.field(static=True)
    spread: tuple[float, ...] = eqx.field(static=True)
    signs: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, *features: Any) -> Float[Array, " output"]:
        """The outputs, (output,), at these features, each a number."""
        h = self.hidden(*features)
        last: Any = self.layers[-1]
        weight = jnp.maximum(last.weight, 0.0) if any(self.signs) else last.weight
        return weight @ h + last.bias

    def hidden(self, *features: Any) -> Float[Array, " width"]:
        """What the last layer is linear in, (width,)."""
        x = jnp.stack([jnp.asarray(feature, float) for feature in features])
        h = (x - jnp.asarray(self.centre)) / jnp.asarray(self.spread)
        for i, layer in enumerate(self.layers[:-1]):
            h = jnp.tanh(_signed(layer.weight, self.signs, first=i == 0) @ h + layer.bias)
        return h


def _signed(weight: Any, signs: tuple[int, ...], *, first: bool) -> Any:
    """The weights of a hidden layer such that no path from a signed feature changes its sign.

    A sum of rising functions rises, and a rising function of it: non-negative weights suffice (Sill 1997,
    Monotonic networks, NIPS 10).
    """
    if not any(signs):
        return weight
    size = jax.nn.softplus(weight)
    if not first:
        return size / weight.shape[1]
    sign = jnp.asarray(signs, weight.dtype)[None, :]
    return jnp.where(sign == 0, weight, sign * size)


@dataclass(frozen=True)
class Perceptron:
    """Makes a `Network`: what `hybrid` takes, and equal by content.

    Attributes:
        centre: of each feature, in its unit: one number a feature, which says how many there are.
        spread: of each feature, in its unit.
        outputs: how many.
        width: of each hidden layer.
        depth: hidden layers.
        rising: positions of features with which no output may fall.
        falling: positions of features with which no output may rise.
        seed: of the weights at the start; members of an ensemble differ in it.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    outputs: int = 1
    width: int = 8
    depth: int = 1
    rising: tuple[int, ...] = ()
    falling: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        features = len(self.centre)
        if len(self.spread) != features or not features:
            raise ValueError(f"Perceptron: {features} centres and {len(self.spread)} spreads; one of each")
        if not all(spread > 0 for spread in self.spread):
            raise ValueError(f"Perceptron: every spread must be positive, found {self.spread}")
        if self.depth < 1:
            raise ValueError(f"Perceptron: depth must be at least 1, found {self.depth}")
        if wrong := [i for i in (*self.rising, *self.falling) if not 0 <= i < features]:
            raise ValueError(f"Perceptron: no feature at position {wrong[0]}; there are {features}")
        if both := sorted(set(self.rising) & set(self.falling)):
            raise ValueError(f"Perceptron: feature {both[0]} cannot be both rising and falling")

    def __call__(self) -> Network:
        """The network at its start: 0 everywhere."""
        features = len(self.centre)
        sizes = [features] + [self.width] * self.depth + [self.outputs]
        keys = jax.random.split(jax.random.key(self.seed), len(sizes) - 1)
        layers = [
            eqx.nn.Linear(before, after, key=key)
            for before, after, key in zip(sizes[:-1], sizes[1:], keys, strict=True)
        ]
        layers[-1] = jax.tree.map(jnp.zeros_like, layers[-1])
        signs = tuple(1 if i in self.rising else -1 if i in self.falling else 0 for i in range(features))
        return Network(tuple(layers), tuple(self.centre), tuple(self.spread), signs)


def positive(rate: Any, z: Any) -> Any:
    """The correction that turns a positive `rate` into `rate * exp(z)`, which stays positive; 0 at z = 0."""
    return rate * jnp.expm1(z)


def transfer(flux: Any, source: str, target: str, *, gain: float = 1.0) -> Mapping[str, Any]:
    """Corrections of two states by a flux between them: what leaves one enters the other.

    Args:
        flux: amount per time that leaves `source`; negative where it flows back.
        source: name of a state.
        target: name of another.
        gain: units of `target` in one of `source` (a ratio of volumes, where states are concentrations).
    """
    return {source: -flux, target: gain * flux}
