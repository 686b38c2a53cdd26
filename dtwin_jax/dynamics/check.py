"""What is wrong with a model, in plain sentences: for its author, before anything is solved.

Each property is tested at random points near the defaults, in float64. Units by the oldest check in
physics: in other units of mass, length, time and amount an equation must say the same.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import assign, quantities, values
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.units import UnitError, compatible, dimension, product

# Rounding of a right-hand side is some 1e-15 of its terms; a wrong equation is wrong by percents.
_CLOSE = 1e-8
_POINTS = 3


class _Point(NamedTuple):
    """Arguments of the equations; `dt` is a span over which the state moves."""

    t: Any
    dt: Any
    x: Any
    u: Any
    p: Any


def check_model(model: Any, *, key: Any = None) -> list[str]:
    """What is wrong with `model`, a sentence each; empty where nothing was found.

    Checked are: functions return the structs they should, with finite values at the defaults; no name is
    used twice; units are known, and the equations (init, drift, diffusion, flow, observe, noise, dosing)
    hold in any system of units; the drift is affine in the inputs that take doses, which are those in an
    amount per time; the flow solves the drift.

    Args:
        model: the `Model`.
        key: random key of the points, fixed by default.
    """
    import numpyro

    # An expected value of 0 has no proportional error, which NumPyro would refuse.
    with jax.enable_x64(True), numpyro.validation_enabled(False):
        seed = jax.random.key_data(jax.random.key(0) if key is None else key)
        rng = np.random.default_rng(np.ravel(seed))
        for check in (_misplaced_structs, _unknown_units, _names_used_twice, _values_not_finite):
            # What comes later would stumble over the same fault.
            if found := _said_by(check, model):
                return found
        found = []
        for _ in range(_POINTS):
            point = _random_point(model, rng)
            found += _said_by(_drift_not_affine, model, point, rng)
            found += _said_by(_units_not_consistent, model, point, rng)
            found += _said_by(_flow_not_a_solution, model, point)
    return list(dict.fromkeys(found))


def _said_by(check: Callable[..., Iterator[str]], model: Any, *args: Any) -> list[str]:
    try:
        return list(check(model, *args))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        subject = check.__name__.strip("_").replace("_", " ")
        return [f"{model.name} cannot be evaluated (looking for {subject}): {type(error).__name__}: {error}"]


def _misplaced_structs(model: Any) -> Iterator[str]:
    p, u, t = model.params(), model.inputs(), jnp.asarray(0.0)
    x = model.init(p)
    y = model.observe(t, x, u, p)
    for function, tree in {"params": p, "inputs": u, "init": x, "observe": y}.items():
        # A body to which nothing can be given has inputs without fields.
        nothing = function == "inputs" and not dataclasses.fields(tree)
        if not quantities(tree) and not nothing:
            yield f"{function} returns {type(tree).__name__}, which has no field with a unit"
    for function, result in _moves(model, _Point(t, jnp.asarray(1.0), x, u, p)).items():
        if _form(result) != _form(x):
            yield f"{function} returns {type(result).__name__}, not a {type(x).__name__} shaped like init's"
    if model.dosing is not None and type(given := model.dosing(u, p)) is not type(u):
        yield f"dosing returns {type(given).__name__}, not {type(u).__name__}"
    unmatched = sorted(set(quantities(y)) ^ set(model.noise(y, p)))
    if unmatched:
        yield f"noise and observe differ in their outputs: {', '.join(unmatched)}"


def _unknown_units(model: Any) -> Iterator[str]:
    for owner, tree in _structs(model).items():
        for name, quantity in quantities(tree).items():
            try:
                dimension(quantity.unit)
            except UnitError as error:
                yield f"{owner}: {name}: {error}"
    if dict(dimension(model.time)) != {"time": 1}:
        yield f"time: {model.time!r} is no unit of time"


def _names_used_twice(model: Any) -> Iterator[str]:
    schema = model.schema()
    kinds = {"an input": schema.inputs, "an output": schema.outputs, "a parameter": schema.parameters}
    for name in dict.fromkeys(name for names in kinds.values() for name in names):
        owners = [kind for kind, names in kinds.items() if name in names]
        if len(owners) > 1:
            yield f"{name!r} is {' and '.join(owners)}: data of that name could be either"


def _values_not_finite(model: Any) -> Iterator[str]:
    made = _structs(model)
    x, u, p = made["init"], made["inputs"], made["params"]
    made |= _moves(model, _Point(jnp.asarray(0.0), jnp.asarray(1.0), x, u, p))
    for function, tree in made.items():
        for name, value in values(tree).items():
            if not np.all(np.isfinite(value)):
                yield f"{function}: {name} is not finite at the defaults"


def _drift_not_affine(model: Any, point: _Point, rng: np.random.Generator) -> Iterator[str]:
    doses = _dose_inputs(model)
    sizes = rng.uniform(0.5, 2.0, len(doses))

    def rates(step: float) -> dict[str, Any]:
        given = {name: jnp.asarray(step * size) for name, size in zip(doses, sizes, strict=True)}
        return values(model.drift(point.t, point.x, assign(point.u, given), point.p))

    none, one, two = rates(0.0), rates(1.0), rates(2.0)
    for name in none:
        if not _close(two[name] + none[name], 2 * one[name]):
            yield (
                f"drift: the rate of {name} is not affine in the inputs that take doses "
                f"({', '.join(doses)}): a bolus would move the state wrongly"
            )


def _units_not_consistent(model: Any, point: _Point, rng: np.random.Generator) -> Iterator[str]:
    units = {quantity.unit for tree in _structs(model).values() for quantity in quantities(tree).values()}
    bases = sorted({base for unit in (*units, model.time) for base in dimension(unit)})
    # Far from 1 and from one another, so that no two errors cancel.
    sizes = dict(zip(bases, np.exp(rng.uniform(0.5, 1.5, len(bases))), strict=True))
    second = _size(model.time, sizes)
    moved = _Point(
        point.t * second, point.dt * second, *(_in_units(tree, sizes) for tree in (point.x, point.u, point.p))
    )
    here, there = _evaluated(model, point), _evaluated(model, moved)
    for function, tree in here.items():
        per_time = second ** {"drift": -1.0, "diffusion": -0.5}.get(function, 0.0)
        other = values(there[function])
        for name, value in values(_in_units(tree, sizes)).items():
            if not _close(value * per_time, other[name]):
                yield (
                    f"{function}: {name} does not have its unit: in other units of {', '.join(bases)} it "
                    "is not the same quantity (a factor is missing, or a number in the code has a unit)"
                )
    yield from _noise_not_consistent(model, point, moved, sizes)
    yield from _dosing_not_consistent(model, point, moved, sizes)


def _noise_not_consistent(
    model: Any, point: _Point, moved: _Point, sizes: Mapping[str, float]
) -> Iterator[str]:
    y = model.observe(point.t, point.x, point.u, point.p)
    here, there = model.noise(y, point.p), model.noise(_in_units(y, sizes), moved.p)
    for name, quantity in quantities(y).items():
        if here[name].is_discrete:
            continue
        size = _size(quantity.unit, sizes)
        seen = 1.05 * getattr(y, name)
        density = here[name].log_prob(seen) - math.log(size)
        if not _close(density, there[name].log_prob(seen * size)):
            yield f"noise: the error of {name} does not have its unit"


def _dosing_not_consistent(
    model: Any, point: _Point, moved: _Point, sizes: Mapping[str, float]
) -> Iterator[str]:
    if model.dosing is None:
        return
    second = _size(model.time, sizes)

    def given(at: _Point, time: float, amounts: dict[str, float]) -> dict[str, Any]:
        doses = {name: Doses([2.0 * time], [3.0 * amount], [0.5 * time]) for name, amount in amounts.items()}
        return vars(model.dosing(assign(at.u, doses), at.p))

    rate = {name: _size(quantities(point.u)[name].unit, sizes) for name in _dose_inputs(model)}
    here = given(point, 1.0, dict.fromkeys(rate, 1.0))
    there = given(moved, second, {name: size * second for name, size in rate.items()})
    for name, size in rate.items():
        for part, factor in (("time", second), ("amount", size * second), ("duration", second)):
            if not _close(getattr(here[name], part) * factor, getattr(there[name], part)):
                yield f"dosing: the {part} of doses into {name} does not have its unit"


def _flow_not_a_solution(model: Any, point: _Point) -> Iterator[str]:
    if model.flow is None:
        return
    t, dt, x, u, p = point
    usual = {name: jnp.abs(rate) for name, rate in values(model.drift(t, x, u, p)).items()}
    for name, value in values(model.flow(jnp.zeros_like(dt), x, u, p)).items():
        if not _close(value, values(x)[name]):
            yield f"flow: {name} is not where it was after no time"
    # A flow that starts right and always moves as the drift says is the solution.
    for span in (dt, 30 * dt):
        state, rate = jax.jvp(lambda span: model.flow(span, x, u, p), (span,), (jnp.ones_like(span),))
        wanted = values(model.drift(t + span, state, u, p))
        for name, value in values(rate).items():
            if not _close(value, wanted[name], scale=usual[name]):
                yield f"flow: {name} does not move as the drift says"


def _structs(model: Any) -> dict[str, Any]:
    p, u = model.params(), model.inputs()
    x = model.init(p)
    return {
        "params": p,
        "inputs": u,
        "init": x,
        "observe": model.observe(jnp.asarray(0.0), x, u, p),
    }


def _moves(model: Any, at: _Point) -> dict[str, Any]:
    """What the functions that move the state return."""
    made = {"drift": model.drift(at.t, at.x, at.u, at.p)}
    if model.diffusion is not None:
        made["diffusion"] = model.diffusion(at.t, at.x, at.u, at.p)
    if model.flow is not None:
        made["flow"] = model.flow(at.dt, at.x, at.u, at.p)
    return made


def _evaluated(model: Any, at: _Point) -> dict[str, Any]:
    return {
        "init": model.init(at.p),
        "observe": model.observe(at.t, at.x, at.u, at.p),
        **_moves(model, at),
    }


def _random_point(model: Any, rng: np.random.Generator) -> _Point:
    """Values below the defaults, so that fractions stay fractions, and none of them 0."""

    def near(tree: Any) -> Any:
        def draw(value: Any) -> Any:
            factor = rng.uniform(0.6, 1.0, np.shape(value))
            return jnp.asarray(np.where(np.asarray(value) == 0.0, factor, np.asarray(value) * factor))

        return assign(tree, {name: draw(value) for name, value in values(tree).items()})

    p = near(model.params())
    x, u, t = near(model.init(model.params())), near(model.inputs()), jnp.asarray(rng.uniform(0.5, 1.5))
    rates = values(model.drift(t, x, u, p))
    spans = [
        np.min(np.abs(value) / np.maximum(np.abs(rates[name]), 1e-30)) for name, value in values(x).items()
    ]
    return _Point(t, jnp.asarray(min(*spans, 1e6)), x, u, p)


def _dose_inputs(model: Any) -> list[str]:
    """Inputs in an amount per time: of mass, substance, activity or volume."""
    found = []
    for name, quantity in quantities(model.inputs()).items():
        amount = product(quantity.unit, model.time)
        base = dimension(amount)
        if (base and "time" not in base) or compatible(amount, "[IU]"):
            found.append(name)
    return found


def _in_units(tree: Any, sizes: Mapping[str, float]) -> Any:
    """`tree` as numbers in units that are smaller by `sizes`."""
    units = quantities(tree)
    return assign(tree, {name: v * _size(units[name].unit, sizes) for name, v in values(tree).items()})


def _size(unit: str, sizes: Mapping[str, float]) -> float:
    return math.prod(float(sizes[base]) ** power for base, power in dimension(unit).items())


def _form(tree: Any) -> Any:
    return jax.tree.structure(tree), [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]


def _close(a: Any, b: Any, scale: Any = 0.0) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    largest = np.maximum(np.maximum(np.abs(a), np.abs(b)), scale)
    # What cannot be evaluated at a random point is no evidence.
    return bool(np.all((np.abs(a - b) <= _CLOSE * largest) | ~np.isfinite(a) | ~np.isfinite(b)))
