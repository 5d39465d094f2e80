# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [09_quantize_from_scratch]
# ---

# %% [markdown]
# # 09 · Quantize from scratch: what does each bit buy?
#
# A float32 number takes 32 bits and tells four billion values apart. A network does not need four billion values. How
# many does it need? Here you build the quantizer that answers, bit by bit: where the levels lie, how wide the range
# should be, what a network does with three bits, with two, and what training can still rescue. The last section writes a
# file in which a weight really takes two bits.
#
# **You will be able to**
# - write the affine quantizer (scale, zero point, rounding, saturation) and get PyTorch's numbers, every one;
# - say what a bit is worth in decibels, and what a step for each channel or a better range is worth in bits;
# - tell apart the error of the weights, that of a layer's output, and the mistakes of the network;
# - train through rounding, with a step size that is learned;
# - store a network of 2-bit weights in 2 bits a weight, and prove it.
#
# **Before this**: notebook 00, section 3 (eight bits in three lines), notebook 01 (bytes).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import itertools
from copy import deepcopy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.ao.quantization.observer import MinMaxObserver, PerChannelMinMaxObserver
from torch.nn import functional as F

from helpers import checkpoints, data, evidence, exercises, measure, pruning, quantization, show, statistics, training
from helpers.evidence import say
from helpers.files import integers, verify, write_dense, write_quantized, write_sparse
from helpers.show import figures

# %% tags=["plumbing"]
run = evidence.start("09_quantize_from_scratch", profile=PROFILE, seed=SEED)
say(evidence.timetable("09_quantize_from_scratch"))

# %% [markdown]
# The answer, before the work: how often a network that knows ten kinds of photographs is wrong, in fewer and fewer bits.
# Guessing is wrong in 90 %. Read from the right. Two lines round the **weights** only, on one grid of levels for a whole
# layer or on one for each channel. The third rounds what the layers read, the **activations**, as well. None of the three
# was trained again; the open circles at four bits were.

# %% tags=["plumbing", "answer"]
show.style()
SWEEP = {
    "weights, one grid a layer": "weights, simplest",
    "weights, a grid for each channel": "weights, channel by channel",
    "weights and activations": "weights and activations",
}
swept_on_file = evidence.measurements("09_quantize_from_scratch", "accuracy_against_bits")
four_on_file = list(evidence.measurements("09_quantize_from_scratch", "four_bits").values())
if swept_on_file and four_on_file:
    tables = [pd.DataFrame(each["photographs"]).set_index("bits").sort_index() for each in swept_on_file.values()]
    wrong = {name: 100 * (1 - np.array([table[column] for table in tables])) for name, column in SWEEP.items()}
    widths = tables[0].index
    whole = 100 * (1 - np.mean([each["32 bits"] for each in four_on_file]))
    repaired = [100 * (1 - each["4 bits, trained"]) for each in four_on_file]
    added = wrong["weights and activations"].mean(axis=0) - whole
    cheap = [*itertools.takewhile(lambda bits: round(added[widths == bits].item(), 6) < 1, widths[::-1])]
    title = (
        f"{cheap[-1]} bits everywhere cost less than a point"
        if cheap
        else f"{widths[-1]} bits cost {added[-1]:.0f} points"
    )
    title += f", {widths[0]} bits {added[0]:.0f} points"
    fig = show.line_with_band(widths, wrong, title=title, xlabel="bits", ylabel="wrong answers (%, log scale)")
    ax = fig.axes[0]
    ax.plot(
        [4] * len(repaired), repaired, "o", markersize=9, markerfacecolor="none", color="black", label="4 bits, trained"
    )
    ax.axhline(whole, color="black", linestyle=":", linewidth=1.2)
    ax.annotate("32 bits", (1, whole), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=11, annotation_clip=False)  # fmt: skip
    ax.set_yscale("log")
    ax.set_yticks([10, 20, 40, 80], ["10", "20", "40", "80"])
    ax.minorticks_off()
    ax.legend(fontsize=11)
    table = pd.DataFrame({name: values.mean(axis=0) for name, values in wrong.items()}, index=widths)
    alt = (
        f"Wrong validation answers (%) against bits; 32 bits: {whole:.1f}. {show.in_words(table, '{:.1f}')} Trained in four "
        f"bits, by run: {', '.join(f'{value:.1f}' for value in repaired)}."
    )
    show.figure(fig, alt=alt, table=table)
else:
    say("No full run of this page is published yet, so there is no picture of its answer.")

# %% [markdown]
# The lines have no spread, because every published run rounded the same trained network; the circles are its runs of
# training. (There the first layer and the last keep eight bits.)
#
# Two settings matter. `bits` are the widths that each figure runs through. `calibration` is the number of training images
# that only show the network what to expect; nothing is learned from them. The rest, folded away below, says how many
# images are read and how long sections 7 and 8 train: minutes in *full*, seconds in *quick*.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(net="cifar_small", digits=100, photos=20, calibration=20, bits=[8, 4, 2], train_digits=128, digit_epochs=1,
               train_photos=64, photo_epochs=1, batch=64, rate=0.001, tested=100),
    quick=dict(net="cifar_small", digits=2_500, photos=1_000, calibration=200, bits=[8, 6, 5, 4, 3, 2], train_digits=6_000,
               digit_epochs=2, train_photos=5_000, photo_epochs=1, batch=64, rate=0.001, tested=5_000),
    full=dict(net="cifar_base", digits=5_000, photos=2_500, calibration=1_000, bits=[8, 7, 6, 5, 4, 3, 2],
              train_digits=55_000, digit_epochs=6, train_photos=45_000, photo_epochs=3, batch=128, rate=0.002,
              tested=10_000),
)  # fmt: skip

# %% tags=["plumbing"]
training.seed_everything(SEED)
mnist, cifar = data.mnist(), data.cifar10()
sets = {"digits": mnist.validation.take(S.digits), "photographs": cifar.validation.take(S.photos)}
calibration = {"digits": mnist.train.take(S.calibration), "photographs": cifar.train.take(S.calibration)}
nets = {"digits": checkpoints.load("lenet5"), "photographs": checkpoints.load(S.net)}


def accuracy(model, task):
    """Fraction of a task's validation images that `model` gets right."""
    return training.evaluate(model, sets[task]).accuracy


def points(change):
    """A change of accuracy in points, with its sign; no minus before zero."""
    return f"{round(100 * change, 1) + 0.0:+.1f} points"


def published(key, find):
    """What the published full runs found, mean over them: they quantize one trained network, so they count once."""
    found = [find(pd.DataFrame(rows)) for rows in evidence.measurements("09_quantize_from_scratch", key).values()]
    return [float(np.mean(found))] if found else []


base = {task: accuracy(net, task) for task, net in nets.items()}
say(
    f"In 32 bits, LeNet-5 reads {base['digits']:.2%} of {S.digits:,} digits, and `{S.net}` names "
    f"{base['photographs']:.1%} of {S.photos:,} photographs. All choices below are made on these validation images."
)

# %% [markdown]
# ## 1. A grid with few levels
#
# With $b$ bits you can number $2^b$ levels. Here are three bits:

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(9, 3.2))
drawn_codes, drawn = np.arange(-4, 4), [-2.8, -1.3, -0.9, 0.2, 0.6, 1.15, 2.4]
ax.plot([-3, 3], [0, 0], color="#999999", linewidth=1, zorder=1)
ax.plot(0.5 * drawn_codes, 0 * drawn_codes, "o", color=show.COLOURS[0], markersize=10, zorder=3)
for q in drawn_codes:
    ax.text(0.5 * q, -0.22, f"{q}", ha="center", va="top", fontsize=12, color=show.COLOURS[0], fontweight="bold")
    ax.text(0.5 * q, -0.52, f"{0.5 * q:g}", ha="center", va="top", fontsize=11)
for x in drawn:
    level = 0.5 * np.clip(np.round(x / 0.5), -4, 3)
    colour = show.COLOURS[4] if abs(x - level) > 0.25 else show.COLOURS[2]
    ax.plot([x], [1], marker="D" if colour == show.COLOURS[4] else "s", color=colour, markersize=7)
    ax.text(x, 1.12, f"{x:g}", ha="center", va="bottom", fontsize=11, color=colour)
    ax.annotate("", (level, 0.12), (x, 0.93), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.5})
ax.annotate("", (0, 0.33), (-0.5, 0.33), arrowprops={"arrowstyle": "<->", "color": "black", "linewidth": 1})
ax.text(
    -0.25,
    0.36,
    "step",
    ha="center",
    va="bottom",
    fontsize=10,
    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
)
for y, text in ((1, "number"), (-0.32, "code"), (-0.62, "stands for")):
    ax.text(-3.15, y, text, ha="right", va="center", fontsize=11)
ax.set(xlim=(-4.0, 3.1), ylim=(-0.85, 1.45), title="Every number moves to the nearest level, however far away")
ax.axis("off")
show.figure(fig, alt="A number line with eight levels, 0.5 apart, from -2 (code -4) to 1.5 (code 3). Arrows lead from "
            "seven numbers to their nearest level; -2.8 and 2.4 lie outside and are cut off at the last one.")  # fmt: skip

