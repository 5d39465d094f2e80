# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [10_quantize_after_training]
# ---

# %% [markdown]
# # 10 · Quantize after training: is int8 really faster here?
#
# In notebook 09 the network only pretended: it computed with floats that happened to lie on a grid. Now integers
# multiply integers. You compute a layer that way by hand, hand the network to two libraries that do it for real, ONNX
# Runtime and torchao, and let the clock and the file say what it bought. Some of it disappoints, and you will see why.
#
# **You will be able to**
# - compute a convolution in integers, and get a runtime's numbers;
# - quantize a trained network, and choose the images that calibrate it;
# - look into a quantized file, and see whether the floats have really gone;
# - choose the pair of integer types that your processor can multiply, and time it fairly;
# - tell static from dynamic quantization, and say which network wants which.
#
# **Before this**: notebook 09 (scale, zero point, calibration), notebook 01 (latency with its null control).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import logging
import re
import warnings
from collections import Counter
from functools import partial

# The sum before our networks' last pooling gets no grid of its own, and torchao says so, at length, each time.
warnings.filterwarnings("ignore", "The input of maxpool2d is not quantized")
for name in ("torchao", "torch.utils._pytree"):  # GPU kernels do not load on a CPU, and torchao says so on each import
    logging.getLogger(name).setLevel(logging.ERROR)

import matplotlib.pyplot as plt
import onnx
import onnxruntime
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

from helpers import checkpoints, data, evidence, exercises, measure, quantization, runtime, show, statistics, training
from helpers.core import modules, system
from helpers.core.vocabulary import PAD, encode, tokenize
from helpers.evidence import say
from helpers.files import write_dense

# %% tags=["plumbing"]
PAGE = "10_quantize_after_training"
run = evidence.start("10_quantize_after_training", profile=PROFILE, seed=SEED)
say(evidence.timetable(PAGE))
show.style()

# %% [markdown]
# The answer first: what published runs measured, processor by processor. A row is a pair of integer types, activations ×
# weights; u8 is a byte without a sign, s8 one with. The line at 1 is float32 in the same runtime, ONNX Runtime: left of it,
# int8 is *slower*. A mark is one run.


# %% tags=["plumbing", "answer"]
def processor(name):
    """A processor's name without its trade marks."""
    return " ".join(re.sub(r"\((R|TM)\)|Processor|CPU", "", name).split())


def on_processors(ratio):
    """Group what `ratio` finds in each published run by the processor that measured it: {processor: ratios}."""
    found = {}
    for result in evidence.published(PAGE):
        if (value := ratio(result)) is not None:
            found.setdefault(processor(result.provenance["machine"]["cpu"]), []).append(value)
    return found


def of_claim(name):
    """Read what a run measured for a claim, None if it has no such claim."""
    return lambda result: next((claim.value for claim in result.claims if claim.id == name), None)


def of_pair(pair):
    """Read a pair's speed (float32 = 1): by the clock, or where a run did not keep that, by the sum over all operators."""

    def ratio(result):
        if "clock" in result.timings:
            return result.timings["clock"][pair]
        rows = result.timings["operator_ms"]
        return sum(row["float32"] for row in rows) / sum(row[pair] for row in rows)

    return ratio


def ranged(ratios):
    """The lowest and the highest ratio, or the one that there is."""
    ends = [f"{end:.2f}" for end in (min(ratios), max(ratios))]
    return " to ".join(dict.fromkeys(ends))


speeds = {"u8 × s8": on_processors(of_claim("int8-speed"))}
speeds |= {pair: on_processors(of_pair(f"int8, {pair}")) for pair in ("s8 × s8", "u8 × u8")}
if all(speeds.values()):
    every = [ratio for found in speeds.values() for ratios in found.values() for ratio in ratios]
    processors = sorted({name for found in speeds.values() for name in found})
    fig, ax = plt.subplots(figsize=(8, 3.4))
    for row, found in enumerate(speeds.values()):
        for place, name in enumerate(processors):
            height = row + 0.36 * (place - (len(processors) - 1) / 2)
            ratios, colour = found.get(name, []), show.COLOURS[place % 7]
            ax.plot(ratios, [height] * len(ratios), "os^D"[place % 4], color=colour, markersize=8, alpha=0.75,
                    label=name if row == 0 else None)  # fmt: skip
            if ratios:
                slow = max(ratios) < 1  # its number goes to the left, away from the line
                ax.annotate(ranged(ratios), (min(ratios) if slow else max(ratios), height), xytext=(-9 if slow else 9, 0),
                            textcoords="offset points", ha="right" if slow else "left", va="center", fontsize=11)  # fmt: skip
    ax.axvline(1, color="black", linewidth=1.5)
    ax.set_yticks(range(len(speeds)), list(speeds))
    ax.set(title=f"int8 runs at {min(every):.1f} to {max(every):.1f} times the speed of float32",
           xlabel="speed of int8, batch 64 (float32 in the same runtime = 1)", xlim=(0, 1.25 * max(every)))  # fmt: skip
    ax.set_ylim(len(speeds) - 0.5, -0.5)
    ax.grid(False, axis="y")
    fig.legend(loc="outside lower center", ncols=len(processors))
    table = pd.DataFrame({name: {pair: ranged(found[name]) for pair, found in speeds.items() if name in found}
                          for name in processors}).fillna("–")  # fmt: skip
    show.figure(fig, alt=f"Speed of int8, float32 = 1, batch 64. {show.in_words(table, '{}')}", table=table)
    first = evidence.published(PAGE)[0]
    dense, small = (
        next(each for each in first.test_evaluations if each["name"].endswith(end)) for end in ("-dense", "-int8")
    )
    say(
        f"What it costs: in float32 the network names {dense['correct']:,} of {dense['count']:,} test images, as int8 "
        f"(u8 × s8) {small['correct']:,}. The file is {of_claim('int8-file')(first):.1f} times smaller."
    )
else:
    say("No published run has timed all pairs yet.")

# %% tags=["plumbing"]
SETTINGS = dict(
    smoke=dict(net="cifar_small", validation=100, calibration=16, sizes=(1, 16), draws=1, reviews=20, tested=100,
               batches=(1, 2), timings=20),
    quick=dict(net="cifar_small", validation=1_000, calibration=200, sizes=(1, 10, 100), draws=3, reviews=400,
               tested=4_000, batches=(1, 64), timings=20),
    full=dict(net="cifar_base", validation=2_500, calibration=200, sizes=(1, 3, 10, 30, 100, 300), draws=3,
              reviews=2_500, tested=10_000, batches=(1, 64), timings=25),
)  # fmt: skip
S = evidence.settings(PROFILE, **SETTINGS)
FULL = evidence.settings("full", **SETTINGS)
TWO_NETWORKS = (
    f"This run quantizes `{S.net}`, the published ones `{FULL.net}`: where they disagree, both may be right, each of its own "
    "network. "
    if S.net != FULL.net
    else ""
)


def first_published(key):
    """Return what the first published seed recorded; for numbers in which the seed has no part."""
    return next(iter(evidence.measurements(PAGE, key).values()), None)


# %% [markdown]
# ## The idea in one picture
#
# A layer multiplies numbers and adds the products. Replace each number by a small whole number, its **code**, and the
# multiplications and additions can be done in integers. Only what leaves the layer must be brought back to a scale.
# (Orange boxes hold floats, blue ones whole numbers; the green one turns sums into codes.)

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(8.4, 3.0))
ax.set(xlim=(0, 100), ylim=(0, 36))
ax.axis("off")


def box(x, y, text, colour, width=17):
    """Draw a box with a text, its left edge at x and its middle at y."""
    ax.add_patch(plt.Rectangle((x, y - 4.5), width, 9, facecolor=colour, alpha=0.2, edgecolor="none"))
    ax.add_patch(plt.Rectangle((x, y - 4.5), width, 9, facecolor="none", edgecolor=colour, linewidth=1.5))
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize=10)


