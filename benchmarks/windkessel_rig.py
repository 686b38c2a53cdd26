"""The 3-element windkessel on a mock circulation: measured flow in, measured pressure out.

    python benchmarks/windkessel_rig.py [--data ../shared/data/hemo]

Five runs of a rig of pump, compliance chamber and resistance (FDA CDRH RST24CV01.01; Farahmand et al. 2023,
Comput Biol Med 160:106979), 200 Hz. All samples of the flow from 2 to 12 s are the input; every 8th pressure
is a measurement. Straight lines between samples of the flow, held by a state, leave an input that is constant
between samples (its slope), so that the model has an exact flow; the solvers of `windkessel_3` are timed
beside it. Writes the figures as JSON and the fits as SVG beside this file. Exits with 1 where R or C is
more than 5 % from the least squares of the data sheets, or the 90 % band covers less than 85 or more
than 95 % of the pressures.
"""

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from setting import FOLDER, data_folder, interleaved, timed, write

import dtwin_jax as dt
from dtwin_jax.core.signal import Input
from dtwin_jax.dynamics.linear import filling
from dtwin_jax.models import windkessel_3
from dtwin_jax.models.windkessel import Inputs, Outputs, Params3

START, STOP, EVERY, RATE = 2.0, 12.0, 8, 200.0
METHOD = dt.Nuts(chains=4, warmup=300, draws=300, dense=True)
NAMES = ("R", "C", "Rc", "P0", "sd")
# Independent least squares of the same window: Rc and R in mm[Hg].s/mL, C in mL/mm[Hg], rmse in mm[Hg].
SHEET = {
    "step01": {"Rc": 0.0140, "R": 1.0147, "C": 1.390, "rmse": 2.12},
    "step05": {"Rc": 0.0131, "R": 0.9744, "C": 1.392, "rmse": 1.89},
    "step10": {"Rc": 0.0112, "R": 0.8953, "C": 1.439, "rmse": 1.76},
    "step15": {"Rc": 0.0152, "R": 1.0774, "C": 1.356, "rmse": 2.26},
    "step20": {"Rc": 0.0163, "R": 1.1474, "C": 1.315, "rmse": 2.49},
}


class Params(Params3):
    """Of `windkessel_3`, with the flow at the start."""

    inflow0: dt.Scalar = dt.param(0.0, "mL/s", doc="measured flow at the start")


class SlopeInputs(eqx.Module):
    """The flow as its slope, constant between samples."""

    slope: Input = dt.var("mL/s2", neutral=0.0)


class State(eqx.Module):
    """Pressure of the compliance, and the measured flow."""

    Pc: dt.Scalar = dt.var("mm[Hg]")
    inflow: dt.Scalar = dt.var("mL/s")


def init(p: Params) -> State:
    return State(Pc=p.P0, inflow=p.inflow0)


def drift(t: Any, x: State, u: SlopeInputs, p: Params) -> State:
    return State(Pc=(x.inflow - x.Pc / p.R) / p.C, inflow=u.slope)


def flow(dt: Any, x: State, u: SlopeInputs, p: Params) -> State:
    """The exact solution while the slope is constant."""
    tau = p.R * p.C
    filled = filling(1 / tau, dt)
    pressure = x.Pc * jnp.exp(-dt / tau) + x.inflow / p.C * filled + u.slope * p.R * (dt - filled)
    return State(Pc=pressure, inflow=x.inflow + u.slope * dt)


def observe(t: Any, x: State, u: SlopeInputs, p: Params) -> Outputs:
    return Outputs(pressure=x.Pc + p.Rc * x.inflow)


EXACT = replace(
    windkessel_3,
    name="windkessel_3_sampled",
    params=Params,
    inputs=SlopeInputs,
    init=init,
    drift=drift,
    observe=observe,
    flow=flow,
)


@dataclass(frozen=True)
class Rig:
    """The window of one run."""

    time: np.ndarray
    flow: np.ndarray
    pressure: np.ndarray

    def record(self, start: float, stop: float, every: int) -> dt.Record:
        """The part from `start` to `stop`, with every so many-th pressure."""
        inside = (self.time >= start - 1e-9) & (self.time <= stop + 1e-9)
        time, inflow, pressure = self.time[inside], self.flow[inside], self.pressure[inside]
        slope = np.append(np.diff(inflow) / np.diff(time), 0.0)
        measured = dt.Series(time[::every], pressure[::every])
        known = {"inflow0": inflow[0]}
        return dt.Record(
            SlopeInputs(slope=dt.Steps(time, slope)), {"pressure": measured}, known, float(time[0])
        )


def read(folder: Path) -> dict[str, Rig]:
    """Step -> its window."""
    found = {}
    for step in SHEET:
        table = np.genfromtxt(folder / f"fda_mcl_nv_{step}.csv", delimiter=",", names=True)
        table = table[(table["time_s"] >= START) & (table["time_s"] <= STOP)]
        found[step] = Rig(table["time_s"], table["flow_ml_s"], table["p_central_mmHg"])
    return found


