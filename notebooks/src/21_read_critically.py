# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [21_read_critically]
# ---

# %% [markdown]
# # 21 · Read critically: does a snippet do what it says?
#
# This course grew from four articles. They ask good questions, and three of them answer with code. Code in an article is
# read a thousand times and run, perhaps, never: not by the reader, who believes it, and not always by the author, who
# wrote it late, from memory, for a version that is gone. It happens to all of us. So here the snippets are run. Most of
# them stop with an error, one runs to its end and does something else, and one nearly does what it says. What would have told
# us? Mostly one line.
#
# **You will be able to**
# - run somebody's code in a process that knows nothing, and read off what it really does;
# - tell code that stops from code that goes on and does something else;
# - write nine short checks, and say for each what it cannot see;
# - decide whether a network was made smaller, or only has zeros in it;
# - name the right calls for quantization and pruning in TensorFlow and Keras (in the appendix).
#
# **Before this**: notebooks 02, 04, 07 and 12. The snippets' subjects are theirs.

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import contextlib
import importlib.util
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from helpers import checkpoints, data, distillation, evidence, exercises, measure, pruning, show, training
from helpers.capstone import snippets
from helpers.core import modules
from helpers.data import Split
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("21_read_critically", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("21_read_critically"))

# %% [markdown]
# Does it do what it says? Here is the answer for every piece of the articles' PyTorch code, run as it stands. A *check* is a line
# or two that looks at what the code has done; this page writes nine of them.

# %% tags=["plumbing", "answer"]
FRESH = "runs in a fresh process"
tables = [
    pd.DataFrame(found).set_index("version") for found in evidence.measurements("21_read_critically", "checks").values()
]
if tables:
    whole = {"stops with an error": set(), "runs, and another check fires": set(), "passes each check": set()}
    by_run = []
    for checked in tables:
        as_printed = checked[checked[FRESH] != ""]
        stops, fires = as_printed[FRESH] == "FIRES", (as_printed.drop(columns=FRESH) == "FIRES").any(axis=1)
        groups = dict(zip(whole, (stops, ~stops & fires, ~stops & ~fires), strict=True))
        by_run.append({label: int(chosen.sum()) for label, chosen in groups.items()})
        for label, chosen in groups.items():
            whole[label] |= set(as_printed.index[chosen])
    found = pd.DataFrame(by_run)
    count = len(as_printed)
    fig, ax = plt.subplots(figsize=(8, 2.6))
    for place, (label, colour) in enumerate(
        zip(whole, (show.COLOURS[4], show.COLOURS[1], show.COLOURS[2]), strict=True)
    ):
        ax.barh(place, found[label].mean(), color=colour, height=0.55)
        names = f": {'; '.join(sorted(whole[label]))}" if 0 < len(whole[label]) < 4 else ""
        ends = dict.fromkeys((found[label].min(), found[label].max()))
        ax.text(found[label].max() + 0.1, place, " to ".join(map(str, ends)) + names, va="center", fontsize=10.5)
    ax.set_yticks(range(len(whole)), list(whole))
    ax.set(xlim=(0, count), ylim=(len(whole) - 0.5, -0.5), xlabel=f"of {count} pieces of code")
    ax.grid(False, axis="y")
    passing = found["passes each check"]
    good = str(passing.max()) if passing.nunique() == 1 else f"at most {passing.max()}"
    title = f"Of {count} pieces, {'none' if not passing.any() else good} {'do' if passing.max() > 1 else 'does'} all that the text says"
    fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    table = found.T.set_axis([f"run {i + 1}" for i in range(len(found))], axis=1)
    show.figure(fig, alt=f"{title}. By run, {show.in_words(table)}", table=table)
    agree = (found.nunique() == 1).all()
    say(
        f"{'All' if agree else 'Not all'} {len(tables)} published runs {'agree' if agree else 'say the same'}. The two that run differ in weight: one leaves undone "
        "what its text is about, the other does it, and lets statistics drift that the text calls frozen (sections 6 and 8)."
        if whole["runs, and another check fires"] == {"channel pruning", "transfer, as published"}
        else f"{'All' if agree else 'Not all'} {len(tables)} published runs {'agree' if agree else 'say the same'}."
    )
else:
    say("No full run of this page is published, so there is no picture of its result yet.")

# %% [markdown]
# The idea of the page in one picture. Running the code is the first check, not the last.

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(9.5, 3.9))


def box(x, y, text, colour, width=2.6):
    """A box with its text; the centre is (x, y)."""
    ax.add_patch(plt.Rectangle((x - width / 2, y - 0.36), width, 0.72, facecolor=colour, edgecolor="black", alpha=0.9))
    light = colour in (show.COLOURS[1], show.COLOURS[3], "#eeeeee")
    ax.text(x, y, text, ha="center", va="center", fontsize=11, color="black" if light else "white")


def arrow(start, end, text, *, above=0.14):
    """An arrow with words beside its middle."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "linewidth": 1.6})
    ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, text, ha="center", va="bottom", fontsize=10)


box(1.4, 2.0, "a snippet\nand its text", "#eeeeee", 2.2)
box(5.3, 3.2, "it stops", show.COLOURS[4])
box(5.3, 0.9, "it runs to its end", show.COLOURS[3])
box(10.2, 3.2, "read the error:\nit names the cause", "#eeeeee", 3.0)
box(10.2, 1.6, "it does something else", show.COLOURS[4], 3.0)
box(10.2, 0.3, "it does what it says", show.COLOURS[2], 3.0)
arrow((2.5, 2.2), (3.98, 3.15), "", above=0)
ax.text(2.3, 2.85, "run it from\nthe top", ha="center", va="bottom", fontsize=10)
arrow((2.5, 1.8), (3.98, 0.95), "", above=0)
arrow((6.6, 3.2), (8.68, 3.2), "the kind way")
arrow((6.6, 1.0), (8.68, 1.55), "a check fires", above=0.22)
arrow((6.6, 0.8), (8.68, 0.35), "all pass", above=-0.42)
ax.set(xlim=(0.1, 11.9), ylim=(-0.2, 4.0), title="That code runs to its end says little about what it does")
ax.axis("off")
show.figure(fig, alt="A flow chart. A snippet is run from the top. Either it stops, and the error names the cause, or it runs to "
            "its end; then checks decide whether it does something else or what it says.")  # fmt: skip

# %% [markdown]
# Two settings matter. `digits` training images, seen `epochs` times, train what has to be trained, and `steps` is the length
# of section 5's training on made-up reviews. The folded cell has the rest.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(digits=512, epochs=1, unseen=200, steps=10, rounds=20, batch=1),
    quick=dict(digits=10_000, epochs=3, unseen=5_000, steps=100, rounds=40, batch=16),
    full=dict(digits=55_000, epochs=5, unseen=5_000, steps=300, rounds=100, batch=16),
)

# %% tags=["plumbing"]
training.seed_everything(SEED)
mnist = data.mnist()
digits, unseen = mnist.train.take(S.digits), mnist.validation.take(S.unseen)


def accuracy(model):
    """Fraction of the validation digits that `model` gets right."""
    return training.evaluate(model, unseen).accuracy


def quoted(code):
    """Show a snippet as text."""
    say(f"```python\n{code.strip()}\n```")


NAME = "21_read_critically"


def by_seed(key, a, b):
    """Points by which arm `a` leads arm `b` in the published runs, one number a seed; none where an arm is new."""
    found = evidence.measurements(NAME, key).values()
    return tuple(100 * (arms[a] - arms[b]) for arms in found if a in arms and b in arms)


def compared(key, arms, *pairs):
    """Conclude for pairs of arms which is more accurate, by the published runs."""
    evidence.conclude(
        *[evidence.Comparison(f"“{a}” against “{b}”", 100 * (arms[a] - arms[b]), by_seed(key, a, b)) for a, b in pairs]
    )


# %% [markdown]
# | article | what it covers | here |
# |---|---|---|
# | *Model optimization, step by step* | quantization, distillation, pruning; PyTorch and TensorFlow | sections 2, 4, 7, appendix |
# | *深度学习算法中的网络剪枝* (network pruning) | importance, prune then fine-tune; digits and film reviews | sections 3, 5 |
# | *Structured Pruning and Transfer Learning for Lightweight PyTorch Models* | channel pruning, a ResNet with a new head | sections 6, 8 |
# | *NN pruning with PyTorch* | weights against neurons, one-shot against iterative | no code; notebooks 02, 05 and 06 measure its claims |
#
# The third is on [Sling Academy](https://www.slingacademy.com/article/structured-pruning-and-transfer-learning-for-lightweight-pytorch-models/),
# without an author's name, last updated on 15 December 2024. Of the other three the course kept the texts and lost the rest:
# we cannot name their authors, dates or addresses, and a search for the titles did not find them again. So you cannot hold our reading
# against the originals. That is a fault of this page, by its own standards. What you can check is everything below: each snippet stands here in full.
#
# Every snippet below is rebuilt: our words, our code, as small as the point allows. What it does when it is run is what the
# article's code did when it was run, on the version of PyTorch that this course uses. To keep the page readable, the cells
# that hold a snippet are folded, and it is shown below as text.
#
# ## 1. A process that knows nothing
#
# A notebook is a bad witness. Whatever was imported or defined an hour ago is still there. Here is a "snippet" of two
# lines, and a notebook that happens to know `total`.
#
# **Predict** what the two lines do here, and what they do in a new Python.

# %%
LINES = """
print("so far", total)
total = total + 1
"""
total = 41


def fresh(code):
    """Run code in a new Python; return what it printed, and the last line of its error."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


