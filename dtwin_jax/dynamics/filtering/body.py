"""A model as its filters see it: vectors in, vectors out, for one patient."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dtwin_jax.dynamics.dosing import cross_event, inputs_at
from dtwin_jax.dynamics.vector import packing


@dataclass(frozen=True, eq=False)
class Body:
    """The equations of `model` with parameters `p` under `inputs`, on state vectors (states,).

    `held` are the inputs that are constant over a stretch, by field.
    """

    model: Any
    p: Any
    inputs: Any
    names: tuple[str, ...]

    @property
    def packing(self) -> tuple[Any, Any]:
        """Between State structs and vectors."""
        return packing(jax.eval_shape(self.model.init, self.p))

    def start(self) -> Any:
        """The state at the start."""
        return self.packing[0](self.model.init(self.p))

    def spread(self) -> Any:
        """Its sd."""
        given = self.model.filter.spread
        return jnp.zeros_like(self.start()) if given is None else self.packing[0](given(self.p))

    def drift(self, t: Any, x: Any, held: Any) -> Any:
        """Rate of change."""
        return self._rate(self.model.drift, t, x, held)

    def diffusion(self, t: Any, x: Any, held: Any) -> Any:
        """What noise each state feels."""
        return self._rate(self.model.diffusion, t, x, held)

    def _rate(self, function: Any, t: Any, x: Any, held: Any) -> Any:
        pack, unpack = self.packing
        return pack(function(t, unpack(x), inputs_at(self.inputs, held, t), self.p))

    def jump(self, t: Any, x: Any, held: Any, amount: Any) -> Any:
        """The state just after boluses of `amount`."""
        pack, unpack = self.packing
        return pack(cross_event(self.model, t, unpack(x), inputs_at(self.inputs, held, t), amount, self.p))

    def measured(self, t: Any, x: Any, held: Any) -> dict[str, Any]:
        """Channel -> distribution of a measurement."""
        u = inputs_at(self.inputs, held, t)
        predicted = self.model.noise(self.model.observe(t, self.packing[1](x), u, self.p), self.p)
        return {name: predicted[name] for name in self.names}

    def reading(self, t: Any, x: Any, held: Any) -> tuple[Any, Any]:
        """Location and scale of every channel, (channel,): of the log where a channel is log-normal."""
        found = self.measured(t, x, held).values()
        return jnp.stack([jnp.asarray(d.loc) for d in found]), jnp.stack(
            [jnp.asarray(d.scale) for d in found]
        )

    def logarithmic(self) -> Any:
        """Which channels are log-normal, (channel,)."""
        import numpyro.distributions as dist

        return jnp.asarray([family is dist.LogNormal for family in self.families()], bool)

    def families(self) -> tuple[type, ...]:
        """The family of every channel.

        Raises:
            ValueError: one that is neither normal nor log-normal.
        """
        import numpyro.distributions as dist

        x = jax.eval_shape(self.start)
        held = jax.tree.map(jnp.zeros_like, {n: getattr(self.model.inputs(), n) for n in vars(self.inputs)})
        found = {}

        def look(x: Any) -> Any:
            found.update({name: type(d) for name, d in self.measured(jnp.asarray(0.0), x, held).items()})
            return x

        jax.eval_shape(look, x)
        for name, family in found.items():
            if family not in (dist.Normal, dist.LogNormal):
                raise ValueError(
                    f"{self.model.name}: channel {name!r} is {family.__name__}; this filter takes Normal and "
                    "LogNormal errors, a particle filter that is not guided takes any"
                )
        return tuple(found[name] for name in self.names)