def solvers(rig: Rig) -> dict[str, Any]:
    """Time of one solve by the exact flow and by three settings of the solver, and their errors."""
    record = rig.record(START, STOP, EVERY)
    times = record.observations["pressure"].time
    base = dt.assign(
        Params(), {"R": 1.0, "C": 1.4, "Rc": 0.014, "P0": 70.0, "inflow0": record.known["inflow0"]}
    )
    sampled = Inputs(inflow=dt.Sampled(rig.time, rig.flow))
    step = 1 / RATE
    models = {
        "exact flow": (EXACT, record.inputs),
        "Tsit5, fixed step of one sample": (
            replace(windkessel_3, solver=dt.Solver(dt=step, max_steps=2**13)),
            sampled,
        ),
        "Tsit5, fixed step of four samples": (
            replace(windkessel_3, solver=dt.Solver(dt=4 * step, max_steps=2**13)),
            sampled,
        ),
        "Tsit5, adaptive, rtol 1e-6": (windkessel_3, sampled),
    }

    def caller(model: Any, inputs: Any) -> Any:
        solve = jax.jit(lambda p: dt.simulate(model, p, inputs, times, t0=START).output.pressure)
        return lambda: jax.block_until_ready(solve(base))

    calls = {name: caller(*pair) for name, pair in models.items()}
    figures = interleaved(calls, rounds=7)
    exact = calls["exact flow"]()
    return {
        name: one | {"error_mmHg": float(np.max(np.abs(calls[name]() - exact)))}
        for name, one in figures.items()
    }


def correlated(residual: np.ndarray) -> float:
    """Integrated autocorrelation time of residuals (patient n), in spacings: by how many too many they are.

    Summed until the first negative autocorrelation: residuals that repeat with every beat swing about 0.
    """
    centred = residual - residual.mean()
    n = len(centred)
    rho = np.correlate(centred, centred, "full")[n - 1 :] / np.dot(centred, centred)
    stop = int(np.argmax(rho < 0)) or n
    return float(1 + 2 * np.sum(rho[1:stop]))


def windows(rigs: dict[str, Rig], count: int, key: Any) -> dict[str, dict[str, float]]:
    """How far R, C and Rc of `count` windows of a run scatter, over the standard errors that they claim.

    Near 1 where residuals are independent; above it the claims, and the intervals of the whole run with
    them, are too narrow by that factor.
    """
    length = (STOP - START) / count
    records = {
        f"{step} {i}": rig.record(START + i * length, START + (i + 1) * length - 1 / RATE, EVERY)
        for step, rig in rigs.items()
        for i in range(count)
    }
    found = dt.fit(EXACT, dt.stack(records), key=key, starts=2)
    if found.failed:
        raise RuntimeError(f"no estimate for {found.failed}")
    scatter, claimed = (
        {name: each[name].reshape(len(rigs), count) for name in ("R", "C", "Rc")}
        for each in (found.estimate, found.standard_error)
    )
    return {
        step: {
            name: float(np.std(scatter[name][j], ddof=1) / np.sqrt(np.mean(claimed[name][j] ** 2)))
            for name in scatter
        }
        for j, step in enumerate(rigs)
    }


def covered(value: np.ndarray, drawn: np.ndarray) -> float:
    """Share of values inside the central 90 % of draws (sample, n)."""
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    return float(np.mean((low <= value) & (value <= high)))


def judged(step: str, rig: Rig, tree: Any, every: Any, parts: dict[str, float]) -> dict[str, Any]:
    """The figures of one run."""
    draws = {name: tree["posterior"][name].sel(patient=step).values.ravel() for name in NAMES}
    sheet = SHEET[step]
    told = {
        name: {
            "median": float(np.median(x)),
            "q05": float(np.quantile(x, 0.05)),
            "q95": float(np.quantile(x, 0.95)),
            "sd": float(np.std(x)),
        }
        for name, x in draws.items()
    }
    for name in ("R", "C", "Rc"):
        told[name]["sheet"] = sheet[name]
        told[name]["off_percent"] = 100 * (told[name]["median"] / sheet[name] - 1)
        told[name]["windows_scatter_over_claimed"] = parts[name]
    fitted = np.zeros(len(rig.time), bool)
    fitted[::EVERY] = True
    drawn = every["pressure"].sel(patient=step).values
    expected = every["pressure_expected"].sel(patient=step).values.mean(axis=0)
    residual = rig.pressure - expected
    return {
        "parameters": told,
        "correlation_R_C": float(np.corrcoef(draws["R"], draws["C"])[0, 1]),
        "coverage_90_fitted": covered(rig.pressure[fitted], drawn[:, fitted]),
        "coverage_90_between": covered(rig.pressure[~fitted], drawn[:, ~fitted]),
        "rmse": float(np.sqrt(np.mean(residual**2))),
        "rmse_sheet": sheet["rmse"],
        "residual_autocorrelation_lag_1": float(
            np.corrcoef(residual[:-EVERY:EVERY], residual[EVERY::EVERY])[0, 1]
        ),
        "autocorrelation_time": correlated(residual[fitted]),
    }


