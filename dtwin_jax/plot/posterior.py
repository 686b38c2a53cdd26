"""The posterior: summaries, densities beside their priors, ridges, and how patients differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.plot.theme import (
    BLUE,
    CHAINS,
    GREEN,
    INK,
    MUTED,
    VERMILLION,
    Figure,
    axes,
    counted,
    escape,
    graph_objects,
    group,
    label,
    line,
    panel,
    panels,
    sample_statistics,
    tint,
    variable,
)

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Summary:
    """One number's posterior in figures. Everything but `failed` is NaN when a draw is not finite.

    Attributes:
        name: of the variable.
        patient: whose, or None for what all patients share.
        unit: of the value.
        doc: what it is, in words.
        mean: of all draws; so are `median`, `sd`, `lower` (5 %) and `upper` (95 %).
        r_hat: rank-normalised split R-hat (Vehtari and others, 2021).
        ess_bulk: effective samples for the middle of the distribution.
        ess_tail: effective samples for its 5 % and 95 % quantiles.
        failed: number of draws that are not finite.
    """

    name: str
    patient: str | None
    unit: str
    doc: str
    mean: float
    median: float
    sd: float
    lower: float
    upper: float
    r_hat: float
    ess_bulk: float
    ess_tail: float
    failed: int


def shared_names(result: Any) -> list[str]:
    """The variables of the posterior with one number a draw: typical values, spreads, shared parameters."""
    draws = group(result, "posterior")
    return [str(name) for name in draws.data_vars if set(draws[name].dims) == {"chain", "draw"}]


def patient_names(result: Any) -> list[str]:
    """The variables of the posterior with one number a draw and patient."""
    draws = group(result, "posterior")
    return [str(name) for name in draws.data_vars if set(draws[name].dims) == {"chain", "draw", "patient"}]


def summarise(result: Any, names: Sequence[str] | None = None) -> list[Summary]:
    """Mean, quantiles and convergence of variables of the posterior.

    Args:
        result: of `calibrate`.
        names: variables; by default those with one number a draw, and all where there are none.
    """
    draws = group(result, "posterior")
    rows = []
    for name in names or shared_names(result) or patient_names(result):
        data = variable(draws, name, "posterior")
        values = np.asarray(_ordered(data), dtype=float)
        columns = values.reshape(*values.shape[:2], -1)
        owners = _owners(data, columns.shape[2])
        rows += [_summary(name, who, data.attrs, columns[:, :, i]) for i, who in enumerate(owners)]
    if "bound" in result.children:  # of `Svi`: draws are independent, and of no chain
        rows = [replace(row, r_hat=np.nan, ess_bulk=np.nan, ess_tail=np.nan) for row in rows]
    return rows


def posterior(result: Any, names: Sequence[str] | None = None) -> Figure:
    """Marginal densities: all draws filled, each chain a thin line, the prior in grey.

    A variable with a patient axis has one line a patient instead (at most twelve).
    """
    draws = group(result, "posterior")
    names = list(names or shared_names(result) or patient_names(result))
    prior = group(result, "prior") if "prior" in result.children else {}
    titles = [label(name, variable(draws, name, "posterior").attrs.get("units")) for name in names]
    fig = panels(
        "Posterior and prior", titles, columns=3, height=150, gap=(28, 66), notes=_failed_notes(draws, names)
    )
    for index, name in enumerate(names):
        before = np.asarray(prior[name], float).ravel() if name in prior else np.empty(0)
        _density_panel(fig, index, np.asarray(_ordered(draws[name]), float), before)
        panel(
            fig, index, x={"nticks": 5}, y={"showticklabels": False, "showgrid": False, "rangemode": "tozero"}
        )
    return fig


def pairs(result: Any, names: Sequence[str], patient: str | None = None) -> Figure:
    """Joint draws of each pair, and their correlation: a ridge says that the data fix a combination only.

    Positive variables are drawn as logarithms, in which most ridges are straight.

    Args:
        result: of `calibrate`.
        names: variables, two or more.
        patient: whose draws, for variables of patients; by default each patient's draws are centred at
            that patient's mean and pooled, so that differences between patients make no ridge.
    """
    columns, titles, notes, pooled = _joint(group(result, "posterior"), names, patient)
    count = len(columns)
    heading = "Pairs of parameters" + ", within patients (each centred at its mean)" * pooled
    fig = panels(heading, [""] * count**2, columns=count, height=92, gap=(14, 14), notes=notes)
    fig.layout.annotations = []
    fig.layout.meta = {"notes": notes, "minimum_width": 76 * count}
    fig.layout.margin = {"l": 16, "r": 8, "t": 70, "b": 16}
    stride = max(1, columns.shape[1] // 400)
    bare = {"showticklabels": False, "showgrid": False, "showline": True, "mirror": True}
    for row in range(count):
        for column in range(count):
            index = row * count + column
            panel(fig, index, x=bare, y=bare)
            if row == column:
                _name_cell(fig, index, titles[row])
            elif row > column:
                _scatter_cell(fig, index, columns[column, ::stride], columns[row, ::stride])
            else:
                _correlation_cell(fig, index, columns[column], columns[row])
    return fig


def variability(result: Any) -> Figure:
    """How patients differ: each patient's parameters, and the spread that the population gives them.

    Points are posterior medians, thick bars hold half of the draws, thin bars nine tenths. The line is the
    typical value, of a patient without covariate effects.
    """
    draws = group(result, "posterior")
    names = patient_names(result)
    spreads = [name for name in shared_names(result) if name.startswith("omega_")]
    if not names:
        raise ValueError(
            "the posterior has no variable with a patient axis; variability needs several patients"
        )
    titles = [label(name, draws[name].attrs.get("units")) for name in names]
    titles += ["between-patient sd (log scale)"] * bool(spreads)
    ids = [str(patient) for patient in draws["patient"].values]
    height = int(np.clip(22 * len(ids), 130, 620))
    unsolved = set(json.loads(result.attrs.get("failed") or "[]")) & set(ids)
    notes = _failed_notes(draws, names)
    notes += [f"Left out, not solved: {', '.join(who for who in ids if who in unsolved)}."] * bool(unsolved)
    fig = panels("Between patients", titles, columns=2, height=height, gap=(118, 76), notes=notes)
    for index, name in enumerate(names):
        typical = np.asarray(draws[f"{name}_pop"], float) if f"{name}_pop" in draws else None
        values = np.asarray(_ordered(draws[name]), float)
        values = np.where([who in unsolved for who in ids], np.nan, values)
        _forest_panel(fig, index, values, ids, typical)
    if spreads:
        prior = group(result, "prior") if "prior" in result.children else {}
        _spread_panel(fig, len(names), draws, prior, spreads)
    return fig


def density(values: np.ndarray, points: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Grid and kernel density of the finite values; empty where they are too few or all equal."""
    array_stats = sample_statistics()

    values = values[np.isfinite(values)]
    if len(values) < 5 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return np.empty(0), np.empty(0)
    # A positive number that comes close to zero has its density cut there; any other runs out smoothly.
    bounded = values.min() >= 0 and values.min() < 0.25 * values.std()
    limits = {"custom_lims": (0.0, float(values.max()))} if bounded else {"extend": True, "extend_fct": 0.6}
    grid, height, _ = array_stats.kde(values, grid_len=points, bound_correction=bool(bounded), **limits)
    return grid, height


