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
# the small network from scratch. Each has a well-known paper behind it, and the papers disagree. Here they all start
# from the same masks and get the same number of steps.
#
# **You will be able to**
# - fine-tune, rewind the learning rate and rewind the weights, each in a few lines;
# - name the controls without which a "winning ticket" proves nothing;
# - write down what each way costs, so that "the same budget" means something;
# - rank methods over several seeds, and let them share a rank when the seeds cannot tell them apart;
# - test whether pruning regularises, against the two alternatives that are free.
#
# **Before this**: notebook 02 (masks), notebook 04 (removal of filters).

# %% tags=["parameters"]
import itertools
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
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
# The settings. Sections 3 and 6 use a small network on digits, cheap enough for several `seeds` in every profile.
# Sections 4 and 5 use `cifar_small`: `images` and `epochs` are the budget of each way to retrain. In full every seed
# first trains a dense network of its own (`dense_epochs`); quick and smoke start from the one of the repository.

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

# %% tags=["plumbing"]
show.style()

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


# %%
def learning_rate(p, peak, w):
    """The rate at progress p: a line up to `peak` at p = w, then half a cosine down to zero."""
    if p < w:
        return peak * p / w
    return peak * (1 + np.cos(np.pi * (p - w) / (1 - w))) / 2


# %%
used = []
training.fit(lenet_300_100(), digits.take(400), epochs=5, lr=S.lr, batch_size=100, warmup=0.2, progress=False,
             on_step=lambda model, at: used.append((at.progress, at.optimizer.param_groups[0]["lr"])))  # fmt: skip
difference = max(abs(learning_rate(p, S.lr, 0.2) - rate) for p, rate in used)

# %% tags=["plumbing"]
run.claim("same-rates", "Largest difference between the cell's learning rates and those of `fit`", difference,
          at_most=1e-12)  # fmt: skip

# %%
grid = np.linspace(0, 1, 101)
peaks = {"fine-tune": S.lr / 10, "rewind the learning rate, or the weights": S.lr}

# %% tags=["plumbing"]
fig, (first, second) = plt.subplots(1, 2, sharey=True)
first.plot(grid, [learning_rate(p, S.lr, 0.2) for p in grid], color="black")
for i, (name, peak) in enumerate(peaks.items()):
    rates = [learning_rate(p, peak, 0.2) for p in grid]
    second.plot(grid, rates, color=show.COLOURS[i], linestyle=figures.LINES[i], label=name)

# %%
first.set(
    title="Training comes to rest; retraining wakes it again, or hardly",
    xlabel="progress of the training",
    ylabel="learning rate",
)
second.set(xlabel="progress of the retraining")

# %% tags=["plumbing"]
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
# The cell's network, the helper's and PyTorch's (`prune.custom_from_mask`) must answer alike.

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


# %%
WAYS = ["fine-tune", "rewind the rate", "rewind the weights", "other weights", "other mask"]
nets = {seed: train_pair(seed) for seed in tqdm(SEEDS, leave=False)}
rows = []
for seed, sparsity in tqdm([(seed, s) for seed in SEEDS for s in S.sparsities], leave=False):
    for way, (start, lr) in ways(*nets[seed], sparsity, seed).items():
        score = accuracy(train_digits(start, digits, lr, epochs=S.digit_retrain, seed=seed), unseen_digits)
        rows.append({"seed": seed, "sparsity": sparsity, "way": way, "accuracy": score})

# %% tags=["plumbing"]
run.record("digits", rows)
found = pd.DataFrame(rows).pivot(index=["sparsity", "seed"], columns="way", values="accuracy")[WAYS]
unpruned = np.mean([accuracy(net[2], unseen_digits) for net in nets.values()])
say(f"Before pruning, the {len(SEEDS)} networks read {unpruned:.1%} of the digits on average.")

# %%
means = found.groupby("sparsity").mean()
hardest = found.loc[S.sparsities[-1]]  # rows: seeds, columns: ways

