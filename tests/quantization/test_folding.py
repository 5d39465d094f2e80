"""Tests of `helpers.quantization.folding`."""

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from helpers import files, nets, quantization
from helpers.data import Split
from tests.quantization.quantization_examples import (
    SMALL,
    TOKENS,
    assert_same_state,
    made,
    state_of,
    trained,
    values_of,
    with_statistics,
)


@pytest.fixture
def cifar() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(nets.CifarNet((4, 4, 5, 6)))


PHOTOS = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(14))


def test_folding_changes_no_answer_and_is_pytorchs(cifar):
    before = state_of(cifar)
    folded = quantization.fold_batchnorm(cifar, PHOTOS[:2])
    assert_same_state(cifar, before)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert torch.allclose(folded(PHOTOS), cifar(PHOTOS), rtol=1e-4, atol=1e-3)
    for name, block in cifar.named_modules():
        if isinstance(block, nets.ConvBlock):
            theirs = fuse_conv_bn_eval(block.conv, block.bn)
            mine = folded.get_submodule(name).conv
            assert torch.allclose(mine.weight, theirs.weight, atol=1e-5)
            assert torch.allclose(mine.bias, theirs.bias, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_folding_keeps_the_codes_of_quantized_weights(cifar, per_channel):
    split = Split(PHOTOS, torch.arange(6))
    bits = quantization.bits_by_layer(cifar, 3)
    quantized = quantization.quantize_model(
        cifar, weights=bits, activations=8, calibration=split, per_channel=per_channel, learned=True
    )
    folded = quantization.fold_batchnorm(quantized, PHOTOS[:2])
    codes, again = files.integers(quantized), files.integers(folded)
    assert list(codes) == list(again)
    for name in codes:
        rows = (again[name].codes != 0).reshape(len(codes[name].codes), -1).any(1)
        assert np.array_equal(codes[name].codes[rows], again[name].codes[rows])
        assert rows.sum() >= len(rows) - 1  # one channel's factor is 0
    plain, plain_folded = (quantization.with_input_grids(model, {}) for model in (quantized, folded))
    assert torch.allclose(plain_folded(PHOTOS), plain(PHOTOS), rtol=1e-4, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in folded.parameters() if parameter.dim() == 0)


def test_folding_a_linear_layer_and_one_with_a_bias():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2, bias=False), nn.BatchNorm1d(2))
    net(values_of(15, 50, 3, shift=2.0))
    folded = quantization.fold_batchnorm(net.eval(), torch.zeros(2, 3))
    assert torch.allclose(folded(values_of(16, 9, 3)), net(values_of(16, 9, 3)), atol=1e-5)
    assert [type(layer).__name__ for layer in folded] == ["Linear", "Identity", "ReLU", "Linear", "Identity"]


def test_folding_in_training_mode_is_refused(cifar):
    """In training, BatchNorm divides by the batch's spread: a folded network would answer otherwise."""
    with pytest.raises(ValueError, match="training mode .'stem.bn'.; allowed: evaluation mode"):
        quantization.fold_batchnorm(cifar.train(), PHOTOS[:2])
    cifar.eval().res2.block1.bn.train()
    with pytest.raises(ValueError, match="training mode .'res2.block1.bn'."):
        quantization.fold_batchnorm(cifar, PHOTOS[:2])


class ReadTwice(nn.Module):
    """A convolution whose output does not only go to its BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x + self.bn(x)).flatten(1)


def test_folding_what_others_read_is_refused():
    with pytest.raises(ValueError, match="answers otherwise after folding, by up to"):
        quantization.fold_batchnorm(with_statistics(ReadTwice()), PHOTOS[:2])


def test_a_norm_without_a_convolution_stays():
    net = with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3), nn.Flatten()))
    folded = quantization.fold_batchnorm(net, PHOTOS[:2])
    assert isinstance(folded[0], nn.BatchNorm2d) and torch.equal(folded(PHOTOS), net(PHOTOS))


class Casting(nn.Module):
    """Computes in single precision whatever comes in, or in half inside `autocast`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn, self.fc, self.how = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(36, 3), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "float":
            x = x.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
            x = self.bn(self.conv(x)).relu().flatten(1)
            zeros = torch.zeros(len(x), 36) if self.how == "zeros" else 0
            return (self.fc(x.float() + zeros)).float()


@pytest.mark.parametrize("how", ["float", "zeros", "autocast"])
def test_folding_networks_that_insist_on_a_precision(how):
    model = with_statistics(Casting(how))
    folded = quantization.fold_batchnorm(model, SMALL)
    assert isinstance(folded.bn, nn.Identity)
    close = {"atol": 0.1} if how == "autocast" else {"atol": 1e-4}
    assert torch.allclose(folded(SMALL), model(SMALL), **close)

    class Wrong(Casting):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.conv(x.float()).flatten(1)[:, :3].float()

    with pytest.raises(ValueError, match="answers otherwise after folding"):
        quantization.fold_batchnorm(with_statistics(Wrong(how)), SMALL)


