"""Plausible wrong answers to the exercises of notebook 15, each with words of its own hint."""

from tests.exercises.examples import Case


def _costs(first, second, *, divided=True, next_layer=True):
    by_input, by_neuron = first.sum(0), first.sum(1) + (second.sum(0) if next_layer else 0)
    if divided:
        by_input = by_input / len(first)
        by_neuron = by_neuron / (first.shape[1] + (len(second) if next_layer else 0))
    return by_input, by_neuron


def _cheapest(costs):
    by_input, by_neuron = costs
    if by_input.min() < by_neuron.min():
        return "input", int(by_input.argmin())
    return "neuron", int(by_neuron.argmin())


CASES = {
    "15.1": Case(
        [
            (lambda size, weights: size / weights, "a byte has eight bits"),
            (lambda size, weights: weights / (8 * size), "other way round"),
            (lambda size, weights: 32.0, "All bits of the file"),
        ]
    ),
    "15.2": Case(
        [
            (lambda reads, is_read: reads.any(1), "whether anybody reads it"),
            (lambda reads, is_read: is_read.any(0), "what it reads"),
            (lambda reads, is_read: reads.any(1) | is_read.any(0), "One of the two is not enough"),
            (lambda reads, is_read: reads.any(0), "a row of the first mask"),
        ]
    ),
    "15.3": Case([(lambda: 336, "of both signs"), (lambda: 3_300, "Only one magnitude")], {"measured": 1_212}),
    "15.4": Case(
        [
            (lambda first, second: _cheapest(_costs(first, second, divided=False)), "You compare what is lost in all"),
            (lambda first, second: _cheapest(_costs(first, second, next_layer=False)), "weights of the next layer"),
            (lambda first, second: ("input", -1), "An input frees"),
        ]
    ),
}
