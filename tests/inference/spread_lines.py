"""Populations over several devices or processes, as a program of its own: `python spread_lines.py WHAT FILE`.

JAX counts devices, and joins processes, once in the life of a process.
"""

import dataclasses
import os
import re
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from lines import TIME, Line, cohort, line

from dtwin_jax import cli
from dtwin_jax.core.prior import halfnormal, normal
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.inference import nuts
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.devices import everywhere, spread
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.hosts import join_hosts
from dtwin_jax.inference.population import Covariate, Population, density_of
from dtwin_jax.inference.result import save
from dtwin_jax.inference.start import coordinates, potential_energy

jax.config.update("jax_enable_x64", True)
if "JAX_PROCESS_ID" in os.environ:
    join_hosts()  # before the default parameters of a model become arrays

FEW = nuts.Nuts(chains=2, warmup=10, draws=10, block=10, candidates=8, max_depth=3)
OMEGA = {"level": halfnormal(0.7), "slope": halfnormal(0.4)}
WEIGHT = Covariate("slope", "weight", "kg", 70.0, normal(0.5, 0.3))
PEOPLE = Population(line, OMEGA, (WEIGHT,))
# An odd number, so that two devices are uneven.
VALUES = np.random.default_rng(0).normal(2.0, 1.0, (5, len(TIME)))
COHORT = cohort(VALUES, weight=np.linspace(50.0, 90.0, 5))
# A few draws warn that they are few.
quietly = partial(warnings.catch_warnings, action="ignore", category=CalibrationWarning)


def calibrated(mesh: Any = None, people: Any = PEOPLE, patients: Any = COHORT, **how: Any) -> Any:
    with quietly():
        key = jax.random.key(3)
        return calibrate(people, patients, key=key, method=FEW, mesh=mesh, progress=False, **how)


def tumours() -> tuple[Population, Any]:
    """Three lesions under a law that is integrated step by step."""
    from dtwin_jax.models.tumour_growth import Inputs, tumour_logistic

    volumes = [[8.0, 11.0, 15.0], [20.0, 24.0, 29.0], [5.0, 4.5, 4.0]]
    rows = {
        f"p{i}": Record(Inputs(), {"volume": Series([0.0, 30.0, 70.0], v)}) for i, v in enumerate(volumes)
    }
    return Population(dataclasses.replace(tumour_logistic, flow=None), ["r"]), stack(rows)


def slopes(population: Population, people: Any, mesh: Any) -> dict[str, np.ndarray]:
    """Energy and its gradient at points drawn from the prior: those of one device, those of all."""
    density, base = density_of(population, {}, tuple(people.record.known))
    centring = jnp.full(len(population.varying), 0.3)
    one = (base, jax.tree.map(jnp.asarray, people.record), centring)
    many = (everywhere(base, mesh), spread(people, mesh), everywhere(centring, mesh))

    @jax.jit
    @standard_promotion
    def at(data: Any, points: Any) -> Any:
        return jax.vmap(jax.value_and_grad(lambda z: potential_energy(density, data, z)))(points)

    start = partial(nuts.start, density, FEW, False)
    _, count = jax.eval_shape(start, one, jax.random.split(jax.random.key(0))).z.shape
    points = jax.vmap(coordinates(density, one))(0.5 * np.random.default_rng(1).normal(size=(4, count)))
    found = {}
    for name, data in (("one", one), ("many", many)):
        energy, slope = at(data, points)
        found |= {f"{name} energy": energy} | {f"{name} {part}": leaf for part, leaf in slope.items()}
    return {name: np.asarray(leaf) for name, leaf in found.items()}


def collectives(mesh: Any) -> dict[str, int]:
    """How often each kind stands in the compiled block of iterations."""
    density, base = density_of(PEOPLE, {}, ("weight",))
    centring, keys = jnp.full(2, 0.5), jax.random.split(jax.random.key(0), FEW.chains)
    base, centring, keys = everywhere((base, centring, keys), mesh)
    data = (base, spread(COHORT, mesh), centring)
    state = nuts.start(density, FEW, False, data, keys)
    text = nuts.run_block.lower(density, FEW, False, data, state).compile().as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return {kind: len(re.findall(rf"{kind}(?:-start)?\(", text)) for kind in kinds}


def compare(file: Path) -> None:
    """Two devices of this process against one."""
    mesh = jax.make_mesh((2,), ("patient",))
    correlated = Population(line, OMEGA, (WEIGHT,), correlation=2.0)
    cases = {"independent": (PEOPLE, COHORT), "correlated": (correlated, COHORT)}
    found: dict[str, Any] = {name: slopes(*case, mesh) for name, case in cases.items()}
    found["solved by steps"] = slopes(*tumours(), mesh)
    found["collectives"] = collectives(mesh)
    tree = calibrated(mesh)
    found["draws"] = {name: value.values for name, value in tree["posterior"].data_vars.items()}
    np.savez(
        file, **{f"{case}/{name}": leaf for case, leaves in found.items() for name, leaf in leaves.items()}
    )


@dataclass(frozen=True)
class Disagreeing(Line):
    """A line whose program is another one in another process, as an order of sets may make it."""

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        parts = [p.level, p.slope * record.observations["y"].time]
        first, second = reversed(parts) if jax.process_index() else parts
        return {"y": dist.Normal(first + second, p.sd)}


def stopped(people: Population, cohort: Any, mesh: Any) -> str:
    """What a calibration that cannot go on together says."""
    try:
        calibrated(mesh, people, cohort)
    except RuntimeError as error:
        return str(error)
    return "it ended"


def together(file: Path) -> None:
    """One of two processes: calibrate with the other, which has the other patients."""
    mesh, other = jax.make_mesh((jax.device_count(),), ("patient",)), jax.process_index()
    own = spread(COHORT, mesh).padded.observations["y"].value.addressable_shards
    held = np.concatenate([np.asarray(shard.data) for shard in own])
    # Five patients: three in process 0, two and a copy of the last in process 1.
    np.testing.assert_array_equal(held, VALUES[[3, 4, 4]] if other else VALUES[:3])
    changed = cohort(VALUES + other, weight=COHORT.record.known["weight"])
    said = [stopped(PEOPLE, changed, mesh)]
    said += [stopped(dataclasses.replace(PEOPLE, predictor=Disagreeing()), COHORT, mesh)]
    file.with_suffix(f".{other}").write_text("\n".join(said))
    tree = calibrated(mesh, checkpoint=file.with_suffix(".partial"))
    if not other:
        save(tree, file)
    # Of the same structure, so that nothing is compiled again.
    assert cli.run(["calibrate", str(file.with_suffix(".toml")), "--engine", "hosts"]) == 0


if __name__ == "__main__":
    what, file = sys.argv[1], Path(sys.argv[2])
    {"compare": compare, "together": together}[what](file)
