"""PSA under intermittent androgen suppression: the second cycle forecast from the first.

    python benchmarks/psa_forecast.py [--data ../shared/data/tumour]

36 men (Bruchovsky et al. 2006, Cancer 107:389). `regrowth` is calibrated on the readings of the first cycle,
man by man, with its declared priors; and again with resistant cells known not to grow, a floor under PSA. The
second cycle is forecast from the record of its treatment. Against:
the last value carried forward, with the scatter of changes over as many days in the first cycles; a straight
line through the log PSA of the last off-treatment phase, with its prediction interval; and the man's own
first cycle again, at the same time since the treatment began, with the scatter about it that the other men's
second cycles show. Scores are CRPS of log PSA. Writes the figures as JSON and a picture as SVG beside this
file.
"""

import argparse
import csv
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import t as student
from setting import FOLDER, data_folder, write

import dtwin_jax as dt
from dtwin_jax.models import regrowth
from dtwin_jax.models.regrowth import Inputs
from dtwin_jax.twin.assess import crps

# The sheet of the data names no limit of detection; the one value of 0 counts as below the least other one.
LEAST = 0.02
SAMPLES = 1000
HORIZONS = (0, 100, 200, 300, 500, 1000, 3000)
# What is known beforehand, by model: nothing, and that resistant cells do not grow.
MODELS: dict[str, dict[str, float]] = {"regrowth": {}, "regrowth, resistance 0": {"resistance": 0.0}}
RIVALS = ("last value", "linear trend", "first cycle again")
NAMES = (*MODELS, *RIVALS)


@dataclass(frozen=True)
class Man:
    """Readings, days from the first of them, and the record of treatment."""

    time: np.ndarray
    psa: np.ndarray
    cycle: np.ndarray
    on: np.ndarray
    turns: np.ndarray
    treatment: np.ndarray

    def rows(self, cycle: int) -> np.ndarray:
        return self.cycle == cycle

    def record(self, cycle: int) -> dt.Record:
        """Readings of one cycle, with the treatment up to its end."""
        time, psa = self.time[self.rows(cycle)], self.psa[self.rows(cycle)]
        given = 2 * cycle
        series = dt.Series(time, np.maximum(psa, LEAST), censor=np.where(psa < LEAST, -1, 0))
        return dt.Record(
            Inputs(treatment=dt.Steps(self.turns[:given], self.treatment[:given])), {"psa": series}
        )


def read(folder: Path) -> dict[str, Man]:
    """The men who have readings in the second cycle."""
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "psa_ias_a.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["patient"], []).append(row)
    men = {name: _man([row for row in each if int(row["cycle"]) <= 2]) for name, each in rows.items()}
    return {name: man for name, man in men.items() if man.rows(2).any()}


def _man(rows: list[dict[str, str]]) -> Man:
    day = np.asarray([float(row["day"]) for row in rows])
    on = np.asarray([float(row["on_treatment"]) for row in rows])
    read = np.asarray([row["psa_ng_ml"] != "" for row in rows])
    start = day[read][0]
    turned = np.append(True, np.diff(on) != 0)
    psa = np.asarray([float(row["psa_ng_ml"]) for row, there in zip(rows, read, strict=True) if there])
    cycle = np.asarray([int(row["cycle"]) for row in rows])
    # The first record may precede the first reading.
    turns = np.maximum(day[turned] - start, 0.0)
    return Man(day[read] - start, psa, cycle[read], on[read], turns, on[turned])


