# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [04_prune_filters]
# ---

# %% [markdown]
# # 04 · Prune filters: why is a masked network not faster, and what does real removal buy?
#
# A convolution does its work filter by filter. Take out half of the filters of two neighbours, and the second has a quarter
# of its work left. That sounds like a speed-up of four. Here you cut filters out of a network that reads photographs, first
# by hand, then through residual connections, and let the clock say how much of the promise arrives.
#
# **You will be able to**
# - show that a mask saves no multiplication, and find out what a clock sees of it all the same;
# - cut filters out of a network by hand, and name every tensor that has to be cut with them;
# - explain why residual connections couple channels, and let a dependency graph find out which;
# - bring a cut network back: refresh its BatchNorm, make a new optimizer, fine-tune;
# - read a speed-up critically: which share of the MACs saved was saved on the clock, in which runtime, at which batch size,
#   and what would a small network have done?
#
# **Before this**: notebook 01 (MACs, latency with its null control), notebook 02 (masks), notebook 03 (scores).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
from copy import deepcopy
from functools import cache, partial
from itertools import combinations

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import (
    checkpoints,
    data,
    distillation,
    evidence,
    exercises,
    files,
    measure,
    pruning,
    runtime,
    show,
    training,
)
from helpers.core import modules
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("04_prune_filters", profile=PROFILE, seed=SEED)
say(evidence.timetable("04_prune_filters"))

# %% [markdown]
# The answer first, from three published runs. In the *masked* network half of the filters are set to zero, so that nearly three
# quarters of its multiplications are of no use. From the others filters were really *removed*. **MACs** are the
# multiplications of one answer, each with its addition. The time is that of ONNX Runtime, which runs a network without Python,
# for a full batch of photographs. A mark is one run, a bar the mean.

# %% tags=["plumbing", "answer"]
show.style()
answers = {}
for result in evidence.published("04_prune_filters"):
    took = pd.DataFrame(result.timings["time_left"]).set_index("network")
    column = [name for name in took if name.startswith("ORT")][-1]
    masked_took = took[column].get("masked") or result.timings["masked_time_left"][column]
    macs, removed = result.measurements["macs_left"], next(name for name in took.index if name.startswith("filters"))
    for name, share in {
        "masked: MACs": macs.get("masked", macs["dense"]),
        "masked: time": masked_took,
        "removed: MACs": macs[removed],
        "removed: time": took.loc[removed, column],
        "removed, not rounded: time": took[column].get("not rounded"),
    }.items():
        answers.setdefault(name, []).extend([100 * share] if share else [])
answers = {name: runs for name, runs in answers.items() if runs}
if answers:
    mean = {name: sum(runs) / len(runs) for name, runs in answers.items()}
    fig = show.dots(answers, title="", xlabel="what is left of the dense network's (%)", label="{:.0f} %")
    fig.suptitle(
        f"A mask leaves {mean['masked: time']:.0f} % of the time, removal {mean['removed: time']:.0f} %",
        x=0.01, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    table = pd.DataFrame.from_dict(answers, orient="index").rename(columns=lambda number: f"run {number}")
    show.figure(
        fig, alt=f"Percent of the dense network's, means. {show.in_words(pd.DataFrame({'left': mean}))}", table=table
    )
    lost = [100 * value for value in evidence.claimed("04_prune_filters", "accuracy-kept")]
    say(
        f"The network with the filters removed was trained again after the cut, and ends {min(lost):.2f} to {max(lost):.2f} points of test "
        "accuracy below the dense one. The last row has nearly the same MACs, in numbers of channels that are not round: section 8."
    )
else:
    say("This page has no published runs yet.")

# %% [markdown]
# The folded cell below holds the settings of the three profiles. Three of them matter: `ratios` says how many times fewer MACs
# (multiplications, each with an addition) the pruned network has; `round_to`, to which multiple its channels are rounded; and
# `thin` names the competitor, a smaller dense network trained from scratch.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(net="cifar_small", thin="cifar_half", ratios=(2.0,), round_to=8, roundings=(8, 1), scored=128, probe=50,
               shares=[0.5], trial=128, train=256, epochs=1, lr=0.02, batch=64, moved=True, teacher=True, validation=100,
               tested=200, timings=20, batches=(1, 2)),
    quick=dict(net="cifar_small", thin="cifar_half", ratios=(2.0,), round_to=8, roundings=(8, 1), scored=500, probe=200,
               shares=[0.25, 0.5, 0.75], trial=2_000, train=22_000, epochs=2, lr=0.02, batch=128, moved=False, teacher=True,
               validation=1_000, tested=10_000, timings=20, batches=(1, 64)),
    full=dict(net="cifar_base", thin="cifar_small", ratios=(2.1,), round_to=16, roundings=(16, 8, 1), scored=2_000, probe=1_000,
              shares=[0.25, 0.5, 0.75], trial=10_000, train=45_000, epochs=5, lr=0.05, batch=128, moved=True, teacher=True,
              validation=3_000, tested=10_000, timings=25, batches=(1, 64)),
)  # fmt: skip

# %% tags=["plumbing"]
show.style()
training.seed_everything(SEED)
cifar = data.cifar10()
train, validation = cifar.train.take(S.train), cifar.validation.take(S.validation)
dense = checkpoints.load(S.net)
ONE, TWO = validation.inputs[:1], validation.inputs[:2]


@cache  # by network: none of them is changed after it is made
def accuracy(model, count=None):
    """Fraction of the validation photographs, or of the first `count`, that `model` gets right."""
    return training.evaluate(model, validation.take(count) if count else validation).accuracy


base = accuracy(dense)
dense_macs = measure.count_macs(dense, ONE)
past = [evidence.load("04_prune_filters", profile="full", seed=seed) for seed in range(3)]
past = [result for result in past if result is not None]
past_time = [pd.DataFrame(result.timings["time_left"]).set_index("network") for result in past]
past_left = [result.measurements["macs_left"] for result in past]
say(
    f"`{S.net}` gets {base:.1%} of {len(validation):,} validation photographs right (ten classes), "
    f"at {dense_macs:,} MACs each."
)

# %% [markdown]
# The network is small enough to read: plain blocks of convolution, BatchNorm and ReLU, and two **residual** ones, which
# add their input to what their two convolutions make of it. Here is where its MACs are.

# %% tags=["plumbing"]
layers = measure.layer_table(dense, ONE)
layers = layers[layers["kind"].isin(["Conv2d", "Linear"])].set_index("layer")
shape = layers[["output", "weights", "macs"]].assign(share=layers["share_macs"].map("{:.0%}".format))
shape.rename(columns={"macs": "MACs", "share": "share of the MACs"})

# %% [markdown]
# **Exercise 04.1, a warm-up.** Each filter looks at a window of `size` × `size` pixels in each of the `inputs` channels, and it
# does so once for each pixel that it puts out. How many multiplications is that for the layer?


