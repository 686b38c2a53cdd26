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
# # 3. A body that is noisy itself
#
# A differential equation says that the future follows from the parameters. Bodies disagree: a person's
# glucose wanders for reasons that no model holds, a snack, a walk, a bad night. If the model has no place
# for that, it must call it an error of measurement, and errors of measurement are forgotten from one sample
# to the next, while a wandering body is still where it went.
#
# A **stochastic** differential equation has a place for it. Then the state is no longer known from the
# parameters, and must be learned from each measurement as it comes: by a filter. This notebook simulates
# such a person, follows the glucose from few and noisy samples, finds the hidden disturbance behind it, and
# estimates how strongly the body wanders.

# %%
import os
from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist

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
# Glucose returns to its basal value by itself, and is moved by a disturbance that nobody measures: what
# appears in the blood beyond what is usual, or disappears. The disturbance forgets itself within an hour or
# so, and is kicked about by noise.
#
# $$dG = \left(-S_G\,(G - G_b) + R\right) dt, \qquad dR = -\tfrac{R}{\tau}\,dt + s\sqrt{2/\tau}\;dW$$
#
# `s` is the sd of the disturbance in the long run, which is easier to think of than the strength of the
# noise. $S_G$, $G_b$ and the error of measurement are those of healthy adults (Denti et al. 2010, doi
# 10.1152/ajpendo.00656.2009); $\tau$ and $s$ are chosen for this notebook.


# %%
class Params(eqx.Module):
    SG: dt.Scalar = dt.param(0.0192, "/min", source="Denti 2010", doc="glucose effectiveness")
    Gb: dt.Scalar = dt.param(91.3, "mg/dL", source="Denti 2010", doc="basal glucose")
    tau: dt.Scalar = dt.param(60.0, "min", source="chosen here", doc="memory of the disturbance")
    s: dt.Scalar = dt.param(
        0.6, "mg/dL/min", dt.lognormal(0.3, log_sd=1.0), source="chosen here", doc="its sd in the long run"
    )
    sd: dt.Scalar = dt.param(4.28, "mg/dL", source="Denti 2010", doc="error of a measurement")


class Inputs(eqx.Module):
    given: dt.Input = dt.var("mg/dL/min", neutral=0.0, doc="glucose that is given, over its volume")


class State(eqx.Module):
    glucose: dt.Scalar = dt.var("mg/dL")
    disturbance: dt.Scalar = dt.var("mg/dL/min")


class Outputs(eqx.Module):
    glucose: dt.Scalar = dt.var("mg/dL")


def init(p):
    return State(glucose=p.Gb, disturbance=0.0)


def drift(t, x, u, p):
    back = -p.SG * (x.glucose - p.Gb)
    return State(glucose=back + x.disturbance + u.given, disturbance=-x.disturbance / p.tau)


def diffusion(t, x, u, p):
    return State(glucose=0.0 * x.glucose, disturbance=p.s * jnp.sqrt(2.0 / p.tau))


def observe(t, x, u, p):
    return Outputs(glucose=x.glucose)


def noise(y, p):
    return {"glucose": dist.Normal(y.glucose, p.sd)}


model = dt.Model(
    name="wandering_glucose",
    params=Params,
    inputs=Inputs,
    init=init,
    drift=drift,
    observe=observe,
    noise=noise,
    diffusion=diffusion,  # this makes it stochastic
    time="min",
    solver=dt.Solver(diffrax.Heun, dt=2.0),  # of the paths that are simulated
    filter=dt.Kalman(),  # exact, since the equations are linear
)
assert not dt.check_model(model)  # units, doses and shapes agree
p = model.params()

# %% [markdown]
# ## Paths
#
# With one random key `dt.simulate` gives one path; with many, what might happen. Without noise this
# person's glucose would lie on the dashed line all day: the ordinary differential equation has nothing to
# say about the rest.

# %%
grid = jnp.linspace(0.0, 720.0, 361)


@jax.jit
@jax.vmap
def paths(key):
    return dt.simulate(model, p, Inputs(), grid, key=key).state


many = paths(jax.random.split(jax.random.key(0), 300 if SHORT else 1000))
hours = np.asarray(grid) / 60.0
low, high = np.quantile(many.glucose, (0.05, 0.95), axis=0)
fig, ax = plt.subplots()
ax.fill_between(hours, low, high, color=BLUE, alpha=0.15, lw=0, label="90 % of all paths")
for i in range(6):
    ax.plot(hours, many.glucose[i], color=BLUE, lw=0.9, alpha=0.8, label="six paths" if i == 0 else None)
