"""Heads of attention, and the neurons after it: zeroed, removed, and scored by finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import nets, pruning, quantization, training
from helpers.core.vocabulary import PAD
from helpers.data import Split

DIMENSIONS, HEADS, HIDDEN, LAYERS, WIDTH = 12, 3, 10, 2, 4


@pytest.fixture
def model() -> nn.Module:
    """An encoder whose vectors are large enough for attention to choose."""
    torch.manual_seed(0)
    sizes = {"dimensions": DIMENSIONS, "heads": HEADS, "hidden": HIDDEN, "layers": LAYERS, "max_tokens": 12}
    new = nets.Transformer(40, **sizes, classes=3).eval()
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            if "attention" in name:
                parameter.mul_(2)
    return new


@pytest.fixture
def split() -> Split:
    tokens = torch.randint(2, 40, (7, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate([3, 7, 5, 4, 4, 3, 6]):
        tokens[row, length:] = PAD
    return Split(tokens, torch.arange(7) % 3)


def without_columns(model: nn.Module, heads: dict[str, list[int]]) -> nn.Module:
    """A copy in which nothing reads what these heads found."""
    new = pruning.bake(model)
    with torch.no_grad():
        for name, numbers in heads.items():
            for head in numbers:
                new.get_submodule(name).output.weight[:, WIDTH * head : WIDTH * (head + 1)] = 0
    return new


def test_heads_of_layers_without_biases_are_removed_too(model, split):
    for layer in model.layers[0].attention.children():
        layer.bias = None
    heads = {"layers.0.attention": [1]}
    new = pruning.remove_heads(model, heads)
    with torch.no_grad():
        torch.testing.assert_close(new(split.inputs), without_columns(model, heads)(split.inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "heads",
    [
        {"layers.0.attention": [1]},
        {"layers.1.attention": (0, 2)},
        {"layers.0.attention": {2, 0}, "layers.1.attention": [1]},
    ],
)
def test_removed_heads_are_those_that_nobody_reads(model, split, heads):
    new = pruning.remove_heads(model, heads)
    with torch.no_grad():
        torch.testing.assert_close(new(split.inputs), without_columns(model, heads)(split.inputs), atol=1e-5, rtol=1e-5)
        assert (new(split.inputs) - model(split.inputs)).abs().max() > 1e-3
    removed = sum(len(numbers) for numbers in heads.values())
    each = 3 * (WIDTH * DIMENSIONS + WIDTH) + DIMENSIONS * WIDTH
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, new))
    assert before - after == removed * each
    for name, numbers in heads.items():
        attention = new.get_submodule(name)
        left = HEADS - len(numbers)
        assert (attention.heads, attention.output.in_features) == (left, WIDTH * left)
        assert (
            attention.query.out_features == attention.key.out_features == attention.value.out_features == WIDTH * left
        )
    assert model.layers[0].attention.heads == model.layers[1].attention.heads == HEADS


def test_heads_removed_one_by_one_are_those_removed_at_once(model, split):
    at_once = pruning.remove_heads(model, {"layers.0.attention": [0, 2]})
    first = pruning.remove_heads(model, {"layers.0.attention": [0]})
    then = pruning.remove_heads(first, {"layers.0.attention": [1]})  # was number 2
    assert all(torch.equal(a, b) for a, b in zip(at_once.parameters(), then.parameters(), strict=True))


def test_torch_pruning_removes_the_same_head(model, split):
    keep = torch.arange(HEADS * WIDTH) // WIDTH != 1
    theirs = pruning.remove_filters(model, {"layers.0.attention.query": keep}, split.inputs)
    ours = pruning.remove_heads(model, {"layers.0.attention": [1]})
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_what_is_left_can_be_trained_and_stays_frozen(model, split):
    model.layers[0].attention.key.requires_grad_(False)
    new = pruning.remove_heads(model, {"layers.0.attention": [1], "layers.1.attention": []})
    frozen = [name for name, parameter in new.named_parameters() if not parameter.requires_grad]
    assert frozen == ["layers.0.attention.key.weight", "layers.0.attention.key.bias"]
    F.cross_entropy(new(split.inputs), split.labels).backward()
    assert new.layers[0].attention.query.weight.grad.shape == (2 * WIDTH, DIMENSIONS)


def test_masks_are_baked_before_heads_leave(model, split):
    masked = pruning.mask(model, pruning.layer_masks(model, 0.5))
    new = pruning.remove_heads(masked, {"layers.0.attention": [1]})
    expected = without_columns(masked, {"layers.0.attention": [1]})
    torch.testing.assert_close(new(split.inputs), expected(split.inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (
            {"layers.2.attention": [0]},
            "attention in heads='layers.2.attention' is unknown; allowed: 'layers.0.attention'",
        ),
        ({"layers.0": [0]}, "attention in heads='layers.0' is unknown"),
        ({"layers.0.attention": [3]}, r"head in heads\['layers.0.attention'\]=3 is unknown; allowed: 0, 1, 2"),
        ({"layers.0.attention": [-1]}, "=-1 is unknown"),
        ({"layers.1.attention": [2, 1, 0]}, r"heads\['layers.1.attention'\] are all 3 heads; allowed: a part"),
    ],
)
def test_heads_that_cannot_be_removed_are_refused(model, heads, said):
    with pytest.raises(ValueError, match=said):
        pruning.remove_heads(model, heads)


def test_layers_that_cannot_be_cut_are_refused(model):
    quantized = quantization.quantize_model(model, weights={"layers.0.attention.value": 8})
    with pytest.raises(ValueError, match="layer 'layers.0.attention.value' is quantized"):
        pruning.remove_heads(quantized, {"layers.0.attention": [0]})
    model.layers[0].attention.key.weight = model.layers[1].attention.key.weight
    with pytest.raises(ValueError, match="are one tensor"):
        pruning.remove_heads(model, {"layers.0.attention": [0]})


def slopes_by_differences(model: nn.Module, split: Split, name: str, loss: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The mean magnitude, over single texts, of each head's slope: what it found, times 1 ± a little."""
    model = pruning.bake(model).double()
    slopes = torch.zeros(len(split), HEADS, dtype=torch.float64)
    for row, (tokens, label) in enumerate(zip(split.inputs, split.labels, strict=True)):
        for head in range(HEADS):
            losses = []
            for step in (1e-5, -1e-5):
                gate = torch.ones(HEADS * WIDTH, dtype=torch.float64)
                gate[WIDTH * head : WIDTH * (head + 1)] += step
                layer = model.get_submodule(name).output
                handle = layer.register_forward_pre_hook(lambda _, x, gate=gate: x[0] * gate)
                with torch.no_grad():
                    losses.append(float(loss(model, tokens[None], label[None])))
                handle.remove()
            slopes[row, head] = (losses[0] - losses[1]) / 2e-5
    return slopes.abs().mean(0)


