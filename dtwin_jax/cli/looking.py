"""`dtwin models` and `dtwin report`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dtwin_jax.cli.terminal import say, table


def models(
    name: Annotated[str | None, typer.Argument(help="A model: its parameters, inputs and outputs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """List the shipped models, or describe one.

    \b
    Example: dtwin models
             dtwin models one_compartment --json

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 no such model.
    """
    from dtwin_jax.models import CATALOGUE

    chosen = list(CATALOGUE.values()) if name is None else [_find(name)]
    described = [_describe(model) for model in chosen]
    if as_json:
        print(json.dumps(described if name is None else described[0], indent=2, ensure_ascii=False))
    elif name is None:
        heads = ("model", "what", "states", "inputs", "outputs", "time", "source")
        rows = [
            (
                one["name"],
                one["about"],
                *(" ".join(part["name"] for part in one[kind]) for kind in ("states", "inputs", "outputs")),
                one["time_unit"],
                one["source"],
            )
            for one in described
        ]
        table(heads, rows, words=len(heads), wrap=True)
    else:
        _show(described[0])


def _find(name: str) -> Any:
    from dtwin_jax.jobs.checks import find_model
    from dtwin_jax.jobs.document import JobError

    try:
        return find_model(name)
    except LookupError as error:
        raise JobError(str(error.args[0])) from None


def _describe(model: Any) -> dict[str, Any]:
    """All that a model declares, as plain data."""
    from dtwin_jax.core.quantity import quantities, values

    schema, p = model.schema(), model.params()
    numbers = values(p)
    documented = getattr(model, "drift", type(model))
    about = (getattr(sys.modules[documented.__module__], "__doc__", None) or "").strip().split("\n")[0]
    states = quantities(model.init(p)) if hasattr(model, "init") else {}
    return {
        "name": model.name,
        "about": about.rstrip("."),
        "time_unit": schema.time_unit,
        "stochastic": getattr(model, "diffusion", None) is not None,
        "source": getattr(model, "source", ""),
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
        **{
            kind: [{"name": name, "unit": q.unit, "doc": q.doc} for name, q in declared.items()]
            for kind, declared in (("states", states), ("inputs", schema.inputs), ("outputs", schema.outputs))
        },
    }


def _show(one: dict[str, Any]) -> None:
    print(f"{one['name']}: {one['about']}")
    print(f"Source: {one['source'] or 'none stated'}")
    print(f"Time in {one['time_unit']}." + " A stochastic differential equation." * one["stochastic"])
    print()
    rows = []
    for p in one["parameters"]:
        prior = ""
        for family, arguments in (p["prior"] or {}).items():
            prior = f"{family}({', '.join(f'{key}={value:.4g}' for key, value in arguments.items())})"
        rows.append((p["name"], f"{p['value']:.6g}", p["unit"], prior or "known", p["doc"], p["source"]))
    table(("parameter", "value", "unit", "prior", "what", "source"), rows, words=6, wrap=True)
    for kind in ("states", "inputs", "outputs"):
        print()
        rows = [(part["name"], part["unit"], part["doc"]) for part in one[kind]]
        table((kind[:-1], "unit", "what"), rows, words=3, wrap=True)


def report(
    result: Annotated[Path, typer.Argument(help="Result of `dtwin calibrate`.")],
    forecast: Annotated[Path | None, typer.Option(help="Forecast of the same patients, shown too.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The page; default: the result's name with .html.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Default: the model's name.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the predictive draws; default: the calibration's.")
    ] = None,
) -> None:
    """Write a result, and a forecast, as one HTML page.

    The page needs no network and no program but a browser.

    \b
    Example: dtwin report study.nc --forecast study-forecast.nc --output study.html

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 bad result or forecast file.
    """
    from dtwin_jax.cli.steps import check_output, load_result, write_page
    from dtwin_jax.jobs.document import JobError
    from dtwin_jax.twin.forecast import load_forecast

    page = output or result.with_suffix(".html")
    f, tree = load_result(result)
    planned = None
    if forecast is not None:
        planned = load_forecast(forecast)
        here, there = (
            [str(i) for i in t[g]["patient"].values]
            for t, g in ((tree, "observed_data"), (planned, "predictions"))
        )
        if here != there or planned.attrs["name"] != tree.attrs["name"]:
            raise JobError(
                f"{forecast}: found a forecast of other patients or model, expected those of {result}"
            )
    check_output(page)
    write_page(f, tree, page, planned=planned, title=title, seed=seed)
    say(f"Report: {page.resolve().as_uri()}")
