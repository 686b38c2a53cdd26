"""Live twins of a ward: what one update of every patient costs, and what it is right to.

    python benchmarks/ward.py [--patients 500] [--draws 100] [--updates 24]

Simulated patients of `hovorka`, whose parameters are drawn from its priors; a meal and a bolus each, glucose
every five minutes with the model's own error. Twins begin from the prior and take one measurement an update.
Told are seconds of an update, how many times that is faster than the five minutes in which the next
measurement comes, and how often 90 % intervals of the next half hour hold what is then measured.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from setting import write

import dtwin_jax as dt
from dtwin_jax.models import hovorka

EVERY, MEAL = 5.0, 30.0
INPUTS = type(hovorka.inputs())
# The study's own: what a ward of strangers is known by.
KNOWN = {"sd": 0.2, "cv": 0.05}


def ward(patients: int, count: int, rng: np.random.Generator) -> tuple[dt.Cohort, np.ndarray]:
    """Records with a meal and a bolus, and the times at which glucose is measured."""
    times = EVERY * np.arange(1, count + 1)
    records = {}
    for i in range(patients):
        grams = rng.uniform(30.0, 90.0)
        meal, bolus = dt.Doses([MEAL], [1000.0 * grams]), dt.Doses([MEAL], [1000.0 * grams / 12.0])
        records[f"{i}"] = dt.Record(
            INPUTS(meal=meal, insulin=bolus, basal=1.0), {"glucose": dt.Series(times)}
        )
    return dt.stack(records), times


def simulated(cohort: dt.Cohort, times: np.ndarray, key: jax.Array) -> np.ndarray:
    """Glucose of patients drawn from the priors, with error: (patient, time)."""
    live = dt.live_from_prior(hovorka, cohort, key=key, draws=1, priors=KNOWN)
    drawn = dt.forecast_live(hovorka, live, cohort.record, jax.random.fold_in(key, 1), 1)
    return np.asarray(drawn["glucose"])[0]


def at(cohort: dt.Cohort, times: np.ndarray, values: np.ndarray | None) -> dt.Record:
    """The ward's record with glucose at `times`, (n,), measured or wanted."""
    shape = (len(cohort), len(times))
    time = np.broadcast_to(times, shape).copy()
    mask = np.full(shape, values is not None)
    series = dt.Series(time, np.zeros(shape) if values is None else values, mask=mask)
    return dt.Record(cohort.record.inputs, {"glucose": series}, {}, cohort.record.t0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=500)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--updates", type=int, default=24)
    chosen = parser.parse_args()
    cohort, times = ward(chosen.patients, chosen.updates + 6, np.random.default_rng(0))
    values = simulated(cohort, times, jax.random.key(2))
    live = dt.live_from_prior(hovorka, cohort, key=jax.random.key(3), draws=chosen.draws, priors=KNOWN)
    wall, cpu, inside = [], [], []
    for i in range(chosen.updates):
        began = time.perf_counter(), time.process_time()
        live = dt.assimilate(
            hovorka, live, at(cohort, times[i : i + 1], values[:, i : i + 1]), key=jax.random.key(i)
        )
        jax.block_until_ready(live.log_weight)
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
        ahead = at(cohort, times[i + 1 : i + 7], None)
        drawn = np.asarray(dt.forecast_live(hovorka, live, ahead, jax.random.key(100 + i), 100)["glucose"])
        low, high = np.nanquantile(drawn[..., -1], (0.05, 0.95), axis=0)
        inside.append(float(np.mean((low <= values[:, i + 6]) & (values[:, i + 6] <= high))))
    later = {"wall_s": float(np.median(wall[1:])), "cpu_s": float(np.median(cpu[1:]))}
    figures = {
        "patients": chosen.patients,
        "draws": chosen.draws,
        "first_update_s": wall[0],
        "update": later,
        "slowest_update_s": float(np.max(wall[1:])),
        "times_faster_than_the_data": 60.0 * EVERY / later["wall_s"],
        "renewals_a_patient": float(jnp.mean(live.renewed)),
        "updates_passed_over": int(jnp.sum(live.lost)),
        "inside_90_at_30_min": float(np.mean(inside)),
        "inside_by_update": inside,
    }
    print(figures)
    print(write("ward", figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
