"""A picture file as a network's input."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from helpers.core import checks

# As in helpers/data/splits.py, which imports PyTorch; a test holds the two together.
MEAN = {1: (0.1307,), 3: (0.4914, 0.4822, 0.4465)}
STD = {1: (0.3081,), 3: (0.2470, 0.2435, 0.2616)}
PIXELS = {1: 28, 3: 32}
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # eight bits a channel, or fewer
BRIGHT = 127
MEGAPIXELS = 50  # of a picture; with more, reading it takes a gigabyte
CHUNK = 50  # images at a time: what a convolution lays out takes megabytes for each
Floats = np.ndarray  # float32; images (batch, channels, height, width)


def existing(argument: str, path: Path | str) -> Path:
    """Return `path` as a Path; FileNotFoundError, naming `argument`, unless it is that of a file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}={str(path)!r} does not exist; allowed: the path of a file")
    return Path(path)


def read_image(image: Path | str, *, channels: int, pixels: int) -> tuple[Floats, tuple[str, ...]]:
    """Return an image standardized as in training, float32 (channels, pixels, pixels), and what was done to it.

    PNG and JPEG, of eight bits a colour and at most 50 megapixels, turned as a camera's note in it says. With one
    channel it becomes grey, and should be like MNIST: one white digit on black, in the middle. With three it becomes
    RGB. Transparency is laid on black. Another size is scaled to pixels × pixels, whatever its proportions. The notes
    say so.

    Raises FileNotFoundError if there is no such file, ValueError for one that is no such image.
    """
    checks.choice("channels", channels, MEAN)
    checks.positive("pixels", pixels)
    path = existing("image", image)
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as opened:
            _require_usual(image, opened)
            plain, notes = _on_black(ImageOps.exif_transpose(opened))
            plain = plain.convert("L" if channels == 1 else "RGB")
    except _Unusual:
        raise
    except Exception as error:  # of any class: a damaged picture is stumbled over in many ways
        raise ValueError(f"image={str(image)!r} cannot be read ({error}); allowed: a whole PNG or JPEG") from None
    if plain.size != (pixels, pixels):
        notes.append(f"the image has {plain.width} × {plain.height} pixels and was scaled to {pixels} × {pixels}")
        plain = plain.resize((pixels, pixels), Image.Resampling.BILINEAR)
    values = np.asarray(plain, dtype=np.float32).reshape(pixels, pixels, channels).transpose(2, 0, 1)
    if channels == 1 and values.mean() > BRIGHT:
        notes.append("the image is mostly bright; the network has only seen white digits on black")
    mean, std = (np.array(numbers[channels], dtype=np.float32)[:, None, None] for numbers in (MEAN, STD))
    return (values / np.float32(255) - mean) / std, tuple(notes)


class _Unusual(ValueError):
    """A picture that can be read, but is none for these networks."""


def _require_usual(image: Path | str, picture: Image.Image) -> None:
    if picture.mode not in MODES:
        raise _Unusual(f"image={str(image)!r} has pixels of the kind {picture.mode!r}; allowed: {', '.join(MODES)}")
    if picture.width * picture.height > MEGAPIXELS * 1e6:
        size = f"{picture.width} × {picture.height}"
        raise _Unusual(f"image={str(image)!r} has {size} pixels; allowed: at most {MEGAPIXELS} million")


def _on_black(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    if not picture.has_transparency_data:
        return picture, []
    colours = picture.convert("RGBA")
    black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, colours).convert("RGB"), ["what is transparent was laid on black"]


def chunks(images: Floats, size: int) -> list[Floats]:
    """Return the images in order, as float32 arrays of at most `size` each; ValueError if there are none."""
    checks.not_empty("images", images)
    return [np.ascontiguousarray(images[i : i + size], np.float32) for i in range(0, len(images), size)]
