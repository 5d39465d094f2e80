# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [02_prune_weights]
# ---

# %% [markdown]
# # 02 · Prune weights: how many does it really need?
#
# LeNet-5 reads handwritten digits with 430,500 weights. Here you delete most of them, in several ways, and count
# what it costs. Then you look for the savings where people expect them, in the file and in the milliseconds. They are
# not there until somebody fetches them.
#
# **You will be able to**
# - prune a network by magnitude with a few lines of your own, and get the same masks from `torch.nn.utils.prune`;
# - choose between random and magnitude, layer-wise and global, weights and neurons, by measurement;
# - compare one big cut with many small ones fairly, and say what three seeds decide about it, and what not;
# - tell a *masked* network from a *smaller* one, and write the file that is smaller.
#
# **Before this**: notebook 01 (parameters, MACs, bytes, and the latency verdict with its null control).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
from copy import deepcopy

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import checkpoints, data, distillation, evidence, exercises, measure, nets, pruning, show, training
from helpers.core import modules
from helpers.evidence import say
from helpers.files import verify, write_dense, write_sparse

run = evidence.start("02_prune_weights", profile=PROFILE, seed=SEED)
say(evidence.timetable("02_prune_weights"))

# %% [markdown]
# The answer first, from three published runs. The lines are one trained network, cut once and not trained again: the smallest
# weights of all go, or random ones, the same share of each layer (with a band from the lowest to the highest run). The
# diamonds on the right are three networks that were pruned *while they trained*. The axis counts how many times fewer weights
# are left.

# %% tags=["plumbing", "answer"]
show.style()
published = evidence.published("02_prune_weights")
if published:
    one_cut = [pd.DataFrame(result.measurements["one_shot_curves"]).set_index("sparsity") for result in published]
    fewer = 1 / (1 - one_cut[0].index.to_numpy())
    names = {"magnitude, global": "the smallest cut, not trained again", "random, layer-wise": "random ones cut"}
    fig = show.line_with_band(
        fewer,
        {name: [100 * table[column].to_numpy() for table in one_cut] for column, name in names.items()},
        title="",
        xlabel="times fewer weights (log scale)",
        ylabel="digits read correctly (%)",
    )
    (ax,) = fig.axes
    pairs = [{model.name.partition("-sparse")[0]: model for model in result.models} for result in published]
    dense_right = [100 * pair["lenet5-dense"].accuracy for pair in pairs]
    far, right = zip(
        *((p["lenet5"].weights / p["lenet5"].nonzero, 100 * p["lenet5"].accuracy) for p in pairs), strict=True
    )
    ends = f"{min(right):.2f} to {max(right):.2f} %"
    label = f"all weights: {max(dense_right):.2f} %"
    ax.axhline(max(dense_right), color="#999999", linestyle=(0, (1, 1)), label=label, zorder=0)
    ax.plot(far, right, "D", color=show.COLOURS[4], markersize=9, alpha=0.7, label=f"pruned in training: {ends}")
    ax.set(xscale="log", ylim=(0, 106))
    ax.set_xticks([2, 5, 10, 20, 50, 100], ["2", "5", "10", "20", "50", "100"])
    ax.minorticks_off()
    ax.set_title(f"One weight in {min(far):.0f} is left, and reads {ends} of the digits")
    ax.get_legend().remove()
    fig.legend(loc="outside lower center", ncols=2)
    means = pd.DataFrame({name: sum(100 * t[column] for t in one_cut) / len(one_cut) for column, name in names.items()})
    low, high = (pd.concat(one_cut)["random, layer-wise"].groupby(level=0).agg(end) for end in ("min", "max"))
    alt = (
        f"Accuracy (%) against the share of the weights removed, means of the runs. {show.in_words(means)} Pruned in training, "
        f"{min(far):.0f} times fewer: {', '.join(f'{r:.2f}' for r in right)}; all weights: {max(dense_right):.2f}."
    )
    show.figure(fig, alt=alt, table=means.assign(**{"random, lowest": 100 * low, "random, highest": 100 * high}))
else:
    say("This page has no published runs yet.")

# %% [markdown]
# The lines were measured on validation digits, the diamonds on test digits. And training alone did not make the diamonds:
# section 7 says what else had a hand in it. (One thing is known to be wrong with these runs, and stands in
# `data/results/errata.json`: the name of the diamonds' method was reworded by hand. No number was touched.)
#
# Three settings matter here: `far` is the sparsity at which schedules are compared in section 6; `ratio` is how many times
# fewer weights the last network keeps, and `epochs` how long it trains for that.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(train=1_000, validation=300, repeats=2, retrain=512, rounds=2, far=0.98,
               ratio=16, epochs=2, timings=20),
    quick=dict(train=26_000, validation=2_500, repeats=2, retrain=8_000, rounds=4, far=0.98,
               ratio=16, epochs=2, timings=60),
    full=dict(train=55_000, validation=5_000, repeats=5, retrain=55_000, rounds=5, far=0.99,
              ratio=110, epochs=26, timings=100),
)  # fmt: skip
say(f"This run: profile **{PROFILE}**, `far` {S.far:.0%}, `ratio` {S.ratio}, `epochs` {S.epochs}.")

# %%
training.seed_everything(SEED)
mnist = data.mnist()
train, validation = mnist.train.take(S.train), mnist.validation.take(S.validation)
dense = checkpoints.load("lenet5")


def accuracy(model):
    """Fraction of the validation digits that `model` gets right."""
    return training.evaluate(model, validation).accuracy


