"""`dtwin models` and `dtwin report`."""

import json
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dtwin_jax.cli.terminal import say, seconds, table

# Of a line of prose.
_WIDTH = 100


def models(
    name: Annotated[
        str | None, typer.Argument(help="A model: its equations, validity, parameters, inputs and outputs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    card: Annotated[
        Path | None,
        typer.Option(help="Write the model's card, one HTML page, with what a typical study would tell."),
    ] = None,
) -> None:
    """List the shipped models by subject, describe one, or write its card.

    \b
    Example: dtwin models
             dtwin models one_compartment --json
             dtwin models one_compartment --card card.html

    \b
    Exit codes: 0 fine; 1 unexpected failure; 2 no such model, or no place for its card.
    """
    from dtwin_jax.dynamics.about import declared, parts

    if name is None:
        _list(as_json, card)
        return
    model = _find(name)
    if card is not None:
        _write_card(model, card)
    if as_json:
        print(json.dumps(declared(model), indent=2, ensure_ascii=False))
    elif card is None:
        _show(declared(model), parts(model))


def _list(as_json: bool, card: Path | None) -> None:
    from dtwin_jax.dynamics.about import about, declared
    from dtwin_jax.jobs.document import JobError
    from dtwin_jax.models import SUBJECTS

    if card is not None:
        raise JobError("--card: found no model, expected the name of one: dtwin models NAME --card FILE")
    if as_json:
        found = [{"subject": subject, **declared(one)} for subject, all_ in SUBJECTS.items() for one in all_]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    rows = []
    for subject, listed in SUBJECTS.items():
        rows += [(subject.capitalize(), "")] + [(f"  {one.name}", about(one).line) for one in listed]
    table(("model", "what"), rows, words=2, wrap=True)


def _write_card(model: Any, path: Path) -> None:
    from dtwin_jax.cli.steps import check_output
    from dtwin_jax.report import write_card

    check_output(path)
    began = time.perf_counter()
    say(f"Computing what a typical study of {model.name} would tell: a minute, more where solves are slow.")
    write_card(model, path)
    say(f"Card: {path.resolve().as_uri()}  ({seconds(time.perf_counter() - began)})")


def _find(name: str) -> Any:
    from dtwin_jax.jobs.checks import find_model
    from dtwin_jax.jobs.document import JobError

    try:
        return find_model(name)
    except LookupError as error:
        raise JobError(str(error.args[0])) from None


def _show(one: dict[str, Any], said: tuple[Any, ...]) -> None:
    print(f"{one['name']}: {one['about']}")
    for part in said:
        if part.name != one["name"]:
            print(f"\n{part.name}: {part.line}")
        for block in part.blocks:
            shown = (
                textwrap.indent(block.text, "    ") if block.equations else textwrap.fill(block.text, _WIDTH)
            )
            print("\n" + shown)
    print()
    for wire in one["wires"]:
        scale = "" if wire["factor"] == 1.0 else f", times {wire['factor']:.6g}"
        print(f"{wire['target']} is driven by {wire['source']}{scale}")
    for head, key in (
        ("Kind", "kind"),
        ("Valid", "valid"),
        ("Stiffness", "stiffness"),
        ("Solver", "solver"),
        ("Checked", "checked"),
        ("Source", "source"),
    ):
        print(f"{head}: {one[key] or 'not stated'}")
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
