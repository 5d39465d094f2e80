# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [07_transfer_resnet]
# ---

# %% [markdown]
# # 07 · Transfer a ResNet-18: what does a pretrained network buy with 100 labels?
#
# Somebody has labelled 100 photographs, cat or dog, and will not label more. A network of eleven million parameters
# learns little from so few. Another one has long practised on aeroplanes, frogs and horses. Here you find out how much
# of what it knows can be taken along, what each way of taking it costs, and how a network that you have frozen can
# change behind your back.
#
# **You will be able to**
# - put a new head on a pretrained network, and freeze, unfreeze and slow down its layers one by one;
# - compute the features of a frozen body once instead of in every epoch, and say what that saves;
# - explain what BatchNorm does in a frozen body in training mode, and keep it from doing so;
# - compare ways of transfer over label counts, with intervals, and with the steps of each stated;
# - judge, with the right controls, what pretraining is worth on a distant task.
#
# **Before this**: notebook 01 (MACs), notebook 05 (paired intervals).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import time
from copy import deepcopy
from itertools import product

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.feature_extraction import create_feature_extractor
from tqdm.auto import tqdm

from helpers import checkpoints, data, evidence, exercises, measure, nets, show, statistics, training
from helpers.data import Split
from helpers.evidence import say
from helpers.show import figures

# %% tags=["plumbing"]
run = evidence.start("07_transfer_resnet", profile=PROFILE, seed=SEED)
say(evidence.timetable("07_transfer_resnet"))

# %% [markdown]
# Here is what a hundred labels bought in the published runs. A **coin** gets half of the cats and dogs right. *From
# scratch* is a network that has seen nothing but the labelled photographs. The other four begin with what the pretrained
# one knows, and from row to row more of it may change. Read the distance from the last row.

# %% tags=["plumbing", "answer"]
show.style()
FIVE = ["frozen body", "last block", "lower rates", "all layers", "from scratch"]
of_hundred = pd.DataFrame(
    [
        100 * runs[runs["labels"] == 100].groupby("way")["accuracy"].mean()
        for runs in map(pd.DataFrame, evidence.measurements("07_transfer_resnet", "curves").values())
    ]
)
if len(of_hundred):
    best, scratch = of_hundred[FIVE[:-1]].mean().idxmax(), of_hundred["from scratch"].mean()
    won = of_hundred[best].mean() - scratch
    title = f"100 labels: “{best}” {'leads' if won > 0 else 'trails'} “from scratch” by {abs(won):.1f} points"
    fig = show.dots({way: of_hundred[way] for way in FIVE}, title=title, label="{:.1f}",
                    xlabel="validation accuracy (%), mean over the draws of a run")  # fmt: skip
    fig.axes[0].axvline(50, color="black", linestyle=":", linewidth=1.5)
    fig.axes[0].annotate(" a coin", (50, 0), xycoords=("data", "axes fraction"), xytext=(2, 5), textcoords="offset points",
                         fontsize=10)  # fmt: skip
    table = of_hundred[FIVE].mean().to_frame("validation accuracy (%)")
    alt = f"A dot for each of {len(of_hundred)} published runs, 100 labels; a coin gets 50. {show.in_words(table, '{:.1f}')}"
    show.figure(fig, alt=alt, table=table)
else:
    say("No full run of this page is published yet, so there is no picture of its answer.")

# %% [markdown]
# How far that can be trusted, and what 500 labels change, is section 5.
#
# Two settings decide what this page can see. `counts` says how many photographs have a label; `draws` says how often they
# are drawn anew from the `pool`, because which hundred you happen to label is a part of the result. The ways that train the
# body are slow, so `costly` lists the label counts and draws at which they run. The other settings are sizes and lengths.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(pool=80, counts=(40, 80), draws=2, costly={40: 2}, scratch={40: (1,)}, tune={40: 1}, left_out=(),
               told=40, cached=2, trap=1, validation=40, test=40, shown=2, digits=50),
    quick=dict(pool=1_000, counts=(100, 500, 1_000), draws=5, costly={100: 3}, scratch={100: (15,)}, tune={100: 14},
               left_out=("last block", "lower rates"), told=100, cached=20, trap=4, validation=200, test=200, shown=4, digits=300),
    full=dict(pool=8_000, counts=(100, 500, 2_000, 8_000), draws=5, costly={100: 3, 500: 3},
              scratch={100: (20, 40, 80), 500: (10, 20, 40)}, tune={100: 20, 500: 10}, left_out=(), told=500,
              cached=20, trap=5, validation=2_000, test=2_000, shown=6, digits=2_000),
)  # fmt: skip
FIRST = 100 * SEED  # no draw of one run is a draw of another

# %% [markdown]
# And this is the whole page in one drawing: five ways to train the network, which differ in how much of it may learn.

# %% tags=["plumbing"]
DRAWN = ["conv1", "layer1", "layer2", "layer3", "layer4.0", "layer4.1", "head"]
SHARES = {  # of the full learning rate, for each part
    "frozen body": (0, 0, 0, 0, 0, 0, 1),
    "last block": (0, 0, 0, 0, 0, 1, 1),
    "lower rates": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1 / 2, 1),
    "all layers": (1,) * 7,
    "from scratch": (1,) * 7,
}
fig, ax = plt.subplots(figsize=(8, 3.9))
for row, (way, learning) in enumerate(SHARES.items()):
    for place, (part, share) in enumerate(zip(DRAWN, learning, strict=True)):
        new = way == "from scratch" or part == "head"
        strength = 0 if share == 0 else 1 + 0.16 * np.log2(share)
        colour = "#d9d9d9" if share == 0 else mpl.colors.to_rgba(show.COLOURS[3], strength)
        box = mpl.patches.Rectangle((place, row - 0.35), 0.94, 0.7, facecolor=colour, edgecolor="black",
                                    hatch="////" if new else None)  # fmt: skip
        ax.add_patch(box)
        said = "" if share == 0 else "1" if share == 1 else f"1/{round(1 / share)}"
        note = ax.text(place + 0.47, row, said, ha="center", va="center", fontsize=11)
        note.set_bbox(dict(facecolor="white", edgecolor="none", pad=1.5) if new else None)
