"""Sites of random effects of all patients, in the coordinates that a sampler moves in.

In a mixture the effects of a patient are those of any class, summed over: about the first class's typical
values they have several peaks, as high as the classes' shares. No class is drawn.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.inference.mixture import Mixture

# Sites of the effects: in coordinates between centred and not, or as standard normals; and of all shares.
EFFECTS, STANDARD, SHARES = "random effects", "standard effects", "class shares"
# Sites of the roots of correlations, block by block.
_FACTORS = ("correlation factor", *(f"correlation factor {k}" for k in range(2, 10)))
# Sites that serve the sampler only. No parameter can be called so.
LATENT = (EFFECTS, STANDARD, SHARES, *_FACTORS)

Blocks = tuple[tuple[int, ...], ...]


class Split(eqx.Module):
    """A mixture at one point: names of the probabilities that it tells of each patient, logs of the shares
    (class,), and how far each class is moved from the first (class, effect)."""

    names: tuple[str, ...] = eqx.field(static=True)
    log_share: Any
    moves: Any


def split(mixture: Mixture | None, effects: tuple[str, ...]) -> Split | None:
    """Sites of shares and shifts; None where all patients are of one class."""
    import numpyro
    import numpyro.distributions as dist

    if mixture is None or mixture.classes == 1:
        return None
    values = {name: numpyro.sample(name, prior.distribution()) for name, prior in mixture.shifts}
    shares: Any = numpyro.sample(
        SHARES, dist.Dirichlet(jnp.full(mixture.classes, float(mixture.concentration)))
    )
    for k, name in enumerate(mixture.shares, 1):
        numpyro.deterministic(name, shares[k])
    return Split(mixture.probabilities, jnp.log(shares), mixture.moves(effects, values))


def shares_site(shares: list[Any]) -> dict[str, Any]:
    """The sampler's own site of the shares of all classes but the first, (draw,) each."""
    return {SHARES: jnp.stack([1.0 - sum(shares), *shares], axis=-1)}


def tell_classes(split: Split, eta: Any, root: Any) -> None:
    """Sites of the probability of each class given the effects (patient, effect) about the first class."""
    import numpyro
    import numpyro.distributions as dist

    about = dist.MultivariateNormal(split.moves, scale_tril=root[None])
    each = jax.nn.softmax(split.log_share + about.log_prob(eta[:, None]), axis=1)
    for k, name in enumerate(split.names, 1):
        numpyro.deterministic(name, each[:, k])


def factors(blocks: Blocks, correlation: Any) -> dict[str, Any]:
    """The sampler's own sites of a correlation (..., effect, effect)."""
    return {
        site: jnp.linalg.cholesky(correlation[..., np.asarray(block)[:, None], np.asarray(block)])
        for site, block in zip(_FACTORS, blocks, strict=False)
    }


def correlated_root(blocks: Blocks, concentration: float, scale: Any) -> Any:
    """Root of the covariance of effects (effect, effect), of which those of a block are correlated."""
    import numpyro
    import numpyro.distributions as dist

    factor = jnp.eye(scale.shape[0])
    for site, block in zip(_FACTORS, blocks, strict=False):
        part: Any = numpyro.sample(site, dist.LKJCholesky(len(block), concentration=concentration))
        factor = factor.at[np.ix_(block, block)].set(part)
    numpyro.deterministic("correlation", factor @ factor.T)
    return scale[:, None] * factor


def correlated(mean: Any, root: Any, centred: bool, split: Split | None = None) -> Any:
    """Effects about `mean` (patient, effect) of the covariance root root'."""
    import numpyro
    import numpyro.distributions as dist

    if centred:
        wide = lambda loc: dist.MultivariateNormal(loc, scale_tril=root[None])  # noqa: E731
        return numpyro.sample(EFFECTS, _mixed(wide, mean, split, lambda moves: moves))
    alone = lambda loc: dist.Normal(loc, 1.0).to_event(1)  # noqa: E731
    unit = lambda moves: jax.scipy.linalg.solve_triangular(root, moves.T, lower=True).T  # noqa: E731
    drawn: Any = numpyro.sample(STANDARD, _mixed(alone, jnp.zeros_like(mean), split, unit))
    return mean + drawn @ root.T


def independent(mean: Any, scale: Any, centring: Any, split: Split | None = None) -> Any:
    """Independent effects about `mean` (patient, effect), in partly centred coordinates.

    Source: Papaspiliopoulos, Roberts & Sköld 2007, doi 10.1214/088342307000000014.
    """
    import numpyro
    import numpyro.distributions as dist

    held = centring[None, :] * mean
    spread = scale**centring
    alone = lambda loc: dist.Normal(loc, jnp.broadcast_to(spread, loc.shape)).to_event(1)  # noqa: E731
    partly: Any = numpyro.sample(EFFECTS, _mixed(alone, held, split, lambda moves: moves * spread / scale))
    return mean + (scale / spread)[None, :] * (partly - held)


def _mixed(about: Any, place: Any, split: Split | None, scaled: Any) -> Any:
    """Effects of all patients as one event, each of any class.

    Args:
        about: places (..., effect) -> the distribution of a class that is there.
        place: (patient, effect) of the first class.
        split: the classes; None for one.
        scaled: moves of the classes -> the same in the sampler's coordinates.
    """
    import numpyro.distributions as dist

    if split is None:
        return about(place).to_event(1)
    parts = about(place[:, None, :] + scaled(split.moves))
    shares = dist.Categorical(logits=jnp.broadcast_to(split.log_share, parts.batch_shape))
    return dist.MixtureSameFamily(shares, parts).to_event(1)


def standard(shape: tuple[int, ...]) -> Any:
    """Standard normals as one event."""
    import numpyro.distributions as dist

    return dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape))
