# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [12_distill]
# ---

# %% [markdown]
# # 12 · Distil: what does a teacher add?
#
# A label says: seven. A trained network says: seven, a little like a one, nothing like an eight. That is more, and a
# small network can learn from it: **distillation**. Here you write its losses, measure what the temperature is for, and
# let teachers train students on digits, photographs and reviews. Beside each of them stands a student that saw the very
# same inputs and had the labels alone.
#
# **You will be able to**
# - write the soft-target loss, and derive and measure why it is multiplied by the square of the temperature;
# - keep a teacher from being trained, and from answering in training mode;
# - ask teachers once and look their answers up, so that even a committee of them costs a student nothing;
# - compare labels, logits, soft targets and attention, one teacher and several, by intervals over seeds;
# - say when there is nothing left to distil.
#
# **Before this**: notebook 02, which used this loss in six lines, and notebook 05 (paired intervals).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import math
import time
import warnings
from functools import partial
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch.distributions import Categorical, kl_divergence
from torch.nn import functional as F
from tqdm.auto import tqdm

from helpers import checkpoints, data, distillation, evidence, exercises, measure, nets, show, statistics, training
from helpers.core import modules, vocabulary
from helpers.data import Split, text
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("12_distill", profile=PROFILE, seed=SEED)
say(evidence.timetable("12_distill"))

# %% [markdown]
# The settings. Sections 6, 9, 10 and 13 train many tiny students, with several `seeds` in every profile: on `digits`
# digits, in section 13 also on `few`, in section 9 with `sizes` units a layer. The wide teacher of section 10 learns
# for `wide_epochs`. Section 7 is Hinton's experiment: `hinton` digits, and `extra` teachers beside the trained LeNet-5.
# Digits move by up to `pixels` there, in section 8, and in the last recipe of section 13. Section 11 uses photographs,
# in `views` views each, for a student with `widths` channels, at the temperature `heat`. Section 12 uses reviews.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(digits=256, epochs=1, seeds=2, sizes=(30,), few=128, pixels=1, validation=200,
               hinton=256, hinton_epochs=1, hinton_lr=4e-3, extra=1, extra_epochs=1, wide_epochs=1,
               teacher="cifar_small", widths=(8, 12, 24, 48), photos=128, views=2, photo_epochs=1, batch=64, lr=0.1,
               heat=4.0, reviews=128, review_epochs=1, held_out=200, test=200, photo_test=100),
    quick=dict(digits=2_048, epochs=12, seeds=3, sizes=(30,), few=256, pixels=1, validation=5_000,
               hinton=4_096, hinton_epochs=6, hinton_lr=4e-3, extra=0, extra_epochs=0, wide_epochs=4,
               teacher="cifar_small", widths=(8, 12, 24, 48), photos=1_536, views=2, photo_epochs=4, batch=64, lr=0.1,
               heat=4.0, reviews=2_000, review_epochs=3, held_out=2_500, test=10_000, photo_test=4_000),
    full=dict(digits=10_240, epochs=12, seeds=3, sizes=(30, 300), few=256, pixels=2, validation=5_000,
              hinton=55_000, hinton_epochs=30, hinton_lr=2e-3, extra=1, extra_epochs=6, wide_epochs=12,
              teacher="cifar_base", widths=(16, 24, 48, 96), photos=40_000, views=4, photo_epochs=5, batch=256, lr=0.2,
              heat=2.0, reviews=20_000, review_epochs=3, held_out=2_500, test=10_000, photo_test=10_000),
)  # fmt: skip
SEEDS = range(SEED * S.seeds, (SEED + 1) * S.seeds)  # no seed of one run is a seed of another

# %% tags=["plumbing"]
show.style()

# %%
training.seed_everything(SEED)
mnist = data.mnist()
IMAGES, LABELS = mnist.train.inputs, mnist.train.labels
unseen = mnist.validation.take(S.validation)
lenet = checkpoints.load("lenet5")


def accuracy(model, split=None):
    """Fraction of a split, of the validation digits if none is given, that `model` gets right."""
    return training.evaluate(model, unseen if split is None else split).accuracy


def counted(count, noun):
    """The number and its noun: 1 epoch, 2 epochs."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


# %% tags=["plumbing"]
say(f"The teacher, LeNet-5, reads {accuracy(lenet):.2%} of {len(unseen):,} validation digits.")

# %% [markdown]
# Every comparison below is on **validation** examples. The test examples are used once, at the end.
#
# ## 1. What a teacher knows
#
# A network gives one number for each class, its **logits** $v_i$. The softmax makes probabilities of them. Divide by a
# **temperature** $T$ first,
#
# $$p_i = \frac{e^{v_i/T}}{\sum_j e^{v_j/T}},$$
#
# and the larger $T$ is, the more the runners-up show.


# %%
def softened(logits, temperature):
    """Probabilities at a temperature, for each row of logits."""
    scaled = torch.exp((logits - logits.max(dim=1, keepdim=True).values) / temperature)
    return scaled / scaled.sum(dim=1, keepdim=True)


# %% [markdown]
# **Predict.** LeNet-5 was trained on labels that are 0 or 1. Take the digits that it reads correctly, and is at least
# 99.9 % sure of. One of them has the strongest second thoughts: how much probability does the runner-up get at $T = 4$?

# %%
said = training.predict(lenet, unseen.inputs)
certain = (said.argmax(1) == unseen.labels) & (softened(said, 1).amax(dim=1) >= 0.999)
doubts = softened(said, 4).topk(2, dim=1).values[:, 1] * certain
example = int(doubts.argmax())
first, second = said[example].topk(2).indices.tolist()
table = pd.DataFrame({f"T = {t}": 100 * softened(said[[example]], t)[0].numpy() for t in (1, 4)})

# %% tags=["plumbing"]
fig, (picture, chart) = plt.subplots(1, 2, figsize=(9, 5.5), width_ratios=[1, 2])
picture.imshow(unseen.inputs[example, 0], cmap="gray_r")
picture.axis("off")
show.bars(table, title=f"Read as {first}, and not unlike {second}", xlabel="probability (%)", label="{:.0f}", ax=chart)
chart.set_ylabel("digit")
show.figure(
    fig, alt=f"A handwritten {first}, and the teacher's answer (%). {show.in_words(table, '{:.0f}')}", table=table
)

# %% [markdown]
# At $T = 1$ this answer is nearly as hard as a label. The second thoughts are there all the same, and the temperature
# shows them. What the teacher knows of single digits it knows of the classes, too. Here is what each of them is most
# like, in its answers at $T = 4$:

# %%
mean_answer = torch.stack([softened(said, 4)[unseen.labels == digit].mean(dim=0) for digit in range(10)])
likeness = (mean_answer - torch.diag(mean_answer.diag())).max(dim=1)
columns = {"is most like": likeness.indices, "with probability (%)": (100 * likeness.values).round(decimals=1)}
pd.DataFrame(columns, index=pd.Index(range(10), name="the digit")).T

# %%
right = said.gather(1, unseen.labels[:, None])[:, 0]
lead = (right - (said.sum(dim=1) - right) / 9).mean().item()
entropies = {t: Categorical(logits=said / t).entropy().mean().item() / math.log(2) for t in (1, 4, 20)}

# %% tags=["plumbing"]
say(
    f"On average the right logit leads the mean of the other nine by **{lead:.1f}**. The doubt in an answer is its "
    f"entropy: on average {entropies[1]:.2f} bits at $T = 1$, {entropies[4]:.2f} at 4 and {entropies[20]:.2f} at 20, "
    f"where {math.log2(10):.2f} would be no opinion at all."
)

# %% [markdown]
# ## 2. The loss
#
# The student has logits $z_i$, and at the same temperature the answers $q_i$. How far $q$ is from $p$
# is measured by the **Kullback-Leibler divergence**, in nats; the loss is its mean over the examples, times $T^2$:
#
# $$L_\text{soft} = T^2 \, \frac1n \sum_\text{examples} \sum_i p_i \log \frac{p_i}{q_i}.$$
#
# A very small probability is rounded to 0, and the logarithm of 0 would spoil the sum. `log_softmax` never forms it.


# %%
def soft_loss(student, teacher, temperature):
    """T² times the mean divergence, in nats, of the student's softened answers from the teacher's."""
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (teacher, student))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


# %% [markdown]
# The cell's loss, the helper's, and one made of `torch.distributions` must agree. A student that knows nothing yet:

# %%
z, v = training.predict(nets.mlp_800(), unseen.inputs[:100]).double(), said[:100].double()
difference = 0.0
for t in (1.0, 4.0, 20.0):
    mine = soft_loss(z, v, t)
    helper = distillation.soft_target_loss(z, v, temperature=t)
    library = t**2 * kl_divergence(Categorical(logits=v / t), Categorical(logits=z / t)).mean()
    difference = max(difference, abs(helper / mine - 1).item(), abs(library / mine - 1).item())

# %% tags=["plumbing"]
run.claim("same-loss", "Largest relative difference of three ways to compute the loss", difference, at_most=1e-6)

# %% [markdown]
# PyTorch's own function is `F.kl_div`, and it has two traps. It wants the *logarithm* of the student's answers first and
# the teacher's answers second. And of its reductions, `"mean"` divides by the examples *and the classes*; the divergence
# is `"batchmean"`. **Predict**: ten classes. How large is the mistake?

# %%
answers_of_both = F.log_softmax(z / 4, dim=1), F.softmax(v / 4, dim=1)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    batchmean, mean = (F.kl_div(*answers_of_both, reduction=each).item() for each in ("batchmean", "mean"))

# %% tags=["plumbing"]
run.claim("batchmean", "Relative difference of T² · batchmean from the cell's loss",
          abs(16 * batchmean / soft_loss(z, v, 4.0).item() - 1), at_most=1e-6)  # fmt: skip
say(
    f"`mean` makes the loss **{batchmean / mean:.0f} times** too small. And with student and teacher exchanged, it is "
    f"{soft_loss(v, z, 4.0):.1f} instead of {soft_loss(z, v, 4.0):.1f}. Neither raises an error"
    f"{'; of the first, at least, PyTorch warns.' if any('batchmean' in str(w.message) for w in warned) else '.'}"
)

# %% [markdown]
# ## 3. Where the T² comes from
#
# The derivative of the divergence by one logit of the student is, by the chain rule,
#
# $$\frac{\partial}{\partial z_i} \sum_j p_j \log\frac{p_j}{q_j} = \frac{q_i - p_i}{T}.$$
#
# One factor $1/T$ stands there. The other hides in $q_i - p_i$: at a high temperature all answers come close to each
# other. With $e^{x} \approx 1 + x$, $N$ classes and $\bar z, \bar v$ the means of the logits,
#
# $$q_i \approx \frac1N\Big(1 + \frac{z_i - \bar z}{T}\Big), \qquad
# \frac{q_i - p_i}{T} \approx \frac{1}{N\,T^2}\big((z_i - \bar z) - (v_i - \bar v)\big).$$
#
# So the gradient falls as $1/T^2$, and beside the labels' gradient, which does not fall, a hot teacher would hardly be
# heard. The factor $T^2$ gives it its voice back. Measure it:


# %%
def gradient(temperature, factor):
    """Gradient of `factor` times the loss by the student's logits."""
    leaf = z.clone().requires_grad_()
    (factor * soft_loss(leaf, v, temperature)).backward()
    return leaf.grad


