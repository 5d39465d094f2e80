# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [09_quantize_from_scratch]
# ---

# %% [markdown]
# # 10 · Quantize in practice: dynamic, static, QAT: is int8 really faster here?
#
# In notebook 09 the network only pretended: floats that happened to lie on marks. Now integers multiply integers. You
# compute a layer that way by hand, hand the network to two libraries that can do it for real, ONNX Runtime and torchao,
# and let the clock and the file say what it brought. Some of it disappoints, and you will see why.
#
# **You will be able to**
# - compute a convolution in integers, and get a runtime's numbers;
# - quantize a network after training, and choose the images by which it is calibrated;
# - tell static from dynamic quantization, and say which network wants which;
# - find the layer that hurts, and train through four bits without stumbling over BatchNorm;
# - choose the pair of integer types that your processor can multiply, and read old PyTorch quantization code.
#
# **Before this**: notebook 09 (scale, zero point, calibration), notebook 01 (latency with its null control).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import copy
import logging
import warnings
from collections import Counter
from functools import partial

# %%
for name in (
    "torchao",
    "torch.utils._pytree",
):  # kernels for GPUs do not load on a CPU, and torchao says so on each import
    logging.getLogger(name).setLevel(logging.ERROR)

# %% tags=["plumbing"]
import numpy as np
import onnx
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchao.quantization import pt2e
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationConfig, QuantizationSpec, x86_inductor_quantizer

from helpers import checkpoints, data, evidence, exercises, measure, quantization, runtime, show, training
from helpers.core import modules
from helpers.core.vocabulary import PAD, encode, tokenize
from helpers.evidence import say
from helpers.files import write_dense

# %% tags=["plumbing"]
run = evidence.start("10_quantize_after_training", profile=PROFILE, seed=SEED)
say(evidence.timetable("10_quantize_after_training"))

# %% [markdown]
# The settings. `calibration` training images show the networks what to expect; `draws` says how often a calibration set
# of each of the sizes in `sizes` is drawn. `train` and `epochs` are the budget of the retraining in section 9, `probe`
# the images by which single layers are judged, and `timings` the rounds of the clock.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(net="cifar_small", validation=100, calibration=16, sizes=(1, 16), draws=1, probe=20, train=64, epochs=1,
               batch=64, rate=0.002, reviews=20, tested=100, batches=(1, 2), timings=20),
    quick=dict(net="cifar_small", validation=1_000, calibration=200, sizes=(1, 10, 100), draws=3, probe=200, train=4_000,
               epochs=1, batch=64, rate=0.002, reviews=400, tested=4_000, batches=(1, 64), timings=20),
    full=dict(net="cifar_base", validation=2_500, calibration=200, sizes=(1, 3, 10, 30, 100, 300), draws=3, probe=500,
              train=45_000, epochs=3, batch=128, rate=0.002, reviews=2_500, tested=10_000, batches=(1, 64), timings=25),
)  # fmt: skip

# %% tags=["plumbing"]
show.style()

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
# $\varepsilon$ a tiny constant. The convolution before it multiplies anyway, so it can do that, too.


# %%
def folded_weights(block):
    """Return the weight and the bias of a convolution that does its BatchNorm's work."""
    bn = block.bn
    factor = bn.weight.detach() / (bn.running_var + bn.eps).sqrt()
    return block.conv.weight.detach() * factor[:, None, None, None], bn.bias.detach() - bn.running_mean * factor


# %% [markdown]
# PyTorch has `fuse_conv_bn_eval`, and our helper folds whole networks (and refuses one in training mode, see notebook
# 09). The three must agree, and the network must not notice.

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
# One multiplication for each *output*, one integer product for each of the many terms of the sum.


# %%
def integer_convolution(x, n):
    """Return the codes of a 3 × 3 convolution's output, and its sums, bias included; `n` holds scales and codes."""
    codes = ((x / n["x scale"]).round() + n["x zero"]).clamp(0, 255)
    sums = F.conv2d((codes - n["x zero"]).double(), n["weight"].double(), padding=1)  # exact: double counts up to 2^53
    sums = sums + n["bias"].double()[:, None, None]
    rescaled = (sums * (n["x scale"] * n["weight scale"] / n["y scale"])[:, None, None]).round()
    return (rescaled + n["y zero"]).clamp(0, 255), sums


# %% [markdown]
# Where do the numbers come from? We let ONNX Runtime find them. `runtime.quantize_static` takes an ONNX file and training
# images, runs the images through it, notes the range of each tensor, and writes a file with integers. (It calls ONNX
# Runtime's own quantizer, and checks that no weight stayed behind in floating point.) Here the file is one block of the
# network, a convolution and its ReLU, and the images are what reaches that block.

# %%
block = folded.res1.block1
with torch.no_grad():
    reaching = folded.pool(folded.conv1(folded.stem(calibration.inputs[:50])))
before = runtime.export_onnx(block, reaching[:2], run.scratch("block.onnx"))
after = runtime.quantize_static(before, data.Split(reaching, calibration.labels[:50]), run.scratch("block.int8.onnx"))


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
# (int8), the bias 32 bits. **Predict**: how many of the output's codes will differ between our function and the
# runtime? And where did the ReLU go?

# %%
weight = next(name for name in stored if name.endswith("weight_quantized")).removesuffix("_quantized")
numbers = {
    "x scale": stored["input_scale"], "x zero": stored["input_zero_point"].float(),
    "weight": stored[f"{weight}_quantized"], "weight scale": stored[f"{weight}_scale"],
    "bias": stored[f"{weight.replace('weight', 'bias')}_quantized"],
    "y scale": stored["logits_scale"], "y zero": stored["logits_zero_point"].float(),
}  # fmt: skip

# %%
mine, sums = integer_convolution(reaching, numbers)
theirs = torch.tensor(runtime.run(runtime.session(after), reaching.numpy())) / numbers["y scale"] + numbers["y zero"]
differing = (mine - theirs.round()).abs()

