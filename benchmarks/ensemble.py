"""Throughput of `simulate` and `simulate_cohort` over many patients, against Diffrax as a user writes it.

    python benchmarks/ensemble.py [--patients 1000] [--cores 1] [--large] [--only TEXT] [--simglucose PYTHON]

Two-compartment kinetics, 14 oral doses, 169 outputs, every hour or scattered: the exact flow, our solver
path, lanes, and a scan of Diffrax solves from dose to dose, by hand. The minimal model, 61 outputs, of one
patient to 10,000 (100,000 with `--large`): our solver path, lanes, and one Diffrax solve. Tsit5, rtol 1e-6,
atol 1e-8. Target-mediated drug disposition, 57 outputs, 256 patients, with binding as in its source and a
hundred times faster: lanes, Diffrax's Kvaerno5, Kvaerno3 and Tsit5, and LSODA of SciPy, each patient in turn.
Days of the 30 virtual patients of the UVA/Padova model, three meals, against simglucose itself: PYTHON is one
that has it (`simglucose_days.py`); without, that row is left out.

Lanes are one call of `simulate_cohort`, and so is `cohort, whole`; `cohort` is one of which only the outputs
are wanted, under `jit`; all else is under `jit(vmap(...))` unless its row says otherwise. XLA divides heavy
loops among the cores and loses by it, so the process keeps to one core. Compiled ahead (`compiled.py`) are a
scalar solver in C++, where there is `g++`, and LSODA of numbalsoda, where that is installed.
"""

# ruff: noqa: E402 - cores are chosen before JAX counts them

import argparse
import json
import os
import subprocess
from pathlib import Path


def keep_to(cores: int) -> int:
    """Let this process run on so many of its cores, and say how many it has (0: it cannot be chosen here)."""
    if not hasattr(os, "sched_setaffinity"):
        return 0
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
    return len(os.sched_getaffinity(0))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=1000)
    parser.add_argument("--cores", type=int, default=1, help="cores that this process may use")
    parser.add_argument("--large", action="store_true", help="also 100,000 patients")
    parser.add_argument("--only", default="", help="only the parts whose name has this text; written nowhere")
    parser.add_argument("--simglucose", default="", metavar="PYTHON", help="a Python that has simglucose")
    return parser.parse_args()


if __name__ == "__main__":
    ASKED = arguments()
    CORES = keep_to(ASKED.cores)

from dataclasses import replace
from importlib.metadata import version
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from compiled import binding_by_numbalsoda, glucose_in_cpp
from scipy.integrate import odeint, solve_ivp
from setting import against, interleaved, timed, write

from dtwin_jax.core.quantity import assign, param, var
from dtwin_jax.core.signal import Doses, Sampled
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.ensemble import simulate_cohort
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import additive
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.models import minimal_model, two_compartment, uva_padova
from dtwin_jax.models.minimal_model import Inputs as Insulin
from dtwin_jax.models.two_compartment import Inputs
from dtwin_jax.models.uva_padova import Inputs as Eaten
from dtwin_jax.models.uva_padova import virtual_patients

RTOL, ATOL = 1e-6, 1e-8
DOSES, EVERY, AMOUNT = 14, 12.0, 100.0
STIFF, CHECKED = 256, 16  # patients of the stiff model, and those of them with a reference
BY_HAND = "Diffrax by hand"
CPP, LSODA = "C++, patient by patient", "LSODA of numbalsoda, patient by patient"


def diffeqsolve(field: Any, start: Any, stop: Any, y0: Any, saveat: Any, args: Any, **how: Any) -> Any:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        how.get("solver", diffrax.Tsit5()),
        start,
        stop,
        None,
        y0,
        args,
        saveat=saveat,
        stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=ATOL),
        max_steps=100_000,  # at the default some patients of the stiff model are not solved
        throw=False,
    )


def kinetics_by_hand(p: dict[str, Any], times: Any) -> Any:
    """Concentrations (n,) by a scan over the doses; `times` (dose, n) since each, to the next one."""

    def field(t, y, p):
        depot, central, peripheral = y
        absorbed = p["ka"] * depot
        exchanged = p["Q"] / p["V1"] * central - p["Q"] / p["V2"] * peripheral
        return jnp.stack([-absorbed, absorbed - p["CL"] / p["V1"] * central - exchanged, exchanged])

    def dose(y, row):
        start, since = row
        y = y.at[0].add(AMOUNT)
        found = diffeqsolve(field, start, start + EVERY, y, diffrax.SaveAt(ts=start + since), p)
        return found.ys[-1], found.ys[:, 1]

    _, central = jax.lax.scan(dose, jnp.zeros(3), (EVERY * jnp.arange(DOSES, dtype=float), times))
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


