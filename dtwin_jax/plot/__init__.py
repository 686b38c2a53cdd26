"""Figures of a calibration, a forecast and a planned study, for notebooks and for the report."""

from dtwin_jax.plot.checks import predictive_check, residuals
from dtwin_jax.plot.convergence import convergence
from dtwin_jax.plot.design import Course, courses, profile_panels
from dtwin_jax.plot.patients import patient_fit
from dtwin_jax.plot.posterior import pairs, posterior, summarise, variability

__all__ = [
    "Course",
    "convergence",
    "courses",
    "pairs",
    "patient_fit",
    "posterior",
    "predictive_check",
    "profile_panels",
    "residuals",
    "summarise",
    "variability",
]
