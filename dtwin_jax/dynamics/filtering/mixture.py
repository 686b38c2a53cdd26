"""What a guided particle filter predicts of a measurement."""

from typing import Any

import numpyro.distributions as dist


class Guided(dist.MixtureSameFamily):
    """A mixture over particles that know nothing of the measurement, with the density of those that do.

    Particles that were steered to a measurement tell its density far better than those that were not, and
    everything else far worse. So the log-density is `near`'s plus `shift`, and all else is the mixture's own.

    Attributes:
        near: the mixture over steered particles, by their weights, which sum to one.
        shift: log of what these weights summed to.
    """

    pytree_data_fields = ("near", "shift")

    def __init__(self, mixing: Any, components: Any, *, near: Any, shift: Any) -> None:
        self.near, self.shift = near, shift
        super().__init__(mixing, components)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Log-density; its exponential has no bias at what was measured, if the filter learned from it."""
        return self.near.log_prob(value) + self.shift
