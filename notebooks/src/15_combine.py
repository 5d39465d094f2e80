# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [15_combine]
# ---

# %% [markdown]
# # 15 · Combine: in which order, and how small can the file get?
#
# Pruning leaves few weights, quantization leaves few values, distillation keeps the accuracy. Here they work on the same
# network, one after the other, and a fourth step joins them, which costs no accuracy at all: **entropy coding**. It
# writes what is frequent with few bits and what is rare with many. At the end stand files of a few kilobytes that a
# fresh process decodes to the same network, bit for bit, and an account of what each step multiplied.
#
# **You will be able to**
# - build a Huffman code and an exact arithmetic coder, and say how far each stays above Shannon's bound;
# - say what a published compression ratio counted, and what it left out;
# - prune, quantize and code one network so that every step helps the next;
# - decide by measurement whether the order matters;
# - state one set of weights, each file made of it, and what each file is for.
#
# **Before this**: notebooks 02 (gradual pruning), 04 (filters), 09 (codes) and 11 (teachers).

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
from functools import partial

import constriction
import numpy as np
import pandas as pd
import torch

from helpers import (
    checkpoints,
    data,
    distillation,
    evidence,
    exercises,
    files,
    measure,
    nets,
    pruning,
    quantization,
    runtime,
    show,
    statistics,
    training,
)
from helpers.core import modules, paths
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("15_combine", profile=PROFILE, seed=SEED)
say(evidence.timetable("15_combine"))

# %% [markdown]
# The settings. Section 1 rebuilds a published recipe with `classic` digits. Section 4 prunes to `ratio` times fewer
# weights in `epochs` epochs of `digits` digits, each with `views` versions that the teacher answers once, in batches of
# `digit_batch`; then it rounds to `bits` bits (by layer) and trains `tune` more; biases become multiples of
# $2^{-\text{bias}}$. (Full starts this from random weights, the others from the trained network.) Section 5 compares orders, with `order` = (digits, epochs a phase, seeds, weights ratio, bits) and the
# same for photographs. Section 6 keeps `widths` filters and neurons, or begins with `wide` and goes down to `budget`
# weights, and trains for `thin` = (epochs, epochs with rounding), at a rate of up to `thin_lr`. Section 7 takes the
# photographs' network `net`: `cut` times fewer MACs, `photos` training photographs with `photo_views` versions, for
# `retrain` = (epochs, epochs with rounding), in batches of `batch` at a rate of up to `lr`; filters are scored on `scored` of
# them and go in groups of `round_to`, weights get `photo_bits` bits, and int8 is calibrated on `calibration`. `digits_seen` and
# `photos_seen` are validation images, `tested` test images, `timings` the rounds of each clock.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(classic=256, ratio=50, digits=256, views=2, digit_batch=64, epochs=2, tune=1, bits=dict(conv1=4, conv2=3, fc1=3, fc2=3),
               bias=5, order=(64, 1, 2, 400, 3), photo_order=(64, 1, 2, 40, 4), widths=(6, 12, 20), wide=(6, 12, 40), budget=6_000, thin=(1, 1),
               thin_lr=4e-3, net="cifar_small", cut=2.0, round_to=8,
               scored=64, photos=128, photo_views=1, retrain=(1, 1), batch=64, lr=0.02, photo_bits=4, calibration=20,
               digits_seen=200, photos_seen=100, tested=200, timings=20),
    quick=dict(classic=8_192, ratio=30, digits=6_144, views=2, digit_batch=64, epochs=3, tune=1,
               bits=dict(conv1=4, conv2=3, fc1=3, fc2=3), bias=5, order=(768, 2, 2, 10, 3), photo_order=(256, 1, 2, 5, 4),
               widths=(6, 12, 20), wide=(6, 12, 40), budget=6_000, thin=(6, 3), thin_lr=4e-3,
               net="cifar_small", cut=2.0, round_to=8, scored=500, photos=3_072, photo_views=1, retrain=(2, 1), batch=64,
               lr=0.02, photo_bits=4, calibration=100, digits_seen=2_500, photos_seen=1_000, tested=4_000, timings=30),
    full=dict(classic=55_000, ratio=190, digits=55_000, views=9, digit_batch=128, epochs=30, tune=8,
              bits=dict(conv1=4, conv2=3, fc1=3, fc2=3), bias=5, order=(5_120, 2, 3, 50, 3), photo_order=(3_072, 2, 3, 10, 3),
              widths=(6, 8, 9), wide=(6, 10, 30), budget=2_750, thin=(160, 20), thin_lr=8e-3,
              net="cifar_base", cut=2.6, round_to=16, scored=2_000, photos=45_000, photo_views=4, retrain=(8, 3), batch=128,
              lr=0.05, photo_bits=4, calibration=200, digits_seen=5_000, photos_seen=3_000, tested=10_000, timings=40),
)  # fmt: skip

# %% tags=["plumbing"]
show.style()

# %%
training.seed_everything(SEED)
mnist, cifar = data.mnist(), data.cifar10()
digits, photos = mnist.validation.take(S.digits_seen), cifar.validation.take(S.photos_seen)
dense = checkpoints.load("lenet5")
ONE, TWO = digits.inputs[:1], digits.inputs[:2]


def accuracy(model, split=None):
    """Fraction of the validation digits, or of another split, that `model` gets right."""
    return training.evaluate(model, digits if split is None else split).accuracy


def saved(name):
    """Where a long training keeps its state, so that it can be resumed."""
    return run.scratch(f"{name}.pt") if PROFILE == "full" else None


dense_file = files.write_dense(dense, run.scratch("lenet5.pack"))

# %% tags=["plumbing"]
say(
    f"LeNet-5: {measure.count_weights(dense):,} weights, a file of {dense_file.bytes:,} bytes, {accuracy(dense):.2%} of "
    f"{len(digits):,} validation digits. All choices below are made on validation images."
)

# %% [markdown]
# ## 1. A recipe of 2016, rebuilt
#
# *Deep Compression* (Han, Mao and Dally 2016) is the best-known combination: **prune, share weights, Huffman-code**. The
# paper says that LeNet-5 became 39 times smaller. We take its three steps, and less time for each: it prunes and retrains in
# several rounds, and it trains the shared values on, too. So compare the bytes with it, not the errors. We keep two accounts: the *nominal* one, of
# bits that each step says it needs, and the bytes of a real file.
#
# Step one, pruning. The smallest magnitudes go until a twelfth is left, and a short training repairs the damage.

# %%
TWELFTH = 1 - 1 / 12
pruned = pruning.mask(dense, pruning.global_masks(dense, TWELFTH))
pruned = training.fit(
    pruned, mnist.train.take(S.classic), epochs=1, lr=5e-4, optimizer="adam", seed=SEED, checkpoint=saved("classic")
).model

# %% tags=["plumbing"]
say(f"{measure.count_nonzero(pruned):,} weights are left, and {accuracy(pruned):.2%} of the digits are right.")

# %% [markdown]
# Step two, weight sharing. In each layer, k-means finds 32 values for the weights that are left, and every weight becomes
# the nearest of them: five bits instead of 32. (The paper takes eight for convolutions.) Zero stays zero.


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
# before it. Gaps are written in 5 bits: 31 says *skip 31 and put nothing yet*.


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