TEMPERATURES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
labels_gradient = (softened(z, 1) - F.one_hot(unseen.labels[:100], 10)).norm().item() / 100
lengths = pd.DataFrame(
    {
        "without T²": [gradient(t, t**-2).norm().item() for t in TEMPERATURES],
        "with T²": [gradient(t, 1).norm().item() for t in TEMPERATURES],
        "labels": labels_gradient,
    },
    index=pd.Index(TEMPERATURES, name="T"),
)

# %%
slope = math.log(lengths.loc[256, "without T²"] / lengths.loc[64, "without T²"]) / math.log(256 / 64)

# %% tags=["plumbing"]
fig = show.line_with_band(
    TEMPERATURES,
    dict(lengths.items()),
    title=f"Without T², the gradient falls as T to the power {slope:.2f} at last",
    xlabel="temperature",
    ylabel="length of the gradient",
)
fig.axes[0].set(xscale="log", yscale="log")
show.figure(fig, alt=f"Length of the gradient. {show.in_words(lengths, '{:.2g}')}", table=lengths)
run.claim("inverse-square", "At high T, without T²: distance from -2 of the power of T with which the gradient falls",
          abs(slope + 2), at_most=0.1)  # fmt: skip
ratios = lengths.max() / lengths.min()
say(
    f"At high temperatures, from 64 to 256, the gradient falls as $T$ to the power **{slope:.2f}** without $T^2$. From "
    f"1 to 256 its lengths differ by a factor of {ratios['without T²']:,.0f}; with $T^2$, by one of "
    f"**{ratios['with T²']:.1f}**."
)

# %% [markdown]
# The last formula says more. Multiplied by $T^2$, the gradient at a high temperature is that of $\frac{1}{2N}\sum_i (z_i
# - v_i)^2$ with centred logits. **Matching logits** (Ba and Caruana 2014) is distillation with an infinite temperature.


# %%
def centred(logits):
    """Logits with the mean zero in each row: the softmax does not see the difference."""
    return logits - logits.mean(dim=1, keepdim=True)


def match_logits(student, teacher, labels):
    """Half of the mean squared difference of the centred logits; the labels play no part."""
    return 0.5 * F.mse_loss(centred(student), centred(teacher))


leaf = z.clone().requires_grad_()
match_logits(leaf, v, None).backward()
hot = gradient(1e4, 1)

# %% tags=["plumbing"]
run.claim("logits-are-the-limit", "Relative distance of the gradient at T = 10,000 from that of matching logits",
          ((hot - leaf.grad).norm() / leaf.grad.norm()).item(), at_most=0.01)  # fmt: skip

# %% [markdown]
# ## 4. Both voices, and a teacher that only speaks
#
# Usually the labels have a say as well. With the share $\lambda$:
#
# $$L = \lambda \, L_\text{soft} + (1 - \lambda) \, L_\text{labels},$$
#
# where $L_\text{labels}$ is the cross-entropy at temperature 1. A teacher in a training loop invites two more accidents.
# Networks are born in **training mode**, where dropout answers at random and BatchNorm looks at the batch. And gradients
# flow wherever nobody stops them. Here is Hinton's teacher, 784-1200-1200-10, untrained and left in training mode:

# %%
images, labels = IMAGES[:64], LABELS[:64]
careless, student = nets.mlp_1200(), nets.mlp_800()
with torch.no_grad():
    wobble = (careless(images) - careless(images)).abs().max().item()

# %% tags=["plumbing"]
say(f"Ask it twice, and its logits differ by up to **{wobble:.2f}**.")

# %% [markdown]
# `distillation.taught_by` makes a loss for `training.fit`. It copies the teacher, puts the copy in evaluation mode and
# freezes it.

# %%
where = training.device()
batch = [tensor.to(where) for tensor in (images, labels)]
student = student.to(where)
wants = []  # a spy in the teacher: it is copied along, and notes whether a gradient could flow back through an answer
careless.register_forward_hook(lambda layer, inputs, output: wants.append(output.requires_grad))
taught_by_careless = distillation.taught_by(careless, temperature=4.0, share=0.9)
once, again = (taught_by_careless(student, *batch) for _ in range(2))
assert len(wants) == 2  # the spy was asked

# %% tags=["plumbing"]
run.claim("teacher-calm", "Difference between two losses on the same batch", (once - again).abs().item(), at_most=0)
run.claim("teacher-untrained", "Answers of the teacher through which a gradient could flow", sum(wants), at_most=0)
other = distillation.taught_by(lenet, temperature=4.0, share=0.9)(student, *batch)
say(f"With this teacher the loss is {once:.2f}; with LeNet-5 in its place, {other:.2f}. The teacher does decide.")

# %% [markdown]
# ## 5. Ask once, look up ever after
#
# A teacher that runs beside the student costs a forward pass in every step, in every epoch, for every student. And it
# says the same things each time, unless the inputs change. So we fix them: each digit has a number of **views**, moved by
# up to `pixels` in each direction. A teacher answers each view once. Then students train on views drawn at random, with
# the answers looked up.


# %%
def shifted(images, down, right, pixels):
    """Move each image by its own numbers of pixels, from -pixels to pixels; its edge fills the gap."""
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # a view: nothing is copied
    return windows[torch.arange(len(images)), :, pixels - down, pixels - right]


steps = range(-S.pixels, S.pixels + 1)
SHIFTS = torch.tensor([(down, right) for down in steps for right in steps])


def moved(numbers, which):
    """The training digits `numbers`, each in its view `which`."""
    return shifted(IMAGES[numbers], *SHIFTS[which].T, pixels=S.pixels)


def still(numbers, which):
    """The training digits `numbers`, as they are: the only view."""
    return IMAGES[numbers]


eight, middle = torch.arange(8), len(SHIFTS) // 2  # the view in the middle is not moved
assert torch.equal(moved(eight, torch.full_like(eight, middle)), still(eight, None))


# %%
@torch.no_grad()
def ask(answer, view, count, views):
    """Return answer(inputs) for each view of the first `count` examples: (count, views, …)."""
    parts = torch.arange(count).split(250)
    of_view = [
        [answer(view(part, torch.full_like(part, v))) for part in parts] for v in tqdm(range(views), leave=False)
    ]
    return torch.stack([torch.cat(batches) for batches in of_view], dim=1)


started = time.perf_counter()
answers = ask(partial(training.predict, lenet), moved, max(S.digits, S.hinton), len(SHIFTS))
seconds = time.perf_counter() - started

