"""Posterior predictive checks by numbers: measurements summed up, beside data that the posterior draws."""

from typing import Any

import numpy as np

from dtwin_jax.plot.checks import left_out, observed
from dtwin_jax.plot.patients import patient_ids
from dtwin_jax.plot.theme import (
    BLUE,
    VERMILLION,
    Figure,
    axes,
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

STATISTICS = {"mean": np.mean, "standard deviation": np.std, "least": np.min, "largest": np.max}


def predictive_statistics(result: Any, channel: str) -> Any:
    """Statistics of a channel's measurements, and of the same measurements drawn from the posterior.

    Args:
        result: of `calibrate`.
        channel: what was measured. Values at a limit, and those of which a draw failed, are left out on both
            sides.

    Returns:
        `xarray.Dataset` by `statistic`: `measured`, `drawn` (statistic, draw), and `p_value`, the share of
        draws with a larger one. A p-value near 0 or 1 is something that the model does not reproduce; near
        0.5 it says little, for the draws know the data. Attribute `notes`: what was left out.
    """
    import xarray as xr

    data = observed(result, channel)
    every = variable(group(result, "posterior_predictive"), channel, "posterior_predictive")
    drawn = np.asarray(every.transpose("chain", "draw", ...), float)
    drawn = drawn.reshape(-1, *drawn.shape[2:])
    exists, failed = np.isfinite(data.value), ~np.isfinite(drawn).all(axis=0)
    kept = exists & (data.censor == 0) & ~failed
    ids = patient_ids(group(result, "observed_data"))
    notes = left_out(int((exists & (data.censor != 0)).sum()), exists & failed, ids)
    if not kept.any():
        raise ValueError(f"{channel}: no measurement is left. {' '.join(notes)}")
    measured = np.asarray([statistic(data.value[kept]) for statistic in STATISTICS.values()])
    each = np.stack([statistic(drawn[:, kept], axis=1) for statistic in STATISTICS.values()])
    larger = (each > measured[:, None]).mean(axis=1) + 0.5 * (each == measured[:, None]).mean(axis=1)
    by = ("statistic",)
    return xr.Dataset(
        {"measured": (by, measured), "drawn": ((*by, "draw"), each), "p_value": (by, larger)},
        {"statistic": list(STATISTICS)},
        {"notes": notes},
    )


def posterior_check(result: Any, channel: str) -> Figure:
    """Statistics of the measurements (line) among those of data drawn from the posterior."""
    found, unit = predictive_statistics(result, channel), observed(result, channel).unit
    names = [str(name) for name in found["statistic"].values]
    heads = [f"{name} · p = {float(found['p_value'][i]):.2f}" for i, name in enumerate(names)]
    fig = panels(
        f"Posterior predictive · {escape(channel)}", heads, columns=4, height=150, notes=found.attrs["notes"]
    )
    go = graph_objects()
    for index in range(len(names)):
        across, up = axes(index)
        drawn, here = np.asarray(found["drawn"][index]), float(found["measured"][index])
        share, edges = np.histogram(drawn, bins=24, density=True)
        middle = (edges[:-1] + edges[1:]) / 2
        look = {"marker": {"color": tint(BLUE, 0.45)}, "width": np.diff(edges), "name": "drawn"}
        fig.add_trace(go.Bar(x=middle, y=share, xaxis=across, yaxis=up, hoverinfo="skip", **look))
        top = {"x": [here, here], "y": [0.0, 1.05 * float(share.max())], "mode": "lines", "name": "measured"}
        fig.add_trace(go.Scatter(**top, line=line(VERMILLION, 2), xaxis=across, yaxis=up))
        x = {"title": {"text": label("value", unit)}, "nticks": 4}
        panel(fig, index, x=x, y={"tickvals": [], "rangemode": "tozero"})
    return fig
