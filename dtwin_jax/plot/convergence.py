"""Have the chains found one distribution, and do they agree?"""

from typing import Any

import numpy as np

from dtwin_jax.plot.posterior import Summary, patient_names, shared_names, summarise
from dtwin_jax.plot.theme import (
    CHAINS,
    MUTED,
    Figure,
    axes,
    counted,
    escape,
    graph_objects,
    group,
    line,
    panel,
    panels,
    sample_statistics,
    tint,
)

SHOWN = 12


def convergence(result: Any) -> Figure:
    """Rank plots: each chain's share of the ranks of all draws; flat is good.

    A chain that stays low or high, or that never reaches a tail, leaves the grey range, in which 95 % of
    independent draws would lie. Above each panel are R-hat and the lower of the effective sample sizes.
    The worst twelve are shown (Vehtari and others, 2021).
    """
    rows = worst_first(summarise(result, shared_names(result) + patient_names(result)))
    notes = _notes(rows)
    shown = [row for row in rows if not row.failed][:SHOWN]
    draws = group(result, "posterior")
    heading = "Rank plots" + f", the highest R-hat of {len(rows)}" * (len(rows) > len(shown))
    fig = panels(heading, list(map(_title, shown)), columns=4, height=96, gap=(40, 86), notes=notes)
    for index, row in enumerate(shown):
        data = draws[row.name] if row.patient is None else draws[row.name].sel(patient=row.patient)
        _rank_panel(fig, index, np.asarray(data.transpose("chain", "draw"), float))
    return fig


def worst_first(rows: list[Summary]) -> list[Summary]:
    """The rows by falling R-hat; those without one first."""
    return sorted(
        rows, key=lambda row: (not np.isnan(row.r_hat), -row.r_hat if row.r_hat == row.r_hat else 0)
    )


def lowest_bfmi(result: Any) -> float:
    """The lowest energy fraction of missing information of any chain; NaN where there is no energy."""
    array_stats = sample_statistics()

    stats = group(result, "sample_stats") if "sample_stats" in result.children else {}
    if "energy" not in stats:
        return float("nan")
    energy = np.asarray(stats["energy"].transpose("chain", "draw", ...), float)
    columns = energy.reshape(*energy.shape[:2], -1)
    moving = [i for i in range(columns.shape[2]) if np.all(columns[..., i].std(axis=1) > 0)]
    values = [array_stats.bfmi(columns[..., i], chain_axis=0, draw_axis=1) for i in moving]
    return float(np.min(values)) if values else float("nan")


def _notes(rows: list[Summary]) -> list[str]:
    failed = sum(row.failed > 0 for row in rows)
    return [f"{counted(failed, 'number')} left out: not every draw is finite."] if failed else []


def _title(row: Summary) -> str:
    name = row.name if row.patient is None else f"{row.name}, {row.patient}"
    name = name if len(name) <= 24 else f"{name[:23]}…"
    ess = np.fmin(row.ess_bulk, row.ess_tail)
    facts = f"R̂ {row.r_hat:.3f} · ESS {ess:.0f}" if np.isfinite(ess) else _without(row)
    return f"{escape(name)}<br><span style='font-size:10px;color:{MUTED}'>{facts}</span>"


def _without(row: Summary) -> str:
    """Why there is no R-hat: draws of a guide are of no chain."""
    return "draws of no chain" if row.sd > 1e-14 * abs(row.mean) else "does not vary"


def _rank_panel(fig: Figure, index: int, draws: np.ndarray) -> None:
    across, up = axes(index)
    chains, length = draws.shape
    bins = int(np.clip(length // 20, 4, 20))
    ranks = np.empty(draws.size)
    ranks[np.argsort(draws, axis=None, kind="stable")] = (np.arange(draws.size) + 0.5) / draws.size
    edges = np.linspace(0, 1, bins + 1)
    # Without replacement: chain's draws among all. Normal limits of the hypergeometric count of a bin.
    sd = np.sqrt(length / bins * (1 - 1 / bins) * (1 - 1 / chains)) * bins / length
    where = {"xref": f"{across} domain", "yref": up, "x0": 0, "x1": 1, "layer": "below", "line": {"width": 0}}
    if sd > 0:
        fig.add_shape(type="rect", y0=1 - 1.96 * sd, y1=1 + 1.96 * sd, fillcolor=tint(MUTED, 0.16), **where)
    for number, chain in enumerate(ranks.reshape(chains, length)):
        share = np.histogram(chain, edges)[0] * bins / length
        fig.add_trace(
            graph_objects().Scatter(
                x=np.repeat(edges, 2)[1:-1],
                y=np.repeat(share, 2),
                mode="lines",
                line=line(CHAINS[number % len(CHAINS)], 1.3),
                name=f"chain {number}",
                hoverinfo="name+y",
                xaxis=across,
                yaxis=up,
            )
        )
    x = {"range": [0, 1], "tickvals": [0, 0.5, 1], "title": {"text": "rank"}}
    panel(fig, index, x=x, y={"range": [0, 2], "tickvals": [0.5, 1, 1.5]})
