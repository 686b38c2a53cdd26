"""Glucose half an hour and an hour ahead: a stochastic twin, with and without a network, against rules.

    python benchmarks/glucose_forecast.py [--data ../shared/data/glucose] [--steps 600]

HUPA-UCM (Hidalgo et al. 2024, Data in Brief, doi 10.17632/3hbcscwz44.1): two weeks of four people with type 1
diabetes on insulin pumps, with meals. The sensor reads every 15 minutes; the values between are the authors'
straight lines, which tell of the future, so only readings are used, none from a line over 40 minutes. The
first 70 % of each person's time is learned from. The rest is forecast from every reading that has five others
right before it, so that no regression is fed a line, knowing what was measured, given and eaten until then
and nothing later; every method is scored on the same readings.

The twin is a linear SDE whose likelihood is exact (Kalman); its ten parameters are the most probable ones of
each person. The hybrid adds a network to the rate of glucose, one for all four people, trained through the
extended Kalman filter on windows of the first 56 %, and stopped by those of the next 14 %. Opponents: the
last value, a linear autoregression of six readings (90 min), the same with insulin and carbohydrate on
board; normal, with the sd of their errors in the learning period. Writes figures and a picture.
"""

import argparse
import csv
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.stats import norm
from setting import FOLDER, data_folder, write

import dtwin_jax as dt
from dtwin_jax import Scalar, lognormal, param, var
from dtwin_jax.dynamics.advance import advance
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.dynamics.residual import additive

KEY = jax.random.key(0)
LEARNED, STOPPED = 0.7, 0.8
EVERY, HORIZONS = 15.0, (30.0, 60.0)
LAGS = 6
WARM, SCORED = 24, 48
# Method -> mean and sd, each (origin, horizon).
Forecasts = dict[str, tuple[np.ndarray, np.ndarray]]
WEAK = "weakly informative, chosen here"


class Params(eqx.Module):
    """Of one person; insulin is counted from the mean basal rate, so `Gb` is glucose at that rate."""

    Gb: Scalar = param(150.0, "mg/dL", lognormal(150.0, log_sd=0.3), source=WEAK)
    p1: Scalar = param(0.005, "/min", lognormal(0.005, log_sd=1.0), source=WEAK, doc="return to Gb")
    tI: Scalar = param(55.0, "min", lognormal(55.0, log_sd=0.3), source="Hovorka 2004, spread chosen here")
    kI: Scalar = param(40.0, "mg/dL/U", lognormal(40.0, log_sd=0.7), source=WEAK, doc="fall for a unit")
    tM: Scalar = param(40.0, "min", lognormal(40.0, log_sd=0.3), source="Hovorka 2004, spread chosen here")
    kM: Scalar = param(3.0, "mg/dL/g", lognormal(3.0, log_sd=0.7), source=WEAK, doc="rise for a gram")
    a: Scalar = param(0.03, "/min", lognormal(0.03, log_sd=1.0), source=WEAK, doc="what else moves, decay")
    s: Scalar = param(0.1, "mg/dL/min/min^0.5", lognormal(0.1, log_sd=1.0), source=WEAK, doc="its noise")
    sG: Scalar = param(0.5, "mg/dL/min^0.5", lognormal(0.5, log_sd=1.5), source=WEAK, doc="noise of glucose")
    sd: Scalar = param(2.0, "mg/dL", lognormal(2.0, log_sd=0.7), source=WEAK, doc="error of the sensor")
    G0: Scalar = param(150.0, "mg/dL", doc="first reading")


class Inputs(eqx.Module):
    """Insulin beyond the mean basal rate, and meals."""

    insulin: dt.Input = var("U/min", neutral=0.0)
    carbohydrate: dt.Input = var("g/min", neutral=0.0)


class State(eqx.Module):
    """Two depots of insulin, two of the meal, glucose, and a rate of unknown cause."""

    i1: Scalar = var("U")
    i2: Scalar = var("U")
    m1: Scalar = var("g")
    m2: Scalar = var("g")
    G: Scalar = var("mg/dL")
    r: Scalar = var("mg/dL/min")


