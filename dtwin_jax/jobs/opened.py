"""Results of shards as one tree, concatenated by patient and read from disk when they are looked at."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax.inference.result import ResultError
from dtwin_jax.jobs.folder import Manifest, RunFolder, read_manifest

PATIENT = "patient"
# Attributes of a result that are of its patients, or of its run: added up where results are joined.
_UNITED, _LISTED, _SUMMED = ("failed",), ("warnings", "notes"), ("wall_seconds", "compile_seconds")
OF_EACH = (*_UNITED, *_LISTED, *_SUMMED)


@dataclass(frozen=True)
class Part:
    """A file of results.

    Attributes:
        path: of the file.
        patients: ids, in its order.
        attributes: those of `OF_EACH`.
    """

    path: Path
    patients: tuple[str, ...]
    attributes: Mapping[str, Any]


def open_results(folder: str | os.PathLike[str], *, unfinished: bool = False) -> Any:
    """The results of a calibration by shards as one `xarray.DataTree`, as `calibrate` returns it.

    Nothing but names is read until values are asked for: `tree.sel(patient=["P7"])` then reads the file of
    one shard. `tree.attrs["lost"]` is JSON, patient -> why there is no result.

    Args:
        folder: of `dtwin calibrate --engine`.
        unfinished: take the shards that are finished, though others are not.

    Raises:
        ResultError: not such a folder, a damaged manifest, or shards that are not finished.
    """
    from dtwin_jax.jobs.shards import read_plan

    run = RunFolder(Path(folder))
    plan = read_plan(run)
    found = [read_manifest(run, number, plan.mark) for number in range(len(plan.shards))]
    manifests = [manifest for manifest in found if manifest is not None]
    if len(manifests) < len(found) and not unfinished:
        raise ResultError(
            f"{run.path}: found {len(manifests)} of {len(found)} shards finished, expected all; "
            "pass unfinished=True for those, or go on with dtwin calibrate"
        )
    parts = [part_of(run, manifest) for manifest in manifests if manifest.bytes]
    if not parts:
        raise ResultError(f"{run.path}: found no result of a shard, expected one at least")
    tree = joined(parts)
    lost = {name: why for manifest in manifests for name, why in manifest.failed.items()}
    tree.attrs["lost"] = json.dumps(lost, ensure_ascii=False)
    return tree


def part_of(run: RunFolder, manifest: Manifest) -> Part:
    """The result that a manifest speaks of."""
    return Part(run.result(manifest.shard), tuple(manifest.patients), manifest.attributes)


def joined(parts: Sequence[Part]) -> Any:
    """Results as one, concatenated by patient; values are read when they are asked for.

    Raises:
        ResultError: a file that is not a whole result.
    """
    import xarray as xr

    first = parts[0].path
    try:
        with xr.open_datatree(first, engine="h5netcdf") as like:
            groups = {node.path: _group(parts, node) for node in like.subtree}
            attributes = dict(like.attrs)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResultError(f"{first}: found no whole NetCDF file ({reason}), expected a result") from None
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = attributes | united([part.attributes for part in parts])
    return tree


def united(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The attributes of `OF_EACH` of several results together."""
    together: dict[str, Any] = {}
    for name in _UNITED:
        dictionaries = [json.loads(one[name]) for one in each]
        together[name] = json.dumps(
            {k: v for one in dictionaries for k, v in one.items()}, ensure_ascii=False
        )
    for name in _LISTED:
        lists = [json.loads(one[name]) for one in each]
        together[name] = json.dumps(
            list(dict.fromkeys(said for one in lists for said in one)), ensure_ascii=False
        )
    return together | {name: float(sum(one[name] for one in each)) for name in _SUMMED}


def _group(parts: Sequence[Part], node: Any) -> Any:
    """A group of all parts; what is not of patients is that of the first part."""
    import xarray as xr

    own = node.to_dataset(inherit=False)
    ids = [patient for part in parts for patient in part.patients]
    coordinates: dict[Any, Any] = {
        name: ids if name == PATIENT else value.load().variable for name, value in own.coords.items()
    }
    variables = {}
    for name, value in own.data_vars.items():
        if PATIENT not in value.dims:
            variables[name] = value.load().variable
            continue
        axis = value.dims.index(PATIENT)
        variables[name] = xr.Variable(
            value.dims, _lazily(parts, node.path, str(name), value, axis), value.attrs
        )
    return xr.Dataset(variables, coordinates, own.attrs)


def _lazily(parts: Sequence[Part], group: str, name: str, like: Any, axis: int) -> Any:
    """One variable of many files side by side, read when it is looked at, as xarray's backends have it."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    patients = sum(len(part.patients) for part in parts)

    class Joined(BackendArray):
        dtype = like.dtype
        shape = (*like.shape[:axis], patients, *like.shape[axis + 1 :])

        def __getitem__(self, key: Any) -> Any:
            kind = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, kind, self.read)

        def read(self, key: tuple) -> np.ndarray:
            return _read(parts, (group, name), self, axis, key)

    return indexing.LazilyIndexedArray(Joined())


def _read(parts: Sequence[Part], where: tuple[str, str], whole: Any, axis: int, key: tuple) -> np.ndarray:
    """The values of `whole` at `key`: a number, slice or positions for each axis."""
    single = [isinstance(k, int | np.integer) for k in key]
    keys: list[Any] = [np.asarray([k]) if one else k for k, one in zip(key, single, strict=True)]
    rows = np.arange(whole.shape[axis])[keys[axis]]
    ends = np.cumsum([len(part.patients) for part in parts])
    owner = np.searchsorted(ends, rows, side="right")
    lengths = [len(np.arange(n)[k]) for n, k in zip(whole.shape, keys, strict=True)]
    found = np.empty(lengths, whole.dtype)
    for number in np.unique(owner):
        mine = np.flatnonzero(owner == number)
        keys[axis] = rows[mine] - (ends[number] - len(parts[number].patients))
        found[(slice(None),) * axis + (mine,)] = _values(parts[number].path, where, tuple(keys))
    return found[tuple(0 if one else slice(None) for one in single)]


def _values(path: Path, where: tuple[str, str], key: tuple) -> np.ndarray:
    import xarray as xr

    group, name = where
    with xr.open_dataset(path, group=group, engine="h5netcdf") as opened:
        return opened[name].variable[key].values
