"""Importance: scores that guess what a weight or a filter is worth, and the judge that measures it.

Scores of weights are dictionaries keyed by parameter name, scores of filters by layer name; higher is more important.
A **filter** is one output channel of a convolution, or one unit of a linear layer. It is **removed** by making its
output zero after batch normalization; after an activation that maps 0 to 0, as ReLU does, it is zero as well.
Everything is computed in evaluation mode, on a copy without masks (`pruning.bake`); the model that came in is
unchanged, and frozen layers are scored like the others.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from helpers import checks
from helpers.data import Split
from helpers.pruning import bake
from helpers.training import Loss, channels_last, cross_entropy

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

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

Named = Mapping[str, Tensor]


class Estimate(NamedTuple):
    """A sampled estimate, and the standard error of each of its entries; both keyed by parameter name."""

    value: dict[str, Tensor]
    error: dict[str, Tensor]


class Correlation(NamedTuple):
    """A rank correlation in [-1, 1], its 95 % bootstrap interval, and the resampled values behind that."""

    value: float
    interval: tuple[float, float]
    draws: np.ndarray


# ---------------------------------------------------------------- scores of filters


def filter_norms(model: nn.Module, *, norm: float = 1, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by the `norm` of its weights (Li et al. 2017, "Pruning filters for efficient convnets").

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`.
    """
    new = _copy(model)
    weights = {name: new.get_parameter(f"{name}.weight".lstrip(".")).detach() for name in _layers(new, names)}
    return {name: weight.flatten(1).norm(norm, dim=1) for name, weight in weights.items()}


