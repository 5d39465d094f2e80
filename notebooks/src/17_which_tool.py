# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [17_which_tool]
# ---

# %% [markdown]
# # 17 · Which tool: what does each do by default, and what surprises?
#
# You can prune, quantize and export. Now you meet a dozen tools that promise to do it for you: OpenVINO, LiteRT, ExecuTorch, ncnn,
# IREE, TVM, and libraries on top of PyTorch. They share words (*int8*, *static*, *per channel*) and mean different things by
# them. Here one trained network went through all of them, each in an environment of its own. You
# guess first, then you see what happened. And since no table is true on your machine, you end with a function that tries what is
# installed, checks the answers, and keeps the fastest of the files it wrote.
#
# **You will be able to**
# - ask of any converter the six questions that decide size, speed and accuracy;
# - tell integers from "int8", and float32 from "float32", by looking into the file;
# - compare runtimes so that neither the caches nor the neighbours decide;
# - notice the silent mistakes: a network left in training mode, a batch axis, codes with the wrong sign;
# - let a clock and a check of answers choose the runtime for you.
#
# **Before this**: notebook 10 (int8, QDQ, signedness), notebook 16 (ONNX, sessions, what a runtime rewrites).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
from collections import Counter
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import openvino
import pandas as pd
import torch
from torch import nn

from helpers import (
    checkpoints,
    data,
    evidence,
    exercises,
    measure,
    pruning,
    quantization,
    runtime,
    show,
    tools,
    training,
)
from helpers.core import modules, paths
from helpers.evidence import say
from helpers.evidence.schema import machine_text
from helpers.files import load

# %% tags=["plumbing"]
run = evidence.start("17_which_tool", profile=PROFILE, seed=SEED)
show.style()
pd.set_option("display.max_colwidth", None)
say(evidence.timetable("17_which_tool"))

# %% tags=["plumbing"]
RECORDS = tools.read()
table = tools.variants(RECORDS)
WAY = "batch 1, two threads, warm"
LARGE_WAY = "batch 64, two threads"
days = sorted({record["date"][:10] for record in RECORDS.values()})
machines = sorted({machine_text(record["machine"]) for record in RECORDS.values()})
ANSWERED = table[table["accuracy"].notna()]
INTEGERS = ANSWERED[ANSWERED["variant"].str.contains("int8")]
WHEN = f"measured {days[0]}" + (f" to {days[-1]}" if len(days) > 1 else "") + f", on {'; '.join(machines)}"

# %% [markdown]
# The answer before the work. The same network, `cifar_base`, in 8 bits, by each tool that wrote a file some runtime opens: how many
# times as fast as our own int8 file in ONNX Runtime. Right of the line is faster.

# %% tags=["plumbing", "answer"]
finished = evidence.published("17_which_tool")
timed = INTEGERS[
    INTEGERS[WAY].notna() & (INTEGERS["problem"] != "in memory only") & ~INTEGERS["variant"].str.contains("ours")
]
names = [f"{row.tool}: {row.variant}" + " (broken)" * (row.lost > 10) for row in timed.itertuples()]
fig, ax = plt.subplots(figsize=(9.5, 1.2 + 0.42 * len(names)))
for way, marker, colour, up in ((WAY, "o", show.COLOURS[0], -0.14), (LARGE_WAY, "s", show.COLOURS[1], 0.14)):
    label = "one photograph" if way == WAY else "64 photographs"
    ax.scatter(timed[way], np.arange(len(names)) + up, marker=marker, color=colour, s=48, label=label, zorder=3)
ax.axvline(1, color="black", linewidth=1)
ax.set_yticks(range(len(names)), names, fontsize=10)
ax.set(xscale="log", xlabel="times as fast as our int8 file in ONNX Runtime (log scale)")
speeds = timed[[WAY, LARGE_WAY]].to_numpy(float)
span = f"{np.nanmin(speeds):.2g} to {np.nanmax(speeds):.2g} times the speed of ours"
ax.set_title(f"int8, by tool: {np.nanmin(speeds):.2g} to {np.nanmax(speeds):.2g} times our speed")
ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08 if len(names) < 6 else 1.04), ncols=2)
lowest, highest = 10 ** np.floor(np.log10(np.nanmin(speeds))), 10 ** np.ceil(np.log10(np.nanmax(speeds)))
ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if lowest <= t <= highest]
ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
ax.minorticks_off()
shown = timed.set_index("tool")[["variant", WAY, LARGE_WAY]]
show.figure(fig, alt=f"Times as fast as our int8 file, by tool, for one and for 64 photographs, {span}.", table=shown)
say(
    f"From the stored records: {WHEN}. `python -m helpers tools` makes them anew on yours, in about an hour; this page then shows those."
)

# %% [markdown]
# And the idea of the page in one picture: between your network and an answer stand four steps, and in each somebody else has decided something.

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(9.5, 3.0))
boxes = [
    ("your network", "modes, hooks,\nan example batch", show.COLOURS[0]),
    ("read", "train or eval?\nwhich axis is the batch?", show.COLOURS[2]),
    ("quantize", "which layers, which\nscale, which sign?", show.COLOURS[2]),
    ("write", "integers, or floats\nthat look rounded?", show.COLOURS[2]),
    ("run", "float32 or bfloat16?\nwhat is joined?", show.COLOURS[4]),
]
for place, (title, question, colour) in enumerate(boxes):
    x = 2.4 * place
    ax.add_patch(plt.Rectangle((x, 1.3), 1.7, 0.8, facecolor=colour, edgecolor="black", alpha=0.9))
    ax.text(x + 0.85, 1.7, title, ha="center", va="center", color="white", fontweight="bold", fontsize=12)
    ax.text(x + 0.85, 0.75, question, ha="center", va="center", fontsize=10)
    if place:
        ax.annotate("", (x - 0.05, 1.7), (x - 0.65, 1.7), arrowprops={"arrowstyle": "->", "linewidth": 1.6})
