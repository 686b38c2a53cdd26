"""The posterior of one patient on unbounded scales, which peaks are sought of and sizes are told by."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.core.predictor import log_likelihood
from dtwin_jax.core.prior import Prior
from dtwin_jax.core.quantity import values
from dtwin_jax.core.record import Record
from dtwin_jax.inference.density import parameters, patient_log_likelihood, standard_promotion
from dtwin_jax.inference.diagnostics import unbounded_sd


@dataclass(frozen=True)
class Target:
    """What is optimised: minus the log posterior of one patient at unbounded parameters (name,)."""

    f: Any
    priors: tuple[tuple[str, Prior], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of the vector."""
        return tuple(name for name, _ in self.priors)

    def bounded(self, u: Any) -> Any:
        """Parameters on their own scales."""
        bijectors = self.bijectors()
        return jnp.stack([bijector(u[i]) for i, bijector in enumerate(bijectors)])

    def unbounded(self, theta: Any) -> Any:
        """The inverse of `bounded`."""
        return jnp.stack([bijector.inv(theta[i]) for i, bijector in enumerate(self.bijectors())])

    def draw(self, key: Any) -> Any:
        """Unbounded parameters from the prior."""
        keys = jax.random.split(key, len(self.priors))
        drawn = [prior.distribution().sample(k) for (_, prior), k in zip(self.priors, keys, strict=True)]
        return self.unbounded(jnp.stack(drawn))

    def log_prior(self, u: Any) -> Any:
        """Of each parameter, on the unbounded scale."""
        theta, terms = self.bounded(u), []
        for i, ((_, prior), bijector) in enumerate(zip(self.priors, self.bijectors(), strict=True)):
            terms.append(
                prior.distribution().log_prob(theta[i]) + bijector.log_abs_det_jacobian(u[i], theta[i])
            )
        return jnp.stack(terms)

    def energy(self, u: Any, data: tuple[Any, Record]) -> Any:
        """Minus the log posterior, with the gradient of `patient_log_likelihood`."""
        base, record = data
        likelihood = patient_log_likelihood(self.f, self.names, base, self.bounded(u), record)
        return -jnp.sum(self.log_prior(u)) - likelihood

    def smooth_energy(self, u: Any, data: tuple[Any, Record]) -> Any:
        """`energy`, differentiable in forward mode any number of times."""
        base, record = data
        p = parameters(self.names, base, self.bounded(u), record)
        likelihood = log_likelihood(self.f, p, record)
        return -jnp.sum(self.log_prior(u)) - sum(jnp.sum(value) for value in likelihood.values())

    def prior_sds(self) -> Any:
        """Standard deviations of the priors on their unbounded scales, (name,)."""
        return jnp.asarray([unbounded_sd(prior) for _, prior in self.priors])

    def prior_curvature(self, u: Any) -> tuple[Any, Any, Any]:
        """Log prior of all, its slope (name,), and its curvature downwards (name,), which is positive.

        Where a prior is not log-concave, or all but flat, its curvature is that of its own spread.
        """

        def alone(i: int, at: Any) -> Any:
            return self.log_prior(u.at[i].set(at))[i]

        slope, bend = [], []
        for i, sd in enumerate(self.prior_sds()):
            slope.append(jax.grad(functools.partial(alone, i))(u[i]))
            curvature = -jax.grad(jax.grad(functools.partial(alone, i)))(u[i])
            bend.append(jnp.where(curvature > 1e-3 * sd**-2, curvature, 1e-3 * sd**-2))
        return jnp.sum(self.log_prior(u)), jnp.stack(slope), jnp.stack(bend)

    def bijectors(self) -> list[Any]:
        """From unbounded scales to those of the parameters."""
        import numpyro.distributions as dist

        return [dist.biject_to(prior.distribution().support) for _, prior in self.priors]


@functools.partial(jax.jit, static_argnames=("target", "count"))
@standard_promotion
def first_points(target: Target, count: int, base: Any, keys: Any) -> Any:
    """(patient, start, name) unbounded: the declared values, then prior draws by each patient's key."""
    declared = values(base)
    first = target.unbounded(jnp.stack([jnp.asarray(declared[name], float) for name in target.names]))

    def patient(key: Any) -> Any:
        drawn = jax.vmap(target.draw)(jax.random.split(key, max(count - 1, 1)))
        # A declared value outside of what the prior allows is no place to start.
        begin = jnp.where(jnp.isfinite(first), first, drawn[0])
        return jnp.concatenate([begin[None], drawn])[:count]

    return jax.vmap(patient)(keys)