lists = {}
for name, weight in pruning.weights_of(shared).items():
    lists[name, "values"], lists[name, "gaps"] = symbols_of(weight)
pd.DataFrame(
    {f"fc1, {kind}": [f"{symbol}: {count:,} times" for symbol, count in Counter(lists["fc1.weight", kind]).most_common(5)]
     for kind in ("values", "gaps")},
    index=range(1, 6),
)  # fmt: skip

# %% [markdown]
# ## 2. Huffman: short words for frequent symbols
#
# The table shows the five most frequent symbols of `fc1`, of each kind. Some are frequent, some rare, and five bits each treats them alike.
# **Shannon's entropy** says how few bits a symbol can take on average, if they come independently and symbol $i$ with
# probability $p_i$:
#
# $$H = -\sum_i p_i \log_2 p_i.$$
#
# **Huffman** (1952) comes close with whole numbers of bits. Take the two rarest symbols, give their words another bit to
# tell them apart, and treat the two as one from then on. Repeat until one is left.


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


def entropy(symbols):
    """Bits of a whole list by Shannon's formula, from its own frequencies."""
    return -sum(count * math.log2(count / len(symbols)) for count in Counter(symbols).values())


huffman_lengths({"a": 50, "b": 25, "c": 15, "d": 10})

# %% [markdown]
# Words of these lengths can be told apart without commas only if they fit into one tree: **Kraft's inequality**, $\sum_i
# 2^{-l_i} \le 1$. Huffman's fill the tree, so that there is equality. And nobody's tree is better: a library that builds
# its own must end with the same number of bits. **Predict**: how far from Shannon's bound will the lists be?


# %%
def library_bits(symbols):
    """Bits of the list in the Huffman code of `constriction`."""
    _, symbols, counts = np.unique(symbols, return_inverse=True, return_counts=True)  # none that never occurs
    chances = counts.astype(np.float64)
    library = constriction.symbol
    tree, encoder = library.huffman.EncoderHuffmanTree(chances), library.QueueEncoder()
    for symbol in symbols.tolist():
        encoder.encode_symbol(symbol, tree)
    return encoder.get_compressed_and_bitrate()[1]


# %%
rows, differing = {}, 0
for key, symbols in lists.items():
    counts = Counter(symbols)
    lengths = huffman_lengths(counts)
    assert sum(Fraction(1, 2**length) for length in lengths.values()) == 1
    bits = sum(counts[symbol] * length for symbol, length in lengths.items())
    differing += abs(bits - library_bits(symbols))
    rows[key] = {
        "symbols": len(symbols),
        "fixed": 5.0,
        "Huffman": bits / len(symbols),
        "entropy": entropy(symbols) / len(symbols),
    }
huffman = pd.DataFrame.from_dict(rows, orient="index")

# %% tags=["plumbing"]
run.claim(
    "huffman", "Bits by which the cell's Huffman codes differ from the library's, all lists", differing, at_most=0
)
huffman.round(2)

# %%
totals = huffman[["fixed", "Huffman", "entropy"]].mul(huffman["symbols"], axis=0).sum() / 8

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
# The *nominal* ratio divides the dense weights, four bytes each, by the bits of these lists and the tables of values. That
# is the kind of account that papers keep. A *file* has more to hold: 580 biases, the lengths of Huffman's words, names and
# shapes. Here are both, for our network, and the numbers that papers print.

# %%
table_bytes = sum(4 * (len(table) - 1) for table in tables.values())
nominal = 4 * measure.count_weights(dense) / (totals["Huffman"] + table_bytes)
words = sum(len(Counter(symbols)) * 5 / 8 for symbols in lists.values())  # a length of five bits for each word
biases = sum(parameter.numel() for parameter in dense.parameters()) - measure.count_weights(dense)
whole = dense_file.bytes / (totals["Huffman"] + table_bytes + words + 4 * biases)
gap_file = files.write_quantized(shared, run.scratch("classic.pack"))
coded_file = files.write_coded(shared, run.scratch("classic.coded.pack"))
accounts = {
    "nominal: values, gaps, tables": nominal,
    "the same with biases and word lengths": whole,
    "a real file, fixed lengths": dense_file.bytes / gap_file.bytes,
    "a real file, range-coded": dense_file.bytes / coded_file.bytes,
}

# %% tags=["plumbing"]
run.record("accounts", accounts)
pd.Series(accounts).map("{:.1f}".format).to_frame("times smaller")

# %%
literature = evidence.literature("mnist", model="LeNet-5").dropna(subset="file_ratio")
literature["error"] = (100 * (1 - literature["accuracy"])).map("{:.2f}".format)
literature.set_index("method")[["year", "file_ratio", "error", "seen"]].rename(
    columns={"file_ratio": "times smaller", "error": "test error (%)", "seen": "read in the paper itself"}
)

# %%
files.verify(coded_file.path, shared, digits.inputs[:256])

# %% tags=["plumbing"]
run.claim("coded-beats-fixed", "Bytes with fixed lengths over bytes range-coded, the same weights",
          gap_file.bytes / coded_file.bytes, at_least=1.1)  # fmt: skip
say(
    f"Biases and lengths turn {nominal:.1f} times into {whole:.1f}. At this size that is a detail. For a network of "
    f"three kilobytes it is everything: {biases} biases as floats alone take {4 * biases:,} bytes. "
    "The last row needs no Huffman tree: it is what section 3 is about."
)

# %% [markdown]
# ## 3. Fractions of a bit
#
# Huffman's shortest word has one bit. A mask in which one place in fifty is kept has far less than a bit of news per
# place. **Arithmetic coding** gives up words: it makes *one* number of the whole message. Start with the interval from 0
# to 1. Each symbol takes its share of the interval, as wide as its probability. At the end, any number inside names the
# message, and one with $\lceil -\log_2(\text{width})\rceil + 1$ binary digits lies there, whatever follows it. With exact
# fractions it is a few lines:


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


def decode(number, bits, chances, count):
    """Return the `count` symbols again: at each step, whose share does the number lie in?"""
    point, symbols = Fraction(number, 2**bits), []
    for _ in range(count):
        symbol = max(s for s in range(len(chances)) if sum(chances[:s]) <= point)
        symbols.append(symbol)
        point = (point - sum(chances[:symbol])) / chances[symbol]
    return symbols


# %% [markdown]
# **Predict** the bits of 300 places of which one in fifty is kept. Huffman needs 300.

# %%
generator = np.random.default_rng(SEED)
message = (generator.random(300) < 0.02).astype(int).tolist()
chances = [Fraction(49, 50), Fraction(1, 50)]
number, bits = encode(message, chances)
assert decode(number, bits, chances, len(message)) == message
ideal = -sum(math.log2(chances[symbol]) for symbol in message)

# %% tags=["plumbing"]
run.claim("range-coder", "Bits of the exact coder beyond -log2 of the message's probability", bits - ideal, at_most=2)
say(f"The message takes **{bits} bits**; minus the logarithm of its probability is {ideal:.1f}. It decodes to itself.")

