"""Alarms: limits that a forecast is probably beyond soon, and their beginnings and ends."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from dtwin_jax.core.predictor import Schema
from dtwin_jax.jobs.document import Document, Fault, JobError, Section, read_document, validate
from dtwin_jax.jobs.plan import unknown
from dtwin_jax.jobs.values import MeasureValue

# What is told of a patient whose forecast could not be solved for more than this share of the draws.
NO_FORECAST = "no forecast"
MOST_UNSOLVED = 0.5
_FORM = "glucose<70 within 30min p>=0.3"
_TEXT = re.compile(r"\s*([^<>\s]+)\s*([<>])\s*(.+?)\s+within\s+(.+?)\s+p\s*>=\s*(\S+)\s*")


class Rule(Section):
    """One table `[[alarms]]` of a file of rules.

    Attributes:
        channel: of the model.
        below: a limit; the alarm is of values under it.
        above: a limit; the alarm is of values over it. One of the two is given.
        within: how far ahead of the last measurement.
        probability: from which on it is an alarm.
    """

    channel: str
    below: MeasureValue = None
    above: MeasureValue = None
    within: MeasureValue
    probability: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "Rule":
        if (self.below is None) == (self.above is None):
            raise ValueError("expected one limit, 'below' or 'above'")
        return self


class Rules(Section):
    """A file of rules."""

    alarms: list[Rule] = Field(min_length=1)


@dataclass(frozen=True)
class Alarm:
    """A rule in the model's units.

    Attributes:
        name: the rule as a text.
        channel: of the model.
        limit: beyond which a measurement would be.
        below: True for values under the limit.
        within: how far ahead.
        probability: from which on it is an alarm.
    """

    name: str
    channel: str
    limit: float
    below: bool
    within: float
    probability: float

    def chance(self, drawn: np.ndarray, ahead: np.ndarray) -> np.ndarray:
        """(...) probability that a measurement at one of the times would be beyond the limit.

        Args:
            drawn: (draw, ..., n) of the channel.
            ahead: (n,) how far ahead each time is.
        """
        soon = drawn[..., ahead <= self.within * (1 + 1e-12)]
        beyond = soon < self.limit if self.below else soon > self.limit
        return np.asarray(np.mean(np.any(beyond, axis=-1), axis=0))


def read_rules(path: Any, schema: Schema) -> list[Alarm]:
    """The alarms of a file, checked against the model.

    Raises:
        JobError: all that is wrong with it.
    """
    document: Document = read_document(path, "rules")
    rules, faults = validate(Rules, document)
    for i, rule in enumerate(rules.alarms if rules is not None else ()):
        faults += _faults(rule, schema, ("alarms", i))
    if faults or rules is None:
        raise document.error(faults)
    return [_alarm(rule, schema) for rule in rules.alarms]


def alarm_of(text: str, schema: Schema) -> Alarm:
    """`glucose<70 within 30min p>=0.3` as an alarm.

    Raises:
        JobError: it is not of that form, or not of this model.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise JobError(f"--alarm {text!r}: expected the form {_FORM!r}")
    side = "below" if found[2] == "<" else "above"
    try:
        given = {"channel": found[1], side: found[3], "within": found[4], "probability": float(found[5])}
        rule = Rule.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first.get("ctx", {}).get("error") or f"found {first['input']!r}, {first['msg']}"
        raise JobError(f"--alarm {text!r}: {reason}") from None
    except ValueError:
        raise JobError(f"--alarm {text!r}: found {found[5]!r}, expected a probability") from None
    faults = _faults(rule, schema, ())
    if faults:
        raise JobError(f"--alarm {text!r}: {faults[0]}")
    return _alarm(rule, schema)


def _faults(rule: Rule, schema: Schema, path: tuple) -> list[Fault]:
    if rule.channel not in schema.outputs:
        return [unknown((*path, "channel"), "output", rule.channel, schema.outputs)]
    side = "below" if rule.below is not None else "above"
    checks = ((side, schema.outputs[rule.channel].unit), ("within", schema.time_unit))
    told = [(key, getattr(rule, key).fits(unit)) for key, unit in checks]
    faults = [Fault((*path, key), reason) for key, reason in told if reason]
    if not faults and not rule.within.to(schema.time_unit) > 0:
        faults.append(Fault((*path, "within"), f"found {rule.within}", "a time above 0"))
    return faults


def _alarm(rule: Rule, schema: Schema) -> Alarm:
    below = rule.below is not None
    limit = (rule.below if below else rule.above).to(schema.outputs[rule.channel].unit)
    within = rule.within.to(schema.time_unit)
    sign, ahead = "<" if below else ">", f"{within:g} {schema.time_unit}"
    name = f"{rule.channel}{sign}{limit:g} within {ahead} p>={rule.probability:g}"
    return Alarm(name, rule.channel, limit, below, within, rule.probability)


def events_of(
    standing: Iterable[tuple[str, str]],
    alarms: Iterable[Alarm],
    chances: Mapping[str, np.ndarray],
    failed: np.ndarray,
    ids: tuple[str, ...],
) -> list[tuple[str, str, str, float | None]]:
    """Patient, rule, "begins" or "ends", and probability of what has changed.

    A patient without a forecast keeps the alarms that stand, since nothing is known of them. An alarm whose
    rule is no longer there ends, without a probability.

    Args:
        standing: patient and rule of the alarms that have begun and not ended.
        alarms: the rules.
        chances: name of a rule -> (patient,) probability.
        failed: (patient,) share of the draws whose forecast could not be solved.
        ids: of the patients.
    """
    standing = set(standing)
    limits = {alarm.name: alarm.probability for alarm in alarms}
    gone = sorted((who, name) for who, name in standing if name not in {NO_FORECAST, *limits})
    events: list[tuple[str, str, str, float | None]] = [(who, name, "ends", None) for who, name in gone]
    for i, patient in enumerate(ids):
        held = {NO_FORECAST: failed[i] > MOST_UNSOLVED}
        told = {NO_FORECAST: float(failed[i])}
        if not held[NO_FORECAST]:
            told |= {name: float(chances[name][i]) for name in limits}
            held |= {name: told[name] >= limit for name, limit in limits.items()}
        for name, holds in held.items():
            if holds != ((patient, name) in standing):
                events.append((patient, name, "begins" if holds else "ends", told[name]))
    return events