class Outputs(eqx.Module):
    """What the sensor shows."""

    glucose: Scalar = var("mg/dL")


def init(p):
    """Nothing acts, and glucose is the first reading."""
    none = 0.0 * p.G0
    return State(i1=none, i2=none, m1=none, m2=none, G=p.G0, r=none)


def drift(t, x, u, p):
    """Rates per minute: chains of two depots for insulin and meals, glucose, what else moves it."""
    acting, appearing = x.i2 / p.tI, x.m2 / p.tM
    return State(
        i1=u.insulin - x.i1 / p.tI,
        i2=x.i1 / p.tI - acting,
        m1=u.carbohydrate - x.m1 / p.tM,
        m2=x.m1 / p.tM - appearing,
        G=-p.p1 * (x.G - p.Gb) - p.kI * acting + p.kM * appearing + x.r,
        r=-p.a * x.r,
    )


def diffusion(t, x, u, p):
    """Noise in glucose and in the rate of unknown cause."""
    none = 0.0 * x.G
    return State(i1=none, i2=none, m1=none, m2=none, G=p.sG + none, r=p.s + none)


twin = dt.Model(
    name="glucose_walk",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=lambda t, x, u, p: Outputs(glucose=x.G),
    noise=additive,
    diffusion=diffusion,
    time="min",
    filter=dt.Kalman(),
)


def lacking(t, x, u, p, net):
    """A rate in mg/dL/min of glucose and its unknown rate."""
    return {"G": net(x.G, x.r)[0]}


network = dt.Perceptron(centre=(150.0, 0.0), spread=(60.0, 1.0), width=8)
steps_of_7 = dt.ExtendedKalman(solver=dt.Solver(diffrax.Bosh3, dt=7.5, max_steps=64))
mixed = dt.hybrid(replace(twin, filter=steps_of_7), lacking, network)


@dataclass(frozen=True)
class Person:
    """Readings at 15 min, and what was given.

    Attributes:
        time, glucose: (n,) min, mg/dL.
        seen: (n,) the reading is none of the authors' lines.
        insulin, meals: (time, amount), U beyond the mean basal rate and g.
    """

    time: np.ndarray
    glucose: np.ndarray
    seen: np.ndarray
    insulin: tuple[np.ndarray, np.ndarray]
    meals: tuple[np.ndarray, np.ndarray]

    @property
    def learned(self) -> int:
        """How many readings, those on lines among them, are learned from."""
        return int(LEARNED * len(self.time))

    @property
    def complete(self) -> np.ndarray:
        """(n,) that a reading and those before it that a regression takes, `LAGS` in all, are on no line."""
        whole = np.convolve(self.seen, np.ones(LAGS))[: len(self.seen)] == LAGS
        return whole & (np.arange(len(self.seen)) >= LAGS)

    def record(self, first: int, last: int, scored: int = 0) -> dt.Record:
        """Readings from `first` to before `last`; those before `scored` are known, not scored."""
        begin, end = self.time[first], self.time[last - 1]

        def given(doses: tuple[np.ndarray, np.ndarray]) -> dt.Doses:
            use = (doses[0] >= begin) & (doses[0] <= end)
            return dt.Doses(doses[0][use], doses[1][use])

        parts = []
        for rows in (slice(first, max(first, scored)), slice(max(first, scored), last)):
            parts.append({"glucose": dt.Series(self.time[rows], self.glucose[rows], mask=self.seen[rows])})
        inputs = Inputs(insulin=given(self.insulin), carbohydrate=given(self.meals))
        past = parts[0] if scored > first else {}
        return dt.Record(inputs, parts[1], {"G0": self.glucose[first]}, begin, past)


