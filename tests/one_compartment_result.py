"""A synthetic result of a one-compartment population: plain NumPy, no solver, no sampler.

The groups and names are those that `calibrate` and `forecast` give. The draws scatter around the truth
from which the data came, so every check in the report ought to pass, except for what is planted:
`BROKEN` has no finite prediction, `FRAIL` loses a tenth of its forecast draws late, and one measurement
lies below the limit of quantification.
"""

import json
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

ODD = "<b>Zoë & 患者"
FRAIL = "patient 3"
BROKEN = "patient 5"
UNITS = {"CL": "L/h", "V": "L", "ka": "1/h", "cv": "1"}
TYPICAL = {"CL": 4.0, "V": 40.0, "ka": 1.2}
OMEGA = {"CL": 0.35, "V": 0.2, "ka": 0.3}
CV, BETA, LIMIT = 0.12, 0.75, 0.25
DOSE_TIMES, DOSE = np.array([0.0, 12.0, 24.0]), 100.0
PLAN_TIMES = np.array([36.0, 48.0, 60.0])


class Synthetic(NamedTuple):
    result: xr.DataTree
    curves: xr.DataTree
    forecast: xr.DataTree
    replicates: xr.DataTree
    scores: xr.Dataset


def concentration(t: Any, doses: Any, p: dict[str, Any]) -> np.ndarray:
    """Oral doses into one compartment, by superposition; parameters broadcast against `t`."""
    elimination = p["CL"] / p["V"]
    total = 0.0
    for start in doses:
        since = np.maximum(t - start, 0.0)
        shape = np.exp(-elimination * since) - np.exp(-p["ka"] * since)
        total = total + DOSE * p["ka"] / (p["V"] * (p["ka"] - elimination)) * shape
    return np.asarray(total)


def build(patients: int = 6, *, chains: int = 2, draws: int = 200, seed: int = 0) -> Synthetic:
    """Everything that a report takes, for a population of `patients`."""
    rng = np.random.default_rng(seed)
    ids = [ODD, *(f"patient {i}" for i in range(2, patients + 1))]
    weight = rng.normal(75, 14, patients).clip(45)
    truth = _individuals(rng, TYPICAL, OMEGA, BETA, weight)
    time, value, censor = _measurements(rng, truth, patients)
    posterior = _posterior(rng, truth, weight, chains, draws)
    groups = {
        "posterior": _with_units(posterior, ids),
        "prior": _prior(rng, 500),
        "sample_stats": _sample_stats(rng, chains, draws),
        "observed_data": _observed(ids, time, value, censor),
        **_predictive(rng, ids, time, value, posterior),
        "constant_data": _known(ids, DOSE_TIMES, weight),
    }
    result = xr.DataTree.from_dict({"/": xr.Dataset(attrs=_attrs(chains, draws)), **groups})
    fine = np.linspace(0.0, 36.0, 121)
    later = np.arange(36.0, 72.01, 0.5)
    flat = {name: draw.reshape(-1, *draw.shape[2:])[:200] for name, draw in posterior.items()}
    curves = _predictions(rng, ids, np.tile(fine, (patients, 1)), DOSE_TIMES, flat)
    every_dose = np.concatenate([DOSE_TIMES, PLAN_TIMES])
    forecast = _predictions(rng, ids, np.tile(later, (patients, 1)), every_dose, flat)
    forecast["constant_data"] = xr.DataTree(_known(ids, PLAN_TIMES, weight))
    _plant(curves, forecast, ids)
    return Synthetic(result, curves, forecast, _replicates(rng, time, posterior, weight), _scores())


def _individuals(rng: Any, typical: Any, omega: Any, beta: Any, weight: np.ndarray) -> dict[str, np.ndarray]:
    out = {name: typical[name] * np.exp(omega[name] * rng.normal(size=weight.shape)) for name in TYPICAL}
    out["CL"] = out["CL"] * (weight / 70.0) ** beta
    return out


