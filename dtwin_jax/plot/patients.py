"""One patient: the measurements, the fit to them, the forecast, and what was given."""

from typing import Any, NamedTuple

import numpy as np

from dtwin_jax.plot.theme import (
    BLUE,
    INK,
    MUTED,
    PAPER,
    VERMILLION,
    Band,
    Figure,
    band,
    blank,
    counted,
    escape,
    graph_objects,
    group,
    label,
    line,
    tint,
    variable,
)


class Measured(NamedTuple):
    """The measurements of one channel of one patient, padding left out.

    Attributes:
        time: when.
        value: measured, or the limit where `censor` is not 0.
        censor: -1 below the value, 0 seen, +1 above it.
    """

    time: np.ndarray
    value: np.ndarray
    censor: np.ndarray


class Given(NamedTuple):
    """One input of one patient: doses, or a sampled course.

    Attributes:
        name: of the input.
        time: of each dose or sample.
        amount: of each dose, or value of each sample.
        duration: of each dose, 0 for a bolus; None for a sampled course.
        unit: of `amount`.
    """

    name: str
    time: np.ndarray
    amount: np.ndarray
    duration: np.ndarray | None
    unit: str


def patient_ids(data: Any) -> list[str]:
    """The patients of a dataset, in order."""
    return [str(patient) for patient in data["patient"].values] if "patient" in data.coords else []


def channels(result: Any) -> list[str]:
    """The channels that were measured."""
    observed = group(result, "observed_data")
    return [str(name) for name in observed.data_vars if f"{name}_time" in observed]


def measured(result: Any, patient: str, channel: str) -> Measured:
    """The measurements of `channel` in `patient`."""
    observed = group(result, "observed_data")
    row = _position(observed, patient)
    value = np.asarray(variable(observed, channel, "observed_data")[row], dtype=float)
    time = np.asarray(variable(observed, f"{channel}_time", "observed_data")[row], dtype=float)
    name = f"{channel}_censor"
    censor = np.asarray(observed[name][row]) if name in observed else np.zeros(value.shape, int)
    seen = np.isfinite(value) & np.isfinite(time)
    return Measured(time[seen], value[seen], censor[seen])


def given(tree: Any, patient: str) -> list[Given]:
    """What the patient was given, or is to be given: the inputs that are not empty."""
    if "constant_data" not in tree.children:
        return []
    known = group(tree, "constant_data")
    if patient not in patient_ids(known):
        return []
    row, out = _position(known, patient), []
    for name in (str(key).removesuffix("_time") for key in known.variables if str(key).endswith("_time")):
        amount = next((known[key] for key in (f"{name}_amount", f"{name}_value") if key in known), None)
        if amount is None:
            continue
        time, size = np.asarray(known[f"{name}_time"][row], float), np.asarray(amount[row], float)
        doses = f"{name}_amount" in known
        kept = np.isfinite(time) & np.isfinite(size) & ((size != 0) | (not doses))
        lasting = (
            np.asarray(known[f"{name}_duration"][row], float) if f"{name}_duration" in known else 0 * time
        )
        if kept.any() and size[kept].any():
            unit = str(amount.attrs.get("units", ""))
            out.append(Given(name, time[kept], size[kept], lasting[kept] if doses else None, unit))
    return out


def patient_fit(
    result: Any, curves: Any, patient: str, channel: str, forecast: Any = None, level: float = 0.9
) -> Figure:
    """What was measured in one patient, the calibrated curve through it, and the forecast after it.

    The dark band holds `level` of the expected courses, the light band of what would be measured. A time
    at which too many draws failed is a gap, and the figure says how many.

    Args:
        result: of `calibrate`.
        curves: of `forecast`, over the observed period.
        patient: the patient's id.
        channel: what was measured.
        forecast: of `forecast`, under the plan; only its part after the last measurement is drawn.
        level: probability of the bands.
    """
    time_unit, notes = str(result.attrs.get("time_unit", "")), []
    data = measured(result, patient, channel)
    last = _last_measurement(result, patient)
    fig = blank(f"{escape(patient)} · {escape(channel)}", height=300)
    fig.layout.xaxis = {"title": {"text": label("time", time_unit)}, "nticks": 7}
    unit = group(result, "observed_data")[channel].attrs.get("units")
    fig.layout.yaxis = {"title": {"text": label(channel, unit)}, "rangemode": "tozero"}
    notes += _add_course(fig, curves, patient, channel, BLUE, "fit", level)
    if forecast is not None:
        notes += _add_course(fig, forecast, patient, channel, VERMILLION, "forecast", level, after=last)
        if last is not None:
            fig.add_vline(x=last, line=line(MUTED, 1, "dot"))
    _add_measurements(fig, data)
    courses = [(dose, BLUE) for dose in given(result, patient)]
    if forecast is not None:
        planned = (_after(dose, last) for dose in given(forecast, patient))
        courses += [(dose, VERMILLION) for dose in planned if len(dose.time)]
    _add_given(fig, courses, time_unit)
    fig.layout.meta = {"notes": notes}
    fig.layout.title.subtitle.text = escape(" ".join(notes))
    return fig


