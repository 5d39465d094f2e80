"""The file of a compressed model: write it, read it back, verify that it answers the same."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from helpers.files.arrays import Integers, Packed, PackingError
from helpers.files.coded import anatomy, write_coded
from helpers.files.loading import load_into, verify
from helpers.files.model_arrays import integers
from helpers.files.reading import Contents, contents, read, read_words
from helpers.files.writing import write_dense, write_quantized, write_sparse

if TYPE_CHECKING:
    from helpers.files.architectures import describe, load

__all__ = [
    "Contents",
    "Integers",
    "Packed",
    "PackingError",
    "anatomy",
    "contents",
    "describe",
    "integers",
    "load",
    "load_into",
    "read",
    "read_words",
    "verify",
    "write_coded",
    "write_dense",
    "write_quantized",
    "write_sparse",
]

_LAZY = {
    "describe": "helpers.files.architectures",
    "load": "helpers.files.architectures",
}


def __getattr__(name: str) -> Any:
    """Import what is seldom needed, and slow to import, when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