# %% tags=["plumbing"]
run.record("ask_seconds", seconds, timing=True)
say(
    f"{len(SHIFTS)} views of {len(answers):,} digits, {answers.shape[0] * answers.shape[1]:,} answers of ten numbers "
    f"({answers.nbytes / 1e6:.0f} MB), in {seconds:.0f} seconds."
)
plain = answers[:, [middle]]  # (digits, 1, 10): for students whose digits do not move

# %% [markdown]
# The loss then gets the *numbers* of the examples in place of the examples. It draws a view for each, makes the inputs,
# and looks up what the teacher said about those very inputs.


# %%
def looked_up(view, answers, loss):
    """A loss for `fit` on a split whose inputs are numbers of examples."""

    def on_numbers(model, numbers, labels):
        which = torch.randint(answers.shape[1], numbers.shape)
        return loss(model(view(numbers, which)), answers[numbers, which], labels)

    return on_numbers


# %% [markdown]
# The helper is `distillation.taught_from`, and its usual loss is `distillation.mixed_loss`, with $T = 4$ and $\lambda =
# 0.9$. Asked with the same random state, the cell's loss, the helper's, and a teacher who is asked anew must agree:

# %%
student, numbers = nets.mlp_800(), torch.arange(64)


def mixture(student, teacher, labels, temperature=4.0, share=0.9):
    """The share of the soft targets, and of the labels what is left."""
    return share * soft_loss(student, teacher, temperature) + (1 - share) * F.cross_entropy(student, labels)


values = []
for loss in (looked_up(moved, answers, mixture), distillation.taught_from(answers, moved)):
    torch.manual_seed(SEED)
    values.append(loss(student, numbers, labels).item())
torch.manual_seed(SEED)
inputs = moved(numbers, torch.randint(len(SHIFTS), (64,)))
values.append(mixture(student(inputs), training.predict(lenet, inputs), labels).item())

# %% tags=["plumbing"]
run.claim("same-looked-up", "Largest relative difference of three ways to get the loss",
          max(values) / min(values) - 1, at_most=1e-4)  # fmt: skip

# %% [markdown]
# This buys a fair comparison, too. The draw depends on the seed alone. A student with the share 0 never hears its
# teacher, and sees, step by step, the very same inputs as one with the share 0.9. From here on that student is "labels
# alone".
#
# ## 6. Four losses
#
# The student is tiny: 784-30-30-10. It trains in a second, so each loss gets several seeds. As in Hinton's experiment,
# its digits do not move. **Predict** the order of:
#
# | name | loss |
# |---|---|
# | labels alone | $\lambda = 0$ |
# | matching logits | half the mean squared difference of the centred logits |
# | soft targets | $\lambda = 1$, $T = 4$ |
# | soft targets and labels | $\lambda = 0.9$, $T = 4$ |


# %%
def train(model, loss, answers, view, *, seed, numbers, epochs, lr=2e-3, **options):
    """Train a student on the digits `numbers`; in each step one view of each, with the answer to it."""
    digits = Split(numbers, LABELS[numbers])
    looked_up = distillation.taught_from(answers, view, loss=loss)
    return training.fit(model, digits, epochs=epochs, lr=lr, optimizer="adam", loss=looked_up, seed=seed,
                        progress=False, **options).model  # fmt: skip


def tiny(loss, answers, seed, *, units=30, count=None, epochs=None, view=still):
    """Validation accuracy of a student of `units` units a layer, trained on the first `count` digits."""
    training.seed_everything(seed)
    options = {"numbers": torch.arange(count or S.digits), "epochs": epochs or S.epochs}
    return accuracy(train(nets.MLP(units), loss, answers, view, seed=seed, lr=LR[units], **options))


LR = {30: 2e-2, 300: 3e-3}


def soft(temperature):
    """Soft targets alone, at a temperature."""
    return partial(distillation.mixed_loss, temperature=temperature, share=1.0)


labels_alone, mixed = partial(distillation.mixed_loss, share=0.0), distillation.mixed_loss

# %%
LOSSES = {
    "labels alone": labels_alone,
    "matching logits": match_logits,
    "soft targets": soft(4.0),
    "soft targets and labels": mixed,
}
found = pd.DataFrame(
    {name: [tiny(loss, plain, seed) for seed in SEEDS] for name, loss in tqdm(LOSSES.items(), leave=False)},
    index=pd.Index(SEEDS, name="seed"),
)
found["labels alone, twice as long"] = [tiny(labels_alone, plain, seed, epochs=2 * S.epochs) for seed in SEEDS]

# %% tags=["plumbing"]
run.record("losses", found.reset_index())


# %% tags=["plumbing"]
def show_arms(table, title):
    """One row for each column of `table`: the accuracy of each seed, and a bar at their mean."""
    fig, ax = plt.subplots(figsize=(8.5, 1.5 + 0.4 * table.shape[1]))
    for place, name in enumerate(table):
        ax.plot(100 * table[name], [place] * len(table), "o", color=show.COLOURS[0], alpha=0.6)
        ax.plot(100 * table[name].mean(), place, "|", color="black", markersize=20, markeredgewidth=2)
    ax.set_yticks(range(table.shape[1]), list(table))
    ax.invert_yaxis()
    ax.set(title=title, xlabel="validation accuracy (%): dots are seeds, the bar their mean")
    means = pd.DataFrame({"mean (%)": 100 * table.mean()})
    show.figure(fig, alt=f"Validation accuracy. {show.in_words(means, '{:.2f}')}", table=100 * table.T)


# %%
def verdict(a, b):
    """What the paired 95 % interval of a - b decides."""
    low, high = statistics.paired_interval(a, b)
    return "better" if low > 0 else "worse" if high < 0 else "undecided"


def gain_of(table, a, b):
    """Say by how many points a leads b, with the paired 95 % interval over the seeds."""
    low, high = (100 * end for end in statistics.paired_interval(table[a], table[b]))
    mean = 100 * (table[a] - table[b]).mean()
    return f"{mean:+.2f} points ({low:+.2f} to {high:+.2f}): {verdict(table[a], table[b])}"


def highest(table):
    """A title: the column with the highest mean, and what its interval against labels alone decides."""
    top = table.mean().idxmax()
    against = "" if top == "labels alone" else f"\nagainst labels alone: {verdict(table[top], table['labels alone'])}"
    return f"Highest mean: “{top}”{against}"


show_arms(found, highest(found))

# %%
helped = (found["soft targets and labels"] - found["labels alone"]).mean()
gate = {"at_least": 0, "over_seeds": True} if PROFILE == "full" else {"at_least": -0.005}  # in quick: no harm

# %% tags=["plumbing"]
run.claim(
    "teacher-helps", "Accuracy that soft targets and labels add to labels alone: mean of the seeds", helped, **gate
)
lines = [f"- {name}: {gain_of(found, name, 'labels alone')}" for name in found if name != "labels alone"]
say(f"Against labels alone, over {len(SEEDS)} seeds (mean, paired 95 % interval):\n\n" + "\n".join(lines))

# %% [markdown]
# Read the whole list: an arm that is picked because it came out highest has had luck on its side. The last row is the
# control that is easily forgotten. The teacher's students got something extra. Would labels have done as well with
# extra *time*? And be honest about where a gain comes from:

# %% tags=["plumbing"]
say(
    f"This LeNet-5 has seen {len(mnist.train):,} digits, these students {S.digits:,}. Part of what it hands on may be "
    "data. Section 10 takes the two apart."
)

# %% [markdown]
# ## 7. Hinton's experiment
#
# Hinton, Vinyals and Dean 2015 (*Distilling the Knowledge in a Neural Network*, section 3) trained a network of two
# hidden layers of 1,200 units, with dropout and with digits moved by up to two pixels. A network of 800 units a layer was
# trained on labels alone, on digits that did not move; and once more, taught by the large one at $T = 20$.

# %%
published = evidence.literature("mnist-distillation").set_index("method")["accuracy"]
theirs = (10_000 * (1 - published)).round().astype(int)

# %% tags=["plumbing"]
say("Their errors, of 10,000 test digits: " + ", ".join(f"{how} **{count}**" for how, count in theirs.items()) + ".")

# %% [markdown]
# We ask a stricter question: teacher or none, **both students see the same moved digits**. Our temperature is 4, with
# $\lambda = 0.9$, as above. And we allow ourselves better teachers. Any network can teach, whatever it is made of: ours
# are convolutional. If there are several, their logits are averaged.


# %%
def one_more_teacher(index):
    """Train another LeNet-5 on the same digits, moved."""
    seed = 1_000 * (SEED + 1) + index
    training.seed_everything(seed)
    state = run.scratch(f"teacher{index}.pt") if PROFILE == "full" else None
    return training.fit(nets.lenet5(), mnist.train.take(S.hinton), epochs=S.extra_epochs, lr=2e-3, optimizer="adam",
                        augment=training.random_shift, seed=seed, checkpoint=state, progress=False).model  # fmt: skip


