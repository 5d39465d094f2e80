# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [05_after_pruning]
# ---

# %% [markdown]
# # 05 · After pruning: fine-tune, rewind, or start again?
#
# Pruning breaks a network and training mends it. But which training? Carry on gently. Repeat the whole schedule at full
# learning rate. Put the surviving weights back to where they were early on. Or keep nothing but the shape, and train
# the small network from scratch. Each has a well-known paper behind it, and the papers disagree. Here they start
# from the same masks and, unless a bill says otherwise, get the same number of steps.
#
# **You will be able to**
# - fine-tune, rewind the learning rate and rewind the weights, each in a few lines;
# - name the controls without which a "winning ticket" proves nothing;
# - write down what each way costs, so that "the same budget" means something;
# - rank methods over several seeds, and let them share a rank when the seeds cannot tell them apart;
# - test whether pruning regularises, against three controls without pruning.
#
# **Before this**: notebook 02 (masks), notebook 04 (removal of filters).

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
from scipy import stats
from torch.nn.utils import prune
from tqdm.auto import tqdm

from helpers import checkpoints, data, evidence, exercises, measure, pruning, show, statistics, training
from helpers.data import Split
from helpers.evidence import say
from helpers.nets import cifar_small, lenet_300_100
from helpers.show import figures

# %% tags=["plumbing"]
run = evidence.start("05_after_pruning", profile=PROFILE, seed=SEED)
say(evidence.timetable("05_after_pruning"))

# %% [markdown]
# The answer first, from the published runs: it is two answers. In the upper panel a trained network's weights are masked,
# and each way trains what is left for equally many **steps**. In the lower one whole filters are gone, and each way may
# spend an equal **bill**, on which the training of the large network stands as well. Follow *start again*, new random
# weights, from one panel to the other. A dot is a run, the bar and the number are the mean.

# %% tags=["plumbing", "answer"]
show.style()
CALLED = {"other weights": "start again", "from scratch": "start again"}
ANSWER_PANELS = {"photos_sparse": "One mask, equal steps", "photos_cut": "Filters removed, equal bill"}
answers = {
    panel: pd.DataFrame(
        [
            {CALLED.get(row["way"], row["way"]): 100 * row["accuracy"] for row in rows}
            for rows in evidence.measurements("05_after_pruning", key).values()
        ]
    )
    for key, panel in ANSWER_PANELS.items()
}
if all(len(each) for each in answers.values()):
    fig, axes = plt.subplots(2, 1, figsize=(8, 4.8), sharex=True, height_ratios=[4, 3])
    leads = []
    for ax, (panel, each) in zip(axes, answers.items(), strict=True):
        rows = {way: each[way] for way in ("fine-tune", "rewind the rate", "start again", *each) if way in each}
        lead = (each["start again"] - each.drop(columns="start again").max(axis=1)).mean()
        leads.append(lead)
        where = "ahead of" if lead > 0 else "behind"
        show.dots(rows, title="", xlabel="", label="{:.1f}", ax=ax)
        ax.set_title(f"{panel}: start again is {abs(lead):.1f} points {where} the best other way", fontsize=11,
                     fontweight="normal", pad=6)  # fmt: skip
    axes[1].set_xlabel("validation accuracy on photographs (%)")
    turned = leads[0] < 0 < leads[1]
    fig.suptitle("Start again? Not for equal steps, but for an equal bill" if turned else "Start again? By steps and by bill",
                 x=0.01, ha="left", fontsize=14, fontweight="bold")  # fmt: skip
    table = pd.concat({panel: each.mean() for panel, each in answers.items()}).to_frame("validation accuracy (%)")
    words = table.set_axis([f"{panel}, {way}" for panel, way in table.index])
    show.figure(fig, alt=f"A dot for each of {len(each)} published runs. {show.in_words(words, '{:.1f}')}", table=table)
else:
    say("No full run of this page is published yet, so there is no picture of its answer.")

# %% [markdown]
# What is cut differs between the panels too, and the large network had trained for a few epochs only; section 5 says what
# that leaves open.
#
# Now the five ways of this page in one drawing. They differ in three things only: which weights stand under the mask,
# which mask it is, and how high the learning rate climbs.


# %% tags=["plumbing"]
def draw_weights(ax, values, kept, colours):
    """Draw a small matrix: one square for each weight, empty where the mask has removed it."""
    for (row, column), value in np.ndenumerate(values):
        face = plt.get_cmap(colours)(0.35 + 0.55 * value) if kept[row, column] else "white"
        ax.add_patch(plt.Rectangle((column, 4 - row), 0.9, 0.9, facecolor=face, edgecolor="#999999", linewidth=0.8))
    ax.set(xlim=(-0.1, 5), ylim=(-1.9, 6.2), aspect="equal")
    ax.axis("off")


def draw_rate(ax, peak):
    """Draw the learning rate over the retraining."""
    p = np.linspace(0, 1, 101)
    ax.plot(p, peak * np.where(p < 0.2, p / 0.2, (1 + np.cos(np.pi * (p - 0.2) / 0.8)) / 2), color="black")
    ax.set(xlim=(0, 1), ylim=(0, 1.1), xticks=[], yticks=[])
    ax.grid(False)


drawn = np.random.default_rng(5)
trained_values, first_values, other_values = drawn.random((3, 5, 5))
magnitude_mask = trained_values > 0.6
random_mask = drawn.permutation(magnitude_mask.ravel()).reshape(5, 5)
columns = [
    ("fine-tune", "trained weights", trained_values, magnitude_mask, "Blues", 0.1),
    ("rewind the rate", "trained weights", trained_values, magnitude_mask, "Blues", 1),
    ("rewind the weights", "first weights", first_values, magnitude_mask, "Oranges", 1),
    ("other weights", "another start", other_values, magnitude_mask, "Greys", 1),
    ("other mask", "first weights", first_values, random_mask, "Oranges", 1),
]
fig, panels = plt.subplots(2, 5, figsize=(10.5, 4.6), height_ratios=[2.8, 1])
for (above, below), (name, which, values, kept, colours, peak) in zip(panels.T, columns, strict=True):
    draw_weights(above, values, kept, colours)
    draw_rate(below, peak)
    above.text(2.45, 5.4, name, ha="center", fontsize=12, weight="bold")
    above.text(2.45, -0.25, which, ha="center", va="top", fontsize=11)
    below.set_xlabel("steps", fontsize=10)
panels[1, 0].set_ylabel("learning rate", fontsize=10)
panels[0, 4].text(2.45, -1.15, "(mask drawn at random)", ha="center", va="top", fontsize=10)
show.figure(fig, alt="Five ways to go on after pruning, as small matrices with the same number of weights left and the "
            "learning rate below. Fine-tune: trained weights, magnitude mask, low rate. Rewind the rate: the same, full "
            "rate. Rewind the weights: first weights in the same mask, full rate. Other weights: another random start in "
            "the same mask, full rate. Other mask: first weights in a random mask, full rate.")  # fmt: skip

