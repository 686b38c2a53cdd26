"""Four laws of growth on the lesions of patients under treatment: which describes, and which forecasts best.

    python benchmarks/tumour_sizes.py [--data ../shared/data/tumour] [--lesions 60]

Lesions with 6 readings or more of study 3 of Laleh et al. 2022, PLoS Comput Biol 18:e1009822 (volume from
the longest diameter; atezolizumab or docetaxel). Each lesion is calibrated alone, by each law with its
declared priors. (a) All readings: expected log density of a reading left out, by PSIS-LOO given the
lesion's others. (b) The last two readings of each lesion left out and forecast, against the last value
carried forward with the scatter of its own past errors. A lesion read as 0 counts as below 5 mm. Writes the
figures as JSON and a picture as SVG beside this file.
"""

import argparse
import contextlib
import csv
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.special import logsumexp
from scipy.stats import norm
from setting import FOLDER, data_folder, write

import dtwin_jax as dt
from dtwin_jax.models import tumour_bertalanffy, tumour_exponential, tumour_gompertz, tumour_logistic
from dtwin_jax.models.tumour_growth import Inputs
from dtwin_jax.twin.assess import crps

READINGS, HELD = 6, 2
SEEN_FROM = 0.52 * 5.0**3  # mm3, the volume of the file at 5 mm
LAWS = {
    "exponential": tumour_exponential,
    "logistic": tumour_logistic,
    "Gompertz": tumour_gompertz,
    "Bertalanffy": tumour_bertalanffy,
}
LAST = "last value carried forward"


@dataclass(frozen=True)
class Held:
    """What is to be forecast, reading by reading: arrays (n,), lesion by lesion in order of time."""

    patient: np.ndarray
    value: np.ndarray
    censored: np.ndarray
    ahead: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        return ~self.censored


