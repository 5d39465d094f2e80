"""Training and evaluation: one loop for the whole course."""

import hashlib
import io
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm

from helpers import checks, paths
from helpers.data import Split

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "Evaluation",
    "Fitted",
    "channels_last",
    "cross_entropy",
    "device",
    "evaluate",
    "fast_precision",
    "fit",
    "flip_and_shift",
    "predict",
    "random_shift",
    "resumed_seconds",
    "seed_everything",
    "smoothed_cross_entropy",
]

Augment = Callable[[Tensor, torch.Generator], Tensor]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Batching = Callable[[Split[Any, Any], int, torch.Generator], Sequence[Tensor]]


class StepInfo(NamedTuple):
    """Where a training stands, as `on_step` sees it: `step` steps of `total` are done."""

    step: int
    total: int
    optimizer: torch.optim.Optimizer

    @property
    def progress(self) -> float:
        """Fraction of the training that is done, in (0, 1]."""
        return self.step / self.total


OnStep = Callable[[nn.Module, StepInfo], None]


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split: mean cross-entropy (nats), accuracy (fraction), correct and all examples."""

    loss: float
    accuracy: float
    correct: int
    count: int


class Fitted(NamedTuple):
    """What `fit` returns: the new model, and one row per epoch (epoch, loss, seconds, and validation if given)."""

    model: nn.Module
    history: list[dict[str, float]]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device() -> torch.device:
    """Return `COURSE_DEVICE` if it is set, else a GPU if there is one, else the CPU."""
    if name := os.environ.get("COURSE_DEVICE"):
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator, *, pixels: int = 2
) -> Float[Tensor, "batch channels height width"]:
    """Move each image by up to `pixels` in each direction; edge pixels fill the gap."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    down, right = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, None, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, None, :]
    which = torch.arange(count)[:, None, None, None]
    return padded[which, torch.arange(channels)[None, :, None, None], rows, columns]


def flip_and_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Mirror every second image, drawn at random, left to right, and shift each by up to 2 pixels (`random_shift`)."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return random_shift(torch.where(flipped[:, None, None, None], images.flip(3), images), generator)


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats: the loss that `fit` uses unless told otherwise."""
    return F.cross_entropy(model(inputs), labels)


def smoothed_cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy with a tenth of each label spread over all classes.

    Label smoothing (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).
    """
    return F.cross_entropy(model(inputs), labels, label_smoothing=0.1)