# %% [markdown]
# The **affine** quantizer lays the levels out evenly. A whole number $q$, the **code**, stands for the value
#
# $$x = s\,(q - z).$$
#
# The **scale** $s$ is the distance between two levels, the *step*. The **zero point** $z$ is the code that stands for 0.
# Two ways to choose them for values between $l$ and $h$:
#
# - **symmetric**: $z = 0$, codes from $-2^{b-1}$ to $2^{b-1}-1$. For weights.
# - **asymmetric**: codes from 0 to $2^b-1$, and $z$ wherever 0 happens to fall. For what is all positive, or nearly so.
#
# Zero gets a level of its own either way. It has to: padding, ReLU and pruned weights are exactly zero, and there are many
# of them. The symmetric grid has one code more below zero than above. Its scale is the largest magnitude divided by
# $(2^b-1)/2$, as PyTorch has it, so the largest positive number is cut off by half a step. With eight bits nobody
# notices; with two bits it is a third of the number. (Notebook 00 left the lowest code out instead.)


# %%
def affine_grid(lowest, highest, bits, symmetric):
    """Return the scale, the zero point, and the lowest and the highest code."""
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    if symmetric:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = torch.maximum(-lowest, highest) / ((high - low) / 2)
        return scale, torch.zeros_like(scale), low, high
    scale = (highest - lowest) / (2**bits - 1)
    return scale, -(lowest / scale).round(), 0, 2**bits - 1


def to_codes(x, scale, zero, low, high):
    """Round to the nearest code; what lies beyond the last one gets the last one."""
    # times 1 / scale, as PyTorch does it: a division can differ in the last bit, and then in a code
    return ((x * (1 / scale)).round() + zero).clamp(low, high)


def to_values(codes, scale, zero):
    return (codes - zero) * scale


# %% [markdown]
# Three bits, symmetric, with a step of 0.5: the codes run from −4 to 3. **Predict** the codes of 0.25, 0.75 and 1.25,
# which lie exactly between two levels, and of 3.0, which lies outside.

# %%
x = torch.tensor([-3.0, -0.3, 0.0, 0.25, 0.75, 1.25, 1.4, 3.0])
step, zero = torch.tensor(0.5), torch.tensor(0.0)
codes = to_codes(x, step, zero, -4, 3)
values = to_values(codes, step, zero)
pd.DataFrame({"value": x, "code": codes.int(), "stands for": values, "error": values - x}).round(2).set_index("value")

# %% [markdown]
# Two things happened. **Saturation**: 3.0 became 1.5, the last level, and −3.0 became −2.0. Nothing wraps around. And
# **rounding half to even**: 0.25 went down, 0.75 and 1.25 both went to 1.0. If every half went up, all sums would drift
# upwards a little; this way the halves cancel on average.
#
# ### The same numbers from PyTorch
#
# PyTorch finds the range with **observers** and rounds with `fake_quantize`, *fake* because the result is a float again.
# (It also has integer tensors, `torch.quantize_per_tensor`; they are deprecated, and notebook 11 says what replaced
# them.) The helper has both in `quantization`. Random tensors, 2 to 8 bits, both kinds of grid, one for the whole tensor
# (**per tensor**) or one for each row (**per channel**): do the three ever disagree?


# %% tags=["plumbing"]
def library(x, bits, symmetric, rows):
    """PyTorch's observer and PyTorch's rounding."""
    low, high = quantization.code_range(bits, signed=symmetric)
    scheme = getattr(torch, f"per_{'channel' if rows else 'tensor'}_{'symmetric' if symmetric else 'affine'}")
    observer = PerChannelMinMaxObserver if rows else MinMaxObserver
    observer = observer(dtype=torch.qint8 if symmetric else torch.quint8, qscheme=scheme, quant_min=low, quant_max=high)
    observer(x)
    scale, zero = observer.calculate_qparams()
    if rows:
        return torch.fake_quantize_per_channel_affine(x, scale, zero.int(), 0, low, high)
    return torch.fake_quantize_per_tensor_affine(x, scale.item(), int(zero), low, high)


# %%
modes = [(b, symmetric, rows) for b in range(2, 9) for symmetric in (True, False) for rows in (False, True)]
differing = 0
for bits, symmetric, rows in modes:
    x = torch.randn(50, 200) * torch.logspace(-2, 1, 50)[:, None] + 0.3
    ends = (x.amin(1, keepdim=True), x.amax(1, keepdim=True)) if rows else (x.amin(), x.amax())
    scale, zero, low, high = affine_grid(*ends, bits, symmetric)
    mine = to_values(to_codes(x, scale, zero, low, high), scale, zero)
    grid = quantization.find_grid(x, bits, method="minmax", symmetric=symmetric, signed=symmetric, per_channel=rows)
    differing += int((mine != library(x, bits, symmetric, rows)).sum())
    differing += int((mine != quantization.fake_quantize(x, grid)).sum())

# %% tags=["plumbing"]
run.claim("same-numbers", f"Numbers on which cell, helper and PyTorch differ, {len(modes)} modes", differing, at_most=0)

# %% [markdown]
# ## 2. What a bit buys: weights
#
# One more bit halves the step. A rounding error lies anywhere between $-s/2$ and $s/2$, with a mean square of $s^2/12$.
# So the mean square of the error falls to a quarter. Engineers call the ratio of signal to error the **SQNR**
# (signal-to-quantization-noise ratio), and count it in **decibels**, ten times its logarithm. For numbers $x$ that became
# $\hat x$, with a bar for the mean:
#
# $$\mathrm{SQNR} = 10\,\log_{10}\frac{\overline{x^2}}{\overline{(\hat x - x)^2}}.$$
#
# **Predict**: how many decibels is a bit worth? And if every output channel of a layer gets a step of its own, how much
# does that add?


# %%
def decibels(x, rounded):
    """Ratio of the mean square of `x` to that of the error."""
    return 10 * torch.log10(x.square().mean() / (rounded - x).square().mean()).item()


def weight_quality(net, bits, **options):
    """Decibels that the weights of each layer keep, mean over the layers."""
    weights = pruning.weights_of(net).values()
    return np.mean(
        [decibels(w, quantization.fake_quantize(w, quantization.find_grid(w, bits, **options))) for w in weights]
    )


# %% tags=["plumbing"]
kinds = {"one step": False, "a step for each channel": True}
names = {"digits": "LeNet-5", "photographs": S.net}
quality = pd.DataFrame(
    {
        f"{names[task]}, {kind}": [weight_quality(net, b, method="minmax", per_channel=rows) for b in S.bits]
        for task, net in nets.items()
        for kind, rows in kinds.items()
    },
    index=pd.Index(S.bits, name="bits"),
)
upper = quality[quality.index >= 4]
slopes = (upper.iloc[0] - upper.iloc[-1]) / (upper.index[0] - upper.index[-1])
gains = {
    task: (quality[f"{name}, a step for each channel"] - quality[f"{name}, one step"]).mean()
    for task, name in names.items()
}
fig = show.line_with_band(
    S.bits,
    {name: quality[name] for name in quality},
    title=f"From 4 bits up, one more bit of weight is worth {slopes.mean():.1f} dB",
    xlabel="bits of a weight",
    ylabel="SQNR of the weights (dB)",
)
for line in fig.axes[0].lines[:2]:  # wide and pale, so that the other network's lines show on top of them
    line.set(linewidth=6, alpha=0.4, markersize=11)
fig.axes[0].legend()
show.figure(fig, alt=f"Decibels against bits. {show.in_words(quality, '{:.1f}')}", table=quality)
run.record("weight_decibels", quality.reset_index())
theory = 20 * np.log10(2)
run.claim("a-bit", "Difference between a bit's worth (dB, from 4 bits up) and 20 log10(2)", abs(slopes.mean() - theory),
          at_most=0.7)  # fmt: skip
say(
    f"Theory says {theory:.2f} dB a bit. A step for each channel adds {gains['digits']:.1f} dB on LeNet-5 and "
    f"{gains['photographs']:.1f} dB on `{S.net}`, as much as {gains['photographs'] / theory:.1f} bits, and costs one "
    "number of four bytes a channel. Channels differ in size, and one large channel stretches the grid of all the "
    "others."
)

# %% [markdown]
# ## 3. What a bit buys: activations
#
# To multiply integers, both factors must be integers: the weights, and what they are multiplied with, the
# **activations**. Weights can be looked at in peace. Activations depend on the image, so somebody has to watch some
# images go by first. That is **calibration**. `quantization.sample_inputs` runs a few training images through a network
# and keeps some of the numbers that reach each layer, always the smallest and the largest of each batch among them.

# %%
seen = {task: quantization.sample_inputs(net, calibration[task]) for task, net in nets.items()}
inner = seen["photographs"]["res1.block1.conv"]

# %% tags=["plumbing"]
fig, ax = plt.subplots()
ax.hist(inner.numpy(), bins=120, color=show.COLOURS[0])
ax.set(
    yscale="log",
    title=f"{(inner == 0).float().mean():.0%} are zero, none is negative, and the tail is long",
    xlabel="activation that reaches res1.block1",
    ylabel="how many (log scale)",
)
summary = pd.DataFrame({"value": inner.quantile(torch.tensor([0.0, 0.5, 0.99, 0.999, 1.0])).tolist()},
                       index=pd.Index(["smallest", "median", "99 %", "99.9 %", "largest"], name=""))  # fmt: skip
