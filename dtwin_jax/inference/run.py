"""One calibration in progress: sampling in blocks, and what of it is on disk."""

import functools
import hashlib
import inspect
import re
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.core.record import Cohort
from dtwin_jax.inference import nuts
from dtwin_jax.inference.centring import best_centring, first_centring, recentred, spread_of
from dtwin_jax.inference.devices import everywhere, spans_processes, spread
from dtwin_jax.inference.hosts import agree, of_process_0
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.predictive import constrained

# Iterations of the first round of a warm-up that finds how much to centre.
FIRST = 100

# Called after every block that was sampled and is on disk; what it raises ends the calibration, which can be
# gone on with. This is how a process that is told to end leaves nothing half done.
after_block: ContextVar[Callable[[], None]] = ContextVar("after_block", default=lambda: None)


@dataclass
class Run:
    """One calibration in progress: sampling in blocks, and what of it is on disk."""

    density: Any
    base: Any
    cohort: Cohort
    method: Nuts
    key: Any
    checkpoint: Path | None
    mesh: Any = None
    resumed: int = 0

    def population(self, progress: bool) -> tuple[dict, dict, Any]:
        """Draws and statistics, leading axes (chain, draw), and the centring of the draws' coordinates."""
        population = self.density.population
        record = jax.tree.map(jnp.asarray, self.cohort.record)
        # Of a plain number the type is weak, and programs would not be shared.
        held = 0.5 if population.centred is None else float(population.centred)
        data = (self.base, record, jnp.full(len(population.varying), held, dtype=float))
        key, _ = jax.random.split(self.key)
        keys = jax.random.split(key, self.method.chains)
        if population.correlation is None and population.centred is None:
            return self._in_rounds(data, (key, keys), progress)
        warmup = self.method.warmup
        with progress_bar(self._blocks(warmup), "sampling", "block", progress) as bar:
            return (*self._sample(data, keys, "population", warmup, bar), data[2])

    def _in_rounds(self, data: tuple, keys: tuple[Any, Any], progress: bool) -> tuple[dict, dict, Any]:
        """As `population`, where the warm-up finds how much to centre.

        The curvature where chains begin is the first guess. After every round of the warm-up the draws of all
        chains say how much, and how far they spread; the chains go on from there in the new coordinates.
        """
        base, record, centring = data
        method, (key, lanes) = self.method, keys
        settling = nuts.settling(method)
        rounds = rounds_of(-(-(method.warmup - settling) // method.block), -(-FIRST // method.block))
        with progress_bar(self._blocks(settling) + sum(rounds), "sampling", "block", progress) as bar:
            placed, lanes_there, _ = self._placed(data, lanes, [])
            state = self._started(nuts.start, False, placed, lanes_there)
            here = jax.tree.map(np.asarray, (state.z, state.adapt_state.inverse_mass_matrix))
            centring = self._same(first_centring(self.density, base, record, here, centring))
            begin = nuts.start
            for number, count in enumerate(rounds):
                stage = (f"warmup-{number}", count)
                blocks = self._run_blocks((base, record, centring), lanes, False, stage, bar, begin)
                z, _ = self._joined(blocks, 1, slice(count * method.block // 2, None))
                centring, points, spread = self._same(self._learnt(base, record, z, centring))
                left = settling + method.block * sum(rounds[number + 1 :])
                done = np.full(method.chains, max(method.warmup - left, 0))
                each = jax.random.split(jax.random.fold_in(key, number + 1), method.chains)
                begin, lanes = nuts.start_at, (points, spread, each, done)
            data = (base, record, centring)
            return (*self._sample(data, lanes, "population", settling, bar, begin=begin), centring)

    def _learnt(self, base: Any, record: Any, z: dict, centring: Any) -> tuple[Any, dict, Any]:
        """The best centring by draws `z`; in its coordinates the last ones and the spread, by chain."""
        best = best_centring(self.density, constrained(self.density, base, record, z, centring))
        z = recentred(self.density, base, record, z, (centring, best))
        spread = spread_of(z, nuts.is_dense(self.density, self.method))
        points = {name: x[:, -1] for name, x in z.items()}
        return best, points, jnp.repeat(spread[None], self.method.chains, axis=0)

    def _same(self, tree: Any) -> Any:
        """`tree` as process 0 has it, where several could have rounded it differently."""
        return jax.tree.map(lambda x: jnp.asarray(of_process_0(x)), tree) if self._together else tree

    def patients(self, progress: bool) -> tuple[dict, dict, None]:
        """Draws and statistics, leading axes (chain, draw, patient); no centring."""
        ids = self.cohort.ids
        size = min(self.method.group, len(ids))
        groups = [list(range(i, min(i + size, len(ids)))) for i in range(0, len(ids), size)]
        parts = []
        warmup = self.method.warmup
        with progress_bar(self._blocks(warmup) * len(groups), "sampling", "block", progress) as bar:
            for number, members in enumerate(groups):
                # The last group is filled up, so that it needs no compilation of its own.
                filled = members + [members[-1]] * (size - len(members))
                record = jax.tree.map(jnp.asarray, self.cohort.take(filled).record)
                keys = patient_keys(self.key, self.cohort.take(filled))
                keys = jax.vmap(lambda key: jax.random.split(key, self.method.chains))(keys)
                data = (self.base, record, None)
                drawn = self._sample(data, keys, f"patients-{number:05d}", warmup, bar, patients=True)
                kept = slice(len(members))
                parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], drawn))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return (*jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 2), joined), None)

    def _blocks(self, warmup: int) -> int:
        return -(-(warmup + self.method.draws) // self.method.block)

    def _sample(
        self,
        data: tuple,
        lanes: Any,
        name: str,
        warmup: int,
        bar: Any,
        *,
        patients: bool = False,
        begin: Callable = nuts.start,
    ) -> tuple[dict, dict]:
        blocks = self._run_blocks(data, lanes, patients, (name, self._blocks(warmup)), bar, begin)
        return self._joined(blocks, 2 if patients else 1, slice(warmup, warmup + self.method.draws))

    def _joined(self, blocks: list, axis: int, keep: slice) -> tuple[dict, dict]:
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *blocks)
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (keep,)], joined)

    def _run_blocks(
        self,
        data: tuple,
        lanes: Any,
        patients: bool,
        stage: tuple[str, int],
        bar: Any,
        begin: Callable = nuts.start,
    ) -> list:
        """The blocks of a stage (its name, how many): those on disk, then new ones from where it begins."""
        name, count = stage
        folder = None if self.checkpoint is None else self.checkpoint / name
        fingerprint = self._fingerprint(data, lanes)
        store = _Store(folder, fingerprint)
        saved, blocks = store.restore()
        if self._together:
            agree("the calibration", fingerprint, "Give all the same model, data, settings and key.")
            agree("what is in the checkpoint", str(len(blocks)), "Give all one folder that all can read.")
        self.resumed += len(blocks)
        bar.update(len(blocks))
        data, lanes, saved = self._placed(data, lanes, saved)
        if saved:
            # Only the shape of a state is wanted here, and that compiles nothing.
            made = functools.partial(begin, self.density, self.method, patients)
            state = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(made, data, lanes)), saved)
        else:
            state = self._started(begin, patients, data, lanes)
        self._agree_on_program(nuts.run_block, patients, data, state)
        while len(blocks) < count:
            state, drawn = nuts.run_block(self.density, self.method, patients, data, state)
            blocks.append(jax.tree.map(np.asarray, drawn))
            if not self._together or jax.process_index() == 0:
                store.save(len(blocks) - 1, state, blocks[-1])
            bar.update(1)
            after_block.get()()
        return blocks[:count]

    def _started(self, begin: Callable, patients: bool, data: tuple, lanes: Any) -> Any:
        self._agree_on_program(begin, patients, data, lanes)
        return begin(self.density, self.method, patients, data, lanes)

    def _placed(self, data: tuple, lanes: Any, saved: list) -> tuple[tuple, Any, list]:
        """`data`, `lanes` and a saved state where they are computed with."""
        if self.mesh is None:
            return data, lanes, saved
        base, _, centring = data
        base, centring, lanes, saved = everywhere((base, centring, lanes, saved), self.mesh)
        return (base, spread(self.cohort, self.mesh), centring), lanes, saved

    @property
    def _together(self) -> bool:
        """Whether several processes share the patients."""
        return self.mesh is not None and spans_processes(self.mesh)

    def _agree_on_program(self, function: Any, patients: bool, data: tuple, lanes: Any) -> None:
        """Stop, rather than hang, where processes have not compiled the same."""
        if self._together:
            lowered = function.lower(self.density, self.method, patients, data, lanes)
            agree("the compiled program", lowered.as_text(), "Set PYTHONHASHSEED=0 and use equal versions.")

    def _fingerprint(self, data: tuple, lanes: Any) -> str:
        digest = hashlib.sha256(f"{_described(self.density)} {self.method!r} {jax.__version__}".encode())
        for leaf in jax.tree.leaves((data, lanes)):
            secret = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
            digest.update(np.ascontiguousarray(jax.random.key_data(leaf) if secret else leaf).tobytes())
        return digest.hexdigest()


