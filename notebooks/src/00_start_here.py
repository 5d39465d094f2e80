# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [00_start_here, 01_measure_first, 04_prune_filters, 06_prune_text, 07_transfer_resnet, 10_quantize_after_training, 12_distill, 15_combine]
# ---

# %% [markdown]
# # 00 · Start here: what can be made smaller, what does it cost, and how do I know?
#
# A trained network is mostly numbers that it could do without. In the next half hour you delete nine tenths of one,
# round another to eight bits, and weigh what is left. The work and the waiting will not move. Why they do not, and
# what moves them, is what this course is about.
#
# **You will be able to**
# - name the four currencies that a network costs, and measure each: parameters, operations, bytes, milliseconds;
# - delete and round weights with a few lines of PyTorch, and count the answers that change;
# - estimate the energy of one answer, and say which part of it compression can save;
# - say where the parameters and the work sit in a network for pictures, for speech and for text;
# - read a claim of this course, check it on your own machine, and break it.
#
# **Before this**: Python, and a first acquaintance with PyTorch. You should know what a tensor, a layer and an epoch are.
#
# **How to read**: run the cells one after the other (shift + enter). Where the text says **Predict**, stop and commit to a
# number before you go on. A wrong guess that you made teaches more than a right one that you read. Cells that only draw,
# record or phrase a result are folded; open them if you are curious.

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import math
from copy import deepcopy

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torchvision
from torch import nn

from helpers import checkpoints, data, evidence, exercises, measure, pruning, show, training
from helpers.core import modules, system
from helpers.course import chapters
from helpers.evidence import say
from helpers.files import read, verify, write_dense, write_sparse

run = evidence.start("00_start_here", profile=PROFILE, seed=SEED)
say(evidence.timetable("00_start_here"))

# %% [markdown]
# The answer first: six recipes of this course, as the published runs measured them. Their names will soon mean something to
# you. A mark is one run, a bar the mean of the runs. Beside it stands how many times smaller or faster the network became, and
# what that cost in points of test accuracy (one point is one answer in a hundred). The **MACs** are the multiplications of one
# answer, each with its addition. Mind the axis: each line to the right is ten times as far.

# %% tags=["plumbing", "answer"]
show.style()
recipes = [  # what became smaller or faster, how, the page and the claim that hold the factor, the model that is left
    ("file", "8-bit weights", "00_start_here", "short-file", "lenet5-8-bit"),
    ("file", "fewer, shorter word vectors", "06_prune_text", "smaller-file", "imdb-bag"),
    ("file", "prune, round, code", "15_combine", "lenet5-file", "lenet5-coded"),
    ("MACs", "remove filters, then train", "04_prune_filters", "fewer-macs", "filters"),
    ("speed", "another runtime", "01_measure_first", "onnx-batch-1", None),
    ("speed", "8-bit arithmetic", "10_quantize_after_training", "int8-speed", "int8"),
]


def cost_in_points(page, wanted):
    """Return by how many points of test accuracy the compressed models of a page's published runs fell short."""
    by_run = [{model.name: model for model in result.models} for result in evidence.published(page)]
    left = [(models, m) for models in by_run for m in models.values() if wanted and m.base and wanted in m.name]
    return [100 * (models[m.base].accuracy - m.accuracy) for models, m in left]


def in_short(lost):
    """Say a mean cost in a few words."""
    mean = sum(lost) / len(lost)
    return f"{abs(mean):.{1 if abs(mean) >= 0.05 else 2}f} points {'lost' if mean >= 0 else 'gained'}"


other_answers = evidence.claimed("01_measure_first", "onnx-answers")  # by another runtime, of the same weights
found, costs = {}, {}
for currency, how, page, claim, wanted in recipes:
    name, lost = f"{currency}: {how}", cost_in_points(page, wanted)
    found[name] = evidence.claimed(page, claim)
    costs[name] = in_short(lost) if lost else "the same answers" if not any(other_answers) else "other answers"
found = {name: factors for name, factors in found.items() if factors}
if found:
    best = {kind: max(max(v) for n, v in found.items() if n.startswith(kind)) for kind in ("file", "speed")}
    fig, ax = plt.subplots(figsize=(8, 3.8))
    for row, (name, factors) in enumerate(found.items()):
        mean, kind = sum(factors) / len(factors), ["file", "MACs", "speed"].index(name.partition(":")[0])
        ax.plot(factors, [row] * len(factors), "os^"[kind], color=show.COLOURS[kind], alpha=0.6)
        ax.plot([mean] * 2, [row - 0.28, row + 0.28], color=show.COLOURS[kind], linewidth=3)
        beside = f"{mean:.{0 if mean >= 100 else 1}f}×, {costs[name]}"
        ax.annotate(beside, (1, row), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
                    va="center", fontsize=11, annotation_clip=False)  # fmt: skip
    ax.set_yticks(range(len(found)), list(found))
    least, most = min(map(min, found.values())), max(map(max, found.values()))
    ax.set(xscale="log", xlim=(min(1, 0.8 * least), 1.6 * most), ylim=(len(found) - 0.5, -0.5))
    ax.set_xticks([1, 10, 100], ["1", "10", "100"])
    ax.set_xlabel("times smaller or faster than the dense network")
    ax.grid(False, axis="y")
    fig.suptitle(
        f"A file up to {best['file']:.0f} times smaller, an answer up to {best['speed']:.1f} times faster",
        x=0.01, ha="left", fontsize=14, fontweight="bold",
    )  # fmt: skip
    table = pd.DataFrame.from_dict(found, orient="index").rename(columns=lambda run: f"run {run}")
    table["accuracy"] = pd.Series(costs)
    told = [f"{name}: {min(v):.2f} to {max(v):.2f} times, {costs[name]}" for name, v in found.items()]
    show.figure(fig, alt=f"Factors of the published runs. {'; '.join(told)}.", table=table)
