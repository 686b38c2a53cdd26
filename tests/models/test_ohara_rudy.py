"""O'Hara and Rudy's ventricular cell, CiPA form, against its CellML: the rates, and a beat by CVODES."""

from dataclasses import fields, replace

import jax
import jax.numpy as jnp
import numpy as np
from tabled import rows, table

from dtwin_jax.core.quantity import values
from dtwin_jax.core.signal import Doses
from dtwin_jax.dynamics.simulate import simulate
from dtwin_jax.models.ohara_rudy import State, ohara_rudy
from dtwin_jax.models.ohara_rudy_calcium import free

# A state on the plateau with every part moved by a tenth, drug bound, and a stimulus; and the rates by the
# equations of Chaste/cellml's ohara_rudy_cipa_v1_2017.cellml, read into Python and evaluated; as State is.
_MOVED = (
    *(36.06, 0.01736, 7.518, 6.385, 158.4),
    *(151.3, 0.001285, 1.721, 0.4862, 0.0003742),
    *(1.002, 4.183e-09, 3.501e-09, 1.713e-07, 2.934e-06),
    *(2.194e-05, 1.004, 0.3795, 0.2298, 0.7834),
    *(2.559e-05, 0.0756, 0.7694, 0.002045, 0.1478),
    *(0.8278, 0.001718, 0.8329, 0.001169, 0.7139),
    *(0.6447, 0.07059, 0.06411, 1.205, 1.033e-06),
    *(0.06373, 9.213e-06, 0.05621, 0.08598, 0.7982),
    *(0.03, 0.05, 0.02, 0.2819, 0.2591),
    *(1.01, 0.0001504, 0.0003809),
)
_RATES = (
    *(6.7571002254, 3.3567707866e-05, -0.016695888228, 0.56691025959, -0.10401424573),
    *(3.5496229788, -3.5523898759e-05, 0.00031659204105, 0.002081794737, 4.3096396208e-07),
    *(-0.065887064648, -3.507951121e-08, -1.8009440495e-10, -5.1112959525e-08, -6.8470783989e-07),
    *(-4.5697896483e-06, -0.10669839655, -0.0018974996641, -0.00038299995107, 0.015657716629),
    *(-5.3473366599e-06, -0.0031374237318, -0.043966900013, -0.00025389321297, -0.0035282912434),
    *(0.28168928053, -0.00021974537598, -0.00080826960415, -0.00016106044278, -0.0048152077203),
    *(-0.0085959961361, -0.0036121954241, -0.0035339943865, -0.14943967758, -3.237407849e-05),
    *(-0.066320957845, 3.1604482075e-05, 0.061248356069, -0.003410506898, -0.0033597427435),
    *(0.010646563366, 0.00039705514819, 0.00080000249921, 0.00083494221122, 0.004185331658),
    *(-0.0041895908037, 1.1159776711e-05, -2.2150543928e-05),
)
_RATES_AT_START = (
    *(0.020903101537, -6.5433797651e-06, -1.1492245052e-05, -1.1565874365e-05, 1.4655694967e-05),
    *(1.3350000005e-05, -2.7989169173e-08, -1.3566230075e-05, 0.00019941856143, -2.557016375e-08),
    *(-7.334472373e-08, 3.4434763263e-06, 3.5213832364e-06, 3.9529144476e-06, 4.3391025711e-06),
    *(4.2461263335e-06, -3.5524999152e-09, 6.1132759769e-05, 7.6584699671e-05, -6.7317117688e-09),
    *(8.0228601051e-09, 0.00049223814776, -3.431782232e-09, 7.9796158334e-09, 0.00049190768458),
    *(1.2306281734e-12, -3.2327552729e-12, 8.9758710681e-05, -3.3470135174e-12, 1.9531317657e-06),
    *(3.4879568761e-07, -1.2931021092e-12, -1.338805407e-12, -7.1538848405e-06, -2.5198944583e-05),
    *(2.5201354685e-05, 1.2024540553e-10, -4.8231018952e-09, -2.1074054329e-08, 2.3366809198e-08),
    *(0.0, 0.0, -0.0, -0.00012940475067, -2.4205074997e-09),
    *(-2.7844731227e-08, 3.8920272023e-10, 4.7407246692e-10),
)
_DRUG = {"Kmax": 3.0, "Ku": 0.01, "hill": 0.8, "EC50": 20.0, "Kt": 0.02, "Vhalf": -50.0}
_OUTSIDE = {"K_o": 4.0, "Na_o": 130.0, "Ca_o": 2.2}

_rates = jax.jit(ohara_rudy.drift)


def rates(x, u, p):
    """Rates of change, compiled once."""
    return _rates(jnp.asarray(0.0), *jax.tree.map(jnp.asarray, (x, u, p)))


def moved():
    """State, inputs and parameters, with a drug, a stimulus, and other concentrations outside than usual."""
    x = State(**{field.name: jnp.asarray(v) for field, v in zip(fields(State), _MOVED, strict=True)})
    p = replace(ohara_rudy.params(), **{n: jnp.asarray(v) for n, v in (_DRUG | _OUTSIDE).items()})
    return x, replace(ohara_rudy.inputs(), drug=jnp.asarray(30.0), stimulus=jnp.asarray(-7.0)), p


