"""The look that all figures share: palette, axes, small multiples, and the note on what is missing."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# `plotly.graph_objects.Figure`: Plotly is an extra, and imported only where a figure is made.
Figure: TypeAlias = Any

# Okabe & Ito 2008: told apart with every common form of colour blindness.
INK, MUTED, GRID, PAPER = "#1c2733", "#616e7c", "#e4e8ed", "#ffffff"
BLUE, VERMILLION, GREEN, ORANGE = "#0072b2", "#d55e00", "#009e73", "#e69f00"
SKY, PURPLE = "#56b4e9", "#cc79a7"
CHAINS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
# The report exchanges these, as text, when the reader's screen is dark.
DARK = {
    INK: "#e8ebef",
    MUTED: "#9aa6b4",
    GRID: "#2c3642",
    PAPER: "#161c23",
    BLUE: "#5ab0ea",
    VERMILLION: "#f2894a",
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', sans-serif"


class Band(NamedTuple):
    """Pointwise quantiles of draws; NaN (a gap) where too many draws failed.

    Attributes:
        lower: the lower end of the central interval.
        median: the middle.
        upper: the upper end.
        failed: the number of draws that are not finite, at each point.
    """

    lower: np.ndarray
    median: np.ndarray
    upper: np.ndarray
    failed: np.ndarray


def graph_objects() -> Any:
    """The module `plotly.graph_objects`, or an error that says how to install it."""
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError("figures need plotly: pip install 'dtwin-jax[report]'") from error
    return go


def sample_statistics() -> Any:
    """ArviZ's statistics of arrays, or an error that says how to install them."""
    try:
        from arviz_stats.base.array import array_stats
    except ImportError as error:
        raise ImportError("figures need arviz-stats: pip install 'dtwin-jax[io,report]'") from error
    return array_stats


def group(tree: Any, name: str) -> Any:
    """The dataset of one group of a result, or an error that lists the groups there are."""
    if name not in tree.children:
        raise ValueError(f"the result has no group {name!r}; it has {sorted(tree.children)}")
    return tree[name].dataset


def variable(data: Any, name: str, where: str) -> Any:
    """One variable of a dataset, or an error that lists the variables there are."""
    if name not in data:
        raise ValueError(f"{where} has no {name!r}; it has {sorted(map(str, data.data_vars))}")
    return data[name]


def tint(colour: str, opacity: float) -> str:
    """`colour` (#rrggbb) with an opacity, as #rrggbbaa."""
    return f"{colour}{round(255 * opacity):02x}"


def escape(text: Any) -> str:
    """`text` as literal characters: Plotly reads a part of HTML in every label."""
    return html.escape(str(text), quote=False)


def label(name: str, unit: str | None, *, escaped: bool = True) -> str:
    """An axis title: the name, and the unit unless there is none."""
    words = name if unit in (None, "", "1") else f"{name} ({unit})"
    return escape(words) if escaped else words


def band(draws: np.ndarray, level: float) -> Band:
    """The central interval of `draws` over their first axis.

    Where more than (1 - level) / 2 of the draws failed, the edge of the interval could itself lie among
    the failed, so the point is left out (NaN) rather than drawn from the survivors.
    """
    tail = (1.0 - level) / 2.0
    draws = np.asarray(draws, dtype=float)
    finite = np.isfinite(draws)
    failed = (~finite).sum(axis=0)
    known = (failed <= tail * len(draws) + 1e-9) & finite.any(axis=0)
    out = np.full((3, *draws.shape[1:]), np.nan)
    if known.any():
        kept = np.where(finite, draws, np.nan)[:, known]
        out[:, known] = np.nanquantile(kept, [tail, 0.5, 1.0 - tail], axis=0)
    return Band(out[0], out[1], out[2], failed)