def read(folder: Path) -> dict[str, Person]:
    """Person's id -> person, from `hupa_ucm_a.csv` in `folder`."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "hupa_ucm_a.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["person_id"], []).append(row)
    return {name: person(found) for name, found in rows.items()}


def person(rows: list[dict[str, str]]) -> Person:
    """One person from rows of the file, five minutes apart.

    Insulin is counted from its mean rate over the time that is learned from, carbohydrate in grams.
    """
    start = datetime.fromisoformat(rows[0]["time"])
    time = np.array([(datetime.fromisoformat(row["time"]) - start).total_seconds() / 60.0 for row in rows])
    assert np.all(np.diff(time) == 5.0), "rows are five minutes apart"

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in rows])

    glucose, basal, bolus = column("glucose"), column("basal_rate"), column("bolus_volume_delivered")
    grams = 10.0 * column("carb_input")  # servings of 10 g
    # Basal insulin beyond its mean of the time learned from, hour by hour, counted when the hour is over.
    hour = (time // 60.0).astype(int)
    more = np.bincount(hour, weights=basal - basal[: int(LEARNED * len(basal))].mean())
    when = np.concatenate([time[bolus > 0], 60.0 * (np.arange(len(more)) + 1.0)])
    much = np.concatenate([bolus[bolus > 0], more])
    order = np.argsort(when, kind="stable")
    rows_read, seen = readings(glucose)
    return Person(
        time[rows_read],
        glucose[rows_read],
        seen[rows_read],
        (when[order], much[order]),
        (time[grams > 0], grams[grams > 0]),
    )


def readings(glucose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows at which the sensor read (every third, where lines bend), and whether no long line is there."""
    bend = np.abs(np.diff(glucose, 2)) > 0.01
    first = (int(np.argmax([bend[k::3].mean() for k in range(3)])) + 1) % 3
    straight = np.concatenate([[False], ~bend, [False]])
    seen = np.ones(len(glucose), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], straight.astype(int), [0]])))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        if end - begin >= 8:
            seen[begin:end] = False
    return np.arange(first, len(glucose), 3), seen


def windows(people: dict[str, Person], values: dict[str, Any], since: float, until: float) -> dt.Cohort:
    """Half days, each with a quarter of a day before it to find the state; parameters are known."""
    records = {}
    for name, one in people.items():
        count = len(one.time)
        first, last = int(since * count), int(until * count)
        for begin in range(max(first - WARM, 0), last - WARM - SCORED, SCORED):
            found = one.record(begin, begin + WARM + SCORED, begin + WARM)
            known = {**values[name], **found.known}
            records[f"{name}_{begin}"] = replace(found, known=known)
    return dt.stack(records)


def trained(people: dict[str, Person], values: dict[str, Any], steps: int) -> tuple[Any, dict[str, Any]]:
    """The network's weights, and how training went."""
    training = windows(people, values, 0.0, LEARNED * STOPPED)
    stopping = windows(people, values, LEARNED * STOPPED, LEARNED)
    found = dt.train(
        mixed,
        training,
        where=lambda p: p.net,
        optimiser=optax.chain(optax.clip_by_global_norm(10.0), optax.adam(1e-2)),
        steps=steps,
        key=KEY,
        batch=8,
        held_out=stopping,
        penalty=lambda p, record: jnp.sum(p.net.layers[-1].weight ** 2),
    )
    about = {
        "windows": len(training),
        "windows_that_stop": len(stopping),
        "stopping_loss_first": float(found.held_loss[0]),
        "stopping_loss_least": float(np.nanmin(found.held_loss)),
        "best_step": int(np.nanargmin(found.held_loss)),
        "skipped": found.skipped,
    }
    return found.params.net, about


# From a belief on: nothing more is given, and glucose is wanted at the horizons.
PLAN = dt.Record(Inputs(insulin=0.0, carbohydrate=0.0), {"glucose": dt.Series(HORIZONS)}, {}, 0.0)


