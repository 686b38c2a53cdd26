"""A model card: one page of what a model says, and of what its typical study would tell of its parameters."""

import functools
import os
import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax import plot
from dtwin_jax.core.predictor import check_record
from dtwin_jax.core.quantity import assign, values
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.model import Model, expect
from dtwin_jax.inference.density import estimated, standard_promotion, with_known
from dtwin_jax.inference.target import Target
from dtwin_jax.io.names import amount_unit
from dtwin_jax.report.described import Described, describe
from dtwin_jax.report.drawing import Drawing, drawing, render, write_whole
from dtwin_jax.report.tables import Table, limits, significant
from dtwin_jax.twin.directions import scale_of
from dtwin_jax.twin.identify import Information, fisher_information
from dtwin_jax.twin.profile import Profile, profiles

# Points of a course; draws of its band; how many profiles are drawn beside that of the flattest parameter.
_POINTS, _DRAWS, _PROFILED = 240, 400, 3
# A profile is followed to four sds of the prior, so within them its interval is expected to close.
_CLOSES = 4.0 / 1.96
_LISTED = 4
# Steps of a refit: from its neighbour's, few are enough.
_STEPS = 100


@dataclass(frozen=True)
class Study:
    """What the typical study of a model would tell.

    Attributes:
        line: what the study is.
        given: what is given, in words; courses are drawn instead.
        course: figure of the outputs and inputs.
        information: expected standard error of each parameter; None where nothing is estimated.
        flat: directions that are left to the priors, in words.
        remarks: what is to be said of the information.
        held: the sentence on what is not estimated in the profiles.
        profiles: their figure.
        limits: the intervals they give.
        unprofiled: what was left out of the profiles, and why.
    """

    line: str
    given: tuple[str, ...]
    course: Drawing
    information: Table | None
    flat: tuple[str, ...]
    remarks: tuple[str, ...]
    held: str
    profiles: Drawing | None
    limits: Table
    unprofiled: tuple[str, ...]


def write_card(model: Any, path: str | os.PathLike[str], *, budget: float = 60.0) -> Path:
    """Writes the page, whole or not at all, and returns where it is.

    Args:
        model: its `example` is what the computed part looks at; without one that part says so.
        path: of the page; an old one is replaced in one step.
        budget: seconds; profiles that are not finished by then are left out. What comes before them takes
            some ten solves with derivatives, however long these are.
    """
    return write_whole(render_card(model, budget=budget), path)


def render_card(model: Any, *, budget: float = 60.0) -> str:
    """The page as text; the arguments are those of `write_card`."""
    described, absent = describe(model), why_absent(model)
    return render(
        "card.html.j2",
        title=model.name.replace("_", " "),
        described=described,
        facts=_facts(model, described),
        study=None if absent else study_of(model, budget=budget),
        absent=absent,
    )


def why_absent(model: Any) -> str:
    """Why nothing can be computed of a model; empty where it can."""
    if getattr(model, "example", None) is None:
        return "the model has no typical study (`example`)"
    if model.diffusion is not None:
        return "it is a stochastic differential equation, of which what a design tells depends on the data"
    return ""


def study_of(model: Any, *, budget: float) -> Study:
    """What the model's typical study would tell, at its default parameters."""
    until = time.monotonic() + budget
    study = model.example()
    check_record(model, study)
    try:
        free = estimated(model, {}, tuple(study.known))[1]
    except ValueError:  # nothing has a prior
        free = {}
    model, remarks = _inside(model, free)
    found, moved = _courses(model, study, tuple(free))
    schema = model.schema()
    units = {name: amount_unit(q.unit, model.time) for name, q in schema.inputs.items()}
    given = {
        name: (s, units[name] if isinstance(s, Doses) else schema.inputs[name].unit)
        for name, s in vars(study.inputs).items()
    }
    figure = plot.courses(found, given, model.time)
    says = f"Expected {', '.join(course.name for course in found)} over time, and what is given."
    line = (model.example.__doc__ or "").strip().split("\n")[0]
    common = (line, _given(model, study, units), drawing("courses", figure, says))
    if not free:
        nothing = ("No parameter of this model has a prior: nothing is estimated.",)
        return Study(*common, None, (), nothing, "", None, Table((), ()), ())
    information = fisher_information(model, model.params(), study)
    if information.failed:
        lost = "At these parameters a sample of the study cannot be predicted, or has no error."
        return Study(*common, None, (), (*remarks, lost), "", None, Table((), ()), ())
    seen = dict(zip(information.names, np.diagonal(information.matrix) > 0, strict=True))
    noise = tuple(name for name in free if seen[name] and not moved[name])
    data = _noise_free(study, found)
    made, left = _profiles(model, data, information, noise, until)
    unit_of = {name: q.unit for name, q in schema.parameters.items()}
    # A share of a value that may as well be 0 says nothing.
    own = {name for name, prior in free.items() if scale_of(prior) == "own"}
    figure = plot.profile_panels(made, unit_of) if made else None
    words = f"Profiles of the likelihood by {', '.join(one.name for one in made)}."
    return Study(
        *common,
        _standard_errors(information, unit_of, own),
        tuple(direction.words for direction in information.flat()),
        remarks,
        _held(noise),
        None if figure is None else drawing("profiles", figure, words),
        limits(made, unit_of),
        left,
    )


