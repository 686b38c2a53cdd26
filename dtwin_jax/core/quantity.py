"""A number's unit, prior and source, declared once: on the field that holds it."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax

from dtwin_jax.core.prior import Prior
from dtwin_jax.core.types import Scalar, as_float

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What is known of a field besides its value.

    Attributes:
        unit: UCUM unit, `"1"` for a pure number.
        prior: a prior makes a parameter estimated; without one it is known.
        source: where the value and prior come from.
        doc: what it is, in a few words.
        molar_mass: g/mol, lets a reader convert between mass and amount of substance.
        plausible: the range outside which a measured value is taken for an error, in `unit`.
    """

    unit: str
    prior: Prior | None = None
    source: str = ""
    doc: str = ""
    molar_mass: float | None = None
    plausible: tuple[float, float] | None = None


def param(value: float, unit: str, prior: Prior | None = None, *, source: str = "", doc: str = "") -> Any:
    """Declare a parameter: a field of an `eqx.Module` with a value, a unit and perhaps a prior.

    Args:
        value: the value where it is known, the starting point where it is estimated.
        unit: UCUM unit.
        prior: a prior makes the parameter estimated, from its support comes the bijector.
        source: citation of value and prior.
        doc: what it is.
    """
    quantity = Quantity(unit, prior, source, doc)
    return eqx.field(default=value, converter=as_float, metadata={"quantity": quantity})


def var(
    unit: str,
    *,
    neutral: float | None = None,
    doc: str = "",
    molar_mass: float | None = None,
    plausible: tuple[float, float] | None = None,
) -> Any:
    """Declare a state, input or output: a field with a unit.

    Args:
        unit: UCUM unit.
        neutral: inputs only, the value where nothing is given; makes `Inputs()` valid.
        doc: what it is.
        molar_mass: g/mol of the substance, if it is one.
        plausible: (low, high) outside which a reader refuses a measured value.
    """
    quantity = Quantity(unit, None, "", doc, molar_mass, plausible)
    default: dict[str, Any] = {} if neutral is None else {"default": neutral}
    return eqx.field(converter=as_float, metadata={"quantity": quantity}, **default)


def quantities(tree: Any) -> dict[str, Quantity]:
    """Dotted field name -> `Quantity`, for an instance (or class, if flat) of an `eqx.Module`.

    Fields without a `Quantity` that hold modules are entered; other fields are passed over.
    """
    found: dict[str, Quantity] = {}
    for field in dataclasses.fields(tree) if dataclasses.is_dataclass(tree) else ():
        quantity = field.metadata.get("quantity")
        if quantity is not None:
            found[field.name] = quantity
        elif not isinstance(tree, type):
            inner = quantities(getattr(tree, field.name))
            found |= {f"{field.name}.{name}": q for name, q in inner.items()}
    return found


def values(tree: Any) -> dict[str, Any]:
    """Dotted name -> value, for the fields of `tree` that have a `Quantity`."""
    return {name: _get(tree, name) for name in quantities(tree)}


def assign(tree: Tree, new: Mapping[str, Any]) -> Tree:
    """`tree` with the named fields replaced.

    Args:
        tree: an `eqx.Module` of quantities.
        new: dotted name -> value. Values may carry leading axes (a cohort, draws).

    Raises:
        ValueError: a name is not a quantity of `tree`.
    """
    known = quantities(tree)
    check_names(type(tree).__name__, "parameter", new, known)
    heads: dict[str, Any] = {}
    for name, value in new.items():
        head, _, rest = name.partition(".")
        if rest:
            heads[head] = assign(heads.get(head, getattr(tree, head)), {rest: value})
        else:
            heads[head] = as_float(value)
    return replace_fields(tree, heads)


def replace_fields(tree: Tree, new: Mapping[str, Any]) -> Tree:
    """`tree` with these fields replaced by any values, without conversion or checks.

    Unlike `dataclasses.replace` it takes values with leading axes and signals in place of numbers.
    """
    children, structure = jax.tree.flatten_with_path(tree, is_leaf=lambda node: node is not tree)
    return jax.tree.unflatten(structure, [new.get(path[0].name, child) for path, child in children])


def with_fields(tree: Any, more: Mapping[str, tuple[Any, Quantity]]) -> Any:
    """`tree` with more fields, name -> (value, quantity): an instance of a class that has them all."""
    wider = _wider(type(tree), tuple((name, quantity) for name, (_, quantity) in more.items()))
    made = object.__new__(wider)
    for name, value in (dict(vars(tree)) | {name: value for name, (value, _) in more.items()}).items():
        object.__setattr__(made, name, as_float(value))
    return made


@functools.cache
def _wider(kind: type, fields: tuple[tuple[str, Quantity], ...]) -> type:
    """`kind` with further fields."""
    body: dict[str, Any] = {"__annotations__": {}, "__module__": kind.__module__}
    for name, quantity in fields:
        body["__annotations__"][name] = Scalar
        body[name] = eqx.field(default=0.0, converter=as_float, metadata={"quantity": quantity})
    return type(kind)(kind.__name__, (kind,), body)


def check_names(owner: str, kind: str, names: Any, known: Any) -> None:
    """Raise `ValueError` naming the first of `names` that is not among `known`."""
    for name in names:
        if name not in known:
            raise ValueError(f"{owner} has no {kind} {name!r}; it has {sorted(known)}")


def _get(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = getattr(tree, part)
    return tree
