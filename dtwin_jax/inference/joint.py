"""The joint density of a population, all unbounded, as what is shared and a part of each patient."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.inference.density import standard_promotion
from dtwin_jax.inference.population import PopulationDensity

Layout = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Joint:
    """The log density of a population as a part that is shared and one of each patient, all unbounded.

    Attributes:
        density: of the population; effects are scaled from standard normal ones.
        shared: sites of the population's numbers, and their shapes.
        own: sites of the effects, and their shapes for one patient.
    """

    density: PopulationDensity
    shared: Layout
    own: Layout

    @property
    def numbers(self) -> int:
        """How many the population has."""
        return sum(math.prod(shape) for _, shape in self.shared)

    @property
    def effects(self) -> int:
        """How many a patient has."""
        return sum(math.prod(shape) for _, shape in self.own)

    @property
    def alike(self) -> np.ndarray:
        """Places of the numbers that are parameters of every patient alike."""
        names = np.repeat([name for name, _ in self.shared], [math.prod(shape) for _, shape in self.shared])
        all_have = set(self.density.names) - set(self.density.individual)
        return np.flatnonzero([name in all_have for name in names])

    def log_prior(self, base: Any, record: Any, psi: Any) -> Any:
        """Of the numbers `psi`; `record` is of any one patient."""
        _, densities = self._traced(base, record, psi, jnp.zeros(self.effects), likelihood=False)
        return sum(densities[name] for name, _ in self.shared)

    def log_patient(self, base: Any, record: Any, psi: Any, z: Any) -> Any:
        """Of a patient's measurements and effects `z`, given the numbers."""
        _, densities = self._traced(base, record, psi, z, likelihood=True)
        numbers = {name for name, _ in self.shared}
        return sum(value for name, value in densities.items() if name not in numbers)

    def parameters(self, base: Any, record: Any, psi: Any, z: Any) -> Any:
        """A patient's own parameters on their unbounded scales, (effect,)."""
        trace, _ = self._traced(base, record, psi, z, likelihood=False)
        scale, origin = self.density.bijectors, dict(self.density.population.changing)
        return jnp.stack([scale[origin.get(n, n)].inv(trace[n]["value"][0]) for n in self.density.individual])

    def unpacked(self, psi: Any, z: Any) -> dict[str, Any]:
        """The sites' values from draws (draw, number), (draw, patient, effect)."""
        return _unpacked(self.shared, psi) | _unpacked(self.own, z)

    def packed(self, sites: dict[str, Any]) -> Any:
        """The numbers from the sites' values."""
        return jnp.concatenate([jnp.ravel(sites[name]) for name, _ in self.shared])

    def _traced(self, base: Any, record: Any, psi: Any, z: Any, likelihood: bool) -> tuple[dict, dict]:
        """The trace at one patient, and the log density of each site that is drawn or observed."""
        import numpyro.distributions as dist
        from numpyro import handlers

        values = _unpacked(self.shared, psi) | _unpacked(self.own, z[None])

        def given(site: dict) -> Any:
            if site["type"] != "sample" or site["name"] not in values:
                return None
            return dist.biject_to(site["fn"].support)(values[site["name"]])

        alone = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], record)
        model = handlers.substitute(self.density, substitute_fn=given)
        trace = handlers.trace(model).get_trace(base, alone, _scaled(self.density), likelihood)
        found = {}
        for name, site in trace.items():
            if site["type"] != "sample":
                continue
            found[name] = jnp.sum(site["fn"].log_prob(site["value"]))
            if name in values:
                bound = dist.biject_to(site["fn"].support)
                found[name] += jnp.sum(bound.log_abs_det_jacobian(values[name], site["value"]))
        return trace, found


def _unpacked(layout: Layout, x: Any) -> dict[str, Any]:
    found, at = {}, 0
    for name, shape in layout:
        size = math.prod(shape)
        found[name] = x[..., at : at + size].reshape(*x.shape[:-1], *shape)
        at += size
    return found


def _scaled(density: PopulationDensity) -> Any:
    """The centring of effects that are scaled from standard normal ones."""
    return jnp.zeros(len(density.population.varying))


def joint_of(density: PopulationDensity, base: Any, record: Any) -> Joint:
    """The density of a population in two parts; a site is a patient's where each patient has one more.

    Args:
        density: of which correlated effects are not centred.
        base: known parameter values.
        record: of the patients, stacked.
    """
    one, two = (_shapes(density, base, record, count) for count in (1, 2))
    shared = tuple((name, shape) for name, shape in one.items() if two[name] == shape)
    own = tuple((name, shape[1:]) for name, shape in one.items() if two[name] != shape)
    return Joint(density, shared, own)


def _shapes(density: PopulationDensity, base: Any, record: Any, count: int) -> dict[str, tuple[int, ...]]:
    """Site -> its unbounded shape, of so many patients."""
    import numpyro.distributions as dist
    from numpyro import handlers

    found = {}

    @standard_promotion
    def look(key: Any, record: Any) -> Any:
        model = handlers.trace(handlers.seed(density, key))
        for name, site in model.get_trace(base, record, _scaled(density), False).items():
            if site["type"] == "sample" and not site["is_observed"]:
                found[name] = dist.biject_to(site["fn"].support).inverse_shape(jnp.shape(site["value"]))
        return key

    few = jax.tree.map(lambda leaf: jnp.asarray(leaf)[np.zeros(count, int)], record)
    jax.eval_shape(look, jax.random.key(0), few)
    return found
