"""How the parts of a composite are joined: ports, wires, their units, and the order they are read in."""

import functools
import graphlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtwin_jax.core.quantity import Quantity, assign, quantities, values
from dtwin_jax.core.units import UnitError, factor

Parts = tuple[tuple[str, Any], ...]


class Port(NamedTuple):
    """A field of a part: what it reads (an input or a parameter), or an output it shows."""

    part: str
    field: str

    def __str__(self) -> str:
        return f"{self.part}.{self.field}"


@dataclass(frozen=True)
class Wire:
    """What a port reads. `source` is an output of a part or, with part "", an input of the composite.

    Attributes:
        target: the input or parameter that is driven.
        source: what drives it.
        factor: the source's value times this is the target's.
        parameter: True where the target is a parameter.
        unit: of the source, where that is an input of the composite.
    """

    target: Port
    source: Port
    factor: float
    parameter: bool
    unit: str = ""


def wired(name: str, parts: Mapping[str, Any], wires: Mapping[str, str], time: str) -> tuple[Wire, ...]:
    """The wires of a composite, checked: every port exists, and every unit can become the other.

    Raises:
        ValueError: names the wire, the units or the names that there are.
    """
    outer: dict[str, str] = {}
    return tuple(_wire(name, parts, target, source, outer, time) for target, source in wires.items())


def _wire(
    name: str, parts: Mapping[str, Any], target: str, source: str, outer: dict[str, str], time: str
) -> Wire:
    where = f"{name}: wire {target!r} <- {source!r}"
    to, (reads, parameter) = _port(where, parts, target), _readable(where, parts, target)
    if "." in source:
        start = _port(where, parts, source)
        shown = parts[start.part].schema().outputs
        if start.field not in shown:
            raise ValueError(f"{where}: {start.part} has no output {start.field!r}; it has {sorted(shown)}")
        given = shown[start.field]
        return Wire(to, start, _factor(where, given, reads), parameter)
    # The first port that reads an input of the composite gives it its unit.
    unit = outer.setdefault(source, per_time(reads.unit, parts[to.part].time, time))
    return Wire(to, Port("", source), _factor(where, Quantity(unit), reads), parameter, unit)


def _port(where: str, parts: Mapping[str, Any], text: str) -> Port:
    part, _, field = text.partition(".")
    if part not in parts:
        raise ValueError(f"{where}: there is no part {part!r}; there are {sorted(parts)}")
    if not field:
        raise ValueError(f"{where}: {text!r} names a part; wanted 'part.field'")
    return Port(part, field)


def _readable(where: str, parts: Mapping[str, Any], text: str) -> tuple[Quantity, bool]:
    part, _, field = text.partition(".")
    schema = parts[part].schema()
    if field in schema.inputs:
        return schema.inputs[field], False
    if "." in field:
        raise ValueError(f"{where}: {field!r} belongs to a part of {part}: wire it where {part} is coupled")
    if field in schema.parameters:
        return schema.parameters[field], True
    raise ValueError(
        f"{where}: {part} has no input or parameter {field!r}; its inputs are {sorted(schema.inputs)}, its "
        f"parameters {sorted(schema.parameters)}"
    )


def _factor(where: str, given: Quantity, wanted: Quantity) -> float:
    if given.unit == wanted.unit:
        return 1.0
    try:
        return factor(given.unit, wanted.unit, given.molar_mass or wanted.molar_mass)
    except UnitError as error:
        raise ValueError(f"{where}: {given.unit!r} cannot drive {wanted.unit!r}: {error}") from error


def per_time(unit: str, part_time: str, time: str) -> str:
    """`unit` as the composite names it: per its own unit of time where it was per the part's."""
    if unit.endswith(f"/{part_time}"):
        return unit.removesuffix(part_time) + time
    return unit


def read_order(name: str, parts: Parts, wires: tuple[Wire, ...]) -> tuple[Port, ...]:
    """The outputs that drive something, each after those that it depends on.

    An output that contains an input (a pressure that contains the inflow) must be read after what drives
    that input.

    Raises:
        ValueError: outputs that contain each other, an algebraic loop, with the ports along it.
    """
    driving = {wire.target: wire.source for wire in wires if wire.source.part}
    graph: dict[Port, set[Port]] = {source: set() for source in driving.values()}
    for part, model in parts:
        fields = [wire.target.field for wire in wires if wire.target.part == part]
        reads = dependencies(functools.partial(_shown, model), fields)
        for source in [source for source in graph if source.part == part]:
            graph[source] = {Port(part, field) for field in reads[source.field]}
    through = {target: {source} for target, source in driving.items()}
    try:
        order = tuple(graphlib.TopologicalSorter(graph | through).static_order())
    except graphlib.CycleError as error:
        loop = " <- ".join(str(port) for port in reversed(error.args[1]))
        raise ValueError(
            f"{name}: an algebraic loop, each containing the next: {loop}. Give one of these outputs a state "
            "of its own (a small inertance, compliance or delay), or wire a state in its place"
        ) from error
    return tuple(port for port in order if port in graph)


def _shown(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    p, u = model.params(), model.inputs()
    return values(model.observe(jnp.asarray(0.0), model.init(p), drive(u, given), drive(p, given)))


def drive(tree: Any, given: Mapping[str, Any]) -> Any:
    """`tree` with those of `given` that are its fields."""
    own = quantities(tree)
    return assign(tree, {name: value for name, value in given.items() if name in own})


def dependencies(function: Callable[[Any], dict[str, Any]], names: Sequence[str]) -> dict[str, set[str]]:
    """Key of the result -> those of `names` that reach it, read from the traced program.

    A derivative that happens to be 0 at one point would hide a dependence; the program cannot.

    Args:
        function: from a dict of numbers to a dict of numbers.
        names: the keys of what it takes.
    """
    given = dict.fromkeys(names, jax.ShapeDtypeStruct((), jnp.result_type(float)))
    program = jax.make_jaxpr(function)(given).jaxpr
    reached = _reach(program, [{name} for name in sorted(given)])
    return dict(zip(sorted(jax.eval_shape(function, given)), reached, strict=True))


def _reach(program: Any, given: list[set[str]]) -> list[set[str]]:
    """What reaches each result of a program, from what reaches each of its arguments."""
    reach: dict[Any, set[str]] = dict(zip(program.invars, given, strict=True))

    def of(variable: Any) -> set[str]:
        # Literals carry their value and are not hashable; nothing reaches them.
        return set() if hasattr(variable, "val") else reach.get(variable, set())

    for step in program.eqns:
        inner = step.params.get("jaxpr") or step.params.get("call_jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        taken = [of(variable) for variable in step.invars]
        if inner is not None and len(inner.invars) == len(taken) and len(inner.outvars) == len(step.outvars):
            # A function compiled by itself; in a loop, what is carried could mix.
            loops = step.primitive.name in ("while", "scan")
            shown = [set().union(*taken)] * len(step.outvars) if loops else _reach(inner, taken)
        else:
            shown = [set().union(*taken)] * len(step.outvars)
        reach |= dict(zip(step.outvars, shown, strict=True))
    return [of(variable) for variable in program.outvars]