# %% [markdown]
# Exact fractions become long numbers. A **range coder** keeps 32 or 64 bits of them and hands out the digits that are
# settled; the loss is a few bytes for a whole file. We take it from the library `constriction`. What it cannot know are
# the probabilities. They can stand in the file, as a table. Or writer and reader can **learn** them on the way, from the
# symbols that both have already seen, and nothing needs to be stored. After $n$ decisions, $k$ of which were a one:
#
# $$p = \frac{5k + 2}{5n + 4}.$$
#
# That is $(k + 0.4)/(n + 0.8)$, as if 0.4 of each had been seen before the first: a variant of the estimator of Krichevsky and
# Trofimov (exercise 12.3), in whole numbers.
#
# Now learning may be split by **context**: places in a full row are counted apart from places in an empty one. Two rules
# keep it honest. A context may use only what the reader knows already. And both sides must compute exactly the same $p$:
# a last bit that differs on another processor would turn all that follows into noise. So `files.write_coded` uses whole numbers
# only, and rounds $p$ down to a multiple of $2^{-16}$. In a cell:


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


def bits_of_positions(kept):
    """Bits of a matrix of zeros and ones: which columns live, which rows, then each place where both do."""
    learner, columns, rows = Learner(), kept.any(0), kept.any(1)
    for axis, alive in (("column", columns), ("row", rows)):
        for answer in alive.tolist():
            learner.decide(axis, answer)
    for row in kept[rows][:, columns].astype(int).tolist():
        for place, answer in enumerate(row):
            ones = sum(row[:place]) if place < 5 else ones + row[place - 1]
            fullness = ((place + 4) // (ones + 1)).bit_length()
            learner.decide((fullness, min(sum(row[max(place - 4, 0) : place]), 2)), answer)
    return learner.bits


# %% [markdown]
# First it asks which columns and rows live at all; a unit that was removed then costs nothing more. The context of a place
# is how full its row has been so far, and how many of the last four places were kept. Four ways to store where `fc1`'s
# weights stand. **Predict** their order.

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

# %% tags=["plumbing"]
run.claim("same-positions", "Relative difference of the cell's count of bits from the helper's", abs(mine / helper - 1),
          at_most=1e-6)  # fmt: skip
run.record("positions", ways)
pd.Series(ways).map("{:,.0f} bytes".format).to_frame("positions of fc1")

# %%
below = 1 - mine / ways["entropy of the mask"]

# %% tags=["plumbing"]
say(
    f"Learned in contexts, the positions take {abs(below):.0%} {'less' if below > 0 else 'more'} than the entropy of a mask "
    "whose places are independent. No law is broken: they are not independent. Weights crowd in some rows and columns, and "
    "a context that knows it needs less news."
)

# %% [markdown]
# `files.write_coded` does this for a whole network: positions in contexts, values bit by bit in the same way, biases
# and steps beside it, and a header of a few dozen bytes. It goes one step further: the columns of a layer are asked in
# the context of the unit that they read, so that a neuron that died in one layer is not paid for again in the next.
# `files.read` reads the file, with NumPy and `constriction`, without torch.
#
# ## 4. As small as it gets
#
# Now the whole chain, with everything that the notebooks before taught. The dense network is the teacher. It answers a few
# fixed views of each digit once, and all trainings look its answers up (notebook 12, section 5). **Prune** gradually, by
# the **Fisher score**: $w^2 \overline{g^2}$, the "better score" of notebook 02.

# %%
train = mnist.train.take(S.digits)
moved = distillation.fixed_views(train.inputs, views=S.views, pixels=1, seed=SEED)
answers = distillation.ask(dense, moved, examples=len(train), views=S.views)
numbered = data.Split(torch.arange(len(train)), train.labels)
taught = distillation.taught_from(answers, moved)
fitted = pruning.prune_gradually(
    nets.lenet5() if PROFILE == "full" else dense,
    numbered,
    amount=1 - 1 / S.ratio,
    epochs=S.epochs,
    lr=2e-3,
    warmup=0.02,
    every=20,
    batch_size=S.digit_batch,
    loss=taught,
    seed=SEED,
    checkpoint=saved("gradual"),
)
sparse, seconds = fitted.model, sum(row["seconds"] for row in fitted.history)

# %% tags=["plumbing"]
say(f"{measure.count_nonzero(sparse):,} weights left, {accuracy(sparse):.2%} of the validation digits.")

# %% [markdown]
# **Clear.** Some neurons have lost all weights that they read with, or all that read from them. What is left of them, a
# bias here, a weight there, does nothing useful and costs bytes. Dead rows make dead columns in the next layer, and those
# make dead rows in the layer before: go on until nothing changes.

# %%
CHAIN = [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]


def clear(model):
    """Return a copy with masks that leave out, biases included, every unit that reads nothing or that nobody reads."""
    masks = pruning.masks_of(model)
    for layer, following in CHAIN * len(CHAIN):
        rows, columns = masks[f"{layer}.weight"], masks[f"{following}.weight"]
        is_read = columns.transpose(0, 1).reshape(len(rows), -1).any(1)
        alive = rows.flatten(1).any(1) & is_read
        block = alive.repeat_interleave(columns.shape[1] // len(alive))
        masks[f"{layer}.weight"] = rows & alive.view(-1, *[1] * (rows.dim() - 1))
        masks[f"{following}.weight"] = columns & block.view(1, -1, *[1] * (columns.dim() - 2))
        masks[f"{layer}.bias"] = alive
    return pruning.mask(model, masks)


cleared = clear(sparse)
units = {name: int(kept.sum()) for name, kept in pruning.masks_of(cleared).items() if name.endswith("bias")}

# %% tags=["plumbing"]
say(
    f"Alive: {', '.join(f'{count} of {len(dense.get_parameter(name))} in {name[:-5]}' for name, count in units.items())}. "
    f"{measure.count_nonzero(sparse) - measure.count_nonzero(cleared)} useless weights went with them, and accuracy is now "
    f"{accuracy(cleared):.2%}. (It can move: a dead neuron's bias was a constant that others had come to rely on.)"
)

# %% [markdown]
# **Quantize**, and train on with the rounding in place and the masks in force (notebook 09). One step for each layer, not
# one for each channel: hundreds of steps, four bytes each, weigh a lot in so small a file. Then **round the biases** to multiples of
# $2^{-b}$, and the file needs a few bits for each.


# %%
def round_biases(model, power):
    """Return a copy whose biases are multiples of 2^-power."""
    new = modules.copied(model)
    for name, parameter in new.named_parameters():
        if "bias" in name:
            parameter.data = (parameter.data * 2**power).round() / 2**power
    return new


# %%
rounded = quantization.quantize_model(cleared, weights=S.bits, per_channel=False, learned=True)
before_tuning = accuracy(rounded)
fitted = training.fit(
    rounded, numbered, epochs=S.tune, lr=1e-3, optimizer="adam", batch_size=S.digit_batch, loss=taught, seed=SEED,
    checkpoint=saved("tuned"),
)  # fmt: skip
tuned = round_biases(fitted.model, S.bias)
seconds += sum(row["seconds"] for row in fitted.history)

# %% tags=["plumbing"]
run.record("lenet5_seconds", seconds, timing=True)
say(f"Rounded: {before_tuning:.2%}. Trained with the rounding, biases rounded as well: {accuracy(tuned):.2%}.")

# %% [markdown]
# **Code.** And look where the bytes are.

# %%
small = files.write_coded(tuned, run.scratch("lenet5.coded.pack"))
anatomy = pd.DataFrame(files.anatomy(tuned)).T.fillna(0)

# %% tags=["plumbing"]
run.record("anatomy", anatomy.reset_index(names="part"))
anatomy.loc["all"] = anatomy.sum()
anatomy.map("{:,.0f}".format)

# %% [markdown]
# "Plain" is what is written without a code: steps, names and shapes. A file counts if it gives the same network back: to `files.verify`, which compares logits bit for bit, and to a process
# that has just started and never loads torch.

# %%
READ = """
import hashlib, sys
from helpers import files
arrays = files.read(sys.argv[1])
print(hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest(), "torch" in sys.modules)
"""


def read_elsewhere(path):
    """Decode a file in a fresh process; return the digest of its numbers, and whether torch was loaded there."""
    command = [sys.executable, "-c", READ, str(path)]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True).stdout.split()


files.verify(small.path, tuned, digits.inputs[:256])
arrays = files.read(small.path)
digest = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest()

# %% tags=["plumbing"]
run.claim("fresh-process", "Files that a fresh process without torch decodes to other numbers",
          int(read_elsewhere(small.path) != [digest, "False"]), at_most=0)  # fmt: skip

# %%
stages = {
    "dense": dense_file,
    "pruned": files.write_sparse(cleared, run.scratch("pruned.pack")),
    "quantized": files.write_quantized(tuned, run.scratch("quantized.pack")),
    "coded": small,
}
left = measure.count_nonzero(tuned)
codes = files.integers(tuned)
value_bits = sum(int((part.codes != 0).sum()) * part.bits for part in codes.values())
value_entropy = sum(entropy(part.codes[part.codes != 0].tolist()) for part in codes.values())
waterfall = pd.DataFrame(
    {
        "file": {name: packed.bytes for name, packed in stages.items()},
        "nominal: values only": {"dense": 4 * measure.count_weights(dense), "pruned": 4 * left, "quantized": value_bits / 8,
                                 "coded": value_entropy / 8},
    }
)  # fmt: skip

# %% tags=["plumbing"]
run.record("waterfall", waterfall.reset_index(names="step"))
factor = dense_file.bytes / small.bytes
fig = show.bars(
    waterfall, title=f"{factor:,.0f} times smaller in three steps", xlabel="bytes (log scale)", label="{:,.0f}"
)
fig.axes[0].set_xscale("log")
fig.axes[0].set_xlim(right=2e7)
show.figure(fig, alt=f"Bytes after each step. {show.in_words(waterfall)}", table=waterfall)

# %%
steps = waterfall["file"].shift() / waterfall["file"]

# %% tags=["plumbing"]
run.claim("lenet5-file", "LeNet-5: times smaller than the dense file, read back, same logits", factor,
          at_least=200 if PROFILE == "full" else 60)  # fmt: skip
run.claim("coding-pays", "Bytes of the quantized file over those of the coded one", steps["coded"], at_least=1.2)
hidden = 1 - waterfall.loc["coded", "nominal: values only"] / small.bytes
say(
    f"Pruning made the file {steps['pruned']:.1f} times smaller, quantization {steps['quantized']:.1f}, coding "
    f"{steps['coded']:.2f}: **{factor:,.0f} times** in all, {small.bytes:,} bytes. Of these, {hidden:.0%} hold "
    "positions, biases and the header, which an account of values alone leaves out."
)

# %% [markdown]
# ## 5. In which order?
#
# Prune, then quantize? Quantize, then prune? Or both from the first step on? And how much of it is the teacher's? Two small
# races, on LeNet-5 and on the small network for photographs. Within a race all have the same start, the same images, the same
# number of steps, and prune by the same ratio to the same bits. What differs is what happens when. One thing more comes with
# that: what is done at once is trained in one go, with one cycle of the learning rate; the others have two of half the length.
#
# A quantized network is ranked here by the magnitudes that it computes with, its *codes*. Many weights share one, and which of
# them go is left to chance. That belongs to this order, unless you rank by the hidden float weights.


# %%
def race(net, start, split, losses, seeds, *, epochs, ratio, bits, **options):
    """Return the networks that each order makes of `start` with each loss, one for each seed."""

    def cut(model):
        plain = quantization.bake(model)  # magnitudes of the weights that it computes with
        return pruning.mask(plain, pruning.global_masks(plain, 1 - 1 / ratio))

    def in_bits(model):
        return quantization.quantize_model(model, weights=bits, per_channel=False, learned=True)

    def make(order, loss, seed):
        def train_on(model, phase, phases=1):
            return training.fit(
                model, split, epochs=phases * epochs, loss=losses[loss], seed=seed + 1_000 * phase, progress=False,
                checkpoint=saved(f"race {net} {order} {loss} {seed} {phase}"), **options,
            ).model  # fmt: skip

        if order == "prune, then quantize":
            return train_on(in_bits(train_on(cut(start), 0)), 1)
        if order == "quantize, then prune":
            return train_on(in_bits(cut(train_on(in_bits(start), 0))), 1)
        return train_on(in_bits(cut(start)), 0, phases=2)

    orders = "prune, then quantize", "quantize, then prune", "both at once"
    return {(order, loss): [make(order, loss, seed) for seed in seeds] for order in orders for loss in losses}


def by_teacher(answers, view):
    """The loss with a teacher, and the one that takes the same views but hears the labels only."""
    return {
        name: distillation.taught_from(answers, view, loss=partial(distillation.mixed_loss, share=share))
        for name, share in {"taught": 0.9, "labels": 0.0}.items()
    }


# %%
racer = checkpoints.load("cifar_small")
few_photos = cifar.train.take(S.photo_order[0])
few_turned = distillation.fixed_views(few_photos.inputs, views=S.photo_views, mirror=True, seed=SEED)
few_answers = distillation.ask(racer, few_turned, examples=len(few_photos), views=S.photo_views)
REPEATS = S.order[2]
SEEDS = range(SEED * REPEATS, (SEED + 1) * REPEATS)  # no seed of one run is a seed of another
photo_options = dict(lr=S.lr / 5, batch_size=32, precision=training.fast_precision())
races = {}
for net, start, (count, epochs, _, ratio, bits), numbers, losses, options in (
    ("LeNet-5", dense, S.order, numbered, by_teacher(answers, moved), dict(lr=1e-3, optimizer="adam", batch_size=32)),
    ("cifar_small", racer, S.photo_order, data.Split(torch.arange(len(few_photos)), few_photos.labels),
     by_teacher(few_answers, few_turned), photo_options),
):  # fmt: skip
    found = race(net, start, numbers.take(count), losses, SEEDS, epochs=epochs, ratio=ratio, bits=bits, **options)
    races |= {(net, *key): networks for key, networks in found.items()}
VALIDATE = {"LeNet-5": digits, "cifar_small": photos}
finish = pd.DataFrame(
    {key: [accuracy(net, VALIDATE[key[0]]) for net in found] for key, found in races.items()}, index=SEEDS
)
table = pd.DataFrame(
    {
        "validation accuracy (%)": (100 * finish.mean()).map("{:.2f}".format),
        "spread": (100 * finish.std()).map("{:.2f}".format),
        "coded file (bytes), first seed": [
            f"{files.write_coded(found[0], run.scratch('race.pack')).bytes:,}" if loss == "taught" else "–"
            for (*_, loss), found in races.items()
        ],
    }
)

# %% tags=["plumbing"]
run.record(
    "orders",
    [dict(net=net, order=order, loss=loss, accuracies=list(finish[net, order, loss])) for net, order, loss in finish],
)
table.rename_axis(["network", "order", "loss"])

# %% tags=["plumbing"]
for net, start in {"LeNet-5": dense, "cifar_small": racer}.items():
    count, epochs, _, ratio, bits = S.order if net == "LeNet-5" else S.photo_order
    of_net = finish[net]
    first, *others = of_net.columns.unique(0)
    with_teacher = of_net.xs("taught", axis=1, level=1)
    found = zip(others, statistics.differences(with_teacher, [(first, other) for other in others]), strict=True)
    verdicts = [f"`{first}` against `{other}`: {said}" for other, said in found]
    by_loss = of_net.T.groupby(level=1).mean().T
    verdicts.append(f"the teacher, mean over the orders: {statistics.difference(by_loss, 'taught', 'labels')}")
    say(
        f"**{net}** ({accuracy(start, VALIDATE[net]):.2%} before), {ratio} times fewer weights, {bits} bits, {REPEATS} seeds, "
        f"{count:,} images and {2 * epochs} epochs; paired by seed, in points with the 95 % interval:\n\n- "
        + "\n- ".join(verdicts)
    )
run.claim("prune-first-learns", "LeNet-5, prune, then quantize: mean validation accuracy with the worse loss",
          finish["LeNet-5"]["prune, then quantize"].mean().min(), at_least=0.9)  # fmt: skip

# %% [markdown]
# Where it says *not to be told apart*, this race has not decided it, and with two seeds it can hardly decide anything: the
# interval of two differences is 9 times their spread to each side. Whoever tells you that the order is known should show you an
# interval. So here are the published runs, with more images, more seeds, and a higher ratio:

# %%
collected = {}
for rows in evidence.measurements("15_combine", "orders").values():
    for row in rows:
        collected.setdefault((row["net"], row["order"], row["loss"]), []).extend(row["accuracies"])
many = pd.DataFrame(collected)
decided = []
for net in many.columns.unique(0) if len(many) else []:
    by_order, pruned_first = many[net].T.groupby(level=0).mean().T, many[net]["prune, then quantize"]
    usual = "prune, then quantize"
    orders = statistics.differences(by_order, [("both at once", usual), ("quantize, then prune", usual)])
    decided.append(
        f"**{net}**, {len(many)} seeds: `both at once` against `prune, then quantize`: "
        f"{orders[0]}; `quantize, then prune` against it: {orders[1]}; the teacher against labels alone, "
        f"pruning first: {statistics.difference(pruned_first, 'taught', 'labels')}"
    )

# %% tags=["plumbing"]
say("- " + "\n- ".join(decided) if decided else "No full run is published yet.")
(100 * many.mean()).map("{:.2f}".format).unstack() if len(many) else None

# %%
broken = [f"`{order}` on {net}" for net, order, _ in many if many[net][order].mean().max() < 0.5]
handicapped = [line.split("**")[1] for line in decided if "pruning first: lower" in line]

# %% tags=["plumbing"]
say(
    (f"An order can break a network: {', '.join(dict.fromkeys(broken))} did not recover. " if broken else "")
    + (
        f"And a teacher can be a handicap: on {' and '.join(handicapped)} the labels alone did better. Cut down so "
        "far, in so few epochs, a student may have no room for a teacher's second thoughts. A short race does not speak for the "
        "long training of section 4, where the two were not compared."
        if handicapped
        else ""
    )
)

# %% [markdown]
# ## 6. Thin and dense
#
# The sparse network is small on the disk and nowhere else: its matrices are as large as ever. Take out whole filters and
# neurons instead (notebook 04), and what is left is an ordinary, tiny, dense network, fast in every runtime. First in one
# cut: the filters and neurons with the highest Taylor score stay.

# %%
scores = pruning.taylor_scores(dense, train.take(min(1_000, len(train))), names=["conv1", "conv2", "fc1"])


def cut_out(widths):
    """LeNet-5 with so many filters and neurons: those with the highest scores."""
    keep = {
        name: pruning.keep_largest(s, 1 - width / len(s))
        for (name, s), width in zip(scores.items(), widths, strict=True)
    }
    return pruning.remove_filters(dense, keep, TWO)


def train_thin(model, epochs, lr, name, **options):
    options |= dict(optimizer="adam", batch_size=S.digit_batch, loss=taught, seed=SEED, checkpoint=saved(name))
    return training.fit(model, numbered, epochs=epochs, lr=lr, **options).model


at_once = train_thin(cut_out(S.widths), S.thin[0], S.thin_lr, "cut at once")

# %% tags=["plumbing"]
say(
    f"{'-'.join(map(str, S.widths))}-10: {measure.count_weights(at_once):,} weights, "
    f"{measure.count_weights(dense) / measure.count_weights(at_once):.0f} times fewer, {accuracy(at_once):.2%}."
)

# %% [markdown]
# Most of these weights are `fc1`'s, and a filter that goes takes sixteen of its inputs along, the useful ones too. But an
# input can go alone. `fc1` reads one number for each place of each map, the corners included, where there is little ink. So start
# a little wider and let **inputs and neurons of `fc1`** go while the network learns: the one that loses least *for each
# weight that it frees*, again and again, until the budget is met. The loss is estimated by the Fisher score of section 4,
# summed over all weights that would go.


# %%
def mask_of(layer):
    return layer.parametrizations.weight[0].mask


def narrow(model, at, *, budget, begin=0.1, end=0.6):
    """Mask the cheapest inputs and neurons of fc1: between `begin` and `end`, equal steps take the same share."""
    every = max(1, at.total // 500)
    if at.step % every or not begin < at.progress <= end + every / at.total:
        return
    scores = pruning.fisher_scores(model, at.optimizer)
    read, alive = mask_of(model.fc1).any(0), mask_of(model.fc2).any(0)
    first, classes = measure.count_weights(model), len(mask_of(model.fc2))
    others = first - mask_of(model.fc1).numel() - mask_of(model.fc2).numel()
    target = first * (budget / first) ** min(1, (at.progress - begin) / (end - begin))
    while others + int(alive.sum()) * (int(read.sum()) + classes) > target:
        by_input = scores["fc1.weight"][alive].sum(0) / alive.sum()
        by_neuron = scores["fc1.weight"][:, read].sum(1) + scores["fc2.weight"].sum(0)
        by_neuron = by_neuron / (read.sum() + classes)
        by_input[~read], by_neuron[~alive] = torch.inf, torch.inf
        if by_input.min() < by_neuron.min():
            read[by_input.argmin()] = False
        else:
            alive[by_neuron.argmin()] = False
    mask_of(model.fc1).copy_(alive[:, None] & read)
    mask_of(model.fc2).logical_and_(alive)


# %%
start = cut_out(S.wide)
everything = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in pruning.weights_of(start).items()}
narrowed = train_thin(
    pruning.mask(start, everything), S.thin[0], S.thin_lr, "narrowed", on_step=partial(narrow, budget=S.budget),
    key=f"narrowed to {S.budget}",
)  # fmt: skip
narrowed = clear(narrowed)
read = pruning.masks_of(narrowed)["fc1.weight"].any(0)  # by filter, row and column of the last maps
by_place = pd.DataFrame(read.reshape(-1, 4, 4).sum(0).tolist())

# %% tags=["plumbing"]
run.record("read_by_place", by_place)
by_place.rename_axis(index="row", columns="column")

# %% [markdown]
# The table counts, for each place of the 4 × 4 maps, from how many filters `fc1` still reads there.

# %%
thin = {"cut at once": at_once, "narrowed while learning": narrowed}

# %% tags=["plumbing"]
say(
    f"From {'-'.join(map(str, S.wide))}-10 to {int(read.sum())} inputs and "
    f"{int(pruning.masks_of(narrowed)['fc1.bias'].sum())} neurons of fc1. "
    + "; ".join(
        f"{name}, {measure.count_nonzero(model):,} weights: {accuracy(model):.2%}" for name, model in thin.items()
    )
    + f". After {S.thin[0]} epochs, one run each, narrowing makes {100 * (accuracy(narrowed) - accuracy(at_once)):+.2f} points."
)

# %% [markdown]
# The better of the two on validation goes on: rounded to five bits, trained a little more, biases rounded, coded. For the
# clock, the masks become a smaller matrix, and a selection of columns before it.


# %%
class Select(torch.nn.Module):
    """Passes on the `columns` of what it gets."""

    def __init__(self, columns):
        super().__init__()
        self.register_buffer("columns", columns)

    def forward(self, x):
        return x[:, self.columns]


def as_dense(model):
    """Return an ordinary network with the same logits, whose fc1 has no neuron and no input too many."""
    new = pruning.remove_neurons(quantization.bake(model), "fc1", "fc2")
    used = (new.fc1.weight != 0).any(0)
    small = torch.nn.Linear(int(used.sum()), len(new.fc1.weight))
    small.load_state_dict({"weight": new.fc1.weight[:, used], "bias": new.fc1.bias})
    new.fc1 = torch.nn.Sequential(Select(used.nonzero().flatten()), small)
    return new


# %%
origin = max(thin, key=lambda name: accuracy(thin[name]))
thin_rounded = quantization.quantize_model(thin[origin], weights=5, per_channel=False, learned=True)
thin_small = round_biases(train_thin(thin_rounded, S.thin[1], 1e-3, "thin rounded"), S.bias)
thin_file = files.write_coded(thin_small, run.scratch("thin.coded.pack"))
files.verify(thin_file.path, thin_small, digits.inputs[:256])
thin_dense = as_dense(thin_small)
weights = measure.count_weights(thin_dense)
difference = (training.predict(thin_dense, digits.inputs) - training.predict(thin_small, digits.inputs)).abs().max()

# %% tags=["plumbing"]
run.claim(
    "same-logits", "Largest difference of a logit between masks and small matrices", float(difference), at_most=1e-4
)
say(
    f"Chosen: {origin}. In five bits {accuracy(thin_small):.2%}, {weights:,} weights and a file of "
    f"**{thin_file.bytes:,} bytes**, {dense_file.bytes / thin_file.bytes:,.0f} times smaller than LeNet-5's. The sparse one "
    f"of section 4: {small.bytes:,}."
)

# %% [markdown]
# **Predict** the speed-ups of the two small networks, the sparse and the thin one, in ONNX Runtime at batch 1.

# %%
graph = runtime.export_onnx(dense, TWO, run.scratch("lenet5.onnx"))
graphs = {
    "LeNet-5": graph,
    "sparse": runtime.export_like(quantization.bake(tuned), graph, TWO, run.scratch("sparse.onnx")),
    "thin": runtime.export_onnx(thin_dense, TWO, run.scratch("thin.onnx")),
}
sessions = {name: runtime.session(path) for name, path in graphs.items()}
calls = {name: partial(runtime.run, session, ONE.numpy()) for name, session in sessions.items()}
again = partial(runtime.run, runtime.session(graph), ONE.numpy())
digit_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
measure.verdict_table(digit_clock)

# %% tags=["plumbing"]
run.claim("thin-is-faster", "Speed-up of the thin network, ONNX Runtime, batch 1", digit_clock["thin"].ratio, at_least=1.3,
          timing=True, interval=digit_clock["thin"].cleared)  # fmt: skip
say(
    f"Both files are small. On the clock the sparse network is: **{digit_clock['sparse'].verdict}**; the thin one: "
    f"**{digit_clock['thin'].verdict}**, by a factor of {digit_clock['thin'].ratio:.1f}. A mask helps the file, a removal helps both."
)

# %% [markdown]
# ## 7. Photographs: two files from one set of weights
#
# For photographs time matters as much as bytes. So filters go first: fewer multiplications. Then the teacher. Then
# quantization, trained: few bits for the layers in the middle, eight for the first and the last, as in notebook 09. From these weights, BatchNorm folded, come **two files**: a coded one to store and to send, and an int8
# one for the runtime, whose weights and activations are rounded once more, to the runtime's own steps. Each is stated with its own size and its own accuracy; a ratio that takes the size of the one and
# the speed of the other belongs to no file at all.

# %%
big = checkpoints.load(S.net)
PHOTO, TWO_PHOTOS = photos.inputs[:1], photos.inputs[:2]
seen = cifar.train.take(S.photos)
groups = pruning.groups(big, TWO_PHOTOS)
photo_scores = pruning.group_scores(pruning.taylor_scores(big, cifar.train.take(S.scored)), groups)
keep = pruning.choose_filters(big, photo_scores, TWO_PHOTOS, macs_ratio=S.cut, scope="global", round_to=S.round_to)
lean = pruning.remove_filters(big, keep, TWO_PHOTOS)
lean = pruning.refresh_batchnorm(lean, seen.inputs[: S.scored])
turned = distillation.fixed_views(seen.inputs, views=S.photo_views, mirror=True, seed=SEED)
folded = quantization.fold_batchnorm(big, TWO_PHOTOS)
photo_answers = distillation.ask(folded, turned, examples=len(seen), views=S.photo_views)
taught_photos = distillation.taught_from(photo_answers, turned)
numbered_photos = data.Split(torch.arange(len(seen)), seen.labels)
macs = {name: measure.count_macs(net, PHOTO) for name, net in {"dense": big, "lean": lean}.items()}

# %% tags=["plumbing"]
say(
    f"{macs['dense'] / macs['lean']:.2f} times fewer MACs, {measure.count_weights(big) / measure.count_weights(lean):.2f} times fewer weights."
)


# %%
def train_photos(model, epochs, lr, name):
    """Train on the photographs' views, taught; return the network and the seconds."""
    fitted = training.fit(
        model, numbered_photos, epochs=epochs, lr=lr, batch_size=S.batch, precision=training.fast_precision(),
        loss=taught_photos, seed=SEED, checkpoint=saved(name),
    )  # fmt: skip
    return fitted.model, sum(row["seconds"] for row in fitted.history)


retrained, first_seconds = train_photos(lean, S.retrain[0], S.lr, "lean")
four = quantization.bits_by_layer(retrained, S.photo_bits, ends=8)
four_bits = quantization.quantize_model(retrained, weights=four, learned=True)
four_bits, more_seconds = train_photos(four_bits, S.retrain[1], S.lr / 10, "lean-rounded")

# %% tags=["plumbing"]
run.record("photo_seconds", first_seconds + more_seconds, timing=True)
combined = quantization.fold_batchnorm(four_bits, TWO_PHOTOS)
path = {"dense": big, "filters out": lean, "taught": retrained, f"{S.photo_bits} bits, folded": combined}
road = {name: accuracy(net, photos) for name, net in path.items()}
run.record("road", road)
pd.Series(road).map("{:.1%}".format).to_frame("validation accuracy")

# %%
photo_graph = runtime.export_onnx(quantization.fold_batchnorm(big, TWO_PHOTOS), TWO_PHOTOS, run.scratch("dense.onnx"))
float_graph = runtime.export_like(quantization.bake(combined), photo_graph, TWO_PHOTOS, run.scratch("lean.onnx"))
int8 = runtime.quantize_static(float_graph, cifar.train.take(S.calibration), run.scratch("int8.onnx"))
photo_dense = files.write_dense(big, run.scratch("photos.dense.pack"))
photo_files = {
    "dense": photo_dense,
    "filters removed": files.write_dense(retrained, run.scratch("photos.lean.pack")),
    "quantized": files.write_quantized(combined, run.scratch("photos.quantized.pack")),
    "coded": files.write_coded(combined, run.scratch("photos.coded.pack")),
}
files.verify(photo_files["coded"].path, combined, photos.inputs[:256])
photo_bytes = {name: packed.bytes for name, packed in photo_files.items()} | {
    "int8, for the runtime": int8.stat().st_size
}

# %% tags=["plumbing"]
run.record("photo_bytes", photo_bytes)
fig = show.bars(
    {name: size / 1e3 for name, size in photo_bytes.items()},
    title=f"The coded file is {photo_dense.bytes / photo_bytes['coded']:.1f} times smaller",
    xlabel="kilobytes (1,000 bytes)",
    label="{:,.0f}",
)
table = pd.DataFrame({"bytes": photo_bytes})
show.figure(fig, alt=f"Bytes of the photographs' network. {show.in_words(table)}", table=table)

# %% [markdown]
# Now the clock, one photograph at a time, on one thread. The base line is what most people run: the dense network in eager
# PyTorch. But the fair one is the dense network in the *same* runtime, so that is there, too.

# %%
photo_sessions = {
    "dense, ONNX Runtime": runtime.session(photo_graph),
    "lean, ONNX Runtime": runtime.session(float_graph),
    "lean, int8, ONNX Runtime": runtime.session(int8),
}
calls = {"dense, eager": partial(big, PHOTO)}
calls |= {name: partial(runtime.run, session, PHOTO.numpy()) for name, session in photo_sessions.items()}
with torch.inference_mode():
    again = partial(modules.copied(big), PHOTO)
    photo_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
    del calls["dense, eager"]  # and once more, against the dense network in the runtime
    again = partial(runtime.run, runtime.session(photo_graph), PHOTO.numpy())
    runtime_clock = measure.compare(measure.time_interleaved(calls, rounds=S.timings, threads=1, control=again))
pd.concat(
    {"against eager": measure.verdict_table(photo_clock), "against the runtime": measure.verdict_table(runtime_clock)}
)

# %%
engine = photo_clock["dense, ONNX Runtime"].ratio
lean_files = photo_clock["lean, int8, ONNX Runtime"], photo_clock["lean, ONNX Runtime"]
integer, floating = (verdict.ratio for verdict in lean_files)
better = max(lean_files, key=lambda verdict: verdict.ratio)
in_runtime = runtime_clock["lean, int8, ONNX Runtime"].ratio
capabilities = torch.cpu.get_capabilities()
VNNI = any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "i8mm"))
photo_ratio = photo_dense.bytes / photo_bytes["coded"]

