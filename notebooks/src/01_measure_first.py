# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [01_measure_first]
# ---

# %% [markdown]
# # 01 · Measure first: where do parameters, operations, bytes and milliseconds sit?
#
# Whoever wants to make a network smaller has to know first what is large about it. Here you train LeNet-5, take it apart
# and weigh the parts on four scales. The scales disagree: the layer that fills the file does a sixth of the work. And the
# fourth scale, the clock, gives another answer each time you look. You will build one that can be trusted.
#
# **You will be able to**
# - derive how many parameters and multiply-accumulates a layer has, and check it against a counter;
# - say which layer to attack for which currency, and why it is not the same one;
# - read the time of a layer per multiplication, and say what its share of the time hides;
# - name three ways in which a stopwatch misleads, and build a comparison that none of them fools;
# - read a latency verdict with its null control, and compare two runtimes that run the same weights.
#
# **Before this**: notebook 00.

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import itertools
import time
from copy import deepcopy
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib import ticker
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers import data, evidence, exercises, files, measure, nets, runtime, show, training
from helpers.core import modules
from helpers.evidence import say

run = evidence.start("01_measure_first", profile=PROFILE, seed=SEED)
say(evidence.timetable("01_measure_first"))

# %% [markdown]
# The answer first: each row is one of the four scales, and shows how it is shared out among the parts of the network. Three
# published runs weighed and timed them. `conv1` and `conv2` are the convolutions, `fc1` and `fc2` the linear layers, and
# *the rest* is what has no parameters: ReLU, pooling, the calls themselves. Follow `fc1` from the top to the bottom.

# %% tags=["plumbing", "answer"]
show.style()
published = evidence.published("01_measure_first")
if published:
    shares = {"parameters, bytes": [], "MACs": [], "time, one digit": [], "time, batch of 64": []}
    for result in published:
        held = {row["layer"]: 100 * row["share_parameters"] for row in result.measurements["layers"]}
        times = pd.DataFrame(result.timings["time_by_layer"]).set_index("layer")
        columns = ["% of the MACs", "% of the time, batch 1", "% of the time, batch 64"]
        for scale, column in zip(shares, [pd.Series(held), *(times[c] for c in columns)], strict=True):
            shares[scale].append(column.reindex(times.index, fill_value=0.0))
    shares = {scale: pd.DataFrame(runs) for scale, runs in shares.items()}
    fig, ax = plt.subplots(figsize=(8, 3.6))
    places = {"conv1": 2, "conv2": 1, "fc1": 0, "fc2": 3, "the rest": 6}  # which colour and marker
    for layer, look in places.items():
        quiet = layer not in ("conv2", "fc1")
        means = [runs[layer].mean() for runs in shares.values()]
        ax.plot(means, range(4), ":" if quiet else "-", color=show.COLOURS[look], linewidth=1 if quiet else 2.5)
        for row, runs in enumerate(shares.values()):
            label = layer if row == 0 else None
            ax.plot(runs[layer], [row] * len(runs), "so^Dv.X"[look], color=show.COLOURS[look], alpha=0.7, label=label)
    ax.set_yticks(range(4), list(shares))
    ax.set(xlim=(-3, 103), ylim=(3.4, -0.4), xlabel="share of the whole network (%), a mark for each run")
    ax.grid(False, axis="y")
    timed = shares["time, one digit"]["fc1"]
    held = f"{shares['parameters, bytes']['fc1'].mean():.0f} % of the parameters"
    title = f"fc1: {held}, {timed.min():.0f} to {timed.max():.0f} % of the time of one digit"
    fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    fig.legend(loc="outside lower center", ncols=5, columnspacing=1.2)
    table = pd.DataFrame({scale: runs.mean() for scale, runs in shares.items()})
    show.figure(fig, alt=f"Shares in percent, means of {len(published)} runs. {show.in_words(table)}", table=table)
else:
    say("This page has no published runs yet.")

# %% [markdown]
# Three settings matter here: `epochs`, how often the network sees the training digits; `rounds`, in how many rounds two
# variants are timed against each other; and `controls`, how often a network is compared with itself. The full profile
# trains longer, on digits that are shifted at random, and times the same things in more rounds.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(train=1_000, epochs=1, shift=False, validation=500, test=500,
               calls=100, rounds=21, controls=3, control_rounds=21),
    quick=dict(train=55_000, epochs=2, shift=False, validation=5_000, test=10_000,
               calls=400, rounds=61, controls=40, control_rounds=31),
    full=dict(train=55_000, epochs=10, shift=True, validation=5_000, test=10_000,
              calls=400, rounds=101, controls=40, control_rounds=61),
)  # fmt: skip
show.style()
training.seed_everything(SEED)
mnist = data.mnist()
digits = mnist.validation.take(S.validation)

# %% [markdown]
# The idea of this page is that a weight's place says nothing about its work. Both layers below have weights. The one on the
# left has few and uses them all over the picture. The one on the right has one for each pair of an input and an output, and
# uses it once.

# %% tags=["plumbing"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), width_ratios=(1.15, 1))
for i in range(7):
    for j in range(7):
        left.add_patch(plt.Rectangle((i, j), 1, 1, facecolor="white", edgecolor="#999999"))
        places = [(0, 4), (2, 2), (4, 0)]
        reader = (10.2, 3.5)
for (x, y), colour in zip(places, (show.COLOURS[0], show.COLOURS[1], show.COLOURS[2]), strict=True):
    left.add_patch(plt.Rectangle((x, y), 3, 3, facecolor=colour, alpha=0.35, edgecolor=colour, lw=2))
    left.add_patch(plt.Rectangle((x + 1, y + 1), 1, 1, facecolor="black"))
    left.annotate("", (x + 2, y + 1.5), (9.1, 3.5), arrowprops=dict(arrowstyle="->", lw=1.3))