# %% tags=["plumbing"]
run.claim("integer-layer", "Fraction of output codes on which the cell and ONNX Runtime differ", (differing > 0).float().mean(),
          at_most=1e-3)  # fmt: skip

# %% tags=["plumbing"]
say(
    f"{int((differing > 0).sum())} of {differing.numel():,} codes differ"
    + (
        f", by at most {differing.max():.0f}: sums that fall between two codes, multiplied in another order. "
        if differing.any()
        else ". "
    )
    + (
        "The ReLU is gone from the file. The output's zero point is 0, so what would be negative has no code and is "
        "cut off: saturation *is* the ReLU."
        if "Relu" in operators(before) and "Relu" not in operators(after) and numbers["y zero"] == 0
        else ""
    )
)

# %% [markdown]
# ## 3. The whole network, after training
#
# **Predict** three numbers: the points lost, how many times smaller the file gets, and how much faster it will be at
# batch 64. (The third is measured in section 7.)


# %%
class Answers(nn.Module):
    """Anything that maps a batch to logits, as a module that `training.evaluate` takes: an exported graph, an old model."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


def in_runtime(path):
    """Open an ONNX file as a module."""
    return runtime.as_module(runtime.session(path, threads=torch.get_num_threads()))


# %%
def in_points(lost):
    """Say what was lost, in points, or gained, if it is negative."""
    if round(abs(lost), 2) == 0:
        return "nothing lost"
    return f"{abs(lost):.2f} points {'lost' if lost > 0 else 'gained'}"


# %%
graph = runtime.export_onnx(folded, TWO, run.scratch("float.onnx"))
int8 = runtime.quantize_static(graph, calibration, run.scratch("int8.onnx"))
static = training.evaluate(in_runtime(int8), validation).accuracy
ratio = graph.stat().st_size / int8.stat().st_size
lost = base - static

# %% tags=["plumbing"]
run.record("static", {"float32": base, "int8": static, "times_smaller": ratio})
run.claim("int8-static", "Validation accuracy lost by int8 in ONNX Runtime", lost, at_most=0.015)
run.claim("int8-file", "Times smaller than the float32 file", ratio, at_least=3.8 if S.net == "cifar_base" else 3.2)
say(
    f"Without a minute of training: {in_points(100 * lost)}, and a file {ratio:.2f} times smaller. Not 4 times: "
    "scales, biases of four bytes, and the graph itself do not shrink."
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
# Weights can be measured in peace; the ranges of activations depend on the images that went by. **Predict** how many it
# takes: one, ten, a hundred? And what happens if they are the wrong ones?


# %%
def calibrated(images, **options):
    """Validation accuracy of the int8 network that saw these images."""
    split = data.Split(images, torch.zeros(len(images), dtype=torch.long))
    return training.evaluate(
        in_runtime(runtime.quantize_static(graph, split, run.scratch("try.onnx"), **options)), validation
    ).accuracy


generator = torch.Generator().manual_seed(SEED)
by_size = pd.DataFrame(
    {
        n: [
            calibrated(cifar.train.inputs[torch.randperm(len(cifar.train), generator=generator)[:n]])
            for _ in range(S.draws)
        ]
        for n in S.sizes
    }
)

# %% tags=["plumbing"]
run.record("by_size", {str(n): values for n, values in by_size.to_dict("list").items()})

# %%
lost_by_size = (100 * (base - by_size)).round(2)
enough = next((n for n in S.sizes if lost_by_size[n].max() <= 0.5), None)
images_say = (
    f"with {enough} image{'s' if enough != 1 else ''}, at most half a point is lost"
    if enough
    else "at each size, some set loses more than half a point"
)

# %%
spread = f"; line: mean, band: all {S.draws} sets" if S.draws > 1 else ""

# %% tags=["plumbing"]
fig = show.line_with_band(
    S.sizes,
    {"points lost": lost_by_size.to_numpy()},
    title=images_say[0].upper() + images_say[1:],
    xlabel=f"images in the calibration set (log scale{spread})",
    ylabel="points lost (validation)",
)
fig.axes[0].set_xscale("log")
show.figure(
    fig, alt=f"Points lost against the number of images. {show.in_words(lost_by_size.T, '{:.2f}')}", table=lost_by_size
)

# %% [markdown]
# Each photograph brings many thousands of activations, and a layer's range is the same for all of them; so few
# photographs go far, if they are like those to come. Now sets that are not: one class only, photographs nobody
# standardized (pixels from 0 to 1), photographs with four times the contrast, noise, one grey image. And the two rules
# by which ONNX Runtime makes a range of what it saw: all of it, or all but one number in 100,000. (It has a third,
# *entropy*; with the number of bins that its function asks for, that one tries a single range, and it is the whole
# one.)

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
by_set = {name: calibrated(images) for name, images in SETS.items()}
by_rule = {method: calibrated(good[:100], method=method) for method in runtime.CALIBRATIONS}

# %% tags=["plumbing"]
run.record("by_set", by_set)
run.record("by_rule", by_rule)

# %%
points = {name: 100 * (base - value) for name, value in by_set.items()}
worst = max(points, key=points.get)

# %% tags=["plumbing"]
fig = show.bars(
    points,
    title=f"The worst set, {worst}, costs {points[worst]:.1f} points",
    xlabel="points lost (validation)",
    label="{:.2f}",
)
show.figure(
    fig,
    alt=f"Points lost by calibration set. {show.in_words(pd.DataFrame({'points lost': points}), '{:.2f}')}",
    table=pd.DataFrame({"points lost": points}),
)

# %% tags=["plumbing"]
run.claim("a-bad-set", "Points that the worst calibration set costs more than training images do",
          points[worst] - points["training images"], at_least=1)  # fmt: skip
say(
    "By rule: "
    + ", ".join(f"with {method} {in_points(100 * (base - value))}" for method, value in by_rule.items())
    + ". "
    + (
        "With 256 codes there are enough for the tail, so the rule hardly matters here."
        if max(abs(base - v) for v in by_rule.values()) <= 0.01
        else ""
    )
)

# %%
stretched, grey = points["four times the contrast"], points["one grey image"]

# %% tags=["plumbing"]
say(
    f"Frogs alone: {in_points(points['frogs only'])}"
    + ("; the ranges of one class are nearly those of all. " if points["frogs only"] <= 1 else ". ")
    + f"Ranges about four times too long: {in_points(stretched)}; those of one grey image: {in_points(grey)}. "
    + (
        "Too long costs about two of the eight bits; too short cuts off what the network needs."
        if grey > stretched
        else ""
    )
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
# PyTorch's basic operators. *Prepare* folds BatchNorm and puts an observer at each edge that shall be quantized; a
# *quantizer* knows which edges a kind of processor wants, here an x86 CPU's. Then *calibrate*: run images. *Convert*
# replaces observers by pairs of quantize and dequantize, and stores weights in int8.


# %%
def exported(model):
    """Return the model's graph, for batches of two or more."""
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model, (TWO,), dynamic_shapes=({0: batch},)).module()


