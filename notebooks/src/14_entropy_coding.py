# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [14_entropy_coding]
# ---

# %% [markdown]
# # 14 · Entropy coding: how short can a file be?
#
# A pruned and quantized network is a list of small whole numbers. Some of them come all the time, others hardly ever.
# Give each the same five bits, and the frequent ones pay for the rare ones. **Entropy coding** writes what is frequent
# with few bits and what is rare with many. The network stays the same, bit for bit: only the file gets shorter. How
# short it can get, nobody has to guess. Shannon gave the bound in 1948, and a short program comes close to it.
#
# **You will be able to**
# - build a Huffman code, and say how far it stays above Shannon's bound;
# - build an exact arithmetic coder, which pays for fractions of a bit;
# - let writer and reader learn the same probabilities, so that no table needs to be stored;
# - say what a published compression ratio counted, and what it left out;
# - write a coded file, and decode it in a process that has never loaded PyTorch.
#
# **Before this**: notebook 02 (magnitude pruning) and notebook 09 (codebooks). Of probability you need no more than that
# independent chances multiply, and of logarithms that $\log_2 8 = 3$.

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import hashlib
import heapq
import math
import subprocess
import sys
from collections import Counter
from fractions import Fraction

import constriction
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from helpers import (
    checkpoints,
    data,
    evidence,
    exercises,
    files,
    measure,
    pruning,
    quantization,
    show,
    training,
)
from helpers.core import paths
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("14_entropy_coding", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("14_entropy_coding"))

# %% [markdown]
# First the answer. The published runs pruned LeNet-5 to a twelfth of its weights, let 32 values stand for those of a layer, and wrote
# the result in two ways: with a fixed number of bits for everything, and *coded*, with few bits for what is frequent. Below the two files
# stands the account that papers keep, of bits that nobody has written yet.

# %% tags=["plumbing", "answer"]
found = list(evidence.measurements("14_entropy_coding", "accounts").values())
if found:
    names = {
        "a real file, fixed lengths": "a file, fixed lengths",
        "a real file, range-coded": "a file, coded",
        "the same with biases and word lengths": "counted, with all that a file needs",
        "nominal: values, gaps, tables": "counted, as papers do",
    }
    rows = {label: [each[name] for each in found] for name, label in names.items()}
    fixed, coded = (np.array(rows[name]) for name in list(rows)[:2])
    spared = 100 * (1 - fixed / coded)
    title = "Coding did not make each file shorter"
    if (spared > 0).all():
        title = f"Coded, the same weights take {spared.mean():.0f} % fewer bytes"
    fig = show.dots(rows, title=title, xlabel="times smaller than the file of the dense LeNet-5", label="{:.1f}")
    table = pd.DataFrame(rows, index=[f"run {i + 1}" for i in range(len(found))]).T
    show.figure(fig, alt=f"Times smaller than the dense file, by run. {show.in_words(table, '{:.2f}')}", table=table)
    say(
        f"A dot is one of {len(found)} runs, a bar their mean. The dots nearly coincide, since all runs retrain **one** pruned network: "
        "their spread is that of the retraining, and says nothing about other networks."
    )
else:
    say("No full run of this page is published, so there is no picture of its result yet.")

# %% [markdown]
# And here is the idea in one picture. Four symbols, and the first of them comes every other time. On the left stands a tree
# that gives it a short **word**. On the right there are no words any more: the whole message is one interval, and each
# symbol cuts its share out of it. Come back to both when you have written them yourself.

# %% tags=["plumbing"]
blue, orange, green = show.COLOURS[:3]
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
nodes = {"100": (1.6, 3), "50": (2.6, 2), "25": (3.6, 1)}
leaves = {"a": (0.6, 2, "50", "0"), "b": (1.6, 1, "25", "10"), "c": (2.6, 0, "15", "110"), "d": (4.6, 0, "10", "111")}
links = [("100", "a", "0"), ("100", "50", "1"), ("50", "b", "0"), ("50", "25", "1"), ("25", "c", "0"), ("25", "d", "1")]
place = nodes | {name: (x, y) for name, (x, y, *_) in leaves.items()}
for above, below, bit in links:
    (x0, y0), (x1, y1) = place[above], place[below]
    left.plot([x0, x1], [y0, y1], color="#555555", linewidth=1.5, zorder=1)
    left.text((x0 + x1) / 2 + (0.18 if x1 > x0 else -0.18), (y0 + y1) / 2 + 0.08, bit, ha="center", fontsize=12)