# %%
def conv_macs(inputs, filters, size, height, width):
    """Return the multiplications of a convolution that puts out height × width pixels for each filter."""
    ### BEGIN SOLUTION
    return inputs * filters * size**2 * height * width
    ### END SOLUTION


exercises.check("04.1", conv_macs)

# %% [markdown]
# Halve the `filters` of every layer, and the next one has half of the `inputs` as well: a quarter of the product is left. But
# there are two ways to be rid of a filter.

# %% tags=["plumbing"]
fig, axes = plt.subplots(1, 3, figsize=(9.5, 4.0), gridspec_kw={"width_ratios": [8, 8, 4.4]})
kept = [0, 2, 5, 7]


def draw(ax, rows, columns, bottom, gone_rows=(), gone_columns=()):
    """Draw a matrix of weights, one square for each filter (row) and input channel (column)."""
    for row in range(rows):
        for column in range(columns):
            gone = row in gone_rows or column in gone_columns
            look = {"facecolor": "white", "hatch": "xxxx"} if gone else {"facecolor": show.COLOURS[0]}
            ax.add_patch(plt.Rectangle((column, bottom - row), 0.86, 0.86, edgecolor="0.45", linewidth=0.7, **look))


lost = [row for row in range(8) if row not in kept]
for ax, title, sizes, gone in [
    (axes[0], "Dense", (8, 8), ()),
    (axes[1], "Masked: same matrices", (8, 8), lost),
    (axes[2], "Removed", (4, 4), ()),
]:
    rows, columns = sizes
    draw(ax, rows, 3, 10, gone_rows=gone)
    draw(ax, rows, columns, 0, gone_rows=gone, gone_columns=gone)
    ax.set(title=title, xlim=(-0.3, max(columns, 4.2) + 0.2), ylim=(-7.4, 11.3), aspect="equal")
    ax.axis("off")
axes[0].text(3.5, 7, "first layer:\na row is a filter,\na column an input", fontsize=10, va="center")
axes[1].text(3.5, 7, "crossed: zero,\nand multiplied\nall the same", fontsize=10, va="center")
axes[0].text(0, 1.35, "second layer: its columns read the first", fontsize=10)
axes[1].text(0, 1.35, "rows and columns are zero", fontsize=10)
axes[2].text(0, 1.35, "a quarter is left", fontsize=10)
show.figure(
    fig,
    alt="A drawing, no data. Two layers as matrices of weights, three times. Dense: all squares full. Masked: half of the rows of "
    "both, and half of the columns of the second, are crossed out as zero, and the matrices are as large as before. Removed: the "
    "first has half as many rows, the second half as many rows and half as many columns.",
)

# %% [markdown]
# ## 1. A mask, and the clock
#
# A **filter** makes one output channel. To silence it, set its weights to zero, and the scale and shift that BatchNorm applies
# to it as well: then the channel is zero whatever the picture. We silence half of the filters in every block, those with the
# smallest **L1 norm** (the sum of the magnitudes of their weights).


# %%
def silence(model, keep):
    """Return a copy of `model` in which the filters that are not kept give zero; `keep` goes by block."""
    new = deepcopy(model)
    for name, kept in keep.items():
        block = new.get_submodule(name)
        for parameter in (block.conv.weight, block.bn.weight, block.bn.bias):
            parameter.data[~kept] = 0
    return new


def larger_half(filters):
    """Return which filters have an L1 norm above the median; shape of `filters`: (filters, inputs, 3, 3)."""
    norms = filters.detach().abs().sum(dim=(1, 2, 3))
    return norms > norms.median()


blocks = [name.removesuffix(".conv") for name in layers.index if name.endswith(".conv")]
masked = silence(dense, {name: larger_half(dense.get_submodule(name).conv.weight) for name in blocks})

# %% [markdown]
# **Predict.** Half of the filters are zero, so nearly three quarters of the multiplications are of no use. How many times faster is
# the masked network in eager PyTorch? And in ONNX Runtime, which optimises the graph before it runs it?
#
# For ONNX Runtime, BatchNorm is **folded** into the convolutions, as every runtime does anyway. Nearly all networks below share
# the graph of the dense one, in other sizes; so the folded cell exports it once, gives it one network's weights after the other,
# and checks that the logits are PyTorch's.


# %% tags=["plumbing"]
def fold(model):
    """Return a copy of `model` in which each BatchNorm has become part of the convolution before it."""
    new = deepcopy(model).eval()
    for block in new.modules():
        if hasattr(block, "bn"):
            block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
    return new


def in_onnx(model, file):
    """Open `model` in ONNX Runtime: its weights, in the graph of `file`."""
    return runtime.session(runtime.export_like(fold(model), file, TWO, run.scratch("own.onnx")), threads=1)


plain = runtime.export_onnx(fold(dense), TWO, run.scratch("plain.onnx"))

# %% [markdown]
# The clock is that of notebook 01: networks take turns, on one thread, and the first one is entered twice, so that we see what
# "no difference" looks like. In PyTorch its second entry is a *copy*, at another place in memory, as the masked network is.


# %% tags=["plumbing"]
def clock(models, sessions):
    """Time all networks in both runtimes; return {(runtime, batch): verdicts}. The first is the baseline."""
    found = {}
    for batch in S.batches:
        images = validation.inputs[:batch]
        eager = {name: partial(model, images) for name, model in models.items()}
        engine = {name: partial(runtime.run, session, images.numpy()) for name, session in sessions.items()}
        again = partial(modules.copied(next(iter(models.values()))), images)
        for kind, calls, control in (("eager", eager, again), ("onnxruntime", engine, None)):
            with torch.inference_mode():
                timings = measure.time_interleaved(calls, rounds=S.timings, warmup=2, threads=1, control=control)
            found[kind, batch] = measure.compare(timings)
    return found


# %%
models = {"dense": dense, "masked": masked}
sessions = {name: in_onnx(model, plain) for name, model in models.items()}
first_look = clock(models, sessions)

# %% tags=["plumbing"]
short = {"eager": "eager", "onnxruntime": "ORT"}
zeros = 1 - measure.count_nonzero(masked) / measure.count_weights(masked)
masked_left = {f"{short[kind]} {batch}": 1 / v["masked"].ratio for (kind, batch), v in first_look.items()}
run.record("masked_time_left", masked_left, timing=True)
masked_there = [  # the first published runs timed it with all others
    result.timings.get("masked_time_left") or table.loc["masked"].to_dict()
    for result, table in zip(past, past_time, strict=True)
]
fastest = max((verdicts["masked"] for verdicts in first_look.values()), key=lambda verdict: verdict.ratio)
say(
    f"{zeros:.0%} of the weights are zero, and the masked network does {measure.count_macs(masked, ONE):,} MACs, "
    f"like the dense one. How much longer does it take, in percent of the dense network's time?"
)
_ = evidence.conclude(
    *(
        evidence.Comparison(
            f"{kind}, batch {batch}",
            100 * (masked_left[f"{short[kind]} {batch}"] - 1),
            tuple(100 * (row[f"{short[kind]} {batch}"] - 1) for row in masked_there if f"{short[kind]} {batch}" in row),
        )
        for kind, batch in first_look
    ),
    unit="%",
    words=("slower", "faster"),
)
run.claim(
    "masked-is-not-faster",
    "Best speed-up of the masked network, two runtimes and two batch sizes",
    fastest.ratio,
    at_most=1.2,
    timing=True,
    interval=fastest.cleared,
)
pd.concat({f"{kind}, batch {batch}": measure.verdict_table(v) for (kind, batch), v in first_look.items()})