ax.set(xlim=(-0.1, 11.4), ylim=(0.2, 2.4), title="Each step has defaults, and they differ between tools")
ax.axis("off")
show.figure(fig, alt="Five boxes in a row with arrows: your network, read, quantize, write, run. Under each box stand the questions that its "
            "defaults decide, such as train or eval, which sign, and float32 or bfloat16.")  # fmt: skip

# %% [markdown]
# ## 1. Guess first
#
# Every tool below was given the same network, 256 validation photographs to calibrate with, and the options that its own documentation
# begins with; where we changed one as well, the variant's name says so. Write your guesses into this cell before you read on.

# %%
MY_GUESSES = {  # of the int8 variants that answered, how many ...
    "keep each channel's own scale for weights": None,
    "have unsigned activations": None,
    "fold BatchNorm away": None,
    "skip a layer: its weights are neither integers nor rounded": None,
    "are at most 0.3 of the float32 file": None,
    "are faster than ONNX Runtime's float32, one photograph": None,
}


# %% tags=["plumbing"]
def fact(row, name):
    """One fact of a variant's record, or None where the file did not say."""
    return RECORDS[row["name"]]["networks"]["cifar_base"]["variants"][row["variant"]].get("facts", {}).get(name)


def speed_of_float(row):
    """The speed of ONNX Runtime's float32 in the run that timed this variant, on the same scale."""
    return RECORDS[row["name"]]["networks"]["cifar_base"]["latency"][WAY]["ONNX Runtime float32"]["ratio"]


def count(question, found):
    """How many variants the answer is yes for, of those that say."""
    said = [bool(value) for value in found if value is not None]
    return {"question": question, "you": MY_GUESSES[question], "yes": sum(said), "of": len(said)}


rows = [row for _, row in INTEGERS.iterrows()]
questions = list(MY_GUESSES)
signs = [fact(row, "activations") for row in rows]
guessed = pd.DataFrame([
    count(questions[0], [fact(row, "per channel") for row in rows]),
    count(questions[1], [None if sign is None else "uint8" in sign for sign in signs]),
    count(questions[2], [None if (b := fact(row, "batchnorm")) is None else b == "folded" for row in rows]),
    count(questions[3], [None if (f := fact(row, "float layers")) is None else len(f) > 0 for row in rows]),
    count(questions[4], [row["bytes"] <= 0.3 for row in rows]),
    count(questions[5], [None if pd.isna(row[WAY]) else row[WAY] > speed_of_float(row) for row in rows]),
])  # fmt: skip
guessed

# %% tags=["plumbing"]
small, fast = guessed.iloc[4], guessed.iloc[5]
ran = sorted(ANSWERED["tool"].unique())
clocked = sorted(ANSWERED[ANSWERED[WAY].notna()]["tool"].unique())
run.claim(
    "tools-ran",
    "Tools whose conversion of cifar_base answered and was timed (stored records)",
    len(clocked),
    at_least=10,
)
run.record("guessed", guessed.to_dict("records"))
say(
    f"{len(ran)} tools answered, with {len(ANSWERED)} variants; {len(INTEGERS)} of those say int8. {small['yes']} of {small['of']} are "
    f"small, {fast['yes']} of {fast['of']} are faster than the float32 file. Small and fast are two things, and the rest of the page says "
    "what decides each."
)

# %% [markdown]
# ## 2. "float32", says the file
#
# Begin with the tool that does nothing: no quantization, the same ONNX file, opened in two runtimes. Both say float32. **Predict**
# how far their logits lie from PyTorch's, as a share of the largest logit: a millionth? A thousandth?

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(net="cifar_small", examples=200, calibration=50, rounds=20, channels=(16, 19, 20), tested=100, batches=(1,), others=()),
    quick=dict(net="cifar_small", examples=500, calibration=250, rounds=30, channels=(32, 37, 40), tested=4_000, batches=(1, 64), others=()),
    full=dict(net="cifar_base", examples=1_000, calibration=256, rounds=60, channels=(32, 37, 40), tested=10_000, batches=(1, 64),
              others=("lenet5", "cifar_small", "resnet18", "imdb_lstm", "imdb_bag")),
)  # fmt: skip
training.seed_everything(SEED)
cifar = data.cifar10()
net = checkpoints.load(S.net)
validation = cifar.validation.take(S.examples)
images, TWO = validation.inputs, validation.inputs[:2]
wanted = training.predict(net, images)

# %%
graph = runtime.export_onnx(net, TWO, run.scratch("net.onnx"))
in_openvino = openvino.Core().compile_model(str(graph), "CPU")  # as its documentation opens a file
logits = {
    "ONNX Runtime": runtime.run(runtime.session(graph), images.numpy()),
    "OpenVINO": in_openvino(images.numpy())[in_openvino.output(0)],
    "OpenVINO, told float32": runtime.openvino.opened(graph)(images.numpy()),
}
errors = {
    name: float((torch.from_numpy(found) - wanted).abs().max() / wanted.abs().max()) for name, found in logits.items()
}
pd.Series(errors, name="largest error / largest logit").map("{:.1e}".format).to_frame()

# %% [markdown]
# Where that second number is large, OpenVINO computed in **bfloat16**: a float32 without its lower half, so 8 significant bits in
# place of 24. It does so by default wherever the processor multiplies such numbers (version 2026.4.1), because that is faster; nothing
# in the file asks for it and nothing in the answer says so. Is that the whole difference? Build it. To round a float32 to bfloat16, add
# half of what will be cut off and cut; a tie goes to the even neighbour.


# %%
def to_bfloat16(x):
    """Round each float32 to the nearest number whose lower 16 bits are zero, ties to even."""
    bits = x.contiguous().view(torch.int32)
    tie = (bits >> 16) & 1  # the last bit that stays
    return ((bits + 0x7FFF + tie) & ~0xFFFF).view(torch.float32)


numbers = torch.cat([torch.randn(100_000), torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8])])
different = int((to_bfloat16(numbers) != numbers.bfloat16().float()).sum())

