"""Stochastic variational inference of a population: a normal guide, learnt from batches of patients.

The guide is searched from a likely point, laid about what is found there, and settles in ever smaller steps.
Draws of its numbers are then weighed by the density itself, each patient's effects integrated out: where the
weights can be trusted the answer is theirs, and else it is said that they cannot.

Source: Kucukelbir et al. 2017, Journal of Machine Learning Research 18(14); of how far a guide can be
believed: Yao et al. 2018, arXiv:1802.02538.
"""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import Cohort
from dtwin_jax.inference.evidence import ADAM, Pace, State, integrals, lay, proposed, run_block, start
from dtwin_jax.inference.guide import Place, nothing_moved
from dtwin_jax.inference.importance import resampled, smoothed
from dtwin_jax.inference.joint import Joint, joint_of
from dtwin_jax.inference.population import PopulationDensity
from dtwin_jax.inference.run import patient_keys, progress_bar

# Patients of whom a start is sought, and nodes of each patient where there are few, for so many in all.
_FEW, _NODES, _ALL = 16, 64, 2048
# In the search nothing is known of the numbers' units: they are this, and steps so many times as large.
_UNIT, _FAST, _SEARCH = 0.1, 3.0, 5
# The guide is laid anew while the numbers move by more, in units; so often at most.
_NEAR, _AGAIN = 2.0, 12
# Shares of the rate in which the guide settles, and visits of each patient that each of them takes at least.
_RATES, _VISITS = (1.0, 0.3, 0.1), 10
# What a rate is multiplied by where steps fail, and how often.
_SMALLER, _FAILURES = 0.3, 4


