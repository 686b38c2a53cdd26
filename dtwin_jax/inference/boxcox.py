"""Random effects that are skewed: a normal effect, transformed by Box and Cox.

On its unbounded scale a parameter moves by (exp(lambda eta) - 1) / lambda. With a shape lambda above 0 the
far effects are those that raise it, below 0 those that lower it; at 0 the effect is eta itself. The typical
value is the median either way.

Source: Petersson, Hanze, Savic & Karlsson 2009, doi 10.1007/s11095-009-9931-1.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from dtwin_jax.core.prior import Prior, normal, prior_from_dict

DEFAULT_SHAPE = normal(0.0, 1.0)
# Of the powers up to 1 of exp(x) - 1, over x: enough for derivatives in float64.
_SERIES = [1.0 / math.factorial(n + 1) for n in range(21)]
# No shape times a move is lower than this, where -1 is out of reach of any effect.
_LOWEST = -1.0 + 1e-6

Shapes = tuple[tuple[str, Prior | float], ...]


def shapes_of(given: Any) -> Shapes:
    """Names, or name -> a prior or a number, as pairs."""
    if isinstance(given, str):
        raise ValueError(f"boxcox: expected names or a mapping, found the text {given!r}")
    pairs = given.items() if isinstance(given, Mapping) else given
    named = [(one, DEFAULT_SHAPE) if isinstance(one, str) else tuple(one) for one in pairs]
    found = dict(named)
    if len(found) < len(named):
        raise ValueError(f"boxcox: {', '.join(name for name, _ in named)}: each may be there once")
    found = {name: one if isinstance(one, Prior) else float(one) for name, one in found.items()}
    if wrong := [name for name, one in found.items() if isinstance(one, float) and not math.isfinite(one)]:
        raise ValueError(f"boxcox: the shape of {wrong[0]} is {found[wrong[0]]}, expected a finite number")
    return tuple(found.items())


def label(name: str) -> str:
    """What the shape of the effects on a parameter is called in results."""
    return f"shape_{name}"


def transformed(shape: Any, eta: Any) -> Any:
    """What an effect moves a parameter by on its unbounded scale; smooth in both where the shape is 0."""
    return eta * _ratio(shape * eta)


def moved(shapes: Shapes, effects: tuple[str, ...], values: Mapping[str, Any], eta: Any) -> Any:
    """Effects (..., effect), of which those that have a shape are transformed.

    Args:
        shapes: of the parameters whose effects are transformed.
        effects: of each effect, the parameter that it moves.
        values: label -> the shapes that are estimated.
        eta: the normal effects.
    """
    for name, given in shapes:
        i = effects.index(name)
        eta = eta.at[..., i].set(transformed(values.get(label(name), given), eta[..., i]))
    return eta


def restored(shapes: Shapes, effects: tuple[str, ...], values: Mapping[str, Any], moves: Any) -> Any:
    """The normal effects of which `moved` made `moves`; of a move too far down, one that is far enough."""
    for name, given in shapes:
        i, shape = effects.index(name), jnp.asarray(values.get(label(name), given))
        wanted = shape * moves[..., i]
        low, none = wanted < _LOWEST, jnp.abs(wanted) < 1e-8
        x = jnp.where(low, _LOWEST, wanted)
        ratio = jnp.where(none, 1.0 - x / 2.0, jnp.log1p(x) / jnp.where(none, 1.0, x))
        moves = moves.at[..., i].set(jnp.where(low, x / jnp.where(low, shape, 1.0), moves[..., i]) * ratio)
    return moves


def log_stretch(shapes: Shapes, effects: tuple[str, ...], values: Mapping[str, Any], eta: Any) -> Any:
    """The log of how fast each move grows with its effect (..., effect)."""
    found = jnp.zeros_like(eta)
    for name, given in shapes:
        i = effects.index(name)
        found = found.at[..., i].set(values.get(label(name), given) * eta[..., i])
    return found


def _ratio(x: Any) -> Any:
    """(exp(x) - 1) / x."""
    near = jnp.abs(x) < 1.0
    small, large = jnp.where(near, x, 0.0), jnp.where(near, 1.0, x)
    series = jnp.full_like(small, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = coefficient + small * series
    return jnp.where(near, series, jnp.expm1(large) / large)


def as_dict(shapes: Shapes) -> dict[str, Any]:
    """As plain data."""
    return {name: shape.as_dict() if isinstance(shape, Prior) else shape for name, shape in shapes}


def from_dict(data: Mapping[str, Any]) -> dict[str, Prior | float]:
    """What `as_dict` made."""
    return {name: prior_from_dict(one) if isinstance(one, dict) else one for name, one in data.items()}