# %% [markdown]
# Now let the network multiply only such numbers: every weight of a multiplying layer is rounded, and each input before it enters.
# Sums stay in float32, as in the hardware.


# %%
def in_bfloat16(model):
    """A copy whose convolutions and linear layers multiply bfloat16 numbers."""
    model = modules.copied(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data = to_bfloat16(layer.weight.data)
            layer.register_forward_pre_hook(lambda _, inputs: (to_bfloat16(inputs[0]),))
    return model


folded = quantization.fold_batchnorm(net, TWO)
rounded = training.predict(in_bfloat16(folded), images)
built = float((rounded - wanted).abs().max() / wanted.abs().max())

# %% tags=["plumbing"]
BF16 = runtime.openvino.multiplies_bfloat16()
run.claim("bfloat16-rounding", "Numbers that the cell rounds otherwise than PyTorch's bfloat16", different, at_most=0)
run.claim("float32-is-float32", "Largest relative error of the logits: ONNX Runtime, and OpenVINO told float32",
          max(errors["ONNX Runtime"], errors["OpenVINO, told float32"]), at_most=1e-4)  # fmt: skip
if BF16:
    run.claim("default-is-bfloat16", "OpenVINO's default: its error as a multiple of its float32 error",
              errors["OpenVINO"] / errors["OpenVINO, told float32"], at_least=50)  # fmt: skip
changed = int((logits["OpenVINO"].argmax(1) != wanted.argmax(1).numpy()).sum())
run.record("bfloat16", {"default": errors["OpenVINO"], "built": built, "changed": changed, "cpu": BF16})
say(
    (
        f"This processor multiplies bfloat16. OpenVINO's default is {errors['OpenVINO']:.1e} off, the network that you built {built:.1e}; "
        f"told float32, OpenVINO is {errors['OpenVINO, told float32']:.1e} off."
        if BF16
        else f"This processor does not multiply bfloat16, so OpenVINO's default is float32 here ({errors['OpenVINO']:.1e}); what it would be "
        f"elsewhere, your own network shows: {built:.1e}."
    )
    + f" Of {len(images):,} answers {changed} changed. The two errors are of one size; where exactly each rounds is its own affair."
)

# %% [markdown]
# That is a fair trade, if one knows of it. In a table it is not fair: a row "OpenVINO float32" beside "ONNX Runtime float32" compares
# 8 bits of precision with 24. **Check the error of the logits before you believe a column of times.**
#
# ## 3. Six questions for any int8 file
#
# 1. **Which layers** were left out? 2. **Granularity**: one scale for a whole weight tensor, or one for each output channel? 3. **Sign** of
# the activations. 4. **BatchNorm**: folded, or one more layer between? 5. **Batch**: any, or the one of your example? 6. Are the weights
# **stored** as integers at all?
#
# Each can be read off the file. An ONNX file says it in its nodes: `QuantizeLinear` rounds to codes, `DequantizeLinear` gives numbers
# back, and the types of their zero points are the types of the codes.


# %%
def looked_into(path):
    """Read the answers to four of the questions off an ONNX file in QDQ form."""
    content = onnx.load(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in content.initializer}
    undone = [node for node in content.node if node.op_type == "DequantizeLinear" and node.input[0] in stored]
    weights = [node for node in undone if stored[node.input[0]].ndim > 1]
    rounded = [node for node in content.node if node.op_type == "QuantizeLinear"]
    return {
        "integer weights": sorted({str(stored[node.input[0]].dtype) for node in weights}),
        "one scale per channel": any(stored[node.input[1]].size > 1 for node in weights),
        "activations": sorted({str(stored[node.input[2]].dtype) for node in rounded if node.input[0] not in stored}),
        "float weights": sum(a.ndim > 1 and a.dtype == np.float32 for a in stored.values()),
        "BatchNorm": any(node.op_type == "BatchNormalization" for node in content.node),
    }


# %% tags=["plumbing"]
calibration = validation.take(S.calibration)
plain = runtime.export_onnx(folded, TWO, run.scratch("folded.onnx"))
files = {
    "ours: u8 × s8, per channel": runtime.quantize_static(plain, calibration, run.scratch("u8s8.onnx")),
    "signed activations": runtime.quantize_static(plain, calibration, run.scratch("s8s8.onnx"), activations="int8"),
    "one scale for each weight": runtime.quantize_static(plain, calibration, run.scratch("tensor.onnx"), per_channel=False),
}  # fmt: skip

# %%
pd.DataFrame({name: looked_into(path) for name, path in files.items()})

# %% [markdown]
# The same questions, put to what the tools wrote. An empty field: the format does not say it in a way that we could read.

# %% tags=["plumbing"]
ASKED = ["weights", "float layers", "per channel", "activations", "batchnorm", "batch"]


def in_short(value):
    """A fact as a cell of a table."""
    if isinstance(value, list):
        return f"{len(value)}: {', '.join(map(str, value[:3]))}{' …' * (len(value) > 3)}" if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


facts = (
    pd.DataFrame(
        [{"tool": r["tool"], "variant": r["variant"]} | {name: in_short(fact(r, name)) for name in ASKED} for r in rows]
    )
    .set_index(["tool", "variant"])
    .rename(columns={"float layers": "layers left out"})
)
facts

# %% [markdown]
# Read the column *weights*: how many arrays of weights are stored as integers, so 0 is fake quantization. A library that works in PyTorch usually keeps float32 weights and rounds them in each
# forward pass: **fake quantization**. It is the right tool for finding out what int8 would cost, and it makes nothing smaller or faster
# until another program writes integers.
#
# ## 4. The silent mistakes
#
# A conversion that fails is a nuisance; one that succeeds wrongly is a loss. Three things can go wrong before any tool is to blame.
# The records hold what each tool did about them: a network left in **training mode** (`model.train()`), a first convolution with a
# **channel of zeros** (its scale would be 0), and the same conversion **twice**. **Predict** for each: an error, the right answer, or a
# wrong one?

# %% tags=["plumbing"]
probes = []
for _, row in ANSWERED.iterrows():
    found = RECORDS[row["name"]]["networks"]["cifar_base"]["variants"][row["variant"]].get("probes")
    if found:
        probes.append({"tool": row["tool"], "variant": row["variant"]} | found)
probed = pd.DataFrame(probes).set_index(["tool", "variant"])


def percent(value):
    """An accuracy as text; an error's first words as they are."""
    return f"{value:.1%}" if isinstance(value, float) else str(value)[:60]


probed.rename(columns={"dense, a channel of zeros": "PyTorch, a channel of zeros"}).map(percent)

# %% tags=["plumbing"]
trained = {
    name: 100 * (row["as it is"] - row["in training mode"])
    for name, row in probed.iterrows()
    if isinstance(row["in training mode"], float) and isinstance(row["as it is"], float)
}
fooled = {name: lost for name, lost in trained.items() if lost > 10}
refused = {name for name, row in probed.iterrows() if isinstance(row["in training mode"], str)}
repeated = probed["converted again"].eq("identical").mean()
run.claim("training-mode", "Largest loss of a conversion that took a network in training mode without an error (points)",
          max(trained.values()), at_least=10)  # fmt: skip
run.record("probes", {"fooled": len(fooled), "refused": len(refused), "repeated": repeated})
by_us = sum("allowed: evaluation mode" in row["in training mode"] for name, row in probed.iterrows() if name in refused)
moved = {name: lost for name, lost in trained.items() if 0.3 < lost <= 10}
say(
    f"Of {len(probed)} conversions, {len(refused)} were refused, {by_us} of them by this course's own check. "
    + "".join(f"{tool} ({variant}) lost {lost:.0f} points without a word. " for (tool, variant), lost in fooled.items())
    + f"{len(moved)} more lost between 0.3 and a few points, which one would hardly notice. The rest answered as before, some because the "
    f"tool switches to evaluation, some because our script does. Converted again, {repeated:.0%} gave the same bytes."
)

# %% [markdown]
# And some mistakes are the tools' own. Each of these, seen while this page was written, is an answer that is wrong without a word on valid
# input, or, in one row, an error that comes too late. A script for each, named in the last column, lies in the course's folder `findings/` and shows it in an environment of its own.
#
# | tool, version | what one asks | what comes | script |
# |---|---|---|---|
# | ONNX Runtime 1.31.1, float | zeros around an image, then a maximum | the zeros never win: wrong wherever all neighbours are negative | `onnxruntime_pad_max_pool_float_wrong` |
# | ONNX Runtime 1.31.1, int8 | a mean over windows that reach beyond the edge, padding counted | edges divided by too much | `onnxruntime_average_pool_ceil_quantized` |
# | ONNX Runtime 1.31.1, int8 | attention over 1,024 words | weights below 1/510 become 0, whatever the calibration saw | `onnxruntime_long_attention_quantized_to_zero` |
# | AIMET 2.42 → ONNX Runtime | biases as integers with a step of their own | the step is ignored: one answer in a thousand is right | `onnxruntime_linear_bias_step` |
# | OpenVINO 2026.4.1 | a bag of words with padding | padding counts in the mean | `openvino_embedding_bag_padding` |
# | NNCF 3.4.0 | a maximum over words, padding masked by −10⁹ | the mask stretches the grid until every answer is the same | `nncf_range_of_a_masked_maximum` |
# | ExecuTorch 1.5.1 | a file for batches of 1 to 64 | memory for 15, if the example was small; an error, but only when it runs | `executorch_planned_batch` |
# | ncnn 1.0.20261020 | an image as `array.transpose(2, 0, 1)` | the numbers in the order of the memory, not of the array | `ncnn_mat_strides` |
#
# Versions move, and by the time you read this some will be mended. What stays is how each was found: by comparing answers. So the
# helpers do it for you. `export_onnx` compares the runtime's logits with PyTorch's before a file appears, and `quantize_static` compares
# the joined integer kernels with the same file computed node by node; the first two rows stop there with an error.
#
# Guarding against a network in training mode takes two lines, whatever the tool: `model.eval()` before, and after it the logits of a few hundred real photographs,
# compared with PyTorch's. In training mode, BatchNorm subtracts the mean of *the batch that is being answered*. So an answer depends on
# its neighbours, and that can be measured without knowing the tool at all; exercise 17.2 does.
#
# ## 5. What is left of the graph
#
# An int8 file is a promise. The runtime keeps it if it can **join** rounding, convolution and activation into one integer kernel; else it
# goes back to floats between two integer layers. Let each runtime say what it made of our three files.


# %%
def joined_by_onnxruntime(path):
    """The kinds of operators that are left when ONNX Runtime has rewritten a file."""
    options, written = onnxruntime.SessionOptions(), run.scratch("rewritten.onnx")
    options.optimized_model_filepath, options.log_severity_level = str(written), 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(written).graph.node)


