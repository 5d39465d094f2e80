# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [15_combine]
# ---

# %% [markdown]
# # 15 · Combine: in which order, and how small can the file get?
#
# Pruning leaves few weights, quantization leaves few values, entropy coding writes what is left as briefly as its
# statistics allow, and a teacher wins back what all this cost. Here they work on the same network, one after the other.
# How far does that go, does the order matter, and is the smallest file also the fastest network? The answers are
# measured on LeNet-5 and on a network for photographs.
#
# **You will be able to**
# - prune, quantize and code one network so that every step helps the next;
# - account for each byte of a file of a few kilobytes;
# - set up a race of orders that is fair, and say what it does not decide;
# - choose between few weights anywhere, for the disk, and a thin dense network, for the clock;
# - state one set of weights, each file made of it, and what each file is for.
#
# **Before this**: notebooks 02 (gradual pruning), 03 (scores), 04 (filters), 09 (codes), 12 (teachers) and 14 (entropy
# coding).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import math
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.nn.utils import parametrize

from helpers import (
    checkpoints,
    data,
    distillation,
    evidence,
    exercises,
    files,
    measure,
    nets,
    pruning,
    quantization,
    runtime,
    show,
    training,
)
from helpers.core import modules
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("15_combine", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("15_combine"))

# %% [markdown]
# How far did it go? Here is the file of LeNet-5 in the published runs: dense, and after each step of the chain. Each step starts from the
# one above. The last row is the other way to be small, a thin network of few filters and neurons, quantized and coded, too.

# %% tags=["plumbing", "answer"]
results = evidence.published("15_combine")
if results:
    names = {"dense": "dense", "pruned": "pruned", "quantized": "… and quantized", "coded": "… and coded"}
    rows = {
        label: [row["file"] for result in results for row in result.measurements["waterfall"] if row["step"] == step]
        for step, label in names.items()
    }
    models = {f"lenet5-{kind}": [] for kind in ("dense", "coded", "thin-coded")}
    for result in results:
        for model in result.models:
            models.get(model.name, []).append(model)
    rows["or thin, quantized, coded"] = [model.file_bytes for model in models["lenet5-thin-coded"]]
    wrong = {name: 100 * (1 - np.mean([model.accuracy for model in found])) for name, found in models.items()}
    smaller = np.mean(rows["dense"]) / np.mean(rows["… and coded"])
    fig = show.dots(
        rows,
        title=f"LeNet-5 in a file {smaller:,.0f} times smaller, {wrong['lenet5-coded']:.2f} % test error",
        xlabel="bytes of the file (log scale); a dot is one run",
        label="{:,.0f}",
    )
    fig.axes[0].set_xscale("log")
    table = pd.DataFrame(rows, index=[f"seed {result.seed}" for result in results]).T
    show.figure(fig, alt=f"Bytes of LeNet-5's file, by run. {show.in_words(table)}", table=table)
    raced = pd.DataFrame([row for result in results for row in result.measurements["orders"]]).explode("accuracies")
    raced = 100 * raced.astype({"accuracies": float}).groupby(["order", "net"])["accuracies"].mean()
    lead = raced["both at once"] - raced["prune, then quantize"]
    say(
        f"Of {len(results)} runs the mean: {np.mean(rows['… and coded']):,.0f} bytes and {wrong['lenet5-coded']:.2f} % test error, thin "
        f"{np.mean(rows['or thin, quantized, coded']):,.0f} bytes and {wrong['lenet5-thin-coded']:.2f} %, dense {wrong['lenet5-dense']:.2f} %. "
        "And the order? Pruning and quantizing at once, against pruning first, made a difference of "
        f"{' and '.join(f'{points:+.2f} points on {net}' for net, points in lead.items())}. Section 2 says how to read that."
    )
else:
    say("No full run of this page is published, so there is no picture of its result yet.")

# %% [markdown]
# The idea in one picture: each step removes something else, so their savings multiply. And there are two ways to be
# small. One leaves few weights, scattered over matrices as large as before. The other leaves small matrices, with
# hardly a gap in them. Each cell is a weight: its colour is the sign, and the darker it is, the larger the weight.