def read(folder: Path, lesions: int) -> tuple[dt.Cohort, np.ndarray]:
    """The lesions, times in days from the first reading; and the authors' label of their course."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "laleh_study3.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["lesion_id"], []).append(row)
    many = {name: each for name, each in rows.items() if len(each) >= READINGS}
    chosen = sorted(np.random.default_rng(0).permutation(sorted(many))[:lesions])
    records = {}
    for name in chosen:
        time = np.asarray([float(row["t_days"]) for row in many[name]])
        volume = np.asarray([float(row["vol_mm3"]) for row in many[name]])
        lost = volume == 0.0
        series = dt.Series(time - time[0], np.where(lost, SEEN_FROM, volume), censor=np.where(lost, -1, 0))
        records[name] = dt.Record(Inputs(treatment=0.0), {"volume": series})
    return dt.stack(records), np.asarray([many[name][0]["pattern"] for name in chosen])


@dataclass(frozen=True)
class LeftOut:
    """PSIS-LOO, reading by reading: arrays (n,)."""

    elpd: np.ndarray
    effective: np.ndarray
    k: np.ndarray


def leave_one_out(tree: Any) -> LeftOut:
    """PSIS-LOO over the measured readings: the padding of the likelihood is no observation.

    Source: Vehtari, Gelman & Gabry 2017, doi 10.1007/s11222-016-9696-4.
    """
    from arviz_stats.base.array import array_stats

    mask = tree["observed_data"]["volume_mask"].values
    draws = tree["log_likelihood"]["volume"].values[:, :, mask].reshape(-1, mask.sum()).T
    weight, k = -draws, np.zeros(len(draws))
    for i, row in enumerate(draws):
        # A reading of 0 may be all but sure under every draw: weights are equal, with no tail to smooth.
        with np.errstate(all="ignore"), contextlib.suppress(ValueError):
            smoothed, shape = array_stats.psislw(row)
            if np.isfinite(shape) and np.all(np.isfinite(smoothed)):
                weight[i], k[i] = smoothed, shape
    elpd = logsumexp(weight + draws, axis=1) - logsumexp(weight, axis=1)
    whole = logsumexp(draws, axis=1) - np.log(draws.shape[1])
    assert np.all(np.isfinite(elpd))
    return LeftOut(elpd, whole - elpd, k)


def described(found: dict[str, LeftOut], label: np.ndarray) -> dict[str, Any]:
    """Expected log density of each law, and by how much it is behind the best."""
    best = max(found, key=lambda name: found[name].elpd.sum())
    table = {}
    for name, one in found.items():
        behind = one.elpd - found[best].elpd
        table[name] = {
            "elpd_loo": float(one.elpd.sum()),
            "se": float(np.std(one.elpd, ddof=1) * np.sqrt(len(one.elpd))),
            "p_loo": float(one.effective.sum()),
            "behind_best": float(behind.sum()),
            "behind_best_se": float(np.std(behind, ddof=1) * np.sqrt(len(behind))),
            "behind_best_by_course": {
                str(course): float(behind[label == course].sum()) for course in np.unique(label)
            },
            "pareto_k_above_0.7": float(np.mean(one.k > 0.7)),
            "pareto_k_above_1": float(np.mean(one.k > 1.0)),
        }
    return table


def carried_forward(kept: dt.Cohort, held: Held, key: Any, samples: int) -> tuple:
    """Draws (sample, n) and log densities (n,) of the last value, with the scatter of earlier changes.

    The log of a reading is normal about the log of the last value, with the root mean square change over as
    many readings in what was kept, all lesions together.
    """
    series = kept.record.observations["volume"]
    mask = np.asarray(series.mask)
    level = np.log(np.where(mask, series.value, 1.0))
    spread = {}
    for lag in range(1, HELD + 1):
        change = (level[:, lag:] - level[:, :-lag])[mask[:, lag:] & mask[:, :-lag]]
        spread[lag] = float(np.sqrt(np.mean(change**2)))
    last = level[np.arange(len(level)), mask.sum(axis=1) - 1][held.patient]
    sd = np.asarray([spread[lag] for lag in held.ahead])
    drawn = np.exp(last + sd * np.asarray(jax.random.normal(key, (samples, len(last)))))
    y = np.log(held.value)
    seen = norm.logpdf(y, last, sd) - y
    return drawn, np.where(held.censored, norm.logcdf(y, last, sd), seen)


def forecasts(law: dt.Model, kept: dt.Cohort, held_out: dt.Record, key: Any, method: dt.Nuts) -> tuple:
    """Draws (sample, n), log densities (n,), the calibration, and the package's own scores."""
    tree = calibrated(law, kept, key, method)
    series = held_out.observations["volume"]
    mask = np.asarray(series.mask)
    made = dt.forecast(law, tree, held_out, key=jax.random.fold_in(key, 1), samples=1000)["predictions"]
    drawn = made["volume"].values[:, mask]
    expected = made["volume_expected"].values[:, mask]
    cv = tree["posterior"]["cv"].values.reshape(-1, len(mask))
    cv = cv[np.unique(np.linspace(0, len(cv) - 1, len(drawn)).astype(int))][:, np.nonzero(mask)[0]]
    y, middle = np.log(series.value[mask]), np.log(expected)
    density = np.where(series.censor[mask] == -1, norm.logcdf(y, middle, cv), norm.logpdf(y, middle, cv) - y)
    official = dt.score(law, tree, held_out, key=jax.random.fold_in(key, 2)).sel(channel="volume")
    return drawn, logsumexp(density, axis=0) - np.log(len(drawn)), tree, official


def calibrated(law: dt.Model, cohort: dt.Cohort, key: Any, method: dt.Nuts) -> Any:
    """Calibration without treatment, whose effect these data do not tell."""
    with warnings.catch_warnings():
        # What the warnings say is among the figures.
        warnings.simplefilter("ignore", dt.CalibrationWarning)
        return dt.calibrate(law, cohort, key=key, priors={"kill": None}, method=method, progress=False)


def convergence(tree: Any) -> dict[str, Any]:
    """How well the chains agree."""
    table = dt.summary(tree, individual=True)
    r_hat = table["r_hat"].values.reshape(-1, tree["posterior"].sizes["patient"]).max(axis=0)
    middle = tree["posterior"].median(("chain", "draw"))
    return {
        "worst_r_hat": float(r_hat.max()),
        "lesions_with_r_hat_above_1.05": int(np.sum(r_hat > 1.05)),
        "min_ess_bulk": float(table["ess_bulk"].min()),
        "divergences": int(tree["sample_stats"]["diverging"].sum()),
        "leapfrogs_mean": float(tree["sample_stats"]["n_steps"].mean()),
        "median_of_lesions": {str(name): float(middle[name].median()) for name in middle},
    }