for i in range(3):
    for j in range(3):
        face = "black" if i == j == 1 else "#DDDDDD"
        left.add_patch(plt.Rectangle((9.2 + i, 2 + j), 1, 1, facecolor=face, edgecolor="#666666"))
left.text(10.7, 1.2, "9 weights", ha="center", va="center", fontsize=11)
left.text(3.5, -0.8, "the filter, in 3 of its 25 places", ha="center", va="center", fontsize=11)
left.set_title("Convolution: each weight, 25 times", fontsize=12)
left.set(xlim=(-0.3, 12.6), ylim=(-1.4, 7.4), aspect="equal", anchor="N")
for i in range(7):
    for j in range(4):
        used = (i, j) == (2, 2)
        colour, width = ("black", 3) if used else ("#BBBBBB", 0.9)
        right.plot([0, 3], [i, 1 + 4 * j / 3], color=colour, lw=width, zorder=2 if used else 1)
right.scatter([0] * 7, range(7), s=90, color=show.COLOURS[0], zorder=3)
right.scatter([3] * 4, [1 + 4 * j / 3 for j in range(4)], s=90, color=show.COLOURS[2], zorder=3)
right.text(0, -1.1, "7 inputs", ha="center", va="center", fontsize=11)
right.text(3, -1.1, "4 outputs", ha="center", va="center", fontsize=11)
right.text(1.5, 6.5, "28 weights", ha="center", va="center", fontsize=11)
right.set_title("Linear: each weight, once", fontsize=12)
right.set(xlim=(-0.8, 3.8), ylim=(-1.7, 7.1))
for ax in (left, right):
    ax.axis("off")
alt = (
    "Left: a filter of nine weights lies on a picture of 7 by 7 pixels in three of its 25 places; arrows lead from its middle "
    "weight to all three. Right: seven inputs, each joined to four outputs by lines, 28 in all; one line, one weight, is bold."
)
show.figure(fig, alt=alt)

# %% [markdown]
# ## 1. A network of your own
#
# LeNet-5 in the form that the pruning literature uses: two convolutions with 20 and 50 filters of 5 × 5, each followed by
# ReLU and 2 × 2 max-pooling, then two linear layers with 500 and 10 outputs.

# %%
# NBVAL_CHECK_OUTPUT
print(nets.lenet5())

# %% [markdown]
# Train it. The validation digits are not among those that it trains on, and the test digits wait for the end. (In the full
# profile each digit is moved by up to two pixels, in a new way each time.)

# %%
fitted = training.fit(
    nets.lenet5(),
    mnist.train.take(S.train),
    epochs=S.epochs,
    lr=2e-3,
    optimizer="adam",
    augment=training.random_shift if S.shift else None,
    validation=digits,
    seed=SEED,
    checkpoint=run.scratch("lenet5.pt") if PROFILE == "full" else None,
)
net = fitted.model

# %% tags=["plumbing"]
run.record("training", [{k: v for k, v in row.items() if k != "seconds"} for row in fitted.history])
accuracy = fitted.history[-1]["validation"]
say(
    f"Epochs: {S.epochs}, with {S.train:,} digits each. Of {len(digits):,} digits that it has never seen it now gets {accuracy:.2%} "
    f"right, all but {round((1 - accuracy) * len(digits))}. So what is it made of?"
)

# %% [markdown]
# ## 2. Parameters
#
# A **linear layer** with $I$ inputs and $O$ outputs holds one weight for each pair of them, and one bias for each output:
#
# $$P_\text{linear} = O \cdot I + O$$
#
# A **convolution** with $C_\text{in}$ input channels and $C_\text{out}$ filters of $K \times K$ pixels: each filter holds
# $K^2$ weights for every input channel, and one bias:
#
# $$P_\text{conv} = C_\text{out} \cdot C_\text{in} \cdot K^2 + C_\text{out}$$
#
# The size of the image is in neither formula. A filter is as large for a stamp as for a poster. **ReLU** and **pooling** have
# no parameters at all.
#
# **Predict.** Four layers: `conv1`, `conv2`, `fc1`, `fc2`. Which one holds the most parameters, and which share of them all?
# (`fc1` reads 50 channels of 4 × 4 pixels: 800 inputs.)


# %%
def count_parameters(layer):
    """Return the number of parameters of a linear layer or a convolution with square filters, by formula."""
    if isinstance(layer, nn.Linear):
        return layer.out_features * layer.in_features + layer.out_features
    kernel = layer.kernel_size[0]
    return layer.out_channels * layer.in_channels * kernel**2 + layer.out_channels


# %%
# NBVAL_CHECK_OUTPUT
table = pd.DataFrame({"parameters": {name: count_parameters(layer) for name, layer in net.named_children()}})
total = table["parameters"].sum()
table["share"] = (table["parameters"] / total).map("{:.1%}".format)
table

# %% [markdown]
# One layer is nearly the whole network. A linear layer connects everything with everything, so its size is a *product*.
#
# Formulas are easily wrong by a bias. PyTorch knows the tensors themselves, so ask it:

# %%
for name, layer in net.named_children():
    assert count_parameters(layer) == sum(tensor.numel() for tensor in layer.parameters()), name
assert total == measure.count_parameters(net)

# %% tags=["plumbing"]
run.claim("parameters", "Parameters by formula, distance from 431,080", abs(total - 431_080), at_most=0)

# %% [markdown]
# ### Exercise 01.1 — warm-up
#
# One line: how many bytes do the parameters of a layer take in memory, as float32 (four bytes each)? Take the number from the
# tensors, as above, so that it is right for any layer: `layer.parameters()` gives them, `numel()` counts the entries of one.


# %%
def bytes_in_memory(layer):
    """Return how many bytes the parameters of `layer` take as float32."""
    ### BEGIN SOLUTION
    return 4 * sum(tensor.numel() for tensor in layer.parameters())
    ### END SOLUTION


