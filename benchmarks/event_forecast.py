"""Forecast death from the visits so far: networks against a logistic and a Cox model of the last values.

Patients are split before anything is fitted: five parts, each tested once on what the other four taught. Of
those, a quarter stops the training of a network early and recalibrates it; the simple models have no use for
that and are fitted on all four parts. At a landmark time everyone still at risk is given the probability of
the event within the horizon, by what was known then, by models that learned at such times; outcomes are
weighted by the inverse of the probability not to be censored. Intervals are of a bootstrap over patients.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from event_scores import censoring_weights, groups, logistic, measured
from event_studies import STUDIES, Study
from scipy import optimize
from setting import FOLDER, data_folder, timed, write

import dtwin_jax as dt
from dtwin_jax.neural import attention, graph, recurrent
from dtwin_jax.neural.sequence import scaling_of, sequence_at

NETWORKS: dict[str, Callable] = {
    "plain recurrent": recurrent.plain,
    "LSTM": recurrent.lstm,
    "GRU": recurrent.gru,
    "transformer": attention.transformer,
    "graph": graph.graph,
}
SIMPLE = ("logistic, last values", "Cox, last values")
PARTS, WIDTH = 5, 12
ROUND, ROUNDS, PATIENCE = 20, 30, 3
OPTIMISER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.003, weight_decay=0.1))
# Of the recalibration, log rate' = a + m + b (log rate - m), m the mean: sd of a and b about 0 and 1.
SHRINK = (0.5, 0.25)


@eqx.filter_jit
def rates_of(f: dt.EventForecaster, p: Any, record: dt.Record) -> Any:
    """Rates after each visit: (patient, visit, interval)."""
    return jax.vmap(lambda r: f.predict(p, r)["event"].rate)(record)


def overlap(start: Any, stop: Any, edges: tuple[float, ...]) -> np.ndarray:
    """Time between `start` and `stop` in each interval: (..., interval)."""
    ends = np.array([0.0, *edges, np.inf])
    start, stop = (np.asarray(x)[..., None] for x in (start, stop))
    return np.maximum(np.minimum(stop, ends[1:]) - np.maximum(start, ends[:-1]), 0.0)


def each_log_likelihood(rates: np.ndarray, event: dt.Series, edges: tuple, a: float, b: float) -> np.ndarray:
    """Of each patient, with rates exp(a) rate^b, in units of the mean number of rows of a patient.

    Not over the patient's own number: those who die early have fewer, and would count for more in each.
    """
    spent = overlap(0.0, event.value, edges) * event.mask[..., None]
    inside = np.sum(event.value[..., None] > np.array(edges), axis=-1)
    seen = event.mask & (event.censor == 0)
    log_rate = a + b * np.log(rates)
    at_event = np.take_along_axis(log_rate, inside[..., None], axis=-1)[..., 0]
    total = np.sum(np.where(seen, at_event, 0.0), axis=1) - np.sum(np.exp(log_rate) * spent, axis=(1, 2))
    return total / event.mask.sum(axis=1).mean()


def trained(f: dt.EventForecaster, cohort: dt.Cohort, teach: np.ndarray, held: np.ndarray) -> dict[str, Any]:
    """Rates of all patients by the weights that were best on `held`, and how far training went."""
    taught = cohort.take(teach.tolist())
    p, event = f.started(taught), cohort.record.observations["event"]
    kept = jax.tree.map(lambda leaf: leaf[held], event)
    best = (-np.inf, 0, np.asarray(rates_of(f, p, cohort.record)))
    for i in range(1, ROUNDS + 1):
        p = dt.train(
            f,
            taught,
            where=lambda p: (p.encoder, p.head),
            optimiser=OPTIMISER,
            steps=ROUND,
            key=jax.random.key(i),
            params=p,
        ).params
        rates = np.asarray(rates_of(f, p, cohort.record))
        score = float(np.mean(each_log_likelihood(rates[held], kept, f.edges, 0.0, 1.0)))
        if score > best[0]:
            best = (score, i, rates)
        elif i - best[1] >= PATIENCE:
            break
    score, rounds, rates = best

    middle = float(np.mean(np.log(rates[held])[np.asarray(kept.mask)]))

    def about_middle(ab: np.ndarray) -> tuple[float, float]:
        # Turned about the middle, so that holding a near 0 does not move the average of a flatter line.
        return float(ab[0] + (1.0 - ab[1]) * middle), float(ab[1])

    def cost(ab: np.ndarray) -> float:
        fit = np.sum(each_log_likelihood(rates[held], kept, f.edges, *about_middle(ab)))
        return 0.5 * (ab[0] / SHRINK[0]) ** 2 + 0.5 * ((ab[1] - 1.0) / SHRINK[1]) ** 2 - fit

    found = optimize.minimize(cost, (0.0, 1.0), method="Nelder-Mead").x
    return {"rates": rates, "steps": rounds * ROUND, "recalibration": about_middle(found)}


def by_rates(rates: np.ndarray, event: dt.Series, study: Study, a: float, b: float) -> np.ndarray:
    """Probability of the event within the horizon after each landmark: (patient, landmark).

    NaN where the patient was not there any more.
    """
    ahead = overlap(0.0, study.horizon, study.edges)
    within = -np.expm1(-np.sum(np.exp(a) * rates**b * ahead, axis=-1))
    found = np.full((len(rates), len(study.landmarks)), np.nan)
    for j, landmark in enumerate(study.landmarks):
        there = event.time == landmark
        patient = np.flatnonzero(there.any(axis=1))
        # The first, since padding repeats the last time.
        found[patient, j] = within[patient, there.argmax(axis=1)[patient]]
    return found


def last_values(study: Study, cohort: dt.Cohort, learn: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """times -> last values, whether ever measured, facts and time: (patient, time, column)."""
    channels, facts = tuple(cohort.record.past), tuple(cohort.record.known)
    scaling = scaling_of(cohort.take(learn.tolist()).record, channels, facts)

    def at(times: np.ndarray) -> np.ndarray:
        one = jax.vmap(lambda r: sequence_at(r, jnp.asarray(times), channels, facts, scaling))
        found = jax.tree.map(np.asarray, one(cohort.record))
        known = np.broadcast_to(found.facts[:, None], (*found.value.shape[:2], found.facts.shape[1]))
        time = np.broadcast_to(np.log1p(times)[None, :, None], (*found.value.shape[:2], 1))
        return np.concatenate([found.value, found.seen.astype(float), known, time], axis=2)

    return at


def by_simple(study: Study, cohort: dt.Cohort, learn: np.ndarray) -> dict[str, np.ndarray]:
    """Probabilities (patient, landmark) by the simple models, fitted on landmarks of `learn`."""
    from lifelines import CoxPHFitter
    from pandas import DataFrame

    end, happened = study.outcome()
    grid = study.grid()
    at = last_values(study, cohort, learn)
    x = at(grid)[learn]
    parts = [censoring_weights(end[learn], happened[learn], start, study.horizon) for start in grid]
    risk, y, weight = (np.stack(column, axis=1) for column in zip(*parts, strict=True))
    left = end[learn][:, None] - grid[None]
    columns = np.flatnonzero(x[risk].std(axis=0) > 1e-3)
    fitted = logistic(x[risk][:, columns], y[risk], weight[risk], ridge=1.0)
    wanted = at(np.array(study.landmarks))[..., columns]
    names = [f"x{i}" for i in columns]
    table = DataFrame(x[risk][:, columns], columns=names)
    table["time"] = np.minimum(left[risk], study.horizon)
    table["event"] = y[risk]
    cox = CoxPHFitter(penalizer=0.01).fit(table, "time", "event")
    flat = DataFrame(wanted.reshape(-1, len(columns)), columns=names)
    alive = cox.predict_survival_function(flat, times=[study.horizon]).to_numpy()[0]
    return {
        SIMPLE[0]: 1.0 / (1.0 + np.exp(-(fitted[0] + wanted @ fitted[1:]))),
        SIMPLE[1]: 1.0 - alive.reshape(wanted.shape[:2]),
    }


def forecasts(study: Study, seed: int, at_visits: bool) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Probabilities (patient, landmark) by each model, of patients new to it, and how it was trained."""
    cohort = study.cohort(at_visits)
    event, n = cohort.record.observations["event"], len(cohort)
    order = np.random.default_rng(seed).permutation(n)
    # The same number of patients to teach in every split, so that training is compiled once.
    size = 3 * n // PARTS
    made = {name: np.full((n, len(study.landmarks)), np.nan) for name in (*NETWORKS, *SIMPLE)}
    made |= {f"{name}, as trained": made["GRU"].copy() for name in NETWORKS}
    made |= {f"{name}, of 60 %": made["GRU"].copy() for name in SIMPLE}
    how: dict[str, Any] = {name: {"steps": [], "recalibration": [], "cpu_s": 0.0} for name in NETWORKS}
    for test in np.array_split(order, PARTS):
        rest = np.random.default_rng(seed + 1).permutation(np.setdiff1d(order, test))
        teach, held = rest[:size], rest[size:]
        for name, encoder in NETWORKS.items():
            f = dt.EventForecaster(
                encoder,
                tuple(cohort.record.past),
                tuple(cohort.record.known),
                edges=study.edges,
                width=WIDTH,
                seed=seed,
            )
            found, spent = timed(trained, f, cohort, teach, held)
            for label, ab in ((name, found["recalibration"]), (f"{name}, as trained", (0.0, 1.0))):
                made[label][test] = by_rates(found["rates"], event, study, *ab)[test]
            how[name]["steps"].append(found["steps"])
            how[name]["recalibration"].append(found["recalibration"])
            how[name]["cpu_s"] += spent.cpu
        for learn, label in ((rest, "{}"), (teach, "{}, of 60 %")):
            for name, p in by_simple(study, cohort, learn).items():
                made[label.format(name)][test] = p[test]
    return made, how


