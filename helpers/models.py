"""The networks of the course, small enough to read in one sitting."""

from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, ResNet, ResNet18_Weights

from helpers import checks
from helpers.sources import SourceError
from helpers.vocabulary import PAD

__all__ = [
    "CifarNet",
    "ConvBlock",
    "LeNet5",
    "LeNet300100",
    "LSTM",
    "MLP",
    "RNN",
    "ResNet18",
    "Residual",
    "TextBag",
    "TextCNN",
    "TextNet",
    "cifar_base",
    "cifar_half",
    "cifar_small",
    "imdb_bag",
    "imdb_bigrams",
    "imdb_cnn",
    "imdb_lstm",
    "imdb_rnn",
    "lenet5",
    "lenet_300_100",
    "mlp_1200",
    "mlp_800",
    "pretrained_resnet18",
    "resnet18",
]


class LeNet5(nn.Module):
    """The 20-50-500-10 network of the pruning literature: 431,080 parameters, 2,293,000 MACs per image.

    Caffe's variant of LeNet-5 (LeCun et al. 1998, "Gradient-based learning applied to document recognition"):
    more filters than the original, max-pooling instead of trained subsampling, ReLU in the convolutional part too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, kernel_size=5)
        self.conv2 = nn.Conv2d(20, 50, kernel_size=5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(x)


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units: 266,610 parameters (LeCun et al. 1998, section III.C)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = F.relu(self.fc1(images.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class MLP(nn.Module):
    """784-units-units-10 with ReLU; in training `dropout` is the share of the hidden units that is left out.

    The networks of Hinton et al. 2015, "Distilling the knowledge in a neural network", section 3.
    """

    def __init__(self, units: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, units)
        self.fc2 = nn.Linear(units, units)
        self.fc3 = nn.Linear(units, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch 10"]:
        """Return the logits."""
        x = self.dropout(F.relu(self.fc1(images.flatten(1))))
        return self.fc3(self.dropout(F.relu(self.fc2(x))))


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
        self.last_pool = nn.AdaptiveMaxPool2d(1)
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


def lenet5() -> LeNet5:
    """Return an untrained LeNet-5, initialised from PyTorch's global random state."""
    return LeNet5()


def lenet_300_100() -> LeNet300100:
    """Return an untrained LeNet-300-100, initialised from PyTorch's global random state."""
    return LeNet300100()


def mlp_800() -> MLP:
    """Return Hinton's student, untrained: 1,276,810 parameters."""
    return MLP(800)


def mlp_1200() -> MLP:
    """Return Hinton's teacher, untrained: 2,395,210 parameters, half of the hidden units dropped in training."""
    return MLP(1200, dropout=0.5)


# ---------------------------------------------------------------- ResNet-18


class ResNet18(ResNet):
    """torchvision's ResNet-18 (He et al. 2016, section 4.1), which enlarges its images to `pixels` × `pixels` first.

    Made for photographs of 224 pixels, the network halves height and width five times: of 32 pixels one would be left
    long before its last layers, of 64 there are 2 × 2. The network enlarges, not the dataset: that keeps four times
    fewer numbers in memory, and augmentation, export and every helper take the small images as they are. The layers,
    their names and those in the `state_dict` are torchvision's; 148 million MACs at 64 pixels.
    """

    def __init__(self, classes: int = 8, *, pixels: int = 64) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=checks.positive("classes", classes))
        self.pixels = checks.positive("pixels", pixels)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of images of any size."""
        size = (self.pixels, self.pixels)
        return super().forward(F.interpolate(images, size=size, mode="bilinear", align_corners=False))


def resnet18(*, classes: int = 8) -> ResNet18:
    """Return an untrained ResNet-18: 11,176,512 parameters and 513 for each class."""
    return ResNet18(classes)


def pretrained_resnet18(source: str = "course") -> ResNet18:
    """Return a trained ResNet-18 in evaluation mode.

    Args:
        source: "course" for the project's own checkpoint, which knows the eight classes of CIFAR-10 other than cat and
            dog (`data.cifar10_without_cat_and_dog`); "imagenet" for torchvision's weights (IMAGENET1K_V1: 1,000
            classes, many of them cats and dogs), which are downloaded unless torch.hub's cache has them. Those were
            trained on 224 pixels standardized with ImageNet's mean and spread, which are close to CIFAR-10's.

    Raises:
        ValueError: `source` is unknown, or the checkpoint is missing or changed.
        sources.SourceError: torchvision's weights could not be had, or the cached file is damaged.
    """
    if checks.choice("source", source, ("course", "imagenet")) == "course":
        from helpers import checkpoints  # which builds the networks of this module

        return checkpoints.load("resnet18")  # type: ignore[return-value]
    return _imagenet_resnet18()


def _imagenet_resnet18() -> ResNet18:
    new, weights = ResNet18(1_000), ResNet18_Weights.IMAGENET1K_V1
    try:
        new.load_state_dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # of any class: a damaged file is stumbled over in many ways
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise SourceError(
            f"source='imagenet' failed ({type(error).__name__}: {str(error).partition(chr(10))[0]}). Put {weights.url} "
            f"into {folder}, in place of what is there under that name, or use source='course'"
        ) from error
    return new.eval()


# ---------------------------------------------------------------- text


def _without_padding(tokens: Int64[Tensor, "batch padded"]) -> Int64[Tensor, "batch length"]:
    """Cut the columns at the end in which every text is padding, but never the first.

    It saves time and changes no answer. An exported graph cannot do it: how much is left depends on the texts.
    """
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        return tokens
    used = (tokens != PAD).any(0).nonzero()
    return tokens[:, : int(used[-1]) + 1] if len(used) else tokens[:, :1]


@torch.no_grad()
def _start_small(embedding: nn.Embedding | nn.EmbeddingBag) -> None:
    """Draw the word vectors from N(0, 0.1²), that of padding zero.

    PyTorch draws them from N(0, 1): training moves a rare word little, so the noise that it began with would decide its
    length, and be most of what a decomposition of the embedding finds.
    """
    embedding.weight.normal_(std=0.1)
    embedding.weight[PAD] = 0


class TextBag(nn.Module):
    """The mean of a text's word vectors, then one hidden layer: the order of the words plays no part.

    With 10,002 words of 100 numbers it is the network of many a tutorial: 98 % of its 1,020,802 parameters are
    the embedding (Joulin et al. 2017, "Bag of tricks for efficient text classification", without the hidden layer).
    """

    def __init__(self, words: int = 10_002, *, dimensions: int = 100, hidden: int = 200, classes: int = 2) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(words, dimensions, mode="mean", padding_idx=PAD)
        _start_small(self.embedding)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(dimensions, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Return the logits; padding does not count in the mean."""
        mean = self.embedding(_without_padding(tokens))
        return self.fc2(F.relu(self.fc1(self.dropout(mean))))


