"""Gradients of a cohort's trajectories, against Diffrax's adjoints.

    python benchmarks/gradients.py [--patients 1024] [--rounds 7]

The minimal model over an intravenous glucose test, 61 outputs, Tsit5, rtol 1e-6, atol 1e-8: the gradient of
the sum of squared outputs by six parameters of every patient. Ours is `simulate_cohort` under `jax.grad`
(reverse) and `jax.jacfwd` (forward); Diffrax is one solve a patient as a user writes it, under `jax.vmap`,
with each of its adjoints that are exact, and the better ones also in blocks of 128 patients. Errors are those
against our gradient at rtol 1e-12, as a share of each parameter's largest. Then what a gradient costs over a
solve by how many parameters it is, up to twelve: two minimal models side by side in one. The process keeps to
one core.
"""

import argparse
import os
from dataclasses import replace
from typing import Any

if __name__ == "__main__" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from setting import interleaved, write

from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.model import Model
from dtwin_jax.models import minimal_model

RTOL, ATOL = 1e-6, 1e-8
TIMES = np.linspace(0.0, 180.0, 61)
NAMES = ("SG", "p2", "SI", "G0", "Gb", "Ib")
ADJOINTS = {
    "Diffrax, ForwardMode": diffrax.ForwardMode(),
    "Diffrax, RecursiveCheckpointAdjoint": diffrax.RecursiveCheckpointAdjoint(),
    "Diffrax, DirectAdjoint": diffrax.DirectAdjoint(),
}
INSULIN = minimal_model.example().inputs


def people(count: int, names: tuple[str, ...], default: Any) -> dict[str, Any]:
    """Log-normal scatter of a fifth about the defaults, name -> (patient,)."""
    rng = np.random.default_rng(0)
    return {n: jnp.asarray(float(getattr(default, n)) * np.exp(0.2 * rng.normal(size=count))) for n in names}


def cohort(model: Any) -> Any:
    """`(parameters by name) -> output (patient, n)`; all other parameters are shared."""
    default = model.params()

    def run(p: dict[str, Any]) -> Any:
        nothing = lambda leaf: leaf is None  # noqa: E731
        axes = jax.tree.map(lambda _: None, default)
        axes = eqx.tree_at(lambda t: [getattr(t, name) for name in p], axes, [0] * len(p), is_leaf=nothing)
        found = simulate_cohort(model, assign(default, p), INSULIN, TIMES, in_axes=(axes, None, None))
        return found.output.glucose

    return run


def reverse(run: Any) -> Any:
    return jax.jit(jax.grad(lambda p: jnp.sum(run(p) ** 2)))


def forward(run: Any) -> Any:
    """The same gradient by one direction a parameter, of all patients at once."""

    @jax.jit
    def slope(p: dict[str, Any]) -> dict[str, Any]:
        value = run(p)
        moved = jax.jacfwd(lambda shift: run({name: p[name] + shift[name] for name in p}))
        found = moved({name: jnp.zeros(()) for name in p})
        return {name: jnp.sum(2 * value * each, axis=1) for name, each in found.items()}

    return slope


def by_hand(p: dict[str, Any], adjoint: Any) -> Any:
    """Glucose (n,) of one patient, with insulin interpolated by Diffrax."""
    path = diffrax.LinearInterpolation(INSULIN.insulin.time, INSULIN.insulin.value)

    def field(t, y, p):
        glucose, action = y
        return jnp.stack(
            [
                -(p["SG"] + action) * glucose + p["SG"] * p["Gb"],
                -p["p2"] * action + p["p2"] * p["SI"] * (path.evaluate(t) - p["Ib"]),
            ]
        )

    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        TIMES[0],
        TIMES[-1],
        None,
        jnp.stack([p["G0"], jnp.zeros(())]),
        p,
        saveat=diffrax.SaveAt(ts=jnp.asarray(TIMES)),
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        max_steps=256,
        adjoint=adjoint,
        throw=False,
    ).ys[:, 0]


def gradient_by_hand(adjoint: Any) -> Any:
    """That of one patient."""
    way = jax.jacfwd if isinstance(adjoint, diffrax.ForwardMode) else jax.grad
    return way(lambda p: jnp.sum(by_hand(p, adjoint) ** 2))


def in_blocks(gradient: Any) -> Any:
    """A gradient of one patient, of all, 128 at a time."""
    return jax.jit(lambda p: jax.lax.map(gradient, p, batch_size=128))


def error(found: dict[str, Any], exact: dict[str, Any]) -> float:
    """Largest error of any patient, as a share of the largest of that parameter's gradients."""
    each = [np.max(np.abs(found[n] - exact[n])) / np.max(np.abs(exact[n])) for n in exact]
    return float(max(each))