def joined_by_openvino(path):
    """The kinds of kernels that OpenVINO compiled, and the type that each puts out."""
    compiled = openvino.Core().compile_model(str(path), "CPU")
    told = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return Counter(f"{info['layerType'].astype(str)} → {info['outputPrecisions'].astype(str)}" for info in told)


# %%
left = {("ONNX Runtime", name): joined_by_onnxruntime(path) for name, path in files.items()}
not_compiled = []
for name, path in files.items():
    try:
        left["OpenVINO", name] = joined_by_openvino(path)
    except RuntimeError:  # "no suitable implementations"
        not_compiled.append(name)

# %% tags=["plumbing"]
MOVING = ("QuantizeLinear", "DequantizeLinear", "Reorder", "Convert")
INSIDE = ("QLinear", "QGemm", "u8", "i8")


def sort_of(kind):
    """What a kernel works in, from its name."""
    if kind.startswith(MOVING):
        return "converts between types"
    if kind.startswith(
        ("Input", "Parameter", "Output", "Result", "Const", "Reshape", "Flatten", "Transpose", "MaxPool", "Pooling")
    ):
        return ""
    return "integers" if any(mark in kind for mark in INSIDE) else "floating point"


sorts = ("integers", "floating point", "converts between types")
counted = pd.DataFrame(
    {
        key: {sort: sum(n for kind, n in kinds.items() if sort_of(kind) == sort) for sort in sorts}
        for key, kinds in left.items()
    }
).T
fig, ax = plt.subplots(figsize=(9.5, 3.8))
start = np.zeros(len(counted))
for sort, colour, hatch in zip(sorts, show.COLOURS[:3], ("", "////", "...."), strict=True):
    ax.barh(range(len(counted)), counted[sort], left=start, color=colour, hatch=hatch, edgecolor="white", label=sort)
    start += counted[sort].to_numpy()