@eqx.filter_jit
def forecasts(model: dt.Model, p: Any, record: dt.Record, times: Any) -> tuple[Any, Any]:
    """Mean and sd, (origin, horizon), from every one of `times` on, when nothing more is given or eaten."""
    states = dt.estimate_states(model, p, record, times, smooth=False)
    mean = jnp.stack([getattr(states.mean, name) for name in vars(states.mean)], axis=1)

    def ahead(mean: Any, covariance: Any) -> tuple[Any, Any]:
        end = jnp.asarray(HORIZONS[-1])
        found = advance(model, p, Gaussian(mean, covariance), PLAN, end, jnp.asarray(-1.0))[1]["glucose"]
        return found.loc, found.scale

    return jax.vmap(ahead)(mean, states.covariance)


def regressions(one: Person, ahead: int) -> dict[str, tuple[np.ndarray, float]]:
    """Rule -> its forecast of every reading `ahead` readings before, (n,), and the sd of its errors."""
    n, y = len(one.time), one.glucose
    lags = np.stack([np.concatenate([np.full(i, y[0]), y[: n - i]]) for i in range(LAGS)], axis=1)
    board = np.stack([left(one.time, one.insulin, tau) for tau in (30.0, 60.0, 120.0)], axis=1)
    eaten = np.stack([left(one.time, one.meals, tau) for tau in (20.0, 40.0, 80.0)], axis=1)
    rows = np.flatnonzero(one.complete[: one.learned - ahead] & one.seen[ahead : one.learned])
    ones = np.ones((n, 1))
    found = {}
    for name, design in (
        ("autoregression", np.hstack([lags, ones])),
        ("autoregression with inputs", np.hstack([lags, board, eaten, ones])),
    ):
        weight = np.linalg.lstsq(design[rows], y[rows + ahead], rcond=None)[0]
        made = design @ weight
        found[name] = (made, float(np.std(y[rows + ahead] - made[rows])))
    return {"last value": (y.copy(), float(np.std(y[rows + ahead] - y[rows]))), **found}


def left(times: np.ndarray, doses: tuple[np.ndarray, np.ndarray], tau: float) -> np.ndarray:
    """What is left of doses at `times`, if it goes at the rate 1 / tau."""
    gone = times[:, None] - doses[0][None, :]
    return np.sum(np.where(gone >= 0, doses[1] * np.exp(-np.maximum(gone, 0.0) / tau), 0.0), axis=1)


