# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Fitting one patient by gradient
#
# A person swallows a dose of theophylline, and blood is drawn eleven times over a day. We write a model of
# what the body does with the drug, see that it does not fit this person, and let the **gradient** tell
# which way to move its parameters: the derivative of the misfit, taken straight through the solver of the
# differential equation.
#
# Then the same is done in one call, `dt.fit`, with intervals; in a second one, `dt.calibrate`, without the
# assumption that the uncertainty is normal; and the model is asked about doses that this person never took.

# %%
import os
from importlib import resources

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax

import dtwin_jax as dt

jax.config.update("jax_enable_x64", True)
SHORT = bool(os.environ.get("DTWIN_SHORT"))  # the tests run this notebook with smaller numbers

# The look of all figures: points are measurements, shaded is uncertain. Colours of Okabe & Ito, which people
# with any colour vision tell apart.
INK, GREY, BLUE, ORANGE, GREEN = "#1c2733", "#8a97a4", "#0072b2", "#d55e00", "#009e73"
plt.rcParams.update(
    {
        "figure.figsize": (7.2, 3.8),
        "figure.dpi": 110,
        "figure.constrained_layout.use": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 1.8,
    }
)

# %% [markdown]
# ## The model
#
# One compartment: the drug waits in the gut (`depot`), is absorbed at a rate `ka`, spreads over a volume
# `V`, and is cleared at `CL`.
#
# $$\text{depot}' = \text{oral} - k_a\,\text{depot}, \qquad
#   \text{central}' = k_a\,\text{depot} - \tfrac{CL}{V}\,\text{central}, \qquad
#   \text{concentration} = \text{central} / V$$
#
# A model is a handful of small classes that name quantities and their units, and pure functions: the state
# at the start, its rate of change, what is measured, and how a measurement scatters. A parameter with a
# prior is to be learned; one without is known. The priors are wide, with a log sd of 1: each says "within a
# factor of seven, most likely", about ordinary values of this drug in an adult, chosen here.


# %%
class Params(eqx.Module):
    CL: dt.Scalar = dt.param(3.0, "L/h", dt.lognormal(3.0, log_sd=1.0), doc="clearance")
    V: dt.Scalar = dt.param(30.0, "L", dt.lognormal(30.0, log_sd=1.0), doc="volume of distribution")
    ka: dt.Scalar = dt.param(1.5, "/h", dt.lognormal(1.5, log_sd=1.0), doc="absorption rate")
    sd: dt.Scalar = dt.param(0.7, "mg/L", dt.lognormal(0.7, log_sd=1.0), doc="error of a measurement")


class Inputs(eqx.Module):
    oral: dt.Input = dt.var("mg/h", neutral=0.0)


class State(eqx.Module):
    depot: dt.Scalar = dt.var("mg")
    central: dt.Scalar = dt.var("mg")


class Outputs(eqx.Module):
    concentration: dt.Scalar = dt.var("mg/L")


def init(p):
    return State(depot=0.0, central=0.0)


def drift(t, x, u, p):
    absorbed = p.ka * x.depot
    return State(depot=u.oral - absorbed, central=absorbed - p.CL / p.V * x.central)


def observe(t, x, u, p):
    return Outputs(concentration=x.central / p.V)


def noise(y, p):
    return {"concentration": dist.Normal(y.concentration, p.sd)}


model = dt.Model(
    name="theophylline",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=noise,
    time="h",
)
assert not dt.check_model(model)  # units, doses and shapes agree

# %% [markdown]
# ## The patient
#
# The table ships with the package: twelve people, one oral dose each (Boeckmann, Sheiner & Beal 1994). We
# take the twelfth. `read_table` finds our model's names in the table and converts its units.

# %%
table = resources.files("dtwin_jax") / "data" / "theoph.csv"
people = dt.read_table(table, model, covariates={"weight": "kg"})
patient = people["12"]
seen = patient.observations["concentration"]
dose = float(patient.inputs.oral.amount[0])
print(f"weight {patient.known['weight']:.1f} kg, dose {dose:.0f} mg, {len(seen.time)} measurements")