ax.set(xlim=(-0.05, 7), ylim=(4.5, -0.5))
ax.set_xticks([place + 0.47 for place in range(7)], DRAWN)
ax.set_yticks(range(5), list(SHARES))
ax.xaxis.tick_top()
ax.tick_params(length=0)
ax.grid(False)
for spine in ax.spines.values():
    spine.set_visible(False)
keys = [mpl.patches.Patch(facecolor="#d9d9d9", edgecolor="black", label="frozen"),
        mpl.patches.Patch(facecolor=show.COLOURS[3], edgecolor="black", label="learns, at this share of the rate"),
        mpl.patches.Patch(facecolor="white", edgecolor="black", hatch="////", label="starts at random")]  # fmt: skip
fig.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=11)
fig.suptitle("How much of the network may learn?", fontweight="bold", x=0.01, ha="left")
rows = [f"{way}: {', '.join(f'{p} {s:.2g}' for p, s in zip(DRAWN, shares, strict=True) if s) or 'nothing'} learns"
        for way, shares in SHARES.items()]  # fmt: skip
show.figure(fig, alt="Five ways to train a ResNet-18, one row of boxes each, from the first layer to the head, with the share "
            f"of the learning rate. {'; '.join(rows)}. The head starts at random; from scratch, everything does.")  # fmt: skip

# %% [markdown]
# ## 1. A network that has never seen a cat
#
# The **source** is a ResNet-18 (He et al. 2016), trained on eight of CIFAR-10's ten classes. The two that are missing are
# the **target**: cat against dog. So nothing about the target can have leaked into the source. (The usual source is
# ImageNet. `checkpoints.pretrained_resnet18("imagenet")` fetches torchvision's weights where a download is allowed; but those
# have seen more than a hundred breeds of dogs, and then this is no new task.)

# %%
training.seed_everything(SEED)
eight, pets = data.cifar10_without_cat_and_dog(), data.cat_or_dog()
old_validation, old_test = eight.validation.take(S.validation), eight.test.take(S.test)
pool, validation = pets.train.take(S.pool), pets.validation.take(S.validation)
del eight
source = checkpoints.pretrained_resnet18()


def accuracy(model, split=None):
    """Fraction of a split, by default the target's validation photographs, that `model` gets right."""
    return training.evaluate(model, validation if split is None else split).accuracy


# %% tags=["plumbing"]
made = checkpoints.manifest()["resnet18"]
known = run.test("source", source, old_test).accuracy
run.claim("source", "Test accuracy of the source on its own eight classes", known, at_least=0.88)
say(
    f"{measure.count_parameters(source):,} parameters, {measure.count_macs(source, pool.inputs[:1]):,} MACs for each "
    f"photograph. Right on {known:.1%} of {len(old_test):,} test photographs of its eight classes; it was trained on "
    f"{made['examples']:,}, for {made['seconds'] / 60:.0f} minutes."
)

# %% [markdown]
# Its layers halve height and width five times, which is right for photographs of 224 pixels. Of CIFAR's 32 pixels a
# single one would be left. So the network enlarges each batch to 64 × 64 before anything else, by linear interpolation
# between neighbours. That adds no information. It gives the layers room. The rest is torchvision's own network, so the same
# weights in torchvision's class must give the same logits on enlarged photographs.

# %%
library = torchvision.models.resnet18(num_classes=8).eval()
library.load_state_dict(source.state_dict())
images = validation.inputs[:8]
with torch.no_grad():
    gap = library(F.interpolate(images, size=(64, 64), mode="bilinear")) - source(images)

# %% tags=["plumbing"]
run.claim(
    "same-as-torchvision", "Largest difference between torchvision's logits and the source's", gap.abs().max(),
    at_most=1e-3,
)  # fmt: skip

# %% [markdown]
# The network enlarges, not the dataset: four times the pixels would be four times the memory, and shifts and flips are
# cheaper on small images.
#
# ## 2. A new head on a frozen body
#
# What the last layer, the **head**, reads are 512 numbers for each photograph: the **features**. The head adds them up with
# eight sets of weights, one for each old class. The eight answers are of no use here; the 512 numbers may be. So cut the
# head off, put a new one with two answers on, and **freeze** the rest, the **body**: no gradient, no change.


# %%
def with_new_head(body, classes):
    """Return a copy of a ResNet with a new head, in which nothing but the head can be trained."""
    new = deepcopy(body)
    for parameter in new.parameters():
        parameter.requires_grad = False
    new.fc = nn.Linear(new.fc.in_features, classes)
    return new


