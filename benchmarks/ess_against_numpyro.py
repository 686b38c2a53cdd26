"""Theophylline, 12 patients: `calibrate` against the same model written by hand in NumPyro.

    python benchmarks/ess_against_numpyro.py [--rounds 2] [--draws 1000]

Same priors, data, chains, warm-up, draws and target acceptance; NumPyro with its closed-form likelihood and
vectorised chains, centred and non-centred, started at the prior's median (and once as NumPyro starts by
default); ours centred, and with the centring that its warm-up finds.
Also the cost of one gradient of the log density of both.
"""

import argparse
import warnings
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from arviz_stats.base import array_stats
from numpyro.infer import MCMC, NUTS, init_to_median, init_to_uniform
from numpyro.infer.util import potential_energy
from setting import against, interleaved, timed, write

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import stack
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.scatter import EFFECTS
from dtwin_jax.io.table import read_table
from dtwin_jax.models import one_compartment

VARY = ("ka", "CL", "V")
MEDIAN = {"ka": 1.5, "CL": 3.0, "V": 30.0}
PRIORS = {name: lognormal(median, log_sd=1.0) for name, median in MEDIAN.items()}
PRIORS |= {"sd": lognormal(0.7, log_sd=1.0), "cv": 0.0}
SITES = ("ka_pop", "CL_pop", "V_pop", "sd", "omega_ka", "omega_CL", "omega_V")


def by_hand(centred: bool, dose: Any, time: Any, value: Any, mask: Any) -> None:
    """The model as a NumPyro user writes it."""
    log_typical = jnp.log(
        jnp.stack([numpyro.sample(f"{n}_pop", dist.LogNormal(jnp.log(MEDIAN[n]), 1.0)) for n in VARY])
    )
    sd = numpyro.sample("sd", dist.LogNormal(jnp.log(0.7), 1.0))
    omega = jnp.stack([numpyro.sample(f"omega_{n}", dist.HalfNormal(0.5)) for n in VARY])
    shape = (dose.shape[0], len(VARY))
    if centred:
        scatter = dist.Normal(jnp.broadcast_to(log_typical, shape), omega)
        log_own = numpyro.sample("individual", scatter.to_event(2))
    else:
        eta = numpyro.sample("eta", dist.Normal(jnp.zeros(shape), 1.0).to_event(2))
        log_own = log_typical + omega * eta
    ka, cl, v = jnp.exp(log_own).T[:, :, None]
    k = cl / v
    expected = dose[:, None] * ka / (v * (ka - k)) * (jnp.exp(-k * time) - jnp.exp(-ka * time))
    numpyro.sample("obs", dist.Normal(expected, sd).mask(mask), obs=value)


