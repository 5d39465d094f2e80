# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [16_deploy]
# ---

# %% [markdown]
# # 16 · Deploy: what does the runtime buy, and when does sparsity pay?
#
# A trained network is a recipe and some numbers. So far PyTorch mostly cooked it, in a notebook. Whoever uses your network
# wants neither: they want an answer, soon, from a program that starts at once and fits beside others. Here you read the
# recipe out of its file and cook it yourself, in two dozen lines of NumPy. Then a real runtime does it, and you measure
# what each of its tricks is worth. And you answer the question that every notebook on pruning left open: from which share
# of zeros on is a matrix faster in a format that skips them?
#
# **You will be able to**
# - read an ONNX file, run it with your own code, and say what a runtime does to it before the first image;
# - choose threads and batch size by latency, throughput and percentiles, and not by a mean;
# - measure start-up and memory so that no other process counts;
# - write a product with a sparse matrix, predict where it breaks even by counting bytes, and measure where it does;
# - hand over a file that the clock chose, and one command that answers without PyTorch.
#
# **Before this**: notebook 01 (latency with its null control), notebooks 02 and 04 (masks, removal), notebook 10
# (ONNX Runtime, BatchNorm folded).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import scipy.sparse
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import nn
from torch.nn import functional as F

from helpers import (
    checkpoints,
    data,
    evidence,
    exercises,
    measure,
    nets,
    pruning,
    quantization,
    runtime,
    show,
    training,
)
from helpers.core import paths, system
from helpers.evidence import say
from helpers.files import load_into, write_dense
from helpers.show import figures

warnings.filterwarnings("ignore", "Sparse (CSR|BSR) tensor support is in beta state")  # PyTorch says so, once

# %% tags=["plumbing"]
run = evidence.start("16_deploy", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("16_deploy"))

# %% [markdown]
# What the published runs found, before you measure it yourself. A dot is one run; right of the black line something became faster, left
# of it slower. The first two rows time a whole network, one photograph on one thread. The other three time one large layer with a single
# input, against the same layer dense: its zeros are *skipped* (a format, CSR, that lists only the other weights), or *removed*, which
# leaves a smaller layer.

# %% tags=["plumbing", "answer"]
finished = evidence.published("16_deploy")
if finished:
    clocked = [pd.DataFrame(result.timings["sparse_speed"]) for result in finished]
    clocked = [table[table["inputs at a time"] == 1].set_index(["layer", "form"]) for table in clocked]
    largest = max((name for name, _ in clocked[0].index), key=lambda name: int(name.split()[0].replace(",", "")))
    skipped, removed = (largest, "rows (CSR), PyTorch"), (largest, "removed: a smaller dense layer")
    rows = {
        "ONNX Runtime instead of PyTorch": evidence.claimed("16_deploy", "runtime"),
        "of it, the rewriting of the graph": [result.timings["by_level"]["all"]["ratio"] for result in finished],
        "half of the weights zero, skipped": [float(table.loc[skipped, "0.5"]) for table in clocked],
        "nine in ten zero, skipped": [float(table.loc[skipped, "0.9"]) for table in clocked],
        "nine in ten removed": [float(table.loc[removed, "0.9"]) for table in clocked],
    }
    gained, half, *_ = rows["ONNX Runtime instead of PyTorch"], rows["half of the weights zero, skipped"]
    zeros = "slower" if max(half) < 1 else "faster" if min(half) > 1 else "undecided"
    title = f"The runtime: {np.mean(gained):.1f} times as fast. Half of the weights zero: {zeros}"
    fig = show.dots(rows, title=title, xlabel="times as fast (log scale)", label="{:.2f}")
    ax = fig.axes[0]
    ax.axvline(1, color="black", linewidth=1, zorder=0)
    ax.set(xscale="log", xlim=(0.2, 25))
    ax.set_xticks([0.25, 0.5, 1, 2, 5, 10, 20], ["0.25", "0.5", "1", "2", "5", "10", "20"])
    ax.minorticks_off()
    table = pd.DataFrame(rows, index=[f"run {1 + i}" for i in range(len(finished))]).T
    show.figure(fig, alt=f"Times as fast, by run. {show.in_words(table, '{:.2f}')}", table=table)
    say(
        f"The layer has {largest} weights. The runs measured one machine again and again: another one may draw other lines."
    )
else:
    say("No full run of this page is published, so there is no picture of its result yet.")

# %% [markdown]
# And the idea of the page in one picture.

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(9.5, 3.6))


def chain(y, boxes, note, colour):
    """Draw a row of nodes; each arrow is a trip through memory."""
    x = 2.4
    ax.text(0, y, note, ha="left", va="center", fontsize=11)
    for i, (label, width) in enumerate(boxes):
        ax.add_patch(plt.Rectangle((x, y - 0.32), width, 0.64, facecolor=colour, edgecolor="black", alpha=0.85))
        ax.text(x + width / 2, y, label, ha="center", va="center", fontsize=11, color="white", fontweight="bold")
        if i + 1 < len(boxes):
            ax.annotate(
                "", (x + width + 0.72, y), (x + width + 0.03, y), arrowprops={"arrowstyle": "->", "linewidth": 1.6}
            )
        x += width + 0.75


chain(
    3.0,
    [("Conv", 1.0), ("Relu", 1.0), ("Conv", 1.0), ("Relu", 1.0), ("MaxPool", 1.3)],
    "the file: a list\nof operators",
    show.COLOURS[0],
)
chain(
    1.7,
    [("Conv + Relu", 2.0), ("Conv + Relu", 2.0), ("MaxPool", 1.3)],
    "the runtime: fewer,\nfused ones",
    show.COLOURS[2],
)
draw_zeros = np.random.default_rng(3).random(32) < 0.25
for i, kept in enumerate(draw_zeros):
    face = show.COLOURS[4] if kept else "white"
    ax.add_patch(plt.Rectangle((2.4 + 0.26 * i, 0.25), 0.22, 0.5, facecolor=face, edgecolor="#999999", linewidth=0.8))
ax.text(0, 0.5, "its numbers: are the\nzeros (white) skipped?", ha="left", va="center", fontsize=11)
ax.text(10.8, 2.35, "each arrow is\na trip through\nmemory", ha="center", va="center", fontsize=10)
ax.set(xlim=(-0.1, 11.7), ylim=(0, 3.6), title="A runtime rewrites the recipe. It leaves the numbers as they are")
ax.axis("off")
show.figure(fig, alt="Three rows. The file is a chain of five operators, Conv, Relu, Conv, Relu, MaxPool, with an arrow between "
            "neighbours. The runtime has three: Conv and Relu fused, twice, and MaxPool. Below, a row of numbers, most of "
            "them empty boxes: zeros, which a dense kernel multiplies like the others.")  # fmt: skip

# %% [markdown]
# Two settings matter. `zeros` are the shares of weights that section 6 sets to zero, `columns` how many inputs a layer gets
# at a time: where sparsity pays depends on both. The others, folded below, say how often each clock runs.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(net="cifar_small", validation=100, batches=(1, 4), calls=20, rounds=20, layers=((60, 80),),
               zeros=(0.5, 0.9), columns=(1, 8), starts=1, tested=100),
    quick=dict(net="cifar_small", validation=1_000, batches=(1, 8, 64), calls=60, rounds=40,
               layers=((500, 800), (2_000, 2_000)), zeros=(0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995), columns=(1, 64),
               starts=3, tested=4_000),
    full=dict(net="cifar_base", validation=2_500, batches=(1, 8, 64), calls=200, rounds=60,
              layers=((500, 800), (2_000, 2_000), (4_000, 4_000)),
              zeros=(0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995), columns=(1, 8, 64), starts=5, tested=10_000),
)  # fmt: skip

# %% tags=["plumbing"]
training.seed_everything(SEED)
cifar = data.cifar10()
validation = cifar.validation.take(S.validation)
net = checkpoints.load(S.net)
TWO, ONE = validation.inputs[:2], validation.inputs[:1]
base = training.evaluate(net, validation).accuracy
NAME = "16_deploy"
PUBLISHED, PUBLISHED_NET = evidence.published(NAME), "cifar_base"


