"""Plausible wrong answers to the exercises of notebook 07, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _rates_from_the_input(stages, factor):
    return {stage: factor**place for place, stage in enumerate(stages)}


def _head_slowed_too(stages, factor):
    return {stage: factor ** (len(stages) - place) for place, stage in enumerate(stages)}


def _rates_by_steps(stages, factor):
    return {stage: 1 - (len(stages) - 1 - place) * (1 - factor) for place, stage in enumerate(stages)}


def _rates_in_a_list(stages, factor):
    return [factor ** (len(stages) - 1 - place) for place in range(len(stages))]


def _maps_averaged(maps, weight):
    return maps.mean((2, 3)) @ weight.T


def _maps_without_the_negative(maps, weight):
    return torch.einsum("nfhw,cf->nchw", maps, weight).relu()


def _maps_divided(maps, weight):
    return torch.einsum("nfhw,cf->nchw", maps, weight) / maps[0, 0].numel()


def _maps_class_first(maps, weight):
    return torch.einsum("nfhw,cf->cnhw", maps, weight)


CASES = {
    "07.1": Case(
        [
            (lambda features, classes: features * classes, "its bias"),
            (lambda features, classes: features * classes + features, "belong to the answers"),
            (lambda features, classes: features * classes + 1, "not the layer as a whole"),
            (lambda features, classes: features + classes, "one weight for each feature"),
        ]
    ),
    "07.2": Case(
        [(lambda: 2, "in each of 20 epochs"), (lambda: 100, "one pass through the body")],
        {"measured": 20.0, "epochs": 20},
    ),
    "07.3": Case(
        [
            (_rates_from_the_input, "from the input to the head"),
            (_head_slowed_too, "exponent is 0"),
            (_rates_by_steps, "a power, not a sum"),
            (_rates_in_a_list, "dictionary"),
        ]
    ),
    "07.4": Case(
        [
            (_maps_averaged, "comes afterwards"),
            (_maps_without_the_negative, "no ReLU"),
            (_maps_divided, "number of places"),
            (_maps_class_first, "the features are what is summed over"),
        ]
    ),
}