def last_value(men: dict[str, Man], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws (sample, n) about the last log PSA of the first cycle.

    The scatter is the root mean square change of log PSA over a lag, of all first cycles, by lags between the
    edges of `HORIZONS`; beyond the longest that was seen it stays.
    """
    lag, change = [], []
    for man in men.values():
        time, level = man.time[man.rows(1)], level_of(man.psa[man.rows(1)])
        i, j = np.triu_indices(len(time), 1)
        lag.append(time[j] - time[i])
        change.append(level[j] - level[i])
    lag, change = np.concatenate(lag), np.concatenate(change)
    spread: list[float] = []
    for low, high in itertools.pairwise(HORIZONS):
        rows = (lag > low) & (lag <= high)
        spread.append(float(np.sqrt(np.mean(change[rows] ** 2))) if rows.sum() >= 20 else spread[-1])
    drawn = {}
    for name, man in men.items():
        ahead = man.time[man.rows(2)] - man.time[man.rows(1)][-1]
        sd = np.asarray(spread)[np.clip(np.searchsorted(HORIZONS, ahead) - 1, 0, len(spread) - 1)]
        last = level_of(man.psa[man.rows(1)])[-1]
        drawn[name] = last + sd * rng.standard_normal((SAMPLES, len(ahead)))
    return drawn


def linear_trend(men: dict[str, Man], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws of the prediction of a least-squares line through the last phase without treatment.

    Through the last five readings where that phase has fewer; Student's t with the degrees of freedom left.
    """
    drawn = {}
    for name, man in men.items():
        first = man.rows(1)
        off = first & (man.on == 0)
        chosen = off if off.sum() >= 5 else np.flatnonzero(first)[-5:]
        x, y = man.time[chosen], level_of(man.psa[chosen])
        centre, n = x.mean(), len(x)
        square = np.sum((x - centre) ** 2)
        slope = np.sum((x - centre) * y) / square
        scale = np.sqrt(np.sum((y - y.mean() - slope * (x - centre)) ** 2) / (n - 2))
        ahead = man.time[man.rows(2)] - centre
        # One error of intercept and slope in each draw, and one of each reading.
        t = student.rvs(n - 2, size=(SAMPLES, 3 + len(ahead)), random_state=rng)
        line = (
            y.mean() + scale * t[:, :1] / np.sqrt(n) + (slope + scale * t[:, 1:2] / np.sqrt(square)) * ahead
        )
        drawn[name] = line + scale * t[:, 3:]
    return drawn


def first_again(men: dict[str, Man], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws about the man's own first cycle, between its readings by lines, phase by phase.

    The scatter is that of the other men's second cycles about theirs.
    """
    middle = {name: _repeated(man) for name, man in men.items()}
    error = {name: level_of(man.psa[man.rows(2)]) - middle[name] for name, man in men.items()}
    drawn = {}
    for name in men:
        others = np.concatenate([e for other, e in error.items() if other != name])
        drawn[name] = middle[name] + rng.choice(others, (SAMPLES, len(middle[name])))
    return drawn


def _repeated(man: Man) -> np.ndarray:
    level, found = level_of(man.psa), np.empty(man.rows(2).sum())
    begun = [man.turns[i] if i < len(man.turns) else np.inf for i in range(4)]
    for phase, state in ((0, 1.0), (1, 0.0)):
        wanted = man.on[man.rows(2)] == state
        known = man.rows(1) & (man.on == state)
        known = known if known.any() else man.rows(1)
        since = man.time[man.rows(2)][wanted] - begun[2 + phase] if wanted.any() else np.empty(0)
        found[wanted] = np.interp(since, man.time[known] - begun[phase], level[known])
    return found


def level_of(psa: np.ndarray) -> np.ndarray:
    """Log PSA, at the least value where it was 0."""
    return np.log(np.maximum(psa, LEAST))


def by_model(
    men: dict[str, Man], priors: dict[str, float], key: Any, method: dt.Nuts
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draws of log PSA by `regrowth`, and how the calibration went."""
    cohort = dt.stack({name: man.record(1) for name, man in men.items()})
    wanted = dt.stack({name: man.record(2) for name, man in men.items()}).record
    with warnings.catch_warnings():
        # What the warnings say is among the figures.
        warnings.simplefilter("ignore", dt.CalibrationWarning)
        tree = dt.calibrate(regrowth, cohort, key=key, priors=priors, method=method, progress=False)
    made = dt.forecast(regrowth, tree, wanted, key=jax.random.fold_in(key, 1), samples=SAMPLES)["predictions"]
    mask = np.asarray(wanted.observations["psa"].mask)
    level = np.log(made["psa"].values)
    drawn = {name: level[:, i, mask[i]] for i, name in enumerate(men)}
    official = dt.score(regrowth, tree, wanted, key=jax.random.fold_in(key, 2)).sel(channel="psa")
    table = dt.summary(tree, individual=True)
    r_hat = table["r_hat"].values.reshape(-1, len(men)).max(axis=0)
    middle = tree["posterior"].median(("chain", "draw"))
    return drawn, {
        "score": {str(name): float(official[name]) for name in official.data_vars},
        "median_of_men": {str(name): float(middle[name].median()) for name in middle},
        "worst_r_hat": float(r_hat.max()),
        "men_with_r_hat_above_1.05": int(np.sum(r_hat > 1.05)),
        "min_ess_bulk": float(table["ess_bulk"].min()),
        "divergences": int(tree["sample_stats"]["diverging"].sum()),
        "leapfrogs_mean": float(tree["sample_stats"]["n_steps"].mean()),
    }


def scores(value: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Of forecasts of log PSA (sample, n)."""
    low, high = np.quantile(drawn, (0.05, 0.95), axis=0)
    return {
        "n": len(value),
        "crps_log": crps(value, drawn),
        "median_absolute_error_log": float(np.median(np.abs(np.median(drawn, axis=0) - value))),
        "bias_log": float(np.mean(np.median(drawn, axis=0) - value)),
        "coverage_90": float(np.mean((low <= value) & (value <= high))),
    }


def compared(men: dict[str, Man], draws: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Scores of every forecaster: of all readings, by horizon, by treatment, and by man."""
    seen = {name: man.rows(2) & (man.psa >= LEAST) for name, man in men.items()}
    value = np.concatenate([np.log(man.psa[seen[name]]) for name, man in men.items()])
    ahead = np.concatenate([man.time[seen[name]] - man.time[man.rows(1)][-1] for name, man in men.items()])
    on = np.concatenate([man.on[seen[name]] for name, man in men.items()])
    table = {}
    for forecaster, by_man in draws.items():
        kept = {name: by_man[name][:, seen[name][man.rows(2)]] for name, man in men.items()}
        drawn = np.concatenate(list(kept.values()), axis=1)
        horizons = {
            f"{low} to {high} d": (ahead >= low) & (ahead < high)
            for low, high in itertools.pairwise(HORIZONS)
        }
        horizons = {label: rows for label, rows in horizons.items() if rows.sum() > 1}
        table[forecaster] = scores(value, drawn) | {
            "horizons": {label: scores(value[rows], drawn[:, rows]) for label, rows in horizons.items()},
            "on treatment": scores(value[on == 1], drawn[:, on == 1]),
            "off treatment": scores(value[on == 0], drawn[:, on == 0]),
            "men": {name: crps(np.log(man.psa[seen[name]]), kept[name]) for name, man in men.items()},
        }
    for model in MODELS:
        mine = np.asarray(list(table[model]["men"].values()))
        for rival in RIVALS:
            gain = np.asarray(list(table[rival]["men"].values())) - mine
            table[model][f"against {rival}"] = {
                "better_in_men": int(np.sum(gain > 0)),
                "crps_log_gain": float(np.mean(gain)),
                "crps_log_gain_se": float(np.std(gain, ddof=1) / np.sqrt(len(gain))),
            }
    return table


def picture(men: dict[str, Man], draws: dict[str, dict[str, np.ndarray]], table: dict[str, Any]) -> None:
    """Three men, of best, middle and worst CRPS of the better model; scores by horizon; man by man."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "psa_forecast"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(1, 5, figsize=(15, 3.6), layout="constrained")
    best = min(MODELS, key=lambda model: table[model]["crps_log"])
    order = sorted((n for n in men if men[n].rows(2).sum() >= 8), key=table[best]["men"].__getitem__)
    colours = dict(zip(NAMES, ("#c98a1b", "#3b6ea5", "#777777", "#8a5fa8", "#3c8d4f"), strict=True))
    for ax, name in zip(axes, (order[0], order[len(order) // 2], order[-1]), strict=False):
        man = men[name]
        time = man.time[man.rows(2)]
        for turn, stop, on in zip(man.turns, np.append(man.turns[1:], time[-1]), man.treatment, strict=True):
            if on:
                ax.axvspan(turn, stop, color="#eeeeee", lw=0)
        for model in MODELS:
            low, middle, high = np.exp(np.quantile(draws[model][name], (0.05, 0.5, 0.95), axis=0))
            if model == best:
                ax.fill_between(time, low, high, color=colours[model], alpha=0.25, lw=0)
            ax.plot(time, middle, color=colours[model], lw=1)
        for cycle, colour in ((1, "#222222"), (2, "#c0392b")):
            ax.plot(man.time[man.rows(cycle)], man.psa[man.rows(cycle)], "o", ms=3, color=colour)
        ax.set(yscale="log", xlabel="days", title=f"man {name}, CRPS {table[best]['men'][name]:.2f}")
        ax.set_ylim(0.01, 1000)
    axes[0].set_ylabel("PSA, ng/mL; red: forecast; grey: treated", fontsize=8)
    for name in NAMES:
        found = table[name]["horizons"]
        values = [one["crps_log"] for one in found.values()]
        axes[3].plot(list(found), values, "o-", ms=3, color=colours[name], label=name)
    axes[3].set(ylabel="CRPS of log PSA", xlabel="after the last reading used", title="By horizon")
    axes[3].set_yscale("log")
    axes[3].set_yticks((0.5, 1, 2, 5), ("0.5", "1", "2", "5"))
    axes[3].minorticks_off()
    axes[3].tick_params(axis="x", rotation=60, labelsize=8)
    # One legend for the last two, below: over the curves there is no room.
    plot.legend(
        *axes[3].get_legend_handles_labels(), loc="outside lower right", ncols=5, frameon=False, fontsize=8
    )
    for rival in ("last value", "first cycle again"):
        across, up = (list(table[name]["men"].values()) for name in (rival, best))
        axes[4].plot(across, up, "o", ms=3, color=colours[rival])
    top = max(axes[4].get_xlim()[1], axes[4].get_ylim()[1])
    axes[4].plot((0, top), (0, top), color="#999999", lw=0.8)
    axes[4].set(xlabel="CRPS of the other", ylabel=f"CRPS of {best}", title="Each man")
    plot.savefig(FOLDER / "psa_forecast.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data/tumour"))
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--draws", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    men = read(data_folder(chosen.data))
    method = dt.Nuts(
        chains=4,
        warmup=chosen.warmup,
        draws=chosen.draws,
        target_accept=0.9,
        max_depth=8,
        dense=True,
        group=36,
    )
    rng = np.random.default_rng(chosen.seed)
    draws, sampling = {}, {}
    for name, priors in MODELS.items():
        draws[name], sampling[name] = by_model(men, priors, jax.random.key(chosen.seed), method)
    rivals: dict[str, Callable[..., dict[str, np.ndarray]]] = {
        "last value": last_value,
        "linear trend": linear_trend,
        "first cycle again": first_again,
    }
    draws |= {name: rival(men, rng) for name, rival in rivals.items()}
    table = compared(men, draws)
    write(
        "psa_forecast",
        {
            "men": len(men),
            "readings_first_cycle": int(sum(man.rows(1).sum() for man in men.values())),
            "readings_second_cycle": int(sum(man.rows(2).sum() for man in men.values())),
            "readings_of_0": int(sum((man.psa < LEAST).sum() for man in men.values())),
            "forecast": table,
            "calibration": sampling,
        },
    )
    picture(men, draws, table)
    for name, one in table.items():
        print(name, {k: v for k, v in one.items() if k not in ("men",)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
