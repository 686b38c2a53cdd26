"""Simulation-based calibration of the one-compartment model, through `calibrate`, in one vectorised run.

    python benchmarks/sbc_one_compartment.py [--replicates 512] [--thin 8] [--warmup 500]

Each replicate is a patient of one cohort, with one chain. Writes the figures as JSON and the rank
histograms as SVG beside this file. Exits with 1 where the check fails, or where it lets pass the negative
control: the same draws, 20 % too narrow.
"""

import argparse
import warnings
from typing import Any

import jax
import numpy as np
from setting import FOLDER, timed, write

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.record import Cohort, Record, Series, stack
from dtwin_jax.core.signal import Doses
from dtwin_jax.inference import sbc
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import density_of
from dtwin_jax.inference.predictive import evaluate, prior_draws, theta_of
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

PRIORS = {
    "CL": lognormal(1.0, log_sd=0.4),
    "V": lognormal(20.0, log_sd=0.3),
    "ka": lognormal(1.0, log_sd=0.4),
    "sd": lognormal(0.1, log_sd=0.5),
    "cv": lognormal(0.1, log_sd=0.5),
}
TIMES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 36.0)
HELD = 48.0
DOSE = 100.0
DRAWS = 127
CONTROL = 0.8


def design(replicates: int) -> Cohort:
    """A cohort of one oral dose each, with the times of the measurements and the held one (masked)."""
    series = Series([*TIMES, HELD])
    one = Record(Inputs(oral=Doses([0.0], [DOSE])), {"concentration": series})
    return stack({str(i): one for i in range(replicates)})


def simulated(cohort: Cohort, density: Any, base: Any, key: Any) -> tuple[dict[str, np.ndarray], Cohort]:
    """True parameters from the prior, and the cohort with what was measured at them."""
    keys = jax.random.split(jax.random.fold_in(key, 0), len(cohort))
    drawn = prior_draws(density, base, cohort.at(0), keys)
    truth = {name: np.asarray(drawn[name]) for name, _ in density.priors}
    theta = theta_of(density, truth, len(cohort))[None]
    _, _, measured = evaluate(density, base, cohort, theta, jax.random.fold_in(key, 1))
    time = cohort.record.observations["concentration"].time
    series = Series(time, measured["concentration"][0], mask=time < HELD)
    return truth, Cohort(
        cohort.ids, Record(cohort.record.inputs, {"concentration": series}, {}, cohort.record.t0)
    )


def quantities(density: Any, base: Any, cohort: Cohort, values: dict, key: Any) -> dict[str, np.ndarray]:
    """Test quantities (draw, replicate): parameters, log-likelihood, prediction at the held time."""
    theta = theta_of(density, values, len(cohort))
    likelihood, expected, _ = evaluate(density, base, cohort, theta, key)
    return values | {
        "log_likelihood": likelihood["concentration"].sum(axis=-1),
        f"concentration at {HELD:g} h": expected["concentration"][..., -1],
    }


def figure(checks: dict[str, sbc.Check], title: str) -> str:
    """Rank histograms as SVG, with the band that 99 % of a uniform histogram's bins lie in."""
    from scipy.stats import binom

    width, height, columns = 240, 150, 4
    rows = -(-len(checks) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * width}" height="{rows * height + 30}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="18" font-size="13">{title}</text>'
    ]
    for i, (name, one) in enumerate(checks.items()):
        counts = sbc.histogram(one.ranks, one.draws)
        low, high = binom.interval(0.99, len(one.ranks), 1 / sbc.BINS)
        scale = 100 / max(2.0 * high, counts.max())
        x0, base = (i % columns) * width + 10, 30 + (i // columns) * height + 125
        parts.append(f'<text x="{x0}" y="{base - 108}">{name}: p = {one.p_value:.3f}</text>')
        parts.append(
            f'<rect x="{x0}" y="{base - high * scale:.1f}" width="220" height="{(high - low) * scale:.1f}" '
            'fill="#dddddd"/>'
        )
        parts.extend(
            f'<rect x="{x0 + j * 220 / sbc.BINS:.1f}" y="{base - c * scale:.1f}" '
            f'width="{220 / sbc.BINS - 1:.1f}" height="{c * scale:.1f}" fill="#3b6ea5" fill-opacity="0.8"/>'
            for j, c in enumerate(counts)
        )
    return "\n".join([*parts, "</svg>", ""])


def described(checks: dict[str, sbc.Check]) -> dict[str, Any]:
    """The figures of a check, as plain data."""
    return {
        name: {
            "p_value": one.p_value,
            "coverage": {f"{level:.0%}": share for level, share in one.coverage.items()},
            "histogram": sbc.histogram(one.ranks, one.draws).tolist(),
        }
        for name, one in checks.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicates", type=int, default=512)
    parser.add_argument("--thin", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    key = jax.random.key(chosen.seed)
    density, base = density_of(one_compartment, PRIORS, ())
    truth, cohort = simulated(design(chosen.replicates), density, base, key)
    method = Nuts(chains=1, warmup=chosen.warmup, draws=DRAWS * chosen.thin, group=chosen.replicates)
    with warnings.catch_warnings():
        # Convergence is judged here over all replicates, not patient by patient.
        warnings.simplefilter("ignore", CalibrationWarning)
        tree, timing = timed(
            calibrate, one_compartment, cohort, key=jax.random.fold_in(key, 2), priors=PRIORS, method=method
        )
    posterior = {name: tree["posterior"][name].values[0] for name in truth}
    every = quantities(density, base, cohort, posterior, key)
    thinned = {name: value[chosen.thin - 1 :: chosen.thin] for name, value in every.items()}
    true = quantities(density, base, cohort, {name: v[None] for name, v in truth.items()}, key)
    true = {name: value[0] for name, value in true.items()}
    checks = sbc.check(true, thinned)
    control = sbc.check(true, {name: sbc.rescaled(value, CONTROL) for name, value in thinned.items()})
    said, caught = sbc.complaints(checks), sbc.complaints(control)
    stats = tree["sample_stats"]
    write(
        "sbc_one_compartment",
        {
            "replicates": chosen.replicates,
            "draws": DRAWS,
            "thin": chosen.thin,
            "warmup": chosen.warmup,
            "passes": not said,
            "complaints": said,
            "negative_control_fails": bool(caught),
            "negative_control_complaints": len(caught),
            "p_limit": sbc.SIGNIFICANCE / len(checks),
            "autocorrelation_unthinned": {name: sbc.autocorrelation(v) for name, v in every.items()},
            "autocorrelation_thinned": {name: sbc.autocorrelation(v) for name, v in thinned.items()},
            "quantities": described(checks),
            "negative_control": described(control),
            "diverging_share": float(stats["diverging"].mean()),
            "leapfrogs_mean": float(stats["n_steps"].mean()),
            "leapfrogs_of_slowest_lane_mean": float(stats["n_steps"].max("patient").mean()),
            "compile_s": tree.attrs["compile_seconds"],
            "calibrate_s": timing.wall,
            "calibrate_cpu_s": timing.cpu,
        },
    )
    title = f"Ranks of {chosen.replicates} replicates, one-compartment model"
    (FOLDER / "sbc_one_compartment.svg").write_text(figure(checks, title))
    print(*(said or ["passes"]), sep="\n")
    print(f"negative control: {len(caught)} complaints")
    return 0 if not said and caught else 1


if __name__ == "__main__":
    raise SystemExit(main())
