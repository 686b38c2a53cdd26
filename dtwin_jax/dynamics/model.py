"""A mechanistic model: a frozen bundle of pure functions."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import Mode, Schema
from dtwin_jax.core.quantity import quantities, replace_fields
from dtwin_jax.core.record import Record
from dtwin_jax.dynamics.dosing import has_samples
from dtwin_jax.dynamics.ensemble import lanes_of, simulate_cohort
from dtwin_jax.dynamics.filtering.kalman import ExtendedKalman
from dtwin_jax.dynamics.occasions import by_occasion
from dtwin_jax.dynamics.simulate import solve
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.dynamics.vector import packing

_SOLVER = Solver()
_FILTER = ExtendedKalman()


@dataclass(frozen=True)
class Model:
    """A model of the body. Hashable and compared by content; parameters are never part of it.

    Attributes:
        name: how results and errors call it.
        params: () -> P, parameters with their defaults: usually the class itself.
        inputs: () -> U, inputs with their neutral values: nothing given.
        init: (p) -> X, the state at the start of a record.
        drift: (t, x, u, p) -> X, the rate of change. `u` holds plain numbers; affine in those that take
            doses.
        observe: (t, x, u, p) -> Y, what can be measured.
        noise: (y, p) -> {output: NumPyro distribution}, how it is measured.
        diffusion: (t, x, u, p) -> X, makes the model an Itô SDE with independent noise on each state.
        dosing: (u, p) -> U, signals before they act: lag, bioavailability, modelled duration, numbers or
            functions of the time at which a dose is given (`delay`, `scale`, `infuse`, `as_modelled`).
        flow: (dt, x, u, p) -> X, the exact solution after `dt` under constant inputs, for models that have
            one. It replaces the solver where inputs are constant between events.
        event: (t, x, u, given, p) -> X, what else happens where doses are given: the state just before the
            amounts `given` move it, `u` as it was until then. It is called at every event of any input, so
            where nothing it waits for is given it returns `x`.
        time: UCUM unit of time.
        solver: how the equations are solved where there is no flow.
        filter: how the states of a model with a diffusion are learned from measurements.
        source: citation of the model.
        valid: for whom, and for what, the equations were made.
        stiffness: its fastest and slowest time constants, and what follows for the solver.
        checked: what the equations were checked against, and how closely they agree.
        example: () -> Record, a typical study: what is given, and when what is measured (the values do not
            count). Cards, plans and comparisons of solvers look at the model under it.
    """

    name: str
    params: Callable[[], Any]
    inputs: Callable[[], Any]
    init: Callable[[Any], Any]
    drift: Callable[[Any, Any, Any, Any], Any]
    observe: Callable[[Any, Any, Any, Any], Any]
    noise: Callable[[Any, Any], dict[str, Any]]
    diffusion: Callable[[Any, Any, Any, Any], Any] | None = None
    dosing: Callable[[Any, Any], Any] | None = None
    flow: Callable[[Any, Any, Any, Any], Any] | None = None
    event: Callable[[Any, Any, Any, Any, Any], Any] | None = None
    time: str = "h"
    solver: Solver = _SOLVER
    filter: Any = _FILTER
    source: str = ""
    valid: str = ""
    stiffness: str = ""
    checked: str = ""
    example: Callable[[], Record] | None = None

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """The distribution of every measurement of `record`: channel -> distribution of shape (n,).

        Of a model with a diffusion, the distribution given all earlier measurements (those of the record's
        `past`, and those of its `observations` that are not masked), by the model's filter.
        """
        if self.diffusion is not None:
            return self.filter.predict(self, p, record)
        return noisy(self, p, expect(self, p, record), record)

    def predict_cohort(self, p: Any, record: Record) -> dict[str, Any]:
        """`predict` of many patients, solved by `simulate_cohort`; every array has a leading patient axis."""
        if self.diffusion is not None:
            return jax.vmap(self.predict)(p, record)
        channels = record.observations
        times = jnp.concatenate([jnp.asarray(each.time, float) for each in channels.values()], axis=1)
        after = jnp.concatenate([jnp.asarray(each.after) for each in channels.values()], axis=1)
        found = simulate_cohort(self, p, record.inputs, times, t0=record.t0, after=after)
        expected = _by_channel(found.output, channels)
        return jax.vmap(functools.partial(noisy, self))(p, expected, record)

    @property
    def solved_together(self) -> bool:
        """Whether `predict_cohort` solves its patients in one loop, and derivatives with them."""
        return lanes_of(self) is not None

    def schema(self) -> Schema:
        """Names, units and ranges of inputs, outputs and parameters."""
        return _schema(self)

    def by_occasion(self, names: tuple[str, ...], count: int) -> "Model":
        """The model with parameters that change from one occasion of a patient to the next."""
        return by_occasion(self, names, count)

    def differentiated(self, mode: Mode) -> "Model":
        """The model prepared for forward- or reverse-mode derivatives."""
        prepared = replace(self, solver=self.solver.differentiated(mode))
        return (
            prepared if self.diffusion is None else replace(prepared, filter=self.filter.differentiated(mode))
        )

    def tightened(self, factor: float, record: Record) -> "Model | None":
        """The model with tolerances `factor` times as large; None where `record` is predicted without any."""
        if self.diffusion is not None:
            finer = getattr(self.filter, "tightened", None)
            return None if finer is None else replace(self, filter=finer(factor))
        if self.flow is not None and not has_samples(record.inputs):
            return None
        return replace(self, solver=self.solver.tightened(factor))


def noisy(model: Model, p: Any, expected: Any, record: Record) -> dict[str, Any]:
    """The distribution of every measurement of `record` about the Outputs `expected` of it.

    A failed row must not reach the noise's arithmetic: 0 times its NaN would enter the gradient of a
    parameter that all rows share. It is told by NaN in the distribution, put in afterwards.
    """
    solved = {name: jnp.isfinite(getattr(expected, name)) for name in record.observations}
    safe = {name: jnp.where(ok, getattr(expected, name), 1.0) for name, ok in solved.items()}
    predicted = model.noise(replace_fields(expected, safe), p)
    return {name: _marked(predicted[name], ok) for name, ok in solved.items()}


def expect(model: Model, p: Any, record: Record) -> Any:
    """The model's Outputs, each at the times of its own channel; channels without a series are empty."""
    return expect_until(model, p, record, jnp.zeros(0))[0]


