"""One posterior by NUTS: `calibrate` as a user calls it, NumPyro by hand, and Stan.

    python benchmarks/posterior.py [--problem NAME] [--seeds 3] [--plain 1] [--stan PYTHON] [--data FOLDER]

The minimal model on the glucose test that comes with the package (7 parameters), lynx and hare of
posteriordb (8), and the theophylline population in closed form (43). Same model, priors, data, tolerances,
chains, warm-up and draws for all, each with its other settings as they come. `--stan` names the Python of an
environment with `httpstan`; without it Stan is left out. Stan's models are in `benchmarks/stan`, and of Stan
only the sampler's processor time counts; ours is all that `calibrate` does, diagnostics and predictions too.
Two further rates: after the warm-up alone, and of the first fit in a new process, with all compilation.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import ess_against_numpyro as theophylline
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS, init_to_value
from setting import FOLDER, data_folder, timed, write

from dtwin_jax.core.prior import lognormal, normal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series, stack
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.solver import Solver
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.compiling import compiling_seconds
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.run import after_block
from dtwin_jax.io.table import read_table
from dtwin_jax.models import minimal_model, one_compartment

CHAINS = 4
RATES = ("ess_per_cpu_s", "ess_per_sampling_cpu_s", "ess_per_first_cpu_s")
SHOWN = (*RATES, "times_stan", "min_bulk_ess", "cpu_s", "furthest_apart_in_sd", "leapfrogs_mean")
MIXED = 8.0  # min, from which on the injected glucose has mixed


@dataclass(frozen=True)
class Problem:
    """One posterior, for all three programs.

    Attributes:
        f: what `calibrate` is given, with `data` and `priors`.
        by_hand: the NumPyro model, and `arguments` its data.
        forward: whether NumPyro differentiates it in forward mode.
        near: parameters of Stan's and NumPyro's names at a plausible point, about which both begin: from
            points of their own, some of their chains end in a false mode.
        stan: name of the Stan model, and `stan_data` its data.
        names: of the compared parameters: ours -> Stan's.
    """

    f: Any
    data: Any
    priors: dict[str, Any]
    by_hand: Callable[..., None]
    arguments: tuple
    forward: bool
    near: dict[str, Any]
    stan: str
    stan_data: dict[str, Any]
    names: dict[str, str]


class Params(eqx.Module):
    """Births and deaths of hares and lynxes, and the errors of counting them."""

    a: Scalar = param(1.0, "/a", normal(1.0, 0.5, low=0.0))
    b: Scalar = param(0.05, "/a", normal(0.05, 0.05, low=0.0))
    g: Scalar = param(1.0, "/a", normal(1.0, 0.5, low=0.0))
    d: Scalar = param(0.05, "/a", normal(0.05, 0.05, low=0.0))
    hare0: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.0))
    lynx0: Scalar = param(10.0, "1", lognormal(10.0, log_sd=1.0))
    sd_hare: Scalar = param(0.37, "1", lognormal(float(np.exp(-1)), log_sd=1.0))
    sd_lynx: Scalar = param(0.37, "1", lognormal(float(np.exp(-1)), log_sd=1.0))


class Inputs(eqx.Module):
    """Nobody interferes."""


class State(eqx.Module):
    """Thousands of pelts."""

    hare: Scalar = var("1")
    lynx: Scalar = var("1")


def drift(t: Any, x: State, u: Inputs, p: Params) -> State:
    return State(hare=(p.a - p.b * x.lynx) * x.hare, lynx=(-p.g + p.d * x.hare) * x.lynx)


def noise(y: State, p: Params) -> dict[str, Any]:
    positive = lambda value: jnp.log(jnp.where(value > 0, value, jnp.nan))  # noqa: E731
    return {
        "hare": dist.LogNormal(positive(y.hare), p.sd_hare),
        "lynx": dist.LogNormal(positive(y.lynx), p.sd_lynx),
    }


lotka_volterra = Model(
    name="lotka_volterra",
    params=Params,
    inputs=Inputs,
    init=lambda p: State(hare=p.hare0, lynx=p.lynx0),
    drift=drift,
    observe=lambda t, x, u, p: x,
    noise=noise,
    time="a",
    solver=Solver(rtol=1e-5, atol=1e-6, max_steps=500),
)


def solved(rate: Callable, times: Any, start: Any, rtol: float, atol: float) -> Any:
    """States at `times`, as a user of Diffrax solves for them."""
    return diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        diffrax.Tsit5(),
        0.0,
        times[-1],
        None,
        start,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        adjoint=diffrax.ForwardMode(),
        throw=False,
    ).ys


def glucose_problem() -> Problem:
    path = resources.files("dtwin_jax") / "data" / "fsigt.csv"
    (read,) = read_table(path, minimal_model).values()
    series, insulin = read.observations["glucose"], read.inputs.insulin
    late = np.asarray(series.time) >= MIXED
    times, value = np.asarray(series.time)[late], np.asarray(series.value)[late]
    record = Record(read.inputs, {"glucose": Series(times, value)})
    priors = {"Gb": lognormal(90.0, cv=0.05), "Ib": lognormal(7.0, cv=0.2), "cv": 0.0}
    declared = ("SG", "p2", "SI", "G0", "sd")
    spread = {"SG": 0.210, "p2": 0.379, "SI": 0.475, "G0": 0.2, "sd": 0.5}
    centre = {"SG": 0.0192, "p2": 0.0254, "SI": 3.5e-4, "G0": 268.0, "sd": 4.28}
    centre, spread = (
        centre | {"Gb": 90.0, "Ib": 7.0},
        spread | {name: float(np.sqrt(np.log1p(cv**2))) for name, cv in (("Gb", 0.05), ("Ib", 0.2))},
    )

    def by_hand(knot: Any, level: Any, times: Any, value: Any) -> None:
        p = {n: numpyro.sample(n, dist.LogNormal(np.log(centre[n]), spread[n])) for n in centre}

        def rate(t: Any, y: Any, _: Any) -> Any:
            push = p["p2"] * p["SI"] * (jnp.interp(t, knot, level) - p["Ib"])
            return jnp.stack([-(p["SG"] + y[1]) * y[0] + p["SG"] * p["Gb"], -p["p2"] * y[1] + push])

        found = solved(rate, times, jnp.stack([p["G0"], jnp.zeros(())]), 1e-6, 1e-8)
        numpyro.sample("obs", dist.Normal(found[:, 0], p["sd"]), obs=value)

    names = (*declared[:4], "Gb", "Ib", "sd")
    knot, level = np.asarray(insulin.time, float), np.asarray(insulin.value, float)
    data = {"N": len(times), "time": times.tolist(), "glucose": value.tolist()}
    return Problem(
        f=minimal_model,
        data=record,
        priors=priors,
        by_hand=by_hand,
        arguments=tuple(map(jnp.asarray, (knot, level, times, value))),
        forward=True,
        near=centre,
        stan="minimal_model",
        stan_data=data | {"K": len(knot), "knot": knot.tolist(), "level": level.tolist()},
        names=dict(zip(names, names, strict=True)),
    )


def lynx_problem(folder: Path) -> Problem:
    data = json.loads((folder / "posteriordb" / "hudson_lynx_hare.data.json").read_text())
    ts, first, seen = (np.asarray(data[name], float) for name in ("ts", "y_init", "y"))
    time, every = np.append(0.0, ts), np.concatenate([first[None], seen])
    record = Record(Inputs(), {"hare": Series(time, every[:, 0]), "lynx": Series(time, every[:, 1])})

    def by_hand(time: Any, seen: Any) -> None:
        drawn = {
            name: numpyro.sample(name, dist.TruncatedNormal(mean, sd, low=0.0))
            for name, mean, sd in (("a", 1.0, 0.5), ("b", 0.05, 0.05), ("g", 1.0, 0.5), ("d", 0.05, 0.05))
        }
        start = [numpyro.sample(n, dist.LogNormal(np.log(10.0), 1.0)) for n in ("hare0", "lynx0")]
        sd = [numpyro.sample(n, dist.LogNormal(-1.0, 1.0)) for n in ("sd_hare", "sd_lynx")]
        a, b, g, d = drawn.values()
        rate = lambda t, x, _: jnp.stack([(a - b * x[1]) * x[0], (-g + d * x[0]) * x[1]])  # noqa: E731
        found = solved(rate, time, jnp.stack(start), 1e-5, 1e-6)
        for i, name in enumerate(("hare", "lynx")):
            numpyro.sample(name, dist.LogNormal(jnp.log(found[:, i]), sd[i]), obs=seen[:, i])

    near = {"a": 0.55, "b": 0.028, "g": 0.8, "d": 0.024, "hare0": 34.0, "lynx0": 5.9}
    near |= {"sd_hare": 0.25, "sd_lynx": 0.25}
    return Problem(
        f=lotka_volterra,
        data=record,
        priors={},
        by_hand=by_hand,
        arguments=(jnp.asarray(time), jnp.asarray(every)),
        forward=True,
        near=near,
        stan="lotka_volterra",
        stan_data={"N": len(ts), "time": ts.tolist(), "first": first.tolist(), "seen": seen.tolist()},
        names={name: name for name in near},
    )


def theophylline_problem() -> Problem:
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    cohort = stack(read_table(path, one_compartment, covariates={"weight": "kg"}))
    series = cohort.record.observations["concentration"]
    if not np.all(series.mask):
        raise SystemExit("theoph.csv: a measurement is missing; Stan's model is written for a full table")
    dose = np.asarray(cohort.record.inputs.oral.amount).sum(axis=1)
    individual = np.log(np.tile(list(theophylline.MEDIAN.values()), (len(dose), 1)))
    typical = {f"{name}_pop": value for name, value in theophylline.MEDIAN.items()}
    omega = {f"omega_{name}": 0.3 for name in theophylline.VARY}
    names = {name: f"typical.{i + 1}" for i, name in enumerate(typical)} | {"sd": "sd"}
    return Problem(
        f=Population(one_compartment, vary=theophylline.VARY),
        data=cohort,
        priors=theophylline.PRIORS,
        by_hand=lambda *data: theophylline.by_hand(True, *data),
        arguments=tuple(map(jnp.asarray, (dose, series.time, series.value, series.mask))),
        forward=False,
        near=typical | omega | {"sd": 0.7, "individual": individual},
        stan="theophylline",
        stan_data={
            "P": len(dose),
            "N": series.time.shape[1],
            "dose": dose.tolist(),
            "time": np.asarray(series.time).tolist(),
            "concentration": np.asarray(series.value).tolist(),
        },
        names=names | {name: f"omega.{i + 1}" for i, name in enumerate(omega)},
    )


def ours(problem: Problem, method: Nuts) -> Callable[[int], dict]:
    """`draw(seed)` by `calibrate`."""

    def draw(seed: int) -> dict[str, Any]:
        ends: list[float] = []
        token = after_block.set(lambda: ends.append(time.process_time()))
        tree = calibrate(
            problem.f,
            problem.data,
            key=jax.random.key(seed),
            priors=problem.priors,
            method=method,
            progress=False,
        )
        after_block.reset(token)
        found = {name: tree["posterior"][name].values for name in problem.names}
        stats = tree["sample_stats"]
        return {
            "draws": {name: value.reshape(value.shape[:2]) for name, value in found.items()},
            "leapfrogs": stats["n_steps"].values,
            "diverging": stats["diverging"].values,
            "compile_s": tree.attrs["compile_seconds"],
            # The last blocks are of the draws that are kept.
            "sampling_cpu_s": ends[-1] - ends[-1 - method.draws // method.block],
        }

    return draw


def plain(problem: Problem, method: Nuts) -> Callable[[int], dict]:
    """`draw(seed)` by NumPyro, of which every call traces and compiles anew: that is in its figures."""
    near = {name: jnp.asarray(value) for name, value in problem.near.items()}
    kernel = NUTS(
        problem.by_hand,
        init_strategy=init_to_value(values=near),
        forward_mode_differentiation=problem.forward,
    )
    mcmc = MCMC(
        kernel,
        num_warmup=method.warmup,
        num_samples=method.draws,
        num_chains=method.chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def draw(seed: int) -> dict[str, Any]:
        compiled = compiling_seconds()
        mcmc.run(jax.random.key(seed), *problem.arguments, extra_fields=("num_steps", "diverging"))
        found, extra = mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)
        return {
            "draws": {name: np.asarray(found[name]) for name in problem.names},
            "leapfrogs": np.asarray(extra["num_steps"]),
            "diverging": np.asarray(extra["diverging"]),
            "compile_s": compiling_seconds() - compiled,
        }

    return draw


def by_stan(problem: Problem, method: Nuts, python: Path) -> Callable[[int], dict]:
    """`draw(seed)` by Stan, in a process of its own."""
    script, model = FOLDER / "stan_draws.py", FOLDER / "stan" / f"{problem.stan}.stan"
    # Compiled anew, to time it: httpstan keeps compiled models there.
    cache = tempfile.TemporaryDirectory()

    def run(*arguments: Path, **kwargs: Any) -> None:
        env = os.environ | {"XDG_CACHE_HOME": cache.name}
        subprocess.run(
            [python, script, model, *arguments], check=True, env=env, stdout=subprocess.DEVNULL, **kwargs
        )

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run(stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    compiling = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    near = {name: np.asarray(value).tolist() for name, value in problem.near.items()}
    if problem.stan == "theophylline":
        near["typical"] = [near.pop(f"{name}_pop") for name in theophylline.VARY]
        near["omega"] = [near.pop(f"omega_{name}") for name in theophylline.VARY]

    def draw(seed: int) -> dict[str, Any]:
        asked = {"data": problem.stan_data, "inits": [near] * method.chains, "seed": seed + 1}
        asked |= {"warmup": method.warmup, "draws": method.draws, "names": list(problem.names.values())}
        with tempfile.TemporaryDirectory() as folder:
            settings, result = Path(folder) / "settings.json", Path(folder) / "result.json"
            settings.write_text(json.dumps(asked))
            run(settings, result)
            found = json.loads(result.read_text())
        draws = {name: np.asarray(found["draws"][theirs]) for name, theirs in problem.names.items()}
        arrays = {name: np.asarray(found[name]) for name in ("leapfrogs", "diverging")}
        seconds = {name: found[name] for name in ("cpu_s", "sampling_cpu_s")}
        seconds["first_cpu_s"] = compiling + seconds["cpu_s"]
        return {"draws": draws} | arrays | seconds

    return draw


def measured(draw: Callable[[int], dict], seed: int) -> dict:
    """`draw(seed)`, with the processor time of it where it does not tell its own."""
    found, time = timed(draw, seed)
    return {"cpu_s": time.cpu, "compile_s": 0.0} | found


def summarised(runs: list[dict], names: Any) -> dict[str, Any]:
    """Of the runs of one program: least bulk ESS, worst R-hat, seconds, means and sds."""
    ess = [min(float(array_stats.ess(run["draws"][n])) for n in names) for run in runs]
    cpu = [run["cpu_s"] for run in runs]
    sampling = [run.get("sampling_cpu_s", float("nan")) for run in runs]
    first = [run["first_cpu_s"] for run in runs]
    each = {n: np.concatenate([run["draws"][n].ravel() for run in runs]) for n in names}
    rate = [e / c for e, c in zip(ess, cpu, strict=True)]
    return {
        "ess_per_cpu_s": float(np.mean(rate)),
        "ess_per_cpu_s_each": rate,
        "ess_per_sampling_cpu_s": float(np.mean(np.divide(ess, sampling))),
        "ess_per_first_cpu_s": float(np.mean(np.divide(ess, first))),
        "sampling_cpu_s": sampling,
        "first_cpu_s": first,
        "min_bulk_ess": ess,
        "cpu_s": cpu,
        "compile_s": [run["compile_s"] for run in runs],
        "max_r_hat": [max(float(array_stats.rhat(run["draws"][n])) for n in names) for run in runs],
        "leapfrogs_mean": float(np.mean([np.mean(run["leapfrogs"]) for run in runs])),
        "diverging": int(sum(np.sum(run["diverging"]) for run in runs)),
        "mean": {n: float(x.mean()) for n, x in each.items()},
        "sd": {n: float(x.std()) for n, x in each.items()},
    }


def compared(problem: Problem, method: Nuts, seeds: int, plain_seeds: int, python: Path | None) -> dict:
    """Figures of all programs, called in turn."""
    calls = {"dtwin_jax": ours(problem, method)}
    if plain_seeds:
        calls["NumPyro by hand"] = plain(problem, method)
    if python is None:
        print(f"{problem.stan}: Stan left out, no --stan")
    else:
        calls["Stan"] = by_stan(problem, method, python)
    runs: dict[str, list[dict]] = {name: [] for name in calls}
    first = measured(calls["dtwin_jax"], seeds)["cpu_s"]  # compiles
    for seed in range(seeds):
        for name, draw in calls.items():
            if name == "NumPyro by hand" and seed >= plain_seeds:
                continue
            run = measured(draw, seed)
            runs[name].append({"first_cpu_s": first if name == "dtwin_jax" else run["cpu_s"]} | run)
            print(problem.stan, name, seed, round(runs[name][-1]["cpu_s"], 2), "CPU s", flush=True)
    figures = {name: summarised(found, problem.names) for name, found in runs.items()}
    judge = figures[list(figures)[-1]]
    for one in figures.values():
        one["times_stan"] = one["ess_per_cpu_s"] / judge["ess_per_cpu_s"] if "Stan" in figures else None
        apart = {n: abs(one["mean"][n] - judge["mean"][n]) / judge["sd"][n] for n in problem.names}
        one["mean_apart_in_sd"] = apart
        one["furthest_apart_in_sd"] = max(apart.values())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--problem", choices=("minimal_model", "lotka_volterra", "theophylline"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plain", type=int, default=1, help="seeds of plain NumPyro, which is slow")
    parser.add_argument("--draws", type=int, default=300, help="of each chain, and as many of warm-up")
    parser.add_argument("--stan", type=Path, help="Python of an environment with httpstan")
    parser.add_argument("--data", type=Path, default=Path("shared/data"))
    asked = parser.parse_args()
    method = Nuts(chains=CHAINS, warmup=asked.draws, draws=asked.draws)
    problems = {
        "minimal_model": glucose_problem,
        "lotka_volterra": lambda: lynx_problem(data_folder(asked.data)),
        "theophylline": theophylline_problem,
    }
    chosen = [asked.problem] if asked.problem else list(problems)
    path = FOLDER / "posterior.json"
    found = json.loads(path.read_text())["problems"] if path.exists() else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in chosen:
            found[name] = compared(problems[name](), method, asked.seeds, asked.plain, asked.stan)
            for program, one in found[name].items():
                print(name, program, {key: one[key] for key in SHOWN})
            settings = {"chains": CHAINS, "draws": asked.draws, "seeds": asked.seeds}
            write("posterior", settings | {"problems": found})


if __name__ == "__main__":
    main()
