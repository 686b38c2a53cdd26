"""A tree as `diagnose` gives it, of straight lines, made in plain NumPy: no solver, no estimation."""

import json

import numpy as np
import xarray as xr

LOST, LIMIT = "patient 3", 0.4
TIME = np.array([0.5, 1.0, 2.0, 4.0])
OMEGA = {"level": 0.5, "slope": 0.2}
POINTS = ("patient", "y_point")


def build(patients=8, samples=200, seed=0):
    """Patients on two doses that scale what is measured; `LOST` was not fitted, one value is a limit."""
    rng = np.random.default_rng(seed)
    ids = [f"patient {i}" for i in range(1, patients + 1)]
    dose = np.where(np.arange(patients) % 2, 10.0, 1.0)
    eta = rng.normal(size=(patients, 2)) * list(OMEGA.values())
    time = np.tile(TIME, (patients, 1))
    typical = dose[:, None] * (3.0 + 0.5 * time)
    individual = dose[:, None] * (3.0 + eta[:, :1] + (0.5 + eta[:, 1:]) * time)
    value = individual * (1.0 + 0.1 * rng.normal(size=time.shape))
    value[-1, -1] = np.nan
    censor = np.zeros(time.shape, int)
    censor[0, 0], value[0, 0] = -1, LIMIT
    new = rng.normal(size=(samples, patients, 2)) * list(OMEGA.values())
    drawn = dose[:, None] * (3.0 + new[..., :1] + (0.5 + new[..., 1:]) * time)
    drawn = drawn * (1.0 + 0.1 * rng.normal(size=drawn.shape))
    seen = np.isfinite(value) & (censor == 0)
    residual = np.where(seen, rng.normal(size=time.shape), np.nan)
    lost = ids.index(LOST)
    unknown = {"iwres": residual, "cwres": residual.copy(), "individual": individual.copy()}
    for array in (*unknown.values(), eta):
        array[lost] = np.nan
    parts = {"population": typical, "npde": np.where(seen, rng.normal(size=time.shape), np.nan)} | unknown
    fine = np.tile(np.linspace(0.0, 4.0, 9), (patients, 1))
    own = dose[:, None] * (3.0 + eta[:, :1] + (0.5 + eta[:, 1:]) * fine)
    course = {"population": dose[:, None] * (3.0 + 0.5 * fine), "individual": own}
    shrunk = 1.0 - np.nanstd(eta, axis=0) / np.array(list(OMEGA.values()))
    groups = {
        "observed_data": xr.Dataset(
            {"y": (POINTS, value, {"units": "mg/L"}), "y_time": (POINTS, time), "y_censor": (POINTS, censor)},
            {"patient": ids},
        ),
        "constant_data": xr.Dataset(
            {"dose": ("patient", dose, {"units": "mg"}), "age": ("patient", 30.0 + np.arange(patients))},
            {"patient": ids},
            {"known": ["dose", "age"]},
        ),
        "residuals": xr.Dataset({f"y_{k}": (POINTS, v) for k, v in parts.items()}, {"patient": ids}),
        "predictions": xr.Dataset(
            {"y": (("sample", *POINTS), drawn), "y_time": (POINTS, time)}, {"patient": ids}
        ),
        "courses": xr.Dataset(
            {f"y_{k}": (POINTS, v) for k, v in course.items()} | {"y_time": (POINTS, fine)}, {"patient": ids}
        ),
        "effects": xr.Dataset(
            {
                "eta": (("patient", "effect"), eta),
                "shrinkage": ("effect", shrunk),
                "omega": (("effect", "effect_bis"), np.diag(np.square(list(OMEGA.values())))),
            },
            {"patient": ids, "effect": list(OMEGA)},
        ),
    }
    groups["estimates"] = xr.Dataset(
        {
            "value": ("number", [3.0, 0.5, 0.5]),
            "standard_error": ("number", [0.12, np.nan, 0.1]),
            "unit": ("number", ["mg/L", "mg/L/h", "1"]),
        },
        {"number": ["level_pop", "slope_pop", "omega_level"]},
    )
    said = {"name": "straight_line", "by": "focei", "objective": 12.3456, "minus_two_log_likelihood": 69.4}
    said |= {"kind": "estimate", "time_unit": "h", "failed": json.dumps([LOST])}
    root = xr.Dataset(attrs=said | {"converged": 0, "message": "max_steps reached"})
    return xr.DataTree.from_dict({"/": root, **groups})
