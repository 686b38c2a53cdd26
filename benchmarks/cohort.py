"""Calibration of many independent patients: how fast, and how near to a long run of NUTS.

    python benchmarks/cohort.py [--patients 1000] [--reference 16] [--cores 1]

The minimal model of glucose, 60 measurements over five hours, patients drawn from the prior. Peaks: `fit`, a
Levenberg-Marquardt of Optimistix over Diffrax under `vmap` by hand, and SciPy's least squares with LSODA on a
few patients. Posteriors of five parameters: `calibrate` by `Laplace`, and by `Nuts` on the first patients,
with dense mass matrices, which is also what means and spreads are judged by.
"""

# ruff: noqa: E402 - cores are chosen before JAX counts them

import argparse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--reference", type=int, default=16, help="patients that NUTS samples too")
    parser.add_argument("--scipy", type=int, default=20, help="patients that SciPy fits")
    parser.add_argument("--cores", type=int, default=1, help="cores that this process may use")
    return parser.parse_args()


if __name__ == "__main__":
    from ensemble import keep_to

    ASKED = arguments()
    CORES = keep_to(ASKED.cores)

import warnings
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares
from setting import timed, write

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.record import Cohort, Record, Series
from dtwin_jax.core.signal import Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import summary
from dtwin_jax.inference.fit import fit
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import density_of
from dtwin_jax.inference.target import Target
from dtwin_jax.models import minimal_model

TIMES = np.linspace(5.0, 300.0, 60)
KNOWN = {"Gb": None, "Ib": None, "cv": 0.0}
SD = 4.28  # mg/dL, where it is known: that of the model
RTOL, ATOL = 1e-6, 1e-8
NAMES = ("SG", "p2", "SI", "G0")


def patients(count: int) -> Cohort:
    """Patients drawn from the prior, and measured with its errors."""
    density, base = density_of(minimal_model, KNOWN, ())
    target, inputs = Target(minimal_model, density.priors), minimal_model.example().inputs
    u = jax.vmap(target.draw)(jax.random.split(jax.random.key(1), count))
    theta = jax.vmap(target.bounded)(u)

    def course(row: Any) -> Any:
        p = assign(base, {name: row[i] for i, name in enumerate(target.names)})
        return simulate(minimal_model, p, inputs, TIMES).output.glucose

    glucose, sd = np.asarray(jax.jit(jax.vmap(course))(theta)), np.asarray(theta)[:, -1:]
    measured = glucose + sd * np.random.default_rng(0).normal(size=glucose.shape)
    same = jax.tree.map(lambda leaf: np.tile(np.asarray(leaf, float), (count, 1)), inputs)
    series = Series(np.tile(TIMES, (count, 1)), measured)
    return Cohort(tuple(map(str, range(count))), Record(same, {"glucose": series}, {}, np.zeros(count)))


def insulin() -> Sampled:
    return minimal_model.example().inputs.insulin


def priors() -> tuple[np.ndarray, np.ndarray]:
    """Medians and sds of the logarithms of the fitted parameters."""
    density, _ = density_of(minimal_model, KNOWN, ())
    args = {name: dict(prior.args) for name, prior in density.priors}
    return np.log([args[n]["median"] for n in NAMES]), np.asarray([args[n]["log_sd"] for n in NAMES])


def by_scipy(measured: np.ndarray) -> np.ndarray:
    """The peak of one patient, (name,) logarithms."""
    centre, spread = priors()
    path, p = insulin(), minimal_model.params()
    t, value = np.asarray(path.time), np.asarray(path.value)
    basal, rest = float(p.Gb), float(p.Ib)

    def residuals(u: np.ndarray) -> np.ndarray:
        sg, p2, si, g0 = np.exp(u)

        def rate(at, y):
            push = p2 * si * (np.interp(at, t, value) - rest)
            return [-(sg + y[1]) * y[0] + sg * basal, -p2 * y[1] + push]

        found = solve_ivp(rate, (0.0, TIMES[-1]), [g0, 0.0], "LSODA", TIMES, rtol=RTOL, atol=ATOL)
        return np.append((found.y[0] - measured) / SD, (u - centre) / spread)

    return least_squares(residuals, centre, diff_step=1e-4, xtol=1e-6, ftol=1e-8).x


def by_optimistix() -> Any:
    """(patient, n) -> (patient, name) logarithms, compiled."""
    centre, spread = priors()
    path, p = insulin(), minimal_model.params()
    course = diffrax.LinearInterpolation(jnp.asarray(path.time), jnp.asarray(path.value))
    basal, rest = float(p.Gb), float(p.Ib)

    def residuals(u: Any, measured: Any) -> Any:
        sg, p2, si, g0 = jnp.exp(u)

        def rate(at, y, _):
            push = p2 * si * (course.evaluate(at) - rest)
            return jnp.stack([-(sg + y[1]) * y[0] + sg * basal, -p2 * y[1] + push])

        found = diffrax.diffeqsolve(
            diffrax.ODETerm(rate),
            diffrax.Tsit5(),
            0.0,
            TIMES[-1],
            None,
            jnp.stack([g0, 0.0]),
            saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES)),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
        return jnp.concatenate([(found.ys[:, 0] - measured) / SD, (u - centre) / spread])

    def one(measured: Any) -> Any:
        solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
        options = {"jac": "fwd"}
        return optx.least_squares(
            residuals, solver, jnp.asarray(centre), measured, options=options, max_steps=100, throw=False
        ).value

    return jax.jit(jax.vmap(one))


