"""A forecast that was exported is the forecast, in a process that has JAX alone."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from handmade import result

from dtwin_jax.core.record import Record, Series, scenario, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference.population import Population
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs
from dtwin_jax.twin.exported import exported
from dtwin_jax.twin.forecast import forecast

PEOPLE = Population(one_compartment, ("CL",))
KNOWN = {"V": 20.0, "ka": 1.0, "sd": 0.0, "cv": 0.1}
TIMES = np.array([1.0, 4.0])
ELSEWHERE = """
import sys
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
given, program, found = sys.argv[1:]
with np.load(given) as saved:
    *leaves, key = (saved[name] for name in saved.files)
made = jax.export.deserialize(bytearray(open(program, "rb").read())).call(leaves, key)
assert "dtwin_jax" not in sys.modules
np.savez(found, **{kind: value["concentration"] for kind, value in made.items()})
"""


@pytest.fixture(scope="module")
def cohort():
    seen = lambda dose: Record(Inputs(iv=Doses([0.0], [dose])), {"concentration": Series(TIMES, TIMES)})  # noqa: E731
    return stack({"a": seen(100.0), "b": seen(50.0)})


@pytest.fixture(scope="module")
def tree(cohort):
    rng = np.random.default_rng(0)
    values = {"CL_pop": rng.lognormal(1.0, 0.1, (2, 20)), "omega_CL": rng.uniform(0.2, 0.3, (2, 20))}
    values["CL"] = rng.lognormal(1.0, 0.2, (2, 20, 2))
    return result(PEOPLE, cohort, KNOWN, values)


def planned(cohort, dose):
    return scenario(cohort.record, until=24.0, every=6.0, iv=Doses([5.0, 12.0], [dose, dose]))


def test_it_runs_elsewhere_for_another_plan(cohort, tree, tmp_path):
    program = tmp_path / "program.bin"
    program.write_bytes(exported(PEOPLE, tree, planned(cohort, 10.0), samples=16).serialize())
    plan, key = planned(cohort, 80.0), jax.random.key(3)
    given = [np.asarray(leaf) for leaf in jax.tree.leaves(plan)]
    np.savez(tmp_path / "given.npz", *given, jax.random.key_data(key))
    names = [str(tmp_path / name) for name in ("given.npz", "program.bin", "found.npz")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *names], check=True, cwd=tmp_path)
    expected = forecast(PEOPLE, tree, plan, key=key, samples=16)["predictions"]
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_allclose(found["expected"], expected["concentration_expected"], rtol=1e-12)
        np.testing.assert_allclose(found["measured"], expected["concentration"], rtol=1e-12)


def test_a_plan_for_others_is_refused(cohort, tree):
    with pytest.raises(ValueError, match="the plan is for 1 patient"):
        exported(PEOPLE, tree, cohort.take([0]).record)