# %% tags=["plumbing"]
say(f"The trained network reads {accuracy(dense):.2%} of {len(validation):,} validation digits correctly.")

# %% [markdown]
# Every choice in this notebook is made on these **validation** digits. The test digits are used twice, at the end:
# once for the network we start from, once for the network we arrive at.
#
# Here is the page in one picture. A mask crosses weights out, and leaves the matrix as large as it was. Removing a neuron
# takes a row out of one matrix and a column out of the next, and they become smaller.

# %% tags=["plumbing"]
fig, axes = plt.subplots(1, 3, figsize=(8, 2))
crossed = {(0, 1), (0, 4), (1, 0), (1, 2), (2, 3), (2, 4), (3, 0), (3, 1), (3, 2), (3, 3)}
for i, (ax, title) in enumerate(zip(axes, ["dense", "masked", "neurons removed"], strict=True)):
    rows = [0, 2] if i == 2 else range(4)
    for y, row in enumerate(rows):
        for column in range(5):
            zero = i == 1 and (row, column) in crossed
            face = "white" if zero else show.COLOURS[0]
            ax.add_patch(plt.Rectangle((column, -y), 0.92, -0.92, facecolor=face, edgecolor="black"))
            if zero:
                ax.text(column + 0.46, -y - 0.48, "0", ha="center", va="center", fontsize=11)
        for out in range(2):
            face = show.COLOURS[1]
            ax.add_patch(plt.Rectangle((6.3 + y, -out - 0.5), 0.92, -0.92, facecolor=face, edgecolor="black"))
    ax.text(0, 0.35, title, fontsize=12, fontweight="bold")
    count = f"{5 * len(rows) - len(crossed) * (i == 1)} + {2 * len(rows)} weights"
    ax.text(0, -4.6, f"{count}{' that count' if i == 1 else ''}", fontsize=11)
    ax.text(0, -5.4, f"{5 * len(rows)} + {2 * len(rows)} numbers stored", fontsize=11)
    ax.set(xlim=(-0.1, 10.4), ylim=(-5.8, 1), aspect="equal")
    ax.axis("off")
alt = (
    "Two layers as grids of squares, three times. Dense: a matrix of four rows (neurons) and five columns, and the next one with "
    "four columns. Masked: half of the first matrix's squares hold a zero, and both are as large as before. Neurons removed: the "
    "first matrix has two rows, the next one two columns."
)
show.figure(fig, alt=alt)

# %% [markdown]
# ## 1. Delete the small ones
#
# The oldest idea is still the one to beat. A weight close to zero hardly changes the sum that it is part of, so it should
# be missed least. Here are the 400,000 weights of `fc1`, the layer that holds most of the network.

# %%
weights = dense.fc1.weight.detach().flatten()
shares = [0.1, 0.5, 0.9, 0.99]
nearer = [weights.abs().kthvalue(int(share * len(weights))).values.item() for share in shares]

# %% tags=["plumbing"]
fig, ax = plt.subplots()
near = weights.abs() <= nearer[1]
ax.hist(
    [weights[near].numpy(), weights[~near].numpy()],
    bins=200, range=(-0.15, 0.15), stacked=True, color=[show.COLOURS[1], show.COLOURS[0]],
    label=["the half nearest to zero", "the other half"],
)  # fmt: skip
ax.set(
    title=f"Half of fc1's weights are closer to zero than {nearer[1]:.3f}",
    xlabel="weight (the few beyond ±0.15 are not drawn)",
    ylabel="number of weights",
)
ax.legend()
table = pd.DataFrame({"closer to zero than": nearer}, index=pd.Index(shares, name="share of the weights"))
alt = f"Histogram of the weights of fc1, the half nearest to zero in another colour. {show.in_words(table, '{:.3f}')}"
show.figure(fig, alt=alt, table=table)

# %% [markdown]
# **Predict.** You set the smaller half of the weights of *every* layer to zero and train nothing. How many of a thousand
# digits change their answer?
#
# Here is magnitude pruning in full. A **mask** has the shape of the weight, and is `True` where the weight stays. The
# **sparsity** is the fraction that goes.


# %%
def magnitude_mask(weight, sparsity):
    """Return the mask that drops the fraction `sparsity` of the weights, those nearest to zero."""
    order = weight.abs().flatten().argsort()
    mask = torch.ones(weight.numel(), dtype=torch.bool)
    mask[order[: round(sparsity * weight.numel())]] = False
    return mask.view_as(weight)


def zero_out(model, masks):
    """Return a copy of `model` whose weights are zero where their mask is False."""
    new = deepcopy(model)
    for name, mask in masks.items():
        new.get_parameter(name).data *= mask
    return new


# %%
LAYERS = ["conv1", "conv2", "fc1", "fc2"]
mine = {f"{name}.weight": magnitude_mask(dense.get_submodule(name).weight.detach(), 0.5) for name in LAYERS}
before = training.predict(dense, validation.inputs).argmax(1)
after = training.predict(zero_out(dense, mine), validation.inputs).argmax(1)
changed = int((before != after).sum())

# %% tags=["plumbing"]
say(f"Half of the network is gone. {changed} of {len(validation):,} digits changed their answer.")

# %% [markdown]
# That is the surprise that started this field. The network is far too large for its job, and magnitude finds weights that
# do next to nothing (Han et al. 2015, *Learning both Weights and Connections for Efficient Neural Networks*).
#
# **02.1 · Warm-up.** One line: return the sparsity of a tensor, the fraction of its entries that are zero.


