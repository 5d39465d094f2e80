"""Trained weights that notebooks start from, and the recipes that trained them."""

from helpers.checkpoints.answers import ask
from helpers.checkpoints.recipes import (
    RECIPES,
    Recipe,
    load,
    manifest,
    pretrained_resnet18,
    teachers_answers,
    train,
    words,
)
from helpers.checkpoints.weights import read_weights, write_weights

__all__ = [
    "RECIPES",
    "Recipe",
    "ask",
    "load",
    "manifest",
    "pretrained_resnet18",
    "read_weights",
    "teachers_answers",
    "train",
    "words",
    "write_weights",
]
