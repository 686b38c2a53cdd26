"""Long work kept in a file after every step, so that it can be killed at any moment and gone on with."""

import hashlib
import json
import os
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.files import replacing


def fingerprint(said: dict[str, Any], *trees: Any) -> str:
    """A mark of what a training is of: what is said of it, and the numbers it was given."""
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    for tree in trees:
        leaves, structure = jax.tree.flatten(tree)
        digest.update(str(len(leaves)).encode() + str(structure.num_leaves).encode())
        for leaf in leaves:
            if isinstance(leaf, np.ndarray | jax.Array):
                array = np.asarray(leaf)
                digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def keep(path: str | os.PathLike[str], mark: str, progress: Any, losses: np.ndarray) -> None:
    """Write where a training is; the file before it stays until this one is whole.

    Args:
        path: of the file.
        mark: `fingerprint` of the training.
        progress: a tree of arrays.
        losses: (done, 2) so far.
    """
    leaves = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(progress))}
    write(path, mark, {"losses": losses, **leaves})


def kept(path: str | os.PathLike[str], mark: str, progress: Any) -> tuple[Any, np.ndarray]:
    """What `keep` wrote: progress in the form of `progress`, and the losses so far.

    Raises:
        ValueError: the file is of another training.
    """
    file = read(path, mark, "training (model, patients, start, key or options differ)")
    leaves, structure = jax.tree.flatten(progress)
    arrays = [jax.numpy.asarray(file[f"leaf_{i}"]) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, arrays), file["losses"]


def write(path: str | os.PathLike[str], mark: str, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays of what has the `fingerprint` `mark`; the file before stays until this one is whole."""
    with replacing(path) as draft, open(draft, "wb") as file:
        np.savez(file, allow_pickle=False, **{"mark": np.asarray(mark), **arrays})


def read(path: str | os.PathLike[str], mark: str, what: str) -> dict[str, np.ndarray]:
    """What `write` wrote of the `what` with this mark.

    Raises:
        ValueError: the file is of another one.
    """
    with np.load(path, allow_pickle=False) as file:
        if "mark" not in file or str(file["mark"]) != mark:
            raise ValueError(
                f"checkpoint {os.fspath(path)!r} is of another {what}; name another file, or remove it"
            )
        return {name: file[name] for name in file.files if name != "mark"}