# %%
def sparsity(weight):
    """Return the fraction of the entries of `weight` that are zero."""
    ### BEGIN SOLUTION
    return float((weight == 0).float().mean())
    ### END SOLUTION


# %%
exercises.check("02.1", sparsity)

# %% [markdown]
# ## 2. The same masks from libraries
#
# `helpers.pruning.layer_masks` does what you just read, with its arguments checked. `torch.nn.utils.prune` is PyTorch's
# own module; note that it has to be imported by its full name. All three must agree on every single weight.

# %%
helper = pruning.layer_masks(dense, 0.5)
library = deepcopy(dense)
for name in LAYERS:
    prune.l1_unstructured(library.get_submodule(name), "weight", amount=0.5)

# %% tags=["plumbing"]
differing = sum(
    int((mine[w] != helper[w]).sum() + (mine[w] != library.get_submodule(w[:-7]).weight_mask.bool()).sum())
    for w in mine
)
run.claim("same-masks", "The cell's masks, the helper's and PyTorch's differ in no weight", differing, at_most=0)

# %% [markdown]
# The helper keeps its masks differently. PyTorch's `prune` replaces `weight` by a plain tensor that a hook recomputes
# before each forward pass. `pruning.mask` uses `torch.nn.utils.parametrize`: the layer computes with
# `original * mask`, always. The difference shows as soon as you copy a network that has been in use:

# %%
images = validation.inputs[:8]
masked = pruning.mask(dense, helper)
for name, model in {"torch.nn.utils.prune": library, "pruning.mask": masked}.items():
    model(images).sum().backward()
    try:
        deepcopy(model)
        print(f"{name}: deepcopy works")
    except RuntimeError as error:
        print(f"{name}: deepcopy raises RuntimeError: {str(error).split('.')[0]}.")

# %% [markdown]
# ## 3. Random or magnitude, layer by layer or all at once?
#
# Two questions in one experiment. **Which** weights go: random ones, or the smallest? And **where**: the same fraction
# in each layer, or the smallest of the whole network, wherever they are (*global* pruning)? Nothing is retrained yet.
#
# **Predict**: at which sparsity does each variant fall below 90 % accuracy?

# %%
SPARSITIES = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98]


def curve(masks_at, repeats=1):
    """Validation accuracy at each of SPARSITIES; `masks_at(sparsity, seed)` returns masks."""
    return [
        [accuracy(zero_out(dense, masks_at(sparsity, seed))) for sparsity in SPARSITIES]
        for seed in range(SEED, SEED + repeats)
    ]


curves = {
    "magnitude, global": curve(lambda s, _: pruning.global_masks(dense, s)),
    "magnitude, layer-wise": curve(lambda s, _: pruning.layer_masks(dense, s)),
    "random, layer-wise": curve(lambda s, seed: pruning.layer_masks(dense, s, method="random", seed=seed), S.repeats),
}

# %% tags=["plumbing"]
percent = [100 * s for s in SPARSITIES]
fig = show.line_with_band(
    percent,
    {name: [[100 * a for a in row] for row in rows] for name, rows in curves.items()},
    title="Magnitude knows what random does not",
    xlabel="weights removed (%)",
    ylabel="validation accuracy (%)",
)
means = {name: [sum(a) / len(a) for a in zip(*rows, strict=True)] for name, rows in curves.items()}
table = pd.DataFrame(means, index=pd.Index(SPARSITIES, name="sparsity"))
alt = f"Accuracy (%) against sparsity. {show.in_words(100 * table)}"
show.figure(fig, alt=alt, table=table)
run.record("one_shot_curves", table.reset_index())
gap = table.loc[0.8, "magnitude, layer-wise"] - table.loc[0.8, "random, layer-wise"]
run.claim("magnitude-beats-random", "At 80 % sparsity magnitude is more accurate than random by", gap, at_least=0.2)
_ = evidence.conclude(
    evidence.Comparison(
        "magnitude against random, 80 % of each layer removed",
        100 * gap,
        tuple(100 * value for value in evidence.claimed("02_prune_weights", "magnitude-beats-random")),
    )
)
best = table.loc[0.95].idxmax()
say(
    f"With 95 % removed and nothing retrained, the best of the three is **{best}** at {table.loc[0.95, best]:.1%}; "
    f"random pruning is left with {table.loc[0.95, 'random, layer-wise']:.1%}. Ten classes: guessing gives 10 %."
)

# %% [markdown]
# The seeds drew other random masks, and the verdict is theirs. Nothing is drawn when the smallest weights go: every run
# measures the same two magnitude curves, of this one network. With half of its weights gone, or more, it keeps more under
# global pruning; another network may not.
#
# Global pruning does not treat the layers alike. Look at what it leaves of each of them:

# %%
kept = {s: pruning.global_masks(dense, s) for s in (0.5, 0.9, 0.98)}
pd.DataFrame(
    {
        f"{s:.0%} removed": {w[:-7]: f"{m.float().mean():.1%} left" for w, m in masks.items()}
        for s, masks in kept.items()
    }
)

# %% [markdown]
# It empties `fc1` and spares the first convolution, where few weights serve many positions. Nobody told it to. The weights
# there are simply larger. That is a hint that the layers differ in how much they can lose, so ask them one by one.
#
# ## 4. How sensitive is each layer?
#
# Prune one layer and leave the others whole. The curve that falls first belongs to the layer to be careful with.
#
# **Predict** the order of the four layers, most sensitive first.

