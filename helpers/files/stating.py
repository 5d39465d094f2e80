"""What the header of a file states of the network in it."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from helpers.files import families

if TYPE_CHECKING:
    from torch import Tensor, nn

    from helpers.files.arrays import Integers


def architecture_of(
    tensors: "Mapping[str, np.ndarray | Tensor | Integers] | nn.Module", names: Iterable[str]
) -> str | None:
    """Return what the header of a file with arrays of these names is to state of the network, None for nothing.

    Arrays that are given by name state nothing. A network that is not of the course states "" if `load` would take it
    for one by its arrays' names.
    """
    if isinstance(tensors, Mapping):
        return None
    of_course = any(kind.__module__.startswith("helpers.nets.") for kind in type(tensors).__mro__)
    if of_course:
        from helpers.files import architectures  # which imports PyTorch, and knows no other networks

        if stated := architectures.state(tensors):
            return stated
    return None if families.recognise(dict.fromkeys(names, ())) is None else ""
