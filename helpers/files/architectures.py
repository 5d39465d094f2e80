"""A file is a model: `load` gives the network in a packed file, `describe` says what a file's header says of a network.

`families` knows the architectures and their arrays, without PyTorch; here they become modules of `nets`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from helpers import nets
from helpers.core.vocabulary import PAD
from helpers.files import families, loading, model_arrays, reading
from helpers.files.arrays import PackingError
from helpers.files.families import Architecture

_CLASSES = {  # by name: some are imported where they are needed, a ResNet-18's with torchvision
    "lenet5": "LeNet5",
    "lenet300100": "LeNet300100",
    "mlp": "MLP",
    "cifarnet": "CifarNet",
    "resnet18": "ResNet18",
    "textbag": "TextBag",
    "transformer": "Transformer",
}
_ENCODERS: dict[str, Any] = {"textcnn": nets.TextCNN, "rnn": nets.RNN, "lstm": nets.LSTM}
_ARGUMENTS: dict[str, tuple[Any, ...]] = {"mlp": (1,), "cifarnet": ((1, 1, 1, 1),)}
_FACTS = (  # of a layer that no array shows, and that decide what it answers
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "ceil_mode", "output_size"),
    *("eps", "track_running_stats", "mode", "padding_idx", "max_norm", "include_last_offset"),
    *("normalized_shape", "elementwise_affine", "width"),  # of a LayerNorm; of attention, of a head
)
_METHODS = ("forward", "_forward_impl", "encode", "__call__")  # that answer


def load(path: Path) -> nn.Module:
    """Return the network in a packed file, in evaluation mode and float32, without being told what it is.

    The header names it; of a file that names nothing, the arrays do (see `families`). Inputs of layers are rounded
    where the file says so. A text classifier has the file's vocabulary as the attribute `words`, a list, empty if the
    file holds none. What only training uses (the share that dropout leaves out) is as the class in `helpers.nets` has
    it.

    Raises PackingError, in one sentence, for what `files.read` refuses, for a file that neither names nor shows a
    network of the course (`files.load_into` fills a module of your own), and for arrays or words that contradict the
    name; FileNotFoundError if there is no such file.
    """
    content = reading.contents(Path(path))
    try:
        arrays = families.values(content.arrays)
        shapes = {name: array.shape for name, array in arrays.items()}
        architecture = families.survey(shapes, content.architecture)
        network = loading.filled(_built(architecture, shapes).to_empty(device="cpu").eval(), arrays)
        if "embedding" in architecture.widths:
            setattr(network, "words", _words(content.words, len(arrays["embedding.weight"])))  # noqa: B010  not for mypy
        return network
    except ValueError as error:
        raise PackingError(f"{path}: {error}") from None


def _words(words: list[str], rows: int) -> list[str]:
    if len(words) not in (0, rows):
        raise PackingError(f"the file holds {len(words):,} words and {rows:,} word vectors; allowed: as many, or none")
    return words


def _built(architecture: Architecture, shapes: families.Shapes) -> nn.Module:
    """Return the network without numbers, on the device "meta": nothing is drawn, and nothing takes memory."""
    with torch.device("meta"):
        network = _untrained(architecture)
        for name in architecture.removed:
            _put(network, name, nn.Identity())
        for name in architecture.widths:
            _add_shortcut(network, name)
        for name, layer in [*network.named_modules()]:
            if (fitted := _fitted(layer, name, shapes)) is not layer:
                _put(network, name, fitted)
    return network


def _untrained(architecture: Architecture) -> nn.Module:
    name, options = architecture.name, architecture.options
    if name in _ENCODERS:
        return nets.TextNet(_ENCODERS[name](1, 1), 1, **options)
    if name == "transformer":
        layers = sum(layer.endswith(".attention.query") for layer in architecture.widths)
        width = options[families.HEAD_WIDTH]
        return nets.Transformer(PAD + 1, dimensions=width, heads=1, hidden=1, layers=layers, max_tokens=1, classes=1)
    return getattr(nets, _CLASSES[name])(*_ARGUMENTS.get(name, ()), **options)


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)


def _add_shortcut(network: nn.Module, name: str) -> None:
    """Put a convolution on the shortcut of a ResNet's block that usually has none: its input has another width."""
    block, found, _ = name.partition(".downsample.0")
    if found and network.get_submodule(block).downsample is None:
        layers = nn.Conv2d(1, 1, 1, stride=network.get_submodule(block).stride, bias=False), nn.BatchNorm2d(1)  # type: ignore[arg-type]
        _put(network, f"{block}.downsample", nn.Sequential(*layers))


