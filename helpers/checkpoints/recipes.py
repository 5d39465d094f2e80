"""Trained weights: how each was made (`RECIPES`), `train` to make it again, `load` to use it.

Weights are safetensors files in data/checkpoints; manifest.json beside them says how, when, by which code and with
what accuracy each was trained. Beside those of networks that read texts lie the vocabularies: one word a line, in the
order of the numbers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers import data, nets, training
from helpers.checkpoints import answers
from helpers.checkpoints.weights import read_weights, write_weights
from helpers.core import checks, identity, paths, system, vocabulary
from helpers.training import devices, loop

if TYPE_CHECKING:  # torchvision and torchtext take a second to import, and most notebooks need neither
    from helpers.data import Split, text
    from helpers.nets import ResNet18


def pretrained_resnet18(source: str = "course") -> "ResNet18":
    """Return a trained ResNet-18 in evaluation mode.

    Args:
        source: "course" for the project's own checkpoint, which knows the eight classes of CIFAR-10 other than cat and
            dog (`data.cifar10_without_cat_and_dog`); "imagenet" for torchvision's weights (IMAGENET1K_V1: 1,000
            classes, many of them cats and dogs), which are downloaded unless torch.hub's cache has them. Those were
            trained on 224 pixels standardized with ImageNet's mean and spread, which are close to CIFAR-10's.

    Raises:
        ValueError: `source` is unknown, or the checkpoint is missing or changed.
        fetching.SourceError: torchvision's weights could not be had, or the cached file is damaged.
    """
    if checks.choice("source", source, ("course", "imagenet")) == "course":
        return load("resnet18")  # type: ignore[return-value]
    from helpers.nets.resnet import imagenet_resnet18

    return imagenet_resnet18()


def _resnet18() -> nn.Module:
    return nets.resnet18()


def _imdb() -> "text.Encoded":
    from helpers.data import text

    return text.imdb()


def _imdb_pieces() -> "text.Encoded":
    from helpers.data import pieces

    return pieces.imdb()


def _minilm() -> nn.Module:
    return nets.minilm()


def _imdb_bigrams() -> "text.Encoded":
    from helpers.data import text

    return text.imdb_bigrams()


def by_length(split: "Split[Any, Any]", size: int, generator: torch.Generator) -> Sequence[torch.Tensor]:
    """Return an epoch's batches of texts of similar length: see `data.text.by_length`."""
    from helpers.data import text

    return text.by_length(split, size, generator)


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained: the network, its data, and the arguments of `training.fit`."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], "data.Dataset | text.Encoded"]
    options: Mapping[str, Any]
    early_epoch: int = 0  # keep the weights after this epoch too, as NAME.early: notebook 05 rewinds to them
    half: bool = False  # store half precision: half the bytes, three digits, which is enough for trained weights
    pretrained: bool = False  # store what was trained alone: what is frozen comes with the pretrained network
    teaches: bool = False  # store its answers to the training reviews and their windows, for students


TRAINING = b"from helpers.checkpoints import recipes\nrecipes.train"  # the code whose SHA-256 a manifest names
_CIFAR = {
    "lr": 0.4,
    "batch_size": 512,
    "warmup": 0.2,
    "precision": "bfloat16",
    "augment": training.flip_and_shift,
}
_TEXT = {"optimizer": "adam", "batch_size": 64, "batching": by_length}
RECIPES = {
    "lenet5": Recipe(
        nets.lenet5,
        data.mnist,
        {"epochs": 15, "optimizer": "adam", "lr": 2e-3, "augment": training.random_shift},
    ),
    "lenet-300-100": Recipe(
        nets.lenet_300_100,
        data.mnist,
        {"epochs": 20, "optimizer": "adam", "lr": 2e-3, "augment": training.random_shift},
    ),
    "cifar_base": Recipe(
        nets.cifar_base,
        data.cifar10,
        {"epochs": 30, "loss": training.smoothed_cross_entropy, **_CIFAR},
    ),
    "cifar_small": Recipe(nets.cifar_small, data.cifar10, {"epochs": 20, **_CIFAR}, early_epoch=2),
    "cifar_half": Recipe(nets.cifar_half, data.cifar10, {"epochs": 20, **_CIFAR}),
    "resnet18": Recipe(
        _resnet18,
        data.cifar10_without_cat_and_dog,
        {"epochs": 16, "loss": training.smoothed_cross_entropy, **_CIFAR, "batch_size": 256, "lr": 0.2},
        half=True,
    ),
    "imdb_bag": Recipe(nets.imdb_bag, _imdb, {"epochs": 4, "lr": 3e-3, **_TEXT}),
    "imdb_bigrams": Recipe(nets.imdb_bigrams, _imdb_bigrams, {"epochs": 3, "lr": 3e-3, **_TEXT}),
    "imdb_cnn": Recipe(nets.imdb_cnn, _imdb, {"epochs": 4, "lr": 2e-3, **_TEXT}),
    "imdb_lstm": Recipe(nets.imdb_lstm, _imdb, {"epochs": 6, "lr": 5e-3, **_TEXT}),
    "imdb_rnn": Recipe(nets.imdb_rnn, _imdb, {"epochs": 6, "lr": 1e-3, **_TEXT}),
    "imdb_minilm": Recipe(
        _minilm,
        _imdb_pieces,
        {
            "epochs": 2,
            "lr": 1e-4,
            "lr_factors": {"fc": 10.0},
            "warmup": 0.1,
            "precision": "bfloat16",
            **_TEXT,
            "batch_size": 32,
        },
        half=True,
        pretrained=True,
        teaches=True,
    ),
}