box(0, 26, "input, float", show.COLOURS[1])
box(0, 8, "weights, float", show.COLOURS[1])
box(23, 26, "codes\n8 bits, 0…255", show.COLOURS[0])
box(23, 8, "codes\n8 bits, −127…127", show.COLOURS[0])
box(48, 17, "multiply, add:\n32-bit sums", show.COLOURS[0], width=20)
box(76, 17, "× one float,\nround: codes again", show.COLOURS[2], width=23)
for start, end in (
    ((17, 26), (23, 26)),
    ((17, 8), (23, 8)),
    ((40, 26), (48, 19)),
    ((40, 8), (48, 15)),
    ((68, 17), (76, 17)),
):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "linewidth": 1.4})
ax.text(20, 33.5, "each batch", ha="center", fontsize=10)
ax.text(20, 0.5, "once, before shipping", ha="center", fontsize=10)
ax.text(58, 25, "no floats in here", ha="center", fontsize=10)
show.figure(fig, alt="A layer in integers. The input becomes 8-bit codes from 0 to 255, for each batch; the weights become "
            "8-bit codes from -127 to 127, once. They are multiplied and added to 32-bit sums, with no floats. Each sum is "
            "multiplied by one float and rounded to an 8-bit code again, the next layer's input.")  # fmt: skip

# %% [markdown]
# The settings stand in a folded cell. Three matter: `calibration` training images show the network what to expect;
# from each of the sizes in `sizes`, a calibration set is drawn `draws` times; and `timings` counts the rounds of the
# clock. The published runs use a larger network, `cifar_base`, than the quick one. So where the two disagree, it need not
# be chance: what is true of one network may not be of the other.

# %%
training.seed_everything(SEED)
cifar = data.cifar10()
validation, calibration = cifar.validation.take(S.validation), cifar.train.take(S.calibration)
net = checkpoints.load(S.net)
TWO = validation.inputs[:2]
base = training.evaluate(net, validation).accuracy

# %% tags=["plumbing"]
say(f"`{S.net}` in floating point names {base:.1%} of {len(validation):,} validation photographs.")

# %% [markdown]
# ## 1. First, BatchNorm goes
#
# An integer processor knows multiplication, addition, and little else. BatchNorm in evaluation multiplies channel $c$ by
# a constant and adds another:
#
# $$y_c = \gamma_c\,\frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + \varepsilon}} + \beta_c .$$
#
# Here $\mu_c$ and $\sigma_c^2$ are the running mean and variance, $\gamma_c$ and $\beta_c$ the trained scale and shift,
# $\varepsilon$ a tiny constant. The convolution before it multiplies and adds anyway, so it can do that work, too.


# %%
def folded_weights(block):
    """Return the weight and the bias of a convolution that does its BatchNorm's work."""
    bn = block.bn
    factor = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
    return block.conv.weight.detach() * factor[:, None, None, None], bn.bias.detach() - bn.running_mean * factor


# %% [markdown]
# PyTorch has `fuse_conv_bn_eval`, and our helper folds whole networks (it refuses one in training mode, see notebook
# 09). The three must agree, and the network's answers must not change.

# %%
folded = quantization.fold_batchnorm(net, TWO)
differences = []
for name in ("stem", "conv2", "res2.block1"):
    block, helper = net.get_submodule(name), folded.get_submodule(name).conv
    theirs = fuse_conv_bn_eval(block.conv, block.bn)
    for mine, part in zip(folded_weights(block), ("weight", "bias"), strict=True):
        others = [getattr(other, part).detach() for other in (helper, theirs)]
        differences += [((mine - other).abs().max() / mine.abs().max()).item() for other in others]

# %% tags=["plumbing"]
run.claim("folding", "Largest relative difference between cell, helper and PyTorch in folded weights", max(differences),
          at_most=1e-4)  # fmt: skip
say(f"Folded, it names {training.evaluate(folded, validation).accuracy:.1%}.")

# %% [markdown]
# ## 2. One layer in integers
#
# A layer's input is a real number $s_x\,(q_x - z_x)$: scale, code, zero point. Its weight is $s_w\,q_w$, with one scale
# for each output channel. The sum of their products is
#
# $$\sum s_x\,(q_x - z_x)\; s_w\,q_w = s_x s_w \sum (q_x - z_x)\,q_w ,$$
#
# and the sum on the right has whole numbers only. The bias becomes a whole number $q_b$ of steps $s_x s_w$. At the end
# the result gets the output's scale $s_y$ and zero point $z_y$:
#
# $$q_y = \mathrm{clamp}\!\left(\mathrm{round}\!\left(\frac{s_x s_w}{s_y}\Big(\sum (q_x - z_x)\,q_w + q_b\Big)\right) + z_y,\; 0,\; 255\right).$$
#
# That is one multiplication by a float for each *output*, and one integer product for each of the many terms of the sum.


# %%
def integer_convolution(x, n):
    """Return the codes of a 3 × 3 convolution's output, and its sums, bias included; `n` holds scales and codes."""
    codes = ((x / n["x scale"]).round() + n["x zero"]).clamp(0, 255)
    sums = F.conv2d((codes - n["x zero"]).double(), n["weight"].double(), padding=1)  # exact: double counts up to 2^53
    sums = sums + n["bias"].double()[:, None, None]
    rescaled = (sums * (n["x scale"] * n["weight scale"] / n["y scale"])[:, None, None]).round()
    return (rescaled + n["y zero"]).clamp(0, 255), sums


# %% [markdown]
# Where do the scales come from? We let ONNX Runtime find them. `runtime.quantize_static` takes an ONNX file and training
# images, runs the images through it, notes the range of each tensor, and writes a file with integers. (It calls ONNX
# Runtime's own quantizer, and checks that no weight stayed behind in floating point.) Here the file is one block of the
# network, a convolution and its ReLU, and the images are what reaches that block.

# %%
block = folded.res1.block1
with torch.no_grad():
    reaching = folded.pool(folded.conv1(folded.stem(calibration.inputs[:50])))
before = runtime.export_onnx(block, reaching[:2], run.scratch("block.onnx"))
after = runtime.quantize_static(before, data.Split(reaching, calibration.labels[:50]), run.scratch("block.int8.onnx"))

# %% [markdown]
# What does the file hold, before and after?


# %%
def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


print("before:", ", ".join(operators(before)))
print("after:", ", ".join(operators(after)))
stored = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in onnx.load(after).graph.initializer}
pd.Series({name: f"{tuple(t.shape)} {t.dtype}" for name, t in stored.items()}, name="stored in the file").to_frame()

# %% [markdown]
# The file writes an integer convolution as a `Conv` between `DequantizeLinear` and `QuantizeLinear`; the runtime makes
# one operator of them when it opens the file. Input and output have codes without a sign (uint8), the weights with one
# (int8), the bias 32 bits. **Predict**: on how many of the output's codes will our function and the runtime differ? And
# where did the ReLU go?

# %% tags=["plumbing"]
weight = next(name for name in stored if name.endswith("weight_quantized")).removesuffix("_quantized")
numbers = {
    "x scale": stored["input_scale"], "x zero": stored["input_zero_point"].float(),
    "weight": stored[f"{weight}_quantized"], "weight scale": stored[f"{weight}_scale"],
    "bias": stored[f"{weight.replace('weight', 'bias')}_quantized"],
    "y scale": stored["logits_scale"], "y zero": stored["logits_zero_point"].float(),
}  # fmt: skip

# %%
mine, sums = integer_convolution(reaching, numbers)  # `numbers`: scales, zero points and codes from the file
theirs = torch.tensor(runtime.run(runtime.session(after), reaching.numpy())) / numbers["y scale"] + numbers["y zero"]
differing = (mine - theirs.round()).abs()

# %% tags=["plumbing"]
run.claim("integer-layer", "Fraction of output codes on which the cell and ONNX Runtime differ", (differing > 0).float().mean(),
          at_most=1e-3)  # fmt: skip
