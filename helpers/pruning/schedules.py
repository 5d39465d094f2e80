"""Gradual pruning: how much after which step."""

from typing import Any

import torch
from torch import nn

from helpers.core import checks
from helpers.core.modules import materialized
from helpers.data import Split
from helpers.pruning.masks import Masks, global_masks, mask, mask_modules, masks_of
from helpers.pruning.scores import fisher_scores
from helpers.pruning.weights import originals, places_of, weights_of
from helpers.training import Fitted, fit
from helpers.training.loop import OnStep, StepInfo


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
    for name, part in mask_modules(model).items():
        if name in masks:
            part.mask.copy_(masks[name])


def _gradual(amount: float, begin: float, end: float, every: int) -> OnStep:
    def prune(model: nn.Module, at: StepInfo) -> None:
        due = at.step % every == 0 or at.step == at.total
        if not due or at.progress <= begin or at.step - every > end * at.total:
            return
        sparsity = geometric_sparsity(min(1.0, (at.progress - begin) / (end - begin)), final=amount)
        masks, scores = masks_of(model), fisher_scores(model, at.optimizer)
        # A dead neuron's weights score zero as well: below them, so that no pruned weight comes back in their place.
        scores = {name: score.masked_fill(~masks[name], -1) for name, score in scores.items()}
        chosen = global_masks(model, sparsity, scores=scores)
        _set_masks(model, {name: kept & masks[name] for name, kept in chosen.items()})

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
        ValueError: an argument is out of range, or a layer is frozen or the loss does not depend on it (its weights
            have no gradient to score).
    """
    checks.fraction("amount", amount)
    checks.fraction("begin", begin)
    checks.fraction("end", end, upper_open=False)
    checks.positive("every", every)
    if begin >= end:
        raise ValueError(f"begin={begin!r} is not before end={end!r}; allowed: begin < end")
    model = materialized(model)
    weights, places = weights_of(model), places_of(model).items()
    if frozen := [name for name, (layer, key) in places if not originals(layer)[key].requires_grad]:
        raise ValueError(f"model has frozen weights: {', '.join(frozen)}; allowed: requires_grad=True in every layer")
    return fit(
        mask(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}),
        train,
        epochs=epochs,
        lr=lr,
        optimizer="adam",
        on_step=_gradual(amount, begin, end, every),
        key=key,
        **options,
    )