exec(LINES)
printed, error = fresh(LINES)
print("here:      no error, total is", total)
print("new Python:", error)

# %% [markdown]
# The helper does the same and a little more: an empty folder for the snippet, one thread, no network, a time limit, and
# an exception's type and message apart. The two must agree.


# %% tags=["plumbing"]
def stopped_by(id, outcome, error):
    """Show what a snippet did, and claim that it ended with this exception."""
    print(outcome)
    run.claim(id, f"The snippet ends with {error} (1: yes)", int(outcome.error == error), at_least=1)


outcome = snippets.run_snippet(LINES)
assert (outcome.printed, f"{outcome.error}: {outcome.message}") == (printed, error)
stopped_by("fresh", outcome, "NameError")

# %% [markdown]
# One more tool for what follows: `leftovers` runs a snippet *here*, and returns the names that it had made when it ended or
# stopped, so that we can look at its networks.


# %%
def leftovers(code, **given):
    """Run code in this process, on top of the names `given`; return all names that it has then."""
    names = {"__name__": "snippet", **given}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
        exec(code, names)
    return SimpleNamespace(**names)


# %% [markdown]
# Each version of each snippet goes on a list, with what its text promises. At the end every check meets every version.

# %%
versions = {}


def keep(name, *, faulty, **facts):
    """Put a version on the list: whether it does something else than it says, and what the checks may look at."""
    versions[name] = SimpleNamespace(faulty=faulty, **facts)


# %% [markdown]
# ## 2. Names that are not there
#
# *Model optimization, step by step* **says**: PyTorch has a module for pruning, `torch.nn.utils.prune`; with it, prune a
# layer, then clean up with a function called `remove_running_data`. Two snippets:

# %% tags=["plumbing"]
NOT_IMPORTED = """
import torch

layer = torch.nn.Linear(100, 10)
torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)
print("half of the weights are zero")
"""
NOT_THERE = """
import torch
from torch.nn.utils import prune

layer = torch.nn.Linear(100, 10)
prune.l1_unstructured(layer, "weight", amount=0.5)
prune.remove_running_data(layer)
print("cleaned up")
"""
quoted(NOT_IMPORTED)
quoted(NOT_THERE)

# %% [markdown]
# **Predict.** The first imports `torch` and uses a module inside it, by its full name. Does that work?


# %%
def side_by_side(*codes):
    """Run several snippets at the same time, each in a process of its own."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(snippets.run_snippet, codes))


not_imported, not_there = side_by_side(NOT_IMPORTED, NOT_THERE)
stopped_by("not-imported", not_imported, "AttributeError")
stopped_by("not-there", not_there, "AttributeError")

# %% [markdown]
# A package does not import all the modules in it. `torch` imports most, not this one. Now the same first snippet in *this*
# process, whose first cell said `from torch.nn.utils import prune`:

# %%
here = leftovers(NOT_IMPORTED)
zeros = float((here.layer.weight == 0).float().mean())

# %% tags=["plumbing"]
run.claim("imported-elsewhere", "Share of zeros that the first snippet makes in this notebook", zeros, at_least=0.5)

# %% [markdown]
# It works. One import, anywhere, by anybody, and the module is there for all. So it may well have worked for the author.
# The second cannot have worked with this version: the function does not exist. What does the module have instead?

# %%
print([name for name in dir(prune) if "remove" in name.lower() or name.startswith("is_")])

# %% [markdown]
# **Mended**: import what you use, and ask for `remove`, which makes the zeros permanent (and removes no weight: notebook 02,
# section 8).

# %%
layer = nn.Linear(100, 10)
prune.l1_unstructured(layer, "weight", amount=0.5)
prune.remove(layer, "weight")

# %% tags=["plumbing"]
run.claim("permanent", "Buffers that the mended version leaves behind", len(list(layer.buffers())), at_most=0)
keep("module not imported", faulty=True, outcome=not_imported)
keep("function that is not there", faulty=True, outcome=not_there)
keep("imported, and remove", faulty=False, after=layer, sparsity=0.5, inputs=torch.randn(7, 100), answers=10)

# %% [markdown]
# **The check**: run it from the top, in a process that knows nothing. In a notebook that is *Restart and run all*.


# %%
def runs_fresh(version):
    """True if it ran to its end in a process of its own."""
    return version.outcome.ended


# %% [markdown]
# ## 3. A name that covers another
#
# *深度学习算法中的网络剪枝* **says**: prune the small weights, make it permanent, then fine-tune, because fine-tuning
# brings the accuracy back. Its code defines a function for the first step, and gives it an obvious name.

# %% tags=["plumbing"]
COVERED = """
from torch import nn
import torch.nn.utils.prune as prune

def prune(model, amount):
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.utils.prune.l1_unstructured(layer, "weight", amount=amount)
    return model

def make_permanent(model):
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            prune.remove(layer, "weight")

net = nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
net = prune(net, amount=0.95)
print("pruned")
make_permanent(net)
print("finished")
"""
quoted(COVERED)

# %% [markdown]
# **Predict**: what is the last line that it prints?

# %%
covered = snippets.run_snippet(COVERED)
stopped_by("covered", covered, "AttributeError")

# %% [markdown]
# After `def prune`, the name `prune` is the function, and the module has none. Rename the function, and the code runs to
# its end. Now read on: where is the fine-tuning? The text calls for it. The code never does it. What that costs, measured on
# a trained network with two hidden layers (300 and 100 units):


# %%
def zero_small_weights(model, amount):
    """A copy in which the smallest weights of each layer are masked."""
    return pruning.mask(model, pruning.layer_masks(model, amount))


trained = checkpoints.load("lenet-300-100")
cut = zero_small_weights(trained, 0.95)
tuned = training.fit(cut, digits, epochs=S.epochs, lr=0.1, seed=SEED).model

# %% tags=["plumbing"]
arms = {"trained": accuracy(trained), "95 % cut": accuracy(cut), "95 % cut, fine-tuned": accuracy(tuned)}
run.record("fine_tuning", arms)
pd.Series(arms).map("{:.1%}".format).to_frame("validation accuracy")

# %% tags=["plumbing"]
gained = arms["95 % cut, fine-tuned"] - arms["95 % cut"]
run.claim("fine-tuning", "Accuracy that the missing step brings back", gained, at_least=0.15)
kept = pruning.sparsity(tuned)
run.claim("still-sparse", "Share of zeros after fine-tuning", kept, at_least=0.945)
compared("fine_tuning", arms, ("95 % cut, fine-tuned", "95 % cut"), ("95 % cut, fine-tuned", "trained"))

# %% [markdown]
# One more thing hides in the snippet. Its function changes the network that it was given *and* returns it, so `net` before
# and `net` after are one object. Whoever compares them finds no difference. The helpers of this course return a copy.

# %% tags=["plumbing"]
examples = unseen.inputs[:7]
keep("name covered", faulty=True, outcome=covered)
keep("renamed, never fine-tuned", faulty=True, before=trained, after=pruning.bake(cut), sparsity=0.95, tuned=True,
     inputs=examples, answers=10, score=arms["95 % cut"], chance=0.1)  # fmt: skip
keep("renamed and fine-tuned", faulty=False, before=trained, after=pruning.bake(tuned), sparsity=0.95, tuned=True,
     inputs=examples, answers=10, score=arms["95 % cut, fine-tuned"], chance=0.1)  # fmt: skip

# %% [markdown]
# **The check**: has a weight that was kept moved? If none has, nobody trained.


# %%
def was_tuned(version):
    """True if weights that were not cut are others than before."""
    before, after = (pruning.weights_of(model) for model in (version.before, version.after))
    return any((after[name] != before[name])[after[name] != 0].any().item() for name in before)


# %% [markdown]
# ## 4. Shapes that do not meet
#
# *Model optimization, step by step* **says**: here is a small convolutional network for MNIST's 28 × 28 pixels; compress
# it. Two convolutions of 3 × 3, then a linear layer that reads 320 numbers.

# %% tags=["plumbing"]
CNN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 10, 3), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.ReLU())
        self.classifier = nn.Linear(320, 10)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))

net = Net()
print(sum(p.numel() for p in net.parameters()), "parameters")
print(net(torch.randn(7, 1, 28, 28)).shape)
"""
quoted(CNN)

