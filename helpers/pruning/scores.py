"""Scores of single weights. A new one is a function here, with its name in `SCORES`."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.core import checks
from helpers.pruning.weights import layer_of, originals, places_of, plain, weights_of

Scores = Mapping[str, Float[Tensor, "..."]]


def l1_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by its magnitude (Han et al. 2015, "Learning both weights and connections", section 3)."""
    return {name: weight.abs() for name, weight in weights_of(model).items()}


def random_scores(model: nn.Module, *, seed: int = 0) -> dict[str, Tensor]:
    """Score each weight by a random number in [0, 1): the control that every other score must beat."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights_of(model).items()}


SCORES: dict[str, Callable[..., dict[str, Tensor]]] = {"l1": l1_scores, "random": random_scores}


def fisher_scores(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Score each weight w by w² g², with g² the running mean of its squared gradient that Adam keeps anyway.

    That is the saliency of LeCun et al. 1990 ("Optimal Brain Damage", equation 5) with the diagonal of the Hessian
    replaced by that of the empirical Fisher information. The optimizer must have made a step.

    Raises ValueError for weights that got no gradient: it is not known what they are worth.
    """
    places = places_of(model)
    kept = {name: optimizer.state.get(originals(layer)[key], {}) for name, (layer, key) in places.items()}
    if missing := [name for name, state in kept.items() if "exp_avg_sq" not in state]:
        raise ValueError(
            f"{', '.join(missing)}: the optimizer ({type(optimizer).__name__}) has no squared gradients of these "
            "weights; allowed: Adam after a step, on a loss that depends on every layer"
        )
    weights = weights_of(model)
    return {name: weights[name] ** 2 * state["exp_avg_sq"] for name, state in kept.items()}


def wanda_scores(model: nn.Module, products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Score each weight by its magnitude times the norm of its input (Sun et al. 2024, Wanda, section 3, equation 1).

    The paper is "A simple and effective pruning approach for large language models". `products` has for each linear
    layer to be scored, by its name, the mean of x xᵀ over its inputs x, (in, in): `quantization.input_products`. The
    root of its diagonal is each input's norm, but for a factor that all have in common. The paper compares the scores
    within each row of a weight: `row_masks`.

    Raises ValueError for a name that is no linear layer's, and for products of another shape or whose diagonal is
    negative or not finite.
    """
    model, scores = plain(model), dict[str, Tensor]()
    for name, product in products.items():
        weight = layer_of(model, "layer in products", name, (nn.Linear,)).weight.detach()
        scores[f"{name}.weight".lstrip(".")] = weight.abs() * _norms(name, product, weight.shape[1]).to(weight)
    return scores


def _norms(name: str, product: Tensor, inputs: int) -> Float[Tensor, " inputs"]:
    if not isinstance(product, Tensor) or product.is_complex() or product.shape != (inputs, inputs):
        found = getattr(product, "shape", type(product).__name__)
        raise ValueError(f"products[{name!r}] is {found}; allowed: numbers of the shape {(inputs, inputs)}")
    return checks.finite(f"products[{name!r}]: the root of the diagonal", product.diagonal().sqrt())
