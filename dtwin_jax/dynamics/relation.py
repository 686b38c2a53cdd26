"""A part without a state: what it shows follows at once from what it reads. It joins others in `couple`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx

from dtwin_jax.dynamics.model import Model


class Nothing(eqx.Module):
    """No state."""


def nothing(p: Any) -> Nothing:
    """The start of no state."""
    return Nothing()


def still(t: Any, x: Nothing, u: Any, p: Any) -> Nothing:
    """The rate of no state."""
    return Nothing()


def relation(
    name: str,
    params: Callable[[], Any],
    inputs: Callable[[], Any],
    observe: Callable[[Any, Nothing, Any, Any], Any],
    noise: Callable[[Any, Any], dict[str, Any]],
    *,
    time: str = "h",
    source: str = "",
) -> Model:
    """The `Model` of a relation between its inputs and its outputs; for the arguments see there."""
    return Model(name, params, inputs, nothing, still, observe, noise, time=time, source=source)
