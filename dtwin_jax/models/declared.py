"""A parameter of another class declared again, with or without a prior: the number stands in one place."""

from typing import Any

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, quantities


def estimated(
    kind: type, name: str, source: str, *, cv: float | None = None, log_sd: float | None = None
) -> Any:
    """The parameter `name` of `kind`, which knows it, with a log-normal prior about its value.

    Args:
        kind: the class that declares it without a prior.
        name: of the parameter.
        source: of the prior, added to that of the value.
        cv: its spread, either as coefficient of variation,
        log_sd: or as sd of the logarithm.
    """
    value, usual = kind.__dataclass_fields__[name].default, quantities(kind)[name]
    said = f"{usual.source}; prior: {source}"
    return param(value, usual.unit, lognormal(value, cv, log_sd=log_sd), source=said, doc=usual.doc)


def known(kind: type, name: str, source: str) -> Any:
    """The parameter `name` of `kind`, which estimates it, without a prior.

    Args:
        kind: the class that declares it with a prior.
        name: of the parameter.
        source: of the value, and why it is known.
    """
    value, usual = kind.__dataclass_fields__[name].default, quantities(kind)[name]
    return param(value, usual.unit, source=source, doc=usual.doc)