# %% [markdown]
# A convolution is a dense matrix product, and multiplies by zero as carefully as by anything else. Three quarters of the
# multiplications are of no use, and nothing like a fourfold speed-up arrives.
#
# Yet in eager PyTorch your clock may well say "faster", by some percent. If the control, a copy of the dense network, is not
# faster, the place in memory is not the reason. Luck is not ruled out. Is there a cause? Take the network apart, and time a convolution
# and the pooling alone, on the maps that each network hands to them. A third set of maps holds the *same numbers* as the dense
# network's, sorted within each channel.

# %%
images = validation.inputs[: S.batches[1]]
with torch.inference_mode():
    maps = {name: model.conv1(model.stem(images)) for name, model in models.items()}
    maps["dense, sorted"] = maps["dense"].flatten(2).sort().values.view_as(maps["dense"])
    alone = {}
    for part in ("res1.block1.conv", "pool"):
        layers_of = {"dense": dense, "masked": masked, "dense, sorted": dense}
        calls = {name: partial(model.get_submodule(part), maps[name]) for name, model in layers_of.items()}
        again = partial(dense.get_submodule(part), maps["dense"].clone())
        alone[part] = measure.compare(measure.time_interleaved(calls, rounds=S.timings, control=again))

# %% tags=["plumbing"]
pd.concat({part: measure.verdict_table(found) for part, found in alone.items()})

# %% [markdown]
# On a quiet machine the convolution does not care. The pooling does, even when it gets the same numbers in another order. PyTorch's pooling on a CPU is a
# loop that *compares*: is this pixel larger than the largest so far? The processor guesses each answer in advance and works on; a
# wrong guess costs it the work of many steps. In sorted maps it guesses well, and in a channel of zeros it is never wrong. ONNX
# Runtime's pooling takes the larger of two numbers without such a fork in the road, and its clock sees nothing.
#
# So that is what is left of the mask: a trifle in a layer that multiplies nothing, in one of the two runtimes. The published seeds, of a larger
# network in which pooling is a smaller part, cannot tell it from no difference at all.
#
# To save time where the time goes, the matrices must be *smaller*.

# %% [markdown]
# ## 2. Surgery on two plain layers
#
# `conv2` hands its channels to `conv3` and to nobody else. Remove filter 7 of `conv2`, and four things have to go:
# - the filter itself, `conv2.conv.weight[7]`;
# - the scale and the shift that BatchNorm gives to channel 7, `conv2.bn.weight[7]` and `conv2.bn.bias[7]`;
# - the statistics that BatchNorm keeps of it, `running_mean[7]` and `running_var[7]`;
# - what `conv3` makes of channel 7: `conv3.conv.weight[:, 7]`, one slice of *each* of its filters.


# %%
def fewer_outputs(block, keep):
    """Return a copy of a conv-BatchNorm-ReLU block that has only the filters in `keep` (boolean)."""
    new = deepcopy(block)
    new.conv.weight = nn.Parameter(block.conv.weight.detach()[keep])
    new.bn.weight = nn.Parameter(block.bn.weight.detach()[keep])
    new.bn.bias = nn.Parameter(block.bn.bias.detach()[keep])
    new.bn.running_mean, new.bn.running_var = block.bn.running_mean[keep], block.bn.running_var[keep]
    new.conv.out_channels = new.bn.num_features = int(keep.sum())
    return new


def fewer_inputs(block, keep):
    """Return a copy of the block that reads only the channels in `keep`."""
    new = deepcopy(block)
    new.conv.weight = nn.Parameter(block.conv.weight.detach()[:, keep])
    new.conv.in_channels = int(keep.sum())
    return new


# %%
keep = larger_half(dense.conv2.conv.weight)
small = deepcopy(dense)
small.conv2, small.conv3 = fewer_outputs(dense.conv2, keep), fewer_inputs(dense.conv3, keep)

# %% [markdown]
# The test of surgery: a removed filter and a silenced one are the same to the rest of the network. So the cut network must give
# the logits of the *masked* one. In double precision nothing but the order of the sums can differ. And
# `helpers.pruning.remove_filters`, which does this for any network, must leave the very same tensors.


# %% tags=["plumbing"]
def differing(a, b):
    """Return how many tensors of network `a` network `b` does not have, or has with another shape or value."""
    theirs = b.state_dict()
    return sum(
        name not in theirs or tensor.shape != theirs[name].shape or not torch.equal(tensor, theirs[name])
        for name, tensor in a.state_dict().items()
    )


# %%
images = validation.inputs[:64].double()
silenced = silence(dense, {"conv2": keep})
gap = training.predict(deepcopy(small).double(), images) - training.predict(silenced.double(), images)

# %% tags=["plumbing"]
run.claim(
    "surgery",
    "Largest difference between the cut and the silenced network's logits, float64",
    gap.abs().max(),
    at_most=1e-8,
)
by_helper = pruning.remove_filters(dense, {"conv2.conv": keep}, TWO)
run.claim(
    "same-as-helper", "Tensors in which the cell's cut and the helper's differ", differing(small, by_helper), at_most=0
)

# %% [markdown]
# ### A trap: the optimizer that was there before
#
# An optimizer holds the *tensors* it was made with, not the layers. Surgery makes new tensors. If you cut in the middle of a
# training and go on with the old optimizer, it goes on training what was removed. No error, no warning; the layers that you
# cut simply stop learning.


