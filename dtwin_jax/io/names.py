"""The names that a table may use: the model is the schema."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dtwin_jax.core.quantity import Quantity
from dtwin_jax.core.units import product
from dtwin_jax.io.cells import Kind
from dtwin_jax.io.rows import Source, TableError

UNKNOWN, IGNORED = -1, -2
INPUT, OUTPUT, KNOWN = "input", "output", "known"
SHAPES = ("sampled", "steps")


@dataclass(frozen=True)
class Target:
    """What a fact of a table is about.

    Attributes:
        kind: an input or output of the model, or a value known of the patient.
        name: as the model has it.
        quantity: unit and range.
        shape: how the values of an input stand between their times; empty where the caller did not say.
    """

    kind: Literal["input", "output", "known"]
    name: str
    quantity: Quantity
    shape: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """The model's names and what the caller said of the file's.

    Attributes:
        targets: what facts can be about; facts hold positions in it.
        time_unit: the model's.
        rename: name in the file -> name in the model, None for "ignore".
        units: column or name -> unit in the file.
        compartments: NONMEM compartment -> input.
        covariates: the caller's names of covariates.
    """

    targets: tuple[Target, ...]
    time_unit: str
    rename: Mapping[str, str | None]
    units: Mapping[str, str]
    compartments: Mapping[str, str]
    covariates: tuple[str, ...]

    def of_kind(self, kind: str) -> list[int]:
        """Positions of the targets of a kind."""
        return [i for i, target in enumerate(self.targets) if target.kind == kind]

    def listed(self) -> str:
        """The names, for a message."""
        parts = []
        for kind, word in ((INPUT, "inputs"), (OUTPUT, "outputs"), (KNOWN, "parameters and covariates")):
            names = [self.targets[i].name for i in self.of_kind(kind)]
            if names:
                parts.append(f"{word} {', '.join(names)}")
        return "; ".join(parts) or "no names at all"


@dataclass(frozen=True)
class Layout:
    """What each column is: fixed roles, and columns that are named like something of the model.

    Attributes:
        roles: role -> (position, kind of cell), as `read_columns` takes them.
        columns: role of a model's column -> target.
    """

    roles: dict[str, tuple[int, Kind]]
    columns: dict[str, int]


def vocabulary(
    f: Any,
    rename: Mapping[str, str | None] | None = None,
    units: Mapping[str, str] | None = None,
    covariates: Mapping[str, str] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Vocabulary:
    """The names of a predictor, with what the caller said of the file.

    Args:
        f: predictor with `schema()`.
        rename: name in the file -> name in the model, None for "ignore".
        units: column or name -> unit in the file.
        covariates: name -> unit in the file, of values that the file has and the model may lack.
        inputs: NONMEM compartment -> input, or input -> "steps" or "sampled".

    Raises:
        ValueError: a name that the model has not.
    """
    schema = f.schema()
    covariates, inputs = dict(covariates or {}), dict(inputs or {})
    shapes = {name: shape for name, shape in inputs.items() if name in schema.inputs and shape in SHAPES}
    compartments = {str(key): name for key, name in inputs.items() if key not in shapes}
    for key, name in compartments.items():
        if name not in schema.inputs:
            has = f"{f.name} has no input {name!r}; it has {sorted(schema.inputs)}"
            raise ValueError(f"inputs={{{key!r}: {name!r}}}: {has}{suggestion(name, schema.inputs)}")
    stepped = {name.casefold() for name in covariates}
    shapes = {name: "steps" for name in schema.inputs if name.casefold() in stepped} | shapes
    targets = [Target(INPUT, name, q, shapes.get(name, "")) for name, q in schema.inputs.items()]
    targets += [Target(OUTPUT, name, q) for name, q in schema.outputs.items()]
    # A name that is both an input and a parameter is the input: only that can vary.
    targets += [Target(KNOWN, name, q) for name, q in schema.parameters.items() if name not in schema.inputs]
    named = {target.name.casefold() for target in targets}
    targets += [
        Target(KNOWN, name, Quantity(unit))
        for name, unit in covariates.items()
        if name.casefold() not in named
    ]
    stated = {**covariates, **(units or {})}
    return Vocabulary(
        tuple(targets), schema.time_unit, dict(rename or {}), stated, compartments, tuple(covariates)
    )


def find(vocabulary: Vocabulary, name: str) -> int:
    """Position of the target that a name in a file means, `IGNORED` or `UNKNOWN`.

    The exact name first; then, if only one fits, without regard to case.
    """
    new = renamed(vocabulary, name)
    if new is None:
        return IGNORED
    names = [target.name for target in vocabulary.targets]
    if new in names:
        return names.index(new)
    folded = [i for i, known in enumerate(names) if known.casefold() == new.casefold()]
    return folded[0] if len(folded) == 1 else UNKNOWN


def renamed(vocabulary: Vocabulary, name: str) -> str | None:
    """A name in the file as the caller renamed it; None where it is to be ignored."""
    if name in vocabulary.rename:
        return vocabulary.rename[name]
    for key, new in vocabulary.rename.items():
        if str(key).casefold() == name.casefold():
            return new
    return name


def amount_unit(unit: str, time_unit: str) -> str:
    """The unit of an amount given through an input in `unit`, as short as can be said: mg for mg/h."""
    short = unit.removesuffix(f"/{time_unit}")
    return short if short and short != unit else product(unit, time_unit)


def suggestion(name: str, options: Iterable[str]) -> str:
    """`"; did you mean 'time'?"`, or nothing."""
    by_fold = {option.casefold(): option for option in options}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=1)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""


def lay_out(
    source: Source,
    vocabulary: Vocabulary,
    fixed: Mapping[str, Kind],
    required: Iterable[str],
    model_columns: bool,
) -> Layout:
    """Give every column its role.

    Args:
        source: the table.
        vocabulary: the model's names.
        fixed: role -> kind of cell, of the columns that this form of table has.
        required: roles that must be there.
        model_columns: whether columns may be named like inputs, outputs, parameters and covariates.

    Raises:
        TableError: a column is missing, unknown, or there twice.
    """
    roles: dict[str, tuple[int, Kind]] = {}
    columns: dict[str, int] = {}
    unknown: list[str] = []
    for position, header in enumerate(source.header):
        name = renamed(vocabulary, header)
        if name is None:
            continue
        role = role_of(name)
        target = find(vocabulary, header) if model_columns and role not in fixed else UNKNOWN
        if target >= 0:
            role = f"={vocabulary.targets[target].name}"
            columns[role] = target
        elif role not in fixed:
            unknown.append(header)
            continue
        if role in roles:
            other = source.header[roles[role][0]]
            raise source.error(
                column=header, found=f"a second column for {role!r} beside {other!r}", expected="one"
            )
        measured = target >= 0 and vocabulary.targets[target].kind == OUTPUT
        roles[role] = (position, "limit" if measured else "number" if target >= 0 else fixed[role])
    _check_required(source, roles, unknown, required)
    options = [*fixed, *(target.name for target in vocabulary.targets if model_columns)]
    _check_unknown(source, unknown, options)
    if model_columns:
        _check_covariates(source, vocabulary, columns)
    _check_units(source, vocabulary)
    return Layout(roles, columns)


def role_of(name: str) -> str:
    """The role that a column's name says, `"id"` for `"Patient"`."""
    folded = name.casefold()
    return "id" if folded == "patient" else folded


