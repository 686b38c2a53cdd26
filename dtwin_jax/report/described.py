"""What a model declares of itself, for a page: equations, units, sources, range of validity."""

from dataclasses import dataclass
from typing import Any

from dtwin_jax.dynamics.about import About, about, declared, parts
from dtwin_jax.report.tables import Table, prior_words, significant


@dataclass(frozen=True)
class Described:
    """The part of a model card that needs no computation.

    Attributes:
        name: of the model.
        line: what it is, in one line.
        parts: equations and words, of the model or of each of its parts.
        wires: what drives what between the parts; None of a model that has none.
        facts: heading and sentence: validity, stiffness, solver, check, citation.
        variables: name and table of states, inputs and outputs.
        parameters: value, unit, prior, meaning and source of each.
    """

    name: str
    line: str
    parts: tuple[About, ...]
    wires: Table | None
    facts: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, Table], ...]
    parameters: Table


def describe(f: Any) -> Described:
    """The static part of the card of a model, also of a composite, and of any predictor with a schema."""
    said = declared(f)
    return Described(
        name=said["name"],
        line=about(f).line,
        parts=tuple(part for part in parts(f) if part.blocks),
        wires=_wires(said["wires"]),
        facts=_facts(said),
        variables=tuple((kind, _variables(kind, said[kind])) for kind in ("states", "inputs", "outputs")),
        parameters=_parameters(said["parameters"]),
    )


def _facts(said: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = (
        ("Range of validity", said["valid"]),
        ("Stiffness", said["stiffness"]),
        ("Default solver", said["solver"]),
        ("Checked against", said["checked"]),
        ("Kind", said["kind"]),
        ("Source", said["source"]),
    )
    return tuple((head, _sentence(text)) for head, text in rows)


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else "Not stated."


def _variables(kind: str, rows: list[dict[str, Any]]) -> Table:
    inputs = kind == "inputs"
    head = (kind[:-1], "unit", *(("neutral",) * inputs), "")
    lines = []
    for row in rows:
        neutral = (significant(row["neutral"]),) if inputs else ()
        lines.append((row["name"], _unit(row["unit"]), *neutral, row["doc"]))
    return Table(head, tuple(lines), 2, remark=True)


def _parameters(rows: list[dict[str, Any]]) -> Table:
    head = ("parameter", "value", "unit", "prior", "meaning", "source of the numbers")
    lines = [
        (
            row["name"],
            f"{row['value']:.6g}".replace("-", "−"),
            _unit(row["unit"]),
            prior_words(row["prior"]),
            row["doc"],
            row["source"],
        )
        for row in rows
    ]
    return Table(head, tuple(lines), len(head))


def _wires(rows: list[dict[str, Any]]) -> Table | None:
    lines = [
        (row["target"], row["source"], "" if row["factor"] == 1.0 else f"× {significant(row['factor'], 6)}")
        for row in rows
    ]
    return Table(("port", "is driven by", ""), tuple(lines), 3) if lines else None


def _unit(unit: str) -> str:
    return "" if unit == "1" else unit