committee = [lenet, *(one_more_teacher(index) for index in tqdm(range(S.extra), leave=False))]
others = [ask(partial(training.predict, net), moved, S.hinton, len(SHIFTS)) for net in committee[1:]]
pooled = torch.stack([answers[: S.hinton], *others]).mean(dim=0)
ensemble = distillation.Ensemble(committee)
alone = len(committee) == 1
more = f"and {S.extra} more of its kind, trained for {counted(S.extra_epochs, 'epoch')} on {S.hinton:,} digits"
the_teachers = "the teacher" if alone else f"the {len(committee)} teachers"

# %% tags=["plumbing"]
say(f"Teaching in this run: the LeNet-5 of section 1{', alone' if alone else f', {more}'}.")

# %% [markdown]
# A mean of logits is a choice: the softmax of it is the *geometric* mean of the teachers' answers, made to sum to one.
# `distillation.Ensemble` is the same committee as one network. Here are all three, for two different LeNets:

# %%
pair = [lenet, checkpoints.load("lenet-300-100")]
inputs = moved(numbers, torch.zeros_like(numbers))
of_each = torch.stack([training.predict(net, inputs) for net in pair])
product = torch.stack([softened(logits, 4) for logits in of_each]).log().mean(dim=0).exp()
geometric = product / product.sum(dim=1, keepdim=True)
difference = max(
    (softened(logits, 4) - geometric).abs().max().item()
    for logits in (of_each.mean(dim=0), training.predict(distillation.Ensemble(pair), inputs))
)

# %% tags=["plumbing"]
run.claim("same-committee", "Largest difference between three ways to pool two teachers' answers", difference,
          at_most=1e-4)  # fmt: skip

# %% [markdown]
# **Predict**: of a hundred errors of the student with labels alone, how many does a teacher save?


# %%
def hintons_student(name, loss):
    """Train 784-800-800-10; in full it can be resumed."""
    training.seed_everything(SEED)
    state = run.scratch(f"{name}.pt".replace(" ", "-")) if PROFILE == "full" else None
    return train(nets.mlp_800(), loss, pooled, moved, seed=SEED, numbers=torch.arange(S.hinton),
                 epochs=S.hinton_epochs, lr=S.hinton_lr, precision=training.fast_precision(), checkpoint=state,
                 key=f"{name}, {len(committee)} teachers")  # fmt: skip


hinton = {name: hintons_student(name, LOSSES[name]) for name in ("labels alone", "soft targets and labels")}
checked = {name: training.evaluate(model, unseen) for name, model in {"the teacher": ensemble, **hinton}.items()}
errors = {name: result.count - result.correct for name, result in checked.items()}

# %% tags=["plumbing"]
run.record("hinton_validation", {"digits": S.hinton, "teachers": len(committee), **errors})

# %%
saved = errors["labels alone"] - errors["soft targets and labels"]
gate = {"at_least": 1, "over_seeds": True} if PROFILE == "full" else {"at_least": -40}  # in quick: no harm

# %% tags=["plumbing"]
run.claim(
    "hinton", f"Validation errors that the teacher saves Hinton's student, of {len(unseen):,} digits", saved, **gate
)
share = f"{abs(saved) / max(1, errors['labels alone']):.0%} {'fewer' if saved >= 0 else 'more'}"
say(
    f"{S.hinton:,} digits, {counted(S.hinton_epochs, 'epoch')}, the same views in the same order. Errors on "
    f"{len(unseen):,} validation digits: {the_teachers} {errors['the teacher']}, labels alone "
    f"**{errors['labels alone']}**, taught **{errors['soft targets and labels']}**: {share}, with one seed."
)

# %% [markdown]
# One caution. A teacher's logits lie far apart (section 1), and a student has a long way to travel until its own do. A
# training that is too short, or too timid, ends before it arrives, and then labels alone look better. If a teacher "does
# not help", give its student more steps, or a larger learning rate, before you believe it. And give labels alone the
# same.
#
# ## 8. The digit that was never shown
#
# What is in those soft targets? Hinton's most striking answer: leave all the threes out. The student never sees one. It
# sees eights, fives and twos, and hears each time *how much they are like a three*.
#
# Labels alone might find threes as well, by elimination: what fits none of the nine is likely the tenth. So there is a
# control, treated alike. **Predict**: of the validation threes, how many does each of the two read?

# %%
known = torch.arange(S.hinton)[LABELS[: S.hinton] != 3]


def never_shown(loss):
    """Train 784-300-300-10 on digits without a three."""
    training.seed_everything(SEED)
    return train(nets.MLP(300), loss, pooled, moved, seed=SEED, numbers=known, lr=LR[300],
                 epochs=min(10, 2 * S.hinton_epochs))  # fmt: skip


blind = {"taught": soft(8.0), "labels alone": labels_alone}
logits = {name: training.predict(never_shown(loss), unseen.inputs) for name, loss in blind.items()}
three = unseen.labels == 3
before = {name: each.argmax(1)[three].eq(3).float().mean().item() for name, each in logits.items()}

# %% tags=["plumbing"]
say(
    f"Neither has ever seen a three. The one taught at $T = 8$ reads **{before['taught']:.0%}** of them; with labels "
    f"alone, **{before['labels alone']:.0%}**."
)

# %% [markdown]
# Both also learned that three is never the *best* answer, and so the bias of that class came out too low. Hinton raised
# it, by the errors on the test digits. We can do it without any labels. About one digit in ten is a three, so raise the
# bias until one in ten is called a three. We use the first half of the validation digits for that, and count on the
# second.

# %%
half = len(unseen) // 2


def raise_threes(logits):
    """Raise the bias of class 3: by how much, and for each digit of the second half whether it is then read."""
    ahead = logits[:, 3] - logits[:, [k for k in range(10) if k != 3]].amax(dim=1)
    bias = max(0.0, -ahead[:half].quantile(0.9).item())
    raised = logits[half:] + bias * F.one_hot(torch.tensor(3), 10)
    return bias, (raised.argmax(1) == unseen.labels[half:]).float()


# %%
threes, seen = {}, {}
for name, each in logits.items():
    bias, read = raise_threes(each)
    threes[name] = read[three[half:]].tolist()
    seen[name] = {
        "before": before[name],
        "bias": bias,
        "after": float(np.mean(threes[name])),
        "overall": read.mean().item(),
    }

# %% tags=["plumbing"]
run.record("unseen_three", seen["taught"])
run.record("unseen_three_labels", seen["labels alone"])

# %% tags=["plumbing"]
run.claim("never-shown", "Share of the threes read by a student that has never seen one, bias raised",
          seen["taught"]["after"], at_least=0.3)  # fmt: skip

# %%
low, high = (100 * end for end in statistics.paired_interval(threes["taught"], threes["labels alone"]))
told_of_threes = {
    "better": "That much it owes to the teacher.",
    "worse": "So here elimination finds more threes than the teacher tells of.",
    "undecided": "So here it is not shown that the teacher told it anything about threes.",
}[verdict(threes["taught"], threes["labels alone"])]
lines = [
    f"- {name}: bias raised by {each['bias']:.1f}; then **{each['after']:.0%}** of the threes and "
    f"{each['overall']:.1%} of all digits"
    for name, each in seen.items()
]

# %% tags=["plumbing"]
say("\n".join(lines) + f"\n\nThe difference among the threes, paired by digit, for these two networks: {low:+.0f} to "
    f"{high:+.0f} points (95 % interval). {told_of_threes}")  # fmt: skip

# %% [markdown]
# ## 9. Which temperature?
#
# A low temperature shows the winner only. A very high one is logit matching: every logit counts alike, also those of
# hopeless classes, which are mostly noise. Hinton found that a student of 300 units or more hardly cares above 8, and
# that one of 30 units wants 2.5 to 4: it has no room for the noise.
#
# **Predict** where the curve has its top.

# %%
HEAT = [1.0, 2.0, 4.0, 8.0, 20.0]
heat = {
    units: [[tiny(soft(t), plain, seed, units=units) for t in HEAT] for seed in tqdm(SEEDS, leave=False)]
    for units in S.sizes
}

# %% tags=["plumbing"]
run.record("temperatures", {str(units): rows for units, rows in heat.items()})

# %%
curves = pd.DataFrame(
    {f"{units} units": 100 * np.mean(rows, axis=0) for units, rows in heat.items()}, index=pd.Index(HEAT, name="T")
)
best_heat = {name: curve.idxmax() for name, curve in curves.items()}

