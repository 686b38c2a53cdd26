"""Whether a calibration can be trusted: convergence in plain words, with the parameter named."""

import functools
import json
import math
from statistics import NormalDist
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.prior import Prior, prior_from_dict
from dtwin_jax.inference.mixture import Mixture, mixture_from_dict

R_HAT_LIMIT = 1.01
ESS_LIMIT = 400
# A posterior at least this share as wide as its prior has learnt little from the data.
LITTLE = 0.9
# So many patients of one parameter are named one by one.
NAMED = 3


class CalibrationWarning(UserWarning):
    """A calibration finished, but its result should not be used as it is."""


def summary(tree: Any, *, individual: bool = False) -> Any:
    """Posterior summaries and convergence by variable.

    Args:
        tree: the result of `calibrate`.
        individual: also the parameters of each patient of a population.

    Returns:
        `xarray.Dataset` with dimension `variable` (`CL_pop`, or `CL[patient]`): mean, sd, q05, median,
        q95, r_hat, ess_bulk, ess_tail, and contraction: 1 - sd of the posterior / sd of the prior on the
        unbounded scale of the prior's support (log for positive parameters). It is near 0 where the data say
        nothing, near 1 where they decide, and NaN for what has no prior of its own: correlations, and the
        patients of a population.

    Draws by `Laplace` come from no chain: their ESS is that of the weights, and R-hat is that of the patients
    who were sampled by NUTS, NaN for the others. Draws by `Svi` are independent: they have neither.

    Source: split rank-normalised R-hat and ESS, Vehtari et al. 2021, doi 10.1214/20-BA1221.
    """
    import xarray as xr
    from arviz_stats.base.array import array_stats

    beliefs = _beliefs(tree)
    rows: dict[str, list[float]] = {}
    for name, x in _columns(tree, individual):
        finite = bool(np.all(np.isfinite(x)))
        # A constant column (a diagonal of a correlation matrix) has no convergence to speak of.
        moving = finite and bool(np.ptp(x) > 0)
        rows[name] = [
            float(np.mean(x)),
            float(np.std(x, ddof=1)),
            *(float(q) for q in np.quantile(x, (0.05, 0.5, 0.95))),
            _number(array_stats.rhat(x)) if moving else np.nan,
            _number(array_stats.ess(x)) if moving else np.nan,
            _number(array_stats.ess(x, method="tail", prob=0.9)) if moving else np.nan,
            _contraction(beliefs.get(name.partition("[")[0]), x),
        ]
        if _guided(tree):
            rows[name][5:8] = np.nan, np.nan, np.nan
    for name, r_hat, ess in _weighed(tree) if individual else []:
        rows[name][5:8] = r_hat, ess, ess
    columns = ("mean", "sd", "q05", "median", "q95", "r_hat", "ess_bulk", "ess_tail", "contraction")
    table = np.asarray(list(rows.values())).reshape(len(rows), len(columns))
    return xr.Dataset(
        {column: ("variable", table[:, i]) for i, column in enumerate(columns)},
        coords={"variable": list(rows)},
    )


def _weighed(tree: Any) -> list[tuple[str, float, float]]:
    """Row of the summary, R-hat and ESS of what `Laplace` said of each patient; empty after NUTS."""
    stats = tree["sample_stats"]
    if "trusted" not in stats:
        return []
    each = list(zip(stats["r_hat"].values, stats["ess"].values, strict=True))
    return [
        (f"{name}[{patient}]", float(r_hat), float(ess))
        for name, variable in tree["posterior"].data_vars.items()
        for patient, (r_hat, ess) in zip(variable["patient"].values, each, strict=True)
    ]


def _number(found: Any) -> float:
    return float(found)


def complaints(tree: Any) -> list[str]:
    """What a user must know before using a result, one sentence each; empty if all is well.

    First what went wrong in sampling (`faults`), then what the priors alone decide (`uninformed`).
    """
    return faults(tree) + uninformed(tree)


