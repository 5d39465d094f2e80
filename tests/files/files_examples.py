"""What several tests of `files` share."""

import copy
import hashlib
import json
import math
import zlib
from pathlib import Path
from random import Random

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers import files, nets
from helpers.files.coded import WORDS

IMAGES = torch.randn(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
WRITERS = [files.write_dense, files.write_sparse, files.write_quantized]


def read_by_the_book(path: Path) -> dict[str, list]:
    """Read a file by the text of the module's docstring, one symbol at a time; lists of bytes for values."""
    content = path.read_bytes()
    assert content[:6] == b"MCPACK"
    assert int.from_bytes(content[6:8], "little") == 1
    length = int.from_bytes(content[8:12], "little")
    assert hashlib.sha256(content[:12] + content[20:]).digest()[:8] == content[12:20]
    entries, body, found = (
        json.loads(zlib.decompress(content[20 : 20 + length])),
        content[20 + length :],
        {},
    )
    for entry in entries:
        size, width = math.prod(entry["shape"]), np.dtype(entry["dtype"]).itemsize
        if entry["coding"] == "dense":
            found[entry["name"]] = [body[i * width : (i + 1) * width] for i in range(size)]
            body = body[size * width :]
            continue
        if entry["coding"] in ("integers", "codebook"):
            found[entry["name"]], body = read_codes_by_the_book(entry, size, body)
            continue
        bits, kept = entry["bits"], entry["kept"]
        in_bytes = -(-entry["symbols"] * bits // 8)
        stream, body = int.from_bytes(body[:in_bytes], "little"), body[in_bytes:]
        values, body = [body[i * width : (i + 1) * width] for i in range(kept)], body[kept * width :]
        elements: list[bytes] = []
        for _ in range(entry["symbols"]):
            symbol, stream = stream % 2**bits, stream >> bits
            elements += [bytes(width)] * symbol
            if symbol < 2**bits - 1:
                elements.append(values.pop(0))
        found[entry["name"]] = elements + [bytes(width)] * (size - len(elements))
        assert not values
    assert not body
    return found


def numbers_by_the_book(body: bytes, count: int, bits: int) -> tuple[list[int], bytes]:
    """The first `count` numbers of `bits` bits each, lowest bit first, and what comes after their last byte."""
    in_bytes = -(-count * bits // 8)
    stream = int.from_bytes(body[:in_bytes], "little")
    return [stream >> (bits * i) & (2**bits - 1) for i in range(count)], body[in_bytes:]


def read_codes_by_the_book(entry: dict, size: int, body: bytes) -> tuple[list[bytes], bytes]:
    """The elements of one array of few bits, as bytes, and the rest of the payload."""
    places = list(range(size))
    if "gap" in entry:
        bits, symbols, kept = entry["gap"]
        read, body = numbers_by_the_book(body, symbols, bits)
        places, at = [], 0
        for symbol in read:
            at += symbol
            if symbol < 2**bits - 1:
                places, at = [*places, at], at + 1
        assert len(places) == kept
    codes, body = numbers_by_the_book(body, len(places), entry["bits"])
    width = np.dtype(entry["dtype"]).itemsize
    elements = [bytes(width)] * size
    if entry["coding"] == "codebook":
        table = [body[i * width : (i + 1) * width] for i in range(entry["entries"])]
        for place, code in zip(places, codes, strict=True):
            elements[place] = table[code]
        return elements, body[entry["entries"] * width :]
    scales, body = np.frombuffer(body[: 4 * entry["scales"]], "<f4"), body[4 * entry["scales"] :]
    zero_points = [-entry["low"]] * len(scales)
    if entry.get("zero_points"):
        zero_points, body = list(body[: len(scales)]), body[len(scales) :]
    for place, code in zip(places, codes, strict=True):
        row = place // (size // len(scales))
        elements[place] = (scales[row] * np.float32(code - zero_points[row]) + np.float32(0)).tobytes()
    return elements, body


def header_of(path: Path) -> tuple[list[dict], int]:
    """The header, and how many bytes stand before the payload."""
    content = path.read_bytes()
    end = 20 + int.from_bytes(content[8:12], "little")
    header = json.loads(zlib.decompress(content[20:end]))
    return header[content[6] == 3 :], end  # without the architecture


@st.composite
def integers(draw) -> files.Integers:
    """Any codes, scales and zero points, for one step or one for each entry of the first dimension."""
    bits, shape = draw(st.integers(1, 8)), draw(arrays_of.array_shapes(min_dims=1, max_dims=4, max_side=5))
    low = draw(st.sampled_from([0, -(2 ** (bits - 1))]))
    codes = arrays_of.arrays(np.int16, shape, elements=st.integers(low, low + 2**bits - 1))
    steps = draw(st.sampled_from([(), shape[:1]]))
    scale = arrays_of.arrays(np.float32, steps, elements=st.floats(-10, 10, width=32).filter(bool))
    zero_point = draw(arrays_of.arrays(np.int16, steps, elements=st.integers(max(low, 0), low + 2**bits - 1)))
    return files.Integers(draw(codes), draw(scale), zero_point, low, bits)


def sealed(version: int, header: list[dict], body: bytes = b"") -> bytes:
    """A file with a right checksum, whatever it holds."""
    packed = zlib.compress(json.dumps(header).encode())
    start = b"MCPACK" + version.to_bytes(2, "little") + len(packed).to_bytes(4, "little")
    return start + hashlib.sha256(start + packed + body).digest()[:8] + packed + body


NASTY = [
    *(-1, 0, 1, 2, 3, 9, 17, 255, 300, 1_000, 70_000, 2**31, 2**40, 2**63, 10**30, 1.5, math.inf, math.nan),
    *(None, True, False, "", "x", "\ud800", [], [0], [-1], [1.5], [True], [3, "a"], [[]], {}, {"a": 1}),
    *([2**40, 2**40], [2**62, 4], [0, 2**62], [5_000, 5_000], [9_000, 9_000], [1] * 33, [1] * 100),
    *("<f8", "|b1", "<c16", "|O", "<M8", ">f4", "<f4", "dense", "gap", "integers", "codebook", "words", "huffman"),
]


def nodes(tree, path=()) -> list[tuple]:
    """The way to each part of a header."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(way for key, part in inside for way in nodes(part, (*path, key)))]


def changed(header, random: Random):
    """A header in which one part has another value, is missing, stands twice, or is new."""
    *way, last = random.choice(nodes(header)[1:])
    parent = header
    for key in way:
        parent = parent[key]
    how = random.random()
    if how < 0.1:
        del parent[last]
    elif how < 0.2 and isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]))
    elif how < 0.3 and isinstance(parent, dict):
        parent[random.choice(["gap", "bits", "kept", "zero_points", "q"])] = copy.deepcopy(random.choice(NASTY))
    else:
        parent[last] = copy.deepcopy(random.choice(NASTY))
    return header


def entry(**changes) -> dict:
    return {"name": "x", "dtype": "<f4", "shape": [4], "coding": "dense"} | changes


class Tied(nn.Module):
    """An output layer that is the embedding, and a block that stands twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
        self.decoder.weight = self.embedding.weight
        self.first = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.second = self.first

    def forward(self, tokens):
        return self.decoder(self.second(torch.relu(self.first(self.embedding(tokens).mean(1)))))


TOKENS = torch.randint(0, 50, (6, 5), generator=torch.Generator().manual_seed(2))


def tied(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = Tied().train()
    model(TOKENS)
    return model.eval()


def transformer(**options) -> nets.Transformer:
    """A transformer of 30 words whose heads have four numbers, as they are after some training."""
    torch.manual_seed(0)
    sizes = {"dimensions": 12, "heads": 3, "hidden": 10, "layers": 3, "max_tokens": 25} | options
    net = nets.Transformer(30, **sizes)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def without_heads(net: nets.Transformer, layer: int, heads: list[int]) -> nets.Transformer:
    """A copy in which one layer has these of its heads alone."""
    new = copy.deepcopy(net)
    attention = new.layers[layer].attention
    rows = torch.cat([torch.arange(head * attention.width, (head + 1) * attention.width) for head in heads])
    for part in ("query", "key", "value"):
        setattr(attention, part, narrowed(getattr(attention, part), rows=rows))
    attention.output = narrowed(attention.output, columns=rows)
    return new


def narrowed(layer: nn.Linear, *, rows=slice(None), columns=slice(None)) -> nn.Linear:
    weight, bias = layer.weight.data[rows][:, columns], layer.bias.data[rows]
    new = nn.Linear(*reversed(weight.shape))
    new.weight.data, new.bias.data = weight.clone(), bias.clone()
    return new


def without_neurons(net: nets.Transformer, layer: int, count: int) -> nets.Transformer:
    """A copy in which one layer has the first `count` of its hidden units alone."""
    new = copy.deepcopy(net)
    block, kept = new.layers[layer], torch.arange(count)
    block.fc1, block.fc2 = narrowed(block.fc1, rows=kept), narrowed(block.fc2, columns=kept)
    return new


def without_layer(net: nets.Transformer, layer: int) -> nets.Transformer:
    new = copy.deepcopy(net)
    new.layers = nn.ModuleList(block for number, block in enumerate(new.layers) if number != layer)
    return new


def opened(path: Path) -> tuple[bytes, bytes]:
    """The header and what follows it; how zlib compresses a header is its own affair."""
    content = path.read_bytes()
    coded = content[6] == 2
    unpacker = zlib.decompressobj(-15, WORDS) if coded else zlib.decompressobj()
    header = unpacker.decompress(content[12 if coded else 20 :])
    return header, unpacker.unused_data