# %% [markdown]
# **Predict** how many numbers leave the second convolution. (No padding; 20 channels.)

# %%
cnn = snippets.run_snippet(CNN)
stopped_by("shapes", cnn, "RuntimeError")

# %% [markdown]
# 28 becomes 26, 26 becomes 24, and 20 × 24 × 24 = 11,520. Building the network and counting its parameters went well;
# only data shows that the parts do not meet.
#
# A popular repair asks for the shape that the layer wants: `.reshape(-1, 320)`. The −1 lets PyTorch choose the number of
# rows. **Predict** the shape of the answer for seven images.


# %%
class Forced(nn.Module):
    """The snippet's layers, with the shape forced."""

    def __init__(self, net):
        super().__init__()
        self.features, self.classifier = net.features, net.classifier

    def forward(self, images):
        return self.classifier(self.features(images).reshape(-1, 320))


# %%
published_cnn = leftovers(CNN).net
forced = Forced(published_cnn)
answers = forced(unseen.inputs[:7])

# %% tags=["plumbing"]
run.claim("forced-shape", "Answers for seven images once the shape is forced", len(answers), at_least=8)

# %% [markdown]
# No exception, and 36 answers for each image, from 36 slices of its features. It is the loss that will stop, with a message
# about batch sizes, far away from the cause. **Mended**: where does a 320 come from? Two convolutions of 5 × 5, each
# followed by pooling, leave 20 × 4 × 4 numbers. The pooling had been lost.


# %%
class Pooled(nn.Module):
    """Conv 5 × 5, pool, conv 5 × 5, pool: 28 → 24 → 12 → 8 → 4 pixels, 20 channels."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 10, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 20, 5), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.classifier = nn.Linear(320, 10)

    def forward(self, images):
        return self.classifier(self.features(images).flatten(1))


# %% tags=["plumbing"]
assert Pooled()(unseen.inputs[:7]).shape == (7, 10)
keep("shapes do not meet", faulty=True, outcome=cnn, after=published_cnn, inputs=examples, answers=10)
keep("shape forced", faulty=True, after=forced, inputs=examples, answers=10)
keep("pooling put back", faulty=False, after=Pooled(), inputs=examples, answers=10)

# %% [markdown]
# **The check**: one batch, before anything else is done with the network. Each example gets one row of answers, and the same
# row as when it comes alone. The second half looks superfluous. The next section needs it. Take a batch whose size is
# no other size of the data: here it is seven.


# %%
def one_answer_each(version):
    """True if each example of a batch gets its own row of answers, whatever the other examples are."""
    model = deepcopy(version.after).eval()
    with torch.no_grad():
        try:
            together, alone = model(version.inputs), model(version.inputs[:1])
        except (RuntimeError, ValueError):
            return False
    shape = (len(version.inputs), version.answers) if version.answers > 1 else (len(version.inputs),)
    return together.shape == shape and torch.allclose(together[:1], alone, atol=1e-4)


# %% [markdown]
# ## 5. A mean over the wrong thing, and a pruning that misses
#
# *深度学习算法中的网络剪枝* **says**: a film review is a bag of words; look up a vector for each word, take the mean, and
# two linear layers say whether the review is kind. Then prune half of the network. Batches come with the reviews first.

# %% tags=["plumbing"]
BAG = """
import torch
from torch import nn
from torch.nn.utils import prune

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10_002, 100)
        self.hidden = nn.Linear(100, 200)
        self.answer = nn.Linear(200, 1)

    def forward(self, words):
        vectors = self.embedding(words)  # (reviews, words, 100)
        return self.answer(torch.relu(self.hidden(vectors.mean(dim=0)))).squeeze(1)

net = Bag()
for layer in net.modules():
    if isinstance(layer, nn.Linear):
        prune.l1_unstructured(layer, "weight", amount=0.5)
        prune.remove(layer, "weight")
print(sum(p.numel() for p in net.parameters()), "parameters, pruned")
words, labels = torch.randint(10_002, (64, 50)), torch.randint(2, (64,)).float()
loss = nn.functional.binary_cross_entropy_with_logits(net(words), labels)
print("loss", loss.item())
"""
quoted(BAG)

# %% [markdown]
# There are 64 reviews of 50 words. **Predict** two numbers: how many answers the network gives, and which share of its
# weights is zero after half of "the network" was pruned.

# %%
bag = snippets.run_snippet(BAG)
stopped_by("wrong-mean", bag, "ValueError")

# %% [markdown]
# Dimension 0 is the reviews. The mean is taken over *them*, so there is an answer for each place in a review: first
# word, second word. The loss compares 50 answers with 64 labels and stops. We are lucky. Had the reviews been
# as long as the batch is large, nothing would have stopped. Let us make that happen, with made-up reviews: of 200 words
# that carry an opinion, kind reviews use one half and unkind ones the other, in about one place of five; all other
# words are noise.


# %% tags=["plumbing"]
def reviews(count, length, generator):
    """Word numbers (count, length), and labels (count,): 1. for kind."""
    labels = torch.randint(2, (count,), generator=generator)
    words = torch.randint(200, 10_002, (count, length), generator=generator)
    opinion = torch.rand(count, length, generator=generator) < 0.2
    chosen = torch.randint(100, (count, length), generator=generator) + 100 * labels[:, None]
    return torch.where(opinion, chosen, words), labels.float()


def practise(net, steps):
    """Train a copy of `net` on batches of 64 new reviews of 64 words."""
    net, generator = deepcopy(net), torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(steps):
        words, labels = reviews(64, 64, generator)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(net(words), labels).backward()
        optimizer.step()
    return net


def rated(net):
    """Fraction of other reviews, 20 batches, that `net` gets right."""
    generator = torch.Generator().manual_seed(SEED + 1_000)
    with torch.no_grad():
        batches = [reviews(64, 64, generator) for _ in range(20)]
        return np.mean([((net(words) > 0) == labels.bool()).float().mean().item() for words, labels in batches])


# %%
class Bag(nn.Module):
    """The same network, with the mean over the words."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10_002, 100)
        self.hidden = nn.Linear(100, 200)
        self.answer = nn.Linear(200, 1)

    def forward(self, words):
        vectors = self.embedding(words)  # (reviews, words, 100)
        return self.answer(F.relu(self.hidden(vectors.mean(dim=1)))).squeeze(1)


# %%
published_bag = leftovers(BAG)
training.seed_everything(SEED)
over_reviews, over_words = practise(published_bag.Bag(), S.steps), practise(Bag(), S.steps)
guessing, reading = rated(over_reviews), rated(over_words)