# %%
sensitivity = {
    name: [accuracy(zero_out(dense, pruning.layer_masks(dense, {name: s}))) for s in SPARSITIES] for name in LAYERS
}

# %% tags=["plumbing"]
fig = show.line_with_band(
    percent,
    {name: [100 * a for a in row] for name, row in sensitivity.items()},
    title="The layers differ in what they can lose",
    xlabel="weights removed from this layer alone (%)",
    ylabel="validation accuracy (%)",
)
table = pd.DataFrame(sensitivity, index=pd.Index(SPARSITIES, name="sparsity"))
alt = f"Accuracy (%) against the sparsity of one layer. {show.in_words(100 * table)}"
show.figure(fig, alt=alt, table=table)
run.record("sensitivity", table.reset_index())
order = table.mean().sort_values()
say(
    "In this network, most sensitive first: "
    f"{', '.join(f'**{n}** ({table.loc[0.9, n]:.1%} with 90 % removed)' for n in order.index)}."
)

# %% [markdown]
# ## 5. Weights or whole neurons?
#
# A neuron of `fc1` is one row of its weight, one entry of its bias, and one *column* of `fc2`, which reads it. Remove all
# three and the matrices really are smaller. Here it is by hand: drop the rows with the smallest sum of magnitudes.

# %%
row_sums = dense.fc1.weight.detach().abs().sum(dim=1)
keep = row_sums.argsort()[250:].sort().values
small = deepcopy(dense)
small.fc1 = torch.nn.Linear(800, len(keep))
small.fc1.weight.data, small.fc1.bias.data = dense.fc1.weight[keep], dense.fc1.bias[keep]
small.fc2 = torch.nn.Linear(len(keep), 10)
small.fc2.weight.data, small.fc2.bias.data = dense.fc2.weight[:, keep], dense.fc2.bias

# %% [markdown]
# The helper does it in two steps: `neuron_masks` masks row, bias and column; `remove_neurons` cuts out what is masked. The
# three networks (cut by hand, masked, cut by the helper) must give the same logits, and the rows must be those that
# PyTorch's `ln_structured` picks.

# %%
masks = pruning.neuron_masks(dense, "fc1", "fc2", amount=0.5)
neurons_masked = pruning.mask(dense, masks)
neurons_removed = pruning.remove_neurons(neurons_masked, "fc1", "fc2")
library = deepcopy(dense)
prune.ln_structured(library.fc1, "weight", amount=0.5, n=1, dim=0)

assert torch.equal(masks["fc1.weight"], library.fc1.weight_mask.bool())

# %% tags=["plumbing"]
logits = [training.predict(model, images) for model in (small, neurons_masked, neurons_removed)]
difference = max((logits[0] - other).abs().max().item() for other in logits[1:])
run.claim(
    "removed-equals-masked",
    "Largest difference between removed and masked neurons' logits",
    difference,
    at_most=1e-4,
)

# %% [markdown]
# Now compare at equal numbers of weights. **Predict**: you may remove 70 % of the weights of `fc1`, one by one or as
# whole neurons. Which hurts more?

# %%
by_neuron = [accuracy(zero_out(dense, pruning.neuron_masks(dense, "fc1", "fc2", s))) for s in SPARSITIES]

# %% tags=["plumbing"]
fig = show.line_with_band(
    percent,
    {"single weights": [100 * a for a in sensitivity["fc1"]], "whole neurons": [100 * a for a in by_neuron]},
    title="Whole neurons are harder to spare than single weights",
    xlabel="weights removed from fc1 (%)",
    ylabel="validation accuracy (%)",
)
table = pd.DataFrame({"weights": sensitivity["fc1"], "neurons": by_neuron}, index=pd.Index(SPARSITIES, name="sparsity"))
alt = f"Accuracy (%) against the share of fc1 removed. {show.in_words(100 * table)}"
show.figure(fig, alt=alt, table=table)
run.record("weights_or_neurons", table.reset_index())
cost = table["weights"] - table["neurons"]
say(
    f"In this network the gap is widest at {cost.idxmax():.0%}: whole neurons cost {100 * cost.max():.1f} points more. "
    "The coarser the pieces, the more useful weights go with the useless ones."
)

# %% [markdown]
# Here neurons cost more accuracy. They buy something that single weights do not: a network that is smaller *for every
# runtime*. Section 9 puts both on the scales.
#
# ## 6. One cut, or many small ones with training between?
#
# After a cut the surviving weights can move and make up for the lost ones. It is often said that many small cuts, with
# training between them, keep what one big cut loses. Try it: same final sparsity, same number of training epochs in all.
# **One-shot** cuts once, then trains. **Iterative** cuts a little, trains an epoch, and again; each round drops the same
# fraction of what is left.


# %%
def prune_and_retrain(amounts):
    """Cut to each of `amounts` in turn, with S.rounds epochs of training in all; return the masked network."""
    model, part = dense, train.take(S.retrain)
    for amount in amounts:
        model = pruning.mask(model, pruning.global_masks(model, amount))
        epochs = S.rounds // len(amounts)
        model = training.fit(model, part, epochs=epochs, lr=1e-3, optimizer="adam", seed=SEED, progress=False).model
    return model


# %% [markdown]
# The two differ in one thing more, and it is easily overlooked. `fit` raises the learning rate and lowers it to zero again
# *in every call*, and Adam starts without memory. One-shot calls it once, iterative once for each cut. If the two end
# apart, was it the cuts or the rate? So there is a third way, with one cut and the learning rates of the iterative one: it
# cuts to the final sparsity at once, and goes on cutting to the same sparsity, which removes nothing more.
#
# **Predict**: which of the three ends highest, and by how many points?