@dataclass(frozen=True)
class Svi:
    """Settings of stochastic variational inference, for a `Population` of many patients.

    Attributes:
        draws: independent draws that are kept, as one chain.
        proposals: draws of the guide's numbers that are weighed.
        batch: patients looked at in a step.
        samples: draws of the numbers in a step.
        nodes: draws of each patient's effects, by which his likelihood is integrated.
        block: steps between two looks at whether the bound still rises.
        max_steps: at most.
        rate: of the first steps, in standard deviations of the guide; the last ones are a tenth of it.
        tolerance: nats by which the bound may still rise from block to block, as far as can be told.
        k_limit: Pareto k up to which the guide is believed.
        candidates: prior draws of which the likeliest starts the search.
    """

    title: ClassVar[str] = "Stochastic variational inference"

    draws: int = 1000
    proposals: int = 1000
    batch: int = 128
    samples: int = 2
    nodes: int = 8
    block: int = 100
    max_steps: int = 10000
    rate: float = 0.1
    tolerance: float = 0.05
    k_limit: float = 0.7
    candidates: int = 64

    def __post_init__(self):
        for name in ("draws", "proposals", "batch", "samples", "nodes", "block", "max_steps", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"Svi: {name} must be at least 1, found {getattr(self, name)}")
        if self.max_steps < self.block:
            raise ValueError(
                f"Svi: max_steps must be at least a block of {self.block}, found {self.max_steps}"
            )
        for name in ("rate", "tolerance", "k_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"Svi: {name} must be positive, found {getattr(self, name)}")

    def pace(self, patients: int) -> Pace:
        """What of it is compiled for so many patients."""
        return Pace(min(self.batch, patients), self.samples, self.nodes, self.block)

    def described(self) -> str:
        """How much of it."""
        return f"{self.draws} draws of a guide, learnt from batches of {self.batch} patients"


def scaled(density: Any) -> PopulationDensity:
    """The same density by effects that are scaled from standard normal ones."""
    population = density.population
    return replace(density, population=replace(population, centred=False)) if population.centred else density


@dataclass
class Variational:
    """A calibration by a guide, as `Run` is one by NUTS.

    Attributes:
        density: of the population; correlated effects are not centred.
        base: known parameter values.
        cohort: the patients.
        method: settings.
        key: random key.
        told: what a reader of the result must know of the fit.
        blocks: bound, its standard error, and rate of each block of steps.
    """

    density: Any
    base: Any
    cohort: Cohort
    method: Svi
    key: Any
    resumed: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    blocks: list[tuple[float, float, float]] = field(default_factory=list)

    def population(self, progress: bool) -> tuple[dict, dict, Any]:
        """Draws, leading axes (chain, draw) with one chain; log ratios (chain, draw), Pareto k (patient,)."""
        record = jax.tree.map(jnp.asarray, self.cohort.record)
        joint = joint_of(self.density, self.base, record)
        key_start, key_fit, key_draws = jax.random.split(self.key, 3)
        few = jax.tree.map(lambda leaf: leaf[:_FEW], record)
        psi = start(joint, self.method.candidates, self.base, few, key_start)
        with progress_bar(self.method.max_steps // self.method.block, "climbing", "block", progress) as bar:
            fit = _Fit(self, joint, (self.base, record), key_fit, bar)
            place, state = fit.settled(psi)
        guide = (state.mean[0], state.own)
        return self._drawn(joint, (self.base, record), place, guide, key_draws)

    def _drawn(
        self, joint: Joint, data: tuple, place: Place, guide: tuple, key: Any
    ) -> tuple[dict, dict, Any]:
        """Draws of the numbers, by their weights if these can be trusted, then of the effects given them."""
        method, keys = self.method, jax.random.split(key, 4)
        psi, other, log_other = map(
            np.asarray, proposed(method.draws, method.proposals, place, guide[0], keys[0])
        )
        patients = patient_keys(keys[1], self.cohort)
        # At every draw the same nodes: their noise is in all weights alike. Of few patients there are more.
        nodes = max(method.nodes, min(_NODES, _ALL // len(self.cohort)))
        random = patients, jnp.zeros(len(other), int)
        joined, *_ = integrals(joint, nodes, data, place, guide, other, random)
        ratio = np.asarray(joined) - log_other
        weights, k = smoothed(np.where(np.isnan(ratio), -np.inf, ratio)[None])
        trusted = bool(k[0] <= method.k_limit)
        if trusted:
            (psi,) = resampled(other[None], weights, keys[2][None], method.draws)
        random = patients, 1 + jnp.arange(len(psi))
        _, z, own = integrals(joint, nodes, data, place, guide, psi, random)
        self.told |= {
            "weighed": int(trusted),
            "pareto_k": float(k[0]),
            "effective_draws": float(1.0 / np.sum(weights**2)),
        }
        sites = {name: value[None] for name, value in joint.unpacked(psi, np.asarray(z)).items()}
        stats = {"pareto_k": smoothed(np.asarray(own).T)[1]}
        return sites, stats, jnp.zeros(len(self.density.population.varying))

    def describe(self, tree: Any) -> None:
        """Add to a result what is told of the fit, and the group `bound`: that of every block of steps."""
        import xarray as xr

        bound, error, rate = np.asarray(self.blocks).T
        steps = self.method.block * (1 + np.arange(len(bound)))
        columns = {"elbo": bound, "standard_error": error, "rate": rate}
        tree["bound"] = xr.DataTree(
            xr.Dataset({name: ("step", value) for name, value in columns.items()}, {"step": steps})
        )
        tree.attrs |= self.told


@dataclass
class _Fit:
    """The climb of a guide: a search, then laid where it leads, then settled in ever smaller steps."""

    run: Variational
    joint: Joint
    data: tuple
    key: Any
    bar: Any
    slower: float = 1.0
    failures: int = 0

    def settled(self, psi: Any) -> tuple[Place, State]:
        """Where the guide is laid in the end, and the guide."""
        method, count = self.run.method, len(self.run.cohort)
        place = lay(self.joint, *self.data, psi, jnp.zeros((count, self.joint.effects)))
        rough = eqx.tree_at(
            lambda place: (place.root, place.level, place.slope),
            place,
            (_UNIT * jnp.eye(self.joint.numbers), jnp.zeros_like(place.level), jnp.zeros_like(place.slope)),
        )
        state = self._risen(rough, self._fresh(), _FAST * method.rate, 1, _SEARCH)
        place = self._again(rough, state)
        for _ in range(_AGAIN):
            state = self._risen(place, self._fresh(), method.rate, 1, 1)
            moved = float(jnp.max(jnp.abs(state.shared.centre)))
            place = self._again(place, state)
            if moved < _NEAR or self.ended:
                break
        state = self._fresh()
        least = -(-_VISITS * count // (method.pace(count).batch * method.block))
        for share in _RATES:
            state = replace(state, mean=(state.shared, jnp.asarray(0.0)))
            state = self._risen(place, state, share * method.rate, least, None)
        self.run.told |= {"converged": int(not self.ended), "steps": len(self.run.blocks) * method.block}
        return place, state

    @property
    def ended(self) -> bool:
        """Whether no steps are left."""
        return (len(self.run.blocks) + 1) * self.run.method.block > self.run.method.max_steps

    def _fresh(self) -> State:
        shared, own = nothing_moved(self.joint, len(self.run.cohort))
        self.key, key = jax.random.split(self.key)
        patients = jnp.arange(len(self.run.cohort))
        memory = (ADAM.init(shared), jax.vmap(ADAM.init)(own))
        return State(
            shared, own, memory, (shared, jnp.asarray(0.0)), (patients, jnp.asarray(len(patients))), key
        )

    def _again(self, place: Place, state: State) -> Place:
        """The guide laid where its numbers are."""
        psi = place.psi + place.root @ state.shared.centre
        return lay(self.joint, *self.data, psi, place.peak)

    def _risen(self, place: Place, state: State, rate: float, least: int, most: int | None) -> State:
        """The guide after so many blocks of steps at this rate, or as many as it takes to rise no more."""
        pace, bounds = self.run.method.pace(len(self.run.cohort)), []
        while not self.ended and (most is None or len(bounds) < most):
            new, steps = run_block(self.joint, pace, self.data, place, state, jnp.asarray(rate * self.slower))
            steps = np.asarray(steps)
            taken = steps[np.isfinite(steps)]
            self.bar.update(1)
            if len(taken) < 0.5 * len(steps):
                self._failed(rate)
                continue
            state = new
            bounds.append((float(taken.mean()), float(taken.std() / np.sqrt(len(taken)))))
            self.run.blocks.append((*bounds[-1], rate * self.slower))
            if len(bounds) > least and not self._rising(bounds):
                break
        return state

    def _rising(self, bounds: list[tuple[float, float]]) -> bool:
        """Whether the bound has risen in the last block, as far as can be told."""
        (before, error), (now, other) = bounds[-2:]
        return now - before > max(self.run.method.tolerance, 2.0 * float(np.hypot(error, other)))

    def _failed(self, rate: float) -> None:
        """Go on in smaller steps, or give up."""
        self.failures += 1
        if self.failures > _FAILURES:
            raise FloatingPointError(
                f"Svi: the bound is no number however small the steps are (rate {rate * self.slower:.2g}): "
                "give narrower priors, or look at what the model makes of them"
            )
        self.slower *= _SMALLER
