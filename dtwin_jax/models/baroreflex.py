"""The baroreflex: what arterial pressure does to heart and vessels through both autonomic nerves.

Source: Ursino 1998, Am J Physiol 275:H1733, doi 10.1152/ajpheart.1998.275.5.H1733. Gains, delays and time
constants as in viswajithsv-collab/CP-Model (Teaching/BaroreflexConstants.m); basal values recalled, and equal
to those of a third-party code that has muscle apart (its resistances, 0.96 and 4.13 side by side, are the
0.78 here); neither was checked with the paper.

    taup Pt' = P + tauz P' - Pt                       z = Pt - tauz / taup P has z' = (P - Pt) / taup
    fcs = fmin + (fmax - fmin) / (1 + exp(-(Pt - Pn) / ka))               carotid sinus nerve
    fes = fes_inf + (fes0 - fes_inf) exp(-kes fcs)                        sympathetic
    fev = fev0 + (fev_inf - fev0) / (1 + exp(-(fcs - fcs0) / kev))        vagal
    tau d' = -d + G ln(max(fes(t - D) - fes_min, 0) + 1)                  sympathetic effectors
    tau_Tv d_Tv' = -d_Tv + G_Tv fev(t - D_vagus)                          heart period, vagal
    value = basal + d;  period = T_basal + d_Ts + d_Tv

`baroreflex` is for a given pressure: it is exact, with delays by copies of the pressure that are given later
(D_heart, D_veins, D_vagus; only `pressure` is given, the copies are made from it) through a filter each.
`baroreflex_chain` is for a loop with a circulation: Pt goes through twelve stages of first order, four
each for 0 to D_vagus, to D_heart and to D_veins. max(0, .) is a kink of the right-hand side: continuous, so
the solver steps over it. Fitted in practice: single gains, from heart period; all gains together are not
identifiable.

Variants:
baroreflex: The baroreflex under a given arterial pressure, delays exact: heart and vessels
baroreflex_chain: The baroreflex in a loop with a circulation, delays as stages: heart and vessels
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dtwin_jax.core.prior import lognormal
from dtwin_jax.core.quantity import param, var
from dtwin_jax.core.record import Record, Series
from dtwin_jax.core.signal import Input, Steps, delay
from dtwin_jax.core.types import Scalar
from dtwin_jax.dynamics.model import Model
from dtwin_jax.dynamics.residual import proportional
from dtwin_jax.dynamics.solver import Solver

_SET = "Ursino 1998, as in viswajithsv-collab/CP-Model"
_BASAL = "Ursino 1998, recalled; as in third-party code, not checked with the paper"
_WEAK = "weakly informative, chosen here"
_STAGES = 4


class Params(eqx.Module):
    """Parameters of afferents, nerves and effectors."""

    P_start: Scalar = param(92.0, "mm[Hg]", doc="pressure before the start, with which all is in balance")
    taup: Scalar = param(2.076, "s", source=_SET, doc="lag of the receptors")
    tauz: Scalar = param(6.37, "s", source=_SET, doc="lead of the receptors")
    Pn: Scalar = param(
        92.0, "mm[Hg]", lognormal(92.0, log_sd=0.1), source=_SET + "; prior: " + _WEAK, doc="set point"
    )
    fmin: Scalar = param(2.52, "/s", source=_SET, doc="least afferent firing")
    fmax: Scalar = param(47.78, "/s", source=_SET, doc="greatest afferent firing")
    ka: Scalar = param(11.758, "mm[Hg]", source=_SET, doc="width of the afferent sigmoid")
    fes_inf: Scalar = param(2.1, "/s", source=_SET, doc="least sympathetic firing")
    fes0: Scalar = param(16.11, "/s", source=_SET, doc="greatest sympathetic firing")
    fes_min: Scalar = param(2.66, "/s", source=_SET, doc="sympathetic firing without effect")
    kes: Scalar = param(0.0675, "s", source=_SET, doc="steepness of the sympathetic response")
    fev0: Scalar = param(3.2, "/s", source=_SET, doc="least vagal firing")
    fev_inf: Scalar = param(6.3, "/s", source=_SET, doc="greatest vagal firing")
    fcs0: Scalar = param(25.0, "/s", source=_SET, doc="afferent firing of half the vagal response")
    kev: Scalar = param(7.06, "/s", source=_SET, doc="width of the vagal sigmoid")
    hertz: Scalar = param(1.0, "/s", doc="unit of firing inside the logarithm")
    D_heart: Scalar = param(2.0, "s", source=_SET, doc="sympathetic delay of heart and resistances")
    D_veins: Scalar = param(5.0, "s", source=_SET, doc="sympathetic delay of veins")
    D_vagus: Scalar = param(0.2, "s", source=_SET, doc="vagal delay")
    Emax_lv_basal: Scalar = param(
        2.392, "mm[Hg]/mL", source=_BASAL, doc="greatest elastance, left ventricle, without sympathetic drive"
    )
    G_Emax_lv: Scalar = param(0.475, "mm[Hg]/mL", source=_SET, doc="gain, greatest elastance, left ventricle")
    tau_Emax_lv: Scalar = param(
        8.0, "s", source=_SET, doc="time constant, greatest elastance, left ventricle"
    )
    Emax_rv_basal: Scalar = param(
        1.412,
        "mm[Hg]/mL",
        source=_BASAL,
        doc="greatest elastance, right ventricle, without sympathetic drive",
    )
    G_Emax_rv: Scalar = param(
        0.282, "mm[Hg]/mL", source=_SET, doc="gain, greatest elastance, right ventricle"
    )
    tau_Emax_rv: Scalar = param(
        8.0, "s", source=_SET, doc="time constant, greatest elastance, right ventricle"
    )
    Rsp_basal: Scalar = param(
        2.49, "mm[Hg].s/mL", source=_BASAL, doc="resistance, splanchnic, without sympathetic drive"
    )
    G_Rsp: Scalar = param(0.695, "mm[Hg].s/mL", source=_SET, doc="gain, resistance, splanchnic")
    tau_Rsp: Scalar = param(6.0, "s", source=_SET, doc="time constant, resistance, splanchnic")
    Rep_basal: Scalar = param(
        0.78, "mm[Hg].s/mL", source=_BASAL, doc="resistance, rest of the body, without sympathetic drive"
    )
    G_Rep: Scalar = param(0.53, "mm[Hg].s/mL", source=_SET, doc="gain, resistance, rest of the body")
    tau_Rep: Scalar = param(6.0, "s", source=_SET, doc="time constant, resistance, rest of the body")
    Vu_sv_basal: Scalar = param(
        1435.4, "mL", source=_BASAL, doc="unstressed volume, splanchnic veins, without sympathetic drive"
    )
    G_Vu_sv: Scalar = param(-265.4, "mL", source=_SET, doc="gain, unstressed volume, splanchnic veins")
    tau_Vu_sv: Scalar = param(
        20.0, "s", source=_SET, doc="time constant, unstressed volume, splanchnic veins"
    )
    Vu_ev_basal: Scalar = param(
        1247.0, "mL", source=_BASAL, doc="unstressed volume, other veins, without sympathetic drive"
    )
    G_Vu_ev: Scalar = param(-132.5, "mL", source=_SET, doc="gain, unstressed volume, other veins")
    tau_Vu_ev: Scalar = param(20.0, "s", source=_SET, doc="time constant, unstressed volume, other veins")
    T_basal: Scalar = param(0.58, "s", source=_BASAL, doc="heart period of the denervated heart")
    G_Ts: Scalar = param(-0.13, "s", source=_SET, doc="sympathetic gain, heart period")
    tau_Ts: Scalar = param(2.0, "s", source=_SET, doc="sympathetic time constant, heart period")
    G_Tv: Scalar = param(
        0.09, "s2", lognormal(0.09, log_sd=0.5), source=_SET + "; prior: " + _WEAK, doc="vagal gain"
    )
    tau_Tv: Scalar = param(1.5, "s", source=_SET, doc="vagal time constant, heart period")
    cv: Scalar = param(0.05, "1", lognormal(0.05, log_sd=0.5), source=_WEAK, doc="proportional error")


class ChainInputs(eqx.Module):
    """What the receptors feel."""

    pressure: Input = var("mm[Hg]", neutral=92.0, doc="arterial", plausible=(0.0, 400.0))


class Inputs(ChainInputs):
    """What the receptors feel, and its delayed copies, which are made from it."""

    pressure_for_heart: Input = var("mm[Hg]", neutral=92.0, doc="made from pressure, D_heart later")
    pressure_for_veins: Input = var("mm[Hg]", neutral=92.0, doc="made from pressure, D_veins later")
    pressure_for_vagus: Input = var("mm[Hg]", neutral=92.0, doc="made from pressure, D_vagus later")


class Effectors(eqx.Module):
    """What the nerves add to the basal values."""

    d_Emax_lv: Scalar = var("mm[Hg]/mL")
    d_Emax_rv: Scalar = var("mm[Hg]/mL")
    d_Rsp: Scalar = var("mm[Hg].s/mL")
    d_Rep: Scalar = var("mm[Hg].s/mL")
    d_Vu_sv: Scalar = var("mL")
    d_Vu_ev: Scalar = var("mL")
    d_Ts: Scalar = var("s")
    d_Tv: Scalar = var("s")


class State(Effectors):
    """And the filters of the receptors, one a copy of the pressure."""

    z_heart: Scalar = var("mm[Hg]")
    z_veins: Scalar = var("mm[Hg]")
    z_vagus: Scalar = var("mm[Hg]")


class ChainState(Effectors):
    """And the filter of the receptors, with the stages that stand for the delays."""

    z: Scalar = var("mm[Hg]")
    c1: Scalar = var("mm[Hg]")
    c2: Scalar = var("mm[Hg]")
    c3: Scalar = var("mm[Hg]")
    c4: Scalar = var("mm[Hg]")
    c5: Scalar = var("mm[Hg]")
    c6: Scalar = var("mm[Hg]")
    c7: Scalar = var("mm[Hg]")
    c8: Scalar = var("mm[Hg]")
    c9: Scalar = var("mm[Hg]")
    c10: Scalar = var("mm[Hg]")
    c11: Scalar = var("mm[Hg]")
    c12: Scalar = var("mm[Hg]")


class Outputs(eqx.Module):
    """What the circulation is told."""

    Emax_lv: Scalar = var("mm[Hg]/mL", doc="greatest elastance, left ventricle")
    Emax_rv: Scalar = var("mm[Hg]/mL", doc="greatest elastance, right ventricle")
    Rsp: Scalar = var("mm[Hg].s/mL", doc="resistance, splanchnic")
    Rep: Scalar = var("mm[Hg].s/mL", doc="resistance, rest of the body")
    Vu_sv: Scalar = var("mL", doc="unstressed volume, splanchnic veins")
    Vu_ev: Scalar = var("mL", doc="unstressed volume, other veins")
    period: Scalar = var("s", doc="heart period", plausible=(0.1, 5.0))


def afferent(Pt: Scalar, p: Params) -> Scalar:
    """Firing of the carotid sinus nerve at a filtered pressure."""
    return p.fmin + (p.fmax - p.fmin) * jax.nn.sigmoid((Pt - p.Pn) / p.ka)


def sympathetic(Pt: Scalar, p: Params) -> Scalar:
    """What sympathetic effectors respond to: the logarithm of the firing above its threshold."""
    fes = p.fes_inf + (p.fes0 - p.fes_inf) * jnp.exp(-p.kes * afferent(Pt, p))
    return jnp.log1p(jnp.maximum(fes - p.fes_min, 0.0) / p.hertz)


def vagal(Pt: Scalar, p: Params) -> Scalar:
    """Vagal firing."""
    return p.fev0 + (p.fev_inf - p.fev0) * jax.nn.sigmoid((afferent(Pt, p) - p.fcs0) / p.kev)


def effectors(heart: Scalar, veins: Scalar, vagus: Scalar, p: Params) -> Effectors:
    """Where the effectors settle under filtered pressures, each with its delay."""
    s_heart, s_veins = sympathetic(heart, p), sympathetic(veins, p)
    return Effectors(
        d_Emax_lv=p.G_Emax_lv * s_heart,
        d_Emax_rv=p.G_Emax_rv * s_heart,
        d_Rsp=p.G_Rsp * s_heart,
        d_Rep=p.G_Rep * s_heart,
        d_Vu_sv=p.G_Vu_sv * s_veins,
        d_Vu_ev=p.G_Vu_ev * s_veins,
        d_Ts=p.G_Ts * s_heart,
        d_Tv=p.G_Tv * vagal(vagus, p),
    )


def approach(x: Effectors, goal: Effectors, p: Params) -> dict[str, Scalar]:
    """Rates of change of the effectors."""
    names = [name.removeprefix("d_") for name in vars(goal)]
    return {
        f"d_{n}": (getattr(goal, f"d_{n}") - getattr(x, f"d_{n}")) / getattr(p, f"tau_{n}") for n in names
    }


def init(p: Params) -> State:
    """In balance with the pressure before the start."""
    z = p.P_start * (1 - p.tauz / p.taup)
    balanced = effectors(p.P_start, p.P_start, p.P_start, p)
    return State(**vars(balanced), z_heart=z, z_veins=z, z_vagus=z)


def init_chain(p: Params) -> ChainState:
    """In balance with the pressure before the start."""
    balanced = effectors(p.P_start, p.P_start, p.P_start, p)
    stages = {f"c{i}": p.P_start for i in range(1, 3 * _STAGES + 1)}
    return ChainState(**vars(balanced), z=p.P_start * (1 - p.tauz / p.taup), **stages)


def dosing(u: Inputs, p: Params) -> Inputs:
    """The delayed copies of the pressure."""
    return Inputs(
        pressure=u.pressure,
        pressure_for_heart=delay(u.pressure, p.D_heart),
        pressure_for_veins=delay(u.pressure, p.D_veins),
        pressure_for_vagus=delay(u.pressure, p.D_vagus),
    )


def drift(t: Scalar, x: State, u: Inputs, p: Params) -> State:
    """Rates of change, per second."""
    lead = p.tauz / p.taup
    heart = x.z_heart + lead * u.pressure_for_heart
    veins = x.z_veins + lead * u.pressure_for_veins
    vagus = x.z_vagus + lead * u.pressure_for_vagus
    return State(
        **approach(x, effectors(heart, veins, vagus, p), p),
        z_heart=(u.pressure_for_heart - heart) / p.taup,
        z_veins=(u.pressure_for_veins - veins) / p.taup,
        z_vagus=(u.pressure_for_vagus - vagus) / p.taup,
    )


def drift_chain(t: Scalar, x: ChainState, u: ChainInputs, p: Params) -> ChainState:
    """Rates of change with stages for the delays, per second."""
    Pt = x.z + p.tauz / p.taup * u.pressure
    stays = (p.D_vagus, p.D_heart - p.D_vagus, p.D_veins - p.D_heart)
    stages = [getattr(x, f"c{i}") for i in range(1, 3 * _STAGES + 1)]
    before = [Pt, *stages[:-1]]
    rates = {f"c{i + 1}": (before[i] - stages[i]) * _STAGES / stays[i // _STAGES] for i in range(3 * _STAGES)}
    vagus, heart, veins = stages[_STAGES - 1 :: _STAGES]
    return ChainState(
        **approach(x, effectors(heart, veins, vagus, p), p), z=(u.pressure - Pt) / p.taup, **rates
    )


def observe(t: Scalar, x: Effectors, u: ChainInputs, p: Params) -> Outputs:
    """What the effectors are now."""
    return Outputs(
        Emax_lv=p.Emax_lv_basal + x.d_Emax_lv,
        Emax_rv=p.Emax_rv_basal + x.d_Emax_rv,
        Rsp=p.Rsp_basal + x.d_Rsp,
        Rep=p.Rep_basal + x.d_Rep,
        Vu_sv=p.Vu_sv_basal + x.d_Vu_sv,
        Vu_ev=p.Vu_ev_basal + x.d_Vu_ev,
        period=p.T_basal + x.d_Ts + x.d_Tv,
    )


def _sinus() -> Steps:
    """A carotid sinus kept at 92, then 120, then 70 mm[Hg], half a minute each."""
    return Steps([0.0, 30.0, 60.0], [92.0, 120.0, 70.0])


def _heart_periods(inputs: ChainInputs) -> Record:
    times = np.arange(1.0, 91.0)
    return Record(inputs, {"period": Series(times, np.zeros(len(times)))})


def example() -> Record:
    """Heart periods, one a second, while the pressure in the carotid sinus is stepped up and down."""
    return _heart_periods(Inputs(pressure=_sinus()))


def example_chain() -> Record:
    """Heart periods, one a second, while the pressure in the carotid sinus is stepped up and down."""
    return _heart_periods(ChainInputs(pressure=_sinus()))


baroreflex = Model(
    name="baroreflex",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=proportional,
    dosing=dosing,
    time="s",
    solver=Solver(max_steps=2**18),
    source="Ursino 1998, Am J Physiol 275:H1733, doi 10.1152/ajpheart.1998.275.5.H1733",
    valid="The carotid baroreflex of a man at rest, as Ursino put it together from animals; no breathing.",
    stiffness="1.5 to 20 s: not stiff, Tsit5.",
    checked="Effectors and heart period, 1e-5 relative, against an independent solve of the delay equations.",
    example=example,
)
baroreflex_chain = replace(
    baroreflex,
    name="baroreflex_chain",
    inputs=ChainInputs,
    init=init_chain,
    drift=drift_chain,
    dosing=None,
    stiffness="Stages of the vagal delay 0.05 s, effectors to 20 s: not stiff, Tsit5.",
    checked="Effectors within 3 % of their range of the exact delays.",
    example=example_chain,
)
