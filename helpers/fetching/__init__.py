"""Datasets, fetched and verified: mirrors, retries, locks, checksums. The standard library is enough."""

from helpers.fetching.cache import fetch
from helpers.fetching.catalogue import NAMES
from helpers.fetching.common import SourceError
from helpers.fetching.decoding import read_idx

__all__ = [
    "NAMES",
    "SourceError",
    "fetch",
    "read_idx",
]
