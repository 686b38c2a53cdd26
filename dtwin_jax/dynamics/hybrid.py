"""A mechanism and a network for what it lacks: a Model like any other.

    x' = drift(t, x, u, p) + residual(t, x, u, p, net)

The network's weights are part of the parameters, as a field `net` without unit or prior: fits and
calibrations leave them as they are, `train(where=lambda p: p.net)` moves them.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import Mode, Schema
from dtwin_jax.core.prior import normal
from dtwin_jax.core.quantity import Quantity, assign, check_names, quantities, replace_fields, values
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.model import Model

Residual = Callable[[Any, Any, Any, Any, Any], Mapping[str, Any]]


def hybrid(
    base: Model,
    residual: Residual,
    net: Callable[[], Any],
    *,
    sees: tuple[str, ...] = (),
    latent: tuple[str, ...] = (),
    context: int = 0,
    name: str | None = None,
) -> Model:
    """`base` with a network in its drift.

    Its parameters are those of `base` by their names, `net` (the arrays of the network), and the latents.
    There is no closed form any more: `flow` is dropped. All else is that of `base`: diffusion, dosing,
    events, filter, outputs and their error.

    Args:
        base: the mechanism, an ODE or an SDE.
        residual: (t, x, u, p, net) -> {state: what is added to its rate, in the unit of the rate}. `net` is
            the network, to be called.
        net: () -> network, hashable: `neural.residual.Perceptron(...)`, or a function of a module that
            makes any network of Equinox. With a last layer of zeros the hybrid starts as `base`.
        sees: inputs that the residual sees. It sees the others as they are where nothing is given: doses
            move the state by an amount times the drift's slope in the input, so it may not bend in inputs
            that take doses. Doses through an input that it sees are refused.
        latent: names of further parameters, 0 with a prior normal(0, 1): what the network learns of each
            patient besides the mechanism's parameters. `Population`, `fit` and `train` take them as any
            other.
        context: length of `p.context`, 0 where nobody fills it in; `informed` does, from the history.
        name: `hybrid_<base>` by default.

    Raises:
        ValueError: a name that `base` does not have, or has already; a correction of no state.
    """
    check_names(base.name, "input", sees, quantities(base.inputs()))
    taken = {field for field in vars(base.params())}
    for new in ("net", "context", *latent):
        if new in taken:
            raise ValueError(f"hybrid: {base.name} has a parameter {new!r} already; name it otherwise")
    parts = Parts(base, residual, net, tuple(sees), tuple(latent), context)
    made = replace(
        base,
        name=name or f"hybrid_{base.name}",
        params=_Params(parts),
        drift=_Drift(parts),
        dosing=_Dosing(parts) if base.dosing is not None or sees else None,
        flow=None,
        stiffness=base.stiffness and f"The mechanism alone: {base.stiffness}",
        checked=base.checked and f"The mechanism alone: {base.checked}",
    )
    _check_corrections(made, parts)
    return made


@dataclass(frozen=True)
class Parts:
    """What a hybrid is made of, as `hybrid` took it."""

    base: Model
    residual: Residual
    net: Callable[[], Any]
    sees: tuple[str, ...]
    latent: tuple[str, ...]
    context: int = 0

    def corrections(self, t: Any, x: Any, u: Any, p: Any) -> Mapping[str, Any]:
        """What the network adds: state -> rate."""
        seen = replace_fields(self.base.inputs(), {name: getattr(u, name) for name in self.sees})
        return self.residual(t, x, seen, p, eqx.combine(p.net, _static(self.net)))


def parts_of(model: Model) -> Parts:
    """What `hybrid` made `model` of.

    Raises:
        ValueError: `hybrid` did not make it.
    """
    if not isinstance(model.drift, _Drift):
        raise ValueError(f"{model.name} is no hybrid: it has no residual")
    return model.drift.parts


def with_weights(model: Model, p: Any) -> Model:
    """The hybrid whose defaults are these trained parameters: what `fit`, `calibrate` and `forecast` rest on.

    Args:
        model: a hybrid.
        p: its parameters, of one patient or typical ones: numbers without leading axes.
    """
    parts_of(model)
    leaves, structure = jax.tree.flatten(p)
    arrays = [np.asarray(leaf) for leaf in leaves]
    kept = tuple((str(a.dtype), a.shape, a.tobytes()) for a in arrays)
    return replace(model, params=_Held(structure, kept))


def last_layer(net: Any) -> Any:
    """Weight and bias of the last of a network's `layers`."""
    return net.layers[-1].weight, net.layers[-1].bias


