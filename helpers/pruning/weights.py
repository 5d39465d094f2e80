"""Which of a network's parameters are weights, who owns them, and what they are without a mask."""

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from helpers.core import checks
from helpers.core.modules import materialized, same_tensor

WITH_NEURONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
PRUNABLE = (*WITH_NEURONS, *EMBEDDINGS)
WITH_WEIGHTS = (*PRUNABLE, _ConvTransposeNd, nn.RNNCellBase, nn.Bilinear)
WITHOUT_WEIGHTS = (nn.LayerNorm, nn.RMSNorm)  # a scale for each number, of as many dimensions as these have


def owner_of(model: nn.Module, name: str) -> tuple[Any, str]:
    """Return the layer and the attribute behind a parameter name such as "fc1.weight"."""
    layer, _, attribute = name.rpartition(".")
    return model.get_submodule(layer), attribute


def owners_of(model: nn.Module, name: str) -> list[tuple[Any, str]]:
    """Return all layers, each once, that have the parameter that goes by `name`, and their attributes for it."""
    owners = [owner_of(model, other) for other in same_tensor(model, name)]
    return list({(id(layer), attribute): (layer, attribute) for layer, attribute in owners}.values())


def refuse_tied(model: nn.Module, name: str, layer: Any) -> None:
    """Raise ValueError if another layer has a parameter of this one: what is cut here would be missing there."""
    for attribute, _ in layer.named_parameters(recurse=False):
        names = same_tensor(model, f"{name}.{attribute}".lstrip("."))
        if len(owners_of(model, names[0])) > 1:
            raise ValueError(f"{' and '.join(map(repr, names))} are one tensor; allowed: a layer that shares nothing")


def layer_of(model: nn.Module, argument: str, name: str, kinds: tuple[type, ...] = WITH_NEURONS) -> Any:
    """Return the layer of these kinds that goes by `name`; ValueError, naming `argument`, if there is none."""
    layers = {name: layer for name, layer in model.named_modules(remove_duplicate=False) if isinstance(layer, kinds)}
    return layers[checks.choice(argument, name, layers)]


def refuse_flat_weights(name: str, layer: nn.Module) -> None:
    """Raise ValueError for nn.RNN, nn.LSTM or nn.GRU.

    They keep what they compute with in a list of their own. A mask gets there, and makes the layer impossible to copy
    once it has been used: deepcopy refuses tensors that were computed. `fit` and `bake` need copies.
    """
    if isinstance(layer, nn.RNNBase):
        raise ValueError(
            f"layer {name!r} is torch's {type(layer).__name__}, which cannot be copied once it was used with a mask; "
            "allowed: helpers.nets.RNN and LSTM, which compute the same"
        )


def originals(layer: nn.Module) -> dict[str, Any]:
    """Return the parameters that a layer has itself, by attribute: of a masked one the tensor under the mask."""
    own = {name: parameter for name, parameter in layer._parameters.items() if parameter is not None}
    if not parametrize.is_parametrized(layer):
        return own
    chains: Any = layer.parametrizations
    return own | {name: chain.original if chain.is_tensor else getattr(layer, name) for name, chain in chains.items()}


def is_weight(layer: nn.Module, attribute: str, tensor: Any) -> bool:
    """Return whether `weights_of` counts a layer's tensor as a weight, by layer, name, type and shape."""
    if isinstance(layer, WITHOUT_WEIGHTS) or not (tensor.is_floating_point() or tensor.is_complex()):
        return False
    named_so = isinstance(layer, WITH_WEIGHTS) and attribute.startswith("weight")
    return named_so or sum(size > 1 for size in tensor.shape) > 1


def places_of(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """Return layer and attribute of each weight, by its first name; see `weights_of`."""
    places: dict[str, tuple[Any, str]] = {}
    seen: dict[int, Any] = {}
    for name, layer in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        refuse_flat_weights(name, layer)
        for attribute, tensor in sorted(originals(layer).items()):
            if is_lazy(tensor):
                raise ValueError(f"layer {name!r} has no weights yet; allowed: a model that was called once")
            if is_weight(layer, attribute, tensor) and id(tensor) not in seen:
                seen[id(tensor)] = tensor
                places[f"{name}.{attribute}".lstrip(".")] = layer, attribute
    return places


def plain(model: nn.Module) -> nn.Module:
    """Return `model`, or a copy without what `torch.nn.utils` has put on it: what that computes may be out of date."""
    parts = [part for chain in parametrizations_of(model).values() for part in chain]
    strange = any(module._forward_pre_hooks for module in model.modules()) or not all(
        type(part).__module__.startswith("helpers.") for part in parts
    )
    return materialized(model) if strange else model


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights that the layers compute with, masked if they are masked, each tensor under its first name.

    Those of linear, convolutional (also transposed) and embedding layers, of recurrent cells, of attention and of
    `nn.Bilinear`, and every other parameter with at least two dimensions larger than 1. A scale for each channel, a
    class token and the like are vectors, and no more weights than a bias. Frozen layers are included: `requires_grad`
    says what is trained, not what is stored.

    Raises:
        ValueError: the model has one of torch's own recurrent layers: left out, most of it would go unnoticed. Or it
            has a lazy layer without weights.
    """
    return {name: getattr(layer, attribute).detach() for name, (layer, attribute) in places_of(plain(model)).items()}


def parametrizations_of(model: nn.Module) -> dict[str, Any]:
    """Return the chain of modules through which each parametrized tensor goes, by its name ("fc1.weight")."""
    layers = ((name, layer) for name, layer in model.named_modules() if parametrize.is_parametrized(layer))
    return {
        f"{name}.{key}".lstrip("."): chain for name, layer in layers for key, chain in layer.parametrizations.items()
    }
