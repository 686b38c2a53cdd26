"""One HTML page that shows a calibration and its forecast, a population's fit, or a model; it opens without a
network."""

from dtwin_jax.report.card import render_card, write_card
from dtwin_jax.report.fit import render_fit, write_fit
from dtwin_jax.report.page import render_report, write_report

__all__ = ["render_card", "render_fit", "render_report", "write_card", "write_fit", "write_report"]