# %% tags=["plumbing"]
fig = show.line_with_band(
    HEAT,
    {f"{units} units": 100 * np.array(rows) for units, rows in heat.items()},
    title="Highest mean: " + ", ".join(f"{name} at T = {t:.0f}" for name, t in best_heat.items()),
    xlabel="temperature",
    ylabel="validation accuracy (%)",
)
fig.axes[0].set_xscale("log")
fig.axes[0].set_xticks(HEAT, [f"{t:.0f}" for t in HEAT])
fig.axes[0].minorticks_off()
show.figure(fig, alt=f"Accuracy against temperature. {show.in_words(curves, '{:.2f}')}", table=curves)

# %%
lines = []
for units, rows in heat.items():
    by_heat = pd.DataFrame(rows, columns=HEAT, index=SEEDS)
    pairs = ((4, 1), (4, 20), (20, 8))  # chosen before we looked
    lines += [f"- {units} units, $T = {a}$ against {b}: {gain_of(by_heat, a, b)}" for a, b in pairs]

# %% tags=["plumbing"]
say(
    f"Over {len(SEEDS)} seeds (mean, paired 95 % interval):\n\n" + "\n".join(lines) + "\n\nThe last line: do "
    f"{S.sizes[-1]} units care above 8? Hinton's 300 hardly did."
)

# %% [markdown]
# The temperature is chosen like any other setting, on validation data. What it should be depends on the teacher: a
# network trained for longer has larger logits, and needs more heat to show its doubts. There is no temperature that
# carries over from one paper to the next.
#
# ## 10. Which teacher, and how many?
#
# Five teachers for the student of 30 units:
#
# | teacher | trained on |
# |---|---|
# | a twin of the student, another seed | the student's own digits |
# | Hinton's 784-1200-1200-10 with dropout | the student's own digits |
# | LeNet-300-100 | 55,000 digits, moved |
# | LeNet-5 | 55,000 digits, moved |
# | the last two together, mean of the logits | 55,000 digits, moved |
#
# The first two know nothing but what is in the student's own data. If *they* help, it is not because of more data. The
# LeNets have seen more in two ways: more digits, and these moved. **Predict** whether a network can learn from its
# equal.

# %%
own = torch.arange(S.digits)
training.seed_everything(SEED + 500)
twin = train(nets.MLP(30), labels_alone, plain, still, seed=SEED + 500, numbers=own, epochs=S.epochs, lr=LR[30])
wide = train(nets.mlp_1200(), labels_alone, plain, still, seed=SEED + 500, numbers=own, epochs=S.wide_epochs,
             precision=training.fast_precision())  # fmt: skip
teachers = {"a twin": twin, "1200 units": wide, "LeNet-300-100": checkpoints.load("lenet-300-100"), "LeNet-5": lenet}
told = {name: ask(partial(training.predict, net), still, S.digits, 1) for name, net in teachers.items()}
told["both LeNets"] = (told["LeNet-300-100"] + told["LeNet-5"]) / 2

# %%
students = found[["labels alone"]].copy()
for name, what in tqdm(told.items(), leave=False):
    students[name] = [tiny(mixed, what, seed) for seed in SEEDS]

# %% tags=["plumbing"]
run.record("teachers", students.reset_index())
show_arms(students, highest(students))

# %%
teachers["both LeNets"] = distillation.Ensemble([teachers["LeNet-300-100"], lenet])
summary = pd.DataFrame(
    {
        "MACs": {name: measure.count_macs(net, images[:1]) for name, net in teachers.items()},
        "teacher (%)": {name: 100 * accuracy(net) for name, net in teachers.items()},
        "student (%)": 100 * students.mean(),
        "gain over labels": {name: gain_of(students, name, "labels alone") for name in told},
    }
).loc[list(told)]
order = summary[["teacher (%)", "student (%)"]].corr(method="spearman").iloc[0, 1]

# %% tags=["plumbing"]
say(
    f"Do better teachers have better students? Rank correlation of these five: **{order:+.2f}** (1 is always, 0 not at "
    "all). That describes them and tests nothing: five are few, and one of them is made of two others."
)
summary.round(2)

# %%
groups = {"own": ["a twin", "1200 units"], "more": ["LeNet-300-100", "LeNet-5", "both LeNets"]}
by_group = students.assign(**{name: students[members].mean(axis=1) for name, members in groups.items()})
decided = {pair: verdict(by_group[pair[0]], by_group[pair[1]]) == "better"
           for pair in [("own", "labels alone"), ("more", "labels alone"), ("more", "own")]}  # fmt: skip
if decided["own", "labels alone"]:
    answer = "here a teacher helps that knows nothing but the student's own digits"
elif decided["more", "labels alone"] and decided["more", "own"]:
    answer = "here the gain is one of data: it takes teachers that have seen more than the student"
else:
    answer = "here the seeds are too few to take the gain apart"
own, more = (gain_of(by_group, name, "labels alone") for name in groups)

# %% tags=["plumbing"]
say(
    f"Against labels alone:\n\n- teachers that saw only these {S.digits:,} digits (mean of two): {own}\n"
    f"- teachers that saw {len(mnist.train):,}, moved (mean of three): {more}\n\nSo {answer}."
)

# %% [markdown]
# Others have found that a network can gain from its equal (Furlanello et al. 2018, *Born Again Neural Networks*): soft
# targets are also a regulariser, and keep the student from certainty. Whether ours did stands in the first row of the
# table. And a larger teacher is not always better. Where the gap is wide, a student may not be able to follow (Mirzadeh
# et al. 2020, *Improved Knowledge Distillation via Teacher Assistant*). Read the last column before you believe in an
# order: these are few seeds.
#
# ## 11. Photographs: where to look
#
# Answers come at the end of a network. Zagoruyko and Komodakis 2017 (*Paying More Attention to Attention*) let the
# student learn where the teacher *looks* on the way. A layer puts out $C$ channels $A_c$ on a grid of places. Sum their
# squares over the channels, and scale the result to length 1: the **attention map**
#
# $$Q = \frac{\sum_c A_c^2}{\big\lVert \sum_c A_c^2 \big\rVert_2}.$$
#
# The channels are gone from it. So networks of different widths can be compared, as long as the grids are equal. The loss
# is the squared distance of the two maps, summed over some layers, times a weight.


# %%
def attention(features):
    """Where a layer looks: (batch, places), each row of length 1. Shape of `features`: (batch, channels, h, w)."""
    strength = features.square().sum(dim=1).flatten(1)
    return strength / strength.norm(dim=1, keepdim=True)


cifar = data.cifar10()
photos, unseen_photos = cifar.train.take(S.photos), cifar.validation.take(S.validation)
big, small = checkpoints.load(S.teacher).to(memory_format=torch.channels_last), nets.CifarNet(S.widths)
LAYERS = ["res1", "conv3", "res2"]

# %% [markdown]
# `distillation.with_features` returns the logits and, by name, what some layers put out. The cell's map, the helper's and
# PyTorch's `F.normalize` must agree, and the squared distance of two vectors of length 1 is $2 - 2\cos$ of their angle.

# %%
with torch.no_grad():
    features = [distillation.with_features(net, photos.inputs[:64], LAYERS)[1] for net in (big, small)]
differences = []
for layer in LAYERS:
    of_big, of_small = (attention(each[layer]) for each in features)
    helper = distillation.attention_map(features[0][layer])
    library = F.normalize(features[0][layer].square().mean(dim=1).flatten(1))
    differences += [(of_big - helper).abs().max().item(), (of_big - library).abs().max().item()]
    loss, cosine = distillation.attention_loss(of_small, of_big), F.cosine_similarity(of_small, of_big)
    differences.append(abs(loss - (2 - 2 * cosine).mean()).item())

# %% tags=["plumbing"]
run.claim("same-attention", "Largest difference of maps and losses computed in two or three ways", max(differences),
          at_most=1e-5)  # fmt: skip

# %%
EXAMPLES = [3, 7, 10]
mean, std = (torch.tensor(each)[:, None, None] for each in (data.CIFAR10_MEAN, data.CIFAR10_STD))
pictures = []
for number in EXAMPLES:
    pictures.append((photos.inputs[number] * std + mean).clamp(0, 1).permute(1, 2, 0))
    for layer in LAYERS:
        grid = features[0][layer].shape[-1]
        pictures.append(attention(features[0][layer][[number]]).view(grid, grid))

# %%
shown = [data.CIFAR10_CLASSES[photos.labels[number]] for number in EXAMPLES]

# %% tags=["plumbing"]
fig, axes = plt.subplots(len(EXAMPLES), 1 + len(LAYERS), figsize=(8, 6.6))
for ax, picture in zip(axes.flat, pictures, strict=True):
    ax.imshow(picture, cmap="viridis")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
for ax, name in zip(axes[:, 0], shown, strict=True):
    ax.set_ylabel(name)
for ax, name in zip(axes[0], ["photograph", *LAYERS], strict=True):
    ax.set_title(name)
fig.suptitle("Bright is where a layer's squares are strong", x=0.01, ha="left", fontsize=14, fontweight="bold")
show.figure(
    fig,
    alt=f"Photographs ({', '.join(shown)}) and the teacher's attention maps at {', '.join(LAYERS)}: bright where the "
    "squares are strong.",
)