# %% tags=["plumbing"]
say(
    f"Reviews of 64 words in batches of 64. Mean over the reviews: {guessing:.1%} right. Over the words: {reading:.1%}."
)
run.claim("guesses", "Accuracy of the mean over the reviews; a coin has 0.5", guessing, at_most=0.65)
run.claim("reads", "Accuracy of the mean over the words", reading, at_least=0.85)
MEAN, RIGHT = "mean over the reviews", "not pruned"
verdicts = evidence.conclude(
    evidence.Comparison("The mean over the words against the mean over the reviews", 100 * (reading - guessing),
                        by_seed("reviews", RIGHT, MEAN))
)  # fmt: skip

# %% [markdown]
# The code runs, the loss is a number, and the network guesses. A quiet error is worse than a loud one.
#
# Now the second number. The snippet prunes the linear layers. Where are the weights?

# %% tags=["plumbing"]
table = measure.layer_table(Bag(), torch.randint(10_002, (7, 50)))[["layer", "weights", "share_parameters"]]
linear = pruning.sparsity(published_bag.net)
say(f"Half of the linear layers' weights are zero: **{linear:.1%}** of the network's. The rest of it is the embedding.")
run.claim("only-linear", "Share of all weights that are zero after the published pruning", linear, at_most=0.02)
table.style.format({"weights": "{:,}", "share_parameters": "{:.1%}"}).hide()

# %% [markdown]
# **Mended**: `dim=1`, and masks for every layer that has weights. What an embedding stands to lose by that, and how to
# do better, is notebook 06.

# %%
halved = pruning.bake(zero_small_weights(over_words, 0.5))

# %% tags=["plumbing"]
run.claim(
    "whole-model", "Share of all weights that are zero, embedding included", pruning.sparsity(halved), at_least=0.499
)
only_linear = pruning.bake(zero_small_weights(over_words, {"hidden": 0.5, "answer": 0.5}))
ratings = {"not pruned": reading, "linear layers halved": rated(only_linear), "everything halved": rated(halved)}
run.record("reviews", {"mean over the reviews": guessing, **ratings})

# %% tags=["plumbing"]
words = torch.randint(10_002, (7, 64))
keep(
    "mean over the batch",
    faulty=True,
    outcome=bag,
    after=published_bag.net,
    inputs=words[:, :50],
    answers=1,
    sparsity=0.5,
)
keep("… length equals batch", faulty=True, after=over_reviews, inputs=words, answers=1, score=guessing, chance=0.5)
keep("… mean mended, linear only", faulty=True, after=only_linear, inputs=words, answers=1, sparsity=0.5,
     score=ratings["linear layers halved"], chance=0.5)  # fmt: skip
keep("both mended", faulty=False, after=halved, inputs=words, answers=1, sparsity=0.5, score=ratings["everything halved"],
     chance=0.5)  # fmt: skip
compared("reviews", ratings, ("everything halved", "not pruned"), ("linear layers halved", "not pruned"))
pd.Series(ratings).map("{:.1%}".format).to_frame("reviews right, mean over the words")

# %% [markdown]
# **The checks**: `one_answer_each` from section 4 (its second half sees the mean over the batch even where the shapes agree);
# the zeros of the *whole* model against the number in the text; and whether the thing is better than guessing.


# %%
def as_sparse_as_said(version):
    """True if the share of zeros among all weights is what the text says, within two points."""
    return abs(pruning.sparsity(version.after) - version.sparsity) <= 0.02


def beats_guessing(version):
    """True if its accuracy on unseen data is clearly above that of a guess: half of the way up, at the least."""
    return version.score >= version.chance + 0.5 * (1 - version.chance)


# %% [markdown]
# ## 6. Channels that are still there
#
# *Structured Pruning and Transfer Learning for Lightweight PyTorch Models* **says**: structured pruning removes whole channels, so that
# ordinary hardware gets faster; here are 20 % of a convolution's channels pruned. The call is `global_unstructured` with
# the L1 criterion. (The article has one small convolution. Ours are wider, so that a clock could notice.)

# %% tags=["plumbing"]
CHANNELS = """
from copy import deepcopy
from functools import partial
import torch
from torch import nn
from torch.nn.utils import prune

torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 40, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(40, 80, 5), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(80 * 5 * 5, 10),
)
dense = deepcopy(net)
convolutions = [(net[0], "weight"), (net[3], "weight")]
prune.global_unstructured(convolutions, pruning_method=prune.L1Unstructured, amount=0.2)
for layer, name in convolutions:
    prune.remove(layer, name)
    gone = (layer.weight.abs().sum(dim=(1, 2, 3)) == 0).sum().item()
    zeros = (layer.weight == 0).sum().item()
    print(tuple(layer.weight.shape), zeros, "weights are zero,", gone, "channels are")
"""
quoted(CHANNELS)

# %% [markdown]
# **Predict**: how many of the 40 and of the 80 channels are zero?

# %% tags=["plumbing"]
channels = snippets.run_snippet(CHANNELS)
print(channels)
empty = sum(int(line.split()[-3]) for line in channels.printed.splitlines())
assert channels.ended and len(channels.printed.splitlines()) == 2
run.claim("no-channel", "Channels that the published channel pruning has emptied", empty, at_most=0)

# %% [markdown]
# It runs, and it does prune: a fifth of the single weights, scattered over all channels. For a channel to go, all its
# weights would have to be among the smallest.
#
# **Mended, first half**: `ln_structured` sets whole channels to zero. **Second half**: remove them, and the inputs of the next
# layer that they fed (notebook 04). Four networks, from the same weights:

# %%
published = leftovers(CHANNELS)
dense, scattered = published.dense.eval(), published.net.eval()
zeroed = deepcopy(dense)
for layer in (zeroed[0], zeroed[3]):
    prune.remove(prune.ln_structured(layer, "weight", amount=0.2, n=1, dim=0), "weight")
photos = torch.randn(7, 3, 32, 32)
alive = {name: zeroed.get_submodule(name).weight.abs().sum(dim=(1, 2, 3)) > 0 for name in ("0", "3")}
removed = pruning.remove_filters(dense, alive, photos)

# %% tags=["plumbing"]
nets = {"dense": dense, "20 % of the filters' weights zero": scattered, "20 % of the channels zero": zeroed,
        "20 % of the channels removed": removed}  # fmt: skip


# %% tags=["plumbing"]
def empty_channels(net):
    """Number of filters of which every weight is zero."""
    convolutions = [layer for layer in net if isinstance(layer, nn.Conv2d)]
    return sum(int((layer.weight.abs().sum(dim=(1, 2, 3)) == 0).sum()) for layer in convolutions)


weighed = pd.DataFrame(
    {name: {"zeros": f"{pruning.sparsity(net):.1%}", "empty channels": empty_channels(net),
            "parameters": f"{measure.count_parameters(net):,}", "MACs": f"{measure.count_macs(net, photos):,}"}
     for name, net in nets.items()}
).T  # fmt: skip
weighed

# %% tags=["plumbing"]
batch = torch.randn(S.batch, 3, 32, 32)
with torch.inference_mode():
    calls = {name: (lambda net=net: net(batch)) for name, net in nets.items()}
    again = partial(modules.copied(next(iter(nets.values()))), batch)
    verdicts = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, control=again))
run.record("latency", measure.latency_records(verdicts, runtime="eager", batch=len(batch)), timing=True)
measure.verdict_table(verdicts)

# %% tags=["plumbing"]
saved, spared = (
    1 - measure.count_macs(net, photos) / measure.count_macs(dense, photos) for net in (removed, scattered)
)
run.claim(
    "fewer-macs", "Share of the multiplications that removing a fifth of the channels saves", saved, at_least=0.25
)
RUNS = evidence.published(NAME)


def timed_before(variant):
    """Speed of a variant against dense in the published runs, in per cent."""
    found = [row["ratio"] for each in RUNS for row in each.timings["latency"] if row["variant"] == variant]
    return tuple(100 * (ratio - 1) for ratio in found)


said = evidence.conclude(
    *[evidence.Comparison(f"{name}, against dense", 100 * (verdicts[name].ratio - 1), timed_before(name))
      for name in nets if name != "dense"],
    unit="% of speed", words=("faster", "slower"),
)  # fmt: skip

