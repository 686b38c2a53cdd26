"""Throughput of `simulate` over many patients, against Diffrax as a user writes it.

    python benchmarks/ensemble.py [--patients 1000]

Two-compartment kinetics, 14 oral doses, 169 outputs: the exact flow, our solver path, and a hand-written
scan of Diffrax solves from dose to dose. The minimal model, 61 outputs: our solver path and one Diffrax
solve. All under `jit(vmap(...))`, Tsit5, rtol 1e-6, atol 1e-8.
"""

import argparse
from dataclasses import replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from setting import against, interleaved, write

from dtwin_jax.core.quantity import assign
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models import minimal_model, two_compartment
from dtwin_jax.models.minimal_model import Inputs as Insulin
from dtwin_jax.models.two_compartment import Inputs

RTOL, ATOL = 1e-6, 1e-8
DOSES, EVERY, AMOUNT = 14, 12.0, 100.0


def diffeqsolve(field: Any, start: Any, stop: Any, y0: Any, saveat: Any, args: Any) -> Any:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        start,
        stop,
        None,
        y0,
        args,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        throw=False,
    )


def kinetics_by_hand(p: dict[str, Any], times: Any) -> Any:
    """Concentrations (n,) by a scan over the doses; `times` are those of one interval, after its start."""

    def field(t, y, p):
        depot, central, peripheral = y
        absorbed = p["ka"] * depot
        exchanged = p["Q"] / p["V1"] * central - p["Q"] / p["V2"] * peripheral
        return jnp.stack([-absorbed, absorbed - p["CL"] / p["V1"] * central - exchanged, exchanged])

    def dose(y, k):
        start = k * EVERY
        y = y.at[0].add(AMOUNT)
        found = diffeqsolve(field, start, start + EVERY, y, diffrax.SaveAt(ts=start + times), p)
        return found.ys[-1], found.ys[:, 1]

    _, central = jax.lax.scan(dose, jnp.zeros(3), jnp.arange(DOSES, dtype=float))
    return jnp.concatenate([jnp.zeros(1), jnp.ravel(central)]) / p["V1"]


def glucose_by_hand(p: dict[str, Any], insulin: Any, times: Any) -> Any:
    """Glucose (n,) of the minimal model, with insulin interpolated by Diffrax."""
    path = diffrax.LinearInterpolation(insulin.time, insulin.value)

    def field(t, y, p):
        glucose, action = y
        return jnp.stack(
            [
                -(p["SG"] + action) * glucose + p["SG"] * p["Gb"],
                -p["p2"] * action + p["p2"] * p["SI"] * (path.evaluate(t) - p["Ib"]),
            ]
        )

    y0 = jnp.stack([p["G0"], jnp.zeros(())])
    return diffeqsolve(field, times[0], times[-1], y0, diffrax.SaveAt(ts=times), p).ys[:, 0]


def patients(rng: Any, median: dict[str, float], count: int, spread: float = 0.3) -> dict[str, Any]:
    """Log-normal scatter about the medians, name -> (patient,)."""
    return {
        name: jnp.asarray(value * np.exp(spread * rng.normal(size=count))) for name, value in median.items()
    }


def ours(model: Any, inputs: Any, output: str) -> Any:
    """Compiled `(parameters, times) -> output (patient, n)` by `simulate`."""

    @jax.jit
    def run(p, times):
        one = lambda p: simulate(model, assign(model.params(), p), inputs, times)  # noqa: E731
        return getattr(jax.vmap(one)(p).output, output)

    return run


def error(found: Any, exact: Any) -> float:
    """Largest error of any patient, as a share of that patient's peak."""
    return float(jnp.max(jnp.max(jnp.abs(found - exact), axis=1) / jnp.max(jnp.abs(exact), axis=1)))


def compared(calls: dict[str, Any], arguments: dict[str, tuple], exact: Any, opponent: str) -> dict:
    """Times, ratios to the opponent, and errors."""
    timing = interleaved(
        {name: (lambda call=call, name=name: call(*arguments[name])) for name, call in calls.items()},
        rounds=7,
    )
    figures = against(timing, opponent)
    return {
        name: one | {"max_error_of_peak": error(calls[name](*arguments[name]), exact)}
        for name, one in figures.items()
    }