class BindingParams(eqx.Module):
    """Of target-mediated disposition; values of mrgsolve's example, which states no units."""

    C0: Scalar = param(10.0 / 0.032, "1", doc="free drug after a bolus of 10 into a volume of 0.032")
    kel: Scalar = param(0.106, "/h", doc="elimination of free drug")
    kpt: Scalar = param(0.064, "/h", doc="plasma to tissue")
    ktp: Scalar = param(0.123, "/h", doc="tissue to plasma")
    kon: Scalar = param(0.101, "/h", doc="binding")
    koff: Scalar = param(10.1, "/h", doc="release")
    kint: Scalar = param(2.0, "/h", doc="loss of the complex")
    kdeg: Scalar = param(0.079, "/h", doc="loss of the free target")
    R0: Scalar = param(64.31, "1", doc="target at rest")
    sd: Scalar = param(1.0, "1")


class NoInputs(eqx.Module):
    """Nothing is given: the bolus is the start."""


class Binding(eqx.Module):
    drug: Scalar = var("1")
    tissue: Scalar = var("1")
    target: Scalar = var("1")
    complex: Scalar = var("1")


def bound(t: Any, x: Binding, u: NoInputs, p: BindingParams) -> Binding:
    """Rates of change. Source: metrumresearchgroup/mrgsolve, inst/models/tmdd.cpp; Mager & Jusko 2001."""
    made = p.kon * x.drug * x.target - p.koff * x.complex
    exchanged = p.kpt * x.drug - p.ktp * x.tissue
    return Binding(
        drug=-p.kel * x.drug - exchanged - made,
        tissue=exchanged,
        target=p.kdeg * (p.R0 - x.target) - made,
        complex=made - p.kint * x.complex,
    )


binding = Model(
    name="target_mediated",
    params=BindingParams,
    inputs=NoInputs,
    init=lambda p: Binding(p.C0, 0.0, p.R0, 0.0),
    drift=bound,
    observe=lambda t, x, u, p: x,
    noise=additive,
    solver=Solver(diffrax.Kvaerno5, rtol=RTOL, atol=ATOL),
)


def rates(y: Any, t: Any, p: Any) -> Any:
    """`bound` over a list of four numbers, as Diffrax by hand and SciPy take it."""
    drug, tissue, target, joined = y
    made = p["kon"] * drug * target - p["koff"] * joined
    exchanged = p["kpt"] * drug - p["ktp"] * tissue
    return [
        -p["kel"] * drug - exchanged - made,
        exchanged,
        p["kdeg"] * (p["R0"] - target) - made,
        made - p["kint"] * joined,
    ]


def binding_by_hand(method: Any) -> Any:
    """Compiled `(parameters, times) -> free drug (patient, n)` by a method of Diffrax."""

    def one(p, times):
        y0 = jnp.stack([p["C0"], jnp.zeros(()), p["R0"], jnp.zeros(())])
        field = lambda t, y, p: jnp.stack(rates(y, t, p))  # noqa: E731
        saveat = diffrax.SaveAt(ts=times)
        return diffeqsolve(field, times[0], times[-1], y0, saveat, p, solver=method()).ys[:, 0]

    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def binding_by_scipy(p: list[dict[str, float]], times: Any) -> Any:
    """Free drug (patient, n) by LSODA, each patient in turn."""
    found = [
        odeint(rates, [one["C0"], 0.0, one["R0"], 0.0], times, (one,), rtol=RTOL, atol=ATOL) for one in p
    ]
    return np.stack(found)[:, :, 0]


def binding_tightly(p: list[dict[str, float]], times: Any) -> Any:
    """Free drug (patient, n) by Radau at the tightest tolerance that it takes."""
    found = [
        solve_ivp(
            lambda t, y, one=one: rates(y, t, one),
            (times[0], times[-1]),
            [one["C0"], 0.0, one["R0"], 0.0],
            "Radau",
            times,
            rtol=1e-11,
            atol=1e-12,
        ).y[0]
        for one in p
    ]
    return np.stack(found)