def peaks(cohort: Cohort, few: int) -> list[dict]:
    """Patients per CPU second, and how far the peaks of the candidates lie apart."""
    measured = np.asarray(cohort.record.observations["glucose"].value)
    compiled = by_optimistix()
    blocks = [measured[i : i + 250] for i in range(0, len(measured), 250)]
    blocks[-1] = np.resize(blocks[-1], blocks[0].shape)
    known = KNOWN | {"sd": SD}
    calls = {
        "dtwin_jax, fit": lambda: fit(minimal_model, cohort, key=jax.random.key(0), priors=known, starts=1),
        "Optimistix over Diffrax by hand": lambda: np.concatenate([compiled(block) for block in blocks]),
        "SciPy least squares, LSODA": lambda: np.stack([by_scipy(row) for row in measured[:few]]),
    }
    found, first, later = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        found[name], first[name] = timed(call)
    for _ in range(3):
        for name, call in calls.items():
            later[name].append(timed(call)[1].cpu)
    ours = np.log(np.stack([found["dtwin_jax, fit"].estimate[name] for name in NAMES], axis=1))
    rows = []
    for name in calls:
        count = few if name.startswith("SciPy") else len(cohort)
        peak = ours if name.startswith("dtwin") else found[name][:count]
        seconds = float(np.median(later[name]))
        rows.append(
            {
                "candidate": name,
                "patients": count,
                "cpu_s": seconds,
                "first_call_cpu_s": first[name].cpu,
                "patients_per_cpu_s": count / seconds,
                "furthest_from_ours_log": float(np.max(np.abs(peak - ours[:count]))),
            }
        )
    rows[0]["not_converged"] = len(found["dtwin_jax, fit"].failed)
    return rows


def posteriors(cohort: Cohort, few: int) -> dict:
    """Both methods: effective draws per CPU second; and distances of means and spreads."""
    key = jax.random.key(5)
    weighed = {}

    def weigh() -> Any:
        weighed["tree"] = calibrate(
            minimal_model, cohort, key=key, priors=KNOWN, method=Laplace(fallback=None), progress=False
        )
        return 0

    method = Nuts(chains=4, warmup=500, draws=1500, dense=True, group=few)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = timed(weigh)[1]
        again = timed(weigh)[1]
        sampled, nuts = timed(
            lambda: calibrate(
                minimal_model,
                cohort.take(range(few)),
                key=key,
                priors=KNOWN,
                method=method,
                progress=False,
            )
        )
    tree = weighed["tree"]
    stats = tree["sample_stats"]
    table = summary(sampled, individual=True)
    names = list(tree["posterior"].data_vars)
    distance, ratio, effective = [], [], []
    for name in names:
        for patient in cohort.ids[:few]:
            one = np.log(tree["posterior"][name].sel(patient=patient).values.ravel())
            other = np.log(sampled["posterior"][name].sel(patient=patient).values.ravel())
            distance.append(abs(one.mean() - other.mean()) / other.std())
            ratio.append(one.std() / other.std())
            effective.append(float(table["ess_bulk"].sel(variable=f"{name}[{patient}]")))
    flagged = ~(stats["pareto_k"].values <= 0.7) | (stats["ess"].values < 500)
    shape = len(names), few
    near = np.reshape(distance, shape) < 0.2
    alike = np.abs(np.reshape(ratio, shape) - 1.0) < 0.2
    compiling = float(sampled.attrs["compile_seconds"])
    least = np.reshape(effective, shape).min(axis=0)
    return {
        "laplace": {
            "patients": len(cohort),
            "first_call_cpu_s": first.cpu,
            "cpu_s": again.cpu,
            "patients_per_cpu_s": len(cohort) / again.cpu,
            "ess_per_cpu_s": float(stats["ess"].sum()) / again.cpu,
            "flagged": int(flagged.sum()),
            "rounds": np.bincount(stats["rounds"].values).tolist(),
            "ess_quantiles": np.quantile(stats["ess"].values, (0.0, 0.01, 0.5)).tolist(),
        },
        "nuts": {
            "patients": few,
            "cpu_s": nuts.cpu,
            "compile_s": compiling,
            "patients_per_cpu_s": few / (nuts.cpu - compiling),
            "ess_per_cpu_s": float(least.sum()) / (nuts.cpu - compiling),
            "least_ess": float(least.min()),
            "worst_r_hat": float(table["r_hat"].max()),
        },
        "means_apart_in_sd": np.quantile(distance, (0.5, 0.95, 1.0)).tolist(),
        "spread_ratio": np.quantile(ratio, (0.0, 0.05, 0.5, 0.95, 1.0)).tolist(),
        "patients_near": int(np.all(near & alike, axis=0).sum()),
        "patients_compared": few,
    }


def main() -> None:
    cohort = patients(ASKED.patients)
    found: dict[str, Any] = {"cores": CORES, "peaks": peaks(cohort, ASKED.scipy)}
    for row in found["peaks"]:
        print(row, flush=True)
    found |= posteriors(cohort, ASKED.reference)
    for name in ("laplace", "nuts", "means_apart_in_sd", "spread_ratio", "patients_near"):
        print(name, found[name])
    write("cohort", found)


if __name__ == "__main__":
    main()