# %% [markdown]
# ## A misfit
#
# `dt.simulate` solves the equations for any parameters. With ordinary ones the curve has the right shape,
# and is wrong for this person: it rises too soon, and stays too low.

# %%
hours = jnp.linspace(0.0, 25.0, 200)
guess = model.params()


@jax.jit
def curve(p):
    return dt.simulate(model, p, patient.inputs, hours).output.concentration


fig, ax = plt.subplots()
ax.plot(hours, curve(guess), color=ORANGE, label="model, ordinary parameters")
ax.plot(seen.time, seen.value, "o", color=INK, label="measured")
ax.set(xlabel="time after the dose (h)", ylabel="theophylline (mg/L)", title="Before the fit", ylim=(0, None))
ax.legend()
plt.show()

# %% [markdown]
# ## A gradient through the solver
#
# How bad is the misfit? The **loss** is minus the log-likelihood of the measurements, minus the log of the
# prior. We write it for the logarithms of the parameters, which may be any numbers; the parameters stay
# positive.
#
# The loss calls the solver, and JAX differentiates what the solver did. `jax.grad` of it is all that is
# needed.

# %%
names = ("CL", "V", "ka", "sd")
middle = jnp.log(jnp.array([getattr(guess, name) for name in names]))  # of the priors


def loss(logs):
    p = dt.assign(guess, dict(zip(names, jnp.exp(logs), strict=True)))
    likelihood = dt.log_likelihood(model, p, patient)["concentration"].sum()
    prior = -0.5 * jnp.sum((logs - middle) ** 2)  # log sd 1
    return -(likelihood + prior)


value_and_slope = jax.jit(jax.value_and_grad(loss))
value, slope = value_and_slope(middle)
print(f"loss {value:.2f}")
for name, each in zip(names, slope, strict=True):
    print(f"  slope in log {name:<3} {each:+8.3f}")

# %% [markdown]
# A positive slope says: less of this. So the loss wants less clearance, less volume and slower absorption
# (and, while the curve is off, a larger error).
#
# Is the gradient right? A finite difference, $(f(x + h) - f(x - h)) / 2h$, needs no calculus, but a good
# step. In the figure, look at the V: with a large step the curve of the loss spoils the answer, with a tiny
# one rounding does. At its best step it agrees with the gradient to many digits; the gradient needs no step
# at all.

# %%
steps = 10.0 ** np.arange(-12.0, 0.1, 1.0)
direction = jnp.zeros(len(names)).at[names.index("ka")].set(1.0)
differences = [
    (value_and_slope(middle + h * direction)[0] - value_and_slope(middle - h * direction)[0]) / (2 * h)
    for h in steps
]
exact = float(slope[names.index("ka")])
error = np.abs(np.array(differences) - exact) / abs(exact)

fig, ax = plt.subplots()
ax.loglog(steps, np.maximum(error, 1e-12), "o-", color=BLUE)
ax.set(
    xlabel="step h of the finite difference, in log ka",
    ylabel="relative difference\nfrom the gradient",
    title="The finite difference comes to the gradient, and leaves it again",
)
plt.show()
assert error.min() < 1e-5

# %% [markdown]
# ## Going down by hand
#
# With a gradient, fitting is walking downhill. Optax holds the rule of the walk (here Adam); the loop is
# ours.

# %%
optimiser = optax.adam(0.05)
update = jax.jit(optimiser.update)
logs, memory = middle, optimiser.init(middle)
losses, path = [], [middle]
for _ in range(400):
    value, slope = value_and_slope(logs)
    move, memory = update(slope, memory)
    logs = optax.apply_updates(logs, move)
    losses.append(float(value))
    path.append(logs)
by_hand = dict(zip(names, np.exp(logs), strict=True))