show.figure(fig, alt=f"Histogram of the activations. {show.in_words(summary, '{:.2f}')}", table=summary)

# %% [markdown]
# Which images? Never those of the test set: a range that was fitted to the test images has seen them, and the test is no
# longer one. The splits of this course know what they are, and the helper refuses:

# %%
try:
    quantization.sample_inputs(nets["digits"], mnist.test)
except ValueError as error:
    print(f"ValueError: {error}")
else:
    raise AssertionError("the test images were not refused")

# %% [markdown]
# After a ReLU nothing is negative. A symmetric grid spends half of its levels there all the same. **Predict**, in
# decibels, what *unsigned* codes gain on such a layer. (Their zero point is 0 there. Another zero point helps where both
# signs occur, unequally.)


# %%
def sample_quality(x, bits, method="minmax", symmetric=False):
    grid = quantization.find_grid(x, bits, method=method, symmetric=symmetric, signed=symmetric)
    return decibels(x, quantization.fake_quantize(x, grid))


# %% tags=["plumbing"]
layers = {f"{names[task]}: {layer}": x for task, found in seen.items() for layer, x in found.items()}
by_layer = pd.DataFrame(
    {
        "smallest value": {name: x.min().item() for name, x in layers.items()},
        "symmetric": {name: sample_quality(x, 8, symmetric=True) for name, x in layers.items()},
        "unsigned": {name: sample_quality(x, 8) for name, x in layers.items()},
    }
)
by_layer["gain (dB)"] = by_layer["unsigned"] - by_layer["symmetric"]
run.record("unsigned", by_layer.reset_index(names="layer"))
by_layer.round(1)

# %% tags=["plumbing"]
after_relu = by_layer[by_layer["smallest value"] >= 0]
gain = after_relu["gain (dB)"].mean()
run.claim("unsigned", "Gain by unsigned codes on layers that see no negative number (dB, 8 bits)", gain, at_least=4)
say(
    f"On the {len(after_relu)} layers that follow a ReLU the gain is {gain:.1f} dB, about one bit, and it costs nothing. On the "
    f"images themselves, which have both signs, it is {by_layer.loc[by_layer['smallest value'] < 0, 'gain (dB)'].mean():.1f} dB."
)

# %% [markdown]
# ## 4. Which range?
#
# The tail of that histogram is long. If the grid reaches to the largest value, most levels stand where hardly any number
# is. If it ends earlier, the levels come closer together, and what lies beyond is cut off. Two errors, and one of them
# grows as the other falls. Take four bits and shrink the range, part by part. **Predict** the share of the range that
# does best.


# %%
def errors(x, part, bits):
    """Squared error of the numbers inside the range, and of those that are cut off, per number."""
    scale, zero, low, high = affine_grid(part * x.amin(), part * x.amax(), bits, symmetric=False)
    squared = (to_values(to_codes(x, scale, zero, low, high), scale, zero) - x).square()
    outside = (x > part * x.amax()) | (x < part * x.amin())
    return [(squared * ~outside).mean().item(), (squared * outside).mean().item(), squared.mean().item()]


# %% tags=["plumbing"]
parts = [0.05 ** (i / 49) for i in range(50)]  # from the whole range to a twentieth
curves = pd.DataFrame([errors(inner, part, 4) for part in parts], columns=["rounding", "cutting off", "both"],
                      index=pd.Index([100 * part for part in parts], name="range (%)"))  # fmt: skip
best_part = curves["both"].idxmin()
fig, ax = plt.subplots()
for i, name in enumerate(curves):
    ax.plot(curves.index, curves[name], label=name, color=show.COLOURS[i], linestyle=figures.LINES[i])
ax.axvline(best_part, color="black", linewidth=1)
ax.annotate(" the least of both", (best_part, 1), xycoords=("data", "axes fraction"), va="top", fontsize=10)
ax.set(
    yscale="log",
    ylim=(curves["both"].min() / 10, curves["both"].max() * 2),
    title=f"Four bits do best on {best_part:.0f} % of the range",
    xlabel="range (% of the largest value)",
    ylabel="mean squared error (log scale)",
)
ax.legend()
rows = curves.iloc[[0, 10, 20, 30, 40, 49]].rename(index="{:.0f}".format)
show.figure(fig, alt=f"Squared errors against the range. {show.in_words(rows, '{:.2g}')}", table=rows)

# %% [markdown]
# Three rules are in use. **Min/max**: everything counts. **Percentile**: leave out the outermost 0.1 % at each end.
# **MSE**: try ranges and keep the one with the smallest squared error, the minimum of the curve above. The helper knows
# all three; its MSE rule tries the same fifty ranges and must find the very one that the cell found.

# %%
mine = affine_grid(best_part / 100 * inner.amin(), best_part / 100 * inner.amax(), 4, symmetric=False)[0]
helper = quantization.find_grid(inner, 4, method="mse", symmetric=False, signed=False).scale

# %% tags=["plumbing"]
run.claim("same-range", "Relative difference between the cell's best step and the helper's", abs(mine / helper - 1),
          at_most=1e-5)  # fmt: skip
rules = pd.DataFrame(
    {
        f"{bits} bits, {method}": {name: sample_quality(x, bits, method) for name, x in layers.items()}
        for bits in (8, 4, 2)
        for method in quantization.METHODS
    }
)
run.record("ranges", rules.reset_index(names="layer"))
rules.round(1)

# %% tags=["plumbing"]
won = {bits: (rules[f"{bits} bits, mse"] - rules[f"{bits} bits, minmax"]).mean() for bits in (8, 4, 2)}
run.claim("better-range", "Gain by the MSE range over min/max on activations (dB, 4 bits)", won[4], at_least=0.5)
say(
    f"Against min/max, the MSE range gains {won[8]:.1f} dB with 8 bits, {won[4]:.1f} dB with 4 and {won[2]:.1f} dB "
    "with 2. With many levels there is one for everything; with few, a level for a rare giant is a level less for all "
    "the others. The percentile rule does not know how many levels there are: against min/max it changes "
    f"{np.mean(rules['8 bits, percentile'] - rules['8 bits, minmax']):+.1f} dB with 8 bits and "
    f"{np.mean(rules['2 bits, percentile'] - rules['2 bits, minmax']):+.1f} dB with 2."
)

# %% [markdown]
# ## 5. Accuracy against bits
#
# Decibels are a means. Now the two networks, without any training, in three variants:
#
# - weights only, min/max, a step for each layer: the simplest that there is;
# - weights only, MSE range, a step for each channel;
# - the same, and every layer's input in as many bits as its weights.
#
# **Predict** at how many bits each network loses its first point in the second variant, and at how many bits it is no
# better than guessing.
#
# `quantization.quantize_model` returns a new network that computes this way. Each weight carries its grid as a
# parametrization, as masks did in notebook 02, and each layer rounds its input first. Biases and BatchNorm stay in
# floating point: they are few.

# %%
VARIANTS = {
    "weights, simplest": lambda task, bits: dict(weights=bits, method="minmax", per_channel=False),
    "weights, channel by channel": lambda task, bits: dict(weights=bits),
    "weights and activations": lambda task, bits: dict(weights=bits, activations=bits, calibration=calibration[task]),
}

# %% tags=["plumbing"]
swept = {
    task: pd.DataFrame(
        {
            name: [accuracy(quantization.quantize_model(net, **options(task, bits)), task) for bits in S.bits]
            for name, options in VARIANTS.items()
        },
        index=pd.Index(S.bits, name="bits"),
    )
    for task, net in nets.items()
}
run.record("accuracy_against_bits", {task: table.reset_index().to_dict("records") for task, table in swept.items()})
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
for ax, (task, table) in zip(axes, swept.items(), strict=True):
    floor = 50 / len(sets[task])  # half an image: a log scale has no place for none
    lines = {name: (100 * (1 - table[name])).clip(lower=floor) for name in table}
    dense_wrong = max(100 * (1 - base[task]), floor)
    show.line_with_band(S.bits, lines, title="", xlabel=f"bits ({names[task]})", ylabel="", ax=ax)
    ax.axhline(dense_wrong, color="black", linewidth=1)
    ax.annotate("32 bits ", (1, dense_wrong), xycoords=("axes fraction", "data"), xytext=(0, 4),
                textcoords="offset points", ha="right", fontsize=10)  # fmt: skip
    ax.get_legend().remove()
axes[0].set(yscale="log", ylabel="wrong answers (%, log scale)")
axes[0].set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
axes[0].minorticks_off()
axes[1].minorticks_off()
three = swept["photographs"].iloc[-2]
fig.suptitle(
    f"Photographs in {three.name} bits: {1 - three.iloc[0]:.0%} or {1 - three.iloc[1]:.0%} wrong, by how the grid is chosen",
    fontsize=14, fontweight="bold", x=0.01, ha="left",
)  # fmt: skip
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
table = pd.concat(swept, axis=1)
flat = (100 * (1 - table)).set_axis([f"{task}, {name}" for task, name in table.columns], axis=1)
show.figure(fig, alt=f"Wrong answers (%) against bits. {show.in_words(flat, '{:.1f}')}", table=flat)

