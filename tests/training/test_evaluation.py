"""Tests of `helpers.training.evaluation`."""

import math
from collections import namedtuple
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm

from helpers import training
from helpers.data import Split
from tests.training.training_examples import Puts, net, same, viewed


@pytest.fixture
def blobs() -> Split:
    """Two classes that a linear layer can tell apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    inputs = torch.randn(64, 1, 4, 4, generator=generator) + 3.0 * labels[:, None, None, None]
    return Split(inputs, labels)


def test_evaluate_against_numbers_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    model[1].weight.data = torch.eye(2)
    split = Split(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]))
    result = training.evaluate(model, split, batch_size=2)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert (result.correct, result.count, result.accuracy) == (2, 3, pytest.approx(2 / 3))
    assert result.loss == pytest.approx((2 * right + wrong) / 3)


def test_all_that_is_labelled_right_is_an_accuracy_of_one():
    labels = torch.tensor([[0, -100, 2], [-100, -100, 1]])
    logits = F.one_hot(labels.clamp(0), 4).movedim(2, 1).float()
    assert training.evaluate(nn.Identity(), Split(logits, labels)).accuracy == 1.0


def test_an_answer_that_holds_nan_is_wrong():
    logits = torch.eye(4)
    logits[0, 0] = math.nan  # which argmax takes for the largest
    found = training.evaluate(nn.Identity(), Split(logits, torch.arange(4)))
    assert found.accuracy == 0.75 and math.isnan(found.loss)


def test_half_precision_logits_are_evaluated_in_single():
    logits, labels = torch.randn(50, 3).bfloat16(), torch.arange(50) % 3
    found = training.evaluate(nn.Identity(), Split(logits, labels))
    assert found.loss == pytest.approx(F.cross_entropy(logits.double(), labels).item(), rel=1e-6)


def test_predict_uses_evaluation_mode_and_restores_each_layers_mode(blobs):
    """Trap: a frozen BatchNorm stands in evaluation mode; `model.train()` would let its statistics drift."""
    model = nn.Sequential(*net(), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    frozen = model[2].eval()
    before = deepcopy(model.state_dict())
    expected = deepcopy(model).eval()(blobs.inputs).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=7), expected)
    assert model.training and model[1].training and model[5].training and not frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_predict_asks_a_network_that_takes_no_channels_last_as_it_is(blobs):
    model = viewed("view")
    expected = deepcopy(model).eval()(blobs.inputs).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=10), expected)


class OneAtATime(nn.Linear):
    def __init__(self, *, way):
        super().__init__(16, 2)
        self.way = way

    def forward(self, x):
        if self.way == "assert":
            assert len(x) == 1
        return super().forward(x.view(1, -1) if self.way == "view" else x.flatten().unsqueeze(0))


@pytest.mark.parametrize("way", ["view", "flatten", "assert"])
def test_a_network_that_takes_one_example_at_a_time_gets_one_at_a_time(blobs, way):
    model = OneAtATime(way=way)
    expected = F.linear(blobs.inputs.flatten(1), model.weight, model.bias).detach()
    torch.testing.assert_close(training.predict(model, blobs.inputs, batch_size=10), expected)
    new = training.fit(model, blobs, epochs=1, lr=0.01, batch_size=1, validation=blobs, progress=False).model
    assert training.evaluate(new, blobs).accuracy > 0.8
    with pytest.raises(ValueError, match="batch_size=16; allowed: 1, as the model takes one example at a time"):
        training.fit(model, blobs, epochs=1, lr=0.01, batch_size=16, progress=False)


def test_predict_takes_numbers_of_words_and_parts_of_another_size():
    torch.manual_seed(0)
    model, tokens = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2)), torch.randint(9, (7, 3))
    torch.testing.assert_close(training.predict(model, tokens, batch_size=3), model(tokens).detach())


WithAuxiliary = namedtuple("WithAuxiliary", ["logits", "aux_logits"])


@pytest.mark.parametrize("number_format", training.PRECISIONS)
def test_of_a_named_tuple_the_logits_are_trained(blobs, number_format):
    """As torchvision's GoogLeNet and Inception put one out in training."""
    torch.manual_seed(0)
    model, options = Puts(WithAuxiliary), {"epochs": 2, "lr": 0.05, "batch_size": 16, "progress": False}
    new = training.fit(model, blobs, precision=number_format, **options).model
    alone = training.fit(nn.Sequential(nn.Flatten(), model.fc), blobs, precision=number_format, **options).model
    assert torch.equal(new.fc.weight, alone[1].weight) and torch.equal(new.unused.weight, model.unused.weight)
    assert training.evaluate(new, blobs) == training.evaluate(alone, blobs)