say(
    f"{int((differing > 0).sum())} of {differing.numel():,} codes differ"
    + (
        f", by at most {differing.max():.0f}: sums that fall between two codes, multiplied in another order. "
        if differing.any()
        else ". "
    )
    + (
        "The ReLU is gone from the file. The output's zero point is 0, so a negative number has no code and is cut off: "
        "saturation *is* the ReLU."
        if "Relu" in operators(before) and "Relu" not in operators(after) and numbers["y zero"] == 0
        else ""
    )
)

# %% [markdown]
# ## 3. The whole network, after training
#
# Nothing is trained from here on. We export the folded network, hand it to the quantizer with `calibration` images, and
# open the file that comes back. `Answers` lets `training.evaluate` read anything that maps images to logits.
#
# **Predict** three numbers: the points lost, how many times smaller the file gets, and how much faster it will be at
# batch 64. (The third is measured in section 6.)


# %%
class Answers(nn.Module):
    """Anything that maps a batch to logits, as a module: an exported graph, an ONNX file."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


def in_runtime(path):
    """Open an ONNX file as a module."""
    return runtime.as_module(runtime.session(path, threads=torch.get_num_threads()))


# %%
graph = runtime.export_onnx(folded, TWO, run.scratch("float.onnx"))
int8 = runtime.quantize_static(graph, calibration, run.scratch("int8.onnx"))
static = training.evaluate(in_runtime(int8), validation).accuracy
ratio = graph.stat().st_size / int8.stat().st_size
lost = base - static


# %% tags=["plumbing"]
def in_images(lost, of, what="images"):
    """Say which fraction of the answers was lost, or gained if it is negative: in images and in points."""
    count = round(lost * of)
    if not count:
        return f"none of {of:,} {what} lost on balance"
    return f"{abs(count):,} of {of:,} {what} {'lost' if count > 0 else 'gained'} ({100 * abs(lost):.2f} points)"


def hits(model):
    """Which validation images a model names: 1 or 0 for each."""
    return (training.predict(model, validation.inputs).argmax(1) == validation.labels).double()


def changed(before, after):
    """Count the images that became wrong, and those that became right."""
    return int((before > after).sum()), int((before < after).sum())


def points_lost(wrong, better, of):
    """The 95 % interval of the points lost, paired by image, from how many became wrong and how many right."""
    values = [100.0] * wrong + [-100.0] * better + [0.0] * (of - wrong - better)
    low, high = statistics.paired_interval(values, [0.0] * of)
    return f"{low:+.2f} to {high:+.2f}"


in_floats, in_int8 = hits(net), hits(in_runtime(int8))
wrong, better = changed(in_floats, in_int8)
alone = statistics.image_interval(static, S.validation)
run.record("static_changed", {"wrong": wrong, "right": better})
run.record("static", {"float32": base, "int8": static, "times_smaller": ratio})
run.claim("int8-static", "Validation accuracy lost by int8 in ONNX Runtime", lost, at_most=0.015)
run.claim("int8-file", "Times smaller than the float32 file", ratio, at_least=3.8 if S.net == "cifar_base" else 3.2)
say(
    f"Without a minute of training: {in_images(lost, S.validation)}, and a file {ratio:.2f} times smaller. Not 4 times: "
    f"scales were added, biases keep four bytes, and the graph itself grows.\n\nThe count is a balance: {wrong} became wrong "
    f"and {better} became right. Both networks named the *same* photographs, so the interval is a paired one, over what "
    f"changed: {points_lost(wrong, better, S.validation)} points lost (95 %). The interval of int8's accuracy alone, "
    f"{100 * alone.low:.1f} to {100 * alone.high:.1f} %, answers another question: how it would do on other photographs."
)
if (wide := first_published("static")) is not None:
    say(
        f"Published, `{FULL.net}`: {in_images(wide['float32'] - wide['int8'], FULL.validation)}. The seeds have no part in it: "
        "they quantize one and the same network. Section 8 asks the test images."
    )

# %% [markdown]
# The trap of a nominal 4: a library can *pretend* to quantize and store floats all the same. So look into the file. Which
# types take its bytes?


# %%
def bytes_by_type(path):
    """Bytes that the constants of an ONNX file take, by their type."""
    found = Counter()
    for tensor in onnx.load(path).graph.initializer:
        found[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += tensor.ByteSize()
    return found


pd.DataFrame({"float32 file": bytes_by_type(graph), "int8 file": bytes_by_type(int8)}).fillna(0).map("{:,.0f}".format)

# %% [markdown]
# ## 4. Calibration: how many images, and which?
#
# Weights can be measured at leisure; the ranges of activations depend on the images that went by. **Predict** how many
# it takes: one, ten, a hundred? And what happens if they are the wrong ones? (`hits`, from a folded cell, says which
# photographs a network names.)


# %%
def calibrated(images, **options):
    """Which validation images (1 or 0) the int8 network names that was calibrated with `images`."""
    split = data.Split(images, torch.zeros(len(images), dtype=torch.long))
    return hits(in_runtime(runtime.quantize_static(graph, split, run.scratch("try.onnx"), **options)))


def drawn(n):
    """A calibration set of n training images, drawn anew."""
    return cifar.train.inputs[torch.randperm(len(cifar.train), generator=generator)[:n]]


# %%
generator = torch.Generator().manual_seed(SEED)
by_size = pd.DataFrame({n: [calibrated(drawn(n)).mean().item() for _ in range(S.draws)] for n in S.sizes})

# %% tags=["plumbing"]
run.record("by_size", {str(n): values for n, values in by_size.to_dict("list").items()})
lost_by_size = (100 * (base - by_size)).round(2)
spread = f"; line: mean, band: all {S.draws} sets" if S.draws > 1 else ""
fig = show.line_with_band(
    S.sizes,
    {"points lost": lost_by_size.to_numpy()},
    title=f"{S.net} in int8, calibrated with few images and with many",
    xlabel=f"images in the calibration set (log scale{spread})",
    ylabel="points lost (validation)",
)
fig.axes[0].set_xscale("log")
fig.axes[0].set_xticks(S.sizes, [str(n) for n in S.sizes])
fig.axes[0].minorticks_off()
show.figure(
    fig, alt=f"Points lost against the number of images. {show.in_words(lost_by_size.T, '{:.2f}')}", table=lost_by_size
)

# %% tags=["plumbing"]
wide, of_sizes = first_published("static"), evidence.measurements(PAGE, "by_size")
worst_of = {
    int(n): max(100 * (wide["float32"] - value) for sizes in of_sizes.values() for value in sizes[n])
    for n in next(iter(of_sizes.values()), {})
}
if worst_of:
    say(
        f"What the worst set of each size cost in the published runs (`{FULL.net}`, {FULL.draws} sets of each size and "
        f"seed), in images of {FULL.validation:,}: "
        + ", ".join(
            f"{n} image{'s' if n > 1 else ''} {FULL.validation * cost / 100:.0f}" for n, cost in worst_of.items()
        )
        + ". "
        + ("A single photograph is a gamble." if worst_of[1] > 3 * max(worst_of[n] for n in worst_of if n > 1) else "")
    )

# %% [markdown]
# Each photograph brings many thousands of activations, and a layer's range is the same for all of them; so a handful of
# photographs goes far, if they are like those to come. Now sets that are not: one class only, photographs nobody
# standardized (pixels from 0 to 1), photographs with four times the contrast, noise, one grey image. And the two rules
# by which ONNX Runtime makes a range of what it saw: all of it, or all but one number in 100,000. (It has a third,
# *entropy*; with the number of bins that its function asks for, that one tries a single range, the whole one.)

# %%
good = calibration.inputs[: max(S.sizes[-1], 16)]
mean, std = (torch.tensor(values)[:, None, None] for values in (data.CIFAR10_MEAN, data.CIFAR10_STD))
frogs = cifar.train.inputs[cifar.train.labels == data.CIFAR10_CLASSES.index("frog")][: len(good)]
SETS = {
    "training images": good,
    "frogs only": frogs,
    "not standardized": good * std + mean,
    "four times the contrast": 4 * good,
    "noise": torch.randn(good.shape, generator=generator),
    "one grey image": torch.zeros_like(good[:1]),
}
of_set = {name: calibrated(images) for name, images in SETS.items()}
of_rule = {method: calibrated(good[:100], method=method) for method in runtime.CALIBRATIONS}

# %% tags=["plumbing"]
by_set, by_rule = ({name: each.mean().item() for name, each in found.items()} for found in (of_set, of_rule))
moves = {name: changed(of_set["training images"], each) for name, each in of_set.items() if name != "training images"}
run.record("by_set_changed", moves)
run.record("by_set", by_set)
run.record("by_rule", by_rule)
points = {name: 100 * (base - value) for name, value in by_set.items()}
worst = max(points, key=points.get)
fig = show.bars(
    points,
    title=f"{S.net} in int8: what each calibration set costs",
    xlabel="points lost (validation)",
    label="{:.2f}",
)
show.figure(
    fig,
    alt=f"Points lost by calibration set. {show.in_words(pd.DataFrame({'points lost': points}), '{:.2f}')}",
    table=pd.DataFrame({"points lost": points}),
)
run.claim("a-bad-set", "Points that the worst calibration set costs more than training images do",
          points[worst] - points["training images"], at_least=20)  # fmt: skip

# %% [markdown]
# Ranges that are too long waste levels: four times too long costs two of the eight bits. Ranges that are too short cut
# off what the network needs, and that is far worse. A small bar may be nothing. Each set against training images, image by
# image, in this run:

# %% tags=["plumbing"]
pd.DataFrame({
    name: {"became wrong": wrong, "became right": better, "points lost, 95 %, paired": points_lost(wrong, better, S.validation)}
    for name, (wrong, better) in moves.items()
}).T  # fmt: skip

# %% [markdown]
# An interval that holds 0 decides nothing. And what the published runs say:

# %% tags=["plumbing"]
of_sets = evidence.measurements(PAGE, "by_set")
fixed = ("frogs only", "four times the contrast", "not standardized", "one grey image")
if of_sets:
    one, kept = next(iter(of_sets.values())), first_published("by_set_changed")
    say(
        f"Against training images, published (`{FULL.net}`, one network):\n"
        + "\n".join(
            f"- {name}: {in_images(one['training images'] - one[name], FULL.validation)}"
            + (f"; paired, {points_lost(*kept[name], FULL.validation)} points" if kept else "")
            for name in fixed
        )
        + ("" if kept else "\n\nThese runs kept the counts, not the single answers, so there is no paired interval. A handful "
           "of images on balance decides nothing; hundreds do.")
    )  # fmt: skip
_ = evidence.conclude(
    evidence.Comparison("noise, against training images (the noise is drawn anew with each seed)",
                        points["training images"] - points["noise"],
                        tuple(100 * (found["noise"] - found["training images"]) for found in of_sets.values()))
)  # fmt: skip
rules = changed(*of_rule.values())
say(
    f"{TWO_NETWORKS}\n\nBy rule, in this run: "
    + ", ".join(f"with {method} {in_images(base - value, S.validation)}" for method, value in by_rule.items())
    + f". From {' to '.join(of_rule)}, {rules[0]} became wrong and {rules[1]} right: paired, "
    f"{points_lost(*rules, S.validation)} points lost (95 %)"
    + (
        "; published: "
        + ", ".join(
            f"{k} {in_images(wide['float32'] - v, FULL.validation)}" for k, v in first_published("by_rule").items()
        )
        if wide
        else ""
    )
    + "."
)

# %% [markdown]
# One set is forbidden, however good it is. Test images would make the test easier than the world. The helper refuses:

# %%
try:
    runtime.quantize_static(graph, cifar.test.take(10), run.scratch("no.onnx"))
except ValueError as error:
    print(f"ValueError: {error}")
else:
    raise AssertionError("not refused")

# %% [markdown]
# ## 5. The same in PyTorch: PT2E
#
# torchao does it in four steps, called **PT2E** (for PyTorch 2 export). *Export* turns the module into a graph of
# PyTorch's basic operators. *Prepare* folds BatchNorm and puts an observer at each edge that is to be quantized; a
# *quantizer* knows which edges a kind of processor wants, here an x86 CPU's. Then *calibrate*: run images. *Convert*
# replaces observers by pairs of quantize and dequantize, and stores weights in int8.


# %%
def exported(model):
    """Return the model's graph, for batches of two or more."""
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model, (TWO,), dynamic_shapes=({0: batch},)).module()