# %% tags=["plumbing"]
photos = swept["photographs"]
lost = base["photographs"] - photos.loc[8, "weights and activations"]
run.claim("eight-bits", "Accuracy lost on photographs with 8 bits everywhere, untrained", lost, at_most=0.02)
run.claim("a-better-ruler", "Accuracy that MSE ranges channel by channel save on photographs at 4 bits",
          photos.loc[4, "weights, channel by channel"] - photos.loc[4, "weights, simplest"], at_least=0.005)  # fmt: skip


def first_loss(task, name):
    """The largest number of bits that costs more than a point, in words."""
    losing = [bits for bits in S.bits if base[task] - swept[task].loc[bits, name] > 0.01]
    return f"first loses a point at {losing[0]} bits" if losing else f"loses no point down to {S.bits[-1]} bits"


say("\n".join(f"- {names[task]}, {name}: {first_loss(task, name)}." for task in swept for name in VARIANTS))

# %% tags=["plumbing"]
falls = {task: base[task] - table for task, table in swept.items()}
alone, both = falls["photographs"]["weights, channel by channel"], falls["photographs"]["weights and activations"]
say(
    f"With four bits, weights alone cost the photographs {100 * alone[4]:.1f} points, weights and activations "
    f"{100 * both[4]:.1f}; with two bits {100 * alone[2]:.1f} and {100 * both[2]:.1f}. Four bits everywhere change the "
    f"digits by {points(-falls['digits'].loc[4, 'weights and activations'])}. Network and task both differ here, so this "
    "does not tell which of the two decides."
)

# %% [markdown]
# Eight bits cost these networks next to nothing, one reason why so many processors multiply them. Further down, a network
# that was trained for 32 bits comes apart. Two ways lead on: levels at better places, and training.
#
# ## 6. Levels where the numbers are
#
# Weights are bell-shaped: many small ones, few large ones. An even grid treats all regions alike. **K-means** puts the
# levels where the numbers are: each number goes to its nearest level, each level moves to the mean of its numbers, and
# again (Lloyd's algorithm). For plain numbers it is short, because they can be sorted: the numbers of a level are then
# neighbours, and their sum is a difference of two running totals.


# %%
def kmeans(values, bits, rounds):
    """Return 2^bits levels after `rounds` of Lloyd's algorithm, from the middles of equal parts of the numbers."""
    ordered = values.flatten().double().sort().values
    totals, different = F.pad(ordered.cumsum(0), (1, 0)), ordered.unique()
    levels = different[((torch.arange(2**bits) + 0.5) / 2**bits * len(different)).long()]
    for _ in range(rounds):
        borders = torch.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2)
        borders = torch.cat([torch.tensor([0]), borders, torch.tensor([len(ordered)])])
        levels = totals[borders].diff() / borders.diff()
    return levels


# %% tags=["plumbing"]
weight = nets["digits"].conv2.weight.detach()
column = weight.double().numpy().reshape(-1, 1)
middles = np.unique(column)[((np.arange(8) + 0.5) / 8 * len(np.unique(column))).astype(int)]
sklearn = KMeans(8, init=middles[:, None], n_init=1, max_iter=30, tol=0).fit(column)
theirs = np.sort(sklearn.cluster_centers_[:, 0])
mine, helper = kmeans(weight, 3, 30).numpy(), quantization.kmeans_table(weight, 3, iterations=30).numpy()
gap = max(np.abs(mine - helper).max(), np.abs(mine - theirs).max())
run.claim("same-marks", "Largest difference between the levels of cell, helper and scikit-learn, in mean spacings",
          gap / np.diff(mine).mean(), at_most=0.01)  # fmt: skip

# %% [markdown]
# Cell, helper and scikit-learn agree. Such a layer stores its 2, 3 or 4 bits a weight, and once a **codebook**: which
# level means which value (Han et al. 2016).
#
# The other classic is the opposite of a free choice: levels at 0 and at **powers of two** times a scale, $\pm 1,
# \pm\frac12, \pm\frac14, \dots$ To multiply by a power of two, hardware shifts bits; it needs no multiplier at all. The
# levels crowd around zero, where most weights are. That sounds like what we want. **Predict**: what does a fourth bit add
# to a third?

# %% tags=["plumbing"]
pd.DataFrame(
    {f"{bits} bits": pd.Series(quantization.powers_of_two(bits).tolist()[2 ** (bits - 1) - 1 :]) for bits in (2, 3, 4)}
).map(lambda level: "" if pd.isna(level) else f"{level:g}").rename_axis("positive levels")


# %%
def even_levels(weight, bits):
    """The values of the best even grid, one for the whole layer."""
    grid = quantization.find_grid(weight, bits, method="mse")
    return quantization.dequantize(torch.arange(grid.low, grid.high + 1), grid)


def power_levels(weight, bits):
    """Powers of two, times the factor that suits the weight best."""
    return quantization.fit_table(weight, quantization.powers_of_two(bits))


LEVELS = {"even": even_levels, "k-means": quantization.kmeans_table, "powers of two": power_levels}

# %% tags=["plumbing"]
fig, ax = plt.subplots()
ax.hist(weight.flatten().numpy(), bins=150, color=show.COLOURS[3], alpha=0.6)
tallest, shown = ax.get_ylim()[1], {name: levels(weight, 4) for name, levels in LEVELS.items()}
for i, (name, levels) in enumerate(shown.items()):
    height = [-(0.06 + 0.06 * i) * tallest] * len(levels)
    ax.plot(levels, height, figures.MARKERS[i], color=show.COLOURS[(0, 4, 6)[i]], markersize=4, label=name)
near = {name: int((levels.abs() < 0.02).sum()) for name, levels in shown.items()}
ax.set(
    title=f"{near['powers of two']} of the 15 levels at powers of two lie within 0.02 of zero",
    xlabel="weight of LeNet-5's conv2, and where 4 bits put the levels",
    ylabel="number of weights",
)
ax.legend()
table = pd.DataFrame({name: pd.Series(levels.tolist()) for name, levels in shown.items()})
counted = pd.DataFrame({"levels within 0.02 of zero": near})
show.figure(fig, alt=f"Histogram of weights, three rows of levels below. {show.in_words(counted)}", table=table)


# %%
def with_levels(net, levels, bits):
    """Return `net` with every layer's weights on levels of its own, one table for each layer."""
    weights = {name.removesuffix(".weight"): w for name, w in pruning.weights_of(net).items()}
    return quantization.share_weights(net, {name: levels(w, bits) for name, w in weights.items()})


# %% tags=["plumbing"]
rows = []
for (task, net), bits in [(item, bits) for item in nets.items() for bits in (4, 3, 2)]:
    for name, levels in LEVELS.items():
        shared = with_levels(net, levels, bits)
        pairs = zip(pruning.weights_of(net).values(), pruning.weights_of(shared).values(), strict=True)
        quality = np.mean([decibels(w, rounded) for w, rounded in pairs])
        rows.append(
            {"net": names[task], "bits": bits, "marks": name, "dB": quality, "accuracy": accuracy(shared, task)}
        )
run.record("marks", rows)
found = pd.DataFrame(rows).pivot(index=["net", "bits"], columns="marks", values=["dB", "accuracy"])
found = found.sort_index(ascending=[True, False])
found.round({column: 1 if column[0] == "dB" else 3 for column in found})

# %% tags=["plumbing"]
means = found["dB"].groupby("bits").mean()
run.claim("k-means", "What k-means adds to the best even grid at 4 bits (dB, mean over layers and networks)",
          means.loc[4, "k-means"] - means.loc[4, "even"], at_least=0.3)  # fmt: skip
fourth = means.loc[4] - means.loc[3]
accuracies = 100 * found["accuracy"]
step_up = accuracies.loc[(S.net, 4)] - accuracies.loc[(S.net, 3)]
say(
    f"K-means is worth {means.loc[4, 'k-means'] - means.loc[4, 'even']:.1f} dB at 4 bits and "
    f"{means.loc[2, 'k-means'] - means.loc[2, 'even']:.1f} dB at 2. The fourth bit adds {fourth['even']:.1f} dB to an "
    f"even grid, {fourth['k-means']:.1f} dB to k-means, and {fourth['powers of two']:.1f} dB to powers of two. In the "
    f"photographs' accuracy the same step from three bits to four is {step_up['even']:+.1f} points on the even grid, "
    f"{step_up['k-means']:+.1f} with k-means and {step_up['powers of two']:+.1f} with powers of two: another order."
)