# %% [markdown]
# Zeros are multiplied like any other number, so MACs, which are counted by shapes, stay what they were. The network with
# whole channels of zeros still computes each one. (The clock may find a few hundredths there. The multiplications are the
# same, so the cause is another one, and this page has not looked for it. All runs time the same four networks: the intervals are of the
# clock, and of nothing else.) Only the last network has less to do, and its second convolution doubly so: fewer channels come in, and fewer go
# out.

# %% tags=["plumbing"]
keep(
    "channel pruning",
    faulty=True,
    outcome=channels,
    before=dense,
    after=scattered,
    smaller=True,
    inputs=photos,
    answers=10,
)
keep("… channels zero, not removed", faulty=True, before=dense, after=zeroed, smaller=True, inputs=photos, answers=10)
keep("channels removed", faulty=False, before=dense, after=removed, smaller=True, inputs=photos, answers=10)

# %% [markdown]
# **The check**: count parameters and multiplications before and after. (It is exercise 21.2 to write a better one.)


# %%
def really_smaller(version):
    """True if there are fewer parameters, and fewer multiplications."""
    counts = (measure.count_parameters, lambda model: measure.count_macs(model, version.inputs))
    return all(count(version.after) < count(version.before) for count in counts)


# %% [markdown]
# ## 7. A teacher that knows nothing
#
# *Model optimization, step by step* **says**: a large teacher passes on what it has learned to a small student, softened
# by a temperature. The code:

# %% tags=["plumbing"]
DISTIL = """
import torch
from torch import nn

def network(units):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, units), nn.ReLU(), nn.Linear(units, 10))

teacher, student = network(300), network(30)
optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
for epoch in range(5):
    optimizer.zero_grad()
    loss = nn.functional.mse_loss(student(input_data), teacher(input_data))
    loss.backward()
    optimizer.step()
print("distilled")
"""
quoted(DISTIL)

# %% [markdown]
# **Predict.** What happens? And then: when that is mended, what has the student learned?

# %%
distil = snippets.run_snippet(DISTIL)
stopped_by("no-data", distil, "NameError")

# %% [markdown]
# `input_data` is nobody's name. The quick repair is to fill it with digits. The loop then runs, the loss falls, and
# it says "distilled". We give it every chance: batches, epochs, the same optimizer; the loss is the snippet's.


# %%
def distil_as_published(student, teacher, split, epochs):
    """The snippet's loop, over batches of real digits; return a trained copy, and the first and the last loss."""
    student, losses = deepcopy(student), []
    optimizer = torch.optim.Adam(student.parameters(), lr=0.001)
    for epoch in range(epochs):
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(epoch))
        for chosen in order.split(100):
            optimizer.zero_grad()
            loss = F.mse_loss(student(split.inputs[chosen]), teacher(split.inputs[chosen]))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return student, (losses[0], losses[-1])


# %%
training.seed_everything(SEED)
stopped = leftovers(DISTIL)
stranger, beginner = stopped.teacher, stopped.student
pupil, losses = distil_as_published(beginner, stranger, digits, S.epochs)
same_answer = training.predict(pupil, unseen.inputs).argmax(1) == training.predict(stranger, unseen.inputs).argmax(1)
agrees = same_answer.float().mean().item()

# %% tags=["plumbing"]
say(
    f"The loss fell from {losses[0]:.3f} to {losses[1]:.4f}. The student agrees with its teacher on {agrees:.1%} of the "
    f"digits, and is right about {accuracy(pupil):.1%}. The teacher is right about {accuracy(stranger):.1%}."
)
run.claim(
    "learned-nothing",
    "Accuracy of the student of an untrained teacher",
    accuracy(pupil),
    at_most=0.35,
)
run.claim("learned-well", "Share of the digits on which it agrees with that teacher", agrees, at_least=0.5)

# %% [markdown]
# It learned well: most of what a random network knows. No line of the code trains the teacher, or loads one.
#
# Two more things about the loss. **Predict**: into how many tensors does `loss.backward()` write gradients? And does it cost
# anything that the teacher takes part?


# %%
def receivers(loss, **networks):
    """Names of the parameters into which a loss sends gradients."""
    named = {
        f"{who}.{name}": p for who, net in networks.items() for name, p in net.named_parameters() if p.requires_grad
    }
    gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


# %% tags=["plumbing"]
def kept_bytes(function):
    """Bytes of tensors that autograd keeps for a backward pass, each tensor counted once."""
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = function()
    return sum(sizes.values()), result


# %% tags=["plumbing"]
some = digits.inputs[:500].clone()  # a slice would bring the memory of all digits along


def published_loss():
    """The snippet's loss on some digits."""
    return F.mse_loss(beginner(some), stranger(some))


published_bytes, loss = kept_bytes(published_loss)
with torch.no_grad():
    targets = stranger(some)
careful_bytes, _ = kept_bytes(lambda: F.mse_loss(beginner(some), targets))
receiving = receivers(loss, student=beginner, teacher=stranger)
to_teacher = sum(name.startswith("teacher") for name in receiving)
run.claim("teacher-graph", "Tensors of the teacher that get gradients", to_teacher, at_least=1)
run.claim("teacher-bytes", "Bytes kept for the backward pass, with the teacher's graph over without", published_bytes / careful_bytes,
          at_least=1.1)  # fmt: skip

# %% tags=["plumbing"]
parameters = list(stranger.parameters())
one, piled = (
    torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for gradients in (torch.autograd.grad(published_loss(), parameters), [p.grad for p in parameters])
)
say(
    f"Gradients go into {len(receiving)} tensors, and {to_teacher} of them are the teacher's. "
    f"For {len(some):,} digits autograd keeps {published_bytes / 1e6:.2f} MB; without the teacher's graph "
    f"{careful_bytes / 1e6:.2f} MB. A gradient of length {one:.2f} reaches the teacher in one step. After the training above, "
    f"{piled:.2f} lies there."
)

# %% [markdown]
# The optimizer knows the student only, so the teacher stays as it is; but its whole forward pass is kept and differentiated
# for nothing. Teachers are large. Its gradients are not set to zero either, because that is the optimizer's part, and the
# optimizer does not know them: each step's come on top. And an optimizer that gets the parameters of both would *train*
# the teacher to agree with its student.
#
# Then, no label occurs, and no temperature. Mean squared error of the logits is a fair loss for a student (notebook 12
# compares it). It is not the one that the text explains.
#
# **Mended**: a trained teacher that is fixed and in evaluation mode, softened answers, and the labels. Its control is the same
# student with the same training, and no teacher.

# %%
teacher = checkpoints.load("lenet5")
lessons = distillation.taught_by(teacher, temperature=4.0, share=0.9)
taught = training.fit(beginner, digits, epochs=S.epochs, lr=0.002, optimizer="adam", loss=lessons, seed=SEED).model
alone = training.fit(beginner, digits, epochs=S.epochs, lr=0.002, optimizer="adam", seed=SEED).model

# %% tags=["plumbing"]
scores = {"untrained teacher": accuracy(stranger), "its student": accuracy(pupil),
          "trained teacher (LeNet-5)": accuracy(teacher), "its student, mended": accuracy(taught),
          "the student on labels alone": accuracy(alone)}  # fmt: skip
run.record("distillation", scores)
run.claim("taught", "Accuracy of the student of the mended version", scores["its student, mended"], at_least=0.8)
compared(
    "distillation",
    scores,
    ("its student, mended", "its student"),
    ("its student, mended", "the student on labels alone"),
)
say(
    "Mended, the student learns to read. That its teacher helped does not follow from that; notebook 12 asks that question."
)
pd.Series(scores).map("{:.1%}".format).to_frame("validation accuracy")

# %% [markdown]
# **The checks**: who gets gradients; and does the loss change when the labels do? A third one stands in section 5: is it
# better than guessing, the teacher too?


# %%
def only_learners_get_gradients(version):
    """True if the loss sends gradients to those parameters that the text wants to train, and to no other."""
    return receivers(version.loss(version.labels), **version.networks) == set(version.learners)


def labels_matter(version):
    """True if other labels give another loss."""
    return version.loss(version.labels).item() != version.loss(version.labels.roll(1)).item()