# %% tags=["plumbing"]
run.claim("photo-file", "Photographs: times smaller than the dense file, read back, same logits", photo_ratio,
          at_least=20 if PROFILE == "full" else 10)  # fmt: skip
run.claim("photo-speed", "Speed-up of the lean network over dense eager PyTorch, batch 1, the better file",
          better.ratio, at_least=4 if PROFILE == "full" else 1.3, timing=True, interval=better.cleared)  # fmt: skip
if PROFILE == "full" and VNNI:
    run.claim("photo-int8-eager", "int8: speed-up over dense eager PyTorch, batch 1, mean over the seeds", integer,
              at_least=10, over_seeds=True, timing=True, interval=lean_files[0].cleared)  # fmt: skip
    run.claim("photo-int8-runtime", "int8: speed-up over the dense network in ONNX Runtime, mean over the seeds",
              in_runtime, at_least=3, over_seeds=True, timing=True,
              interval=runtime_clock["lean, int8, ONNX Runtime"].cleared)  # fmt: skip
say(
    f"From eager PyTorch to int8 it is a factor of {integer:.1f}. The runtime alone gives {engine:.1f} of it; the rest, "
    f"**{in_runtime:.1f}**, is what was removed and rounded. Removing filters gave "
    f"{runtime_clock['lean, ONNX Runtime'].ratio:.1f}, integers {integer / floating:.1f} on top."
)