else:
    say("No page has published runs yet.")

# %% [markdown]
# Each recipe belongs to the network and the machine of its page; the map further down says where to find it.
#
# Every notebook opens like this, and then with its settings. A **profile** is a size of experiment. *smoke* is a rehearsal:
# every cell runs, and the numbers mean nothing. *quick*, the default, gives real results in a minute or so. *full* gives
# the published ones. Change the word in the first cell, and you have changed the experiment. Two settings matter here:
# `digits`, how many validation digits each question is put to, and `retrain`, how many training digits the pruned network
# may learn from.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(digits=500, test=500, retrain=512, rounds=20),
    quick=dict(digits=2_500, test=10_000, retrain=10_000, rounds=60),
    full=dict(digits=5_000, test=10_000, retrain=55_000, rounds=100),
)
show.style()
training.seed_everything(SEED)
say(f"This run: profile **{PROFILE}**, `digits` {S.digits:,}, `retrain` {S.retrain:,}.")

# %% [markdown]
# Why do the factors lie so far apart? An answer has to make its way through the machine: the file is read, the weights are
# fetched from memory, they are multiplied and added, and somebody waits. Each stretch of the way is paid in a currency of its
# own, and a technique helps only as far as it reaches.

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(8, 3.9))
stations = ["file", "memory", "arithmetic", "answer"]
currencies = ["bytes", "parameters", "MACs", "milliseconds"]
for i, (station, currency) in enumerate(zip(stations, currencies, strict=True)):
    ax.add_patch(plt.Rectangle((3 + i, 3.35), 0.74, 0.9, facecolor="#EEEEEE", edgecolor="black"))
    ax.text(3.37 + i, 3.97, station, ha="center", va="center", fontsize=11)
    ax.text(3.37 + i, 3.6, currency, ha="center", va="center", fontsize=9.5)
    if i:
        ax.annotate("", (3 + i, 3.8), (2.74 + i, 3.8), arrowprops=dict(arrowstyle="->", lw=1.5))
reach = {  # technique: how it reaches each of the four; "" where it does not
    "set weights to zero": ["if zeros are\nleft out", "", "", ""],
    "write weights in 8 bits": ["always", "if they stay\n8 bits", "", "if computed\nin 8 bits"],
    "remove filters, neurons": ["always", "always", "always", "time it"],
    "another runtime": ["", "", "", "time it"],
}
for row, (technique, marks) in enumerate(reach.items()):
    y = 2.5 - 0.8 * row
    ax.text(2.85, y + 0.3, technique, ha="right", va="center", fontsize=11)
    for i, mark in enumerate(marks):
        sure = mark == "always"
        face = show.COLOURS[0] if sure else "white"
        if mark:
            style = dict(facecolor=face, edgecolor=show.COLOURS[0], linewidth=1.5, linestyle="-" if sure else "--")
            ax.add_patch(plt.Rectangle((3 + i, y), 0.74, 0.6, **style))
            ax.text(3.37 + i, y + 0.3, mark, ha="center", va="center", fontsize=9, color="white" if sure else "black")
ax.set(xlim=(0.85, 6.8), ylim=(-0.05, 4.35))
ax.axis("off")
fig.suptitle("How far does a technique reach?", x=0.01, ha="left", fontsize=14, fontweight="bold")
alt = "The way of an answer: file (bytes), memory (parameters), arithmetic (MACs), answer (milliseconds). " + " ".join(
    f"{technique}: "
    + ", ".join(f"{c} {m}" for c, m in zip(currencies, (m.replace("\n", " ") for m in marks), strict=True) if m)
    + "."
    for technique, marks in reach.items()
)
show.figure(fig, alt=alt)

# %% [markdown]
# And here is the map. Find your goal in the first column. The factors are those of the published runs, the lowest and the
# highest of their seeds. Each belongs to one network and one machine: read them as "this has happened", not as a promise.
# (What is known to be wrong with published runs stands in `data/results/errata.json`.)


# %% tags=["plumbing"]
def spread(notebook, claim, form="{:.1f}", scale=1):
    """Return the lowest and the highest published value of a claim, in words."""
    values = [scale * value for value in evidence.claimed(notebook, claim)]
    ends = list(dict.fromkeys(form.format(value) for value in (min(values), max(values)))) if values else []
    return " to ".join(ends) or "(not published yet)"


def points(notebook, claim, *, gains=False):
    """Say how many points of accuracy were lost or gained; `gains`: the claim's value is a gain."""
    sign = 100 if gains else -100
    values = [sign * value for value in evidence.claimed(notebook, claim)]
    if values and min(values) > 0:
        return f"{spread(notebook, claim, '{:.2f}', sign)} points gained"
    return f"{spread(notebook, claim, '{:.2f}', -sign)} points lost"


def linked(numbers):
    """Return links to the chapters with these numbers."""
    names = {name[:2]: name for name in chapters.curriculum()}
    return ", ".join(f"[{number}]({names[number]}.ipynb)" for number in numbers.split(", "))