# %% [markdown]
# Two settings carry the page. Sections 3 and 6 use a small network on digits, cheap enough for several `seeds` in every
# profile, so that each comparison can be repeated. Sections 4 and 5 use `cifar_small`; there `images` and `epochs` are
# the budget of each way to retrain. The quick budget is some two dozen steps, the full one more than two hundred. In full
# every seed first trains a dense network of its own (`dense_epochs`); quick and smoke start from the one of the
# repository, which had been trained for longer.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(digits=500, digit_epochs=1, digit_retrain=1, seeds=2, sparsities=[0.9, 0.98], validation=200,
               images=256, epochs=1, dense_epochs=20, batch=128, lr=0.1, scarce=[100], scarce_epochs=5, test=200),
    quick=dict(digits=2_000, digit_epochs=6, digit_retrain=3, seeds=4, sparsities=[0.9, 0.95, 0.98], validation=2_000,
               images=3_000, epochs=1, dense_epochs=20, batch=128, lr=0.1, scarce=[500], scarce_epochs=16, test=5_000),
    full=dict(digits=10_000, digit_epochs=6, digit_retrain=3, seeds=4, sparsities=[0.9, 0.95, 0.98], validation=5_000,
              images=15_000, epochs=4, dense_epochs=8, batch=256, lr=0.2, scarce=[200, 500], scarce_epochs=25,
              test=10_000),
)  # fmt: skip
SEEDS = range(SEED * S.seeds, (SEED + 1) * S.seeds)  # no seed of one run is a seed of another

# %%
training.seed_everything(SEED)
mnist, cifar = data.mnist(), data.cifar10()
digits, unseen_digits = mnist.train.take(S.digits), mnist.validation.take(S.validation)
photos, unseen_photos = cifar.train.take(S.images), cifar.validation.take(S.validation)


def accuracy(model, split):
    """Fraction of a split that `model` gets right."""
    return training.evaluate(model, split).accuracy


# %% [markdown]
# Every comparison below is on **validation** images. The test images are used once, at the end.
#
# ## 1. Two learning rates
#
# Most trainings of this course follow one curve. With the progress $p$ from 0 to 1, the learning rate rises
# linearly to its peak $\eta$ until $p = w$ (the **warm-up**), then falls to zero along half a cosine. At the end the
# network has come to rest. Pruning disturbs it, and now there are two schools:
#
# - **Fine-tune**: go on with a small rate, as at the end of the training. Here: the same curve, a tenth as high.
# - **Rewind the learning rate**: run the whole curve again, at full height, over the few epochs that there are.
#
# The curve is four lines.


# %%
def learning_rate(p, peak, w):
    """The rate at progress p: a line up to `peak` at p = w, then half a cosine down to zero."""
    if p < w:
        return peak * p / w
    return peak * (1 + np.cos(np.pi * (p - w) / (1 - w))) / 2


# %% [markdown]
# Asked at every step of a short training, the helper's loop should give the same:

# %%
used = []
training.fit(lenet_300_100(), digits.take(400), epochs=5, lr=S.lr, batch_size=100, warmup=0.2, progress=False,
             on_step=lambda model, at: used.append((at.progress, at.optimizer.param_groups[0]["lr"])))  # fmt: skip
difference = max(abs(learning_rate(p, S.lr, 0.2) - rate) for p, rate in used)

# %% tags=["plumbing"]
run.claim("same-rates", "Largest difference between the cell's learning rates and those of `fit`", difference,
          at_most=1e-12)  # fmt: skip

# %% tags=["plumbing"]
grid = np.linspace(0, 1, 101)
peaks = {"fine-tune": S.lr / 10, "rewind the learning rate, or the weights": S.lr}
fig, (first, second) = plt.subplots(1, 2, sharey=True)
first.plot(grid, [learning_rate(p, S.lr, 0.2) for p in grid], color="black")
for i, (name, peak) in enumerate(peaks.items()):
    rates = [learning_rate(p, peak, 0.2) for p in grid]
    second.plot(grid, rates, color=show.COLOURS[i], linestyle=figures.LINES[i], label=name)
first.set(
    title="Training comes to rest; retraining wakes it again, or hardly",
    xlabel="progress of the training",
    ylabel="learning rate",
)
second.set(xlabel="progress of the retraining")
fig.legend(loc="outside lower center", ncols=2)
table = pd.DataFrame({"peak": {"dense training": S.lr, **peaks}})
show.figure(fig, alt=f"Learning rate against progress. Peaks: {show.in_words(table, '{:.3g}')}", table=table)

# %% [markdown]
# The second curve costs nothing more. It only looks reckless: a high rate throws a trained network out of the place
# where it had come to rest. (Renda et al. 2020 repeat the last part of the original curve. To squeeze the whole of it
# into a few epochs, as here, is what Le and Hua 2021 did.)
#
# ## 2. Back in time
#
# **Rewind the weights** goes further. The mask comes from the trained network. The weights under it are set back to
# what they were *early* in the training, or before it, and trained again. If that works, the small network was hidden
# in the large one all along: a **winning ticket** (Frankle and Carbin 2019, *The Lottery Ticket Hypothesis*).
#
# To rewind is to copy the early weights and lay the mask on them.


# %%
def rewind(early, masks):
    """Return a copy of the network `early` whose weights are zero where their mask is False."""
    new = deepcopy(early)
    for name, mask in masks.items():
        new.get_parameter(name).data *= mask
    return new


# %% [markdown]
# Everything on digits is trained by one recipe; `PEAK` is its full learning rate. Train, cut nine tenths of the weights,
# and there are the masks.


# %%
def train_digits(model, part, lr, *, epochs, seed):
    """Train on digits with Adam in batches of 100."""
    options = dict(optimizer="adam", batch_size=100, seed=seed, progress=False)
    return training.fit(model, part, epochs=epochs, lr=lr, **options).model


PEAK = 2e-3
early = lenet_300_100()
trained = train_digits(early, digits, PEAK, epochs=S.digit_epochs, seed=SEED)
masks = pruning.global_masks(trained, 0.9)

# %% [markdown]
# Now three ways to put the early weights under the mask: the cell's, the helper's and PyTorch's
# (`prune.custom_from_mask`). They must answer alike.

# %%
library = deepcopy(early)
for name, mask in masks.items():
    prune.custom_from_mask(library.get_submodule(name[:-7]), "weight", mask)

logits = [
    training.predict(m, unseen_digits.inputs) for m in (rewind(early, masks), pruning.mask(early, masks), library)
]
difference = max((logits[0] - other).abs().max().item() for other in logits[1:])

# %% tags=["plumbing"]
run.claim("same-rewound", "Largest difference between the logits of three ways to rewind", difference, at_most=1e-5)

# %% [markdown]
# **Predict.** The cell's `rewind` writes zeros, and nothing holds them there. Train both networks for one epoch. How
# many of the pruned weights are still zero?


# %%
def revived(model, masks):
    """Share of the pruned weights that are no longer zero."""
    weights = pruning.weights_of(model)
    came_back = sum(int((weights[name][~mask] != 0).sum()) for name, mask in masks.items())
    return came_back / sum(int((~mask).sum()) for mask in masks.values())


