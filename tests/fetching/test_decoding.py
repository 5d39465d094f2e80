"""Tests of `helpers.fetching.decoding`."""

import hashlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from helpers import fetching
from helpers.core import paths
from helpers.fetching import decoding
from tests.fetching.fetching_examples import cifar10_arrays, cifar10_packages, idx, patch


def test_cifar10_is_the_same_from_pictures_and_from_the_official_pickles(raw, tmp_path, monkeypatch):
    images, labels = cifar10_arrays()
    expected = {
        "train-images-idx4-ubyte": idx(images[:5].reshape(10, 3, 32, 32)),
        "train-labels-idx1-ubyte": idx(np.array(labels[:5]).reshape(10)),
        "test-images-idx4-ubyte": idx(images[5]),
        "test-labels-idx1-ubyte": idx(np.array(labels[5])),
    }
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    patch(monkeypatch, "cifar10", sha256=hashes)
    for archive in cifar10_packages(tmp_path):
        shutil.rmtree(raw, ignore_errors=True)
        monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(archive))
        folder = fetching.fetch("cifar10")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
        np.testing.assert_array_equal(fetching.read_idx(folder / "test-images-idx4-ubyte"), images[5])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\0\0\x08\x02" + b"\x80\0\0\0" * 2,
        b"\0\0\x09\x01\0\0\0\1x",
        b"\0\0\x08\x02\0\0\0\1x",
        b"\0\0\x08\1\0\0\0\2x",
    ],
)
def test_what_is_not_an_idx_file(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match="path="):
        fetching.read_idx(tmp_path / "file")


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5), (0, 7)])
def test_idx_files_of_any_shape(shape, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file").write_bytes(idx(array))
    np.testing.assert_array_equal(fetching.read_idx(tmp_path / "file"), array)
    assert decoding._idx_bytes(array) == idx(array)


def test_fetching_imports_nothing_heavy():
    heavy = ("torch", "numpy", "tqdm", "filelock")
    code = f"import sys, helpers.fetching; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_only_the_official_hosts_are_named():
    """Packages come through the user's own npm and pip, wherever those are set up to look."""
    text = "".join(path.read_text() for path in (paths.ROOT / "helpers/fetching").glob("*.py"))
    hosts = re.findall(r"https?://([^\s/\"']+)", text)
    assert sorted(hosts) == ["ai.stanford.edu", "ossci-datasets.s3.amazonaws.com", "www.cs.toronto.edu"]
