"""What a job file says against what its model has.

The raw file is read, not the validated one, so that a wrong name is found beside a wrong type.
"""

import importlib
import sys
from collections.abc import Iterable
from typing import Any

from dtwin_jax.core.predictor import Predictor, Schema
from dtwin_jax.core.units import UnitError, factor
from dtwin_jax.io.names import SHAPES, suggestion
from dtwin_jax.jobs.document import Document, Fault, shown
from dtwin_jax.jobs.lines import Path
from dtwin_jax.jobs.plan import unknown
from dtwin_jax.jobs.values import measure


def model_of(document: Document) -> tuple[Any, list[Fault]]:
    """The predictor that a job names, None with the fault if there is none."""
    name = document.data.get("model")
    if not isinstance(name, str):
        return None, []
    try:
        return find_model(name, str(document.folder)), []
    except LookupError as error:
        return None, [Fault(("model",), str(error.args[0]))]


def find_model(name: str, folder: str = ".") -> Any:
    """A predictor by the name of a shipped model, or by `package.module:attribute`.

    Args:
        name: of the model.
        folder: where modules are looked for after all other places.

    Raises:
        LookupError: there is none, and why.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        catalogue = importlib.import_module("dtwin_jax.models").CATALOGUE
        if name in catalogue:
            return catalogue[name]
        raise LookupError(
            f"there is no model {name!r}{suggestion(name, catalogue)}; expected one of "
            f"{', '.join(catalogue)}, or package.module:attribute"
        )
    if folder not in sys.path:
        sys.path.append(folder)  # at the end, so that nothing there can take another module's place
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        # Anything may happen in a module of the user's own.
        raise LookupError(f"cannot import {name!r} ({type(error).__name__}: {error})") from error
    if not isinstance(found, Predictor) or not hasattr(found, "schema"):
        raise LookupError(f"found a {type(found).__name__} at {name!r}, expected a model")
    return found


def job_faults(document: Document, f: Any) -> list[Fault]:
    """Wrong names and units of a job; those that need the model only if there is one."""
    raw = document.data
    faults = _data_faults(document, _table(raw, "data"))
    if f is None:
        return faults
    schema = f.schema()
    faults += [
        unknown(("priors", name), "parameter", name, schema.parameters)
        for name in _table(raw, "priors")
        if name not in schema.parameters
    ]
    if "laplace" in raw and "population" in raw:
        faults.append(Fault(("laplace",), "patients of a population are not independent", "[sampler] alone"))
    if "svi" in raw and "population" not in raw:
        faults.append(Fault(("svi",), "patients each alone have no population's numbers", "[population]"))
    if "svi" in raw and "mixture" in _table(raw, "population"):
        what = "a guide has one peak for each patient, a mixture may have several"
        faults.append(Fault(("svi",), what, "[sampler] alone"))
    return faults + _window_faults(raw, schema) + _input_faults(raw, schema) + _population_faults(raw, schema)


def _table(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The table at `keys`, empty if it is absent or something else."""
    found: Any = raw
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _data_faults(document: Document, data: dict[str, Any]) -> list[Fault]:
    faults = []
    file = data.get("file")
    if isinstance(file, str) and not (path := document.folder / file).exists():
        wanted = "a CSV or Parquet file, or a folder of Parquet files"
        faults.append(Fault(("data", "file"), f"found no file {str(path)!r}", wanted))
    for key in ("units", "covariates"):
        for name, unit in _table(data, key).items():
            faults += _unit_faults(("data", key, name), unit)
    return faults


def _unit_faults(path: Path, unit: Any) -> list[Fault]:
    try:
        factor(unit, unit) if isinstance(unit, str) else None
    except UnitError as error:
        return [Fault(path, str(error), "a UCUM unit")]
    return []