fig, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6), width_ratios=[1, 1.4])
left.plot(losses, color=BLUE)
left.set(xlabel="step", ylabel="loss", title="The loss falls")
for i, shade in ((0, 0.25), (5, 0.4), (15, 0.6), (400, 1.0)):
    p = dt.assign(guess, dict(zip(names, jnp.exp(path[i]), strict=True)))
    right.plot(hours, curve(p), color=BLUE, alpha=shade, label=f"after {i} steps")
right.plot(seen.time, seen.value, "o", color=INK, ms=5)
right.set(
    xlabel="time after the dose (h)", ylabel="theophylline (mg/L)", title="The curve comes to the points"
)
right.legend()
plt.show()

# %% [markdown]
# ## The same in one call
#
# `dt.fit` finds the same peak by a quasi-Newton method, starts from several places in case there is more
# than one, and reads the uncertainty from the curvature at the peak.

# %%
found = dt.fit(model, patient, key=jax.random.key(0), starts=4 if SHORT else 8)
assert not found.failed
print(f"{'':<4}{'dt.fit':>10}{'std. error':>12}{'by hand':>10}")
for name in found.names:
    estimate, spread = found.estimate[name][0], found.standard_error[name][0]
    print(f"{name:<4}{estimate:>10.3f}{spread:>12.3f}{by_hand[name]:>10.3f}")
    assert abs(by_hand[name] / estimate - 1) < 0.01

# %% [markdown]
# The curvature makes a normal distribution of the logs of the parameters. Draws from it, each simulated,
# become a band about the curve. It is the band of the true level: new measurements would scatter about it
# by `sd` besides, which is why some points lie outside.

# %%
peak = np.log([found.estimate[name][0] for name in found.names])
drawn = np.random.default_rng(0).multivariate_normal(peak, found.covariance[0], size=200 if SHORT else 1000)


@jax.jit
@jax.vmap
def curves(logs):
    return curve(dt.assign(guess, dict(zip(found.names, jnp.exp(logs), strict=True))))


low, middle_curve, high = np.quantile(curves(drawn), (0.05, 0.5, 0.95), axis=0)
fig, ax = plt.subplots()
ax.plot(hours, curve(guess), color=ORANGE, lw=1.2, ls="--", label="before the fit")
ax.fill_between(hours, low, high, color=BLUE, alpha=0.25, lw=0, label="90 % band of the curve")
ax.plot(hours, middle_curve, color=BLUE, label="fitted")
ax.plot(seen.time, seen.value, "o", color=INK, label="measured")
ax.set(xlabel="time after the dose (h)", ylabel="theophylline (mg/L)", title="After the fit", ylim=(0, None))
ax.legend()
plt.show()

residual = np.abs(np.asarray(seen.value) - np.interp(seen.time, hours, middle_curve))
before = np.abs(np.asarray(seen.value) - np.interp(seen.time, hours, curve(guess)))
print(f"mean distance from the points: {before.mean():.2f} mg/L before, {residual.mean():.2f} mg/L after")
assert residual.mean() < 0.5 * before.mean()

# %% [markdown]
# ## Without assuming a normal distribution
#
# `dt.calibrate` draws from the whole posterior by the No-U-Turn sampler. It takes longer, and rests on no
# shape. The result is a tree of arrays in ArviZ's format; `dt.summary` makes a table of it. Chains that had
# not come together would be reported as a warning, with the parameter's name.

# %%
method = dt.Nuts(warmup=300, draws=500 if SHORT else 1000, dense=True, target_accept=0.9)
twin = dt.calibrate(model, patient, key=jax.random.key(1), method=method)
print(
    dt.summary(twin, individual=True)[["median", "q05", "q95", "r_hat", "ess_bulk"]].to_dataframe().round(3)
)

