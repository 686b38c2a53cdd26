"""Does a network in the drift find what a mechanism lacks, and say how sure it is of it?

    python benchmarks/hybrid.py [--data ../shared/data/pk] [--studies michaelis_menten glucose theophylline]

Each time the mechanism alone and the hybrid are trained on the same patients with the same optimiser, error
of measurement included, and judged on others. (1) Elimination by Michaelis-Menten kinetics, fitted as linear,
and as linear plus a network of the concentration; volumes known. (2) The glucose minimal model, fitted with
insulin that acts within 2 min, and with a network that corrects how the action follows insulin. Both are
simulated: what is missing is known, errors are against the course without error, patients held out end the
training, and the hybrid is an ensemble of three seeds. (3) Theophylline, 12 patients left out one by one,
with effects of patients: nothing is known to be missing. Also how long a gradient takes by three adjoints.
Writes figures as JSON, and a picture as SVG, beside this file; studies not run keep their figures.
"""

import argparse
import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.integrate import solve_ivp
from setting import FOLDER, data_folder, interleaved, timed, write

import dtwin_jax as dt
from dtwin_jax.core.record import Cohort
from dtwin_jax.dynamics.hybrid import parts_of
from dtwin_jax.inference.ensemble import Bands, ensemble_forecast, train_ensemble
from dtwin_jax.models import minimal_model, one_compartment
from dtwin_jax.models.minimal_model import Inputs as GlucoseInputs
from dtwin_jax.models.minimal_model import State as GlucoseState
from dtwin_jax.models.one_compartment import Inputs

KEY = jax.random.key(0)


@dataclass(frozen=True)
class Study:
    """Patients to train on, to stop by and to judge on, with what is true of the last."""

    training: Cohort
    stopping: Cohort | None
    unseen: Cohort
    truth: np.ndarray
    channel: str


def fixed(dt_: float, span: float) -> dt.Solver:
    return dt.Solver(diffrax.Bosh3, dt=dt_, max_steps=int(span / dt_) + 2)


# ---- Michaelis-Menten elimination: V known of each patient, Vmax 15 mg/h, Km 4 mg/L, error 5 %.
VMAX, KM = 15.0, 4.0
HOURS = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 16.0, 24.0])


def more_elimination(t, x, u, p, net):
    """A clearance that depends on the concentration, in units of 2 L/h."""
    level = x.central / p.V
    return {"central": -2.0 * level * net(jnp.log1p(level))[0]}


saturable = dt.hybrid(
    replace(one_compartment, flow=None, solver=fixed(1.0, 24.0)),
    more_elimination,
    dt.Perceptron(centre=(2.0,), spread=(1.0,), width=6),
)


def eliminating(seed: int, count: int) -> tuple[dict[str, dt.Record], np.ndarray]:
    rng, records, courses = np.random.default_rng(seed), {}, []
    for i in range(count):
        dose, volume = rng.uniform(40.0, 700.0), 20.0 * np.exp(0.2 * rng.standard_normal())
        rate = lambda t, c, v=volume: -VMAX / v * c / (KM + c)  # noqa: E731
        found = solve_ivp(rate, (0.0, 24.0), [dose / volume], t_eval=HOURS, rtol=1e-9, atol=1e-9).y[0]
        courses.append(found)
        seen = found * (1.0 + 0.05 * rng.standard_normal(len(HOURS)))
        given = Inputs(iv=dt.Doses([0.0], [dose]))
        records[f"s{seed}_{i}"] = dt.Record(given, {"concentration": dt.Series(HOURS, seen)}, {"V": volume})
    return records, np.asarray(courses)


# ---- Minimal model of glucose; insulin acts with 1 / p2 = 39 min, in the mechanism with 2 min.
MINUTES = np.array([3.0, 6, 9, 12, 15, 18, 24, 30, 39, 48, 60, 81, 102, 120, 150, 180])
QUICK = 0.5


