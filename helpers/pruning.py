"""Pruning: scores, masks, schedules, and the removal of neurons.

A mask is a boolean tensor of its parameter's shape, True where the weight is kept; masks travel as a dictionary keyed
by parameter name (``{"fc1.weight": …}``). `mask` puts them on a copy of the model as parametrizations
(`torch.nn.utils.parametrize`): what the network computes with is ``original * mask``, so neither momentum nor weight
decay nor a copy nor a saved file can bring a pruned weight back. `bake` turns them into ordinary zeros.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from helpers import checks
from helpers.data import Split
from helpers.training import Fitted, OnStep, StepInfo, fit

__all__ = [
    "SCORES",
    "Mask",
    "Masks",
    "Scores",
    "bake",
    "factor_embedding",
    "fisher_scores",
    "geometric_amounts",
    "geometric_sparsity",
    "global_masks",
    "keep_largest",
    "l1_scores",
    "layer_masks",
    "mask",
    "masks_of",
    "neuron_masks",
    "own_copy",
    "parametrizations_of",
    "prune_gradually",
    "random_scores",
    "remove_neurons",
    "remove_words",
    "sparsity",
    "weights_of",
]

Masks = Mapping[str, Tensor]  # boolean; `mask` says so in a sentence where a type checker would in ten lines
Scores = Mapping[str, Float[Tensor, "..."]]

WITH_NEURONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
PRUNABLE = (*WITH_NEURONS, *EMBEDDINGS)


class Mask(nn.Module):
    """Parametrization that multiplies a tensor by a fixed mask of its shape."""

    mask: Tensor

    def __init__(self, mask: Bool[Tensor, "..."]) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, original: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the tensor that the layer computes with."""
        return original * self.mask


def _owner(model: nn.Module, name: str) -> tuple[Any, str]:
    """Return the layer and the attribute behind a parameter name such as "fc1.weight"."""
    layer, _, attribute = name.rpartition(".")
    return model.get_submodule(layer), attribute


def _layer(model: nn.Module, argument: str, name: str, kinds: tuple[type, ...] = WITH_NEURONS) -> Any:
    allowed = [name for name, layer in model.named_modules() if isinstance(layer, kinds)]
    checks.choice(argument, name, allowed)
    return model.get_submodule(name)


def _refuse_flat_weights(name: str, layer: nn.Module) -> None:
    """Raise ValueError for nn.RNN, nn.LSTM or nn.GRU.

    They keep what they compute with in a list of their own. A mask gets there, and makes the layer impossible to copy
    once it has been used: deepcopy refuses tensors that were computed. `fit` and `bake` need copies.
    """
    if isinstance(layer, nn.RNNBase):
        raise ValueError(
            f"layer {name!r} is torch's {type(layer).__name__}, which cannot be copied once it was used with a mask; "
            "allowed: helpers.models.RNN and LSTM, which compute the same"
        )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight that each linear, convolutional or embedding layer computes with, masked if it is masked.

    Frozen layers are included: `requires_grad` says what is trained, not what is stored.

    Raises:
        ValueError: the model has one of torch's own recurrent layers: left out, most of it would go unnoticed.
    """
    for name, layer in model.named_modules():
        _refuse_flat_weights(name, layer)
    layers = ((name, layer) for name, layer in model.named_modules() if isinstance(layer, PRUNABLE))
    return {f"{name}.weight".lstrip("."): layer.weight.detach() for name, layer in layers}


def sparsity(model: nn.Module) -> float:
    """Return the fraction of the weights (biases not counted) that are exactly zero."""
    weights = checks.not_empty("weights of model", weights_of(model))
    return sum(int((w == 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def l1_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by its magnitude (Han et al. 2015, "Learning both weights and connections", section 3)."""
    return {name: weight.abs() for name, weight in weights_of(model).items()}


def random_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by a random number in [0, 1): the control that every other score must beat."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights_of(model).items()}


SCORES: dict[str, Callable[..., dict[str, Tensor]]] = {"l1": l1_scores, "random": random_scores}


