"""Whether variability between occasions is recovered without bias: simulated studies of two occasions.

    python benchmarks/occasions.py [studies]

Every study has 120 patients with two bolus doses a day apart, the second while a tenth of the first is left,
six samples, a proportional error of 10 %, and a clearance that varies between patients (sd of the log 0.3)
and between their two occasions (0.25). Told is the mean over studies of what FOCEI finds, with its standard
error, and for how many studies the 90 % interval of an estimate holds the truth.
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from dtwin_jax.core.occasions import with_occasions
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.estimate import estimate
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

TRUTH = {"CL_pop": 2.0, "V_pop": 20.0, "cv": 0.1, "omega_CL": 0.3, "omega_V": 0.2, "gamma_CL": 0.25}
TIME = np.array([1.0, 6.0, 16.0, 25.0, 30.0, 40.0])
PATIENTS, DOSE, LATER = 120, 100.0, 24.0


def patients(rng):
    """Effects on the logs: of patients and of their occasions on clearance, of patients on volume."""
    shapes = {"omega_CL": (PATIENTS, 1), "gamma_CL": (PATIENTS, 2), "omega_V": (PATIENTS, 1)}
    return {name: TRUTH[name] * rng.normal(size=shape) for name, shape in shapes.items()}


def sampled(seed: int) -> list[float]:
    """The logs of what `TRUTH` holds, as the patients of a study happen to have it."""
    effects = patients(np.random.default_rng(seed))
    found = {name: np.log(np.std(value)) for name, value in effects.items()}
    found["CL_pop"] = np.log(TRUTH["CL_pop"]) + np.mean(effects["omega_CL"] + effects["gamma_CL"])
    found["V_pop"] = np.log(TRUTH["V_pop"]) + np.mean(effects["omega_V"])
    return [float(found.get(name, np.log(TRUTH[name]))) for name in TRUTH]


def study(seed: int):
    """A cohort, by the closed form of a bolus."""
    rng = np.random.default_rng(seed)
    effects = patients(rng)
    clearance = TRUTH["CL_pop"] * np.exp(effects["omega_CL"] + effects["gamma_CL"])
    volume = TRUTH["V_pop"] * np.exp(effects["omega_V"])
    rate = clearance / volume
    left = DOSE * np.exp(-rate[:, :1] * LATER)
    late = TIME >= LATER
    early_amount = DOSE * np.exp(-rate[:, :1] * TIME)
    late_amount = (DOSE + left) * np.exp(-rate[:, 1:] * (TIME - LATER))
    seen = np.where(late, late_amount, early_amount) / volume
    seen = seen * (1.0 + TRUTH["cv"] * rng.normal(size=seen.shape))
    given = Inputs(iv=Doses([0.0, LATER], [DOSE, DOSE]))
    rows = {str(i): Record(given, {"concentration": Series(TIME, row)}) for i, row in enumerate(seen)}
    return stack({name: with_occasions(row, [LATER], 2) for name, row in rows.items()})


def main() -> None:
    """Estimate all studies, print and keep the table."""
    jax.config.update("jax_enable_x64", True)
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    population = Population(one_compartment, ("CL", "V"), occasions=Occasions(2, ("CL",)))
    began, found, off, held, lost = time.perf_counter(), [], [], [], 0
    for seed in range(studies):
        told = estimate(population, study(seed), priors={"ka": None, "sd": 0.0})
        if not told.converged or told.failed:
            lost += 1
            continue
        at = np.array([np.log(told.estimate[name]) for name in TRUTH])
        error = np.array([told.standard_error[name] for name in TRUTH])
        found.append(at)
        off.append(at - sampled(seed))
        held.append(np.abs(at - np.log(list(TRUTH.values()))) < 1.6449 * error)
    logs, count = np.stack(found), len(found)
    bias = logs.mean(axis=0) - np.log(list(TRUTH.values()))
    error = logs.std(axis=0, ddof=1) / np.sqrt(count)
    own, own_error = np.mean(off, axis=0), np.std(off, axis=0, ddof=1) / np.sqrt(count)
    table = {
        name: {
            "truth": TRUTH[name],
            "mean_log_error": round(float(bias[i]), 4),
            "its_standard_error": round(float(error[i]), 4),
            # What is left where the patients who happened to be drawn are taken for the truth.
            "mean_log_error_of_drawn": round(float(own[i]), 4),
            "its_standard_error_of_drawn": round(float(own_error[i]), 4),
            "coverage_of_90": round(float(np.mean(held, axis=0)[i]), 3),
        }
        for i, name in enumerate(TRUTH)
    }
    result = {"studies": studies, "not_converged": lost, "by": "focei", "patients": PATIENTS, "table": table}
    result["seconds"] = round(time.perf_counter() - began, 1)
    result["device"] = jax.devices()[0].platform
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
