"""Which measurements decide what a calibration says: Pareto k of leaving each out."""

import json
from typing import Any

import numpy as np

from dtwin_jax.plot.checks import observed
from dtwin_jax.plot.cloud import cloud
from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    MUTED,
    VERMILLION,
    Figure,
    axes,
    counted,
    escape,
    group,
    label,
    line,
    panels,
    variable,
)


def influence(result: Any, left_out: Any, channel: str) -> Figure:
    """Pareto k and log predictive density of every measurement, each left out in turn.

    Above the line a measurement decides so much that what would be without it cannot be told by reweighing.

    Args:
        result: of `calibrate`.
        left_out: of `leave_one_out`.
        channel: what was measured.
    """
    data, ids = observed(result, channel), patient_ids(group(result, "observed_data"))
    limit, notes = float(left_out.attrs["k_limit"]), []
    k = np.asarray(variable(left_out, f"{channel}_pareto_k", "left_out"), float)
    density = np.asarray(left_out[f"{channel}_elpd"], float)
    known = np.isfinite(density)
    bad = known & ~(k <= limit)
    if bad.any():
        of = counted(int(known.sum()), "measurement")
        notes.append(f"{int(bad.sum())} of {of} cannot be told by reweighing: Pareto k above {limit:.2g}.")
    failed = json.loads(left_out.attrs["failed"])
    if failed:
        notes.append(f"Left out, without a likelihood in some draw: {', '.join(failed)}.")
    heads = ["influence of each measurement", "how well each is predicted"]
    fig = panels(f"Leave one out · {escape(channel)}", heads, columns=2, height=220, notes=notes)
    time = label("time", str(result.attrs.get("time_unit", "")))
    for index, (value, title) in enumerate(((k, "Pareto k"), (density, "log predictive density"))):
        kept = known & np.isfinite(value)
        who = [ids[i] for i in np.nonzero(kept)[0]]
        cloud(fig, index, data.time[kept], value[kept], who, (time, title))
    fig.data[0].marker.color = [VERMILLION if high else MUTED for high in bad[known & np.isfinite(k)]]
    across, up = axes(0)
    where = {"xref": f"{across} domain", "yref": up, "x0": 0, "x1": 1, "y0": limit, "y1": limit}
    fig.add_shape(type="line", line=line(VERMILLION, 1, "dash"), **where)
    return fig
