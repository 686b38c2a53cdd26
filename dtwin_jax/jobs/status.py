"""How far a run by shards is, read from its folder."""

import math
import time
from collections import deque
from dataclasses import dataclass, field

from dtwin_jax.jobs.folder import Manifest, RunFolder, read_manifest
from dtwin_jax.jobs.shards import ShardPlan, read_plan

# The pace is that of so many shards, the last ones; a pause longer than this is no work.
_LAST, _PAUSE = 64, 60.0


@dataclass
class Pace:
    """How fast patients were calibrated lately."""

    recent: deque[Manifest] = field(default_factory=lambda: deque(maxlen=_LAST))

    def add(self, manifest: Manifest) -> None:
        """Take in a shard that was finished after the others."""
        if self.recent and manifest.began - max(one.ended for one in self.recent) > _PAUSE:
            self.recent.clear()
        self.recent.append(manifest)

    @property
    def rate(self) -> float:
        """Patients in a second; 0 while nothing is known."""
        if not self.recent:
            return 0.0
        taken = max(one.ended for one in self.recent) - min(one.began for one in self.recent)
        return sum(len(one.patients) + len(one.failed) for one in self.recent) / max(taken, 1e-3)

    def said(self, left: int) -> str:
        """Patients a second, and when `left` more will be done."""
        if not self.rate:
            return "pace not known yet"
        pace = f"{self.rate:.3g} patients/s"
        if not left:
            return pace
        ends = time.time() + left / self.rate
        return f"{pace}, ends about {clock(ends)} (in {span(left / self.rate)})"


@dataclass(frozen=True)
class UnderWay:
    """A shard that was begun and is not finished.

    Attributes:
        shard: its number.
        blocks: of draws on disk, of all its pieces.
        age: seconds since something of it was written.
    """

    shard: int
    blocks: int
    age: float


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        plan: of the run.
        finished: manifests, in the order of their ends.
        under_way: shards that were begun.
        pace: of the last shards.
    """

    plan: ShardPlan
    finished: tuple[Manifest, ...]
    under_way: tuple[UnderWay, ...]
    pace: Pace

    @property
    def patients(self) -> int:
        """With a result."""
        return sum(len(manifest.patients) for manifest in self.finished)

    @property
    def failed(self) -> dict[str, tuple[int, str]]:
        """Patient -> shard, and why there is no result."""
        return {
            name: (manifest.shard, why) for manifest in self.finished for name, why in manifest.failed.items()
        }

    @property
    def left(self) -> int:
        """Patients whose shard is not finished."""
        return self.plan.patients - self.patients - len(self.failed)


def status_of(folder: RunFolder) -> Status:
    """How far the run of a folder is.

    Raises:
        ResultError: not such a folder, or a damaged file in it.
    """
    plan = read_plan(folder)
    found = [read_manifest(folder, number, plan.mark) for number in range(len(plan.shards))]
    finished = sorted((one for one in found if one is not None), key=lambda one: one.ended)
    pace = Pace()
    for manifest in finished:
        pace.add(manifest)
    open_shards = [number for number, manifest in enumerate(found) if manifest is None]
    under_way = [one for number in open_shards if (one := _under_way(folder, number)) is not None]
    return Status(plan, tuple(finished), tuple(under_way), pace)


def _under_way(folder: RunFolder, shard: int) -> UnderWay | None:
    work = folder.work(shard)
    try:
        files = list(work.rglob("*"))
        written = max(path.stat().st_mtime for path in (work, *files))
    except FileNotFoundError:
        return None  # not begun, or finished at this moment
    blocks = sum(path.name.startswith("block-") for path in files)
    return UnderWay(shard, blocks, max(0.0, time.time() - written))


def clock(moment: float) -> str:
    """`2026-10-05 14:32:07`, in local time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def span(seconds: float) -> str:
    """`40 s`, `12 min`, `5 h 20 min`, `3 d 4 h`."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def plural(count: int, what: str) -> str:
    """`1 patient`, `2 patients`."""
    return f"{count} {what}{'' if count == 1 else 's'}"
