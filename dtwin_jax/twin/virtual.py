"""Virtual patients: a population drawn from priors, or like given patients, without the implausible ones.

Allen, Rieger & Musante 2016, CPT Pharmacometrics Syst Pharmacol 5:140, call them plausible patients.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.quantity import assign, check_names, quantities, values
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.dynamics.model import expect
from dtwin_jax.inference.density import with_known

# A search in which fewer than this share of ten batches is plausible is given up.
LEAST = 0.01


@dataclass(frozen=True)
class Joint:
    """How quantities vary together over people: marginals, and a Gaussian copula.

    Attributes:
        names: of the quantities.
        marginal: name -> its log-normal (mean and sd of the log), its normal (mean and sd), or its sorted
            values where these themselves are the distribution.
        correlation: (names, names) of the normal scores.
    """

    names: tuple[str, ...]
    marginal: dict[str, "LogNormal | Normal | Empirical"]
    correlation: np.ndarray

    def draw(self, n: int, *, key: Any) -> dict[str, np.ndarray]:
        """`n` people: name -> (n,)."""
        factor = np.linalg.cholesky(self.correlation + 1e-12 * np.eye(len(self.names)))
        scores = np.asarray(jax.random.normal(key, (n, len(self.names)))) @ factor.T
        return {name: self.marginal[name].at(scores[:, i]) for i, name in enumerate(self.names)}


@dataclass(frozen=True)
class Normal:
    """Mean and sd."""

    mean: float
    sd: float

    def at(self, score: np.ndarray) -> np.ndarray:
        """The value that lies `score` standard deviations from the middle."""
        return self.mean + self.sd * score


@dataclass(frozen=True)
class LogNormal:
    """Mean and sd of the logarithm."""

    mean: float
    sd: float

    def at(self, score: np.ndarray) -> np.ndarray:
        """The value whose logarithm lies `score` standard deviations from the middle."""
        return np.exp(self.mean + self.sd * score)


@dataclass(frozen=True)
class Empirical:
    """Values as they were found, sorted; between two of them straight lines."""

    value: tuple[float, ...]

    def at(self, score: np.ndarray) -> np.ndarray:
        """The value at the quantile of a normal `score`; no draw leaves the range of what was found."""
        share = np.asarray(jax.scipy.special.ndtr(score))
        return np.interp(share, _positions(len(self.value)), self.value)


def fit_joint(table: Mapping[str, Any], *, empirical: tuple[str, ...] = ()) -> Joint:
    """The distribution of which these people are a sample.

    Positive quantities are log-normal, others normal, with the sample's mean and sd; those named in
    `empirical` keep their own shape. Correlations are those of the normal scores, shrunk towards 0 by as
    much as the sample is small (Schäfer & Strimmer 2005, Stat Appl Genet Mol Biol 4:32): ten people do not
    determine the correlations of thirty parameters.

    Args:
        table: name -> (people,) values, of one length, at least three.
        empirical: names whose distribution is the sample's.

    Raises:
        ValueError: no column, fewer than three people, unequal lengths, or values that are not finite.
    """
    if not table:
        raise ValueError("fit_joint: table is empty; wanted name -> (people,) values, one column at least")
    columns = {name: np.asarray(column, float) for name, column in table.items()}
    check_names("the table", "column", empirical, columns)
    lengths = {name: column.shape for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or next(iter(lengths.values()))[0] < 3:
        raise ValueError(f"fit_joint needs columns of one length, of at least 3; found {lengths}")
    for name, column in columns.items():
        if not np.all(np.isfinite(column)):
            raise ValueError(
                f"fit_joint: {name} of person {int(np.argmin(np.isfinite(column)))} is not finite"
            )
    marginal = {name: _marginal(column, name in empirical) for name, column in columns.items()}
    scores = np.stack([_scores(columns[name], marginal[name]) for name in columns])
    return Joint(tuple(columns), marginal, _shrunk_correlation(scores))


def _positions(count: int) -> np.ndarray:
    return (np.arange(count) + 0.5) / count


def _marginal(column: np.ndarray, empirical: bool) -> LogNormal | Normal | Empirical:
    if empirical:
        return Empirical(tuple(np.sort(column).tolist()))
    if np.all(column > 0):
        return LogNormal(float(np.mean(np.log(column))), float(np.std(np.log(column), ddof=1)))
    return Normal(float(np.mean(column)), float(np.std(column, ddof=1)))


def _scores(column: np.ndarray, marginal: LogNormal | Normal | Empirical) -> np.ndarray:
    if isinstance(marginal, Empirical):
        rank = np.array([np.mean(column < v) + np.mean(column == v) / 2 for v in column])
        return np.asarray(jax.scipy.special.ndtri(rank))
    column = np.log(column) if isinstance(marginal, LogNormal) else column
    # What does not vary is correlated with nothing.
    varies = marginal.sd > 1e-12 * max(1.0, abs(marginal.mean))
    return (column - marginal.mean) / marginal.sd if varies else np.zeros(column.shape)


def _shrunk_correlation(scores: np.ndarray) -> np.ndarray:
    """(names, people) -> (names, names), by the shrinkage that minimises the expected squared error."""
    people = scores.shape[1]
    centred = scores - scores.mean(axis=1, keepdims=True)
    sd = centred.std(axis=1, ddof=1, keepdims=True)
    z = np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 0)
    products = z[:, None, :] * z[None, :, :]
    raw = products.sum(axis=2) / (people - 1)
    uncertain = people / (people - 1) ** 3 * np.sum((products - products.mean(axis=2, keepdims=True)) ** 2, 2)
    apart = ~np.eye(len(raw), dtype=bool)
    found = np.sum(raw[apart] ** 2)
    share = 1.0 if found == 0 else float(np.clip(np.sum(uncertain[apart]) / found, 0.0, 1.0))
    return np.where(apart, (1 - share) * raw, 1.0)


@dataclass(frozen=True)
class VirtualPopulation:
    """Plausible patients, and how many had to be drawn.

    Attributes:
        params: the model's parameters, every leaf (n,).
        drawn: patients drawn until `n` were plausible.
        acceptance: share of all drawn that were plausible.
        refused: why others were not -> how many; one patient may have several reasons.
    """

    params: Any
    drawn: int
    acceptance: float
    refused: dict[str, int]

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.params)[0])

    def cohort(self, record: Record) -> Cohort:
        """These patients under one record, with their parameters as known facts."""
        n = len(self)
        known = {name: np.asarray(value) for name, value in values(self.params).items()}
        spread = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (n, *np.shape(leaf))).copy(), record)
        ids = tuple(f"virtual {i + 1}" for i in range(n))
        return Cohort(ids, Record(spread.inputs, spread.observations, known, spread.t0))


def virtual_population(
    model: Any,
    n: int,
    record: Record,
    *,
    key: Any,
    like: Joint | None = None,
    plausible: Mapping[str, tuple[float, float] | None] | None = None,
    accept: Callable[[Any, Mapping[str, Any]], Any] | None = None,
    batch: int = 256,
) -> VirtualPopulation:
    """`n` virtual patients of `model` whose outputs under `record` are plausible.

    Args:
        model: the `Model`.
        n: patients wanted.
        record: what is given to all of them, what is known of all, and the times at which their outputs are
            looked at.
        key: random key.
        like: joint distribution of parameters (and covariates that are parameters), from `fit_joint` of real
            or published patients. Parameters that it lacks come from their priors, or keep their defaults.
        plausible: output -> (low, high). What it names takes the place of the range that the model declares
            of that output, and None lifts it; the other outputs of the record keep their declared ranges.
        accept: (params of one patient, output -> (times,)) -> bool, a further condition.
        batch: patients simulated at a time, at least 1.

    Raises:
        ValueError: n or batch is below 1, a name is no output or parameter of the model, or hardly any
            patient is plausible: the message says which condition refused how many.
    """
    if n < 1:
        raise ValueError(f"virtual_population needs n of at least 1, found {n}")
    if batch < 1:
        raise ValueError(f"virtual_population needs batch of at least 1, found {batch}")
    ranges = _ranges(model, record, plausible)
    kept: list[Any] = []
    refused, drawn, found = dict.fromkeys(("solver", *ranges, "accept"), 0), 0, 0
    while found < n:
        key, now = jax.random.split(key)
        p = with_known(_draw(model, batch, like, now), _for_all(record, batch))
        judged = _judge(model, tuple(ranges.items()), accept, p, record)
        verdicts = {name: np.asarray(each) for name, each in judged.items()}
        good = np.all(list(verdicts.values()), axis=0)
        kept.append(jax.tree.map(lambda leaf, good=good: np.asarray(leaf)[good], p))
        for name, passed in verdicts.items():
            refused[name] += int(np.sum(~passed))
        drawn, found = drawn + batch, found + int(np.sum(good))
        if drawn >= 10 * batch and found < LEAST * drawn:
            told = ", ".join(f"{name}: {count}" for name, count in refused.items() if count)
            raise ValueError(
                f"{model.name}: {found} of {drawn} virtual patients are plausible; refused by {told}"
            )
    whole = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:n]), *kept)
    return VirtualPopulation(whole, drawn, found / drawn, {k: v for k, v in refused.items() if v})


def _for_all(record: Record, count: int) -> Record:
    """What is known, for each of so many patients."""
    known = {name: jnp.full(count, value, float) for name, value in record.known.items()}
    return Record(record.inputs, record.observations, known, record.t0)


def _ranges(
    model: Any, record: Record, plausible: Mapping[str, tuple[float, float] | None] | None
) -> dict[str, tuple[float, float]]:
    outputs = model.schema().outputs
    declared = {
        name: q.plausible for name, q in outputs.items() if q.plausible and name in record.observations
    }
    check_names(model.name, "output", plausible or {}, outputs)
    check_names("the record", "channel", plausible or {}, record.observations)
    merged = declared | dict(plausible or {})
    return {name: limits for name, limits in merged.items() if limits is not None}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _judge(model: Any, ranges: tuple, accept: Any, patients: Any, record: Record) -> dict[str, Any]:
    """Condition -> whether each patient meets it."""

    def verdicts(p: Any) -> dict[str, Any]:
        y = expect(model, p, record)
        seen = {name: getattr(y, name) for name in record.observations}
        found = {"solver": jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in seen.values()]))}
        for name, (low, high) in ranges:
            found[name] = jnp.all((seen[name] >= low) & (seen[name] <= high))
        return found | ({} if accept is None else {"accept": jnp.asarray(accept(p, seen))})

    return jax.vmap(verdicts)(patients)


def _draw(model: Any, count: int, like: Joint | None, key: Any) -> Any:
    p = model.params()
    key_joint, *keys = jax.random.split(key, 1 + len(quantities(p)))
    drawn: dict[str, Any] = {
        name: q.prior.distribution().sample(each, (count,))
        for each, (name, q) in zip(keys, quantities(p).items(), strict=True)
        if q.prior is not None
    }
    if like is not None:
        check_names(model.name, "parameter", like.names, quantities(p))
        drawn |= like.draw(count, key=key_joint)
    known = jax.tree.map(
        lambda leaf: jnp.broadcast_to(jnp.asarray(leaf, float), (count, *jnp.shape(leaf))), p
    )
    return assign(known, {name: jnp.asarray(value, float) for name, value in drawn.items()})
