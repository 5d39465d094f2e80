# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   reads: [18_transformer]
# ---

# %% [markdown]
# # 18 · Transformer: does all of it hold for attention?
#
# The networks that people make smaller today are transformers. So here is one: MiniLM, six layers, pretrained on a billion pairs of
# sentences and fine-tuned by this course to judge film reviews. You take it apart in the ways of all the notebooks before: heads, neurons,
# layers, words, low rank, eight bits, four bits. Then come two methods that were made for large language models, GPTQ and Wanda. Each is
# twenty lines or fewer, and you know the idea already, from notebooks 03 and 09.
#
# **You will be able to**
# - say where a transformer's parameters, multiplications and milliseconds sit, and why that depends on the length of the text;
# - remove attention heads, neurons, layers and words for real, and tell which of them makes it faster;
# - write group-wise 4-bit quantization, GPTQ and Wanda from scratch, and check each against an independent computation;
# - choose between a low-rank layer, a 4-bit layer and a smaller network by what each costs on a CPU;
# - teach a bag of words what the transformer knows.
#
# **Before this**: notebook 03 (the Hessian of a layer), notebook 06 (a table of words), notebook 09 (grids, rounding by the output), notebook 16
# (runtimes).

# %% tags=["parameters"]
import os

PROFILE = os.environ.get("COURSE_PROFILE", "quick")  # smoke | quick | full
SEED = 0