def quick_drift(t, x, u, p):
    wanted = p.SI * (u.insulin - p.Ib)
    return GlucoseState(
        glucose=-(p.SG + x.action) * x.glucose + p.SG * p.Gb, action=QUICK * (wanted - x.action)
    )


def slower_action(t, x, u, p, net):
    gap = (u.insulin - p.Ib) - x.action / p.SI
    return {"action": 20.0 * p.SI * net(gap, x.action / p.SI)[0]}


quick = replace(minimal_model, name="quick_insulin", drift=quick_drift, solver=fixed(3.0, 180.0))
delayed = dt.hybrid(
    quick, slower_action, dt.Perceptron(centre=(0.0, 15.0), spread=(50.0, 20.0), width=6), sees=("insulin",)
)


def tested(seed: int, count: int) -> tuple[dict[str, dt.Record], np.ndarray]:
    rng, records, courses = np.random.default_rng(seed), {}, []
    times = np.array([0.0, *MINUTES])
    run = eqx.filter_jit(lambda p, u: dt.simulate(minimal_model, p, u, jnp.asarray(MINUTES)))
    for i in range(count):
        size = np.exp(0.4 * rng.standard_normal(2))
        insulin = (
            4.5
            + size[0] * 60.0 * np.exp(-times / 6.0)
            + size[1] * 25.0 * (times / 30) * np.exp(1.0 - times / 30)
        )
        known = {"G0": 268.0 * np.exp(0.15 * rng.standard_normal())}
        given = GlucoseInputs(insulin=dt.Sampled(times, insulin))
        found = np.asarray(run(dt.assign(minimal_model.params(), known), given).output.glucose)
        courses.append(found)
        seen = found + np.hypot(3.0, 0.02 * found) * rng.standard_normal(len(MINUTES))
        records[f"s{seed}_{i}"] = dt.Record(given, {"glucose": dt.Series(MINUTES, seen)}, known)
    return records, np.asarray(courses)


def study(make: Any, channel: str) -> Study:
    (training, _), (stopping, _), (unseen, truth) = make(1, 20), make(2, 5), make(3, 40)
    return Study(dt.stack(training), dt.stack(stopping), dt.stack(unseen), truth, channel)


def starts(model: dt.Model, p: Any, members: int) -> list[Any]:
    """Parameters that differ in the seed of their network."""
    nets = [replace(parts_of(model).net, seed=seed)() for seed in range(members)]
    return [eqx.tree_at(lambda q: q.net, p, net) for net in nets]


def optimiser(rate: float, steps: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(rate, steps, 0.05))
    )


def judged(found: Bands, case: Study) -> dict[str, Any]:
    seen = np.asarray(case.unseen.record.observations[case.channel].value)
    low, high = found.interval(case.channel, 0.9)
    expected = found.expected[case.channel]
    return {
        "rmse": float(np.sqrt(np.mean((expected.mean(axis=0) - case.truth) ** 2))),
        "rmse_log": float(np.sqrt(np.mean(np.log(np.abs(expected.mean(axis=0)) / case.truth) ** 2))),
        "inside_90": float(100 * np.mean((low <= seen) & (seen <= high))),
        "width": float(np.median(high - low)),
        "unsolved": found.unsolved,
    }


