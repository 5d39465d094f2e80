"""Residual networks for CIFAR-10."""

from jaxtyping import Float
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """A 3 × 3 convolution, batch normalization and ReLU: `conv`, `bn`, `relu`. Height and width stay."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()


class Residual(nn.Module):
    """x + block2(block1(x)) (He et al. 2016, "Deep residual learning for image recognition", section 3.1).

    The sum couples channels: channel 7 of x and channel 7 of block2's output are one and the same thing.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = ConvBlock(channels, channels)
        self.block2 = ConvBlock(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Return the sum of the input and what the two blocks make of it."""
        return x + self.block2(self.block1(x))


class CifarNet(nn.Module):
    """Plain blocks and two residual ones, on 32 → 16 → 8 → 4 pixels; `widths` are the channels of the plain ones.

    The shape that wins short training races on CIFAR-10 (Page 2018, "How to train your ResNet"), narrower.
    """

    def __init__(self, widths: tuple[int, int, int, int], *, classes: int = 10) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.stem = ConvBlock(3, first)
        self.conv1 = ConvBlock(first, second)
        self.res1 = Residual(second)
        self.conv2 = ConvBlock(second, third)
        self.conv3 = ConvBlock(third, fourth)
        self.res2 = Residual(fourth)
        self.pool = nn.MaxPool2d(2)
        self.last_pool = nn.MaxPool2d(4)  # all that is left; several converters know no AdaptiveMaxPool2d
        self.fc = nn.Linear(fourth, classes)

    def forward(self, images: Float[Tensor, "batch 3 32 32"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        x = self.res1(self.pool(self.conv1(self.stem(images))))
        x = self.pool(self.conv2(x))
        x = self.res2(self.pool(self.conv3(x)))
        return self.fc(self.last_pool(x).flatten(1))


def cifar_base() -> CifarNet:
    """Return the untrained net of the published results: 95 million MACs per image."""
    return CifarNet((32, 64, 128, 256))


def cifar_small() -> CifarNet:
    """Return the untrained net of everything quick: 15 million MACs per image."""
    return CifarNet((16, 24, 48, 96))


def cifar_half() -> CifarNet:
    """Return the cheap alternative to a pruned `cifar_small`: the same net, thinner, with half the MACs."""
    return CifarNet((12, 16, 32, 72))