def with_prior(
    model: Model, p: Any, sd: float, *, where: Callable[[Any], Any] = last_layer, prefix: str = "w"
) -> Model:
    """The hybrid in which some weights are parameters with a prior: a Bayesian last layer.

    The weights are `sd * w_0`, `sd * w_1`, and so on, each `w` with a prior normal(0, 1); they start as in
    `p`, as all other parameters do. What estimates parameters estimates them: `fit`, `calibrate`, and
    `calibrate` of a `Population`, which shares them between patients unless told to vary them.

    Args:
        model: a hybrid.
        p: its trained parameters.
        sd: of the weights before any data.
        where: network -> leaf or tuple of leaves; hashable, a function of a module.
        prefix: of the parameters' names.
    """
    parts = parts_of(model)
    leaves = jax.tree.leaves(where(p.net))
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves]) / sd
    names = tuple(f"{prefix}_{i}" for i in range(len(flat)))
    residual = _Weighed(parts.residual, where, names, sd)
    options: dict[str, Any] = {"sees": parts.sees, "context": parts.context, "name": model.name}
    made = hybrid(parts.base, residual, parts.net, latent=(*parts.latent, *names), **options)
    own = vars(p) | {name: jnp.asarray(value) for name, value in zip(names, flat, strict=True)}
    return with_weights(made, type(made.params())(**own))


@dataclass(frozen=True)
class Informed:
    """A predictor: a hybrid whose network also knows what was measured of the patient before.

    Attributes:
        model: a hybrid with a `context`.
        encode: (net, record) -> (context,), from `record.past`, `record.known` and `record.inputs` of one
            patient: the last hidden state of a recurrent network or a transformer, for example. It is told
            nothing of what is to be predicted but the times.
    """

    model: Model
    encode: Callable[[Any, Record], Any]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    def params(self) -> Any:
        """The model's parameters."""
        return self.model.params()

    def schema(self) -> Schema:
        """The model's names, units and ranges."""
        return self.model.schema()

    def differentiated(self, mode: Mode) -> "Informed":
        """The predictor prepared for forward- or reverse-mode derivatives."""
        return replace(self, model=self.model.differentiated(mode))

    def tightened(self, factor: float, record: Record) -> "Informed | None":
        """The predictor with tolerances `factor` times as large; None where there are none."""
        finer = self.model.tightened(factor, record)
        return None if finer is None else replace(self, model=finer)

    def known(self, p: Any, record: Record) -> Any:
        """`p` with the context of this patient: what `simulate` of the model needs."""
        asked = {name: _blank(series) for name, series in record.observations.items()}
        net = eqx.combine(p.net, _static(parts_of(self.model).net))
        told = replace_fields(record, {"observations": asked})
        return replace_fields(p, {"context": self.encode(net, told)})

    def predict(self, p: Any, record: Record) -> dict[str, Any]:
        """Channel -> distribution of every measurement of `record`."""
        return self.model.predict(self.known(p, record), record)


def informed(model: Model, encode: Callable[[Any, Record], Any]) -> Informed:
    """The hybrid as a predictor that fills in its context from each patient's history.

    Raises:
        ValueError: the model is no hybrid, or has no context.
    """
    if not parts_of(model).context:
        raise ValueError(f"{model.name} has no context to be filled in: hybrid(..., context=4)")
    return Informed(model, encode)


def _blank(series: Series) -> Series:
    """Its times, with nothing measured."""
    none = jnp.zeros(jnp.shape(series.mask), bool)
    return replace_fields(series, {"value": jnp.zeros(jnp.shape(series.value)), "mask": none})