# %%
steps = pruning.geometric_amounts(S.far, S.rounds)
untrained = accuracy(zero_out(dense, pruning.global_masks(dense, S.far)))
one_shot = accuracy(prune_and_retrain([S.far]))
iterative = accuracy(prune_and_retrain(steps))
restarted = accuracy(prune_and_retrain([S.far] * S.rounds))

# %% tags=["plumbing"]
schedules = {
    "one cut, no training": untrained,
    f"one cut, then {S.rounds} epochs": one_shot,
    f"{S.rounds} cuts, an epoch after each": iterative,
    f"one cut, {S.rounds} epochs with the rate of the row above": restarted,
}
comparison = pd.DataFrame({"validation accuracy": schedules})
run.record("schedules", comparison.reset_index(names="schedule"))
comparison.map("{:.2%}".format)

# %% tags=["plumbing"]
run.claim(
    "training-repairs",
    "Accuracy that training gives back after a one-shot cut",
    one_shot - untrained,
    at_least=0.5,
)
say(f"The cuts went to {', '.join(f'{s:.1%}' for s in steps)}.")


def of(rows, words):
    """Return the accuracy of the schedule whose name holds `words`; None where it was not measured."""
    return next((row["validation accuracy"] for row in rows if words in row["schedule"]), None)


def leads(base):
    """Return by how many points the small cuts lead `base` in each full run that measured both."""
    runs = evidence.measurements("02_prune_weights", "schedules").values()
    pairs = [(of(rows, "cuts, an epoch after each"), of(rows, base)) for rows in runs]
    return tuple(100 * (a - b) for a, b in pairs if b is not None)


_ = evidence.conclude(
    evidence.Comparison(
        "many small cuts against one, each with the learning rate as it comes",
        100 * (iterative - one_shot),
        leads("one cut, then"),
    ),
    evidence.Comparison(
        "many small cuts against one, with equal learning rates",
        100 * (iterative - restarted),
        leads("rate of the row above"),
    ),
)
fair = len(leads("rate of the row above"))
say(
    f"The fair comparison is the second line, and {fair} published runs measured it."
    if fair > 1
    else "The fair comparison is the second line, and **no three seeds have run it yet**: the third way was added to this page after "
    "the published runs. So this page does not decide whether small cuts keep more than one big cut does, whatever your own run shows."
)

# %% [markdown]
# Training after the cut is what counts: without it the network does little better than guess. Whether the cut comes in one piece or in several is
# another question, and only the lines above answer it. The first of them compares what most people would run, and mixes
# cuts with learning rates. The second changes the cuts alone. (The full profile cuts further than *quick*, and trains longer
# after it: the same experiment, at a harder place.)
#
# ## 7. As far as it goes
#
# Why stop between epochs at all? A **gradual** schedule cuts every few steps while the network trains. With the progress $t$
# from 0 to 1 and the final sparsity $s_f$, each step drops the same fraction of what is left, as the rounds above did:
#
# $$s(t) = 1 - (1 - s_f)^t.$$

# %%
final = 1 - 1 / S.ratio
moments = [i / 20 for i in range(21)]
left = [430_500 * (1 - final) ** t for t in moments]
for t, number in zip(moments, left, strict=True):
    assert abs(430_500 * (1 - pruning.geometric_sparsity(t, final=final)) - number) < 1e-6

# %% tags=["plumbing"]
fig = show.line_with_band(
    moments,
    {"weights": left},
    title="Each step drops the same fraction of what is left",
    xlabel="progress t of the pruning phase",
    ylabel="weights left",
)
fig.axes[0].yaxis.set_major_formatter("{x:,.0f}")
table = pd.DataFrame({"weights left": left}, index=pd.Index(moments, name="t"))
show.figure(fig, alt=f"Weights left against progress. {show.in_words(table.iloc[::5])}", table=table)

# %% [markdown]
# Three more things are meant to help when very few weights are left. The cell below uses them all; what each of them adds is
# not measured here.
#
# - **A better score.** Magnitude ignores how much the loss cares. If $g$ is the gradient of weight $w$, then
#   $w^2\,\overline{g^2}$ estimates the damage of setting it to zero. Adam keeps the running mean
#   $\overline{g^2}$ anyway, so the score is free. Notebook 03 derives it.
# - **Fresh data.** The digits are shifted by up to two pixels, another way each time.
# - **A teacher.** The dense network's answers, softened by a temperature of 4, say more about a digit than its label
#   alone. Notebook 12 explains this loss; here it is six lines.


# %%
teacher = deepcopy(dense).to(memory_format=torch.channels_last)  # the layout that `fit` trains in, and faster


def taught(model, images, labels, temperature=4.0, share=0.9):
    """Mean loss of a batch: mostly the distance to the dense network's softened answers, partly the labels'."""
    logits = model(images)
    with torch.no_grad():
        softened = F.softmax(teacher(images) / temperature, dim=1)
    distance = F.kl_div(F.log_softmax(logits / temperature, dim=1), softened, reduction="batchmean")
    return share * temperature**2 * distance + (1 - share) * F.cross_entropy(logits, labels)


# %%
few, fresh = train.take(64), nets.lenet5()
by_hand, by_helper = (loss(fresh, few.inputs, few.labels) for loss in (taught, distillation.taught_by(dense)))
assert torch.isclose(by_hand, by_helper, rtol=1e-5)

