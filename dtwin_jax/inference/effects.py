"""A population's parameters as one vector, and what a patient's random effects make of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import values
from dtwin_jax.core.record import Record
from dtwin_jax.inference import boxcox
from dtwin_jax.inference.mixture import CLASS, log_shares
from dtwin_jax.inference.population import Population
from dtwin_jax.inference.target import Target

# Of the standard deviations between patients, at the start of a search.
_SCATTER = 0.3
# By how much their logs differ from start to start.
_SPREAD = 0.5


@dataclass(frozen=True)
class Effects:
    """How the vector of a population's estimated numbers is laid out; all of them unbounded.

    First the typical value of each estimated parameter; then coefficients of covariates, shapes of effects
    and shifts between classes; then the logs of the classes' shares over that of the first; then the lower
    triangle of the root of the random effects' covariance, where effects are correlated, with the logs of its
    diagonal. Last the logs of the standard deviations between occasions.

    Random effects are those between patients, then those of each occasion.

    Attributes:
        population: what varies.
        priors: name -> prior of the estimated parameters, whose supports make the scales; nothing else of
            them counts.
    """

    population: Population
    priors: tuple[tuple[str, Prior], ...]

    @property
    def target(self) -> Target:
        """The density of one patient: by typical parameters, then those in each occasion."""
        prior = dict(self.priors)
        changing = tuple((each, prior[name]) for each, name in self.population.changing)
        return Target(self.population.solved, self.priors + changing)

    @property
    def typical(self) -> Target:
        """The same by typical parameters only."""
        return Target(self.population.solved, self.priors)

    @property
    def varying(self) -> tuple[str, ...]:
        """Parameters that vary between patients."""
        return self.population.varying

    @property
    def between(self) -> tuple[str, ...]:
        """Parameters that vary between occasions."""
        return () if self.population.occasions is None else self.population.occasions.names

    @property
    def effects(self) -> tuple[str, ...]:
        """Of each random effect, the parameter that it moves."""
        return self.varying + tuple(each for each, _ in self.population.changing)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Estimated coefficients of covariates, shapes of effects and shifts between classes."""
        return tuple(label for label, _ in self._estimated())

    @property
    def classes(self) -> int:
        """How many subpopulations there are."""
        return self.population.classes

    @property
    def shares(self) -> tuple[str, ...]:
        """Of all classes but the first."""
        return () if self.population.mixture is None else self.population.mixture.shares

    @property
    def before_shares(self) -> int:
        """How many numbers there are before those of the shares."""
        return len(self.priors) + len(self.coefficients)

    @property
    def before_scatter(self) -> int:
        """How many numbers there are before those of the covariance."""
        return self.before_shares + len(self.shares)

    @property
    def correlated(self) -> bool:
        """Whether any of the random effects are correlated."""
        return bool(self.population.together)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the vector's elements."""
        typical = tuple(f"{name}_pop" if name in self.varying else name for name, _ in self.priors)
        rows, columns = self._triangle()
        scatter = tuple(
            f"omega_{self.varying[i]}" if i == j else f"root_{self.varying[i]}_{self.varying[j]}"
            for i, j in zip(rows, columns, strict=True)
        )
        numbers = typical + self.coefficients + self.shares
        return numbers + scatter + tuple(f"gamma_{name}" for name in self.between)

    def start(self, base: Any) -> np.ndarray:
        """Declared values, no effect of covariates, moderate scatter that is not skewed, equal shares."""
        declared = values(base)
        first = self.typical.unbounded(jnp.stack([jnp.asarray(declared[n], float) for n, _ in self.priors]))
        rows, columns = self._triangle()
        scatter = np.where(rows == columns, np.log(_SCATTER), 0.0)
        none = [bijector.inv(0.0) for bijector in self._bounds()]
        # Where none is outside of what a prior allows, its middle is a place to start.
        coefficients = [float(at) if np.isfinite(at) else 0.0 for at in none]
        between = np.full(len(self.between), np.log(_SCATTER / 2))
        return np.concatenate([first, coefficients, np.zeros(len(self.shares)), scatter, between])

    def root(self, psi: Any) -> Any:
        """Lower triangular root of the covariance of the random effects, (effect, effect)."""
        rows, columns = self._triangle()
        first = self.before_scatter
        entries = psi[first : first + len(rows)]
        entries = jnp.where(rows == columns, jnp.exp(entries), entries)
        root = jnp.zeros((len(self.effects),) * 2).at[rows, columns].set(entries)
        if not self.between:
            return root
        others = np.arange(len(self.varying), len(self.effects))
        return root.at[others, others].set(jnp.tile(self._gamma(psi), len(others) // len(self.between)))

    def scatter_of(self, covariance: np.ndarray, least: np.ndarray) -> np.ndarray:
        """The last of the numbers, of which `root` makes the nearest covariance that the population allows.

        Args:
            covariance: (effect, effect) of the random effects.
            least: (effect, effect) on whose diagonal no variance falls below.
        """
        rows, columns = self._triangle()
        first, floor = len(self.varying), np.maximum(np.diag(least), 1e-12)
        own = covariance[:first, :first]
        variance = np.maximum(np.diag(covariance), floor)
        if self.correlated:
            raised = np.sqrt(variance[:first] / np.maximum(np.diag(own), 1e-300))
            kept = np.zeros_like(own)
            kept[rows, columns] = kept[columns, rows] = 1.0
            own = kept * own * np.outer(raised, raised)
            root = np.linalg.cholesky(own + np.diag(1e-12 * variance[:first]))
        else:
            root = np.diag(np.sqrt(variance[:first]))
        entries = np.where(rows == columns, np.log(np.abs(np.diag(root)))[rows], root[rows, columns])
        if not self.between:
            return entries
        gamma = variance[first:].reshape(-1, len(self.between)).mean(axis=0)
        return np.concatenate([entries, 0.5 * np.log(gamma)])

    def centres(self, psi: Any, record: Record) -> Any:
        """Unbounded parameters of every patient without random effects, (patient, name).

        They are those of the class that `record` says a patient is of, or of the first.
        """
        names = [name for name, _ in self.priors]
        u = jnp.broadcast_to(psi[: len(names)], (record.t0.shape[0], len(names)))
        given = self._moves(psi)
        for one in self.population.covariates:
            shift = one.shift(given.get(one.label, one.coefficient), record.known[one.name])
            u = u.at[:, names.index(one.parameter)].add(shift)
        if CLASS in record.known:
            own = np.asarray([names.index(name) for name in self.varying])
            u = u.at[:, own].add(self.class_moves(psi)[record.known[CLASS], : len(own)])
        changing = np.asarray([names.index(name) for _, name in self.population.changing], int)
        return jnp.concatenate([u, u[:, changing]], axis=1)

    def class_moves(self, psi: Any) -> Any:
        """How far each class is moved from the first, (class, effect)."""
        mixture = self.population.mixture
        if mixture is None:
            return jnp.zeros((1, len(self.effects)))
        return mixture.moves(self.effects, self._moves(psi))

    def log_shares(self, psi: Any) -> Any:
        """Logs of the classes' shares, (class,)."""
        return log_shares(psi[self.before_shares : self.before_scatter])

    def individual(self, psi: Any, record: Record, eta: Any) -> Any:
        """Unbounded parameters (..., patient, name) of random effects (..., patient, effect)."""
        return self.centres(psi, record) + self.spread(psi, eta)

    def transformed(self, psi: Any, eta: Any) -> Any:
        """What normal effects (..., effect) move the parameters by."""
        return boxcox.moved(self.population.boxcox, self.effects, self._moves(psi), eta)

    def restored(self, psi: Any, moves: Any) -> Any:
        """The normal effects of which `transformed` made `moves`."""
        return boxcox.restored(self.population.boxcox, self.effects, self._moves(psi), moves)

    def log_stretch(self, psi: Any, eta: Any) -> Any:
        """The log of how fast each of `transformed` grows with its effect."""
        return boxcox.log_stretch(self.population.boxcox, self.effects, self._moves(psi), eta)

    def spread(self, psi: Any, eta: Any) -> Any:
        """Random effects (..., effect) as moves of the unbounded parameters (..., name)."""
        eta = self.transformed(psi, eta)
        moved = [name for name, _ in (*self.priors, *self.population.changing)]
        origin = dict(self.population.changing)
        moves = np.asarray(
            [[float(name == each or origin.get(name) == each) for name in moved] for each in self.effects]
        )
        return eta @ jnp.asarray(moves)

    def told(self, psi: Any) -> Mapping[str, Any]:
        """The numbers as they are reported: typical values on their own scales, standard deviations."""
        count = len(self.priors)
        typical = self.typical.bounded(psi[:count])
        found = dict(zip(self.names[:count], typical, strict=True))
        found |= self._moves(psi)
        found |= dict(zip(self.shares, jnp.exp(self.log_shares(psi))[1:], strict=True))
        root = self.root(psi)
        covariance = root @ root.T
        sd = jnp.sqrt(jnp.diagonal(covariance))
        found |= {f"omega_{name}": sd[i] for i, name in enumerate(self.varying)}
        if self.correlated:
            found |= {
                f"corr_{self.varying[i]}_{self.varying[j]}": covariance[i, j] / (sd[i] * sd[j])
                for i, j in zip(*self._triangle(), strict=True)
                if i != j
            }
        return found | {f"gamma_{name}": self._gamma(psi)[i] for i, name in enumerate(self.between)}

    def supports(self) -> dict[str, Prior]:
        """Name -> the prior that bounds it, of typical values and `coefficients`, in their order."""
        given = [prior for _, prior in self.priors] + [prior for _, prior in self._estimated()]
        return dict(zip(self.names, given, strict=False))

    def drawn(self, psi: np.ndarray, key: Any) -> np.ndarray:
        """Another start: typical values and coefficients from their priors, other numbers moved about."""
        own, other = jax.random.split(key)
        supports = self.supports().values()
        keys = jax.random.split(own, len(supports))
        sample = [prior.distribution().sample(k) for prior, k in zip(supports, keys, strict=True)]
        first = [float(bound.inv(x)) for bound, x in zip(self.bijectors().values(), sample, strict=True)]
        left = psi[len(first) :]
        return np.concatenate([first, left + _SPREAD * np.asarray(jax.random.normal(other, left.shape))])

    def bijectors(self) -> dict[str, Any]:
        """Name -> from the vector's scale to the reported one, of typical values and `coefficients`."""
        return dict(zip(self.names, [*self.typical.bijectors(), *self._bounds()], strict=False))

    def _gamma(self, psi: Any) -> Any:
        """Standard deviations between occasions, of each parameter that varies so."""
        return jnp.exp(psi[len(psi) - len(self.between) :])

    def _moves(self, psi: Any) -> dict[str, Any]:
        """`coefficients` on their own scales."""
        first = len(self.priors)
        return {
            name: bound(psi[first + i])
            for i, (name, bound) in enumerate(zip(self.coefficients, self._bounds(), strict=True))
        }

    def _bounds(self) -> list[Any]:
        import numpyro.distributions as dist

        return [dist.biject_to(prior.distribution().support) for _, prior in self._estimated()]

    def _estimated(self) -> list[tuple[str, Prior]]:
        each = [(one.label, one.coefficient) for one in self.population.covariates]
        each += [*self.population.shapes, *self.population.shifts]
        return [(label, one) for label, one in each if isinstance(one, Prior)]

    def _triangle(self) -> tuple[np.ndarray, np.ndarray]:
        block = {i: k for k, places in enumerate(self.population.together) for i in places}
        pairs = [
            (i, j)
            for i in range(len(self.varying))
            for j in range(i + 1)
            if i == j or block.get(i, -1) == block.get(j, -2)
        ]
        rows, columns = np.asarray(pairs, int).T
        return rows, columns


def log_normal_density(root: Any, eta: Any) -> Any:
    """Of random effects (patient, effect) with covariance root root'."""
    z = jax.scipy.linalg.solve_triangular(root, eta.T, lower=True)
    size = jnp.sum(jnp.log(jnp.diagonal(root)))
    return -0.5 * jnp.sum(z**2, axis=0) - size - 0.5 * eta.shape[1] * jnp.log(2.0 * jnp.pi)
