"""How fast SARS-CoV-2 leaves the upper respiratory tract, and the later half of a course from the earlier.

    python benchmarks/sarscov2_clearance.py [--data ../shared/data/virus] [--people 40]

Series of 17 studies collected by Challenger et al. 2022, BMC Med 20:25: 154 people have five samples or more,
of whom a random part is taken. Samples without virus count as below their study's limit. The model has an
exact flow, which the equations of `sarscov2` have not: growth and clearance, both exponential, meet at a
peak near `time_of_peak` (days since onset),

    viral_load = 2 peak / (exp(-growth (t - time_of_peak)) + exp(clearance (t - time_of_peak)))

Peak, its time and clearance vary between people; growth, before most of the samples, is one for all. (a) All
samples. (b) The later half of each person's samples left out and forecast, against the last value carried
forward, and that with the mean fall over as many days. A person's sample below the limit is scored as what is
known of it: the CRPS is of log10 load cut at the limit, coverage is of the probability integral transform,
of which a censored sample holds the whole stretch below its limit. Writes the figures as JSON and a
picture as SVG beside this file.
"""

import argparse
import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from setting import FOLDER, data_folder, timed, write

import dtwin_jax as dt
from dtwin_jax.core.signal import Input
from dtwin_jax.dynamics.residual import log_normal
from dtwin_jax.twin.assess import crps

SAMPLES, BEFORE, DRAWS = 5, 14.0, 1000
LAGS = (0, 2, 4, 7, 14, 60)
WEAK = "weakly informative, chosen here"
MODEL_NAME, LAST, FALLING = "population", "last value", "last value and mean fall"
COLOURS = {MODEL_NAME: "#3b6ea5", LAST: "#777777", FALLING: "#3c8d4f"}


class Params(eqx.Module):
    """Of one infection."""

    peak: dt.Scalar = dt.param(1e7, "{copies}/mL", dt.lognormal(1e7, log_sd=2.5), source=WEAK)
    time_of_peak: dt.Scalar = dt.param(0.0, "d", dt.normal(0.0, 2.0), source=WEAK, doc="since onset")
    growth: dt.Scalar = dt.param(3.0, "/d", dt.lognormal(3.0, log_sd=0.5), source=WEAK)
    clearance: dt.Scalar = dt.param(0.9, "/d", dt.lognormal(0.9, log_sd=0.5), source=WEAK)
    before: dt.Scalar = dt.param(BEFORE, "d", doc="from the start of the record to the onset")
    cv: dt.Scalar = dt.param(1.5, "1", dt.lognormal(1.5, log_sd=0.5), source=WEAK, doc="sd of the log")


class Inputs(eqx.Module):
    """A model has an input: nobody here is known to be treated."""

    added: Input = dt.var("/d", neutral=0.0, doc="clearance added by treatment")


class State(eqx.Module):
    """Logarithms of the two parts of the denominator."""

    rise: dt.Scalar = dt.var("1")
    fall: dt.Scalar = dt.var("1")


class Outputs(eqx.Module):
    """What is measured."""

    viral_load: dt.Scalar = dt.var("{copies}/mL")


def init(p: Params) -> State:
    lead = p.time_of_peak + p.before
    return State(rise=p.growth * lead, fall=-p.clearance * lead)


def drift(t: Any, x: State, u: Inputs, p: Params) -> State:
    return State(rise=-p.growth, fall=p.clearance + u.added)


def flow(dt: Any, x: State, u: Inputs, p: Params) -> State:
    return State(rise=x.rise - p.growth * dt, fall=x.fall + (p.clearance + u.added) * dt)


def observe(t: Any, x: State, u: Inputs, p: Params) -> Outputs:
    return Outputs(viral_load=2 * p.peak * jnp.exp(-jnp.logaddexp(x.rise, x.fall)))


