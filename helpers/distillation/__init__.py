"""Learning from a teacher: soft targets, attention, ensembles."""

from helpers.distillation.attention import attention_loss, attention_map, with_features
from helpers.distillation.losses import mixed_loss, soft_target_loss
from helpers.distillation.teachers import Ensemble, ask, fixed_views, taught_by, taught_from

__all__ = [
    "Ensemble",
    "ask",
    "attention_loss",
    "attention_map",
    "fixed_views",
    "mixed_loss",
    "soft_target_loss",
    "taught_by",
    "taught_from",
    "with_features",
]