# %% [markdown]
# One warning before you run it. Here, *quick* and *full* are **not the same experiment**. *Quick* prunes the trained network,
# mildly, in a minute. *Full* starts from an untrained one, so that each seed is a network of its own, trains it for many
# epochs and prunes it much further. So your number is no small version of the published one: the two stand side by side
# below, each with its ratio.

# %%
training.seed_everything(SEED)
fitted = pruning.prune_gradually(
    nets.lenet5() if PROFILE == "full" else dense,
    train,
    amount=final,
    epochs=S.epochs,
    lr=2e-3,
    warmup=0.02,
    augment=training.random_shift,
    loss=taught,
    seed=SEED,
    checkpoint=run.scratch("gradual.pt") if PROFILE == "full" else None,
)
sparse = pruning.bake(fitted.model)

# %% tags=["plumbing"]
run.record("gradual_seconds", sum(row["seconds"] for row in fitted.history), timing=True)
say(f"Validation accuracy: {accuracy(sparse):.2%} with {measure.count_nonzero(sparse):,} weights left.")

# %% [markdown]
# Now the test digits, for the first and only time:

# %%
base_test, test = run.test("lenet5-dense", dense, mnist.test), run.test("lenet5-sparse", sparse, mnist.test)
ratio = measure.count_weights(dense) / measure.count_nonzero(sparse)
lost = base_test.accuracy - test.accuracy

# %% tags=["plumbing"]
run.claim("fewer-weights", "Times fewer weights than LeNet-5", ratio, at_least=0.99 * S.ratio)
run.claim("accuracy-kept", "Test accuracy lost (fraction)", lost, at_most=0.005 if PROFILE == "full" else 0.003)
if PROFILE == "full":
    run.claim("108x", "Times fewer weights, mean over the seeds", ratio, at_least=108, over_seeds=True)
    run.claim("error-at-108x", "Test error, mean over the seeds", 1 - test.accuracy, at_most=0.008, over_seeds=True)
left = pd.DataFrame({"weights": {n: w.numel() for n, w in pruning.weights_of(sparse).items()},
                     "left": {n: int((w != 0).sum()) for n, w in pruning.weights_of(sparse).items()}})  # fmt: skip
left["share left"] = (left["left"] / left["weights"]).map("{:.2%}".format)
left

# %% tags=["plumbing"]
say(
    f"This run: **{ratio:.0f} times fewer weights**, {100 * test.accuracy:.2f} % of the test digits right, against "
    f"{100 * base_test.accuracy:.2f} % of the dense network: {base_test.correct - test.correct} of {test.count:,} digits lost."
)
errors = sorted(100 * value for value in evidence.claimed("02_prune_weights", "error-at-108x"))
ratios = evidence.claimed("02_prune_weights", "108x")
if errors:
    say(
        f"The published runs: **{sum(ratios) / len(ratios):.0f} times fewer weights**, {errors[0]:.2f} to {errors[-1]:.2f} % of the "
        f"test digits wrong ({len(errors)} networks)."
    )
_ = evidence.conclude(
    evidence.Comparison(
        "test accuracy of the published sparse networks against the dense one",
        None,
        tuple(-100 * value for value in evidence.claimed("02_prune_weights", "accuracy-kept")),
    )
)

# %% [markdown]
# And the literature? Its results are ratios of *weights*, not of files. Keep the two apart whenever you read a paper:
# section 9 shows how far they differ.

# %% tags=["plumbing"]
literature = evidence.literature("mnist", model="LeNet-5").dropna(subset="weights_ratio")
table = literature.assign(error=100 * (1 - literature["accuracy"]))[
    ["year", "method", "weights_ratio", "error", "seen"]
]
table.columns = ["year", "method", "times fewer weights", "test error (%)", "read in the paper itself"]
table.round(2).sort_values("times fewer weights").set_index("method")

# %% [markdown]
# ## 8. A pruning method of your own
#
# PyTorch lets you write one: subclass `BasePruningMethod` and return a mask. Here is one that magnitude pruning
# lacks. It takes the same number of weights from **each row**, so that no neuron is emptied and all rows cost the same.


# %%
class BalancedRows(prune.BasePruningMethod):
    """Drop the fraction `amount` of each row's weights, the smallest ones."""

    PRUNING_TYPE = "unstructured"

    def __init__(self, amount):
        self.amount = amount

    def compute_mask(self, t, default_mask):
        rows = [magnitude_mask(row, self.amount) for row in t]
        return default_mask * torch.stack(rows)


# %%
library = deepcopy(dense)
BalancedRows.apply(library.fc1, "weight", amount=0.9)
ours = torch.stack([pruning.keep_largest(row.abs(), 0.9) for row in dense.fc1.weight.detach()])
assert torch.equal(library.fc1.weight_mask.bool(), ours)
plain = pruning.layer_masks(dense, {"fc1": 0.9})

# %% tags=["plumbing"]
say(
    f"fc1 with 90 % removed: {accuracy(zero_out(dense, plain)):.2%} if the smallest go, "
    f"{accuracy(zero_out(dense, {'fc1.weight': ours})):.2%} if every row gives the same share; the emptiest row keeps "
    f"{int(plain['fc1.weight'].sum(1).min())} weights against {int(ours.sum(1).min())}."
)

# %% [markdown]
# ### What `prune.remove` removes
#
# Its name misleads nearly everyone. It removes the *bookkeeping*: `weight_orig` and `weight_mask` go, and the masked
# product becomes an ordinary `weight` again. No weight leaves the network.