ax.axhline(p.Gb, color=ORANGE, ls="--", lw=1.4, label="without noise")
ax.set(
    xlabel="time (h)", ylabel="glucose (mg/dL)", title="One person's day, many times", xticks=range(0, 13, 2)
)
ax.legend(ncols=3, loc="upper left")
ax.set_ylim(20, 155)
plt.show()

# %% [markdown]
# ## Following one of them
#
# One path is our person. Blood is taken every 30 minutes, and read with an error. Everything that follows
# sees the points only.

# %%
times = np.arange(30.0, 721.0, 30.0)
rows = np.searchsorted(np.asarray(grid), times)
truth = jax.tree.map(lambda leaf: np.asarray(leaf[3]), many)
rng = np.random.default_rng(1)
seen = truth.glucose[rows] + float(p.sd) * rng.standard_normal(len(times))
record = dt.Record(Inputs(), {"glucose": dt.Series(times, seen)})

# %% [markdown]
# A model with a diffusion predicts each measurement from all that came before it: `predict` is **one step
# ahead**. The same model without its diffusion must make do with a larger error. We give it the best one
# there is, the scatter of the points themselves, and it still loses: look at how its band never learns.

# %%
one_ahead = jax.jit(lambda p: model.predict(p, record)["glucose"])(p)
ordinary = replace(model, name="ordinary", diffusion=None, solver=dt.Solver())
wide = dt.assign(p, {"sd": float(np.sqrt(np.mean((seen - float(p.Gb)) ** 2)))})
score = {
    "stochastic": float(dt.log_likelihood(model, p, record)["glucose"].sum()),
    "ordinary": float(dt.log_likelihood(ordinary, wide, record)["glucose"].sum()),
}
print({name: f"log-likelihood {value:.1f}" for name, value in score.items()})
assert score["stochastic"] > score["ordinary"] + 3

fig, ax = plt.subplots()
reach = 1.645
ax.axhspan(
    p.Gb - reach * wide.sd, p.Gb + reach * wide.sd, color=ORANGE, alpha=0.12, lw=0, label="ordinary, 90 %"
)
ax.errorbar(
    times / 60,
    one_ahead.mean,
    reach * np.sqrt(one_ahead.variance),
    fmt="_",
    color=BLUE,
    elinewidth=1.5,
    label="one step ahead, 90 %",
)
ax.plot(times / 60, seen, "o", ms=5, color=INK, label="measured")
ax.set(xlabel="time (h)", ylabel="glucose (mg/dL)", title="What was expected, just before it was measured")
ax.set(xticks=range(0, 13, 2))
ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.18))
plt.show()

# %% [markdown]
# ## The state, known late and known later
#
# `dt.estimate_states` gives the state with its uncertainty. With `smooth=False` each moment knows the
# measurements up to itself, which is what one has at the bedside. With `smooth=True` each moment knows all
# of them, which is what one has in the evening. Look at the lower row: nobody measures the disturbance, and
# it is found all the same, by what it does to glucose. The smoother's band is narrower, and does not saw.


# %%
@eqx.filter_jit
def states(model, p, record, smooth):
    return dt.estimate_states(model, p, record, grid, smooth=smooth)


fig, axes = plt.subplots(2, 2, figsize=(9.5, 5.4), sharex=True, sharey="row")
for column, smooth in zip(axes.T, (False, True), strict=True):
    found = states(model, p, record, smooth)
    for ax, name in zip(column, ("glucose", "disturbance"), strict=True):
        mean, sd = getattr(found.mean, name), getattr(found.sd, name)
        band = "90 % band"
        ax.fill_between(hours, mean - reach * sd, mean + reach * sd, color=BLUE, alpha=0.25, lw=0, label=band)
        ax.plot(hours, mean, color=BLUE, label="estimate")
        ax.plot(hours, getattr(truth, name), color=ORANGE, lw=1.2, label="true")
    column[0].plot(times / 60, seen, "o", ms=4, color=INK, label="measured")
    column[0].set_title("smoother: all measurements" if smooth else "filter: measurements so far")
    column[1].set(xlabel="time (h)", xticks=range(0, 13, 2))
axes[0, 0].set_ylabel("glucose (mg/dL)")
axes[1, 0].set_ylabel("disturbance (mg/dL/min)")
fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

filtered, smoothed = states(model, p, record, False), states(model, p, record, True)
assert np.mean(smoothed.sd.disturbance) < 0.9 * np.mean(filtered.sd.disturbance)

# %% [markdown]
# ## Are the bands honest?
#
# One person proves nothing. Over all simulated days, a band of 50 % should hold the truth half of the time,
# one of 90 % nine times of ten. On the diagonal is honest; below it would be too sure.