def keep_largest(scores: Float[Tensor, "..."], amount: float) -> Bool[Tensor, "..."]:
    """Return the mask that drops the fraction `amount` of the entries with the smallest scores.

    The number dropped is rounded, and ties are broken, as `torch.nn.utils.prune` does it.
    """
    checks.fraction("amount", amount)
    dropped = round(amount * scores.numel())
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[torch.topk(scores.flatten(), dropped, largest=False).indices] = False
    return kept.view(scores.shape)


def layer_masks(
    model: nn.Module, amount: float | Mapping[str, float], *, method: str = "l1", seed: int = 0
) -> dict[str, Tensor]:
    """Prune every layer by the same fraction, or by its own: `{"fc1": 0.9}` prunes fc1 and leaves the others.

    `amount` counts from the whole layer: weights that are zero already are the first to be dropped by "l1".
    """
    score = SCORES[checks.choice("method", method, SCORES)]
    scores = score(model, seed=seed)
    if not isinstance(amount, Mapping):
        return {name: keep_largest(values, amount) for name, values in scores.items()}
    for name in amount:
        _layer(model, "layer in amount", name, PRUNABLE)
    return {f"{name}.weight": keep_largest(scores[f"{name}.weight"], part) for name, part in amount.items()}


def global_masks(
    model: nn.Module, amount: float, *, method: str = "l1", seed: int = 0, scores: Scores | None = None
) -> dict[str, Tensor]:
    """Prune the fraction `amount` of all weights, wherever the smallest scores are; `scores` may bring its own."""
    if scores is None:
        scores = SCORES[checks.choice("method", method, SCORES)](model, seed=seed)
    flat = torch.cat([values.flatten() for values in scores.values()])
    parts = keep_largest(flat, amount).split([values.numel() for values in scores.values()])
    return {name: part.view(values.shape) for part, (name, values) in zip(parts, scores.items(), strict=True)}


def neuron_masks(model: nn.Module, layer: str, next_layer: str, amount: float, *, norm: float = 1) -> dict[str, Tensor]:
    """Prune whole neurons (or filters) of `layer`: their rows and biases, and the columns of `next_layer` they feed.

    The fraction `amount` of the rows with the smallest `norm` is dropped. Where a convolution feeds a linear layer
    through a flattening, one filter feeds a block of columns.

    Raises:
        ValueError: a layer does not exist, or `next_layer` does not take what `layer` gives.
    """
    this, following = _layer(model, "layer", layer), _layer(model, "next_layer", next_layer)
    keep = keep_largest(this.weight.detach().flatten(1).norm(norm, dim=1), amount)
    columns = keep.repeat_interleave(_columns_per_unit(this, following, layer, next_layer))
    shape = (1, -1) + (1,) * (following.weight.dim() - 2)
    masks = {
        f"{layer}.weight": keep.view(-1, *(1,) * (this.weight.dim() - 1)).expand_as(this.weight).clone(),
        f"{next_layer}.weight": columns.view(shape).expand_as(following.weight).clone(),
    }
    return masks if this.bias is None else masks | {f"{layer}.bias": keep}


def _columns_per_unit(this: Any, following: Any, layer: str, next_layer: str) -> int:
    units, inputs = this.weight.shape[0], following.weight.shape[1]
    if inputs % units or (isinstance(following, nn.Linear) is False and inputs != units):
        raise ValueError(
            f"next_layer={next_layer!r} takes {inputs} inputs, but layer={layer!r} gives {units}; "
            "allowed: the layer that reads its output"
        )
    return inputs // units


