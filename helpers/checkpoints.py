"""Trained weights: how each was made (`RECIPES`), `train` to make it again, `load` to use it.

Weights are safetensors files in data/checkpoints; manifest.json beside them says how, when, by which code and with
what accuracy each was trained. Beside those of networks that read texts lie the vocabularies: one word a line, in the
order of the numbers.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from helpers import (
    checks,
    data,
    devices,
    environment,
    models,
    modules,
    notebooks,
    packing,
    paths,
    pruning,
    quantization,
    text,
    training,
    vocabulary,
)

__all__ = ["RECIPES", "Recipe", "load", "manifest", "read_weights", "train", "words", "write_weights"]

MASK = re.compile(r"(.*\.|)parametrizations\.([^.]+)\.0\.mask")  # the layer, with a point, and its parameter
HALF_DIGITS = 2**-11  # of a number in half precision, what rounding takes from it


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained: the network, its data, and the arguments of `training.fit`."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], data.Dataset | text.Encoded]
    options: Mapping[str, Any]
    early_epoch: int = 0  # keep the weights after this epoch too, as NAME.early: notebook 05 rewinds to them
    half: bool = False  # store half precision: half the bytes, three digits, which is enough for trained weights


_CIFAR = {
    "lr": 0.4,
    "batch_size": 512,
    "warmup": 0.2,
    "precision": "bfloat16",
    "augment": training.flip_and_shift,
}

_TEXT = {"optimizer": "adam", "batch_size": 64, "batching": text.by_length}

RECIPES = {
    "lenet5": Recipe(
        models.lenet5,
        data.mnist,
        {"epochs": 15, "optimizer": "adam", "lr": 2e-3, "augment": training.random_shift},
    ),
    "lenet-300-100": Recipe(
        models.lenet_300_100,
        data.mnist,
        {"epochs": 20, "optimizer": "adam", "lr": 2e-3, "augment": training.random_shift},
    ),
    "cifar_base": Recipe(
        models.cifar_base,
        data.cifar10,
        {"epochs": 30, "loss": training.smoothed_cross_entropy, **_CIFAR},
    ),
    "cifar_small": Recipe(models.cifar_small, data.cifar10, {"epochs": 20, **_CIFAR}, early_epoch=2),
    "cifar_half": Recipe(models.cifar_half, data.cifar10, {"epochs": 20, **_CIFAR}),
    "resnet18": Recipe(
        models.resnet18,
        data.cifar10_without_cat_and_dog,
        {"epochs": 16, "loss": training.smoothed_cross_entropy, **_CIFAR, "batch_size": 256, "lr": 0.2},
        half=True,
    ),
    "imdb_bag": Recipe(models.imdb_bag, text.imdb, {"epochs": 4, "lr": 3e-3, **_TEXT}),
    "imdb_bigrams": Recipe(models.imdb_bigrams, text.imdb_bigrams, {"epochs": 3, "lr": 3e-3, **_TEXT}),
    "imdb_cnn": Recipe(models.imdb_cnn, text.imdb, {"epochs": 4, "lr": 2e-3, **_TEXT}),
    "imdb_lstm": Recipe(models.imdb_lstm, text.imdb, {"epochs": 6, "lr": 5e-3, **_TEXT}),
    "imdb_rnn": Recipe(models.imdb_rnn, text.imdb, {"epochs": 6, "lr": 1e-3, **_TEXT}),
}


def write_weights(model: nn.Module, path: Path, *, half: bool = False) -> str:
    """Write the model's state, masks included, as safetensors; return the file's SHA-256.

    A tensor that the model has under several names is written once, and what torch's own pruning and normalization
    hooks compute as ordinary weights. With `half` fractions are rounded to half precision, where that keeps three
    digits: of the largest number of a tensor, and of every variance of a BatchNorm, which divides. A tensor whose
    numbers are too large or too small for that stays as it is. `read_weights` reads all of it.

    Raises ValueError for a state that is no tensor, or is not there yet, and for a quantized model.
    """
    if grids := [*quantization.weight_grids(model), *quantization.input_grids(model)]:
        raise ValueError(f"model is quantized ({grids[0]!r}); allowed: packing.write_quantized, or quantization.bake")
    state = packing.state_of(modules.materialized(model))
    first = packing.first_of(state)
    whole = {
        name: state[name].detach().clone(memory_format=torch.contiguous_format)
        for name in dict.fromkeys(first.values())
    }
    content = save({name: _halved(name, tensor) if half else tensor for name, tensor in whole.items()})
    paths.write_atomically(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def _halved(name: str, tensor: Tensor) -> Tensor:
    """Return the tensor in half precision if that is close enough, else the tensor."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or not tensor.isfinite().all():
        return tensor
    exact, rounded = tensor.double(), tensor.half()
    whole = exact.abs() if name.endswith("running_var") else exact.abs().max()
    return rounded if bool(((rounded.double() - exact).abs() <= HALF_DIGITS * whole).all()) else tensor


def read_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return a copy of `model` with the weights and masks of a file that `write_weights` wrote.

    Raises:
        ValueError: the file is no safetensors file, or holds other names or shapes than the model.
    """
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"path={str(path)!r} cannot be read: {error}; allowed: what write_weights wrote") from None
    masked = {f"{found[1]}{found[2]}": state[found[0]] for found in map(MASK.fullmatch, state) if found}
    try:
        new = pruning.mask(modules.materialized(model), masked)
        packing.fill(new, state)
    except ValueError as error:
        raise ValueError(f"path={str(path)!r} does not fit {type(model).__name__}: {error}") from error
    return new.eval()


def manifest() -> dict[str, dict[str, Any]]:
    """Return what is known of each committed checkpoint, by its name."""
    path = paths.CHECKPOINTS / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
    if not path.exists() or _sha256(path) != entry["sha256"]:
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
    if not path.exists() or _sha256(path) != entry["sha256"]:
        raise ValueError(f"name={name!r}: {path.name} is missing or changed; restore it with git")
    return vocabulary.read_words(path)


def _keep_early(recipe: Recipe, path: Path) -> training.OnStep | None:
    """Return what writes the weights after `recipe.early_epoch` to `path`, at once: a resumed run will not see them."""
    if not recipe.early_epoch:
        return None

    def keep(model: nn.Module, at: training.StepInfo) -> None:
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
    sha256 = write_weights(fitted.model, path, half=recipe.half)
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
        "helpers_sha256": notebooks.modules_sha256(["training", "models", "data"]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processes": devices.count(),
        "machine": environment.machine()["cpu"],
    }
    if recipe.early_epoch:
        kept = paths.CHECKPOINTS / f"{name}.early.safetensors"
        paths.write_atomically(kept, early.read_bytes())
        entry["early"] = {"file": kept.name, "sha256": _sha256(kept), "epoch": recipe.early_epoch}
    if isinstance(dataset, text.Encoded):
        kept = paths.CHECKPOINTS / f"{recipe.dataset.__name__}.words.txt"
        vocabulary.write_words(dataset.words, kept)
        entry["words"] = {"file": kept.name, "sha256": _sha256(kept), "count": len(dataset.words)}
    whole = json.dumps(manifest() | {name: entry}, indent=1, sort_keys=True) + "\n"
    paths.write_atomically(paths.CHECKPOINTS / "manifest.json", whole.encode())
    return path
