"""The page: its figures, and the file."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax import plot
from dtwin_jax.inference.loo import FEWEST, leave_one_out
from dtwin_jax.plot.checks import quantile_residuals
from dtwin_jax.plot.patients import channels, measured, patient_ids
from dtwin_jax.plot.posterior import patient_names, shared_names, summarise
from dtwin_jax.plot.theme import counted, group, label
from dtwin_jax.report import tables
from dtwin_jax.report.described import describe
from dtwin_jax.report.drawing import Drawing, drawing, embed, render, write_whole
from dtwin_jax.report.verdicts import failed_patients, fit_checks, json_list, overall, sampler_checks

SHOWN = 60
PAIRED = 6


@dataclass(frozen=True)
class PatientCard:
    """One patient on the page: heading, facts, and a figure a channel."""

    name: str
    facts: str
    failed: bool
    drawings: tuple[Drawing, ...]


def write_report(
    result: Any,
    path: str | os.PathLike[str],
    *,
    curves: Any,
    forecast: Any = None,
    replicates: Any = None,
    scores: Any = None,
    title: str | None = None,
    model: Any = None,
) -> Path:
    """Writes the page, whole or not at all, and returns where it is.

    Args:
        result: of `calibrate`.
        path: of the page; an old one is replaced in one step.
        curves: of `forecast`, over the observed period on a fine grid.
        forecast: of `forecast`, under the plan.
        replicates: new patients simulated with the same designs, for the visual predictive check.
        scores: of held-out measurements: `crps`, `log_score`, `coverage_50`, `coverage_90` and `n` a channel.
        title: of the page; by default the model's name.
        model: what was calibrated, for a section on its equations.
    """
    page = render_report(
        result,
        curves=curves,
        forecast=forecast,
        replicates=replicates,
        scores=scores,
        title=title,
        model=model,
    )
    return write_whole(page, path)


def render_report(
    result: Any,
    *,
    curves: Any,
    forecast: Any = None,
    replicates: Any = None,
    scores: Any = None,
    title: str | None = None,
    model: Any = None,
) -> str:
    """The page as text; the arguments are those of `write_report`."""
    ids = patient_ids(group(result, "observed_data"))
    summaries = summarise(result, shared_names(result) + patient_names(result))
    shared = [row for row in summaries if row.patient is None]
    whose = set(ids[:SHOWN])
    rows = shared or [row for row in summaries if row.patient in whose]
    failed = failed_patients(result, curves)
    checks = [*sampler_checks(result, summaries), *fit_checks(result, failed, len(ids))]
    return render(
        "page.html.j2",
        title=title or str(result.attrs.get("name", "model")).replace("_", " "),
        scales=embed(json.dumps(_scales(result, curves, forecast, ids[:SHOWN]))),
        facts=tables.facts(result, ids),
        checks=checks,
        overall=overall(checks),
        warnings=json_list(result, "warnings") + json_list(result, "notes"),
        failed=failed,
        patients=[_card(result, curves, forecast, i, who in failed) for i, who in enumerate(ids[:SHOWN])],
        patient_count=len(ids),
        has_forecast=forecast is not None,
        estimates=tables.estimates(rows),
        posterior=drawing("posterior", plot.posterior(result), "Densities of the posterior and the prior."),
        pairs=_pairs(result),
        variability=_variability(result),
        spreads=tables.spreads(result, shared),
        convergence=drawing("convergence", plot.convergence(result), "Rank plots of the chains."),
        diagnostics=tables.diagnostics(summaries),
        residuals=_residuals(result),
        statistics=_statistics(result),
        left_out=_left_out(result),
        predictive=_predictive(result, replicates),
        scores=tables.score_table(scores),
        provenance=tables.provenance(result),
        priors=tables.priors(result),
        described=None if model is None else describe(model),
    )


def _card(result: Any, curves: Any, forecast: Any, index: int, failed: bool) -> PatientCard:
    observed = group(result, "observed_data")
    patient, drawings = patient_ids(observed)[index], []
    for number, channel in enumerate(channels(result)):
        fig = plot.patient_fit(result, curves, patient, channel, forecast)
        fig.layout.showlegend = False
        fig.layout.height = 260
        fig.layout.margin.update(l=34, r=8, b=40)
        fig.layout.yaxis.title = None
        fig.layout.xaxis.title.standoff = 2
        says = f"{channel} of patient {patient}: measurements, fit and forecast."
        heading = label(channel, observed[channel].attrs.get("units"), escaped=False)
        drawings.append(drawing(f"patient-{index}-{number}", fig, says, channel=number, heading=heading))
    found = [measured(result, patient, channel) for channel in channels(result)]
    facts = [counted(sum(len(data.time) for data in found), "measurement")]
    limited = sum(int((data.censor != 0).sum()) for data in found)
    facts += [f"{limited} at a limit"] * bool(limited) + tables.covariates(result, patient)
    return PatientCard(patient, " · ".join(facts), failed, tuple(drawings))


def _scales(result: Any, curves: Any, forecast: Any, ids: Sequence[str]) -> list[dict[str, list[float]]]:
    """For each channel, the ranges of time and value that hold all patients shown."""
    out = []
    for channel in channels(result):
        found = [measured(result, patient, channel) for patient in ids]
        times, values = [data.time for data in found], [data.value for data in found]
        for tree in (curves, forecast):
            data = {} if tree is None else group(tree, "predictions")
            if channel in data:
                times.append(np.asarray(data[f"{channel}_time"], float).ravel())
                drawn = np.asarray(data[channel].transpose("sample", "patient", ...), float)
                some = np.isfinite(drawn).any(axis=0)
                values.append(np.nanquantile(drawn[:, some], (0.05, 0.95), axis=0).ravel())
        time, value = (np.concatenate(part) for part in (times, values))
        time, value = time[np.isfinite(time)], value[np.isfinite(value)]
        if len(time) and len(value):
            positive = value[value > 0]
            top = float(np.quantile(value, 0.999)) if len(ids) > 20 else float(value.max())
            out.append(
                {
                    "x": [float(time.min()), float(time.max())],
                    "y": [min(0.0, float(value.min())), 1.06 * top],
                    "least": [float(positive.min())] if len(positive) else [],
                }
            )
        else:
            out.append({"x": [], "y": [], "least": []})
    return out


def _pairs(result: Any) -> list[tuple[str, Drawing]]:
    out = []
    for title, names in (("Population", shared_names(result)), ("Within patients", patient_names(result))):
        if len(names) > 1:
            fig = plot.pairs(result, _tightest(result, names))
            says = f"{title}: pairs of parameters and their correlations."
            out.append((title, drawing(f"pairs-{len(out)}", fig, says)))
    return out


def _tightest(result: Any, names: Sequence[str]) -> list[str]:
    """The variables with the strongest correlations, at most `PAIRED`, in their order."""
    if len(names) <= PAIRED:
        return list(names)
    draws = group(result, "posterior")
    values = [np.asarray(draws[name].transpose("chain", "draw", ...), float) for name in names]
    table = np.stack([(part - part.mean(axis=(0, 1))).ravel() for part in values])
    usable = np.isfinite(table).all(axis=1) & (np.ptp(np.nan_to_num(table), axis=1) > 0)
    strength = np.full(len(names), -1.0)
    matrix = np.atleast_2d(np.corrcoef(table[usable]))
    strength[usable] = np.max(np.abs(matrix - np.eye(len(matrix))), axis=1)
    chosen = np.sort(np.argsort(-strength, kind="stable")[:PAIRED])
    return [str(names[i]) for i in chosen]


def _variability(result: Any) -> Drawing | None:
    several = patient_names(result) and group(result, "posterior").sizes.get("patient", 1) > 1
    says = "Each patient's parameters and the spread between patients."
    return drawing("variability", plot.variability(result), says) if several else None


def _residuals(result: Any) -> list[tuple[str, Drawing]]:
    predictive = group(result, "posterior_predictive") if "posterior_predictive" in result.children else {}
    names = [name for name in channels(result) if name in predictive]
    says = "Observed against predicted, and residuals."
    return [
        (name, drawing(f"residuals-{i}", plot.residuals(result, name), says)) for i, name in enumerate(names)
    ]


def _statistics(result: Any) -> list[tuple[str, Drawing]]:
    """Posterior predictive checks of the channels of which a measurement is left."""
    predictive = group(result, "posterior_predictive") if "posterior_predictive" in result.children else {}
    says, out = "Statistics of the measurements among those of data drawn from the posterior.", []
    for name in (name for name in channels(result) if name in predictive):
        if len(quantile_residuals(result, name).z):
            fig = plot.posterior_check(result, name)
            out.append((name, drawing(f"statistics-{len(out)}", fig, says)))
    return out


def _left_out(result: Any) -> tuple[tables.Table, list[tuple[str, Drawing]]] | None:
    """Leave-one-out densities and their figures; None where the draws do not tell."""
    likelihood = group(result, "log_likelihood") if "log_likelihood" in result.children else None
    if likelihood is None or likelihood.sizes["chain"] * likelihood.sizes["draw"] < FEWEST:
        return None
    found = leave_one_out(result)
    if not found.attrs["n"]:
        return None
    says = "Pareto k and log predictive density of every measurement."
    figures = [
        (name, drawing(f"influence-{i}", plot.influence(result, found, name), says))
        for i, name in enumerate(channels(result))
        if f"{name}_elpd" in found
    ]
    return tables.left_out(found), figures


def _predictive(result: Any, replicates: Any) -> list[tuple[str, Drawing]]:
    simulated = {} if replicates is None else group(replicates, "predictions")
    out = []
    for name in (name for name in channels(result) if name in simulated):
        fig = plot.predictive_check(result, replicates, name)
        says = "Percentiles of the measurements over those of simulated patients."
        out.append((name, drawing(f"predictive-{len(out)}", fig, says)))
    return out