# %% [markdown]
# Powers of two do not get finer where the large weights are: between 1 and 1/2 there is no other level, with 3 bits or
# with 8. Each new bit doubles the number of levels, and all the new ones crowd closer to zero. (Li et al. 2020 repair
# that with *sums* of powers of two; that is exercise 09.3.) And k-means has a price of its own: its levels are no multiples
# of one step, so each must be looked up before it can be multiplied. A codebook makes the *file* small. An even grid makes
# the *arithmetic* cheap.
#
# ### Less error, fewer right answers?
#
# In the quick profile, two rows of this page do not fit together. Section 5's simplest variant is a min/max grid, one for a whole layer. The
# even levels of this section are one grid for a layer, too, but the best by squared error: SQNR can only rise. Take three
# bits, the photographs' network, and change one thing at a time: the **rule** that finds the range (min/max or least
# squares) and the **granularity** (one step a layer, or one for each channel).
#
# **Predict** which of the four keeps the most accuracy, and which the least.
#
# While we are at it, measure two errors. One is that of the weights, as so far. The other is that of the layer's *output*,
# the only thing that the next layer sees. If a filter $w$ becomes $\hat w$ and meets the inputs $x$, its output is off by
# $(\hat w - w)\,x$, with a mean square of
#
# $$(\hat w - w)\,M\,(\hat w - w)^\top, \qquad M = \overline{x\,x^\top}.$$
#
# $M$ holds all that this error needs to know of the inputs; the folded cell collects it from calibration images, one matrix for each
# layer.


# %% tags=["plumbing"]
def input_moments(net, images):
    """Mean of x xᵀ over the inputs x that the filters of each layer meet, by the name of the weight."""
    found, hooks = {}, []

    def watch(name):
        def before(layer, inputs):
            (x,) = inputs
            if isinstance(layer, nn.Conv2d):
                x = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).transpose(1, 2)
            rows = x.reshape(-1, x.shape[-1])
            found[f"{name}.weight"] = rows.T @ rows / len(rows)

        return before

    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_pre_hook(watch(name)))
    with torch.no_grad():
        net.eval()(images)
    for hook in hooks:
        hook.remove()
    return found


moments = input_moments(nets["photographs"], calibration["photographs"].inputs[:50])


# %%
def output_decibels(weight, rounded, moments):
    """SQNR of a layer's output: signal and error as the inputs weigh them."""
    signal, error = weight.flatten(1), (rounded - weight).flatten(1)
    return 10 * torch.log10(((signal @ moments) * signal).sum() / ((error @ moments) * error).sum()).item()


# %% [markdown]
# And if the output's error is what counts, why round each weight to its nearest level at all? A weight that was rounded up
# leaves an error in the output, and the weights that are still free can make up for it. So round one column after the
# other, and after each move the rest to where the output's error is least. $M$ says where: this is GPTQ, of Frantar et
# al. 2023, in its plainest form. It uses the very same grid, and no label.


# %%
def round_for_output(weight, grid, moments):
    """Round column by column; the columns that are still free make up for each error."""
    rest = weight.flatten(1).clone()
    rounded = torch.empty_like(rest)
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments))
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    for i in range(rest.shape[1]):
        rounded[:, i] = quantization.fake_quantize(rest[:, i].contiguous(), grid)
        error = (rest[:, i] - rounded[:, i]) / upper[i, i]
        rest[:, i:] -= error[:, None] * upper[i, i:]
    return rounded.view_as(weight)


# %% tags=["plumbing"]
@torch.no_grad()
def compare_rules(net, bits):
    """SQNR of weights and outputs, mean over the layers, and validation accuracy, for each rule and granularity."""
    rows = []
    for rule, method, by_output in (
        ("min/max, to the nearest", "minmax", False),
        ("least squares, to the nearest", "mse", False),
        ("least squares, for the output", "mse", True),
    ):
        for granularity, per_channel in (("one step a layer", False), ("a step for each channel", True)):
            new, of_weights, of_outputs = deepcopy(net), [], []
            for name, weight in pruning.weights_of(net).items():
                grid = quantization.find_grid(weight, bits, method=method, per_channel=per_channel)
                nearest = quantization.fake_quantize(weight, grid)
                rounded = round_for_output(weight, grid, moments[name]) if by_output else nearest
                new.get_parameter(name).copy_(rounded)
                of_weights.append(decibels(weight, rounded))
                of_outputs.append(output_decibels(weight, rounded, moments[name]))
            rows.append({"rule": rule, "granularity": granularity, "weights (dB)": np.mean(of_weights),
                         "outputs (dB)": np.mean(of_outputs), "accuracy": accuracy(new, "photographs")})  # fmt: skip
    return pd.DataFrame(rows)


chosen = compare_rules(nets["photographs"], 3)
run.record("rule_by_granularity", chosen)
said = {"weights (dB)": "{:.1f}", "outputs (dB)": "{:.1f}", "accuracy": "{:.1%}"}
chosen.assign(**{name: chosen[name].map(form.format) for name, form in said.items()}).set_index(["rule", "granularity"])

# %% tags=["plumbing"]
reached = 100 * chosen.set_index(["rule", "granularity"])["accuracy"].unstack()
minmax, least, output = reached.index[reached.index.get_indexer(list(dict.fromkeys(chosen["rule"])))]
whole, each = "one step a layer", "a step for each channel"


def even_published(rows):
    """Accuracy (%) of the published network with even levels, one least-squares grid a layer, in three bits."""
    return 100 * rows.query("net == 'cifar_base' and bits == 3 and marks == 'even'")["accuracy"].iloc[0]


def swept_published(name):
    """The same for a variant of section 5."""
    return lambda rows: 100 * pd.DataFrame(list(rows["photographs"])).query("bits == 3")[name].iloc[0]


def rule_published(rule, granularity):
    """What the published runs found for a rule of the table above: nothing, until one has measured it."""
    wanted = (rule, granularity)
    return published(
        "rule_by_granularity", lambda rows: 100 * rows.set_index(["rule", "granularity"])["accuracy"].loc[wanted]
    )


layer_squares = published("marks", even_published)
layer_minmax = published("accuracy_against_bits", swept_published("weights, simplest"))
channel_squares = published("accuracy_against_bits", swept_published("weights, channel by channel"))
ends = {rule: statistics.image_interval(reached.loc[rule, whole] / 100, S.photos) for rule in (minmax, least)}
say(
    f"One step a layer, in this run's network: {reached.loc[minmax, whole]:.1f} % by min/max and "
    f"{reached.loc[least, whole]:.1f} % by least squares. Other images like these {S.photos:,} would give "
    + " and ".join(f"{100 * low:.1f} to {100 * high:.1f} %" for low, high, _ in ends.values())
    + " (95 %). Other networks are another question:"
)
verdicts = evidence.conclude(
    evidence.Comparison("One step a layer: least squares against min/max", reached.loc[least, whole] - reached.loc[minmax, whole],
                        tuple(np.subtract(layer_squares, layer_minmax))),
    evidence.Comparison("Least squares: a step for each channel against one a layer", reached.loc[least, each] - reached.loc[least, whole],
                        tuple(np.subtract(channel_squares, layer_squares))),
    evidence.Comparison("A step for each channel: least squares against min/max", reached.loc[least, each] - reached.loc[minmax, each],
                        tuple(np.subtract(rule_published(least, each), rule_published(minmax, each)))),
    evidence.Comparison("One step a layer: rounding for the output against the nearest level",
                        reached.loc[output, whole] - reached.loc[least, whole],
                        tuple(np.subtract(rule_published(output, whole), rule_published(least, whole)))),
    evidence.Comparison("A step for each channel: rounding for the output against the nearest level",
                        reached.loc[output, each] - reached.loc[least, each],
                        tuple(np.subtract(rule_published(output, each), rule_published(least, each)))),
)  # fmt: skip

# %% [markdown]
# All published runs quantize one and the same trained network, so together they count as one measurement, and theirs is
# another network than that of *quick*. Set the two networks side by side, each with one step a layer:


# %% tags=["plumbing"]
def decibels_published(rows):
    """SQNR of the published network's weights by min/max, one step a layer, in three bits."""
    column = next(name for name in rows if name.startswith("cifar_base") and "channel" not in name)
    return rows.query("bits == 3")[column].iloc[0]


def even_decibels_published(rows):
    """The same by least squares."""
    return rows.query("net == 'cifar_base' and bits == 3 and marks == 'even'")["dB"].iloc[0]


quality = chosen.set_index(["rule", "granularity"])["weights (dB)"]
sides = {
    f"`{S.net}`, this run": [*reached.loc[[minmax, least], whole], *quality.loc[[(minmax, whole), (least, whole)]]]
}
on_file = [*layer_minmax, *layer_squares, *published("weight_decibels", decibels_published),
           *published("marks", even_decibels_published)]  # fmt: skip
if len(on_file) == 4:
    sides["`cifar_base`, published"] = on_file
lines = [
    f"- {net}: min/max {worse:.1f} dB and {low:.1f} % right, least squares {better:.1f} dB and {high:.1f} %"
    for net, (low, high, worse, better) in sides.items()
]
fewer_right = [net for net, (low, high, worse, better) in sides.items() if better > worse and high < low]
say("\n".join(lines))
say(
    f"**Less error, and fewer right answers**, with {' and '.join(fewer_right)}."
    + (
        " The other network does not do that: neither rule is the better one as such."
        if len(sides) > len(fewer_right)
        else ""
    )
    if fewer_right
    else "On these networks the grid with less error has the more right answers. It need not be so."
)

# %% [markdown]
# So the SQNR of the weights does not tell which rule will win. Does that of the outputs? Look at its column in the table.
# Both are means of squares, over all numbers and then over the layers. A network may stumble over one layer alone, or over
# errors that all point the same way: what is cut off always moves towards zero, while roundings go up and down and partly
# cancel. Which it is here you can find out (exercise 09.5).
#
# The lesson has three parts. Rule and granularity work together, so choose them together, by what the network answers. A
# higher SQNR is a reason to try a grid, and no proof. And the nearest level is not the only one: rounding for the output uses
# the same grid, and lets the weights' error grow so that the output's may shrink.

