"""What varies between patients: random effects on each parameter's own scale, and covariates."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.predictor import Predictor
from dtwin_jax.core.prior import Prior, halfnormal
from dtwin_jax.core.quantity import check_names, quantities
from dtwin_jax.core.record import Cohort, Record
from dtwin_jax.inference import boxcox, scatter
from dtwin_jax.inference.covariate import Covariate, check_covariates
from dtwin_jax.inference.density import Override, estimated, patient_log_likelihood
from dtwin_jax.inference.devices import Spread, spread_log_likelihood
from dtwin_jax.inference.mixture import Mixture
from dtwin_jax.inference.occasions import Occasions

DEFAULT_OMEGA = halfnormal(0.5)


@dataclass(frozen=True)
class Population:
    """Patients who share typical values and scatter about them.

    A varying parameter is, on the unbounded scale of its prior's support (the log for positive ones), the
    typical value plus covariate effects plus a normal random effect with sd `omega`.

    Attributes:
        predictor: the model of one patient.
        vary: the parameters that vary: names, or name -> prior of omega (default half-normal(0.5)).
        covariates: effects of what is known of a patient.
        correlation: concentration of an LKJ prior over the correlations of the random effects; None for
            independent effects.
        blocks: groups of names whose effects are correlated with each other, and with no others; by default,
            with a `correlation`, all are.
        occasions: what varies between occasions of a patient besides.
        boxcox: parameters whose random effects are skewed (`inference.boxcox`): names, or name -> the shape
            lambda, a number (known) or a prior (estimated; by default normal(0, 1)).
        mixture: subpopulations that differ in typical values, of other parameters than `boxcox` has: data
            hardly tell two classes from a skewed scatter. `Svi` cannot take one.
        centred: whether random effects are sampled around the typical value (better where a patient's data
            alone pin the parameters down) or scaled from a standard normal (better for sparse data). None
            lets `calibrate` find the best mixture for each parameter in its warm-up; correlated
            effects are then scaled. The posterior is the same.
    """

    predictor: Predictor
    vary: Any
    covariates: tuple[Covariate, ...] = ()
    correlation: float | None = None
    centred: bool | None = None
    blocks: tuple[tuple[str, ...], ...] = ()
    occasions: Occasions | None = None
    boxcox: Any = ()
    mixture: Mixture | None = None

    def __post_init__(self):
        vary = self.vary if isinstance(self.vary, Mapping) else dict(_pairs(self.vary))
        known = quantities(self.predictor.params())
        check_names(self.predictor.name, "parameter", vary, known)
        for covariate in self.covariates:
            check_names("vary", "parameter", [covariate.parameter], vary)
        _check_blocks(self.blocks, self.correlation, vary)
        if self.occasions is not None:
            check_names("vary", "parameter", self.occasions.names, vary)
        object.__setattr__(self, "vary", tuple(vary.items()))
        object.__setattr__(self, "covariates", tuple(self.covariates))
        object.__setattr__(self, "blocks", tuple(tuple(block) for block in self.blocks))
        object.__setattr__(self, "boxcox", boxcox.shapes_of(self.boxcox))
        check_names("vary", "parameter", dict(self.boxcox), vary)
        if self.mixture is not None:
            check_names("vary", "parameter", self.mixture.names, vary)
            if both := set(self.mixture.names) & set(dict(self.boxcox)):
                raise ValueError(
                    f"{sorted(both)[0]!r} is in the mixture and in boxcox: leave one of the two out"
                )

    @property
    def name(self) -> str:
        """The predictor's name."""
        return self.predictor.name

    @property
    def varying(self) -> tuple[str, ...]:
        """Names of the parameters that vary."""
        return tuple(name for name, _ in self.vary)

    @property
    def together(self) -> tuple[tuple[int, ...], ...]:
        """Places of the effects that are correlated, block by block, in order."""
        if self.correlation is None:
            return ()
        blocks = self.blocks or (self.varying,)
        return tuple(tuple(sorted(self.varying.index(name) for name in block)) for block in blocks)

    @property
    def shapes(self) -> tuple[tuple[str, Prior], ...]:
        """Label and prior of the estimated shapes of effects."""
        return tuple((boxcox.label(name), one) for name, one in self.boxcox if isinstance(one, Prior))

    @property
    def classes(self) -> int:
        """How many subpopulations there are."""
        return 1 if self.mixture is None else self.mixture.classes

    @property
    def shifts(self) -> tuple[tuple[str, Prior], ...]:
        """Label and prior of the estimated shifts between subpopulations."""
        return () if self.mixture is None else self.mixture.shifts

    @property
    def changing(self) -> tuple[tuple[str, str], ...]:
        """Names of parameters in each occasion, and of the parameter."""
        return () if self.occasions is None else self.occasions.columns

    @property
    def solved(self) -> Predictor:
        """The predictor of a patient with all occasions."""
        return self.predictor if self.occasions is None else self.occasions.of(self.predictor)