DEPLOYED, PHOTOS = "10_quantize_after_training", "04_prune_filters"
chart = [
    (
        "a smaller file, today, without training",
        "8-bit weights",
        f"file ÷ {spread('00_start_here', 'short-file', '{:.2f}')}",
        f"{spread('00_start_here', 'eight-bits', '{:.2f}', 100)} % of the answers change",
        "00, 09, 10",
    ),
    (
        "the smallest file there is",
        "prune, round and code what is left (LeNet-5)",
        f"file ÷ {spread('15_combine', 'lenet5-file', '{:.0f}')}",
        f"{spread('15_combine', 'error', '{:.2f}', 100)} % of the test digits misread; long training",
        "02, 14, 15",
    ),
    (
        "a shorter wait, the same weights",
        "another runtime, one input at a time",
        f"speed × {spread('01_measure_first', 'onnx-batch-1')}",
        "the same answers, another file format",
        "01, 16",
    ),
    (
        "a shorter wait on a CPU that multiplies 8-bit integers",
        "int8 in ONNX Runtime, batches of 64",
        f"speed × {spread(DEPLOYED, 'int8-speed')}",
        points(DEPLOYED, "test-int8"),
        "10, 11, 16",
    ),
    (
        "fewer multiplications, on any processor",
        "remove filters, then train",
        f"MACs ÷ {spread(PHOTOS, 'fewer-macs')}; speed × {spread(PHOTOS, 'faster')} in batches of 64",
        points(PHOTOS, "accuracy-kept"),
        "04, 05",
    ),
    (
        "a smaller text classifier",
        "fewer words, shorter vectors, fewer bits",
        f"file ÷ {spread('06_prune_text', 'smaller-file', '{:.0f}')}",
        points("06_prune_text", "accuracy-kept"),
        "06",
    ),
    (
        "a good network from 500 labels",
        "a pretrained body",
        points("07_transfer_resnet", "500-labels", gains=True),
        "against the same network from scratch: no smaller, until you prune it",
        "07, 08",
    ),
    (
        "a small network that errs less",
        "a teacher (or several)",
        f"{spread('12_distill', 'hinton-saved', '{:.0f}')} fewer errors on 10,000 digits",
        "the teachers have to be trained first",
        "12, 13",
    ),
]
head = "| my goal | first try | what it bought | what it cost | chapter |\n|---|---|---|---|---|\n"
say(head + "\n".join(f"| {' | '.join(row[:-1])} | {linked(row[-1])} |" for row in chart))

# %% [markdown]
# ## 1. One network, four currencies
#
# LeNet-5 reads handwritten digits (MNIST: grey pictures of 28 × 28 pixels). It is small, old and well studied, so it will
# be our laboratory animal. This one was trained before you came; the digits below are *validation* digits, which it has
# never seen.

# %%
mnist = data.mnist()
digits = mnist.validation.take(S.digits)
dense = checkpoints.load("lenet5")
answers = training.predict(dense, digits.inputs).argmax(1)

# %% tags=["plumbing"]
say(f"It reads {training.evaluate(dense, digits).accuracy:.1%} of {len(digits):,} such digits correctly.")


def show_digits(which, captions, *, title, alt):
    """Show ten digits in a row, each with its caption."""
    fig, axes = plt.subplots(1, 10, figsize=(8, 1.25))
    for ax, index, caption in zip(axes, which, captions, strict=False):
        ax.imshow(digits.inputs[index, 0], cmap="gray_r")
        ax.set_title(caption, loc="center", fontsize=12, fontweight="normal", pad=4)
    for ax in axes:
        ax.axis("off")
    fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    show.figure(fig, alt=alt)


captions = [str(int(answer)) for answer in answers[:10]]
alt = f"Ten handwritten digits. The network reads them as {', '.join(captions)}."
show_digits(range(10), captions, title="Ten digits, and what the network reads", alt=alt)

# %% [markdown]
# What does that cost? There are four answers, and they are easily mistaken for one another.
#
# - **Parameters**: the numbers that training has set. They fill memory. The *weights* are most of them; the *biases*, one
#   number for each output of a layer, are the rest.
# - **MACs**, multiply-accumulates: how often one answer multiplies two numbers and adds the product to a sum. They keep
#   the processor busy.
# - **Bytes**: the size of the file that you ship. Here it is always a file that was written and read back.
# - **Milliseconds**: what the clock says, on this machine. The only currency your users feel.

# %%
ONE = digits.inputs[:1]
work = run.scratch("files")
work.mkdir(exist_ok=True)
dense_file = write_dense(dense, work / "dense.pack")
macs = measure.count_macs(dense, ONE)

# %% tags=["plumbing"]
say(
    f"LeNet-5: **{measure.count_parameters(dense):,} parameters**, **{macs:,} MACs** for one digit, "
    f"a file of **{dense_file.bytes:,} bytes**. The milliseconds come in section 4, where there is something to compare."
)

# %% [markdown]
# ### Exercise 00.1 — warm-up
#
# One line. A float32 number has 32 bits, and a byte has eight. How many bytes do `count` numbers of `bits` bits take?


# %%
def bytes_needed(count, bits):
    """Return how many bytes `count` numbers of `bits` bits take."""
    ### BEGIN SOLUTION
    return count * bits / 8
    ### END SOLUTION


# %%
exercises.check("00.1", bytes_needed)

# %% [markdown]
# Compare with the file above. It is a little longer than its parameters: it also says which numbers belong where.