# %% tags=["plumbing"]
gained = [reached.loc[output, kind] - reached.loc[least, kind] for kind in (whole, each)]
measured = evidence.measurements("09_quantize_from_scratch", "rule_by_granularity")
say(
    f"In this run rounding for the output changed the accuracy by {gained[0]:+.1f} points with one step a layer and by "
    f"{gained[1]:+.1f} with a step for each channel. "
    + (
        f"The {len(measured)} published runs that tried it are in the lines above; they round one network, and count once."
        if measured
        else "**No published run has tried it yet**: one network, one set of images. Take it as a promise, not as a finding."
    )
)

# %% [markdown]
# ## 7. A step that is learned
#
# Training can move the weights to where the levels are. But rounding is a staircase: its derivative is zero almost
# everywhere, and no gradient comes through. The **straight-through estimator** pretends on the way back that rounding was
# not there. In PyTorch it is one line: add the rounding error as a constant.
#
# Then the step itself can be learned. Inside the range, $\hat x = s\cdot\mathrm{round}(x/s)$. Treat the rounding as the
# identity when you differentiate, and the product rule gives
#
# $$\frac{\partial \hat x}{\partial s} = \mathrm{round}\!\left(\frac{x}{s}\right) - \frac{x}{s},$$
#
# and outside, where $\hat x = s\,q_{\text{last}}$, simply $q_{\text{last}}$. Numbers that are cut off pull the step up. Which
# way those inside pull depends on which side of their level they lie, how strongly on the distance. This is
# **learned step size quantization** (Esser et al. 2020).


# %%
def round_through(x):
    """Round; on the way back, pass the gradient as if nothing had happened."""
    return x + (x.round() - x).detach()


def on_learned_grid(x, step, low, high):
    code = round_through(x / step)
    last = code.detach().clamp(low, high)
    return torch.where(code == last, code, last) * step  # a plain clamp stops the gradient at the last level already


# %% [markdown]
# Check it three ways: the step's gradient against the formula, the gradient of $x$ against PyTorch's `fake_quantize`, and
# both against the helper.

# %%
x = torch.linspace(-2, 2, 400, requires_grad=True)
step, low, high = torch.tensor(0.3, requires_grad=True), -4, 3
weights_of_sum = torch.randn(400)


def gradients(rounded):
    return torch.autograd.grad((weights_of_sum * rounded).sum(), [x, step], allow_unused=True)


mine = gradients(on_learned_grid(x, step, low, high))

# %% tags=["plumbing"]
grid = quantization.Grid(step, torch.tensor(0, dtype=torch.int32), low, high)
helper = gradients(quantization.fake_quantize(x, grid))
theirs = gradients(torch.fake_quantize_per_tensor_affine(x, 0.3, 0, low, high))[0]
with torch.no_grad():
    code = (x / step).round()
    formula = torch.where(code < low, low, torch.where(code > high, high, code - x / step))
of_step = torch.stack([(weights_of_sum * formula).sum(), helper[1]]) - mine[1]
gap = torch.cat([of_step, theirs - mine[0], helper[0] - mine[0]]).abs().max()
run.claim("same-gradients", "Largest difference of a gradient from formula, helper and PyTorch", gap, at_most=1e-3)

# %% [markdown]
# Now the hardest case of this notebook: LeNet-5 with **two bits**, four levels, for every weight and every activation, the
# image included. `learned=True` makes the steps parameters. (The helper trains the *logarithm* of each step's growth, so
# that no optimizer can make a step negative.) `training.fit` trains it like any other network: it *is* an ordinary
# network.
#
# Three arms: no training; training with the steps fixed where the MSE rule put them; training with learned steps.
# **Predict** the three accuracies.


# %%
def train_digits(model, seed=SEED):
    """Train on digits, shifted by up to two pixels."""
    examples = mnist.train.take(S.train_digits)
    return training.fit(
        model, examples, epochs=S.digit_epochs, lr=1e-3, optimizer="adam", augment=training.random_shift, seed=seed
    ).model


# %%
two_bits = {
    learned: quantization.quantize_model(
        nets["digits"], weights=2, activations=2, calibration=calibration["digits"], learned=learned
    )
    for learned in (False, True)
}
trained = {learned: train_digits(model) for learned, model in two_bits.items()}

# %% tags=["plumbing"]
arms = pd.Series(
    {
        "32 bits": base["digits"],
        "2 bits, not trained": accuracy(two_bits[True], "digits"),
        "2 bits, trained, fixed steps": accuracy(trained[False], "digits"),
        "2 bits, trained, learned steps": accuracy(trained[True], "digits"),
    }
)
run.record("two_bits", arms.to_dict())
arms.map("{:.2%}".format).to_frame("validation accuracy")

# %% tags=["plumbing"]
UNTRAINED, FIXED, LEARNED = "2 bits, not trained", "2 bits, trained, fixed steps", "2 bits, trained, learned steps"
learned = arms[LEARNED]
run.claim("training-repairs", "Accuracy that training gives back at 2 bits", learned - arms[UNTRAINED],
          at_least=0.01)  # fmt: skip
run.claim("two-bits", "Validation accuracy with 2 bits everywhere and learned steps", learned, at_least=0.96)


def by_seed(key, a, b):
    """Points by which the published runs' arm `a` leads arm `b`, one number a seed."""
    runs = evidence.measurements("09_quantize_from_scratch", key).values()
    return tuple(100 * (found[a] - found[b]) for found in runs)


verdicts = evidence.conclude(
    evidence.Comparison("Two bits, learned steps: trained against not trained", 100 * (learned - arms[UNTRAINED]),
                        by_seed("two_bits", LEARNED, UNTRAINED)),
    evidence.Comparison("Two bits, trained: learned steps against fixed ones", 100 * (learned - arms[FIXED]),
                        by_seed("two_bits", LEARNED, FIXED)),
    evidence.Comparison("Two bits, trained with learned steps, against 32 bits", 100 * (learned - base["digits"]),
                        by_seed("two_bits", LEARNED, "32 bits")),
)  # fmt: skip

# %% [markdown]
# Training is what repairs two bits. What *learning the steps* adds to that, the seeds of LeNet-5 cannot tell: the MSE
# rule had put them well, and the weights move to wherever the levels are. (The 32-bit network was not trained any further,
# so part of the last comparison may be the additional training. The verdicts of a list are corrected for being several, by
# Holm's rule of notebook 05, and the intervals are not. And every seed trains on from the same 32-bit network, here and in
# section 8: another one might behave differently, and no interval on this page covers that.)
#
# How far did the steps move? Each weight has a step for every channel, each input one. Below: the factor by which they
# changed.

# %% tags=["plumbing"]
before, after = two_bits[True], trained[True]
growth = {
    f"{kind} {name}": (grids(after)[name].scale / grid.scale).mean().item()
    for kind, grids in {"weight": quantization.weight_grids, "input of": quantization.input_grids}.items()
    for name, grid in grids(before).items()
}
run.record("growth", growth)
pd.Series(growth).map("× {:.3f}".format).to_frame("mean factor of the steps")

# %% [markdown]
# ## 8. Four bits on photographs
#
# The photographs need more care, and their network has BatchNorm. Four bits for all weights and all activations; the
# first layer and the last keep eight, as is usual: they are small, and everything passes through them.
#
# **Predict** what is lost after training, in points.

# %%
photo_bits = quantization.bits_by_layer(nets["photographs"], 4, ends=8)
start = quantization.quantize_model(
    nets["photographs"],
    weights=photo_bits,
    activations=photo_bits,
    calibration=calibration["photographs"],
    learned=True,
)

# %%
fitted = training.fit(
    start,
    cifar.train.take(S.train_photos),
    epochs=S.photo_epochs,
    lr=S.rate,
    batch_size=S.batch,
    precision=training.fast_precision(),
    augment=training.flip_and_shift,
    seed=SEED,
    checkpoint=run.scratch("photos.pt") if PROFILE == "full" else None,
)
four_bits = fitted.model

# %% tags=["plumbing"]
run.record("photo_seconds", sum(row["seconds"] for row in fitted.history), timing=True)
photo_arms = {"32 bits": base["photographs"], "4 bits, not trained": accuracy(start, "photographs"),
              "4 bits, trained": accuracy(four_bits, "photographs")}  # fmt: skip
run.record("four_bits", photo_arms)
DENSE, START, END = photo_arms
say(
    f"In 4 bits the photographs go from {base['photographs']:.1%} to {photo_arms[START]:.1%}, and "
    f"training ({S.photo_epochs} × {S.train_photos:,} images) leads to {photo_arms[END]:.1%}. What the seeds say:"
)
verdicts = evidence.conclude(
    evidence.Comparison("Four bits: trained against not trained", 100 * (photo_arms[END] - photo_arms[START]),
                        by_seed("four_bits", END, START)),
    evidence.Comparison("Four bits, trained, against 32 bits", 100 * (photo_arms[END] - photo_arms[DENSE]),
                        by_seed("four_bits", END, DENSE)),
)  # fmt: skip

