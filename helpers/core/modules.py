"""What every technique needs of an `nn.Module`: copies, modes, hooks, and which names stand for one tensor."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

TORCHS = (parametrizations._WeightNorm, parametrizations._SpectralNorm, parametrizations._Orthogonal)


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy that computes the same, and whose parametrizations can be changed without touching `model`.

    `deepcopy` alone refuses a layer that keeps a computed tensor (as the hooks of `torch.nn.utils.prune` and
    `weight_norm` do, and a masked `nn.LSTM`), and it shares the class that torch makes for a parametrized layer.
    """
    computed = [tensor for module in model.modules() for tensor in _plain_tensors(module) if tensor.grad_fn is not None]
    new = deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})
    for layer in filter(parametrize.is_parametrized, new.modules()):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    return new


def _plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors that a module holds as plain attributes, also in lists."""
    for value in vars(module).values():
        several = value if isinstance(value, list | tuple) else [value]
        yield from (each for each in several if isinstance(each, Tensor))


def materialized(model: nn.Module) -> nn.Module:
    """Return a copy with what torch's own hooks and parametrizations compute as ordinary weights.

    Those of `torch.nn.utils.prune`, `weight_norm` and `spectral_norm`, and of `torch.nn.utils.parametrizations`. The
    course's masks and quantizers stay (see `pruning.bake`, `quantization.bake`). Answers in evaluation mode are the
    same.
    """
    new = copied(model)
    for layer in new.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(layer, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(layer, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(layer, hook.name)
                _load_plainly(layer)
        if parametrize.is_parametrized(layer):
            _remove_torchs(layer)
    return new


def _load_plainly(layer: nn.Module) -> None:
    """Remove the hook that `spectral_norm` leaves: it refuses a `state_dict` without what the norm needed."""
    for key, wrapped in list(layer._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(wrapped, "hook", wrapped), SpectralNormLoadStateDictPreHook):
            del layer._load_state_dict_pre_hooks[key]


def _remove_torchs(layer: Any) -> None:
    with evaluating(layer):
        for name, chain in list(layer.parametrizations.items()):
            if all(isinstance(part, TORCHS) for part in chain):
                parametrize.remove_parametrizations(layer, name, leave_parametrized=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, then back to the mode that each module had: a frozen layer's may differ."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Have each module call its function of (module, inputs, output) after each forward pass."""
    handles = [module.register_forward_hook(function) for module, function in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def asked(name: str, inputs: Tensor) -> Iterator[None]:
    """Have a model's own error, on inputs that it does not take, name the argument: a ValueError.

    An error of the course's, which says what is allowed, passes as it is.
    """
    try:
        yield
    except Exception as error:  # of any class: it is the model's own code
        if "allowed:" in str(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{name} has shape {tuple(inputs.shape)} and type {inputs.dtype}, on which the model fails ({said}); "
            "allowed: a batch that it takes"
        ) from error


@contextmanager
def plain_attention() -> Iterator[None]:
    """Have attention call its layers and multiply its matrices one after the other, as a formula would.

    In evaluation mode `nn.TransformerEncoderLayer` and `nn.MultiheadAttention` may leave their layers uncalled, and the
    fused kernels of `scaled_dot_product_attention` hide their products and have no second derivative.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def first_names(model: nn.Module) -> dict[str, str]:
    """Return each parameter's name, also the second names of tied ones, with the first name of the same tensor.

    A decoder that shares its embedding's weight gives {"embedding.weight": "embedding.weight", "decoder.weight":
    "embedding.weight"}. A masked or quantized weight goes by the name that it had before.
    """
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {_outer(name): first.setdefault(id(parameter), _outer(name)) for name, parameter in named}


def _outer(name: str) -> str:
    """Return "fc1.weight" for "fc1.parametrizations.weight.original"."""
    layer, found, inner = name.rpartition("parametrizations.")
    return layer + inner.removesuffix(".original") if found and inner.endswith(".original") else name


def same_tensor(model: nn.Module, name: str) -> list[str]:
    """Return all names of the parameter that goes by `name`, itself included; ValueError if there is none."""
    from helpers.core import checks

    first = first_names(model)
    return [other for other in first if first[other] == first[checks.choice("name", name, first)]]


def channels_last(batch: Tensor) -> Tensor:
    """Return a batch of images laid out channel by channel for each pixel: convolutions take about half the time.

    Values and shape stay; what is no batch of images comes back as it is.
    """
    return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


@torch.no_grad()
def to_channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of 2-D convolutions as `channels_last` does images, in place; return the model."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)  # also of one channel, unlike contiguous
    return model


def takes_channels_last(model: nn.Module, example: Tensor) -> bool:
    """Return whether `model` computes with images that are so laid out: `view` refuses them where it would copy."""
    if example.dim() != 4:
        return False
    try:
        with evaluating(model), torch.no_grad():
            model(channels_last(example))
    except RuntimeError:
        return False
    return True


Named = Mapping[str, Tensor]