# %% [markdown]
# ## 2. Delete the numbers that are almost nothing
#
# A weight close to zero adds almost nothing to the sum that it is part of. So sort all weights by size, and keep only the
# largest. This is **magnitude pruning**, the oldest idea of the field, and still the one to beat.

# %%
weights = {name: p.detach() for name, p in dense.named_parameters() if p.dim() > 1}
sizes = torch.cat([weight.abs().flatten() for weight in weights.values()]).sort().values


def largest(share):
    """Return, layer by layer, which weights are among the largest `share` of the whole network."""
    threshold = sizes[round((1 - share) * len(sizes))]
    return {name: weight.abs() >= threshold for name, weight in weights.items()}


# %%
def delete(kept):
    """Return a copy of the network in which the weights that are not kept are zero."""
    new = deepcopy(dense)
    for name, keep in kept.items():
        new.get_parameter(name).data *= keep
    return new


def changed(model):
    """Return how many digits get another answer than before."""
    return int((training.predict(model, digits.inputs).argmax(1) != answers).sum())


# %% [markdown]
# **Predict.** Half of the weights go. Of a thousand digits, how many get another answer?

# %%
half = changed(delete(largest(0.5)))

# %% tags=["plumbing"]
say(f"Half of the network is gone. {half} of {len(digits):,} digits changed their answer.")
run.claim("half", "Answers that half of the weights change (share)", half / len(digits), at_most=0.003)

# %% [markdown]
# The line that starts with a verdict is a **claim**: a statement of this course, its measured value, and the bound that
# it must keep. The code decides, not the author. Section 8 tells you more, and breaks one.
#
# ### Exercise 00.2 — predict
#
# Now **nine tenths** of the weights go, those nearest to zero. Of a thousand digits, how many get another answer? Put your
# guess into the function, before you run the cell below it.


# %%
def changed_per_thousand():
    """Return your prediction: of 1,000 digits, how many change their answer?"""
    ### BEGIN SOLUTION
    return 100
    ### END SOLUTION


# %%
tenth = largest(0.1)
cut = delete(tenth)
measured = 1000 * changed(cut) / len(digits)
exercises.check("00.2", changed_per_thousand, measured=measured)

# %% [markdown]
# Half was almost free, nine tenths is not. Between the two lies an edge:

# %%
removed = [0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95]
lost = [1000 * changed(delete(largest(1 - share))) / len(digits) for share in removed]

# %% tags=["plumbing"]
fig = show.line_with_band(
    [100 * share for share in removed],
    {"one cut, no training": lost},
    title="Almost free for a long way, and then not at all",
    xlabel="weights removed (%)",
    ylabel="answers changed (of 1,000)",
)
table = pd.DataFrame({"answers changed, of 1,000": lost}, index=pd.Index(removed, name="removed"))
alt = f"A line that stays near zero and then shoots up. {show.in_words(table)}"
show.figure(fig, alt=alt, table=table)
run.record("one_cut", table.reset_index())

# %% [markdown]
# Which digits are these? Would you have hesitated, too?

# %% tags=["plumbing"]
became = training.predict(cut, digits.inputs).argmax(1)
which = (became != answers).nonzero().flatten()[:10].tolist()
captions = [f"{answers[i]} → {became[i]}" for i in which]
alt = f"Ten digits whose reading changed: {', '.join(captions)}."
show_digits(which, captions, title="Digits that are read differently with a tenth of the weights", alt=alt)

# %% [markdown]
# The cut took small things from many sums at once, and the weights that are left still have the values that suited the old
# sums. Nothing has told them to adapt. So hold the deleted weights at zero with a **mask**, and train the others for one
# epoch on some of the training digits.
#
# **Predict**: how many of the lost digits come back?

# %%
masked = pruning.mask(dense, tenth)
fitted = training.fit(masked, mnist.train.take(S.retrain), epochs=1, lr=1e-3, optimizer="adam", seed=SEED)
pruned = pruning.bake(fitted.model)
before, after = training.evaluate(cut, digits).accuracy, training.evaluate(pruned, digits).accuracy

# %% tags=["plumbing"]
say(
    f"Nine tenths of the weights are gone. The cut left {before:.1%} of the digits right, and "
    f"{fitted.history[0]['seconds']:.0f} s of training brought that to **{after:.1%}**."
)
run.claim("repair", "Accuracy with a tenth of the weights, after one epoch", after, at_least=0.98)

# %% [markdown]
# Cut, then let the rest recover: that pair is the engine of half of this course. Notebook 02 builds it properly and goes
# much further than a tenth. (`bake` writes the zeros into the weights and takes the mask off.) The mask that you computed
# and the helper's are the same, weight by weight:

# %%
# NBVAL_CHECK_OUTPUT
theirs = pruning.global_masks(dense, 0.9)
print("same mask:", all(torch.equal(tenth[name], theirs[name]) for name in tenth))

# %% [markdown]
# ## 3. Keep every number, but write it shorter
#
# A float32 weight takes 32 bits. It can tell apart four billion values, far more than the job needs. Lay a **grid** of 255
# evenly spaced **levels** over each layer, numbered from −127 to 127, move every weight to the nearest level, and store the
# level's number: eight bits. Beside them the layer stores one **step**, the distance between two levels (also called the
# *scale*). This is **quantization**.
#
# **Predict**: every single weight has moved. How many of the answers?