# %% [markdown]
# ### Where BatchNorm goes
#
# A processor that multiplies integers has no BatchNorm. In evaluation BatchNorm multiplies each channel by a constant $r$
# and adds another, so it can be **folded** into the convolution before it. With a step for each channel nothing is lost
# by that: the weight of channel $c$ is $s_c q$, and $r_c s_c q$ has the same codes and the step $r_c s_c$ (or, where
# $r_c$ is negative, the step $-r_c s_c$ and the codes with the other sign). So train with BatchNorm as it is, and fold
# afterwards:

# %%
folded = quantization.fold_batchnorm(four_bits, calibration["photographs"].inputs[:2])
codes, folded_codes = integers(four_bits), integers(folded)
changed = sum(int((codes[name].codes != folded_codes[name].codes).sum()) for name in codes)

# %% tags=["plumbing"]
run.claim("same-codes", "Codes of weights that folding BatchNorm changes", changed, at_most=0)
say(f"Accuracy with BatchNorm {accuracy(four_bits, 'photographs'):.2%}, folded {accuracy(folded, 'photographs'):.2%}.")

# %% [markdown]
# The trap: fold in *training* mode. There BatchNorm divides by the spread of the batch at hand, not by the constants that are
# folded. Nothing crashes; the network just answers differently. How differently? Take the same images in batches of ten,
# the same weights, and the two modes. Then see what the helper says to it:


# %%
images, trap = calibration["photographs"].inputs[:50], deepcopy(four_bits).train()
with torch.no_grad():
    in_training = torch.cat([trap(batch) for batch in images.split(10)])
in_evaluation = training.predict(four_bits, images)
change = ((in_training - in_evaluation).norm() / in_evaluation.norm()).item()
others = (in_training.argmax(1) != in_evaluation.argmax(1)).float().mean()

# %% tags=["plumbing"]
say(f"In training mode the logits move by {change:.0%} of their length; {others:.0%} of the answers change.")

# %%
try:
    quantization.fold_batchnorm(trap, images)
except ValueError as error:
    print(f"ValueError: {error}")
else:
    raise AssertionError("training mode was not refused")

# %% [markdown]
# ## 9. The file, packed to the bit
#
# So far all of this was pretence: the weights are 32-bit floats that happen to lie on levels. A float that could be a
# 4-bit code takes 32 bits. To be small, a file must hold the *codes*, packed without gaps. For four bits that is two
# codes a byte (their number must be even):


# %%
def pack_pairs(codes):
    """Return codes from -8 to 7 as bytes: the first of each pair in the low half, the second in the high half."""
    unsigned = (codes.reshape(-1) + 8).astype(np.uint8)
    return unsigned[0::2] | unsigned[1::2] << 4


def unpack_pairs(packed):
    return np.stack([packed & 15, packed >> 4], axis=1).reshape(-1).astype(np.int8) - 8


# %%
inner_codes = codes["conv2.conv.weight"].codes
packed = pack_pairs(inner_codes)
assert np.array_equal(unpack_pairs(packed), inner_codes.reshape(-1))
as_floats = 4 * inner_codes.size

# %% tags=["plumbing"]
say(f"conv2: {inner_codes.size:,} weights, {as_floats:,} bytes as floats, {packed.nbytes:,} as pairs of codes.")

# %% [markdown]
# `files.write_quantized` does the same for any number of bits, and stores with the codes what they need: steps, zero
# points, the grids of the inputs, biases. `write_sparse` would store floats, so it refuses:

# %% tags=["plumbing"]
small = {"LeNet-5, 2 bits": trained[True], f"{S.net}, 4 bits": folded}
dense = {"LeNet-5, 2 bits": nets["digits"], f"{S.net}, 4 bits": nets["photographs"]}
try:
    write_sparse(small["LeNet-5, 2 bits"], run.scratch("no.pack"))
except ValueError as error:
    print(f"ValueError: {error}")
else:
    raise AssertionError("a quantized network was not refused")

# %% [markdown]
# **Predict** the factors. LeNet-5 went from 32 bits to 2, the photographs' network from 32 to 4.

# %%
files = {}
for (name, model), task in zip(small.items(), nets, strict=True):
    files[name] = write_quantized(model, run.scratch(f"{task}.quantized.pack"))
    verify(files[name].path, model, sets[task].inputs[:256])  # read back: the same logits, bit for bit

# %% tags=["plumbing"]
weighed = {}
for name, model in small.items():
    full = write_dense(dense[name], run.scratch(f"{name.split(',')[0]}.dense.pack"))
    numbers = integers(model).values()
    bits = sum(part.codes.size * part.bits for part in numbers)
    steps = sum(4 * part.scale.size for part in numbers)
    weighed[name] = {"dense file": full.bytes, "codes": bits / 8, "steps": steps, "file": files[name].bytes}
    weighed[name] |= {
        "times smaller": full.bytes / files[name].bytes,
        "bits a weight": 8 * files[name].bytes / measure.count_weights(model),
    }
weighed = pd.DataFrame(weighed).T
weighed.apply(lambda column: column.map(("{:,.1f}" if column.max() < 100 else "{:,.0f}").format))

# %% tags=["plumbing"]
lenet_ratio, photo_ratio = weighed["times smaller"]
run.claim("two-bit-file", "LeNet-5 in 2 bits: times smaller than the dense file, read back, same logits", lenet_ratio,
          at_least=14)  # fmt: skip
run.claim("four-bit-file", "The photographs' network: times smaller, read back, same logits", photo_ratio, at_least=6.5)
gained = weighed["codes"] - (weighed["file"] - weighed["steps"])  # what leaving out zeros saves, less all other parts
say(
    f"**{lenet_ratio:.1f} times** and **{photo_ratio:.1f} times** smaller. `files.verify` read both with NumPy "
    "alone, put the numbers into a fresh network, and got the same logits, bit for bit. Steps, biases and a header, and "
    "in the second file two layers of eight bits, keep them from being 16 and 8 times smaller. "
    + " ".join(
        f"{name}: {saved:,.0f} bytes were saved by leaving out zeros: that many of the codes are zero."
        for name, saved in gained.items()
        if saved > 0
    )
)

# %% [markdown]
# Smaller is not faster yet: these networks still multiply floats. Notebook 10 gives them to runtimes that multiply
# integers.
#
# Now the test images, once for each network.

# %% tags=["plumbing"]
test_sets = {"digits": mnist.test.take(S.tested), "photographs": cifar.test.take(S.tested)}
tests = {
    "lenet5-dense": run.test("lenet5-dense", nets["digits"], test_sets["digits"]),
    "lenet5-2bit": run.test("lenet5-2bit", trained[True], test_sets["digits"]),
    f"{S.net}-dense": run.test(f"{S.net}-dense", nets["photographs"], test_sets["photographs"]),
    f"{S.net}-4bit": run.test(f"{S.net}-4bit", folded, test_sets["photographs"]),
}
error_2bit = 1 - tests["lenet5-2bit"].accuracy
lost_4bit = tests[f"{S.net}-dense"].accuracy - tests[f"{S.net}-4bit"].accuracy
pd.Series({name: f"{test.accuracy:.2%}" for name, test in tests.items()}).to_frame("test accuracy")

# %% tags=["plumbing"]
reported = 1 - evidence.literature("mnist-quantization").set_index("method")["accuracy"].round(4)
OWN_TWO_BITS = round(reported["relaxed quantization, 2/2 bits"], 4)  # Louizos et al. 2019
if PROFILE == "full":
    run.claim("lenet5-two-bits", "Test error of LeNet-5 with 2 bits everywhere, mean over the seeds", error_2bit,
              at_most=OWN_TWO_BITS, over_seeds=True)  # fmt: skip
    run.claim("cifar-four-bits", "Test accuracy lost with 4 bits, mean over the seeds", lost_4bit, at_most=0.01,
              over_seeds=True)  # fmt: skip
else:
    run.claim("quick-two-bits", "Test error of LeNet-5 with 2 bits everywhere", error_2bit, at_most=0.04)
    run.claim("quick-four-bits", "Test accuracy lost with 4 bits", lost_4bit, at_most=0.04)
say("On the test photographs, over the seeds of the training in four bits; all of them begin with one 32-bit network:")
verdicts = evidence.conclude(
    evidence.Comparison("Test accuracy of the photographs' network, four bits against 32", -100 * lost_4bit,
                        tuple(-100 * value for value in evidence.claimed("09_quantize_from_scratch", "cifar-four-bits")))
)  # fmt: skip

# %% tags=["plumbing"]
references = pd.concat([evidence.literature("mnist-quantization"), evidence.literature("cifar10-quantization")])
references["change"] = (100 * (references["accuracy"] - references["base_accuracy"])).map("{:+.2f}".format)
references["error"] = (100 * (1 - references["accuracy"])).map("{:.2f}".format)
references.set_index(["model", "method"])[["year", "error", "change", "seen"]].rename(
    columns={"error": "test error (%)", "change": "change (points)", "seen": "read in the paper itself"}
)

