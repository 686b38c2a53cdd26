"""One calibration in progress: sampling in blocks, and what of it is on disk."""

import functools
import hashlib
import inspect
import re
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.core.record import Cohort
from dtwin_jax.inference import nuts
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.population import best_centring
from dtwin_jax.inference.predictive import constrained

# Iterations of the pilot run that finds how much to centre the random effects.
PILOT = 300


@dataclass
class Run:
    """One calibration in progress: sampling in blocks, and what of it is on disk."""

    density: Any
    base: Any
    cohort: Cohort
    method: Nuts
    key: Any
    checkpoint: Path | None
    compile_seconds: float = 0.0
    resumed: int = 0

    def population(self, progress: bool) -> tuple[dict, dict, Any]:
        """Draws and statistics, leading axes (chain, draw), and the centring of the draws' coordinates."""
        key, key_pilot = jax.random.split(self.key)
        keys = jax.random.split(key, self.method.chains)
        record = jax.tree.map(jnp.asarray, self.cohort.record)
        population = self.density.population
        effects = len(population.varying)
        piloted = population.correlation is None and population.centred is None
        pilot = -(-min(PILOT, self.method.warmup) // self.method.block) if piloted else 0
        with _bar(self._blocks() + pilot, progress) as bar:
            # Of a plain number the type is weak, and the pilot run would share no program with the rest.
            value = 0.5 if piloted else float(bool(population.centred))
            centring = jnp.full(effects, value, dtype=float)
            if piloted:
                first = jax.random.split(key_pilot, self.method.chains)
                blocks = self._run_blocks((self.base, record, centring), first, False, ("pilot", pilot), bar)
                z, _ = self._joined(blocks, 1, slice(pilot * self.method.block // 2, None))
                centring = best_centring(
                    self.density, constrained(self.density, self.base, record, z, centring)
                )
            data = (self.base, record, centring)
            drawn = self._sample(data, keys, False, "population", bar)
        return (*drawn, centring)

    def patients(self, progress: bool) -> tuple[dict, dict, None]:
        """Draws and statistics, leading axes (chain, draw, patient); no centring."""
        ids = self.cohort.ids
        size = min(self.method.group, len(ids))
        groups = [list(range(i, min(i + size, len(ids)))) for i in range(0, len(ids), size)]
        parts = []
        with _bar(self._blocks() * len(groups), progress) as bar:
            for number, members in enumerate(groups):
                # The last group is filled up, so that it needs no compilation of its own.
                filled = members + [members[-1]] * (size - len(members))
                record = jax.tree.map(jnp.asarray, self.cohort.take(filled).record)
                keys = jnp.stack([jax.random.fold_in(self.key, zlib.crc32(ids[i].encode())) for i in filled])
                keys = jax.vmap(lambda key: jax.random.split(key, self.method.chains))(keys)
                drawn = self._sample((self.base, record, None), keys, True, f"patients-{number:05d}", bar)
                kept = slice(len(members))
                parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], drawn))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return (*jax.tree.map(lambda leaf: np.moveaxis(leaf, 0, 2), joined), None)

    def _blocks(self) -> int:
        return -(-(self.method.warmup + self.method.draws) // self.method.block)

    def _sample(self, data: tuple, keys: Any, patients: bool, name: str, bar: Any) -> tuple[dict, dict]:
        blocks = self._run_blocks(data, keys, patients, (name, self._blocks()), bar)
        keep = slice(self.method.warmup, self.method.warmup + self.method.draws)
        return self._joined(blocks, 2 if patients else 1, keep)

    def _joined(self, blocks: list, axis: int, keep: slice) -> tuple[dict, dict]:
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis), *blocks)
        return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (keep,)], joined)

    def _run_blocks(self, data: tuple, keys: Any, patients: bool, stage: tuple[str, int], bar: Any) -> list:
        """The blocks of a stage (its name, how many): those on disk, then new ones."""
        name, count = stage
        folder = None if self.checkpoint is None else self.checkpoint / name
        store = _Store(folder, self._fingerprint(data, keys))
        saved, blocks = store.restore()
        self.resumed += len(blocks)
        bar.update(len(blocks))
        if saved:
            # Only the shape of a state is wanted of `start` here, and that compiles nothing.
            begin = functools.partial(nuts.start, self.density, self.method, patients)
            state = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(begin, data, keys)), saved)
        else:
            state = self._timed(nuts.start, patients, data, keys)
        while len(blocks) < count:
            state, drawn = self._timed(nuts.run_block, patients, data, state)
            blocks.append(jax.tree.map(np.asarray, drawn))
            store.save(len(blocks) - 1, state, blocks[-1])
            bar.update(1)
        return blocks[:count]

    def _timed(self, function: Any, patients: bool, data: tuple, lanes: Any) -> Any:
        """Call a compiled function, and count as compilation the time of a call that had to compile."""
        known = function._cache_size()
        began = time.perf_counter()
        result = function(self.density, self.method, patients, data, lanes)
        if function._cache_size() > known:
            self.compile_seconds += time.perf_counter() - began
        return jax.block_until_ready(result)

    def _fingerprint(self, data: tuple, keys: Any) -> str:
        described = f"{_described(self.density)} {self.method!r} {jax.__version__}"
        digest = hashlib.sha256(described.encode())
        for leaf in jax.tree.leaves((data, jax.random.key_data(keys))):
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()


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


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    # disable=None: no bar where standard error is not a terminal.
    return tqdm(total=total, desc="sampling", unit="block", disable=None if progress else True)
