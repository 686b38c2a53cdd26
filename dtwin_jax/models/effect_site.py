"""Three compartments and an effect site: the form of all kinetics used for infusions in anaesthesia.

    A1' = infusion - (CL + Q2 + Q3) A1 / V1 + Q2 A2 / V2 + Q3 A3 / V3
    A2' = Q2 (A1 / V1 - A2 / V2)
    A3' = Q3 (A1 / V1 - A3 / V3)
    Ce' = ke0 (A1 / V1 - Ce)

and the body sizes that the published parameter sets are scaled by. Their formulas are empirical, in kg, cm
and years: the unit parameters of `Body` make them hold in any unit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax.numpy as jnp

from dtwin_jax.core.quantity import param
from dtwin_jax.core.types import Scalar


class Body(eqx.Module):
    """What is known of the patient."""

    age: Scalar = param(35.0, "a", doc="age")
    weight: Scalar = param(70.0, "kg", doc="body weight")
    height: Scalar = param(170.0, "cm", doc="height")
    male: Scalar = param(1.0, "1", doc="1 for a man, 0 for a woman")
    year: Scalar = param(1.0, "a", doc="unit of the formulas")
    kg: Scalar = param(1.0, "kg", doc="unit of the formulas")
    cm: Scalar = param(1.0, "cm", doc="unit of the formulas")


class Kinetics(eqx.Module):
    """Volumes, clearances and the rate of the effect site of one patient."""

    V1: Scalar
    V2: Scalar
    V3: Scalar
    CL: Scalar
    Q2: Scalar
    Q3: Scalar
    ke0: Scalar


class Site(eqx.Module):
    """Amounts in the three compartments, concentration at the effect site; also their rates of change."""

    A1: Scalar
    A2: Scalar
    A3: Scalar
    Ce: Scalar


def rates(x: Site, infusion: Scalar, k: Kinetics) -> Site:
    """Rates of change."""
    c1, c2, c3 = x.A1 / k.V1, x.A2 / k.V2, x.A3 / k.V3
    to_fast, to_slow = k.Q2 * (c1 - c2), k.Q3 * (c1 - c3)
    return Site(
        A1=infusion - k.CL * c1 - to_fast - to_slow,
        A2=to_fast,
        A3=to_slow,
        Ce=k.ke0 * (c1 - x.Ce),
    )


@dataclass(frozen=True)
class Drift:
    """Rates of change, per minute, of a drug's own `state`, with the kinetics of a parameter set."""

    kinetics: Callable[[Any, Any], Kinetics]
    state: Callable[..., Any]

    def __call__(self, t: Scalar, x: Any, u: Any, p: Any) -> Any:
        """The rates."""
        return self.state(**vars(rates(x, u.infusion, self.kinetics(p, p))))


@dataclass(frozen=True)
class Observe:
    """A drug's own `outputs`: concentrations in plasma or blood, and at the effect site."""

    kinetics: Callable[[Any, Any], Kinetics]
    outputs: Callable[..., Any]

    def __call__(self, t: Scalar, x: Any, u: Any, p: Any) -> Any:
        """The concentrations: mg/L is ug/mL, ug/L is ng/mL."""
        return self.outputs(concentration=x.A1 / self.kinetics(p, p).V1, effect=x.Ce)


def lean_body_mass(body: Body) -> Scalar:
    """Lean body mass by James.

    Source: James 1976, Research on Obesity, as used by Schnider 1998 and Minto 1997.
    """
    w, h = body.weight / body.kg, body.height / body.cm
    man, woman = 1.1 * w - 128.0 * (w / h) ** 2, 1.07 * w - 148.0 * (w / h) ** 2
    return body.kg * (body.male * man + (1 - body.male) * woman)


def fat_free_mass(body: Body) -> Scalar:
    """Fat-free mass.

    Source: Al-Sallami et al. 2015, Clin Pharmacokinet 54:1169.
    """
    w, h, age = body.weight / body.kg, body.height / body.cm, body.age / body.year
    bmi = w / (h / 100.0) ** 2
    man = (0.88 + 0.12 / (1 + (age / 13.4) ** -12.7)) * 9270.0 * w / (6680.0 + 216.0 * bmi)
    woman = (1.11 - 0.11 / (1 + (age / 7.1) ** -1.1)) * 9270.0 * w / (8780.0 + 244.0 * bmi)
    return body.kg * (body.male * man + (1 - body.male) * woman)


def relative_fat_free_mass(body: Body) -> Scalar:
    """Fat-free mass over that of the reference: a man of 35 years, 70 kg, 170 cm."""
    one = jnp.ones_like(body.male)
    reference = Body(
        age=35.0 * body.year,
        weight=70.0 * body.kg,
        height=170.0 * body.cm,
        male=one,
        year=body.year,
        kg=body.kg,
        cm=body.cm,
    )
    return fat_free_mass(body) / fat_free_mass(reference)