# %% tags=["plumbing"]
draw = np.random.default_rng(3)
whole = draw.normal(size=(8, 8))
few = np.where(np.abs(whole) > 1.3, whole, np.nan)
panels = {
    "dense": (whole, "every weight, 32 bits each"),
    "pruned": (few, "few weights"),
    "quantized": (np.sign(few) * np.where(np.abs(few) > 1.7, 2.0, 1.0), "few values"),
    "coded": (None, "few bits for what is frequent"),
    "or: thin": (whole[:4, :3], "small matrices, dense"),
}
fig, axes = plt.subplots(1, 5, figsize=(12, 3.4))
for ax, (name, (values, caption)) in zip(axes, panels.items(), strict=True):
    ax.set(xlim=(-0.5, 7.5), ylim=(7.5, -0.5), aspect="equal")
    if values is None:
        for line, bits in enumerate(("0110 1000", "1101 0111", "0010 11")):
            ax.text(3.5, 1.6 + 1.3 * line, bits, ha="center", family="monospace", fontsize=12)
    else:
        ax.imshow(
            values, cmap="PuOr", vmin=-2.4, vmax=2.4, extent=(-0.5, values.shape[1] - 0.5, len(values) - 0.5, -0.5)
        )
        for row, column in np.ndindex(values.shape):
            ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#bbbbbb", linewidth=0.8))
        ax.set(xlim=(-0.5, 7.5), ylim=(7.5, -0.5))
    ax.set_title(name, fontsize=13, loc="center")
    ax.text(3.5, 8.3, caption, ha="center", va="top", fontsize=10, wrap=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
for ax, sign in zip(axes[:3], "→→→", strict=True):
    ax.text(8.55, 3.5, sign, ha="center", va="center", fontsize=20, clip_on=False)
show.figure(
    fig,
    alt="Five pictures of a matrix. Dense: 8 by 8 cells, all filled in many shades. Pruned: the same cells, about a fifth of them filled. "
    "Quantized: the same few cells in four colours. Coded: three short rows of zeros and ones. Or thin: a small "
    "matrix of 4 by 3 cells, all filled.",
)

# %% [markdown]
# Three settings matter most, and each has its section. `ratio` is how many times fewer weights section 1 leaves, and
# `bits` how many bits, by layer, each of them gets. `order` sets the race of section 2: digits, epochs of a phase,
# seeds, ratio of weights, bits. The published runs prune further and train longer than this page can in a minute
# (`full`, in the folded cell); all profiles run the same code. In full the sparse network starts from random weights,
# else from the trained network.

# %% tags=["plumbing"]
# Sparse: `digits`, each with `views` that the teacher answers once, `epochs` pruning, then `tune` with rounding; biases become
# multiples of 2^-bias. `steep`: digits and epochs of the pruning at the published ratio in section 2. Thin: `widths`, or `wide`
# narrowed to `budget` weights, for `thin` = (epochs, epochs with rounding). Photographs: `cut` times fewer MACs of `net`, filters
# scored on `scored` images and kept in groups of `round_to`, `retrain` = (epochs, epochs with rounding); int8 is calibrated on `calibration`.
S = evidence.settings(
    PROFILE,
    smoke=dict(ratio=50, digits=256, views=2, digit_batch=64, epochs=2, tune=1, bits=dict(conv1=4, conv2=3, fc1=3, fc2=3),
               bias=5, order=(64, 1, 2, 400, 3), steep=(64, 1), photo_order=(64, 1, 2, 40, 4), widths=(6, 12, 20), wide=(6, 12, 40), budget=6_000, thin=(1, 1),
               thin_lr=4e-3, net="cifar_small", cut=2.0, round_to=8,
               scored=64, photos=128, photo_views=1, retrain=(1, 1), batch=64, lr=0.02, photo_bits=4, calibration=20,
               digits_seen=200, photos_seen=100, tested=200, timings=20),
    quick=dict(ratio=30, digits=6_144, views=2, digit_batch=64, epochs=3, tune=1,
               bits=dict(conv1=4, conv2=3, fc1=3, fc2=3), bias=5, order=(768, 2, 2, 10, 3), steep=(1_024, 2), photo_order=(256, 1, 2, 5, 4),
               widths=(6, 12, 20), wide=(6, 12, 40), budget=6_000, thin=(6, 3), thin_lr=4e-3,
               net="cifar_small", cut=2.0, round_to=8, scored=500, photos=3_072, photo_views=1, retrain=(2, 1), batch=64,
               lr=0.02, photo_bits=4, calibration=100, digits_seen=2_500, photos_seen=1_000, tested=4_000, timings=30),
    full=dict(ratio=190, digits=55_000, views=9, digit_batch=128, epochs=30, tune=8,
              bits=dict(conv1=4, conv2=3, fc1=3, fc2=3), bias=5, order=(5_120, 2, 3, 50, 3), steep=(5_120, 2), photo_order=(3_072, 2, 3, 10, 3),
              widths=(6, 8, 9), wide=(6, 10, 30), budget=2_750, thin=(160, 20), thin_lr=8e-3,
              net="cifar_base", cut=2.6, round_to=16, scored=2_000, photos=45_000, photo_views=4, retrain=(8, 3), batch=128,
              lr=0.05, photo_bits=4, calibration=200, digits_seen=5_000, photos_seen=3_000, tested=10_000, timings=40),
)  # fmt: skip

# %%
training.seed_everything(SEED)
mnist, cifar = data.mnist(), data.cifar10()
digits, photos = mnist.validation.take(S.digits_seen), cifar.validation.take(S.photos_seen)
dense = checkpoints.load("lenet5")
ONE, TWO = digits.inputs[:1], digits.inputs[:2]


# %% tags=["plumbing"]
def accuracy(model, split=None):
    """Fraction of the validation digits, or of another split, that `model` gets right."""
    return training.evaluate(model, digits if split is None else split).accuracy


def saved(name):
    """Where a long training keeps its state, so that it can be resumed."""
    return run.scratch(f"{name}.pt") if PROFILE == "full" else None


def published_models(name):
    """Return the records of a model in the published full runs, by seed."""
    results = evidence.published("15_combine")
    return [model for result in results for model in result.models if model.name == name]


dense_file = files.write_dense(dense, run.scratch("lenet5.pack"))
say(
    f"LeNet-5: {measure.count_weights(dense):,} weights, a file of {dense_file.bytes:,} bytes, {accuracy(dense):.2%} of "
    f"{len(digits):,} validation digits. All choices below are made on validation images."
)

# %% [markdown]
# ## 1. As small as it gets
#
# The whole chain, with everything that the notebooks before taught. The dense network is the teacher. It answers a few
# fixed views of each digit once, and all trainings look its answers up (notebook 12). **Prune** gradually, by the
# **Fisher score** $w^2 \overline{g^2}$: the weight $w$ squared, times the mean of its squared gradient $g$. (Notebook 03
# shows where it comes from: the second term of Taylor's formula, with the squared slope in place of the curvature.)

# %%
train = mnist.train.take(S.digits)
moved = distillation.fixed_views(train.inputs, views=S.views, pixels=1, seed=SEED)
answers = distillation.ask(dense, moved, examples=len(train), views=S.views)
numbered = data.Split(torch.arange(len(train)), train.labels)
taught = distillation.taught_from(answers, moved)
gradual = dict(amount=1 - 1 / S.ratio, epochs=S.epochs, lr=2e-3, warmup=0.02, every=20, batch_size=S.digit_batch)
begin = nets.lenet5() if PROFILE == "full" else dense
fitted = pruning.prune_gradually(begin, numbered, **gradual, loss=taught, seed=SEED, checkpoint=saved("gradual"))
sparse, seconds = fitted.model, sum(row["seconds"] for row in fitted.history)

# %% tags=["plumbing"]
say(f"{measure.count_nonzero(sparse):,} weights left, {accuracy(sparse):.2%} of the validation digits.")

# %% [markdown]
# **Clear.** Some neurons have lost all weights that they read with, or all that read from them. What is left of them, a
# bias here, a weight there, does nothing useful and costs bytes. Dead rows make dead columns in the next layer, and those
# make dead rows in the layer before: go on until nothing changes.

# %%
CHAIN = [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]


def clear(model):
    """Return a copy with masks that leave out, biases included, every unit that reads nothing or that nobody reads."""
    masks = pruning.masks_of(model)
    for layer, following in CHAIN * len(CHAIN):
        rows, columns = masks[f"{layer}.weight"], masks[f"{following}.weight"]
        is_read = columns.transpose(0, 1).reshape(len(rows), -1).any(1)
        alive = rows.flatten(1).any(1) & is_read
        block = alive.repeat_interleave(columns.shape[1] // len(alive))
        masks[f"{layer}.weight"] = rows & alive.view(-1, *[1] * (rows.dim() - 1))
        masks[f"{following}.weight"] = columns & block.view(1, -1, *[1] * (columns.dim() - 2))
        masks[f"{layer}.bias"] = alive
    return pruning.mask(model, masks)


# %%
cleared = clear(sparse)
units = {name: int(kept.sum()) for name, kept in pruning.masks_of(cleared).items() if name.endswith("bias")}

# %% tags=["plumbing"]
say(
    f"Alive: {', '.join(f'{count} of {len(dense.get_parameter(name))} in {name[:-5]}' for name, count in units.items())}. "
    f"{measure.count_nonzero(sparse) - measure.count_nonzero(cleared)} useless weights went with them, and accuracy is now "
    f"{accuracy(cleared):.2%}. (It can move: a dead neuron's bias was a constant that others had come to rely on.)"
)

# %% [markdown]
# **Quantize**, and train on with the rounding in place and the masks in force (notebook 09). One step for each layer,
# not one for each channel: hundreds of steps, four bytes each, weigh a lot in so small a file. Then **round the
# biases** to multiples of $2^{-b}$, with $b$ = `bias`, and the file needs a few bits for each.


# %%
def round_biases(model, power):
    """Return a copy whose biases are multiples of 2^-power."""
    new = modules.copied(model)
    for name, parameter in new.named_parameters():
        if "bias" in name:
            parameter.data = (parameter.data * 2**power).round() / 2**power
    return new


# %%
rounded = quantization.quantize_model(cleared, weights=S.bits, per_channel=False, learned=True)
before_tuning = accuracy(rounded)
tuning = dict(epochs=S.tune, lr=1e-3, optimizer="adam", batch_size=S.digit_batch)
fitted = training.fit(rounded, numbered, **tuning, loss=taught, seed=SEED, checkpoint=saved("tuned"))
tuned = round_biases(fitted.model, S.bias)
small = files.write_coded(tuned, run.scratch("lenet5.coded.pack"))
files.verify(small.path, tuned, digits.inputs[:256])

# %% tags=["plumbing"]
seconds += sum(row["seconds"] for row in fitted.history)
run.record("lenet5_seconds", seconds, timing=True)
say(f"Rounded: {before_tuning:.2%}. Trained with the rounding, biases rounded as well: {accuracy(tuned):.2%}.")

# %% [markdown]
# In the cell before the last, `write_coded` **codes** it, and `verify` reads the file back into a new network and compares logits bit for
# bit. Where are the bytes? "Plain" is what is written without a code: steps, names and shapes. **Predict**: do values
# or positions take more?

# %%
anatomy = pd.DataFrame(files.anatomy(tuned)).T.fillna(0)

# %% tags=["plumbing"]
run.record("anatomy", anatomy.reset_index(names="part"))
anatomy.loc["all"] = anatomy.sum()
anatomy.map("{:,.0f}".format)

# %% [markdown]
# Now the same network after each step, as a real file. Beside it stands the nominal account that counts the values and
# nothing else: four bytes each, then their bits, then their entropy. The gap between the two is everything that such an
# account leaves out.

# %%
stages = {
    "dense": dense_file,
    "pruned": files.write_sparse(cleared, run.scratch("pruned.pack")),
    "quantized": files.write_quantized(tuned, run.scratch("quantized.pack")),
    "coded": small,
}

# %% tags=["plumbing"]
left = measure.count_nonzero(tuned)
codes = [(part.codes[part.codes != 0], part.bits) for part in files.integers(tuned).values()]


def entropy(symbols):
    """Bits of a whole list by Shannon's formula, from its own frequencies (notebook 14)."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


nominal = {
    "dense": 4 * measure.count_weights(dense),
    "pruned": 4 * left,
    "quantized": sum(len(kept) * bits for kept, bits in codes) / 8,
    "coded": sum(entropy(np.asarray(kept)) for kept, _ in codes) / 8,
}
waterfall = pd.DataFrame(
    {"file": {name: packed.bytes for name, packed in stages.items()}, "nominal: values only": nominal}
)
run.record("waterfall", waterfall.reset_index(names="step"))
factor = dense_file.bytes / small.bytes
fig = show.bars(
    waterfall, title=f"{factor:,.0f} times smaller in three steps", xlabel="bytes (log scale)", label="{:,.0f}"
)
fig.axes[0].set_xscale("log")
fig.axes[0].set_xlim(right=2e7)
show.figure(fig, alt=f"Bytes after each step. {show.in_words(waterfall)}", table=waterfall)

# %% tags=["plumbing"]
steps = waterfall["file"].shift() / waterfall["file"]
run.claim("lenet5-file", "LeNet-5: times smaller than the dense file, read back, same logits", factor,
          at_least=630 if PROFILE == "full" else 110)  # fmt: skip
run.claim("coding-pays", "Bytes of the quantized file over those of the coded one", steps["coded"], at_least=1.2)
hidden = 1 - waterfall.loc["coded", "nominal: values only"] / small.bytes
say(
    f"Pruning made the file {steps['pruned']:.1f} times smaller, quantization {steps['quantized']:.1f}, coding "
    f"{steps['coded']:.2f}: **{factor:,.0f} times** in all, {small.bytes:,} bytes. Of these, {hidden:.0%} hold "
    "positions, biases and the header, which an account of values alone leaves out."
)

# %% [markdown]
# ## 2. In which order?
#
# Prune, then quantize? Quantize, then prune? Or both from the first step on? And how much of it is the teacher's? Two
# small races, on LeNet-5 and on the small network for photographs. Within a race all have the same start, the same
# images, the same number of steps, and prune by the same ratio to the same bits. What differs is what happens when.
#
# Two things come along with an order, and a fair reader keeps them apart from it. First, what is done at once is
# trained in one go, with one cycle of the learning rate; the others have two of half the length. Second, whoever prunes
# a *quantized* network has to say **by what** the weights are ranked. By the codes, the values it computes with? With
# three bits a layer has only a handful of magnitudes, and at nearly every border many weights are tied. Or by the float
# weights hidden behind the codes, which training moves, and which then go on in place of the codes? Both are here.


# %%
def floats_of(model):
    """Return the network of the hidden floats: what training moves, before it is rounded."""
    new = modules.copied(model)
    for name in pruning.parametrizations_of(new):
        layer, attribute = name.rsplit(".", 1)
        parametrize.remove_parametrizations(new.get_submodule(layer), attribute, leave_parametrized=False)
    return new


def cut(model, ratio, by="codes"):
    """Return a network with ordinary weights, the codes' values or the hidden floats; all but the largest are masked."""
    plain = quantization.bake(model) if by == "codes" else floats_of(model)
    return pruning.mask(plain, pruning.global_masks(plain, 1 - 1 / ratio))


def in_bits(model, bits):
    return quantization.quantize_model(model, weights=bits, per_channel=False, learned=True)


# %% [markdown]
# Of a network that is not quantized yet, `codes` are simply its weights. The four orders, each with two phases of
# training:

# %%
ORDERS = "prune, then quantize", "quantize, then prune", "quantize, then prune by floats", "both at once"


def in_order(order, start, train_on, *, ratio, bits):
    """Return what an order makes of `start`; `train_on(model, phase, phases)` trains it."""
    if order == "both at once":
        return train_on(in_bits(cut(start, ratio), bits), 0, phases=2)
    if order == "prune, then quantize":
        return train_on(in_bits(train_on(cut(start, ratio), 0), bits), 1)
    by = "floats" if order.endswith("floats") else "codes"
    return train_on(in_bits(cut(train_on(in_bits(start, bits), 0), ratio, by), bits), 1)


# %% tags=["plumbing"]
def race(net, start, split, losses, seeds, *, epochs, ratio, bits, orders=ORDERS, **options):
    """Return the networks that each order makes of `start` with each loss, one for each seed."""

    def made(order, loss, seed):
        def train_on(model, phase, phases=1):
            return training.fit(
                model, split, epochs=phases * epochs, loss=losses[loss], seed=seed + 1_000 * phase, progress=False,
                checkpoint=saved(f"race {net} {order} {loss} {seed} {phase}"), **options,
            ).model  # fmt: skip

        return in_order(order, start, train_on, ratio=ratio, bits=bits)

    return {(order, loss): [made(order, loss, seed) for seed in seeds] for order in orders for loss in losses}


def by_teacher(answers, view):
    """The loss with a teacher, and the one that takes the same views but hears the labels only."""
    return {
        name: distillation.taught_from(answers, view, loss=partial(distillation.mixed_loss, share=share))
        for name, share in {"taught": 0.9, "labels": 0.0}.items()
    }


racer = checkpoints.load("cifar_small")
few_photos = cifar.train.take(S.photo_order[0])
few_turned = distillation.fixed_views(few_photos.inputs, views=S.photo_views, mirror=True, seed=SEED)
few_answers = distillation.ask(racer, few_turned, examples=len(few_photos), views=S.photo_views)
SEEDS = range(SEED * S.order[2], (SEED + 1) * S.order[2])  # no seed of one run is a seed of another
digit_options = dict(lr=1e-3, optimizer="adam", batch_size=32)
photo_options = dict(lr=S.lr / 5, batch_size=32, precision=training.fast_precision())
races = {}
for net, start, (count, epochs, _, ratio, bits), numbers, losses, options in (
    ("LeNet-5", dense, S.order, numbered, by_teacher(answers, moved), digit_options),
    ("cifar_small", racer, S.photo_order, data.Split(torch.arange(len(few_photos)), few_photos.labels),
     by_teacher(few_answers, few_turned), photo_options),
):  # fmt: skip
    found = race(net, start, numbers.take(count), losses, SEEDS, epochs=epochs, ratio=ratio, bits=bits, **options)
    races |= {(net, *key): networks for key, networks in found.items()}
validate = {"LeNet-5": digits, "cifar_small": photos}
finish = pd.DataFrame(
    {key: [accuracy(net, validate[key[0]]) for net in found] for key, found in races.items()}, index=SEEDS
)
run.record(
    "orders",
    [dict(net=net, order=order, loss=loss, accuracies=list(finish[net, order, loss])) for net, order, loss in finish],
)
table = pd.DataFrame(
    {
        "this run: mean validation accuracy (%)": 100 * finish.mean(),
        f"this run: std over {len(SEEDS)} seeds (points)": 100 * finish.std(),
    }
)
rows = [row for part in evidence.measurements("15_combine", "orders").values() for row in part]
many = {}
for row in rows:
    many.setdefault((row["net"], row["order"], row["loss"]), []).extend(row["accuracies"])
found = pd.Series({key: 100 * np.mean(found) for key, found in many.items()}, dtype=float)
table["published: mean validation accuracy (%)"] = found.reindex(table.index)
for net, (count, epochs, repeats, ratio, bits) in {
    "LeNet-5": S.order,
    "cifar_small": (*S.photo_order[:2], S.order[2], *S.photo_order[3:]),
}.items():
    say(
        f"**{net}**, this run: {ratio} times fewer weights, {bits} bits, {repeats} seeds, {count:,} images and "
        f"{2 * epochs} epochs; {accuracy({'LeNet-5': dense, 'cifar_small': racer}[net], validate[net]):.2%} before."
    )
table.map("{:.2f}".format).replace("nan", "–").rename_axis(["network", "order", "loss"])

# %% tags=["plumbing"]
run.claim("prune-first-learns", "LeNet-5, prune, then quantize: mean validation accuracy with the worse loss",
          finish["LeNet-5"]["prune, then quantize"].mean().min(), at_least=0.9)  # fmt: skip

# %% [markdown]
# The published runs prune LeNet-5 and the photographs' network further, with more images and three times three seeds.
# All seeds start from one trained network, so the intervals speak of its retraining. Points of validation accuracy, both
# losses averaged unless the line is about them:

# %% tags=["plumbing"]
BOTH, USUAL = ("taught", "labels"), "prune, then quantize"


def ahead(found, net, one, other):
    """Return by how many points (order, losses) `one` leads `other`, by seed; nothing where one was not run."""
    keys = [[(net, order, loss) for loss in losses] for order, losses in (one, other)]
    if not all(key in found for part in keys for key in part):
        return ()
    first, second = (np.mean([found[key] for key in part], axis=0) for part in keys)
    return tuple(100 * (first - second))


pairs = {
    "`both at once` against `prune, then quantize`": (("both at once", BOTH), (USUAL, BOTH)),
    "`quantize, then prune` (by codes) against `prune, then quantize`": (("quantize, then prune", BOTH), (USUAL, BOTH)),
    "`quantize, then prune`: by floats against by codes": ((ORDERS[2], BOTH), (ORDERS[1], BOTH)),
    "the teacher against labels alone, pruning first": ((USUAL, ("taught",)), (USUAL, ("labels",))),
}
own = {key: list(column) for key, column in finish.items()}
verdicts = evidence.conclude(
    *[
        evidence.Comparison(f"{net}, {what}", float(np.mean(ahead(own, net, *pair))), ahead(many, net, *pair))
        for net in ("LeNet-5", "cifar_small")
        for what, pair in pairs.items()
    ]
)
untried = [order for order in ORDERS if order not in {order for _, order, _ in many}]
if untried:
    say(
        f"No full run has tried {' or '.join(f'`{order}`' for order in untried)} yet. What stands here about it comes from this run "
        "alone, and decides nothing."
    )

# %% [markdown]
# How to read this list. Doing both at once is a little ahead on both networks, but it is also the one with the single
# cycle of the learning rate: the race does not say which of the two helped. The teacher helps one network and hinders
# the other. LeNet-5, cut down so far in so few epochs, learned more from plain labels; a short race does not speak for
# the long training of section 1, where the two were not compared.
#
# And one line looks like a disaster: LeNet-5, quantized and then pruned by codes. Is that the *order*? The next cell
# goes to the ratio of the published race, fifty, and cuts one quantized network twice: by its codes, and by the floats
# behind them. Pruning first is the control.

# %%
STEEP = 50
steep = numbered.take(S.steep[0])
again = dict(epochs=S.steep[1], loss=by_teacher(answers, moved)["labels"], progress=False, **digit_options)
quantized = training.fit(in_bits(dense, S.order[4]), steep, seed=SEED, **again).model
cuts = {
    "quantized first, by codes": cut(quantized, STEEP),
    "quantized first, by floats": cut(quantized, STEEP, by="floats"),
    "pruned first": training.fit(cut(dense, STEEP), steep, seed=SEED, **again).model,
}
again |= dict(seed=SEED + 1_000)
after = {by: training.fit(in_bits(model, S.order[4]), steep, **again).model for by, model in cuts.items()}

# %% tags=["plumbing"]
by_ranking = pd.DataFrame(
    {
        by: {name.removesuffix(".weight"): int(mask.sum()) for name, mask in pruning.masks_of(model).items()}
        for by, model in cuts.items()
    }
).T
by_ranking["accuracy (%)"] = [f"{100 * accuracy(model):.1f}" for model in after.values()]
run.record("ranked_by", by_ranking.reset_index(names="by"))
magnitudes = {name: len(weight.abs().unique()) - 1 for name, weight in pruning.weights_of(quantized).items()}
by_codes, by_floats, first = map(float, by_ranking["accuracy (%)"])
say(
    f"Magnitudes to rank by, zero aside: {', '.join(f'{count} in {name[:-7]}' for name, count in magnitudes.items())} "
    "with codes; with floats, about as many as there are weights. By floats instead of codes: "
    f"{by_floats - by_codes:+.1f} points; pruned first instead of quantized first, by floats: {first - by_floats:+.1f}. "
    f"One seed of a short run{', and no full run has the arm by floats yet' if ORDERS[2] in untried else ''}: a hint and no more. How many "
    "weights stay in each layer, and the validation accuracy:"
)
by_ranking

# %% [markdown]
# Ranking by codes does two kinds of harm that have nothing to do with the order. A border between a handful of magnitudes has ties, and their
# place breaks them, not their worth. And the floats are thrown away: nearly all weights that stay begin again with the
# same magnitude. Only what the floats do not mend can be the order itself. How much that is stays open until full runs
# have the arm by floats. Before you blame an order, look at what the cut left.
#
# ## 3. Thin and dense
#
# The sparse network is small on the disk and nowhere else: its matrices are as large as ever. Take out whole filters and
# neurons instead (notebook 04), and what is left is an ordinary, tiny, dense network. First in one
# cut: `widths` says how many filters and neurons stay, those with the highest Taylor scores.

# %%
scores = pruning.taylor_scores(dense, train.take(min(1_000, len(train))), names=["conv1", "conv2", "fc1"])


def cut_out(widths):
    """LeNet-5 with so many filters and neurons: those with the highest scores."""
    named = zip(scores.items(), widths, strict=True)
    keep = {name: pruning.keep_largest(s, 1 - width / len(s)) for (name, s), width in named}
    return pruning.remove_filters(dense, keep, TWO)


def train_thin(model, epochs, lr, name, **options):
    options |= dict(optimizer="adam", batch_size=S.digit_batch, loss=taught, seed=SEED, checkpoint=saved(name))
    return training.fit(model, numbered, epochs=epochs, lr=lr, **options).model


at_once = train_thin(cut_out(S.widths), S.thin[0], S.thin_lr, "cut at once")

# %% tags=["plumbing"]
say(
    f"{'-'.join(map(str, S.widths))}-10: {measure.count_weights(at_once):,} weights, "
    f"{measure.count_weights(dense) / measure.count_weights(at_once):.0f} times fewer, {accuracy(at_once):.2%}."
)

# %% [markdown]
# Most of these weights are `fc1`'s, and a filter that goes takes sixteen of its inputs along, the useful ones too. But
# an input can go alone. `fc1` reads one number for each place of each map, the corners included, where there is little
# ink. So start a little wider and let **inputs and neurons of `fc1`** go while the network learns: always the one that
# loses least *for each weight that it frees*. The loss is estimated by the Fisher score of section 1, summed over all
# weights that would go.


# %%
def mask_of(layer):
    return layer.parametrizations.weight[0].mask


def costs(model, scores, read, alive):
    """What each input and each neuron of fc1 would lose, for each weight that it frees; infinite where it is gone."""
    classes = len(mask_of(model.fc2))
    by_input = scores["fc1.weight"][alive].sum(0) / alive.sum()
    by_neuron = scores["fc1.weight"][:, read].sum(1) + scores["fc2.weight"].sum(0)
    by_neuron = by_neuron / (read.sum() + classes)
    by_input[~read], by_neuron[~alive] = torch.inf, torch.inf
    return by_input, by_neuron


# %% [markdown]
# The budget shrinks from step to step: between `begin` and `end` of the training, equal steps take the same share of
# the weights.


# %%
def narrow(model, at, *, budget, begin=0.1, end=0.6):
    """Mask the cheapest inputs and neurons of fc1, until no more weights are left than this step allows."""
    every = max(1, at.total // 500)
    if at.step % every or not begin < at.progress <= end + every / at.total:
        return
    scores = pruning.fisher_scores(model, at.optimizer)
    read, alive = mask_of(model.fc1).any(0), mask_of(model.fc2).any(0)
    first, classes = measure.count_weights(model), len(mask_of(model.fc2))
    others = first - mask_of(model.fc1).numel() - mask_of(model.fc2).numel()
    target = first * (budget / first) ** min(1, (at.progress - begin) / (end - begin))
    while others + int(alive.sum()) * (int(read.sum()) + classes) > target:
        by_input, by_neuron = costs(model, scores, read, alive)
        if by_input.min() < by_neuron.min():
            read[by_input.argmin()] = False
        else:
            alive[by_neuron.argmin()] = False
    mask_of(model.fc1).copy_(alive[:, None] & read)
    mask_of(model.fc2).logical_and_(alive)


# %%
wide = cut_out(S.wide)
everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.weights_of(wide).items()}
step_by_step = dict(on_step=partial(narrow, budget=S.budget), key=f"narrowed to {S.budget}")
narrowed = clear(train_thin(pruning.mask(wide, everything), S.thin[0], S.thin_lr, "narrowed", **step_by_step))
read = pruning.masks_of(narrowed)["fc1.weight"].any(0)  # by filter, row and column of the last maps
by_place = pd.DataFrame(read.reshape(-1, 4, 4).sum(0).tolist())

# %% [markdown]
# From how many filters does `fc1` still read at each place of the 4 × 4 maps? And what did narrowing buy?

# %% tags=["plumbing"]
run.record("read_by_place", by_place)
by_place.rename(index="row {}".format, columns="column {}".format).rename_axis("filters that fc1 reads")

# %% tags=["plumbing"]
thin = {"cut at once": at_once, "narrowed while learning": narrowed}
run.record("thin_ways", {name: accuracy(model) for name, model in thin.items()})
earlier = evidence.measurements("15_combine", "thin_ways").values()
say(
    f"From {'-'.join(map(str, S.wide))}-10 to {int(read.sum())} inputs and "
    f"{int(pruning.masks_of(narrowed)['fc1.bias'].sum())} neurons of fc1. "
    + "; ".join(
        f"{name}, {measure.count_nonzero(model):,} weights: {accuracy(model):.2%}" for name, model in thin.items()
    )
    + "."
)
_ = evidence.conclude(
    evidence.Comparison(
        "narrowing while learning against cutting at once, validation",
        100 * (accuracy(narrowed) - accuracy(at_once)),
        tuple(100 * (each["narrowed while learning"] - each["cut at once"]) for each in earlier),
    )
)
CUT = 25 * 6 + 25 * 6 * 8 + 16 * 8 * 9 + 9 * 10  # weights of the published widths: 6 and 8 filters, 9 neurons
if chosen := evidence.claimed("15_combine", "thin-weights"):
    say(f"In the published runs validation preferred the plain cut in {chosen.count(CUT)} of {len(chosen)} seeds.")

# %% [markdown]
# Narrowing is the cleverer idea, and it has not been shown to be the better one. So validation chooses, seed by seed. The
# better of the two goes on: rounded to five bits, trained a little more, biases rounded, coded. For the
# clock, its masks become a smaller matrix, and a selection of columns before it.


# %%
class Select(torch.nn.Module):
    """Passes on the `columns` of what it gets."""

    def __init__(self, columns):
        super().__init__()
        self.register_buffer("columns", columns)

    def forward(self, x):
        return x[:, self.columns]


def as_dense(model):
    """Return an ordinary network with the same logits, whose fc1 has no neuron and no input too many."""
    new = pruning.remove_neurons(quantization.bake(model), "fc1", "fc2")
    used = (new.fc1.weight != 0).any(0)
    small = torch.nn.Linear(int(used.sum()), len(new.fc1.weight))
    small.load_state_dict({"weight": new.fc1.weight[:, used], "bias": new.fc1.bias})
    new.fc1 = torch.nn.Sequential(Select(used.nonzero().flatten()), small)
    return new


# %%
origin = max(thin, key=lambda name: accuracy(thin[name]))
thin_rounded = quantization.quantize_model(thin[origin], weights=5, per_channel=False, learned=True)
thin_small = round_biases(train_thin(thin_rounded, S.thin[1], 1e-3, "thin rounded"), S.bias)
thin_file = files.write_coded(thin_small, run.scratch("thin.coded.pack"))
files.verify(thin_file.path, thin_small, digits.inputs[:256])
thin_dense = as_dense(thin_small)
weights = measure.count_weights(thin_dense)
difference = (training.predict(thin_dense, digits.inputs) - training.predict(thin_small, digits.inputs)).abs().max()

# %% tags=["plumbing"]
run.claim(
    "same-logits", "Largest difference of a logit between masks and small matrices", float(difference), at_most=1e-4
)
say(
    f"Chosen: {origin}. In five bits {accuracy(thin_small):.2%}, {weights:,} weights and a file of "
    f"**{thin_file.bytes:,} bytes**, {dense_file.bytes / thin_file.bytes:,.0f} times smaller than LeNet-5's. The sparse one "
    f"of section 1: {small.bytes:,}."
)

# %% [markdown]
# **Predict** the speed-ups of the two small networks, the sparse and the thin one, in ONNX Runtime at batch 1.

# %%
graph = runtime.export_onnx(dense, TWO, run.scratch("lenet5.onnx"))
graphs = {
    "LeNet-5": graph,
    "sparse": runtime.export_like(quantization.bake(tuned), graph, TWO, run.scratch("sparse.onnx")),
    "thin": runtime.export_onnx(thin_dense, TWO, run.scratch("thin.onnx")),
}
sessions = {name: runtime.session(path) for name, path in graphs.items()}
calls = {name: partial(runtime.run, session, ONE.numpy()) for name, session in sessions.items()}
twin = partial(runtime.run, runtime.session(graph), ONE.numpy())
digit_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=twin))