def _position(data: Any, patient: str) -> int:
    ids = patient_ids(data)
    if patient not in ids:
        raise ValueError(f"no patient {patient!r}; there are {', '.join(ids[:20])}")
    return ids.index(patient)


def _last_measurement(result: Any, patient: str) -> float | None:
    times = [measured(result, patient, channel).time for channel in channels(result)]
    last = max((float(time.max()) for time in times if len(time)), default=None)
    return last


def _after(dose: Given, last: float | None) -> Given:
    if last is None:
        return dose
    later = dose.time > last
    duration = None if dose.duration is None else dose.duration[later]
    return dose._replace(time=dose.time[later], amount=dose.amount[later], duration=duration)


def _add_course(
    fig: Figure,
    tree: Any,
    patient: str,
    channel: str,
    colour: str,
    what: str,
    level: float,
    after: float | None = None,
) -> list[str]:
    """Draws both bands and the median; returns what is missing, in words."""
    data = group(tree, "predictions")
    if patient not in patient_ids(data):
        return [f"No {what}: this patient is not among the predictions."]
    row = _position(data, patient)
    time = np.asarray(variable(data, f"{channel}_time", "predictions")[row], dtype=float)
    drawn = np.asarray(variable(data, channel, "predictions")[:, row], dtype=float)
    expected = np.asarray(data.get(f"{channel}_expected", data[channel])[:, row], dtype=float)
    if after is not None:
        time, drawn, expected = _cut(time, after, drawn, expected)
    if not len(time):
        return [f"No {what}: it has no time after the last measurement."]
    outer, inner = band(drawn, level), band(expected, level)
    share = f"{level:.0%}"
    _add_band(fig, time, outer, tint(colour, 0.16), f"{what}: {share} of measurements")
    _add_band(fig, time, inner, tint(colour, 0.34), f"{what}: {share} of expected courses")
    _add_median(fig, time, inner, outer, colour, what)
    return _missing(inner, outer, len(drawn), what)


def _cut(time: np.ndarray, after: float, *draws: np.ndarray) -> tuple[np.ndarray, ...]:
    """The part from `after` on; starts at `after` itself, where the grid has a time on either side."""
    later = time > after
    start = int(np.argmax(later)) if later.any() else len(time)
    if start == 0 or start == len(time):
        return (time[later], *(draw[:, later] for draw in draws))
    before, behind = time[start - 1], time[start]
    share = (after - before) / (behind - before)
    edges = [(1 - share) * draw[:, start - 1] + share * draw[:, start] for draw in draws]
    joined = (np.column_stack([edge, draw[:, later]]) for edge, draw in zip(edges, draws, strict=True))
    return (np.concatenate([[after], time[later]]), *joined)


def _missing(inner: Band, outer: Band, draws: int, what: str) -> list[str]:
    failed = np.maximum(inner.failed, outer.failed)
    if not failed.any():
        return []
    if (failed == draws).all():
        return [f"No {what} is drawn: the model could not be solved in any of {counted(draws, 'draw')}."]
    gaps, some = int(np.isnan(outer.median).sum()), int((failed > 0).sum())
    lost = f"up to {failed.max()} of {counted(draws, 'draw')} failed at {counted(some, 'time')}"
    text = f"{what.capitalize()}: {lost}"
    return [
        f"{text}; {'all' if gaps == some else gaps} left as a gap."
        if gaps
        else f"{text}; drawn from the others."
    ]