class RNN(nn.Module):
    """A plain recurrent layer, h_t = tanh(W x_t + U h_(t-1) + b) (Elman 1990), run by PyTorch's own kernel.

    Its two matrices are the weights of two linear layers, `input` (W) and `recurrent` (U), which can be masked like any
    other: `nn.RNN` keeps a list of its own of its parameters, and with masks it can no longer be copied once used.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, units)
        self.recurrent = nn.Linear(units, units)
        nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return the state after each step, from a state of zeros."""
        start = x.new_zeros(1, x.shape[0], self.recurrent.in_features)
        states, _ = torch.rnn_tanh(x, start, _recurrent_weights(self), True, 1, 0.0, self.training, False, True)
        return states


class LSTM(nn.Module):
    """A layer of long short-term memory (Hochreiter and Schmidhuber 1997), made of two linear layers as `RNN` is.

    The rows of both are four blocks: input gate, forget gate, candidate, output gate, as in `nn.LSTM`.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * units)
        self.recurrent = nn.Linear(units, 4 * units)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return the hidden state after each step, from states of zeros."""
        start = x.new_zeros(1, x.shape[0], self.recurrent.in_features)
        weights = _recurrent_weights(self)
        states, _, _ = torch.lstm(x, (start, start), weights, True, 1, 0.0, self.training, False, True)
        return states


def _recurrent_weights(layer: RNN | LSTM) -> list[Tensor]:
    return [layer.input.weight, layer.recurrent.weight, layer.input.bias, layer.recurrent.bias]


class TextCNN(nn.Module):
    """Filters over three neighbouring words, then ReLU (Kim 2014, with one width only).

    "Convolutional neural networks for sentence classification", section 2.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, units, kernel_size=3, padding=1)

    def forward(self, x: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length units"]:
        """Return what the filters see around each word."""
        return F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)


class TextNet(nn.Module):
    """Word vectors, an encoder that reads them in order, the maximum over the words, and a linear classifier.

    `encoder` maps (batch, length, dimensions) to (batch, length, units). Only the first `max_tokens` tokens are read.
    Padding stands at the end, where an encoder that reads forwards has not seen it yet, and it is left out of the
    maximum; so it changes nothing.
    """

    def __init__(
        self,
        encoder: nn.Module,
        units: int,
        words: int = 10_002,
        *,
        dimensions: int = 100,
        max_tokens: int = 250,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(words, dimensions, padding_idx=PAD)
        _start_small(self.embedding)
        self.dropout = nn.Dropout(0.3)
        self.encoder = encoder
        self.fc = nn.Linear(units, classes)

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        tokens = _without_padding(tokens[:, : self.max_tokens])
        states = self.encoder(self.dropout(self.embedding(tokens)))
        nothing = max(-1e9, torch.finfo(states.dtype).min)
        strongest = states.masked_fill((tokens == PAD)[:, :, None], nothing).amax(1)
        return self.fc(self.dropout(strongest))


def imdb_bag() -> TextBag:
    """Return an untrained bag of embeddings: 20,400 weights beside its embedding."""
    return TextBag()


def imdb_bigrams() -> TextBag:
    """Return an untrained bag of 62,500 words and pairs with 16 numbers each: as many parameters as `imdb_bag`."""
    return TextBag(62_502, dimensions=16)


def imdb_cnn() -> TextNet:
    """Return an untrained convolutional text classifier: 19,328 weights beside its embedding."""
    return TextNet(TextCNN(100, 64), 64)


def imdb_rnn() -> TextNet:
    """Return an untrained recurrent text classifier: 20,200 weights beside its embedding."""
    return TextNet(RNN(100, 100), 100)


def imdb_lstm() -> TextNet:
    """Return an untrained LSTM text classifier: 19,656 weights beside its embedding."""
    return TextNet(LSTM(100, 36), 36)