def mask(model: nn.Module, masks: Masks) -> nn.Module:
    """Return a copy of `model` whose named parameters are masked; a mask that is there already stays in force.

    Raises:
        ValueError: a name is no parameter of the model, or one of torch's own recurrent layers, or a mask has another
            shape or is not boolean.
    """
    old = masks_of(model)
    _refuse_quantized(model, [*old, *masks])
    new = bake(model)
    parameters = dict(new.named_parameters())
    for name in masks:
        checks.choice("name in masks", name, parameters)
    for name in {**old, **masks}:
        kept = torch.ones_like(parameters[name], dtype=torch.bool)
        for part in (old.get(name), masks.get(name)):
            if part is None:
                continue
            if part.dtype != torch.bool or part.shape != kept.shape:
                raise ValueError(
                    f"masks[{name!r}] is {part.dtype} {tuple(part.shape)}; allowed: torch.bool {tuple(kept.shape)}"
                )
            kept &= part.to(kept.device)
        layer, attribute = _owner(new, name)
        _refuse_flat_weights(name, layer)
        parametrize.register_parametrization(layer, attribute, Mask(kept))
    return new


def parametrizations_of(model: nn.Module) -> dict[str, Any]:
    """Return the chain of modules through which each parametrized tensor goes, by its name ("fc1.weight")."""
    layers = ((name, layer) for name, layer in model.named_modules() if parametrize.is_parametrized(layer))
    return {
        f"{name}.{key}".lstrip("."): chain for name, layer in layers for key, chain in layer.parametrizations.items()
    }


