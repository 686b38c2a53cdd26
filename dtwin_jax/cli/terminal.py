"""What the command says: tables and sentences, on a terminal or in a pipe."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any


class Interrupted(Exception):
    """Ctrl-C, with what is kept and how to go on; Typer swallows the words of a KeyboardInterrupt."""


def say(text: str = "") -> None:
    """A sentence to the user, on standard error, so that standard output is data."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning, on one line."""
    _coloured(f"warning: {text}", "yellow")


def fail(text: str) -> None:
    """An error, one line for each of its lines."""
    for line in text.splitlines() or [""]:
        _coloured(f"error: {line}", "bold red")


def _coloured(text: str, style: str) -> None:
    label, _, rest = text.partition(":")
    if not sys.stderr.isatty():
        say(text)
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble((label + ":", style), rest))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1, wrap: bool = False
) -> None:
    """A table on standard output.

    Args:
        columns: heads.
        rows: of text.
        words: how many of the first columns are words; the others are numbers, set to the right.
        wrap: break words in narrow terminals instead of running over the edge.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    lively = sys.stdout.isatty()
    grid = Table(box=SIMPLE_HEAD if lively else None, pad_edge=False, header_style="bold")
    for i, head in enumerate(columns):
        side: Any = "left" if i < words else "right"
        grid.add_column(Text(head), justify=side, no_wrap=not (wrap and lively), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    if lively:
        Console().print(grid)
        return
    # In a pipe a table has all the room that it needs.
    console = Console(width=10_000, no_color=True)
    with console.capture() as captured:
        console.print(grid)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def seconds(value: float) -> str:
    """A time for a reader: `0.4 s`, `12 s`, `3 min 20 s`."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


def number(value: float) -> str:
    """Three significant digits."""
    return "" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