def faults(tree: Any) -> list[str]:
    """Why draws should not be used as they are: convergence, divergences, measurements not explained."""
    table = summary(tree, individual=True)
    said = []
    weighed, guided = "trusted" in tree["sample_stats"], _guided(tree)
    if tree["posterior"].sizes["chain"] == 1 and not weighed and not guided:
        said.append("one chain cannot be compared with another: run at least two")
    said.extend(_untrusted(tree) if weighed else [])
    said.extend(_unlike(tree) if guided else [])
    for members in [] if guided else _grouped(*_looked_at(tree, table)):
        said.extend(_told(members))
    said.extend([] if guided else _divergences(tree["sample_stats"]))
    for patient, share in json.loads(tree.attrs["failed"]).items():
        said.append(f"patient {patient}: the model cannot explain a measurement in {share:.0%} of the draws")
    return said


def _untrusted(tree: Any) -> list[str]:
    """A sentence for patients whose weights cannot be trusted, and who were not sampled instead."""
    stats, settings = tree["sample_stats"], json.loads(tree.attrs["settings"])
    left = ~stats["sampled"].values & ~stats["trusted"].values
    far = ~(stats["pareto_k"].values <= settings["k_limit"])
    said = []
    for bad, what in (
        (left & far, f"Pareto k is above {settings['k_limit']:g}"),
        (left & ~far, f"fewer than {settings['efficiency']:.0%} of the proposals are effective"),
    ):
        if np.any(bad):
            said.append(
                f"{what} for {_counted(stats, bad)}: their draws by weights are not their posterior; "
                "give a fallback, or use Nuts"
            )
    return said


def _counted(stats: Any, chosen: Any) -> str:
    """How many of the patients these are, and who, as far as there is room."""
    names = ", ".join(map(str, stats["patient"].values[chosen][:10]))
    return f"{np.sum(chosen)} of {len(chosen)} patients ({names})"


def _guided(tree: Any) -> bool:
    """Whether the draws are those of a guide, by `Svi`."""
    return "bound" in tree.children


def _unlike(tree: Any) -> list[str]:
    """Sentences on where a guide is unlike the posterior."""
    attrs, limit, said = tree.attrs, json.loads(tree.attrs["settings"])["k_limit"], []
    if not attrs["converged"]:
        said.append(
            f"the guide was not settled after {attrs['steps']} steps: raise max_steps (see the group bound)"
        )
    if not attrs["weighed"]:
        said.append(
            f"Pareto k of the population's numbers is {attrs['pareto_k']:.2f}, above {limit:g}: the draws "
            "are the guide's, not the posterior's, and may be misplaced or too narrow; use Nuts"
        )
    stats = tree["sample_stats"]
    far = ~(stats["pareto_k"].values <= limit)
    if np.any(far):
        said.append(
            f"Pareto k is above {limit:g} for the effects of {_counted(stats, far)}: "
            "theirs may be misplaced or too narrow"
        )
    return said


def _divergences(stats: Any) -> list[str]:
    """A sentence if draws of NUTS diverged."""
    if "diverging" in stats:
        diverging = stats["diverging"]
        count, of = int(diverging.sum()), f" of {int(diverging.size)}"
        each = diverging.sum(("chain", "draw")) if "patient" in diverging.dims else None
    else:
        each, of = stats["divergences"], ""
        count = int(each.sum())
    if not count:
        return []
    where = ""
    if each is not None:
        where = f" (patients {', '.join(map(str, each['patient'].values[each.values > 0][:10]))})"
    return [
        f"{count}{of} draws diverged{where}: the posterior has a corner the sampler cannot enter; "
        "raise target_accept, or use tighter priors"
    ]


def _looked_at(tree: Any, table: Any) -> tuple[Any, dict[str, str]]:
    """The rows of a summary that tell of convergence, and `_individual`.

    The probabilities of classes follow from effects, which are looked at; they may be 1 but for rounding.
    """
    mixture, individual = _mixture(tree), _individual(tree)
    derived = () if mixture is None else mixture.probabilities
    kept = [individual.get(str(name)) not in derived for name in table["variable"].values]
    return table.isel(variable=np.flatnonzero(kept)), individual