@pytest.mark.parametrize("loss", [training.cross_entropy, training.smoothed_cross_entropy])
def test_head_scores_are_slopes_by_finite_differences(model, split, loss):
    found = pruning.head_scores(pruning.bake(model).double(), split, loss=loss, batch_size=3)
    assert list(found) == ["layers.0.attention", "layers.1.attention"]
    for name, scores in found.items():
        torch.testing.assert_close(scores, slopes_by_differences(model, split, name, loss), rtol=1e-5, atol=1e-9)
        assert scores.min() > 1e-6


def test_head_scores_do_not_depend_on_batches_or_mode(model, split):
    expected = pruning.head_scores(model, split)
    model.train().layers[0].requires_grad_(False)
    found = pruning.head_scores(model, split, batch_size=2)
    for name, scores in expected.items():
        assert scores.dtype == torch.float32 and scores.shape == (HEADS,)
        torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-7)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert not model.layers[1].attention.output._forward_pre_hooks


def test_a_head_that_nobody_reads_scores_nothing(model, split):
    heads = {"layers.0.attention": [2]}
    found = pruning.head_scores(without_columns(model, heads), split)["layers.0.attention"]
    assert found[2] == 0 and found[:2].min() > 0
    left = pruning.head_scores(pruning.remove_heads(model, heads), split)
    assert [len(scores) for scores in left.values()] == [2, 3]
    torch.testing.assert_close(left["layers.0.attention"], found[:2], rtol=1e-4, atol=1e-7)


def test_head_scores_refuse_what_they_cannot_answer(model, split):
    with pytest.raises(ValueError, match="nets.Attention in model is empty"):
        pruning.head_scores(nets.lenet_300_100(), Split(torch.randn(2, 1, 28, 28), torch.arange(2)))
    with pytest.raises(ValueError, match="split is empty"):
        pruning.head_scores(model, Split(split.inputs[:0], split.labels[:0]))
    with pytest.raises(ValueError, match="split has shape"):
        pruning.head_scores(model, Split(split.inputs + 100, split.labels))
    with pytest.raises(ValueError, match="batch_size=0"):
        pruning.head_scores(model, split, batch_size=0)
    with pytest.raises(ValueError, match="loss=3"):
        pruning.head_scores(model, split, loss=3)


def test_neurons_of_an_encoder_are_removed_as_filters_are(model, split):
    """No function of its own is needed: GELU maps 0 to 0, and torch-pruning finds fc2 behind fc1."""
    keep = {"layers.0.fc1": torch.arange(HIDDEN) % 3 > 0, "layers.1.fc1": torch.arange(HIDDEN) < 4}
    new = pruning.remove_filters(model, keep, split.inputs)
    zeroed = pruning.bake(model)
    with torch.no_grad():
        for name, stays in keep.items():
            zeroed.get_submodule(name.replace("fc1", "fc2")).weight[:, ~stays] = 0
        torch.testing.assert_close(new(split.inputs), zeroed(split.inputs), atol=1e-5, rtol=1e-5)
    before, after = (sum(p.numel() for p in net.parameters()) for net in (model, new))
    assert before - after == (4 + 6) * (2 * DIMENSIONS + 1)
    assert (new.layers[0].fc1.out_features, new.layers[1].fc2.in_features) == (6, 4)
