"""Prior distributions as data: hashable, comparable, written to files, built late.

Building a NumPyro distribution can start a JAX backend, so a prior stays a name and its arguments until
a calibration asks for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prior:
    """A named family and its arguments, for example `Prior("lognormal", (("median", 4.0), ("log_sd", 0.5)))`.

    Use the constructors of this module (`lognormal`, `normal`, ...) rather than this class.
    """

    family: str
    args: tuple[tuple[str, float], ...]

    def distribution(self) -> Any:
        """The NumPyro distribution."""
        return _BUILD[self.family](**dict(self.args))

    def as_dict(self) -> dict[str, dict[str, float]]:
        """The prior as plain data, `{"lognormal": {"median": 4.0, "log_sd": 0.5}}`."""
        return {self.family: dict(self.args)}

    def __str__(self) -> str:
        return f"{self.family}({', '.join(f'{name}={value:g}' for name, value in self.args)})"


def lognormal(median: float, cv: float | None = None, *, log_sd: float | None = None) -> Prior:
    """Log-normal by its median and one of: coefficient of variation, or sd of the logarithm.

    Args:
        median: > 0, in the parameter's unit.
        cv: coefficient of variation; the sd of the log is `sqrt(log(1 + cv^2))`.
        log_sd: sd of the natural logarithm.
    """
    if (cv is None) == (log_sd is None):
        raise ValueError("lognormal needs exactly one of cv and log_sd")
    if cv is None:
        return _prior("lognormal", positive=("median", "log_sd"), median=median, log_sd=log_sd)
    _check_number("lognormal", "cv", cv, positive=True)
    spread = math.sqrt(math.log1p(cv**2))
    return _prior("lognormal", positive=("median", "log_sd"), median=median, log_sd=spread)


def normal(mean: float, sd: float, *, low: float = -math.inf, high: float = math.inf) -> Prior:
    """Normal, cut to `[low, high]` where given."""
    _check_order("normal", low, high)
    # An absent limit stays out of the arguments: infinity has no place in JSON.
    limits = {name: limit for name, limit in (("low", low), ("high", high)) if abs(limit) != math.inf}
    return _prior("normal", positive=("sd",), mean=mean, sd=sd, **limits)


def halfnormal(scale: float) -> Prior:
    """Normal of mean 0 and sd `scale`, folded to the positive half."""
    return _prior("halfnormal", positive=("scale",), scale=scale)


def beta(a: float, b: float) -> Prior:
    """Beta on (0, 1) with mean `a / (a + b)`."""
    return _prior("beta", positive=("a", "b"), a=a, b=b)


def gamma(shape: float, rate: float) -> Prior:
    """Gamma with mean `shape / rate`."""
    return _prior("gamma", positive=("shape", "rate"), shape=shape, rate=rate)


def uniform(low: float, high: float) -> Prior:
    """Uniform on `[low, high]`."""
    _check_order("uniform", low, high)
    return _prior("uniform", positive=(), low=low, high=high)


def prior_from_dict(data: Mapping[str, Any]) -> Prior:
    """A prior from `{"lognormal": {"median": 4.0, "cv": 0.5}}` or `{"lognormal": [4.0, 0.5]}`.

    Raises:
        ValueError: not one known family, or arguments that do not fit it.
    """
    if len(data) != 1:
        raise ValueError(f"a prior is one family and its arguments, found {sorted(data)}")
    ((family, args),) = data.items()
    if family not in _MAKE:
        raise ValueError(f"unknown prior {family!r}; known are {', '.join(sorted(_MAKE))}")
    try:
        if isinstance(args, Mapping):
            return _MAKE[family](**args)
        return _MAKE[family](*(args if isinstance(args, list | tuple) else [args]))
    except TypeError as error:
        raise ValueError(f"prior {family!r}: {error}") from None


def _prior(family: str, *, positive: tuple[str, ...], **args: Any) -> Prior:
    values = []
    for name, value in args.items():
        _check_number(family, name, value, positive=name in positive)
        values.append((name, float(value)))
    return Prior(family, tuple(values))


def _check_number(family: str, name: str, value: Any, *, positive: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"prior {family!r}: {name} must be a finite number, found {value!r}")
    if positive and not value > 0:
        raise ValueError(f"prior {family!r}: {name} must be positive, found {value!r}")


def _check_order(family: str, low: float, high: float) -> None:
    if not low < high:
        raise ValueError(f"prior {family!r}: low must be below high, found {low!r} and {high!r}")


def _normal(mean: float, sd: float, low: float = -math.inf, high: float = math.inf) -> Any:
    import numpyro.distributions as dist

    if low == -math.inf and high == math.inf:
        return dist.Normal(mean, sd)
    return dist.TruncatedNormal(
        mean, sd, low=None if low == -math.inf else low, high=None if high == math.inf else high
    )


def _lognormal(median: float, log_sd: float) -> Any:
    import numpyro.distributions as dist

    return dist.LogNormal(math.log(median), log_sd)


def _halfnormal(scale: float) -> Any:
    import numpyro.distributions as dist

    return dist.HalfNormal(scale)


def _beta(a: float, b: float) -> Any:
    import numpyro.distributions as dist

    return dist.Beta(a, b)


def _gamma(shape: float, rate: float) -> Any:
    import numpyro.distributions as dist

    return dist.Gamma(shape, rate)


def _uniform(low: float, high: float) -> Any:
    import numpyro.distributions as dist

    return dist.Uniform(low, high)


_BUILD = {
    "lognormal": _lognormal,
    "normal": _normal,
    "halfnormal": _halfnormal,
    "beta": _beta,
    "gamma": _gamma,
    "uniform": _uniform,
}
_MAKE = {
    "lognormal": lognormal,
    "normal": normal,
    "halfnormal": halfnormal,
    "beta": beta,
    "gamma": gamma,
    "uniform": uniform,
}