def _mixture(tree: Any) -> Mixture | None:
    """The subpopulations of what was calibrated."""
    return mixture_from_dict(json.loads(tree.attrs.get("population") or "{}").get("mixture"))


def _grouped(table: Any, individual: dict[str, str]) -> list[list[tuple[str, float, float]]]:
    """(variable, R-hat, least ESS) of what is not good enough, a parameter's patients together."""
    groups: dict[str, list[tuple[str, float, float]]] = {}
    least = np.minimum(table["ess_bulk"].values, table["ess_tail"].values).tolist()
    for variable, r_hat, ess in zip(
        table["variable"].values, table["r_hat"].values.tolist(), least, strict=True
    ):
        name = str(variable)
        # One chain has no R-hat, which is told apart; NaN in the ESS is draws that do not move.
        if not ess >= ESS_LIMIT or r_hat > R_HAT_LIMIT:
            groups.setdefault(individual.get(name, name), []).append((name, r_hat, ess))
    return list(groups.values())


def _told(members: list[tuple[str, float, float]]) -> list[str]:
    """A sentence for each; of many patients of one parameter a single one, about the worst."""
    if len(members) > NAMED:
        worst = max(members, key=lambda member: (not np.isfinite(member[2]), member[1], -member[2]))
        (sentence,) = _told([worst])
        return [f"{sentence} ({len(members)} patients are like that in this parameter)"]
    said = []
    for name, r_hat, ess in members:
        if not np.isfinite(ess):
            said.append(f"{name}: its draws do not move, or are not finite")
        elif r_hat > R_HAT_LIMIT:
            said.append(f"{name}: R-hat is {r_hat:.3f}, above {R_HAT_LIMIT}: its chains disagree, draw more")
        else:
            said.append(f"{name}: effective sample size is {ess:.0f}, below {ESS_LIMIT}: draw more")
    return said


def uninformed(tree: Any) -> list[str]:
    """A sentence for each parameter of which the data say little; its patients are counted in one.

    That is no fault of the draws: predictions rest on the prior there, and a better one or other measurements
    would change them.
    """
    beliefs, individual = _beliefs(tree), _individual(tree)
    groups: dict[str, list[float]] = {}
    for name, x in _columns(tree, individual=True):
        share = 1.0 - _contraction(beliefs.get(name.partition("[")[0]), x)
        groups.setdefault(individual.get(name, name), []).append(share)
    said = []
    for name, shares in groups.items():
        wide = [share for share in shares if share >= LITTLE]
        if wide and len(shares) == 1:
            said.append(f"the data say little of {name}: its posterior is {wide[0]:.0%} as wide as its prior")
        elif wide:
            said.append(
                f"the data say little of {name} for {len(wide)} of {len(shares)} patients: its posterior is "
                f"at least {LITTLE:.0%} as wide as its prior"
            )
    return said


def _individual(tree: Any) -> dict[str, str]:
    """Name of a patient's parameter in the summary -> name of the parameter."""
    return {
        f"{name}[{patient}]": str(name)
        for name, variable in tree["posterior"].data_vars.items()
        if "patient" in variable.dims
        for patient in variable["patient"].values
    }