# %% [markdown]
# ## 8. The test images, once


# %%
test_digits, test_photos = mnist.test.take(S.tested), cifar.test.take(S.tested)
subjects = {
    "lenet5-dense": (dense, test_digits),
    "lenet5-coded": (files.load_into(nets.lenet5(), small.path).eval(), test_digits),
    "lenet5-thin-coded": (files.load_into(thin_small, thin_file.path).eval(), test_digits),
    f"{S.net}-dense": (big, test_photos),
    f"{S.net}-combined": (combined, test_photos),
    f"{S.net}-combined-int8": (runtime.as_module(runtime.session(int8, threads=torch.get_num_threads())), test_photos),
}
tests = {name: run.test(name, model, split) for name, (model, split) in subjects.items()}
pd.DataFrame(
    {"test accuracy": {name: f"{test.accuracy:.2%}" for name, test in tests.items()},
     "file (bytes)": {name: f"{size:,}" for name, size in {
         "lenet5-dense": dense_file.bytes, "lenet5-coded": small.bytes, "lenet5-thin-coded": thin_file.bytes,
         f"{S.net}-dense": photo_dense.bytes, f"{S.net}-combined": photo_bytes["coded"],
         f"{S.net}-combined-int8": int8.stat().st_size}.items()}}
).rename_axis(f"on {S.tested:,} test images")  # fmt: skip

