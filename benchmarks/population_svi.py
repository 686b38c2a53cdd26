"""Populations by `Svi` against NUTS: where the two agree, and what a guide costs for many patients.

    python benchmarks/population_svi.py [--patients 1000] [--compared 100] [--draws 1000]

Theophylline in 12 patients, and simulated patients of one-compartment kinetics after an oral dose, seven
samples each: `--patients` by guides that learn from batches of several sizes, and `--compared` of
them by both methods. Differences of means are in standard deviations of NUTS; of patients, the 95th
percentile of their absolute values.
"""

import argparse
import json
import warnings
from importlib import resources
from typing import Any

import jax
import numpy as np
from setting import timed, write

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import Cohort, Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.svi import Svi
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

VARY = ("ka", "CL", "V")
TYPICAL = {"ka": 1.5, "CL": 3.0, "V": 30.0}
OMEGA = {"ka": 0.4, "CL": 0.3, "V": 0.2}
PRIORS = {name: lognormal(median, log_sd=1.0) for name, median in TYPICAL.items()}
PRIORS |= {"sd": lognormal(0.7, log_sd=1.0), "cv": 0.0}
POPULATION = Population(one_compartment, vary=VARY)
NUMBERS = (*(f"{name}_pop" for name in VARY), *(f"omega_{name}" for name in VARY), "sd")
DOSE, SD, TIME = 320.0, 0.5, np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0])


def simulated(count: int) -> Cohort:
    """Patients by the closed form, each by his own number."""
    records = {}
    for i in range(count):
        rng = np.random.default_rng((1, i))
        ka, cl, v = (TYPICAL[name] * np.exp(OMEGA[name] * rng.standard_normal()) for name in VARY)
        k = cl / v
        value = DOSE * ka / (v * (ka - k)) * (np.exp(-k * TIME) - np.exp(-ka * TIME))
        measured = value + SD * rng.standard_normal(len(TIME))
        inputs = Inputs(oral=Doses(np.zeros(1), np.full(1, DOSE)))
        records[f"{i}"] = Record(inputs, {"concentration": Series(TIME, measured)})
    return stack(records)


def drawn(cohort: Cohort, method: Any, seed: int) -> Any:
    return calibrate(
        POPULATION, cohort, key=jax.random.key(seed), priors=PRIORS, method=method, progress=False
    )


def told(cohort: Cohort, method: Any, calls: int = 2) -> tuple[dict[str, Any], Any]:
    """Seconds of the first call and of a later one, what the method says of itself, and its last result."""
    found, times = zip(*(timed(drawn, cohort, method, seed) for seed in range(calls)), strict=True)
    tree = found[-1]
    own = ("pareto_k", "effective_draws", "weighed", "converged", "steps")
    figures = {"patients": len(cohort), "first_call_s": times[0].wall, "first_call_cpu_s": times[0].cpu}
    if calls > 1:
        figures |= {"later_call_s": times[-1].wall, "later_call_cpu_s": times[-1].cpu}
    figures |= {name: tree.attrs[name] for name in own if name in tree.attrs}
    figures["warnings"] = json.loads(tree.attrs["warnings"])
    if isinstance(method, Svi):
        k = tree["sample_stats"]["pareto_k"].values
        figures["patients_above_k"] = int(np.sum(~(k <= method.k_limit)))
    print(type(method).__name__, {name: value for name, value in figures.items()}, flush=True)
    return figures, tree


def moments(tree: Any) -> dict[str, dict[str, float]]:
    posterior = tree["posterior"]
    return {
        name: {"mean": float(posterior[name].mean()), "sd": float(posterior[name].std())} for name in NUMBERS
    }


def apart(guide: Any, chains: Any) -> dict[str, Any]:
    """How far the guide's means and sds are from those of NUTS."""
    ours, theirs = moments(guide), moments(chains)
    found: dict[str, Any] = {
        name: {
            "mean_apart_in_sd": (ours[name]["mean"] - theirs[name]["mean"]) / theirs[name]["sd"],
            "sd_ratio": ours[name]["sd"] / theirs[name]["sd"],
        }
        for name in NUMBERS
    }
    for name in VARY:
        x, y = (tree["posterior"][name].stack(all=("chain", "draw")) for tree in (guide, chains))
        shift = (x.mean("all") - y.mean("all")) / y.std("all")
        ratio = (x.std("all") / y.std("all")).values
        found[f"patients, {name}"] = {
            "mean_apart_in_sd_p95": float(np.quantile(np.abs(shift.values), 0.95)),
            "sd_ratio_p05": float(np.quantile(ratio, 0.05)),
            "sd_ratio_p95": float(np.quantile(ratio, 0.95)),
        }
    return found


def compared(cohort: Cohort, guide: Svi, chains: Nuts) -> dict[str, Any]:
    by_guide, tree = told(cohort, guide)
    by_chains, long = told(cohort, chains)
    both = {"svi": by_guide | {"numbers": moments(tree)}, "nuts": by_chains | {"numbers": moments(long)}}
    return both | {"apart": apart(tree, long)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--compared", type=int, default=100)
    parser.add_argument("--draws", type=int, default=1000)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", CalibrationWarning)
    truth = {f"{n}_pop": TYPICAL[n] for n in VARY} | {f"omega_{n}": OMEGA[n] for n in VARY} | {"sd": SD}
    results: dict[str, Any] = {"simulated_from": truth}

    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    few = stack(read_table(str(path), one_compartment, covariates={"weight": "kg"}))
    chains = Nuts(warmup=chosen.draws, draws=chosen.draws, target_accept=0.9)
    results["theophylline"] = compared(few, Svi(draws=4000, proposals=4000), chains)
    write("population_svi", results)

    many = simulated(chosen.patients)
    results["batches"] = {}
    for batch in (64, 128, 256):
        figures, tree = told(many, Svi(batch=batch, draws=chosen.draws, proposals=chosen.draws))
        numbers = moments(tree)
        off = {n: (numbers[n]["mean"] - truth[n]) / numbers[n]["sd"] for n in NUMBERS}
        results["batches"][str(batch)] = figures | {"numbers": numbers, "from_truth_in_sd": off}
        write("population_svi", results)

    if chosen.compared:
        chains = Nuts(warmup=chosen.draws // 2, draws=chosen.draws // 2)
        some = many.take(list(range(chosen.compared)))
        results["simulated"] = compared(some, Svi(draws=2000, proposals=2000), chains)
        write("population_svi", results)


if __name__ == "__main__":
    main()