zeros, held = (
    train_digits(model, digits, PEAK, epochs=1, seed=SEED)
    for model in (rewind(early, masks), pruning.mask(early, masks))
)

# %% tags=["plumbing"]
say(f"Of the pruned weights, {revived(zeros, masks):.1%} came back to life among the bare zeros.")
run.claim("masks-hold", "Share of the pruned weights that came back under a mask", revived(held, masks), at_most=0)

# %% [markdown]
# A mask has to act at *every* step. That is why `pruning.mask` makes it part of what the layer computes.
#
# ## 3. Five ways on digits
#
# A network of 784-300-100-10 units, a few thousand digits, high sparsities. Five ways to go on, with the same steps for
# each:
#
# | name | weights | mask | learning rate |
# |---|---|---|---|
# | fine-tune | trained | magnitude | a tenth |
# | rewind the rate | trained | magnitude | full |
# | rewind the weights | first, before training | magnitude | full |
# | other weights | a new random start | magnitude | full |
# | other mask | first, before training | random, as many in each layer | full |
#
# The last two are **controls**. If *other weights* does as well as *rewind the weights*, the early weights held no
# ticket. If *other mask* does as well, not even the mask did.
#
# **Predict** the order of the five with 98 % removed.


# %%
def train_pair(seed):
    """Return two random starts and what training makes of the first."""
    training.seed_everything(seed)
    first, other = lenet_300_100(), lenet_300_100()
    return first, other, train_digits(first, digits, PEAK, epochs=S.digit_epochs, seed=seed)


def shuffled(masks, seed):
    """Random masks that keep as many weights in each layer as `masks`."""
    generator = torch.Generator().manual_seed(seed)
    orders = {name: torch.randperm(mask.numel(), generator=generator) for name, mask in masks.items()}
    return {name: mask.flatten()[orders[name]].view_as(mask) for name, mask in masks.items()}


# %% [markdown]
# In code, a way is a masked network to start from and a peak of the learning rate:


# %%
def ways(first, other, trained, sparsity, seed):
    """The five ways: name → (masked network to start from, peak learning rate)."""
    masks = pruning.global_masks(trained, sparsity)
    return {
        "fine-tune": (pruning.mask(trained, masks), PEAK / 10),
        "rewind the rate": (pruning.mask(trained, masks), PEAK),
        "rewind the weights": (pruning.mask(first, masks), PEAK),
        "other weights": (pruning.mask(other, masks), PEAK),
        "other mask": (pruning.mask(first, shuffled(masks, seed)), PEAK),
    }


# %% [markdown]
# Each seed trains a dense network, cuts it at each sparsity, and goes on in all five ways:

# %%
nets = {seed: train_pair(seed) for seed in tqdm(SEEDS, leave=False)}
rows = []
for seed, sparsity in tqdm([(seed, s) for seed in SEEDS for s in S.sparsities], leave=False):
    for way, (start, lr) in ways(*nets[seed], sparsity, seed).items():
        score = accuracy(train_digits(start, digits, lr, epochs=S.digit_retrain, seed=seed), unseen_digits)
        rows.append({"seed": seed, "sparsity": sparsity, "way": way, "accuracy": score})

# %% [markdown]
# One row for each seed, one column for each way: at the highest sparsity this table is what the rest of the section is
# about.

# %%
WAYS = ["fine-tune", "rewind the rate", "rewind the weights", "other weights", "other mask"]
found = pd.DataFrame(rows).pivot(index=["sparsity", "seed"], columns="way", values="accuracy")[WAYS]
hardest = found.loc[S.sparsities[-1]]
hardest.map("{:.1%}".format)

# %% tags=["plumbing"]
run.record("digits", rows)
unpruned = np.mean([accuracy(net[2], unseen_digits) for net in nets.values()])
say(f"Before pruning, the {len(SEEDS)} networks read {unpruned:.1%} of the digits on average.")
means = found.groupby("sparsity").mean()
apart = 100 * (means.max(axis=1) - means.min(axis=1))
fig = show.line_with_band(
    [100 * s for s in S.sparsities],
    {way: 100 * found[way].unstack("sparsity").to_numpy() for way in found},
    title=f"Best and worst way: {apart.iloc[0]:.0f} points apart at {apart.index[0]:.0%}, "
    f"{apart.iloc[-1]:.0f} at {apart.index[-1]:.0%}",
    xlabel="weights removed (%)",
    ylabel="validation accuracy (%)",
)
alt = f"Accuracy (%) of each way against sparsity, mean over {len(SEEDS)} seeds. {show.in_words(100 * means, '{:.1f}')}"
show.figure(fig, alt=alt, table=means)

# %% [markdown]
# The band runs from the lowest seed to the highest. Bands that overlap still prove nothing: some seeds are easy for
# *every* way, and that part cancels if you compare seed by seed. Take the differences $d_i$ of two ways on
# each of $n$ seeds, their mean $\bar d$ and standard deviation $s$. The **paired interval**, which covers the true mean
# difference 95 times in 100, is
#
# $$\bar d \pm t_{n-1}\,\frac{s}{\sqrt n},$$
#
# where $t_{n-1}$ is the 97.5 % quantile of Student's distribution with $n - 1$ degrees of freedom. With few seeds it is
# much larger than the familiar 2.


# %%
def paired(a, b):
    """The 95 % t interval of the mean of a - b, paired by seed."""
    d = np.asarray(a) - np.asarray(b)
    reach = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - reach, d.mean() + reach


mine = paired(hardest["rewind the rate"], hardest["fine-tune"])
helper = statistics.paired_interval(hardest["rewind the rate"], hardest["fine-tune"])
library = stats.ttest_rel(hardest["rewind the rate"], hardest["fine-tune"]).confidence_interval()
difference = np.abs(np.subtract([helper, library], mine)).max()

# %% tags=["plumbing"]
run.claim("same-interval", "Largest difference between the cell's, the helper's and SciPy's interval", difference,
          at_most=1e-9)  # fmt: skip

# %% [markdown]
# One interval in twenty misses by its very definition, and five ways make ten pairs. So the pairs are judged together, by
# Holm's rule (1979): of $m$ p-values, the smallest must be below $0.05/m$, the next below $0.05/(m-1)$ and so on, until one
# is not. (A p-value is below 0.05 exactly where the 95 % interval excludes zero.) Then the chance that *any* of the $m$ verdicts
# is false is at most 5 %.


# %%
def holm(p_values):
    """The pairs whose p-value stands out among all of them; `p_values` is a Series, smallest first or not."""
    ordered, found = p_values.sort_values(), []
    for step, (pair, p) in enumerate(ordered.items()):
        if p >= 0.05 / (len(ordered) - step):
            break
        found.append(pair)
    return found


# %% [markdown]
# "A beats B" means here: its mean is higher, and Holm lets the pair stand. Go down the list, the highest mean first: a new
# **rank** begins where every way above beats every way from there on. So two that cannot be told apart always share a rank.
# The last column counts by how many a way is beaten, also within its rank.