# %%
errors = {name: 1 - test.accuracy for name, test in tests.items()}
lost = {file: errors[f"{S.net}-{file}"] - errors[f"{S.net}-dense"] for file in ("combined", "combined-int8")}

# %% tags=["plumbing"]
if PROFILE == "full":
    run.claim(
        "bytes", "LeNet-5: bytes of the coded file, mean over the seeds", small.bytes, at_most=4_100, over_seeds=True
    )
    run.claim(
        "error",
        "LeNet-5, coded: test error, mean over the seeds",
        errors["lenet5-coded"],
        at_most=0.01,
        over_seeds=True,
    )
    run.claim("thin-weights", "Thin network: weights", weights, at_most=2_750)
    run.claim("thin-error", "Thin network: test error, mean over the seeds", errors["lenet5-thin-coded"], at_most=0.01,
              over_seeds=True)  # fmt: skip
    for file, value in lost.items():
        run.claim(
            f"photos-{file}", f"{file}: test accuracy lost, mean over the seeds", value, at_most=0.01, over_seeds=True
        )
else:
    run.claim("quick-error", "LeNet-5, coded: test error", errors["lenet5-coded"], at_most=0.04)
    run.claim("quick-thin-error", "Thin network, coded: test error", errors["lenet5-thin-coded"], at_most=0.06)
    for file, value in lost.items():
        run.claim(f"quick-photos-{file}", f"{file}: test accuracy lost", value, at_most=0.10)

