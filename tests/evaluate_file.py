"""Count the right answers of a model file: `main` prints them, and of how many they are, given FILE and TASK.

Knows the file and the task, nothing of the run that wrote the file: which network it is, the file itself says.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from helpers import data, fetching, files, runtime, training
from helpers.core import vocabulary
from helpers.data import Split
from helpers.files import payload

BATCH = 50  # what a batch makes fits into the processor's cache, and 250 take up to half as long again
MAX_TOKENS = 1_000  # `text.MAX_TOKENS`, of a module that takes seconds to import


# ---------------------------------------------------------------- the test set


def images(task: str) -> Split:
    """Return the test images of a task alone, as `data` has them; only the order of cats and dogs is another."""
    if task == "mnist":
        folder, names, mean, std = fetching.fetch("mnist"), "t10k-{}-ubyte", (data.MNIST_MEAN,), (data.MNIST_STD,)
    else:
        folder, names, mean, std = fetching.fetch("cifar10"), "test-{}-ubyte", data.CIFAR10_MEAN, data.CIFAR10_STD
    pixels = torch.from_numpy(fetching.read_idx(folder / names.format(f"images-idx{3 if task == 'mnist' else 4}")))
    labels = torch.from_numpy(fetching.read_idx(folder / names.format("labels-idx1")).astype(np.int64))
    if task == "cat-or-dog":
        cat, dog = (data.CIFAR10_CLASSES.index(name) for name in ("cat", "dog"))
        pixels, labels = pixels[(labels == cat) | (labels == dog)], labels[(labels == cat) | (labels == dog)]
        labels = (labels == dog).long()
    channels = pixels.reshape(len(pixels), len(mean), *pixels.shape[-2:]).float().div_(255)
    return Split(channels.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None]), labels)


def numbered(reviews: Split, words: list[str]) -> Split:
    """Return the reviews as numbers of these words, with pairs of neighbours if there are any among the words."""
    tokens = [vocabulary.tokenize(review)[:MAX_TOKENS] for review in reviews.inputs]
    if any(" " in word for word in words):
        tokens = [vocabulary.with_bigrams(review) for review in tokens]
    return Split(torch.from_numpy(vocabulary.encode(tokens, words)), torch.tensor(reviews.labels))


def count_right(path: Path, task: str) -> tuple[int, int]:
    """Return how many test examples the model in the file gets right, and of how many."""
    packed = path.read_bytes().startswith(payload.MAGIC)
    model = files.load(path) if packed else runtime.as_module(runtime.session(path))
    test = numbered(data.imdb().test, files.read_words(path)) if task == "imdb" else images(task)
    result = training.evaluate(model, test, batch_size=BATCH)
    return result.correct, result.count


def main() -> None:
    """Evaluate the file that the command line names, on the test set of the task that stands behind it."""
    path, task = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    print(*count_right(path, task))
