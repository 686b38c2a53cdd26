"""Insulin sensitivity from an oral glucose test of five samples, person by person and as a population.

    python benchmarks/ogtt_sensitivity.py [--data ../shared/data/glucose] [--people 85]

75 g tests of 92 people (Vanderbilt, from the R package tabletools), 85 of them with a weight.
`oral_minimal_model` with measured insulin, straight between samples, as input: basal glucose and insulin are
the samples at 0, glucose at 30, 60, 90 and 120 min is explained by SI and the shape of the rate of appearance
to 120 min. Four values do not tell the shape from the error, nor p2 or the appearance at 180 min, after the
last sample, from their priors: these are known, as declared, as are SG and V. (a) The people, or a random
part of them, as a population. (b) Every person alone: the most probable SI and shape under the model's
priors, with the interval that the curvature gives, and how far SI moves if what is known were otherwise. SI
is compared with the index of Matsuda & DeFronzo 1999, Diabetes Care 22:1462. Writes the figures as JSON and a
picture as SVG beside this file.
"""

import argparse
import csv
import functools
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffrax
import jax
import numpy as np
from scipy.stats import norm, spearmanr
from setting import FOLDER, data_folder, timed, write

import dtwin_jax as dt
from dtwin_jax.models import oral_minimal_model
from dtwin_jax.models.oral_minimal_model import Inputs

VARY = ("SI", "ra_30", "ra_90", "ra_120")
# Ten minutes divide all corners of insulin and appearance; how exact that is stands among the figures.
QUICK = replace(oral_minimal_model, solver=replace(oral_minimal_model.solver, method=diffrax.Bosh3, dt=10.0))
# Away from 0, where nobody differs: a half-normal prior leaves a funnel there.
POPULATION = dt.Population(
    QUICK,
    {"SI": dt.lognormal(0.8, log_sd=0.5)} | dict.fromkeys(VARY[1:], dt.lognormal(0.4, log_sd=0.5)),
)
KNOWN = {"sd": None, "cv": None, "p2": None, "ra_180": None}
# Proportional error of a second population: four values do not tell it from the shape.
WIDE = 0.1
# What if: the error doubled; p2 and ra_180 one sd of their declared priors up and down; V a fifth.
OTHERWISE = {"cv": (0.06,), "p2": (0.0099, 0.0148), "ra_180": (0.2, 0.45), "V": (1.16, 1.74)}


@dataclass(frozen=True)
class Person:
    """Samples of one test: minutes, mg/dL, u[IU]/mL; and kg."""

    time: np.ndarray
    glucose: np.ndarray
    insulin: np.ndarray
    weight: float

    @property
    def record(self) -> dt.Record:
        known = {"Gb": self.glucose[0], "Ib": self.insulin[0], "BW": self.weight}
        series = dt.Series(self.time[1:], self.glucose[1:])
        return dt.Record(Inputs(insulin=dt.Sampled(self.time, self.insulin)), {"glucose": series}, known)

    @property
    def matsuda(self) -> float:
        """The composite index of sensitivity, of the five samples."""
        product = self.glucose[0] * self.insulin[0] * self.glucose.mean() * self.insulin.mean()
        return float(10000 / np.sqrt(product))


