"""The likelihood of a population with the random effects integrated out, by the field's approximations.

About the most probable effects of each patient the density is taken for a normal one (Laplace), with its
exact curvature or the one expected of it (FOCE with interaction), with errors as without effects (FOCE), or
about no effects at all (FO); or it is summed over nodes that are laid about the peak, on a grid (adaptive
quadrature) or at random (importance sampling).

Source: Wang 2007, doi 10.1007/s10928-007-9060-6; Pinheiro & Bates 1995, doi 10.1080/10618600.1995.10474663.
"""

import functools
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dtwin_jax.core.record import SEEN, Record
from dtwin_jax.inference.effects import Effects, log_normal_density
from dtwin_jax.inference.nodes import NETS, Nodes, grid
from dtwin_jax.inference.posteriors import information_of, measured

# A step of Newton's is taken where it promises less than this, in nats.
_NEAR = 1e-3
# Nodes times patients that are solved at once.
_POINTS = 512

Approximation = Literal["fo", "foce", "focei", "laplace", "quadrature", "importance", "saem"]


@dataclass(frozen=True)
class Marginal:
    """An approximation of the marginal likelihood, of all patients at once.

    Attributes:
        effects: the population's numbers.
        by: the approximation.
        nodes: of quadrature, in each direction.
    """

    effects: Effects
    by: Approximation
    nodes: int = 7

    def joint(self, base: Any, record: Record, psi: Any, eta: Any) -> tuple[Any, Any, Any, Any]:
        """What the peak of the effects is sought by: log density of measurements and effects (patient,), its
        slope (patient, effect), its expected curvature downwards, and whether all is explained (patient,)."""
        rows, value, slope = self._sloped(base, record, psi, eta)
        parts = [information_of(value[name], slope[name], rows[name]) for name in rows]
        root = self.effects.root(psi)
        inverse = jax.scipy.linalg.cho_solve((root, True), jnp.eye(len(root)))
        fit = sum(jnp.sum(value[name]["fit"], axis=1) for name in rows)
        slope = sum(part[0] for part in parts) - eta @ inverse
        curvature = sum(part[1] for part in parts) + inverse
        explained = functools.reduce(jnp.logical_and, [part[2] for part in parts])
        return fit + log_normal_density(root, eta), slope, curvature, explained

    def minus_two(self, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes | None = None) -> Any:
        """-2 log of the marginal likelihood of every patient (patient,); `eta` are the peaks of the effects.

        `scattered` are the nodes of importance sampling, the same at every `psi`. Differentiable by `psi`:
        how the peaks move with it is taken into account. In a mixture record, peaks and nodes are of the
        patients in the first class, then of the same in the next (row,).
        """
        rows = self._of_rows(base, record, psi, eta, scattered)
        if self.effects.classes == 1:
            return rows
        return -2.0 * jax.scipy.special.logsumexp(self._of_classes(psi, -0.5 * rows), axis=0)

    def probabilities(
        self, base: Any, record: Any, psi: Any, eta: Any, scattered: Nodes | None = None
    ) -> Any:
        """Of each patient's being of each class given the data, (patient, class); as of `minus_two`."""
        rows = self._of_rows(base, record, psi, eta, scattered)
        return jax.nn.softmax(self._of_classes(psi, -0.5 * rows), axis=0).T

    def _of_classes(self, psi: Any, log_likelihood: Any) -> Any:
        """Logs of likelihoods (row,) times the shares of their classes, (class, patient)."""
        shares = self.effects.log_shares(psi)
        return shares[:, None] + log_likelihood.reshape(len(shares), -1)

    def _of_rows(self, base: Any, record: Any, psi: Any, eta: Any, scattered: Nodes | None) -> Any:
        """-2 log of the marginal likelihood of every patient in every class, (row,)."""
        if self.by == "fo":
            return self._about_none(base, record, psi, jnp.zeros_like(eta))
        eta = self._moving(base, record, psi, eta)
        if self.by in ("quadrature", "importance", "saem"):
            nodes = grid(self.nodes, eta.shape[1]) if scattered is None else scattered
            return -2.0 * jax.scipy.special.logsumexp(self.terms(base, record, psi, eta, nodes), axis=0)
        value, _, expected, _ = self.joint(base, record, psi, eta)
        curvature = self._curvature(base, record, psi, eta) if self.by == "laplace" else expected
        _, log_size = jnp.linalg.slogdet(curvature)
        return -2.0 * value - eta.shape[1] * jnp.log(2.0 * jnp.pi) + log_size

    def error(self, base: Any, record: Record, psi: Any, eta: Any, scattered: Nodes) -> Any:
        """Standard error of the sum over patients of `minus_two`, from how far the nets of nodes differ."""
        terms = self.terms(base, record, psi, eta, scattered)
        sums = jax.scipy.special.logsumexp(terms.reshape(NETS, -1, terms.shape[1]), axis=1)
        if self.effects.classes > 1:
            each = jax.vmap(lambda sums: self._of_classes(psi, sums))(sums)
            sums = jax.scipy.special.logsumexp(each, axis=1)
        share = jax.nn.softmax(sums, axis=0) * NETS
        return 2.0 * jnp.sqrt(jnp.sum(jnp.var(share, axis=0, ddof=1)) / NETS)

    def _moving(self, base: Any, record: Record, psi: Any, eta: Any) -> Any:
        """The peaks near the constants `eta` as functions of `psi`, to first order: a step of Newton's."""
        fixed = jax.lax.stop_gradient
        slope = self.joint(base, record, psi, fixed(eta))[1]
        curvature = fixed(self._curvature(base, record, fixed(psi), fixed(eta)))
        step = jnp.linalg.solve(curvature, slope[..., None])[..., 0]
        # Where none was found the step could lead anywhere, and only its derivative is taken.
        near = jnp.sum(slope * step, axis=1, keepdims=True) < _NEAR
        return fixed(eta) + jnp.where(near, step, step - fixed(step))

    def _curvature(self, base: Any, record: Record, psi: Any, eta: Any) -> Any:
        """The exact curvature of `joint`, downwards: (patient, effect, effect)."""
        slope = lambda eta: self.joint(base, record, psi, eta)[1]  # noqa: E731
        along = lambda way: jax.jvp(slope, (eta,), (jnp.broadcast_to(way, eta.shape),))[1]  # noqa: E731
        found = -jnp.moveaxis(jax.vmap(along)(jnp.eye(eta.shape[1])), 0, 2)
        return (found + jnp.swapaxes(found, 1, 2)) / 2.0

    def _sloped(self, base: Any, record: Record, psi: Any, eta: Any) -> tuple[dict, dict, dict]:
        """Series by channel, what is measured there, and how it moves with each effect."""
        effects = self.effects

        def rows(eta: Any) -> dict:
            found = measured(effects.target, base, record, effects.individual(psi, record, eta))
            return self._without_interaction(base, record, psi, found) if self.by == "foce" else found

        along = lambda way: jax.jvp(rows, (eta,), (jnp.broadcast_to(way, eta.shape),))  # noqa: E731
        value, slope = jax.vmap(along, out_axes=(None, 0))(jnp.eye(eta.shape[1]))
        return dict(record.observations), value, slope

    def _without_interaction(self, base: Any, record: Record, psi: Any, found: dict) -> dict:
        """The same measurements with errors as large as they are without random effects."""
        still = measured(self.effects.target, base, record, self.effects.centres(psi, record))
        told = {}
        for name, series in record.observations.items():
            log_sd = still[name]["log_sd"]
            seen = series.mask & (series.censor == SEEN)
            z = (found[name]["value"] - found[name]["mean"]) / jnp.exp(log_sd)
            fit = -0.5 * z**2 - log_sd - 0.5 * jnp.log(2.0 * jnp.pi) + found[name]["stretch"]
            told[name] = found[name] | {"fit": jnp.where(seen, fit, 0.0), "log_sd": log_sd}
        return told

    def _about_none(self, base: Any, record: Record, psi: Any, none: Any) -> Any:
        """First order: the measurements of a patient as one normal vector."""
        rows, value, slope = self._sloped(base, record, psi, none)
        root = self.effects.root(psi)
        inverse = jax.scipy.linalg.cho_solve((root, True), jnp.eye(len(root)))
        total = size = jnp.zeros(len(none))
        pull, curvature = jnp.zeros_like(none), inverse
        for name, series in rows.items():
            seen = series.mask & (series.censor == SEEN)
            log_sd = jnp.where(seen, value[name]["log_sd"], 0.0)
            z = jnp.where(seen, (value[name]["value"] - value[name]["mean"]) / jnp.exp(log_sd), 0.0)
            near = jnp.where(seen, slope[name]["mean"] / jnp.exp(log_sd), 0.0)
            total += jnp.sum(z**2, axis=1)
            constant = jnp.log(2.0 * jnp.pi) - 2.0 * value[name]["stretch"]
            size += jnp.sum(2.0 * log_sd + jnp.where(seen, constant, 0.0), axis=1)
            pull += jnp.einsum("ipn,pn->pi", near, z)
            curvature = curvature + jnp.einsum("ipn,jpn->pij", near, near)
        explained = jnp.einsum("pi,pi->p", pull, jnp.linalg.solve(curvature, pull[..., None])[..., 0])
        _, log_size = jnp.linalg.slogdet(curvature)
        return total - explained + size + log_size + 2.0 * jnp.sum(jnp.log(jnp.diagonal(root)))

    def terms(self, base: Any, record: Record, psi: Any, eta: Any, nodes: Nodes) -> Any:
        """The logs of what is summed about the peaks to each patient's likelihood: (node, patient)."""
        half = jnp.linalg.cholesky(self._curvature(base, record, psi, eta))
        effects, centres, root = self.effects, self.effects.centres(psi, record), self.effects.root(psi)
        log_size = jnp.sum(jnp.log(jnp.diagonal(half, axis1=1, axis2=2)), axis=1)

        def node(each: Nodes) -> Any:
            at = jnp.broadcast_to(each.at, eta.shape)
            # L^-T z for a curvature L L'.
            move = lambda half, z: jax.scipy.linalg.solve_triangular(half.T, z, lower=False)  # noqa: E731
            here = eta + jax.vmap(move)(half, at)
            found = measured(effects.target, base, record, centres + effects.spread(psi, here))
            fit = sum(jnp.sum(each["fit"], axis=1) for each in found.values())
            return fit + log_normal_density(root, here) + each.log_weight - log_size

        count, most = nodes.at.shape[0], max(_POINTS // eta.shape[0], 1)
        # All blocks of one size: another would be compiled for the rest.
        side = max(size for size in range(1, min(most, count) + 1) if count % size == 0)
        return jax.lax.map(node, nodes, batch_size=side)
