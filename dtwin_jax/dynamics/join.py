"""What a composite is made of: its parts and wires, and the structs that hold theirs side by side."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx

from dtwin_jax.core.quantity import Quantity, assign, quantities, values
from dtwin_jax.core.units import factor
from dtwin_jax.dynamics.wiring import Parts, Port, Wire, per_time


@dataclass(frozen=True)
class Join:
    """The parts, what joins them, and the order in which driving outputs are read.

    Attributes:
        parts: name and model of each.
        wires: what drives what.
        time: the composite's unit of time.
        order: the outputs that drive something, each after those it depends on.
    """

    parts: Parts
    wires: tuple[Wire, ...]
    time: str
    order: tuple[Port, ...]

    def ports(self, t: Any, x: Any, u: Any, p: Any) -> dict[str, tuple[Any, Any, Any]]:
        """Part -> (its time, its inputs, its parameters) as driven now."""
        shown: dict[Port, Any] = {}
        models = dict(self.parts)
        for port in self.order:
            now = self._driven(port.part, u, p, shown)
            y = models[port.part].observe(self.time_of(port.part, t), getattr(x, port.part), *now)
            shown[port] = getattr(y, port.field)
        return {part: (self.time_of(part, t), *self._driven(part, u, p, shown)) for part, _ in self.parts}

    def _driven(self, part: str, u: Any, p: Any, shown: Mapping[Port, Any]) -> tuple[Any, Any]:
        """Inputs and parameters of `part`; a port whose driver is not read yet keeps its default."""
        to_inputs, to_params = self.given(part, u), {}
        for wire in self.wires:
            if wire.target.part != part:
                continue
            driven = to_params if wire.parameter else to_inputs
            if wire.source in shown:
                driven[wire.target.field] = wire.factor * shown[wire.source]
            elif wire.parameter and not wire.source.part:
                driven[wire.target.field] = wire.factor * getattr(u, wire.source.field)
        return assign(self.model(part).inputs(), to_inputs), assign(getattr(p, part), to_params)

    def given(self, part: str, u: Any) -> dict[str, Any]:
        """Inputs of `part` that come from inputs of the composite, in the part's units."""
        return {
            field: scale * getattr(u, outer)
            for (owner, field), (outer, scale) in self.outer().items()
            if owner == part
        }

    def outer(self) -> dict[Port, tuple[str, float]]:
        """Input port -> (input of the composite, factor): wired ones and those that no wire drives."""
        return _outer(self)

    def model(self, part: str) -> Any:
        """The model of a part."""
        return dict(self.parts)[part]

    def pace(self, part: str) -> float:
        """Part's units of time in one of the composite's."""
        return pace(self.model(part).time, self.time)

    def time_of(self, part: str, t: Any) -> Any:
        """`t` in the part's unit of time."""
        return t * self.pace(part)


def pace(own: str, time: str) -> float:
    """Units of time `own` in one of `time`."""
    return 1.0 if own == time else factor(time, own)


@functools.cache
def _outer(join: Join) -> dict[Port, tuple[str, float]]:
    wires, found = driven_inputs(join), {}
    for port, (name, quantity) in _free_inputs(join).items():
        own = join.model(port.part).schema().inputs.get(port.field)
        if port in wires:
            found[port] = (name, wires[port].factor)
        elif own is not None:
            found[port] = (name, 1.0 if quantity.unit == own.unit else factor(quantity.unit, own.unit))
    return found


def driven_inputs(join: Join) -> dict[Port, Wire]:
    """Input port -> the wire that drives it."""
    return {wire.target: wire for wire in join.wires if not wire.parameter}


@functools.cache
def _free_inputs(join: Join) -> dict[Port, tuple[str, Quantity]]:
    """Port -> name and quantity of the composite's input that it reads; parameters only where wired."""
    wires, names, found = driven_inputs(join), names_of(join), {}
    for part, model in join.parts:
        for field, quantity in model.schema().inputs.items():
            port = Port(part, field)
            if port not in wires:
                unit = per_time(quantity.unit, model.time, join.time)
                found[port] = (names[port], replace(quantity, unit=unit, prior=None, plausible=None))
    shared: dict[str, Quantity] = {}
    for wire in join.wires:
        if not wire.source.part:
            schema = join.model(wire.target.part).schema()
            own = (schema.parameters if wire.parameter else schema.inputs)[wire.target.field]
            # The first wire gave the input its unit, to which the factors of all refer.
            kept = replace(own, unit=wire.unit, prior=None, plausible=None)
            found[wire.target] = (wire.source.field, shared.setdefault(wire.source.field, kept))
    return found