# %% tags=["plumbing"]
run.claim("thin-is-faster", "Speed-up of the thin network, ONNX Runtime, batch 1", digit_clock["thin"].ratio, at_least=1.3,
          timing=True, interval=digit_clock["thin"].cleared)  # fmt: skip
measure.verdict_table(digit_clock)

# %% tags=["plumbing"]


def clocked(name, variant):
    """Return the published ratios of a model's variant to the dense network in the same runtime, and the verdicts."""
    found = [each for model in published_models(name) for each in model.latency if each["variant"] == variant]
    return [each["ratio"] for each in found], [each["verdict"] for each in found]


(sparse_ratios, sparse_verdicts), (thin_ratios, _) = (
    clocked("lenet5-coded", "sparse"),
    clocked("lenet5-thin-coded", "thin"),
)
say(
    f"Both files are small. On the clock the sparse network is: **{digit_clock['sparse'].verdict}**; the thin one: "
    f"**{digit_clock['thin'].verdict}**, by a factor of {digit_clock['thin'].ratio:.1f}."
    + (
        f" Published, {len(thin_ratios)} seeds: sparse {min(sparse_ratios):.2f} to {max(sparse_ratios):.2f} times the speed "
        f"({', '.join(sorted(set(sparse_verdicts)))}), thin {min(thin_ratios):.1f} to {max(thin_ratios):.1f}."
        if thin_ratios
        else ""
    )
)