def _check_blocks(blocks: Any, correlation: float | None, vary: Any) -> None:
    if blocks and correlation is None:
        raise ValueError("blocks: effects are correlated only with a correlation, such as 1.0")
    names = [name for block in blocks for name in block]
    check_names("vary", "parameter", names, vary)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"blocks: {name!r} is in more than one place")


def _pairs(vary: Any) -> Iterable[tuple[str, Prior]]:
    if isinstance(vary, str):
        raise ValueError(f"vary: expected names or a mapping, found the text {vary!r}")
    return [(one, DEFAULT_OMEGA) if isinstance(one, str) else one for one in vary]


@dataclass(frozen=True)
class PopulationDensity:
    """The NumPyro model of a population; hashable, so that equal structures share compiled code."""

    population: Population
    priors: tuple[tuple[str, Prior], ...]

    # Sites that serve the sampler, and say nothing to a reader beside what is derived from them.
    latent: ClassVar[tuple[str, ...]] = (*scatter.LATENT, "occasion effects")
    climb: ClassVar[int] = 100

    @property
    def held(self) -> tuple[str, ...]:
        """Sites that a climb leaves alone: it would run into the spike where all patients are equal."""
        occasions = self.population.occasions
        between = () if occasions is None else occasions.names
        return tuple(f"omega_{n}" for n in self.population.varying) + tuple(f"gamma_{n}" for n in between)

    @property
    def predictor(self) -> Predictor:
        """The model of one patient."""
        return self.population.solved

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters that the likelihood depends on."""
        return tuple(name for name, _ in (*self.priors, *self.population.changing))

    @property
    def individual(self) -> tuple[str, ...]:
        """Parameters that each patient has a value of."""
        return self.population.varying + tuple(name for name, _ in self.population.changing)

    def __call__(
        self, base: Any, record: Record | Spread, centring: Any = None, likelihood: bool = True
    ) -> None:
        """Sample sites of typical values, scatter and effects; the likelihood of all patients as a factor.

        Args:
            base: parameters with the known ones filled in.
            record: of all patients, stacked; or spread over devices, which then share the work.
            centring: (effect,) between 0, effects scaled from a standard normal, and 1, sampled around the
                typical value; 1 if None, and 0 for those that are not `free`. It changes the sampler's
                coordinates only. For correlated effects the population's own `centred` decides.
            likelihood: False for prior draws and deterministic sites only.
        """
        import numpyro

        names = self.names
        typical = self._typical()
        shifts = self._shifts(record)
        count = record.t0.shape[0]
        individual = self._individual(typical, shifts, count, centring)
        columns = [
            individual[name] if name in individual else jnp.broadcast_to(typical[name], (count,))
            for name in names
        ]
        if likelihood:
            theta = jnp.stack(columns, axis=-1)
            numpyro.factor("log_likelihood", self._log_likelihood(names, base, theta, record))

    def _log_likelihood(self, names: tuple[str, ...], base: Any, theta: Any, record: Record | Spread) -> Any:
        if isinstance(record, Spread):
            return spread_log_likelihood(self.predictor, names, base, theta, record)
        one = lambda row, patient: patient_log_likelihood(  # noqa: E731
            self.predictor, names, base, row, patient
        )
        return jnp.sum(jax.vmap(one)(theta, record))

    def _typical(self) -> dict[str, Any]:
        import numpyro

        varying = self.population.varying
        return {
            name: numpyro.sample(f"{name}_pop" if name in varying else name, prior.distribution())
            for name, prior in self.priors
        }

    def _shifts(self, record: Record | Spread) -> dict[str, Any]:
        import numpyro

        shifts: dict[str, Any] = dict.fromkeys(self.population.varying, 0.0)
        for covariate in self.population.covariates:
            given = covariate.coefficient
            coefficient = (
                numpyro.sample(covariate.label, given.distribution()) if isinstance(given, Prior) else given
            )
            moved = covariate.shift(coefficient, record.known[covariate.name])
            shifts[covariate.parameter] = shifts[covariate.parameter] + moved
        return shifts

    @property
    def bijectors(self) -> dict[str, Any]:
        """Parameter that varies -> what takes it from its unbounded scale to its own."""
        import numpyro.distributions as dist

        prior = dict(self.priors)
        return {name: dist.biject_to(prior[name].distribution().support) for name in self.population.varying}

    @property
    def probabilities(self) -> tuple[str, ...]:
        """What the probabilities of the classes but the first are called, of each patient."""
        return () if self.population.mixture is None else self.population.mixture.probabilities

    @property
    def free(self) -> np.ndarray:
        """(effect,) 1 for those that may be centred, 0 for transformed ones, which never are."""
        shaped = dict(self.population.boxcox)
        return np.asarray([float(name not in shaped) for name in self.population.varying])

    def expected(self, values: dict[str, Any], record: Record) -> dict[str, Any]:
        """Mean of each varying parameter on its unbounded scale, from the named `values` of one draw."""
        from numpyro import handlers

        with handlers.block(), handlers.substitute(data=values):
            return self._centres(self._typical(), self._shifts(record))

    def _centres(self, typical: dict[str, Any], shifts: dict[str, Any]) -> dict[str, Any]:
        return {name: one.inv(typical[name]) + shifts[name] for name, one in self.bijectors.items()}

    def _individual(
        self, typical: dict[str, Any], shifts: dict[str, Any], count: int, centring: Any
    ) -> dict[str, Any]:
        import numpyro

        scales = {
            name: numpyro.sample(f"omega_{name}", omega.distribution())
            for name, omega in self.population.vary
        }
        bijector, centre = self.bijectors, self._centres(typical, shifts)
        mean = jnp.stack([jnp.broadcast_to(centre[name], (count,)) for name in scales], axis=-1)
        scale = jnp.stack(list(scales.values()))
        split = scatter.split(self.population.mixture, tuple(scales))
        if self.population.correlation is None:
            full = jnp.ones_like(scale) if centring is None else centring
            root = jnp.diag(scale)
            unbounded = scatter.independent(mean, scale, full * self.free, split)
        else:
            root = scatter.correlated_root(self.population.together, self.population.correlation, scale)
            unbounded = scatter.correlated(mean, root, bool(self.population.centred), split)
        if split is not None:
            scatter.tell_classes(split, unbounded - mean, root)
        if self.population.boxcox:
            values = {name: numpyro.sample(name, one.distribution()) for name, one in self.population.shapes}
            eta = boxcox.moved(self.population.boxcox, self.population.varying, values, unbounded - mean)
            unbounded = mean + eta
        found = {name: unbounded[:, i] for i, name in enumerate(scales)}
        scale_of = {name: name for name in found} | dict(self.population.changing)
        return {
            name: numpyro.deterministic(name, bijector[scale_of[name]](value))
            for name, value in (found | self._changed(found)).items()
        }

    def _changed(self, unbounded: dict[str, Any]) -> dict[str, Any]:
        """The parameters in each occasion on their unbounded scales, name -> (patient,)."""
        import numpyro

        occasions = self.population.occasions
        if occasions is None:
            return {}
        scales = {
            name: numpyro.sample(f"gamma_{name}", prior.distribution()) for name, prior in occasions.vary
        }
        columns = self.population.changing
        (count,) = unbounded[columns[0][1]].shape
        z: Any = numpyro.sample("occasion effects", scatter.standard((count, len(columns))))
        return {each: unbounded[name] + scales[name] * z[:, i] for i, (each, name) in enumerate(columns)}

    def hidden(self, shared: dict[str, Any]) -> dict[str, Any]:
        """Values of the population's own sites, with those that results tell of in another form (draw,)."""
        found = {name: value for name, value in shared.items() if name != "correlation"}
        if "correlation" in shared:
            found |= scatter.factors(self.population.together, shared["correlation"])
        mixture = self.population.mixture
        if mixture is not None and mixture.classes > 1:
            found |= scatter.shares_site([shared[name] for name in mixture.shares])
        return found


