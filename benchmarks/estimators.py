"""One simulated study by every estimator, and how often intervals hold the truth.

    python benchmarks/estimators.py [--replicates 100]

120 patients take 100 mg by mouth and give seven samples over a day; CL, V and ka vary (sd of the log 0.3, 0.2
and 0.4), the error is proportional, 15 %. The same study is estimated by FOCEI, adaptive quadrature, SAEM and
NUTS. Then 100 studies by FOCEI and by quadrature: bias, and the share of 90 % intervals (1.645 standard
errors about the log of an estimate) that hold the truth. The data are of the closed form in NumPy, not of the
model.
"""

import argparse
import os
import time
from typing import Any

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

import jax
import numpy as np
from setting import write

from dtwin_jax.core.record import Cohort, Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

TRUTH = {
    "CL_pop": 3.0,
    "V_pop": 30.0,
    "ka_pop": 1.2,
    "cv": 0.15,
    "omega_CL": 0.3,
    "omega_V": 0.2,
    "omega_ka": 0.4,
}
TIMES = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0])
PATIENTS, DOSE = 120, 100.0
PEOPLE = Population(one_compartment, ("CL", "V", "ka"))
PRIORS = {"sd": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "FOCEI": {"by": "focei"},
    "quadrature, 5 nodes": {"by": "quadrature", "nodes": 5},
    "SAEM": {"by": "saem", "key": jax.random.key(1)},
}
COVERED = ("FOCEI", "quadrature, 5 nodes")


def patients(rng: Any) -> dict[str, np.ndarray]:
    """Name -> (patient, 1), drawn from the truth."""
    return {
        name: TRUTH[f"{name}_pop"] * np.exp(TRUTH[f"omega_{name}"] * rng.normal(size=(PATIENTS, 1)))
        for name in ("CL", "V", "ka")
    }


def sampled(seed: int) -> list[float]:
    """The logs of what `TRUTH` holds, as the patients of a study happen to have it."""
    logs = {name: np.log(value) for name, value in patients(np.random.default_rng(seed)).items()}
    found = {f"{name}_pop": np.mean(value) for name, value in logs.items()}
    found |= {f"omega_{name}": np.log(np.std(value)) for name, value in logs.items()}
    return [float(found.get(name, np.log(TRUTH[name]))) for name in TRUTH]


def study(seed: int) -> Cohort:
    """Patients drawn from the truth, measured with error."""
    rng = np.random.default_rng(seed)
    drawn = patients(rng)
    k, ka = drawn["CL"] / drawn["V"], drawn["ka"]
    level = DOSE * ka / (drawn["V"] * (ka - k)) * (np.exp(-k * TIMES) - np.exp(-ka * TIMES))
    seen = level * (1.0 + TRUTH["cv"] * rng.normal(size=level.shape))
    given = Inputs(oral=Doses([0.0], [DOSE]))
    return stack(
        {f"P{i}": Record(given, {"concentration": Series(TIMES, row)}) for i, row in enumerate(seen)}
    )


def agreement() -> dict[str, Any]:
    """Estimate, standard error and CPU seconds of each estimator; of NUTS mean and sd of the posterior."""
    cohort, found = study(0), {}
    for name, how in METHODS.items():
        began = time.process_time()
        told = estimate(PEOPLE, cohort, priors=PRIORS, **how)
        error = told.errors()
        found[name] = {n: [told.estimate[n], error[n]] for n in TRUTH}
        found[name] |= {"converged": told.converged, "cpu_s": time.process_time() - began}
        found[name] |= {"objective": told.told}
    began = time.process_time()
    method = Nuts(chains=4, warmup=400, draws=400)
    tree = calibrate(PEOPLE, cohort, key=jax.random.key(2), priors=PRIORS, method=method, progress=False)
    draws = {n: np.asarray(tree["posterior"][n]) for n in TRUTH}
    found["NUTS"] = {n: [float(x.mean()), float(x.std())] for n, x in draws.items()}
    found["NUTS"] |= {"warnings": tree.attrs["warnings"], "cpu_s": time.process_time() - began}
    return found


def apart(found: dict[str, Any]) -> float:
    """The largest distance of two estimators' numbers in the larger of their standard errors."""
    each = [
        abs(one[n][0] - two[n][0]) / max(one[n][1], two[n][1])
        for one in found.values()
        for two in found.values()
        for n in TRUTH
    ]
    return max(each)


def coverage(replicates: int, how: dict[str, Any]) -> dict[str, Any]:
    """Of the intervals of an estimator, over studies."""
    truth, logs, off, held, lost = np.log(list(TRUTH.values())), [], [], [], []
    for seed in range(1, replicates + 1):
        told = estimate(PEOPLE, study(seed), priors=PRIORS, **how)
        if not told.converged or told.failed:
            lost.append(seed)
            continue
        at = np.log([told.estimate[n] for n in TRUTH])
        error = np.array([told.errors()[n] / told.estimate[n] for n in TRUTH])
        logs.append(at)
        off.append(at - sampled(seed))
        held.append(np.abs(at - truth) < 1.645 * error)
        if seed % 10 == 0:
            print(f"{seed} studies, {np.mean(held, axis=0).round(2)}", flush=True)
    columns = {
        "coverage": np.mean(held, axis=0),
        "mean_log_error": np.mean(logs, axis=0) - truth,
        "its_error": np.std(logs, axis=0, ddof=1) / np.sqrt(len(logs)),
        # What is left where the patients who happened to be drawn are taken for the truth.
        "mean_log_error_of_drawn": np.mean(off, axis=0),
        "its_error_of_drawn": np.std(off, axis=0, ddof=1) / np.sqrt(len(off)),
    }
    table = {name: {what: float(value[i]) for what, value in columns.items()} for i, name in enumerate(TRUTH)}
    return {"studies": replicates, "not_converged": lost, "table": table}


def main() -> None:
    """Print and keep both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=100)
    options = parser.parse_args()
    found = agreement()
    print(f"{'':22}" + "".join(f"{name:>20}" for name in TRUTH))
    print(f"{'truth':22}" + "".join(f"{value:20.4g}" for value in TRUTH.values()))
    for name, one in found.items():
        cells = "".join(f"{one[n][0]:12.4g} ±{one[n][1]:6.2g}" for n in TRUTH)
        print(f"{name:22}{cells}  {one['cpu_s']:.0f} CPU s", flush=True)
    print(f"largest distance of two: {apart(found):.2f} standard errors")
    results = {"agreement": found, "largest_distance_in_errors": apart(found)}
    if options.replicates:
        covered = {name: coverage(options.replicates, METHODS[name]) for name in COVERED}
        results["coverage"] = covered
        for by, one in covered.items():
            for name, row in one["table"].items():
                print(f"{by:22} {name:12}", *(f"{what} {value:.4f}" for what, value in row.items()))
    print(f"written to {write('estimators', results)}")


if __name__ == "__main__":
    main()
