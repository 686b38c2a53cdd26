"""A job made ready: its data read, and everything that `calibrate` and `forecast` take."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dtwin_jax.core.occasions import occasions_in
from dtwin_jax.core.predictor import check_cohort
from dtwin_jax.core.record import Cohort, Record, stack
from dtwin_jax.inference.covariate import Covariate, linear, power
from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.mixture import Mixture
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.occasions import Occasions
from dtwin_jax.inference.population import Population, density_of
from dtwin_jax.inference.svi import Svi
from dtwin_jax.jobs.checks import covariate_units
from dtwin_jax.jobs.document import Fault
from dtwin_jax.jobs.job import Job
from dtwin_jax.jobs.plan import planned
from dtwin_jax.jobs.reading import checked, read_all
from dtwin_jax.twin.assess import leave_last_out


@dataclass(frozen=True)
class HeldOut:
    """Patients without their last measurements, and those measurements.

    Attributes:
        cohort: to calibrate on.
        record: what is to be predicted.
        last: how many of each channel and patient.
    """

    cohort: Cohort
    record: Record
    last: int


@dataclass(frozen=True)
class Study:
    """The arguments of `calibrate`, and the plan if the job has one.

    Attributes:
        f: the predictor, or a `Population` of it.
        cohort: the patients.
        priors: overrides.
        method: how.
        seed: of all random keys.
        units: of what is known of the patients.
        plan: the planned record, None if the job has no forecast.
        held_out: None if the job has no score.
    """

    f: Any
    cohort: Cohort
    priors: dict[str, Any]
    method: Nuts | Laplace | Svi
    seed: int
    units: dict[str, str]
    plan: Record | None
    held_out: HeldOut | None = None

    @property
    def key(self) -> Any:
        """The random key of the calibration."""
        return jax.random.key(self.seed)


def prepare(job: Job) -> Study:
    """Read the data of a job and check them against the model.

    Raises:
        TableError: what is wrong with the table.
        JobError: what the job says that the data do not have.
    """
    spec = job.spec
    records = read_all(job)
    # What can be said only of the data and the priors together is said of the place that it is about.
    cohort = checked(job, ("data", "file"), lambda: stack(records))
    f, priors = population_of(job, cohort), dict(spec.priors)
    checked(job, ("data", "file"), lambda: check_cohort(job.predictor, cohort))
    checked(job, ("priors",), lambda: density_of(f, priors, tuple(cohort.record.known)))
    _check_covariates(job, cohort)
    plan = None
    if spec.forecast is not None:
        section = spec.forecast
        plan = checked(job, ("forecast",), lambda: planned(section, cohort, job.predictor.schema()))
    units = covariate_units(dict(spec.data.covariates), job.predictor.schema())
    units = {name: unit for name, unit in units.items() if name in cohort.record.known}
    return Study(f, cohort, priors, job.method, spec.seed, units, plan, _held_out(job, cohort))


def _held_out(job: Job, cohort: Cohort) -> HeldOut | None:
    if job.spec.score is None:
        return None
    last = job.spec.score.last
    kept, record = leave_last_out(cohort, last)
    if not any(np.any(series.mask) for series in record.observations.values()):
        what = f"no patient has more than {last} measurements of a channel, so nothing can be left out"
        raise job.document.error([Fault(("score", "last"), what)])
    return HeldOut(kept, record, last)


def population_of(job: Job, cohort: Cohort) -> Any:
    """The predictor of a job, or its `Population` with as many occasions as `cohort` has."""
    section = job.spec.population
    if section is None:
        return job.predictor
    units = covariate_units(dict(job.spec.data.covariates), job.predictor.schema())
    covariates = tuple(
        Covariate(
            row.parameter,
            row.name,
            units[row.name],
            row.reference,
            coefficient=row.coefficient,
            form=power if row.power else linear,
        )
        for row in section.covariates
    )
    occasions = None
    if section.occasions:
        count = occasions_in(cohort.record.known)
        if count < 2:
            path = ("population", "occasions")
            raise job.document.error(
                [Fault(path, "no patient of the table has a second one", "a column OCC")]
            )
        occasions = Occasions(count, _plain(section.occasions))
    mixed = section.mixture

    def made() -> Population:
        mixture = None if mixed is None else Mixture(_plain(mixed.vary), mixed.classes, mixed.concentration)
        blocks, shapes = tuple(map(tuple, section.blocks)), _plain(section.boxcox)
        how = (covariates, section.correlation, section.centred, blocks, occasions, shapes, mixture)
        return Population(job.predictor, _plain(section.vary), *how)

    return checked(job, ("population",), made)


def _plain(vary: Any) -> Any:
    return dict(vary) if isinstance(vary, dict) else tuple(vary)


def _check_covariates(job: Job, cohort: Cohort) -> None:
    """A covariate is known of every patient, and positive where its effect is a power."""
    section = job.spec.population
    faults = []
    for i, row in enumerate(section.covariates if section is not None else []):
        path = ("population", "covariates", i, "name")
        if row.name not in cohort.record.known:
            faults.append(Fault(path, f"the table has no values of {row.name!r}"))
            continue
        value = np.asarray(cohort.record.known[row.name])
        if row.power and not np.all(value > 0):
            who = cohort.ids[int(np.argmax(value <= 0))]
            faults.append(Fault(path, f"{row.name!r} of patient {who!r} is not positive", "power = false"))
        if row.power and not row.reference > 0:
            faults.append(
                Fault(
                    (*path[:-1], "reference"), f"found {row.reference}", "a positive number, or power = false"
                )
            )
    if faults:
        raise job.document.error(faults)
