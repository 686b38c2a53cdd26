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
# # 2. A network for what a mechanism lacks
#
# A textbook model says that a drug is cleared in proportion to its concentration. In these patients it is
# not: their enzymes saturate, so that a large dose stays far longer than the model believes. We pretend not
# to know that. The mechanism keeps what it is right about, and a small neural network in its drift learns
# the rest from the patients' measurements, by gradients through the solver.
#
# The patients are simulated, so the missing term is known, and we can see whether the network has found it,
# and where it has not.

# %%
import os
import warnings
from dataclasses import replace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import dtwin_jax as dt
from dtwin_jax.models import one_compartment
from dtwin_jax.models.one_compartment import Inputs, State

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
# ## The truth, which the model will not be told
#
# Elimination by Michaelis and Menten: at low concentrations it is proportional to them, at high ones it
# cannot go above a greatest rate. The two numbers are chosen for this notebook; they are of no drug in
# particular.

# %%
VMAX, KM = 15.0, 4.0  # mg/h, mg/L


def true_elimination(concentration):
    return VMAX * concentration / (KM + concentration)


def true_drift(t, x, u, p):
    absorbed = p.ka * x.depot
    return State(depot=p.F * u.oral - absorbed, central=u.iv + absorbed - true_elimination(x.central / p.V))


truth = replace(one_compartment, name="truth", drift=true_drift, flow=None)

# %% [markdown]
# Twenty patients to train on, five to tell when to stop, forty to judge by. Each gets one injection and is
# measured eight times, with an error of 5 %. Volumes differ between patients and are known.

# %%
HOURS = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 16.0, 24.0])


@jax.jit
@jax.vmap
def true_course(dose, volume):
    p = dt.assign(truth.params(), {"V": volume})
    given = Inputs(iv=dt.Doses(jnp.zeros(1), dose[None]))
    return dt.simulate(truth, p, given, HOURS).output.concentration


def simulated(seed, count):
    rng = np.random.default_rng(seed)
    dose, volume = rng.uniform(40.0, 700.0, 60), 20.0 * np.exp(0.2 * rng.standard_normal(60))
    course = np.asarray(true_course(dose, volume))
    seen = course * (1.0 + 0.05 * rng.standard_normal(course.shape))
    records = {
        f"{seed}-{i}": dt.Record(
            Inputs(iv=dt.Doses([0.0], [dose[i]])),
            {"concentration": dt.Series(HOURS, seen[i])},
            {"V": volume[i]},
        )
        for i in range(count)
    }
    return dt.stack(records), course[:count], dose[:count]


training, course, dose = simulated(1, 20)
stopping, _, _ = simulated(2, 5)
unseen, unseen_course, unseen_dose = simulated(3, 40)

# %% [markdown]
# ## The mechanism alone
#
# `dt.train` moves what all patients share along the gradient of their likelihood: here the clearance, and
# the error of measurement, which may grow to cover what the model gets wrong. The shipped model has a
# closed form, so nothing needs to be stepped through.

# %%
mechanism = one_compartment
steps = 150 if SHORT else 400
rule = {
    "optimiser": optax.chain(
        optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(0.03, steps, 0.05))
    ),
    "steps": steps,
    "key": jax.random.key(0),
    "held_out": stopping,
}
start = dt.assign(mechanism.params(), {"CL": 1.0, "V": 20.0, "sd": 0.5, "cv": 0.1})
alone = dt.train(mechanism, training, where=lambda p: (p.CL, p.cv, p.sd), params=start, **rule)
print(
    f"clearance {alone.params.CL:.2f} L/h, error {alone.params.sd:.2f} mg/L and {100 * alone.params.cv:.0f} %"
)

# %% [markdown]
# Look at the two patients below. One clearance cannot serve both: the line falls too slowly after the small
# dose, and too fast after the large one. The network's task is in these gaps.

# %%
fine = jnp.linspace(0.01, 24.0, 120)


@eqx.filter_jit
def course_of(model, p, volume, given):
    return dt.simulate(model, dt.assign(p, {"V": volume}), given, fine).output.concentration


def show(axes, fitted):
    for ax, i in zip(axes, (np.argmin(dose), np.argmax(dose)), strict=True):
        one = training.at(int(i))
        for label, (model, p, colour) in fitted.items():
            ax.plot(fine, course_of(model, p, one.known["V"], one.inputs), color=colour, label=label)
        ax.plot(HOURS, one.observations["concentration"].value, "o", color=INK, label="measured")
        ax.set(xlabel="time after the dose (h)", title=f"a dose of {dose[i]:.0f} mg", ylim=(0, None))
    axes[0].set_ylabel("concentration (mg/L)")
    axes[1].legend()


fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.5))
show(axes, {"mechanism alone": (mechanism, alone.params, ORANGE)})
plt.show()

# %% [markdown]
# ## Mechanism and network
#
# The network sees the concentration, and what it says is added to the rate of change of the amount. It is
# written as a clearance that depends on the concentration, so that nothing is eliminated where nothing is:
# what we do know stays true by construction. Its last layer starts at zero, so the hybrid starts as the
# mechanism. It has no closed form; steps of an hour are small enough for this drug, and make the many
# gradients cheap.


# %%
def more_clearance(t, x, u, p, net):
    level = x.central / p.V
    return {"central": -2.0 * level * net(jnp.log1p(level))[0]}


def hybrid_with(seed):
    net = dt.Perceptron(centre=(2.0,), spread=(1.0,), width=6, seed=seed)
    base = replace(mechanism, flow=None, solver=dt.Solver(diffrax.Bosh3, dt=1.0, max_steps=80))
    return dt.hybrid(base, more_clearance, net)


hybrid = hybrid_with(0)
learned_alone = {name: getattr(alone.params, name) for name in dt.quantities(alone.params)}

# %% [markdown]
# Three networks are trained, alike but for the random weights that they start with. Where they come to
# agree, the data have decided; where they do not, nothing has.

# %%
starts = [dt.assign(hybrid_with(seed).params(), learned_alone) for seed in range(3)]
members = dt.train_ensemble(hybrid, training, starts, where=lambda p: (p.CL, p.cv, p.sd, p.net), **rule)
best = members[0].params
print(f"error {best.sd:.2f} mg/L and {100 * best.cv:.1f} % (true: none and 5 %)")

fig, ax = plt.subplots()
ax.plot(alone.held_loss, color=ORANGE, label="mechanism alone")
for i, member in enumerate(members):
    ax.plot(member.held_loss, color=BLUE, lw=1.2, label="with a network (three)" if i == 0 else None)
ax.set(
    xlabel="step",
    ylabel="loss of a patient held out",
    title="The network learns what the clearance alone cannot",
    ylim=(0, 40),
)
ax.legend()
plt.show()
assert all(np.nanmin(member.held_loss) < np.nanmin(alone.held_loss) - 3 for member in members)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9.0, 3.5))
show(axes, {"mechanism alone": (mechanism, alone.params, ORANGE), "with a network": (hybrid, best, BLUE)})
plt.show()

# %% [markdown]
# ## What has it learned?
#
# The drift of the hybrid can be asked for the elimination at any concentration, and here the truth is
# known. Look at the shaded range, where the training patients were: the three networks lie on the true
# curve, which none of them was told. To the right of it they part from each other and from the truth. **A
# network knows nothing of where it has not been**, and does not say so by itself.

# %%
levels = jnp.linspace(0.05, 80.0, 200)


@eqx.filter_jit
def elimination(model, p):
    p = dt.assign(p, {"V": 20.0})
    rate = lambda c: -model.drift(0.0, State(depot=0.0, central=20.0 * c), model.inputs(), p).central  # noqa: E731
    return jax.vmap(rate)(levels)


highest = float(course.max())
fig, ax = plt.subplots()
ax.axvspan(0, highest, color=GREY, alpha=0.15, lw=0, label="seen in training")
ax.plot(levels, true_elimination(levels), color=INK, lw=2.5, label="true")
ax.plot(levels, elimination(mechanism, alone.params), color=ORANGE, label="mechanism alone")
for i, member in enumerate(members):
    label = "with a network (three)" if i == 0 else None
    ax.plot(levels, elimination(hybrid, member.params), color=BLUE, lw=1.2, label=label)
ax.set(
    xlabel="concentration (mg/L)",
    ylabel="elimination (mg/h)",
    title="The missing term, found where there were data",
    ylim=(0, 40),
    xlim=(0, 80),
)
ax.legend(loc="upper left")
plt.show()

inside = np.asarray(levels) < 0.8 * highest
wrong = {
    label: np.sqrt(np.mean(np.square(elimination(model, p) - true_elimination(levels))[inside]))
    for label, model, p in (("mechanism", mechanism, alone.params), ("hybrid", hybrid, best))
}
print({label: f"{value:.2f} mg/h" for label, value in wrong.items()})
assert wrong["hybrid"] < 0.5 * wrong["mechanism"]

# %% [markdown]
# ## Patients it has not seen
#
# What counts are new patients. `dt.ensemble_forecast` gives what each member expects, and draws about it.
# Each point below is one measurement time of one of forty patients, against the true course without error.

