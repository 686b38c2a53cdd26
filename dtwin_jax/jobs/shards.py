"""The plan of a calibration by shards: which patients are in which shard, and what all shards share.

A patient's draws are the same whatever the shards: the random key is that of the seed and the patient's id,
every shard is padded to the longest patient of the cohort, and as many patients are sampled side by side in
all of them, so that the same program runs on the same numbers.
"""

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax.core.predictor import check_record
from dtwin_jax.core.quantity import replace_fields
from dtwin_jax.core.record import SEEN, Cohort, Record, Series, stack
from dtwin_jax.core.rules import no_rules, padded
from dtwin_jax.core.signal import SIGNALS, AbstractSignal, Doses
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import density_of
from dtwin_jax.inference.result import ResultError
from dtwin_jax.jobs.document import Document, Fault, JobError
from dtwin_jax.jobs.folder import SCHEMA, RunFolder, publish, read_json
from dtwin_jax.jobs.job import Job, job_of
from dtwin_jax.jobs.locks import alone
from dtwin_jax.jobs.reading import check_apart, check_patients, checked, read_part, tables_of

# What a job may ask of one result, and no shard has.
_OF_ONE_RESULT = {
    "population": "a population is calibrated together, not by shards",
    "forecast": "shards have no forecast; open their results, and forecast for those that are wanted",
    "score": "shards have no score",
    "report": "shards have no report; open their results, and report on those that are wanted",
}


