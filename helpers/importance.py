"""Importance: scores that guess what a weight or a filter is worth, and the judge that measures it.

Scores of weights are dictionaries keyed by parameter name, scores of filters by layer name; higher is more important.
A **filter** is one output channel of a convolution, or one unit of a linear layer. It is **removed** by making its
output zero after batch normalization; after an activation that maps 0 to 0, as ReLU does, it is zero as well.
Everything is computed in evaluation mode, on a copy without masks (`pruning.bake`); the model that came in is
unchanged, and frozen layers are scored like the others. Labels `training.IGNORED` do not count. Images are laid out
channels last where the model takes them so, and a model that takes one example at a time gets one at a time.

A model, a split or scores with NaN or infinity in them are refused by a ValueError, and so is a `names` that is no
layer. A layer, or a tied tensor, may go by any of its names.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from helpers import checks, modules
from helpers.data import Split
from helpers.modules import asked, channels_last, plain_attention
from helpers.pruning import bake
from helpers.training import IGNORED, Loss, check_functions, check_labels, cross_entropy, logits_of

__all__ = [
    "Correlation",
    "Estimate",
    "filter_norms",
    "gradients",
    "hessian_diagonal",
    "hessian_product",
    "largest_eigenvalues",
    "random_filter_scores",
    "rank_correlation",
    "removal_damage",
    "shared_ranks",
    "taylor_scores",
]

LAYERS = (nn.Linear, _ConvNd)  # transposed convolutions too

Named = Mapping[str, Tensor]
Sites = Mapping[str, tuple[nn.Module, int]]  # where a layer's filters are removed, and which dimension counts them


class Estimate(NamedTuple):
    """A sampled estimate, and the standard error of each of its entries; both keyed by parameter name."""

    value: dict[str, Tensor]
    error: dict[str, Tensor]


class Way(NamedTuple):
    """How a model takes examples: how they are laid out, and at most how many at once."""

    layout: Callable[[Tensor], Tensor]
    size: int


class Correlation(NamedTuple):
    """A rank correlation in [-1, 1], its 95 % bootstrap interval, and the resampled values behind that."""

    value: float
    interval: tuple[float, float]
    draws: np.ndarray


# ---------------------------------------------------------------- scores of filters


def filter_norms(model: nn.Module, *, norm: float = 1, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by the `norm` of its weights (Li et al. 2017, "Pruning filters for efficient convnets").

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`. `norm` is a number
    above 0, or infinity.
    """
    if norm != math.inf:
        checks.number("norm", norm, above=0)
    weights = {name: _by_filter(layer) for name, layer in _layers(_copy(model), names).items()}
    return {
        name: checks.finite(f"model: the norms of {name!r}", _wide(weight.detach()).norm(norm, dim=1))
        for name, weight in weights.items()
    }


