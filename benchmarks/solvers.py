"""Error against cost of two explicit and two implicit methods, on four test problems and on shipped models.

    python benchmarks/solvers.py [--quick]

Error: correct digits at the published end of the test problems; on shipped models, under their own
`example`, the largest difference from a solve at 1e-11 over the largest value of the output.
Cost: steps, and processor seconds of a later call, of one patient. "-" is a solve that gave up.
"""

import argparse
from dataclasses import replace

import diffrax
import jax
import matplotlib
import numpy as np
from problems import PROBLEMS
from setting import FOLDER, timed, write

from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Outcome, Solver
from dtwin_jax.models import CATALOGUE

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "solvers"

METHODS = {
    "Tsit5": diffrax.Tsit5,
    "Dopri8": diffrax.Dopri8,
    "Kvaerno3": diffrax.Kvaerno3,
    "Kvaerno5": diffrax.Kvaerno5,
}
RTOL = (1e-4, 1e-6, 1e-8, 1e-10)
MODELS = ("hovorka", "topp", "hpa", "left_heart")
MAX_STEPS = 60_000
# Shape and colour of each; implicit ones are dashed.
STYLE = {
    "Tsit5": ("o-", "#3b6ea5"),
    "Dopri8": ("s-", "#2a9d8f"),
    "Kvaerno3": ("^--", "#c0392b"),
    "Kvaerno5": ("v--", "#e08e0b"),
}


def run(model, inputs, times):
    """States and outputs at `times`, steps, and seconds of a later call; None where the solver gave up."""
    solve = jax.jit(lambda p, inputs: simulate(model, p, inputs, times))
    p = model.params()
    found = jax.block_until_ready(solve(p, inputs))
    if int(found.outcome) != Outcome.SOLVED:
        return None
    _, timing = timed(solve, p, inputs)
    return found, int(found.steps), timing.cpu


def on_problem(problem, method, rtol):
    solver = replace(problem.solver(METHODS[method], rtol), max_steps=MAX_STEPS)
    model = problem.with_solver(solver)
    made = run(model, model.inputs(), np.array([problem.end]))
    if made is None:
        return {"digits": None}
    found, steps, cpu = made
    end = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.state)])
    return {"digits": problem.digits(end), "steps": steps, "cpu_s": cpu}


def on_model(name, method, rtol, exact):
    model = CATALOGUE[name]
    atol = tuple(rtol / model.solver.rtol * np.atleast_1d(model.solver.atol))
    solver = Solver(METHODS[method], rtol, atol[0] if len(atol) == 1 else atol, MAX_STEPS)
    record, times = model.example(), span(model)
    made = run(replace(model, flow=None, solver=solver), record.inputs, times)
    if made is None:
        return {"digits": None}
    found, steps, cpu = made
    output = np.stack(jax.tree.leaves(found.output))
    if exact is None:
        return output
    error = np.max(np.abs(output - exact) / np.max(np.abs(exact), axis=1, keepdims=True))
    return {"digits": float(-np.log10(max(error, 1e-16))), "steps": steps, "cpu_s": cpu}


def span(model):
    record = model.example()
    last = max(float(np.max(series.time)) for series in record.observations.values())
    return np.linspace(0.0, last, 25)[1:]


def table(quick):
    rtols = RTOL[1:3] if quick else RTOL
    found = {}
    for name, problem in PROBLEMS.items():
        found[name] = {m: {f"{r:g}": on_problem(problem, m, r) for r in rtols} for m in METHODS}
        print(name, found[name], flush=True)
    for name in MODELS:
        method = "Kvaerno5" if CATALOGUE[name].solver.method is not diffrax.Tsit5 else "Dopri8"
        exact = on_model(name, method, 1e-11, None)
        found[name] = {m: {f"{r:g}": on_model(name, m, r, exact) for r in rtols} for m in METHODS}
        print(name, found[name], flush=True)
    return found


def draw(found, path):
    import matplotlib.pyplot as plt

    columns = 4
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.7 * rows), squeeze=False)
    for axis, (name, methods) in zip(axes.ravel(), found.items(), strict=False):
        lost = []
        for method, cells in methods.items():
            points = [(c["cpu_s"] * 1e3, c["digits"]) for c in cells.values() if c["digits"] is not None]
            if points:
                shape, colour = STYLE[method]
                axis.plot(*zip(*points, strict=True), shape, color=colour, label=method, markersize=4)
            else:
                lost.append(method)
        if lost:
            axis.text(0.97, 0.04, f"gave up: {', '.join(lost)}", transform=axis.transAxes, ha="right", size=7)
        axis.set(title=name, xscale="log", xlabel="processor ms", ylabel="correct digits")
        axis.grid(alpha=0.3)
    # All four are there.
    axes[1, 0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two tolerances only")
    results = table(parser.parse_args().quick)
    draw(results, FOLDER / "solvers.svg")
    print(write("solvers", {"methods": list(METHODS), "max_steps": MAX_STEPS, "results": results}))