def ours(model: Any, inputs: Any, output: str) -> Any:
    """Compiled `(parameters, times) -> output (patient, n)` by `simulate`."""

    @jax.jit
    def run(p, times):
        one = lambda p: simulate(model, assign(model.params(), p), inputs, times)  # noqa: E731
        return getattr(jax.vmap(one)(p).output, output)

    return run


def in_lanes(model: Any, inputs: Any, output: str) -> Any:
    """`(parameters, times) -> output (patient, n)` by `simulate_cohort`."""
    default = model.params()

    def run(p, times):
        count = len(next(iter(p.values())))
        whole = jax.tree.map(lambda leaf: np.full(count, leaf), default)
        return getattr(
            simulate_cohort(model, assign(whole, p), inputs, times, in_axes=(0, None, None)).output, output
        )

    return run


def in_program(model: Any, inputs: Any, output: str, times: Any) -> Any:
    """Compiled `(parameters) -> output (patient, n)` by `simulate_cohort`; other parameters are shared."""
    default = model.params()

    @jax.jit
    def run(p):
        shared, nothing = jax.tree.map(lambda _: None, default), lambda leaf: leaf is None
        axes = eqx.tree_at(lambda t: [getattr(t, name) for name in p], shared, [0] * len(p), is_leaf=nothing)
        found = simulate_cohort(model, assign(default, p), inputs, times, in_axes=(axes, None, None))
        return getattr(found.output, output)

    return run


def error(found: Any, exact: Any) -> float:
    """Largest error of any patient, as a share of that patient's peak; the first patients have `exact`."""
    found = np.asarray(found)[: len(exact)]
    return float(np.max(np.max(np.abs(found - exact), axis=1) / np.max(np.abs(exact), axis=1)))


def compared(calls: dict[str, Any], exact: Any, rounds: int = 7, repeats: int = 1) -> dict:
    """Times, ratios to Diffrax by hand, throughput and errors; each call takes nothing."""
    first = {name: timed(call) for name, call in calls.items()}
    figures = against(interleaved(calls, rounds, repeats), BY_HAND)
    return {
        name: one
        | {
            "first_call_s": first[name][1].wall,
            "compile_cpu_s": max(0.0, first[name][1].cpu - one["run_cpu_s"]),
            "patients_per_cpu_s": len(first[name][0]) / one["run_cpu_s"],
            "max_error_of_peak": error(first[name][0], np.asarray(exact)),
        }
        for name, one in figures.items()
    }


def called(calls: dict[str, Any], *given: Any) -> dict[str, Any]:
    """The calls with their arguments bound."""
    return {name: (lambda call=call: call(*given)) for name, call in calls.items()}


def kinetics(count: int, scattered: bool) -> dict[str, Any]:
    """Two compartments, 14 oral doses; wanted every hour, or at scattered times between doses."""
    median = {"CL": 5.0, "V1": 30.0, "Q": 8.0, "V2": 60.0, "ka": 1.2}
    p = patients(np.random.default_rng(0), median, count)
    since = np.tile(np.arange(1.0, EVERY + 0.5), (DOSES, 1))
    if scattered:
        since[:, :-1] = np.sort(np.random.default_rng(1).uniform(0.0, EVERY, since[:, :-1].shape))
    start = EVERY * np.arange(DOSES)
    times = np.append(0.0, start[:, None] + since)
    by_steps = replace(two_compartment, flow=None)
    given = Inputs(oral=Doses(start, np.full(DOSES, AMOUNT)))
    calls = called({"dtwin_jax, cohort": in_program(two_compartment, given, "concentration", times)}, p)
    calls |= called({"dtwin_jax, exact flow": ours(two_compartment, given, "concentration")}, p, times)
    if not scattered:
        calls |= called(
            {
                "dtwin_jax, cohort, whole": in_lanes(two_compartment, given, "concentration"),
                "dtwin_jax, solver": ours(by_steps, given, "concentration"),
                "dtwin_jax, lanes": in_lanes(by_steps, given, "concentration"),
            },
            p,
            times,
        )
    calls |= called({BY_HAND: jax.jit(jax.vmap(kinetics_by_hand, in_axes=(0, None)))}, p, since)
    exact = superposed({name: np.asarray(v) for name, v in p.items()}, times)
    # A call of a millisecond is over before the processor's caches hold it.
    return compared(calls, exact, rounds=5, repeats=10)