def faster(what, own, published):
    """A comparison of speeds, as ratios: this run's, and those of the published runs, which timed one network anew each."""
    return evidence.Comparison(what, own, tuple(published))


def conclude_speed(*comparisons, doublings=False, timed=None, published=None):
    """Say which is faster, in per cent, or for large ratios in doublings: 1 is twice as fast, -1 half as fast.

    Where the published runs timed something else than this one, this run's numbers stand apart: they are of another thing.
    """
    timed, published = timed or S.net, published or PUBLISHED_NET
    unit, scaled = ("doublings", np.log2) if doublings else ("% of speed", lambda ratio: 100 * (ratio - 1))
    own = [float(scaled(each.own)) for each in comparisons]
    in_unit = [
        evidence.Comparison(
            each.what, mine if timed == published else None, tuple(map(float, map(scaled, each.published)))
        )
        for each, mine in zip(comparisons, own, strict=True)
    ]
    evidence.conclude(*in_unit, unit=unit, words=("faster", "slower"))
    if timed != published:
        say(
            f"The published runs timed `{published}`, this run `{timed}`. They differ, so its numbers neither confirm nor contradict the "
            f"published ones: in the same order, {'; '.join(f'{mine:+.2f} {unit}' for mine in own)}."
        )


say(f"`{S.net}` names {base:.1%} of {len(validation):,} validation photographs.")

# %% [markdown]
# ## 1. What the file holds
#
# **ONNX** is a format for networks: a list of *nodes*, each an operator with a name that the standard defines, and the
# tensors that flow between them. `runtime.export_onnx` runs PyTorch's exporter and compares the logits before the file
# appears. BatchNorm is folded first, as in notebook 10.
#
# **Predict**: the network has 8 convolutions with ReLU, 4 poolings, 2 additions, and one linear layer. How many nodes are
# in the file? And what share of its bytes is weights?

# %%
folded = quantization.fold_batchnorm(net, TWO)
graph = runtime.export_onnx(folded, TWO, run.scratch("net.onnx"))
content = onnx.load(graph).graph
stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in content.initializer}
kinds = Counter(node.op_type for node in content.node)
pd.Series(kinds, name="nodes").to_frame().T

# %% tags=["plumbing"]
numbers = sum(array.nbytes for array in stored.values())
say(
    f"{len(content.node)} nodes. {numbers:,} of the file's {graph.stat().st_size:,} bytes are weights and biases "
    f"({numbers / graph.stat().st_size:.1%}); the recipe takes {graph.stat().st_size - numbers:,}. It has no loops, no "
    "Python, and no trace of how the network was trained."
)

# %% [markdown]
# So few kinds of operators: you can write them all. A node names its inputs, its outputs and some attributes. The
# convolution looks at all patches at once, as a view, and multiplies them with the filters.


# %%
def conv(x, weight, bias=0.0, *, pads, **_):
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    patches = sliding_window_view(x, weight.shape[2:], axis=(2, 3))  # batch, channels, y, x, height, width
    return np.einsum("bcyxhw,fchw->bfyx", patches, weight, optimize=True) + np.reshape(bias, (-1, 1, 1))


