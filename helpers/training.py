"""Training and evaluation: one loop for the whole course."""

import io
import json
import math
import os
import random
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from helpers import checks, fingerprint, modules, paths
from helpers.data import Split
from helpers.environment import machine
from helpers.modules import channels_last

__all__ = [
    "IGNORED",
    "OPTIMIZERS",
    "PRECISIONS",
    "Evaluation",
    "Fitted",
    "channels_last",
    "check_labels",
    "cross_entropy",
    "device",
    "evaluate",
    "fast_precision",
    "fit",
    "flip_and_shift",
    "logits_of",
    "predict",
    "random_shift",
    "resumed_seconds",
    "seed_everything",
    "smoothed_cross_entropy",
    "watching",
]

IGNORED = -100  # the label of what does not count, as in `F.cross_entropy`

RULES = 2  # to be raised when `fit` trains otherwise than before: older states are not resumed

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


def watching(on_step: OnStep) -> OnStep:
    """Return `on_step` as one that only watches: `fit` resumes a training whatever watches it, or watched it before.

    Of any other `on_step`, which may change the network, code and settings count.
    """
    check_functions(on_step=on_step)
    return fingerprint.StandIn(on_step, None)


@dataclass(frozen=True)
class Evaluation:
    """Result of one pass over a split: mean cross-entropy (nats), accuracy (fraction), correct and all labels.

    A split of texts or photographs of which each place has a label counts places; labels `IGNORED` count nowhere.
    """

    loss: float
    accuracy: float
    correct: int
    count: int


class Fitted(NamedTuple):
    """What `fit` returns: the new model, and one row per epoch (epoch, loss, seconds, and validation if given)."""

    model: nn.Module
    history: list[dict[str, float]]


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's global generators; ValueError unless 0 ≤ seed < 2³²."""
    random.seed(checked_seed(seed))
    np.random.seed(seed)
    torch.manual_seed(seed)


def checked_seed(seed: int) -> int:
    """Return `seed` if it is a whole number that NumPy takes as well; raise ValueError otherwise."""
    return _whole("seed", seed, below=2**32)


def _whole(name: str, value: int, *, below: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < below:
        raise ValueError(f"{name}={value!r}; allowed: a whole number from 0 to {below - 1:,}")
    return value


def device() -> torch.device:
    """Return `COURSE_DEVICE` if it is set, else a GPU if there is one, else the CPU.

    Raises ValueError if `COURSE_DEVICE` is no device of this machine.
    """
    name = os.environ.get("COURSE_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ValueError(f"COURSE_DEVICE={name!r}; allowed: 'cpu', 'cuda', 'cuda:1' and the like") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"COURSE_DEVICE={name!r}; allowed here: 'cpu', and {torch.cuda.device_count()} GPUs")
    return found


# ---------------------------------------------------------------- augmentation


def random_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator, *, pixels: int = 2
) -> Float[Tensor, "batch channels height width"]:
    """Move each image by up to `pixels` in each direction; edge pixels fill the gap."""
    _check_images(images)
    _whole("pixels", pixels, below=2**31)
    count, channels, height, width = images.shape
    down, right = torch.randint(-pixels, pixels + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height)).clamp(0, height - 1)[:, None, :, None]
    columns = (right[:, None] + torch.arange(width)).clamp(0, width - 1)[:, None, None, :]
    which = torch.arange(count)[:, None, None, None]
    return images[which, torch.arange(channels)[None, :, None, None], rows, columns]