def kinetics(count: int) -> dict[str, Any]:
    """Two compartments, 14 oral doses."""
    median = {"CL": 5.0, "V1": 30.0, "Q": 8.0, "V2": 60.0, "ka": 1.2}
    p = patients(np.random.default_rng(0), median, count)
    times = jnp.arange(0.0, DOSES * EVERY + 0.5)
    inside = jnp.arange(1.0, EVERY + 0.5)
    doses = Doses(EVERY * np.arange(DOSES), np.full(DOSES, AMOUNT))
    by_steps = replace(two_compartment, flow=None)
    calls = {
        "dtwin_jax, exact flow": ours(two_compartment, Inputs(oral=doses), "concentration"),
        "dtwin_jax, solver": ours(by_steps, Inputs(oral=doses), "concentration"),
        "Diffrax by hand": jax.jit(jax.vmap(kinetics_by_hand, in_axes=(0, None))),
    }
    arguments = {name: (p, times) for name in calls} | {"Diffrax by hand": (p, inside)}
    exact = jnp.asarray(superposed({name: np.asarray(v) for name, v in p.items()}, np.asarray(times)))
    return compared(calls, arguments, exact, "Diffrax by hand")


def superposed(p: dict[str, np.ndarray], times: np.ndarray) -> np.ndarray:
    """Concentrations (patient, n) by the textbook sum of three exponentials after each dose, in NumPy."""
    p = {name: value[:, None] for name, value in p.items()}
    k10, k12, k21 = p["CL"] / p["V1"], p["Q"] / p["V1"], p["Q"] / p["V2"]
    total, product = k10 + k12 + k21, k10 * k21
    root = np.sqrt(total**2 - 4 * product)
    a, b, ka = (total + root) / 2, (total - root) / 2, p["ka"]
    found = np.zeros((len(ka), len(times)))
    for k in range(DOSES):
        since = np.maximum(times - k * EVERY, 0.0)
        found += (AMOUNT * ka / p["V1"]) * (
            (k21 - a) / ((ka - a) * (b - a)) * np.exp(-a * since)
            + (k21 - b) / ((ka - b) * (a - b)) * np.exp(-b * since)
            + (k21 - ka) / ((a - ka) * (b - ka)) * np.exp(-ka * since)
        )
    return found


def glucose(count: int) -> dict[str, Any]:
    """The minimal model over five hours; the truth is our own solve at tight tolerance."""
    names = ("SG", "p2", "SI", "G0")
    default = minimal_model.params()
    known = {name: jnp.full(count, getattr(default, name)) for name in ("Gb", "Ib")}
    median = {name: float(getattr(default, name)) for name in names}
    p = patients(np.random.default_rng(1), median, count)
    times = jnp.linspace(0.0, 300.0, 61)
    sampled = np.asarray([0.0, 2, 5, 10, 20, 30, 40, 60, 90, 120, 180, 240, 300])
    insulin = Sampled(sampled, 4.5 + 80 * np.exp(-sampled / 15) + 20 * np.exp(-(((sampled - 40) / 25) ** 2)))
    tight = replace(minimal_model, solver=replace(minimal_model.solver, rtol=1e-12, atol=1e-12))
    by_hand = jax.jit(jax.vmap(glucose_by_hand, in_axes=(0, None, None)))
    calls = {
        "dtwin_jax, solver": ours(minimal_model, Insulin(insulin=insulin), "glucose"),
        "Diffrax by hand": lambda p, times: by_hand(p | known, insulin, times),
    }
    exact = ours(tight, Insulin(insulin=insulin), "glucose")(p, times)
    return compared(calls, dict.fromkeys(calls, (p, times)), exact, "Diffrax by hand")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=1000)
    count = parser.parse_args().patients
    results = {
        "two_compartment, 14 doses, 169 outputs": kinetics(count),
        "minimal_model, 61 outputs": glucose(count),
    }
    write("ensemble", {"patients": count, "results": results})
    for what, figures in results.items():
        print(what)
        for name, one in figures.items():
            print(" ", name, {key: float(f"{value:.3g}") for key, value in one.items()})


if __name__ == "__main__":
    main()