def test_rates_agree_with_cellml_at_the_start_and_where_drug_is_bound():
    p = ohara_rudy.params()
    at_start = rates(ohara_rudy.init(p), ohara_rudy.inputs(), p)
    for found, wanted in ((at_start, _RATES_AT_START), (rates(*moved()), _RATES)):
        for (part, value), rate in zip(values(found).items(), wanted, strict=True):
            np.testing.assert_allclose(value, rate, rtol=1e-8, atol=1e-15, err_msg=part)


def test_channels_of_herg_are_neither_made_nor_lost():
    found = rates(*moved())
    states = ("IC1", "IC2", "C1", "C2", "O", "IO", "IObound", "Obound", "Cbound")
    turned = np.array([getattr(found, state) for state in states])
    assert np.max(np.abs(turned)) > 1e-4
    np.testing.assert_allclose(np.sum(turned), 0.0, atol=1e-15)


def test_ions_carry_the_charge_that_the_membrane_loses():
    """Sodium, potassium and calcium (buffered too) of all compartments, and a stimulus of potassium."""
    x, u, p = moved()
    found = rates(x, u, p)
    calcium = (
        found.Ca_i / free(x.Ca_i, p, (0.05, 0.00238), (0.07, 0.0005)) * p.V_myo
        + found.Ca_ss / free(x.Ca_ss, p, (0.047, 0.00087), (1.124, 0.0087)) * p.V_ss
        + found.Ca_nsr * p.V_nsr
        + found.Ca_jsr / free(x.Ca_jsr, p, (10.0, 0.8)) * p.V_jsr
    )
    ions = (found.Na_i + found.K_i) * p.V_myo + (found.Na_ss + found.K_ss) * p.V_ss + 2 * calcium
    np.testing.assert_allclose(p.F * ions / p.Cm, found.V, rtol=1e-8)


def test_rates_are_smooth_where_the_formulas_are_0_over_0():
    x, u, p = moved()

    def rate(v):
        return ohara_rudy.drift(jnp.asarray(0.0), replace(x, V=v), u, p)

    at, slope = jax.jit(lambda v: jax.jvp(rate, (v,), (jnp.ones_like(v),)))(jnp.asarray(0.0))
    beside = rates(replace(x, V=jnp.asarray(1e-6)), u, p)
    for part, value in values(at).items():
        np.testing.assert_allclose(
            getattr(beside, part) - value, 1e-6 * getattr(slope, part), rtol=1e-3, atol=1e-9, err_msg=part
        )


def test_action_potential_agrees_with_cellml(shared):
    (about,) = [row for row in rows(shared("reference/models/ep_summary.csv")) if row["model"] == "ord_cipa"]
    about = {name: float(value) for name, value in about.items() if name not in ("model", "cellml")}
    reference = table(shared("reference/models/ep_ord_cipa.csv"))
    t, v = reference["environment.time"], reference["membrane.v"]
    start, duration, length = about["stim_start_ms"], about["APD90_ms"], about["stim_dur_ms"]
    # Where the potential crosses 90 % of its way back, closer.
    fine = start + duration + np.linspace(-1.0, 3.0, 9)
    times = np.concatenate([t, fine])
    order = np.argsort(times)
    u = replace(ohara_rudy.inputs(), stimulus=Doses([start], [about["stim_amp"] * length], [length]))
    solved = jax.jit(lambda p, u, t: simulate(ohara_rudy, p, u, t))(ohara_rudy.params(), u, times[order])
    back = np.argsort(order)
    voltage, calcium = (np.asarray(part)[back] for part in (solved.output.voltage, solved.output.calcium))
    rising = (t >= start) & (t <= start + 6)
    off = np.abs(voltage[: len(t)] - v)
    np.testing.assert_allclose(off[~rising], 0.0, atol=0.01)
    np.testing.assert_allclose(off[rising], 0.0, atol=0.2)
    np.testing.assert_allclose(calcium[: len(t)], reference["intracellular_ions.cai"], rtol=1e-4)
    # Columns are in the order of our states.
    for (part, column), wanted in zip(
        values(solved.state).items(), list(reference.values())[1:], strict=True
    ):
        kept = np.asarray(column)[back][: len(t)][~rising]
        np.testing.assert_allclose(kept, wanted[~rising], rtol=2e-5, atol=2e-5 * np.ptp(wanted), err_msg=part)
    level = about["Vmax"] - 0.9 * (about["Vmax"] - about["Vmin"])
    crossed = np.interp(-level, -voltage[len(t) :], fine) - start
    wanted = np.interp(-level, -v[t > start + 50], t[t > start + 50]) - start
    np.testing.assert_allclose(crossed, wanted, atol=0.05)
    # The summary counts from the sample of steepest rise.
    steepest = t[np.argmax(np.gradient(v, t))] - start
    np.testing.assert_allclose(crossed - steepest, duration, atol=0.05)