def random_filter_scores(model: nn.Module, *, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Score each filter by a random number in [0, 1): the control. Returns layer name → (filters,)."""
    generator = torch.Generator().manual_seed(seed)
    norms = filter_norms(model, names=names)
    return {name: torch.rand(len(norm), generator=generator) for name, norm in norms.items()}


def taylor_scores(
    model: nn.Module, split: Split, *, names: Sequence[str] | None = None, batch_size: int = 250
) -> dict[str, Tensor]:
    """Score each filter by its squared first-order effect on the loss, averaged over the examples of `split`.

    A gate of 1 is multiplied to the filter's output after batch normalization. The derivative of one example's loss
    with respect to the gate is what closing it would save, to first order; it is squared, and averaged over the
    examples (Molchanov et al. 2019, "Importance estimation for neural network pruning", section 3: the form with gates,
    here for single examples, not for batches). Half of it is the second-order damage with the Fisher information for
    the Hessian (Theis et al. 2018, "Faster gaze prediction with dense networks and Fisher pruning", section 2).

    Returns layer name → (filters,), for all convolutions and linear layers, or for those in `names`.

    Raises:
        ValueError: `split` is empty, or a name is no such layer.
    """
    checks.not_empty("split", split)
    new = _copy(model)
    sites = _sites(new, _layers(new, names), split.inputs[:1])
    totals: dict[str, Tensor] = {}
    for inputs, labels in _batches(new, split, batch_size):
        with _gated(sites, len(inputs)) as gates:
            loss = F.cross_entropy(new(inputs), labels, reduction="sum")
            found = torch.autograd.grad(loss, list(gates.values()), materialize_grads=True)
        for name, gradient in zip(gates, found, strict=True):
            totals[name] = totals.get(name, 0) + (gradient.flatten(1) ** 2).sum(0)
    return {name: total / len(split) for name, total in totals.items()}


@contextmanager
def _gated(sites: Mapping[str, tuple[nn.Module, int]], batch: int) -> Iterator[dict[str, Tensor]]:
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

    hooks = [site.register_forward_hook(gate(name, dim)) for name, (site, dim) in sites.items()]
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


# ---------------------------------------------------------------- derivatives


def gradients(
    model: nn.Module,
    split: Split,
    *,
    loss: Loss = cross_entropy,
    names: Sequence[str] | None = None,
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over `split`: parameter name → tensor of its shape.

    All parameters, or those of the layers in `names`. ValueError if `split` is empty or a name is no such layer.
    """
    checks.not_empty("split", split)
    new = _copy(model)
    parameters = _parameters(new, names)
    totals = [torch.zeros_like(parameter) for parameter in parameters.values()]
    for inputs, labels in _batches(new, split, batch_size):
        found = torch.autograd.grad(loss(new, inputs, labels), list(parameters.values()), materialize_grads=True)
        for total, gradient in zip(totals, found, strict=True):
            total += gradient * (len(inputs) / len(split))
    return dict(zip(parameters, totals, strict=True))


def hessian_product(
    model: nn.Module, split: Split, *, loss: Loss = cross_entropy, names: Sequence[str] | None = None
) -> Callable[[Named], dict[str, Tensor]]:
    """Return the function v → Hv, with the Hessian H of the mean loss over `split`; v is keyed by parameter name.

    The gradient is differentiated once more, in the direction v (Pearlmutter 1994, "Fast exact multiplication by the
    Hessian"): H itself is never formed. All of `split` is one batch, whose graph stays in memory, so take a few
    hundred examples. With `names`, H is the block of the parameters of these layers.

    Raises:
        ValueError: `split` is empty, a name is no such layer, or v has other names than the parameters.
    """
    checks.not_empty("split", split)
    new = _copy(model)
    parameters = _parameters(new, names)
    ((inputs, labels),) = _batches(new, split, len(split))
    first = torch.autograd.grad(
        loss(new, inputs, labels), list(parameters.values()), create_graph=True, materialize_grads=True
    )
    curved = [gradient for gradient in first if gradient.requires_grad]

    def product(v: Named) -> dict[str, Tensor]:
        if v.keys() != parameters.keys():
            raise ValueError(f"v has the names {sorted(v)}; allowed: {', '.join(sorted(parameters))}")
        along = [v[name] for name, gradient in zip(parameters, first, strict=True) if gradient.requires_grad]
        found = torch.autograd.grad(curved, list(parameters.values()), along, retain_graph=True, materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    return product


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
        ValueError: fewer than two samples, `split` is empty, or a name is no such layer.
    """
    if checks.positive("samples", samples) < 2:
        raise ValueError(f"samples={samples}; allowed: at least 2, for a standard error")
    product = hessian_product(model, split, loss=loss, names=names)
    generator = torch.Generator().manual_seed(seed)
    shapes = _parameters(_copy(model), names)
    mean = {name: torch.zeros_like(parameter) for name, parameter in shapes.items()}
    spread = {name: torch.zeros_like(parameter) for name, parameter in shapes.items()}
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
        ValueError: an argument is out of range, `split` is empty, or a name is no such layer.
    """
    checks.positive("count", count)
    checks.positive("iterations", iterations)
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
def removal_damage(model: nn.Module, split: Split, layer: str, *, batch_size: int = 250) -> Float[Tensor, " filters"]:
    """Measure by how much the mean cross-entropy over `split` rises (nats) when each filter of `layer` is removed.

    One filter at a time, all others in place: negative where the network is better off without it. What comes before
    the layer is computed once for each batch, and only the rest of the network once for each filter.

    Raises:
        ValueError: `split` is empty, `layer` is no convolution or linear layer, or it is not called exactly once.
    """
    checks.not_empty("split", split)
    new = _copy(model).to(memory_format=torch.channels_last)  # 1.6 times as fast
    site, dim = _sites(new, [checks.choice("layer", layer, _layers(new, None))], split.inputs[:1])[layer]
    total: Any = 0
    for inputs, labels in _batches(new, split, batch_size):
        with _restarting(new, site, inputs) as (output, rest):
            intact = F.cross_entropy(rest(output.clone()), labels, reduction="sum")
            losses = []
            for channel in range(output.shape[dim]):
                without = output.clone()
                without.select(dim, channel).zero_()
                losses.append(F.cross_entropy(rest(without), labels, reduction="sum"))
        total = total + torch.stack(losses) - intact
    return total / len(split)


@contextmanager
def _restarting(
    model: nn.Module, site: nn.Module, inputs: Tensor
) -> Iterator[tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Yield the output of `site`, and a function that takes such an output (and may write to it) and computes the rest.

    Modules that were done before `site` hand out what they computed for `inputs`. Left out are those called twice, and
    those whose output was written to in place afterwards: they compute again.
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

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model(inputs)
    for hook in hooks:
        hook.remove()
    if len(outputs) != 1:
        raise ValueError(f"layer is called {len(outputs)} times in a forward pass; allowed: once")
    known = {module: output for module, output, v in before if calls[module] == 1 and output._version == v}
    current = outputs[0]

    def rest(output: Tensor) -> Tensor:
        nonlocal current
        current = output
        return model(inputs)

    for module, output in known.items():
        module.forward = lambda *_, output=output, **__: output
    site.forward = lambda *_, **__: current
    try:
        yield outputs[0], rest
    finally:
        for module in (site, *known):
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
        ValueError: names or sizes of scores and damage differ, or there is nothing to compare.
    """
    checks.positive("resamples", resamples)
    checks.not_empty("damage", damage)
    if _sizes(scores) != _sizes(damage):
        raise ValueError(f"scores has the sizes {_sizes(scores)}; allowed: those of damage, {_sizes(damage)}")
    generator = np.random.default_rng(seed)
    parts = []
    for name, values in damage.items():
        pair = np.stack([scores[name].detach().cpu().double().flatten(), values.detach().cpu().double().flatten()])
        drawn = generator.integers(values.numel(), size=(resamples, values.numel()))
        parts.append(np.concatenate([pair[:, None], pair[:, drawn]], axis=1))  # (2, 1 + resamples, filters)
    if within:
        found = np.mean([_spearman(*part) for part in parts], axis=0)
    else:
        found = _spearman(*np.concatenate(parts, axis=2))
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Correlation(float(found[0]), (float(low), float(high)), found[1:])


def _sizes(scores: Named) -> dict[str, int]:
    return {name: values.numel() for name, values in scores.items()}


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
    """
    checks.not_empty("correlations", correlations)
    return {
        name: 1 + sum(bool(np.quantile(other.draws - mine.draws, 0.025) > 0) for other in correlations.values())
        for name, mine in correlations.items()
    }


# ---------------------------------------------------------------- common parts


def _copy(model: nn.Module) -> nn.Module:
    return bake(model).eval().requires_grad_(True)


def _layers(model: nn.Module, names: Sequence[str] | None) -> list[str]:
    found = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
    checks.not_empty("convolutions and linear layers of model", found)
    return found if names is None else [checks.choice("name in names", name, found) for name in names]


def _parameters(model: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    if names is None:
        return dict(model.named_parameters())
    chosen = _layers(model, names)
    return {name: p for name, p in model.named_parameters() if name.rpartition(".")[0] in chosen}


def _batches(model: nn.Module, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    where = next(model.parameters()).device
    for start in range(0, len(split), checks.positive("batch_size", batch_size)):
        part = slice(start, start + batch_size)
        yield channels_last(split.inputs[part].to(where)), split.labels[part].to(where)


def _sites(model: nn.Module, names: Sequence[str], example: Tensor) -> dict[str, tuple[nn.Module, int]]:
    """Return where each layer's filters are removed, and which dimension of that output counts them.

    That is the batch normalization that reads the layer's output, if there is one, else the layer itself.
    """
    layers = {model.get_submodule(name): name for name in names}
    sites = {name: (layer, 1 if not isinstance(layer, nn.Linear) else -1) for layer, name in layers.items()}
    made: list[tuple[Tensor, str]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if module in layers:
            made.append((output, layers[module]))
        for tensor, name in made:
            if isinstance(module, _BatchNorm) and inputs[0] is tensor:
                sites[name] = (module, 1)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(example.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return sites
