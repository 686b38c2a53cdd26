"""Sites of random effects of all patients, in the coordinates that a sampler moves in."""

from typing import Any

import jax.numpy as jnp
import numpy as np

# Sites of the effects: in coordinates between centred and not, or as standard normals.
EFFECTS, STANDARD = "random effects", "standard effects"
# Sites of the roots of correlations, block by block.
_FACTORS = ("correlation factor", *(f"correlation factor {k}" for k in range(2, 10)))
# Sites that serve the sampler only. No parameter can be called so.
LATENT = (EFFECTS, STANDARD, *_FACTORS)

Blocks = tuple[tuple[int, ...], ...]


def factors(blocks: Blocks, correlation: Any) -> dict[str, Any]:
    """The sampler's own sites of a correlation (..., effect, effect)."""
    return {
        site: jnp.linalg.cholesky(correlation[..., np.asarray(block)[:, None], np.asarray(block)])
        for site, block in zip(_FACTORS, blocks, strict=False)
    }


def correlated(blocks: Blocks, concentration: float, centred: bool, mean: Any, scale: Any) -> Any:
    """Effects about `mean` (patient, effect), those of a block correlated."""
    import numpyro
    import numpyro.distributions as dist

    factor = jnp.eye(scale.shape[0])
    for site, block in zip(_FACTORS, blocks, strict=False):
        part: Any = numpyro.sample(site, dist.LKJCholesky(len(block), concentration=concentration))
        factor = factor.at[np.ix_(block, block)].set(part)
    numpyro.deterministic("correlation", factor @ factor.T)
    root = scale[:, None] * factor
    if centred:
        scatter = dist.MultivariateNormal(mean, scale_tril=root[None])
        return numpyro.sample(EFFECTS, scatter.to_event(1))
    drawn: Any = numpyro.sample(STANDARD, standard(mean.shape))
    return mean + drawn @ root.T


def independent(mean: Any, scale: Any, centring: Any) -> Any:
    """Independent effects about `mean` (patient, effect), in partly centred coordinates.

    Source: Papaspiliopoulos, Roberts & Sköld 2007, doi 10.1214/088342307000000014.
    """
    import numpyro
    import numpyro.distributions as dist

    held = centring[None, :] * mean
    spread = scale**centring
    partly = numpyro.sample(
        EFFECTS, dist.Normal(held, jnp.broadcast_to(spread[None, :], held.shape)).to_event(2)
    )
    return mean + (scale / spread)[None, :] * (partly - held)


def standard(shape: tuple[int, ...]) -> Any:
    """Standard normals as one event."""
    import numpyro.distributions as dist

    return dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))