# %%
def ranking(table):
    """Mean, spread, rank of each column of `table` (a row for each seed), and how many beat it."""
    ordered = table.mean().sort_values(ascending=False).index
    pairs = list(itertools.combinations(ordered, 2))
    p_values = pd.Series({(a, b): stats.ttest_rel(table[a], table[b]).pvalue for a, b in pairs})
    stand_out = holm(p_values)
    beats = {(a, b): (a, b) in stand_out for a in table for b in table}
    rows, rank = {}, 1
    for place, way in enumerate(ordered):
        if all(beats[a, b] for a in ordered[:place] for b in ordered[place:]):
            rank = place + 1
        said = f"{100 * table[way].mean():.2f} ± {100 * table[way].std():.2f}"
        rows[way] = {"accuracy (%)": said, "rank": rank, "beaten by": sum(beats[a, way] for a in table)}
    return pd.DataFrame.from_dict(rows, orient="index")


ranked = ranking(hardest)

# %% tags=["plumbing"]
run.claim("same-ranks", "Ranks that differ between the cell and the helper",
          int((ranked != statistics.ranking(hardest)).to_numpy().sum()), at_most=0)  # fmt: skip
ranked

# %% [markdown]
# The table ranks the few seeds of this run, and ten pairs are a lot to ask of them: ways that look far apart may still
# share a rank. The published runs did the same on more digits and with more seeds. They decide; this run stands beside
# them. (In such a list each verdict is corrected for all lines together, by Holm's rule; the interval that is printed
# beside it is not. So an interval may exclude zero, and its verdict may still be open.)

# %% tags=["plumbing"]
PUBLISHED = evidence.measurements("05_after_pruning", "digits")
table = pd.DataFrame(
    [row for each in PUBLISHED.values() for row in each], columns=["seed", "sparsity", "way", "accuracy"]
)
on_file = table[table["sparsity"] == 0.98].pivot(index="seed", columns="way", values="accuracy")
PAIRS = [
    ("rewind the rate", "fine-tune"),
    ("rewind the rate", "rewind the weights"),
    ("rewind the weights", "fine-tune"),
    ("rewind the weights", "other weights"),
    ("rewind the rate", "other weights"),
    ("rewind the weights", "other mask"),
]


def compared(own, published, pairs):
    """Return a comparison of each pair of ways, in points; both tables hold accuracies, a row for each seed."""
    return [
        evidence.Comparison(
            f"“{a}” above “{b}”",
            None if own is None else 100 * float((own[a] - own[b]).mean()),
            () if published.empty else tuple(100 * (published[a] - published[b])),
        )
        for a, b in pairs
    ]


digit_verdicts = dict(zip(PAIRS, evidence.conclude(*compared(hardest, on_file, PAIRS)), strict=True))
gains = hardest.mean()
run.claim("rate-matters", "Accuracy that the full learning rate adds to the same pruned networks",
          gains["rewind the rate"] - gains["fine-tune"], at_least=0.01)  # fmt: skip
run.claim("ticket", "Accuracy of the first weights above that of other weights under the same masks",
          gains["rewind the weights"] - gains["other weights"], at_least=0.01)  # fmt: skip
run.claim("mask-matters", "Accuracy of the first weights in the magnitude mask above the same in a random mask",
          gains["rewind the weights"] - gains["other mask"], at_least=0.02)  # fmt: skip

# %% [markdown]
# Read it from below. The same first weights are worth less under a random mask, so the mask carries information: which
# pixels and which units matter. Under the same mask other weights are worth less, so the first weights carry some, too.
# And the trained weights? At the full learning rate they lead, the ticket included, if by little. At a tenth of it they
# fall behind: a low rate mends a small wound, but with nearly everything removed the wound is not small, and so few timid
# steps do not close it. With more steps they might; this page has not tried.
#
# ## 4. Photographs
#
# Digits are kind. Now `cifar_small`, pruned globally by magnitude, with one recipe for every way: the same images,
# epochs, batches and augmentation. Going back to the *first* weights was reported to fail on larger networks, while
# going back to an early epoch works (Frankle, Dziugaite, Roy and Carbin 2020, *Linear Mode Connectivity and the Lottery
# Ticket Hypothesis*). So the early weights here are those of a network that has seen its data once or twice.


# %%
def retrain(name, model, lr, *, epochs, **options):
    """Train on photographs by the declared recipe; in full it can be resumed."""
    state = run.scratch(f"{name}.pt".replace(" ", "-")) if PROFILE == "full" else None
    return training.fit(
        model, photos, epochs=epochs, lr=lr, batch_size=S.batch, warmup=0.2, precision=training.fast_precision(),
        augment=training.flip_and_shift, seed=SEED, checkpoint=state, **options,
    ).model  # fmt: skip


# %% tags=["plumbing"]
def keep_first_epoch(model, at):
    """Write the weights to a file when the first epoch is done: a resumed training will not see them again."""
    if at.step * S.dense_epochs == at.total:
        checkpoints.write_weights(model, run.scratch("early.safetensors"))


if PROFILE == "full":
    training.seed_everything(SEED)
    dense = retrain("dense", cifar_small(), S.lr, epochs=S.dense_epochs, on_step=training.watching(keep_first_epoch))
    early = checkpoints.read_weights(cifar_small(), run.scratch("early.safetensors"))
else:
    dense, early = checkpoints.load("cifar_small"), checkpoints.load("cifar_small", early=True)
dense_accuracy = accuracy(dense, unseen_photos)
say(
    f"The dense network classifies {dense_accuracy:.1%} of the validation photographs, its early self "
    f"{accuracy(early, unseen_photos):.1%}. Each way may now see {S.images:,} photographs, {S.epochs} time(s) each."
)

# %% [markdown]
# The same ways as on digits, without the random mask: one mask, four starts.

# %%
FAR = 0.95
masks = pruning.global_masks(dense, FAR)
training.seed_everything(SEED + 1)
other = cifar_small()
starts = {
    "fine-tune": (dense, S.lr / 10),
    "rewind the rate": (dense, S.lr),
    "rewind the weights": (early, S.lr),
    "other weights": (other, S.lr),
}
broken = accuracy(pruning.mask(dense, masks), unseen_photos)

# %% tags=["plumbing"]
say(f"With {FAR:.0%} of its weights removed and nothing retrained, {broken:.1%} are left; guessing gives 10 %.")

# %% [markdown]
# **Predict**: which way is ahead if there is time for a few epochs? And if there is hardly any?

# %%
sparse = {name: retrain(name, pruning.mask(start, masks), lr, epochs=S.epochs) for name, (start, lr) in starts.items()}
scores = {name: accuracy(model, unseen_photos) for name, model in sparse.items()}