# %%
def to_8_bits(weight):
    """Return the number of the level nearest to each weight, and the step between two levels."""
    step = weight.abs().max() / 127
    return (weight / step).round().to(torch.int8), step


# %%
rounded, short = deepcopy(dense), {}
for name, parameter in rounded.named_parameters():
    short[name] = parameter.detach()
    if name in weights:
        short[name], short[f"{name}.step"] = to_8_bits(weights[name])
        parameter.data = short[name] * short[f"{name}.step"]
moved = changed(rounded)

# %% tags=["plumbing"]
say(f"All {len(sizes):,} weights moved to one of 255 levels. {moved} of {len(digits):,} answers changed.")
run.claim("eight-bits", "Answers that 8-bit weights change (share)", moved / len(digits), at_most=0.002)

# %% [markdown]
# No retraining was needed. Each weight is off by at most half a step, some up and some down, and in a sum of
# hundreds of products much of that cancels.
#
# ### Exercise 00.3 — change the code
#
# How about five bits, or three? Write the function for any number of `bits` from 2 to 8. It returns the moved weights
# themselves, not the numbers of the levels. With 8 bits the levels run from −127 to 127, with 3 bits from −3 to 3.


# %%
def round_weight(weight, bits):
    """Return `weight` with each value moved to the nearest of the levels that `bits` bits can number."""
    ### BEGIN SOLUTION
    last = 2 ** (bits - 1) - 1
    step = weight.abs().max() / last
    return (weight / step).round() * step
    ### END SOLUTION


# %%
exercises.check("00.3", round_weight)

# %% [markdown]
# ## 4. On the scales
#
# You have three networks now: the dense one, the one with a tenth of its weights, and the one with short numbers. Weigh
# them. First the files. A zero is four bytes of nothing in an ordinary file, so the pruned network needs a format that
# stores only what is left and where it stood. The file is read back, and must give exactly the same logits (the ten numbers
# of which the largest is the answer).

# %%
pruned_file = write_sparse(pruned, work / "pruned.pack")
verify(pruned_file.path, pruned, digits.inputs)
short_file = write_dense(short, work / "short.pack")

# %% [markdown]
# The file with the 8-bit numbers has to be unpacked by hand: number times step, layer by layer. Then the same question.

# %%
again, back = deepcopy(dense), {n: torch.from_numpy(a) for n, a in read(short_file.path).items()}
for name, parameter in again.named_parameters():
    parameter.data = back[name] * back[f"{name}.step"] if name in weights else back[name]
assert torch.equal(training.predict(again, digits.inputs), training.predict(rounded, digits.inputs))
ratio = {"pruned": dense_file.bytes / pruned_file.bytes, "8 bits": dense_file.bytes / short_file.bytes}

# %% tags=["plumbing"]
run.claim("sparse-file", "Times that the pruned file is smaller", ratio["pruned"], at_least=8)
run.claim("short-file", "Times that the 8-bit file is smaller", ratio["8 bits"], at_least=3.9)

# %% [markdown]
# **Predict**: the pruned network has a tenth of the weights. How many times faster does it answer?
#
# A stopwatch on a busy machine says something different each time. So the three networks take turns, and the dense one
# runs twice under two names. What the clock finds between a network and *itself* is noise (the row *A/A*), and nothing
# smaller than that counts as a difference. Notebook 01 takes this apart.

# %%
models = {"dense": dense, "a tenth of the weights": pruned, "8-bit weights": rounded}


@torch.inference_mode()
def answer(model):
    """Answer for one digit."""
    return model(ONE)


variants = {name: lambda model=model: answer(model) for name, model in models.items()}
copy = modules.copied(dense)  # the second entry of the dense network: the same numbers, in another place
timings = measure.time_interleaved(variants, rounds=S.rounds, inner=20, threads=1, control=lambda: answer(copy))
verdicts = measure.compare(timings)
measure.verdict_table(verdicts)

# %% tags=["plumbing"]
files = {"dense": dense_file, "a tenth of the weights": pruned_file, "8-bit weights": short_file}
scales = pd.DataFrame(
    {
        "weights that are not zero": {n: measure.count_nonzero(m) for n, m in models.items()},
        "MACs": {n: measure.count_macs(m, ONE) for n, m in models.items()},
        "bytes in the file": {n: f.bytes for n, f in files.items()},
        "milliseconds": {n: verdicts[n].median_ms for n in models},
    }
)
run.record("scales", scales.drop(columns="milliseconds").reset_index(names="network"))
percent = (100 * scales / scales.loc["dense"]).drop("dense").T
in_file = " and ".join(f"{p:.0f} %" for p in percent.loc["bytes in the file"])
title = f"Files shrink to {in_file}, MACs not at all"
fig = show.bars(percent, title=title, xlabel="% of the dense network", label="{:.0f} %")
alt = f"Bars in percent of the dense network. {show.in_words(percent)}"
show.figure(fig, alt=alt, table=scales.T)

# %% tags=["plumbing"]
published = evidence.published("00_start_here")
timed = {"a tenth of the weights": "lenet5-tenth", "8-bit weights": "lenet5-8-bit"}


def verdicts_of(model):
    """Return what the clock said of a model in the published runs: verdict and how often."""
    said = [each.latency[0]["verdict"] for result in published for each in result.models if each.name == model]
    return ", ".join(f"{said.count(one)} × *{one}*" for one in dict.fromkeys(said)) or "none yet"