def picture(
    studies: dict[str, Study], made: dict[str, dict[str, np.ndarray]], figures: dict[str, Any]
) -> None:
    """By study: discrimination and the change of the Brier score at each landmark, and calibration."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "event_forecast"
    from matplotlib import pyplot as plt

    plot, axes = plt.subplots(
        3, len(studies), figsize=(4.4 * len(studies), 10), layout="constrained", squeeze=False
    )
    names = (*NETWORKS, *SIMPLE)
    colours = dict(
        zip(names, ("#8a5fa8", "#3b6ea5", "#3c8d4f", "#c0392b", "#c98a1b", "#777777", "#111111"), strict=True)
    )
    for (study_name, study), column in zip(studies.items(), axes.T, strict=True):
        models = figures[study_name]["models"]
        top, middle, bottom = column
        for i, name in enumerate(names):
            x = np.arange(len(study.landmarks)) + 0.1 * (i - (len(names) - 1) / 2)
            for ax, measure in ((top, "auc"), (middle, "brier")):
                at = np.array([one[measure] for one in models[name]["landmarks"].values()]).T
                style = {"color": colours[name], "ms": 4, "lw": 1, "label": name}
                ax.errorbar(
                    x, at[0], yerr=np.abs(at[1:] - at[0]), fmt="s" if name in SIMPLE else "o", **style
                )
            at = groups(study, made[study_name][name])
            bottom.plot(*at.T, "--" if name in SIMPLE else "-", marker=".", lw=1, color=colours[name])
        for ax in (top, middle):
            ax.set_xticks(range(len(study.landmarks)), [f"{t:g}" for t in study.landmarks])
            ax.set_xlabel("landmark, years")
        same = [one["brier_of_the_same_for_all"] for one in figures[study_name]["at"].values()]
        for j, value in enumerate(same):
            middle.plot((j - 0.4, j + 0.4), (value, value), ":", color="#999999")
        top.set_title(f"{study_name}: event within {study.horizon:g} years")
        bottom.plot((0, 1), (0, 1), color="#bbbbbb", lw=0.8)
        limit = 1.1 * max(groups(study, made[study_name][name]).max() for name in names)
        bottom.set(xlim=(0, limit), ylim=(0, limit), xlabel="forecast, mean of a fifth", ylabel="observed")
    axes[0, 0].set_ylabel("AUC")
    axes[1, 0].set_ylabel("Brier score; dotted: the same for all")
    axes[0, 0].legend(frameon=False, fontsize=7, loc="lower left")
    plot.savefig(FOLDER / "event_forecast.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--at-visits", action="store_true", help="networks learn at visits; nothing is written"
    )
    parser.add_argument("--studies", nargs="+", choices=tuple(STUDIES), default=list(STUDIES))
    chosen = parser.parse_args()
    folder = data_folder(chosen.data)
    studies, made, figures = {}, {}, {}
    for name in chosen.studies:
        study = studies[name] = STUDIES[name](folder)
        made[name], how = forecasts(study, chosen.seed, chosen.at_visits)
        end, happened = study.outcome()
        figures[name] = {
            "patients": len(end),
            "events": int(happened.sum()),
            "horizon_y": study.horizon,
            "training": how,
        } | measured(study, made[name], SIMPLE, chosen.seed)
        for model, one in figures[name]["models"].items():
            print(
                name, model, {m: [round(v, 3) for v in value] for m, value in one["mean"].items()}, flush=True
            )
    if not chosen.at_visits:
        write("event_forecast", figures)
        picture(studies, made, figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
