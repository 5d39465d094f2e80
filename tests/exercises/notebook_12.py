"""Plausible wrong answers to the exercises of notebook 12, each with words of its own hint."""

import torch
from torch.distributions import Categorical, kl_divergence

from helpers import exercises
from tests.exercises.examples import Case, _row_max, _row_min, _row_quantizer


def _softmaxes(student, teacher, temperature):
    return torch.softmax(student / temperature, dim=1), torch.softmax(teacher / temperature, dim=1)


def _by_autograd(student, teacher, temperature):
    leaf = student.requires_grad_()
    (temperature**2 * kl_divergence(*(Categorical(logits=x / temperature) for x in (teacher, leaf))).mean()).backward()
    return leaf.grad


def _without_the_chain_rule(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature**2 * (q - p) / len(student)


def _without_t_squared(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return (q - p) / temperature / len(student)


def _sum_over_examples(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature * (q - p)


def _teacher_first(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature * (p - q) / len(student)


def _at_temperature_one(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, 1)
    return temperature * (q - p) / len(student)


def _soft(student, teacher, temperature):
    q, p = _softmaxes(student, teacher, temperature)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()


def _mean_of_nothing(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1)
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _mean_over_the_whole_batch(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1, reduction="sum") / len(labels)
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _unknown_is_a_zero(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels.clamp(min=0))
    return share * _soft(student, teacher, temperature) + (1 - share) * hard


def _soft_without_t_squared(student, teacher, labels, temperature=4.0, share=0.9):
    hard = torch.nn.functional.cross_entropy(student, labels, ignore_index=-1)
    return share * _soft(student, teacher, temperature) / temperature**2 + (1 - share) * hard


def _first_choice(logits, temperature):
    return torch.softmax(logits / temperature, dim=1).amax(dim=1)


def _runner_up(logits, temperature):
    return torch.softmax(logits / temperature, dim=1).topk(2, dim=1).values[:, 1]


def _doubt_at_one(logits, temperature):
    return 1 - torch.softmax(logits, dim=1).amax(dim=1)


def _doubt_multiplied(logits, temperature):
    return 1 - torch.softmax(logits * temperature, dim=1).amax(dim=1)


def _doubt_of_all(logits, temperature):
    return 1 - torch.softmax(logits / temperature, dim=1).max()


CASES = {
    "12.1": Case(
        [
            (_first_choice, "leaves over"),
            (_runner_up, "not all of the doubt"),
            (_doubt_at_one, "before the softmax"),
            (_doubt_multiplied, "not multiplied"),
            (_doubt_of_all, "of each row"),
        ]
    ),
    "12.2": Case(
        [
            (_without_the_chain_rule, "chain rule is not"),
            (_without_t_squared, "in front of the loss"),
            (_sum_over_examples, "1 / batch"),
            (_teacher_first, "The sign"),
            (_at_temperature_one, "divided by T"),
            (_by_autograd, "on paper"),
        ]
    ),
    "12.3": Case(
        [
            (_mean_of_nothing, "mean over nothing"),
            (_mean_over_the_whole_batch, "not over the batch"),
            (_unknown_is_a_zero, "not the digit 0"),
            (_soft_without_t_squared, "All labels are known"),
        ]
    ),
    "12.4": Case([(lambda: 0.1, "With equal logits"), (lambda: 0.99, "divided by 20")], {"measured": 0.272}),
}


def test_codes_may_be_bytes():
    """Bytes minus bytes wrap around, and that is not the student's fault."""

    def in_bytes(weight, bits):
        codes, scale, zero = _row_quantizer(_row_min, _row_max)(weight, bits)
        return codes.byte(), scale, zero.byte()

    assert exercises.check("09.2", in_bytes).right
