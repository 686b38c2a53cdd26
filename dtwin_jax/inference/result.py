"""The result of a calibration as a tree of arrays in ArviZ's schema, and its way to disk and back."""

import importlib
import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.core.predictor import PENALTY
from dtwin_jax.core.prior import prior_from_dict
from dtwin_jax.core.quantity import Quantity, quantities, replace_fields, values
from dtwin_jax.core.record import SEEN, Cohort, Record, Series
from dtwin_jax.core.rules import Rules, columns, from_columns
from dtwin_jax.core.signal import SIGNALS, AbstractSignal, Doses
from dtwin_jax.inference import boxcox
from dtwin_jax.inference.covariate import covariate_from_dict
from dtwin_jax.inference.mixture import mixture_from_dict
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population, density_of

SCHEMA = 1
# Predictive draws are for pictures and checks: this many a chain are plenty.
PREDICTIVE_DRAWS = 250
_FIELDS = {"Doses": ("time", "amount", "duration"), "Steps": ("time", "value"), "Sampled": ("time", "value")}


class ResultError(ValueError):
    """A file that is not a whole result of `calibrate`."""


@dataclass(frozen=True)
class Posterior:
    """What sampling and evaluation gave: arrays with axes (chain, draw, ...); statistics also (patient,)."""

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    log_likelihood: dict[str, np.ndarray]
    expected: dict[str, np.ndarray]
    predictive: dict[str, np.ndarray]
    prior: dict[str, np.ndarray]

    @property
    def chains(self) -> int:
        """How many."""
        return next(iter(self.values.values())).shape[0]


