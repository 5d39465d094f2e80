"""Pruning: scores, masks, schedules, and the real removal of neurons, filters, heads, blocks and words."""

from helpers.pruning.blocks import refresh_batchnorm, remove_block
from helpers.pruning.choosing import choose_filters, group_scores
from helpers.pruning.coupling import Group, Keep, groups
from helpers.pruning.damage import removal_damage
from helpers.pruning.filters import filter_norms, random_filter_scores
from helpers.pruning.heads import head_scores, remove_heads
from helpers.pruning.hessian import Estimate, hessian_diagonal, hessian_product, largest_eigenvalues
from helpers.pruning.masks import (
    Mask,
    Masks,
    bake,
    global_masks,
    keep_largest,
    layer_masks,
    mask,
    masks_of,
    neuron_masks,
    row_masks,
    sparsity,
    two_of_four,
)
from helpers.pruning.neurons import remove_neurons
from helpers.pruning.removal import remove_filters, zero_filters
from helpers.pruning.schedules import geometric_amounts, geometric_sparsity, prune_gradually
from helpers.pruning.scores import SCORES, Scores, fisher_scores, l1_scores, random_scores, wanda_scores
from helpers.pruning.taylor import gradients, taylor_scores
from helpers.pruning.weights import parametrizations_of, weights_of
from helpers.pruning.words import factor_embedding, remove_words

__all__ = [
    "SCORES",
    "Estimate",
    "Group",
    "Keep",
    "Mask",
    "Masks",
    "Scores",
    "bake",
    "choose_filters",
    "factor_embedding",
    "filter_norms",
    "fisher_scores",
    "geometric_amounts",
    "geometric_sparsity",
    "global_masks",
    "gradients",
    "group_scores",
    "groups",
    "head_scores",
    "hessian_diagonal",
    "hessian_product",
    "keep_largest",
    "l1_scores",
    "largest_eigenvalues",
    "layer_masks",
    "mask",
    "masks_of",
    "neuron_masks",
    "parametrizations_of",
    "prune_gradually",
    "random_filter_scores",
    "random_scores",
    "refresh_batchnorm",
    "removal_damage",
    "remove_block",
    "remove_filters",
    "remove_heads",
    "remove_neurons",
    "remove_words",
    "row_masks",
    "sparsity",
    "taylor_scores",
    "two_of_four",
    "wanda_scores",
    "weights_of",
    "zero_filters",
]