# %% [markdown]
# A mask helps the file, a removal helps both. The kernel multiplies by zero as patiently as by any other number.
#
# ## 4. Photographs: two files from one set of weights
#
# For photographs time matters as much as bytes. So filters go first: fewer multiplications. Then the teacher. Then
# quantization, trained: few bits for the layers in the middle, eight for the first and the last, as in notebook 09.
# `cut` is how many times fewer multiplications are left, `photo_bits` how many bits the middle gets.

# %%
big = checkpoints.load(S.net)
PHOTO, TWO_PHOTOS = photos.inputs[:1], photos.inputs[:2]
seen = cifar.train.take(S.photos)
groups = pruning.groups(big, TWO_PHOTOS)
photo_scores = pruning.group_scores(pruning.taylor_scores(big, cifar.train.take(S.scored)), groups)
keep = pruning.choose_filters(big, photo_scores, TWO_PHOTOS, macs_ratio=S.cut, scope="global", round_to=S.round_to)
lean = pruning.refresh_batchnorm(pruning.remove_filters(big, keep, TWO_PHOTOS), seen.inputs[: S.scored])

# %% tags=["plumbing"]
turned = distillation.fixed_views(seen.inputs, views=S.photo_views, mirror=True, seed=SEED)
folded = quantization.fold_batchnorm(big, TWO_PHOTOS)
photo_answers = distillation.ask(folded, turned, examples=len(seen), views=S.photo_views)
taught_photos = distillation.taught_from(photo_answers, turned)
numbered_photos = data.Split(torch.arange(len(seen)), seen.labels)
macs = {name: measure.count_macs(net, PHOTO) for name, net in {"dense": big, "lean": lean}.items()}