# %% tags=["plumbing"]
import math
from collections import Counter
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import onnx
import pandas as pd
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from helpers import (
    checkpoints,
    data,
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
from helpers.core import modules, paths, vocabulary
from helpers.data import Split, pieces, text
from helpers.evidence import say

# %% tags=["plumbing"]
run = evidence.start("18_transformer", profile=PROFILE, seed=SEED)
show.style()
say(evidence.timetable("18_transformer"))

# %% [markdown]
# The answer first. The network at the top read the films' reviews with six layers. Below it is what this page makes of it, each with the bytes of
# its file. A dot is one published run.

# %% tags=["plumbing", "answer"]
TITLES = {
    "imdb_minilm": "six layers, half precision",
    "imdb_minilm-bits": "six layers, few bits, fewer pieces",
    "imdb_minilm-small": "three layers, few bits, fewer pieces",
    "imdb_taught": "a bag of pairs, taught",
    "imdb_untaught": "the same bag, not taught",
}
found = {name: [] for name in TITLES}
for result in evidence.published("18_transformer"):
    for model in result.models:
        found[model.name].append((100 * model.accuracy, model.file_bytes / 1e6))
if all(found.values()):
    megabytes = {name: np.mean([size for _, size in rows]) for name, rows in found.items()}
    fig = show.dots(
        {f"{TITLES[name]}: {megabytes[name]:.3g} MB": [a for a, _ in rows] for name, rows in found.items()},
        title="A transformer, and what is left of it",
        xlabel="test accuracy on films that training has not seen (%)",
        label="{:.1f}",
    )
    table = pd.DataFrame({TITLES[name]: [a for a, _ in rows] for name, rows in found.items()}).rename_axis("run").T
    table["file (MB)"] = megabytes.values()
    show.figure(
        fig, alt=f"Test accuracy (%) and megabytes of the published runs. {show.in_words(table, '{:.1f}')}", table=table
    )
else:
    say("This page has no published runs yet.")

# %% [markdown]
# And the idea in one picture: one layer of the network. Each token looks at all others (attention), then passes through two linear layers by itself.
# The boxes are as tall as their share of the multiplications, for a short text and for a long one.

# %% tags=["plumbing"]
WIDE, HIDDEN, LAYERS = 384, 1_536, 6


def layer_macs(tokens):
    """Multiplications of one layer, by part: four square matrices, two products of tokens with tokens, two matrices."""
    return {
        "query, key,\nvalue, output": 4 * tokens * WIDE**2,
        "tokens × tokens": 2 * tokens**2 * WIDE,
        "feed-forward": 2 * tokens * WIDE * HIDDEN,
    }


fig, ax = plt.subplots(figsize=(9, 3.6))
lengths_drawn = (32, 256, 2_048)
for column, tokens in enumerate(lengths_drawn):
    bottom, parts = 0.0, layer_macs(tokens)
    for (name, macs), colour in zip(parts.items(), (show.COLOURS[0], show.COLOURS[1], show.COLOURS[2]), strict=True):
        share = macs / sum(parts.values())
        ax.bar(column, share, 0.6, bottom=bottom, color=colour, edgecolor="black", linewidth=0.6)
        if share > 0.08:
            ax.text(
                column, bottom + share / 2, f"{name}\n{share:.0%}", ha="center", va="center", fontsize=9, color="white"
            )
        bottom += share
ax.set_xticks(range(3), [f"{tokens:,} tokens" for tokens in lengths_drawn])
ax.set(
    ylim=(0, 1),
    ylabel="share of the MACs",
    title="The longer the text, the more of the work is tokens looking at tokens",
)
show.figure(fig, alt="Three stacked bars for 32, 256 and 2,048 tokens. The products of tokens with tokens grow from 1 to "
            "47 percent of a layer's multiplications; the four square matrices and the feed-forward part share the rest.",
            table=pd.DataFrame({f"{t:,} tokens": layer_macs(t) for t in lengths_drawn}))  # fmt: skip

# %% [markdown]
# The settings that matter: `reviews` judge every change, cut to `tokens` pieces (the first quarter and the end of a longer one);
# `calibration` reviews of training are what scores, GPTQ and Wanda look at; `retrain` reviews teach the network of fewer layers.

# %% tags=["plumbing"]
S = evidence.settings(
    PROFILE,
    smoke=dict(reviews=16, calibration=16, tokens=24, counted=300, rare=2, ablated=2, lengths=(16, 32), rounds=20,
               retrain=64, epochs=1, bag_reviews=128, bag_words=500, tested=16),
    quick=dict(reviews=100, calibration=48, tokens=128, counted=2_000, rare=3, ablated=12, lengths=(32, 128, 512), rounds=20,
               retrain=0, epochs=0, bag_reviews=3_000, bag_words=30_000, tested=100),
    full=dict(reviews=500, calibration=256, tokens=256, counted=20_000, rare=20, ablated=72, lengths=(32, 128, 512), rounds=30,
              retrain=6_400, epochs=2, bag_reviews=20_000, bag_words=30_000, tested=2_500),
)  # fmt: skip
training.seed_everything(SEED)
torch.set_num_threads(2)

# %% [markdown]
# ## 1. Where it all is
#
# Reviews become **pieces**: frequent words are one piece, rare ones several. The tokenizer came with the network, and so did its 30,522 pieces.

# %%
words, reviews = pieces.words(), data.imdb()
print(pieces.tokenize(["An unwatchable, overlong disaster.<br />Avoid!"])[0])


def numbered(split, count):
    """The first `count` reviews as numbers of pieces."""
    return pieces.as_split(split.take(count), words, max_tokens=S.tokens, head=S.tokens // 4)


validation, calibration = numbered(reviews.validation, S.reviews), numbered(reviews.train, S.calibration)
net = checkpoints.load("imdb_minilm")

# %% [markdown]
# **Predict**: which part of the network has the most parameters, and how much of the work does it do?


# %%
def part_of(layer):
    """The part of the network that a layer belongs to."""
    if layer in ("embedding", "position"):
        return f"vectors ({layer})"
    if "attention" in layer:
        return "attention"
    return "feed-forward" if ".fc" in layer else "norms, classifier"


rows = measure.layer_table(net, validation.inputs[:1])
parts = rows.groupby(rows["layer"].map(part_of))[["parameters", "macs"]].sum()

# %% tags=["plumbing"]
parts["MB in half precision"] = parts["parameters"] * 2 / 1e6
shares = (
    (parts[["parameters", "macs"]] / parts[["parameters", "macs"]].sum()).map("{:.0%}".format).add_prefix("share of ")
)
table_share = float(parts.loc["vectors (embedding)", "parameters"] / parts["parameters"].sum())
run.claim("table-holds-half", "Share of the parameters that are vectors of pieces", table_share, at_least=0.5)
say(f"The table of pieces holds {table_share:.0%} of {int(parts['parameters'].sum()):,} parameters, and looking a vector up multiplies nothing: notebook "
    "06's lesson again. What takes bytes and what takes time are different parts.")  # fmt: skip
parts.join(shares)

# %% [markdown]
# The formula of the drawing must give what the helper counts, module by module: 4·n·d² for the four matrices, 2·n²·d for tokens
# looking at tokens, 2·n·d·h for the two linear layers, with n tokens, d = 384 and h = 1,536.

# %% tags=["plumbing"]
differences = []
for length in S.lengths:
    tokens = torch.randint(5, 20_000, (1, length))
    counted = measure.count_macs(net, tokens)
    differences.append(abs(counted - LAYERS * sum(layer_macs(length).values()) - 2 * WIDE))
run.claim(
    "macs", "Largest difference between the closed form and the helper's count, in MACs", max(differences), at_most=0
)
longest = measure.layer_table(net, torch.randint(5, 20_000, (1, S.lengths[-1])))
longest[longest["layer"].str.startswith("layers.0")][["layer", "kind", "parameters", "macs"]]

# %% [markdown]
# From 32 tokens to 512 the text gets 16 times as long. **Predict**: how many times as long does the network take?


# %% tags=["plumbing"]
def text_of(length, count=1):
    """A text of `length` pieces that are drawn at random: only its length matters to the clock."""
    return torch.randint(5, 20_000, (count, length), generator=torch.Generator().manual_seed(length))


with torch.inference_mode():
    of_lengths = {f"{n} tokens": partial(net, text_of(n)) for n in S.lengths}
    again = partial(modules.copied(net), text_of(S.lengths[0]))
    length_clock = measure.compare(measure.time_interleaved(of_lengths, rounds=S.rounds, threads=2, control=again))
longer = 1 / length_clock[f"{S.lengths[-1]} tokens"].ratio
macs_longer = sum(layer_macs(S.lengths[-1]).values()) / sum(layer_macs(S.lengths[0]).values())
run.record("longer", {"time": longer, "length": S.lengths[-1] / S.lengths[0], "macs": macs_longer}, timing=True)
say(f"{S.lengths[-1] / S.lengths[0]:.0f} times the tokens are {macs_longer:.1f} times the multiplications, and took {longer:.1f} times as long "
    "in PyTorch on two threads.")  # fmt: skip
measure.verdict_table(length_clock)

# %% [markdown]
# ## 2. Attention in eight lines
#
# Each head compares a **query** of every token with a **key** of every token, makes a mean of the **values** with the softmax of these
# products as weights, and the heads' results are joined (Vaswani et al. 2017). √w, the root of a head's width, keeps the products from growing with it.


# %%
def attention(x, layer, real):
    """Return what `layer`, a nets.Attention, gives for tokens x of shape (batch, length, numbers)."""
    projected = [part(x).unflatten(2, (layer.heads, layer.width)) for part in (layer.query, layer.key, layer.value)]
    query, key, value = (each.transpose(1, 2) for each in projected)  # (batch, heads, length, width)
    alike = query @ key.transpose(2, 3) / math.sqrt(layer.width)
    alike = alike.masked_fill(~real, -math.inf)  # nobody looks at padding
    mixed = alike.softmax(dim=-1) @ value
    return layer.output(mixed.transpose(1, 2).flatten(2))


# %% tags=["plumbing"]
def library_attention(layer):
    """PyTorch's own nn.MultiheadAttention with the same weights."""
    same = nn.MultiheadAttention(WIDE, layer.heads, batch_first=True).eval()
    with torch.no_grad():
        same.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        same.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        same.out_proj.load_state_dict(layer.output.state_dict())
    return same


with torch.inference_mode():
    x = net.embedding(validation.inputs[:4])
    real = (validation.inputs[:4] != 1)[:, None, None, :]
    first = net.layers[0].attention
    by_cell, by_helper = attention(x, first, real), first(x, real)
    by_library, _ = library_attention(first)(x, x, x, key_padding_mask=~real[:, 0, 0])
    counts_here = validation.inputs[:4] != 1
    gaps = [
        float((by_cell - other)[counts_here].abs().max() / by_cell.abs().max()) for other in (by_helper, by_library)
    ]
run.claim(
    "attention-same",
    "Largest relative difference between the cell, the helper and nn.MultiheadAttention",
    max(gaps),
    at_most=1e-4,
)
say(f"The cell, the helper and `nn.MultiheadAttention` differ by at most {max(gaps):.0e}.")

# %% [markdown]
# ## 3. Which heads matter?
#
# A network of six layers with twelve heads has 72. How much does each do? The honest way is **ablation**: silence one head, count the loss. It takes
# 72 passes. The quick way is a **Taylor score** (Michel et al. 2019): put a gate g = 1 on each head's output; the loss changes by about
# |∂L/∂g| when the gate closes. One backward pass scores all heads at once.


# %%
def gated_scores(model, tokens, labels):
    """Return |dL/dg| for the gate of each head, one row a layer."""
    gates = [torch.ones(layer.attention.heads, 1, requires_grad=True) for layer in model.layers]
    hooks = [
        layer.attention.output.register_forward_pre_hook(
            lambda _, given, gate=gate, width=layer.attention.width: (
                given[0].unflatten(2, (-1, width)).mul(gate).flatten(2),
            )
        )
        for layer, gate in zip(model.layers, gates, strict=True)
    ]
    F.cross_entropy(model(tokens), labels).backward()
    for hook in hooks:
        hook.remove()
    return torch.stack([gate.grad.abs().flatten() for gate in gates])


one_review = calibration.inputs[:1], calibration.labels[:1]
by_hand = gated_scores(modules.copied(net), *one_review)

# %% tags=["plumbing"]
scores = pruning.head_scores(net, calibration.take(1))
helper_one = torch.stack([scores[f"layers.{i}.attention"] for i in range(LAYERS)])
run.claim("gates-same", "Largest relative difference between the cell's scores and the helper's, one review",
          float((helper_one - by_hand).abs().max() / by_hand.abs().max()), at_most=1e-3)  # fmt: skip
scores = pruning.head_scores(net, calibration)
taylor = torch.stack([scores[f"layers.{i}.attention"] for i in range(LAYERS)])


def without_head(layer, head):
    """A copy in which one head is silent: the columns that read it are zero."""
    quiet = modules.copied(net)
    attention_layer = quiet.layers[layer].attention
    attention_layer.output.weight.data[:, head * attention_layer.width : (head + 1) * attention_layer.width] = 0
    return quiet


places = [(i, h) for i in range(LAYERS) for h in range(12)][:: 72 // S.ablated][: S.ablated]
few = calibration.take(min(64, S.calibration))
dense_loss = training.evaluate(net, few, batch_size=32).loss
ablation = [abs(training.evaluate(without_head(*place), few, batch_size=32).loss - dense_loss) for place in places]
agreeing = statistics.rank_correlation(
    {"heads": torch.stack([taylor[place] for place in places])}, {"heads": torch.tensor(ablation)}
)
run.record("head_scores", {"taylor": taylor.tolist(), "ablation": ablation})
say(f"Over {len(places)} heads the ranks of the two agree to {agreeing.value:.2f} (Spearman; 1 is the same order). Heads differ: the largest Taylor score "
    f"is {float(taylor.max() / taylor.median()):.0f} times the median.")  # fmt: skip

# %% tags=["plumbing"]
fig, ax = plt.subplots(figsize=(8, 3.4))
image = ax.imshow(taylor / taylor.max(), cmap="Greys", aspect="auto", vmin=0)
ax.set_xticks(range(12), range(1, 13))
ax.set_yticks(range(LAYERS), range(1, LAYERS + 1))
ax.set(xlabel="head", ylabel="layer", title="Taylor score of each head, as a share of the largest")
ax.grid(visible=False)
fig.colorbar(image, ax=ax)
show.figure(fig, alt="A grid of 6 layers and 12 heads, darker where the Taylor score is larger.",
            table=pd.DataFrame((taylor / taylor.max()).numpy(), range(1, LAYERS + 1), range(1, 13)))  # fmt: skip

# %% [markdown]
# Now remove a third of them for real: the rows of query, key and value, and the columns of output, are cut out. As a control, a third at random.


# %%
def fewest(scores, share):
    """The heads of the lowest scores in the whole network, by layer; each layer keeps one at least."""
    order = scores.flatten().argsort().tolist()[: round(share * scores.numel())]
    kept_best = scores.argmax(dim=1).tolist()
    chosen = [(place // 12, place % 12) for place in order]
    return {f"layers.{i}.attention": [h for j, h in chosen if j == i and h != kept_best[i]] for i in range(LAYERS)}


fewer_heads = pruning.remove_heads(net, fewest(taylor, 1 / 3))
random_heads = pruning.remove_heads(net, fewest(torch.rand(LAYERS, 12), 1 / 3))


# %% tags=["plumbing"]
dense_logits = training.predict(net, validation.inputs, batch_size=32)
dense_margin = dense_logits[:, 1] - dense_logits[:, 0]
JUDGED = {}


def judged(name, model, inputs=None):
    """Judge a variant on the validation reviews: its accuracy, the answers that changed, how far the logits moved (of their root mean square)."""
    logits = training.predict(model, validation.inputs if inputs is None else inputs, batch_size=32)
    margin = logits[:, 1] - logits[:, 0]
    JUDGED[name] = {
        "accuracy (%)": 100 * float((logits.argmax(1) == validation.labels).double().mean()),
        "answers changed (%)": 100 * float((logits.argmax(1) != dense_logits.argmax(1)).double().mean()),
        "logits moved (%)": 100
        * float((margin - dense_margin).square().mean().sqrt() / dense_margin.square().mean().sqrt()),
    }
    return JUDGED[name]


def shown(*names):
    """The rows of JUDGED with these names."""
    return pd.DataFrame({name: JUDGED[name] for name in names}).T.round(1)


judged("dense", net)
judged("a third of the heads gone, by Taylor", fewer_heads)
judged("a third of the heads gone, at random", random_heads)
shown(*JUDGED)

# %% [markdown]
# ## 4. Neurons, layers, pieces
#
# **Neurons.** Between its two linear layers each token has 1,536 numbers. A neuron's worth is how strongly it fires times how much of it is read:
# the mean of |activation| times the length of its column in `fc2`. Half of them go.


# %%
def neuron_worth(model, tokens):
    """Return for each layer the mean of |activation| times the norm of the column that reads it."""
    means = []
    hooks = [
        layer.fc2.register_forward_pre_hook(lambda _, given: means.append(given[0].abs().mean(dim=(0, 1))))
        for layer in model.layers
    ]
    with torch.no_grad():
        model(tokens)
    for hook in hooks:
        hook.remove()
    return [mean * layer.fc2.weight.detach().norm(dim=0) for mean, layer in zip(means, model.layers, strict=True)]


# %%
def without_neurons(model, keep):
    """Return a copy whose feed-forward parts have only the neurons of `keep`, a mask for each layer."""
    smaller = modules.copied(model)
    for layer, mask in zip(smaller.layers, keep, strict=True):
        layer.fc1.weight, layer.fc1.bias = nn.Parameter(layer.fc1.weight[mask]), nn.Parameter(layer.fc1.bias[mask])
        layer.fc2.weight = nn.Parameter(layer.fc2.weight[:, mask])
        layer.fc1.out_features = layer.fc2.in_features = int(mask.sum())
    return smaller


worth = neuron_worth(net, calibration.inputs[:32])
half_hidden = without_neurons(net, [values > values.median() for values in worth])

# %% [markdown]
# **Layers.** Each layer adds to what came in, so a network without one still answers. Take out each of the six in turn, and nothing else.


# %%
def of_layers(model, numbers):
    """Return a copy that keeps these encoder layers alone."""
    smaller = modules.copied(model)
    smaller.layers = nn.ModuleList(smaller.layers[number] for number in numbers)
    return smaller


# %% tags=["plumbing"]
few_tokens, small = calibration.inputs[:2, :8], of_layers(net, (0,))
by_remover = pruning.remove_filters(small, {"layers.0.fc1": ~(worth[0] > worth[0].median())}, few_tokens)
by_cutting = without_neurons(small, [worth[0] > worth[0].median()])
with torch.inference_mode():
    gap = float((by_remover(few_tokens) - by_cutting(few_tokens)).abs().max())
run.claim(
    "neurons-same",
    "Largest difference of the logits between the cell's removal of neurons and the helper's, one layer",
    gap,
    at_most=1e-4,
)

# %% [markdown]
# **Pieces.** Notebook 06 again: which of the 30,522 pieces do film reviews use at all? Count them in training, drop the rare
# ones, and let them become "unknown".

# %%
seen = numbered(reviews.train, S.counted).inputs
counts = torch.bincount(seen.flatten(), minlength=len(words))
kept_pieces = counts >= S.rare
kept_pieces[:2] = True  # unknown, and padding
fewer_pieces = pruning.remove_words(net, kept_pieces, counts)
renumber = torch.where(kept_pieces, kept_pieces.cumsum(0) - 1, 0)

# %% tags=["plumbing"]
judged("half of the neurons gone", half_hidden)
for number in range(LAYERS):
    judged(f"without layer {number + 1}", of_layers(net, [i for i in range(LAYERS) if i != number]))
judged("fewer pieces", fewer_pieces, renumber[validation.inputs])
left = int(kept_pieces.sum())
run.record("pieces", {"kept": left, "of": len(words), "reviews": S.counted})
size_of = {name: 2 * sum(p.numel() for p in model.parameters()) / 1e6
           for name, model in {"dense": net, "fewer pieces": fewer_pieces, "half of the neurons gone": half_hidden}.items()}  # fmt: skip
say(f"{left:,} of {len(words):,} pieces occur {S.rare} times or more in {S.counted:,} reviews. Without the others the network has {size_of['fewer pieces']:.1f} MB in half "
    f"precision, of {size_of['dense']:.1f}; without half of its neurons {size_of['half of the neurons gone']:.1f}. The first costs no time and saves none.")  # fmt: skip
shown("dense", "half of the neurons gone", *(f"without layer {i + 1}" for i in range(LAYERS)), "fewer pieces")

# %% [markdown]
# ## 5. Low rank: by the weights, or by what the weights see?
#
# A matrix of 384 × 1,536 can be replaced by a product of two thin ones. The closest matrix of rank r is given by the singular value
# decomposition (Eckart and Young 1936): project W onto the first r eigenvectors of W Wᵀ. But closest for what? What counts is the layer's *output*, W x, for the
# inputs x that it really gets. The outputs' own products are W H Wᵀ, with H = mean of x xᵀ. So project onto the eigenvectors of that: the directions in which
# the outputs really lie. It is one matrix more.


# %%
def low_rank(weight, rank, products=None):
    """Return the best matrix of this rank: for the weight itself, or for outputs of inputs with these products."""
    spread = weight @ weight.T if products is None else weight @ products @ weight.T
    main = torch.linalg.eigh(spread).eigenvectors[:, -rank:]
    return main @ (main.T @ weight)


def output_error(weight, other, products):
    """Return the mean squared error of the layer's outputs, as a share of their mean square."""
    gap = weight - other
    return float(((gap @ products) * gap).sum() / ((weight @ products) * weight).sum())


# %% tags=["plumbing"]
products = quantization.input_products(net, calibration.inputs)
LINEAR = [name for name in products if name != "fc"]
HALF = {
    name: min(w.shape) * max(w.shape) // (2 * sum(w.shape)) for name in LINEAR for w in [net.get_submodule(name).weight]
}


def with_weights(change):
    """A copy of the network whose linear layers have the weights change(name, weight)."""
    new = modules.copied(net)
    for name in LINEAR:
        layer = new.get_submodule(name)
        layer.weight.data = change(name, layer.weight.data).contiguous()
    return new


plain = {name: low_rank(net.get_submodule(name).weight.data, HALF[name]) for name in LINEAR}
fitted = {name: low_rank(net.get_submodule(name).weight.data, HALF[name], products[name]) for name in LINEAR}
by_weights, by_outputs = (
    {name: output_error(net.get_submodule(name).weight.data, made[name], products[name]) for name in LINEAR}
    for made in (plain, fitted)
)
closest, kept_rank = net.layers[0].fc2.weight.data, HALF["layers.0.fc2"]
left, values, right = torch.linalg.svd(closest, full_matrices=False)
by_svd = (left[:, :kept_rank] * values[:kept_rank]) @ right[:kept_rank]
run.claim("low-rank-same", "Largest difference between the cell's low-rank matrix and that of torch.linalg.svd, as a share of the largest weight",
          float((plain["layers.0.fc2"] - by_svd).abs().max() / closest.abs().max()), at_most=1e-3)  # fmt: skip
gain = float(np.mean([by_outputs[name] / by_weights[name] for name in LINEAR]))
run.claim("low-rank-by-outputs", "Output error of a low-rank layer made for its inputs, as a share of that of plain SVD (mean of all layers)",
          gain, at_most=0.9)  # fmt: skip
judged("half the numbers by SVD", with_weights(lambda name, w: plain[name]))
judged("half the numbers by SVD of the outputs", with_weights(lambda name, w: fitted[name]))
say(
    f"Half of the numbers in each linear layer: made for its inputs, the error of the outputs is {gain:.2f} of plain SVD's, on average."
)
shown("dense", "half the numbers by SVD", "half the numbers by SVD of the outputs")

# %% [markdown]
# ## 6. Eight bits, four bits
#
# For weights, 8 bits with a scale for each row are enough (notebook 09). At 4 bits a row of 1,536 numbers is too long for one scale: one outlier stretches the
# grid for all. So each **group** of 64 neighbours gets a grid of its own, from its lowest number to its highest.


# %%
def rounded_by_groups(weight, bits, size=64):
    """Return the weight rounded to the nearest of 2^bits levels in each group of `size` neighbours of a row."""
    groups = weight.reshape(-1, size)
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    zero = (-low / scale).round()  # the code of 0
    codes = ((groups / scale).round() + zero).clamp(0, 2**bits - 1)
    return ((codes - zero) * scale).reshape(weight.shape)


# %% tags=["plumbing"]
def library_groups(weight, bits):
    """The same by torchao: `quantize_`, weights only, groups of 64."""
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.quant_primitives import MappingType

    holder = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    holder[0].weight.data = weight.clone()
    kind = getattr(torch, f"int{bits}")
    quantize_(
        holder, IntxWeightOnlyConfig(weight_dtype=kind, granularity=PerGroup(64), mapping_type=MappingType.ASYMMETRIC)
    )
    return holder[0].weight.dequantize()


one_weight = net.layers[0].fc2.weight.data
cell4 = rounded_by_groups(one_weight, 4)
helper4 = quantization.dequantize_groups(quantization.quantize_groups(one_weight, 4))
step = float((one_weight.reshape(-1, 64).amax(1) - one_weight.reshape(-1, 64).amin(1)).max() / 15)
differing = float(((cell4 - helper4).abs() > 1e-4 * step).double().mean())
library4 = library_groups(one_weight, 4)
differing_library = float(((cell4 - library4).abs() > 1e-4 * step).double().mean())
run.claim(
    "groups-same", "Share of a layer's weights that the cell rounds otherwise than the helper", differing, at_most=1e-3
)
run.claim(
    "groups-library",
    "Share of a layer's weights that the cell rounds otherwise than torchao",
    differing_library,
    at_most=0.01,
)
say(
    f"The cell rounds {differing:.2%} of a layer's weights otherwise than the helper, and {differing_library:.2%} otherwise than torchao's `quantize_`."
)

# %% tags=["plumbing"]
for bits in (8, 4, 3):
    judged(f"{bits} bits, groups, nearest", with_weights(lambda name, w, bits=bits: rounded_by_groups(w, bits)))
judged("4 bits, one grid a row, nearest", with_weights(lambda name, w: rounded_by_groups(w, 4, w.shape[1])))
say(
    f"A group of 64 weights at 4 bits takes 32 bytes, its scale 2 and its zero point half a byte: {(32 + 2.5) * 8 / 64:.2f} bits a weight."
)
shown(
    "8 bits, groups, nearest", "4 bits, groups, nearest", "4 bits, one grid a row, nearest", "3 bits, groups, nearest"
)

# %% [markdown]
# ## 7. GPTQ and Wanda: the Hessian of notebook 03, at work
#
# Notebook 03 asked what a weight's removal costs, and found the answer in the second derivative. For one linear layer and the squared error of its outputs that
# derivative is known exactly: it is H = mean of x xᵀ, the same for every row. **Optimal Brain Surgeon** removes a weight and moves the others to make up for it.
# **GPTQ** (Frantar et al. 2023) does the same with rounding: round one column, divide the error by the diagonal of a factor of H⁻¹, and take it off the columns
# that are still to come. They are rounded later, and so repair what has gone wrong.


# %%
def gptq(weight, products, bits, size=64):
    """Return the weight rounded column by column, each error made up for by the columns after it."""
    rest, result = weight.clone(), torch.empty_like(weight)
    damped = products + 0.01 * products.diagonal().mean() * torch.eye(len(products))
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    for column in range(weight.shape[1]):
        if column % size == 0:  # a group begins: its grid is that of the weights as they are now
            group = rest[:, column : column + size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = (high - low).clamp(min=1e-9) / (2**bits - 1)
            zero = (-low / scale).round()
        codes = ((rest[:, column] / scale).round() + zero).clamp(0, 2**bits - 1)
        result[:, column] = (codes - zero) * scale
        error = (rest[:, column] - result[:, column]) / factor[column, column]
        rest[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return result


# %% [markdown]
# **Predict**: on one layer, the second of a feed-forward part, by how much does GPTQ reduce the error of the outputs at 4 bits? At 3?

# %% tags=["plumbing"]
ONE = "layers.2.fc2"
one_weight, one_products = net.get_submodule(ONE).weight.data, products[ONE]
by_cell = {bits: gptq(one_weight, one_products, bits) for bits in (4, 3)}
by_helper = quantization.dequantize_groups(quantization.gptq(one_weight, one_products, 4))
run.claim("gptq-same", "Output error by which the cell's GPTQ and the helper's differ, as a share of round-to-nearest's",
          abs(output_error(one_weight, by_cell[4], one_products) - output_error(one_weight, by_helper, one_products))
          / output_error(one_weight, rounded_by_groups(one_weight, 4), one_products), at_most=0.02)  # fmt: skip
gptq_of = {bits: {name: quantization.dequantize_groups(quantization.gptq(net.get_submodule(name).weight.data, products[name], bits)) for name in LINEAR}
           for bits in (4, 3)}  # fmt: skip
layer_errors = pd.DataFrame({
    (f"{bits} bits", way): {name: output_error(net.get_submodule(name).weight.data, made(name, bits), products[name]) for name in LINEAR}
    for bits in (4, 3)
    for way, made in {"nearest": lambda name, bits: rounded_by_groups(net.get_submodule(name).weight.data, bits),
                      "GPTQ": lambda name, bits: gptq_of[bits][name]}.items()
})  # fmt: skip
ratios = {bits: layer_errors[(f"{bits} bits", "GPTQ")] / layer_errors[(f"{bits} bits", "nearest")] for bits in (4, 3)}
for bits in (4, 3):
    run.claim(f"gptq-{bits}", f"Output error of GPTQ at {bits} bits, as a share of round-to-nearest's: the mean over all linear layers",
              float(ratios[bits].mean()), at_most=0.8)  # fmt: skip
    judged(f"{bits} bits, groups, GPTQ", with_weights(lambda name, w, bits=bits: gptq_of[bits][name]))
run.record(
    "gptq",
    {
        str(bits): {
            "mean": float(ratios[bits].mean()),
            "best": float(ratios[bits].min()),
            "worst": float(ratios[bits].max()),
        }
        for bits in (4, 3)
    },
)
say(f"GPTQ's output error, as a share of round-to-nearest's: {ratios[4].mean():.2f} at 4 bits and {ratios[3].mean():.2f} at 3, the mean over {len(LINEAR)} layers; between "
    f"{ratios[3].min():.2f} and {ratios[3].max():.2f} by layer at 3 bits.")  # fmt: skip
shown("4 bits, groups, nearest", "4 bits, groups, GPTQ", "3 bits, groups, nearest", "3 bits, groups, GPTQ")

# %% tags=["plumbing"]
kinds = ("query", "key", "value", "output", "fc1", "fc2")
fig, ax = plt.subplots(figsize=(8.5, 3.4))
for place, kind in enumerate(kinds):
    of_kind = ratios[3][[name for name in LINEAR if name.endswith(kind)]]
    ax.scatter([place] * len(of_kind), of_kind, s=40, color=show.COLOURS[place % 6], zorder=3)
ax.axhline(1, color="black", linewidth=1)
ax.set_xticks(range(len(kinds)), kinds)
ax.set(
    ylim=(0, 1.1),
    ylabel="output error, share\nof round-to-nearest's",
    title="GPTQ at 3 bits: a dot is one of six layers, lower is better",
)
show.figure(fig, alt="For each kind of linear layer six dots: GPTQ's output error at 3 bits as a share of round-to-nearest's, all below 1.",
            table=ratios[3].round(2).rename("share").to_frame())  # fmt: skip

# %% [markdown]
# **Wanda** (Sun et al. 2024) prunes by the same H, but looks at its diagonal only: a weight's score is |w| times the root mean square of its input, and scores are
# compared within a row. No gradient, no training, two lines.


# %%
def wanda(weight, products, keep_share=0.5):
    """Return the mask that keeps the best share of each row."""
    scores = weight.abs() * products.diagonal().sqrt()
    least = scores.sort(dim=1).values[:, round((1 - keep_share) * weight.shape[1]), None]
    return scores >= least


# %% tags=["plumbing"]
helper_scores = pruning.wanda_scores(net, {name: products[name] for name in LINEAR})
magnitudes = {name: net.get_submodule(name).weight.data.abs() for name in LINEAR}
half_wanda = pruning.row_masks(helper_scores, 0.5)
half_magnitude = pruning.row_masks({f"{name}.weight": magnitudes[name] for name in LINEAR}, 0.5)
disagreeing = sum(
    int((half_wanda[f"{name}.weight"].bool() != wanda(net.get_submodule(name).weight.data, products[name])).sum())
    for name in LINEAR
)
run.claim(
    "wanda-same",
    "Weights that the cell's Wanda keeps and the helper's does not, or the other way round",
    disagreeing,
    at_most=0,
)
two_wanda = pruning.two_of_four(helper_scores)
two_magnitude = pruning.two_of_four({f"{name}.weight": magnitudes[name] for name in LINEAR})
for name, masks in {"half of the weights, magnitude": half_magnitude, "half of the weights, Wanda": half_wanda,
                    "two of four, magnitude": two_magnitude, "two of four, Wanda": two_wanda}.items():  # fmt: skip
    judged(name, with_weights(lambda layer, w, masks=masks: w * masks[f"{layer}.weight"]))
say(
    "Nothing was trained again here. Both kinds of zeros make the network neither smaller nor faster by themselves: that was notebooks 04 and 16."
)
shown("half of the weights, magnitude", "half of the weights, Wanda", "two of four, magnitude", "two of four, Wanda")

# %% [markdown]
# ## 8. The transformer as a teacher
#
# Everything so far was done to a trained network and left at that. Training again buys more (notebooks 05 and 12), and the best teacher is at hand. It is asked once, and its
# answers are kept: to each training review, and to each **window** of sixty words of it. What it thinks of one passage is worth more to a student than the verdict on the
# whole. A student learns the difference of the two logits, by its squared error (Ba and Caruana 2014): no label, no temperature.


# %%
def learning_logits(model, tokens, wanted):
    """Return the mean squared error between the model's difference of logits and the teacher's."""
    logits = model(tokens)
    return (logits[:, 1] - logits[:, 0] - wanted).square().mean()


print(pieces.windows(reviews.train.inputs[0])[0])
says = checkpoints.teachers_answers("imdb_minilm") @ torch.tensor([-1.0, 1.0])  # positive: praise

# %% tags=["plumbing"]
asked_again = checkpoints.ask(net, reviews.train.inputs[:4]) @ torch.tensor([-1.0, 1.0])
moved = float((asked_again - says[:4]).abs().max() / says.square().mean().sqrt())
run.claim(
    "teacher-same",
    "Largest difference of the teacher's answers to four reviews from those that are kept, as a share of a typical one",
    moved,
    at_most=0.1,
)


def by_length(split, size, generator):
    """An epoch's batches of texts of similar length."""
    return text.by_length(split, size, generator)


# %% [markdown]
# **Fewer layers.** The student is made of the teacher's own layers, the first, the third and the last, with the table of pieces that reviews use. In full it is trained here; in
# quick the page loads the published file.

# %%
start = of_layers(fewer_pieces, (0, 2, 5))

# %% tags=["plumbing"]
judged("three layers, not trained again", start, renumber[validation.inputs])
SMALL = paths.MODELS / "18-imdb_minilm-small.seed0.pack"
if S.retrain:
    lessons = renumber[numbered(reviews.train, S.retrain).inputs]
    shallow = training.fit(
        start, Split(lessons, says[: S.retrain]), loss=learning_logits, epochs=S.epochs, optimizer="adam", lr=2e-4, batch_size=32,
        precision=training.fast_precision(), batching=by_length, seed=SEED, checkpoint=run.scratch("shallow.pt"), progress=False,
    ).model  # fmt: skip
    shallow_numbers, trained_by = renumber, f"taught on {S.retrain:,} reviews"
elif SMALL.exists():
    shallow, trained_by = files.load(SMALL), "the published file"
    place = {word: number for number, word in enumerate(shallow.words)}
    shallow_numbers = torch.tensor([place.get(word, 0) for word in words])
else:
    shallow, shallow_numbers, trained_by = start, renumber, "not trained again: nothing is published yet"
judged("three layers, taught", shallow, shallow_numbers[validation.inputs])
say(f"Three of six layers: {trained_by}.")
shown("dense", "three layers, not trained again", "three layers, taught")

# %% [markdown]
# **And a bag of pairs?** Notebook 06 ended with a bag of words and pairs of neighbours that answers in microseconds. Taught, it gets reviews and windows, and what the
# teacher said of them. The same bag without a teacher gets the reviews and their labels.


# %%
def bag_of(split, size, loss, name):
    """Return a bag of `size` words and pairs, 16 numbers each, trained on a split."""
    training.seed_everything(SEED)
    start = nets.TextBag(size, dimensions=16)
    return training.fit(start, split, loss=loss, epochs=3, lr=3e-3, optimizer="adam", batch_size=64, batching=by_length,
                        seed=SEED, checkpoint=run.scratch(f"{name}.pt"), progress=False).model  # fmt: skip


# %% tags=["plumbing"]
def encoded(texts):
    """Texts as words and pairs of neighbours."""
    return [vocabulary.with_bigrams(vocabulary.tokenize(each)[: text.MAX_TOKENS]) for each in texts]


lessons = reviews.train.take(S.bag_reviews)
asked = pieces.asked(lessons.inputs)
of_windows = len(reviews.train), len(reviews.train) + len(asked) - S.bag_reviews
answers = torch.cat([says[: S.bag_reviews], says[slice(*of_windows)]])
tokens = encoded(asked)
frequent = Counter(word for each in tokens[: S.bag_reviews] for word in each).most_common(S.bag_words)
bag_words = ["<unk>", "<pad>", *(word for word, _ in frequent)]
inputs, labels = torch.from_numpy(vocabulary.encode(tokens, bag_words)), torch.tensor(lessons.labels)
bags = {
    "untaught": bag_of(Split(inputs[: S.bag_reviews], labels), len(bag_words), training.cross_entropy, "untaught"),
    "taught": bag_of(Split(inputs, answers), len(bag_words), learning_logits, "taught"),
}


def as_bags_see(split):
    """Reviews as the bags' words and pairs."""
    found = torch.from_numpy(vocabulary.encode(encoded(split.inputs), bag_words))
    return Split(found, torch.tensor(split.labels), split.is_test, split.groups)


seen_by_bags = as_bags_see(reviews.validation)
bag_found = {name: training.evaluate(bag, seen_by_bags).accuracy for name, bag in bags.items()}
run.record("bags", bag_found)
say(f"Bags of {len(bag_words):,} words and pairs, trained on {S.bag_reviews:,} reviews. Validation accuracy: "
    f"not taught {bag_found['untaught']:.1%}; taught {bag_found['taught']:.1%}.")  # fmt: skip

# %% [markdown]
# ## 9. What pays on this CPU?
#
# One review, batch 1, as a user sends it. Which of all this makes the answer come sooner? The candidates: PyTorch; the graph in ONNX Runtime; 8 bits with activations rounded as they
# come (dynamic, notebook 10); 4-bit weights in groups (`MatMulNBits`, made for large language models); OpenVINO in float32 and, where the processor has it, bfloat16; and
# three layers in the plainest of them. **Predict** the order before you look.

# %%
one = validation.inputs[:1]
graph = runtime.export_onnx(net, validation.inputs[:2], run.scratch("minilm.onnx"))
shallow_one = shallow_numbers[one]
shallow_graph = runtime.export_onnx(shallow, shallow_numbers[validation.inputs[:2]], run.scratch("shallow.onnx"))
eight, four = run.scratch("minilm.int8.onnx"), run.scratch("minilm.int4.onnx")
quantize_dynamic(graph, eight, weight_type=QuantType.QInt8, per_channel=True)
quantizer = MatMulNBitsQuantizer(onnx.load(graph), bits=4, block_size=64, is_symmetric=False, accuracy_level=4)
quantizer.process()
onnx.save(quantizer.model.model, four)

# %% tags=["plumbing"]
bfloat16 = runtime.openvino.multiplies_bfloat16()
graphs = {
    "ONNX Runtime, float32": partial(runtime.run, runtime.session(graph, threads=2)),
    "ONNX Runtime, 8 bits, dynamic": partial(runtime.run, runtime.session(eight, threads=2)),
    "ONNX Runtime, 4-bit weights": partial(runtime.run, runtime.session(four, threads=2)),
    "OpenVINO, float32": runtime.openvino.opened(graph, threads=2, precision="float32"),
}
if bfloat16:
    graphs["OpenVINO, bfloat16"] = runtime.openvino.opened(graph, threads=2, precision="bfloat16")
fast = "bfloat16" if bfloat16 else "float32"
short = {
    "three layers, ONNX Runtime, float32": partial(runtime.run, runtime.session(shallow_graph, threads=2)),
    f"three layers, OpenVINO, {fast}": runtime.openvino.opened(shallow_graph, threads=2, precision=fast),
}
with torch.inference_mode():
    calls = {"PyTorch, float32": partial(net, one)}
    calls |= {name: partial(answers, one.numpy()) for name, answers in graphs.items()}
    calls |= {name: partial(answers, shallow_one.numpy()) for name, answers in short.items()}
    again = partial(modules.copied(net), one)
    clock = measure.compare(measure.time_interleaved(calls, rounds=S.rounds, threads=2, control=again))
table = measure.verdict_table(clock)
table["file (MB)"] = [float("nan"), *(path.stat().st_size / 1e6 for path in (graph, eight, four, graph)),
                      *([graph.stat().st_size / 1e6] if bfloat16 else []), *[shallow_graph.stat().st_size / 1e6] * 2]  # fmt: skip


class Answering(nn.Module):
    """A file, answering like a network."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, tokens):
        return torch.from_numpy(np.asarray(self.answers(tokens.numpy())))


for name in ("ONNX Runtime, 8 bits, dynamic", "ONNX Runtime, 4-bit weights"):
    judged(name, Answering(graphs[name]))
table = table.join(pd.DataFrame(JUDGED).T[["logits moved (%)"]])
BEST = max(calls, key=lambda name: clock[name].ratio if name in clock else 0)
run.record("clock", {name: verdict.ratio for name, verdict in clock.items()}, timing=True)
run.claim("small-faster", "Speed of three layers in their fastest runtime over six layers in PyTorch, one review", max(clock[name].ratio for name in short),
          at_least=1.3, timing=True, interval=clock[max(short, key=lambda name: clock[name].ratio)].cleared)  # fmt: skip
say(f"The fastest here is *{BEST}*: {clock[BEST].ratio:.1f} times PyTorch. Four-bit weights make the smallest file of six layers, and "
    f"{clock['ONNX Runtime, 4-bit weights'].ratio:.2f} times PyTorch's speed. They were made for a language model that reads gigabytes of weights for each token that it "
    f"writes; here {S.tokens} tokens share each weight that is read.")  # fmt: skip
table

# %% [markdown]
# ## 10. Files, and the test reviews once
#
# The files hold what is needed to answer a text: weights, scales, and the pieces. Linear layers get one grid a row, by GPTQ, so that the course's own format can hold
# them; the vectors of pieces and places get 4 and 8 bits, each its own scale. The six layers keep the pieces that reviews use, too.


# %%
def with_row_grids(model, tokens, bits):
    """Return a copy whose linear layers carry one grid a row, rounded by GPTQ, and whose vectors are rounded, too."""
    seen, new = quantization.input_products(model, tokens), modules.copied(model)
    for name, inputs_of in seen.items():
        layer = new.get_submodule(name)
        made = quantization.gptq(layer.weight.data, inputs_of, 8 if name == "fc" else bits, size=layer.in_features)
        layer.weight.data = quantization.dequantize_groups(made)
        grid = quantization.Grid(made.scale[:, 0], made.zero_point[:, 0].int(), 0, 2**made.bits - 1)
        parametrize.register_parametrization(layer, "weight", quantization.FakeQuantize(grid))
    return quantization.quantize_model(new, weights={"embedding": 4, "position": 8})


kept_words = [word for word, kept in zip(words, kept_pieces.tolist(), strict=True) if kept]

# %% tags=["plumbing"]
BITS = 5  # chosen on validation: with a grid a row, 4 lose about as much as three layers do
small_six = with_row_grids(fewer_pieces, renumber[calibration.inputs], BITS)
small_three = (
    shallow if SMALL.exists() and not S.retrain else with_row_grids(shallow, shallow_numbers[calibration.inputs], BITS)
)
judged(f"six layers, {BITS} bits a row, fewer pieces", small_six, renumber[validation.inputs])
judged(f"three layers, {BITS} bits a row, fewer pieces", small_three, shallow_numbers[validation.inputs])
half_file = run.scratch("imdb_minilm.half.pack")
files.write_dense({name: tensor.half() for name, tensor in net.state_dict().items()}, half_file, words=words)
six_file = files.write_quantized(small_six, run.scratch("six.pack"), words=kept_words).path
three_words = kept_words if small_three is not shallow else shallow.words
three_file = files.write_quantized(small_three, run.scratch("three.pack"), words=three_words).path
bag_files = {
    name: files.write_quantized(
        quantization.quantize_model(bag, weights=6, per_channel=False), run.scratch(f"{name}.pack"), words=bag_words
    ).path
    for name, bag in bags.items()
}

# %% tags=["plumbing"]
test_reviews = reviews.test.take(S.tested)
test = numbered(reviews.test, S.tested)


def test_as(numbers):
    """The test reviews by another numbering of the pieces."""
    return replace(test, inputs=numbers[test.inputs])


def from_file(path):
    """The network in a file, and the numbers that it gives to all pieces."""
    loaded = files.load(path)
    place = {word: number for number, word in enumerate(loaded.words)}
    return loaded, torch.tensor([place.get(word, 0) for word in words])


tests = {"imdb_minilm": run.test("imdb_minilm", net, test)}
for name, path in {"imdb_minilm-bits": six_file, "imdb_minilm-small": three_file}.items():
    loaded, numbers = from_file(path)
    tests[name] = run.test(name, loaded, test_as(numbers))
right = (training.predict(net, test.inputs, batch_size=32).argmax(1) == test.labels).double().tolist()
spread = statistics.cluster_interval(right, test.groups)
run.claim(
    "dense",
    "Test accuracy of the fine-tuned network, films that training has not seen",
    tests["imdb_minilm"].accuracy,
    at_least=0.9,
)


test_of_bags = as_bags_see(test_reviews)
for name, path in bag_files.items():
    tests[f"imdb_{name}"] = run.test(f"imdb_{name}", files.load(path), test_of_bags)
sizes = {"imdb_minilm": half_file, "imdb_minilm-bits": six_file, "imdb_minilm-small": three_file}
sizes |= {f"imdb_{name}": path for name, path in bag_files.items()}
summary = pd.DataFrame({
    TITLES[name]: {"test accuracy (%)": 100 * tests[name].accuracy, "file (MB)": path.stat().st_size / 1e6,
                   "times smaller": half_file.stat().st_size / path.stat().st_size}
    for name, path in sizes.items()
}).T  # fmt: skip
lost = {name: 100 * (tests["imdb_minilm"].accuracy - each.accuracy) for name, each in tests.items()}
run.claim(
    "small-lost",
    "Points that three layers in few bits lose against six in half precision, test",
    lost["imdb_minilm-small"],
    at_most=3,
)
run.claim("small-bytes", "Bytes of six layers in half precision over those of three layers in few bits, pieces included",
          half_file.stat().st_size / three_file.stat().st_size, at_least=6)  # fmt: skip
run.claim("bag-taught", "Points by which the taught bag leads the same bag without a teacher, test: mean of the seeds",
          lost["imdb_untaught"] - lost["imdb_taught"], at_least=0.5, over_seeds=True)  # fmt: skip
say(
    f"The fine-tuned network is right in {tests['imdb_minilm'].accuracy:.1%} of {len(test):,} test reviews ({spread[0]:.1%} to {spread[1]:.1%}, over films)."
)
summary.round(2)

# %% [markdown]
# ## 11. Exercises
#
# **18.1 · When does attention take over?** The products of tokens with tokens cost 2·n²·d multiplications a layer, everything else 4·n·d² + 2·n·d·h. Write
# `takes_over`: from which number of tokens n on, a whole number, are the products at least as much as the rest?


# %%
def takes_over(dimensions, hidden):
    """Return the smallest number of tokens at which tokens looking at tokens cost at least as much as all the rest."""
    ### BEGIN SOLUTION
    return 2 * dimensions + hidden
    ### END SOLUTION


exercises.check("18.1", takes_over)

# %% [markdown]
# **18.2 · Two of four, by Wanda.** GPUs skip zeros only where at least two of any four neighbours in a row are zero (notebook 16). Write `two_of_four`: it takes
# a weight of shape (rows, columns) and the root mean square of each input, shape (columns,), and returns the mask, True for the two that stay in each group of four.


# %%
def two_of_four(weight, input_size):
    """Return the mask that keeps the two best of each four neighbours of a row, by |w| times the input's size."""
    ### BEGIN SOLUTION
    groups = (weight.abs() * input_size).reshape(-1, 4)
    best = groups.topk(2, dim=1).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter(1, best, True).reshape(weight.shape)
    ### END SOLUTION


exercises.check("18.2", two_of_four)

# %% [markdown]
# **18.3 · Early exit.** Put a classifier after every layer, and stop at the first that is sure. Write `early_exit`: it takes probabilities of shape
# (layers, texts, classes) and a threshold, and returns two tensors of shape (texts,): the answer, and the number of layers used, counted from 1. A
# text is done at the first layer whose largest probability is at least the threshold, and at the last layer whatever that says.


# %%
def early_exit(probabilities, threshold):
    """Return each text's answer and how many layers it took."""
    ### BEGIN SOLUTION
    sure = probabilities.max(dim=2).values >= threshold
    sure[-1] = True
    used = sure.int().argmax(dim=0)
    answers = probabilities.argmax(dim=2)[used, torch.arange(probabilities.shape[1])]
    return answers, used + 1
    ### END SOLUTION


exercises.check("18.3", early_exit)

# %% [markdown]
# **18.4 · Predict: when GPTQ has nothing to repair.** GPTQ moves an error into the columns that are still to come. Suppose the inputs of a layer are independent of each
# other and of mean zero: H is diagonal. Predict the ratio of GPTQ's output error to round-to-nearest's.


# %%
def gptq_without_correlation():
    """Return the predicted ratio of the two output errors."""
    ### BEGIN SOLUTION
    return 1.0  # another column cannot stand in for one that it has nothing to do with
    ### END SOLUTION


# %% tags=["plumbing"]
diagonal = torch.diag(one_products.diagonal())
measured_ratio = output_error(one_weight, gptq(one_weight, diagonal, 3), diagonal) / output_error(
    one_weight, rounded_by_groups(one_weight, 3), diagonal
)

# %%
exercises.check("18.4", gptq_without_correlation, measured=measured_ratio)

# %% [markdown]
# **18.5 · Open: your own budget.** Choose a limit (two megabytes, ten milliseconds, or a loss of half a point) and find the best network of this page's parts that
# keeps it: layers, heads, neurons, pieces, rank and bits all trade against each other. Write down the order in which you will try them, and why, before you
# measure. Choose on validation reviews. Which step surprised you? There is no solution to look up.


# %% [markdown]
# ## What was measured

# %% tags=["plumbing"]
say(
    f"- **The table of pieces** holds {table_share:.0%} of the parameters and multiplies nothing.\n"
    f"- **Length**: {S.lengths[-1] / S.lengths[0]:.0f} times the tokens took {longer:.1f} times as long.\n"
    f"- **Low rank**: made for its inputs, {gain:.2f} of plain SVD's output error.\n"
    f"- **GPTQ**: {ratios[4].mean():.2f} of round-to-nearest's output error at 4 bits, {ratios[3].mean():.2f} at 3.\n"
    f"- **Files**: three layers in {BITS} bits are {half_file.stat().st_size / three_file.stat().st_size:.1f} times smaller than six in half precision, and lose "
    f"{lost['imdb_minilm-small']:+.1f} points.\n"
    f"- **The clock**: the fastest is *{BEST}*, {clock[BEST].ratio:.1f} times PyTorch."
)

# %% tags=["plumbing"]
COUNTED = {
    "imdb_minilm": net,
    "imdb_minilm-bits": from_file(six_file)[0],
    "imdb_minilm-small": from_file(three_file)[0],
} | {key: files.load(path) for key, path in sizes.items() if "taught" in key}
METHODS = {
    "imdb_minilm": ("fine-tuned MiniLM, half precision", []),
    "imdb_minilm-bits": ("GPTQ, fewer pieces", ["fewer bits", "a smaller embedding"]),
    "imdb_minilm-small": (
        "three layers, taught; GPTQ, fewer pieces",
        ["fewer bits", "a smaller embedding", "a teacher"],
    ),
    "imdb_taught": ("bag of pairs, taught by MiniLM", ["a teacher", "fewer bits"]),
    "imdb_untaught": ("bag of pairs", ["fewer bits"]),
}
for name, path in sizes.items():
    method, techniques = METHODS[name]
    speeds = {}
    if name == "imdb_minilm-small":
        speeds = {"latency": [row | {"baseline": "PyTorch"} for each in short for row in measure.latency_records(
            {each: clock[each]}, runtime="openvino" if "OpenVINO" in each else "onnxruntime", batch=1)]}  # fmt: skip
    run.model(name, task="imdb", method=method, techniques=techniques, file=path, accuracy=tests[name].accuracy,
              base=None if name in ("imdb_minilm", "imdb_untaught", "imdb_taught") else "imdb_minilm",
              weights=measure.count_weights(COUNTED[name]), nonzero=measure.count_nonzero(COUNTED[name]),
              macs=measure.count_macs(COUNTED[name], validation.inputs[:1].clamp(max=400)), **speeds)  # fmt: skip
run.finish()

# %% [markdown]
# ## What to remember
#
# - Half of a small transformer is its table of pieces: it takes bytes and no time. Cut what your texts do not use. <!-- claims: table-holds-half -->
# - Tokens looking at tokens grow with the square of the length, and overtake the rest only for long texts. <!-- claims: macs -->
# - Make a low-rank layer for the inputs that it sees, not for its weights. <!-- claims: low-rank-by-outputs -->
# - At 4 bits and below, weights need a grid for each small group, and errors can be made up for: GPTQ. <!-- claims: gptq-4, gptq-3 -->
# - Fewer layers make it smaller and faster at once, and a teacher pays part of the price. <!-- claims: small-lost, small-bytes, small-faster -->
# - Zeros from Wanda or magnitude make nothing smaller or faster by themselves. <!-- by construction -->
#
# ## To read
#
# - Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin 2017, *Attention Is All You Need*: queries, keys and values.
# - Wang, Wei, Dong, Bao, Yang and Zhou 2020, *MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers*.
# - Michel, Levy and Neubig 2019, *Are Sixteen Heads Really Better than One?*: heads scored and removed.
# - Frantar, Ashkboos, Hoefler and Alistarh 2023, *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers*.
# - Sun, Liu, Bair and Kolter 2024, *A Simple and Effective Pruning Approach for Large Language Models*: Wanda.
# - Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han 2024, *AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration*: scale
#   the columns that matter before rounding.
# - Hassibi and Stork 1993, *Second Order Derivatives for Network Pruning: Optimal Brain Surgeon*: where it all comes from.
#
# **Next**: notebook 19 puts every model of this course on one Pareto front.
