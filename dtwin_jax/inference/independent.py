"""A cohort's patients one by one by weighed proposals, and by NUTS where these cannot be trusted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax.core.record import Cohort
from dtwin_jax.inference.laplace import Laplace, Weighed, weigh
from dtwin_jax.inference.run import Run, patient_keys, progress_bar


@dataclass
class Independent:
    """A calibration by Laplace's approximation, as `Run` is one by NUTS."""

    density: Any
    base: Any
    cohort: Cohort
    method: Laplace
    key: Any
    checkpoint: Path | None
    resumed: int = 0

    def patients(self, progress: bool) -> tuple[dict, dict, None]:
        """Draws, leading axes (chain, draw, patient) with one chain; statistics (patient,); no centring."""
        keys = patient_keys(self.key, self.cohort)
        with progress_bar(len(self.cohort), "weighing", "patient", progress) as bar:
            found = weigh(self.density, self.base, self.cohort.record, keys, self.method, bar.update)
        nothing = np.full(len(self.cohort), np.nan)
        stats = {
            "pareto_k": found.pareto_k,
            # Of no more draws than are kept.
            "ess": np.minimum(found.ess, self.method.draws),
            "trusted": found.trusted,
            "r_hat": nothing,
            "rounds": found.rounds,
            "sampled": np.zeros(len(self.cohort), bool),
            "divergences": np.zeros(len(self.cohort), int),
        }
        left = np.flatnonzero(~found.trusted)
        if len(left) and self.method.fallback is not None:
            self._sample(left, found, stats, progress)
        names = [name for name, _ in self.density.priors]
        z = {name: np.swapaxes(found.u[..., i], 0, 1)[None] for i, name in enumerate(names)}
        return z, stats, None

    def _sample(self, left: np.ndarray, found: Weighed, stats: dict, progress: bool) -> None:
        """Draws of the patients at these positions by NUTS, in place of those that are there."""
        assert self.method.fallback is not None
        members = self.cohort.take(left.tolist())
        run = Run(self.density, self.base, members, self.method.fallback, self.key, self.checkpoint)
        z, sampled, _ = run.patients(progress)
        self.resumed += run.resumed
        # (chain, draw, patient, name)
        u = np.stack([z[name] for name, _ in self.density.priors], axis=-1)
        for i, row in enumerate(left):
            draws = u[:, :, i].reshape(-1, u.shape[-1])
            kept = np.linspace(0, len(draws) - 1, self.method.draws).round().astype(int)
            found.u[row] = draws[kept]
            ess, stats["r_hat"][row] = _convergence(u[:, :, i])
            stats["ess"][row] = min(ess, self.method.draws)
        stats["sampled"][left] = True
        stats["divergences"][left] = sampled["diverging"].sum((0, 1))


def _convergence(u: np.ndarray) -> tuple[float, float]:
    """The least bulk or tail ESS and the largest R-hat of any parameter; draws (chain, draw, name)."""
    from arviz_stats.base.array import array_stats

    columns = [u[..., i] for i in range(u.shape[2])]
    if not np.all(np.isfinite(u)) or not all(np.ptp(column) > 0 for column in columns):
        return 0.0, np.inf
    bulk = [array_stats.ess(x) for x in columns]
    tail = [array_stats.ess(x, method="tail", prob=0.9) for x in columns]
    return float(np.min(bulk + tail)), float(np.max([array_stats.rhat(x) for x in columns]))
