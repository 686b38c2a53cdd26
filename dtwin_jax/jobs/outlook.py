"""What is told of patients that are followed: forecasts from their twins, alarms, and how the twins are."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from dtwin_jax.core.files import replacing
from dtwin_jax.core.record import Record, Series
from dtwin_jax.jobs.alarms import MOST_UNSOLVED, Alarm, events_of
from dtwin_jax.jobs.ward import BLOCK, State, Ward, inputs_of, rows_of, twins_of
from dtwin_jax.twin.live import forecast_live

QUANTILES = (0.05, 0.5, 0.95)
# Of the key of forecasts, the same for all: what of a forecast changes is what has been learned.
_USE = 2**31 - 1
FORECAST, ALARMS, REFUSED, STATUS = "forecast.csv", "alarms.jsonl", "refused.jsonl", "status.csv"


@dataclass(frozen=True)
class Plan:
    """What is asked of the forecasts.

    Attributes:
        ahead: (n,) times of predictions, from each patient's last measurement on.
        alarms: the rules.
    """

    ahead: np.ndarray
    alarms: tuple[Alarm, ...] = ()

    def channels(self, ward: Ward) -> tuple[str, ...]:
        """Those followed, and those of alarms."""
        return tuple(dict.fromkeys([*ward.channels, *(alarm.channel for alarm in self.alarms)]))


@dataclass(frozen=True)
class Outlook:
    """Forecasts in short, over the draws that could be solved; NaN of a patient with too few of them.

    Attributes:
        bands: channel -> (patient, n, 4) mean and quantiles, with measurement error.
        chances: rule -> (patient,) probability.
        failed: (patient,) share of draws that could not be solved; 1 where the twin has stayed behind the
            patient's last measurement. Draws are drawn by weight, so it is the share of the weight.
    """

    bands: dict[str, np.ndarray]
    chances: dict[str, np.ndarray]
    failed: np.ndarray


def outlook_of(
    ward: Ward, state: State, plan: Plan, before: Outlook | None = None, changed: Iterable[int] = ()
) -> Outlook:
    """The forecasts of a state.

    Args:
        ward: what is followed.
        state: where the stream is.
        plan: what is asked.
        before: forecasts that are right but for the patients `changed`; None makes all anew.
        changed: positions of patients.
    """
    count, size = len(ward.ids), len(plan.ahead)
    if before is None:
        changed = range(count)
        before = Outlook(
            {name: np.zeros((count, size, 4)) for name in plan.channels(ward)},
            {alarm.name: np.zeros(count) for alarm in plan.alarms},
            np.zeros(count),
        )
    bands = {name: band.copy() for name, band in before.bands.items()}
    chances = {name: chance.copy() for name, chance in before.chances.items()}
    failed = before.failed.copy()
    for rows, drawn in _forecasts(ward, state, plan, sorted(changed)):
        finite = np.all([np.all(np.isfinite(value), axis=2) for value in drawn.values()], axis=0)
        failed[rows] = np.where(_behind(state)[rows], 1.0, 1.0 - np.mean(finite, axis=0))
        for at, patient in enumerate(rows.tolist()):
            sound = {name: value[finite[:, at], at] for name, value in drawn.items()}
            enough = failed[patient] <= MOST_UNSOLVED
            for name, value in sound.items():
                bands[name][patient] = _band(value) if enough else np.nan
            for alarm in plan.alarms:
                chances[alarm.name][patient] = (
                    alarm.chance(sound[alarm.channel], plan.ahead) if enough else np.nan
                )
    return Outlook(bands, chances, failed)


def _band(drawn: np.ndarray) -> np.ndarray:
    """(n, 4) mean and quantiles of (draw, n)."""
    return np.stack([np.mean(drawn, axis=0), *np.quantile(drawn, QUANTILES, axis=0)], axis=1)


def _behind(state: State) -> np.ndarray:
    """(patient,) whether the twin could not be carried to the patient's last measurement."""
    last = np.full(len(state.twins.time), -np.inf)
    taken = state.taken[~state.taken["dose"]]
    np.maximum.at(last, taken["patient"], taken["time"])
    return last > state.twins.time


