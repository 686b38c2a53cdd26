"""Filters that carry a mean and a covariance: Kalman, extended and unscented.

Between measurements the moments of dx = f dt + diag(g) dW follow

    m' = E f(x),   P' = E (x - m) f(x)' + E f(x) (x - m)' + diag(E g(x)^2)

with expectations to first order about the mean (extended), over sigma points (unscented), or exactly, by a
matrix exponential (Kalman, linear models). The extended filter takes E g^2 = g(m)^2 + diag(G P G'), G the
derivative of g, which is exact for noise proportional to the state.

Sources: Särkkä & Solin 2019, Applied Stochastic Differential Equations, ch. 9 and 10; Julier & Uhlmann 2004
(both recalled, not checked).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import Mode
from dtwin_jax.core.record import Record
from dtwin_jax.dynamics.dosing import corners, has_samples
from dtwin_jax.dynamics.filtering.body import Body
from dtwin_jax.dynamics.filtering.gaussian import Gaussian, linear_move
from dtwin_jax.dynamics.filtering.run import one_step_ahead
from dtwin_jax.dynamics.simulate import step_sizes
from dtwin_jax.dynamics.solver import Solver

_MOMENTS = Solver(rtol=1e-6, atol=1e-9)


@dataclass(frozen=True)
class ExtendedKalman:
    """The extended Kalman filter.

    Attributes:
        solver: of the moments' equations between measurements.
        spread: (p) -> State, sd of the state at the start; without it the start is known.
    """

    solver: Solver = _MOMENTS
    spread: Callable[[Any], Any] | None = None

    def predict(self, model: Any, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution of every measurement given all earlier ones."""
        return one_step_ahead(model, p, record)

    def differentiated(self, mode: Mode) -> "ExtendedKalman":
        """The filter prepared for forward- or reverse-mode derivatives."""
        return replace(self, solver=self.solver.differentiated(mode))

    def tightened(self, factor: float) -> "ExtendedKalman":
        """The filter with tolerances `factor` times as large."""
        return replace(self, solver=self.solver.tightened(factor))

    def start(self, body: Body) -> Gaussian:
        """The belief before any measurement."""
        return Gaussian(body.start(), jnp.diag(body.spread() ** 2))

    def move(self, body: Body, belief: Gaussian, start: Any, stop: Any, held: Any) -> tuple[Gaussian, Any]:
        """The belief at `stop`, and the matrix by which deviations from the mean have moved."""
        return _integrated(self, body, belief, (start, stop), held)

    def rates(self, body: Body, t: Any, belief: Gaussian, held: Any) -> tuple[Any, Any, Any]:
        """Rates of mean and covariance, and the derivative of the drift."""
        m, P = belief.mean, belief.covariance
        f, g = (functools.partial(_at, rate, t, held) for rate in (body.drift, body.diffusion))
        F, G = jax.jacfwd(f)(m), jax.jacfwd(g)(m)
        moved = F @ P
        noise = g(m) ** 2 + jnp.einsum("ij,jk,ik->i", G, P, G)
        return f(m), moved + moved.T + jnp.diag(noise), F

    def read(self, body: Body, t: Any, belief: Gaussian, held: Any) -> tuple[Any, Any, Any]:
        """Of every channel: mean and variance of a measurement, (channel,), covariance with the state."""
        m, P = belief.mean, belief.covariance
        loc, scale = body.reading(t, m, held)
        H = jax.jacfwd(lambda x: body.reading(t, x, held)[0])(m)
        return loc, jnp.einsum("ci,ij,cj->c", H, P, H) + scale**2, H @ P


@dataclass(frozen=True)
class Kalman(ExtendedKalman):
    """The Kalman filter: exact for a drift affine in the state and noise that does not depend on it.

    Inputs must be constant between events: with sampled inputs use `ExtendedKalman`, which is then exact up
    to the tolerances of its solver. So are readings that are not linear in the state taken to first order.
    """

    def move(self, body: Body, belief: Gaussian, start: Any, stop: Any, held: Any) -> tuple[Gaussian, Any]:
        """The belief at `stop`, and the matrix by which deviations from the mean have moved."""
        if has_samples(body.inputs):
            raise ValueError(
                f"{body.model.name}: an input is sampled, so it varies between events, and Kalman would take "
                "it as constant: use ExtendedKalman"
            )
        _check_linear(body.model)
        zero = jnp.zeros_like(belief.mean)
        f = functools.partial(_at, body.drift, start, held)
        noise = body.diffusion(start, zero, held) ** 2
        reverse = not isinstance(self.solver.adjoint, diffrax.ForwardMode)
        A, b, Q = linear_move(jax.jacfwd(f)(zero), f(zero), noise, stop - start, reverse=reverse)
        return Gaussian(A @ belief.mean + b, A @ belief.covariance @ A.T + Q), A