def _add_band(fig: Figure, time: np.ndarray, limits: Band, colour: str, name: str) -> None:
    known = np.isfinite(limits.lower) & np.isfinite(limits.upper) & np.isfinite(time)
    runs = np.split(np.arange(len(time)), np.flatnonzero(np.diff(known.astype(int))) + 1)
    x, y = [], []
    for run in (run for run in runs if len(run) and known[run[0]]):
        x += [*time[run], *time[run][::-1], np.nan]
        y += [*limits.lower[run], *limits.upper[run][::-1], np.nan]
    if x:
        fig.add_trace(
            graph_objects().Scatter(
                x=np.array(x[:-1]),
                y=np.array(y[:-1]),
                fill="toself",
                fillcolor=colour,
                mode="none",
                name=name,
                hoverinfo="skip",
            )
        )


def _add_median(fig: Figure, time: np.ndarray, inner: Band, outer: Band, colour: str, what: str) -> None:
    if not np.isfinite(inner.median).any():
        return
    fig.add_trace(
        graph_objects().Scatter(
            x=time,
            y=inner.median,
            mode="lines",
            line=line(colour, 2),
            connectgaps=False,
            name=f"{what}: median",
            customdata=np.stack([outer.lower, outer.upper], axis=-1),
            hovertemplate="%{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})<extra>"
            + what
            + "</extra>",
        )
    )


def _add_measurements(fig: Figure, data: Measured) -> None:
    looks = {0: ("circle", "measured"), -1: ("triangle-down-open", "below this limit")}
    looks[1] = ("triangle-up-open", "above this limit")
    for code, (symbol, name) in looks.items():
        chosen = data.censor == code
        if chosen.any():
            fig.add_trace(
                graph_objects().Scatter(
                    x=data.time[chosen],
                    y=data.value[chosen],
                    mode="markers",
                    marker={
                        "symbol": symbol,
                        "size": 7 if code == 0 else 10,
                        "color": INK,
                        "line": line(PAPER, 1) if code == 0 else line(INK, 1.6),
                    },
                    name=name,
                    hovertemplate="%{y:.3g} at %{x:.3g}<extra>" + name + "</extra>",
                )
            )


def _add_given(fig: Figure, courses: list[tuple[Given, str]], time_unit: str) -> None:
    """A strip under the plot, a lane an input: tick of a bolus, bar of an infusion, area of a course."""
    if not courses:
        return
    lanes = list(dict.fromkeys(dose.name for dose, _ in courses))
    strip = 0.09 * min(3, len(lanes))
    fig.layout.yaxis.domain = [strip + 0.04, 1.0]
    fig.layout.xaxis.anchor = "y2"
    still = {"fixedrange": True, "showgrid": False, "tickvals": [], "anchor": "x"}
    fig.layout.yaxis2 = {"domain": [0.0, strip], "range": [0.0, len(lanes)]} | still
    for dose, colour in courses:
        x, y, amount = _outline(dose)
        words = (
            f"{escape(dose.name)}: %{{customdata:.4g}} {escape(dose.unit)} at %{{x:.4g}} {escape(time_unit)}"
        )
        fig.add_trace(
            graph_objects().Scatter(
                x=x,
                y=0.9 * y + lanes.index(dose.name),
                yaxis="y2",
                mode="lines",
                line=line(colour, 1 if dose.duration is None else 2),
                fill="toself",
                fillcolor=tint(colour, 0.34),
                customdata=amount,
                hovertemplate=words + "<extra></extra>",
                name=escape(dose.name),
                showlegend=False,
            )
        )


def _outline(dose: Given) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, height within a lane (0 to 1), and amount, along the outline of what was given."""
    height = np.abs(dose.amount) / np.abs(dose.amount).max()
    if dose.duration is None:
        ends = [0, *range(len(dose.time)), -1]
        return dose.time[ends], np.concatenate([[0.0], height, [0.0]]), dose.amount[ends]
    nothing, stop = np.full(len(dose.time), np.nan), dose.time + dose.duration
    up = 0.3 + 0.7 * height
    x = np.column_stack([dose.time, dose.time, stop, stop, nothing]).ravel()
    y = np.column_stack([0 * up, up, up, 0 * up, nothing]).ravel()
    return x, y, np.repeat(dose.amount, 5)