def superposed(p: dict[str, np.ndarray], times: np.ndarray) -> np.ndarray:
    """Concentrations (patient, n) by the textbook sum of three exponentials after each dose, in NumPy.

    In extended precision: where absorption is nearly as fast as distribution, the sum loses four digits.
    """
    p = {name: value[:, None].astype(np.longdouble) for name, value in p.items()}
    k10, k12, k21 = p["CL"] / p["V1"], p["Q"] / p["V1"], p["Q"] / p["V2"]
    total, product = k10 + k12 + k21, k10 * k21
    root = np.sqrt(total**2 - 4 * product)
    a, b, ka = (total + root) / 2, (total - root) / 2, p["ka"]
    found = np.zeros((len(ka), len(times)), np.longdouble)
    for k in range(DOSES):
        since = np.maximum(times - k * EVERY, 0.0)
        found += (AMOUNT * ka / p["V1"]) * (
            (k21 - a) / ((ka - a) * (b - a)) * np.exp(-a * since)
            + (k21 - b) / ((ka - b) * (a - b)) * np.exp(-b * since)
            + (k21 - ka) / ((a - ka) * (b - ka)) * np.exp(-ka * since)
        )
    return found


def glucose_cohort(count: int) -> tuple[dict[str, Any], Any, Any]:
    """Scattered parameters of the minimal model, times over five hours, and sampled insulin."""
    default = minimal_model.params()
    p = patients(
        np.random.default_rng(1),
        {name: float(getattr(default, name)) for name in ("SG", "p2", "SI", "G0")},
        count,
    )
    known = {name: jnp.full(count, getattr(default, name)) for name in ("Gb", "Ib")}
    sampled = np.asarray([0.0, 2, 5, 10, 20, 30, 40, 60, 90, 120, 180, 240, 300])
    insulin = Sampled(sampled, 4.5 + 80 * np.exp(-sampled / 15) + 20 * np.exp(-(((sampled - 40) / 25) ** 2)))
    return p | known, jnp.linspace(0.0, 300.0, 61), insulin


def glucose_exactly(p: dict[str, Any], times: Any, insulin: Any) -> Any:
    """Glucose of the first thousand by our own solve at tight tolerance."""
    tight = replace(minimal_model, solver=replace(minimal_model.solver, rtol=1e-12, atol=1e-12))
    first = {name: value[:1000] for name, value in p.items()}
    return ours(tight, Insulin(insulin=insulin), "glucose")(first, times)


def glucose(count: int) -> dict[str, Any]:
    """The minimal model over five hours."""
    p, times, insulin = glucose_cohort(count)
    by_hand = lambda p, times: glucose_by_hand(p, insulin, times)  # noqa: E731
    calls = {
        "dtwin_jax, solver": ours(minimal_model, Insulin(insulin=insulin), "glucose"),
        "dtwin_jax, lanes": in_lanes(minimal_model, Insulin(insulin=insulin), "glucose"),
        BY_HAND: jax.jit(jax.vmap(by_hand, in_axes=(0, None))),
    }
    calls = called(calls | in_cpp(insulin), p, times) | in_single(p, times, insulin)
    return told(compared(calls, glucose_exactly(p, times, insulin)))


def in_cpp(insulin: Any) -> dict[str, Any]:
    """The row of C++, where it can be compiled."""
    run = glucose_in_cpp(insulin, RTOL, ATOL)
    return {} if run is None else {CPP: run}


def in_single(p: dict[str, Any], times: Any, insulin: Any) -> dict[str, Any]:
    """Lanes in float32."""
    *given, insulin = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (p, times, insulin))
    run = in_lanes(minimal_model, Insulin(insulin=insulin), "glucose")

    def single() -> Any:
        with jax.enable_x64(False):
            return run(*given)

    return {"dtwin_jax, lanes, float32": single}


def told(figures: dict[str, Any]) -> dict[str, Any]:
    """Without the compilation of what is compiled elsewhere, or not at all."""
    for name in figures.keys() & {CPP, LSODA, "SciPy LSODA"}:
        del figures[name]["compile_cpu_s"]
    return figures