# %% [markdown]
# ## 9. Exercises
#
# **15.1 · Words from lengths.** A file need not store Huffman's tree: the *lengths* of the words are enough, if writer and
# reader make the words in the same way. The **canonical** code goes through the symbols by length, and among equal
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


exercises.check("15.1", canonical_words)

# %% [markdown]
# **15.2 · Predict the file.** A matrix of 600 × 700 numbers. One place in fifty is not zero, anywhere, at random. There stands
# one of four values: the first half of the time, the second a quarter, the other two an eighth each. How many bytes does
# `files.write_coded` need? Return your number; within three percent is fine.


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
places = generator.random((600, 700)) < 1 / 50
matrix = np.where(places, generator.choice([-2, -1, 1, 2], places.shape, p=[1 / 2, 1 / 4, 1 / 8, 1 / 8]), 0)
measured = files.write_coded({"x": matrix.astype(np.float32)}, run.scratch("exercise.pack")).bytes
exercises.check("15.2", predicted_bytes, measured=measured)

# %% [markdown]
# **15.3 · Learn as you go.** Return how many bits a list of zeros and ones takes if the coder learns as it goes: with $k$
# ones among the $n$ symbols *before*, the next one is a 1 with probability $(k + \frac12)/(n + 1)$. (That is the
# original estimator of Krichevsky and Trofimov.) Then ask yourself why the list's own entropy is less, and by how much.


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


