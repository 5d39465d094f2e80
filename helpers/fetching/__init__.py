"""Datasets, fetched and verified: mirrors, retries, locks, checksums. The standard library is enough."""

from helpers.fetching.cache import fetch
from helpers.fetching.catalogue import NAMES
from helpers.fetching.common import SourceError
from helpers.fetching.decoding import read_idx
from helpers.fetching.web import package, version

__all__ = [
    "NAMES",
    "SourceError",
    "fetch",
    "package",
    "read_idx",
    "version",
]