# %% tags=["plumbing"]
labels = unseen.labels[:7]
assert len(labels.unique()) > 1
learners = [f"student.{name}" for name, _ in beginner.named_parameters()]
keep("distillation loop", faulty=True, outcome=distil)
keep("… given data", faulty=True, after=pupil, inputs=examples, answers=10, labels=labels, learners=learners,
     networks=dict(student=pupil, teacher=stranger), score=accuracy(pupil), chance=0.1,
     loss=lambda labels: F.mse_loss(pupil(examples), stranger(examples)))  # fmt: skip
keep("… teacher, labels, temperature", faulty=False, after=taught, inputs=examples, answers=10, labels=labels, learners=learners,
     networks=dict(student=taught, teacher=teacher), score=scores["its student, mended"], chance=0.1,
     loss=lambda labels: distillation.mixed_loss(taught(examples), teacher(examples), labels))  # fmt: skip

# %% [markdown]
# ## 8. One that is nearly right
#
# *Structured Pruning and Transfer Learning for Lightweight PyTorch Models* **says**: take a ResNet-18, freeze it, put a head for ten classes on,
# and train the head alone. (The article loads ImageNet's weights. Who learns does not depend on that, so ours are random.)

# %% tags=["plumbing"]
TRANSFER = """
import torch
import torchvision
from torch import nn

torch.manual_seed(0)
net = torchvision.models.resnet18(weights=None)
for parameter in net.parameters():
    parameter.requires_grad = False
net.fc = nn.Linear(net.fc.in_features, 10)
optimizer = torch.optim.SGD(net.fc.parameters(), lr=0.01, momentum=0.9)
before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

images, labels = torch.randn(7, 3, 64, 64), torch.randint(10, (7,))
net.train()
for step in range(2):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(images), labels).backward()
    optimizer.step()
print("gradients:", [name for name, p in net.named_parameters() if p.grad is not None])
"""
quoted(TRANSFER)

# %% [markdown]
# **Predict** what it prints, and which of the network's tensors two steps have changed.

# %%
right = snippets.run_snippet(TRANSFER)
print(right)

# %% tags=["plumbing"]
run.claim("right", "The head's two tensors, and no others, got gradients (1: yes)",
          int(right.printed.strip() == "gradients: ['fc.weight', 'fc.bias']"), at_least=1)  # fmt: skip

# %% [markdown]
# The head learns, and gradients go nowhere else: it does what it says. We checked it as hard as the others; a check that only
# ever finds faults would prove nothing. And yet:

# %%
resnet = leftovers(TRANSFER)
changed = [name for name, tensor in resnet.net.state_dict().items() if not torch.equal(tensor, resnet.before[name])]
drifted = sorted({name.rpartition(".")[2] for name in changed if not name.startswith("fc.")})
body = [name for name in changed if not name.startswith("fc.")]

# %% tags=["plumbing"]
run.claim("drift", "Tensors of the frozen body that two steps have changed", len(body), at_least=1)
say(
    f"{len(body)} tensors of the frozen body have changed. Their names end in {', '.join(f'`{name}`' for name in drifted)}."
)

# %% [markdown]
# BatchNorm's statistics are no parameters. They follow the batches in training mode, frozen or not (notebook 07, section 4, measures
# what that does). The text promises a frozen body, so we call that a fault, a small one that nearly all tutorials share.
# **Mended**: frozen BatchNorm layers stay in evaluation mode. `training.fit` sees to it.

# %%
body_frozen = training.freeze(resnet.net)
few = Split(resnet.images, resnet.labels)
head_only = training.fit(body_frozen, few, epochs=2, lr=0.01, batch_size=7, seed=SEED).model
old = body_frozen.state_dict()
moved = [name for name, tensor in head_only.state_dict().items() if not torch.equal(tensor, old[name])]

# %% tags=["plumbing"]
run.claim("no-drift", "Tensors outside the head that the mended version changes",
          sum(not name.startswith("fc.") for name in moved), at_most=0)  # fmt: skip
run.claim(
    "head-learns", "Tensors of the head that it changes", sum(name.startswith("fc.") for name in moved), at_least=2
)


# %% tags=["plumbing"]
def head_loss(net):
    """The snippet's loss for a network, as a function of the labels."""
    return lambda labels: F.cross_entropy(net(resnet.images), labels)


for name, net, faulty, start, run_of in (
    ("transfer, as published", resnet.net, True, resnet.before, right),
    ("… BatchNorm held still", head_only, False, old, None),
):
    facts = {"outcome": run_of} if run_of else {}
    keep(name, faulty=faulty, after=net, inputs=resnet.images, answers=10, labels=resnet.labels,
         networks=dict(net=net), learners=["net.fc.weight", "net.fc.bias"], loss=head_loss(net),
         start=start, frozen=[name for name in start if not name.startswith("fc.")], **facts)  # fmt: skip

# %% [markdown]
# **The check**: compare *all* tensors of what is frozen, buffers too, before and after a step.


# %%
def frozen_stays(version):
    """True if every tensor that should be frozen is what it was."""
    state = version.after.state_dict()
    return all(torch.equal(state[name], version.start[name]) for name in version.frozen)


# %% [markdown]
# ## 9. Every check against every version
#
# Nine checks, each of which was written for one snippet. What does each say about all the others? A check that was
# not handed what it looks at (a loss, say) abstains. The first abstains on all versions but the published ones: the rest was run in
# the cells of this notebook, which is itself run from the top, in a new process, before it is stored.

# %% tags=["plumbing"]
checks = {
    "runs in a fresh process": (runs_fresh, ["outcome"]),
    "one answer each": (one_answer_each, ["after", "inputs", "answers"]),
    "kept weights moved": (was_tuned, ["before", "after", "tuned"]),
    "zeros of the whole": (as_sparse_as_said, ["after", "sparsity"]),
    "better than guessing": (beats_guessing, ["score", "chance"]),
    "fewer numbers and MACs": (really_smaller, ["before", "after", "smaller", "inputs"]),
    "gradients only to learners": (only_learners_get_gradients, ["loss", "labels", "networks", "learners"]),
    "labels matter": (labels_matter, ["loss", "labels"]),
    "frozen stays": (frozen_stays, ["after", "start", "frozen"]),
}
matrix = pd.DataFrame(
    {
        title: [
            "" if any(not hasattr(version, fact) for fact in facts) else "passes" if check(version) else "FIRES"
            for version in versions.values()
        ]
        for title, (check, facts) in checks.items()
    },
    index=list(versions),
)
faulty = pd.Series({name: version.faulty for name, version in versions.items()})
fires = matrix == "FIRES"
run.record("checks", matrix.reset_index(names="version"))

# %% tags=["plumbing"]
caught = fires[faulty].any(axis=1)
run.claim("all-caught", "Share of the faulty versions that at least one check catches", caught.mean(), at_least=1)
run.claim("no-false-alarm", "Checks that fire on a mended version", int(fires[~faulty].sum().sum()), at_most=0)
best = fires[faulty].sum()
run.claim(
    "none-suffices",
    "Share of the faulty versions that the best single check catches",
    best.max() / faulty.sum(),
    at_most=0.9,
)

# %% tags=["plumbing"]
shade = matrix.map({"": 0.0, "passes": 0.35, "FIRES": 1.0}.get)
fig, ax = plt.subplots(figsize=(9, 8))
ax.imshow(shade, cmap="Greys", vmin=0, vmax=1.25, aspect="auto")
for row, name in enumerate(matrix.index):
    for column, title in enumerate(matrix):
        mark = {"FIRES": "✗", "passes": "✓", "": ""}[matrix.loc[name, title]]
        ax.text(column, row, mark, ha="center", va="center", color="white" if mark == "✗" else "black", fontsize=12)
ax.set_xticks(range(len(matrix.columns)), matrix.columns, rotation=40, ha="right", rotation_mode="anchor")
ax.set_yticks(range(len(matrix)), [name if faulty[name] else f"mended: {name}" for name in matrix.index])
ax.grid(False)
ax.set_ylabel("version of a snippet")
ax.set_xlabel("✗ it fires, ✓ it passes, blank: nothing to look at", loc="right")
title = f"No check catches more than {best.max()} of {faulty.sum()} faulty versions"
fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
alt = "; ".join(f"{title} fires on {', '.join(fires.index[fires[title]]) or 'none'}" for title in fires)
show.figure(fig, alt=f"Which check fires on which version. {alt}.", table=matrix)

