"""What several checks ask of an answer."""

import torch

from helpers.exercises.checking import Wrong


def is_like(found: object, weight: torch.Tensor) -> None:
    """Raise Wrong unless `found` is a tensor of floats of the shape of `weight`."""
    if not isinstance(found, torch.Tensor) or found.shape != weight.shape or found.dtype != weight.dtype:
        what = f"{tuple(found.shape)}, {found.dtype}" if isinstance(found, torch.Tensor) else repr(found)
        raise Wrong(
            f"The moved weights should be {tuple(weight.shape)}, {weight.dtype}; yours: {what}.",
            hint="Return a tensor of the shape that came in, on the scale of the weights: times the step.",
        )