for count, (x, y) in nodes.items():
    left.scatter(x, y, s=750, color="white", edgecolor="#555555", linewidth=1.5, zorder=2)
    left.text(x, y, count, ha="center", va="center", fontsize=11, zorder=3)
for (name, (x, y, count, word)), colour in zip(leaves.items(), (blue, orange, green, show.COLOURS[5]), strict=True):
    left.scatter(x, y, s=750, marker="s", color="white", edgecolor=colour, linewidth=2.5, zorder=2)
    left.text(x, y, f"{name}\n{count}", ha="center", va="center", fontsize=10, zorder=3)
    left.text(x, y - 0.48, word, ha="center", fontsize=12, weight="bold", family="monospace")
left.set(title="Huffman: frequent is near the root", xlim=(0, 5.3), ylim=(-0.8, 3.4))
low, width, steps = 0.0, 1.0, []
for symbol in ("", *"aba"):
    if symbol:
        low, width = (low, width * 0.7) if symbol == "a" else (low + width * 0.7, width * 0.3)
    steps.append((symbol, low, width))
for row, (symbol, begin, size) in enumerate(steps):
    right.barh(-row, 0.7 * size, left=begin, height=0.44, color=blue, edgecolor="black")
    right.barh(-row, 0.3 * size, left=begin + 0.7 * size, height=0.44, color=orange, edgecolor="black", hatch="//")
    right.text(-0.04, -row, f"after “{'aba'[:row]}”" if symbol else "at first", ha="right", va="center", fontsize=11)
    if row < 3:
        following = steps[row + 1]
        for near, far in ((following[1], following[1]), (sum(following[1:]), sum(following[1:]))):
            right.plot([near, far], [-row - 0.22, -row - 0.78], color="#555555", linestyle=":", linewidth=1.5)
right.plot([0.5, 0.5], [-3.3, 0.3], color="black", linewidth=2)
right.text(0.5, -3.62, "0.5 lies inside: it names “aba”", ha="center", fontsize=11)
right.text(0.3, 0.36, "a: 0.7", ha="center", fontsize=11)
right.text(0.85, 0.36, "b: 0.3", ha="center", fontsize=11)
right.set(title="Arithmetic: the interval shrinks", xlim=(-0.35, 1.02), ylim=(-3.8, 0.7))
for ax in (left, right):
    ax.axis("off")
show.figure(
    fig,
    alt="Left: a Huffman tree. The root, 100, splits into the leaf a (50, word 0) and a node of 50, which splits into b (25, "
    "word 10) and a node of 25 with the leaves c (15, word 110) and d (10, word 111). Right: four bars on the line from 0 "
    "to 1. The first reaches over all of it, seven tenths for a and three tenths for b. After a, b and a again the interval "
    "reaches from 0.49 to 0.637, and the number 0.5 lies inside.",
)

# %% [markdown]
# Two settings are worth knowing. `classic` is how many digits repair the network after pruning; `digits_seen` is how many
# validation digits judge it. Nothing is chosen here by test images, and none is touched.

# %%
S = evidence.settings(
    PROFILE,
    smoke=dict(classic=256, digits_seen=200),
    quick=dict(classic=8_192, digits_seen=2_500),
    full=dict(classic=55_000, digits_seen=5_000),
)

# %%
training.seed_everything(SEED)
mnist = data.mnist()
digits = mnist.validation.take(S.digits_seen)
dense = checkpoints.load("lenet5")
dense_file = files.write_dense(dense, run.scratch("lenet5.pack"))

# %% tags=["plumbing"]
kept_state = run.scratch("classic.pt") if PROFILE == "full" else None  # a long training can be resumed


def accuracy(model):
    """Fraction of the validation digits that `model` gets right."""
    return training.evaluate(model, digits).accuracy


say(
    f"LeNet-5: {measure.count_weights(dense):,} weights, a file of {dense_file.bytes:,} bytes, {accuracy(dense):.2%} of "
    f"{len(digits):,} validation digits."
)

# %% [markdown]
# ## 1. A recipe of 2016, rebuilt
#
# *Deep Compression* (Han, Mao and Dally 2016) is the best-known chain of its kind: **prune, share weights,
# Huffman-code**. The paper says that LeNet-5 became 39 times smaller. We take its three steps, and less time for each:
# the paper prunes and retrains in several rounds, and it trains the shared values, too. So compare our bytes with it,
# not our errors. We keep two accounts: the *nominal* one, of the bits that each step says it needs, and the bytes of a
# real file.
#
# Step one, **pruning**. The smallest magnitudes go until a twelfth of the weights is left, and a short training repairs
# the damage.

