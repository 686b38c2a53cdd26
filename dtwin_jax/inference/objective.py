"""A population's likelihood as a function of its numbers, and the peaks of the effects along the way."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.record import SEEN, Record, repeated
from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.gauss_newton import climbed
from dtwin_jax.inference.marginal import Marginal
from dtwin_jax.inference.mixture import of_class
from dtwin_jax.inference.nodes import Nodes
from dtwin_jax.inference.posteriors import measured

# What the last step towards a patient's peak may still promise, in nats.
_CLOSE = 1e-12
_STEPS = 100
# Moves of the estimated numbers, over which slopes are compared for a curvature.
_MOVE = 1e-3
# No standard deviation of effects is smaller, or larger than its inverse.
LEAST = 1e-6


class Objective:
    """An objective with what is kept between two looks at it: the peaks of the effects.

    In a mixture each patient has a peak in every class: peaks are (row,), the patients in the first class,
    then in the next. A patient has `arrived` where all of his have.
    """

    def __init__(self, marginal: Marginal, base: Any, record: Record, scattered: Nodes | None = None):
        self.marginal, self.base, self.given = marginal, base, (record, scattered)
        self.patients, self.classes = record.t0.shape[0], marginal.effects.classes
        self.record, self.scattered = record, scattered
        if self.classes > 1:
            number = np.repeat(np.arange(self.classes), self.patients)
            self.record = of_class(repeated(record, self.classes), number)
        if self.classes > 1 and scattered is not None:
            times = (1, self.classes)
            self.scattered = Nodes(np.tile(scattered.at, (*times, 1)), np.tile(scattered.log_weight, times))
        self.eta = np.zeros((len(self.record.t0), len(marginal.effects.effects)))
        self.arrived = np.ones(self.patients, bool)
        self.psi = np.zeros(0)

    def of(self, rows: np.ndarray) -> "Objective":
        """That of the patients in these rows, who may come more than once.

        As many rows as there are patients compile nothing anew. The peaks begin where these have been found.
        """
        pick = lambda leaf: leaf[rows]  # noqa: E731
        record, nets = self.given
        if nets is not None:
            nets = Nodes(nets.at[:, rows], nets.log_weight[:, rows])
        part = Objective(self.marginal, self.base, jax.tree.map(pick, record), nets)
        part.eta = self.eta_by_class[:, rows].reshape(part.eta.shape)
        return part

    @property
    def eta_by_class(self) -> np.ndarray:
        """The peaks, (class, patient, effect)."""
        return self.eta.reshape(self.classes, self.patients, -1)

    def check(self) -> None:
        """Refuse errors that the approximation cannot take."""
        marginal = self.marginal
        shapes = ", ".join(name for name, _ in marginal.effects.population.shapes)
        if marginal.by == "fo" and shapes:
            raise ValueError(f"fo, about no effects, knows nothing of {shapes}: give a number, or use focei")
        if marginal.by not in ("fo", "foce", "focei"):
            return
        psi = np.zeros(len(marginal.effects.names))
        rows = jax.eval_shape(functools.partial(_channels, marginal), self.base, self.record, psi)
        for name, found in rows.items():
            censored = np.any(np.asarray(self.record.observations[name].censor) != SEEN)
            if "mean" not in found or (censored and marginal.by in ("fo", "foce")):
                what = "measurements beyond a limit" if "mean" in found else "no normal errors"
                raise ValueError(f"channel {name!r} has {what}, which {marginal.by} cannot take: use laplace")

    def value(self, psi: np.ndarray) -> tuple[float, np.ndarray]:
        """-2 log likelihood and its slope; infinite where it is no number."""
        each, slopes = self.each(psi)
        total = float(np.sum(each))
        if not np.isfinite(total) or not np.all(np.isfinite(slopes)):
            return np.inf, np.zeros(len(psi))
        return total, slopes.sum(axis=0)

    def each(self, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-2 log likelihood of every patient (patient,), and its slopes (patient, number)."""
        scatter = np.diag(np.asarray(self.marginal.effects.root(jnp.asarray(psi))))
        if not np.all(np.isfinite(psi)) or scatter.min() < LEAST or scatter.max() > 1.0 / LEAST:
            return np.full(self.patients, np.nan), np.full((self.patients, len(psi)), np.nan)
        if self.marginal.by != "fo":
            self.find(psi)
        found = _each(self.marginal, self.base, self.record, psi, self.eta, self.scattered)
        return np.asarray(found[0]), np.asarray(found[1])

    def probabilities(self, psi: np.ndarray) -> np.ndarray:
        """Of each patient's being of each class, (patient, class), at the peaks that were found last."""
        found = _probabilities(self.marginal, self.base, self.record, psi, self.eta, self.scattered)
        return np.asarray(found)

    def error(self, psi: np.ndarray) -> float:
        """Monte Carlo standard error of `value` where it is random, else 0."""
        if self.scattered is None:
            return 0.0
        return float(_error(self.marginal, self.base, self.record, psi, self.eta, self.scattered))

    def find(self, psi: np.ndarray) -> None:
        """The peaks of the effects at `psi`, from where they were before."""
        self.psi = psi
        rows = np.arange(len(self.eta))
        best = climbed(self, rows, self.eta, close=_CLOSE, max_steps=_STEPS)
        lost = np.flatnonzero(~best.arrived)
        if len(lost):
            # From effects of a wider scatter the way may have been too long: from none it is short.
            again = climbed(self, lost, np.zeros_like(best.u[lost]), close=_CLOSE, max_steps=_STEPS)
            better = again.arrived | (again.value > best.value[lost])
            for old, new in zip(vars(best).values(), vars(again).values(), strict=True):
                old[lost[better]] = new[better]
        good = np.all(np.isfinite(best.u), axis=1)
        self.eta = np.where(good[:, None], best.u, 0.0)
        self.arrived = (best.arrived & good).reshape(self.classes, -1).all(axis=0)

    def slopes(self, owner: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, ...]:
        """As of `Posteriors`: of all patients together, of whom the others stay where they are."""
        whole = self.eta.copy()
        whole[owner] = u
        found = _joint(self.marginal, self.base, self.record, self.psi, whole)
        value, slope, curvature, explained = (np.array(part)[owner] for part in found)
        lost = ~np.isfinite(value) | ~np.all(np.isfinite(curvature), axis=(1, 2))
        value[lost], slope[lost], curvature[lost], explained[lost] = -np.inf, 0.0, np.eye(u.shape[1]), False
        return value, slope, curvature, explained

    def scales(self) -> np.ndarray:
        """Standard deviations of the effects."""
        root = np.asarray(self.marginal.effects.root(jnp.asarray(self.psi)))
        return np.sqrt(np.diag(root @ root.T))

    def curvature(self, psi: np.ndarray) -> np.ndarray:
        """Half the second derivative of -2 log likelihood, by differences of slopes."""
        rows = []
        for way in _MOVE * np.eye(len(psi)):
            above, below = (self.each(psi + sign * way)[1].sum(axis=0) for sign in (1.0, -1.0))
            rows.append((above - below) / (4.0 * _MOVE))
        found = np.stack(rows)
        return (found + found.T) / 2.0


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _joint(marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any) -> tuple:
    return marginal.joint(base, record, psi, eta)


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _each(
    marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes | None
) -> tuple[Any, Any]:
    value = lambda psi: marginal.minus_two(base, record, psi, eta, scattered)  # noqa: E731
    along = lambda way: jax.jvp(value, (psi,), (way,))  # noqa: E731
    each, slopes = jax.vmap(along, out_axes=(None, 0))(jnp.eye(len(psi)))
    return each, slopes.T


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _probabilities(
    marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes | None
) -> Any:
    return marginal.probabilities(base, record, psi, eta, scattered)


@functools.partial(jax.jit, static_argnames=("marginal",))
@standard_promotion
def _error(marginal: Marginal, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes) -> Any:
    return marginal.error(base, record, psi, eta, scattered)


@standard_promotion
def _channels(marginal: Marginal, base: Any, record: Record, psi: Any) -> dict:
    return measured(marginal.effects.target, base, record, marginal.effects.centres(psi, record))