@functools.cache
def names_of(join: Join) -> dict[Port, str]:
    """Names of free inputs and of outputs: their own where unique, else with the part's before it."""
    targets = driven_inputs(join)
    ports = [
        port
        for part, model in join.parts
        for port in [
            *(Port(part, f) for f in model.schema().inputs if Port(part, f) not in targets),
            *(Port(part, field) for field in model.schema().outputs),
        ]
    ]
    wired_names = list(dict.fromkeys(wire.source.field for wire in join.wires if not wire.source.part))
    fields = [port.field for port in ports] + wired_names
    names = {
        port: port.field if fields.count(port.field) == 1 else f"{port.part}_{port.field}" for port in ports
    }
    given = [*names.values(), *wired_names]
    if twice := sorted({name for name in given if given.count(name) > 1}):
        raise ValueError(f"inputs and outputs of the parts share the names {twice}: name parts or wires anew")
    return names


# Typed as plain: a class made at run time is beyond what can be told from the source.
_make_class: Any = type(eqx.Module)


def _struct(name: str, fields: Mapping[str, tuple[Any, Any]]) -> type:
    """An `eqx.Module` class with these fields: name -> (type, field)."""
    body = {field: declared for field, (_, declared) in fields.items()}
    body["__annotations__"] = {field: kind for field, (kind, _) in fields.items()}
    body["__module__"], body["__doc__"] = __name__, f"{name} of a composite, by part or by name."
    return _make_class(name, (eqx.Module,), body)


def _plain(quantity: Quantity, **default: Any) -> tuple[Any, Any]:
    return Any, eqx.field(metadata={"quantity": quantity}, **default)


@functools.cache
def state_class(join: Join) -> type:
    """A field for every part's State."""
    return _struct("State", {part: (Any, eqx.field()) for part, _ in join.parts})


@functools.cache
def params_class(join: Join) -> type:
    """A field for every part's Params."""
    return _struct("Params", {part: (Any, eqx.field()) for part, _ in join.parts})


@functools.cache
def inputs_class(join: Join) -> type:
    """A field for every input that no part drives."""
    return _struct("Inputs", {name: _plain(quantity) for name, quantity in _free_inputs(join).values()})


def neutral_inputs(join: Join) -> dict[str, Any]:
    """Input of the composite -> its neutral value: that of the first port that reads it."""
    found: dict[str, Any] = {}
    parameters = {wire.target: wire.factor for wire in join.wires if wire.parameter}
    for port, (name, _) in _free_inputs(join).items():
        model = join.model(port.part)
        own = model.params() if port in parameters else model.inputs()
        scale = parameters[port] if port in parameters else join.outer()[port][1]
        found.setdefault(name, values(own)[port.field] / scale)
    return found


@functools.cache
def outputs_class(join: Join) -> type:
    """A field for every output of every part."""
    names = names_of(join)
    return _struct(
        "Outputs",
        {
            names[Port(part, field)]: _plain(quantity)
            for part, model in join.parts
            for field, quantity in model.schema().outputs.items()
        },
    )


def without_priors(p: Any, driven: Mapping[str, Wire]) -> Any:
    """`p`, where the driven parameters have no prior: nobody estimates them."""
    own = {name: q for name, q in quantities(p).items() if name in driven}
    if not own:
        return p
    said = tuple((n, q.unit, q.doc, str(driven[n].source).strip(".")) for n, q in own.items())
    kind = _driven_class(type(p), said)
    return kind(**{field: getattr(p, field) for field in type(p).__dataclass_fields__})


@functools.cache
def _driven_class(kind: type, driven: tuple[tuple[str, str, str, str], ...]) -> type:
    # The default is never used: it is there because fields after these have one.
    body: dict[str, Any] = {
        name: _plain(Quantity(unit, None, f"driven by {source}", doc), default=0.0)[1]
        for name, unit, doc, source in driven
    }
    body["__annotations__"] = dict.fromkeys(body, Any)
    body["__module__"], body["__doc__"] = __name__, kind.__doc__
    return _make_class(kind.__name__, (kind,), body)