# %%
TWELFTH = 1 - 1 / 12
pruned = pruning.mask(dense, pruning.global_masks(dense, TWELFTH))
repair = dict(epochs=1, lr=5e-4, optimizer="adam", seed=SEED, checkpoint=kept_state)
pruned = training.fit(pruned, mnist.train.take(S.classic), **repair).model

# %% tags=["plumbing"]
say(f"{measure.count_nonzero(pruned):,} weights are left, and {accuracy(pruned):.2%} of the digits are right.")

# %% [markdown]
# Step two, **weight sharing**. In each layer, k-means finds 32 values for the weights that are left, and every weight
# becomes the nearest of them: five bits instead of 32. (The paper takes eight for convolutions.) Zero stays zero.


# %%
def shared_table(weight, bits):
    """Return zero and the 2^bits values, by k-means, that stand for the weights that are not zero; rising."""
    return torch.cat([quantization.kmeans_table(weight[weight != 0], bits), torch.zeros(1)]).sort().values


tables = {name.removesuffix(".weight"): shared_table(w, 5) for name, w in pruning.weights_of(pruned).items()}
shared = quantization.share_weights(pruned, tables)

# %% tags=["plumbing"]
say(f"With at most {max(map(len, tables.values()))} different weights in a layer: {accuracy(shared):.2%}.")

# %% [markdown]
# What has to be written now? For each layer two lists of **symbols**: which of the 32 values, and how many zeros to skip
# before it. These gaps are written in 5 bits each: 31 says *skip 31 and put nothing yet*.