# %% [markdown]
# Views of photographs: each is mirrored or not, and moved by up to two pixels, at random but once for all. The teacher's
# answers *and maps* are looked up.

# %%
generator = torch.Generator().manual_seed(SEED)
MIRRORED = torch.rand(S.photos, S.views, generator=generator) < 0.5
MOVES = torch.randint(-2, 3, (2, S.photos, S.views), generator=generator)


def turned(numbers, which):
    """The training photographs `numbers`, each in its view `which`."""
    images = photos.inputs[numbers]
    images = torch.where(MIRRORED[numbers, which][:, None, None, None], images.flip(3), images)
    return shifted(images, *MOVES[:, numbers, which], pixels=2)


def logits_and_maps(model, images):
    """Logits (batch, 10), and the attention maps of all LAYERS side by side (batch, places)."""
    logits, features = distillation.with_features(model, modules.channels_last(images), LAYERS)
    return logits, torch.cat([distillation.attention_map(features[layer]) for layer in LAYERS], dim=1)


answers_and_maps = ask(lambda images: torch.cat(logits_and_maps(big, images), dim=1), turned, S.photos, S.views)
their_logits, their_maps = answers_and_maps[..., :10], answers_and_maps[..., 10:]


# %%
def taught_photos(share, weight):
    """A loss for `fit` on numbers of photographs: labels, soft targets, and `weight` times the attention loss."""

    def loss(model, numbers, labels):
        numbers, where = numbers.cpu(), labels.device
        which = torch.randint(S.views, numbers.shape)
        logits, maps = logits_and_maps(model, turned(numbers, which).to(where))
        said = their_logits[numbers, which].to(where)
        mixed = distillation.mixed_loss(logits, said, labels, temperature=S.heat, share=share)
        return mixed + weight * distillation.attention_loss(maps, their_maps[numbers, which].to(where))

    return loss


# %%
macs = {name: measure.count_macs(net, photos.inputs[:1]) for name, net in {"teacher": big, "student": small}.items()}
right = their_logits[:, 0].gather(1, photos.labels[:, None])[:, 0]
lead = (right - (their_logits[:, 0].sum(dim=1) - right) / 9).mean().item()

# %% tags=["plumbing"]
say(
    f"The teacher: {macs['teacher'] / 1e6:.1f} million MACs, {accuracy(big, unseen_photos):.1%} of "
    f"{len(unseen_photos):,} validation photographs. It has seen {len(cifar.train):,} photographs; the student sees "
    f"{S.photos:,}, with {macs['teacher'] / macs['student']:.1f} times fewer MACs. The teacher's right logit leads the "
    f"mean of the others by {lead:.1f}. We take $T = {S.heat:.0f}$, a setting."
)

# %% [markdown]
# (In full the temperature is lower than in quick. There `cifar_base` teaches. It was trained with smoothed labels, and
# these keep the logits close together; section 13 comes back to what that does to a teacher.)
#
# The weight of the attention loss, 10, is a setting, too; it was not tuned. **Predict** the order of the four after a
# short training on the same views.

# %%
WAYS = {
    "labels alone": (0.0, 0.0),
    "attention and labels": (0.0, 10.0),
    "soft targets and labels": (0.9, 0.0),
    "all three": (0.9, 10.0),
}
numbered = Split(torch.arange(S.photos), photos.labels)
pupils = {}
for way, (share, weight) in tqdm(WAYS.items(), leave=False):
    training.seed_everything(SEED)
    state = run.scratch(f"photos {way}.pt".replace(" ", "-")) if PROFILE == "full" else None
    pupils[way] = training.fit(
        nets.CifarNet(S.widths), numbered, epochs=S.photo_epochs, lr=S.lr, batch_size=S.batch, warmup=0.2, seed=SEED,
        loss=taught_photos(share, weight), precision=training.fast_precision(), checkpoint=state, key=way, progress=False,
    ).model  # fmt: skip


# %%
def leader(scores):
    """The name with the highest score, in words for a title."""
    names = [name for name, score in scores.items() if score == max(scores.values())]
    return f"“{names[0]}” is highest" if len(names) == 1 else f"{len(names)} are equally high"


scores = {way: accuracy(model, unseen_photos) for way, model in pupils.items()}

# %% tags=["plumbing"]
run.record("photos_validation", scores)
fig = show.bars(
    {way: 100 * score for way, score in scores.items()},
    title=f"After {counted(S.photo_epochs, 'epoch')}, one seed:\n{leader(scores)}",
    xlabel="validation accuracy (%)",
    label="{:.1f}",
)
table = pd.DataFrame({"validation accuracy (%)": {way: 100 * score for way, score in scores.items()}})
show.figure(fig, alt=f"Accuracy of four students. {show.in_words(table, '{:.1f}')}", table=table)


# %%
def distance_to_teacher(model):
    """Mean squared distance of the model's attention maps from the teacher's, on photographs that do not move."""
    with torch.no_grad():
        mine, theirs = (logits_and_maps(net, unseen_photos.inputs[:250])[1] for net in (model, big))
    return distillation.attention_loss(mine, theirs).item()


gains = {way: 100 * (score - scores["labels alone"]) for way, score in scores.items() if way != "labels alone"}

# %% tags=["plumbing"]
say(
    f"{S.photos:,} photographs, {counted(S.photo_epochs, 'epoch')}, **one seed**. Above labels alone: "
    f"{', '.join(f'{way} {gain:+.1f} points' for way, gain in gains.items())}. The last section shows what the "
    f"published seeds decide. The student's maps are {distance_to_teacher(pupils['labels alone']):.2f} away from the "
    f"teacher's if it learned from labels alone, and {distance_to_teacher(pupils['all three']):.2f} with all three (0: "
    f"the same maps; {2 * len(LAYERS)}: no place in common in any of the {len(LAYERS)} layers)."
)

# %% [markdown]
# ## 12. Reviews: teachers who read what the student cannot
#
# `imdb_bag` of notebook 06 averages word vectors; order is lost on it. Other networks of that notebook do better or know
# other things: an LSTM reads in order (though only the first 250 tokens), and `imdb_bigrams` has a vector for
# each frequent *pair* of words as well. A teacher and its student need the same classes, and nothing else in common.
# Looked-up answers do not care which vocabulary gave them.
#
# Two things differ from digits. With two classes there is no "a little like": all that a soft target tells is *how sure*
# the teacher is. And these teachers know the training reviews nearly by heart, where they are sure of everything. So we
# also ask them about **halves**: three views of each review, the whole, its first half, and its second. The label of a
# half is that of the whole review, and may be wrong for it. The teacher reads the half. Labels alone must learn from
# such a label, too. So they get a second student, which reads whole reviews only, in as many steps.

# %%
reviews = data.imdb()
train_texts, unseen_texts = reviews.train.take(S.reviews), reviews.validation.take(S.held_out)
WORDS, PAIRS = checkpoints.words("imdb_bag"), checkpoints.words("imdb_bigrams")


def tokens_of(texts):
    """Tokens of each review, no more than the networks were trained with."""
    return [vocabulary.tokenize(review)[: text.MAX_TOKENS] for review in texts.inputs]


def piece(tokens, view):
    """The whole (view 0), the first half (1) or the second half (2) of a review."""
    middle = (len(tokens) + 1) // 2
    return (tokens, tokens[:middle], tokens[middle:] or tokens)[view]


def as_words(tokens):
    """Numbers of words, for the bag and the LSTM."""
    return torch.from_numpy(vocabulary.encode(tokens, WORDS))


def as_pairs(tokens):
    """Numbers of words and of pairs of words, for the network that reads pairs."""
    return torch.from_numpy(vocabulary.encode([vocabulary.with_bigrams(each) for each in tokens], PAIRS))


# %%
READERS = {"imdb_bag": as_words, "imdb_lstm": as_words, "imdb_bigrams": as_pairs}
readers = {name: checkpoints.load(name) for name in READERS}
train_tokens, unseen_tokens = tokens_of(train_texts), tokens_of(unseen_texts)
views, opinions = [], {name: [] for name in READERS}
for view in tqdm(range(3), leave=False):
    pieces = [piece(tokens, view) for tokens in train_tokens]
    views.append(as_words(pieces))
    for name, encode in READERS.items():
        inputs = views[-1] if encode is as_words else encode(pieces)
        opinions[name].append(training.predict(readers[name], inputs))
opinions = {name: torch.stack(of_views, dim=1) for name, of_views in opinions.items()}
opinions["all three"] = torch.stack(list(opinions.values())).mean(dim=0)

