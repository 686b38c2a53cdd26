"""Figures of a calibration and a forecast, for notebooks and for the report."""

from dtwin_jax.plot.checks import predictive_check, residuals
from dtwin_jax.plot.convergence import convergence
from dtwin_jax.plot.patients import patient_fit
from dtwin_jax.plot.posterior import pairs, posterior, summarise, variability

__all__ = [
    "convergence",
    "pairs",
    "patient_fit",
    "posterior",
    "predictive_check",
    "residuals",
    "summarise",
    "variability",
]
