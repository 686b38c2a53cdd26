"""States kept as their logs: positive by construction, however long the step and wild the noise.

By Itô's formula, for dx = f dt + g dW and y = log x,

    dy = (f / x - (g / x)^2 / 2) dt + (g / x) dW,    x = exp(y).

Noise in proportion to a state (geometric Brownian motion) is then the same in every state, so an Euler step
is exact in law and filters are at their best.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import check_names, quantities, replace_fields
from dtwin_jax.dynamics.model import Model


def log_states(model: Model, *names: str) -> Model:
    """`model` with the states `names` kept as their natural logs; all else, outputs included, as it was.

    Inside the solver and the filter, and in `estimate_states`, such a field holds the log of the number in
    its own unit. An exact `flow` is dropped, since noise needs none.

    Args:
        model: an ODE or SDE whose states `names` stay above 0.
        names: of states, positive at the start.

    Raises:
        ValueError: a state that the model does not have, or into which an input flows directly: a bolus
            moves it by an amount, not by a factor.
    """
    p = model.params()
    check_names(model.name, "state", names, quantities(model.init(p)))
    kept = tuple(dict.fromkeys(names))
    for name, through in _fed(model, p):
        if name in kept:
            what = f"input {through!r} of {model.name} flows into {name!r}"
            raise ValueError(f"log_states: {what}; keep that state as it is")
    for name in kept:
        value = getattr(model.init(p), name)
        if not np.all(np.asarray(value) > 0):
            raise ValueError(
                f"log_states: state {name!r} of {model.name} starts at {value}: expected above 0"
            )
    natural = _Natural(kept)
    wrapped: dict[str, Any] = {}
    if model.event is not None:
        wrapped["event"] = _Event(model.event, natural)
    if model.diffusion is not None:
        wrapped["diffusion"] = _Diffusion(model.diffusion, natural)
        spread = getattr(model.filter, "spread", None)
        if spread is not None:
            wrapped["filter"] = replace(model.filter, spread=_Spread(model.init, spread, natural))
    return replace(
        model,
        name=f"log_{model.name}",
        init=_Init(model.init, natural),
        drift=_Drift(model.drift, model.diffusion, natural),
        observe=_Observe(model.observe, natural),
        flow=None,
        **wrapped,
    )


def kept_as_logs(model: Model) -> tuple[str, ...]:
    """Names of the states that `log_states` keeps as logs in `model`; none if it did not make the model."""
    names, init = (), model.init
    while isinstance(init, _Init):
        names, init = (*names, *init.natural.names), init.init
    return names


def _fed(model: Model, p: Any) -> list[tuple[str, str]]:
    """(state, input) where the rate of the state depends on the input: at the start, or elsewhere.

    An input may wait for another state that is 0 at the start, or for a time, so random points are looked at.
    """
    inputs, rng = model.inputs(), np.random.default_rng(0)
    start = model.init(p)
    neutral = {name: jnp.asarray(getattr(inputs, name), float) for name in vars(inputs)}

    def near(tree: Any) -> Any:
        return jax.tree.map(
            lambda leaf: leaf + rng.uniform(0.2, 1.0, jnp.shape(leaf)) * (abs(leaf) + 1.0), tree
        )

    def slopes(t: float, x: Any, u: dict[str, Any]) -> dict[str, Any]:
        rates = lambda u: model.drift(jnp.asarray(t), x, replace_fields(inputs, u), p)  # noqa: E731
        return vars(jax.jacfwd(rates)(u))

    with jax.ensure_compile_time_eval():
        points = [(0.0, start, neutral), *((t, near(start), near(neutral)) for t in (0.0, 1.7, 31.3))]
        found = [slopes(*point) for point in points]
    # What cannot be evaluated at a random point is no evidence.
    return [
        (state, name)
        for state, by in found[0].items()
        for name in by
        if any(bool(jnp.any(jnp.nan_to_num(each[state][name]) != 0)) for each in found)
    ]


@dataclass(frozen=True)
class _Natural:
    """Between logs and the states themselves."""

    names: tuple[str, ...]

    def of(self, y: Any) -> Any:
        return replace_fields(y, {name: jnp.exp(getattr(y, name)) for name in self.names})

    def log(self, x: Any) -> Any:
        return replace_fields(x, {name: jnp.log(getattr(x, name)) for name in self.names})

    def per(self, rate: Any, x: Any) -> Any:
        """Rates per unit of the state."""
        return replace_fields(rate, {name: getattr(rate, name) / getattr(x, name) for name in self.names})


@dataclass(frozen=True)
class _Init:
    init: Any
    natural: _Natural

    def __call__(self, p: Any) -> Any:
        return self.natural.log(self.init(p))


@dataclass(frozen=True)
class _Spread:
    init: Any
    spread: Any
    natural: _Natural

    def __call__(self, p: Any) -> Any:
        return self.natural.per(self.spread(p), self.init(p))


@dataclass(frozen=True)
class _Observe:
    observe: Any
    natural: _Natural

    def __call__(self, t: Any, y: Any, u: Any, p: Any) -> Any:
        return self.observe(t, self.natural.of(y), u, p)


@dataclass(frozen=True)
class _Event:
    event: Any
    natural: _Natural

    def __call__(self, t: Any, y: Any, u: Any, given: Any, p: Any) -> Any:
        return self.natural.log(self.event(t, self.natural.of(y), u, given, p))


@dataclass(frozen=True)
class _Diffusion:
    diffusion: Any
    natural: _Natural

    def __call__(self, t: Any, y: Any, u: Any, p: Any) -> Any:
        x = self.natural.of(y)
        return self.natural.per(self.diffusion(t, x, u, p), x)


@dataclass(frozen=True)
class _Drift:
    drift: Any
    diffusion: Any
    natural: _Natural

    def __call__(self, t: Any, y: Any, u: Any, p: Any) -> Any:
        x = self.natural.of(y)
        rate = self.natural.per(self.drift(t, x, u, p), x)
        if self.diffusion is None:
            return rate
        noise = self.natural.per(self.diffusion(t, x, u, p), x)
        moved = {name: getattr(rate, name) - 0.5 * getattr(noise, name) ** 2 for name in self.natural.names}
        return replace_fields(rate, moved)