def compared(case: Study, pair: tuple[Any, Any], where: tuple[Any, Any], steps: int) -> tuple[dict, Any, Any]:
    """The mechanism and an ensemble of hybrids, trained and judged alike."""
    mechanism, model = pair
    rule = {"optimiser": optimiser(0.03, steps), "steps": steps, "held_out": case.stopping, "patience": 80}
    alone, time_alone = timed(lambda: dt.train(mechanism, case.training, where=where[0], key=KEY, **rule))
    first = dt.assign(model.params(), {n: getattr(alone.params, n) for n in dt.quantities(alone.params)})
    members, time_members = timed(
        lambda: train_ensemble(model, case.training, starts(model, first, 3), key=KEY, where=where[1], **rule)
    )
    params = [member.params for member in members]
    bands = [
        ensemble_forecast(f, ps, case.unseen, key=KEY, draws=300)
        for f, ps in ((mechanism, [alone.params]), (model, params))
    ]
    figures = {"mechanism": judged(bands[0], case), "hybrid": judged(bands[1], case)}
    figures["mechanism"] |= {"cpu_s": time_alone.cpu, "held_out_loss": float(np.nanmin(alone.held_loss))}
    figures["hybrid"] |= {
        "cpu_s": time_members.cpu,
        "members": len(members),
        "steps": [len(member.loss) for member in members],
        "skipped": sum(member.skipped for member in members),
        "held_out_loss": float(np.nanmin(members[0].held_loss)),
        "each_rmse": [
            float(np.sqrt(np.mean((one - case.truth) ** 2))) for one in bands[1].expected[case.channel]
        ],
        "share_of_drift": dt.residual_share(model, params[0], case.unseen),
        "outside_of_region": float(
            np.mean(
                dt.region_of(model, params[0], case.training).outside(
                    model, params[0], case.unseen, tolerated=1.0
                )
            )
        ),
    }
    figures["error_ratio"] = figures["hybrid"]["rmse"] / figures["mechanism"]["rmse"]
    return figures, alone.params, (params, bands)


