"""Visual predictive checks: percentiles of what was measured over those of simulated patients.

Prediction-corrected, a measurement and its simulations are moved to the typical patient of their bin,

    corrected y = y * (median of typical predictions in the bin) / (typical prediction of y),

so that doses and covariates that differ within a bin do not blur it.

Source: Bergstrand et al. 2011, doi 10.1208/s12248-011-9255-z.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.plot.checks import Observed, observed
from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    BLUE,
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
    tint,
    variable,
)

PERCENTILES = (0.05, 0.5, 0.95)
BINS = 12
# A fact with more values than this parts patients at its median.
_VALUES = 6


class Simulated(NamedTuple):
    """What is compared, one element of `time` for each measurement.

    Attributes:
        time: (n,) of the measurements.
        low: (n,) the least that may have been measured: minus infinity below a limit.
        high: (n,) the most.
        drawn: (sample, n) simulated.
        typical: (n,) expected of the typical patient; NaN where that is not told.
        stratum: (n,) position in `strata`.
        strata: names of the groups of patients; one empty name where there is one.
        notes: what was left out.
    """

    time: np.ndarray
    low: np.ndarray
    high: np.ndarray
    drawn: np.ndarray
    typical: np.ndarray
    stratum: np.ndarray
    strata: list[str]
    notes: list[str]

    def at(self, rows: np.ndarray) -> "Simulated":
        """Of some of the measurements."""
        parts = {name: getattr(self, name)[rows] for name in ("time", "low", "high", "typical", "stratum")}
        return self._replace(drawn=self.drawn[:, rows], **parts)


def predictive_check(
    result: Any,
    replicates: Any,
    channel: str,
    *,
    corrected: bool = False,
    by: str | None = None,
    edges: Sequence[float] | np.ndarray | None = None,
) -> Figure:
    """Visual predictive check: percentiles of the measurements over those of simulated new patients.

    Lines are the 5, 50 and 95 % percentiles of what was measured, in bins of time whose edges are ticks at
    the top; bands hold nine tenths of the same percentiles over the simulated cohorts. Where a percentile
    lies among measurements below (or above) a limit it is not known, and the line has a gap.

    Args:
        result: of `calibrate`, or of `diagnose`.
        replicates: of `forecast_new` with the same designs; or of `diagnose`, which is both.
        channel: what was measured.
        corrected: for predictions; see above. The typical prediction is the population's where `result` is of
            `diagnose`, else the median of what is expected of new patients. What has none that is positive
            is left out.
        by: a fact known of the patients, for a panel for each of its values; patients are parted at the
            median of a fact with many.
        edges: inner edges of the bins; by default about as many measurements in each.

    Raises:
        ValueError: as `compared`; or nothing that can be corrected.
    """
    found = compared(result, replicates, channel, by=by)
    cuts = time_bins(found.time) if edges is None else np.array([-np.inf, *sorted(edges), np.inf])
    if corrected:
        found = _corrected(found, cuts)
    table = percentiles(found, cuts)
    heading = f"Predictive check{', prediction-corrected' * corrected} · {escape(channel)}"
    fig = panels(heading, list(map(escape, found.strata)), columns=2, height=340, notes=found.notes)
    if by is None:
        fig.layout.meta = {"notes": found.notes}
    fig.layout.showlegend = True
    unit = observed(result, channel).unit
    for index in range(len(found.strata)):
        _draw(fig, index, found, table.isel(stratum=index), cuts)
        title = {"text": label("time", str(result.attrs.get("time_unit", "")))}
        measure = {"text": label(f"{channel}, corrected" if corrected else channel, unit)}
        panel(fig, index, x={"title": title}, y={"title": measure, "rangemode": "tozero"})
    return fig


def compared(result: Any, replicates: Any, channel: str, *, by: str | None = None) -> Simulated:
    """The measurements and their simulations; patients and cohorts that could not be solved are left out.

    Raises:
        ValueError: simulations of another design than the measurements', or a fact that is not known.
    """
    data = observed(result, channel)
    predictions = group(replicates, "predictions")
    drawn = np.asarray(variable(predictions, channel, "predictions").transpose("sample", ...), float)
    if drawn.shape[1:] != data.value.shape:
        raise ValueError(
            f"{channel}: simulated are {drawn.shape[1:]} patients and times, measured {data.value.shape}: "
            "simulate with the same designs"
        )
    ids = patient_ids(group(result, "observed_data"))
    used = np.isfinite(data.value)
    # A patient who can never be simulated leaves both sides.
    never = np.asarray((~np.isfinite(drawn) & used).any(axis=2).all(axis=0))
    notes = [f"Left out, cannot be simulated: {', '.join(np.asarray(ids)[never])}."] if never.any() else []
    used &= ~never[:, None]
    whole = np.asarray(np.isfinite(drawn[:, used]).all(axis=1))
    if not whole.all():
        # Percentiles of the patients who are left of a cohort would be a selection.
        cohorts = counted(len(drawn), "simulated cohort")
        notes.append(f"{int((~whole).sum())} of {cohorts} left out: a patient could not be solved.")
    strata, whose = _strata(result, by)
    stratum = np.broadcast_to(whose[:, None], used.shape)[used]
    low, high = _bounds(data, used)
    typical = _typical(result, predictions, channel, whole)[used]
    return Simulated(data.time[used], low, high, drawn[whole][:, used], typical, stratum, strata, notes)


def percentiles(found: Simulated, edges: np.ndarray) -> Any:
    """The numbers of a predictive check.

    Returns:
        `xarray.Dataset` over (stratum, bin, percentile): `measured`, and `low`, `middle` and `high`, the 5,
        50 and 95 % quantiles of the percentile over simulated cohorts; over (stratum, bin): `time`, the
        median of the measurements, and `count`; `start` and `stop` of the bins. NaN: not known, or nothing
        measured.
    """
    import xarray as xr

    shape = (len(found.strata), len(edges) - 1)
    time, count = np.full(shape, np.nan), np.zeros(shape, int)
    measured = np.full((*shape, len(PERCENTILES)), np.nan)
    limits = np.full((3, *measured.shape), np.nan)
    which = np.digitize(found.time, edges) - 1
    for place in np.ndindex(shape):
        rows = (found.stratum == place[0]) & (which == place[1])
        if not rows.any():
            continue
        time[place], count[place] = np.median(found.time[rows]), rows.sum()
        measured[place] = [_percentile(found.low[rows], found.high[rows], share) for share in PERCENTILES]
        if len(found.drawn):
            each = np.quantile(found.drawn[:, rows], PERCENTILES, axis=1)
            limits[:, *place] = np.quantile(each, (0.05, 0.5, 0.95), axis=1)
    dims = ("stratum", "bin", "percentile")
    variables: dict[str, Any] = {"measured": (dims, measured)}
    variables |= {name: (dims, one) for name, one in zip(("low", "middle", "high"), limits, strict=True)}
    variables |= {"time": (dims[:2], time), "count": (dims[:2], count)}
    variables |= {"start": ("bin", edges[:-1]), "stop": ("bin", edges[1:])}
    return xr.Dataset(variables, {"stratum": found.strata, "percentile": list(PERCENTILES)})


def time_bins(time: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Edges of bins with about as many measurements each, cut where the gaps between times are wide.

    Measurements planned for one time are taken around it, so a cut by count alone would part them.
    """
    distinct, counts = np.unique(time, return_counts=True)
    bins = min(bins, len(distinct), max(1, counts.sum() // 5))
    gaps, place = np.diff(distinct), np.cumsum(counts)[:-1]
    cuts = set()
    for wanted in np.arange(1, bins) * counts.sum() / bins:
        near = np.flatnonzero(np.abs(place - wanted) <= 0.5 * counts.sum() / bins)
        near = near if len(near) else np.array([np.argmin(np.abs(place - wanted))])
        cuts.add(int(near[np.argmax(gaps[near])]))
    # A few stragglers between two wide gaps are no bin: they join their nearer neighbours.
    while cuts:
        ends = [-1, *sorted(cuts), len(distinct) - 1]
        sizes = np.diff([0, *(counts[: end + 1].sum() for end in ends[1:])])
        least = int(np.argmin(sizes))
        if sizes[least] >= 0.5 * counts.sum() / bins:
            break
        cuts.discard(min(cuts & {ends[least], ends[least + 1]}, key=lambda cut: gaps[cut]))
    inner = [(distinct[cut] + distinct[cut + 1]) / 2 for cut in sorted(cuts)]
    return np.array([-np.inf, *inner, np.inf])


def _bounds(data: Observed, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which values each measurement lies."""
    value, censor = data.value[used], data.censor[used]
    return np.where(censor < 0, -np.inf, value), np.where(censor > 0, np.inf, value)


def _strata(result: Any, by: str | None) -> tuple[list[str], np.ndarray]:
    """Names of the groups, and the group (patient,) of each patient."""
    count = len(patient_ids(group(result, "observed_data")))
    if by is None:
        return [""], np.zeros(count, int)
    known = group(result, "constant_data")
    fact = variable(known, by, "constant_data")
    value, unit = np.asarray(fact, float), str(fact.attrs.get("units", ""))
    distinct = np.unique(value)
    if len(distinct) <= _VALUES:
        return [f"{by} {label(f'{one:g}', unit)}" for one in distinct], np.searchsorted(distinct, value)
    middle = float(np.median(value))
    said = label(f"{middle:.4g}", unit)
    return [f"{by} up to {said}", f"{by} above {said}"], (value > middle).astype(int)


def _typical(result: Any, predictions: Any, channel: str, whole: np.ndarray) -> np.ndarray:
    """(patient, n) what is expected of typical patients; NaN where the trees do not say."""
    if "residuals" in result.children:
        return np.asarray(result["residuals"].dataset[f"{channel}_population"], float)
    if f"{channel}_expected" not in predictions or not whole.any():
        return np.full(predictions[channel].shape[1:], np.nan)
    expected = predictions[f"{channel}_expected"].transpose("sample", ...)
    return np.median(np.asarray(expected, float)[whole], axis=0)


def _corrected(found: Simulated, edges: np.ndarray) -> Simulated:
    """Measurements and simulations moved to the typical patient of their bin and stratum."""
    good = np.isfinite(found.typical) & (found.typical > 0)
    if not good.any():
        raise ValueError("corrected: the trees have no typical prediction that is positive")
    notes = list(found.notes)
    if not good.all():
        lost = counted(int((~good).sum()), "measurement")
        notes.append(f"{lost} left out: the typical prediction there is not positive.")
    kept = found.at(good)
    which, factor = np.digitize(kept.time, edges), np.ones(int(good.sum()))
    for place in {*zip(kept.stratum.tolist(), which.tolist(), strict=True)}:
        rows = (kept.stratum == place[0]) & (which == place[1])
        factor[rows] = np.median(kept.typical[rows]) / kept.typical[rows]
    return kept._replace(
        low=kept.low * factor, high=kept.high * factor, drawn=kept.drawn * factor, notes=notes
    )


def _percentile(low: np.ndarray, high: np.ndarray, share: float) -> float:
    """The percentile of values that lie between `low` and `high`, or NaN where these do not tell it."""
    place = share * (len(low) - 1)
    around = [int(np.floor(place)), int(np.ceil(place))]
    least, most = np.sort(low)[around], np.sort(high)[around]
    if not np.array_equal(least, most) or not np.all(np.isfinite(least)):
        return float("nan")
    return float(least[0] + (place - around[0]) * (least[1] - least[0]))


def _draw(fig: Figure, index: int, found: Simulated, table: Any, edges: np.ndarray) -> None:
    across, up = axes(index)
    there = np.asarray(table["count"]) > 0
    table = table.isel(bin=there)
    x, on = np.asarray(table["time"]), {"xaxis": across, "yaxis": up}
    if len(found.drawn):
        _simulated_bands(fig, x, table, on, first=index == 0)
    bins = [
        f"{counted(int(n), 'measurement')}, time {start:.4g} to {stop:.4g}"
        for n, start, stop in zip(table["count"], table["start"], table["stop"], strict=True)
    ]
    for i, share in enumerate(PERCENTILES):
        name, middle = f"measured {share:.0%} percentile", share == 0.5
        look = {"line": line(INK, 2.2 if middle else 1.3), "marker": {"size": 5, "color": INK}}
        words = f"%{{y:.3g}}<br>%{{text}}<extra>{name}</extra>"
        more = {"connectgaps": False, "name": name, "hovertemplate": words, "text": bins}
        y, show = np.asarray(table["measured"])[:, i], middle and index == 0
        fig.add_trace(
            graph_objects().Scatter(x=x, y=y, mode="lines+markers", showlegend=show, **look, **more, **on)
        )
    seen = (found.stratum == index) & (found.low == found.high)
    points = {"size": 3.5, "color": MUTED, "opacity": 0.55}
    more = {"mode": "markers", "name": "measurements", "hoverinfo": "skip", "marker": points}
    fig.add_trace(
        graph_objects().Scatter(x=found.time[seen], y=found.low[seen], showlegend=index == 0, **more, **on)
    )
    for edge in edges[1:-1]:
        where = {"xref": across, "yref": f"{up} domain", "x0": edge, "x1": edge, "y0": 0.975, "y1": 1.0}
        fig.add_shape(type="line", line=line(MUTED, 1), **where)


def _simulated_bands(fig: Figure, x: np.ndarray, table: Any, on: dict[str, str], *, first: bool) -> None:
    go = graph_objects()
    for i, share in enumerate(PERCENTILES):
        colour = VERMILLION if share == 0.5 else BLUE
        low, middle, high = (np.asarray(table[name])[:, i] for name in ("low", "middle", "high"))
        name = f"simulated {share:.0%} percentile"
        style = {"legendgroup": name, "hoverinfo": "skip"} | on
        outline = {"x": [*x, *x[::-1]], "y": [*low, *high[::-1]], "fillcolor": tint(colour, 0.2)}
        shade = {"fill": "toself", "mode": "none", "name": name, "showlegend": first}
        fig.add_trace(go.Scatter(**outline, **shade, **style))
        dashed = line(colour, 1, "dash")
        fig.add_trace(
            go.Scatter(x=x, y=middle, mode="lines", line=dashed, name=name, showlegend=False, **style)
        )
