"""Tests of `helpers.runtime.images`."""

import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import data, runtime, training
from helpers.data import splits
from helpers.files import write_dense
from tests.runtime.prediction_examples import digit, lenet


@pytest.mark.parametrize(("channels", "pixels"), [(1, 28), (3, 32)])
def test_a_png_becomes_what_the_dataset_holds(channels, pixels, tmp_path):
    raw = np.random.default_rng(0).integers(0, 100, (1, channels, pixels, pixels), dtype=np.uint8)
    Image.fromarray(raw[0].transpose(1, 2, 0).squeeze()).save(tmp_path / "x.png")
    found, notes = runtime.read_image(tmp_path / "x.png", channels=channels, pixels=pixels)
    grey, colour = ((data.MNIST_MEAN,), (data.MNIST_STD,)), (data.CIFAR10_MEAN, data.CIFAR10_STD)
    expected = splits._standardize(raw, *(grey if channels == 1 else colour))[0]
    assert found.dtype == np.float32 and notes == ()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_a_grey_network_takes_all_kinds_of_colours_to_be_the_same(mode, tmp_path):
    plain, _ = runtime.read_image(digit(tmp_path / "L.png"), channels=1, pixels=28)
    found, _ = runtime.read_image(digit(tmp_path / "x.png", mode=mode), channels=1, pixels=28)
    np.testing.assert_allclose(found, plain, atol=0.02)


def test_a_jpeg_of_another_size_is_scaled_and_turned_and_it_says_so(tmp_path):
    upright, notes = runtime.read_image(digit(tmp_path / "a.png", (280, 280)), channels=1, pixels=28)
    small, none = runtime.read_image(digit(tmp_path / "b.png"), channels=1, pixels=28)
    assert notes == ("the image has 280 × 280 pixels and was scaled to 28 × 28",) and none == ()
    assert np.abs(upright - small).mean() < 0.1
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    tall, notes = runtime.read_image(digit(tmp_path / "c.jpg", (40, 280), exif=exif, quality=95), channels=1, pixels=28)
    level, _ = runtime.read_image(digit(tmp_path / "d.jpg", (40, 280), quality=95), channels=1, pixels=28)
    assert "280 × 40" in notes[0]
    np.testing.assert_allclose(tall, np.rot90(level, -1, axes=(1, 2)), atol=0.4)


def test_transparency_is_black_and_brightness_is_remarked(tmp_path):
    pixels = np.full((28, 28, 4), 255, np.uint8)
    pixels[:20, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found, notes = runtime.read_image(tmp_path / "x.png", channels=1, pixels=28)
    assert found[0, 0, 0] == pytest.approx(-data.MNIST_MEAN / data.MNIST_STD, rel=1e-5)
    assert notes == ("what is transparent was laid on black",)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "y.png")
    _, notes = runtime.read_image(tmp_path / "y.png", channels=1, pixels=28)
    assert len(notes) == 1 and "mostly bright" in notes[0]
    assert runtime.read_image(tmp_path / "y.png", channels=3, pixels=28)[1] == (), "photographs may be bright"


def test_what_is_no_such_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="image=.*none.png' does not exist"):
        runtime.read_image(tmp_path / "none.png", channels=1, pixels=28)
    whole = digit(tmp_path / "x.png").read_bytes()
    Image.new("L", (28, 28)).save(tmp_path / "x.gif")
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("hello")
    for name in ("x.gif", "cut.png", "text.png"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read .*allowed: a whole PNG or JPEG"):
            runtime.read_image(tmp_path / name, channels=1, pixels=28)
    for large, said in (((50_001, 1_000), "50001 × 1000 pixels; allowed: at most 50 million"), ((5, 9_000_000), "")):
        chunk = whole[:16] + b"".join(side.to_bytes(4, "big") for side in large) + whole[24:29]
        checksum = zlib.crc32(chunk[12:29]).to_bytes(4, "big")
        (tmp_path / "large.png").write_bytes(chunk + checksum + whole[33:])
        with pytest.raises(ValueError, match=f"large.png' (has|cannot be read) .*{said}"):
            runtime.read_image(tmp_path / "large.png", channels=1, pixels=28)
    Image.fromarray(np.zeros((28, 28), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png' has pixels of the kind 'I;16'"):
        runtime.read_image(tmp_path / "deep.png", channels=1, pixels=28)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_damaged_pictures_are_read_or_named(suffix, tmp_path):
    random = np.random.default_rng(17)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix == "jpg" else {}
    refused = 0
    for mode in ("L", "RGB", "P", "LA") if suffix == "png" else ("L", "RGB", "CMYK"):
        content = digit(tmp_path / f"whole.{suffix}", (40, 30), mode=mode, **options).read_bytes()
        for _ in range(60):
            spoiled = np.frombuffer(content, np.uint8).copy()
            spoiled[random.integers(0, len(spoiled), 3)] = random.integers(0, 256, 3)
            (tmp_path / "x").write_bytes(
                spoiled.tobytes()[: random.choice([len(spoiled), random.integers(len(spoiled))])]
            )
            try:
                found, _ = runtime.read_image(tmp_path / "x", channels=1, pixels=28)
                assert found.shape == (1, 28, 28) and np.isfinite(found).all()
            except ValueError as error:
                assert "allowed: " in str(error)
                refused += 1
    assert refused > 60


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2_000)])
def test_pictures_of_any_size_become_images(mode, size, tmp_path):
    Image.new(mode, size).save(tmp_path / "x.png")
    found, notes = runtime.read_image(tmp_path / "x.png", channels=3, pixels=32)
    assert found.shape == (3, 32, 32) and f"{size[0]} × {size[1]}" in notes[-1]


def test_the_answer_is_softmax_and_its_largest(tmp_path):
    net = lenet(3, 4, 5)
    path = write_dense(net, tmp_path / "net.pack").path
    answer = runtime.predict(path, digit(tmp_path / "x.png"))
    pixels, _ = runtime.read_image(tmp_path / "x.png", channels=1, pixels=28)
    expected = training.predict(net, torch.from_numpy(pixels[None])).softmax(1)[0]
    assert list(answer.probabilities) == [str(n) for n in range(10)]
    np.testing.assert_allclose(list(answer.probabilities.values()), expected, rtol=1e-4)
    assert answer.label == str(int(expected.argmax())) and answer.notes == ()