def flip_and_shift(
    images: Float[Tensor, "batch channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch channels height width"]:
    """Mirror every second image, drawn at random, left to right, and shift each by up to 2 pixels (`random_shift`)."""
    _check_images(images)
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return random_shift(torch.where(flipped[:, None, None, None], images.flip(3), images), generator)


def _check_images(images: Tensor) -> None:
    if images.dim() != 4:
        raise ValueError(f"images has shape {tuple(images.shape)}; allowed: (batch, channels, height, width)")


# ---------------------------------------------------------------- losses


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of a batch, in nats: the loss that `fit` uses unless told otherwise.

    The mean over the labels that are not `IGNORED`. Raises what `logits_of` and `check_labels` raise.
    """
    return _mean_cross_entropy(logits_of(model(inputs)), labels)


def smoothed_cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy with a tenth of each label spread over all classes.

    Label smoothing (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7).
    """
    return _mean_cross_entropy(logits_of(model(inputs)), labels, label_smoothing=0.1)


def _mean_cross_entropy(logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    if labels.is_floating_point() and labels.shape == logits.shape:  # probabilities of the classes
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    check_labels(logits, labels)
    return F.cross_entropy(logits, labels.long(), label_smoothing=label_smoothing)


def logits_of(output: Any) -> Tensor:
    """Return a network's answer: the tensor that it put out, or the field `logits` of what it put out.

    Torchvision's GoogLeNet and Inception put out such tuples in training. Raises ValueError for anything else.
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor):
        allowed = "a tensor, or a tuple with a field `logits`; else wrap the model, or give a loss of your own"
        raise ValueError(f"model puts out a {type(output).__name__}; allowed: {allowed}")
    return logits


def check_labels(logits: Float[Tensor, "..."], labels: Tensor) -> None:
    """Raise ValueError unless there is a label, 0 to classes - 1 or `IGNORED`, for each place of the logits.

    Logits are (batch, classes, ...), labels (batch, ...), and one label at least is not `IGNORED`.
    """
    if logits.dim() < 2 or 0 in logits.shape:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; allowed: (batch, classes, ...), none of them 0")
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(labels.shape) != expected:
        of_which = f"for logits of shape {tuple(logits.shape)}, whose axis 1 is the classes"
        raise ValueError(f"labels has shape {tuple(labels.shape)}; allowed: {expected} {of_which}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise ValueError(f"labels holds {labels.dtype}; allowed: whole numbers")
    low, high = map(int, labels.aminmax())
    if low >= 0 and high < logits.shape[1]:
        return
    counted = labels[labels != IGNORED]
    if counted.numel() == 0:
        raise ValueError(f"labels holds nothing but {IGNORED}, which does not count; allowed: at least one that counts")
    wrong = counted[(counted < 0) | (counted >= logits.shape[1])]
    if wrong.numel():
        allowed = f"0 to {logits.shape[1] - 1}, and {IGNORED} for what does not count"
        raise ValueError(f"labels holds {wrong[0].item()}; allowed: {allowed}")


# ---------------------------------------------------------------- optimizers


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

    "bfloat16" on a GPU that multiplies such numbers (since Ampere) and on a CPU with AMX. Other CPUs that have
    instructions for them (AVX512-BF16, Arm's) gain or lose by them: there a few steps of `cifar_base` are timed, once
    per machine, and remembered in precision.json in the build folder. "float32" everywhere else.
    """
    if device().type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    if capabilities.get("amx_bf16") and not limited:
        return "bfloat16"
    if any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")):
        return _faster_here(f"{machine()['cpu']}, {torch.get_num_threads()} threads, {torch.__version__}, {limited}")
    return "float32"


def _faster_here(key: str) -> str:
    """Return what the trial on this machine, which goes by `key`, said, or says now."""
    path = paths.build_dir() / "precision.json"
    known: dict[str, str] = {}
    with suppress(OSError, ValueError, TypeError):  # there is none, or a damaged one
        known = {} | json.loads(path.read_bytes())
    if known.get(key) not in list(PRECISIONS):
        seconds = _seconds_of_a_step()
        known[key] = "bfloat16" if 1.1 * seconds["bfloat16"] < seconds["float32"] else "float32"
        with suppress(OSError):  # a folder that cannot be written costs a trial in each process
            paths.write_atomically(path, json.dumps(known, indent=1).encode())
    return known[key]


def _seconds_of_a_step(*, rounds: int = 6) -> dict[str, float]:
    """Return by precision the shortest time of a training step; in turn, so that other work slows both."""
    from helpers.models import cifar_base

    seconds = dict.fromkeys(PRECISIONS, math.inf)
    with torch.random.fork_rng(devices=[]):
        net = modules.to_channels_last(cifar_base())
        images, labels = torch.randn(16, 3, 32, 32), torch.zeros(16, dtype=torch.int64)
    deadline = time.perf_counter() + 5
    for turn in range(rounds):
        for name, precision in PRECISIONS.items():
            started = time.perf_counter()
            with _computing_in(precision, net):
                loss = cross_entropy(net, images, labels)
            loss.backward()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
        if turn > 1 and time.perf_counter() > deadline:  # a busy machine
            break
    return seconds


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


# ---------------------------------------------------------------- the state of a training, on disk


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _load_state(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """Return the state in `path` if the same training wrote it, else None; of a damaged file a sentence says so."""
    if path is None or not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # `torch.load` compares no checksums
                raise ValueError
        state = torch.load(path, weights_only=True)
        return state if state["fingerprint"] == fingerprint else None
    except OSError:
        raise
    except Exception:  # whatever a damaged file makes of the pickle in it
        _say_damaged(path)
        return None


def _say_damaged(path: Path) -> None:
    print(f"{path} is damaged; the training starts afresh and will replace it.", file=sys.stderr)


# ---------------------------------------------------------------- one training


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
    product = F.linear(torch.cat(seen, dim=-1), weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)
    formats = {suggest_memory_format(images), suggest_memory_format(weight)}  # as a convolution lays out its output
    last = torch.channels_last in formats
    return product.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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
        if not (isinstance(padding, tuple) and isinstance(stride, tuple)):
            return False
        sizes = zip(images.shape[2:], weight.shape[2:], stride, padding, strict=True)
        places = [(size + 2 * pad - window) // step + 1 for size, window, step, pad in sizes]
        return min(places) > 0 and math.prod(places) <= self.PLACES


@contextmanager
def _computing_in(precision: torch.dtype, model: nn.Module) -> Iterator[None]:
    """Run what follows in mixed precision, with the model's outputs, and so every loss, in float32.

    Outputs may be a tensor, or tensors in tuples, lists and dictionaries.
    """
    if precision is torch.float32:
        yield
        return
    where = next(model.parameters()).device.type
    with modules.hooked([(model, _outputs_in_float32)]), torch.autocast(where, precision), _SmallMapsAsProducts():
        yield


def _outputs_in_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    def cast(part: Any) -> Any:
        return part.float() if isinstance(part, Tensor) and part.is_floating_point() else part

    return tree_map(cast, output)


@dataclass(frozen=True)
class _Plan:
    """The arguments of `fit`, checked, and the fingerprint of the training that they make."""

    train: Split
    epochs: int
    lr: float
    optimizer: str
    batch_size: int
    warmup: float
    lr_factors: Mapping[str, float] | None
    precision: str
    augment: Augment | None
    batching: Batching | None
    loss: Loss
    on_step: OnStep | None
    validation: Split | None
    seed: int
    checkpoint: Path | None
    progress: bool
    fingerprint: str = ""

    @property
    def splits(self) -> dict[str, Split]:
        return {"train": self.train} | ({"validation": self.validation} if self.validation is not None else {})

    @property
    def per_epoch(self) -> int:
        return len(self.train) // self.batch_size


def _fingerprint(plan: _Plan, model: nn.Module, key: str) -> str:
    """Return what tells this training from any other: a saved state is resumed only by the very same one."""
    data = {name: (split.inputs, split.labels) for name, split in plan.splits.items()}
    names = ("loss", "augment", "batching", "on_step", "lr_factors", "epochs", "lr", "optimizer", "batch_size")
    settings = {name: getattr(plan, name) for name in (*names, "warmup", "precision", "seed")}
    return fingerprint.of({"rules": RULES, "model": fingerprint.Network(model)} | data | settings, key=key)


class _LayoutRefused(Exception):
    """The first step failed while images were laid out channels last: `view` refuses what it would have to copy."""


class _Training:
    """A copy of a model on its way: with `images_last`, the weights of its convolutions are laid out channels last."""

    def __init__(self, plan: _Plan, model: nn.Module, *, images_last: bool) -> None:
        self.plan, self.images_last, self.has_stepped = plan, images_last, False
        self._begin(model)
        if state := _load_state(plan.checkpoint, plan.fingerprint):
            self._resume(state, model)
        self.resumed = sum(row["seconds"] for row in self.history)

    def _begin(self, model: nn.Module) -> None:
        self.where = device()
        self.model = modules.copied(model).to(self.where)
        if self.images_last:
            modules.to_channels_last(self.model)  # convolutions train about 1.5 times as fast
        self.rule = OPTIMIZERS[self.plan.optimizer](self.model, self.plan.lr, self.plan.lr_factors)
        self.factors = list(_groups(self.model, self.plan.lr_factors))  # of the optimizer's groups, in their order
        self.history: list[dict[str, float]] = []

    def _resume(self, state: dict[str, Any], model: nn.Module) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.rule.load_state_dict(state["optimizer"])
            self.history = [{**row, "seconds": float(row["seconds"])} for row in state["history"]]
        except Exception:  # somebody else's file under this training's fingerprint
            assert self.plan.checkpoint is not None
            _say_damaged(self.plan.checkpoint)
            self._begin(model)

    def run(self) -> Fitted:
        """Train the epochs that are left, and return the model on the CPU."""
        plan, done = self.plan, len(self.history) * self.plan.per_epoch
        total = plan.epochs * plan.per_epoch
        with tqdm(total=total, initial=done, disable=not plan.progress, leave=False, unit="step") as bar:
            for epoch in range(len(self.history), plan.epochs):
                self.history.append(self._epoch(epoch, bar))
                if plan.checkpoint is not None:
                    paths.write_atomically(plan.checkpoint, _saved(self._state()))
        _resumed.append(self.resumed)
        return Fitted(_at_rest(self.model), self.history)

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.plan.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.rule.state_dict(),
            "history": self.history,
        }

    def _epoch(self, epoch: int, bar: Any) -> dict[str, float]:
        """Train one epoch, and return its row of the history."""
        started = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(self.plan.seed * 100_003 + epoch)
            generator = torch.Generator().manual_seed(self.plan.seed * 100_003 + epoch)
            losses = []
            _to_training_mode(self.model)
            batches = (self.plan.batching or _random_batches)(self.plan.train, self.plan.batch_size, generator)
            if len(batches) != self.plan.per_epoch:
                raise ValueError(f"batching returned {len(batches)} batches; allowed: {self.plan.per_epoch}")
            for batch, chosen in enumerate(batches):
                losses.append(self._step(epoch * self.plan.per_epoch + batch, chosen, generator))
                bar.update()
        row = {"epoch": epoch + 1, "loss": float(torch.stack(losses).mean())}
        row["seconds"] = time.perf_counter() - started
        if self.plan.validation is not None:
            row["validation"] = evaluate(self.model, self.plan.validation).accuracy
        return row

    def _step(self, step: int, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """Take one step, with the examples `chosen`, and return the loss before it."""
        plan, total = self.plan, self.plan.epochs * self.plan.per_epoch
        for group, factor in zip(self.rule.param_groups, self.factors, strict=True):
            group["lr"] = factor * _learning_rate((step + 1) / total, peak=plan.lr, warmup=plan.warmup)
        inputs, labels = plan.train.inputs[chosen], plan.train.labels[chosen]
        if plan.augment is not None:
            inputs = plan.augment(inputs, generator)
        self.rule.zero_grad()
        try:
            value = self._differentiate(inputs.to(self.where), labels.to(self.where))
        except Exception as error:
            if not self.has_stepped:
                self._explain(error, inputs.to(self.where))
            raise
        self.rule.step()
        self.has_stepped = True
        if plan.on_step is not None:
            plan.on_step(self.model, StepInfo(step + 1, total, self.rule))
        return value.detach()

    def _differentiate(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, with its gradients in the parameters."""
        with _computing_in(PRECISIONS[self.plan.precision], self.model):
            value = self.plan.loss(self.model, inputs, labels)
        if not isinstance(value, Tensor) or value.dim() != 0 or not value.requires_grad:
            raise ValueError(f"loss returned {value!r}; allowed: a scalar tensor that depends on the parameters")
        value.backward()
        return value

    def _explain(self, error: Exception, inputs: Tensor) -> None:
        """Raise what says better why the first step failed, if anything does."""
        if self.images_last and isinstance(error, RuntimeError):
            raise _LayoutRefused from error
        size = self.plan.batch_size
        if "more than 1 value per channel" in str(error):
            allowed = "at least 2 in each process: BatchNorm needs several values of each channel"
            raise ValueError(f"batch_size={size}; allowed: {allowed}") from error
        if size > 1 and not _answers(self.model, inputs) and _answers(self.model, inputs[:1]):
            raise ValueError(f"batch_size={size}; allowed: 1, as the model takes one example at a time") from error
        if not _answers(self.model, inputs):
            with modules.asked("train.inputs", inputs):
                raise error


def _answers(model: nn.Module, inputs: Tensor) -> bool:
    """Return whether the model takes these inputs."""
    with modules.evaluating(model), torch.no_grad(), suppress(Exception):
        model(inputs)
        return True
    return False


@torch.no_grad()
def _at_rest(model: nn.Module) -> nn.Module:
    """Return the model on the CPU, in evaluation mode, with the weights that torch's own hooks compute up to date."""
    model.to("cpu").to(memory_format=torch.contiguous_format).eval()
    for layer in model.modules():
        for hook in layer._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm):
                hook(layer, ())
    return model


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
        on_step: called after each optimizer step with the model in training and where the training stands. It counts
            among what a training is resumed by, unless it is `watching`.
        validation: if given, evaluated after every epoch. It never influences the training.
        seed: of batches, augmentation and dropout.
        checkpoint: file that is written after each epoch, and resumed from if the same training wrote it: same network,
            data and settings, and functions that compute the same with the same values (see `fingerprint`).
        key: names what else decides the result, for resuming: what the functions read from files, or hold that cannot
            be told from others.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range, `train` has fewer examples than one batch, or `batching` returns
            another number of batches than the learning rate was planned for. With `checkpoint`: a function or the
            network holds what cannot be told from others, and there is no `key`.
    """
    checks.positive("epochs", epochs)
    checks.positive("batch_size", batch_size)
    checks.number("lr", lr, at_least=0)
    checks.choice("optimizer", optimizer, OPTIMIZERS)
    checks.choice("precision", precision, PRECISIONS)
    checks.fraction("warmup", warmup)
    checked_seed(seed)
    optional = {"augment": augment, "batching": batching, "on_step": on_step}
    check_functions(loss=loss, **{name: value for name, value in optional.items() if value is not None})
    _check_split("train", train)
    if validation is not None:
        _check_split("validation", validation)
    if len(train) < batch_size:
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train)} examples of train; allowed: at most that"
        )
    checkpoint = _checked_path(checkpoint)
    _check_factors(lr_factors or {}, model)
    _check_trainable(model)

    plan = _Plan(
        train, epochs, lr, optimizer, batch_size, warmup, lr_factors, precision, augment, batching, loss, on_step,
        validation, seed, checkpoint, progress,
    )  # fmt: skip
    if checkpoint is not None:
        plan = replace(plan, fingerprint=_fingerprint(plan, model, key))
    with suppress(_LayoutRefused):
        return _Training(plan, model, images_last=True).run()
    return _Training(plan, model, images_last=False).run()


def check_functions(**functions: Any) -> None:
    """Raise ValueError unless all are functions."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name}={function!r}; allowed: a function")


def _check_split(name: str, split: Split) -> None:
    if not isinstance(split, Split):
        raise ValueError(f"{name} is a {type(split).__name__}; allowed: a Split of two tensors")
    checks.not_empty(name, split)
    for part in ("inputs", "labels"):
        if not isinstance(getattr(split, part), Tensor):
            kind = type(getattr(split, part)).__name__
            raise ValueError(f"{name}.{part} is a {kind}; allowed: a tensor (of texts, text.as_split makes one)")


def _checked_path(checkpoint: Path | None) -> Path | None:
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ValueError(f"checkpoint={str(checkpoint)!r} is a folder; allowed: a file")
    return None if checkpoint is None else Path(checkpoint)


def _check_factors(lr_factors: Mapping[str, float], model: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    for name, factor in lr_factors.items():
        checks.choice("lr_factors", name, names)
        checks.number(f"lr_factors[{name!r}]", factor, above=0)


def _check_trainable(model: nn.Module) -> None:
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise ValueError("model has lazy layers that have no size yet; allowed: a model that has been called once")
    trained = {name: part for name, part in model.named_parameters() if part.requires_grad}
    if not trained:
        raise ValueError("model has no parameter with requires_grad=True; allowed: at least one")
    for name, parameter in trained.items():
        if parameter.dtype not in (torch.float32, torch.float64):
            allowed = "float32 or float64 (model.float()); precision='bfloat16' computes in bfloat16 all the same"
            raise ValueError(f"model holds {name!r} in {parameter.dtype}; allowed: {allowed}")


_resumed: list[float] = []


def resumed_seconds() -> float:
    """Return the seconds of the epochs that trainings in this process found done, in their checkpoints."""
    return sum(_resumed)


# ---------------------------------------------------------------- answers


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 250) -> Float[Tensor, "count classes *places"]:
    """Return the logits of all `inputs` on the CPU, computed in evaluation mode; each layer's own mode is restored.

    Images are laid out channels last where the model takes them so, and a model that takes one example at a time gets
    one at a time. Raises ValueError for empty inputs, and unless the model puts out one row for each input.
    """
    if not isinstance(inputs, Tensor):
        raise ValueError(f"inputs is a {type(inputs).__name__}; allowed: a tensor")
    checks.not_empty("inputs", inputs)
    checks.positive("batch_size", batch_size)
    where = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    batches = (batch.to(where) for batch in inputs.split(batch_size))
    with modules.evaluating(model), modules.asked("inputs", inputs):
        ask, first = _way_to_ask(model, next(batches))
        return torch.cat([first, *map(ask, batches)])


Ask = Callable[[Tensor], Tensor]


def _way_to_ask(model: nn.Module, batch: Tensor) -> tuple[Ask, Tensor]:
    """Return the first way that works to ask `model` batches like this one, and what it answers to this one."""

    def plainly(batch: Tensor) -> Tensor:
        return _rows_for(batch, model(batch))

    def laid_out(batch: Tensor) -> Tensor:
        return plainly(channels_last(batch))

    def singly(batch: Tensor) -> Tensor:
        return torch.cat([laid_out(one) for one in batch.split(1)])

    try:
        return laid_out, laid_out(batch)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = error
    for way in (plainly, singly):
        with suppress(RuntimeError, ValueError, AssertionError):
            return way, way(batch)
    raise first


def _rows_for(batch: Tensor, output: Any) -> Tensor:
    logits = logits_of(output).cpu()
    if logits.dim() < 1 or len(logits) != len(batch):
        shape = tuple(logits.shape)
        raise ValueError(f"model puts out shape {shape} for {len(batch)} inputs; allowed: one row for each input")
    return logits


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 250) -> Evaluation:
    """Return loss, accuracy and the number of correct answers on a split.

    Logits may be (count, classes) or (count, classes, ...), with a label for each place. Labels `IGNORED` do not count.
    An answer that holds NaN is wrong, and makes the loss NaN. Raises ValueError as `predict` and `check_labels` do.
    """
    _check_split("split", split)
    logits = predict(model, split.inputs, batch_size=batch_size)
    labels = split.labels
    check_labels(logits, labels)
    correct = int(((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum())
    count = int((labels != IGNORED).sum())
    loss = F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.long())
    return Evaluation(float(loss), correct / count, correct, count)
