"""Solves cohorts in a process with two devices of the host; prints what `test_cohort_devices.py` compares."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics import ensemble
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.solver import Outcome
from dtwin_jax.models import minimal_model, one_compartment

TIMES = np.linspace(0.0, 60.0, 5)


def cohorts(count):
    """Outputs by the lanes and by the flow, (patient, n)."""
    p = jax.tree.map(lambda leaf: np.full(count, float(leaf)), minimal_model.params())
    p = assign(p, {"SI": p.SI * np.linspace(0.3, 3.0, count)})
    given = minimal_model.example().inputs
    glucose = simulate_cohort(minimal_model, p, given, TIMES, in_axes=(0, None, None), lanes=8)
    drug = one_compartment.params()
    own = jax.tree.map(lambda leaf: np.linspace(0.5, 2.0, count) * float(leaf), drug)
    doses = replace(one_compartment.inputs(), oral=Doses([0.0, 12.0, 24.0], [10.0, 10.0, 10.0]))
    flow = simulate_cohort(one_compartment, own, doses, TIMES, in_axes=(0, None, None), lanes=8)
    return glucose, flow


def main():
    found, over = [], []
    mesh_for = ensemble.mesh_for

    def told(*given):
        mesh = mesh_for(*given)
        over.append(1 if mesh is None else mesh.size)
        return mesh

    ensemble.mesh_for = told
    for count in (37, 9):  # of 9 no device would have 8
        glucose, flow = cohorts(count)
        assert np.all(glucose.outcome == Outcome.SOLVED) and np.all(flow.outcome == Outcome.SOLVED)
        where = glucose.output.glucose
        assert where.shape == (count, len(TIMES)) and not where.committed
        assert isinstance(where.sharding, SingleDeviceSharding)
        jnp.add(where, jax.device_put(jnp.ones(()), jax.devices()[0]))
        found.append(
            [np.asarray(each).tolist() for each in (where, glucose.steps, flow.output.concentration)]
        )
    print(json.dumps({"over": over, "found": found}))


if __name__ == "__main__":
    main()