# %%
def trained_by(optimizer, model):
    """Take one step, and return the names of the parameters of `model` that moved."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    F.cross_entropy(model.train()(train.inputs[:32]), train.labels[:32]).backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


patient = deepcopy(dense)
old = torch.optim.SGD(patient.parameters(), lr=0.1)
patient.conv2, patient.conv3 = deepcopy(small.conv2), deepcopy(small.conv3)
everything = {name for name, _ in patient.named_parameters()}
stuck = everything - trained_by(old, patient)
stuck_now = everything - trained_by(torch.optim.SGD(patient.parameters(), lr=0.1), patient)

# %% tags=["plumbing"]
say(f"With the old optimizer these never move: {', '.join(f'`{name}`' for name in sorted(stuck))}.")
run.claim("all-trained", "Parameters that an optimizer made after the cut leaves untrained", len(stuck_now), at_most=0)

# %% [markdown]
# The rule is short: **cut first, then make the optimizer**. `training.fit` makes its own at the start of each training, so
# nothing that was removed can linger.
#
# ## 3. Why the residual part refuses
#
# Try the same on `res1.block2`, and tell its reader to read less. Its output is *added* to the block's input, channel by
# channel:

# %%
naive = deepcopy(dense)
keep_narrow = larger_half(dense.res1.block2.conv.weight)
naive.res1.block2 = fewer_outputs(dense.res1.block2, keep_narrow)
naive.conv2 = fewer_inputs(dense.conv2, keep_narrow)
try:
    naive(TWO)
except RuntimeError as error:
    print(f"RuntimeError: {error}")

# %% [markdown]
# A sum needs two tensors of one shape. So channel 7 of `res1.block2` and channel 7 of what enters the block, which `conv1` made,
# are one and the same thing: they stay together or they go together. All that *read* the channel lose a slice, too.
# `torch-pruning` finds such **groups** by itself. It runs the network once, records which operation feeds which, and
# follows the channels from layer to layer: a **dependency graph** (Fang et al. 2023).

# %%
graph = tp.DependencyGraph().build_dependency(deepcopy(dense), example_inputs=TWO)
group = graph.get_pruning_group(graph.model.conv1.conv, tp.prune_conv_out_channels, idxs=[7])

# %% tags=["plumbing"]
kinds = {"prune_out_channels": "what makes channel 7", "prune_in_channels": "what reads channel 7"}
steps = [(step.target.name.split()[0], kinds[step.handler.__name__]) for step, _ in group]
coupled = pd.DataFrame([step for step in steps if not step[0].startswith("_")], columns=["layer", "loses"])
coupled.set_index("layer")

# %% [markdown]
# You asked for one filter of `conv1`. The graph says what has to go with it. `pruning.groups` collects, for the
# whole network, the layers whose *output* channels are coupled:

# %% tags=["plumbing"]
groups = pruning.groups(dense, TWO)
names = [group.layers[0] for group in groups]
pd.DataFrame(
    {"channels": [group.channels for group in groups], "together": [", ".join(group.layers) for group in groups]},
    index=pd.Index(names, name="group"),
)

# %% [markdown]
# The last layer is not among them: its outputs are the ten classes. Now let the library cut the coupled group for
# real, and compare with the helper, which is a thin layer over the library that leaves the original alone.

# %%
keep = {"conv1.conv": larger_half(dense.conv1.conv.weight)}
gone = (~keep["conv1.conv"]).nonzero().flatten().tolist()
graph.get_pruning_group(graph.model.conv1.conv, tp.prune_conv_out_channels, idxs=gone).prune()

# %% tags=["plumbing"]
small = pruning.remove_filters(dense, keep, TWO)
run.claim(
    "same-as-library",
    "Tensors in which torch-pruning's cut and the helper's differ",
    differing(small, graph.model),
    at_most=0,
)
silenced = silence(dense, dict.fromkeys(["conv1", "res1.block2"], keep["conv1.conv"]))
gap = training.predict(deepcopy(small).double(), images) - training.predict(silenced.double(), images)
run.claim(
    "residual-surgery",
    "Largest difference, cut against silenced, across the sum, float64",
    gap.abs().max(),
    at_most=1e-8,
)

# %% [markdown]
# ## 4. Which group can lose filters?
#
# A group needs one score for each of its channels. We add up those of its members; here by hand with L1 norms, then with
# the helper:

# %%
norms = pruning.filter_norms(dense, norm=1)
by_norm = pruning.group_scores(norms, groups)
by_hand = norms["conv1.conv"] + norms["res1.block2.conv"]
assert torch.allclose(by_norm["conv1.conv"], by_hand)

# %% [markdown]
# Now silence the channels with the smallest scores, in one group at a time, and leave all others whole. Nothing is
# retrained. Which group would you spare?
#
# **Predict** the most sensitive group of the table above, and the least sensitive.


# %%
def without(scores, share):
    """Return which channels stay if the fraction `share` with the smallest scores goes."""
    keep = torch.ones(len(scores), dtype=torch.bool)
    keep[scores.argsort()[: round(share * len(scores))]] = False
    return keep


def silenced_by(name, keep):
    """Return the dense network with the channels of one group silenced."""
    return pruning.zero_filters(dense, {name: keep}, TWO)


whole = accuracy(dense, S.probe)
sensitivity = {
    name: [whole] + [accuracy(silenced_by(name, without(by_norm[name], share)), S.probe) for share in S.shares]
    for name in names
}

# %% tags=["plumbing"]
table = pd.DataFrame(sensitivity, index=pd.Index([0.0, *S.shares], name="removed"))
order = table.mean().sort_values()
fig = show.line_with_band(
    [100 * share for share in table.index],
    {name: [100 * a for a in row] for name, row in sensitivity.items()},
    title=f"Here {order.index[0]} can lose least",
    xlabel="channels removed from this group alone (%)",
    ylabel="validation accuracy (%)",
)
show.figure(fig, alt=f"Accuracy (%) against channels removed. {show.in_words(100 * table)}", table=table)
run.record("sensitivity", table.reset_index())
elsewhere = (
    pd.DataFrame(past[0].measurements["sensitivity"]).set_index("removed").mean().sort_values() if past else order
)
say(
    f"With half of its channels gone, `{order.index[0]}` leaves {table.loc[0.5, order.index[0]]:.1%} of the photographs "
    f"right, `{order.index[-1]}` {table.loc[0.5, order.index[-1]]:.1%}; the whole network {whole:.1%}. "
    f"In the larger network of the published runs, `{elsewhere.index[0]}` can lose least and `{elsewhere.index[-1]}` most: one network "
    "each, measured without chance, so more seeds would say nothing more."
)

# %% [markdown]
# Such curves tell where to be careful, but not what happens when all groups are cut at once. For that there are two ways.
#
# ## 5. The same share everywhere, or the least important anywhere?
#
# **Uniform** takes the same fraction from each group, as far as rounding allows. **Global** compares the scores of all groups (each divided by its
# group's mean, because the scales differ) and takes the smallest, wherever they are. `pruning.choose_filters` does
# either, and searches for the cut that saves the MACs we ask for, so that the comparison is fair. Channels are rounded to
# multiples; section 8 shows why.
#
# And two scores: the L1 norm, and the squared **Taylor** score of notebook 03, which looks at a few training pictures. That
# makes four cuts. The table shows how many channels each group keeps. Where two columns are equal, the cuts can still differ in
# *which* channels.

# %%
scores = {"L1": by_norm, "Taylor": pruning.group_scores(pruning.taylor_scores(dense, train.take(S.scored)), groups)}
arms = [(score, scope) for score in scores for scope in ("uniform", "global")]


def cut(score, scope, ratio, round_to):
    """Return the dense network with so many filters removed that it has `ratio` times fewer MACs."""
    keep = pruning.choose_filters(dense, scores[score], TWO, macs_ratio=ratio, scope=scope, round_to=round_to)
    return pruning.remove_filters(dense, keep, TWO)


candidates = {arm: cut(*arm, S.ratios[0], S.round_to) for arm in arms}

# %% tags=["plumbing"]
same = [pair for pair in combinations(arms, 2) if differing(candidates[pair[0]], candidates[pair[1]]) == 0]
twins = (("Taylor", "uniform"), ("Taylor", "global")) in same
alike = " ".join(
    f"{', '.join(one)} and {', '.join(two)} are the very same network here, channel for channel: rounded to multiples of {S.round_to}, "
    "they have nothing left to differ in. Count them as one, for no comparison of the two means anything."
    for one, two in same
)
say(alike or "No two of the four cuts are the same network.")
widths = {"dense": dense} | {f"{score}, {scope}": net for (score, scope), net in candidates.items()}
pd.DataFrame(
    {name: [group.channels for group in pruning.groups(net, TWO)] for name, net in widths.items()}, index=names
)

# %% [markdown]
# **Predict**: which of these networks is the most accurate right after the cut, with nothing repaired?

# %%
after_cut = {arm: accuracy(net) for arm, net in candidates.items()}

# %% tags=["plumbing"]
best = max(after_cut, key=after_cut.get)
said = "; ".join(f"{score}, {scope} {value:.1%}" for (score, scope), value in after_cut.items())
say(f"Right after the cut: {said}. Highest is **{', '.join(best)}**; the whole network has {base:.1%}.")

# %% [markdown]
# ### BatchNorm remembers the old network
#
# Before you judge them, look at BatchNorm. In evaluation it subtracts a **running mean** and divides by the root of a
# **running variance**, both recorded while the *dense* network trained. After the cut every layer gets other sums, and the
# record is wrong. Nothing has to be trained to mend that: show the network some training pictures and record again.


# %%
def refresh(model, inputs):
    """Return a copy of `model` whose BatchNorm statistics are averages over `inputs`."""
    new = deepcopy(model)
    norms = [layer for layer in new.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over the batches, not an exponential one
    with torch.no_grad():
        for batch in inputs.split(500):
            new.train()(batch)
    for layer in norms:
        layer.momentum = 0.1
    return new.eval()


# %% [markdown]
# The helper does the same, as the folded cell asserts. From here on we use the helper.
#
# **Predict**: how many points do fresh statistics give back? And will the order be the same as before?

# %% tags=["plumbing"]
pictures = train.inputs[: S.scored]
example, exact = deepcopy(candidates[arms[0]]).double(), pictures.double()
mine, theirs = refresh(example, exact).state_dict(), pruning.refresh_batchnorm(example, exact).state_dict()
assert all(torch.allclose(mine[name], theirs[name], rtol=1e-8) for name in mine)

# %%
refreshed = {arm: pruning.refresh_batchnorm(net, pictures) for arm, net in candidates.items()}

# %% tags=["plumbing"]
comparison = pd.DataFrame(
    {
        "MACs left": {arm: measure.count_macs(net, ONE) / dense_macs for arm, net in candidates.items()},
        "after the cut": after_cut,
        "BatchNorm refreshed": {arm: accuracy(net) for arm, net in refreshed.items()},
    }
)
run.record("cuts", comparison.reset_index(names=["score", "scope"]))
gain = (comparison["BatchNorm refreshed"] - comparison["after the cut"]).mean()


def taylor_ahead(table):
    """Return by how many points Taylor's uniform cut is ahead of the L1 norm's: after the cut, and refreshed."""
    return (
        100
        * (table.loc[("Taylor", "uniform")] - table.loc[("L1", "uniform")])[["after the cut", "BatchNorm refreshed"]]
    )


here, there = (
    taylor_ahead(table)
    for table in (
        comparison,
        pd.DataFrame(past[0].measurements["cuts"]).set_index(["score", "scope"]) if past else comparison,
    )
)
say(
    f"Without a single gradient step, fresh statistics are worth **{100 * gain:+.1f} points** on average. Taylor's uniform cut, against "
    f"the L1 norm's: {here.iloc[0]:+.1f} points right after the cut, {here.iloc[1]:+.1f} refreshed. In the larger network of the published "
    f"runs: {there.iloc[0]:+.1f} and {there.iloc[1]:+.1f}. Nothing in these cuts is left to chance, so three seeds repeat one number: **which "
    "score is the better one for this is not decided here**, and neither is uniform against global."
)
run.claim("refresh", "Accuracy that fresh BatchNorm statistics give back, mean of the four cuts", gain, at_least=0.05)
comparison.rename_axis(["score", "scope"]).map("{:.1%}".format)

# %% [markdown]
# ## 6. Whole blocks
#
# The coarsest cut of all: a residual block *is* `x` plus a correction. Leave the correction out, and `x` goes straight
# through. No shape changes anywhere, so there is no surgery to do; the block becomes the identity.
#
# **Predict**: which of the two can be spared, if one can?

# %%
without_blocks = {
    "res1 out": pruning.remove_block(dense, "res1"),
    "res2 out": pruning.remove_block(dense, "res2"),
    "both out": pruning.remove_block(pruning.remove_block(dense, "res1"), "res2"),
}

# %% tags=["plumbing"]
blocks_table = pd.DataFrame(
    {
        name: [
            measure.count_macs(net, ONE) / dense_macs,
            accuracy(net),
            accuracy(pruning.refresh_batchnorm(net, pictures)),
        ]
        for name, net in without_blocks.items()
    },
    index=["MACs left", "after the cut", "BatchNorm refreshed"],
).T
run.record("blocks", blocks_table.reset_index(names="network"))
blocks_there = pd.DataFrame(past[0].measurements["blocks"]).set_index("network") if past else blocks_table
say(
    "With fresh statistics: "
    + "; ".join(
        f"{which}, without `res1` {part.loc['res1 out', 'BatchNorm refreshed']:.1%} and without `res2` "
        f"{part.loc['res2 out', 'BatchNorm refreshed']:.1%}"
        for which, part in (("this network", blocks_table), ("the published one", blocks_there))
    )
    + "."
)
blocks_table.map("{:.1%}".format)

# %% [markdown]
# Both blocks have the same MACs, and they are not worth the same. A block is one decision about a fifth of the work, where
# filters are hundreds of small decisions. Both go into the race, and
# so does the loss of notebook 02: the **teacher**. The uncut network's answers, softened by a temperature of 4, say more
# about a photograph than its label alone. Notebook 12 explains it.
#
# ## 7. Fine-tune
#
# Of the two scores we keep Taylor's: across a network, it came closest to the true damage in notebook 03. Its two cuts get a
# short trial first, one epoch on some of the training pictures: where they differ, the better one on *validation* pictures
# gets the long training. So do two losses, labels alone and labels with a teacher. Every network begins with fresh BatchNorm
# statistics. The quick profile leaves the pictures as they are: in so few epochs nothing is learned by heart, and moved pictures
# are harder.
#
# **Predict**: how many points does one short epoch give back? Does the teacher help?

# %% tags=["plumbing"]
taught = distillation.taught_by(fold(dense))  # notebook 02's loss; BatchNorm folded, the teacher is faster
losses = {"taught": taught, "labels only": training.cross_entropy}
chosen, other = losses if S.teacher else reversed(losses)
score = "Taylor"


# %%


def fine_tune(model, examples, loss, *, epochs=1, file=None):
    """Train a copy of the cut network on the first `examples` training pictures; return it and the seconds it took."""
    fitted = training.fit(
        pruning.refresh_batchnorm(model, pictures),
        train.take(examples),
        epochs=epochs,
        lr=S.lr,
        batch_size=S.batch,
        precision=training.fast_precision(),
        augment=training.flip_and_shift if S.moved else None,
        loss=loss,
        seed=SEED,
        checkpoint=run.scratch(file) if file and PROFILE == "full" else None,
    )
    return fitted.model, sum(row["seconds"] for row in fitted.history)


# %%
trials = {scope: fine_tune(candidates[score, scope], S.trial, losses[chosen])[0] for scope in ("uniform", "global")}
scope = max(trials, key=lambda name: accuracy(trials[name]))
trials[f"{scope}, {other}"] = fine_tune(candidates[score, scope], S.trial, losses[other])[0]
trials["both blocks out"] = fine_tune(without_blocks["both out"], S.trial, losses[chosen])[0]

# %% tags=["plumbing"]
trial_table = pd.DataFrame(
    {
        "MACs left": {name: measure.count_macs(net, ONE) / dense_macs for name, net in trials.items()},
        "validation accuracy": {name: accuracy(net) for name, net in trials.items()},
    }
)
run.record("trials", trial_table.reset_index(names="network"))
tried, before = trial_table["validation accuracy"], comparison.loc[score, "BatchNorm refreshed"]
races = [{row["network"]: row["validation accuracy"] for row in result.measurements["trials"]} for result in past]


def ahead(race):
    """Return by how many points: uniform on global, a teacher on labels only, and filters on whole blocks."""
    trained_twice = next(name for name in race if name.endswith((", labels only", ", taught")))
    won = trained_twice.partition(",")[0]
    teacher = (race[won] - race[trained_twice]) * (1 if trained_twice.endswith("labels only") else -1)
    return [100 * (race["uniform"] - race["global"]), 100 * teacher, 100 * (race[won] - race["both blocks out"])]


own, theirs = ahead(dict(tried)), [ahead(race) for race in races]
went_on = ["uniform" if race["uniform"] >= race["global"] else "global" for race in races]
often = " and ".join(f"{kind} in {went_on.count(kind)}" for kind in dict.fromkeys(went_on))
of_the_published = f"The published runs, by the same rule, went on with {often} of {len(races)}. " if races else ""
say(
    f"Right after fresh statistics {before[scope]:.1%}, after the trial {tried[scope]:.1%}. "
    + ("Here uniform and global were one network, so the trial had nothing to decide between them. " if twins else "")
    + f"We go on with **{scope}, {chosen}**: the scope by this trial, the loss by the settings. {of_the_published}What the trials say:"
)
_ = evidence.conclude(
    *(
        evidence.Comparison(what, None if twins and i == 0 else own[i], tuple(race[i] for race in theirs))
        for i, what in enumerate(
            [
                "Uniform against global, by Taylor",
                "A teacher against labels only",
                "Filters out against both blocks out (which leaves more MACs)",
            ]
        )
    )
)
trial_table.map("{:.2%}".format)

# %% [markdown]
# Whenever a paper compares scores *before* fine-tuning, ask for the distance after it. What counts is what is left of the
# difference when the training is done. Now the long training.

# %% tags=["plumbing"]
filters, seconds = {}, {}
for ratio in S.ratios:
    name = f"filters {ratio:g}x"
    net = cut(score, scope, ratio, S.round_to)
    filters[name], seconds[name] = fine_tune(net, S.train, losses[chosen], epochs=S.epochs, file=f"{ratio:g}x.pt")
    say(f"**{name}**: {accuracy(filters[name]):.2%} on validation, the dense network {base:.2%}.")
pruned_name = next(iter(filters))
pruned = filters[pruned_name]
run.record("fine_tuning_seconds", seconds, timing=True)

# %% [markdown]
# ## 8. Channels in round numbers
#
# A vector unit multiplies 4, 8 or 16 numbers at once, whether you need all of them or not, and a runtime lays out its channels
# in blocks of that size. A layer with 17 channels may then cost as much as one with 24 or 32. That is why `choose_filters`
# rounds. The next cell makes the same cut again with other multiples, at nearly the same MACs; these networks are only timed.
#
# **Predict**: what does the clock say about channels that are not rounded? (It will speak in section 9, of all networks at once.)

# %% tags=["plumbing"]
roundings = {S.round_to: pruned} | {r: cut(score, scope, S.ratios[0], r) for r in S.roundings if r != S.round_to}
label = {r: pruned_name if r == S.round_to else (f"rounded to {r}" if r > 1 else "not rounded") for r in S.roundings}
pd.DataFrame({label[r]: [g.channels for g in pruning.groups(net, TWO)] for r, net in roundings.items()}, index=names).T

# %% [markdown]
# ## 9. The table that matters
#
# All networks at once, in two runtimes and at two batch sizes. With them runs the **cheap alternative**, which every
# compressed network has to face: a *smaller dense network*, thinner in every layer, trained from scratch.
#
# **Exercise 04.2, predict.** How many times faster than the dense network is the pruned one, in ONNX Runtime with a full batch? You know how many MACs it
# saves. Put your guess into the function before you run the cells below it; within a quarter is fine.


# %%
def predicted_speedup():
    """Return your prediction: the dense network's time divided by the pruned network's."""
    ### BEGIN SOLUTION
    return 1.8
    ### END SOLUTION


# %% tags=["plumbing"]
models = {"dense": dense} | filters | {"both blocks out": trials["both blocks out"]}
models |= {label[r]: net for r, net in roundings.items() if r != S.round_to}
models["a thin dense net"] = checkpoints.load(S.thin)
no_blocks = runtime.export_onnx(fold(without_blocks["both out"]), TWO, run.scratch("no-blocks.onnx"))
graphs = dict.fromkeys(models, plain) | {"both blocks out": no_blocks}
sessions = {name: in_onnx(model, graphs[name]) for name, model in models.items()}

# %%
verdicts = clock(models, sessions)

# %% tags=["plumbing"]
left = pd.Series({name: measure.count_macs(net, ONE) / dense_macs for name, net in models.items()})
time_left = pd.DataFrame(
    {f"{short[kind]} {batch}": {name: 1 / v[name].ratio for name in models} for (kind, batch), v in verdicts.items()}
)
arrived = (1 - time_left).div(1 - left.where(left < 1), axis=0)
run.record("time_left", time_left.reset_index(names="network"), timing=True)
run.record("macs_left", left.to_dict())
table = pd.concat({"left, of the dense net's": time_left, "of the MACs saved, arrived": arrived}, axis=1)
table.insert(0, ("left, of the dense net's", "MACs"), left)
table.drop(index="dense").map(lambda value: "–" if pd.isna(value) else f"{value:.0%}")

# %%
last = verdicts["onnxruntime", S.batches[1]]
speed = last[pruned_name].ratio
exercises.check("04.2", predicted_speedup, measured=speed, macs_ratio=1 / left[pruned_name])

# %% [markdown]
# How to read the table: each column is a runtime (ORT is ONNX Runtime) and a batch size. On the left stands what is left of the
# dense network's MACs and milliseconds. On the right, the share that arrived: the saving in time divided by the saving in MACs.
# All of it would be 100 %; a negative number means slower than before.

# %% tags=["plumbing"]
share = arrived.loc[pruned_name, f"ORT {S.batches[1]}"]
shown = [name for name in models if name in (*filters, "both blocks out", "a thin dense net")]
percent = 100 * time_left.assign(MACs=left).loc[shown, ["MACs", *time_left.columns]]
fig = show.bars(
    percent,
    title=f"MACs fell to {left[pruned_name]:.0%}, time in ONNX Runtime to {1 / speed:.0%}",
    xlabel="% of the dense net's (time: runtime and batch size)",
    label="{:.0f} %",
)
show.figure(fig, alt=f"Bars in percent of the dense network. {show.in_words(percent)}", table=percent)

# %% tags=["plumbing"]
low, high = last[pruned_name].interval
say(
    f"In ONNX Runtime, {S.batches[1]} photographs at a time: **{last[pruned_name].verdict}**, {speed:.2f} times "
    f"(99 %: {low:.2f} to {high:.2f}). The share of the saving that arrived, in points from all of it:"
)
cut_there = [next(name for name in table.index if name.startswith("filters")) for table in past_time]
_ = evidence.conclude(
    *(
        evidence.Comparison(
            column,
            100 * float(arrived.loc[pruned_name, column]) - 100,
            tuple(
                100 * (1 - table.loc[name, column]) / (1 - macs[name]) - 100
                for table, macs, name in zip(past_time, past_left, cut_there, strict=True)
                if column in table
            ),
        )
        for column in time_left
    ),
    words=("more than all", "less than all"),
)
if PROFILE == "full":
    run.claim("faster", "Speed-up in ONNX Runtime, batch of 64", speed, at_least=1.4, timing=True,
              interval=last[pruned_name].cleared)  # fmt: skip

# %% [markdown]
# Where part of the saving is missing, where did it go? Pooling, ReLU and the sums of the residual blocks shrink with the channels, not
# with their square. Each call has its price, whatever the layer's size, and eager PyTorch pays it for each layer.
#
# And the roundings? The time of the other cuts against the rounder one, in points of the dense network's time:

# %% tags=["plumbing"]
column = f"ORT {S.batches[1]}"
rounder = []
for r in (8, 1):
    name = f"rounded to {r}" if r > 1 else "not rounded"
    mine = (
        100 * float(time_left.loc[name, column] - time_left.loc[pruned_name, column])
        if name in time_left.index
        else None
    )
    found = tuple(
        100 * (table.loc[name, column] - table.loc[cut, column])
        for table, cut in zip(past_time, cut_there, strict=True)
        if column in table
    )
    rounder.append(evidence.Comparison(f"ONNX Runtime, batch {S.batches[1]}, {name}", mine, found))
_ = evidence.conclude(*rounder, words=("slower", "faster"))
say(f"The published cut is rounded to multiples of 16, this run's to multiples of {S.round_to}.")

# %% [markdown]
# Nearly the same multiplications, in ragged numbers of channels: in the published runs, the runtime gives much of the saving
# back. Now the accuracy. The test photographs are used here, once for each network.

# %% tags=["plumbing"]
finalists = {"dense": dense} | filters | {"a thin dense net": models["a thin dense net"]}
tests = {name: run.test(name, net, cifar.test.take(S.tested)) for name, net in finalists.items()}
lost = {name: tests["dense"].accuracy - test.accuracy for name, test in tests.items()}
pruned_ratio = 1 / left[pruned_name]
run.claim("fewer-macs", "Times fewer MACs than the dense network", pruned_ratio, at_least=S.ratios[0])
if PROFILE == "full":
    run.claim(
        "accuracy-kept", "Test accuracy lost, mean over the seeds", lost[pruned_name], at_most=0.008, over_seeds=True
    )
else:
    run.claim("accuracy-kept-quick", "Test accuracy lost (fraction)", lost[pruned_name], at_most=0.03)

# %% tags=["plumbing"]
trained_on = {name: f"{S.epochs} × {S.train:,}" for name in filters} | {"both blocks out": f"1 × {S.trial:,}"}
final = pd.DataFrame(
    {
        "MACs": {name: f"{measure.count_macs(models[name], ONE):,}" for name in ["dense", *shown]},
        "weights": {name: f"{measure.count_weights(models[name]):,}" for name in ["dense", *shown]},
        "fine-tuned on": pd.Series(trained_on),
        "validation": {name: f"{accuracy(models[name]):.2%}" for name in ["dense", *shown]},
        "test": {name: f"{test.accuracy:.2%}" for name, test in tests.items()},
        f"ONNX Runtime, batch {S.batches[1]}": {name: f"{last[name].ratio:.2f}×" for name in ["dense", *shown]},
    }
).loc[["dense", *shown]].fillna("–")  # fmt: skip
final

# %% tags=["plumbing"]
cost = {name: checkpoints.manifest()[name]["seconds"] for name in (S.net, S.thin)}
ahead_of_thin = 100 * (tests[pruned_name].accuracy - tests["a thin dense net"].accuracy)
text = "".join(
    f"**{1 / left[n]:.2f} times fewer MACs** cost {100 * lost[n]:.2f} points of test accuracy. " for n in filters
)
say(
    text + f"The thin dense network has {left['a thin dense net']:.0%} of the MACs, was trained from scratch, ends "
    f"{abs(ahead_of_thin):.2f} points {'behind' if ahead_of_thin >= 0 else 'ahead of'} the pruned one, which has {left[pruned_name]:.0%}, and "
    f"runs at {last['a thin dense net'].ratio:.2f} times the dense speed. It cost {cost[S.thin]:,.0f} s of training; the pruned one "
    f"cost the {cost[S.net]:,.0f} s of the dense network, and {seconds[pruned_name]:,.0f} s of fine-tuning here."
)
published = [
    (result.models[1], result.models[2], macs)
    for result, macs in zip(past, past_left, strict=True)
    if len(result.models) > 2
]
if published:
    more = sum(macs[cut] for (_, _, macs), cut in zip(published, cut_there, strict=True)) / sum(
        macs["a thin dense net"] for _, _, macs in published
    )
    evidence.conclude(
        evidence.Comparison(
            f"Published runs: pruned, with {more:.1f} times the MACs of the thin network, against it",
            None,
            tuple(100 * (pruned.accuracy - thin.accuracy) for pruned, thin, _ in published),
        )
    )

# %% [markdown]
# Read this with care. In the published runs the thin network is much smaller than the pruned one: it is faster and less accurate,
# and that is no verdict on pruning. In the quick profile the two have nearly the same MACs, and one seed of a short training stands for each.
# **Which of the two is better at equal MACs is not decided on this page.**
#
# The training bill decides with it. If the large network exists already, pruning it is cheap. If it has to be trained first, its
# training belongs to the price of the small one. Notebook 05 gives all competitors the same budget, and several seeds.

# %% tags=["plumbing"]
literature = evidence.literature("cifar10").dropna(subset="macs_ratio")
literature["change"] = (100 * (literature["accuracy"] - literature["base_accuracy"])).map("{:+.2f}".format)
marks = literature[["model", "method", "year", "macs_ratio", "change"]].round(2)
marks.columns = ["model", "method", "year", "times fewer MACs", "change of accuracy (points)"]
marks.set_index("model")

# %% [markdown]
# These are the marks of the literature: other networks, hundreds of epochs of fine-tuning, and often the best *test* epoch.
# Ours is the last epoch.
#
# ## 10. Exercises
#
# **04.3 · Surgery before a linear layer.** LeNet-5 flattens what its last convolution puts out, and hands it to a linear layer.
# `flatten` writes channel after channel, each with all of its pixels. Return a smaller copy of both layers: `keep` is
# boolean, one entry for each filter of `conv`; the two that came in stay as they are. Both have a bias.


# %%
def cut_before_linear(conv, linear, keep):
    """Return new (conv, linear) with only the filters in `keep`, for conv → ReLU → flatten → linear."""
    ### BEGIN SOLUTION
    conv, linear = deepcopy(conv), deepcopy(linear)
    columns = keep.repeat_interleave(linear.in_features // len(keep))
    conv.weight = nn.Parameter(conv.weight.detach()[keep])
    conv.bias = nn.Parameter(conv.bias.detach()[keep])
    linear.weight = nn.Parameter(linear.weight.detach()[:, columns])
    conv.out_channels, linear.in_features = int(keep.sum()), int(columns.sum())
    return conv, linear
    ### END SOLUTION


exercises.check("04.3", cut_before_linear)

# %% [markdown]
# **04.4 · Round, but never to nothing.** A score says that `wanted` of a layer's `total` channels are worth keeping. Return the
# nearest number that is a multiple of `multiple`: at least one multiple, so that no layer is emptied, and never more than
# `total`. A layer with fewer channels than one multiple keeps them all. Exactly between two multiples, keep more.


# %%
def rounded_channels(wanted, total, multiple):
    """Return how many channels to keep."""
    ### BEGIN SOLUTION
    nearest = (wanted + multiple // 2) // multiple * multiple
    return min(total, max(multiple, nearest))
    ### END SOLUTION


exercises.check("04.4", rounded_channels)

# %% [markdown]
# **04.5 · Open: spend the MACs elsewhere.** Section 4 showed which groups are sensitive, and neither uniform nor global asked it.
# Make a cut of your own with the same MACs: a dictionary of masks, one for each group, made with `without`; `pruning.remove_filters`
# cuts, `pruning.refresh_batchnorm` repairs, `accuracy` judges, and `fine_tune` gives it the trial. Do you beat the uniform cut right
# after the cut? After the trial? And what would you have to show before you could say so of *other* networks? There is no solution
# here: what you find is yours.
#
# ## What was measured

# %% tags=["plumbing"]
where = ", ".join(f"{arrived.loc[pruned_name, column]:.0%} ({column})" for column in arrived)
say(
    f"- **Masked**: {zeros:.0%} of the weights zero, at best {fastest.ratio:.2f} times the dense speed.\n"
    f"- **Removed**: {1 / left[pruned_name]:.2f} times fewer MACs, test accuracy {tests[pruned_name].accuracy:.2%} "
    f"(dense {tests['dense'].accuracy:.2%}).\n"
    f"- **Of that saving, arrived on the clock**: {where}.\n"
    f"- **Fresh BatchNorm statistics**: {100 * gain:+.1f} points before any training."
)


# %% tags=["plumbing"]
def latency(name):
    """Return the timings of one network for the results file."""
    records = [
        record
        for (engine, batch), found in verdicts.items()
        for record in measure.latency_records(found, runtime=engine, batch=batch)
    ]
    return [record for record in records if record["variant"] == name]


def techniques(name):
    """What was done to a network, for the results file."""
    if name in filters:
        return ["filters removed"] + ["a teacher"] * (chosen == "taught")
    return [] if name == "dense" else ["a thin dense net"]


recorded = {"dense": f"{S.net}-dense", "a thin dense net": f"{S.thin}-dense"}
recorded |= {name: f"{S.net}-{name.replace(' ', '-')}" for name in filters}
for name, test in tests.items():
    packed = files.write_dense(finalists[name], run.scratch(f"{recorded[name]}.pack"))
    files.verify(packed.path, finalists[name], validation.inputs[:256])
    run.model(
        recorded[name],
        task="cifar10",
        method=f"filters by {score}, {scope}, {chosen}" if name in filters else "dense",
        techniques=techniques(name),
        base=None if name == "dense" else recorded["dense"],
        accuracy=test.accuracy,
        weights=measure.count_weights(finalists[name]),
        nonzero=measure.count_nonzero(finalists[name]),
        macs=measure.count_macs(finalists[name], ONE),
        file=packed.path,
        latency=latency(name),
    )
run.finish()

# %% [markdown]
# ## What to remember
#
# - A mask saves no multiplication, and nothing near what its zeros promise arrives on the clock. Only smaller matrices save.
#   <!-- claims: masked-is-not-faster -->
# - A filter does not go alone: BatchNorm's entries, the slices that read it, and every layer coupled to it by a sum go too. Cut
#   right, the network answers like the silenced one. <!-- claims: surgery, residual-surgery, same-as-helper, same-as-library -->
# - After the cut, record BatchNorm's statistics again: that alone gives back many points. <!-- claims: refresh -->
# - After the cut, make a new optimizer: the old one trains what was removed. <!-- claims: all-trained -->
# - In the published runs more than half of the MACs went, less than a point of test accuracy was lost after fine-tuning, and ONNX
#   Runtime was clearly faster.
#   <!-- claims: fewer-macs, accuracy-kept, faster -->
# - MACs are a promise. Ask which share of it arrived, in which runtime, at which batch size. <!-- by construction -->
# - The competitor of a pruned network is a small dense one with the same MACs, with the training bill of both on the table.
#   <!-- by construction -->
#
# ## What to read
#
# - Li, Kadav, Durdanovic, Samet and Graf 2017, *Pruning Filters for Efficient ConvNets*: L1 norms, and sensitivity layer by layer.
# - Molchanov, Mallya, Tyree, Frosio and Kautz 2019, *Importance Estimation for Neural Network Pruning*: the Taylor score.
# - Fang, Ma, Song, Mi and Wang 2023, *DepGraph: Towards Any Structural Pruning*: groups, found automatically.
# - Liu, Sun, Zhou, Huang and Darrell 2019, *Rethinking the Value of Network Pruning*: the case for the small dense network.
#
# **Next**: notebook 05 asks what to do after the cut: fine-tune, rewind, or start again?