COURSE = dt.Model(
    name="rise_and_clearance",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=log_normal,
    flow=flow,
    time="d",
)
# Away from 0, where nobody differs: half-normal priors leave a funnel there.
POPULATION = dt.Population(
    COURSE,
    {"peak": dt.lognormal(2.0, log_sd=0.5), "time_of_peak": dt.lognormal(1.5, log_sd=0.5)}
    | {"clearance": dt.lognormal(0.4, log_sd=0.5)},
)


def read(folder: Path, people: int, seed: int) -> tuple[dt.Cohort, dict[str, Any]]:
    """A random part of the people with samples enough, and what there is of them."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "sarscov2_challenger.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["patient_id"], []).append(row)
    many = {name: each for name, each in rows.items() if len(each) >= SAMPLES}
    chosen = sorted(np.random.default_rng(seed).permutation(sorted(many))[:people])
    records, studies = {}, set()
    for name in chosen:
        each = sorted(many[name], key=lambda row: float(row["day_since_onset"]))
        day, load, limit = (
            np.asarray([float(row[column]) for row in each])
            for column in ("day_since_onset", "viral_load_copies_ml", "lod_copies_ml")
        )
        lost = load <= limit
        series = dt.Series(day, np.where(lost, limit, load), censor=np.where(lost, -1, 0))
        # The limit of a sample that was seen is needed to score it.
        records[name] = (dt.Record(Inputs(added=0.0), {"viral_load": series}, t0=-BEFORE), limit[0])
        studies.add(each[0]["study"])
    cohort = dt.stack({name: record for name, (record, _) in records.items()})
    series = cohort.record.observations["viral_load"]
    return cohort, {
        "with_samples_enough": len(many),
        "people": len(chosen),
        "studies": len(studies),
        "samples": int(series.mask.sum()),
        "below_limit": int((series.mask & (series.censor == -1)).sum()),
        "first_day_median": float(np.median(series.time[:, 0])),
        "limits": np.asarray([limit for _, limit in records.values()]),
    }


def halves(cohort: dt.Cohort) -> tuple[dt.Cohort, dt.Record]:
    """The earlier half of each person's samples, the middle one included; and the later half."""
    record = cohort.record
    series = record.observations["viral_load"]
    mask = np.asarray(series.mask)
    early = mask & (np.cumsum(mask, axis=1) <= (mask.sum(axis=1, keepdims=True) + 1) // 2)

    def part(rows: np.ndarray) -> dt.Record:
        kept = dt.Series(series.time, series.value, mask=rows, censor=series.censor, after=series.after)
        return dt.Record(record.inputs, {"viral_load": kept}, record.known, record.t0)

    return dt.Cohort(cohort.ids, part(early)), part(mask & ~early)


@dataclass(frozen=True)
class Held:
    """What is to be forecast, sample by sample: arrays (n,); loads as log10, at the limit where below it."""

    person: np.ndarray
    level: np.ndarray
    below: np.ndarray
    limit: np.ndarray
    ahead: np.ndarray


def held_of(kept: dt.Cohort, held_out: dt.Record, limits: np.ndarray) -> Held:
    series, before = held_out.observations["viral_load"], kept.record.observations["viral_load"]
    mask = np.asarray(series.mask)
    person = np.nonzero(mask)[0]
    last = np.where(before.mask, before.time, -np.inf).max(axis=1)
    return Held(
        person,
        np.log10(series.value[mask]),
        np.asarray(series.censor)[mask] == -1,
        np.log10(limits[person]),
        series.time[mask] - last[person],
    )


def calibrated(cohort: dt.Cohort, key: Any, method: dt.Nuts) -> tuple[Any, dict[str, Any]]:
    """The calibration, and how it went."""
    with warnings.catch_warnings():
        # What the warnings say is among the figures.
        warnings.simplefilter("ignore", dt.CalibrationWarning)
        tree, time = timed(lambda: dt.calibrate(POPULATION, cohort, key=key, method=method, progress=False))
    shared, every = dt.summary(tree), dt.summary(tree, individual=True)
    posterior = tree["posterior"]
    return tree, {
        "quantiles_5_50_95": {
            str(v): np.quantile(posterior[str(v)].values, (0.05, 0.5, 0.95)).tolist()
            for v in shared["variable"].values
        },
        "worst_r_hat_shared": float(shared["r_hat"].max()),
        "worst_r_hat_of_all": float(every["r_hat"].max()),
        "min_ess_bulk_shared": float(shared["ess_bulk"].min()),
        "min_ess_bulk_of_all": float(every["ess_bulk"].min()),
        "divergences": int(tree["sample_stats"]["diverging"].sum()),
        "leapfrogs_mean": float(tree["sample_stats"]["n_steps"].mean()),
        "wall_s": time.wall,
        "cpu_s": time.cpu,
    }


def half_lives(tree: Any) -> dict[str, Any]:
    """Of clearance, in days: the typical person, and the people."""
    draws = tree["posterior"]
    each = np.log(2) / draws["clearance"].values.reshape(-1, draws.sizes["patient"])
    low, middle, high = np.quantile(each, (0.05, 0.5, 0.95), axis=0)
    return {
        "typical_5_50_95": np.quantile(np.log(2) / draws["clearance_pop"].values, (0.05, 0.5, 0.95)).tolist(),
        "people_least_median_greatest": np.quantile(middle, (0, 0.5, 1)).tolist(),
        "interval_high_to_low_median": float(np.median(high / low)),
        "doubling_of_growth_5_50_95": np.quantile(
            np.log(2) / draws["growth"].values, (0.05, 0.5, 0.95)
        ).tolist(),
    }


def changes(kept: dt.Cohort) -> tuple[np.ndarray, np.ndarray]:
    """Days and change of log10 load between every two samples of a person, at the limit where below it."""
    series = kept.record.observations["viral_load"]
    days, change = [], []
    for mask, time, value in zip(series.mask, series.time, series.value, strict=True):
        day, level = time[mask], np.log10(value[mask])
        i, j = np.triu_indices(len(day), 1)
        days.append(day[j] - day[i])
        change.append(level[j] - level[i])
    return np.concatenate(days), np.concatenate(change)


def last_value(kept: dt.Cohort, held: Held, rng: np.random.Generator, falling: bool) -> np.ndarray:
    """Draws (sample, n) of log10 load about the last sample.

    Normal, with the root mean square change, or the mean change and its sd, over lags in the same bin.
    """
    days, change = changes(kept)
    place, wanted = np.digitize(days, LAGS), np.digitize(held.ahead, LAGS)
    centre, sd = np.zeros(len(wanted)), np.zeros(len(wanted))
    for one in np.unique(wanted):
        # The longest lags may be few before the half: the nearest bin with enough stands in.
        have = [b for b in np.unique(place) if np.sum(place == b) >= 10]
        mine = change[place == min(have, key=lambda b: abs(b - one))]
        centre[wanted == one] = mine.mean() if falling else 0.0
        sd[wanted == one] = mine.std() if falling else np.sqrt(np.mean(mine**2))
    series = kept.record.observations["viral_load"]
    last = np.asarray(series.mask).sum(axis=1) - 1
    level = np.log10(series.value[np.arange(len(last)), last])[held.person]
    return level + centre + sd * rng.standard_normal((DRAWS, len(level)))


def scores(drawn: np.ndarray, held: Held) -> dict[str, float]:
    """Of draws (sample, n) of log10 load."""
    top = np.mean(drawn <= held.level, axis=0)
    # Of a sample below the limit only that is known: it lies anywhere in the stretch from 0.
    bottom = np.where(held.below, 0.0, top)
    under = np.mean(drawn <= held.limit, axis=0)
    cut_value = np.maximum(held.level, held.limit)
    cut = np.maximum(drawn, held.limit)
    return {
        "n": len(held.level),
        "crps_log10": crps(cut_value, cut),
        "median_absolute_error_log10": float(np.median(np.abs(np.median(cut, axis=0) - cut_value))),
        "coverage_50": covered(bottom, top, 0.5),
        "coverage_90": covered(bottom, top, 0.9),
        "coverage_50_seen_only": covered(bottom[~held.below], top[~held.below], 0.5),
        "coverage_90_seen_only": covered(bottom[~held.below], top[~held.below], 0.9),
        "below_limit_predicted": float(under.mean()),
        "below_limit_observed": float(held.below.mean()),
        "brier_below_limit": float(np.mean((under - held.below) ** 2)),
    }


def covered(bottom: np.ndarray, top: np.ndarray, level: float) -> float:
    """Share of stretches of probability from `bottom` to `top` that lies in the central `level`."""
    low, high = (1 - level) / 2, (1 + level) / 2
    width = top - bottom
    inside = np.clip(np.minimum(top, high) - np.maximum(bottom, low), 0.0, None)
    point = (low <= top) & (top <= high)
    return float(np.mean(np.where(width > 0, inside / np.where(width > 0, width, 1.0), point)))


def compared(draws: dict[str, np.ndarray], held: Held, people: int) -> dict[str, Any]:
    """Scores of every forecaster, of all samples, by days ahead, and against the last value by person."""
    groups = {"to 7 d ahead": held.ahead <= 7, "more than 7 d ahead": held.ahead > 7}
    table, by_person = {}, {}
    for name, drawn in draws.items():
        table[name] = scores(drawn, held)
        table[name]["groups"] = {
            group: scores(drawn[:, rows], Held(*(field[rows] for field in vars(held).values())))
            for group, rows in groups.items()
        }
        cut, value = np.maximum(drawn, held.limit), np.maximum(held.level, held.limit)
        each = [crps(value[held.person == i], cut[:, held.person == i]) for i in range(people)]
        by_person[name] = np.asarray(each)
    for rival in (LAST, FALLING):
        gain = by_person[rival] - by_person[MODEL_NAME]
        table[MODEL_NAME][f"against {rival}"] = {
            "better_in_people": int(np.sum(gain > 0)),
            "crps_gain": float(np.mean(gain)),
            "crps_gain_se": float(np.std(gain, ddof=1) / np.sqrt(len(gain))),
        }
    return table


def below_by_forecast(draws: np.ndarray, held: Held) -> list[list[float]]:
    """Forecast probability of a load below the limit, share that was, and samples, in five groups."""
    under = np.mean(draws <= held.limit, axis=0)
    place = np.clip((under * 5).astype(int), 0, 4)
    return [
        [float(under[place == b].mean()), float(held.below[place == b].mean()), int(np.sum(place == b))]
        for b in np.unique(place)
    ]


def picture(cohort: dt.Cohort, kept: dt.Cohort, tree: Any, draws: Any, found: tuple[Held, Any, Any]) -> None:
    """Four people with forecasts, and below the limit by forecast; half-lives."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sarscov2_clearance"
    from matplotlib import pyplot as plt

    held, whole, key = found
    plot, axes = plt.subplots(1, 6, figsize=(17, 3.3), layout="constrained")
    series = cohort.record.observations["viral_load"]
    early = np.asarray(kept.record.observations["viral_load"].mask)
    plan = dt.scenario(cohort.record, until=35.0, every=0.5)
    made = dt.forecast(POPULATION, tree, plan, key=key, samples=400)["predictions"]
    cut, value = np.maximum(draws[MODEL_NAME], held.limit), np.maximum(held.level, held.limit)
    each = [crps(value[held.person == i], cut[:, held.person == i]) for i in range(len(cohort))]
    order = np.argsort(each)
    for ax, place in zip(axes, (0.1, 0.4, 0.7, 1.0), strict=False):
        i = int(order[int(place * (len(order) - 1))])
        mask = np.asarray(series.mask[i])
        time = made["viral_load_time"].values[i]
        rows = (time >= series.time[i, 0] - 3) & (time <= series.time[i, mask].max() + 3)
        low, middle, high = np.quantile(made["viral_load"].values[:, i, rows], (0.05, 0.5, 0.95), axis=0)
        ax.fill_between(time[rows], low, high, color="#3b6ea5", alpha=0.25, lw=0)
        ax.plot(time[rows], middle, color="#3b6ea5", lw=1)
        lost = np.asarray(series.censor[i]) == -1
        for part, colour in ((early[i], "#222222"), (mask & ~early[i], "#c0392b")):
            ax.plot(series.time[i][part & ~lost], series.value[i][part & ~lost], "o", ms=3.5, color=colour)
            ax.plot(series.time[i][part & lost], series.value[i][part & lost], "v", ms=4.5, color=colour)
        ax.set(yscale="log", xlabel="days since onset", title=f"{cohort.ids[i]}, CRPS {each[i]:.2f}")
        ax.set_ylim(1e-1, 1e12)
    axes[0].set_ylabel("copies/mL; red: left out; ▼ below limit", fontsize=8)
    for name, drawn in draws.items():
        rows = np.asarray(below_by_forecast(drawn, held))
        axes[4].plot(rows[:, 0], rows[:, 1], "o-", ms=3, lw=0.8, color=COLOURS[name], label=name)
    axes[4].plot((0, 1), (0, 1), color="#999999", lw=0.8)
    axes[4].set(xlabel="forecast", ylabel="was", title="Share below the limit")
    axes[4].legend(frameon=False, fontsize=7)
    half = np.log(2) / whole["posterior"]["clearance"].values.reshape(-1, len(cohort))
    low, middle, high = np.quantile(half, (0.05, 0.5, 0.95), axis=0)
    rank = np.argsort(middle)
    bars = np.stack([middle - low, high - middle])[:, rank]
    axes[5].errorbar(range(len(rank)), middle[rank], yerr=bars, fmt="o", ms=2.5, lw=0.7, color="#3b6ea5")
    axes[5].set(yscale="log", xlabel="people", ylabel="half-life of clearance, d", title="All samples")
    axes[5].set_yticks((0.3, 0.5, 1, 2, 3), ("0.3", "0.5", "1", "2", "3"))
    axes[5].minorticks_off()
    plot.savefig(FOLDER / "sarscov2_clearance.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/virus"))
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    assert not dt.check_model(COURSE)
    cohort, about = read(data_folder(chosen.data), chosen.people, chosen.seed)
    limits = about.pop("limits")
    method = dt.Nuts(chains=4, warmup=chosen.warmup, draws=chosen.draws, target_accept=0.85, max_depth=8)
    key = jax.random.key(chosen.seed)
    kept, held_out = halves(cohort)
    held = held_of(kept, held_out, limits)
    tree, sampling = calibrated(kept, key, method)
    print(sampling, flush=True)
    made = dt.forecast(POPULATION, tree, held_out, key=jax.random.fold_in(key, 1), samples=DRAWS)
    mask = np.asarray(held_out.observations["viral_load"].mask)
    rng = np.random.default_rng(chosen.seed)
    draws = {
        MODEL_NAME: np.log10(made["predictions"]["viral_load"].values[:, mask]),
        LAST: last_value(kept, held, rng, falling=False),
        FALLING: last_value(kept, held, rng, falling=True),
    }
    table = compared(draws, held, len(cohort))
    official = dt.score(POPULATION, tree, held_out, key=jax.random.fold_in(key, 2)).sel(channel="viral_load")
    for name, one in table.items():
        print(name, one, flush=True)
    whole, whole_sampling = calibrated(cohort, jax.random.fold_in(key, 3), method)
    rates = half_lives(whole)
    print(whole_sampling, rates, flush=True)
    write(
        "sarscov2_clearance",
        about
        | {
            "held_out": len(held.level),
            "forecast": table,
            "below_limit_by_forecast": {name: below_by_forecast(d, held) for name, d in draws.items()},
            "score_of_package": {str(v): float(official[v]) for v in official.data_vars},
            "calibration_of_earlier_half": sampling,
            "calibration_of_all": whole_sampling,
            "half_life_d": rates,
            "half_life_d_earlier_half": half_lives(tree),
        },
    )
    picture(cohort, kept, tree, draws, (held, whole, jax.random.fold_in(key, 4)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
