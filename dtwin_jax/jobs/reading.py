"""The tables of a job, and of their patients what the job uses."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dtwin_jax.core.record import Record, Series
from dtwin_jax.io.names import suggestion
from dtwin_jax.io.rows import TableError
from dtwin_jax.io.table import read_table
from dtwin_jax.jobs.document import Fault
from dtwin_jax.jobs.job import Job


def tables_of(job: Job) -> tuple[Path, ...]:
    """The job's table, or the Parquet files of its folder in the order of their names.

    Raises:
        TableError: the folder has none.
    """
    path = job.path(job.spec.data.file)
    if not path.is_dir():
        return (path,)
    # Writers put their own notes in files whose name begins so.
    parts = [part for part in path.rglob("*.parquet") if not part.name.startswith(("_", "."))]
    if not parts:
        raise TableError(f"{path}: found a folder without a file *.parquet, expected partitions of a table")
    return tuple(sorted(parts))


def read_all(job: Job) -> dict[str, Record]:
    """The patients that the job uses: id -> record, in the order of the job, else of the tables.

    Raises:
        TableError: what is wrong with a table, or a patient who stands in two.
        JobError: a patient whom no table has, or who has no measurement that is used.
    """
    found: dict[str, Record] = {}
    where: dict[str, Path] = {}
    for table in tables_of(job):
        records = read_part(job, table)
        check_apart(where, records, table)
        found |= records
    check_patients(job, found)
    return {name: found[name] for name in job.spec.data.patients or found}


def check_apart(where: dict[str, Path], records: Iterable[str], table: Path) -> None:
    """Note in `where` that these patients stand in `table`, and refuse one who stands in another too."""
    for name in records:
        if name in where:
            raise TableError(
                f"{table}: patient {name!r}: found rows here and in {where[name]}, "
                "expected all rows of a patient in one file"
            )
        where[name] = table


def check_patients(job: Job, found: Iterable[str]) -> None:
    """Refuse a patient of the job whom no table has."""
    found = dict.fromkeys(found)
    faults = [
        Fault(("data", "patients", i), f"the table has no patient {name!r}{suggestion(name, found)}")
        for i, name in enumerate(job.spec.data.patients)
        if name not in found
    ]
    if faults:
        raise job.document.error(faults)


def read_part(job: Job, table: Path) -> dict[str, Record]:
    """All patients of one table, with the measurements that the job uses.

    Raises:
        TableError: what is wrong with the table.
        JobError: a patient that the job uses has no measurement that is used.
    """
    data = job.spec.data
    rename: dict[str, str | None] = {**data.rename, **dict.fromkeys(data.ignore)}
    records = checked(
        job,
        ("data",),
        lambda: read_table(
            table,
            job.predictor,
            rename=rename,
            units=data.units,
            covariates=data.covariates,
            inputs=data.inputs,
            form=data.form,
            t0=None if data.t0 is None else data.t0.to(job.predictor.schema().time_unit),
        ),
    )
    chosen = set(data.patients or records)
    used = {name: _windowed(job, record) for name, record in records.items()}
    faults = [
        Fault(("data",), f"patient {name!r} has no measurement that is used")
        for name, record in used.items()
        if name in chosen and not any(np.any(series.mask) for series in record.observations.values())
    ]
    if faults:
        raise job.document.error(faults)
    return used


def checked(job: Job, path: tuple, make: Any) -> Any:
    """What `make` returns; a plain ValueError gets the place of the job that it is about."""
    try:
        return make()
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise job.document.error([Fault(path, str(error))]) from None


def _windowed(job: Job, record: Record) -> Record:
    """The record with only the measurements that the job uses."""
    time, data = job.predictor.schema().time_unit, job.spec.data
    channels = {}
    for name, series in record.observations.items():
        start = data.start[name].to(time) if name in data.start else -np.inf
        stop = data.until[name].to(time) if name in data.until else np.inf
        kept = (np.asarray(series.time) >= start) & (np.asarray(series.time) <= stop)
        channels[name] = Series(
            series.time[kept],
            series.value[kept],
            mask=series.mask[kept],
            censor=series.censor[kept] if series.limited else None,
            after=series.after[kept],
            limit=None if series.limit is None else series.limit[kept],
        )
    return replace(record, observations=channels)