def _groups(model: nn.Module, lr_factors: Mapping[str, float] | None) -> dict[float, list[nn.Parameter]]:
    """Return the parameters to be trained by the factor on their learning rate: that of the longest name that fits."""
    groups: dict[float, list[nn.Parameter]] = {}
    factors = lr_factors or {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            fitting = [module for module in factors if name.startswith(f"{module}.")]
            groups.setdefault(factors[max(fitting, key=len)] if fitting else 1.0, []).append(parameter)
    return groups


def _param_groups(model: nn.Module, lr_factors: Mapping[str, float] | None) -> list[dict[str, Any]]:
    return [{"params": parameters} for parameters in _groups(model, lr_factors).values()]


def _sgd(model: nn.Module, lr: float, lr_factors: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    groups = _param_groups(model, lr_factors)
    return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _adam(model: nn.Module, lr: float, lr_factors: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
    return torch.optim.Adam(_param_groups(model, lr_factors), lr=lr, fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": _adam, "sgd": _sgd}


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def fast_precision() -> str:
    """Return the precision in which this device trains convolutions fastest, for `fit`.

    "bfloat16" where its hardware multiplies such numbers (a CPU with AMX, a GPU since Ampere), else "float32".
    """
    if device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu.get_capabilities().get("amx_bf16") else "float32"


def _check_factors(lr_factors: Mapping[str, float], model: nn.Module) -> None:
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    for name, factor in lr_factors.items():
        checks.choice("lr_factors", name, modules)
        if not 0 < factor < float("inf"):
            raise ValueError(f"lr_factors[{name!r}]={factor!r}; allowed: a number above 0; freeze what shall stay")


def _to_training_mode(model: nn.Module) -> None:
    """Switch to training mode all but each BatchNorm whose scale and shift are frozen.

    In training mode its statistics would drift, though nothing of it is trained, and the layer would not stay the same.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _learning_rate(progress: float, *, peak: float, warmup: float) -> float:
    """Linear warm-up to `peak`, then half a cosine down to zero (Loshchilov and Hutter 2017, section 3)."""
    if progress < warmup:
        return peak * progress / warmup
    return peak * 0.5 * (1 + float(np.cos(np.pi * (progress - warmup) / (1 - warmup))))


def _fingerprint(model: nn.Module, settings: dict[str, Any]) -> str:
    """Digest of the initial weights and the settings: a saved state is resumed only by the very same training."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save_state(path: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    paths.write_atomically(path, buffer.getvalue())


def _load_state(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    return state if state["fingerprint"] == fingerprint else None


def _random_batches(train: Split[Any, Any], batch_size: int, generator: torch.Generator) -> Sequence[Tensor]:
    order = torch.randperm(len(train), generator=generator)
    return order[: len(train) // batch_size * batch_size].split(batch_size)


def _as_product(
    images: Float[Tensor, "batch channels height width"],
    weight: Float[Tensor, "filters channels rows columns"],
    bias: Float[Tensor, " filters"] | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Float[Tensor, "batch filters up across"]:
    """Return the convolution as one matrix product: of all patches (one for each place), laid out as rows."""
    (down, right), (rows, columns) = stride, weight.shape[2:]
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    up, across = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    seen = [padded[:, i : i + up : down, j : j + across : right] for i in range(rows) for j in range(columns)]
    return F.linear(torch.cat(seen, dim=-1), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


class _SmallMapsAsProducts(TorchFunctionMode):
    """Compute convolutions that put out at most `PLACES` places for each image as matrix products.

    A ResNet-18 on 64 pixels trains 1.8 times as fast: oneDNN's bfloat16 kernels are slow on such maps, the gradient of
    the weights above all.
    """

    PLACES = 16

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and len(args) == 7 and self._fits(*args):  # as nn.Conv2d calls it
            return _as_product(*args[:5])
        return func(*args, **(kwargs or {}))

    def _fits(
        self, images: Tensor, weight: Tensor, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> bool:
        if images.device.type != "cpu" or images.dim() != 4 or groups != 1 or dilation != (1, 1):
            return False
        if isinstance(padding, str):
            return False
        sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)
        return math.prod((size + 2 * pad - window) // step + 1 for size, window, step, pad in sizes) <= self.PLACES


@contextmanager
def _computing_in(precision: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Run what follows in mixed precision, with the model's outputs, and so every loss, in float32."""
    if precision is torch.float32:
        yield
        return
    hook = model.register_forward_hook(lambda module, inputs, output: output.float())
    try:
        with torch.autocast(next(model.parameters()).device.type, precision), _SmallMapsAsProducts():
            yield
    finally:
        hook.remove()


def fit(
    model: nn.Module,
    train: Split,
    *,
    epochs: int,
    lr: float,
    optimizer: str = "sgd",
    batch_size: int = 128,
    warmup: float = 0.1,
    lr_factors: Mapping[str, float] | None = None,
    precision: str = "float32",
    augment: Augment | None = None,
    batching: Batching | None = None,
    loss: Loss = cross_entropy,
    on_step: OnStep | None = None,
    validation: Split | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    key: str = "",
    progress: bool = True,
) -> Fitted:
    """Train a copy of `model` and return it with the history of its epochs; `model` itself stays as it is.

    The learning rate warms up linearly over the fraction `warmup` of all steps and then falls to zero along a cosine.
    A last batch smaller than `batch_size` is left out. Frozen parameters (`requires_grad=False`) stay as they are, and
    so do the statistics of a BatchNorm whose scale and shift are frozen. The same seed, machine and thread count give
    the same weights, bit for bit; batches and augmentation depend on `seed` and the epoch alone.

    Args:
        model: any module that maps a batch of inputs to logits (batch, classes).
        train: the training examples.
        epochs: passes over the data.
        lr: peak learning rate.
        optimizer: "sgd" (Nesterov momentum 0.9, weight decay 5e-4) or "adam".
        batch_size: examples per step.
        warmup: fraction of the steps over which the learning rate rises, in [0, 1).
        lr_factors: module name → factor on the learning rate of the parameters in it; of two names that fit, the longer
            decides, and 1 where none does. Howard and Ruder 2018 ("Universal language model fine-tuning for text
            classification", section 3.2) lower it towards the input.
        precision: "float32", or "bfloat16" for a forward pass in mixed precision (`torch.autocast`; the weights and
            the logits that `loss` sees stay float32): faster where `fast_precision` says so, slower elsewhere.
        augment: function of (inputs, generator) that returns changed inputs.
        batching: function of (train, batch_size, generator) that returns one epoch's batches as tensors of indices,
            `len(train) // batch_size` of them; by default a random order, cut into slices.
        loss: function of (model, inputs, labels) that returns a scalar.
        on_step: called after each optimizer step with the model in training and where the training stands.
        validation: if given, evaluated after every epoch. It never influences the training.
        seed: of batches, augmentation and dropout.
        checkpoint: file that is written after each epoch, and resumed from if the same training wrote it.
        key: names what else decides the result (settings inside `loss` or `on_step`), for resuming.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, `train` has fewer examples than one batch, or `batching` returns
            another number of batches than the learning rate was planned for.
    """
    checks.positive("epochs", epochs)
    checks.positive("batch_size", batch_size)
    checks.choice("optimizer", optimizer, OPTIMIZERS)
    checks.choice("precision", precision, PRECISIONS)
    checks.fraction("warmup", warmup)
    checks.not_empty("train", train)
    if len(train) < batch_size:
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train)} examples of train; allowed: at most that"
        )
    _check_factors(lr_factors or {}, model)
    if not _groups(model, lr_factors):
        raise ValueError("model has no parameter with requires_grad=True; allowed: at least one")

    settings = {
        "epochs": epochs,
        "lr": lr,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "warmup": warmup,
    }
    settings |= {"seed": seed, "key": key, "examples": len(train), "loss": getattr(loss, "__name__", "")}
    settings |= {"augment": getattr(augment, "__name__", ""), "batching": getattr(batching, "__name__", "")}
    settings |= {"precision": precision}
    settings |= {"lr_factors": sorted(lr_factors.items())} if lr_factors else {}
    fingerprint = _fingerprint(model, settings)

    where = device()
    new = deepcopy(model).to(where).to(memory_format=torch.channels_last)  # convolutions train about 1.5 times as fast
    rule = OPTIMIZERS[optimizer](new, lr, lr_factors)
    factors = list(_groups(new, lr_factors))  # of the optimizer's groups, in their order
    history: list[dict[str, float]] = []
    if state := _load_state(checkpoint, fingerprint):
        new.load_state_dict(state["model"])
        rule.load_state_dict(state["optimizer"])
        history = state["history"]
        _resumed.append(sum(row["seconds"] for row in history))

    per_epoch = len(train) // batch_size
    total = epochs * per_epoch
    with tqdm(total=total, initial=len(history) * per_epoch, disable=not progress, leave=False, unit="step") as bar:
        for epoch in range(len(history), epochs):
            started = time.perf_counter()
            with torch.random.fork_rng():
                torch.manual_seed(seed * 100_003 + epoch)
                generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
                losses = []
                _to_training_mode(new)
                batches = (batching or _random_batches)(train, batch_size, generator)
                if len(batches) != per_epoch:
                    raise ValueError(f"batching returned {len(batches)} batches; allowed: {per_epoch}")
                for batch, chosen in enumerate(batches):
                    step = epoch * per_epoch + batch
                    for group, factor in zip(rule.param_groups, factors, strict=True):
                        group["lr"] = factor * _learning_rate((step + 1) / total, peak=lr, warmup=warmup)
                    inputs, labels = train.inputs[chosen], train.labels[chosen]
                    if augment is not None:
                        inputs = augment(inputs, generator)
                    rule.zero_grad()
                    with _computing_in(PRECISIONS[precision], new):
                        value = loss(new, inputs.to(where), labels.to(where))
                    value.backward()
                    rule.step()
                    if on_step is not None:
                        on_step(new, StepInfo(step + 1, total, rule))
                    losses.append(value.detach())
                    bar.update()
            row = {"epoch": epoch + 1, "loss": float(torch.stack(losses).mean())}
            row["seconds"] = time.perf_counter() - started
            if validation is not None:
                row["validation"] = evaluate(new, validation).accuracy
            history.append(row)
            if checkpoint is not None:
                state = {
                    "fingerprint": fingerprint,
                    "model": new.state_dict(),
                    "optimizer": rule.state_dict(),
                }
                _save_state(checkpoint, state | {"history": history})
    return Fitted(new.to("cpu").to(memory_format=torch.contiguous_format).eval(), history)


_resumed: list[float] = []


def resumed_seconds() -> float:
    """Return the seconds of the epochs that trainings in this process found done, in their checkpoints."""
    return sum(_resumed)


def channels_last(batch: Tensor) -> Tensor:
    """Return a batch of images laid out channel by channel for each pixel: convolutions take about half the time.

    Values and shape stay; what is no batch of images comes back as it is.
    """
    return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 250) -> Float[Tensor, "count classes"]:
    """Return the logits of all `inputs` on the CPU, computed in evaluation mode; each layer's own mode is restored."""
    checks.not_empty("inputs", inputs)
    were_training = [module for module in model.modules() if module.training]  # a frozen layer may stand in evaluation
    where = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    model.eval()
    try:
        return torch.cat([model(channels_last(batch.to(where))).cpu() for batch in inputs.split(batch_size)])
    finally:
        for module in were_training:
            module.training = True


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 250) -> Evaluation:
    """Return loss, accuracy and the number of correct answers on a split."""
    checks.not_empty("split", split)
    logits = predict(model, split.inputs, batch_size=batch_size)
    labels: Int[Tensor, " count"] = split.labels
    correct = int((logits.argmax(1) == labels).sum())
    return Evaluation(float(F.cross_entropy(logits, labels)), correct / len(split), correct, len(split))