def blank(title: str, *, height: int, notes: Sequence[str] = ()) -> Figure:
    """An empty figure in the house look, with a title and the notes that belong below it."""
    axis = {
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "ticks": "",
        "automargin": False,
        "tickfont": {"size": 11, "color": MUTED},
        "title": {"font": {"size": 12, "color": MUTED}, "standoff": 6},
    }
    layout = {
        "template": {"layout": {"xaxis": axis, "yaxis": axis}},
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": PAPER,
        "plot_bgcolor": PAPER,
        "height": height + 60,
        "margin": {"l": 58, "r": 16, "t": 64, "b": 50},
        "hoverlabel": {"font": {"family": FONT, "size": 12}},
        "legend": {"orientation": "h", "y": -0.18, "font": {"size": 11}},
        "meta": {"notes": list(notes)},
    }
    fig = graph_objects().Figure(layout=layout)
    subtitle = {"text": escape(" ".join(notes)), "font": {"size": 11, "color": MUTED}}
    fig.layout.title = {"text": title, "x": 0.0, "xref": "paper", "font": {"size": 15}, "subtitle": subtitle}
    return fig


def domains(count: int, columns: int, size: tuple[float, float], gap: tuple[float, float]) -> Any:
    """(x domain, y domain) of each of `count` panels, row by row from the top left.

    Args:
        count: how many panels.
        columns: how many side by side.
        size: width and height of the plotting area, in pixels.
        gap: between panels, in pixels: room for tick labels and titles.
    """
    rows = math.ceil(count / columns)
    wide = (size[0] - (columns - 1) * gap[0]) / columns / size[0]
    tall = (size[1] - (rows - 1) * gap[1]) / rows / size[1]
    out = []
    for index in range(count):
        row, column = divmod(index, columns)
        left = column * (wide + gap[0] / size[0])
        top = 1.0 - row * (tall + gap[1] / size[1])
        out.append(([left, min(1.0, left + wide)], [max(0.0, top - tall), top]))
    return out


def panels(
    title: str,
    names: Sequence[str],
    *,
    columns: int = 3,
    height: int = 170,
    gap: tuple[int, int] = (62, 84),
    notes: Sequence[str] = (),
) -> Figure:
    """A figure of small multiples, which the report lays out anew for a narrow screen.

    Args:
        title: of the figure.
        names: title of each panel, already escaped. Panel i has the axes that `axes(i)` names.
        columns: panels side by side.
        height: of one panel, in pixels.
        gap: between panels, in pixels.
        notes: what the reader must know about missing numbers.
    """
    columns = max(1, min(columns, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    inner = rows * height + (rows - 1) * gap[1]
    fig = blank(title, height=inner + 60, notes=notes)
    fig.layout.showlegend = False
    fig.layout.margin = {"l": gap[0] - 4, "r": 16, "t": 74, "b": 50}
    places = domains(len(names), columns, (900 - gap[0], inner), gap)
    for index, (name, (x, y)) in enumerate(zip(names, places, strict=True)):
        across, up = axes(index)
        fig.layout[across.replace("x", "xaxis")] = {"domain": x, "anchor": up}
        fig.layout[up.replace("y", "yaxis")] = {"domain": y, "anchor": across}
        fig.add_annotation(
            text=name,
            xref=f"{across} domain",
            yref=f"{up} domain",
            x=0,
            y=1,
            xanchor="left",
            yanchor="bottom",
            yshift=4,
            align="left",
            showarrow=False,
            font={"size": 12, "color": INK},
        )
    fig.layout.meta = {
        "notes": list(notes),
        "panels": len(names),
        "columns": columns,
        "cell": height,
        "gap": list(gap),
        "least": 118,
    }
    return fig


def axes(index: int) -> tuple[str, str]:
    """Plotly's names of the axes of panel `index`: ("x", "y"), ("x2", "y2"), ..."""
    return ("x", "y") if index == 0 else (f"x{index + 1}", f"y{index + 1}")


def panel(
    fig: Figure, index: int, *, x: dict[str, Any] | None = None, y: dict[str, Any] | None = None
) -> None:
    """Set properties of the axes of panel `index`."""
    across, up = axes(index)
    fig.layout[across.replace("x", "xaxis")].update(x or {})
    fig.layout[up.replace("y", "yaxis")].update(y or {})


def line(colour: str, width: float = 1.5, dash: str = "solid") -> dict[str, Any]:
    """A line's properties."""
    return {"color": colour, "width": width, "dash": dash}


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """`3 draws`, `1 draw`."""
    word = singular if count == 1 else plural or f"{singular}s"
    return f"{count:,} {word}"
