"""A model that starts from any state: the state is part of its parameters."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx


class Start(eqx.Module):
    """Parameters, and the state to start from."""

    p: Any
    state: Any


def started(model: Any) -> Any:
    """`model` as one that starts from any state: its parameters are a `Start`."""
    places = {"drift": 3, "observe": 3, "noise": 1, "diffusion": 3, "dosing": 1, "flow": 3, "event": 4}
    held = {name: _Started(getattr(model, name), i) for name, i in places.items() if getattr(model, name)}
    return replace(model, params=_Unstarted(model), init=_state_of, **held)


@dataclass(frozen=True)
class _Started:
    """An equation of a model that finds a `Start` where its parameters are, at `place`."""

    equation: Any
    place: int

    def __call__(self, *args: Any) -> Any:
        start = args[self.place]
        return self.equation(*args[: self.place], start.p, *args[self.place + 1 :])


@dataclass(frozen=True)
class _Unstarted:
    model: Any

    def __call__(self) -> Start:
        p = self.model.params()
        return Start(p, self.model.init(p))


def _state_of(start: Start) -> Any:
    return start.state