def against_diffrax(count: int, rounds: int) -> dict[str, Any]:
    p = people(count, NAMES, minimal_model.params())
    ours = replace(minimal_model, solver=replace(minimal_model.solver, rtol=RTOL, atol=ATOL))
    tight = replace(minimal_model, solver=replace(minimal_model.solver, rtol=1e-12, atol=1e-12))
    exact = jax.tree.map(np.asarray, reverse(cohort(tight))(p))
    gradients = {
        "dtwin_jax, reverse": reverse(cohort(ours)),
        "dtwin_jax, forward": forward(cohort(ours)),
    }
    for name, adjoint in ADJOINTS.items():
        gradients[name] = jax.jit(jax.vmap(gradient_by_hand(adjoint)))
        if not isinstance(adjoint, diffrax.DirectAdjoint):
            gradients[f"{name}, in blocks"] = in_blocks(gradient_by_hand(adjoint))
    calls = {name: (lambda call=call: call(p)) for name, call in gradients.items()}
    solves = {"dtwin_jax, solve": jax.jit(cohort(ours))}
    solves["Diffrax, solve"] = jax.jit(jax.vmap(lambda p: by_hand(p, diffrax.ForwardMode())))
    calls |= {name: (lambda call=call: call(p)) for name, call in solves.items()}
    figures = interleaved(calls, rounds)
    best = min(one["run_cpu_s"] for name, one in figures.items() if name in gradients and "Diffrax" in name)
    for name, one in figures.items():
        one["patients_per_cpu_s"] = count / one["run_cpu_s"]
        if name in gradients:
            one["times_best_of_diffrax_cpu"] = best / one["run_cpu_s"]
            one["gradient_over_own_solve"] = (
                one["run_cpu_s"] / figures[name.split(",")[0] + ", solve"]["run_cpu_s"]
            )
            one["max_error"] = error(gradients[name](p), exact)
    return figures


class Two(eqx.Module):
    """Parameters of two minimal models in one body of equations."""

    SG: Scalar = param(0.0192, "1")
    p2: Scalar = param(0.0254, "1")
    SI: Scalar = param(3.5e-4, "1")
    G0: Scalar = param(268.0, "1")
    Gb: Scalar = param(91.34, "1")
    Ib: Scalar = param(4.5, "1")
    SG2: Scalar = param(0.017, "1")
    p22: Scalar = param(0.03, "1")
    SI2: Scalar = param(4.5e-4, "1")
    G02: Scalar = param(200.0, "1")
    Gb2: Scalar = param(85.0, "1")
    Ib2: Scalar = param(6.0, "1")
    sd: Scalar = param(4.0, "1")


class Four(eqx.Module):
    glucose: Scalar = var("1")
    action: Scalar = var("1")
    glucose2: Scalar = var("1")
    action2: Scalar = var("1")


class Sum(eqx.Module):
    glucose: Scalar = var("1")


def both(t: Any, x: Four, u: Any, p: Two) -> Four:
    return Four(
        glucose=-(p.SG + x.action) * x.glucose + p.SG * p.Gb,
        action=-p.p2 * x.action + p.p2 * p.SI * (u.insulin - p.Ib),
        glucose2=-(p.SG2 + x.action2) * x.glucose2 + p.SG2 * p.Gb2,
        action2=-p.p22 * x.action2 + p.p22 * p.SI2 * (u.insulin - p.Ib2),
    )


two = Model(
    name="two_minimal_models",
    params=Two,
    inputs=minimal_model.inputs,
    init=lambda p: Four(p.G0, 0.0, p.G02, 0.0),
    drift=both,
    observe=lambda t, x, u, p: Sum(x.glucose + x.glucose2),
    noise=lambda y, p: {},
    solver=replace(minimal_model.solver, rtol=RTOL, atol=ATOL),
)
TWELVE = (*NAMES, "SG2", "p22", "SI2", "G02", "Gb2", "Ib2")


def by_number(count: int, rounds: int) -> dict[str, Any]:
    """Cost of a gradient over that of a solve, by how many parameters it is."""
    default, run = two.params(), cohort(two)
    p = people(count, TWELVE, default)
    calls = {"solve": jax.jit(run)}
    whole = lambda own: run({**p, **own})  # noqa: E731
    calls |= {str(n): reverse(whole) for n in (1, 2, 4, 6, 12)}

    def bound(name: str) -> Any:
        own = p if name == "solve" else {key: p[key] for key in TWELVE[: int(name)]}
        return lambda: calls[name](own)

    figures = interleaved({name: bound(name) for name in calls}, rounds)
    base = figures["solve"]["run_cpu_s"]
    return {name: one | {"over_solve": one["run_cpu_s"] / base} for name, one in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    results = {
        "gradient by 6 parameters": against_diffrax(asked.patients, asked.rounds),
        "reverse gradient over a solve, by number of parameters": by_number(asked.patients, asked.rounds),
    }
    write("gradients", {"patients": asked.patients, "cores": 1, "results": results})
    for what, part in results.items():
        print(what)
        for name, one in part.items():
            print(" ", name, {key: float(f"{value:.3g}") for key, value in one.items()})


if __name__ == "__main__":
    main()