def max_pool(x, *, kernel_shape, **_):
    (size, _), (*outer, height, width) = kernel_shape, x.shape
    return x.reshape(*outer, height // size, size, width // size, size).max(axis=(3, 5))


# %%
OPERATORS = {
    "Conv": conv,
    "MaxPool": max_pool,
    "Relu": lambda x: np.maximum(x, 0),
    "Add": lambda x, y: x + y,
    "Reshape": lambda x, shape, **_: x.reshape(shape),
    "Gemm": lambda x, weight, bias, **_: x @ weight.T + bias,
}

# %% [markdown]
# And the runtime itself: the tensors by name, the nodes in order. (The standard promises that each node stands after
# those that it needs.)


# %%
def run_graph(content, images):
    """Compute an ONNX graph's first output, one node after another."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in content.initializer}
    tensors[content.input[0].name] = images
    for node in content.node:
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        tensors[node.output[0]] = OPERATORS[node.op_type](*[tensors[name] for name in node.input], **options)
    return tensors[content.output[0].name]


# %% [markdown]
# Four implementations of one network: these cells, the helper's predictor (NumPy too, from a packed file and without any
# graph; section 7), ONNX Runtime, and PyTorch.

# %%
images = validation.inputs[:8]
pack = write_dense(net, run.scratch("net.pack")).path
answers = {
    "PyTorch": training.predict(net, images).numpy(),
    "the cells": run_graph(content, images.numpy()),
    "the helper": runtime.open_network(pack).logits(images.numpy()),
    "ONNX Runtime": runtime.run(runtime.session(graph), images.numpy()),
}


# %% tags=["plumbing"]
def gap(a, b="PyTorch"):
    """Largest difference between two arrays of logits, relative to the largest logit."""
    a, b = (answers[x] if isinstance(x, str) else x for x in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


run.claim("one-network", "Largest relative difference from PyTorch's logits: cells, helper, ONNX Runtime",
          max(gap(name) for name in answers), at_most=1e-4)  # fmt: skip

# %% [markdown]
# Two dozen lines *are* a runtime. What, then, does a real one buy?

# %% [markdown]
# ## 2. What happens before the first image
#
# ONNX Runtime rewrites the graph when it opens the file. Its levels, each with what the one before does: *disabled*; *basic*
# (what can be computed beforehand, what does nothing, BatchNorm into convolutions); *extended* (several operators become one,
# for the processor at hand); *layout* (the order of numbers in memory); *all*. One of those rules you can write yourself. A ReLU that
# follows a convolution goes through memory once more, only to replace what is negative. The convolution could do that
# while it still holds the number. So: find each `Conv` whose only reader is a `Relu`, and make one node of the two.


# %%
def fuse_relu(model):
    """Return a copy of an ONNX model in which each Conv that only a Relu reads is one FusedConv."""
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    readers = Counter(name for node in model.graph.node for name in node.input)
    made = {node.output[0]: node for node in fused.graph.node}
    for node in list(fused.graph.node):
        before = made.get(node.input[0])
        if node.op_type == "Relu" and before is not None and before.op_type == "Conv" and readers[node.input[0]] == 1:
            before.op_type, before.domain, before.output[0] = "FusedConv", "com.microsoft", node.output[0]
            before.attribute.append(onnx.helper.make_attribute("activation", "Relu"))
            fused.graph.node.remove(node)
    fused.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return fused


# %%
mine = run.scratch("fused.onnx")
onnx.save(fuse_relu(onnx.load(graph)), mine)

# %% [markdown]
# `FusedConv` is an operator of ONNX Runtime's own. Now its levels. A session can be asked to write down the graph that it
# made. **Predict**: how many nodes are left at each level? And how much faster is the network?

# %% tags=["plumbing"]
LEVELS = {
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "layout": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_LAYOUT,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


# %%
def opened(path, level):
    """Open a file at one level of optimisation, with one thread; return the session and the graph that it made."""
    options, written = onnxruntime.SessionOptions(), run.scratch(f"{level}.onnx")
    options.graph_optimization_level, options.optimized_model_filepath = LEVELS[level], str(written)
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, Counter(node.op_type for node in onnx.load(written).graph.node)


# %% tags=["plumbing"]
made = {level: opened(graph, level) for level in LEVELS}
made["disabled, fused by us"] = opened(mine, "disabled")
nodes = pd.DataFrame({name: found for name, (_, found) in made.items()}).fillna(0).astype(int)
nodes.loc["all nodes"] = nodes.sum()
run.record("nodes", nodes.reset_index(names="operator"))
nodes

# %% tags=["plumbing"]
same = max(gap(runtime.run(session, images.numpy())) for session, _ in made.values())
theirs, ours = (nodes.loc["FusedConv", name] for name in ("extended", "disabled, fused by us"))
run.claim("levels-agree", "Largest relative difference of the logits at any level", same, at_most=1e-4)
run.claim("fused-by-hand", "Fusions that our rule and the level 'extended' do not share", abs(theirs - ours), at_most=0)
say(
    f"Our rule and theirs find the same {ours} pairs. "
    + (
        "The level *basic* found nothing to do: PyTorch's exporter tidies up, and BatchNorm was gone already. "
        if nodes.loc["all nodes", "basic"] == nodes.loc["all nodes", "disabled"]
        else f"The level *basic* leaves {nodes.loc['all nodes', 'basic']} of {nodes.loc['all nodes', 'disabled']} nodes. "
    )
    + (
        f"At *all* there are more nodes again, {nodes.loc['all nodes', 'all']}: `ReorderInput` and `ReorderOutput` bring "
        "channels side by side, in blocks as wide as the processor's registers, and back where an operator cannot read that. "
        "(The convolutions between them are of another kind, with the ReLU inside.)"
        if "ReorderOutput" in nodes.index and nodes.loc["all nodes", "all"] > nodes.loc["all nodes", "extended"]
        else ""
    )
)

# %% [markdown]
# Fewer nodes are not yet less time. The clock, with one photograph and one thread. PyTorch runs along, with BatchNorm as it was
# trained, and folded, as the file has it. Our two dozen lines get a clock of their own: NumPy may use more threads. The published
# runs all time the same network on the same kind of machine, so their intervals are of the clock, and of nothing else.

# %% tags=["plumbing"]
one = ONE.numpy()
calls = {"disabled": partial(runtime.run, made["disabled"][0], one)}
calls |= {name: partial(runtime.run, session, one) for name, (session, _) in made.items() if name != "disabled"}
calls |= {"PyTorch eager": partial(net, ONE), "PyTorch eager, folded": partial(folded, ONE)}
cells = {"all": calls["all"], "the cells": partial(run_graph, content, one)}
blocked = {"extended": calls["extended"], "all": calls["all"]}
with torch.inference_mode():
    rounds = [measure.time_interleaved(each, rounds=S.rounds, warmup=2, threads=1) for each in (calls, blocked, cells)]
by_level, by_layout, by_hand = map(measure.compare, rounds)
run.record("by_level", {name: verdict._asdict() for name, verdict in by_level.items()}, timing=True)
measure.verdict_table(by_level)

# %% tags=["plumbing"]
in_runtime = measure.compare(rounds[0], against="PyTorch eager, folded")["all"]
against_eager = in_runtime.ratio
run.claim("runtime", "Speed of ONNX Runtime against PyTorch eager, BatchNorm folded in both, one photograph, one thread",
          against_eager, at_least=1.15, timing=True, interval=in_runtime.cleared)  # fmt: skip
levels = [found.timings["by_level"] for found in PUBLISHED]
gains = [(1 / each["PyTorch eager, folded"]["ratio"] * each["all"]["ratio"], each["all"]["ratio"]) for each in levels]
gains.append((against_eager, by_level["all"].ratio))
conclude_speed(
    faster("ONNX Runtime against PyTorch, BatchNorm folded in both", against_eager, evidence.claimed(NAME, "runtime")),
    faster("ReLUs fused (extended) against no rewriting", by_level["extended"].ratio, [found["extended"]["ratio"] for found in levels]),
    faster("All rewriting against none", by_level["all"].ratio, [found["all"]["ratio"] for found in levels]),
)  # fmt: skip
say(
    f"Against our two dozen lines, which have a clock of their own, ONNX Runtime is {1 / by_hand['the cells'].ratio:.0f} times as "
    "fast. "
    + (
        "What it gains over PyTorch is mostly not the rewriting of the graph"
        + ", neither here nor in the published runs" * bool(levels)
        + ". The rest is kernels and what lies between them; section 4 shows how much of it a larger batch takes away."
        if all(gain > rewriting**2 for gain, rewriting in gains)
        else ""
    )
)

# %% [markdown]
# ## 3. One file, any batch
#
# In the file, the first dimension of the input has a name and no number. That was a decision: without
# `dynamic_shapes`, the exporter writes down the number of the example. What happens to those who forget it? Write a 1
# in its place.

# %%
fixed = onnx.load(graph)
print("input:", [d.dim_param or d.dim_value for d in fixed.graph.input[0].type.tensor_type.shape.dim])
fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
onnx.save(fixed, run.scratch("fixed.onnx"))
try:
    runtime.run(runtime.session(run.scratch("fixed.onnx")), TWO.numpy())
except ValueError as error:
    print("two photographs: refused;", str(error).rpartition("; ")[2])
else:
    raise AssertionError("not refused")

# %%
session = runtime.session(graph)
apart = np.concatenate([runtime.run(session, images[i : i + 1].numpy()) for i in range(len(images))])

# %% tags=["plumbing"]
run.claim("any-batch", "Largest relative difference between photographs one by one and together",
          gap(apart, runtime.run(session, images.numpy())), at_most=1e-5)  # fmt: skip

# %% [markdown]
# ## 4. Threads, batches, and what "fast" means
#
# Two numbers are called speed. **Latency** is how long one caller waits. **Throughput** is how many photographs leave in
# a second. A larger batch raises latency and, for a while, throughput: filters are fetched once for all its photographs, and
# the cost of each call is shared. More threads cut a large call into parts, and must meet again at its end, at every
# operator.
#
# **Predict** for a batch of 64 against a batch of 1: how many times the latency, how many times the throughput? And what
# does a second thread bring to each?

# %% tags=["plumbing"]
CORES = int(system.machine()["cores"])
THREADS = [2**i for i in range(10) if 2**i <= max(2, CORES)]
sessions = {threads: runtime.session(graph, threads=threads) for threads in THREADS}
say(f"This process may use {CORES} core{'s' * (CORES != 1)}."
    + (" So a second thread can only get in the way here; you will see it." if CORES == 1 else ""))  # fmt: skip


def eager(images, threads):
    torch.set_num_threads(threads)
    return net(images)


def name_of(engine, threads):
    return f"{engine}, {threads} thread{'s' * bool(threads != 1)}"


traces, clock = {}, {}
before = torch.get_num_threads()
for batch in S.batches:
    images = validation.inputs[:batch]
    first = {name_of("PyTorch", 1): partial(eager, images, 1)}
    # PyTorch with more threads is timed apart: they go on spinning for a moment, on the cores of whoever comes next.
    groups = [
        first | {name_of("ONNX Runtime", t): partial(runtime.run, s, images.numpy()) for t, s in sessions.items()}
    ]
    groups += [first | {name_of("PyTorch", t): partial(eager, images, t) for t in THREADS[1:]}]
    with torch.inference_mode():
        timed = [measure.time_interleaved(g, rounds=S.calls, warmup=3, threads=None, inner=1) for g in reversed(groups)]
    clock[batch] = {name: v for each in timed for name, v in measure.compare(each).items()}
    traces |= {(name, batch): trace for each in timed for name, trace in each.items() if name in clock[batch]}
torch.set_num_threads(before)

# %% [markdown]
# A mean hides the calls that somebody waited for. So look at **percentiles**: p50, the median, and p95, which one call in
# twenty exceeds.

# %% tags=["plumbing"]
measured = pd.DataFrame(
    [
        {"runtime": name.partition(",")[0], "threads": int(name.split()[-2]), "batch": batch,
         "p50_ms": 1e3 * np.quantile(trace, 0.5), "p95_ms": 1e3 * np.quantile(trace, 0.95),
         "images_per_s": batch / np.quantile(trace, 0.5)}
        for (name, batch), trace in traces.items() if "A/A" not in name
    ]
).sort_values(["runtime", "threads", "batch"], ignore_index=True)  # fmt: skip
run.record("threads", measured, timing=True)
measured.round(2)

# %% tags=["plumbing"]
fig, ax = plt.subplots()
for i, ((engine, threads), rows) in enumerate(measured.groupby(["runtime", "threads"])):
    colour, marker = show.COLOURS[i % 7], figures.MARKERS[i % 7]
    ax.plot(rows["p50_ms"], rows["images_per_s"], marker=marker, color=colour, linestyle=figures.LINES[i % 7],
            label=name_of(engine, threads))  # fmt: skip
    if threads == 1:  # the numbers once for each runtime; the other lines have the same order
        for _, row in rows.iterrows():
            ax.annotate(f"{row['batch']:.0f}", (row["p50_ms"], row["images_per_s"]), (0, -16), textcoords="offset points",
                        ha="center", fontsize=10, color=colour,
                        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1})  # fmt: skip
ax.set(xscale="log", yscale="log", xlabel="latency of a call: median (ms, log scale)",
       ylabel="photographs a second (log)")  # fmt: skip
ax.margins(0.12, 0.2)
fig.legend(loc="outside lower center", ncols=2)
best = measured.loc[measured["images_per_s"].idxmax()]
ax.set_title(f"The highest throughput: {name_of(best['runtime'], best['threads'])}, batch {best['batch']}")
shown = measured.assign(name=[name_of(*pair) for pair in zip(measured["runtime"], measured["threads"], strict=True)])
show.figure(
    fig,
    alt="Throughput against latency; the numbers at the points are batch sizes. "
    + show.in_words(shown.pivot(index="batch", columns="name", values="images_per_s")),
    table=measured,
)

# %% tags=["plumbing"]
ort = measured[measured["runtime"] == "ONNX Runtime"].set_index(["threads", "batch"])
small, large, more = S.batches[0], S.batches[-1], THREADS[1]
second = {b: ort.loc[(1, b), "p50_ms"] / ort.loc[(more, b), "p50_ms"] for b in (small, large)}
longer = ort.loc[(1, large), "p50_ms"] / ort.loc[(1, small), "p50_ms"]
tail = ort["p95_ms"] / ort["p50_ms"]


def second_thread(rows, batch):
    """How many times as fast a call of ONNX Runtime is with two threads as with one."""
    table = pd.DataFrame(rows).query("runtime == 'ONNX Runtime'").set_index(["threads", "batch"])["p50_ms"]
    return table[1, batch] / table[more, batch]


say(
    f"One thread, batch {large} against {small}: a call takes {longer:.0f} times as long and answers {large // small} "
    f"times as many photographs, so throughput grows {large / small / longer:.2f} times. With {more} threads, "
    f"calls with one photograph are {second[small]:.2f} times as fast, calls with {large} {second[large]:.2f} times: the work of "
    f"{second[large]:.2f} cores, while {more} threads are occupied. The slowest calls: p95 is {tail.min():.2f} to "
    f"{tail.max():.2f} times the median."
)
two_cores = [found.timings["threads"] for found in PUBLISHED if found.provenance["machine"]["cores"] >= more]
conclude_speed(
    *[faster(f"{more} threads against one, {b} at a time", second[b],
             [second_thread(rows, b) for rows in two_cores if PROFILE != "smoke"])
      for b in (small, large)]
)  # fmt: skip

# %% [markdown]
# Threads are not free. A server with many callers may get more out of two sessions with a thread each, one for each caller:
# measure it there. Threads are for the single caller who waits.
#
# ## 5. Start-up and memory, each in a process of its own
#
# In this notebook PyTorch is loaded whatever we do, so its memory would count for all. So start a fresh process for each
# contender, tell it when we did, and let it say when it had the first answer, and how much memory it had needed at
# most, then and after a batch.
#
# There is a trap. The usual way to ask for a peak, `resource.getrusage`, tells what is inherited: on Linux a process
# begins with the peak of the one that started it, here a notebook with PyTorch and a dataset of photographs. The
# kernel's `VmHWM` belongs to the new program alone.

# %% tags=["plumbing"]
CHILD = """
import json, sys, time
began, photos = float(sys.argv[1]), sys.argv[2]

def peak():
    try:
        with open("/proc/self/status") as status:
            return int(status.read().split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):  # not Linux: its peak on Windows, what it has now on macOS
        import psutil
        memory = psutil.Process().memory_info()
        return getattr(memory, "peak_wset", memory.rss) / 1e6

LOAD
first = answer(1) if answer else None
report = {"start": time.time() - began, "memory": peak()}
labels = answer(64).argmax(1).tolist() if answer else []
print(json.dumps(report | {"memory_batch": peak(), "labels": labels, "torch": "torch" in sys.modules}))
"""
LOADS = {
    "PyTorch imported, no more": "import torch\nanswer = None",
    "PyTorch": """
import numpy as np, torch
from helpers import checkpoints
torch.set_num_threads(1)
net, x = checkpoints.load(sys.argv[4]).eval(), torch.from_numpy(np.load(photos))
def answer(count):
    with torch.inference_mode():
        return net(x[:count]).numpy()""",
    "ONNX Runtime": """
import numpy as np
from helpers import runtime
session, x = runtime.session(sys.argv[3] + ".onnx"), np.load(photos)
answer = lambda count: runtime.run(session, x[:count])""",
    "NumPy, packed file": """
import numpy as np
from helpers import runtime
network, x = runtime.open_network(sys.argv[3] + ".pack"), np.load(photos)
answer = lambda count: network.logits(x[:count])""",
}


# %%
def start(load):
    """Start a process that loads a network in this way and answers; return what it reports."""
    files = [str(run.scratch("photos.npy")), str(run.scratch("net")), S.net]
    command = [sys.executable, "-c", CHILD.replace("LOAD", load), str(time.time()), *files]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(paths.ROOT)}
    return json.loads(subprocess.run(command, env=alone, capture_output=True, text=True, check=True).stdout)


# %%
np.save(run.scratch("photos.npy"), validation.inputs[: min(64, len(validation))].numpy())
rounds = [
    {name: start(load) for name, load in LOADS.items()} for _ in range(S.starts)
]  # in turn, not one after the other
starts = {name: [each[name] for each in rounds] for name in LOADS}

# %% tags=["plumbing"]
fresh = pd.DataFrame(
    {
        name: {
            "first answer (s)": min(r["start"] for r in reports),  # the best: the disk's cache is warm then
            "peak memory (MB)": min(r["memory"] for r in reports),
            "… with a batch (MB)": min(r["memory_batch"] for r in reports) if reports[0]["labels"] else np.nan,
            "holds PyTorch": reports[0]["torch"],
        }
        for name, reports in starts.items()
    }
).T
run.record("fresh", fresh.drop(columns="holds PyTorch").astype(float).fillna(0).reset_index(names="process"),
           timing=True)  # fmt: skip
fresh.map(lambda x: x if isinstance(x, bool) else "–" if pd.isna(x) else f"{x:,.2f}")

# %% tags=["plumbing"]
seconds, memory = (fresh.iloc[:, i].astype(float) for i in (0, 1))
labels = {name: reports[0]["labels"] for name, reports in starts.items()}
differing = sum(labels["PyTorch"][i] != found[i] for n, found in labels.items() if found for i in range(len(found)))
run.claim("fresh-answers", "Answers in which a fresh process differs from PyTorch's", differing, at_most=2)


def times_as_much(what):
    """Importing PyTorch against an answer of ONNX Runtime: the ratio of the best of each, and from worst to best case."""
    torch_alone, answered = ([r[what] for r in starts[n]] for n in ("PyTorch imported, no more", "ONNX Runtime"))
    ends = min(torch_alone) / max(answered), max(torch_alone) / min(answered)
    return {"value": min(torch_alone) / min(answered), "interval": ends}


run.claim("memory", "Times the memory that importing PyTorch takes, against a whole answer of ONNX Runtime",
          **times_as_much("memory"), at_least=1.3, timing=True)  # fmt: skip
run.claim("start-up", "Times the start that importing PyTorch takes, against a whole answer of ONNX Runtime",
          **times_as_much("start"), at_least=1.3, timing=True)  # fmt: skip
say(
    f"Before PyTorch has seen a network, it has taken {seconds['PyTorch imported, no more']:.1f} s and "
    f"{memory['PyTorch imported, no more']:.0f} MB. ONNX Runtime has answered after {seconds['ONNX Runtime']:.2f} s, with "
    f"{memory['ONNX Runtime']:.0f} MB in all; NumPy, from a packed file, after {seconds['NumPy, packed file']:.2f} s, with "
    f"{memory['NumPy, packed file']:.0f} MB. The network's own weights are {numbers / 1e6:.1f} MB. (“PyTorch” also "
    "imports this course's helpers, as a project imports its own.)"
)

# %% [markdown]
# ## 6. When does sparsity pay?
#
# First the simplest attempt: nine tenths of the network's weights masked to zero, handed to ONNX Runtime. **Predict** the
# file's size and the speed.

# %%
masked = pruning.mask(folded, pruning.global_masks(folded, 0.9))
masked_file = runtime.export_like(masked, graph, TWO, run.scratch("masked.onnx"))
calls = {
    name: partial(runtime.run, runtime.session(p), one) for name, p in {"whole": graph, "masked": masked_file}.items()
}
again = partial(runtime.run, runtime.session(graph), one)
mask_clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=1, control=again))

# %% tags=["plumbing"]
run.claim("mask-file", "Times that the masked network's ONNX file is smaller",
          graph.stat().st_size / masked_file.stat().st_size, at_most=1.01)  # fmt: skip
measure.verdict_table(mask_clock)

# %% tags=["plumbing"]
say(
    f"Nine zeros in ten: **{mask_clock['masked'].verdict}** (ratio {mask_clock['masked'].ratio:.2f}), and the "
    "file is as large. Nobody looked whether a weight is zero."
    if mask_clock["masked"].verdict != "faster"
    else f"Nine zeros in ten ran {mask_clock['masked'].ratio:.2f} times as fast here. The file is no smaller, and its "
    "kernels are the same: run it again before you believe it."
)

# %% [markdown]
# To skip the zeros one must know where the others are. **CSR** (compressed sparse rows) keeps three lists: the values,
# row by row; the column of each; and where each row starts. The product with a matrix of inputs takes a row's values, and
# fetches those rows of the input that its columns name.


# %%
def to_csr(weight):
    rows, columns = np.nonzero(weight)
    starts = np.concatenate([[0], np.cumsum((weight != 0).sum(1))])
    return weight[rows, columns], columns, starts


def csr_product(values, columns, starts, x):
    """Product of a sparse matrix (outputs, inputs) with x (inputs, batch)."""
    return np.stack([values[a:b] @ x[columns[a:b]] for a, b in pairwise(starts)])


# %% tags=["plumbing"]
generator = torch.Generator().manual_seed(SEED)
weight = torch.randn(50, 80, generator=generator) * (torch.rand(50, 80, generator=generator) > 0.9)
x = torch.randn(80, 4, generator=generator)
values, columns, starts_at = to_csr(weight.numpy())
theirs = scipy.sparse.csr_array(weight.numpy())
lists = sum(int((a != b).sum()) for a, b in zip((values, columns, starts_at), (theirs.data, theirs.indices, theirs.indptr), strict=True))  # fmt: skip
products = [
    csr_product(values, columns, starts_at, x.numpy()),
    theirs @ x.numpy(),
    (weight.to_sparse_csr() @ x).numpy(),
]
run.claim("csr-lists", "Numbers in which our three lists differ from SciPy's", lists, at_most=0)
run.claim("csr-product", "Largest difference between our product, SciPy's, PyTorch's and the dense one",
          max(np.abs(p - (weight @ x).numpy()).max() for p in products), at_most=1e-4)  # fmt: skip

# %% [markdown]
# Now count bytes. With one input vector, a product reads each stored number once and does next to nothing with it: what
# counts is what must be read. Dense: 4 bytes a weight. CSR: 4 for the value and $i$ for its column, for each of the
# weights left. (SciPy's column numbers take $i=4$ bytes, PyTorch's 8.) With a share $z$ of zeros the two are equal where
#
# $$4 = (1-z)\,(4+i), \qquad z = \frac{i}{4+i}.$$
#
# If the zeros come in whole blocks of 4 × 4, one column number is enough for sixteen values (**BSR**, blocked sparse
# rows), and they can be read side by side, as the processor likes it.

# %%
STORED = {"rows (CSR), SciPy": 4, "rows (CSR), PyTorch": 8, "blocks of 4 × 4, PyTorch": 8 / 16}
predicted = {name: extra / (4 + extra) for name, extra in STORED.items()}

# %% tags=["plumbing"]
say("By bytes, they break even at these shares of zeros: "
    + "; ".join(f"{name} {z:.0%}" for name, z in predicted.items()) + ".")  # fmt: skip

# %% [markdown]
# **Predict** where it really happens, for one input and for 64 at a time. The dense product of 64 inputs is what the makers
# of such kernels have polished for decades. Beside the three runs a fourth contender: **remove** instead of zero. A dense
# layer with as few weights, $\sqrt{1-z}$ of the rows and of the columns.


# %%
def zeroed(shape, zeros, block=1):
    """A random layer of which this share is zero, in blocks of block × block."""
    small = torch.rand(shape[0] // block, shape[1] // block, generator=generator) >= zeros
    keep = small.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return torch.randn(shape, generator=generator) * keep


def contenders(shape, zeros, batch):
    """The same amount of weights in five forms, as calls; each gets its input in the order that it likes."""
    rows, cols = (max(1, round(n * (1 - zeros) ** 0.5)) for n in shape)
    scattered, blocks, smaller = zeroed(shape, zeros), zeroed(shape, zeros, 4), torch.randn(rows, cols)
    x = torch.randn(batch, shape[1])
    upright, in_numpy = x.T.contiguous(), x.T.contiguous().numpy()
    in_rows, in_blocks = scattered.to_sparse_csr(), blocks.to_sparse_bsr((4, 4))
    in_scipy = scipy.sparse.csr_array(scattered.numpy())
    return {
        "dense": lambda: F.linear(x, scattered),
        "rows (CSR), SciPy": lambda: in_scipy @ in_numpy,
        "rows (CSR), PyTorch": lambda: in_rows @ upright,
        "blocks of 4 × 4, PyTorch": lambda: in_blocks @ upright,
        "removed: a smaller dense layer": partial(F.linear, x[:, :cols].contiguous(), smaller),
    }


# %% tags=["plumbing"]
LAYERS = {" × ".join(f"{n:,}" for n in shape): shape for shape in S.layers}
timed = {}
for layer, shape in LAYERS.items():
    for batch in S.columns:
        for zeros in S.zeros:
            forms = contenders(shape, zeros, batch)
            with torch.inference_mode():
                found = measure.compare(measure.time_interleaved(forms, rounds=S.rounds, warmup=2, threads=1))
            timed |= {(layer, batch, form, zeros): found[form] for form in list(forms)[1:]}
speed = (
    pd.Series({place: verdict.ratio for place, verdict in timed.items()})
    .rename_axis(["layer", "inputs at a time", "form", "zeros"])
    .unstack("zeros")
)
run.record("sparse_speed", speed.reset_index().rename(columns=str), timing=True)
speed.round(2)


# %% tags=["plumbing"]
def break_even(ratios):
    """Share of zeros from which on a form is as fast as dense; NaN if it never is."""
    slower, last = [z for z in ratios.index if ratios[z] < 1], ratios.index[-1]
    if not slower or slower[-1] == last:
        return np.nan if slower else ratios.index[0]  # "at most"
    z0 = slower[-1]
    z1 = min(z for z in ratios.index if z > z0)
    part = np.log(ratios[z0]) / (np.log(ratios[z0]) - np.log(ratios[z1]))  # on straight lines in the figure below
    return 1 - (1 - z0) ** (1 - part) * (1 - z1) ** part


points = speed.apply(break_even, axis=1).unstack("form")
run.record("break_even", points.reset_index().astype(object).where(lambda t: t.notna(), None), timing=True)
cases = points[list(STORED)].set_axis([f"{layer}, {batch} at a time" for layer, batch in points.index])
cases = cases.map(lambda z: "never" if pd.isna(z) else f"{'at most ' if z == S.zeros[0] else ''}{z:.0%}")
pd.concat([pd.DataFrame(predicted, index=["predicted by bytes"]).map("{:.0%}".format), cases])


# %% tags=["plumbing"]
def between(forms, layers):
    """Say where these forms break even, over these layers and all batches."""
    found = points.loc[layers, forms].to_numpy()
    never, shares = int(np.isnan(found).sum()), sorted(found[~np.isnan(found)])
    if not shares:
        return "nowhere"
    ends = dict.fromkeys(f"{z:.0%}" for z in (shares[0], shares[-1]))
    least = "or less " if shares[0] == S.zeros[0] else ""
    return f"at {f' {least}to '.join(ends)} zeros" + (f" (in {never} of {found.size} cases never)" if never else "")


def at(layer, batch):
    """Speeds of one layer at one batch: a row for each form, a column for each share of zeros."""
    return speed.xs((layer, batch)).reindex([*STORED, "removed: a smaller dense layer"])


few, many, kernels, layer = S.columns[0], S.columns[-1], list(STORED), list(LAYERS)[-1]
rows_even, blocks_even = (between(forms, list(LAYERS)) for forms in (kernels[:2], kernels[2:]))
fig, axes = plt.subplots(1, 2, figsize=(10.5, 5.0), sharey=True)
for ax, batch in zip(axes, (few, many), strict=True):
    table = at(layer, batch)
    show.line_with_band(
        1 / (1 - table.columns), {form: row.to_numpy() for form, row in table.iterrows()}, ax=ax,
        title=f"{batch} input{'s' * (batch > 1)} at a time", xlabel="share of zeros (%)",
        ylabel="speed, dense = 1 (log scale)" if batch == few else "",
    )  # fmt: skip
    ax.axhline(1, color="black", linewidth=1)
    ax.set(xscale="log", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    marks = [z for z in S.zeros if z not in (0.7, 0.85)]
    ax.set_xticks([1 / (1 - z) for z in marks], [f"{100 * z:g}" for z in marks])
    ax.minorticks_off()
    ax.get_legend().remove()
fig.suptitle(
    f"{layer}: single zeros break even {between(kernels[:2], [layer])}, by batch and library",
    fontsize=14,
    fontweight="bold",
    x=0.01,
    ha="left",
)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
both = pd.concat({f"{batch} at a time": at(layer, batch) for batch in (few, many)})
words = both.set_axis([f"{form}, {batch}" for batch, form in both.index]).T
show.figure(fig, alt=f"Speed against dense, a layer of {layer}. {show.in_words(words, '{:.2f}')}", table=both)

# %% tags=["plumbing"]
half, most = S.zeros[0], S.zeros[-1]
best_sparse = max((timed[layer, few, kernel, most] for kernel in kernels), key=lambda verdict: verdict.ratio)
half_zeros = timed[layer, few, "rows (CSR), PyTorch", half]
removed = timed[layer, many, "removed: a smaller dense layer", 0.9]
run.claim("sparse-pays", f"Speed of the best sparse form at {most:.1%} zeros, one input, {layer}",
          best_sparse.ratio, at_least=1.5, timing=True, interval=best_sparse.cleared)  # fmt: skip
run.claim("half-is-not-enough", f"Speed of PyTorch's CSR at {half:.0%} zeros, one input, {layer}",
          half_zeros.ratio, at_most=0.9, timing=True, interval=half_zeros.cleared)  # fmt: skip
run.claim("removal-pays", f"Speed of a dense layer with a tenth of the weights, {many} inputs, {layer}",
          removed.ratio, at_least=1.5, timing=True, interval=removed.cleared)  # fmt: skip

# %% tags=["plumbing"]
unstacked = speed.stack().unstack("form")
ahead = (unstacked["removed: a smaller dense layer"] > unstacked[kernels].max(axis=1)).mean()
conclude_speed(
    faster(f"CSR of PyTorch with {half:.0%} zeros against dense: the largest layer, one input", half_zeros.ratio,
           evidence.claimed(NAME, "half-is-not-enough")),
    faster("The best sparse form against dense: the largest share of zeros, the largest layer, one input", best_sparse.ratio,
           evidence.claimed(NAME, "sparse-pays")),
    faster("A dense layer with a tenth of the weights against the whole one: the largest layer and batch", removed.ratio,
           evidence.claimed(NAME, "removal-pays")),
    doublings=True, timed=layer, published="4,000 × 4,000",
)  # fmt: skip
say("(A doubling is a factor of two: +1 is twice as fast, −1 takes twice as long, +6 is 64 times as fast.)")
evens = pd.concat([pd.DataFrame(found.timings["break_even"]) for found in PUBLISHED]) if PUBLISHED else None
said = [] if evens is None else [
    f"{form}: {evens[form].min():.0%}{' or less' * bool(evens[form].min() <= 0.5)} to {evens[form].max():.0%} (bytes promised "
    f"{predicted[form]:.0%})" for form in kernels
]  # fmt: skip
say(
    f"In this run single weights (CSR) break even {rows_even}, by layer, batch and library; blocks {blocks_even}. "
    + (f"Over the layers and batches of {len(PUBLISHED)} published runs: {'; '.join(said)}. " if said else "")
    + f"The smaller dense layer, with as many weights, beats all sparse forms in {ahead:.0%} of this run's cases."
)

# %% [markdown]
# Why are bytes too kind to CSR? They are right about what is read, and silent about how. A dense product reads in order and
# multiplies eight or sixteen numbers at once. A sparse one looks up, for each weight, where its input lies, and that
# place depends on a number just read. And with many inputs at a time, the dense product no longer waits for memory at
# all: it uses each weight many times while it is at hand. The smaller dense layer has the best of both: few bytes, read in
# order, and perhaps so few that they stay in the processor's cache. The count leaves out two more things. A call costs
# something before the first number is read, and a small layer with one input is over before that is earned. And a format
# is only as good as its kernel: blocks have little to read beside their values, yet PyTorch's kernel breaks even far later
# than the bytes promise.
#
# ### Two of four
#
# There is a pattern that hardware understands. Of each four neighbouring inputs, two are zero: **2:4**. Half of the work,
# in a shape so regular that NVIDIA's GPUs (since Ampere) have a unit for it. Stored are the two that stay and, in two bits
# each, where they stood.


# %%
def two_of_four(weight):
    """Return the mask that keeps the two of largest magnitude of each four neighbouring inputs (channels)."""
    fours = weight.abs().unflatten(1, (-1, 4))
    return (fours.argsort(2).argsort(2) >= 2).flatten(1, 2)


# %% [markdown]
# PyTorch's pruning tools for such hardware make the same mask.

# %% tags=["plumbing"]
from torch.ao.pruning import WeightNormSparsifier

linear = nn.Sequential(nn.Linear(80, 50))
weight = linear[0].weight.detach().clone()
sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
sparsifier.prepare(linear, [{"tensor_fqn": "0.weight"}])
sparsifier.step()
differing = (two_of_four(weight) != linear[0].parametrizations.weight[0].mask).sum()
run.claim("two-of-four", "Weights on which our 2:4 mask and PyTorch's differ", differing, at_most=0)

# %% tags=["plumbing"]
fitting = {name: w for name, w in pruning.weights_of(net).items() if w.shape[1] % 4 == 0}
masks = {
    "2:4": {name: two_of_four(w) for name, w in fitting.items()},
    "2:4 along a filter's places": {name: two_of_four(w.flatten(1)).view(w.shape) for name, w in fitting.items()},
    "half, wherever they stand": {name: pruning.keep_largest(w.abs(), 0.5) for name, w in fitting.items()},
}
by_pattern = {n: training.evaluate(pruning.mask(net, m), validation).accuracy for n, m in masks.items()}
by_pattern = {"dense": base} | by_pattern
in_half = {"dense": 16 * 4, "2:4": 2 * 16 + 2 * 2, "half, by a bitmap": 2 * 16 + 4}
run.record("two_of_four", by_pattern)
say(
    f"Validation accuracy of `{S.net}`, no retraining: " + ", ".join(f"{name} {a:.1%}" for name, a in by_pattern.items()) + ". "
    "Bits for four weights of 16 bits: " + ", ".join(f"{name} {bits}" for name, bits in in_half.items())
    + f". So 2:4 is {in_half['dense'] / in_half['2:4']:.2f} times smaller, not twice."
)  # fmt: skip
patterns = list(evidence.measurements(NAME, "two_of_four").values())[
    :1
]  # one network: the other seeds measured it again
AMONG, ALONG, FREE = list(masks)
verdicts = evidence.conclude(
    *[evidence.Comparison(f"`{PUBLISHED_NET}`: {a}, against {b}",
                          100 * (by_pattern[a] - by_pattern[b]) if S.net == PUBLISHED_NET else None,
                          tuple(100 * (p[a] - p[b]) for p in patterns))
      for a, b in ((AMONG, "dense"), (AMONG, ALONG), (AMONG, FREE))]
)  # fmt: skip

# %% [markdown]
# Each published run measured the same network, so together they count as one; in quick, the numbers above the list are of a smaller
# network. Mind *which* four: the hardware takes four channels at one place of the filter, not four places of one channel.

# %% tags=["plumbing"]
if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    wide = torch.randn(4096, 4096, dtype=torch.half, device="cuda")
    wide, x = wide * two_of_four(wide), torch.randn(4096, 4096, dtype=torch.half, device="cuda")
    packed = torch.sparse.to_sparse_semi_structured(wide)
    gpu = measure.compare(measure.time_interleaved(
        {"dense": lambda: F.linear(x, wide), "2:4": lambda: F.linear(x, packed)}, rounds=S.rounds))  # fmt: skip
    say(f"On this GPU, 4,096 × 4,096 in half precision: 2:4 is {gpu['2:4'].verdict}, ratio {gpu['2:4'].ratio:.2f}.")
else:
    say("This machine has no GPU with such a unit, so its speed is not measured here. On a CPU, 2:4 is half of the "
        "weights, and what half is worth stands at the left end of the curve above.")  # fmt: skip

# %% [markdown]
# ## 7. A file, an image, an answer
#
# What you hand over in the end:
#
# ```
# python -m helpers predict FILE IMAGE
# ```
#
# `FILE` is a packed file or an ONNX file, `IMAGE` a PNG or JPEG. A packed file has no graph, only names and shapes; the
# helper knows the networks of this course by them, and runs them in NumPy, as section 1 did. Write one photograph as a
# PNG, and ask in a process in which PyTorch *cannot* be imported.

# %% tags=["plumbing"]
mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (data.CIFAR10_MEAN, data.CIFAR10_STD))
photo = run.scratch("photo.png")
pixels = ((ONE[0] * std + mean) * 255).round().byte()
Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(photo)

# %%
WITHOUT = """
import runpy, sys
for name in ("torch", "torchvision"):
    sys.modules[name] = None  # whoever imports it gets an error
sys.argv[0] = "helpers"
runpy.run_module("helpers", run_name="__main__")
"""


# %% tags=["plumbing"]
def command(file, image):
    """What the command prints in a process without PyTorch."""
    asked = [sys.executable, "-c", WITHOUT, "predict", str(file), str(image)]
    return subprocess.run(
        asked, env=os.environ | {"PYTHONPATH": str(paths.ROOT)}, capture_output=True, text=True, check=True
    ).stdout


printed = {file.name: command(file, photo) for file in (pack, graph)}
for name, text in printed.items():
    print(f"$ python -m helpers predict {name} {photo.name}\n{text}")

# %% [markdown]
# The same for one of the smallest files that this course has published, notebook 15's coded LeNet-5, and a digit.

# %% tags=["plumbing"]
coded, digit = paths.MODELS / "15-lenet5-coded.seed0.pack", run.scratch("digit.png")
digits = data.mnist().validation.take(1)
Image.fromarray((digits.inputs[0, 0] * data.MNIST_STD + data.MNIST_MEAN).mul(255).round().byte().numpy()).save(digit)
lenet = load_into(nets.lenet5(), coded).eval()
digit_label = str(int(training.predict(lenet, digits.inputs).argmax()))
said = command(coded, digit)
print(f"$ python -m helpers predict {coded.name} {digit.name}   ({coded.stat().st_size:,} bytes)\n{said}")

# %% tags=["plumbing"]
with torch.inference_mode():
    expected = net(ONE).softmax(1)[0]
label = data.CIFAR10_CLASSES[int(expected.argmax())]
found = {file.name: runtime.predict(file, photo) for file in (pack, graph)}
off = max(
    abs(found[n].probabilities[c] - p)
    for n in found
    for c, p in zip(data.CIFAR10_CLASSES, expected.tolist(), strict=True)
)
run.claim("predictor", "Largest difference of a probability between the predictor and PyTorch", off, at_most=1e-3)
run.claim("command", "Files for which the command, without PyTorch, gives another label than PyTorch",
          sum(text.split()[0] != label for text in printed.values()) + (said.split()[0] != digit_label), at_most=0)  # fmt: skip
say(
    f"PyTorch says {label}, {expected.max():.2%}; the photograph shows {data.CIFAR10_CLASSES[int(validation.labels[0])]}."
)

# %% [markdown]
# What an image must look like is part of the product, and nothing in the file says so: photographs are scaled to 32 × 32
# and standardized; a digit must be white on black, as MNIST's are. A predictor that gets the standardization wrong
# answers just as confidently. Of an image of another size or kind the command says what it did to
# it. Read that.
#
# ### Which file? Let the clock choose
#
# So far you chose the file and the runtime by hand. Nobody can say in advance which pair wins on *your* processor, so
# `runtime.fastest` tries them. It writes the network in float32 and in 8 bits (notebook 10), and opens each file in ONNX
# Runtime and, where that is installed, in OpenVINO, Intel's runtime. If the processor multiplies floats of 16 bits
# (bfloat16), OpenVINO tries those, too. Whatever changes more than one answer in a hundred is turned down; the rest is timed
# in turns, and the plainest stays that no other is measurably faster than. PyTorch, with BatchNorm as it was trained, is the
# yardstick and no candidate: where the verdict says *slower*, keep PyTorch.
#
# **Predict**: which one wins, for one photograph on one thread, and how many times PyTorch's speed does it reach? The row
# *float32, ONNX Runtime* is what you have timed by hand since section 2.

# %%
chosen = runtime.fastest(net, validation, run.scratch("fastest.onnx"), batch=1, threads=1, rounds=S.rounds)
answer = runtime.predict(chosen.file, photo)
measure.verdict_table(chosen.verdicts)

# %% tags=["plumbing"]
exported = chosen.verdicts.get("float32, ONNX Runtime")
over_exported = chosen.verdict.ratio / exported.ratio if exported else None
run.record("fastest", {"name": chosen.name, "over_eager": chosen.verdict.ratio, "over_exported": over_exported},
           timing=True)  # fmt: skip
run.claim("fastest", "Speed of the file that the clock chose against PyTorch eager, one photograph, one thread",
          chosen.verdict.ratio, at_least=1.15, timing=True, interval=chosen.verdict.cleared)  # fmt: skip
if timed_before := evidence.claimed(NAME, "fastest"):
    conclude_speed(faster("The file that the clock chose against PyTorch", chosen.verdict.ratio, timed_before))
refused = "; ".join(f"{name} ({why})" for name, why in chosen.refused.items())
say(
    f"The clock chose **{chosen.name}**: {chosen.verdict.ratio:.1f} times PyTorch's speed here"
    + (f", {over_exported:.1f} times that of the file exported by hand" if over_exported not in (None, 1) else "")
    + f". {f'Turned down: {refused}' if refused else 'Nothing was turned down'}. Of the photograph the chosen file says "
    f"{answer.label}, {answer.probabilities[answer.label]:.2%}; PyTorch says {label}, {expected.max():.2%}."
)

# %% [markdown]
# The file remembers the choice, in its metadata: `runtime.predict`, and so the command above, opens it in the runtime that
# won. If that is not installed where the file is used, ONNX Runtime answers. The choice is a measurement, of this machine,
# one photograph and one thread: for batches, more threads or another processor, let it choose again, there.
#
# ## 8. The test images, once


# %% tags=["plumbing"]
test = cifar.test.take(S.tested)
tests = {f"{S.net}-dense": run.test(f"{S.net}-dense", net, test),
         f"{S.net}-onnx": run.test(f"{S.net}-onnx", runtime.as_module(sessions[1]), test)}  # fmt: skip

# %% tags=["plumbing"]
run.claim("same-accuracy", "Test accuracy by which ONNX Runtime and PyTorch differ",
          abs(np.subtract(*[t.accuracy for t in tests.values()])), at_most=0.002)  # fmt: skip
pd.DataFrame({"test accuracy": {name: f"{t.accuracy:.2%}" for name, t in tests.items()}})

# %% [markdown]
# ## 9. Exercises
#
# **16.1 · From a call to throughput.** A warm-up of one line. A call answers `batch` photographs and takes `call_ms`
# milliseconds. Return the photographs a second.


# %%
def images_per_second(batch, call_ms):
    """Return how many photographs leave in a second."""
    ### BEGIN SOLUTION
    return 1000 * batch / call_ms
    ### END SOLUTION


exercises.check("16.1", images_per_second)

# %% [markdown]
# **16.2 · Pack two of four.** Write `pack_two_of_four`: it takes a weight of shape (outputs, inputs), inputs a multiple of
# four, and returns the two values of largest magnitude of each four neighbours, as a tensor (outputs, inputs / 2), and
# their places within the four, numbers from 0 to 3 as uint8, of the same shape. In each pair the left one comes first.


# %%
def pack_two_of_four(weight):
    """Return the values that stay and their places."""
    ### BEGIN SOLUTION
    fours = weight.unflatten(1, (-1, 4))
    places = fours.abs().topk(2, dim=-1).indices.sort(-1).values
    return fours.gather(-1, places).flatten(1), places.flatten(1).to(torch.uint8)
    ### END SOLUTION


exercises.check("16.2", pack_two_of_four)

# %% [markdown]
# **16.3 · Keep a promise.** You promised your callers an answer within `budget_ms`, 19 times in 20. Write `choose`: it
# takes a table with the columns threads, batch, p95_ms and images_per_s, such as `ort.reset_index()` of section 4, and the
# budget; it returns (threads, batch) of the row that gives the most
# photographs a second among those that keep the promise, or None if none does.


# %%
def choose(table, budget_ms):
    """Return (threads, batch) of the highest throughput within the budget, or None."""
    ### BEGIN SOLUTION
    kept = table[table["p95_ms"] <= budget_ms]
    if kept.empty:
        return None
    row = kept.loc[kept["images_per_s"].idxmax()]
    return int(row["threads"]), int(row["batch"])
    ### END SOLUTION


exercises.check("16.3", choose)

# %% [markdown]
# **16.4 · Predict the throughput.** You know the median latency of one photograph in ONNX Runtime with one thread. How
# many photographs a second will the largest batch of section 4 give, with one thread? Within a factor of 3 is fine.


# %%
def throughput(latency_ms, batch):
    """Return the predicted photographs a second, from the latency of a single one in milliseconds."""
    ### BEGIN SOLUTION
    return 1000 / latency_ms  # the same arithmetic for each photograph; what a batch saves is small beside it
    ### END SOLUTION


exercises.check("16.4", throughput, latency_ms=ort.loc[(1, small), "p50_ms"], batch=large,
                measured=ort.loc[(1, large), "images_per_s"])  # fmt: skip

# %% [markdown]
# **16.5 · Open: your own budget.** Think of one place where a network of yours would run: a phone, a web server, a sensor.
# Who waits, and for how long? How many answers a second, and who else needs the memory? Write down three numbers that the
# network must meet there, and for each the measurement of this page that would tell. Which of them would you measure first,
# and on which machine? There is no solution to look up.

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **Runtime**: the same network, one photograph, one thread: {against_eager:.1f} times PyTorch's speed, BatchNorm "
    f"folded in both; the graph's rewriting is a factor of {by_level['all'].ratio:.2f} of it.\n"
    f"- **Batch and threads**: batch {large} gives {large / small / longer:.2f} times the throughput at {longer:.0f} times "
    f"the latency; {more} threads make it {second[large]:.2f} times as fast ({CORES} core{'s' * (CORES != 1)}).\n"
    f"- **A fresh process**: first answer after {seconds['ONNX Runtime']:.2f} s and {memory['ONNX Runtime']:.0f} MB, PyTorch "
    f"{seconds['PyTorch']:.1f} s and {memory['PyTorch']:.0f} MB.\n"
    f"- **The clock's choice**, one photograph, one thread: {chosen.name}, {chosen.verdict.ratio:.1f} times PyTorch's speed.\n"
    f"- **Sparsity**: single weights pay {rows_even}, blocks {blocks_even}; a mask in a dense runtime: "
    f"{mask_clock['masked'].verdict}.\n"
    f"- **2:4**, no retraining: {100 * (base - by_pattern['2:4']):.1f} points lost."
)

# %% tags=["plumbing"]
dense_name, macs = f"{S.net}-dense", measure.count_macs(net, ONE)
counted = dict(weights=measure.count_weights(net), nonzero=measure.count_nonzero(net), macs=macs)
latency = [
    record | {"baseline": name_of("PyTorch", 1)}
    for batch, verdicts in clock.items()
    for record in measure.latency_records({n: verdicts[n] for n in [name_of("ONNX Runtime", 1)]}, runtime="onnxruntime",
                                          batch=batch)
]  # fmt: skip

# %% tags=["plumbing"]
run.model(dense_name, task="cifar10", method="dense", accuracy=tests[dense_name].accuracy, file=pack, **counted)
run.model(f"{S.net}-onnx", task="cifar10", method="dense, BatchNorm folded, ONNX Runtime", file=graph,
          accuracy=tests[f"{S.net}-onnx"].accuracy, latency=latency, **counted)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - A network's file is a short list of operators and many numbers: two dozen lines of NumPy give the same logits. Compare every
#   runtime with the one that trained the network. <!-- claims: one-network, same-accuracy -->
# - For one photograph on one thread, ONNX Runtime is faster than PyTorch, with BatchNorm folded in both. <!-- claims: runtime -->
# - Say which speed you mean: latency or throughput, at which batch, on how many threads, and how slow the slow calls are.
#   <!-- by construction -->
# - Importing PyTorch alone takes more time and memory than a whole answer of ONNX Runtime. Measure each in a process of its
#   own. <!-- claims: memory, start-up -->
# - A mask makes the file no smaller. With one input, half zeros in PyTorch's CSR are slower than dense; with nearly all weights zero, the
#   best sparse form is much faster. <!-- claims: mask-file, half-is-not-enough, sparse-pays -->
# - Try a smaller dense layer first: a tenth of the weights, removed and not zeroed, is faster with the ordinary kernel. What
#   it costs in accuracy, compare notebooks 04 and 05.
#   <!-- claims: removal-pays -->
# - Hand over a file and one command, and test it where PyTorch cannot be imported. <!-- claims: predictor, command -->
# - Counting bytes tells you what is possible, the clock what is there. <!-- by construction -->
#
# ## To read
#
# - Gale, Zaharia, Young and Elsen 2020, *Sparse GPU Kernels for Deep Learning*: what it takes to make unstructured zeros
#   pay.
# - Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu and Micikevicius 2021, *Accelerating Sparse Deep Neural
#   Networks*: 2:4.
# - Williams, Waterman and Patterson 2009, *Roofline: An Insightful Visual Performance Model for Multicore
#   Architectures*: bytes against arithmetic.
# - Elsen, Dukhan, Gale and Simonyan 2020, *Fast Sparse ConvNets*: zeros that pay on a phone's processor.
# - Dean and Barroso 2013, *The Tail at Scale*: why percentiles.
#
# **Next**: notebook 17 sends one network through a dozen other tools, and lets the clock choose among them.