def trainable(model):
    """Names of the parameters that training may change."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


mine = with_new_head(source, 2)
frozen = training.freeze(training.replace_head(source, mine.fc), but=["fc"])

# %% tags=["plumbing"]
run.claim(
    "same-freeze", "Parameters that the cell freezes and the helper does not, or the reverse",
    len(trainable(mine) ^ trainable(frozen)), at_most=0,
)  # fmt: skip
to_train = sum(frozen.get_parameter(name).numel() for name in trainable(frozen))
say(f"Of {measure.count_parameters(frozen):,} parameters {to_train:,} are left to train.")

# %% [markdown]
# ### Exercise 07.1 — warm-up
#
# Where does that number come from? The head is one linear layer: it reads `features` numbers and gives `classes` answers, and
# each answer adds a number of its own. One line.


# %%
def head_parameters(features, classes):
    """Return how many parameters a linear head has, biases included."""
    ### BEGIN SOLUTION
    return features * classes + classes
    ### END SOLUTION


exercises.check("07.1", head_parameters)

# %% [markdown]
# ## 3. Compute the features once
#
# The obvious way: hand the frozen network to the training loop. In each epoch each photograph then passes the whole body,
# and gives the same 512 numbers as in the epoch before. Nothing in the body can change. So run the body **once**, keep the
# features, and train the head on them as if they were the data.


# %%
@torch.no_grad()
def features(model, inputs):
    """What the head of a ResNet reads, batch by batch, in evaluation mode: (n, 512)."""
    body = deepcopy(model).eval()
    body.fc = nn.Identity()
    return torch.cat([body(batch) for batch in inputs.split(250)])


some = validation.take(40)
extractor = create_feature_extractor(source, {"flatten": "features"})
with torch.no_grad():
    by_library = extractor(some.inputs)["features"]
gaps = [by_library - features(source, some.inputs), by_library - training.features(source, some).inputs]

# %% tags=["plumbing"]
run.claim(
    "same-features", "Largest difference between the features of the cell, the helper and torchvision",
    max(gap.abs().max().item() for gap in gaps), at_most=1e-3,
)  # fmt: skip

# %% [markdown]
# ### Exercise 07.2 — predict
#
# Take the smallest label count, in batches of 25, for `S.cached` epochs (20 in *quick* and *full*). How many times faster is
# the second way, its one pass through the body included? Put your guess into the function before you run the cells below
# it; within a factor of two is fine.


# %%
def predicted_times_faster():
    """Return your prediction: seconds with the body in every epoch, divided by seconds with cached features."""
    ### BEGIN SOLUTION
    epochs, head = 20, 0.02  # one pass through the body costs 1; an epoch of the head alone, say, a fiftieth of that
    return epochs * (1 + head) / (1 + epochs * head)
    ### END SOLUTION


# %% [markdown]
# The labelled photographs are drawn from the pool, as many cats as dogs; the number of the draw says which.


# %%
def drawn(count, draw):
    """Draw `count` photographs of the pool, as many cats as dogs; return their indices."""
    pairs = torch.randperm(len(pool) // 2, generator=torch.Generator().manual_seed(draw))[: count // 2]
    return torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten()


def pick(split, chosen):
    """Return the chosen examples of a split."""
    return Split(split.inputs[chosen], split.labels[chosen])


few = pick(pool, drawn(S.counts[0], FIRST))
HEAD = dict(optimizer="adam", lr=0.02, progress=False)

# %% [markdown]
# Now the same training twice: the body in every epoch, and the features once.

# %%
each = training.fit(frozen, few, epochs=S.cached, batch_size=25, seed=SEED, **HEAD)
began = time.perf_counter()
cached = training.features(source, few)
once = time.perf_counter() - began
then = training.fit(frozen.fc, cached, epochs=S.cached, batch_size=25, seed=SEED, **HEAD)
slow, fast = each.model, then.model

# %% tags=["plumbing"]
by_epoch = [np.array([row["seconds"] for row in fit.history]) for fit in (each, then)]
ratios = by_epoch[0] / (by_epoch[1] + once / S.cached)  # each epoch bears its share of the one pass through the body
seconds = {"body in every epoch": by_epoch[0].sum(), "features once": by_epoch[1].sum() + once}
saved = float(np.median(ratios))
run.record("cached_seconds", seconds, timing=True)

# %%
exercises.check("07.2", predicted_times_faster, measured=saved, epochs=S.cached)

# %% [markdown]
# The two heads began with the same weights and saw the same batches in the same order. They must come out the same, up to
# rounding. (They would not if the photographs were shifted and flipped at random in each epoch. That is what cached
# features cost: you cannot vary the pictures.)

# %%
seen = training.features(source, validation)  # of the validation photographs, from here on
scores = [accuracy(head, seen) for head in (slow.fc, fast)]

# %% tags=["plumbing"]
run.claim("same-head", "Difference of the two heads' validation accuracies", abs(scores[0] - scores[1]), at_most=0.01)
interval = None
if len(ratios) > 10:
    found = statistics.median_interval(np.log(ratios), confidence=0.99)
    interval = float(np.exp(found.low)), float(np.exp(found.high))
run.claim("cached-is-faster", "Times faster with cached features, median over the epochs", saved, at_least=5, timing=True,
          interval=interval)  # fmt: skip
say(
    f"{S.cached} epochs of {len(few)} photographs: {seconds['body in every epoch']:.1f} s with the body in every epoch, "
    f"{seconds['features once']:.2f} s with features computed once, **{saved:.0f} times** faster. The heads are right on "
    f"{scores[0]:.1%} and {scores[1]:.1%} of {len(validation):,} validation photographs."
)

# %% [markdown]
# ## 4. A trap: the frozen body that moves
#
# Most tutorials train a head with a loop like the one below: the body's parameters are frozen, the optimizer knows the head
# alone, `model.train()`, go.
#
# **Predict.** How many of the body's tensors have changed when it is done?


# %%
def head_loop(model, part, *, careful):
    """Train the head of a copy of `model`; with `careful` its BatchNorm layers stay in evaluation mode."""
    new = deepcopy(model)
    optimizer = torch.optim.Adam(new.fc.parameters(), lr=HEAD["lr"])
    for epoch in range(S.trap):
        new.train()
        if careful:
            for module in new.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(25):
            loss = F.cross_entropy(new(part.inputs[chosen]), part.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return new.eval()


# %%
def changed(model):
    """Names of the tensors of the body that are not the source's."""
    theirs = source.state_dict()
    return [n for n, t in model.state_dict().items() if not n.startswith("fc.") and not torch.equal(t, theirs[n])]


careless, careful = (head_loop(frozen, few, careful=careful) for careful in (False, True))

# %% tags=["plumbing"]
moved = changed(careless)
kinds = sorted({name.rpartition(".")[2] for name in moved})
parameters = dict(source.named_parameters())
say(
    f"**{len(moved)} of the body's {len(source.state_dict()) - 2} tensors** have changed; "
    f"{sum(name in parameters for name in moved)} of them are parameters. "
    f"Their names end in {', '.join(f'`{kind}`' for kind in kinds)}."
)

# %% [markdown]
# In training mode BatchNorm does two things that have nothing to do with gradients. It standardizes with the mean and the
# variance of the *batch*, and it moves its stored statistics towards them: `running_mean` ← 0.9 `running_mean` + 0.1 of the
# batch's. Freezing the parameters prevents neither. Batch by batch, the stored statistics become those of cats and dogs. And
# the head is trained on features standardized by one batch, but used with features standardized by the stored statistics.
#
# What has become of the body shows when it gets its *old* head back and is asked for the eight old classes.

# %%
loops = {"careful": careful, "careless": careless}
new_task = {name: accuracy(net) for name, net in loops.items()}
old_task = {name: accuracy(training.replace_head(net, source.fc), old_validation) for name, net in loops.items()}
trap = pd.DataFrame({"cat or dog, new head": new_task, "eight old classes, old head": old_task})