# %% tags=["plumbing"]
alone = [title for title in fires if (fires[title] & (fires.sum(axis=1) == 1))[faulty].any()]
say(
    f"Running the code catches {best['runs in a fresh process']} of {faulty.sum()} faulty versions; the others run to their "
    f"end. {len(alone)} of the {len(checks)} checks catch a version that no other catches ({', '.join(alone)}): leave out one "
    f"of these, and something passes. On the mended versions {int(fires[~faulty].sum().sum())} checks fire."
)

# %% [markdown]
# ## 10. What to ask of any tutorial
#
# | question | check | what it cannot see | section |
# |---|---|---|---|
# | Does it run from the top, here, with these versions? | a fresh process | code that ends and does something else | 2, 3 |
# | Which version was it written for, and when? | the error names what is gone | a call that stayed, and changed its meaning | 2, appendix |
# | Does one batch go through, and each example on its own? | `one_answer_each`, a batch of odd size | whether the answers are any good | 4, 5 |
# | Is the network smaller, or does it have zeros? | `really_smaller`; then the file and the clock | what the smaller one has forgotten | 6 |
# | Of what is "50 %"? | `as_sparse_as_said`, over *all* weights | which weights went | 5 |
# | Faster than what, measured how? | a null control (notebook 01) | other machines, other batch sizes | 6 |
# | Who learns? | `only_learners_get_gradients` | what changes without a gradient: BatchNorm's statistics | 7 |
# | What must not change? | `frozen_stays`, all tensors | what happens after the steps that it saw | 8 |
# | Does the loss use what it is given? | `labels_matter` | whether it uses it well | 7 |
# | Is anything in it trained? What would a guess score? | `beats_guessing`, the teacher too | a good score with another cause, such as leaked films | 5, 7 |
# | Does the code do all the steps of the text? | one check for each verb, such as `was_tuned` | whether the step helped | 3 |
#
# The last one is the best habit: underline the verbs. *Removes* channels, *freezes* the body, *fine-tunes*, *softens*. Each verb is a
# claim, and most claims can be checked in a line.
#
# ## 11. Exercises
#
# **21.1 · How sparse, of everything?** A warm-up of one line. Return the fraction of *all* a network's parameters that are
# exactly zero: a number from 0 to 1.


# %%
def share_of_zeros(model):
    """Return the fraction of the model's parameters that are zero."""
    ### BEGIN SOLUTION
    return float(torch.cat([p.detach().flatten() for p in model.parameters()]).eq(0).float().mean())
    ### END SOLUTION


exercises.check("21.1", share_of_zeros)

# %% [markdown]
# **21.2 · Really removed?** Write the judge of section 6. It gets a network before and after compression, and a batch for it. It
# says `True` only if the one that came out stores fewer numbers (parameters *and* buffers, so that a mask next to its weights fools
# nobody), does fewer multiply-accumulates, and gives answers of the same shape. Some candidates cheat.


# %%
def really_removed(before, after, example):
    """True if `after` is a smaller network that can stand in for `before`."""
    ### BEGIN SOLUTION

    def stored(model):
        return sum(tensor.numel() for tensor in [*model.parameters(), *model.buffers()])

    with torch.no_grad():
        same_shape = before(example).shape == after(example).shape
    macs_before, macs_after = (measure.count_macs(model, example) for model in (before, after))
    return same_shape and stored(after) < stored(before) and macs_after < macs_before
    ### END SOLUTION


exercises.check("21.2", really_removed)

# %% [markdown]
# **21.3 · Inspect a distillation loss.** A loss is a function of student, teacher, inputs and labels. Return what is wrong
# with it, as a set: `"teacher gets gradients"` if it sends gradients into the teacher, `"labels are ignored"` if the labels change
# nothing. A loss that is fine gives the empty set. Leave no gradients behind in either network.


# %%
def faults(loss, student, teacher, inputs, labels):
    """Return a set that holds none, one or both of the two faults."""
    ### BEGIN SOLUTION
    found = set()
    value = loss(student, teacher, inputs, labels)
    theirs = [p for p in teacher.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, theirs, allow_unused=True) if theirs else []
    if any(gradient is not None for gradient in gradients):
        found.add("teacher gets gradients")
    with torch.no_grad():
        if loss(student, teacher, inputs, labels) == loss(student, teacher, inputs, (labels + 1) % 10):
            found.add("labels are ignored")
    return found
    ### END SOLUTION


exercises.check("21.3", faults)

# %% [markdown]
# **21.4 · Predict.** Somebody prunes 90 % of the weights of both linear layers of section 5's network (100 → 200 → 1, beside 10,002
# vectors of 100) and writes "90 % sparse". Which fraction of all its weights is zero? A tenth more or less is fine.


# %%
def predicted_zeros():
    """Return the fraction of the network's weights that are zero."""
    ### BEGIN SOLUTION
    linear, embedding = 100 * 200 + 200 * 1, 10_002 * 100
    return 0.9 * linear / (linear + embedding)
    ### END SOLUTION


ninety = pruning.sparsity(zero_small_weights(Bag(), {"hidden": 0.9, "answer": 0.9}))
exercises.check("21.4", predicted_zeros, measured=ninety)

# %% [markdown]
# **21.5 · Open: your own reading.** Take a tutorial that you have learned from, and underline its verbs. Run its code from the top,
# in a process that knows nothing. Then choose the one verb that you would not have doubted, write a check for it of at most
# five lines, and say what your check cannot see. If it fires, tell the author, kindly, with the line that fires. There is
# no solution to look up.

# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **Stopped with an error**: {sum(not version.outcome.ended for version in versions.values() if hasattr(version, 'outcome'))} "
    f"of {sum(hasattr(version, 'outcome') for version in versions.values())} pieces of PyTorch code, run as they stand.\n"
    f"- **Ran, and did something else**: channel pruning emptied {empty} channels and saved {spared:.0%} of the multiplications "
    f"(removed: {saved:.0%}).\n- **Half-mended**: a mean over the batch scored {guessing:.1%}, over the words {reading:.1%}; "
    f"a student of an untrained teacher {scores['its student']:.1%}, of a trained one {scores['its student, mended']:.1%}; pruning without "
    f"the promised fine-tuning {arms['95 % cut']:.1%}, with it {arms['95 % cut, fine-tuned']:.1%}.\n- **Pruned**: {linear:.1%} of a network "
    f"where the text said half.\n- **Caught**: {int(caught.sum())} of {int(faulty.sum())} faulty versions, by {len(checks)} checks."
)

# %% [markdown]
# ## What to remember
#
# - A notebook remembers what you forgot. Run code from the top, in a process that knows nothing. <!-- claims: fresh, imported-elsewhere, not-imported -->
# - An exception is the kind error. The other kind prints "distilled": the student had learned most of what an untrained
#   teacher knows. <!-- claims: no-data, learned-well, learned-nothing -->
# - Zeros are not removal. Count numbers, multiplications and bytes, and hold a percentage against the whole.
#   <!-- claims: no-channel, fewer-macs, only-linear -->
# - Underline the verbs of a text, and look for each in the code. The fine-tuning that was missing here brought back most of what
#   the cut had cost. <!-- claims: fine-tuning -->
# - Ask of every loss: who gets its gradients, and which of its inputs change it? <!-- claims: teacher-graph, teacher-bytes -->
# - Frozen parameters are not a frozen body: BatchNorm's statistics move unless it is held in evaluation mode.
#   <!-- claims: drift, no-drift -->
# - A check is worth something if it can fail, and if it lets right code pass. No single one was enough.
#   <!-- claims: all-caught, no-false-alarm, none-suffices -->
# - Your own notebook deserves the same treatment. So does this one: each number in it was computed when it ran, or stands in
#   a transcript that says when. <!-- by construction -->
#
# ## To read
#
# - Pineau, Vincent-Lamarre, Sinha, Larivière, Beygelzimer, d'Alché-Buc, Fox and Larochelle 2021, *Improving Reproducibility in Machine
#   Learning Research*: a checklist, and what it changed.
# - Blalock, Gonzalez Ortiz, Frankle and Guttag 2020, *What is the State of Neural Network Pruning?*: eighty-one papers that can hardly
#   be compared, and why.
# - Pimentel, Murta, Braganholo and Freire 2019, *A Large-scale Study about Quality and Reproducibility of Jupyter Notebooks*.
# - Hinton, Vinyals and Dean 2015, *Distilling the Knowledge in a Neural Network*: the loss that the seventh snippet meant.
#
# **This is the last page.** If you have not handed in a network of your own yet: notebook 20 has a budget, and a judge that does
# not trust your numbers.

