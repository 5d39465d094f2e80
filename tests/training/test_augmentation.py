"""Tests of `helpers.training.augmentation`."""

import math

import pytest
import torch
from torch.nn import functional as F

from helpers import training


def test_random_shift_moves_and_never_invents():
    image = torch.arange(36.0).reshape(1, 1, 6, 6)
    batch = image.repeat(200, 1, 1, 1)
    moved = training.random_shift(batch, torch.Generator().manual_seed(0), pixels=1)
    candidates = []
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    for down in range(3):
        for right in range(3):
            candidates.append(padded[0, 0, down : down + 6, right : right + 6])
    found = [next(i for i, c in enumerate(candidates) if torch.equal(c, m[0])) for m in moved]
    assert set(found) == set(range(9)), "200 images did not take all nine positions"


@pytest.mark.usefixtures("unchecked_shapes")
def test_random_shift_moves_whole_numbers_too_and_names_what_is_no_image():
    images = torch.randint(256, (4, 1, 6, 6))
    moved = (training.random_shift(each, torch.Generator().manual_seed(1)) for each in (images, images.float()))
    assert torch.equal(next(moved), next(moved).long())
    assert torch.equal(training.random_shift(images, torch.Generator().manual_seed(1), pixels=0), images)
    for function in (training.random_shift, training.flip_and_shift):
        with pytest.raises(ValueError, match=r"images has shape \(4, 6\); allowed: \(batch, channels"):
            function(torch.rand(4, 6), torch.Generator())
    for pixels in (-1, 1.5, math.nan):
        with pytest.raises(ValueError, match=f"pixels={pixels}"):
            training.random_shift(images, torch.Generator(), pixels=pixels)


def test_random_shift_keeps_channels_together():
    images = torch.randn(5, 1, 8, 8).repeat(1, 3, 1, 1)
    moved = training.random_shift(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1]) and torch.equal(moved[:, 0], moved[:, 2])


def test_flip_and_shift_gives_each_image_or_its_mirror_moved_by_at_most_two_pixels():
    images = torch.rand(40, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    found = training.flip_and_shift(images, generator)
    mirrored = 0
    for image, moved in zip(images, found, strict=True):
        matches = []
        for flipped in (False, True):
            padded = F.pad((image.flip(2) if flipped else image)[None], (2, 2, 2, 2), mode="replicate")[0]
            windows = (padded[:, y : y + 8, x : x + 8] for y in range(5) for x in range(5))
            matches.append(any(torch.equal(window, moved) for window in windows))
        assert any(matches)
        mirrored += matches[1]
    assert 8 <= mirrored <= 32  # of 40, for a fair coin and this seed