# %%
width = views[0].shape[1]
TOKENS = torch.stack([F.pad(view, (0, width - view.shape[1]), value=vocabulary.PAD) for view in views])
whole = Split(TOKENS[0], torch.tensor(train_texts.labels))
unseen_reviews = Split(as_words(unseen_tokens), torch.tensor(unseen_texts.labels))
unseen_pairs = Split(as_pairs(unseen_tokens), unseen_reviews.labels)
knows = {
    name: accuracy(net, unseen_pairs if READERS[name] is as_pairs else unseen_reviews) for name, net in readers.items()
}
sure = {name: torch.softmax(each, dim=2).amax(dim=2).mean(dim=0).tolist() for name, each in opinions.items()}

# %% tags=["plumbing"]
say(
    "Validation accuracy of the teachers: "
    + ", ".join(f"{name} {value:.1%}" for name, value in knows.items())
    + f". How sure of their answer all three together are, on average: {sure['all three'][0]:.1%} on whole training "
    f"reviews, {sure['all three'][1]:.1%} on first halves."
)

# %% [markdown]
# **Predict**: who teaches the bag best, the one that reads in order, the one that reads pairs, or all three together?


# %%
def read_views(numbers, which):
    """The training reviews `numbers`, each in its view `which`."""
    return TOKENS[which, numbers]


def read_whole(numbers, which):
    """The training reviews `numbers`, whole, whatever the view."""
    return TOKENS[0, numbers]


def bag_taught(loss, opinion, view=read_views):
    """Train a bag of embeddings as notebook 06 did, in batches of reviews of similar length."""
    training.seed_everything(SEED)
    return training.fit(
        nets.imdb_bag(), Split(torch.arange(len(whole)), whole.labels), epochs=S.review_epochs, lr=3e-3, optimizer="adam",
        batch_size=64, batching=lambda split, size, generator: text.by_length(whole, size, generator), seed=SEED,
        loss=distillation.taught_from(opinion, view, loss=loss), progress=False,
    ).model  # fmt: skip


# %%
warm = partial(distillation.mixed_loss, temperature=2.0)
bags = {"labels alone": bag_taught(labels_alone, opinions["all three"])}
for name in tqdm(["imdb_lstm", "imdb_bigrams", "all three"], leave=False):
    bags[f"taught by {name}"] = bag_taught(warm, opinions[name])
bags["labels alone, whole reviews"] = bag_taught(labels_alone, opinions["all three"], view=read_whole)

# %%
bag_scores = {name: accuracy(bag, unseen_reviews) for name, bag in bags.items()}

# %% tags=["plumbing"]
run.record("reviews_validation", bag_scores)
table = pd.DataFrame({"validation accuracy (%)": {name: 100 * score for name, score in bag_scores.items()}})
fig = show.bars(table.iloc[:, 0].to_dict(), title=f"Reviews, one seed:\n{leader(bag_scores)}",
                 xlabel="validation accuracy (%)", label="{:.1f}")  # fmt: skip
show.figure(fig, alt=f"Accuracy of {len(bags)} bags. {show.in_words(table, '{:.1f}')}", table=table)

# %%
right = pd.DataFrame(
    {
        name: training.predict(bag, unseen_reviews.inputs).argmax(1).eq(unseen_reviews.labels).float()
        for name, bag in bags.items()
    }
)
controls = [name for name in bags if name.startswith("labels alone")]
lines = [f"- {control}: {gain_of(right, 'taught by all three', control)}" for control in controls]

# %% tags=["plumbing"]
say(
    "“Taught by all three” against (mean, 95 % interval paired by review, for these very bags):\n\n" + "\n".join(lines)
    + f"\n\nThe teachers have seen {len(reviews.train):,} reviews, the students {len(whole):,}."
)  # fmt: skip

# %% [markdown]
# ## 13. When there is nothing left to distil
#
# A teacher helps by telling what the data does not. What is left to tell when the data tells more? The student of 30
# units, the same number of steps each time, and three recipes: few digits; all the digits of the sections above; and
# the same digits, moved. But a teacher is asked about the student's inputs only: with few digits, there are few
# questions.
#
# **Predict** how much the teacher adds to each.