@dataclass(frozen=True)
class UnscentedKalman(ExtendedKalman):
    """The unscented Kalman filter: expectations over 2 n + 1 points, exact to second order.

    Attributes:
        kappa: weight of the middle point against the others; points lie sqrt(n + kappa) sds away.
    """

    kappa: float = 0.0

    def rates(self, body: Body, t: Any, belief: Gaussian, held: Any) -> tuple[Any, Any, Any]:
        """Rates of mean and covariance, and the drift's slope by regression over the points."""
        points, weight, root = self._points(belief)
        f = jax.vmap(lambda x: body.drift(t, x, held))(points)
        g = jax.vmap(lambda x: body.diffusion(t, x, held))(points)
        # (x - m) of the points over the covariance's root is +- sqrt(n + kappa), whatever the root.
        n, reach = belief.mean.shape[0], self._reach(belief)
        slope = (f[1 : n + 1] - f[n + 1 :]).T / (2.0 * reach)
        moved = slope @ root.T
        F = jax.scipy.linalg.solve_triangular(root.T, slope.T, lower=False).T
        return weight @ f, moved + moved.T + jnp.diag(weight @ g**2), F

    def read(self, body: Body, t: Any, belief: Gaussian, held: Any) -> tuple[Any, Any, Any]:
        """Of every channel: mean and variance of a measurement, (channel,), covariance with the state."""
        points, weight, _ = self._points(belief)
        loc, scale = jax.vmap(lambda x: body.reading(t, x, held))(points)
        mean = weight @ loc
        apart = loc - mean[None, :]
        cross = jnp.einsum("k,kc,ki->ci", weight, apart, points - belief.mean[None, :])
        return mean, weight @ apart**2 + weight @ scale**2, cross

    def _reach(self, belief: Gaussian) -> float:
        return float(np.sqrt(belief.mean.shape[0] + self.kappa))

    def _points(self, belief: Gaussian) -> tuple[Any, Any, Any]:
        n, reach = belief.mean.shape[0], self._reach(belief)
        root = _root(belief)
        points = belief.mean[None, :] + reach * jnp.concatenate([jnp.zeros((1, n)), root.T, -root.T])
        outer = np.full(2 * n, 0.5 / (n + self.kappa))
        return points, jnp.asarray(np.concatenate([[self.kappa / (n + self.kappa)], outer])), root


def _at(rate: Any, t: Any, held: Any, x: Any) -> Any:
    return rate(t, x, held)


def _root(belief: Gaussian) -> Any:
    """The covariance's triangular root, also where a state is known exactly."""
    variance = jnp.diagonal(belief.covariance)
    # Far below what a covariance is known to, far above what a root needs to have a derivative.
    least = 1e-13 * variance + 1e-18 * belief.mean**2 + 1e-30
    return jnp.linalg.cholesky(belief.covariance + jnp.diag(jax.lax.stop_gradient(least)))


def _integrated(
    method: Any, body: Body, belief: Gaussian, span: tuple[Any, Any], held: Any
) -> tuple[Gaussian, Any]:
    """The moments at the end of a stretch, by the method's solver; NaN where it gives up."""
    n = belief.mean.shape[0]
    start, stop = span

    def rate(t: Any, y: Any, _: Any) -> Any:
        dm, dP, F = method.rates(body, t, Gaussian(y[:, 0], y[:, 1 : n + 1]), held)
        return jnp.concatenate([dm[:, None], dP, F @ y[:, n + 1 :]], axis=1)

    y = jnp.concatenate([belief.mean[:, None], belief.covariance, jnp.eye(n)], axis=1)
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(rate),
        t0=start,
        t1=stop,
        y0=y,
        stepsize_controller=step_sizes(method.solver, corners(body.inputs)),
        **method.solver.arguments(),
    )
    ys: Any = found.ys
    end = jnp.where(found.result == diffrax.RESULTS.successful, ys[0], jnp.nan)
    # Where an event falls on another there is no step, but the limits still move the state.
    end = jnp.where(stop > start, end, y + (stop - start) * rate(start, y, None))
    P = end[:, 1 : n + 1]
    return Gaussian(end[:, 0], 0.5 * (P + P.T)), end[:, n + 1 :]


@functools.lru_cache(maxsize=256)
def _check_linear(model: Any) -> None:
    """Raise unless the drift is affine in the state at all times, and the diffusion is always the same."""
    with jax.ensure_compile_time_eval():
        p, u = model.params(), model.inputs()
        body = Body(model, p, u, ())
        held = {name: jnp.asarray(getattr(u, name), float) for name in vars(u)}
        t, rng = jnp.asarray(0.0), np.random.default_rng(0)
        size = np.abs(np.asarray(body.start())) + 1.0
        points = [jnp.asarray(size * rng.uniform(0.5, 2.0, size.shape)) for _ in range(3)]
        for what, rate in (
            ("drift", jax.jacfwd(lambda x: body.drift(t, x, held))),
            ("diffusion", lambda x: body.diffusion(t, x, held)),
        ):
            if not _alike([rate(x) for x in points]):
                wanted = "linear in the state" if what == "drift" else "the same in every state"
                raise ValueError(
                    f"{model.name}: Kalman needs a {what} that is {wanted}: use ExtendedKalman or "
                    "UnscentedKalman"
                )
        # Both would be held as they were at the start of each stretch.
        for what, rate in (("drift", body.drift), ("diffusion", body.diffusion)):
            if not _alike([rate(jnp.asarray(time), points[0], held) for time in (0.0, 1.7, 31.3)]):
                raise ValueError(
                    f"{model.name}: Kalman needs a {what} that changes by inputs only, not with time: use "
                    "ExtendedKalman or UnscentedKalman"
                )


def _alike(found: list[Any]) -> bool:
    first, *others = map(np.asarray, found)
    scale = 1e-6 * np.max(np.abs(first), initial=1e-300)
    return all(np.allclose(first, other, rtol=1e-6, atol=scale) for other in others)
