"""Heart, vessels and the baroreflex that holds their pressure, in a closed loop.

Sources: four chambers and vessels, Korakianitis & Shi 2006, doi 10.1016/j.jbiomech.2005.06.016; baroreflex,
Ursino 1998, doi 10.1152/ajpheart.1998.275.5.H1733, with its delays as stages. Joined here.

    pressure in the aortic sinus -> receptors -> nerves -> effectors
    period, Emax_lv, Emax_rv  of the heart are the reflex's
    R_sat  = 1 / (1 / Rsp + 1 / Rep)                 splanchnic and other vessels side by side
    Vu_svn = Vu_sv + Vu_ev - Vu_rest                 unstressed volume beside that at the set point

A loss of blood (`infusion` below 0) lowers the pressure; the reflex makes the heart beat faster and stronger,
narrows arteries and empties veins. The reflex's elastances are Ursino's, 2.9 mm[Hg]/mL at the set point where
the circulation alone has 2.5.
Every beat takes some thousand steps.
"""

from dataclasses import replace

import equinox as eqx
import numpy as np

from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.couple import couple
from dtwin_jax.dynamics.relation import Nothing, relation
from dtwin_jax.dynamics.residual import proportional
from dtwin_jax.models.baroreflex import baroreflex_chain
from dtwin_jax.models.four_chambers import four_chambers

_URSINO = "Ursino 1998: the reflex at its set point, from basal values recalled, not checked"


class VesselParams(eqx.Module):
    """What the reflex's vessels are to the circulation's."""

    Vu_rest: Scalar = param(2244.6, "mL", source=_URSINO, doc="unstressed volume at the set point")
    cv: Scalar = param(0.05, "1", source="chosen here", doc="proportional error")


class VesselInputs(eqx.Module):
    """What the nerves make of the vessels."""

    Rsp: Input = var("mm[Hg].s/mL", neutral=3.25, doc="resistance, splanchnic")
    Rep: Input = var("mm[Hg].s/mL", neutral=1.36, doc="resistance, rest of the body")
    Vu_sv: Input = var("mL", neutral=1143.4, doc="unstressed volume, splanchnic veins")
    Vu_ev: Input = var("mL", neutral=1101.2, doc="unstressed volume, other veins")


class VesselOutputs(eqx.Module):
    """What the circulation is told."""

    resistance: Scalar = var("mm[Hg].s/mL", doc="systemic")
    unstressed: Scalar = var("mL", doc="of the systemic veins, beside that at the set point")


def vessels_observe(t: Scalar, x: Nothing, u: VesselInputs, p: VesselParams) -> VesselOutputs:
    """Two beds side by side, and the veins of both."""
    return VesselOutputs(resistance=1 / (1 / u.Rsp + 1 / u.Rep), unstressed=u.Vu_sv + u.Vu_ev - p.Vu_rest)


vessels = relation(
    "vessels",
    VesselParams,
    VesselInputs,
    vessels_observe,
    proportional,
    time="s",
    source="Ursino 1998",
)


def example() -> Record:
    """Ten seconds at rest, then 200 mL lost in ten, arterial pressure at 50 Hz for half a minute."""
    u = eqx.tree_at(
        lambda u: u.infusion, reflex_circulation.inputs(), Steps([0.0, 10.0, 20.0], [0.0, -20.0, 0.0])
    )
    times = np.arange(0.0, 30.0, 0.02)
    return Record(u, {"pressure": Series(times, np.zeros(times.size))})


reflex_circulation = replace(
    couple(
        "reflex_circulation",
        {"circulation": four_chambers, "vessels": vessels, "reflex": baroreflex_chain},
        {
            "reflex.pressure": "circulation.pressure",
            "vessels.Rsp": "reflex.Rsp",
            "vessels.Rep": "reflex.Rep",
            "vessels.Vu_sv": "reflex.Vu_sv",
            "vessels.Vu_ev": "reflex.Vu_ev",
            "circulation.R_sat": "vessels.resistance",
            "circulation.Vu_svn": "vessels.unstressed",
            "circulation.period": "reflex.period",
            "circulation.Emax_lv": "reflex.Emax_lv",
            "circulation.Emax_rv": "reflex.Emax_rv",
        },
        source="Korakianitis & Shi 2006, J Biomech 39:1964; Ursino 1998, Am J Physiol 275:H1733",
    ),
    valid="An adult at rest and in the first minutes of a loss of blood; no hormones, no breathing.",
    checked="The same equations by LSODA over two beats: 1e-3 mm[Hg].",
    example=example,
)