def train_photos(model, epochs, lr, name):
    """Train on the photographs' views, taught; return the network and the seconds."""
    fitted = training.fit(
        model, numbered_photos, epochs=epochs, lr=lr, batch_size=S.batch, precision=training.fast_precision(),
        loss=taught_photos, seed=SEED, checkpoint=saved(name),
    )  # fmt: skip
    return fitted.model, sum(row["seconds"] for row in fitted.history)


say(
    f"{macs['dense'] / macs['lean']:.2f} times fewer MACs, {measure.count_weights(big) / measure.count_weights(lean):.2f} times fewer weights."
)

# %%
retrained, first_seconds = train_photos(lean, S.retrain[0], S.lr, "lean")
four = quantization.bits_by_layer(retrained, S.photo_bits, ends=8)
four_bits = quantization.quantize_model(retrained, weights=four, learned=True)
four_bits, more_seconds = train_photos(four_bits, S.retrain[1], S.lr / 10, "lean-rounded")
combined = quantization.fold_batchnorm(four_bits, TWO_PHOTOS)

# %% tags=["plumbing"]
run.record("photo_seconds", first_seconds + more_seconds, timing=True)
path = {"dense": big, "filters out": lean, "taught": retrained, f"{S.photo_bits} bits, folded": combined}
road = {name: accuracy(net, photos) for name, net in path.items()}
run.record("road", road)
pd.Series(road).map("{:.1%}".format).to_frame("validation accuracy")

