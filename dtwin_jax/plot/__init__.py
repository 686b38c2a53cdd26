"""Figures of a fit, a calibration, a forecast and a planned study, for notebooks and for the report."""

from dtwin_jax.plot.checks import residuals
from dtwin_jax.plot.convergence import convergence
from dtwin_jax.plot.design import Course, courses, profile_panels
from dtwin_jax.plot.goodness import effects, effects_by_fact, goodness_of_fit, individual_fits
from dtwin_jax.plot.influence import influence
from dtwin_jax.plot.patients import patient_fit
from dtwin_jax.plot.posterior import pairs, posterior, summarise, variability
from dtwin_jax.plot.ranks import ranks
from dtwin_jax.plot.statistics import posterior_check
from dtwin_jax.plot.vpc import predictive_check

__all__ = [
    "Course",
    "convergence",
    "courses",
    "effects",
    "effects_by_fact",
    "goodness_of_fit",
    "individual_fits",
    "influence",
    "pairs",
    "patient_fit",
    "posterior",
    "posterior_check",
    "predictive_check",
    "profile_panels",
    "ranks",
    "residuals",
    "summarise",
    "variability",
]
