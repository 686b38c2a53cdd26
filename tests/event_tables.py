"""A drug's event tables with every dosing rule, and what NONMEM 7.4.3 predicts of them.

Source of the designs and of NONMEM's numbers: data set nmtest of the R package nlmixr2data (K. Baron, M.
Fidler). One compartment, CL 1.1 L/h, V 20 L, ka 1.5 /h; lag and bioavailability are those of doses into the
central compartment (2); concentrations in ug/L, to five digits.
"""

from dataclasses import dataclass, replace

import numpy as np

from dtwin_jax.core.signal import delay, scale
from dtwin_jax.dynamics.modelled import with_modelled
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

TIMES = (0, 3, 5, 13, 29, 52, 60, 100)


@dataclass(frozen=True)
class Case:
    """Rows of `time, cmt, amt, evid, ii, ss, addl, rate`, predictions, and what acts on compartment 2."""

    rows: tuple[tuple[float, ...], ...]
    seen: tuple[float, ...]
    share: float = 1.0
    lag: float = 0.0
    long: float = 2.0


CASES = {
    "lag": Case(
        ((0, 2, 100, 1, 24, 0, 3, 0),), (0, 0, 0, 10629, 4408.7, 5902.3, 3801.3, 6323.5), 2.23, 12.13
    ),
    "rate": Case(
        ((0, 2, 480, 1, 0, 0, 0, 10),), (0, 1382.8, 2185.7, 4643.7, 5060.6, 1428.3, 919.87, 101.92), 0.5
    ),
    "duration": Case(
        ((0, 2, 480, 1, 0, 0, 0, -2),),
        (0, 691.39, 1092.9, 2321.9, 3623.1, 3387.5, 2181.7, 241.74),
        0.5,
        0.0,
        48.0,
    ),
    "rate with lag": Case(
        ((0, 2, 100, 1, 24, 0, 3, 10),), (0, 0, 834.21, 1352.4, 1395.2, 1118.4, 1912.6, 804.59), 0.412, 3.25
    ),
    "steady infusion with lag": Case(
        ((0, 2, 100, 1, 24, 1, 3, 10),),
        (1002.7, 850.22, 1636.6, 1836.3, 1636.6, 1215.2, 1940.1, 804.72),
        0.412,
        3.16,
    ),
    "overlapping infusions": Case(
        ((0, 2, 100, 1, 12, 1, 4, 2),),
        (6014.5, 6205.9, 6277.4, 6081.8, 6277.4, 6263.0, 6014.5, 1794.8),
        0.812,
    ),
    "infusions of two intervals": Case(
        ((0, 2, 100, 1, 6, 1, 12, 8.3333),), (15152, 15152, 15152, 15152, 15152, 15152, 15152, 5401.4)
    ),
    "steady bolus with lag": Case(
        ((0, 2, 100, 1, 24, 1, 3, 0),),
        (935.66, 793.34, 2660.5, 1713.4, 2660.5, 2810.9, 1810.3, 750.89),
        0.412,
        4.0,
    ),
    "measured as it arrives": Case(
        ((0, 2, 100, 1, 24, 0, 3, 0),), (0, 0, 2060.0, 1326.7, 2610.3, 736.73, 1876.2, 789.3), 0.412, 5.0
    ),
    "two compartments": Case(
        ((0, 2, 100, 1, 0, 0, 0, 0), (13, 1, 50, 1, 24, 0, 2, 24)),
        (0, 4479.2, 4012.6, 2584.3, 2212.4, 1829.4, 1178.2, 452.45),
        1.0,
        1.0,
    ),
    "duration with lag": Case(
        ((0, 2, 100, 1, 24, 0, 3, -2),), (0, 0, 0, 2193.3, 1054.3, 1411.4, 2877.9, 1512.1), 0.61, 5.0, 9.0
    ),
    "steady duration": Case(
        ((0, 2, 100, 1, 24, 1, 3, -2),),
        (1438.5, 2156.9, 2574.1, 2634.3, 2574.1, 2371.3, 2783.3, 1154.5),
        0.61,
        0.0,
        9.0,
    ),
    "reset and dose": Case(
        ((0, 1, 100, 1, 12, 0, 2, 50), (50, 1, 120, 4, 12, 0, 3, 0)),
        (0, 4285.2, 4149.2, 3865.0, 7416.4, 5269.5, 3593.5, 5542.9),
    ),
    "reset to a steady state": Case(
        ((0, 1, 100, 4, 12, 1, 0, 0),), (5552.4, 9051.0, 8157.0, 5255.2, 2179.8, 615.22, 396.22, 43.903)
    ),
    "reset": Case(
        ((0, 1, 100, 1, 12, 0, 3, 50), (50, 2, 0, 3, 0, 0, 0, 0), (54, 1, 120, 1, 16, 0, 2, 0)),
        (0, 4285.2, 4149.2, 3865.0, 7416.4, 0, 4477.0, 4576.1),
    ),
    "steady states added": Case(
        ((0, 1, 100, 1, 24, 1, 3, 0), (12, 1, 50, 1, 24, 2, 3, 0)),
        (1891.9, 5947.3, 5376.6, 6237.1, 6766.8, 7139.5, 4606.4, 2987.1),
    ),
    "constant rate": Case(
        ((0, 1, 0, 1, 0, 1, 0, 100),), (90909, 79977, 71678, 46165, 19148, 5404.4, 3480.6, 385.67)
    ),
    "additional doses ended": Case(
        (
            (0, 1, 100, 1, 24, 1, 0, 0),
            (12, 1, 50, 1, 24, 2, 0, 0),
            (24, 1, 100, 1, 24, 1, 2, 0),
            (36, 1, 50, 1, 24, 2, 2, 0),
        ),
        (1891.9, 5947.3, 5376.6, 6237.1, 5376.6, 7139.5, 4606.4, 2987.1),
    ),
    "lag beyond the interval": Case(
        ((0, 2, 100, 1, 24, 1, 1, 10),),
        (-18569, -14362, -11919, -4440.1, 2146.7, 2268.1, 1460.7, 605.89),
        0.412,
        46.0,
    ),
    "added infusions with a long lag": Case(
        (
            (0, 2, 100, 1, 24, 1, 0, 25),
            (12, 2, 50, 1, 24, 2, 0, 12.5),
            (24, 2, 100, 1, 24, 1, 2, 25),
            (36, 2, 50, 1, 24, 2, 2, 12.5),
        ),
        (6124.2, 5192.7, 4651.8, 5894.1, 4651.8, 6184.9, 6227.4, 6184.9),
        1.0,
        20.0,
    ),
    "added infusions with a short lag": Case(
        (
            (0, 2, 100, 1, 24, 1, 0, 25),
            (12, 2, 50, 1, 24, 2, 0, 12.5),
            (24, 2, 100, 1, 24, 1, 2, 25),
            (36, 2, 50, 1, 24, 2, 2, 12.5),
        ),
        (2275.6, 3145.7, 5185.5, 5244.1, 5185.5, 5960.3, 5540.6, 3592.9),
        1.0,
        2.0,
    ),
}


