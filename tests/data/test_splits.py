"""The datasets that the course uses are the ones that the literature uses, split as they say."""

import hashlib
import json
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import datasets

from helpers import data, fetching
from helpers.core import paths
from helpers.data import Dataset, Split, splits
from helpers.fetching import common, decoding

# The MD5 of the original files, as published by others (the gzipped ones that torchvision knows, unpacked).
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
# The same for the files of cifar-10-binary.tar.gz, data_batch_1.bin to data_batch_5.bin and test_batch.bin.
CIFAR10_BINARY_MD5 = [
    "5dd7e06a14cb22eb9f671a540d1b7c25",
    "5ea93a67294ea407fff1d09f752e9692",
    "942cd6a4bcdd0dd3c604fbe906cb4421",
    "ae636b3ba5c66a11e91e8cb52e771fcb",
    "53f37980c15c3d472c316c40844f3f0d",
    "803d5f7f4d78ea53de84dbe85f74fb6d",
]


@pytest.fixture(scope="module")
def mnist():
    return data.mnist()


@pytest.fixture(scope="module")
def cifar10():
    return data.cifar10()


@pytest.fixture(scope="module")
def imdb():
    return data.imdb()


def pixels(split, mean, std):
    """Undo the standardization: uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (split.inputs * std + mean).mul_(255).round_().to(torch.uint8)


def rows(images):
    """Return images (N, …) as a set of byte strings."""
    return {image.tobytes() for image in images.numpy()}


def loads_within(seconds, load):
    """Tell whether one of three calls took less processor time: what other processes use does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            start = time.process_time()
            load()
            if time.process_time() - start < seconds:
                return True
        return False
    finally:
        torch.set_num_threads(threads)


def test_take_returns_the_first_examples():
    split = Split(torch.arange(6.0).reshape(3, 2), torch.tensor([2, 1, 0]))
    first = split.take(2)
    assert len(split) == 3 and len(first) == 2
    assert first.inputs.tolist() == [[0, 1], [2, 3]] and first.labels.tolist() == [2, 1]
    assert Split(["a", "b"], [0, 1]).take(1).inputs == ["a"]
    assert len(split.take(3)) == 3


@pytest.mark.parametrize("n", [0, -1, 4, True])
def test_take_refuses_what_it_cannot_give(n):
    with pytest.raises(ValueError, match=f"n={n!r}; allowed: a whole number from 1 to 3"):
        Split(torch.zeros(3), torch.zeros(3)).take(n)


def test_inputs_and_labels_of_different_length():
    with pytest.raises(ValueError, match="inputs has 2 examples and labels 3"):
        Split(torch.zeros(2), torch.zeros(3))


def test_the_mark_of_the_test_split_stays_on_its_parts():
    dataset = data.Dataset(
        *(Split(torch.zeros(4, 1), torch.arange(4) % 2, is_test=test) for test in (False, False, True))
    )
    assert [part.take(2).is_test for part in dataset] == [False, False, True]
    assert [part.is_test for part in data.only_classes(dataset, [1])] == [False, False, True]


@pytest.mark.data
def test_only_the_test_split_is_marked(mnist, cifar10, imdb):
    for dataset in (mnist, cifar10, imdb):
        assert [part.is_test for part in dataset] == [False, False, True]


# --- MNIST ---


@pytest.mark.data
def test_mnist_is_the_original():
    folder = fetching.fetch("mnist")
    assert {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in MNIST_MD5} == MNIST_MD5


@pytest.mark.data
def test_torchvision_reads_the_same_mnist_from_the_cache(mnist):
    fetching.fetch("mnist")
    train = datasets.MNIST(paths.raw_dir(), train=True, download=False)
    test = datasets.MNIST(paths.raw_dir(), train=False, download=False)
    chosen = np.random.default_rng(0).permutation(60_000)
    order = np.concatenate([np.sort(chosen[5_000:]), np.sort(chosen[:5_000])])
    ours = torch.cat([pixels(split, (0.1307,), (0.3081,))[:, 0] for split in mnist[:2]])
    assert torch.equal(ours, train.data[order])
    assert torch.equal(torch.cat([mnist.train.labels, mnist.validation.labels]), train.targets[order])
    assert torch.equal(pixels(mnist.test, (0.1307,), (0.3081,))[:, 0], test.data)
    assert torch.equal(mnist.test.labels, test.targets)