# %% tags=["plumbing"]
fig = show.line_with_band(
    [100 * s for s in S.sparsities],
    {way: 100 * found[way].unstack("sparsity").to_numpy() for way in found},
    title=f"With {S.sparsities[-1]:.0%} removed, “{hardest.mean().idxmax()}” ends highest",
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
# where $t_{n-1}$ is the 97.5 % quantile of Student's distribution. With few seeds it is much larger than the familiar
# 2.


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

# %%
pairs = [("rewind the rate", "fine-tune"), ("rewind the weights", "rewind the rate")]
pairs += [("rewind the weights", "other weights"), ("rewind the weights", "other mask")]
found = statistics.differences(hardest, pairs)

# %% tags=["plumbing"]
say(
    f"With {S.sparsities[-1]:.0%} removed, over {len(SEEDS)} seeds:\n\n"
    f"- rewinding the rate against fine-tuning: {found[0]};\n"
    f"- rewinding the weights against the rate: {found[1]};\n"
    f"- the first weights against other weights: {found[2]};\n"
    f"- the magnitude mask against a random one: {found[3]}.\n\nThe four are decided together."
)

# %%
gains = hardest.mean()

# %% tags=["plumbing"]
run.claim("rate-matters", "Accuracy that the full learning rate adds to the same pruned networks",
          gains["rewind the rate"] - gains["fine-tune"], at_least=0.01)  # fmt: skip
run.claim("ticket", "Accuracy of the first weights above that of other weights under the same masks",
          gains["rewind the weights"] - gains["other weights"], at_least=0.01)  # fmt: skip
run.claim("mask-matters", "Accuracy of the first weights in the magnitude mask above the same in a random mask",
          gains["rewind the weights"] - gains["other mask"], at_least=0.02)  # fmt: skip

# %% [markdown]
# Read it from below. The same first weights are worth less under a random mask, so the mask carries information: which
# pixels and which units matter. Under the same mask other weights are worth less, so the first weights carry some, too.
# And the trained weights? That depends on the learning rate. A low one mends a small wound. With nearly everything
# removed the wound is not small, and so few timid steps do not close it.
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


def keep_first_epoch(model, at):
    """Write the weights to a file when the first epoch is done: a resumed training will not see them again."""
    if at.step * S.dense_epochs == at.total:
        checkpoints.write_weights(model, run.scratch("early.safetensors"))


# %%
if PROFILE == "full":
    training.seed_everything(SEED)
    dense = retrain("dense", cifar_small(), S.lr, epochs=S.dense_epochs, on_step=training.watching(keep_first_epoch))
    early = checkpoints.read_weights(cifar_small(), run.scratch("early.safetensors"))
else:
    dense, early = checkpoints.load("cifar_small"), checkpoints.load("cifar_small", early=True)
dense_accuracy = accuracy(dense, unseen_photos)

# %% tags=["plumbing"]
say(
    f"The dense network classifies {dense_accuracy:.1%} of the validation photographs, its early self "
    f"{accuracy(early, unseen_photos):.1%}. Each way may now see {S.images:,} photographs, {S.epochs} time(s) each."
)

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
    100 * order, title=f"{FAR:.0%} removed: “{order.index[0]}” leads",
    xlabel="validation accuracy (%)", label="{:.1f}",
)  # fmt: skip
fig.axes[0].axvline(100 * dense_accuracy, color="black", linestyle="--", linewidth=1.2)
table = pd.DataFrame({"accuracy": {"dense, before pruning": dense_accuracy, "pruned, not retrained": broken} | scores})
show.figure(fig, alt=f"Accuracy (%); a dashed line marks the dense network. {show.in_words(100 * table, '{:.1f}')}",
           table=table)  # fmt: skip

# %%
alive = max(revived(model, masks) for model in sparse.values())

# %% tags=["plumbing"]
run.claim("masks-hold-photos", "Share of the pruned weights that came back in any of the networks", alive, at_most=0)
run.claim("inherit", "Accuracy that the better way to use the trained weights adds, above other weights in the mask",
          max(scores["fine-tune"], scores["rewind the rate"]) - scores["other weights"], at_least=0.02)  # fmt: skip