ax.set_yticks(range(len(counted)), [f"{tool}\n{name}" for tool, name in counted.index], fontsize=10)
ax.invert_yaxis()
most = counted.loc[("ONNX Runtime", "signed activations"), "converts between types"]
least = counted.loc[("ONNX Runtime", "ours: u8 × s8, per channel"), "converts between types"]
ax.set(
    xlabel="kernels that are left (without maxima, reshaping, transposing)",
    title=f"ONNX Runtime: signed {most:.0f} conversions, unsigned {least:.0f}",
)
ax.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=3)
show.figure(
    fig, alt=f"Kernels left after rewriting, by runtime and file. {show.in_words(counted, '{:.0f}')}", table=counted
)

# %% tags=["plumbing"]
photo = images[:1].numpy()
sessions = {name: runtime.session(path, threads=1) for name, path in files.items()}
calls = {name: partial(runtime.run, session, photo) for name, session in sessions.items()}
again = partial(runtime.run, runtime.session(files["ours: u8 × s8, per channel"], threads=1), photo)
sign_clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=1, control=again))
run.claim(
    "signs-joined",
    "Conversions left by ONNX Runtime in the file with signed activations, beyond ours",
    float(most - least),
    at_least=1,
)
run.record(
    "signed",
    {"speed": sign_clock["signed activations"].ratio, "verdict": sign_clock["signed activations"].verdict},
    timing=True,
)
say(
    f"In ONNX Runtime, on one thread here, the file with signed activations runs at {sign_clock['signed activations'].ratio:.2f} times the "
    f"speed of ours ({sign_clock['signed activations'].verdict}). The reason is not the sign itself. A ReLU gives nothing below 0: with "
    "unsigned codes it is the lower end of the grid and disappears into the convolution before it; with signed codes it stays, and so do "
    "the conversions around it. Signed activations are the default of ONNX Runtime's own quantizer (version 1.31.1)."
    + (
        f" OpenVINO does not open {' and '.join(f'*{name}*' for name in not_compiled)} at all here."
        if not_compiled
        else ""
    )
)

# %% [markdown]
# ## 6. The table
#
# All variants that answered. *Error* is that of the logits against PyTorch, relative to the largest; *bytes* a share of the float32
# weights; *start* the seconds from nothing to the first answer in a fresh process, *memory* the most it took. Speeds are multiples of
# our int8 file in ONNX Runtime, timed in the same process in turns, two threads. What failed, or took more than a second a call, has an empty field.
# Our own row is a second copy of the yardstick, so its distance from 1 is noise.

# %% tags=["plumbing"]
COLUMNS = {
    "accuracy": "{:.2%}",
    "error": "{:.1e}",
    "bytes": "{:.2f}",
    WAY: "{:.2f}",
    LARGE_WAY: "{:.2f}",
    "start": "{:.1f} s",
    "memory": "{:.0f} MB",
}
shown = table.sort_values(["tool", "variant"]).set_index(["tool", "variant"])
for column, form in COLUMNS.items():
    shown[column] = [form.format(value) if pd.notna(value) else "" for value in shown[column]]
fewer = table[table["count"] < table["count"].max()]
shown = shown[[*COLUMNS, "problem"]].rename(columns={WAY: "speed, batch 1", LARGE_WAY: "speed, batch 64"})
shown.assign(problem=shown["problem"].fillna("").str.slice(0, 90))

# %% tags=["plumbing"]
smallest = INTEGERS.loc[INTEGERS["bytes"].idxmin()]
whole = INTEGERS[INTEGERS["bytes"] > 0.9]
lost, close = INTEGERS["lost"], INTEGERS[INTEGERS["lost"] < 1]
broken = INTEGERS[INTEGERS["lost"] > 10]
run.claim("int8-accuracy", "Share of the int8 variants that answered and lost less than a point of test accuracy (stored records)",
          len(close) / len(INTEGERS), at_least=0.8)  # fmt: skip
run.claim(
    "not-smaller",
    "int8 variants whose saved result is at least nine tenths of float32 (stored records)",
    float(len(whole)),
    at_least=1,
)
say(
    f"{WHEN}. Accuracy is on the test photographs, {int(table['count'].max()):,} of them; {len(fewer)} slow variants were asked fewer. "
    f"{len(close)} of {len(INTEGERS)} int8 variants lose less than a point ({lost.min():+.2f} to {close['lost'].max():+.2f}): among them, accuracy "
    "hardly separates anything. "
    + "".join(
        f"One is broken ({r.tool}, {r.variant}: {r.accuracy:.1%}), and its file says nothing. "
        for r in broken.itertuples()
    )
    + f"Size separates: from {smallest['bytes']:.2f} ({smallest['tool']}) to {INTEGERS['bytes'].max():.2f} of float32, and {len(whole)} are "
    "not smaller at all."
)

# %% [markdown]
# So check that a file is not broken; beyond that, choosing by accuracy is choosing by noise: with 10,000 photographs, one standard error
# is a quarter of a point. What separates tools is whether they store integers, what they join, how they start, and how much they bring along.
#
# ## 7. How to read such a table
#
# Three traps, each of which can decide a comparison.
#
# **Precision.** Section 2: "float32" that is bfloat16.
#
# **Cold and warm.** A call that follows another runtime's finds the caches full of the other's weights, and its threads asleep. A call
# that follows its own finds everything in place. Servers live warm, phones cold. In turns with one call each you measure cold; with ten
# calls each, mostly warm. **Predict** whether the order of two runtimes turns around here.


