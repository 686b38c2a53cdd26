"""One piece of work of a run by shards: a shard, or some of its patients, calibrated into a file."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from dtwin_jax.core.record import Record
from dtwin_jax.inference.calibrate import calibrate
from dtwin_jax.inference.diagnostics import CalibrationWarning
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.result import save
from dtwin_jax.inference.run import after_block
from dtwin_jax.inference.svi import Svi
from dtwin_jax.jobs.checks import covariate_units
from dtwin_jax.jobs.folder import RunFolder
from dtwin_jax.jobs.job import Job
from dtwin_jax.jobs.reading import read_part
from dtwin_jax.jobs.shards import ShardPlan, cohort_of, read_plan

# Tables that a process keeps in memory: a shard lies in one or, where it goes over an edge, in two.
_TABLES_KEPT = 2


@dataclass(frozen=True, order=True)
class Piece:
    """Patients of a shard, from one position to another."""

    shard: int
    start: int
    stop: int

    def file(self, folder: RunFolder) -> Path:
        """Its result, whole or absent."""
        return folder.work(self.shard) / f"{self.start:06d}-{self.stop:06d}.nc"

    def halves(self) -> "list[Piece]":
        """The first and the second half of its patients."""
        middle = (self.start + self.stop) // 2
        return [replace(self, stop=middle), replace(self, start=middle)]

    def __len__(self) -> int:
        return self.stop - self.start


class Workshop:
    """What a process that does one piece after another keeps: the plan, the job, the last tables."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.plan: ShardPlan = read_plan(folder)
        self.job: Job = self.plan.job()
        self.tables: dict[int, Mapping[str, Record]] = {}

    def do(self, piece: Piece, between: Callable[[], None]) -> None:
        """Calibrate the patients of a piece into its file; blocks of draws that are there are used.

        Args:
            piece: of the plan.
            between: called after every block of draws; what it raises ends the work, which can be gone on
                with.
        """
        result = piece.file(self.folder)
        if result.exists():
            return
        shard = self.plan.shards[piece.shard]
        patients = shard.patients[piece.start : piece.stop]
        cohort = cohort_of(self.plan, self._records(shard.tables), patients)
        blocks = result.with_suffix(".blocks")
        token = after_block.set(between)
        try:
            with warnings.catch_warnings():
                # They are in the result too, and told from there.
                warnings.simplefilter("ignore", CalibrationWarning)
                tree = calibrate(
                    self.job.predictor,
                    cohort,
                    key=jax.random.key(self.job.spec.seed),
                    priors=dict(self.job.spec.priors),
                    method=self._method(),
                    checkpoint=blocks,
                    progress=False,
                )
        finally:
            after_block.reset(token)
        save(self._finished(tree, len(patients)), result)
        shutil.rmtree(blocks, ignore_errors=True)

    def _method(self) -> Nuts | Laplace | Svi:
        method = self.job.method
        return replace(method, group=self.plan.lanes) if isinstance(method, Nuts) else method

    def _records(self, tables: tuple[int, ...]) -> dict[str, Record]:
        """The patients of these tables; those of other shards among them."""
        for number in tables:
            if number not in self.tables:
                while len(self.tables) >= _TABLES_KEPT:
                    self.tables.pop(next(iter(self.tables)))
                self.tables[number] = read_part(self.job, Path(self.plan.tables[number]))
        return {name: record for number in tables for name, record in self.tables[number].items()}

    def _finished(self, tree: Any, patients: int) -> Any:
        """The result without the patients that only filled the lanes, and with units of what is known."""
        units = covariate_units(dict(self.job.spec.data.covariates), self.job.predictor.schema())
        for name, unit in units.items():
            if name in tree["constant_data"]:
                tree["constant_data"][name].attrs["units"] = unit
        for name in ("warnings", "notes"):
            tree.attrs[name] = json.dumps(
                list(dict.fromkeys(json.loads(tree.attrs[name]))), ensure_ascii=False
            )
        return tree.isel(patient=slice(patients))