def glucose_alone() -> dict[str, Any]:
    """One patient; nothing but the lanes has a batch."""
    p, times, insulin = glucose_cohort(1)
    one = {name: value[0] for name, value in p.items()}
    solved = jax.jit(
        lambda p, times: simulate(
            minimal_model, assign(minimal_model.params(), p), Insulin(insulin=insulin), times
        ).output.glucose[None]
    )
    given = assign(jax.tree.map(lambda leaf: np.full(1, leaf), minimal_model.params()), p)

    def cohort(p: Any, times: Any) -> Any:
        u = Insulin(insulin=insulin)
        return simulate_cohort(minimal_model, p, u, times, in_axes=(0, None, None)).output.glucose

    calls = called({"dtwin_jax, lanes": cohort}, given, times) | called(in_cpp(insulin), p, times)
    calls |= called(
        {
            "dtwin_jax, solver": solved,
            BY_HAND: jax.jit(lambda p, times: glucose_by_hand(p, insulin, times)[None]),
        },
        one,
        times,
    )
    return told(compared(calls, glucose_exactly(p, times, insulin), repeats=20))


def glucose_large(count: int) -> dict[str, Any]:
    """As `glucose`, two rounds of two candidates."""
    p, times, insulin = glucose_cohort(count)
    by_hand = jax.vmap(lambda p, times: glucose_by_hand(p, insulin, times), in_axes=(0, None))
    calls = {
        "dtwin_jax, lanes": in_lanes(minimal_model, Insulin(insulin=insulin), "glucose"),
        BY_HAND: jax.jit(by_hand),
    }
    calls = called(calls | in_cpp(insulin), p, times) | in_single(p, times, insulin)
    return told(compared(calls, glucose_exactly(p, times, insulin), rounds=3))


def stiff(faster: float) -> dict[str, Any]:
    """Target-mediated disposition over a week, `kon` and `koff` so many times faster; the truth is Radau."""
    names = ("C0", "kel", "kpt", "ktp", "kon", "koff", "kint", "kdeg", "R0")
    median = {name: float(getattr(binding.params(), name)) for name in names}
    median |= {name: faster * median[name] for name in ("kon", "koff")}
    p = patients(np.random.default_rng(2), median, STIFF)
    apart = [{name: float(value[i]) for name, value in p.items()} for i in range(STIFF)]
    times = np.linspace(0.0, 168.0, 57)
    calls = {
        "dtwin_jax, lanes": in_lanes(binding, NoInputs(), "drug"),
        BY_HAND: binding_by_hand(diffrax.Kvaerno5),
        "Diffrax by hand, Kvaerno3": binding_by_hand(diffrax.Kvaerno3),
    }
    if faster == 1.0:  # with faster binding an explicit method needs a hundred times the steps
        explicit = replace(binding, solver=replace(binding.solver, method=diffrax.Tsit5))
        calls |= {
            "dtwin_jax, lanes, Tsit5": in_lanes(explicit, NoInputs(), "drug"),
            "Diffrax by hand, Tsit5": binding_by_hand(diffrax.Tsit5),
        }
    compiled = binding_by_numbalsoda(names, RTOL, ATOL)
    calls |= {} if compiled is None else {LSODA: compiled}
    calls = called(calls, p, times) | called({"SciPy LSODA": binding_by_scipy}, apart, times)
    return told(compared(calls, binding_tightly(apart[:CHECKED], times), rounds=3))


def meals_of(scenarios: int) -> tuple[Any, Any, Any]:
    """Starts (patient-day, 3) in min, grams and units of insulin of meals, `scenarios` days a patient."""
    rng, count = np.random.default_rng(3), scenarios * len(virtual_patients())
    start = np.array([420.0, 720.0, 1080.0]) + np.round(rng.uniform(-45.0, 45.0, (count, 3)))
    grams = 5.0 * np.round(rng.uniform([6, 10, 12], [12, 18, 20], (count, 3)))
    weight = np.repeat([p.BW for p in virtual_patients().values()], scenarios)
    return start, grams, grams / np.where(weight > 60.0, 12.0, 25.0)[:, None]


def eaten(start: Any, grams: Any, units: Any, *, by_minute: bool) -> Eaten:
    """Meals at 5 g a minute and boluses over one; a dose a meal, or as in simglucose a dose a minute."""
    doses, insulin = jax.vmap(Doses), jax.vmap(lambda t, amount: Doses(t, amount, 1.0))
    if not by_minute:
        return Eaten(meal=doses(start, 1e3 * grams, grams / 5.0), insulin=insulin(start, units))
    minute = np.arange(np.max(grams) / 5.0)
    given = np.where(minute < grams[..., None] / 5.0, 5e3, 0.0)
    each = (start[..., None] + minute).reshape(len(start), -1), given.reshape(len(start), -1)
    return Eaten(meal=insulin(*each), insulin=insulin(start, units))


