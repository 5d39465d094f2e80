"""`fit`: one training loop for the whole course."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from tqdm.auto import tqdm

from helpers.core import checks, modules, paths
from helpers.data import Split
from helpers.training import code
from helpers.training.augmentation import Augment
from helpers.training.evaluation import check_split, evaluate
from helpers.training.fingerprint import Network, of
from helpers.training.losses import Loss, cross_entropy
from helpers.training.optimizers import OPTIMIZERS, learning_rate, parameter_groups
from helpers.training.precision import PRECISIONS, computing_in, device
from helpers.training.reproducibility import checked_seed
from helpers.training.resuming import load_state, note_resumed, saved, say_damaged

RULES = 2  # to be raised when `fit` trains otherwise than before: older states are not resumed
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
    return code.StandIn(on_step, None)


class Fitted(NamedTuple):
    """What `fit` returns: the new model, and one row per epoch (epoch, loss, seconds, and validation if given)."""

    model: nn.Module
    history: list[dict[str, float]]


def _to_training_mode(model: nn.Module) -> None:
    """Switch to training mode all but each BatchNorm whose scale and shift are frozen.

    In training mode its statistics would drift, though nothing of it is trained, and the layer would not stay the same.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters()) if isinstance(module, _BatchNorm) else []
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _random_batches(train: Split[Any, Any], batch_size: int, generator: torch.Generator) -> Sequence[Tensor]:
    order = torch.randperm(len(train), generator=generator)
    return order[: len(train) // batch_size * batch_size].split(batch_size)


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


def fingerprint_of(plan: _Plan, model: nn.Module, key: str) -> str:
    """Return what tells this training from any other: a saved state is resumed only by the very same one."""
    data = {name: (split.inputs, split.labels) for name, split in plan.splits.items()}
    names = ("loss", "augment", "batching", "on_step", "lr_factors", "epochs", "lr", "optimizer", "batch_size")
    settings = {name: getattr(plan, name) for name in (*names, "warmup", "precision", "seed")}
    return of({"rules": RULES, "model": Network(model)} | data | settings, key=key)


class _LayoutRefused(Exception):
    """The first step failed while images were laid out channels last: `view` refuses what it would have to copy."""


class _Training:
    """A copy of a model on its way: with `images_last`, the weights of its convolutions are laid out channels last."""

    def __init__(self, plan: _Plan, model: nn.Module, *, images_last: bool) -> None:
        self.plan, self.images_last, self.has_stepped = plan, images_last, False
        self._begin(model)
        if state := load_state(plan.checkpoint, plan.fingerprint):
            self._resume(state, model)
        self.resumed = sum(row["seconds"] for row in self.history)

    def _begin(self, model: nn.Module) -> None:
        self.where = device()
        self.model = modules.copied(model).to(self.where)
        if self.images_last:
            modules.to_channels_last(self.model)  # convolutions train about 1.5 times as fast
        self.rule = OPTIMIZERS[self.plan.optimizer](self.model, self.plan.lr, self.plan.lr_factors)
        self.factors = list(
            parameter_groups(self.model, self.plan.lr_factors)
        )  # of the optimizer's groups, in their order
        self.history: list[dict[str, float]] = []

    def _resume(self, state: dict[str, Any], model: nn.Module) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.rule.load_state_dict(state["optimizer"])
            self.history = [{**row, "seconds": float(row["seconds"])} for row in state["history"]]
        except Exception:  # somebody else's file under this training's fingerprint
            assert self.plan.checkpoint is not None
            say_damaged(self.plan.checkpoint)
            self._begin(model)

    def run(self) -> Fitted:
        """Train the epochs that are left, and return the model on the CPU."""
        plan, done = self.plan, len(self.history) * self.plan.per_epoch
        total = plan.epochs * plan.per_epoch
        with tqdm(total=total, initial=done, disable=not plan.progress, leave=False, unit="step") as bar:
            for epoch in range(len(self.history), plan.epochs):
                self.history.append(self._epoch(epoch, bar))
                if plan.checkpoint is not None:
                    paths.write_atomically(plan.checkpoint, saved(self._state()))
        note_resumed(self.resumed)
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
            group["lr"] = factor * learning_rate((step + 1) / total, peak=plan.lr, warmup=plan.warmup)
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
        with computing_in(PRECISIONS[self.plan.precision], self.model):
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
    check_split("train", train)
    if validation is not None:
        check_split("validation", validation)
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
        plan = replace(plan, fingerprint=fingerprint_of(plan, model, key))
    with suppress(_LayoutRefused):
        return _Training(plan, model, images_last=True).run()
    return _Training(plan, model, images_last=False).run()


def check_functions(**functions: Any) -> None:
    """Raise ValueError unless all are functions."""
    for name, function in functions.items():
        if not callable(function):
            raise ValueError(f"{name}={function!r}; allowed: a function")


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
