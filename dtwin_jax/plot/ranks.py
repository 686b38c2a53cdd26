"""Ranks of a simulation-based calibration: flat where the posterior is what it claims to be."""

import json
from typing import Any

import numpy as np

from dtwin_jax.plot.theme import BLUE, MUTED, Figure, axes, escape, graph_objects, panel, panels, tint


def ranks(checked: Any) -> Figure:
    """Histograms of the ranks of the truth among posterior draws, a panel a quantity.

    The grey range holds 99 % of the counts of a flat histogram. A heap in the middle is a posterior that is
    too wide, heaps at both ends one that is too narrow, a slope one that is shifted.

    Args:
        checked: of `simulation_based_calibration`.
    """
    from scipy.stats import binom

    names = [str(name) for name in checked["quantity"].values]
    heads = [f"{escape(name)} · p = {float(checked['p_value'][i]):.2g}" for i, name in enumerate(names)]
    notes = [f"{said}." for said in json.loads(checked.attrs["complaints"])]
    fig = panels("Simulation-based calibration", heads, columns=4, height=110, gap=(40, 86), notes=notes)
    bins = checked.sizes["bin"]
    middle = (np.arange(bins) + 0.5) / bins
    for index in range(len(names)):
        count, (across, up) = np.asarray(checked["counts"][index]), axes(index)
        low, high = binom.interval(0.99, int(count.sum()), 1.0 / bins)
        where = {"xref": f"{across} domain", "yref": up, "x0": 0, "x1": 1, "layer": "below"}
        fig.add_shape(type="rect", y0=low, y1=high, fillcolor=tint(MUTED, 0.16), line={"width": 0}, **where)
        look = {
            "marker": {"color": tint(BLUE, 0.7)},
            "width": np.full(bins, 0.9 / bins),
            "name": "replicates",
        }
        fig.add_trace(graph_objects().Bar(x=middle, y=count, xaxis=across, yaxis=up, **look))
        x = {"range": [0, 1], "tickvals": [0, 0.5, 1], "title": {"text": "rank"}}
        panel(fig, index, x=x, y={"range": [0, 1.1 * max(2.0 * high, float(count.max()))], "nticks": 4})
    return fig
