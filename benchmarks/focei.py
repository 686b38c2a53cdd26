"""The slope of FOCEI's objective for a thousand patients, against differences and against plain Diffrax.

    python benchmarks/focei.py [--patients 1000] [--rounds 5]

The study of `estimators.py`, larger: oral one-compartment kinetics, three random effects, seven samples.
A look at the objective is the search for every patient's peak from where it was, then the value and its
slope by seven numbers. Differences take a look without a slope for each number, one-sided, as NONMEM's
default does. Plain Diffrax is our own objective over `jax.vmap` of an adaptive solve of each patient (Tsit5,
1e-6), without closed form. Every round moves the numbers, so that peaks are found anew. The process keeps to
one core.
"""

import argparse
import os
from dataclasses import dataclass, replace
from typing import Any

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

import estimators
import jax
import jax.numpy as jnp
import numpy as np
from setting import against, interleaved, write

from dtwin_jax.core.predictor import differentiated
from dtwin_jax.core.record import Cohort
from dtwin_jax.inference.density import estimated, standard_promotion
from dtwin_jax.inference.effects import Effects
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.objective import Objective
from dtwin_jax.inference.population import Population
from dtwin_jax.models import one_compartment


@dataclass(frozen=True)
class OneByOne:
    """A model of which a cohort is `jax.vmap`, as a user would write it."""

    model: Any

    @property
    def name(self) -> str:
        return self.model.name

    def params(self) -> Any:
        return self.model.params()

    def inputs(self) -> Any:
        return self.model.inputs()

    def schema(self) -> Any:
        return self.model.schema()

    def predict(self, p: Any, record: Any) -> Any:
        return self.model.predict(p, record)

    def differentiated(self, mode: Any) -> "OneByOne":
        return OneByOne(self.model.differentiated(mode))


def objective(model: Any, cohort: Cohort) -> tuple[Objective, np.ndarray]:
    """As `dt.estimate` makes it, and numbers near the truth."""
    population = Population(model, ("CL", "V", "ka"))
    base, free = estimated(model, estimators.PRIORS, ())
    effects = Effects(replace(population, predictor=differentiated(model, "forward")), tuple(free.items()))
    problem = Objective(Marginal(effects, "focei"), base, jax.tree.map(jnp.asarray, cohort.record))
    log = {name: np.log(value) for name, value in estimators.TRUTH.items()}
    return problem, np.array([log[name] for name in effects.names])


@jax.jit(static_argnums=0)
@standard_promotion
def value(marginal: Marginal, base: Any, record: Any, psi: Any, eta: Any) -> Any:
    """The objective where the peaks are known."""
    return jnp.sum(marginal.minus_two(base, record, psi, eta))


def look(problem: Objective, psi: np.ndarray) -> float:
    """The objective without its slope."""
    problem.find(psi)
    return float(value(problem.marginal, problem.base, problem.record, psi, problem.eta))


def by_differences(problem: Objective, psi: np.ndarray) -> np.ndarray:
    """One-sided, over a share of 1e-4 of each number's unit."""
    here = look(problem, psi)
    moves = 1e-4 * np.eye(len(psi))
    return np.array([(look(problem, psi + move) - here) / 1e-4 for move in moves])


def main() -> None:
    """Print and keep ratios of processor time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    estimators.PATIENTS = options.patients
    cohort = estimators.study(0)
    plain = OneByOne(replace(one_compartment, flow=None))
    problems = {name: objective(f, cohort) for name, f in (("ours", one_compartment), ("plain", plain))}
    (ours, psi), (theirs, _) = problems["ours"], problems["plain"]
    rng, slopes = np.random.default_rng(1), {}

    def moved() -> np.ndarray:
        return psi + 0.01 * rng.normal(size=len(psi))

    for name, slope in (
        ("dtwin_jax", lambda: ours.value(psi)[1]),
        ("the same by differences", lambda: by_differences(ours, psi)),
        ("plain vmap of Diffrax", lambda: theirs.value(psi)[1]),
    ):
        slopes[name] = slope()
    exact = slopes["dtwin_jax"]
    errors = {n: float(np.max(np.abs(s - exact)) / np.max(np.abs(exact))) for n, s in slopes.items()}
    figures = interleaved(
        {
            "dtwin_jax": lambda: ours.value(moved()),
            "the same by differences": lambda: by_differences(ours, moved()),
            "plain vmap of Diffrax": lambda: theirs.value(moved()),
        },
        options.rounds,
    )
    table = against(figures, "plain vmap of Diffrax")
    for name, row in table.items():
        row["apart_from_ours"] = errors[name]
        print(
            f"{name:26} {1000 * row['run_cpu_s']:9.1f} CPU ms, {row['times_opponent_cpu']:7.1f} times plain"
            f" Diffrax, apart {errors[name]:.1e}"
        )
    print(f"written to {write('focei', {'patients': options.patients, 'table': table})}")


if __name__ == "__main__":
    main()
