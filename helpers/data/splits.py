"""The datasets, in memory and each in train, validation and test.

Images are two tensors a split: at this size, a loader that fetches example by example costs more than the
network. What comes from `helpers.fetching` has been verified byte by byte.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from helpers import fetching
from helpers.core import checks, paths

# Mean and standard deviation of the training pixels, scaled to [0, 1]; CIFAR-10's per channel (red, green,
# blue).
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CAT_AND_DOG = ("cat", "dog")
Inputs = TypeVar("Inputs", Tensor, list[str])
Labels = TypeVar("Labels", Tensor, list[int])
Review = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Split(Generic[Inputs, Labels]):
    """Inputs and their labels, of equal length: two tensors, or lists of texts and of whole numbers.

    `is_test` marks the test split, which nothing may be fitted to: what calibrates refuses it. `groups` numbers what
    belongs together, such as the reviews of a film; None: each example stands for itself.
    """

    inputs: Inputs
    labels: Labels
    is_test: bool = False
    groups: list[int] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError if the lengths differ."""
        if len(self.inputs) != len(self.labels):
            raise ValueError(f"inputs has {len(self.inputs):,} examples and labels {len(self.labels):,}")
        if self.groups is not None and len(self.groups) != len(self.labels):
            raise ValueError(f"groups numbers {len(self.groups):,} examples of {len(self.labels):,}")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.labels)

    def take(self, n: int) -> "Split[Inputs, Labels]":
        """Return the first n examples; ValueError unless 1 ≤ n ≤ len(self)."""
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= len(self):
            raise ValueError(f"n={n!r}; allowed: a whole number from 1 to {len(self):,}")
        groups = None if self.groups is None else self.groups[:n]
        return replace(self, inputs=self.inputs[:n], labels=self.labels[:n], groups=groups)


class Dataset(NamedTuple, Generic[Inputs, Labels]):
    """The three splits: fit on train, choose on validation, and touch test once, at the end."""

    train: Split[Inputs, Labels]
    validation: Split[Inputs, Labels]
    test: Split[Inputs, Labels]


def mnist() -> Dataset[Float32[Tensor, "n 1 28 28"], Int64[Tensor, " n"]]:
    """Handwritten digits, 55,000 / 5,000 / 10,000 (LeCun et al. 1998).

    Inputs are float32 (N, 1, 28, 28), standardized with MNIST_MEAN and MNIST_STD; labels are int64 (N,), 0 to
    9. The validation split is a random choice from the 60,000 training images, the same for every seed of
    every notebook.

    Raises sources.SourceError if the data is neither cached nor to be had.
    """
    folder = fetching.fetch("mnist")
    images = [fetching.read_idx(folder / f"{part}-images-idx3-ubyte")[:, None] for part in ("train", "t10k")]
    labels = [fetching.read_idx(folder / f"{part}-labels-idx1-ubyte") for part in ("train", "t10k")]
    return _images(images, labels, mean=(MNIST_MEAN,), std=(MNIST_STD,))


