"""The networks of the course: LeNets, CIFAR nets, ResNet-18, text classifiers, a transformer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from helpers.nets.cifar import CifarNet, ConvBlock, Residual, cifar_base, cifar_half, cifar_small
from helpers.nets.classifiers import (
    LSTM,
    RNN,
    TextBag,
    TextCNN,
    TextNet,
    imdb_bag,
    imdb_bigrams,
    imdb_cnn,
    imdb_lstm,
    imdb_rnn,
)
from helpers.nets.lenet import MLP, LeNet5, LeNet300100, lenet5, lenet_300_100, mlp_800, mlp_1200

if TYPE_CHECKING:
    from helpers.nets.resnet import ResNet18, resnet18
    from helpers.nets.transformer import Attention, EncoderLayer, Transformer, minilm

__all__ = [
    "Attention",
    "EncoderLayer",
    "LSTM",
    "MLP",
    "RNN",
    "CifarNet",
    "ConvBlock",
    "LeNet300100",
    "LeNet5",
    "ResNet18",
    "Residual",
    "TextBag",
    "TextCNN",
    "TextNet",
    "Transformer",
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
    "minilm",
    "mlp_1200",
    "mlp_800",
    "resnet18",
]

_LAZY = {
    "Attention": "helpers.nets.transformer",
    "EncoderLayer": "helpers.nets.transformer",
    "Transformer": "helpers.nets.transformer",
    "minilm": "helpers.nets.transformer",
    "ResNet18": "helpers.nets.resnet",
    "resnet18": "helpers.nets.resnet",
}


def __getattr__(name: str) -> Any:
    """Import what is seldom needed, and slow to import, when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