fig, axes = plt.subplots(1, 4, figsize=(10.5, 3.0), gridspec_kw={"wspace": 0.08})
units = dt.quantities(guess)
for ax, name in zip(axes, found.names, strict=True):
    posterior = twin["posterior"][name].values.ravel()
    ax.hist(posterior, bins=40, density=True, color=BLUE, alpha=0.35, label="dt.calibrate")
    log_sd = np.sqrt(found.covariance[0].diagonal()[found.names.index(name)])
    x = np.linspace(*np.quantile(posterior, (0.001, 0.999)), 200)
    z = (np.log(x) - np.log(found.estimate[name][0])) / log_sd
    ax.plot(x, np.exp(-0.5 * z**2) / (x * log_sd * np.sqrt(2 * np.pi)), color=ORANGE, label="dt.fit")
    ax.set(xlabel=f"{name} ({units[name].unit})", yticks=[])
    ax.spines.left.set_visible(False)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
plt.show()

for name in found.names:
    posterior = np.log(twin["posterior"][name].values)
    assert abs(posterior.mean() - np.log(found.estimate[name][0])) < posterior.std()

# %% [markdown]
# The two agree on where the parameters are. The curvature is a little too sure of them, and look at `sd`:
# with eleven points one cannot rule out that they scatter more, and the posterior has a tail there that a
# peak and its curvature do not see. Forecasts are made of the posterior.
#
# ## A dose that was not taken
#
# The same person, the same amount a day, for three days: the dose every 12 hours, or half of it every 6.
# The model is linear, so the mean level must come out the same; what differs is the swing about it.

# %%
every_6_h = np.arange(0.0, 72.0, 6.0)
plans = {
    "whole dose every 12 h": dt.Doses(every_6_h, np.tile([dose, 0.0], 6)),
    "half a dose every 6 h": dt.Doses(every_6_h, np.tile([dose / 2, dose / 2], 6)),
}
fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=True)
last_day = {}
for ax, (label, doses), colour in zip(axes, plans.items(), (BLUE, GREEN), strict=True):
    plan = dt.scenario(patient, until=72.0, every=0.5, oral=doses)
    future = dt.forecast(model, twin, plan, key=jax.random.key(2), samples=300 if SHORT else 1000)
    time = future["predictions"]["concentration_time"].values[0]
    expected = future["predictions"]["concentration_expected"].values[:, 0]
    measured = future["predictions"]["concentration"].values[:, 0]
    last_day[label] = expected[:, time >= 48.0]
    for values, alpha, what in ((measured, 0.15, "of a measurement"), (expected, 0.35, "of the level")):
        low, high = np.quantile(values, (0.05, 0.95), axis=0)
        ax.fill_between(time, low, high, color=colour, alpha=alpha, lw=0, label=f"90 % band {what}")
    ax.plot(time, np.median(expected, axis=0), color=colour)
    ax.set(xlabel="time (h)", title=label, xticks=np.arange(0, 73, 12), ylim=(0, None))
    ax.legend(loc="lower right")
axes[0].set_ylabel("theophylline (mg/L)")
plt.show()

for label, level in last_day.items():
    swing = np.median(level.max(axis=1) - level.min(axis=1))
    print(f"{label}: mean of the last day {np.median(level.mean(axis=1)):.1f} mg/L, swing {swing:.1f} mg/L")
mean = [np.median(level.mean(axis=1)) for level in last_day.values()]
swing = [np.median(np.ptp(level, axis=1)) for level in last_day.values()]
assert abs(mean[0] / mean[1] - 1) < 0.05
assert swing[1] < 0.6 * swing[0]

# %% [markdown]
# ## What this does not say
#
# One dose tells about one dose. That clearance is the same on the third day, that the drug's elimination
# does not saturate, that this person eats and sleeps as on the day of the study: the forecast takes all
# that for granted. Bioavailability cannot be told from oral doses at all, so `CL` and `V` here are those of
# the part that arrives.
#
# Next: [a network for what a mechanism lacks](02_neural_residual.ipynb).