@pytest.mark.data
def test_mnist_splits(mnist):
    assert [len(split) for split in mnist] == [55_000, 5_000, 10_000]
    for split in mnist:
        assert split.inputs.shape[1:] == (1, 28, 28) and split.inputs.dtype == torch.float32
        assert split.labels.shape == (len(split),) and split.labels.dtype == torch.int64
    counts = mnist.train.labels.bincount() + mnist.validation.labels.bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert abs(mnist.train.inputs.mean()) < 0.01 and abs(mnist.train.inputs.std() - 1) < 0.01
    assert not rows(mnist.validation.inputs) & rows(mnist.train.inputs)


@pytest.mark.data
def test_the_validation_split_depends_on_no_seed_and_leaves_the_random_state_alone(mnist):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    again = data.mnist()
    assert torch.equal(again.validation.labels, mnist.validation.labels)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index]


@pytest.mark.data
def test_cached_data_loads_fast():
    assert loads_within(1, data.mnist)
    assert loads_within(3, data.cifar10)


# --- CIFAR-10 ---


@pytest.mark.data
def test_cifar10_is_the_original():
    folder = fetching.fetch("cifar10")
    images = [fetching.read_idx(folder / f"{part}-images-idx4-ubyte") for part in ("train", "test")]
    labels = [fetching.read_idx(folder / f"{part}-labels-idx1-ubyte") for part in ("train", "test")]
    records = np.concatenate([np.concatenate(labels)[:, None], np.concatenate(images).reshape(-1, 3072)], axis=1)
    batches = records.reshape(6, 10_000, 3073)
    assert [hashlib.md5(batch.tobytes()).hexdigest() for batch in batches] == CIFAR10_BINARY_MD5


@pytest.mark.data
def test_cifar10_splits(cifar10):
    assert [len(split) for split in cifar10] == [45_000, 5_000, 10_000]
    for split in cifar10:
        assert split.inputs.shape[1:] == (3, 32, 32) and split.inputs.dtype == torch.float32
        assert split.labels.dtype == torch.int64
    counts = cifar10.train.labels.bincount() + cifar10.validation.labels.bincount()
    assert counts.tolist() == [5_000] * 10 and cifar10.test.labels.bincount().tolist() == [1_000] * 10
    some = cifar10.train.inputs[::10]
    torch.testing.assert_close(some.mean(dim=(0, 2, 3)), torch.zeros(3), atol=0.03, rtol=0)
    torch.testing.assert_close(some.std(dim=(0, 2, 3)), torch.ones(3), atol=0.03, rtol=0)


@pytest.mark.data
def test_cifar10_images_and_labels_belong_together(cifar10):
    """What everybody knows: ships stand before more blue than frogs do, and are brighter at the top."""
    images = pixels(cifar10.test.take(2_000), data.CIFAR10_MEAN, data.CIFAR10_STD).double()
    labels = cifar10.test.labels[:2_000]
    ships, frogs = (images[labels == data.CIFAR10_CLASSES.index(name)] for name in ("ship", "frog"))
    assert (ships[:, 2] - ships[:, 0]).mean() > (frogs[:, 2] - frogs[:, 0]).mean() + 10
    assert ships[:, :, :8].mean() > ships[:, :, 16:24].mean()


@pytest.mark.data
def test_cifar10_examples_are_split_by_position_alone(cifar10):
    folder = fetching.fetch("cifar10")
    chosen = np.random.default_rng(0).permutation(50_000)
    images = fetching.read_idx(folder / "train-images-idx4-ubyte")
    for split, which in ((cifar10.validation, chosen[:5_000]), (cifar10.train, chosen[5_000:])):
        ours = pixels(split.take(100), data.CIFAR10_MEAN, data.CIFAR10_STD)
        np.testing.assert_array_equal(ours.numpy(), images[np.sort(which)[:100]])


def test_only_classes_keeps_and_relabels():
    labels = torch.tensor([3, 0, 2, 3, 1])
    split = Split(torch.arange(5.0), labels)
    train, validation, test = data.only_classes(Dataset(split, split.take(3), split.take(2)), [3, 1])
    assert train.inputs.tolist() == [0, 3, 4] and train.labels.tolist() == [0, 0, 1]
    assert validation.labels.tolist() == [0] and test.inputs.tolist() == [0]
    assert labels.tolist() == [3, 0, 2, 3, 1]