def x86(config):
    return x86_inductor_quantizer.X86InductorQuantizer().set_global(config)


@torch.no_grad()
def in_pt2e(model):
    """Return the model's graph in int8, as PT2E describes it."""
    prepared = prepare_pt2e(exported(model), x86(x86_inductor_quantizer.get_default_x86_inductor_quantization_config()))
    for images in calibration.inputs.split(50):
        prepared(images)
    return convert_pt2e(prepared)


converted = in_pt2e(net)


# %%
def in_graph(graph_module):
    """An exported graph as a module: it has no eval() of its own, its mode is part of the graph."""
    return Answers(lambda inputs: graph_module(inputs))


torchs = training.evaluate(in_graph(converted), validation).accuracy
runtimes = [training.predict(model, validation.inputs).argmax(1) for model in (in_runtime(int8), in_graph(converted))]
same = (runtimes[0] == runtimes[1]).float().mean().item()

# %% tags=["plumbing"]
run.claim("int8-pt2e", "Validation accuracy lost by int8 in PT2E", base - torchs, at_most=0.015)
say(
    f"PT2E: {in_points(100 * (base - torchs))}. The two libraries give the same answer to {same:.1%} of the "
    "photographs; they round at other places."
)

# %% [markdown]
# And the bytes? **Predict**: what does the converted graph hold, compared with the network that it came from?


# %%
def held(graph_module):
    """Bytes of all tensors that a graph holds, and of those that it reads."""
    read = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    tensors = {**dict(graph_module.named_parameters()), **dict(graph_module.named_buffers())}
    return sum(t.nbytes for t in tensors.values()), sum(t.nbytes for name, t in tensors.items() if name in read)


# %%
everything, read = held(converted)
dense_bytes = sum(tensor.nbytes for tensor in net.state_dict().values())

# %% tags=["plumbing"]
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
    "and you save the leftovers, too: a file of a quantized network is small when you have looked."
)

# %% [markdown]
# What it reads is small; it is not fast yet: such a graph *describes* integer arithmetic, and run as it is, it rounds
# and computes in floats. **Lowering** turns the description into calls of integer kernels:
# `lower_pt2e_quantized_to_x86`, or the same passes inside `torch.compile`. They look for patterns, such as a
# convolution followed by a ReLU, and know the common ones. Try it on the first two blocks, a plain chain, and then on
# the whole network.


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
description = in_pt2e(chain)
kernels = lowered(description, images)
whole_lowered = lowered(converted, images) is not None
with torch.inference_mode():
    outputs = description(images)
    gap = ((kernels(images) - outputs).abs().max() / outputs.abs().max()).item()

# %% tags=["plumbing"]
run.claim("lowered", "Largest difference between description and kernels, relative to the largest output", gap,
          at_most=0.02)  # fmt: skip
run.record("lowered", {"whole_network": whole_lowered})

# %%
calls = {"float32": chain, "described": description, "lowered": kernels}
calls = {name: partial(call, images) for name, call in calls.items()}
with torch.inference_mode():
    again = partial(modules.copied(chain), images)
    chain_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
measure.verdict_table(chain_clock)

# %%
IN_WORDS = {
    "faster": "faster than float32",
    "slower": "slower than float32",
    "no measurable difference": "neither measurably faster nor slower than float32",
}

