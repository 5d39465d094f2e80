"""Training, resuming, losses, augmentation, evaluation. Several devices are in `helpers.training.devices`."""

from helpers.training.augmentation import flip_and_shift, random_shift
from helpers.training.evaluation import Evaluation, compare_with_labels, evaluate, predict
from helpers.training.loop import Fitted, fit, watching
from helpers.training.losses import IGNORED, check_labels, cross_entropy, logits_of, smoothed_cross_entropy
from helpers.training.optimizers import OPTIMIZERS
from helpers.training.precision import PRECISIONS, device, fast_precision
from helpers.training.reproducibility import seed_everything
from helpers.training.resuming import resumed_seconds
from helpers.training.transfer import features, freeze, replace_head

__all__ = [
    "IGNORED",
    "OPTIMIZERS",
    "PRECISIONS",
    "Evaluation",
    "Fitted",
    "check_labels",
    "compare_with_labels",
    "cross_entropy",
    "device",
    "evaluate",
    "fast_precision",
    "features",
    "fit",
    "flip_and_shift",
    "freeze",
    "logits_of",
    "predict",
    "random_shift",
    "replace_head",
    "resumed_seconds",
    "seed_everything",
    "smoothed_cross_entropy",
    "watching",
]