@torch.no_grad()
def in_pt2e(model, reduce_range=False):
    """Return the model's graph in int8, as PT2E describes it; activations of seven bits with `reduce_range`."""
    config = x86_inductor_quantizer.get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    prepared = prepare_pt2e(exported(model), x86_inductor_quantizer.X86InductorQuantizer().set_global(config))
    for images in calibration.inputs.split(50):
        prepared(images)
    return convert_pt2e(prepared)


# %%
converted = in_pt2e(net)
in_graph = Answers(lambda inputs: converted(inputs))  # a graph has no eval(): its mode is part of it
torchs = training.evaluate(in_graph, validation).accuracy
runtimes = [training.predict(model, validation.inputs).argmax(1) for model in (in_runtime(int8), in_graph)]
same = (runtimes[0] == runtimes[1]).float().mean().item()

# %% tags=["plumbing"]
run.claim("int8-pt2e", "Validation accuracy lost by int8 in PT2E", base - torchs, at_most=0.015)
moved_by_graph = changed(in_floats, hits(in_graph))
say(
    f"PT2E: {in_images(base - torchs, S.validation)}; {moved_by_graph[0]} became wrong, {moved_by_graph[1]} right, "
    f"{points_lost(*moved_by_graph, S.validation)} points lost (95 %, paired). The two libraries give the same answer to {same:.1%} of the "
    "photographs; they round at different places."
)

# %% [markdown]
# And the bytes? **Predict**: what does the converted graph hold, compared with the network that it came from? We count
# all its tensors, and then only those that the graph reads.


# %%
def held(graph_module):
    """Bytes of all tensors that a graph holds, and of those that it reads."""
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    tensors = {**dict(graph_module.named_parameters()), **dict(graph_module.named_buffers())}
    return sum(t.nbytes for t in tensors.values()), sum(t.nbytes for name, t in tensors.items() if name in read)


everything, read = held(converted)

# %% tags=["plumbing"]
dense_bytes = sum(tensor.nbytes for tensor in net.state_dict().values())
run.record("pt2e", {"int8": torchs, "same_answers": same, "held": everything, "read": read, "dense": dense_bytes})
run.claim(
    "pt2e-integers",
    "Times smaller than in float32: the tensors that the converted graph reads",
    dense_bytes / read,
    at_least=3.2,
)
say(
    f"It holds {everything:,} bytes, the network held {dense_bytes:,}. "
    + ("That is *more*: the int8 weights came, and the float weights never left. " if everything > dense_bytes else "")
    + f"What the graph reads takes {read:,} bytes, {dense_bytes / read:.2f} times less. Save the graph's `state_dict`, "
    "and you save the leftovers, too. A quantized network's file is small once you have looked into it."
)

# %% [markdown]
# What it reads is small; it is not fast yet. Such a graph *describes* integer arithmetic, and run as it is, it rounds
# and computes in floats. **Lowering** turns the description into calls of integer kernels:
# `lower_pt2e_quantized_to_x86`, or the same passes inside `torch.compile`. They look for patterns, such as a
# convolution followed by a ReLU, and know the common ones. Try it on the first two blocks, a plain chain, and then on
# the whole network. (A processor without the instructions of section 6 needs activations of seven bits for it.)


# %%
def lowered(graph_module, images):
    """The same graph with x86's integer kernels, or None where the passes give up."""
    try:
        with torch.no_grad():
            return lower_pt2e_quantized_to_x86(graph_module, (images,))
    except AssertionError:
        return None