def _measurements(rng: Any, truth: dict[str, np.ndarray], patients: int) -> tuple[np.ndarray, ...]:
    design = np.array([0.5, 1, 2, 4, 8, 11.5, 13, 16, 23.5, 25, 28, 36.0])
    time = np.tile(design, (patients, 1)) + rng.uniform(-0.2, 0.2, (patients, 12))
    time[:, -1] = 36.0 - rng.uniform(0, 4, patients)
    p = {name: row[:, None] for name, row in truth.items()}
    exact = concentration(time, DOSE_TIMES, p)
    value = exact * (1 + CV * rng.normal(size=time.shape))
    censor = np.zeros(time.shape, int)
    value[0, 5], censor[0, 5] = LIMIT, -1
    value[1, 9:], time[1, 9:] = np.nan, time[1, 8]
    return time, value, censor


def _posterior(rng: Any, truth: Any, weight: np.ndarray, chains: int, draws: int) -> dict[str, np.ndarray]:
    shape = (chains, draws)
    ridge = rng.normal(size=shape)
    out = {}
    for name, value in TYPICAL.items():
        step = 0.8 * ridge + 0.6 * rng.normal(size=shape)
        out[f"{name}_pop"] = value * np.exp(0.1 * step * (-1 if name == "ka" else 1))
    for name, value in OMEGA.items():
        out[f"omega_{name}"] = value * np.exp(0.25 * rng.normal(size=shape))
    out["beta_CL_weight"] = BETA + 0.2 * rng.normal(size=shape)
    out["cv"] = CV * np.exp(0.1 * rng.normal(size=shape))
    for name in TYPICAL:
        out[name] = truth[name] * np.exp(0.05 * rng.normal(size=(*shape, len(weight))))
    return out


def _unit(name: str) -> str:
    base = name.removesuffix("_pop")
    return UNITS.get(base, "1")


def _with_units(posterior: dict[str, np.ndarray], ids: list[str]) -> xr.Dataset:
    dims = ("chain", "draw", "patient")
    data = {
        name: (
            dims[: draw.ndim],
            draw,
            {"units": _unit(name), "doc": "Typical clearance" * (name == "CL_pop")},
        )
        for name, draw in posterior.items()
    }
    return xr.Dataset(data, coords={"patient": ids})


def _prior(rng: Any, draws: int) -> xr.Dataset:
    def lognormal(median: float, sd: float) -> Any:
        return (("chain", "draw"), median * np.exp(sd * rng.normal(size=(1, draws))))

    data = {f"{name}_pop": lognormal(1.3 * value, 0.5) for name, value in TYPICAL.items()}
    data |= {f"omega_{name}": (("chain", "draw"), 0.5 * abs(rng.normal(size=(1, draws)))) for name in OMEGA}
    return xr.Dataset(data | {"cv": lognormal(0.2, 0.5)})


def _sample_stats(rng: Any, chains: int, draws: int) -> xr.Dataset:
    shape, dims = (chains, draws), ("chain", "draw")
    return xr.Dataset(
        {
            "diverging": (dims, rng.uniform(size=shape) < 0.004),
            "energy": (dims, rng.normal(200, 4, shape)),
            "acceptance_rate": (dims, rng.beta(9, 1, shape)),
            "n_steps": (dims, np.full(shape, 15)),
            "tree_depth": (dims, np.full(shape, 4)),
        }
    )


def _observed(ids: list[str], time: np.ndarray, value: np.ndarray, censor: np.ndarray) -> xr.Dataset:
    dims = ("patient", "concentration_point")
    return xr.Dataset(
        {
            "concentration": (dims, value, {"units": "mg/L"}),
            "concentration_time": (dims, time),
            "concentration_censor": (dims, censor),
        },
        coords={"patient": ids},
    )


def _predictive(rng: Any, ids: list[str], time: Any, value: Any, posterior: Any) -> dict[str, xr.Dataset]:
    dims = ("chain", "draw", "patient", "concentration_point")
    p = {name: posterior[name][:, ::2, :, None] for name in TYPICAL}
    exact = concentration(time, DOSE_TIMES, p)
    drawn = exact * (1 + CV * rng.normal(size=exact.shape))
    if BROKEN in ids:
        exact[:, :, ids.index(BROKEN)] = drawn[:, :, ids.index(BROKEN)] = np.nan
    log_lik = -0.5 * ((value - exact) / (CV * exact)) ** 2 - np.log(CV * np.where(exact > 0, exact, 1.0))
    predictive = {"concentration": (dims, drawn), "concentration_expected": (dims, exact)}
    return {
        "posterior_predictive": xr.Dataset(predictive, coords={"patient": ids}),
        "log_likelihood": xr.Dataset({"concentration": (dims, log_lik)}, coords={"patient": ids}),
    }


