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
# # 4. A twin that follows its patient
#
# Notebook 1 fitted a model to a finished record. At the bedside the record is never finished: a sample
# comes, the next dose is due, and the question is what this sample has changed. A **live twin** holds what
# is believed of a patient as a few hundred weighted possibilities, and each new measurement reweighs them.
# No new fit, and one update costs milliseconds.
#
# We follow a ward of simulated patients on a drug, see their parameters narrow and their forecasts sharpen,
# and check at the end against the full calibration on all data.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import dtwin_jax as dt
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs

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
# ## The ward
#
# Every patient swallows 300 mg every 12 hours for two days, and is sampled ten times. The model is the
# shipped one-compartment model. The priors say how patients differ; their numbers, and the known error of
# measurement, are chosen for this notebook. The patients are drawn from the same priors, so what can be
# known beforehand is known.

# %%
PRIORS = {
    "CL": dt.lognormal(3.0, log_sd=0.4),
    "V": dt.lognormal(30.0, log_sd=0.3),
    "ka": dt.lognormal(1.0, log_sd=0.5),
    "sd": 0.2,  # a number: known, mg/L
    "cv": 0.05,
}
TIMES = np.array([1.0, 3.0, 7.0, 11.5, 14.0, 20.0, 23.5, 27.0, 35.5, 47.5])
patients = 20 if SHORT else 60
doses = dt.Doses(np.arange(0.0, 48.0, 12.0), 300.0)
names = [f"patient {i}" for i in range(patients)]
plan = dt.stack({name: dt.Record(Inputs(oral=doses), {"concentration": dt.Series(TIMES)}) for name in names})

# %% [markdown]
# A ward is drawn with the tools of the live twin itself: one draw of the prior a patient is that patient.

# %%
ward = dt.live_from_prior(one_compartment, plan, key=jax.random.key(1), draws=1, priors=PRIORS)
seen = np.asarray(
    dt.forecast_live(one_compartment, ward, plan.record, jax.random.key(2), 1)["concentration"]
)[0]
true = {name: value[:, 0] for name, value in dt.parameters_of(ward).items()}


def record_at(times, values=None):
    """The ward at these times, with what was measured, or to be predicted."""
    shape = (patients, len(times))
    time = np.broadcast_to(times, shape).copy()
    series = dt.Series(
        time, np.zeros(shape) if values is None else values, mask=np.full(shape, values is not None)
    )
    return dt.Record(plan.record.inputs, {"concentration": series}, {}, plan.record.t0)


# %% [markdown]
# ## Measurement by measurement
#
# The loop below is all there is to it: a twin, a new sample, a twin. We keep each state of the twins, to
# look back. `history` hands over the whole record besides; more of that below. Without it the past is not
# needed any more.

# %%
draws = 300


def follow(history):
    twins = [dt.live_from_prior(one_compartment, plan, key=jax.random.key(3), draws=draws, priors=PRIORS)]
    for i in range(len(TIMES)):
        new = record_at(TIMES[i : i + 1], seen[:, i : i + 1])
        key = jax.random.fold_in(jax.random.key(4), i)
        twins.append(dt.assimilate(one_compartment, twins[-1], new, key=key, history=history))
    return twins


twins = follow(None)
assert not np.any(twins[-1].lost)


def weighted(twin, name, levels):
    """Quantiles of a parameter, (level, patient)."""
    value, weight = dt.parameters_of(twin)[name], np.exp(np.asarray(twin.log_weight))
    order = np.argsort(value, axis=1)
    value, weight = np.take_along_axis(value, order, 1), np.take_along_axis(weight, order, 1)
    share = np.cumsum(weight, axis=1) - 0.5 * weight
    return np.array([[np.interp(level, s, v) for s, v in zip(share, value, strict=True)] for level in levels])


# %% [markdown]
# ## A forecast that sharpens
#
# What does the twin of one patient expect of the rest of the two days? Look from left to right. Before any
# sample the band is as wide as the differences between patients; one sample at the first peak tells little
# of clearance; after four, the band follows this patient. Open circles are still to come.

# %%
one = int(np.argmin(np.abs(true["CL"] / 3.0 - 0.6)))  # a patient who clears slowly
fig, axes = plt.subplots(1, 4, figsize=(12.0, 3.4), sharey=True)
widths = []
for ax, count in zip(axes, (0, 1, 2, 4), strict=True):
    start = TIMES[count - 1] if count else 0.0
    hours = np.linspace(start, 48.0, 97)
    drawn = dt.forecast_live(one_compartment, twins[count], record_at(hours), jax.random.key(7), 400)
    low, middle, high = np.quantile(drawn["concentration"][:, one], (0.05, 0.5, 0.95), axis=0)
    widths.append(np.mean((high - low)[hours > 36]))
    ax.fill_between(hours, low, high, color=BLUE, alpha=0.25, lw=0, label="90 % band of a measurement")
    ax.plot(hours, middle, color=BLUE, lw=1.3, label="median")
    ax.plot(TIMES[:count], seen[one, :count], "o", color=INK, ms=5, label="measured")
    ax.plot(TIMES[count:], seen[one, count:], "o", color=INK, ms=5, mfc="none", label="still to come")
    ax.set(xlabel="time (h)", xticks=range(0, 49, 12))
    ax.set_title(f"after {count} sample{'s' if count != 1 else ''}")
