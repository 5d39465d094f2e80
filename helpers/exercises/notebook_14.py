"""The exercises of notebook 14."""

import math
from collections.abc import Callable

from helpers.exercises.checking import Wrong, exercise, within_factor


@exercise("14.1")
def _price(price: Callable[[float], float]) -> str:
    for p in (1 / 8, 1 / 2, 0.3, 49 / 50):
        found, expected = price(p), -math.log2(p)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Return one number of bits; yours is {found!r}.", hint="It is a logarithm of p: math.log2(p).")
        if abs(found - expected) <= 1e-9:
            continue
        said = f"A symbol that comes with probability {p:.3g} is worth {expected:.3g} bits; yours: {found:.3g}."
        if abs(found + expected) <= 1e-9:
            raise Wrong(said, hint="Right but for the sign: the logarithm of a probability is not positive.")
        if abs(found + math.log(p)) <= 1e-9:
            raise Wrong(said, hint="That is the natural logarithm. Bits are counted in powers of two: math.log2.")
        if abs(found + p * math.log2(p)) <= 1e-9:
            raise Wrong(said, hint="That is its share of the average, as in the entropy. Leave out the factor p.")
        if found == math.ceil(expected):
            raise Wrong(said, hint="Huffman rounds up to whole bits. The price itself is a fraction.")
        raise Wrong(said, hint="Probability 1/2 is worth one bit, 1/4 two, 1/8 three. Which function does that?")
    return "Rare is expensive, and certain is free."


@exercise("14.2")
def _canonical_words(words: Callable[[list[int]], list[str]]) -> str:
    for lengths in ([2, 1, 2], [1, 1], [3, 1, 3, 2], [2, 3, 3, 2, 2], [4, 2, 3, 2, 4, 3, 4, 4]):
        found = words(list(lengths))
        if not isinstance(found, list | tuple) or not all(isinstance(word, str) for word in found):
            raise Wrong(f"Return a list of texts; yours is {found!r}.", hint='format(5, "04b") is "0101".')
        if [len(word) for word in found] != lengths:
            raise Wrong(
                f"For the lengths {lengths} your words have the lengths {[len(word) for word in found]}.",
                hint="Words stand in the order of the symbols, and leading zeros belong to them.",
            )
        for one in found:
            for other in found:
                if one is not other and other.startswith(one):
                    raise Wrong(
                        f"For {lengths}, {one!r} begins the word {other!r}: a reader cannot tell them apart.",
                        hint="When the length grows, the number is shifted left, after 1 was added.",
                    )
        # With as many words of each length before it, each word's fraction of the tree is known without counting up.
        order = sorted(range(len(lengths)), key=lambda symbol: (lengths[symbol], symbol))
        begins, expected = 0.0, [""] * len(lengths)
        for symbol in order:
            expected[symbol] = format(int(begins * 2 ** lengths[symbol]), f"0{lengths[symbol]}b")
            begins += 0.5 ** lengths[symbol]
        if list(found) != expected:
            raise Wrong(
                f"For {lengths} the canonical words are {expected}; yours are {list(found)}.",
                hint="Shorter words first; among equal lengths, the symbol with the smaller number first.",
            )
    return "Lengths alone, and the reader has your code."


@exercise("14.3")
def _coded_bytes(guess: Callable[[], float], *, measured: int) -> str:
    return within_factor(
        guess,
        measured,
        factor=1.03,
        unit="bytes",
        too_low="Two kinds of news: where, for each of the 420,000 places, and which value, for 8,400 of them.",
        too_high="Where: the entropy of 1/50 for each place, not a whole bit. Which: 1.75 bits each, not 2 or 32.",
    )


@exercise("14.4")
def _learned_bits(bits: Callable[[list[int]], float]) -> str:
    for symbols in ([1], [0, 0, 0, 0], [1, 0, 1, 1], [0] * 40 + [1] * 3, [1, 0] * 20):
        n, k = len(symbols), sum(symbols)
        # The product of the probabilities does not depend on the order; gamma functions give it at once.
        log = math.lgamma(k + 0.5) + math.lgamma(n - k + 0.5) - math.lgamma(n + 1) - math.log(math.pi)
        expected = -log / math.log(2)
        found = bits(list(symbols))
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise Wrong(f"Return one number of bits; yours is {found!r}.", hint="Add up -log2 p.")
        if abs(found - expected) <= 1e-6:
            continue
        said = f"{n} symbols with {k} ones take {expected:.2f} bits; yours: {found:.2f}."
        share = k / n
        static = sum(-m * math.log2(m / n) for m in (k, n - k) if m)
        if abs(found - static) <= 1e-6:
            raise Wrong(said, hint=f"That is the entropy for a share of {share:.2g}, which a reader does not know yet.")
        if found < expected:
            raise Wrong(said, hint="Count a symbol after it was coded, not before: the reader has not seen it yet.")
        raise Wrong(said, hint="A zero has the probability 1 - p. And the half belongs to k, the one to n.")
    return "Nothing stored, and the reader can follow."