def crps(mean: np.ndarray, sd: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of normal forecasts (Gneiting & Raftery 2007, doi 10.1198/016214506000001437, eq. 21)."""
    z = (y - mean) / sd
    return sd * (z * (2.0 * norm.cdf(z) - 1.0) + 2.0 * norm.pdf(z) - 1.0 / np.sqrt(np.pi))


def judged(
    one: Person, ours: dict[str, tuple[np.ndarray, np.ndarray]], origins: np.ndarray
) -> dict[str, Any]:
    """Horizon -> method -> figures, of the readings ahead that are on no line.

    Args:
        one: the person.
        ours: model -> mean and sd of its forecasts, (origin, horizon).
        origins: (origin,) numbers of the readings from which is forecast, each with its lags on no line.

    Returns:
        `readings`, how many are scored; of each method `crps` and `rmse` in mg/dL, the share of readings that
        its 90 % intervals hold, and how far its CRPS is below the autoregression's, with a standard error.
    """
    out: dict[str, Any] = {}
    for j, horizon in enumerate(HORIZONS):
        ahead = int(horizon / EVERY)
        there = one.seen[origins + ahead]
        rows = origins[there]
        y = one.glucose[rows + ahead]
        made = {name: (mean[there, j], sd[there, j]) for name, (mean, sd) in ours.items()}
        for name, (mean, sd) in regressions(one, ahead).items():
            made[name] = (mean[rows], np.full(len(rows), sd))
        score = {name: crps(mean, sd, y) for name, (mean, sd) in made.items()}
        day = (one.time[rows] // 1440.0).astype(int)
        out[f"{horizon:g} min"] = {"readings": len(rows)} | {
            name: {
                "crps": float(score[name].mean()),
                "rmse": float(np.sqrt(np.mean((y - mean) ** 2))),
                "inside_90": float(np.mean(np.abs(y - mean) < norm.ppf(0.95) * sd)),
                "less_than_autoregression": by_day(score["autoregression"] - score[name], day),
            }
            for name, (mean, sd) in made.items()
        }
    return out


def by_day(difference: np.ndarray, day: np.ndarray) -> list[float]:
    """Mean of `difference` (n,), and its standard error if days are independent; `day` (n,) are numbers."""
    count = np.bincount(day - day.min())
    whole = np.bincount(day - day.min(), weights=difference - difference.mean())
    return [float(difference.mean()), float(np.sqrt(np.sum(whole**2)) / count.sum())]


def picture(
    one: Person, ours: dict[str, tuple[np.ndarray, np.ndarray]], origins: np.ndarray, name: str
) -> None:
    """The hybrid's forecasts of a day and a half of a person, with what came: `glucose_forecast.svg`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(2, 1, figsize=(9, 6), sharex=True, constrained_layout=True)
    some = slice(0, 4 * 36)
    for axis, j, horizon in zip(axes, (0, 1), HORIZONS, strict=True):
        mean, sd = (part[some, j] for part in ours["hybrid"])
        when = (one.time[origins[some]] + horizon) / 60.0
        when = when - when[0]
        axis.fill_between(
            when, mean - 1.645 * sd, mean + 1.645 * sd, color="#56b4e9", alpha=0.35, lw=0, label="90 %"
        )
        axis.plot(when, mean, color="#0072b2", lw=1.2, label="expected")
        there = one.seen[origins[some] + int(horizon / EVERY)]
        read_ = one.glucose[origins[some] + int(horizon / EVERY)]
        axis.plot(when[there], read_[there], "k.", ms=3, label="sensor")
        axis.set_ylabel("glucose, mg/dL")
        axis.set_title(f"{name}: forecast {horizon:g} min before", loc="left", fontsize=10)
    axes[0].legend(frameon=False, ncols=3, loc="upper right")
    axes[1].set_xlabel("hours")
    fig.savefig(FOLDER / "glucose_forecast.svg")


def main() -> int:
    """Fit, train, forecast and score; figures and picture are written beside this file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/glucose"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--people", nargs="*")
    chosen = parser.parse_args()
    people = {
        name: one
        for name, one in read(data_folder(chosen.data)).items()
        if not chosen.people or name in chosen.people
    }
    values: dict[str, dict[str, float]] = {}
    for name, one in people.items():
        fitted = dt.fit(twin, one.record(0, one.learned), key=KEY, starts=1)
        values[name] = {key: float(value[0]) for key, value in fitted.estimate.items()}
        print(name, values[name], bool(fitted.converged[0]), flush=True)
    net, about = trained(people, values, chosen.steps)
    print(about, flush=True)
    figures: dict[str, Any] = {"network": about, "people": {}}
    shown: Any = None
    for name, one in people.items():
        origins = np.array([k for k in range(one.learned, len(one.time) - 4) if one.complete[k]])
        record, ours = one.record(0, len(one.time)), {}
        for label, model in (("twin", twin), ("hybrid", mixed)):
            p = dt.assign(model.params(), {**values[name], "G0": one.glucose[0]})
            p = p if model is twin else eqx.tree_at(lambda q: q.net, p, net)
            mean, sd = forecasts(model, jax.tree.map(jnp.asarray, p), record, one.time[origins])
            ours[label] = (np.asarray(mean), np.asarray(sd))
        found = judged(one, ours, origins)
        figures["people"][name] = {"parameters": values[name], "scores": found}
        for horizon, methods in found.items():
            for label, about_it in methods.items():
                print(name, horizon, label, about_it, flush=True)
        shown = shown or (one, ours, origins, name)
    write("glucose_forecast", figures)
    picture(*shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