def _ordered(data: Any) -> Any:
    return data.transpose("chain", "draw", ...)


def _owners(data: Any, count: int) -> list[str | None]:
    if "patient" in data.dims and data.ndim == 3:
        return [str(patient) for patient in data["patient"].values]
    return [None] * count if count == 1 else [f"[{i}]" for i in range(count)]


def _summary(name: str, patient: str | None, attrs: Any, draws: np.ndarray) -> Summary:
    array_stats = sample_statistics()
    failed = int((~np.isfinite(draws)).sum())
    unit, doc = str(attrs.get("units", "")), str(attrs.get("doc", ""))
    if failed:
        return Summary(name, patient, unit, doc, *(np.nan,) * 8, failed=failed)
    spread = float(draws.std())
    moves = spread > 1e-14 * max(abs(float(draws.mean())), 1e-300) and draws.shape[1] >= 4
    kept = {"chain_axis": 0, "draw_axis": 1}
    r_hat = float(array_stats.rhat(draws, **kept)) if moves else np.nan
    bulk = float(array_stats.ess(draws, **kept, method="bulk")) if moves else np.nan
    tail = float(array_stats.ess(draws, **kept, method="tail", prob=(0.05, 0.95))) if moves else np.nan
    lower, median, upper = (float(q) for q in np.quantile(draws, (0.05, 0.5, 0.95)))
    mean = float(draws.mean())
    return Summary(name, patient, unit, doc, mean, median, spread, lower, upper, r_hat, bulk, tail, 0)


def _failed_notes(draws: Any, names: Sequence[str]) -> list[str]:
    failed = {name: int((~np.isfinite(np.asarray(draws[name], float))).sum()) for name in names}
    bad = {name: count for name, count in failed.items() if count}
    listed = ", ".join(f"{name}: {counted(count, 'draw')}" for name, count in bad.items())
    return [f"Left out, not finite: {listed}."] if bad else []