def _refuse_quantized(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError for a weight with another parametrization than masks, which `bake` would fold in or not find."""
    chains = parametrizations_of(model)
    for name in names:
        if not all(isinstance(part, Mask) for part in chains.get(name, ())):
            raise ValueError(f"{name!r} is quantized; allowed: masks first, then quantization")


def _mask_modules(model: nn.Module) -> dict[str, Mask]:
    return {
        name: part for name, chain in parametrizations_of(model).items() for part in chain if isinstance(part, Mask)
    }


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the masks that are on the model."""
    return {name: part.mask.clone() for name, part in _mask_modules(model).items()}


def own_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy whose parametrizations can be removed, or more of them added, without touching `model`.

    A deep copy shares the class that torch made for a parametrized layer, and both change that class.
    """
    new = deepcopy(model)
    for layer in filter(parametrize.is_parametrized, new.modules()):
        shared = type(layer)
        layer.__class__ = type(shared.__name__, shared.__bases__, dict(shared.__dict__))
    return new


def bake(model: nn.Module) -> nn.Module:
    """Return a copy of `model` without masks, whose pruned weights are ordinary zeros: for files and runtimes."""
    new = own_copy(model)
    for name in _mask_modules(new):
        layer, attribute = _owner(new, name)
        parametrize.remove_parametrizations(layer, attribute, leave_parametrized=True)
    return new


def remove_neurons(model: nn.Module, layer: str, next_layer: str) -> nn.Module:
    """Return a smaller copy without the neurons of `layer` that contribute nothing to `next_layer`.

    A neuron contributes nothing if its bias and all weights that it reads with are zero (and the activation between
    the layers maps 0 to 0, as ReLU does), or if all weights that read from it are zero. Masked counts as zero.

    Raises:
        ValueError: a layer does not exist, `next_layer` does not take what `layer` gives, or no neuron would be left.
    """
    new = bake(model)
    this, following = _layer(new, "layer", layer), _layer(new, "next_layer", next_layer)
    per_unit = _columns_per_unit(this, following, layer, next_layer)
    reads = (this.weight != 0).flatten(1).any(1)
    if this.bias is not None:
        reads |= this.bias != 0
    is_read = (following.weight != 0).transpose(0, 1).reshape(len(reads), -1).any(1)
    keep = reads & is_read
    if not keep.any():
        raise ValueError(f"layer={layer!r} would lose all of its {len(keep)} neurons; allowed: a part of them")
    _shrink(this, keep, slice(None))
    _shrink(following, slice(None), keep.repeat_interleave(per_unit))
    return new


def _shrink(layer: Any, rows: Any, columns: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[rows][:, columns].clone(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[rows].clone(), layer.bias.requires_grad)
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = outputs, inputs
    else:
        layer.out_channels, layer.in_channels = outputs, inputs


def remove_words(model: nn.Module, keep: Bool[Tensor, " words"], counts: Tensor) -> nn.Module:
    """Return a smaller copy of a text classifier that knows only the words of `keep`; masks are folded in.

    Token numbers change with it: cut the list of words the same way (`[w for w, kept in zip(words, keep) if kept]`) and
    encode the texts again. The words that are gone become "<unk>", whose vector becomes the mean of all that it now
    stands for, weighted by `counts`: so the mean of a text stays about where it was.

    Args:
        model: has exactly one embedding.
        keep: True for each word that stays; "<unk>" and "<pad>", numbers 0 and 1, must.
        counts: how often each word occurs in the training texts, shape (words,); that of "<pad>" plays no part.

    Raises:
        ValueError: there is not one embedding, or `keep` or `counts` does not fit it.
    """
    new = bake(model)
    embedding = _embedding(new)
    if keep.shape != embedding.weight.shape[:1] or not keep[:2].all():
        raise ValueError(
            f"keep has shape {tuple(keep.shape)} and begins with {keep[:2].tolist()}; "
            f"allowed: shape {tuple(embedding.weight.shape[:1])}, beginning with [True, True]"
        )
    if counts.shape != keep.shape:
        raise ValueError(f"counts has shape {tuple(counts.shape)}; allowed: {tuple(keep.shape)}")
    table = embedding.weight.detach().clone()
    unknown = counts * ~keep
    unknown[0] = counts[0]
    if unknown.any():
        table[0] = (unknown / unknown.sum()).to(table.dtype) @ table
    _replace_table(embedding, table[keep])
    return new


def factor_embedding(model: nn.Module, reader: str, rank: int) -> nn.Module:
    """Return a copy whose word vectors have `rank` numbers, by the singular value decomposition E ≈ U S V^T.

    U S becomes the new embedding, and V^T is multiplied into `reader`, the linear or convolutional layer that reads the
    word vectors (or their mean): the smaller network computes what the old one would with the closest matrix of that
    rank (Eckart and Young 1936). Masks are folded in.

    Raises:
        ValueError: there is not one embedding, `reader` does not read it, or `rank` is not from 1 to its dimensions.
    """
    new = bake(model)
    embedding, following = _embedding(new), _layer(new, "reader", reader)
    words, dimensions = embedding.weight.shape
    if following.weight.shape[1] != dimensions:
        raise ValueError(
            f"reader={reader!r} takes {following.weight.shape[1]} inputs, but a word has {dimensions} numbers; "
            "allowed: the layer that reads the embedding"
        )
    checks.choice("rank", rank, range(1, min(words, dimensions) + 1))
    table = embedding.weight.detach()
    # V holds the eigenvectors of E^T E, which is small; in double precision, since forming it squares the condition.
    right = torch.linalg.eigh(table.double().T @ table.double()).eigenvectors.flip(1)[:, :rank].T.to(table.dtype)
    _replace_table(embedding, table @ right.T)  # U S, but with the exact zeros of padding
    weight = torch.einsum("oi...,ri->or...", following.weight.detach(), right)
    following.weight = nn.Parameter(weight.contiguous(), following.weight.requires_grad)
    attribute = "in_features" if isinstance(following, nn.Linear) else "in_channels"
    setattr(following, attribute, rank)
    return new


def _embedding(model: nn.Module) -> Any:
    found = [layer for layer in model.modules() if isinstance(layer, EMBEDDINGS)]
    if len(found) != 1:
        raise ValueError(f"model has {len(found)} embeddings; allowed: exactly one")
    return found[0]


def _replace_table(embedding: Any, table: Float[Tensor, "words dimensions"]) -> None:
    embedding.weight = nn.Parameter(table.clone(), embedding.weight.requires_grad)
    embedding.num_embeddings, embedding.embedding_dim = table.shape


def geometric_sparsity(progress: float, *, final: float) -> float:
    """Return the sparsity at `progress` in [0, 1] of a gradual pruning: equal steps drop the same fraction.

    s = 1 - (1 - final)^progress, the smooth limit of `geometric_amounts`. Zhu and Gupta 2018 ("To prune, or not to
    prune", equation 1) use a cubic instead, which leaves little time for the last weights where few are left.
    """
    checks.fraction("progress", progress, upper_open=False)
    checks.fraction("final", final)
    return 1 - (1 - final) ** progress


def geometric_amounts(final: float, rounds: int) -> list[float]:
    """Return the sparsity after each of `rounds` equal cuts: every round drops the same fraction of what is left.

    The prune-and-retrain schedule of Han et al. 2015, section 3.3. One round is one-shot pruning.
    """
    checks.fraction("final", final)
    checks.positive("rounds", rounds)
    return [geometric_sparsity(done / rounds, final=final) for done in range(1, rounds + 1)]


def _set_masks(model: nn.Module, masks: Masks) -> None:
    for name, part in _mask_modules(model).items():
        part.mask.copy_(masks[name])


def fisher_scores(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Score each weight w by w² g², with g² the running mean of its squared gradient that Adam keeps anyway.

    That is the saliency of LeCun et al. 1990 ("Optimal Brain Damage", equation 5) with the diagonal of the Hessian
    replaced by that of the empirical Fisher information. The optimizer must have made a step.
    """
    layers = {name: _owner(model, name) for name in weights_of(model)}
    originals = {name: layer.parametrizations[attribute].original for name, (layer, attribute) in layers.items()}
    weights = weights_of(model)
    return {name: weights[name] ** 2 * optimizer.state[original]["exp_avg_sq"] for name, original in originals.items()}


def _gradual(amount: float, begin: float, end: float, every: int) -> OnStep:
    def prune(model: nn.Module, at: StepInfo) -> None:
        due = at.step % every == 0 or at.step == at.total
        if not due or at.progress <= begin or at.step - every > end * at.total:
            return
        sparsity = geometric_sparsity(min(1.0, (at.progress - begin) / (end - begin)), final=amount)
        masks, scores = masks_of(model), fisher_scores(model, at.optimizer)
        # A dead neuron's weights score zero as well: below them, so that no pruned weight comes back in their place.
        scores = {name: score.masked_fill(~masks[name], -1) for name, score in scores.items()}
        _set_masks(model, global_masks(model, sparsity, scores=scores))

    return prune


def prune_gradually(
    model: nn.Module,
    train: Split,
    *,
    amount: float,
    epochs: int,
    lr: float,
    begin: float = 0.1,
    end: float = 0.5,
    every: int = 50,
    key: str = "",
    **options: Any,
) -> Fitted:
    """Train with Adam while the sparsity rises along `geometric_sparsity`, by `fisher_scores`, with no way back.

    Args:
        model: the network to prune, trained or not; unchanged.
        train: the training examples.
        amount: final fraction of pruned weights, in [0, 1).
        epochs: passes over the data, before, while and after pruning.
        lr: peak learning rate of `fit`.
        begin: fraction of the training at which pruning begins.
        end: fraction at which `amount` is reached; the rest recovers.
        every: steps between two prunings.
        key: as in `fit`.
        options: further arguments of `fit`.

    Returns:
        The masked model (see `bake`) and its history.

    Raises:
        ValueError: an argument is out of range, or a layer is frozen (its weights have no gradient to score).
    """
    checks.fraction("amount", amount)
    checks.fraction("begin", begin)
    checks.fraction("end", end, upper_open=False)
    checks.positive("every", every)
    if begin >= end:
        raise ValueError(f"begin={begin!r} is not before end={end!r}; allowed: begin < end")
    weights = weights_of(model)
    if frozen := [name for name in weights if not model.get_parameter(name).requires_grad]:
        raise ValueError(f"model has frozen weights: {', '.join(frozen)}; allowed: requires_grad=True in every layer")
    return fit(
        mask(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}),
        train,
        epochs=epochs,
        lr=lr,
        optimizer="adam",
        on_step=_gradual(amount, begin, end, every),
        key=f"gradual {amount} {begin} {end} {every} {key}",
        **options,
    )