def test_folding_behind_an_embedding():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.conv, self.bn = nn.Embedding(20, 4), nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(self.embedding(tokens).transpose(1, 2))).amax(2)

    model = made(Words)
    model.bn.running_mean.normal_()
    folded = quantization.fold_batchnorm(model, TOKENS)
    assert isinstance(folded.bn, nn.Identity) and torch.allclose(folded(TOKENS), model(TOKENS), atol=1e-5)


UP = [
    (nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6), (3, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(6), (3, 4, 5, 5)),
    (nn.ConvTranspose2d(4, 4, 2, groups=4), nn.BatchNorm2d(4, eps=0.5), (3, 4, 5, 5)),
    (nn.ConvTranspose3d(2, 6, 2, output_padding=1, stride=2), nn.BatchNorm3d(6), (2, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("layer", "norm", "shape"), UP)
def test_folding_into_a_transposed_convolution(layer, norm, shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(layer, trained(norm), nn.ReLU(), nn.Flatten()).eval(), values_of(21, *shape)
    folded = quantization.fold_batchnorm(model, x)
    assert isinstance(folded[1], nn.Identity) and torch.allclose(folded(x), model(x), atol=1e-5)
    if layer.groups == 1:
        theirs = fuse_conv_bn_eval(layer, norm, transpose=True)
        assert torch.allclose(folded[0].weight, theirs.weight, atol=1e-5)
    again = quantization.fold_batchnorm(quantization.quantize_model(folded, weights=4), x)
    assert list(quantization.weight_grids(again)) == ["0.weight"]
    with pytest.raises(ValueError, match="layer '0' is transposed and quantized; allowed: to fold first"):
        quantization.fold_batchnorm(quantization.quantize_model(model, weights=4), x)


def test_folding_counts_epsilon():
    """A spread far below epsilon: without it, factors would be a thousand times as large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1.0)).eval()
    model[1].running_var.fill_(1e-6)
    folded = quantization.fold_batchnorm(model, SMALL)
    assert torch.allclose(folded[0].weight, model[0].weight, rtol=1e-5) and isinstance(folded[1], nn.Identity)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_folding_what_is_not_finite_is_refused(bad):
    model = made(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    model[1].running_mean[0] = bad
    with pytest.raises(ValueError, match="model answers otherwise after folding, by up to nan"):
        quantization.fold_batchnorm(model, SMALL)


def test_folding_one_norm_under_two_names_and_for_two_convolutions():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), trained(nn.BatchNorm2d(3))
            self.alias = self.norm

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.alias(self.b(self.norm(self.a(x)).relu())).flatten(1)

    model = made(Shared)
    folded = quantization.fold_batchnorm(model, SMALL)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert torch.allclose(folded(SMALL), model(SMALL), atol=1e-5)


@pytest.mark.parametrize("length", [4, 5])
def test_a_norm_over_positions_stays(length):
    """After a linear layer on (batch, length, features), BatchNorm's channels are the positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), trained(nn.BatchNorm1d(length)), nn.Flatten()).eval()
    x = values_of(22, 3, length, 6)
    folded = quantization.fold_batchnorm(model, x)
    assert isinstance(folded[1], nn.BatchNorm1d) and torch.equal(folded(x), model(x))


@pytest.mark.parametrize("bias", [True, False])
def test_folding_a_norm_that_only_normalizes(bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, affine=False), nn.Flatten()).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    folded = quantization.fold_batchnorm(model, SMALL)
    assert isinstance(folded[1], nn.Identity) and torch.allclose(folded(SMALL), model(SMALL), atol=1e-5)


@pytest.mark.parametrize(("reads", "x"), [(nn.Embedding(20, 4), TOKENS), (nn.Linear(3, 4), values_of(24, 7, 5, 3))])
def test_folding_is_compared_in_double_precision_whatever_the_network_reads(reads, x):
    """What else reads the convolution changes answers by 3 in 10 000: too much, but in single precision too little."""

    class Leaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reads, self.conv, self.bn = reads, nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(self.reads(x).transpose(1, 2))
            return (self.bn(x) + self.leak * x).amax(2)

    model = made(Leaking)
    model.bn.running_var.fill_(0.25)
    for model.leak, refused in ((0, False), (3e-4, True)):
        with pytest.raises(ValueError, match="answers otherwise") if refused else nullcontext():
            quantization.fold_batchnorm(model, x)