@dataclass(frozen=True)
class PatientDensity:
    """The NumPyro model of one patient alone."""

    predictor: Predictor
    priors: tuple[tuple[str, Prior], ...]

    latent: ClassVar[tuple[str, ...]] = ()
    climb: ClassVar[int] = 100
    held: ClassVar[tuple[str, ...]] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all parameters that the likelihood depends on."""
        return self.individual

    @property
    def individual(self) -> tuple[str, ...]:
        """Parameters that each patient has a value of: all."""
        return tuple(name for name, _ in self.priors)

    def __call__(self, base: Any, record: Record, centring: None = None, likelihood: bool = True) -> None:
        """Sample sites of the parameters; the likelihood as a factor. There are no effects to centre."""
        import numpyro

        names = tuple(name for name, _ in self.priors)
        drawn = [numpyro.sample(name, prior.distribution()) for name, prior in self.priors]
        if likelihood:
            theta = jnp.stack(drawn)
            numpyro.factor(
                "log_likelihood", patient_log_likelihood(self.predictor, names, base, theta, record)
            )


def check_population(f: Population, cohort: Cohort) -> None:
    """Refuse a cohort of which the population needs to know more.

    Raises:
        ValueError: names the fact, and the patient.
    """
    check_covariates(f.covariates, cohort)
    if f.occasions is not None:
        f.occasions.check(cohort)


def density_of(
    f: Any, priors: Mapping[str, Override], known: Any
) -> tuple[PatientDensity | PopulationDensity, Any]:
    """The NumPyro model of `f` (a predictor or a `Population`), and the values of its known parameters.

    Raises:
        ValueError: a parameter that varies between patients has no prior for its typical value.
    """
    if not isinstance(f, Population):
        base, free = estimated(f, priors, known)
        return PatientDensity(f, tuple(free.items())), base
    base, free = estimated(f.solved, priors, known)
    for name in f.varying:
        if name not in free:
            raise ValueError(
                f"{name!r} varies between patients but is known: give it a prior, or do not vary it"
            )
    return PopulationDensity(f, tuple(free.items())), base