def scores(drawn: np.ndarray, density: np.ndarray, held: Held) -> dict[str, float]:
    """Of forecasts; errors and CRPS over the volumes seen, the log score over all."""
    seen = held.seen
    value, draws = held.value[seen], drawn[:, seen]
    middle = np.median(draws, axis=0)
    inside = [
        np.mean(
            (np.quantile(draws, (1 - level) / 2, axis=0) <= value)
            & (value <= np.quantile(draws, (1 + level) / 2, axis=0))
        )
        for level in (0.5, 0.9)
    ]
    return {
        "n": len(held.value),
        "crps_log": crps(np.log(value), np.log(draws)),
        "crps_mm3": crps(value, draws),
        "median_absolute_error_mm3": float(np.median(np.abs(middle - value))),
        "median_absolute_error_log": float(np.median(np.abs(np.log(middle / value)))),
        "log_score": float(np.mean(density)),
        "coverage_50": float(inside[0]),
        "coverage_90": float(inside[1]),
    }


def by_patient(drawn: np.ndarray, held: Held, patients: int) -> np.ndarray:
    """Mean CRPS of the log volume of each lesion; NaN where none was seen."""
    each = np.full(patients, np.nan)
    for i in range(patients):
        mine = held.seen & (held.patient == i)
        if mine.any():
            each[i] = crps(np.log(held.value[mine]), np.log(drawn[:, mine]))
    return each


def part(held: Held, rows: np.ndarray) -> Held:
    return Held(held.patient[rows], held.value[rows], held.censored[rows], held.ahead[rows])


def compared(draws: dict[str, tuple], held: Held, label: np.ndarray) -> dict[str, Any]:
    """Scores of every forecaster: of all, by the authors' label of the course, by readings ahead."""
    groups = {f"course {course}": label[held.patient] == course for course in np.unique(label)}
    groups |= {f"{lag} ahead": held.ahead == lag for lag in range(1, HELD + 1)}
    baseline = by_patient(draws[LAST][0], held, len(label))
    table = {}
    for name, (drawn, density) in draws.items():
        mine = by_patient(drawn, held, len(label))
        gain = (baseline - mine)[np.isfinite(mine)]
        table[name] = scores(drawn, density, held) | {
            "crps_log_gain": float(np.mean(gain)),
            "crps_log_gain_se": float(np.std(gain, ddof=1) / np.sqrt(len(gain))),
            "share_of_lesions_better": float(np.mean(gain > 0)),
            "groups": {
                group: scores(drawn[:, rows], density[rows], part(held, rows))
                for group, rows in groups.items()
            },
        }
    return table