# %%
def both_ways(functions, control):
    """Time each function in turns: one call a turn, then ten."""
    timings = {
        way: measure.time_interleaved(functions, rounds=S.rounds, threads=2, inner=calls, control=control)
        for way, calls in (("cold", 1), ("warm", 10))
    }
    return {way: measure.compare(found) for way, found in timings.items()}


ours = files["ours: u8 × s8, per channel"]
in_turns = {
    "ONNX Runtime, int8": partial(runtime.run, runtime.session(ours, threads=2), photo),
    "ONNX Runtime, float32": partial(runtime.run, runtime.session(plain, threads=2), photo),
    "OpenVINO, int8": partial(runtime.openvino.opened(ours, threads=2, batch=1), photo),
}
ways = both_ways(in_turns, partial(runtime.run, runtime.session(ours, threads=2), photo))

# %% tags=["plumbing"]
pd.concat({way: measure.verdict_table(found) for way, found in ways.items()})

# %% tags=["plumbing"]
COLD = "batch 1, two threads, cold"
pairs = INTEGERS[INTEGERS[COLD].notna() & INTEGERS[WAY].notna()]
turned = pairs[(pairs[COLD] > 1) != (pairs[WAY] > 1)]
run.record(
    "cold_and_warm", {way: {name: v.ratio for name, v in found.items()} for way, found in ways.items()}, timing=True
)
say(
    f"In the stored records, {len(turned)} of {len(pairs)} int8 variants lie on the other side of our file cold than warm"
    + (f" ({', '.join(f'{r.tool}: {r.variant}' for r in turned.itertuples())}). " if len(turned) else ". ")
    + "A point estimate near 1 may fall on either side by chance; the intervals above say how wide that is. So: say which of the two you "
    "measured, and measure the one that your users will meet."
)

# %% [markdown]
# **Round numbers.** Kernels work on 8, 16 or 32 channels at once. Filters removed without looking at that leave a rest that is computed
# all the same. Three small networks that differ in their width only: **predict** the time of the middle one, per multiplication,
# against the first.


# %%
def plain_net(channels):
    """Six convolutions of one width: nothing else differs between two of them."""
    widths = [3, *[channels] * 6]
    layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers, nn.MaxPool2d(32), nn.Flatten(), nn.Linear(channels, 10)).eval()


widths = {channels: plain_net(channels) for channels in S.channels}
macs = {channels: measure.count_macs(model, TWO[:1]) for channels, model in widths.items()}
widest = runtime.export_onnx(widths[S.channels[-1]], TWO, run.scratch("widest.onnx"))
written = {c: runtime.export_like(model, widest, TWO, run.scratch(f"width{c}.onnx")) for c, model in widths.items()}

# %% tags=["plumbing"]
calls = {f"{c} channels": partial(runtime.run, runtime.session(path, threads=1), photo) for c, path in written.items()}
first, odd, even = S.channels
again = partial(runtime.run, runtime.session(written[first], threads=1), photo)
width_clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=1, control=again))
per_mac = {c: (macs[first] / macs[c]) / width_clock[f"{c} channels"].ratio for c in S.channels}
run.record("time_per_mac", {str(c): value for c, value in per_mac.items()}, timing=True)
run.claim("odd-width", f"Time per multiplication with {odd} channels, against {first}, ONNX Runtime float32", per_mac[odd],
          at_least=1.05, timing=True, interval=tuple(macs[first] / macs[odd] / end for end in reversed(width_clock[f"{odd} channels"].cleared)))  # fmt: skip
say(
    f"In float32 in ONNX Runtime, {odd} channels cost {per_mac[odd]:.2f} times as much per multiplication as {first}; {even} channels "
    f"cost {per_mac[even]:.2f} times. In absolute time, {even} channels take "
    f"{width_clock[f'{odd} channels'].ratio / width_clock[f'{even} channels'].ratio:.2f} times what {odd} take, with more weights. When you "
    "remove filters, try a multiple of 8 first, and measure before you choose a width: blocks of 16 or 32 may be what this processor likes."
)

# %% [markdown]
# **Zeros** are the other number that a table should not show without a clock. Set nine weights of ten to zero and quantize as before.

# %%
masked = pruning.mask(folded, pruning.global_masks(folded, 0.9))
zeros = runtime.export_like(masked, plain, TWO, run.scratch("zeros.onnx"))
sparse = runtime.quantize_static(zeros, calibration, run.scratch("zeros-int8.onnx"))

# %% tags=["plumbing"]
calls = {
    "dense": partial(runtime.run, runtime.session(ours, threads=1), photo),
    "nine in ten zero": partial(runtime.run, runtime.session(sparse, threads=1), photo),
}
again = partial(runtime.run, runtime.session(ours, threads=1), photo)
zero_clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=1, control=again))
size = sparse.stat().st_size / ours.stat().st_size
run.claim(
    "zeros-file",
    "int8 file with nine tenths of the weights zero, as a share of the dense int8 file",
    size,
    at_least=0.98,
)
run.record(
    "zeros",
    {"speed": zero_clock["nine in ten zero"].ratio, "verdict": zero_clock["nine in ten zero"].verdict},
    timing=True,
)
say(f"The file with the zeros has {size:.1%} of the bytes, and its speed is {zero_clock['nine in ten zero'].ratio:.2f} times the dense one's: "
    f"{zero_clock['nine in ten zero'].verdict}.")  # fmt: skip

# %% [markdown]
# ## 8. Let the clock choose
#
# No table says what is fastest on *your* processor. `runtime.fastest` does what this page did by hand: it writes the network in float32
# and in 8 bits, opens each file in each runtime that is installed, throws out what does not give the network's own answers, times
# the rest in turns, and keeps the plainest file that no other is measurably faster than. (Where the processor has bfloat16, that is a
# candidate, too. Eager PyTorch is the yardstick and no candidate: where a verdict says *slower*, do not export.)

