"""Datasets as tensors, split into training, validation and test. Text is in `helpers.data.text`."""

from helpers.data.splits import (
    CIFAR10_CLASSES,
    CIFAR10_MEAN,
    CIFAR10_STD,
    MNIST_MEAN,
    MNIST_STD,
    Dataset,
    Split,
    cat_or_dog,
    cifar10,
    cifar10_without_cat_and_dog,
    imdb,
    mnist,
    only_classes,
)

__all__ = [
    "CIFAR10_CLASSES",
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "MNIST_MEAN",
    "MNIST_STD",
    "Dataset",
    "Split",
    "cat_or_dog",
    "cifar10",
    "cifar10_without_cat_and_dog",
    "imdb",
    "mnist",
    "only_classes",
]