def picture(rigs: dict[str, Rig], tree: Any, every: Any, figures: dict[str, Any]) -> Any:
    """Fit of the first run, its residuals, and R against C of all runs."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "windkessel_rig"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplot_mosaic([["fit", "RC"], ["left", "RC"]], figsize=(11, 4.6), layout="constrained")
    step, rig = next(iter(rigs.items()))
    shown = rig.time <= START + 4
    drawn = every["pressure"].sel(patient=step).values[:, shown][:, ::2]
    expected = every["pressure_expected"].sel(patient=step).values.mean(axis=0)[shown]
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    axes["fit"].fill_between(
        rig.time[shown][::2], low, high, color="#3b6ea5", alpha=0.25, lw=0, label="90 % band"
    )
    axes["fit"].plot(rig.time[shown][::2], expected[::2], color="#3b6ea5", lw=1, label="expected")
    axes["fit"].plot(
        rig.time[shown][::EVERY], rig.pressure[shown][::EVERY], ".", color="#222222", ms=2.5, label="measured"
    )
    axes["fit"].set(ylabel="mmHg", title=f"Aortic pressure of the rig, {step}, 4 of 10 s")
    axes["fit"].legend(frameon=False, ncols=3, fontsize=8, loc="upper right")
    axes["fit"].set_ylim(top=1.09 * np.max(high))
    left = (rig.pressure[shown] - expected)[::2]
    axes["left"].axhline(0, color="#999999", lw=0.8)
    axes["left"].plot(rig.time[shown][::2], left, color="#222222", lw=0.8)
    axes["left"].set(xlabel="s", ylabel="mmHg", title="Measured less expected: alike from beat to beat")
    for i, name in enumerate(rigs):
        posterior = tree["posterior"].sel(patient=name)
        R, C = (posterior[q].values.ravel()[::12] for q in ("R", "C"))
        colour = f"C{i}"
        label = f"{name}, r = {figures[name]['correlation_R_C']:.2f}"
        axes["RC"].plot(R, C, ".", ms=2, alpha=0.5, color=colour, label=label)
        axes["RC"].plot(SHEET[name]["R"], SHEET[name]["C"], "+", ms=11, mew=1.5, color="#222222")
    axes["RC"].set(
        xlabel="R, mmHg s/mL",
        ylabel="C, mL/mmHg",
        title="Draws of R and C; + least squares of the data sheet",
    )
    axes["RC"].legend(frameon=False, fontsize=8, markerscale=4)
    plot.savefig(FOLDER / "windkessel_rig.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/hemo"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rigs = read(data_folder(chosen.data))
    assert not dt.check_model(EXACT)
    key = jax.random.key(chosen.seed)
    by_solver = solvers(rigs["step01"])
    cohort = dt.stack({step: rig.record(START, STOP, EVERY) for step, rig in rigs.items()})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", dt.CalibrationWarning)
        tree, timing = timed(dt.calibrate, EXACT, cohort, key=key, method=METHOD)
    everywhere = dt.stack({step: rig.record(START, STOP, 1) for step, rig in rigs.items()}).record
    every = dt.forecast(EXACT, tree, everywhere, key=jax.random.fold_in(key, 1), samples=200)["predictions"]
    parts = windows(rigs, 5, jax.random.fold_in(key, 2))
    figures = {step: judged(step, rig, tree, every, parts[step]) for step, rig in rigs.items()}
    off = max(abs(one["parameters"][name]["off_percent"]) for one in figures.values() for name in ("R", "C"))
    coverage = [
        one[name] for one in figures.values() for name in ("coverage_90_fitted", "coverage_90_between")
    ]
    passes = bool(off < 5 and 0.85 <= min(coverage) and max(coverage) <= 0.95)
    table = dt.summary(tree, individual=True)
    write(
        "windkessel_rig",
        {
            "passes": passes,
            "largest_off_percent_R_C": off,
            "coverage_90_range": [min(coverage), max(coverage)],
            "window_s": [START, STOP],
            "measurements": len(cohort.record.observations["pressure"].time[0]),
            "flow_samples": len(rigs["step01"].time),
            "runs": figures,
            "solve": by_solver,
            "worst_r_hat": float(table["r_hat"].max()),
            "min_ess_bulk": float(table["ess_bulk"].min()),
            "windows_scatter_over_claimed": {
                name: float(np.median([one[name] for one in parts.values()])) for name in ("R", "C", "Rc")
            },
            "divergences": int(tree["sample_stats"]["diverging"].sum()),
            "leapfrogs_mean": float(tree["sample_stats"]["n_steps"].mean()),
            "warnings": [str(w.message) for w in caught],
            "calibrate_s": timing.wall,
            "calibrate_cpu_s": timing.cpu,
        },
    )
    picture(rigs, tree, every, figures)
    print(
        "passes" if passes else "fails",
        f"R and C within {off:.2f} %",
        "coverage",
        min(coverage),
        max(coverage),
    )
    return 0 if passes else 1


if __name__ == "__main__":
    raise SystemExit(main())