def _check_required(
    source: Source, roles: Mapping[str, Any], unknown: list[str], required: Iterable[str]
) -> None:
    folded = {name.casefold(): name for name in unknown}
    for role in required:
        if role in roles:
            continue
        near = difflib.get_close_matches(role, folded, n=1)
        found = f"columns {', '.join(source.header)}"
        if near:
            wrong = folded[near[0]]
            found = f"{wrong!r}, which seems to be misspelt; or pass rename={{{wrong!r}: {role!r}}}"
        raise source.error(line=source.header_line, column=role, what="the column is missing", found=found)


def _check_unknown(source: Source, unknown: list[str], options: list[str]) -> None:
    if not unknown:
        return
    hints = "".join(suggestion(name, options) for name in unknown)
    raise source.error(
        line=source.header_line,
        what=f"unknown column{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}",
        expected=f"one of {', '.join(options)}{hints}; pass covariates={{name: unit}} for a covariate, "
        f"rename={{{unknown[0]!r}: None}} to ignore a column",
    )


def _check_covariates(source: Source, vocabulary: Vocabulary, columns: Mapping[str, int]) -> None:
    for name in vocabulary.covariates:
        if find(vocabulary, name) not in columns.values():
            near = suggestion(name, source.header)
            raise source.error(line=source.header_line, what=f"no column for the covariate {name!r}{near}")


def _check_units(source: Source, vocabulary: Vocabulary) -> None:
    options = [*source.header, *(target.name for target in vocabulary.targets), "time", "duration"]
    options += [name for header in source.header if (name := renamed(vocabulary, header)) is not None]
    folded = {option.casefold() for option in options}
    for name in vocabulary.units:
        if name.casefold() not in folded:
            near = suggestion(name, options)
            raise TableError(
                f"{source.file}: units has {name!r}, which is no column and no name of the model{near}"
            )