def rounds_of(blocks: int, first: int) -> list[int]:
    """`blocks` in rounds, each twice as long as the one before; the last takes what is left."""
    rounds: list[int] = []
    length = max(1, min(first, blocks // 2))
    while blocks > 0:
        length = length if blocks >= 2 * length else blocks
        rounds.append(length)
        blocks, length = blocks - length, 2 * length
    return rounds


def _described(density: Any) -> str:
    """`density` in words that another process finds too, with the files that its functions are written in."""
    modules = {getattr(part, "__module__", None) for part in vars(density.predictor).values()}
    sources = []
    for name in sorted(name for name in modules if name in sys.modules):
        try:
            sources.append(inspect.getsource(sys.modules[name]))
        except (OSError, TypeError):
            continue  # a notebook, or a built-in
    return " ".join([re.sub(r" at 0x[0-9a-f]+", "", repr(density)), *sources])


class _Store:
    """Blocks of draws in a folder, each file whole or absent."""

    def __init__(self, folder: Path | None, fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint

    def restore(self) -> tuple[list, list]:
        """The leaves of the state to go on from, and the blocks that precede it; both empty at the start."""
        leaves: list = []
        blocks: list = []
        if self.folder is None or not self.folder.is_dir():
            return leaves, blocks
        while (path := self._path(len(blocks))).exists():
            with np.load(path) as saved:
                if str(saved["fingerprint"]) != self.fingerprint:
                    break
                count = sum(name.startswith("state") for name in saved.files)
                leaves = [jnp.asarray(saved[f"state{i}"]) for i in range(count)]
                z = {name[2:]: saved[name] for name in saved.files if name.startswith("z:")}
                stats = {name[2:]: saved[name] for name in saved.files if name.startswith("s:")}
                blocks.append((z, stats))
        return leaves, blocks

    def save(self, number: int, state: Any, block: tuple[dict, dict]) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"state{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        arrays |= {f"z:{name}": leaf for name, leaf in block[0].items()}
        arrays |= {f"s:{name}": leaf for name, leaf in block[1].items()}
        with replacing(self._path(number)) as draft, open(draft, "wb") as file:
            np.savez(file, allow_pickle=False, fingerprint=np.asarray(self.fingerprint), **arrays)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block-{number:05d}.npz"


def patient_keys(key: Any, cohort: Cohort) -> Any:
    """A random key for each patient, by the id alone: (patient,)."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(cohort.numbers)


def progress_bar(total: int, what: str, unit: str, progress: bool) -> Any:
    """A bar on standard error, where that is a terminal."""
    from tqdm import tqdm

    # disable=None: no bar where standard error is not a terminal.
    return tqdm(total=total, desc=what, unit=unit, disable=None if progress else True)
