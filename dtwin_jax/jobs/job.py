"""Job files: which model, whose data, what is believed beforehand, and what to do with it."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from dtwin_jax.inference.laplace import Laplace
from dtwin_jax.inference.nuts import Nuts
from dtwin_jax.inference.svi import Svi
from dtwin_jax.jobs.checks import job_faults, model_of
from dtwin_jax.jobs.document import Document, Section, read_document, validate
from dtwin_jax.jobs.plan import Plan, plan_faults
from dtwin_jax.jobs.values import MeasureValue, PriorOrNumber, PriorValue


class DataSection(Section):
    """The table of patients; all but the last four as `read_table` takes them.

    Attributes:
        file: relative to the job file; or a folder of Parquet files, each with all rows of its patients.
        form: `"long"` or `"wide"`, where the header does not say.
        rename: name in the file -> name in the model.
        ignore: columns, or names in one, to leave out.
        units: column or name -> unit, where the file states none.
        covariates: name -> unit in the file.
        inputs: NONMEM compartment -> input, or input -> `"steps"` or `"sampled"`.
        t0: when the model's initial state holds; by default 0, or an earlier first dose or measurement.
        patients: only these; all by default.
        start: written `from`. Output -> time before which its measurements are not used.
        until: output -> time after which its measurements are not used.
    """

    file: str
    form: Literal["long", "wide"] | None = None
    rename: dict[str, str] = Field(default_factory=dict)
    ignore: list[str] = Field(default_factory=list)
    units: dict[str, str] = Field(default_factory=dict)
    covariates: dict[str, str] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    t0: MeasureValue = None
    patients: list[str] = Field(default_factory=list)
    start: dict[str, MeasureValue] = Field(default_factory=dict, alias="from")
    until: dict[str, MeasureValue] = Field(default_factory=dict)


class CovariateSection(Section):
    """The effect of a covariate, as `Covariate` has it; `unit` by default that of the data."""

    parameter: str
    name: str
    unit: str = ""
    reference: float
    coefficient: PriorOrNumber
    power: bool = True


class MixtureSection(Section):
    """Subpopulations, as `Mixture` has them."""

    vary: list[str] | dict[str, PriorOrNumber]
    classes: int = Field(2, ge=2)
    concentration: float = Field(1.0, gt=0)


class PopulationSection(Section):
    """What varies between patients, as `Population` has it, and between occasions of the table (OCC)."""

    vary: list[str] | dict[str, PriorValue]
    covariates: list[CovariateSection] = Field(default_factory=list)
    correlation: float | None = Field(None, gt=0)
    centred: bool | None = None
    blocks: list[list[str]] = Field(default_factory=list)
    occasions: list[str] | dict[str, PriorValue] = Field(default_factory=list)
    boxcox: list[str] | dict[str, PriorOrNumber] = Field(default_factory=list)
    mixture: MixtureSection | None = None


class ForecastSection(Plan):
    """A plan, and the file of its forecast, relative to the folder of the result."""

    file: str | None = None


class ScoreSection(Section):
    """How good forecasts are: the `last` measurements of each patient are predicted without being seen."""

    last: int = Field(1, ge=1)


class ReportSection(Section):
    """The report's file, relative to the folder of the result, and its title."""

    file: str | None = None
    title: str | None = None


def _section_of(method: type, **other: Any) -> type[Section]:
    """The settings of a method, with its defaults; whole numbers from 1, shares between 0 and 1."""
    limits: dict[Any, Any] = {int: {"ge": 1}, float: {"gt": 0, "lt": 1}, bool: {}}
    fields: dict[str, Any] = {
        field.name: (field.type, Field(field.default, **limits.get(field.type, {})))
        for field in dataclasses.fields(method)
        if field.name not in other
    }
    return create_model(f"{method.__name__}Section", __base__=Section, **fields, **other)


SamplerSection = _section_of(Nuts)
# Who is not trusted is sampled as `sampler` says, or not at all.
LaplaceSection = _section_of(Laplace, fallback=(bool, True))
SviSection = _section_of(Svi)


class ShardsSection(Section):
    """How a cohort is cut, when it is calibrated by shards: so many patients in each."""

    patients: int = Field(default=256, ge=1)


class JobFile(Section):
    """A job file as it is written; absent `population`: every patient is calibrated alone."""

    model: str
    seed: int = Field(0, ge=0, lt=2**63)
    output: str | None = None
    data: DataSection
    priors: dict[str, PriorOrNumber] = Field(default_factory=dict)
    population: PopulationSection | None = None
    sampler: SamplerSection = SamplerSection()  # pyright: ignore[reportInvalidTypeForm]
    laplace: LaplaceSection | None = None  # pyright: ignore[reportInvalidTypeForm]
    svi: SviSection | None = None  # pyright: ignore[reportInvalidTypeForm]
    forecast: ForecastSection | None = None
    score: ScoreSection | None = None
    report: ReportSection | None = None
    shards: ShardsSection = ShardsSection()


@dataclass(frozen=True)
class Job:
    """A job file that was found to be right.

    Attributes:
        document: the file, for messages.
        spec: what it says.
        predictor: the model that it names.
    """

    document: Document
    spec: JobFile
    predictor: Any

    def path(self, name: str) -> Path:
        """A path of the file, which is relative to the file."""
        return self.document.folder / name

    @property
    def result(self) -> Path:
        """Where the result goes: `output`, by default beside the job."""
        return self.path(self.spec.output or f"{Path(self.document.file).stem}.nc")

    @property
    def method(self) -> Nuts | Laplace | Svi:
        """How the job is calibrated: by NUTS, unless it has a section `laplace` or `svi`."""
        if self.spec.svi is not None:
            return Svi(**self.spec.svi.model_dump())
        sampler, section = Nuts(**self.spec.sampler.model_dump()), self.spec.laplace
        if section is None:
            return sampler
        fallback = sampler if section.fallback else None
        return Laplace(**section.model_dump() | {"fallback": fallback})


def read_job(path: str | os.PathLike[str]) -> Job:
    """A job file, checked as far as can be without reading the data.

    Raises:
        JobError: all that is wrong with it, one line each, with line number and key.
    """
    return job_of(read_document(path))


def job_of(document: Document) -> Job:
    """The job of a file that was read.

    Raises:
        JobError: as `read_job`.
    """
    spec, faults = validate(JobFile, document)
    predictor, unfound = model_of(document)
    faults += unfound + job_faults(document, predictor)
    if "forecast" in document.data and spec is None and isinstance(document.data["forecast"], dict):
        plan, _ = validate(ForecastSection, document, ("forecast",))
    else:
        plan = None if spec is None else spec.forecast
    if plan is not None and predictor is not None:
        faults += plan_faults(plan, predictor.schema(), ("forecast",))
    if faults or spec is None:
        raise document.error(faults)
    return Job(document, spec, predictor)