def _beliefs(tree: Any) -> dict[str, Prior]:
    """Variable of the posterior -> its prior, for those that have one of their own."""
    priors = {name: prior_from_dict(d) for name, d in json.loads(tree.attrs.get("priors") or "{}").items()}
    population = json.loads(tree.attrs.get("population") or "{}")
    if not population:
        return priors
    scatter = {name: prior_from_dict(d) for name, d in population["vary"].items()}
    found = {f"{name}_pop" if name in scatter else name: prior for name, prior in priors.items()}
    found |= {f"omega_{name}": prior for name, prior in scatter.items()}
    occasions = population.get("occasions") or {"vary": {}}
    found |= {f"gamma_{name}": prior_from_dict(prior) for name, prior in occasions["vary"].items()}
    shapes = population.get("boxcox", {}).items()
    found |= {f"shape_{name}": prior_from_dict(one) for name, one in shapes if isinstance(one, dict)}
    mixture = _mixture(tree)
    found |= dict(() if mixture is None else mixture.shifts)
    for covariate in population["covariates"]:
        if isinstance(covariate["coefficient"], dict):
            label = covariate["label"]
            found[label] = prior_from_dict(covariate["coefficient"])
    return found


def _contraction(prior: Prior | None, x: np.ndarray) -> float:
    """1 - sd of draws / sd of the prior, both unbounded; NaN without a prior, or if no draw moves."""
    if prior is None or not np.isfinite(x).all() or not np.ptp(x) > 0:
        return np.nan
    unbounded = _unbounded(prior, x)
    if not np.isfinite(unbounded).all():
        return np.nan
    return 1.0 - float(np.std(unbounded, ddof=1)) / unbounded_sd(prior)


def _unbounded(prior: Prior, x: np.ndarray) -> np.ndarray:
    import numpyro.distributions as dist

    # Now, even where a caller is being traced.
    with jax.ensure_compile_time_eval():
        return np.asarray(dist.biject_to(prior.distribution().support).inv(x))


@functools.cache
def unbounded_sd(prior: Prior) -> float:
    """Standard deviation of a prior on the unbounded scale of its support (log, own or logit)."""
    args = dict(prior.args)
    spread = {
        "lognormal": lambda: args["log_sd"],
        "halfnormal": lambda: math.pi / math.sqrt(8.0),
        "uniform": lambda: math.pi / math.sqrt(3.0),
        "gamma": lambda: math.sqrt(_trigamma(args["shape"])),
        "beta": lambda: math.sqrt(_trigamma(args["a"]) + _trigamma(args["b"])),
    }
    if prior.family in spread:
        return float(spread[prior.family]())
    if not {"low", "high"} & set(args):
        return args["sd"]
    return float(np.std(_unbounded(prior, _cut_normal(args))))


def _cut_normal(args: dict[str, float]) -> np.ndarray:
    """Quantiles of a cut normal in the middle of even shares of its probability."""
    low, high = (
        (args.get(k, d) - args["mean"]) / args["sd"] for k, d in (("low", -np.inf), ("high", np.inf))
    )
    shares = (np.arange(4000) + 0.5) / 4000
    # In the upper tail probabilities are all but 1, and no longer told apart: it is looked at from below.
    mirrored = low > 0
    low, high = (-high, -low) if mirrored else (low, high)
    below, above = (math.erfc(-end / math.sqrt(2.0)) / 2.0 for end in (low, high))
    inside = np.clip(below + (above - below) * shares, 1e-300, 1.0 - 1e-16)
    scores = np.clip([NormalDist().inv_cdf(float(share)) for share in inside], low, high)
    return args["mean"] + args["sd"] * (-scores[::-1] if mirrored else scores)


def _trigamma(x: float) -> float:
    from jax.scipy.special import polygamma

    return float(polygamma(1, x))


def _columns(tree: Any, individual: bool) -> list[tuple[str, np.ndarray]]:
    columns = []
    for name, variable in tree["posterior"].data_vars.items():
        x = variable.values
        if variable.dims == ("chain", "draw"):
            columns.append((str(name), x))
        elif variable.dims == ("chain", "draw", "patient"):
            if individual:
                ids = variable["patient"].values
                columns.extend((f"{name}[{patient}]", x[:, :, i]) for i, patient in enumerate(ids))
        else:
            effects = variable[variable.dims[2]].values
            columns.extend(
                (f"{name}[{effects[i]}, {effects[j]}]", x[:, :, i, j])
                for i in range(len(effects))
                for j in range(i)
            )
    return columns