# %%
images = validation.inputs[: S.batches[-1]]
chain = nn.Sequential(net.stem, net.conv1)
capabilities = torch.cpu.get_capabilities()
VNNI = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "i8mm"))
description = in_pt2e(chain, reduce_range=not VNNI)
kernels = lowered(description, images)
whole_lowered = lowered(converted, images) is not None


# %% tags=["plumbing"]
def distance(kernels, description):
    """Largest difference of their outputs, relative to the largest output."""
    with torch.inference_mode():
        outputs = description(images)
        return ((kernels(images) - outputs).abs().max() / outputs.abs().max()).item()


gap = distance(kernels, description)
if VNNI:
    run.claim("lowered", "Largest difference between description and kernels, relative to the largest output", gap,
              at_most=0.02)  # fmt: skip
else:
    eight = in_pt2e(chain)
    wide = distance(lowered(eight, images), eight)
    run.record("lowered_without_vnni", {"eight_bits": wide, "seven_bits": gap})
    say(
        f"This processor lacks those instructions. With eight bits, kernels and description are {wide:.0%} of the largest "
        f"output apart, with seven {gap:.1%}, and nothing says so (torchao 0.18; its quantizer's docstring asks for "
        "`reduce_range`). Always compare the answers of the kernels with those of the description."
    )
run.record("lowered", {"whole_network": whole_lowered})
calls = {"float32": chain, "described": description, "lowered": kernels}
calls = {name: partial(call, images) for name, call in calls.items()}
with torch.inference_mode():
    again = partial(modules.copied(chain), images)
    chain_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
measure.verdict_table(chain_clock)

# %% tags=["plumbing"]
IN_WORDS = {
    "faster": "faster than float32",
    "slower": "slower than float32",
    "no measurable difference": "neither measurably faster nor slower than float32",
}
say(
    f"On this machine and this chain, the description is {IN_WORDS[chain_clock['described'].verdict]} "
    f"({chain_clock['described'].ratio:.2f} times its speed), and the lowered graph is "
    f"{IN_WORDS[chain_clock['lowered'].verdict]} ({chain_clock['lowered'].ratio:.2f} times). "
    + (
        "The whole network can be lowered, too."
        if whole_lowered
        else "The whole network cannot be lowered: an assertion inside the library fails. (In torchao 0.18 the reason "
        "is this: our residual blocks apply the ReLU *before* they add, and the pass that fuses a convolution with an "
        "addition expects no ReLU between them.) Such gaps are common, and they move with each version: before you "
        "choose a route, lower *your* network, untrained, and look."
    )
)

# %% [markdown]
# ## 6. The clock
#
# An x86 processor with **VNNI** has one instruction that multiplies four *unsigned* bytes by four *signed* bytes and
# adds the products to a 32-bit sum, where it would multiply one pair of floats. (On Arm, **i8mm** brings such an
# instruction.) So it promises a factor of four (units for whole matrices, as AMX, promise more), and the types matter:
# unsigned activations, signed weights. VNNI has no other pair; newer instructions do (AVX-VNNI-INT8, AMX), and then the
# runtime must have kernels for them.
#
# **Predict** the speed of three pairs, activations × weights, against float32 in the *same* runtime: u8 × s8, u8 × u8, s8
# × s8. Here u8 stands for codes from 0 to 255, s8 for codes from −128 to 127.

# %%
PAIRS = {"int8, u8 × s8": ("uint8", "int8"), "int8, u8 × u8": ("uint8", "uint8"), "int8, s8 × s8": ("int8", "int8")}
files = {"float32": graph}
for name, (inputs, weights) in PAIRS.items():
    path = run.scratch(f"{inputs}-{weights}.onnx")
    files[name] = runtime.quantize_static(graph, calibration, path, activations=inputs, weights=weights)
by_pair = {name: training.evaluate(in_runtime(path), validation).accuracy for name, path in files.items()}

# %% tags=["plumbing"]
run.record("by_pair", by_pair)
say(
    f"This processor {'has' if VNNI else 'does not have'} such an instruction. Accuracy: "
    + ", ".join(f"{name} {value:.1%}" for name, value in by_pair.items())
    + "."
)

# %% [markdown]
# Without that instruction there is a trap. A processor with AVX2 alone multiplies unsigned by signed bytes two at a time
# and adds each two products in **16 bits**. They end at 32,767, and 2 · 255 · 127 is 64,770. What does not fit is clipped,
# and nothing says so. ONNX Runtime has a switch for it, off unless you ask: `session.x64quantprecision` takes another
# kernel, exact on every processor (described in its guide to quantization, as of version 1.31). **Predict** two things for
# this machine: what the switch is worth in accuracy, and what it costs in time.


# %%
def with_switch(path, setting):
    """Open an int8 file on one thread with the switch off ("0") or on ("1")."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", setting)
    return onnxruntime.InferenceSession(path, options)


switched = {"off": with_switch(int8, "0"), "on": with_switch(int8, "1")}
off, on = (training.evaluate(runtime.as_module(session), validation).accuracy for session in switched.values())
images = validation.inputs[: S.batches[-1]].numpy()
calls = {name: partial(runtime.run, session, images) for name, session in switched.items()}
again = partial(runtime.run, with_switch(int8, "0"), images)
switch_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
measure.verdict_table(switch_clock)

# %% tags=["plumbing"]
run.record("switch", {"off": off, "on": on})
run.record("switch_speed", switch_clock["on"].ratio, timing=True)
say(
    f"Accuracy with the switch off: {off:.1%}; on: {on:.1%}. "
    + (
        "This processor has the instruction, so there is nothing to clip. "
        if VNNI
        else f"{100 * (on - off):.1f} points. "
    )
    + f"With it the network runs at {switch_clock['on'].ratio:.2f} times the speed. `runtime.session` turns it on where the "
    "instruction is missing, and nowhere else."
)

# %% [markdown]
# And against PyTorch as one writes it (*eager*), which is what many a reported speed-up is measured against; also with
# the channels of each pixel side by side in memory (*channels last*), which its convolutions often prefer. All variants
# are timed in turns, on one thread, and a second copy of the float32 session is the control (A/A, notebook 01).

# %%
sessions = {name: runtime.session(path, threads=1) for name, path in files.items()}
clock, control = {}, runtime.session(graph, threads=1)
for batch in S.batches:
    images = validation.inputs[:batch]
    calls = {name: partial(runtime.run, session, images.numpy()) for name, session in sessions.items()}
    calls["PyTorch eager"] = partial(net, images)
    calls["PyTorch eager, channels last"] = partial(net, modules.channels_last(images))
    again = partial(runtime.run, control, images.numpy())
    with torch.inference_mode():
        timings = measure.time_interleaved(calls, rounds=S.timings, warmup=2, threads=1, control=again)
    clock[batch] = measure.compare(timings)
pd.concat({f"batch {batch}": measure.verdict_table(verdicts) for batch, verdicts in clock.items()})

# %% tags=["plumbing"]
large, small = S.batches[-1], S.batches[0]
right, eager = clock[large]["int8, u8 × s8"], clock[large]["PyTorch eager"]
run.record("clock", {name: clock[large][name].ratio for name in PAIRS}, timing=True)
eager_time = measure.compare(timings, against="PyTorch eager")["int8, u8 × s8"]  # of the last batch, the large one
against_eager = eager_time.ratio
best_eager = max(eager.ratio, clock[large]["PyTorch eager, channels last"].ratio)
if VNNI and PROFILE == "full":
    run.claim("int8-speed", f"Speed of int8 against float32 in ONNX Runtime, batch {large}", right.ratio,
              at_least=1.8, timing=True, over_seeds=True, interval=right.cleared)  # fmt: skip
    run.claim("int8-against-eager", f"Speed of int8 against PyTorch eager, batch {large}", against_eager,
              at_least=4, timing=True, over_seeds=True, interval=eager_time.cleared)  # fmt: skip
elif VNNI:
    run.claim("int8-speed", f"Speed of int8 against float32 in ONNX Runtime, batch {large}", right.ratio,
              at_least=1.1, timing=True, interval=right.cleared)  # fmt: skip

# %% [markdown]
# Does "int8" mean "faster"? It depends on the pair, on the processor, and on what you compare with. Each number says how
# many times as fast, here and in the published runs. Those stand processor by processor: the mean of two processors is the
# speed of neither.


# %% tags=["plumbing"]
def side_of_one(found):
    """Say on which side of 1 the published ratios lie, {processor: ratios}."""
    sides = [{ratio > 1 for ratio in ratios} for ratios in found.values()]
    if len(set.union(*sides)) == 1:
        return f"{'above' if sides[0] == {True} else 'below'} 1 in every run"
    if all(len(side) == 1 for side in sides):
        return "**which side of 1 depends on the processor**"
    return "on both sides of 1 on the same processor: not to be told apart"


def speed_line(what, found, verdict):
    """A line: what each processor of the published runs measured, and what this run's clock says."""
    ran = [f"{ranged(ratios)} on {name} ({len(ratios)} run{'s' * (len(ratios) > 1)})" for name, ratios in found.items()]
    low, high = verdict.interval
    unclear = verdict.verdict == "no measurable difference" and not low <= 1 <= high
    said = verdict.verdict + ", since the control strays as far" * unclear
    return (
        f"- {what}: {', '.join(ran)}, {side_of_one(found)}" if found else f"- {what}: no published run has timed it"
    ) + f". This run: {verdict.ratio:.2f} ({low:.2f} to {high:.2f}, 99 %), {said}."


