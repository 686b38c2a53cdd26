"""Digital twins of patients in JAX: mechanistic models, Bayesian calibration, forecasts.

The names below are the public interface; models are in `dtwin_jax.models`. They are imported when first
used, so that a command can set its environment (precision, compilation cache) before JAX is loaded.
"""

import importlib
from typing import Any

_HOME = {
    "core.prior": ("Prior", "beta", "gamma", "halfnormal", "lognormal", "normal", "uniform"),
    "core.quantity": ("assign", "param", "quantities", "var"),
    "core.signal": (
        "Doses",
        "Input",
        "Sampled",
        "Steps",
        "as_modelled",
        "delay",
        "infuse",
        "scale",
        "value_at",
    ),
    "core.types": ("Scalar", "Vector"),
    "core.occasions": ("with_occasions",),
    "core.record": ("Cohort", "Record", "Series", "buckets", "scenario", "stack"),
    "core.predictor": ("Predictor", "log_likelihood"),
    "dynamics.autocorrelated": ("autocorrelated",),
    "dynamics.check": ("check_model",),
    "dynamics.couple": ("couple",),
    "dynamics.hybrid": ("hybrid", "informed", "with_prior", "with_weights"),
    "dynamics.logarithmic": ("log_states",),
    "dynamics.model": ("Model",),
    "dynamics.modelled": ("with_modelled",),
    "dynamics.filtering.kalman": ("ExtendedKalman", "Kalman", "UnscentedKalman"),
    "dynamics.filtering.run": ("estimate_states",),
    "dynamics.filtering.swarm": ("EnsembleKalman", "ParticleFilter"),
    "dynamics.ensemble": ("simulate_cohort",),
    "dynamics.linear": ("LinearFlow",),
    "dynamics.periodic": ("periodic",),
    "dynamics.region": ("RegionWarning", "ResidualSize", "region_of", "residual_share"),
    "dynamics.simulate": ("Trajectory", "simulate"),
    "dynamics.solver": ("Outcome", "Solver"),
    "inference.calibrate": ("calibrate",),
    "inference.diagnostics": ("CalibrationWarning", "summary"),
    "inference.ensemble": ("ensemble_forecast", "train_ensemble"),
    "inference.doubts": ("EstimationWarning",),
    "inference.estimate": ("Estimate", "estimate"),
    "inference.fit": ("Fit", "fit"),
    "inference.laplace": ("Laplace",),
    "inference.loo": ("leave_one_out",),
    "inference.mixture": ("Mixture",),
    "inference.nuts": ("Nuts",),
    "inference.occasions": ("Occasions",),
    "inference.population": ("Covariate", "Population"),
    "inference.refit": ("simulation_based_calibration",),
    "inference.result": ("load", "save"),
    "inference.svi": ("Svi",),
    "inference.train": ("train",),
    "io.table": ("read_table",),
    "jobs.opened": ("open_results",),
    "neural.forecaster": ("EventForecaster", "until_event"),
    "neural.residual": ("Perceptron", "positive", "transfer"),
    "neural.sequence": ("visit_times",),
    "twin.bootstrap": ("bootstrap",),
    "twin.resampled": ("Resampled",),
    "twin.sir": ("sir",),
    "twin.assess": ("leave_last_out", "score"),
    "twin.exported": ("exported",),
    "twin.forecast": ("forecast", "forecast_new", "observed_period", "observed_times"),
    "twin.live": ("Live", "assimilate", "forecast_live", "live", "live_from_prior", "parameters_of"),
    "twin.doses": ("to_target",),
    "twin.states": ("states_of",),
    "twin.loop": ("Twins", "closed_loop"),
    "twin.virtual": ("fit_joint", "virtual_population"),
    "twin.identify": ("Information", "fisher_information"),
    "twin.diagnose": ("diagnose",),
    "twin.population_profile": ("profile_population",),
    "twin.profile": ("Profile", "profile"),
    "twin.structure": ("Structure", "structural_rank"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # noqa: PLE0605 (a list, computed)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'dtwin_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dtwin_jax.{_MODULE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "models"]