# %% tags=["plumbing"]
run.record("photos_sparse", [{"way": way, "accuracy": score} for way, score in scores.items()])
order = pd.Series(scores).sort_values(ascending=False)
fig = show.bars(
    100 * order, title=f"One mask, {FAR:.0%} removed, four ways to go on",
    xlabel="validation accuracy (%)", label="{:.1f}",
)  # fmt: skip
fig.axes[0].axvline(100 * dense_accuracy, color="black", linestyle="--", linewidth=1.2)
fig.axes[0].annotate("dense ", (100 * dense_accuracy, 1), xycoords=("data", "axes fraction"), ha="right", va="top",
                     fontsize=10)  # fmt: skip
table = pd.DataFrame({"accuracy": {"dense, before pruning": dense_accuracy, "pruned, not retrained": broken} | scores})
show.figure(fig, alt=f"Accuracy (%); a dashed line marks the dense network. {show.in_words(100 * table, '{:.1f}')}",
           table=table)  # fmt: skip
alive = max(revived(model, masks) for model in sparse.values())
run.claim("masks-hold-photos", "Share of the pruned weights that came back in any of the networks", alive, at_most=0)
run.claim("inherit", "Accuracy that the better way to use the trained weights adds, above other weights in the mask",
          max(scores["fine-tune"], scores["rewind the rate"]) - scores["other weights"], at_least=0.02)  # fmt: skip

# %% [markdown]
# The dashed line is the dense network. These bars are **one seed**; what the published seeds decide, each with a dense
# network of its own and about ten times as many steps, is this:


# %% tags=["plumbing"]
def over_seeds(key, current):
    """Return the accuracy of each way (columns) in each full run (rows): those on file, and this one if it is full."""
    found = evidence.measurements("05_after_pruning", key)
    scores = {seed: {row["way"]: row["accuracy"] for row in rows} for seed, rows in found.items()}
    return pd.DataFrame(scores | ({SEED: current} if PROFILE == "full" else {})).T


published = {f"{FAR:.0%} of the weights removed": over_seeds("photos_sparse", scores)}
own, on_photos = pd.DataFrame([scores]), published[f"{FAR:.0%} of the weights removed"]
photo_verdicts = dict(zip(PAIRS[:5], evidence.conclude(*compared(own, on_photos, PAIRS[:5])), strict=True))
say(f"This run gave each way {S.epochs * (S.images // S.batch):,} steps.")

# %% [markdown]
# One thing changed between digits and photographs: the early weights are no longer ahead of fine-tuning. One reason may be that,
# with so few epochs, weights that have learned for a whole training are worth more than a promising start. The control,
# another start under the same mask, stays behind, and by more in the published runs.
#
# A way to think about the rate: a rewound rate first undoes, then redoes. The more the pruning has broken, the less there
# is to undo. If it gets too few steps to redo, fine-tuning may win; watch for it in the next section. That would be no
# contradiction of those papers, which retrain for as long as they had trained. *Which way is best* has no answer without
# *at which sparsity* and *for how many steps*.
#
# ## 5. If the filters are really gone
#
# Notebook 04 removed whole filters. Then the result is an ordinary small network, and there is one more way: throw its
# weights away and train this **architecture from scratch**. Liu et al. 2019 (*Rethinking the Value of Network Pruning*)
# found that it does as well, *given the same budget*. The budget is what people forget, so count it:
# a network was trained ($E_0$ epochs at $M$ MACs per image), cut to $m$ MACs, and trained for $E$ epochs more. For the
# same number of multiplications the small network can be trained from scratch for
#
# $$E_\text{scratch} = \left\lfloor \frac{E_0 M + E m}{m} \right\rfloor \text{ epochs.}$$
#
# The brackets $\lfloor\;\rfloor$ round down: half an epoch too many would be more than the budget.

# %%
one = cifar.validation.inputs[:1]
keep = pruning.choose_filters(dense, pruning.filter_norms(dense), one, macs_ratio=2)
small = pruning.remove_filters(dense, keep, one)
macs, small_macs = measure.count_macs(dense, one), measure.count_macs(small, one)

