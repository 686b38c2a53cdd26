"""Residual error: how a measurement scatters about what the model expects.

Each function is a Model's `noise`, for models whose parameters have the fields it names: `sd` and `cv` for
all outputs, or `sd_glucose` and `cv_glucose` for the output `glucose`. With `combined`, additive error is
`cv` known to be 0, proportional error is `sd` known to be 0.

Others change such a function: `student_t(combined)` has heavier tails, `positive(combined)` and
`quantified(combined)` know that only what is above a limit is measured. Errors that remember each other are
a predictor of their own, `dynamics.autocorrelated`.

Sources: M2 and M4: Beal 2001, doi 10.1023/A:1012299115260; Student's t: Dosne, Bergstrand & Karlsson 2015,
doi 10.1007/s10928-015-9460-y.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from dtwin_jax.core.quantity import quantities
from dtwin_jax.core.record import BELOW, Record
from dtwin_jax.dynamics.truncated import Truncated

Noise = Callable[[Any, Any], dict[str, Any]]


def _outputs(y: Any) -> dict[str, Any]:
    return {name: getattr(y, name) for name in quantities(y)}


def _own(p: Any, kind: str, output: str) -> Any:
    """`p.sd_output` where there is one, else `p.sd`."""
    own = f"{kind}_{output}"
    return getattr(p, own) if hasattr(p, own) else getattr(p, kind)


def additive(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.sd`, in the output's unit."""
    return {name: dist.Normal(value, _own(p, "sd", name)) for name, value in _outputs(y).items()}


def proportional(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.cv` times the expected value."""
    return {
        name: dist.Normal(value, _own(p, "cv", name) * jnp.abs(value)) for name, value in _outputs(y).items()
    }


def combined(y: Any, p: Any) -> dict[str, Any]:
    """Normal with variance `p.sd^2 + (p.cv * value)^2`."""
    return {name: dist.Normal(value, _combined_sd(name, value, p)) for name, value in _outputs(y).items()}


def power(y: Any, p: Any) -> dict[str, Any]:
    """Normal with sd `p.sd * |value / p.reference|^p.power`: `p.sd` where `p.reference` is expected.

    `reference` is in the output's unit, and known: with 1 the sd is a |value|^b.
    """
    return {name: dist.Normal(value, _power_sd(name, value, p)) for name, value in _outputs(y).items()}


def log_normal(y: Any, p: Any) -> dict[str, Any]:
    """Log-normal about the expected value as median, with sd of the log `p.cv`.

    An expected value that is not positive gives NaN: no such measurement is possible.
    """
    return {
        name: dist.LogNormal(jnp.log(jnp.where(value > 0, value, jnp.nan)), _own(p, "cv", name))
        for name, value in _outputs(y).items()
    }


def student_t(noise: Noise) -> Noise:
    """`noise` with Student's t of `p.df` degrees of freedom in place of the normal distribution.

    What was the sd is then the scale: the sd is larger by `sqrt(df / (df - 2))`, infinite for `df` up to 2.

    Args:
        noise: one whose errors are normal.
    """
    return _StudentT(noise)


def positive(noise: Noise, *outputs: str) -> Noise:
    """`noise` of assays that never say 0 or less, given which every measurement is told: method M4.

    Values below a limit are then between it and 0. Errors are not normal any more: estimate by `laplace`.

    Args:
        noise: one whose errors are normal, log-normal or Student's t.
        outputs: those of which it is true, all where none is named.
    """
    return _Positive(noise, outputs)


def quantified(noise: Noise) -> Noise:
    """`noise` of data from which all below `p.lloq`, in the output's unit, was left out: method M2.

    What is there is told given that it is above; so are predictions, unless the model has its first `noise`
    back. An output has a limit where the parameters have `lloq_<output>` or `lloq`; of a patient it may be
    known. Measurements stated to be below are refused: mask them (MDV 1 of a table). Errors are not normal
    any more: estimate by `laplace`.

    Args:
        noise: one whose errors are normal, log-normal or Student's t.
    """
    return _Quantified(noise)


@dataclass(frozen=True)
class _StudentT:
    noise: Noise

    def __call__(self, y: Any, p: Any) -> dict[str, Any]:
        found = self.noise(y, p)
        for name, d in found.items():
            if not isinstance(d, dist.Normal):
                raise ValueError(f"student_t: the error of {name!r} is {type(d).__name__}, expected a normal")
        return {name: dist.StudentT(_own(p, "df", name), d.loc, d.scale) for name, d in found.items()}


@dataclass(frozen=True)
class _Positive:
    noise: Noise
    outputs: tuple[str, ...]

    def __call__(self, y: Any, p: Any) -> dict[str, Any]:
        found = self.noise(y, p)
        chosen = self.outputs or tuple(found)
        return found | {name: Truncated(found[name], 0.0) for name in chosen}


@dataclass(frozen=True)
class _Quantified:
    noise: Noise

    def __call__(self, y: Any, p: Any) -> dict[str, Any]:
        found = self.noise(y, p)
        limited = [name for name in found if hasattr(p, "lloq") or hasattr(p, f"lloq_{name}")]
        if not limited:
            raise ValueError(f"quantified: {type(p).__name__} has neither lloq nor lloq_{next(iter(found))}")
        return found | {name: Truncated(found[name], _own(p, "lloq", name)) for name in limited}

    def check_record(self, record: Record, where: str) -> None:
        """Refuse what is stated to be below a limit."""
        for name, series in record.observations.items():
            if np.any(np.asarray(series.mask) & (np.asarray(series.censor) == BELOW)):
                raise ValueError(
                    f"{where}channel {name!r}: a measurement is below its limit, where the error is of those "
                    "above (M2): mask it, or take the error without quantified (M3)"
                )


def _combined_sd(name: str, value: Any, p: Any) -> Any:
    variance = _own(p, "sd", name) ** 2 + (_own(p, "cv", name) * value) ** 2
    # Safe at zero variance: the square root has no derivative there.
    positive = jnp.where(variance > 0, variance, 1.0)
    return jnp.where(variance > 0, jnp.sqrt(positive), 0.0)


def _power_sd(name: str, value: Any, p: Any) -> Any:
    exponent = _own(p, "power", name)
    share = jnp.abs(value / _own(p, "reference", name))
    # Safe at an expected 0: neither a root nor a logarithm has a derivative there.
    grown = jnp.where(share > 0, share, 1.0) ** exponent
    return _own(p, "sd", name) * jnp.where(share > 0, grown, 0.0 ** jax.lax.stop_gradient(exponent))