exercises.check("15.3", learned_bits)

# %% [markdown]
# The entropy of the list knows the share of ones beforehand, and says nothing of how to tell it. The coder learns the share on
# the way, and that costs about $\frac12 \log_2 n + 1$ bits.
#
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **The recipe of 2016**, rebuilt: {accounts['nominal: values, gaps, tables']:.0f} times by its own account, "
    f"{accounts['a real file, range-coded']:.0f} times as a range-coded file.\n"
    + "".join(f"- **The order**, published, {line}.\n" for line in decided)
    + f"- **LeNet-5, pruned, quantized, coded**: {small.bytes:,} bytes, **{factor:,.0f} times** smaller, "
    f"{100 * errors['lenet5-coded']:.2f} % test error (dense {100 * errors['lenet5-dense']:.2f} %).\n"
    f"- **LeNet-5, thin and dense**: {weights:,} weights, {thin_file.bytes:,} bytes, {100 * errors['lenet5-thin-coded']:.2f} % "
    f"test error, {digit_clock['thin'].ratio:.1f} times the speed of LeNet-5 in ONNX Runtime.\n"
    f"- **Photographs, one set of weights**: coded {photo_bytes['coded']:,} bytes ({photo_ratio:.1f} times smaller, "
    f"{100 * lost['combined']:+.2f} points of error); int8 {int8.stat().st_size:,} bytes "
    f"({100 * lost['combined-int8']:+.2f} points), {integer:.1f} times the speed of eager PyTorch, {in_runtime:.1f} "
    "times that of the dense network in the same runtime."
)


# %%
def kept_latency(clock, name, batch=1):
    return [r for r in measure.latency_records(clock, runtime="onnxruntime", batch=batch) if r["variant"] == name]


recorded = {
    "lenet5-dense": ("mnist", None, "dense", [], dense, dense_file.path, kept_latency(digit_clock, "LeNet-5")),
    "lenet5-coded": ("mnist", "lenet5-dense", "pruned, quantized, range-coded, taught", ["weights pruned", "fewer bits", "a teacher"],
                     tuned, small.path,
                     kept_latency(digit_clock, "sparse")),
    "lenet5-thin-coded": ("mnist", "lenet5-dense", "filters, neurons and inputs out, 5 bits, range-coded, taught",
                          ["filters removed", "fewer bits", "a teacher"], thin_dense, thin_file.path, kept_latency(digit_clock, "thin")),
    f"{S.net}-dense": ("cifar10", None, "dense", [], big, photo_dense.path, []),
    f"{S.net}-combined": ("cifar10", f"{S.net}-dense", "filters out, taught, 4-bit weights, range-coded",
                          ["filters removed", "fewer bits", "a teacher"], combined,
                          photo_files["coded"].path, kept_latency(runtime_clock, "lean, ONNX Runtime")),
    f"{S.net}-combined-int8": ("cifar10", f"{S.net}-dense", "the same weights, int8",
                               ["filters removed", "fewer bits", "a teacher"], combined, int8,
                               kept_latency(runtime_clock, "lean, int8, ONNX Runtime")),
}  # fmt: skip

# %% tags=["plumbing"]
for name, (task, base, method, techniques, model, file, latency) in recorded.items():
    run.model(name, task=task, base=base, method=method, techniques=techniques, accuracy=tests[name].accuracy, weights=measure.count_weights(model),
              nonzero=measure.count_nonzero(model), macs=measure.count_macs(model, ONE if task == "mnist" else PHOTO),
              file=file, latency=latency)  # fmt: skip
run.finish()

# %% [markdown]
# **Remember**
# - Pruning, quantization and coding multiply, because each removes something else: weights, bits of a weight, and what the
#   statistics of the rest let one guess.
# - Huffman pays whole bits; a range coder pays $-\log_2 p$. The better the guess, the smaller the file: all of the art is
#   in the contexts.
# - Writer and reader must compute the same probabilities to the last bit. Whole numbers do.
# - At three kilobytes everything counts: biases, steps, names. A ratio of values alone is not a ratio of files.
# - In which order? Ask a race with several seeds, not a recipe.
# - The sparse net is for the disk, the thin one for the clock. Say which file a number belongs to.
#
# **Read**
# - Shannon 1948, *A Mathematical Theory of Communication*; Huffman 1952, *A Method for the Construction of
#   Minimum-Redundancy Codes*.
# - Han, Mao and Dally 2016, *Deep Compression*: the chain, and its accounts.
# - Oktay, Ballé, Singh and Shrivastava 2020, *Scalable Model Compression by Entropy Penalized Reparameterization*: train
#   for the length of the file itself.
# - Havasi, Peharz and Hernández-Lobato 2019, *Minimal Random Code Learning*: smaller still, without any code of weights.
# - Bamler 2022, *Understanding Entropy Coding With Asymmetric Numeral Systems (ANS)*: by the author of `constriction`.
#
# **Next**: notebook 16 goes to a runtime: threads, batches, sparse kernels, and a command that answers from such a file without
# PyTorch.