# %%
def state(model):
    """Names, shapes and zeros of what fc1 stores, as PyTorch would save it."""
    stored = {name: t for name, t in model.state_dict().items() if name.startswith("fc1.weight")}
    return {name: f"{tuple(t.shape)}, {(t == 0).float().mean():.0%} zeros" for name, t in stored.items()}


stages = {"before": state(dense), "pruned": state(library)}
prune.remove(library.fc1, "weight")
stages["after prune.remove"] = state(library)
pd.DataFrame(stages).fillna("")

# %% [markdown]
# While it is masked, the layer stores *two* matrices: pruning has doubled it. After `remove` it has exactly the size that
# it began with; nine tenths of it are zeros, each kept as four bytes.
#
# ## 9. Where are the savings?
#
# Four networks. The dense one. The sparse one of section 7. The same with its *dead* neurons cut out, those with no input
# left or read by nobody. And, from section 5, the dense one with half of the filters of `conv2` and half of the neurons of
# `fc1` removed (not retrained: accuracy is not the question here). Three currencies: bytes in a dense file, bytes in a
# sparse file, milliseconds.
#
# **Predict** the file sizes before you look. A weight is four bytes.

# %%
compact, half = sparse, dense
for layer, next_layer in [("fc1", "fc2"), ("conv2", "fc1"), ("conv1", "conv2")]:  # what feeds nothing goes too
    compact = pruning.remove_neurons(compact, layer, next_layer)
for layer, next_layer in [("fc1", "fc2"), ("conv2", "fc1")]:
    halved = pruning.mask(half, pruning.neuron_masks(half, layer, next_layer, amount=0.5))
    half = pruning.remove_neurons(halved, layer, next_layer)
networks = {"dense": dense, "sparse": sparse, "sparse, dead neurons out": compact, "half of the neurons": half}

# %%
files = {}
for name, model in networks.items():
    stem = run.scratch(name.replace(", ", "-").replace(" ", "-"))
    files[name] = {
        "dense file": write_dense(model, stem.with_suffix(".dense.pack")),
        "sparse file": write_sparse(model, stem.with_suffix(".sparse.pack")),
    }


# %% tags=["plumbing"]
sizes = pd.DataFrame({name: {kind: packed.bytes for kind, packed in kinds.items()} for name, kinds in files.items()}).T
run.record("file_bytes", sizes.reset_index(names="network"))
sizes.map("{:,} bytes".format)

# %% [markdown]
# The first column is the lesson: **zeros weigh as much as other numbers**. The dense file of the sparse network is as large
# as that of the dense one. The second column is what a format buys that stores only what is not zero: the positions,
# as gaps, and the values. (`write_sparse` notices that a dense array has nothing to leave out, and keeps it as it is.)
#
# A small file is worth something only if it holds the same network. So read it back, put it into a fresh LeNet-5, and
# compare the logits, bit for bit:

# %%
packed = files["sparse"]["sparse file"]
verify(packed.path, sparse, mnist.validation.inputs[:256])
file_ratio = files["dense"]["dense file"].bytes / packed.bytes

# %% tags=["plumbing"]
run.claim(
    "smaller-file",
    "Times smaller than the dense file, read back and verified",
    file_ratio,
    at_least=70 if PROFILE == "full" else 12,
)
say(
    f"{ratio:.1f} times fewer weights made a file {file_ratio:.1f} times smaller. The rest went into positions, biases and "
    "a header. Any text that quotes the first number as if it were the second is off by that much."
)

# %% [markdown]
# And the milliseconds? **Predict**: the sparse network multiplies by zero nearly everywhere. Is it faster? The timing is
# that of notebook 01: interleaved, with the dense network entered twice, so that we know what "no difference" looks like.

# %%
one = validation.inputs[:1]


def call(model):
    return lambda: training.predict(model, one)


calls = {name: call(model) for name, model in networks.items()}
copy = modules.copied(next(iter(networks.values())))
timings = measure.time_interleaved(calls, rounds=S.timings, control=call(copy))
verdicts = measure.compare(timings)
measure.verdict_table(verdicts)

# %% tags=["plumbing"]
masked_speed = verdicts["sparse"].ratio
run.claim(
    "masked-is-not-faster",
    "Speed-up of the sparse network in a dense kernel",
    masked_speed,
    at_most=1.3,
    timing=True,
)
macs = {name: measure.count_macs(model, one) for name, model in networks.items()}
timed = [record["verdict"] for result in published for model in result.models for record in model.latency]
said = ", ".join(f"{timed.count(each)} × *{each}*" for each in dict.fromkeys(timed)) or "none yet"
say(
    f"The sparse network: **{verdicts['sparse'].verdict}** (the published runs: {said}). A dense kernel multiplies by zeros as carefully as by anything "
    f"else. Cutting out dead neurons leaves {macs['sparse, dead neurons out'] / macs['dense']:.0%} of the MACs: "
    f"**{verdicts['sparse, dead neurons out'].verdict}**. Removing half of the neurons leaves "
    f"{macs['half of the neurons'] / macs['dense']:.0%} of them: **{verdicts['half of the neurons'].verdict}**, by a ratio of "
    f"{verdicts['half of the neurons'].ratio:.2f}."
)

# %% [markdown]
# That is the whole difference between a masked network and a smaller one. Notebook 04 takes it up for convolutions, where
# the MACs are; notebook 16 asks when sparse kernels pay.
#
# ## 10. Exercises
#
# **02.2 · Two of four.** Recent GPUs multiply faster if, of every four neighbouring weights in a row, two are zero.
# Write the mask: in each group of four along the last dimension keep the two largest magnitudes. The weight's last
# dimension is a multiple of four.


