"""The state of a stream in one file, which is whole at any moment."""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtwin_jax.core.files import replacing
from dtwin_jax.dynamics.filtering.gaussian import Gaussian
from dtwin_jax.jobs.document import JobError, dotted, shown
from dtwin_jax.jobs.ward import TAKEN, State, Ward, most

_ARRAYS = ("u", "log_weight", "time", "given", "renewed", "lost")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Event(_Table):
    patient: str
    rule: str
    alarm: Literal["begins", "ends"]
    probability: float | None
    time: float
    unsolved: float


class _Refused(_Table):
    file: str
    line: int
    field: str
    found: str
    expected: str


class _Said(_Table):
    """What of a state is no array."""

    room: dict[str, int]
    step: int = Field(ge=0)
    told: tuple[int, int]
    standing: tuple[tuple[str, str], ...]
    events: tuple[_Event, ...]
    refused: tuple[_Refused, ...]


_SAID = tuple(_Said.model_fields)


def keep(path: str | os.PathLike[str], ward: Ward, state: State) -> None:
    """Write where a stream is; the file before it stays until this one is whole."""
    said = {name: getattr(state, name) for name in _SAID} | {"mark": ward.mark}
    text = np.frombuffer(json.dumps(said, ensure_ascii=False).encode(), np.uint8)
    twins = state.twins
    arrays = {name: getattr(twins, name) for name in _ARRAYS}
    arrays |= {"mean": twins.belief.mean, "covariance": twins.belief.covariance}
    with replacing(path) as draft, open(draft, "wb") as file:
        np.savez(file, allow_pickle=False, said=text, taken=state.taken, **arrays)


def kept(path: str | os.PathLike[str], ward: Ward) -> State:
    """What `keep` wrote.

    Raises:
        JobError: it is of another result, model, seed or number of draws, or not whole.
    """
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        said = json.loads(arrays.pop("said").tobytes())
        _check_mark(path, said.pop("mark"), ward.mark)
        said = _checked(said)
        _check_shapes(arrays, len(ward.ids), len(ward.bare.priors))
        _check_names(ward, arrays["taken"], said.room)
        belief = Gaussian(arrays["mean"], arrays["covariance"])
        moving = {name: arrays[name] for name in _ARRAYS} | {"belief": belief}
        return State(
            replace(ward.bare, **moving),
            arrays["taken"].astype(TAKEN),
            said.room,
            said.step,
            said.told,
            said.standing,
            tuple(event.model_dump() for event in said.events),
            tuple(refused.model_dump() for refused in said.refused),
        )
    except (OSError, KeyError, EOFError, zipfile.BadZipFile, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, JobError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise JobError(
            f"{path}: found no whole state of a stream ({reason}); remove it to begin anew"
        ) from None


def _checked(said: dict[str, Any]) -> _Said:
    try:
        # In JSON a tuple is a list.
        return _Said.model_validate_json(json.dumps(said))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = dotted(tuple(first["loc"]))
        raise ValueError(f"{where}: found {shown(first['input'])}, {first['msg']}") from None


def _check_names(ward: Ward, taken: np.ndarray, room: dict[str, int]) -> None:
    """Facts are of channels and inputs of the ward, and there is room for the doses."""
    inputs = {ward.place(name, True): name for name in ward.subjects().inputs}
    dose, names = taken["dose"], taken["name"]
    wrong = np.where(dose, ~np.isin(names, list(inputs)), (names < 0) | (names >= len(ward.channels)))
    if np.any(wrong):
        raise ValueError(f"found a fact of a channel or input {names[wrong][0]} that is not followed")
    if strange := sorted(set(room) - set(inputs.values())):
        raise ValueError(f"found room for doses through {strange}, which are not followed")
    for place, name in inputs.items():
        if room.get(name, 0) < (needed := most(taken, place)):
            raise ValueError(f"found room for {room.get(name, 0)} doses through {name!r}, expected {needed}")


def _check_shapes(arrays: dict[str, np.ndarray], patients: int, names: int) -> None:
    draws, states = (*arrays["mean"].shape, 0, 0, 0)[1:3]
    one, each = (patients,), (patients, draws)
    wanted = {"u": (*each, names), "mean": (*each, states), "covariance": (*each, states, states)}
    wanted |= {"log_weight": each, "time": one, "given": one, "renewed": one, "lost": one}
    for name, shape in wanted.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind not in "fi":
            found = f"{name} of shape {arrays[name].shape} and type {arrays[name].dtype}"
            raise ValueError(f"found {found}, expected numbers of shape {shape}")
    taken = arrays["taken"]
    if taken.dtype != TAKEN or taken.ndim != 1:
        raise ValueError(f"found facts of shape {taken.shape} and type {taken.dtype}")
    if np.any((taken["patient"] < 0) | (taken["patient"] >= patients)):
        raise ValueError("found facts of a patient who is not followed")


def _check_mark(path: Any, found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, wanted in expected.items():
        if found.get(name) != wanted:
            told = f"{name} {found.get(name)!r}, expected {wanted!r}"
            told = "another result" if name == "result" else told
            where = f"{os.fspath(path)}: found a stream of {told}"
            raise JobError(f"{where}; pass another --output, or remove {Path(path).name} to begin anew")