def michaelis_menten(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    case = study(eliminating, "concentration")
    linear = replace(one_compartment, params=Known(("cv", 0.1), ("sd", 0.05)))
    model = replace(saturable, params=KnownHybrid(saturable, (("cv", 0.1), ("sd", 0.05))))
    where = (lambda p: (p.CL, p.cv, p.sd), lambda p: (p.CL, p.cv, p.sd, p.net))
    figures, alone, (params, _) = compared(case, (linear, model), where, 300)
    level = np.linspace(0.5, 35.0, 60)

    def rate(p: Any) -> list[float]:
        p = dt.assign(p, {"V": 20.0})
        state = lambda c: type(saturable.init(p))(jnp.asarray(0.0), 20.0 * c)  # noqa: E731
        drift = lambda c: -saturable.drift(jnp.asarray(0.0), state(c), Inputs(), p).central  # noqa: E731
        return np.asarray(jax.vmap(drift)(jnp.asarray(level))).tolist()

    drawn = {"level": level.tolist(), "true": (VMAX * level / (KM + level)).tolist()}
    drawn |= {"linear": (float(alone.CL) * level).tolist(), "members": [rate(p) for p in params]}
    figures["adjoints"] = adjoints(case, model, params[0])
    return figures, drawn


@dataclass(frozen=True)
class Known:
    """Defaults of the one-compartment model with these numbers."""

    cv: tuple[str, float]
    sd: tuple[str, float]

    def __call__(self) -> Any:
        return dt.assign(one_compartment.params(), dict((self.cv, self.sd)))


@dataclass(frozen=True)
class KnownHybrid:
    """Defaults of a hybrid with these numbers."""

    model: dt.Model
    numbers: tuple[tuple[str, float], ...]

    def __call__(self) -> Any:
        return dt.assign(self.model.params(), dict(self.numbers))


def adjoints(case: Study, model: dt.Model, p: Any) -> dict[str, Any]:
    """Time of the gradient with respect to the weights of all training patients' likelihood."""
    record = jax.tree.map(jnp.asarray, case.training.record)
    made = {
        "recursive_checkpoint": diffrax.RecursiveCheckpointAdjoint(),
        "direct": diffrax.DirectAdjoint(),
        "forward": diffrax.ForwardMode(),
    }
    calls = {}
    for name, adjoint in made.items():
        f = replace(model, solver=replace(model.solver, adjoint=adjoint))

        def loss(net, f=f):
            def one(record):
                q = dt.assign(eqx.tree_at(lambda q: q.net, p, net), record.known)
                return jnp.sum(dt.log_likelihood(f, q, record)["concentration"])

            return jnp.sum(jax.vmap(one)(record))

        slope = jax.jit(jax.jacfwd(loss) if name == "forward" else jax.grad(loss))
        calls[name] = lambda slope=slope: slope(p.net)
    return interleaved(calls, 5, 3)


def glucose(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    case = study(tested, "glucose")
    where = (lambda p: (p.SI, p.SG, p.sd, p.cv), lambda p: (p.SI, p.SG, p.sd, p.cv, p.net))
    figures, _, (_, bands) = compared(case, (quick, delayed), where, 500)
    low, high = bands[1].interval("glucose", 0.9)
    drawn = {
        "time": MINUTES.tolist(),
        "seen": np.asarray(case.unseen.record.observations["glucose"].value)[0].tolist(),
        "true": case.truth[0].tolist(),
        "mechanism": bands[0].expected["glucose"][0, 0].tolist(),
        "hybrid": bands[1].expected["glucose"][:, 0].mean(axis=0).tolist(),
        "low": low[0].tolist(),
        "high": high[0].tolist(),
    }
    return figures, drawn


# ---- Theophylline: Boeckmann, Sheiner & Beal 1994, as in R's datasets::Theoph.
SPREAD = {"CL": 0.3, "V": 0.3, "ka": 0.6}
theophylline = dt.hybrid(
    replace(one_compartment, flow=None, solver=dt.Solver(rtol=1e-4, atol=1e-4, max_steps=1024)),
    more_elimination,
    dt.Perceptron(centre=(1.5,), spread=(0.7,), width=4),
)


def small_weights(p: Any, record: Any) -> Any:
    return 0.5 * sum(jnp.sum(w**2) for w in jax.tree.leaves(p.net.layers[-1]))


def read(folder: Path) -> dict[str, dt.Record]:
    rows: dict[str, list[dict[str, str]]] = {}
    with (folder / "theoph.csv").open() as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["id"], []).append(row)
    found = {}
    for name, each in rows.items():
        dose = float(each[0]["weight_kg"]) * float(each[0]["dose_mg_per_kg"])
        # The sample before the dose says nothing of it.
        series = [(float(r["time_h"]), float(r["conc_mg_per_L"])) for r in each if float(r["time_h"]) > 0]
        found[name] = dt.Record(
            Inputs(oral=dt.Doses([0.0], [dose])), {"concentration": dt.Series(*zip(*series, strict=True))}
        )
    return found


def start_of(model: dt.Model) -> Any:
    return dt.assign(model.params(), {"CL": 2.8, "V": 32.0, "ka": 1.5, "sd": 0.3, "cv": 0.1})


def theophylline_left_out(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    cohort, steps = dt.stack(read(data_folder(options.data))), 80
    typical = ("CL", "V", "ka", "sd", "cv")
    pair = {
        "mechanism": (one_compartment, lambda p: tuple(getattr(p, n) for n in typical), None),
        "hybrid": (theophylline, lambda p: (*(getattr(p, n) for n in typical), p.net), small_weights),
    }
    rule = {"optimiser": optimiser(0.05, steps), "steps": steps, "individual": SPREAD}
    errors: dict[str, list[float]] = {name: [] for name in pair}
    unsolved: dict[str, list[float]] = {name: [] for name in pair}
    inside: dict[str, list[float]] = {name: [] for name in pair}
    score: dict[str, list[float]] = {name: [] for name in pair}
    share: list[float] = []
    for left in range(len(cohort)):
        others, one = cohort.take([i for i in range(len(cohort)) if i != left]), cohort.take([left])
        series = one.record.observations["concentration"]
        for name, (model, where, penalty) in pair.items():
            found = dt.train(
                model, others, where=where, key=KEY, params=start_of(model), penalty=penalty, **rule
            )
            made = ensemble_forecast(model, [found.params], one, key=KEY, draws=400, individual=SPREAD)
            seen, drawn = np.asarray(series.value)[0], made.drawn["concentration"][:, 0]
            low, high = made.interval("concentration", 0.9)[:, 0]
            errors[name].append(float(np.sqrt(np.mean((made.expected["concentration"][0, 0] - seen) ** 2))))
            inside[name].append(float(100 * np.mean((low <= seen) & (seen <= high))))
            unsolved[name].append(made.unsolved)
            drawn = drawn[np.all(np.isfinite(drawn), axis=1)]
            pairs = np.mean(np.abs(drawn - np.roll(drawn, 7, axis=0)), axis=0)
            score[name].append(float(np.mean(np.mean(np.abs(drawn - seen), axis=0) - 0.5 * pairs)))
            if name == "hybrid":
                share.append(dt.residual_share(model, found.params, others)["central"])
    gap = np.array(score["hybrid"]) - np.array(score["mechanism"])
    figures = {
        name: {
            "rmse": float(np.sqrt(np.mean(np.square(errors[name])))),
            "crps": float(np.mean(score[name])),
            "inside_90": float(np.mean(inside[name])),
            "unsolved": float(np.mean(unsolved[name])),
        }
        for name in pair
    }
    figures["crps_gap"] = {"mean": float(gap.mean()), "se": float(gap.std(ddof=1) / np.sqrt(len(gap)))}
    figures["hybrid"]["share_of_drift"] = float(np.mean(share))
    figures["better_in"] = int(np.sum(gap < 0))
    return figures, {"ids": list(cohort.ids), **score}


STUDIES = {"michaelis_menten": michaelis_menten, "glucose": glucose, "theophylline": theophylline_left_out}


def picture(drawn: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "hybrid"
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    if found := drawn.get("michaelis_menten"):
        axes[0].plot(found["level"], found["true"], color="black", lw=2, label="true")
        axes[0].plot(found["level"], found["linear"], color="tab:orange", label="linear mechanism")
        for i, member in enumerate(found["members"]):
            label = "hybrid, each member" if i == 0 else None
            axes[0].plot(found["level"], member, color="tab:blue", lw=1, label=label)
        axes[0].set(xlabel="concentration, mg/L", ylabel="elimination, mg/h", ylim=(0, 30))
        axes[0].set_title("What the network was to find")
    if found := drawn.get("glucose"):
        axes[1].fill_between(found["time"], found["low"], found["high"], color="tab:blue", alpha=0.2, lw=0)
        axes[1].plot(found["time"], found["true"], color="black", lw=2, label="true")
        axes[1].plot(found["time"], found["mechanism"], color="tab:orange", label="insulin acts at once")
        axes[1].plot(found["time"], found["hybrid"], color="tab:blue", label="hybrid, 90 % band")
        axes[1].plot(found["time"], found["seen"], "o", color="black", ms=3, label="measured")
        axes[1].set(xlabel="time, min", ylabel="glucose, mg/dL", title="A test that was not trained on")
    if found := drawn.get("theophylline"):
        axes[2].plot(found["mechanism"], found["hybrid"], "o", color="tab:blue")
        top = 1.1 * max(found["mechanism"] + found["hybrid"])
        axes[2].plot([0, top], [0, top], color="grey", lw=1, label="equal")
        axes[2].set(xlabel="CRPS of the mechanism, mg/L", ylabel="CRPS of the hybrid, mg/L")
        axes[2].set_title("Theophylline, each patient left out")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        if axis.has_data():
            axis.legend(frameon=False, fontsize=8)
    figure.savefig(FOLDER / "hybrid.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/pk"))
    parser.add_argument("--studies", nargs="+", choices=sorted(STUDIES), default=list(STUDIES))
    options = parser.parse_args()
    kept = FOLDER / "hybrid.json"
    held = json.loads(kept.read_text()) if kept.exists() else {}
    figures, drawn = held.get("figures", {}), held.get("drawn", {})
    for name in options.studies:
        (figures[name], drawn[name]), time = timed(STUDIES[name], options)
        figures[name]["cpu_s"] = time.cpu
        print(json.dumps({name: figures[name]}, indent=1), flush=True)
        write("hybrid", {"figures": figures, "drawn": drawn})
    picture(drawn)


if __name__ == "__main__":
    main()