def _window_faults(raw: dict[str, Any], schema: Schema) -> list[Fault]:
    faults = _time_faults(("data", "t0"), _table(raw, "data").get("t0"), schema)
    for key in ("from", "until"):
        for name, given in _table(raw, "data", key).items():
            path = ("data", key, name)
            if name not in schema.outputs:
                faults.append(unknown(path, "output", name, schema.outputs))
            faults += _time_faults(path, given, schema)
    return faults


def _time_faults(path: Path, given: Any, schema: Schema) -> list[Fault]:
    try:
        reason = "" if given is None else measure(given).fits(schema.time_unit)
    except ValueError:
        return []  # of the wrong type: already found
    return [Fault(path, reason)] if reason else []


def _input_faults(raw: dict[str, Any], schema: Schema) -> list[Fault]:
    faults = []
    for key, value in _table(raw, "data", "inputs").items():
        path = ("data", "inputs", key)
        if value in SHAPES and key not in schema.inputs:
            faults.append(unknown(path, "input", key, schema.inputs))
        elif isinstance(value, str) and value not in SHAPES and value not in schema.inputs:
            faults.append(unknown(path, "input", value, [*schema.inputs, *SHAPES]))
    return faults


def _population_faults(raw: dict[str, Any], schema: Schema) -> list[Fault]:
    population = _table(raw, "population")
    vary = population.get("vary", [])
    names = [name for name in vary if isinstance(name, str)] if isinstance(vary, list | dict) else []
    faults = []
    for i, name in enumerate(names):
        path = ("population", "vary", name if isinstance(vary, dict) else i)
        if name not in schema.parameters:
            faults.append(unknown(path, "parameter", name, schema.parameters))
        elif (reason := _why_known(raw, name, schema)) != "":
            what = f"{name!r} varies between patients but is known: {reason}"
            faults.append(Fault(path, what, "a prior of it in [priors], or its name left out here"))
    covariates = population.get("covariates", [])
    for i, row in enumerate(covariates if isinstance(covariates, list) else []):
        if isinstance(row, dict):
            faults += _covariate_faults(i, row, names, raw, schema)
    return faults


def _why_known(raw: dict[str, Any], name: str, schema: Schema) -> str:
    """Why a parameter is not estimated; empty if it is."""
    given = _table(raw, "priors").get(name)
    if given is not None:
        return "" if isinstance(given, dict) else f"[priors] has {shown(given)}"
    return "" if schema.parameters[name].prior is not None else "the model has no prior of it"


def _covariate_faults(
    i: int, row: dict[str, Any], vary: Iterable[str], raw: dict[str, Any], schema: Schema
) -> list[Fault]:
    path = ("population", "covariates", i)
    faults = []
    parameter, name, unit = row.get("parameter"), row.get("name"), row.get("unit")
    vary = list(vary)
    if isinstance(parameter, str) and parameter not in vary:
        near = suggestion(parameter, vary)
        what = f"{parameter!r} does not vary between patients{near}"
        faults.append(Fault((*path, "parameter"), what, f"one of vary: {', '.join(vary) or 'nothing'}"))
    known = covariate_units(_table(raw, "data", "covariates"), schema)
    if isinstance(name, str) and name not in known:
        what = f"{name!r} is not known of the patients{suggestion(name, known)}"
        faults.append(
            Fault((*path, "name"), what, f"a name of [data.covariates], or of {', '.join(schema.parameters)}")
        )
    elif isinstance(name, str) and isinstance(unit, str) and not _same(unit, known[name]):
        faults.append(Fault((*path, "unit"), f"found {unit!r}", f"{known[name]!r}, in which it is read"))
    return faults


def covariate_units(declared: dict[str, Any], schema: Schema) -> dict[str, str]:
    """Name -> unit of what can be known of a patient: the model's own names in the model's units."""
    own = {name: quantity.unit for name, quantity in schema.parameters.items()}
    return {name: str(unit) for name, unit in declared.items()} | own


def _same(a: str, b: str) -> bool:
    try:
        return factor(a, b) == 1.0
    except UnitError:
        return False