def assemble(f: Any, density: Any, base: Any, cohort: Cohort, posterior: Posterior) -> Any:
    """The `xarray.DataTree` of a calibration."""
    import xarray as xr

    predictor: Any = f.predictor if isinstance(f, Population) else f
    declared = quantities(density.predictor.params())
    outputs = predictor.schema().outputs if hasattr(predictor, "schema") else {}
    ids = list(cohort.ids)
    chains, draws = next(iter(posterior.log_likelihood.values())).shape[:2]
    thin = np.unique(np.linspace(0, draws - 1, min(draws, PREDICTIVE_DRAWS)).astype(int))
    scale = {"chain": np.arange(chains), "draw": np.arange(draws), "patient": ids}
    thinned = scale | {"draw": thin}
    if "correlation" in posterior.values:
        scale |= {axis: list(f.varying) for axis in ("effect", "effect_bis")}

    def points(arrays: dict[str, np.ndarray], suffix: str = "", keep: Any = slice(None)) -> dict[str, Any]:
        return {
            channel + suffix: (("chain", "draw", "patient", f"{channel}_point"), array[:, keep])
            for channel, array in arrays.items()
        }

    groups = {
        "posterior": xr.Dataset(
            {name: (_dims(array), array, _note(name, declared)) for name, array in posterior.values.items()},
            scale,
        ),
        "sample_stats": xr.Dataset(
            {n: (_dims(a), a) for n, a in posterior.stats.items()}, _used(scale, posterior.stats)
        ),
        "prior": xr.Dataset(
            {name: (("chain", "draw"), array[None]) for name, array in posterior.prior.items()},
            {"chain": [0], "draw": np.arange(len(next(iter(posterior.prior.values()))))},
        ),
        "log_likelihood": xr.Dataset(points(posterior.log_likelihood), _only(scale)),
        "posterior_predictive": xr.Dataset(
            points(posterior.predictive, keep=thin) | points(posterior.expected, "_expected", thin),
            _only(thinned),
        ),
        "observed_data": observed_data(cohort.record, ids, outputs),
        "constant_data": constant_data(cohort.record, ids),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = _provenance(f, density, base, posterior, ids)
    return tree


def _dims(array: np.ndarray) -> tuple[str, ...]:
    return {
        1: ("patient",),
        2: ("chain", "draw"),
        3: ("chain", "draw", "patient"),
        4: ("chain", "draw", "effect", "effect_bis"),
    }[array.ndim]


def _only(scale: dict[str, Any]) -> dict[str, Any]:
    return {name: scale[name] for name in ("chain", "draw", "patient")}


def _used(scale: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    names = {name for array in arrays.values() for name in _dims(array)}
    return {name: value for name, value in scale.items() if name in names}


def _note(name: str, declared: dict[str, Quantity]) -> dict[str, str]:
    quantity = declared.get(name.removesuffix("_pop"))
    if quantity is None:
        return {"units": "1"}
    return {"units": quantity.unit, "source": quantity.source, "doc": quantity.doc}


def observed_data(record: Record, ids: list[str], outputs: dict[str, Quantity]) -> Any:
    """Measurements by channel (patient, point); padding is NaN, with mask, censor and after beside it."""
    import xarray as xr

    variables: dict[str, Any] = {}
    for name, series in record.observations.items():
        dims = ("patient", f"{name}_point")
        units = {"units": outputs[name].unit} if name in outputs else {}
        variables[name] = (dims, np.where(series.mask, series.value, np.nan), units)
        limit = () if series.limit is None else ("limit",)
        for field in ("time", "censor", "mask", "after", *limit):
            variables[f"{name}_{field}"] = (dims, np.asarray(getattr(series, field)))
    return xr.Dataset(variables, {"patient": ids}, {"channels": list(record.observations)})


def constant_data(record: Record, ids: list[str]) -> Any:
    """What was given and known, by patient."""
    import xarray as xr

    variables: dict[str, Any] = {name: ("patient", np.asarray(value)) for name, value in record.known.items()}
    variables["t0"] = ("patient", np.asarray(record.t0))
    kinds, overlap = {}, {}
    for name, signal in vars(record.inputs).items():
        kind = type(signal).__name__ if isinstance(signal, AbstractSignal) else "constant"
        kinds[name] = kind
        if kind == "constant":
            variables[f"{name}_constant"] = ("patient", np.asarray(signal))
            continue
        dose = f"{name}_dose"
        for field in _FIELDS[kind]:
            variables[f"{name}_{field}"] = (("patient", dose), np.asarray(getattr(signal, field)))
        if isinstance(signal, Doses) and signal.rules is not None:
            overlap[name] = signal.rules.restarts.overlap
            for part, fields in zip((dose, f"{name}_restart"), columns(signal.rules), strict=True):
                dims = "patient", part
                variables |= {f"{part}_{field}": (dims, np.asarray(x)) for field, x in fields.items()}
    attributes = {"inputs": json.dumps(kinds), "overlap": json.dumps(overlap), "known": list(record.known)}
    return xr.Dataset(variables, {"patient": ids}, attributes)


def cohort_of(f: Any, tree: Any) -> Cohort:
    """The cohort that a result was calibrated on."""
    predictor: Any = f.predictor if isinstance(f, Population) else f
    observed, constant = tree["observed_data"], tree["constant_data"]
    ids = tuple(str(patient) for patient in observed["patient"].values)
    series = {}
    for name in np.atleast_1d(observed.attrs["channels"]):
        value = np.nan_to_num(observed[name].values)
        fields = ("mask", "censor", "after", "limit")
        flags = {
            field: observed[f"{name}_{field}"].values for field in fields if f"{name}_{field}" in observed
        }
        if np.all(flags["censor"] == SEEN):
            del flags["censor"]
        series[str(name)] = Series(observed[f"{name}_time"].values, value, **flags)
    inputs = {}
    for name, kind in json.loads(constant.attrs["inputs"]).items():
        if kind == "constant":
            inputs[name] = constant[f"{name}_constant"].values
        else:
            rules = {"rules": _rules(constant, name)} if kind == "Doses" else {}
            parts = (constant[f"{name}_{field}"].values for field in _FIELDS[kind])
            inputs[name] = SIGNALS[kind](*parts, **rules)
    known = {str(name): constant[name].values for name in np.atleast_1d(constant.attrs["known"]) if name}
    return Cohort(
        ids, Record(replace_fields(predictor.inputs(), inputs), series, known, constant["t0"].values)
    )


def _rules(constant: Any, name: str) -> Rules | None:
    """Rules of an input's doses, None where they have none."""
    overlap = json.loads(constant.attrs.get("overlap", "{}"))
    if name not in overlap:
        return None
    doses, restarts = (
        {
            str(key).removeprefix(f"{part}_"): array.values
            for key, array in constant.data_vars.items()
            if str(key).startswith(f"{part}_")
        }
        for part in (f"{name}_dose", f"{name}_restart")
    )
    return from_columns(doses, restarts, overlap[name])


def density_from(f: Any, tree: Any) -> tuple[Any, Any]:
    """The density and the known parameter values of a result: what `evaluate` needs."""
    priors: dict[str, Any] = {
        name: prior_from_dict(d) for name, d in json.loads(tree.attrs["priors"]).items()
    }
    fixed = json.loads(tree.attrs["fixed"])
    return density_of(f, fixed | priors, ())


def _provenance(f: Any, density: Any, base: Any, posterior: Posterior, ids: list[str]) -> dict[str, Any]:
    predictor = density.predictor
    estimated = dict(density.priors)
    fixed = {name: float(value) for name, value in values(base).items() if name not in estimated}
    lost = np.any(
        [np.any(array <= PENALTY, axis=-1) for array in posterior.log_likelihood.values()], axis=0
    ).mean((0, 1))
    failed = {patient: float(share) for patient, share in zip(ids, lost, strict=True) if share > 0}
    device = jax.devices()[0]
    return {
        "schema": SCHEMA,
        "kind": "population" if isinstance(f, Population) else "independent",
        "predictor": import_path(f.predictor if isinstance(f, Population) else f),
        "population": json.dumps(_population_as_dict(f)) if isinstance(f, Population) else "",
        "name": predictor.name,
        "time_unit": getattr(predictor, "time", ""),
        "priors": json.dumps({name: prior.as_dict() for name, prior in density.priors}),
        "fixed": json.dumps(fixed),
        "failed": json.dumps(failed, ensure_ascii=False),
        "versions": json.dumps(_versions()),
        "device": f"{device.platform}: {device.device_kind}",
        "dtype": str(np.result_type(*posterior.values.values())),
        "solver": repr(getattr(predictor, "solver", "")),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("dtwin-jax", "jax", "diffrax", "equinox", "numpyro", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def import_path(f: Any) -> str:
    """`"module:name"` to import a predictor again by, or `""` if it is not an attribute of a module."""
    for function in vars(f).values():
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        if module is None:
            continue
        for name, value in vars(module).items():
            if type(value) is type(f) and value == f:
                return f"{module.__name__}:{name}"
    return ""


def _population_as_dict(f: Population) -> dict[str, Any]:
    return {
        "vary": {name: prior.as_dict() for name, prior in f.vary},
        "covariates": [covariate.as_dict() for covariate in f.covariates],
        "correlation": f.correlation,
        "centred": f.centred,
        "blocks": f.blocks,
        "occasions": None if f.occasions is None else f.occasions.as_dict(),
        "boxcox": boxcox.as_dict(f.boxcox),
        "mixture": None if f.mixture is None else f.mixture.as_dict(),
    }


def _population_from_dict(predictor: Any, data: dict[str, Any]) -> Population:
    covariates = tuple(covariate_from_dict(row) for row in data["covariates"])
    vary = {name: prior_from_dict(prior) for name, prior in data["vary"].items()}
    given = data["occasions"]
    gamma = {} if given is None else {name: prior_from_dict(prior) for name, prior in given["vary"].items()}
    occasions = None if given is None else Occasions(given["count"], gamma)
    blocks = tuple(tuple(block) for block in data["blocks"])
    # Files of before have none.
    shapes, mixture = boxcox.from_dict(data.get("boxcox", {})), mixture_from_dict(data.get("mixture"))
    how = (data["correlation"], data["centred"], blocks, occasions, shapes, mixture)
    return Population(predictor, vary, covariates, *how)


def save(tree: Any, path: str | Path) -> Path:
    """Write a result as NetCDF: to a temporary name, then renamed, so that a file is whole or absent."""
    path = Path(path)
    with replacing(path) as draft:
        tree.to_netcdf(draft, engine="h5netcdf")
    return path


def load(path: str | Path, predictor: Any = None) -> tuple[Any, Any]:
    """A saved result.

    Args:
        path: file written by `save`.
        predictor: the predictor, if it is not importable (defined in a notebook).

    Returns:
        The predictor (or `Population`), and the tree.

    Raises:
        ResultError: not a whole result, or its predictor cannot be imported.
    """
    path = Path(path)
    tree = read_tree(path, "a result of dtwin calibrate")
    if tree.attrs.get("schema") != SCHEMA:
        raise ResultError(f"{path}: found schema {tree.attrs.get('schema')!r}, expected {SCHEMA}")
    if predictor is None:
        predictor = _import(path, tree.attrs["predictor"])
    described = tree.attrs["population"]
    return (_population_from_dict(predictor, json.loads(described)) if described else predictor), tree


def read_tree(path: str | Path, kind: str) -> Any:
    """The groups of a NetCDF file, in memory.

    Raises:
        ResultError: no such file, or not a whole one; `kind` says what it should be.
    """
    import xarray as xr

    path = Path(path)
    if not path.is_file():
        raise ResultError(f"{path}: no such file, expected {kind}")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            return opened.load()
    except (OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultError(
            f"{path}: found no whole NetCDF file, perhaps cut short ({reason}), expected {kind}"
        ) from None


def _import(path: Path, where: str) -> Any:
    module, _, name = where.partition(":")
    if not name:
        raise ResultError(f"{path}: its predictor was not importable when it was made; pass predictor=...")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ResultError(f"{path}: cannot import its predictor {where!r} ({error})") from None
