"""Write a packed file; what was written is read back before it gets its name."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.core.paths import sha256, write_atomically
from helpers.files.arrays import Data, Packed, PackingError, Writable
from helpers.files.encoding import encode, encode_dense, encode_quantized, encode_sparse
from helpers.files.model_arrays import arrays_of, require_identical, require_text
from helpers.files.reading import decode, decode_words
from helpers.files.stating import architecture_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from helpers.files.arrays import Integers


def write_dense(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write all arrays in full, and the vocabulary if given. A model's masks are applied first (see `write_sparse`)."""
    arrays = arrays_of(tensors)
    return write(arrays, path, words, code=encode_dense, architecture=architecture_of(tensors, arrays))


def write_sparse(
    tensors: "Mapping[str, np.ndarray | Tensor] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write of each array only the values that are not zero, and where they stand, if that is smaller.

    From a model the `state_dict` is written, with masks applied (`pruning.bake`) and -0.0, which is what a
    mask makes of a negative weight, as 0.0. Arrays that are given by name come back bit for bit. `words` is
    the vocabulary of a text classifier, which `read_words` gives back.

    The file appears only after its content was decoded again and compared. Raises PackingError if they
    differ, and ValueError for a type that NumPy does not have (bfloat16) or that is not a number, for a
    word with a line feed, and for a model with quantized weights: it would store them as floating point numbers.
    """
    arrays = arrays_of(tensors)
    return write(arrays, path, words, code=encode_sparse, architecture=architecture_of(tensors, arrays))


def write_quantized(
    tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", path: Path, *, words: Sequence[str] = ()
) -> Packed:
    """Write quantized weights as whole numbers of few bits, and other arrays as `write_sparse` or as a table of values.

    Of a model, these are the weights that carry a grid (`quantization.quantize_model`). Any array with at most 256
    different values (`quantization.share_weights`) is stored as those values, once, and the places in that table, if
    that is smaller. Zeros are left out wherever it pays. `read` gives back the same float32 numbers, bit for bit.

    Raises what `write_sparse` does, but takes quantized weights, and ValueError for codes that need more than `bits`.
    """
    arrays = arrays_of(tensors, quantized=True)
    return write(arrays, path, words, code=encode_quantized, architecture=architecture_of(tensors, arrays))


def write(
    arrays: Writable,
    path: Path,
    words: Sequence[str],
    *,
    code: Callable[[Any], Data],
    architecture: str | None = None,
) -> Packed:
    """Write what `code` makes of each array; raise PackingError unless the same comes back from the bytes."""
    for word in words:
        require_text("word", word)
    content = encode(arrays, words, code=code, architecture=architecture)
    require_identical(arrays, decode(content))
    if decode_words(content) != list(words):
        raise PackingError("the words would not come back; nothing was written")
    write_atomically(Path(path), content)
    return Packed(Path(path), len(content), sha256(content))
