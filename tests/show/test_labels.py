"""Tests of `helpers.show.labels`."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers import show


def test_labels_hide_neither_points_nor_each_other():
    random = np.random.default_rng(0)
    fig, ax = plt.subplots(figsize=(9, 5), layout="constrained")
    x, y = random.lognormal(0, 1, 20), random.normal(size=20)
    ax.plot(x, y, "o")
    ax.set_xscale("log")
    homeless = show.label_points(ax, x, y, [f"a model called {i}" for i in range(20)])
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    assert len(boxes) + len(homeless) == 20 and len(boxes) >= 18
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    spots = ax.transData.transform(np.column_stack([x, y]))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)
    plt.close(fig)


@pytest.mark.parametrize(("x", "y", "names", "said"), [
    ([1, 2], [1], ["a", "b"], "x, y and names have 2, 1 and 2 entries; allowed: equally many"),
    ([1], [1], ["a", "b"], "have 1, 1 and 2 entries"),
    ([math.nan], [1], ["a"], "x holds NaN or infinity"),
    ([1], [math.inf], ["a"], "y holds NaN or infinity"),
])  # fmt: skip
def test_labels_of_points_that_are_nowhere_are_refused(x, y, names, said):
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match=said):
        show.label_points(ax, x, y, names)
    with pytest.raises(ValueError, match="size=0"):
        show.label_points(ax, [1], [1], ["a"], size=0)
    plt.close(fig)


def test_names_without_a_place_are_given_back_and_far_ones_have_a_line():
    fig, ax = plt.subplots(figsize=(3, 2))
    places = np.linspace(0, 0.02, 40)
    ax.plot(places, places, "o")
    ax.set(xlim=(-1, 1), ylim=(-1, 1))
    names = [f"a model called {i}" for i in range(40)]
    homeless = show.label_points(ax, places, places, names)
    shown = [text for text in ax.texts if text.get_text()]
    assert 0 < len(homeless) < 40 and {text.get_text() for text in shown} == set(names) - set(homeless)
    far = [text.get_text() for text in shown if math.hypot(*text.get_position()) > 13]
    lines = [text for text in ax.texts if not text.get_text()]
    assert far and len(lines) == len(far) and all(line.arrow_patch is not None for line in lines)
    plt.close(fig)


def test_the_limits_stay_where_the_names_were_placed():
    fig, ax = plt.subplots()
    ax.plot([1, 2], [1, 2], "o")
    assert show.label_points(ax, [1, 2], [1, 2], ["one", "two"]) == []
    before = ax.get_xlim(), ax.get_ylim()
    ax.plot([50], [50], "o")
    assert (ax.get_xlim(), ax.get_ylim()) == before
    plt.close(fig)


def test_labels_hide_no_line():
    fig, ax = plt.subplots()
    x, y = [1, 2, 3, 4], [1, 3, 2, 4]
    ax.plot(x, y)
    assert show.label_points(ax, x, y, ["one", "two", "three", "four"]) == []
    boxes = [text.get_window_extent() for text in ax.texts if text.get_text()]
    share = np.linspace(0, 1, 500)[:, None]
    corners = np.column_stack([x, y])
    along = np.concatenate([a + share * (b - a) for a, b in zip(corners[:-1], corners[1:], strict=True)])
    spots = ax.transData.transform(along)
    assert len(boxes) == 4 and not any(box.contains(*spot) for box in boxes for spot in spots)
    plt.close(fig)