# %% tags=["plumbing"]
roads = evidence.measurements("15_combine", "road").values()
last = f"{S.photo_bits} bits, folded"
_ = evidence.conclude(
    *[
        evidence.Comparison(what, 100 * (road[a] - road[b]), tuple(100 * (each[a] - each[b]) for each in roads))
        for what, a, b in (
            ("filters out and taught, against dense", "taught", "dense"),
            ("rounding, against the taught network", last, "taught"),
        )
    ]
)
ANOTHER = f"The published runs compress `cifar_base`, this one the smaller `{S.net}`: each speaks for its own network."
if S.net != "cifar_base":
    say(ANOTHER)

# %% [markdown]
# From these weights, BatchNorm folded, come **two files**: a coded one to store and to send, and an int8 one for the
# runtime, whose weights and activations are rounded once more, to the runtime's own steps. Each is stated with its own
# size and its own accuracy. A ratio that takes the size of the one and the speed of the other belongs to no file at
# all.

# %%
photo_graph = runtime.export_onnx(folded, TWO_PHOTOS, run.scratch("dense.onnx"))
float_graph = runtime.export_like(quantization.bake(combined), photo_graph, TWO_PHOTOS, run.scratch("lean.onnx"))
int8 = runtime.quantize_static(float_graph, cifar.train.take(S.calibration), run.scratch("int8.onnx"))
photo_dense = files.write_dense(big, run.scratch("photos.dense.pack"))
photo_files = {
    "dense": photo_dense,
    "filters removed": files.write_dense(retrained, run.scratch("photos.lean.pack")),
    "quantized": files.write_quantized(combined, run.scratch("photos.quantized.pack")),
    "coded": files.write_coded(combined, run.scratch("photos.coded.pack")),
}
files.verify(photo_files["coded"].path, combined, photos.inputs[:256])

# %% tags=["plumbing"]
photo_bytes = {name: packed.bytes for name, packed in photo_files.items()} | {
    "int8, for the runtime": int8.stat().st_size
}
run.record("photo_bytes", photo_bytes)
photo_ratio = photo_dense.bytes / photo_bytes["coded"]
fig = show.bars(
    {name: size / 1e3 for name, size in photo_bytes.items()},
    title=f"The coded file is {photo_ratio:.1f} times smaller",
    xlabel="kilobytes (1,000 bytes)",
    label="{:,.0f}",
)
table = pd.DataFrame({"bytes": photo_bytes})
show.figure(fig, alt=f"Bytes of the photographs' network. {show.in_words(table)}", table=table)

# %% [markdown]
# Now the clock, one photograph at a time, on one thread. The baseline that people quote is the dense network in eager
# PyTorch. The fair one is the dense network in the *same* runtime. All four are timed in the same rounds, and compared
# twice: each ratio has the interval that belongs to it.

# %%
photo_sessions = {
    "dense, ONNX Runtime": runtime.session(photo_graph),
    "lean, ONNX Runtime": runtime.session(float_graph),
    "lean, int8, ONNX Runtime": runtime.session(int8),
}
calls = {"dense, eager": partial(big, PHOTO)}
calls |= {name: partial(runtime.run, session, PHOTO.numpy()) for name, session in photo_sessions.items()}
with torch.inference_mode():
    timings = measure.time_interleaved(calls, rounds=S.timings, threads=1, control=partial(modules.copied(big), PHOTO))
photo_clock = measure.compare(timings)
runtime_clock = measure.compare(timings, against="dense, ONNX Runtime")
float_clock = measure.compare(timings, against="lean, ONNX Runtime")

# %% tags=["plumbing"]
fair = {name: verdict for name, verdict in runtime_clock.items() if "eager" not in name}
pd.concat({"against eager": measure.verdict_table(photo_clock), "against the runtime": measure.verdict_table(fair)})

