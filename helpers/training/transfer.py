"""Transfer learning: a network that was trained on one task starts another.

The networks are those whose last layer is called `fc`: torchvision's ResNets, and the convolutional nets of the course.
Every function returns a copy, and the model that came in stays as it is.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from helpers.core import checks, modules
from helpers.data import Split
from helpers.training import evaluation

HEAD = "fc"


def replace_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """Return a copy of `model` whose last layer `fc` is a copy of `head`.

    A new linear head reads what the old one read: `nn.Linear(model.fc.in_features, classes)`. Raises ValueError if the
    model has no `fc`, or `head` is no module, or a linear layer for another number of features.
    """
    old = _head(model)
    if not isinstance(head, nn.Module):
        raise ValueError(f"head={head!r} is a {type(head).__name__}; allowed: an nn.Module")
    if isinstance(head, nn.Linear) and isinstance(old, nn.Linear) and head.in_features != old.in_features:
        raise ValueError(f"head.in_features={head.in_features}; allowed: {old.in_features}, what model.{HEAD} reads")
    new = modules.copied(model)
    setattr(new, HEAD, modules.copied(head))
    return new


def freeze(model: nn.Module, *, but: Sequence[str] = (HEAD,)) -> nn.Module:
    """Return a copy of which only the modules named in `but` are trained: their parameters have `requires_grad=True`.

    `training.fit` then leaves the statistics of every frozen BatchNorm alone as well. In a loop of your own, switch
    those layers to evaluation mode after each `model.train()`. Raises ValueError for a name that is no module with
    parameters.
    """
    new = modules.copied(model).requires_grad_(False)
    named = new.named_modules(remove_duplicate=False)
    allowed = [name for name, module in named if name and any(True for _ in module.parameters())]
    for name in checks.not_empty("but", but):
        new.get_submodule(checks.choice("but", name, allowed)).requires_grad_(True)
    return new


def features(model: nn.Module, split: Split, *, batch_size: int = 250) -> Split[Tensor, Tensor]:
    """Return the split with what the head of `model` reads, (n, features), in place of each image.

    The features are computed in evaluation mode. To train a head on them is to train it on a frozen body, without
    running the body in every epoch. Raises ValueError if the model has no `fc`, or the split is empty.
    """
    _head(model)
    checks.not_empty("split", split)
    body = replace_head(model, nn.Identity())
    return replace(split, inputs=evaluation.predict(body, split.inputs, batch_size=batch_size))


def _head(model: nn.Module) -> nn.Module:
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"model={type(model).__name__} has no layer {HEAD!r}; allowed: a model whose last layer it is")
    return head
