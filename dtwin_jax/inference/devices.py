"""One density of many patients over several devices: each has the records of its own patients.

All that patients share, and the sampler itself, is computed everywhere alike. Devices tell each other one sum
for every gradient: of the log-likelihood and of its gradient, to which each gives the rows of its patients.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dtwin_jax.core.predictor import Predictor
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.inference.density import with_forward_gradient


class Spread(eqx.Module):
    """The records of a cohort, each on one device; takes the place of a stacked `Record` in a density.

    Attributes:
        padded: of the patients, then of copies of the last one that make the devices even and count for
            nothing; the leading axis is split over the devices.
        known: name -> (patient,), what is known of the patients, on every device.
        t0: (patient,), on every device.
        mesh: the devices, on one axis.
    """

    padded: Record
    known: dict[str, Any]
    t0: Any
    mesh: Mesh = eqx.field(static=True)


def spread(cohort: Cohort, mesh: Mesh) -> Spread:
    """The records of `cohort` on the devices of `mesh`; of several processes each places its own part.

    Raises:
        ValueError: the mesh has not exactly one axis.
    """
    count, devices = len(cohort), mesh.size
    filled = -(-count // devices) * devices
    record = cohort.take([min(place, count - 1) for place in range(filled)]).record
    mesh = patient_mesh(mesh)
    divided = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    placed = jax.tree.map(lambda leaf: _place(leaf, divided), record)
    known, t0 = everywhere((cohort.record.known, cohort.record.t0), mesh)
    return Spread(placed, known, t0, mesh)


def patient_mesh(mesh: Mesh) -> Mesh:
    """`mesh`, of which the one axis is that of the patients.

    Raises:
        ValueError: it has not exactly one axis.
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(
            f"mesh: expected one axis, that of the patients, found {dict(mesh.shape)}; "
            "jax.make_mesh((jax.device_count(),), ('patient',)) has all devices"
        )
    # What is outside of the sum over patients is left to the compiler, whatever kind of mesh was given.
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,))


def spans_processes(mesh: Mesh) -> bool:
    """Whether the devices are of more than one process."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree` on every device; all processes must give the same."""
    whole = NamedSharding(patient_mesh(mesh), PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, whole), tree)


def _place(leaf: Any, sharding: NamedSharding) -> Any:
    leaf = jnp.asarray(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = _place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def spread_log_likelihood(
    f: Predictor, names: tuple[str, ...], base: Any, theta: Any, records: Spread
) -> Any:
    """Log-likelihood of all patients, a scalar, differentiable in `theta` of shape (patient, names)."""
    return _forward(f, names, base, theta, records)[0]


def _forward(f: Predictor, names: tuple[str, ...], base: Any, theta: Any, records: Spread) -> tuple:
    """The sum over patients and its gradient in `theta`, which every device then has.

    Each device differentiates what it computes by itself, so nothing is ever differentiated through the sum
    over devices. It does so in forward mode however many parameters there are: reverse mode through a
    Diffrax solve cannot be traced here.
    """
    (axis,) = records.mesh.axis_names
    count, width = theta.shape
    size = records.padded.t0.shape[0] // records.mesh.size

    filled = records.padded.t0.shape[0]
    size = filled // records.mesh.size

    def own(base: Any, theta: Any, record: Record) -> Any:
        one = lambda row, patient: with_forward_gradient(f, names, base, row, patient)  # noqa: E731
        first = jax.lax.axis_index(axis) * size
        rows = jax.lax.dynamic_slice_in_dim(theta, first, size)
        value, slope = jax.vmap(jax.value_and_grad(one))(rows, record)
        total = jnp.sum(jnp.where(first + jnp.arange(size) < count, value, 0.0))
        gradient = jax.lax.dynamic_update_slice_in_dim(jnp.zeros_like(theta), slope, first, 0)
        # One array, so that devices wait for each other once; rows past the last patient stay here.
        return jax.lax.psum(jnp.concatenate([total[None], gradient[:count].reshape(-1)]), axis)

    everywhere, divided = PartitionSpec(), PartitionSpec(axis)
    summed = jax.shard_map(
        own,
        mesh=records.mesh,
        in_specs=(everywhere, everywhere, divided),
        out_specs=everywhere,
        # A solver's loops start from constants, which this check takes for values that are equal everywhere.
        check_vma=False,
    )(base, jnp.pad(theta, ((0, filled - count), (0, 0)), mode="edge"), records.padded)
    return summed[0], summed[1:].reshape(count, width)


def _backward(f: Predictor, names: tuple[str, ...], gradient: Any, cotangent: Any) -> tuple:
    return None, cotangent * gradient, None


spread_log_likelihood.defvjp(_forward, _backward)