# %%
forecasts = {
    "mechanism alone": dt.ensemble_forecast(mechanism, [alone.params], unseen, key=jax.random.key(5)),
    "with a network": dt.ensemble_forecast(
        hybrid, [member.params for member in members], unseen, key=jax.random.key(5)
    ),
}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 4.0), sharex=True, sharey=True)
error = {}
for ax, (label, made), colour in zip(axes, forecasts.items(), (ORANGE, BLUE), strict=True):
    expected = made.expected["concentration"].mean(axis=0)
    error[label] = np.sqrt(np.mean((expected - unseen_course) ** 2))
    low, high = made.interval("concentration", 0.9)
    seen = unseen.record.observations["concentration"].value
    print(f"{label}: 90 % intervals hold {100 * np.mean((low <= seen) & (seen <= high)):.0f} %", end="")
    print(f" of the measurements, and are {np.median(high - low):.1f} mg/L wide in the middle")
    ax.plot([0, 40], [0, 40], color=GREY, lw=1)
    ax.plot(unseen_course.ravel(), expected.ravel(), "o", ms=3.5, color=colour, alpha=0.6, mew=0)
    ax.set(xlabel="true (mg/L)", title=f"{label}: error {error[label]:.2f} mg/L", xlim=(0, 40), ylim=(0, 40))
    ax.set_aspect("equal")
axes[0].set_ylabel("expected (mg/L)")
plt.show()
assert error["with a network"] < 0.4 * error["mechanism alone"]

# %% [markdown]
# Note that the intervals of the mechanism are right about as often: it has called its own failure an error
# of measurement, and is honest but wide. The network makes them narrow.
#
# ## How much of the drift is the network's?
#
# A hybrid that leaves all work to its network is no mechanism any more. `dt.residual_share` tells the
# network's share of the rates along the patients' courses.

# %%
share = dt.residual_share(hybrid, best, training)["central"]
print(f"the network does {100 * share:.0f} % of the (squared) elimination")
assert 0.01 < share < 0.9

# %% [markdown]
# ## Beyond what was seen
#
# Four times the median dose was not studied. `dt.region_of` remembers where the training patients' courses
# went, and warns when a forecast leaves it. Ask before you believe.

# %%
region = dt.region_of(hybrid, best, training)
large = 4.0 * float(np.median(dose))
overdose = dt.Record(
    Inputs(iv=dt.Doses([0.0], [large])), {"concentration": dt.Series(np.linspace(0.0, 72.0, 73))}, {"V": 20.0}
)
with warnings.catch_warnings(record=True) as raised:
    warnings.simplefilter("always")
    outside = region.outside(hybrid, best, overdose)
print(raised[0].message)
assert issubclass(raised[0].category, dt.RegionWarning) and outside[0] > 0.2

with warnings.catch_warnings():
    warnings.simplefilter("error")  # patients like those of the training raise none
    region.outside(hybrid, best, unseen, tolerated=0.1)

# %%
days = jnp.linspace(0.01, 72.0, 200)


@eqx.filter_jit
def long_course(model, p):
    model = replace(model, solver=dt.Solver(max_steps=4096))
    given = Inputs(iv=dt.Doses([0.0], [large]))
    return dt.simulate(model, dt.assign(p, {"V": 20.0}), given, days).output.concentration


fig, ax = plt.subplots()
ax.axhspan(0, highest, color=GREY, alpha=0.15, lw=0, label="seen in training")
ax.plot(days, long_course(truth, truth.params()), color=INK, lw=2.5, label="true")
for i, member in enumerate(members):
    label = "with a network (three)" if i == 0 else None
    ax.plot(days, long_course(hybrid, member.params), color=BLUE, lw=1.2, label=label)
ax.set(
    xlabel="time after the dose (h)",
    ylabel="concentration (mg/L)",
    title=f"An overdose of {large:.0f} mg",
    ylim=(0, None),
)
ax.legend()
plt.show()

# %% [markdown]
# At these concentrations the networks guess, each its own way, and the three forecasts of one patient part
# by several mg/L, which none of them would admit alone.
#
# ## What this does not say
#
# The truth was in reach of the network here: a term of one variable, smooth, in clean data on many doses.
# With measured data nobody shows the black line. What remains then is what was used above besides it: the
# error of patients held out, members that agree or do not, the share of the drift, and the region.
#
# If it is known *what* is missing, write it: Michaelis-Menten with two parameters beats any network, above
# all outside of the shaded range.
#
# Next: [a body that is noisy itself](03_sde_and_filter.ipynb).