seen = S.images if PROFILE == "full" else len(cifar.train)  # photographs in an epoch of the dense training
budget = int((S.dense_epochs * macs + S.epochs * S.images / seen * small_macs) // small_macs)

# %% tags=["plumbing"]
run.claim("half-the-macs", "Times fewer MACs after removing filters", macs / small_macs, at_least=2)
say(
    f"{macs / 1e6:.1f} → {small_macs / 1e6:.1f} million MACs. Not retrained, the small network is right in "
    f"{accuracy(small, unseen_photos):.1%}. {S.dense_epochs} epochs on {seen:,} photographs before the cut and "
    f"{S.epochs} on {S.images:,} after it pay for **{budget}** epochs on {seen:,} from scratch."
)


# %% [markdown]
# The same architecture with nothing inherited is a copy whose every layer draws new weights:


# %%
def fresh(model, seed):
    """Return the same architecture with new random weights."""
    training.seed_everything(seed)
    new = deepcopy(model)
    for layer in new.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return new


# %% [markdown]
# The full profile trains the small network from scratch for that whole budget. The quick one cannot: there, *from
# scratch* gets the few steps that the others get. Beside it stands `cifar_half` of the repository, drawn by hand with
# half of the MACs and trained as long as the dense network was.

# %%
scratch_epochs = budget if PROFILE == "full" else S.epochs
cut = {
    "fine-tune": retrain("cut fine-tune", small, S.lr / 10, epochs=S.epochs),
    "rewind the rate": retrain("cut rate", small, S.lr, epochs=S.epochs),
    "from scratch": retrain("cut scratch", fresh(small, SEED), S.lr, epochs=scratch_epochs),
}
cut_scores = {name: accuracy(model, unseen_photos) for name, model in cut.items()}

# %% [markdown]
# Now the bill, in units of the dense training. The retrained networks have all of it on theirs.

# %%
before = seen * S.dense_epochs * macs
spent = {way: before + S.images * S.epochs * small_macs for way in ("fine-tune", "rewind the rate")}
spent |= {"from scratch": S.images * scratch_epochs * small_macs}
bill = pd.DataFrame({"accuracy": cut_scores, "cost": pd.Series(spent) / before})

# %% tags=["plumbing"]
run.record("photos_cut", [{"way": way, "accuracy": score} for way, score in cut_scores.items()])
if PROFILE != "full":
    half = checkpoints.load("cifar_half")
    bill.loc["cifar_half, by hand"] = [accuracy(half, unseen_photos), measure.count_macs(half, one) / macs]
run.record("bill", bill.reset_index(names="way"))
gap = 100 * (cut_scores["fine-tune"] - cut_scores["from scratch"])
if PROFILE != "full":
    run.claim("inherit-filters", "Accuracy of fine-tuning above scratch after the same few steps", gap / 100,
              at_least=0.05)  # fmt: skip
    say(
        f"After the same few steps, fine-tuning is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} the network "
        "from scratch. That is not Liu's question: the steps are the same, the bills are not."
    )
said = {"accuracy": "{:.2%}", "cost": "{:.3f} × the dense training"}
pd.DataFrame({column: bill[column].map(form.format) for column, form in said.items()})

# %% [markdown]
# Liu's question needs the whole budget, and so the published full runs. A line without “This run” was not measured in
# this one.

# %% tags=["plumbing"]
CUT_PAIRS = [("from scratch", "rewind the rate"), ("from scratch", "fine-tune"), ("rewind the rate", "fine-tune")]
published["half of the MACs removed"] = on_cuts = over_seeds("photos_cut", cut_scores)
own = pd.DataFrame([cut_scores])
lines = compared(own if PROFILE == "full" else None, on_cuts, CUT_PAIRS[:2]) + compared(own, on_cuts, CUT_PAIRS[2:])
cut_verdicts = dict(zip(CUT_PAIRS, evidence.conclude(*lines), strict=True))
full = [evidence.load("05_after_pruning", profile="full", seed=seed) for seed in (0, 1, 2)]
tested = pd.DataFrame([{t["name"]: 100 * t["accuracy"] for t in each.test_evaluations} for each in full if each])
if {"dense", "cut"} <= set(tested):
    say(
        f"In the {len(tested)} published runs the dense network reached {tested['dense'].mean():.1f} % on the test "
        f"photographs, the best way to fill the small architecture {tested['cut'].mean():.1f} %."
    )

# %% [markdown]
# So there are two questions with two answers. *I have a trained network, and time for a few steps*: prune it and retrain;
# a fresh network has hardly begun when the steps are over (one quick run; the published ones did not try so few steps).
# *I have nothing yet*: then the dense training belongs on the bill, and for an equal bill the small network from scratch
# came out ahead in every published run.
#
# Read that last sentence with care. On the test photographs the small network from scratch beat even the **dense** one,
# which is a warning: the dense network had a few epochs only, while half of the MACs buy more than twice as many. Part of
# the lead may be that the dense training was too short, and part that one long schedule is better than two short ones.
# Where a network has been trained to its end, the answer may differ, and these runs do not say. Nor do they say that pruned weights are worthless: they say what they cost.
#
# Compare also the rate with fine-tuning, in your run and in the published ones.

# %% tags=["plumbing"]
rate_gain, rate_found = 100 * (cut_scores["rewind the rate"] - cut_scores["fine-tune"]), cut_verdicts[CUT_PAIRS[2]]
if PROFILE != "full" and rate_gain < 0 and rate_found == "higher":
    say(
        f"Here the rewound rate is {-rate_gain:.1f} points **behind** fine-tuning, in the published runs it is ahead. The "
        f"likely reason: {S.epochs * (S.images // S.batch)} steps leave a rewound rate time to undo and hardly any to redo. "
        "But this is one run, its dense network had been trained for longer, and no run here has tried one budget after "
        "the other. So it is a suspicion, and a good experiment."
    )
else:
    say(f"In this run the rewound rate stands {rate_gain:+.1f} points from fine-tuning; published: {rate_found}.")

# %% [markdown]
# ## 6. Does pruning regularise when data is scarce?
#
# A network with a quarter of a million weights can learn a few hundred digits by heart. Fewer weights, less room to
# memorise, better on new digits: LeCun, Denker and Solla argued so in 1990 (*Optimal Brain Damage*). To see whether
# *pruning* does it, three controls that need no pruning must run beside it:
#
# - the dense network with the **same extra training**, because pruned networks are trained twice;
# - the dense network with **no extra training**, because perhaps nobody should be trained twice;
# - the dense network **stopped early**, after a fifth of the epochs: one of the oldest regularisers there are.
#
# And we look at the case where memorising hurts most: a share of the **labels is wrong**.


# %%
def sample(count, wrong, seed):
    """Draw digits for training and give the fraction `wrong` of them another label."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(mnist.train), generator=generator)[:count]
    labels = mnist.train.labels[chosen].clone()
    other = (labels + torch.randint(1, 10, (count,), generator=generator)) % 10
    bad = torch.rand(count, generator=generator) < wrong
    return Split(mnist.train.inputs[chosen], torch.where(bad, other, labels))


# %% [markdown]
# For each such sample: the dense network, the one stopped early, and the dense one trained again under masks that remove
# nothing (the control), 80, 95 and 98 %.

# %%
CUTS = [0.8, 0.95, 0.98]


def regularised(part, seed):
    """Return name → network: the dense ones, and the pruned ones after the same extra training."""
    training.seed_everything(seed)
    first, long = lenet_300_100(), S.scarce_epochs
    dense = train_digits(first, part, PEAK, epochs=long, seed=seed)
    nets = {
        "no extra training": dense,
        "stopped early": train_digits(first, part, PEAK, epochs=long // 5, seed=seed),
    }
    for amount in [0.0, *CUTS]:
        start = pruning.mask(dense, pruning.global_masks(dense, amount))
        nets[f"{amount:.0%} removed"] = train_digits(start, part, PEAK, epochs=long, seed=seed + 1)
    return nets


# %% [markdown]
# **Predict** for right labels and for 30 % wrong ones: by how many points does removing 95 % of the weights change the
# accuracy on new digits?

# %%
CONTROL = "0% removed"
WRONG = [0.0, 0.3]
rows = []
for count, wrong, seed in tqdm([(n, w, s) for n in S.scarce for w in WRONG for s in SEEDS], leave=False):
    part = sample(count, wrong, seed)
    for name, net in regularised(part, seed).items():
        rows.append({"digits": count, "wrong": wrong, "seed": seed, "network": name,
                     "accuracy": accuracy(net, unseen_digits), "memorised": accuracy(net, part)})  # fmt: skip

# %% tags=["plumbing"]
run.record("scarce", rows)
scarce = pd.DataFrame(rows)
names = list(dict.fromkeys(scarce["network"]))
memorised = scarce.pivot_table(index=["digits", "wrong"], columns="network", values="memorised", sort=False)
memorised[names].map("{:.1%}".format)

# %% [markdown]
# That was the share of its own training labels, right or wrong, that each network gives back: how much it learned by
# heart. Now the new digits, as differences from the control (dense, same extra training), paired by seed.


# %%
def gains_over(control, count, wrong, scarce):
    """Gain of each network over the control, in points: a row for each seed."""
    part = scarce[(scarce["digits"] == count) & (scarce["wrong"] == wrong)]
    table = 100 * part.pivot(index="seed", columns="network", values="accuracy")
    return table.sub(table[control], axis=0).drop(columns=control)


# %% tags=["plumbing"]
others = [name for name in names if name != CONTROL]
gains = {}
for count, wrong in itertools.product(S.scarce, WRONG):
    by_seed = gains_over(CONTROL, count, wrong, scarce)[others]
    ends = [statistics.paired_interval(by_seed[name], [0.0] * len(by_seed)) for name in others]
    gains[count, wrong] = pd.DataFrame(
        {"gain": by_seed.mean(), "low": [e[0] for e in ends], "high": [e[1] for e in ends]}
    )
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for ax, wrong in zip(axes, WRONG, strict=True):
    for i, count in enumerate(S.scarce):
        rows, places = gains[count, wrong], np.arange(len(others)) + 0.2 * i
        ends = [rows["gain"] - rows["low"], rows["high"] - rows["gain"]]
        ax.errorbar(rows["gain"], places, xerr=ends, fmt=figures.MARKERS[i], color=show.COLOURS[i], capsize=3,
                    label=f"{count:,} digits")  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlabel=f"gain over the control (points)\n{wrong:.0%} of the labels wrong")
    ax.xaxis.set_major_locator(plt.MaxNLocator(5))
axes[0].set_yticks(range(len(others)), [name if "removed" in name else f"{name}\n(not pruned)" for name in others])
axes[0].invert_yaxis()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(S.scarce))
fig.suptitle(f"This run: what pruning gains, and what less training gains ({len(SEEDS)} seeds, 95 %)",
             x=0.01, ha="left", fontsize=13, fontweight="bold")  # fmt: skip
table = pd.concat(gains, names=["digits", "wrong", "network"])
words = [f"{count} digits, {wrong:.0%} wrong, {network}" for count, wrong, network in table.index]
alt = f"Gain over the control. {show.in_words(table[['gain']].set_axis(words), '{:+.1f}')}"
show.figure(fig, alt=alt, table=table)
noisy = gains[S.scarce[-1], 0.3]
run.claim("regularises", "With 30 % wrong labels, accuracy that removing 95 % of the weights adds to the same training",
          noisy.loc["95% removed", "gain"] / 100, at_least=0.01)  # fmt: skip
if noisy.loc["95% removed", "gain"] > 0:
    say(
        f"Do not stop at that number. Of these {noisy.loc['95% removed', 'gain']:+.1f} points, the network that was **not "
        f"trained again** has {noisy.loc['no extra training', 'gain']:+.1f}, and nothing was pruned from it."
    )

# %% [markdown]
# Look at the right-hand side first, and at its first row. The network that was simply **not trained again** gains, too.
# That part is not pruning's: it is what the second training spoils, for it learns the last of the wrong labels by heart.
# So three differences must stand side by side: pruning against the
# same training, no extra training against the same, and pruning against no extra training. The third is what the pruning
# itself is worth.

# %% tags=["plumbing"]
on_file_scarce = pd.DataFrame(
    [r for each in evidence.measurements("05_after_pruning", "scarce").values() for r in each]
)
ONCE, PRUNED, EARLY = "no extra training", "95% removed", "stopped early"


def scarce_line(a, b, count, wrong):
    """Return the comparison of two networks for this many digits and share of wrong labels."""
    own = None if count not in S.scarce else float(gains_over(b, count, wrong, scarce)[a].mean())
    on_file = () if on_file_scarce.empty else tuple(gains_over(b, count, wrong, on_file_scarce)[a])
    labels = f"{wrong:.0%} wrong labels" if wrong else "right labels"
    second = "the same extra training" if b == CONTROL else b
    return evidence.Comparison(f"{count} digits, {labels}: {a} against {second}", own, on_file)


SCARCE = [
    (PRUNED, CONTROL, 500, 0.3),
    (ONCE, CONTROL, 500, 0.3),
    (PRUNED, ONCE, 500, 0.3),
    (PRUNED, ONCE, 200, 0.3),
    (EARLY, CONTROL, 500, 0.3),
    (EARLY, CONTROL, 200, 0.3),
    (EARLY, PRUNED, 500, 0.3),
    (EARLY, PRUNED, 200, 0.3),
    ("98% removed", CONTROL, 500, 0.3),
    ("98% removed", CONTROL, 200, 0.3),
    (PRUNED, CONTROL, 500, 0.0),
    (EARLY, CONTROL, 500, 0.0),
]
scarce_verdicts = dict(zip(SCARCE, evidence.conclude(*(scarce_line(*asked) for asked in SCARCE)), strict=True))

# %% [markdown]
# Keep the parts apart. Where labels are wrong, the network with 95 % removed does better than a dense one that is trained as
# long. With five hundred digits most of that lead is had without any pruning, by not training twice. What is left would
# pass if it were the only question; among a dozen it does not, so it stays open. With two hundred digits something is
# left, so pruning does regularise there. Removing 98 % helps with five hundred digits and does great harm with two hundred.
#
# Stopping early is the strongest of all with five hundred digits, behind pruning with two hundred, and a bad idea where the
# labels deserve to be learned. Where they are right, the published seeds see nothing that removing 95 % would gain.
#
# So: prune to make a network small, and take the regularisation as a gift, if it comes.
#
# ## 7. The ranks of the photographs
#
# The rule of section 3, on the published seeds of sections 4 and 5. Three seeds rank what is points apart, no more.

# %% tags=["plumbing"]
for name, table in published.items():
    if len(table) < 2:
        say(f"{name}: {len(table)} full run(s), too few for a rank.")
ranked = {name: statistics.ranking(table) for name, table in published.items() if len(table) >= 2}
pd.concat(ranked, names=["", "way"]) if ranked else None

# %% [markdown]
# ## 8. What the literature claimed
#
# The claims in words, and whether they hold for our networks: on digits with 98 % removed (section 3), on photographs
# (sections 4 and 5), and where data is scarce (section 6). Each entry is the verdict of the published seeds above. Our
# networks are small and our budgets short: where we disagree, that is the first suspect.

# %% tags=["plumbing"]
SAID = {"higher": "yes", "lower": "no, the reverse", "not to be told apart": "open", "not decided": "open"}
AT_LEAST = {"higher": "yes", "lower": "no", "not to be told apart": "not contradicted", "not decided": "open"}
claims = [
    ("Han et al. 2015", "Keep the trained weights that survive; do not start them anew.", PAIRS[4], SAID),
    ("Frankle and Carbin 2019", "The first weights make a winning ticket; other weights in the same mask do not.",
     PAIRS[3], SAID),
    ("Renda, Frankle and Carbin 2020", "Rewinding the learning rate beats fine-tuning…", PAIRS[0], SAID),
    ("Renda, Frankle and Carbin 2020", "…and is at least as good as rewinding the weights.", PAIRS[1], AT_LEAST),
    ("Le and Hua 2021", "What rewinding gains is the large learning rate: even early weights then beat fine-tuning.",
     PAIRS[2], SAID),
]  # fmt: skip
lines = ["| paper | claim | digits | photographs |", "|---|---|---|---|"]
lines += [
    f"| {paper} | {claim} | {words[digit_verdicts[pair]]} | {words[photo_verdicts[pair]]} |"
    for paper, claim, pair, words in claims
]
lines += [
    f"| LeCun et al. 1990 | Fewer weights generalise better (right labels). | {SAID[scarce_verdicts[PRUNED, CONTROL, 500, 0.0]]} | not tried |",
    "| Liu et al. 2019 | The pruned architecture from scratch does as well, given the budget. | not tried | "
    f"{AT_LEAST[cut_verdicts[CUT_PAIRS[0]]]} |",
]
say("\n".join(lines))

# %% [markdown]
# ## 9. Exercises
#
# **05.1 · Warm-up: what can three seeds see?** Over three seeds, the differences of two methods have the standard
# deviation $s = 0.3$ points. How large must their mean be, in points, before the paired 95 % interval excludes zero? With
# two degrees of freedom the quantile $t_2$ is 4.303. One line, from the formula of section 3.


# %%
def smallest_difference():
    """Return the smallest mean difference, in points, that three seeds with s = 0.3 can tell from zero."""
    ### BEGIN SOLUTION
    return 4.303 * 0.3 / 3**0.5  # t with two degrees of freedom
    ### END SOLUTION


low, high = statistics.paired_interval([-0.3, 0.0, 0.3], [0.0, 0.0, 0.0])
exercises.check("05.1", smallest_difference, measured=(high - low) / 2)

# %% [markdown]
# **05.2 · Only the signs.** What is it in the first weights that makes a ticket? Zhou et al. 2019 (*Deconstructing
# Lottery Tickets: Zeros, Signs, and the Supermask*) kept nothing but their signs. Write it: where the mask is True, the
# sign of the early weight times the mean magnitude of the early weights *that are kept*; elsewhere zero.


# %%
def keep_signs(early, mask):
    """Return a tensor of the shape of `early` (float; `mask` is boolean) that knows the kept weights' signs only."""
    ### BEGIN SOLUTION
    return early.sign() * early[mask].abs().mean() * mask
    ### END SOLUTION


feedback = exercises.check("05.2", keep_signs)
feedback


# %%
def ticket_of_signs(seed):
    """Accuracy after training from signs alone, at the hardest sparsity of section 3."""
    first, _, trained = nets[seed]
    masks, start = pruning.global_masks(trained, S.sparsities[-1]), deepcopy(first)
    for name, mask in masks.items():
        weight = start.get_parameter(name)
        weight.data = keep_signs(weight.data, mask)
    after = train_digits(pruning.mask(start, masks), digits, PEAK, epochs=S.digit_retrain, seed=seed)
    return accuracy(after, unseen_digits)


# %% tags=["plumbing"]
if feedback.right:
    table = hardest.assign(**{"only the signs": [ticket_of_signs(seed) for seed in SEEDS]})
    say(
        "Only the signs against all of the first weights: "
        f"{statistics.difference(table, 'only the signs', 'rewind the weights')}."
    )

# %% [markdown]
# **05.3 · The bill of small steps.** Notebook 02 pruned in rounds. Suppose that each of `rounds` cuts divides the MACs
# by the same factor, so that the last one arrives at `small_macs`, and that `retraining` epochs follow each cut. For
# how many whole epochs could the smallest network have been trained from scratch instead? The dense training is on the
# bill, too.


# %%
def scratch_budget(macs, small_macs, epochs, retraining, rounds):
    """Return the whole epochs from scratch that cost at most what training, `rounds` cuts and retraining cost."""
    ### BEGIN SOLUTION
    spent = epochs * macs
    for done in range(1, rounds + 1):
        spent += retraining * macs * (small_macs / macs) ** (done / rounds)
    return int(spent // small_macs)
    ### END SOLUTION


exercises.check("05.3", scratch_budget)

# %% [markdown]
# **05.4 · Predict: how often does chance win?** Take five ways that are *equally good*, three seeds, and accuracies that
# are noise alone. Compare all ten pairs with the paired 95 % interval, **without** Holm's rule. In which share of such
# tables does at least one pair seem to differ? Predict first; the cell below the answer then draws many tables and counts.


# %%
def share_of_false_tables():
    """Return the share (0 to 1) of tables of five equal ways in which some pair seems to differ."""
    ### BEGIN SOLUTION
    return 0.35  # ten independent pairs would give 1 - 0.95**10 = 40 %; they share their ways, so somewhat less
    ### END SOLUTION


noise = np.random.default_rng(0).standard_normal((4_000, 3, 5))  # tables, seeds, ways
pairs = list(itertools.combinations(range(5), 2))
gaps = np.stack([noise[:, :, a] - noise[:, :, b] for a, b in pairs])
t_values = gaps.mean(axis=2) / (gaps.std(axis=2, ddof=1) / 3**0.5)
false = (np.abs(t_values) > stats.t.ppf(0.975, 2)).any(axis=0).mean()
exercises.check("05.4", share_of_false_tables, measured=float(false))

# %% [markdown]
# **05.5 · Open: which control is missing?** Section 5 compares three ways to fill the small architecture, and its text says
# what weakens the verdict: the dense network was trained for a few epochs only. Which further arm would settle it, and what
# would its bill be, in units of the dense training? Write down the arm, its bill, and which result would change your mind.
# Then, if you have an hour, run it: `fresh`, `retrain` and `bill` are all you need. There is no solution to compare with.

# %% [markdown]
# ## What was measured
#
# The test photographs, once, with the ways that were best on validation.

# %%
best, best_cut = max(scores, key=scores.get), max(cut_scores, key=cut_scores.get)
test = cifar.test.take(S.test)
tests = {
    "dense": run.test("dense", dense, test),
    f"{FAR:.0%} of the weights removed, {best}": run.test("sparse", pruning.bake(sparse[best]), test),
    f"half of the MACs removed, {best_cut}": run.test("cut", cut[best_cut], test),
}

# %% tags=["plumbing"]
say("On the test photographs, once: " + "; ".join(f"{name}: **{t.accuracy:.2%}**" for name, t in tests.items()) + ".")
run.finish()

# %% [markdown]
# ## What to remember
#
# - How you retrain can matter more than what you cut. In the published runs, on digits with 98 % removed, the full learning
#   rate was worth more than the choice of the mask. Try it before anything clever. <!-- claims: rate-matters, mask-matters -->
# - A winning ticket needs two controls: other weights in the same mask, and the same weights in another mask. Here it
#   passed both. <!-- claims: ticket, mask-matters -->
# - Under one mask and after the same steps, trained weights beat a new start on photographs. <!-- claims: inherit -->
# - Zeros do not stay zero by themselves. The mask has to act at every step. <!-- claims: masks-hold, masks-hold-photos -->
# - “The same budget” includes the training of the network that was pruned. Say which budget you mean.
#   <!-- by construction -->
# - Pair by seed, give the interval, correct for the number of pairs, share the rank. Three seeds see large differences
#   only. <!-- by construction -->
# - Where labels are wrong, removing 95 % beat the same training without it. Before you thank the pruning, compare with no
#   further training and with stopping early: they too, without any pruning, can have most of the gain, or more.
#   <!-- claims: regularises -->
#
# ## What to read
#
# - Han, Pool, Tran and Dally 2015, *Learning both Weights and Connections for Efficient Neural Networks*, section 3.
# - Frankle and Carbin 2019, *The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks*.
# - Liu, Sun, Zhou, Huang and Darrell 2019, *Rethinking the Value of Network Pruning*.
# - Renda, Frankle and Carbin 2020, *Comparing Rewinding and Fine-tuning in Neural Network Pruning*.
# - Le and Hua 2021, *Network Pruning That Matters: A Case Study on Retraining Variants*.
# - Jin, Carbin, Roy, Frankle and Dziugaite 2022, *Pruning's Effect on Generalization Through the Lens of Training and
#   Regularization*.
#
# **Next**: notebook 06 leaves images. Where are the parameters of a network that reads?
