"""What every page is made with: its figures, its template, and a file that is written whole."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.plot.theme import DARK, Figure


@dataclass(frozen=True)
class Drawing:
    """A figure as the page holds it.

    Attributes:
        name: unique on the page.
        json: Plotly's data and layout.
        height: in pixels, before the page lays it out.
        says: for a reader who does not see it.
        notes: what was left out.
        channel: position of its channel, for figures that share an axis.
        heading: what the vertical axis is.
    """

    name: str
    json: str
    height: int
    says: str
    notes: tuple[str, ...]
    channel: int | None = None
    heading: str = ""


def drawing(name: str, fig: Figure, says: str, *, channel: int | None = None, heading: str = "") -> Drawing:
    """The figure without its title, which the page sets itself, in single precision."""
    notes = tuple(fig.layout.meta["notes"])
    fig.layout.title = None
    fig.layout.margin.t = 40 if "panels" in fig.layout.meta else 12
    for trace in fig.data:
        for key in ("x", "y", "customdata"):
            if isinstance(trace[key], np.ndarray) and trace[key].dtype == np.float64:
                trace[key] = trace[key].astype(np.float32)
    return Drawing(name, embed(fig.to_json()), int(fig.layout.height), says, notes, channel, heading)


def embed(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def code(text: str) -> Any:
    """A sentence as HTML: what stands between backticks is code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def render(template: str, **content: Any) -> str:
    """A page as text: a template of this folder with its content, the styles and the program that draws."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ImportError("the report needs plotly and jinja2: pip install 'dtwin-jax[report]'") from error
    environment = Environment(
        loader=PackageLoader("dtwin_jax", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    shared = {"plotly_js": get_plotlyjs(), "dark": embed(json.dumps(DARK)), "scales": "[]"}
    return environment.get_template(template).render(**(shared | content))


def write_whole(page: str, path: str | os.PathLike[str]) -> Path:
    """Writes the page, whole or not at all, and returns where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path