@dataclass(frozen=True)
class _Weighed:
    """A residual whose network has some weights from the parameters."""

    residual: Residual
    where: Callable[[Any], Any]
    names: tuple[str, ...]
    sd: float

    def __call__(self, t: Any, x: Any, u: Any, p: Any, net: Any) -> Mapping[str, Any]:
        vector = self.sd * jnp.stack([getattr(p, name) for name in self.names])
        leaves, structure = jax.tree.flatten(self.where(net))
        new, start = [], 0
        for leaf in leaves:
            new.append(vector[start : start + leaf.size].reshape(leaf.shape))
            start += leaf.size
        return self.residual(t, x, u, p, eqx.tree_at(self.where, net, jax.tree.unflatten(structure, new)))


@dataclass(frozen=True)
class _Held:
    """Numbers as text of bytes, so that a model with them is hashable and equal by content."""

    structure: Any
    leaves: tuple[tuple[str, tuple[int, ...], bytes], ...]

    def __call__(self) -> Any:
        arrays = [jnp.asarray(np.frombuffer(raw, kind).reshape(shape)) for kind, shape, raw in self.leaves]
        return jax.tree.unflatten(self.structure, arrays)


@functools.cache
def _static(net: Callable[[], Any]) -> Any:
    """The network without its arrays: its shape and its functions."""
    example = eqx.filter_eval_shape(net)
    return eqx.filter(example, lambda leaf: not isinstance(leaf, jax.ShapeDtypeStruct))


@functools.cache
def _params_class(kind: type, latent: tuple[str, ...]) -> type:
    """`kind` with the weights and the latents: equations of the mechanism take it for their own."""
    body: dict[str, Any] = {"net": eqx.field(default=None), "context": eqx.field(default=None)}
    for name in latent:
        body[name] = eqx.field(default=0.0, metadata={"quantity": _latent(name)})
    body["__annotations__"] = dict.fromkeys(body, Any)
    body["__module__"], body["__doc__"] = __name__, "Parameters of a mechanism, and of what it lacks."
    make: Any = type(eqx.Module)
    return make(f"Hybrid{kind.__name__}", (kind,), body)


def _latent(name: str) -> Quantity:
    return Quantity("1", normal(0.0, 1.0), "by definition", f"{name}, a random effect into the network")


@dataclass(frozen=True)
class _Params:
    parts: Parts

    def __call__(self) -> Any:
        own = self.parts.base.params()
        kind = _params_class(type(own), self.parts.latent)
        given = dict(vars(own)) | {name: jnp.asarray(0.0) for name in self.parts.latent}
        weights = eqx.filter(self.parts.net(), eqx.is_array)
        return kind(**given, net=weights, context=jnp.zeros(self.parts.context))


@dataclass(frozen=True)
class _Drift:
    parts: Parts

    def __call__(self, t: Any, x: Any, u: Any, p: Any) -> Any:
        rates = self.parts.base.drift(t, x, u, p)
        own = values(rates)
        added = self.parts.corrections(t, x, u, p)
        return assign(rates, {name: own[name] + rate for name, rate in added.items()})


@dataclass(frozen=True)
class _Dosing:
    parts: Parts

    def __call__(self, u: Any, p: Any) -> Any:
        for name in self.parts.sees:
            if isinstance(getattr(u, name), Doses):
                raise ValueError(
                    f"the residual of {self.parts.base.name} sees the input {name!r}, so no doses can "
                    "be given through it: a bolus needs a drift that is affine in it. Let it see a state"
                )
        return u if self.parts.base.dosing is None else self.parts.base.dosing(u, p)


def _check_corrections(model: Model, parts: Parts) -> None:
    """The residual corrects states that there are, each by one number for one."""

    def look() -> tuple[Any, Any]:
        p = model.params()
        x = model.init(p)
        return values(x), dict(parts.corrections(jnp.asarray(0.0), x, model.inputs(), p))

    states, added = jax.eval_shape(look)
    check_names(parts.base.name, "state", added, states)
    for name, rate in added.items():
        if rate.shape != states[name].shape:
            raise ValueError(
                f"hybrid: the residual of {name!r} has shape {rate.shape}; the state has {states[name].shape}"
            )
