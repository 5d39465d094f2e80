"""The file of a compressed model: write it, read it back, verify that it answers the same."""

from helpers.files.arrays import Integers, Packed, PackingError
from helpers.files.coded import START, anatomy, decode, write_coded
from helpers.files.loading import load_into, verify
from helpers.files.model_arrays import integers
from helpers.files.reading import read, read_words
from helpers.files.writing import write_dense, write_quantized, write_sparse

__all__ = [
    "START",
    "Integers",
    "Packed",
    "PackingError",
    "anatomy",
    "decode",
    "integers",
    "load_into",
    "read",
    "read_words",
    "verify",
    "write_coded",
    "write_dense",
    "write_quantized",
    "write_sparse",
]