axes[0].set(ylabel="concentration (mg/L)", ylim=(0, None))
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()
assert widths[-1] < 0.7 * widths[0]

# %% [markdown]
# ## Parameters that narrow
#
# Below is the same patient's posterior after every sample. Each parameter is told by other samples: the
# early ones know of absorption and volume, clearance must wait for the troughs.

# %%
fig, axes = plt.subplots(1, 3, figsize=(10.0, 3.3))
units = dt.quantities(one_compartment.params())
steps = np.arange(len(twins))
for ax, name in zip(axes, ("CL", "V", "ka"), strict=True):
    quantiles = np.array([weighted(twin, name, (0.05, 0.25, 0.5, 0.75, 0.95))[:, one] for twin in twins])
    ax.fill_between(steps, quantiles[:, 0], quantiles[:, 4], color=BLUE, alpha=0.2, lw=0, label="90 %")
    ax.fill_between(steps, quantiles[:, 1], quantiles[:, 3], color=BLUE, alpha=0.35, lw=0, label="50 %")
    ax.plot(steps, quantiles[:, 2], color=BLUE, label="median")
    ax.axhline(true[name][one], color=ORANGE, ls="--", lw=1.4, label="true")
    ax.set(xlabel="samples taken in", ylabel=f"{name} ({units[name].unit})", xticks=range(0, 11, 2))
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

widths = {
    name: [np.mean(np.log(np.divide(*weighted(t, name, (0.95, 0.05))))) for t in (twins[0], twins[-1])]
    for name in ("CL", "V", "ka")
}
for name, (before, after) in widths.items():
    print(
        f"{name}: 90 % intervals of the ward span a factor of {np.exp(before):.2f}, then {np.exp(after):.2f}"
    )
assert all(after < 0.7 * before for before, after in widths.values())

# %% [markdown]
# ## How many possibilities are left?
#
# Each measurement takes weight from what it contradicts, and soon few draws carry all of it: the
# **effective number** falls. When too few are left the draws are renewed, drawn again by their weights and
# spread a little; a sample that tells much is taken in by stages, with a renewal between. Look at the
# rings, where our patient's twin was renewed: thanks to them most of the draws count all the way.

# %%
effective = np.array([twin.effective() for twin in twins])
renewed = np.array([np.asarray(twin.renewed) for twin in twins])
fig, ax = plt.subplots()
for i in range(0, patients, max(1, patients // 10)):
    ax.plot(steps, effective[:, i], color=GREY, lw=0.8, alpha=0.7, label="ten others" if i == 0 else None)
ax.plot(steps, effective[:, one], "o-", color=BLUE, ms=4, label="our patient")
anew = np.flatnonzero(np.diff(renewed[:, one])) + 1
ax.plot(anew, effective[anew, one], "o", ms=11, mfc="none", color=ORANGE, label="renewed on the way")
ax.set(xlabel="samples taken in", ylabel="effective draws", title=f"Of {draws} draws, how many count")
ax.set(ylim=(0, 1.25 * draws), xticks=range(0, 11))
ax.legend(ncols=3, loc="upper right")
plt.show()
print(f"renewals a patient: {renewed[-1].mean():.1f}; least effective number: {effective.min():.0f}")
assert effective.min() > 20

# %% [markdown]
# ## Is it right? The full calibration
#
# `dt.calibrate` reads the whole record at once, and is exact up to the number of its draws. The live twin's
# renewal spreads the draws by a kernel that takes their distribution for normal, which is an approximation,
# and repeated ones add up. With `history` each renewal ends in steps whose target is the posterior of all
# measurements so far: that is exact too, and costs a solve of the whole record. Three of the patients, by
# all three ways:

# %%
records = {
    name: dt.Record(Inputs(oral=doses), {"concentration": dt.Series(TIMES, seen[i])})
    for i, name in enumerate(names)
}
cohort = dt.stack(records)
exact = follow(cohort.record)

few = [one, *[i for i in range(patients) if i != one][:2]]
method = dt.Nuts(warmup=300, draws=500, dense=True, target_accept=0.9)
tree = dt.calibrate(one_compartment, cohort.take(few), key=jax.random.key(5), priors=PRIORS, method=method)

fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.4), sharey=True)
levels = np.linspace(0.005, 0.995, 200)
for column, (ax, i) in enumerate(zip(axes, few, strict=True)):
    drawn = tree["posterior"]["CL"].values[..., column].ravel()
    ax.plot(weighted(twins[0], "CL", levels)[:, i], levels, color=GREY, lw=1.2, label="prior")
    ax.plot(np.quantile(drawn, levels), levels, color=INK, lw=3, alpha=0.5, label="calibrate, all at once")
    ax.plot(weighted(twins[-1], "CL", levels)[:, i], levels, color=ORANGE, lw=1.4, label="live")
    ax.plot(weighted(exact[-1], "CL", levels)[:, i], levels, color=BLUE, lw=1.4, label="live with history")
    ax.axvline(true["CL"][i], color=GREY, ls="--", lw=1, label="true")
    low, high = np.quantile(drawn, (0.001, 0.999))
    ax.set(xlabel="CL (L/h)", xlim=(low - 0.4, high + 0.4), title=names[i])