# %% tags=["plumbing"]
straight_two_bits = reported["relaxed quantization, straight-through, 2/2 bits"]
stated = {
    c.bound for r in evidence.published("09_quantize_from_scratch") for c in r.claims if c.id == "lenet5-two-bits"
}
errors_2bit = [100 * value for value in evidence.claimed("09_quantize_from_scratch", "lenet5-two-bits")]
say(
    "The published runs of this notebook have a test error of "
    + (
        ", ".join(f"{value:.2f}" for value in errors_2bit) + " % on LeNet-5 in two bits. "
        if errors_2bit
        else "(none yet). "
    )
    + "Stochastic rounding is the baseline of the paper on relaxed quantization. The method itself is "
    f"reported to reach {100 * OWN_TWO_BITS:.2f} %, and {100 * straight_two_bits:.2f} % with gradients that go straight "
    f"through; the first of these is the bound of our claim in *full*."
    + (
        f" (The published files still state the baseline's {100 * max(stated):.2f} % as their bound; their mean, "
        f"{np.mean(errors_2bit):.2f} %, is below {'all three' if np.mean(errors_2bit) < 100 * straight_two_bits else 'it'}.)"
        if stated and max(stated) > OWN_TWO_BITS
        else ""
    )
)

# %% [markdown]
# All of these are other networks, or other trainings, most of them much longer. They say what is possible, not which method
# is better.
#
# ## 10. Exercises
#
# **09.1 · One step.** A warm-up of one line. Values between 0 and `highest` get unsigned codes of `bits` bits: 0 stands for
# 0, the last code for `highest`. Return the step.


# %%
def unsigned_step(highest, bits):
    """Return the distance between two levels."""
    ### BEGIN SOLUTION
    return highest / (2**bits - 1)
    ### END SOLUTION


exercises.check("09.1", unsigned_step)

# %% [markdown]
# **09.2 · A grid for each row, with a zero point.** Weights are not always centred. Write an asymmetric quantizer with a
# scale and a zero point for *each row* of a matrix. Codes run from 0 to $2^b - 1$, and 0 must be met exactly, also in a
# row whose numbers are all positive. No row consists of zeros only.


# %%
def quantize_rows(weight, bits):
    """Return codes (the shape of `weight`), scale and zero point (rows, 1), such that weight ≈ (codes - zero) * scale."""
    ### BEGIN SOLUTION
    lowest = weight.amin(1, keepdim=True).clamp(max=0)
    highest = weight.amax(1, keepdim=True).clamp(min=0)
    scale = (highest - lowest) / (2**bits - 1)
    zero = -(lowest / scale).round()
    return ((weight / scale).round() + zero).clamp(0, 2**bits - 1), scale, zero
    ### END SOLUTION


exercises.check("09.2", quantize_rows)

# %% [markdown]
# **09.3 · Sums of powers of two.** Additive powers of two keep the shifts and fill the gaps. With four bits for a
# magnitude, take one number of each group and add them: $a \in \{0, 1, 2^{-2}, 2^{-4}\}$ and $b \in \{0, 2^{-1}, 2^{-3},
# 2^{-5}\}$. Return the sixteen sums, rising, and divided by the largest, so that they end at 1.


# %%
def additive_levels():
    """Return the 16 levels as a tensor, from 0 to 1."""
    ### BEGIN SOLUTION
    first = torch.tensor([0, 1, 2**-2, 2**-4])
    second = torch.tensor([0, 2**-1, 2**-3, 2**-5])
    sums = (first[:, None] + second).flatten().sort().values
    return sums / sums.max()
    ### END SOLUTION


exercises.check("09.3", additive_levels)

# %% [markdown]
# **09.4 · Predict the file.** LeNet-5 with 6-bit weights, a step for each output channel, inputs in floating point. No
# CPU has an integer type of six bits; a file can. It has 430,500 weights, and 580 output channels with a bias each. How
# many bytes will it take? Return your number; within half a percent is fine.


# %%
def predicted_bytes():
    """Return the predicted size of the file in bytes."""
    ### BEGIN SOLUTION
    return 430_500 * 6 / 8 + 580 * 4 + 580 * 4 + 400  # codes, steps, biases, header
    ### END SOLUTION


six_bits = quantization.quantize_model(nets["digits"], weights=6)
measured = write_quantized(six_bits, run.scratch("exercise.pack")).bytes
exercises.check("09.4", predicted_bytes, measured=measured)

# %% [markdown]
# **09.5 · Open: where would you spend the bits?** You have three bits a weight on average for the photographs' network, and
# each layer may have its own number and its own rule: `quantize_model(net, weights={"conv1": 3}, method="minmax")` rounds one
# layer and leaves the others alone. Begin with that: which layer costs the most, by which rule? Then say which layers get more
# bits and which fewer, and why. Write down your rule before you try it, choose by validation images, and say how you would
# find out whether it was luck. There is no solution to look up.

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **A bit of weight**: {slopes.mean():.1f} dB. A step for each channel: {gains['photographs']:.1f} dB on "
    f"`{S.net}`. Unsigned codes after a ReLU: {gain:.1f} dB. The MSE range at 4 bits: {won[4]:.1f} dB on activations.\n- "
    f"**Untrained**: 8 bits everywhere change the photographs by {points(-lost)}; LeNet-5 "
    f"{first_loss('digits', 'weights and activations')}.\n- **Trained, LeNet-5 in 2 bits**: {100 * error_2bit:.2f} % "
    f"test error (dense {100 * (1 - tests['lenet5-dense'].accuracy):.2f} %), {files['LeNet-5, 2 bits'].bytes:,} bytes, "
    f"{lenet_ratio:.1f} times smaller.\n- **Trained, `{S.net}` in 4 bits**: "
    f"{100 * tests[f'{S.net}-4bit'].accuracy:.2f} % (dense {100 * tests[f'{S.net}-dense'].accuracy:.2f} %), "
    f"{photo_ratio:.1f} times smaller."
)

# %% tags=["plumbing"]
learned_bits = "{}-bit weights and activations, learned steps"
recorded = {
    "lenet5-2bit": ("mnist", "lenet5-dense", trained[True], files["LeNet-5, 2 bits"], learned_bits.format(2)),
    f"{S.net}-4bit": ("cifar10", f"{S.net}-dense", folded, files[f"{S.net}, 4 bits"], learned_bits.format(4)),
}
originals = {"mnist": nets["digits"], "cifar10": nets["photographs"]}
for name, (task, dense_name, model, file, method) in recorded.items():
    example = (mnist if task == "mnist" else cifar).train.inputs[:1]
    macs = measure.count_macs(originals[task], example)
    full = run.scratch(f"{dense_name}.pack")
    write_dense(originals[task], full)
    run.model(dense_name, task=task, method="dense", accuracy=tests[dense_name].accuracy, macs=macs, file=full,
              weights=measure.count_weights(originals[task]), nonzero=measure.count_nonzero(originals[task]))  # fmt: skip
    run.model(name, task=task, method=method, techniques=["fewer bits"], base=dense_name, macs=macs, file=file.path,
              accuracy=tests[name].accuracy, weights=measure.count_weights(model), nonzero=measure.count_nonzero(model))  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - From four bits up, a bit of weight is worth six decibels. <!-- claims: a-bit -->
# - After a ReLU nothing is negative, and half of a symmetric grid stands idle. Unsigned codes give that bit back, and cost
#   nothing. <!-- by construction -->
# - The range is a compromise between rounding and cutting off. On activations in four bits, the least-squares range has
#   less error than min/max. <!-- claims: better-range -->
# - K-means has less error than the best even grid in as many bits. It makes files small; an even grid makes arithmetic
#   cheap. <!-- claims: k-means -->
# - In four bits, least-squares ranges channel by channel kept more of the photographs' accuracy than the simplest grid. Rule
#   and granularity were changed together there. <!-- claims: a-better-ruler -->
# - SQNR is a mean of squares; it does not count mistakes. Choose rule and granularity together, by what the network answers.
#   <!-- by construction -->
# - Eight bits needed no training here. With two, training gave LeNet-5 back most of what rounding had taken; in four, the
#   photographs' network of the published runs lost less than a point of test accuracy. <!-- claims: eight-bits, training-repairs, two-bits, cifar-four-bits -->
# - Train with BatchNorm as it is; fold it afterwards, in evaluation mode: no code changes. <!-- claims: same-codes -->
# - Fake quantization saves nothing. The file is small when the codes are packed, and it counts when it was read back.
#   <!-- claims: two-bit-file, four-bit-file -->
#
# ## To read
#
# - Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko 2018, *Quantization and Training of Neural Networks for
#   Efficient Integer-Arithmetic-Only Inference*: the affine grid, and folding.
# - Esser, McKinstry, Bablani, Appuswamy and Modha 2020, *Learned Step Size Quantization*.
# - Frantar, Ashkboos, Hoefler and Alistarh 2023, *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
#   Transformers*: rounding for the output.
# - Han, Mao and Dally 2016, *Deep Compression*: codebooks by k-means.
# - Li, Dong and Wang 2020, *Additive Powers-of-Two Quantization*.
# - Nagel, Fournarakis, Amjad, Bondarenko, van Baalen and Blankevoort 2021, *A White Paper on Neural Network
#   Quantization*: all of it, in order.
#
# **Next**: notebook 10 gives integers to runtimes that multiply integers, and looks at the clock.
