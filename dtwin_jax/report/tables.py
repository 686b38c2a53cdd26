"""The tables of the report, as text."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtwin_jax.plot.convergence import worst_first
from dtwin_jax.plot.patients import channels, patient_ids
from dtwin_jax.plot.posterior import Summary
from dtwin_jax.plot.theme import group

WORST = 15


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; columns after `words` are numbers, but for a last one of remarks."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    remark: bool = False


def significant(value: float | None, digits: int = 3) -> str:
    """`value` to so many significant digits: 1,230 and 0.0123, without an exponent where it reads well."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = int(np.floor(np.log10(abs(value))))
    if size < -4 or size > 6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}·10^{int(exponent)}".replace("-", "−")
    return f"{value:,.{max(0, digits - 1 - size)}f}".replace("-", "−")


def facts(result: Any, ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """The head of the page: name, value, and a remark, of each."""
    attrs, names = result.attrs, channels(result)
    observed = group(result, "observed_data")
    count = sum(int(np.isfinite(np.asarray(observed[name], float)).sum()) for name in names)
    seconds = attrs.get("wall_seconds")
    spent = "–" if seconds is None else _duration(float(seconds))
    compiled = attrs.get("compile_seconds")
    of_which = "" if compiled is None else f"{_duration(float(compiled))} of it compiling"
    chains, draws = attrs.get("chains", "?"), attrs.get("draws", "?")
    words = "chain" if chains == 1 else "chains"
    return [
        ("Model", str(attrs.get("name", "–")).replace("_", " "), str(attrs.get("kind", ""))),
        ("Patients", f"{len(ids):,}", ""),
        ("Measurements", f"{count:,}", ", ".join(name.replace("_", " ") for name in names)),
        ("Sampler", str(attrs.get("method", "–")), f"{chains} {words} × {draws} draws"),
        ("Wall time", spent, of_which),
    ]


def left_out(found: Any) -> Table:
    """What leaving each measurement out says of the model, from `leave_one_out`."""
    told = found.attrs
    density = f"{significant(told['elpd'])} ± {significant(told['se'])}"
    doubtful = f"{told['unreliable']:,} of {told['n']:,}"
    row = (density, significant(told["p"]), doubtful, f"{told['k_limit']:.2f}")
    head = ("expected log predictive density", "effective parameters", "Pareto k above limit", "limit")
    return Table(head, (row,), 0)


def limits(made: Sequence[Any], units: dict[str, str]) -> Table:
    """The intervals that profiles give, and what is to be said of their ends."""
    lines = []
    for one in made:
        ends = (significant(end) if np.isfinite(end) else "open" for end in one.interval)
        said = [f"{side}: {why}" for side, why in zip(("below", "above"), one.remarks, strict=True) if why]
        unit = "" if units[one.name] == "1" else units[one.name]
        lines.append((one.name, unit, significant(one.estimate), *ends, "; ".join(said) or "closes"))
    return Table(
        ("parameter", "unit", "best", f"{made[0].level:.0%} from" if made else "from", "to", ""),
        tuple(lines),
        2,
        remark=True,
    )


def covariates(result: Any, patient: str) -> list[str]:
    """Up to four facts known of a patient, each with its unit."""
    known = group(result, "constant_data") if "constant_data" in result.children else {}
    names = np.atleast_1d(getattr(known, "attrs", {}).get("known", list(getattr(known, "data_vars", ()))))
    out = []
    for name in (str(name) for name in names):
        if name in known and known[name].dims == ("patient",):
            value = float(known[name].values[patient_ids(known).index(patient)])
            unit = str(known[name].attrs.get("units", ""))
            words = f"{name.replace('_', ' ')} {significant(value)} {'' if unit == '1' else unit}"
            out.append(words.strip())
    return out[:4]


def estimates(rows: Sequence[Summary]) -> Table:
    """Posterior quantiles and moments, a row a number."""
    whose = any(row.patient is not None for row in rows)
    explained = any(row.doc for row in rows)
    head = ("parameter", *(("patient",) * whose), "unit", "median", "5%", "95%", "mean", "sd")
    lines = []
    for row in rows:
        words = (row.name, *((row.patient or "",) * whose), "" if row.unit == "1" else row.unit)
        numbers = map(significant, (row.median, row.lower, row.upper, row.mean, row.sd))
        lines.append((*words, *numbers, *((row.doc,) * explained)))
    return Table((*head, *(("",) * explained)), tuple(lines), 3 if whose else 2, remark=explained)


def diagnostics(summaries: Sequence[Summary]) -> Table:
    """Convergence of what all patients share, and of the patients' parameters that converged worst."""
    rows = [row for row in summaries if row.patient is None]
    rows += worst_first([row for row in summaries if row.patient is not None])[:WORST]
    lines = []
    for row in rows:
        r_hat = f"{row.r_hat:.3f}" if np.isfinite(row.r_hat) else "–"
        ess = (f"{n:,.0f}" if np.isfinite(n) else "–" for n in (row.ess_bulk, row.ess_tail))
        lines.append((row.name, row.patient or "", r_hat, *ess, f"{row.failed:,}"))
    return Table(("parameter", "patient", "R-hat", "ESS bulk", "ESS tail", "not finite"), tuple(lines), 2)


def spreads(result: Any, rows: Sequence[Summary]) -> Table | None:
    """The spread between patients of each parameter that varies; None where none does.

    A coefficient of variation where the effect is on the log; elsewhere the sd, on the parameter's own scale
    or on the logit of a parameter between two limits.
    """
    by_name, draws = {row.name: row for row in rows}, group(result, "posterior")
    beliefs = json.loads(result.attrs.get("priors") or "{}")
    lines = []
    for name in (name for name in by_name if name.startswith("omega_")):
        omega = np.asarray(draws[name], float)
        omega = omega if np.isfinite(omega).all() else np.full(1, np.nan)
        base = name.removeprefix("omega_")
        typical = by_name.get(f"{base}_pop")
        middle = significant(typical.median) if typical else "–"
        unit = "" if typical is None or typical.unit == "1" else typical.unit
        scale = _scale(beliefs.get(base))
        if scale == "log":
            # Of a lognormal parameter: its coefficient of variation is sqrt(exp(omega^2) - 1).
            cv = 100 * np.sqrt(np.expm1(omega**2))
            middle_spread, *limits = (
                f"{q:.0f}%" if np.isfinite(q) else "–" for q in np.quantile(cv, (0.5, 0.05, 0.95))
            )
            words = f"CV {middle_spread}"
        else:
            middle_spread, *limits = map(significant, np.quantile(omega, (0.5, 0.05, 0.95)))
            words = " ".join(filter(None, ("sd", middle_spread, unit if scale == "own" else scale)))
        lines.append((base, unit, middle, significant(by_name[name].median), words, *limits))
    head = ("parameter", "unit", "typical", "omega", "between patients", "5%", "95%")
    return Table(head, tuple(lines), 2) if lines else None


def _scale(prior: Any) -> str:
    """Where a parameter's random effect is: "log", "own", or words for another scale; empty if unknown."""
    if not prior:
        return ""
    ((family, args),) = prior.items()
    limits = {"low", "high"} & set(args)
    if family in {"lognormal", "halfnormal", "gamma"} or (limits == {"low"} and args["low"] == 0):
        return "log"
    if not limits and family == "normal":
        return "own"
    return "on the log from the limit" if len(limits) == 1 else "on the logit"


def score_table(scores: Any) -> Table | None:
    """Scores of held-out measurements, a row a channel."""
    if scores is None:
        return None
    columns = ("n", "crps", "log_score", "coverage_50", "coverage_90")
    by_channel = getattr(scores, "children", None) or _by_channel(scores)
    lines = []
    for channel, found in by_channel.items():
        values = [float(found[key]) if key in found else float("nan") for key in columns]
        count = f"{values[0]:,.0f}" if np.isfinite(values[0]) else "–"
        shares = [f"{value:.0%}" if np.isfinite(value) else "–" for value in values[3:]]
        lines.append((str(channel).replace("_", " "), count, *map(significant, values[1:3]), *shares))
    head = ("channel", "measurements", "CRPS", "log score", "in 50% band", "in 90% band")
    return Table(head, tuple(lines))


def provenance(result: Any) -> Table:
    """What made the result."""
    words = ("predictor", "kind", "method", "chains", "warmup", "draws", "seed", "device", "dtype", "created")
    rows = [(name, str(result.attrs[name])) for name in words if name in result.attrs]
    versions = json.loads(result.attrs.get("versions") or "{}")
    rows += [(f"version of {name}", str(version)) for name, version in versions.items()]
    return Table(("", ""), tuple(rows), 2)


def priors(result: Any) -> Table:
    """The prior of each parameter, in words."""
    rows = []
    for name, prior in json.loads(result.attrs.get("priors") or "{}").items():
        rows.append((name, prior_words(prior)))
    return Table(("parameter", "prior"), tuple(rows), 2)


def _by_channel(scores: Any) -> dict[str, Any]:
    if "channel" in getattr(scores, "dims", ()):
        return {str(name): scores.sel(channel=name) for name in scores["channel"].values}
    raise ValueError("scores need a dimension 'channel', or a group a channel")


def prior_words(prior: Any) -> str:
    """A prior as results and models hold it, in words."""
    if not isinstance(prior, dict):
        return "known" if prior is None else str(prior)
    parts = []
    for family, args in prior.items():
        pairs = args.items() if isinstance(args, dict) else ()
        inside = ", ".join(f"{key} {significant(v) if isinstance(v, int | float) else v}" for key, v in pairs)
        parts.append(f"{family}({inside})" if inside else f"{family} {args}")
    return "; ".join(parts)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
