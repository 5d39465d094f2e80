"""Plausible wrong answers to the exercises of notebook 05, each with words of its own hint."""

from tests.exercises.examples import Case


def _signs_of_all(early, mask):
    return early.sign() * early.abs().mean() * mask


def _price(macs, small_macs, epochs, retraining, rounds):
    return [macs * (small_macs / macs) ** (done / rounds) for done in range(1, rounds + 1)]


def _bill_of_the_last(macs, small_macs, epochs, retraining, rounds):
    return int((epochs * macs + rounds * retraining * small_macs) // small_macs)


def _bill_of_the_dense(macs, small_macs, epochs, retraining, rounds):
    return int(epochs * macs // small_macs)


def _bill_in_epochs(macs, small_macs, epochs, retraining, rounds):
    return epochs + rounds * retraining


def _bill_rounded_up(*given):
    macs, small_macs, epochs, retraining, _ = given
    return -int(-(epochs * macs + retraining * sum(_price(*given))) // small_macs)


CASES = {
    "05.1": Case(
        [(lambda: 1.96 * 0.3 / 3**0.5, "4.3, not 2"), (lambda: 4.303 * 0.3, "root of 3")], {"measured": 0.7452}
    ),
    "05.2": Case(
        [
            (lambda early, mask: early * mask, "+1 or -1"),
            (_signs_of_all, "index with the mask"),
            (lambda early, mask: early.sign() * early[mask].abs().mean(), "Multiply by the mask"),
            (lambda early, mask: mask * early[mask].abs().mean(), "must be positive"),
            (lambda early, mask: early.sign_() * mask, "new tensor"),
        ]
    ),
    "05.3": Case(
        [
            (_bill_in_epochs, "divide what was spent"),
            (_bill_of_the_dense, "after the cut"),
            (_bill_rounded_up, "Round down"),
            (_bill_of_the_last, "its own price"),
        ]
    ),
    "05.4": Case([(lambda: 0.05, "ten pairs"), (lambda: 0.9, "fail together")], {"measured": 0.373}),
}
