"""Plans: what is to be given from now on, as a file or as options of a command, and as a record."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from dtwin_jax.core.predictor import Schema
from dtwin_jax.core.record import Cohort, Record, scenario
from dtwin_jax.core.signal import Doses
from dtwin_jax.core.units import product
from dtwin_jax.io.names import suggestion
from dtwin_jax.jobs.document import Fault, JobError, Section, read_document, validate
from dtwin_jax.jobs.lines import Path
from dtwin_jax.jobs.values import AmountValue, Measure, MeasureValue, measure

# More points than this a patient is a mistaken unit, not a plan.
MOST_POINTS = 100_000


class DoseRule(Section):
    """Doses of one size, once or repeated.

    Attributes:
        input: of the model.
        amount: in the input's unit times the unit of time, or `"own"`: the patient's own first dose.
        start: time of the first.
        every: time between two.
        count: how many.
        duration: of an infusion; 0 is at once. With `"own"`, by default that of the own dose.
    """

    input: str
    amount: AmountValue
    start: MeasureValue = Measure(0.0)
    every: MeasureValue = None
    count: int = Field(1, ge=1, le=10_000)
    duration: MeasureValue = None

    @model_validator(mode="after")
    def _repeated(self) -> "DoseRule":
        if self.count > 1 and self.every is None:
            raise ValueError(f"count is {self.count} but 'every' is missing, the time between two doses")
        return self


class Plan(Section):
    """What is to be given, and when to predict.

    Attributes:
        until: end.
        every: spacing of the times at which to predict.
        keep: keep the doses that were given, and add these; else these replace them, input by input.
        doses: what is given.
        hold: input -> value that it has throughout, for inputs that take no doses.
    """

    until: MeasureValue
    every: MeasureValue
    keep: bool = False
    doses: list[DoseRule] = Field(default_factory=list)
    hold: dict[str, MeasureValue] = Field(default_factory=dict)


def read_plan(path: Any, schema: Schema) -> Plan:
    """A plan file, checked against the model's names and units.

    Raises:
        JobError: all that is wrong with it.
    """
    document = read_document(path, "plan")
    plan, faults = validate(Plan, document)
    faults += plan_faults(plan, schema) if plan is not None else []
    if faults or plan is None:
        raise document.error(faults)
    return plan


def dose_rule(text: str) -> DoseRule:
    """`oral=100mg@0,every=12h,count=10,duration=30min` as a `DoseRule`.

    Raises:
        JobError: it is not of that form.
    """
    head, *rest = text.split(",")
    found = re.fullmatch(r"\s*([^=@]+?)\s*=\s*([^@]+?)\s*(?:@\s*(.+?)\s*)?", head)
    form = "INPUT=AMOUNT@START, then every=, count=, duration=: oral=100mg@0,every=12h,count=10"
    if found is None:
        raise JobError(f"--dose {text!r}: expected {form}")
    given: dict[str, Any] = {"input": found[1], "amount": found[2], "start": found[3] or "0"}
    for part in rest:
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in {"every", "count", "duration"} or not value:
            raise JobError(f"--dose {text!r}: found {part!r}, expected {form}")
        given[key] = int(value) if key == "count" and value.isdecimal() else value
    try:
        return DoseRule.model_validate(given)
    except ValidationError as error:
        raise JobError(f"--dose {text!r}: {_reason(error)}") from None


def assignment(option: str, text: str) -> tuple[str, Measure]:
    """`CL=2.5` or `"CL=40 mL/min"` as name and value."""
    name, equals, value = text.partition("=")
    try:
        if not equals or not name.strip():
            raise ValueError("expected NAME=NUMBER, with a unit if it is not the model's")
        return name.strip(), measure(value)
    except ValueError as error:
        raise JobError(f"{option} {text!r}: {error}") from None


def plan_of(options: Mapping[str, Any], schema: Schema) -> Plan:
    """A plan from a command's options, checked like a file.

    Raises:
        JobError: one line a fault.
    """
    try:
        plan = Plan.model_validate(dict(options))
    except ValidationError as error:
        raise JobError(f"--{error.errors()[0]['loc'][0]}: {_reason(error)}") from None
    faults = plan_faults(plan, schema)
    if faults:
        names = (f"--{'dose' if fault.path[0] == 'doses' else fault.path[0]}" for fault in faults)
        raise JobError("\n".join(f"{name}: {fault}" for name, fault in zip(names, faults, strict=True)))
    return plan


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    context = first.get("ctx", {}).get("error")
    return str(context) if context else f"found {first['input']!r}, {first['msg']}"


def plan_faults(plan: Plan, schema: Schema, prefix: Path = ()) -> list[Fault]:
    """What of a plan the model cannot take: names, and units."""
    found = [
        *_unit_fault((*prefix, "until"), plan.until, schema.time_unit),
        *_unit_fault((*prefix, "every"), plan.every, schema.time_unit),
    ]
    for i, rule in enumerate(plan.doses):
        path = (*prefix, "doses", i)
        for key in ("start", "every", "duration"):
            found += _unit_fault((*path, key), getattr(rule, key), schema.time_unit)
        if rule.input not in schema.inputs:
            found.append(unknown((*path, "input"), "input", rule.input, schema.inputs))
        elif rule.amount != "own":
            unit = product(schema.inputs[rule.input].unit, schema.time_unit)
            found += _unit_fault((*path, "amount"), rule.amount, unit)
        if rule.input in plan.hold:
            what = f"{rule.input!r} is dosed here and held at {plan.hold[rule.input]}"
            found.append(Fault((*path, "input"), what, "one or the other"))
    for name, value in plan.hold.items():
        path = (*prefix, "hold", name)
        if name in schema.inputs:
            found += _unit_fault(path, value, schema.inputs[name].unit)
        else:
            found.append(unknown(path, "input", name, schema.inputs))
    return found or _time_faults(plan, schema, prefix)


def unknown(path: Path, kind: str, name: str, options: Iterable[str]) -> Fault:
    """The fault of a name that the model has not."""
    options = list(options)
    expected = f"one of {', '.join(options)}" if options else f"none, the model has no {kind}"
    return Fault(path, f"the model has no {kind} {name!r}{suggestion(name, options)}", expected)


def _unit_fault(path: Path, given: Measure | None, unit: str) -> list[Fault]:
    reason = given.fits(unit) if given is not None else ""
    return [Fault(path, reason)] if reason else []


def _time_faults(plan: Plan, schema: Schema, prefix: Path) -> list[Fault]:
    until, every = plan.until.to(schema.time_unit), plan.every.to(schema.time_unit)
    found = []
    if not every > 0:
        found.append(Fault((*prefix, "every"), f"found {plan.every}", "a time above 0"))
    elif until / every > MOST_POINTS:
        found.append(
            Fault((*prefix, "every"), f"{until / every:.0f} times", f"at most {MOST_POINTS:,}; widen it")
        )
    for i, rule in enumerate(plan.doses):
        for key in ("every", "duration"):
            given = getattr(rule, key)
            if given is not None and given.value < 0:
                found.append(
                    Fault((*prefix, "doses", i, key), f"found {given}", "a time that is not negative")
                )
        if rule.amount != "own" and rule.amount.value < 0:
            found.append(
                Fault(
                    (*prefix, "doses", i, "amount"), f"found {rule.amount}", "an amount that is not negative"
                )
            )
    return found


def planned(plan: Plan, cohort: Cohort, schema: Schema) -> Record:
    """The record of a plan for every patient of a cohort.

    Raises:
        JobError: a patient for whom the plan has no meaning, named.
    """
    time = schema.time_unit
    until, start = plan.until.to(time), np.asarray(cohort.record.t0, float)
    if not np.all(until > start):
        raise JobError(
            f"until is {plan.until}, expected a time after the patients' start at {start.max():g} {time}"
        )
    names = dict.fromkeys(rule.input for rule in plan.doses)
    inputs: dict[str, Any] = {
        name: _doses([rule for rule in plan.doses if rule.input == name], plan.keep, cohort, schema)
        for name in names
    }
    inputs |= {name: given.to(schema.inputs[name].unit) for name, given in plan.hold.items()}
    return scenario(cohort.record, until=until, every=plan.every.to(time), **inputs)


def dose_times(rule: DoseRule, time_unit: str) -> np.ndarray:
    """When the doses of a rule are given."""
    step = 0.0 if rule.every is None else rule.every.to(time_unit)
    return rule.start.to(time_unit) + step * np.arange(rule.count)


def _doses(rules: list[DoseRule], keep: bool, cohort: Cohort, schema: Schema) -> Doses:
    """The doses of one input, (patient, dose), in order of time."""
    name, patients = rules[0].input, len(cohort)
    given = getattr(cohort.record.inputs, name)
    parts = []
    for rule in rules:
        times = dose_times(rule, schema.time_unit)
        early = np.flatnonzero(times[0] < np.asarray(cohort.record.t0))
        if early.size:
            who = cohort.ids[int(early[0])]
            raise JobError(f"dose of {name!r}: start is {rule.start}, before the record of patient {who!r}")
        if rule.amount == "own":
            amount, duration = _own(name, given, cohort)
        else:
            unit = product(schema.inputs[name].unit, schema.time_unit)
            amount, duration = np.full(patients, rule.amount.to(unit)), np.zeros(patients)
        if rule.duration is not None:
            duration = np.full(patients, rule.duration.to(schema.time_unit))
        columns = (np.broadcast_to(times, (patients, len(times))), amount[:, None], duration[:, None])
        parts.append(tuple(np.broadcast_to(column, (patients, len(times))) for column in columns))
    if keep and isinstance(given, Doses):
        parts.insert(0, tuple(np.asarray(part) for part in given.plain("a plan of doses")))
    time, amount, duration = (np.concatenate(column, axis=1) for column in zip(*parts, strict=True))
    order = np.argsort(time, axis=1, kind="stable")
    return Doses(*(np.take_along_axis(column, order, axis=1) for column in (time, amount, duration)))


def _own(name: str, given: Any, cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Amount and duration of each patient's first dose."""
    amounts = np.asarray(given.amount) if isinstance(given, Doses) else np.zeros((len(cohort), 1))
    lacking = ~np.any(amounts != 0, axis=1)
    if lacking.any():
        who = cohort.ids[int(np.argmax(lacking))]
        raise JobError(
            f"dose of {name!r}: amount is 'own', but patient {who!r} was given none through {name!r}"
        )
    first = np.argmax(amounts != 0, axis=1)[:, None]
    amount, duration = (
        np.take_along_axis(np.asarray(column), first, axis=1)[:, 0]
        for column in (given.amount, given.duration)
    )
    return amount, duration


def single_doses(rules: list[DoseRule], schema: Schema) -> dict[str, Doses]:
    """The doses of a plan for nobody in particular, by input.

    Raises:
        JobError: an amount that is `"own"`, a dose before the start at time 0.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    for rule in rules:
        if rule.amount == "own":
            raise JobError(f"--dose {rule.input}=own: nobody's own dose is known here, expected an amount")
        if rule.start.value < 0:
            expected = "expected 0 or later: a simulation starts at 0"
            raise JobError(f"--dose {rule.input}: found a dose at {rule.start}, {expected}")
        size = rule.amount.to(product(schema.inputs[rule.input].unit, schema.time_unit))
        length = 0.0 if rule.duration is None else rule.duration.to(schema.time_unit)
        rows = found.setdefault(rule.input, [])
        rows.extend((float(t), size, length) for t in dose_times(rule, schema.time_unit))
    return {
        name: Doses(*(list(column) for column in zip(*sorted(rows), strict=True)))
        for name, rows in found.items()
    }