def manifest() -> dict[str, dict[str, Any]]:
    """Return what is known of each committed checkpoint, by its name."""
    path = paths.CHECKPOINTS / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def load(name: str, *, early: bool = False) -> nn.Module:
    """Return the trained network `name` in evaluation mode, or with `early` as it was after its first epochs.

    Raises:
        ValueError: there is no such checkpoint, it kept no early weights, or its file is not the one that the
            manifest names.
    """
    entry = manifest()[checks.choice("name", name, manifest())]
    if early and "early" not in entry:
        kept = [name for name, entry in manifest().items() if "early" in entry]
        raise ValueError(f"name={name!r} kept no early weights; allowed: {', '.join(kept)}")
    entry = entry["early"] if early else entry
    path = paths.CHECKPOINTS / entry["file"]
    if not path.exists() or paths.sha256(path.read_bytes()) != entry["sha256"]:
        raise ValueError(
            f"name={name!r}: {path.name} is missing or changed; "
            f"restore it with git, or run python -m helpers train {name}"
        )
    return read_weights(RECIPES[name].build(), path)


def words(name: str) -> list[str]:
    """Return the vocabulary of the trained text classifier `name`: the words that its token numbers stand for.

    Raises:
        ValueError: there is no such checkpoint, it reads no text, or its file is not the one that the manifest names.
    """
    with_words = [name for name, entry in manifest().items() if "words" in entry]
    entry = manifest()[checks.choice("name", name, with_words)]["words"]
    path = paths.CHECKPOINTS / entry["file"]
    if not path.exists() or paths.sha256(path.read_bytes()) != entry["sha256"]:
        raise ValueError(f"name={name!r}: {path.name} is missing or changed; restore it with git")
    return vocabulary.read_words(path)


def teachers_answers(name: str) -> Float[Tensor, "texts classes"]:
    """Return the logits of the trained network `name` for `data.pieces.asked` of the IMDB training reviews.

    Raises:
        ValueError: there is no such checkpoint, it kept no answers, or their file is not the one that the manifest
            names.
    """
    kept = [name for name, entry in manifest().items() if "answers" in entry]
    entry = manifest()[checks.choice("name", name, kept)]["answers"]
    path = paths.CHECKPOINTS / entry["file"]
    if not path.exists() or paths.sha256(path.read_bytes()) != entry["sha256"]:
        raise ValueError(f"name={name!r}: {path.name} is missing or changed; restore it with git")
    return answers.read(path)


def _keep_early(recipe: Recipe, path: Path) -> loop.OnStep | None:
    """Return what writes the weights after `recipe.early_epoch` to `path`, at once: a resumed run will not see them."""
    if not recipe.early_epoch:
        return None

    def keep(model: nn.Module, at: loop.StepInfo) -> None:
        if at.step * recipe.options["epochs"] == at.total * recipe.early_epoch:
            write_weights(model, path)

    return training.watching(keep)


def train(name: str, *, seed: int = 0) -> Path:
    """Train a checkpoint by its recipe, resuming an interrupted run; write weights and manifest; return the path.

    The last epoch is kept, and the test split is evaluated once, at the end. Started by torchrun, all processes train
    (see `devices`) and the first one writes.
    """
    recipe = RECIPES[checks.choice("name", name, RECIPES)]
    dataset = recipe.dataset()
    training.seed_everything(seed)
    scratch = paths.build_dir() / "scratch" / "train" / f"{name}.seed{seed}.pt"
    early = scratch.with_suffix(".early.safetensors")
    fitted = devices.fit(
        recipe.build(),
        dataset.train,
        validation=dataset.validation,
        seed=seed,
        checkpoint=scratch,
        on_step=_keep_early(recipe, early),
        **recipe.options,
    )
    path = paths.CHECKPOINTS / f"{name}.safetensors"
    if not devices.is_first():
        return path
    sha256 = write_weights(fitted.model, path, half=recipe.half, trained_only=recipe.pretrained)
    stored = read_weights(recipe.build(), path)  # what is rounded in the file is rounded in its accuracy
    options = {key: getattr(value, "__name__", value) for key, value in recipe.options.items()}
    entry = {
        "file": path.name,
        "sha256": sha256,
        "command": f"python -m helpers train {name} --seed {seed}",
        "seed": seed,
        "options": options,
        "examples": len(dataset.train),
        "validation_accuracy": training.evaluate(stored, dataset.validation).accuracy,
        "test_accuracy": training.evaluate(stored, dataset.test).accuracy,
        "seconds": round(sum(row["seconds"] for row in fitted.history), 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "helpers_sha256": identity.sha256(TRAINING, package=paths.ROOT / "helpers"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": devices.count(),
        "machine": system.machine()["cpu"],
    }
    if recipe.early_epoch:
        kept = paths.CHECKPOINTS / f"{name}.early.safetensors"
        paths.write_atomically(kept, early.read_bytes())
        entry["early"] = {"file": kept.name, "sha256": paths.sha256(kept.read_bytes()), "epoch": recipe.early_epoch}
    if not isinstance(dataset, data.Dataset):  # texts bring their vocabulary
        kept = paths.CHECKPOINTS / f"{recipe.dataset.__name__}.words.txt"
        vocabulary.write_words(dataset.words, kept)
        entry["words"] = {"file": kept.name, "sha256": paths.sha256(kept.read_bytes()), "count": len(dataset.words)}
    if recipe.teaches:
        kept = paths.CHECKPOINTS / f"{name}.answers.safetensors"
        entry["answers"] = {"file": kept.name, "sha256": answers.write(stored, kept)}
    whole = json.dumps(manifest() | {name: entry}, indent=1, sort_keys=True) + "\n"
    paths.write_atomically(paths.CHECKPOINTS / "manifest.json", whole.encode())
    return path
