"""Random changes of images, a whole batch at a time."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from helpers.training.reproducibility import whole

Augment = Callable[[Tensor, torch.Generator], Tensor]


def random_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator, *, pixels: int = 2
) -> Float[Tensor, "batch channels height width"]:
    """Move each image by up to `pixels` in each direction; edge pixels fill the gap."""
    _check_images(images)
    whole("pixels", pixels, below=2**31)
    count, channels, height, width = images.shape
    down, right = torch.randint(-pixels, pixels + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height)).clamp(0, height - 1)[:, None, :, None]
    columns = (right[:, None] + torch.arange(width)).clamp(0, width - 1)[:, None, None, :]
    which = torch.arange(count)[:, None, None, None]
    return images[which, torch.arange(channels)[None, :, None, None], rows, columns]


def flip_and_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Mirror every second image, drawn at random, left to right, and shift each by up to 2 pixels (`random_shift`)."""
    _check_images(images)
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return random_shift(torch.where(flipped[:, None, None, None], images.flip(3), images), generator)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; allowed: (batch, channels, height, width)")