def _known(ids: list[str], doses: np.ndarray, weight: np.ndarray) -> xr.Dataset:
    dims, shape = ("patient", "oral_dose"), (len(ids), len(doses))
    return xr.Dataset(
        {
            "weight": ("patient", weight, {"units": "kg"}),
            "oral_time": (dims, np.tile(doses, (len(ids), 1))),
            "oral_amount": (dims, np.full(shape, DOSE), {"units": "mg"}),
            "oral_duration": (dims, np.zeros(shape)),
        },
        coords={"patient": ids},
    )


def _predictions(rng: Any, ids: list[str], time: np.ndarray, doses: Any, flat: Any) -> xr.DataTree:
    dims = ("sample", "patient", "concentration_point")
    exact = concentration(time, doses, {name: flat[name][:, :, None] for name in TYPICAL})
    drawn = exact * (1 + CV * rng.normal(size=exact.shape))
    data = {
        "concentration": (dims, drawn, {"units": "mg/L"}),
        "concentration_expected": (dims, exact, {"units": "mg/L"}),
        "concentration_time": (dims[1:], time, {"units": "h"}),
    }
    root = xr.Dataset(attrs={"time_unit": "h", "name": "one_compartment"})
    return xr.DataTree.from_dict({"/": root, "predictions": xr.Dataset(data, coords={"patient": ids})})


def _plant(curves: xr.DataTree, forecast: xr.DataTree, ids: list[str]) -> None:
    for tree in (curves, forecast):
        for name in ("concentration", "concentration_expected"):
            if BROKEN in ids:
                tree["predictions"].dataset[name].values[:, ids.index(BROKEN)] = np.nan
    for name in ("concentration", "concentration_expected"):
        forecast["predictions"].dataset[name].values[:20, ids.index(FRAIL), 50:] = np.nan


def _replicates(rng: Any, time: np.ndarray, posterior: Any, weight: np.ndarray) -> xr.DataTree:
    samples = []
    for i in range(min(150, posterior["cv"].shape[1])):
        typical = {name: posterior[f"{name}_pop"][0, i] for name in TYPICAL}
        omega = {name: posterior[f"omega_{name}"][0, i] for name in TYPICAL}
        p = _individuals(rng, typical, omega, posterior["beta_CL_weight"][0, i], weight)
        exact = concentration(time, DOSE_TIMES, {name: row[:, None] for name, row in p.items()})
        samples.append(exact * (1 + CV * rng.normal(size=exact.shape)))
    samples[0][0] = np.nan
    data = {
        "concentration": (("sample", "patient", "concentration_point"), np.stack(samples), {"units": "mg/L"}),
        "concentration_time": (("patient", "concentration_point"), time),
    }
    return xr.DataTree.from_dict({"predictions": xr.Dataset(data)})


def _scores() -> xr.Dataset:
    row = {"crps": 0.213, "log_score": -0.471, "coverage_50": 0.52, "coverage_90": 0.81, "n": 36}
    return xr.Dataset(
        {key: ("channel", [value]) for key, value in row.items()}, {"channel": ["concentration"]}
    )


def _attrs(chains: int, draws: int) -> dict[str, Any]:
    priors = {
        "CL": {"lognormal": {"median": 5.2, "cv": 0.5}},
        "omega_CL": {"halfnormal": {"scale": 0.5}},
    }
    return {
        "predictor": "dtwin_jax.models.one_compartment:one_compartment",
        "name": "one_compartment",
        "time_unit": "h",
        "kind": "population",
        "method": "NUTS",
        "chains": chains,
        "warmup": 500,
        "draws": draws,
        "seed": 20250101,
        "wall_seconds": 83.4,
        "compile_seconds": 12.1,
        "versions": json.dumps({"dtwin_jax": "0.1.0", "jax": "0.10.2", "numpyro": "0.21.0"}),
        "priors": json.dumps(priors),
        "device": "cpu",
        "dtype": "float64",
        "created": "2025-01-01T12:00:00+00:00",
        "warnings": json.dumps(["Effective samples of omega_CL are low; run longer chains."]),
        "failed": json.dumps([BROKEN]),
    }