def _fitted(layer: nn.Module, name: str, shapes: families.Shapes) -> nn.Module:
    """Return a layer of the same kind in the file's shape; of a BatchNorm that is not in the file nothing is left."""
    shape, bias = shapes.get(f"{name}.weight"), f"{name}.bias" in shapes
    if shape is None:
        return nn.Identity() if isinstance(layer, nn.BatchNorm2d) else layer
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return type(layer)(shape[1], shape[0], shape[2:], stride=layer.stride, padding=layer.padding, bias=bias)  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return nn.Linear(shape[1], shape[0], bias=bias)
    if isinstance(layer, nn.BatchNorm2d):
        return nn.BatchNorm2d(shape[0])
    if isinstance(layer, nn.LayerNorm):
        return nn.LayerNorm(shape[0], eps=layer.eps)
    if isinstance(layer, nn.EmbeddingBag):
        return nn.EmbeddingBag(shape[0], shape[1], mode=layer.mode, padding_idx=layer.padding_idx)
    if isinstance(layer, nn.Embedding):
        return nn.Embedding(shape[0], shape[1], padding_idx=layer.padding_idx)
    return layer


def describe(model: nn.Module) -> dict[str, Any] | None:
    """Return {"name": …, "widths": {layer: rows}, "removed": [residual blocks]} of a network of the course, else None.

    A ResNet-18 also has "pixels", a text network that reads words in order "max_tokens", a transformer "head_width".
    Masks, quantized weights and inputs change nothing; a layer of another kind, or one that computes otherwise, makes
    it another network: None.
    """
    found = _architecture(model)
    if found is None:
        return None
    return {"name": found.name, "widths": found.widths, "removed": [*found.removed], **found.options}


def state(model: nn.Module) -> str:
    """Return what a file's header says of a network: `families.stated`, and "" for one that is not of the course."""
    found = _architecture(model)
    return "" if found is None else families.stated(found)


def _architecture(model: nn.Module) -> Architecture | None:
    name = _name(model)
    if name is None:
        return None
    plain = loading.plain(model)
    if _is_changed(plain):
        return None
    state = model_arrays.state_of(plain)
    shapes = {first: tuple(state[first].shape) for first in model_arrays.first_of(state).values()}
    option = families.FAMILIES[name].option
    try:
        found = families.survey(shapes, name if option is None else f"{name}:{_number(model, option)}")
    except ValueError:
        return None
    return found if _layers(plain) == _layers(_built(found, shapes)) else None


def _number(model: nn.Module, option: families.Option) -> Any:
    """Return what no array of a network shows; of a transformer without layers, which has no heads, the usual."""
    if option.name != families.HEAD_WIDTH:
        return getattr(model, option.name)
    return next((each.width for each in model.modules() if isinstance(each, nets.Attention)), option.usual)


def _name(model: nn.Module) -> str | None:
    classes = {kind.__name__ for kind in type(model).__mro__}
    for name, kind in _CLASSES.items():
        if kind in classes and _computes_as(model, getattr(nets, kind)):
            return name
    if not _computes_as(model, nets.TextNet):
        return None
    return next((name for name, kind in _ENCODERS.items() if type(model.encoder) is kind), None)


def _computes_as(model: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a network computes as the course's class does: no method that answers is another one."""
    return isinstance(model, kind) and all(
        getattr(type(model), name, None) is getattr(kind, name, None) for name in _METHODS
    )


def _is_changed(model: nn.Module) -> bool:
    """Return whether hooks, or a `forward` of its own on a single module, make a network compute otherwise."""
    return any(
        {*_METHODS} & vars(each).keys() or each._forward_hooks or each._forward_pre_hooks for each in model.modules()
    )


def _layers(network: nn.Module) -> Mapping[str, tuple[type, dict[str, Any]]]:
    """Return of each module inside a network its class, and what decides its answers beside its numbers."""
    return {
        name: (type(layer), {fact: getattr(layer, fact) for fact in _FACTS if hasattr(layer, fact)})
        for name, layer in network.named_modules()
        if name
    }
