"""A simulation as columns of numbers, and as a CSV file."""

import csv
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.io.names import suggestion
from dtwin_jax.jobs.document import JobError


class Columns(NamedTuple):
    """Heads with units, and rows of numbers."""

    heads: list[str]
    rows: np.ndarray


class SimulationError(RuntimeError):
    """The equations could not be solved."""


def solver_settings(
    rtol: float | None, atol: float | None, steps: int | None, dt: float | None
) -> dict[str, Any]:
    """The settings of the solver that were given."""
    given = {"rtol": rtol, "atol": atol, "max_steps": steps, "dt": dt}
    for name, value in given.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise JobError(f"--{name.replace('_', '-')}: found {value}, expected a number above 0")
    return {name: value for name, value in given.items() if value is not None}


def parameters_with(model: Any, texts: list[str]) -> Any:
    """The model's parameters with those of `--set` replaced.

    Raises:
        JobError: one line for each that is wrong.
    """
    from dtwin_jax.core.quantity import assign
    from dtwin_jax.core.units import UnitError
    from dtwin_jax.jobs.plan import assignment

    known = model.schema().parameters
    new, wrong = {}, []
    for text in texts:
        try:
            name, given = assignment("--set", text)
            if name not in known:
                near = suggestion(name, known)
                wrong.append(
                    f"--set {text!r}: {model.name} has no parameter {name!r}{near}; it has {', '.join(known)}"
                )
                continue
            new[name] = given.to(known[name].unit)
        except JobError as error:
            wrong.append(str(error))
        except UnitError as error:
            wrong.append(f"--set {text!r}: {error}")
    if wrong:
        raise JobError("\n".join(wrong))
    return assign(model.params(), new)


def trajectories(model: Any, plan: Any, texts: list[str], paths: int, seed: int) -> Columns:
    """Time, outputs and states of a model under a plan; with a column for the path if it is stochastic.

    Raises:
        JobError: arguments that the model cannot take.
        SimulationError: the solver gave up.
    """
    import equinox as eqx
    import jax

    from dtwin_jax.core.quantity import quantities, replace_fields
    from dtwin_jax.core.record import even_times
    from dtwin_jax.dynamics.simulate import simulate
    from dtwin_jax.dynamics.solver import Outcome
    from dtwin_jax.jobs.plan import single_doses

    schema = model.schema()
    p = parameters_with(model, texts)
    held = {name: np.asarray(given.to(schema.inputs[name].unit)) for name, given in plan.hold.items()}
    inputs = replace_fields(model.inputs(), held | single_doses(plan.doses, schema))
    until, every = plan.until.to(schema.time_unit), plan.every.to(schema.time_unit)
    if not until > 0:
        raise JobError(f"--until: found {plan.until}, expected a time above 0")
    times = even_times(np.asarray(0.0), until, every)
    after = np.zeros(times.shape, bool)
    keys = jax.random.split(jax.random.key(seed), paths) if model.diffusion is not None else None

    @eqx.filter_jit
    def solve(p: Any, inputs: Any, times: Any, after: Any, keys: Any) -> Any:
        one = lambda key: simulate(model, p, inputs, times, after=after, key=key)  # noqa: E731
        return one(None) if keys is None else jax.vmap(one)(keys)

    found = solve(p, inputs, times, after, keys)
    if np.any(np.asarray(found.outcome) != int(Outcome.SOLVED)):
        code = int(np.max(np.asarray(found.outcome)))
        reason = "too many steps: raise --max-steps" if code == Outcome.MAX_STEPS else "a value is not finite"
        raise SimulationError(f"{model.name} could not be solved: {reason}")
    columns = {"time": (schema.time_unit, np.broadcast_to(times, (paths, len(times))))}
    for prefix, tree in (("", found.output), ("state ", found.state)):
        for name, q in quantities(tree).items():
            head = name if name not in columns else prefix + name
            columns[head] = (q.unit, np.asarray(getattr(tree, name)).reshape(paths, -1))
    table = np.stack([values.ravel() for _, values in columns.values()], axis=1)
    heads = [name if unit == "1" else f"{name} ({unit})" for name, (unit, _) in columns.items()]
    if keys is not None:
        heads.insert(0, "path")
        table = np.column_stack([np.repeat(np.arange(1, paths + 1), len(times)), table])
    return Columns(heads, table)


def write_csv(columns: Columns, path: Path | None) -> None:
    """Write to a file, whole or not at all, or to standard output."""
    if path is None:
        _write(columns, sys.stdout)
        return
    with replacing(path) as draft, open(draft, "w", encoding="utf-8", newline="") as stream:
        _write(columns, stream)


def _write(columns: Columns, stream: Any) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns.heads)
    for row in columns.rows:
        writer.writerow([f"{value:.10g}" for value in row])
