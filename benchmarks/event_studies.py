"""Patients with visits and an event, read from tables that are not part of this repository."""

import csv
import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import equinox as eqx
import numpy as np

import dtwin_jax as dt

DAYS = 365.25


class Inputs(eqx.Module):
    """None."""


@dataclass(frozen=True)
class Person:
    """Channels at their times in years, facts, and the event or the end of what was seen."""

    past: dict[str, dt.Series]
    known: dict[str, float]
    end: float
    happened: bool

    def record(self, grid: np.ndarray, longest: float, at_visits: bool) -> dt.Record:
        """With a row at every visit and landmark of `grid`, the event told at one kind of the two."""
        visits = dt.visit_times(self.past)
        event = dt.until_event(np.union1d(visits, grid), self.end, self.happened, longest=longest)
        told = np.isin(event.time, np.append(visits, 0.0) if at_visits else grid) & (event.time >= 0)
        event = dt.Series(event.time, event.value, mask=told, censor=event.censor)
        known = {name: np.asarray(value) for name, value in self.known.items()}
        return dt.Record(Inputs(), {"event": event}, known, t0=float(min(event.time[0], 0.0)), past=self.past)


@dataclass(frozen=True)
class Study:
    """People, and of what the probability is asked.

    Attributes:
        people: by name.
        landmarks: years at which the probability is asked.
        horizon: years within which.
        edges: where the hazard of the networks may change.
        every: years between the landmarks from which models learn.
    """

    people: dict[str, Person]
    landmarks: tuple[float, ...]
    horizon: float
    edges: tuple[float, ...]
    every: float

    def grid(self) -> np.ndarray:
        """Landmarks from which models learn."""
        return np.arange(0.0, self.landmarks[-1] + 1e-9, self.every)

    def cohort(self, at_visits: bool) -> dt.Cohort:
        longest = self.horizon + 2.0
        return dt.stack(
            {name: one.record(self.grid(), longest, at_visits) for name, one in self.people.items()}
        )

    def outcome(self) -> tuple[np.ndarray, np.ndarray]:
        people = self.people.values()
        return np.array([p.end for p in people]), np.array([p.happened for p in people])


def rows_of(path: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of a CSV file by person."""
    found: dict[str, list[dict[str, str]]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["id"], []).append(row)
    return found


def channel(time: list[float], text: list[str], change: Callable[[Any], Any], end: float) -> dt.Series:
    """The measurements that are there, in the order of time, before the end."""
    there = [(t, float(x)) for t, x in zip(time, text, strict=True) if x not in ("", "NA") and t < end]
    there.sort(key=lambda pair: pair[0])
    t, x = np.array(there).reshape(-1, 2).T
    return dt.Series(t, change(x))


def pbc(folder: Path) -> Study:
    """Primary biliary cirrhosis, Mayo trial: death or transplantation."""
    logs = ("bili", "chol", "alk.phos", "ast", "platelet", "protime")
    plain = ("albumin", "ascites", "hepato", "spiders", "edema", "stage")
    people = {}
    for name, rows in rows_of(folder / "longitudinal/pbcseq.csv").items():
        time, end = [float(r["day"]) / DAYS for r in rows], float(rows[0]["futime"]) / DAYS
        past = {k: channel(time, [r[k] for r in rows], np.log, end) for k in logs}
        past |= {k: channel(time, [r[k] for r in rows], np.asarray, end) for k in plain}
        first = rows[0]
        known = {
            "age": float(first["age"]),
            "male": float(first["sex"] == "m"),
            "treated": float(first["trt"]),
        }
        people[name] = Person(past, known, end, first["status"] != "0")
    return Study(people, (0.0, 1.0, 3.0, 5.0), 3.0, (1.0, 2.0, 3.0), 0.5)


def nafld(folder: Path) -> Study:
    """Fatty liver, Olmsted county: death."""
    results = rows_of(folder / "longitudinal/nafld_results400.csv")
    # In this file hdl repeats chol, and dbp repeats sbp.
    changes = {"chol": np.log, "sbp": np.log, "fib4": np.log, "smoke": np.asarray}
    people = {}
    for name, (base,) in rows_of(folder / "longitudinal/nafld_people400.csv").items():
        end, rows = float(base["futime"]) / DAYS, results.get(name, [])
        past = {}
        for kind, change in changes.items():
            mine = [r for r in rows if r["test"] == kind]
            past[kind] = channel(
                [float(r["days"]) / DAYS for r in mine], [r["value"] for r in mine], change, end
            )
        past["bmi"] = channel([0.0], [base["bmi"]], np.log, end)
        known = {"age": float(base["age"]), "male": float(base["male"])}
        people[name] = Person(past, known, end, base["status"] == "1")
    return Study(people, (0.0, 2.0, 4.0), 5.0, (2.0, 5.0), 1.0)


def steno2(folder: Path) -> Study:
    """Diabetes type 2, a perturbed copy of the Steno-2 trial: death."""
    clinic, albumin = (rows_of(folder / f"trial/steno2_{k}.csv") for k in ("clin", "albuminuria"))
    states = {"Norm": "0", "Mic": "1", "Mac": "2"}
    people = {}
    for name, (base,) in rows_of(folder / "trial/steno2_people.csv").items():
        since = functools.partial(years, base["doBase"])
        died = base["doDth"] not in ("", "NA")
        end = since(base["doDth"] if died else base["doEnd"])
        rows, turns = clinic.get(name, []), albumin.get(name, [])
        time = [since(r["doV"]) for r in rows]
        past = {
            k: channel(time, [r[k] for r in rows], change, end)
            for k, change in (("a1c", np.asarray), ("chol", np.asarray), ("crea", np.log))
        }
        turned = [since(r["doTr"]) for r in turns]
        past["albuminuria"] = channel(
            [0.0, *turned], ["1", *(states[r["state"]] for r in turns)], np.asarray, end
        )
        strokes = sorted(since(base[k]) for k in ("doCVD1", "doCVD2", "doCVD3") if base[k] not in ("", "NA"))
        past["cvd"] = channel(
            [0.0, *(t for t in strokes if t > 0)],
            [str(sum(t <= 0 for t in strokes)), *(str(i + 1) for i, t in enumerate(strokes) if t > 0)],
            np.asarray,
            end,
        )
        known = {
            "age": -since(base["doBth"]),
            "male": float(base["sex"] == "M"),
            "intensive": float(base["allo"] == "Int"),
            "diabetes": -since(base["doDM"]),
        }
        people[name] = Person(past, known, end, died)
    return Study(people, (2.0, 8.0, 12.0), 5.0, (2.0, 5.0), 1.0)


def years(start: str, day: str) -> float:
    return (date.fromisoformat(day) - date.fromisoformat(start)).days / DAYS


STUDIES = {"pbcseq": pbc, "nafld": nafld, "steno2": steno2}
