"""What an estimation of a population returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from dtwin_jax.inference.gauss_newton import inverse_of_peak
from dtwin_jax.inference.marginal import Approximation


@dataclass(frozen=True)
class Finer:
    """What a smaller tolerance of the solver makes of an estimate.

    Attributes:
        factor: of the tolerances; 1 where the model has none, and nothing was compared.
        objective: its change at the estimate; NaN where the model could not be solved.
        moved: name as in `Estimate.names` -> how far a step of Newton's goes, in standard errors; NaN where
            the curvature is not that of a peak.
        errors: the same name -> relative change of the standard error; NaN likewise.
    """

    factor: float
    objective: float = 0.0
    moved: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        """One sentence."""
        if not self.moved:
            return "solver: the model is predicted without one, so there is no tolerance to compare"
        said = f"solver: at {self.factor:g} of its tolerances the objective changes by {self.objective:.2g}"
        if not np.all(np.isfinite([*self.moved.values(), *self.errors.values()])):
            return f"{said}; there is no peak at which to compare more"
        (far, move), (wide, change) = (
            max(each.items(), key=lambda item: abs(item[1])) for each in (self.moved, self.errors)
        )
        return f"{said}, {far} by {move:.2g} standard errors, the error of {wide} by {100 * change:.2g} %"


@dataclass(frozen=True)
class Classes:
    """Which subpopulations the patients of a mixture are of.

    Attributes:
        probability: (patient, class) given the data.
        likeliest: (patient,) the most probable class, from 1.
        eta: (class, patient, effect) the most probable random effects in each.
    """

    probability: np.ndarray
    likeliest: np.ndarray
    eta: np.ndarray

    def __str__(self) -> str:
        """How many patients are of each, and what follows from it."""
        each = range(1, self.probability.shape[1] + 1)
        counted = ", ".join(f"{np.sum(self.likeliest == k)} patients of class {k}" for k in each)
        return f"classes: {counted}; random effects are those in the most probable class of each patient"


@dataclass(frozen=True)
class Estimate:
    """Maximum likelihood estimates of a population.

    Attributes:
        ids: of the patients.
        names: of the estimated numbers, in the order of `vector` and the covariances.
        vector: the numbers, unbounded: typical values by the support of the prior (logs of positive ones),
            coefficients, logs of the ratios of shares of classes to that of the first, logs of the standard
            deviations between patients (a root of the covariance where effects are correlated).
        estimate: name -> value as it is reported.
        standard_error: name -> (of the number in `vector`), from the curvature.
        objective: -2 log likelihood without n log(2 pi): NONMEM's convention, for normal measurements.
        minus_two_log_likelihood: with all constants.
        by: how it was approximated.
        nodes: of quadrature, in each direction; 0 otherwise.
        draws: of importance sampling, of each patient; 0 otherwise.
        monte_carlo_error: standard error of `objective` where it is random; 0 otherwise.
        slopes: of the values in `estimate` by the numbers in `vector`.
        effects: of each random effect, the parameter that it moves; `CL_2` is that in the second occasion.
        eta: (patient, effect) the most probable random effects; in a mixture, those in the most probable
            class.
        individual: (patient,) shares of `minus_two_log_likelihood`.
        curvature: half the second derivative of -2 log likelihood, NONMEM's R.
        cross_product: sum of the products of each patient's slopes, NONMEM's S.
        shrinkage: name as in `effects` -> 1 - sd of the effects (over all, not one less) / their
            standard deviation.
        failed: patients whose peak was not found, in a mixture that in any class.
        converged: the slope of the likelihood is near nothing; after "saem", a step of Newton's would gain
            less than 0.1.
        message: why the search ended.
        ends: objectives where the searches from several starts ended, in their order; one if there was one.
        finer: what a smaller tolerance of the solver would change; None where it was not looked at.
        warnings: what a user must know before believing the estimate.
        classes: of a mixture, of which class the patients are; None without one.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    vector: np.ndarray
    estimate: dict[str, float]
    standard_error: dict[str, float]
    objective: float
    minus_two_log_likelihood: float
    by: Approximation
    nodes: int
    draws: int
    monte_carlo_error: float
    slopes: np.ndarray
    effects: tuple[str, ...]
    eta: np.ndarray
    individual: np.ndarray
    curvature: np.ndarray
    cross_product: np.ndarray
    shrinkage: dict[str, float]
    failed: tuple[str, ...]
    converged: bool
    message: str
    ends: tuple[float, ...] = ()
    finer: Finer | None = None
    warnings: tuple[str, ...] = ()
    classes: Classes | None = None

    def __str__(self) -> str:
        """A table of estimates, with what the objective is."""
        error, sandwich = self.errors(), self.errors(self.sandwich)
        lines = [self.told, f"{'':16}{'estimate':>12}{'error':>12}{'sandwich':>12}{'error, %':>10}"]
        for name, value in self.estimate.items():
            share = 100.0 * error[name] / abs(value) if value else float("nan")
            lines.append(f"{name:16}{value:12.5g}{error[name]:12.3g}{sandwich[name]:12.3g}{share:10.1f}")
        shrunk = ", ".join(f"{name} {100 * each:.0f} %" for name, each in self.shrinkage.items())
        lines += [
            f"shrinkage: {shrunk}",
            *(str(one) for one in (self.classes, self.finer) if one is not None),
        ]
        return "\n".join([*lines, *(f"! {each}" for each in self.warnings)])

    @property
    def told(self) -> str:
        """The objective, with how it was approximated and by which convention."""
        how = self.by
        if self.nodes:
            how += f", {self.nodes} nodes in each direction"
        if self.draws:
            how += f", {self.draws} draws, Monte Carlo error {self.monte_carlo_error:.2g}"
        return (
            f"objective {self.objective:.4f} by {how}: -2 log likelihood without n log(2 pi), NONMEM's; "
            f"{self.minus_two_log_likelihood:.4f} with all constants"
        )

    @property
    def peaks(self) -> np.ndarray:
        """The most probable effects of all patients in the first class, then in the next: (row, effect)."""
        return self.eta if self.classes is None else self.classes.eta.reshape(-1, self.eta.shape[1])

    @property
    def covariance(self) -> np.ndarray:
        """Of the numbers in `vector`: the inverse of the curvature, NaN where that is no peak's."""
        return inverse_of_peak(self.curvature)

    def errors(self, covariance: np.ndarray | None = None) -> dict[str, float]:
        """Standard errors of all in `estimate`, on the scales there.

        Args:
            covariance: of the numbers in `vector`: `covariance` by default, or `sandwich`, which NONMEM
                prints unless told otherwise.
        """
        given = self.covariance if covariance is None else covariance
        error = np.sqrt(np.einsum("ij,jk,ik->i", self.slopes, given, self.slopes))
        return dict(zip(self.estimate, error.tolist(), strict=True))

    @property
    def sandwich(self) -> np.ndarray:
        """The covariance that holds where the model does not: R^-1 S R^-1."""
        return self.covariance @ self.cross_product @ self.covariance

    @property
    def condition_number(self) -> float:
        """Largest over smallest eigenvalue of the estimates' correlations."""
        sd = np.sqrt(np.diag(self.covariance))
        if not np.all(np.isfinite(sd)):
            return float("nan")
        value = np.linalg.eigvalsh(self.covariance / np.outer(sd, sd))
        return float(value.max() / value.min())
