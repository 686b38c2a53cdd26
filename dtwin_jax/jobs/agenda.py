"""What is to be done of a run by shards, what is under way, and what is lost.

A shard that fails is tried three times, then its patients in halves and halves of those, so that in the end
only the patients at fault are left, each of whom is tried three times and then lost, by name.
"""

import json
import os
import shutil
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dtwin_jax.core.files import replacing
from dtwin_jax.inference.result import save
from dtwin_jax.jobs.crew import Outcome
from dtwin_jax.jobs.folder import Manifest, RunFolder, note, read_manifest, write_manifest
from dtwin_jax.jobs.locks import lock
from dtwin_jax.jobs.opened import OF_EACH, Part, joined
from dtwin_jax.jobs.piece import Piece
from dtwin_jax.jobs.shards import ShardPlan
from dtwin_jax.jobs.status import Pace, clock, plural

TRIES = 3


class Agenda:
    """What is to be done of some shards; safe for threads.

    Attributes:
        finished: manifests of shards, also of earlier runs.
        busy: shards that another process has worked on all the time.
        stopping: nothing more is to begin.
    """

    def __init__(
        self, folder: RunFolder, plan: ShardPlan, shards: Iterable[int], tell: Callable[[str], None]
    ):
        """Shards that are finished are skipped.

        Raises:
            ResultError: a damaged manifest.
        """
        self.folder, self.plan, self.tell = folder, plan, tell
        self.shards = tuple(shards)
        found = {number: read_manifest(folder, number, plan.mark) for number in self.shards}
        self.finished = {number: manifest for number, manifest in found.items() if manifest is not None}
        self.skipped = len(self.finished)
        for number in self.finished:
            shutil.rmtree(folder.work(number), ignore_errors=True)  # left by a kill at the very end
        self.busy: list[int] = []
        self.stopping = False
        self._pace = Pace()
        self._unopened = deque(number for number in self.shards if number not in self.finished)
        self._waiting: deque[Piece] = deque()
        self._under_way = 0
        self._tries: Counter[Piece] = Counter()
        self._open: dict[int, set[Piece]] = {}
        self._done: dict[int, list[Piece]] = {}
        self._lost: dict[int, dict[str, str]] = {}
        self._began: dict[int, float] = {}
        self._held: dict[int, int] = {}
        self._fault: BaseException | None = None
        self._changed = threading.Condition(threading.RLock())

    def next(self, *, wait: bool = True) -> Piece | None:
        """Something to do; None if nothing is left, or, without `wait`, nothing just now."""
        with self._changed:
            while True:
                if self.stopping or self._fault is not None:
                    return None
                piece = self._waiting.popleft() if self._waiting else self._opened()
                if piece is not None:
                    self._under_way += 1
                    return piece
                if not self._under_way or not wait:
                    return None
                self._changed.wait()

    def settle(self, piece: Piece, outcome: Outcome) -> None:
        """Take in what became of a piece that `next` gave."""
        with self._changed:
            try:
                self._settle(piece, outcome)
            except BaseException as fault:
                # A disk that is full, say: whoever waits for the run is told.
                self._fault = fault
            self._under_way -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Begin nothing more."""
        with self._changed:
            self.stopping = True
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of what is held.

        Raises:
            Exception: what went wrong while a shard was written.
        """
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        if self._fault is not None:
            raise self._fault

    @property
    def failed(self) -> dict[str, str]:
        """Patient -> why there is no result."""
        return {name: why for manifest in self.finished.values() for name, why in manifest.failed.items()}

    def _opened(self) -> Piece | None:
        """The next shard, held, as one piece."""
        while self._unopened:
            shard = self._unopened.popleft()
            held = lock(self.folder.lock(shard))
            if held is None:
                self.busy.append(shard)
                continue
            self._held[shard] = held
            # It may have been finished while another process held it.
            manifest = read_manifest(self.folder, shard, self.plan.mark)
            if manifest is not None:
                self.finished[shard] = manifest
                self._let_go(shard)
                continue
            piece = Piece(shard, 0, len(self.plan.shards[shard].patients))
            self._open[shard], self._done[shard], self._lost[shard] = {piece}, [], {}
            self._began[shard] = time.time()
            return piece
        return None

    def _settle(self, piece: Piece, outcome: Outcome) -> None:
        if outcome.kind == "done":
            self._done[piece.shard].append(piece)
            self._open[piece.shard].discard(piece)
        elif outcome.kind == "stopped" or self.stopping:
            self._waiting.append(piece)
        else:
            self._again(piece, outcome.why)
        if not self._open[piece.shard]:
            self._finish(piece.shard)

    def _again(self, piece: Piece, why: str) -> None:
        """Try a piece once more, or in halves, or give its one patient up."""
        self._tries[piece] += 1
        patients = self.plan.shards[piece.shard].patients
        # Halves are tried once: their faults have been seen three times.
        allowed = 1 if 1 < len(piece) < len(patients) else TRIES
        what = f"shard {piece.shard}, " + (
            plural(len(piece), "patient") if len(piece) > 1 else f"patient {patients[piece.start]!r}"
        )
        if self._tries[piece] < allowed:
            self._say(f"{what}: {why}; try {self._tries[piece] + 1} of {allowed}")
            self._waiting.appendleft(piece)
            return
        self._open[piece.shard].discard(piece)
        if len(piece) > 1:
            self._say(f"{what}: {why}; trying halves of the patients")
            self._open[piece.shard] |= set(piece.halves())
            self._waiting.extendleft(reversed(piece.halves()))
        else:
            self._say(f"{what}: {why}; given up")
            self._lost[piece.shard][patients[piece.start]] = why

    def _finish(self, shard: int) -> None:
        """Put the result of a shard in its place, say so in its manifest, and clear up."""
        pieces, names = sorted(self._done[shard]), self.plan.shards[shard].patients
        result = self.folder.result(shard)
        result.parent.mkdir(parents=True, exist_ok=True)
        files = [piece.file(self.folder) for piece in pieces]
        parts = [
            Part(file, names[piece.start : piece.stop], _attributes(file))
            for file, piece in zip(files, pieces, strict=True)
        ]
        attributes: dict[str, Any] = {}
        if len(parts) == 1:
            attributes = dict(parts[0].attributes)
            # Not moved: if this is the last that is done before a kill, the piece is found again.
            with replacing(result) as draft:
                _link(parts[0].path, draft)
        elif parts:
            tree = joined(parts)
            attributes = {name: tree.attrs[name] for name in OF_EACH}
            save(tree, result)
        manifest = Manifest(
            shard,
            self.plan.mark,
            [name for part in parts for name in part.patients],
            self._lost[shard],
            result.stat().st_size if parts else 0,
            self._began[shard],
            time.time(),
            attributes,
        )
        write_manifest(self.folder, manifest)
        shutil.rmtree(self.folder.work(shard), ignore_errors=True)
        self._let_go(shard)
        self.finished[shard] = manifest
        self._pace.add(manifest)
        self._say(self._line(manifest))

    def _line(self, manifest: Manifest) -> str:
        taken = manifest.ended - manifest.began
        left = sum(len(self.plan.shards[i].patients) for i in self.shards if i not in self.finished)
        failed = len(self.failed)
        return (
            f"shard {manifest.shard}: {plural(len(manifest.patients), 'patient')} in {taken:.1f} s"
            f"{f', {len(manifest.failed)} failed' if manifest.failed else ''}; "
            f"{len(self.finished)} of {plural(len(self.shards), 'shard')}, "
            f"{plural(failed, 'patient')} failed so far, {self._pace.said(left)}"
        )

    def _say(self, line: str) -> None:
        self.tell(line)
        note(self.folder, f"{clock(time.time())} {line}")

    def _let_go(self, shard: int) -> None:
        os.close(self._held.pop(shard))


def _link(file: Path, name: Path) -> None:
    try:
        os.link(file, name)
    except OSError:
        shutil.copyfile(file, name)  # a file system without links


def _attributes(path: Any) -> dict[str, Any]:
    import xarray as xr

    with xr.open_datatree(path, engine="h5netcdf") as tree:
        kept = {name: tree.attrs[name] for name in OF_EACH}
    return {name: value if isinstance(value, str) else float(value) for name, value in kept.items()}


def said_of(manifests: Iterable[Manifest]) -> int:
    """How many shards ended with convergence warnings."""
    return sum(bool(json.loads(manifest.attributes.get("warnings", "[]"))) for manifest in manifests)