@pytest.mark.parametrize(
    ("classes", "words"),
    [([], "classes is empty"), ([1, 4], "classes=4 is unknown; allowed: 0, 1, 2, 3"), ([1, 1], "names one twice")],
)
def test_classes_that_cannot_be_had_are_named(classes, words):
    split = Split(torch.zeros(4), torch.arange(4))
    with pytest.raises(ValueError, match=words):
        data.only_classes(Dataset(split, split, split), classes)


def test_the_pretraining_and_the_transfer_task_share_no_image(monkeypatch):
    """Each image of this small CIFAR-10 holds its own number, so that it can be followed."""
    labels = torch.arange(1_000) % 10
    images = torch.arange(1_000.0)[:, None, None, None].expand(-1, 3, 1, 1)
    rows = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    parts = [Split(images[which], labels[which]) for which in (rows[120:], rows[:120], torch.arange(900, 1_000))]
    monkeypatch.setattr(splits, "cifar10", lambda: Dataset(*parts))

    eight, pair = data.cifar10_without_cat_and_dog(), data.cat_or_dog()
    assert [len(split) for split in pair] == [144, 36, 20]
    for split in pair:
        assert split.labels.tolist() == [0, 1] * (len(split) // 2)
        assert torch.equal(split.inputs[:, 0, 0, 0] % 10, 3.0 + 2 * split.labels)
    names = [name for name in data.CIFAR10_CLASSES if name not in ("cat", "dog")]
    for split in eight:
        numbers = split.inputs[:, 0, 0, 0].long() % 10
        assert [data.CIFAR10_CLASSES[n] for n in numbers] == [names[label] for label in split.labels]
    seen = [split.inputs[:, 0, 0, 0].tolist() for split in (*eight, *pair)]
    assert sorted(sum(seen, [])) == list(range(1_000))


@pytest.mark.data
def test_the_parts_of_cifar10_have_their_sizes():
    eight, pair = data.cifar10_without_cat_and_dog(), data.cat_or_dog()
    assert [len(split) for split in pair] == [8_000, 2_000, 2_000]
    assert len(eight.train) + len(eight.validation) == 40_000 and len(eight.test) == 8_000
    assert 35_800 < len(eight.train) < 36_200


# --- IMDB ---


@pytest.mark.data
def test_imdb_splits(imdb):
    assert [len(split) for split in imdb] == [20_000, 2_500, 2_500]
    for split in imdb:
        assert isinstance(split.inputs, list) and set(map(type, split.inputs)) == {str}
        assert sum(split.labels) == len(split) // 2 and set(split.labels) == {0, 1}
        assert sum(split.take(101).labels) in (50, 51)
    assert imdb.train.inputs[0].startswith("I rented I AM CURIOUS-YELLOW from my video store")
    assert "<br />" in " ".join(imdb.train.inputs[:100])


@pytest.mark.data
def test_no_film_and_no_text_is_in_two_splits_of_imdb(imdb):
    """By the list of films itself: the n-th review of a label is of the n-th film of its list."""
    known = json.loads((paths.DATA / "imdb_films.json").read_bytes())
    films = {}
    for split in imdb:
        assert len(set(split.groups)) > 300
        for text, label, group in zip(split.inputs, split.labels, split.groups, strict=True):
            films.setdefault((text, label), []).append(group)
    reviews = splits._reviews(fetching.fetch("imdb") / "reviews.jsonl")
    where = {text: number for number, split in enumerate(imdb) for text in split.inputs}
    assert len(reviews) == sum(map(len, imdb)) and sum(len(set(split.inputs)) for split in imdb) == len(where)
    split_of_film, group_of_film = {}, {}
    for label, name in enumerate(("negative", "positive")):
        texts = [text for text, listed in reviews if listed == label]
        assert hashlib.sha256("\0".join(texts).encode()).hexdigest() == known["sha256"][name]
        for text, film in zip(texts, known[name], strict=True):
            assert split_of_film.setdefault(film, where[text]) == where[text]
            assert {group_of_film.setdefault(film, films[text, label][0])} == set(films[text, label])
    assert len(set(group_of_film.values())) > 0.98 * known["films"], "few films share a review"


@pytest.mark.data
def test_the_reviews_of_a_label_keep_their_order(imdb):
    place = {text: number for number, (text, _) in enumerate(splits._reviews(fetching.fetch("imdb") / "reviews.jsonl"))}
    once = {text for text, count in Counter(text for split in imdb for text in split.inputs).items() if count == 1}
    assert len(once) > 24_000
    for split in imdb:
        for label in (0, 1):
            texts = [text for text, own in zip(split.inputs, split.labels, strict=True) if own == label]
            places = [place[text] for text in texts if text in once]
            assert places == sorted(places)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 1)), min_size=40, max_size=80), st.sampled_from([2, 6]))