def _density_panel(fig: Figure, index: int, draws: np.ndarray, prior: np.ndarray) -> None:
    add = _adder(fig, index)
    pooled = draws[np.isfinite(draws)]
    if len(pooled) < 5:
        return
    lower, upper = np.quantile(pooled, (0.001, 0.999))
    room = 0.75 * max(upper - lower, 1e-12)
    if len(prior):
        grid, height = density(prior, 1024)
        near = (grid > lower - 4 * room) & (grid < upper + 4 * room)
        add(
            x=grid[near],
            y=height[near],
            fill="tozeroy",
            fillcolor=tint(MUTED, 0.18),
            line=line(MUTED, 1),
            name="prior",
        )
        low, high = np.quantile(prior[np.isfinite(prior)], (0.02, 0.98))
        lower, upper = max(min(lower, low), lower - 2 * room), min(max(upper, high), upper + 2 * room)
    panel(fig, index, x={"range": [lower - 0.1 * room, upper + 0.1 * room]})
    several = draws.ndim == 3 and draws.shape[2] > 1
    if not several:
        grid, height = density(pooled)
        add(
            x=grid,
            y=height,
            fill="tozeroy",
            fillcolor=tint(BLUE, 0.25),
            line=line(BLUE, 2),
            name="all chains",
        )
    parts = [draws[..., i] for i in range(min(12, draws.shape[2]))] if several else list(draws)
    for number, part in enumerate(parts):
        grid, height = density(np.ravel(part))
        name = f"patient {number + 1}" if several else f"chain {number}"
        add(x=grid, y=height, line=line(CHAINS[number % len(CHAINS)], 1), opacity=0.8, name=name)


def _adder(fig: Figure, index: int) -> Any:
    """A function that adds a line, or markers, to panel `index`."""
    across, up = axes(index)

    def add(**properties: Any) -> None:
        settings = {"mode": "lines", "hoverinfo": "name+x", "xaxis": across, "yaxis": up} | properties
        fig.add_trace(graph_objects().Scatter(**settings))

    return add


class _Joint(NamedTuple):
    columns: np.ndarray
    titles: list[str]
    notes: list[str]
    pooled: bool


def _joint(draws: Any, names: Sequence[str], patient: str | None) -> "_Joint":
    columns, titles, pooled = [], [], False
    data = [_ordered(variable(draws, name, "posterior")) for name in names]
    if patient is not None:
        data = [part.sel(patient=patient) if "patient" in part.dims else part for part in data]
    width = max(part.sizes.get("patient", 1) for part in data)
    for name, part in zip(names, data, strict=True):
        values = np.asarray(part, float)
        positive = bool((values[np.isfinite(values)] > 0).all())
        values = np.log(np.where(values > 0, values, np.nan)) if positive else values
        if values.ndim == 3 and width > 1:
            pooled, values = True, values - values.mean(axis=(0, 1))
        values = values if values.ndim == 3 else values[..., None]
        columns.append(np.broadcast_to(values, (*values.shape[:2], width)).ravel())
        titles.append(f"log {escape(name)}" if positive else escape(name))
    table = np.stack(columns)
    lost = int((~(finite := np.isfinite(table).all(axis=0))).sum())
    notes = [f"{counted(lost, 'draw')} left out, not finite."] if lost else []
    return _Joint(table[:, finite], titles, notes, pooled)


def _name_cell(fig: Figure, index: int, title: str) -> None:
    _cell_text(fig, index, f"<b>{title}</b>".replace(" ", "<br>"), INK)


def _cell_text(fig: Figure, index: int, text: str, colour: str) -> None:
    across, up = axes(index)
    where = {"xref": f"{across} domain", "yref": f"{up} domain", "x": 0.5, "y": 0.5, "showarrow": False}
    fig.add_annotation(text=text, font={"size": 11, "color": colour}, **where)
    fig.add_trace(graph_objects().Scatter(x=[None], y=[None], xaxis=across, yaxis=up, hoverinfo="skip"))


def _scatter_cell(fig: Figure, index: int, x: np.ndarray, y: np.ndarray) -> None:
    marker = {"size": 3, "color": BLUE, "opacity": 0.4}
    _adder(fig, index)(x=x, y=y, mode="markers", marker=marker, hoverinfo="skip")