# %% tags=["plumbing"]
INT8, LEAN = "lean, int8, ONNX Runtime", "lean, ONNX Runtime"
better = max(photo_clock[INT8], photo_clock[LEAN], key=lambda verdict: verdict.ratio)
capabilities = torch.cpu.get_capabilities()
VNNI = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "i8mm"))
run.claim("photo-file", "Photographs: times smaller than the dense file, read back, same logits", photo_ratio,
          at_least=20 if PROFILE == "full" else 10)  # fmt: skip
run.claim("photo-speed", "Speed-up of the lean network over dense eager PyTorch, batch 1, the better file",
          better.ratio, at_least=4 if PROFILE == "full" else 1.3, timing=True, interval=better.cleared)  # fmt: skip
if PROFILE == "full" and VNNI:
    run.claim("photo-int8-eager", "int8: speed-up over dense eager PyTorch, batch 1, mean over the seeds", photo_clock[INT8].ratio,
              at_least=10, over_seeds=True, timing=True, interval=photo_clock[INT8].cleared)  # fmt: skip
    run.claim("photo-int8-runtime", "int8: speed-up over the dense network in ONNX Runtime, mean over the seeds",
              runtime_clock[INT8].ratio, at_least=3, over_seeds=True, timing=True,
              interval=runtime_clock[INT8].cleared)  # fmt: skip


def ratio_of(clock, name):
    low, high = clock[name].interval
    return f"{clock[name].ratio:.1f} ({low:.1f} to {high:.1f})"


say(
    "Times the speed, with 99 % intervals: the lean int8 file against the dense network in eager PyTorch "
    f"{ratio_of(photo_clock, INT8)}, in the same runtime **{ratio_of(runtime_clock, INT8)}**. One by one: the runtime "
    f"{ratio_of(photo_clock, 'dense, ONNX Runtime')}, removing filters {ratio_of(runtime_clock, LEAN)}, integers "
    f"{ratio_of(float_clock, INT8)}."
)
speeds = [clocked(f"cifar_base-combined{end}", name)[0] for end, name in (("-int8", INT8), ("", LEAN))]
_ = evidence.conclude(
    evidence.Comparison(
        "int8 against the lean network in float, both as multiples of the dense network's speed in the same runtime",
        runtime_clock[INT8].ratio - runtime_clock[LEAN].ratio,
        tuple(one - other for one, other in zip(*speeds, strict=True)),
    ),
    unit="times",
    words=("faster", "slower"),
)
if S.net != "cifar_base":
    say(ANOTHER)

# %% [markdown]
# The published clocks ran on a machine whose processor multiplies eight-bit integers in one instruction (VNNI). Without
# it, expect less of int8.
#
# ## 5. The test images, once
#
# All choices are made. Each file is loaded as its user would load it, and answers the test images one time.


# %%
test_digits, test_photos = mnist.test.take(S.tested), cifar.test.take(S.tested)
subjects = {
    "lenet5-dense": (dense, test_digits),
    "lenet5-coded": (files.load_into(nets.lenet5(), small.path).eval(), test_digits),
    "lenet5-thin-coded": (files.load_into(thin_small, thin_file.path).eval(), test_digits),
    f"{S.net}-dense": (big, test_photos),
    f"{S.net}-combined": (combined, test_photos),
    f"{S.net}-combined-int8": (runtime.as_module(runtime.session(int8, threads=torch.get_num_threads())), test_photos),
}
tests = {name: run.test(name, model, split) for name, (model, split) in subjects.items()}

# %% tags=["plumbing"]
sizes = {
    "lenet5-dense": dense_file.bytes, "lenet5-coded": small.bytes, "lenet5-thin-coded": thin_file.bytes,
    f"{S.net}-dense": photo_dense.bytes, f"{S.net}-combined": photo_bytes["coded"],
    f"{S.net}-combined-int8": int8.stat().st_size,
}  # fmt: skip
pd.DataFrame(
    {
        "test accuracy": {name: f"{test.accuracy:.2%}" for name, test in tests.items()},
        "file (bytes)": {name: f"{size:,}" for name, size in sizes.items()},
    }
).rename_axis(f"on {S.tested:,} test images")

# %% tags=["plumbing"]
errors = {name: 1 - test.accuracy for name, test in tests.items()}
lost = {file: errors[f"{S.net}-{file}"] - errors[f"{S.net}-dense"] for file in ("combined", "combined-int8")}
if PROFILE == "full":
    run.claim(
        "bytes", "LeNet-5: bytes of the coded file, mean over the seeds", small.bytes, at_most=2_700, over_seeds=True
    )
    run.claim(
        "error",
        "LeNet-5, coded: test error, mean over the seeds",
        errors["lenet5-coded"],
        at_most=0.01,
        over_seeds=True,
    )
    run.claim("thin-weights", "Thin network: weights", weights, at_most=2_750)
    run.claim("thin-error", "Thin network: test error, mean over the seeds", errors["lenet5-thin-coded"], at_most=0.01,
              over_seeds=True)  # fmt: skip
    for file, value in lost.items():
        run.claim(
            f"photos-{file}", f"{file}: test accuracy lost, mean over the seeds", value, at_most=0.01, over_seeds=True
        )
else:
    run.claim("quick-error", "LeNet-5, coded: test error", errors["lenet5-coded"], at_most=0.04)
    run.claim("quick-thin-error", "Thin network, coded: test error", errors["lenet5-thin-coded"], at_most=0.06)
    for file, value in lost.items():
        run.claim(f"quick-photos-{file}", f"{file}: test accuracy lost", value, at_most=0.10)

# %% [markdown]
# What did being small cost? Points of test accuracy. In quick, the published runs do not judge the same networks: LeNet-5 is cut
# further there and trained longer, and the photographs' network is a larger one. So this run's numbers speak for its own networks.

# %% tags=["plumbing"]
against = (
    ("LeNet-5, sparse and coded, against dense", "lenet5-coded", "lenet5-dense"),
    ("LeNet-5, thin and coded, against dense", "lenet5-thin-coded", "lenet5-dense"),
    ("photographs, the coded file against dense", "{}-combined", "{}-dense"),
    ("photographs, the int8 file against the coded one", "{}-combined-int8", "{}-combined"),
)
comparisons = []
for what, one, other in against:
    pair = [[model.accuracy for model in published_models(name.format("cifar_base"))] for name in (one, other)]
    mine = [tests[name.format(S.net)].accuracy for name in (one, other)]
    comparisons.append(
        evidence.Comparison(what, 100 * (mine[0] - mine[1]), tuple(100 * (a - b) for a, b in zip(*pair, strict=True)))
    )
_ = evidence.conclude(*comparisons)

# %% [markdown]
# Three seeds are few, and four comparisons share the risk of a false one: "not to be told apart" here means "not
# decided by three seeds", not "free".
#
# ## 6. Exercises
#
# **15.1 · Warm-up: bits a weight.** One line. How many bits of the file fall to each weight of the dense network?


# %%
def bits_per_weight(file_bytes, weights):
    """Return the bits of a file of so many bytes for each of the dense network's weights."""
    ### BEGIN SOLUTION
    return 8 * file_bytes / weights
    ### END SOLUTION


exercises.check("15.1", bits_per_weight)

# %% [markdown]
# Try it on section 1: `bits_per_weight(small.bytes, 430_500)`.
#
# **15.2 · Which units are useful?** `clear` goes back and forth through the network. Write its heart for one hidden
# layer. `reads` is the mask of the layer's weights, a row for each unit; `is_read` is the mask of the next layer's, a
# *column* for each unit. Return a tensor with one truth value for each unit: it reads something, and somebody reads it.


# %%
def useful_units(reads, is_read):
    """Return which units do both; reads: (units, inputs), is_read: (outputs, units), of truth values."""
    ### BEGIN SOLUTION
    return reads.any(1) & is_read.any(0)
    ### END SOLUTION