@pytest.mark.parametrize("what", [lambda x, y: (x, y), lambda x, y: {"out": x}, lambda x, y: [x], lambda x, y: None])
def test_what_is_no_logits_is_named(blobs, what):
    name = type(what(None, None)).__name__
    with pytest.raises(ValueError, match=f"model puts out a {name}; allowed: a tensor"):
        training.predict(Puts(what), blobs.inputs)
    with pytest.raises(ValueError, match=f"model puts out a {name}; allowed: a tensor"):
        training.fit(Puts(what), blobs, epochs=1, lr=0.1, batch_size=16, progress=False)


@pytest.mark.usefixtures("unchecked_shapes")
def test_predict_wants_a_row_for_each_input(blobs):
    with pytest.raises(ValueError, match=r"model puts out shape \(2, 64\) for 64 inputs; allowed: one row for each"):
        training.predict(Puts(lambda x, y: torch.cat([x, x]).view(2, -1)[:, :64]), blobs.inputs)
    with pytest.raises(ValueError, match=r"model puts out shape \(\) for 64 inputs"):
        training.predict(Puts(lambda x, y: x.sum()), blobs.inputs)
    with pytest.raises(ValueError, match="inputs is a list; allowed: a tensor"):
        training.predict(net(), [1, 2])
    with pytest.raises(ValueError, match="batch_size=0"):
        training.predict(net(), blobs.inputs, batch_size=0)
    with pytest.raises(ValueError, match=r"inputs has shape \(5, 4\) and type torch.float32.*mat1 and mat2.*allowed"):
        training.predict(nn.Linear(3, 2), torch.randn(5, 4))


def test_weights_that_torch_has_pruned_stay_zero_and_the_rest_learns(blobs):
    """With a hook: after a forward pass the layer holds a computed tensor, which `deepcopy` refuses."""
    model = net()
    prune.l1_unstructured(model[1], "weight", amount=0.5)
    prune.ln_structured(model[4], "weight", amount=0.5, n=2, dim=1)
    model(blobs.inputs)
    new = training.fit(model, blobs, epochs=3, lr=0.05, batch_size=16, progress=False).model
    for old, layer in ((model[1], new[1]), (model[4], new[4])):
        zero = old.weight_mask == 0
        assert (layer.weight == 0)[zero].all() and torch.equal(layer.weight_mask, old.weight_mask)
        assert torch.equal(layer.weight, layer.weight_orig * layer.weight_mask), "a weight of the step before"
        assert (layer.weight != old.weight)[~zero].any()
    assert same(deepcopy(new), new) and training.evaluate(new, blobs).accuracy > 0.8


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, spectral_norm, parametrizations.weight_norm])
def test_normalized_layers_are_trained(blobs, norm):
    model = net()
    norm(model[1])
    model(blobs.inputs)
    new = training.fit(model, blobs, epochs=3, lr=0.05, batch_size=16, progress=False).model
    assert not torch.equal(new[1].weight, model[1].weight) and training.evaluate(new, blobs).accuracy > 0.9
    held = new[1].weight.detach().clone()
    new(blobs.inputs)
    assert torch.equal(new[1].weight, held), "it held the weight of the step before"


def test_empty_split_is_refused():
    empty = Split(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="train is empty"):
        training.fit(net(), empty, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="split is empty"):
        training.evaluate(net(), empty)


def test_what_is_no_split_of_tensors_is_refused():
    texts = Split(["one", "two"], [0, 1])
    with pytest.raises(ValueError, match="train.inputs is a list; allowed: a tensor"):
        training.fit(net(), texts, epochs=1, lr=0.1)
    with pytest.raises(ValueError, match="split.labels is a list"):
        training.evaluate(net(), Split(torch.zeros(2, 16), [0, 1]))
    with pytest.raises(ValueError, match="split is a Tensor; allowed: a Split"):
        training.evaluate(net(), torch.zeros(2, 16))