# %% tags=["plumbing"]
say(
    f"On the chain, the description is {IN_WORDS[chain_clock['described'].verdict]} "
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
# ## 6. Which layer hurts?
#
# When the loss is too large, do not give up eight bits everywhere: find out who is to blame. Quantize one layer at a
# time, its weights and its input, and measure the noise in the logits: the mean square of their change, relative to
# their own. (Softmax does not see what an image's logits have in common, so that is subtracted first. The ranges are
# those of least squared error, as in notebook 09.)
#
# **Predict**: which layer is worst? And is the noise of all layers together the sum of the single ones?


# %%
few = calibration.take(min(100, S.calibration))
images = validation.inputs[: S.probe]


def centred_logits(model):
    logits = training.predict(model, images)
    return logits - logits.mean(1, keepdim=True)


reference = centred_logits(net)


def noise(bits):
    """Relative noise in the logits if the layers named are quantized, {name: bits}."""
    model = quantization.quantize_model(net, weights=bits, activations=bits, calibration=few)
    change = centred_logits(model) - reference
    return (change.square().mean() / reference.square().mean()).item()


layers = list(quantization.bits_by_layer(net, 8))
single = pd.DataFrame({bits: {layer: noise({layer: bits}) for layer in layers} for bits in (8, 4)})
together = {bits: noise(dict.fromkeys(layers, bits)) for bits in (8, 4)}

# %% tags=["plumbing"]
run.record("noise", {str(bits): single[bits].to_dict() | {"all": together[bits]} for bits in single})

# %%
share = 100 * single / single.sum()
share.columns = [f"{bits} bits" for bits in share]
loud = share["4 bits"].idxmax()

# %% tags=["plumbing"]
fig = show.bars(share, title=f"In four bits, {loud} makes {share.loc[loud, '4 bits']:.0f}% of the summed noise",
                 xlabel="share of the summed noise in the logits (%)", label="{:.0f}")  # fmt: skip
show.figure(fig, alt=f"Noise by layer. {show.in_words(share, '{:.0f}')}", table=share)

# %%
additive = {bits: together[bits] / single[bits].sum() for bits in single}
step = np.mean(10 * np.log10(single[4] / single[8]))
ends = [layers[0], layers[-1]]
their_weights = sum(net.get_submodule(name).weight.numel() for name in ends) / measure.count_weights(net)


def compared(ratio):
    if 0.8 <= ratio <= 1.25:
        return "about what independent errors would make"
    return f"{'more' if ratio > 1 else 'less'} than independent errors would make"


# %% tags=["plumbing"]
say(
    f"With 8 bits, all layers together make {additive[8]:.2f} times the sum of the single noises, "
    f"{compared(additive[8])}; with 4 bits {additive[4]:.2f} times, {compared(additive[4])}. Where noises add up, "
    "measuring one layer at a time tells you how noisy a mixture will be.\n\n"
    f"Four bits fewer add {step:.1f} dB; at 6.02 dB a bit it should be 24.1. In four bits, the first and the last "
    f"layer make {share.loc[ends, '4 bits'].sum():.0f}% of the summed noise and hold "
    f"{their_weights:.1%} of the weights: keeping those two in eight bits is cheap."
)

# %% [markdown]
# ## 7. The clock
#
# An x86 processor with **VNNI** has one instruction that multiplies four *unsigned* bytes by four *signed* bytes and
# adds the products to a 32-bit sum, where it would multiply one pair of floats. (On Arm, **i8mm** brings such an
# instruction.) So it promises a factor of four (units for whole matrices, as AMX, promise more), and the types matter:
# unsigned activations, signed weights. VNNI has no other pair; newer instructions do (AVX-VNNI-INT8, AMX), and then the
# runtime must have kernels for them.
#
# **Predict** the speed of three pairs, activations × weights, against float32 in the *same* runtime: u8 × s8, u8 × u8, s8
# × s8.

# %%
capabilities = torch.cpu.get_capabilities()
VNNI = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "i8mm"))
PAIRS = {"int8, u8 × s8": ("uint8", "int8"), "int8, u8 × u8": ("uint8", "uint8"), "int8, s8 × s8": ("int8", "int8")}
files = {"float32": graph} | {
    name: runtime.quantize_static(graph, calibration, run.scratch(f"{'-'.join(types)}.onnx"), activations=types[0], weights=types[1])
    for name, types in PAIRS.items()
}  # fmt: skip
by_pair = {name: training.evaluate(in_runtime(path), validation).accuracy for name, path in files.items()}

# %% tags=["plumbing"]
run.record("by_pair", by_pair)
say(
    f"This processor {'has' if VNNI else 'does not have'} such an instruction. Accuracy: "
    + ", ".join(f"{name} {value:.1%}" for name, value in by_pair.items())
    + "."
)

# %% [markdown]
# And against PyTorch as one writes it (*eager*), which is what many a report of a speed-up compares with; also with the
# channels of each pixel side by side in memory (*channels last*), which its convolutions often prefer.

# %%
sessions = {name: runtime.session(path, threads=1) for name, path in files.items()}
clock = {}
for batch in S.batches:
    images = validation.inputs[:batch]
    calls = {name: partial(runtime.run, session, images.numpy()) for name, session in sessions.items()}
    calls["PyTorch eager"] = partial(net, images)
    calls["PyTorch eager, channels last"] = partial(net, modules.channels_last(images))
    again = partial(runtime.run, runtime.session(next(iter(files.values())), threads=1), images.numpy())
    with torch.inference_mode():
        timings = measure.time_interleaved(calls, rounds=S.timings, warmup=2, threads=1, control=again)
    clock[batch] = measure.compare(timings)
pd.concat({f"batch {batch}": measure.verdict_table(verdicts) for batch, verdicts in clock.items()})

# %%
large = S.batches[-1]
right, eager = clock[large]["int8, u8 × s8"], clock[large]["PyTorch eager"]
wrong = min((clock[large][name] for name in PAIRS), key=lambda verdict: verdict.ratio)
eager_time = measure.compare(timings, against="PyTorch eager")["int8, u8 × s8"]  # of the last batch, the large one
against_eager = eager_time.ratio

# %% tags=["plumbing"]
if VNNI and PROFILE == "full":
    run.claim("int8-speed", f"Speed of int8 against float32 in ONNX Runtime, batch {large}", right.ratio,
              at_least=1.8, timing=True, over_seeds=True, interval=right.cleared)  # fmt: skip
    run.claim("int8-against-eager", f"Speed of int8 against PyTorch eager, batch {large}", against_eager,
              at_least=4, timing=True, over_seeds=True, interval=eager_time.cleared)  # fmt: skip
elif VNNI:
    run.claim("int8-speed", f"Speed of int8 against float32 in ONNX Runtime, batch {large}", right.ratio,
              at_least=1.1, timing=True, interval=right.cleared)  # fmt: skip

# %%
small, best_eager = S.batches[0], max(eager.ratio, clock[large]["PyTorch eager, channels last"].ratio)