def _correlation_cell(fig: Figure, index: int, x: np.ndarray, y: np.ndarray) -> None:
    across, up = axes(index)
    moves = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    r = float(np.corrcoef(x, y)[0, 1]) if moves else np.nan
    if np.isfinite(r):
        colour = tint(BLUE if r > 0 else VERMILLION, min(0.75, abs(r) ** 1.5))
        where = {"xref": f"{across} domain", "yref": f"{up} domain"}
        fig.add_shape(type="rect", x0=0, x1=1, y0=0, y1=1, line={"width": 0}, fillcolor=colour, **where)
    _cell_text(fig, index, f"{r:+.2f}".replace("-", "−") if np.isfinite(r) else "–", INK)


def _forest_panel(
    fig: Figure, index: int, draws: np.ndarray, ids: list[str], typical: np.ndarray | None
) -> None:
    good = np.isfinite(draws).all(axis=(0, 1))
    limits = np.full((5, len(ids)), np.nan)
    if good.any():
        limits[:, good] = np.quantile(draws[:, :, good], LEVELS, axis=(0, 1))
    many = len(ids) > 30
    order = np.argsort(limits[2]) if many else np.arange(len(ids))[::-1]
    if typical is not None and np.isfinite(typical).all():
        _typical_line(fig, index, typical)
    names, colour = [escape(ids[i]) for i in order], GREEN if many else BLUE
    _add_forest(fig, index, limits[:, order], np.arange(len(ids)), names, colour)
    ticks = {"tickvals": [], "title": {"text": "patients, by median"}} if many else _tick_names(ids, order)
    bounds = [] if typical is None else np.quantile(typical[np.isfinite(typical)], (0.05, 0.95))
    inside = np.concatenate([limits[np.isfinite(limits)], bounds])
    x = {"nticks": 6} | ({"range": _padded(inside)} if len(inside) else {})
    panel(fig, index, x=x, y={"range": [-0.7, len(ids) - 0.3], "showgrid": False} | ticks)


def _padded(x: np.ndarray) -> list[float]:
    room = 0.06 * max(float(np.ptp(x)), 1e-12)
    return [float(x.min()) - room, float(x.max()) + room]


def _tick_names(ids: Sequence[str], order: np.ndarray) -> dict[str, Any]:
    short = (ids[i] if len(ids[i]) <= 16 else f"{ids[i][:15]}…" for i in order)
    return {"tickvals": list(range(len(ids))), "ticktext": [escape(name) for name in short]}


def _add_forest(
    fig: Figure, index: int, limits: np.ndarray, rows: np.ndarray, names: list[str], colour: str
) -> None:
    add = _adder(fig, index)
    for low, high, width in ((0, 4, 1.5), (1, 3, 4)):
        x = np.column_stack([limits[low], limits[high], np.full(len(rows), np.nan)]).ravel()
        add(x=x, y=np.repeat(rows, 3), line=line(tint(colour, 0.55), width), hoverinfo="skip")
    words = "%{text}: %{x:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra></extra>"
    marker = {"size": 6, "color": colour}
    more = {"text": names, "customdata": limits[[0, 4]].T, "hovertemplate": words}
    add(x=limits[2], y=rows, mode="markers", marker=marker, hoverinfo=None, **more)


def _typical_line(fig: Figure, index: int, typical: np.ndarray) -> None:
    across, up = axes(index)
    low, middle, high = np.quantile(typical, (0.05, 0.5, 0.95))
    where = {"xref": across, "yref": f"{up} domain", "y0": 0, "y1": 1, "layer": "below"}
    fig.add_shape(type="rect", x0=low, x1=high, line={"width": 0}, fillcolor=tint(MUTED, 0.16), **where)
    fig.add_shape(type="line", x0=middle, x1=middle, line=line(MUTED, 1.5), **where)


def _spread_panel(fig: Figure, index: int, draws: Any, prior: Any, names: list[str]) -> None:
    rows = np.arange(len(names))[::-1]
    for data, shift, colour in ((prior, 0.28, MUTED), (draws, 0.0, BLUE)):
        limits = np.full((5, len(names)), np.nan)
        for column, name in enumerate(names):
            values = np.asarray(data[name], float).ravel() if name in data else np.empty(0)
            if len(values) and np.isfinite(values).all():
                limits[:, column] = np.quantile(values, LEVELS)
        labels = [f"{escape(name)}, {'prior' if colour == MUTED else 'posterior'}" for name in names]
        _add_forest(fig, index, limits, rows + shift, labels, colour)
    y = {"range": [-0.7, len(names) - 0.3], "showgrid": False, "tickvals": list(rows)}
    y["ticktext"] = [escape(name.removeprefix("omega_")) for name in names]
    panel(fig, index, x={"rangemode": "tozero"}, y=y)
