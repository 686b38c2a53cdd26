"""How an estimated population fits: predictions, residuals, each patient's course, random effects.

All figures are drawn from the tree of `diagnose`. A number that is not known is in none of them: patients
who failed are named below the figure.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from dtwin_jax.plot.checks import Observed, observed
from dtwin_jax.plot.cloud import against_normal, agreement, cloud, guide, standard, trend
from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    BLUE,
    GREEN,
    INK,
    MUTED,
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

# Patients on one figure of courses, and facts that effects are drawn against.
SHOWN, FACTS = 24, 4
_NAMES = {"cwres": "CWRES", "iwres": "IWRES", "npde": "NPDE"}


def goodness_of_fit(tree: Any, channel: str) -> Figure:
    """Measurements beside predictions, and residuals over time, over predictions and beside a normal.

    Predictions are those of the typical patient (population) and with the patient's own random effects
    (individual). Where the model is right, CWRES and NPDE are near standard normal at every time and every
    prediction; IWRES are a little narrow, for the random effects have seen the same measurements.
    """
    data, residuals = observed(tree, channel), group(tree, "residuals")
    part = {
        str(name).removeprefix(f"{channel}_"): np.asarray(value, float)
        for name, value in residuals.data_vars.items()
        if value.dims[-1] == f"{channel}_point"
    }
    if "population" not in part:
        variable(residuals, f"{channel}_population", "residuals")
    time = label("time", str(tree.attrs.get("time_unit", "")))
    population, individual = (label(f"{kind} prediction", data.unit) for kind in ("population", "individual"))
    pictures: list[tuple[str, Any, Any, tuple[str, str], Any]] = []
    seen = np.where(data.censor == 0, data.value, np.nan)
    for kind, title in (("population", population), ("individual", individual)):
        names = (title, label("observed", data.unit))
        pictures.append((f"observed and {kind}", part[kind], seen, names, agreement))
    for kind, over, title in (
        ("cwres", "population", population),
        ("iwres", "individual", individual),
        ("npde", "population", population),
    ):
        if kind in part:
            name = _NAMES[kind]
            shrunk = residuals[f"{channel}_{kind}"].attrs.get("shrinkage")
            said = "" if shrunk is None else f" · shrinkage {shrunk:.0%}".replace("-", "−")
            head = f"{name} over time{said}"
            pictures.append((head, data.time, part[kind], (time, name), standard))
            pictures.append((f"{name} over predictions", part[over], part[kind], (title, name), standard))
    normal = [kind for kind in ("cwres", "npde") if kind in part]
    heads = [head for head, *_ in pictures] + [_moments(_NAMES[kind], part[kind]) for kind in normal]
    notes = _notes(tree, data) + _unsimulated(tree) * ("npde" in part)
    fig = panels(f"Goodness of fit · {escape(channel)}", heads, columns=2, height=200, notes=notes)
    ids = patient_ids(group(tree, "observed_data"))
    for index, (_, x, y, titles, draw) in enumerate(pictures):
        kept = np.isfinite(x) & np.isfinite(y)
        draw(fig, index, x[kept], y[kept], [ids[i] for i in np.nonzero(kept)[0]], titles)
    for index, kind in enumerate(normal, start=len(pictures)):
        kept = np.isfinite(part[kind])
        who = [ids[i] for i in np.nonzero(kept)[0]]
        against_normal(fig, index, part[kind][kept], who, _NAMES[kind])
    return fig


def individual_fits(tree: Any, channel: str, patients: Sequence[str] | None = None) -> Figure:
    """Each patient's measurements, with the typical course (grey) and their own (blue).

    Args:
        tree: of `diagnose`.
        channel: what was measured.
        patients: ids; by default the first `SHOWN`.
    """
    data, courses = observed(tree, channel), group(tree, "courses")
    ids = patient_ids(group(tree, "observed_data"))
    chosen = ids[:SHOWN] if patients is None else list(patients)
    for who in chosen:
        if who not in ids:
            raise ValueError(f"no patient {who!r}; there are {', '.join(ids[:20])}")
    failed, notes = _failed(tree), _notes(tree, data, censored=False)
    if patients is None and len(ids) > SHOWN:
        notes.append(f"The first {SHOWN} of {counted(len(ids), 'patient')}.")
    heads = [f"{escape(who)}{' · not fitted' if who in failed else ''}" for who in chosen]
    fig = panels(f"Individual fits · {escape(channel)}", heads, columns=4, height=130, notes=notes)
    time, go = np.asarray(variable(courses, f"{channel}_time", "courses"), float), graph_objects()
    for index, who in enumerate(chosen):
        row, (across, up) = ids.index(who), axes(index)
        on = {"xaxis": across, "yaxis": up}
        for kind, look in (("population", line(MUTED, 1.2, "dash")), ("individual", line(BLUE, 2))):
            course = np.asarray(courses[f"{channel}_{kind}"][row], float)
            if np.isfinite(course).all() and who not in failed:
                fig.add_trace(go.Scatter(x=time[row], y=course, mode="lines", line=look, name=kind, **on))
        _dots(fig, data, row, on)
        x = {"title": {"text": label("time", str(tree.attrs.get("time_unit", "")))}, "nticks": 5}
        panel(fig, index, x=x, y={"title": {"text": escape(data.unit)}, "rangemode": "tozero", "nticks": 4})
    return fig


def effects(tree: Any) -> Figure:
    """The random effects of the patients beside the normal distribution that they were estimated to have.

    The shrinkage of each is in its title. Where it is large, the effects say little: they lie near 0 whatever
    the patients are like.
    """
    data = group(tree, "effects")
    names, notes = [str(name) for name in data["effect"].values], _notes(tree)
    fig = panels(
        "Random effects", list(map(_with_shrinkage(data), names)), columns=3, height=170, notes=notes
    )
    sd = np.sqrt(np.diagonal(np.asarray(data["omega"])))
    for index, scale in enumerate(sd):
        eta = np.asarray(data["eta"][:, index], float)
        _distribution(fig, index, eta[np.isfinite(eta)], float(scale))
    return fig


def effects_by_fact(tree: Any, facts: Sequence[str] | None = None) -> Figure:
    """The random effects over what is known of the patients: a trend is an effect that the model lacks.

    Args:
        tree: of `diagnose`.
        facts: names; by default the first `FACTS` that differ between patients.

    Raises:
        ValueError: no fact, or one that is not known.
    """
    data, known = group(tree, "effects"), group(tree, "constant_data")
    every = [str(name) for name in np.atleast_1d(known.attrs.get("known", ())) if name]
    differing = [name for name in every if np.ptp(np.asarray(variable(known, name, "known"), float)) > 0]
    chosen = differing[:FACTS] if facts is None else list(facts)
    if not chosen:
        raise ValueError(f"no fact differs between the patients; known are {every}")
    names = [str(name) for name in data["effect"].values]
    pairs = [(name, fact) for fact in chosen for name in names]
    heads, ids = [_with_shrinkage(data)(name) for name, _ in pairs], patient_ids(data)
    fig = panels("Random effects and facts", heads, columns=len(names), height=170, notes=_notes(tree))
    for index, (name, fact) in enumerate(pairs):
        eta, value = (np.asarray(x, float) for x in (data["eta"].sel(effect=name), known[fact]))
        kept = np.isfinite(eta)
        who = [ids[i] for i in np.flatnonzero(kept)]
        title = label(fact, str(known[fact].attrs.get("units", "")))
        cloud(fig, index, value[kept], eta[kept], who, (title, "effect"))
        if kept.any():
            ends = [float(value[kept].min()), float(value[kept].max())]
            guide(fig, index, ends, [0.0, 0.0])
            trend(fig, index, value[kept], eta[kept])
    return fig


def _failed(tree: Any) -> list[str]:
    return [str(who) for who in json.loads(tree.attrs.get("failed") or "[]")]


def _unsimulated(tree: Any) -> list[str]:
    lost = [str(who) for who in json.loads(tree.attrs.get("unsimulated") or "[]")]
    return [f"No NPDE, a simulated data set failed: {', '.join(lost)}."] * bool(lost)


def _moments(name: str, z: np.ndarray) -> str:
    """A title with the mean and the variance, which ought to be 0 and 1."""
    z = z[np.isfinite(z)]
    said = f" · mean {z.mean():.2f}, variance {z.var():.2f}".replace("-", "−") if len(z) else ""
    return f"{name} and a normal{said}"


def _notes(tree: Any, data: Observed | None = None, *, censored: bool = True) -> list[str]:
    """Who was left out, and how many measurements."""
    failed = _failed(tree)
    notes = [f"Not fitted, and left out: {', '.join(failed)}."] if failed else []
    limits = 0 if data is None else int((np.isfinite(data.value) & (data.censor != 0)).sum())
    if limits and censored:
        notes.append(f"{counted(limits, 'measurement')} at a limit of quantification left out.")
    return notes


def _with_shrinkage(data: Any) -> Any:
    def title(name: str) -> str:
        shrunk = float(data["shrinkage"].sel(effect=name))
        said = f"shrinkage {shrunk:.0%}".replace("-", "−") if np.isfinite(shrunk) else "shrinkage not known"
        return f"{escape(name)} · {said}"

    return title


def _dots(fig: Figure, data: Observed, row: int, on: dict[str, str]) -> None:
    """What was measured of a patient; an open triangle where it is a limit."""
    there = np.isfinite(data.value[row])
    for code, symbol in ((0, "circle"), (-1, "triangle-down-open"), (1, "triangle-up-open")):
        chosen = there & (data.censor[row] == code)
        if chosen.any():
            fig.add_trace(
                graph_objects().Scatter(
                    x=data.time[row][chosen],
                    y=data.value[row][chosen],
                    mode="markers",
                    marker={"symbol": symbol, "size": 5 if code == 0 else 8, "color": INK},
                    name="measured" if code == 0 else "limit",
                    hovertemplate="%{y:.3g} at %{x:.3g}<extra></extra>",
                    **on,
                )
            )


def _distribution(fig: Figure, index: int, eta: np.ndarray, sd: float) -> None:
    """A histogram of effects, the effects as ticks, and the normal density that they should have."""
    (across, up), go = axes(index), graph_objects()
    on = {"xaxis": across, "yaxis": up}
    reach = 1.1 * max(3.0 * sd, float(np.abs(eta).max(initial=0.0)))
    if len(eta):
        edges = np.linspace(-reach, reach, int(np.clip(2 * np.sqrt(len(eta)), 6, 30)) + 1)
        share = np.histogram(eta, edges)[0] / len(eta) / np.diff(edges)
        look = {"color": tint(BLUE, 0.35), "line": {"color": BLUE, "width": 1}}
        bars = {"width": np.diff(edges), "marker": look}
        middle = (edges[:-1] + edges[1:]) / 2
        fig.add_trace(go.Bar(x=middle, y=share, name="patients", hoverinfo="skip", **bars, **on))
        ticks = {"symbol": "line-ns-open", "size": 8, "color": INK}
        fig.add_trace(go.Scatter(x=eta, y=0 * eta, mode="markers", marker=ticks, name="effects", **on))
    x = np.linspace(-reach, reach, 121)
    y = np.exp(-0.5 * (x / sd) ** 2) / (sd * np.sqrt(2.0 * np.pi))
    shape = {"mode": "lines", "line": line(GREEN, 2), "name": "estimated", "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=x, y=y, **shape, **on))
    panel(fig, index, x={"title": {"text": "effect"}, "nticks": 5}, y={"rangemode": "tozero", "nticks": 4})