# %%
@jax.jit
@jax.vmap
def followed(readings):
    one = dt.Record(
        Inputs(), {"glucose": eqx.tree_at(lambda s: s.value, record.observations["glucose"], readings)}
    )
    found = dt.estimate_states(model, p, one, grid[::10], smooth=True)
    return found.mean, found.sd


errors = float(p.sd) * rng.standard_normal((len(many.glucose), len(times)))
mean, sd = followed(jnp.asarray(many.glucose[:, rows] + errors))
levels = np.linspace(0.05, 0.95, 19)
fig, ax = plt.subplots(figsize=(4.4, 4.2))
ax.plot([0, 1], [0, 1], color=GREY, lw=1)
for name, colour in (("glucose", BLUE), ("disturbance", GREEN)):
    # The start is known, and an sd of 0 has no bands.
    true = getattr(many, name)[:, 10::10]
    z = np.abs(true - getattr(mean, name)[:, 1:]) / getattr(sd, name)[:, 1:]
    holds = [np.mean(z < float(dist.Normal(0.0, 1.0).icdf(0.5 + level / 2))) for level in levels]
    ax.plot(levels, holds, "o-", ms=3.5, color=colour, label=name)
    assert np.max(np.abs(np.array(holds) - levels)) < 0.03
ax.set(
    xlabel="level of the band", ylabel="share of truths inside", title="Bands of the smoother", aspect="equal"
)
ax.legend()
plt.show()

# %% [markdown]
# ## Four filters
#
# The Kalman filter is exact here. The extended one (linearises about the mean) and the unscented one (sends
# a few points through the equations) need not have linear equations, and must agree with it where they are.
# The particle filter sends hundreds of possible bodies along and asks for no shape at all; it agrees up to
# chance. What they give is the likelihood of a parameter: here of `s`, which says how much this person
# wanders.

# %%
grid_s = np.geomspace(0.15, 2.4, 9 if SHORT else 17)
particles = dt.ParticleFilter(members=200 if SHORT else 500)
filters = {
    "Kalman": dt.Kalman(),
    "extended": dt.ExtendedKalman(),
    "unscented": dt.UnscentedKalman(),
    "particles": particles,
}


@eqx.filter_jit
def likelihoods(model, record, values):
    one = lambda s: dt.log_likelihood(model, dt.assign(p, {"s": s}), record)["glucose"].sum()  # noqa: E731
    return jax.lax.map(one, values)


curves = {
    name: np.asarray(likelihoods(replace(model, filter=f), record, jnp.asarray(grid_s)))
    for name, f in filters.items()
}
fig, ax = plt.subplots()
ax.semilogx(grid_s, curves["Kalman"], color=BLUE, lw=3, alpha=0.4, label="Kalman")
ax.semilogx(grid_s, curves["extended"], "x", color=INK, ms=7, label="extended")
ax.semilogx(grid_s, curves["unscented"], "+", color=ORANGE, ms=9, mew=1.6, label="unscented")
ax.semilogx(grid_s, curves["particles"], "o", color=GREEN, ms=5, mfc="none", label="particles")
ax.axvline(p.s, color=GREY, lw=1, ls="--", label="true")
ax.set(xlabel="s, the sd of the disturbance (mg/dL/min)", ylabel="log-likelihood")
ax.set(
    title="The likelihood of how much a body wanders",
    xticks=[0.2, 0.5, 1, 2],
    xticklabels=["0.2", "0.5", "1", "2"],
)
ax.set_ylim(curves["Kalman"].max() - 40, curves["Kalman"].max() + 4)
ax.minorticks_off()
ax.legend(loc="lower right")
plt.show()
np.testing.assert_allclose(curves["extended"], curves["Kalman"], atol=1e-2)
np.testing.assert_allclose(curves["unscented"], curves["Kalman"], atol=1e-2)
near = curves["Kalman"] > curves["Kalman"].max() - 5
assert np.all(np.abs(curves["particles"] - curves["Kalman"])[near] < 3)

# %% [markdown]
# The particles' circles scatter about the curve, which is why they have no gradient to climb: their
# likelihood is for checking others, not for fitting.
#
# ## Fitting the noise
#
# The likelihood of a filter is differentiable like that of a solver, so `dt.fit` takes a diffusion as it
# takes a clearance. Here twelve simulated people, each alone, who wander more or less. Half a day of 24
# samples tells `s` to within a third or so.

# %%
count = 12
true_s = np.geomspace(0.25, 1.5, count)


@jax.jit
@jax.vmap
def day_of(s, key):
    return dt.simulate(model, dt.assign(p, {"s": s}), Inputs(), jnp.asarray(times), key=key).output.glucose