def test_films_are_held_out_whole_and_labels_alternate(drawn, held_out):
    drawn += [(99, label) for label in (0, 1)]
    short = sum(label for _, label in drawn) - sum(1 - label for _, label in drawn)
    drawn += [(100 + i, int(short < 0)) for i in range(abs(short))]
    films, reviews = [film for film, _ in drawn], [(str(place), label) for place, (_, label) in enumerate(drawn)]
    try:
        train, validation, test = splits._by_film(reviews, films, held_out=held_out)
    except ValueError as error:
        assert f"held_out={held_out}" in str(error)
        return
    assert len(validation) == len(test) == held_out
    for split in (train, validation, test):
        assert split.labels == [0, 1] * (len(split) // 2)
        assert split.groups == [films[int(text)] for text in split.inputs]
        assert split.labels == [drawn[int(text)][1] for text in split.inputs]
    parts = [set(split.groups) for split in (train, validation, test)]
    assert sum(map(len, parts)) == len(set(films))


def test_films_with_one_text_are_one_film(tmp_path, monkeypatch):
    known = {"films": 6, "negative": [0, 1, 2], "positive": [3, 4, 5]}
    (tmp_path / "imdb_films.json").write_text(json.dumps(known))
    monkeypatch.setattr(paths, "DATA", tmp_path)
    a, b, c, d, e, f = splits._films([("x", 0), ("y", 0), ("z", 0), ("x", 1), ("w", 1), ("z", 1)])
    assert a == d and c == f and len({a, b, c, e}) == 4


def test_groups_stay_with_their_examples():
    split = data.Split(["a", "b", "c"], [0, 1, 0], groups=[7, 7, 9])
    assert split.take(2).groups == [7, 7] and data.Split(["a"], [0]).take(1).groups is None
    with pytest.raises(ValueError, match="groups numbers 2 examples of 1"):
        data.Split(["a"], [0], groups=[1, 2])


@pytest.fixture
def official(tmp_path, monkeypatch):
    """Make `fetch` return a folder with twenty reviews in train and twenty in test."""
    for part in ("train", "test"):
        reviews = [(label, f"{part} {label} {number}") for label in (0, 1) for number in range(10)]
        (tmp_path / f"{part}.jsonl").write_bytes(decoding._json_lines(reviews))
    monkeypatch.setattr(fetching, "fetch", {"imdb-official": tmp_path}.__getitem__)


def test_the_official_test_split_stays_whole_and_validation_comes_from_train(official):
    dataset = data.imdb(official=True)
    assert isinstance(dataset, Dataset)
    assert [len(split) for split in dataset] == [18, 2, 20]
    assert dataset.validation.inputs == ["train 0 9", "train 1 9"] and dataset.validation.labels == [0, 1]
    assert set(dataset.test.inputs) == {f"test {label} {number}" for label in (0, 1) for number in range(10)}
    assert dataset.train.inputs[:4] == ["train 0 0", "train 1 0", "train 0 1", "train 1 1"]


@pytest.mark.parametrize("load", [data.mnist, data.cifar10, data.imdb, lambda: data.imdb(official=True)])
def test_without_data_the_error_of_the_sources_comes_through(load, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_DATA_DIR", str(tmp_path))
    for name in fetching.NAMES:
        monkeypatch.setenv(common.override_variable(name), str(tmp_path / "nowhere"))
    with pytest.raises(fetching.SourceError, match="no such file or folder"):
        load()