def picture(kept: dt.Cohort, cohort: dt.Cohort, forecast_of: Any, loo_table: Any, score_table: Any) -> None:
    """Three lesions with forecasts, the laws by LOO, and the forecasters by CRPS."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tumour_sizes"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(1, 5, figsize=(14, 3.3), layout="constrained")
    everything = cohort.record.observations["volume"]
    trained = np.asarray(kept.record.observations["volume"].mask)
    for ax, (index, course, times, low, middle, high) in zip(axes, forecast_of, strict=False):
        mask = np.asarray(everything.mask[index])
        time, volume = everything.time[index], everything.value[index]
        lost = np.asarray(everything.censor[index]) == -1
        ax.fill_between(times, low, high, color="#3b6ea5", alpha=0.25, lw=0)
        ax.plot(times, middle, color="#3b6ea5", lw=1)
        for rows, colour in ((trained[index], "#222222"), (mask & ~trained[index], "#c0392b")):
            ax.plot(time[rows & ~lost], volume[rows & ~lost], "o", ms=3.5, color=colour)
            ax.plot(time[rows & lost], volume[rows & lost], "v", ms=4, color=colour)
        ax.set(yscale="log", xlabel="days", title=f"Gompertz, course “{course}”")
    axes[0].set_ylabel("mm³; red: left out")
    names = list(loo_table)
    axes[3].errorbar(
        [loo_table[n]["behind_best"] for n in names],
        range(len(names)),
        xerr=[loo_table[n]["behind_best_se"] for n in names],
        fmt="o",
        ms=4,
        color="#3b6ea5",
    )
    axes[3].set(
        yticks=range(len(names)), yticklabels=names, xlabel="elpd behind the best, ± 1 SE", title="PSIS-LOO"
    )
    axes[3].axvline(0, color="#999999", lw=0.8)
    names = [n for n in score_table if n != LAST]
    axes[4].errorbar(
        [score_table[n]["crps_log_gain"] for n in names],
        range(len(names)),
        xerr=[score_table[n]["crps_log_gain_se"] for n in names],
        fmt="o",
        ms=4,
        color="#3b6ea5",
    )
    axes[4].set(yticks=range(len(names)), yticklabels=names, xlabel="fall of CRPS, ± 1 SE")
    axes[4].set_title("Better than last value: > 0", fontsize=9)
    axes[4].axvline(0, color="#999999", lw=0.8)
    plot.savefig(FOLDER / "tumour_sizes.svg", metadata={"Date": None})


def drawn_courses(tree: Any, cohort: dt.Cohort, label: np.ndarray, key: Any) -> list[tuple]:
    """The first lesion of each course with 8 readings or more: the Gompertz forecast over its time."""
    mask = np.asarray(cohort.record.observations["volume"].mask)
    plan = dt.scenario(
        cohort.record, until=float(cohort.record.observations["volume"].time.max()), every=10.0
    )
    made = dt.forecast(LAWS["Gompertz"], tree, plan, key=key, samples=400)["predictions"]
    found = []
    for course in np.unique(label):
        index = int(np.flatnonzero((label == course) & (mask.sum(axis=1) >= 8))[0])
        times = made["volume_time"].values[index]
        rows = times <= cohort.record.observations["volume"].time[index].max() + 10
        low, middle, high = np.quantile(made["volume"].values[:, index, rows], (0.05, 0.5, 0.95), axis=0)
        found.append((index, str(course), times[rows], low, middle, high))
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tumour"))
    parser.add_argument("--lesions", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    cohort, label = read(data_folder(chosen.data), chosen.lesions)
    method = dt.Nuts(
        chains=4,
        warmup=chosen.warmup,
        draws=chosen.draws,
        target_accept=0.9,
        max_depth=8,
        dense=True,
        group=60,
    )
    key = jax.random.key(chosen.seed)
    kept, held_out = dt.leave_last_out(cohort, HELD)
    series = held_out.observations["volume"]
    mask = np.asarray(series.mask)
    ahead = np.cumsum(mask, axis=1)[mask]
    held = Held(np.nonzero(mask)[0], series.value[mask], series.censor[mask] == -1, ahead)
    reading_label = label[np.nonzero(np.asarray(cohort.record.observations["volume"].mask))[0]]
    loos, draws, sampling, official, gompertz = {}, {}, {}, {}, None
    draws[LAST] = carried_forward(kept, held, jax.random.fold_in(key, 99), 1000)
    for i, (name, law) in enumerate(LAWS.items()):
        tree = calibrated(law, cohort, jax.random.fold_in(key, 2 * i), method)
        loos[name] = leave_one_out(tree)
        drawn, density, short, told = forecasts(
            law, kept, held_out, jax.random.fold_in(key, 2 * i + 1), method
        )
        draws[name] = (drawn, density)
        sampling[name] = {"all readings": convergence(tree), "without the last two": convergence(short)}
        official[name] = {
            column: float(told[column]) for column in ("n", "crps", "log_score", "coverage_90", "mae")
        }
        gompertz = short if name == "Gompertz" else gompertz
        print(name, sampling[name]["all readings"], official[name], flush=True)
    loo_table, score_table = described(loos, reading_label), compared(draws, held, label)
    write(
        "tumour_sizes",
        {
            "lesions": len(cohort),
            "readings": int(np.sum(cohort.record.observations["volume"].mask)),
            "readings_of_0": int(np.sum(cohort.record.observations["volume"].censor == -1)),
            "courses": {str(c): int(np.sum(label == c)) for c in np.unique(label)},
            "held_out": len(held.value),
            "held_out_of_0": int(held.censored.sum()),
            "loo": loo_table,
            "forecast": score_table,
            "score": official,
            "sampling": sampling,
        },
    )
    picture(kept, cohort, drawn_courses(gompertz, cohort, label, key), loo_table, score_table)
    for name, one in loo_table.items():
        print(name, one["behind_best"], one["behind_best_se"], one["pareto_k_above_0.7"])
    for name, one in score_table.items():
        print(name, one["crps_log"], one["crps_log_gain"], one["crps_log_gain_se"], one["log_score"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