# %% tags=["plumbing"]
say(
    f"At batch {large}, u8 × s8 runs **{right.ratio:.2f} times** as fast as float32 in the same runtime, at batch "
    f"{small} {clock[small]['int8, u8 × s8'].ratio:.2f} times. Against eager PyTorch, batch {large}, it is "
    f"**{against_eager:.1f} times**, and {right.ratio / best_eager:.1f} against the faster of its two orders of "
    f"memory; of that a factor of {1 / best_eager:.1f} is the runtime and the folded BatchNorm. The slowest pair, "
    f"{wrong.name.removeprefix('int8, ')}, reaches {wrong.ratio:.2f}"
    + (': slower than floats. The word "int8" promises nothing.' if wrong.verdict == "slower" else ".")
)

# %% [markdown]
# Where does the time go? ONNX Runtime can say how long each kind of operator took. `QLinearConv` is a convolution in
# integers, `Conv` one in floats; `QuantizeLinear` and `DequantizeLinear` are the fees at the borders between the two.

# %%
spent = pd.DataFrame(
    {name: runtime.operator_times(path, validation.inputs[:large].numpy()) for name, path in files.items()}
)
spent = spent.loc[spent.max(axis=1).sort_values(ascending=False).index].fillna(0)

# %% tags=["plumbing"]
run.record("operator_ms", spent.reset_index(names="operator"), timing=True)
spent.round(2)

# %%
convolutions = spent[spent.index.str.contains("Conv")].sum()
rest, chosen = spent.sum() - convolutions, "int8, u8 × s8"
borders = spent[spent.index.isin(["QuantizeLinear", "DequantizeLinear"])].sum()
conv_ratio = convolutions["float32"] / convolutions[chosen]

# %% tags=["plumbing"]
say(
    f"The convolutions alone run {conv_ratio:.1f} times as fast in integers"
    + ("; the instruction promises four. " if VNNI else ". ")
    + f"All other operators took {rest['float32']:.2f} ms and take {rest[chosen]:.2f}, which is "
    f"{rest[chosen] / spent[chosen].sum():.0%} of the integer network's time."
)


# %%
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


# %% tags=["plumbing"]
say(" ".join(why(name) for name in PAIRS if name != chosen))

# %% [markdown]
# ## 8. Dynamic: for networks that mostly read weights
#
# A recurrent network applies one matrix again and again, to one vector at a time. It spends its time fetching weights;
# what it is given changes from text to text, and so does the range. **Dynamic quantization** stores the weights in
# int8, and finds the range of the activations while it runs, for each batch anew. No calibration. Here is a linear
# layer that does it:


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


mnist = data.mnist()
linear, digits = checkpoints.load("lenet-300-100"), mnist.validation.take(S.validation)
linear_file = runtime.export_onnx(linear, digits.inputs[:2], run.scratch("linear.onnx"))
small_file = dynamic(linear_file)

# %%
x = digits.inputs[:64].flatten(1)
with torch.no_grad():
    mine = F.relu(dynamic_linear(x, linear.fc1.weight, linear.fc1.bias))
    mine = F.relu(dynamic_linear(mine, linear.fc2.weight, linear.fc2.bias))
    mine = dynamic_linear(mine, linear.fc3.weight, linear.fc3.bias)
whole = training.predict(in_runtime(small_file), digits.inputs[:64], batch_size=64)
gap = ((mine - whole).abs().max() / whole.abs().max()).item()