axes[0].set_ylabel("probability that CL is less")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
plt.show()


def apart(twin):
    """How far the twins' means and sds of the log parameters are from those of the calibration, at worst."""
    shift, ratio = [], []
    for name in ("CL", "V", "ka"):
        logs = np.log(tree["posterior"][name].values.reshape(-1, len(few)))
        mine, weight = np.log(dt.parameters_of(twin)[name])[few], np.exp(np.asarray(twin.log_weight))[few]
        mean = np.sum(weight * mine, axis=1)
        sd = np.sqrt(np.sum(weight * (mine - mean[:, None]) ** 2, axis=1))
        shift.append(np.abs(mean - logs.mean(axis=0)) / logs.std(axis=0))
        ratio.append(np.abs(np.log(sd / logs.std(axis=0))))
    return np.max(shift), np.exp(np.max(ratio))


for label, twin in (("live", twins[-1]), ("live with history", exact[-1])):
    shift, ratio = apart(twin)
    print(f"{label}: means at most {shift:.2f} sd off, widths at most a factor of {ratio:.2f}")
assert apart(exact[-1])[0] < 0.4 and apart(exact[-1])[1] < 1.3
assert apart(twins[-1])[0] < 0.9 and apart(twins[-1])[1] < 1.8

# %% [markdown]
# ## Are the forecasts honest?
#
# Before each sample is taken in, the twin says where it expects it. Over the ward and all samples, 90 %
# intervals should hold nine of ten. Each point is one round of samples on the ward; the grey band is where
# 90 % of the points should lie by chance alone, were the intervals perfect.

# %%
inside = []
for i, twin in enumerate(twins[:-1]):
    drawn = dt.forecast_live(
        one_compartment, twin, record_at(TIMES[i : i + 1]), jax.random.fold_in(jax.random.key(8), i), 400
    )
    low, high = np.quantile(drawn["concentration"][..., 0], (0.05, 0.95), axis=0)
    inside.append(np.mean((low <= seen[:, i]) & (seen[:, i] <= high)))
chance = np.quantile(np.random.default_rng(0).binomial(patients, 0.9, 4000) / patients, (0.05, 0.95))
fig, ax = plt.subplots()
ax.axhspan(*chance, color=GREY, alpha=0.2, lw=0, label="by chance")
ax.axhline(0.9, color=GREY, lw=1)
ax.plot(np.arange(1, len(TIMES) + 1), inside, "o", color=BLUE, label="90 % intervals of the next sample")
ax.set(
    xlabel="sample", ylabel="share of patients inside", title="Forecasts of the next sample", ylim=(0.5, 1.02)
)
ax.legend(loc="lower right")
plt.show()
print(f"over all samples {100 * np.mean(inside):.0f} % are inside")
assert 0.8 <= np.mean(inside) <= 0.98

# %% [markdown]
# ## Both together
#
# In practice a patient often has a record already. `dt.live` begins from a calibration, at the last
# measurement, and goes on from there.

# %%
now = dt.live(one_compartment, tree, draws=draws)
sample = dt.forecast_live(one_compartment, ward, record_at(np.array([50.0])), jax.random.key(10), 1)
later = dt.Record(
    cohort.take(few).record.inputs,
    {"concentration": dt.Series(np.full((3, 1), 50.0), np.asarray(sample["concentration"])[0, few])},
)
then = dt.assimilate(one_compartment, now, later, key=jax.random.key(9))
print(f"at {now.time[0]:.1f} h all {now.effective()[0]:.0f} draws count, at {then.time[0]:.0f} h", end=" ")
print(f"{then.effective()[0]:.0f}, renewed {then.renewed[0]} time(s)")
assert np.all(np.asarray(then.time) == 50.0)

# %% [markdown]
# ## What this does not say
#
# A live twin believes its model. If the patient's clearance changes, because a kidney fails or another drug
# is given, ten samples of the old clearance weigh against the new, and the twin is late: then let the
# parameter move, as a state with a diffusion (notebook 3). And a renewal without history is an
# approximation, best where samples are many and each tells little; compare with a full calibration now and
# then.