# %%
def symbols_of(weight, bits=5):
    """Return two lists of symbols: the number of each kept value in the layer's table, and the gaps before them."""
    flat = weight.flatten().numpy()
    places = np.flatnonzero(flat)
    values = np.unique(flat[places], return_inverse=True)[1].tolist()
    gaps, longest = [], 2**bits - 1
    for gap in (np.diff(places, prepend=-1) - 1).tolist():
        gaps += [longest] * (gap // longest) + [gap % longest]
    return values, gaps


# %%
lists = {}
for name, weight in pruning.weights_of(shared).items():
    lists[name, "values"], lists[name, "gaps"] = symbols_of(weight)

# %% tags=["plumbing"]
pd.DataFrame(
    {f"fc1, {kind}": [f"{symbol}: {count:,} times" for symbol, count in Counter(lists["fc1.weight", kind]).most_common(5)]
     for kind in ("values", "gaps")},
    index=range(1, 6),
)  # fmt: skip

# %% [markdown]
# ## 2. Huffman: short words for frequent symbols
#
# The table shows the five most frequent symbols of `fc1`, of each kind. Five bits each would treat frequent and rare
# ones alike. **Shannon's entropy** $H$ says how few bits a symbol can take on average, if the symbols come
# independently and symbol $i$ comes with probability $p_i$:
#
# $$H = -\sum_i p_i \log_2 p_i.$$
#
# Read it as a price list. A symbol of probability $p$ is worth $-\log_2 p$ bits: one bit if it comes every other time,
# three if it comes every eighth time, almost nothing if it comes nearly always. The entropy is the average price.
#
# **Huffman** (1952) comes close to it with whole numbers of bits. Take the two rarest symbols, give their words one
# more bit to tell them apart, and treat the two as one from then on. Repeat until one is left.


# %%
def huffman_lengths(counts):
    """Return the length in bits of each symbol's word, for a dictionary of counts."""
    heap = [(count, order, [symbol]) for order, (symbol, count) in enumerate(counts.items())]
    heapq.heapify(heap)
    lengths = dict.fromkeys(counts, 0)
    while len(heap) > 1:
        (few, _, rare), (more, order, others) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in rare + others:
            lengths[symbol] += 1
        heapq.heappush(heap, (few + more, order, rare + others))
    return lengths


huffman_lengths({"a": 50, "b": 25, "c": 15, "d": 10})

# %% [markdown]
# That is the tree of the picture. Words of these lengths can be told apart without commas only if they fit into one
# tree: **Kraft's inequality**, $\sum_i 2^{-l_i} \le 1$ for the lengths $l_i$. Huffman's words fill the tree, so here
# both sides are equal. And no code of whole words is shorter on average: a library that builds a tree of its own must
# end with the same number of bits. The next cell builds it with `constriction`, a library of entropy coders.
#
# **Predict**: how far above Shannon's bound will the lists end? Ten percent, or one?


# %%
def entropy(symbols):
    """Bits of a whole list by Shannon's formula, from its own frequencies."""
    return -sum(count * math.log2(count / len(symbols)) for count in Counter(symbols).values())


def library_bits(symbols):
    """Bits of the list in the Huffman code of `constriction`."""
    _, symbols, counts = np.unique(symbols, return_inverse=True, return_counts=True)  # none that never occurs
    tree = constriction.symbol.huffman.EncoderHuffmanTree(counts.astype(np.float64))
    encoder = constriction.symbol.QueueEncoder()
    for symbol in symbols.tolist():
        encoder.encode_symbol(symbol, tree)
    return encoder.get_compressed_and_bitrate()[1]


# %%
rows, differing = {}, 0
for key, symbols in lists.items():
    counts = Counter(symbols)
    lengths = huffman_lengths(counts)
    assert sum(Fraction(1, 2**length) for length in lengths.values()) == 1  # Kraft: the tree is full
    bits = sum(counts[symbol] * length for symbol, length in lengths.items())
    differing += abs(bits - library_bits(symbols))
    each = {"fixed": 5.0, "Huffman": bits / len(symbols), "entropy": entropy(symbols) / len(symbols)}
    rows[key] = {"symbols": len(symbols)} | each
huffman = pd.DataFrame.from_dict(rows, orient="index")
totals = huffman[["fixed", "Huffman", "entropy"]].mul(huffman["symbols"], axis=0).sum() / 8

# %% tags=["plumbing"]
run.claim(
    "huffman", "Bits by which the cell's Huffman codes differ from the library's, all lists", differing, at_most=0
)
huffman.round(2).rename(columns={name: f"{name} (bits a symbol)" for name in ("fixed", "Huffman", "entropy")})

# %% tags=["plumbing"]
run.claim("near-entropy", "Bytes in Huffman's code over the entropy of the lists", totals["Huffman"] / totals["entropy"],
          at_most=1.05)  # fmt: skip
say(
    f"Huffman turns {totals['fixed']:,.0f} bytes into {totals['Huffman']:,.0f}, "
    f"{100 * (totals['Huffman'] / totals['entropy'] - 1):.1f} % above the entropy."
)

# %% [markdown]
# ### What "39 times" counted
#
# The *nominal* ratio divides the dense weights, four bytes each, by the bits of these lists and the tables of values.
# That is the kind of account that papers keep. A *file* has more to hold: biases, the lengths of Huffman's words, names
# and shapes. Here are both for our network. The last row needs no Huffman tree: how it does without one is the subject
# of section 3.

# %%
table_bytes = sum(4 * (len(table) - 1) for table in tables.values())
word_bytes = sum(len(Counter(symbols)) * 5 / 8 for symbols in lists.values())  # five bits tell a word's length
biases = sum(parameter.numel() for parameter in dense.parameters()) - measure.count_weights(dense)
coded_lists = totals["Huffman"] + table_bytes
gap_file = files.write_quantized(shared, run.scratch("classic.pack"))
coded_file = files.write_coded(shared, run.scratch("classic.coded.pack"))
accounts = {
    "nominal: values, gaps, tables": 4 * measure.count_weights(dense) / coded_lists,
    "the same with biases and word lengths": dense_file.bytes / (coded_lists + word_bytes + 4 * biases),
    "a real file, fixed lengths": dense_file.bytes / gap_file.bytes,
    "a real file, range-coded": dense_file.bytes / coded_file.bytes,
}

# %% tags=["plumbing"]
run.record("accounts", accounts)
pd.Series(accounts).map("{:.1f}".format).to_frame("times smaller")

# %% [markdown]
# And the numbers that papers print. Not every row counts the same things, so read a ratio only together with its
# account. (`False` in the last column: nobody has checked the number in the paper itself yet.)

# %% tags=["plumbing"]
literature = evidence.literature("mnist", model="LeNet-5").dropna(subset="file_ratio")
literature["error"] = (100 * (1 - literature["accuracy"])).map("{:.2f}".format)
literature.set_index("method")[["year", "file_ratio", "error", "seen"]].rename(
    columns={"file_ratio": "times smaller", "error": "test error (%)", "seen": "read in the paper itself"}
)

# %% tags=["plumbing"]
nominal, whole = (accounts[key] for key in ("nominal: values, gaps, tables", "the same with biases and word lengths"))
say(
    f"Biases and word lengths turn {nominal:.1f} times into {whole:.1f}. At this size that is a detail. For a network of "
    f"three kilobytes it is everything: {biases} biases as floats alone take {4 * biases:,} bytes."
)

# %% [markdown]
# ## 3. Fractions of a bit
#
# Huffman's shortest word has one bit. A mask in which one place in fifty is kept has far less than one bit of news per
# place, and Huffman would pay a whole one. **Arithmetic coding** gives up words: it makes *one* number of the whole
# message. Start with the interval from 0 to 1. Each symbol takes its share of the interval, as wide as its probability.
# After the last one, any number inside names the message.
#
# How many digits does that number need? The *width* of the interval is the product of all probabilities. A number with
# $\lceil -\log_2(\text{width})\rceil + 1$ binary digits can always be found that lies inside, whatever digits follow
# it. So the whole message costs less than two bits more than the sum of its symbols' prices. With exact fractions the
# encoder is a few lines:


# %%
def encode(symbols, chances):
    """Return a whole number and its bits: the message as a binary fraction. `chances` add up to 1."""
    low, width = Fraction(0), Fraction(1)
    for symbol in symbols:
        low += width * sum(chances[:symbol])
        width *= chances[symbol]
    bits = 1
    while Fraction(2, 2**bits) > width:
        bits += 1
    return math.ceil(low * 2**bits), bits


# %% [markdown]
# The decoder retraces the steps. It asks in whose share the number lies, notes that symbol, and stretches the share to
# the whole line from 0 to 1.


# %%
def decode(number, bits, chances, count):
    """Return the `count` symbols again: at each step, whose share does the number lie in?"""
    point, symbols = Fraction(number, 2**bits), []
    for _ in range(count):
        symbol = max(s for s in range(len(chances)) if sum(chances[:s]) <= point)
        symbols.append(symbol)
        point = (point - sum(chances[:symbol])) / chances[symbol]
    return symbols


# %% [markdown]
# **Predict** the bits of 300 places of which about one in fifty is kept. Huffman, a word for each place, needs 300.

# %%
generator = np.random.default_rng(SEED)
message = (generator.random(300) < 0.02).astype(int).tolist()
chances = [Fraction(49, 50), Fraction(1, 50)]
number, bits = encode(message, chances)
assert decode(number, bits, chances, len(message)) == message
ideal = -sum(math.log2(chances[symbol]) for symbol in message)

# %% tags=["plumbing"]
run.claim("range-coder", "Bits of the exact coder beyond -log2 of the message's probability", bits - ideal, at_most=2)
say(
    f"{sum(message)} of the 300 places are kept. The message takes **{bits} bits**; minus the logarithm of its probability is "
    f"{ideal:.1f}. It decodes to itself."
)

# %% [markdown]
# ### Probabilities that nobody stores
#
# Exact fractions grow into very long numbers. A **range coder** keeps 32 or 64 bits of them and hands out the digits
# that are settled; for a whole file it loses a few bytes. We take it from `constriction`. What it cannot know are the
# probabilities. They can stand in the file, as a table. Or writer and reader can **learn** them on the way, from the
# symbols that both have already seen, and nothing needs to be stored. After $n$ decisions, $k$ of which were a one, the
# next is a one with probability
#
# $$p = \frac{5k + 2}{5n + 4}.$$
#
# That is $(k + 0.4)/(n + 0.8)$, as if 0.4 of each had been seen before the first: a variant of the estimator of
# Krichevsky and Trofimov (exercise 14.4), in whole numbers.
#
# Learning may also be split by **context**: places in a full row are counted apart from places in an empty one. Two
# rules keep it honest. A context may use only what the reader knows already. And both sides must compute exactly the
# same $p$: one last bit that differs on another processor would turn all that follows into noise. So
# `files.write_coded` uses whole numbers only, and rounds $p$ down to a multiple of $2^{-16}$. In a cell:


# %%
class Learner:
    """Adds up -log2 p over decisions whose probabilities are learned, each in its context."""

    def __init__(self):
        self.seen, self.bits = {}, 0.0

    def decide(self, context, answer):
        count, ones = self.seen.get(context, (0, 0))
        p = max(2**16 * (5 * ones + 2) // (5 * count + 4), 1) / 2**16
        self.bits -= math.log2(p if answer else 1 - p)
        self.seen[context] = count + 1, ones + answer


# %% [markdown]
# Now the mask of a layer, as a matrix. First we ask which columns and which rows have any weight at all; a unit that
# was removed costs nothing after that. Then we go through the places that remain, row by row. The context of a place is
# how full its row has been so far, in steps of a factor of two, and how many of the last four places were kept: none,
# one, or more.


# %%
def fullness_and_last(before):
    """The context of a place, from the places of its row before it: all that the reader knows of this row."""
    fullness = ((len(before) + 4) // (sum(before) + 1)).bit_length()
    return fullness, min(sum(before[-4:]), 2)


def bits_of_positions(kept, context=fullness_and_last):
    """Bits of a matrix of zeros and ones: which columns live, which rows, then each place where both do."""
    learner, columns, rows = Learner(), kept.any(0), kept.any(1)
    for axis, alive in (("column", columns), ("row", rows)):
        for answer in alive.tolist():
            learner.decide(axis, answer)
    for row in kept[rows][:, columns].astype(int).tolist():
        before = []
        for answer in row:
            learner.decide(context(before), answer)
            before.append(answer)
    return learner.bits


# %% [markdown]
# There are now five ways to store where `fc1`'s weights stand. **Predict** their order. And predict one more number:
# what the last way needs if the same mask is **shuffled**, so that every place is as likely to be kept as any other.

# %%
kept = (pruning.weights_of(shared)["fc1.weight"] != 0).numpy()
mine, helper = bits_of_positions(kept) / 8, files.anatomy({"x": kept.astype(np.float32)})["x"]["positions"]
gaps = huffman.loc[[("fc1.weight", "gaps")]].iloc[0]
ways = {
    "a bit for each place": kept.size / 8,
    "gaps, 5 bits each": gaps["symbols"] * 5 / 8,
    "gaps, Huffman": gaps["symbols"] * gaps["Huffman"] / 8,
    "entropy of the mask": entropy(kept.flatten().tolist()) / 8,
    "learned, in contexts": mine,
}
mixed = np.random.default_rng(SEED).permutation(kept.flatten()).reshape(kept.shape)
shuffled = bits_of_positions(mixed) / 8

# %% tags=["plumbing"]
run.claim("same-positions", "Relative difference of the cell's count of bits from the helper's", abs(mine / helper - 1),
          at_most=1e-6)  # fmt: skip
run.record("positions", ways)
run.record("positions_shuffled", shuffled)
pd.Series(ways | {"learned, in contexts, shuffled": shuffled}).map("{:,.0f} bytes".format).to_frame("positions of fc1")

# %% [markdown]
# Can a code be shorter than the entropy? No law is broken. The entropy of the mask is the bound *if its places are
# independent*, and they are not: weights crowd in some rows and columns. A context that has noticed pays less.
# Huffman's gaps notice some of it, too. The shuffled mask is the control: it has the same number of ones and no crowds,
# and there the contexts have nothing to find. They cost a little instead, because each of them has to learn its
# probability anew.

# %% tags=["plumbing"]
places = evidence.measurements("14_entropy_coding", "positions").values()
gains = sorted(100 * (each["learned, in contexts"] / each["entropy of the mask"] - 1) for each in places)
ends = " to ".join(dict.fromkeys(f"{gain:+.2f}" for gain in gains))
say(
    "Positions of `fc1`, learned in contexts, against the entropy of the mask: "
    f"{100 * (mine / ways['entropy of the mask'] - 1):+.2f} % in this run"
    + (f", {ends} % in {len(gains)} published ones" if gains else "")
    + f"; shuffled, {100 * (shuffled / ways['entropy of the mask'] - 1):+.2f} %. All runs prune the same trained network, so this is "
    "one mask, looked at again and again: **n = 1**."
)

# %% [markdown]
# So the number describes this network's mask, and no interval can be given for others. How much a context finds elsewhere, you
# measure there.
#
# ## 4. A whole network in one file
#
# `files.write_coded` does this for all layers: positions in contexts, values bit by bit in the same way, biases beside
# them, and a header of a few dozen bytes. It goes one step further: it asks for the columns of a layer in the context
# of the unit that they read, so that a neuron that died in one layer is not paid for again in the next. Here is where
# the bytes of our rebuilt recipe go. "Plain" is what is written without a code: the tables of values, biases, names and
# shapes.

# %%
anatomy = pd.DataFrame(files.anatomy(shared)).T.fillna(0)
anatomy.loc["all"] = anatomy.sum()

# %% tags=["plumbing"]
run.claim("coded-beats-fixed", "Bytes with fixed lengths over bytes range-coded, the same weights",
          gap_file.bytes / coded_file.bytes, at_least=1.1)  # fmt: skip
anatomy.map("{:,.0f}".format)

# %% [markdown]
# A short file is worth nothing if it does not give the network back. So two tests. `files.verify` loads the file into a
# new network and compares logits bit for bit. And a process that has just started decodes it with NumPy and
# `constriction` alone: it prints a digest (SHA-256) of all numbers, and whether torch was ever loaded.

# %%
READ = """
import hashlib, sys
from helpers import files
arrays = files.read(sys.argv[1])
print(hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest(), "torch" in sys.modules)
"""


# %% tags=["plumbing"]
def read_elsewhere(path):
    """Decode a file in a fresh process; return the digest of its numbers, and whether torch was loaded there."""
    command = [sys.executable, "-c", READ, str(path)]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout.split()


# %%
files.verify(coded_file.path, shared, digits.inputs[:256])
arrays = files.read(coded_file.path)
digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()
elsewhere = read_elsewhere(coded_file.path)

# %% tags=["plumbing"]
run.claim("fresh-process", "Files that a fresh process without torch decodes to other numbers",
          int(elsewhere != [digest, "False"]), at_most=0)  # fmt: skip
_ = evidence.conclude(
    evidence.Comparison(
        "the range-coded file against the one with fixed lengths, the same weights, over retrainings of one pruned network",
        100 * (coded_file.bytes / gap_file.bytes - 1),
        tuple(100 * (1 / ratio - 1) for ratio in evidence.claimed("14_entropy_coding", "coded-beats-fixed")),
    ),
    unit="%",
    words=("longer", "shorter"),
)

# %% [markdown]
# ## 5. Exercises
#
# **14.1 · Warm-up: the price of a symbol.** One line. How many bits is a symbol worth that comes with probability $p$?


# %%
def price(p):
    """Return the bits of a symbol of probability p, which need not be whole."""
    ### BEGIN SOLUTION
    return -math.log2(p)
    ### END SOLUTION


exercises.check("14.1", price)

# %% [markdown]
# **14.2 · Words from lengths.** A file need not store Huffman's tree: the *lengths* of the words are enough, if writer
# and reader make the words in the same way. The **canonical** code goes through the symbols by length, and among equal
# lengths by number. The first word is all zeros; each next word is the one before plus one, with zeros appended when
# the length grows. Return the words, as texts of "0" and "1", in the order of the symbols.


# %%
def canonical_words(lengths):
    """Return one word for each symbol, for a list of lengths that fill a tree: [2, 1, 2] gives ["10", "0", "11"]."""
    ### BEGIN SOLUTION
    words, word, before = [""] * len(lengths), 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        word <<= length - before
        words[symbol] = format(word, f"0{length}b")
        word, before = word + 1, length
    return words
    ### END SOLUTION


exercises.check("14.2", canonical_words)

# %% [markdown]
# **14.3 · Predict the file.** A matrix of 600 × 700 numbers. One place in fifty is not zero, anywhere, at random. There
# stands one of four values: the first half of the time, the second a quarter, the other two an eighth each. How many
# bytes does `files.write_coded` need? Return your number; within three percent is fine.


# %%
def predicted_bytes():
    """Return the predicted size of the coded file in bytes."""
    ### BEGIN SOLUTION
    places, share = 600 * 700, 1 / 50
    mask = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    values = 1 / 2 * 1 + 1 / 4 * 2 + 2 * (1 / 8 * 3)
    return places * (mask + share * values) / 8 + 70  # and a header
    ### END SOLUTION


generator = np.random.default_rng(1)
filled = generator.random((600, 700)) < 1 / 50
matrix = np.where(filled, generator.choice([-2, -1, 1, 2], filled.shape, p=[1 / 2, 1 / 4, 1 / 8, 1 / 8]), 0)
measured = files.write_coded({"x": matrix.astype(np.float32)}, run.scratch("exercise.pack")).bytes
exercises.check("14.3", predicted_bytes, measured=measured)

# %% [markdown]
# **14.4 · Learn as you go.** Change the learner. Return how many bits a list of zeros and ones takes if, with $k$
# ones among the $n$ symbols *before*, the next one is a 1 with probability $(k + \frac12)/(n + 1)$. That is the
# original estimator of Krichevsky and Trofimov. Then ask yourself why the list's own entropy is less, and by how much.


# %%
def learned_bits(symbols):
    """Return the sum of -log2 p over all symbols, a list of 0 and 1."""
    ### BEGIN SOLUTION
    bits, ones = 0.0, 0
    for before, symbol in enumerate(symbols):
        p = (ones + 0.5) / (before + 1)
        bits -= math.log2(p if symbol else 1 - p)
        ones += symbol
    return bits
    ### END SOLUTION


exercises.check("14.4", learned_bits)

# %% [markdown]
# The entropy of the list knows the share of ones beforehand, and does not count what it costs to tell it. The coder
# learns the share on the way, and that costs about $\frac12 \log_2 n + 1$ bits.
#
# **14.5 · Open: a better context.** The cell below counts the bytes of `fc1`'s positions with a context of your own. It
# looks back at eight places instead of four. Can you beat both? A context gets the places of its row before this one,
# and nothing else: so it cannot cheat. Why does a context that tells more and more apart stop helping? And what would a
# context need to know to use the *columns*, too?


# %%
def my_context(before):
    """What may say something about the next place; change it."""
    return min(sum(before[-8:]), 4)


tried = {"four places and fullness": mine, "yours": bits_of_positions(kept, my_context) / 8}
pd.Series(tried).map("{:,.0f} bytes".format).to_frame("positions of fc1")

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **The recipe of 2016**, rebuilt: {nominal:.0f} times smaller by its own account, "
    f"{accounts['a real file, fixed lengths']:.0f} times as a file with fixed lengths, "
    f"{accounts['a real file, range-coded']:.0f} times as a range-coded file of {coded_file.bytes:,} bytes.\n"
    f"- **Bits a symbol**, all lists: fixed {totals['fixed'] * 8 / huffman['symbols'].sum():.2f}, Huffman "
    f"{totals['Huffman'] * 8 / huffman['symbols'].sum():.2f}, entropy {totals['entropy'] * 8 / huffman['symbols'].sum():.2f}.\n"
    f"- **Positions of `fc1`**: {ways['gaps, Huffman']:,.0f} bytes as Huffman's gaps, {mine:,.0f} learned in contexts."
)
run.finish()

# %% [markdown]
# ## What to remember
#
# - A symbol of probability $p$ is worth $-\log_2 p$ bits. The entropy is the average price, and no code for independent
#   symbols is shorter on average. <!-- by construction -->
# - Huffman's words come within five percent of the entropy of these lists, and two independent programs find equally
#   short ones. <!-- claims: huffman, near-entropy -->
# - Huffman pays at least a whole bit a symbol. Arithmetic coding pays fractions: less than two bits above the price of
#   the *whole message*. <!-- claims: range-coder -->
# - Writer and reader can learn the probabilities together, in contexts, and nothing has to be stored. You can recompute
#   the length of such a file by hand. <!-- claims: same-positions -->
# - Both sides must compute the same probabilities to the last bit. Whole numbers do. <!-- by construction -->
# - Written with fixed lengths, the same weights take a file at least a tenth longer. <!-- claims: coded-beats-fixed -->
# - A ratio of bits that were counted is not a ratio of files that were written. Ask what was left out. <!-- by
#   construction -->

# %% [markdown]
# **Read**
# - Shannon 1948, *A Mathematical Theory of Communication*; Huffman 1952, *A Method for the Construction of
#   Minimum-Redundancy Codes*.
# - Han, Mao and Dally 2016, *Deep Compression*: the chain, and its accounts.
# - Krichevsky and Trofimov 1981, *The Performance of Universal Encoding*: what learning on the way costs.
# - Bamler 2022, *Understanding Entropy Coding With Asymmetric Numeral Systems (ANS)*: by the author of `constriction`.
# - Havasi, Peharz and Hernández-Lobato 2019, *Minimal Random Code Learning*: smaller still, without any code of weights.
#
# **Next**: notebook 15 prunes, quantizes and codes one network so that every step helps the next, and asks in which
# order.