# %%
exercises.check("01.1", bytes_in_memory)

# %% [markdown]
# ## 3. Operations
#
# The unit is the **MAC**, multiply-accumulate: multiply two numbers and add the product to a running sum. (Papers also count
# FLOPs: one MAC is two of them. Many papers write one and mean the other.)
#
# A linear layer uses each weight once, so $M_\text{linear} = O \cdot I$.
#
# A convolution uses each filter wherever it fits. On an image of $H \times H$ pixels, without padding, it fits in
# $H_\text{out} = H - K + 1$ places in each direction, and in each place it takes one MAC for each of its weights:
#
# $$M_\text{conv} = H_\text{out}^2 \cdot C_\text{out} \cdot C_\text{in} \cdot K^2$$
#
# Do not believe it yet. Below is a convolution with nothing but loops. It computes the layer, and it counts.


# %%
def slow_convolution(image, layer):
    """Convolve one image (channels, height, width) in loops; return the result and the MACs it took."""
    weight, bias, pixels = layer.weight.tolist(), layer.bias.tolist(), image.tolist()
    channels, kernel, macs = range(layer.in_channels), range(layer.kernel_size[0]), 0
    side = image.shape[-1] - len(kernel) + 1
    result = torch.empty(layer.out_channels, side, side)
    for f, y, x in itertools.product(range(layer.out_channels), range(side), range(side)):
        total = bias[f]
        for c, i, j in itertools.product(channels, kernel, kernel):
            total += weight[f][c][i][j] * pixels[c][y + i][x + j]
            macs += 1
        result[f, y, x] = total
    return result, macs


# %%
# NBVAL_CHECK_OUTPUT
digit = digits.inputs[0]
with torch.inference_mode():
    result, counted = slow_convolution(digit, net.conv1)
    same = torch.allclose(result, net.conv1(digit), atol=1e-4)
print(f"conv1 in loops: {counted:,} MACs; the same result as PyTorch's: {same}")
print(f"by formula:     {24**2 * 20 * 1 * 5**2:,}")

# %% [markdown]
# Now all layers. `conv1` sees 28 × 28 pixels; pooling halves what it leaves, so `conv2` sees 12 × 12.
#
# **Predict.** Which layer does the most work, and which share of it?


# %%
def count_macs(layer, size):
    """Return the MACs of one layer for one image; `size` is the side of the image that a convolution sees."""
    if isinstance(layer, nn.Linear):
        return layer.out_features * layer.in_features
    kernel = layer.kernel_size[0]
    return (size - kernel + 1) ** 2 * layer.out_channels * layer.in_channels * kernel**2


# %%
# NBVAL_CHECK_OUTPUT
sizes = {"conv1": 28, "conv2": 12, "fc1": None, "fc2": None}
table["MACs"] = {name: count_macs(layer, sizes[name]) for name, layer in net.named_children()}
weights = {name: layer.weight.numel() for name, layer in net.named_children()}
table["MACs per weight"] = table["MACs"] // pd.Series(weights)
table

# %% [markdown]
# Three counters must agree: the formula, `helpers.measure`, and the one that PyTorch brings, which watches a real forward
# pass and counts FLOPs.

# %%
images = digits.inputs[:2]
with FlopCounterMode(display=False) as counter, torch.inference_mode():
    net(images)
by_torch = counter.get_total_flops() // 2 // len(images)
by_helper = measure.layer_table(net, images).set_index("layer")
assert (by_helper["macs"] == table["MACs"]).all() and (by_helper["parameters"] == table["parameters"]).all()
counts = [table["MACs"].sum(), by_helper["macs"].sum(), measure.count_macs(net, images), by_torch]
worst = max(abs(int(count) - 2_293_000) for count in counts)

# %% tags=["plumbing"]
run.claim("macs", "MACs by formula, helper and PyTorch's counter, largest distance from 2,293,000", worst, at_most=0)
run.record("layers", by_helper.drop(columns="output").reset_index())
shares = 100 * by_helper[["share_parameters", "share_macs"]]
shares.columns = ["% of the parameters", "% of the MACs"]
title = "fc1 holds the parameters, conv2 does the work"
fig = show.bars(shares, title=title, xlabel="share of the whole network (%)", label="{:.1f} %")
show.figure(fig, alt=f"Bars for four layers. {show.in_words(shares)}", table=shares)
run.claim("fc1-parameters", "fc1's share of the parameters", by_helper.loc["fc1", "share_parameters"], at_least=0.9)
run.claim("conv2-macs", "conv2's share of the MACs", by_helper.loc["conv2", "share_macs"], at_least=0.65)
reuse = table["MACs per weight"]
say(
    f"The last column of the table explains it. A weight of `conv1` is used {reuse['conv1']} times for each image, one of `conv2` "
    f"{reuse['conv2']} times, one of `fc1` just {reuse['fc1']}. So the file is decided in `fc1` and the work in the convolutions. "
    "Removing 90 % of the parameters and removing 90 % of the work are two different jobs."
)

# %% [markdown]
# ### Exercise 01.2 — change the code
#
# Real networks pad their images, skip places and split their channels. Extend the formula for a convolution with square
# filters: `padding` zeros are added on each side, the filter moves by `stride` pixels at a time, and with `groups` each filter
# reads only its share of the input channels.