def expect_until(model: Model, p: Any, record: Record, ends: Any) -> tuple[Any, Any]:
    """`expect`, and the states just after what happens at the times `ends`, as vectors (end, states)."""
    channels, (extra,) = record.observations, jnp.shape(ends)
    times = [jnp.asarray(each.time, float) for each in channels.values()]
    after = [jnp.asarray(each.after) for each in channels.values()]
    times, after = jnp.concatenate([*times, ends]), jnp.concatenate([*after, jnp.ones(extra, bool)])
    solution = solve(model, p, record.inputs, times, after, t0=record.t0)
    _, unpack = packing(jax.eval_shape(model.init, p))
    observe = jax.vmap(lambda t, x, u: model.observe(t, unpack(x), u, p))
    output = observe(times, solution.states, solution.inputs)
    return _by_channel(output, channels), solution.states[times.shape[0] - extra :]


def _by_channel(output: Any, channels: dict[str, Any]) -> Any:
    """Outputs (..., all times) cut into those of each channel (..., own times); others become empty."""
    parts, start = {}, 0
    for name, series in channels.items():
        count = series.time.shape[-1]
        parts[name] = getattr(output, name)[..., start : start + count]
        start += count
    empty = {name: getattr(output, name)[..., :0] for name in quantities(output) if name not in parts}
    return replace_fields(output, parts | empty)


def _marked(predicted: Any, solved: Any) -> Any:
    """The distribution with NaN at the rows that were not solved."""

    def mark(leaf: Any) -> Any:
        fits = jnp.shape(leaf) == solved.shape and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        return jnp.where(solved, leaf, jnp.nan) if fits else leaf

    return jax.tree.map(mark, predicted)


@functools.cache
def _schema(model: Model) -> Schema:
    found: list[Schema] = []

    def look() -> None:
        p, u = model.params(), model.inputs()
        output = model.observe(jnp.asarray(0.0), model.init(p), u, p)
        found.append(Schema(quantities(u), quantities(output), quantities(p), model.time))

    # Traced, not run: no number is needed, and none starts a backend.
    jax.eval_shape(look)
    return found[0]
