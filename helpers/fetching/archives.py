"""The files in an archive, whatever its kind, with a limit on what they unpack to."""

import gzip
import io
import itertools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from helpers.fetching.common import Dataset, Failed


# --- unpacking ----------------------------------------------------------------------------------------------
def members_of(location: Path, dataset: Dataset) -> Iterator[tuple[str, bytes]]:
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
        raise Failed(f"{path} in it is too large: {size:,} bytes; allowed: at most {left:,}")


def _unzipped(path: str, file: IO[bytes], left: int) -> bytes:
    with gzip.GzipFile(fileobj=file) as unpacked:
        content = unpacked.read(left + 1)
    _check_size(path, len(content), left)
    return content


def archive_in(folder: Path, dataset: Dataset) -> Path | None:
    """Return the archive that lies in a folder under the name that its source gives it, if one does."""
    archives = [folder / bundle[0] for bundle in dataset.bundles if len(bundle) == 1]
    return next((archive for archive in archives if archive.is_file()), None)


def _raw_members(location: Path, dataset: Dataset) -> Iterator[tuple[str, int, IO[bytes]]]:
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
        raise Failed(f"{location.name} ({size:,} bytes) is truncated, or neither a tar nor a zip archive")


MANY_FILES = 300_000
MARGIN = 4  # how many times the dataset an archive may unpack to: it may hold files that are not needed


def _files_in(folder: Path) -> list[Path]:
    found = list(itertools.islice(folder.rglob("*"), MANY_FILES + 1))
    if len(found) > MANY_FILES:
        raise Failed(f"it holds more than {MANY_FILES:,} files; name the folder that holds the dataset itself")
    return sorted(found)


class _Limited(io.RawIOBase):
    """A file from which at most `limit` bytes can be read: what unpacks to more is given up."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self.file, self.left, self.limit = file, limit, limit

    def read(self, size: int = -1) -> bytes:
        content = self.file.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise Failed(f"refused, it unpacks to more than {self.limit:,} bytes")
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
