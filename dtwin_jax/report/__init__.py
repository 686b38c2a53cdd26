"""One HTML page that shows a calibration and its forecast; it opens without a network."""

from dtwin_jax.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
