"""What the numbers of a calibration mean, in plain words: good, to be looked at, or bad."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dtwin_jax.plot.checks import quantile_residuals
from dtwin_jax.plot.convergence import lowest_bfmi
from dtwin_jax.plot.patients import channels, patient_ids
from dtwin_jax.plot.posterior import Summary
from dtwin_jax.plot.theme import group


@dataclass(frozen=True)
class Check:
    """A headline number and what it means.

    Attributes:
        name: of the check.
        value: as text.
        verdict: "good", "care", "bad", or "unknown".
        meaning: the verdict in plain words.
    """

    name: str
    value: str
    verdict: str
    meaning: str


def json_list(result: Any, name: str) -> list[str]:
    """The list of texts that an attribute of the result holds as JSON."""
    return [str(item) for item in json.loads(result.attrs.get(name) or "[]")]


def failed_patients(result: Any, curves: Any) -> list[str]:
    """Patients that the result names as failed, and those without any finite curve."""
    named = json_list(result, "failed")
    data = group(curves, "predictions")
    ids = patient_ids(data)
    lost = set(ids)
    for channel in channels(result):
        if channel in data:
            values = np.isfinite(np.asarray(data[channel].transpose("sample", "patient", ...), float))
            lost -= {patient for i, patient in enumerate(ids) if values[:, i].any()}
    return named + [patient for patient in ids if patient in lost and patient not in named]


def sampler_checks(result: Any, summaries: Sequence[Summary]) -> list[Check]:
    """What the sampler says of itself: R-hat, effective samples, divergences, energy; or a guide."""
    if "bound" in result.children:
        return _guide_checks(result)
    r_hat = _extreme((row.r_hat for row in summaries), np.max)
    ess = _extreme((min(row.ess_bulk, row.ess_tail) for row in summaries), np.min)
    broken = sum(row.failed > 0 for row in summaries)
    out = [
        _judge("R-hat, worst", r_hat, f"{r_hat:.3f}", (r_hat <= 1.01, r_hat <= 1.05), _AGREE),
        _judge("Effective samples, lowest", ess, f"{ess:,.0f}", (ess >= 400, ess >= 100), _ENOUGH),
    ]
    stats = group(result, "sample_stats") if "sample_stats" in result.children else {}
    if "diverging" in stats:
        diverging = np.asarray(stats["diverging"]).astype(bool)
        count, share = int(diverging.sum()), float(diverging.mean())
        out.append(_judge("Divergences", share, f"{count:,}", (count == 0, share < 0.01), _DIVERGE))
    bfmi = lowest_bfmi(result)
    if np.isfinite(bfmi):
        out.append(_judge("Energy (BFMI), lowest", bfmi, f"{bfmi:.2f}", (bfmi >= 0.3, bfmi >= 0.2), _ENERGY))
    if broken:
        out.append(
            Check("Numbers not finite", f"{broken:,}", "bad", "Some draws are not numbers: see the table.")
        )
    return out


def _guide_checks(result: Any) -> list[Check]:
    """How near the guide of `Svi` is to the posterior."""
    limit, k = json.loads(result.attrs["settings"])["k_limit"], float(result.attrs["pareto_k"])
    own = np.asarray(group(result, "sample_stats")["pareto_k"], float)
    far = int(np.sum(~(own <= limit)))
    share = far / len(own)
    settled = bool(result.attrs["converged"])
    # Of an infinite k there is no number, but a verdict.
    verdicts = ((k <= limit, k <= 1.0), (far == 0, share <= 0.05), (settled, settled))
    return [
        _judge("Pareto k of the population", min(k, 99.0), f"{k:.2f}", verdicts[0], _ALIKE),
        _judge("Patients with Pareto k too large", share, f"{far} of {len(own)}", verdicts[1], _ALIKE),
        _judge("Settled", 0.0, "yes" if settled else "no", verdicts[2], _SETTLED),
    ]


def fit_checks(result: Any, failed: Sequence[str], patients: int) -> list[Check]:
    """Whether every patient could be solved, and whether the bands hold what they claim."""
    worst = "good" if not failed else "care" if len(failed) <= 0.05 * patients else "bad"
    meaning = "Without a curve; named below." if failed else "Every patient could be solved."
    out = [Check("Patients not solved", f"{len(failed)} of {patients}", worst, meaning)]
    if "posterior_predictive" not in result.children:
        return out
    predictive = group(result, "posterior_predictive")
    found = [quantile_residuals(result, channel).z for channel in channels(result) if channel in predictive]
    z = np.concatenate(found) if found else np.empty(0)
    if len(z):
        inside = float((np.abs(z) < 1.645).mean())
        good = (0.82 <= inside <= 0.97, 0.7 <= inside)
        out.append(_judge("Data in 90% band", inside, f"{inside:.0%}", good, _COVER))
    return out


def overall(checks: Sequence[Check]) -> Check:
    """All checks in one sentence."""
    bad = "; ".join(check.name.split(",")[0] for check in checks if check.verdict == "bad")
    care = "; ".join(check.name.split(",")[0] for check in checks if check.verdict == "care")
    if bad:
        also = f" Look also at: {care}." if care else ""
        return Check("", "Not yet to be relied on", "bad", f"Did not pass: {bad}.{also}")
    if care:
        return Check("", "To be used with care", "care", f"Look at: {care}.")
    if any(check.verdict == "unknown" for check in checks):
        return Check("", "Not fully checked", "unknown", "Some checks could not be made: see below.")
    return Check(
        "", "All checks passed", "good", "The draws can be used, and the model reproduces what was measured."
    )


_AGREE = (
    "The chains agree.",
    "The chains nearly agree; run them longer.",
    "The chains disagree: do not use.",
)
_ALIKE = (
    "The guide is like the posterior.",
    "The guide is not quite the posterior: compare with chains.",
    "The guide is not the posterior: use chains.",
)
_SETTLED = ("The bound rises no more.", "", "The bound was still rising: raise max_steps.")
_ENOUGH = ("Enough for intervals.", "Enough for means, thin for intervals.", "Too few: run longer chains.")
_DIVERGE = (
    "No step diverged.",
    "Few, but estimates may be biased.",
    "Many: estimates are biased.",
)
_ENERGY = ("Tails are explored.", "Tails are explored slowly.", "Tails may be missed.")
_COVER = (
    "About 90%, as it should be.",
    "Not quite the 90% it should be.",
    "Far from 90%: the noise or model is wrong.",
)


def _judge(
    name: str, value: float, text: str, passed: tuple[bool, bool], words: tuple[str, str, str]
) -> Check:
    if not np.isfinite(value):
        return Check(name, "–", "unknown", "Not available.")
    level = 0 if passed[0] else 1 if passed[1] else 2
    return Check(name, text, ("good", "care", "bad")[level], words[level])


def _extreme(values: Iterable[float], pick: Any) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(pick(finite)) if finite else float("nan")