exercises.check("15.2", useful_units)

# %% [markdown]
# **15.3 · Predict the tie.** Ten thousand weights, normally distributed with mean 0 and standard deviation 1, are
# rounded to whole numbers from −3 to 3. The tenth with the largest magnitudes is to stay. The border then runs through
# one magnitude: some of the weights that have it stay, the others go, and nothing but their place decides. **How many
# weights have the magnitude of the border?** Return your number; within five percent is fine. (A normal number is
# larger than $x$ with probability `math.erfc(x / math.sqrt(2)) / 2`.)


# %%
def tied_at_the_border():
    """Return how many of the 10,000 weights share the magnitude of the border."""

    ### BEGIN SOLUTION
    def beyond(x):
        return math.erfc(x / math.sqrt(2))  # on both sides

    # 3 has 10,000 · beyond(2.5) = 124 weights, fewer than 1,000; with those of 2 it is more: the border is at 2
    return 10_000 * (beyond(1.5) - beyond(2.5))
    ### END SOLUTION


drawn = torch.randn(10_000, generator=torch.Generator().manual_seed(1)).round().clamp(-3, 3).abs()
border = drawn.sort(descending=True).values[1_000]
exercises.check("15.3", tied_at_the_border, measured=int((drawn == border).sum()))

# %% [markdown]
# **15.4 · The cheapest next.** Change the rule inside `narrow`. `first` holds the scores of `fc1`'s weights, (neurons,
# inputs); `second` those of `fc2`'s, (classes, neurons). All are still there. Return `("input", i)` or `("neuron", n)`:
# the one that loses least **for each weight that it frees**. An input takes its column of `first` along. What does a
# neuron take?


# %%
def cheapest(first, second):
    """Return the kind and the number of what should go next."""
    ### BEGIN SOLUTION
    by_input = first.sum(0) / len(first)
    by_neuron = (first.sum(1) + second.sum(0)) / (first.shape[1] + len(second))
    if by_input.min() < by_neuron.min():
        return "input", int(by_input.argmin())
    return "neuron", int(by_neuron.argmin())
    ### END SOLUTION


exercises.check("15.4", cheapest)

# %% [markdown]
# **15.5 · Open: an order of your own.** `in_order` knows four orders. Think of a fifth: prune a little, round, prune
# the rest; or go down in bits step by step. Before you run it, write down what stays equal (steps, images, ratio, bits)
# and what does not (cycles of the learning rate, what the weights are ranked by). Then add it and run both races. How
# many seeds would convince you of half a point? And which result would make you say that the order does not matter?
#
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **LeNet-5, pruned, quantized, coded**: {small.bytes:,} bytes, **{factor:,.0f} times** smaller, "
    f"{100 * errors['lenet5-coded']:.2f} % test error (dense {100 * errors['lenet5-dense']:.2f} %).\n"
    f"- **The order**: {sum(verdict in ('higher', 'lower') for verdict in verdicts)} of {len(verdicts)} comparisons are decided by the published "
    "runs, the rest are not (section 2).\n"
    f"- **LeNet-5, thin and dense**: {weights:,} weights, {thin_file.bytes:,} bytes, {100 * errors['lenet5-thin-coded']:.2f} % "
    f"test error, {ratio_of(digit_clock, 'thin')} times the speed of LeNet-5 in ONNX Runtime.\n"
    f"- **Photographs, one set of weights**: coded {photo_bytes['coded']:,} bytes ({photo_ratio:.1f} times smaller, "
    f"{100 * lost['combined']:+.2f} points of error); int8 {int8.stat().st_size:,} bytes "
    f"({100 * lost['combined-int8']:+.2f} points)."
)


# %% tags=["plumbing"]
def kept_latency(clock, name, batch=1):
    return [r for r in measure.latency_records(clock, runtime="onnxruntime", batch=batch) if r["variant"] == name]


recorded = {
    "lenet5-dense": ("mnist", None, "dense", [], dense, dense_file.path, kept_latency(digit_clock, "LeNet-5")),
    "lenet5-coded": ("mnist", "lenet5-dense", "pruned, quantized, range-coded, taught", ["weights pruned", "fewer bits", "a teacher"],
                     tuned, small.path,
                     kept_latency(digit_clock, "sparse")),
    "lenet5-thin-coded": ("mnist", "lenet5-dense", "filters, neurons and inputs out, 5 bits, range-coded, taught",
                          ["filters removed", "fewer bits", "a teacher"], thin_dense, thin_file.path, kept_latency(digit_clock, "thin")),
    f"{S.net}-dense": ("cifar10", None, "dense", [], big, photo_dense.path, []),
    f"{S.net}-combined": ("cifar10", f"{S.net}-dense", "filters out, taught, 4-bit weights, range-coded",
                          ["filters removed", "fewer bits", "a teacher"], combined,
                          photo_files["coded"].path, kept_latency(runtime_clock, "lean, ONNX Runtime")),
    f"{S.net}-combined-int8": ("cifar10", f"{S.net}-dense", "the same weights, int8",
                               ["filters removed", "fewer bits", "a teacher"], combined, int8,
                               kept_latency(runtime_clock, "lean, int8, ONNX Runtime")),
}  # fmt: skip

for name, (task, base, method, techniques, model, file, latency) in recorded.items():
    run.model(name, task=task, base=base, method=method, techniques=techniques, accuracy=tests[name].accuracy, weights=measure.count_weights(model),
              nonzero=measure.count_nonzero(model), macs=measure.count_macs(model, ONE if task == "mnist" else PHOTO),
              file=file, latency=latency)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - Pruning, quantization and coding multiply, because each removes something else: weights, bits of a weight, and what
#   the statistics of the rest let one guess. Together they made LeNet-5's file more than six hundred times smaller.
#   <!-- claims: lenet5-file, coding-pays -->
# - LeNet-5 fits into less than three kilobytes, and still makes fewer than one mistake in a hundred. <!-- claims:
#   bytes, error -->
# - At such a size everything counts: positions, biases, steps, names. A ratio of values alone is not a ratio of files.
#   <!-- by construction -->
# - An order brings its companions: cycles of the learning rate, and what the weights are ranked by. To rank by codes of
#   a few bits is to rank by a few magnitudes, and the place breaks the ties, not the worth. <!-- by construction -->
# - The thin network gives the same logits without its masks, and it is faster. The sparse one keeps its large matrices.
#   <!-- claims: same-logits, thin-is-faster -->
# - The thin network makes do with less than a hundredth of the weights, and on average fewer than one mistake in a
#   hundred. <!-- claims: thin-weights, thin-error -->
# - One set of weights, two files: a coded one at least twenty times smaller, an int8 one at least three times faster
#   than the dense network in the same runtime. Each lost less than a point on average over
#   three seeds, which does not yet decide that another training would. <!-- claims: photo-file,
#   photo-int8-runtime, photos-combined, photos-combined-int8 -->
# - Part of any speed-up over eager PyTorch belongs to the runtime. Say what you compare with. <!-- claims:
#   photo-int8-eager, photo-int8-runtime -->

# %% [markdown]
# **Read**
# - Han, Mao and Dally 2016, *Deep Compression*: prune, share, code.
# - Wang, Wang, Cai and others 2020, *APQ: Joint Search for Network Architecture, Pruning and Quantization Policy*: not
#   one after the other, but together.
# - Oktay, Ballé, Singh and Shrivastava 2020, *Scalable Model Compression by Entropy Penalized Reparameterization*: train
#   for the length of the file itself.
#
# **Next**: notebook 16 goes to a runtime: threads, batches, sparse kernels, and a command that answers from such a file
# without PyTorch.
