"""A second process finds the programs of a first one on disk."""

import json
import os
import subprocess
import sys

SOLVED = """
from dtwin_jax.cli.environment import prepare
prepare()
import json
from collections import Counter
import jax
import numpy as np
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.models import minimal_model

seen = Counter()
jax.monitoring.register_event_listener(lambda name, **_: seen.update([name.rsplit("/", 1)[-1]]))
example = minimal_model.example()
p = jax.tree.map(lambda leaf: np.full(5, leaf), minimal_model.params())
solved = lambda p: simulate_cohort(minimal_model, p, example.inputs, [0.0, 60.0], in_axes=(0, None, None))
found = jax.jit(lambda p: solved(p).output.glucose.sum())(p)
print(json.dumps([float(found), seen["cache_hits"], seen["cache_misses"]]))
"""


def run(folder):
    kept = {
        "XDG_CACHE_HOME": str(folder),
        "PYTHONHASHSEED": "0",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    given = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", SOLVED]
    return json.loads(subprocess.run(command, env=given | kept, capture_output=True, check=True).stdout)


def test_nothing_is_compiled_twice(tmp_path):
    first, alike, compiled = run(tmp_path)
    again, found, missed = run(tmp_path)
    assert first == again
    assert compiled > 0 and missed == 0
    assert found == compiled + alike