# %%
def convolution_macs(in_channels, out_channels, kernel, size, stride=1, padding=0, groups=1):
    """Return the MACs of a convolution for one square image of side `size`."""
    ### BEGIN SOLUTION
    places = (size + 2 * padding - kernel) // stride + 1
    return places**2 * out_channels * (in_channels // groups) * kernel**2
    ### END SOLUTION


# %%
exercises.check("01.2", convolution_macs)

# %% [markdown]
# ## 4. Bytes
#
# A float32 number takes four bytes, so the parameters should fill $4P$ bytes. A file also has to say which numbers belong
# where: names, shapes, types, a checksum.
#
# **Predict**: how many bytes is that, beside the parameters?

# %%
packed = files.write_dense(net, run.scratch("lenet5.pack"))
extra = packed.bytes - 4 * total

# %% tags=["plumbing"]
say(f"The file has {packed.bytes:,} bytes: four for each of the {total:,} parameters, and {extra} for everything else.")
run.claim("file-size", "Bytes of the file beyond four for each parameter", extra, at_most=200)

# %% [markdown]
# A size counts only if the file holds the network. So read it back into a LeNet-5 that was never trained, and compare the
# logits, bit for bit:

# %%
again = files.load_into(nets.lenet5(), packed.path)
logits, from_file = (training.predict(model, digits.inputs) for model in (net, again))
worst = (logits - from_file).abs().max()

# %% tags=["plumbing"]
run.claim("file-logits", "Largest difference between the file's logits and the network's", worst, at_most=0)

# %% [markdown]
# While the network runs, memory also holds the **activations**, the outputs of the layers. The parameters are there once,
# the activations once for each image of the batch. At four bytes a number:

# %%
outputs = by_helper["output"].map(lambda shape: int(np.prod(shape)))
memory = pd.DataFrame({"parameters (bytes)": by_helper["bytes"], "activations per image (bytes)": 4 * outputs})
memory

# %% tags=["plumbing"]
even = memory["parameters (bytes)"].sum() / memory["activations per image (bytes)"].sum()
say(
    f"From a batch of {np.ceil(even):.0f} images on, the outputs of the four layers take more memory than the parameters. "
    "Smaller weights help the file and the single image; a large batch is limited by something else."
)

# %% [markdown]
# ### Exercise 01.3 — predict
#
# Halve `fc1`: 250 outputs instead of 500. How many bytes will the file have? Commit to a number, or compute it, before you
# run the cell that measures. You may be 3 % off.


# %%
def bytes_with_half_of_fc1():
    """Return your prediction: the bytes of the file if fc1 has 250 outputs."""
    ### BEGIN SOLUTION
    parameters = 20 * (1 * 25 + 1) + 50 * (20 * 25 + 1) + 250 * (800 + 1) + 10 * (250 + 1)
    return 4 * parameters
    ### END SOLUTION


# %%
halved = nets.lenet5()
halved.fc1, halved.fc2 = nn.Linear(800, 250), nn.Linear(250, 10)
measured = files.write_dense(halved, run.scratch("halved.pack")).bytes
exercises.check("01.3", bytes_with_half_of_fc1, measured=measured)

# %% [markdown]
# ## 5. Milliseconds, or why one `time.time()` lies
#
# Parameters, MACs and bytes are facts. A time is a sample. From here on PyTorch uses one thread, so that we time the network
# and not the division of labour, and `inference_mode`, so that it does not take notes for a training that never comes.
#
# **Predict.** One digit, the same network, called hundreds of times in a row. How much longer does the very first call take
# than a typical one? And the slowest, once it is warm?

# %%
threads = torch.get_num_threads()
torch.set_num_threads(1)
ONE, TWO = digits.inputs[:1], digits.inputs[:2]


def seconds(function):
    """Return how long one call takes."""
    start = time.perf_counter()  # a clock with nanoseconds that never jumps; time.time() may be set back
    function()
    return time.perf_counter() - start


with torch.inference_mode():
    calls = 1e3 * np.array([seconds(lambda: net(ONE)) for _ in range(S.calls)])


# %% tags=["plumbing"]
def log_ticks(ax):
    """Write a logarithmic axis in plain numbers: 1, 1.5, 2, 3 and so on, times ten to any power."""
    ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(ticker.NullFormatter())


typical = np.median(calls)
warm = calls[min(20, len(calls) // 2) :]
summary = {"first call": calls[0], "median": typical, "slowest when warm": warm.max(), "fastest": calls.min()}
summary = pd.DataFrame({"milliseconds": summary})
fig, ax = plt.subplots()
ax.plot(range(2, len(calls) + 1), calls[1:], ".", color=show.COLOURS[0], label="later calls")
ax.plot([1], calls[:1], "D", color=show.COLOURS[5], markersize=9, label="first call")
ax.axhline(typical, color="black", linestyle="--", label="median")
ax.set(title="The same work never takes the same time", xlabel="call", ylabel="milliseconds", yscale="log")
log_ticks(ax)
fig.legend(loc="outside lower center", ncols=3)
alt = f"{len(calls)} calls in a row, the first one marked. {show.in_words(summary, '{:.3g}')}"
show.figure(fig, alt=alt, table=summary)
run.record("calls_ms", summary["milliseconds"].to_dict(), timing=True)
slow = (warm > 1.5 * typical).mean()
say(
    f"The first call took **{calls[0] / typical:.1f} times** as long as the median, the slowest of those after the "
    f"first {len(calls) - len(warm)} {warm.max() / typical:.1f} times. {slow:.1%} of these took more than one and a half times the median."
)

# %% [markdown]
# Lie number one are the **first calls**: memory is not allocated yet, code is not loaded, the library has not chosen its
# kernels. Warm up, with more than one call, before you measure. Lie number two is the **outlier**: the operating system gave the core to somebody
# else. A mean believes it, a median does not.
#
# ### The lie that medians believe
#
# Number three is **drift**. The processor gets warm and slows down, or another program starts. No real machine drifts on
# command, so here is a simulated one: a hundred calls of A and a hundred of B, which both take exactly one millisecond on an
# idle machine. The machine becomes slower by a third while we look, with some noise and an outlier now and then.

# %%
random = np.random.default_rng(0)
slowdown = np.linspace(1, 1.33, 200)
delays = np.where(random.random(200) < 0.05, 1.2, 1)
clock = 1.0 * slowdown * delays * random.lognormal(0, 0.02, 200)  # what it shows for 200 calls in a row

# %% [markdown]
# The clock's two hundred readings are given. All that you choose is which of them belong to A and which to B: first all of A,
# then all of B, or in turns.
#
# **Predict**: which of the two is faster, by how much, in either design?

# %%
designs = {"one after the other": (clock[:100], clock[100:]), "in turns": (clock[::2], clock[1::2])}
ratios = {name: np.median(a) / np.median(b) for name, (a, b) in designs.items()}

# %% tags=["plumbing"]
places = {"one after the other": (range(100), range(100, 200)), "in turns": (range(0, 200, 2), range(1, 200, 2))}
fig, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True)
for ax, (name, samples) in zip(axes, designs.items(), strict=True):
    for label, place, sample, marker, colour in zip("AB", places[name], samples, "os", show.COLOURS, strict=False):
        ax.plot(place, sample, marker, color=colour, markersize=3, label=label)
        ax.axhline(np.median(sample), color=colour, linestyle="-" if label == "A" else "--", label=f"{label}'s median")
    ax.set_title(name, fontsize=12, fontweight="normal")
    ax.set(xlabel="call", ylim=(0.9, 1.7))
axes[0].set_ylabel("milliseconds")
axes[0].legend(loc="upper left", markerscale=2, ncols=2, fontsize=10)
fig.suptitle("Taking turns cancels the drift", x=0.01, ha="left", fontsize=14, fontweight="bold")
table = pd.DataFrame({name: [np.median(a), np.median(b)] for name, (a, b) in designs.items()}, index=["A", "B"])
alt = f"Two panels with rising milliseconds and a line at each median. {show.in_words(table, '{:.2f} ms')}"
show.figure(fig, alt=alt, table=table)
error = {name: abs(ratio - 1) for name, ratio in ratios.items()}
say(
    f"One after the other, B seems {1 / ratios['one after the other'] - 1:.0%} slower than A, with a hundred samples each and "
    f"robust medians. In turns, the difference is {error['in turns']:.1%}."
)
run.claim("drift-fools", "Simulated drift: error one after the other", error["one after the other"], at_least=0.1)
run.claim("turns-do-not", "Simulated drift: error in turns", error["in turns"], at_most=0.02)

# %% [markdown]
# More samples would not have helped, and neither would a better clock. The *design* was wrong.
#
# ### A control: time the same thing twice
#
# How small a difference can be real? There is a simple way to find out: let the baseline take part twice, under two names.
# Whatever is found between the two is noise, and nothing smaller than that counts. Scientists call it a null control, web
# companies an **A/A test**. Here is the whole machine, with warm-up, turns in random order, and the control:


# %%
def take_turns(variants, rounds):
    """Time all variants in turns, the first one twice; return seconds by name, one entry per round."""
    first = next(iter(variants))
    functions = variants | {f"{first} (A/A)": variants[first]}
    for function in functions.values():
        function()  # warm-up
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name in random.permutation(list(functions)):
            times[name].append(seconds(functions[name]))
    return {name: np.array(values) for name, values in times.items()}


def ratio_and_interval(base, other):
    """Return the median of the rounds' ratios (above 1: `other` is faster) and its 99 % bootstrap interval."""
    ratios = base / other
    resampled = random.choice(ratios, size=(1000, len(ratios)))  # 1000 times: as many rounds, drawn with replacement
    return np.median(ratios), *np.quantile(np.median(resampled, axis=1), [0.005, 0.995])


# %% [markdown]
# Two decisions hide in `ratio_and_interval`. It divides **within each round**, so a round in which the machine was slow
# spoils nothing: both numbers are slow. And it does not trust its own ratio: it draws the rounds again and again, *as if the
# experiment had been repeated*, and reports where 99 % of the repetitions fall (the bootstrap, Efron 1979).
#
# **Predict.** One digit against a batch of two digits: twice the MACs. How many times longer does it take?

# %%
variants = {"one digit": lambda: net(ONE), "two digits": lambda: net(TWO)}
with torch.inference_mode():
    times = take_turns(variants, S.rounds)
base = times["one digit"]
rows = {name: ratio_and_interval(base, times[name]) for name in ["one digit (A/A)", "two digits"]}
pd.DataFrame(rows, index=["ratio", "from", "to"]).T.map("{:.2f}".format)

# %% [markdown]
# The first row compares the network with itself. Its interval says what this machine can tell apart at this moment. Only if
# the interval of the second row lies wholly outside it, has something been measured.
#
# `helpers.measure` does the same with refinements. Very short calls are repeated until a sample fills a millisecond. The
# second entry of the baseline is a *copy* of the network, so that the control sees what another place in memory changes.
# And the interval is another one. With few rounds, and with disturbances that last for several of them, the bootstrap
# promises 99 % and keeps less: the course's tests count how often. The helper takes its ends from the sorted ratios
# themselves (two of them enclose the median with a probability that follows from counting, whatever the noise looks like),
# and moves them apart if neighbouring rounds resemble each other. A *note* in the table says when they did, or when there
# were too few rounds to know. Below, its ratio and ours, from the same samples, must be equal.

# %%
with torch.inference_mode():
    copy = modules.copied(net)
    timings = measure.time_interleaved(variants, rounds=S.rounds, threads=1, control=lambda: copy(ONE))
verdicts = measure.compare(timings)
for name in variants:
    assert np.isclose(ratio_and_interval(timings["one digit"], timings[name])[0], verdicts[name].ratio)
measure.verdict_table(verdicts)

# %% tags=["plumbing"]
both = verdicts["two digits"]
say(f"Twice the MACs: {1 / both.ratio:.2f} times the time. The verdict of the comparison: **{both.verdict}**.")

# %% [markdown]
# If all of a call were arithmetic, twice the MACs would take twice the time. What is missing from 2 is the price of the call
# itself: Python, choosing a kernel, reaching for memory. It is paid once, however many digits come along.
#
# ### A against A, again and again
#
# How often does each method cry wolf? Take two names for one and the same call. Compare them first as most people do, with
# one stopwatch reading each, and then with `helpers.measure`. Repeat the whole comparison many times.

# %%
twins = {"A": lambda: net(ONE), "B": lambda: net(ONE)}
single, trusted = [], []
with torch.inference_mode():
    for _ in range(S.controls):
        single.append(seconds(twins["A"]) / seconds(twins["B"]))
        trusted.append(measure.compare(measure.time_interleaved(twins, rounds=S.control_rounds))["B"])
alarms = sum(verdict.verdict != "no measurable difference" for verdict in trusted)

# %% tags=["plumbing"]
comparisons = pd.DataFrame({"one reading": single, "interleaved": [verdict.ratio for verdict in trusted]})
comparisons[["from", "to"]] = [verdict.interval for verdict in trusted]
run.record("a_against_a", {"comparisons": S.controls, "alarms": alarms}, timing=True)
run.record("a_against_a_ratios", comparisons, timing=True)
off = np.exp(np.log(comparisons[["one reading", "interleaved"]]).abs().max()) - 1
fig, ax = plt.subplots(figsize=(8, 4.2))
number = np.arange(1, S.controls + 1)
ax.plot(number, comparisons["one reading"], "s", color=show.COLOURS[5], label="one stopwatch reading each")
ax.plot(number, comparisons["interleaved"], "o", color=show.COLOURS[0], ms=5, label="interleaved, median ratio")
ax.vlines(number, comparisons["from"], comparisons["to"], color="#999999", lw=4, zorder=1, label="its 99 % interval")
title = f"The same network: off by {off['one reading']:.0%} in single readings, {off['interleaved']:.0%} in turns"
ax.set(title=title, xlabel="comparison", ylabel="time of A / time of B")
ax.set(yscale="log")
log_ticks(ax)
ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
fig.legend(loc="outside lower center", ncols=3, fontsize=10)
alt = (
    f"{S.controls} comparisons of a network with itself. Single readings are off by up to {off['one reading']:.0%}, "
    f"interleaved medians by up to {off['interleaved']:.0%}. Grey bars show the 99 % interval of each interleaved ratio."
)
show.figure(fig, alt=alt, table=comparisons)
first_loses = sum(ratio > 1 for ratio in single)
say(
    f"Of {S.controls} comparisons of the network with itself, single readings were off by up to **{off['one reading']:.0%}**, "
    f"the interleaved ratio by up to **{off['interleaved']:.0%}**, and `helpers.measure` raised **{alarms}** false alarms. "
    "(This is recorded, not claimed: your machine may be having a bad day.)"
)
say(
    f"With one reading each, A looked slower in {first_loses} of {S.controls} comparisons. A always went first. If that is far "
    "from half of them, suspect the order: A fetches the weights and wakes the library, and B profits. That is why turns are drawn "
    "at random."
)

# %% [markdown]
# ### Exercise 01.4 — change the code
#
# Write the statistic yourself. You get two arrays of seconds, one entry per round, from a machine that drifts in steps and
# delays a call now and then. Return how many times faster `other` is than `base`.


# %%
def times_faster(base, other):
    """Return the ratio of base to other (above 1: other is faster), whatever drift and outliers do."""
    ### BEGIN SOLUTION
    return float(np.median(base / other))
    ### END SOLUTION


# %%
exercises.check("01.4", times_faster)

# %% [markdown]
# ## 6. Milliseconds, layer by layer
#
# Where does the time go inside the network? PyTorch lets you hang **hooks** on a layer, functions that it calls before and
# after. Let them read the clock.


# %%
def time_layers(model, images, rounds):
    """Return seconds, one row per call: of each layer, and of everything between them."""
    model, marks, rows = deepcopy(model), {}, []
    for name, layer in model.named_children():
        layer.register_forward_pre_hook(lambda *_, name=name: marks.update({name: -time.perf_counter()}))
        layer.register_forward_hook(lambda *_, name=name: marks.update({name: marks[name] + time.perf_counter()}))
    for _ in range(rounds):
        whole = seconds(lambda: model(images))
        rows.append(marks | {"the rest": whole - sum(marks.values())})
    return pd.DataFrame(rows[rounds // 5 :])  # the first fifth is warm-up


# %% [markdown]
# **Predict.** `conv2` does most of the MACs. Does it take most of the time, for one digit? And for a batch of 64?

# %%
with torch.inference_mode():
    layers = {batch: time_layers(net, digits.inputs[:batch], S.calls // 4) for batch in (1, 64)}
where = pd.DataFrame({"% of the MACs": 100 * by_helper["share_macs"]})
for batch, samples in layers.items():
    where = where.reindex(samples.columns, fill_value=0.0)
    where[f"% of the time, batch {batch}"] = 100 * samples.median() / samples.median().sum()

# %% tags=["plumbing"]
run.record("time_by_layer", where.reset_index(names="layer"), timing=True)
title = "Time follows the MACs only roughly"
fig = show.bars(where, title=title, xlabel="share of the whole network (%)", label="{:.0f} %")
show.figure(fig, alt=f"Bars for four layers and the rest. {show.in_words(where)}", table=where)
one, many = (where[f"% of the time, batch {batch}"] for batch in (1, 64))
rate = {b: by_helper["macs"].sum() * b / samples.sum(axis=1).median() / 1e9 for b, samples in layers.items()}
say(
    f"`conv2` does {where.loc['conv2', '% of the MACs']:.0f} % of the MACs and takes {one['conv2']:.0f} % of the time of one digit, "
    f"{many['conv2']:.0f} % of a batch. `fc1` has {where.loc['fc1', '% of the MACs']:.0f} % of the MACs and takes {one['fc1']:.0f} % "
    f"and {many['fc1']:.0f} %. ReLU, pooling and the calls themselves, which no MAC counter sees, take {one['the rest']:.0f} % and "
    f"{many['the rest']:.0f} %. In all, one digit at a time this core does {rate[1]:.1f} billion MACs a second, and {rate[64]:.1f} in batches."
)

# %% [markdown]
# In the published runs (the picture at the top) `fc1` looks unremarkable with one digit: its share of the time is near its
# share of the MACs. But a share hides how fast a layer works, because all shares must add up to the whole. So divide: how many
# nanoseconds does one MAC take, layer by layer?
#
# **Predict.** A MAC of `fc1` and one of `conv2` are the same arithmetic. Which takes longer, and does the batch change that?

# %%
per_mac = {
    f"batch {batch}": 1e9 * samples.median()[by_helper.index] / (batch * by_helper["macs"])
    for batch, samples in layers.items()
}
per_mac = pd.DataFrame(per_mac).rename_axis("layer")
per_mac.round(3)

# %% tags=["plumbing"]
run.record("nanoseconds_per_mac", per_mac.reset_index(), timing=True)
fig, ax = plt.subplots(figsize=(8, 3))
for column, marker, colour in zip(per_mac, "os", show.COLOURS, strict=False):
    ax.plot(per_mac[column], per_mac.index, marker, color=colour, markersize=9, label=column)
ax.hlines(per_mac.index, per_mac.min(axis=1), per_mac.max(axis=1), color="#999999", zorder=0)
ax.margins(y=0.15)
ax.invert_yaxis()
dear, cheap = per_mac["batch 1"].idxmax(), per_mac["batch 1"].idxmin()
times_as_long = per_mac.loc[dear, "batch 1"] / per_mac.loc[cheap, "batch 1"]
title = f"One digit: a MAC of {dear} takes {times_as_long:.0f} times as long as one of {cheap}"
ax.set(title=title, xlabel="nanoseconds for one MAC (log scale)", xscale="log")
ax.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
ax.xaxis.set_major_formatter("{x:g}")
ax.xaxis.set_minor_formatter(ticker.NullFormatter())
fig.legend(loc="outside lower center", ncols=2)
alt = f"Points for four layers on a logarithmic axis of nanoseconds for one MAC. {show.in_words(per_mac, '{:.3f}')}"
show.figure(fig, alt=alt, table=per_mac)


# %% tags=["plumbing"]
def fc1_against_conv2(rows, batch):
    """Return how many times as long a MAC of fc1 takes as one of conv2, from their shares of MACs and time."""
    cost = {row["layer"]: row[f"% of the time, batch {batch}"] / (row["% of the MACs"] or 1) for row in rows}
    return cost["fc1"] / cost["conv2"]


own = {batch: fc1_against_conv2(where.reset_index(names="layer").to_dict("records"), batch) for batch in (1, 64)}
said = []
for batch in (1, 64):
    found = [fc1_against_conv2(result.timings["time_by_layer"], batch) for result in published]
    said.append(" to ".join(dict.fromkeys(f"{end:.1f}" for end in (min(found), max(found)))) if found else "?")
machines = ", ".join(dict.fromkeys(result.provenance["machine"]["cpu"] for result in published))
say(
    f"On this machine a MAC of `fc1` takes **{own[1]:.1f} times** as long as one of `conv2` with one digit, and "
    f"**{own[64]:.1f} times** in a batch of 64. In the {len(published)} published runs ({machines}) it took {said[0]} times "
    f"as long with one digit, and {said[1]} times in a batch."
)

# %% [markdown]
# Two things make a MAC expensive. Each call has a price of its own, however small the layer: `fc2` pays it for very few MACs. And
# a weight has to be *fetched* before it is used. For one digit `fc1` fetches all of its weights and uses each of them once,
# while a filter of `conv2` is fetched once and used in many places. The digits of a batch share the fetching, so there
# `fc1` may catch up. Whether it does is a matter of the machine, of its caches above all, and the published runs come from
# one kind of machine: if your line says otherwise, believe your own clock. MACs tell how much arithmetic there is, not how
# long the rest takes (the roofline model, Williams et al. 2009).
#
# ## 7. The same weights in another runtime
#
# The network does not have to run in PyTorch. **ONNX** is a file format for networks as graphs of operators; **ONNX Runtime**
# reads it, fuses what it can, and runs it without Python between the layers. Same weights, same arithmetic. `export_onnx`
# compares the logits before it lets the file appear; compare them once more, on all validation digits:

# %%
path = runtime.export_onnx(net, TWO, run.scratch("lenet5.onnx"))
session = runtime.session(path, threads=1)
onnx_logits = torch.from_numpy(runtime.run(session, digits.inputs.numpy()))
difference = (onnx_logits - logits).abs().max() / logits.abs().max()
changed = int((onnx_logits.argmax(1) != logits.argmax(1)).sum())

# %% tags=["plumbing"]
run.claim("onnx-logits", "ONNX Runtime's logits, largest difference over largest logit", difference, at_most=1e-4)
run.claim("onnx-answers", "Validation digits that ONNX Runtime answers differently", changed, at_most=2)

# %% [markdown]
# Not bit for bit this time: sums are taken in another order, and rounding follows.
#
# **Predict**: how many times faster is ONNX Runtime with one digit? And with 64?

# %%
runtimes = {}
for batch in (1, 64):
    inputs = digits.inputs[:batch]
    array = inputs.numpy()
    variants = {
        "eager PyTorch": lambda inputs=inputs: net(inputs),
        "ONNX Runtime": lambda array=array: runtime.run(session, array),
    }
    with torch.inference_mode():
        again = partial(modules.copied(net), inputs)
        timings = measure.time_interleaved(variants, rounds=S.rounds, threads=1, control=again)
        runtimes[batch] = measure.compare(timings)
pd.concat({f"batch {batch}": measure.verdict_table(verdicts) for batch, verdicts in runtimes.items()})

# %% tags=["plumbing"]
fast = {batch: verdicts["ONNX Runtime"] for batch, verdicts in runtimes.items()}


def in_published_runs(batch):
    """Say what the clock found in the published runs: ratios and verdicts."""
    found = [
        record
        for result in published
        for model in result.models
        for record in model.latency
        if (record["runtime"], record["batch"]) == ("onnxruntime", batch)
    ]
    if not found:
        return ""
    ratios, said = sorted(record["ratio"] for record in found), [record["verdict"] for record in found]
    verdicts = ", ".join(f"{said.count(each)} × *{each}*" for each in dict.fromkeys(said))
    return f" The published runs: {verdicts}, {ratios[0]:.2f} to {ratios[-1]:.2f} times."


lines = []
for batch, verdict in fast.items():
    low, high = verdict.interval
    lines.append(
        f"- Batch of {batch}: **{verdict.verdict}**. ONNX Runtime runs at {verdict.ratio:.2f} times the speed of eager PyTorch "
        f"(99 %: {low:.2f} to {high:.2f}), {verdict.median_ms / batch:.3f} ms for each digit.{in_published_runs(batch)}"
    )
say("\n".join(lines))
run.claim("onnx-batch-1", "Speed-up by ONNX Runtime, one digit", fast[1].ratio, at_least=1.3, timing=True,
          interval=fast[1].cleared)  # fmt: skip

# %% [markdown]
# No weight was removed or rounded. With one digit this runtime is far ahead, in batches it is not. The price of the calls is
# the first suspect (it is paid once for a batch), fused operators and other kernels are the next; this table cannot tell
# them apart.
#
# Remember this table when you read that some compression made a network twice as fast. *Compared with which runtime, at which
# batch size?* In this course a compressed network competes with the dense one in the same runtime, and the dense one in a
# better runtime is always there as the cheap alternative.

# %% tags=["plumbing"]
torch.set_num_threads(threads)

# %% [markdown]
# ### Exercise 01.5 — open
#
# No check, and no single right answer. Pick a suspect of your own: two threads instead of one (`threads=2`), images laid out
# channels last (`net.to(memory_format=torch.channels_last)`), or a batch of 8. Write down a prediction. Then let
# `measure.time_interleaved` compare, with a control, and report as you would like others to report: the ratio, its interval,
# the verdict, the runtime, the batch and the threads. What would a single stopwatch reading have told you?
#
# ## What you measured
#
# Last of all, and once, the test digits.

# %%
test = run.test("lenet5", net, mnist.test.take(S.test))

# %% tags=["plumbing"]
run.claim("test-accuracy", "Test accuracy", test.accuracy, at_least=0.987)
if PROFILE == "full":
    run.claim("test-accuracy-full", "Test accuracy, mean of the seeds", test.accuracy, at_least=0.993, over_seeds=True)

# %% tags=["plumbing"]
records = [
    record
    for batch, verdicts in runtimes.items()
    for name, engine in {"eager PyTorch": "eager", "ONNX Runtime": "onnxruntime"}.items()
    for record in measure.latency_records({name: verdicts[name]}, runtime=engine, batch=batch)
]
run.model(
    "lenet5-measured",
    task="mnist",
    method="none (dense, trained in 01)",
    accuracy=test.accuracy,
    weights=measure.count_weights(net),
    nonzero=measure.count_nonzero(net),
    macs=measure.count_macs(net, ONE),
    file=packed.path,
    latency=records,
)
say(
    f"- **Accuracy**: {test.accuracy:.2%} of {test.count:,} test digits.\n"
    f"- **Parameters**: {total:,}, {by_helper.loc['fc1', 'share_parameters']:.0%} of them in `fc1`.\n"
    f"- **MACs**: {by_helper['macs'].sum():,}, {by_helper.loc['conv2', 'share_macs']:.0%} of them in `conv2`.\n"
    f"- **Bytes**: {packed.bytes:,}, read back with the same logits.\n"
    f"- **Milliseconds**: {runtimes[1]['eager PyTorch'].median_ms:.3f} for one digit in eager PyTorch; ONNX Runtime: "
    f"{fast[1].verdict} with one digit, {fast[64].verdict} with 64."
)
run.finish()

# %% [markdown]
# ## What to remember
#
# - Linear layers hold parameters, convolutions use theirs many times. Decide what you want to save before you decide what to
#   cut. <!-- claims: fc1-parameters, conv2-macs -->
# - A file is as large as its parameters, four bytes each, and a few bytes of names and shapes. It counts when it was read
#   back with the same logits. <!-- claims: file-size, file-logits -->
# - MACs count arithmetic and nothing else: no fetching, no pooling, no price of a call. <!-- by construction -->
# - When the machine drifts, more samples do not help. Taking turns does. <!-- claims: drift-fools, turns-do-not -->
# - Another runtime can be faster without touching a weight. So a speed-up is a ratio: name the runtime, the batch and the
#   threads, and what it is compared with. <!-- claims: onnx-batch-1, onnx-answers -->
#
# ## Read on
#
# - LeCun, Bottou, Bengio, Haffner, *Gradient-Based Learning Applied to Document Recognition*, 1998: the network
# - Sze, Chen, Yang, Emer, *Efficient Processing of Deep Neural Networks: A Tutorial and Survey*, 2017: what costs what
# - Williams, Waterman, Patterson, *Roofline: An Insightful Visual Performance Model for Multicore Architectures*, 2009
# - Mytkowicz, Diwan, Hauswirth, Sweeney, *Producing Wrong Data Without Doing Anything Obviously Wrong!*, 2009
# - Kalibera, Jones, *Rigorous Benchmarking in Reasonable Time*, 2013
#
# **Next**: [02 · Prune weights](02_prune_weights.ipynb). You know now where the weights are. How many of them does the network
# really need?