verdict = {name: verdicts[name].verdict for name in models}
say(
    f"The pruned file is **{ratio['pruned']:.1f}×** smaller, the 8-bit file **{ratio['8 bits']:.1f}×**. The clock is less "
    "impressed:\n\n"
    + "\n".join(
        f"- {n}: this run, *{verdict[n]}*; the published runs, {verdicts_of(model)}." for n, model in timed.items()
    )
)

# %% [markdown]
# The zeros are still there. A matrix product multiplies by them as by any other number, so there are as many MACs as
# before. And the 8-bit weights were turned back into floats before they were used. To move the other two scales, somebody
# has to *remove* what is zero (notebook 04), or *compute* in eight bits on a processor that can (notebook 10).
#
# So ask of every compressed model that you meet: smaller in which currency, and measured how?
#
# ## 5. The bill that nobody sends you: energy
#
# A phone pays in joules. They are hard to measure and can be estimated, from what single operations cost a chip. These
# are the figures that most papers use (Horowitz, *Computing's energy problem*, ISSCC 2014, for a 45 nm chip; the two reads
# as Han et al. 2015 state them for 32 bits). A picojoule is a millionth of a microjoule. Today's chips need less of each;
# it is the proportion that you should remember.

# %%
# NBVAL_CHECK_OUTPUT
PICOJOULES = {
    "add, 8-bit integer": 0.03,
    "add, 32-bit float": 0.9,
    "multiply, 8-bit integer": 0.2,
    "multiply, 32-bit float": 3.7,
    "read 32 bits from a cache (SRAM)": 5.0,
    "read 32 bits from memory (DRAM)": 640.0,
}
cost = pd.DataFrame({"picojoules": PICOJOULES})
cost["float additions for that price"] = (cost["picojoules"] / PICOJOULES["add, 32-bit float"]).round(2)
cost

# %% [markdown]
# **Predict**: for one digit, LeNet-5 multiplies and adds millions of times, and fetches each weight from memory once. Which
# of the two costs more?


# %%
def energy_of_floats(macs, parameters):
    """Return the estimated microjoules of (the arithmetic, fetching the weights) for one answer."""
    arithmetic = macs * (PICOJOULES["multiply, 32-bit float"] + PICOJOULES["add, 32-bit float"])
    fetching = parameters * PICOJOULES["read 32 bits from memory (DRAM)"]
    return arithmetic / 1e6, fetching / 1e6


arithmetic, fetching = energy_of_floats(macs, measure.count_parameters(dense))

# %% tags=["plumbing"]
say(
    f"Arithmetic: {arithmetic:.1f} µJ. Fetching: {fetching:.0f} µJ, **{fetching / arithmetic:.0f} times** as much. "
    "An estimate: it leaves out activations, caches and everything else that a computer does."
)

# %% [markdown]
# By this estimate, moving a number costs far more than using it. So weights that *stay* small in memory can save energy even
# where they save no time. (Ours were unpacked to 32 bits before they were used: here they save none.)
#
# The sum is for one digit at a time. Answer many digits at once, and each weight that was fetched is used for all of them.
#
# ### Exercise 00.4 — change the code
#
# How many digits must be answered at once until their arithmetic costs at least as much as fetching the weights, once, for
# all of them? Return the smallest whole number, for weights and arithmetic of 32-bit floats *or* of 8-bit integers. One
# read from memory always brings 32 bits. (`math.ceil` rounds up.) Before you run it: will 8 bits need more digits, or fewer?


# %%
def digits_until_even(macs, parameters, bits):
    """Return for how many digits at once arithmetic costs at least as much as fetching; `bits`: 32 (float) or 8."""
    ### BEGIN SOLUTION
    kind = {32: "32-bit float", 8: "8-bit integer"}[bits]
    arithmetic = macs * (PICOJOULES[f"multiply, {kind}"] + PICOJOULES[f"add, {kind}"])
    fetching = parameters * PICOJOULES["read 32 bits from memory (DRAM)"] * bits / 32
    return math.ceil(fetching / arithmetic)
    ### END SOLUTION


# %%
exercises.check("00.4", digits_until_even)

# %% [markdown]
# ## 6. Pictures, speech, text: where is there something to save?
#
# Compression pays where the parameters or the operations are. Are they in the same place? Look at three networks of the
# size that runs on a phone: MobileNetV3 names what is in a picture, two convolutions and an LSTM turn a second of
# sound into letters, a small transformer judges 200 words of text. (PyTorch's *meta* device builds them without giving them any
# memory: shapes are enough to count.)