lead = 100 * (scores["rewind the rate"] - scores["fine-tune"])
steps = S.epochs * (S.images // S.batch)
say(
    f"After {steps:,} steps, rewinding the rate is {abs(lead):.1f} points {'above' if lead > 0 else 'below'} "
    "fine-tuning. This is **one seed**: whatever is close here stays open. Section 7 shows what the published seeds "
    "decide."
)

# %% [markdown]
# A rewound rate first undoes, then redoes. The more the pruning has broken, the less there is to undo. If the budget
# ends before it has redone what it undid, fine-tuning wins; that is no contradiction of those papers, which retrain
# for as long as they had trained. *Which way is best* has no answer without *at which sparsity* and *for how many
# steps*.
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

# %%
one = cifar.validation.inputs[:1]
keep = pruning.choose_filters(dense, pruning.filter_norms(dense), one, macs_ratio=2)
small = pruning.remove_filters(dense, keep, one)
macs, small_macs = measure.count_macs(dense, one), measure.count_macs(small, one)

# %% tags=["plumbing"]
run.claim("half-the-macs", "Times fewer MACs after removing filters", macs / small_macs, at_least=2)
seen = S.images if PROFILE == "full" else len(cifar.train)  # photographs in an epoch of the dense training
budget = int((S.dense_epochs * macs + S.epochs * S.images / seen * small_macs) // small_macs)
say(
    f"{macs / 1e6:.1f} → {small_macs / 1e6:.1f} million MACs. Not retrained, the small network is right in "
    f"{accuracy(small, unseen_photos):.1%}. {S.dense_epochs} epochs on {seen:,} photographs before the cut and "
    f"{S.epochs} on {S.images:,} after it pay for **{budget}** epochs on {seen:,} from scratch."
)


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

# %% tags=["plumbing"]
run.record("photos_cut", [{"way": way, "accuracy": score} for way, score in cut_scores.items()])

# %%
before = seen * S.dense_epochs * macs
spent = {way: before + S.images * S.epochs * small_macs for way in ("fine-tune", "rewind the rate")}
spent |= {"from scratch": S.images * scratch_epochs * small_macs}
bill = pd.DataFrame({"accuracy": cut_scores, "cost": pd.Series(spent) / before})
if PROFILE != "full":
    half = checkpoints.load("cifar_half")
    bill.loc["cifar_half, by hand"] = [accuracy(half, unseen_photos), measure.count_macs(half, one) / macs]

# %% tags=["plumbing"]
run.record("bill", bill.reset_index(names="way"))
said = {"accuracy": "{:.2%}", "cost": "{:.3f} × the dense training"}
pd.DataFrame({column: bill[column].map(form.format) for column, form in said.items()})

# %%
gap = 100 * (cut_scores["fine-tune"] - cut_scores["from scratch"])

# %% tags=["plumbing"]
if PROFILE != "full":
    run.claim("inherit-filters", "Accuracy of fine-tuning above scratch after the same few steps", gap / 100,
              at_least=0.05)  # fmt: skip
say(
    f"Fine-tuning is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} the same architecture from scratch, which "
    f"spent {bill.loc['from scratch', 'cost']:.3f} of the dense training against {bill.loc['fine-tune', 'cost']:.3f}."
)

# %% [markdown]
# So there are two questions with two answers. *I have a trained network, and little time*: prune it and retrain; what
# it knows is worth more than anything you could learn in that time. *I have nothing yet*: then the dense training
# belongs on the bill, and a small network trained for longer is the rival to beat.
#
# ## 6. Does pruning regularise when data is scarce?
#
# A network with 266,200 weights and 500 digits can learn them by heart. Fewer weights, less room to memorise, better on
# new digits: LeCun, Denker and Solla argued so in 1990 (*Optimal Brain Damage*). To see whether *pruning* does it, two
# free alternatives must run beside it:
#
# - the dense network with the **same extra training**, because pruned networks are trained twice;
# - the dense network **stopped early**, after a fifth of the epochs: the oldest regulariser there is.
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
def gains_over_control(count, wrong):
    """Mean gain of each network over the control, in points, and the ends of its paired interval."""
    part = scarce[(scarce["digits"] == count) & (scarce["wrong"] == wrong)]
    table = part.pivot(index="seed", columns="network", values="accuracy")
    rows = {
        name: [100 * (table[name] - table[CONTROL]).mean()]
        + [100 * end for end in statistics.paired_interval(table[name], table[CONTROL])]
        for name in names
        if name != CONTROL
    }
    return pd.DataFrame(rows, index=["gain", "low", "high"]).T


# %%
gains = {(count, wrong): gains_over_control(count, wrong) for count in S.scarce for wrong in WRONG}

# %% tags=["plumbing"]
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for ax, wrong in zip(axes, WRONG, strict=True):
    for i, count in enumerate(S.scarce):
        rows, places = gains[count, wrong], np.arange(len(names) - 1) + 0.2 * i
        ends = [rows["gain"] - rows["low"], rows["high"] - rows["gain"]]
        ax.errorbar(rows["gain"], places, xerr=ends, fmt=figures.MARKERS[i], color=show.COLOURS[i], capsize=3,
                    label=f"{count:,} digits")  # fmt: skip
    ax.axvline(0, color="black", linewidth=1)
    ax.set(xlabel=f"gain over the control (points)\n{wrong:.0%} of the labels wrong")
axes[0].set_yticks(range(len(names) - 1), rows.index)
axes[0].invert_yaxis()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(S.scarce))
clean, noisy = (round(gains[S.scarce[-1], wrong].loc["95% removed", "gain"], 1) + 0.0 for wrong in WRONG)
axes[0].set_title(f"95 % removed: {clean:+.1f} points, with wrong labels {noisy:+.1f}")
table = pd.concat(gains, names=["digits", "wrong", "network"])
words = [f"{count} digits, {wrong:.0%} wrong, {network}" for count, wrong, network in table.index]
alt = f"Gain over the control. {show.in_words(table[['gain']].set_axis(words), '{:+.1f}')}"
show.figure(fig, alt=alt, table=table)

# %%
noisy, clean = gains[S.scarce[-1], 0.3], gains[S.scarce[-1], 0.0]

# %% tags=["plumbing"]
run.claim("regularises", "With 30 % wrong labels, accuracy that removing 95 % of the weights adds to the same training",
          noisy.loc["95% removed", "gain"] / 100, at_least=0.01)  # fmt: skip


# %%
def verdict(row):
    """Say what an interval decides."""
    decided = "helps" if row["low"] > 0 else "hurts" if row["high"] < 0 else "makes no difference that these seeds show"
    return f"{decided} ({row['gain']:+.1f} points, {row['low']:.1f} to {row['high']:.1f})"


# %% tags=["plumbing"]
say(
    f"{S.scarce[-1]:,} digits, {len(SEEDS)} seeds, against the dense network with the same extra training:\n\n"
    f"- right labels: removing 95 % {verdict(clean.loc['95% removed'])};\n"
    f"- right labels: stopping early {verdict(clean.loc['stopped early'])};\n"
    f"- 30 % wrong labels: removing 95 % {verdict(noisy.loc['95% removed'])};\n"
    f"- 30 % wrong labels: stopping early {verdict(noisy.loc['stopped early'])}."
)

# %% [markdown]
# Keep the two halves of the claim apart. Pruning does regularise where there is something wrong to memorise. But it
# is not the cheapest way: stopping early saves time besides, though when to stop is a choice of its own, and a bad
# one where the labels deserve to be learned. Prune to make a network small, and take the regularisation as a gift.
#
# ## 7. What the published seeds decide
#
# The full profile runs sections 4 and 5 with a dense network of its own for each seed. Here are all full runs that
# exist, by the rule of section 3.


# %%
def over_seeds(key, current):
    """Return the accuracy of each way (columns) in each full run (rows): those on file, and this one if it is full."""
    found = evidence.measurements("05_after_pruning", key)
    scores = {seed: {row["way"]: row["accuracy"] for row in rows} for seed, rows in found.items()}
    return pd.DataFrame(scores | ({SEED: current} if PROFILE == "full" else {})).T


published = {
    f"{FAR:.0%} of the weights removed": over_seeds("photos_sparse", scores),
    "half of the MACs removed": over_seeds("photos_cut", cut_scores),
}

# %% tags=["plumbing"]
for name, table in published.items():
    say(f"{name}: {len(table)} full run(s)" + (", too few for an interval." if len(table) < 2 else "."))
ranked = {name: statistics.ranking(table) for name, table in published.items() if len(table) >= 2}
pd.concat(ranked, names=["", "way"]) if ranked else None

# %% [markdown]
# ## 8. What the literature claimed
#
# The claims in words, and what our runs say about each: section 3 with 98 % removed, section 6, and section 7. Our
# networks are small and our budgets short: where we disagree, that is the first suspect.

# %%
claims = [
    ("Han et al. 2015", "Keep the trained weights that survive; do not start them anew.",
     ("rewind the rate", "other weights")),
    ("Frankle and Carbin 2019", "The first weights make a winning ticket; other weights in the same mask do not.",
     ("rewind the weights", "other weights")),
    ("Renda, Frankle and Carbin 2020", "Rewinding the learning rate beats fine-tuning…",
     ("rewind the rate", "fine-tune")),
    ("Renda, Frankle and Carbin 2020", "…and is at least as good as rewinding the weights.",
     ("rewind the rate", "rewind the weights")),
    ("Le and Hua 2021", "What rewinding gains is the large learning rate, whatever the weights start from.",
     ("rewind the weights", "fine-tune")),
]  # fmt: skip
together = statistics.differences(hardest, [pair for _, _, pair in claims])
lines = ["| paper | claim | here |", "|---|---|---|"]
lines += [
    f"| {paper} | {claim} | “{a}” against “{b}”: {found} |"
    for (paper, claim, (a, b)), found in zip(claims, together, strict=True)
]
budgets = published["half of the MACs removed"]
liu = "decided by two full runs or more"
if len(budgets) >= 2:
    liu = f"“from scratch” against “fine-tune”: {statistics.difference(budgets, 'from scratch', 'fine-tune')}"
lines += [
    f"| LeCun et al. 1990 | Fewer weights generalise better. | right labels: {verdict(clean.loc['95% removed'])} |",
    f"| Liu et al. 2019 | The pruned architecture from scratch does as well, given the budget. | {liu} |",
]

# %% tags=["plumbing"]
say("\n".join(lines))

# %% [markdown]
# ## 9. Exercises
#
# **05.1 · What can three seeds see?** Over three seeds, the differences of two methods have the standard deviation
# $s = 0.3$ points. How large must their mean be, in points, before the paired 95 % interval excludes zero? Guess first,
# then compute.


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
# ## What was measured

# %%
best, best_cut = order.index[0], max(cut_scores, key=cut_scores.get)
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
# **Remember**
# - How you retrain can matter more than how you prune. Try the full learning rate again before anything clever.
# - A winning ticket needs two controls: other weights in the same mask, and the same weights in another mask.
# - "The same budget" includes the training of the network that was pruned. Say which budget you mean.
# - Pair by seed, give the interval, share the rank. Three seeds see large differences only.
# - Pruning can regularise. Compare with the same extra training, and with stopping early.
#
# **Read**
# - Han, Pool, Tran and Dally 2015, *Learning both Weights and Connections for Efficient Neural Networks*, section 3.
# - Frankle and Carbin 2019, *The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks*.
# - Liu, Sun, Zhou, Huang and Darrell 2019, *Rethinking the Value of Network Pruning*.
# - Renda, Frankle and Carbin 2020, *Comparing Rewinding and Fine-tuning in Neural Network Pruning*.
# - Le and Hua 2021, *Network Pruning That Matters: A Case Study on Retraining Variants*.
# - Jin, Carbin, Roy, Frankle and Dziugaite 2022, *Pruning's Effect on Generalization Through the Lens of Training and
#   Regularization*.
#
# **Next**: notebook 06 leaves images. Where are the parameters of a network that reads?