def random_filter_scores(model: nn.Module, *, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by a random number in [0, 1): the control. Returns layer name → (filters,)."""
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    layers = _layers(_copy(model), names)
    return {name: torch.rand(len(_by_filter(layer)), generator=generator) for name, layer in layers.items()}


def _by_filter(layer: Any, weight: Tensor | None = None) -> Float[Tensor, "filters weights"]:
    """Return the layer's weight (or what has its shape), one filter in a row."""
    weight = layer.weight if weight is None else weight
    if isinstance(layer, _ConvTransposeNd):  # (inputs, filters of a group, ...)
        weight = weight.unflatten(0, (layer.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def _wide(values: Tensor) -> Tensor:
    """Return half-precision numbers as float32: sums and squares of them would vanish or overflow."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


@plain_attention()
def taylor_scores(
    model: nn.Module, split: Split, *, names: Sequence[str] | None = None, batch_size: int = 250
) -> dict[str, Tensor]:
    """Score each filter by its squared first-order effect on the loss, averaged over the examples of `split`.

    A gate of 1 is multiplied to the filter's output after batch normalization. The derivative of one example's loss
    with respect to the gate is what closing it would save, to first order; it is squared, and averaged over the
    examples (Molchanov et al. 2019, "Importance estimation for neural network pruning", section 3: the form with gates,
    here for single examples, not for batches). Half of it is the second-order damage with the Fisher information for
    the Hessian (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2).

    Where an example has several labels, its loss is the mean over them. A layer that is not used scores 0.

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`.

    Raises:
        ValueError: `split` is empty, a name is no such layer, or a layer is used without being called (but for
            `nn.MultiheadAttention`, whose projection has its gates at the weights).
    """
    checks.positive("batch_size", batch_size)
    split = _that_count(model, split)
    new = _copy(model)
    layers = _layers(new, names)

    def loss(inputs: Tensor, labels: Tensor) -> Tensor:
        return _sum_over_examples(new(inputs), labels)

    way = _way(loss, split, batch_size)
    one, two = (way.layout(split.inputs[:count]) for count in (1, 2))
    sites = _sites(new, layers, one)
    uncalled = {name: layer for name, layer in layers.items() if name not in sites}
    _refuse_other_uses(new, uncalled, lambda: loss(*next(_batches(split, way._replace(size=1)))))
    if uncalled or way.size > 1 and not (_separate(new, sites, one) and _separate(new, sites, two)):
        way = way._replace(size=1)
    totals: dict[str, Tensor] = {}
    for inputs, labels in _batches(split, way):
        for name, slopes in _slopes(partial(loss, inputs, labels), sites, uncalled, len(inputs)).items():
            totals[name] = totals.get(name, 0) + (_wide(slopes) ** 2).sum(0)
    return {name: checks.finite(f"split: the slopes at {name!r}", totals[name] / len(split)) for name in layers}


def _slopes(
    loss: Callable[[], Tensor], sites: Sites, uncalled: Mapping[str, Any], batch: int
) -> dict[str, Float[Tensor, "batch filters"]]:
    """Return the derivative of each example's loss with respect to each filter's gate.

    That of an uncalled layer (batch = 1) follows from those of its weights: its gate multiplies them.
    """
    with _gated(sites, batch) as gates:
        total = loss()
        weights = [p for layer in uncalled.values() for p in layer.parameters(recurse=False)]
        found = iter(torch.autograd.grad(total, [*gates.values(), *weights], materialize_grads=True))
    slopes = {name: next(found).reshape(batch, -1) for name in gates}
    for name, layer in uncalled.items():
        slope = _by_filter(layer, layer.weight * next(found)).sum(1)
        slopes[name] = (slope if layer.bias is None else slope + layer.bias * next(found)).detach()[None]
    return slopes


@contextmanager
def _gated(sites: Sites, batch: int) -> Iterator[dict[str, Tensor]]:
    """Multiply each site's output by gates of 1, one for each example and channel; yield the gates."""
    gates: dict[str, Tensor] = {}

    def gate(name: str, dim: int) -> Callable[..., Tensor]:
        def multiply(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name not in gates:
                shape = [batch] + [1] * (output.dim() - 1)
                shape[dim] = output.shape[dim]
                gates[name] = torch.ones(shape, dtype=output.dtype, device=output.device, requires_grad=True)
            return output * gates[name]

        return multiply

    with modules.hooked((site, gate(name, dim)) for name, (site, dim) in sites.items()):
        yield gates


def _refuse_other_uses(model: nn.Module, uncalled: Mapping[str, Any], loss: Callable[[], Tensor]) -> None:
    """Raise ValueError for a layer whose weight is used by other means than calling it."""
    for name, layer in uncalled.items():
        tied = modules.same_tensor(model, f"{name}.weight")
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.MultiheadAttention) and len(tied) == 1:
            continue
        (slope,) = torch.autograd.grad(loss(), [layer.weight], allow_unused=True)
        if slope is not None:
            raise ValueError(
                f"names: layer {name!r} is never called, its weight is used by {type(owner).__name__!r} instead, which "
                "has no place for gates; allowed: names=[…] without it"
            )


# ---------------------------------------------------------------- derivatives


@plain_attention()
def gradients(
    model: nn.Module,
    split: Split,
    *,
    loss: Loss = cross_entropy,
    names: Sequence[str] | None = None,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over `split`: parameter name → tensor of its shape.

    `loss` is a mean over the labels that count. All parameters, or those of the layers in `names`. ValueError if
    `split` is empty or a name is no such layer.
    """
    checks.positive("batch_size", batch_size)
    check_functions(loss=loss)
    split = _that_count(model, split)
    new = _copy(model)
    parameters = _parameters(new, names)
    way = _way(partial(loss, new), split, batch_size)
    totals = [torch.zeros_like(_wide(parameter)) for parameter in parameters.values()]
    for inputs, labels in _batches(split, way):
        value = checks.finite("split: the loss", loss(new, inputs, labels))
        found = torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(totals, found, strict=True):
            total += _wide(gradient) * (_count(labels) / _count(split.labels))
    return dict(zip(parameters, totals, strict=True))


@plain_attention()
def hessian_product(
    model: nn.Module, split: Split, *, loss: Loss = cross_entropy, names: Sequence[str] | None = None
) -> Callable[[Named], dict[str, Tensor]]:
    """Return the function v → Hv, with the Hessian H of the mean loss over `split`; v is keyed by parameter name.

    The gradient is differentiated once more, in the direction v (Pearlmutter 1994, "Fast exact multiplication by the
    Hessian"): H itself is never formed. All of `split` is one batch, whose graph stays in memory, so take a few
    hundred examples. With `names`, H is the block of the parameters of these layers.

    Raises:
        ValueError: `split` is empty, a name is no such layer, v has other names or shapes than the parameters, or a
            layer's second derivative is unknown to torch.
    """
    check_functions(loss=loss)
    split = _that_count(model, split)
    new = _with_second_derivatives(_copy(model))
    parameters = _parameters(new, names)
    way = _way(partial(loss, new), split, len(split))
    whole: Any = sum(loss(new, x, y) * (_count(y) / _count(split.labels)) for x, y in _batches(split, way))
    checks.finite("split: the loss", whole)
    with _second_derivative():
        first = torch.autograd.grad(whole, list(parameters.values()), create_graph=True, materialize_grads=True)
    curved = [gradient for gradient in first if gradient.requires_grad]

    def product(v: Named) -> dict[str, Tensor]:
        if v.keys() != parameters.keys():
            raise ValueError(f"v has the names {sorted(v)}; allowed: {', '.join(sorted(parameters))}")
        for name, parameter in parameters.items():
            if v[name].shape != parameter.shape:
                raise ValueError(f"v[{name!r}] has shape {tuple(v[name].shape)}; allowed: {tuple(parameter.shape)}")
        if not curved:
            return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        along = [v[name] for name, gradient in zip(parameters, first, strict=True) if gradient.requires_grad]
        with _second_derivative():
            found = torch.autograd.grad(
                curved, list(parameters.values()), along, retain_graph=True, materialize_grads=True
            )
        return dict(zip(parameters, found, strict=True))

    return product


@contextmanager
def _second_derivative() -> Iterator[None]:
    """Have torch's error for a kernel that has none say what to do."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).splitlines()[0]
        if "not implemented" not in said:
            raise
        raise ValueError(
            f"model has a layer without a second derivative ({said}); allowed: names=[…] of layers behind it"
        ) from error


def _with_second_derivatives(model: nn.Module) -> nn.Module:
    """Give each bag of embeddings, in place, a forward pass that can be differentiated twice; return the model."""
    for bag in model.modules():
        if isinstance(bag, nn.EmbeddingBag) and bag.mode in ("sum", "mean") and bag.max_norm is None:
            bag.forward = partial(_sum_of_vectors, bag)  # type: ignore[method-assign]
    return model


def _sum_of_vectors(
    bag: nn.EmbeddingBag, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    """Return what `bag` does, by `embedding` and `index_add`."""
    places = torch.arange(input.numel(), device=input.device)
    if offsets is None:
        count, which = len(input), places // max(1, input.shape[1])
    else:
        starts = offsets[:-1] if bag.include_last_offset else offsets
        count, which = len(starts), torch.bucketize(places, starts, right=True) - 1
    vectors = F.embedding(input.flatten(), bag.weight)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.flatten()[:, None]
    if bag.padding_idx is not None:
        kept = input.flatten() != bag.padding_idx
        vectors, which = vectors[kept], which[kept]
    total = vectors.new_zeros(count, vectors.shape[1]).index_add(0, which, vectors)
    if bag.mode == "sum":
        return total
    return total / torch.bincount(which, minlength=count).clamp(min=1)[:, None]


def hessian_diagonal(
    model: nn.Module,
    split: Split,
    *,
    samples: int,
    seed: int = 0,
    loss: Loss = cross_entropy,
    names: Sequence[str] | None = None,
) -> Estimate:
    """Estimate the diagonal of the Hessian of the mean loss over `split`, with standard errors.

    The mean of v ⊙ Hv over `samples` (at least 2) random vectors v of ±1 (Hutchinson 1990; for the diagonal, Bekas et
    al. 2007, "An estimator for the diagonal of a matrix"). Memory as for `hessian_product`.

    Raises:
        ValueError: fewer than two samples, or what `hessian_product` raises.
    """
    checks.seed("seed", seed)
    if checks.positive("samples", samples) < 2:
        raise ValueError(f"samples={samples}; allowed: at least 2, for a standard error")
    product = hessian_product(model, split, loss=loss, names=names)
    generator = torch.Generator().manual_seed(seed)
    shapes = _parameters(_copy(model), names)
    mean = {name: torch.zeros_like(_wide(parameter)) for name, parameter in shapes.items()}
    spread = {name: torch.zeros_like(_wide(parameter)) for name, parameter in shapes.items()}
    for done in range(1, samples + 1):
        v = {name: torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1 for name, p in shapes.items()}
        for name, value in product(v).items():
            away = v[name] * value - mean[name]  # Welford's running mean and sum of squares
            mean[name] += away / done
            spread[name] += away * (v[name] * value - mean[name])
    error = {name: (total / (samples - 1) / samples).sqrt() for name, total in spread.items()}
    return Estimate({n: m.detach() for n, m in mean.items()}, {n: e.detach() for n, e in error.items()})


def largest_eigenvalues(
    model: nn.Module,
    split: Split,
    *,
    count: int = 1,
    iterations: int = 100,
    tol: float = 1e-4,
    seed: int = 0,
    loss: Loss = cross_entropy,
    names: Sequence[str] | None = None,
) -> list[float]:
    """Return the `count` eigenvalues of largest magnitude of the Hessian of the mean loss, with their signs.

    Power iteration on `hessian_product`; what was found is projected out before the next is sought. Each ends when the
    eigenvalue changes by less than the fraction `tol` in a step, or after `iterations` products: between two
    eigenvalues of nearly the same magnitude it converges slowly, and may then be a little too low.

    Raises:
        ValueError: an argument is out of range, or what `hessian_product` raises.
    """
    checks.positive("count", count)
    checks.positive("iterations", iterations)
    checks.number("tol", tol, at_least=0)
    checks.seed("seed", seed)
    product = hessian_product(model, split, loss=loss, names=names)
    shapes = _parameters(_copy(model), names)
    size = sum(parameter.numel() for parameter in shapes.values())
    if count > size:
        raise ValueError(f"count={count}; allowed: at most {size}, the number of parameters")
    example = next(iter(shapes.values()))
    generator = torch.Generator().manual_seed(seed)
    values: list[float] = []
    basis = torch.zeros(0, size, dtype=example.dtype, device=example.device)
    for _ in range(count):
        start = torch.randn(size, generator=generator).to(example)
        value, vector = _dominant(
            lambda v: _flat(product(_unflat(v, shapes))), start, basis, iterations=iterations, tol=tol
        )
        values.append(value)
        basis = torch.cat([basis, vector[None]])
    return values


def _dominant(
    product: Callable[[Tensor], Tensor], v: Tensor, basis: Tensor, *, iterations: int, tol: float
) -> tuple[float, Tensor]:
    """Return the eigenvalue of largest magnitude, orthogonal to the rows of `basis`, and its unit eigenvector."""
    value = np.inf
    for _ in range(iterations):
        v = v - basis.T @ (basis @ v)
        v = v / v.norm()
        turned = product(v)
        before, value = value, float(v @ turned)
        if abs(value - before) <= tol * abs(value) or not turned.any():
            break
        v = turned
    return value, v / v.norm()


def _flat(tensors: Named) -> Float[Tensor, " size"]:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _unflat(flat: Float[Tensor, " size"], shapes: Named) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape.shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


# ---------------------------------------------------------------- the judge


@torch.no_grad()
@plain_attention()
def removal_damage(model: nn.Module, split: Split, layer: str, *, batch_size: int = 250) -> Float[Tensor, " filters"]:
    """Measure by how much the mean cross-entropy over `split` rises (nats) when each filter of `layer` is removed.

    One filter at a time, all others in place: negative where the network is better off without it. What comes before
    the layer is computed once for each batch, and only the rest of the network once for each filter.

    Raises:
        ValueError: `split` is empty, `layer` is no convolution or linear layer, or it is not called exactly once.
    """
    checks.positive("batch_size", batch_size)
    split = _that_count(model, split)
    checks.choice("layer", layer, _layers(model, None, every_name=True))
    new, way = _laid_out(model, split, batch_size)
    found = _sites(new, _layers(new, [layer]), way.layout(split.inputs[:1]))
    if not found:
        raise ValueError(f"layer={layer!r} is called 0 times in a forward pass; allowed: a layer that is called once")
    site, dim = found[layer]
    total: Any = 0
    for inputs, labels in _batches(split, way):
        with _restarting(new, site, inputs, layer) as (output, rest):
            intact = _sum_over_labels(rest(output.clone()), labels)
            losses = []
            for channel in range(output.shape[dim]):
                without = output.clone()
                without.select(dim, channel).zero_()
                losses.append(_sum_over_labels(rest(without), labels))
        total = total + torch.stack(losses) - intact
    return checks.finite("split: the damage", total / _count(split.labels))


def _laid_out(model: nn.Module, split: Split, batch_size: int) -> tuple[nn.Module, Way]:
    """Return a copy of the model, its weights channels last where that works (1.6 times as fast), and how to ask it."""
    fast, plain = modules.to_channels_last(_copy(model)), _copy(model)
    try:
        return fast, _way(lambda x, y: _sum_over_labels(fast(x), y), split, batch_size)
    except ValueError:
        return plain, _way(lambda x, y: _sum_over_labels(plain(x), y), split, batch_size)


@contextmanager
def _restarting(
    model: nn.Module, site: nn.Module, inputs: Tensor, layer: str
) -> Iterator[tuple[Tensor, Callable[[Tensor], Any]]]:
    """Yield the output of `site`, and a function that takes such an output (and may write to it) and computes the rest.

    Modules that were done before `site` hand out what they computed for `inputs`. Left out are those called twice, and
    those whose output was written to in place afterwards: they compute again. All do if that changes the answer, as
    where a module leaves something behind for a later one.
    """
    before: list[tuple[nn.Module, Tensor, int]] = []
    outputs: list[Tensor] = []
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if module is site:
            outputs.append(output.clone())
        elif isinstance(output, Tensor) and not outputs:
            before.append((module, output, output._version))

    with modules.hooked((module, note) for module in model.modules()):
        answer = logits_of(model(inputs))
    if len(outputs) != 1:
        raise ValueError(f"layer={layer!r} is called {len(outputs)} times in a forward pass; allowed: once")
    known = {module: output for module, output, v in before if calls[module] == 1 and output._version == v}
    current = outputs[0]

    def rest(output: Tensor) -> Any:
        nonlocal current
        current = output
        return model(inputs)

    done = {module: partial(_handed_out, output) for module, output in known.items()}
    with _computing({site: lambda *_, **__: current}):
        with _computing(done):
            reusable = _same_answer(rest, outputs[0], answer)
        with _computing(done if reusable else {}):
            yield outputs[0], rest


def _handed_out(output: Tensor, *_: Any, **__: Any) -> Tensor:
    return output


def _same_answer(rest: Callable[[Tensor], Any], output: Tensor, answer: Tensor) -> bool:
    try:
        return torch.equal(logits_of(rest(output.clone())), answer)
    except Exception:  # of any class: it is the model's own code
        return False


@contextmanager
def _computing(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Have modules compute something else meanwhile."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


# ---------------------------------------------------------------- agreement of a score with the judge


def rank_correlation(
    scores: Named, damage: Named, *, within: bool = False, resamples: int = 1000, seed: int = 0
) -> Correlation:
    """Return Spearman's rank correlation of scores with damages, both name → tensor, and its interval.

    Over everything at once; or `within` each layer, averaged over the layers. The interval holds the middle 95 % of
    `resamples` bootstrap samples, drawn with replacement within each layer. The same `seed` draws the same samples
    whatever the scores, so that the draws of two scores can be compared in pairs (`shared_ranks`). A score without any
    variation has correlation 0.

    Raises:
        ValueError: names or sizes of scores and damage differ, there is nothing to compare, or a number is not finite.
    """
    checks.positive("resamples", resamples)
    checks.not_empty("damage", damage)
    numbers, reference = _numbers("scores", scores), _numbers("damage", damage)
    if _sizes(numbers) != _sizes(reference):
        raise ValueError(f"scores has the sizes {_sizes(numbers)}; allowed: those of damage, {_sizes(reference)}")
    generator = np.random.default_rng(checks.seed("seed", seed))
    parts = []
    for name, values in reference.items():
        pair = np.stack([numbers[name], values])
        drawn = generator.integers(len(values), size=(resamples, len(values)))
        parts.append(np.concatenate([pair[:, None], pair[:, drawn]], axis=1))  # (2, 1 + resamples, filters)
    if within:
        found = np.mean([_spearman(*part) for part in parts], axis=0)
    else:
        found = _spearman(*np.concatenate(parts, axis=2))
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Correlation(float(found[0]), (float(low), float(high)), found[1:])


def _numbers(argument: str, values: Named) -> dict[str, np.ndarray]:
    """Return the values of each layer as finite numbers in a row, checked."""
    for name, tensor in values.items():
        if not isinstance(tensor, Tensor) or tensor.is_complex():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{argument}[{name!r}] is of {kind}; allowed: a tensor of real numbers")
        checks.not_empty(f"{argument}[{name!r}]", tensor.flatten())
    found = {name: tensor.detach().cpu().double().flatten() for name, tensor in values.items()}
    return {name: checks.finite(f"{argument}[{name!r}]", tensor).numpy() for name, tensor in found.items()}


def _sizes(scores: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {name: len(values) for name, values in scores.items()}


def _spearman(a: Float[np.ndarray, "n k"], b: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " n"]:
    """Return the correlation of the ranks in each row; ties share the mean of their ranks."""
    x, y = (rankdata(values, axis=1) for values in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.divide((x * y).sum(axis=1), scale, out=np.zeros(len(x)), where=scale > 0)


def shared_ranks(correlations: Mapping[str, Correlation]) -> dict[str, int]:
    """Rank scores by their correlation, 1 for the best: only what is clearly better goes before.

    A score's rank is one more than the number of scores that beat it: whose paired bootstrap difference to it has a
    95 % interval above 0. Scores that cannot be told apart share a rank.

    Raises ValueError if there is none, or unless all have equally many draws, which are finite.
    """
    checks.not_empty("correlations", correlations)
    shapes = {name: np.shape(correlation.draws) for name, correlation in correlations.items()}
    if len(set(shapes.values())) > 1 or 0 in next(iter(shapes.values())):
        raise ValueError(f"correlations has draws of shapes {shapes}; allowed: one shape, none of them empty")
    for name, correlation in correlations.items():
        checks.finite(f"correlations[{name!r}].draws", correlation.draws)
    return {
        name: 1 + sum(bool(np.quantile(other.draws - mine.draws, 0.025) > 0) for other in correlations.values())
        for name, mine in correlations.items()
    }


# ---------------------------------------------------------------- common parts


def _copy(model: nn.Module) -> nn.Module:
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy layers that have no size yet; allowed: a model that has been called once")
    new = bake(model).eval()
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    for module in new.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # a sparse gradient can neither be added up nor differentiated
    return new


def _layers(model: nn.Module, names: Sequence[str] | None, *, every_name: bool = False) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers, or those in `names`, where second names are allowed."""
    every: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules(remove_duplicate=False) if isinstance(module, LAYERS)
    }
    checks.not_empty("convolutions and linear layers of model", every)
    if names is not None:
        if isinstance(names, str):
            raise ValueError(f"names={names!r}; allowed: several names, as in names=[{names!r}]")
        return {checks.choice("name in names", name, every): every[name] for name in checks.not_empty("names", names)}
    return every if every_name else {n: m for n, m in model.named_modules() if n in every}


def _parameters(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters, or those of the layers in `names`, each tensor once, under its first name there."""
    chosen = None if names is None else _layers(model, names)
    found: dict[int, tuple[str, Tensor]] = {}
    everywhere = zip(modules.first_names(model), model.named_parameters(remove_duplicate=False), strict=True)
    for name, (_, parameter) in everywhere:
        if parameter.requires_grad and (chosen is None or name.rpartition(".")[0] in chosen):
            found.setdefault(id(parameter), (name, parameter))
    return checks.not_empty("parameters of model", dict(found.values()))


def _that_count(model: nn.Module, split: Split) -> Split:
    """Return the examples of which a label counts, on the model's device; ValueError if there is none."""
    if not isinstance(split, Split) or not isinstance(split.inputs, Tensor) or not isinstance(split.labels, Tensor):
        raise ValueError(f"split is a {type(split).__name__}; allowed: a Split of two tensors")
    checks.not_empty("split", split)
    where = next((parameter.device for parameter in model.parameters()), split.inputs.device)
    split = replace(split, inputs=split.inputs.to(where), labels=split.labels.to(where))
    if split.labels.is_floating_point():
        return split
    counts = (split.labels != IGNORED).reshape(len(split), -1).any(1)
    if counts.all():
        return split
    if not counts.any():
        raise ValueError(f"split has no label but {IGNORED}, which does not count; allowed: at least one that counts")
    return replace(split, inputs=split.inputs[counts], labels=split.labels[counts])


def _count(labels: Tensor) -> int:
    return len(labels) if labels.is_floating_point() else int((labels != IGNORED).sum())


def _sum_over_labels(output: Any, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies at all labels that count."""
    return _cross_entropy(output, labels, "sum")


def _sum_over_examples(output: Any, labels: Tensor) -> Tensor:
    """Return the sum over the examples of each one's mean cross-entropy."""
    if labels.dim() == 1 or labels.is_floating_point():
        return _sum_over_labels(output, labels)
    each = _cross_entropy(output, labels, "none").flatten(1).sum(1)
    return (each / (labels != IGNORED).flatten(1).sum(1)).sum()


def _cross_entropy(output: Any, labels: Tensor, reduction: str) -> Tensor:
    logits = _wide(logits_of(output))
    if labels.is_floating_point() and labels.shape == logits.shape:  # probabilities of the classes
        return F.cross_entropy(logits, labels.to(logits.dtype), reduction=reduction)
    check_labels(logits, labels)
    return F.cross_entropy(logits, labels.long(), reduction=reduction)


def _way(loss: Callable[[Tensor, Tensor], Tensor], split: Split, batch_size: int) -> Way:
    """Return the first way that works to compute the loss of examples; ValueError if none does."""
    errors = []
    for size in dict.fromkeys(min(n, len(split)) for n in (2, batch_size, 1)):
        for layout in (channels_last, Tensor.contiguous):
            way = Way(layout, batch_size if size > 1 else 1)
            try:
                loss(*next(_batches(split, way._replace(size=size))))
            except Exception as error:  # of any class: it is the model's own code
                errors.append(error)
            else:
                return way
    with asked("split", split.inputs):
        raise errors[0]


def _batches(split: Split, way: Way) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(split), way.size):
        part = slice(start, start + way.size)
        yield way.layout(split.inputs[part]), split.labels[part]


def _sites(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor) -> Sites:
    """Return where each called layer's filters are removed, and which dimension of that output counts them.

    That is the batch normalization that reads the layer's output, if there is one, else the layer itself.
    """
    made: list[tuple[str, Tensor, int]] = []
    readers: dict[int, set[nn.Module]] = {}
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] += 1
        for index, (name, tensor, version) in enumerate(made):
            read = any(given is tensor for given in (*args, *kwargs.values())) and tensor._version == version
            if read and isinstance(module, _BatchNorm) and _dimension(layers[name]) % tensor.dim() == 1:
                readers.setdefault(index, set()).add(module)
        made.extend((name, output, output._version) for name, layer in layers.items() if layer is module)

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    sites = {}
    for name in dict.fromkeys(name for name, _, _ in made):
        outputs = [index for index, entry in enumerate(made) if entry[0] == name]
        site, *others = {module for index in outputs for module in readers.get(index, {layers[name]})}
        if others or calls[site] != len(outputs):
            raise ValueError(
                f"layer {name!r} shares a batch normalization with others, or is read by several; "
                "allowed: one of its own"
            )
        sites[name] = (site, 1 if isinstance(site, _BatchNorm) else _dimension(site))
    return sites


def _dimension(layer: Any) -> int:
    """Return which dimension of the layer's output counts its filters."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def _separate(model: nn.Module, sites: Sites, inputs: Tensor) -> bool:
    """Return whether the first dimension of each site's output counts the examples."""
    found: list[bool] = []

    def note(dim: int, module: nn.Module, given: Any, output: Tensor) -> None:
        found.append(len(output) == len(inputs) and dim % output.dim() > 0)

    with modules.hooked((site, partial(note, dim)) for site, dim in sites.values()), torch.no_grad():
        model(inputs)
    return all(found)
