"""A cohort divided over the devices of this process, which need tell each other nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_OWN, _ALL = PartitionSpec("patient"), PartitionSpec()


def mesh_for(leaves: list[Any], count: int, fewest: int) -> Mesh | None:
    """All devices of this process, on one axis; None where one device does it.

    One does it where there is one, where a device would have less than `fewest` patients, where arrays were
    placed by the caller, and where a default device was set.
    """
    devices = jax.local_devices()
    placed = any(isinstance(leaf, jax.Array) and leaf.committed for leaf in leaves)
    if (
        len(devices) == 1
        or count < fewest * len(devices)
        or placed
        or getattr(jax.config, "jax_default_device", None)
    ):
        return None
    return Mesh(np.array(devices), ("patient",), axis_types=(AxisType.Auto,))


def place(mesh: Mesh, leaves: list[Any], shared: tuple[bool, ...]) -> list[Any]:
    """Leaves on the devices that need them: those of patients cut, shared ones whole."""
    return [
        jax.device_put(leaf, NamedSharding(mesh, _ALL if alone else _OWN))
        for leaf, alone in zip(leaves, shared, strict=True)
    ]


def over_devices(
    solve: Callable[..., Any], mesh: Mesh, shared: tuple[bool, ...], leaves: list[Any], *others: Any
) -> Any:
    """`solve(leaves, keys, count, cycles)` of each device's rows, under `jit`.

    Args:
        solve: gives a tree whose leaves are (patient, ...).
        mesh: of `mesh_for`; divides the number of rows.
        shared: which leaves all patients have in common.
        leaves: of all.
        others: keys (patient,) or None, how many rows are patients, and what else there is for all.
    """
    keys, count, rest = others
    rows = next(leaf.shape[0] for leaf, alone in zip(leaves, shared, strict=True) if not alone) // mesh.size

    def part(leaves: list[Any], keys: Any, count: Any, rest: Any) -> Any:
        first = jax.lax.axis_index("patient") * rows
        return solve(leaves, keys, jnp.clip(count - first, 0, rows), rest)

    own = [_ALL if alone else _OWN for alone in shared]
    # Lanes are begun with constants, of which a check would say that they are the same everywhere.
    return jax.shard_map(part, mesh=mesh, in_specs=(own, _OWN, _ALL, _ALL), out_specs=_OWN, check_vma=False)(
        leaves, keys, count, rest
    )
