"""The folder of a calibration by shards: where its files are, and what the file of a finished shard says.

plan.json            which patients are in which shard
shards/00003.nc      the result of a shard
shards/00003.json    its manifest, written last: the shard is finished when it is there
work/00003/          what of a shard is under way: blocks of draws, results of parts of it
log.txt              a line for every shard
"""

import json
import os
import socket
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dtwin_jax.core.files import replacing
from dtwin_jax.inference.result import ResultError

SCHEMA = 1


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def plan(self) -> Path:
        """Which patients are in which shard."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """A line for every shard."""
        return self.path / "log.txt"

    @property
    def stop(self) -> Path:
        """When it is there, workers that cannot be told otherwise end after their block."""
        return self.path / "stop"

    def result(self, shard: int) -> Path:
        """The result of a shard."""
        return self.path / "shards" / f"{shard:05d}.nc"

    def manifest(self, shard: int) -> Path:
        """What is said of a finished shard."""
        return self.path / "shards" / f"{shard:05d}.json"

    def work(self, shard: int) -> Path:
        """What of a shard is under way."""
        return self.path / "work" / f"{shard:05d}"

    def lock(self, shard: int) -> Path:
        """Held by the process that has a shard worked on."""
        return self.path / "locks" / f"{shard:05d}"


@dataclass(frozen=True)
class Manifest:
    """What is said of a finished shard.

    Attributes:
        shard: its number.
        mark: of the run.
        patients: ids, in the order of the result.
        failed: id -> why there is no result of the patient.
        bytes: size of the result, 0 where all have failed and there is none.
        began: seconds since 1970.
        ended: likewise.
        attributes: of the result, that differ between shards.
        schema: version of this form.
    """

    shard: int
    mark: str
    patients: list[str]
    failed: dict[str, str]
    bytes: int
    began: float
    ended: float
    attributes: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


_KINDS: dict[str, Any] = {"mark": str, "patients": list, "failed": dict, "bytes": int, "attributes": dict}
_KINDS |= {"began": float, "ended": float}


def write_manifest(folder: RunFolder, manifest: Manifest) -> None:
    """Say that a shard is finished."""
    publish(folder.manifest(manifest.shard), asdict(manifest))


def read_manifest(folder: RunFolder, shard: int, mark: str) -> Manifest | None:
    """What is said of a shard, None while it is not finished.

    Raises:
        ResultError: the manifest is damaged or of another run, or the result beside it is not as it says.
    """
    path = folder.manifest(shard)
    again = f"remove {path.name} to have the shard done again"
    try:
        said = read_json(path, "manifest of a shard")
    except FileNotFoundError:
        return None
    except ResultError as error:
        raise ResultError(f"{error}; {again}") from None
    fault = _fault(said, shard)
    if fault:
        raise ResultError(f"{path}: {fault}; {again}")
    manifest = Manifest(**said)
    if manifest.mark != mark:
        raise ResultError(f"{path}: found a shard of another run; {again}")
    _check_size(folder.result(shard), manifest.bytes, again)
    return manifest


def _fault(said: Any, shard: int) -> str:
    """What is wrong with what a manifest says; empty if nothing is."""
    wanted = [one.name for one in fields(Manifest)]
    if not isinstance(said, dict) or set(said) != set(wanted):
        found = ", ".join(said) if isinstance(said, dict) else type(said).__name__
        return f"found {found}, expected {', '.join(wanted)}"
    for name, kind in _KINDS.items():
        if not isinstance(said[name], kind):
            return f"{name}: found {said[name]!r}, expected another type"
    for name, expected in (("schema", SCHEMA), ("shard", shard)):
        if said[name] != expected:
            return f"{name}: found {said[name]}, expected {expected}"
    return ""


def _check_size(result: Path, expected: int, again: str) -> None:
    if not expected:
        return
    try:
        found = f"{result.stat().st_size} bytes"
    except FileNotFoundError:
        found = "no such file"
    if found != f"{expected} bytes":
        again = again.replace(result.with_suffix(".json").name, str(result.with_suffix(".json")))
        raise ResultError(f"{result}: found {found}, expected {expected} bytes; {again}")


def read_json(path: Path, kind: str) -> Any:
    """What a file of ours says.

    Raises:
        FileNotFoundError: there is none.
        ResultError: it is not whole.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: found no whole {kind}, perhaps cut short ({error})") from None


def publish(path: Path, said: Any) -> None:
    """Write a file of JSON, whole or not at all, also where other machines write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    with replacing(own) as draft:
        draft.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    os.replace(own, path)


def note(folder: RunFolder, line: str) -> None:
    """Add a line to the log."""
    # One write at the end of the file: lines of several processes do not mix.
    with open(folder.log, "ab", buffering=0) as file:
        file.write(f"{line}\n".encode())
