"""Several models as one patient: `couple` joins them through named ports into a Model like any other."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import assign, quantities, replace_fields, values
from dtwin_jax.core.signal import AbstractSignal, Doses
from dtwin_jax.dynamics.join import (
    Join,
    inputs_class,
    names_of,
    neutral_inputs,
    outputs_class,
    pace,
    params_class,
    state_class,
    without_priors,
)
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.dynamics.wiring import Port, dependencies, read_order, wired


def couple(
    name: str,
    parts: Mapping[str, Model],
    wires: Mapping[str, str],
    *,
    time: str | None = None,
    solver: Solver | None = None,
    source: str = "",
) -> Model:
    """One model of several parts.

    The parameters are those of the parts, by part (`"heart.period"`). Inputs and outputs keep their names
    where these are unique, and are named `part_name` where not. Inputs that no wire drives are inputs of
    the composite.

    Args:
        name: of the composite.
        parts: part -> model. Their units of time may differ. A part may have no state.
        wires: what each port reads: `"tumour.concentration": "drug.concentration"`. The target is an input
            or a parameter of a part. A driven parameter is no longer estimated, and may be used in drift,
            observe, diffusion and event only. The source is an output of a part or, without a dot, an input
            of the composite, which several ports may read. Units are converted where they can be.
        time: the composite's unit of time; by default that of the first part.
        solver: how it is solved. By default the first implicit method among the parts (else the first
            part's), the tightest tolerance, and each state's absolute tolerance as in its part.
        source: citation of the whole.

    Raises:
        ValueError: no part, a part's name with a dot, a port does not exist, units cannot be converted,
            outputs contain each other (an algebraic loop), a driven parameter sets a start, an error or a
            dosing, or two things share a name: with the wire, the names or the ports along the loop.
    """
    _check_parts(name, parts)
    time = time or next(iter(parts.values())).time
    found = wired(name, parts, wires, time)
    pairs = tuple(parts.items())
    join = Join(pairs, found, time, read_order(name, pairs, found))
    _refuse_shared_dosing(join)
    _refuse_driven_elsewhere(join)
    noisy = any(model.diffusion is not None for model in parts.values())
    return Model(
        name=name,
        params=_Params(join),
        inputs=_Inputs(join),
        init=_Init(join),
        drift=_Drift(join),
        observe=_Observe(join),
        noise=_Noise(join),
        diffusion=_Diffusion(join) if noisy else None,
        dosing=_Dosing(join) if any(model.dosing for model in parts.values()) else None,
        event=_Event(join) if any(model.event for model in parts.values()) else None,
        time=time,
        solver=solver or _solver_for(parts.values(), time),
        source=source or "; ".join(model.source for model in parts.values()),
        stiffness="; ".join(f"{part}: {model.stiffness}" for part, model in pairs if model.stiffness),
        valid="; ".join(f"{part}: {model.valid}" for part, model in pairs if model.valid),
    )


def _check_parts(name: str, parts: Mapping[str, Model]) -> None:
    if not parts:
        raise ValueError(f"{name}: parts is empty; wanted part -> model, one at least")
    for part in parts:
        if "." in part:
            raise ValueError(
                f"{name}: the name of part {part!r} has a dot, which parts a part from its port; "
                f"call it {part.replace('.', '_')!r}"
            )


def _refuse_shared_dosing(join: Join) -> None:
    """What one part's dosing does to a signal (a lag) must not reach another part that reads it."""
    readers: dict[str, list[Port]] = {}
    for port, (name, _) in join.outer().items():
        readers.setdefault(name, []).append(port)
    for name, ports in readers.items():
        if len(ports) > 1 and (dosed := sorted({p.part for p in ports if join.model(p.part).dosing})):
            raise ValueError(
                f"input {name!r} is read by {', '.join(map(str, ports))}, and {', '.join(dosed)} would "
                "change its doses for all of them (dosing); leave these ports unwired, give each the signal"
            )


def _refuse_driven_elsewhere(join: Join) -> None:
    """A wire has a value while the composite moves, not when a part starts, is dosed or measured."""
    for part, model in join.parts:
        wires = [wire for wire in join.wires if wire.target.part == part]
        names = [wire.target.field for wire in wires if wire.parameter]
        for role, function in (("init", _started), ("noise", _measured), ("dosing", _dosed)):
            if role == "dosing" and model.dosing is None:
                continue
            reached = dependencies(functools.partial(function, model), names) if names else {}
            for name in sorted(set().union(*reached.values())):
                raise ValueError(
                    f"{part}.{name} is driven by a wire, but the {role} of {part} uses it, where no wire has "
                    "a value yet: drive something else, or change the model"
                )
        fed = [wire.target.field for wire in wires if wire.source.part and not wire.parameter]
        for name in _dosed_by(model, fed) if model.dosing is not None and fed else ():
            raise ValueError(
                f"{part}.{name} is driven by a wire, but the dosing of {part} works on it, on a signal given "
                "beforehand: couple replace(model, dosing=None), which drops lag and bioavailability too, or "
                "leave it unwired"
            )


def _dosed_by(model: Any, fed: list[str]) -> list[str]:
    """Those of the inputs `fed` that the model's dosing changes, or makes others of."""
    changed: set[str] = set()

    def others(given: Mapping[str, Any]) -> dict[str, Any]:
        u = model.inputs()
        signals = _any_doses(u) | {
            name: Doses(jnp.ones(1), value[None], jnp.ones(1)) for name, value in given.items()
        }
        dosed = model.dosing(replace_fields(u, signals), model.params())
        changed.update(name for name in fed if getattr(dosed, name) is not signals[name])
        return _numbered([getattr(dosed, name) for name in quantities(u) if name not in fed])

    return sorted(changed | set().union(*dependencies(others, fed).values()))


def _numbered(tree: Any) -> dict[str, Any]:
    return {str(i): jnp.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _started(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    return _numbered(model.init(assign(model.params(), given)))


def _measured(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    p = model.params()
    y = model.observe(jnp.asarray(0.0), model.init(p), model.inputs(), p)
    return _numbered(model.noise(y, assign(p, given)))


def _dosed(model: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    u = model.inputs()
    return _numbered(model.dosing(replace_fields(u, _any_doses(u)), assign(model.params(), given)))


def _any_doses(u: Any) -> dict[str, Doses]:
    return {name: Doses(jnp.ones(1), jnp.ones(1), jnp.ones(1)) for name in quantities(u)}


@dataclass(frozen=True)
class _Params:
    """The parts' own defaults. A parameter that a wire drives has no prior: nobody estimates it."""

    join: Join

    def __call__(self) -> Any:
        made = {}
        for part, model in self.join.parts:
            driven = {w.target.field: w for w in self.join.wires if w.target.part == part and w.parameter}
            made[part] = without_priors(model.params(), driven)
        return params_class(self.join)(**made)


@dataclass(frozen=True)
class _Inputs:
    """The inputs that no part drives, neutral."""

    join: Join

    def __call__(self) -> Any:
        return inputs_class(self.join)(**neutral_inputs(self.join))


@dataclass(frozen=True)
class _Init:
    """Every part at its own start."""

    join: Join

    def __call__(self, p: Any) -> Any:
        made = {part: model.init(getattr(p, part)) for part, model in self.join.parts}
        return state_class(self.join)(**made)


@dataclass(frozen=True)
class _Drift:
    """Rates of every part, per the composite's unit of time."""

    join: Join

    def __call__(self, t: Any, x: Any, u: Any, p: Any) -> Any:
        ports, rates = self.join.ports(t, x, u, p), {}
        for part, model in self.join.parts:
            now, inputs, params = ports[part]
            rate = model.drift(now, getattr(x, part), inputs, params)
            pace = self.join.pace(part)
            rates[part] = jax.tree.map(lambda leaf, pace=pace: leaf * pace, rate)
        return state_class(self.join)(**rates)


@dataclass(frozen=True)
class _Diffusion:
    """Noise of the parts that have it, none on the others."""

    join: Join

    def __call__(self, t: Any, x: Any, u: Any, p: Any) -> Any:
        ports, made = self.join.ports(t, x, u, p), {}
        for part, model in self.join.parts:
            own = getattr(x, part)
            if model.diffusion is None:
                made[part] = jax.tree.map(jnp.zeros_like, own)
                continue
            now, inputs, params = ports[part]
            size = math.sqrt(self.join.pace(part))
            spread = model.diffusion(now, own, inputs, params)
            made[part] = jax.tree.map(lambda leaf, size=size: leaf * size, spread)
        return state_class(self.join)(**made)


@dataclass(frozen=True)
class _Observe:
    """What every part shows."""

    join: Join

    def __call__(self, t: Any, x: Any, u: Any, p: Any) -> Any:
        ports, names, shown = self.join.ports(t, x, u, p), names_of(self.join), {}
        for part, model in self.join.parts:
            now, inputs, params = ports[part]
            y = model.observe(now, getattr(x, part), inputs, params)
            shown |= {names[Port(part, field)]: value for field, value in values(y).items()}
        return outputs_class(self.join)(**shown)


@dataclass(frozen=True)
class _Noise:
    """Every part's own errors of measurement."""

    join: Join

    def __call__(self, y: Any, p: Any) -> dict[str, Any]:
        names, found = names_of(self.join), {}
        for part, model in self.join.parts:
            own = model.params()
            example = jax.eval_shape(
                lambda model=model, own=own: model.observe(
                    jnp.asarray(0.0), model.init(own), model.inputs(), own
                )
            )
            shown = {field: getattr(y, names[Port(part, field)]) for field in quantities(example)}
            errors = model.noise(replace_fields(example, shown), getattr(p, part))
            found |= {names[Port(part, field)]: error for field, error in errors.items()}
        return found


@dataclass(frozen=True)
class _Event:
    """What else happens in the parts where doses are given."""

    join: Join

    def __call__(self, t: Any, x: Any, u: Any, given: Any, p: Any) -> Any:
        ports, made = self.join.ports(t, x, u, p), {}
        for part, model in self.join.parts:
            made[part] = getattr(x, part)
            if model.event is None:
                continue
            now, inputs, params = ports[part]
            # An amount is a rate times a time: the part's unit of time enters it.
            own = {field: v * self.join.pace(part) for field, v in self.join.given(part, given).items()}
            amounts = replace_fields(jax.tree.map(jnp.zeros_like, inputs), own)
            made[part] = model.event(now, made[part], inputs, amounts, params)
        return state_class(self.join)(**made)


@dataclass(frozen=True)
class _Dosing:
    """Lag, bioavailability and duration of every part, on the inputs that are its own."""

    join: Join

    def __call__(self, u: Any, p: Any) -> Any:
        changed: dict[str, Any] = {}
        for part, model in self.join.parts:
            if model.dosing is None:
                continue
            outer = {port.field: at for port, at in self.join.outer().items() if port.part == part}
            pace, own = self.join.pace(part), quantities(model.inputs())
            amount = {field: scale * pace for field, (_, scale) in outer.items()}
            signals = {
                field: _restated(getattr(u, name), pace, scale, amount[field])
                for field, (name, scale) in outer.items()
                if field in own
            }
            dosed = model.dosing(replace_fields(model.inputs(), signals), getattr(p, part))
            for field, before in signals.items():
                name, scale = outer[field]
                after = getattr(dosed, field)
                if after is not before:
                    restated = _restated(after, 1 / pace, 1 / scale, 1 / amount[field])
                    changed[name] = _moved(getattr(u, name), before, after, restated, pace)
        return replace_fields(u, changed)


def _moved(given: Any, before: Any, after: Any, restated: Any, pace: float) -> Any:
    """`restated`, at the given times plus how far they were moved.

    There and back through another unit of time, a time comes out a rounding error away, and a measurement at
    the time of a dose on its other side.
    """
    same = isinstance(given, AbstractSignal) and isinstance(after, AbstractSignal)
    if not same or jnp.shape(before.time) != jnp.shape(after.time):
        return restated
    times = given.time + (after.time - before.time) / pace
    return eqx.tree_at(lambda signal: signal.time, restated, times)


def _restated(signal: Any, pace: float, scale: float, amount: float) -> Any:
    """A signal in a part's units: times by `pace`, values by `scale`, amounts of doses by `amount`."""
    if not isinstance(signal, AbstractSignal):
        return signal * scale
    if isinstance(signal, Doses):
        time, given, duration = signal.plain("a composite model")
        rules = signal.rules
        if rules is not None:
            rules = eqx.tree_at(lambda r: r.until, rules, rules.until * pace)
        return Doses(time * pace, given * amount, duration * pace, rules=rules)
    restated: Any = signal
    return eqx.tree_at(lambda s: (s.time, s.value), restated, (restated.time * pace, restated.value * scale))


def _solver_for(models: Any, time: str) -> Solver:
    models = tuple(models)
    bounds = [m.solver.longest / pace(m.time, time) for m in models if m.solver.longest is not None]
    implicit = [m for m in models if isinstance(m.solver.method(), diffrax.AbstractImplicitSolver)]
    noisy = [m for m in models if m.diffusion is not None]
    chosen = (noisy or implicit or list(models))[0]
    first = chosen.solver
    atol: list[float] = []
    for model in models:
        states = jax.tree.leaves(jax.eval_shape(lambda model=model: model.init(model.params())))
        count = sum(math.prod(leaf.shape) for leaf in states)
        atol += np.broadcast_to(np.asarray(model.solver.atol, float), count).tolist()
    return Solver(
        method=first.method,
        rtol=min(model.solver.rtol for model in models),
        atol=atol[0] if len(set(atol)) == 1 else tuple(atol),
        max_steps=max(model.solver.max_steps for model in models),
        longest=min(bounds, default=None),
        dt=None if first.dt is None else first.dt / pace(chosen.time, time),
        adjoint=first.adjoint,
    )
