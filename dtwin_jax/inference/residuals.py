"""Residuals of measurements under a population: of the individual fit, of the marginal model, by simulation.

    IWRES = (y - f(eta)) / sd(eta)
    CWRES = V^-1/2 (y - f(eta) + G eta),    V = G Omega G' + diag(sd(eta)^2),    G = df/deta
    NPDE  = normal quantile of the place of L^-1 (y - m) among L^-1 (simulated y - m)

`eta` are the patient's most probable random effects; `m` and `L L'` are the mean and the covariance of the
simulated measurements of the patient. The root of V is the symmetric one, which knows no order of rows; L is
lower triangular, so that a measurement is told from those before it. If the model is right, NPDE are standard
normal; CWRES are where the model is linear in its effects.

What is not used (padding, values beyond a limit) is left out as if it had not been measured, and has no
residual: NaN.

Source: CWRES: Hooker, Staatz & Karlsson 2007, doi 10.1007/s11095-007-9361-x. NPDE: Brendel et al. 2006, doi
10.1007/s11095-006-9067-5; Comets, Brendel & Mentré 2008, doi 10.1016/j.cmpb.2007.12.002.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """The measurements of patients beside what is expected of them at their random effects.

    Attributes:
        value: (patient, n) measured, on the scale on which errors are normal.
        mean: (patient, n) expected there.
        sd: (patient, n) of the errors.
        slope: (patient, n, effect) of `mean` with the random effects.
        used: (patient, n) what has a residual; the rest may hold any number.
    """

    value: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    slope: np.ndarray
    used: np.ndarray

    @property
    def defined(self) -> np.ndarray:
        """(patient,) whether all that is used is a number."""
        parts = (self.value, self.mean, self.sd, self.slope.sum(axis=2))
        whole = np.all([np.isfinite(part) for part in parts], axis=0)
        return np.all(whole | ~self.used, axis=1)


def individual_residuals(moments: Moments) -> np.ndarray:
    """IWRES (patient, n)."""
    used = moments.used & moments.defined[:, None]
    sd = np.where(used, moments.sd, 1.0)
    return np.where(used, (moments.value - moments.mean) / sd, np.nan)


def conditional_residuals(moments: Moments, eta: np.ndarray, omega: np.ndarray) -> np.ndarray:
    """CWRES (patient, n) at the random effects (patient, effect), whose covariance is `omega`."""
    used = moments.used & moments.defined[:, None] & np.all(np.isfinite(eta), axis=1, keepdims=True)
    slope = np.where(used[..., None], moments.slope, 0.0)
    away = np.where(used, moments.value - moments.mean, 0.0) + np.einsum(
        "pni,pi->pn", slope, np.where(np.isfinite(eta), eta, 0.0)
    )
    # A row that is not used is one of its own, with variance 1.
    sd = np.where(used, moments.sd, 1.0)
    covariance = slope @ omega @ np.swapaxes(slope, 1, 2) + sd[:, :, None] ** 2 * np.eye(sd.shape[1])
    variance, axis = np.linalg.eigh(covariance)
    along = np.einsum("pnk,pn->pk", axis, away) / np.sqrt(variance)
    return np.where(used, np.einsum("pnk,pk->pn", axis, along), np.nan)


def prediction_errors(value: np.ndarray, drawn: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, ...]:
    """NPDE and, without decorrelation, NPD: each (patient, n).

    Args:
        value: (patient, n) measured.
        drawn: (draw, patient, n) simulated; more draws than a patient has rows.
        used: (patient, n) what has a residual. A patient with a draw that is no number has none.

    Raises:
        ValueError: too few draws for a covariance.
    """
    most = int(used.sum(axis=1).max(initial=0))
    if len(drawn) <= most + 1:
        raise ValueError(
            f"{len(drawn)} simulated data sets are too few for patients with {most} measurements"
        )
    npde, npd = (np.full(value.shape, np.nan) for _ in range(2))
    for i, rows in enumerate(used):
        y, simulated = value[i, rows], drawn[:, i, rows]
        if not len(y) or not np.all(np.isfinite(simulated)) or not np.all(np.isfinite(y)):
            continue
        npd[i, rows] = _quantile(y, simulated)
        centre, sd = simulated.mean(axis=0), simulated.std(axis=0, ddof=1)
        if not np.all(sd > 0):
            continue
        standard = (simulated - centre) / sd
        correlation = standard.T @ standard / (len(drawn) - 1)
        if np.linalg.eigvalsh(correlation).min() < 1e-10:
            continue  # a measurement without an error of its own
        root = np.linalg.cholesky(correlation)
        apart = np.linalg.solve(root, (y - centre) / sd), np.linalg.solve(root, standard.T).T
        npde[i, rows] = _quantile(*apart)
    return npde, npd


def _quantile(y: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Normal quantile of the place of `y` (n,) among draws (draw, n).

    Of K draws there are K + 1 places between them; the middle of each is taken, so none is infinite.
    """
    from scipy.special import ndtri

    below = (drawn < y).sum(axis=0) + 0.5 * (drawn == y).sum(axis=0)
    return ndtri((below + 0.5) / (len(drawn) + 1.0))