def _forecasts(
    ward: Ward, state: State, plan: Plan, changed: Sequence[int]
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Positions of patients, and channel -> (draw, patient, n) drawn for them."""
    if not changed:
        return
    inputs, root = inputs_of(ward, state), jax.random.fold_in(ward.key, _USE)
    for first in range(0, len(changed), BLOCK):
        rows = rows_of(ward, changed[first : first + BLOCK])
        twins = twins_of(state, rows)
        series = Series(twins.time[:, None] + plan.ahead[None, :])
        given = jax.tree.map(lambda leaf, rows=rows: np.asarray(leaf)[rows], inputs)
        planned = Record(given, dict.fromkeys(plan.channels(ward), series), {}, twins.time)
        keys = jax.vmap(lambda row: jax.random.fold_in(root, row))(rows)
        drawn = forecast_live(ward.model, twins, planned, keys, state.twins.u.shape[1])
        yield rows, {name: np.asarray(value) for name, value in drawn.items()}


def alarmed(ward: Ward, state: State, plan: Plan, outlook: Outlook) -> State:
    """The state with the alarms that have begun or ended."""
    standing, told = set(state.standing), []
    found = events_of(standing, plan.alarms, outlook.chances, outlook.failed, ward.ids)
    times = dict(zip(ward.ids, state.twins.time.tolist(), strict=True))
    unsolved = dict(zip(ward.ids, outlook.failed.tolist(), strict=True))
    for patient, rule, what, chance in found:
        change = standing.add if what == "begins" else standing.discard
        change((patient, rule))
        told.append(
            {"patient": patient, "rule": rule, "alarm": what, "probability": chance, "time": times[patient]}
            | {"unsolved": unsolved[patient]}
        )
    looked = (state.step, len(state.taken))
    return replace(state, told=looked, standing=tuple(sorted(standing)), events=(*state.events, *told))


def is_due(state: State) -> bool:
    """Whether something was taken since the alarms were looked at."""
    return state.told != (state.step, len(state.taken))


def write(folder: Path, ward: Ward, state: State, plan: Plan, outlook: Outlook) -> None:
    """Forecasts, alarms, refusals and the twins' status, each file whole or as it was."""
    _write_table(folder / FORECAST, _forecast_rows(ward, state, plan, outlook))
    _write_table(folder / STATUS, _status_rows(ward, state, outlook))
    for name, told in ((ALARMS, state.events), (REFUSED, state.refused)):
        with replacing(folder / name) as draft:
            lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in told]
            draft.write_text("".join(lines), encoding="utf-8")


def _write_table(path: Path, rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as draft, open(draft, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def _forecast_rows(ward: Ward, state: State, plan: Plan, outlook: Outlook) -> Iterator[Sequence[str]]:
    yield ("patient", "channel", "time", "mean", *(f"q{100 * q:02.0f}" for q in QUANTILES))
    for i, patient in enumerate(ward.ids):
        times = [_number(t) for t in state.twins.time[i] + plan.ahead]
        for name, band in outlook.bands.items():
            for time, row in zip(times, band[i].tolist(), strict=True):
                yield (patient, name, time, *map(_number, row))


def _status_rows(ward: Ward, state: State, outlook: Outlook) -> Iterator[Sequence[str]]:
    yield ("patient", "time", "facts", "effective", "renewed", "lost", "unsolved")
    facts = np.bincount(state.taken["patient"], minlength=len(ward.ids))
    weight = np.exp(state.twins.log_weight)
    effective = np.sum(weight, axis=1) ** 2 / np.sum(weight**2, axis=1)
    for i, patient in enumerate(ward.ids):
        numbers = (state.twins.renewed[i], state.twins.lost[i])
        head = (patient, _number(state.twins.time[i]), str(facts[i]), f"{effective[i]:.1f}")
        yield (*head, *(str(int(n)) for n in numbers), f"{outlook.failed[i]:.3g}")


def _number(value: float) -> str:
    """Ten digits; nothing for NaN, which is no forecast."""
    return "" if np.isnan(value) else f"{value:.10g}"