def dosing(u, p):
    """What is given into the central compartment arrives late, and in part."""
    return Inputs(oral=u.oral, iv=delay(scale(u.iv, p.F), p.lag))


drug = with_modelled(replace(one_compartment, dosing=dosing), duration={"iv": 2.0})


def table(cases=tuple(CASES), times=TIMES):
    """The events and times of measurement of these cases, a patient each, as text."""
    lines = ["ID,TIME,CMT,AMT,EVID,II,SS,ADDL,RATE,DV"]
    for name in cases:
        rows = [
            (row[0], 0, ",".join(f"{x:g}" for x in (row[1], *row[2:])) + ",.") for row in CASES[name].rows
        ]
        rows += [(t, 1, ".,.,0,.,.,.,.,0") for t in times]
        lines += [f"{name},{t:g},{text}" for t, _, text in sorted(rows, key=lambda row: row[:2])]
    return "\n".join(lines) + "\n"


def parameters(cases=tuple(CASES)):
    """Of these cases, side by side."""
    columns = {
        "F": [CASES[name].share for name in cases],
        "lag": [CASES[name].lag for name in cases],
        "duration_iv": [CASES[name].long for name in cases],
    }
    fixed = {"CL": 1.1, "V": 20.0, "ka": 1.5, "sd": 0.1, "cv": 0.1}
    columns |= {name: [value] * len(cases) for name, value in fixed.items()}
    return {name: np.asarray(column, float) for name, column in columns.items()}


def predictions(cases=tuple(CASES)):
    """NONMEM's, mg/L."""
    return np.asarray([CASES[name].seen for name in cases]) / 1000.0