def sampler(centred: bool, start: Any, arguments: tuple, method: Nuts) -> Any:
    """`draw(seed)` by NumPyro, started by `start`; one MCMC object, as it comes, for all calls."""

    def model(*data: Any) -> None:
        by_hand(centred, *data)

    kernel = NUTS(
        model,
        target_accept_prob=method.target_accept,
        max_tree_depth=method.max_depth,
        init_strategy=start,
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
        mcmc.run(jax.random.key(seed), *arguments, extra_fields=("num_steps", "diverging"))
        found = mcmc.get_samples(group_by_chain=True)
        return {name: found[name] for name in SITES} | mcmc.get_extra_fields(group_by_chain=True)

    return draw


def ours(centred: bool | None, cohort: Any, method: Nuts) -> Any:
    """`draw(seed)` by `calibrate`, with all that it returns besides draws."""
    population = Population(one_compartment, vary=VARY, centred=centred)

    def draw(seed: int) -> dict[str, Any]:
        tree = calibrate(
            population, cohort, key=jax.random.key(seed), priors=PRIORS, method=method, progress=False
        )
        stats = {"num_steps": tree["sample_stats"]["n_steps"], "diverging": tree["sample_stats"]["diverging"]}
        found = {name: tree["posterior"][name] for name in SITES} | stats
        return {name: value.values for name, value in found.items()}

    return draw


def summarised(draws: list[dict], times: list[Any]) -> dict[str, Any]:
    """ESS, R-hat and seconds: the first call apart, then means over the later ones."""
    ess = [min(float(array_stats.ess(np.asarray(d[name]))) for name in SITES) for d in draws[1:]]
    r_hat = [max(float(array_stats.rhat(np.asarray(d[name]))) for name in SITES) for d in draws[1:]]
    wall, cpu = ([getattr(t, kind) for t in times[1:]] for kind in ("wall", "cpu"))
    return {
        "first_call_s": times[0].wall,
        "first_call_cpu_s": times[0].cpu,
        "later_call_s": float(np.mean(wall)),
        "later_call_cpu_s": float(np.mean(cpu)),
        "min_bulk_ess": float(np.mean(ess)),
        "max_r_hat": max(r_hat),
        "ess_per_s": float(np.sum(ess) / np.sum(wall)),
        "ess_per_cpu_s": float(np.sum(ess) / np.sum(cpu)),
        "leapfrogs_mean": float(np.mean([np.mean(d["num_steps"]) for d in draws[1:]])),
        "diverging": int(np.sum([np.sum(d["diverging"]) for d in draws[1:]])),
        "posterior_mean": {name: float(np.mean([np.mean(d[name]) for d in draws[1:]])) for name in SITES},
    }


def points(count: int) -> dict[str, Any]:
    """Plausible points of the unbounded space, one a chain."""
    rng = np.random.default_rng(0)
    centre = {"ka_pop": 0.4, "CL_pop": 1.0, "V_pop": 3.4, "sd": -0.3}
    centre |= {"omega_ka": -0.7, "omega_CL": -1.2, "omega_V": -1.5}
    z = {name: jnp.asarray(rng.normal(value, 0.1, size=count)) for name, value in centre.items()}
    return z | {"individual": jnp.asarray(rng.normal([0.4, 1.0, 3.4], 0.3, size=(count, 12, 3)))}


def gradients(density: Any, base: Any, record: Any, arguments: tuple, rounds: int) -> dict[str, Any]:
    """Microseconds of one gradient a chain, many in one compiled loop, so that no dispatch is counted."""

    def repeated(energy: Any, z: Any, count: int) -> Any:
        gradient = jax.vmap(jax.grad(energy))

        @jax.jit
        @standard_promotion
        def loop(z):
            move = lambda z, _: (jax.tree.map(lambda a, b: a - 1e-9 * b, z, gradient(z)), None)  # noqa: E731
            return jax.lax.scan(move, z, None, length=count)[0]

        return lambda: loop(z)

    def ours(z: dict) -> Any:
        # The same site under another name: fully centred, effects are the individual parameters.
        named = {EFFECTS if name == "individual" else name: value for name, value in z.items()}
        return potential_energy(density, (base, record), {}, named)

    energies = {
        "dtwin_jax": ours,
        "by hand": lambda z: potential_energy(by_hand, (True, *arguments), {}, z),
    }
    found = {}
    for chains, count in ((1, 1000), (4, 500), (64, 50)):
        calls = {name: repeated(energy, points(chains), count) for name, energy in energies.items()}
        figures = against(interleaved(calls, rounds, 1), "by hand")
        found[f"{chains} chains"] = {
            name: one
            | {"us": one["run_s"] / count / chains * 1e6, "cpu_us": one["run_cpu_s"] / count / chains * 1e6}
            for name, one in figures.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--draws", type=int, default=1000)
    chosen = parser.parse_args()
    path = resources.files("dtwin_jax") / "data" / "theoph.csv"
    cohort = stack(read_table(str(path), one_compartment, covariates={"weight": "kg"}))
    record = jax.tree.map(jnp.asarray, cohort.record)
    series = record.observations["concentration"]
    arguments = (record.inputs.oral.amount.sum(axis=1), series.time, series.value, series.mask)
    method = Nuts(warmup=chosen.draws, draws=chosen.draws)
    population = Population(one_compartment, vary=VARY, centred=True)
    density, base = density_of(population, PRIORS, tuple(cohort.record.known))
    gradient = gradients(density, base, record, arguments, rounds=9)
    for chains, each in gradient.items():
        print(chains, {name: round(one["cpu_us"], 2) for name, one in each.items()}, flush=True)
    candidates = {
        "dtwin_jax, centred": ours(True, cohort, method),
        "NumPyro by hand, centred": sampler(True, init_to_median, arguments, method),
        "dtwin_jax, as it comes": ours(None, cohort, method),
        "NumPyro by hand, non-centred": sampler(False, init_to_median, arguments, method),
        "NumPyro by hand, centred, default start": sampler(True, init_to_uniform, arguments, method),
    }
    runs: dict[str, list] = {name: [] for name in candidates}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        for seed in range(chosen.rounds + 1):
            for name, draw in candidates.items():
                runs[name].append(timed(draw, seed))
                print(name, seed, runs[name][-1][1], flush=True)
    figures = {name: summarised(*map(list, zip(*found, strict=True))) for name, found in runs.items()}
    write(
        "ess_against_numpyro",
        {
            "chains": method.chains,
            "warmup": method.warmup,
            "draws": method.draws,
            "rounds": chosen.rounds,
            "calls": figures,
            "gradient": gradient,
        },
    )
    for name, one in figures.items():
        print(name, {key: round(value, 3) for key, value in one.items() if not isinstance(value, dict)})


if __name__ == "__main__":
    main()