# %%
chosen = {
    batch: runtime.fastest(
        net, validation, run.scratch(f"fastest{batch}.onnx"), batch=batch, threads=2, rounds=S.rounds
    )
    for batch in S.batches
}

# %% tags=["plumbing"]
pd.concat({f"batch {batch}": measure.verdict_table(found.verdicts) for batch, found in chosen.items()})

# %% tags=["plumbing"]
test = cifar.test.take(S.tested)
one, many = chosen[S.batches[0]], chosen[S.batches[-1]]
refused = {f"{name}, batch {batch}": why for batch, found in chosen.items() for name, why in found.refused.items()}
INT8_ORT = "int8, ONNX Runtime"


def beside_int8(found):
    """The choice's speed as a multiple of the int8 file's in ONNX Runtime, if that was a candidate."""
    return found.verdict.ratio / found.verdicts[INT8_ORT].ratio if INT8_ORT in found.verdicts else None


run.record(
    "fastest",
    {str(b): {"name": f.name, "over_eager": f.verdict.ratio, "over_int8": beside_int8(f)} for b, f in chosen.items()},
    timing=True,
)
run.claim("fastest", "Speed of the chosen file over eager PyTorch, one photograph, two threads", one.verdict.ratio, at_least=1.3,
          timing=True, interval=one.verdict.cleared)  # fmt: skip
say(
    f"For one photograph: **{one.name}**, {one.verdict.ratio:.1f} times PyTorch's speed. For {S.batches[-1]}: **{many.name}**, {many.verdict.ratio:.1f} times. "
    + (f"Refused: {'; '.join(f'{name} ({why})' for name, why in refused.items())}. " if refused else "")
    + "The file remembers the choice, and `python -m helpers predict` opens it that way."
)

# %% tags=["plumbing"]
as_chosen = runtime.open_network(one.file)


class Chosen(nn.Module):
    """The chosen file, answering like a network."""

    def forward(self, inputs):
        return torch.from_numpy(as_chosen.logits(inputs.contiguous().numpy()))


by_file, by_net = training.evaluate(Chosen(), validation).accuracy, training.evaluate(net, validation).accuracy
run.claim(
    "fastest-answers",
    "Validation accuracy by which the chosen file and the network differ",
    abs(by_net - by_file),
    at_most=0.01,
    timing=True,
)
dense, in_eight = (
    run.test(f"{S.net}-dense", net, test),
    run.test(f"{S.net}-int8", runtime.as_module(runtime.session(ours)), test),
)
say(
    f"On the validation photographs the network is right in {by_net:.2%}, the chosen file in {by_file:.2%}. On {len(test):,} test "
    f"photographs, looked at once: the network {dense.accuracy:.2%}, our int8 file {in_eight.accuracy:.2%}."
)

# %% [markdown]
# The same for other networks of the course, and for the one that notebook 15 pruned, retrained and coded: it is narrower, so there is less
# for any runtime to do. **Predict** by how much pruning and the right runtime *together* beat the dense network in eager PyTorch, for one
# photograph on one thread.

# %%
lean = load(paths.MODELS / "15-cifar_base-combined.seed0.pack")
lean_choice = runtime.fastest(lean, validation, run.scratch("lean.onnx"), rounds=S.rounds)
big = checkpoints.load("cifar_base")
lean_answers = runtime.open_network(lean_choice.file).logits

# %% tags=["plumbing"]
with torch.inference_mode():
    calls = {"dense, PyTorch": partial(big, images[:1]), "lean, its fastest file": partial(lean_answers, photo)}
    again = partial(modules.copied(big), images[:1])
    lean_clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=1, control=again))
together = lean_clock["lean, its fastest file"]
run.record("lean", {"name": lean_choice.name, "ratio": together.ratio}, timing=True)
run.claim("lean-fastest", "Speed of the pruned network's fastest file over the dense one in eager PyTorch, one photograph, one thread",
          together.ratio, at_least=4, timing=True, interval=together.cleared)  # fmt: skip


def examples_of(name):
    """Validation examples of a network: digits, photographs or reviews."""
    if name.startswith("imdb"):
        from helpers.data import text

        return text.imdb().validation
    return {"lenet5": data.mnist, "resnet18": data.cifar10_without_cat_and_dog}.get(name, data.cifar10)().validation


elsewhere = {}
for name in S.others:
    model, seen = checkpoints.load(name), examples_of(name).take(S.examples)
    found = runtime.fastest(model, seen, run.scratch(f"fastest-{name}.onnx"), threads=2, rounds=S.rounds)
    elsewhere[name] = {
        "chosen": found.name,
        "over eager": found.verdict.ratio,
        "over our int8 file": beside_int8(found),
    }
run.record("elsewhere", elsewhere, timing=True)
say(f"Pruned and in its fastest file ({lean_choice.name}): {together.ratio:.1f} times the dense network in eager PyTorch "
    f"({together.interval[0]:.1f} to {together.interval[1]:.1f}), on one thread.")  # fmt: skip
pd.DataFrame(elsewhere).T if elsewhere else None

# %% [markdown]
# ## 9. Exercises
#
# **17.1 · Integers, or "int8"?** Write `integer_share`: it takes the path of an ONNX file and returns which share of its weights (the
# numbers in initializers of two or more axes) are stored as 8-bit integers. A file of fake quantization has rounding nodes, and a share of 0.


# %%
def integer_share(path):
    """Return the share, from 0 to 1, of the weights that are stored as int8 or uint8."""
    ### BEGIN SOLUTION
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    weights = [array for array in stored if array.ndim >= 2]
    integers = sum(array.size for array in weights if array.dtype in (np.int8, np.uint8))
    return integers / sum(array.size for array in weights)
    ### END SOLUTION


exercises.check("17.1", integer_share)

# %% [markdown]
# **17.2 · Why does this conversion fail on sorted photographs?** A colleague sends a converted network, as a function from a batch to
# logits. On a batch of photographs of one class it fails badly. You suspect that it was converted in training mode. Write `leans_on_neighbours`: return
# the largest absolute difference between an example's logits when it is asked alone and when it is asked within the batch.


