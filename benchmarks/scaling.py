"""Twice the patients on two processes, each on a core of its own: the gradient of a population, and a cohort.

Three arrangements take turns: one process alone; two at the same time that know nothing of each other, which
shows what the cores cost each other; and two that share one population of twice the size. A process times
many short calls, of which the fastest are those that no other program of the machine disturbed; its processor
time leaves out all waiting, that for other programs and that of the two for each other.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

CHAINS = 4
# Of the calls of a round this share, the fastest ones, is averaged.
QUICK = 0.1
# By how much fewer the patients, and the calls, are where each is solved by steps.
FEWER = 10


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=1000, help="of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=300, help="of each process in a round")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "CORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), options.patients, options.calls)
        return
    from setting import write

    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("needs two cores")
    load = os.getloadavg()[0]
    rounds = [measured(cores, options) for _ in range(options.rounds)]
    seconds = {
        name: {clock: min(one[name][clock] for one in rounds) for clock in ("wall", "cpu")}
        for name in rounds[0]
    }

    def efficiency(one: str, two: str) -> dict[str, float]:
        return {clock: seconds[one][clock] / seconds[two][clock] for clock in ("wall", "cpu")}

    figures = {
        "patients_a_process": options.patients,
        "patients_a_process_solved": options.patients // FEWER,
        "chains": CHAINS,
        "load_before": load,
        "rounds": rounds,
        "seconds": seconds,
        "efficiency": {
            "population, two that share": efficiency("gradient, alone", "gradient, together"),
            "population, two apart": efficiency("gradient, alone", "gradient, apart"),
            "population solved by steps, two that share": efficiency("solved, alone", "solved, together"),
            "population solved by steps, two apart": efficiency("solved, alone", "solved, apart"),
            "cohorts, two apart": efficiency("cohort, alone", "cohort, apart"),
        },
    }
    print(json.dumps(figures, indent=1))
    write("scaling", figures)


def measured(cores: list[int], options: Any) -> dict[str, dict[str, float]]:
    """Seconds of a call in each arrangement, the slower process of two."""
    found = {}
    for what in ("gradient", "solved", "cohort"):
        found[f"{what}, alone"] = run(what, cores[:1], options)
        found[f"{what}, apart"] = run(what, cores, options)
        if what != "cohort":
            found[f"{what}, together"] = run(f"{what} together", cores, options)
    return found


def run(what: str, cores: list[int], options: Any) -> dict[str, float]:
    """Processes at the same time, a core each; they begin to measure when all are ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        known = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}"}
    known |= {"JAX_NUM_PROCESSES": str(len(cores)), "PYTHONHASHSEED": "0"}
    size = ["--patients", str(options.patients), "--calls", str(options.calls)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *size, "--child", what, str(core)],
            env=os.environ | known | {"JAX_PROCESS_ID": str(number)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, core in enumerate(cores)
    ]
    for process in processes:
        assert process.stdout is not None
        while (line := process.stdout.readline()) and line != "ready\n":
            pass
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    last = [process.communicate()[0].split()[-2:] for process in processes]
    wall, cpu = np.asarray(last, float).max(0)
    return {"wall": float(wall), "cpu": float(cpu)}


def child(what: str, core: int, patients: int, calls: int) -> None:
    """Compile, say so, wait to be told, and print the seconds of a call."""
    # Before JAX counts the cores.
    os.sched_setaffinity(0, {core})
    import setting  # noqa: F401 (settings of JAX)

    what, _, shared = what.partition(" ")
    if what == "solved":
        patients, calls = patients // FEWER, max(calls // FEWER, 1)
    if shared:
        from dtwin_jax.inference.hosts import join_hosts

        join_hosts()
    if what == "cohort":
        call = cohort_call(patients)
    else:
        call = gradient_call(patients, shared=bool(shared), solved=what == "solved")
    call()
    print("ready", flush=True)
    sys.stdin.readline()
    taken, busy = [], time.process_time()
    # Two that wait for each other make the same number of calls.
    for _ in range(calls):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    quickest = np.sort(taken)[: max(int(QUICK * len(taken)), 1)]
    print(float(quickest.mean()), (time.process_time() - busy) / calls, flush=True)


def gradient_call(patients: int, *, shared: bool, solved: bool) -> Callable[[], Any]:
    """A gradient of the joint density of a one-compartment population, for every chain.

    Args:
        patients: of each process.
        shared: among the processes that have joined.
        solved: by a Diffrax solve instead of the closed form.
    """
    import jax
    import jax.numpy as jnp

    from dtwin_jax.inference.density import standard_promotion
    from dtwin_jax.inference.devices import everywhere, spread
    from dtwin_jax.inference.population import Population, density_of
    from dtwin_jax.inference.start import potential_energy
    from dtwin_jax.models import one_compartment

    varying = ("CL", "V", "ka")
    model = replace(one_compartment, flow=None) if solved else one_compartment
    density, base = density_of(Population(model, varying), {}, ())
    people = people_of(patients * jax.process_count() if shared else patients)
    names = [name if name not in varying else f"{name}_pop" for name, _ in density.priors]
    rng = np.random.default_rng(1)
    z: Any = {name: 0.1 * rng.normal(size=CHAINS) for name in [*names, *(f"omega_{n}" for n in varying)]}
    z["random effects"] = 0.3 * rng.normal(size=(CHAINS, len(people), len(varying)))
    data: Any = (base, people.record, np.zeros(len(varying)))
    mesh = jax.make_mesh((jax.device_count(),), ("patient",)) if shared else None
    if mesh is not None:
        data, z = (
            (everywhere(base, mesh), spread(people, mesh), everywhere(data[2], mesh)),
            everywhere(z, mesh),
        )
    else:
        data, z = jax.tree.map(jnp.asarray, (data, z))

    @jax.jit
    @standard_promotion
    def gradients(data: Any, z: Any) -> Any:
        return jax.vmap(jax.value_and_grad(lambda one: potential_energy(density, data, one)))(z)

    return lambda: jax.block_until_ready(gradients(data, z))


def people_of(count: int) -> Any:
    """Patients after one dose, ten measurements each."""
    from dtwin_jax.core.record import Record, Series, stack
    from dtwin_jax.core.signal import Doses
    from dtwin_jax.models.one_compartment import Inputs

    rng = np.random.default_rng(0)
    times = np.geomspace(0.5, 24.0, 10)
    return stack(
        {
            f"p{i}": Record(
                Inputs(oral=Doses([0.0], [300.0])),
                {"concentration": Series(times, np.exp(1.0 - 0.08 * times + 0.2 * rng.normal(size=10)))},
            )
            for i in range(count)
        }
    )


def cohort_call(patients: int) -> Callable[[], Any]:
    """Five hours of the minimal model of glucose, every patient with parameters of his own."""
    import jax
    import jax.numpy as jnp

    from dtwin_jax.core.signal import Sampled
    from dtwin_jax.dynamics.ensemble import simulate_cohort
    from dtwin_jax.models import minimal_model
    from dtwin_jax.models.minimal_model import Inputs

    rng = np.random.default_rng(0)
    p = jax.tree.map(lambda leaf: leaf * np.exp(0.2 * rng.normal(size=patients)), minimal_model.params())
    insulin = Sampled(np.array([0.0, 4.0, 20.0, 60.0, 300.0]), np.array([10.0, 90.0, 40.0, 20.0, 10.0]))
    times = jnp.linspace(0.0, 300.0, 61)
    how: Any = {"in_axes": (0, None, None)}
    return lambda: jax.block_until_ready(
        simulate_cohort(minimal_model, p, Inputs(insulin=insulin), times, **how).output.glucose
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
