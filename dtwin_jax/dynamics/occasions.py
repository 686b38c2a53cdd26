"""A model some of whose parameters change from one occasion of a patient to the next.

An occasion begins at a known time, which is a parameter like any other fact of a patient, and lasts until
the next begins. What is in the body then stays there: the state is carried over, and moves on by the
parameters of the new occasion. Doses and measurements at the very time of the beginning belong to the new.

Each such parameter has one more parameter for each occasion: `CL` has `CL_1`, `CL_2`, ... The occasion that
is on is an input of the equations, held between the times at which it changes; nothing but the equations asks
for it, so that every way to solve a model solves this one.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from dtwin_jax.core.occasions import NEVER, beginnings, in_occasions
from dtwin_jax.core.quantity import Quantity, assign, quantities, replace_fields, values, with_fields
from dtwin_jax.core.signal import Doses, Steps


@functools.cache
def by_occasion(model: Any, names: tuple[str, ...], count: int) -> Any:
    """`model` with the parameters `names` of their own in each of `count` occasions.

    The first parameters of that name remain, and are what noise sees.

    Raises:
        ValueError: a parameter that the noise depends on, which knows of no occasion.
    """
    _check_noise(model, names)
    at = _Change(names, count)
    during = lambda function: None if function is None else _During(function, at)  # noqa: E731
    return replace(
        model,
        params=_Params(model.params, at, model.time),
        inputs=_Inputs(model.inputs),
        init=_First(model.init, at),
        drift=during(model.drift),
        observe=during(model.observe),
        diffusion=during(model.diffusion),
        flow=during(model.flow),
        event=during(model.event),
        dosing=_Dosing(model.dosing, at),
    )


@dataclass(frozen=True)
class _Change:
    """Which parameters change, over how many occasions."""

    names: tuple[str, ...]
    count: int

    def at(self, occasion: Any, p: Any) -> Any:
        """The parameters in the occasion, a number from 0 on."""
        now = {}
        for name in self.names:
            first, *others = (getattr(p, each) for each in in_occasions(name, self.count))
            for k, other in enumerate(others, start=1):
                first = jnp.where(jnp.asarray(occasion) > k - 0.5, other, first)
            now[name] = first
        return assign(p, now)


@dataclass(frozen=True)
class _During:
    """An equation whose third argument are the inputs and whose last are the parameters."""

    function: Callable[..., Any]
    change: _Change

    def __call__(self, *given: Any) -> Any:
        return self.function(*given[:-1], self.change.at(given[2].occasion, given[-1]))


@dataclass(frozen=True)
class _First:
    """The initial state by the parameters of the first occasion."""

    init: Callable[[Any], Any]
    change: _Change

    def __call__(self, p: Any) -> Any:
        return self.init(self.change.at(0.0, p))


@dataclass(frozen=True)
class _Params:
    params: Callable[[], Any]
    change: _Change
    time: str

    def __call__(self) -> Any:
        p = self.params()
        declared, default = quantities(p), values(p)
        more: dict[str, tuple[Any, Quantity]] = {
            each: (default[name], dataclasses.replace(declared[name], prior=None))
            for name in self.change.names
            for each in in_occasions(name, self.change.count)
        }
        for name in beginnings(self.change.count):
            more[name] = (NEVER, Quantity(self.time, doc="when the occasion begins"))
        return with_fields(p, more)


@dataclass(frozen=True)
class _Inputs:
    inputs: Callable[[], Any]

    def __call__(self) -> Any:
        return _timed(self.inputs(), 0.0)


@dataclass(frozen=True)
class _Dosing:
    """Signals as they act, each dose by the parameters of the occasion in which it is given."""

    dosing: Callable[[Any, Any], Any] | None
    change: _Change

    def __call__(self, u: Any, p: Any) -> Any:
        starts = jnp.stack([jnp.asarray(getattr(p, n), float) for n in beginnings(self.change.count)])
        acting = u if self.dosing is None else self._in_each(u, p, starts)
        # The last moment before: what happens at the time of the beginning is already in the new one.
        before = jnp.minimum(jnp.nextafter(starts, -jnp.inf), starts - jnp.finfo(starts.dtype).tiny)
        time = jnp.concatenate([before[:1], before])
        return _timed(acting, Steps(time, jnp.arange(self.change.count, dtype=time.dtype)))

    def _in_each(self, u: Any, p: Any, starts: Any) -> Any:
        """What `dosing` makes of the inputs in each occasion, put together dose by dose."""
        each = [self.dosing(u, self.change.at(float(k), p)) for k in range(self.change.count)]  # type: ignore[misc]
        joined = {}
        for name, signal in vars(each[0]).items():
            many = [getattr(one, name) for one in each]
            given = getattr(u, name)
            doses = isinstance(signal, Doses) and isinstance(given, Doses)
            joined[name] = _joined(many, given, starts) if doses else many[0]
        return replace_fields(each[0], joined)


def _joined(many: list[Any], given: Any, starts: Any) -> Any:
    """One signal of doses from those that it is in each occasion: doses and restarts as in their own."""
    joined = _picked(many, given.time, starts)
    if given.rules is None:
        return joined
    restarts = _picked([each.rules.restarts for each in many], given.rules.restarts.time, starts)
    return eqx.tree_at(lambda signal: signal.rules.restarts, joined, restarts)


def _picked(many: list[Any], time: Any, starts: Any) -> Any:
    """Of trees with one row for each time, the rows of the tree of its occasion."""
    index = jnp.sum(starts[None, :] <= jnp.asarray(time, float)[:, None], axis=1)

    def pick(*leaves: Any) -> Any:
        if jnp.shape(leaves[0]) != index.shape:
            return leaves[0]
        return jnp.take_along_axis(jnp.stack([jnp.asarray(leaf) for leaf in leaves]), index[None], axis=0)[0]

    return jax.tree.map(pick, *many)


def _timed(u: Any, occasion: Any) -> Any:
    """Inputs with the occasion beside them."""
    return with_fields(u, {"occasion": (occasion, Quantity("1"))})


def _check_noise(model: Any, names: tuple[str, ...]) -> None:
    p = model.params()
    default = values(p)

    def spread(at: dict[str, Any]) -> Any:
        given = assign(p, at)
        y = model.observe(jnp.asarray(0.0), model.init(p), model.inputs(), p)
        return jax.tree.leaves(model.noise(jax.tree.map(jnp.ones_like, y), given))

    # Now, even where a caller is being traced.
    with jax.ensure_compile_time_eval():
        moved = jax.jacfwd(spread)({name: jnp.asarray(default[name], float) for name in names})
        seen = [name for name in names if any(bool(jnp.any(each[name] != 0.0)) for each in moved)]
    for name in seen:
        raise ValueError(f"{name!r} is of the noise, which knows of no occasion: leave it out")