# %%
def two_of_four(weight):
    """Return the boolean mask (shape of `weight`) that keeps the two largest magnitudes of every four neighbours."""
    ### BEGIN SOLUTION
    groups = weight.abs().reshape(-1, 4)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(2, dim=1).indices, True)
    return mask.view_as(weight)
    ### END SOLUTION


# %%
exercises.check("02.2", two_of_four)

# %% [markdown]
# **02.3 · Predict the file.** Before you measure: how many bytes will the sparse file of this network take if 99 % of the
# weights of `fc1` are removed and all other layers stay dense? Positions in `fc1` cost one byte each, about. Return your
# number; within a fifth is fine.


# %%
def predicted_bytes():
    """Return the predicted size of the sparse file in bytes."""
    ### BEGIN SOLUTION
    others = 500 + 25_000 + 5_000 + 580  # conv1, conv2, fc2, and all biases
    return 4 * others + (4 + 1) * 4_000
    ### END SOLUTION


# %%
fc1_sparse = zero_out(dense, pruning.layer_masks(dense, {"fc1": 0.99}))
measured = write_sparse(fc1_sparse, run.scratch("exercise.pack")).bytes
exercises.check("02.3", predicted_bytes, measured=measured)

# %% [markdown]
# **02.4 · A fairer score for neurons.** A neuron matters by what it *reads* and by how strongly it is *read*. Score each
# neuron of a layer by the sum of the magnitudes of its row, times the sum of the magnitudes of the column that reads it in
# the next layer. Section 5 used the row sum alone. Which of the two spares the better neurons? Here is the experiment:
# four fifths of the neurons of `fc1` go, those with the lowest scores.


# %%
def accuracy_by(score):
    """Return the validation accuracy without the four fifths of fc1's neurons that `score` puts lowest."""
    scores = score(dense.fc1.weight.detach(), dense.fc2.weight.detach())
    keep = scores >= scores.sort().values[400]
    masks = {"fc1.weight": keep[:, None].expand(500, 800), "fc2.weight": keep.expand(10, 500)}
    return accuracy(zero_out(dense, masks))


# %% [markdown]
# **Predict** the winner, and the distance, before you run the check: it measures both.


# %%
def neuron_scores(weight, next_weight):
    """Return one score for each neuron. Shapes: weight (neurons, inputs), next_weight (outputs, neurons)."""
    ### BEGIN SOLUTION
    return weight.abs().sum(dim=1) * next_weight.abs().sum(dim=0)
    ### END SOLUTION


# %%
exercises.check("02.4", neuron_scores, accuracy_by=accuracy_by)

# %% [markdown]
# One network, one sparsity: that is an observation and no law. Notebook 03 asks the question properly.
#
# **02.5 · Open.** No check, and no single right answer. Section 6 compares three ways at one sparsity. Is `far` the place where
# small cuts would show, if anywhere? Choose another sparsity and another number of rounds, and write down beforehand what
# difference you would call real, given how far the published seeds lie apart. Then run it with three seeds. What may you
# conclude, and what would you need to conclude more?

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
run.model("lenet5-dense", task="mnist", method="dense", accuracy=base_test.accuracy, weights=measure.count_weights(dense),
          nonzero=measure.count_nonzero(dense), macs=macs["dense"], file=files["dense"]["dense file"].path)  # fmt: skip
run.model(
    f"lenet5-sparse-{S.ratio}x",
    task="mnist",
    method="gradual, by Fisher score, taught",
    techniques=["weights pruned", "a teacher"],
    base="lenet5-dense",
    accuracy=test.accuracy,
    weights=measure.count_weights(dense),
    nonzero=measure.count_nonzero(sparse),
    macs=macs["sparse"],
    file=packed.path,
    latency=[r for r in measure.latency_records(verdicts, runtime="eager", batch=1) if r["variant"] == "sparse"],
)
run.finish()

# %% [markdown]
# ## What to remember
#
# - A small magnitude is a good reason to go. Random pruning is the control that shows it.
#   <!-- claims: magnitude-beats-random -->
# - After a deep cut it is training that brings the answers back. <!-- claims: training-repairs -->
# - In the published runs LeNet-5, pruned while it trains, keeps fewer than one weight in a hundred, and misreads less than one test digit in a
#   hundred. <!-- claims: 108x, error-at-108x -->
# - A ratio of weights is no ratio of bytes: positions, biases and a header take their share of the smaller file.
#   <!-- claims: fewer-weights, smaller-file -->
# - A mask makes no dense kernel faster. Removing a neuron gives the same answers from smaller matrices.
#   <!-- claims: masked-is-not-faster, removed-equals-masked -->
# - `prune.remove` removes the bookkeeping, and no weight. <!-- by construction -->
#
# ## Read on
#
# - LeCun, Denker and Solla 1990, *Optimal Brain Damage*: where it began.
# - Han, Pool, Tran and Dally 2015, *Learning both Weights and Connections for Efficient Neural Networks*.
# - Zhu and Gupta 2018, *To prune, or not to prune: exploring the efficacy of pruning for model compression*: gradual
#   schedules; theirs is a cubic.
# - Molchanov, Ashukha and Vetrov 2017, *Variational Dropout Sparsifies Deep Neural Networks*: the fewest
#   weights in the table above.
#
# **Next**: notebook 03 asks whether magnitude is the right score at all.
