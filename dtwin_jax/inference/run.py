"""One calibration in progress: sampling in blocks, and what of it is on disk."""

import functools
import hashlib
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
from dtwin_jax.inference.described import described, placeless
from dtwin_jax.inference.devices import everywhere, spans_processes, spread
from dtwin_jax.inference.hosts import agree, of_process_0
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.predictive import constrained
from dtwin_jax.inference.start import coordinates

# Iterations of the first round of a warm-up.
FIRST = 100
# Another number wherever what is saved of a sampler's state has changed.
_LAYOUT = 2

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
        free = population.correlation is None and population.centred is None
        # Of a plain number the type is weak, and programs would not be shared.
        held = 0.5 if population.centred is None else float(population.centred)
        centring = jnp.full(len(population.varying), held, dtype=float)
        keys = jax.random.split(jax.random.split(self.key)[0], self.method.chains)
        with progress_bar(self._blocks(), "sampling", "block", progress) as bar:
            if free:
                centring = self._first_centring((self.base, record, centring), keys)
            return self._chains((self.base, record, centring), keys, "population", bar, free=free)

    def patients(self, progress: bool) -> tuple[dict, dict, None]:
        """Draws and statistics, leading axes (chain, draw, patient); no centring."""
        ids = self.cohort.ids
        size = min(self.method.group, len(ids))
        groups = [list(range(i, min(i + size, len(ids)))) for i in range(0, len(ids), size)]
        parts = []
        with progress_bar(self._blocks() * len(groups), "sampling", "block", progress) as bar:
            for number, members in enumerate(groups):
                # The last group is filled up, so that it needs no compilation of its own.
                filled = members + [members[-1]] * (size - len(members))
                record = jax.tree.map(jnp.asarray, self.cohort.take(filled).record)
                keys = patient_keys(self.key, self.cohort.take(filled))
                keys = jax.vmap(lambda key: jax.random.split(key, self.method.chains))(keys)
                data, name = (self.base, record, None), f"patients-{number:05d}"
                *drawn, _ = self._chains(data, keys, name, bar, patients=True)
                kept = slice(len(members))
                parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], tuple(drawn)))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return (*jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 2), joined), None)

    def _chains(
        self, data: tuple, keys: Any, name: str, bar: Any, *, patients: bool = False, free: bool = False
    ) -> tuple[dict, dict, Any]:
        """Draws, statistics, and the centring that they have.

        The curvature where chains begin is the first metric. After every round of the warm-up the draws of
        all chains say how far they spread, and if it is `free`, how much to centre.

        Args:
            data: base, record, and centring to begin with.
            keys: (chain,), of many patients (patient, chain).
            name: of what is kept on disk.
            bar: of the progress.
            patients: whether data and keys have a patient axis.
            free: whether the centring is found in the warm-up.
        """
        base, record, centring = data
        method, axis, dense = self.method, 2 if patients else 1, nuts.is_dense(self.density, self.method)
        settling, rounds = self._rounds()
        begin, lanes = nuts.start, keys
        # What a round learns follows from the blocks before it, but for last bits, which may differ.
        made = self._fingerprint(base, record, keys)
        for number, count in enumerate(rounds):
            stage = (f"{name}-warmup-{number}", count, made)
            state, blocks = self._run_blocks((base, record, centring), lanes, patients, stage, bar, begin)
            z, _ = self._joined(blocks, axis, slice(count * method.block // 2, None))
            points = jax.tree.map(np.asarray, (state.z, state.potential_energy, state.z_grad))
            if free:
                centring, z, points = self._recentred((base, record, centring), z)
            spread = jax.vmap(lambda z: spread_of(z, dense))(z) if patients else spread_of(z, dense)
            metric = jnp.repeat(jnp.expand_dims(self._same(spread), axis - 1), method.chains, axis=axis - 1)
            done = max(method.warmup - settling - method.block * sum(rounds[number + 1 :]), 0)
            lanes = (points, metric, _next(keys, number), jnp.full(keys.shape, done))
            begin = nuts.start_at
        stage = (name, self._last(settling), made)
        _, blocks = self._run_blocks((base, record, centring), lanes, patients, stage, bar, begin)
        return (*self._joined(blocks, axis, slice(settling, settling + method.draws)), centring)

    def _first_centring(self, data: tuple, keys: Any) -> Any:
        """What the curvature says where chains begin."""
        placed, lanes, _ = self._placed(data, keys, [])
        state = self._started(nuts.start, False, placed, lanes)
        here = jax.tree.map(np.asarray, (state.z, state.adapt_state.inverse_mass_matrix))
        base, record, centring = data
        here = jax.vmap(coordinates(self.density, data))(here[0]), here[1]
        return self._same(first_centring(self.density, base, record, here, centring))

    def _recentred(self, data: tuple, z: dict) -> tuple[Any, dict, tuple]:
        """The best centring by draws `z`; these, and the last as points to go on from, in its coordinates."""
        base, record, centring = data
        best = self._same(best_centring(self.density, constrained(self.density, base, record, z, centring)))
        z = recentred(self.density, base, record, z, (centring, best))
        last = self._same({name: x[:, -1] for name, x in z.items()})
        data, last, _ = self._placed((base, record, best), last, [])
        points = nuts.points(self.density, self.method, False, data, last)
        return best, z, jax.tree.map(np.asarray, points)

    def _same(self, tree: Any) -> Any:
        """`tree` as process 0 has it, where several could have rounded it differently."""
        return jax.tree.map(lambda x: jnp.asarray(of_process_0(x)), tree) if self._together else tree

    def _rounds(self) -> tuple[int, list[int]]:
        """Iterations with which a warm-up ends, and the blocks of each round before."""
        settling, block = nuts.settling(self.method), self.method.block
        return settling, rounds_of(-(-(self.method.warmup - settling) // block), -(-FIRST // block))

    def _blocks(self) -> int:
        settling, rounds = self._rounds()
        return sum(rounds) + self._last(settling)

    def _last(self, settling: int) -> int:
        """Blocks that hold the draws, and the end of the warm-up before them."""
        return -(-(settling + self.method.draws) // self.method.block)

    def _joined(self, blocks: list, axis: int, keep: slice) -> tuple[dict, dict]:
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *blocks)
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (keep,)], joined)

    def _run_blocks(
        self,
        data: tuple,
        lanes: Any,
        patients: bool,
        stage: tuple[str, int, str],
        bar: Any,
        begin: Callable,
    ) -> tuple[Any, list]:
        """The last state and the blocks of a stage (its name, how many, what it is made from): those on disk,
        then new ones."""
        name, count, fingerprint = stage
        folder = None if self.checkpoint is None else self.checkpoint / name
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
        return state, blocks

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

    def _fingerprint(self, base: Any, record: Any, keys: Any) -> str:
        leaves, structure = jax.tree.flatten((base, record, keys))
        # Leaves alone do not tell of which channel or input they are.
        made = f"{described(self.density)} {self.method!r} {placeless(structure)}"
        digest = hashlib.sha256(f"{_LAYOUT} {jax.__version__} {made}".encode())
        for leaf in leaves:
            secret = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
            array = np.ascontiguousarray(jax.random.key_data(leaf) if secret else leaf)
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        return digest.hexdigest()


def _next(keys: Any, number: int) -> Any:
    """New keys in the shape of `keys`."""
    flat = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1))
    return flat.reshape(keys.shape)


def rounds_of(blocks: int, first: int) -> list[int]:
    """`blocks` in rounds, each twice as long as the one before; the last takes what is left."""
    rounds: list[int] = []
    length = max(1, min(first, blocks // 2))
    while blocks > 0:
        length = length if blocks >= 2 * length else blocks
        rounds.append(length)
        blocks, length = blocks - length, 2 * length
    return rounds


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