days = np.asarray(day_of(jnp.asarray(true_s), jax.random.split(jax.random.key(4), count)))
days = days + float(p.sd) * rng.standard_normal(days.shape)
people = dt.stack({f"{i}": dt.Record(Inputs(), {"glucose": dt.Series(times, days[i])}) for i in range(count)})
fitted = dt.fit(model, people, key=jax.random.key(2), starts=3)
assert not fitted.failed
estimate = fitted.estimate["s"]
log_sd = np.sqrt(fitted.covariance[:, 0, 0])

fig, ax = plt.subplots(figsize=(5.0, 4.2))
around = estimate * (1 - np.exp(-reach * log_sd)), estimate * (np.exp(reach * log_sd) - 1)
ax.plot([0.15, 2.5], [0.15, 2.5], color=GREY, lw=1)
ax.errorbar(true_s, estimate, around, fmt="o", color=BLUE, ms=5, elinewidth=1.4)
ax.set(xscale="log", yscale="log", xlabel="true s (mg/dL/min)", ylabel="fitted s, with 90 % interval")
ax.set(title="Twelve people who wander differently", aspect="equal")
for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_locator(plt.FixedLocator([0.2, 0.5, 1, 2]))
    axis.set_major_formatter(plt.FormatStrFormatter("%g"))
    axis.set_minor_locator(plt.NullLocator())
plt.show()
off = np.abs(np.log(estimate / true_s)) / log_sd
print(f"{np.sum(off < reach)} of {count} intervals hold the truth")
assert np.sum(off < reach) >= 8 and np.all(off < 4)

# %% [markdown]
# ## When the equations bend
#
# Let the body make glucose at a rate that is always positive, $P\,e^{z}$, with $z$ wandering. That is no
# longer linear, and the Kalman filter refuses it rather than getting it wrong. The extended filter takes
# the tangent at the mean, and so misses that $e^z$ is larger on average than $e$ to the average of $z$; the
# unscented one sees that. The particles, many of them, are the judge.


# %%
class Bent(eqx.Module):
    glucose: dt.Scalar = dt.var("mg/dL")
    z: dt.Scalar = dt.var("1")


def bent_drift(t, x, u, p):
    production = p.SG * p.Gb * jnp.exp(x.z)
    return Bent(glucose=production - p.SG * x.glucose + u.given, z=-x.z / p.tau)


bent = replace(
    model,
    name="bent",
    init=lambda p: Bent(glucose=p.Gb, z=0.0),
    drift=bent_drift,
    diffusion=lambda t, x, u, p: Bent(glucose=0.0 * x.glucose, z=p.s * jnp.sqrt(2.0 / p.tau)),
)
try:
    bent.predict(p, record)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("the Kalman filter took equations that are not linear")

# %% [markdown]
# Ahead of any measurement, what does each filter expect of the next three hours? Times without a value are
# only predicted. Look at the dotted line: it stays at the basal value, while the mean of the bodies rises
# above it.

# %%
ahead = np.arange(10.0, 181.0, 10.0)
asked = dt.Record(Inputs(), {"glucose": dt.Series(ahead)})
judges = {
    "extended": (dt.ExtendedKalman(), ORANGE, ":"),
    "unscented": (dt.UnscentedKalman(), BLUE, "-"),
    "particles": (dt.ParticleFilter(members=2000 if SHORT else 10000), GREEN, "--"),
}
predict = eqx.filter_jit(lambda model, p: model.predict(p, asked)["glucose"])
expected = {}
fig, ax = plt.subplots()
for name, (f, colour, style) in judges.items():
    found = predict(replace(bent, filter=f), p)
    expected[name] = np.asarray(found.mean)
    ax.plot(ahead / 60, expected[name], style, color=colour, lw=2.2, label=name)
ax.set(xlabel="time (h)", ylabel="mean of glucose (mg/dL)", title="Production that wanders, and is positive")
ax.legend()
plt.show()
gap = {name: abs(expected[name][-1] - expected["particles"][-1]) for name in ("extended", "unscented")}
print({name: f"{value:.1f} mg/dL off after three hours" for name, value in gap.items()})
assert gap["unscented"] < 0.5 * gap["extended"]

# %% [markdown]
# ## What this does not say
#
# The model that made the data also read them. With a real person the disturbance is not an hour long and
# normal; the bands are as honest as the model. `s`, the error of measurement and the memory are hard to
# tell apart from one short record, so what is known from elsewhere (here the error of the meter) should be
# given.
#
# Next: [a twin that follows its patient](04_live_twin.ipynb).