# %%
class Speech(nn.Module):
    """Sound as 80 frequency bands, 100 times a second, to letters."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(80, 256, kernel_size=11, stride=2, padding=5)
        self.conv2 = nn.Conv1d(256, 256, kernel_size=11, padding=5)
        self.lstm = nn.LSTM(256, 512, num_layers=2, batch_first=True)
        self.letters = nn.Linear(512, 29)

    def forward(self, sound):
        features = self.conv2(self.conv1(sound).relu()).relu()
        return self.letters(self.lstm(features.transpose(1, 2))[0])


# %%
class Text(nn.Module):
    """Words as numbers from a vocabulary of 30,000, to good or bad."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30_000, 128)
        layer = nn.TransformerEncoderLayer(128, nhead=4, dim_feedforward=512, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.classes = nn.Linear(128, 2)

    def forward(self, words):
        return self.classes(self.encoder(self.embedding(words)).mean(dim=1))


# %% [markdown]
# **Predict** for each: which kind of layer holds most of the parameters, and which does most of the work?

# %%
with torch.device("meta"):
    NETWORKS = {
        "picture": (torchvision.models.mobilenet_v3_small(), torch.empty(1, 3, 224, 224)),
        "speech": (Speech(), torch.empty(1, 80, 100)),
        "text": (Text(), torch.empty(1, 200, dtype=torch.long)),
    }
layers = {name: measure.layer_table(*network) for name, network in NETWORKS.items()}

# %% tags=["plumbing"]
# The first four letters of a layer's class tell its kind (NonD…: the projection at the end of an attention layer).
KINDS = {"Conv": "convolution", "LSTM": "recurrent", "Embe": "embedding", "Batc": "normalization"}
KINDS |= {"Laye": "normalization", "Mult": "attention", "NonD": "attention", "Line": "linear"}


def by_kind(table):
    """Return the parameters and MACs of each kind of layer."""
    kinds = table["kind"].str[:4].map(KINDS)
    return table.groupby(kinds)[["parameters", "macs"]].sum().sort_values("parameters", ascending=False)


kinds = {name: by_kind(table) for name, table in layers.items()}
fig, axes = plt.subplots(3, 1, figsize=(8, 7.5), sharex=True, height_ratios=(2, 2, 3))
fig.suptitle("The work need not be where the parameters are", x=0.01, ha="left", fontweight="bold")
alt = "Bars: share of the parameters and of the MACs, in percent, by kind of layer."
for ax, (name, table) in zip(axes, kinds.items(), strict=True):
    share = (100 * table / table.sum()).set_axis(["of the parameters", "of the MACs"], axis=1)
    share = share[share.max(axis=1) >= 1]
    show.bars(share, title=name.capitalize(), xlabel="", label="{:.0f} %", ax=ax)
    alt += f" In {name}, {show.in_words(share)}"
axes[-1].set_xlabel("share of the network (%); kinds below 1 % left out")
table = pd.concat(kinds, names=["network", "kind of layer"])
show.figure(fig, alt=alt, table=table)

# %% tags=["plumbing"]
# NBVAL_CHECK_OUTPUT
same = [name for name, t in kinds.items() if t["parameters"].idxmax() == t["macs"].idxmax()]
lines = []
for name, t in kinds.items():
    total, most, busiest = t.sum(), t["parameters"].idxmax(), t["macs"].idxmax()
    lines.append(
        f"- **{name.capitalize()}**: {total['parameters'] / 1e6:.1f} million parameters "
        f"({4 * total['parameters'] / 1e6:.0f} MB as float32), {total['macs'] / 1e6:,.0f} million MACs. Most parameters: "
        f"{most} ({t['parameters'].max() / total['parameters']:.0%}). Most work: {busiest} "
        f"({t['macs'].max() / total['macs']:.0%})."
    )
say("\n".join(lines))
say(
    f"In {len(same)} of these {len(kinds)} networks ({', '.join(same) or 'none'}) one kind of layer leads in both; in the "
    "others the parameters and the work sit apart."
)

# %% [markdown]
# It depends on how often a weight is used. An embedding is a table of words: looking up a word multiplies nothing, so nearly
# all of the text network's file does no arithmetic at all. A convolution has few weights, and uses each at many places. A
# recurrent layer has many weights *and* uses each at every step in time: there, whoever shrinks one shrinks both.
#
# | used for | tight currency | a first thing to try | here |
# |---|---|---|---|
# | pictures: cameras, cars, medical images | milliseconds, joules | remove filters, 8-bit arithmetic, a small student | 04, 10, 12 |
# | speech: dictation, wake words that listen all day | joules, memory | sparse or 8-bit recurrent matrices | 06, 09, 16 |
# | text: keyboards, search, moderation | bytes in the file | prune and quantize the embedding | 06, 09, 14 |
#
# ## 7. This machine
#
# The milliseconds of a notebook are those of the machine that ran it. What they depend on, here:

# %%
this_machine = system.machine()
pd.DataFrame({"this machine": {key: str(value) for key, value in this_machine.items()}})

# %% tags=["plumbing"]
eight_bits = {
    True: "multiplies 8-bit integers natively (VNNI, or dot products on Arm): they may well be faster here.",
    False: "has no instruction of its own for 8-bit integers: they may save bytes, and no time.",
}
say(f"This CPU {eight_bits[this_machine['vnni']]} Notebook 10 measures it.")
say("There is a GPU; training uses it." if this_machine["gpu"] else "There is no GPU, and none is needed.")

# %% [markdown]
# ## 8. How this course knows what it says
#
# Much that is written about compression is true of another network, another machine, or a table that was never rerun. So
# this course holds itself to rules that you can check:
#
# - **Measured numbers are not typed by hand.** The cells above them write them; where a sentence sums up in words, a claim or a
#   published verdict stands behind it.
# - **Claims are decided by code.** If one does not hold, the notebook stops, here or on anybody's machine.
# - **One run decides nothing about A against B.** The published seeds decide, and your own run stands beside them.
# - **A file counts when it was read back** and gave the same answers; **a time** when it differs by more than a network
#   differs from itself.
# - **The test digits are touched once, at the end,** and each use is logged.
# - **What does not work is shown, too.** You saw the first example in section 4.
#
# Here is a claim that is too good to be true, in a run that is not saved:

# %%
rehearsal = evidence.start("00_start_here", profile="quick", seed=SEED, save=False)
rehearsal.claim("too-good", "Answers that change when nine tenths of the weights go", changed(cut), at_most=0)

# %% tags=["plumbing"]
try:
    rehearsal.finish()
except evidence.ClaimError as error:
    say(f"Here a notebook would stop, and say: *{error}*.")

# %% [markdown]
# **Exercises** work the other way round: there, *your* code is on trial. A check runs your function on cases of its own. If
# something is wrong, it says what, and offers a hint that you can unfold. It never shows the solution. This is what
# somebody sees who was far too pessimistic in exercise 00.2:

# %% tags=["plumbing"]
PESSIMIST = "00.2"
exercises.check(PESSIMIST, lambda: 990, measured=measured)

# %% [markdown]
# In the published notebooks the solutions are folded away below their exercise. `make student` writes versions without
# them. And notebook 19 sets every model of the course side by side, the **leaderboard**.
#
# ### Exercise 00.5 — open
#
# No check here, and no single right answer. Take a network that you use or know. Which of the four currencies is tight for
# it, and for whom: the one who pays for the server, the one who waits, the one whose battery it is? Write the first claim
# that you would make about a smaller version of it: the statement, the number, the bound, and the measurement that would
# prove you wrong. Then turn on ours: up to which share of deleted weights does the claim `half` keep its bound? Change the
# number in its cell until it breaks.
#
# ## What you measured
#
# The last act of a notebook is to send its models to the leaderboard, with the test digits, once.

# %%
accuracy = {}
for key, name in {"dense": "lenet5-dense", **timed}.items():
    accuracy[key] = run.test(name, models[key], mnist.test.take(S.test)).accuracy

# %% tags=["plumbing"]
recorded = {
    "dense": ("none", []),
    "a tenth of the weights": ("global magnitude, one epoch", ["weights pruned"]),
    "8-bit weights": ("rounding to 8 bits", ["fewer bits"]),
}
latency = measure.latency_records(verdicts, runtime="eager", batch=1)
for key, (method, techniques) in recorded.items():
    run.model(
        {"dense": "lenet5-dense", **timed}[key],
        task="mnist",
        method=method,
        techniques=techniques,
        base=None if key == "dense" else "lenet5-dense",
        accuracy=accuracy[key],
        weights=measure.count_weights(models[key]),
        nonzero=measure.count_nonzero(models[key]),
        macs=measure.count_macs(models[key], ONE),
        file=files[key].path,
        latency=[record for record in latency if record["variant"] == key],
    )
say(
    f"- Dense: {accuracy['dense']:.2%} of the test digits, {dense_file.bytes:,} bytes.\n"
    f"- A tenth of the weights: {accuracy['a tenth of the weights']:.2%}, {pruned_file.bytes:,} bytes.\n"
    f"- 8-bit weights: {accuracy['8-bit weights']:.2%}, {short_file.bytes:,} bytes.\n"
    f"- Energy of one dense answer, estimated: {arithmetic + fetching:.0f} µJ, {fetching / (arithmetic + fetching):.0%} of it "
    "for fetching weights."
)

# %% [markdown]
# What did the missing weights cost? Your run is one seed; the published runs retrained the same pruned network several
# times, with more digits. (Of the 8-bit network there is nothing to average: nothing is drawn at random in it, so each run
# measured the same one.)

# %% tags=["plumbing"]
tested = [{model.name: model.accuracy for model in result.models} for result in published]
_ = evidence.conclude(
    evidence.Comparison(
        "test accuracy with a tenth of the weights, retrained, against the dense network",
        100 * (accuracy["a tenth of the weights"] - accuracy["dense"]),
        tuple(100 * (each["lenet5-tenth"] - each["lenet5-dense"]) for each in tested),
    )
)
run.finish()

# %% [markdown]
# ## What to remember
#
# - Parameters, MACs, bytes and milliseconds are four currencies. A technique that saves one need not save another.
#   <!-- by construction -->
# - Half of LeNet-5's weights go almost unnoticed. Take nine tenths, and an epoch of training brings nearly all of the lost
#   answers back. <!-- claims: half, repair -->
# - Eight bits for each weight are enough for it, without any training, and make the file nearly four times smaller.
#   <!-- claims: eight-bits, short-file -->
# - A stored zero is as large as any other number, and a dense kernel multiplies by it like by any other. Only a format that
#   leaves the zeros out makes the file smaller. <!-- claims: sparse-file -->
# - By the usual estimates, fetching a weight from memory takes far more energy than multiplying by it.
#   <!-- by construction -->
#
# ## Read on
#
# - Han, Pool, Tran, Dally, *Learning both Weights and Connections for Efficient Neural Networks*, 2015
# - Han, Mao, Dally, *Deep Compression*, 2016
# - Horowitz, *Computing's Energy Problem (and what we can do about it)*, ISSCC 2014
# - Blalock, Gonzalez Ortiz, Frankle, Guttag, *What is the State of Neural Network Pruning?*, 2020: why so many published
#   comparisons cannot be compared
#
# ## The course

# %% tags=["plumbing"]
say(
    "| notebook | the question it answers |\n|---|---|\n"
    + "\n".join(f"| [{name}]({name}.ipynb) | {question} |" for name, question in chapters.curriculum().items())
)

# %% [markdown]
# **Next**: [01 · Measure first](01_measure_first.ipynb). Where exactly do the parameters, operations, bytes and milliseconds
# of LeNet-5 sit, and how often does a stopwatch lie?