def read(folder: Path) -> dict[str, Person]:
    """The people whose weight is known."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "ogtt_vanderbilt_a.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["id"], []).append(row)
    people = {}
    for name, each in rows.items():
        if each[0]["weight_kg"] not in ("", "NA"):
            time, glucose, insulin = (
                np.asarray([float(row[column]) for row in each])
                for column in ("time_min", "glucose_mg_dl", "insulin_uU_ml")
            )
            people[name] = Person(time, glucose, insulin, float(each[0]["weight_kg"]))
    return people


def cohort_of(people: dict[str, Person]) -> dt.Cohort:
    return dt.stack({name: person.record for name, person in people.items()})


@dataclass(frozen=True)
class Estimate:
    """SI of each person: middle, 90 % interval and sd of its log."""

    low: np.ndarray
    middle: np.ndarray
    high: np.ndarray
    log_sd: np.ndarray


def laplace(found: Any, name: str) -> Estimate:
    """The peak of one parameter, with the interval of the curvature on the log scale."""
    index = found.names.index(name)
    log_sd = np.sqrt(found.covariance[:, index, index])
    middle = found.estimate[name]
    reach = np.exp(norm.ppf(0.95) * log_sd)
    return Estimate(middle / reach, middle, middle * reach, log_sd)


def posterior(tree: Any, name: str) -> Estimate:
    """Posterior median of one parameter, with the central interval."""
    draws = tree["posterior"][name].values.reshape(-1, tree["posterior"].sizes["patient"])
    low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
    return Estimate(low, middle, high, np.log(draws).std(axis=0))


def spread(one: Estimate) -> dict[str, Any]:
    """What the estimates of all say."""
    return {
        "quantiles_0_10_50_90_100": np.quantile(one.middle, (0, 0.1, 0.5, 0.9, 1)).tolist(),
        "sd_of_log": float(np.std(np.log(one.middle), ddof=1)),
        "high_to_low_of_interval_median": float(np.median(one.high / one.low)),
    }


def against(one: Estimate, matsuda: np.ndarray) -> dict[str, float]:
    """Rank correlation with the index, and the slope of the logs."""
    rank = spearmanr(one.middle, matsuda)
    log = np.log(one.middle), np.log(matsuda)
    return {
        "people": len(matsuda),
        "spearman": float(rank.statistic),
        "p": float(rank.pvalue),
        "pearson_of_logs": float(np.corrcoef(*log)[0, 1]),
        "slope_of_logs": float(np.polyfit(log[1], log[0], 1)[0]),
    }


def misfit(predicted: np.ndarray, people: dict[str, Person], cv: float | None = None) -> dict[str, Any]:
    """Residuals, (person, time), also in units of the known error."""
    p = oral_minimal_model.params()
    glucose = np.asarray([person.glucose[1:] for person in people.values()])
    cv = float(p.cv) if cv is None else cv
    z = (glucose - predicted) / np.sqrt(p.sd**2 + (cv * predicted) ** 2)
    return {
        "rmse_mg_dl": float(np.sqrt(np.mean((glucose - predicted) ** 2))),
        "mean_square_z": float(np.mean(z**2)),
        "beyond_2": float(np.mean(np.abs(z) > 2)),
        "mean_by_time_mg_dl": (glucose - predicted).mean(axis=0).tolist(),
    }


def alone(people: dict[str, Person], key: Any) -> tuple[Any, np.ndarray, dict[str, Any]]:
    """MAP of each person; glucose explained (person, time); figures."""
    cohort = cohort_of(people)
    found, time = timed(lambda: fitted(cohort, key))
    predicted = np.asarray(solved(QUICK)(found.params, cohort.record))
    figures = {
        "people": len(people),
        "failed": list(found.failed),
        "without_interval": int(np.isnan(found.standard_error["SI"]).sum()),
        "starts_differ_at_most": float(np.ptp(found.starts, axis=1).max()),
        "wall_s": time.wall,
        "cpu_s": time.cpu,
        "parameters": {name: spread(laplace(found, name)) for name in found.names},
        "residuals": misfit(predicted, people),
    }
    return found, predicted, figures


def fitted(cohort: dt.Cohort, key: Any, **known: float) -> Any:
    """MAP of each person, with some of what is known otherwise."""
    return dt.fit(QUICK, cohort, key=key, priors=KNOWN | known, starts=2, method="gauss_newton")


def otherwise(people: dict[str, Person], found: Any, key: Any) -> dict[str, Any]:
    """SI of each person if what is known were otherwise, relative to `found`."""
    table: dict[str, Any] = {}
    cohort = cohort_of(people)
    for name, levels in OTHERWISE.items():
        for level in levels:
            there = fitted(cohort, key, **{name: level})
            ratio = there.estimate["SI"] / found.estimate["SI"]
            z = misfit(np.asarray(solved(QUICK)(there.params, cohort.record)), people)
            table[f"{name} {level:g}"] = {
                "SI_ratio_quantiles_10_50_90": np.quantile(ratio, (0.1, 0.5, 0.9)).tolist(),
                "spearman": float(spearmanr(there.estimate["SI"], found.estimate["SI"]).statistic),
                "interval_high_to_low_median": spread(laplace(there, "SI"))["high_to_low_of_interval_median"],
                "rmse_mg_dl": z["rmse_mg_dl"],
                "failed": len(there.failed),
            }
    return table


@functools.cache
def solved(model: Any) -> Any:
    """Glucose of patients, without error."""
    return jax.jit(jax.vmap(lambda p, record: model.predict(p, record)["glucose"].loc))


def together(
    people: dict[str, Person], key: Any, method: dt.Nuts, **known: float
) -> tuple[Any, dict[str, Any]]:
    """Calibration as a population, and how it went."""
    cohort = cohort_of(people)
    with warnings.catch_warnings():
        # What the warnings say is among the figures.
        warnings.simplefilter("ignore", dt.CalibrationWarning)
        tree, time = timed(
            lambda: dt.calibrate(
                POPULATION, cohort, key=key, priors=KNOWN | known, method=method, progress=False
            )
        )
    shared, every = dt.summary(tree), dt.summary(tree, individual=True)
    return tree, {
        "people": len(people),
        "quantiles_5_50_95": {
            str(v): np.quantile(tree["posterior"][str(v)].values, (0.05, 0.5, 0.95)).tolist()
            for v in shared["variable"].values
        },
        "worst_r_hat_shared": float(shared["r_hat"].max()),
        "worst_r_hat_of_all": float(every["r_hat"].max()),
        "min_ess_bulk_shared": float(shared["ess_bulk"].min()),
        "min_ess_bulk_of_all": float(every["ess_bulk"].min()),
        "divergences": int(tree["sample_stats"]["diverging"].sum()),
        "leapfrogs_mean": float(tree["sample_stats"]["n_steps"].mean()),
        "residuals": misfit(
            tree["posterior_predictive"]["glucose_expected"].values.mean(axis=(0, 1)), people, **known
        ),
        "wall_s": time.wall,
        "cpu_s": time.cpu,
    }


def shrunk(tree: Any, found: Any, rows: list[int]) -> dict[str, Any]:
    """What the population does to the estimates of its people alone."""
    table = {}
    for name in VARY:
        omega = float(np.median(tree["posterior"][f"omega_{name}"].values))
        mine, single = posterior(tree, name), part(laplace(found, name), rows)
        table[name] = {
            "omega": omega,
            "shrinkage_1_minus_sd_over_omega": float(1 - np.std(np.log(mine.middle), ddof=1) / omega),
            "sd_of_log_alone": float(np.std(np.log(single.middle), ddof=1)),
            "sd_of_log_together": float(np.std(np.log(mine.middle), ddof=1)),
            "log_sd_of_a_person_alone": float(np.median(single.log_sd)),
            "log_sd_of_a_person_together": float(np.median(mine.log_sd)),
            "log_ratio_rms": float(np.sqrt(np.mean(np.log(mine.middle / single.middle) ** 2))),
            "alone_inside_interval": float(
                np.mean((mine.low <= single.middle) & (single.middle <= mine.high))
            ),
        }
    return table


def exactness(found: Any, people: dict[str, Person], predicted: np.ndarray) -> float:
    """The largest error of the fixed step over all people, mg/dL."""
    right = solved(oral_minimal_model)(found.params, cohort_of(people).record)
    return float(np.abs(np.asarray(right) - predicted).max())


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/glucose"))
    parser.add_argument("--people", type=int, default=85)
    parser.add_argument("--warmup", type=int, default=250)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    people = read(data_folder(chosen.data))
    key = jax.random.key(chosen.seed)
    matsuda = np.asarray([person.matsuda for person in people.values()])
    drawn = np.random.default_rng(chosen.seed).permutation(sorted(people))[: chosen.people]
    some = {name: person for name, person in people.items() if name in set(drawn)}
    method = dt.Nuts(chains=chosen.chains, warmup=chosen.warmup, draws=chosen.draws, max_depth=7)
    tree, shared = together(some, jax.random.fold_in(key, 1), method)
    print(shared, flush=True)
    wide_tree, wide = together(some, jax.random.fold_in(key, 1), method, cv=WIDE)
    print(wide, flush=True)
    found, predicted, figures = alone(people, key)
    figures["otherwise"] = otherwise(people, found, key)
    figures["fixed_step_error_mg_dl"] = exactness(found, people, predicted)
    rows = [found.ids.index(name) for name in some]
    single = laplace(found, "SI")
    figures["against_matsuda"] = against(single, matsuda)
    figures["of_the_population_against_matsuda"] = against(part(single, rows), matsuda[rows])
    for one, about in ((tree, shared), (wide_tree, wide)):
        about["against_matsuda"] = against(posterior(one, "SI"), matsuda[rows])
        about["SI"] = spread(posterior(one, "SI"))
        about["shrinkage"] = shrunk(one, found, rows)
    print(figures, shared, wide, sep="\n", flush=True)
    write("ogtt_sensitivity", {"together": shared, "together_wide_error": wide, "alone": figures})
    picture(people, found, predicted, tree, rows)
    return 0


def part(one: Estimate, rows: list[int]) -> Estimate:
    """Of some of the people."""
    return Estimate(one.low[rows], one.middle[rows], one.high[rows], one.log_sd[rows])


def picture(people: dict[str, Person], found: Any, predicted: np.ndarray, tree: Any, rows: list[int]) -> None:
    """SI against the index, three tests, and what the population does to the estimates."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "ogtt_sensitivity"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained")
    matsuda = np.asarray([person.matsuda for person in people.values()])
    single, mine = laplace(found, "SI"), posterior(tree, "SI")
    for one, x, colour, label in (
        (single, matsuda, "#999999", "alone"),
        (mine, matsuda[rows], "#3b6ea5", "population"),
    ):
        bars = np.stack([one.middle - one.low, one.high - one.middle])
        axes[0].errorbar(x, one.middle, yerr=bars, fmt="o", ms=2.5, lw=0.7, color=colour, label=label)
    axes[0].set(xscale="log", yscale="log", xlabel="Matsuda index", ylabel="SI, mL/µU/min")
    axes[0].legend(frameon=False, fontsize=7)
    names = list(people)
    order = sorted(range(len(rows)), key=lambda i: matsuda[rows[i]])
    for ax, i in zip(axes[1:4], (order[1], order[len(order) // 2], order[-2]), strict=True):
        person = people[names[rows[i]]]
        draws = tree["posterior_predictive"]["glucose"].values[..., i, :].reshape(-1, 4)
        low, middle, high = np.quantile(draws, (0.05, 0.5, 0.95), axis=0)
        time = person.time[1:]
        ax.fill_between(time, low, high, color="#3b6ea5", alpha=0.25, lw=0)
        ax.plot(time, middle, color="#3b6ea5", lw=1)
        ax.plot(time, predicted[rows[i]], "--", color="#777777", lw=1)
        ax.plot(person.time, person.glucose, "o", ms=3.5, color="#222222")
        ax.set(xlabel="min", title=f"SI {mine.middle[i]:.1e}, Matsuda {person.matsuda:.1f}")
    axes[1].set_ylabel("glucose, mg/dL (dashed: alone)")
    axes[4].errorbar(
        single.middle[rows],
        mine.middle,
        xerr=np.stack([single.middle - single.low, single.high - single.middle])[:, rows],
        yerr=np.stack([mine.middle - mine.low, mine.high - mine.middle]),
        fmt="o",
        ms=2.5,
        lw=0.7,
        color="#3b6ea5",
    )
    axes[4].axline((1e-4, 1e-4), (1e-3, 1e-3), color="#999999", lw=0.8)
    axes[4].axhline(float(np.median(tree["posterior"]["SI_pop"].values)), color="#c0392b", lw=0.8)
    axes[4].set(xscale="log", yscale="log", xlabel="SI alone", ylabel="SI, population (red: typical)")
    plot.savefig(FOLDER / "ogtt_sensitivity.svg", metadata={"Date": None})


if __name__ == "__main__":
    raise SystemExit(main())