# %% tags=["plumbing"]
run.record("trap", trap.reset_index(names="loop"))
trap.map("{:.1%}".format)

# %% tags=["plumbing"]
run.claim("careful", "Tensors of the body that the careful loop changed", len(changed(careful)), at_most=0)
run.claim(
    "fit-is-careful", "Tensors of the body that `training.fit` changed in section 3", len(changed(slow)), at_most=0
)
norms = [module for module in source.modules() if isinstance(module, nn.BatchNorm2d)]
run.claim("trap", "Tensors of the body that the careless loop changed", len(moved),
          at_least=3 * len(norms))  # fmt: skip
batches = S.trap * -(-len(few) // 25)
say(
    f"The careful loop's body is the source. The careless one has not changed a single parameter; but after {batches} "
    f"batches the source's statistics have a weight of only {0.9**batches:.0%} in what it stores. What became of its answers "
    "(the two verdicts are corrected for being two, by Holm's rule of notebook 05; the intervals are not):"
)
told_before = evidence.measurements("07_transfer_resnet", "trap").values()
verdicts = evidence.conclude(
    *(
        evidence.Comparison(
            f"careless against careful, {task}", 100 * (trap[task]["careless"] - trap[task]["careful"]),
            tuple(100 * (rows[1][task] - rows[0][task]) for rows in told_before),
        )
        for task in trap
    )
)  # fmt: skip

# %% [markdown]
# The old task suffers. Whether the new one gains or loses, the published seeds do not decide, and it hardly matters: this is an
# adaptation that nobody asked for and nobody recorded. The cached features of section 3 are wrong for it, and a body that
# several heads share breaks the others. The remedy is the inner loop of the cell: frozen BatchNorm layers stay in evaluation
# mode. `training.fit` does it for every BatchNorm whose scale and shift are frozen.
#
# ## 5. How much of the body should learn?
#
# The drawing at the top shows five ways. In words:
#
# | name | what learns | from which weights |
# |---|---|---|
# | frozen body | the head | the source's |
# | last block | the last of eight residual blocks, and the head | the source's |
# | lower rates | everything, each stage at half the rate of the next | the source's |
# | all layers | everything at one rate | the source's |
# | from scratch | everything | random |
#
# Early layers find edges and colours, which every task needs; late ones find what the old classes were made of. That is the
# case for **lower rates** towards the input (Howard and Ruder 2018 call them *discriminative* learning rates). An optimizer
# takes them as groups of parameters. (The frozen body works on cached features. All other ways shift and mirror their
# photographs at random, because they can: that belongs to the comparison.)

# %%
STAGES = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
RATES = {"conv1": 1 / 32, "bn1": 1 / 32, "layer1": 1 / 16, "layer2": 1 / 8, "layer3": 1 / 4, "layer4": 1 / 2}
LR = 0.02

groups = [
    {"params": list(source.get_submodule(stage).parameters()), "lr": LR * RATES.get(stage, 1)} for stage in STAGES
]
optimizer = torch.optim.SGD(groups, momentum=0.9)
rates = {stage: group["lr"] for stage, group in zip(STAGES, optimizer.param_groups, strict=True)}
sizes = {stage: sum(p.numel() for p in group["params"]) for stage, group in zip(STAGES, groups, strict=True)}
pd.DataFrame({"parameters": {s: f"{n:,}" for s, n in sizes.items()}, "peak learning rate": rates})

# %% [markdown]
# `training.fit` takes the same as `lr_factors`. Its rate at each step is the factor times the common curve, so the ratio
# to the head's rate must be the table's.


# %%
def start(draw, classes=2):
    """Return the source with a new head."""
    training.seed_everything(draw)
    return training.replace_head(source, nn.Linear(source.fc.in_features, classes))


used = {}


def note(model, at):
    """Remember the ratio of each stage's rate to the head's; after the last step both are zero."""
    if at.step == at.total:
        return
    rate = {id(p): group["lr"] for group in at.optimizer.param_groups for p in group["params"]}
    used.update({s: rate[id(next(model.get_submodule(s).parameters()))] / rate[id(model.fc.weight)] for s in STAGES})


training.fit(
    start(SEED), few.take(16), epochs=2, lr=1e-3, batch_size=16, lr_factors=RATES, on_step=note, progress=False
)
difference = max(abs(used[stage] - rates[stage] / rates["fc"]) for stage in STAGES)

# %% tags=["plumbing"]
run.claim("same-rates", "Largest difference between the rates of `fit` and of the groups, relative to the head's", difference,
          at_most=1e-9)  # fmt: skip


# %%
def batch_size(count):
    """A tenth of the labels, but at least 25 and at most 100."""
    return min(100, max(25, count // 10))


def begin(way, draw):
    """Return the network of one way before its training: what is frozen, and from which weights it starts."""
    if way == "from scratch":
        training.seed_everything(draw)
        return nets.resnet18(classes=2)
    return training.freeze(start(draw), but=["layer4.1", "fc"]) if way == "last block" else start(draw)


# %% [markdown]
# Whatever it starts from, the training is the same call. *Lower rates* only adds its factors to it.


# %%
def train(way, part, draw, epochs):
    """Train one way on shifted and mirrored photographs, with SGD."""
    return training.fit(
        begin(way, draw), part, epochs=epochs, lr=LR, batch_size=batch_size(len(part)), warmup=0.2, seed=draw,
        lr_factors=RATES if way == "lower rates" else None, augment=training.flip_and_shift,
        precision=training.fast_precision(), progress=False,
    ).model  # fmt: skip


WAYS = [way for way in ("last block", "lower rates", "all layers", "from scratch") if way not in S.left_out]
ORDER = ["frozen body", *WAYS]

# %% [markdown]
# Training from scratch needs more steps than fine-tuning, and how many depends on the labels. To be fair to it, the full
# profile tries longer and longer trainings until validation stops improving. Quick tries the shortest of them, and has no
# time for *last block* and *lower rates*.


# %%
def until_it_stops(part, draw, tries):
    """Train longer and longer until validation stops improving; return the best network and its epochs."""
    best = -1.0
    for epochs in tries:
        net = train("from scratch", part, draw, epochs)
        if (score := accuracy(net)) <= best:
            break
        best, found = score, (net, epochs)
    return found


# %% [markdown]
# **Predict**, before the long cell: with the fewest labels, how many points lie between the best of these ways and training
# from scratch? Which way wins?
#
# First the frozen body, for which all photographs of the pool are turned into features once.

# %%
HEAD_EPOCHS = 20
pooled = training.features(source, pool)
rows, heads = [], {}
for count, draw in product(S.counts, range(FIRST, FIRST + S.draws)):
    part = pick(pooled, drawn(count, draw))
    heads[count, draw] = training.fit(
        start(draw).fc, part, epochs=HEAD_EPOCHS, batch_size=batch_size(count), seed=draw, **HEAD
    ).model
    steps = HEAD_EPOCHS * (count // batch_size(count))
    rows.append({"way": "frozen body", "labels": count, "draw": draw, "steps": steps,
                 "accuracy": accuracy(heads[count, draw], seen)})  # fmt: skip

# %% [markdown]
# Then the ways that train the body. The first draw decides how long training from scratch takes.

# %%
kept, spent = {}, {}
for count, draws in S.costly.items():
    epochs = {way: S.tune[count] for way in WAYS if way != "from scratch"}
    for way, draw in tqdm(list(product(WAYS, range(FIRST, FIRST + draws))), leave=False):
        part, began = pick(pool, drawn(count, draw)), time.perf_counter()
        if way in epochs:
            net = train(way, part, draw, epochs[way])
        else:
            net, epochs[way] = until_it_stops(part, draw, S.scratch[count])
        spent[f"{way}, {count} labels, draw {draw}"] = time.perf_counter() - began
        steps = epochs[way] * (count // batch_size(count))
        rows.append({"way": way, "labels": count, "draw": draw, "steps": steps, "accuracy": accuracy(net)})
        if count == S.told:
            kept[way, draw] = net

# %% tags=["plumbing"]
run.record("curves", rows)
run.record("seconds", spent, timing=True)


def in_text(part):
    """Say the mean, the spread, the draws and the steps of one way at one label count."""
    mean, std = 100 * part["accuracy"].mean(), 100 * part["accuracy"].std()
    spread = f" ± {std:.1f}" if len(part) > 1 else ""
    return f"{mean:.1f}{spread} ({len(part)}; {part['steps'].iloc[0]:,} steps)"


found = pd.DataFrame(rows)
means = found.pivot_table(index="labels", columns="way", values="accuracy")[ORDER]
cells = {key: in_text(part) for key, part in found.groupby(["way", "labels"])}
pd.Series(cells).unstack().loc[ORDER].fillna("–")

# %% [markdown]
# That was your run: validation accuracy in percent, mean and standard deviation over the draws (how many; and the steps of
# the optimizer in each training). A handful of draws of so few labels ranks nothing: two ways near one half, which is what a
# coin gets, can stand in any order. So look at the published full runs beside it. There the fine-tuning takes as many steps
# in each way, training from scratch as many as validation wants, and each seed has draws of its own. (One thing is known to be
# wrong with these runs, and stands in `data/results/errata.json`: they come from two versions of this page's source, and ran
# with one thread and with two.)

# %% tags=["plumbing"]
full_runs = {seed: pd.DataFrame(r) for seed, r in evidence.measurements("07_transfer_resnet", "curves").items()}
by_seed = pd.concat(
    [table.groupby(["way", "labels"])["accuracy"].mean().rename(seed) for seed, table in full_runs.items()], axis=1
)  # fmt: skip


def lines_of(values, ax):
    """Draw a line for each way: `values` maps (way, labels) to the accuracies whose mean and interval are shown."""
    for i, way in enumerate(FIVE):
        points = {n: 100 * np.asarray(v, dtype=float) for (w, n), v in values.items() if w == way}
        ends = [statistics.paired_interval(v, [0] * len(v)) if len(v) > 1 else (0, 0) for v in points.values()]
        ax.errorbar([n * 1.04 ** (i - 2) for n in points], [v.mean() for v in points.values()],  # side by side
                    yerr=[(high - low) / 2 for low, high in ends], color=show.COLOURS[i], linestyle=figures.LINES[i],
                    marker=figures.MARKERS[i], capsize=3, label=way)  # fmt: skip
    labels = sorted({n for _, n in values})
    ax.set(xscale="log", xlabel="labelled photographs")
    ax.set_xticks(labels, [f"{n:,}" for n in labels])
    ax.minorticks_off()
    ax.axhline(50, color="black", linewidth=1, linestyle=":")


of_draws = {key: part["accuracy"].tolist() for key, part in found.groupby(["way", "labels"])}
of_seeds = {key: row.tolist() for key, row in by_seed.iterrows()}
fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True)
for ax, values in zip(axes, (of_draws, of_seeds), strict=True):
    lines_of(values, ax)
leaders = {by_seed.xs(n, level="labels").mean(axis=1).idxmax() for n in (100, 500)}
axes[0].set(ylabel="validation accuracy (%)", title="This run, over its draws", ylim=(40, 82))
axes[1].set_title(f"Published, over {len(full_runs)} seeds")
fig.suptitle(
    f"In the published runs “{'” and “'.join(sorted(leaders))}” has the highest mean at 100 and at 500 labels",
    fontsize=12,
)
fig.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=10)
spoken = "; ".join(f"{way}, {n:,} labels: {100 * np.mean(v):.1f}" for (way, n), v in of_seeds.items())
alt = f"Validation accuracy (%) against labelled photographs, with 95 % intervals. Published, mean over the seeds: {spoken}."
table = 100 * by_seed.mean(axis=1).unstack("labels").loc[FIVE]
show.figure(fig, alt=alt, table=table.rename(columns="{:,} labels, published (%)".format))

# %% [markdown]
# The dotted line is a coin; the whiskers are 95 % intervals of the mean, over the draws on the left, over the seeds on the right.
# Does it pay to train the body as well, and all of it? Each way against *all layers*, on the draws that both have, paired
# by seed. The verdicts are decided together, so they are stricter than the interval of a single line:


# %% tags=["plumbing"]
def mean_lead(table, count, a, b):
    """By how many points way `a` leads way `b`, on average over the draws that both have; None without any."""
    wide = table[table["labels"] == count].pivot(index="draw", columns="way", values="accuracy")
    leads = wide[a] - wide[b] if {a, b} <= {*wide} else pd.Series(dtype=float)
    return 100 * float(leads.dropna().mean()) if leads.notna().any() else None


pairs = [("all layers", "from scratch"), *((way, "all layers") for way in FIVE[:3])]
verdicts = evidence.conclude(
    *(
        evidence.Comparison(
            f"{count} labels: {a} against {b}", mean_lead(found, count, a, b),
            tuple(mean_lead(table, count, a, b) for table in full_runs.values()),
        )
        for count in (100, 500)
        for a, b in pairs
    )
)  # fmt: skip

# %% [markdown]
# So the pretrained weights are worth a lot, and a body that stays frozen leaves a part of that on the table. (It also had
# another optimizer, and saw no moved pictures: the difference is of the whole recipe.) With 500 labels the
# network in which everything may move beat every other way; with 100 it did so too, except that it cannot be told apart from
# *lower rates*. That elegant idea did not pay here. It had a handicap: the ways that fine-tune had the same peak rate and the
# same few steps, so lower rates also mean less learning. With more steps or a higher rate it might catch up; nobody tried that here.
#
# What does not depend on luck is the cost. The frozen body needs one pass forward for each photograph, and then none. Training
# all layers needs about three in every epoch: one forward, and two backward. So try the ways in the order of the table, the
# head first because it is nearly free, and then more of the body as long as validation says that it helps.
#
# ## 6. What does it look at?
#
# Cover a part of the photograph with a grey square and see how far the answer moves (Zeiler and Fergus 2014). The **margin** is
# the logit of the true class minus that of the other. Where the square makes it fall, the network was looking. No gradient
# is needed, and any network can be asked.


# %%
def occlusion(model, image, label, *, size=8, step=4):
    """By how much the margin of the true class falls when a square covers each place: (places, places)."""
    corners = range(0, image.shape[-1] - size + 1, step)
    batch = image.repeat(1 + len(corners) ** 2, 1, 1, 1)  # the first stays as it is
    for covered, (y, x) in zip(batch[1:], product(corners, corners), strict=True):
        covered[:, y : y + size, x : x + size] = 0  # the mean colour: the pixels are standardized
    logits = training.predict(model, batch)
    margins = logits[:, label] - logits[:, 1 - label]
    return (margins[0] - margins[1:]).view(len(corners), len(corners))


# %% [markdown]
# For a network that is nothing but a weighted sum of pixels the answer is known: covering a square takes away the square's
# part of the sum.

# %%
linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
photo = validation.inputs[0]
weights = (linear[1].weight[1] - linear[1].weight[0]).detach().view(3, 32, 32)
expected = 64 * F.avg_pool2d((weights * photo).sum(0)[None, None], 8, stride=4)[0, 0]
gap = (occlusion(linear, photo, 1) - expected).abs().max()

# %% tags=["plumbing"]
run.claim("occlusion", "Largest difference from the known answer for a linear network", gap, at_most=1e-3)

# %% [markdown]
# Now the best way of transfer at the label count of the comparison, and beside it a network trained from scratch on the same
# photographs. In the pictures orange is where covering makes the margin fall, violet where it makes it rise, each map in its
# own scale. **Predict**: which of the two looks at the animal?

# %% tags=["plumbing"]
best = means.loc[S.told, ORDER[:-1]].idxmax()
draws = sorted({draw for _, draw in kept})
if best == "frozen body":
    transferred = {draw: training.replace_head(source, heads[S.told, draw]) for draw in draws}
else:
    transferred = {draw: kept[best, draw] for draw in draws}

# %%
looking = {f"transferred ({best})": transferred[FIRST], "from scratch": kept["from scratch", FIRST]}
right = training.predict(transferred[FIRST], validation.inputs).argmax(1) == validation.labels
shown = [
    i for label in (0, 1) for i in (right & (validation.labels == label)).nonzero().flatten()[: S.shown // 2].tolist()
]
maps = {
    (name, i): occlusion(net, validation.inputs[i], int(validation.labels[i]))
    for name, net in looking.items()
    for i in shown
}

# %% tags=["plumbing"]
falls = {name: torch.stack([maps[name, i] for i in shown]).clamp(min=0) for name in looking}
middle = {name: float(fall[:, 2:5, 2:5].sum() / fall.sum().clamp(min=1e-9)) for name, fall in falls.items()}
mean, std = (torch.tensor(values)[:, None, None] for values in (data.CIFAR10_MEAN, data.CIFAR10_STD))
fig, axes = plt.subplots(3, len(shown), figsize=(max(6.5, 1.5 * len(shown) + 1), 5.2), squeeze=False)
for column, i in zip(axes.T, shown, strict=True):
    column[0].imshow((validation.inputs[i] * std + mean).clamp(0, 1).permute(1, 2, 0))
    column[0].set_xlabel(("cat", "dog")[int(validation.labels[i])])
    for ax, name in zip(column[1:], looking, strict=True):
        drop = maps[name, i] / maps[name, i].abs().max().clamp(min=1e-9)
        ax.imshow(drop, cmap="PuOr_r", vmin=-1, vmax=1)
for ax, name in zip(axes[:, 0], ["photograph", *looking], strict=True):
    ax.set_ylabel(name.replace(" (", "\n("), fontsize=9)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
told = " and ".join(f"{share:.0%} ({name})" for name, share in middle.items())
ours, theirs = middle.values()
fig.suptitle(f"Falls in the middle nine places: {ours:.0%} transferred, {theirs:.0%} from scratch", fontsize=11)
fig.supxlabel("orange: covered, the margin falls; violet: it rises (each map in its own scale)", fontsize=10)
alt = f"Photographs over occlusion maps, 7 × 7 places each. Of the falls of the margin, in the middle nine places: {told}."
show.figure(fig, alt=alt, table=pd.DataFrame({"share of the falls in the middle": middle}))

# %% tags=["plumbing"]
say(
    f"Of all that the margins fall on these {len(shown)} photographs, the middle nine of the 49 places hold {told}; "
    f"spread evenly it would be {9 / 49:.0%}. One network of each kind and {len(shown)} photographs are an "
    "illustration; no published run has measured this."
)

# %% [markdown]
# Take such pictures as a question, not as a proof. They show where *this* photograph's answer hangs; a grey square is itself
# something the network has never seen; and a large part of the map of a network that is often wrong is noise.
#
# ## 7. A distant target: where to cut?
#
# Cats and dogs are photographs like the source's. MNIST's digits are not: grey, drawn, ten classes. The body wants three
# channels, so each digit's one channel is given three times.
#
# The last block has learned what tells aeroplanes from frogs. That may be the wrong question for a digit, and earlier
# stages, which ask for less, may answer better (Yosinski and others 2014 measured it). So put the new head behind each of
# the four stages in turn: the mean over the places of each of its feature maps is the input. The numbers of the stages
# have different scales, and a head learns well only from numbers of about one size, so each is standardized by the
# training digits.


# %%
@torch.no_grad()
def after_stages(body, split):
    """The maps that each stage of an evaluated body puts out, averaged over their places: {stage: (n, channels)}."""
    extractor = create_feature_extractor(body, {stage: stage for stage in STAGES[2:-1]})
    batches = [extractor(images.expand(-1, 3, -1, -1)) for images in split.inputs.split(250)]
    return {stage: torch.cat([batch[stage].mean((2, 3)) for batch in batches]) for stage in STAGES[2:-1]}


def ten_classes(model, inputs, unseen):
    """Train on the few digits, given as `inputs`; return the accuracy on the others, given as `unseen`."""
    net = training.fit(
        model, Split(inputs, digits.labels), epochs=40, optimizer="adam", lr=2e-3, batch_size=batch_size(len(inputs)),
        seed=SEED, progress=False,
    ).model  # fmt: skip
    return accuracy(net, Split(unseen, unseen_digits.labels))


# %% [markdown]
# Three controls, all on the same few digits: the same body **untrained**, a linear classifier on the raw pixels, and LeNet-5
# trained from scratch.
#
# **Predict**: behind which stage does the head do best? And what is the pretraining worth there?

# %%
mnist = data.mnist()
digits, unseen_digits = mnist.train.take(S.digits), mnist.validation.take(S.digits)
training.seed_everything(SEED)
far = {"pretrained": {}, "not standardized": {}, "untrained": {}}
for name, body in {"pretrained": source, "untrained": nets.resnet18().eval()}.items():
    inputs, unseen = after_stages(body, digits), after_stages(body, unseen_digits)
    for stage, values in inputs.items():
        mean, std = values.mean(0), values.std(0).clamp(min=1e-6)
        head = nn.Linear(values.shape[1], 10)
        far[name][stage] = ten_classes(head, (values - mean) / std, (unseen[stage] - mean) / std)
        if body is source:
            far["not standardized"][stage] = ten_classes(head, values, unseen[stage])

# %%
linear = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
alone = {
    "raw pixels, linear": ten_classes(linear, digits.inputs, unseen_digits.inputs),
    "LeNet-5 from scratch": ten_classes(nets.lenet5(), digits.inputs, unseen_digits.inputs),
}

# %% tags=["plumbing"]
run.record("digits", far | alone)

# %% tags=["plumbing"]
depth = 100 * pd.DataFrame(far | {name: dict.fromkeys(far["pretrained"], score) for name, score in alone.items()})
cut = depth["pretrained"].idxmax()
fig = show.line_with_band(
    depth.index, dict(depth.items()), title=f"Your run: {S.digits:,} digits, one draw, one seed",
    xlabel="last stage before the head", ylabel="validation accuracy (%)",
)  # fmt: skip
fig.axes[0].get_legend().remove()
fig.legend(loc="outside lower center", ncols=3)
table = depth.rename_axis("last stage").round(1)
show.figure(fig, alt=f"Validation accuracy (%) against the stage. {show.in_words(table, '{:.1f}')}", table=table)
run.claim("digits", "Validation accuracy on digits, pretrained body, best end", depth["pretrained"].max() / 100,
          at_least=0.93 if PROFILE == "full" else 0.84)  # fmt: skip

# %% [markdown]
# The published runs have more digits. Their seeds draw other heads, another order of the batches and another untrained body;
# the digits are the same in each. Here is what they decide, with the head behind the stage that was best on average there:

# %% tags=["plumbing"]
on_digits = [
    100 * pd.DataFrame({k: v if isinstance(v, dict) else dict.fromkeys(m["pretrained"], v) for k, v in m.items()})
    for m in evidence.measurements("07_transfer_resnet", "digits").values()
]
end = sum(m["pretrained"] for m in on_digits).idxmax() if on_digits else cut
asked = {
    f"pretrained, the head behind `{end}` against behind `layer4`": (("pretrained", end), ("pretrained", "layer4")),
    f"behind `{end}`: pretrained against untrained": (("pretrained", end), ("untrained", end)),
    "behind `layer4`: pretrained against untrained": (("pretrained", "layer4"), ("untrained", "layer4")),
    f"pretrained, behind `{end}`, against raw pixels": (("pretrained", end), ("raw pixels, linear", end)),
    f"pretrained, behind `{end}`, against LeNet-5 from scratch": (("pretrained", end), ("LeNet-5 from scratch", end)),
}
verdicts = evidence.conclude(
    *(
        evidence.Comparison(what, depth[a][at] - depth[b][by], tuple(m[a][at] - m[b][by] for m in on_digits))
        for what, ((a, at), (b, by)) in asked.items()
    )
)  # fmt: skip

# %% [markdown]
# The untrained body is the control that is nearly always missing. Random filters with ReLU and pooling are features, too, and
# pretraining must be judged by what it adds to them. The specialist is the control that hurts: a LeNet-5, a small fraction of
# the size and made for digits, sees nothing but these few and still comes out ahead. And a head that is badly trained misleads
# as much as a missing control: the line without standardization has the very same features as the first one.
#
# ## 8. Exercises
#
# **07.3 · The rule of the rates.** Section 5 typed the factors by hand. Write the rule: the last stage, the head, has the factor
# 1, and each stage the factor of the next one times `factor`.


# %%
def stage_rates(stages, factor):
    """Return stage → factor on the learning rate; `stages` are names, from the input to the head."""
    ### BEGIN SOLUTION
    return {stage: factor ** (len(stages) - 1 - place) for place, stage in enumerate(stages)}
    ### END SOLUTION


feedback = exercises.check("07.3", stage_rates)
feedback

# %% tags=["plumbing"]
if feedback.right:
    rule = stage_rates(["conv1", "layer1", "layer2", "layer3", "layer4", "fc"], 1 / 2.6)
    say(f"With the 2.6 of Howard and Ruder, the first convolution learns at {rule['conv1']:.2%} of the head's rate.")

# %% [markdown]
# **07.4 · A picture for nothing.** The head reads the *mean* of each feature map over its places, and is linear. So it might as
# well read every place by itself and take the mean afterwards: that is a **class activation map** (Zhou et al. 2016). `maps` are
# what the last block puts out, (n, features, height, width); `weight` is the head's, (classes, features). Return for each image and
# class what each place says, (n, classes, height, width), so that the mean over the places, plus the bias, is the logits.


# %%
def class_maps(maps, weight):
    """Return the class activation maps, without the bias."""
    ### BEGIN SOLUTION
    return torch.einsum("nfhw,cf->nchw", maps, weight)
    ### END SOLUTION


feedback = exercises.check("07.4", class_maps)
feedback

# %% tags=["plumbing"]
if feedback.right:
    net = transferred[FIRST]
    with torch.no_grad():
        maps_of = create_feature_extractor(net, {"layer4": "maps"})(images)["maps"]
        places = class_maps(maps_of, net.fc.weight)
        gap = (places.mean((2, 3)) + net.fc.bias - net(images)).abs().max()
    say(
        f"On the real network the maps have {places.shape[2]} × {places.shape[3]} places, and their means miss the logits "
        f"by at most {gap:.1g}. Occlusion above asked 49 places, at 50 times the cost."
    )

# %% [markdown]
# **07.5 · Open: another place to cut.** Between *last block* and *all layers* lie other cuts. Write a sixth way that trains
# `layer3`, `layer4` and the head, with a line more in `begin`, and run it on the same draws. Before you do: which two ways must
# it lie between, if section 5 is a ladder? Then compare in pairs, draw by draw, and write down in two sentences what your
# draws decide and what they leave open. There is no check. How many more draws would you need, and what would each cost?
#
# ## What was measured
#
# The test photographs are used here, once for each draw of two ways: the way of transfer that validation chose, and training
# from scratch.

# %%
test = pets.test.take(S.test)
tested = pd.DataFrame(
    {
        best: {d: run.test(f"{best}, {S.told} labels, draw {d}", transferred[d], test).accuracy for d in draws},
        "from scratch": {
            d: run.test(f"from scratch, {S.told} labels, draw {d}", kept["from scratch", d], test).accuracy
            for d in draws
        },
    }
)

# %% tags=["plumbing"]
run.record("test", {way: tested[way].tolist() for way in tested})
gain = (tested[best] - tested["from scratch"]).mean()
low, high = statistics.paired_interval(tested[best], tested["from scratch"])
if PROFILE == "full":  # each draw has a seed of its own, so one run decides
    run.claim("500-labels", "500 labels: test accuracy of transfer above from scratch", gain, at_least=0.05)
    run.claim("500-labels-interval", "500 labels: lower end of the paired interval of that difference", low, at_least=0)
else:
    run.claim("few-labels", "Test accuracy of transfer above from scratch, mean of the draws", gain, at_least=0.02,
              interval=(low, high))  # fmt: skip
coin = statistics.image_interval(tested["from scratch"].mean(), len(test))
say(
    f"Your run, {S.told} labels, {len(tested)} draws, {len(test):,} test photographs: “{best}” {tested[best].mean():.1%}, "
    f"from scratch {tested['from scratch'].mean():.1%}; {100 * gain:+.1f} points (95 % over the draws: {100 * low:.1f} to "
    f"{100 * high:.1f}). "
    + ("On so few photographs, from scratch cannot be told from a coin. " if coin.low <= 0.5 <= coin.high else "")
    + ("" if PROFILE == "full" else "That is an illustration; the page leans on the published seeds. ")
    + "What those found on the test photographs:"
)
verdicts = evidence.conclude(
    evidence.Comparison(
        "500 labels: transfer, in the way that validation chose, against from scratch",
        100 * gain if PROFILE == "full" else None,
        tuple(100 * value for value in evidence.claimed("07_transfer_resnet", "500-labels")),
    )
)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - With 500 labels, transfer beats training from scratch by many points, on the test photographs of every published seed.
#   <!-- claims: 500-labels, 500-labels-interval -->
# - What is frozen gives the same features in every epoch. Compute them once: the same head, many times sooner.
#   <!-- claims: same-features, same-head, cached-is-faster -->
# - Freezing parameters does not freeze BatchNorm's statistics. Put those layers into evaluation mode, and check that nothing
#   moved. <!-- claims: trap, careful, fit-is-careful -->
# - Head first: it costs one pass over the data, and it sets the score that training more of the body has to beat.
#   <!-- by construction -->
# - State labels, draws, steps and the interval. Which photographs were drawn is a part of the result.
#   <!-- by construction -->
# - Ask what the untrained network, the raw pixels and a small specialist would have done. <!-- by construction -->
#
# ## To read
#
# - Yosinski, Clune, Bengio and Lipson 2014, *How Transferable Are Features in Deep Neural Networks?*
# - Zeiler and Fergus 2014, *Visualizing and Understanding Convolutional Networks*: occlusion, section 4.2.
# - Ioffe and Szegedy 2015, *Batch Normalization*: the two modes, section 3.1.
# - He, Zhang, Ren and Sun 2016, *Deep Residual Learning for Image Recognition*.
# - Zhou, Khosla, Lapedriza, Oliva and Torralba 2016, *Learning Deep Features for Discriminative Localization*.
# - Howard and Ruder 2018, *Universal Language Model Fine-tuning for Text Classification*, section 3.2.
# - Kornblith, Shlens and Le 2019, *Do Better ImageNet Models Transfer Better?*
#
# **Next**: notebook 08 makes the transferred network small. Prune first, or transfer first?
