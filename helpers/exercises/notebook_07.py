"""The exercises of notebook 07."""

from collections.abc import Callable

import torch

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("07.1")
def _head_parameters(head_parameters: Callable[[int, int], int]) -> str:
    for features, classes in ((512, 2), (7, 3), (4, 4)):
        found = head_parameters(features, classes)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Your function returned {found!r}.", hint="Return one number: how many parameters there are.")
        expected = sum(parameter.numel() for parameter in torch.nn.Linear(features, classes).parameters())
        if found == expected:
            continue
        if found == features * classes:
            hint = "Each answer also adds a number of its own, its bias."
        elif found == features * classes + features:
            hint = "The biases belong to the answers, not to the numbers that are read."
        elif found == features * classes + 1:
            hint = "Each class has a bias, not the layer as a whole."
        else:
            hint = "Each class has one weight for each feature, and one bias."
        sentence = f"A head from {features} features to {classes} classes has {expected:,}; you say {found:,}."
        raise Wrong(sentence, hint=hint)
    return "A weight for each pair of feature and class, and a bias for each class."


@exercise("07.2")
def _times_saved(guess: Callable[[], float], *, measured: float, epochs: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=2,
        unit="times faster",
        too_low=f"The body is nearly all of the work: without the cache it runs in each of {epochs} epochs, then once.",
        too_high=f"At least one pass through the body has to be paid for, and there are no more than {epochs} to save.",
    )


@exercise("07.3")
def _stage_rates(stage_rates: Callable[[list[str], float], dict[str, float]]) -> str:
    for stages, factor in ((["stem", "head"], 0.5), (["conv1", "layer1", "layer2", "fc"], 0.3)):
        found = stage_rates(list(stages), factor)
        if not isinstance(found, dict) or set(found) != set(stages):
            raise Wrong(
                "Return one factor for each stage.", hint="A dictionary from the name of a stage to its factor."
            )
        expected = [1.0]
        for _ in stages[1:]:
            expected.insert(0, expected[0] * factor)
        said = ", ".join(f"{stage} {float(found[stage]):.3g}" for stage in stages)
        right = ", ".join(f"{value:.3g}" for value in expected)
        sentence = f"With factor {factor} it should be {right}; yours: {said}."
        if all(abs(found[stage] - value) < 1e-9 for stage, value in zip(stages, reversed(expected), strict=True)):
            raise Wrong(sentence, hint="The names come from the input to the head: the *last* one has the factor 1.")
        if abs(found[stages[-1]] - 1) > 1e-9:
            raise Wrong(sentence, hint="The head itself learns at the full rate: its exponent is 0.")
        if any(abs(found[stage] - value) > 1e-9 for stage, value in zip(stages, expected, strict=True)):
            raise Wrong(
                sentence, hint="Each stage has the factor of the next one *times* `factor`: a power, not a sum."
            )
    return "Each step towards the input learns more slowly, by the same factor."


@exercise("07.4")
def _class_maps(class_maps: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> str:
    for images, features, classes, height, width in ((2, 5, 3, 2, 4), (3, 4, 2, 3, 3)):
        maps, weight = torch.randn(images, features, height, width), torch.randn(classes, features)
        found = class_maps(maps.clone(), weight.clone())
        shape = (images, classes, height, width)
        if not isinstance(found, torch.Tensor) or tuple(found.shape) != shape:
            had = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            hint = "Each image keeps its places, and gets a map for each class: the features are what is summed over."
            if isinstance(found, torch.Tensor) and found.dim() == 2:
                hint = "The mean over the places comes afterwards: do not take it in your function."
            raise Wrong(f"The maps should have the shape {shape}, and yours have {had}.", hint=hint)
        logits = maps.mean((2, 3)) @ weight.T
        if torch.allclose(found.sum((2, 3)), logits, atol=1e-4):
            raise Wrong(
                "The sum over the places is the logits, not the mean.",
                hint="Do not divide by the number of places: each place says what the head would say to it alone.",
            )
        expected = torch.stack(
            [torch.stack([maps[i].mul(w[:, None, None]).sum(0) for w in weight]) for i in range(images)]
        )
        if not torch.allclose(found, expected, atol=1e-4):
            if torch.allclose(found, expected.relu(), atol=1e-4):
                hint = "Places that speak against a class are negative, and the mean needs them: no ReLU."
            else:
                hint = "At each place: the sum over the features of the map's value times the class's weight."
            raise Wrong("The mean over the places is not the logits without the bias.", hint=hint)
    return "The head, asked at every place: its mean is the answer that the network gives."
