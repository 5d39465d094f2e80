"""Trained weights: how each was made (`RECIPES`), `train` to make it again, `load` to use it.

Weights are safetensors files in data/checkpoints; manifest.json beside them says how, when, by which code and with
what accuracy each was trained.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from helpers import checks, data, environment, models, notebooks, paths, pruning, training

__all__ = ["RECIPES", "Recipe", "load", "manifest", "read_weights", "train", "write_weights"]


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained: the network, its data, and the arguments of `training.fit`."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], data.Dataset]
    options: Mapping[str, Any]


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
}


def write_weights(model: nn.Module, path: Path) -> str:
    """Write the model's state, masks included, as safetensors; return the file's SHA-256."""
    content = save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    paths.write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return a copy of `model` with the weights and masks of a file that `write_weights` wrote.

    Raises:
        ValueError: the file holds other names or shapes than the model.
    """
    state = load_file(path)
    masked = {
        name.removeprefix("parametrizations.").replace(".parametrizations.", ".").removesuffix(".0.mask"): tensor
        for name, tensor in state.items()
        if name.endswith(".0.mask")
    }
    new = pruning.mask(model, masked)
    try:
        new.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"path={str(path)!r} does not fit {type(model).__name__}: {error}") from error
    return new.eval()


def manifest() -> dict[str, dict[str, Any]]:
    """Return what is known of each committed checkpoint, by its name."""
    path = paths.CHECKPOINTS / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def load(name: str) -> nn.Module:
    """Return the trained network `name` in evaluation mode.

    Raises:
        ValueError: there is no such checkpoint, or its file is not the one that the manifest names.
    """
    entry = manifest()[checks.choice("name", name, manifest())]
    path = paths.CHECKPOINTS / entry["file"]
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise ValueError(
            f"name={name!r}: {path.name} is missing or changed; "
            f"restore it with git, or run python -m helpers train {name}"
        )
    return read_weights(RECIPES[name].build(), path)


def train(name: str, *, seed: int = 0) -> Path:
    """Train a checkpoint by its recipe, resuming an interrupted run; write weights and manifest; return the path.

    The last epoch is kept, and the test split is evaluated once, at the end.
    """
    recipe = RECIPES[checks.choice("name", name, RECIPES)]
    dataset = recipe.dataset()
    training.seed_everything(seed)
    scratch = paths.build_dir() / "scratch" / "train" / f"{name}.seed{seed}.pt"
    fitted = training.fit(
        recipe.build(),
        dataset.train,
        validation=dataset.validation,
        seed=seed,
        checkpoint=scratch,
        **recipe.options,
    )
    path = paths.CHECKPOINTS / f"{name}.safetensors"
    options = {key: getattr(value, "__name__", value) for key, value in recipe.options.items()}
    entry = {
        "file": path.name,
        "sha256": write_weights(fitted.model, path),
        "command": f"python -m helpers train {name} --seed {seed}",
        "seed": seed,
        "options": options,
        "examples": len(dataset.train),
        "validation_accuracy": fitted.history[-1]["validation"],
        "test_accuracy": training.evaluate(fitted.model, dataset.test).accuracy,
        "seconds": round(sum(row["seconds"] for row in fitted.history), 1),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "helpers_sha256": notebooks.modules_sha256(["training", "models", "data"]),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": environment.machine()["cpu"],
    }
    whole = json.dumps(manifest() | {name: entry}, indent=1, sort_keys=True) + "\n"
    paths.write_atomically(paths.CHECKPOINTS / "manifest.json", whole.encode())
    return path