def cifar10() -> Dataset[Float32[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """Photographs of CIFAR10_CLASSES, 45,000 / 5,000 / 10,000 (Krizhevsky 2009).

    Inputs are float32 (N, 3, 32, 32), standardized per channel with CIFAR10_MEAN and CIFAR10_STD; labels are
    int64 (N,), indices of CIFAR10_CLASSES. The validation split is a random choice from the 50,000 training
    images, the same for every seed of every notebook. Together the tensors take 740 MB.

    Raises sources.SourceError if the data is neither cached nor to be had.
    """
    folder = fetching.fetch("cifar10")
    images = [fetching.read_idx(folder / f"{part}-images-idx4-ubyte") for part in ("train", "test")]
    labels = [fetching.read_idx(folder / f"{part}-labels-idx1-ubyte") for part in ("train", "test")]
    return _images(images, labels, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def only_classes(dataset: Dataset[Tensor, Tensor], classes: Sequence[int]) -> Dataset[Tensor, Tensor]:
    """Return the examples of these classes alone, relabelled 0, 1, … in the order of `classes`.

    Raises ValueError for a class that does not occur in training, and unless there is one at least and none twice.
    """
    present = dataset.train.labels.unique().tolist()
    for label in checks.not_empty("classes", classes):
        checks.choice("classes", label, present)
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes={list(classes)} names one twice; allowed: each once")
    new_label = torch.full((max(present) + 1,), -1)
    new_label[list(classes)] = torch.arange(len(classes))

    def part(split: Split[Tensor, Tensor]) -> Split[Tensor, Tensor]:
        labels = new_label[split.labels]
        return replace(split, inputs=split.inputs[labels >= 0], labels=labels[labels >= 0])

    return Dataset(*map(part, dataset))


def cifar10_without_cat_and_dog() -> Dataset[Float32[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """CIFAR-10's other eight classes, about 36,000 / 4,000 and 8,000, on which the ResNet-18 is pretrained.

    The order of the classes stays, and the labels are 0 to 7. Raises as `cifar10` does.
    """
    return only_classes(cifar10(), [label for label, name in enumerate(CIFAR10_CLASSES) if name not in _CAT_AND_DOG])


def cat_or_dog() -> Dataset[Float32[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
    """CIFAR-10's cats (label 0) and dogs (1), 8,000 / 2,000 / 2,000: what the pretrained ResNet-18 has never seen.

    The images are those of `cifar10`. In every split cats and dogs alternate, so that the first n are balanced,
    whatever n. Raises as `cifar10` does.
    """
    train, validation, test = only_classes(cifar10(), [CIFAR10_CLASSES.index(name) for name in _CAT_AND_DOG])
    inputs, labels = torch.cat([validation.inputs, train.inputs]), torch.cat([validation.labels, train.labels])
    whole = _alternating(Split(inputs, labels))
    held_out = len(whole) // 5
    return Dataset(Split(whole.inputs[held_out:], whole.labels[held_out:]), whole.take(held_out), _alternating(test))


def imdb(*, official: bool = False) -> Dataset[list[str], list[int]]:
    """Film reviews and whether they praise the film: lists of texts and of labels, 0 negative, 1 positive.

    The default is 20,000 / 2,500 / 2,500, from the 25,000 reviews of the official training split (Maas et al.
    2011, "Learning word vectors for sentiment analysis"). With `official=True` it is 22,500 / 2,500 / 25,000:
    the official test split, and the validation split taken from the official training split.

    No film has reviews in two of the default's splits. There are up to 30 reviews of a film; with some of them in
    training, a classifier that has learned names of films and actors is flattered, or misled where training shows the
    other label (notebook 06 measures both). data/imdb_films.json has the film of each review; films under which the
    data holds the same text count as one. `groups` are the films: what is measured on a split is an interval over
    them. Which films are held out is a random choice, the same for every seed of every notebook.

    The official training split comes without films here, so its validation split is the last block of each label, and
    may hold films that training shows under the other label. Its test split has no film in common with training.

    Within a split the labels alternate, so that the first n examples are balanced, whatever n; the reviews of a label
    keep the order of the source.

    Raises sources.SourceError if the data is neither cached nor to be had.
    """
    if official:
        folder = fetching.fetch("imdb-official")
        train, validation = _blocks(_reviews(folder / "train.jsonl"), shares=(9, 1))
        (test,) = _blocks(_reviews(folder / "test.jsonl"), shares=(1,))
        return _dataset(train, validation, test)
    reviews = _reviews(fetching.fetch("imdb") / "reviews.jsonl")
    return _dataset(*_by_film(reviews, _films(reviews), held_out=2_500))


def _dataset(
    train: Split[Inputs, Labels], validation: Split[Inputs, Labels], test: Split[Inputs, Labels]
) -> Dataset[Inputs, Labels]:
    return Dataset(train, validation, replace(test, is_test=True))


def _images(
    images: Sequence[UInt8[np.ndarray, "_ c h w"]],
    labels: Sequence[UInt8[np.ndarray, " _"]],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Dataset[Tensor, Tensor]:
    """Split 5,000 validation examples off the training part, in file order, and standardize."""
    order = np.random.default_rng(0).permutation(len(labels[0]))
    validation, train = np.sort(order[:5_000]), np.sort(order[5_000:])
    rows = [(0, train), (0, validation), (1, np.arange(len(labels[1])))]
    pixels = (_standardize(images[part][chosen], mean, std) for part, chosen in rows)
    classes = (torch.from_numpy(labels[part][chosen].astype(np.int64)) for part, chosen in rows)
    return _dataset(*map(Split, pixels, classes))


def _standardize(
    pixels: UInt8[np.ndarray, "n c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float32[Tensor, "n c h w"]:
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return torch.from_numpy(pixels).float().div_(255).sub_(shift).div_(scale)


def _alternating(split: Split[Tensor, Tensor]) -> Split[Tensor, Tensor]:
    """Return the examples of labels 0 and 1, which occur equally often, in alternating order."""
    order = torch.stack([(split.labels == label).nonzero().flatten() for label in (0, 1)], dim=1).flatten()
    return replace(split, inputs=split.inputs[order], labels=split.labels[order])


def _reviews(path: Path) -> list[Review]:
    with path.open("rb") as lines:
        reviews = map(json.loads, lines)
        return [(review["text"], review["label"]) for review in reviews]


def _blocks(reviews: Sequence[Review], *, shares: tuple[int, ...]) -> list[Split[list[str], list[int]]]:
    """Cut each label's reviews into contiguous blocks of these shares; in a block the labels alternate."""
    negative, positive = ([text for text, label in reviews if label == wanted] for wanted in (0, 1))
    splits, start = [], 0
    for share in shares:
        end = start + len(negative) * share // sum(shares)
        pairs = zip(negative[start:end], positive[start:end], strict=True)
        splits.append(Split([text for pair in pairs for text in pair], [0, 1] * (end - start)))
        start = end
    return splits


def _films(reviews: Sequence[Review]) -> list[int]:
    """Return the number of each review's film; films under which the same text is listed have one number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known = json.loads((paths.DATA / "imdb_films.json").read_bytes())
    lists = iter(known["negative"]), iter(known["positive"])
    films = [next(lists[label]) for _, label in reviews]
    first: dict[str, int] = {}
    same = [first.setdefault(text, film) for (text, _), film in zip(reviews, films, strict=True)]
    links = coo_array((np.ones(len(films)), (same, films)), shape=(known["films"],) * 2)
    number = connected_components(links, directed=False)[1]
    return [int(number[film]) for film in films]


def _by_film(
    reviews: Sequence[Review], films: Sequence[int], *, held_out: int
) -> Iterator[Split[list[str], list[int]]]:
    """Yield train, validation and test; the last two hold `held_out` reviews each, all of whole films.

    In random order each film goes to test if both labels still have room for its reviews there, or else to validation,
    or else to train. In a split the labels alternate. Raises ValueError if a label has more reviews than the other, or
    whole films do not make up what is held out.
    """
    labels = np.array([label for _, label in reviews])
    of_film = np.zeros((max(films) + 1, 2), int)
    np.add.at(of_film, (films, labels), 1)  # type: ignore[arg-type]  # a list is an index, too
    room = np.full((3, 2), held_out // 2)
    room[0] = len(reviews)
    goes_to = np.zeros(len(of_film), int)
    for film in np.random.default_rng(0).permutation(len(of_film)):
        goes_to[film] = next(part for part in (2, 1, 0) if (of_film[film] <= room[part]).all())
        room[goes_to[film]] -= of_film[film]
    if room[1:].any():
        raise ValueError(f"held_out={held_out}; allowed: what whole films make up, half of each label")
    parts = goes_to[films]
    for part in range(3):
        pairs = zip(*(np.flatnonzero((parts == part) & (labels == label)) for label in (0, 1)), strict=True)
        places = [int(place) for pair in pairs for place in pair]
        yield Split(
            [reviews[place][0] for place in places],
            [reviews[place][1] for place in places],
            groups=[films[place] for place in places],
        )