# %%
same = {"count": S.few, "epochs": S.digits * S.epochs // S.few}
recipes = {}
for name, loss in tqdm({"labels": labels_alone, "taught": mixed}.items(), leave=False):
    recipes[f"{S.few:,} digits", name] = [tiny(loss, plain, seed, **same) for seed in SEEDS]
    known_already = found["labels alone" if name == "labels" else "soft targets and labels"]
    recipes[f"{S.digits:,} digits", name] = known_already.tolist()
    recipes[f"{S.digits:,} digits, moved", name] = [tiny(loss, answers, seed, view=moved) for seed in SEEDS]
recipes = pd.DataFrame(recipes, index=SEEDS).sort_index(axis=1, level=0, sort_remaining=False)

# %%
added = {recipe: 100 * (recipes[recipe]["taught"] - recipes[recipe]["labels"]) for recipe in recipes.columns.levels[0]}

# %% tags=["plumbing"]
run.record("recipes", {recipe: values.tolist() for recipe, values in added.items()})
order = [f"{S.few:,} digits", f"{S.digits:,} digits", f"{S.digits:,} digits, moved"]
fig, ax = plt.subplots(figsize=(8.5, 3))
for place, recipe in enumerate(order):
    ax.plot(added[recipe], [place] * len(SEEDS), "o", color=show.COLOURS[0], alpha=0.6)
    ax.plot(added[recipe].mean(), place, "|", color="black", markersize=20, markeredgewidth=2)
ax.axvline(0, color="black", linewidth=1)
ax.set_yticks(range(3), order)
ax.invert_yaxis()
weak, strong = added[order[0]].mean(), added[order[-1]].mean()
ax.set(title=f"From {weak:+.1f} points with the weakest recipe to {strong:+.1f}", xlabel="points that the teacher adds")
table = pd.DataFrame({"points added": {recipe: added[recipe].mean() for recipe in order}})
show.figure(fig, alt=f"Gain by recipe. {show.in_words(table, '{:+.2f}')}", table=table)

# %%
lines = [
    f"- {recipe}: labels {recipes[recipe]['labels'].mean():.1%}, taught {recipes[recipe]['taught'].mean():.1%}; "
    f"{gain_of(recipes[recipe], 'taught', 'labels')}"
    for recipe in order
]

# %% tags=["plumbing"]
say("\n".join(lines))

# %%
says = {"better": "it grows", "worse": "it shrinks", "undecided": "undecided"}
lines = []
for before_it, recipe in pairwise(order):
    low, high = statistics.paired_interval(added[recipe], added[before_it])
    lines.append(
        f"- from {before_it} to {recipe}: {(added[recipe] - added[before_it]).mean():+.2f} points ({low:+.2f} to "
        f"{high:+.2f}): {says[verdict(added[recipe], added[before_it])]}"
    )

# %% tags=["plumbing"]
say("The teacher's part, as the recipe improves:\n\n" + "\n".join(lines))

# %% [markdown]
# On ImageNet the teacher's part has gone all the way to zero, and below. Trained with a strong recipe (long, with heavy
# augmentation and smoothed labels), a student can lose by plain distillation. Three of the reasons that were found:
#
# - the recipe already does what the teacher did: it smooths the targets and forbids certainty;
# - a teacher that was itself trained with smoothed labels has forgotten what is like what (Müller, Kornblith and Hinton
#   2019, *When Does Label Smoothing Help?*);
# - the teacher was asked about other inputs than the student saw. Teacher and student must see the *same* crop, and then
#   patience pays (Beyer et al. 2022, *Knowledge Distillation: A Good Teacher Is Patient and Consistent*). Looked-up
#   answers for views drawn anew would be that very mistake.

# %%
published = pd.concat(evidence.literature(task) for task in ("imagenet-distillation", "cifar100-distillation"))
lines = ["| network | trained by | accuracy (%) | source | read there |", "|---|---|---|---|---|"]
for row in published.itertuples():
    read = "yes" if row.seen else "not yet"
    lines.append(f"| {row.model} | {row.method} | {100 * row.accuracy:.2f} | {row.source} | {read} |")

# %% tags=["plumbing"]
say("\n".join(lines) + "\n\nThe last column says whether the number was checked in the paper itself.")

# %% [markdown]
# ## 14. Exercises
#
# **12.1 · The gradient by hand.** Section 3 has the derivative for one example. Write the gradient of `soft_loss` by the
# student's logits, for a batch, with $T^2$ and the mean. No autograd.


# %%
def soft_gradient(student, teacher, temperature):
    """Return the gradient of soft_loss(student, teacher, temperature) by `student`: (batch, classes)."""
    ### BEGIN SOLUTION
    q, p = torch.softmax(student / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)
    return temperature * (q - p) / len(student)
    ### END SOLUTION


exercises.check("12.1", soft_gradient)

# %% [markdown]
# **12.2 · Predict the doubt.** Section 1 measured by how much LeNet-5's right logit leads the mean of the other nine.
# From that number alone: how much probability is left for the right digit at $T = 20$, on average? Pretend that the other
# nine are equal. Within 15 % is right.


# %%
def predicted_probability():
    """Return the mean probability (0 to 1) of the right digit at T = 20."""
    ### BEGIN SOLUTION
    lead = 25  # from section 1, rounded
    return 1 / (1 + 9 * math.exp(-lead / 20))
    ### END SOLUTION


measured = softened(said, 20).gather(1, unseen.labels[:, None]).mean().item()
exercises.check("12.2", predicted_probability, measured=measured)

# %% [markdown]
# **12.3 · Labels are dear, digits are cheap.** A teacher needs no labels. Write the mixed loss for a batch in which some
# labels are unknown: they are $-1$. The soft targets are for every example, the cross-entropy is the mean over the
# *known* labels, and 0 if there is none in the batch. `distillation.soft_target_loss` may be used.


# %%
def loss_with_few_labels(student, teacher, labels, temperature=4.0, share=0.9):
    """Return the share of the soft-target loss, and for the rest the cross-entropy of the known labels."""
    ### BEGIN SOLUTION
    known = labels >= 0
    soft = distillation.soft_target_loss(student, teacher, temperature=temperature)
    hard = F.cross_entropy(student[known], labels[known], reduction="sum") / known.sum().clamp(min=1)
    return share * soft + (1 - share) * hard
    ### END SOLUTION


feedback = exercises.check("12.3", loss_with_few_labels)
feedback

# %% tags=["plumbing"]
if feedback.right:
    LABELLED = 100
    few_labels = torch.where(torch.arange(S.digits) < LABELLED, LABELS[: S.digits], -1)
    loss = distillation.taught_from(plain, still, loss=loss_with_few_labels)
    training.seed_everything(SEED)
    digits = Split(torch.arange(S.digits), few_labels)
    model = training.fit(nets.MLP(30), digits, epochs=S.epochs, lr=LR[30], optimizer="adam", loss=loss, seed=SEED,
                         progress=False).model  # fmt: skip
    say(
        f"{LABELLED} labels and a teacher: {accuracy(model):.1%} (one seed). With all {S.digits:,} labels and the "
        f"teacher: {found['soft targets and labels'].mean():.1%}; with all labels and no teacher: "
        f"{found['labels alone'].mean():.1%} (means of {len(SEEDS)} seeds)."
    )

# %% [markdown]
# ## What was measured
#
# The test examples, once. Which students are tested was fixed beforehand: labels alone, and soft targets with labels; of
# the photographs also the one with attention; of the reviews the one taught by all three.

# %%
test = mnist.test.take(S.test)
base_test = run.test("mlp800-labels", hinton["labels alone"], test)
taught_test = run.test("mlp800-taught", hinton["soft targets and labels"], test)
teacher_test = run.test("mnist-teachers", ensemble, test)
wrong = {name: each.count - each.correct for name, each in
         {"teachers": teacher_test, "labels alone": base_test, "taught": taught_test}.items()}  # fmt: skip

# %% tags=["plumbing"]
run.record("hinton_test", wrong)
if PROFILE == "full":
    run.claim("hinton-test", "Test errors of Hinton's student, taught, of 10,000: mean over the seeds", wrong["taught"],
              at_most=74, over_seeds=True)  # fmt: skip
    run.claim("hinton-saved", "Test errors that the teachers save it: mean over the seeds",
              wrong["labels alone"] - wrong["taught"], at_least=1, over_seeds=True)  # fmt: skip
say(
    f"**Digits**: the students saw {S.hinton:,}, moved by up to {counted(S.pixels, 'pixel')}. Errors on "
    f"{base_test.count:,} test digits: {the_teachers} {wrong['teachers']}, labels alone **{wrong['labels alone']}**, "
    f"taught **{wrong['taught']}**. Hinton's, with 60,000 digits: teacher {theirs.iloc[0]}, labels alone "
    f"{theirs.iloc[1]} (digits not moved), taught {theirs.iloc[2]}."
)

# %%
tested = ["labels alone", "soft targets and labels", "all three"]
photo_tests = {way: run.test(f"photos, {way}", pupils[way], cifar.test.take(S.photo_test)) for way in tested}
photo_scores = {way: each.accuracy for way, each in photo_tests.items()}

# %% tags=["plumbing"]
run.record("photos_test", photo_scores)

# %%
test_texts = reviews.test.take(S.held_out)
test_reviews = Split(as_words(tokens_of(test_texts)), torch.tensor(test_texts.labels), is_test=True)
bag_tests = {
    name: run.test(f"reviews, {name}", bags[name], test_reviews) for name in ("labels alone", "taught by all three")
}
review_scores = {name: each.accuracy for name, each in bag_tests.items()}

# %% tags=["plumbing"]
run.record("reviews_test", review_scores)
say("**Photographs**: " + ", ".join(f"{way} {score:.2%}" for way, score in photo_scores.items()) + ".")
say("**Reviews**: " + ", ".join(f"{name} {score:.1%}" for name, score in review_scores.items()) + ".")

# %% [markdown]
# And over the seeds of all full runs that exist:


# %%
def over_seeds(key, current):
    """What each full run measured under `key` (rows: seeds): those on file, and this one if it is full."""
    files = {seed: evidence.load("12_distill", profile="full", seed=seed) for seed in range(10)}
    of_seed = {seed: file.measurements[key] for seed, file in files.items() if file and key in file.measurements}
    return pd.DataFrame(of_seed | ({SEED: current} if PROFILE == "full" else {})).T


on_photos, on_digits = over_seeds("photos_test", photo_scores), over_seeds("hinton_test", wrong)
on_reviews = over_seeds("reviews_test", review_scores)

# %% tags=["plumbing"]
if len(on_photos) >= 2:
    lines = [f"- photographs, {way}: {gain_of(on_photos, way, 'labels alone')}" for way in tested[1:]]
    lines.append(f"- reviews, taught by all three: {gain_of(on_reviews, 'taught by all three', 'labels alone')}")
    low, high = statistics.paired_interval(on_digits["labels alone"], on_digits["taught"])
    mean = on_digits.mean()
    lines.append(
        f"- digits: {mean['labels alone']:.1f} errors with labels alone, {mean['taught']:.1f} taught; {low:.1f} to "
        f"{high:.1f} saved"
    )
    say(f"Against labels alone, {len(on_photos)} full runs, paired 95 % interval:\n\n" + "\n".join(lines))
else:
    say(f"On file: {counted(len(on_photos), 'full run')}, too few for an interval.")

# %%
one_digit, one_photo, one_review = IMAGES[:1], photos.inputs[:1], torch.zeros(1, 1, dtype=torch.int64)

# %% tags=["plumbing"]
for name, model, evaluation, task, example, base in [
    ("mlp800-labels", hinton["labels alone"], base_test, "mnist", one_digit, None),
    ("mlp800-taught", hinton["soft targets and labels"], taught_test, "mnist", one_digit, "mlp800-labels"),
    ("cifar-student-labels", pupils["labels alone"], photo_tests["labels alone"], "cifar10", one_photo, None),
    ("cifar-student-taught", pupils["soft targets and labels"], photo_tests["soft targets and labels"], "cifar10", one_photo,
     "cifar-student-labels"),
    ("imdb-bag-taught", bags["taught by all three"], bag_tests["taught by all three"], "imdb", one_review, None),
]:  # fmt: skip
    run.model(name, task=task, method="soft targets and labels" if "taught" in name else "labels alone", base=base,
              techniques=["a teacher"] * ("taught" in name),
              accuracy=evaluation.accuracy, weights=measure.count_weights(model), nonzero=measure.count_nonzero(model),
              macs=measure.count_macs(model, example))  # fmt: skip
run.finish()

# %% [markdown]
# **Remember**
# - A soft target says what is like what, and how sure one may be. Both are lost in a label.
# - Forget $T^2$ at $T = 4$, and the teacher is heard at a sixteenth of its voice; take `mean` for `batchmean` with ten
#   classes, and at a tenth. Neither is an error to PyTorch.
# - The teacher is frozen, in evaluation mode, and sees the same view as the student. Then its answers can be looked up.
# - The control has the same inputs, and the same steps. And ask whose data the gain comes from.
# - What a teacher adds depends on the recipe. Improve the recipe first; then measure what is left to distil.
#
# **Read**
# - Buciluă, Caruana and Niculescu-Mizil 2006, *Model Compression*: where it began. Ba and Caruana 2014, *Do Deep Nets
#   Really Need to be Deep?*
# - Hinton, Vinyals and Dean 2015, *Distilling the Knowledge in a Neural Network*.
# - Zagoruyko and Komodakis 2017, *Paying More Attention to Attention*.
# - Beyer et al. 2022, *Knowledge Distillation: A Good Teacher Is Patient and Consistent*.
# - Stanton et al. 2021, *Does Knowledge Distillation Really Work?*: students agree with their teachers less than you
#   think.
#
# **Next**: notebook 15 puts pruning, quantization and teachers together. In which order?
