"""Plausible wrong answers to the exercises of notebook 14, each with words of its own hint."""

import math

from tests.exercises.examples import Case


def _words_without_a_shift(lengths):
    words = [""] * len(lengths)
    for word, (length, symbol) in enumerate(sorted((length, symbol) for symbol, length in enumerate(lengths))):
        words[symbol] = format(word, f"0{length}b")[:length]
    return words


def _words_last_symbol_first(lengths):
    words, word, before = [""] * len(lengths), 0, 0
    for length, symbol in sorted((length, -symbol) for symbol, length in enumerate(lengths)):
        word <<= length - before
        words[-symbol] = format(word, f"0{length}b")
        word, before = word + 1, length
    return words


def _bits_of_entropy(symbols):
    counts = [symbols.count(0), symbols.count(1)]
    return sum(-n * math.log2(n / len(symbols)) for n in counts if n)


def _bits_counted_too_soon(symbols):
    bits, ones = 0.0, 0
    for before, symbol in enumerate(symbols):
        ones += symbol
        p = (ones + 0.5) / (before + 2)
        bits -= math.log2(p if symbol else 1 - p)
    return bits


def _bits_of_ones_only(symbols):
    bits, ones = 0.0, 0
    for before, symbol in enumerate(symbols):
        bits -= math.log2((ones + 0.5) / (before + 1))
        ones += symbol
    return bits


CASES = {
    "14.1": Case(
        [
            (math.log2, "but for the sign"),
            (lambda p: -math.log(p), "natural logarithm"),
            (lambda p: -p * math.log2(p), "Leave out the factor"),
            (lambda p: math.ceil(-math.log2(p)), "rounds up"),
        ]
    ),
    "14.2": Case(
        [
            (_words_without_a_shift, "shifted left"),
            (_words_last_symbol_first, "smaller number first"),
            (lambda lengths: [format(symbol, "b") for symbol in range(len(lengths))], "leading zeros"),
        ]
    ),
    "14.3": Case([(lambda: 1_838, "Two kinds of news"), (lambda: 54_338, "not a whole bit")], {"measured": 9_280}),
    "14.4": Case(
        [
            (_bits_of_entropy, "does not know yet"),
            (_bits_counted_too_soon, "after it was coded"),
            (_bits_of_ones_only, "probability 1 - p"),
        ]
    ),
}
