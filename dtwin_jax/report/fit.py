"""The page of an estimated population: estimates, and pictures of how it fits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax import plot
from dtwin_jax.plot.patients import channels, patient_ids
from dtwin_jax.plot.theme import group
from dtwin_jax.report.described import describe
from dtwin_jax.report.drawing import Drawing, drawing, render, write_whole
from dtwin_jax.report.tables import Table, limits, significant
from dtwin_jax.report.verdicts import json_list
from dtwin_jax.twin.walk import Profile

_METHODS = {
    "fo": "First order (FO)",
    "foce": "First-order conditional (FOCE)",
    "focei": "FOCE with interaction",
    "laplace": "Laplace",
    "quadrature": "Adaptive quadrature",
    "importance": "Importance sampling",
    "saem": "SAEM, importance sampling",
}


def write_fit(
    tree: Any,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    model: Any = None,
    profiles: Sequence[Profile] = (),
) -> Path:
    """Writes the page, whole or not at all, and returns where it is.

    Args:
        tree: of `diagnose`.
        path: of the page; an old one is replaced in one step.
        title: of the page; by default the model's name.
        model: what was estimated, for a section on its equations.
        profiles: of `profile_population`, for a section of their own.
    """
    return write_whole(render_fit(tree, title=title, model=model, profiles=profiles), path)


def render_fit(
    tree: Any, *, title: str | None = None, model: Any = None, profiles: Sequence[Profile] = ()
) -> str:
    """The page as text; the arguments are those of `write_fit`."""
    names = channels(tree)
    return render(
        "fit.html.j2",
        title=title or str(tree.attrs.get("name", "model")).replace("_", " "),
        facts=_facts(tree, names),
        failed=json_list(tree, "failed"),
        patient_count=len(patient_ids(group(tree, "observed_data"))),
        unfinished="" if tree.attrs.get("converged") else str(tree.attrs.get("message", "")),
        warnings=json_list(tree, "warnings"),
        estimates=_estimates(group(tree, "estimates")),
        profiles=_profiled(tree, profiles),
        goodness=_drawn(tree, names, "goodness", plot.goodness_of_fit),
        fits=_drawn(tree, names, "fits", plot.individual_fits),
        effects=drawing("effects", plot.effects(tree), "The random effects and their normal distributions."),
        facts_effects=_by_fact(tree),
        predictive=_drawn(
            tree, names, "predictive", lambda tree, name: plot.predictive_check(tree, tree, name)
        ),
        corrected=_drawn(
            tree,
            names,
            "corrected",
            lambda tree, name: plot.predictive_check(tree, tree, name, corrected=True),
        ),
        described=None if model is None else describe(model),
    )


def _facts(tree: Any, names: list[str]) -> list[tuple[str, str, str]]:
    """The head of the page: name, value, and a remark, of each."""
    attrs, observed = tree.attrs, group(tree, "observed_data")
    count = sum(int(np.isfinite(np.asarray(observed[name], float)).sum()) for name in names)
    by, how = str(attrs.get("by", "")), ""
    if attrs.get("nodes"):
        how = f"{attrs['nodes']} nodes in each direction"
    if attrs.get("draws"):
        how = f"{attrs['draws']} draws, Monte Carlo error {attrs['monte_carlo_error']:.2g}"
    whole = f"{attrs['minus_two_log_likelihood']:.4f} with constants"
    return [
        ("Model", str(attrs.get("name", "–")).replace("_", " "), ""),
        ("Patients", f"{len(patient_ids(observed)):,}", ""),
        ("Measurements", f"{count:,}", ", ".join(name.replace("_", " ") for name in names)),
        ("Method", _METHODS.get(by, by), how),
        ("Objective", f"{attrs['objective']:.4f}", whole),
    ]


def _estimates(data: Any) -> Table:
    """Estimates with their standard errors; a dash where these are not known."""
    lines = []
    for name in map(str, data["number"].values):
        row = data.sel(number=name)
        value, error, unit = float(row["value"]), float(row["standard_error"]), str(row["unit"].values)
        share = "–" if not np.isfinite(error) or value == 0 else f"{100 * abs(error / value):.2g}%"
        lines.append((name, "" if unit == "1" else unit, significant(value, 4), significant(error), share))
    return Table(("number", "unit", "estimate", "standard error", "relative"), tuple(lines), 2)


def _profiled(tree: Any, profiles: Sequence[Profile]) -> tuple[Drawing, Table] | None:
    """The profiles, and the limits that they give."""
    if not profiles:
        return None
    data = group(tree, "estimates")
    units = dict(zip(map(str, data["number"].values), map(str, data["unit"].values), strict=True))
    says = f"Profiles of the likelihood by {', '.join(one.name for one in profiles)}."
    return drawing("profiles", plot.profile_panels(profiles, units), says), limits(profiles, units)


def _drawn(tree: Any, names: list[str], kind: str, draw: Any) -> list[tuple[str, Drawing]]:
    says = {
        "goodness": "Measurements beside predictions, and residuals.",
        "fits": "Each patient's measurements and courses.",
        "predictive": "Percentiles of the measurements over those of simulated patients.",
        "corrected": "The same, corrected for predictions.",
    }[kind]
    return [(name, drawing(f"{kind}-{i}", draw(tree, name), says)) for i, name in enumerate(names)]


def _by_fact(tree: Any) -> Drawing | None:
    try:
        fig = plot.effects_by_fact(tree)
    except ValueError:  # nothing is known that differs
        return None
    return drawing("effects-by-fact", fig, "The random effects over what is known of the patients.")
