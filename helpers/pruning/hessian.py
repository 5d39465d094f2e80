"""Second-order scores: products with the Hessian, its diagonal, its largest eigenvalues."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.core import checks
from helpers.core.modules import Named, plain_attention
from helpers.data import Split
from helpers.pruning.summing import batches, copy, count_of, parameters_of, that_count, way_of, wide
from helpers.training import cross_entropy
from helpers.training.loop import check_functions
from helpers.training.losses import Loss


class Estimate(NamedTuple):
    """A sampled estimate, and the standard error of each of its entries; both keyed by parameter name."""

    value: dict[str, Tensor]
    error: dict[str, Tensor]


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
    split = that_count(model, split)
    new = _with_second_derivatives(copy(model))
    parameters = parameters_of(new, names)
    way = way_of(partial(loss, new), split, len(split))
    whole: Any = sum(loss(new, x, y) * (count_of(y) / count_of(split.labels)) for x, y in batches(split, way))
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
    shapes = parameters_of(copy(model), names)
    mean = {name: torch.zeros_like(wide(parameter)) for name, parameter in shapes.items()}
    spread = {name: torch.zeros_like(wide(parameter)) for name, parameter in shapes.items()}
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
    shapes = parameters_of(copy(model), names)
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
