"""`dtwin forecast` and `dtwin simulate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dtwin_jax.cli.terminal import number, say, table

SHOWN = 24

_Doses = Annotated[
    list[str] | None, typer.Option("--dose", help="INPUT=AMOUNT@START,every=,count=,duration= (repeatable).")
]
_Inputs = Annotated[
    list[str] | None, typer.Option("--input", help="INPUT=VALUE, held throughout (repeatable).")
]


def forecast(  # noqa: PLR0913, PLR0917 (each is an option of the command)
    result: Annotated[Path, typer.Argument(help="Result of `dtwin calibrate`.")],
    plan: Annotated[Path | None, typer.Argument(help="Plan in TOML, instead of the options.")] = None,
    until: Annotated[str | None, typer.Option(help="End, such as 144 or 6d.")] = None,
    every: Annotated[str | None, typer.Option(help="Spacing of the predictions.")] = None,
    dose: _Doses = None,
    held: _Inputs = None,
    keep: Annotated[bool, typer.Option("--keep", help="Add to the doses that were given.")] = False,
    output: Annotated[Path | None, typer.Option(help="Default: the result's name with -forecast.nc.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the predictive draws; default: the calibration's.")
    ] = None,
) -> None:
    """Predict patients under a plan.

    \b
    Example: dtwin forecast study.nc plan.toml
             dtwin forecast study.nc --until 144h --every 1h --dose oral=own@0,every=12h,count=10

    \b
    The plan as a file, or as [forecast] of a job:
      until = "144 h"       # numbers without a unit are in the model's
      every = "1 h"
      keep = false          # true: add to the doses that were given; else replace those of each input
      hold = { T = 1.0 }    # inputs that are held at a value
      [[doses]]
      input = "oral"
      amount = "own"        # each patient's own first dose; or "320 mg"
      start = "0 h"
      every = "12 h"
      count = 10
      duration = "30 min"   # of an infusion; absent: at once

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 bad result, plan or arguments.
    """
    from dtwin_jax.cli.steps import check_output, load_result, write_forecast
    from dtwin_jax.inference.population import Population
    from dtwin_jax.inference.result import cohort_of
    from dtwin_jax.jobs.plan import planned, read_plan

    if plan is not None and (until, every, dose, held, keep) != (None, None, None, None, False):
        raise typer.BadParameter("give a plan file or options, not both")
    f, tree = load_result(result)
    predictor: Any = f.predictor if isinstance(f, Population) else f
    schema = predictor.schema()
    if plan is not None:
        chosen = read_plan(plan, schema)
    else:
        chosen = _plan_from(until, every, dose, held, keep, schema)
    record = planned(chosen, cohort_of(f, tree), schema)
    path = output or result.with_name(f"{result.stem}-forecast.nc")
    check_output(path)
    made = write_forecast(f, tree, record, path, seed)
    _show_forecast(made, tree.attrs["time_unit"])
    say(f"Forecast: {path}")
    say(f"Next:     dtwin report {result} --forecast {path}")


def _plan_from(until: Any, every: Any, dose: Any, held: Any, keep: bool, schema: Any) -> Any:
    from dtwin_jax.jobs.plan import assignment, dose_rule, plan_of

    for name, given in (("--until", until), ("--every", every)):
        if given is None:
            raise typer.BadParameter(f"needs a plan file, or {name}")
    options = {
        "until": until,
        "every": every,
        "keep": keep,
        "doses": [dose_rule(text) for text in dose or ()],
        "hold": dict(assignment("--input", text) for text in held or ()),
    }
    return plan_of(options, schema)


def _show_forecast(made: Any, time_unit: str) -> None:
    """Of each patient and channel: the peak and the last value, as median and 90% interval."""
    import numpy as np

    predictions = made["predictions"]
    ids = [str(patient) for patient in predictions["patient"].values]
    channels = [str(name) for name in predictions.data_vars if f"{name}_expected" in predictions]
    rows = []
    for channel in channels:
        unit = str(predictions[channel].attrs.get("units", ""))
        expected = predictions[f"{channel}_expected"].transpose("sample", "patient", ...).values
        times = predictions[f"{channel}_time"].values
        for i, patient in enumerate(ids):
            middle = np.median(expected[:, i], axis=0)
            what = (patient, channel, unit)
            if not np.all(np.isfinite(middle)):
                rows.append((*what, "", "not solved", "", ""))
                continue
            top = int(np.argmax(middle))
            peak, last = (_band(expected[:, i, k]) for k in (top, -1))
            rows.append((*what, f"{times[i, top]:g}", peak, f"{times[i, -1]:g}", last))
    heads = (
        "patient",
        "channel",
        "unit",
        f"peak at {time_unit}",
        "peak (90%)",
        f"last at {time_unit}",
        "last (90%)",
    )
    table(heads, rows[:SHOWN], words=3)
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more, in the file")


def _band(values: Any) -> str:
    import numpy as np

    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"{number(middle)} ({number(low)}–{number(high)})"


def simulate(  # noqa: PLR0913, PLR0917 (each is an option of the command)
    model: Annotated[str, typer.Argument(help="Of `dtwin models`, or package.module:attribute.")],
    until: Annotated[str, typer.Option(help="End, such as 24 or 1d.")],
    every: Annotated[str, typer.Option(help="Spacing of the rows.")],
    dose: _Doses = None,
    held: _Inputs = None,
    values: Annotated[list[str] | None, typer.Option("--set", help="PARAMETER=VALUE (repeatable).")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file; default: standard output.")] = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of the solver.")] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance of the solver.")] = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Steps allowed between two events.")] = None,
    dt: Annotated[float | None, typer.Option(help="Fixed step, in the model's unit of time.")] = None,
    paths: Annotated[int, typer.Option(min=1, max=100_000, help="Of a stochastic model.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of a stochastic model.")] = 0,
) -> None:
    """Solve a model for given parameters, as CSV.

    \b
    Example: dtwin simulate one_compartment --until 24 --every 0.5 --dose oral=100mg@0 --set CL=2.5
             dtwin simulate linear_health_sde --until 10 --every 0.1 --paths 20 --seed 1

    \b
    Exit codes: 0 fine; 1 the equations could not be solved; 2 bad arguments.
    """
    from dtwin_jax.cli.simulation import solver_settings, trajectories, write_csv
    from dtwin_jax.cli.steps import check_output

    found = _model_with(model, solver_settings(rtol, atol, max_steps, dt))
    if paths > 1 and found.diffusion is None:
        raise typer.BadParameter(
            f"{found.name} is not stochastic: all paths would be the same", param_hint="--paths"
        )
    plan = _plan_from(until, every, dose, held, False, found.schema())
    if output is not None:
        check_output(output)
    write_csv(trajectories(found, plan, values or [], paths, seed), output)


def _model_with(name: str, settings: dict[str, Any]) -> Any:
    """A model by name, with settings of its solver replaced."""
    from dataclasses import replace

    from dtwin_jax.dynamics.model import Model
    from dtwin_jax.jobs.checks import find_model
    from dtwin_jax.jobs.document import JobError

    try:
        model = find_model(name)
    except LookupError as error:
        raise JobError(str(error.args[0])) from None
    if not isinstance(model, Model):
        raise JobError(f"{name} is a {type(model).__name__}, expected a model with differential equations")
    return replace(model, solver=replace(model.solver, **settings)) if settings else model