@dataclass
class Room:
    """Length of the longest of every channel and input.

    Attributes:
        channels: name -> samples.
        inputs: name -> kind of the signal, and its length.
        rules: name -> restarts of doses, and how many of their infusions overlap, where there are rules.
        limited: channels with values that may be beyond a limit.
    """

    channels: dict[str, int] = field(default_factory=dict)
    inputs: dict[str, tuple[str, int]] = field(default_factory=dict)
    rules: dict[str, tuple[int, int]] = field(default_factory=dict)
    limited: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Make room for one more patient.

        Raises:
            ValueError: an input that was of another kind in other patients.
        """
        for name, series in record.observations.items():
            if series.limit is not None:
                raise ValueError(f"channel {name!r} has values between two limits: shards do not know them")
            self.channels[name] = max(1, self.channels.get(name, 1), len(series.time))
            if series.limited and name not in self.limited:
                self.limited.append(name)
        for name, signal in vars(record.inputs).items():
            if not isinstance(signal, AbstractSignal):
                continue
            kind, length = type(signal).__name__, max(1, len(signal.time))
            before, longest = self.inputs.get(name, (kind, 1))
            if before != kind:
                raise ValueError(f"input {name!r} is of several kinds: {sorted((before, kind))}")
            self.inputs[name] = (kind, max(longest, length))
            if isinstance(signal, Doses) and signal.rules is not None:
                again, (restarts, overlap) = signal.rules.restarts, self.rules.get(name, (0, 1))
                self.rules[name] = max(restarts, len(again.time)), max(overlap, again.overlap)

    def filled(self, like: Record) -> Record:
        """A patient without measurements or doses who is as long as the longest."""
        start = float(like.t0)
        signals = {
            name: SIGNALS[kind](np.full(length, start), np.zeros(length))
            for name, (kind, length) in self.inputs.items()
        }
        for name, (restarts, overlap) in self.rules.items():
            count = len(signals[name].time)
            rules = padded(no_rules(count), count, restarts, overlap)
            signals[name] = Doses(*signals[name].plain("a plan"), rules=rules)
        # Where values of another shard are beyond a limit, these may be: all run one program.
        censor = {name: np.full(self.channels[name], SEEN) for name in self.limited}
        channels = {
            name: Series(np.full(length, start), censor=censor.get(name))
            for name, length in self.channels.items()
        }
        return Record(replace_fields(like.inputs, signals), channels, dict(like.known), like.t0)


@dataclass(frozen=True)
class Shard:
    """Patients who are calibrated together.

    Attributes:
        tables: positions of their tables.
        patients: ids.
    """

    tables: tuple[int, ...]
    patients: tuple[str, ...]


@dataclass(frozen=True)
class ShardPlan:
    """The plan of a run.

    Attributes:
        mark: of job, data, model and versions; draws of another mark are other draws.
        file: the job file, absolute.
        data: what it said when the plan was made.
        tables: of patients, absolute.
        lanes: patients sampled side by side, 1 if by weights.
        room: of the longest patient.
        shards: of the cohort.
    """

    mark: str
    file: str
    data: dict[str, Any]
    tables: tuple[str, ...]
    lanes: int
    room: Room
    shards: tuple[Shard, ...]

    def job(self) -> Job:
        """The job as it was when the plan was made."""
        return job_of(Document(self.file, self.data, {}))

    @property
    def patients(self) -> int:
        """How many there are."""
        return sum(len(shard.patients) for shard in self.shards)


def check_job(job: Job) -> None:
    """Refuse what cannot be done by shards.

    Raises:
        JobError: names it.
    """
    asked = {name: why for name, why in _OF_ONE_RESULT.items() if getattr(job.spec, name) is not None}
    if asked:
        raise job.document.error(Fault((name,), why, "a job without it") for name, why in asked.items())


def plan_of_run(folder: RunFolder, job: Job) -> ShardPlan:
    """The plan of a folder: the one that is there, or a new one.

    Raises:
        TableError, JobError: what is wrong with data or job; or the folder has a plan of another job.
        ResultError: its plan is damaged.
    """
    tables = tables_of(job)
    mark = _mark(job, tables)
    # Of the tasks of an array that start at once one makes the plan.
    with alone(folder.path / "locks" / "plan"):
        if not folder.plan.exists():
            plan = _made(job, tables, mark)
            publish(folder.plan, {"schema": SCHEMA, **asdict(plan)})
        found = read_plan(folder)
    if found.mark != mark:
        raise JobError(
            f"{folder.path}: found a run of another job, data, model, number of patients in a shard or "
            "version; pass another --output, or --fresh to begin anew"
        )
    return found


def read_plan(folder: RunFolder) -> ShardPlan:
    """The plan that is in a folder.

    Raises:
        ResultError: there is none, or it is damaged.
    """
    try:
        said = read_json(folder.plan, "plan of a run by shards")
    except FileNotFoundError:
        raise ResultError(
            f"{folder.path}: found no plan.json, expected the folder of dtwin calibrate --engine"
        ) from None
    try:
        if said.pop("schema") != SCHEMA:
            raise ValueError(f"a schema that is not {SCHEMA}")
        room = said.pop("room")
        inputs = {name: (str(kind), int(length)) for name, (kind, length) in room["inputs"].items()}
        shards = tuple(
            Shard(tuple(one["tables"]), tuple(map(str, one["patients"]))) for one in said.pop("shards")
        )
        tables = tuple(map(str, said.pop("tables")))
        rules = {name: (int(count), int(overlap)) for name, (count, overlap) in room["rules"].items()}
        whole = Room(room["channels"], inputs, rules, list(map(str, room["limited"])))
        return ShardPlan(**said, tables=tables, room=whole, shards=shards)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ResultError(
            f"{folder.plan}: found no whole plan of a run by shards ({type(error).__name__}: {error}); "
            "pass --fresh to begin anew"
        ) from None


def cohort_of(plan: ShardPlan, records: Mapping[str, Record], patients: Sequence[str]) -> Cohort:
    """These patients as padded for the run; fewer than are sampled side by side are filled with the last."""
    first = records[patients[0]]
    together = stack({"": plan.room.filled(first), **{name: records[name] for name in patients}})
    rows = list(range(1, len(patients) + 1))
    return together.take(rows + rows[-1:] * (plan.lanes - len(rows)))


def _made(job: Job, tables: Sequence[Path], mark: str) -> ShardPlan:
    where: dict[str, Path] = {}
    place: dict[str, int] = {}
    room = Room()
    known: tuple[str, ...] | None = None
    chosen = set(job.spec.data.patients)
    for i, table in enumerate(tables):
        records = read_part(job, table)
        check_apart(where, records, table)
        used = {name: record for name, record in records.items() if not chosen or name in chosen}
        place |= dict.fromkeys(used, i)
        known = checked(job, ("data", "file"), partial(_checked, job, used, room, known))
    check_patients(job, where)
    checked(job, ("priors",), lambda: density_of(job.predictor, dict(job.spec.priors), known or ()))
    patients = job.spec.data.patients or list(place)
    size = job.spec.shards.patients
    parts = [patients[i : i + size] for i in range(0, len(patients), size)]
    shards = [Shard(tuple(sorted({place[name] for name in part})), tuple(part)) for part in parts]
    return ShardPlan(
        mark,
        os.path.abspath(job.document.file),
        job.document.data,
        tuple(os.path.abspath(table) for table in tables),
        # By weights nobody waits for anybody, so nobody is filled up.
        min(job.method.group, len(patients)) if isinstance(job.method, Nuts) else 1,
        room,
        tuple(shards),
    )


def _checked(
    job: Job, records: Mapping[str, Record], room: Room, known: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Names of what is known of the patients, who are measured for `room` and found to be in order."""
    for patient, record in records.items():
        check_record(job.predictor, record, patient)
        found = tuple(sorted(record.known))
        if known is not None and found != known:
            name = min(set(found) ^ set(known))
            raise ValueError(f"{name!r} is known for some patients, but not for all, see {patient!r}")
        known = found
        room.add(record)
    return known


def _mark(job: Job, tables: Sequence[Path]) -> str:
    said = {name: value for name, value in job.document.data.items() if name not in {"output", "shards"}}
    packages = [_version(package) for package in ("dtwin-jax", "jax")]
    parts = (type(job.predictor), *vars(job.predictor).values())
    sources = [_source(getattr(part, "__module__", None)) for part in parts]
    digest = hashlib.sha256()
    for part in (said, job.spec.shards.patients, packages, [table.name for table in tables], sources):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    for table in tables:
        with open(table, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _source(module: str | None) -> str:
    try:
        return inspect.getsource(sys.modules[module or ""])
    except (KeyError, OSError, TypeError):
        return ""