# %%
def leans_on_neighbours(answers, batch):
    """Return by how much an answer changes with the examples that it is asked beside."""
    ### BEGIN SOLUTION
    together = answers(batch)
    alone = torch.cat([answers(batch[i : i + 1]) for i in range(len(batch))])
    return float((together - alone).abs().max())
    ### END SOLUTION


exercises.check("17.2", leans_on_neighbours)

# %% [markdown]
# **17.3 · Why is this int8 file slow?** Write `signed_activations`: it takes the path of an ONNX file in QDQ form and returns the names of
# the tensors that are rounded to *signed* codes while the network runs (weights, which lie in the file, do not count), sorted. The third
# input of a `QuantizeLinear` is its zero point, whose type is the type of the codes.


# %%
def signed_activations(path):
    """Return the names of tensors that QuantizeLinear rounds to int8 at run time."""
    ### BEGIN SOLUTION
    content = onnx.load(path).graph
    kinds = {tensor.name: tensor.data_type for tensor in content.initializer}
    return sorted(
        node.input[0]
        for node in content.node
        if node.op_type == "QuantizeLinear"
        and node.input[0] not in kinds
        and kinds.get(node.input[2]) == onnx.TensorProto.INT8
    )
    ### END SOLUTION


exercises.check("17.3", signed_activations)

# %% [markdown]
# **17.4 · Predict bfloat16.** A number in bfloat16 has 8 significant bits, so rounding moves it by at most 2⁻⁸ of itself, 0.4 %. Predict the
# largest error of the logits, as a share of the largest logit, of the network that you built in section 2. Within a factor of 5 is fine.


# %%
def error_of_bfloat16():
    """Return the predicted largest error, as a share of the largest logit."""
    ### BEGIN SOLUTION
    return 2**-8  # errors of many products partly cancel, and layers add up: about what one rounding costs
    ### END SOLUTION


exercises.check("17.4", error_of_bfloat16, measured=built)

# %% [markdown]
# **17.5 · Open: your own table.** Take a network of yours and three tools that you could deploy with. Before you convert anything, write
# down your guesses to the six questions of section 3 and the order of speed. Then measure: errors of the logits first, bytes second, time
# last, cold and warm. Which guess was wrong, and what would you have shipped because of it? There is no solution to look up.

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **Tools**: {len(clocked)} answered and were timed on `cifar_base`; {small['yes']} of {small['of']} int8 variants are files of at most 0.3 "
    f"of float32, {len(whole)} are no smaller than the original.\n"
    f"- **float32**: OpenVINO's default is {errors['OpenVINO']:.1e} off on this machine, {errors['OpenVINO, told float32']:.1e} when told.\n"
    f"- **Signs**: signed activations leave {most - least:.0f} more conversions in ONNX Runtime.\n"
    f"- **Widths**: {odd} channels cost {per_mac[odd]:.2f} times as much per multiplication as {first}.\n"
    f"- **Zeros**: {size:.1%} of the bytes.\n"
    f"- **The clock's choice**: {one.name} for one photograph, {many.name} for {S.batches[-1]}."
)

# %% tags=["plumbing"]
counted = dict(
    weights=measure.count_weights(net), nonzero=measure.count_nonzero(net), macs=measure.count_macs(net, TWO[:1])
)


def named(candidate):
    """The runtime of a candidate as the results files call it: onnxruntime, openvino."""
    return candidate.rpartition(", ")[2].replace(" ", "").lower()


latency = [
    record | {"baseline": "PyTorch"}
    for batch, found in chosen.items()
    for name, verdict in found.verdicts.items()
    if name.startswith("int8")
    for record in measure.latency_records({name: verdict}, runtime=named(name), batch=batch)
]
run.model(f"{S.net}-int8", task="cifar10", method="8-bit weights and activations", file=ours, accuracy=in_eight.accuracy,
          techniques=["fewer bits"], latency=latency, **counted)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - Ask six questions of any int8 file: which layers, which granularity, which sign, BatchNorm, batch, and whether the weights are stored
#   as integers. <!-- by construction -->
# - Most int8 conversions agree on accuracy and differ in bytes and speed: what stays in PyTorch is often not smaller at all.
#   <!-- claims: tools-ran, int8-accuracy, not-smaller -->
# - Check the error of the logits before any time. A file in float32 can be computed in float32, if it is asked for.
#   <!-- claims: float32-is-float32, bfloat16-rounding -->
# - A network in training mode can be converted without a word, and answers with its neighbours' statistics. Say `eval()`, and compare
#   logits. <!-- claims: training-mode -->
# - Signed activations keep ONNX Runtime from joining ReLU into the integer kernel. <!-- claims: signs-joined -->
# - Zeros make no int8 file smaller by themselves. <!-- claims: zeros-file -->
# - Say whether you timed cold or warm, and let the clock choose on the machine that will run it. <!-- claims: fastest, fastest-answers -->
#
# ## To read
#
# - Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam and Kalenichenko 2018, *Quantization and Training of Neural Networks for Efficient
#   Integer-Arithmetic-Only Inference*: what the integer kernels compute.
# - Nagel, Fournarakis, Amjad, Bondarenko, van Baalen and Blankevoort 2021, *A White Paper on Neural Network Quantization*: where scales
#   and granularity come from.
# - Kalamkar, Mudigere, Mellempudi and others 2019, *A Study of BFLOAT16 for Deep Learning Training*: why 8 significant bits are enough.
# - Mytkowicz, Diwan, Hauswirth and Sweeney 2009, *Producing Wrong Data Without Doing Anything Obviously Wrong!*: how the order of things
#   decides benchmarks.
# - The documentation of each tool that you use, on its defaults: they change with versions, and the records on this page name theirs.
#
# **Next**: notebook 19 puts every model of this course on one Pareto front. (18, a transformer, is not written yet; its number is reserved.)
