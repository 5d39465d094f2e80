"""Plausible wrong answers to the exercises of notebook 11, each with words of its own hint."""

import torch

from tests.exercises.examples import Case


def _joined(first, second):
    return ((first.int() & 15) | (second.int() & 15) << 4).to(torch.uint8)


def _swapped(codes):
    return _joined(codes[1::2], codes[0::2])


def _by_halves(codes):
    return _joined(codes[: len(codes) // 2], codes[len(codes) // 2 :])


def _from_zero_on(codes):
    return _joined(codes[0::2] + 8, codes[1::2] + 8)


def _no_mask(codes):
    return (codes[0::2].int() | codes[1::2].int() << 4).to(torch.uint8)


def _not_bytes(codes):
    return _joined(codes[0::2], codes[1::2]).int()


def _in_place(codes):
    codes &= 15
    return _joined(codes[0::2], codes[1::2])


def _one_by_one(codes):
    return (codes.int() & 15).to(torch.uint8)


def _spender(*, key=lambda saved, weights, name: saved[name] / weights[name], price=0.5, stop=False, pays=True):
    def spend(saved, weights, budget):
        taken = set()
        for name in sorted(saved, key=lambda name: key(saved, weights, name), reverse=True):
            if price * weights[name] <= budget:
                taken.add(name)
                budget -= price * weights[name] * pays
            elif stop:
                break
        return taken

    return spend


CASES = {
    "11.1": Case(
        [
            (lambda weights, bits: weights * bits, "These are bits"),
            (lambda weights, bits: weights * bits // 8, "left over"),
            (lambda weights, bits: weights, "a byte of its own"),
            (lambda weights, bits: weights * bits / 8, "whole int"),
        ]
    ),
    "11.2": Case(
        [
            (_swapped, "lower four bits."),
            (_by_halves, "every second code"),
            (_from_zero_on, "Adding 8"),
            (_no_mask, "fills the upper bits"),
            (_not_bytes, "End with"),
            (_in_place, "in place"),
            (_one_by_one, "one byte of each pair"),
        ]
    ),
    "11.3": Case(
        [
            (_spender(key=lambda saved, weights, name: saved[name]), "per weight"),
            (_spender(price=1.0), "half a byte more"),
            (_spender(stop=True), "does not end the search"),
            (_spender(pays=False), "Subtract"),
            (_spender(key=lambda saved, weights, name: -saved[name]), "falling"),
        ]
    ),
    "11.4": Case(
        [
            (lambda at_eight, at_four: (at_eight + at_four) / 2, "geometric"),
            (lambda at_eight, at_four: at_eight * 4, "four times as long"),
        ],
        given={"at_eight": 4.3e-4, "at_four": 0.123, "measured": 6.9e-3},
    ),
}