@dataclass(frozen=True)
class _Elsewhere:
    """Parameters with some defaults changed."""

    params: Any
    changed: tuple[tuple[str, float], ...]

    def __call__(self) -> Any:
        return assign(self.params(), dict(self.changed))


def _inside(model: Model, free: dict[str, Any]) -> tuple[Model, tuple[str, ...]]:
    """The model with every estimated parameter inside the limits of its prior, and what was changed."""
    if not free:
        return model, ()
    target, p = Target(model, tuple(free.items())), values(model.params())
    at = jnp.stack([jnp.asarray(p[name], float) for name in free])
    outside = ~np.isfinite(np.asarray(target.unbounded(at)))
    middle = np.asarray(target.bounded(jnp.zeros(len(free))))
    changed = tuple((name, float(middle[i])) for i, name in enumerate(free) if outside[i])
    said = tuple(
        f"{name} is taken at {significant(value)} {_unit(model, name)}: its default, "
        f"{significant(float(p[name]))}, is a limit of its prior."
        for name, value in changed
    )
    return (replace(model, params=_Elsewhere(model.params, changed)) if changed else model), said


def _courses(
    model: Model, study: Record, names: tuple[str, ...]
) -> tuple[tuple[plot.Course, ...], dict[str, bool]]:
    """The outputs expected, and of each parameter whether what is expected depends on it."""
    last = max(float(series.time[-1]) for series in study.observations.values())
    grid = np.linspace(float(study.t0), last, _POINTS)
    dense = {
        name: Series(
            np.concatenate([series.time, grid]), after=np.concatenate([series.after, np.ones(_POINTS, bool)])
        )
        for name, series in study.observations.items()
    }
    p = model.params()
    now = np.asarray([float(values(p)[name]) for name in names])
    rows = np.tile(now, (len(names) + 1, 1))
    for i in range(len(names)):
        rows[i + 1, i] += 0.01 * abs(now[i]) if now[i] else 1e-3
    spread = {name: jnp.asarray(rows[:, i]) for i, name in enumerate(names)}
    expected = values(_expected(model, names, spread, Record(study.inputs, dense, study.known, study.t0)))
    drawn, schema, found = _drawn(model, expected), model.schema(), []
    for name, series in study.observations.items():
        n, mean = len(series.time), np.asarray(expected[name][0])
        course = (grid, mean[n:], np.asarray(drawn[name])[:, n:], np.asarray(series.time), mean[:n])
        found.append(plot.Course(name, schema.outputs[name].unit, *course))
    moved = {}
    for i, name in enumerate(names):
        moved[name] = any(_differ(y[0], y[i + 1]) for y in _arrays(expected))
    return tuple(found), moved


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether a course is another: where both are numbers, or in where they are."""
    both = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return True
    reach = np.max(np.abs(one[both]), initial=0.0) + 1e-300
    return bool(np.max(np.abs(other[both] - one[both]), initial=0.0) > 1e-10 * reach)


def _arrays(expected: dict[str, Any]) -> list[np.ndarray]:
    return [np.asarray(y) for y in expected.values() if y.shape[-1]]


@functools.partial(jax.jit, static_argnames=("model", "names"))
def _expected(model: Model, names: tuple[str, ...], rows: dict[str, Any], record: Record) -> Any:
    """Outputs under each row of parameter values."""
    if not names:
        return jax.tree.map(lambda y: y[None], expect(model, with_known(model.params(), record), record))
    known = with_known(model.params(), record)
    return jax.vmap(lambda row: expect(model, assign(known, row), record))(rows)


@standard_promotion
def _drawn(model: Model, expected: dict[str, Any]) -> dict[str, Any]:
    """(draw, n) measurements at what is expected, by output."""
    p = model.params()
    y = model.observe(jnp.asarray(0.0), model.init(p), model.inputs(), p)
    y = assign(y, {name: value[0] for name, value in expected.items()})
    key = jax.random.key(0)
    return {
        name: d.sample(key, (_DRAWS,)) for name, d in model.noise(y, p).items() if expected[name].shape[-1]
    }


def _noise_free(study: Record, found: Sequence[plot.Course]) -> Record:
    """The study with what is expected as its measurements."""
    measured = {
        course.name: Series(course.samples, course.at_samples, after=study.observations[course.name].after)
        for course in found
    }
    return Record(study.inputs, measured, study.known, study.t0)


def _profiles(
    model: Model, data: Record, information: Information, noise: tuple[str, ...], until: float
) -> tuple[list[Profile], tuple[str, ...]]:
    """Profiles of the flattest parameter and of the least sure of those that close, and what was left out.

    None is begun after `until`, and one that is not done by then is left out: which they are depends on the
    machine, so the one that tells most comes first.
    """
    names = [name for name in information.names if name not in noise]
    if not names:
        return [], ("Only parameters of the errors of measurement are estimated.",)
    sd = dict(zip(information.names, np.sqrt(np.diagonal(information.covariance())), strict=True))
    prior = dict(zip(information.names, information.prior**-0.5, strict=True))
    flattest = max(names, key=lambda name: sd[name] / prior[name])
    closing = [name for name in names if sd[name] < _CLOSES * prior[name] and name != flattest]
    chosen = [flattest, *sorted(closing, key=lambda name: -sd[name])[:_PROFILED]]
    held = {name: float(values(model.params())[name]) for name in noise}
    how = {"key": jax.random.key(0), "starts": 1, "steps": _STEPS, "priors": held}
    made: list[Profile] = []
    try:
        for one in profiles(model, data, chosen, more=lambda: time.monotonic() < until, **how):
            made.append(one)
    except ValueError as error:
        return made, (f"No more profiles: {error}.",)
    left = chosen[len(made) :]
    return made, (f"Left out, not finished in the time given: {', '.join(left)}.",) if left else ()


def _standard_errors(information: Information, units: dict[str, str], own: Set[str]) -> Table:
    """Relative standard errors, but in their units those of the parameters in `own`."""
    alone, both = (information.standard_error(prior=prior) for prior in (False, True))
    left, lines = information.shrinkage(), []
    for name, value in zip(information.names, information.value, strict=True):
        unit = "" if units[name] == "1" else units[name]
        numbers = (_error(found[name], float(value), unit, name in own) for found in (alone, both))
        lines.append((name, unit, significant(float(value)), *numbers, f"{left[name]:.0%}"))
    head = ("parameter", "unit", "value", "s.e., data alone", "s.e. with prior", "prior variance left")
    return Table(head, tuple(lines), 2)


def _error(error: float, value: float, unit: str, absolute: bool) -> str:
    """Relative to the value; in its unit where asked for, or where the value is 0."""
    if not np.isfinite(error):
        return "not determined"
    if absolute or value == 0.0:
        return f"{significant(error)} {unit}".rstrip()
    share = 100.0 * error / abs(value)
    return "over 1000%" if share > 1000.0 else f"{share:.2g}%" if share < 99.5 else f"{share:.0f}%"


def _held(noise: tuple[str, ...]) -> str:
    if not noise:
        return ""
    return f"Held at their defaults, since such data would drive them to 0: {', '.join(noise)}."


def _given(model: Model, study: Record, units: dict[str, str]) -> tuple[str, ...]:
    """Doses, and covariates that are not neutral; courses are drawn instead."""
    neutral, said = values(model.inputs()), []
    for name, signal in vars(study.inputs).items():
        if isinstance(signal, Doses):
            doses = [
                f"{significant(float(amount))} {units[name]} at {significant(float(when))} {model.time}"
                + f" over {significant(float(long))} {model.time}" * bool(long > 0)
                for when, amount, long in zip(signal.time, signal.amount, signal.duration, strict=True)
                if amount != 0
            ]
            more = f" and {len(doses) - _LISTED} more" if len(doses) > _LISTED else ""
            said.append(f"{name} {', '.join(doses[:_LISTED])}{more}")
        elif not hasattr(signal, "time") and float(signal) != float(neutral[name]):
            said.append(f"{name} {significant(float(signal))}")
    return (*said, *(f"{name} {significant(float(value))}, known" for name, value in study.known.items()))


def _unit(model: Model, name: str) -> str:
    unit = model.schema().parameters[name].unit
    return "" if unit == "1" else unit


def _facts(model: Any, described: Described) -> list[tuple[str, str, str]]:
    counts = {kind: len(table.rows) for kind, table in described.variables}
    free = sum(row[3] != "known" for row in described.parameters.rows)
    return [
        ("States", str(counts["states"]), ""),
        ("Inputs", str(counts["inputs"]), ""),
        ("Outputs", str(counts["outputs"]), ""),
        ("Parameters", str(len(described.parameters.rows)), f"{free} estimated"),
        ("Time", f"in {model.schema().time_unit}", ""),
    ]