def days(scenarios: int = 32) -> dict[str, Any]:
    """Days of the virtual patients; errors in mg/dL over the day, of one day of each by a solve at 1e-11."""
    people, (start, grams, units) = virtual_patients(), meals_of(scenarios)
    times = np.arange(0.0, 1441.0, 5.0)
    axes = 0, Eaten(meal=0, insulin=0, basal=None, announced=None), None
    tight = replace(uva_padova, solver=replace(uva_padova.solver, rtol=1e-11, atol=1e-11))
    p = jax.tree.map(lambda *leaf: np.repeat(np.asarray(leaf, float), scenarios), *people.values())

    def run(by_minute: bool, model: Any = uva_padova, every: int = 1) -> Any:
        rows = slice(None, None, every)
        u = eaten(start[rows], grams[rows], units[rows], by_minute=by_minute)
        own = jax.tree.map(lambda leaf: leaf[rows], p)
        return simulate_cohort(model, own, u, times, in_axes=axes).output.cgm

    calls = {"dtwin_jax, lanes": False, "dtwin_jax, lanes, meals by the minute": True}
    exact = {name: run(by_minute, tight, scenarios) for name, by_minute in calls.items()}
    figures = interleaved({name: lambda each=each: run(each) for name, each in calls.items()}, 5)
    for name, by_minute in calls.items():
        one = figures[name]
        one["days_per_cpu_s"] = len(start) / one["run_cpu_s"]
        one["max_error_mg_per_dL"] = float(np.max(np.abs(run(by_minute)[::scenarios] - exact[name])))
    if not ASKED.simglucose:
        print("simglucose is left out: no --simglucose")
        return figures
    chosen = [0, 10, 20]
    asked = [
        {
            "patient": list(people)[i],
            "meals": list(zip(start[i * scenarios], grams[i * scenarios], strict=True)),
            "boluses": list(zip(start[i * scenarios], units[i * scenarios], strict=True)),
        }
        for i in chosen
    ]
    found = by_simglucose(asked)
    per_day = found["cpu_s"] / len(asked)
    for one in figures.values():
        one["times_opponent_cpu"] = per_day * one["days_per_cpu_s"]
    apart = (
        np.asarray(found["cgm"])[:, ::5] - exact["dtwin_jax, lanes, meals by the minute"][np.array(chosen)]
    )
    opponent = {"days_per_cpu_s": 1 / per_day, "max_error_mg_per_dL": float(np.max(np.abs(apart)))}
    return figures | {"simglucose, day by day": opponent | {"times_opponent_cpu": 1.0}}


def by_simglucose(asked: list[dict[str, Any]]) -> dict[str, Any]:
    """What `simglucose_days.py` writes, run by the Python that has it."""
    script = str(Path(__file__).parent / "simglucose_days.py")
    told = subprocess.run(
        [ASKED.simglucose, script], input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(told.stdout)


def main() -> None:
    count = ASKED.patients
    parts = {
        f"minimal_model, 61 outputs, {count} patients": lambda: glucose(count),
        f"target_mediated, 57 outputs, {STIFF} patients": lambda: stiff(1.0),
        f"two_compartment, 14 doses, 169 hourly outputs, {count} patients": lambda: kinetics(count, False),
        f"two_compartment, 14 doses, 169 scattered outputs, {count} patients": lambda: kinetics(count, True),
        "uva_padova, three meals, 289 outputs, 960 days": days,
        "minimal_model, 61 outputs, 1 patient": glucose_alone,
        f"minimal_model, 61 outputs, {10 * count} patients": lambda: glucose(10 * count),
        f"target_mediated, binding 100 times faster, 57 outputs, {STIFF} patients": lambda: stiff(100.0),
    }
    if ASKED.large:
        parts["minimal_model, 61 outputs, 100000 patients"] = lambda: glucose_large(100_000)
    origin = {"patients": count, "cores": CORES, "scipy": version("scipy")}
    results: dict[str, Any] = {}
    for what, part in parts.items():
        if ASKED.only not in what:
            continue
        results[what] = part()
        if not ASKED.only:
            write("ensemble", origin | {"results": results})
        print(what)
        for name, one in results[what].items():
            print(" ", name, {key: float(f"{value:.3g}") for key, value in one.items()}, flush=True)


if __name__ == "__main__":
    main()
