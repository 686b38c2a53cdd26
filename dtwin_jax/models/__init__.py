"""Published models of the body, one a file."""

from dtwin_jax.models.linear_health import linear_health, linear_health_sde
from dtwin_jax.models.minimal_model import minimal_model
from dtwin_jax.models.one_compartment import one_compartment
from dtwin_jax.models.two_compartment import two_compartment

CATALOGUE = {
    model.name: model
    for model in (one_compartment, two_compartment, minimal_model, linear_health, linear_health_sde)
}

__all__ = [
    "CATALOGUE",
    "linear_health",
    "linear_health_sde",
    "minimal_model",
    "one_compartment",
    "two_compartment",
]
