"""What a composite is made of: its parts and wires, and the structs that hold theirs side by side."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax

from dtwin_jax.core.quantity import Quantity, quantities
from dtwin_jax.core.units import factor
from dtwin_jax.dynamics.wiring import Parts, Port, Wire, drive, per_time


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
        inputs = drive(self.model(part).inputs(), self.given(part, u))
        driven = {
            wire.target.field: wire.factor * shown[wire.source]
            for wire in self.wires
            if wire.target.part == part and wire.source in shown
        }
        return drive(inputs, driven), drive(getattr(p, part), driven)

    def given(self, part: str, u: Any) -> dict[str, Any]:
        """Inputs of `part` that come from inputs of the composite, in the part's units."""
        return {
            field: scale * getattr(u, outer)
            for (owner, field), (outer, scale) in self.outer().items()
            if owner == part
        }

    def outer(self) -> dict[Port, tuple[str, float]]:
        """Port -> (input of the composite, factor): wired ones and those that no wire drives."""
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
    wires = {wire.target: wire for wire in join.wires}
    found = {}
    for port, (name, quantity) in _free_inputs(join).items():
        own = join.model(port.part).schema().inputs.get(port.field)
        scale = wires[port].factor if port in wires else 1.0
        if port not in wires and own is not None and quantity.unit != own.unit:
            scale = factor(quantity.unit, own.unit)
        found[port] = (name, scale)
    return found


@functools.cache
def _free_inputs(join: Join) -> dict[Port, tuple[str, Quantity]]:
    """Port -> name and quantity of the composite's input that it reads."""
    wires = {wire.target: wire for wire in join.wires}
    names, found = names_of(join), {}
    for part, model in join.parts:
        fields = model.schema().inputs | model.schema().parameters
        for field, quantity in fields.items():
            port = Port(part, field)
            if port in wires and wires[port].source.part:
                continue
            if port not in wires and field not in model.schema().inputs:
                continue
            name = wires[port].source.field if port in wires else names[port]
            unit = per_time(quantity.unit, model.time, join.time)
            kept = Quantity(unit, None, "", quantity.doc, quantity.molar_mass, None)
            found[port] = (name, next((q for n, q in found.values() if n == name), kept))
    return found


@functools.cache
def names_of(join: Join) -> dict[Port, str]:
    """Names of free inputs and of outputs: their own where unique, else with the part's before it."""
    targets = {wire.target for wire in join.wires}
    ports = [
        Port(part, field)
        for part, model in join.parts
        for field in [*model.schema().inputs, *model.schema().outputs]
        if Port(part, field) not in targets
    ]
    wired_names = [wire.source.field for wire in join.wires if not wire.source.part]
    fields = [port.field for port in ports] + list(dict.fromkeys(wired_names))
    return {
        port: port.field if fields.count(port.field) == 1 else f"{port.part}_{port.field}" for port in ports
    }


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
    """A field for every input that no part drives, neutral as in the first part that reads it."""
    fields = {}
    for port, (name, quantity) in _free_inputs(join).items():
        neutral = _default(join.model(port.part), port.field) / join.outer()[port][1]
        fields.setdefault(name, _plain(quantity, default=neutral))
    return _struct("Inputs", fields)


def _default(model: Any, field: str) -> float:
    """The default of an input or parameter, as declared: an instance would start a backend."""
    kinds: list[type] = []
    jax.eval_shape(lambda: kinds.extend((type(model.inputs()), type(model.params()))))
    declared = next(kind.__dataclass_fields__[field] for kind in kinds if field in kind.__dataclass_fields__)
    return float(declared.default)


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
