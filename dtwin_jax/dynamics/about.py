"""What the file of a model says of it: its one line, its equations, the rest of its words; and its solver."""

import functools
import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtwin_jax.core.quantity import quantities, values
from dtwin_jax.dynamics.join import Join
from dtwin_jax.dynamics.relation import still


@dataclass(frozen=True)
class Block:
    """A part of a docstring: equations, verbatim, or a paragraph, unwrapped."""

    text: str
    equations: bool


@dataclass(frozen=True)
class About:
    """What is written of a model, or of a part of one.

    Attributes:
        name: of the model, or `part (model)`.
        line: what it is, in one line without its full stop.
        blocks: the equations and the paragraphs about them, in their order.
    """

    name: str
    line: str
    blocks: tuple[Block, ...]

    @property
    def equations(self) -> str:
        """The equations alone."""
        return "\n\n".join(block.text for block in self.blocks if block.equations)


def about(f: Any) -> About:
    """What the files of the model's parameters and of its drift say (of another predictor: of its class).

    Of a composite: the line of the file that joins it, known by its typical study, else the names of its
    parts; their equations are those of `parts`.
    """
    join = join_of(f)
    if join is None:
        return _about(f, "")
    said = _read(_joined_in(f))
    line = said.line_of(f.name) or "Coupled: " + ", ".join(part for part, _ in join.parts)
    return About(f.name, line, said.blocks)


def parts(f: Any) -> tuple[About, ...]:
    """What is written of a composite and of each of its parts; of another model, of itself."""
    join = join_of(f)
    if join is None:
        return (about(f),)
    inside = [about(f)]
    for part, model in join.parts:
        for found in parts(model) if join_of(model) else (_about(model, _joined_in(f)),):
            name = f"{part} ({model.name})" if found.name == model.name else f"{part}.{found.name}"
            inside.append(About(name, found.line, found.blocks))
    return tuple(inside)


def _about(f: Any, without: str) -> About:
    """The files of a model that is no composite; of the file `without` only its line on this very model.

    A model of which no file says a line has that of its outputs.
    """
    homes = dict.fromkeys(_module_of(getattr(f, name, type(f))) for name in ("params", "drift"))
    files = [(home, _read(home)) for home in homes if home != _module_of(still)]
    found = [said for home, said in files if home != without]
    own = next((said.variants[f.name] for _, said in files if f.name in said.variants), "")
    shown = inspect.cleandoc(getattr(getattr(f, "observe", None), "__doc__", None) or "").split("\n")[0]
    line = own or next((said.line for said in found if said.line), "") or shown.rstrip(".")
    return About(f.name, line, tuple(block for said in found for block in said.blocks))


def _joined_in(f: Any) -> str:
    """The file that joins a composite."""
    return _module_of(getattr(f, "example", None))


def wires(f: Any) -> tuple[tuple[str, str, float], ...]:
    """Of a composite (port, what drives it, factor of the units) of each wire; of another model none."""
    join = join_of(f)
    if join is None:
        return ()
    return tuple((str(wire.target), str(wire.source).lstrip("."), float(wire.factor)) for wire in join.wires)


def join_of(f: Any) -> Join | None:
    """The parts and wires of a composite; None of a model that is none."""
    found = getattr(getattr(f, "drift", None), "join", None)
    return found if isinstance(found, Join) else None


def kind_words(f: Any) -> str:
    """What kind of equations the model is, and its unit of time."""
    noisy = getattr(f, "diffusion", None) is not None
    return f"{'Stochastic' if noisy else 'Ordinary'} differential equations, time in {f.schema().time_unit}"


def solver_words(f: Any) -> str:
    """How the model is solved by default, as a sentence without its full stop."""
    solver = getattr(f, "solver", None)
    if solver is None:
        return ""
    method = getattr(solver.method, "__name__", str(solver.method))
    if solver.dt is not None:
        return f"{method}, steps of {solver.dt:g} {f.time}"
    low, high = np.min(solver.atol), np.max(solver.atol)
    atol = _power(low) if low == high else f"{_power(low)} to {_power(high)} by state"
    words = f"{method}, relative tolerance {_power(solver.rtol)}, absolute {atol}"
    exact = getattr(f, "flow", None) is not None and f.diffusion is None
    return f"exact where inputs are constant between events, else {words}" if exact else words


def _power(value: Any) -> str:
    return f"{float(value):g}".replace("e-0", "e-")


def declared(f: Any) -> dict[str, Any]:
    """All that a model declares, as plain data."""
    schema, p = f.schema(), f.params()
    numbers, neutral = values(p), values(f.inputs()) if hasattr(f, "inputs") else {}
    states = quantities(f.init(p)) if hasattr(f, "init") else {}
    listed: dict[str, Any] = {}
    for kind, found in (("states", states), ("inputs", schema.inputs), ("outputs", schema.outputs)):
        listed[kind] = [{"name": name, "unit": q.unit, "doc": q.doc} for name, q in found.items()]
    for one in listed["inputs"]:
        one["neutral"] = float(neutral[one["name"]]) if one["name"] in neutral else None
    return {
        "name": f.name,
        "about": about(f).line,
        "time_unit": schema.time_unit,
        "kind": kind_words(f),
        "stochastic": getattr(f, "diffusion", None) is not None,
        **{name: getattr(f, name, "") for name in ("source", "valid", "stiffness", "checked")},
        "solver": solver_words(f),
        "parts": [
            {
                "name": part.name,
                "about": part.line,
                "equations": part.equations,
                "text": [block.text for block in part.blocks if not block.equations],
            }
            for part in parts(f)
        ],
        "wires": [
            {"target": target, "source": source, "factor": scale} for target, source, scale in wires(f)
        ],
        "parameters": [
            {
                "name": name,
                "value": float(numbers[name]),
                "unit": q.unit,
                "prior": None if q.prior is None else q.prior.as_dict(),
                "source": q.source,
                "doc": q.doc,
            }
            for name, q in schema.parameters.items()
        ],
        **listed,
    }


def _module_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__module__", None) or ""


@dataclass(frozen=True)
class _Said:
    """What the docstring of a module says: its first line, a line for each variant, and the blocks."""

    line: str
    variants: dict[str, str]
    blocks: tuple[Block, ...]

    def line_of(self, name: str) -> str:
        return self.variants.get(name, self.line)


@functools.cache
def _read(module: str) -> _Said:
    """The docstring of a module. A paragraph `Variants:` has a line `name: words` for each of its models."""
    text = inspect.cleandoc(getattr(sys.modules.get(module), "__doc__", None) or "")
    first, _, rest = text.partition("\n\n")
    blocks: list[Block] = []
    variants: dict[str, str] = {}
    for part in (part.strip("\n") for part in rest.split("\n\n") if part.strip()):
        lines = part.split("\n")
        if lines[0] == "Variants:":
            named = (line.partition(":") for line in lines[1:])
            variants |= {name.strip(): words.strip() for name, _, words in named}
            continue
        equations = all(line.startswith("    ") for line in lines)
        said = textwrap.dedent(part) if equations else " ".join(line.strip() for line in lines)
        if equations and blocks and blocks[-1].equations:
            said = blocks.pop().text + "\n\n" + said
        blocks.append(Block(said, equations))
    return _Said(" ".join(first.split()).rstrip("."), variants, tuple(blocks))
