"""Scores of probabilities of an event within a horizon, where some patients are lost before it ends."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from event_studies import Study

RESAMPLES = 400


def censoring_weights(end: np.ndarray, happened: np.ndarray, start: float, horizon: float) -> tuple:
    """Those at risk at `start`, whether the event came within the horizon, and weights; 0 where not known."""
    risk = end > start
    left = np.where(risk, end - start, np.inf)
    times = np.unique(left[risk & ~happened])
    at_risk = np.array([np.sum(risk & (left >= t)) for t in times])
    gone = np.array([np.sum(risk & ~happened & (left == t)) for t in times])
    steps = np.cumprod(np.append(1.0, 1.0 - gone / np.maximum(at_risk, 1)))

    def free(t: np.ndarray, side: Any) -> np.ndarray:
        return steps[np.searchsorted(times, t, side=side)]

    event = risk & happened & (left <= horizon)
    beyond = risk & ~event & (left >= horizon)
    weight = np.where(event, 1.0 / np.maximum(free(np.minimum(left, horizon), "left"), 1e-6), 0.0)
    weight = np.where(beyond, 1.0 / np.maximum(free(np.full_like(left, horizon), "left"), 1e-6), weight)
    return risk, event.astype(float), weight


def logistic(x: np.ndarray, y: np.ndarray, w: np.ndarray, ridge: float, offset: Any = 0.0) -> np.ndarray:
    """Coefficients of a weighted logistic regression, intercept first and not shrunk, by Newton's method."""
    x = np.column_stack([np.ones(len(y)), x])
    penalty = ridge * np.eye(x.shape[1])
    penalty[0, 0] = 1e-6
    beta = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1.0 / (1.0 + np.exp(-np.clip(x @ beta + offset, -30, 30)))
        slope = x.T @ (w * (y - p)) - penalty @ beta
        step = np.linalg.solve((x * (w * p * (1 - p) + 1e-12)[:, None]).T @ x + penalty, slope)
        beta = beta + np.clip(step, -2.0, 2.0)
        if np.max(np.abs(step)) < 1e-8:
            break
    return beta


@dataclass(frozen=True)
class Scored:
    """Forecasts of those at risk at one landmark, with all that is needed to score a resample at once."""

    y: np.ndarray
    weight: np.ndarray
    p: dict[str, np.ndarray]
    higher: dict[str, np.ndarray]

    def auc(self, name: str, count: np.ndarray) -> float:
        """Cumulative sensitivity, dynamic specificity (Blanche et al. 2013, doi 10.1002/sim.5958)."""
        w = count * self.weight
        ill, well = w[self.y == 1], w[self.y == 0]
        return float(ill @ self.higher[name] @ well / (ill.sum() * well.sum()))

    def brier(self, name: str, count: np.ndarray) -> float:
        w = count * self.weight
        return float(np.sum(w * (self.y - self.p[name]) ** 2) / np.sum(w))

    def intercept(self, name: str, count: np.ndarray) -> float:
        """Log odds that the outcome is above what was forecast, on average; 0 is right."""
        none = np.empty((len(self.y), 0))
        return float(logistic(none, self.y, count * self.weight, 0.0, logit(self.p[name]))[0])

    def slope(self, name: str, count: np.ndarray) -> float:
        """Of the outcome on the log odds forecast; below 1, forecasts are too far apart."""
        return float(logistic(logit(self.p[name])[:, None], self.y, count * self.weight, 0.0)[1])

    def mean_forecast(self, name: str, count: np.ndarray) -> float:
        return float(np.sum(count * self.weight * self.p[name]) / np.sum(count * self.weight))


MEASURES = {"auc": Scored.auc, "brier": Scored.brier, "intercept": Scored.intercept, "slope": Scored.slope}


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-4, 1 - 1e-4)
    return np.log(p / (1 - p))


def scored_at(study: Study, made: dict[str, np.ndarray]) -> list[tuple[np.ndarray, Scored]]:
    """At each landmark the patients whose outcome is known, and their forecasts."""
    end, happened = study.outcome()
    found = []
    for j, landmark in enumerate(study.landmarks):
        _, y, weight = censoring_weights(end, happened, landmark, study.horizon)
        rows = np.flatnonzero(weight > 0)
        p = {name: each[rows, j] for name, each in made.items()}
        y = y[rows]
        higher = {
            name: (v[y == 1][:, None] > v[y == 0]) + 0.5 * (v[y == 1][:, None] == v[y == 0])
            for name, v in p.items()
        }
        found.append((rows, Scored(y, weight[rows], p, higher)))
    return found


def measured(study: Study, made: dict[str, np.ndarray], rivals: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Scores by landmark and on average, with 95 % intervals, and differences from the rivals."""
    at = scored_at(study, made)
    rng, n = np.random.default_rng(seed), len(study.people)
    counts = [np.ones(n), *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(RESAMPLES))]
    table: dict[str, np.ndarray] = {}
    for name in made:
        table[name] = np.array(
            [[[f(s, name, c[rows]) for f in MEASURES.values()] for rows, s in at] for c in counts]
        )
    by_name: dict[str, Any] = {}
    for name, values in table.items():
        landmarks = {
            f"{landmark:g} y": {m: told(values[:, j, k]) for k, m in enumerate(MEASURES)}
            for j, landmark in enumerate(study.landmarks)
        }
        mean = {m: told(values[..., k].mean(axis=1)) for k, m in enumerate(MEASURES)}
        less = {
            f"minus {rival}": {
                m: told((values - table[rival])[..., k].mean(axis=1)) for k, m in enumerate(("auc", "brier"))
            }
            for rival in rivals
            if rival != name
        }
        by_name[name] = {"landmarks": landmarks, "mean": mean} | less
    ones = [np.ones(len(rows)) for rows, _ in at]
    at_risk = {
        f"{landmark:g} y": {
            "at_risk": int(np.sum(study.outcome()[0] > landmark)),
            "events": int(s.y.sum()),
            "outcome_known": len(s.y),
            "observed": float(np.sum(s.weight * s.y) / np.sum(s.weight)),
            "brier_of_the_same_for_all": float(
                np.prod([np.average(s.y == k, weights=s.weight) for k in (0, 1)])
            ),
            "mean_forecast": {name: s.mean_forecast(name, one) for name in made},
        }
        for landmark, (_, s), one in zip(study.landmarks, at, ones, strict=True)
    }
    return {"at": at_risk, "models": by_name}


def told(values: np.ndarray) -> list[float]:
    """The value, and the ends of its 95 % interval over resamples."""
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return [float(values[0]), float(low), float(high)]


def groups(study: Study, made: np.ndarray) -> np.ndarray:
    """Mean forecast and weighted share of events in fifths of the forecasts of all landmarks: (fifth, 2)."""
    parts = scored_at(study, {"": made})
    p, y, w = (np.concatenate(x) for x in zip(*((s.p[""], s.y, s.weight) for _, s in parts), strict=True))
    fifths = np.array_split(np.argsort(p), 5)
    return np.array([(np.average(p[i], weights=w[i]), np.average(y[i], weights=w[i])) for i in fifths])
