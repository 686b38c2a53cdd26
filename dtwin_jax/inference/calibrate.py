"""Bayesian calibration: one patient, a cohort of independent patients, or a population."""

import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.compiling import compiling_seconds
from dtwin_jax.inference.density import Override
from dtwin_jax.inference.diagnostics import CalibrationWarning, faults, uninformed
from dtwin_jax.inference.independent import Independent
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import Population, check_population, density_of
from dtwin_jax.inference.predictive import constrained, evaluate, prior_draws, theta_of
from dtwin_jax.inference.result import Posterior, assemble
from dtwin_jax.inference.run import Run
from dtwin_jax.inference.svi import Svi, Variational, scaled


def calibrate(
    f: Any,
    data: Record | Cohort,
    *,
    key: Any,
    priors: Mapping[str, Override] | None = None,
    method: Nuts | Laplace | Svi = Nuts(),  # noqa: B008 (frozen)
    mesh: Any = None,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Any:
    """The posterior of parameters given data.

    Args:
        f: a predictor: every patient is calibrated alone; or a `Population` of it: all together.
        data: one record, or a cohort.
        key: random key. A patient's draws depend on the key and the patient's id, not on who else is there.
        priors: name -> `Prior`, a number (known to be that) or None (known), instead of the declared ones.
        method: `Nuts`; or, for independent patients, `Laplace`: a hundred times faster where a posterior is
            nearly normal, it checks itself patient by patient and hands the others to NUTS; or, for a
            `Population` of very many, `Svi`, which tells by a Pareto k how far it can be believed.
        mesh: a `jax.sharding.Mesh` of one axis, for a `Population`: its patients are divided among the
            devices, of this process or of several. The draws are the same up to the rounding of one sum.
        checkpoint: a folder for blocks of draws of NUTS. If it holds blocks of this very calibration (same
            model, data, settings and key), the run goes on after the last of them.
        progress: show a bar on standard error, when that is a terminal.

    Returns:
        An `xarray.DataTree` in ArviZ's schema: `posterior`, `sample_stats`, `log_likelihood`,
        `posterior_predictive`, `prior`, `observed_data`, `constant_data`. Its attribute `notes` names the
        parameters of which the data say little, as JSON; `summary` has the figure of each.

    Raises:
        ValueError: data or priors that `f` cannot use, `Laplace` for a `Population` or `Svi` for anything
            else or a mixture, or a `mesh` or a `checkpoint` that the method has no use for.
        FloatingPointError: `Svi` can take no step, however small.

    Warns:
        CalibrationWarning: R-hat, effective sample size, Pareto k, divergences or failing solves that a user
            must know of, with the parameter or patient named.
    """
    began, compiled = time.perf_counter(), compiling_seconds()
    _check_method(f, method, mesh, checkpoint)
    cohort = data if isinstance(data, Cohort) else stack({"1": data})
    predictor = f.predictor if isinstance(f, Population) else f
    check_cohort(predictor, cohort)
    if isinstance(f, Population):
        check_population(f, cohort)
    _check_precision()
    density, base = density_of(f, priors or {}, tuple(cohort.record.known))
    key_draws, key_posterior = jax.random.split(key)
    folder = None if checkpoint is None else Path(checkpoint)
    run: Any
    if isinstance(method, Svi):
        density = scaled(density)
        run = Variational(density, base, cohort, method, key_draws)
    elif isinstance(method, Laplace):
        run = Independent(density, base, cohort, method, key_draws, folder)
    else:
        run = Run(density, base, cohort, method, key_draws, folder, mesh)
    draws = run.population(progress) if isinstance(f, Population) else run.patients(progress)
    posterior = _posterior(density, base, cohort, draws, key_posterior)
    attributes = {
        "wall_seconds": time.perf_counter() - began,
        "compile_seconds": compiling_seconds() - compiled,
        "method": method.title,
        "settings": json.dumps(asdict(method)),
        "chains": posterior.chains,
        "warmup": getattr(method, "warmup", 0),
        "draws": method.draws,
        "resumed_blocks": run.resumed,
        "centring": json.dumps(None if draws[2] is None else np.asarray(draws[2]).tolist()),
        "seed": json.dumps(np.asarray(jax.random.key_data(key)).tolist()),
    }
    tree = assemble(f, density, base, cohort, posterior)
    tree.attrs |= attributes
    if isinstance(run, Variational):
        run.describe(tree)
    said = faults(tree)
    tree.attrs["warnings"] = json.dumps(said, ensure_ascii=False)
    tree.attrs["notes"] = json.dumps(uninformed(tree), ensure_ascii=False)
    for sentence in said:
        warnings.warn(sentence, CalibrationWarning, stacklevel=2)
    return tree


def _check_method(f: Any, method: Any, mesh: Any, checkpoint: Any) -> None:
    if isinstance(f, Population) and isinstance(method, Laplace):
        raise ValueError("Laplace is for patients who are independent; a Population needs method=Nuts()")
    if isinstance(method, Svi):
        if not isinstance(f, Population):
            raise ValueError("Svi is for a Population; patients who are independent need Nuts() or Laplace()")
        if f.classes > 1:
            raise ValueError("Svi has one peak for each patient, a mixture may have several: use Nuts()")
        if checkpoint is not None:
            raise ValueError("Svi keeps no blocks on disk: leave checkpoint out, or use method=Nuts()")
        if mesh is not None:
            raise ValueError("Svi looks at batches on one device: leave mesh out, or use method=Nuts()")
    if mesh is not None and not isinstance(f, Population):
        raise ValueError(
            "mesh is for a Population; patients each alone are divided by `dtwin calibrate --engine`"
        )


def _check_precision() -> None:
    if jnp.result_type(float) != jnp.float64:
        warnings.warn(
            "calibrating in float32: gradients of a solve may be too rough for NUTS; call "
            "jax.config.update('jax_enable_x64', True) at the start of the program",
            CalibrationWarning,
            stacklevel=3,
        )


def _posterior(density: Any, base: Any, cohort: Cohort, draws: tuple, key: Any) -> Posterior:
    z, stats, centring = draws
    record = jax.tree.map(jnp.asarray, cohort.record)
    values = {
        name: np.asarray(value) for name, value in constrained(density, base, record, z, centring).items()
    }
    theta = theta_of(density, values, len(cohort))
    key_predictive, key_prior = jax.random.split(key)
    likelihood, expected, predictive = evaluate(density, base, cohort, theta, key_predictive)
    prior = prior_draws(density, base, record, jax.random.split(key_prior, 1000))
    prior = {name: np.asarray(value) for name, value in prior.items() if value.ndim == 1}
    return Posterior(values, stats, likelihood, expected, predictive, prior)