# %% [markdown]
# ## Appendix: for readers of TensorFlow
#
# *Model optimization, step by step* also **says**: `tf.quantization.quantize` quantizes a model; hand it the model, the
# optimizer and the loss. TensorFlow is not among this course's packages. Where it is installed, the cells below run it (not
# in smoke); elsewhere they show a stored transcript, and say so.


# %% tags=["plumbing"]
def tensorflow(code, *needs):
    """Run code that needs TensorFlow, or show what it did when it was last run for this course."""
    stored = snippets.recall(code, name="tensorflow")
    installed = all(importlib.util.find_spec(name) for name in ("tensorflow", *needs))
    outcome = snippets.run_snippet(code, timeout=300) if installed and PROFILE != "smoke" else stored
    print(f"{outcome}\n[{outcome.source}]")
    if outcome.error != stored.error:  # another version, perhaps
        print(f"It was different in the {stored.source}:\n{stored}")


# %% tags=["plumbing"]
TF_PUBLISHED = """
import tensorflow as tf

model = tf.keras.Sequential([tf.keras.Input((784,)), tf.keras.layers.Dense(10)])
optimizer = tf.keras.optimizers.Adam()
loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
smaller = tf.quantization.quantize(model, optimizer, loss)
"""
quoted(TF_PUBLISHED)
tensorflow(TF_PUBLISHED)

# %% [markdown]
# What does the function want? A *tensor*, the lowest and the highest value, and an integer type. It is the grid of notebook
# 09, for one tensor. **Predict** the code that 0 gets, and what that code stands for.

# %% tags=["plumbing"]
TF_TENSOR = """
import tensorflow as tf

numbers = tf.constant([-1.0, -0.3, 0.0, 0.3, 1.0])
codes, low, high = tf.quantization.quantize(numbers, -1.0, 1.0, tf.qint8)
print("codes  ", tf.cast(codes, tf.int32).numpy().tolist())
print("numbers", [round(x, 3) for x in tf.quantization.dequantize(codes, low, high).numpy().tolist()])
"""
quoted(TF_TENSOR)
tensorflow(TF_TENSOR)

# %% [markdown]
# 256 codes for a range that is symmetric about zero: no level falls on zero itself. Notebook 09 gave zero a level of its own, and
# this is why. The calls that take a *model*:
#
# | what | call | needs |
# |---|---|---|
# | quantize after training, for a phone | `tf.lite.TFLiteConverter` with `optimizations` and a `representative_dataset` | tensorflow |
# | quantize after training, in Keras 3 | `model.quantize("int8")` | keras |
# | train with rounding (QAT) | `tfmot.quantization.keras.quantize_model` | tensorflow-model-optimization, tf_keras |
# | prune while training | `tfmot.sparsity.keras.prune_low_magnitude`, then `strip_pruning` | the same |
#
# The converter reads a saved model, watches calibration inputs, and writes a file with integers. (Its interpreter is on its way
# into a package of its own, LiteRT: `ai-edge-litert`.)

# %% tags=["plumbing"]
TF_LITE = """
import numpy as np
import tensorflow as tf

tf.keras.utils.set_random_seed(0)
layers = tf.keras.layers
model = tf.keras.Sequential([tf.keras.Input((784,)), layers.Dense(300, "relu"), layers.Dense(10)])
images = np.random.default_rng(0).random((200, 784), dtype="float32")
model.export("saved", verbose=False)

dense = tf.lite.TFLiteConverter.from_saved_model("saved").convert()
converter = tf.lite.TFLiteConverter.from_saved_model("saved")
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ([image[None]] for image in images[:100])
small = converter.convert()

runtime = tf.lite.Interpreter(model_content=small)
runtime.allocate_tensors()
first, last = runtime.get_input_details()[0]["index"], runtime.get_output_details()[0]["index"]
answers = []
for image in images[100:]:
    runtime.set_tensor(first, image[None])
    runtime.invoke()
    answers.append(runtime.get_tensor(last)[0])
same = np.argmax(answers, 1) == np.argmax(model.predict(images[100:], verbose=0), 1)
print(f"{len(dense):,} bytes, quantized {len(small):,}; the same class for {same.mean():.0%} of 100 inputs")
"""
TF_KERAS = """
import os
import keras
import numpy as np

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(300, "relu"), keras.layers.Dense(10)])
images = np.random.default_rng(0).random((100, 784), dtype="float32")
before = model.predict(images, verbose=0).argmax(1)
model.save("dense.keras")
model.quantize("int8")
model.save("int8.keras")
same = (model.predict(images, verbose=0).argmax(1) == before).mean()
sizes = [os.path.getsize(name) for name in ("dense.keras", "int8.keras")]
print(f"{sizes[0]:,} bytes, quantized {sizes[1]:,}; the same class for {same:.0%} of 100 inputs")
"""
quoted(TF_LITE)
tensorflow(TF_LITE)
quoted(TF_KERAS)
tensorflow(TF_KERAS, "keras")

# %% [markdown]
# The toolkit for pruning and QAT was written for Keras 2, and TensorFlow now comes with Keras 3. **Predict**: what does
# `prune_low_magnitude` say to a model of today's `keras`?

# %% tags=["plumbing"]
TF_KERAS3 = """
import keras
import tensorflow_model_optimization as tfmot

model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(300, "relu"), keras.layers.Dense(10)])
tfmot.sparsity.keras.prune_low_magnitude(model)
"""
quoted(TF_KERAS3)
tensorflow(TF_KERAS3, "keras", "tensorflow_model_optimization")

# %% [markdown]
# It may prune a Sequential, the message says, and was given a Sequential. There are two classes of that name. Build the model
# with `tf_keras`, which is Keras 2, and it works:

# %% tags=["plumbing"]
TF_PRUNE = """
import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

tf_keras.utils.set_random_seed(0)
layers = tf_keras.layers
model = tf_keras.Sequential([layers.Dense(300, "relu", input_shape=(784,)), layers.Dense(10)])
schedule = tfmot.sparsity.keras.ConstantSparsity(0.8, begin_step=0, frequency=1)
pruned = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
pruned.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
draw = np.random.default_rng(0)
images, labels = draw.random((256, 784), dtype="float32"), draw.integers(0, 10, 256)
pruned.fit(images, labels, epochs=2, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
final = tfmot.sparsity.keras.strip_pruning(pruned)
zeros = [float((layer.kernel.numpy() == 0).mean()) for layer in final.layers]
print("zeros in the kernels:", ", ".join(f"{share:.1%}" for share in zeros))
print(f"parameters before {model.count_params():,}, after {final.count_params():,}")
"""
TF_AWARE = """
import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

tf_keras.utils.set_random_seed(0)
layers = tf_keras.layers
model = tf_keras.Sequential([layers.Dense(300, "relu", input_shape=(784,)), layers.Dense(10)])
aware = tfmot.quantization.keras.quantize_model(model)
aware.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
draw = np.random.default_rng(0)
images, labels = draw.random((256, 784), dtype="float32"), draw.integers(0, 10, 256)
losses = aware.fit(images, labels, epochs=2, verbose=0).history["loss"]
converter = tf.lite.TFLiteConverter.from_keras_model(aware)
converter.optimizations = [tf.lite.Optimize.DEFAULT]
print(f"loss {losses[0]:.2f}, then {losses[1]:.2f}; {len(converter.convert()):,} bytes")
"""
quoted(TF_PRUNE)
tensorflow(TF_PRUNE, "tensorflow_model_optimization", "tf_keras")
quoted(TF_AWARE)
tensorflow(TF_AWARE, "tensorflow_model_optimization", "tf_keras")

# %% [markdown]
# Read the line of `strip_pruning` with section 6 in mind: the kernels are full of zeros, and the parameters are all still
# there. It is a good name for what it does: it strips the *wrapper*.

# %% tags=["plumbing"]
run.finish()