HERE = processor(system.machine()["cpu"])
on_file = [each.timings for each in evidence.published(PAGE)]
say(
    "\n".join([
        speed_line(f"u8 × s8 against float32 in ONNX Runtime, batch {large}", on_processors(of_claim("int8-speed")), right),
        speed_line(f"u8 × s8 against eager PyTorch, batch {large}", on_processors(of_claim("int8-against-eager")), eager_time),
        *(speed_line(f"{name.removeprefix('int8, ')} against float32 in ONNX Runtime, batch {large}",
                     on_processors(of_pair(name)), clock[large][name]) for name in list(PAIRS)[1:]),
    ])
    + f"\n\nThis run: {HERE}. {TWO_NETWORKS}"
    + ("" if all("clock" in each for each in on_file) else "Of the last two pairs, published runs kept the sum of all "
       "operators' times in one pass. That has no interval, so do not read much into a few per cent.")
)  # fmt: skip
say(
    f"In this run, u8 × s8 at batch {small} is {clock[small]['int8, u8 × s8'].ratio:.2f} times as fast as float32. Against "
    f"the faster of eager PyTorch's two orders of memory, batch {large}, it is {right.ratio / best_eager:.1f} times"
    + (
        f"; of that, a factor of {1 / best_eager:.1f} belongs to the runtime and the folded BatchNorm, not to the integers."
        if best_eager < 1
        else "."
    )
)

# %% [markdown]
# Where does the time go? ONNX Runtime can say how long each kind of operator took. `QLinearConv` is a convolution in
# integers, `Conv` one in floats; `QuantizeLinear` and `DequantizeLinear` are the fees at the borders between the two.

# %%
images = validation.inputs[:large].numpy()
spent = pd.DataFrame({name: runtime.operator_times(path, images) for name, path in files.items()})
spent = spent.loc[spent.max(axis=1).sort_values(ascending=False).index].fillna(0)
spent.round(2)

# %% tags=["plumbing"]
run.record("operator_ms", spent.reset_index(names="operator"), timing=True)
convolutions = spent[spent.index.str.contains("Conv")].sum()
rest, chosen = spent.sum() - convolutions, "int8, u8 × s8"
borders = spent[spent.index.isin(["QuantizeLinear", "DequantizeLinear"])].sum()
conv_ratio = convolutions["float32"] / convolutions[chosen]


def why(name):
    """Say where another pair of types spends its time."""
    pair, longer = name.removeprefix("int8, "), convolutions[name] / convolutions[chosen]
    left = spent[name].get("Conv", 0.0)
    if left:
        return (
            f"With {pair}, the runtime left {left:.2f} ms of convolutions in floats, and the borders take "
            f"{borders[name]:.2f} ms (with u8 × s8: {borders[chosen]:.2f})."
        )
    slow = ": the kernel for this pair is slow" if longer > 1.2 else ""
    return f"With {pair}, all convolutions are in integers; they take {longer:.1f} times as long as with u8 × s8{slow}."


say(
    f"In this run the convolutions alone are {conv_ratio:.1f} times as fast in integers"
    + ("; the instruction promises four. " if VNNI else ". ")
    + f"All other operators took {rest['float32']:.2f} ms and take {rest[chosen]:.2f}, which is "
    f"{rest[chosen] / spent[chosen].sum():.0%} of the integer network's time. "
    + " ".join(why(name) for name in PAIRS if name != chosen)
)

# %% [markdown]
# ## 7. Dynamic: for networks that mostly read weights
#
# A recurrent network applies one matrix again and again, to one vector at a time. It spends its time fetching weights;
# what it is given changes from text to text, and so does the range. **Dynamic quantization** stores the weights in
# int8, and finds the range of the activations while it runs, anew for each batch. There is no calibration. Here is a
# linear layer that does it:


# %%
def dynamic_linear(x, weight, bias):
    """A linear layer with int8 weights, whose input is measured and rounded on the spot."""
    lowest, highest = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (highest - lowest) / 255
    zero = -(lowest / scale).round()
    codes = ((x / scale).round() + zero).clamp(0, 255)
    weight_scale = weight.abs().max() / 127
    sums = (codes - zero).double() @ (weight / weight_scale).round().double().T
    return (sums * scale * weight_scale).float() + bias


# %% [markdown]
# ONNX Runtime's own function takes one line, after `quant_pre_process`, which computes whatever is constant in the graph.
# The network is LeNet-300-100, three linear layers on MNIST's digits.


# %%
def dynamic(path):
    """Write the same network with int8 weights; its activations are rounded while it runs."""
    ready, small = path.with_suffix(".ready.onnx"), path.with_suffix(".dynamic.onnx")
    quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    network = onnx.load(ready)
    del network.graph.value_info[:]  # noted shapes, which stop being true when the tool turns matrices around
    quantize_dynamic(network, str(small), weight_type=QuantType.QInt8)
    return small


# %%
linear, digits = checkpoints.load("lenet-300-100"), data.mnist().validation.take(S.validation)
linear_file = runtime.export_onnx(linear, digits.inputs[:2], run.scratch("linear.onnx"))
small_file = dynamic(linear_file)
with torch.no_grad():
    mine = digits.inputs[:64].flatten(1)
    for layer in (linear.fc1, linear.fc2, linear.fc3):
        mine = dynamic_linear(mine if layer is linear.fc1 else F.relu(mine), layer.weight, layer.bias)
whole = training.predict(in_runtime(small_file), digits.inputs[:64], batch_size=64)

# %% tags=["plumbing"]
run.claim(
    "dynamic-by-hand",
    "Largest difference between the cell and ONNX Runtime, relative to the largest logit",
    ((mine - whole).abs().max() / whole.abs().max()).item(),
    at_most=0.02,
)

# %% [markdown]
# One thing about dynamic quantization is easily overlooked. The range is that of the *batch*. **Predict**: does an image
# get the same logits alone and among others? (Float32 is the control.)


# %%
def moved_by_neighbours(path):
    """Return the largest change of a logit, relative to the largest, and how many answers changed."""
    among, alone = (training.predict(in_runtime(path), digits.inputs[:64], batch_size=size) for size in (64, 1))
    return ((alone - among).abs().max() / among.abs().max()).item(), int((alone.argmax(1) != among.argmax(1)).sum())


(moved, answers), (unmoved, _) = moved_by_neighbours(small_file), moved_by_neighbours(linear_file)