# %% tags=["plumbing"]
run.claim(
    "dynamic-by-hand",
    "Largest difference between the cell and ONNX Runtime, relative to the largest logit",
    gap,
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


(moved, answers), (control, _) = moved_by_neighbours(small_file), moved_by_neighbours(linear_file)

# %% tags=["plumbing"]
run.record("batch_matters", {"largest_change": moved, "in_float32": control, "answers_changed": answers})
say(
    f"Among others, a logit changes by up to {moved:.2%} of the largest logit, and {answers} of 64 answers change. In "
    "float32 "
    + (f"it is {1e6 * control:.2f} millionths, from adding in another order. " if control else "none changes. ")
    + (
        "So what the network says of an image depends on who happens to stand beside it: remember that when a test is "
        "not reproducible."
        if moved > 10 * control
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


# %%
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

# %% tags=["plumbing"]
run.claim("lstm-exported", "Largest difference between a logit of the exported LSTM and PyTorch's", gap, at_most=1e-3)
small_lstm = dynamic(lstm_file)

# %% [markdown]
# **Predict** for both networks: times smaller, accuracy lost, times faster at batch 1.

# %%
rows, dynamic_clock = {}, {}
for name, (full_file, small, split) in {
    "LeNet-300-100": (linear_file, small_file, digits),
    "LSTM": (lstm_file, small_lstm, reviews),
}.items():
    accuracies = [training.evaluate(in_runtime(path), split, batch_size=50).accuracy for path in (full_file, small)]
    one = split.inputs[:1].numpy()
    paths = {"float32": full_file, "dynamic": small}
    calls = {kind: partial(runtime.run, runtime.session(path), one) for kind, path in paths.items()}
    again = partial(runtime.run, runtime.session(full_file), one)
    timings = measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again)
    dynamic_clock[name] = measure.compare(timings)["dynamic"]
    rows[name] = {"times smaller": full_file.stat().st_size / small.stat().st_size,
                  "accuracy, dynamic": accuracies[1], "points lost": 100 * (accuracies[0] - accuracies[1]),
                  "speed (float32 = 1)": dynamic_clock[name].ratio, "verdict": dynamic_clock[name].verdict}  # fmt: skip

# %% tags=["plumbing"]
run.record("dynamic", {name: {k: row[k] for k in ("times smaller", "points lost")} for name, row in rows.items()})
pd.DataFrame.from_dict(rows, orient="index").round(3)

# %% tags=["plumbing"]
run.claim("dynamic-lost", "Accuracy lost by dynamic quantization, the worse of the two networks",
          max(row["points lost"] for row in rows.values()) / 100, at_most=0.02)  # fmt: skip
run.claim("dynamic-file", "Times smaller, the worse of the two networks",
          min(row["times smaller"] for row in rows.values()), at_least=3)  # fmt: skip
kinds = pd.DataFrame({"float32 file": bytes_by_type(lstm_file), "dynamic file": bytes_by_type(small_lstm)}).fillna(0)
kinds.map("{:,.0f}".format)

# %%
table_bytes = lstm.embedding.weight.nbytes
linear_speed, lstm_speed = dynamic_clock["LeNet-300-100"], dynamic_clock["LSTM"]

# %% tags=["plumbing"]
say(
    f"The LSTM's file shrinks {rows['LSTM']['times smaller']:.1f} times, and the reason is not the LSTM: its matrix of "
    f"word vectors is {table_bytes / lstm_file.stat().st_size:.0%} of the file. ONNX Runtime rounds that table, too; "
    'many a library leaves it alone, and then a "quantized" text classifier keeps nearly all its bytes.\n\n'
    f"On the clock the LSTM is {IN_WORDS[lstm_speed.verdict]} ({lstm_speed.ratio:.2f} times its speed), the linear "
    f"network {IN_WORDS[linear_speed.verdict]} ({linear_speed.ratio:.2f} times). "
    + (
        f"With {lstm.encoder.recurrent.in_features} units, to measure and round the state takes longer than the small "
        "matrix saves; dynamic quantization is made for large ones."
        if lstm_speed.verdict == "slower"
        else ""
    )
)

# %% [markdown]
# ## 9. Four bits
#
# **4-bit weights, 8-bit activations.** ONNX can store int4, two weights a byte. No CPU here multiplies four bits; the
# runtime unpacks them when it opens the file. So four bits are for the *file*, and for memory traffic where a kernel
# unpacks on the fly, as those for language models do.

# %%
int4 = runtime.quantize_static(graph, calibration, run.scratch("int4.onnx"), weights="int4")
minmax_accuracy = training.evaluate(in_runtime(int4), validation).accuracy
ratio4 = graph.stat().st_size / int4.stat().st_size
mse = quantization.quantize_model(net, weights=4, activations=8, calibration=few)
mse_accuracy = training.evaluate(mse, validation).accuracy

# %% tags=["plumbing"]
run.record("four_bit_weights", {"minmax": minmax_accuracy, "mse": mse_accuracy, "times_smaller": ratio4})
run.claim(
    "int4-file",
    "Times smaller than the float32 file with 4-bit weights",
    ratio4,
    at_least=7 if S.net == "cifar_base" else 5,
)
say(
    f"The file is {ratio4:.1f} times smaller, with {in_points(100 * (base - minmax_accuracy))}. The weights' ranges "
    "are min/max, the only rule that this tool has for weights. With the same bits, and ranges of least squared error as "
    f"in notebook 09: {in_points(100 * (base - mse_accuracy))}."
)

# %% [markdown]
# **Everything in four bits** needs training: **QAT**, quantization-aware training. Notebook 09 built it. PT2E does it
# with `prepare_qat_pt2e`, whose observers follow the ranges with a moving average while the network learns. Its quantizer
# describes eight bits; a description of our own says four (and eight for the first and the last layer).


# %%
def spec(bits, weights):
    """What PT2E calls a quantization spec: `bits` bits, signed and by channel for weights, else unsigned."""
    low = -(2 ** (bits - 1)) if weights else 0
    observer = pt2e.MovingAveragePerChannelMinMaxObserver if weights else pt2e.MovingAverageMinMaxObserver
    fake = pt2e.FusedMovingAvgObsFakeQuantize.with_args(observer=observer, eps=2**-12)
    return QuantizationSpec(
        dtype=torch.int8 if weights else torch.uint8, quant_min=low, quant_max=low + 2**bits - 1, is_dynamic=False,
        qscheme=torch.per_channel_symmetric if weights else torch.per_tensor_affine, ch_axis=0 if weights else None,
        observer_or_fake_quant_ctr=fake,
    )  # fmt: skip


def config(bits):
    inputs, outputs, weights = spec(bits, weights=False), spec(bits, weights=False), spec(bits, weights=True)
    return QuantizationConfig(inputs, outputs, weights, bias=None, is_qat=True)


# %% [markdown]
# Now BatchNorm, the trap of QAT. While the network trains, BatchNorm divides by the spread of the *batch*; when it
# runs, by the running statistics, and those are what is folded. PT2E folds in a way that learns: it rounds the weights
# *as they will be after folding*, and divides again before BatchNorm. (With a step for each channel, as here, folding
# stretches weights and step alike, and it makes next to no difference. With one step for a layer it does.) And an
# exported graph does not know `eval()`: its mode was fixed when it was exported. So export in training mode, and switch
# the graph explicitly before you convert or measure. Forget it, and nothing crashes.
#
# A second trap of the same kind: the observers do not know either when training is over. Run test images through the
# graph, and the ranges move, towards the test images. `disable_observer` stops them. BatchNorm's running statistics do
# the same in a graph left in training mode, so even to *measure* the wrong mode below we take a copy.

# %%
quantizer = x86(config(4)).set_module_name_qconfig("stem", config(8)).set_module_name_qconfig("fc", config(8))
start = prepare_qat_pt2e(exported(copy.deepcopy(net).train()), quantizer)
try:
    start.eval()
except NotImplementedError as error:
    print("NotImplementedError:", " ".join(str(error).split())[:120], "…")
else:
    raise AssertionError("not refused")

# %%
trained = training.fit(
    start,
    cifar.train.take(S.train),
    epochs=S.epochs,
    lr=S.rate,
    batch_size=S.batch,
    augment=training.flip_and_shift,
    precision=training.fast_precision(),
    seed=SEED,
    checkpoint=run.scratch("qat.pt") if PROFILE == "full" else None,
)

# %% tags=["plumbing"]
run.record("qat_seconds", sum(row["seconds"] for row in trained.history), timing=True)

# %%
qat = trained.model.apply(pt2e.disable_observer)
wrong_mode = training.evaluate(in_graph(copy.deepcopy(qat)), validation, batch_size=10).accuracy
pt2e.move_exported_model_to_eval(qat)
right_mode = training.evaluate(in_graph(qat), validation).accuracy
if PROFILE == "full":
    qat = convert_pt2e(qat)  # to integers; with BatchNorm in the graph it takes PyTorch half a minute

# %%
four = quantization.bits_by_layer(net, 4, ends=8)
untrained = quantization.quantize_model(net, weights=four, activations=four, calibration=few, method="minmax")
arms = {
    "32 bits": base,
    "4 bits, not trained, min/max": training.evaluate(untrained, validation).accuracy,
    "4 bits, trained, graph left in training mode": wrong_mode,
    "4 bits, trained": right_mode,
}

# %% tags=["plumbing"]
run.record("qat", arms)
run.claim("qat", "Accuracy that quantization-aware training gives back at 4 bits",
          right_mode - arms["4 bits, not trained, min/max"], at_least=-0.01)  # fmt: skip
pd.Series(arms).map("{:.1%}".format).to_frame("validation accuracy")

# %%
learned = evidence.measurements("09_quantize_from_scratch", "four_bits", profile=PROFILE).get(SEED)

# %% tags=["plumbing"]
say(
    f"Training ({S.epochs} × {S.train:,} images) takes four bits from {arms['4 bits, not trained, min/max']:.1%} to "
    f"{right_mode:.1%}. "
    + (
        "That is no gain to speak of. The ranges stay min/max to the end: the largest weight of a channel still says "
        "how far apart its marks lie, however the others are trained. "
        if right_mode - arms["4 bits, not trained, min/max"] < 0.003
        else ""
    )
    + f"Left in training mode, the same network, in batches of ten, names {wrong_mode:.1%}: each "
    "photograph is judged by the statistics of its neighbours."
    + (
        f" Notebook 09, with steps that are learned and a budget of its own, reached {learned['4 bits, trained']:.1%} from "
        f"{learned['32 bits']:.1%}."
        if learned
        else ""
    )
)

# %% [markdown]
# ## 10. Reading old code
#
# Most quantization code that you will find was written for `torch.ao.quantization`. It had two modes. **Eager mode**
# replaces modules:
#
# ```python
# model.qconfig = torch.ao.quantization.get_default_qconfig("x86")
# model = torch.ao.quantization.fuse_modules(model, [["conv", "bn", "relu"]])   # you list them by name
# model = torch.ao.quantization.prepare(model)                                  # observers
# calibrate(model)
# model = torch.ao.quantization.convert(model)                                  # int8 modules
# ```
#
# The model needs `QuantStub()` and `DeQuantStub()` in its `forward`, where integers begin and end, and a
# `FloatFunctional` in place of each `+`. Whoever forgets one gets an error at best. **FX mode** traced the module and put
# all of that in by itself:
#
# ```python
# prepared = prepare_fx(model.eval(), get_default_qconfig_mapping("x86"), example_inputs)
# calibrate(prepared)
# quantized = convert_fx(prepared)
# ```
#
# Run both old ways once more, and listen to what PyTorch says.

# %% tags=["plumbing"]
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization import quantize_dynamic as old_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

# %%
with warnings.catch_warnings(record=True) as said, torch.no_grad():
    warnings.simplefilter("always")
    old_linear = old_dynamic(linear, {nn.Linear}, dtype=torch.qint8)
    old_prepared = prepare_fx(copy.deepcopy(net), get_default_qconfig_mapping("x86"), (TWO,))
    for part in calibration.inputs.split(50):
        old_prepared(part)
    old_static = convert_fx(old_prepared)
deprecations = [
    str(w.message) for w in said if issubclass(w.category, DeprecationWarning) and "torch.ao" in str(w.message)
]

# %% tags=["plumbing"]
if deprecations:
    first = deprecations[0].splitlines()[0].strip()
    say(f"PyTorch {torch.__version__} says: “{first}” It is still there; do not build on it.")

# %% [markdown]
# Porting is mostly a matter of names:
#
# | old | new |
# |---|---|
# | `quantize_dynamic(model, {nn.Linear})` | torchao's `quantize_(model, Int8DynamicActivationInt8WeightConfig())`, or ONNX Runtime |
# | `prepare`, `convert` with stubs; `prepare_fx`, `convert_fx` | `torch.export`, then `prepare_pt2e`, `convert_pt2e` |
# | `prepare_qat`, `prepare_qat_fx` | `prepare_qat_pt2e`, exported in training mode |
# | `fuse_modules` | nothing: `prepare_pt2e` folds |
# | `qconfig`, `qconfig_mapping` | a quantizer, with `set_global` and `set_module_name_qconfig` |
# | `torch.quantize_per_tensor`, `QuantStub` | pairs of quantize and dequantize in the graph |
# | `model.train()`, `model.eval()` | `move_exported_model_to_train`, `move_exported_model_to_eval` |
#
# Does a port give the same answers?

# %%
with torch.no_grad():
    old_answers = training.predict(Answers(lambda inputs: old_static(inputs.contiguous())), validation.inputs).argmax(1)
old_accuracy = (old_answers == validation.labels).float().mean().item()
agree = (old_answers == runtimes[1]).float().mean().item()
old_digits = training.evaluate(Answers(lambda inputs: old_linear(inputs)), digits).accuracy

# %% tags=["plumbing"]
run.record("old_code", {"fx": old_accuracy, "same_as_pt2e": agree, "eager_dynamic": old_digits})
run.claim(
    "ported", "Fraction of photographs to which FX mode and its port to PT2E give the same answer", agree, at_least=0.9
)
say(
    f"FX mode names {old_accuracy:.1%}, PT2E {torchs:.1%}, and they agree on {agree:.1%} of the photographs. Eager "
    f"mode's dynamic LeNet-300-100 reads {old_digits:.1%} of the digits, ONNX Runtime's "
    f"{rows['LeNet-300-100']['accuracy, dynamic']:.1%}. One thing was lost on the way: the old result ran integer "
    "kernels at once, the new one is a description that wants to be lowered, or another runtime."
)

# %% [markdown]
# ## 11. The test images, once
#
# In floating point, as int8 in ONNX Runtime, as int8 and as trained 4 bits in PT2E (in full: converted to integers).

# %%
test = cifar.test.take(S.tested)
tests = {
    f"{S.net}-dense": run.test(f"{S.net}-dense", net, test),
    f"{S.net}-int8": run.test(f"{S.net}-int8", in_runtime(int8), test),
    f"{S.net}-int8-pt2e": run.test(f"{S.net}-int8-pt2e", in_graph(converted), test),
    f"{S.net}-4bit-pt2e": run.test(f"{S.net}-4bit-pt2e", in_graph(qat), test),
}
lost_on_test = {name: tests[f"{S.net}-dense"].accuracy - result.accuracy for name, result in tests.items()}
pd.DataFrame(
    {
        "test accuracy": {n: f"{t.accuracy:.2%}" for n, t in tests.items()},
        "points lost": {n: f"{100 * v:.2f}" for n, v in lost_on_test.items()},
    }
)

# %% tags=["plumbing"]
if PROFILE == "full":
    run.claim("test-int8", "Test accuracy lost by int8 in ONNX Runtime", lost_on_test[f"{S.net}-int8"],
              at_most=0.003, over_seeds=True)  # fmt: skip
    run.claim("test-pt2e", "Test accuracy lost by int8 in PT2E", lost_on_test[f"{S.net}-int8-pt2e"],
              at_most=0.003, over_seeds=True)  # fmt: skip
else:
    run.claim("quick-int8", "Test accuracy lost by int8, the worse of the two libraries",
              max(lost_on_test[f"{S.net}-int8"], lost_on_test[f"{S.net}-int8-pt2e"]), at_most=0.01)  # fmt: skip

# %% [markdown]
# ## 12. Exercises
#
# **10.1 · Predict the sum.** In section 2, each output of `res1.block1` is a sum of `terms` products and the bias
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
exercises.check("10.1", largest_sum, terms=terms, measured=float(sums.abs().max()))

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
# ## What was measured

# %%
test_loss = {arm: in_points(100 * lost_on_test[f"{S.net}-{arm}"]) for arm in ("int8", "int8-pt2e", "4bit-pt2e")}

# %% tags=["plumbing"]
say(
    f"- **int8 after training**, on test: with ONNX Runtime {test_loss['int8']}, with PT2E {test_loss['int8-pt2e']}; "
    f"the file {ratio:.2f} times smaller.\n"
    f"- **Calibration**: {images_say}; the worst set costs {points[worst]:.1f} points.\n"
    f"- **Speed** at batch {large}: {right.ratio:.2f} times float32 in the same runtime, {against_eager:.1f} times "
    f"eager; the slowest pair of types {wrong.ratio:.2f}.\n"
    f"- **Dynamic**: LSTM {rows['LSTM']['times smaller']:.1f} times smaller, {in_points(rows['LSTM']['points lost'])}, "
    f"{lstm_speed.ratio:.2f} times as fast.\n"
    f"- **4 bits**, trained, on test: {test_loss['4bit-pt2e']}."
)

# %%
example = cifar.train.inputs[:1]
macs, dense_name = measure.count_macs(net, example), f"{S.net}-dense"
counted = dict(weights=measure.count_weights(net), macs=macs)
write_dense(net, run.scratch("dense.pack"))
latency = [
    record
    for batch, verdicts in clock.items()
    for record in measure.latency_records({"u8 × s8": verdicts["int8, u8 × s8"]}, runtime="onnxruntime", batch=batch)
]

# %% tags=["plumbing"]
run.model(dense_name, task="cifar10", method="dense", accuracy=tests[dense_name].accuracy, file=run.scratch("dense.pack"),
          nonzero=measure.count_nonzero(net), **counted)  # fmt: skip
run.model(f"{S.net}-int8", task="cifar10", method="8-bit weights and activations, ONNX Runtime", base=dense_name, file=int8,
          techniques=["fewer bits"], accuracy=tests[f"{S.net}-int8"].accuracy, nonzero=measure.count_nonzero(net), latency=latency, **counted)  # fmt: skip
run.finish()

# %% [markdown]
# **Remember**
# - int8 costs little after training, if the calibration images look like those to come. It takes few of them.
# - Fold BatchNorm in evaluation mode. With exported graphs the mode is part of the graph.
# - Compare with floats in the same runtime. Against eager PyTorch, part of a "speed-up by int8" is the runtime.
# - On x86: unsigned activations, signed weights. The pair decides whether integers are faster at all.
# - Static for convolutions; dynamic, as others report, for linear and recurrent layers larger than ours. And look for
#   the embedding table in the file.
# - Four bits make files small. They make nothing faster where no kernel multiplies four bits.
#
# **Read**
# - Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko 2018, *Quantization and Training of Neural Networks for
#   Efficient Integer-Arithmetic-Only Inference*: sections 2 and 3 are sections 1, 2 and 9 here.
# - Krishnamoorthi 2018, *Quantizing Deep Convolutional Networks for Efficient Inference: A Whitepaper*.
# - Wu, Judd, Zhang, Isaev and Micikevicius 2020, *Integer Quantization for Deep Learning Inference: Principles and
#   Empirical Evaluation*: calibration, and one layer at a time.
# - Nagel, Fournarakis, Amjad, Bondarenko, van Baalen and Blankevoort 2021, *A White Paper on Neural Network
#   Quantization*.
#
# **Next**: notebook 12 lets a large network teach a small one.