# %% tags=["plumbing"]
run.record("batch_matters", {"largest_change": moved, "in_float32": unmoved, "answers_changed": answers})
say(
    f"Among others, a logit changes by up to {moved:.2%} of the largest logit, and {answers} of 64 answers change. In "
    "float32 "
    + (f"it is {1e6 * unmoved:.2f} millionths, from adding in another order. " if unmoved else "none changes. ")
    + (
        "So what the network says of an image depends on the images beside it. Remember that when a test is not "
        "reproducible."
        if moved > 10 * unmoved
        else ""
    )
)

# %% [markdown]
# Now the LSTM that judges film reviews. Its own `forward` cuts each batch to its longest text, which a graph cannot
# express; so we export a twin that always reads all 250 tokens. (Padding changes nothing.) PyTorch's new exporter, which
# `export_onnx` uses, traces all 250 steps one by one and takes minutes; the old one knows what an LSTM is. So this file
# is exported the old way, and checked here.


# %%
class ReadsAll(nn.Module):
    """The text classifier without its shortcut: `max_tokens` tokens are read, padding too."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, tokens):
        states = self.net.encoder(self.net.embedding(tokens))
        states = states.masked_fill((tokens == PAD)[:, :, None], -1e9)
        return self.net.fc(states.amax(1))


# %% tags=["plumbing"]
lstm, words = checkpoints.load("imdb_lstm"), checkpoints.words("imdb_lstm")
texts = data.imdb().validation.take(S.reviews)
tokens = encode([tokenize(review)[: lstm.max_tokens] for review in texts.inputs], words)
reviews = data.Split(torch.from_numpy(tokens), torch.tensor(texts.labels))
lstm_file = run.scratch("lstm.onnx")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # that it is the old exporter
    warnings.filterwarnings("ignore", "Exporting a model to ONNX with a batch_size")  # the claim below uses another
    torch.onnx.export(ReadsAll(lstm), (reviews.inputs[:2],), str(lstm_file), dynamo=False, input_names=["input"],
                      output_names=["logits"], dynamic_axes={"input": {0: "batch"}})  # fmt: skip
few_reviews = reviews.inputs[:20]
gap = (training.predict(in_runtime(lstm_file), few_reviews) - training.predict(lstm, few_reviews)).abs().max()
run.claim("lstm-exported", "Largest difference between a logit of the exported LSTM and PyTorch's", gap, at_most=1e-3)

# %% [markdown]
# **Predict** for both networks: times smaller, accuracy lost, times faster at batch 1.

# %%
small_lstm = dynamic(lstm_file)
pairs = {"LeNet-300-100": (linear_file, small_file, digits), "LSTM": (lstm_file, small_lstm, reviews)}
dynamic_clock = {}
for name, (full_file, small_one, split) in pairs.items():
    one = split.inputs[:1].numpy()
    calls = {
        "float32": partial(runtime.run, runtime.session(full_file), one),
        "dynamic": partial(runtime.run, runtime.session(small_one), one),
    }
    again = partial(runtime.run, runtime.session(full_file), one)
    timings = measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again)
    dynamic_clock[name] = measure.compare(timings)["dynamic"]

# %% tags=["plumbing"]
rows = {}
for name, (full_file, small_one, split) in pairs.items():
    before, after = (
        training.evaluate(in_runtime(path), split, batch_size=50).accuracy for path in (full_file, small_one)
    )
    rows[name] = {"times smaller": full_file.stat().st_size / small_one.stat().st_size, "accuracy, dynamic": after,
                  "points lost": 100 * (before - after), "speed (float32 = 1)": dynamic_clock[name].ratio,
                  "verdict": dynamic_clock[name].verdict}  # fmt: skip
run.record("dynamic", {name: {k: row[k] for k in ("times smaller", "points lost")} for name, row in rows.items()})
lost_by = {
    name: in_images(row["points lost"] / 100, len(pairs[name][2]), "reviews" if name == "LSTM" else "digits")
    for name, row in rows.items()
}
pd.DataFrame.from_dict(rows, orient="index").round(3).assign(**{"points lost": lost_by}).rename(
    columns={"points lost": "answers"}
)

# %% tags=["plumbing"]
run.claim("dynamic-lost", "Accuracy lost by dynamic quantization, the worse of the two networks",
          max(row["points lost"] for row in rows.values()) / 100, at_most=0.02)  # fmt: skip
run.claim("dynamic-file", "Times smaller, the worse of the two networks",
          min(row["times smaller"] for row in rows.values()), at_least=3)  # fmt: skip
linear_speed, lstm_speed = dynamic_clock["LeNet-300-100"], dynamic_clock["LSTM"]
if PROFILE == "full":
    run.claim("dynamic-speed-linear", "Speed of LeNet-300-100 in dynamic int8 against float32, batch 1", linear_speed.ratio,
              at_least=1.1, timing=True, over_seeds=True, interval=linear_speed.cleared)  # fmt: skip
    run.claim("dynamic-speed-lstm", "Speed of the LSTM in dynamic int8 against float32, batch 1: it does no harm",
              lstm_speed.ratio, at_least=0.8, timing=True, over_seeds=True, interval=lstm_speed.cleared)  # fmt: skip

# %% [markdown]
# The files first. Which bytes shrank?

# %% tags=["plumbing"]
kinds = pd.DataFrame({"float32 file": bytes_by_type(lstm_file), "dynamic file": bytes_by_type(small_lstm)}).fillna(0)
kinds.map("{:,.0f}".format)

# %% tags=["plumbing"]
say(
    f"The LSTM's file shrinks {rows['LSTM']['times smaller']:.1f} times, and the reason is not the LSTM: its matrix of "
    f"word vectors is {lstm.embedding.weight.nbytes / lstm_file.stat().st_size:.0%} of the file. ONNX Runtime rounds that "
    'table, too; many a library leaves it alone, and then a "quantized" text classifier keeps nearly all its bytes.'
)

# %% [markdown]
# Then the clock. It is often said that dynamic quantization pays for large layers only, because to measure and to round
# the input costs time as well. Both of our networks are small. What does the clock say, how many times as fast as float32?

# %% tags=["plumbing"]
say(
    speed_line("LeNet-300-100, dynamic, batch 1", on_processors(of_claim("dynamic-speed-linear")), linear_speed)
    + "\n"
    + speed_line("LSTM, dynamic, batch 1", on_processors(of_claim("dynamic-speed-lstm")), lstm_speed)
    + f"\n\nThis run: {HERE}, one thread. Another processor may say otherwise."
)

# %% [markdown]
# ## 8. The test images, once
#
# In floating point, as int8 in ONNX Runtime, and as int8 in PT2E. All choices above were made on validation images.

# %%
test = cifar.test.take(S.tested)
tests = {
    f"{S.net}-dense": run.test(f"{S.net}-dense", net, test),
    f"{S.net}-int8": run.test(f"{S.net}-int8", in_runtime(int8), test),
    f"{S.net}-int8-pt2e": run.test(f"{S.net}-int8-pt2e", in_graph, test),
}
lost_on_test = {name: tests[f"{S.net}-dense"].accuracy - result.accuracy for name, result in tests.items()}

# %% tags=["plumbing"]
if PROFILE == "full":
    run.claim("test-int8", "Test accuracy lost by int8 in ONNX Runtime", lost_on_test[f"{S.net}-int8"],
              at_most=0.003, over_seeds=True)  # fmt: skip
    run.claim("test-pt2e", "Test accuracy lost by int8 in PT2E", lost_on_test[f"{S.net}-int8-pt2e"],
              at_most=0.003, over_seeds=True)  # fmt: skip
else:
    run.claim("quick-int8", "Test accuracy lost by int8, the worse of the two libraries",
              max(lost_on_test[f"{S.net}-int8"], lost_on_test[f"{S.net}-int8-pt2e"]), at_most=0.01)  # fmt: skip
tested = pd.DataFrame({
    "test accuracy": {n: f"{t.accuracy:.2%}" for n, t in tests.items()},
    "this run": {n: in_images(v, S.tested) for n, v in lost_on_test.items() if v or not n.endswith("-dense")},
    f"published ({FULL.net})": {
        f"{S.net}-{arm}": in_images(values[0], FULL.tested)
        for arm, values in (("int8", evidence.claimed(PAGE, "test-int8")), ("int8-pt2e", evidence.claimed(PAGE, "test-pt2e")))
        if values
    },
})  # fmt: skip
tested.fillna("")

# %% [markdown]
# The published column is one network's, on all test images; the seed has no part in it. The counts are balances, what became
# wrong less what became right, and the log of test answers keeps no more than that: for a paired interval, see the
# validation images of sections 3 to 5. A handful of images on balance is no difference that one could rely on.
#
# ## 9. Exercises
#
# **10.1 · Warm-up: back to a number.** A code $q$ stands for the real number $s\,(q - z)$. Write it for a whole tensor of
# codes. They arrive as bytes (`torch.uint8`), as in a file: mind what bytes do below 0.


# %%
def value_of(codes, scale, zero):
    """Return the float that each code stands for; codes: a tensor of uint8, scale: a float, zero: an int."""
    ### BEGIN SOLUTION
    return scale * (codes.float() - zero)
    ### END SOLUTION


exercises.check("10.1", value_of)

# %% [markdown]
# **10.2 · No floats at all.** The factor $M = s_x s_w / s_y$ is a float, but a processor without floating point can
# multiply by it, too: by a whole number $m$ of 31 bits and a shift by $n$ bits to the right, $M \approx m\,2^{-n}$ with
# $2^{30} \le m < 2^{31}$. Write `requantize`: it takes sums (a tensor of int64), a Python float $M$ below 1 and a zero
# point, and returns codes from 0 to 255 as uint8. Round to the nearest: add half of $2^n$ before you shift. Between the
# input and the output, whole numbers only.


# %%
def requantize(sums, factor, zero):
    """Return clamp(round(sums * factor) + zero, 0, 255), computed with whole numbers."""
    ### BEGIN SOLUTION
    shift = 31
    while factor * 2**shift < 2**30:
        shift += 1
    multiplier = round(factor * 2**shift)
    rounded = (sums * multiplier + 2 ** (shift - 1)) >> shift
    return (rounded + zero).clamp(0, 255).to(torch.uint8)
    ### END SOLUTION


exercises.check("10.2", requantize)

# %% [markdown]
# **10.3 · Feed it bytes.** A camera delivers bytes $p$ from 0 to 255, and our networks want $(p/255 - \mu)/\sigma$.
# Somebody has to compute that, in floats, for each pixel. Fold it into the first layer instead, as section 1 folded
# BatchNorm: return weight and bias of a linear layer that takes the bytes as they are and gives the same outputs. (The
# bytes then need no quantizer: they *are* codes, with scale 1. In a convolution with padding it is not exact at the
# border. Why?)


# %%
def for_bytes(weight, bias, mean, std):
    """Return the weight (outputs, inputs) and the bias of the layer that takes bytes; mean and std are numbers."""
    ### BEGIN SOLUTION
    return weight / (255 * std), bias - (mean / std) * weight.sum(1)
    ### END SOLUTION


exercises.check("10.3", for_bytes)

# %% [markdown]
# **10.4 · Predict the sum.** In section 2, each output of `res1.block1` is a sum of `terms` products and the bias
# $q_b$. A product is a code minus the zero point (at most 255) times a weight's code (at most 127 in magnitude). How
# large, in magnitude, is the largest sum that occurs in the photographs of section 2? Within a factor of 4 is fine.
# (Then ask yourself whether 16 bits would do.)


# %%
def largest_sum(terms):
    """Return the predicted magnitude of the largest sum of `terms` products."""
    ### BEGIN SOLUTION
    return terms * 255 * 127 / 24  # few codes are near their ends, and the signs differ
    ### END SOLUTION


terms = numbers["weight"][0].numel()
exercises.check("10.4", largest_sum, terms=terms, measured=float(sums.abs().max()))

# %% [markdown]
# **10.5 · Open: your own calibration set.** You ship this network to cameras that look at a road by night. You may keep
# ten photographs for calibration. Which ten? Build the set from `cifar.train` (darken it, choose classes, mix), take the
# mean of what `calibrated` says of it, and draw it five times. Is the difference to `drawn(10)` larger than the spread of either? No
# check can mark this: write down what you would tell a colleague, and which measurement you would still need.
#
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **int8 after training**, on test: with ONNX Runtime {in_images(lost_on_test[f'{S.net}-int8'], S.tested)}, with PT2E "
    f"{in_images(lost_on_test[f'{S.net}-int8-pt2e'], S.tested)}; the file {ratio:.2f} times smaller.\n"
    f"- **Calibration**: the worst set, {worst}, costs {points[worst]:.1f} points.\n"
    f"- **Speed** at batch {large}: {right.ratio:.2f} times float32 in the same runtime, {against_eager:.1f} times eager.\n"
    f"- **Dynamic**: LSTM {rows['LSTM']['times smaller']:.1f} times smaller, {lost_by['LSTM']}; "
    f"LeNet-300-100 {rows['LeNet-300-100']['times smaller']:.1f} times smaller, {lost_by['LeNet-300-100']}."
)

# %% tags=["plumbing"]
example = cifar.train.inputs[:1]
macs, dense_name = measure.count_macs(net, example), f"{S.net}-dense"
counted = dict(weights=measure.count_weights(net), macs=macs)
write_dense(net, run.scratch("dense.pack"))
latency = [
    record
    for batch, verdicts in clock.items()
    for record in measure.latency_records({"u8 × s8": verdicts["int8, u8 × s8"]}, runtime="onnxruntime", batch=batch)
]
run.model(dense_name, task="cifar10", method="dense", accuracy=tests[dense_name].accuracy, file=run.scratch("dense.pack"),
          nonzero=measure.count_nonzero(net), **counted)  # fmt: skip
run.model(f"{S.net}-int8", task="cifar10", method="8-bit weights and activations, ONNX Runtime", base=dense_name, file=int8,
          techniques=["fewer bits"], accuracy=tests[f"{S.net}-int8"].accuracy, nonzero=measure.count_nonzero(net), latency=latency, **counted)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - A layer in integers is the same sum: integer products, integer additions, one float for each output. A runtime and
#   seven lines of your own get the same codes. <!-- claims: integer-layer -->
# - BatchNorm in evaluation is a multiplication and an addition, and the convolution before it can do both. Fold it in
#   evaluation mode. <!-- claims: folding -->
# - int8 after training costs little on the test images, in either library. <!-- claims: test-int8, test-pt2e -->
# - Calibration images must fill the ranges that later images need. Sets that leave them too short, such as one grey image, ruin
#   the network.
#   <!-- claims: a-bad-set -->
# - Look into the file. A converted graph can be small in what it reads, and still carry the float weights along.
#   <!-- claims: pt2e-integers, int8-file -->
# - Compare with floats in the same runtime. On a processor with VNNI, unsigned activations × signed weights are faster
#   there; against eager PyTorch, part of the speed-up is the runtime. <!-- claims: int8-speed, int8-against-eager -->
# - Dynamic quantization needs no calibration, and shrinks linear layers, LSTMs and their word vectors at little cost in
#   accuracy. <!-- claims: dynamic-file, dynamic-lost -->
# - Its range is that of the batch, so an image's logits can depend on its neighbours. <!-- by construction -->
#
# ## What to read
#
# - Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko 2018, *Quantization and Training of Neural Networks for
#   Efficient Integer-Arithmetic-Only Inference*: section 2 is sections 1 and 2 here.
# - Krishnamoorthi 2018, *Quantizing Deep Convolutional Networks for Efficient Inference: A Whitepaper*.
# - Wu, Judd, Zhang, Isaev and Micikevicius 2020, *Integer Quantization for Deep Learning Inference: Principles and
#   Empirical Evaluation*: calibration.
#
# **Next**: notebook 11 goes down to four bits, finds the layer that hurts, and trains through the rounding.
